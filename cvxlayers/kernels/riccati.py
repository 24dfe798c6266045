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

from cvxlayers.kernels.lanes import LANES, Compiled, aligned, compiled, full, inner, lane, load, select, store
from cvxlayers.kernels.rows import blocks_of, gather, scatter
from cvxlayers.kernels.threads import run

SINGULAR = 16 * float(np.finfo(float).eps)
"""A pivot below this share of its diagonal entry is not positive."""


def factor(C: np.ndarray, F: np.ndarray, stages: int, jobs: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """C (T or 1, B or 1, s, s), F (T-1 or 1, B or 1, n, s) -> factors (T, B or 1, n^2 + mn + m^2) and convex (B or 1,)."""
    n, s = F.shape[2:]
    m, rows = s - n, max(C.shape[1], F.shape[1])
    C, F = np.ascontiguousarray(C.reshape(*C.shape[:2], -1)), np.ascontiguousarray(F.reshape(*F.shape[:2], -1))
    factors, convex = np.empty((stages, rows, n * n + m * n + m * m), dtype=C.dtype), np.empty(rows, dtype=np.bool_)

    def task(first: int, last: int) -> None:
        memory = [aligned(size) for size in (s * s, n * s, n * s, factors.shape[2], m * m, m * s)]
        _factor_blocks(first, last, n, m, C, F, *memory, factors, convex)

    run(task, blocks_of(rows), jobs)
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
                    entry = 0.5 * (load(Q, i * s + j) + load(Q, j * s + i))
                    store(Q, i * s + j, entry)
                    store(Q, j * s + i, entry)
            if t < stages - 1:
                gather(F[min(t, len(F) - 1)], block, f)
                for i in range(n):
                    for j in range(s):
                        entry = load(kept, i * n) * load(f, j)
                        for k in range(1, n):
                            entry += load(kept, i * n + k) * load(f, k * s + j)
                        store(product, i * s + j, entry)
                for i in range(s):
                    for j in range(i, s):
                        entry = load(Q, i * s + j)
                        for k in range(n):
                            entry += load(f, k * s + i) * load(product, k * s + j)
                        store(Q, i * s + j, entry)
                        store(Q, j * s + i, entry)
            good = _eliminate(n, m, Q, lower, right, good)
            for i in range(m):
                for j in range(n):
                    store(kept, n * n + i * n + j, -load(right, i * s + j))
                for j in range(m):
                    store(kept, n * s + i * m + j, load(right, i * s + n + j))
            for i in range(n):
                for j in range(i, n):
                    entry = load(Q, i * s + j)
                    for k in range(m):
                        entry += load(Q, i * s + n + k) * load(kept, n * n + k * n + j)
                    store(kept, i * n + j, entry)
                    store(kept, j * n + i, entry)
            for i in range(factors.shape[2]):  # a lane that has failed stays finite
                store(kept, i, select(good == 1.0, load(kept, i), 0.0))
            scatter(kept, block, factors[t])
        for j in range(min(LANES, len(convex) - LANES * block)):
            convex[LANES * block + j] = lane(good, j) == 1.0


@inner
def _eliminate(n: Compiled, m: Compiled, Q: Compiled, lower: Compiled, right: Compiled, good: Compiled) -> Compiled:
    """right = Q_uu^-1 [Q_ux, I] by LDL' = Q_uu; zero in the lanes of ``good`` where a pivot is not positive."""
    s = n + m
    for j in range(m):
        scale = abs(load(Q, (n + j) * s + n + j))
        for i in range(j, m):
            entry = load(Q, (n + i) * s + n + j)
            for k in range(j):
                entry -= load(lower, i * m + k) * load(lower, j * m + k) * load(lower, k * m + k)
            if i == j:
                positive = entry > SINGULAR * scale
                good = select(positive, good, 0.0)
                entry = select(positive, entry, 1.0)
            else:
                entry = entry / load(lower, j * m + j)
            store(lower, i * m + j, entry)
    for j in range(s):
        for i in range(m):
            entry = load(Q, (n + i) * s + j)
            if j >= n:
                entry = full(1.0) if i == j - n else full(0.0)
            for k in range(i):
                entry -= load(lower, i * m + k) * load(right, k * s + j)
            store(right, i * s + j, entry)
        for i in range(m - 1, -1, -1):
            entry = load(right, i * s + j) / load(lower, i * m + i)
            for k in range(i + 1, m):
                entry -= load(lower, k * m + i) * load(right, k * s + j)
            store(right, i * s + j, entry)
    return good


def solve(F: np.ndarray, factors: np.ndarray, b: np.ndarray, shift: np.ndarray, jobs: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """F as for `factor`, factors from it, b (T, B, s), shift (T, B, n) -> tau (T, B, s), lambda (T, B, n)."""
    n, s = F.shape[2:]
    F = np.ascontiguousarray(F.reshape(*F.shape[:2], -1))
    tau, multipliers = np.empty_like(b, order="C"), np.empty_like(shift, order="C")

    def task(first: int, last: int) -> None:
        memory = [aligned(size) for size in (n * s, factors.shape[2], n, s, len(b) * (s - n), len(b) * n, n, n, s)]
        _solve_blocks(first, last, n, s - n, F, factors, np.ascontiguousarray(b), np.ascontiguousarray(shift), *memory, tau, multipliers)

    run(task, blocks_of(b.shape[1]), jobs)
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
            if t < stages - 1:  # kept still holds the factors of stage t + 1
                gather(F[min(t, len(F) - 1)], block, f)
                gather(shift[t + 1], block, move)
                for i in range(n):
                    entry = load(v, (t + 1) * n + i)
                    for j in range(n):
                        entry -= load(kept, i * n + j) * load(move, j)
                    store(p, i, entry)
            for i in range(s):
                entry = -load(q, i)
                if t < stages - 1:
                    for j in range(n):
                        entry += load(f, j * s + i) * load(p, j)
                store(q, i, entry)
            gather(factors[t], block, kept)
            for i in range(m):
                entry = full(0.0)
                for j in range(m):
                    entry -= load(kept, n * s + i * m + j) * load(q, n + j)
                store(k, t * m + i, entry)
            for i in range(n):
                entry = load(q, i)
                for j in range(m):
                    entry += load(kept, n * n + j * n + i) * load(q, n + j)
                store(v, t * n + i, entry)
        gather(shift[0], block, x)
        for i in range(n):
            store(both, i, -load(x, i))
        for t in range(stages):
            gather(factors[t], block, kept)
            for i in range(m):
                entry = load(k, t * m + i)
                for j in range(n):
                    entry += load(kept, n * n + i * n + j) * load(both, j)
                store(both, n + i, entry)
            for i in range(n):
                entry = load(v, t * n + i)
                for j in range(n):
                    entry += load(kept, i * n + j) * load(both, j)
                store(x, i, entry)
            scatter(both, block, tau[t])
            scatter(x, block, multipliers[t])
            if t < stages - 1:
                gather(F[min(t, len(F) - 1)], block, f)
                gather(shift[t + 1], block, move)
                for i in range(n):
                    entry = -load(move, i)
                    for j in range(s):
                        entry += load(f, i * s + j) * load(both, j)
                    store(x, i, entry)
                for i in range(n):
                    store(both, i, load(x, i))
