"""Model predictive control against CVXPY, SciPy and finite differences, in every framework."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from cvxlayers.backend import backend_of
from cvxlayers.control import MPC, LinearDynamics, QuadraticCost
from cvxlayers.errors import GradientWarning, InaccurateWarning, SolverError
from tests.backends import TABLE, compiled, double, evaluated, requested, tensor
from tests.problems import cp

every_backend = pytest.mark.parametrize("backend", requested())
T = 10


def pendulum(x: Any, u: Any, params: Any) -> Any:
    """A pendulum from the upright position, pushed by u; params: gravity, strength, weight of the angle."""
    xp = backend_of(x).verbs.xp
    speed = x[..., 1] + 0.05 * (15 * params[..., 0] * xp.sin(x[..., 0]) + 3 * params[..., 1] * u[..., 0])
    return xp.stack([x[..., 0] + 0.05 * speed, speed], axis=-1)


def upright(x: Any, u: Any, params: Any) -> Any:
    xp = backend_of(x).verbs.xp
    return params[..., 2] * (1 - xp.cos(x[..., 0])) + 0.1 * x[..., 1] * x[..., 1] + 0.01 * u[..., 0] * u[..., 0]


def controlled(x0: Any, params: Any, lower: Any, upper: Any, **options: Any) -> tuple[Any, Any, Any]:
    mpc = MPC(pendulum, upright, horizon=T, n_state=2, n_ctrl=1, u_lower=lower, u_upper=upper, **options)
    plan = mpc(x0, params)
    return plan.x, plan.u, plan.cost


def starts(rows: int) -> np.ndarray:
    """On both sides of the upright position, so that both bounds are met."""
    sides = (-1.0) ** np.arange(rows)
    return (np.random.default_rng(0).normal(size=(rows, 2)) + np.array([1.0, 0.0])) * sides[:, None]


VALUES = [starts(3), np.array([1.0, 1.1, 0.9]), np.array([-2.0]), np.array(2.0)]
COTANGENTS = [np.random.default_rng(5).standard_normal(shape) for shape in ((T, 3, 2), (T, 3, 1), (3,))]


@functools.cache
def reference() -> tuple[list[np.ndarray], list[float]]:
    """The solution in PyTorch, and central differences along one direction for each argument."""
    torch = importlib.import_module("torch")

    def loss(values: list[np.ndarray]) -> float:
        found = controlled(*map(torch.tensor, values))
        return sum(float((a * torch.tensor(g)).sum()) for a, g in zip(found, COTANGENTS, strict=True))

    slopes, step = [], 1e-5
    for k, direction in enumerate(directions()):
        ahead, behind = ([*VALUES[:k], VALUES[k] + sign * step * direction, *VALUES[k + 1 :]] for sign in (1, -1))
        slopes.append((loss(ahead) - loss(behind)) / (2 * step))
    return [a.numpy() for a in controlled(*map(torch.tensor, VALUES))], slopes


def directions() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [np.asarray(rng.standard_normal(v.shape)) for v in VALUES]


@every_backend
def test_gradients_of_states_parameters_and_bounds(backend: str) -> None:
    """Some controls strongly at their bounds, others inside."""
    plan, slopes = reference()
    found, gradients = TABLE[backend](controlled, VALUES, COTANGENTS)
    low, high = (abs(plan[1] - bound) < 1e-9 for bound in (-2, 2))
    assert low.any() and high.any() and not (low | high).all()
    for got, want in zip(found, plan, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)
    for gradient, direction, slope in zip(gradients, directions(), slopes, strict=True):
        assert abs(np.sum(gradient * direction) - slope) <= 1e-5 * abs(slope)


@every_backend
def test_linear_quadratic_problems_are_one_convex_program(backend: str) -> None:
    rng, n, m, rows = np.random.default_rng(3), 3, 2, 4
    root = rng.standard_normal((T, rows, n + m, n + m))
    C = root @ np.swapaxes(root, -1, -2) + np.eye(n + m)
    c, f = 10 * rng.standard_normal((T, rows, n + m)), 0.1 * rng.standard_normal(n)
    F = np.concatenate([np.eye(n) + 0.2 * rng.standard_normal((n, n)), rng.standard_normal((n, m))], axis=1)
    upper, x0 = np.array([0.5, np.inf]), rng.standard_normal((rows, n))

    def plan(C: Any, c: Any, F: Any, f: Any, x0: Any, lower: Any) -> tuple[Any, Any, Any]:
        mpc = MPC(LinearDynamics(F, f), QuadraticCost(C, c), horizon=T, n_state=n, n_ctrl=m, u_lower=lower, u_upper=upper, x_upper=3.0)
        found = mpc(x0)
        return found.x, found.u, found.cost

    values = [C, c, F, f, x0, np.full((T, rows, m), -0.7)]
    cotangents = [rng.standard_normal((T, rows, n)), rng.standard_normal((T, rows, m)), rng.standard_normal(rows)]
    found, gradients = TABLE[backend](plan, values, cotangents)
    for row in range(rows):
        tau = cp.Variable((T, n + m))
        cost: Any = sum(cp.quad_form(tau[t], cp.psd_wrap(C[t, row])) / 2 + c[t, row] @ tau[t] for t in range(T))
        limits = [tau[0, :n] == x0[row], tau[:, n:] >= -0.7, tau[:, n] <= 0.5, tau[1:, :n] <= 3]
        moves = [tau[t + 1, :n] == F @ tau[t] + f for t in range(T - 1)]
        cp.Problem(cp.Minimize(cost), limits + moves).solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(np.concatenate([found[0], found[1]], axis=-1)[:, row], tau.value, atol=1e-6)
        np.testing.assert_allclose(found[2][row], cost.value, atol=1e-6)
    assert (abs(found[1] + 0.7) < 1e-9).any() and (abs(found[0][1:] - 3) < 1e-9).any()
    step = 1e-6
    for k, gradient in enumerate(gradients):
        direction = rng.standard_normal(values[k].shape)

        def loss(sign: int, k: int = k, direction: np.ndarray = direction) -> float:
            moved = [*values[:k], values[k] + sign * step * direction, *values[k + 1 :]]
            return sum(float(np.sum(a * g)) for a, g in zip(plan(*moved), cotangents, strict=True))

        slope = (loss(1) - loss(-1)) / (2 * step)
        assert abs(np.sum(gradient * direction) - slope) <= 1e-5 * (1 + abs(slope))


@every_backend
def test_single_precision_stops(backend: str) -> None:
    values = [v.astype(np.float32) for v in VALUES]
    found, gradients = TABLE[backend](controlled, values, [g.astype(np.float32) for g in COTANGENTS])
    assert {a.dtype for a in found + gradients} == {np.dtype(np.float32)}
    for got, want in zip(found, reference()[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-2)


@every_backend
def test_a_batch_is_its_rows(backend: str) -> None:
    x0, params, lower, upper = VALUES
    together = evaluated(backend, controlled, x0, params, lower, upper)
    for row in range(3):
        for start in (x0[row : row + 1], x0[row]):
            alone = evaluated(backend, controlled, start, params, lower, upper)
            for a, b in zip(together[:2], alone[:2], strict=True):
                np.testing.assert_allclose(a[:, row], b.reshape(a[:, row].shape), rtol=0, atol=1e-9)


@pytest.fixture
def torch() -> Any:
    return importlib.import_module("torch")


def integrator(x: Any, u: Any, params: Any) -> Any:
    xp = backend_of(x).verbs.xp
    return xp.stack([x[..., 0] + 0.1 * x[..., 1], x[..., 1] + 0.1 * u[..., 0]], axis=-1)


def effort(x: Any, u: Any, params: Any) -> Any:
    return x[..., 0] * x[..., 0] + 0.1 * x[..., 1] * x[..., 1] + 0.1 * u[..., 0] * u[..., 0]


def _slow(x: Any, u: Any, params: Any) -> Any:
    return -x[..., 1:] - 0.7


def _arrive(x: Any, params: Any) -> Any:
    xp = backend_of(x).verbs.xp
    return xp.concat([x - 0.5, -x - 0.5], axis=-1)


def _far(x: Any, params: Any) -> Any:
    return 10 * backend_of(x).verbs.xp.sum(x * x, axis=-1)


FEATURES: dict[str, tuple[dict[str, Any], Any]] = {
    "state bounds": (dict(x_lower=[-10.0, -0.8], x_upper=[np.inf, 1.6]), lambda x, u: (0, [x[1:, 1] >= -0.8, x[1:, 1] <= 1.6])),
    "path constraints": (dict(constraints=_slow), lambda x, u: (0, [-x[:, 1] <= 0.7])),
    "terminal constraints": (dict(terminal_constraints=_arrive), lambda x, u: (0, [cp.abs(x[-1]) <= 0.5])),
    "terminal cost": (dict(terminal_cost=_far), lambda x, u: (10 * cp.sum_squares(x[-1]), [])),
    "soft l1": (dict(constraints=_slow, soft=("l1", 5.0)), lambda x, u: (5 * cp.sum(cp.pos(-x[:, 1] - 0.7)), [])),
    "soft quadratic": (dict(constraints=_slow, soft=("quadratic", 50.0)), lambda x, u: (25 * cp.sum_squares(cp.pos(-x[:, 1] - 0.7)), [])),
    "slew penalty": (dict(slew=("quadratic", 0.5)), lambda x, u: (0.25 * cp.sum_squares(cp.diff(u)), [])),
    "slew bound": (dict(slew=("bound", 0.3)), lambda x, u: (0, [cp.abs(cp.diff(u)) <= 0.3])),
}


@every_backend
@pytest.mark.parametrize("name", FEATURES)
def test_every_kind_of_constraint(backend: str, name: str) -> None:
    """Started at rest away from the constraints, which a rollout would violate."""
    options, stated = FEATURES[name]
    mpc = MPC(integrator, effort, horizon=20, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, **options)

    def planned(x0: Any) -> tuple[Any, ...]:
        plan = mpc(x0)
        return plan.u, plan.cost, plan.info.converged, plan.info.kkt_residual

    x0 = np.array([[2.0, 0.0], [-0.8, 1.5]])
    controls, costs, converged, residual = evaluated(backend, planned, x0)
    assert converged.all() and (residual <= 1e-8).all()
    for row in range(2):
        x, u = cp.Variable((20, 2)), cp.Variable(20)
        penalty, constraints = stated(x, u)
        cost = cp.sum_squares(x[:, 0]) + 0.1 * cp.sum_squares(x[:, 1]) + 0.1 * cp.sum_squares(u) + penalty
        constraints += [
            x[0] == x0[row],
            cp.abs(u) <= 2,
            x[1:, 0] == x[:-1, 0] + 0.1 * x[:-1, 1],
            x[1:, 1] == x[:-1, 1] + 0.1 * u[:-1],
        ]
        problem = cp.Problem(cp.Minimize(cost), constraints)
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        assert problem.status == "optimal"
        np.testing.assert_allclose(controls[:, row, 0], u.value, atol=2e-5)
        np.testing.assert_allclose(costs[row], problem.value, rtol=1e-7)


@every_backend
def test_rows_that_no_trajectory_satisfies_are_told(backend: str) -> None:
    x0 = np.array([[0.5, 0.0], [0.5, 5.0], [-0.5, 0.1]])  # the second cannot stop before the wall
    given: dict[str, Any] = dict(horizon=20, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, x_upper=[1.0, np.inf])
    told = pytest.warns(InaccurateWarning, match="mpc row 1 of 3 did not converge.*the constraints of row 1 cannot be satisfied")
    with double(backend), told:
        plan = MPC(integrator, effort, **given)(tensor(backend, x0, "float64"))
    assert np.asarray(plan.info.converged).tolist() == [True, False, True]
    assert np.asarray(plan.info.infeasible).tolist() == [False, True, False]
    with double(backend), pytest.raises(SolverError, match="row 1 of 3") as caught:
        MPC(integrator, effort, on_unconverged="raise", **given)(tensor(backend, x0, "float64"))
    assert caught.value.rows == (1,)
    for policy, lost in (("nan", True), ("zero_grad", False)):
        mpc = MPC(integrator, effort, on_unconverged=policy, **given)
        cotangent = np.ones((20, 3, 1))
        cotangent[:, 1] *= not lost
        (u,), (gradient,) = TABLE[backend](lambda x0, mpc=mpc: (mpc(x0).u,), [x0], [cotangent])
        assert np.isnan(u[:, 1]).all() == lost and np.isfinite(u[:, [0, 2]]).all()
        assert (gradient[1] == 0).all() and gradient[0].any()


@every_backend
def test_an_unconverged_row_is_told(backend: str) -> None:
    mpc = MPC(pendulum, upright, horizon=T, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, max_iter=1)
    with double(backend), pytest.warns(InaccurateWarning, match="did not converge"):
        info = mpc(*(tensor(backend, v, "float64") for v in VALUES[:2])).info
    assert not np.asarray(info.converged).all() and (np.asarray(info.kkt_residual) > 1e-8).any()


@every_backend
def test_weakly_active_bounds_are_told(backend: str) -> None:
    """With a bound exactly where the free optimum lies, the derivative has two sides."""
    dynamics, cost = LinearDynamics(np.array([[1.0, 1.0]])), QuadraticCost(np.eye(2))
    with double(backend):
        start = tensor(backend, np.ones((1, 1)), "float64")
        free = np.asarray(MPC(dynamics, cost, horizon=4, n_state=1, n_ctrl=1)(start).u)
        limited = MPC(dynamics, cost, horizon=4, n_state=1, n_ctrl=1, u_lower=float(free.min()))
        info = limited(start).info
    assert np.asarray(info.converged).all() and not np.asarray(info.grad_ok).any()
    with pytest.warns(GradientWarning, match="kink"):
        TABLE[backend](lambda x0: (limited(x0).u,), [np.ones((1, 1))], [np.ones((4, 1, 1))])


METHODS = [(method, hessian) for method in ("sqp", "ilqr") for hessian in ("gauss_newton", "exact")]
METHODS_OF = [(name, *case) for name in requested() for case in (METHODS if name == "torch" else METHODS[1:3])]


@pytest.mark.parametrize(("backend", "method", "hessian"), METHODS_OF)
def test_every_method_finds_the_plan(backend: str, method: str, hessian: str) -> None:
    def call(*values: Any) -> tuple[Any, Any, Any]:
        return controlled(*values, method=method, hessian=hessian, max_iter=100)

    found, gradients = TABLE[backend](compiled(backend, call), VALUES, COTANGENTS)
    for got, want in zip(found, reference()[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    for gradient, direction, slope in zip(gradients, directions(), reference()[1], strict=True):
        assert abs(float((gradient * direction).sum()) - slope) <= 1e-5 * abs(slope)


@functools.cache
def away() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, parameters, and the differences of the sum of sin(x) in the parameters, without bounds that are met."""
    x0, params = VALUES[0] + [1.0, 0.0], VALUES[1]
    torch = importlib.import_module("torch")

    def loss(params: np.ndarray) -> float:
        return float(controlled(torch.tensor(x0), torch.tensor(params), -20.0, 20.0)[0].sin().sum())

    return x0, params, np.array([(loss(params + step) - loss(params - step)) / 2e-5 for step in 1e-5 * np.eye(3)])


@every_backend
def test_gauss_newton_is_not_the_derivative(backend: str) -> None:
    """Exact and unrolled derivatives agree with differences to 1e-5, that of the last convex approximation is off by more than 5 %."""
    x0, params, slope = away()

    def error(backward: str) -> float:
        def loss(params: Any) -> tuple[Any, ...]:
            xp, verbs = backend_of(params).verbs.xp, backend_of(params).verbs
            x = controlled(verbs.asarray(x0, params), params, -20.0, 20.0, backward=backward, max_iter=80)[0]
            return (xp.sum(xp.sin(x)),)

        _, (gradient,) = TABLE[backend](compiled(backend, loss), [params], [np.ones(())])
        return float(np.linalg.norm(gradient - slope) / np.linalg.norm(slope))

    assert error("exact") < 1e-5 and error("unroll") < 1e-5 and error("gauss_newton") > 0.05


def test_second_derivatives_of_a_nonlinear_plan_are_refused(torch: Any) -> None:
    """They would need more of the conditions than the quadratic program at the plan has: no number rather than a wrong one."""
    x0, params, lower, upper = map(torch.tensor, VALUES)
    x0.requires_grad_()
    plan, _, _ = controlled(x0, params, lower, upper)
    (gradient,) = torch.autograd.grad(plan.sin().sum(), x0, create_graph=True)
    with pytest.raises(ValueError, match="a nonlinear plan has first derivatives only"):
        gradient.square().sum().backward()


def test_the_weights_of_a_module_have_gradients(torch: Any) -> None:
    torch.manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x: Any, u: Any, params: Any) -> Any:
            return x + 0.1 * torch.tanh(self.layer(torch.cat([x, u], -1)))

    network = Network()
    mpc = MPC(network, effort, horizon=8, n_state=2, n_ctrl=1, u_lower=-0.5, u_upper=0.5)
    mpc(torch.tensor(starts(4))).x.sin().sum().backward()
    weight = network.layer.weight
    direction, base = torch.randn_like(weight), weight.data.clone()
    values = []
    for sign in (1, -1):
        weight.data = base + sign * 1e-5 * direction
        values.append(float(mpc(torch.tensor(starts(4))).x.sin().sum()))
    slope = (values[0] - values[1]) / 2e-5
    assert abs(float((weight.grad * direction).sum()) - slope) <= 1e-5 * abs(slope)


def quadrotor(x: Any, u: Any, params: Any) -> Any:
    xp, dt = backend_of(x).verbs.xp, 0.1
    force, torque = u[..., 0] + u[..., 1], u[..., 0] - u[..., 1]
    up = force * xp.cos(x[..., 2]) - 9.81
    moved = [x[..., 0] + dt * x[..., 3], x[..., 1] + dt * x[..., 4], x[..., 2] + dt * x[..., 5]]
    return xp.stack([*moved, x[..., 3] - dt * force * xp.sin(x[..., 2]), x[..., 4] + dt * up, x[..., 5] + dt * 3 * torque], axis=-1)


GOAL, WEIGHTS = np.array([3.0, 0, 0, 0, 0, 0]), np.array([1.0, 1, 0.1, 0.1, 0.1, 0.1])


def fly(x: Any, u: Any, params: Any) -> Any:
    verbs = backend_of(x).verbs
    away, push = x - verbs.asarray(GOAL, x), u - 9.81 / 2
    return verbs.xp.sum(verbs.asarray(WEIGHTS, x) * away * away, axis=-1) + 0.01 * verbs.xp.sum(push * push, axis=-1)


def obstacle(x: Any, u: Any, params: Any) -> Any:
    return (params * params - (x[..., 0] - 1.5) ** 2 - (x[..., 1] - 0.1) ** 2)[..., None]


@every_backend
def test_a_quadrotor_avoids_an_obstacle(backend: str) -> None:
    """Started at rest, which falls; the straight line is blocked. Against SciPy on the controls, and differences in the radius."""
    horizon = 20
    mpc = MPC(quadrotor, fly, horizon=horizon, n_state=6, n_ctrl=2, u_lower=0.0, u_upper=12.0, constraints=obstacle, max_iter=100)

    def flown(radius: Any) -> tuple[Any, ...]:
        plan = mpc(backend_of(radius).verbs.asarray(np.zeros((1, 6)), radius), radius)
        return plan.cost, plan.x[..., 1], plan.u, plan.info.converged, plan.info.active["constraints"]

    cotangents = [np.ones(1), np.ones((horizon, 1))]
    (cost, _), (gradient,) = TABLE[backend](compiled(backend, lambda radius: flown(radius)[:2]), [np.array(0.6)], cotangents)
    ahead, behind, (_, _, u, converged, active) = (evaluated(backend, flown, np.array(0.6 + step)) for step in (1e-5, -1e-5, 0))
    assert converged.all() and active.any()
    slope = sum(np.sum(a) - np.sum(b) for a, b in zip(ahead[:2], behind[:2], strict=True)) / 2e-5
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)

    def rollout(flat: np.ndarray) -> np.ndarray:
        x = [np.zeros(6)]
        for u in flat.reshape(horizon, 2)[:-1]:
            x.append(quadrotor(x[-1], u, None))
        return np.stack(x)

    found = minimize(
        lambda flat: float(fly(rollout(flat), flat.reshape(horizon, 2), None).sum()),
        u.reshape(-1) + 0.05,
        bounds=[(0, 12)] * (2 * horizon),
        constraints={"type": "ineq", "fun": lambda flat: -obstacle(rollout(flat), None, 0.6)[:, 0]},
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-12},
    )
    np.testing.assert_allclose(cost, found.fun, rtol=1e-5)


@every_backend
def test_warm_starts_and_single_steps(backend: str) -> None:
    mpc = MPC(pendulum, upright, horizon=T, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0)
    with double(backend):
        x0, params = (tensor(backend, value, "float64") for value in (starts(4), VALUES[1]))
        plan = mpc(x0, params)
        cold, warm = mpc(plan.x[1], params), mpc(plan.x[1], params, warm_start=plan)
        step = mpc(plan.x[1], params, warm_start=plan, rti=True)
    (cold_u, cold_steps), (warm_u, warm_steps), (step_u, step_steps) = (
        (np.asarray(found.u), np.asarray(found.info.iterations)) for found in (cold, warm, step)
    )
    np.testing.assert_allclose(warm_u, cold_u, rtol=0, atol=1e-6)
    assert (warm_steps <= cold_steps).all()
    assert (step_steps == 1).all() and np.abs(step_u - cold_u).max() < 0.5


def test_progress_is_told(torch: Any, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[dict] = []
    mpc = MPC(pendulum, upright, horizon=T, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, verbose=True, callback=lines.append)
    with caplog.at_level("INFO", logger="cvxlayers.control"):
        plan = mpc(torch.tensor(starts(3)), torch.tensor([1.0, 1.1, 0.9], dtype=torch.float64))
    assert len(lines) == len(caplog.records) == int(plan.info.iterations.max())
    assert lines[-1]["open_rows"] == 0 and lines[-1]["kkt_residual"] <= 1e-8


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("backend", [name for name in requested() if name in ("jax", "tensorflow")])
def test_progress_is_told_by_compiled_code(backend: str, graph: bool, caplog: pytest.LogCaptureFixture) -> None:
    framework = importlib.import_module(backend)
    lines: list[dict] = []
    mpc = MPC(pendulum, upright, horizon=5, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, verbose=True, callback=lines.append)
    compile_ = (framework.jit if backend == "jax" else framework.function) if graph else lambda f: f
    with double(backend), caplog.at_level("INFO", logger="cvxlayers.control"):
        array = framework.numpy.asarray if backend == "jax" else framework.constant
        info = compile_(lambda x0, params: mpc(x0, params).info)(array(starts(3)), array(np.array([1.0, 1.1, 0.9])))
        if backend == "jax":
            framework.effects_barrier()
    assert len(lines) == len(caplog.records) == int(np.max(info.iterations))
    assert sorted(line["iteration"] for line in lines) == list(range(1, len(lines) + 1))
    assert min(line["kkt_residual"] for line in lines) <= 1e-8


@pytest.mark.parametrize("backend", requested())
@pytest.mark.parametrize("kind", ["linear-quadratic", "unroll", "rti"])
def test_progress_is_told_of_every_plan(backend: str, kind: str) -> None:
    """Differentiated and compiled, too: a line for each iteration."""
    lines: list[dict] = []
    sizes = dict(horizon=4, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, callback=lines.append)
    if kind == "linear-quadratic":
        mpc = MPC(LinearDynamics(np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]])), QuadraticCost(np.eye(3)), **sizes)
    else:
        mpc = MPC(pendulum, upright, backward="unroll" if kind == "unroll" else "exact", max_iter=5, **sizes)
    with double(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccurateWarning)
        params = tensor(backend, np.array([1.0, 1.1, 0.9]), "float64")
        TABLE[backend](compiled(backend, lambda x0: (mpc(x0, params, rti=kind == "rti").u,)), [starts(2)], [np.ones((4, 2, 1))])
    if backend == "jax":
        importlib.import_module("jax").effects_barrier()
    told = [line["iteration"] for line in lines]
    assert sorted(told) == list(range(1, len(told) + 1))
    assert len(told) == 1 if kind != "unroll" else 1 < len(told) <= 5


def test_verbose_is_heard(torch: Any, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody has set up logging."""
    logger = logging.getLogger("cvxlayers.control")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.WARNING)
    monkeypatch.setattr(logger, "_cache", {})
    for _ in range(2):
        MPC(LinearDynamics(np.ones((1, 2))), QuadraticCost(np.eye(2)), horizon=3, n_state=1, n_ctrl=1, verbose=True)(np.ones((1, 1)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("iteration   1   open rows    0   KKT residual") for line in lines)


def test_transforms_of_torch(torch: Any) -> None:
    mpc = MPC(pendulum, upright, horizon=T, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0)
    x0, params = torch.tensor(starts(3)), torch.tensor([1.0, 1.1, 0.9], dtype=torch.float64) + 0.1 * torch.rand(3, 3, dtype=torch.float64)

    def loss(x0: Any, params: Any) -> Any:
        return mpc(x0, params).x.sin().sum()

    mapped = torch.func.vmap(torch.func.grad(loss, (0, 1)))(x0, params)
    for row in range(3):
        for got, want in zip(mapped, torch.func.grad(loss, (0, 1))(x0[row], params[row]), strict=True):
            torch.testing.assert_close(got[row], want, rtol=0, atol=1e-7)
    _, moved = torch.func.jvp(lambda p: loss(x0[0], p), (params[0],), (torch.ones(3, dtype=torch.float64),))
    torch.testing.assert_close(moved, torch.func.grad(loss, 1)(x0[0], params[0]).sum(), rtol=0, atol=1e-7)


def test_transforms_of_jax() -> None:
    jax = importlib.import_module("jax")
    with jax.enable_x64(True):
        mpc = MPC(pendulum, upright, horizon=5, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0)
        x0, params = jax.numpy.asarray(starts(2)), jax.numpy.array([1.0, 1.1, 0.9])
        plan = jax.jit(mpc)(x0, params)
        assert plan.info.converged.all()

        def loss(x0: Any, params: Any) -> Any:
            return jax.numpy.sin(mpc(x0, params).x).sum()

        together = jax.jit(jax.grad(loss, (0, 1)))(x0, params)
        apart = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))(x0, params)
        np.testing.assert_allclose(apart[0], together[0], rtol=0, atol=1e-7)
        np.testing.assert_allclose(apart[1].sum(0), together[1], rtol=0, atol=1e-7)
        _, moved = jax.jvp(lambda p: loss(x0, p), (params,), (jax.numpy.ones(3),))
        np.testing.assert_allclose(moved, together[1].sum(), rtol=0, atol=1e-7)


def test_graphs_of_tensorflow() -> None:
    tf = importlib.import_module("tensorflow")
    mpc = MPC(pendulum, upright, horizon=5, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0)
    x0, params = tf.constant(starts(2)), tf.constant([1.0, 1.1, 0.9], tf.float64)

    def gradient(params: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(params)
            loss = tf.reduce_sum(tf.sin(mpc(x0, params).x))
        return loss, tape.gradient(loss, params)

    for got, want in zip(tf.function(gradient)(params), gradient(params), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


WRONG = [
    (dict(method="newton"), "method is 'newton'; wanted one of 'auto', 'sqp', 'ilqr'"),
    (dict(soft=("l2", 1.0), constraints=_slow), "soft is"),
    (dict(soft=("l1",)), r"soft is \('l1',\); wanted \(a kind, a positive number"),
    (dict(slew=3.0), r"slew is 3.0; wanted \(a kind, a positive number"),
    (dict(soft=("l1", 1.0)), "soft says how to penalize constraints"),
    (dict(slew=("bound", -1.0)), "slew is"),
    (dict(max_iter=0), "got max_iter=0"),
    (dict(horizon=0), "got horizon, n_state, n_ctrl"),
    (dict(cost=3.0), "cost is a float"),
    (dict(horizon=5.0), "got horizon, n_state, n_ctrl = .5.0, 2, 1.; wanted positive integers"),
    (dict(max_iter="3"), "got max_iter='3' and tol=None; wanted an integer"),
    (dict(max_iter=2.5), "got max_iter=2.5"),
    (dict(tol="tight"), "and tol='tight'; wanted .* a positive number or None"),
    (dict(callback=3), "callback is a int; wanted a function"),
    (dict(constraints=1.0), "constraints is a float; wanted a function of .x, u, params., or None"),
    (dict(terminal_cost=np.eye(2)), "terminal_cost is a ndarray; wanted a function of .x, params., or None"),
    (dict(terminal_constraints=[0.0]), "terminal_constraints is a list; wanted a function of .x, params., or None"),
    (dict(slew=("bound", "little")), "slew is"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_options_are_told(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(dynamics=integrator, cost=effort, horizon=5, n_state=2, n_ctrl=1)
    with pytest.raises(ValueError, match=message):
        MPC(**{**given, **change})


def test_ilqr_knows_bounds_on_controls_only(torch: Any) -> None:
    with pytest.raises(ValueError, match="method='ilqr' knows bounds on controls only"):
        MPC(integrator, effort, horizon=5, n_state=2, n_ctrl=1, x_upper=1.0, method="ilqr")(torch.ones(3, 2))


@every_backend
@pytest.mark.parametrize("dtype", ["int32", "float16", "bfloat16"])
def test_wrong_dtypes_are_told(backend: str, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"x0 has dtype .*{dtype}.*; wanted float32 or float64"):
        MPC(integrator, effort, horizon=5, n_state=2, n_ctrl=1)(tensor(backend, np.ones((3, 2)), dtype))


@every_backend
def test_sizes_of_numpy_and_starts_that_do_not_fit(backend: str) -> None:
    sizes: dict[str, Any] = {name: np.int64(size) for name, size in (("horizon", 5), ("n_state", 2), ("n_ctrl", 1))}
    with double(backend):
        mpc = MPC(integrator, effort, max_iter=np.int64(20), **sizes)
        one, two = (tensor(backend, 0.1 * np.ones((rows, 2)), "float64") for rows in (1, 2))
        plan = mpc(two)
        assert np.asarray(plan.info.converged).all() and np.asarray(mpc(two, warm_start=plan).info.converged).all()
        for x0, longer, start, message in (
            (one, mpc, plan, r"warm_start.x has shape \(5, 2, 2\); wanted \(5, \*batch, 2\) with 1 rows, as x0 has"),
            (
                two,
                MPC(integrator, effort, horizon=6, n_state=2, n_ctrl=1),
                plan,
                r"warm_start.x has shape \(5, 2, 2\); wanted \(6, \*batch",
            ),
            (two, mpc, plan._replace(u=plan.x), r"warm_start.u has shape \(5, 2, 2\); wanted \(5, \*batch, 1\)"),
            (two, mpc, 3.0, "warm_start is a float; wanted the Plan"),
        ):
            with pytest.raises(ValueError, match=message):
                longer(x0, warm_start=start)


def test_wrong_shapes_are_told(torch: Any) -> None:
    given: dict[str, Any] = dict(horizon=5, n_state=2, n_ctrl=1)
    with pytest.raises(ValueError, match="x0 is a list; wanted an array"):
        MPC(integrator, effort, **given)([[0.0, 0.0]])
    with pytest.raises(ValueError, match="x0 has shape .3, 4.; wanted .*batch, 2."):
        MPC(integrator, effort, **given)(torch.ones(3, 4))
    with pytest.raises(ValueError, match="u_upper has shape .2,.; wanted .1,., .T, ....*T = 5"):
        MPC(integrator, effort, u_upper=[1.0, 2.0], **given)(torch.ones(3, 2))
    with pytest.raises(ValueError, match="cost returned shape"):
        MPC(integrator, lambda x, u, params: x, **given)(torch.ones(3, 2))
