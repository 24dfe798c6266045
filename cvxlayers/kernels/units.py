"""The units of `cvxlayers.units` for every row of a batch, compiled."""

from __future__ import annotations

from math import ldexp, log2

import numpy as np
from numba import boolean, float64, types, uint32

from cvxlayers.kernels.disk import inner, typed

VALUES = types.Array(float64, 2, "A", readonly=True)
PLACE = types.Array(uint32, 1, "C", readonly=True)
OUT = types.Array(float64, 2, "C")


@inner
def _raise(sizes, k, value):
    value = abs(value)
    if value > sizes[k]:
        sizes[k] = value


@typed(boolean(*[VALUES] * 7, *[PLACE] * 5, OUT, OUT, float64, float64, OUT))
def units(P, q, A, b, x, y, s, P_indptr, P_indices, A_indptr, A_indices, cones, wide, tall, equal, part, out):
    """Whether there are numbers e other than one, which go to ``out`` (rows, m).

    ``cones`` are (first row, dim) of every cone that is not a zero cone, one after the other, a nonnegative row being one; ``wide`` (1, n)
    and ``tall`` (2, m) are to work in.
    """
    slopes, sides, least = wide[0], tall[0], tall[1]
    found = False
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            sides[i] = max(abs(b[r, i]), abs(s[r, i]))
            least[i] = np.inf
            out[r, i] = 1.0
        for j in range(len(slopes)):
            slopes[j] = abs(q[r, j])
        for j in range(len(slopes)):
            for k in range(P_indptr[j], P_indptr[j + 1]):
                _raise(slopes, P_indices[k], P[r, k] * x[r, j])
                _raise(slopes, j, P[r, k] * x[r, P_indices[k]])
            for k in range(A_indptr[j], A_indptr[j + 1]):
                _raise(sides, A_indices[k], A[r, k] * x[r, j])
                _raise(slopes, j, A[r, k] * y[r, A_indices[k]])
        largest = 0.0
        for i in range(out.shape[1]):
            largest = max(largest, abs(b[r, i] * y[r, i]))
        for j in range(len(slopes)):
            largest = max(largest, slopes[j] * abs(x[r, j]))
            for k in range(A_indptr[j], A_indptr[j + 1]):
                if A[r, k] != 0.0:
                    i = A_indices[k]
                    least[i] = min(least[i], slopes[j] / abs(A[r, k]))
        for k in range(0, len(cones), 2):
            first, last = np.intp(cones[k]), np.intp(cones[k]) + np.intp(cones[k + 1])
            one = other = 0.0
            for i in range(first, last):
                one = max(one, abs(y[r, i]), least[i] if least[i] < np.inf else 0.0)
                other = max(other, sides[i])
            if one > 0.0 and other > 0.0 and one * other >= part * largest and not 1.0 / equal < one / other < equal:
                found = True
                unit = ldexp(1.0, int(round(0.5 * (log2(one) - log2(other)))))
                for i in range(first, last):
                    out[r, i] = unit
    return found
