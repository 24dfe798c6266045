"""The linear-quadratic regulator against a dense solve of its optimality conditions, CVXPY and finite differences, in every framework."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

from cvxlayers.control import lqr
from cvxlayers.errors import InaccurateWarning
from tests.backends import TABLE, requested
from tests.problems import cp

every_backend = pytest.mark.parametrize("backend", requested())


def problem(n: int, m: int, stages: int, batch: tuple[int, ...], levels: str, seed: int = 0) -> list[np.ndarray]:
    """C, c, F, f, x0; ``levels`` says for each of the first four whether all share it (s), it differs by stage (t) or by row too (b)."""
    rng, s = np.random.default_rng(seed), n + m

    def lead(level: str, stages: int) -> tuple[int, ...]:
        return {"s": (), "t": (stages,), "b": (stages, *batch)}[level]

    root = rng.standard_normal((*lead(levels[0], stages), s, s))
    C = root @ np.swapaxes(root, -1, -2) / s + 0.5 * np.eye(s) + 0.1 * np.triu(rng.standard_normal(root.shape), 1)  # not symmetric
    F = 0.3 * rng.standard_normal((*lead(levels[2], stages - 1), n, s)) + np.eye(n, s)
    c, f = rng.standard_normal((*lead(levels[1], stages), s)), rng.standard_normal((*lead(levels[3], stages - 1), n))
    return [C, c, F, f, rng.standard_normal((*batch, n))]


def rows_of(values: list[np.ndarray], stages: int, batch: tuple[int, ...]) -> list[list[np.ndarray]]:
    """Each row's own C (T, s, s), c (T, s), F (T-1, n, s), f (T-1, n), x0 (n,)."""
    whole = []
    for a, rank, count in zip(values[:4], (2, 1, 2, 1), (stages, stages, stages - 1, stages - 1), strict=True):
        if a.ndim == rank + 1 and batch:
            a = a.reshape(a.shape[0], *[1] * len(batch), *a.shape[1:])
        whole.append(
            np.broadcast_to(a, (count, *batch, *a.shape[a.ndim - rank :])).reshape(count, int(np.prod(batch)), *a.shape[a.ndim - rank :])
        )
    x0 = values[4].reshape(-1, values[4].shape[-1])
    return [[*(a[:, b] for a in whole), x0[b]] for b in range(len(x0))]


def dense(C: np.ndarray, c: np.ndarray, F: np.ndarray, f: np.ndarray, x0: np.ndarray) -> tuple[np.ndarray, float]:
    """tau (T, s) and its cost from one dense system."""
    (stages, s), n = c.shape, len(x0)
    H, G, h = np.zeros((stages * s, stages * s)), np.zeros((stages * n, stages * s)), np.concatenate([x0, f.reshape(-1)])
    for t in range(stages):
        H[t * s : (t + 1) * s, t * s : (t + 1) * s] = (C[t] + C[t].T) / 2
        G[t * n : (t + 1) * n, t * s : t * s + n] = np.eye(n)
        if t:
            G[t * n : (t + 1) * n, (t - 1) * s : t * s] = -F[t - 1]
    K = np.block([[H, G.T], [G, np.zeros((stages * n, stages * n))]])
    z = np.linalg.solve(K, np.concatenate([-c.reshape(-1), h]))[: stages * s]
    return z.reshape(stages, s), float(z @ H @ z / 2 + c.reshape(-1) @ z)


def solved(*values: Any, horizon: int) -> tuple[Any, Any, Any]:
    plan = lqr(*values, horizon=horizon)
    return plan.x, plan.u, plan.cost


CASES = [
    pytest.param(3, 2, 5, (4,), "bbbb", id="everything by row"),
    pytest.param(3, 2, 5, (4,), "ssss", id="everything shared"),
    pytest.param(3, 2, 5, (4,), "tttt", id="everything by stage"),
    pytest.param(2, 2, 4, (2, 3), "sbtb", id="two batch axes"),
    pytest.param(3, 2, 4, (3,), "bsst", id="costs by row"),
    pytest.param(3, 2, 4, (3,), "tbbs", id="dynamics by row"),
    pytest.param(1, 1, 3, (1,), "bbbb", id="one of each"),
    pytest.param(2, 1, 4, (), "ttst", id="no batch"),
    pytest.param(2, 1, 1, (3,), "bbss", id="one stage"),
    pytest.param(2, 3, 6, (9,), "bbbb", id="more than a register"),
]


@every_backend
@pytest.mark.parametrize(("n", "m", "stages", "batch", "levels"), CASES)
def test_the_dense_solution_and_its_differences(backend: str, n: int, m: int, stages: int, batch: tuple[int, ...], levels: str) -> None:
    values, rng = problem(n, m, stages, batch, levels), np.random.default_rng(1)
    cotangents = [rng.standard_normal((stages, *batch, n)), rng.standard_normal((stages, *batch, m)), rng.standard_normal(batch)]
    found, gradients = TABLE[backend](lambda *a: solved(*a, horizon=stages), values, cotangents)
    expected = [dense(*row) for row in rows_of(values, stages, batch)]
    tau = np.stack([tau for tau, _ in expected], axis=1).reshape(stages, *batch, n + m)
    np.testing.assert_allclose(found[0], tau[..., :n], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found[1], tau[..., n:], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found[2], np.reshape([cost for _, cost in expected], batch), rtol=1e-10, atol=1e-10)

    def loss(values: list[np.ndarray]) -> float:
        results = [dense(*row) for row in rows_of(values, stages, batch)]
        tau = np.stack([tau for tau, _ in results], axis=1).reshape(stages, *batch, n + m)
        pairs = zip((tau[..., :n], tau[..., n:], np.reshape([cost for _, cost in results], batch)), cotangents, strict=True)
        return sum(float(np.sum(a * g)) for a, g in pairs)

    for k, gradient in enumerate(gradients):
        assert gradient.shape == values[k].shape
        direction, step = rng.standard_normal(values[k].shape), 1e-5
        ahead, behind = ([*values[:k], values[k] + sign * step * direction, *values[k + 1 :]] for sign in (1, -1))
        difference = (loss(ahead) - loss(behind)) / (2 * step)
        assert abs(np.sum(gradient * direction) - difference) <= 1e-6 * (1 + abs(difference))


@every_backend
def test_rows_do_not_know_each_other(backend: str) -> None:
    values, cotangents = problem(3, 2, 5, (11,), "bbbb"), [np.ones((5, 11, 3)), np.ones((5, 11, 2)), np.ones(11)]
    found, gradients = TABLE[backend](lambda *a: solved(*a, horizon=5), values, cotangents)
    for row in (0, 7, 10):
        pick = slice(row, row + 1)
        own = [*(a[:, pick] for a in values[:4]), values[4][pick]]
        alone, pulled = TABLE[backend](lambda *a: solved(*a, horizon=5), own, [np.ones((5, 1, 3)), np.ones((5, 1, 2)), np.ones(1)])
        for got, want in zip(
            alone + pulled[:4], [*(a[:, pick] for a in found[:2]), found[2][pick], *(g[:, pick] for g in gradients[:4])], strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@every_backend
def test_single_precision(backend: str) -> None:
    values, cotangents = problem(3, 2, 5, (4,), "bbbb"), [np.ones((5, 4, 3)), np.ones((5, 4, 2)), np.ones(4)]
    wide = sum(TABLE[backend](lambda *a: solved(*a, horizon=5), values, cotangents), [])
    short = sum(TABLE[backend](lambda *a: solved(*a, horizon=5), *([a.astype(np.float32) for a in v] for v in (values, cotangents))), [])
    assert {a.dtype for a in short} == {np.dtype(np.float32)}
    for got, want in zip(short, wide, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-4 * (1 + float(np.max(abs(want)))))


@every_backend
def test_a_row_without_minimum_is_nan_and_told(backend: str) -> None:
    values, cotangents = problem(3, 2, 12, (4,), "bbbb"), [np.ones((12, 4, 3)), np.ones((12, 4, 2)), np.ones(4)]
    values[0][:, 2] = -np.eye(5)
    with pytest.warns(InaccurateWarning, match="lqr row 2 of 4: the Hessian of the cost in the controls is not positive definite"):
        found, gradients = TABLE[backend](lambda *a: solved(*a, horizon=12), values, cotangents)
    good = [0, 1, 3]
    assert np.isnan(found[0][:, 2]).all() and np.isfinite(found[0][:, good]).all()
    assert np.isnan(found[2][2]) and np.isfinite(found[2][good]).all()
    for gradient in gradients[:4]:
        assert np.isfinite(gradient).all() and (gradient[:, 2] == 0).all() and gradient[:, good].any()


def test_against_cvxpy() -> None:
    C, c, F, f, x0 = problem(3, 2, 6, (), "tttt")
    tau = cp.Variable((6, 5))
    cost: Any = sum(cp.quad_form(tau[t], cp.psd_wrap((C[t] + C[t].T) / 2)) / 2 + c[t] @ tau[t] for t in range(6))
    constraints = [tau[0, :3] == x0, *(tau[t + 1, :3] == F[t] @ tau[t] + f[t] for t in range(5))]
    cp.Problem(cp.Minimize(cost), constraints).solve(solver="CLARABEL")
    plan = lqr(C, c, F, f, x0)
    np.testing.assert_allclose(np.concatenate([plan.x, plan.u], axis=-1), tau.value, atol=1e-6)
    np.testing.assert_allclose(plan.cost, cost.value, atol=1e-7)


def test_transforms_of_torch() -> None:
    torch = importlib.import_module("torch")
    values = [torch.tensor(v) for v in problem(2, 1, 3, (2,), "bbbb")]
    leaves = [v.clone().requires_grad_() for v in values]

    def run(*a: Any) -> Any:
        return solved(*a, horizon=3)

    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves)
    plan = run(*values)
    mapped = torch.func.vmap(run, in_dims=(1, 1, 1, 1, 0), out_dims=(1, 1, 0))(*values)
    for got, want in zip(mapped, plan, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    C, c, F, f, x0 = (torch.tensor(v) for v in problem(2, 1, 3, (4,), "sbsb"))

    def through_vmap(C: Any, F: Any) -> Any:
        return torch.func.vmap(lambda c, f, x0: run(C, c, F, f, x0)[0].sin().sum(), in_dims=(1, 1, 0))(c, f, x0).sum()

    def at_once(C: Any, F: Any) -> Any:
        return run(C, c, F, f, x0)[0].sin().sum()

    for got, want in zip(torch.func.grad(through_vmap, argnums=(0, 1))(C, F), torch.func.grad(at_once, argnums=(0, 1))(C, F), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for order in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(order(torch.func.jacrev(at_once))(C, F), torch.func.hessian(at_once)(C, F), rtol=0, atol=1e-10)


def test_transforms_of_jax() -> None:
    jax = importlib.import_module("jax")
    with jax.enable_x64(True):
        values = [jax.numpy.asarray(v) for v in problem(2, 1, 4, (3,), "bbbb")]

        def run(*a: Any) -> Any:
            return solved(*a, horizon=4)

        def loss(*a: Any) -> Any:
            return jax.numpy.sin(run(*a)[0]).sum()

        plan = jax.jit(run)(*values)
        for mapped in (jax.vmap(run, (1, 1, 1, 1, 0), (1, 1, 0)), jax.jit(jax.vmap(run, (1, 1, 1, 1, 0), (1, 1, 0)))):
            for got, want in zip(mapped(*values), plan, strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
        hessian = jax.hessian(loss, 2)(*values)
        direction = jax.random.normal(jax.random.key(0), values[2].shape)
        step = 1e-5
        ahead, behind = (jax.grad(loss, 2)(*values[:2], values[2] + sign * step * direction, *values[3:]) for sign in (1, -1))
        np.testing.assert_allclose(jax.numpy.tensordot(hessian, direction, 4), (ahead - behind) / (2 * step), rtol=0, atol=1e-6)
        forward = jax.jacfwd(loss)(*values)
        np.testing.assert_allclose(forward, jax.jit(jax.grad(loss))(*values), rtol=0, atol=1e-12)


def test_transforms_of_tensorflow() -> None:
    tf = importlib.import_module("tensorflow")
    values = [tf.constant(v) for v in problem(2, 1, 4, (3,), "bbbb")]

    def gradient(*a: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(a)
            with tf.GradientTape() as inner:
                inner.watch(a)
                loss = tf.reduce_sum(tf.sin(solved(*a, horizon=4)[0]))
            first = inner.gradient(loss, a)
            total = sum(tf.reduce_sum(tf.square(g)) for g in first)
        return first, outer.gradient(total, a)

    eager, compiled = gradient(*values), tf.function(gradient)(*values)
    for got, want in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    step, rng = 1e-5, np.random.default_rng(0)
    directions = [rng.standard_normal(v.shape) for v in values]
    ahead, behind = (
        sum(
            float(tf.reduce_sum(tf.square(g))) for g in gradient(*(v + sign * step * d for v, d in zip(values, directions, strict=True)))[0]
        )
        for sign in (1, -1)
    )
    slope = sum(float(np.sum(g.numpy() * d)) for g, d in zip(eager[1], directions, strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)


@every_backend
@pytest.mark.parametrize("levels", ["ssss", "tbtb", "bbbb"])
def test_a_batch_without_rows(backend: str, levels: str) -> None:
    """Plans without entries, and zeros of the right shapes as gradients."""
    values = problem(2, 1, 5, (3, 0), levels)
    cotangents = [np.zeros(shape) for shape in ((5, 3, 0, 2), (5, 3, 0, 1), (3, 0))]
    found, gradients = TABLE[backend](lambda *given: tuple(lqr(*given, horizon=5)), values, cotangents)
    assert [a.shape for a in found] == [g.shape for g in cotangents]
    assert [g.shape for g in gradients] == [v.shape for v in values] and not any(g.any() for g in gradients)


WRONG = [
    (dict(C=np.eye(2)), "C has shape .2, 2.; wanted .'...', 3, 3."),
    (dict(c=np.zeros((4, 2, 3))), "c has 4 stages; wanted 5, for a horizon of 5"),
    (dict(f=np.zeros((4, 3, 2))), "f has batch shape .3,.; wanted .2,."),
    (dict(x0=np.zeros((2, 3))), "x0 has shape .2, 3.; wanted .*batch, 2."),
    (dict(F=np.zeros((2, 2))), "got F of shape .2, 2. and x0"),
    (dict(f=None), "got None for f; wanted arrays: zeros"),
    (dict(c=None, f=None), "got None for c and f; wanted arrays: zeros"),
    (dict(horizon=5.0), "got horizon=5.0; wanted a positive integer"),
    (dict(horizon="5"), "got horizon='5'; wanted a positive integer"),
    (dict(horizon=0), "got horizon=0; wanted a positive integer"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_does_not_fit_is_told(change: dict[str, Any], message: str) -> None:
    given = dict(zip(("C", "c", "F", "f", "x0"), problem(2, 1, 5, (2,), "bbss"), strict=True))
    with pytest.raises(ValueError, match=message):
        lqr(**{**given, **change})


def test_a_horizon_is_needed_and_must_agree() -> None:
    values = problem(2, 1, 5, (2,), "ssss")
    with pytest.raises(ValueError, match="no array with an axis of time"):
        lqr(*values, horizon=None)
    with pytest.raises(ValueError, match="got horizon=2.5; wanted a positive integer"):
        lqr(*values, horizon=2.5)
    assert lqr(*values, horizon=np.int64(3)).u.shape == (3, 2, 1)
    with pytest.raises(ValueError, match="C has 5 stages; wanted 6"):
        lqr(*problem(2, 1, 5, (2,), "bbbb"), horizon=6)


@pytest.mark.parametrize(("n", "m", "seed", "value"), [(4, 2, 0, 1.80312), (8, 2, 1, 6.03756)])
def test_the_infinite_horizon(n: int, m: int, seed: int, value: float) -> None:
    """A long horizon finds the cost-to-go of the two systems of Agrawal, Barratt, Boyd, Stellato, "Learning convex optimization control
    policies", 2020, whose mean cost under noise of covariance I/4 is published, and the gain of the algebraic Riccati equation."""
    rng = np.random.RandomState(seed)
    A = rng.randn(n, n)
    A, B = A / abs(np.linalg.eigvals(A)).max(), rng.randn(n, m)
    plan = lqr(2 * np.eye(n + m), np.zeros(n + m), np.concatenate([A, B], axis=1), np.zeros(n), np.eye(n), horizon=400)
    assert abs(np.sum(plan.cost) / 4 - value) < 1e-5  # the trace of P / 4
    P = solve_discrete_are(A, B, np.eye(n), np.eye(m))
    np.testing.assert_allclose(plan.u[0].T, -np.linalg.solve(np.eye(m) + B.T @ P @ B, B.T @ P @ A), atol=1e-9)
