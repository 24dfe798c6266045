"""What a user is told of rows that did not end well: errors, warnings and masks, the same for every layer.

``on_failure="raise"`` raises SolverError, ``"nan"`` makes failed rows NaN with zero gradient, ``"return"`` hands out the solver's last
iterate with a warning. Other rows are never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cvxlayers.adjoint import Certificate
from cvxlayers.errors import GradientWarning, InaccurateWarning, SolverError, Status, warn
from cvxlayers.program import Info, Solution

POLICIES = ("raise", "nan", "return")


def check_policy(on_failure: str) -> None:
    """Raise ValueError unless ``on_failure`` is one of the policies."""
    if on_failure not in POLICIES:
        raise ValueError(f"on_failure is {on_failure!r}; wanted one of {', '.join(map(repr, POLICIES))}")


def settle(info: Info, on_failure: str, complaints: Mapping[int, str] | None = None) -> None:
    """Raise or warn for rows that did not end SOLVED; ``complaints`` tells, by flat row, what was wrong with its parameters."""
    status = info.status.reshape(-1)
    if not status.any():
        return
    failed = np.flatnonzero(status > Status.INACCURATE)
    if len(failed) and on_failure == "raise":
        raise SolverError(describe(info, failed, complaints or {}), failed.tolist(), [Status(int(status[i])) for i in failed])
    if len(failed) and on_failure == "return":
        message = describe(info, failed, complaints or {}) + " Their last iterates are returned, with zero gradient."
        warn(message, InaccurateWarning)
    inaccurate = np.flatnonzero(status == Status.INACCURATE)
    if len(inaccurate):
        warn(describe(info, inaccurate, {}), InaccurateWarning)


ADVICE = {
    Status.INACCURATE: "scale the data, or ask more iterations of the solver",
    Status.PRIMAL_INFEASIBLE: "relax or soften constraints",
    Status.DUAL_INFEASIBLE: "add a bound or a quadratic term",
    Status.ITERATION_LIMIT: "raise max_iters, loosen eps, or scale the data",
    Status.TIME_LIMIT: "raise the time limit",
    Status.INVALID_PARAMETER: "correct the value, or the parameter's declaration",
    Status.NUMERICAL_ERROR: "scale the data, or try another solver",
}


def describe(info: Info, rows: np.ndarray, complaints: Mapping[int, str]) -> str:
    """One sentence per status among ``rows``: which rows, what happened, what to try."""
    status = info.status.reshape(-1)
    sentences = []
    for code in np.unique(status[rows]):
        member = Status(int(code))
        which = [int(i) for i in rows if status[i] == code]
        named = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
        told = next((f" ({complaints[i]})" for i in which if i in complaints), "")
        sentences.append(
            f"row{'s' if len(which) > 1 else ''} {named} of {status.size}: {member.name}: {member.sentence}{told}; "
            f"solver {info.solver}; try: {ADVICE[member]}."
        )
    return " ".join(sentences)


def warn_gradient(certificate: Certificate) -> None:
    """Issue one GradientWarning that names the rows whose derivative is not an ordinary one, and why."""
    if not np.count_nonzero(certificate.fallback) and not np.count_nonzero(certificate.kink):
        return
    reasons = (
        (certificate.not_unique, "the solution is not unique or the system is singular: the minimum-norm least-squares derivative is used"),
        (certificate.kink, "the solution sits on a kink (strict complementarity fails): one of several one-sided derivatives is used"),
    )
    for rows, reason in reasons:
        if rows.any():
            which = np.flatnonzero(rows)
            named = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
            warn(f"gradient of row{'s' if len(which) > 1 else ''} {named} of {len(rows)}: {reason}", GradientWarning)


def mask_failed(solution: Solution, status: np.ndarray, on_failure: str) -> Solution:
    """The flat solution with failed rows NaN, unless the policy is to return them."""
    if on_failure == "return" or not status.any():
        return solution
    failed = status > Status.INACCURATE
    if not failed.any():
        return solution
    return replace(solution, **{name: np.where(failed[:, None], np.nan, getattr(solution, name)) for name in ("x", "y", "s")})
