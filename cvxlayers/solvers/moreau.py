"""Moreau: an interior-point method for a whole batch at once, every cone, quadratic objectives; optional.

Its interior point descends from Clarabel (Goulart and Chen, 2024), with one symbolic factorization for all rows. Its row order, its packing
of semidefinite cones and its exponential and power cones are those of `cvxlayers.program`, but matrices travel by rows, P as both of its
triangles, and a second-order cone of dimension one is a nonnegative row. Its cones on x itself are not used: every constraint is a row of
A. Rows are solved on ``n_jobs_forward`` threads of its own; asked for more than it can reach, a row is solved once more, for less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import moreau_cpu as package
import numpy as np
import scipy.sparse as sp

from cvxlayers.cones import Exponential, NonNegative, Power, SecondOrder, Semidefinite, Zero
from cvxlayers.cones.base import Cone
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver
from cvxlayers.solvers.layout import blank, blocks

moreau: Any = package
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
"""What is asked of a row that came to rest short of its tolerance."""

_TOP = {"max_iter": int, "time_limit": float, "verbose": bool}
_IPM = {
    name: type(value) for name in dir(moreau.IPMSettings()) if not callable(value := getattr(moreau.IPMSettings(), name)) and name[0] != "_"
}


@dataclass(frozen=True)
class _Layout:
    """Where a pattern's entries go: ``P`` and ``A`` are (row offsets, column indices), ``from_P`` and ``from_A`` the entries in that order.

    ``rows`` are our rows in Moreau's order.
    """

    P: tuple[list[int], list[int]]
    from_P: np.ndarray
    A: tuple[list[int], list[int]]
    from_A: np.ndarray
    rows: np.ndarray
    cones: list[Any]


@lru_cache(maxsize=256)
def _layout(pattern: Pattern) -> _Layout:
    upper = sp.csc_array((np.arange(1, pattern.nnzP + 1), pattern.P_indices, pattern.P_indptr), shape=(pattern.n, pattern.n))
    P = sp.csr_array(upper + sp.triu(upper, 1).T)
    parts = [(NonNegative(1) if isinstance(block, SecondOrder) and block.dim == 1 else block, rows) for block, rows in blocks(pattern.cone)]
    parts.sort(key=lambda part: not isinstance(part[0], Zero) and 1 + (not isinstance(part[0], NonNegative)))
    rows = np.concatenate([np.arange(0), *(rows for _, rows in parts)])
    numbered = sp.csc_array((np.arange(1, pattern.nnzA + 1), pattern.A_indices, pattern.A_indptr), shape=(pattern.m, pattern.n))
    A = sp.csr_array(sp.csr_array(numbered)[rows])
    for made in (P, A):
        made.sort_indices()
    return _Layout(_index(P), P.data - 1, _index(A), A.data - 1, rows, [_cone(block) for block, _ in parts])


def _index(made: Any) -> tuple[list[int], list[int]]:
    return made.indptr.tolist(), made.indices.tolist()


def _cone(block: Cone) -> Any:
    if isinstance(block, Zero):
        return moreau.ZeroConeT(block.dim)
    if isinstance(block, NonNegative):
        return moreau.NonnegativeConeT(block.dim)
    if isinstance(block, SecondOrder):
        return moreau.SecondOrderConeT(block.dim)
    if isinstance(block, Semidefinite):
        return moreau.PSDTriangleConeT(block.order)
    if isinstance(block, Power):
        return moreau.PowerConeT(block.alpha)
    return moreau.ExponentialConeT()


def _settings(options: Mapping[str, object]) -> Any:
    settings: Any = moreau.DefaultSettings()
    interior = settings.ipm
    for option, value in options.items():
        setattr(settings if option in _TOP else interior, option, value)
    settings.ipm = interior
    return settings


@final
@dataclass(frozen=True)
class Moreau(Solver):
    """Interior points for all cones and quadratic objectives, a batch in one call; see the module."""

    name = "MOREAU"
    cones = frozenset({Zero, NonNegative, SecondOrder, Semidefinite, Exponential, Power})
    quadratic = True
    options = MappingProxyType({**_TOP, **_IPM})
    tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    limit = "max_iter"
    # direct_solve_method, chordal_decomposition_enable: its own choices look at the batch's size and at b, and a row must not know either
    defaults = MappingProxyType(
        {
            **dict.fromkeys(tolerances, 1e-10),
            "verbose": False,
            "direct_solve_method": "qdldl",
            "chordal_decomposition_enable": False,
        }
    )

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve the batch in one call with a fresh Moreau; ``start`` means nothing here."""
        solution = self._attempt(pattern, program, self.settings)
        short = np.flatnonzero((solution.status == Status.INACCURATE) | (solution.status == Status.NUMERICAL_ERROR))
        if len(short) and self.tolerance < RELAXED:
            part = ConeProgram(*(np.ascontiguousarray(values[short]) for values in vars(program).values()))
            second = self._attempt(pattern, part, {**self.settings, **dict.fromkeys(self.tolerances, RELAXED)})
            solution.iterations[short] += second.iterations
            solved = second.status == Status.SOLVED
            for name in ("x", "y", "s"):
                getattr(solution, name)[short[solved]] = getattr(second, name)[solved]
            solution.status[short[solved]] = Status.INACCURATE
        return solution

    def _attempt(self, pattern: Pattern, program: ConeProgram, options: Mapping[str, object]) -> Solution:
        at, rows = _layout(pattern), len(program.q)
        solution = blank(pattern, rows)
        if not rows:
            return solution
        flat = [program.P[:, at.from_P], program.A[:, at.from_A], program.q, program.b[:, at.rows]]
        P, A, q, b = (np.ascontiguousarray(part).reshape(-1) for part in flat)
        solver = moreau.CompiledSolver(pattern.n, pattern.m, *at.P, *at.A, at.cones, _settings(options), num_threads=self.jobs or None)
        try:
            solver.setup_flat(P, A, rows)
            found = solver.solve_flat(q, b, rows)
        except BaseException as error:
            # a Rust panic is no Exception and cannot be named: its class is not importable
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if rows == 1:
                return solution
            halves = [
                self._attempt(pattern, ConeProgram(*(values[part] for values in vars(program).values())), options)
                for part in (slice(0, rows // 2), slice(rows // 2, rows))
            ]
            return Solution(*(np.concatenate(parts) for parts in zip(*(vars(half).values() for half in halves), strict=True)))
        solution.x[:] = np.asarray(found.x).reshape(rows, pattern.n)
        solution.y[:, at.rows] = np.asarray(found.z).reshape(rows, pattern.m)
        solution.s[:, at.rows] = np.asarray(found.s).reshape(rows, pattern.m)
        solution.status[:] = [STATUS.get(moreau.SolverStatus(code).name, Status.NUMERICAL_ERROR) for code in found.status]
        solution.iterations[:] = found.iterations
        return solution
