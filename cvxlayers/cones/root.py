"""A root finder for whole batches: a fixed number of safeguarded Newton steps, no branch on values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cvxlayers.cones.base import Array

STEPS = 16
"""Newton steps: as many as the hard points of tests/test_cones.py need, and some more."""
SETTLED = 1e-10
"""A row takes no further step after one of this length or less, relative to 1 + |t|: convergence is quadratic."""


def increasing_root(
    xp: Any, function: Callable[[Any, Any, Array], tuple[Array, Array]], numbers: Any, low: Array, high: Array, start: Array
) -> Array:
    """The root in [low, high] of increasing functions that may run into logarithmic singularities at either end.

    ``function(xp, numbers, point)`` gives (value, slope). All arrays are (*batch), low <= start <= high. Newton's method runs in the
    coordinate t of

        point(t) = start + softplus(t + left) - left - softplus(t - right),   left = start - low, right = high - start,

    which is the identity in the middle of the interval and approaches its ends exponentially: log(point - low) is linear in t there, so
    functions with logarithms at the ends and linear growth between are nearly linear in t. A step that leaves the bracket becomes a
    bisection. What a row does depends on no other row.
    """
    left, right = start - low, high - start
    # beyond 60 the distance to an end is below exp(-60)
    below, above = -left - 60, right + 60
    t = xp.zeros_like(start)
    going = t == t
    point = start
    for _ in range(STEPS):
        if not some(going):
            break
        from_low, from_high = t + left, t - right
        small_low, small_high = xp.exp(-xp.abs(from_low)), xp.exp(-xp.abs(from_high))
        sum_low, sum_high = 1 + small_low, 1 + small_high
        point = start + (xp.minimum(xp.maximum(t, -left), right) + xp.log(sum_low / sum_high))
        value, slope = function(xp, numbers, point)
        slope = slope * (xp.where(from_low > 0, 1.0, small_low) / sum_low - xp.where(from_high > 0, 1.0, small_high) / sum_high)
        under = value < 0
        below, above = xp.where(under, t, below), xp.where(under, above, t)
        usable = slope > 1e-200
        newton = t - value / xp.where(usable, slope, 1.0)
        step = xp.where(usable & (newton >= below) & (newton <= above), newton, (below + above) / 2) - t
        t = xp.where(going, t + step, t)
        going = going & (xp.abs(step) > SETTLED * (1 + xp.abs(t)))
    small_low, small_high = xp.exp(-xp.abs(t + left)), xp.exp(-xp.abs(t - right))
    return start + (xp.minimum(xp.maximum(t, -left), right) + xp.log((1 + small_low) / (1 + small_high)))


def some(going: Array) -> bool:
    """Whether any row goes on; taken for granted where that cannot be known, as in a traced array."""
    return bool(going.any()) if isinstance(going, np.ndarray | np.bool_) else True
