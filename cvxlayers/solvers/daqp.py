"""DAQP: a dual active-set method for small dense linear and quadratic programs; exact to rounding, and the fastest there.

Arnstrom, Bemporad and Axehill, "A dual active-set solver for embedded quadratic programming using recursive LDL' updates", 2022. A row
of the zero cone is an equation, a'x = b, a row of the nonnegative cone is a'x <= b. A singular P (a linear program has P = 0) is solved
by proximal steps. It speaks of failure by an exit flag; NaN it takes for optimal, so a row that is not finite is refused here.

Its tolerances are absolute, so a row is scaled first, by powers of two, which round nothing: x = t x', the rows of A to largest entry
one, (P, q) likewise. What the proximal steps leave is removed by solving the equations of the active set once (`_Program.polished`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import daqp
import numpy as np
from scipy.linalg import lu_factor, lu_solve

from cvxlayers.cones import NonNegative, Zero
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.layout import blank, zero_rows

STATUS = {
    2: Status.INACCURATE,
    1: Status.SOLVED,
    -1: Status.PRIMAL_INFEASIBLE,
    -2: Status.NUMERICAL_ERROR,
    -3: Status.DUAL_INFEASIBLE,
    -4: Status.ITERATION_LIMIT,
    -5: Status.NUMERICAL_ERROR,
    -6: Status.PRIMAL_INFEASIBLE,
    -7: Status.TIME_LIMIT,
    -8: Status.NUMERICAL_ERROR,
}

EQUATION = 5
"""DAQP's word for a constraint that is active and stays so."""
FAR = 1e8
"""The size of a scaled x at which unboundedness is suspected."""
SHIFT = 1e-8
"""What makes the equations of an active set regular."""
ENOUGH = 1e-11
"""The relative error of a row above which it is polished and tried again at the scale of its x."""


@dataclass(frozen=True)
class _Layout:
    """Where stored values stand: P twice and A in flat dense matrices, A sorted by row, and what DAQP calls each row."""

    upper: np.ndarray
    lower: np.ndarray
    entries: np.ndarray
    by_row: np.ndarray
    starts: np.ndarray
    filled: np.ndarray
    equation: np.ndarray
    sense: np.ndarray


@lru_cache(maxsize=256)
def _layout(pattern: Pattern) -> _Layout:
    n, equation = np.int64(pattern.n), zero_rows(pattern)
    filled, starts = np.unique(np.sort(pattern.A_indices), return_index=True)
    return _Layout(
        upper=pattern.P_indices * n + pattern.P_columns,
        lower=pattern.P_columns * n + pattern.P_indices,
        entries=pattern.A_indices * n + pattern.A_columns,
        by_row=np.argsort(pattern.A_indices, kind="stable"),
        starts=starts,
        filled=filled,
        equation=equation,
        sense=np.where(equation, EQUATION, 0).astype(np.intc),
    )


def _power_of_two(size: Any) -> Any:
    """The power of two just above ``size``, one for zero."""
    return np.ldexp(1.0, np.frexp(size)[1])


def _height(P: np.ndarray, q: np.ndarray, length: np.ndarray) -> np.ndarray:
    """What to divide the objective by when x is in units of ``length``: (rows,)."""
    return _power_of_two(np.maximum(np.abs(P).max(axis=-1, initial=0.0), np.abs(q).max(axis=-1) / length))


def _length(b: np.ndarray) -> np.ndarray:
    """The typical right-hand side (rows,): the median, not the largest, as a bound of 1e6 for form's sake must not hide the others."""
    if not b.shape[-1]:
        return np.ones(len(b))
    sizes = np.sort(np.abs(b), axis=-1)
    zeros = np.count_nonzero(sizes == 0.0, axis=-1)
    middle = np.minimum((zeros + b.shape[-1]) // 2, b.shape[-1] - 1)
    return _power_of_two(sizes[np.arange(len(b)), middle])


@dataclass(frozen=True)
class _Program:
    """One row, dense and scaled: minimize 1/2 x'Px + q'x subject to Ax = b where ``equation``, Ax <= b elsewhere."""

    P: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    equation: np.ndarray

    def error(self, x: np.ndarray, y: np.ndarray) -> float:
        """How far (x, y) is from optimality, relative to the sizes of x and of q or Px; NaN counts as infinitely far."""
        slack = self.b - self.A @ x
        primal = np.where(self.equation | (y > 0), np.abs(slack), -slack).max(initial=0.0)
        Px = self.P @ x
        dual = np.abs(Px + self.q + y @ self.A).max()
        sign = np.where(self.equation, 0.0, -y).max(initial=0.0)
        worst = primal / max(np.abs(x).max(), 1e-8) + (dual + sign) / max(np.abs(self.q).max(), np.abs(Px).max(), 1e-8)
        return worst if worst < np.inf else np.inf

    def polished(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve Px + q + A'y = 0, Ax = b over the active rows, beginning at (x, y).

        The matrix is shifted to be regular whatever the active set, and the shift is refined away (proximal steps of length 1 / SHIFT).
        """
        active = self.equation | (y > 0)
        A = self.A[active]
        K = np.block([[self.P, A.T], [A, np.zeros((len(A), len(A)))]])
        shift = np.where(np.arange(len(K)) < len(x), SHIFT, -SHIFT)
        factor = lu_factor(K + np.diag(shift))
        right = np.concatenate([-self.q, self.b[active]])
        z = np.concatenate([x, y[active]])
        for _ in range(3):
            z = z + lu_solve(factor, right - K @ z)
        y = y.copy()
        y[active] = z[len(x) :]
        return z[: len(x)], np.where(self.equation, y, np.maximum(y, 0.0))

    def falls(self, x: np.ndarray, flat: float) -> bool:
        """Whether x, run far away, points along a direction that is feasible for ever and on which the objective falls for ever.

        ``flat`` is the curvature, relative to P, that counts as none.
        """
        d = x / max(np.abs(x).max(), 1.0)
        along = self.A @ d
        leaves = np.where(self.equation, np.abs(along), along).max(initial=0.0)
        curves = np.abs(self.P @ d).max() > flat * np.abs(self.P).max()
        return bool(self.q @ d < -1e-6 and leaves < 1e-6 and not curves)


@final
@dataclass(frozen=True)
class DAQP(Solver):
    """A dual active set for equations and inequalities, with quadratic objectives; see the module."""

    name = "DAQP"
    cones = frozenset({Zero, NonNegative})
    quadratic = True
    options = MappingProxyType(
        {
            **dict.fromkeys(("primal_tol", "dual_tol", "zero_tol", "pivot_tol", "progress_tol", "fval_bound", "eps_prox"), float),
            **dict.fromkeys(("eta_prox", "sing_tol", "refactor_tol", "time_limit"), float),
            **dict.fromkeys(("cycle_tol", "iter_limit", "eq_reduction"), int),
        }
    )
    tolerances = ("primal_tol",)
    limit = "iter_limit"
    # eps_prox: with its own -1e-6 and a tight primal_tol DAQP called up to a third of degenerate linear programs infeasible
    defaults = MappingProxyType({"primal_tol": 1e-9, "eta_prox": 1e-10, "eps_prox": -1e-3})

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row afresh; ``start`` means nothing here."""
        at, n, m = _layout(pattern), pattern.n, pattern.m
        solution = blank(pattern, len(program.q))
        rows = np.ones((len(program.q), m))
        if pattern.nnzA:
            rows[:, at.filled] = _power_of_two(np.maximum.reduceat(np.abs(program.A[:, at.by_row]), at.starts, axis=1))
        A_values, b = program.A / rows[:, pattern.A_indices], program.b / rows
        lengths = _length(b)
        heights = _height(program.P, program.q, lengths)

        @np.errstate(over="ignore", invalid="ignore")
        def solve_row(row: int) -> None:
            P, A = np.zeros(n * n), np.zeros(m * n)
            P[at.upper] = P[at.lower] = program.P[row]
            A[at.entries] = A_values[row]
            P, A, q = P.reshape(n, n), A.reshape(m, n), program.q[row]
            best, length, height = np.inf, lengths[row], heights[row]
            for _ in range(2):
                scaled = _Program(P / height, q / (height * length), A, b[row] / length, at.equation)
                flag, steps, x, y, error = self._attempt(scaled, at.sense)
                solution.iterations[row] += steps
                if not flag.ok:
                    # DAQP leaves x and y as it found the memory: a failed row stays NaN, lest it differ from call to call
                    solution.status[row] = flag if best == np.inf else solution.status[row]
                    return
                if error < best:
                    best, slack = error, scaled.b - A @ x
                    # an active row has no slack, not even one of rounding; what is wrong with x stays visible in Ax + s - b
                    slack[at.equation | (y > 0) | (slack < 0)] = 0.0
                    solution.x[row], solution.y[row], solution.s[row] = x, y, slack
                    solution.status[row] = flag
                    lengths[row], heights[row] = length, height
                if flag != Status.SOLVED or error < ENOUGH:
                    return
                length = lengths[row] * _power_of_two(np.abs(solution.x[row]).max())
                height = _height(program.P[row], q, length)

        map_rows(solve_row, len(program.q), self.jobs)
        x = solution.x * lengths[:, None]
        y = solution.y * (heights * lengths)[:, None] / rows
        return Solution(x, y, solution.s * lengths[:, None] * rows, solution.status, solution.iterations)

    def _attempt(self, program: _Program, sense: np.ndarray) -> tuple[Status, int, np.ndarray, np.ndarray, float]:
        """Solve one scaled row: status, iterations, x, y, error."""
        status, steps, x, y = self._call(program, sense, None)
        if status == Status.DUAL_INFEASIBLE and np.isfinite(x).all():
            # DAQP mistakes the way from its first x, which may break the equations, for a direction: ask again from where it arrived
            status, more, x, y = self._call(program, sense, x)
            steps += more
        error = program.error(x, y)
        if status == Status.ITERATION_LIMIT and program.falls(x, 1e-6):
            status = Status.DUAL_INFEASIBLE
        if status == Status.SOLVED and np.abs(x).max() > FAR and program.falls(x, 1e-12):
            # a singular P that rounding made regular
            status = Status.DUAL_INFEASIBLE
        if status == Status.SOLVED and error == np.inf:
            status = Status.NUMERICAL_ERROR
        if status == Status.SOLVED and error > ENOUGH:
            exact = program.polished(x, y)
            if program.error(*exact) < error:
                x, y, error = *exact, program.error(*exact)
        return status, steps, x, y, error

    def _call(self, program: _Program, sense: np.ndarray, start: np.ndarray | None) -> tuple[Status, int, np.ndarray, np.ndarray]:
        """One call of DAQP: status, iterations, x, y; y is NaN where DAQP failed, as it may be unset."""
        below = np.where(program.equation, program.b, -1e30)
        x, _, flag, info = daqp.solve(program.P, program.q, program.A, program.b, below, sense.copy(), primal_start=start, **self.settings)
        y = info["lam"] if flag > 0 else np.full(len(sense), np.nan)
        return STATUS.get(flag, Status.NUMERICAL_ERROR), info["iterations"], x, y
