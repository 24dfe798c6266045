"""The three-dimensional power cone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cvxlayers.cones.base import Array
from cvxlayers.cones.root import increasing_root
from cvxlayers.cones.three_dimensional import Split, ThreeDimensional, Triple

NEAR = 1e-100
"""Stands for zero where a logarithm is taken or a quotient must not overflow; the coordinates are scaled to max-norm 1."""


@dataclass(frozen=True)
class Power(ThreeDimensional):
    """{(x, y, z) : x^alpha y^(1 - alpha) >= |z|, x, y >= 0} for 0 < alpha < 1.

    The dual is Dual(Power(alpha)) = {(u, v, w) : (u/alpha)^alpha (v/(1 - alpha))^(1 - alpha) >= |w|, u, v >= 0}. With a = alpha,
    b = 1 - alpha and z >= 0 (else mirror), every v outside the cone and its polar is p - q for exactly one real theta:

        p = r (E, G, 1),         E = exp(b theta),    r E = (x + a z/E)/(1 + a/E^2) = ((y G + b z)/(G^2 + b)) E,
        q = m (a/E, b/G, -1),    G = exp(-a theta),   m/G = (z G - y)/(G^2 + b) = ((z E - x)/(1 + a/E^2)) / (E G), r + m = z.

    The coincidence of the two values of r/m is an equation for theta, whose logarithm

        theta + log(z - x/E) + log(y G + b z) - log(x + a z/E) - log(z G - y) = 0

    increases. It is the univariate equation of Hien (Differential properties of Euclidean projection onto power cone, 2015) in other
    coordinates: there r is the unknown, which is ill-scaled near the faces. The boundary's curvature enters D as the eigenvalue
    r/(r + m k), k = a b |p/r|^2 / (E G |q/m|)^2. Rounding errors grow like 1/min(a, b) for alpha close to 0 or 1.

    >>> import numpy as np
    >>> Power(0.5).project(np.array([0.0, 0.0, 2.0])).round(6)
    array([0.666667, 0.666667, 0.666667])
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"Power got alpha = {self.alpha}; wanted 0 < alpha < 1")

    @property
    def _number(self) -> float:
        return self.alpha

    def _split(self, xp: Any, w: Triple) -> Split:
        return split(xp, self.alpha, w)

    def _slacks(self, xp: Any, w: Triple) -> tuple[Array, Array]:
        return slacks(xp, self.alpha, w)

    def _crease(self, xp: Any, w: Triple) -> Array:
        return crease(xp, w)


def split(xp: Any, alpha: float, w: Triple) -> Split:
    """`ThreeDimensional._split`."""
    x, y, z = w
    size = xp.maximum(xp.abs(z), NEAR)
    # exchanging x with y and alpha with 1 - alpha turns theta into -theta, so theta >= 0 is enough; the sign of the equation at 0 tells
    plus = xp.maximum(size - x, 0.0) * xp.maximum(y + (1 - alpha) * size, 0.0)
    minus = xp.maximum(x + alpha * size, 0.0) * xp.maximum(size - y, 0.0)
    swap, zero = plus > minus, z == 0
    x, y = xp.where(swap, y, x), xp.where(swap, x, y)
    one = xp.zeros_like(x) + alpha
    a, b = xp.where(swap, 1 - one, one), xp.where(swap, one, 1 - one)
    theta = _root(xp, x, y, size, a, b)
    e, g, eg = xp.exp(-b * theta), xp.exp(-a * theta), xp.exp(-theta)
    # p/(r E) and q G/m, with entries that cannot overflow, and their lengths r E and m/G
    p, q = (xp.zeros_like(x) + 1.0, eg, e), (a * eg, b, g)
    length = xp.maximum(x + a * size * e, 0.0) / (1 + a * e * e)
    height = xp.maximum(size * g - y, 0.0) / (g * g + b)
    bend = a * b * (1 + eg * eg + e * e) / (a * a * eg * eg + b * b + g * g)
    # r/(r + m k) with r, m = length e, height g, divided by the smaller of 1/e and 1/g lest both vanish
    r, m = length * xp.exp(-xp.maximum(b - a, 0.0) * theta), height * xp.exp(-xp.maximum(a - b, 0.0) * theta) * bend
    value = r / xp.where(r + m > 0, r + m, 1.0)
    if alpha != 0.5:
        # at z = 0 the limit of the above; it is reached too slowly for NEAR to stand in
        value = xp.where(zero, xp.where(a > 0.5, 1.0, 0.0), value)
    sign = xp.where(z > 0, 1.0, xp.where(zero, 0.0, -1.0))
    return Split(
        (xp.where(swap, p[1], p[0]), xp.where(swap, p[0], p[1]), sign * p[2]),
        (xp.where(swap, q[1], q[0]), xp.where(swap, q[0], q[1]), -sign * q[2]),
        length,
        height,
        value,
    )


def slacks(xp: Any, alpha: float, w: Triple) -> tuple[Array, Array]:
    """`ThreeDimensional._slacks`."""
    x, y, z = w
    return _slack(xp, x, y, z, alpha), _slack(xp, -x / alpha, -y / (1 - alpha), z, alpha)


def _slack(xp: Any, x: Array, y: Array, z: Array, alpha: float) -> Array:
    """The smallest of x, y and x^alpha y^(1 - alpha) - |z|; -1 where one of them is negative."""
    x_safe, y_safe = xp.where(x > 0, x, 0.0), xp.where(y > 0, y, 0.0)
    slack = xp.minimum(xp.minimum(x, y), xp.pow(x_safe, alpha) * xp.pow(y_safe, 1 - alpha) - xp.abs(z))
    return xp.where(slack >= 0, slack, -1.0)


def crease(xp: Any, w: Triple) -> Array:
    """`ThreeDimensional._crease`."""
    return xp.zeros_like(w[0]) + float("inf")


def _balance(xp: Any, numbers: Any, theta: Array) -> tuple[Array, Array]:
    """The left side of the equation for theta, and its slope."""
    x, y, z, a, b = numbers
    e, g = xp.exp(-b * theta), xp.exp(-a * theta)
    one, two = xp.maximum(z - x * e, 1e-250), xp.maximum(y * g + b * z, 1e-250)
    three, four = xp.maximum(x + a * z * e, 1e-250), xp.maximum(z * g - y, 1e-250)
    value = theta + xp.log(one / three) + xp.log(two / four)
    return value, 1 + b * e * (x / one + a * z / three) + a * g * (z / four - y / two)


def _log_ratio(xp: Any, numerator: Array, denominator: Array) -> Array:
    """log(numerator/denominator), or zero where the denominator is not positive."""
    positive = denominator > 0
    return xp.where(positive, xp.log(numerator) - xp.log(xp.where(positive, xp.maximum(denominator, NEAR), 1.0)), 0.0)


def _root(xp: Any, x: Array, y: Array, z: Array, a: Array, b: Array) -> Array:
    """The theta >= 0 of the docstring of `Power`, for z > 0. Each of the four logarithms bounds it on one side."""
    # the root is >= 0, but an end at 0, where nothing is singular, would slow down the root finder
    low = xp.where(x > 0, xp.maximum(-_log_ratio(xp, z, x) / b, -1.0), -1.0)
    low = xp.where(y < 0, xp.maximum(-_log_ratio(xp, b * z, -y) / a, low), low)
    high = xp.where(x < 0, _log_ratio(xp, a * z, -x) / b, xp.maximum(low, 0.0) + 1000)
    high = xp.maximum(xp.minimum(high, xp.where(y > 0, _log_ratio(xp, z, y) / a, high)), low)
    return increasing_root(xp, _balance, (x, y, z, a, b), low, high, xp.minimum(xp.maximum(low, 0.0), high))
