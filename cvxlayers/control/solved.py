"""Cone programs whose solution is known: differentiated where they stand, or moved by one Newton step.

The optimality conditions of a nonlinear program at a point are those of the quadratic program with the Hessian of its Lagrangian, convex or
not; so its derivative, and its Newton step, are the ones of `cvxlayers.adjoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvxlayers import adjoint
from cvxlayers.backend import backend_of
from cvxlayers.conic_map import ConicMap, Saved
from cvxlayers.errors import Status
from cvxlayers.host import Arrays, Options, Port
from cvxlayers.program import ConeProgram, Info, Pattern, Solution, spread, take


class SolvedMap(ConicMap):
    """(P, q, A, b, x, y, s) -> (x, y, s), the solution of the program at hand; its derivative along x, y and s is zero.

    ``newton`` returns the point one Newton step from (x, y, s) on the optimality conditions instead. Rows that are not finite fail.
    """

    def __init__(self, pattern: Pattern, newton: bool = False) -> None:
        super().__init__(pattern)
        self.newton = newton
        self.inputs = (*self.inputs, *(Port(port.name, port.shape, False) for port in self.outputs))

    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Info, Saved]:
        program, batched, batch = self._program(params[:4])
        rows, pattern = len(program.q), self.conic.pattern
        sizes = (pattern.n, pattern.m, pattern.m)
        given = [np.asarray(backend_of(p).host(p)) for p in params[4:]]
        batch = batch or given[0].shape[:-1]
        rows = int(np.prod(batch))
        program = ConeProgram(*(np.broadcast_to(a, (rows, a.shape[1])) for a in vars(program).values()))
        x, y, s = (np.broadcast_to(a, (*batch, k)).reshape(rows, k).copy() for a, k in zip(given, sizes, strict=True))
        status = np.full(rows, int(Status.NUMERICAL_ERROR))
        numbers = np.isfinite(x).all(1) & np.isfinite(y).all(1) & ~np.isnan(s).any(1)
        numbers &= np.logical_and.reduce([np.isfinite(a).all(1) for a in (program.P, program.q, program.A)])
        status[numbers] = Status.SOLVED
        solution = Solution(x, y, s, status, np.zeros(rows, dtype=np.int64))
        if self.newton:
            solution = self._newton(program, solution)
        nothing = np.zeros(batch)
        shown = Solution(*(a.reshape(*batch, *a.shape[1:]) for a in vars(solution).values()))
        info = Info(shown.status, *[nothing] * 4, shown.iterations, "NEWTON", nothing > 0, shown)
        return [shown.x.copy(), shown.y.copy(), shown.s.copy()], info, Saved(program, solution, (*batched, True, True, True), batch)

    def _newton(self, program: ConeProgram, solution: Solution) -> Solution:
        program, missing, valid = self.conic._settle_data(program, solution.status > Status.INACCURATE)
        if missing is not None:
            solution = Solution(solution.x, solution.y, np.where(missing, 1.0, solution.s), solution.status, solution.iterations)
        if not valid.any():
            return solution
        moved = adjoint.newton(self.conic.kkt, take(program, valid), take(solution, valid))
        whole = spread(moved, valid, np.nan)
        return Solution(whole.x, whole.y, whole.s, solution.status, solution.iterations)

    def restore(self, params: Sequence[Any], solution: Solution) -> Saved:
        saved = super().restore(params[:4], solution)
        return Saved(saved.program, saved.solution, (*saved.batched, True, True, True), saved.batch)

    def vjp(self, saved: Saved, cotangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        return [*super().vjp(_four(saved), cotangents, needed[:4]), *self._zeros(saved, needed)]

    def jvp(self, saved: Saved, tangents: Arrays) -> list[np.ndarray]:
        return super().jvp(_four(saved), tangents[:4])

    def second_vjp(self, saved: Saved, cotangents: Arrays, tangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        return [*super().second_vjp(_four(saved), cotangents, tangents[:4], needed[:4]), *self._zeros(saved, needed)]

    def second_jvp(self, saved: Saved, one: Arrays, two: Arrays) -> list[np.ndarray]:
        return super().second_jvp(_four(saved), one[:4], two[:4])

    def _zeros(self, saved: Saved, needed: Sequence[bool]) -> list[Any]:
        ports = zip(self.inputs[4:], needed[4:], strict=True)
        return [np.zeros((*saved.batch, *port.shape)) if wanted else None for port, wanted in ports]


def _four(saved: Saved) -> Saved:
    return Saved(saved.program, saved.solution, saved.batched[:4], saved.batch)
