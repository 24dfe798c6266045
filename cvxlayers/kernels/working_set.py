"""The working set of an active-set method: k independent rows m_i of M, orthogonalized, as constraints come and go.

    M_W' = Q'T,   Q (k, n) with orthonormal rows,   S = T^-1 (k, k)

so that for a row m: h = Qm, v = m - Q'h is its part across the working set, and r = Sh solves M_W' r = m - v. Daniel, Gragg, Kaufman and
Stewart, "Reorthogonalization and stable algorithms for updating the Gram-Schmidt QR factorization", 1976, with two changes: S is kept in
the place of T, which needs no order of the constraints and no substitution, and a constraint leaves by one reflection instead of many
rotations. S is stored by columns: row i of the matrix S holds S[:, i] over the slots of the constraints.

Each slot has its constraint in SLOTS, |m_i| in SIZES and its multiplier in LEVELS; equations come first and never leave. Rows k and beyond
of Q and S are zero. ``shape`` = (n, m, equations, rows, width, tall, stride, height, K, F, Q, S): n in whole fours, n and m in vectors,
vectors in a row of [P, A'], vectors that separate the named vectors below, and where in N the matrices begin.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from cvxlayers.kernels.lanes import Compiled, inner, load, store
from cvxlayers.kernels.matrices import combine, dot, dots
from cvxlayers.kernels.numbers import apart, get, put

SLOTS, SIZES, LEVELS, PARTS, FALLS, ACROSS, ROW, WORK, SPARE = range(9)
"""Vectors of N, in units of the height: of the slots, and h, r, v, m, and two to work with."""
NAMED = 9

DEPENDENT = 1e-9
"""A row with less than this part of its length across the working set depends on it."""
AGAIN = 1e-2
"""A row with less than this is orthogonalized twice."""
NEGLIGIBLE = 1e-11
"""A multiplier that falls by less than this, relative to the sizes of the rows, does not fall."""


@inner
def clear(N: Compiled, v: Compiled, width: Compiled) -> None:
    """v = 0"""
    for j in range(width):
        store(N, v + j, 0.0)


@inner
def copy(N: Compiled, v: Compiled, width: Compiled, out: Compiled) -> None:
    """out = v"""
    for j in range(width):
        store(N, out + j, load(N, v + j))


@inner
def move(N: Compiled, v: Compiled, width: Compiled, length: Compiled, out: Compiled) -> None:
    """out += length v"""
    for j in range(width):
        store(N, out + j, load(N, out + j) + load(N, v + j) * length)


@inner
def direction(N: Compiled, shape: Compiled, k: Compiled, size: Compiled) -> Compiled:
    """h, v and r of the row in ROW, whose length is ``size``; |v|^2, zero if the row depends on the working set."""
    apart()
    _, _, _, _, width, _, _, height, _, _, Q, S = shape
    h, r, v, w, slots = PARTS * height, FALLS * height, ACROSS * height, WORK * height, (k + 7) >> 3
    copy(N, ROW * height, width, v)
    clear(N, h, slots)
    clear(N, r, slots)
    dots(N, Q, width, width, v, k, h)
    combine(N, Q, width, width, -1.0, h, k, v)
    across = dot(N, v, v, width)
    if across < AGAIN * AGAIN * size * size:
        clear(N, w, slots)
        dots(N, Q, width, width, v, k, w)
        combine(N, Q, width, width, -1.0, w, k, v)
        across = dot(N, v, v, width)
        move(N, w, slots, 1.0, h)
    combine(N, S, width, slots, 1.0, h, k, r)
    return across if across > DEPENDENT * DEPENDENT * size * size else 0.0


@inner
def add(N: Compiled, shape: Compiled, k: Compiled, constraint: Compiled, size: Compiled, level: Compiled, across: Compiled) -> None:
    """The row that `direction` looked at joins as number k."""
    _, _, _, _, width, _, _, height, _, _, Q, S = shape
    inverse = 1.0 / sqrt(across)
    for j in range(width):
        store(N, Q + k * width + j, load(N, ACROSS * height + j) * inverse)
    for j in range((k + 7) >> 3):
        store(N, S + k * width + j, load(N, FALLS * height + j) * -inverse)
    put(N, S + k * width, k, inverse)
    put(N, SLOTS * height, k, float(constraint))
    put(N, SIZES * height, k, size)
    put(N, LEVELS * height, k, level)


@inner
def drop(N: Compiled, shape: Compiled, k: Compiled, slot: Compiled) -> None:
    """The constraint of a slot leaves; the last one takes its place. k is the number before.

    Row ``slot`` of S is turned into one entry, in the last column, by a reflection of the columns of S and the rows of Q.
    """
    apart()
    _, _, _, _, width, _, _, height, _, _, Q, S = shape
    w, spare, filled, last = WORK * height, SPARE * height, (k + 7) >> 3, k - 1
    clear(N, w, filled)
    length = 0.0
    for i in range(k):
        entry = get(N, S + i * width, slot)
        put(N, w, i, entry)
        length += entry * entry
    end = get(N, w, last)
    turned = end + sqrt(length) if end >= 0.0 else end - sqrt(length)
    length += turned * turned - end * end
    put(N, w, last, turned)
    for turn in range(2):
        matrix, wide = (Q, width) if turn == 0 else (S, filled)
        clear(N, spare, wide)
        combine(N, matrix, width, wide, 2.0 / length, w, k, spare)
        for i in range(last):
            own = get(N, w, i)
            if own != 0.0:
                move(N, spare, wide, -own, matrix + i * width)
        clear(N, matrix + last * width, wide)
    for i in range(last):
        put(N, S + i * width, slot, get(N, S + i * width, last))
        put(N, S + i * width, last, 0.0)
    for vector in range(SLOTS, LEVELS + 1):
        put(N, vector * height, slot, get(N, vector * height, last))
    put(N, LEVELS * height, last, 0.0)


@inner
def empty(N: Compiled, shape: Compiled, k: Compiled, kept: Compiled) -> None:
    """All but the first ``kept`` leave, which were never turned."""
    _, _, _, _, width, _, _, _, _, _, Q, S = shape
    clear(N, Q + kept * width, (k - kept) * width)
    clear(N, S + kept * width, (k - kept) * width)


@inner
def blocking(N: Compiled, shape: Compiled, kept: Compiled, k: Compiled, size: Compiled) -> Compiled:
    """(slot, t): how far the multipliers may move along -r until the first is zero; slot -1, t infinite if none ever is."""
    height = shape[7]
    least, slot, small = np.inf, np.int64(-1), NEGLIGIBLE * size
    for i in range(kept, k):
        fall = get(N, FALLS * height, i)
        if fall * get(N, SIZES * height, i) > small:
            t = get(N, LEVELS * height, i) / fall
            if t < least:
                least, slot = t, i
    return slot, least
