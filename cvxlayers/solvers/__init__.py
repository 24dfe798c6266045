"""Solvers of the cone program, and how to choose one.

A solver takes a batch of programs that share one pattern, minimize 1/2 x'Px + q'x subject to Ax + s = b, s in K, and returns (x, y, s)
with one status per row; no row's result depends on its neighbours, and no row's failure is another's. Seven exist, one file each:

- ``CLARABEL`` (Clarabel): interior points, every cone, quadratic objectives. The default.
- ``DAQP`` (DAQP): a dual active set for linear constraints, exact to rounding; the default where the program is small or dense.
- ``INTERIOR``: this library's own interior points, compiled, every cone (semidefinite ones up to order 30), quadratic objectives; made
  for batches: eight rows at a time in the lanes of a processor's registers, and blocks of rows over all cores.
- ``SCS`` (SCS): operator splitting, every cone, quadratic objectives. The one with a warm start, and the one for very large programs;
  its accuracy costs iterations.
- ``ECOS`` (ECOS, GPL; the extra ``ecos``): interior points for linear, second-order and exponential cones.
- ``DIFFCP`` (the extra ``diffcp``): the forward solve of diffcp, to repeat results obtained with it.
- ``MOREAU`` (the extra ``moreau``): interior points for a whole batch in one call, every cone, quadratic objectives.

Say nothing and `choose` decides, from the pattern alone. Say ``solver="SCS"`` (any case, or CVXPY's constants) to decide yourself, and
pass the solver's own options by ``solver_args``, or these that every solver understands: ``eps`` (its tolerance), ``max_iters`` (its
limit), ``n_jobs_forward`` (threads over the rows of a batch), ``solve_method`` (a solver's name), ``verbose``.
ECOS and DIFFCP know no quadratic objective: a CvxpyLayer built for one of them turns quadratic terms into second-order cones, so name
them when the layer is built, not in a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any

from cvxlayers.cones import NonNegative, Semidefinite, Zero
from cvxlayers.errors import warn
from cvxlayers.program import Pattern
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.settings import configure

REGISTRY = MappingProxyType(
    {"CLARABEL": "Clarabel", "DAQP": "DAQP", "SCS": "SCS", "ECOS": "ECOS", "DIFFCP": "DIFFCP", "MOREAU": "Moreau", "INTERIOR": "Interior"}
)
"""Every solver's name and its class, which lives in the file of that name and imports its package when first used."""

FILES = MappingProxyType({"INTERIOR": "interior_cpu"})
"""The files of solvers that do not bear their names."""

EXTRAS = frozenset({"ECOS", "DIFFCP", "MOREAU"})
"""The solvers that an extra of that name installs."""


def find(name: str) -> type[Solver]:
    """The class of a solver by its name, in any case; imports its package.

    Raises ValueError for a name that does not exist, ImportError for a package that is not installed.
    """
    key = name.upper() if isinstance(name, str) else name
    if key not in REGISTRY:
        raise ValueError(f"solver {name!r} is not known; choose one of {', '.join(REGISTRY)}")
    try:
        module = import_module(f"{__name__}.{FILES.get(key, key.lower())}")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        extra = f"cvxlayers[{key.lower()}]" if key in EXTRAS else package
        raise ImportError(f"solver {key!r} needs the package {package!r}; pip install {extra}", name=error.name) from error
    return getattr(module, REGISTRY[key])


def named(name: str | None, solver_args: Mapping[str, Any] | None = None) -> str | None:
    """The solver that ``solver=`` and the option ``solve_method`` ask for together, or None where neither does."""
    method = (solver_args or {}).get("solve_method")
    if name is None:
        return method
    if method is not None and name.upper() not in ("DIFFCP", str(method).upper()):
        raise ValueError(f"solver={name!r} and solve_method={method!r} ask for different solvers; give one of them")
    return name


def get(name: str | None, solver_args: Mapping[str, Any] | None = None, pattern: Pattern | None = None) -> tuple[Solver, tuple[str, ...]]:
    """The solver of that name with its settings, and the options among ``solver_args`` that mean nothing to it.

    Without a name, ``solve_method`` names it, and without that `choose` does. Raises ValueError where the solver or an option is unknown
    or the solver cannot take the pattern.
    """
    asked = named(name, solver_args)
    cls = find(asked) if asked is not None else _serving(choose(pattern) if pattern is not None else "CLARABEL")
    if pattern is not None:
        missing = lacks(cls, pattern)
        if missing:
            able = ", ".join(repr(other) for other in REGISTRY if _can(other, pattern))
            raise ValueError(f"solver {cls.name!r} cannot handle {missing}; try {able}")
    return configure(cls, solver_args)


def _serving(name: str) -> type[Solver]:
    """The solver that was chosen; Clarabel in the place of INTERIOR where numba cannot load, which is said once."""
    if name != "INTERIOR":
        return find(name)
    try:
        return find(name)
    except ImportError as error:
        _warn_once(f"numba cannot be loaded ({error}); the solver CLARABEL takes the place of INTERIOR, more slowly")
        return find("CLARABEL")


@cache
def _warn_once(message: str) -> None:
    warn(message, RuntimeWarning)


def lacks(cls: type[Solver], pattern: Pattern) -> str:
    """What a solver cannot do of a pattern, in words; empty if it can do all of it."""
    kinds = sorted(kind.__name__ for kind in pattern.cone.kinds - cls.cones)
    missing = [f"{' and '.join(kinds)} cones"] if kinds else []
    order = max((cone.order for cone in pattern.cone.cones if isinstance(cone, Semidefinite)), default=0)
    if Semidefinite in cls.cones and order > cls.semidefinite_order:
        missing.append(f"Semidefinite cones of order {order}")
    if pattern.nnzP and not cls.quadratic:
        missing.append("a quadratic objective")
    return " nor ".join(missing)


def _can(name: str, pattern: Pattern) -> bool:
    try:
        return not lacks(find(name), pattern)
    except ImportError:
        return False


def choose(pattern: Pattern) -> str:
    """The name of the solver for a pattern: from its cones, sizes and density alone, so that a batch is solved as its rows are."""
    if not pattern.cone.kinds <= {Zero, NonNegative}:
        return "CLARABEL"
    # Measured by benchmarks/choose_solver.py, time of Clarabel over time of DAQP: dense QPs 2.7 at n = 10, 9 at 30, 16 at 100, 8 at 400;
    # dense LPs 2 to 6. With a tenth of the entries 1.3 to 3.7 for QPs, but 0.8 to 0.3 for LPs from n = 100 on. Where structure leaves a
    # few entries per row: simplex 1.5 at n = 30, 0.6 at 100, 0.04 at 400; total variation 1.4 at n = 10, 0.7 at 30.
    small = pattern.n <= 40 and pattern.m <= 160
    dense = pattern.n <= 400 and pattern.m <= 1600 and pattern.nnzA >= 0.15 * pattern.n * pattern.m > 0
    return "DAQP" if small or dense else "CLARABEL"


__all__ = ["REGISTRY", "Solver", "choose", "configure", "find", "get", "map_rows", "named"]
