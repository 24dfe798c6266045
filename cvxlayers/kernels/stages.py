"""What recursions over stages are made of: small dense matrices of LANES problems, row by row, parts of longer arrays.

A matrix M that begins at entry ``at`` has its entry (i, j) at ``at + i * columns + j``. Sums are kept in registers, several at once; where
sizes are no multiples, the last rows and columns are computed more than once.
"""

from __future__ import annotations

import numpy as np

from cvxlayers.kernels.lanes import Compiled, full, inner, load, select, store

SINGULAR = 16 * float(np.finfo(float).eps)
"""A pivot below this share of its diagonal entry is not positive."""


@inner
def congruence(n: Compiled, s: Compiled, V: Compiled, V_at: Compiled, F: Compiled, F_at: Compiled, product: Compiled, Q: Compiled) -> None:
    """product = V F and Q += F'V F in its upper triangle, for V (n, n) symmetric and F (n, s); Q (s, s) begins at 0."""
    for i in range(0, n, 2):
        one, two = i, min(i + 1, n - 1)
        for j in range(0, s, 4):
            c0, c1, c2, c3 = j, min(j + 1, s - 1), min(j + 2, s - 1), min(j + 3, s - 1)
            a0, a1, a2, a3 = full(0.0), full(0.0), full(0.0), full(0.0)
            b0, b1, b2, b3 = full(0.0), full(0.0), full(0.0), full(0.0)
            for k in range(n):
                a, b, row = load(V, V_at + k * n + one), load(V, V_at + k * n + two), F_at + k * s
                f0, f1, f2, f3 = load(F, row + c0), load(F, row + c1), load(F, row + c2), load(F, row + c3)
                a0, a1, a2, a3 = a0 + a * f0, a1 + a * f1, a2 + a * f2, a3 + a * f3
                b0, b1, b2, b3 = b0 + b * f0, b1 + b * f1, b2 + b * f2, b3 + b * f3
            store(product, one * s + c0, a0)
            store(product, one * s + c1, a1)
            store(product, one * s + c2, a2)
            store(product, one * s + c3, a3)
            store(product, two * s + c0, b0)
            store(product, two * s + c1, b1)
            store(product, two * s + c2, b2)
            store(product, two * s + c3, b3)
    for i in range(0, s, 2):
        one, two = i, min(i + 1, s - 1)
        for j in range(i - i % 4, s, 4):
            c0, c1, c2, c3 = j, min(j + 1, s - 1), min(j + 2, s - 1), min(j + 3, s - 1)
            p, q = one * s, two * s
            a0, a1, a2, a3 = load(Q, p + c0), load(Q, p + c1), load(Q, p + c2), load(Q, p + c3)
            b0, b1, b2, b3 = load(Q, q + c0), load(Q, q + c1), load(Q, q + c2), load(Q, q + c3)
            for k in range(n):
                a, b, row = load(F, F_at + k * s + one), load(F, F_at + k * s + two), k * s
                f0, f1, f2, f3 = load(product, row + c0), load(product, row + c1), load(product, row + c2), load(product, row + c3)
                a0, a1, a2, a3 = a0 + a * f0, a1 + a * f1, a2 + a * f2, a3 + a * f3
                b0, b1, b2, b3 = b0 + b * f0, b1 + b * f1, b2 + b * f2, b3 + b * f3
            store(Q, p + c0, a0)
            store(Q, p + c1, a1)
            store(Q, p + c2, a2)
            store(Q, p + c3, a3)
            store(Q, q + c0, b0)
            store(Q, q + c1, b1)
            store(Q, q + c2, b2)
            store(Q, q + c3, b3)


@inner
def times(
    M: Compiled, at: Compiled, rows: Compiled, columns: Compiled, v: Compiled, v_at: Compiled, out: Compiled, out_at: Compiled
) -> None:
    """out += M v."""
    for i in range(0, rows, 4):
        r0, r1, r2, r3 = i, min(i + 1, rows - 1), min(i + 2, rows - 1), min(i + 3, rows - 1)
        p0, p1, p2, p3 = at + r0 * columns, at + r1 * columns, at + r2 * columns, at + r3 * columns
        a0, a1, a2, a3 = load(out, out_at + r0), load(out, out_at + r1), load(out, out_at + r2), load(out, out_at + r3)
        for k in range(columns):
            b = load(v, v_at + k)
            a0, a1 = a0 + load(M, p0 + k) * b, a1 + load(M, p1 + k) * b
            a2, a3 = a2 + load(M, p2 + k) * b, a3 + load(M, p3 + k) * b
        store(out, out_at + r0, a0)
        store(out, out_at + r1, a1)
        store(out, out_at + r2, a2)
        store(out, out_at + r3, a3)


@inner
def pulled(
    M: Compiled, at: Compiled, rows: Compiled, columns: Compiled, v: Compiled, v_at: Compiled, out: Compiled, out_at: Compiled
) -> None:
    """out += M'v."""
    for j in range(0, columns, 4):
        c0, c1, c2, c3 = j, min(j + 1, columns - 1), min(j + 2, columns - 1), min(j + 3, columns - 1)
        a0, a1, a2, a3 = load(out, out_at + c0), load(out, out_at + c1), load(out, out_at + c2), load(out, out_at + c3)
        for k in range(rows):
            b, p = load(v, v_at + k), at + k * columns
            a0, a1 = a0 + load(M, p + c0) * b, a1 + load(M, p + c1) * b
            a2, a3 = a2 + load(M, p + c2) * b, a3 + load(M, p + c3) * b
        store(out, out_at + c0, a0)
        store(out, out_at + c1, a1)
        store(out, out_at + c2, a2)
        store(out, out_at + c3, a3)


@inner
def eliminate(n: Compiled, m: Compiled, Q: Compiled, lower: Compiled, right: Compiled, good: Compiled) -> Compiled:
    """right = Q_uu^-1 [Q_ux, I] by LDL' = Q_uu, from the upper triangle of Q; ``good`` becomes zero where a pivot is not positive.

    The diagonal of ``lower`` holds 1 / D.
    """
    s = n + m
    for j in range(m):
        scale = abs(load(Q, (n + j) * s + n + j))
        for i in range(j, m):
            entry = load(Q, (n + j) * s + n + i)
            for k in range(j):  # above the diagonal stands L D
                entry -= load(lower, i * m + k) * load(lower, k * m + j)
            if i == j:
                positive = entry > SINGULAR * scale
                good = select(positive, good, 0.0)
                store(lower, j * m + j, 1.0 / select(positive, entry, 1.0))
            else:
                store(lower, j * m + i, entry)
                store(lower, i * m + j, entry * load(lower, j * m + j))
    for j in range(s):
        for i in range(m):
            entry = full(0.0)
            if j < n:
                entry = load(Q, j * s + n + i)
            elif i == j - n:
                entry = full(1.0)
            for k in range(i):
                entry -= load(lower, i * m + k) * load(right, k * s + j)
            store(right, i * s + j, entry)
        for i in range(m - 1, -1, -1):
            entry = load(right, i * s + j) * load(lower, i * m + i)
            for k in range(i + 1, m):
                entry -= load(lower, k * m + i) * load(right, k * s + j)
            store(right, i * s + j, entry)
    return good


@inner
def reduce(
    n: Compiled, m: Compiled, Q: Compiled, lower: Compiled, right: Compiled, kept: Compiled, at: Compiled, good: Compiled
) -> Compiled:
    """V = Q_xx - Q_xu Q_uu^-1 Q_ux, K = -Q_uu^-1 Q_ux and W = Q_uu^-1, one after the other in ``kept``; zero where not ``good``.

    Returns ``good``, zero where a pivot is not positive.
    """
    s, K, W = n + m, at + n * n, at + n * n + m * n
    good = eliminate(n, m, Q, lower, right, good)
    fine = good == 1.0
    for i in range(m):
        for j in range(n):
            store(kept, K + i * n + j, select(fine, -load(right, i * s + j), 0.0))
        for j in range(m):
            store(kept, W + i * m + j, select(fine, load(right, i * s + n + j), 0.0))
    for i in range(n):
        for j in range(i, n):
            entry = load(Q, i * s + j)
            for k in range(m):
                entry += load(Q, i * s + n + k) * load(kept, K + k * n + j)
            entry = select(fine, entry, 0.0)
            store(kept, at + i * n + j, entry)
            store(kept, at + j * n + i, entry)
    return good
