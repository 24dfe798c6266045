"""A batch of cone programs in blocks of lanes: rows in, rows out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cvxlayers.kernels.interior import solve_blocks
from cvxlayers.kernels.ldl import Factors
from cvxlayers.kernels.memory import Memory, Options
from cvxlayers.kernels.nonnegative import Linear
from cvxlayers.kernels.rows import blocks_of
from cvxlayers.kernels.second_order import SecondOrder
from cvxlayers.kernels.semidefinite import Semidefinite
from cvxlayers.kernels.system import Layout
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
            self.three_dimensional and ThreeDimensional(*self.three_dimensional),
            self.semidefinite and Semidefinite.of(*self.semidefinite),
        )


def solve_programs(
    layout: Layout, cones: Cones, options: Options, jobs: int, P: np.ndarray, q: np.ndarray, A: np.ndarray, b: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Solve P (rows, nnzP), q (rows, n), A (rows, nnzA), b (rows, m): returns x, z, s and (status, iterations, error), (rows, 3).

    P, q, A and b may have one row, which then serves all.
    """
    system = layout.system
    found = np.empty((rows, system.n)), np.empty((rows, system.m)), np.empty((rows, system.m)), np.empty((rows, 3))

    rows_of = (P, q, A, b, layout.P_entries, layout.A_entries, *found)

    def task(first: int, last: int) -> None:
        kkt = layout.symbolic, Factors.of(layout.symbolic)
        solve_blocks(first, last, system, kkt, options, cones.degree, Memory.of(system), rows_of, *cones.memory())

    run(task, blocks_of(rows), jobs)
    return found
