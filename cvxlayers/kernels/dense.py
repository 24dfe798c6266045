"""Symmetric systems K z = r whose factors would be nearly full, one row at a time on dense storage; the method is that of ``systems``.

K = [[E, B'], [B, -F]] with F diagonal. A row of B without an entry leaves the system before it is factored: its part of z is r over the
diagonal, and of an active set method's K most rows are such. What remains is factored as U' D^-1 U by blocks of LANES rows: U, upper
triangle, stored row by row and padded to whole vectors, so that a block meets all earlier rows in products of small matrices, which is
where the time goes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvxlayers.kernels.lanes import LANES, Compiled, aligned, compiled, full, inner, lane, larger, load, select, store
from cvxlayers.kernels.systems import EVEN, MORE, SCALINGS, TINY, period
from cvxlayers.kernels.threads import run


class DenseSystems:
    """The systems of one pattern, as `cvxlayers.kernels.systems.Systems`; the first n pivots are positive, the others negative."""

    def __init__(self, indices: np.ndarray, indptr: np.ndarray, n: int) -> None:
        self.size, self.n = len(indptr) - 1, n
        self._indices, self._indptr = np.asarray(indices, dtype=np.int32), np.asarray(indptr, dtype=np.int32)
        self.factored = 0  # matrices factored by the last call
        self._spare: list[Any] = []  # memory of one thread at a time; pop and append are atomic

    def solve(
        self, values: np.ndarray, rhs: np.ndarray, shift: float, most: int, goal: float, jobs: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `cvxlayers.kernels.systems.Systems.solve`."""
        z, figures, counts = np.empty_like(rhs), np.empty((len(rhs), 3)), []
        values, rhs = np.ascontiguousarray(values), np.ascontiguousarray(rhs)
        repeated = period(values) if len(values) != 1 else 1
        order = np.arange(len(rhs), dtype=np.int32).reshape(-1, max(repeated, 1)).T.reshape(-1)  # rows of one matrix stand together

        def task(first: int, last: int) -> None:
            try:
                memory = self._spare.pop()
            except IndexError:
                width = -(-self.size // LANES)
                matrices = tuple(aligned(LANES * width * width) for _ in range(3))
                vectors = tuple(aligned(width) for _ in range(7))
                memory = (*matrices, *vectors, np.empty(self.size, dtype=np.int32), np.empty(width, dtype=np.int32))
            rows = np.ascontiguousarray(order[first:last])
            counts.append(_solve(self._indices, self._indptr, self.n, rows, repeated, values, rhs, shift, most, goal, memory, z, figures))
            self._spare.append(memory)

        run(task, len(rhs), jobs)
        self.factored = sum(counts)
        return z, figures


@compiled
def _solve(
    indices: Compiled, indptr: Compiled, n: Compiled, rows: Compiled, repeated: Compiled, values: Compiled, rhs: Compiled, shift: Compiled,
    most: Compiled, goal: Compiled, memory: Compiled, z: Compiled, figures: Compiled,
) -> Compiled:  # fmt: skip
    """Solve the rows; how many matrices were factored."""
    K, U, L, right, scale, found, left, step, largest, inverse, place, top = memory
    size, factored, live, width, height = len(indptr) - 1, 0, 0, 0, 0.0
    for k in range(len(rows)):
        row = rows[k]
        value, peak = values[row], 0.0
        for j in range(size):
            entry = abs(rhs[row, j])
            peak = entry if entry > peak or entry != entry else peak
        if peak == 0.0:
            peak = 1.0
        if k == 0 or row % repeated != rows[k - 1] % repeated:
            height = 0.0
            for entry in value:
                entry = abs(entry)
                height = entry if entry > height or entry != entry else height
            live = _spread(indices, indptr, n, value, place, top, K)
            width = (live + LANES - 1) // LANES
            _equilibrate(K, live, width, scale, largest)
            _factor(K, U, L, inverse, top, live, n, width, shift)
            factored += 1
        right[:width] = 0.0
        for j in range(size):
            if place[j] >= 0:
                right[place[j] // LANES, place[j] % LANES] = rhs[row, j] / peak
        for j in range(width):
            store(right, j, load(right, j) * load(scale, j))
        _refine(K, L, inverse, right, found, left, step, live, width, most, goal)

        length = wrong = whole = 0.0
        for j in range(size):
            at, lane_ = place[j] // LANES, place[j] % LANES
            r = rhs[row, j] / peak
            whole += r * r
            if place[j] >= 0:
                unit = found[at, lane_] * scale[at, lane_]
                error = left[at, lane_] / scale[at, lane_]
            else:
                diagonal = value[indptr[j + 1] - 1]
                unit = r / diagonal
                error = r - unit * diagonal
            wrong += error * error
            length = abs(unit) if abs(unit) > length or unit != unit else length
            z[row, j] = unit * peak
        figures[row, 0] = np.sqrt(wrong) / (np.sqrt(whole) if whole != 0.0 else 1.0)
        figures[row, 1] = length
        figures[row, 2] = height
    return factored


@inner
def _spread(indices: Compiled, indptr: Compiled, n: Compiled, value: Compiled, place: Compiled, top: Compiled, K: Compiled) -> Compiled:
    """Upper triangle of K in whole vectors; ``place`` (N,): where a row went or -1; ``top``: where blocks begin; how many rows stay."""
    size, live = len(indptr) - 1, 0
    for j in range(size):
        stays = j < n or value[indptr[j + 1] - 1] == 0.0
        for p in range(indptr[j], indptr[j + 1] - 1):
            if value[p] != 0.0:
                stays = True
                break
        place[j] = live if stays else -1
        live += stays
    width, flat = (live + LANES - 1) // LANES, K.reshape(-1)
    for i in range(LANES * width * width):
        store(K, i, 0.0)
    for j in range(size):
        if place[j] >= 0:
            block, start = place[j] // LANES, place[indices[indptr[j]]]
            top[block] = start if place[j] % LANES == 0 else min(top[block], start)
            for p in range(indptr[j], indptr[j + 1]):
                flat[place[indices[p]] * width * LANES + place[j]] = value[p]
    return live


@inner
def _equilibrate(K: Compiled, live: Compiled, width: Compiled, scale: Compiled, largest: Compiled) -> None:
    """K becomes diag(e) K diag(e), with e = ``scale``."""
    for j in range(width):
        store(scale, j, 1.0)
    for taken in range(MORE):
        for j in range(width):
            store(largest, j, 0.0)
        for i in range(live):
            own = full(0.0)
            for j in range(i // LANES, width):
                entry = abs(load(K, i * width + j))
                own = larger(entry, own)
                store(largest, j, larger(entry, load(largest, j)))
            top = largest[i // LANES, i % LANES]
            for k in range(LANES):
                top = max(top, lane(own, k))
            largest[i // LANES, i % LANES] = top
        if taken >= SCALINGS:
            even = True
            for j in range(width):
                for k in range(LANES):
                    even = even and (largest[j, k] == 0.0 or 1.0 / EVEN <= largest[j, k] <= EVEN)
            if even:
                break
        for j in range(width):
            for k in range(LANES):
                largest[j, k] = 1.0 / np.sqrt(largest[j, k]) if largest[j, k] > 0.0 else 1.0
            store(scale, j, load(scale, j) * load(largest, j))
        for i in range(live):
            own = largest[i // LANES, i % LANES]
            for j in range(i // LANES, width):
                store(K, i * width + j, load(K, i * width + j) * (load(largest, j) * own))


@inner
def _factor(
    K: Compiled, U: Compiled, L: Compiled, inverse: Compiled, top: Compiled, live: Compiled, n: Compiled, width: Compiled, shift: Compiled
) -> None:
    """U = D L' and L' (unit diagonal left out), 1/D in ``inverse``, of K with shifted pivots; K and U have no entries above ``top``."""
    flat, stride = L.reshape(-1), width * LANES
    for block in range(width):
        first = block * LANES
        for column in range(block, width):
            # Rows beyond the last repeat nothing: K is padded with zero rows in whole blocks.
            at = first * width + column
            a0, a1, a2, a3 = load(K, at), load(K, at + width), load(K, at + 2 * width), load(K, at + 3 * width)
            a4, a5, a6, a7 = load(K, at + 4 * width), load(K, at + 5 * width), load(K, at + 6 * width), load(K, at + 7 * width)
            for p in range(max(top[block], top[column]), first):
                u, q = load(U, p * width + column), p * stride + first
                a0 = a0 - u * flat[q]
                a1 = a1 - u * flat[q + 1]
                a2 = a2 - u * flat[q + 2]
                a3 = a3 - u * flat[q + 3]
                a4 = a4 - u * flat[q + 4]
                a5 = a5 - u * flat[q + 5]
                a6 = a6 - u * flat[q + 6]
                a7 = a7 - u * flat[q + 7]
            store(U, at, a0)
            store(U, at + width, a1)
            store(U, at + 2 * width, a2)
            store(U, at + 3 * width, a3)
            store(U, at + 4 * width, a4)
            store(U, at + 5 * width, a5)
            store(U, at + 6 * width, a6)
            store(U, at + 7 * width, a7)
            for c in range(LANES):
                own = load(U, at + c * width)
                for e in range(c):
                    own = own - load(U, at + e * width) * flat[(first + e) * stride + first + c]
                store(U, at + c * width, own)
                if column == block:
                    # the diagonal block comes first: its rows give the pivots and the multipliers of all others
                    k = first + c
                    sign = 1.0 if k < n else -1.0
                    pivot = U[at + c * width, c] + shift * sign if k < live else 1.0
                    if pivot * sign <= TINY and k < live:
                        pivot = shift * sign
                    inverse[block, c] = 1.0 / pivot
                    store(L, at + c * width, own * inverse[block, c])
                    for e in range(c + 1):
                        flat[k * stride + first + e] = 0.0
                else:
                    store(L, at + c * width, own * inverse[block, c])


@inner
def _back(L: Compiled, inverse: Compiled, live: Compiled, width: Compiled, z: Compiled) -> None:
    """Solve with the factors, in place."""
    for i in range(live):
        own = z[i // LANES, i % LANES]
        for j in range(i // LANES, width):
            store(z, j, load(z, j) - load(L, i * width + j) * own)
    for j in range(width):
        store(z, j, load(z, j) * load(inverse, j))
    for back in range(live):
        i = live - 1 - back
        total = full(0.0)
        for j in range(i // LANES, width):
            total = total + load(L, i * width + j) * load(z, j)
        own = z[i // LANES, i % LANES]
        for k in range(LANES):
            own = own - lane(total, k)
        z[i // LANES, i % LANES] = own


@inner
def _residual(K: Compiled, right: Compiled, z: Compiled, live: Compiled, width: Compiled, out: Compiled) -> Compiled:
    """out = right - K z; the largest |out|, NaN where there is one."""
    for j in range(width):
        store(out, j, load(right, j))
    for i in range(live):
        block, k = i // LANES, i % LANES
        own, total = z[block, k], full(0.0)
        corner = K[i * width + block, k] * own  # the diagonal, which both halves hold
        for j in range(block, width):
            entries = load(K, i * width + j)
            total = total + entries * load(z, j)
            store(out, j, load(out, j) - entries * own)
        less = out[block, k] + corner
        for e in range(LANES):
            less = less - lane(total, e)
        out[block, k] = less
    return _norm(out, width)


@inner
def _norm(v: Compiled, width: Compiled) -> Compiled:
    largest = full(0.0)
    for j in range(width):
        size = abs(load(v, j))
        largest = select(size <= largest, largest, size + 0.0 * largest)
    top = 0.0
    for k in range(LANES):
        size = lane(largest, k)
        top = size if size > top or size != size else top
    return top


@inner
def _refine(
    K: Compiled, L: Compiled, inverse: Compiled, right: Compiled, z: Compiled, left: Compiled, step: Compiled, live: Compiled,
    width: Compiled, most: Compiled, goal: Compiled,
) -> None:  # fmt: skip
    """Solve K z = right and refine while the residual halves; ``left`` becomes right - K z."""
    for j in range(width):
        store(z, j, load(right, j))
    _back(L, inverse, live, width, z)
    error, enough = _residual(K, right, z, live, width, left), goal * _norm(right, width)
    for _ in range(most):
        if not error > enough:
            break
        for j in range(width):
            store(step, j, load(left, j))
        _back(L, inverse, live, width, step)
        for j in range(width):
            store(step, j, load(z, j) + load(step, j))
        after = _residual(K, right, step, live, width, left)
        if not after < error:
            _residual(K, right, z, live, width, left)
            break
        for j in range(width):
            store(z, j, load(step, j))
        before, error = error, after
        if not after < 0.5 * before:
            break
