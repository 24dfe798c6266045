"""One Newton step on the optimality conditions of a staged problem with bounds on controls, LANES rows at a time.

With H the Hessian of the Lagrangian and controls whose bound has y - s > 0 held there, the step d from tau and the new multipliers solve

    H_t d_t + F_t'lambda_{t+1} - [lambda_t; 0] = -slope_t,   x_0 = x0,   x_{t+1} - F_t d_t = f_t,   d_u = bound - u where held.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.held import factorize, passes
from cvxlayers.kernels.lanes import Compiled, compiled, full, larger, load, part, select, store
from cvxlayers.kernels.rows import blocks_of, gather, pieces, scatter
from cvxlayers.kernels.threads import run


class Step(NamedTuple):
    """tau (T, B, s), y and s (B, rows of A) after the step, and where the Hessian is positive definite on what is free (B,)."""

    tau: np.ndarray
    y: np.ndarray
    s: np.ndarray
    convex: np.ndarray


def newton(
    H: np.ndarray, F: np.ndarray, slope: np.ndarray, f: np.ndarray, tau: np.ndarray, x0: np.ndarray, upper: np.ndarray | None,
    lower: np.ndarray | None, v: np.ndarray, jobs: int = 0,
) -> Step:  # fmt: skip
    """H (T, B, s, s), F (T-1, B, n, s), slope and tau (T, B, s), f (T-1, B, n), x0 (B, n), bounds (T, B, m), v = y - s (B, rows of A)."""
    (T, B, s), n, rows = tau.shape, x0.shape[1], v.shape[1]
    m, first_upper = s - n, T * n if upper is not None else -1
    first_lower = -1 if lower is None else T * n + (T * m if upper is not None else 0)
    nothing = np.zeros((T, 0, m))
    found, y, slack, told = np.empty_like(tau), np.empty_like(v), np.empty_like(v), np.empty((B, 1))
    numbers = T * s * s + (T - 1) * n * s + 2 * T * m + rows
    sizes = (numbers, *[T * s + rows] * 2, rows, rows, T * (n * n + m * n + m * m), s * s, s, n * s, m * m, m * s, n, T * m, T * n, s, m, 1)
    arrays = (H.reshape(T, B, s * s), F.reshape(T - 1, B, n * s), slope, f, tau, x0)
    arrays += (nothing if upper is None else upper, nothing if lower is None else lower, v)

    def task(first: int, last: int) -> None:
        memory = pieces(*sizes)
        _blocks(first, last, n, m, first_upper, first_lower, arrays, memory, found, y, slack, told)

    run(task, blocks_of(B), jobs, work=blocks_of(B) * T * 2 * s**3)
    return Step(found, y, slack, told[:, 0] == 1)


@compiled
def _blocks(
    first: Compiled, last: Compiled, n: Compiled, m: Compiled, upper: Compiled, lower: Compiled, arrays: Compiled, memory: Compiled,
    found: Compiled, y: Compiled, slack: Compiled, told: Compiled,
) -> None:  # fmt: skip
    H, F, slope, f, tau, x0, high, low, dual = arrays
    N, right, z, v, w, kept, Q, q, product, factor, solved, p, k, costate, stage, bound, report = memory
    T, s = len(tau), n + m
    sides, F_at = T * s, T * s * s
    bounds = F_at + (T - 1) * n * s
    diagonal = bounds + 2 * T * m
    for block in range(first, last):
        gather(dual, block, v)
        for i in range(T * m):
            for side in range(2):
                row = upper if side == 0 else lower
                here = load(v, row + i) > 0.0 if row >= 0 else full(0.0) > 0.0
                store(N, bounds + side * T * m + i, select(here, 1.0 - 2.0 * side, 0.0))
                if row >= 0:
                    store(N, diagonal + row + i, select(here, 0.0, -1.0))
        gather(x0, block, p)
        for t in range(T):
            gather(H[t], block, part(N, t * s * s, (t + 1) * s * s))
            gather(tau[t], block, stage)
            gather(slope[t], block, q)
            for i in range(s):
                store(right, t * s + i, -load(q, i))
            for i in range(n):  # p is x0 here, f later
                store(right, sides + t * n + i, load(p, i) - load(stage, i))
            for side in range(2):
                row = upper if side == 0 else lower
                if row >= 0:
                    gather(high[t] if side == 0 else low[t], block, bound)
                    for i in range(m):
                        gap = (1.0 - 2.0 * side) * (load(bound, i) - load(stage, n + i))
                        active = load(v, row + t * m + i) > 0.0
                        store(right, sides + row + t * m + i, select(active, gap, 0.0))
            if t < T - 1:
                gather(F[t], block, part(N, F_at + t * n * s, F_at + (t + 1) * n * s))
                gather(f[t], block, p)
        good = factorize(T, n, m, upper, lower, N, kept, Q, product, factor, solved)
        passes(T, n, m, upper, lower, N, kept, right, q, p, k, costate, z)
        for i in range(T * n):
            store(w, i, 0.0)
            store(v, i, load(z, sides + i))
        for t in range(T):
            gather(tau[t], block, stage)
            for i in range(s):
                store(stage, i, load(stage, i) + load(z, t * s + i))
            scatter(stage, block, found[t])
            for side in range(2):
                row = upper if side == 0 else lower
                if row >= 0:
                    gather(high[t] if side == 0 else low[t], block, bound)
                    for i in range(m):
                        here = row + t * m + i
                        gap = (1.0 - 2.0 * side) * (load(bound, i) - load(stage, n + i))
                        value = select(load(v, here) > 0.0, load(z, sides + here), -gap)
                        store(v, here, larger(value, full(0.0)))
                        store(w, here, larger(-value, full(0.0)))
        scatter(v, block, y)
        scatter(w, block, slack)
        store(report, 0, good)
        scatter(report, block, told)
