"""Linear rows: zero rows, where s = 0 and H = 0, and nonnegative rows, where H = diag(s / z)."""

from __future__ import annotations

from typing import NamedTuple

from cvxlayers.kernels.lanes import Compiled, full, inner, load, select, smaller, store


class Linear(NamedTuple):
    """Rows 0 ... zero - 1 are equations, rows zero ... end - 1 are nonnegative."""

    zero: int
    end: int


@inner
def center(linear: Compiled, s: Compiled, z: Compiled) -> None:
    """s = z = 1, in equations s = z = 0."""
    for i in range(linear.end):
        start = 0.0 if i < linear.zero else 1.0
        store(s, i, start)
        store(z, i, start)


@inner
def margin(linear: Compiled, v: Compiled, least: Compiled) -> Compiled:
    """The smallest entry of v in nonnegative rows, or ``least`` if that is smaller."""
    for i in range(linear.zero, linear.end):
        least = smaller(load(v, i), least)
    return least


@inner
def shift(linear: Compiled, v: Compiled, length: Compiled) -> None:
    """v += length in nonnegative rows."""
    for i in range(linear.zero, linear.end):
        store(v, i, load(v, i) + length)


@inner
def rescale(linear: Compiled, system: Compiled, s: Compiled, z: Compiled, values: Compiled) -> None:
    """Put -H into K."""
    n, indptr = system.n, system.indptr
    for i in range(linear.zero):
        store(values, indptr[n + i + 1] - 1, 0.0)
    for i in range(linear.zero, linear.end):
        store(values, indptr[n + i + 1] - 1, -(load(s, i) / load(z, i)))


@inner
def move(linear: Compiled, s: Compiled, z: Compiled, dz: Compiled, offset: Compiled, ds: Compiled) -> None:
    """ds = -H dz - offset, zero in equations."""
    for i in range(linear.zero):
        store(ds, i, 0.0)
    for i in range(linear.zero, linear.end):
        store(ds, i, -(load(s, i) / load(z, i)) * load(dz, i) - load(offset, i))


@inner
def correct(linear: Compiled, s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, target: Compiled, offset: Compiled) -> None:
    """offset = s + (ds dz - target) / z: the second-order term of the predictor (ds, dz), and the way to s z = target."""
    for i in range(linear.zero):
        store(offset, i, 0.0)
    for i in range(linear.zero, linear.end):
        store(offset, i, load(s, i) + (load(ds, i) * load(dz, i) - target) / load(z, i))


@inner
def longest(v: Compiled, dv: Compiled, first: Compiled, last: Compiled, most: Compiled) -> Compiled:
    """The longest step up to ``most`` that keeps v + step dv nonnegative in rows first ... last - 1."""
    step = full(1.0) * most
    for i in range(first, last):
        d, own = load(dv, i), load(v, i)
        step = select((d < 0.0) & (-own > step * d), -own / d, step)
    return step
