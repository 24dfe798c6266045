"""What the exponential and the power cone share: the derivative of a projection in R^3 needs one number, a curvature.

Let v lie outside K and its polar. Moreau splits it as v = p - q with p = project(v) != 0 in K, q = project of -v onto K*, p'q = 0.
K is a cone with a smooth boundary at p, so the derivative D of the projection has the eigenvectors

    p/|p|  eigenvalue 1: the projection is homogeneous,
    q/|q|  eigenvalue 0: moving along the normal changes nothing,
    the cross product of the two, with eigenvalue 1/(1 + curvature) in [0, 1].

For q = mu g with -g the outward normal of a boundary function with Hessian H at p, the curvature along the unit tangent w is mu w'Hw.

The functions of this file and of ``root``, ``exponential`` and ``power`` are the text of the mathematics. Arrays of every namespace run
through it as it stands; of NumPy's a kernel is made from the same text (`cvxlayers.kernels.projections`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from cvxlayers.compiled import kernels
from cvxlayers.cones.base import Array, Block, Cone, Derivative

Triple = tuple[Array, Array, Array]


class Split(NamedTuple):
    """The splitting v = p - q: p = length * ray, q = height * normal, and the middle eigenvalue of the derivative.

    ``ray`` and ``normal`` are triples of arrays (*batch) of any common length: only their directions count beside length and height.
    Directions come from the boundary's parametrization, not from p and v - p, so that they stay accurate when p or q is tiny.
    """

    ray: Triple
    normal: Triple
    length: Array
    height: Array
    value: Array


class ThreeDimensional(Cone):
    """A closed convex cone in R^3, smooth but for its apex and flat faces; subclasses describe its boundary."""

    dim = 3

    def project(self, v: Array) -> Array:
        compiled = _compiled(v)
        if compiled is not None:
            return compiled.project(self._number, v)
        xp = array_namespace(v)
        point = v[..., 0], v[..., 1], v[..., 2]
        size, w = scaled(xp, point)
        return xp.stack(projected(xp, point, size, self._split(xp, w), self._slacks(xp, w)), axis=-1)

    def derivative(self, v: Array) -> Derivative:
        return self.linearize(v)[0]

    def linearize(self, v: Array) -> tuple[Derivative, Array]:
        compiled = _compiled(v)
        if compiled is not None:
            vectors, values, margin = compiled.linearize(self._number, v)
        else:
            xp = array_namespace(v)
            size, w = scaled(xp, (v[..., 0], v[..., 1], v[..., 2]))
            axes, triple, margin = linearized(xp, size, self._split(xp, w), self._slacks(xp, w), self._crease(xp, w))
            vectors = xp.stack([xp.stack([axis[i] for axis in axes], axis=-1) for i in range(3)], axis=-2)
            values = xp.stack(triple, axis=-1)
        return Derivative(values, (Block(0, 1, 3, vectors[..., None, :, :]),)), margin

    def dual(self) -> Dual:
        return Dual(self)

    def margin(self, v: Array) -> Array:
        return self.linearize(v)[1]

    @property
    @abstractmethod
    def _number(self) -> float | None:
        """What tells the cone from others of its class, None where it is the only one."""

    @abstractmethod
    def _split(self, xp: Any, w: Triple) -> Split:
        """The splitting at points outside the cone and its polar, scaled to max-norm 1; anything finite elsewhere."""

    @abstractmethod
    def _slacks(self, xp: Any, w: Triple) -> tuple[Array, Array]:
        """>= 0 exactly in the cone, and there about the distance to its boundary: zero on it, homogeneous of degree one; the same for
        the polar cone -K*.
        """

    @abstractmethod
    def _crease(self, xp: Any, w: Triple) -> Array:
        """The distance to the kinks of the projection beyond the boundaries of the cone and its polar; infinite if there are none."""


@dataclass(frozen=True)
class Dual(Cone):
    """The dual cone K* of ``cone`` = K through Moreau: project(v) = v + K.project(-v), derivative(v) = I - K.derivative(-v).

    >>> import numpy as np
    >>> from cvxlayers.cones import Exponential
    >>> Dual(Exponential()).project(np.array([0.0, 1.0, -1.0]))
    array([0., 1., 0.])
    """

    cone: Cone

    @property
    def dim(self) -> int:
        return self.cone.dim

    def project(self, v: Array) -> Array:
        return v + self.cone.project(-v)

    def derivative(self, v: Array) -> Derivative:
        return self.linearize(v)[0]

    def linearize(self, v: Array) -> tuple[Derivative, Array]:
        derivative, margin = self.cone.linearize(-v)
        return Derivative(1 - derivative.values, derivative.blocks), margin

    def dual(self) -> Cone:
        return self.cone

    def margin(self, v: Array) -> Array:
        return self.cone.margin(-v)


def _compiled(v: Array) -> Any:
    """The kernels, for arrays that they take and where they can load; else None."""
    return kernels("projections") if isinstance(v, np.ndarray) and v.dtype == np.float64 else None


def scaled(xp: Any, point: Triple) -> tuple[Array, Triple]:
    """The max-norm of a point, and its coordinates divided by it (themselves where they are zero)."""
    x, y, z = point
    size = xp.maximum(xp.maximum(xp.abs(x), xp.abs(y)), xp.abs(z))
    unit = xp.where(size > 0, size, 1.0)
    return size, (x / unit, y / unit, z / unit)


def projected(xp: Any, point: Triple, size: Array, split: Split, slacks: tuple[Array, Array]) -> Triple:
    """The projection of a point of this max-norm, from the splitting of the scaled point."""
    inside, polar = slacks[0] >= 0, slacks[1] >= 0
    length, (x, y, z), (r, s, t) = size * split.length, point, split.ray
    return (
        xp.where(inside, x, xp.where(polar, 0.0, length * r)),
        xp.where(inside, y, xp.where(polar, 0.0, length * s)),
        xp.where(inside, z, xp.where(polar, 0.0, length * t)),
    )


def linearized(
    xp: Any, size: Array, split: Split, slacks: tuple[Array, Array], crease: Array
) -> tuple[tuple[Triple, Triple, Triple], Triple, Array]:
    """The eigenvectors and eigenvalues of the derivative at a point of this max-norm, and its margin."""
    slack, polar_slack = slacks
    inside, polar = slack >= 0, polar_slack >= 0
    a, c = _unit(xp, split.ray), _unit(xp, split.normal)
    b = (c[1] * a[2] - c[2] * a[1], c[2] * a[0] - c[0] * a[2], c[0] * a[1] - c[1] * a[0])
    flat = inside | polar
    axes = (
        (xp.where(flat, 1.0, a[0]), xp.where(flat, 0.0, a[1]), xp.where(flat, 0.0, a[2])),
        (xp.where(flat, 0.0, b[0]), xp.where(flat, 1.0, b[1]), xp.where(flat, 0.0, b[2])),
        (xp.where(flat, 0.0, c[0]), xp.where(flat, 0.0, c[1]), xp.where(flat, 1.0, c[2])),
    )
    zero = xp.zeros_like(size)
    one = zero + 1.0
    middle = xp.where(inside, 1.0, xp.where(polar, 0.0, split.value))
    values = xp.where(inside, one, xp.where(polar, zero, one)), middle, xp.where(inside, one, zero)
    p, q = split.length * _norm(xp, split.ray), split.height * _norm(xp, split.normal)
    distance = xp.where(inside, slack, xp.where(polar, polar_slack, xp.minimum(p, q)))
    return axes, values, size * xp.minimum(distance, crease)


def _norm(xp: Any, w: Triple) -> Array:
    return xp.sqrt(w[0] * w[0] + w[1] * w[1] + w[2] * w[2])


def _unit(xp: Any, w: Triple) -> Triple:
    size = xp.maximum(xp.maximum(xp.abs(w[0]), xp.abs(w[1])), xp.abs(w[2]))
    size = xp.where(size > 0, size, 1.0)
    x, y, z = w[0] / size, w[1] / size, w[2] / size
    norm = _norm(xp, (x, y, z))
    norm = xp.where(norm > 0, norm, 1.0)
    return x / norm, y / norm, z / norm
