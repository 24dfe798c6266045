"""mpc.pytorch on the control workloads, in float64.

Its defaults, except that rows which it calls unconverged are neither an error nor cut off from the gradient: both would end the race.
Pendulum: Jacobians given analytically (its automatic ones lose part of the gradient in the dynamics' parameters).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mpc.mpc import MPC, LinDx, QuadCost  # pyright: ignore[reportMissingImports]

from racing.contestants.case import Case
from racing.contestants.torch_case import torch_case
from racing.forms.pendulum import COST, LIMIT, STEP, TARGET, move
from racing.workload import Workload


def load(workload: Workload, data: dict[str, np.ndarray], iterations: int | None = None) -> Case:
    """``iterations``: at most that many, where they are not the library's default."""
    answers = {"mpc": _linear, "lqr": _lqr, "pendulum": _pendulum}
    if workload.kind not in answers:
        raise NotImplementedError("not a control problem")
    names = {"mpc": ("r", "c", "F", "f", "x0"), "lqr": ("C", "c", "F", "f", "x0"), "pendulum": ("x0", "theta")}[workload.kind]
    options = {"exit_unconverged": False, "detach_unconverged": False, "verbose": -1, "n_batch": workload.batch}
    if iterations is not None:
        options["lqr_iter"] = iterations
    return torch_case(data, names, answers[workload.kind](workload, options))


def _lqr(workload: Workload, options: dict[str, Any]) -> Any:
    sizes = workload.sizes
    solver = MPC(sizes["n_state"], sizes["n_ctrl"], sizes["horizon"], **options)

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        x, u, _ = solver(given["x0"], QuadCost(given["C"], given["c"]), LinDx(given["F"], given["f"]))
        return torch.cat([x, u], dim=-1)

    return answer


def _linear(workload: Workload, options: dict[str, Any]) -> Any:
    horizon = workload.sizes["horizon"]
    solver = MPC(workload.sizes["n_state"], workload.sizes["n_ctrl"], horizon, u_lower=-1.0, u_upper=1.0, **options)

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        C, c = torch.diag_embed(given["r"] ** 2), given["c"]
        cost = QuadCost(C.expand(horizon, *C.shape), c.expand(horizon, *c.shape))
        F, f = given["F"], given["f"]
        x, u, _ = solver(given["x0"], cost, LinDx(F.expand(horizon - 1, *F.shape), f.expand(horizon - 1, *f.shape)))
        return torch.cat([x, u], dim=-1).transpose(0, 1)

    return answer


class Pendulum(torch.nn.Module):
    """(cos, sin, speed) and a torque to the next ones, with its Jacobians."""

    def __init__(self, theta: torch.Tensor) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return move(x, u, self.theta)

    def grad_input(self, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gravity, mass, length = self.theta
        cos, sin = x[..., 0], x[..., 1]
        square = cos**2 + sin**2
        angle = torch.stack([-sin / square, cos / square, torch.zeros_like(cos)], dim=-1)
        speed = torch.stack([torch.zeros_like(cos), torch.zeros_like(cos), torch.ones_like(cos)], dim=-1)
        speed = speed + STEP * 1.5 * gravity / length * torch.cos(torch.atan2(sin, cos))[..., None] * angle
        push = STEP * 3.0 / (mass * length**2) * torch.ones_like(u)
        after = self(x, u)
        rows = [-after[..., 1:2], after[..., 0:1]]
        moved = angle + STEP * speed
        R = torch.stack([rows[0] * moved, rows[1] * moved, speed], dim=-2)
        S = torch.stack([rows[0] * STEP * push, rows[1] * STEP * push, push], dim=-2)
        return R, S


def _pendulum(workload: Workload, options: dict[str, Any]) -> Any:
    solver = MPC(3, 1, workload.sizes["horizon"], u_lower=-LIMIT, u_upper=LIMIT, linesearch_decay=0.2, max_linesearch_iter=5, **options)
    C, c = torch.diag(torch.tensor(COST, dtype=torch.float64)), torch.tensor(TARGET, dtype=torch.float64)

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        x, u, _ = solver(given["x0"], QuadCost(C, c), Pendulum(given["theta"]))
        return torch.cat([x, u], dim=-1)

    return answer
