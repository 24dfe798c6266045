"""Rows of a batch for the dual active-set method of ``active_set``: scaled dense matrices from sparse values, one factor for equal ones.

Rows of A, P and x are scaled by powers of two, which rounds nothing. As long as the values of P and A are those of the row before,
everything made of them is kept: the factor R of P, M = A R^-1, the orthogonalized equations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvxlayers.kernels.active_measures import (
    BEST,
    COLUMNS,
    COST,
    DUAL,
    FLAT,
    INVERSE,
    LEFT,
    LENGTHS,
    NAMES,
    SCALE,
    TOP,
    WEIGHTS,
    B,
    largest,
)
from cvxlayers.kernels.active_scaling import gather, power_of_two, typical
from cvxlayers.kernels.active_set import ERROR, INACCURATE, LIMIT, PRIMAL, row_of, solve
from cvxlayers.kernels.lanes import LANES, Compiled, aligned, compiled, full, inner, load, select, sqrt, store
from cvxlayers.kernels.matrices import factor
from cvxlayers.kernels.numbers import apart, get, put
from cvxlayers.kernels.threads import run
from cvxlayers.kernels.working_set import add, direction, empty

PIVOT = 1e-8
"""A pivot of P below this part of its diagonal entry makes P singular."""
SHIFT = 1e-8
"""What is then added to the diagonal of P, whose largest entry is near one."""
STRONGER = 1e-5
"""And where that leaves too large an error: more steps, but well conditioned ones."""
FAR = 1024.0
"""How far a linear objective pulls, in typical right-hand sides."""


class Programs:
    """The programs of one pattern: n variables, m constraints of which the first ``equations`` are equations.

    P and A are in compressed columns, of P the upper triangle.
    """

    def __init__(self, n: int, m: int, equations: int, P: tuple[np.ndarray, np.ndarray], A: tuple[np.ndarray, np.ndarray]) -> None:
        rows, width, tall = -(-n // 4) * 4, -(-n // LANES), -(-m // LANES)
        stride, height = width + tall + 1, max(width, tall) + 1
        sizes = np.array([NAMES * height, rows * stride, rows * stride, (rows + 4) * width, (rows + 4) * width])
        starts = np.cumsum(sizes).tolist()
        self._shape, self._size = (n, m, equations, rows, width, tall, stride, height, *starts[:4]), starts[4]
        self._places = tuple(np.ascontiguousarray(part, dtype=np.int32) for part in (*P, *A))
        columns = np.repeat(np.arange(float(n)), np.diff(A[1]))
        self._top = np.zeros(stride)  # the first variable in each vector of constraints
        self._top[width:] = rows
        np.minimum.at(self._top, width + np.asarray(A[0]) // LANES, columns)
        self._spare: list[Any] = []  # memory of one thread at a time; pop and append are atomic

    def _memory(self) -> tuple[np.ndarray, ...]:
        N = aligned(self._size)
        N[:] = 0.0
        N[TOP * self._shape[7] :].reshape(-1)[: len(self._top)] = self._top
        return N, np.full(len(self._places[0]) + 1, np.nan), np.full(len(self._places[2]), np.nan), np.zeros(5)

    def solve(
        self, P: np.ndarray, q: np.ndarray, A: np.ndarray, b: np.ndarray, rows: int, tolerance: float, limit: int, jobs: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, y, s, status, iterations of so many rows; any of P, q, A, b may be one row for all."""
        n, m = self._shape[:2]
        x, y, s = np.empty((rows, n)), np.empty((rows, m)), np.empty((rows, m))
        status, steps = np.empty(rows, dtype=np.int8), np.empty(rows, dtype=np.int32)

        def task(first: int, last: int) -> None:
            try:
                memory = self._spare.pop()
            except IndexError:
                memory = self._memory()
            solve_rows(self._shape, self._places, first, last, P, q, A, b, (tolerance, limit), memory, x, y, s, status, steps)
            self._spare.append(memory)

        run(task, rows, jobs)
        return x, y, s, status, steps


@compiled
def solve_rows(
    shape: Compiled, places: Compiled, first: Compiled, last: Compiled, P: Compiled, q: Compiled, A: Compiled, b: Compiled,
    options: Compiled, memory: Compiled, x: Compiled, y: Compiled, s: Compiled, status: Compiled, steps: Compiled,
) -> None:  # fmt: skip
    """Rows first, ..., last - 1."""
    N, held_P, held_A, state = memory
    tolerance, limit = options
    n, m, equations, _, width, tall, _, height, _, _, _, _ = shape
    known = False
    for row in range(first, last):
        at, there, own_q, own_b = min(row, len(P) - 1), min(row, len(A) - 1), min(row, len(q) - 1), min(row, len(b) - 1)
        code, count, level, shift = ERROR, np.int64(0), 0.0, SHIFT
        for again in range(2):
            if again or ((not known or len(P) > 1 or len(A) > 1) and not same(P[at], held_P, A[there], held_A)):
                prepare(shape, places, P[at], A[there], N, held_P, held_A, state, shift)
            known = again == 0
            code, more, level = solve_row(N, shape, state, q[own_q], b[own_b], tolerance, limit)
            count += more
            if not (code == INACCURATE or code == ERROR) or state[2] != SHIFT:
                break
            shift = STRONGER
        if not known:  # what was made is for this row alone
            held_P[len(P[at])] = 0.0
        status[row], steps[row] = code, count
        if code > INACCURATE and code != LIMIT:
            x[row], y[row], s[row] = np.nan, np.nan, np.nan
            continue
        for j in range(n):
            x[row, j] = get(N, BEST * height, j) * get(N, COLUMNS * height, j)
        for i in range(m):
            size, multiplier, left = get(N, SCALE * height, i), get(N, DUAL * height, i), get(N, LEFT * height, i)
            y[row, i] = multiplier * level / size
            s[row, i] = left * size if left > 0.0 and multiplier == 0.0 and i >= equations else 0.0


@inner
def same(P: Compiled, held_P: Compiled, A: Compiled, held_A: Compiled) -> Compiled:
    """Whether the values are those that are held; never where there is a NaN."""
    for i in range(len(P)):
        if P[i] != held_P[i]:
            return False
    for i in range(len(A)):
        if A[i] != held_A[i]:
            return False
    return held_P[len(P)] == 1.0


@inner
def solve_row(N: Compiled, shape: Compiled, state: Compiled, q: Compiled, b: Compiled, tolerance: Compiled, limit: Compiled) -> Compiled:
    """(status, steps, the scale of the objective) of one row."""
    n, m, _, _, width, tall, _, height, _, _, _, _ = shape
    kept, level = int(state[1]), state[3]
    for i in range(m):
        put(N, B * height, i, b[i] / get(N, SCALE * height, i))
    for j in range(n):
        put(N, COST * height, j, q[j] * get(N, COLUMNS * height, j))
    peak, unit = largest(N, COST * height, width), typical(N, B * height, m)
    if level == 0.0:
        level = power_of_two((peak if peak > 0.0 else 1.0) / unit) / FAR
    for j in range(n):  # not what pads it: the scale may be NaN
        put(N, COST * height, j, get(N, COST * height, j) / level)
    code, steps = ERROR, np.int64(0)
    if state[0] == 0.0 and peak < np.inf and largest(N, B * height, tall) < np.inf:
        if state[4] != 0.0 and contradicts(N, shape, unit):
            code = PRIMAL
        else:
            code, steps, k = solve(N, shape, kept, unit, state[2] != 0.0, tolerance, limit)
            empty(N, shape, k, kept)
    return code, steps, level


@inner
def contradicts(N: Compiled, shape: Compiled, unit: Compiled) -> Compiled:
    """Whether a row of zeros has a right-hand side that no x meets."""
    _, m, equations, _, _, _, _, height, _, _, _, _ = shape
    for i in range(m):
        own = get(N, B * height, i)
        if get(N, LENGTHS * height, i) == 0.0 and (abs(own) if i < equations else -own) > FLAT * unit:
            return True
    return False


@inner
def prepare(
    shape: Compiled,
    places: Compiled,
    P: Compiled,
    A: Compiled,
    N: Compiled,
    held_P: Compiled,
    held_A: Compiled,
    state: Compiled,
    shift: Compiled,
) -> None:
    """Everything that depends on P and A alone.

    state: whether they are no matrices to work with; the equations in the working set; the shift of P; its scale; whether A has a
    row of zeros.
    """
    apart()
    n, m, equations, rows, width, tall, stride, height, K, F, _, _ = shape
    for i in range(len(P)):
        held_P[i] = P[i]
    for i in range(len(A)):
        held_A[i] = A[i]
    held_P[len(P)] = 1.0
    kept = np.int64(0)
    empty(N, shape, int(state[1]), kept)
    state[0], state[1], state[2], state[4] = 1.0, 0.0, 0.0, 0.0
    level = gather(shape, places, P, A, N)
    state[3] = level
    if level != level:
        return
    for attempt in range(2):
        for j in range(rows * stride):
            store(N, F + j, load(N, K + j))
        for j in range(rows):
            if j >= n or level == 0.0:
                put(N, F + j * stride, j, 1.0)
            elif attempt == 1:
                put(N, F + j * stride, j, get(N, F + j * stride, j) + shift)
        state[2] = shift * attempt
        if level == 0.0:
            for j in range(width):
                store(N, INVERSE * height + j, 1.0)
            state[2] = 1.0
            break
        if factor(N, F, rows, stride, width + tall, TOP * height, PIVOT if attempt == 0 else 0.1 * shift, INVERSE * height):
            break
        if attempt == 1:
            return
    state[0] = 0.0
    for c in range(tall):
        squares = full(0.0)
        for j in range(rows):
            entries = load(N, F + j * stride + width + c)
            squares = squares + entries * entries
        store(N, LENGTHS * height + c, sqrt(squares))
        store(N, WEIGHTS * height + c, select(squares > 0.0, 1.0 / sqrt(squares), 0.0))
    for p in range(m):
        size = get(N, LENGTHS * height, p)
        if size == 0.0:
            state[4] = 1.0
        if p < equations:
            put(N, WEIGHTS * height, p, 0.0)
            if size > 0.0:
                row_of(N, shape, p)
                across = direction(N, shape, kept, size)
                if across > 0.0:
                    add(N, shape, kept, p, size, 0.0, across)
                    kept += 1
    state[1] = float(kept)
