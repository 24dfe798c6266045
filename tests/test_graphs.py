"""Control, top-k and implicit functions in tf.function: users' functions are converted, ours are not, steps are traced once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow

from cvxlayers.control import MPC, QuadraticCost, dcem, systems, unroll
from cvxlayers.implicit import implicit_function

tf: Any = tensorflow
X0 = np.array([[0.3, -0.2], [-0.5, 0.1]])


def _halved(x: Any) -> Any:
    """x / 8 in the words of Python, which only AutoGraph can put into a graph."""
    for _ in tf.range(3):
        x = x / 2
    return x if tf.reduce_sum(tf.zeros_like(x)) < 1 else x + np.nan


def _stepped(x: Any, u: Any, params: Any) -> Any:
    return systems.double_integrator(x, 8 * _halved(u))


def _far(x: Any) -> Any:
    return tf.reduce_sum((8 * _halved(x) - 0.3) ** 2, axis=-1)


def _planned(**options: Any) -> Callable:
    mpc = MPC(_stepped, QuadraticCost(np.eye(3)), horizon=4, n_state=2, n_ctrl=1, u_lower=-0.2, **options)
    return lambda x: mpc(x).u


CALLS = {
    "MPC": _planned(),
    "MPC, unrolled": _planned(backward="unroll", max_iter=6),
    "dcem": lambda x: dcem(_far, x, 1.0, n_sample=20, n_elite=4, n_iter=6).mean,
    "unroll": lambda x: unroll(_far, x, n_iter=6).x,
    "implicit_function": implicit_function(lambda x, u: 8 * _halved(u) - x, lambda x: _halved(x) * 8),
}


def _value_and_gradient(call: Callable) -> Callable:
    def run(x: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = call(x)
        return value, tape.gradient(value, x)

    return run


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_users_functions_are_converted(call: Callable) -> None:
    eager = _value_and_gradient(call)
    for got, want in zip(tf.function(eager)(tf.constant(X0)), eager(tf.constant(X0)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):  # as asked for, there as everywhere
        tf.function(eager, autograph=False)(tf.constant(X0))


def test_our_functions_are_not() -> None:
    files = set()

    def cost(x: Any) -> Any:
        files.update(frame.filename for frame in inspect.stack(context=0))
        return tf.reduce_sum(x**2, axis=-1)

    tf.function(lambda x: dcem(cost, x, 1.0).mean)(tf.constant(X0))
    assert any(file.endswith("dcem.py") and "cvxlayers" in file for file in files)


@pytest.mark.parametrize("name", ["MPC", "dcem", "unroll"])
def test_steps_are_traced_once(name: str) -> None:
    traced: list[int] = []

    def found(steps: int) -> Any:
        def counted(f: Callable) -> Callable:
            def called(*args: Any) -> Any:
                traced[-1] += 1
                return f(*args)

            return called

        traced.append(0)
        if name == "MPC":
            cost = QuadraticCost(np.eye(3))
            mpc = MPC(counted(systems.pendulum), cost, horizon=3, n_state=2, n_ctrl=1, u_lower=-2.0, backward="unroll", max_iter=steps)
            return lambda x: mpc(x).u
        if name == "dcem":
            return lambda x: dcem(counted(_far), x, 1.0, n_sample=20, n_elite=4, n_iter=steps).mean
        return lambda x: unroll(counted(_far), x, n_iter=steps).x

    for steps in (6, 12):
        tf.function(_value_and_gradient(found(steps)))(tf.constant(X0))
    assert traced[0] == traced[1] > 0
