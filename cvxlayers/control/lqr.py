"""The finite-horizon linear-quadratic regulator as a differentiable function."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from cvxlayers.backend import NUMPY, backend_of, verbatim
from cvxlayers.compiled import kernels
from cvxlayers.control import riccati
from cvxlayers.control.lost import empty
from cvxlayers.errors import InaccurateWarning, warn


class Trajectory(NamedTuple):
    """States x (T, *batch, n), controls u (T, *batch, m) and what they cost (*batch)."""

    x: Any
    u: Any
    cost: Any


@verbatim
def lqr(C: Any, c: Any, F: Any, f: Any, x0: Any, horizon: int | None = None) -> Trajectory:
    """Minimize a quadratic cost under linear dynamics, for every row of the batch.

        minimize  sum_{t<T} 1/2 tau_t'C_t tau_t + c_t'tau_t,   tau_t = [x_t; u_t]
        subject to  x_0 = x0,   x_{t+1} = F_t tau_t + f_t  for t < T-1

    C (T, *batch, s, s), or (T, s, s) for all rows, or (s, s) for all rows and stages; c likewise with one axis less, F (T-1, *batch, n, s)
    and f (T-1, *batch, n) likewise; x0 (*batch, n). ``horizon`` is T, needed where no array has an axis of time. C counts as
    (C + C')/2. What rows share is never expanded, and gradients have the shapes of the arguments. Every order of derivative exists;
    one costs a pass with the forward's factors. A row whose reduced Hessian is not positive definite has no minimum, or many: it is NaN
    with zero gradient and, outside of compiled code, a warning names it. Raises ValueError for shapes that do not fit.

    Method: Amos, Jimenez, Sacks, Boots, Kolter, "Differentiable MPC for end-to-end planning and control", 2018 (docs/control.md).

    >>> import numpy as np
    >>> plan = lqr(np.eye(2), np.zeros(2), np.array([[1.0, 1.0]]), np.zeros(1), np.array([1.0]), horizon=2)
    >>> plan.u.round(6).tolist()
    [[-0.5], [0.0]]
    """
    given = {"C": C, "c": c, "F": F, "f": f, "x0": x0}
    if missing := [name for name, a in given.items() if a is None]:
        raise ValueError(f"got None for {' and '.join(missing)}; wanted arrays: zeros, as np.zeros(n) for f, where there is no such term")
    if horizon is not None and (not isinstance(horizon, Integral) or horizon < 1):
        raise ValueError(f"got horizon={horizon!r}; wanted a positive integer, or None where an array has an axis of time")
    like = next((a for a in given.values() if backend_of(a) is not NUMPY), np.zeros(0))
    verbs = backend_of(like).verbs
    xp = verbs.xp
    like = like if backend_of(like) is not NUMPY else np.zeros(0, np.result_type(*(np.asarray(a) for a in given.values()), np.float32))
    C, c, F, f, x0 = (verbs.asarray(a, like) for a in given.values())
    stages, batch, n, s = _shapes(C, c, F, f, x0, horizon)
    rows = int(np.prod(batch))

    if rows == 0:  # no solver and no kernel is asked
        return Trajectory(*empty(x0, [C, c, F, f], (stages, *batch, n), (stages, *batch, s - n), batch))
    C, F = _spread(xp, C, 2, rows), _spread(xp, F, 2, rows)
    c, f = (xp.broadcast_to(_spread(xp, a, 1, rows), (count, rows, width)) for a, count, width in ((c, stages, s), (f, stages - 1, n)))
    arrays = (C, c, F, f, xp.reshape(xp.broadcast_to(x0, (*batch, n)), (rows, n)))
    whole = tuple(C.shape[:2]) == (stages, rows) and tuple(F.shape[:2]) == (stages - 1, rows) and stages > 1
    kernel = kernels("lqr") if whole else None
    if kernel is None:
        x, u, cost = _by_system(*arrays)
    else:
        x, u, cost = verbs.quick(_by_system, partial(_value, kernel), partial(_pull, kernel), *arrays)
    x, u = (xp.reshape(part, (stages, *batch, part.shape[-1])) for part in (x, u))
    return Trajectory(x, u, xp.reshape(cost, batch))


def _by_system(C: Any, c: Any, F: Any, f: Any, x0: Any) -> tuple[Any, Any, Any]:
    """x (T, B, n), u (T, B, m) and the cost (B,), by the optimality conditions: every derivative, whatever is shared."""
    verbs, (stages, rows, _), n = backend_of(c).verbs, c.shape, x0.shape[-1]
    xp = verbs.xp
    moves = xp.concat([x0[None], f], axis=0)
    factors, convex = verbs.constant(lambda C, F: riccati.factor(C, F, stages), (4, 4), C, F)
    tau, multipliers = verbs.symmetric(riccati.SYSTEM, (factors,), (C, F), (-c, -moves))
    # by the optimality conditions sum tau'C tau is what remains of it
    cost = (xp.sum(c * tau, axis=(0, 2)) + xp.sum(multipliers * moves, axis=(0, 2))) / 2
    tau = xp.where(convex[None, :, None], tau, xp.ones_like(tau) * np.nan)
    cost = xp.where(convex, cost, xp.ones_like(cost) * np.nan)
    _tell(verbs.known(convex), rows)
    return tau[..., :n], tau[..., n:], cost


def _value(kernel: Any, *arrays: np.ndarray) -> tuple[tuple[np.ndarray, ...], Any]:
    solved = kernel.solve(*arrays)
    _tell(solved.convex, len(solved.cost))
    return solved[:3], solved[3:]


def _pull(kernel: Any, arrays: Sequence[np.ndarray], kept: Any, given: Any, needed: Sequence[bool]) -> Sequence[np.ndarray | None]:
    return kernel.pull(arrays[2], *kept, given, needed)


def _spread(xp: Any, a: Any, rank: int, rows: int) -> Any:
    """(stage, row, ...) with size one where shared."""
    lead, tail = tuple(a.shape)[: len(a.shape) - rank], tuple(a.shape)[len(a.shape) - rank :]
    return xp.reshape(a, (lead[0] if lead else 1, rows if len(lead) > 1 else 1, *tail))


def _tell(convex: np.ndarray | None, rows: int) -> None:
    """Warn of rows without a unique minimum, where values are at hand."""
    if convex is None or convex.all():
        return
    convex = convex.reshape(-1) if convex.size > 1 else np.repeat(convex.reshape(-1), rows)
    which = np.flatnonzero(~convex)
    named = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
    warn(
        f"lqr row{'s' if len(which) > 1 else ''} {named} of {len(convex)}: the Hessian of the cost in the controls is not positive "
        "definite, so there is no unique minimum; add a positive definite term in u. NaN is returned, with zero gradient",
        InaccurateWarning,
    )


def _shapes(C: Any, c: Any, F: Any, f: Any, x0: Any, horizon: int | None) -> tuple[int, tuple[int, ...], int, int]:
    """T, the batch shape, n and n + m; raises ValueError where they do not agree."""
    arrays = {"C": (C, 2, 0), "c": (c, 1, 0), "F": (F, 2, 1), "f": (f, 1, 1)}
    if len(F.shape) < 2 or len(x0.shape) < 1 or F.shape[-1] <= F.shape[-2]:
        raise ValueError(f"got F of shape {tuple(F.shape)} and x0 of shape {tuple(x0.shape)}; wanted (..., n, n + m) and (*batch, n)")
    n, s = F.shape[-2:]
    tails = {"C": (s, s), "c": (s,), "F": (n, s), "f": (n,), "x0": (n,)}
    stages = horizon
    batch: tuple[int, ...] = tuple(x0.shape[:-1])
    for name, (a, rank, missing) in arrays.items():
        shape = tuple(a.shape)
        if len(shape) < rank or shape[len(shape) - rank :] != tails[name] or (len(shape) > rank and not isinstance(shape[0], int)):
            raise ValueError(f"{name} has shape {shape}; wanted {('...', *tails[name])}, from F of shape {tuple(F.shape)}")
        lead = shape[: len(shape) - rank]
        if lead:
            if stages is not None and lead[0] + missing != stages:
                raise ValueError(f"{name} has {lead[0]} stages; wanted {stages - missing}, for a horizon of {stages}")
            stages = lead[0] + missing
        if len(lead) > 1:
            if batch and lead[1:] != batch:
                raise ValueError(f"{name} has batch shape {lead[1:]}; wanted {batch}, as others have, or none")
            batch = lead[1:]
    if tuple(x0.shape[len(x0.shape) - 1 :]) != tails["x0"]:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; wanted (*batch, {n}), from F of shape {tuple(F.shape)}")
    if stages is None or stages < 1:
        raise ValueError(f"got horizon={horizon} and no array with an axis of time; wanted the number of stages, at least 1")
    return int(stages), batch, n, s
