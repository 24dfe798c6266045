"""The problems of the race: each as a CVXPY problem, as random data, and as smooth functions from which `reference` computes exactly.

Imported in the environments of both libraries, so it needs only numpy, cvxpy and torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

Arrays = list[np.ndarray]
Stated = tuple[cp.Problem, list[Any], list[Any]]
Model = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """One problem of the race.

    ``state()`` returns (problem, parameters, variables); ``draw(rng, batch)`` the parameters' values, (batch, *shape) each, in the same
    order; ``model(x, *values)`` for one row the objective f and vectors c and g of  minimize f  subject to  c = 0, g <= 0, all smooth;
    ``solution(*values)``, where it is known, the closed form of x for the whole batch. ``twin`` names a workload that is the same
    problem with the same data, stated in a way that the peer understands; ``goal`` is the ratio wanted; ``calls`` the calls per sample.
    """

    name: str
    title: str
    batch: int
    state: Callable[[], Stated]
    draw: Callable[[np.random.Generator, int], Arrays]
    model: Callable[..., Model]
    solution: Callable[..., Tensor] | None = None
    twin: str | None = None
    goal: float | None = None
    calls: int = 1
    seed: int = 0

    def data(self) -> Arrays:
        """The parameters' values, the same in every process."""
        return self.draw(np.random.default_rng(self.seed), self.batch)

    def weights(self) -> np.ndarray:
        """The loss is the sum of weights * x, (batch, n)."""
        return np.random.default_rng(self.seed + 1).standard_normal((self.batch, self.state()[2][0].size))


def _simplex() -> Stated:
    x, p = cp.Variable(20), cp.Parameter(20)
    constraints: list[Any] = [cp.sum(x) == 1, x >= 0]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), [p], [x]


def _simplex_data(rng: np.random.Generator, batch: int) -> Arrays:
    return [rng.standard_normal((batch, 20))]


def _simplex_model(x: Tensor, p: Tensor) -> Model:
    return ((x - p) ** 2).sum(), x.sum().reshape(1) - 1, -x


def _simplex_solution(p: Tensor) -> Tensor:
    """max(p - t, 0), with t from the largest k such that the k-th largest entry stays positive (Held, Wolfe, Crowder, 1974)."""
    largest = p.sort(dim=1, descending=True).values
    shift = (largest.cumsum(1) - 1) / torch.arange(1, p.shape[1] + 1, dtype=p.dtype)
    k = (largest > shift).sum(1, keepdim=True) - 1
    return (p - shift.gather(1, k)).clamp(min=0)


def _box() -> Stated:
    x, A, b = cp.Variable(20), cp.Parameter((30, 20)), cp.Parameter(30)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= -1, x <= 1]), [A, b], [x]


def _box_data(rng: np.random.Generator, batch: int) -> Arrays:
    return [rng.standard_normal((batch, 30, 20)), 5 * rng.standard_normal((batch, 30))]


def _box_model(x: Tensor, A: Tensor, b: Tensor) -> Model:
    return ((A @ x - b) ** 2).sum(), x.new_zeros(0), torch.cat([x - 1, -1 - x])


def _optnet(quadratic: bool) -> Stated:
    n, inequalities, equalities = 100, 100, 50
    z, p = cp.Variable(n), cp.Parameter(n)
    G, h = cp.Parameter((inequalities, n)), cp.Parameter(inequalities)
    A, b = cp.Parameter((equalities, n)), cp.Parameter(equalities)
    Q = cp.Parameter((n, n), PSD=True) if quadratic else cp.Parameter((n, n))
    curved = cp.quad_form(z, Q) if quadratic else cp.sum_squares(Q @ z)
    return cp.Problem(cp.Minimize(0.5 * curved + p @ z), [G @ z <= h, A @ z == b]), [Q, p, G, h, A, b], [z]


def _optnet_data(rng: np.random.Generator, batch: int, quadratic: bool) -> Arrays:
    """Feasible by construction: b = A z, h = G z + s with random z and s > 0. ``Q`` or its symmetric square root comes first."""
    n, inequalities, equalities = 100, 100, 50
    L = rng.random((batch, n, n))
    values, vectors = np.linalg.eigh(L @ L.transpose(0, 2, 1) + 1e-3 * np.eye(n))
    root = (vectors * np.sqrt(values)[:, None]) @ vectors.transpose(0, 2, 1)
    root = (root + root.transpose(0, 2, 1)) / 2
    Q = root @ root
    p, G, A = rng.standard_normal((batch, n)), rng.standard_normal((batch, inequalities, n)), rng.standard_normal((batch, equalities, n))
    z, s = rng.standard_normal((batch, n, 1)), rng.random((batch, inequalities))
    return [(Q + Q.transpose(0, 2, 1)) / 2 if quadratic else root, p, G, (G @ z)[..., 0] + s, A, (A @ z)[..., 0]]


def _optnet_root_model(z: Tensor, R: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Model:
    return 0.5 * ((R @ z) ** 2).sum() + p @ z, A @ z - b, G @ z - h


def _optnet_model(z: Tensor, Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Model:
    return 0.5 * z @ Q @ z + p @ z, A @ z - b, G @ z - h


def _portfolio() -> Stated:
    x, mu, L = cp.Variable(30), cp.Parameter(30), cp.Parameter((30, 30))
    constraints: list[Any] = [cp.norm(L @ x) <= 0.3, cp.sum(x) == 1, x >= 0]
    return cp.Problem(cp.Maximize(mu @ x), constraints), [mu, L], [x]


def _portfolio_data(rng: np.random.Generator, batch: int) -> Arrays:
    return [0.1 * rng.standard_normal((batch, 30)), 0.2 * rng.standard_normal((batch, 30, 30))]


def _portfolio_model(x: Tensor, mu: Tensor, L: Tensor) -> Model:
    return -mu @ x, x.sum().reshape(1) - 1, torch.cat([((L @ x) ** 2).sum().reshape(1) - 0.09, -x])


def _logistic() -> Stated:
    w, Z = cp.Variable(20), cp.Parameter((100, 20))
    return cp.Problem(cp.Minimize(cp.sum(cp.logistic(-(Z @ w))) + 0.5 * cp.sum_squares(w))), [Z], [w]


def _logistic_data(rng: np.random.Generator, batch: int) -> Arrays:
    """Points times their label of +-1; the labels are those of a random plane, one in ten flipped."""
    points, plane = rng.standard_normal((batch, 100, 20)), rng.standard_normal((batch, 20, 1))
    return [points * np.sign(points @ plane) * np.where(rng.random((batch, 100, 1)) < 0.1, -1, 1)]


def _logistic_model(w: Tensor, Z: Tensor) -> Model:
    return torch.nn.functional.softplus(-(Z @ w)).sum() + 0.5 * (w**2).sum(), w.new_zeros(0), w.new_zeros(0)


SIMPLEX = (_simplex, _simplex_data, _simplex_model, _simplex_solution)

WORKLOADS = (
    Workload("simplex", "projection on the simplex, n = 20", 512, *SIMPLEX, goal=3.0),
    Workload("simplex_one", "projection on the simplex, n = 20, one problem", 1, *SIMPLEX, calls=50),
    Workload(
        "optnet",
        "dense QP, n = 100, 100 inequalities, 50 equalities",
        32,
        lambda: _optnet(False),
        lambda rng, batch: _optnet_data(rng, batch, False),
        _optnet_root_model,
        goal=5.0,
    ),
    Workload(
        "optnet_quad_form",
        "the same dense QP, stated by quad_form",
        32,
        lambda: _optnet(True),
        lambda rng, batch: _optnet_data(rng, batch, True),
        _optnet_model,
        twin="optnet",
        goal=5.0,
    ),
    Workload("box", "box-constrained least squares, 30 x 20", 512, _box, _box_data, _box_model),
    Workload("portfolio", "portfolio under a risk limit (SOCP), n = 30", 32, _portfolio, _portfolio_data, _portfolio_model),
    Workload("logistic", "logistic regression, 100 x 20 (exponential cones)", 32, _logistic, _logistic_data, _logistic_model),
)
