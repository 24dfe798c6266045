"""A batch of cone programs in blocks of lanes: rows in, rows out."""

from __future__ import annotations

import numpy as np

from cvxlayers.kernels.interior import Memory, Options, solve_block
from cvxlayers.kernels.lanes import LANES, Compiled, compiled
from cvxlayers.kernels.nonnegative import Linear
from cvxlayers.kernels.rows import blocks_of, gather, scatter
from cvxlayers.kernels.system import System, clear
from cvxlayers.kernels.threads import run


def solve_programs(
    system: System, linear: Linear, degree: float, options: Options, jobs: int, P: np.ndarray, q: np.ndarray, A: np.ndarray, b: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Solve P (rows, nnzP), q (rows, n), A (rows, nnzA), b (rows, m): returns x, z, s and (status, iterations), (rows, 2).

    P and A may have one row, which then serves all.
    """
    rows = len(q)
    found = np.empty((rows, system.n)), np.empty((rows, system.m)), np.empty((rows, system.m)), np.empty((rows, 2))

    def task(first: int, last: int) -> None:
        _solve_blocks(first, last, system, options, degree, Memory.of(system), P, q, A, b, *found, linear)

    run(task, blocks_of(rows), jobs)
    return found


@compiled
def _gather_at(source: Compiled, block: Compiled, places: Compiled, target: Compiled) -> None:
    """target[places[k], j] = source[LANES * block + j, k]; the last row stands for all beyond it."""
    rows, entries = source.shape
    for j in range(LANES):
        row = min(LANES * block + j, rows - 1)
        for k in range(entries):
            target[places[k], j] = source[row, k]


@compiled
def _solve_blocks(
    first: Compiled, last: Compiled, system: Compiled, options: Compiled, degree: Compiled, memory: Compiled, P: Compiled, q: Compiled,
    A: Compiled, b: Compiled, x: Compiled, z: Compiled, s: Compiled, report: Compiled, linear: Compiled,
) -> None:  # fmt: skip
    for block in range(first, last):
        clear(memory.values)
        _gather_at(P, block, system.P_entries, memory.values)
        _gather_at(A, block, system.A_entries, memory.values)
        gather(q, block, memory.q)
        gather(b, block, memory.b)
        solve_block(system, options, degree, memory, linear)
        scatter(memory.x_found, block, x)
        scatter(memory.z_found, block, z)
        scatter(memory.s_found, block, s)
        scatter(memory.report, block, report)
