"""Passes over the rows of a batch, compiled: products with sparse matrices of one pattern, residuals, the parts of a derivative.

Each row is worked through by itself in a fixed order, so its result is bitwise the same whatever its neighbours. Matrices come as in
`cvxlayers.program`: values (rows, nnz), compressed columns. What is only read may have any strides; outputs are C-contiguous and given.
The mathematics stands where these are called: `cvxlayers.products`, `cvxlayers.kkt`, `cvxlayers.adjoint`.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numba import boolean, float64, types, uint32, void

from cvxlayers.kernels.disk import inner, typed

VALUES = types.Array(float64, 2, "A", readonly=True)
ROWS = types.Array(float64, 2, "C", readonly=True)
PLACE = types.Array(uint32, 1, "C", readonly=True)  # unsigned: the compiler need not ask whether an index counts from the end
NUMBERS = types.Array(float64, 1, "C", readonly=True)
PIECES = (PLACE, PLACE, NUMBERS, PLACE, PLACE, PLACE, NUMBERS)
OUT = types.Array(float64, 2, "C")
OUT1 = types.Array(float64, 1, "C")


@inner
def _symmetric(indptr, indices, P, x, out):
    for j in range(len(out)):
        out[j] = 0.0
    for j in range(len(indptr) - 1):
        lower = 0.0
        for k in range(indptr[j], indptr[j + 1]):
            i = indices[k]
            out[i] += P[k] * x[j]
            if i != j:
                lower += P[k] * x[i]
        out[j] += lower


@inner
def _times(indptr, indices, A, x, out):
    for i in range(len(out)):
        out[i] = 0.0
    for j in range(len(indptr) - 1):
        for k in range(indptr[j], indptr[j + 1]):
            out[indices[k]] += A[k] * x[j]


@inner
def _transposed(indptr, indices, A, y, out):
    for j in range(len(indptr) - 1):
        total = 0.0
        for k in range(indptr[j], indptr[j + 1]):
            total += A[k] * y[indices[k]]
        out[j] = total


@inner
def _finite(line):
    found = True
    for i in range(len(line)):
        found &= abs(line[i]) < np.inf
    return found


@typed(boolean(ROWS, *PIECES, ROWS, OUT))
def combine(base, ones, columns, factors, rest, starts, indices, data, p, out):
    """out = base + p M', M (entries, size) in pieces as `cvxlayers.row_map.RowMap` cuts it; base and p (rows, ...) or (1, ...).

    Returns whether every entry of p and of out is a finite number.
    """
    finite = True
    for r in range(out.shape[0]):
        here, own, line = base[r if r < base.shape[0] else 0], p[r if r < p.shape[0] else 0], out[r]
        for i in range(out.shape[1]):
            line[i] = here[i]
        for k in range(len(ones)):
            line[ones[k]] += factors[k] * own[columns[k]]
        for e in range(len(rest)):
            total = line[rest[e]]
            for k in range(starts[e], starts[e + 1]):
                total += data[k] * own[indices[k]]
            line[rest[e]] = total
        finite &= _finite(own) & _finite(line)
    return finite


@typed(void(*PIECES, ROWS, OUT))
def collect(ones, columns, factors, rest, starts, indices, data, g, out):
    """out += g M, with M as in `combine`; out (rows, size), or (1, size) to collect all rows."""
    for r in range(g.shape[0]):
        own, line = g[r], out[r if r < out.shape[0] else 0]
        for k in range(len(ones)):
            line[columns[k]] += factors[k] * own[ones[k]]
        for e in range(len(rest)):
            value = own[rest[e]]
            for k in range(starts[e], starts[e + 1]):
                line[indices[k]] += data[k] * value


@inner
def _all_finite(a):
    for r in range(a.shape[0]):
        if not _finite(a[r]):
            return False
    return True


@typed(boolean(*[VALUES] * 4))
def all_finite(a, b, c, d):
    """Whether every entry is a finite number."""
    return _all_finite(a) and _all_finite(b) and _all_finite(c) and _all_finite(d)


@typed(void(PLACE, PLACE, VALUES, VALUES, OUT))
def symmetric(indptr, indices, P, x, out):
    """out = P x, P stored as its upper triangle."""
    for r in range(out.shape[0]):
        _symmetric(indptr, indices, P[r], x[r], out[r])


@typed(void(PLACE, PLACE, VALUES, VALUES, OUT))
def times(indptr, indices, A, x, out):
    """out = A x."""
    for r in range(out.shape[0]):
        _times(indptr, indices, A[r], x[r], out[r])


@typed(void(PLACE, PLACE, VALUES, VALUES, OUT))
def transposed(indptr, indices, A, y, out):
    """out = A'y."""
    for r in range(out.shape[0]):
        _transposed(indptr, indices, A[r], y[r], out[r])


@inner
def _greater(a, b):
    """The greater of |a| and b, NaN where one is."""
    a = abs(a)
    return a if a > b or a != a else b


@inner
def _below(a):
    """What a lacks of zero, which is none where it is positive; NaN where it is one."""
    return 0.0 if a >= 0.0 else a


RESIDUALS = void(*[VALUES] * 9, *[PLACE] * 5, OUT1, OUT)


@typed(RESIDUALS)
def residuals(P, q, A, b, x, y, s, nearest_s, nearest_y, P_indptr, P_indices, A_indptr, A_indices, kind, work, out):
    """out (5, rows): primal, dual, gap, objective and the worst of the first three, as `cvxlayers.products.Residuals` defines them.

    ``kind`` (m,) is 0 for rows of zero cones, 1 of nonnegative ones, 2 of others, whose projections are nearest_s and nearest_y;
    ``work`` (2 n + m,) is to work in.
    """
    n, m = x.shape[1], y.shape[1]
    Px, ATy, Ax = work[:n], work[n : 2 * n], work[2 * n : 2 * n + m]
    for r in range(x.shape[0]):
        _symmetric(P_indptr, P_indices, P[r], x[r], Px)
        _times(A_indptr, A_indices, A[r], x[r], Ax)
        _transposed(A_indptr, A_indices, A[r], y[r], ATy)
        primal = dual = size_p = size_d = xPx = qx = by = 0.0
        for i in range(m):
            primal = _greater(Ax[i] + s[r, i] - b[r, i], primal)
            size_p = _greater(b[r, i], _greater(s[r, i], _greater(Ax[i], size_p)))
            by += b[r, i] * y[r, i]
            if kind[i] == 0:
                primal = _greater(s[r, i], primal)
            elif kind[i] == 1:
                primal, dual = _greater(_below(s[r, i]), primal), _greater(_below(y[r, i]), dual)
            else:
                primal, dual = _greater(nearest_s[r, i] - s[r, i], primal), _greater(nearest_y[r, i] - y[r, i], dual)
        for j in range(n):
            dual = _greater(Px[j] + q[r, j] + ATy[j], dual)
            size_d = _greater(q[r, j], _greater(ATy[j], _greater(Px[j], size_d)))
            xPx += x[r, j] * Px[j]
            qx += q[r, j] * x[r, j]
        out[0, r] = primal / (1 + size_p)
        out[1, r] = dual / (1 + size_d)
        out[2, r] = abs(xPx + qx + by) / (1 + _greater(xPx, _greater(qx, abs(by))))
        out[3, r] = xPx / 2 + qx
        out[4, r] = _greater(out[0, r], _greater(out[1, r], out[2, r]))


@typed(void(*[VALUES] * 6, *[PLACE] * 5, OUT1, OUT, OUT1))
def active_error(P, q, A, b, x, y, P_indptr, P_indices, A_indptr, A_indices, kind, work, slack, error):
    """The slack b - Ax, zero where a row is active, and the error as `cvxlayers.solvers.dense.checked` has them.

    `residuals` says what ``kind`` and ``work`` are.
    """
    n, m = x.shape[1], y.shape[1]
    Px, ATy, Ax = work[:n], work[n : 2 * n], work[2 * n : 2 * n + m]
    for r in range(x.shape[0]):
        _symmetric(P_indptr, P_indices, P[r], x[r], Px)
        _times(A_indptr, A_indices, A[r], x[r], Ax)
        _transposed(A_indptr, A_indices, A[r], y[r], ATy)
        primal = dual = sign = size = length = 0.0
        for i in range(m):
            left = b[r, i] - Ax[i]
            active = kind[i] == 0 or y[r, i] > 0
            primal = _greater(left if active else _below(left), primal)
            sign = sign if kind[i] == 0 else _greater(_below(y[r, i]), sign)
            slack[r, i] = 0.0 if active or left < 0 else left
        for j in range(n):
            dual = _greater(Px[j] + q[r, j] + ATy[j], dual)
            size = _greater(q[r, j], _greater(Px[j], size))
            length = _greater(x[r, j], length)
        error[r] = primal / _greater(length, 1e-8) + (dual + sign) / _greater(size, 1e-8)


@inner
def _assemble(P, A, d, at_P, at_diagonal, at_linear, linear_rows, linear_entries, out):
    n = len(at_diagonal) - len(d)
    for k in range(len(out)):
        out[k] = 0.0
    for k in range(len(at_P)):
        out[at_P[k]] = P[k]
    for i in range(len(d)):
        out[at_diagonal[n + i]] = d[i] - 1
    for k in range(len(at_linear)):
        out[at_linear[k]] = A[linear_entries[k]] * sqrt(d[linear_rows[k]])


@typed(void(VALUES, VALUES, VALUES, *[PLACE] * 5, OUT))
def assemble(P, A, d, at_P, at_diagonal, at_linear, linear_rows, linear_entries, out):
    """out (rows, nnz) = the entries of K that come from P, from d - 1 and from rows of diag(sqrt d) A that no rotation touches."""
    for r in range(out.shape[0]):
        _assemble(P[r], A[r], d[r], at_P, at_diagonal, at_linear, linear_rows, linear_entries, out[r])


@typed(void(*[VALUES] * 6, *[PLACE] * 6, OUT, OUT, OUT, OUT1))
def system(P, A, y, s, top, bottom, kind, at_P, at_diagonal, at_linear, linear_rows, linear_entries, d, values, rhs, margin):
    """For zero and nonnegative cones: d (rows, m), the derivative of the dual cone's projection at v = y - s, and the relative margin.

    Then K at this d as `assemble` makes it, and rhs = [top; diag(sqrt d) bottom].
    """
    n, m = top.shape[1], y.shape[1]
    for r in range(y.shape[0]):
        nearest, size = np.inf, 0.0
        for j in range(n):
            rhs[r, j] = top[r, j]
        for i in range(m):
            v = y[r, i] - s[r, i]
            size = _greater(v, size)
            active = kind[i] == 0 or v > 0
            d[r, i] = 1.0 if active else 0.0
            rhs[r, n + i] = bottom[r, i] if active else 0.0 * bottom[r, i]
            if kind[i] != 0 and not abs(v) >= nearest:
                nearest = abs(v)
        margin[r] = nearest / (1 + size)
        _assemble(P[r], A[r], d[r], at_P, at_diagonal, at_linear, linear_rows, linear_entries, values[r])


@typed(void(VALUES, types.Array(float64, 4, "A", readonly=True), VALUES, *[PLACE] * 6, OUT), allocates=True)
def rotate(A, vectors, root, entries, inner, slot, entry_starts, pair_starts, positions, out):
    """out at ``positions`` = diag(root) U' A for equal cones: ``vectors`` U (rows, count, size, size), root (rows, count size).

    Cone c has the entries entry_starts[c] ... of A, each at (inner, slot) of a piece with pair_starts[c + 1] - pair_starts[c] columns,
    column by column; row k of all pieces, cone after cone, goes to positions[k pairs ...].
    """
    count, size = vectors.shape[1], vectors.shape[2]
    pairs = np.intp(pair_starts[count])  # unsigned and signed numbers together would make a float
    own, turned = np.empty((size, size)), np.empty(size)
    for r in range(out.shape[0]):
        for c in range(count):
            e, last, start = np.intp(entry_starts[c]), np.intp(entry_starts[c + 1]), np.intp(pair_starts[c])
            for i in range(size):
                for k in range(size):
                    own[i, k] = vectors[r, c, i, k]
            for j in range(np.intp(pair_starts[c + 1]) - start):
                for k in range(size):
                    turned[k] = 0.0
                while e < last and slot[e] == j:
                    factor = A[r, entries[e]]
                    for k in range(size):
                        turned[k] += factor * own[inner[e], k]
                    e += 1
                for k in range(size):
                    out[r, positions[k * pairs + start + j]] = root[r, c * size + k] * turned[k]


@typed(void(*[VALUES] * 4, *[PLACE] * 4, OUT, OUT))
def outer(x, y, u, w, P_indptr, P_indices, A_indptr, A_indices, dP, dA):
    """dP = -(u x' + x u')/2 (twice that off the diagonal) and dA = -(y u' + w x') on the stored entries, of as many rows as each has."""
    for r in range(dP.shape[0]):
        for j in range(len(P_indptr) - 1):
            for k in range(P_indptr[j], P_indptr[j + 1]):
                i = P_indices[k]
                both = u[r, i] * x[r, j] + x[r, i] * u[r, j]
                dP[r, k] = -both / 2 if i == j else -both
    for r in range(dA.shape[0]):
        for j in range(len(A_indptr) - 1):
            for k in range(A_indptr[j], A_indptr[j + 1]):
                i = A_indices[k]
                dA[r, k] = -(y[r, i] * u[r, j] + w[r, i] * x[r, j])
