"""CvxpyLayer, ours (``cvxlayers.torch``) or that of cvxpylayers (``cvxpylayers.torch``), on the workloads stated in CVXPY."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch

from racing.contestants.case import Case
from racing.contestants.torch_case import torch_case
from racing.forms.statement import STATEMENTS, directly, doubled
from racing.workload import Workload


def load(
    workload: Workload,
    data: dict[str, np.ndarray],
    module: str,
    solver: str | None = None,
    solver_args: dict[str, Any] | None = None,
    root: bool = False,
    twice: bool = False,
) -> Case:
    """``root``: Q of a dense QP enters by its root; ``twice``: constraints on a variable are stated for twice the variable."""
    if workload.kind not in STATEMENTS or workload.kind == "build":
        raise NotImplementedError("not stated in CVXPY here")
    layers: Any = import_module(module)
    sizes: dict[str, Any] = {**workload.sizes, **({"root": True} if root and workload.kind == "optnet" else {})}
    problem, parameters, variable = STATEMENTS[workload.kind](doubled if twice else directly, **sizes)
    named = {} if solver is None else {"solver": solver}
    layer = layers.CvxpyLayer(problem, parameters=list(parameters.values()), variables=[variable], **named)
    extra = {} if solver_args is None else {"solver_args": solver_args}

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return layer(*(given[name] for name in parameters), **extra)[0]

    return torch_case(data, parameters, answer, _note(layer))


def _note(layer: Any) -> str:
    core = getattr(layer, "core", None)
    return f"solver {core.conic.solver.name}" if core is not None else ""
