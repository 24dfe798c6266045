"""Our control and top-k functions (``cvxlayers.control``, ``cvxlayers.topk``) on the control workloads and the LML projection."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch

from racing.contestants.case import Case
from racing.contestants.torch_case import torch_case
from racing.forms.pendulum import COST, LIMIT, TARGET, move
from racing.workload import Workload


def load(workload: Workload, data: dict[str, np.ndarray]) -> Case:
    answers = {"mpc": _linear, "lqr": _lqr, "pendulum": _pendulum, "lml": _lml}
    if workload.kind not in answers:
        raise NotImplementedError("not a control problem")
    names = {"mpc": ("r", "c", "F", "f", "x0"), "lqr": ("C", "c", "F", "f", "x0"), "pendulum": ("x0", "theta"), "lml": ("x",)}
    return torch_case(data, names[workload.kind], answers[workload.kind](workload))


def _ours(module: str) -> Any:
    return import_module(f"cvxlayers.{module}")


def _lqr(workload: Workload) -> Any:
    control = _ours("control")

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        found = control.lqr(given["C"], given["c"], given["F"], given["f"], given["x0"])
        return torch.cat([found.x, found.u], dim=-1)

    return answer


def _linear(workload: Workload) -> Any:
    control, horizon = _ours("control"), workload.sizes["horizon"]
    sizes = {"horizon": horizon, "n_state": workload.sizes["n_state"], "n_ctrl": workload.sizes["n_ctrl"]}

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        C, c = torch.diag_embed(given["r"] ** 2), given["c"]
        F, f = given["F"], given["f"]
        cost = control.QuadraticCost(C.expand(horizon, *C.shape), c.expand(horizon, *c.shape))
        dynamics = control.LinearDynamics(F.expand(horizon - 1, *F.shape), f.expand(horizon - 1, *f.shape))
        plan = control.MPC(dynamics, cost, **sizes, u_lower=-1.0, u_upper=1.0)(given["x0"])
        return torch.cat([plan.x, plan.u], dim=-1).transpose(0, 1)

    return answer


def _pendulum(workload: Workload) -> Any:
    C, c = torch.diag(torch.tensor(COST, dtype=torch.float64)), torch.tensor(TARGET, dtype=torch.float64)
    control = _ours("control")
    mpc = control.MPC(
        move, control.QuadraticCost(C, c), horizon=workload.sizes["horizon"], n_state=3, n_ctrl=1, u_lower=-LIMIT, u_upper=LIMIT
    )

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        plan = mpc(given["x0"], params=given["theta"])
        return torch.cat([plan.x, plan.u], dim=-1)

    return answer


def _lml(workload: Workload) -> Any:
    topk, k = _ours("topk"), workload.sizes["k"]
    return lambda given: topk.lml(given["x"], k)
