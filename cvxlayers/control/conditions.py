"""The optimality conditions of a `Program`: its expansion at a point, the values of its constraints, how far a point is from optimal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.control.expand import convexified, gradient, hessian, jacobian
from cvxlayers.control.models import Affine, Quadratic
from cvxlayers.control.problem import Program
from cvxlayers.control.riccati import times

Parts = Mapping[str, Any]
FLOOR = 1e-9  # of the largest eigenvalue: the least curvature that a convexified Hessian keeps


class Expansion(NamedTuple):
    """At a point: dynamics f (T-1, B, n), F; slope (T, B, s) of the cost; Hessian (T, B or 1, s, s); constraints g, G; terminal h, E."""

    f: Any
    F: Any
    slope: Any
    H: Any
    g: Any
    G: Any
    h: Any
    E: Any


def values(program: Program, tau: Any) -> Expansion:
    """Values and first derivatives at tau (T, B, s)."""
    layout, x_last = program.layout, _last(program, tau)
    n, before = layout.n, tau[:-1]
    if layout.stages == 1:
        f, F = before[..., :n], before[..., :n, None] * before[..., None, :]
    elif isinstance(program.dynamics, Affine):
        f, F = program.dynamics(before), program.dynamics.F
    else:
        f, F = jacobian(program.dynamics, before, n)
    g, G = (None, None) if program.constraints is None else jacobian(program.constraints, tau, layout.path)
    h, E = (None, None) if program.terminal_constraints is None else jacobian(program.terminal_constraints, x_last, layout.terminal)
    return Expansion(f, F, _cost_slope(program, tau), None, g, G, h, E)


def packed(program: Program, at: Expansion) -> tuple[Any, ...]:
    """What an expansion without a Hessian has for every row."""
    own = at if not isinstance(program.dynamics, Affine) else at._replace(F=None)
    return tuple(a for a in own if a is not None)


def unpacked(program: Program, arrays: Sequence[Any]) -> Expansion:
    """The way back."""
    path, last, rest = program.constraints is not None, program.terminal_constraints is not None, list(arrays)
    affine = isinstance(program.dynamics, Affine)
    there = (True, not affine, True, False, path, path, last, last)
    at = Expansion(*(rest.pop(0) if one else None for one in there))
    return at._replace(F=program.dynamics.F) if affine else at


def expand(program: Program, tau: Any, y: Parts, curvature: str, at: Expansion | None = None) -> Expansion:
    """Values and derivatives at tau (T, B, s), first ones as in ``at``.

    ``curvature`` says which Hessian is wanted: that of the "cost", made convex, or that of the "lagrangian" with multipliers y.
    """
    at, exact, quadratic = values(program, tau) if at is None else at, curvature == "lagrangian", isinstance(program.cost, Quadratic)
    H = program.cost.C if quadratic else hessian(program.cost, tau)
    last = [] if program.terminal_cost is None else [hessian(program.terminal_cost, _last(program, tau))]
    if not exact:
        H, last = convexified(H, FLOOR, only_where_needed=quadratic), [convexified(part, FLOOR) for part in last]
    elif program.layout.stages > 1 and not isinstance(program.dynamics, Affine):
        H = _early(H, hessian(program.dynamics, tau[:-1], -y["dynamics"]))
    if exact and program.constraints is not None:
        H = H + hessian(program.constraints, tau, y["constraints"])
    if exact and program.terminal_constraints is not None:
        last.append(hessian(program.terminal_constraints, _last(program, tau), y["terminal"]))
    for part in last:
        H = _late(H, _widened(part, tau), program.layout.stages)
    return at._replace(H=H)


def lagrangian_slope(program: Program, tau: Any, y: Parts) -> tuple[Any, dict[str, Any]]:
    """The gradient (T, B, s) of the Lagrangian's terms with functions of the user's, and b of their rows by groups, A being a constant."""
    verbs, slope, sides = backend_of(tau).verbs, _cost_slope(program, tau), {}
    if program.layout.stages > 1:
        sides["dynamics"], pull = verbs.vjp(program.dynamics, tau[:-1])
        slope = _early(slope, -pull(y["dynamics"])[0])
    if program.constraints is not None:
        g, pull = verbs.vjp(program.constraints, tau)
        slope, sides["constraints"] = slope + pull(y["constraints"])[0], -g
    if program.terminal_constraints is not None:
        h, pull = verbs.vjp(program.terminal_constraints, _last(program, tau))
        slope, sides["terminal"] = _late(slope, _wide(pull(y["terminal"])[0], tau), program.layout.stages), -h
    return slope, sides


def _cost_slope(program: Program, tau: Any) -> Any:
    """The gradient of the costs, (T, B, s)."""
    if isinstance(program.cost, Quadratic):
        slope = times(program.cost.C, tau) + program.cost.c
    else:
        slope = gradient(program.cost, tau)
    if program.terminal_cost is None:
        return slope
    return _late(slope, _wide(gradient(program.terminal_cost, _last(program, tau)), tau), program.layout.stages)


def _wide(x: Any, tau: Any) -> Any:
    """x (1, B, n) with zeros for the controls."""
    xp = backend_of(x).verbs.xp
    return xp.concat([x, xp.zeros_like(tau[-1:, :, x.shape[-1] :])], axis=-1)


def _widened(M: Any, tau: Any) -> Any:
    """M (1, B, n, n) with zeros for the controls."""
    xp, n = backend_of(M).verbs.xp, M.shape[-1]
    right = xp.concat([M, xp.zeros_like(M[..., :1] * tau[-1:, :, None, n:])], axis=-1)
    return xp.concat([right, xp.zeros_like(tau[-1:, :, n:, None] * tau[-1:, :, None, :])], axis=-2)


def _last(program: Program, tau: Any) -> Any:
    return tau[-1:, :, : program.layout.n]


def _early(whole: Any, part: Any) -> Any:
    """(T or 1, ...) with something added to all stages but the last."""
    xp = backend_of(part).verbs.xp
    whole = xp.broadcast_to(whole, (part.shape[0] + 1, *part.shape[1:]))
    return xp.concat([whole[:-1] + part, whole[-1:]], axis=0)


def _late(whole: Any, part: Any, stages: int) -> Any:
    """(T or 1, ...) with something added to the last stage."""
    xp = backend_of(part).verbs.xp
    whole = xp.broadcast_to(whole, (stages, *part.shape[1:]))
    return xp.concat([whole[:-1], whole[-1:] + part], axis=0)


def excess(program: Program, tau: Any, f: Any, g: Any, h: Any) -> dict[str, Any]:
    """What each group of rows but ``slack`` holds: equal to zero in the first two, at most zero in the others; (..., stages, B, width).

    Soft constraints are shown without their slacks.
    """
    n, bounds, layout = program.layout.n, program.bounds, program.layout
    x, u = tau[..., :n], tau[..., n:]
    found = {"initial": x[..., :1, :, :] - program.x0}
    if layout.stages > 1:
        found["dynamics"] = x[..., 1:, :, :] - f
    for name in ("u_upper", "u_lower", "x_upper", "x_lower"):
        if name in bounds:
            value, bound = (u, bounds[name]) if name[0] == "u" else (x[..., 1:, :, :], _after(bounds[name]))
            found[name] = value - bound if name.endswith("upper") else bound - value
    if program.constraints is not None:
        found["constraints"] = g
    if program.terminal_constraints is not None:
        found["terminal"] = h
    if layout.slew == "bound":
        moved, limit = u[..., 1:, :, :] - u[..., :-1, :, :], program.weights["slew"]
        found["slew_upper"], found["slew_lower"] = moved - limit, -moved - limit
    return {name: found[name] for name in layout.groups if name in found}


def _after(bound: Any) -> Any:
    return bound[1:] if bound.shape[0] > 1 else bound


def right_sides(program: Program, tau: Any, at: Expansion) -> dict[str, Any]:
    """b of the linearized rows by groups."""
    found = {"initial": program.x0, **limits(program)}
    if program.layout.stages > 1:
        found["dynamics"] = at.f - times(at.F, tau[:-1])
    if program.constraints is not None:
        found["constraints"] = times(at.G, tau) - at.g
    if program.terminal_constraints is not None:
        found["terminal"] = times(at.E, tau[-1:, :, : program.layout.n]) - at.h
    return found


def limits(program: Program) -> dict[str, Any]:
    """b of the rows that hold variables only."""
    verbs, layout, bounds = backend_of(program.x0).verbs, program.layout, program.bounds
    found = {}
    for name in bounds:
        bound = bounds[name] if name[0] == "u" else _after(bounds[name])
        found[name] = bound if name.endswith("upper") else -bound
    if layout.slew == "bound":
        found["slew_upper"] = found["slew_lower"] = program.weights["slew"]
    if "slack" in layout.groups:
        found["slack"] = verbs.asarray(np.zeros((1, 1, layout.slacks)), program.x0)
    return found


def pulled(program: Program, at: Expansion, y: Parts) -> Any:
    """A'y on tau, (T, B, s)."""
    xp, n, T = backend_of(at.slope).verbs.xp, program.layout.n, program.layout.stages
    x = xp.concat([y["initial"], y["dynamics"]], axis=0) if T > 1 else y["initial"]
    u = xp.zeros_like(at.slope[..., n:])
    nothing = xp.zeros_like(x[:1])
    for name in ("u_upper", "u_lower", "x_upper", "x_lower"):
        if name in y:
            signed = y[name] if name.endswith("upper") else -y[name]
            if name[0] == "u":
                u = u + signed
            else:
                x = x + xp.concat([nothing, signed], axis=0)
    if "slew_upper" in y:
        u = u + _differences(xp, y["slew_upper"] - y["slew_lower"])
    if "terminal" in y:
        ends = times(xp.matrix_transpose(at.E), y["terminal"])
        x = xp.concat([x[:-1], x[-1:] + ends], axis=0)
    total = xp.concat([x, u], axis=-1)
    if T > 1:
        back = times(xp.matrix_transpose(at.F), y["dynamics"])
        total = total - xp.concat([back, xp.zeros_like(total[:1])], axis=0)
    return total + times(xp.matrix_transpose(at.G), y["constraints"]) if "constraints" in y else total


def _differences(xp: Any, v: Any) -> Any:
    """The adjoint of u -> u_t - u_{t-1}: (T-1, B, m) -> (T, B, m)."""
    nothing = xp.zeros_like(v[:1])
    return xp.concat([nothing, v], axis=0) - xp.concat([v, nothing], axis=0)


def slew_slope(program: Program, tau: Any) -> Any:
    """The gradient of a quadratic penalty on u_t - u_{t-1}, (T, B, s)."""
    xp, n = backend_of(tau).verbs.xp, program.layout.n
    moved = (tau[1:, :, n:] - tau[:-1, :, n:]) * program.weights["slew"]
    return xp.concat([xp.zeros_like(tau[..., :n]), _differences(xp, moved)], axis=-1)


def objective(program: Program, tau: Any, held: Parts) -> Any:
    """Costs and penalties (..., B) at tau (..., T, B, s), with the constraints' values in ``held``."""
    layout, xp = program.layout, backend_of(tau).verbs.xp
    n = layout.n
    total = xp.sum(program.cost(tau), axis=-2)
    if program.terminal_cost is not None:
        total = total + program.terminal_cost(tau[..., -1:, :, :n])[..., 0, :]
    if layout.slew == "quadratic":
        moved = tau[..., 1:, :, n:] - tau[..., :-1, :, n:]
        total = total + xp.sum(program.weights["slew"] * moved * moved, axis=(-1, -3)) / 2
    for name in ("constraints", "terminal"):
        if layout.soft is not None and name in held:
            over = xp.maximum(held[name], xp.zeros_like(held[name]))
            total = total + xp.sum(program.soft_weights(name) * (over if layout.soft == "l1" else over * over / 2), axis=(-1, -3))
    return total


def distance(program: Program, tau: Any, at: Expansion, y: Parts) -> Any:
    """The largest relative violation of the optimality conditions, (B,)."""
    xp, layout = backend_of(tau).verbs.xp, program.layout

    def most(a: Any) -> Any:
        return xp.max(xp.max(xp.abs(a), axis=-1), axis=0)

    slope = at.slope
    if layout.slew == "quadratic" and layout.stages > 1:
        slope = slope + slew_slope(program, tau)
    back = pulled(program, at, y)
    worst = most(slope + back) / (1 + xp.maximum(most(slope), most(back)))
    size = 1 + most(tau)
    for name, value in excess(program, tau, at.f, at.g, at.h).items():
        if name in ("initial", "dynamics"):
            found = most(value) / size
        else:
            value, dual = _unsoftened(program, value, y[name], name)
            found = most(xp.minimum(dual, -value)) / size  # complementarity, and the violation where value > 0
        worst = xp.maximum(worst, found)
    return worst


def _unsoftened(program: Program, value: Any, dual: Any, name: str) -> tuple[Any, Any]:
    """A group's excess and multipliers; of soft constraints what the penalty leaves: the multiplier is the penalty's slope."""
    soft = program.layout.soft
    if soft is None or name not in ("constraints", "terminal"):
        return value, dual
    xp, weight = backend_of(value).verbs.xp, program.soft_weights(name)
    if soft == "quadratic":
        slack = dual / weight
    else:
        slack = xp.where(dual >= weight * (1 - 1e-6), xp.maximum(value, xp.zeros_like(value)), value * 0)
    return value - slack, dual
