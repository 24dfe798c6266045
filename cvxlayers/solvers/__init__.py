"""Solvers of the cone program, and how to choose one.

A solver takes a batch of programs that share one pattern, minimize 1/2 x'Px + q'x subject to Ax + s = b, s in K, and returns (x, y, s)
with one status per row; no row's result depends on its neighbours, and no row's failure is another's. Eight exist, one file each:

- ``ACTIVE_SET``: this library's own dual active set, compiled, for small or dense programs with linear constraints: exact to rounding;
  rows that share their matrices share one factorization. The default there.
- ``INTERIOR``: this library's own interior points, compiled, every cone (semidefinite ones up to order 30), quadratic objectives; made
  for batches: eight rows at a time in the lanes of a processor's registers, and blocks of rows over all cores. The default elsewhere.
- ``CLARABEL`` (Clarabel): interior points, every cone, quadratic objectives. The default for very large programs.
- ``DAQP`` (DAQP): a dual active set for linear constraints, exact to rounding; in the place of ACTIVE_SET where numba cannot load.
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
from importlib import import_module
from types import MappingProxyType
from typing import Any

from cvxlayers.compiled import kernels
from cvxlayers.cones import NonNegative, Semidefinite, Zero
from cvxlayers.program import Pattern
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.settings import configure

REGISTRY = MappingProxyType(
    {
        "CLARABEL": "Clarabel",
        "DAQP": "DAQP",
        "SCS": "SCS",
        "ECOS": "ECOS",
        "DIFFCP": "DIFFCP",
        "MOREAU": "Moreau",
        "INTERIOR": "Interior",
        "ACTIVE_SET": "ActiveSet",
    }
)
"""Every solver's name and its class, which lives in the file of that name and imports its package when first used."""

FILES = MappingProxyType({"INTERIOR": "interior_cpu"})
"""The files of solvers that do not bear their names."""

COMPILED = MappingProxyType({"INTERIOR": "CLARABEL", "ACTIVE_SET": "DAQP"})
"""The solvers that numba compiles, and what takes their place where it cannot load."""

INTERIOR_ORDER = 30
"""The largest semidefinite cone that INTERIOR takes."""

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
    """The solver that was chosen; where numba cannot load, another in the place of one that it compiles."""
    return find(COMPILED[name] if name in COMPILED and kernels("disk") is None else name)


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
    """The name of the solver for a pattern: from its cones, sizes and density alone, so that a batch is solved as its rows are.

    An active set costs about n (n + m) a step however sparse the program is, and takes about as many steps as constraints are active.
    Interior points cost what the fill of K costs, some ten or twenty times, and INTERIOR gives that to eight rows at once, needed or not.
    """
    n, m, entries = pattern.n, pattern.m, pattern.nnzP + pattern.nnzA
    order = max((cone.order for cone in pattern.cone.cones if isinstance(cone, Semidefinite)), default=0)
    # Measured by benchmarks/choose_solver.py, microseconds a row (ACTIVE_SET / INTERIOR / CLARABEL, 64 rows): QPs with all entries 9.4 /
    # 105 / 500 at n = 20, 327 / 2090 / - at 80, 23700 / 197000 / - at 300; a twentieth of them 279 / 351 / 2399 at 80 and 15042 / 14492 /
    # 81037 at 300; LPs 37 / 103 / 751 and 1512 / 3007 / - with all, 613 / 314 / 1791 (n = 80) with a twentieth; simplex 18 / 20 / 196 at
    # n = 40, 116 / 48 / 388 at 80; total variation with 39 variables 18 / 27 / 174, with 79 82 / 44 / 331.
    if pattern.cone.kinds <= {Zero, NonNegative}:
        full = entries / max(n * ((n + 1) / 2 + m), 1)
        small = n <= 50 and m <= 300
        quadratic = pattern.nnzP and full >= (0.04 if n <= 300 else 0.2) and n <= 1000 and m <= 4000
        linear = not pattern.nnzP and n <= 150 and pattern.nnzA >= 0.4 * n * m
        if small or quadratic or linear:
            return "ACTIVE_SET"
    # One row of a program with much fill takes INTERIOR several times as long as Clarabel, and a batch no less: n = 800 with a fiftieth of
    # the entries (116000) 10 and 1.5 times, n = 400 with a tenth (111000) 1.7 and 0.4 times.
    return "INTERIOR" if order <= INTERIOR_ORDER and entries <= 100_000 else "CLARABEL"


__all__ = ["REGISTRY", "Solver", "choose", "configure", "find", "get", "map_rows", "named"]
