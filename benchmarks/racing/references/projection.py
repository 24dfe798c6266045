"""The LML projection: y = sigmoid(x + nu), sum y = k, nu by bisection to rounding between bounds that hold for every x."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from racing.workload import Workload


def answer(workload: Workload, data: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The answer and the gradient of the sum of weights times it: h (g - <h, g> / sum h), h = y (1 - y)."""
    x, k, n = data["x"], workload.sizes["k"], data["x"].shape[1]
    logit = np.log(k / (n - k))
    low, high = logit - x.max(1, keepdims=True), logit - x.min(1, keepdims=True)
    for _ in range(100):
        middle = (low + high) / 2
        above = expit(x + middle).sum(1, keepdims=True) > k
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    y = expit(x + (low + high) / 2)
    h, g = y * (1 - y), data["weights"]
    return y, {"x": h * (g - (h * g).sum(1, keepdims=True) / h.sum(1, keepdims=True))}
