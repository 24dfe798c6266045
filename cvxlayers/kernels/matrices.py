"""Dense matrices of one row of a batch, their rows padded to whole vectors: products, the factor of [P, A'], solves with it.

All numbers stand in one array N (vectors, LANES). Row i of a matrix begins at vector ``matrix + i * stride``; rows come in fours, so their
number is rounded up and what pads them is zero. A vector of numbers is named by the vector of N in which it begins.
"""

from __future__ import annotations

from math import sqrt

from cvxlayers.kernels.lanes import Compiled, full, inner, lane, load, store
from cvxlayers.kernels.numbers import apart, get, insert, put, total


@inner
def combine(
    N: Compiled, matrix: Compiled, stride: Compiled, width: Compiled, sign: Compiled, factors: Compiled, count: Compiled, out: Compiled
) -> None:
    """out += sign times the sum over i < count of factors[i] times row i; factors of zero cost nothing."""
    apart()
    for i in range(0, count, 4):
        f0, f1, f2, f3 = get(N, factors, i), get(N, factors, i + 1), get(N, factors, i + 2), get(N, factors, i + 3)
        if f0 == 0.0 and f1 == 0.0 and f2 == 0.0 and f3 == 0.0:
            continue
        f0, f1, f2, f3 = sign * f0, sign * f1, sign * f2, sign * f3
        a = matrix + i * stride
        b, c, d = a + stride, a + 2 * stride, a + 3 * stride
        for j in range(width):
            more = (load(N, a + j) * f0 + load(N, b + j) * f1) + (load(N, c + j) * f2 + load(N, d + j) * f3)
            store(N, out + j, load(N, out + j) + more)


@inner
def dots(N: Compiled, matrix: Compiled, stride: Compiled, width: Compiled, v: Compiled, count: Compiled, out: Compiled) -> None:
    """out[i] = row i times v, i < count."""
    apart()
    for i in range(0, count, 4):
        a = matrix + i * stride
        b, c, d = a + stride, a + 2 * stride, a + 3 * stride
        s0, s1, s2, s3 = full(0.0), full(0.0), full(0.0), full(0.0)
        for j in range(width):
            own = load(N, v + j)
            s0 = s0 + load(N, a + j) * own
            s1 = s1 + load(N, b + j) * own
            s2 = s2 + load(N, c + j) * own
            s3 = s3 + load(N, d + j) * own
        put(N, out, i, total(s0))
        put(N, out, i + 1, total(s1))
        put(N, out, i + 2, total(s2))
        put(N, out, i + 3, total(s3))


@inner
def dot(N: Compiled, a: Compiled, b: Compiled, width: Compiled) -> Compiled:
    """a'b"""
    both = full(0.0)
    for j in range(width):
        both = both + load(N, a + j) * load(N, b + j)
    return total(both)


@inner
def _factor_beside(
    N: Compiled, F: Compiled, j: Compiled, stride: Compiled, width: Compiled, top: Compiled, inverse: Compiled, f01: Compiled,
    f02: Compiled, f03: Compiled, f12: Compiled, f13: Compiled, f23: Compiled,
) -> None:  # fmt: skip
    """Rows j ... j + 3 of `factor` beside their diagonal block, whose entries above the diagonal are f."""
    block, at = j >> 3, j & 7
    r0 = F + j * stride
    r1, r2, r3 = r0 + stride, r0 + 2 * stride, r0 + 3 * stride
    i0, i1, i2, i3 = get(N, inverse, j), get(N, inverse, j + 1), get(N, inverse, j + 2), get(N, inverse, j + 3)
    for c in range(block + 1, width, 2):
        begin = int(min(get(N, top, c), get(N, top, c + 1)))
        if begin > j + 3:
            continue
        a0, a1, a2, a3 = load(N, r0 + c), load(N, r1 + c), load(N, r2 + c), load(N, r3 + c)
        b0, b1, b2, b3 = load(N, r0 + c + 1), load(N, r1 + c + 1), load(N, r2 + c + 1), load(N, r3 + c + 1)
        for k in range(begin, j):
            p, two = F + k * stride + block, F + k * stride + c
            one, two = load(N, two), load(N, two + 1)
            g0, g1, g2, g3 = get(N, p, at), get(N, p, at + 1), get(N, p, at + 2), get(N, p, at + 3)
            a0, a1, a2, a3 = a0 - one * g0, a1 - one * g1, a2 - one * g2, a3 - one * g3
            b0, b1, b2, b3 = b0 - two * g0, b1 - two * g1, b2 - two * g2, b3 - two * g3
        a0, b0 = a0 * i0, b0 * i0
        a1, b1 = (a1 - a0 * f01) * i1, (b1 - b0 * f01) * i1
        a2, b2 = ((a2 - a0 * f02) - a1 * f12) * i2, ((b2 - b0 * f02) - b1 * f12) * i2
        a3, b3 = (((a3 - a0 * f03) - a1 * f13) - a2 * f23) * i3, (((b3 - b0 * f03) - b1 * f13) - b2 * f23) * i3
        store(N, r0 + c, a0)
        store(N, r1 + c, a1)
        store(N, r2 + c, a2)
        store(N, r3 + c, a3)
        store(N, r0 + c + 1, b0)
        store(N, r1 + c + 1, b1)
        store(N, r2 + c + 1, b2)
        store(N, r3 + c + 1, b3)


@inner
def factor(
    N: Compiled, F: Compiled, rows: Compiled, stride: Compiled, width: Compiled, top: Compiled, least: Compiled, inverse: Compiled
) -> Compiled:
    """[P, A'] becomes [R, R^-T A'], P = R'R with R upper triangular; False where a pivot is not above ``least`` times its P_jj.

    Four rows meet all earlier rows two vectors at a time. ``top`` (width + 1) is the first row in which a column of vectors has an entry;
    ``inverse`` becomes 1 / R_jj. Every row has a vector to spare.
    """
    for j in range(0, rows, 4):
        r0, block, at = F + j * stride, j >> 3, j & 7
        r1, r2, r3 = r0 + stride, r0 + 2 * stride, r0 + 3 * stride
        a0, a1, a2, a3 = load(N, r0 + block), load(N, r1 + block), load(N, r2 + block), load(N, r3 + block)
        d0, d1, d2, d3 = lane(a0, at), lane(a1, at + 1), lane(a2, at + 2), lane(a3, at + 3)
        for k in range(j):
            p = F + k * stride + block
            own = load(N, p)
            a0, a1 = a0 - own * get(N, p, at), a1 - own * get(N, p, at + 1)
            a2, a3 = a2 - own * get(N, p, at + 2), a3 - own * get(N, p, at + 3)
        if not lane(a0, at) > least * d0:
            return False
        i0 = 1.0 / sqrt(lane(a0, at))
        a0 = a0 * i0
        f01, f02, f03 = lane(a0, at + 1), lane(a0, at + 2), lane(a0, at + 3)
        a1 = a1 - a0 * f01
        if not lane(a1, at + 1) > least * d1:
            return False
        i1 = 1.0 / sqrt(lane(a1, at + 1))
        a1 = a1 * i1
        f12, f13 = lane(a1, at + 2), lane(a1, at + 3)
        a2 = (a2 - a0 * f02) - a1 * f12
        if not lane(a2, at + 2) > least * d2:
            return False
        i2 = 1.0 / sqrt(lane(a2, at + 2))
        a2 = a2 * i2
        f23 = lane(a2, at + 3)
        a3 = ((a3 - a0 * f03) - a1 * f13) - a2 * f23
        if not lane(a3, at + 3) > least * d3:
            return False
        i3 = 1.0 / sqrt(lane(a3, at + 3))
        a3 = a3 * i3
        for k in range(at):  # below the diagonal
            a0, a1, a2, a3 = insert(a0, k, 0.0), insert(a1, k, 0.0), insert(a2, k, 0.0), insert(a3, k, 0.0)
        a1, a2, a3 = insert(a1, at, 0.0), insert(a2, at, 0.0), insert(a3, at, 0.0)
        a2, a3 = insert(a2, at + 1, 0.0), insert(a3, at + 1, 0.0)
        a3 = insert(a3, at + 2, 0.0)
        store(N, r0 + block, a0)
        store(N, r1 + block, a1)
        store(N, r2 + block, a2)
        store(N, r3 + block, a3)
        put(N, inverse, j, i0)
        put(N, inverse, j + 1, i1)
        put(N, inverse, j + 2, i2)
        put(N, inverse, j + 3, i3)
        _factor_beside(N, F, j, stride, width, top, inverse, f01, f02, f03, f12, f13, f23)
    return True


@inner
def forward(N: Compiled, F: Compiled, rows: Compiled, stride: Compiled, width: Compiled, inverse: Compiled, v: Compiled) -> None:
    """v becomes R^-T v."""
    for j in range(0, rows, 4):
        a, block, at = F + j * stride, j >> 3, j & 7
        b, c, d = a + stride, a + 2 * stride, a + 3 * stride
        v0 = get(N, v, j) * get(N, inverse, j)
        v1 = (get(N, v, j + 1) - v0 * get(N, a + block, at + 1)) * get(N, inverse, j + 1)
        v2 = (get(N, v, j + 2) - v0 * get(N, a + block, at + 2) - v1 * get(N, b + block, at + 2)) * get(N, inverse, j + 2)
        v3 = get(N, v, j + 3) - v0 * get(N, a + block, at + 3) - v1 * get(N, b + block, at + 3) - v2 * get(N, c + block, at + 3)
        v3 = v3 * get(N, inverse, j + 3)
        for k in range(block, width):
            store(N, v + k, (load(N, v + k) - load(N, a + k) * v0 - load(N, b + k) * v1) - (load(N, c + k) * v2 + load(N, d + k) * v3))
        put(N, v, j, v0)
        put(N, v, j + 1, v1)
        put(N, v, j + 2, v2)
        put(N, v, j + 3, v3)


@inner
def backward(N: Compiled, F: Compiled, rows: Compiled, stride: Compiled, width: Compiled, inverse: Compiled, v: Compiled) -> None:
    """v becomes R^-1 v."""
    apart()
    for back in range(0, rows, 4):
        j = rows - 4 - back
        a, block, at = F + j * stride, j >> 3, j & 7
        b, c, d = a + stride, a + 2 * stride, a + 3 * stride
        v0, v1, v2, v3 = get(N, v, j), get(N, v, j + 1), get(N, v, j + 2), get(N, v, j + 3)
        put(N, v, j, 0.0)
        put(N, v, j + 1, 0.0)
        put(N, v, j + 2, 0.0)
        put(N, v, j + 3, 0.0)
        s0, s1, s2, s3 = full(0.0), full(0.0), full(0.0), full(0.0)
        for k in range(block, width):
            own = load(N, v + k)
            s0 = s0 + load(N, a + k) * own
            s1 = s1 + load(N, b + k) * own
            s2 = s2 + load(N, c + k) * own
            s3 = s3 + load(N, d + k) * own
        v3 = (v3 - total(s3)) * get(N, inverse, j + 3)
        v2 = (v2 - total(s2) - v3 * get(N, c + block, at + 3)) * get(N, inverse, j + 2)
        v1 = (v1 - total(s1) - v2 * get(N, b + block, at + 2) - v3 * get(N, b + block, at + 3)) * get(N, inverse, j + 1)
        v0 = v0 - total(s0) - v1 * get(N, a + block, at + 1) - v2 * get(N, a + block, at + 2) - v3 * get(N, a + block, at + 3)
        put(N, v, j, v0 * get(N, inverse, j))
        put(N, v, j + 1, v1)
        put(N, v, j + 2, v2)
        put(N, v, j + 3, v3)
