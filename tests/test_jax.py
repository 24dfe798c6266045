"""The JAX adapter: values and gradients are the host map's, and every transformation of JAX gives what plain calls give."""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from cvxlayers import InaccurateWarning, SolverError, Status
from cvxlayers.backend import backend_of
from cvxlayers.cones import NonNegative, Product, SecondOrder, Zero
from cvxlayers.host import Options
from cvxlayers.jax import ConicLayer, CvxpyLayer
from cvxlayers.program import Info, Pattern
from tests.problems import CASES, PAIRS

cp: Any = cvxpy
NAMES = (
    "least_squares",
    "quadratic_program",
    "second_order_program",
    "mixed_cones",
    "hermitian_program",
    "geometric_program",
    "nearest_correlation",
)
METHODS = ("forward", "vjp", "jvp", "second_vjp", "second_jvp")
FEW = ("quadratic_program", "hermitian_program", "geometric_program", "mixed_cones")


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def layer_of(name: str, solver: str | None = None) -> CvxpyLayer:
    case = CASES[name]()
    return CvxpyLayer(case.problem, case.parameters, case.variables, solver=solver, gp=case.gp)


def values_of(name: str, rows: int | None = None, seed: int = 0) -> list[np.ndarray]:
    rng, case = np.random.default_rng(seed), CASES[name]()
    draws = [case.sample(rng) for _ in range(rows or 1)]
    return [np.stack(column) for column in zip(*draws, strict=True)] if rows else draws[0]


def like(arrays: Sequence[Any], seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = [rng.standard_normal(np.shape(a)) for a in arrays]
    return [n + 1j * rng.standard_normal(n.shape) if np.iscomplexobj(a) else n for n, a in zip(noise, arrays, strict=True)]


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


def loss_of(layer: Callable) -> Callable:
    """A real loss that is not linear in the outputs, and weighs each of their entries differently."""

    def loss(*values: Any) -> Any:
        parts = [jnp.concatenate([jnp.ravel(v.real), jnp.ravel(v.imag)]) for v in layer(*values)]
        whole = jnp.concatenate(parts)
        return jnp.sin(whole) @ jnp.arange(1.0, 1 + len(whole)) + whole @ whole

    return loss


@functools.cache
def gradients_of(name: str) -> tuple[list[np.ndarray], Callable, Any]:
    """Three rows, the gradient as a function of one row, and its values row by row from plain calls."""
    values = values_of(name, 3)
    gradient = jax.grad(loss_of(layer_of(name)), argnums=tuple(range(len(values))))
    rows = [gradient(*(v[i] for v in values)) for i in range(3)]
    return values, gradient, tuple(np.stack(column) for column in zip(*rows, strict=True))


def counted(layer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each method of the layer's host map is called from now on."""
    counts: dict[str, int] = dict.fromkeys(METHODS, 0)

    def counting(name: str, method: Callable) -> Callable:
        def wrapped(*args: Any) -> Any:
            counts[name] += 1
            return method(*args)

        return wrapped

    for name in counts:
        monkeypatch.setattr(layer.core, name, counting(name, getattr(layer.core, name)))
    return counts


# The host map's values and derivatives


@pytest.mark.parametrize("name", NAMES)
def test_values_gradients_and_tangents_are_those_of_the_host(name: str) -> None:
    layer, values = layer_of(name), values_of(name)
    want, _, saved = layer.core.forward(values, Options())
    outputs, pull = jax.vjp(layer, *map(jnp.asarray, values))
    close(outputs, want, 1e-12)
    assert all(isinstance(v, jax.Array) and v.dtype == w.dtype for v, w in zip(outputs, want, strict=True))
    cotangents, tangents = like(want), like(values, 2)
    pulled = layer.core.vjp(saved, cotangents, [True] * len(values))
    # JAX's cotangents are complex-linear: conjugates of dL/d(real) + i dL/d(imag).
    close(pull(tuple(np.conj(g) for g in cotangents)), tuple(np.conj(g) for g in pulled), 1e-9)
    _, moved = jax.jvp(layer, tuple(map(jnp.asarray, values)), tuple(map(jnp.asarray, tangents)))
    close(moved, tuple(layer.core.jvp(saved, tangents)), 1e-9)


@pytest.mark.parametrize(("name", "solver"), [pair for pair in PAIRS if pair[0] in (*NAMES, "linear_program")])
def test_the_gradient_of_a_compiled_batch_on_every_solver(name: str, solver: str) -> None:
    layer, values = layer_of(name, solver), values_of(name, 2)
    want, _, saved = layer.core.forward(values, Options())
    cotangents = like(want)

    def loss(*row: Any) -> Any:
        *params, weights = row
        return sum((w * v).real.sum() for w, v in zip(weights, layer(*params), strict=True))

    got = jax.jit(jax.vmap(jax.grad(loss, argnums=tuple(range(len(values))))))(*values, [np.conj(g) for g in cotangents])
    pulled = layer.core.vjp(saved, cotangents, [True] * len(values))
    close(got, tuple(np.conj(g) for g in pulled))


def test_a_complex_gradient_follows_the_convention_of_jax() -> None:
    z, c = cp.Variable(2, complex=True), cp.Parameter(2, complex=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(z - (1 + 2j) * c))), [c], [z])
    point = jnp.array([1 + 2j, 0.5 - 1j])
    weight = jnp.array([2 - 1j, 1j])
    want = jax.grad(lambda c: (weight * (1 + 2j) * c).real.sum())(point)
    close(jax.grad(lambda c: (weight * layer(c)[0]).real.sum())(point), want, 1e-8)
    real = jax.grad(lambda c: (weight * layer(c)[0]).real.sum())(jnp.ones(2))  # a real array where complex numbers are taken
    assert real.dtype == jnp.float64
    close(real, want.real, 1e-8)
    holomorphic = jax.jacrev(lambda c: layer(c)[0], holomorphic=True)(point)
    close(holomorphic, (1 + 2j) * jnp.eye(2), 1e-8)


# Every transformation gives what plain calls give


@pytest.mark.parametrize("name", ("quadratic_program", "geometric_program", "mixed_cones"))
def test_jit_vmap_and_grad_in_every_order(name: str) -> None:
    values, gradient, want = gradients_of(name)
    layer, wrt = layer_of(name), tuple(range(len(values)))
    close(jax.jit(gradient)(*(v[0] for v in values)), tuple(g[0] for g in want))
    close(jax.vmap(gradient)(*values), want)
    close(jax.jit(jax.vmap(gradient))(*values), want)
    close(jax.grad(lambda *v: jax.vmap(loss_of(layer))(*v).sum(), argnums=wrt)(*values), want)
    batched = jax.jit(lambda *v: layer(*v))(*values)
    close(batched, layer(*values))
    close(jax.vmap(layer)(*values), batched)


@pytest.mark.parametrize("name", FEW)
def test_linearize_and_checkpoint(name: str) -> None:
    values, gradient, want = gradients_of(name)
    layer, row = layer_of(name), tuple(jnp.asarray(v[0]) for v in values)
    tangents = tuple(map(jnp.asarray, like(row)))
    moved = jax.jvp(layer, row, tangents)
    close((layer(*row), jax.linearize(layer, *row)[1](*tangents)), moved)
    close(jax.jit(lambda v, t: jax.jvp(layer, v, t))(row, tangents), moved)
    remembered = jax.grad(jax.checkpoint(loss_of(layer)), argnums=tuple(range(len(values))))
    close(remembered(*row), tuple(g[0] for g in want))
    close(jax.jit(remembered)(*row), tuple(g[0] for g in want))


@pytest.mark.parametrize("name", ("quadratic_program", "geometric_program", "nearest_correlation"))
def test_jacobians_by_columns_and_by_rows(name: str) -> None:
    layer, values = layer_of(name), values_of(name)
    wrt = tuple(range(len(values)))
    _, _, saved = layer.core.forward(values, Options())
    columns = jax.jit(jax.jacfwd(layer, argnums=wrt))(*values)
    close(jax.jacfwd(layer, argnums=wrt)(*values), columns)
    close(jax.jit(jax.jacrev(layer, argnums=wrt))(*values), columns, 1e-8)
    close(jax.jacrev(layer, argnums=wrt)(*values), columns, 1e-8)
    tangents = like(values)
    moved = [sum(np.tensordot(J, t, t.ndim) for J, t in zip(row, tangents, strict=True)) for row in columns]
    close(moved, layer.core.jvp(saved, tangents), 1e-8)


@pytest.mark.parametrize("compiled", [False, True])
def test_any_axis_may_be_mapped_and_any_parameter_shared(compiled: bool) -> None:
    name = "quadratic_program"
    (Q, p, A, b, G, h), gradient, _ = gradients_of(name)
    rows = [gradient(Q[i], p[0], A[i], b[0], G[i], h[i]) for i in range(3)]
    mapped = jax.vmap(gradient, in_axes=(2, None, 1, None, -1, 0), out_axes=(1, 0, 0, 0, 2, -1))
    moved = [np.moveaxis(Q, 0, 2), p[0], np.moveaxis(A, 0, 1), b[0], np.moveaxis(G, 0, -1), h]
    got = (jax.jit(mapped) if compiled else mapped)(*moved)
    want = [np.stack(column, axis) for column, axis in zip(zip(*rows, strict=True), (1, 0, 0, 0, 2, -1), strict=True)]
    close(got, tuple(want))


def test_nested_vmap() -> None:
    (F, g, w), gradient, _ = gradients_of("least_squares")
    w = np.linspace(0.5, 1.5, 2)
    want = [np.stack([np.stack([gradient(F[i], g[j], w[j])[k] for j in range(2)]) for i in range(3)]) for k in range(3)]
    nested = jax.vmap(jax.vmap(gradient, in_axes=(None, 0, 0)), in_axes=(0, None, None))
    close(jax.jit(nested)(F, g[:2], w), tuple(want))
    crossed = jax.vmap(jax.vmap(gradient, in_axes=(0, None, None)), in_axes=(None, 0, 0), out_axes=1)
    close(jax.jit(crossed)(F, g[:2], w), tuple(want))


def test_vmap_over_calls_that_have_batch_axes_of_their_own() -> None:
    """Inner batch 3, outer 2, one parameter shared by the inner rows only, one by the outer ones only, one by all."""
    layer, (F, g, w) = layer_of("least_squares"), values_of("least_squares", 3)
    Fs, w = np.stack([F[0], F[1]]), w[0]
    gradient = jax.grad(loss_of(layer), argnums=(0, 1, 2))
    want = [gradient(Fs[i], g, w) for i in range(2)]
    got = jax.jit(jax.vmap(gradient, in_axes=(0, None, None)))(Fs, g, w)
    close(got, tuple(np.stack(column) for column in zip(*want, strict=True)))
    whole = jax.grad(lambda F, g, w: jax.vmap(loss_of(layer), in_axes=(0, None, None))(F, g, w).sum(), argnums=(0, 1, 2))(Fs, g, w)
    close(whole, (np.stack([r[0] for r in want]), want[0][1] + want[1][1], want[0][2] + want[1][2]))
    columns = jax.jacfwd(lambda w: layer(Fs[0], g, w)[0])(w)
    close(jax.jacrev(lambda w: layer(Fs[0], g, w)[0])(w), columns, 1e-9)
    assert columns.shape == (3, 5)


def test_scan_around_a_layer_is_the_loop() -> None:
    layer, (F, g, w) = layer_of("least_squares"), values_of("least_squares")

    def step(g: Any, scale: Any) -> tuple[Any, Any]:
        (x,) = layer(F, g, w)
        return g * scale + F @ x / 7, x.sum()

    def scanned(g: Any) -> Any:
        last, sums = jax.lax.scan(step, g, jnp.array([0.5, 1.5, 0.7]))
        return (last**2).sum() + sums @ jnp.array([1.0, 2.0, 3.0])

    def looped(g: Any) -> Any:
        total = 0.0
        for k, scale in enumerate((0.5, 1.5, 0.7), 1):
            g, x = step(g, scale)
            total += k * x
        return (g**2).sum() + total

    want = jax.value_and_grad(looped)(jnp.asarray(g))
    close(jax.value_and_grad(scanned)(jnp.asarray(g)), want)
    close(jax.jit(jax.value_and_grad(jax.checkpoint(scanned)))(g), want)
    close(jax.jit(jax.jacfwd(scanned))(g), want[1], 1e-9)
    close(jax.jit(jax.vmap(jax.grad(scanned)))(np.stack([g, g]))[1], want[1])


# One crossing for a whole batch


def test_a_compiled_gradient_of_a_batch_crosses_once_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["least_squares"]()
    layer, values = CvxpyLayer(case.problem, case.parameters, case.variables), values_of("least_squares", 5)
    wanted: dict[str, int] = dict.fromkeys(METHODS, 0)
    counts = counted(layer, monkeypatch)
    gradient = jax.jit(jax.vmap(jax.grad(loss_of(layer), argnums=(0, 1, 2)), in_axes=(0, None, 0)))
    jax.block_until_ready(gradient(values[0], values[1][0], values[2]))
    assert counts == wanted | {"forward": 1, "vjp": 1}
    counts.update(wanted)
    jax.block_until_ready(jax.vmap(jax.vmap(layer, in_axes=(0, None, None)), in_axes=(None, 0, 0))(*values))
    assert counts == wanted | {"forward": 1}
    counts.update(wanted)
    jax.block_until_ready(jax.jit(jax.jacfwd(layer))(*(v[0] for v in values)))
    assert counts == wanted | {"forward": 1, "jvp": 1}
    counts.update(wanted)
    jax.block_until_ready(jax.jit(jax.vmap(layer))(*values))
    assert counts == wanted | {"forward": 1}


def test_only_the_cotangents_that_are_wanted_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["least_squares"]()
    layer, values, asked = CvxpyLayer(case.problem, case.parameters, case.variables), values_of("least_squares"), []
    vjp = layer.core.vjp
    monkeypatch.setattr(layer.core, "vjp", lambda saved, g, needed: asked.append(list(needed)) or vjp(saved, g, needed))
    jax.jit(jax.grad(loss_of(layer), argnums=1))(*values)
    jax.grad(loss_of(layer), argnums=(0, 2))(*values)
    assert asked == [[False, True, False], [True, False, True]]


# Second order


@pytest.mark.parametrize("name", ["least_squares", "quadratic_program", "second_order_program"])
def test_hessians_are_differences_of_gradients(name: str) -> None:
    values, loss = values_of(name), loss_of(layer_of(name))
    wrt, step = tuple(range(len(values))), 1e-5
    gradient = jax.jit(jax.grad(loss, argnums=wrt))
    directions = [b - a for a, b in zip(values, values_of(name, seed=5), strict=True)]  # matrices stay symmetric

    def along(gradient: Callable) -> Any:
        return jax.jvp(gradient, tuple(map(jnp.asarray, values)), tuple(map(jnp.asarray, directions)))[1]

    ahead, behind = ([v + sign * step * d for v, d in zip(values, directions, strict=True)] for sign in (1, -1))
    want = [(a - b) / (2 * step) for a, b in zip(gradient(*ahead), gradient(*behind), strict=True)]
    got = along(jax.grad(loss, argnums=wrt))
    scale = max(abs(w).max() for w in want)
    assert scale > 1e-2
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-6 * scale)
    inner = jax.grad(lambda *v: sum((g * d).sum() for g, d in zip(gradient(*v), directions, strict=True)), argnums=wrt)
    close(inner(*values), got, 1e-8)  # reverse over reverse
    outer = jax.grad(lambda *v: jax.jvp(loss, v, tuple(map(jnp.asarray, directions)))[1], argnums=wrt)
    close(outer(*map(jnp.asarray, values)), got, 1e-8)  # reverse over forward


def test_the_hessian_in_every_order_and_batched() -> None:
    values, loss = values_of("quadratic_program", 2), loss_of(layer_of("quadratic_program"))
    rows = [jax.hessian(loss, argnums=1)(*(v[i] for v in values)) for i in range(2)]
    for outer, inner in ((jax.jacrev, jax.jacfwd), (jax.jacfwd, jax.jacfwd), (jax.jacrev, jax.jacrev)):
        close(jax.jit(jax.vmap(outer(inner(loss, argnums=1), argnums=1)))(*values), np.stack(rows), 1e-9)
    assert abs(rows[0] - rows[0].T).max() < 1e-9 < abs(rows[0]).max()


def test_second_derivatives_are_linear_in_directions_that_depend_on_the_point() -> None:
    """The rules of the derivatives' own directions, which a hessian along fixed ones never meets."""
    (F, g, w), layer = values_of("least_squares"), layer_of("least_squares")
    point, loss = jnp.asarray(g), loss_of(lambda g: layer(F, g, w))
    weight, step = jnp.arange(1.0, 8.0), 1e-5

    def slope(g: Any) -> Any:
        return jax.jvp(loss, (g,), (jnp.sin(g) * weight,))[1]

    want = np.array([(slope(point + step * e) - slope(point - step * e)) / (2 * step) for e in np.eye(7)])
    np.testing.assert_allclose(jax.jit(jax.grad(slope))(point), want, atol=1e-6 * abs(want).max())
    np.testing.assert_allclose(jax.jit(jax.jacfwd(slope))(point), want, atol=1e-6 * abs(want).max())
    product = jax.jvp(jax.grad(loss), (point,), (weight,))[1]
    curve = jax.jvp(lambda g: jax.jvp(loss, (g,), (weight,))[1], (point,), (weight,))[1]
    for jacobian in (jax.jacfwd, jax.jacrev):
        close(jacobian(lambda t: jax.jvp(jax.grad(loss), (point,), (t * weight,))[1])(2.0), product, 1e-9)
        close(jacobian(lambda t: jax.jvp(jax.grad(lambda g: t * loss(g)), (point,), (weight,))[1])(2.0), product, 1e-9)
        close(jacobian(lambda t: jax.jvp(lambda g: jax.jvp(loss, (g,), (t * weight,))[1], (point,), (weight,))[1])(2.0), curve, 1e-9)
    close(weight @ product, curve, 1e-9)


def test_the_second_derivative_of_a_projection_on_a_ball() -> None:
    x, p = cp.Variable(3), cp.Parameter(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1]), [p], [x])
    point = jnp.array([2.0, -1.0, 0.5])
    close(jax.hessian(lambda p: layer(p)[0])(point), jax.hessian(lambda p: p / jnp.sqrt(p @ p))(point), 1e-7)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_second_derivatives_that_do_not_exist_are_refused(wrap: Callable) -> None:
    for name, what in (
        ("mixed_cones", "cones have no second derivatives here"),
        ("geometric_program", "a geometric program has no second"),
    ):
        values, loss = values_of(name), loss_of(layer_of(name))
        for twice in (jax.hessian(loss), jax.jacrev(jax.jacfwd(loss))):
            with pytest.raises(ValueError, match=what):
                wrap(twice)(*values)
    values, loss = values_of("least_squares"), loss_of(layer_of("least_squares"))
    with pytest.raises(ValueError, match="the third was asked for"):
        wrap(jax.grad(lambda w: jax.hessian(loss, argnums=2)(values[0], values[1], w)))(values[2])


# Dtypes


@pytest.mark.parametrize("name", FEW)
def test_without_x64_gradients_have_the_digits_of_float32(name: str) -> None:
    values, _, want = gradients_of(name)
    with jax.enable_x64(False):
        layer, wrt = layer_of(name), tuple(range(len(values)))
        gradient = jax.grad(loss_of(layer), argnums=wrt)
        single = [jnp.asarray(v) for v in values]
        outputs = jax.jit(jax.vmap(layer))(*single)
        assert {v.dtype for v in outputs} <= {np.dtype(np.float32), np.dtype(np.complex64)}
        for got in (jax.jit(jax.vmap(gradient))(*single), jax.vmap(gradient)(*single)):
            for g, w in zip(got, want, strict=True):
                assert g.dtype in (np.float32, np.complex64)
                np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-4 * max(1, abs(w).max()))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_solution_is_not_rounded_on_its_way_to_the_gradient(compiled: bool) -> None:
    """x = -R c / |c|: all curvature comes from y, of the size of c, beside s, of the size of R, whose float32 spacing y would feel."""
    radius = 100.0
    x, c = cp.Variable(3), cp.Parameter(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(c @ x), [cp.norm(x) <= radius]), [c], [x], solver="CLARABEL")
    point, weight = np.array([0.01, -0.02, 0.005], dtype=np.float32), np.array([1.0, 3.0, -1.0], dtype=np.float32)
    c64 = point.astype(np.float64)
    size = np.sqrt(c64 @ c64)
    want = -radius / size * (weight - c64 * (c64 @ weight) / size**2)
    wrap: Any = jax.jit if compiled else lambda f: f
    with jax.enable_x64(False):
        got = wrap(jax.grad(lambda c: (weight * layer(c)[0]).sum()))(point)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_x64_may_be_toggled_after_a_layer_was_built() -> None:
    layer, values = layer_of("least_squares"), values_of("least_squares")
    run = jax.jit(jax.value_and_grad(loss_of(layer), argnums=(0, 1, 2)))
    want = run(*values)
    for on in (False, True, False, True):
        with jax.enable_x64(on):
            got = run(*values)
            assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float64 if on else np.float32)}
            close(got, want, 1e-12 if on else 1e-4)


def test_results_have_the_widest_dtype_of_the_arrays() -> None:
    x, p, w = cp.Variable(2), cp.Parameter(2), cp.Parameter(nonneg=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p) + w * cp.sum(x))), [p, w], [x])
    point = np.array([1.0, -2.0])
    kinds = [
        ((point, 1.0), jnp.float64),
        ((point.astype(np.float32), 1.0), jnp.float32),
        ((point.tolist(), np.float32(1)), jnp.float32),
        ((point.astype(int), 1), jnp.float64),
        ((jnp.asarray(point, jnp.bfloat16), 1), jnp.bfloat16),
        ((jnp.asarray(point, jnp.float16), jnp.ones((), jnp.bfloat16)), jnp.float32),
        ((jnp.asarray(point, jnp.bfloat16), jnp.ones(())), jnp.float64),
    ]
    for values, dtype in kinds:
        for call in (layer, jax.jit(layer) if hasattr(values[0], "dtype") and hasattr(values[1], "dtype") else layer):
            (got,) = call(*values)
            assert got.dtype == dtype, values
            np.testing.assert_allclose(np.asarray(got, np.float64), point - 0.5, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda p, w: layer(p, w)[0].sum(), argnums=(0, 1)))(jnp.asarray(point, jnp.bfloat16), jnp.ones(()))
    assert [g.dtype for g in gradient] == [jnp.bfloat16, jnp.float64]
    np.testing.assert_allclose(np.asarray(gradient[0], np.float64), 1)
    z, c = cp.Variable(2, complex=True), cp.Parameter(2, complex=True)
    (got,) = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(z - c))), [c], [z])(jnp.asarray(point, jnp.bfloat16))
    assert got.dtype == jnp.complex64


def test_a_layer_without_parameters() -> None:
    x = cp.Variable(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1))), [], [x])
    for call in (layer, jax.jit(layer)):
        (out,) = call()
        assert out.dtype == jnp.float64 and out.tolist() == [1, 1]


# Failures, info, warm starts


def feasible_above() -> CvxpyLayer:
    """min (x - 1)^2 subject to p <= x <= 2: infeasible for p > 2."""
    x, p = cp.Variable(), cp.Parameter()
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x - 1)), [x >= p, x <= 2]), [p], [x])


POINTS = np.array([1.5, 3.0, 0.0, np.nan])


def test_failed_rows_raise_in_plain_calls() -> None:
    layer = feasible_above()
    plain = (layer, jax.vmap(layer), jax.grad(lambda p: layer(p)[0].sum()))
    for call in plain:
        with pytest.raises(SolverError, match="PRIMAL_INFEASIBLE") as caught:
            call(jnp.asarray(POINTS))
        assert caught.value.rows == (1, 3) and caught.value.statuses == (Status.PRIMAL_INFEASIBLE, Status.INVALID_PARAMETER)


@pytest.mark.parametrize("policy", ["raise", "nan"])
def test_failed_rows_are_nan_with_zero_gradient_and_a_status_in_compiled_code(policy: str) -> None:
    layer = feasible_above()
    want = np.array([1.5, np.nan, 1.0, np.nan])
    for call in (
        lambda p: layer(p, on_failure=policy, return_info=True),
        jax.vmap(lambda p: layer(p, on_failure=policy, return_info=True)),
    ):
        (out,), info = jax.jit(call)(POINTS)
        np.testing.assert_allclose(out, want, atol=1e-8)
        assert info.status.tolist() == [0, 2, 0, 6] and isinstance(info, Info)
        np.testing.assert_allclose(info.objective, [0.25, np.inf, 0.0, np.nan], atol=1e-7)
    gradient = jax.jit(jax.grad(lambda p: (layer(p, on_failure=policy)[0] ** 2).sum()))(POINTS)
    np.testing.assert_allclose(gradient, [3.0, 0, 0, 0], atol=1e-6)


def test_the_last_iterate_is_returned_with_a_warning_when_asked_for() -> None:
    layer = feasible_above()
    for call in (lambda p: layer(p, on_failure="return"), jax.jit(lambda p: layer(p, on_failure="return"))):
        with pytest.warns(InaccurateWarning, match="rows? 1"):
            (out,) = jax.block_until_ready(call(POINTS))
        np.testing.assert_allclose(out[::2], [1.5, 1.0], atol=1e-8)


@pytest.mark.parametrize("on", [False, True])
def test_the_info_is_the_hosts(on: bool) -> None:
    with jax.enable_x64(on):
        layer, values = layer_of("second_order_program"), [jnp.asarray(v) for v in values_of("second_order_program", 3)]
        want = layer.core.forward([np.asarray(v) for v in values], Options())[1]
        (_, plain), (_, traced) = layer(*values, return_info=True), jax.jit(lambda *v: layer(*v, return_info=True))(*values)
        assert plain.solver == traced.solver == want.solver
        for got, exact in ((plain, True), (traced, on)):
            for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
                assert g.shape == w.shape, path
                (np.testing.assert_array_equal if exact else functools.partial(np.testing.assert_allclose, rtol=1e-6))(g, w)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(plain))
        assert all(leaf.dtype == (np.float64 if on else np.float32) for leaf in jax.tree.leaves(traced.solution)[:3])


def test_a_warm_start_is_taken_in_plain_and_in_compiled_calls() -> None:
    layer, values = layer_of("least_squares", "SCS"), values_of("least_squares", 3)
    first, info = layer(*values, return_info=True)
    for call in (layer, jax.jit(lambda *v: layer(*v, return_info=True, warm_start=info))):
        again, warm = call(*values, return_info=True, warm_start=info) if call is layer else call(*values)
        assert np.asarray(warm.warm_started).all() and (np.asarray(warm.iterations) < info.iterations).all()
        close(again, first, 1e-6)

    def step(info: Info, g: Any) -> tuple[Info, Any]:
        (x,), info = layer(values[0], g, values[2], return_info=True, warm_start=info)
        return info, (x, info.iterations)

    def path(gs: Any) -> Any:
        return jax.lax.scan(step, jax.tree.map(jnp.asarray, warm), gs)[1]

    xs, iterations = path(jnp.stack([values[1]] * 2))
    assert iterations.shape == (2, 3) and (iterations < info.iterations).all()
    close(xs, np.stack([first[0]] * 2), 1e-6)
    gradient = jax.grad(lambda gs: (path(gs)[0] ** 2).sum())(jnp.stack([values[1]] * 2))
    want = jax.grad(lambda g: (layer(values[0], g, values[2])[0] ** 2).sum())(jnp.asarray(values[1]))
    close(gradient, np.stack([want] * 2), 1e-5)
    rows = jax.vmap(lambda info, *row: layer(*row, return_info=True, warm_start=info))(info, *values)[1]
    assert rows.warm_started.all()
    with pytest.raises(ValueError, match="warm_start is a int; wanted the info of an earlier call"):
        layer(*values, warm_start=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"warm_start has batch shape \(3,\) and sizes"):
        jax.jit(lambda *v: layer(*v, warm_start=info))(*(v[0] for v in values))


def test_solver_args_reach_the_solver() -> None:
    layer, values = layer_of("least_squares", "SCS"), values_of("least_squares")
    for wrap in (lambda f: f, jax.jit):
        _, info = wrap(lambda *v: layer(*v, return_info=True, on_failure="nan", solver_args={"max_iters": 1}))(*values)
        assert int(info.status) == Status.ITERATION_LIMIT
    with pytest.raises(ValueError, match="max_iters"):
        layer(*values, solver_args={"max_iters": -1})


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.vmap(f, axis_size=2, in_axes=None)])
def test_misuse_is_told_while_tracing(wrap: Callable) -> None:
    x, p, w = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True, name="w")
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p) + w)), [p, w], [x])
    one = jnp.ones(3)
    wrong = [
        ((one,), "got 1 parameter values; wanted 2"),
        ((jnp.ones(2), 1.0), r"\(1 of 2\) has shape \(2,\); wanted \(3,\) or \(\*batch, 3\)"),
        ((jnp.ones((2, 3)), jnp.ones(4)), r"batch shape \(2,\) and parameter 'w' has batch shape \(4,\)"),
        ((one, jnp.ones((), jnp.complex128)), "'w' is real and got complex values"),
    ]
    for values, message in wrong:
        with pytest.raises(ValueError, match=message):
            wrap(layer)(*values)
    with pytest.raises(ValueError, match="on_failure is 'ignore'"):
        wrap(lambda p: layer(p, 1.0, on_failure="ignore"))(one)
    with pytest.raises(ValueError, match="parameter"):
        layer("nonsense", 1.0)
    with pytest.raises(SolverError, match="'w': got"):
        layer(one, -1.0)


def test_the_constructor_is_that_of_the_other_layers() -> None:
    x, p = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)))
    with pytest.raises(TypeError, match="write parameters="):
        CvxpyLayer(problem, params=[p], variables=[x])
    with pytest.raises(TypeError, match="got no variables"):
        CvxpyLayer(problem, [p])
    with pytest.warns(FutureWarning, match="ignores verbose="):
        CvxpyLayer(problem, [p], [x], verbose=True)


# A layer as a value


def test_a_layer_is_hashable_a_static_pytree_and_can_be_pickled() -> None:
    layer, values = layer_of("least_squares"), values_of("least_squares")
    want = layer(*values)
    assert hash(layer) == hash(layer) and jax.tree.leaves(layer) == [] and {layer: 1}[layer] == 1
    traces = []

    def run(model: dict[str, Any], *values: Any) -> Any:
        traces.append(1)
        return model["layer"](*values)

    run = jax.jit(run)
    for _ in range(2):
        close(run({"layer": layer, "unused": jnp.ones(2)}, *values), want, 1e-14)
    assert len(traces) == 1
    close(jax.jit(lambda layer, *v: layer(*v), static_argnums=0)(layer, *values), want, 1e-14)
    close(pickle.loads(pickle.dumps(layer))(*values), want, 1e-14)


def test_large_arrays_do_not_stall_a_callback() -> None:
    """JAX's own device_put inside a callback can wait for the thread that runs the callback."""
    n = 300
    x, p = cp.Variable(n), cp.Parameter(n)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x])
    points = np.random.default_rng(0).standard_normal((200, n))
    (out,) = jax.jit(lambda p: layer(p * 1.0))(points)
    np.testing.assert_allclose(out, np.maximum(points, 0), atol=1e-9)


def test_an_array_of_jax_is_known_by_its_type() -> None:
    assert backend_of(jnp.ones(2)).name == "jax"
    assert backend_of(jnp.ones(2)).host(jnp.ones(2, jnp.bfloat16)).dtype == np.float64
    assert backend_of(jnp.ones(2)).resolution(jnp.ones(2, jnp.float32)) == np.finfo(np.float32).eps


# The cone program


def cone_program() -> tuple[ConicLayer, list[np.ndarray]]:
    rng = np.random.default_rng(3)
    n, cone = 4, Product((Zero(1), NonNegative(3), SecondOrder(3)))
    root, A = rng.standard_normal((n, n)), rng.standard_normal((7, n))
    P = sp.csc_matrix(sp.triu(root @ root.T + np.eye(n)))
    pattern = Pattern.of(P, A, cone)
    inside = np.concatenate([np.zeros(1), rng.random(3), [2.0, 0.3, -0.2]])
    b = A @ rng.standard_normal(n) + inside
    return ConicLayer(pattern), [P.data, 3 * rng.standard_normal(n), sp.csc_matrix(A).data, b]


def test_the_cone_program_and_its_derivatives() -> None:
    layer, values = cone_program()
    want, _, saved = layer.core.forward(values, Options())
    outputs, pull = jax.vjp(layer, *map(jnp.asarray, values))
    close(outputs, want, 1e-12)
    cotangents, tangents = like(want), like(values, 2)
    close(pull(tuple(map(jnp.asarray, cotangents))), layer.core.vjp(saved, cotangents, [True] * 4), 1e-9)
    close(jax.jvp(layer, tuple(map(jnp.asarray, values)), tuple(map(jnp.asarray, tangents)))[1], layer.core.jvp(saved, tangents), 1e-9)
    gradient = jax.grad(loss_of(layer), argnums=(0, 1, 2, 3))
    P, q, A, b = values
    qs, bs = np.stack([q, q + 0.1, q - 0.2]), np.stack([b, b + 0.01, b])
    rows = [gradient(P, qs[i], A, bs[i]) for i in range(3)]
    got = jax.jit(jax.vmap(gradient, in_axes=(None, 0, None, 1)))(P, qs, A, bs.T)
    close(got, tuple(np.stack(column) for column in zip(*rows, strict=True)))
    shared = jax.jit(gradient)(P, qs, A, bs)  # a batch of its own: what rows share collects from all of them
    assert [g.shape for g in shared] == [P.shape, qs.shape, A.shape, bs.shape]
    H = jax.jit(jax.hessian(loss_of(layer), argnums=1))(*values)
    g, step = jax.grad(loss_of(layer), argnums=1), 1e-5
    differences = np.stack([(g(P, q + step * e, A, b) - g(P, q - step * e, A, b)) / (2 * step) for e in np.eye(4)])
    np.testing.assert_allclose(H, differences, atol=1e-6 * abs(differences).max())


def test_the_cone_program_has_the_same_call() -> None:
    layer, (P, q, A, b) = cone_program()
    outputs, info = layer(P, np.stack([q, q]), A, b, return_info=True)
    assert [v.shape for v in outputs] == [(2, 4), (2, 7), (2, 7)] and info.status.tolist() == [0, 0]
    q = np.stack([q, np.full(4, np.nan)])
    with pytest.raises(SolverError, match="INVALID_PARAMETER"):
        layer(P, q, A, b)
    (x, _, _), info = jax.jit(lambda *v: layer(*v, return_info=True))(P, q, A, b)
    assert info.status.tolist() == [0, 6] and np.isnan(x[1]).all() and np.isfinite(x[0]).all()
    gradient = jax.jit(jax.grad(lambda q: layer(P, q, A, b)[0].sum()))(q)
    assert not np.asarray(gradient[1]).any() and np.asarray(gradient[0]).any()
    with pytest.raises(ValueError, match=r"'q' \(2 of 4\) has shape \(3,\)"):
        layer(P, q[0, :3], A, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(P, q[0], A, b, warm_start=layer(P, q[0], A, b, return_info=True)[1])
