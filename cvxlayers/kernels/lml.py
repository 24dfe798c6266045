"""The limited multi-label projection, LANES rows at a time: y = sigmoid(z + nu), sum y = k.

With u_i = exp(-(z_i - origin)) and v = exp(-(nu + origin)), y_i = 1 / (1 + u_i v): the exponentials are taken once, and every step of
Newton's method on the log-odds of the sum costs one product and one division per entry. Found once with the middle of the scores as the
origin, nu is found again with the score next to the threshold, for what counts are the small differences there.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from cvxlayers.kernels.elementary import exp, log
from cvxlayers.kernels.lanes import LANES, Compiled, aligned, compiled, full, lane, larger, load, select, smaller, some, store
from cvxlayers.kernels.rows import blocks_of, gather, scatter
from cvxlayers.kernels.threads import run

EPS = float(np.finfo(float).eps)
REACH = 600.0
"""The largest exponent: rows whose scores lie farther apart than twice that are left to the caller."""
LIMIT = 100  # of steps: every other one after the twentieth halves the bracket


def project(z: np.ndarray, k: float, jobs: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """z (rows, n) float64, entries +-inf with weight 1 or 0 -> y (rows, n), NaN in rows without a solution; which rows are in reach."""
    rows, n = z.shape
    y, reached = np.empty_like(z), np.empty(rows, dtype=np.bool_)

    def task(first: int, last: int) -> None:
        _blocks(first, last, z, float(k), aligned(n), aligned(n), y, reached)

    run(task, blocks_of(rows), jobs)
    return y, reached


@compiled
def _blocks(
    first: Compiled, last: Compiled, z: Compiled, k: Compiled, scores: Compiled, numbers: Compiled, y: Compiled, reached: Compiled
) -> None:  # fmt: skip
    n = len(scores)
    for block in range(first, last):
        gather(z, block, scores)
        most, least, free, above, known = full(-np.inf), full(np.inf), full(0.0), full(0.0), full(0.0)
        for i in range(n):
            score = load(scores, i)
            finite = abs(score) < np.inf
            most, least = select(finite, larger(score, most), most), select(finite, smaller(score, least), least)
            free += select(finite, 1.0, 0.0)
            above += select(score == np.inf, 1.0, 0.0)
            known += select(score == score, 1.0, 0.0)
        target = k - above
        possible = (known == n) & (target >= 0.0) & (target <= free)
        near = ~(most - least > REACH)
        solvable = possible & (free > 0.0) & near
        most, least = select(solvable, most, 0.0), select(solvable, least, 0.0)
        count, target = select(solvable, free, 2.0), select(solvable, target, 1.0)
        wanted = _log_odds(target, count)
        origin = 0.5 * most + 0.5 * least
        mu = _root(n, scores, numbers, origin, wanted, wanted - (most - origin), wanted - (least - origin), wanted, count, target)
        closest, distance = origin, full(np.inf)
        for i in range(n):
            score = load(scores, i)
            away = abs((score - origin) + mu)
            closer = away < distance
            closest, distance = select(closer, score, closest), select(closer, away, distance)
        start = mu + (closest - origin)
        low, high = wanted - (most - closest), wanted - (least - closest)
        mu = _root(n, scores, numbers, closest, start, low, high, wanted, count, target)
        v, told = exp(-mu), select(near, 1.0, 0.0)
        for j in range(min(LANES, len(reached) - LANES * block)):
            reached[LANES * block + j] = lane(told, j) == 1.0
        for i in range(n):
            weight = 1.0 / (1.0 + load(numbers, i) * v)
            score = load(scores, i)
            weight = select(score == np.inf, 1.0, select(solvable, weight, 0.0))
            store(numbers, i, select(possible, weight, np.nan))
        scatter(numbers, block, y)


@compiled
def _log_odds(total: Compiled, count: Compiled) -> Compiled:
    total = smaller(larger(total, EPS * count), (1 - EPS) * count)
    return log(total) - log(count - total)


@compiled
def _root(
    n: Compiled, scores: Compiled, numbers: Compiled, origin: Compiled, mu: Compiled, low: Compiled, high: Compiled, wanted: Compiled,
    count: Compiled, target: Compiled,
) -> Compiled:  # fmt: skip
    """mu = nu + origin with sum 1 / (1 + u exp(-mu)) = target; leaves u in ``numbers``."""
    for i in range(n):
        difference = load(scores, i) - origin
        store(numbers, i, select(abs(difference) <= REACH, exp(-difference), np.inf))
    tolerance = 8 * EPS * larger(target, 1.0)
    for step in range(LIMIT):
        v = exp(-mu)
        total, lost, squares = full(0.0), full(0.0), full(0.0)
        for i in range(n):
            weight = 1.0 / (1.0 + load(numbers, i) * v)
            part = weight - lost  # Kahan's sum: the last digits of the total count
            more = total + part
            lost = (more - total) - part
            total = more
            squares += weight * weight
        value = total - target
        going = abs(value) > tolerance
        low, high = select(value < 0.0, mu, low), select(value < 0.0, high, mu)
        slope = (total - squares) * count / (select(total < count, count - total, count) * total + EPS * EPS)
        steep = slope > EPS
        move = select(steep, (wanted - _log_odds(total, count)) / select(steep, slope, 1.0), np.inf)
        new = mu + move
        inside = (new > low) & (new < high)
        if step > 20 and step % 2:
            inside = inside & (new < -np.inf)
        new = select(inside, new, 0.5 * low + 0.5 * high)
        going = going & ~(new == mu)
        mu = select(going, new, mu)
        if not some(going):
            break
    return mu


def pull(y: np.ndarray, d: np.ndarray, jobs: int = 0) -> np.ndarray:
    """h (d - <h, d> / sum h), h = y (1 - y): y, d (rows, n); zero in rows that are NaN."""
    found = np.empty_like(y)

    def task(first: int, last: int) -> None:
        _pull(first * LANES, min(last * LANES, len(y)), y, d, found)

    run(task, blocks_of(len(y)), jobs)
    return found


@partial(compiled, allocates=True)
def _pull(first: Compiled, last: Compiled, y: Compiled, d: Compiled, found: Compiled) -> None:
    n = y.shape[1]
    for row in range(first, last):
        totals, products = np.zeros(4), np.zeros(4)
        for i in range(n):
            h = y[row, i] * (1 - y[row, i])
            totals[i & 3] += h
            products[i & 3] += h * d[row, i]
        total = totals.sum()
        mean = products.sum() / total if total > EPS else 0.0
        for i in range(n):
            value = y[row, i] * (1 - y[row, i]) * (d[row, i] - mean)
            found[row, i] = value if total == total else 0.0
