"""Layers for dense quadratic programs in PyTorch: proxsuite's QPLayer and qpth, with their default settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from racing.contestants.case import Case
from racing.contestants.torch_case import torch_case
from racing.forms.dense_qp import KINDS, dense_qp
from racing.workload import Workload


def load(workload: Workload, data: dict[str, np.ndarray], library: str) -> Case:
    """``library``: "proxsuite" or "qpth"."""
    if workload.kind not in KINDS:
        raise NotImplementedError("raced on dense QPs only")
    solve = {"proxsuite": _proxsuite, "qpth": _qpth}[library]()

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return solve(*dense_qp(workload.kind, given, torch))

    return torch_case(data, KINDS[workload.kind], answer)


def _proxsuite() -> Any:
    from proxsuite.torch.qplayer import QPFunction  # pyright: ignore[reportMissingImports]

    def solve(Q: Any, p: Any, G: Any, h: Any, A: Any, b: Any) -> torch.Tensor:
        A, b = (Q.new_zeros(0), Q.new_zeros(0)) if A is None else (A, b)
        return QPFunction()(Q, p, A, b, G, torch.full_like(h, -1e20), h)[0]

    return solve


def _qpth() -> Any:
    from qpth.qp import QPFunction  # pyright: ignore[reportMissingImports]

    def solve(Q: Any, p: Any, G: Any, h: Any, A: Any, b: Any) -> torch.Tensor:
        A, b = (Q.new_zeros(0), Q.new_zeros(0)) if A is None else (A, b)
        return QPFunction(verbose=-1)(Q, p, G, h, A, b)

    return solve
