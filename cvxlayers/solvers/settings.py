"""From a user's ``solver_args`` to a solver with its settings: every rule about option names, once for all solvers."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeVar

from cvxlayers.solvers.base import Solver

LEGACY = ("acceleration_lookback", "mode", "n_jobs_backward")
"""Names that other layers take and that may stand in ``solver_args`` of any solver; where they mean nothing they are ignored."""

AnySolver = TypeVar("AnySolver", bound=Solver)


def configure(cls: type[AnySolver], solver_args: Mapping[str, Any] | None = None) -> tuple[AnySolver, tuple[str, ...]]:
    """The solver with its settings, and the names that were accepted and mean nothing to it.

    The solver's own names pass through and win over ``eps`` (its tolerances) and ``max_iters`` (its limit); ``n_jobs_forward`` is the
    number of threads (-1 or 0: one per core); ``solve_method`` has been obeyed by `cvxlayers.solvers.get`. Any other name, and a value
    of a wrong kind, is a ValueError.
    """
    args = dict(solver_args or {})
    settings: dict[str, object] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    jobs = cls.threads
    if "eps" in args:
        settings.update((name, _checked(cls, "eps", args["eps"], float)) for name in cls.tolerances)
    if "max_iters" in args:
        settings[cls.limit] = _checked(cls, "max_iters", args["max_iters"], int)
    for name, value in args.items():
        if name == "n_jobs_forward":
            jobs = max(0, _checked(cls, name, value, int, positive=False))
        elif name in cls.options:
            settings[name] = _checked(cls, name, value, cls.options[name], positive=name in (*cls.tolerances, cls.limit))
        elif name == "verbose":
            ignored += [name] if value else []
        elif name in LEGACY:
            ignored.append(name)
        elif name not in ("eps", "max_iters", "solve_method"):
            unknown.append(name)
    if unknown:
        takes = ", ".join(sorted({*cls.options, "eps", "max_iters", "n_jobs_forward", "solve_method", "verbose"}))
        raise ValueError(f"solver {cls.name!r} has no option {', '.join(map(repr, unknown))}; it takes {takes}")
    return cls(settings=settings, jobs=jobs), tuple(ignored)


def _checked(cls: type[Solver], name: str, value: Any, kind: type, positive: bool = True) -> Any:
    """``value`` as a plain Python value of the kind that the solver's binding insists on."""
    try:
        if kind is float and isinstance(value, Real):
            value = float(value)
        elif kind is int:
            value = operator.index(value)
        elif kind is bool and value in (0, 1):
            value = bool(value)
        elif kind is not object and not isinstance(value, kind):
            raise TypeError
    except (TypeError, ValueError):
        raise ValueError(f"option {name!r} of solver {cls.name!r} is {value!r}; wanted {kind.__name__}") from None
    if positive and kind in (float, int) and not value > 0:
        raise ValueError(f"option {name!r} of solver {cls.name!r} is {value!r}; wanted a positive number")
    return value
