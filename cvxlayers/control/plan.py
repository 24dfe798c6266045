"""What a controller returns."""

from __future__ import annotations

from typing import Any, NamedTuple


class PlanInfo(NamedTuple):
    """What happened, per row (*batch).

    ``converged``; ``iterations``; ``kkt_residual``, the largest relative violation of the optimality conditions, computed from the user's
    own functions; ``infeasible``, whether the constraints, or their linearization at the last point, cannot be satisfied; ``unbounded``,
    whether the cost has no minimum over them because it is not convex there or falls without end; ``minimum``, whether it converged
    and the cost curves downward along no direction that the active constraints leave (where False it may be a saddle point);
    ``active``, by the names of the groups of constraints, which of them have a positive multiplier (T or T-1, *batch, width);
    ``grad_ok``, whether the derivative is an ordinary one: converged, and no constraint both active and without multiplier.
    """

    converged: Any
    iterations: Any
    kkt_residual: Any
    infeasible: Any
    unbounded: Any
    minimum: Any
    active: dict[str, Any]
    grad_ok: Any


class Plan(NamedTuple):
    """States x (T, *batch, n), controls u (T, *batch, m), what they cost with penalties (*batch), and what happened."""

    x: Any
    u: Any
    cost: Any
    info: PlanInfo
