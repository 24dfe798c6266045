"""From softmax to a differentiable top-k: five projections along the last axis of NumPy, PyTorch, JAX and TensorFlow arrays.

Each solution depends on one number per row, the threshold that makes the row sum to what it must. The threshold (or, with it, the set of
entries that lie at a bound) is found as a constant; the framework then differentiates the solution written around that constant, so that
first and second derivatives are exact in every mode and transform.

A row without a solution (a NaN; too many infinite scores; upper bounds that are negative or sum to less than one) comes back as NaN with
zero gradient, and the other rows are untouched. Integers, and arrays without a last axis, are ValueErrors.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from cvxlayers.backend import NUMPY, Verbs, backend_of, verbatim
from cvxlayers.compiled import kernels
from cvxlayers.thresholds import count_of, floats, increasing_root, least_normal


@verbatim
def softmax(x: Any) -> Any:
    """Project scores x (*batch, n) onto the simplex, regularized by the entropy H(y) = -sum_i y_i log y_i.

        y* = argmin_y  -x'y - H(y)  subject to  0 <= y, 1'y = 1

    >>> softmax([0.0, float(np.log(3))]).round(3)
    array([0.25, 0.75])
    """
    verbs, (x,) = floats(x)
    (x,) = _rows_with(verbs, _bounded(verbs, x), x)
    e = verbs.xp.exp(x - verbs.stop(verbs.xp.max(x, axis=-1, keepdims=True)))
    return e / _sum(verbs, e)


@verbatim
def sparsemax(x: Any) -> Any:
    """Project scores x (*batch, n) onto the simplex in the Euclidean norm.

        y* = argmin_y  1/2 |y - x|^2  subject to  0 <= y, 1'y = 1

    Named by Martins, Astudillo, "From softmax to sparsemax: a sparse model of attention and multi-label classification", 2016.

    >>> sparsemax([1.0, 0.5, -2.0])
    array([0.75, 0.25, 0.  ])
    """
    return constrained_sparsemax(x, 1.0)


@verbatim
def constrained_softmax(x: Any, upper: Any) -> Any:
    """`softmax` under upper bounds, a number or an array that broadcasts with the scores x (*batch, n).

        y* = argmin_y  -x'y - H(y)  subject to  0 <= y <= upper, 1'y = 1

    Differentiable in both. Rows have a solution where the bounds are nonnegative and sum to at least one. Named by Martins, Kreutzer,
    "Learning what's easy: fully differentiable neural easy-first taggers", 2017.

    >>> constrained_softmax([2.0, 0.0, 0.0], 0.5)
    array([0.5 , 0.25, 0.25])
    """
    verbs, (x, upper) = floats(x, upper)
    xp = verbs.xp
    x, upper = _rows_with(verbs, _bounded(verbs, x) & _feasible(verbs, x, upper), x, upper)

    def solution(x: Any, upper: Any, full: Any) -> Any:
        """The solution if exactly the entries ``full`` are at their bounds."""
        x = xp.where(full, -math.inf, x)
        top = xp.max(x, axis=-1, keepdims=True)
        e = xp.exp(x - verbs.stop(xp.where(xp.isfinite(top), top, xp.zeros_like(top))))
        total = _sum(verbs, e)
        mass = 1 - _sum(verbs, xp.where(full, upper, xp.zeros_like(upper)))
        return xp.where(full, upper, e * (mass / xp.where(total > 0, total, xp.ones_like(total))))

    def find(x: Any, upper: Any) -> tuple[Any]:
        # An entry above its bound goes there, which only raises the others: the set grows until it is the right one.
        def body(full: Any, _: Any) -> tuple[Any, Any]:
            above = solution(x, upper, full) > upper
            return full | above, xp.any(above)

        return (verbs.loop(lambda full, going: going, body, body(x > math.inf, None))[0],)

    (full,) = verbs.constant(find, (1, 1), x, upper)
    return solution(x, upper, full)


@verbatim
def constrained_sparsemax(x: Any, upper: Any) -> Any:
    """`sparsemax` under upper bounds, a number or an array that broadcasts with the scores x (*batch, n).

        y* = argmin_y  1/2 |y - x|^2  subject to  0 <= y <= upper, 1'y = 1

    y = min(max(x + nu, 0), upper) with the one nu that makes the sum 1. Differentiable in both (at the kinks, a derivative of one side).
    Rows have a solution where the bounds are nonnegative and sum to at least one. Named by Malaviya, Ferreira, Martins, "Sparse and
    constrained attention for neural machine translation", 2018.

    >>> constrained_sparsemax([1.0, 0.5, -2.0], 0.6)
    array([0.6, 0.4, 0. ])
    """
    verbs, (x, upper) = floats(x, upper)
    xp, eps = verbs.xp, backend_of(x).resolution(x)
    x, upper = _rows_with(verbs, _bounded(verbs, x) & _feasible(verbs, x, upper), x, upper)
    never = x == -math.inf
    x, upper = xp.where(never, xp.zeros_like(x), x), xp.where(never, xp.zeros_like(upper), upper)
    x = x - verbs.stop(xp.max(x, axis=-1, keepdims=True))

    def inside(y: Any, upper: Any) -> Any:
        return xp.where((y > 0) & (y < upper), xp.ones_like(y), xp.zeros_like(y))

    def find(x: Any, upper: Any) -> tuple[Any]:
        upper = xp.where(upper < 1, upper, xp.ones_like(upper))

        def evaluate(nu: Any) -> tuple[Any, Any]:
            y = x + nu
            value = _sum(verbs, xp.where(y < upper, xp.where(y > 0, y, xp.zeros_like(y)), upper)) - 1
            slope = _sum(verbs, inside(y, upper))
            return value, xp.where(slope > 0, -value / xp.where(slope > 0, slope, xp.ones_like(nu)), math.inf)

        first, last = -xp.max(x, axis=-1, keepdims=True), xp.max(upper - x, axis=-1, keepdims=True)
        return (increasing_root(verbs, evaluate, first, first, last, 8 * eps),)

    (nu,) = verbs.constant(find, (1, 1), x, upper)
    y = x + nu
    free, bound = verbs.stop(inside(y, upper)), xp.where(y < upper, xp.zeros_like(y), upper)
    count = _sum(verbs, free)
    excess = (_sum(verbs, free * y) + _sum(verbs, bound) - 1) / xp.where(count > 0, count, xp.ones_like(count))
    return xp.where(free > 0, y - excess, bound)


@verbatim
def lml(x: Any, k: float, temperature: Any = 1.0) -> Any:
    """Weigh scores x (*batch, n) by the limited multi-label projection, a soft top-k: weights in (0, 1) that sum to k.

        y* = argmin_y  -x'y - temperature H_b(y)  subject to  0 <= y <= 1, 1'y = k
        H_b(y) = -sum_i y_i log y_i + (1 - y_i) log(1 - y_i)

    y = sigmoid(x / temperature + nu) with the one nu that makes the sum k. The temperature, a number or an array that broadcasts with x
    and is differentiated too, goes to 0 with the hard top-k, which 0 itself gives, with derivative 0 (equal scores share the last places).
    Scores of +inf get weight 1, of -inf weight 0. Raises ValueError for k outside [0, n] and for a negative temperature; where compiled
    code only meets its value, its rows are NaN.

    Projection and derivative: Amos, Koltun, Kolter, "The limited multi-label projection layer", 2019. Here nu is found by Newton's method
    within [logit(k/n) - max x, logit(k/n) - min x], which always holds it.

    >>> lml([4.0, 1.0, 0.0, -1.0], 2).round(3)
    array([0.963, 0.565, 0.323, 0.149])
    >>> lml([4.0, 1.0, 0.0, -1.0], 2, temperature=0)
    array([1., 1., 0., 0.])
    """
    verbs, (x,) = floats(x)
    xp, n = verbs.xp, x.shape[-1]
    if not isinstance(k, Real):
        raise ValueError(f"got k of type {type(k).__name__}; wanted a number, one for all rows: k.item(), say, or a call for each k")
    if not 0 <= k <= n:
        raise ValueError(f"got k = {k}; wanted a number from 0 to {n}, the length of the last axis of x")
    at = verbs.known(verbs.asarray(temperature, x))
    if (isinstance(temperature, Real) and not float(temperature) >= 0) or (at is not None and np.any(at < 0)):
        raise ValueError(f"got the temperature {temperature}; wanted 0 or more")
    least = least_normal(x)
    if k in (0, n) or (isinstance(temperature, Real) and temperature < least):
        return _hard(verbs, x, k)
    if isinstance(temperature, Real) and temperature == 1:
        return _soft(verbs, x, k)

    temperature = verbs.asarray(temperature, x)
    temperature = temperature if len(temperature.shape) else temperature[None]
    small, wrong = (temperature >= 0) & (temperature < least), ~(temperature >= 0)
    divisor = xp.where(small | wrong, xp.ones_like(temperature), temperature)
    limit = None
    if at is None or not np.all(at > least**0.25):
        # Where too many scores are infinite once divided, as all are at 0, the weights are those of the limit.
        slope = _slope(verbs, x, divisor)
        many = (count_of(verbs, slope == math.inf, x) > k) | (count_of(verbs, slope == -math.inf, x) > n - k)
        limit = xp.any(small, axis=-1, keepdims=True) | many
        divisor = xp.where(limit, xp.ones_like(divisor), divisor)
    # Scores whose quotient is infinite, or moves infinitely with the temperature, have weight 1 or 0 and stand aside.
    slope = _slope(verbs, x, divisor)
    free = xp.abs(slope) < math.inf
    z = xp.where(free, xp.where(free, x, xp.zeros_like(x)) / divisor, slope)
    wrong = xp.any(wrong, axis=-1, keepdims=True)
    y = _soft(verbs, xp.where(wrong, math.nan, z), k)
    return y if limit is None else xp.where(limit & ~wrong, _hard(verbs, x, k), y)


def _slope(verbs: Verbs, x: Any, divisor: Any) -> Any:
    with np.errstate(over="ignore"):
        return verbs.stop(x / divisor / divisor)


def _soft(verbs: Verbs, z: Any, k: float) -> Any:
    return verbs.projection(lambda z: _weights(verbs, z, k), lambda y, d, tracked: _moved(verbs, y, d, tracked), z)


def _weights(verbs: Verbs, z: Any, k: float) -> Any:
    """The value of `lml` at scores z (*batch, n)."""
    known = verbs.known(z)
    if known is not None and known.dtype in (np.float32, np.float64) and (kernel := kernels("lml")) is not None:
        scores = np.ascontiguousarray(known.reshape(-1, known.shape[-1]), dtype=np.float64)
        y, reached = kernel.project(scores, k)
        if not reached.all():
            y[~reached] = _searched(NUMPY.verbs, scores[~reached], k)
        return verbs.asarray(y.reshape(known.shape), z)
    return _searched(verbs, z, k)


def _searched(verbs: Verbs, z: Any, k: float) -> Any:
    """`_weights` in the words that all frameworks share."""
    xp, eps = verbs.xp, backend_of(z).resolution(z)
    free = xp.abs(z) < math.inf
    certain, possible = xp.astype(z == math.inf, z.dtype), ~xp.any(xp.isnan(z), axis=-1, keepdims=True)
    least = xp.min(xp.where(free, z, math.inf), axis=-1, keepdims=True)
    most = xp.max(xp.where(free, z, -math.inf), axis=-1, keepdims=True)
    count, target = _sum(verbs, xp.astype(free, z.dtype)), k - _sum(verbs, certain)
    possible = possible & (target >= 0) & (target <= count)
    least, most = (xp.where(count > 0, a, xp.zeros_like(a)) for a in (least, most))
    z = xp.where(free, z, -math.inf)  # with sigmoid(-inf) = 0 they need no mask in what follows
    some = xp.where(count > 0, count, xp.ones_like(count))

    def log_odds(total: Any) -> Any:
        total = xp.where(total > eps * some, total, eps * some)
        total = xp.where(total < (1 - eps) * some, total, (1 - eps) * some)
        return xp.log(total) - xp.log(some - total)

    wanted = log_odds(target)

    def root(z: Any, least: Any, most: Any, start: Any) -> Any:
        def evaluate(nu: Any) -> tuple[Any, Any]:
            y = verbs.sigmoid(z + nu)
            total = _sum(verbs, y)
            slope = (total - _sum(verbs, y * y)) * some / (xp.where(total < some, some - total, some) * total + eps * eps)
            steep = slope > eps
            return total - target, xp.where(steep, (wanted - log_odds(total)) / xp.where(steep, slope, xp.ones_like(nu)), math.inf)

        return increasing_root(verbs, evaluate, start, wanted - most, wanted - least, 8 * eps * max(k, 1))

    # Again with the score next to the threshold as the origin: what counts are the small differences of the scores there.
    nu = root(z, least, most, wanted - most / 2 - least / 2)
    distance = xp.abs(z + nu)
    near = xp.where(distance == xp.min(distance, axis=-1, keepdims=True), z, -math.inf)
    origin = xp.where(count > 0, xp.max(near, axis=-1, keepdims=True), xp.zeros_like(nu))
    nu = root(z - origin, least - origin, most - origin, nu + origin)
    y = xp.where(free, verbs.sigmoid(z - origin + nu), certain)
    return xp.where(possible, y, math.nan)


def _moved(verbs: Verbs, y: Any, d: Any, tracked: bool) -> Any:
    """How the weights y of `lml` move with the scores: h (d - <h, d> / sum h), h = y (1 - y); zero in rows without a solution."""
    xp = verbs.xp
    known = [] if tracked else [a for a in map(verbs.known, (y, d)) if a is not None and a.dtype == np.float64]
    if len(known) == 2 and (kernel := kernels("lml")) is not None:
        flat = [np.ascontiguousarray(a.reshape(-1, a.shape[-1])) for a in known]
        return verbs.asarray(kernel.pull(*flat).reshape(known[0].shape), d)
    valid = y == y
    y, d = xp.where(valid, y, xp.zeros_like(y)), xp.where(valid, d, xp.zeros_like(d))
    h = y * (1 - y)
    total = _sum(verbs, h)
    total = xp.where(total > backend_of(y).resolution(y), total, xp.ones_like(total))
    return h * (d - _sum(verbs, h * d) / total)


def _hard(verbs: Verbs, x: Any, k: float) -> Any:
    """The limit of `lml` at temperature 0, of derivative 0."""
    xp = verbs.xp
    zero = xp.zeros_like(x)
    least = xp.sort(verbs.stop(x), axis=-1)[..., x.shape[-1] - max(math.ceil(k), 1)][..., None]
    above, equal = x > least, x == least
    share = (k - count_of(verbs, above, x)) / count_of(verbs, equal, x)
    y = xp.where(above, xp.ones_like(x), xp.where(equal, share, zero))
    # A zero that depends on x: frameworks may refuse to differentiate what does not.
    y = y + xp.where(xp.isfinite(x), x, zero) * 0
    possible = (least > -math.inf) & ((least < math.inf) | (share >= 1)) & ~xp.any(xp.isnan(x), axis=-1, keepdims=True)
    return _rows_with(verbs, possible, y)[0]


def _sum(verbs: Verbs, x: Any) -> Any:
    return verbs.xp.sum(x, axis=-1, keepdims=True)


def _bounded(verbs: Verbs, x: Any) -> Any:
    """Which rows (*batch, 1) have no NaN, no +inf, and a finite entry."""
    xp = verbs.xp
    return xp.all(x < math.inf, axis=-1, keepdims=True) & xp.any(x > -math.inf, axis=-1, keepdims=True)


def _feasible(verbs: Verbs, x: Any, upper: Any) -> Any:
    """Which rows (*batch, 1) have bounds under which weights of sum one exist."""
    xp = verbs.xp
    slack = 8 * backend_of(x).resolution(x)
    room = _sum(verbs, xp.where((x > -math.inf) & (upper < 1), upper, xp.where(x > -math.inf, xp.ones_like(x), xp.zeros_like(x))))
    return xp.all(upper >= 0, axis=-1, keepdims=True) & (room >= 1 - slack)


def _rows_with(verbs: Verbs, valid: Any, *arrays: Any) -> list[Any]:
    """The arrays with NaN in the rows that are not valid: what is NaN first stays so, without a warning and with zero gradient."""
    return [verbs.xp.where(valid, a, math.nan) for a in arrays]
