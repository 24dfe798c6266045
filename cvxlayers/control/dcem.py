"""The differentiable cross-entropy method: sample, weigh by a soft top-k, refit; the iterations are differentiated as they stand."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from cvxlayers.backend import Verbs, verbatim
from cvxlayers.thresholds import floats
from cvxlayers.topk import lml


class Trace(NamedTuple):
    """What every iteration found: the refitted mean and scale (n_iter, *batch, d), the lowest cost of its samples (n_iter, *batch)."""

    mean: Any
    scale: Any
    cost: Any


class Search(NamedTuple):
    """The Gaussian after the last iteration, mean and scale (*batch, d); the best sample of all, (*batch, d); the `Trace`."""

    mean: Any
    scale: Any
    best: Any
    trace: Trace


@verbatim
def dcem(
    cost: Callable[[Any], Any],
    mean: Any,
    scale: Any,
    *,
    n_sample: int = 100,
    n_elite: int = 10,
    n_iter: int = 10,
    temperature: float = 1.0,
    lower: Any = None,
    upper: Any = None,
    normalize: bool = True,
    seed: Any = 0,
) -> Search:
    """Minimize a cost by the cross-entropy method, differentiably: repeat, from the Gaussian of ``mean`` and ``scale`` on,

        X_i = clip(mean + scale * noise_i),    v = cost(X),    w = lml(-v, n_elite, temperature),
        mean = sum_i w_i X_i / n_elite,        scale^2 = sum_i w_i (X_i - mean)^2 / n_elite.

    ``cost`` maps samples (*batch, n_sample, d) to (*batch, n_sample); ``mean`` is (*batch, d), ``scale`` and the bounds ``lower`` and
    ``upper`` broadcast with it. With ``normalize``, the costs of a row are first brought to mean zero and standard deviation one. The
    temperature is that of `lml`: at 0 this is the cross-entropy method with the ``n_elite`` best samples. A cost that is infinite or NaN
    excludes its sample; a row with fewer than ``n_elite`` others becomes NaN. ``seed`` is an int, for which every call draws the same
    noise, or the framework's own: a torch.Generator, a JAX key, a tf.random.Generator.

    Gradients pass through samples and weights to mean, scale, bounds, and whatever ``cost`` reaches. Raises ValueError for counts that
    do not fit, a negative scale, crossed bounds (in compiled code, NaN rows) and a cost of the wrong shape. Method: Amos, Yarats, "The
    differentiable cross-entropy method", 2020.

    >>> import numpy as np
    >>> found = dcem(lambda x: ((x - 0.3) ** 2).sum(-1), np.zeros(2), 1.0, n_iter=20, temperature=0)
    >>> found.mean.round(2)
    array([0.3, 0.3])
    """
    whole = isinstance(n_sample, Integral) and isinstance(n_iter, Integral)
    if not whole or not 1 <= n_elite <= n_sample or n_iter < 1:
        raise ValueError(
            f"got n_sample={n_sample}, n_elite={n_elite}, n_iter={n_iter}; wanted 1 <= n_elite <= n_sample and 1 <= n_iter, integers"
        )
    if seed is None or isinstance(seed, (float, str)):
        raise ValueError(f"got seed={seed!r}; wanted an int, which repeats the noise in every call, or a generator or key of the framework")
    verbs, (mean, scale) = floats(mean, scale)
    xp, cost = verbs.xp, verbs.users(cost)
    lower, upper = (None if b is None else verbs.asarray(b, mean) + xp.zeros_like(mean) for b in (lower, upper))
    valid = _valid(verbs, scale, lower, upper)

    def iterate(state: tuple[Any, ...], noise: tuple[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        mean, scale, best, lowest = state
        x = mean[..., None, :] + scale[..., None, :] * noise[0]
        x = x if lower is None else xp.maximum(x, lower[..., None, :])
        x = x if upper is None else xp.minimum(x, upper[..., None, :])
        v = cost(x)
        if tuple(v.shape) != tuple(x.shape)[:-1]:
            raise ValueError(f"got a cost of shape {tuple(v.shape)} for samples of shape {tuple(x.shape)}; wanted {tuple(x.shape)[:-1]}")
        w = lml(-_standardized(verbs, v, normalize), n_elite, temperature)[..., None]
        mean = xp.sum(w * x, axis=-2) / n_elite
        scale = _root(verbs, xp.sum(w * (x - mean[..., None, :]) ** 2, axis=-2) / n_elite)
        finite = xp.where(xp.isfinite(v), v, float("inf"))
        least = xp.min(finite, axis=-1)
        chosen = xp.take_along_axis(x, xp.argmin(verbs.stop(finite), axis=-1)[..., None, None], axis=-2)[..., 0, :]
        best = xp.where((least < lowest)[..., None], chosen, best)
        return (mean, scale, best, xp.where(least < lowest, least, lowest)), (mean, scale, least)

    (noise,) = verbs.constant(lambda mean: (_noise(verbs, seed, mean, n_iter, n_sample),), (len(mean.shape),), mean)
    worst = xp.zeros_like(mean[..., 0]) + float("inf")
    (mean, scale, best, _), trace = verbs.scan(iterate, (mean, scale, mean, worst), (noise,))
    if valid is not None:
        mean, scale, best, *trace = (
            xp.where(valid if k == 5 else valid[..., None], a, float("nan")) for k, a in enumerate((mean, scale, best, *trace))
        )
    return Search(mean, scale, best, Trace(*trace))


def _valid(verbs: Verbs, scale: Any, lower: Any, upper: Any) -> Any:
    """Which rows (*batch) have a scale and bounds that can be, or None where values are at hand and all have; raises ValueError there."""
    xp, valid, known = verbs.xp, scale >= 0, verbs.known(scale)
    if known is not None and np.any(known < 0):
        raise ValueError(f"got a scale of {np.min(known)}; wanted standard deviations, 0 or more")
    told = known is not None
    if lower is not None and upper is not None:
        valid, low, high = valid & (lower <= upper), verbs.known(lower), verbs.known(upper)
        if low is not None and high is not None and np.any(low > high):
            which = np.argmax(low > high)
            raise ValueError(f"got the bounds lower={low.flat[which]} and upper={high.flat[which]} of one entry; wanted lower <= upper")
        told = told and low is not None and high is not None
    return None if told else xp.all(valid, axis=-1)


def _noise(verbs: Verbs, seed: Any, mean: Any, n_iter: int, n_sample: int) -> Any:
    """Draws (n_iter, *batch, n_sample, d)."""
    *batch, size = mean.shape
    return verbs.normal(int(seed) if isinstance(seed, Integral) else seed, (n_iter, *batch, n_sample, size), mean)


def _standardized(verbs: Verbs, v: Any, normalize: bool) -> Any:
    """Costs of mean zero and standard deviation one along the last axis, those of excluded samples +inf."""
    xp = verbs.xp
    usable = xp.isfinite(v)
    v = xp.where(usable, v, xp.zeros_like(v))
    if normalize:
        count = xp.sum(xp.where(usable, xp.ones_like(v), xp.zeros_like(v)), axis=-1, keepdims=True)
        count = xp.where(count > 0, count, xp.ones_like(count))
        v = v - xp.sum(v, axis=-1, keepdims=True) / count
        spread = _root(verbs, xp.sum(xp.where(usable, v * v, xp.zeros_like(v)), axis=-1, keepdims=True) / count)
        v = v / (spread + xp.where(spread > 0, xp.zeros_like(spread), xp.ones_like(spread)))
    return xp.where(usable, v, float("inf"))


def _root(verbs: Verbs, x: Any) -> Any:
    """The square root, with derivative 0 at 0."""
    xp = verbs.xp
    return xp.where(x > 0, xp.sqrt(xp.where(x > 0, x, xp.ones_like(x))), xp.zeros_like(x))
