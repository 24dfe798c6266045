"""Cases of libraries whose layers are PyTorch functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from racing.contestants.case import Case


def torch_case(data: dict[str, np.ndarray], names: Iterable[str], answer: Callable[[dict[str, Tensor]], Tensor], note: str = "") -> Case:
    """The case of ``answer(parameters)``, differentiated by PyTorch in all of ``names``."""
    leaves = {name: torch.from_numpy(data[name]).requires_grad_() for name in names}
    weights = torch.from_numpy(data["weights"])

    def forward() -> Tensor:
        with torch.no_grad():
            return answer(leaves)

    def both() -> tuple[Tensor, dict[str, Tensor]]:
        x = answer(leaves)
        # pulled back directly: the sum of a loss is nobody's work here, and its threads would still spin when a quick contestant begins
        gradients = torch.autograd.grad(x, list(leaves.values()), weights)
        return x, dict(zip(leaves, gradients, strict=True))

    return Case(forward, both, note)
