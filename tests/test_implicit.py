"""Implicit functions against closed forms: values, first and second derivatives, transforms, and what they say when something is wrong."""

from __future__ import annotations

import re
import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import root

from cvxlayers.backend import NUMPY_VERBS, backend_of
from cvxlayers.errors import GradientWarning, InaccurateWarning
from cvxlayers.implicit import implicit_function
from cvxlayers.krylov import least_squares
from tests.backends import TABLE, compiled, requested, tensor

every_backend = pytest.mark.parametrize("backend", requested())
RNG = np.random.default_rng(0)
A = np.eye(3) * 2 + 0.3 * RNG.standard_normal((4, 3, 3))
B = RNG.standard_normal((4, 3))


def residual(theta: Any, u: Any) -> Any:
    """A u + u^3 - b: for these A, of one root."""
    xp = backend_of(u).verbs.xp
    return xp.matmul(theta["A"], u[..., None])[..., 0] + u * u * u - theta["b"]


def newton(theta: Any) -> Any:
    """A solver in the framework."""
    verbs = backend_of(theta["b"]).verbs
    xp = verbs.xp
    u = xp.zeros_like(theta["b"])
    for _ in range(30):
        jacobian = theta["A"] + 3 * (u * u)[..., None] * verbs.asarray(np.eye(3), u)
        u = u - xp.linalg.solve(jacobian, residual(theta, u)[..., None])[..., 0]
    return u


def scipy_root(theta: Any) -> np.ndarray:
    """A solver for NumPy arrays alone, row by row."""
    A, b = np.broadcast_to(theta["A"], (*theta["b"].shape, 3)).reshape(-1, 3, 3), theta["b"].reshape(-1, 3)
    rows = [
        root(lambda u, A=A, b=b: A @ u + u**3 - b, np.zeros(3), tol=1e-14).x for A, b in zip(A.astype(float), b.astype(float), strict=True)
    ]
    return np.array(rows).reshape(theta["b"].shape)


SOLVERS = {
    "native": implicit_function(residual, newton),
    "krylov": implicit_function(residual, newton, method="krylov"),
    "host": implicit_function(residual, scipy_root, like=lambda theta: theta["b"]),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def exact(A: np.ndarray, b: np.ndarray, dA: np.ndarray, db: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The root of one row, its first and its second derivative along (dA, db), from differentiating the equation twice."""
    u = newton({"A": A, "b": b})
    J = A + 3 * np.diag(u**2)
    du = np.linalg.solve(J, db - dA @ u)
    return u, du, np.linalg.solve(J, -2 * dA @ du - 6 * u * du**2)


@every_backend
@every_solver
def test_value_and_gradient(backend: str, solver: str) -> None:
    g = RNG.standard_normal((4, 3))
    (u,), (by_A, by_b) = TABLE[backend](lambda A, b: (SOLVERS[solver]({"A": A, "b": b}),), [A, B], [g])
    for k in range(4):
        want = exact(A[k], B[k], A[k], B[k])[0]
        np.testing.assert_allclose(u[k], want, rtol=0, atol=1e-12)
        pulled = np.linalg.solve((A[k] + 3 * np.diag(want**2)).T, g[k])
        np.testing.assert_allclose(by_b[k], pulled, rtol=0, atol=1e-11)
        np.testing.assert_allclose(by_A[k], -np.outer(pulled, want), rtol=0, atol=1e-11)


@every_backend
def test_shared_parameters_collect_and_single_precision_stays(backend: str) -> None:
    g = np.ones((4, 3), np.float32)
    (u,), (by_A, _) = TABLE[backend](
        lambda A, b: (SOLVERS["native"]({"A": A, "b": b}),), [A[0].astype(np.float32), B.astype(np.float32)], [g]
    )
    want = np.zeros((3, 3))
    for b in B:
        x = exact(A[0], b, A[0], b)[0]
        want -= np.outer(np.linalg.solve((A[0] + 3 * np.diag(x**2)).T, np.ones(3)), x)
    assert u.dtype == by_A.dtype == np.float32
    np.testing.assert_allclose(by_A, want, rtol=1e-4, atol=1e-5)


@every_solver
def test_torch(solver: str) -> None:
    torch = pytest.importorskip("torch")
    f, a, b = SOLVERS[solver], torch.tensor(A), torch.tensor(B)
    dA, db = RNG.standard_normal(A.shape), RNG.standard_normal(B.shape)
    want = [exact(*row) for row in zip(A, B, dA, db, strict=True)]

    def along(t: Any) -> Any:
        return f({"A": a + t * torch.tensor(dA), "b": b + t * torch.tensor(db)})

    zero, one = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    np.testing.assert_allclose(torch.func.jvp(along, (zero,), (one,))[1], [row[1] for row in want], rtol=0, atol=1e-11)
    for way in (torch.func.jacfwd(torch.func.jacrev(along)), torch.func.jacrev(torch.func.jacrev(along))):
        np.testing.assert_allclose(way(zero), [row[2] for row in want], rtol=0, atol=1e-10)
    mapped = torch.func.vmap(lambda A, b: f({"A": A, "b": b}), in_dims=(2, 1))(a.movedim(0, 2), b.T)
    np.testing.assert_allclose(mapped, [row[0] for row in want], rtol=0, atol=1e-12)
    gradient = torch.func.vmap(torch.func.grad(lambda b, A: f({"A": A, "b": b}).sum()), in_dims=(0, None))(b, a[0])
    for row, right in zip(gradient, B, strict=True):
        u = exact(A[0], right, A[0], right)[0]
        np.testing.assert_allclose(row, np.linalg.solve((A[0] + 3 * np.diag(u**2)).T, np.ones(3)), rtol=0, atol=1e-11)
    leaf = b.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda b: f({"A": a, "b": b}), leaf)


@every_solver
def test_jax(solver: str) -> None:
    jax = pytest.importorskip("jax")
    f = SOLVERS[solver]
    dA, db = RNG.standard_normal(A.shape), RNG.standard_normal(B.shape)
    want = [exact(*row) for row in zip(A, B, dA, db, strict=True)]
    with jax.enable_x64(True):

        def along(t: Any) -> Any:
            return f({"A": A + t * dA, "b": B + t * db})

        value, first = jax.jit(lambda t: jax.jvp(along, (t,), (1.0,)))(0.0)
        np.testing.assert_allclose(value, [row[0] for row in want], rtol=0, atol=1e-12)
        np.testing.assert_allclose(first, [row[1] for row in want], rtol=0, atol=1e-11)
        for way in (jax.jacfwd(jax.jacrev(along)), *([] if solver == "krylov" else [jax.jacrev(jax.jacrev(along))])):
            np.testing.assert_allclose(jax.jit(way)(0.0), [row[2] for row in want], rtol=0, atol=1e-10)
        mapped = jax.jit(jax.vmap(jax.grad(lambda b, A: f({"A": A, "b": b}).sum()), in_axes=(1, None)))(B.T, A[0])
        for row, right in zip(mapped, B, strict=True):
            u = exact(A[0], right, A[0], right)[0]
            np.testing.assert_allclose(row, np.linalg.solve((A[0] + 3 * np.diag(u**2)).T, np.ones(3)), rtol=0, atol=1e-11)


@every_solver
def test_tensorflow(solver: str) -> None:
    tf = pytest.importorskip("tensorflow")
    f = SOLVERS[solver]
    dA, db = RNG.standard_normal(A.shape), RNG.standard_normal(B.shape)
    want = [exact(*row) for row in zip(A, B, dA, db, strict=True)]

    def second(t: Any) -> Any:
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(t)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(t)
                u = tf.reshape(f({"A": A + t * dA, "b": B + t * db}), [-1])
            first = inner.jacobian(u, t, experimental_use_pfor=False)
        return first, outer.jacobian(first, t, experimental_use_pfor=False)

    for way in (second, tf.function(second, autograph=False)):
        first, curved = way(tf.constant(0.0, tf.float64))
        np.testing.assert_allclose(np.reshape(first, (4, 3)), [row[1] for row in want], rtol=0, atol=1e-11)
        np.testing.assert_allclose(np.reshape(curved, (4, 3)), [row[2] for row in want], rtol=0, atol=1e-10)


def test_trees_of_parameters_and_weights_by_closure() -> None:
    torch = pytest.importorskip("torch")
    Pair = namedtuple("Pair", ["a", "rest"])
    weight = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    f = implicit_function(
        lambda p, u: p.a * u + weight * u - p.rest[0] - p.rest[1]["c"], lambda p: (p.rest[0] + p.rest[1]["c"]) / (p.a + weight.detach())
    )
    a, b = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (1.0, 2.0))
    u = f(Pair(a, [b, {"c": 6.0}]))
    u.backward()
    np.testing.assert_allclose([u.item(), a.grad.item(), b.grad.item(), weight.grad.item()], [2, -0.5, 0.25, -0.5], rtol=1e-14)
    np.testing.assert_array_equal(implicit_function(lambda p, u: u - p, lambda p: p)(np.ones(2)), np.ones(2))


@every_backend
def test_a_singular_jacobian_is_told(backend: str) -> None:
    """x^2 = a at a = 0, in the second row of three."""
    f = implicit_function(lambda a, u: u * u - a, lambda a: backend_of(a).verbs.xp.sqrt(a))
    with pytest.warns(GradientWarning, match=r"row 1 of 3: the Jacobian of the residual is singular there"):
        (u,), (pulled,) = TABLE[backend](lambda a: (f(a),), [np.array([[4.0], [0.0], [9.0]])], [np.ones((3, 1))])
        _settle(backend)
    np.testing.assert_allclose(u[:, 0], [2, 0, 3], rtol=1e-15)
    np.testing.assert_allclose(pulled[:, 0], [0.25, 0, 1 / 6], rtol=1e-14)


@every_backend
def test_krylov_finds_the_pseudo_inverse_and_tells_what_it_cannot_solve(backend: str) -> None:
    """u_1 + u_2 = a_1 and u_1 + u_2 = a_2: a root where both agree, which a_1 alone cannot move."""
    f = implicit_function(
        lambda a, u: backend_of(u).verbs.xp.stack([u[..., 0] + u[..., 1] - a[..., 0], u[..., 0] + u[..., 1] - a[..., 1]], axis=-1),
        lambda a: a / 2,
        method="krylov",
    )
    values = [np.array([[1.0, 1.0], [2.0, 2.0]])]
    (u,), (pulled,) = TABLE[backend](lambda a: (f(a),), values, [np.ones((2, 2))])
    np.testing.assert_allclose(u, values[0] / 2, rtol=1e-15)
    np.testing.assert_allclose(pulled, 0.5, rtol=1e-14)  # the least-norm solution: du = (da_1 + da_2) / 4 in both
    with pytest.warns(GradientWarning, match=r"row 1 of 2: the Jacobian of the residual is singular there"):
        _, (pulled,) = TABLE[backend](lambda a: (f(a),), values, [np.array([[1.0, 1.0], [1.0, 0.0]])])
        _settle(backend)
    np.testing.assert_allclose(pulled, [[0.5, 0.5], [0.25, 0.25]], rtol=1e-14)


def scaled(values: np.ndarray, **options: Any) -> Callable:
    """u = a, as the root of Q diag(values) Q' (u - a) with a fixed rotation Q."""
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((len(values), len(values))))[0]
    matrix = Q * values @ Q.T

    def residual(a: Any, u: Any) -> Any:
        verbs = backend_of(u).verbs
        return verbs.xp.matmul(verbs.asarray(matrix, u), (u - a)[..., None])[..., 0]

    return implicit_function(residual, lambda a: 1 * a, method="krylov", **options)


@every_backend
@pytest.mark.parametrize(("power", "accuracy"), [(0, 1e-14), (5, 1e-10), (8, 1e-7)])
def test_krylov_is_as_accurate_as_the_condition_allows(backend: str, power: int, accuracy: float) -> None:
    f, a, g = scaled(np.logspace(0, -power, 50)), np.ones((2, 50)), RNG.standard_normal((2, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        warnings.simplefilter("error", InaccurateWarning)
        _, (pulled,) = TABLE[backend](compiled(backend, lambda a: (f(a),)), [a], [g])
        _settle(backend)
    np.testing.assert_allclose(pulled, g, rtol=0, atol=accuracy * float(np.linalg.norm(g)))


@every_backend
@pytest.mark.parametrize(
    ("power", "max_iter", "category", "message"),
    [
        (5, 10, InaccurateWarning, "rows 0, 1 of 2: method='krylov' has not found the derivative there within max_iter.*method='dense'"),
        (20, None, GradientWarning, "rows 0, 1 of 2: the Jacobian of the residual is singular there"),
    ],
)
def test_krylov_tells_a_limit_from_a_singular_jacobian(
    backend: str, power: int, max_iter: int | None, category: type[Warning], message: str
) -> None:
    f = scaled(np.logspace(0, -power, 50), max_iter=max_iter)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        TABLE[backend](lambda a: (f(a),), [np.ones((2, 50))], [RNG.standard_normal((2, 50))])
        _settle(backend)
    of_ours = [w for w in told if issubclass(w.category, (GradientWarning, InaccurateWarning))]
    assert {w.category for w in of_ours} == {category}
    assert all(re.search(message, str(w.message)) for w in of_ours)


@pytest.mark.parametrize("size", [1, 40, 300])
def test_krylov_finds_the_least_norm_solution_in_any_unit(size: int) -> None:
    """With none, one and more stages of kept vectors; against the decomposition."""
    rng = np.random.default_rng(size)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    values = np.where(np.arange(size) == max(size - 1, 1), 0, np.logspace(0, -3, size))
    A, b = left * values @ right.T, rng.standard_normal(size) * [[1.0], [1e-200], [0.0]]
    for unit in (1.0, 1e-100, 1e100):
        x, singular, unsolved = least_squares(NUMPY_VERBS, lambda x, A=unit * A: x @ A.T, lambda y, A=unit * A: y @ A, b, 4 * size)
        want = b[:1] @ np.linalg.pinv(A, rcond=1e-12).T
        error = np.linalg.norm(unit * x * [[1.0], [1e200], [1.0]] - want * [[1.0], [1.0], [0.0]], axis=-1)
        assert (error <= 1e-9 * np.linalg.norm(want)).all()
        assert not unsolved.any() and (size == 1 or singular.tolist() == [True, True, False])


@every_backend
def test_what_is_no_root_is_told(backend: str) -> None:
    f = implicit_function(lambda a, u: u * u - a, lambda a: a / 2)
    with pytest.warns(InaccurateWarning, match=r"rows 1, 2 of 3: solve returned no root"):
        TABLE[backend](lambda a: (f(a),), [np.array([[4.0], [1.0], [np.nan]])], [np.ones((3, 1))])
        _settle(backend)


@every_backend
def test_a_good_root_is_silent(backend: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        warnings.simplefilter("error", InaccurateWarning)
        TABLE[backend](lambda A, b: (SOLVERS["native"]({"A": A, "b": b}),), [A, B], [B])
        _settle(backend)


def _settle(backend: str) -> None:
    """Wait for what JAX calls beside the computation."""
    if backend == "jax":
        import jax

        jax.effects_barrier()


@pytest.mark.parametrize(
    ("residual", "solve", "message"),
    [
        (lambda a, u: u.sum(-1), lambda a: a, r"got a residual of shape \(4,\) for u of shape \(4, 3\); wanted equal ones"),
        (lambda a, u: u, lambda a: a[0, 0], r"got a number from solve; wanted an array \(\*batch, m\)"),
    ],
)
def test_misuse_of_the_residual(residual: Callable, solve: Callable, message: str) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=message):
        implicit_function(residual, solve)(torch.tensor(B))


@every_backend
@pytest.mark.parametrize("solve", [lambda a: np.asarray(a) ** 0.5, lambda a: [1.0]])
def test_a_solver_of_another_framework_is_told(backend: str, solve: Callable) -> None:
    with pytest.raises(ValueError, match="got a (ndarray|list) from solve for theta of another framework; wanted .* or like="):
        implicit_function(lambda a, u: u * u - a, solve)(tensor(backend, np.ones(3), "float32"))


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="got the method 'lu'; wanted 'dense' or 'krylov'"):
        implicit_function(lambda a, u: u - a, lambda a: a, method="lu")
    with pytest.raises(ValueError, match="got max_iter=0; wanted a positive integer"):
        implicit_function(lambda a, u: u - a, lambda a: a, method="krylov", max_iter=0)


def test_third_derivatives_are_refused() -> None:
    """They would be wrong: the two steps around the root are right up to second order."""
    message = "implicit_function has first and second derivatives"
    torch, jax, tf = (pytest.importorskip(name) for name in ("torch", "jax", "tensorflow"))
    root = implicit_function(lambda a, u: u * u - a, lambda a: a**0.5)

    def scalar(a: Any) -> Any:
        return root(a[None])[0]

    a = torch.tensor(4.0, dtype=torch.float64)
    assert abs(torch.func.grad(torch.func.grad(scalar))(a) + 1 / 32) < 1e-12
    with pytest.raises(ValueError, match=message):
        torch.func.grad(torch.func.grad(torch.func.grad(scalar)))(a)
    leaf, grad = a.clone().requires_grad_(), torch.autograd.grad
    (second,) = grad(grad(scalar(leaf), leaf, create_graph=True)[0], leaf, create_graph=True)
    with pytest.raises(ValueError, match=message):
        second.backward()
    with jax.enable_x64(True):
        assert abs(jax.jit(jax.jacfwd(jax.grad(scalar)))(jax.numpy.array(4.0)) + 1 / 32) < 1e-12
        for third in (jax.grad(jax.grad(jax.grad(scalar))), jax.jacfwd(jax.jacfwd(jax.grad(scalar)))):
            with pytest.raises(ValueError, match=message):
                third(jax.numpy.array(4.0))
    x = tf.constant(4.0, tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as middle:
            middle.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                u = scalar(x)
            first = inner.gradient(u, x)
        second = middle.gradient(first, x)
    assert abs(float(second) + 1 / 32) < 1e-12
    with pytest.raises(ValueError, match=message):
        outer.gradient(second, x)
