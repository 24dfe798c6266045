"""How rows of A travel to a solver and back: index maps made once per pattern, shared by every row of every batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import scipy.sparse as sp

from cvxlayers.cones import Product, Semidefinite, Zero
from cvxlayers.cones.base import Cone
from cvxlayers.errors import Status
from cvxlayers.program import Pattern, Solution


def blocks(cone: Product) -> Iterator[tuple[Cone, np.ndarray]]:
    """The cones that are not empty, each with the numbers of its rows."""
    start = 0
    for block in cone.cones:
        if block.dim:
            yield block, np.arange(start, start + block.dim)
        start += block.dim


def read_only(values: np.ndarray) -> np.ndarray:
    """Contiguous rows, one where all are the same memory; read-only, whatever they were, lest kernels compile once for either kind."""
    values = np.ascontiguousarray(values[:1] if len(values) > 1 and values.strides[0] == 0 else values).view()
    values.setflags(write=False)
    return values


def lower_triangle(order: int) -> np.ndarray:
    """Where a packed lower triangle (column by column, as SCS wants it) finds its entries in our upper one.

    Entry (r, c), r >= c, of the lower triangle equals (c, r) of the upper one, which stands at r (r + 1) / 2 + c.

    >>> lower_triangle(3).tolist()
    [0, 1, 3, 2, 4, 5]
    """
    columns, rows = np.triu_indices(order)
    return rows * (rows + 1) // 2 + columns


@lru_cache(maxsize=256)
def scs_rows(pattern: Pattern) -> np.ndarray:
    """Our row numbers in the order in which SCS stacks them: semidefinite blocks by lower triangle, all else as it is."""
    rows = [where[lower_triangle(block.order)] if isinstance(block, Semidefinite) else where for block, where in blocks(pattern.cone)]
    return np.concatenate([np.arange(0), *rows])


@lru_cache(maxsize=256)
def zero_rows(pattern: Pattern) -> np.ndarray:
    """(m,) bool: the equations among the rows."""
    zero = np.zeros(pattern.m, dtype=bool)
    for block, rows in blocks(pattern.cone):
        zero[rows] = isinstance(block, Zero)
    return zero


def matrix(values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]) -> sp.csc_matrix:
    """A scipy matrix that already knows that its rows are sorted and unique, so that nobody checks again, row after row."""
    made = sp.csc_matrix((values, np.array(indices), np.array(indptr)), shape=shape)
    made.has_sorted_indices = True
    made.has_canonical_format = True
    return made


def symmetric(pattern: Pattern) -> sp.csc_matrix:
    """The upper triangle of P, with zeros for values."""
    return matrix(np.zeros(pattern.nnzP), pattern.P_indices, pattern.P_indptr, (pattern.n, pattern.n))


def pick(pattern: Pattern, rows: np.ndarray) -> tuple[np.ndarray, sp.csc_matrix]:
    """(take, made): the given rows of A, in that order, are ``made`` with the values A[take]."""
    numbered = sp.csc_matrix((np.arange(pattern.nnzA), pattern.A_indices, pattern.A_indptr), shape=(pattern.m, pattern.n))
    chosen = numbered[rows]
    chosen.sort_indices()
    return chosen.data, matrix(np.zeros(chosen.nnz), chosen.indices, chosen.indptr, (len(rows), pattern.n))


def zeros(rows: int, n: int) -> sp.csc_matrix:
    """A matrix of zeros, one of them stored: some solvers break on a matrix without a row or without an entry."""
    return matrix(np.zeros(1), np.zeros(1, dtype=np.int32), np.minimum(np.arange(n + 1, dtype=np.int32), 1), (rows, n))


def filled(made: sp.csc_matrix, values: np.ndarray) -> sp.csc_matrix:
    """``made`` with other values, its index arrays shared (scipy's constructor would validate them again)."""
    other = copy.copy(made)
    other.data = values
    return other


def blank(pattern: Pattern, rows: int) -> Solution:
    """A Solution of ``rows`` rows that all have failed, to be filled in place."""
    return Solution(
        x=np.full((rows, pattern.n), np.nan),
        y=np.full((rows, pattern.m), np.nan),
        s=np.full((rows, pattern.m), np.nan),
        status=np.full(rows, Status.NUMERICAL_ERROR, dtype=np.int8),
        iterations=np.zeros(rows, dtype=np.int32),
    )
