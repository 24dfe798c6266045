"""SCS: a first-order splitting method for every cone, with quadratic objectives and warm start; good for large sparse programs.

O'Donoghue, "Operator splitting for a homogeneous embedding of the linear complementarity problem", 2021. SCS packs a semidefinite cone
by its lower triangle, column by column, where `cvxlayers.program` has the upper one; its exponential and power cones are ours. It
speaks of failure by a status number, and by a ValueError when it cannot factor the data, which becomes NUMERICAL_ERROR here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import numpy as np
import scs

from cvxlayers.cones import Exponential, NonNegative, Power, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.layout import blank, blocks, filled, pick, scs_rows, symmetric, zeros

STATUS = {
    scs.SOLVED: Status.SOLVED,
    scs.SOLVED_INACCURATE: Status.INACCURATE,
    scs.UNFINISHED: Status.NUMERICAL_ERROR,
    scs.UNBOUNDED: Status.DUAL_INFEASIBLE,
    scs.UNBOUNDED_INACCURATE: Status.DUAL_INFEASIBLE,
    scs.INFEASIBLE: Status.PRIMAL_INFEASIBLE,
    scs.INFEASIBLE_INACCURATE: Status.PRIMAL_INFEASIBLE,
    scs.INDETERMINATE: Status.NUMERICAL_ERROR,
    scs.FAILED: Status.NUMERICAL_ERROR,
}
INTERRUPTED = scs.SIGINT
"""SCS swallows an interrupt from the keyboard and returns this."""
LIMITS = {"max_iters": Status.ITERATION_LIMIT, "time_limit_secs": Status.TIME_LIMIT}
"""At a limit SCS calls its best guess one of the inaccurate statuses and names the limit in the text of the status."""

OPTIONS = {
    **dict.fromkeys(("verbose", "normalize", "adaptive_scale"), bool),
    **dict.fromkeys(("max_iters", "adaptive_diag_scale", "acceleration_lookback", "acceleration_interval", "acceleration_type_1"), int),
    **dict.fromkeys(("eps_abs", "eps_rel", "eps_infeas", "scale", "alpha", "rho_x", "time_limit_secs"), float),
    **dict.fromkeys(("acceleration_regularization", "acceleration_relaxation"), float),
    **dict.fromkeys(("write_data_filename", "log_csv_filename"), str),
    "linear_solver": object,
}


def status_of(code: int, text: str) -> Status:
    """The `Status` of what SCS says; a guess that SCS stopped at because of a limit is that limit's."""
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return next((limit for word, limit in LIMITS.items() if word in text), STATUS.get(code, Status.NUMERICAL_ERROR))


def cone_dict(cone: Product) -> dict[str, Any]:
    """The cone in SCS's words; wants the order of rows that `cvxlayers.program` states."""

    def of(kind: type) -> Iterable[Any]:
        return (block for block, _ in blocks(cone) if isinstance(block, kind))

    return {
        "z": sum(block.dim for block in of(Zero)),
        "l": sum(block.dim for block in of(NonNegative)),
        "q": [block.dim for block in of(SecondOrder)],
        "s": [block.order for block in of(Semidefinite)],
        "ep": sum(1 for _ in of(Exponential)),
        "p": [block.alpha for block in of(Power)],
    }


@lru_cache(maxsize=256)
def _layout(pattern: Pattern) -> tuple[Any, np.ndarray, np.ndarray, Any, dict[str, Any]]:
    rows = scs_rows(pattern)
    if not pattern.m:
        # SCS refuses a program without rows: give it 0'x + s = 1, s >= 0
        return symmetric(pattern), rows, rows, zeros(1, pattern.n), {"l": 1}
    return symmetric(pattern), rows, *pick(pattern, rows), cone_dict(pattern.cone)


@final
@dataclass(frozen=True)
class SCS(Solver):
    """Operator splitting for all cones and quadratic objectives, with warm start; see the module."""

    name = "SCS"
    cones = frozenset({Zero, NonNegative, SecondOrder, Semidefinite, Exponential, Power})
    quadratic = True
    warm_start = True
    options = MappingProxyType(OPTIONS)
    tolerances = ("eps_abs", "eps_rel")
    limit = "max_iters"
    # 3e-9: at 1e-9 one row in several hundred never arrives, at 1e-10 most exponential ones. QDLDL: the automatic choice, MKL, is
    # multithreaded, and one start of it costs more than many small solves
    defaults = MappingProxyType({"eps_abs": 3e-9, "eps_rel": 3e-9, "max_iters": 100_000, "verbose": False, "linear_solver": "qdldl"})

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row with a fresh SCS, from the same row of ``start`` where that is finite."""
        P, rows, take, A, cones = _layout(pattern)
        solution = blank(pattern, len(program.q))

        def solve_row(row: int) -> None:
            data = {"A": A, "b": np.ones(1), "c": program.q[row]}
            if pattern.m:
                data |= {"A": filled(A, program.A[row][take]), "b": program.b[row][rows]}
            if pattern.nnzP:
                data["P"] = filled(P, program.P[row])
            warm = (start.x[row], start.y[row][rows], start.s[row][rows]) if start is not None and pattern.m else ()
            try:
                solver = scs.SCS(data, cones, **self.settings)
            except ValueError:
                return
            found = solver.solve(True, *warm) if warm and all(np.isfinite(part).all() for part in warm) else solver.solve(False)
            info = found["info"]
            solution.x[row], solution.y[row, rows], solution.s[row, rows] = found["x"], found["y"][: pattern.m], found["s"][: pattern.m]
            solution.status[row] = status_of(info["status_val"], info["status"])
            solution.iterations[row] = info["iter"]

        map_rows(solve_row, len(program.q), self.jobs)
        return solution
