"""Model predictive control: a constrained optimal control problem as a differentiable function of everything that states it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.conic_map import ConicMap
from cvxlayers.control import conditions, sqp
from cvxlayers.control.expand import gradient
from cvxlayers.control.models import LinearDynamics, QuadraticCost
from cvxlayers.control.plan import Plan, PlanInfo
from cvxlayers.control.problem import BOUNDS, Problem, Program, arrays_of, leaves_of, program_of, widths_of, with_leaves
from cvxlayers.control.solved import SolvedMap
from cvxlayers.control.transcription import Layout, Transcription
from cvxlayers.errors import InaccurateWarning, SolverError, Status, warn

CURVATURE = {"exact": "lagrangian", "gauss_newton": "cost"}
WEAK = 1e-6  # a constraint within this of its bound whose multiplier is below it, relative to the largest, is weakly active


class MPC:
    """Plan T steps ahead, for every row of a batch.

        minimize    sum_{t<T} cost(x_t, u_t) + terminal_cost(x_{T-1})
        subject to  x_0 given,   x_{t+1} = dynamics(x_t, u_t) for t < T-1,   u_lower <= u_t <= u_upper,
                    x_lower <= x_t <= x_upper for t >= 1,   constraints(x_t, u_t) <= 0,   terminal_constraints(x_{T-1}) <= 0

    (docs/control.md). Raises ValueError for options and shapes that do not fit.
    """

    def __init__(
        self,
        dynamics: Any,
        cost: Any,
        *,
        horizon: int,
        n_state: int,
        n_ctrl: int,
        terminal_cost: Callable | None = None,
        u_lower: Any = None,
        u_upper: Any = None,
        x_lower: Any = None,
        x_upper: Any = None,
        constraints: Callable | None = None,
        terminal_constraints: Callable | None = None,
        soft: tuple[str, float] | None = None,
        slew: tuple[str, Any] | None = None,
        method: str = "auto",
        hessian: str = "gauss_newton",
        backward: str = "exact",
        max_iter: int = 50,
        tol: float | None = None,
        on_unconverged: str = "warn",
        verbose: bool = False,
        callback: Callable | None = None,
    ) -> None:
        given = {name: value for name, value in zip(BOUNDS, (u_lower, u_upper, x_lower, x_upper), strict=True) if value is not None}
        self.problem = Problem(
            dynamics, cost, horizon, n_state, n_ctrl, terminal_cost, given, constraints, terminal_constraints, soft, slew
        )
        self.exact, self.backward, self.max_iter, self.tol, self.on_unconverged = (
            hessian == "exact",
            backward,
            max_iter,
            tol,
            on_unconverged,
        )
        self._maps = lru_cache(maxsize=8)(_maps)

    def __call__(self, x0: Any, params: Any = None, warm_start: Plan | None = None, rti: bool = False) -> Plan:
        problem, verbs = self.problem, backend_of(x0).verbs
        xp, batch, n = verbs.xp, tuple(x0.shape)[:-1], problem.n_state
        rows = int(np.prod(batch))
        flat = xp.reshape(x0, (rows, n))
        arrays = arrays_of(problem, x0, rows)
        sizes = widths_of(problem, x0, params)
        program = program_of(problem, flat, arrays, params, batch, sizes)
        maps = self._maps(program.layout)
        tol = self.tol or (1e-8 if backend_of(x0).resolution(x0) < 1e-10 else 1e-4)
        if program.linear_quadratic:
            w, y, s = self._convex(program, maps)
            iterations = xp.ones_like(flat[:, 0])
            infeasible = xp.isnan(w[:, 0])
        else:
            leaves = leaves_of(params)
            guess = self._guess(flat, warm_start)

            def run(flat: Any, guess: Any, *rest: Any) -> tuple[Any, ...]:
                arrays, leaves = list(rest[: self._count(problem)]), list(rest[self._count(problem) :])
                inner = program_of(problem, flat, arrays, with_leaves(params, leaves), batch, sizes)
                point = sqp.solve(inner, maps, guess, exact=self.exact, max_iter=1 if rti else self.max_iter, tol=tol)
                parts = maps.transcription.parted(point.y)
                at = conditions.expand(inner, point.tau, parts, CURVATURE[self.backward])
                w = sqp.flat(maps.transcription, point.tau, at, inner, parts)
                P, _, A, _ = sqp._data(inner, maps, point.tau, at, at.H)
                return w, point.y, point.s, P, A, point.violation, point.iterations, point.infeasible

            ranks = (2, 3, *(a.ndim for a in arrays), *(leaf.ndim for leaf in leaves))
            w, y, s, P, A, violation, iterations, infeasible = verbs.constant(run, ranks, flat, guess, *arrays, *leaves)
            w, y, s = self._implicit(program, maps, w, y, s, P, A)
            infeasible = infeasible > 0.5
        return self._report(program, maps, w, y, s, iterations, infeasible, batch, tol, rti)

    def _count(self, problem: Problem) -> int:
        return len(problem.bounds) + 2 * isinstance(problem.dynamics, LinearDynamics) + 2 * isinstance(problem.cost, QuadraticCost)

    def _guess(self, x0: Any, warm_start: Plan | None) -> Any:
        xp, problem = backend_of(x0).verbs.xp, self.problem
        if warm_start is not None:
            parts = [xp.reshape(a, (problem.horizon, x0.shape[0], a.shape[-1])) for a in (warm_start.x, warm_start.u)]
            tau = xp.concat(parts, axis=-1)
            return xp.concat([tau[1:], tau[-1:]], axis=0)
        u = xp.zeros_like(xp.broadcast_to(x0[:, :1], (x0.shape[0], problem.n_ctrl)))
        return xp.broadcast_to(xp.concat([x0, u], axis=-1)[None], (problem.horizon, x0.shape[0], problem.n_state + problem.n_ctrl))

    def _convex(self, program: Program, maps: sqp.Maps) -> tuple[Any, Any, Any]:
        data = maps.transcription.program(program.cost.C, program.cost.c, program.dynamics.F, None, None, _sides(program))
        return backend_of(program.x0).verbs.call(maps.solve, *data, on_failure="nan")

    def _implicit(self, program: Program, maps: sqp.Maps, w: Any, y: Any, s: Any, P: Any, A: Any) -> tuple[Any, Any, Any]:
        """(w, y, s) with their derivatives: only the gradient of the Lagrangian and the constraints' values depend on what is given."""
        verbs, layout, transcription = backend_of(w).verbs, program.layout, maps.transcription
        xp = verbs.xp
        tau, parts = transcription.stages_of(w), transcription.parted(y)
        slope = gradient(lambda tau: conditions.lagrangian(program, tau, parts), tau)
        if program.terminal_cost is not None or program.terminal_constraints is not None:
            last = gradient(lambda x: conditions.terminal_lagrangian(program, x, parts), tau[-1:, :, : layout.n])
            slope = xp.concat([slope[:-1], slope[-1:] + conditions.wide(last, tau)], axis=0)
        q = xp.reshape(xp.moveaxis(slope, 0, 1), (tau.shape[1], -1))
        if layout.slacks:
            q = xp.concat([q, xp.zeros_like(w[:, q.shape[-1] :])], axis=-1)
        return verbs.call(maps.solved, P, q, A, transcription.sides(_sides(program, tau)), w, y, s)

    def _report(
        self, program: Program, maps: sqp.Maps, w: Any, y: Any, s: Any, iterations: Any, infeasible: Any, batch: Any, tol: float, rti: bool
    ) -> Plan:
        verbs, layout, transcription = backend_of(w).verbs, program.layout, maps.transcription
        xp, T, n = verbs.xp, layout.stages, layout.n
        tau = transcription.stages_of(w)
        stopped = [verbs.stop(a) for a in (tau, y, s)]
        violation = sqp._finite(verbs, verbs.stop(sqp.measured(program, maps, stopped[0], stopped[1])))
        converged = (violation <= tol) & ~infeasible
        parts, gaps = transcription.parted(stopped[1]), transcription.parted(stopped[2])
        active, weak = {}, xp.zeros_like(converged)
        scale = 1 + xp.max(xp.abs(stopped[1]), axis=-1)[None, :, None]
        for name in layout.groups:
            if name not in ("initial", "dynamics", "slack"):
                strong = parts[name] > WEAK * scale
                active[name] = xp.reshape(strong, (strong.shape[0], *batch, strong.shape[-1]))
                weak = weak | xp.any(xp.any(~strong & (gaps[name] < WEAK * scale), axis=-1), axis=0)
        if not rti:
            _tell(verbs.known(converged), verbs.known(violation), verbs.known(infeasible), self.on_unconverged)
        if self.on_unconverged in ("nan", "zero_grad") and not rti:
            other = stopped[0] if self.on_unconverged == "zero_grad" else xp.ones_like(stopped[0]) * np.nan
            tau = xp.where(converged[None, :, None], tau, other)
        held = {}
        if program.constraints is not None:
            held["constraints"] = program.constraints(tau)
        if program.terminal_constraints is not None:
            held["terminal"] = program.terminal_constraints(tau[-1:, :, :n])
        cost = conditions.objective(program, transcription, tau, held)

        def shaped(a: Any) -> Any:
            return xp.reshape(a, batch)

        info = PlanInfo(*map(shaped, (converged, iterations, violation, infeasible)), active, shaped(converged & ~weak))
        x, u = (xp.reshape(a, (T, *batch, a.shape[-1])) for a in (tau[..., :n], tau[..., n:]))
        return Plan(x, u, shaped(cost), info)


def _sides(program: Program, tau: Any = None) -> dict[str, Any]:
    """b by groups: of a linear problem, or at tau with the derivatives it has where A is a constant."""
    found = {"initial": program.x0, **conditions.limits(program)}
    if program.layout.stages > 1:
        found["dynamics"] = program.dynamics.f if tau is None else program.dynamics(tau[:-1])
    if program.constraints is not None:
        found["constraints"] = -program.constraints(tau)
    if program.terminal_constraints is not None:
        found["terminal"] = -program.terminal_constraints(tau[-1:, :, : program.layout.n])
    return found


def _maps(layout: Layout) -> sqp.Maps:
    transcription = Transcription(layout)
    pattern = transcription.pattern
    return sqp.Maps(transcription, ConicMap(pattern), SolvedMap(pattern, newton=True), SolvedMap(pattern))


def _tell(converged: Any, violation: Any, infeasible: Any, policy: str) -> None:
    if converged is None or converged.all():
        return
    rows = np.flatnonzero(~converged)
    named = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    worst = float(np.max(violation.reshape(-1)[rows]))
    without = int(np.sum(infeasible.reshape(-1)[rows])) if infeasible is not None else 0
    message = (
        f"mpc row{'s' if len(rows) > 1 else ''} {named} of {converged.size} did not converge: largest relative violation of the optimality "
        f"conditions {worst:.1e}"
        + (f"; {without} had constraints that no trajectory satisfies" if without else "")
        + "; raise max_iter, loosen tol, soften constraints, or start from a better plan"
    )
    if policy == "raise":
        raise SolverError(message, rows.tolist(), [Status.ITERATION_LIMIT] * len(rows))
    if policy == "warn":
        warn(message, InaccurateWarning)
