"""The cones whose projection acts entry by entry: {0}, the whole space, the nonnegative orthant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from cvxlayers.cones.base import Array, Cone, Derivative


@dataclass(frozen=True)
class Zero(Cone):
    """{0} in R^dim, the cone of equality constraints; its dual is `Free`. ``dim`` may be 0.

    >>> import numpy as np
    >>> Zero(2).project(np.array([3.0, -1.0]))
    array([0., 0.])
    """

    dim: int
    twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_dim(self)

    def project(self, v: Array) -> Array:
        return array_namespace(v).zeros_like(v)

    def derivative(self, v: Array) -> Derivative:
        return Derivative(array_namespace(v).zeros_like(v))

    def dual(self) -> Free:
        return Free(self.dim)

    def second(self, v: Array, a: Array, b: Array) -> Array:
        return array_namespace(v).zeros_like(v)

    def margin(self, v: Array) -> Array:
        return _infinite(v)


@dataclass(frozen=True)
class Free(Cone):
    """All of R^dim, the dual of `Zero`. ``dim`` may be 0.

    >>> import numpy as np
    >>> Free(2).project(np.array([3.0, -1.0]))
    array([ 3., -1.])
    """

    dim: int
    twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_dim(self)

    def project(self, v: Array) -> Array:
        return v

    def derivative(self, v: Array) -> Derivative:
        return Derivative(array_namespace(v).ones_like(v))

    def dual(self) -> Zero:
        return Zero(self.dim)

    def second(self, v: Array, a: Array, b: Array) -> Array:
        return array_namespace(v).zeros_like(v)

    def margin(self, v: Array) -> Array:
        return _infinite(v)


@dataclass(frozen=True)
class NonNegative(Cone):
    """{v : v >= 0} in R^dim, its own dual. ``dim`` may be 0; at v_i = 0 the derivative is 0.

    >>> import numpy as np
    >>> NonNegative(2).project(np.array([3.0, -1.0]))
    array([3., 0.])
    """

    dim: int
    twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_dim(self)

    def project(self, v: Array) -> Array:
        xp = array_namespace(v)
        return xp.where(v > 0, v, 0.0)

    def derivative(self, v: Array) -> Derivative:
        return Derivative(array_namespace(v).astype(v > 0, v.dtype))

    def dual(self) -> NonNegative:
        return self

    def second(self, v: Array, a: Array, b: Array) -> Array:
        return array_namespace(v).zeros_like(v)

    def margin(self, v: Array) -> Array:
        xp = array_namespace(v)
        return xp.min(xp.abs(v), axis=-1) if self.dim else _infinite(v)


def _check_dim(cone: Zero | Free | NonNegative) -> None:
    if cone.dim < 0:
        raise ValueError(f"{type(cone).__name__} got dim = {cone.dim}; wanted dim >= 0")


def _infinite(v: Array) -> Array:
    xp = array_namespace(v)
    return xp.zeros_like(xp.sum(v, axis=-1)) + float("inf")
