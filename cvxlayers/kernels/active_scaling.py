"""[P, A'] of a row as a dense matrix, with P, the rows of A and x scaled by powers of two, which rounds nothing."""

from __future__ import annotations

from math import frexp, ldexp

import numpy as np

from cvxlayers.kernels.active_measures import ALONG, COLUMNS, SCALE
from cvxlayers.kernels.lanes import LANES, Compiled, full, inner, lane, larger, load, select, store
from cvxlayers.kernels.numbers import apart, get, put, total


@inner
def power_of_two(size: Compiled) -> Compiled:
    """The power of two just above ``size``, one for zero."""
    return ldexp(1.0, frexp(size)[1]) if size > 0.0 else 1.0


@inner
def typical(N: Compiled, b: Compiled, m: Compiled) -> Compiled:
    """A power of two near the geometric mean of the right-hand sides, so that a bound of 1e6 for form's sake does not hide the others."""
    exponents, count = 0, 0
    for i in range(m):
        size = abs(get(N, b, i))
        if 0.0 < size < np.inf:
            exponents += frexp(size)[1]
            count += 1
    return ldexp(1.0, exponents // count) if count else 1.0


@inner
def extremes(N: Compiled, shape: Compiled) -> Compiled:
    """SCALE = the largest entry of each row of A, ALONG = one where there is another; returns the largest entry of P."""
    apart()
    n, _, _, _, width, tall, stride, height, K, _, _, _ = shape
    peak = full(0.0)
    for c in range(width + tall):
        most, whole = full(0.0), full(0.0)
        for j in range(n):
            size = abs(load(N, K + j * stride + c))
            most, whole = larger(most, size), whole + size
        if c < width:
            peak = larger(peak, most)
        else:
            store(N, SCALE * height + c - width, most)
            store(N, ALONG * height + c - width, select(whole > most, 1.0, full(0.0)))
    top = 0.0
    for j in range(LANES):
        top = max(top, lane(peak, j))
    return top


@inner
def balance(N: Compiled, shape: Compiled) -> Compiled:
    """Scale x by powers of two, COLUMNS, so that P_jj is near the largest, or where it is zero the entries of A near
    those of their rows; a row with one entry has no say.

    Whether anything was to be done.
    """
    apart()
    n, _, _, _, width, tall, stride, height, K, _, _, _ = shape
    peak, any_scaled = 0.0, False
    for j in range(n):
        peak = max(peak, get(N, K + j * stride, j))
    for j in range(n):
        diagonal, by = get(N, K + j * stride, j), 1.0
        if diagonal > 1e-12 * peak:
            by = ldexp(1.0, (frexp(peak)[1] - frexp(diagonal)[1]) // 2)
        else:
            most = full(0.0)
            for c in range(tall):
                size = load(N, SCALE * height + c)
                most = larger(most, abs(load(N, K + j * stride + width + c)) * load(N, ALONG * height + c) / select(size > 0.0, size, 1.0))
            top = 0.0
            for k in range(LANES):
                top = max(top, lane(most, k))
            if top > 0.0:
                by = 2.0 / power_of_two(top)
        put(N, COLUMNS * height, j, by)
        any_scaled = any_scaled or by != 1.0
    if any_scaled:
        for j in range(n):
            own = get(N, COLUMNS * height, j)
            for c in range(width + tall):
                entries = load(N, K + j * stride + c) * own
                store(N, K + j * stride + c, entries * load(N, COLUMNS * height + c) if c < width else entries)
    return any_scaled


@inner
def gather(shape: Compiled, places: Compiled, P: Compiled, A: Compiled, N: Compiled) -> Compiled:
    """K = [P, A'] with P and every row of A scaled to largest entries near one; the scale of P, zero where P is, NaN where an entry is."""
    n, _, _, _, width, tall, stride, height, K, _, _, _ = shape
    P_indices, P_indptr, A_indices, A_indptr = places
    for j in range(n):
        own = K + j * stride
        for e in range(P_indptr[j], P_indptr[j + 1]):
            i, value = P_indices[e], P[e]
            put(N, own, i, value)
            put(N, K + i * stride, j, value)
        for e in range(A_indptr[j], A_indptr[j + 1]):
            put(N, own + width, A_indices[e], A[e])
    bad = full(0.0)
    for j in range(K, K + n * stride):
        bad = bad + load(N, j) * 0.0
    if total(bad) != 0.0:
        return np.nan
    peak = extremes(N, shape)
    if balance(N, shape):
        peak = extremes(N, shape)
    for c in range(width + tall):
        by = full(2.0 / power_of_two(peak))
        if c >= width:
            for j in range(LANES):
                put(N, SCALE * height + c - width, j, power_of_two(get(N, SCALE * height + c - width, j)))
            by = 1.0 / load(N, SCALE * height + c - width)
        for j in range(n):
            store(N, K + j * stride + c, load(N, K + j * stride + c) * by)
    return 0.5 * power_of_two(peak) if peak > 0.0 else 0.0
