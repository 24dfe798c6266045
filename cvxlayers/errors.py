"""How this library speaks of failure: misuse is a ``ValueError``, numerical failure is a `Status` per row.

A batch is never lost because of one row, and no number leaves the library without a flag. `Status` says what happened to a row and
carries the sentence that explains it; `SolverError` is what a user sees when a failed row is not allowed to pass; `GradientWarning`
names the rows whose derivative exists only in a weaker sense (a kink, a set of solutions).
"""

from __future__ import annotations

import enum
import sys
import warnings
from collections.abc import Sequence


class Status(enum.IntEnum):
    """What happened to one row of a batch; each member carries its ``sentence``.

    Arrays of statuses are integer arrays, and members compare equal to their codes.

    >>> Status(2).name
    'PRIMAL_INFEASIBLE'
    >>> Status.SOLVED.ok, Status.INACCURATE.ok, Status.ITERATION_LIMIT.ok
    (True, True, False)
    """

    sentence: str

    def __new__(cls, code: int, sentence: str) -> Status:
        member = int.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    SOLVED = 0, "the optimality conditions hold to tolerance"
    INACCURATE = 1, "the optimality conditions hold only to a reduced tolerance"
    PRIMAL_INFEASIBLE = 2, "no point satisfies the constraints"
    DUAL_INFEASIBLE = 3, "the objective is unbounded below on the feasible set"
    ITERATION_LIMIT = 4, "the solver stopped at its iteration limit"
    TIME_LIMIT = 5, "the solver stopped at its time limit"
    INVALID_PARAMETER = 6, "a parameter is not finite or violates what its declaration promises"
    NUMERICAL_ERROR = 7, "the solver broke down numerically"

    @property
    def ok(self) -> bool:
        """Whether a row with this status carries a usable solution."""
        return self <= Status.INACCURATE


class SolverError(RuntimeError):
    """Rows of a batch failed and ``on_failure="raise"`` was asked for.

    ``rows`` are the flat indices of the failed rows (row-major over the batch axes), ``statuses`` their `Status`.
    """

    def __init__(self, message: str, rows: Sequence[int] = (), statuses: Sequence[Status] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)
        self.statuses = tuple(statuses)

    def __reduce__(self):
        return type(self), (self.args[0], self.rows, self.statuses)


class InaccurateWarning(UserWarning):
    """Rows are returned whose solution is less accurate than asked for, or failed under ``on_failure="return"``."""


class GradientWarning(UserWarning):
    """The derivative of some rows is not an ordinary one: the solution is not unique, or sits on a kink."""


# The frameworks through which a call may come: their frames are not the user's.
THROUGH = ("cvxlayers", "torch", "jax", "tensorflow", "keras")


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the line that called this library, directly or through a framework."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in THROUGH:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
