"""DCEM against the cross-entropy method written out, its gradient against differences, and the unrolled descent against its closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cvxlayers.backend import BACKENDS, backend_of
from cvxlayers.control import dcem, unroll
from tests.backends import TABLE, adapter, requested

every_backend = pytest.mark.parametrize("backend", requested())
TARGET = np.array([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.0]])
MEAN, SCALE = np.zeros((3, 2)), np.full((3, 2), 0.8)
OPTIONS: dict[str, Any] = {"n_sample": 20, "n_elite": 4, "n_iter": 3}


def wavy(x: Any, target: Any) -> Any:
    """A cost with many minima, in any framework."""
    xp = backend_of(x).verbs.xp
    away = x - target[..., None, :]
    return xp.sum(away * away + 0.3 * xp.sin(5 * x), axis=-1)


def search(**options: Any) -> Callable[..., tuple[Any, ...]]:
    def run(mean: Any, scale: Any, target: Any) -> tuple[Any, ...]:
        found = dcem(lambda x: wavy(x, target), mean, scale, **{**OPTIONS, **options})
        return found.mean, found.scale, found.best

    return run


def plain_cem(noise: np.ndarray, lower: float, upper: float, n_elite: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cross-entropy method for one row, as it is described: the elite's mean and standard deviation."""
    mean, scale, best = MEAN[0], SCALE[0], None
    for draws in noise:
        x = np.clip(mean + scale * draws, lower, upper)
        costs = wavy(x, TARGET[0])
        order = np.argsort(costs)
        if best is None or costs[order[0]] < best[0]:
            best = costs[order[0]], x[order[0]]
        elite = x[order[:n_elite]]
        mean, scale = elite.mean(0), elite.std(0)
    assert best is not None
    return mean, scale, best[1]


@every_backend
@pytest.mark.parametrize("temperature", [0, 1e-7])
@pytest.mark.parametrize("bound", [0.35, 10.0])
def test_zero_temperature_is_the_cross_entropy_method(backend: str, temperature: float, bound: float) -> None:
    adapter(backend)
    run = search(temperature=temperature, lower=-bound, upper=bound, n_iter=6)
    values, _ = TABLE[backend](run, [MEAN[:1], SCALE[:1], TARGET[:1]], [np.ones((1, 2))] * 3)
    noise: list[np.ndarray] = []

    def draw(x: Any) -> tuple[Any]:
        noise.append(backend_of(x).host(BACKENDS[backend].verbs.normal(0, (6, 1, 20, 2), x)))
        return (x,)

    TABLE[backend](lambda x: draw(BACKENDS[backend].verbs.stop(x)) and (x,), [MEAN[:1]], [MEAN[:1]])
    for got, want in zip(values, plain_cem(noise[0][:, 0], -bound, bound, 4), strict=True):
        np.testing.assert_allclose(got[0], want, rtol=0, atol=1e-6 if temperature else 1e-13)


@every_backend
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.3}, {"normalize": False}, {"n_elite": 1}, {"lower": -0.4, "upper": 0.4}], ids=str
)
def test_gradient(backend: str, options: dict[str, Any]) -> None:
    """Along one direction that moves everything, for JAX compiles every call anew."""
    run, rng = search(**options), np.random.default_rng(0)
    values, cotangents, directions = [MEAN, SCALE, TARGET], *([rng.standard_normal((3, 2)) for _ in range(3)] for _ in range(2))
    _, pulled = TABLE[backend](run, values, cotangents)
    sides = []
    for step in (1e-6, -1e-6):
        outputs, _ = TABLE[backend](run, [v + step * d for v, d in zip(values, directions, strict=True)], cotangents)
        sides.append(sum((g * o).sum() for g, o in zip(cotangents, outputs, strict=True)))
    got = sum((g * d).sum() for g, d in zip(pulled, directions, strict=True))
    np.testing.assert_allclose(got, (sides[0] - sides[1]) / 2e-6, rtol=1e-6)


@every_backend
def test_rows_do_not_mix(backend: str) -> None:
    run = search()
    first, pulled = TABLE[backend](run, [MEAN, SCALE, TARGET], [np.eye(3)[:, :1] * np.ones(2)] * 3)
    assert (pulled[2][1:] == 0).all() and pulled[2][0].all()
    second, _ = TABLE[backend](run, [MEAN, SCALE, TARGET + [[0], [1], [1]]], [MEAN] * 3)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a[0], b[0])


@every_backend
def test_single_precision(backend: str) -> None:
    values = [v.astype(np.float32) for v in (MEAN, SCALE, TARGET)]
    found, pulled = TABLE[backend](search(n_iter=30), values, [np.ones((3, 2), np.float32)] * 3)
    assert {a.dtype for a in found + pulled} == {np.dtype(np.float32)}
    assert all(np.isfinite(a).all() for a in found + pulled)


def test_it_finds_the_minimum_among_many() -> None:
    found = dcem(lambda x: wavy(x, TARGET), MEAN, 2.0, n_sample=300, n_elite=30, n_iter=40, temperature=0)
    grid = np.linspace(-2, 2, 40001)
    for row, target in zip(found.best, TARGET, strict=True):
        best = [grid[np.argmin((grid - t) ** 2 + 0.3 * np.sin(5 * grid))] for t in target]
        np.testing.assert_allclose(row, best, atol=1e-3)
    np.testing.assert_allclose(found.mean, found.best, atol=1e-3)
    assert found.trace.mean.shape == found.trace.scale.shape == (40, 3, 2) and found.trace.cost.shape == (40, 3)
    np.testing.assert_array_equal(found.trace.mean[-1], found.mean)
    np.testing.assert_allclose(found.trace.cost.min(0), wavy(found.best[:, None], TARGET)[:, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_costs_that_are_not_finite_exclude_their_samples(temperature: float) -> None:
    def cost(x: np.ndarray) -> np.ndarray:
        v = np.where(x[..., 0] > 0, np.inf, (x**2).sum(-1))
        return np.where(np.arange(3)[:, None] == 2, np.where(np.arange(100) < 9, v, np.nan), np.where(x[..., 1] > 0, np.nan, v))

    found = dcem(cost, MEAN, SCALE, temperature=temperature)
    assert (found.mean[:2] < 0).all() and (found.best[:2] < 0).all() and np.isnan(found.mean[2]).all()


def test_samples_that_all_cost_the_same() -> None:
    torch = pytest.importorskip("torch")
    mean = torch.zeros(2, requires_grad=True)
    found = dcem(lambda x: 0 * x.sum(-1), mean, 1.0, n_iter=3)
    (pulled,) = torch.autograd.grad(found.mean.sum() + found.scale.sum(), mean)
    assert torch.isfinite(found.mean).all() and torch.isfinite(pulled).all()


def test_transforms_of_jax() -> None:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        run = search()
        zeros, ones = jax.numpy.asarray(MEAN), jax.numpy.asarray(SCALE)
        outputs = jax.jit(run)(MEAN, SCALE, TARGET)
        for got, want in zip(outputs, run(*map(jax.numpy.asarray, (MEAN, SCALE, TARGET))), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
        mapped = jax.jit(jax.vmap(jax.grad(lambda t: run(zeros[0], ones[0], t)[0].sum())))(TARGET)
        alone = [jax.grad(lambda t: run(zeros[0], ones[0], t)[0].sum())(jax.numpy.asarray(t)) for t in TARGET]
        np.testing.assert_allclose(mapped, alone, rtol=0, atol=1e-12)
        whole = jax.jit(lambda t: dcem(lambda x: wavy(x, t), jax.numpy.zeros((3, 2)), 1.0))(TARGET)
        assert whole.trace.cost.shape == (10, 3)
        keyed = jax.jit(lambda key: dcem(lambda x: wavy(x, jax.numpy.asarray(TARGET)), zeros, 1.0, seed=key).mean)
        assert (keyed(jax.random.key(1)) != keyed(jax.random.key(2))).all()
        np.testing.assert_array_equal(keyed(jax.random.key(1)), keyed(jax.random.key(1)))


def test_transforms_of_torch() -> None:
    torch = pytest.importorskip("torch")
    mean, scale, target = map(torch.tensor, (MEAN, SCALE, TARGET))
    mapped = torch.func.vmap(search(), randomness="same")(mean, scale, target)
    assert mapped[0].shape == (3, 2)
    gradient = torch.func.vmap(torch.func.grad(lambda t: search()(mean[0], scale[0], t)[0].sum()), randomness="same")(target)
    for row, t in zip(gradient, target, strict=True):
        np.testing.assert_allclose(row, torch.func.grad(lambda t: search()(mean[0], scale[0], t)[0].sum())(t), rtol=0, atol=1e-12)
    found = [dcem(lambda x: wavy(x, target), mean, scale, seed=torch.Generator().manual_seed(s)).mean for s in (1, 1, 2)]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).all()


def test_graphs_of_tensorflow() -> None:
    tf = pytest.importorskip("tensorflow")
    values = list(map(tf.constant, (MEAN, SCALE, TARGET)))
    for got, want in zip(tf.function(search(), autograph=False)(*values), search()(*values), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    found = [dcem(lambda x: wavy(x, values[2]), *values[:2], seed=tf.random.Generator.from_seed(s)).mean.numpy() for s in (1, 1, 2)]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).all()


@every_backend
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_unrolled_descent(backend: str, momentum: float) -> None:
    """On x'Dx/2 - b'x every coordinate follows a linear recursion, differentiated here by differences of its plain iteration."""
    d, b, x0, step = np.array([1.0, 4.0]), np.array([[0.5, -1.0], [2.0, 1.0]]), np.array([[1.0, 2.0], [-1.0, 0.5]]), np.array(0.2)

    def descend(x0: Any, b: Any, step: Any) -> tuple[Any]:
        verbs = backend_of(x0).verbs
        return (
            unroll(lambda x: verbs.xp.sum(x * x * verbs.asarray(d, x) / 2 - b * x, axis=-1), x0, step=step, n_iter=5, momentum=momentum).x,
        )

    def plain(x: np.ndarray, b: np.ndarray, step: np.ndarray) -> np.ndarray:
        v = np.zeros_like(x)
        for _ in range(5):
            v = momentum * v - step * (d * x - b)
            x = x + v
        return x

    values, g = [x0, b, step], np.array([[1.0, -2.0], [0.5, 3.0]])
    (found,), pulled = TABLE[backend](descend, values, [g])
    np.testing.assert_allclose(found, plain(*values), rtol=0, atol=1e-14)
    for k, got in enumerate(pulled):
        want = np.zeros_like(got)
        for index in np.ndindex(*got.shape):
            sides = [
                [
                    v + sign * 1e-6 * (np.arange(v.size).reshape(v.shape) == np.ravel_multi_index(index, v.shape) if index else 1)
                    if j == k
                    else v
                    for j, v in enumerate(values)
                ]
                for sign in (1, -1)
            ]
            want[index] = (g * (plain(*sides[0]) - plain(*sides[1]))).sum() / 2e-6
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8)


def test_unrolled_descent_in_compiled_code() -> None:
    jax = pytest.importorskip("jax")
    found = jax.jit(jax.grad(lambda b: unroll(lambda x: ((x - b) ** 2).sum(-1), jax.numpy.zeros(2), step=0.25, n_iter=3).x.sum()))(
        np.ones(2, np.float32)
    )
    np.testing.assert_allclose(found, 0.875, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dcem(lambda x: x.sum(-1), MEAN, SCALE, n_elite=101), r"got n_sample=100, n_elite=101, n_iter=10; wanted"),
        (
            lambda: dcem(lambda x: x, MEAN, SCALE),
            r"got a cost of shape \(3, 100, 2\) for samples of shape \(3, 100, 2\); wanted \(3, 100\)",
        ),
        (lambda: dcem(lambda x: x.sum(-1), MEAN, SCALE, n_sample=20.5), r"got n_sample=20.5, .* integers"),
        (lambda: dcem(lambda x: x.sum(-1), MEAN, SCALE, seed=None), "got seed=None; wanted an int"),
        (lambda: dcem(lambda x: x.sum(-1), MEAN, -0.5), "got a scale of -0.5; wanted standard deviations"),
        (
            lambda: dcem(lambda x: x.sum(-1), MEAN, SCALE, lower=[0.0, 2.0], upper=1.0),
            "got the bounds lower=2.0 and upper=1.0 of one entry; wanted lower <= upper",
        ),
        (lambda: dcem(lambda x: x.sum(-1), MEAN, SCALE, temperature=-1.0), "got the temperature -1.0"),
        (lambda: unroll(lambda x: x.sum(-1), MEAN, n_iter=0), "got n_iter=0; wanted at least 1"),
    ],
)
def test_misuse(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_rows_that_cannot_be_in_compiled_code(backend: str) -> None:
    """A negative scale in the first row of three, crossed bounds in the last: NaN with zero gradient; the others are untouched."""
    module = pytest.importorskip(backend)
    lower = np.array([[-1.0, -1.0], [-1.0, -1.0], [-1.0, 2.0]])

    def found(mean: Any, scale: Any, lower: Any) -> tuple[Any, ...]:
        search = dcem(lambda x: x[..., 0] * x[..., 0] + x[..., 1], mean, scale, lower=lower, upper=1.0, n_iter=2, seed=np.int64(0))
        return search.mean, search.scale, search.best

    values, g = [np.zeros((3, 2)), np.array([[1.0, -1.0], [1.0, 1.0], [1.0, 1.0]]), lower], [np.ones((3, 2))] * 3
    run = module.jit(found) if backend == "jax" else module.function(found)
    outputs, gradients = TABLE[backend](run, values, g)
    again, pulled = TABLE[backend](found, [np.zeros((3, 2)), np.ones((3, 2)), np.full((3, 2), -1.0)], g)
    for got, want in zip([*outputs, *gradients], [*again, *pulled], strict=True):
        np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-12)
    for got in outputs:
        assert np.isnan(got[[0, 2]]).all()
    for got in gradients:
        assert (got[[0, 2]] == 0).all()
