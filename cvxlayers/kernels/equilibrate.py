"""Scaling a program before it is solved, each lane by itself.

    P^ = c D P D,  q^ = c D q,  A^ = E A D,  b^ = E b    with    x = D x^,  s = E^-1 s^,  y = E y^ / c,

D and E diagonal and positive such that every column and row of [[P^, A^'], [A^, 0]] has largest entry near one (Ruiz, "A scaling
algorithm to equilibrate both rows and columns norms in matrices", 2001), E constant on every cone that is not linear, c such that
(P^, q^) has size one.
"""

from __future__ import annotations

from cvxlayers.kernels.lanes import Compiled, full, inner, larger, load, select, smaller, sqrt, store

STEPS = 10
LEAST, MOST = 1e-4, 1e4
"""The range of D, E and c: numbers beyond are taken for zeros, or for infinities, that nobody meant to scale."""


@inner
def _root(size: Compiled) -> Compiled:
    """What to multiply a row and a column of this size by."""
    return 1.0 / sqrt(select(size > 0.0, smaller(larger(size, 1e-8), 1e8), 1.0))


@inner
def equilibrate(system: Compiled, values: Compiled, q: Compiled, b: Compiled, D: Compiled, E: Compiled, size: Compiled) -> Compiled:
    """Scale ``values`` (P and A in K), q and b in place; fill D (n, LANES), E (m, LANES), return c. ``size`` (N, LANES) is scratch."""
    n, m, indices, indptr = system.n, system.m, system.indices, system.indptr
    for j in range(n):
        store(D, j, 1.0)
    for i in range(m):
        store(E, i, 1.0)
    for _ in range(STEPS):
        for k in range(n + m):
            store(size, k, 0.0)
        for k in range(n + m):
            end = indptr[k + 1] if k < n else system.A_ends[k - n]
            own = load(size, k)
            for p in range(indptr[k], end):
                i, entry = indices[p], abs(load(values, p))
                own = larger(entry, own)
                if i != k:
                    store(size, i, larger(entry, load(size, i)))
            store(size, k, own)
        for block in range(len(system.blocks)):
            first, last = system.blocks[block, 0], system.blocks[block, 1]
            top = full(0.0)
            for i in range(first, last):
                top = larger(load(size, n + i), top)
            for i in range(first, last):
                store(size, n + i, top)
        for k in range(n + m):
            step = _root(load(size, k))
            if k < n:
                before = load(D, k)
                after = smaller(larger(before * step, LEAST), MOST)
                store(D, k, after)
            else:
                before = load(E, k - n)
                after = smaller(larger(before * step, LEAST), MOST)
                store(E, k - n, after)
            store(size, k, after / before)
        for k in range(n + m):
            end = indptr[k + 1] if k < n else system.A_ends[k - n]
            own = load(size, k)
            for p in range(indptr[k], end):
                store(values, p, load(values, p) * own * load(size, indices[p]))
    height = full(0.0)
    for j in range(n):
        scaled = load(q, j) * load(D, j)
        store(q, j, scaled)
        height = larger(abs(scaled), height)
    for k in range(indptr[n]):
        height = larger(abs(load(values, k)), height)
    c = 1.0 / select(height > 0.0, smaller(larger(height, LEAST), MOST), 1.0)
    for j in range(n):
        store(q, j, load(q, j) * c)
    for k in range(indptr[n]):
        store(values, k, load(values, k) * c)
    for i in range(m):
        store(b, i, load(b, i) * load(E, i))
    return c
