"""The models: their power balance, their known motions, the same numbers and gradients in every framework."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cvxlayers.control.systems import CARTPOLE, DOUBLE_INTEGRATOR, PENDULUM, QUADROTOR, cartpole, double_integrator, pendulum, quadrotor
from tests.backends import TABLE, requested


def pendulum_energy(x: np.ndarray, p: Any) -> np.ndarray:
    """A rod of length l about its end: inertia m l^2 / 3, centre at l / 2."""
    return p["mass"] * p["length"] ** 2 / 6 * x[..., 1] ** 2 + p["mass"] * p["gravity"] * p["length"] / 2 * np.cos(x[..., 0])


def pendulum_power(x: np.ndarray, u: np.ndarray, p: Any) -> np.ndarray:
    tip_speed = p["length"] * np.cos(x[..., 0]) * x[..., 1]
    return u[..., 0] * x[..., 1] - p["damping"] * x[..., 1] ** 2 + p["wind"] * tip_speed


def cartpole_energy(x: np.ndarray, p: Any) -> np.ndarray:
    """A cart and a rod of half length l, inertia m l^2 / 3 about its centre at (position + l sin, l cos)."""
    m, half = p["mass_pole"], p["half_length"]
    across = x[..., 1] + half * np.cos(x[..., 2]) * x[..., 3]
    down = -half * np.sin(x[..., 2]) * x[..., 3]
    kinetic = p["mass_cart"] * x[..., 1] ** 2 + m * (across**2 + down**2) + m * half**2 / 3 * x[..., 3] ** 2
    return kinetic / 2 + m * p["gravity"] * half * np.cos(x[..., 2])


def quadrotor_energy(x: np.ndarray, p: Any) -> np.ndarray:
    kinetic = p["mass"] * (x[..., 3] ** 2 + x[..., 4] ** 2) + p["inertia"] * x[..., 5] ** 2
    return kinetic / 2 + p["mass"] * p["gravity"] * x[..., 1]


def quadrotor_power(x: np.ndarray, u: np.ndarray, p: Any) -> np.ndarray:
    lift = u.sum(-1) * (np.cos(x[..., 2]) * x[..., 4] - np.sin(x[..., 2]) * x[..., 3])
    return lift + p["arm"] * (u[..., 1] - u[..., 0]) * x[..., 5] - p["drag"] * (x[..., 3] ** 2 + x[..., 4] ** 2)


# model, its defaults, numbers of states and controls, energy, and the power that flows into it
SYSTEMS: dict[str, tuple[Any, ...]] = {
    "pendulum": (pendulum, PENDULUM, 2, 1, pendulum_energy, pendulum_power),
    "cartpole": (cartpole, CARTPOLE, 4, 1, cartpole_energy, lambda x, u, p: p["force"] * u[..., 0] * x[..., 1]),
    "double_integrator": (
        double_integrator,
        DOUBLE_INTEGRATOR,
        4,
        2,
        lambda x, p: p["mass"] / 2 * (x[..., 2:] ** 2).sum(-1),
        lambda x, u, p: (u * x[..., 2:]).sum(-1),
    ),
    "quadrotor": (quadrotor, QUADROTOR, 6, 2, quadrotor_energy, quadrotor_power),
}
every_system = pytest.mark.parametrize("name", SYSTEMS)
every_backend = pytest.mark.parametrize("backend", requested())


def draw(name: str, batch: tuple[int, ...] = (20,)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((*batch, SYSTEMS[name][2])), rng.uniform(-0.9, 0.9, (*batch, SYSTEMS[name][3]))


@every_system
@pytest.mark.parametrize("disturbed", [False, True])
def test_power_balance(name: str, disturbed: bool) -> None:
    """Over a short step the energy grows by the power that flows in, to first order."""
    f, defaults, _, _, energy, power = SYSTEMS[name]
    p = {**defaults, **({key: 0.3 for key in ("damping", "wind", "drag") if key in defaults} if disturbed else {})}
    p.update({key: 1.3 * p[key] for key in ("mass", "length", "mass_pole", "half_length", "inertia", "arm") if key in p})
    x, u = draw(name)
    want = power(x, u, p)
    errors = []
    for dt in (1e-4, 1e-5):
        p["dt"] = dt
        errors.append(np.max(np.abs((energy(f(x, u, p), p) - energy(x, p)) / dt - want) / (1 + np.abs(want))))
    assert errors[0] < 0.1 and errors[1] < 0.11 * errors[0]


def test_momentum_of_the_cartpole() -> None:
    """The control is the only force along the track."""
    x, u = draw("cartpole")
    p = {**CARTPOLE, "dt": 1e-7}

    def momentum(x: np.ndarray) -> np.ndarray:
        swing = p["mass_pole"] * p["half_length"] * np.cos(x[..., 2]) * x[..., 3]
        return (p["mass_cart"] + p["mass_pole"]) * x[..., 1] + swing

    np.testing.assert_allclose((momentum(cartpole(x, u, p)) - momentum(x)) / 1e-7, 10 * u[..., 0], rtol=0, atol=1e-5)


def test_a_swing_keeps_its_energy_and_damping_takes_it() -> None:
    x = np.array([2.0, 0.0])
    free, damped = [x], [x]
    for _ in range(2000):
        free.append(pendulum(free[-1], np.zeros(1), {"dt": 0.01}))
        damped.append(pendulum(damped[-1], np.zeros(1), {"dt": 0.01, "damping": 0.2}))
    energy = pendulum_energy(np.array(free), PENDULUM)
    assert np.ptp(energy[:1000]) < 0.5 and abs(energy[1000:].mean() - energy[:1000].mean()) < 0.01
    np.testing.assert_allclose(damped[-1], [math.pi, 0], atol=0.02)  # comes to rest where it hangs


def test_bounds_of_controls() -> None:
    x = np.array([0.3, 0.1])
    np.testing.assert_array_equal(pendulum(x, np.array([5.0])), pendulum(x, np.array([2.0])))
    np.testing.assert_array_equal(pendulum(x, np.array([5.0]), {"max_torque": None}), pendulum(x, np.array([5.0]), {"max_torque": 9.0}))
    x = np.array([0.3, 0.1, 0.2, 0.0])
    np.testing.assert_array_equal(cartpole(x, np.array([-3.0])), cartpole(x, np.array([-1.0])))


@every_backend
@every_system
def test_every_framework(backend: str, name: str) -> None:
    f, defaults, *_ = SYSTEMS[name]
    x, u = draw(name, (3, 2))
    scale = np.array([[1.0, 1.1], [1.2, 0.9], [0.8, 1.0]])  # a parameter per row
    key = "mass_pole" if name == "cartpole" else "mass"
    g = np.random.default_rng(1).standard_normal(x.shape)

    def call(x: Any, u: Any, scale: Any) -> tuple[Any]:
        return (f(x, u, {key: scale * defaults[key]}),)

    (found,), pulled = TABLE[backend](call, [x, u, scale], [g])
    np.testing.assert_allclose(found, call(x, u, scale)[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found[1, 1], f(x[1, 1], u[1, 1], {key: 0.9 * defaults[key]}), rtol=0, atol=1e-13)
    for k, got in enumerate(pulled):
        arrays = [x, u, scale]
        want = np.zeros_like(got)
        for index in np.ndindex(*got.shape):
            sides = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[k][index] += sign * 1e-6
                sides.append((g * call(*moved)[0]).sum())
            want[index] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7 * (1 + np.abs(want).max()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pendulum(np.zeros(2), np.zeros(1), {"masses": 1}), r"got the parameters \['masses'\]; wanted some of \['damping'"),
        (lambda: pendulum(np.zeros(3), np.zeros(1)), r"got states of shape \(3,\) and controls of shape \(1,\); wanted \(\*batch, 2\) and"),
        (lambda: double_integrator(np.zeros(3), np.zeros(1)), "wanted two states for each control"),
    ],
)
def test_misuse(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
