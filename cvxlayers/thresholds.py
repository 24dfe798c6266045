"""What the projections of `topk` share: their arguments, and the search for the threshold of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cvxlayers.backend import NUMPY, Verbs, backend_of

LIMIT = 4400  # of steps: every other one of them halves the bracket, 2100 times from the range of double precision to its spacing


def increasing_root(verbs: Verbs, evaluate: Callable, nu: Any, low: Any, high: Any, tolerance: float) -> Any:
    """The roots (*batch, 1) in [low, high] of increasing functions, from nu on; ``evaluate(nu)`` gives values and the steps of Newton.

    A step that would leave the bracket becomes a bisection, and so does every other one of a search that is long; a row stops where its
    value is within the tolerance or its bracket cannot be divided.
    """
    xp = verbs.xp

    def body(nu: Any, low: Any, high: Any, _: Any, count: Any) -> tuple[Any, ...]:
        value, step = evaluate(nu)
        low, high = xp.where(value < 0, nu, low), xp.where(value < 0, high, nu)
        fast = (nu + step > low) & (nu + step < high) & ((count < 20) | (count % 2 == 0))
        new = xp.where(fast, nu + step, low / 2 + high / 2)
        going = (xp.abs(value) > tolerance) & (new != nu)
        return xp.where(going, new, nu), low, high, going, count + 1

    state = (nu, low, high, nu == nu, 0)
    return verbs.loop(lambda nu, low, high, going, count: xp.any(going) & (count < LIMIT), body, state)[0]


def floats(*arrays: Any) -> tuple[Verbs, list[Any]]:
    """The arrays in one framework and dtype, that of the first which is not NumPy's, and broadcast to one shape."""
    host = np.asarray(arrays[0], dtype=None if hasattr(arrays[0], "dtype") else float) if backend_of(arrays[0]) is NUMPY else None
    like: Any = next((a for a in arrays if backend_of(a) is not NUMPY), host)
    verbs = backend_of(like).verbs
    if "float" not in str(like.dtype):
        raise ValueError(f"got an array of dtype {like.dtype}; wanted a floating one")
    cast = [verbs.asarray(a, like) for a in arrays]
    if not len(cast[0].shape):
        raise ValueError("got a number; wanted an array with a last axis")
    if any(len(a.shape) and a.shape[-1] not in (1, cast[0].shape[-1]) for a in cast[1:]):
        raise ValueError(f"got arrays of shapes {[tuple(a.shape) for a in cast]}; wanted last axes of one length")
    return verbs, [sum((verbs.xp.zeros_like(b) for b in cast if b is not a), start=a) for a in cast]


def count_of(verbs: Verbs, mask: Any, like: Any) -> Any:
    """How many entries of each row (*batch, 1) are marked."""
    return verbs.xp.sum(verbs.xp.where(mask, verbs.xp.ones_like(like), verbs.xp.zeros_like(like)), axis=-1, keepdims=True)


def least_normal(x: Any) -> float:
    """The least positive number of the dtype that has its full resolution; the range of bfloat16 is that of float32."""
    name = str(x.dtype)
    return float(np.finfo(next((kind for kind in ("float64", "float16") if kind in name and "b" + kind not in name), "float32")).tiny)
