"""Box-constrained linear-quadratic programs solved stage by stage, against the solver beneath and in the face of what they cannot solve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cvxlayers.cones import Derivative
from cvxlayers.control import MPC, LinearDynamics, QuadraticCost, mpc
from cvxlayers.control.staged import Staged, staged, system_of
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


@pytest.mark.parametrize("shape", SHAPES)
def test_systems_at_solutions_against_dense_algebra(shape: tuple[int, int, int, str]) -> None:
    """Some controls held at bounds; a row whose Hessian curves downward on what is free is left to others, and disturbs no other row."""
    transcription, program = drawn(*shape, rows=13)
    kkt, rng = system_of(transcription), np.random.default_rng(1)
    P = program.P.copy()
    P[4] = -P[4]
    active = np.ones((13, transcription.pattern.m))
    for name in ("u_upper", "u_lower"):
        if name in transcription.rows:
            rows = transcription.rows[name]
            free = np.isinf(program.b[:, rows]) | (rng.uniform(size=(13, rows.stop - rows.start)) < 0.6)
            active[:, rows] = np.where(free | (name == "u_lower") & (shape[3] == "both"), 0.0, 1.0)
    values = kkt.assemble(ConeProgram(P, program.q, program.A, program.b), Derivative(active))
    rhs = rng.standard_normal((13, kkt.size))
    dense = np.zeros((13, kkt.size, kkt.size))
    columns = np.repeat(np.arange(kkt.size), np.diff(kkt.indptr))
    dense[:, kkt.indices, columns] = dense[:, columns, kkt.indices] = values
    want = np.linalg.solve(dense, rhs[..., None])[..., 0]
    special: Any = kkt._special
    z, figures = special.solve(values, rhs)
    convex = np.arange(13) != 4
    assert figures[4, 0] == np.inf or np.allclose(z[4], want[4])  # where all that is free is held there is nothing to curve
    np.testing.assert_allclose(figures[convex, 0], 0, atol=1e-12)
    np.testing.assert_allclose(z[convex], want[convex], rtol=0, atol=1e-9 * (1 + np.abs(want[convex]).max()))
    np.testing.assert_allclose(kkt.solve(values, rhs).z, want, rtol=0, atol=1e-8 * (1 + np.abs(want).max()))
    for row in range(13):
        np.testing.assert_array_equal(special.solve(values[row : row + 1], rhs[row : row + 1])[0][0], z[row])


def test_direct_steps_are_those_of_the_cone_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x0 = torch.tensor(rng.uniform(-1, 1, (11, 2)) * [3.0, 1.0])

    def plan() -> tuple[list[np.ndarray], list[int]]:
        theta = torch.tensor([10.0, 1.0, 1.0, 0.05, 0.0], dtype=torch.float64).requires_grad_()
        found = controller(x0, theta)
        assert found.info.converged.all()
        (found.u.sin().sum() + found.x.square().sum()).backward()
        return [found.x.detach().numpy(), found.u.detach().numpy(), theta.grad.numpy()], found.info.iterations.tolist()

    def dynamics(x, u, theta):
        speed = x[..., 1] + 0.05 * (1.5 * theta[0] / theta[2] * torch.sin(x[..., 0]) + 3 / theta[1] * u[..., 0] - theta[3] * x[..., 1])
        return torch.stack([x[..., 0] + 0.05 * speed, speed], dim=-1)

    def cost(x, u, theta):
        return 1 - torch.cos(x[..., 0]) + 0.05 * x[..., 1] ** 2 + 0.005 * u[..., 0] ** 2

    controller = MPC(dynamics, cost, horizon=12, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0)
    direct, steps = plan()
    made = mpc._maps
    monkeypatch.setattr(mpc, "_maps", lambda *key: made(*key)._replace(direct=None))
    by_programs, others = plan()
    assert steps == others
    for got, want in zip(direct, by_programs, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7 * (1 + np.abs(want).max()))


def test_what_is_repeated_over_stages_counts_as_shared() -> None:
    """The plan and the gradients of repeated matrices are those of copies."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    C, F = torch.tensor(rng.uniform(0.5, 1.5, (5, 3))), torch.tensor(0.4 * rng.standard_normal((5, 2, 3)))
    x0, found = torch.tensor(2 * rng.standard_normal((5, 2))), []
    for copied in (False, True):
        C_own, F_own = C.clone().requires_grad_(), F.clone().requires_grad_()
        C_wide, F_wide = torch.diag_embed(C_own).expand(6, 5, 3, 3), F_own.expand(5, 5, 2, 3)
        if copied:
            C_wide, F_wide = C_wide.contiguous(), F_wide.contiguous()
        plan = MPC(LinearDynamics(F_wide), QuadraticCost(C_wide), horizon=6, n_state=2, n_ctrl=1, u_lower=-0.3)(x0)
        (plan.x.sin().sum() + plan.cost.sum()).backward()
        found.append([plan.x.detach(), plan.u.detach(), plan.cost.detach(), C_own.grad, F_own.grad])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
