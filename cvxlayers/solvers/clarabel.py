"""Clarabel: an interior-point method for every cone of this library, with quadratic objectives; the default.

Goulart and Chen, "Clarabel: an interior-point solver for conic programs with quadratic objectives", 2024. Its row order, its packing of
semidefinite cones and its exponential and power cones are those of `cvxlayers.program`. It speaks of failure by `SolverStatus` and,
for malformed data, by exceptions and Rust panics, which become NUMERICAL_ERROR here. Asked for more than it can reach it may end below
what it would reach if asked for less: such a row is solved once more, for less, and still called inaccurate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import clarabel as package
import numpy as np

from cvxlayers.cones import Exponential, NonNegative, Power, SecondOrder, Semidefinite, Zero
from cvxlayers.cones.base import Cone
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.layout import blank, blocks, filled, matrix, symmetric

clarabel: Any = package
"""Compiled, without type stubs."""

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

RELAXED = 3e-9
"""What is asked of a row that came to rest short of it."""

_OWN = {name: getattr(clarabel.DefaultSettings(), name) for name in dir(clarabel.DefaultSettings) if not name.startswith("_")}
OPTIONS = {name: type(value) for name, value in _OWN.items() if not callable(value)}


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


def _settings(options: Mapping[str, object]) -> Any:
    settings: Any = clarabel.DefaultSettings()
    for option, value in options.items():
        setattr(settings, option, value)
    return settings


def _short(found: Any) -> bool:
    """Whether a solve came to rest, undecided, with a relative residual or gap above RELAXED."""
    primal, dual = found.obj_val, found.obj_val_dual
    gap = abs(primal - dual) / max(1.0, min(abs(primal), abs(dual)))
    undecided = str(found.status) in ("AlmostSolved", "InsufficientProgress", "NumericalError")
    return undecided and not max(found.r_prim, found.r_dual, gap) <= RELAXED


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
    # static_regularization_constant: 1e-8 is Clarabel's own; ten times that left 7 instead of 31 of 840 random rows above 1e-8
    defaults = MappingProxyType(
        {
            **dict.fromkeys(tolerances, 1e-10),
            "static_regularization_constant": 1e-7,
            "verbose": False,
            "max_threads": 1,
        }
    )

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row with a fresh Clarabel (a reused one keeps the scaling of its first row); ``start`` means nothing to it."""
        P, A, cones = _layout(pattern)
        strict = _settings(self.settings)
        relaxed = _settings({**self.settings, **dict.fromkeys(self.tolerances, RELAXED)})
        solution = blank(pattern, len(program.q))

        def solve_row(row: int) -> None:
            data = filled(P, program.P[row]), program.q[row], filled(A, program.A[row]), program.b[row], cones
            try:
                found: Any = clarabel.DefaultSolver(*data, strict).solve()
                status, iterations = STATUS.get(str(found.status), Status.NUMERICAL_ERROR), found.iterations
                if iterations >= strict.max_iter and str(found.status) in ("AlmostPrimalInfeasible", "AlmostDualInfeasible"):
                    status = Status.ITERATION_LIMIT  # a guess
                if _short(found):
                    second: Any = clarabel.DefaultSolver(*data, relaxed).solve()
                    iterations += second.iterations
                    if str(second.status) == "Solved":
                        found, status = second, Status.INACCURATE
            except BaseException as error:
                # a Rust panic is no Exception and cannot be named: its class is not importable
                if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                    return
                raise
            solution.x[row], solution.y[row], solution.s[row] = found.x, found.z, found.s
            solution.status[row], solution.iterations[row] = status, iterations

        map_rows(solve_row, len(program.q), self.jobs)
        return solution
