"""The records of an optimal control problem: what the user states, and what one call makes of it.

    minimize    sum_t cost(x_t, u_t) + terminal_cost(x_{T-1}) + penalties
    subject to  x_0 given,   x_{t+1} = dynamics(x_t, u_t),   bounds,   constraints(x_t, u_t) <= 0,   terminal_constraints(x_{T-1}) <= 0

Inside, tau = [x; u] has the axes (..., stage, row, s): the batch is flat, axes in front are repetitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from cvxlayers.backend import NUMPY, backend_of
from cvxlayers.control.models import Affine, LinearDynamics, Quadratic, QuadraticCost
from cvxlayers.control.transcription import Layout

BOUNDS = ("u_lower", "u_upper", "x_lower", "x_upper")
SOFT = ("constraints", "x_lower", "x_upper")


@dataclass(frozen=True)
class Problem:
    """What the user states; ``bounds`` holds those of the four that are given."""

    dynamics: Any
    cost: Any
    horizon: int
    n_state: int
    n_ctrl: int
    terminal_cost: Callable | None
    bounds: Mapping[str, Any]
    constraints: Callable | None
    terminal_constraints: Callable | None
    soft: tuple[str, Any, tuple[str, ...]] | None
    slew: tuple[str, Any] | None

    def __post_init__(self) -> None:
        """Sizes as integers of Python's, which all frameworks take as shapes."""
        for name in ("horizon", "n_state", "n_ctrl"):
            if isinstance(size := getattr(self, name), Integral):
                object.__setattr__(self, name, int(size))

    def made(self, wrap: Callable[[Any], Any]) -> Problem:
        """The problem with every function of the user's wrapped."""
        names = ("dynamics", "cost", "terminal_cost", "constraints", "terminal_constraints")
        functions = {name: f for name in names if callable(f := getattr(self, name))}
        return replace(self, **{name: wrap(f) for name, f in functions.items()})

    @property
    def softened(self) -> tuple[str, ...]:
        """The bounds on states that are penalized, upper ones first."""
        return () if self.soft is None else tuple(name for name in ("x_upper", "x_lower") if name in self.soft[2])


def check(problem: Problem) -> None:
    """Raise ValueError for a problem that cannot be stated."""
    sizes = (problem.horizon, problem.n_state, problem.n_ctrl)
    if any(not isinstance(size, Integral) or size < 1 for size in sizes):
        raise ValueError(f"got horizon, n_state, n_ctrl = {sizes}; wanted positive integers")
    for name, pair, kinds in (("soft", problem.soft, ("l1", "quadratic")), ("slew", problem.slew, ("quadratic", "bound"))):
        if pair is not None:
            known = backend_of(pair[1]).verbs.known(pair[1])
            if pair[0] not in kinds or (known is not None and not (known.dtype.kind in "iuf" and np.all(known > 0))):
                raise ValueError(f"{name} is {pair[:2]}; wanted ({kinds[0]!r} or {kinds[1]!r}, a positive number or numbers)")
    if problem.soft is not None:
        for name in problem.soft[2]:
            if name not in SOFT or (name != "constraints" and name not in problem.bounds):
                raise ValueError(f"soft names {name!r}; wanted some of {', '.join(map(repr, SOFT))}, of the bounds those that are given")
        hard = "constraints" not in problem.soft[2] and (problem.constraints is not None or problem.terminal_constraints is not None)
        if hard:
            raise ValueError("soft names bounds on states alone, and there are constraints; name 'constraints', too: all of them are soft")
        if not problem.softened and problem.constraints is None and problem.terminal_constraints is None:
            raise ValueError("soft says how to penalize constraints and terminal_constraints, and there are none; give it with one of them")
    for name, function in (("dynamics", problem.dynamics), ("cost", problem.cost)):
        if not callable(function) and not isinstance(function, (LinearDynamics, QuadraticCost)):
            raise ValueError(f"{name} is a {type(function).__name__}; wanted a function of (x, u, params), LinearDynamics or QuadraticCost")
    for name in ("terminal_cost", "constraints", "terminal_constraints"):
        if (function := getattr(problem, name)) is not None and not callable(function):
            wanted = "(x, u, params)" if name == "constraints" else "(x, params)"
            raise ValueError(f"{name} is a {type(function).__name__}; wanted a function of {wanted}, or None")


def check_start(x0: Any) -> None:
    """Raise ValueError for an x0 of a dtype in which nothing can be planned."""
    if not any(name in str(x0.dtype) for name in ("float32", "float64")):
        raise ValueError(f"x0 has dtype {x0.dtype}; wanted float32 or float64")


@dataclass(frozen=True)
class Program:
    """A problem in one call: functions of tau (..., T, B, s) or x (..., 1, B, n), x0 (1, B, n), bounds (T or 1, B or 1, width) by name."""

    layout: Layout
    dynamics: Callable
    cost: Callable
    terminal_cost: Callable | None
    constraints: Callable | None
    terminal_constraints: Callable | None
    x0: Any
    bounds: Mapping[str, Any]
    weights: Mapping[str, Any]  # "soft" (1, B or 1, path + terminal), "slew" (1, B or 1, m)

    def soft_weights(self, name: str) -> Any:
        """Those of a group of constraints; None where there are none."""
        if "soft" not in self.weights:
            return None
        path = self.layout.path
        return self.weights["soft"][..., :path] if name == "constraints" else self.weights["soft"][..., path:]

    @property
    def crossed(self) -> Any:
        """Rows (B,) that have a lower bound above an upper one."""
        xp, found = backend_of(self.x0).verbs.xp, self.x0[0, :, 0] != self.x0[0, :, 0]
        for name in "ux":
            if f"{name}_lower" in self.bounds and f"{name}_upper" in self.bounds:
                gap = self.bounds[f"{name}_lower"] - self.bounds[f"{name}_upper"]
                gap = gap[1:] if name == "x" and gap.shape[0] > 1 else gap  # those of x_0 bind nothing
                found = found | xp.any(xp.any(gap > 0, axis=-1), axis=0)
        return found

    @property
    def linear_quadratic(self) -> bool:
        """Whether one convex program is the problem itself."""
        rest = (self.terminal_cost, self.constraints, self.terminal_constraints)
        return isinstance(self.dynamics, Affine) and isinstance(self.cost, Quadratic) and rest == (None, None, None)


def arrays_of(problem: Problem, like: Any, rows: int, sizes: tuple[int, int]) -> list[Any]:
    """The arrays of a problem with all axes, in the framework of ``like``: bounds, then F and f, C and c, weights, where there are such.

    Raises ValueError for shapes that do not fit.
    """
    T, n, m = problem.horizon, problem.n_state, problem.n_ctrl
    widths = {"u": m, "x": n}
    found = [_spread(name, value, like, (T, widths[name[0]]), rows, 1) for name, value in problem.bounds.items()]
    if isinstance(problem.dynamics, LinearDynamics):
        f = problem.dynamics.f if problem.dynamics.f is not None else np.zeros(n)
        found += [_spread("F", problem.dynamics.F, like, (T - 1, n, n + m), rows, 2), _spread("f", f, like, (T - 1, n), rows, 1)]
    if isinstance(problem.cost, QuadraticCost):
        c = problem.cost.c if problem.cost.c is not None else np.zeros(n + m)
        C = _spread("C", problem.cost.C, like, (T, n + m, n + m), rows, 2)
        found += [(C + backend_of(C).verbs.xp.matrix_transpose(C)) / 2, _spread("c", c, like, (T, n + m), rows, 1)]
    for name, pair, width in (("soft", problem.soft, sum(sizes)), ("slew", problem.slew, m)):
        if pair is not None:
            weight = backend_of(like).verbs.asarray(pair[1], like)
            if tuple(weight.shape) not in ((), (width,)):
                raise ValueError(f"the weights of {name} have shape {tuple(weight.shape)}; wanted a number or ({width},)")
            found.append(backend_of(like).verbs.xp.broadcast_to(weight, (1, 1, width)))
    return found


def _spread(name: str, value: Any, like: Any, shape: tuple[int, ...], rows: int, rank: int) -> Any:
    """``value`` (*tail,), (T, *tail) or (T, *batch, *tail), or a number, as (T or 1, B or 1, *tail)."""
    verbs = backend_of(like).verbs
    a, tail = verbs.asarray(value, like), shape[1:]
    if len(a.shape) < rank and len(a.shape) == 0:
        a = verbs.xp.broadcast_to(a, tail)
    lead = tuple(a.shape)[: len(a.shape) - rank]
    known = verbs.known(a) if lead else None
    if known is not None and known.shape == tuple(a.shape) and lead[0] == shape[0] and known.strides[0] == 0:
        a, lead = a[:1], (1, *lead[1:])  # repeated, not different: stages share it
    wanted = f"{tail}, (T, ...) or (T, *batch, ...) before it, T = {shape[0]}"
    if tuple(a.shape)[len(lead) :] != tail or (lead and lead[0] not in (1, shape[0])):
        raise ValueError(f"{name} has shape {tuple(a.shape)}; wanted {wanted}")
    if len(lead) > 1 and int(np.prod(lead[1:])) not in (1, rows):
        raise ValueError(f"{name} has batch shape {lead[1:]}, {int(np.prod(lead[1:]))} rows; wanted {rows}, as x0 has")
    return verbs.xp.reshape(a, (lead[0] if lead else 1, int(np.prod(lead[1:])), *tail))


def program_of(problem: Problem, x0: Any, arrays: Sequence[Any], params: Any, batch: tuple[int, ...], sizes: tuple[int, int]) -> Program:
    """One call's `Program`: x0 (B, n), arrays as from `arrays_of`, the batch shape in which the user's functions see rows."""
    T, n, m = problem.horizon, problem.n_state, problem.n_ctrl
    soft, slew = (None if pair is None else pair[0] for pair in (problem.soft, problem.slew))
    layout = Layout(T, n, m, *sizes, tuple(name for name in problem.bounds if name not in problem.softened), soft, slew)
    rest = list(arrays)
    bounds = {name: rest.pop(0) for name in problem.bounds}
    softened = {name: bounds.pop(name) for name in problem.softened}
    if isinstance(problem.dynamics, LinearDynamics):
        dynamics = Affine(rest.pop(0), rest.pop(0))
    else:
        dynamics = _by_rows("dynamics", problem.dynamics, batch, n, params, n)
    if isinstance(problem.cost, QuadraticCost):
        cost = Quadratic(rest.pop(0), rest.pop(0))
    else:
        cost = _by_rows("cost", problem.cost, batch, n, params, None)
    weights = {name: rest.pop(0) for name, pair in (("soft", soft), ("slew", slew)) if pair is not None}

    def last(name: str, function: Callable | None, width: int | None) -> Callable | None:
        return None if function is None else _by_rows(name, lambda x, u, params: function(x, params), batch, n, params, width)

    own = sizes[0] - n * len(softened)
    path = None if problem.constraints is None else _by_rows("constraints", problem.constraints, batch, n, params, own)
    path = _with_bounds(path, softened, T, n) if softened else path
    return Program(
        layout,
        dynamics,
        cost,
        last("terminal_cost", problem.terminal_cost, None),
        path,
        last("terminal_constraints", problem.terminal_constraints, sizes[1]),
        x0[None],
        bounds,
        weights,
    )


def _with_bounds(path: Callable | None, bounds: Mapping[str, Any], stages: int, n: int) -> Callable:
    """Constraints (..., T, B, own) and, as more of them, how far states are beyond bounds; -1 at x_0 and without a bound."""

    def called(tau: Any) -> Any:
        verbs = backend_of(tau).verbs
        xp, x = verbs.xp, tau[..., :n]
        later = verbs.asarray(np.arange(stages)[:, None, None], tau) > 0
        found = [] if path is None else [path(tau)]
        for name, bound in bounds.items():
            there = xp.isfinite(bound) & later
            bound = xp.where(there, bound, xp.zeros_like(bound))
            found.append(xp.where(there, x - bound if name == "x_upper" else bound - x, xp.zeros_like(x) - 1))
        return xp.concat(found, axis=-1)

    return called


def _by_rows(name: str, function: Callable, batch: tuple[int, ...], n: int, params: Any, width: int | None) -> Callable:
    """A user's function of (x, u, params) in batch shape as one of tau in flat rows; results have ``width`` entries, None for a scalar."""

    def called(tau: Any) -> Any:
        xp, lead = backend_of(tau).verbs.xp, tuple(tau.shape)[:-2]
        shaped = xp.reshape(tau, (*lead, *batch, tau.shape[-1]))
        found = function(shaped[..., :n], shaped[..., n:], params)
        tail = () if width is None else (width,)
        if tuple(found.shape) != (*lead, *batch, *tail):
            raise ValueError(
                f"{name} returned shape {tuple(found.shape)}; wanted {(*lead, *batch, *tail)}: one result for every row of x and u"
            )
        return xp.reshape(found, (*lead, tau.shape[-2], *tail))

    return called


def widths_of(problem: Problem, x0: Any, params: Any) -> tuple[int, int]:
    """How many path and terminal constraints there are, asked of the functions themselves."""
    check_start(x0)
    xp = backend_of(x0).verbs.xp
    u = xp.zeros_like(x0[..., :1]) + xp.zeros_like(xp.broadcast_to(x0[..., :1], (*x0.shape[:-1], problem.n_ctrl)))
    path = 0 if problem.constraints is None else problem.constraints(x0, u, params).shape[-1]
    path += problem.n_state * len(problem.softened)
    terminal = 0 if problem.terminal_constraints is None else problem.terminal_constraints(x0, params).shape[-1]
    return path, terminal


# Parameters: any nesting of dicts, lists and tuples of arrays.


def leaves_of(tree: Any) -> list[Any]:
    """The arrays of a framework in a nesting of containers, in order."""
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in leaves_of(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in leaves_of(value)]
    return [tree] if backend_of(tree) is not NUMPY and hasattr(tree, "shape") else []


def with_leaves(tree: Any, leaves: list[Any]) -> Any:
    """The nesting with other arrays; takes them from the front of the list."""
    if isinstance(tree, Mapping):
        return {name: with_leaves(value, leaves) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        values = [with_leaves(value, leaves) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return leaves.pop(0) if backend_of(tree) is not NUMPY and hasattr(tree, "shape") else tree
