"""The two models whose derivatives are known: linear dynamics and quadratic costs. Functions of (x, u, params) like a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cvxlayers.backend import backend_of
from cvxlayers.control.riccati import times


@dataclass(frozen=True)
class LinearDynamics:
    """x_{t+1} = F_t [x_t; u_t] + f_t: F (n, s), or (T-1, n, s), or (T-1, *batch, n, s); f with one axis less, None for zero."""

    F: Any
    f: Any = None


@dataclass(frozen=True)
class QuadraticCost:
    """1/2 tau'C tau + c'tau, tau = [x; u]: C (s, s), or (T, s, s), or (T, *batch, s, s); c with one axis less, None for zero.

    C counts as (C + C')/2.
    """

    C: Any
    c: Any = None


@dataclass(frozen=True)
class Affine:
    """`LinearDynamics` with all axes: F (T-1 or 1, B or 1, n, s), f (T-1 or 1, B or 1, n); called with tau (..., T-1, B, s)."""

    F: Any
    f: Any

    def __call__(self, tau: Any) -> Any:
        return times(self.F, tau) + self.f


@dataclass(frozen=True)
class Quadratic:
    """`QuadraticCost` with all axes and symmetric C: C (T or 1, B or 1, s, s), c (T or 1, B or 1, s); tau (..., T, B, s)."""

    C: Any
    c: Any

    def __call__(self, tau: Any) -> Any:
        xp = backend_of(tau).verbs.xp
        half = times(self.C / 2, tau) if self.C.shape[-3] == 1 else times(self.C, tau) / 2  # whichever is smaller
        return xp.sum((half + self.c) * tau, axis=-1)
