"""The iterative linear-quadratic regulator with bounds on controls: projected Newton steps, by Riccati recursion.

Controls alone are variables; every point is a rollout. A control at a bound that the gradient pushes outward is held there, the others take
a Newton step of the linear-quadratic approximation, and a line search of each row projects them on the bounds (Bertsekas, "Projected Newton
methods for optimization problems with simple constraints", SIAM J. Control Optim. 1982; Tassa, Mansard, Todorov, "Control-limited
differential dynamic programming", 2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.control import riccati
from cvxlayers.control.conditions import FLOOR, excess, expand, objective
from cvxlayers.control.expand import convexified
from cvxlayers.control.models import Affine
from cvxlayers.control.problem import Program
from cvxlayers.control.transcription import Transcription

STEPS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3)  # of the line search, all tried at once
DECREASE = 1e-4  # share of the slope that a step must gain


def applies(program: Program) -> bool:
    """Whether the program has bounds on controls only."""
    layout = program.layout
    return not (layout.path or layout.terminal or layout.slew or any(name.startswith("x") for name in layout.bounds))


def rollout(program: Program, u: Any) -> Any:
    """tau (..., T, B, s) of controls u (..., T, B, m)."""
    verbs, layout = backend_of(u).verbs, program.layout
    xp, lead = verbs.xp, len(u.shape) - 3
    x = xp.broadcast_to(program.x0[0], (*u.shape[:lead], *program.x0.shape[1:]))
    staged = [xp.moveaxis(u, lead, 0)]
    if isinstance(program.dynamics, Affine):
        for a in (program.dynamics.F, program.dynamics.f):
            a = a if a.shape[0] == layout.stages - 1 else xp.broadcast_to(a, (layout.stages - 1, *a.shape[1:]))
            staged.append(xp.concat([a, xp.zeros_like(a[:1])], axis=0))  # the last stage leads nowhere

    def ahead(x: Any, stage: tuple[Any, ...]) -> tuple[Any, Any]:
        tau = xp.concat([x, stage[0]], axis=-1)[..., None, :, :]
        dynamics = Affine(stage[1][None], stage[2][None]) if len(stage) > 1 else program.dynamics
        return dynamics(tau)[..., 0, :, :], (tau[..., 0, :, :],)

    _, (tau,) = verbs.scan(ahead, x, tuple(staged))
    return xp.moveaxis(tau, 0, lead)


def clipped(program: Program, u: Any) -> Any:
    """The nearest controls within the bounds."""
    xp = backend_of(u).verbs.xp
    if "u_lower" in program.bounds:
        u = xp.maximum(u, program.bounds["u_lower"])
    return xp.minimum(u, program.bounds["u_upper"]) if "u_upper" in program.bounds else u


def projected(program: Program, transcription: Transcription, tau: Any, y: Any, exact: bool) -> tuple[Any, Any, Any]:
    """One step from the rollout tau: the next one, with multipliers y and the distances s from the bounds, (B, rows of A)."""
    verbs, n, stages = backend_of(tau).verbs, program.layout.n, program.layout.stages
    xp = verbs.xp
    at = expand(program, tau, transcription.parted(y), "lagrangian" if exact else "cost")
    H = xp.broadcast_to(convexified(at.H, FLOOR) if exact else at.H, (stages, *at.H.shape[1:]))
    u, slope = tau[..., n:], _slope(verbs, at)
    near = 1e-9 * (1 + xp.abs(u))
    low = (u <= program.bounds["u_lower"] + near) if "u_lower" in program.bounds else slope > np.inf
    high = (u >= program.bounds["u_upper"] - near) if "u_upper" in program.bounds else slope > np.inf
    held = (low & (slope > 0)) | (high & (slope < 0))
    free = xp.where(held, xp.zeros_like(u), xp.ones_like(u))
    kept = xp.concat([xp.ones_like(tau[..., :n]), free], axis=-1)
    unit = verbs.asarray(np.eye(tau.shape[-1]), tau)
    C = H * kept[..., :, None] * kept[..., None, :] + unit * (1 - kept)[..., None, :]
    F = at.F * kept[:-1, :, None, :] if stages > 1 else at.F[:, :, :, :]
    if stages == 1:
        F = xp.zeros_like(C[:, :, :n, :])
    factors, _ = verbs.constant(lambda C, F: riccati.factor(C, F, stages), (4, 4), C, F)
    move, costates = verbs.symmetric(riccati.SYSTEM, (factors,), (C, F), (-at.slope * kept, xp.zeros_like(tau[..., :n])))

    lengths = verbs.asarray(np.array(STEPS), tau)
    trials = clipped(program, u + lengths[:, None, None, None] * move[..., n:])
    rolled = rollout(program, trials)
    costs = objective(program, rolled, {})
    here = objective(program, tau, {})
    gain = xp.sum(slope * (trials - u), axis=(-1, -3))
    fine = (costs <= here + DECREASE * gain + 1e-12 * (1 + xp.abs(here))) & ~xp.isnan(costs)
    best = xp.max(xp.where(fine, lengths[:, None], xp.zeros_like(costs)), axis=0)
    chosen = xp.where((lengths[:, None] == best) & fine, xp.ones_like(costs), xp.zeros_like(costs))[:, None, :, None]
    moved = xp.sum(xp.where(chosen > 0, rolled, xp.zeros_like(rolled)), axis=0)
    following = xp.where((best > 0)[None, :, None], moved, tau)

    # the multipliers of the linear-quadratic approximation
    rest = riccati.times(H, move)[..., n:] + at.slope[..., n:]
    if stages > 1:
        back = riccati.times(xp.matrix_transpose(at.F), costates[1:])[..., n:]
        rest = rest + xp.concat([back, xp.zeros_like(rest[:1])], axis=0)
    nothing = xp.zeros_like(rest)
    parts = {"initial": -costates[:1], "dynamics": -costates[1:]}
    parts["u_upper"] = xp.where(held, xp.maximum(-rest, nothing), nothing)
    parts["u_lower"] = xp.where(held, xp.maximum(rest, nothing), nothing)
    over = excess(program, following, following[1:, :, :n], None, None)
    gaps = {name: value * 0 if name in ("initial", "dynamics") else -value for name, value in over.items()}
    rows = (tau.shape[1], transcription.pattern.m)  # sides of one row have no axis of rows
    return following, *(xp.broadcast_to(transcription.sides(groups), rows) for groups in (parts, gaps))


def _slope(verbs: Any, at: Any) -> Any:
    """The gradient of the cost along rollouts in the controls, (T, B, m), by the adjoint recursion."""
    xp, n = verbs.xp, at.f.shape[-1] if at.f is not None else at.F.shape[-2]
    if at.slope.shape[0] == 1:
        return at.slope[..., n:]
    F = at.F if at.F.shape[0] == at.slope.shape[0] - 1 else xp.broadcast_to(at.F, (at.slope.shape[0] - 1, *at.F.shape[1:]))

    def back(costate: Any, stage: tuple[Any, Any]) -> tuple[Any, Any]:
        F, slope = stage
        total = slope + riccati.times(xp.matrix_transpose(F)[None], costate[None])[0]
        return total[..., :n], (total[..., n:],)

    last = at.slope[-1]
    _, (before,) = verbs.scan(back, last[..., :n], (xp.flip(F, axis=0), xp.flip(at.slope[:-1], axis=0)))
    return xp.concat([xp.flip(before, axis=0), last[None, ..., n:]], axis=0)
