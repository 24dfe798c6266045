"""DIFFCP: the forward solve of diffcp, for programs that were tuned on it; optional, without quadratic objectives.

Agrawal, Barratt, Boyd, Busseti and Moursi, "Differentiating through a cone program", 2019. It hands the program to SCS, ECOS or Clarabel
(``solve_method``) and passes their options on; its gradients are not used here. It packs semidefinite cones as SCS does. It silently
drops power cones and returns wrong y and s for semidefinite cones of order four and more with Clarabel: both are refused here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import numpy as np
from diffcp.cone_program import SolverError, solve_internal

from cvxlayers.cones import Exponential, NonNegative, SecondOrder, Semidefinite, Zero
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers import scs
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.layout import blank, blocks, filled, pick, scs_rows
from cvxlayers.solvers.settings import LEGACY

STATUS = {
    "Solved": Status.SOLVED,
    "Solved/Inaccurate": Status.INACCURATE,
    "Optimal": Status.SOLVED,
    "Optimal Inaccurate": Status.INACCURATE,
    "Infeasible": Status.PRIMAL_INFEASIBLE,
    "Infeasible/Inaccurate": Status.PRIMAL_INFEASIBLE,
    "Infeasible Inaccurate": Status.PRIMAL_INFEASIBLE,
    "Unbounded": Status.DUAL_INFEASIBLE,
    "Unbounded/Inaccurate": Status.DUAL_INFEASIBLE,
    "Unbounded Inaccurate": Status.DUAL_INFEASIBLE,
    "Failure": Status.NUMERICAL_ERROR,
}
"""What diffcp says of ECOS and of Clarabel; SCS it lets speak for itself."""

METHODS: Mapping[str, tuple[str, tuple[str, ...], str, Mapping[str, type]]] = {
    "CLARABEL": ("Clarabel", Clarabel.tolerances, Clarabel.limit, Clarabel.options),
    "ECOS": ("ECOS", ("abstol", "reltol", "feastol"), "max_iters", dict.fromkeys(("abstol", "reltol", "feastol"), float)),
    "SCS": ("SCS", scs.SCS.tolerances, scs.SCS.limit, scs.SCS.options),
}
"""What diffcp calls each method, the options that ``eps`` and ``max_iters`` set there, and the options that it takes."""


@lru_cache(maxsize=256)
def _layout(pattern: Pattern) -> tuple[np.ndarray, np.ndarray, Any, dict[str, Any]]:
    rows = scs_rows(pattern)
    cones = {key: value for key, value in scs.cone_dict(pattern.cone).items() if value}
    return rows, *pick(pattern, rows), {"z": 0, "l": 0, **cones}


@final
@dataclass(frozen=True)
class DIFFCP(Solver):
    """The forward solve of diffcp; see the module."""

    name = "DIFFCP"
    cones = frozenset({Zero, NonNegative, SecondOrder, Semidefinite, Exponential})
    quadratic = False
    options = MappingProxyType(
        {
            **{name: kind for *_, options in METHODS.values() for name, kind in options.items()},
            "solve_method": str,
            "eps": float,
            "max_iters": int,
        }
    )
    tolerances = ("eps",)
    limit = "max_iters"
    defaults = MappingProxyType({"eps": 3e-9, "verbose": False})

    def method(self, pattern: Pattern) -> str:
        """The solver behind diffcp: the one asked for, else SCS where semidefinite cones are and Clarabel elsewhere."""
        order = max((block.order for block, _ in blocks(pattern.cone) if isinstance(block, Semidefinite)), default=0)
        asked = str(self.settings.get("solve_method", self.name)).upper()
        method = asked if asked != self.name else "SCS" if order else "CLARABEL"
        if method not in METHODS:
            raise ValueError(f"solve_method {method!r} of solver 'DIFFCP' is not known; it knows {', '.join(METHODS)}")
        if order > 3 and method == "CLARABEL" or order and method == "ECOS":
            raise ValueError(f"solver 'DIFFCP' with solve_method {method!r} is wrong for Semidefinite cones of order {order}; try 'SCS'")
        return method

    def translated(self, method: str) -> dict[str, Any]:
        """Our settings in the words of the method."""
        word, tolerances, limit, options = METHODS[method]
        settings = {name: value for name, value in self.settings.items() if name in options or name == "verbose"}
        strangers = set(self.settings) - set(settings) - {"eps", "max_iters", "solve_method", *LEGACY}
        if strangers:
            raise ValueError(f"solver 'DIFFCP' with solve_method {method!r} has no option {', '.join(map(repr, sorted(strangers)))}")
        defaults: Mapping[str, Any] = {"CLARABEL": Clarabel.defaults, "SCS": scs.SCS.defaults}.get(method, {})
        general = dict.fromkeys(tolerances, self.settings["eps"])
        if "max_iters" in self.settings:
            general[limit] = self.settings["max_iters"]
        return {"solve_method": word, **defaults, **general, **settings}

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row afresh; ``start`` is not passed on."""
        rows, take, A, cones = _layout(pattern)
        method = self.method(pattern)
        settings = self.translated(method)
        solution = blank(pattern, len(program.q))

        def solve_row(row: int) -> None:
            data = filled(A, program.A[row][take]), program.b[row][rows], program.q[row], dict(cones)
            try:
                found = solve_internal(*data, raise_on_error=False, **settings)
            except SolverError as error:
                # of ECOS only the words are left: "Solver ecos returned status Infeasible"
                solution.status[row] = STATUS.get(str(error).rpartition("status ")[2], Status.NUMERICAL_ERROR)
                return
            except ValueError:
                return
            info = found["info"]
            solution.x[row], solution.y[row, rows], solution.s[row, rows] = found["x"], found["y"], found["s"]
            solution.iterations[row] = info["iter"]
            if method == "SCS":
                solution.status[row] = scs.status_of(info["status_val"], info["status"])
            elif info["status"] == "Failure" and info["iter"] >= settings.get(METHODS[method][2], 200):
                solution.status[row] = Status.ITERATION_LIMIT
            else:
                solution.status[row] = STATUS.get(info["status"], Status.NUMERICAL_ERROR)

        with warnings.catch_warnings():
            # diffcp warns of an inaccurate row; here its status says so
            warnings.simplefilter("ignore")
            map_rows(solve_row, len(program.q), self.jobs)
        return solution
