"""Smooth programs, minimize f subject to g <= 0: Newton's method on the optimality equations of the active set, from `start`.

    F(x, y; p) = [grad f + C'y; g(x; p)] = 0,  C = dg/dx,  over the active g

The gradient in the parameters is -(dF/dp)'u, with u from J'u = [w; 0], J = dF/d(x, y); derivatives of f and g are automatic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from racing.forms.cone import FORMS
from racing.references.start import entries, rows
from racing.workload import Workload

Model = Callable[..., tuple[Tensor, Tensor]]
ACTIVE, STEPS = 1e-6, 20


def _socp(x: Tensor, A: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    s = (b - A @ x).reshape(-1, 10)
    return c @ x, ((s[:, 1:] ** 2).sum(1) - s[:, 0] ** 2) / 2


def _logistic(w: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nn.functional.softplus(-(Z @ w)).sum() + 0.5 * (w**2).sum(), w.new_zeros(0)


MODELS: dict[str, Model] = {"socp": _socp, "logistic": _logistic}


def answer(workload: Workload, data: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The answer and the gradients of the sum of weights times it."""
    form, model = FORMS[workload.kind](**workload.sizes), MODELS[workload.kind]
    leaves, values = entries(form, data)
    found = []
    for k, row in enumerate(rows(form, values)):
        start = form.output(torch.from_numpy(row.x))
        found.append(_row(workload, model, start, [leaf[k].detach() for leaf in leaves.values()], torch.from_numpy(data["weights"][k])))
    x = np.stack([x.numpy() for x, _ in found])
    return x, {name: np.stack([g[k].numpy() for _, g in found]) for k, name in enumerate(leaves)}


def _row(workload: Workload, model: Model, x: Tensor, values: list[Tensor], weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    n = len(x)
    active = model(x, *values)[1] > -ACTIVE

    def constraints(x: Tensor, *values: Tensor) -> Tensor:
        return model(x, *values)[1][active]

    def conditions(xy: Tensor, *values: Tensor) -> Tensor:
        x, y = xy[:n], xy[n:]
        slope = torch.func.grad(lambda x: model(x, *values)[0] + constraints(x, *values) @ y)(x)
        return torch.cat([slope, constraints(x, *values)])

    C = torch.func.jacrev(constraints)(x, *values)
    slope = torch.func.grad(lambda x: model(x, *values)[0])(x)
    xy = torch.cat([x, torch.linalg.lstsq(C.T, -slope[:, None]).solution[:, 0] if len(C) else x.new_zeros(0)])
    jacobian = torch.func.jacrev(conditions)
    for _ in range(STEPS):
        residual = conditions(xy, *values)
        if residual.abs().max() < 1e-12:
            break
        xy = xy - torch.linalg.solve(jacobian(xy, *values), residual)
    left, y = conditions(xy, *values).abs().max(), xy[n:]
    if not (left < 1e-9 and (y >= 0).all() and (model(xy[:n], *values)[1][~active] <= 0).all()):
        raise RuntimeError(f"no reference for {workload.key}: residual {left:.1e}, or a wrong active set")
    u = torch.linalg.solve(jacobian(xy, *values).T, torch.cat([weight, y.new_zeros(len(y))]))
    leaves = [v.clone().requires_grad_() for v in values]
    return xy[:n], list(torch.autograd.grad(-(conditions(xy, *leaves) @ u), leaves))
