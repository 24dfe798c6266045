"""What an adapter sees of a layer: a map from arrays to arrays on the host, with every derivative an adapter needs.

    outputs = f(params),   vjp: g -> f'(params)* g,   jvp: d -> f'(params) d,
    second_vjp: (g, d) -> derivative of vjp(g) along d,   second_jvp: (d1, d2) -> f''(params)[d1, d2]

All are linear in g and in each d. The adjoint of d -> second_vjp(g, d) is itself, that of d2 -> second_jvp(d1, d2) is
g -> second_vjp(g, d1): with these four a framework closes its rules at second order. Derivatives need arrays alone, the parameters and
the solution: `restore` turns them into what `forward` would have saved, so nothing else survives a forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvxlayers.program import Info, Solution

Arrays = Sequence[np.ndarray | None]


@dataclass(frozen=True)
class Options:
    """How one call is made: the keyword arguments of a layer's call."""

    solver_args: Mapping[str, Any] | None = None
    on_failure: str = "raise"
    warm_start: Info | None = None


@dataclass(frozen=True)
class Port:
    """One input or output of a map: its name, the shape of one row, whether it is complex."""

    name: str
    shape: tuple[int, ...]
    complex: bool


class HostMap(ABC):
    """A differentiable map on NumPy arrays; ``inputs`` and ``outputs`` are its ports, in order.

    Parameters and outputs are (*batch, *shape); parameters without batch axes are shared by all rows. None stands for a cotangent or
    tangent that is zero. ``needed`` says which parameters' cotangents are wanted; the others come back None.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @abstractmethod
    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Info, Any]:
        """Outputs, what happened, and what the derivatives need; raises ValueError for misuse and SolverError as the options say."""

    @abstractmethod
    def restore(self, params: Sequence[Any], solution: Solution) -> Any:
        """What `forward` saved, from its parameters and the info's Solution (*batch, ...)."""

    @abstractmethod
    def vjp(self, saved: Any, cotangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        """Cotangents of the parameters from those of the outputs."""

    @abstractmethod
    def jvp(self, saved: Any, tangents: Arrays) -> list[np.ndarray]:
        """Tangents of the outputs from those of the parameters."""

    @abstractmethod
    def second_vjp(self, saved: Any, cotangents: Arrays, tangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        """The derivative along ``tangents`` of what `vjp` makes of ``cotangents``; ValueError where there is none."""

    @abstractmethod
    def second_jvp(self, saved: Any, one: Arrays, two: Arrays) -> list[np.ndarray]:
        """The second derivative of the outputs along two tangents of the parameters; ValueError where there is none."""
