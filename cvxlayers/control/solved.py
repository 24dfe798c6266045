"""Cone programs whose solution is known: differentiated where they stand, or moved by one Newton step.

The optimality conditions of a nonlinear program at a point are those of the quadratic program with the Hessian of its Lagrangian, convex or
not; so its derivative, and its Newton step, are the ones of `cvxlayers.adjoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.conic import ConicLayer
from cvxlayers.conic_map import ConicMap, Saved
from cvxlayers.errors import Status
from cvxlayers.host import Arrays, HostMap, Options, Port
from cvxlayers.kkt import KKT
from cvxlayers.program import Info, Pattern, Solution

NO_SECOND = (
    "a nonlinear plan has first derivatives only: second ones of the optimality conditions are left out here; differentiate once, or use "
    "lqr, or LinearDynamics with QuadraticCost"
)


class SolvedMap(HostMap):
    """(P, q, A, b, x, y, s) -> (x, y, s), the solution of the program at hand; its derivative along x, y and s is zero.

    It has no second derivatives: they would need those of the nonlinear conditions, which the program does not have.
    ``newton`` returns the point one Newton step from (x, y, s) on the optimality conditions instead. Rows that are not finite fail. At
    least one of P, q, A, b has batch axes where x, y, s have them.
    """

    def __init__(self, pattern: Pattern, newton: bool = False, kkt: KKT | None = None) -> None:
        self.below, self.newton = ConicMap(ConicLayer(pattern, kkt=kkt)), newton
        self.conic = self.below.conic
        self.outputs = self.below.outputs
        self.inputs = (*self.below.inputs, *(Port(port.name, port.shape, False) for port in self.outputs))

    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Info, Saved]:
        x, y, s = (np.array(backend_of(p).host(p)) for p in params[4:])
        batch = x.shape[:-1]
        fine = np.isfinite(x).all(-1) & np.isfinite(y).all(-1) & ~np.isnan(s).any(-1)
        status = np.where(fine, int(Status.SOLVED), int(Status.NUMERICAL_ERROR))
        saved = self.below.restore(params[:4], Solution(x, y, s, status, np.zeros(batch, dtype=np.int64)))
        solution = saved.solution
        if self.newton:
            moved = self.conic.newton(saved.program, solution)
            x, y, s = (a.reshape(*batch, a.shape[1]) for a in (moved.x, moved.y, moved.s))
        nothing = np.zeros(batch)
        shown = Solution(x, y, s, status, np.zeros(batch, dtype=np.int64))
        info = Info(status, nothing, nothing, nothing, nothing, shown.iterations, "NEWTON", nothing > 0, shown)
        return [x.copy(), y.copy(), s.copy()], info, saved

    def restore(self, params: Sequence[Any], solution: Solution) -> Saved:
        return self.below.restore(params[:4], solution)

    def vjp(self, saved: Saved, cotangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        return [*self.below.vjp(saved, cotangents, needed[:4]), *self._zeros(saved, needed)]

    def jvp(self, saved: Saved, tangents: Arrays) -> list[np.ndarray]:
        return self.below.jvp(saved, tangents[:4])

    def second_vjp(self, saved: Saved, cotangents: Arrays, tangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        raise ValueError(NO_SECOND)

    def second_jvp(self, saved: Saved, one: Arrays, two: Arrays) -> list[np.ndarray]:
        raise ValueError(NO_SECOND)

    def _zeros(self, saved: Saved, needed: Sequence[bool]) -> list[Any]:
        ports = zip(self.inputs[4:], needed[4:], strict=True)
        return [np.zeros((*saved.batch, *port.shape)) if wanted else None for port, wanted in ports]
