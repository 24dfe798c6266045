"""Auxiliary variables that are one entry of another variable, shifted: taken out of a program before it is solved.

CVXPY writes sum_squares(x - a) as t't with t = x - a: as many variables and equations again. Wherever a column t_j of A has its only entry
in a zero row that holds at most one other variable, both with constant factors,

    a_j t_j + f x_k = b_i,     so     t_j = tau x_k + r_j(p),     tau = -f / a_j,     r_j = b_i(p) / a_j,

t_j and the row go, and with the matrix T of all such tau (and ones for the variables that stay)

    P <- T'PT,     q <- T'(q + P r),     c <- c + q'r + 1/2 r'P r.

P and q are as sparse as before and affine in p as long as the columns of P and the entries of q that belong to t are constant; c is not,
and is kept as a quadratic form of its own. Rows of more than two variables stay: their products would fill P, and square its condition.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.canonical import Canonical, Matrix
from cvxlayers.cones import Product, Zero
from cvxlayers.program import Pattern


def eliminate(canonical: Canonical) -> Canonical:
    """The same problem without the variables that one zero row gives as one entry of another; the outputs must not ask for them.

    >>> import cvxpy as cp
    >>> from cvxlayers.canonicalize import canonicalize
    >>> x, a = cp.Variable(2), cp.Parameter(2)
    >>> made = canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x - a))), [a], [x])
    >>> made.pattern.n, eliminate(made).pattern.n
    (4, 2)
    """
    pairs = _pairs(canonical)
    return _without(canonical, *pairs) if len(pairs[0]) else canonical


def _pairs(canonical: Canonical) -> tuple[np.ndarray, np.ndarray]:
    """Variables to eliminate and the rows that give them, one each."""
    pattern, (P, q, A, b, _) = canonical.pattern, _blocks(canonical)
    zeros = sum(cone.dim for cone in pattern.cone.cones if isinstance(cone, Zero))
    shown = np.diff(sp.csc_matrix(canonical.R).indptr) > 0
    moving = ~_constant(q) | shown[: pattern.n]  # variables that must stay
    for ends in (pattern.P_indices, pattern.P_columns):
        moving[ends[~_constant(P)]] = True
    short = (np.bincount(pattern.A_indices, minlength=pattern.m) <= 2) & (np.arange(pattern.m) < zeros) & ~shown[pattern.n :]
    short &= np.isfinite(b[:, [-1]].toarray().ravel())
    short[pattern.A_indices[~_constant(A)]] = False
    curved = np.zeros(pattern.n, dtype=bool)
    curved[pattern.P_indices[pattern.P_indices == pattern.P_columns]] = True
    columns = np.flatnonzero(curved & (np.diff(pattern.A_indptr) == 1) & ~moving)
    rows = pattern.A_indices[pattern.A_indptr[columns]]
    columns, rows = columns[short[rows]], rows[short[rows]]
    rows, first = np.unique(rows, return_index=True)  # a row gives one variable
    return columns[first], rows


def _without(canonical: Canonical, gone: np.ndarray, given_by: np.ndarray) -> Canonical:
    pattern, (P, q, A, b, c) = canonical.pattern, _blocks(canonical)
    n, m = pattern.n, pattern.m
    matrix: Any = sp.csc_matrix((A[:, [-1]].toarray().ravel(), pattern.A_indices, pattern.A_indptr), shape=(m, n))
    kept, rows = np.setdiff1d(np.arange(n), gone), np.setdiff1d(np.arange(m), given_by)
    factors = sp.csr_matrix(matrix)[given_by]
    own = np.asarray(factors[np.arange(len(gone)), gone]).ravel()

    stays = sp.csr_matrix((np.ones(len(kept)), (kept, np.arange(len(kept)))), shape=(n, len(kept)))
    put = sp.csr_matrix((np.ones(len(gone)), (gone, np.arange(len(gone)))), shape=(n, len(gone)))
    T = sp.csr_matrix(stays - put @ sp.diags_array(1 / own) @ factors[:, kept])
    shift = sp.csr_matrix(put @ sp.diags_array(1 / own) @ b[given_by])  # r = shift [p; 1]

    P_constant = sp.csc_matrix((P[:, [-1]].toarray().ravel(), pattern.P_indices, pattern.P_indptr), shape=(n, n))
    P_constant = P_constant + sp.triu(P_constant, 1).T
    q_constant = q[:, [-1]].toarray().ravel()
    curvature = sp.csr_matrix(put.T @ P_constant @ put)
    positions, P_new = _congruent(pattern, P, T)
    q_new = T.T @ (q + P_constant @ shift)
    A_kept = np.isin(pattern.A_columns, kept) & np.isin(pattern.A_indices, rows)
    c_new = c + sp.csr_matrix(np.where(np.isin(np.arange(n), gone), q_constant, 0.0)[None]) @ shift
    M = sp.csr_matrix(sp.vstack([P_new, q_new, A[A_kept], b[rows], c_new], format="csr"))
    M.sum_duplicates()
    M.eliminate_zeros()

    new_row = np.cumsum(np.isin(np.arange(m), rows)) - 1
    size = len(kept)
    smaller = Pattern(
        size,
        len(rows),
        positions % size,
        np.searchsorted(positions, np.arange(size + 1) * size),
        new_row[pattern.A_indices[A_kept]],
        np.concatenate([[0], np.cumsum(np.bincount(pattern.A_columns[A_kept], minlength=n)[kept])]),
        _fewer(pattern.cone, len(gone)),
    )
    R = sp.csr_matrix(sp.hstack([canonical.R[:, kept], canonical.R[:, n + rows]], format="csr"))
    return replace(canonical, pattern=smaller, M=M, R=R, offsets=sp.csr_matrix(put.T @ shift), curvature=curvature)


def _blocks(canonical: Canonical) -> list[Any]:
    """The rows of M that give P, q, A, b and c."""
    pattern = canonical.pattern
    edges = np.cumsum([0, pattern.nnzP, pattern.n, pattern.nnzA, pattern.m, 1])
    return [canonical.M[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]


def _constant(rows: Matrix) -> np.ndarray:
    """Which rows of M depend on no parameter."""
    return np.diff(sp.csr_matrix(rows[:, :-1]).indptr) == 0


def _congruent(pattern: Pattern, P: Matrix, T: Matrix) -> tuple[np.ndarray, Matrix]:
    """The entries of the upper triangle of T'PT, column by column, and the rows of M that give them; T has at most one entry per row."""
    target, factor = np.full(pattern.n, -1), np.zeros(pattern.n)
    filled = np.diff(T.indptr) > 0
    target[filled], factor[filled] = T.indices, T.data
    i, j = pattern.P_indices, pattern.P_columns
    left, right = target[i], target[j]
    weight = factor[i] * factor[j] * np.where((left == right) & (i != j), 2.0, 1.0)
    alive = np.flatnonzero(weight)
    position = np.maximum(left, right).astype(np.int64) * T.shape[1] + np.minimum(left, right)
    positions, place = np.unique(position[alive], return_inverse=True)
    return positions, sp.csr_matrix((weight[alive], (place.ravel(), alive)), shape=(len(positions), pattern.nnzP)) @ P


def _fewer(cone: Product, count: int) -> Product:
    """The cone without ``count`` of its zero rows."""
    cones = []
    for part in cone.cones:
        if isinstance(part, Zero):
            drop = min(part.dim, count)
            count -= drop
            part = Zero(part.dim - drop)
        if part.dim:
            cones.append(part)
    return Product(tuple(cones))
