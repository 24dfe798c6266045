"""The exponential cone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cvxlayers.cones.base import Array
from cvxlayers.cones.root import increasing_root
from cvxlayers.cones.three_dimensional import Split, ThreeDimensional, Triple

FAR = 1e50
"""Stands for infinity where a square must not overflow."""


@dataclass(frozen=True)
class Exponential(ThreeDimensional):
    """cl {(x, y, z) : y > 0, y exp(x/y) <= z}; its dual is Dual(Exponential()) = cl {(u, v, w) : u < 0, -u exp(v/u) <= e w}.

    With c = rho^2 - rho + 1, every v outside the cone and its polar but with x > 0 or y > 0 is p - q for exactly one rho:

        p = s (rho, 1, exp(rho)),                     s = (y + (rho - 1) x)/c > 0,
        q = m (-1, rho - 1, exp(-rho)),               m = (x - rho y)/c > 0,
        z = s exp(rho) - m exp(-rho),

    where the last line, with s and m put in, is an equation for rho (Friberg, Projection onto the exponential cone: a univariate
    root-finding problem, 2021). We solve its logarithm, the terms sorted so that both sides are positive:

        rho + log(c s + max(-z, 0) c exp(-rho)) - log(c m exp(-rho) + max(z, 0) c) = 0.

    Where x, y <= 0, p = (x, 0, max(z, 0)). The boundary's curvature enters D as the eigenvalue s/(s + m k), k = |(rho, 1, exp(rho))|^2 /
    |(exp(rho), (1 - rho) exp(rho), -1)|^2.

    >>> import numpy as np
    >>> Exponential().project(np.array([-1.0, -1.0, 2.0]))
    array([-1.,  0.,  2.])
    """

    @property
    def _number(self) -> None:
        return None

    def _split(self, xp: Any, w: Triple) -> Split:
        return split(xp, w)

    def _slacks(self, xp: Any, w: Triple) -> tuple[Array, Array]:
        return slacks(xp, w)

    def _crease(self, xp: Any, w: Triple) -> Array:
        return crease(xp, w)


def split(xp: Any, w: Triple) -> Split:
    """`ThreeDimensional._split`."""
    x, y, z = w
    rho = _root(xp, x, y, z)
    # (a, b) is (1, exp(rho)) divided by the larger of its entries
    a, b = xp.exp(-xp.maximum(rho, 0.0)), xp.exp(xp.minimum(rho, 0.0))
    ray, normal = (rho * a, a, b), (-b, (rho - 1) * b, a)
    c = rho * rho - rho + 1
    s, m = xp.maximum(y + (rho - 1) * x, 0.0) / c, xp.maximum(x - rho * y, 0.0) / c
    # for rho > 0 these are s exp(rho), m, else s, m exp(-rho); the equation for z gives the one that would lose digits
    length = xp.where(rho > 0, xp.maximum(z + m * a, 0.0), s)
    height = xp.where(rho > 0, m, xp.maximum(s * b - z, 0.0))
    bend = height * b * _square(ray) / _square(normal)
    total = length * a + bend
    value = length * a / xp.where(total > 0, total, 1.0)

    face = (x <= 0) & (y <= 0)
    up, down = xp.maximum(z, 0.0), xp.maximum(-z, 0.0)
    return Split(
        (xp.where(face, x, ray[0]), xp.where(face, 0.0, ray[1]), xp.where(face, up, ray[2])),
        (xp.where(face, 0.0, normal[0]), xp.where(face, -y, normal[1]), xp.where(face, down, normal[2])),
        xp.where(face, 1.0, length),
        xp.where(face, 1.0, height),
        xp.where(face, xp.where(z > 0, 1.0, 0.0), value),
    )


def _balance(xp: Any, numbers: Any, rho: Array) -> tuple[Array, Array]:
    """The left side of the equation for rho, and its slope."""
    x, y, up, down = numbers
    a, b = xp.exp(-xp.maximum(rho, 0.0)), xp.exp(xp.minimum(rho, 0.0))
    c, slope_c = rho * rho - rho + 1, 2 * rho - 1
    s, m = y + (rho - 1) * x, x - rho * y
    left = xp.maximum(s * b + down * c * a, 1e-200)
    right = xp.maximum(m * a + up * c * b, 1e-200)
    slope = 1 + (x * b + down * (slope_c - c) * a) / left + ((y + m) * a - up * slope_c * b) / right
    return rho + xp.log(left / right), slope


def _root(xp: Any, x: Array, y: Array, z: Array) -> Array:
    """The rho of the class's docstring: s > 0 and m > 0 bound it from below for x > 0 and from above for y > 0."""
    up, down = xp.maximum(z, 0.0), xp.maximum(-z, 0.0)
    low, high = 1 - y / xp.maximum(x, 1e-300), x / xp.maximum(y, 1e-300)
    low = xp.where(x > 0, xp.minimum(xp.maximum(low, -FAR), FAR), -FAR)
    high = xp.where(y > 0, xp.minimum(xp.maximum(high, -FAR), FAR), FAR)
    # the root lies less than 1000 from the point of [low, high] nearest to zero: |log| of a positive float is below 750
    start = xp.minimum(xp.maximum(xp.zeros_like(x), low), high)
    low, high = xp.maximum(low, start - 1000), xp.minimum(high, start + 1000)
    # log(s + shift), say, becomes singular beyond low only, by about shift/x: that matters close to the polar cone
    below = xp.where(x > 0, down * (low * low - low + 1) * xp.exp(-xp.maximum(low, -50.0)) / xp.maximum(x, 1e-150), 0.0)
    above = xp.where(y > 0, up * (high * high - high + 1) * xp.exp(xp.minimum(high, 50.0)) / xp.maximum(y, 1e-150), 0.0)
    low, high = low - xp.minimum(below, 1000.0), high + xp.minimum(above, 1000.0)
    return increasing_root(xp, _balance, (x, y, up, down), low, high, start)


def slacks(xp: Any, w: Triple) -> tuple[Array, Array]:
    """`ThreeDimensional._slacks`."""
    # (u, v, w) is in the dual cone exactly if (u - v, -u, w) is in the cone
    x, y, z = w
    return _slack(xp, x, y, z), _slack(xp, y - x, x, -z)


def _slack(xp: Any, x: Array, y: Array, z: Array) -> Array:
    interior = (y > 0) & (z > 0)
    y_safe, z_safe = xp.where(interior, xp.maximum(y, 1e-300), 1.0), xp.where(interior, z, 1.0)
    # the inequality both as y log(z/y) >= x and as z >= y exp(x/y): near the boundary the smaller one is the distance
    log_slack = y_safe * (xp.log(z_safe) - xp.log(y_safe)) - x
    slack = -z_safe * xp.expm1(-xp.maximum(log_slack, 0.0) / y_safe)
    slack = xp.where(log_slack >= 0, xp.minimum(xp.minimum(log_slack, slack), y), -1.0)
    on_face = (y == 0) & (x <= 0) & (z >= 0)
    return xp.where(interior, slack, xp.where(on_face, 0.0, -1.0))


def crease(xp: Any, w: Triple) -> Array:
    """`ThreeDimensional._crease`."""
    # the half planes y = 0 >= x and x = 0 >= y, and the quarter plane z = 0 >= x, y
    x, y, z = w
    right, front = xp.maximum(x, 0.0), xp.maximum(y, 0.0)
    squares = xp.minimum(xp.minimum(right * right + y * y, x * x + front * front), right * right + front * front + z * z)
    return xp.sqrt(squares)


def _square(w: Triple) -> Array:
    return w[0] * w[0] + w[1] * w[1] + w[2] * w[2]
