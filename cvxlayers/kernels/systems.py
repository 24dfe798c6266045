"""Symmetric systems K z = r of one pattern, LANES rows at a time: equilibrate, factor, refine, measure.

K is quasi-definite up to a shift of its pivots (`cvxlayers.kkt` says why). Each row is scaled by itself: r by its largest entry, K by a
diagonal e that brings the largest entry of every column of diag(e) K diag(e) near one (Ruiz, 2001). The shift is removed by iterative
refinement in the scaled coordinates; the residual that is reported is that of K and r as given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvxlayers.kernels.lanes import Compiled, aligned, compiled, full, larger, load, select, sqrt, store
from cvxlayers.kernels.ldl import Factors, Symbolic, factor, norm, refine, residual
from cvxlayers.kernels.rows import blocks_of, gather, scatter
from cvxlayers.kernels.threads import run

SCALINGS = 2
TINY = 1e-14  # a pivot below this, in the scaled coordinates, is replaced by the shift


class Systems:
    """The systems of one pattern, which `cvxlayers.kernels.ldl.analyze` has looked at."""

    def __init__(self, symbolic: Symbolic) -> None:
        self.size, self.nnz, self.symbolic = len(symbolic.permutation), len(symbolic.indices), symbolic
        self._spare: list[Any] = []  # memory of one thread at a time; pop and append are atomic

    def solve(
        self, values: np.ndarray, rhs: np.ndarray, shift: float, most: int, goal: float, jobs: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Solve K z = rhs for every row: values (rows, nnz), rhs (rows, N) -> z (rows, N) and figures (rows, 3).

        The figures: |K z - rhs| / |rhs| in the Euclidean norm, zero where rhs is zero; the largest |z| / |rhs| and the largest |K|, in
        the maximum norm. Whatever is not finite stays in its row.
        """
        z, figures = np.empty_like(rhs), np.empty((len(rhs), 3))

        def task(first: int, last: int) -> None:
            try:
                memory = self._spare.pop()
            except IndexError:
                vectors = (aligned(self.size) for _ in range(5))
                memory = (Factors.of(self.symbolic), aligned(self.nnz), aligned(self.nnz), *vectors, aligned(3))
            _solve(self.symbolic, first, last, values, rhs, shift, most, goal, memory, z, figures)
            self._spare.append(memory)

        run(task, blocks_of(len(rhs)), jobs)
        return z, figures


@compiled
def _solve(
    symbolic: Compiled, first: Compiled, last: Compiled, values: Compiled, rhs: Compiled, shift: Compiled, most: Compiled, goal: Compiled,
    memory: Compiled, z: Compiled, figures: Compiled,
) -> None:  # fmt: skip
    factors, numbers, scaled, right, scale, found, left, step, measured = memory
    size = len(scale)
    for block in range(first, last):
        gather(values, block, numbers)
        gather(rhs, block, right)
        peak = norm(right)
        peak = select(peak == 0.0, 1.0, peak)
        equilibrate(symbolic, numbers, scaled, scale, left)
        for j in range(size):
            store(right, j, load(right, j) / peak * load(scale, j))
        factor(symbolic, scaled, shift, TINY, shift, factors)
        refine(symbolic, scaled, factors, right, found, left, step, most, goal)

        gather(rhs, block, right)
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
        scatter(found, block, z)
        scatter(measured, block, figures)


@compiled
def equilibrate(symbolic: Compiled, numbers: Compiled, scaled: Compiled, scale: Compiled, largest: Compiled) -> None:
    """scale (N, LANES) = e and scaled = diag(e) K diag(e) for K = numbers (nnz, LANES); ``largest`` (N, LANES) is to work in."""
    indices, indptr = symbolic.indices, symbolic.indptr
    size = len(indptr) - 1
    for j in range(size):
        store(scale, j, 1.0)
    for p in range(len(indices)):
        store(scaled, p, load(numbers, p))
    for _ in range(SCALINGS):
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
        for j in range(size):
            own = load(largest, j)
            own = 1.0 / sqrt(select(own > 0.0, own, 1.0))
            store(largest, j, own)
            store(scale, j, load(scale, j) * own)
        for j in range(size):
            for p in range(indptr[j], indptr[j + 1]):
                store(scaled, p, load(scaled, p) * load(largest, indices[p]) * load(largest, j))
