"""A dual active-set method for rows of dense programs: minimize 1/2 x'Px + q'x subject to Ax = b (the first rows), Ax <= b (the others).

With P = R'R and u = Rx the program is one of least distance, with rows M = A R^-1. From the minimizer under the equations alone, the
constraint farthest from holding joins the working set; on its way to holding, those whose multipliers would turn negative leave.
Every stop on the way is optimal for the constraints in the working set, so the objective rises to the optimum or, where nothing is left
that could leave, the multipliers point along a Farkas ray. Goldfarb and Idnani, "A numerically stable dual method for solving strictly
convex quadratic programs", 1983; Arnstrom, Bemporad and Axehill, "A dual active-set solver for embedded quadratic programming using
recursive LDL' updates", 2022, whose proximal steps serve where P is singular.

Between runs of this, residuals of the program itself are taken, and the equations of the working set solved for a correction with the
factors at hand: one step of refinement where P is regular and one proximal step where it was shifted, which are the same thing.
"""

from __future__ import annotations

import numpy as np

from cvxlayers.kernels.active_measures import (
    ALLOW,
    BACK,
    BEST,
    COST,
    DUAL,
    FLAT,
    GONE,
    GRADIENT,
    INVERSE,
    LEFT,
    LENGTHS,
    SLACK,
    STEP,
    WEIGHT,
    WEIGHTS,
    B,
    X,
    Y,
    endless,
    error_of,
    infeasible,
    largest,
    slack,
)
from cvxlayers.kernels.lanes import LANES, Compiled, full, inner, lane, load, select, store
from cvxlayers.kernels.matrices import backward, combine, dots, forward
from cvxlayers.kernels.numbers import apart, get, put
from cvxlayers.kernels.working_set import (
    ACROSS,
    FALLS,
    LEVELS,
    PARTS,
    ROW,
    SLOTS,
    WORK,
    add,
    blocking,
    clear,
    copy,
    direction,
    drop,
    move,
)

SOLVED, INACCURATE, PRIMAL, UNBOUNDED, LIMIT, ERROR = 0, 1, 2, 3, 4, 7
"""The numbers of `cvxlayers.errors.Status`."""
GOAL = 3e-14
"""The relative error at which a row needs no further refinement."""
NOISE = 3e-15
"""What rounding makes of one."""
OUTER = 60
"""Corrections at most."""


@inner
def farthest(N: Compiled, shape: Compiled, first: Compiled) -> Compiled:
    """The constraint with the most negative (s + allow) weight, or the ``first`` negative one; -1 if there is none."""
    tall, height = shape[5], shape[7]
    best, where = full(0.0), full(-1.0)
    for j in range(tall):
        value = (load(N, SLACK * height + j) + load(N, ALLOW * height + j)) * load(N, WEIGHT * height + j)
        less = value < best
        if first:
            less = less & (best >= 0.0)
        best, where = select(less, value, best), select(less, float(j), where)
    constraint, least = np.int64(-1), 0.0
    for j in range(LANES):
        if lane(best, j) < least and not (first and constraint >= 0):
            constraint, least = int(lane(where, j)) * LANES + j, lane(best, j)
    return constraint


@inner
def row_of(N: Compiled, shape: Compiled, constraint: Compiled) -> None:
    """A row of M, to ROW."""
    apart()
    _, _, _, rows, width, _, stride, height, _, F, _, _ = shape
    for j in range(rows):
        put(N, ROW * height, j, get(N, F + j * stride + width, constraint))


@inner
def climb(N: Compiled, shape: Compiled, kept: Compiled, k: Compiled, steps: Compiled, limit: Compiled) -> Compiled:
    """From a working set that is optimal for its own constraints to one that is for all; (status, k, steps).

    The way that u went is subtracted from GONE, and s follows; a constraint that rounding alone violates is left alone.
    """
    apart()
    _, m, _, rows, width, tall, stride, height, _, F, _, _ = shape
    s, weight, gone, back = SLACK * height, WEIGHT * height, GONE * height, BACK * height
    r, v, levels = FALLS * height, ACROSS * height, LEVELS * height
    clear(N, gone, width)
    copy(N, WEIGHTS * height, tall, weight)
    for i in range(k):
        put(N, weight, int(get(N, SLOTS * height, i)), 0.0)
    gained, stalled = 0.0, 0
    while True:
        p = farthest(N, shape, stalled > 20 + m)
        if p < 0:
            return SOLVED, k, steps
        row_of(N, shape, p)
        size, violation, level = get(N, LENGTHS * height, p), -get(N, s, p), 0.0
        clear(N, back, width)
        while True:
            if steps >= limit:
                return LIMIT, k, steps
            across = direction(N, shape, k, size)
            slot, most = blocking(N, shape, kept, k, size)
            t = min(most, violation / across) if across > 0.0 else most
            if not t < np.inf:
                if infeasible(N, shape, kept, k, p):
                    return PRIMAL, k, steps
                put(N, weight, p, 0.0)
                break
            steps += 1
            gain = t * (violation - 0.5 * t * across)
            gained += gain
            stalled = 0 if gain > 1e-14 * gained else stalled + 1
            level += t
            move(N, r, (k + 7) >> 3, -t, levels)
            if across > 0.0:
                move(N, v, width, t, back)
            if t < most:
                add(N, shape, k, p, size, level, across)
                put(N, weight, p, 0.0)
                k += 1
                break
            violation -= t * across
            leaves = int(get(N, SLOTS * height, slot))
            put(N, weight, leaves, get(N, WEIGHTS * height, leaves))
            put(N, s, leaves, 0.0)
            drop(N, shape, k, slot)
            k -= 1
        combine(N, F + width, stride, tall, 1.0, back, rows, s)
        move(N, back, width, 1.0, gone)


@inner
def correct(N: Compiled, shape: Compiled, kept: Compiled, k: Compiled) -> Compiled:
    """STEP = the step of x that solves the equations of the working set, whose multipliers follow; k.

    GRADIENT is -(q + Px + A'y), and is lost, s the slack. A constraint whose multiplier would be negative leaves.
    """
    apart()
    _, _, _, rows, width, _, stride, height, _, F, Q, S = shape
    d, g, h, r, v, w = STEP * height, GRADIENT * height, PARTS * height, FALLS * height, ACROSS * height, WORK * height
    levels = LEVELS * height
    forward(N, F, rows, stride, width, INVERSE * height, g)
    while True:
        filled = (k + 7) >> 3
        clear(N, h, filled)
        clear(N, r, filled)
        clear(N, w, filled)
        clear(N, v, filled)
        for i in range(k):
            put(N, v, i, get(N, SLACK * height, int(get(N, SLOTS * height, i))))
        dots(N, S, width, filled, v, k, h)
        dots(N, Q, width, width, g, k, w)
        move(N, h, filled, -1.0, w)
        combine(N, S, width, filled, 1.0, w, k, r)
        top, least, slot = 0.0, 0.0, np.int64(-1)
        for i in range(k):
            level = get(N, levels, i) + get(N, r, i)
            top = max(top, abs(level))
            if i >= kept and level < least:
                least, slot = level, i
        if slot < 0 or not least < -NOISE * top:
            break
        level = get(N, levels, slot)
        row_of(N, shape, int(get(N, SLOTS * height, slot)))
        move(N, ROW * height, width, level, g)
        drop(N, shape, k, slot)
        k -= 1
    for i in range(k):
        level = get(N, levels, i) + get(N, r, i)
        put(N, levels, i, 0.0 if i >= kept and level < 0.0 else level)
    copy(N, g, width, d)
    combine(N, Q, width, width, -1.0, w, k, d)
    backward(N, F, rows, stride, width, INVERSE * height, d)
    return k


@inner
def solve(
    N: Compiled, shape: Compiled, kept: Compiled, unit: Compiled, shifted: Compiled, tolerance: Compiled, limit: Compiled
) -> Compiled:
    """Solve the row in B and COST: (status, steps, k), and x, y, s in BEST, DUAL, LEFT."""
    _, _, equations, rows, width, tall, stride, height, _, F, _, _ = shape
    x, d, b, s = X * height, STEP * height, B * height, SLACK * height
    floor, steps = unit, np.int64(0)
    clear(N, x, width)
    clear(N, LEVELS * height, width)
    for j in range(width):
        store(N, GRADIENT * height + j, -load(N, COST * height + j))
    copy(N, b, tall, s)
    k = correct(N, shape, kept, kept)
    copy(N, d, width, x)
    slack(N, shape)
    allowed = FLAT * max(largest(N, x, width), unit)
    for p in range(equations):  # those that the others imply, or contradict
        if abs(get(N, s, p)) > allowed:
            row_of(N, shape, p)
            direction(N, shape, k, get(N, LENGTHS * height, p))
            if infeasible(N, shape, kept, k, p):
                return PRIMAL, steps, k
    least, before = np.inf, np.inf
    for _ in range(OUTER):
        for j in range(tall):
            store(N, ALLOW * height + j, (abs(load(N, b + j)) + abs(load(N, s + j))) * NOISE + tolerance * unit)
        status, k, steps = climb(N, shape, kept, k, steps, limit)
        if status != SOLVED and status != LIMIT:
            return status, steps, k
        backward(N, F, rows, stride, width, INVERSE * height, GONE * height)
        move(N, GONE * height, width, -1.0, x)
        slack(N, shape)
        error, far = error_of(N, shape, k, floor)
        unit = far if far > 0.0 else unit
        if error < least:
            least = error
            copy(N, x, width, BEST * height)
            copy(N, Y * height, tall, DUAL * height)
            copy(N, s, tall, LEFT * height)
        if status == LIMIT:
            return LIMIT if least < np.inf else ERROR, steps, k
        if error <= max(GOAL, 0.1 * tolerance) or not error < np.inf or (not shifted and error > 0.5 * before):
            break
        before = error
        k = correct(N, shape, kept, k)
        length = endless(N, shape, far) if shifted else 0.0
        if length == np.inf:
            return UNBOUNDED, steps, k
        length = max(length, 1.0)
        move(N, d, width, length, x)
        slack(N, shape)
    return SOLVED if least <= max(1e-9, 10.0 * tolerance) else INACCURATE if least <= 1e-5 else ERROR, steps, k
