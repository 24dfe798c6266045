"""Symmetric systems K z = r of one pattern, LANES rows at a time: equilibrate, factor, refine, measure.

K is quasi-definite up to a shift of its pivots (`cvxlayers.kkt` says why). Each row is scaled by itself: r by its largest entry, K by a
diagonal e that brings the largest entry of every column of diag(e) K diag(e) near one (Ruiz, 2001). The shift is removed by iterative
refinement in the scaled coordinates; the residual that is reported is that of K and r as given.

Rows whose matrices repeat with a period - a Jacobian asks for every gradient of the same solution, or only r depends on the parameters -
share factorizations: that is bitwise the same, for a lane does what it would have done anyway.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cvxlayers.kernels.lanes import LANES, Compiled, aligned, compiled, full, inner, larger, load, select, some, sqrt, store
from cvxlayers.kernels.ldl import Factors, factor, norm, refine, residual
from cvxlayers.kernels.symbolic import Symbolic
from cvxlayers.kernels.threads import run

SCALINGS, MORE, EVEN = 2, 8, 16.0
"""Passes of an equilibration; while the largest entry of some column is farther than EVEN from one more follow, up to MORE in all."""
SMALL = 1 << 13  # blocks times entries of K and L up to which one thread is quicker than two: about half a millisecond of work
TINY = 1e-14  # a pivot below this, in the scaled coordinates, is replaced by the shift


class Systems:
    """The systems of one pattern, which `cvxlayers.kernels.ldl.analyze` has looked at."""

    def __init__(self, symbolic: Symbolic) -> None:
        self.size, self.nnz, self.symbolic = len(symbolic.permutation), len(symbolic.indices), symbolic
        self.factored = 0  # blocks factored by the last call
        self._spare: list[Any] = []  # memory of one thread at a time; pop and append are atomic

    def solve(
        self, values: np.ndarray, rhs: np.ndarray, shift: float, most: int, goal: float, jobs: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Solve K z = rhs for every row: values (rows, nnz), rhs (rows, N) -> z (rows, N) and figures (rows, 3).

        The figures: |K z - rhs| / |rhs| in the Euclidean norm, zero where rhs is zero; the largest |z| / |rhs| and the largest |K|, in
        the maximum norm. Whatever is not finite stays in its row.
        """
        z, figures, counts = np.empty_like(rhs), np.empty((len(rhs), 3)), []
        repeated = period(values) if len(values) != 1 else 1  # one row: no kernel is compiled
        blocks = arranged(len(rhs), repeated)

        def task(first: int, last: int) -> None:
            try:
                memory = self._spare.pop()
            except IndexError:
                vectors = (aligned(self.size) for _ in range(5))
                memory = (Factors.of(self.symbolic), aligned(self.nnz), aligned(self.nnz), *vectors, aligned(3))
            counts.append(_solve(self.symbolic, blocks[first:last], repeated, values, rhs, shift, most, goal, memory, z, figures))
            self._spare.append(memory)

        small = len(blocks) * (self.nnz + len(self.symbolic.sources)) < SMALL
        run(task, len(blocks), 1 if small else jobs)
        self.factored = sum(counts)
        return z, figures


@lru_cache(maxsize=64)
def arranged(rows: int, repeated: int) -> np.ndarray:
    """Which rows share a block, (blocks, LANES), for matrices that repeat after ``repeated`` rows; lanes left over take the last row.

    Blocks that stand together meet the same matrices: the same lanes of the period again and again, or one matrix in all lanes.

    >>> arranged(10, 10).tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 9, 9, 9, 9, 9, 9]]
    >>> arranged(4, 2)[:, :3].tolist()
    [[0, 2, 2], [1, 3, 3]]
    """
    if repeated == rows:
        return np.minimum(np.arange(-(-rows // LANES) * LANES, dtype=np.int32), rows - 1).reshape(-1, LANES)
    times = rows // repeated
    if repeated < LANES:
        along = np.minimum(np.arange(-(-times // LANES) * LANES), times - 1).reshape(1, -1, LANES)
        blocks = along * repeated + np.arange(repeated).reshape(-1, 1, 1)
    else:
        across = np.minimum(np.arange(-(-repeated // LANES) * LANES), repeated - 1).reshape(-1, 1, LANES)
        blocks = across + repeated * np.arange(times).reshape(1, -1, 1)
    return np.ascontiguousarray(blocks.reshape(-1, LANES), dtype=np.int32)


@compiled
def period(values: Compiled) -> Compiled:
    """The smallest number of rows after which all rows of values (rows, nnz) repeat bitwise; the number of rows if they do not.

    >>> int(period(np.array([[1.0], [2.0], [1.0], [2.0]]))), int(period(np.array([[1.0], [2.0], [1.0]])))
    (2, 3)
    """
    rows, entries = values.shape
    for candidate in range(1, rows // 2 + 1):
        if rows % candidate == 0:
            same = True
            for r in range(candidate, rows):
                for k in range(entries):
                    if values[r, k] != values[r - candidate, k]:
                        same = False
                        break
                if not same:
                    break
            if same:
                return candidate
    return rows


@inner
def gather_rows(source: Compiled, rows: Compiled, repeated: Compiled, target: Compiled) -> None:
    """target[k, j] = source[rows[j] % repeated, k]."""
    for j in range(len(rows)):  # LANES: a number that the compiler knew would be eight loops
        row = rows[j] % repeated
        for k in range(source.shape[1]):
            target[k, j] = source[row, k]


@inner
def scatter_rows(source: Compiled, rows: Compiled, target: Compiled) -> None:
    """target[rows[j], k] = source[k, j]."""
    for j in range(len(rows)):
        for k in range(target.shape[1]):
            target[rows[j], k] = source[k, j]


@inner
def _alike(one: Compiled, other: Compiled, repeated: Compiled) -> Compiled:
    for j in range(len(one)):
        if one[j] % repeated != other[j] % repeated:
            return False
    return True


@compiled
def _solve(
    symbolic: Compiled, blocks: Compiled, repeated: Compiled, values: Compiled, rhs: Compiled, shift: Compiled, most: Compiled,
    goal: Compiled, memory: Compiled, z: Compiled, figures: Compiled,
) -> Compiled:  # fmt: skip
    """Solve the blocks, (blocks, LANES) rows; how many of them were factored."""
    factors, numbers, scaled, right, scale, found, left, step, measured = memory
    size, factored, rows = len(scale), 0, len(rhs)
    for block in range(len(blocks)):
        here = blocks[block]
        if block == 0 or not _alike(here, blocks[block - 1], repeated):
            gather_rows(values, here, repeated, numbers)
            equilibrate(symbolic, numbers, scaled, scale, left)
            factor(symbolic, scaled, shift, TINY, shift, factors)
            factored += 1
        gather_rows(rhs, here, rows, right)
        peak = norm(right)
        peak = select(peak == 0.0, 1.0, peak)
        for j in range(size):
            store(right, j, load(right, j) / peak * load(scale, j))
        refine(symbolic, scaled, factors, right, found, left, step, most, goal, 0.0)

        gather_rows(rhs, here, rows, right)
        for j in range(size):
            store(right, j, load(right, j) / peak)
            store(found, j, load(found, j) * load(scale, j))
        residual(symbolic, numbers, found, right, left)
        wrong, whole = full(0.0), full(0.0)
        for j in range(size):
            wrong += load(left, j) * load(left, j)
            whole += load(right, j) * load(right, j)
        store(measured, 0, sqrt(wrong) / select(whole == 0.0, 1.0, sqrt(whole)))
        store(measured, 1, norm(found))
        store(measured, 2, norm(numbers))
        for j in range(size):
            store(found, j, load(found, j) * peak)
        scatter_rows(found, here, z)
        scatter_rows(measured, here, figures)
    return factored


@inner
def equilibrate(symbolic: Compiled, numbers: Compiled, scaled: Compiled, scale: Compiled, largest: Compiled) -> None:
    """scale (N, LANES) = e and scaled = diag(e) K diag(e) for K = numbers (nnz, LANES); ``largest`` (N, LANES) is to work in."""
    indices, indptr = symbolic.indices, symbolic.indptr
    size = len(indptr) - 1
    for j in range(size):
        store(scale, j, 1.0)
    for p in range(len(indices)):
        store(scaled, p, load(numbers, p))
    for taken in range(MORE):
        for j in range(size):
            store(largest, j, 0.0)
        for j in range(size):
            own = load(largest, j)
            for p in range(indptr[j], indptr[j + 1]):
                i, value = indices[p], abs(load(scaled, p))
                own = larger(value, own)
                if i != j:
                    store(largest, i, larger(value, load(largest, i)))
            store(largest, j, own)
        uneven = full(0.0) < 1.0
        if taken >= SCALINGS:  # a lane that is even stays as it is, whatever its neighbours need
            uneven = full(0.0) > 1.0
            for j in range(size):
                own = load(largest, j)
                uneven = uneven | (own > EVEN) | ((own > 0.0) & (own < 1.0 / EVEN))
            if not some(uneven):
                break
        for j in range(size):
            own = load(largest, j)
            own = 1.0 / sqrt(select(uneven & (own > 0.0), own, 1.0))
            store(largest, j, own)
            store(scale, j, load(scale, j) * own)
        for j in range(size):
            for p in range(indptr[j], indptr[j + 1]):
                store(scaled, p, load(scaled, p) * load(largest, indices[p]) * load(largest, j))
