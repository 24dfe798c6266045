"""What the layers of all frameworks have alike: the arguments they are made of, and the arguments of a call.

An adapter adds its framework's own base class with the methods ``_hold`` and ``_solve``, and makes `solve` the method that the framework
calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from cvxlayers import failures
from cvxlayers.conic import ConicLayer as Conic
from cvxlayers.conic_map import ConicMap
from cvxlayers.errors import warn
from cvxlayers.host import HostMap, Options
from cvxlayers.layer import Layer
from cvxlayers.program import Info, Pattern

SPELLING = {"params": "parameters", "out": "variables", "outputs": "variables"}


def solve(
    self: Any,
    *params: Any,
    solver_args: Mapping[str, Any] | None = None,
    return_info: bool = False,
    on_failure: str = "raise",
    warm_start: Info | None = None,
) -> Any:
    """Solve for every row of the batch: parameters (*batch, *shape) or shape -> tuple of outputs (*batch, *shape).

    Batch shapes are equal, or () for what all rows share. Results have the widest dtype of the framework's own arrays among the parameters;
    inside everything is float64. With ``return_info`` the result is (outputs, `Info`), and ``warm_start`` takes the Info of an earlier
    call; ``solver_args`` are options of the solver for this call. ``on_failure`` says what becomes of rows without a solution: "raise" a
    SolverError, "nan" makes them NaN with zero gradient, "return" hands out the last iterate with a warning; docs/frameworks.md says what
    compiled code makes of it. Raises ValueError for a wrong count, shape or dtype, and from a derivative that the program does not have.
    """
    failures.check_policy(on_failure)
    return self._solve(params, Options(solver_args, on_failure, warm_start or None, return_info), return_info)


class HostLayer(ABC):
    """A `HostMap` as a layer of a framework."""

    core: Any
    extra: tuple[str, ...] = ()  # arguments of the constructor that the framework's layers take besides

    @abstractmethod
    def _hold(self, core: HostMap, **extra: Any) -> None:
        """Make this a layer around ``core``."""

    @abstractmethod
    def _solve(self, params: Sequence[Any], options: Options, return_info: bool) -> Any:
        """Outputs, or outputs and Info."""


class CvxpyLayer(HostLayer):
    """A disciplined convex problem as a differentiable function of its parameters."""

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any] | None = None,
        variables: Sequence[Any] | None = None,
        solver: str | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        """Make a layer of a CVXPY problem that obeys the DPP rules.

            x*(p) = argmin_x f(x; p)  subject to the problem's constraints

        ``parameters`` are all its parameters, in the order of the call; ``variables`` are variables of the problem or dual variables of its
        constraints, in the order of the result. ``solver`` is the name of a solver (None: chosen from the problem's pattern), ``gp`` says
        that the problem is a geometric program, ``solver_args`` holds the solver's options. Raises ValueError for problems and arguments
        that cannot make a layer.

        Method: Agrawal, Amos, Barratt, Boyd, Diamond, Kolter, "Differentiable convex optimization layers", 2019; the derivative is that of
        the optimality conditions (docs/mathematics.md).
        """
        check_spelling(extra, self.extra)
        for name, given in (("verbose", verbose), ("canon_backend", canon_backend is not None)):
            if given:
                warn(f"CvxpyLayer ignores {name}=: it has no meaning here", FutureWarning)
        self._hold(Layer(problem, parameters, variables, solver, gp, solver_args), **extra)


class ConicLayer(HostLayer):
    """A batch of cone programs of one `Pattern` as a differentiable function of their data."""

    def __init__(self, pattern: Pattern, solver: str | None = None, solver_args: Mapping[str, Any] | None = None, **extra: Any) -> None:
        """Make a layer of a pattern: ``x, y, s = layer(P, q, A, b)``.

            minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

        P (*batch, nnzP), q (*batch, n), A (*batch, nnzA), b (*batch, m) -> x (*batch, n), y (*batch, m), s (*batch, m); P and A are the
        entries stored by the pattern. ``solver`` names a solver (None: chosen from the pattern), ``solver_args`` holds its options.
        """
        check_spelling(extra, self.extra)
        self._hold(ConicMap(Conic(pattern, solver, solver_args)), **extra)


def check_spelling(given: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Raise TypeError for keyword arguments that no layer has, naming the right spelling of known wrong ones."""
    for name in given:
        if name not in known:
            hint = f"; write {SPELLING[name]}=" if name in SPELLING else ""
            raise TypeError(f"the layer got an unexpected keyword argument {name!r}{hint}")
