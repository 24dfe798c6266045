"""A `HostMap` without complex numbers: every complex port as pairs of reals, (*shape, 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvxlayers.host import Arrays, HostMap, Options, Port
from cvxlayers.program import Info, Solution


class Pairs(HostMap):
    """The same map for frameworks whose rules are written in reals. The derivative of a pair is the pair of derivatives."""

    def __init__(self, core: HostMap) -> None:
        self.core, self.conic = core, core.conic
        self.inputs, self.outputs = _real(core.inputs), _real(core.outputs)

    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Info, Any]:
        """As the map's."""
        outputs, info, saved = self.core.forward(_joined(params, self.core.inputs), options)
        return _parted(outputs, self.core.outputs), info, saved

    def restore(self, params: Sequence[Any], solution: Solution) -> Any:
        """As the map's."""
        return self.core.restore(_joined(params, self.core.inputs), solution)

    def vjp(self, saved: Any, cotangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        """As the map's."""
        return _parted(self.core.vjp(saved, _joined(cotangents, self.core.outputs), needed), self.core.inputs)

    def jvp(self, saved: Any, tangents: Arrays) -> list[np.ndarray]:
        """As the map's."""
        return _parted(self.core.jvp(saved, _joined(tangents, self.core.inputs)), self.core.outputs)

    def second_vjp(self, saved: Any, cotangents: Arrays, tangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        """As the map's."""
        directions = _joined(cotangents, self.core.outputs), _joined(tangents, self.core.inputs)
        return _parted(self.core.second_vjp(saved, *directions, needed), self.core.inputs)

    def second_jvp(self, saved: Any, one: Arrays, two: Arrays) -> list[np.ndarray]:
        """As the map's."""
        directions = _joined(one, self.core.inputs), _joined(two, self.core.inputs)
        return _parted(self.core.second_jvp(saved, *directions), self.core.outputs)


def _real(ports: Sequence[Port]) -> tuple[Port, ...]:
    return tuple(Port(port.name, port.shape + (2,) * port.complex, False) for port in ports)


def _joined(arrays: Sequence[Any], ports: Sequence[Port]) -> list[Any]:
    pairs = zip(arrays, ports, strict=True)
    return [a[..., 0] + 1j * a[..., 1] if a is not None and port.complex else a for a, port in pairs]


def _parted(arrays: Sequence[Any], ports: Sequence[Port]) -> list[Any]:
    pairs = zip(arrays, ports, strict=True)
    return [np.stack([a.real, a.imag], axis=-1) if a is not None and port.complex else a for a, port in pairs]
