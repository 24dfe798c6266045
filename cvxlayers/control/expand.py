"""First and second derivatives of row-wise functions by pullbacks: rows are repeated, one for each unit cotangent, in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cvxlayers.backend import backend_of


def gradient(f: Callable, z: Any) -> Any:
    """The gradient (*rows, k) of f: (*rows, k) -> (*rows,)."""
    return _weighed(f, z, None)


def jacobian(f: Callable, z: Any, width: int) -> tuple[Any, Any]:
    """The value (*rows, width) and the Jacobian (*rows, width, k) of f: (*rows, k) -> (*rows, width), which acts on each row alone."""
    verbs = backend_of(z).verbs
    xp, lead = verbs.xp, len(z.shape) - 1
    many = xp.broadcast_to(z[None], (width, *z.shape))
    values, pull = verbs.vjp(f, many)
    units = verbs.asarray(np.eye(width).reshape(width, *[1] * lead, width), z)
    rows = pull(xp.broadcast_to(units, (width, *z.shape[:-1], width)))[0]
    return values[0], xp.moveaxis(rows, 0, -2)


def hessian(f: Callable, z: Any, weights: Any = None) -> Any:
    """The symmetric Hessian (*rows, k, k) of <weights, f>, f: (*rows, k) -> (*rows, width) with weights so, or -> (*rows,) for none."""
    xp = backend_of(z).verbs.xp
    H = jacobian(lambda z: _weighed(f, z, weights), z, z.shape[-1])[1]
    return (H + xp.matrix_transpose(H)) / 2


def _weighed(f: Callable, z: Any, weights: Any) -> Any:
    """The gradient of <weights, f> at many points z, weights for each or for all of them."""
    verbs = backend_of(z).verbs
    value, pull = verbs.vjp(f, z)
    return pull(verbs.xp.ones_like(value) if weights is None else verbs.xp.broadcast_to(weights, tuple(value.shape)))[0]


def convexified(H: Any, floor: float, only_where_needed: bool = False) -> Any:
    """Symmetric matrices with their eigenvalues replaced by their magnitudes, at least ``floor`` times the largest of each.

    ``only_where_needed`` leaves alone those whose eigenvalues are not below minus that. The derivative is that of Daleckii and Krein,
    U (omega * U'dH U) U' with divided differences omega, the floor being a constant; that of `eigh` divides by differences of eigenvalues.
    """
    verbs = backend_of(H).verbs
    xp, at = verbs.xp, verbs.stop(H)
    whole = xp.all(xp.all(xp.isfinite(at), axis=-1), axis=-1)  # others stay as they are: `eigh` would raise, or lose all of them
    at = xp.where(whole[..., None, None], at, xp.zeros_like(at))
    values, vectors = xp.linalg.eigh(at)
    sizes = xp.abs(values)
    least = floor * (1e-3 + xp.max(sizes, axis=-1, keepdims=True))
    fine = ~whole | xp.all(values >= (-least if only_where_needed else least), axis=-1)
    known = verbs.known(fine)
    if known is not None and known.all():
        return H
    new = xp.maximum(sizes, least)
    slopes = xp.where(sizes > least, xp.sign(values), xp.zeros_like(values))
    apart = values[..., :, None] - values[..., None, :]
    alike = (new[..., :, None] == new[..., None, :]) | (slopes[..., :, None] * slopes[..., None, :] > 0)
    omega = (new[..., :, None] - new[..., None, :]) / xp.where(apart == 0, xp.ones_like(apart), apart)
    omega = xp.where(alike, (slopes[..., :, None] + slopes[..., None, :]) / 2, omega)
    moved = omega * xp.matmul(xp.matrix_transpose(vectors), xp.matmul(H - at, vectors))
    unit = verbs.asarray(np.eye(H.shape[-1]), H)
    found = xp.matmul(vectors, xp.matmul(unit * new[..., None, :] + moved, xp.matrix_transpose(vectors)))
    return xp.where(fine[..., None, None], H, found)
