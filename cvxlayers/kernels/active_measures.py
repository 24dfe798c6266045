"""What a point and the multipliers of a working set are worth in the program itself: residuals, certificates that there is no solution.

The vectors of the method of ``active_set`` are named here; its other names are those of ``working_set``.
"""

from __future__ import annotations

import numpy as np

from cvxlayers.kernels.lanes import LANES, Compiled, full, inner, lane, load, select, store
from cvxlayers.kernels.matrices import combine, dot, dots
from cvxlayers.kernels.numbers import apart, get, put, total
from cvxlayers.kernels.working_set import FALLS, LEVELS, NAMED, SLOTS, clear, copy

COST, X, STEP, GRADIENT, B, SLACK, Y, ALLOW, WEIGHT, ALONG, GONE, BACK, BEST, DUAL, LEFT = range(NAMED, NAMED + 15)
"""Vectors of N, in units of the height: q, x, d, g, b, s, y, what of a slack counts as none, the weights of constraints that may join,
Ad, the way of u, its last piece, and x, y, s of the least error."""
INVERSE, WEIGHTS, LENGTHS, SCALE, COLUMNS, TOP = range(NAMED + 15, NAMED + 21)
"""And 1 / R_jj, 1 / |m_i| (zero for equations), |m_i|, the scales of the rows of A and of x, the first variable of each vector of M."""
NAMES = NAMED + 21

FLAT = 1e-9
"""Relative size of what should be zero in a certificate."""


@inner
def largest(N: Compiled, v: Compiled, width: Compiled) -> Compiled:
    """max |v|, NaN where there is one."""
    apart()
    most = full(0.0)
    for j in range(width):
        size = abs(load(N, v + j))
        most = select(size <= most, most, size + 0.0 * most)
    top = 0.0
    for j in range(LANES):
        size = lane(most, j)
        top = size if size > top or size != size else top
    return top


@inner
def infeasible(N: Compiled, shape: Compiled, kept: Compiled, k: Compiled, p: Compiled) -> Compiled:
    """Whether y = (1 for constraint p, -r for the working set), or -y, proves that there is no feasible point: A'y = 0, b'y < 0."""
    apart()
    _, _, _, rows, width, tall, stride, height, K, _, _, _ = shape
    d, b, y = STEP * height, B * height, Y * height
    clear(N, y, tall)
    sign, top = 1.0 if get(N, SLACK * height, p) < 0.0 else -1.0, 1.0
    put(N, y, p, sign)
    for i in range(k):
        value = -sign * get(N, FALLS * height, i)
        if i < kept or value > 0.0:
            put(N, y, int(get(N, SLOTS * height, i)), value)
            top = max(top, abs(value))
    clear(N, d, width)
    dots(N, K + width, stride, tall, y, rows, d)
    size = full(0.0)
    for j in range(tall):
        size = size + abs(load(N, b + j) * load(N, y + j))
    return largest(N, d, width) <= FLAT * top and dot(N, b, y, tall) < -FLAT * total(size)


@inner
def slack(N: Compiled, shape: Compiled) -> None:
    """s = b - Ax"""
    apart()
    _, _, _, rows, width, tall, stride, height, K, _, _, _ = shape
    copy(N, B * height, tall, SLACK * height)
    combine(N, K + width, stride, tall, -1.0, X * height, rows, SLACK * height)


@inner
def error_of(N: Compiled, shape: Compiled, k: Compiled, unit: Compiled) -> Compiled:
    """GRADIENT = -(q + Px + A'y), y from the working set; how far (x, y) is from optimal relative to x, and to q or Px; max |x|."""
    apart()
    _, m, equations, rows, width, tall, stride, height, K, _, _, _ = shape
    q, d, g, s, y = COST * height, STEP * height, GRADIENT * height, SLACK * height, Y * height
    clear(N, y, tall)
    worst = 0.0
    for i in range(k):
        p = int(get(N, SLOTS * height, i))
        put(N, y, p, get(N, LEVELS * height, i))
        off = abs(get(N, s, p))
        worst = off if off > worst or off != off else worst
    for i in range(m):
        off = abs(get(N, s, i)) if i < equations else -get(N, s, i)
        worst = off if off > worst or off != off else worst
    clear(N, g, width)
    clear(N, d, width)
    combine(N, K, stride, width, 1.0, X * height, rows, g)
    dots(N, K + width, stride, tall, y, rows, d)
    top = max(largest(N, g, width), largest(N, q, width))
    for j in range(width):
        store(N, g + j, -(load(N, g + j) + load(N, q + j) + load(N, d + j)))
    far = largest(N, X * height, width)
    top = max(top, 1e-8 * unit) if top > 0.0 else unit  # without an objective
    error = worst / max(far, 1e-8 * unit) + largest(N, g, width) / top
    return (error if error < np.inf else np.inf), far


@inner
def endless(N: Compiled, shape: Compiled, far: Compiled) -> Compiled:
    """How far x may go along d if the objective falls along it for ever: infinite if nothing ever stops it, zero if it does not fall."""
    _, m, equations, rows, width, tall, stride, height, K, _, _, _ = shape
    q, d, along, Pd = COST * height, STEP * height, ALONG * height, BACK * height
    size = largest(N, d, width)
    if not size > 1e-6 * far or not dot(N, q, d, width) < -FLAT * size * largest(N, q, width):
        return 0.0
    clear(N, Pd, width)
    combine(N, K, stride, width, 1.0, d, rows, Pd)
    if not largest(N, Pd, width) <= FLAT * size:
        return 0.0
    clear(N, along, tall)
    combine(N, K + width, stride, tall, 1.0, d, rows, along)
    least = np.inf
    for i in range(m):
        rise = get(N, along, i)
        if i < equations:
            if abs(rise) > FLAT * size:
                return 0.0
        elif rise > FLAT * size:
            least = min(least, max(get(N, SLACK * height, i), 0.0) / rise)
    return least
