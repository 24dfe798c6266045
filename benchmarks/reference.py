"""The answers against which both sides are judged: x and the gradient to rounding, by a road neither library takes.

CVXPY and Clarabel at tolerance 1e-12 find which inequalities are active; with those as equations, Newton's method solves

    F(x, y; p) = [grad f + C'y; c(x; p)] = 0,    C = dc/dx,

and the gradient of L = w'x in the parameters is -(dF/dp)'u, with u from J'u = [w; 0], J = dF/d(x, y), dense. Derivatives of f and c
are automatic. Where a closed form is known it is taken instead, and differentiated automatically.
"""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor
from workloads import Workload

ACTIVE = 1e-7  # an inequality closer to its bound than this is active; a multiplier of the wrong sign afterwards is an error
TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
STEPS = 10


def answer(workload: Workload) -> tuple[np.ndarray, list[np.ndarray]]:
    """x (batch, n) and the gradients of sum(weights * x), (batch, *shape) for each parameter."""
    values, weights = workload.data(), torch.from_numpy(workload.weights())
    if workload.solution is not None:
        tensors = [torch.from_numpy(v).requires_grad_() for v in values]
        x = workload.solution(*tensors)
        gradients = torch.autograd.grad((x * weights).sum(), tensors)
        return x.detach().numpy(), [g.numpy() for g in gradients]
    starts = _solve(workload, values)
    rows = [_row(workload, starts[k], [torch.from_numpy(v[k]) for v in values], weights[k]) for k in range(workload.batch)]
    return np.stack([x.numpy() for x, _ in rows]), [np.stack([g[k].numpy() for _, g in rows]) for k in range(len(values))]


def error(value: np.ndarray, exact: np.ndarray) -> float:
    """max |value - exact| / max |exact| over the whole batch."""
    return float(np.max(abs(value - exact)) / np.max(abs(exact)))


def _solve(workload: Workload, values: list[np.ndarray]) -> list[Tensor]:
    problem, parameters, (x,) = workload.state()
    found = []
    for row in range(workload.batch):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = value[row]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # at 1e-12 Clarabel calls its answer inaccurate; Newton's method judges it
            problem.solve(solver=cp.CLARABEL, **TIGHT)
        found.append(torch.from_numpy(np.array(x.value)))
    return found


def _row(workload: Workload, x: Tensor, values: list[Tensor], weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    n = len(x)
    active = workload.model(x, *values)[2] > -ACTIVE

    def constraints(x: Tensor, *values: Tensor) -> Tensor:
        _, equal, unequal = workload.model(x, *values)
        return torch.cat([equal, unequal[active]])

    def conditions(xy: Tensor, *values: Tensor) -> Tensor:
        x, y = xy[:n], xy[n:]
        slope = torch.func.grad(lambda x: workload.model(x, *values)[0] + constraints(x, *values) @ y)(x)
        return torch.cat([slope, constraints(x, *values)])

    C = torch.func.jacrev(constraints)(x, *values)
    slope = torch.func.grad(lambda x: workload.model(x, *values)[0])(x)
    xy = torch.cat([x, torch.linalg.lstsq(C.T, -slope[:, None]).solution[:, 0] if len(C) else x.new_zeros(0)])
    for _ in range(STEPS):
        residual = conditions(xy, *values)
        if residual.abs().max() < 1e-12:
            break
        xy = xy - torch.linalg.solve(torch.func.jacrev(conditions)(xy, *values), residual)
    _check(workload, xy[:n], xy[n:], conditions(xy, *values), active, values)
    u = torch.linalg.solve(torch.func.jacrev(conditions)(xy, *values).T, torch.cat([weight, xy.new_zeros(len(C))]))
    leaves = [v.clone().requires_grad_() for v in values]
    gradients = torch.autograd.grad(-(conditions(xy, *leaves) @ u), leaves)
    return xy[:n], list(gradients)


def _check(workload: Workload, x: Tensor, y: Tensor, residual: Tensor, active: Tensor, values: list[Tensor]) -> None:
    multipliers, unequal = y[len(y) - int(active.sum()) :], workload.model(x, *values)[2]
    wrong = bool((multipliers < 0).any()) or bool((unequal[~active] > 0).any())
    if wrong or residual.abs().max() > 1e-9:
        raise RuntimeError(
            f"no reference for {workload.name}: residual {residual.abs().max():.1e}, active set {'wrong' if wrong else 'right'}"
        )
