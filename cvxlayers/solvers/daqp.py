"""DAQP: a dual active-set method for small dense linear and quadratic programs; exact to rounding, and the fastest there.

Arnstrom, Bemporad and Axehill, "A dual active-set solver for embedded quadratic programming using recursive LDL' updates", 2022. A row
of the zero cone is an equation, a'x = b, a row of the nonnegative cone is a'x <= b. A singular P (a linear program has P = 0) is solved
by proximal steps. It speaks of failure by an exit flag; NaN it takes for optimal, so a row that is not finite is refused here.

Its tolerances are absolute, so a row is scaled first, by powers of two, which round nothing: x = t x', the rows of A to largest entry
one, (P, q) likewise. What the proximal steps leave is removed by solving the equations of the active set once (`_Program.polished`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import daqp
import numpy as np

from cvxlayers.cones import NonNegative, Zero
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.dense import Dense as _Program
from cvxlayers.solvers.dense import checked, dense, height_of, layout_of, length_of, power_of_two, products_of

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

FAR = 1e8
"""The size of a scaled x at which unboundedness is suspected."""
CHUNK = 1 << 23
"""The most numbers in the dense matrices of one chunk of rows."""
ENOUGH = 1e-11
"""The relative error of a row above which it is polished and tried again at the scale of its x."""


def _unscaled(solution: Solution, lengths: np.ndarray, heights: np.ndarray, rows: np.ndarray) -> Solution:
    x, s = solution.x * lengths[:, None], solution.s * lengths[:, None] * rows
    return Solution(x, solution.y * (heights * lengths)[:, None] / rows, s, solution.status, solution.iterations)


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
        at, m = layout_of(pattern), pattern.m
        rows = np.ones((len(program.q), m))
        if pattern.nnzA:
            rows[:, at.filled] = power_of_two(np.maximum.reduceat(np.abs(program.A[:, at.by_row]), at.starts, axis=1))
        A_values, b = program.A / rows[:, pattern.A_indices], program.b / rows
        lengths = length_of(b)
        heights = height_of(program.P, program.q, lengths)
        scaled = ConeProgram(program.P / heights[:, None], program.q / (heights * lengths)[:, None], A_values, b / lengths[:, None])
        solution, done = self._solve_together(pattern, scaled)
        if done.all():
            return _unscaled(solution, lengths, heights, rows)

        @np.errstate(over="ignore", invalid="ignore")
        def solve_row(row: int) -> None:
            (P,), (A,) = dense(pattern, program.P[row : row + 1], A_values[row : row + 1])
            q = program.q[row]
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
                length = lengths[row] * power_of_two(np.abs(solution.x[row]).max())
                height = height_of(program.P[row], q, length)

        pending = np.flatnonzero(~done)
        map_rows(lambda k: solve_row(pending[k]), len(pending), self.jobs)
        return _unscaled(solution, lengths, heights, rows)

    def _solve_together(self, pattern: Pattern, program: ConeProgram) -> tuple[Solution, np.ndarray]:
        """The scaled rows that DAQP solves at once and to `ENOUGH`, all checked together, and which they are, (rows,); others are NaN."""
        at, n, m, count = layout_of(pattern), pattern.n, pattern.m, len(program.q)
        x, y = np.zeros((count, n)), np.zeros((count, m))
        flags, iterations = np.zeros((2, count), dtype=np.int32)
        below = np.where(at.equation, program.b, -1e30)
        step = max(1, CHUNK // (n * (n + m)))
        for first in range(0, count, step):
            P, A = dense(pattern, program.P[first : first + step], program.A[first : first + step])

            def solve_row(k: int, P: np.ndarray = P, A: np.ndarray = A, first: int = first) -> None:
                row = first + k
                found, _, flag, info = daqp.solve(P[k], program.q[row], A[k], program.b[row], below[row], at.sense.copy(), **self.settings)
                flags[row] = flag
                if flag == 1:  # on failure DAQP leaves x and y as it found the memory
                    x[row], y[row], iterations[row] = found, info["lam"], info["iterations"]

            map_rows(solve_row, len(P), self.jobs)
        slack, error = checked(products_of(pattern), program, x, y, at.equation)
        done = (flags == 1) & (error < ENOUGH) & (np.abs(x).max(axis=1) <= FAR)
        status = np.zeros(count, dtype=np.int8)
        if not done.all():
            x[~done], y[~done], slack[~done] = np.nan, np.nan, np.nan
            status[~done], iterations[~done] = Status.NUMERICAL_ERROR, 0
        return Solution(x, y, slack, status, iterations), done

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
