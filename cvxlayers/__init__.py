"""Differentiable convex optimization layers.

The floors, from the ground up (imports point downward only):

1. ``cones`` (projection, its derivative, dual), ``domain`` (promises of a parameter), ``errors``, ``backend``
2. ``program``: the records Pattern, ConeProgram, Solution
3. ``kkt`` (the linear system at a solution), ``canonicalize`` (CVXPY problem -> cone program), ``solvers``
4. ``adjoint``: vjp and jvp of (P, q, A, b) -> (x, y, s)
5. ``conic``: ConicLayer, the differentiable cone program
6. ``layer``, ``conic_map``: what adapters see (``host``), a CVXPY problem or a cone program as a map on arrays; ``rules``: its derivatives;
   ``interface``: the arguments of a layer and of a call
7. ``torch``, ``jax``, ``tensorflow``: one file per framework
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cvxlayers.errors import GradientWarning, InaccurateWarning, SolverError, Status

if TYPE_CHECKING:
    from cvxlayers.report import diagnose

__version__ = "0.1.0"

__all__ = ["GradientWarning", "InaccurateWarning", "SolverError", "Status", "diagnose"]


def __getattr__(name: str) -> Any:
    # `diagnose` stands on every floor below it; whoever wants only an exception class should not wait for them.
    if name == "diagnose":
        from cvxlayers.report import diagnose

        globals()["diagnose"] = diagnose
        return diagnose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
