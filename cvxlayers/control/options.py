"""How a controller computes, and what it tells."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from cvxlayers.errors import InaccurateWarning, SolverError, Status, warn

logger = logging.getLogger("cvxlayers.control")

CHOICES = {
    "method": ("auto", "sqp", "ilqr"),
    "hessian": ("gauss_newton", "exact"),
    "backward": ("exact", "gauss_newton", "unroll"),
    "on_unconverged": ("raise", "warn", "nan", "zero_grad"),
}

# By the codes of `sqp.failure_of`.
STATUSES = (
    Status.ITERATION_LIMIT,
    Status.PRIMAL_INFEASIBLE,
    Status.DUAL_INFEASIBLE,
    Status.NUMERICAL_ERROR,
    Status.INVALID_PARAMETER,
)
SENTENCES = {
    1: "the constraints of {rows} cannot be satisfied",
    2: "the cost of {rows} has no minimum: it is not convex, or falls without end",
    3: "a quadratic program of {rows} could not be solved",
    4: "states, parameters or derivatives of {rows} are not finite",
}


@dataclass(frozen=True)
class Options:
    """The options of `MPC`; raises ValueError for those that do not exist."""

    method: str
    hessian: str
    backward: str
    max_iter: int
    tol: float | None
    on_unconverged: str
    verbose: bool
    callback: Callable | None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted one of {', '.join(map(repr, choices))}")
        iterations = isinstance(self.max_iter, Integral) and self.max_iter >= 1
        if not iterations or (self.tol is not None and not (isinstance(self.tol, Real) and self.tol > 0)):
            raise ValueError(
                f"got max_iter={self.max_iter!r} and tol={self.tol!r}; wanted an integer of at least 1, and a positive number or None"
            )
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback is a {type(self.callback).__name__}; wanted a function of a dict, or None")

    @property
    def exact(self) -> bool:
        """Whether the quadratic programs have the Hessian of the Lagrangian."""
        return self.hessian == "exact"

    @property
    def curvature(self) -> str:
        """The Hessian with which the plan is differentiated."""
        return "lagrangian" if self.backward == "exact" else "cost"

    def tolerance(self, resolution: float) -> float:
        """The tolerance for numbers of that resolution."""
        return self.tol if self.tol is not None else 1e-8 if resolution < 1e-10 else 1e-4


def describe(options: Options, maps: Any, verbs: Any) -> Callable | None:
    """What is called after every iteration, or None."""
    if not options.verbose and options.callback is None:
        return None

    if options.verbose:
        _heard()

    def line_of(k: Any, violation: Any) -> None:
        violation = np.asarray(violation)
        open_rows = int(np.sum(~(violation <= options.tolerance(np.finfo(violation.dtype).eps))))
        line = {"iteration": int(np.asarray(k)) + 1, "open_rows": open_rows, "kkt_residual": float(np.max(violation, initial=0.0))}
        if options.verbose:
            logger.info("iteration %(iteration)3d   open rows %(open_rows)4d   KKT residual %(kkt_residual).2e", line)
        if options.callback is not None:
            options.callback(line)

    def tell(k: Any, violation: Any) -> None:
        given = [verbs.stop(a) for a in (k, violation)]
        known = [verbs.known(a) for a in given]
        if any(a is None for a in known):
            verbs.host(line_of, None, *given)  # compiled code tells when it runs
        else:
            line_of(*known)

    return tell


def _heard() -> None:
    """Let lines be seen: who asked for them need not know of loggers."""
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)


def settle(verbs: Any, converged: Any, violation: Any, failure: Any, policy: str) -> None:
    """Raise or warn for rows that did not converge, where values are at hand."""
    converged, violation, failure = (verbs.known(a) for a in (converged, violation, failure))
    if converged is None or converged.all() or policy not in ("raise", "warn"):
        return
    converged, violation, failure = (a.reshape(-1) for a in (converged, violation, failure))
    rows = np.flatnonzero(~converged)
    named = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    without = ""
    for code, text in SENTENCES.items():
        which = [int(row) for row in rows if failure[row] == code]
        if which:
            named_rows = f"row{'s' if len(which) > 1 else ''} {', '.join(map(str, which[:8]))}{', ...' if len(which) > 8 else ''}"
            without += f"; {text.format(rows=named_rows)}"
    message = (
        f"mpc row{'s' if len(rows) > 1 else ''} {named} of {len(converged)} did not converge: relative violation of the optimality "
        f"conditions up to {np.max(violation[rows]):.1e}{without}; try: "
        "raise max_iter, loosen tol, soften constraints, or start from a better plan"
    )
    if policy == "raise":
        statuses = [STATUSES[int(failure[row])] for row in rows]
        raise SolverError(message, rows.tolist(), statuses)
    warn(message, InaccurateWarning)
