"""LDL' factorization of symmetric quasi-definite matrices of one sparse pattern, LANES matrices at a time.

K = [[E, B'], [B, -F]] with E, F positive definite is quasi-definite: P K P' = L D L' exists for every permutation P, and the sign of
every pivot is known beforehand (Vanderbei, "Symmetric quasidefinite matrices", SIAM J. Optim. 1995). So the permutation is chosen once,
for little fill, by `analyze`, and serves every matrix of the pattern. Each lane is a matrix of its own: no operation crosses lanes, and a
NaN or an overflow stays in its lane.

A matrix is the upper triangle in compressed column order with sorted rows and a full diagonal; its numbers are an array (nnz, LANES).
`factor` adds ``shift`` times the known sign to every pivot (static regularization, which also makes a semidefinite E or F definite), and
replaces a pivot whose magnitude falls below ``tiny``, or whose sign is wrong, by ``large`` times its sign (dynamic regularization);
`refine` removes the effect of both, where the matrix is regular.

>>> import numpy as np
>>> from cvxlayers.kernels.rows import solve_rows
>>> symbolic = analyze(np.array([0, 0, 1]), np.array([0, 1, 3]), np.array([1.0, -1.0]))  # [[a, b], [b, c]]
>>> z, error = solve_rows(symbolic, np.array([[2.0, 1.0, -1.0]]), np.array([[3.0, 0.0]]), 1e-8)
>>> z.round(12).tolist()
[[1.0, 1.0]]
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import Compiled, aligned, compiled, full, inner, larger, load, select, some, store
from cvxlayers.kernels.ordering import minimum_degree, multiple_minimum_degree


class Symbolic(NamedTuple):
    """What the pattern of K determines; N is its size, position k of the elimination holds row and column ``permutation[k]``.

    ``indices, indptr``: the pattern itself. ``starts, rows, entries``: the strict upper triangle of the permuted matrix by columns, each
    with the number of its entry in the pattern; ``diagonal`` (N,) the entries of the pivots, ``signs`` (N,) theirs, both in the order of
    elimination. ``row_starts, row_columns``: L by rows; ``column_starts, column_rows``: L by columns, without its unit diagonal.
    """

    indices: np.ndarray
    indptr: np.ndarray
    permutation: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    entries: np.ndarray
    diagonal: np.ndarray
    signs: np.ndarray
    row_starts: np.ndarray
    row_columns: np.ndarray
    column_starts: np.ndarray
    column_rows: np.ndarray


class Factors(NamedTuple):
    """The numbers of one factorization and the memory to make it: L (nnz, LANES) by columns, 1/D (N, LANES), work (N, LANES), counts."""

    lower: np.ndarray
    inverse: np.ndarray
    work: np.ndarray
    filled: np.ndarray

    @staticmethod
    def of(symbolic: Symbolic) -> Factors:
        """Memory for one factorization, used by one thread at a time and as often as it likes."""
        size = len(symbolic.permutation)
        work = aligned(size)
        work[:] = 0.0
        return Factors(aligned(len(symbolic.column_rows)), aligned(size), work, np.zeros(size, dtype=np.intp))


def analyze(indices: np.ndarray, indptr: np.ndarray, signs: np.ndarray) -> Symbolic:
    """Choose the order of elimination and find the pattern of L: upper triangle by columns, signs (N,) of the pivots.

    Raises ValueError where the pattern has unsorted rows, entries below the diagonal or a gap on the diagonal.
    """
    indices, indptr, size = np.asarray(indices, dtype=np.intp), np.asarray(indptr, dtype=np.intp), len(indptr) - 1
    columns = np.repeat(np.arange(size), np.diff(indptr))
    last = indices[indptr[1:] - 1] if (np.diff(indptr) > 0).all() else np.full(size, -1)
    if (indices > columns).any() or (np.diff(columns * (size + 1) + indices) <= 0).any() or (last != np.arange(size)).any():
        raise ValueError("the pattern is not an upper triangle by columns with sorted rows and a full diagonal")
    signs = np.asarray(signs, dtype=float)
    permutation, lower = minimum_degree(indices, indptr, signs)
    matrix = _permuted(indices, columns, permutation)
    by_rows = lower.tocsr()
    pattern = tuple(a.astype(np.intp) for a in (by_rows.indptr, by_rows.indices, lower.indptr, lower.indices))
    other = multiple_minimum_degree(indices, indptr, signs)
    if other is not None:
        starts, rows, _ = second = _permuted(indices, columns, other)
        row_starts, column_starts = np.zeros(size + 1, dtype=np.intp), np.zeros(size + 1, dtype=np.intp)
        scratch = np.full((3, size), -1, dtype=np.intp)
        _count_factor(starts, rows, row_starts, column_starts, scratch)
        if _work(column_starts) < _work(pattern[2]):
            row_columns, column_rows = np.empty(row_starts[size], dtype=np.intp), np.empty(column_starts[size], dtype=np.intp)
            _fill_factor(starts, rows, row_starts, row_columns, column_starts, column_rows, scratch)
            permutation, matrix, pattern = other, second, (row_starts, row_columns, column_starts, column_rows)
    diagonal = (indptr[1:] - 1)[permutation]
    return Symbolic(indices, indptr, permutation, *matrix, diagonal, np.ascontiguousarray(signs[permutation]), *pattern)


def _permuted(indices: np.ndarray, columns: np.ndarray, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``starts, rows, entries`` of `Symbolic`."""
    size = len(permutation)
    position = np.empty(size, dtype=np.intp)
    position[permutation] = np.arange(size)
    off = np.flatnonzero(indices != columns)
    one, two = position[indices[off]], position[columns[off]]
    low, high = np.minimum(one, two), np.maximum(one, two)
    order = np.lexsort((low, high))
    return np.searchsorted(high[order], np.arange(size + 1)).astype(np.intp), low[order], off[order]


def _work(column_starts: np.ndarray) -> float:
    """Multiplications to factor and to solve."""
    count = np.diff(column_starts).astype(float)
    return float((count * (count + 3)).sum())


@compiled
def _count_factor(starts: Compiled, rows: Compiled, row_starts: Compiled, column_starts: Compiled, scratch: Compiled) -> None:
    """Where the rows and columns of L begin: row k is what the elimination tree reaches from the entries of column k."""
    size = len(starts) - 1
    for k in range(size):
        scratch[1, k] = k
        for p in range(starts[k], starts[k + 1]):
            i = rows[p]
            while scratch[1, i] != k:
                if scratch[0, i] == -1:
                    scratch[0, i] = k
                row_starts[k + 1] += 1
                column_starts[i + 1] += 1
                scratch[1, i] = k
                i = scratch[0, i]
    for k in range(size):
        row_starts[k + 1] += row_starts[k]
        column_starts[k + 1] += column_starts[k]


@compiled
def _fill_factor(
    starts: Compiled, rows: Compiled, row_starts: Compiled, row_columns: Compiled, column_starts: Compiled, column_rows: Compiled,
    scratch: Compiled,
) -> None:  # fmt: skip
    """The pattern of L by rows and by columns, ascending; ``scratch`` holds the elimination tree."""
    size = len(starts) - 1
    for k in range(size):
        scratch[1, k] = -1
        scratch[2, k] = column_starts[k]
    for k in range(size):
        scratch[1, k] = k
        for p in range(starts[k], starts[k + 1]):
            i = rows[p]
            while scratch[1, i] != k:
                column_rows[scratch[2, i]] = k
                scratch[2, i] += 1
                scratch[1, i] = k
                i = scratch[0, i]
    for k in range(size):
        scratch[2, k] = row_starts[k]
    for i in range(size):
        for p in range(column_starts[i], column_starts[i + 1]):
            k = column_rows[p]
            row_columns[scratch[2, k]] = i
            scratch[2, k] += 1


@inner
def factor(symbolic: Compiled, values: Compiled, shift: Compiled, tiny: Compiled, large: Compiled, factors: Compiled) -> None:
    """Factor the matrices ``values`` (nnz, LANES), row by row of L (up-looking); the regularizations are those of the module."""
    starts, rows, entries = symbolic.starts, symbolic.rows, symbolic.entries
    diagonal, signs = symbolic.diagonal, symbolic.signs
    row_starts, row_columns, column_starts, column_rows = (
        symbolic.row_starts,
        symbolic.row_columns,
        symbolic.column_starts,
        symbolic.column_rows,
    )
    lower, inverse, work, filled = factors.lower, factors.inverse, factors.work, factors.filled
    size = len(diagonal)
    for k in range(size):
        filled[k] = column_starts[k]
    for k in range(size):
        for p in range(starts[k], starts[k + 1]):
            store(work, rows[p], load(values, entries[p]))
        sign = signs[k]
        pivot = load(values, diagonal[k]) + shift * sign
        for r in range(row_starts[k], row_starts[k + 1]):
            i = row_columns[r]
            w = load(work, i)
            store(work, i, 0.0)
            end = filled[i]
            for p in range(column_starts[i], end):
                j = column_rows[p]
                store(work, j, load(work, j) - load(lower, p) * w)
            quotient = w * load(inverse, i)
            pivot = pivot - w * quotient
            store(lower, end, quotient)
            filled[i] = end + 1
        pivot = select(pivot * sign <= tiny, large * sign, pivot)
        store(inverse, k, 1.0 / pivot)


@inner
def solve(symbolic: Compiled, factors: Compiled, z: Compiled) -> None:
    """Solve with the factors in place: z (N, LANES) comes as the right-hand side and leaves as the solution."""
    permutation, column_starts, column_rows = symbolic.permutation, symbolic.column_starts, symbolic.column_rows
    lower, inverse, work = factors.lower, factors.inverse, factors.work
    size = len(permutation)
    for k in range(size):
        store(work, k, load(z, permutation[k]))
    for k in range(size):
        w = load(work, k)
        for p in range(column_starts[k], column_starts[k + 1]):
            j = column_rows[p]
            store(work, j, load(work, j) - load(lower, p) * w)
    for back in range(size):
        k = size - 1 - back
        w = load(work, k) * load(inverse, k)
        for p in range(column_starts[k], column_starts[k + 1]):
            w = w - load(lower, p) * load(work, column_rows[p])
        store(work, k, w)
        store(z, permutation[k], w)
    for k in range(size):
        store(work, k, 0.0)


@inner
def residual(symbolic: Compiled, values: Compiled, z: Compiled, rhs: Compiled, out: Compiled) -> Compiled:
    """out = rhs - K z with the matrices as given, (N, LANES); returns the largest |out| of every lane, NaN where there is one."""
    indices, indptr = symbolic.indices, symbolic.indptr
    size = len(indptr) - 1
    for j in range(size):
        store(out, j, load(rhs, j))
    for j in range(size):
        last = indptr[j + 1] - 1
        own, total = load(z, j), load(out, j) - load(values, last) * load(z, j)
        for p in range(indptr[j], last):
            i, value = indices[p], load(values, p)
            store(out, i, load(out, i) - value * own)
            total = total - value * load(z, i)
        store(out, j, total)
    return norm(out)


@inner
def norm(v: Compiled) -> Compiled:
    """The largest magnitude of every lane, NaN where there is one."""
    largest = full(0.0)
    for j in range(len(v)):
        size = abs(load(v, j))
        largest = select(size <= largest, largest, size + 0.0 * largest)
    return largest


@inner
def refine(
    symbolic: Compiled, values: Compiled, factors: Compiled, rhs: Compiled, z: Compiled, left: Compiled, step: Compiled, most: Compiled,
    goal: Compiled, harmless: Compiled,
) -> Compiled:  # fmt: skip
    """Solve K z = rhs by the factors and at most ``most`` steps of iterative refinement; returns the largest |rhs - K z| of every lane.

    A lane goes on while its residual exceeds ``goal`` times its right-hand side and ``harmless``, and halves in every step, and keeps its
    best z; where no z is finite it is zero. ``left`` and ``step`` are (N, LANES) to work in; ``left`` leaves as rhs - K z of the last step
    tried.
    """
    size = len(symbolic.permutation)
    for j in range(size):
        store(z, j, load(rhs, j))
    solve(symbolic, factors, z)
    error, enough = residual(symbolic, values, z, rhs, left), larger(goal * norm(rhs), harmless)
    going = error > enough
    for _ in range(most):
        if not some(going):
            break
        for j in range(size):
            store(step, j, load(left, j))
        solve(symbolic, factors, step)
        for j in range(size):
            store(step, j, load(z, j) + load(step, j))
        after = residual(symbolic, values, step, rhs, left)
        better = going & (after < error)
        for j in range(size):
            store(z, j, select(better, load(step, j), load(z, j)))
        going = going & (after < 0.5 * error) & (after > enough)
        error = select(better, after, error)
    return error
