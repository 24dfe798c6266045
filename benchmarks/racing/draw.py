"""The numbers of the workloads: random, with a known seed, feasible and with regular solutions by construction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Data = dict[str, np.ndarray]
Generator = np.random.Generator


def optnet(rng: Generator, batch: int, n: int, inequalities: int, equalities: int) -> Data:
    """OptNet's dense QP (Amos, Kolter, 2017): Q = LL' + 1e-3, b = A z, h = G z + s with random z and s > 0; R is Q's symmetric root."""
    L = rng.random((batch, n, n))
    values, vectors = np.linalg.eigh(L @ L.transpose(0, 2, 1) + 1e-3 * np.eye(n))
    R = (vectors * np.sqrt(values)[:, None]) @ vectors.transpose(0, 2, 1)
    R = (R + R.transpose(0, 2, 1)) / 2
    Q = R @ R
    p, G, A = rng.standard_normal((batch, n)), rng.standard_normal((batch, inequalities, n)), rng.standard_normal((batch, equalities, n))
    z, s = rng.standard_normal((batch, n, 1)), rng.random((batch, inequalities))
    data = {"Q": (Q + Q.transpose(0, 2, 1)) / 2, "p": p, "G": G, "h": (G @ z)[..., 0] + s, "A": A, "b": (A @ z)[..., 0], "R": R}
    return {**data, "weights": rng.standard_normal((batch, n))}


def simplex(rng: Generator, batch: int, n: int) -> Data:
    """A point to project."""
    return {"p": rng.standard_normal((batch, n)), "weights": rng.standard_normal((batch, n))}


def box(rng: Generator, batch: int, n: int, m: int) -> Data:
    """Least squares |Ax - b|^2 over -1 <= x <= 1."""
    A, b = rng.standard_normal((batch, m, n)), 5 * rng.standard_normal((batch, m))
    return {"A": A, "b": b, "weights": rng.standard_normal((batch, n))}


def factor(rng: Generator, batch: int, n: int, k: int) -> Data:
    """Expected returns mu, loadings F (n, k), standard deviations d of what the factors do not explain."""
    mu, F = 0.1 * rng.standard_normal((batch, n)), 0.3 * rng.standard_normal((batch, n, k))
    return {"mu": mu, "F": F, "d": rng.uniform(0.3, 1.0, (batch, n)), "weights": rng.standard_normal((batch, n))}


def socp(rng: Generator, batch: int, n: int, cones: int) -> Data:
    """minimize c'x with b - Ax in second-order cones of dimension 10: s and y on the boundary of each, c = -A'y, b = Ax + s."""
    A, x, z = rng.standard_normal((batch, cones, 10, n)), rng.standard_normal((batch, n)), rng.standard_normal((batch, cones, 9))
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    s = np.concatenate([length, z], axis=-1)
    y = rng.uniform(0.3, 3.0, (batch, cones, 1)) * np.concatenate([length, -z], axis=-1)
    c, b = -np.einsum("bkin,bki->bn", A, y), np.einsum("bkin,bn->bki", A, x) + s
    flat = {"A": A.reshape(batch, 10 * cones, n), "b": b.reshape(batch, 10 * cones)}
    return {**flat, "c": c, "weights": rng.standard_normal((batch, n)), "known": x}


def logistic(rng: Generator, batch: int, n: int, m: int) -> Data:
    """Points times their label of +-1; the labels are those of a random plane, one in ten flipped."""
    points, plane = rng.standard_normal((batch, m, n)), rng.standard_normal((batch, n, 1))
    Z = points * np.sign(points @ plane) * np.where(rng.random((batch, m, 1)) < 0.1, -1, 1)
    return {"Z": Z, "weights": rng.standard_normal((batch, n))}


def sdp(rng: Generator, batch: int, n: int) -> Data:
    """A symmetric matrix C near no correlation matrix."""
    C = rng.uniform(-1, 1, (batch, n, n))
    C = (C + C.transpose(0, 2, 1)) / 2
    C[:, np.arange(n), np.arange(n)] = 1.0
    return {"C": C, "weights": rng.standard_normal((batch, n, n))}


def _plant(rng: Generator, count: tuple[int, ...], n: int, m: int) -> np.ndarray:
    """[A B] with A of spectral radius one."""
    A = np.eye(n) + 0.2 * rng.standard_normal((*count, n, n))
    A /= np.abs(np.linalg.eigvals(A)).max(axis=-1)[..., None, None]
    return np.concatenate([A, 0.3 * rng.standard_normal((*count, n, m))], axis=-1)


def mpc(rng: Generator, batch: int, n_state: int, n_ctrl: int, horizon: int) -> Data:
    """Sum over t of 1/2 |r tau_t|^2 + c'tau_t, x_{t+1} = F tau_t + f, |u| <= 1; r, c, F, f are one plant's and constant in time."""
    size = n_state + n_ctrl
    r, c = rng.uniform(0.7, 1.3, (batch, size)), 0.1 * rng.standard_normal((batch, size))
    data = {"r": r, "c": c, "F": _plant(rng, (batch,), n_state, n_ctrl), "f": 0.3 * rng.standard_normal((batch, n_state))}
    return {**data, "x0": 3 * rng.standard_normal((batch, n_state)), "weights": rng.standard_normal((batch, horizon, size))}


def lqr(rng: Generator, batch: int, n_state: int, n_ctrl: int, horizon: int) -> Data:
    """Sum over t of 1/2 tau'C_t tau + c_t'tau, x_{t+1} = F_t tau_t + f_t; everything differs in time and row, time leads."""
    size = n_state + n_ctrl
    L = rng.standard_normal((horizon, batch, size, size))
    C = L @ np.swapaxes(L, -1, -2) / size + 0.1 * np.eye(size)
    c, f = rng.standard_normal((horizon, batch, size)), 0.1 * rng.standard_normal((horizon - 1, batch, n_state))
    data = {"C": C, "c": c, "F": _plant(rng, (horizon - 1, batch), n_state, n_ctrl), "f": f}
    return {**data, "x0": rng.standard_normal((batch, n_state)), "weights": rng.standard_normal((horizon, batch, size))}


def pendulum(rng: Generator, batch: int, horizon: int) -> Data:
    """Angles and speeds to start from, x0 = (cos, sin, speed), and one (gravity, mass, length) for all."""
    angle, speed = rng.uniform(-np.pi / 2, np.pi / 2, batch), rng.uniform(-1, 1, batch)
    x0 = np.stack([np.cos(angle), np.sin(angle), speed], axis=-1)
    return {"x0": x0, "theta": np.array([10.0, 1.0, 1.0]), "weights": rng.standard_normal((horizon, batch, 4))}


def lml(rng: Generator, batch: int, n: int, k: int) -> Data:
    """Scores."""
    return {"x": 3 * rng.standard_normal((batch, n)), "weights": rng.standard_normal((batch, n)), "k": np.array(k)}


def build(rng: Generator, batch: int, n: int) -> Data:
    """Nothing but the size."""
    return {"n": np.array(n)}


DRAW: dict[str, Callable[..., Data]] = {
    made.__name__: made for made in (optnet, simplex, box, factor, socp, logistic, sdp, mpc, lqr, pendulum, lml, build)
}
