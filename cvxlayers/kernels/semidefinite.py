"""Cones of semidefinite matrices, by the scaling of Nesterov and Todd as Todd, Toh and Tutuncu compute it (1998).

With S = L M', its Cholesky factors S = L1 L1', Z = L2 L2' and the singular values L2'L1 = U diag(lambda) V':

    R = L1 V diag(lambda)^-1/2,   R^-1 = diag(lambda)^-1/2 U'L2',   R'Z R = R^-1 S R^-T = diag(lambda),   H(Z) = G Z G,  G = R R'.

W z is R'Z R, W^-1 s is R^-1 S R^-T, and A o B = (AB + BA) / 2. Matrices are packed as `cvxlayers.program` says. H is stored as it is, with
(order (order + 1) / 2)^2 / 2 entries: for orders up to about thirty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import DEFINITE, Compiled, aligned, full, inner, larger, load, part, select, smaller, some, sqrt, store
from cvxlayers.kernels.small_dense import ROOT, cholesky, multiply, orthogonalize, unpack

HALVINGS = 20
"""Bisections of a step that leaves a cone."""


class Semidefinite(NamedTuple):
    """The cones' first rows and orders, where their H begins in the system's ``H_entries``; where their R, R^-1 and lambda begin."""

    first: np.ndarray
    order: np.ndarray
    entries: np.ndarray
    starts: np.ndarray
    scaling: np.ndarray
    work: np.ndarray

    @staticmethod
    def of(first: np.ndarray, order: np.ndarray, entries: np.ndarray) -> Semidefinite:
        """With memory for the scaling of one block."""
        starts = np.cumsum([0, *(2 * order**2 + order)]).astype(np.intp)
        return Semidefinite(first, order, entries, starts, aligned(int(starts[-1])), aligned(int(4 * order.max() ** 2)))


@inner
def center(cones: Compiled, s: Compiled, z: Compiled) -> None:
    """s = z = I."""
    for k in range(len(cones.first)):
        at = cones.first[k]
        for j in range(cones.order[k]):
            for i in range(j + 1):
                value = 1.0 if i == j else 0.0
                store(s, at, value)
                store(z, at, value)
                at += 1


@inner
def margin(cones: Compiled, v: Compiled, least: Compiled) -> Compiled:
    """A number below the smallest eigenvalue (Gershgorin's), or ``least`` if that is smaller."""
    for k in range(len(cones.first)):
        order, matrix = cones.order[k], cones.work
        unpack(v, cones.first[k], order, matrix)
        for i in range(order):
            radius = full(0.0)
            for j in range(order):
                if j != i:
                    radius += abs(load(matrix, i * order + j))
            least = smaller(load(matrix, i * order + i) - radius, least)
    return least


@inner
def shift(cones: Compiled, v: Compiled, length: Compiled) -> None:
    """v += length I."""
    for k in range(len(cones.first)):
        for j in range(cones.order[k]):
            at = cones.first[k] + j * (j + 3) // 2
            store(v, at, load(v, at) + length)


@inner
def rescale(cones: Compiled, system: Compiled, s: Compiled, z: Compiled, values: Compiled) -> None:
    """Find R, R^-1 and lambda, and put -H into K."""
    places = system.H_entries
    for k in range(len(cones.first)):
        first, order, entry = cones.first[k], cones.order[k], cones.entries[k]
        start, size = cones.starts[k], cones.order[k] ** 2
        R = part(cones.scaling, start, start + size)
        inverse = part(cones.scaling, start + size, start + 2 * size)
        values_k = part(cones.scaling, start + 2 * size, cones.starts[k + 1])
        matrix = part(cones.work, 0, size)
        lower = part(cones.work, size, 2 * size)
        G = part(cones.work, 2 * size, 3 * size)
        unpack(s, first, order, matrix)
        cholesky(matrix, order, R)
        unpack(z, first, order, matrix)
        cholesky(matrix, order, lower)
        multiply(lower, R, order, True, False, G)
        orthogonalize(G, R, order)
        multiply(G, lower, order, True, True, inverse)
        for j in range(order):
            total = full(0.0)
            for i in range(order):
                total += load(G, i * order + j) * load(G, i * order + j)
            value = sqrt(total)
            store(values_k, j, value)
            root = sqrt(value)
            for i in range(order):
                store(R, i * order + j, load(R, i * order + j) / root)
                store(inverse, j * order + i, load(inverse, j * order + i) / (value * root))
        multiply(R, R, order, False, True, G)
        safe = full(0.0)
        for j in range(order):
            safe = larger(load(G, j * order + j), safe)
        safe = 0.2 * DEFINITE * safe * safe
        for j in range(order):
            for i in range(j + 1):
                outer = 1.0 if i == j else 2.0 * ROOT
                for b in range(j + 1):
                    for a in range(b + 1 if b < j else i + 1):
                        scale = -0.5 * outer if a == b else -ROOT * outer
                        one = load(G, i * order + a) * load(G, j * order + b)
                        two = load(G, i * order + b) * load(G, j * order + a)
                        store(values, places[entry], scale * (one + two) - (1.0 if a == i and b == j else 0.0) * safe)
                        entry += 1


@inner
def _pack(matrix: Compiled, order: Compiled, first: Compiled, sign: Compiled, out: Compiled) -> None:
    """out = sign times the packed symmetric part of a matrix - out."""
    at = first
    for j in range(order):
        for i in range(j):
            store(out, at, sign * ROOT * (load(matrix, i * order + j) + load(matrix, j * order + i)) - load(out, at))
            at += 1
        store(out, at, sign * load(matrix, j * order + j) - load(out, at))
        at += 1


@inner
def move(cones: Compiled, dz: Compiled, offset: Compiled, ds: Compiled) -> None:
    """ds = -H dz - offset."""
    for k in range(len(cones.first)):
        first, order = cones.first[k], cones.order[k]
        start, size = cones.starts[k], order**2
        R = part(cones.scaling, start, start + size)
        G = part(cones.work, 0, size)
        matrix = part(cones.work, size, 2 * size)
        product = part(cones.work, 2 * size, 3 * size)
        for i in range(order * (order + 1) // 2):
            store(ds, first + i, load(offset, first + i))
        multiply(R, R, order, False, True, G)
        unpack(dz, first, order, matrix)
        multiply(G, matrix, order, False, False, product)
        multiply(product, G, order, False, False, matrix)
        _pack(matrix, order, first, -1.0, ds)


@inner
def _scaled(cones: Compiled, k: Compiled, v: Compiled, primal: Compiled, out: Compiled, work: Compiled) -> None:
    """out = R^-1 V R^-T if ``primal``, else R'V R."""
    order = cones.order[k]
    start, size = cones.starts[k], cones.order[k] ** 2
    R = part(cones.scaling, start, start + size)
    inverse = part(cones.scaling, start + size, start + 2 * size)
    unpack(v, cones.first[k], order, out)
    if primal:
        multiply(inverse, out, order, False, False, work)
        multiply(work, inverse, order, False, True, out)
    else:
        multiply(R, out, order, True, False, work)
        multiply(work, R, order, False, False, out)


@inner
def correct(cones: Compiled, s: Compiled, ds: Compiled, dz: Compiled, target: Compiled, offset: Compiled) -> None:
    """offset = s + W (lambda \\ (W^-1 ds o W dz - target I))."""
    for k in range(len(cones.first)):
        first, order = cones.first[k], cones.order[k]
        start, size = cones.starts[k], cones.order[k] ** 2
        R = part(cones.scaling, start, start + size)
        values = part(cones.scaling, start + 2 * size, cones.starts[k + 1])
        A = part(cones.work, 0, size)
        B = part(cones.work, size, 2 * size)
        C = part(cones.work, 2 * size, 3 * size)
        work = part(cones.work, 3 * size, 4 * size)
        _scaled(cones, k, ds, True, A, work)
        _scaled(cones, k, dz, False, B, work)
        multiply(A, B, order, False, False, C)
        for j in range(order):
            for i in range(j + 1):
                total = 0.5 * (load(C, i * order + j) + load(C, j * order + i))
                if i == j:
                    total = total - target
                total = 2.0 * total / (load(values, i) + load(values, j))
                store(A, i * order + j, total)
                store(A, j * order + i, total)
        multiply(R, A, order, False, False, B)
        multiply(B, R, order, False, True, C)
        for i in range(order * (order + 1) // 2):
            store(offset, first + i, -load(s, first + i))
        _pack(C, order, first, 1.0, offset)


@inner
def _definite(matrix: Compiled, values: Compiled, order: Compiled, step: Compiled, work: Compiled, factor: Compiled) -> Compiled:
    """Where diag(values) + step * matrix is positive definite."""
    for i in range(order):
        for j in range(order):
            entry = step * load(matrix, i * order + j)
            if i == j:
                entry = entry + load(values, i)
            store(work, i * order + j, entry)
    return cholesky(work, order, factor) > 0.0


@inner
def longest(cones: Compiled, v: Compiled, primal: Compiled, most: Compiled) -> Compiled:
    """A step up to ``most`` that keeps s + step v (``primal``) or z + step v in the cones: the longest, up to bisection."""
    for k in range(len(cones.first)):
        order = cones.order[k]
        start, size = cones.starts[k], cones.order[k] ** 2
        values = part(cones.scaling, start + 2 * size, cones.starts[k + 1])
        matrix = part(cones.work, 0, size)
        work = part(cones.work, size, 2 * size)
        factor = part(cones.work, 2 * size, 3 * size)
        _scaled(cones, k, v, primal, matrix, work)
        good = _definite(matrix, values, order, most, work, factor)
        if some(~good):
            low, high = full(0.0), most
            for _ in range(HALVINGS):
                middle = 0.5 * (low + high)
                inside = _definite(matrix, values, order, middle, work, factor)
                low, high = select(inside, middle, low), select(inside, high, middle)
            most = select(good, most, low)
    return most
