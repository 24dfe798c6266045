"""The pendulum's dynamics and quadratic cost, for PyTorch: state (cos, sin, speed), control a torque."""

from __future__ import annotations

import torch
from torch import Tensor

STEP, LIMIT = 0.05, 2.0
COST, TARGET = (1.0, 1.0, 0.1, 0.001), (-1.0, 0.0, 0.0, 0.0)
"""1/2 tau'diag(COST) tau + TARGET'tau, tau = (state, control): upright is best."""


def move(x: Tensor, u: Tensor, theta: Tensor) -> Tensor:
    """The next state; theta = (gravity, mass, length)."""
    gravity, mass, length = theta[..., 0], theta[..., 1], theta[..., 2]
    angle = torch.atan2(x[..., 1], x[..., 0])
    push = 1.5 * gravity / length * torch.sin(angle) + 3.0 / (mass * length**2) * u[..., 0]
    speed = x[..., 2] + STEP * push
    angle = angle + STEP * speed
    return torch.stack([torch.cos(angle), torch.sin(angle), speed], dim=-1)
