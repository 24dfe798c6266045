"""Rows of a batch and blocks of lanes: (rows, entries) arrays gathered into (entries, LANES) and back, and `ldl` for rows."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np

from cvxlayers.kernels.lanes import LANES, Compiled, aligned, compiled, inner, store
from cvxlayers.kernels.ldl import Factors, factor, refine
from cvxlayers.kernels.symbolic import Symbolic
from cvxlayers.kernels.threads import run
from cvxlayers.kernels.turned import contiguous, turn_in, turn_out


@inner
def gather(source: Compiled, block: Compiled, target: Compiled) -> None:
    """target[k, j] = source[LANES * block + j, k]; lanes beyond the last row repeat it. source (rows, entries), target (entries, LANES)."""
    rows, entries = source.shape
    turned = entries - entries % LANES if contiguous(source) and LANES * (block + 1) <= rows else 0
    for k in range(0, turned, LANES):
        turn_in(source, LANES * block, k, target)
    for j in range(target.shape[1]):  # LANES: a number that the compiler knew would be eight loops
        row = LANES * block + j
        row = row if row < rows else rows - 1
        for k in range(turned, entries):
            target[k, j] = source[row, k]


@inner
def gather_at(source: Compiled, block: Compiled, places: Compiled, target: Compiled) -> None:
    """target[places[k], j] = source[LANES * block + j, k], as `gather`."""
    rows, entries = source.shape
    for j in range(target.shape[1]):
        row = LANES * block + j
        row = row if row < rows else rows - 1
        for k in range(entries):
            target[places[k], j] = source[row, k]


@inner
def scatter(source: Compiled, block: Compiled, target: Compiled) -> None:
    """target[LANES * block + j, k] = source[k, j] for the rows that exist; source (entries, LANES), target (rows, entries)."""
    rows, entries = target.shape
    turned = entries - entries % LANES if contiguous(target) and LANES * (block + 1) <= rows else 0
    for k in range(0, turned, LANES):
        turn_out(source, LANES * block, k, target)
    for j in range(source.shape[1]):
        if LANES * block + j < rows:
            for k in range(turned, entries):
                target[LANES * block + j, k] = source[k, j]


def blocks_of(rows: int) -> int:
    """The number of blocks of LANES rows."""
    return -(-rows // LANES)


def pieces(*entries: int) -> tuple[np.ndarray, ...]:
    """As `aligned` for each number of entries, one after the other in one array: making many costs more than small kernels take."""
    ends = list(accumulate(entries, initial=0))
    whole = aligned(ends[-1])
    return tuple(whole[first:last] for first, last in pairwise(ends))


def solve_rows(
    symbolic: Symbolic, values: np.ndarray, rhs: np.ndarray, shift: float, *, tiny: float = 1e-14, large: float = 1e-7,
    most: int = 10, goal: float = 1e-14, jobs: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Solve K z = rhs for every row: values (rows, nnz), rhs (rows, N) -> z (rows, N), error (rows,), the largest |rhs - K z|.

    Every row is factored with the regularizations of `ldl.factor` and refined as `ldl.refine` says; its result depends on no other row.
    """
    values, rhs = np.ascontiguousarray(values), np.ascontiguousarray(rhs)
    z, error = np.empty_like(rhs), np.empty((len(rhs), 1))

    def task(first: int, last: int) -> None:
        size = rhs.shape[1]
        memory = Factors.of(symbolic), aligned(values.shape[1]), *(aligned(size) for _ in range(4)), aligned(1)
        _solve_blocks(symbolic, first, last, values, rhs, shift, tiny, large, most, goal, memory, z, error)

    run(task, blocks_of(len(rhs)), jobs)
    return z, error[:, 0]


@compiled
def _solve_blocks(
    symbolic: Compiled, first: Compiled, last: Compiled, values: Compiled, rhs: Compiled, shift: Compiled, tiny: Compiled,
    large: Compiled, most: Compiled, goal: Compiled, memory: Compiled, z: Compiled, error: Compiled,
) -> None:  # fmt: skip
    factors, numbers, right, found, left, step, worst = memory
    for block in range(first, last):
        gather(values, block, numbers)
        gather(rhs, block, right)
        factor(symbolic, numbers, shift, tiny, large, factors)
        store(worst, 0, refine(symbolic, numbers, factors, right, found, left, step, most, goal, 0.0))
        scatter(found, block, z)
        scatter(worst, block, error)
