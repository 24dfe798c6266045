"""What the exponential and the power cone share: the derivative of a projection in R^3 needs one number, a curvature.

Let v lie outside K and its polar. Moreau splits it as v = p - q with p = project(v) != 0 in K, q = project of -v onto K*, p'q = 0.
K is a cone with a smooth boundary at p, so the derivative D of the projection has the eigenvectors

    p/|p|  eigenvalue 1: the projection is homogeneous,
    q/|q|  eigenvalue 0: moving along the normal changes nothing,
    the cross product of the two, with eigenvalue 1/(1 + curvature) in [0, 1].

For q = mu g with -g the outward normal of a boundary function with Hessian H at p, the curvature along the unit tangent w is mu w'Hw.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from array_api_compat import array_namespace, device

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
        xp = array_namespace(v)
        scale, (x, y, z) = _scaled(xp, v)
        split = self._split(xp, x, y, z)
        p = xp.stack([scale * split.length * r for r in split.ray], axis=-1)
        inside, polar = self._slack(xp, x, y, z) >= 0, self._polar_slack(xp, x, y, z) >= 0
        return xp.where(inside[..., None], v, xp.where(polar[..., None], 0.0, p))

    def derivative(self, v: Array) -> Derivative:
        return self.linearize(v)[0]

    def linearize(self, v: Array) -> tuple[Derivative, Array]:
        xp = array_namespace(v)
        scale, (x, y, z) = _scaled(xp, v)
        split = self._split(xp, x, y, z)
        slack, polar_slack = self._slack(xp, x, y, z), self._polar_slack(xp, x, y, z)
        inside, polar = slack >= 0, polar_slack >= 0
        flat = inside | polar
        axes = xp.eye(3, dtype=v.dtype, device=device(v))
        a, c = _unit(xp, split.ray), _unit(xp, split.normal)
        b = (c[1] * a[2] - c[2] * a[1], c[2] * a[0] - c[0] * a[2], c[0] * a[1] - c[1] * a[0])
        vectors = xp.stack([xp.stack([a[i], b[i], c[i]], axis=-1) for i in range(3)], axis=-2)
        vectors = xp.where(flat[..., None, None], axes, vectors)
        values = xp.stack([xp.ones_like(x), split.value, xp.zeros_like(x)], axis=-1)
        values = xp.where(inside[..., None], 1.0, xp.where(polar[..., None], 0.0, values))
        p, q = split.length * _norm(xp, split.ray), split.height * _norm(xp, split.normal)
        distance = xp.where(inside, slack, xp.where(polar, polar_slack, xp.minimum(p, q)))
        margin = scale * xp.minimum(distance, self._crease(xp, x, y, z))
        return Derivative(values, (Block(0, 1, 3, vectors[..., None, :, :]),)), margin

    def dual(self) -> Dual:
        return Dual(self)

    def margin(self, v: Array) -> Array:
        return self.linearize(v)[1]

    @abstractmethod
    def _split(self, xp, x: Array, y: Array, z: Array) -> Split:
        """The splitting at points outside the cone and its polar, scaled to max-norm 1; anything finite elsewhere."""

    @abstractmethod
    def _slack(self, xp, x: Array, y: Array, z: Array) -> Array:
        """>= 0 exactly in the cone, and there about the distance to its boundary: zero on it, homogeneous of degree one."""

    @abstractmethod
    def _polar_slack(self, xp, x: Array, y: Array, z: Array) -> Array:
        """The same for the polar cone -K*."""

    @abstractmethod
    def _crease(self, xp, x: Array, y: Array, z: Array) -> Array:
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


def _scaled(xp, v: Array) -> tuple[Array, Triple]:
    """The max-norm of v, and the coordinates of v divided by it (of v itself where v = 0)."""
    size = xp.max(xp.abs(v), axis=-1)
    w = v / xp.where(size > 0, size, 1.0)[..., None]
    return size, (w[..., 0], w[..., 1], w[..., 2])


def _norm(xp, w: Triple) -> Array:
    return xp.sqrt(w[0] * w[0] + w[1] * w[1] + w[2] * w[2])


def _unit(xp, w: Triple) -> Triple:
    size = xp.maximum(xp.maximum(xp.abs(w[0]), xp.abs(w[1])), xp.abs(w[2]))
    size = xp.where(size > 0, size, 1.0)
    w = (w[0] / size, w[1] / size, w[2] / size)
    norm = _norm(xp, w)
    norm = xp.where(norm > 0, norm, 1.0)
    return w[0] / norm, w[1] / norm, w[2] / norm
