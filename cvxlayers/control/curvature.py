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
    """Whether nothing curves downward at a point with multipliers y by groups, (B,); true where slew ties controls, not tested."""
    layout, verbs = program.layout, backend_of(at.slope).verbs
    xp, n, T = verbs.xp, layout.n, layout.stages
    if layout.slew is not None:
        return at.slope[0, :, 0] == at.slope[0, :, 0]
    C = xp.broadcast_to(at.H, (T, *at.slope.shape[1:], n + layout.m))
    unit = verbs.asarray(np.eye(n + layout.m), at.slope)
    most = 1 + xp.max(xp.stack([xp.max(xp.max(xp.abs(a), axis=-1), axis=0) for a in y.values()], axis=0), axis=0)
    heavy = HEAVY * (1e-3 + xp.max(xp.max(xp.max(xp.abs(C), axis=-1), axis=-1), axis=0))
    nothing, one = xp.zeros_like(at.slope), xp.ones_like(at.slope)

    def strong(name: str) -> Any:
        return xp.where(y[name] > ACTIVE * most[None, :, None], xp.ones_like(y[name]), xp.zeros_like(y[name]))

    held, stiff = nothing[..., n:], nothing[..., :n]
    for name in ("u_upper", "u_lower", "x_upper", "x_lower"):
        if name in y and name[0] == "u":
            held = xp.maximum(held, strong(name))
        elif name in y:
            stiff = stiff + xp.concat([nothing[:1, :, :n], strong(name)], axis=0)
    C = C + heavy[:, None, None] * unit * LEVEL / HEAVY
    C = C + heavy[:, None, None] * unit * xp.concat([stiff, nothing[..., n:]], axis=-1)[..., None, :]
    if "constraints" in y:
        C = C + _weighed(xp, at.G, _pushing(program, program.soft_weights("constraints"), strong("constraints"), y["constraints"], heavy))
    if "terminal" in y:
        last = _weighed(xp, at.E, _pushing(program, program.soft_weights("terminal"), strong("terminal"), y["terminal"], heavy))
        last = xp.concat([last, xp.zeros_like(C[-1:, :, :n, n:])], axis=-1)
        C = xp.concat([C[:-1], C[-1:] + xp.concat([last, xp.zeros_like(C[-1:, :, n:, :])], axis=-2)], axis=0)
    kept = xp.concat([one[..., :n], 1 - held], axis=-1)
    C = C * kept[..., :, None] * kept[..., None, :] + unit * (1 - kept)[..., None, :]
    F = at.F * kept[:-1, :, None, :] if T > 1 else _dynamics(program, at.F)
    return _convex(C, F, T)


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
