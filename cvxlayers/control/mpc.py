"""Model predictive control: a constrained optimal control problem as a differentiable function of everything that states it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from cvxlayers.backend import backend_of, verbatim
from cvxlayers.control import conditions, curvature, ilqr, lost, sqp
from cvxlayers.control.direct import Direct
from cvxlayers.control.line_search import may
from cvxlayers.control.mapped import mapped_problem, merged
from cvxlayers.control.options import Options, describe, settle
from cvxlayers.control.plan import Plan, PlanInfo
from cvxlayers.control.problem import BOUNDS, Problem, Program, arrays_of, check, leaves_of, program_of, widths_of, with_leaves
from cvxlayers.control.solved import SolvedMap
from cvxlayers.control.staged import Staged, staged, system_of
from cvxlayers.control.transcription import Layout, Transcription

SOLVER = "INTERIOR"  # of the quadratic programs: the only one that takes a batch at once
WEAK = 1e-6  # a constraint within this of its bound whose multiplier is below it, relative to the largest, is weakly active


@verbatim
class MPC:
    """Plan T steps ahead, for every row of a batch, and differentiate the plan.

        minimize    sum_{t<T} cost(x_t, u_t) + terminal_cost(x_{T-1})
        subject to  x_0 given,   x_{t+1} = dynamics(x_t, u_t) for t < T-1,   u_lower <= u_t <= u_upper,
                    x_lower <= x_t <= x_upper for t >= 1,   constraints(x_t, u_t) <= 0,   terminal_constraints(x_{T-1}) <= 0

    ``dynamics(x, u, params)`` (..., n) and ``cost(x, u, params)`` (...) are functions or modules of the framework on x (..., n) and
    u (..., m), each row by itself; the axes in front are time, the batch, and others; or they are `LinearDynamics` and `QuadraticCost`.
    ``terminal_cost(x, params)`` and ``terminal_constraints(x, params)`` see states alone; constraints return (..., any number).
    Bounds are numbers, (width,), (T, width) or (T, *batch, width), infinite where there is none. ``soft`` = ("l1" or "quadratic", weight)
    replaces the two kinds of constraints by the penalty weight * sum max(g, 0) or weight/2 * sum max(g, 0)^2; a third entry says
    what is soft, "constraints" or a tuple of those, "x_lower" and "x_upper", in which g is how far states are beyond the bound.
    The weight is a number, or one for each entry of constraints, x_upper, x_lower, terminal_constraints that is soft, in this order.
    ``slew`` = ("quadratic", weight) penalizes weight/2 |u_t - u_{t-1}|^2, ("bound", limit) bounds its entries; numbers or (m,).
    Weights and limits may be arrays of the framework, and then have gradients.

    ``method``: "sqp", "ilqr" (bounds on controls only), or "auto". ``hessian``: that of the quadratic programs, "gauss_newton" or "exact".
    ``backward``: "exact" is the derivative of the plan, "gauss_newton" that of the last convex approximation, "unroll" that of the
    iterations. ``tol`` bounds the largest relative violation of the optimality conditions, 1e-8 in float64 and 1e-4 in float32 if None.
    ``on_unconverged``: "raise" a SolverError, "warn", "nan", or "zero_grad". ``verbose`` logs a line per iteration, ``callback`` is
    called with it as a dict. Raises ValueError for options and shapes that do not fit.

    Methods: Amos, Jimenez, Sacks, Boots, Kolter, "Differentiable MPC for end-to-end planning and control", 2018, for "gauss_newton" and
    ILQR; docs/control.md for the rest.

    >>> import numpy as np
    >>> from cvxlayers.control.models import LinearDynamics, QuadraticCost
    >>> mpc = MPC(LinearDynamics(np.ones((1, 2))), QuadraticCost(np.eye(2)), horizon=3, n_state=1, n_ctrl=1, u_lower=-0.4)
    >>> (mpc(np.ones((1, 1))).u[:, 0, 0].round(6) + 0.0).tolist()
    [-0.4, -0.3, 0.0]
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
        soft: tuple[str, Any] | tuple[str, Any, str | tuple[str, ...]] | None = None,
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
        bounds = {name: value for name, value in zip(BOUNDS, (u_lower, u_upper, x_lower, x_upper), strict=True) if value is not None}
        for name, pair, sizes in (("soft", soft, (2, 3)), ("slew", slew, (2,))):
            if pair is not None and not (isinstance(pair, (tuple, list)) and len(pair) in sizes):
                raise ValueError(f"{name} is {pair!r}; wanted (a kind, a positive number or numbers), as the docstring says")
        slew = None if slew is None else (slew[0], slew[1])
        if soft is not None:
            named = soft[2] if len(soft) > 2 else ()
            soft = (soft[0], soft[1], (named,) if isinstance(named, str) else tuple(named) or ("constraints",))
        self.problem = Problem(
            dynamics, cost, horizon, n_state, n_ctrl, terminal_cost, bounds, constraints, terminal_constraints, soft, slew
        )
        self.options = Options(method, hessian, backward, max_iter, tol, on_unconverged, verbose, callback)
        check(self.problem)

    def __call__(self, x0: Any, params: Any = None, warm_start: Plan | None = None, rti: bool = False) -> Plan:
        """Plan from x0 (*batch, n); ``params`` is handed to the user's functions: arrays, or dicts, lists and tuples of arrays.

        ``warm_start`` is the last plan, which is shifted by one stage. ``rti`` takes one step only and differentiates that.
        """
        if not hasattr(x0, "shape"):
            raise ValueError(f"x0 is a {type(x0).__name__}; wanted an array (*batch, n) of float32 or float64")
        options, verbs = self.options, backend_of(x0).verbs
        problem = self.problem.made(verbs.users)
        xp, batch, n = verbs.xp, tuple(x0.shape)[:-1], problem.n_state
        if tuple(x0.shape)[-1:] != (n,):
            raise ValueError(f"x0 has shape {tuple(x0.shape)}; wanted (*batch, {n})")
        flat = xp.reshape(x0, (int(np.prod(batch)), n))
        sizes = widths_of(problem, x0, params)
        arrays = arrays_of(problem, x0, flat.shape[0], sizes)
        program = program_of(problem, flat, arrays, params, batch, sizes)
        resolution = backend_of(x0).resolution(x0)
        maps, tol = _maps(program.layout, resolution), options.tolerance(resolution)

        def apart(rows: Any) -> tuple[Program, Any]:  # with numbers for rows that have none
            if not may(verbs, rows):
                return program, None
            return program_of(problem, *lost.replaced(rows, flat, arrays, params), batch, sizes), rows

        if flat.shape[0] == 0:  # dynamics are called for what they reach: the weights of a module have zeros as gradients, too
            moved = [program.dynamics(self._guess(flat, None)[:-1])] if problem.horizon > 1 else []
            *solution, none = lost.empty(flat, [arrays, params, moved], *((0, *port.shape) for port in maps.solve.outputs), (0,))
            return self._report(program, maps, solution, none, none, batch, tol, rti, none == none, none)
        if program.linear_quadratic:
            sides = {"initial": program.x0, **conditions.limits(program), "dynamics": program.dynamics.f}
            data = maps.transcription.program(program.cost.C, program.cost.c, program.dynamics.F, None, None, sides, program.weights)
            (w, y, s), told = verbs.call(maps.solve, *data, on_failure="nan", return_info=True)
            failure = sqp.failure_of(w, told.status)
            failure = xp.where(program.crossed & (failure > 0), xp.zeros_like(failure) + sqp.INFEASIBLE, failure)
            if isinstance(maps.solve.conic.solver, Staged) and not may(verbs, failure > 0):
                convex = failure == failure  # stages solve rows whose Hessian is positive definite on what is free
            else:
                convex = curvature.free_minimum(program)
            failure = xp.where((failure > 0) & (failure < sqp.LOST) & ~convex, xp.zeros_like(failure) + sqp.UNBOUNDED, failure)
            program, rows = apart(lost.without_numbers(verbs.stop(w)))
            plan = self._report(program, maps, (w, y, s), xp.ones_like(flat[:, 0]), failure, batch, tol, rti, convex, rows=rows)
            if (tell := describe(options, maps, verbs)) is not None:
                tell(verbs.asarray(0.0, flat), plan.info.kkt_residual)
            return plan
        shooting = options.method == "ilqr"
        if shooting and not ilqr.applies(program):
            raise ValueError("method='ilqr' knows bounds on controls only; use method='sqp' for other constraints and for slew")
        guess, leaves = self._guess(flat, warm_start), leaves_of(params)
        if rti or options.backward == "unroll":
            first = sqp.start(program, maps, guess)
            program, rows = apart(first.failure > 0)
            if rows is not None:
                first = sqp.start(program, maps, self._guess(program.x0[0], warm_start))._replace(failure=first.failure)
            steps, tell = 1 if rti else options.max_iter, describe(options, maps, verbs)
            point = sqp.unroll(program, maps, first, exact=options.exact, max_iter=steps, tol=tol, shooting=shooting, tell=tell)
            w = sqp.variables(program, maps, point)
            return self._report(program, maps, (w, point.y, point.s), point.iterations, point.failure, batch, tol, rti, rows=rows)

        def run(flat: Any, guess: Any, *rest: Any) -> tuple[Any, ...]:
            own, lead = list(rest[: len(arrays)]), tuple(flat.shape)[:-2]
            inside = merged(verbs, [flat, guess, *own], list(ranks[: 2 + len(own)]), lead)
            mapped = mapped_problem(verbs, problem, params, leaves, rest[len(arrays) :], lead, len(batch)) if lead else problem
            again = with_leaves(params, list(rest[len(arrays) :])) if not lead else params
            inner = program_of(mapped, inside[0], inside[2:], again, (*lead, *batch), sizes)
            tell = describe(options, maps, verbs)
            point = sqp.solve(inner, maps, inside[1], exact=options.exact, max_iter=options.max_iter, tol=tol, shooting=shooting, tell=tell)
            found = (*sqp.differentiable(inner, maps, point, options.curvature), point.iterations, point.failure)
            return tuple(xp.reshape(a, (*lead, -1, *a.shape[1:])) if lead else a for a in found)

        ranks = (2, 3, *(len(a.shape) for a in (*arrays, *leaves)))
        w, y, s, P, A, violation, minimum, iterations, failure = verbs.constant(run, ranks, flat, guess, *arrays, *leaves)
        program, rows = apart(~xp.isfinite(violation))
        solution = self._implicit(program, maps, w, y, s, P, A, rows)
        return self._report(program, maps, solution, iterations, failure, batch, tol, rti, minimum, violation, rows)

    def _guess(self, x0: Any, warm_start: Plan | None) -> Any:
        """Where to start, (T, B, s): at rest, or at the last plan shifted by one stage."""
        xp, problem = backend_of(x0).verbs.xp, self.problem
        if warm_start is not None:
            if not hasattr(warm_start, "x") or not hasattr(warm_start, "u"):
                raise ValueError(f"warm_start is a {type(warm_start).__name__}; wanted the Plan that the last call returned, or None")
            for name, a, width in (("x", warm_start.x, problem.n_state), ("u", warm_start.u, problem.n_ctrl)):
                rows, shape = int(np.prod(tuple(a.shape)[1:-1])), (*tuple(a.shape)[:1], *tuple(a.shape)[-1:])
                if shape != (problem.horizon, width) or rows != x0.shape[0]:
                    raise ValueError(
                        f"warm_start.{name} has shape {tuple(a.shape)}; wanted ({problem.horizon}, *batch, {width}) with {x0.shape[0]} "
                        "rows, as x0 has: the plan of the same horizon for the same batch, or None"
                    )
            parts = [xp.reshape(a, (problem.horizon, x0.shape[0], a.shape[-1])) for a in (warm_start.x, warm_start.u)]
            tau = backend_of(x0).verbs.stop(xp.concat(parts, axis=-1))
            return xp.where(xp.isfinite(tau), xp.concat([tau[1:], tau[-1:]], axis=0), xp.zeros_like(tau))
        u = xp.zeros_like(xp.broadcast_to(x0[:, :1], (x0.shape[0], problem.n_ctrl)))
        return xp.broadcast_to(xp.concat([x0, u], axis=-1)[None], (problem.horizon, x0.shape[0], problem.n_state + problem.n_ctrl))

    def _implicit(self, program: Program, maps: sqp.Maps, w: Any, y: Any, s: Any, P: Any, A: Any, rows: Any) -> tuple[Any, Any, Any]:
        """(w, y, s) with their derivatives: only the gradient of the Lagrangian and the constraints' values depend on what is given."""
        verbs, layout, transcription = backend_of(w).verbs, program.layout, maps.transcription
        found = w
        if rows is not None:  # they fail in the map
            found, w, y = verbs.xp.where(rows[:, None], w * np.nan, w), lost.instead(rows, w), lost.instead(rows, y)
        xp, tau, parts = verbs.xp, transcription.stages_of(w), transcription.parted(y)
        slope, sides = conditions.lagrangian_slope(program, tau, parts)
        if layout.slew == "quadratic" and layout.stages > 1:
            slope = slope + conditions.slew_slope(program, tau)
        q = xp.reshape(xp.moveaxis(slope, 0, 1), (tau.shape[1], layout.stages * (layout.n + layout.m)))
        if layout.slacks:
            slack = w[:, q.shape[-1] :]
            weight = transcription.slack_weights(program.weights["soft"])
            q = xp.concat([q, xp.zeros_like(slack) + (weight if layout.soft == "l1" else weight * slack)], axis=-1)
        sides = {"initial": program.x0, **conditions.limits(program), **sides}
        return verbs.call(maps.solved, P, q, A, transcription.sides(sides), found, y, s)

    def _report(
        self,
        program: Program,
        maps: sqp.Maps,
        solution: Any,
        iterations: Any,
        failure: Any,
        batch: Any,
        tol: float,
        rti: bool,
        minimum: Any = None,
        violation: Any = None,
        rows: Any = None,
    ) -> Plan:
        """The plan of (w, y, s); ``minimum`` and ``violation`` where known, of convex ones some of the former; ``rows`` without numbers."""
        w, y, s = solution if rows is None else (lost.instead(rows, a) for a in solution)
        verbs, layout, transcription = backend_of(w).verbs, program.layout, maps.transcription
        xp, T, n = verbs.xp, layout.stages, layout.n
        tau = transcription.stages_of(w)
        at, y, s = verbs.stop(tau), verbs.stop(y), verbs.stop(s)
        parts, gaps, active, weak = transcription.parted(y), transcription.parted(s), {}, failure > 0
        if violation is None:
            point = conditions.values(program, at)
            violation = verbs.stop(sqp.finite(conditions.distance(program, at, point, parts)))
            if minimum is None or may(verbs, ~minimum):
                point = conditions.expand(program, at, parts, "lagrangian", point)
                minimum = curvature.minimum(program, point, parts)
        if rows is not None:
            violation = xp.where(rows, xp.ones_like(violation) * np.inf, violation)
        minimum = minimum & (violation == violation)
        converged = (violation <= tol) & ~(failure > 0)
        scale = 1 + xp.max(xp.abs(y), axis=-1)[None, :, None]
        for name in layout.groups:
            if name not in ("initial", "dynamics"):
                strong = parts[name] > WEAK * scale
                weak = weak | xp.any(xp.any(~strong & (gaps[name] < WEAK * scale), axis=-1), axis=0)
                if name != "slack":
                    active[name] = xp.reshape(strong, (strong.shape[0], *batch, strong.shape[-1]))
        policy, other = self.options.on_unconverged, {"zero_grad": at, "nan": xp.ones_like(at) * np.nan}
        if not rti:
            settle(verbs, converged, violation, failure, policy)
        cost = _cost(program, tau if rti or policy not in other else transcription.stages_of(lost.instead(~converged, w)))
        if not rti and policy in other:  # rows that others stand in for, lest 0 times what is not finite reach what rows share
            tau = xp.where(converged[None, :, None], tau, other[policy])
            cost = xp.where(converged, cost, verbs.stop(_cost(program, other[policy])))
        infeasible, unbounded = failure == sqp.INFEASIBLE, failure == sqp.UNBOUNDED
        told = (cost, converged, iterations, violation, infeasible, unbounded, minimum & converged, converged & ~weak)
        cost, converged, iterations, violation, infeasible, unbounded, minimum, grad_ok = (xp.reshape(a, batch) for a in told)
        x, u = (xp.reshape(a, (T, *batch, a.shape[-1])) for a in (tau[..., :n], tau[..., n:]))
        plan = Plan(x, u, cost, PlanInfo(converged, iterations, violation, infeasible, unbounded, minimum, active, grad_ok))
        return plan if rows is None else lost.told(plan, rows)


def _cost(program: Program, tau: Any) -> Any:
    """What plans cost, (B,)."""
    held = {}
    if program.constraints is not None:
        held["constraints"] = program.constraints(tau)
    if program.terminal_constraints is not None:
        held["terminal"] = program.terminal_constraints(tau[-1:, :, : program.layout.n])
    return conditions.objective(program, tau, held)


@lru_cache(maxsize=64)
def _maps(layout: Layout, resolution: float) -> sqp.Maps:
    """Shared by all controllers of a layout and a precision: what JAX remembers of a map is true in one precision only."""
    transcription = Transcription(layout)
    pattern, kkt = transcription.pattern, system_of(transcription)
    maps = SolvedMap(pattern, newton=True, kkt=kkt), SolvedMap(pattern, kkt=kkt)
    solve = staged(transcription, SOLVER, kkt)
    direct = Direct(layout.stages, layout.n, layout.m, pattern.m) if isinstance(solve.conic.solver, Staged) else None
    return sqp.Maps(transcription, solve, *maps, direct)
