"""What the method works on: options, and the memory of one block of programs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import aligned
from cvxlayers.kernels.system import System

RUNNING, SOLVED, STALLED, PRIMAL_INFEASIBLE, DUAL_INFEASIBLE, LIMIT, FAILED = -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 7.0
"""What became of a lane; all but RUNNING are codes of `cvxlayers.errors.Status`."""

VALUES, Q, B, D, E, XZ, S, CONSTANT, STEP, RHS, LEFT, TRIAL, PX, AZ, AX, DS, OFFSET, X_FOUND, Z_FOUND, S_FOUND, REPORT = range(21)
"""The vectors of a `Memory`: the numbers of K, q, b, the scaling of x and of the rows of A, the point (x, z) and s, the solutions of the
constant and of the other right-hand side, the right-hand side and two more for refinement, P x, A'z, A x, the step in s and its offset;
then what is found: x, z, s and (status, iterations, error in units of the tolerances)."""


class Options(NamedTuple):
    """Relative tolerances of residuals, gap and certificates; iterations; static regularization and refinement steps of K; the part of the
    way to the boundary of the cones that a step takes.
    """

    feasibility: float
    gap: float
    infeasibility: float
    iterations: int
    shift: float
    refinements: int
    reach: float


class Memory(NamedTuple):
    """All vectors in one array (what takes few arguments compiles fast): vector k is ``numbers[starts[k] : starts[k + 1]]``.

    Used by one thread at a time.
    """

    numbers: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(system: System) -> Memory:
        """Memory for the blocks of one system."""
        n, m, size, nnz = system.n, system.m, len(system.indptr) - 1, len(system.indices)
        starts = np.cumsum((0, nnz, n, m, n, m, size, m, size, size, size, size, size, n, n, m, m, m, n, m, m, 3)).astype(np.intp)
        return Memory(aligned(starts[-1]), starts)
