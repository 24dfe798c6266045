"""Exponential and power cones: not symmetric, so H comes from a barrier f* of the dual cone (`barriers`) and its conjugate f.

With the shadows s~ = -f*'(z) and z~ = -f'(s), mu = s'z / 3 and mu~ = s~'z~ / 3, the scaling of Tuncel ("Generalization of primal-dual
interior-point methods to convex optimization problems in conic form", 2001) as Dahl and Andersen compute it ("A primal-dual interior-point
algorithm for nonsymmetric exponential-cone optimization", 2022) has H z = s and H z~ = s~ and is else as near to mu f*''(z) as can be:

    H = s s' / s'z + d d' / d'e + mu det(f*'') c c' / (3 (z~'f*''z~ - 3 mu~^2)),    d = s - mu s~,  e = z - mu z~,  c = z x z~.

On the central path s = mu s~, z = mu z~, and there, where the second term is 0 / 0, H = mu f*''(z) takes over, as it does in lanes whose
steps have become short (`interior.SLOW`). Its large part ww' (`system`) is the first term, or that of `steep`, less as much as B bears.
The corrector's offset is s + sigma mu f*'(z) - f*'''(z)[dz, f*''(z)^-1 ds] / 2. A step is shortened until both points are inside, and
not too far from the central path: 1 / mu~ >= NEAR mu, with the mean mu of all cones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.barriers import CENTER, conjugate, gradient, hessian, inside, inside_dual, steep, third, unbend
from cvxlayers.kernels.lanes import DEFINITE, Compiled, full, inner, load, select, smaller, some, sqrt, store

TINY = 1e-300
"""Added to what may be zero where it divides."""
NEAR = 0.03
SHORTER = 0.8
TRIALS = 100
"""How a step is shortened, and how often at most: 0.8^100 is 2e-10."""


class ThreeDimensional(NamedTuple):
    """The cones' first rows, where their H begins in the system's ``H_entries``, and their numbers (`barriers`)."""

    first: np.ndarray
    entries: np.ndarray
    alpha: np.ndarray


@inner
def center(cones: Compiled, s: Compiled, z: Compiled) -> None:
    """s = z = -f*'(z)."""
    for k in range(len(cones.first)):
        first, a = cones.first[k], cones.alpha[k]
        for v in (s, z):
            if a == 0.0:
                store(v, first, CENTER[0])
                store(v, first + 1, CENTER[1])
                store(v, first + 2, CENTER[2])
            else:
                store(v, first, np.sqrt(1.0 + a))
                store(v, first + 1, np.sqrt(2.0 - a))
                store(v, first + 2, 0.0)


@inner
def _take(v: Compiled, first: Compiled) -> Compiled:
    return load(v, first), load(v, first + 1), load(v, first + 2)


@inner
def _dot(a: Compiled, b: Compiled) -> Compiled:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inner
def _cross(a: Compiled, b: Compiled) -> Compiled:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@inner
def _times(h: Compiled, v: Compiled) -> Compiled:
    """The symmetric matrix (00, 01, 11, 02, 12, 22) times a vector."""
    return h[0] * v[0] + h[1] * v[1] + h[3] * v[2], h[1] * v[0] + h[2] * v[1] + h[4] * v[2], h[3] * v[0] + h[4] * v[1] + h[5] * v[2]


@inner
def rescale(cones: Compiled, system: Compiled, s: Compiled, z: Compiled, dual: Compiled, values: Compiled) -> None:
    """Find H = B + ww' and put -B and w into K; in the lanes ``dual`` H is mu f*''(z)."""
    places = system.H_entries
    for k in range(len(cones.first)):
        first, a, entry = cones.first[k], cones.alpha[k], cones.entries[k]
        sk, zk = _take(s, first), _take(z, first)
        uu, uv, vv, uw, vw, ww, determinant = hessian(a, zk[0], zk[1], zk[2])
        f2 = (uu, uv, vv, uw, vw, ww)
        shadow_s, shadow_z = gradient(a, zk[0], zk[1], zk[2]), conjugate(a, sk[0], sk[1], sk[2])
        product = _dot(sk, zk)
        own, shadow = product / 3.0, _dot(shadow_s, shadow_z) / 3.0
        d = (sk[0] - own * shadow_s[0], sk[1] - own * shadow_s[1], sk[2] - own * shadow_s[2])
        e = (zk[0] - own * shadow_z[0], zk[1] - own * shadow_z[1], zk[2] - own * shadow_z[2])
        c = _cross(zk, shadow_z)
        across = _dot(d, e)
        left = _dot(shadow_z, _times(f2, shadow_z)) - 3.0 * shadow * shadow
        usable = ~dual & (own * shadow - 1.0 > 1e-8) & (left > 1e-12 * shadow * shadow) & (across > 0.0)
        one, two, three = 1.0 / product, 1.0 / across, own * determinant / (3.0 * left)
        slope, small = steep(a, zk[0], zk[1], zk[2])
        length = sqrt(select(usable, one, own))
        large = (
            length * select(usable, sk[0], slope[0]),
            length * select(usable, sk[1], slope[1]),
            length * select(usable, sk[2], slope[2]),
        )
        size, safe = _dot(large, large), full(0.0)
        for i in range(3):
            safe += select(usable, d[i] * d[i] * two + c[i] * c[i] * three, own * small[2 * i + i // 2])
        kept = smaller(safe / (size + TINY), 1.0)  # of ww' in B: what leaves its size as it is and its pivots away from zero
        safe, rest = safe + kept * size, sqrt(1.0 - kept)
        at = 0
        for column in range(3):
            for row in range(column + 1):
                value = select(usable, d[row] * d[column] * two + c[row] * c[column] * three, own * small[at])
                value += kept * large[row] * large[column]
                store(values, places[entry + at], -value - (DEFINITE if row == column else 0.0) * safe)
                at += 1
            store(values, places[entry + 6 + column], rest * large[column])
        store(values, places[entry + 9], 1.0)


@inner
def correct(cones: Compiled, s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, target: Compiled, offset: Compiled) -> None:
    """The offset of the corrected step."""
    for k in range(len(cones.first)):
        first, a = cones.first[k], cones.alpha[k]
        u, v, w = _take(z, first)
        x, y, t = _take(ds, first)
        g, h, l = unbend(a, u, v, w, x, y, t)  # noqa: E741
        d, e, f = _take(dz, first)
        bend, slope = third(a, u, v, w, d, e, f, g, h, l), gradient(a, u, v, w)
        for j in range(3):
            store(offset, first + j, load(s, first + j) - target * slope[j] - 0.5 * bend[j])


@inner
def shorten(
    cones: Compiled, s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, near: Compiled, mu: Compiled, first_order: Compiled,
    second_order: Compiled, step: Compiled,
) -> Compiled:  # fmt: skip
    """Shorten ``step`` in the lanes that leave a cone or, where ``near``, the neighbourhood of the central path.

    The mean mu at a step t is mu + t first_order + t^2 second_order.
    """
    for k in range(len(cones.first)):
        first, a = cones.first[k], cones.alpha[k]
        sk, zk, dsk, dzk = _take(s, first), _take(z, first), _take(ds, first), _take(dz, first)
        for _ in range(TRIALS):
            x, y, t = sk[0] + step * dsk[0], sk[1] + step * dsk[1], sk[2] + step * dsk[2]
            u, v, w = zk[0] + step * dzk[0], zk[1] + step * dzk[1], zk[2] + step * dzk[2]
            good = inside(a, x, y, t) & inside_dual(a, u, v, w)
            if near:
                shadow = _dot(gradient(a, u, v, w), conjugate(a, x, y, t)) / 3.0
                mean = mu + step * (first_order + step * second_order)
                good = good & (shadow * mean * NEAR <= 1.0) & (shadow > 0.0)
            bad = ~good & (step > 0.0)
            if not some(bad):
                break
            step = select(bad, SHORTER * step, step)
        step = select(good, step, full(0.0))
    return step
