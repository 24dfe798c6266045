"""Second-order cones |v_1| <= v_0, by the scaling of Nesterov and Todd ("Primal-dual interior-point methods for self-scaled cones", 1998).

With J = diag(1, -1, ..., -1), s^ = s / sqrt(s'Js), z^ = z / sqrt(z'Jz):

    w = (s^ + J z^) / sqrt(2 + 2 s^'z^),   w'Jw = 1,   eta^4 = s'Js / z'Jz,   H = W^2 = eta^2 (2 ww' - J),
    W = eta [w_0, w_1'; w_1, I + w_1 w_1' / (1 + w_0)],   lambda = W z = W^-1 s,

and a o b = (a'b, a_0 b_1 + b_0 a_1) is the cone's product. In the form that `system` wants, with g = w_0^2 + |w_1|^2,

    2 ww' - J = diag(d, 1, ..., 1) + uu' - vv',   d = 1 / (2 g),   u_0^2 = g - d,   u_1 = 2 w_0 w_1 / u_0,   v = (0, v_1),
    v_1 = w_1 sqrt(2 (2 + 1/g) / (2 g - 1/g)),   and diag(d, 1, ..., 1) - vv' is positive definite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import DEFINITE, Compiled, aligned, full, inner, load, select, smaller, sqrt, store


class SecondOrder(NamedTuple):
    """The cones' rows first ... last - 1, where their H begins in the system's ``H_entries``, whether it is expanded, and w, eta."""

    first: np.ndarray
    last: np.ndarray
    entries: np.ndarray
    expanded: np.ndarray
    w: np.ndarray
    eta: np.ndarray

    @staticmethod
    def of(first: np.ndarray, last: np.ndarray, entries: np.ndarray, expanded: np.ndarray) -> SecondOrder:
        """With memory for the scaling of one block."""
        return SecondOrder(first, last, entries, expanded, aligned(int(last[-1])), aligned(len(first)))


@inner
def center(cones: Compiled, s: Compiled, z: Compiled) -> None:
    """s = z = (1, 0, ..., 0)."""
    for k in range(len(cones.first)):
        for i in range(cones.first[k], cones.last[k]):
            value = 1.0 if i == cones.first[k] else 0.0
            store(s, i, value)
            store(z, i, value)


@inner
def _tail(a: Compiled, b: Compiled, first: Compiled, last: Compiled) -> Compiled:
    """a_1'b_1."""
    total = full(0.0)
    for i in range(first + 1, last):
        total += load(a, i) * load(b, i)
    return total


@inner
def _determinant(v: Compiled, first: Compiled, last: Compiled) -> Compiled:
    """v'Jv, computed as a product that keeps its sign."""
    length = sqrt(_tail(v, v, first, last))
    return (load(v, first) - length) * (load(v, first) + length)


@inner
def margin(cones: Compiled, v: Compiled, least: Compiled) -> Compiled:
    """The smallest v_0 - |v_1|, or ``least`` if that is smaller."""
    for k in range(len(cones.first)):
        first, last = cones.first[k], cones.last[k]
        least = smaller(load(v, first) - sqrt(_tail(v, v, first, last)), least)
    return least


@inner
def shift(cones: Compiled, v: Compiled, length: Compiled) -> None:
    """v_0 += length."""
    for k in range(len(cones.first)):
        store(v, cones.first[k], load(v, cones.first[k]) + length)


@inner
def rescale(cones: Compiled, system: Compiled, s: Compiled, z: Compiled, values: Compiled) -> None:
    """Find w and eta, and put -H into K."""
    n, indptr, places, w = system.n, system.indptr, system.H_entries, cones.w
    for k in range(len(cones.first)):
        first, last, entry = cones.first[k], cones.last[k], cones.entries[k]
        count = last - first
        s_size, z_size = sqrt(_determinant(s, first, last)), sqrt(_determinant(z, first, last))
        product = (load(s, first) * load(z, first) + _tail(s, z, first, last)) / (s_size * z_size)
        scale = 1.0 / sqrt(2.0 + 2.0 * product)
        square = full(0.0)
        for i in range(first + 1, last):
            entry_w = (load(s, i) / s_size - load(z, i) / z_size) * scale
            store(w, i, entry_w)
            square += entry_w * entry_w
        head = sqrt(1.0 + square)  # w'Jw = 1, whatever rounding says
        store(w, first, head)
        squared = s_size / z_size
        eta = sqrt(squared)
        store(cones.eta, k, eta)
        if cones.expanded[k]:
            g = 1.0 + 2.0 * square
            d = 0.5 / g
            u = sqrt(g - d)
            u_tail = eta * 2.0 * head / u
            v_tail = eta * sqrt(2.0 * (2.0 + 1.0 / g) / (2.0 * g - 1.0 / g))
            store(values, indptr[n + first + 1] - 1, -squared * d)
            store(values, places[entry], 0.0)
            store(values, places[entry + count + 1], eta * u)
            for i in range(1, count):
                own = load(w, first + i)
                store(values, indptr[n + first + i + 1] - 1, -squared)
                store(values, places[entry + i], v_tail * own)
                store(values, places[entry + count + 1 + i], u_tail * own)
            store(values, places[entry + count], -1.0)
            store(values, places[entry + 2 * count + 1], 1.0)
        else:
            for column in range(count):
                own = -2.0 * squared * load(w, first + column)
                for row in range(column):
                    store(values, places[entry], own * load(w, first + row))
                    entry += 1
                safe = DEFINITE * squared * (1.0 + 2.0 * square)
                store(values, places[entry], own * load(w, first + column) + (squared if column == 0 else -squared) - safe)
                entry += 1


@inner
def _scale(cones: Compiled, k: Compiled, v: Compiled, sign: Compiled, out: Compiled) -> None:
    """out = W v (sign 1) or W^-1 v (sign -1); out may be v."""
    w, first, last, eta = cones.w, cones.first[k], cones.last[k], load(cones.eta, k)
    factor = eta if sign > 0.0 else 1.0 / eta
    head, inner = load(v, first), _tail(w, v, first, last)
    along = sign * head + inner / (1.0 + load(w, first))
    store(out, first, factor * (load(w, first) * head + sign * inner))
    for i in range(first + 1, last):
        store(out, i, factor * (load(v, i) + load(w, i) * along))


@inner
def correct(
    cones: Compiled, s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, target: Compiled, offset: Compiled, work: Compiled
) -> None:
    """offset = s + W (lambda \\ (W^-1 ds o W dz - target e)); ``work`` (m, LANES) is scratch."""
    for k in range(len(cones.first)):
        first, last = cones.first[k], cones.last[k]
        # the product of the scaled steps, into work
        _scale(cones, k, ds, -1.0, work)
        _scale(cones, k, dz, 1.0, offset)
        a, b = load(work, first), load(offset, first)
        head = a * b + _tail(work, offset, first, last) - target
        for i in range(first + 1, last):
            store(work, i, a * load(offset, i) + b * load(work, i))
        # divided by lambda
        _scale(cones, k, z, 1.0, offset)
        length, top = sqrt(_tail(offset, offset, first, last)), load(offset, first)
        x = (top * head - _tail(offset, work, first, last)) / ((top - length) * (top + length))
        store(work, first, x)
        for i in range(first + 1, last):
            store(work, i, (load(work, i) - load(offset, i) * x) / top)
        _scale(cones, k, work, 1.0, offset)
        for i in range(first, last):
            store(offset, i, load(s, i) + load(offset, i))


@inner
def longest(cones: Compiled, v: Compiled, dv: Compiled, most: Compiled) -> Compiled:
    """The longest step up to ``most`` that keeps v + step dv in the cones: the first positive root of (v + step dv)'J(v + step dv)."""
    for k in range(len(cones.first)):
        first, last = cones.first[k], cones.last[k]
        head, change = load(v, first), load(dv, first)
        most = select((change < 0.0) & (-head > most * change), -head / change, most)  # the way through the apex is a double root
        a, c = _determinant(dv, first, last), _determinant(v, first, last)
        half = head * change - _tail(v, dv, first, last)
        discriminant = half * half - a * c
        root = sqrt(select(discriminant > 0.0, discriminant, 0.0))
        t = -(half + select(half > 0.0, root, -root))
        one, two = t / a, c / t
        meets = discriminant >= 0.0
        most = select(meets & (one > 0.0) & (one < most), one, most)
        most = select(meets & (two > 0.0) & (two < most), two, most)
        most = select(c > 0.0, most, 0.0)
    return most
