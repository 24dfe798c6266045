"""The TensorFlow adapter against the host map and finite differences: eager, in graphs, and inside Keras models."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow

from cvxlayers import SolverError, Status, diagnose
from cvxlayers.backend import backend_of
from cvxlayers.cones import NonNegative, Product, Zero
from cvxlayers.conic import ConicLayer as Conic
from cvxlayers.conic_map import ConicMap
from cvxlayers.host import Options
from cvxlayers.program import Info, Pattern
from cvxlayers.tensorflow import ConicLayer, CvxpyLayer
from tests.problems import CASES, Case, cp, inner

tf: Any = tensorflow  # TensorFlow loads its names lazily, out of a type checker's sight
NAMES = ("least_squares", "quadratic_program", "second_order_program", "mixed_cones", "hermitian_program", "geometric_program")
TWICE = ("least_squares", "quadratic_program", "second_order_program")
TILT = np.array([[1.0, 0.5, -0.3], [0.2, -0.7, 0.6]])
MODES: dict[str, Callable] = {"eager": lambda f: f, "graph": lambda f: tf.function(f, autograph=False)}


@functools.cache
def case_of(name: str) -> Case:
    return CASES[name]()


@functools.cache
def layer_of(name: str) -> Any:
    case = case_of(name)
    return CvxpyLayer(case.problem, case.parameters, case.variables, gp=case.gp)


def box(name: str | None = None) -> Any:
    """argmin |x - p|^2 with A x <= 1, x >= -1."""
    x, p, A = cp.Variable(3), cp.Parameter(3, name="p"), cp.Parameter((2, 3), name="A")
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [A @ x <= 1, x >= -1]), [p, A], [x], name=name)


def bounded() -> Any:
    """argmin |x - p|^2 with x <= u and x >= 0: infeasible for u < 0."""
    x, p, u = cp.Variable(2), cp.Parameter(2, name="p"), cp.Parameter(name="u")
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x <= u, x >= 0]), [p, u], [x])


def weights_of(layer: Any, outputs: Sequence[Any], rng: np.random.Generator) -> list[np.ndarray]:
    parts = [(rng.standard_normal(np.shape(v)), rng.standard_normal(np.shape(v))) for v in outputs]
    return [re + 1j * im if port.complex else re for port, (re, im) in zip(layer.core.outputs, parts, strict=True)]


def tf_inner(values: Sequence[Any], weights: Sequence[Any]) -> Any:
    pairs = zip(values, weights, strict=True)
    return tf.add_n([tf.reduce_sum(tf.math.real(tf.math.conj(v) * tf.cast(w, v.dtype))) for v, w in pairs])


def gradient_of(layer: Any, weights: Sequence[np.ndarray]) -> Callable:
    def gradient(*tensors: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss = tf_inner(layer(*tensors), weights)
        return tape.gradient(loss, tensors)

    return gradient


def tensors_of(values: Sequence[np.ndarray], dtype: Any = None) -> list[Any]:
    return [tf.constant(v) if dtype is None else tf.cast(v, dtype) for v in values]


def stacked(case: Case, rows: int, shared: Sequence[int] = ()) -> list[np.ndarray]:
    samples = [case.sample(np.random.default_rng(seed)) for seed in range(rows)]
    return [parts[0] if k in shared else np.stack(parts) for k, parts in enumerate(zip(*samples, strict=True))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_host(name: str, mode: str, rng: np.random.Generator) -> None:
    layer, values = layer_of(name), case_of(name).sample(rng)
    wanted, _, saved = layer.core.forward(values, Options())
    weights = weights_of(layer, wanted, rng)
    tensors = tensors_of(values)
    outputs = MODES[mode](lambda *t: layer(*t))(*tensors)
    gradients = MODES[mode](gradient_of(layer, weights))(*tensors)
    assert len(outputs) == len(wanted)
    for got, want in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    for got, want, value in zip(gradients, layer.core.vjp(saved, weights, [True] * len(values)), values, strict=True):
        assert got.shape == value.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


def test_complex_gradients_follow_tensorflow(rng: np.random.Generator) -> None:
    """A step along the gradient of a real loss changes it by the step times its squared length, as for TensorFlow's own functions."""
    layer, (H, v) = layer_of("hermitian_program"), case_of("hermitian_program").sample(rng)
    weights = weights_of(layer, layer(H, v), rng)

    def loss(z: Any) -> Any:
        return tf_inner(layer(H, z), weights) + tf.math.real(tf.reduce_sum(z * z))

    z = tf.constant(v)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(z)
    gradient = tape.gradient(value, z).numpy()
    for direction in (np.eye(3)[0] + 0j, 1j * np.eye(3)[1], gradient):
        difference = (loss(z + 1e-6 * direction) - loss(z - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(difference, inner(gradient, direction), rtol=1e-6, atol=1e-8)


def second_of(layer: Any, weights: Sequence[Any], along: Sequence[Any]) -> Callable:
    def second(*tensors: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            slope = tf_inner(gradient_of(layer, weights)(*tensors), along)
        return tape.gradient(slope, tensors)

    return second


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TWICE)
def test_nested_tapes_are_the_derivative_of_the_gradient(name: str, mode: str, rng: np.random.Generator) -> None:
    layer, values, along = layer_of(name), case_of(name).sample(rng), case_of(name).sample(rng)
    weights = weights_of(layer, layer(*values), rng)
    got = MODES[mode](second_of(layer, weights, along))(*tensors_of(values))
    ahead, behind = (
        gradient_of(layer, weights)(*tensors_of([v + t * d for v, d in zip(values, along, strict=True)])) for t in (1e-5, -1e-5)
    )
    for h, a, b in zip(got, ahead, behind, strict=True):
        difference = (a.numpy() - b.numpy()) / 2e-5
        np.testing.assert_allclose(h, difference, rtol=1e-5, atol=1e-5 * (1 + np.abs(difference).max()))
    assert max(np.abs(h).max() for h in got) > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_linear_in_a_weight_for_every_cone(mode: str, rng: np.random.Generator) -> None:
    """Through an inner gradient to its weight: a pushforward, which needs no second derivative of any cone."""
    layer, values = layer_of("mixed_cones"), case_of("mixed_cones").sample(rng)
    c, C = tensors_of(values)
    along = rng.standard_normal(4)

    def pushed(weight: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(weight)
            with tf.GradientTape() as tape:
                tape.watch(c)
                loss = tf.reduce_sum(layer(c, C)[0] * weight)
            slope = tf.reduce_sum(tape.gradient(loss, c) * along)
        return outer.gradient(slope, weight)

    saved = layer.core.forward(values, Options())[2]
    np.testing.assert_allclose(MODES[mode](pushed)(tf.ones(4, tf.float64)), layer.core.jvp(saved, [along, None])[0], atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_the_pushforward_has_a_gradient(mode: str, rng: np.random.Generator) -> None:
    """The directional derivative made of two tapes, differentiated by a third: second order still."""
    layer, values = layer_of("second_order_program"), case_of("second_order_program").sample(rng)
    tensors, along = tensors_of(values), rng.standard_normal(6)
    weights = [rng.standard_normal(4), np.zeros(6)]

    def gradient(*tensors: Any) -> Any:
        with tf.GradientTape() as last:
            last.watch(tensors)
            with tf.GradientTape() as middle:
                weight = tf.ones(4, tf.float64)
                middle.watch(weight)
                with tf.GradientTape() as first:
                    first.watch(tensors[1])
                    loss = tf.reduce_sum(layer(*tensors)[0] * weight)
                slope = tf.reduce_sum(first.gradient(loss, tensors[1]) * along)
            pushed = tf.reduce_sum(middle.gradient(slope, weight) * weights[0])
        return last.gradient(pushed, tensors)

    saved = layer.core.forward(values, Options())[2]
    wanted = layer.core.second_vjp(saved, weights, [None, along, None], [True] * 3)
    for got, want in zip(MODES[mode](gradient)(*tensors), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)
    assert np.abs(wanted[0]).max() > 1e-3


def test_second_derivatives_that_do_not_exist_are_errors(rng: np.random.Generator) -> None:
    for name, message in (("mixed_cones", "Exponential and Power and Semidefinite"), ("geometric_program", "geometric program")):
        layer, values = layer_of(name), tensors_of(case_of(name).sample(rng))
        second = second_of(layer, weights_of(layer, layer(*values), rng), values)
        with pytest.raises(ValueError, match=message):
            second(*values)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            tf.function(second)(*values)


@pytest.mark.parametrize("mode", MODES)
def test_the_third_order_is_an_error(mode: str) -> None:
    layer, p = box(), tf.constant([0.5, 1.0, 2.0])

    def third(p: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(p)
            second = second_of(lambda q: layer(q, TILT), [np.arange(3.0)], [np.ones(3)])(p)
            loss = tf.reduce_sum(second[0])
        return outer.gradient(loss, p)

    with pytest.raises(ValueError, match="the third was asked for"):
        MODES[mode](third)(p)


@pytest.mark.parametrize("mode", MODES)
def test_jacobians(mode: str, rng: np.random.Generator) -> None:
    layer, (F, g, lasso) = layer_of("least_squares"), tensors_of(case_of("least_squares").sample(rng))

    def jacobian(g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(g)
            (x,) = layer(F, g, lasso)
        return tape.jacobian(x, g)

    got, step = MODES[mode](jacobian)(g).numpy(), 1e-6 * np.eye(7)
    wanted = np.stack([(layer(F, g + e, lasso)[0] - layer(F, g - e, lasso)[0]) / 2e-6 for e in step], axis=1)
    np.testing.assert_allclose(got, wanted, atol=1e-8)
    assert got.shape == (5, 7) and np.abs(got).max() > 1e-2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
def test_batches_are_rows(batch: tuple[int, ...], mode: str, rng: np.random.Generator) -> None:
    layer, rows = box(), int(np.prod(batch))
    p, A = rng.standard_normal((*batch, 3)), rng.standard_normal((2, 3))
    solve, gradient = MODES[mode](lambda p, A: layer(p, A)[0]), MODES[mode](gradient_of(layer, [np.ones((*batch, 3))]))
    x = solve(*tensors_of([p, A]))
    gp, gA = gradient(*tensors_of([p, A]))
    assert x.shape == gp.shape == (*batch, 3) and gA.shape == (2, 3)
    one = [gradient_of(layer, [np.ones(3)])(*tensors_of([row, A])) for row in p.reshape(rows, 3)]
    for k, row in enumerate(p.reshape(rows, 3)):
        np.testing.assert_allclose(x.numpy().reshape(rows, 3)[k], layer(row, A)[0], atol=1e-12)
        np.testing.assert_allclose(gp.numpy().reshape(rows, 3)[k], one[k][0], atol=1e-10)
    np.testing.assert_allclose(gA, sum((g[1].numpy() for g in one), np.zeros((2, 3))), atol=1e-10)


def test_an_unknown_batch_keeps_the_shapes_that_are_known() -> None:
    layer, A = box(), TILT
    for shape, known in (((None, 3), (None, 3)), ((None, None, 3), (None, None, 3)), ((3,), (3,)), (None, None)):
        spec = tf.TensorSpec(shape, tf.float64)
        solve = tf.function(lambda p: layer(p, A)[0], input_signature=[spec], autograph=False)
        assert solve.get_concrete_function().structured_outputs.shape.is_compatible_with(tf.TensorShape(known))
        assert str(solve.get_concrete_function().structured_outputs.shape) == str(tf.TensorShape(known))
    for rows in (0, 1, 4):
        p = np.linspace(-2, 2, 3 * rows).reshape(rows, 1, 3)
        np.testing.assert_allclose(solve(tf.constant(p)), layer(p, A)[0], atol=1e-12)  # the spec of unknown rank


def test_the_batch_of_a_graph_may_come_from_any_parameter(rng: np.random.Generator) -> None:
    layer = box()
    specs = [tf.TensorSpec((3,), tf.float64), tf.TensorSpec((None, 2, 3), tf.float64)]
    solve = tf.function(lambda p, A: layer(p, A)[0], input_signature=specs, autograph=False)
    p, A = rng.standard_normal(3), rng.standard_normal((4, 2, 3))
    assert solve.get_concrete_function().structured_outputs.shape.as_list() == [None, 3]
    np.testing.assert_allclose(solve(tf.constant(p), tf.constant(A)), layer(p, A)[0], atol=1e-12)


def test_graph_control_flow(rng: np.random.Generator) -> None:
    layer, A, p = box(), tf.constant(rng.standard_normal((2, 3))), tf.constant(rng.standard_normal(3))

    def loop(p: Any, A: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(A)
            x = p
            for _ in tf.range(3):
                x = layer(0.9 * x + p, A)[0]
            loss = tf.reduce_sum(tf.square(x))
        return x, tape.gradient(loss, A)

    for got, want in zip(tf.function(loop)(p, A), loop(p, A), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_dtypes(mode: str) -> None:
    layer, p, A = box(), np.array([0.5, -2.0, 1.0]), np.full((2, 3), 0.7)
    exact = layer(p, A)[0]
    assert exact.dtype == tf.float64  # NumPy alone
    for given, wanted in [
        ((tf.float32, tf.float32), tf.float32),
        ((tf.float32, tf.float64), tf.float64),
        ((tf.bfloat16, tf.float16), tf.float32),
        ((tf.bfloat16, tf.bfloat16), tf.bfloat16),
    ]:
        tensors = [tf.cast(v, d) for v, d in zip((p, A), given, strict=True)]
        (x,) = MODES[mode](lambda *t: layer(*t))(*tensors)
        gradients = MODES[mode](gradient_of(layer, [np.ones(3)]))(*tensors)
        assert x.dtype == wanted and [g.dtype for g in gradients] == list(given)
        np.testing.assert_allclose(tf.cast(x, tf.float64), exact, atol=3e-2 if tf.bfloat16 in given else 1e-6)
    (x,) = MODES[mode](lambda p: layer(p, A))(tf.constant(p, tf.float32))
    assert x.dtype == tf.float32  # NumPy's float64 takes the dtype of the tensor
    H, v = case_of("hermitian_program").sample(np.random.default_rng(0))
    outputs = MODES[mode](lambda H: layer_of("hermitian_program")(H, v))(tf.constant(H, tf.complex64))
    assert [o.dtype for o in outputs] == [tf.complex64] * 2


def test_a_real_tensor_for_a_complex_parameter_has_a_real_gradient(rng: np.random.Generator) -> None:
    layer, (H, v) = layer_of("hermitian_program"), case_of("hermitian_program").sample(rng)
    weights = weights_of(layer, layer(H, v), rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.ComplexWarning)  # which NumPy gives where it drops an imaginary part unasked
        gradient_of(lambda z: layer(H, z), weights)(tf.constant(np.real(v)))
    real, whole = (gradient_of(lambda z: layer(H, z), weights)(tf.constant(z))[0] for z in (np.real(v), np.real(v) + 0j))
    assert real.dtype == tf.float64
    np.testing.assert_allclose(real, whole.numpy().real, atol=1e-12)


def test_variables_of_tensorflow_and_keras_are_parameters() -> None:
    layer, p, A = box(), tf.Variable([0.5, 2.0, -3.0]), keras.Variable(TILT, dtype="float32")
    with tf.GradientTape() as tape:
        (x,) = layer(p, A)
        loss = tf.reduce_sum(tf.gather(x, [0, 0, 1]))  # the cotangent of a gather is a tf.IndexedSlices
    gradients = tape.gradient(loss, [p, A.value])
    wanted = gradient_of(layer, [np.array([2.0, 1.0, 0.0])])(tf.constant(p), tf.constant(A.numpy()))
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert backend_of(p).name == backend_of(A).name == backend_of(x).name == "tensorflow"
    assert diagnose(layer, p, A).status == Status.SOLVED


def test_misuse() -> None:
    layer, p, A = box(), tf.ones(3), tf.ones((2, 3))
    wrong: list[tuple[tuple, str]] = [
        ((p,), "got 1 parameter values; wanted 2, one for each of 'p', 'A'"),
        ((tf.ones((4, 2)), A), "parameter 'p' .*has shape .4, 2.; wanted .3"),
        ((tf.ones((4, 3)), tf.ones((5, 2, 3))), "parameter 'A' has batch shape .5,."),
        ((tf.constant([1, 2, 3]), A), "parameter 'p' is a tensor of dtype int32; wanted a floating one"),
        ((tf.constant([1j, 2, 3]), A), "parameter 'p' is a tensor of dtype complex128; wanted a floating one"),
    ]
    for params, message in wrong:
        for mode in MODES.values():
            with pytest.raises(ValueError, match=message):
                mode(lambda *t: layer(*t))(*params)
    with pytest.raises(ValueError, match="on_failure"):
        layer(p, A, on_failure="ignore")
    with pytest.raises(TypeError, match="unexpected keyword argument 'params'; write parameters="):
        CvxpyLayer(cp.Problem(cp.Minimize(0)), params=[])
    late = tf.function(lambda p: layer(p, A), input_signature=[tf.TensorSpec(None, tf.float32)], autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="parameter 'p' .1 of 2. has shape .2,."):
        late(tf.ones(2))


def test_failures_when_eager() -> None:
    layer, p = bounded(), np.array([[0.5, 2.0], [0.5, 2.0]])
    u = tf.constant([1.0, -1.0], tf.float64)
    with pytest.raises(SolverError, match="row 1 of 2: PRIMAL_INFEASIBLE") as caught:
        layer(p, u)
    assert caught.value.rows == (1,) and caught.value.statuses == (Status.PRIMAL_INFEASIBLE,)
    with tf.GradientTape() as tape:
        tape.watch(u)
        (x,), info = layer(p, u, on_failure="nan", return_info=True)
        loss = tf.reduce_sum(x[0])
    assert isinstance(info, Info) and list(info.status) == [Status.SOLVED, Status.PRIMAL_INFEASIBLE]
    np.testing.assert_allclose(x, [[0.5, 1.0], [np.nan, np.nan]], atol=1e-9)
    np.testing.assert_allclose(tape.gradient(loss, u), [1.0, 0.0], atol=1e-9)
    with pytest.warns(UserWarning, match="last iterates are returned"):
        assert layer(p, u, on_failure="return")[0].shape == (2, 2)


def test_failures_in_a_graph() -> None:
    """ "raise" is TensorFlow's own error with the same sentence, and the function lives on; "nan" is as in eager mode."""
    layer, p = bounded(), np.array([[0.5, 2.0], [0.5, 2.0]])
    good, bad = tf.constant([1.0, 1.0], tf.float64), tf.constant([1.0, -1.0], tf.float64)
    solve = tf.function(lambda u: layer(p, u)[0], autograph=False)
    with pytest.raises(tf.errors.UnknownError, match="SolverError: row 1 of 2: PRIMAL_INFEASIBLE"):
        solve(bad)
    np.testing.assert_allclose(solve(good), [[0.5, 1.0]] * 2, atol=1e-9)

    @tf.function(autograph=False)
    def masked(u: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(u)
            (x,) = layer(p, u, on_failure="nan")
            loss = tf.reduce_sum(x[0])
        return x, tape.gradient(loss, u)

    x, g = masked(bad)
    np.testing.assert_allclose(x, [[0.5, 1.0], [np.nan, np.nan]], atol=1e-9)
    np.testing.assert_allclose(g, [1.0, 0.0], atol=1e-9)
    with pytest.raises(ValueError, match="a graph cannot hold an Info"):
        tf.function(lambda u: layer(p, u, return_info=True), autograph=False)(good)


@pytest.mark.parametrize("mode", MODES)
def test_warm_starts_and_solver_arguments(mode: str, rng: np.random.Generator) -> None:
    case = case_of("least_squares")
    layer = CvxpyLayer(case.problem, case.parameters, case.variables, solver="SCS")
    tensors = tensors_of(case.sample(rng))
    outputs, info = layer(*tensors, return_info=True)
    again, warm = layer(*tensors, return_info=True, warm_start=info)
    assert warm.warm_started.all() and not info.warm_started.any() and warm.iterations < info.iterations
    started = MODES[mode](lambda *t: layer(*t, warm_start=info, solver_args={"max_iters": 1 + int(warm.iterations)}))
    np.testing.assert_allclose(started(*tensors)[0], again[0], atol=1e-7)
    error = SolverError if mode == "eager" else tf.errors.UnknownError
    with pytest.raises(error, match="ITERATION_LIMIT"):
        MODES[mode](lambda *t: layer(*t, solver_args={"max_iters": 1}))(*tensors)


def test_a_graph_keeps_the_numbers_it_was_traced_with() -> None:
    layer, A = box(), np.zeros((2, 3))
    solve = tf.function(lambda p: layer(p, A)[0], autograph=False)
    p = tf.constant([1.0, 2.0, 3.0])
    before = solve(p)
    A[:] = 5.0
    np.testing.assert_array_equal(solve(p), before)
    (alone,) = tf.function(lambda: layer(np.ones(3), np.zeros((2, 3))), autograph=False)()
    np.testing.assert_allclose(alone, np.ones(3), atol=1e-9)


def test_xla_is_refused_in_one_sentence() -> None:
    layer, p = box(), tf.ones(3)
    with pytest.raises(ValueError, match="XLA cannot hold this layer, which calls the host: use tf.function without jit_compile=True"):
        tf.function(lambda p: layer(p, TILT), jit_compile=True)(p)


def test_forward_accumulators_are_refused() -> None:
    layer, p, A = box(), tf.ones(3), TILT

    def accumulate(solve: Callable) -> Any:
        with tf.autodiff.ForwardAccumulator(p, tf.ones(3)) as accumulator:
            x = solve(p)
        return accumulator.jvp(x)

    def solve(p: Any) -> Any:
        return layer(p, A)[0]

    for run in (lambda: accumulate(solve), tf.function(lambda: accumulate(solve), autograph=False)):
        with pytest.raises(ValueError, match="no forward mode in TensorFlow: use a GradientTape, not a ForwardAccumulator"):
            run()
    with tf.autodiff.ForwardAccumulator(p, tf.ones(3)):
        np.testing.assert_allclose(solve(tf.zeros(3)), np.zeros(3), atol=1e-6)  # no tangent comes here
    for hidden in (solve, lambda p: gradient_of(lambda q: layer(q, A), [np.ones(3)])(p)[0]):
        with pytest.raises((TypeError, ValueError, tf.errors.OpError)):  # TensorFlow's own error: a tensor of the graph has no tangent
            accumulate(tf.function(hidden, autograph=False))


class Model(keras.Model):
    """Dense, layer, dense; the second parameter of the layer is a weight."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.last = keras.layers.Dense(3), keras.layers.Dense(1)
        self.tilt = self.add_weight(shape=(2, 3), name="tilt")
        self.box = box()

    def call(self, inputs: Any) -> Any:
        (x,) = self.box(self.first(inputs), self.tilt)
        return self.last(x)


def functional() -> Any:
    inputs = keras.Input((5,))
    (x,) = box("box")(keras.layers.Dense(3)(inputs), TILT)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


@pytest.fixture(params=["float32", "float64"])
def policy(request: pytest.FixtureRequest) -> Any:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    keras.utils.set_random_seed(0)
    yield request.param
    keras.config.set_dtype_policy(before)


def data() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(0).standard_normal((32, 5))
    return inputs, np.abs(inputs[:, :1])


@pytest.mark.parametrize("build", [Model, functional])
def test_keras_models_train_and_keep_their_dtype(build: Callable, policy: str) -> None:
    model, (inputs, targets) = build(), data()
    model.compile(keras.optimizers.Adam(0.05), "mse")
    losses = model.fit(inputs, targets, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert {w.dtype for w in model.weights} == {policy} and model(inputs.astype(policy)).dtype == policy
    layer = next(layer for layer in model.layers if isinstance(layer, CvxpyLayer))
    assert layer(tf.ones((2, 3), tf.float64), TILT)[0].dtype == tf.float64  # Keras' policy does not reach inside


@pytest.mark.parametrize("build", [Model, functional])
def test_weights_are_saved_and_loaded(build: Callable, tmp_path: Path) -> None:
    inputs, _ = data()
    model, other = build(), build()
    wanted = model(inputs)
    assert np.abs(wanted - other(inputs)).max() > 1e-3
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(other(inputs), wanted, atol=1e-6)


def test_a_keras_file_is_loaded_with_a_factory(tmp_path: Path) -> None:
    model, (inputs, _) = functional(), data()
    model.save(tmp_path / "model.keras")
    factory = SimpleNamespace(from_config=lambda config: box(config["name"]))
    loaded: Any = keras.models.load_model(tmp_path / "model.keras", custom_objects={"CvxpyLayer": factory})
    np.testing.assert_allclose(loaded(inputs), model(inputs), atol=1e-6)
    with pytest.raises(ValueError, match="A file holds no optimization problem: .*custom_objects={'CvxpyLayer': factory}"):
        keras.models.load_model(tmp_path / "model.keras", custom_objects={"CvxpyLayer": CvxpyLayer})


class Ball(CvxpyLayer):
    """A problem that knows how to build itself: its class is its factory."""

    def __init__(self, name: str | None = None) -> None:
        x, p = cp.Variable(5), cp.Parameter(5)
        super().__init__(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1]), [p], [x], name=name)


def test_a_subclass_is_its_own_factory(tmp_path: Path) -> None:
    source, (inputs, _) = keras.Input((5,)), data()
    model = keras.Model(source, Ball("ball")(source)[0])
    model.save(tmp_path / "model.keras")
    loaded: Any = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Ball": Ball})
    x = loaded(inputs).numpy()
    np.testing.assert_array_equal(x, model(inputs))
    assert (np.linalg.norm(x, axis=1) < 1 + 1e-6).all() and Ball("ball").get_config() == {"name": "ball"}


def test_a_saved_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    sentence = "A SavedModel cannot hold this layer, which calls the host: save the weights, or a .keras file and your factory."
    model, layer = functional(), box()
    for export in (lambda: model.export(tmp_path, verbose=False), lambda: tf.saved_model.save(model, str(tmp_path))):
        with pytest.raises(ValueError, match=sentence):
            export()
    module = tf.Module()
    module.solve = tf.function(lambda p: layer(p, TILT)[0], input_signature=[tf.TensorSpec((None, 3))], autograph=False)
    with pytest.raises(ValueError) as caught:  # the module does not own the layer: TensorFlow's message stands before ours
        tf.saved_model.save(module, str(tmp_path))
    assert sentence in str(caught.value.__cause__)
    module.layer = layer
    tf.train.Checkpoint(module=module).save(str(tmp_path / "checkpoint"))


def test_copies(rng: np.random.Generator) -> None:
    layer, p, A = box("box"), tf.constant(rng.standard_normal((2, 3))), rng.standard_normal((2, 3))
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is CvxpyLayer and other is not layer and other.name == "box"
        np.testing.assert_array_equal(other(p, A)[0], layer(p, A)[0])
        np.testing.assert_array_equal(gradient_of(other, [p])(p, tf.constant(A))[1], gradient_of(layer, [p])(p, tf.constant(A))[1])
    assert copy.deepcopy(layer).core is not layer.core


@pytest.mark.parametrize("mode", MODES)
def test_the_conic_layer(mode: str, rng: np.random.Generator) -> None:
    A = rng.standard_normal((5, 3))
    pattern = Pattern.of(np.eye(3), A, Product((Zero(1), NonNegative(4))))
    layer, host = ConicLayer(pattern), ConicMap(Conic(pattern))
    b = np.concatenate([np.zeros((2, 1)), rng.random((2, 4))], axis=1)
    values = [np.ones(pattern.nnzP), rng.standard_normal((2, 3)), sp.csc_matrix(A).data, b]
    wanted, info, saved = host.forward(values, Options())
    weights = [rng.standard_normal(v.shape) for v in wanted]
    outputs = MODES[mode](lambda *t: layer(*t))(*tensors_of(values))
    for got, want in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)
    gradients = MODES[mode](gradient_of(layer, weights))(*tensors_of(values))
    for got, want in zip(gradients, host.vjp(saved, weights, [True] * 4), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)
    along = [rng.standard_normal(v.shape) for v in values]
    second = MODES[mode](second_of(layer, weights, along))(*tensors_of(values))
    for got, want in zip(second, host.second_vjp(saved, weights, along, [True] * 4), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)
    _, warm = layer(*values, return_info=True, warm_start=info)
    assert warm.status.shape == (2,)
    with pytest.raises(ValueError, match="q.* has shape"):
        MODES[mode](lambda *t: layer(*t))(*tensors_of([values[0], np.ones(2), *values[2:]]))
