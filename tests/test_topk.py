"""The projections against the optimality conditions, CVXPY, and differences; their derivatives in every framework and transform."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from scipy.special import expit, logit

from cvxlayers.backend import BACKENDS
from cvxlayers.topk import constrained_softmax, constrained_sparsemax, lml, softmax, sparsemax
from tests.backends import TABLE, adapter, compiled, requested, tensor


@dataclass(frozen=True)
class Projection:
    """y = argmin potential(y) - x'y subject to 0 <= y <= upper and 1'y = total."""

    call: Callable[[Any], Any]
    slope: Callable[[np.ndarray], np.ndarray]  # the derivative of the potential
    potential: Callable[[cp.Variable], Any]
    upper: Any = 1.0
    total: float = 1.0


UPPER = np.array([0.3, 0.1, 0.4, 0.05, 0.5, 0.2, 0.3])
PROJECTIONS = {
    "softmax": Projection(softmax, np.log, lambda y: -cp.sum(cp.entr(y))),
    "sparsemax": Projection(sparsemax, lambda y: y, lambda y: cp.sum_squares(y) / 2),
    "constrained_softmax": Projection(lambda x: constrained_softmax(x, UPPER), np.log, lambda y: -cp.sum(cp.entr(y)), UPPER),
    "constrained_sparsemax": Projection(lambda x: constrained_sparsemax(x, UPPER), lambda y: y, lambda y: cp.sum_squares(y) / 2, UPPER),
    "lml": Projection(lambda x: lml(x, 3), logit, lambda y: -cp.sum(cp.entr(y) + cp.entr(1 - y)), total=3),
    "lml, a fraction": Projection(
        lambda x: lml(x, 2.5, 0.3), lambda y: 0.3 * logit(y), lambda y: -0.3 * cp.sum(cp.entr(y) + cp.entr(1 - y)), total=2.5
    ),
    "lml, nearly all": Projection(
        lambda x: lml(x, 6, 2.0), lambda y: 2 * logit(y), lambda y: -2 * cp.sum(cp.entr(y) + cp.entr(1 - y)), total=6
    ),
}
every_projection = pytest.mark.parametrize("name", PROJECTIONS)
every_backend = pytest.mark.parametrize("backend", requested())
INF, NAN = np.inf, np.nan
X = np.random.default_rng(0).standard_normal((4, 7))
G = np.random.default_rng(1).standard_normal((4, 7))


def differences(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """d f / d x, f's axes first."""
    columns = []
    for index in np.ndindex(*x.shape):
        move = np.zeros_like(x)
        move[index] = step
        columns.append((f(x + move) - f(x - move)) / (2 * step))
    return np.stack(columns, axis=-1).reshape(*np.shape(columns[0]), *x.shape)


@every_projection
def test_optimality_conditions(name: str) -> None:
    """Along the last axis slope(y) - x is one number where y is free, no less at 0 and no more at the upper bound."""
    case = PROJECTIONS[name]
    for x in (X, 10 * X, X + 1e6, np.round(X)):
        y = case.call(x)
        upper = np.broadcast_to(case.upper, y.shape)
        assert (y >= 0).all() and (y <= upper).all()
        np.testing.assert_allclose(y.sum(-1), case.total, rtol=0, atol=1e-13)
        for row, scores, bound in zip(y, x - x.max(-1, keepdims=True), upper, strict=True):
            free = (row > 1e-12) & (row < bound - 1e-12)
            if not free.any():
                continue
            reduced = case.slope(np.clip(row, 1e-300, 1 - 1e-16)) - scores
            level = np.median(reduced[free])
            accuracy = 1e-9 * (1 + abs(scores).max())
            np.testing.assert_allclose(reduced[free], level, rtol=0, atol=max(accuracy, 1e-3 if name == "lml, nearly all" else 0))
            assert (reduced[row <= 1e-12] >= level - 1).all() and (reduced[row >= bound] <= level + accuracy).all()


@every_projection
def test_the_layer_of_the_same_problem(name: str) -> None:
    """As CVXPY states it: value and gradient of its layer."""
    case, scores = PROJECTIONS[name], cp.Parameter(7)
    y = cp.Variable(7)
    constraints: Any = [y >= 0, y <= case.upper, cp.sum(y) == case.total]
    layer = adapter("torch").CvxpyLayer(cp.Problem(cp.Minimize(case.potential(y) - scores @ y), constraints), [scores], [y])
    (wanted,), (gradient,) = TABLE["torch"](layer, [X], [G])
    (found,), (pulled,) = TABLE["torch"](lambda x: (case.call(x),), [X], [G])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(pulled, gradient, rtol=0, atol=1e-6)


@every_backend
@every_projection
def test_every_framework_value_and_gradient(backend: str, name: str) -> None:
    f = PROJECTIONS[name].call
    (found,), (pulled,) = TABLE[backend](lambda x: (f(x),), [X], [G])
    np.testing.assert_allclose(found, f(X), rtol=0, atol=1e-15)
    jacobian = differences(f, X)
    np.testing.assert_allclose(pulled, np.einsum("ij,ijkl->kl", G, jacobian), rtol=0, atol=1e-8)


def hessian(backend: str, f: Callable[[Any], Any], x: np.ndarray) -> list[np.ndarray]:
    """The second derivatives of scalar f, by every way the framework has."""
    if backend == "torch":
        torch = importlib.import_module("torch")
        x = torch.tensor(x)
        ways = [torch.func.hessian(f), torch.func.jacrev(torch.func.jacrev(f)), torch.func.jacfwd(torch.func.jacfwd(f))]
        return [way(x).numpy() for way in ways] + [torch.autograd.functional.hessian(f, x).numpy()]
    if backend == "jax":
        jax = importlib.import_module("jax")
        with jax.enable_x64(True):
            x = jax.numpy.asarray(x)
            return [np.asarray(way(x)) for way in (jax.hessian(f), jax.jit(jax.jacrev(jax.grad(f))))]
    tf = importlib.import_module("tensorflow")

    def nested(x: Any) -> Any:
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = f(x)
            gradient = inner.gradient(y, x)
        return outer.jacobian(gradient, x, experimental_use_pfor=False)

    return [nested(tf.constant(x)).numpy(), tf.function(nested, autograph=False)(tf.constant(x)).numpy()]


def squares(backend: str, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """sum of w * f(x)^2, a scalar with curvature of its own."""
    adapter(backend)  # registers the framework
    verbs = BACKENDS[backend].verbs

    def loss(x: Any) -> Any:
        y = f(x)
        return verbs.xp.sum(verbs.asarray(G[0], y) * y * y, axis=-1)

    return loss


@every_backend
@every_projection
def test_second_derivatives(backend: str, name: str) -> None:
    f, x = PROJECTIONS[name].call, X[0]

    def gradient(x: np.ndarray) -> np.ndarray:
        return 2 * np.einsum("i,i,ik->k", G[0], f(x), differences(f, x, 1e-4))

    exact = differences(gradient, x, 1e-4)
    for found in hessian(backend, squares(backend, f), x):
        np.testing.assert_allclose(found, exact, rtol=0, atol=3e-7)


@every_backend
def test_upper_bounds_and_temperature_have_gradients(backend: str) -> None:
    for f in (constrained_softmax, constrained_sparsemax):
        (y,), pulled = TABLE[backend](lambda x, upper, f=f: (f(x, upper),), [X, UPPER], [G])
        np.testing.assert_allclose(y, f(X, UPPER), rtol=0, atol=1e-15)
        np.testing.assert_allclose(pulled[1], np.einsum("ij,ijk->k", G, differences(lambda u, f=f: f(X, u), UPPER)), rtol=0, atol=1e-8)
    temperature = np.array([[0.5], [1.0], [2.0], [0.1]])
    (y,), pulled = TABLE[backend](lambda x, t: (lml(x, 3, t),), [X, temperature], [G])
    np.testing.assert_allclose(y, lml(X, 3, temperature), rtol=0, atol=1e-14)
    np.testing.assert_allclose(pulled[1], np.einsum("ij,ijkl->kl", G, differences(lambda t: lml(X, 3, t), temperature)), rtol=0, atol=1e-8)
    for row, t in zip(range(4), temperature[:, 0], strict=True):
        np.testing.assert_allclose(y[row], lml(X[row], 3, float(t)), rtol=0, atol=1e-14)


@every_projection
def test_transforms_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    f, x = PROJECTIONS[name].call, torch.tensor(X)
    np.testing.assert_allclose(torch.func.vmap(f)(x), f(X), rtol=0, atol=1e-14)
    np.testing.assert_allclose(torch.func.vmap(f, in_dims=1, out_dims=1)(x.T), f(X).T, rtol=0, atol=1e-14)
    nested = torch.func.vmap(torch.func.vmap(f, in_dims=0), in_dims=1)(x[:, None].expand(4, 2, 7))
    np.testing.assert_allclose(nested, np.stack([f(X)] * 2), rtol=0, atol=1e-14)
    g = torch.tensor(G)
    rows = torch.func.vmap(torch.func.grad(lambda x, g: (g * f(x)).sum()))(x, g)
    leaf = x.clone().requires_grad_()
    (whole,) = torch.autograd.grad(f(leaf), leaf, g)
    np.testing.assert_allclose(rows, whole, rtol=0, atol=1e-12)
    _, pushed = torch.func.jvp(f, (x,), (g,))
    np.testing.assert_allclose(pushed, np.einsum("ijkl,kl->ij", differences(f, X), G), rtol=0, atol=1e-8)


@every_projection
def test_transforms_of_jax(name: str) -> None:
    jax = pytest.importorskip("jax")
    f = PROJECTIONS[name].call
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(f)(X), f(X), rtol=0, atol=1e-14)
        np.testing.assert_allclose(jax.jit(jax.vmap(f, in_axes=1, out_axes=1))(X.T.copy()), f(X).T, rtol=0, atol=1e-14)
        rows = jax.jit(jax.vmap(jax.grad(lambda x, g: (g * f(x)).sum())))(X, G)
        whole = jax.jit(jax.grad(lambda x: (G * f(x)).sum()))(X)
        np.testing.assert_allclose(rows, whole, rtol=0, atol=1e-12)
        _, pushed = jax.jit(lambda x, d: jax.jvp(f, (x,), (d,)))(X, G)
        np.testing.assert_allclose(pushed, np.einsum("ijkl,kl->ij", differences(f, X), G), rtol=0, atol=1e-8)


@every_projection
def test_graphs_of_tensorflow(name: str) -> None:
    tf = pytest.importorskip("tensorflow")
    f = PROJECTIONS[name].call
    compiled = tf.function(f, input_signature=[tf.TensorSpec([None, 7], tf.float64)])
    np.testing.assert_allclose(compiled(X), f(X), rtol=0, atol=1e-14)
    np.testing.assert_allclose(compiled(X[:2]), f(X[:2]), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("n", "k"), [(5000, 2000), (20000, 10), (20000, 19990), (2, 1), (1000, 50), (1000, 0.01)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1e3])
def test_lml_sums_to_k(n: int, k: float, scale: float) -> None:
    x = scale * np.random.default_rng(n).standard_normal((3, n))
    y = lml(x, k)
    np.testing.assert_allclose(y.sum(-1), k, rtol=0, atol=1e-10)
    ordered = np.take_along_axis(y, np.argsort(x, axis=-1), -1)
    assert (np.diff(ordered) >= 0).all()


@every_backend
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_single_precision_stops(backend: str, scale: float) -> None:
    x = (scale * np.random.default_rng(2).standard_normal((8, 1000))).astype(np.float32)
    for f, total in ((lambda x: lml(x, 50), 50), (sparsemax, 1), (softmax, 1)):
        (y,), (pulled,) = TABLE[backend](lambda x, f=f: (f(x),), [x], [np.ones_like(x)])
        assert y.dtype == pulled.dtype == np.float32
        np.testing.assert_allclose(y.sum(-1, dtype=float), total, rtol=3e-5)
        np.testing.assert_allclose(pulled, 0, atol=1e-5)  # the sum does not move


@pytest.mark.parametrize("k", [0, 7])
@pytest.mark.parametrize("temperature", [0, 1.0, 0.1])
def test_none_and_all(k: int, temperature: float) -> None:
    np.testing.assert_array_equal(lml(X, k, temperature), np.full((4, 7), k / 7))


@every_backend
def test_zero_temperature_is_the_hard_top_k_and_the_limit(backend: str) -> None:
    order = np.argsort(-X, axis=-1)
    hard = np.zeros_like(X)
    np.put_along_axis(hard, order[:, :3], 1, -1)
    (y,), (pulled,) = TABLE[backend](lambda x: (lml(x, 3, 0),), [X], [G])
    np.testing.assert_array_equal(y, hard)
    np.testing.assert_array_equal(pulled, 0)
    np.testing.assert_allclose(lml(X, 3, 1e-6), hard, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(lml(X, 2.5, 0), hard - 0.5 * (np.argsort(order) == 2))


@every_backend
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_temperatures_in_an_array_are_those_numbers(backend: str, dtype: type) -> None:
    """Zero, subnormal, so small that scores divided by it are infinite, and ordinary: one by one and in one array, compiled or not."""
    tiny = float(np.finfo(dtype).tiny)
    x, given = X.astype(dtype), np.array([[0.0], [tiny / 2**10], [4 * tiny], [0.5]], dtype)
    want = np.stack([lml(row, 3, float(t)) for row, t in zip(x, given[:, 0], strict=True)])
    np.testing.assert_array_equal(want[:3], np.stack([lml(row, 3, 0) for row in x[:3]]))
    assert np.isfinite(want).all()
    for wrap in (lambda f: f, functools.partial(compiled, backend)):
        (y,), (by_x, by_t) = TABLE[backend](wrap(lambda x, t: (lml(x, 3, t),)), [x, given], [G.astype(dtype)])
        np.testing.assert_allclose(y, want, rtol=0, atol=8 * np.finfo(dtype).eps)
        assert (by_x[:3] == 0).all() and (by_t[:3] == 0).all() and (by_x[3] != 0).any() and by_t[3] != 0


@pytest.mark.parametrize("wrong", [-0.5, NAN])
def test_rows_of_a_wrong_temperature_in_compiled_code(wrong: float) -> None:
    jax, tf = pytest.importorskip("jax"), pytest.importorskip("tensorflow")
    given = np.array([[0.5], [wrong], [1.0], [0.0]])
    with jax.enable_x64(True):
        y, pull = jax.vjp(jax.jit(lambda x, t: lml(x, 3, t)), X, given)
        found = [np.asarray(a) for a in (y, *pull(jax.numpy.asarray(G)))]

    @tf.function
    def both(x: Any, t: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, t])
            y = lml(x, 3, t)
        return y, *tape.gradient(y, [x, t], output_gradients=tf.constant(G))

    for y, by_x, by_t in (found, [a.numpy() for a in both(tf.constant(X), tf.constant(given))]):
        assert np.isnan(y[1]).all() and (by_x[1] == 0).all() and by_t[1] == 0
        for row in (0, 2, 3):
            np.testing.assert_allclose(y[row], lml(X[row], 3, float(given[row, 0])), rtol=0, atol=1e-14)
        assert np.isfinite(by_x).all() and np.isfinite(by_t).all()


@every_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_half_precision(backend: str, dtype: str, name: str) -> None:
    """As accurate as the dtype is."""
    x = tensor(backend, X, dtype)
    y = PROJECTIONS[name].call(x)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(_floats(y), PROJECTIONS[name].call(np.array(_floats(x))), rtol=0, atol=0.05 if dtype == "bfloat16" else 0.01)


def _floats(x: Any) -> list[list[float]]:
    return [[float(v) for v in row] for row in x]


@pytest.mark.parametrize("temperature", [0, 1e-9, 1.0])
def test_equal_scores_share(temperature: float) -> None:
    np.testing.assert_allclose(lml([2.0, 2.0, 2.0, 2.0], 3, temperature), 0.75, rtol=1e-12)
    if temperature < 1:
        np.testing.assert_allclose(lml([5.0, 1.0, 1.0, 1.0, 0.0], 2, temperature), [1, 1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-9)


@every_backend
@pytest.mark.parametrize(
    ("row", "k", "expected"),
    [
        ([INF, 0.0, 0.0, -INF], 2, [1, 0.5, 0.5, 0]),
        ([INF, INF, 0.0, 1.0], 2, [1, 1, 0, 0]),
        ([-INF, -INF, 0.0, 1.0], 2, [0, 0, 1, 1]),
        ([INF, INF, INF, 1.0], 2, [NAN] * 4),
        ([-INF, -INF, -INF, 1.0], 2, [NAN] * 4),
        ([NAN, 0.0, 1.0, 2.0], 2, [NAN] * 4),
        ([1e40, -1e40, 0.0, 1.0], 2, [1, 0, expit(-0.5), expit(0.5)]),
        ([1e40, 5.0, 6.0, 6.0], 3, [1, *lml([5.0, 6.0, 6.0], 2)]),
        ([1e300, 2e300, 3e300, 4e300], 2, [0, 0, 1, 1]),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_extreme_rows_leave_the_others_alone(backend: str, row: list[float], k: int, expected: list[float], temperature: float) -> None:
    x = np.array([[0.1, 0.2, -0.3, 0.4], row])
    t = np.array(temperature)
    if temperature != 1 and 0 < expected[2] < 1 and np.isfinite(row).all():
        expected = lml(np.array(row[1:]) / temperature, k - 1).tolist()
        expected = [1, *expected]
    (y,), (pulled, by_t) = TABLE[backend](lambda x, t: (lml(x, k, t),), [x, t], [np.array([[1.0, 2.0, 3.0, 4.0]] * 2)])
    np.testing.assert_allclose(y[1], expected, rtol=0, atol=1e-14)
    (alone,), (pulled_alone, _) = TABLE[backend](lambda x, t: (lml(x, k, t),), [x[:1], t], [np.array([[1.0, 2.0, 3.0, 4.0]])])
    np.testing.assert_array_equal(y[0], alone[0])
    np.testing.assert_array_equal(pulled[0], pulled_alone[0])
    assert np.isfinite(pulled).all() and np.isfinite(by_t)


@every_backend
@pytest.mark.parametrize("f", [softmax, sparsemax, lambda x: constrained_softmax(x, 0.5), lambda x: constrained_sparsemax(x, 0.5)])
def test_extreme_rows_of_the_simplex(backend: str, f: Callable[[Any], Any]) -> None:
    x = np.array([[0.1, 0.2, 0.3], [NAN, 0, 0], [INF, 0, 0], [-INF, 1, 1], [-INF, -INF, -INF], [1e40, 1e40, -1e40]])
    (y,), (pulled,) = TABLE[backend](lambda x: (f(x),), [x], [np.ones((6, 1)) * [1.0, 2, 3]])
    np.testing.assert_array_equal(np.isnan(y), [[False] * 3, [True] * 3, [True] * 3, [False] * 3, [True] * 3, [False] * 3])
    np.testing.assert_allclose(y[[3, 5]], [[0, 0.5, 0.5], [0.5, 0.5, 0]], rtol=1e-14)
    np.testing.assert_allclose(y[0], f(x[0]), rtol=1e-14)
    assert np.isfinite(pulled).all() and (pulled[[1, 2, 4]] == 0).all()


@pytest.mark.parametrize("f", [constrained_softmax, constrained_sparsemax])
def test_bounds_without_a_solution(f: Callable[[Any, Any], Any]) -> None:
    x, upper = np.zeros((4, 2)), np.array([[0.4, 0.4], [1.5, -0.5], [0.5, 0.5], [0.0, INF]])
    y = f(x, upper)
    assert np.isnan(y[:2]).all()
    np.testing.assert_allclose(y[2:], [[0.5, 0.5], [0, 1]], rtol=1e-14)
    np.testing.assert_allclose(f(np.arange(10.0), 0.1), 0.1, rtol=1e-14)


def test_extreme_rows_of_the_hard_top_k() -> None:
    x = [[INF, 0.0, 0.0, -INF], [INF, INF, INF, 1.0], [-INF, -INF, -INF, 1.0], [NAN, 0.0, 1.0, 2.0], [INF, INF, 0.0, 1.0]]
    np.testing.assert_array_equal(lml(np.array(x), 2, 0), [[1, 0.5, 0.5, 0], [NAN] * 4, [NAN] * 4, [NAN] * 4, [1, 1, 0, 0]])


def test_the_whole_range_of_double_precision() -> None:
    np.testing.assert_allclose(lml([1e300, 5.0, 6.0, 6.0], 3), [1, *lml([5.0, 6.0, 6.0], 2)], rtol=1e-14)
    np.testing.assert_array_equal(sparsemax([1e300, 1e300, -1e300]), [0.5, 0.5, 0])


def test_soft_top_k_of_one_is_not_softmax_but_sums_like_it() -> None:
    y = lml(X, 1)
    nu = np.log(y / (1 - y)) - X
    np.testing.assert_allclose(nu, nu[:, :1] * np.ones(7), rtol=0, atol=1e-12)
    np.testing.assert_allclose(expit(X + nu), y, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lml(X, 8), r"got k = 8; wanted a number from 0 to 7"),
        (lambda: lml(X, -1), r"got k = -1; wanted a number from 0 to 7"),
        (lambda: lml(X, NAN), r"got k = nan; wanted"),
        (lambda: lml(X, 3, -1.0), r"got the temperature -1.0; wanted 0 or more"),
        (lambda: lml(X, 3, NAN), r"got the temperature nan; wanted 0 or more"),
        (lambda: lml(X, 3, np.array([[1.0], [2.0], [-1e-3], [1.0]])), r"got the temperature (?s:.*)-1.e-03(?s:.*); wanted 0 or more"),
        (lambda: lml(X, np.array([1, 2, 3, 4])), r"got k of type ndarray; wanted a number, one for all rows"),
        (lambda: softmax(1.0), "got a number; wanted an array"),
        (lambda: softmax(np.arange(3)), "got an array of dtype int64; wanted a floating one"),
        (lambda: constrained_softmax(X, np.ones(3)), r"got arrays of shapes \[\(4, 7\), \(3,\)\]; wanted last axes of one length"),
    ],
)
def test_misuse(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_third_derivatives_of_lml() -> None:
    """Its rule is a function of its value, so that every order follows; against differences of the second."""
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    x, d, step = X[0], G[0], 1e-5

    def torch_second(x: np.ndarray) -> np.ndarray:
        return torch.func.hessian(lambda x: (lml(x, 3) * torch.tensor(d)).sum())(torch.tensor(x)).numpy()

    slope = (torch_second(x + step * d) - torch_second(x - step * d)) / (2 * step)
    third = torch.func.jacrev(torch.func.hessian(lambda x: (lml(x, 3) * torch.tensor(d)).sum()))(torch.tensor(x)).numpy() @ d
    np.testing.assert_allclose(third, slope, rtol=0, atol=1e-8)
    with jax.enable_x64(True):
        found = jax.jacfwd(jax.hessian(lambda x: (lml(x, 3) * d).sum()))(jax.numpy.array(x)) @ d
    np.testing.assert_allclose(found, slope, rtol=0, atol=1e-8)
