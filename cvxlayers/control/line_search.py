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

WHOLE = (4.0, 2.0, 1.0)  # lengths of the steps tried first; those above one follow valleys
BENT = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1)  # of the rollouts tried next
SHORT = (0.5, 0.25, 0.1, 0.03, 0.01, 1e-3)  # of what is tried last
DECREASE = 1e-4  # share of the merit's slope that a step must gain


def may(verbs: Any, rows: Any) -> bool:
    """Whether some row is marked, as far as is known."""
    known = verbs.known(rows)
    return known is None or bool(known.any())


def search(program: Program, at: Expansion, tau: Any, direction: Any, penalty: Any, rows: Any, valley: Any) -> Any:
    """tau (T, B, s) after a step along ``direction`` that lowers the merit, where there is one, else after the shortest.

    A whole step, or a longer one that is better; where that fails, the best rollout of the controls of longer and shorter steps, which
    bends with the dynamics: on curved ones straight steps would stay short (the Maratos effect); where that fails too, the longest of
    the short steps. ``penalty`` (B,); ``rows`` (B,) that count, ``valley`` (B,) those that may take whole steps longer than one.
    """
    verbs, layout = backend_of(tau).verbs, program.layout
    xp = verbs.xp
    held = excess(program, tau, at.f, at.g, at.h)
    violated = _violation(layout, held)
    here = objective(program, tau, held) + penalty * violated
    slope = xp.sum(at.slope * direction, axis=(0, 2)) - penalty * violated
    slope, nothing = xp.minimum(slope, xp.zeros_like(slope)), xp.zeros_like(slope)

    def of(lengths: tuple[float, ...]) -> Any:
        return verbs.asarray(np.array(lengths)[:, None], tau)

    def straight(lengths: Any) -> Any:
        moved = tau + lengths[..., None, :, None] * direction
        return xp.concat([moved[..., : layout.n], ilqr.clipped(program, moved[..., layout.n :])], axis=-1)

    def merits_of(lengths: Any, there: Any, follows: bool = False) -> Any:
        """Infinite where a step gains too little; rounding of the merit itself is no increase."""
        merits = _merit(program, there, penalty, follows)
        return xp.where(merits <= here + DECREASE * lengths * slope + 1e-12 * (1 + xp.abs(here)), merits, nothing + np.inf)

    def longest(lengths: Any, fine: Any) -> Any:
        return xp.max(xp.where(fine, lengths, nothing), axis=0)

    lengths = of(WHOLE if may(verbs, rows & valley) else WHOLE[-1:])
    merits = merits_of(lengths, straight(lengths))
    merits = xp.where(valley | (lengths <= 1), merits, nothing + np.inf)
    taken = longest(lengths, (merits == xp.min(merits, axis=0)) & (merits < np.inf))
    stopped = rows & (taken == 0)
    if not may(verbs, stopped):
        return straight(xp.where(taken > 0, taken, nothing + SHORT[-1]))
    lengths = of(BENT)
    rolled = ilqr.rollout(program, straight(lengths)[..., layout.n :])
    merits = merits_of(lengths, rolled, follows=True)
    bent = xp.where(stopped, longest(lengths, (merits == xp.min(merits, axis=0)) & (merits < np.inf)), nothing)
    moved = xp.sum(xp.where((lengths == bent)[:, None, :, None], rolled, xp.zeros_like(rolled)), axis=0)
    stopped = stopped & (bent == 0)
    if may(verbs, stopped):
        lengths = of(SHORT)
        taken = xp.where(stopped, longest(lengths, merits_of(lengths, straight(lengths)) < np.inf), taken)
    return xp.where((bent > 0)[None, :, None], moved, straight(xp.where(taken > 0, taken, nothing + SHORT[-1])))


def _merit(program: Program, tau: Any, penalty: Any, follows: bool) -> Any:
    """The merit (..., B) of tau (..., T, B, s) with controls within their bounds, which ``follows`` the dynamics or does not."""
    layout = program.layout
    n, before = layout.n, tau[..., :-1, :, :]
    f = tau[..., 1:, :, :n] if follows else program.dynamics(before) if layout.stages > 1 else None
    g = None if program.constraints is None else program.constraints(tau)
    h = None if program.terminal_constraints is None else program.terminal_constraints(tau[..., -1:, :, :n])
    satisfied = {"u_upper", "u_lower", *(("initial", "dynamics") if follows else ())}
    held = {name: value for name, value in excess(program, tau, f, g, h).items() if name not in satisfied}
    return objective(program, tau, held) + penalty * _violation(layout, held)


def _violation(layout: Any, held: Any) -> Any:
    """The l1 norm of what is violated, (..., B); soft constraints are paid for in the objective."""
    total = 0.0
    for name, value in held.items():
        if layout.soft is not None and name in ("constraints", "terminal"):
            continue
        xp = backend_of(value).verbs.xp
        over = xp.abs(value) if name in ("initial", "dynamics") else xp.maximum(value, xp.zeros_like(value))
        total = total + xp.sum(over, axis=(-1, -3))
    return total
