"""Barriers of the dual exponential and the dual power cone, their derivatives, and the gradients of the conjugate barriers.

    exponential:  f(u, v, w) = -log p - log(-u) - log w,              p = v - u + u log(-u / w)
    power(a):     f(u, v, w) = -log p - (1 - a) log u - a log v,      p = (u/a)^2a (v/(1-a))^2(1-a) - w^2

Both are logarithmically homogeneous of degree 3 (Chares, "Cones and interior-point algorithms for structured convex optimization involving
powers and exponentials", 2009). Cones come with their number ``a``; the exponential cone has a = 0. Every function takes and returns
`Lanes`; points outside give numbers without a meaning.
"""

from __future__ import annotations

from cvxlayers.kernels.elementary import exp, log
from cvxlayers.kernels.lanes import Compiled, full, inner, larger, select, smaller

CENTER = (-1.0513839437502289, 0.5564096186043384, 1.2589678864644603)
"""The point of the exponential cone with z = -f'(z)."""
STEPS = 5
"""Newton steps for a conjugate gradient: the first lies below the root by a third, convergence is monotone and quadratic."""


@inner
def gradient(a: Compiled, u: Compiled, v: Compiled, w: Compiled) -> Compiled:
    """-f'(u, v, w)."""
    if a == 0.0:
        ratio = log(-u / w)
        p = v - u + u * ratio
        return ratio / p + 1.0 / u, 1.0 / p, (1.0 - u / p) / w
    phi = exp(2.0 * a * log(u / a) + 2.0 * (1.0 - a) * log(v / (1.0 - a)))
    p = phi - w * w
    k = phi / p
    return (2.0 * a * k + 1.0 - a) / u, (2.0 * (1.0 - a) * k + a) / v, -2.0 * w / p


@inner
def hessian(a: Compiled, u: Compiled, v: Compiled, w: Compiled) -> Compiled:
    """(uu, uv, vv, uw, vw, ww) of f'' and its determinant, free of cancellation."""
    if a == 0.0:
        ratio = log(-u / w)
        p = v - u + u * ratio
        i, j = 1.0 / p, 1.0 / w
        r = -u * j
        uu, uw, ww = (ratio * ratio * i - 1.0 / u) * i + 1.0 / (u * u), (ratio * r * i + j) * i, (r * r * i + r * j) * i + j * j
        determinant = (1.0 - 2.0 * u * i) * i * i * j * j / (u * u)
        return uu, ratio * i * i, i * i, uw, r * i * i, ww, determinant
    b = 1.0 - a
    phi = exp(2.0 * a * log(u / a) + 2.0 * b * log(v / b))
    p = phi - w * w
    k, i, j = phi / p, 1.0 / u, 1.0 / v
    c = 4.0 * k * (k - 1.0)
    uu, uv, vv = (c * a * a + 2.0 * a * k + b) * i * i, c * a * b * i * j, (c * b * b + 2.0 * b * k + a) * j * j
    uw, vw, ww = -4.0 * a * k * w / p * i, -4.0 * b * k * w / p * j, (4.0 * k - 2.0) / p
    mixed = a * b
    q = 2.0 * k - 1.0
    inner = mixed + 4.0 * mixed * k * k / q + 2.0 * k * (1.0 - 2.0 * mixed) - c / q * (1.0 - 3.0 * mixed)
    return uu, uv, vv, uw, vw, ww, ww * inner * i * i * j * j


@inner
def steep(a: Compiled, u: Compiled, v: Compiled, w: Compiled) -> Compiled:
    """f'' = gg' + B: the vector g, and (uu, uv, vv, uw, vw, ww) of B, which is positive semidefinite and small beside gg' at the boundary.

    The power cone has g = 0.
    """
    if a == 0.0:
        ratio = log(-u / w)
        p = v - u + u * ratio
        i, j, r, zero = 1.0 / p, 1.0 / w, -u / w, full(0.0)
        return (ratio * i, i, r * i), (1.0 / (u * u) - i / u, zero, zero, i * j, zero, (r * i + j) * j)
    uu, uv, vv, uw, vw, ww, _ = hessian(a, u, v, w)
    zero = full(0.0)
    return (zero, zero, zero), (uu, uv, vv, uw, vw, ww)


@inner
def unbend(a: Compiled, u: Compiled, v: Compiled, w: Compiled, x: Compiled, y: Compiled, z: Compiled) -> Compiled:
    """f''(u, v, w)^-1 (x, y, z): by Schur complements whose inverses are known, as f'' is far too ill-conditioned for cofactors."""
    if a == 0.0:
        # f'' = [M + hh' / p^2, h / p^2; h' / p^2, 1 / p^2] in ((u, w), v), h = (log(-u / w), -u / w)
        ratio = log(-u / w)
        p = v - u + u * ratio
        r = -u / w
        i = 1.0 / (p - 2.0 * u)
        one, two = x - ratio * y, z - r * y
        du, dw = u * u * ((p - u) * one - w * two) * i, w * (w * (p - u) * two - u * u * one) * i
        return du, p * p * y - ratio * du - r * dw, dw
    b = 1.0 - a
    phi = exp(2.0 * a * log(u / a) + 2.0 * b * log(v / b))
    p = phi - w * w
    k = phi / p
    q = 2.0 * k - 1.0
    kappa, mixed = 4.0 * k * (k - 1.0) / q, a * b
    # the coupling of (u, v) to w, over the pivot of w
    shift = -2.0 * k * w / q * z
    one, two = u * x - a * shift, v * y - b * shift
    uu, uv, vv = 2.0 * b * k + a - kappa * b * b, kappa * mixed, 2.0 * a * k + b - kappa * a * a
    i = 1.0 / (mixed + 4.0 * mixed * k * k / q + 2.0 * k * (1.0 - 2.0 * mixed) - kappa * (1.0 - 3.0 * mixed))
    du, dv = (uu * one + uv * two) * i, (uv * one + vv * two) * i
    return u * du, v * dv, 0.5 * p / q * z + 2.0 * k * w / q * (a * du + b * dv)


@inner
def third(
    a: Compiled, u: Compiled, v: Compiled, w: Compiled, d: Compiled, e: Compiled, f: Compiled, g: Compiled, h: Compiled, k: Compiled
) -> Compiled:
    """f'''(u, v, w) applied to (d, e, f) and (g, h, k): a vector.

    With p the argument of the logarithm, f''' = -2 p'p'p' / p^3 + 3 sym(p''p') / p^2 - p''' / p + what the other logarithms add.
    """
    if a == 0.0:
        ratio = log(-u / w)
        p = v - u + u * ratio
        i, j, r = 1.0 / u, 1.0 / w, -u / w
        pu, pv, pw = ratio, full(1.0), r
        # p'' (d, e, f) and p'' (g, h, k); p'' = [1/u, -1/w; -1/w, u/w^2] in (u, w)
        au, av, aw = d * i - f * j, full(0.0), -d * j - r * f * j
        bu, bv, bw = g * i - k * j, full(0.0), -g * j - r * k * j
        tu, tv = f * k * j * j - d * g * i * i, full(0.0)
        tw = (d * k + f * g + 2.0 * r * f * k) * j * j
        ou, ov, ow = -2.0 * d * g * i * i * i, full(0.0), -2.0 * f * k * j * j * j
    else:
        b = 1.0 - a
        phi = exp(2.0 * a * log(u / a) + 2.0 * b * log(v / b))
        p = phi - w * w
        i, j = 1.0 / u, 1.0 / v
        m, n = 2.0 * a, 2.0 * b
        pu, pv, pw = m * phi * i, n * phi * j, -2.0 * w
        di, ej, gi, hj = d * i, e * j, g * i, h * j
        au, av, aw = phi * i * m * ((m - 1.0) * di + n * ej), phi * j * n * (m * di + (n - 1.0) * ej), -2.0 * f
        bu, bv, bw = phi * i * m * ((m - 1.0) * gi + n * hj), phi * j * n * (m * gi + (n - 1.0) * hj), -2.0 * k
        mixed = di * hj + ej * gi
        tu = phi * i * m * ((m - 1.0) * (m - 2.0) * di * gi + (m - 1.0) * n * mixed + n * (n - 1.0) * ej * hj)
        tv = phi * j * n * (m * (m - 1.0) * di * gi + m * (n - 1.0) * mixed + (n - 1.0) * (n - 2.0) * ej * hj)
        tw = full(0.0)
        ou, ov, ow = -2.0 * b * di * gi * i, -2.0 * a * ej * hj * j, full(0.0)
    o = 1.0 / p
    one, two = (pu * d + pv * e + pw * f) * o, (pu * g + pv * h + pw * k) * o
    both = (au * g + av * h + aw * k) * o - 2.0 * one * two
    return (
        (both * pu + one * bu + two * au - tu) * o + ou,
        (both * pv + one * bv + two * av - tv) * o + ov,
        (both * pw + one * bw + two * aw - tw) * o + ow,
    )


@inner
def conjugate(a: Compiled, x: Compiled, y: Compiled, z: Compiled) -> Compiled:
    """The point (u, v, w) of the dual cone with -f'(u, v, w) = (x, y, z): minus the gradient of the conjugate barrier.

    Exponential: u = -1 / (t y), v and w follow, where t > 0 solves t + log(1 + t) = log(z / y) - x / y. Power: with k = phi / p = 1 + 1/t,
    u = (2 a k + 1 - a) / x, v = (2 (1 - a) k + a) / y, and t > 0 solves, with l = (1 + a) / 2a and r = (2 - a) / 2(1 - a),

        2 a log(1 + l t) + 2 (1 - a) log(1 + r t) - log(1 + t) = 2 a log x + 2 (1 - a) log y - log z^2,

    by Newton's method in log(1 + t), in which the left side has slopes between 2 (at 0) and 1 (at infinity).
    """
    if a == 0.0:
        right = log(z / y) - x / y
        t = larger(0.5 * right, right - log(1.0 + right))
        for _ in range(STEPS):
            t -= (t + log(1.0 + t) - right) * (1.0 + t) / (2.0 + t)
        u = -1.0 / (t * y)
        w = (1.0 + 1.0 / t) / z
        return u, 1.0 / y + u - u * log(-u / w), w
    b = 1.0 - a
    l, r = (1.0 + a) / (2.0 * a), (1.0 + b) / (2.0 * b)  # noqa: E741
    right = smaller(2.0 * a * log(x) + 2.0 * b * log(y) - log(z * z), 600.0)
    logarithm = larger(0.5 * right, right - full(2.0 * a) * log(full(l)) - full(2.0 * b) * log(full(r)))
    for _ in range(STEPS + 3):
        t = exp(logarithm) - 1.0
        left = 2.0 * a * log(1.0 + l * t) + 2.0 * b * log(1.0 + r * t) - logarithm
        slope = (1.0 + t) * ((1.0 + a) / (1.0 + l * t) + (1.0 + b) / (1.0 + r * t)) - 1.0
        logarithm -= (left - right) / slope
    t = exp(logarithm) - 1.0
    k = 1.0 + 1.0 / t
    u, v = (2.0 * a * k + b) / x, (2.0 * b * k + a) / y
    phi = exp(2.0 * a * log(u / a) + 2.0 * b * log(v / b))
    return u, v, -0.5 * z * phi / k


@inner
def inside(a: Compiled, x: Compiled, y: Compiled, z: Compiled) -> Compiled:
    """Where (x, y, z) lies in the interior of the cone."""
    if a == 0.0:
        positive = (y > 0.0) & (z > 0.0)
        ratio = log(select(positive, z / y, 1.0))
        return positive & (y * ratio - x > 0.0)
    positive = (x > 0.0) & (y > 0.0)
    size = a * log(select(positive, x, 1.0)) + (1.0 - a) * log(select(positive, y, 1.0))
    return positive & (exp(size) > abs(z))


@inner
def inside_dual(a: Compiled, u: Compiled, v: Compiled, w: Compiled) -> Compiled:
    """Where (u, v, w) lies in the interior of the dual cone."""
    if a == 0.0:
        signs = (u < 0.0) & (w > 0.0)
        ratio = log(select(signs, -u / w, 1.0))
        return signs & (v - u + u * ratio > 0.0)
    return inside(a, u / a, v / (1.0 - a), w)
