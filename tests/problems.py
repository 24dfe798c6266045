"""One table of named problems, crossed with properties by the tests: each is a CVXPY problem, its outputs, and a sampler of values.

Samplers draw regular instances (unique solution, strict complementarity), so that derivatives exist and finite differences can see them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy
import numpy as np

cp: Any = cvxpy  # CVXPY types a comparison as perhaps a plain bool: to the type checker, tests see Any

Sampler = Callable[[np.random.Generator], list[np.ndarray]]


@dataclass(frozen=True)
class Case:
    """A problem, its parameters and outputs, and ``sample(rng)``: one value per parameter. ``solvers`` can take it."""

    problem: Any
    parameters: Sequence[Any]
    variables: Sequence[Any]
    sample: Sampler
    solvers: tuple[str, ...]
    gp: bool = False


LINEAR = ("CLARABEL", "SCS", "ECOS", "DAQP", "DIFFCP", "MOREAU", "INTERIOR")
QUADRATIC = ("CLARABEL", "SCS", "DAQP", "MOREAU", "INTERIOR")
SECOND_ORDER = ("CLARABEL", "SCS", "ECOS", "DIFFCP", "MOREAU", "INTERIOR")
MATRIX = ("CLARABEL", "SCS", "DIFFCP", "MOREAU", "INTERIOR")
EXPONENTIAL = ("CLARABEL", "SCS", "ECOS", "DIFFCP", "MOREAU", "INTERIOR")
POWER = ("CLARABEL", "SCS", "MOREAU", "INTERIOR")


def _symmetric(rng: np.random.Generator, n: int) -> np.ndarray:
    S = rng.standard_normal((n, n))
    return (S + S.T) / 2


def linear_program() -> Case:
    n = 5
    x, c, A, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((3, n)), cp.Parameter(3)
    rows = A @ x <= b
    problem = cp.Problem(cp.Minimize(c @ x), [rows, x >= -1, x <= 1])

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        return [rng.standard_normal(n), rng.standard_normal((3, n)), 0.5 * rng.random(3)]

    return Case(problem, [c, A, b], [x, rows.dual_variables[0]], sample, LINEAR)


def least_squares() -> Case:
    n, m = 5, 7
    x, F, g, lasso = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(F @ x - g) + lasso * cp.norm1(x)), [x >= -0.3])

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        return [rng.standard_normal((m, n)), rng.standard_normal(m), np.array(0.5 + rng.random())]

    return Case(problem, [F, g, lasso], [x], sample, LINEAR)


def quadratic_program() -> Case:
    """The OptNet layer of the talk: all six data are parameters, and both duals are outputs."""
    n = 6
    z, Q, p = cp.Variable(n), cp.Parameter((n, n), PSD=True), cp.Parameter(n)
    A, b, G, h = cp.Parameter((2, n)), cp.Parameter(2), cp.Parameter((4, n)), cp.Parameter(4)
    equal, below = A @ z == b, G @ z <= h
    problem = cp.Problem(cp.Minimize(cp.quad_form(z, Q) / 2 + p @ z), [equal, below])

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        root, A_v, G_v, inside = (rng.standard_normal(s) for s in ((n, n), (2, n), (4, n), n))
        return [root @ root.T + np.eye(n), rng.standard_normal(n), A_v, A_v @ inside, G_v, G_v @ inside + rng.random(4) / 2]

    return Case(problem, [Q, p, A, b, G, h], [z, equal.dual_variables[0], below.dual_variables[0]], sample, QUADRATIC)


def second_order_program() -> Case:
    n = 4
    x, F, g, c = cp.Variable(n), cp.Parameter((6, n)), cp.Parameter(6), cp.Parameter(n)
    ball = cp.SOC(cp.Constant(4.0), F @ x - g)
    problem = cp.Problem(cp.Minimize(c @ x + cp.norm(x - 1) + cp.norm(x[:2])), [ball])

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        return [rng.standard_normal((6, n)), rng.standard_normal(6), 2 * rng.standard_normal(n)]

    return Case(problem, [F, g, c], [x, ball.dual_variables[1]], sample, SECOND_ORDER)


def nearest_correlation() -> Case:
    """Order 4 with a fixed diagonal: an order at which packing by columns and by rows differ."""
    n = 4
    X, C = cp.Variable((n, n), PSD=True), cp.Parameter((n, n), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [cp.diag(X) == 1])
    return Case(problem, [C], [X], lambda rng: [1.5 * _symmetric(rng, n)], MATRIX)


def semidefinite_program() -> Case:
    """Two semidefinite blocks of orders 4 and 3, the second with a dual as output."""
    X, t = cp.Variable((4, 4), symmetric=True), cp.Variable()
    C, B = cp.Parameter((4, 4), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    block = t * np.eye(3) >> B
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X) + t + cp.square(t) + cp.sum_squares(X) / 4), [X >> 0, cp.trace(X) == 1, block])
    return Case(problem, [C, B], [X, t, block.dual_variables[0]], lambda rng: [_symmetric(rng, 4), _symmetric(rng, 3)], MATRIX)


def logistic_regression() -> Case:
    n, m = 3, 6
    w, X, decay = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.logistic(X @ w)) / m + decay * cp.sum_squares(w) - cp.sum(w) / 7))
    return Case(problem, [X, decay], [w], lambda rng: [rng.standard_normal((m, n)), np.array(0.1 + rng.random())], EXPONENTIAL)


def maximum_entropy() -> Case:
    n = 4
    p, c, limit = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(p)) + c @ p), [cp.sum(p) == 1, p[0] <= limit])
    return Case(problem, [c, limit], [p], lambda rng: [rng.standard_normal(n), np.array(0.05 + 0.05 * rng.random())], EXPONENTIAL)


def power_cones() -> Case:
    x, target, c = cp.Variable(6), cp.Parameter(6), cp.Parameter(6)
    first, second = cp.PowCone3D(x[0], x[1], x[2], 0.3), cp.PowCone3D(x[3], x[4], x[5], 0.8)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - target) + c @ x), [first, second])

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        return [np.array([1, 1, 2, 1, 1, -2]) + 0.3 * rng.standard_normal(6), 0.3 * rng.standard_normal(6)]

    return Case(problem, [target, c], [x, first.dual_variables[2]], sample, POWER)


def mixed_cones() -> Case:
    """Every cone at once: zero, nonnegative, second-order, semidefinite, exponential, power."""
    x, X, c, C = cp.Variable(4), cp.Variable((3, 3), symmetric=True), cp.Parameter(4), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(
        cp.Minimize(c @ x + cp.norm(x - 1) + cp.sum_squares(x) / 2 + cp.sum_squares(X - C) + cp.sum(cp.exp(x[:2])) - x[3]),
        [X >> 0, cp.trace(X) == 2, x[2] <= 1, x[1] >= -3, cp.PowCone3D(x[2] + 4, cp.Constant(1.0), x[3], 0.5)],
    )
    return Case(problem, [c, C], [x, X], lambda rng: [rng.standard_normal(4), 2 * _symmetric(rng, 3)], POWER)


def geometric_program() -> Case:
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    a, b, e = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    problem = cp.Problem(cp.Minimize(1 / (x * y) + a * x + y**2), [x * y**1.5 <= b, y >= 0.1 * x**e])

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        return [np.array(0.5 + rng.random()), np.array(0.2 + 0.2 * rng.random()), np.array(rng.standard_normal())]

    return Case(problem, [a, b, e], [x, y], sample, EXPONENTIAL, gp=True)


def bounded_portfolio() -> Case:
    """Parameters as bounds of a variable, a diagonal and a sparse parameter, maximization."""
    n = 5
    upper, mean = cp.Parameter(n, nonneg=True), cp.Parameter(n)
    w, bounded = cp.Variable(n), cp.Variable(n, bounds=[0, upper])  # CVXPY refuses a parameter times a variable with such bounds
    D, S = cp.Parameter((n, n), diag=True), cp.Parameter((n, n), sparsity=([0, 1, 2], [3, 4, 0]))
    problem = cp.Problem(cp.Maximize(mean @ w - cp.sum_squares(D @ w) - cp.sum_squares(S @ w)), [cp.sum(w) == 1, w == bounded])

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        sparse = np.zeros((n, n))
        sparse[[0, 1, 2], [3, 4, 0]] = rng.standard_normal(3)
        return [0.3 + 0.2 * rng.random(n), rng.standard_normal(n), np.diag(1 + rng.random(n)), sparse]

    return Case(problem, [upper, mean, D, S], [w], sample, LINEAR)


def hermitian_program() -> Case:
    """A complex Hermitian parameter and variable, and a complex vector."""
    H, v = cp.Parameter((3, 3), hermitian=True), cp.Parameter(3, complex=True)
    X, z = cp.Variable((3, 3), hermitian=True), cp.Variable(3, complex=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - H) + cp.sum_squares(z - v)), [X >> 0, cp.norm(z) <= 1])

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        S = rng.standard_normal((3, 3)) + 1j * rng.standard_normal((3, 3))
        return [S + S.conj().T, 2 * (rng.standard_normal(3) + 1j * rng.standard_normal(3))]

    return Case(problem, [H, v], [X, z], sample, MATRIX)


CASES: dict[str, Callable[[], Case]] = {
    builder.__name__: builder
    for builder in (
        linear_program,
        least_squares,
        quadratic_program,
        second_order_program,
        nearest_correlation,
        semidefinite_program,
        logistic_regression,
        maximum_entropy,
        power_cones,
        mixed_cones,
        geometric_program,
        bounded_portfolio,
        hermitian_program,
    )
}
PAIRS = [(name, solver) for name, builder in CASES.items() for solver in builder().solvers]


def inner(a: Any, b: Any) -> float:
    """The real inner product of two arrays, complex ones as pairs of reals."""
    return float(np.real(np.vdot(np.asarray(a), np.asarray(b))))
