"""Clarabel: an interior-point method for every cone of this library, with quadratic objectives; the default.

Goulart and Chen, "Clarabel: an interior-point solver for conic programs with quadratic objectives", 2024. Its row order, its packing of
semidefinite cones and its exponential and power cones are those of `cvxlayers.program`. It speaks of failure by `SolverStatus` and,
for malformed data, by exceptions and Rust panics, which become NUMERICAL_ERROR here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import clarabel
import numpy as np

from cvxlayers.cones import Exponential, NonNegative, Power, SecondOrder, Semidefinite, Zero
from cvxlayers.cones.base import Cone
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.layout import blank, blocks, filled, matrix, symmetric

STATUS = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.INACCURATE,
    "InsufficientProgress": Status.INACCURATE,
    "PrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "AlmostPrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "DualInfeasible": Status.DUAL_INFEASIBLE,
    "AlmostDualInfeasible": Status.DUAL_INFEASIBLE,
    "MaxIterations": Status.ITERATION_LIMIT,
    "MaxTime": Status.TIME_LIMIT,
    "NumericalError": Status.NUMERICAL_ERROR,
    "CallbackTerminated": Status.NUMERICAL_ERROR,
    "Unsolved": Status.NUMERICAL_ERROR,
}

OPTIONS = {
    name: type(value) for name, value in ((name, getattr(clarabel.DefaultSettings(), name)) for name in dir(clarabel.DefaultSettings))
    if not (name.startswith("_") or callable(value))
}


def _cone(block: Cone) -> Any:
    if isinstance(block, Zero):
        return clarabel.ZeroConeT(block.dim)
    if isinstance(block, NonNegative):
        return clarabel.NonnegativeConeT(block.dim)
    if isinstance(block, SecondOrder):
        return clarabel.SecondOrderConeT(block.dim)
    if isinstance(block, Semidefinite):
        return clarabel.PSDTriangleConeT(block.order)
    if isinstance(block, Power):
        return clarabel.PowerConeT(block.alpha)
    return clarabel.ExponentialConeT()


@lru_cache(maxsize=256)
def _layout(pattern: Pattern) -> tuple[Any, Any, list[Any]]:
    A = matrix(np.zeros(pattern.nnzA), pattern.A_indices, pattern.A_indptr, (pattern.m, pattern.n))
    return symmetric(pattern), A, [_cone(block) for block, _ in blocks(pattern.cone)]


@final
@dataclass(frozen=True)
class Clarabel(Solver):
    """Interior points for all cones and quadratic objectives; see the module."""

    name = "CLARABEL"
    cones = frozenset({Zero, NonNegative, SecondOrder, Semidefinite, Exponential, Power})
    quadratic = True
    options = MappingProxyType(OPTIONS)
    tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    limit = "max_iter"
    defaults = MappingProxyType({"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10, "verbose": False, "max_threads": 1})

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row with a fresh Clarabel (a reused one keeps the scaling of its first row); ``start`` means nothing to it."""
        P, A, cones = _layout(pattern)
        settings: Any = clarabel.DefaultSettings()
        for option, value in self.settings.items():
            setattr(settings, option, value)
        solution = blank(pattern, len(program.q))

        def solve_row(row: int) -> None:
            data = filled(P, program.P[row]), program.q[row], filled(A, program.A[row]), program.b[row]
            try:
                found: Any = clarabel.DefaultSolver(*data, cones, settings).solve()
            except BaseException as error:
                # a Rust panic is no Exception and cannot be named: its class is not importable
                if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                    return
                raise
            solution.x[row], solution.y[row], solution.s[row] = found.x, found.z, found.s
            solution.status[row] = STATUS.get(str(found.status), Status.NUMERICAL_ERROR)
            solution.iterations[row] = found.iterations

        map_rows(solve_row, len(program.q), self.jobs)
        return solution
