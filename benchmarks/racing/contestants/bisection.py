"""The LML projection by the published method, written from its description: bracketing at ten points a round.

y = sigmoid(x + nu) with sum y = k (Amos, Koltun, Kolter, "The limited multi-label projection layer", 2019); nu lies in
[-x_(k) - 7, -x_(k+1) + 7], x_(j) the j-th largest, and each round keeps the ninth of the bracket in which the sum crosses k, until it is
shorter than ``eps``. Backward: dx = h (g - <h, g> / sum h), h = y (1 - y).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from racing.contestants.case import Case
from racing.contestants.torch_case import torch_case
from racing.workload import Workload

POINTS, SATURATED = 10, 7.0


class Projection(torch.autograd.Function):
    """x (batch, n) -> y (batch, n)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, k: int, eps: float) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        largest = x.topk(k + 1, dim=1).values
        low, high = -largest[:, k - 1] - SATURATED, -largest[:, k] + SATURATED
        share = torch.linspace(0, 1, POINTS, dtype=x.dtype)
        while (high - low).max() > eps:
            points = low[:, None] + (high - low)[:, None] * share
            sums = torch.sigmoid(x[:, :, None] + points[:, None, :]).sum(1)
            below = ((sums < k).sum(1, keepdim=True) - 1).clamp(0, POINTS - 2)
            low, high = points.gather(1, below)[:, 0], points.gather(1, below + 1)[:, 0]
        y = torch.sigmoid(x + ((low + high) / 2)[:, None])
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *directions: torch.Tensor) -> tuple[Any, ...]:
        (y,), (g,) = ctx.saved_tensors, directions
        h = y * (1 - y)
        return h * (g - (h * g).sum(1, keepdim=True) / h.sum(1, keepdim=True)), None, None


def load(workload: Workload, data: dict[str, np.ndarray], eps: float) -> Case:
    if workload.kind != "lml":
        raise NotImplementedError("the LML projection only")
    return torch_case(data, ("x",), lambda given: Projection.apply(given["x"], workload.sizes["k"], eps))  # pyright: ignore[reportArgumentType]
