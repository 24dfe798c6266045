"""Riccati recursions and the linear passes that use them, LANES problems at a time.

Stage matrices C (T, s, s) and F (T-1, n, s) with s = n + m, states first. `factor` makes, from the last stage to the first, of V = V_{t+1}

    Q = (C + C')/2 + F'VF,    W = Q_uu^-1,    K = -W Q_ux,    V_t = Q_xx + Q_xu K

and keeps V_t, K_t, W_t, row by row one after the other, n^2 + mn + m^2 numbers. `solve` uses them for

    min sum_t 1/2 tau'C tau - b_t'tau,   x_0 = -shift_0,   x_{t+1} = F_t tau_t - shift_{t+1}

and its multipliers. Arrays have the axes (stage, row, ...); an axis of stages or rows has size one for what they all share. A lane whose
Q_uu is not positive definite goes on with zeros, and its row is told.
"""

from __future__ import annotations

import numpy as np

from cvxlayers.kernels.lanes import LANES, Compiled, compiled, full, lane, load, store
from cvxlayers.kernels.rows import blocks_of, gather, pieces, scatter
from cvxlayers.kernels.stages import congruence, pulled, reduce, times
from cvxlayers.kernels.threads import run


def factor(C: np.ndarray, F: np.ndarray, stages: int, jobs: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """C (T or 1, B or 1, s, s), F (T-1 or 1, B or 1, n, s) -> factors (T, B or 1, n^2 + mn + m^2) and convex (B or 1,)."""
    n, s = F.shape[2:]
    m, rows = s - n, max(C.shape[1], F.shape[1])
    C, F = np.ascontiguousarray(C.reshape(*C.shape[:2], -1)), np.ascontiguousarray(F.reshape(*F.shape[:2], -1))
    factors, convex = np.empty((stages, rows, n * n + m * n + m * m), dtype=C.dtype), np.empty(rows, dtype=np.bool_)

    def task(first: int, last: int) -> None:
        memory = pieces(s * s, n * s, n * s, factors.shape[2], m * m, m * s)
        _factor_blocks(first, last, n, m, C, F, *memory, factors, convex)

    run(task, blocks_of(rows), jobs, work=blocks_of(rows) * stages * 2 * s**3)
    return factors, convex


@compiled
def _factor_blocks(
    first: Compiled, last: Compiled, n: Compiled, m: Compiled, C: Compiled, F: Compiled, Q: Compiled, f: Compiled, product: Compiled,
    kept: Compiled, lower: Compiled, right: Compiled, factors: Compiled, convex: Compiled,
) -> None:  # fmt: skip
    s, stages = n + m, len(factors)
    for block in range(first, last):
        good = full(1.0)
        for t in range(stages - 1, -1, -1):
            gather(C[min(t, len(C) - 1)], block, Q)
            for i in range(s):
                for j in range(i, s):
                    store(Q, i * s + j, 0.5 * (load(Q, i * s + j) + load(Q, j * s + i)))
            if t < stages - 1:
                gather(F[min(t, len(F) - 1)], block, f)
                congruence(n, s, kept, 0, f, 0, product, Q)
            good = reduce(n, m, Q, lower, right, kept, 0, good)
            scatter(kept, block, factors[t])
        for j in range(min(LANES, len(convex) - LANES * block)):
            convex[LANES * block + j] = lane(good, j) == 1.0


def solve(F: np.ndarray, factors: np.ndarray, b: np.ndarray, shift: np.ndarray, jobs: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """F as for `factor`, factors from it, b (T, B, s), shift (T, B, n) -> tau (T, B, s), lambda (T, B, n)."""
    n, s = F.shape[2:]
    F = np.ascontiguousarray(F.reshape(*F.shape[:2], -1))
    tau, multipliers = np.empty_like(b, order="C"), np.empty_like(shift, order="C")

    def task(first: int, last: int) -> None:
        memory = pieces(n * s, factors.shape[2], n, s, len(b) * (s - n), len(b) * n, n, n, s)
        _solve_blocks(first, last, n, s - n, F, factors, np.ascontiguousarray(b), np.ascontiguousarray(shift), *memory, tau, multipliers)

    run(task, blocks_of(b.shape[1]), jobs, work=blocks_of(b.shape[1]) * len(b) * 8 * s * s)
    return tau, multipliers


@compiled
def _solve_blocks(
    first: Compiled, last: Compiled, n: Compiled, m: Compiled, F: Compiled, factors: Compiled, b: Compiled, shift: Compiled, f: Compiled,
    kept: Compiled, x: Compiled, q: Compiled, k: Compiled, v: Compiled, move: Compiled, p: Compiled, both: Compiled, tau: Compiled,
    multipliers: Compiled,
) -> None:  # fmt: skip
    s, stages = n + m, len(b)
    for block in range(first, last):
        for t in range(stages - 1, -1, -1):
            gather(b[t], block, q)
            for i in range(s):
                store(q, i, -load(q, i))
            if t < stages - 1:  # kept still holds the factors of stage t + 1
                gather(F[min(t, len(F) - 1)], block, f)
                gather(shift[t + 1], block, move)
                for i in range(n):
                    store(p, i, load(v, (t + 1) * n + i))
                    store(move, i, -load(move, i))
                times(kept, 0, n, n, move, 0, p, 0)
                pulled(f, 0, n, s, p, 0, q, 0)
            gather(factors[t], block, kept)
            for i in range(m):
                entry = full(0.0)
                for j in range(m):
                    entry -= load(kept, n * s + i * m + j) * load(q, n + j)
                store(k, t * m + i, entry)
            for i in range(n):
                store(v, t * n + i, load(q, i))
            pulled(kept, n * n, m, n, q, n, v, t * n)
        gather(shift[0], block, x)
        for i in range(n):
            store(both, i, -load(x, i))
        for t in range(stages):
            gather(factors[t], block, kept)
            for i in range(m):
                store(both, n + i, load(k, t * m + i))
            times(kept, n * n, m, n, both, 0, both, n)
            for i in range(n):
                store(x, i, load(v, t * n + i))
            times(kept, 0, n, n, both, 0, x, 0)
            scatter(both, block, tau[t])
            scatter(x, block, multipliers[t])
            if t < stages - 1:
                gather(F[min(t, len(F) - 1)], block, f)
                gather(shift[t + 1], block, move)
                for i in range(n):
                    store(x, i, -load(move, i))
                times(f, 0, n, s, both, 0, x, 0)
                for i in range(n):
                    store(both, i, load(x, i))
