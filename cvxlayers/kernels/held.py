"""The systems of `cvxlayers.kkt` at solutions of staged problems with bounds on controls, LANES rows at a time, by Riccati recursion.

With tau_t = [x_t; u_t], some controls held at bounds a u = value, the others free, and costates lambda_t = -y_t,

    C_t tau_t + F_t'lambda_{t+1} - [lambda_t; 0] + a t = r_1,   x_0 = r_2,   x_{t+1} - F_t tau_t = r_2,   a u = r_2 or -t = r_2.

No entry is regularized, and C may be indefinite; a row whose matrix is not positive definite in the free controls of some stage, or that
has a control on its way between held and free, is reported with an infinite residual.
"""

from __future__ import annotations

import numpy as np

from cvxlayers.kernels.lanes import Compiled, compiled, full, inner, larger, load, select, some, sqrt, store
from cvxlayers.kernels.rows import blocks_of, gather, gather_at, pieces, scatter
from cvxlayers.kernels.stages import congruence, pulled, reduce, times
from cvxlayers.kernels.threads import run

GOAL, MOST = 1e-14, 3
"""The relative residual at which refinement ends, and solves at most."""


class Held:
    """The systems of T stages with n states and m controls.

    ``places`` says where the stored numbers of K stand: in C (T, s, s), then -F (T-1, n, s), the coefficients a of upper and of lower
    bounds (T, m) each, the diagonal of the bounds' rows (rows of A), and a last place. ``upper`` and ``lower`` are the bounds' first
    rows, -1 where there are none.
    """

    def __init__(self, T: int, n: int, m: int, places: np.ndarray, rows: int, upper: int, lower: int) -> None:
        self.sizes, self.places, self.rows, self.upper, self.lower = (T, n, m), places, rows, upper, lower

    def solve(self, values: np.ndarray, rhs: np.ndarray, jobs: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """As `cvxlayers.kernels.systems.Systems.solve`."""
        T, n, m = self.sizes
        s, z, figures = n + m, np.empty_like(rhs), np.empty((len(rhs), 3))
        numbers = T * s * s + (T - 1) * n * s + 2 * T * m + self.rows + 1
        sizes = (numbers, *[rhs.shape[1]] * 4, T * (n * n + m * n + m * m), s * s, s, n * s, m * m, m * s, n, T * m, T * n, 3)
        values, rhs = np.ascontiguousarray(values), np.ascontiguousarray(rhs)

        def task(first: int, last: int) -> None:
            memory = pieces(*sizes)
            _solve_blocks(first, last, T, n, m, self.places, self.upper, self.lower, values, rhs, memory, z, figures)

        run(task, blocks_of(len(rhs)), jobs, work=blocks_of(len(rhs)) * T * 2 * s**3)
        return z, figures


@compiled
def _solve_blocks(
    first: Compiled, last: Compiled, T: Compiled, n: Compiled, m: Compiled, places: Compiled, upper: Compiled, lower: Compiled,
    values: Compiled, rhs: Compiled, memory: Compiled, z: Compiled, figures: Compiled,
) -> None:  # fmt: skip
    N, right, left, step, found, kept, Q, q, product, factor, solved, p, k, v, told = memory
    s = n + m
    size, F_at = len(right), T * s * s
    bounds = F_at + (T - 1) * n * s
    for block in range(first, last):
        for i in range(bounds, bounds + 2 * T * m):  # of bounds that are not there
            store(N, i, 0.0)
        gather_at(values, block, places, N)
        gather(rhs, block, right)
        for t in range(T):
            for i in range(s):
                for j in range(i):
                    store(N, (t * s + i) * s + j, load(N, (t * s + j) * s + i))
        peak, most, whole = full(0.0), full(1.0), full(0.0)
        for i in range(size):
            peak = larger(abs(load(right, i)), peak)
        for i in range(len(N) - 1):
            most = larger(abs(load(N, i)), most)
        peak = select(peak == 0.0, 1.0, peak)
        for i in range(size):
            entry = load(right, i) / peak
            store(right, i, entry)
            store(left, i, entry)
            store(found, i, 0.0)
            whole += entry * entry
        whole = select(whole == 0.0, 1.0, whole)
        for i in range((T - 1) * n * s):
            store(N, F_at + i, -load(N, F_at + i))
        good = factorize(T, n, m, upper, lower, N, kept, Q, product, factor, solved)
        error, going = full(0.0), good
        for _ in range(MOST):  # a lane that is done stays as it is, whatever its neighbours do
            passes(T, n, m, upper, lower, N, kept, left, q, p, k, v, step)
            for i in range(size):
                store(found, i, load(found, i) + select(going == 1.0, load(step, i), 0.0))
            _residual(T, n, m, upper, lower, N, found, right, left)
            error = full(0.0)
            for i in range(size):
                error += load(left, i) * load(left, i)
            error = sqrt(error / whole)
            going = select(error > GOAL, going, 0.0)
            if not some(going == 1.0):
                break
        longest = full(0.0)
        for i in range(size):
            longest = larger(abs(load(found, i)), longest)
            store(found, i, load(found, i) * peak)
        store(told, 0, select((good == 1.0) & (error < np.inf), error, np.inf))
        store(told, 1, longest)
        store(told, 2, most)
        scatter(found, block, z)
        scatter(told, block, figures)


@inner
def _coefficient(T: Compiled, n: Compiled, m: Compiled, row: Compiled, side: Compiled, at: Compiled, N: Compiled) -> Compiled:
    """a of the upper (side 0) or lower (side 1) bound of control ``at``, zero where it is not held or there is none."""
    if row < 0:
        return full(0.0)
    s = n + m
    return load(N, T * s * s + (T - 1) * n * s + side * T * m + at)


@inner
def factorize(
    T: Compiled, n: Compiled, m: Compiled, upper: Compiled, lower: Compiled, N: Compiled, kept: Compiled, Q: Compiled, product: Compiled,
    factor: Compiled, solved: Compiled,
) -> Compiled:  # fmt: skip
    """V, K and W of every stage, with held controls fixed; where the rows have such factors."""
    s, good, width = n + m, full(1.0), n * n + m * n + m * m
    diagonal = T * s * s + (T - 1) * n * s + 2 * T * m
    for t in range(T - 1, -1, -1):
        for i in range(s):
            for j in range(i, s):
                store(Q, i * s + j, load(N, (t * s + i) * s + j))
        if t < T - 1:
            congruence(n, s, kept, (t + 1) * width, N, T * s * s + t * n * s, product, Q)
        for i in range(m):
            at = t * m + i
            one, two = _coefficient(T, n, m, upper, 0, at, N), _coefficient(T, n, m, lower, 1, at, N)
            if upper >= 0:  # held: the coefficient is there and nothing on the diagonal
                good = select((one == 0.0) | (load(N, diagonal + upper + at) == 0.0), good, 0.0)
            if lower >= 0:
                good = select((two == 0.0) | (load(N, diagonal + lower + at) == 0.0), good, 0.0)
            free = (one == 0.0) & (two == 0.0)
            for j in range(s):
                low, high = min(j, n + i), max(j, n + i)
                store(Q, low * s + high, select(free, load(Q, low * s + high), 1.0 if low == high else 0.0))
        good = reduce(n, m, Q, factor, solved, kept, t * width, good)
    return good


@inner
def passes(
    T: Compiled, n: Compiled, m: Compiled, upper: Compiled, lower: Compiled, N: Compiled, kept: Compiled, r: Compiled, q: Compiled,
    p: Compiled, k: Compiled, v: Compiled, z: Compiled,
) -> None:  # fmt: skip
    """K z = r with these factors."""
    s = n + m
    width, sides, F_at = n * n + m * n + m * m, T * s, T * s * s
    for t in range(T - 1, -1, -1):
        at = t * width
        for i in range(s):
            store(q, i, -load(r, t * s + i))
        # What is held moves what is free; z holds the values meanwhile.
        for i in range(m):
            one, two = _coefficient(T, n, m, upper, 0, t * m + i, N), _coefficient(T, n, m, lower, 1, t * m + i, N)
            value = full(0.0)
            if upper >= 0:
                value = select(one == 0.0, value, load(r, sides + upper + t * m + i) / one)
            if lower >= 0:
                value = select((two == 0.0) | ~(one == 0.0), value, load(r, sides + lower + t * m + i) / two)
            store(z, t * s + n + i, value)
            for j in range(s):
                store(q, j, load(q, j) + load(N, (t * s + n + i) * s + j) * value)
        if t < T - 1:
            stage = F_at + t * n * s
            for i in range(n):  # the next state is F_u value + r_2 before anything else moves
                entry = load(r, sides + (t + 1) * n + i)
                for j in range(m):
                    entry += load(N, stage + i * s + n + j) * load(z, t * s + n + j)
                store(p, i, entry)
                store(z, sides + i, load(v, (t + 1) * n + i))
            times(kept, at + width, n, n, p, 0, z, sides)
            pulled(N, stage, n, s, z, sides, q, 0)
        for i in range(m):
            one, two = _coefficient(T, n, m, upper, 0, t * m + i, N), _coefficient(T, n, m, lower, 1, t * m + i, N)
            store(q, n + i, select((one == 0.0) & (two == 0.0), load(q, n + i), -load(z, t * s + n + i)))
        for i in range(m):
            entry = full(0.0)
            for j in range(m):
                entry -= load(kept, at + n * s + i * m + j) * load(q, n + j)
            store(k, t * m + i, entry)
        for i in range(n):
            store(v, t * n + i, load(q, i))
        pulled(kept, at + n * n, m, n, q, n, v, t * n)
    for i in range(n):
        store(z, i, load(r, sides + i))
    for t in range(T):
        for i in range(m):
            store(z, t * s + n + i, load(k, t * m + i))
        times(kept, t * width + n * n, m, n, z, t * s, z, t * s + n)
        for i in range(n):
            store(p, i, load(v, t * n + i))
        times(kept, t * width, n, n, z, t * s, p, 0)
        for i in range(n):
            store(z, sides + t * n + i, -load(p, i))
        if t < T - 1:
            for i in range(n):
                store(z, (t + 1) * s + i, load(r, sides + (t + 1) * n + i))
            times(N, F_at + t * n * s, n, s, z, t * s, z, (t + 1) * s)
    # The multipliers of bounds: of held ones what the gradient leaves, of others -r_2.
    for t in range(T):
        for i in range(m):
            store(q, i, load(r, t * s + n + i))
            for j in range(s):
                store(q, i, load(q, i) - load(N, (t * s + n + i) * s + j) * load(z, t * s + j))
            if t < T - 1:
                for j in range(n):
                    store(q, i, load(q, i) + load(N, F_at + (t * n + j) * s + n + i) * load(z, sides + (t + 1) * n + j))
            one, two = _coefficient(T, n, m, upper, 0, t * m + i, N), _coefficient(T, n, m, lower, 1, t * m + i, N)
            if upper >= 0:
                row = sides + upper + t * m + i
                store(z, row, select(one == 0.0, -load(r, row), load(q, i) / one))
            if lower >= 0:
                row = sides + lower + t * m + i
                store(z, row, select(two == 0.0, -load(r, row), select(one == 0.0, load(q, i) / two, 0.0)))


@inner
def _residual(
    T: Compiled, n: Compiled, m: Compiled, upper: Compiled, lower: Compiled, N: Compiled, z: Compiled, r: Compiled, out: Compiled
) -> None:
    """out = r - K z."""
    s = n + m
    sides, F_at = T * s, T * s * s
    diagonal = F_at + (T - 1) * n * s + 2 * T * m
    for i in range(len(r)):
        store(out, i, -load(r, i))
    for t in range(T):
        times(N, t * s * s, s, s, z, t * s, out, t * s)
        for i in range(n):
            store(out, t * s + i, load(out, t * s + i) + load(z, sides + t * n + i))
            store(out, sides + t * n + i, load(out, sides + t * n + i) + load(z, t * s + i))
        for i in range(m):
            at = t * m + i
            for side in range(2):
                row = upper if side == 0 else lower
                if row >= 0:
                    a, here = _coefficient(T, n, m, row, side, at, N), sides + row + at
                    store(out, t * s + n + i, load(out, t * s + n + i) + a * load(z, here))
                    store(out, here, load(out, here) + a * load(z, t * s + n + i) + load(N, diagonal + row + at) * load(z, here))
    for i in range(len(r)):
        store(out, i, -load(out, i))
    for t in range(T - 1):
        times(N, F_at + t * n * s, n, s, z, t * s, out, sides + (t + 1) * n)
        pulled(N, F_at + t * n * s, n, s, z, sides + (t + 1) * n, out, t * s)
