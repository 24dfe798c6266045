"""Products of cones: what the rows of a whole program lie in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from array_api_compat import array_namespace

from cvxlayers.cones.base import Array, Block, Cone, Derivative
from cvxlayers.cones.exponential import Exponential
from cvxlayers.cones.linear import NonNegative, Zero
from cvxlayers.cones.power import Power
from cvxlayers.cones.second_order import SecondOrder
from cvxlayers.cones.semidefinite import Semidefinite

ORDER: tuple[type[Cone], ...] = (Zero, NonNegative, SecondOrder, Semidefinite, Exponential, Power)


@dataclass(frozen=True)
class Product(Cone):
    """The product of ``cones``, one after the other; a product among them is replaced by its own cones.

    Consecutive equal cones are handled by one call on (*batch, count, dim).

    >>> import numpy as np
    >>> cone = Product((NonNegative(2), SecondOrder(2)))
    >>> cone.dim
    4
    >>> cone.project(np.array([1.0, -1.0, 0.0, 2.0]))
    array([1., 0., 1., 1.])
    """

    cones: tuple[Cone, ...]

    def __post_init__(self) -> None:
        flat = (part for cone in self.cones for part in (cone.cones if isinstance(cone, Product) else (cone,)))
        object.__setattr__(self, "cones", tuple(flat))

    @cached_property
    def dim(self) -> int:
        return sum(cone.dim for cone in self.cones)

    @cached_property
    def kinds(self) -> frozenset[type[Cone]]:
        """The classes of the cones present."""
        return frozenset(type(cone) for cone in self.cones)

    @cached_property
    def ordered(self) -> bool:
        """Whether the cones come in the order zero, nonnegative, second-order, semidefinite, exponential, power, and no others."""
        if not self.kinds <= set(ORDER):
            return False
        ranks = [ORDER.index(type(cone)) for cone in self.cones]
        return ranks == sorted(ranks)

    def project(self, v: Array) -> Array:
        return _join(v, [cone.project(_part(v, cone, start, count)) for cone, start, count in self._runs])

    def derivative(self, v: Array) -> Derivative:
        return self._side_by_side(v, [cone.derivative(_part(v, cone, start, count)) for cone, start, count in self._runs])

    def linearize(self, v: Array) -> tuple[Derivative, Array]:
        parts = [cone.linearize(_part(v, cone, start, count)) for cone, start, count in self._runs]
        return self._side_by_side(v, [derivative for derivative, _ in parts]), self._nearest(v, [margin for _, margin in parts])

    def _side_by_side(self, v: Array, derivatives: list[Derivative]) -> Derivative:
        values, blocks = [], []
        for (_, start, count), derivative in zip(self._runs, derivatives, strict=True):
            values.append(derivative.values)
            for block in derivative.blocks:
                vectors = block.vectors
                if count > 1:
                    vectors = array_namespace(v).reshape(vectors, (*v.shape[:-1], count * block.count, block.size, block.size))
                blocks.append(Block(start, count * block.count, block.size, vectors))
        return Derivative(_join(v, values), tuple(blocks))

    def dual(self) -> Product:
        return self._dual

    @cached_property
    def twice(self) -> bool:
        """Whether every cone knows the second derivative of its projection."""
        return all(cone.twice for cone in self.cones)

    def second(self, v: Array, a: Array, b: Array) -> Array:
        return _join(v, [cone.second(*(_part(w, cone, start, count) for w in (v, a, b))) for cone, start, count in self._runs])

    def margin(self, v: Array) -> Array:
        return self._nearest(v, [cone.margin(_part(v, cone, start, count)) for cone, start, count in self._runs])

    def _nearest(self, v: Array, parts: list[Array]) -> Array:
        xp = array_namespace(v)
        margins = Zero(0).margin(v)
        for (_, _, count), margin in zip(self._runs, parts, strict=True):
            margins = xp.minimum(margins, margin if count == 1 else xp.min(margin, axis=-1))
        return margins

    @cached_property
    def _runs(self) -> tuple[tuple[Cone, int, int], ...]:
        """(cone, first coordinate, count) for every run of consecutive equal cones."""
        runs, start = [], 0
        for cone, run in groupby(self.cones):
            count = len(tuple(run))
            runs.append((cone, start, count))
            start += count * cone.dim
        return tuple(runs)

    @cached_property
    def _dual(self) -> Product:
        return Product(tuple(cone.dual() for cone in self.cones))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.cones)


def _part(v: Array, cone: Cone, start: int, count: int) -> Array:
    """The coordinates of a run as (*batch, count, dim), or (*batch, dim) for a single cone."""
    part = v[..., start : start + count * cone.dim]
    return part if count == 1 else array_namespace(v).reshape(part, (*v.shape[:-1], count, cone.dim))


def _join(v: Array, parts: list[Array]) -> Array:
    """The parts of v, each (*batch, dim) or (*batch, count, dim), side by side; v itself, which is empty, if there are none."""
    xp = array_namespace(v)
    batch = v.shape[:-1]
    flat = [part if part.ndim == v.ndim else xp.reshape(part, (*batch, part.shape[-2] * part.shape[-1])) for part in parts]
    if len(flat) == 1:
        return flat[0]
    return xp.concat(flat, axis=-1) if flat else v
