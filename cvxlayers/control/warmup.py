"""Calling every kernel of `cvxlayers.control` once, on a small problem, so that it is on disk afterwards."""

from __future__ import annotations

import numpy as np

from cvxlayers.compiled import kernels
from cvxlayers.control import riccati
from cvxlayers.control.staged import staged, system_of
from cvxlayers.control.transcription import Layout, Transcription
from cvxlayers.program import ConeProgram, Solution


def warmup() -> None:
    """Compile, if there is anything to compile with."""
    if kernels("disk") is None:
        return
    T, B, n, m = 3, 2, 2, 1
    s, bounds = n + m, ("u_lower", "u_upper")
    C, F = np.tile(np.eye(s), (T, B, 1, 1)), np.full((T - 1, B, n, s), 0.1)
    tau, f, x0, limit = np.zeros((T, B, s)), np.zeros((T - 1, B, n)), np.ones((B, n)), np.ones((T, B, m))

    solved = kernels("lqr").solve(C, tau, F, f, x0)
    kernels("lqr").pull(F, solved.convex, solved.kept, solved[:3], [True] * 5)
    factors, _ = riccati.factor(C, F, T)
    riccati.SYSTEM.solve((factors,), (C, F), (tau, np.zeros((T, B, n))))

    transcription = Transcription(Layout(T, n, m, 0, 0, bounds, None, None))
    sides = {"initial": x0[None], "dynamics": f, "u_upper": limit, "u_lower": limit}
    program = ConeProgram(*transcription.program(C, tau, F, None, None, sides))
    conic = staged(transcription, "INTERIOR", system_of(transcription)).conic
    solution, _ = conic.solve(program, (B,))
    conic.vjp(program, solution, Solution(np.ones_like(solution.x), np.zeros_like(solution.y), np.zeros_like(solution.s)))
    kernels("staged_newton").newton(C, F, tau, f, tau, x0, limit, -limit, solution.y - solution.s)
