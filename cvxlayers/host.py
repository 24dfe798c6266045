"""What an adapter sees of a layer: a map from arrays to arrays on the host, with every derivative an adapter needs.

    outputs = f(params),   vjp: g -> f'(params)* g,   jvp: d -> f'(params) d,
    second_vjp: (g, d) -> derivative of vjp(g) along d,   second_jvp: (d1, d2) -> f''(params)[d1, d2]

All are linear in g and in each d. The adjoint of d -> second_vjp(g, d) is itself, that of d2 -> second_jvp(d1, d2) is
g -> second_vjp(g, d1): with these four a framework closes its rules at second order. Derivatives need arrays alone, the parameters and
the solution: `restore` turns them into what `forward` would have saved, so nothing else survives a forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.program import Info, Pattern, Solution, shaped

Arrays = Sequence[np.ndarray | None]
Shape = tuple[int | None, ...] | None  # None for a size, or for all of them, that only the values will tell: a graph's


@dataclass(frozen=True)
class Options:
    """How one call is made: the keyword arguments of a layer's call, and whether somebody will read its Info."""

    solver_args: Mapping[str, Any] | None = None
    on_failure: str = "raise"
    warm_start: Info | None = None
    informed: bool = True


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
    conic: Any  # the differentiable cone program beneath

    def values(self, params: Sequence[Any]) -> list[np.ndarray]:
        """The parameters as NumPy float64 or complex128 arrays; raises ValueError for a wrong count or dtype."""
        check_count(self.inputs, params)
        values = []
        for port, param in zip(self.inputs, params, strict=True):
            values.append(converted(port, backend_of(param).host, param))
            check_real(port, values[-1].dtype.kind == "c")
        return values

    def batch(self, values: Sequence[np.ndarray]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The batch shape of a call, and which parameters have it; raises ValueError for shapes that do not fit."""
        if [value.shape for value in values] == [port.shape for port in self.inputs]:
            return (), (False,) * len(values)
        leads = batch_shapes(self.inputs, [value.shape for value in values])
        return common_batch(leads), tuple(lead != () for _, lead in leads)

    @abstractmethod
    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Any, Any]:
        """Outputs, what happened, and what the derivatives need; raises ValueError for misuse and SolverError as the options say.

        What happened is an Info, or None where nobody is to be ``informed``.
        """

    @abstractmethod
    def restore(self, params: Sequence[Any], solution: Solution) -> Any:
        """What `forward` saved, from its parameters and the info's Solution (*batch, ...)."""

    def state(self, saved: Any) -> np.ndarray:
        """The state (see `state_of`) that `forward` has found, from what it saved."""
        return state_of(shaped(saved.solution, saved.batch))

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


def check_count(ports: Sequence[Port], params: Sequence[Any]) -> None:
    """Raise ValueError unless there is a value for each port."""
    if len(params) != len(ports):
        names = ", ".join([repr(port.name) for port in ports])
        raise ValueError(f"got {len(params)} parameter values; wanted {len(ports)}, one for each of {names or 'no parameters'}")


def converted(port: Port, convert: Callable[[Any], Any], value: Any) -> Any:
    """``convert(value)``, whose errors name the parameter."""
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"parameter '{port.name}': {error}") from None


def check_real(port: Port, is_complex: bool) -> None:
    """Raise ValueError for complex values where the port is real."""
    if is_complex and not port.complex:
        raise ValueError(f"parameter '{port.name}' is real and got complex values; pass its real part, or declare it complex=True")


def check_start(info: Any, batch: tuple[int, ...], pattern: Pattern) -> None:
    """Raise ValueError unless a call of this batch shape can start from what ``info`` tells of an earlier one."""
    if not isinstance(info, Info):
        raise ValueError(f"warm_start is a {type(info).__name__}; wanted the info of an earlier call (return_info=True)")
    got, sizes = tuple(info.status.shape), (info.solution.x.shape[-1], info.solution.y.shape[-1])
    if got != batch or sizes != (pattern.n, pattern.m):
        raise ValueError(
            f"warm_start has batch shape {got} and sizes {sizes[0]}, {sizes[1]}; wanted {batch} and {pattern.n}, {pattern.m}, as in the "
            "call that made it"
        )


def batch_shapes(ports: Sequence[Port], shapes: Sequence[Shape]) -> list[tuple[str, Any]]:
    """The name and the batch shape of each value, from its own shape; raises ValueError for shapes that the ports do not have."""
    leads = []
    for position, (port, shape) in enumerate(zip(ports, shapes, strict=True), 1):
        name, lead = f"parameter '{port.name}'", None
        if shape is not None:
            rank = len(shape) - len(port.shape)
            if rank < 0 or not _agree(shape[rank:], port.shape):
                wanted = f"{port.shape} or (*batch{''.join(f', {size}' for size in port.shape)})"
                raise ValueError(f"{name} ({position} of {len(ports)}) has shape {shape}; wanted {wanted}")
            lead = shape[:rank]
        leads.append((name, lead))
    return leads


def common_batch(leads: Sequence[tuple[str, Shape]]) -> Any:
    """The one batch shape that is not (); raises ValueError naming two that differ."""
    first, batch = "", ()
    for name, lead in leads:
        if lead == () or lead == batch:
            continue
        if not batch:
            first, batch = first or name, lead
        elif lead is not None:
            if len(lead) != len(batch) or not _agree(lead, batch):
                raise ValueError(
                    f"{first} has batch shape {batch} and {name} has batch shape {lead}; wanted equal batch shapes, or none for what all "
                    "rows share"
                )
            batch = tuple(b if a is None else a for a, b in zip(lead, batch, strict=True))
    return batch


def _agree(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    return all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def state_of(solution: Solution, concatenate: Callable[..., Any] = np.concatenate) -> Any:
    """A solution as one array [x, y, s, status] (*batch, n + 2m + 1), all that a derivative needs beside the parameters."""
    return concatenate([solution.x, solution.y, solution.s, solution.status[..., None]], axis=-1)


def state_size(pattern: Pattern) -> int:
    """The length of a state."""
    return pattern.n + 2 * pattern.m + 1


def solution_of(state: Any, pattern: Pattern) -> Solution:
    """The solution that `state_of` wrote down; what stands after it is left out."""
    n, m = pattern.n, pattern.m
    x, y, s = state[..., :n], state[..., n : n + m], state[..., n + m : n + 2 * m]
    return Solution(x, y, s, state[..., n + 2 * m].astype(np.int32))


def start_of(state: np.ndarray, pattern: Pattern) -> Info:
    """An Info that tells no more than where to start."""
    solution = solution_of(state.astype(np.float64), pattern)
    status = solution.status
    return Info(status, *[status] * 5, solver="", warm_started=status, solution=solution)


FIGURES = ("iterations", "warm_started", "objective", "primal_residual", "dual_residual", "gap")  # of an Info, beside its solution


def record_of(info: Info) -> np.ndarray:
    """An Info as one array (*batch, n + 2m + 7): a state, and the figures."""
    return np.concatenate([state_of(info.solution), np.stack([getattr(info, name) for name in FIGURES], axis=-1)], axis=-1)


def info_of(record: Any, core: HostMap) -> Info:
    """The Info that `record_of` wrote down, as arrays of the record's framework."""
    figures = {name: record[..., state_size(core.conic.pattern) + k] for k, name in enumerate(FIGURES)}
    figures |= {"iterations": figures["iterations"].astype(np.int32), "warm_started": figures["warm_started"].astype(bool)}
    solution = replace(solution_of(record, core.conic.pattern), iterations=figures["iterations"])
    return Info(status=solution.status, solver=core.conic.solver.name, solution=solution, **figures)
