"""ACTIVE_SET: this library's own dual active-set method for small and dense linear and quadratic programs, exact to rounding.

The method stands in `cvxlayers.kernels.active_set`; here a pattern becomes index arrays, once. A row of the zero cone is an equation, a row
of the nonnegative cone an inequality. A row is judged by its residuals, a claim that it has no solution by a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import numpy as np

from cvxlayers.cones import NonNegative, Zero
from cvxlayers.errors import Status
from cvxlayers.kernels.active_rows import Programs
from cvxlayers.products import Products
from cvxlayers.program import ConeProgram, Pattern, Solution, take
from cvxlayers.solvers.base import Solver
from cvxlayers.solvers.layout import read_only, zero_rows
from cvxlayers.solvers.scaling import back, even


@lru_cache(maxsize=32)
def _programs(pattern: Pattern) -> Programs:
    equations = int(zero_rows(pattern).sum())
    return Programs(pattern.n, pattern.m, equations, (pattern.P_indices, pattern.P_indptr), (pattern.A_indices, pattern.A_indptr))


@final
@dataclass(frozen=True)
class ActiveSet(Solver):
    """A dual active set for equations and inequalities, with quadratic objectives; see the module."""

    name = "ACTIVE_SET"
    cones = frozenset({Zero, NonNegative})
    quadratic = True
    threads = 0  # all that the machine or CVXLAYERS_NUM_THREADS allows
    options = MappingProxyType({"tol_feas": float, "max_iter": int})
    tolerances = ("tol_feas",)
    limit = "max_iter"
    defaults = MappingProxyType({"tol_feas": 1e-12, "max_iter": 10000})

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row afresh, and in even units those that this does not; ``start`` means nothing to it."""
        found = self._attempt(pattern, program)
        again = np.flatnonzero((found.status == Status.INACCURATE) | (found.status == Status.NUMERICAL_ERROR))
        again = again[np.isfinite(np.concatenate([part[again] for part in vars(program).values()], axis=1)).all(axis=1)]
        if not len(again):
            return found
        scaled, f, e = even(Products.of(pattern), take(program, again))
        second = back(self._attempt(pattern, scaled), f, e)
        second.iterations[:] += found.iterations[again]
        better = (second.status != Status.INACCURATE) & (second.status != Status.NUMERICAL_ERROR)
        for one, two in zip(vars(found).values(), vars(second).values(), strict=True):
            one[again[better]] = two[better]
        return found

    def _attempt(self, pattern: Pattern, program: ConeProgram) -> Solution:
        settings: Any = self.settings
        P, q, A, b = read_only(program.P), read_only(program.q), read_only(program.A), read_only(program.b)
        return Solution(*_programs(pattern).solve(P, q, A, b, len(program.q), settings["tol_feas"], settings["max_iter"], self.jobs))
