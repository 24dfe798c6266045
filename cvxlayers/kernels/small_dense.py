"""Small dense matrices in lanes: (order * order, LANES), row by row; what semidefinite cones need."""

from __future__ import annotations

from cvxlayers.kernels.lanes import Compiled, full, inner, load, select, some, sqrt, store

ROOT = 0.7071067811865476
SWEEPS = 30
ORTHOGONAL = 1e-15
"""Columns whose cosine is below this are left alone, so that a lane that has converged is not touched again."""


@inner
def unpack(v: Compiled, first: Compiled, order: Compiled, out: Compiled) -> None:
    """The symmetric matrix whose upper triangle lies in v from ``first`` on, by columns, off-diagonal entries times sqrt 2."""
    at = first
    for j in range(order):
        for i in range(j):
            entry = load(v, at) * ROOT
            store(out, i * order + j, entry)
            store(out, j * order + i, entry)
            at += 1
        store(out, j * order + j, load(v, at))
        at += 1


@inner
def multiply(a: Compiled, b: Compiled, order: Compiled, a_turned: Compiled, b_turned: Compiled, out: Compiled) -> None:
    """out = A B, with A or B transposed where asked; out is another matrix."""
    for i in range(order):
        for j in range(order):
            total = full(0.0)
            for k in range(order):
                left = load(a, k * order + i) if a_turned else load(a, i * order + k)
                total += left * (load(b, j * order + k) if b_turned else load(b, k * order + j))
            store(out, i * order + j, total)


@inner
def cholesky(a: Compiled, order: Compiled, out: Compiled) -> Compiled:
    """out = L, lower triangular with L L' = A; returns the smallest pivot (meaningless below zero)."""
    least = full(1e300)
    for j in range(order):
        for i in range(j):
            store(out, i * order + j, 0.0)
        pivot = load(a, j * order + j)
        for k in range(j):
            entry = load(out, j * order + k)
            pivot -= entry * entry
        least = select(pivot >= least, least, pivot)
        root = sqrt(pivot)
        store(out, j * order + j, root)
        inverse = 1.0 / root
        for i in range(j + 1, order):
            total = load(a, i * order + j)
            for k in range(j):
                total -= load(out, i * order + k) * load(out, j * order + k)
            store(out, i * order + j, total * inverse)
    return least


@inner
def orthogonalize(y: Compiled, x: Compiled, order: Compiled) -> None:
    """Rotate the columns of Y until they are orthogonal, those of X along with them: Y V and X V (one-sided Jacobi).

    Hestenes, "Inversion of matrices by biorthogonalization and related results", 1958.
    """
    for _ in range(SWEEPS):
        any_left = False
        for i in range(order - 1):
            for j in range(i + 1, order):
                one, two, both = full(0.0), full(0.0), full(0.0)
                for k in range(order):
                    p, q = load(y, k * order + i), load(y, k * order + j)
                    one, two, both = one + p * p, two + q * q, both + p * q
                turn = abs(both) > ORTHOGONAL * sqrt(one * two)
                if not some(turn):
                    continue
                any_left = True
                ratio = (two - one) / (2.0 * select(turn, both, 1.0))
                t = select(ratio >= 0.0, 1.0, full(-1.0)) / (abs(ratio) + sqrt(1.0 + ratio * ratio))
                c = 1.0 / sqrt(1.0 + t * t)
                c, s = select(turn, c, 1.0), select(turn, c * t, 0.0)
                for k in range(order):
                    p, q = load(y, k * order + i), load(y, k * order + j)
                    store(y, k * order + i, select(turn, c * p - s * q, p))
                    store(y, k * order + j, select(turn, s * p + c * q, q))
                    p, q = load(x, k * order + i), load(x, k * order + j)
                    store(x, k * order + i, select(turn, c * p - s * q, p))
                    store(x, k * order + j, select(turn, s * p + c * q, q))
        if not any_left:
            break
