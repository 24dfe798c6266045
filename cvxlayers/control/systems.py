"""Models to control: x_{t+1} = f(x_t, u_t, params), for states (*batch, n) and controls (*batch, m) of any framework.

Each is a plain function with default parameters in SI units, overridden by name: ``pendulum(x, u, {"damping": 0.1})``. Parameters are
numbers or arrays (*batch) of the same framework, and have gradients. Angles are in radians.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cvxlayers.backend import Verbs, backend_of, verbatim

Params = Mapping[str, Any]
ROUNDING = 1e-9  # how far beyond a limit, relative to it, a control still counts as within

PENDULUM: Params = MappingProxyType(
    {"gravity": 10.0, "mass": 1.0, "length": 1.0, "damping": 0.0, "wind": 0.0, "max_torque": 2.0, "dt": 0.05}
)
CARTPOLE: Params = MappingProxyType(
    {"gravity": 9.8, "mass_cart": 1.0, "mass_pole": 0.1, "half_length": 0.5, "force": 10.0, "max_control": 1.0, "dt": 0.05}
)
DOUBLE_INTEGRATOR: Params = MappingProxyType({"mass": 1.0, "dt": 0.1})
QUADROTOR: Params = MappingProxyType({"gravity": 9.81, "mass": 0.5, "inertia": 0.005, "arm": 0.15, "drag": 0.0, "dt": 0.02})


@verbatim
def pendulum(x: Any, u: Any, params: Params | None = None) -> Any:
    """A rod of uniform mass on a hinge: x = [angle from upright, angular velocity], u = [torque, N m].

        acceleration = 3 g / (2 l) sin(angle) + 3 / (m l^2) (torque - damping * velocity + wind * l cos(angle))

    stepped by symplectic Euler (velocity first). ``damping`` (N m s) acts on the velocity, ``wind`` is a horizontal force (N) at the tip;
    with both zero this is gymnasium's Pendulum, whose speed limit is left out. The torque is clipped to ``max_torque`` (None: not at all).

    >>> import numpy as np
    >>> pendulum(np.array([0.0, 1.0]), np.array([0.0]))
    array([0.05, 1.  ])
    """
    verbs, p, (angle, velocity), (torque,) = _parts(PENDULUM, params, x, u, 2, 1)
    xp = verbs.xp
    torque = _clipped(verbs, torque, p["max_torque"])
    inertia = p["mass"] * p["length"] * p["length"] / 3
    moment = torque - p["damping"] * velocity + p["wind"] * p["length"] * xp.cos(angle)
    velocity = velocity + p["dt"] * (1.5 * p["gravity"] / p["length"] * xp.sin(angle) + moment / inertia)
    return xp.stack([angle + p["dt"] * velocity, velocity], axis=-1)


@verbatim
def cartpole(x: Any, u: Any, params: Params | None = None) -> Any:
    """A pole on a cart: x = [position m, velocity m/s, angle from upright, angular velocity], u = [control], the force being 10 N times it.

    The equations of Barto, Sutton, Anderson, "Neuronlike adaptive elements that can solve difficult learning control problems", 1983,
    without friction, stepped by explicit Euler. ``half_length`` is from the hinge to the pole's centre; the control is clipped to
    ``max_control`` (None: not at all).

    >>> import numpy as np
    >>> cartpole(np.zeros(4), np.array([1.0])).round(3)
    array([ 0.   ,  0.488,  0.   , -0.732])
    """
    verbs, p, (position, velocity, angle, spin), (control,) = _parts(CARTPOLE, params, x, u, 4, 1)
    xp, dt = verbs.xp, p["dt"]
    sin, cos = xp.sin(angle), xp.cos(angle)
    total, moment = p["mass_cart"] + p["mass_pole"], p["mass_pole"] * p["half_length"]
    push = (p["force"] * _clipped(verbs, control, p["max_control"]) + moment * spin * spin * sin) / total
    turn = (p["gravity"] * sin - cos * push) / (p["half_length"] * (4 / 3 - p["mass_pole"] * cos * cos / total))
    shift = push - moment * turn * cos / total
    return xp.stack([position + dt * velocity, velocity + dt * shift, angle + dt * spin, spin + dt * turn], axis=-1)


@verbatim
def double_integrator(x: Any, u: Any, params: Params | None = None) -> Any:
    """A mass pushed in any number of dimensions: x = [positions m, velocities m/s], u = [forces N]; exact for forces held over dt.

    >>> import numpy as np
    >>> double_integrator(np.array([0.0, 1.0]), np.array([2.0]), {"dt": 1.0})
    array([2., 3.])
    """
    if x.shape[-1] != 2 * u.shape[-1]:
        raise ValueError(f"got states of shape {tuple(x.shape)} and controls of shape {tuple(u.shape)}; wanted two states for each control")
    size = u.shape[-1]
    verbs, p, states, forces = _parts(DOUBLE_INTEGRATOR, params, x, u, 2 * size, size)
    dt, positions, velocities = p["dt"], states[:size], states[size:]
    speeds = [v + dt * f / p["mass"] for v, f in zip(velocities, forces, strict=True)]
    places = [q + dt * (v + w) / 2 for q, v, w in zip(positions, velocities, speeds, strict=True)]
    return verbs.xp.stack(places + speeds, axis=-1)


@verbatim
def quadrotor(x: Any, u: Any, params: Params | None = None) -> Any:
    """A quadrotor in a vertical plane: x = [horizontal m, height m, tilt, and their velocities], u = [thrusts N of left and right rotor].

        m x'' = -(u_1 + u_2) sin(tilt) - drag x',  m z'' = (u_1 + u_2) cos(tilt) - m g - drag z',  inertia tilt'' = arm (u_2 - u_1)

    stepped by symplectic Euler (velocities first).

    >>> import numpy as np
    >>> quadrotor(np.zeros(6), np.full(2, 0.5 * 9.81 / 2))  # hovers
    array([0., 0., 0., 0., 0., 0.])
    """
    verbs, p, (right, up, tilt, right_speed, up_speed, spin), (first, second) = _parts(QUADROTOR, params, x, u, 6, 2)
    xp, dt, thrust = verbs.xp, p["dt"], first + second
    right_speed = right_speed + dt * (-thrust * xp.sin(tilt) - p["drag"] * right_speed) / p["mass"]
    up_speed = up_speed + dt * ((thrust * xp.cos(tilt) - p["drag"] * up_speed) / p["mass"] - p["gravity"])
    spin = spin + dt * p["arm"] * (second - first) / p["inertia"]
    return xp.stack([right + dt * right_speed, up + dt * up_speed, tilt + dt * spin, right_speed, up_speed, spin], axis=-1)


def _parts(defaults: Params, params: Params | None, x: Any, u: Any, n: int, m: int) -> tuple[Verbs, dict[str, Any], list[Any], list[Any]]:
    """The parameters with their defaults, and the entries of states and controls."""
    unknown = set(params or ()) - set(defaults)
    if unknown:
        raise ValueError(f"got the parameters {sorted(unknown)}; wanted some of {sorted(defaults)}")
    if x.shape[-1] != n or u.shape[-1] != m:
        raise ValueError(
            f"got states of shape {tuple(x.shape)} and controls of shape {tuple(u.shape)}; wanted (*batch, {n}) and (*batch, {m})"
        )
    whole = x[..., 0] * 0 + u[..., 0] * 0  # gives all entries the batch shape of both
    states, controls = [x[..., k] + whole for k in range(n)], [u[..., k] + whole for k in range(m)]
    return backend_of(x).verbs, {**defaults, **(params or {})}, states, controls


def _clipped(verbs: Verbs, u: Any, bound: Any) -> Any:
    """u between -bound and bound; at the bounds themselves, where controllers like to be, it moves with u."""
    if bound is None:
        return u
    xp, bound = verbs.xp, verbs.asarray(bound, u)
    inside = bound * (1 + ROUNDING)
    return xp.where(u > inside, bound + xp.zeros_like(u), xp.where(u < -inside, -bound + xp.zeros_like(u), u))
