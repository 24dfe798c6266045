"""The last word on a solver's answer: polish it by Newton steps, measure its residuals, and say what it is worth."""

from __future__ import annotations

import numpy as np

from cvxlayers import adjoint
from cvxlayers.errors import Status
from cvxlayers.kkt import KKT
from cvxlayers.products import Residuals, residuals
from cvxlayers.program import ConeProgram, Info, Solution, shaped, take
from cvxlayers.units import in_units, units

ACCURATE = 1e-8  # residuals up to this (or ten times the tolerance asked of the solver) make a row SOLVED, whatever the solver said
REDUCED = 1e-4  # residuals up to this make it INACCURATE, beyond it the row has failed
POLISHED = 1e-13  # residuals below this are left alone
FAR = 0.1  # how long Newton steps may be in units of their own, relative to (x, v)
POLISHING, LONGEST = 4, 10  # Newton steps: linear constraints need one, curved cones converge quadratically; more while each halves
DIVERGED = 1e-2  # a residual beyond this after a Newton step: the start was outside the region of convergence

SOLVED, INACCURATE, NUMERICAL_ERROR = int(Status.SOLVED), int(Status.INACCURATE), int(Status.NUMERICAL_ERROR)
PRIMAL_INFEASIBLE, DUAL_INFEASIBLE = int(Status.PRIMAL_INFEASIBLE), int(Status.DUAL_INFEASIBLE)


def judge(kkt: KKT, program: ConeProgram, raw: Solution, tolerance: float) -> tuple[Solution, Residuals]:
    """The polished solution with the status that its residuals earn, and the residuals; arrays (rows, ...).

    ``tolerance`` is what the solver was asked for. A claim to have solved a row is put to the test; a row that the solver gave up
    (infeasible, a limit reached) keeps the solver's word and its last iterate, unless that iterate is optimal as it stands.
    """
    found = None
    if kkt.products.linear and kkt.products.passes is not None:
        found = residuals(kkt.products, program, raw.x, raw.y, raw.s)
        if not np.count_nonzero(raw.status) and found.worst.max(initial=0.0) <= POLISHED:  # so all numbers are finite, too
            return raw, found
    claimed = raw.status <= INACCURATE
    finite = kkt.products.finite(raw.x, raw.y, raw.s)
    x, y, s = (np.array(a) if finite is None else np.where(finite[:, None], a, 0.0) for a in (raw.x, raw.y, raw.s))
    if found is None or finite is not None:
        found = residuals(kkt.products, program, x, y, s)
    finite = np.ones(len(claimed), dtype=bool) if finite is None else finite
    best = Solution(x, y, s, np.where(claimed, NUMERICAL_ERROR, raw.status).astype(np.int8), raw.iterations)
    polish(kkt, program, best, found, finite & claimed)

    solved = max(ACCURATE, 10 * tolerance)
    worst = found.worst
    best.status[finite & claimed & (worst <= max(REDUCED, solved))] = INACCURATE
    best.status[finite & (worst <= np.where(claimed, solved, ACCURATE))] = SOLVED
    failed = best.status > INACCURATE
    if failed.any():
        for name in ("x", "y", "s"):
            getattr(best, name)[failed] = getattr(raw, name)[failed]
        for array in vars(found).values():
            array[failed] = np.nan
    return best, found


def polish(kkt: KKT, program: ConeProgram, best: Solution, found: Residuals, usable: np.ndarray) -> None:
    """Newton steps on the residual map, in place: each row keeps the best point met, which may be the one it came with.

    Rows that are not `POLISHED` then may step farther, in `cvxlayers.units`: their data may be in units of very different sizes.
    """
    rows = np.flatnonzero(usable & ~(found.worst <= POLISHED))
    if not len(rows):
        return
    _newton_steps(kkt, program, best, found, rows)
    rows = rows[~(found.worst[rows] <= POLISHED)]
    if len(rows):
        _newton_steps(kkt, program, best, found, rows, units(kkt.products, take(program, rows), take(best, rows)), FAR)


def _newton_steps(
    kkt: KKT, program: ConeProgram, best: Solution, found: Residuals, rows: np.ndarray, e: np.ndarray | None = None, far: float = 0.0
) -> None:
    """Steps of these rows, taken in units e and measured in those given.

    On a curved cone the first step may leave the cone's surface by the square of its length before the next ones converge
    quadratically, so a step is not judged alone.
    """
    whole = len(rows) == len(found.worst)
    part, point = (program, best) if whole else (take(program, rows), take(best, rows))
    own = part
    if e is not None:
        own, point = in_units(kkt.products, part, e), in_units(kkt.products, point, e)
    # A solver's y and s are only nearly complementary. The step is one on y = Pi_K*(v), s = y - v: from there linear cones need no second.
    v = point.y - point.s
    y = kkt.dual_cone.project(v)
    point = Solution(point.x, y, y - v, point.status, point.iterations)
    before = np.full(len(rows), np.inf)
    for step in range(LONGEST):
        point = adjoint.newton(kkt, own, point, far=far)
        given = point if e is None else in_units(kkt.products, point, 1 / e)
        after = residuals(kkt.products, part, given.x, given.y, given.s, projected=True)
        better = after.worst < found.worst[rows]
        for name in ("x", "y", "s"):
            getattr(best, name)[rows[better]] = getattr(given, name)[better]
        for name, array in vars(found).items():
            array[rows[better]] = getattr(after, name)[better]
        going = (after.worst > POLISHED) & (after.worst < DIVERGED) & ((step < POLISHING - 1) | (after.worst < before / 2))
        if not going.any():
            break
        rows, part, own, point = rows[going], take(part, going), take(own, going), take(point, going)
        before = after.worst[going]
        e = None if e is None else e[going]


def told(
    solver: str, batch: tuple[int, ...], solution: Solution, quality: Residuals, start: Solution | None, valid: np.ndarray | None
) -> Info:
    """What happened, in batch shape; ``start`` has the ``valid`` rows (None: all), NaN in those that began cold."""
    status, objective = solution.status, quality.objective
    if status.any():
        objective = np.where(status <= INACCURATE, objective, np.nan)
        objective[status == PRIMAL_INFEASIBLE] = np.inf
        objective[status == DUAL_INFEASIBLE] = -np.inf
    warm = np.zeros(len(status), dtype=bool)
    if start is not None:
        warm[valid if valid is not None else slice(None)] = np.isfinite(start.x).all(axis=1)
    found = shaped(solution, batch)
    return Info(
        status=found.status,
        objective=objective.reshape(batch),
        primal_residual=quality.primal.reshape(batch),
        dual_residual=quality.dual.reshape(batch),
        gap=quality.gap.reshape(batch),
        iterations=found.iterations,
        solver=solver,
        warm_started=warm.reshape(batch),
        solution=found,
    )
