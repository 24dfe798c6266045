"""Rows that have no numbers, each of which fails by itself and without effect on what the rows share; and batches without rows.

The cotangents of such rows are zero, but zero times NaN is NaN: where such a row is differentiated, it has the numbers of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.control.plan import Plan
from cvxlayers.control.problem import leaves_of, with_leaves


def without_numbers(*arrays: Any) -> Any:
    """The rows with NaN in some array (B, k) or (T, B, k) or of more axes, (B,)."""
    lost = None
    for a in arrays:
        xp, rank = backend_of(a).verbs.xp, len(a.shape)
        found = xp.any(xp.isnan(a), axis=tuple(k for k in range(rank) if k != min(rank - 2, 1)))
        lost = found if lost is None else lost | found
    return lost


def instead(lost: Any, a: Any) -> Any:
    """a (B, k) with the numbers of the first row that is not lost, as constants, where rows are; zeros where all are."""
    verbs = backend_of(a).verbs
    xp, at = verbs.xp, verbs.stop(a)
    kept = xp.where(lost, xp.zeros_like(at[:, 0]), xp.ones_like(at[:, 0]))
    first = (kept > 0) & (xp.cumulative_sum(kept, axis=0) == 1)
    other = xp.sum(xp.where(first[:, None], at, xp.zeros_like(at)), axis=0)
    return xp.where(lost[:, None], other, a)


def replaced(lost: Any, x0: Any, arrays: Sequence[Any], params: Any) -> tuple[Any, Sequence[Any], Any]:
    """x0 (B, n), a problem's arrays and the parameters with numbers for NaN; in parameters ones, by which anything can be divided."""
    xp = backend_of(x0).verbs.xp
    arrays = [xp.where(xp.isnan(a), xp.zeros_like(a), a) for a in arrays]
    leaves = [xp.where(xp.isnan(a), xp.ones_like(a), a) if _floating(a) else a for a in leaves_of(params)]
    return instead(lost, x0), arrays, with_leaves(params, leaves)


def _floating(leaf: Any) -> bool:
    return "float" in str(leaf.dtype)


def empty(like: Any, given: Any, *shapes: tuple[int, ...]) -> list[Any]:
    """Arrays without entries, of the kind of ``like``, which have zeros as gradients in all floating-point arrays that are given."""
    verbs = backend_of(like).verbs
    total = verbs.xp.sum(like)
    for leaf in leaves_of(given):
        total = total + verbs.xp.sum(verbs.asarray(leaf, like)) if _floating(leaf) else total
    return [verbs.xp.broadcast_to(total, shape) for shape in shapes]


def told(plan: Plan, lost: Any) -> Plan:
    """The plan with NaN in the rows that are lost, (B,)."""
    xp = backend_of(plan.cost).verbs.xp
    lost = xp.reshape(lost, tuple(plan.cost.shape))
    x, u = (xp.where(lost[None, ..., None], xp.ones_like(a) * np.nan, a) for a in (plan.x, plan.u))
    active = {name: marks & ~lost[None, ..., None] for name, marks in plan.info.active.items()}
    return Plan(x, u, xp.where(lost, xp.ones_like(plan.cost) * np.nan, plan.cost), plan.info._replace(active=active))
