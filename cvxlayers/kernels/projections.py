"""The projections on exponential and power cones, LANES points at a time: the text of `cvxlayers.cones` for arrays, compiled.

``number`` is the power cone's alpha, None for the exponential cone; the kernel of a cone that nobody meets is not compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import isfunction
from typing import Any

import numpy as np

from cvxlayers.cones import exponential, power, root, three_dimensional
from cvxlayers.kernels import arrays
from cvxlayers.kernels.disk import compiles, compiles_as
from cvxlayers.kernels.lanes import LANES, Compiled, aligned, compiled, inner, load, some, store
from cvxlayers.kernels.threads import run

SMALL = 128
"""Blocks up to which one thread is quicker than two: about half a millisecond of work."""

for module in (root, three_dimensional, exponential, power):
    for function in filter(isfunction, vars(module).values()):
        if function.__module__ == module.__name__ and function is not root.some:
            compiles(function)
compiles_as(root.some, lambda going: lambda going: some(going))


def project(number: float | None, v: np.ndarray) -> np.ndarray:
    """The projections of points v (*batch, 3), of that shape."""
    points, out = _points(v), np.empty(v.shape)
    flat = out.reshape(-1, 3)
    _shared(lambda rows: _project(number, points[rows], aligned(3), flat[rows]), len(points))
    return out


def linearize(number: float | None, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The derivative at v (*batch, 3): its eigenvectors in columns (*batch, 3, 3), its eigenvalues (*batch, 3); and the margin (*batch)."""
    points = _points(v)
    vectors, values, margin = np.empty((*v.shape, 3)), np.empty(v.shape), np.empty(v.shape[:-1])
    flat = vectors.reshape(-1, 9), values.reshape(-1, 3), margin.reshape(-1)
    _shared(lambda rows: _linearize(number, points[rows], aligned(13), *(out[rows] for out in flat)), len(points))
    return vectors, values, margin


def _shared(work: Callable[[slice], None], points: int) -> None:
    """Have the blocks of the points worked on, by several threads where there are many."""
    blocks = -(-points // LANES)
    run(lambda first, last: work(slice(LANES * first, LANES * last)), blocks, 1 if blocks < SMALL else 0)


def _points(v: np.ndarray) -> Any:
    """v as (points, 3), read-only whatever it was: one type, one kernel."""
    points = np.ascontiguousarray(v).reshape(-1, 3)
    points.flags.writeable = False
    return points


@inner
def _bring(points: Compiled, first: Compiled, work: Compiled) -> Compiled:
    for j in range(LANES):
        row = min(first + j, len(points) - 1)
        for k in range(3):
            work[k, j] = points[row, k]
    return load(work, 0), load(work, 1), load(work, 2)


@inner
def _broken(point: Compiled) -> Compiled:
    """Zero, NaN where the point is not finite: which of two numbers is greater says nothing of that."""
    return 0.0 * point[0] + 0.0 * point[1] + 0.0 * point[2]


@inner
def _parts(number: Compiled, w: Compiled) -> Compiled:
    if number is None:
        return exponential.split(arrays, w), exponential.slacks(arrays, w), exponential.crease(arrays, w)
    return power.split(arrays, number, w), power.slacks(arrays, number, w), power.crease(arrays, w)


@compiled
def _project(number: Compiled, points: Compiled, work: Compiled, out: Compiled) -> None:
    for first in range(0, len(points), LANES):
        point = _bring(points, first, work)
        size, w = three_dimensional.scaled(arrays, point)
        split, slacks, _ = _parts(number, w)
        p = three_dimensional.projected(arrays, point, size, split, slacks)
        broken = _broken(point)
        for k in range(3):
            store(work, k, p[k] + broken)
        for j in range(min(LANES, len(points) - first)):
            for k in range(3):
                out[first + j, k] = work[k, j]


@compiled
def _linearize(number: Compiled, points: Compiled, work: Compiled, vectors: Compiled, values: Compiled, margin: Compiled) -> None:
    for first in range(0, len(points), LANES):
        point = _bring(points, first, work)
        size, w = three_dimensional.scaled(arrays, point)
        split, slacks, crease = _parts(number, w)
        axes, triple, nearest = three_dimensional.linearized(arrays, size, split, slacks, crease)
        broken = _broken(point)
        for k in range(3):
            for i in range(3):
                store(work, 3 * i + k, axes[k][i])
            store(work, 9 + k, triple[k] + broken)
        store(work, 12, nearest + broken)
        for j in range(min(LANES, len(points) - first)):
            for k in range(9):
                vectors[first + j, k] = work[k, j]
            for k in range(3):
                values[first + j, k] = work[9 + k, j]
            margin[first + j] = work[12, j]
