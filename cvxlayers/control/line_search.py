"""The line search of sequential quadratic programming, on the l1 merit function: cost + penalty * (what is violated).

Han, "A globally convergent method for nonlinear programming", 1977.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.control import ilqr
from cvxlayers.control.conditions import Expansion, excess, objective
from cvxlayers.control.problem import Program

STEPS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3)  # all tried at once; the long ones follow valleys
DECREASE = 1e-4  # share of the merit's slope that a step must gain


def may(verbs: Any, rows: Any) -> bool:
    """Whether some row is marked, as far as is known."""
    known = verbs.known(rows)
    return known is None or bool(known.any())


def search(program: Program, at: Expansion, tau: Any, direction: Any, penalty: Any, rows: Any, valley: Any) -> Any:
    """tau (T, B, s) after a step along ``direction`` that lowers the merit, where there is one, else after the shortest.

    ``penalty`` (B,); ``rows`` (B,) that count, ``valley`` (B,) those that may take steps longer than one.
    """
    verbs, layout = backend_of(tau).verbs, program.layout
    xp = verbs.xp
    held = excess(program, tau, at.f, at.g, at.h)
    violated = _violation(layout, held)
    here = objective(program, tau, held) + penalty * violated
    slope = xp.sum(at.slope * direction, axis=(0, 2)) - penalty * violated
    lengths = verbs.asarray(np.array(STEPS), tau)
    trials = tau + lengths[:, None, None, None] * direction
    n = layout.n
    trials = xp.concat([trials[..., :n], ilqr.clipped(program, trials[..., n:])], axis=-1)
    merits = _merit(program, trials, penalty)
    # rounding of the merit itself is no increase
    allowed = here + DECREASE * lengths[:, None] * xp.minimum(slope, xp.zeros_like(slope)) + 1e-12 * (1 + xp.abs(here))
    fine = (merits <= allowed) & ~xp.isnan(merits) & (valley | (lengths[:, None] <= 1))
    # the longest up to one that is fine, or a longer one that is better; the last where none is fine
    whole = xp.max(xp.where(fine & (lengths[:, None] <= 1), lengths[:, None], xp.zeros_like(merits)), axis=0)
    fine = xp.where(fine & ((lengths[:, None] > 1) | (lengths[:, None] == whole)), merits, xp.zeros_like(merits) + np.inf)
    best = (fine == xp.min(fine, axis=0)) & (fine < np.inf)
    taken = xp.max(xp.where(best, lengths[:, None], xp.zeros_like(merits)), axis=0)
    taken = xp.where(taken > 0, taken, xp.zeros_like(taken) + STEPS[-1])
    stopped = rows & (taken < 1)
    target = tau + taken[None, :, None] * direction
    target = xp.concat([target[..., :n], ilqr.clipped(program, target[..., n:])], axis=-1)
    if may(verbs, stopped):
        reached = xp.min(xp.where(lengths[:, None] == taken, merits, merits * 0 + np.inf), axis=0)
        target = _bent(program, trials, penalty, allowed, xp.where(stopped, reached, reached - np.inf), target)
    return target


def _bent(program: Program, trials: Any, penalty: Any, allowed: Any, reached: Any, target: Any) -> Any:
    """``target``, or where its merit is below ``reached`` the best rollout of the trials' controls, which bends with the dynamics.

    On curved dynamics straight steps would otherwise stay short (the Maratos effect).
    """
    xp = backend_of(trials).verbs.xp
    rolled = ilqr.rollout(program, ilqr.clipped(program, trials[..., program.layout.n :]))
    merits = _merit(program, rolled, penalty)
    merits = xp.where((merits <= allowed) & ~xp.isnan(merits), merits, xp.zeros_like(merits) + np.inf)
    least = xp.min(merits, axis=0)
    first = (merits == least) & (least < reached)
    weights = xp.where(first, xp.ones_like(merits), xp.zeros_like(merits))
    weights = weights / xp.maximum(xp.sum(weights, axis=0), xp.ones_like(least))  # of equal ones the mean, which is each of them
    chosen = weights[:, None, :, None]
    moved = xp.sum(xp.where(chosen > 0, chosen * rolled, xp.zeros_like(rolled)), axis=0)
    return xp.where((least < reached)[None, :, None], moved, target)


def _merit(program: Program, tau: Any, penalty: Any) -> Any:
    layout = program.layout
    n, before = layout.n, tau[..., :-1, :, :]
    f = program.dynamics(before) if layout.stages > 1 else None
    g = None if program.constraints is None else program.constraints(tau)
    h = None if program.terminal_constraints is None else program.terminal_constraints(tau[..., -1:, :, :n])
    held = {name: value for name, value in excess(program, tau, f, g, h).items() if name not in ("u_upper", "u_lower")}  # clipped
    return objective(program, tau, held) + penalty * _violation(layout, held)


def _violation(layout: Any, held: Any) -> Any:
    """The l1 norm of what is violated, (..., B); soft constraints are paid for in the objective."""
    total = None
    for name, value in held.items():
        if layout.soft is not None and name in ("constraints", "terminal"):
            continue
        xp = backend_of(value).verbs.xp
        over = xp.abs(value) if name in ("initial", "dynamics") else xp.maximum(value, xp.zeros_like(value))
        part = xp.sum(over, axis=(-1, -3))
        total = part if total is None else total + part
    return total
