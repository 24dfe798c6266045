"""A batch of cone programs in blocks of lanes: rows in, rows out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cvxlayers.kernels.interior import solve_block
from cvxlayers.kernels.lanes import LANES, Compiled, compiled, vector
from cvxlayers.kernels.memory import REPORT, S_FOUND, VALUES, X_FOUND, Z_FOUND, B, Memory, Options, Q
from cvxlayers.kernels.nonnegative import Linear
from cvxlayers.kernels.rows import blocks_of, gather, scatter
from cvxlayers.kernels.second_order import SecondOrder
from cvxlayers.kernels.semidefinite import Semidefinite
from cvxlayers.kernels.system import System, clear
from cvxlayers.kernels.threads import run
from cvxlayers.kernels.three_dimensional import ThreeDimensional


class Cones(NamedTuple):
    """The cones of a pattern: their numbers of complementarity products, the linear rows, and index arrays of each other kind or None."""

    degree: float
    linear: Linear
    second_order: tuple[np.ndarray, ...] | None
    three_dimensional: tuple[np.ndarray, ...] | None
    semidefinite: tuple[np.ndarray, ...] | None

    def memory(self) -> tuple[Any, ...]:
        """What kernels take, with memory for one thread."""
        return (
            self.linear,
            self.second_order and SecondOrder.of(*self.second_order),
            self.three_dimensional and ThreeDimensional.of(*self.three_dimensional),
            self.semidefinite and Semidefinite.of(*self.semidefinite),
        )


def solve_programs(
    system: System, cones: Cones, options: Options, jobs: int, P: np.ndarray, q: np.ndarray, A: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Solve P (rows, nnzP), q (rows, n), A (rows, nnzA), b (rows, m): returns x, z, s and (status, iterations), (rows, 2).

    P and A may have one row, which then serves all.
    """
    rows = len(q)
    found = np.empty((rows, system.n)), np.empty((rows, system.m)), np.empty((rows, system.m)), np.empty((rows, 2))

    def task(first: int, last: int) -> None:
        _solve_blocks(first, last, system, options, cones.degree, Memory.of(system), P, q, A, b, *found, *cones.memory())

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
    A: Compiled, b: Compiled, x: Compiled, z: Compiled, s: Compiled, report: Compiled, linear: Compiled, so: Compiled,
    three: Compiled, sd: Compiled,
) -> None:  # fmt: skip
    for block in range(first, last):
        clear(vector(memory, VALUES))
        _gather_at(P, block, system.P_entries, vector(memory, VALUES))
        _gather_at(A, block, system.A_entries, vector(memory, VALUES))
        gather(q, block, vector(memory, Q))
        gather(b, block, vector(memory, B))
        solve_block(system, options, degree, memory, linear, so, three, sd)
        scatter(vector(memory, X_FOUND), block, x)
        scatter(vector(memory, Z_FOUND), block, z)
        scatter(vector(memory, S_FOUND), block, s)
        scatter(vector(memory, REPORT), block, report)
