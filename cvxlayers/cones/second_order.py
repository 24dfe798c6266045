"""The second-order (Lorentz, ice-cream) cone."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from array_api_compat import array_namespace, device

from cvxlayers.cones.base import Array, Block, Cone, Derivative


@dataclass(frozen=True)
class SecondOrder(Cone):
    """{(t, z) : |z| <= t} in R^dim, dim >= 1, its own dual.

    Outside the cone and its polar, where -|z| < t < |z|, with u = z/|z|,

        project(t, z) = (t + |z|)/2 (1, u)
        D has eigenvalue 1 on (1, u)/sqrt 2, 0 on (1, -u)/sqrt 2 and (1 + t/|z|)/2 on all (0, w) with w'u = 0.

    The (0, w) are the last columns of the Householder reflection that swaps u and the first axis. (Kanzow, Ferenczi, Fukushima, On the
    local convergence of semismooth Newton methods for linear and nonlinear second-order cone programs, 2009, Lemma 2.5.)

    >>> import numpy as np
    >>> SecondOrder(3).project(np.array([0.0, 3.0, 4.0]))
    array([2.5, 1.5, 2. ])
    """

    dim: int
    twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"SecondOrder got dim = {self.dim}; wanted dim >= 1")

    def project(self, v: Array) -> Array:
        xp = array_namespace(v)
        t, z, norm = _parts(xp, v)
        unit = z / xp.where(norm > 0, norm, 1.0)
        boundary = (t + norm) / 2 * xp.concat([xp.ones_like(t), unit], axis=-1)
        return xp.where(norm <= t, v, xp.where(norm <= -t, 0.0, boundary))

    def derivative(self, v: Array) -> Derivative:
        xp = array_namespace(v)
        t, z, norm = _parts(xp, v)
        if self.dim == 1:
            return Derivative(xp.astype(t >= 0, v.dtype))
        # t is cut to [-|z|, |z|] so that no quotient overflows inside the cone or its polar, where the values are replaced anyway
        middle = (1 + xp.minimum(xp.maximum(t, -norm), norm) / xp.where(norm > 0, norm, 1.0)) / 2
        values = xp.concat([xp.ones_like(t), xp.zeros_like(t), xp.broadcast_to(middle, (*v.shape[:-1], self.dim - 2))], axis=-1)
        values = xp.where(norm <= t, 1.0, xp.where(norm <= -t, 0.0, values))
        return Derivative(values, (Block(0, 1, self.dim, self._vectors(xp, z, norm)[..., None, :, :]),))

    def dual(self) -> SecondOrder:
        return self

    def margin(self, v: Array) -> Array:
        xp = array_namespace(v)
        t, _, norm = _parts(xp, v)
        return xp.abs(xp.abs(t) - norm)[..., 0]

    def second(self, v: Array, a: Array, b: Array) -> Array:
        """With r = |z|, u = z/r and h' = h - u u'h: 1/2 a_z'b_z'/r, and a_t b'/2r + b_t a'/2r - t/2r^2 ((u'b) a' + (u'a) b' + u a'b')."""
        xp = array_namespace(v)
        t, z, norm = _parts(xp, v)
        edge = xp.abs(t) < norm
        r = xp.where(edge, norm, 1.0)
        unit = z / r
        (a_t, a_z, _), (b_t, b_z, _) = _parts(xp, a), _parts(xp, b)
        along_a, along_b = (xp.linalg.vecdot(unit, w)[..., None] for w in (a_z, b_z))
        across_a, across_b = a_z - along_a * unit, b_z - along_b * unit
        product = xp.linalg.vecdot(across_a, across_b)[..., None]
        below = (a_t * across_b + b_t * across_a - t / r * (along_b * across_a + along_a * across_b + product * unit)) / (2 * r)
        return xp.where(edge, xp.concat([product / (2 * r), below], axis=-1), 0.0)

    def _vectors(self, xp, z: Array, norm: Array) -> Array:
        """The orthogonal matrix (*batch, dim, dim) with columns (1, u)/sqrt 2, (1, -u)/sqrt 2, (0, w), ..., (0, w)."""
        axes = xp.eye(self.dim, dtype=z.dtype, device=device(z))
        first, others = axes[0, :-1], axes[:-1, 1:-1]
        unit = xp.where(norm > 0, z / xp.where(norm > 0, norm, 1.0), first)
        # the reflection along m = u + sign(u_1) e_1, where the sign avoids cancellation, has m'm = 2 (1 + |u_1|)
        mirror = unit + xp.where(unit[..., :1] < 0, -1.0, 1.0) * first
        tangents = others - mirror[..., :, None] * (mirror / (1 + xp.abs(unit[..., :1])))[..., None, 1:]
        half = unit[..., None] / sqrt(2)
        below = xp.concat([half, -half, tangents], axis=-1)
        top = (axes[0, :] + axes[1, :]) / sqrt(2)
        return xp.concat([xp.broadcast_to(top, (*below.shape[:-2], 1, self.dim)), below], axis=-2)


def _parts(xp, v: Array) -> tuple[Array, Array, Array]:
    """t (*batch, 1), z (*batch, dim - 1) and |z| (*batch, 1)."""
    z = v[..., 1:]
    return v[..., :1], z, xp.sqrt(xp.linalg.vecdot(z, z))[..., None]
