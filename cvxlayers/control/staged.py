"""The cone programs of linear-quadratic problems with bounds on controls alone, solved stage by stage; others as any cone program.

A row that the stages do not solve (not strictly convex, or a cycle) goes to the solver beneath: what is told of it is that one's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np

from cvxlayers.compiled import kernels
from cvxlayers.cones import NonNegative, Zero
from cvxlayers.conic import ConicLayer
from cvxlayers.conic_map import ConicMap
from cvxlayers.control.transcription import Transcription
from cvxlayers.errors import Status
from cvxlayers.kkt import KKT
from cvxlayers.program import ConeProgram, Pattern, Solution, take
from cvxlayers.solvers import get
from cvxlayers.solvers.base import Solver

BOXED = {"initial", "dynamics", "u_upper", "u_lower"}


def staged(transcription: Transcription, solver: str, kkt: KKT | None = None) -> ConicMap:
    """The map of a transcription's programs, with the compiled stages where they apply and the named solver elsewhere."""
    pattern, places = transcription.pattern, _places(transcription)
    chosen = solver if places is None else Staged(beneath=get(solver, None, pattern)[0], places=places)
    return ConicMap(ConicLayer(pattern, chosen, kkt=kkt))


def system_of(transcription: Transcription) -> KKT:
    """The linear systems at solutions of a transcription's programs, by stages where there are bounds on controls alone."""
    places = _places(transcription)
    return KKT(transcription.pattern, None if places is None else partial(_held, places))


def _held(places: Any, kkt: KKT) -> Any:
    """K's stored numbers as `kernels.held` takes them."""
    T, n, m, rows = *places[:3], kkt.pattern.m
    at_P, diagonal, at_A, entries = kkt.places
    C = T * (n + m) ** 2
    A = C + (T - 1) * n * (n + m) + 2 * T * m
    found = np.full(kkt.nnz, A + rows, dtype=np.intp)
    found[diagonal[kkt.pattern.n :]] = A + np.arange(rows)
    inside = places.A[entries] < A - C
    found[at_A[inside]] = C + places.A[entries][inside]
    found[at_P] = places.P
    return kernels("held").Held(T, n, m, found, rows, places.upper, places.lower)


@final
@dataclass(frozen=True)
class Staged(Solver):
    """Stages first, then the solver ``beneath`` for rows that are left."""

    name = "STAGES"
    cones = frozenset({Zero, NonNegative})
    quadratic = True
    threads = 0

    beneath: Any = None
    places: Any = None

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        kernel = kernels("box")
        P, A = (np.ascontiguousarray(a[:1] if len(a) and a.strides[0] == 0 else a) for a in (program.P, program.A))
        x, y, s, report = kernel.solve(self.places, P, np.ascontiguousarray(program.q), A, np.ascontiguousarray(program.b), self.jobs)
        solved = (report[:, 0] == 1) & np.isfinite(x).all(-1) & np.isfinite(y).all(-1)
        status = np.full(len(x), int(Status.SOLVED), dtype=np.int8)
        iterations = report[:, 1].astype(np.int32)
        if not solved.all():
            rest = self.beneath.solve(pattern, take(program, ~solved), None)
            for whole, part in zip((x, y, s, status, iterations), vars(rest).values(), strict=True):
                whole[~solved] = part
        return Solution(x, y, s, status, iterations)


def _places(transcription: Transcription) -> Any:
    """Where the numbers of P and A stand in the stages, or None where there is more than bounds on controls."""
    layout, rows, pattern = transcription.layout, transcription.rows, transcription.pattern
    kernel = kernels("box")
    if kernel is None or not set(layout.groups) <= BOXED or layout.slew == "quadratic":
        return None
    T, n, m = layout.stages, layout.n, layout.m
    P_at, A_at = (a.astype(np.intp) for a in transcription.numbers)
    dynamic, spare = (T - 1) * n * (n + m), (T - 1) * n * (n + m) + 2 * T * m
    A_at = np.where(A_at >= 0, A_at, spare)
    for name, first in (("u_upper", dynamic), ("u_lower", dynamic + T * m)):
        if name in rows:
            of = (pattern.A_indices >= rows[name].start) & (pattern.A_indices < rows[name].stop)
            A_at[of] = first + pattern.A_indices[of] - rows[name].start
    starts = [rows[name].start if name in rows else -1 for name in ("u_upper", "u_lower")]
    return kernel.Places(T, n, m, P_at, A_at, *starts)
