"""The second-order condition: whether the Lagrangian curves downward along no direction that the active constraints leave.

Directions follow the linearized dynamics, so that one Riccati recursion decides: with controls at bounds held, and with a large weight on
whatever other active constraints would feel (Finsler's lemma: for a weight large enough the two conditions are one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.control import riccati
from cvxlayers.control.conditions import Expansion
from cvxlayers.control.problem import Program

HEAVY = 1e7  # times the Hessian's largest entry: the weight on active constraints
LEVEL = 1e-7  # times the Hessian's largest entry: curvature downward by less than this counts as none
ACTIVE = 1e-6  # a multiplier above this is one, relative to 1 + the largest


def free_minimum(program: Program) -> Any:
    """Whether a linear-quadratic program has one minimum without its bounds, (B or 1,): it is then convex."""
    return _convex(program.cost.C, _dynamics(program, program.dynamics.F), program.layout.stages)


def minimum(program: Program, at: Expansion, y: Mapping[str, Any]) -> Any:
    """Whether nothing curves downward at a point with multipliers y by groups, (B,)."""
    layout, verbs = program.layout, backend_of(at.slope).verbs
    xp, n, T = verbs.xp, layout.n, layout.stages
    C = xp.broadcast_to(at.H, (T, *at.slope.shape[1:], n + layout.m))
    unit = verbs.asarray(np.eye(n + layout.m), at.slope)
    most = 1 + xp.max(xp.concat([xp.max(xp.abs(a), axis=-1) for a in y.values()], axis=0), axis=0)
    heavy = HEAVY * (1e-3 + xp.max(xp.abs(C), axis=(0, -2, -1)))

    def strong(name: str) -> Any:
        return xp.where(y[name] > ACTIVE * most[None, :, None], xp.ones_like(y[name]), xp.zeros_like(y[name]))

    C = C + (heavy * (LEVEL / HEAVY))[:, None, None] * unit
    held = [strong(name) for name in ("u_upper", "u_lower") if name in y]
    stiff = [strong(name) for name in ("x_upper", "x_lower") if name in y]
    if stiff:
        weights = xp.concat([sum(stiff[1:], stiff[0]), xp.zeros_like(at.slope[1:, :, n:])], axis=-1)
        weights = xp.concat([xp.zeros_like(at.slope[:1]), weights], axis=0)
        C = C + heavy[:, None, None] * unit * weights[..., None, :]
    if "constraints" in y:
        C = C + _weighed(xp, at.G, _pushing(program, program.soft_weights("constraints"), strong("constraints"), y["constraints"], heavy))
    if "terminal" in y:
        last = _weighed(xp, at.E, _pushing(program, program.soft_weights("terminal"), strong("terminal"), y["terminal"], heavy))
        last = xp.concat([last, xp.zeros_like(C[-1:, :, :n, n:])], axis=-1)
        C = xp.concat([C[:-1], C[-1:] + xp.concat([last, xp.zeros_like(C[-1:, :, n:, :])], axis=-2)], axis=0)
    F = at.F if T > 1 else _dynamics(program, at.F)
    if layout.slew is not None and T > 1:
        if layout.slew == "quadratic":
            tied = xp.broadcast_to(program.weights["slew"], (T - 1, *at.slope.shape[1:2], layout.m))
        else:
            tied = heavy[None, :, None] * xp.maximum(strong("slew_upper"), strong("slew_lower"))
        C, F = _tied(verbs, C, F, xp.concat([at.slope[:1, :, n:] * 0, tied], axis=0), n)
    if held:
        free = 1 - xp.maximum(held[0], held[-1])
        kept = xp.concat([xp.ones_like(C[..., 0, : C.shape[-1] - layout.m]), free], axis=-1)
        own = verbs.asarray(np.eye(C.shape[-1]), C)
        C = C * (kept[..., :, None] * kept[..., None, :]) + own * (1 - kept)[..., None, :]
        F = F * kept[:-1, :, None, :] if T > 1 else F
    return _convex(C, F, T)


def _tied(verbs: Any, C: Any, F: Any, weights: Any, n: int) -> tuple[Any, Any]:
    """The problem in the states [x; previous u], where weight/2 (u - previous u)^2, weights (T, B, m), is a cost of a stage."""
    xp, s = verbs.xp, C.shape[-1]
    m = s - n
    both, one = np.zeros((s, s + m)), np.eye(m)  # [x; u] of [x; previous u; u]
    both[:n, :n], both[n:, s:] = np.eye(n), one
    change, after = np.concatenate([np.zeros((m, n)), -one, one], axis=1), np.concatenate([np.zeros((m, s)), one], axis=1)
    both, change, after = (verbs.asarray(a, C) for a in (both, change, after))
    C = xp.matmul(xp.matrix_transpose(both), xp.matmul(C, both))
    C = C + xp.matmul(xp.matrix_transpose(change) * weights[..., None, :], change)
    F = xp.matmul(F, both)
    return C, xp.concat([F, xp.broadcast_to(after, (*F.shape[:-2], *after.shape))], axis=-2)


def _convex(C: Any, F: Any, stages: int) -> Any:
    return backend_of(C).verbs.constant(lambda C, F: riccati.factor(C, F, stages), (4, 4), C, F)[1]


def _dynamics(program: Program, F: Any) -> Any:
    """F, or zeros of its kind where there is one stage."""
    xp, n = backend_of(program.x0).verbs.xp, program.layout.n
    if program.layout.stages > 1:
        return F
    row = xp.concat([program.x0, xp.zeros_like(program.x0[..., :1])], axis=-1)[..., :1] * 0
    return xp.broadcast_to(row[..., None], (1, program.x0.shape[1], n, n + program.layout.m))


def _pushing(program: Program, weight: Any, strong: Any, y: Any, heavy: Any) -> Any:
    """The weight of each constraint: heavy where it is active; a soft one that is violated has the curvature of its penalty alone."""
    xp, soft = backend_of(y).verbs.xp, program.layout.soft
    if soft is None:
        return heavy[None, :, None] * strong
    if soft == "quadratic":
        return weight * strong
    return xp.where(y < weight * (1 - ACTIVE), heavy[None, :, None] * strong, xp.zeros_like(y))


def _weighed(xp: Any, G: Any, weights: Any) -> Any:
    """G' diag(weights) G."""
    return xp.matmul(xp.matrix_transpose(G) * weights[..., None, :], G)
