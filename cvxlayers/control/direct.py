"""Steps of sequential quadratic programming by compiled stages alone, where there are bounds on controls alone and values are at hand.

They are those of the cone programs of `transcription`, which are what frameworks differentiate and what compiled code calls; here nothing
is assembled, and nothing is judged but by the violation of the optimality conditions, which is measured after each step anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.compiled import kernels
from cvxlayers.control.conditions import Expansion
from cvxlayers.control.problem import Program


class Moved(NamedTuple):
    """tau (T, B, s), y and s (B, rows of A), and where the problem is convex on what is free (B,)."""

    tau: Any
    y: Any
    s: Any
    convex: Any


@dataclass(frozen=True)
class Direct:
    """The steps of T stages with n states, m controls and so many rows of A."""

    stages: int
    n: int
    m: int
    rows: int

    def newton(self, program: Program, at: Expansion, tau: Any, y: Any, s: Any) -> Moved | None:
        """The Newton step on the optimality conditions; None where values are not at hand."""
        known = _known(backend_of(tau).verbs, program, at.H, at.F, at.slope, at.f, tau, program.x0, y, s)
        if known is None:
            return None
        (H, F, slope, f, tau_, x0, y, s), bounds = known
        T, B, width = tau_.shape
        F, f = F if T > 1 else F[:0], f if T > 1 else f[:0]
        wide = [_wide(H, (T, B, width, width)), _wide(F, (T - 1, B, self.n, width)), _wide(slope, (T, B, width))]
        wide += [_wide(f, (T - 1, B, self.n)), _wide(tau_, tau_.shape), _wide(x0[0], (B, self.n))]
        sides = [_wide(bounds[name], (T, B, self.m)) if name in bounds else None for name in ("u_upper", "u_lower")]
        return _moved(kernels("staged_newton").newton(*wide, *sides, _wide(y - s, y.shape)), tau)

    def quadratic(self, program: Program, at: Expansion, H: Any, q: Any, sides: Any) -> Moved | None:
        """The solution of the quadratic program with Hessian H, gradient q (T, B, s) at zero, and b = ``sides`` (B, rows of A).

        None where values are not at hand.
        """
        known = _known(backend_of(q).verbs, program, H, at.F, q, sides)
        if known is None:
            return None
        (H_, F, q_, b), bounds = known
        T, B, width = q_.shape
        b, rows = _wide(b, (B, self.rows)), 1 if H_.shape[1] == 1 else B
        P = _wide(np.moveaxis(np.broadcast_to(H_, (T, rows, width, width)), 1, 0), (rows, T, width, width)).reshape(rows, -1)
        A, first = np.zeros((B, (T - 1) * self.n * width + 2 * T * self.m + 1)), (T - 1) * self.n * width
        if T > 1:
            A[:, :first] = -np.moveaxis(np.broadcast_to(F, (T - 1, B, self.n, width)), 1, 0).reshape(B, -1)
        starts, row = [], T * self.n
        for side, name in enumerate(("u_upper", "u_lower")):
            starts.append(row if name in bounds else -1)
            if name in bounds:
                finite = np.isfinite(np.moveaxis(np.broadcast_to(bounds[name], (T, B, self.m)), 1, 0).reshape(B, -1))
                A[:, first + side * T * self.m : first + (side + 1) * T * self.m] = np.where(finite, 1.0 - 2.0 * side, 0.0)
                row += T * self.m
        kernel = kernels("box")
        places = kernel.Places(T, self.n, self.m, np.arange(P.shape[1]), np.arange(A.shape[1]), *starts)
        q_ = _wide(np.moveaxis(q_, 1, 0), (B, T, width)).reshape(B, -1)
        x, y, s, report = kernel.solve(places, P, q_, A, np.where(np.isfinite(b), b, 1.0))
        convex = (report[:, 0] == 1) & np.isfinite(x).all(-1) & np.isfinite(y).all(-1)
        s = np.where(np.isfinite(b), s, np.inf)
        return _moved((np.moveaxis(x.reshape(B, T, width), 1, 0), y, s, convex), q)


def _known(verbs: Any, program: Program, *arrays: Any) -> tuple[list[np.ndarray], dict[str, np.ndarray]] | None:
    """The arrays and the bounds in double precision."""
    found = [verbs.known(a) for a in (*arrays, *program.bounds.values())]
    if any(a is None for a in found):
        return None
    found = [np.asarray(a, dtype=np.float64) for a in found]
    return found[: len(arrays)], dict(zip(program.bounds, found[len(arrays) :], strict=True))


def _wide(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(a, shape))


def _moved(found: Sequence[np.ndarray], like: Any) -> Moved:
    verbs = backend_of(like).verbs
    tau, y, s, convex = (verbs.asarray(a, like) for a in found)
    return Moved(tau, y, s, convex > 0)
