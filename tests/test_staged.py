"""Box-constrained linear-quadratic programs solved stage by stage, against the solver beneath and in the face of what they cannot solve."""

from __future__ import annotations

import numpy as np
import pytest

from cvxlayers.control.staged import Staged, staged
from cvxlayers.control.transcription import Layout, Transcription
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram
from cvxlayers.solvers import get

SIZES = [(1, 1, 1), (2, 1, 1), (7, 3, 2), (20, 12, 4)]
SHAPES = [*((*sizes, "both") for sizes in SIZES), (9, 2, 3, "upper"), (9, 2, 3, "lower"), (5, 2, 1, "none")]


def drawn(T: int, n: int, m: int, sides: str, rows: int, seed: int = 0) -> tuple[Transcription, ConeProgram]:
    """Programs with bounds that are often met; some bounds are infinite."""
    rng = np.random.default_rng(seed)
    bounds = {"both": ("u_lower", "u_upper"), "upper": ("u_upper",), "lower": ("u_lower",), "none": ()}[sides]
    transcription = Transcription(Layout(T, n, m, 0, 0, bounds, None, None))
    L = rng.standard_normal((T, rows, n + m, n + m))
    H, c = L @ np.swapaxes(L, -1, -2) + 0.1 * np.eye(n + m), 3 * rng.standard_normal((T, rows, n + m))
    F = rng.standard_normal((T - 1, rows, n, n + m)) / np.sqrt(n)
    b = {"initial": rng.standard_normal((1, rows, n)), "dynamics": rng.standard_normal((T - 1, rows, n))}
    for name in bounds:
        b[name] = rng.uniform(0, 0.5, (T, rows, m))
        b[name][rng.uniform(size=b[name].shape) < 0.1] = np.inf
    if T == 1:
        b.pop("dynamics")
    P, q, A, b = transcription.program(H, c, F, None, None, b)
    wide = [np.broadcast_to(a, (rows, a.shape[-1])) for a in (P, q, A, b)]
    return transcription, ConeProgram(*map(np.ascontiguousarray, wide))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stages_agree_with_the_solver_beneath(shape: tuple[int, int, int, str]) -> None:
    transcription, program = drawn(*shape, rows=37)
    mapped = staged(transcription, "INTERIOR")
    assert isinstance(mapped.conic.solver, Staged)
    solution, info = mapped.conic.solve(program, (37,))
    want, _ = type(mapped.conic)(transcription.pattern, "INTERIOR").solve(program, (37,))
    assert (info.status == Status.SOLVED).all() and (info.iterations < 60).all()
    for name in ("x", "y", "s"):
        np.testing.assert_allclose(getattr(solution, name), getattr(want, name), rtol=0, atol=1e-9)


def test_a_batch_is_its_rows() -> None:
    """Bitwise, although the lanes of a block go on until the last of them is done."""
    transcription, program = drawn(7, 3, 2, "both", rows=13)
    conic = staged(transcription, "INTERIOR").conic
    together, _ = conic.solve(program, (13,))
    for row in range(13):
        alone, _ = conic.solve(ConeProgram(*(a[row : row + 1] for a in vars(program).values())), (1,))
        np.testing.assert_array_equal(alone.x[0], together.x[row])
        np.testing.assert_array_equal(alone.y[0], together.y[row])


def test_what_stages_cannot_solve_goes_beneath() -> None:
    """A cost without curvature in the controls has no recursion, but under bounds it has a minimum."""
    transcription, program = drawn(5, 2, 1, "both", rows=4)
    P = program.P.copy()
    P[1] = 0.0
    P[2] = -np.abs(P[2])
    finite = np.minimum(program.b, 10.0)
    conic = staged(transcription, "INTERIOR").conic
    solution, info = conic.solve(ConeProgram(P, program.q, program.A, finite), (4,))
    assert (info.status[[0, 1, 3]] == Status.SOLVED).all() and info.status[2] != Status.SOLVED
    beneath = get("INTERIOR", None, transcription.pattern)[0].solve(transcription.pattern, ConeProgram(P, program.q, program.A, finite))
    np.testing.assert_allclose(solution.x[1] @ program.q[1], beneath.x[1] @ program.q[1], rtol=1e-7)


@pytest.mark.parametrize("layout", [Layout(4, 2, 1, 0, 0, ("x_upper",), None, None), Layout(4, 2, 1, 1, 0, ("u_upper",), None, None)])
def test_other_programs_have_no_stages(layout: Layout) -> None:
    assert not isinstance(staged(Transcription(layout), "INTERIOR").conic.solver, Staged)
