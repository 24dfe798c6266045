"""Plans that are differentiated iteration by iteration, against central differences of the same iterations, in every framework."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pytest

from cvxlayers.control import MPC
from tests.backends import TABLE, compiled, evaluated, requested
from tests.test_mpc import integrator, pendulum, starts, upright

every_backend = pytest.mark.parametrize("backend", requested())
T, ROWS = 5, 3
COTANGENTS = [np.random.default_rng(5).standard_normal(shape) for shape in ((T, ROWS, 2), (T, ROWS, 1), (ROWS,))]


def square(x: Any, u: Any, params: Any) -> Any:
    """A Hessian in the states with one eigenvalue twice."""
    return params[..., 2] * (x[..., 0] * x[..., 0] + x[..., 1] * x[..., 1]) + 0.1 * u[..., 0] * u[..., 0]


def saddle(x: Any, u: Any, params: Any) -> Any:
    """A Hessian with eigenvalues of both signs, two of them alike, and vectors that move with the parameters."""
    return square(x, u, params) - (1 + params[..., 0]) * x[..., 0] * x[..., 1] - 1.5 * params[..., 1] * x[..., 1] * u[..., 0]


CASES: dict[str, tuple[Any, Any, dict[str, Any], bool]] = {
    "ilqr": (pendulum, upright, dict(method="ilqr", backward="unroll", max_iter=2), False),
    "one step of ilqr": (pendulum, upright, dict(method="ilqr"), True),
    "one step of sqp": (pendulum, upright, dict(), True),
    "an eigenvalue twice": (pendulum, square, dict(backward="unroll", max_iter=2), False),
    "eigenvalues of both signs": (integrator, saddle, dict(backward="unroll", max_iter=2), False),
}
VALUES = [starts(ROWS), np.array([1.0, 1.1, 0.9])]


def planned(name: str, x0: Any, params: Any) -> tuple[Any, Any, Any]:
    dynamics, cost, options, once = CASES[name]
    mpc = MPC(dynamics, cost, horizon=T, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, **options)
    plan = mpc(x0, params, rti=once)
    return plan.x, plan.u, plan.cost


@functools.cache
def slopes(name: str) -> tuple[float, ...]:
    """Central differences along one direction for each argument, in PyTorch."""
    torch = importlib.import_module("torch")

    def loss(values: list[np.ndarray]) -> float:
        found = planned(name, *map(torch.tensor, values))
        return sum(float((a * torch.tensor(g)).sum()) for a, g in zip(found, COTANGENTS, strict=True))

    found, step = [], 1e-5
    for k, direction in enumerate(directions()):
        ahead, behind = ([*VALUES[:k], VALUES[k] + sign * step * direction, *VALUES[k + 1 :]] for sign in (1, -1))
        found.append((loss(ahead) - loss(behind)) / (2 * step))
    return tuple(found)


def directions() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [np.asarray(rng.standard_normal(v.shape)) for v in VALUES]


@every_backend
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::cvxlayers.errors.InaccurateWarning")
def test_iterations_have_their_derivative(backend: str, name: str) -> None:
    _, gradients = TABLE[backend](compiled(backend, functools.partial(planned, name)), VALUES, COTANGENTS)
    for gradient, direction, slope in zip(gradients, directions(), slopes(name), strict=True):
        assert slope != 0 and abs(float((gradient * direction).sum()) - slope) <= 1e-6 * abs(slope)


@every_backend
@pytest.mark.filterwarnings("ignore::cvxlayers.errors.InaccurateWarning")
def test_a_batch_of_rollouts_is_its_rows(backend: str) -> None:
    shoot = functools.partial(planned, "ilqr")
    x, u, _ = evaluated(backend, shoot, *VALUES)
    for start in (VALUES[0][:1], VALUES[0][0]):
        for whole, alone in zip((x, u), evaluated(backend, shoot, start, VALUES[1]), strict=False):
            np.testing.assert_allclose(whole[:, 0], alone.reshape(T, -1), rtol=0, atol=1e-9)
