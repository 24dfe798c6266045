"""The linear system of every step, K = [[P, A'], [A, -H]], its pattern and its products.

The rows of A lie in cones; H is the square of the cones' scaling (`interior`). It is diagonal in linear rows and a dense block where a
cone is small. A second-order cone of more than `DENSE` rows has H = eta^2 (diag(d, 1, ..., 1) + uu' - vv') and costs two columns
more in place of a dense block:

    [-eta^2 diag(d, 1, ..., 1)   eta v   eta u]
    [        eta v'               -1        0 ]     whose elimination leaves -H.
    [        eta u'                0        1 ]

An exponential or power cone has H = B + ww', where ww' is so much larger near the boundary that B would be lost in the sum: it costs one
column more, [-B, w; w', 1].

A column of K belongs to x (P above the diagonal), to a row of A (that row, then H above the diagonal), or to such an expansion, in this
order. So the rows of A and the columns of P are read from K itself, by compressed columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import Compiled, full, inner, load, store
from cvxlayers.kernels.symbolic import Symbolic, analyze

EXTRA_SIGNS = ([], [1.0], [-1.0, 1.0])
"""The signs of the pivots of a cone's extra columns: none, one for ww' beside a dense block, two for an expansion."""
DENSE = 5
"""The most rows of a second-order cone whose H is stored as it is."""


class System(NamedTuple):
    """K of one pattern of programs, as kernels read it: ``indices, indptr`` its upper triangle by columns; ``quadratic``: P has entries.

    ``A_ends`` (m,): where the entries of A end in the column of each row. ``blocks`` (blocks, 2) the rows [first, end) of every cone that
    is not linear. ``H_entries`` names the entries of dense blocks by columns of their upper triangle, then w and 1 of those that have them;
    and of expansions v, -1, u, 1.
    """

    n: int
    m: int
    quadratic: bool
    indices: np.ndarray
    indptr: np.ndarray
    A_ends: np.ndarray
    blocks: np.ndarray
    H_entries: np.ndarray


@dataclass(frozen=True)
class Layout:
    """A System, the order in which its K is factored, where P (nnzP,) and A (nnzA,) stand in K, and ``block_entries`` (blocks,), the first
    number of every block in ``H_entries``.
    """

    system: System
    symbolic: Symbolic
    P_entries: np.ndarray
    A_entries: np.ndarray
    block_entries: np.ndarray

    @staticmethod
    def of(
        n: int, m: int, P: tuple[np.ndarray, np.ndarray], A: tuple[np.ndarray, np.ndarray], blocks: list[tuple[int, int, int]]
    ) -> Layout:
        """From (indices, indptr) of P's upper triangle and of A by columns, and (first row, rows, extra columns) of every block."""
        P_columns, A_columns = (np.repeat(np.arange(n), np.diff(indptr)) for _, indptr in (P, A))
        rows, columns = [P[0], A_columns, np.arange(n + m)], [P_columns, n + A[0], np.arange(n + m)]
        size, H, signs = n + m, [], [np.ones(n), np.full(m, -1.0)]
        for first, count, extra in blocks:
            inside = n + first + np.arange(count)
            column, row = (inside[index] for index in np.tril_indices(count if extra < 2 else 0))
            more = size + np.arange(extra)
            H.append((np.r_[row, *(np.r_[inside, own] for own in more)], np.r_[column, np.repeat(more, count + 1)]))
            signs.append(EXTRA_SIGNS[extra])
            size += extra
        rows, columns = (np.concatenate([*part, *(block[side] for block in H)]) for side, part in enumerate((rows, columns)))
        keys, place = np.unique(columns.astype(np.int64) * size + rows, return_inverse=True)
        indptr = np.searchsorted(keys // size, np.arange(size + 1))
        nnzP, nnzA = len(P[0]), len(A[0])
        system = System(
            n,
            m,
            nnzP > 0,
            (keys % size).astype(np.intp),
            indptr.astype(np.intp),
            (indptr[n : n + m] + np.bincount(A[0], minlength=m)).astype(np.intp),
            np.array([(first, first + count) for first, count, _ in blocks], dtype=np.intp).reshape(-1, 2),
            place[nnzP + nnzA + n + m :].astype(np.intp),
        )
        starts = np.cumsum([0, *(len(block[0]) for block in H)])[:-1].astype(np.intp)
        return Layout(system, analyze(keys % size, indptr, np.concatenate(signs)), place[:nnzP], place[nnzP : nnzP + nnzA], starts)


@inner
def clear(v: Compiled) -> None:
    """v = 0."""
    for i in range(len(v)):
        store(v, i, 0.0)


@inner
def dot(a: Compiled, b: Compiled) -> Compiled:
    """The inner product in every lane."""
    total = full(0.0)
    for i in range(len(a)):
        total += load(a, i) * load(b, i)
    return total


@inner
def products(system: Compiled, values: Compiled, xz: Compiled, Px: Compiled, Az: Compiled, Ax: Compiled) -> None:
    """Px = P x, Az = A'z, Ax = A x for xz = (x, z, ...)."""
    n, m, indices, indptr = system.n, system.m, system.indices, system.indptr
    clear(Px)
    clear(Az)
    for j in range(n):
        last = indptr[j + 1] - 1
        own = load(xz, j)
        total = load(values, last) * own
        for p in range(indptr[j], last):
            i, value = indices[p], load(values, p)
            store(Px, i, load(Px, i) + value * own)
            total += value * load(xz, i)
        store(Px, j, load(Px, j) + total)
    for i in range(m):
        own, total = load(xz, n + i), full(0.0)
        for p in range(indptr[n + i], system.A_ends[i]):
            j, value = indices[p], load(values, p)
            store(Az, j, load(Az, j) + value * own)
            total += value * load(xz, j)
        store(Ax, i, total)
