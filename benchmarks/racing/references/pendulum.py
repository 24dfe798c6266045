"""The pendulum: the local minimum next to a contestant's controls, by Newton's method on the controls that touch no bound.

J(u; x0, theta) is the cost of the trajectory that u drives. At the minimum dJ/du_f = 0 over the free controls f, and the gradient of L is
dL/dp - v' d2J/du_f dp with H_ff v = dL/du_f: the exact derivative of the solution, second derivatives of the dynamics included.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from racing.forms.pendulum import COST, LIMIT, TARGET, move
from racing.workload import Workload

STEPS, TOUCHES = 30, 1e-5


def drive(u: Tensor, x0: Tensor, theta: Tensor) -> Tensor:
    """The trajectory (T, 4) of states and controls u (T, 1)."""
    states = [x0]
    for control in u[:-1]:
        states.append(move(states[-1], control, theta))
    return torch.cat([torch.stack(states), u], dim=-1)


def _cost(u: Tensor, x0: Tensor, theta: Tensor) -> Tensor:
    tau = drive(u[:, None], x0, theta)
    return (0.5 * tau**2 @ torch.tensor(COST, dtype=u.dtype) + tau @ torch.tensor(TARGET, dtype=u.dtype)).sum()


def answer(workload: Workload, data: dict[str, np.ndarray], near: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The minimum next to ``near`` (T, batch, 4), and the gradients of the sum of weights times it; NaN in rows that end at none."""
    x0, theta, weights = (torch.from_numpy(data[name]) for name in ("x0", "theta", "weights"))
    u = torch.from_numpy(near[..., 3].T.copy()).nan_to_num().clamp(-LIMIT, LIMIT)
    slope_of = torch.func.vmap(torch.func.grad(_cost), in_dims=(0, 0, None))
    hessian_of = torch.func.vmap(torch.func.hessian(_cost), in_dims=(0, 0, None))
    slope = slope_of(u, x0, theta)
    bound = ((u > LIMIT - TOUCHES) & (slope < 0)) | ((u < -LIMIT + TOUCHES) & (slope > 0))
    u = torch.where(bound, u.sign() * LIMIT, u)
    for _ in range(STEPS):
        H, right = _free(hessian_of(u, x0, theta), slope_of(u, x0, theta), bound)
        u = torch.nan_to_num(u - torch.linalg.solve(H, right), posinf=0.0, neginf=0.0)  # a row that runs away is told below
    slope = slope_of(u, x0, theta)
    regular = torch.where(bound, (slope * u < 0), slope.abs() < 1e-9).all(1) & (u.abs() <= LIMIT).all(1)
    H, _ = _free(hessian_of(u, x0, theta), slope, bound)
    regular &= torch.linalg.cholesky_ex(H).info == 0

    def loss(u: Tensor, x0: Tensor, theta: Tensor, weight: Tensor) -> Tensor:
        return (drive(u[:, None], x0, theta) * weight).sum()

    by_row = weights.transpose(0, 1)
    g = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 0, None, 0))(u, x0, theta, by_row)
    v = torch.linalg.solve(
        torch.where(regular[:, None, None], H, torch.eye(H.shape[-1], dtype=H.dtype)), torch.where(bound, 0.0, g)
    ).detach()
    leaves = x0.clone().requires_grad_(), theta.clone().requires_grad_()
    first = torch.func.vmap(loss, in_dims=(0, 0, None, 0))(u, leaves[0], leaves[1], by_row).sum()
    second = (slope_of(u, leaves[0], leaves[1]) * v).sum()
    dx0, dtheta = torch.autograd.grad(first - second, leaves)
    tau = torch.func.vmap(drive, in_dims=(0, 0, None))(u[..., None], x0, theta)
    x = torch.where(regular[:, None, None], tau, torch.nan).transpose(0, 1)
    return x.numpy(), {"x0": dx0.numpy(), "theta": dtheta.numpy()}


def _free(H: Tensor, right: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """The Newton system with the bound controls held: their rows and columns those of the identity, their right side zero."""
    held = bound[:, :, None] | bound[:, None, :]
    return torch.where(held, 0.0, H) + torch.diag_embed(bound.to(H)), torch.where(bound, 0.0, right)
