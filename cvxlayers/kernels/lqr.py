"""Linear-quadratic problems with everything different from row to row: solved, and pulled back, LANES at a time in two passes each.

    minimize sum_t 1/2 tau_t'C_t tau_t + c_t'tau_t   subject to  x_0 given,  x_{t+1} = F_t tau_t + f_t,   tau = [x; u]

`solve` keeps V_t, K_t, W_t (see `kernels.riccati`), tau_t and the costate lambda_t of every stage, in lanes. With g the cotangent of tau,
d and e the solution and the costates of the problem with c = -g, x0 = 0, f = 0, and with the cotangent r of the cost, `pull` makes

    h = r tau - d,   C: a tau' + tau a', a = r tau / 4 - d / 2,   c: h,   F_t: lambda_{t+1} h_t' - e_{t+1} tau_t',   [x0; f]: r lambda - e

Arrays have the axes (stage, row, ...). A row whose reduced Hessian is not positive definite is NaN, and its cotangents are zero.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import Compiled, aligned, compiled, full, inner, load, part, select, store
from cvxlayers.kernels.rows import blocks_of, gather, pieces, scatter
from cvxlayers.kernels.stages import congruence, pulled, reduce, times
from cvxlayers.kernels.threads import run


class Solved(NamedTuple):
    """x (T, B, n), u (T, B, m), cost (B,); where there is a minimum (B,), and what else `pull` needs, in lanes."""

    x: np.ndarray
    u: np.ndarray
    cost: np.ndarray
    convex: np.ndarray
    kept: np.ndarray


def solve(C: np.ndarray, c: np.ndarray, F: np.ndarray, f: np.ndarray, x0: np.ndarray, jobs: int = 0) -> Solved:
    """C (T, B, s, s), c (T, B, s), F (T-1, B, n, s), f (T-1, B, n), x0 (B, n), T at least 2."""
    stages, rows, n, s = C.shape[0], C.shape[1], F.shape[-2], F.shape[-1]
    m, kind = s - n, C.dtype
    C, c, F, f, x0 = _flat(C), np.ascontiguousarray(c), _flat(F), np.ascontiguousarray(f), np.ascontiguousarray(x0)
    x, u, told = np.empty((stages, rows, n), kind), np.empty((stages, rows, m), kind), np.empty((rows, 2), kind)
    kept = _spare(blocks_of(rows) * stages * (n * n + m * n + m * m + s + n))

    def task(first: int, last: int) -> None:
        memory = pieces(s * s, s, (stages - 1) * n * s, n, n * s, m * m, m * s, n, 2)
        _solve_blocks(first, last, n, m, C, c, F, f, x0, memory, kept, x, u, told)

    run(task, blocks_of(rows), jobs, work=blocks_of(rows) * stages * 2 * s**3)
    convex = told[:, 1] == 1
    if not convex.all():
        x[:, ~convex], u[:, ~convex], told[~convex, 0] = np.nan, np.nan, np.nan
    return Solved(x, u, told[:, 0], convex, kept)


def pull(
    F: np.ndarray, convex: np.ndarray, kept: np.ndarray, given: Sequence[np.ndarray], needed: Sequence[bool], jobs: int = 0
) -> tuple[np.ndarray | None, ...]:
    """Cotangents ``given`` of x, u, cost -> those of C, c, F, f, x0; of C and F None where not ``needed``."""
    x, u = (np.ascontiguousarray(g) for g in given[:2])
    (stages, rows, n), m, kind = x.shape, u.shape[-1], x.dtype
    s = n + m
    told = np.stack([given[2], np.where(convex, 1.0, 0.0)], axis=-1).astype(kind)
    C = np.empty((stages if needed[0] else 0, rows, s * s), kind)
    F_bar = np.empty((stages - 1 if needed[2] else 0, rows, n * s), kind)
    c, f, x0 = np.empty((stages, rows, s), kind), np.empty((stages - 1, rows, n), kind), np.empty((1, rows, n), kind)
    F = _flat(F)

    def task(first: int, last: int) -> None:
        memory = pieces((stages - 1) * n * s, s, s, s, s, stages * n, stages * m, n, n, s * s, 2)
        _pull_blocks(first, last, n, m, F, kept, memory, x, u, told, C, c, F_bar, f, x0)

    run(task, blocks_of(rows), jobs, work=blocks_of(rows) * stages * 8 * s * s)
    return (
        C.reshape(stages, rows, s, s) if needed[0] else None,
        c,
        F_bar.reshape(stages - 1, rows, n, s) if needed[2] else None,
        f,
        x0[0],
    )


def _flat(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).reshape(*a.shape[:2], -1)


def _spare(entries: int) -> np.ndarray:
    """As `aligned`, of memory that an array from here has left behind, where there is some: new pages cost more than filling them."""
    try:
        whole = _left.pop()
    except IndexError:
        whole = aligned(entries)
    if not entries <= len(whole) <= 4 * entries:
        whole = aligned(entries)
    found = whole[:entries]
    weakref.finalize(found, _leave, whole).atexit = False
    return found


_left: list[np.ndarray] = []


def _leave(whole: np.ndarray) -> None:
    _left[:] = [whole]


@compiled
def _solve_blocks(
    first: Compiled, last: Compiled, n: Compiled, m: Compiled, C: Compiled, c: Compiled, F: Compiled, f: Compiled, x0: Compiled,
    memory: Compiled, kept: Compiled, x: Compiled, u: Compiled, told: Compiled,
) -> None:  # fmt: skip
    Q, q, M, move, product, lower, right, p, report = memory
    s, stages = n + m, len(C)
    K, tau = n * n, n * s + m * m  # in what is kept of a stage
    width = tau + s + n
    for block in range(first, last):
        good = full(1.0)
        for t in range(stages - 1, -1, -1):
            at = (block * stages + t) * width
            gather(C[t], block, Q)
            gather(c[t], block, q)
            for i in range(s):
                for j in range(i, s):
                    store(Q, i * s + j, 0.5 * (load(Q, i * s + j) + load(Q, j * s + i)))
            if t < stages - 1:
                gather(F[t], block, part(M, t * n * s, (t + 1) * n * s))
                gather(f[t], block, move)
                congruence(n, s, kept, at + width, M, t * n * s, product, Q)
                for i in range(n):
                    store(p, i, load(kept, at + width + tau + s + i))
                times(kept, at + width, n, n, move, 0, p, 0)
                pulled(M, t * n * s, n, s, p, 0, q, 0)
            good = reduce(n, m, Q, lower, right, kept, at, good)
            _affine(n, m, q, kept, at, kept, at + tau + s, kept, at + tau + n)
        gather(x0, block, p)
        cost = full(0.0)
        for t in range(stages):
            at = (block * stages + t) * width
            for i in range(n):
                store(kept, at + tau + i, select(good == 1.0, load(p, i), 0.0))
            times(kept, at + K, m, n, kept, at + tau, kept, at + tau + n)
            times(kept, at, n, n, kept, at + tau, kept, at + tau + s)
            gather(c[t], block, q)
            for i in range(s):
                cost += load(q, i) * load(kept, at + tau + i)
            for i in range(n):  # by the optimality conditions sum tau'C tau is what remains of it; p is x0 here, f later
                cost += load(p if t == 0 else move, i) * load(kept, at + tau + s + i)
            scatter(part(kept, at + tau, at + tau + n), block, x[t])
            scatter(part(kept, at + tau + n, at + tau + s), block, u[t])
            if t < stages - 1:
                gather(f[t], block, move)
                for i in range(n):
                    store(p, i, load(move, i))
                times(M, t * n * s, n, s, kept, at + tau, p, 0)
        store(report, 0, 0.5 * cost)
        store(report, 1, good)
        scatter(report, block, told)


@inner
def _affine(
    n: Compiled, m: Compiled, q: Compiled, kept: Compiled, at: Compiled, v: Compiled, v_at: Compiled, k: Compiled, k_at: Compiled
) -> None:
    """k = -W q_u and v = q_x + K'q_u."""
    for i in range(m):
        entry = full(0.0)
        for j in range(m):
            entry -= load(kept, at + n * (n + m) + i * m + j) * load(q, n + j)
        store(k, k_at + i, entry)
    for i in range(n):
        store(v, v_at + i, load(q, i))
    pulled(kept, at + n * n, m, n, q, n, v, v_at)


@compiled
def _pull_blocks(
    first: Compiled, last: Compiled, n: Compiled, m: Compiled, F: Compiled, kept: Compiled, memory: Compiled, x: Compiled, u: Compiled,
    told: Compiled, C_bar: Compiled, c_bar: Compiled, F_bar: Compiled, f_bar: Compiled, x0_bar: Compiled,
) -> None:  # fmt: skip
    M, q, both, h, a, v, k, e, p, outer, report = memory
    s, stages = n + m, len(x)
    K, tau = n * n, n * s + m * m
    width = tau + s + n
    for block in range(first, last):
        gather(told, block, report)
        good, r = load(report, 1) == 1.0, load(report, 0)
        r = select(good, r, 0.0)
        for t in range(stages - 1, -1, -1):
            at = (block * stages + t) * width
            gather(x[t], block, both)
            gather(u[t], block, part(both, n, s))
            for i in range(s):
                store(q, i, select(good, -load(both, i), 0.0))
            if t < stages - 1:
                gather(F[t], block, part(M, t * n * s, (t + 1) * n * s))
                pulled(M, t * n * s, n, s, v, (t + 1) * n, q, 0)
            _affine(n, m, q, kept, at, v, t * n, k, t * m)
        for i in range(n):
            store(both, i, 0.0)
        for t in range(stages):
            at = (block * stages + t) * width
            for i in range(m):
                store(both, n + i, load(k, t * m + i))
            times(kept, at + K, m, n, both, 0, both, n)
            for i in range(n):
                store(e, i, load(v, t * n + i))
            times(kept, at, n, n, both, 0, e, 0)
            if t > 0 and len(F_bar) > 0:
                for i in range(n):
                    costate, move = load(kept, at + tau + s + i), load(e, i)
                    for j in range(s):
                        store(outer, i * s + j, costate * load(h, j) - move * load(kept, at - width + tau + j))
                scatter(outer, block, F_bar[t - 1])
            for i in range(s):
                value, move = load(kept, at + tau + i), load(both, i)
                store(h, i, r * value - move)
                store(a, i, 0.25 * r * value - 0.5 * move)
            if len(C_bar) > 0:
                for i in range(s):
                    one, two = load(a, i), load(kept, at + tau + i)
                    for j in range(s):
                        store(outer, i * s + j, one * load(kept, at + tau + j) + two * load(a, j))
                scatter(outer, block, C_bar[t])
            scatter(h, block, c_bar[t])
            for i in range(n):
                store(p, i, r * load(kept, at + tau + s + i) - load(e, i))
            scatter(p, block, f_bar[t - 1] if t > 0 else x0_bar[0])
            if t < stages - 1:
                for i in range(n):
                    store(p, i, 0.0)
                times(M, t * n * s, n, s, both, 0, p, 0)
                for i in range(n):
                    store(both, i, load(p, i))
