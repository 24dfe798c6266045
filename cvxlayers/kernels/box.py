"""Linear-quadratic problems with bounds on the controls, LANES at a time: a primal-dual active-set method by Riccati recursion.

    minimize sum_t 1/2 tau'C_t tau + q_t'tau   subject to  x_0 given,  x_{t+1} = F_t tau_t + f_t,  lower <= u_t <= upper

Controls that are held at bounds are known, the others follow from one recursion; then those that left their bounds' inside are held, and
those whose multipliers have the wrong sign let go, until nothing changes (Hintermueller, Ito, Kunisch, "The primal-dual active set
strategy as a semismooth Newton method", 2002). What cycles goes on with the least index alone, which cannot (Murty, "Note on a Bard-type
scheme for solving the complementarity problem", 1974). Stages after the last change keep their recursion.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import Compiled, compiled, full, larger, load, select, some, store
from cvxlayers.kernels.rows import blocks_of, gather, gather_at, pieces, scatter
from cvxlayers.kernels.stages import SINGULAR, congruence, pulled, times
from cvxlayers.kernels.threads import run

BEYOND = 1e-13
"""How far outside of a bound, relative to 1 + |bound|, rounding may put a control."""
TOGETHER, LIMIT = 15, 60
"""Iterations that change all that is wrong; iterations at most."""
FREE, LOWER, UPPER = 0.0, -1.0, 1.0


class Places(NamedTuple):
    """Sizes, and where the stored numbers stand: of P in C (T, s, s), of A in -F (T-1, n, s), the bounds' coefficients and a last place.

    ``upper`` and ``lower`` are the first rows of those bounds, -1 where there are none.
    """

    stages: int
    n: int
    m: int
    P: np.ndarray
    A: np.ndarray
    upper: int
    lower: int


def solve(places: Places, P: np.ndarray, q: np.ndarray, A: np.ndarray, b: np.ndarray, jobs: int = 0) -> tuple[np.ndarray, ...]:
    """P (B or 1, nnz), q (B, T s), A (B or 1, nnz), b (B, rows of A) -> x, y, s of the cone program, and (solved, iterations) (B, 2)."""
    T, n, m = places[:3]
    width = n + m
    x, y, s, report = np.empty_like(q), np.empty_like(b), np.empty_like(b), np.empty((len(q), 2))
    sizes = (T * width * width, (T - 1) * n * width + 2 * T * m + 1, T * width, b.shape[1], T * n * n, T * n, T * m * n, T * m)
    sizes += (T * m * (width + 1), T * m, width * width, width, n * width, n, m * m, m * (n + 1), T * width, T * m, b.shape[1], n, 2)

    def task(first: int, last: int) -> None:
        memory = pieces(*sizes)
        _blocks(first, last, T, n, m, places.P, places.A, places.upper, places.lower, P, q, A, b, memory, x, y, s, report)

    run(task, blocks_of(len(q)), jobs, work=blocks_of(len(q)) * T * 4 * width**3)
    return x, y, s, report


@compiled
def _blocks(
    first: Compiled, last: Compiled, T: Compiled, n: Compiled, m: Compiled, P_at: Compiled, A_at: Compiled, upper: Compiled,
    lower: Compiled, P: Compiled, q: Compiled, A: Compiled, b: Compiled, memory: Compiled, x: Compiled, y: Compiled, s: Compiled,
    report: Compiled,
) -> None:  # fmt: skip
    C, F, linear, sides, V, v, K, k, G, held, Q, slope, product, shift, factor, right, tau, gradient, dual, state, told = memory
    width = n + m
    bounds = (T - 1) * n * width  # in F: the coefficients of the upper ones, of the lower ones
    for block in range(first, last):
        gather_at(P, block, P_at, C)
        gather_at(A, block, A_at, F)
        gather(q, block, linear)
        gather(b, block, sides)
        for i in range(T * m):
            store(held, i, FREE)
        good, done, count, begin = full(1.0), full(0.0), full(0.0), T - 1
        for iteration in range(LIMIT):
            for t in range(begin, -1, -1):
                good = _stage(
                    t, T, n, m, C, F, linear, sides, upper, lower, V, v, K, k, G, held, Q, slope, product, shift, factor, right, good
                )
            changed, begin = full(0.0), -1
            for i in range(n):
                store(state, i, load(sides, i))
            for t in range(T):
                for i in range(n):
                    store(tau, t * width + i, load(state, i))
                for i in range(m):
                    at = t * m + i
                    u = load(k, at)
                    for j in range(n):
                        u += load(K, at * n + j) * load(state, j)
                    store(tau, t * width + n + i, u)
                for i in range(m):
                    at = t * m + i
                    g = load(G, at * (width + 1) + width)
                    for j in range(width):
                        g += load(G, at * (width + 1) + j) * load(tau, t * width + j)
                    now, u = load(held, at), load(tau, t * width + n + i)
                    new = now
                    if upper >= 0:
                        bound = _bound(sides, F, upper + at, bounds + at, 1.0)
                        new = select((now == FREE) & (u > bound + BEYOND * (1 + abs(bound))), UPPER, new)
                        new = select((now == UPPER) & (g > 0.0), FREE, new)
                    if lower >= 0:
                        bound = _bound(sides, F, lower + at, bounds + T * m + at, -1.0)
                        new = select((now == FREE) & (u < bound - BEYOND * (1 + abs(bound))), LOWER, new)
                        new = select((now == LOWER) & (g < 0.0), FREE, new)
                    wrong = ~(new == now)
                    if iteration >= TOGETHER:
                        wrong = wrong & (changed == 0.0)
                        new = select(wrong, new, now)
                    store(held, at, new)
                    store(gradient, at, g)
                    changed = select(wrong, 1.0, changed)
                    if some(wrong):
                        begin = t
                if t < T - 1:
                    for i in range(n):
                        store(state, i, -load(sides, (t + 1) * n + i))
                    times(F, t * n * width, n, width, tau, t * width, state, 0)
                    for i in range(n):
                        store(state, i, -load(state, i))
            count += select(done == 0.0, 1.0, 0.0)
            done = select(changed == 0.0, 1.0, 0.0)
            if begin < 0:
                break
        _multipliers(T, n, m, C, F, linear, upper, lower, held, tau, gradient, dual, state, slope)
        scatter(tau, block, x)
        store(told, 0, select((done == 1.0) & (good == 1.0), 1.0, 0.0))
        store(told, 1, count)
        scatter(told, block, report)
        scatter(dual, block, y)
        for i in range(T * n):
            store(sides, i, 0.0)
        for at in range(T * m):
            t, i = at // m, at % m
            u = load(tau, t * width + n + i)
            if upper >= 0:
                gap = load(sides, upper + at) - load(F, bounds + at) * u
                store(sides, upper + at, select(load(held, at) == UPPER, 0.0, larger(gap, full(0.0))))
            if lower >= 0:
                gap = load(sides, lower + at) - load(F, bounds + T * m + at) * u
                store(sides, lower + at, select(load(held, at) == LOWER, 0.0, larger(gap, full(0.0))))
        scatter(sides, block, s)


@compiled
def _bound(sides: Compiled, F: Compiled, row: Compiled, entry: Compiled, sign: Compiled) -> Compiled:
    """A bound, infinite where its row is empty."""
    return select(load(F, entry) == 0.0, sign * np.inf, sign * load(sides, row))


@compiled
def _stage(
    t: Compiled, T: Compiled, n: Compiled, m: Compiled, C: Compiled, F: Compiled, linear: Compiled, sides: Compiled, upper: Compiled,
    lower: Compiled, V: Compiled, v: Compiled, K: Compiled, k: Compiled, G: Compiled, held: Compiled, Q: Compiled, slope: Compiled,
    product: Compiled, shift: Compiled, factor: Compiled, right: Compiled, good: Compiled,
) -> Compiled:  # fmt: skip
    """One step of the recursion: V_t, v_t, the law u = K x + k, and G, the gradient in the controls as a function of tau."""
    width = n + m
    bounds = (T - 1) * n * width
    for i in range(width):
        for j in range(i, width):
            store(Q, i * width + j, load(C, (t * width + i) * width + j))
        store(slope, i, load(linear, t * width + i))
    if t < T - 1:
        stage, ahead = t * n * width, (t + 1) * n
        congruence(n, width, V, ahead * n, F, stage, product, Q)
        for i in range(n):
            store(shift, i, load(v, ahead + i))
        times(V, ahead * n, n, n, sides, ahead, shift, 0)
        for i in range(n):  # F holds -F_t
            store(shift, i, -load(shift, i))
        pulled(F, stage, n, width, shift, 0, slope, 0)
    for i in range(m):
        at = (t * m + i) * (width + 1)
        for j in range(width):
            low, high = min(j, n + i), max(j, n + i)
            store(G, at + j, load(Q, low * width + high))
        store(G, at + width, load(slope, n + i))
    # The free controls' equations; a held one is its bound.
    for i in range(m):
        mine = load(held, t * m + i)
        for j in range(n):
            store(right, i * (n + 1) + j, select(mine == FREE, load(Q, j * width + n + i), 0.0))
        entry, fixed = load(slope, n + i), full(0.0)
        for j in range(m):
            other = load(held, t * m + j)
            value = full(0.0)
            if upper >= 0:
                value = select(other == UPPER, _bound(sides, F, upper + t * m + j, bounds + t * m + j, 1.0), value)
            if lower >= 0:
                value = select(other == LOWER, _bound(sides, F, lower + t * m + j, bounds + (T + t) * m + j, -1.0), value)
            if j == i:
                fixed = value
            low, high = min(i, j), max(i, j)
            entry += select(other == FREE, 0.0, value * load(Q, (n + low) * width + n + high))
        store(right, i * (n + 1) + n, select(mine == FREE, entry, -fixed))
    for j in range(m):
        for i in range(j, m):
            both = (load(held, t * m + i) == FREE) & (load(held, t * m + j) == FREE)
            entry = select(both, load(Q, (n + j) * width + n + i), 1.0 if i == j else 0.0)
            scale = abs(entry)
            for r in range(j):
                entry -= load(factor, i * m + r) * load(factor, j * m + r) * load(factor, r * m + r)
            if i == j:
                positive = entry > SINGULAR * scale
                good, entry = select(positive, good, 0.0), select(positive, entry, 1.0)
            else:
                entry = entry / load(factor, j * m + j)
            store(factor, i * m + j, entry)
    for j in range(n + 1):
        for i in range(m):
            entry = load(right, i * (n + 1) + j)
            for r in range(i):
                entry -= load(factor, i * m + r) * load(right, r * (n + 1) + j)
            store(right, i * (n + 1) + j, entry)
        for i in range(m - 1, -1, -1):
            entry = load(right, i * (n + 1) + j) / load(factor, i * m + i)
            for r in range(i + 1, m):
                entry -= load(factor, r * m + i) * load(right, r * (n + 1) + j)
            store(right, i * (n + 1) + j, entry)
    for i in range(m):
        for j in range(n):
            store(K, (t * m + i) * n + j, -load(right, i * (n + 1) + j))
        store(k, t * m + i, -load(right, i * (n + 1) + n))
    for i in range(n):
        for j in range(i, n):
            entry = load(Q, i * width + j)
            for r in range(m):
                entry -= load(Q, i * width + n + r) * load(right, r * (n + 1) + j)
            entry = select(good == 1.0, entry, 0.0)
            store(V, t * n * n + i * n + j, entry)
            store(V, t * n * n + j * n + i, entry)
        entry = load(slope, i)
        for r in range(m):
            entry -= load(Q, i * width + n + r) * load(right, r * (n + 1) + n)
        store(v, t * n + i, select(good == 1.0, entry, 0.0))
    return good


@compiled
def _multipliers(
    T: Compiled, n: Compiled, m: Compiled, C: Compiled, F: Compiled, linear: Compiled, upper: Compiled, lower: Compiled, held: Compiled,
    tau: Compiled, gradient: Compiled, dual: Compiled, state: Compiled, slope: Compiled,
) -> None:  # fmt: skip
    """The multipliers of all rows: costates with the opposite sign, and gradients where a control is held."""
    width = n + m
    for t in range(T - 1, -1, -1):
        for i in range(n):
            entry = load(linear, t * width + i)
            for j in range(width):
                entry += load(C, (t * width + min(i, j)) * width + max(i, j)) * load(tau, t * width + j)
            if t < T - 1:
                for r in range(n):
                    entry -= load(F, (t * n + r) * width + i) * load(state, r)
            store(slope, i, entry)
        for i in range(n):
            store(state, i, load(slope, i))
            store(dual, t * n + i, -load(slope, i))
    for at in range(T * m):
        g = load(gradient, at)
        if upper >= 0:
            store(dual, upper + at, select(load(held, at) == UPPER, larger(-g, full(0.0)), 0.0))
        if lower >= 0:
            store(dual, lower + at, select(load(held, at) == LOWER, larger(g, full(0.0)), 0.0))
