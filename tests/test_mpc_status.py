"""What a controller says of its rows: infeasible, without a minimum, at a saddle; and the weights of penalties."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.linalg import null_space

from cvxlayers.backend import backend_of
from cvxlayers.control import MPC, LinearDynamics, QuadraticCost, curvature
from cvxlayers.control.conditions import Expansion
from cvxlayers.control.transcription import Layout
from cvxlayers.errors import InaccurateWarning, SolverError, Status
from tests.backends import TABLE, compiled, double, evaluated, requested, tensor
from tests.problems import cp
from tests.test_mpc import effort, integrator, pendulum, upright

every_backend = pytest.mark.parametrize("backend", requested())


@pytest.fixture
def torch() -> Any:
    return importlib.import_module("torch")


def test_no_minimum_is_not_infeasible(torch: Any) -> None:
    """Rows: convex; without bound on the controls not; over what the bound on the state allows without any point."""
    C = np.stack([np.eye(2), np.diag([-1.0, 1.0]), np.eye(2)])[None].repeat(4, 0)
    dynamics, cost = LinearDynamics(torch.tensor([[1.0, 1.0]])), QuadraticCost(torch.tensor(C))
    x0 = torch.tensor([[1.0], [0.1], [5.0]], dtype=torch.float64)
    x_upper = np.array([[9.0], [9.0], [0.0]])[None].repeat(4, 0)
    mpc = MPC(dynamics, cost, horizon=4, n_state=1, n_ctrl=1, u_lower=-1.0, u_upper=1.0, x_upper=x_upper)
    with pytest.warns(
        InaccurateWarning, match="constraints of row 2 cannot be satisfied; the cost of row 1 has no minimum: it is not convex"
    ):
        plan = mpc(x0)
    assert plan.info.converged.tolist() == plan.info.minimum.tolist() == [True, False, False]
    assert plan.info.infeasible.tolist() == [False, False, True] and plan.info.unbounded.tolist() == [False, True, False]
    strict = MPC(dynamics, cost, horizon=4, n_state=1, n_ctrl=1, x_upper=x_upper, u_lower=-1.0, u_upper=1.0, on_unconverged="raise")
    with pytest.raises(SolverError) as caught:
        strict(x0)
    assert caught.value.statuses == (Status.DUAL_INFEASIBLE, Status.PRIMAL_INFEASIBLE)


def test_a_cost_that_is_not_convex_under_dynamics_that_are_not_linear(torch: Any) -> None:
    """The quadratic programs take a convex part of it; the plan is a minimum all the same."""
    cost = QuadraticCost(torch.diag(torch.tensor([-1.0, 0.1, 0.1], dtype=torch.float64)))
    mpc = MPC(pendulum, cost, horizon=6, n_state=2, n_ctrl=1, u_lower=-1.0, u_upper=1.0)
    plan = mpc(torch.tensor([[0.3, 0.1], [-1.0, 0.5]], dtype=torch.float64), torch.tensor([1.0, 1.1, 0.9], dtype=torch.float64))
    assert plan.info.converged.all() and plan.info.minimum.all()


@every_backend
def test_a_saddle_is_told(backend: str) -> None:
    """From hanging at rest no torque at all satisfies the conditions of first order, for want of a side to prefer."""
    mpc = MPC(pendulum, upright, horizon=20, n_state=2, n_ctrl=1, u_lower=-20.0, u_upper=20.0)

    def told(x0: Any, params: Any) -> tuple[Any, ...]:
        plan = mpc(x0, params)
        xp, nothing = backend_of(x0).verbs.xp, plan.cost * 0
        return plan.u * 1.0, xp.where(plan.info.minimum, nothing + 1, nothing)

    values = [np.array([[np.pi, 0.0], [0.5, 0.0]]), np.array([1.0, 1.1, 20.0])]
    (u, same), _ = TABLE[backend](told, values, [np.zeros((20, 2, 1)), np.zeros(2)])
    np.testing.assert_allclose(u[:, 0], 0, atol=1e-6)
    assert np.asarray(same).tolist() == [0.0, 1.0]


def test_curvature_along_active_constraints(torch: Any) -> None:
    """A cost that falls away from a wall has its minimum there: strict, for the wall leaves no direction of descent."""

    def away(x: Any, u: Any, params: Any) -> Any:
        return -(x[..., 0] ** 2) + 0.05 * x[..., 1] ** 2 + 0.02 * u[..., 0] ** 2

    given: dict[str, Any] = dict(horizon=4, n_state=2, n_ctrl=1, u_lower=-30.0, u_upper=30.0)
    plan = MPC(integrator, away, **given, constraints=lambda x, u, params: x[..., :1] - 1.0, max_iter=100)(
        torch.tensor([[0.95, 0.2]], dtype=torch.float64)
    )
    assert plan.info.converged.all() and plan.info.active["constraints"].any() and plan.info.minimum.all()
    assert float(plan.x[..., 0].max()) <= 1 + 1e-8


def test_convex_programs_are_told_as_minima(torch: Any) -> None:
    plan = MPC(integrator, effort, horizon=6, n_state=2, n_ctrl=1, u_lower=-1.0, x_upper=1.5)(
        torch.tensor([[1.0, 0.3]], dtype=torch.float64)
    )
    assert plan.info.minimum.all()


def _slow(x: Any, u: Any, params: Any) -> Any:
    return -x[..., 1:] - 0.5


SOFTENED = {
    "l1 on an upper bound": (dict(soft=("l1", 5.0, "x_upper"), x_upper=[np.inf, 0.3]), lambda x: 5 * cp.sum(cp.pos(x[1:, 1] - 0.3))),
    "quadratic on both": (
        dict(soft=("quadratic", 50.0, ("x_upper", "x_lower")), x_upper=[np.inf, 0.3], x_lower=[0.2, -0.5]),
        lambda x: (
            25 * (cp.sum_squares(cp.pos(x[1:, 1] - 0.3)) + cp.sum_squares(cp.pos(-x[1:, 1] - 0.5)) + cp.sum_squares(cp.pos(0.2 - x[1:, 0])))
        ),
    ),
    "one of two bounds, and constraints": (
        dict(soft=("l1", [3.0, 4.0, 5.0], ("constraints", "x_upper")), x_upper=[np.inf, 0.3], x_lower=[-np.inf, -0.6], constraints=_slow),
        lambda x: 3 * cp.sum(cp.pos(-x[:, 1] - 0.5)) + 5 * cp.sum(cp.pos(x[1:, 1] - 0.3)),
    ),
}


SOFTENED_OF = [(backend, name) for backend in requested() for name in (list(SOFTENED) if backend == "torch" else list(SOFTENED)[-1:])]


@pytest.mark.parametrize(("backend", "name"), SOFTENED_OF)
def test_soft_bounds_on_states(backend: str, name: str) -> None:
    """Against CVXPY; hard bounds could not be satisfied from the second start, whose own violation costs nothing."""
    options, penalty = SOFTENED[name]
    mpc = MPC(integrator, effort, horizon=20, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, **options)

    def call(x0: Any) -> tuple[Any, Any, Any]:
        plan = mpc(x0)
        return plan.u, plan.cost, plan.info.converged

    x0 = np.array([[2.0, 0.0], [1.0, 1.5]])
    controls, costs, converged = evaluated(backend, call, x0)
    assert converged.all()
    for row in range(2):
        x, u = cp.Variable((20, 2)), cp.Variable(20)
        cost = cp.sum_squares(x[:, 0]) + 0.1 * cp.sum_squares(x[:, 1]) + 0.1 * cp.sum_squares(u) + penalty(x)
        constraints = [
            x[0] == x0[row],
            cp.abs(u) <= 2,
            x[1:, 0] == x[:-1, 0] + 0.1 * x[:-1, 1],
            x[1:, 1] == x[:-1, 1] + 0.1 * u[:-1],
        ]
        constraints += [x[1:, 1] >= -0.6] if "one" in name else []
        problem = cp.Problem(cp.Minimize(cost), constraints)
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(controls[:, row, 0], u.value, atol=2e-5)
        np.testing.assert_allclose(costs[row], problem.value, rtol=1e-7)


WEIGHED = {
    "soft l1": (dict(x_upper=[np.inf, 0.3]), "soft", lambda w: ("l1", w, "x_upper"), np.array([1.0, 0.05])),
    "soft quadratic": (
        dict(constraints=_slow, x_upper=[np.inf, 0.3]),
        "soft",
        lambda w: ("quadratic", w, ("constraints", "x_upper")),
        np.array(20.0),
    ),
    "slew quadratic": (dict(), "slew", lambda w: ("quadratic", w), np.array([0.5])),
    "slew bound": (dict(), "slew", lambda w: ("bound", w), np.array(0.2)),
}


@every_backend
@pytest.mark.parametrize(("name", "linear"), [*((name, False) for name in WEIGHED), ("slew quadratic", True), ("slew bound", True)])
def test_weights_have_gradients(backend: str, name: str, linear: bool) -> None:
    options, key, made, weight = WEIGHED[name]
    dynamics = LinearDynamics(np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]])) if linear else pendulum
    cost = QuadraticCost(np.diag([2.0, 0.2, 0.2])) if linear else upright
    x0, params = np.array([[0.8, 0.9], [-0.5, -1.2]]), np.array([1.0, 1.1, 0.9])

    def controlled(w: Any, params: Any) -> tuple[Any, ...]:
        x = backend_of(w).verbs.asarray(x0, w)
        given: dict[str, Any] = dict(horizon=8, n_state=2, n_ctrl=1, u_lower=-9.0, **options)
        plan = MPC(dynamics, cost, **given, **{key: made(w)})(x, params)
        return plan.x, plan.u, plan.cost + 0 * params[0]

    rng = np.random.default_rng(3)
    cotangents = [rng.standard_normal(shape) for shape in ((8, 2, 2), (8, 2, 1), (2,))]
    _, (pulled, _) = TABLE[backend](controlled, [weight, params], cotangents)
    torch = importlib.import_module("torch")
    direction, values = np.ones_like(weight) * 0.7, []
    for sign in (1, -1):
        found = controlled(torch.tensor(weight + sign * 1e-5 * direction), torch.tensor(params))
        values.append(sum(float((a * torch.tensor(g)).sum()) for a, g in zip(found, cotangents, strict=True)))
    slope = (values[0] - values[1]) / 2e-5
    assert slope != 0 and abs(float((np.asarray(pulled) * direction).sum()) - slope) <= 1e-5 * abs(slope)


WRONG = [
    (dict(soft=("l1", 1.0, "x_upper")), "soft names 'x_upper'"),
    (dict(soft=("l1", 1.0, "u_upper"), u_upper=1.0), "soft names 'u_upper'"),
    (dict(soft=("l1", -1.0, "x_upper"), x_upper=1.0), "soft is"),
    (dict(soft=("l1", 1.0, "x_upper"), x_upper=1.0, constraints=_slow), "name 'constraints', too"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_softening_is_told(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(dynamics=integrator, cost=effort, horizon=5, n_state=2, n_ctrl=1)
    with pytest.raises(ValueError, match=message):
        MPC(**{**given, **change})


def test_wrong_shapes_of_weights_are_told(torch: Any) -> None:
    with pytest.raises(ValueError, match="the weights of slew have shape .2,.; wanted a number or .1,."):
        MPC(integrator, effort, horizon=5, n_state=2, n_ctrl=1, slew=("quadratic", [1.0, 2.0]))(torch.ones(3, 2))


@pytest.mark.parametrize("slew", ["quadratic", "bound"])
def test_the_second_order_test_where_slew_ties_controls(slew: str) -> None:
    """Against the eigenvalues of the dense Hessian on the directions that dynamics and active constraints leave."""
    (T, n, m, rows), rng, verdicts = (5, 2, 2, 40), np.random.default_rng(3), []
    layout = Layout(T, n, m, 0, 0, ("u_upper",), None, slew)
    s, weight = n + m, np.array([0.5, 2.0])
    H = rng.standard_normal((T, rows, s, s))
    H = H + np.swapaxes(H, -1, -2) + 3 * np.eye(s)
    F = 0.5 * rng.standard_normal((T - 1, rows, n, s))
    y = {"u_upper": np.where(rng.uniform(size=(T, rows, m)) < 0.3, 1.0, 0.0)}
    if slew == "bound":
        tied = rng.uniform(size=(T - 1, rows, m))
        y |= {"slew_upper": np.where(tied < 0.3, 1.0, 0.0), "slew_lower": np.where(tied > 0.8, 1.0, 0.0)}
    program: Any = SimpleNamespace(layout=layout, weights={"slew": weight[None, None]}, x0=np.zeros((1, rows, n)))
    at = Expansion(None, F, np.zeros((T, rows, s)), H, None, None, None, None)
    found = curvature.minimum(program, at, y)
    for row in range(rows):
        dense, fixed = np.zeros((T * s, T * s)), [np.eye(T * s)[k] for k in range(n)]
        for t in range(T):
            dense[t * s : (t + 1) * s, t * s : (t + 1) * s] += H[t, row]
            u = np.eye(T * s)[t * s + n : (t + 1) * s]
            fixed += [u[k] for k in range(m) if y["u_upper"][t, row, k]]
            if t < T - 1:
                move = np.eye(T * s)[(t + 1) * s : (t + 1) * s + n].copy()
                move[:, t * s : (t + 1) * s] -= F[t, row]
                change = np.eye(T * s)[(t + 1) * s + n : (t + 2) * s] - u
                fixed += list(move)
                if slew == "quadratic":
                    dense += change.T @ np.diag(weight) @ change
                else:
                    fixed += [change[k] for k in range(m) if y["slew_upper"][t, row, k] + y["slew_lower"][t, row, k]]
        free = null_space(np.array(fixed))
        least = np.linalg.eigvalsh(free.T @ dense @ free).min() if free.shape[1] else 1.0
        assert abs(least) > 1e-4
        assert found[row] == (least > 0)
        verdicts.append(bool(found[row]))
    assert any(verdicts) and not all(verdicts)


@every_backend
@pytest.mark.parametrize("policy", ["warn", "nan", "zero_grad"])
@pytest.mark.parametrize("linear", [True, False])
def test_costs_of_rows_without_a_plan_reach_nobody(backend: str, linear: bool, policy: str) -> None:
    """What rows share has the derivative of the other rows' costs: as without the row whose bounds cannot be met."""
    upper, x0 = np.ones((4, 2, 2)), np.array([[0.5, 0.0], [0.3, 0.2]])
    upper[2, 1] = -2.0
    sizes = dict(horizon=4, n_state=2, n_ctrl=1, u_lower=-1.0, u_upper=1.0, x_lower=-1.0, on_unconverged=policy)

    def costs(rows: slice) -> Any:
        def call(C: Any, params: Any) -> tuple[Any]:
            verbs = backend_of(C).verbs
            if linear:
                models = LinearDynamics(np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]])), QuadraticCost(5 * params[0] * C)
            else:
                models = pendulum, lambda x, u, params: params[..., 2] * upright(x, u, params) + C[0, 0] * u[..., 0] ** 2
            plan = MPC(*models, x_upper=upper[:, rows], **sizes)(verbs.asarray(x0[rows], C), params)
            return (verbs.xp.where(plan.info.converged, plan.cost, verbs.xp.zeros_like(plan.cost)),)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InaccurateWarning)
            return TABLE[backend](compiled(backend, call), [np.eye(3), np.array([0.2, 1.1, 0.9])], [np.ones(len(x0[rows]))])

    (both, gradients), (one, wanted) = costs(slice(None)), costs(slice(1))
    np.testing.assert_allclose(both[0], [one[0][0], 0.0], rtol=0, atol=1e-9)
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)


@every_backend
@pytest.mark.parametrize("linear", [True, False])
def test_bounds_that_cross_cannot_be_met(backend: str, linear: bool) -> None:
    """And cost no iterations; those on x_0, which is given, bind nothing."""
    lower = np.zeros((4, 3, 2))
    lower[0, 0] = lower[2, 1, 1] = 2.0
    models = (LinearDynamics(np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]])) if linear else pendulum), QuadraticCost(np.eye(3))
    u_upper = np.array([1.0, 1.0, -2.0])[None, :, None].repeat(4, 0)
    sizes = dict(horizon=4, n_state=2, n_ctrl=1, u_lower=-1.0, u_upper=u_upper, x_lower=lower - 1, x_upper=0.9)
    with double(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccurateWarning)
        params = tensor(backend, np.array([0.2, 1.1, 0.9]), "float64")
        info = MPC(*models, **sizes)(tensor(backend, 0.1 * np.ones((3, 2)), "float64"), params).info
    assert np.asarray(info.infeasible).tolist() == [False, True, True]
    assert np.asarray(info.converged).tolist() == [True, False, False] and np.max(np.asarray(info.iterations)[1:]) <= 1
