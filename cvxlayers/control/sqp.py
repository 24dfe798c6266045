"""Sequential quadratic programming: every step solves one convex cone program for all rows, on one sparse pattern.

Two kinds of step. Far from a solution: the quadratic program of the linearized problem, with a line search on the l1 merit function
(Han, "A globally convergent method for nonlinear programming", 1977). Near one: a Newton step on the optimality conditions with the exact
Hessian of the Lagrangian, taken by a row where it reduces the violation of the conditions; it converges quadratically.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cvxlayers.backend import backend_of
from cvxlayers.conic_map import ConicMap
from cvxlayers.control import curvature, ilqr
from cvxlayers.control.conditions import FLOOR, Expansion, distance, expand, packed, right_sides, unpacked, values
from cvxlayers.control.direct import Direct
from cvxlayers.control.expand import convexified
from cvxlayers.control.line_search import may, search
from cvxlayers.control.lost import without_numbers
from cvxlayers.control.problem import Program
from cvxlayers.control.riccati import times
from cvxlayers.control.solved import SolvedMap
from cvxlayers.control.transcription import Transcription
from cvxlayers.errors import Status

CLOSE, VALLEY = 0.5, 0.1  # from these violations on Newton steps are tried, and steps longer than one
FORGET = 0.1  # what remains of the last penalty at least
RELIEF = 8  # every so many steps of shooting one is a quadratic program's
GAIN = 0.5  # what they must leave at most of it
INFEASIBLE, UNBOUNDED, BROKEN, LOST = 1.0, 2.0, 3.0, 4.0  # why a quadratic program has none: no point, no minimum, given up, no numbers


class Maps(NamedTuple):
    """The cone programs of one pattern: solved, moved by one Newton step, and differentiated where they stand; the first two directly."""

    transcription: Transcription
    solve: ConicMap
    newton: SolvedMap
    solved: SolvedMap
    direct: Direct | None = None


class Point(NamedTuple):
    """Where the rows are: tau (T, B, s), y and s (B, rows of A); the merit function's penalty, violation, steps (B,).

    ``failure`` (B,) is as of `failure_of`; ``values`` are the values and first derivatives there, `conditions.packed`.
    """

    tau: Any
    y: Any
    s: Any
    penalty: Any
    violation: Any
    iterations: Any
    failure: Any
    values: tuple[Any, ...]


def solve(
    program: Program, maps: Maps, tau: Any, *, exact: bool, max_iter: int, tol: float, shooting: bool = False, tell: Callable | None = None
) -> Point:
    """Iterate from tau (T, B, s), which need not satisfy anything, until every row's violation is at most ``tol``.

    ``exact`` takes the Hessian of the Lagrangian for the quadratic programs too, made convex; ``shooting`` takes the steps of `ilqr` in
    their place; ``tell`` is called with (iteration, violation).
    """
    verbs = backend_of(tau).verbs
    xp = verbs.xp

    def going(k: Any, *state: Any) -> Any:
        point = Point(*state)
        open_rows = (point.violation > tol) & (point.failure < 0.5)
        return xp.any(open_rows) & (k < max_iter)

    def body(k: Any, *state: Any) -> tuple[Any, ...]:
        point = step(program, maps, Point(*state), exact, tol, shooting)
        if tell is not None:
            tell(k, point.violation)
        return (k + 1, *point)

    return Point(*verbs.loop(going, body, (verbs.asarray(0.0, tau), *start(program, maps, tau)))[1:])


def unroll(
    program: Program,
    maps: Maps,
    point: Point,
    *,
    exact: bool,
    max_iter: int,
    tol: float,
    shooting: bool = False,
    tell: Callable | None = None,
) -> Point:
    """`solve` from a `start`, without Newton steps, in a loop that frameworks differentiate: the iterations are the derivative."""
    verbs, maps = backend_of(point.tau).verbs, maps._replace(direct=None)  # nobody differentiates a direct step

    def iterate(k: Any, point: Point) -> Point:
        open_rows = (point.violation > tol) & (point.failure < 0.5)
        found = _rolled(program, maps, point, exact) if shooting else _searched(program, maps, point, open_rows, exact)
        point = _advanced(verbs, point, [(open_rows, found)])
        if tell is not None:
            tell(k, point.violation)
        return point

    if verbs.known(point.violation) is None:  # compiled once, not max_iter times
        counted = verbs.asarray(np.arange(max_iter), point.tau)
        last, _ = verbs.scan(lambda point, k: (tuple(iterate(k[0], Point(*point))), ()), tuple(point), (counted,))
        return Point(*last)
    for k in range(max_iter):
        if not may(verbs, (point.violation > tol) & (point.failure < 0.5)):
            break
        point = iterate(verbs.asarray(k, point.tau), point)
    return point


def differentiable(program: Program, maps: Maps, point: Point, kind: str) -> tuple[Any, ...]:
    """(w, y, s), the matrices P and A of the program that `SolvedMap` differentiates there, the violation, and where it is a minimum."""
    parts = maps.transcription.parted(point.y)
    at = expand(program, point.tau, parts, kind, unpacked(program, point.values))
    exact = at if kind == "lagrangian" else expand(program, point.tau, parts, "lagrangian", at)
    P, _, A, _ = _data(program, maps, point.tau, at, at.H)
    w = flat(maps.transcription, point.tau, at, program, parts)
    return w, point.y, point.s, P, A, point.violation, curvature.minimum(program, exact, parts)


def variables(program: Program, maps: Maps, point: Point) -> Any:
    """The variables w (B, size) of the program at a point."""
    parts = maps.transcription.parted(point.y)
    return flat(maps.transcription, point.tau, unpacked(program, point.values), program, parts)


def _advanced(verbs: Any, point: Point, moves: list[tuple[Any, Point]]) -> Point:
    """The point with rows replaced by those of other points, one more step counted where a mask is true."""
    xp, steps = verbs.xp, point.iterations
    for mask, other in moves:
        if not may(verbs, mask):
            continue
        arrays = [xp.where(_like(mask, new), new, old) for new, old in zip(other[:-1], point[:-1], strict=True)]
        pairs = zip(other.values, point.values, strict=True)
        point = Point(*arrays, values=tuple(xp.where(_like(mask, new), new, old) for new, old in pairs))
        steps = xp.where(mask, steps + 1, steps)
    return point._replace(iterations=steps)


def _like(mask: Any, a: Any) -> Any:
    """A mask of rows (B,) against (B,), (B, k) or (T, B, s) or more axes."""
    rank = len(a.shape)
    return mask if rank == 1 else mask[:, None] if rank == 2 else mask[(None, slice(None), *[None] * (rank - 2))]


def start(program: Program, maps: Maps, tau: Any) -> Point:
    """The first point: no multipliers; rows without numbers have failed."""
    verbs, pattern = backend_of(tau).verbs, maps.transcription.pattern
    xp = verbs.xp
    none = xp.zeros_like(tau[0, :, 0])
    y = none[:, None] + verbs.asarray(np.zeros(pattern.m), tau)
    own = packed(program, values(program, tau))
    failure = xp.where(program.crossed, none + INFEASIBLE, none)
    failure = xp.where(verbs.stop(without_numbers(tau, *own, *program.bounds.values())), none + LOST, failure)
    return Point(tau, y, y, none, none + np.inf, none, failure, own)


def step(program: Program, maps: Maps, point: Point, exact: bool, tol: float, shooting: bool) -> Point:
    """One step of every row that is not done."""
    verbs = backend_of(point.tau).verbs
    xp = verbs.xp
    open_rows = (point.violation > tol) & (point.failure < 0.5)

    # A Newton step where the point is close; elsewhere, and where it gains nothing, the quadratic program.
    close = open_rows & (point.violation < CLOSE)
    moved, gained = point, xp.zeros_like(open_rows)
    if may(verbs, close):
        moved = _newton(program, maps, point, close)
        gained = close & (moved.violation <= GAIN * point.violation)
    rest = open_rows & ~gained
    found = point
    if may(verbs, rest):
        # Shooting along unstable dynamics may end in steps too short to matter: from time to time states move as well.
        turn = rest & (point.iterations % RELIEF == RELIEF - 1) if shooting else rest
        if may(verbs, turn):
            found = _searched(program, maps, point, turn, exact)
        if shooting:
            rolled = _rolled(program, maps, point, exact)
            return _advanced(verbs, point, [(gained, moved), (turn, found), (rest & ~turn, rolled)])

    return _advanced(verbs, point, [(gained, moved), (rest, found)])


def measured(program: Program, maps: Maps, point: Point, tau: Any, y: Any) -> Point:
    """The point at (tau, y), with its values and its violation of the optimality conditions."""
    at = values(program, tau)
    violation = finite(distance(program, tau, at, maps.transcription.parted(y)))
    return point._replace(tau=tau, y=y, violation=violation, values=packed(program, at))


def finite(violation: Any) -> Any:
    """A violation, infinite where it is not a number."""
    xp = backend_of(violation).verbs.xp
    return xp.where(xp.isnan(violation), xp.ones_like(violation) * np.inf, violation)


def _data(program: Program, maps: Maps, tau: Any, at: Expansion, H: Any) -> tuple[Any, Any, Any, Any]:
    return maps.transcription.program(H, at.slope - times(H, tau), at.F, at.G, at.E, right_sides(program, tau, at), program.weights)


def _newton(program: Program, maps: Maps, point: Point, rows: Any) -> Point:
    verbs = backend_of(point.tau).verbs
    tau, parts = point.tau, maps.transcription.parted(point.y)
    at = expand(program, tau, parts, "lagrangian", unpacked(program, point.values))
    found = None if maps.direct is None else maps.direct.newton(program, at, tau, point.y, point.s)
    if found is not None:
        moved = measured(program, maps, point, found.tau, found.y)
        violation = verbs.xp.where(found.convex, moved.violation, moved.violation + np.inf)
        return moved._replace(s=found.s, violation=violation)
    rows = rows & curvature.minimum(program, at, parts)  # elsewhere the step may lead to a saddle point
    w = flat(maps.transcription, tau, at, program, parts)
    data = _data(program, maps, tau, at, at.H)
    w = verbs.xp.where(rows[:, None], w, verbs.xp.ones_like(w) * np.nan)  # a row that is not finite costs nothing
    w, y, s = verbs.call(maps.newton, *data, w, point.y, point.s)
    return measured(program, maps, point, maps.transcription.stages_of(w), y)._replace(s=s)


def flat(transcription: Transcription, tau: Any, at: Expansion, program: Program, parts: Any) -> Any:
    """The variables w (B, size) of tau, with the slacks that soft constraints have there."""
    verbs, layout = backend_of(tau).verbs, transcription.layout
    xp, rows = verbs.xp, tau.shape[1]
    pieces = [xp.reshape(xp.moveaxis(tau, 0, 1), (rows, layout.stages * (layout.n + layout.m)))]
    for name, value in (("constraints", at.g), ("terminal", at.h)):
        if layout.soft is not None and value is not None:
            over = xp.maximum(value, xp.zeros_like(value)) if layout.soft == "l1" else parts[name] / program.soft_weights(name)
            pieces.append(xp.reshape(xp.moveaxis(over, 0, 1), (rows, over.shape[0] * over.shape[2])))
    return xp.concat(pieces, axis=-1)


def _rolled(program: Program, maps: Maps, point: Point, exact: bool) -> Point:
    tau = ilqr.rollout(program, ilqr.clipped(program, point.tau[..., program.layout.n :]))
    tau, y, s = ilqr.projected(program, maps.transcription, tau, point.y, exact)
    return measured(program, maps, point, tau, y)._replace(s=s)


def _searched(program: Program, maps: Maps, point: Point, rows: Any, exact: bool) -> Point:
    verbs = backend_of(point.tau).verbs
    xp, tau, transcription = verbs.xp, point.tau, maps.transcription
    at = expand(program, tau, transcription.parted(point.y), "lagrangian" if exact else "cost", unpacked(program, point.values))
    H = convexified(at.H, FLOOR) if exact else at.H
    target, y, s, failure = _quadratic(program, maps, tau, at, H, rows)
    infeasible = failure > 0
    direction = xp.where(infeasible[None, :, None], xp.zeros_like(tau), target - tau)

    dual = xp.max(xp.abs(y), axis=-1)
    # above the multipliers, for the merit to be exact; a first large value is forgotten, for it would keep later steps short
    penalty = xp.maximum(FORGET * point.penalty, xp.where(infeasible, xp.zeros_like(dual), 1.5 * dual + 1e-3))
    valley = point.violation < VALLEY  # long steps, far from there, would leap into other basins
    tau = search(program, at, tau, direction, penalty, rows, valley)
    y, s = (xp.where(infeasible[:, None], old, new) for old, new in ((point.y, y), (point.s, s)))
    return measured(program, maps, point, tau, y)._replace(s=s, penalty=penalty, failure=failure)


def _quadratic(program: Program, maps: Maps, tau: Any, at: Expansion, H: Any, rows: Any) -> tuple[Any, Any, Any, Any]:
    """tau, y and s of the quadratic program at tau, and the failure of each row."""
    verbs, transcription = backend_of(tau).verbs, maps.transcription
    xp = verbs.xp
    found = None
    if maps.direct is not None:
        sides = transcription.sides(right_sides(program, tau, at))
        found = maps.direct.quadratic(program, at, H, at.slope - times(H, tau), sides)
        if found is not None:
            rows = rows & ~found.convex
            if not may(verbs, rows):
                return found.tau, found.y, found.s, xp.zeros_like(tau[0, :, 0])
    P, q, A, b = _data(program, maps, tau, at, H)
    q = xp.where(rows[:, None], q, xp.ones_like(q) * np.nan)  # a row that is not finite costs nothing
    (w, y, s), info = verbs.call(maps.solve, P, q, A, b, on_failure="nan", return_info=True)
    target, failure = transcription.stages_of(w), failure_of(w, info.status)
    if found is None:
        return target, y, s, failure
    pairs = zip((*found[:3], xp.zeros_like(failure)), (target, y, s, failure), strict=True)
    target, y, s, failure = (xp.where(_like(found.convex, old), old, new) for old, new in pairs)
    return target, y, s, failure


def failure_of(w: Any, status: Any) -> Any:
    """Of solved programs, (B,): 0 for a solution, INFEASIBLE, UNBOUNDED, LOST, or BROKEN for what a solver gave up."""
    verbs = backend_of(w).verbs
    xp, lost = verbs.xp, verbs.stop(w[:, 0])
    nothing, status = xp.zeros_like(lost), verbs.asarray(status, lost)
    code = xp.where(status == int(Status.DUAL_INFEASIBLE), nothing + UNBOUNDED, nothing + BROKEN)
    for kind, why in ((Status.PRIMAL_INFEASIBLE, INFEASIBLE), (Status.INVALID_PARAMETER, LOST)):
        code = xp.where(status == int(kind), nothing + why, code)
    return xp.where(xp.isnan(lost), code, nothing)
