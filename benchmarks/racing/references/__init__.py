"""The answers to judge by, to rounding, each by a road that no contestant takes; see the files.

``reference(workload, data, x)`` is the answer and its gradients by parameter. ``x``, a contestant's answer, matters only where the problem
is not convex: there the reference is the local minimum next to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from racing.references import correlation, pendulum, projection, quadratic, smooth
from racing.workload import Workload

Answer = tuple[np.ndarray, dict[str, np.ndarray]]

CONVEX: dict[str, Callable[..., Answer]] = {
    **dict.fromkeys(("optnet", "simplex", "box", "factor", "mpc", "lqr"), quadratic.answer),
    **dict.fromkeys(("socp", "logistic"), smooth.answer),
    "sdp": correlation.answer,
    "lml": projection.answer,
}
SYMMETRIC = {"Q", "C"}
"""Parameters whose gradient is judged by its symmetric part, for libraries spread it over the two triangles in different ways."""


class Judge:
    """The reference of one workload, computed once where that is possible."""

    def __init__(self, workload: Workload, data: dict[str, np.ndarray]) -> None:
        self.workload, self.data = workload, data
        self.known: Answer | None = CONVEX[workload.kind](workload, data) if workload.kind in CONVEX else None

    def errors(self, x: np.ndarray, gradients: dict[str, np.ndarray]) -> dict[str, Any]:
        """The largest error of x and of the worst gradient, each relative to the largest entry of the exact one, over the whole batch."""
        exact_x, exact = self.known or pendulum.answer(self.workload, self.data, x)
        told: dict[str, Any] = {"error_x": error(x, exact_x)}
        if gradients:
            each = {name: error(_comparable(name, value), _comparable(name, exact[name])) for name, value in gradients.items()}
            worst = max(each, key=lambda name: np.inf if np.isnan(each[name]) else each[name])
            told |= {"error_gradient": each[worst], "worst_gradient": worst}
        return told


def _comparable(name: str, value: np.ndarray) -> np.ndarray:
    return (value + np.swapaxes(value, -1, -2)) / 2 if name in SYMMETRIC else value


def error(value: np.ndarray, exact: np.ndarray) -> float:
    """max |value - exact| / max |exact|; infinite where a value is not finite or has another shape."""
    if value.shape != exact.shape or not (np.isfinite(value).all() and np.isfinite(exact).all()):
        return float("inf")
    return float(np.max(np.abs(value - exact), initial=0.0) / np.max(np.abs(exact), initial=1e-300))
