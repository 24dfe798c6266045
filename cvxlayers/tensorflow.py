"""The TensorFlow adapter: Keras layers around a `HostMap`, and the custom gradients that wire its derivatives.

Each derivative is a `Rule` of `cvxlayers.rules`, a call of the host tied to the rules of its own derivatives. The host is called straight
away in eager mode and by a node of the graph inside tf.function, where the state is a tensor of that graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from cvxlayers import interface
from cvxlayers.backend import NUMPY, Backend, Verbs, backend_of, register, unrolled_loop, unrolled_scan
from cvxlayers.host import HostMap, Options, batch_shapes, check_count, common_batch, converted, solution_of, state_of, state_size
from cvxlayers.program import Info
from cvxlayers.rules import Rule, Values

tf: Any = tensorflow  # TensorFlow loads its names lazily, out of a type checker's sight

NO_EXPORT = "A SavedModel cannot hold this layer, which calls the host: save the weights, or a .keras file and your factory."
NO_REBUILD = (
    "A file holds no optimization problem: to load this layer, pass load_model(..., custom_objects={{{name!r}: factory}}) where "
    "factory.from_config(config) builds it, config['name'] being its name."
)


class _Layer(interface.HostLayer, keras.layers.Layer):
    """A `HostMap` as a layer without weights: a plain function of tensors that Keras models can contain."""

    extra = ("name",)
    call = interface.solve

    def _hold(self, core: HostMap, name: str | None = None, **extra: Any) -> None:
        keras.layers.Layer.__init__(self, name=name, autocast=False)  # Keras would cast float64 to float32
        self.core = core
        self.supports_jit = False
        self.built = True

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *params: Any, training: Any = None, **options: Any) -> Any:
        # Past Keras, whose own call turns NumPy values into tensors, of which the widest sets the dtype of the results.
        symbolic = any(isinstance(p, keras.KerasTensor) for p in params)
        return keras.Operation.symbolic_call(self, *params, **options) if symbolic else self.call(*params, **options)

    def _solve(self, params: Sequence[Any], options: Options, return_info: bool) -> Any:
        if return_info and not tf.executing_eagerly():
            raise ValueError("return_info=True inside tf.function: a graph cannot hold an Info; call the layer eagerly for it")
        call = _Call(self.core, params, options)
        outputs = tuple(call.solve())
        return (outputs, call.info) if return_info else outputs

    def compute_output_spec(self, *params: Any, **options: Any) -> tuple[Any, ...]:
        tensors = [tf.TensorSpec(p.shape, p.dtype) if isinstance(p, keras.KerasTensor) else p for p in params]
        specs = _Call(self.core, tensors, Options()).specs
        return tuple(keras.KerasTensor(tuple(shape), dtype=dtype.name) for dtype, shape in specs)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        if cls.__init__ in (CvxpyLayer.__init__, ConicLayer.__init__):
            raise ValueError(NO_REBUILD.format(name=cls.__name__))
        return cls(**config)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        if save_type == "savedmodel":
            raise ValueError(NO_EXPORT)
        return super()._trackable_children(save_type, **kwargs)

    def __reduce__(self) -> Any:
        return _copied, (type(self), self.core, self.name)


def _copied(kind: Any, core: HostMap, name: str) -> _Layer:
    layer = kind.__new__(kind)
    layer._hold(core, name)
    return layer


class CvxpyLayer(interface.CvxpyLayer, _Layer):
    """A disciplined convex problem as a differentiable TensorFlow function and Keras 3 layer, whose name is ``name``.

    Inside tf.function there is no ``return_info``; a SolverError becomes a tf.errors.UnknownError with the same text, and a wrong shape
    that is not known before a tf.errors.InvalidArgumentError. Tapes nest twice. Forward accumulators are refused where they can be seen: an
    accumulator around a call of a tf.function cannot, and TensorFlow then fails with an error of its own.

    >>> import cvxpy as cp
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), parameters=[p], variables=[x])
    >>> p_t = tf.Variable([2.0, -1.0])
    >>> with tf.GradientTape() as tape:
    ...     (x_star,) = layer(p_t)
    ...     loss = tf.reduce_sum(x_star)
    >>> tape.gradient(loss, p_t).numpy().round(6) + 0.0
    array([1., 0.], dtype=float32)
    """


class ConicLayer(interface.ConicLayer, _Layer):
    """A batch of cone programs of one pattern as a differentiable TensorFlow function and Keras 3 layer, whose name is ``name``.

    >>> import numpy as np, scipy.sparse as sp
    >>> from cvxlayers.cones import NonNegative, Product
    >>> from cvxlayers.program import Pattern
    >>> layer = ConicLayer(Pattern.of(sp.eye(2), -sp.eye(2), Product((NonNegative(2),))))
    >>> x, y, s = layer(np.ones(2), tf.constant([1.0, -1.0]), -np.ones(2), np.zeros(2))
    >>> x.numpy().round(6) + 0.0
    array([0., 1.], dtype=float32)
    """


class _Call:
    """One call of a map: its parameters as tensors, those ``at`` which there were tensors, and what comes back beside the outputs."""

    info: Info

    def __init__(self, core: HostMap, params: Sequence[Any], options: Options) -> None:
        check_count(core.inputs, params)
        self.core, self.options, self.eager = core, options, tf.executing_eagerly()
        self.at = [k for k, p in enumerate(params) if backend_of(p).name == "tensorflow"]
        self.params = [
            p if isinstance(p, tf.TensorSpec) else converted(port, tf.convert_to_tensor, p if k in self.at else converted(port, _array, p))
            for k, (p, port) in enumerate(zip(params, core.inputs, strict=True))
        ]
        shapes = [None if p.shape.rank is None else tuple(p.shape) for p in self.params]
        batch = tf.TensorShape(common_batch(batch_shapes(core.inputs, shapes)))  # as far as it is known; the host sees the rest
        dtype = self._dtype()
        wide = tf.complex128 if dtype == tf.float64 else tf.complex64
        self.specs = [(wide if port.complex else dtype, batch + port.shape) for port in core.outputs]
        self.state = [] if self.eager else [(tf.float64, batch + [state_size(core.conic.pattern)])]

    def _dtype(self) -> Any:
        """The widest real dtype of the tensors given."""
        for k in self.at:
            port, dtype = self.core.inputs[k], self.params[k].dtype
            if not (dtype.is_floating or dtype.is_complex and port.complex):
                wanted = "a complex or a floating one" if port.complex else "a floating one"
                raise ValueError(f"parameter '{port.name}' is a tensor of dtype {dtype.name}; wanted {wanted}")
        real = {self.params[k].dtype.real_dtype for k in self.at} or {tf.float64}
        widest = [dtype for dtype in real if dtype.size == max(other.size for other in real)]
        return widest[0] if len(widest) == 1 else tf.float32  # of the two of half precision, neither holds the other

    def solve(self) -> list[Any]:
        """The outputs."""
        if self.params and forwardprop_util.pack_tangents(self.params).tangents:
            raise ValueError("CvxpyLayer and ConicLayer have no forward mode in TensorFlow: use a GradientTape, not a ForwardAccumulator")
        if not self.eager and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
            raise ValueError("XLA cannot hold this layer, which calls the host: use tf.function without jit_compile=True.")
        found = _on_host(self._forward, self.params, [*self.specs, *self.state])
        return self._tied(found[: len(self.specs)], Rule.solution(self.core), [self.params], found[len(self.specs) :])

    def _forward(self, params: Sequence[np.ndarray]) -> list[Any]:
        outputs, info, saved = self.core.forward(params, self.options)
        if self.eager:
            self.info, self.saved = info, saved
            return outputs
        return [*outputs, state_of(info.solution)]

    def derive(self, rule: Rule, values: Values, state: Sequence[Any]) -> list[Any]:
        """A derivative. ``state`` is empty in eager mode, where the host has saved more than that."""

        def work(arrays: Sequence[np.ndarray]) -> list[Any]:
            (*directions, params), record = rule.split(arrays)
            saved = self.core.restore(params, solution_of(record, self.core.conic.pattern)) if state else self.saved
            return rule.run(self.core, saved, directions)

        like = self.specs if rule.result.kind == "outputs" else [(p.dtype, p.shape) for p in self.params]
        results = _on_host(work, [*chain(*values), *state], [like[k] for k in rule.result.which])
        return self._tied(results, rule, values, state)

    def _tied(self, results: list[Any], rule: Rule, values: Values, state: Sequence[Any]) -> list[Any]:
        """The results of a rule with their derivatives: one tie for each argument, as TensorFlow does not tell which of them it wants."""
        if not _recording():
            return results
        which, tied = [*(argument.which for argument in rule.given), self.at], results
        args = [*values[:-1], [self.params[k] for k in self.at]]
        for j in range(len(args)):

            def pull(*g: Any, j: int = j) -> list[Any]:
                if save_context.in_save_context():
                    raise ValueError(NO_EXPORT)
                cotangents = [tf.convert_to_tensor(one) for one in g]  # that of a gather is not a tensor
                term = rule.adjoint(j, which[j], values, cotangents)
                return self.derive(*term, state) if term else []

            if j == 0:
                tied = _tie(results, args[j], pull)
            else:
                tied = [r + zero for r, zero in zip(tied, _tie([tf.zeros_like(r) for r in results], args[j], pull), strict=True)]
        return tied


def _on_host(work: Callable, tensors: Sequence[Any], specs: Sequence[Any]) -> list[Any]:
    """``work`` on arrays, now or as a node of the graph; tensors of these dtypes and static shapes."""

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        pairs = zip(work(arrays), specs, strict=True)
        return [np.asarray(v if dtype.is_complex else v.real, dtype=dtype.as_numpy_dtype) for v, (dtype, _) in pairs]

    if tf.executing_eagerly():
        return [tf.constant(v) for v in run(*(t.numpy() for t in tensors))]
    results = tf.numpy_function(run, tensors, [dtype for dtype, _ in specs], stateful=False)
    for result, (_, shape) in zip(results, specs, strict=True):
        result.set_shape(shape)
    return results


def _tie(values: Sequence[Any], args: Sequence[Any], pull: Callable) -> list[Any]:
    """``values`` with the derivative that ``pull`` gives them with respect to ``args``."""

    @tf.custom_gradient
    def tied(*given: Any) -> Any:
        return list(given[: len(values)]), lambda *g: [None] * len(values) + list(pull(*g))

    return tied(*values, *args) if args else list(values)


def _recording() -> bool:
    return not tf.executing_eagerly() or record.could_possibly_record()


def _array(value: Any) -> np.ndarray:
    """A parameter that is no tensor, in single precision if it was."""
    return np.asarray(value) if getattr(value, "dtype", None) in (np.float32, np.complex64) else backend_of(value).host(value)


def _host(x: Any) -> np.ndarray:
    return NUMPY.host(tf.convert_to_tensor(x).numpy())


def _resolution(x: Any) -> float:
    return NUMPY.resolution(np.ones((), tf.as_dtype(x.dtype).as_numpy_dtype))


def _tensor(value: Any, like: Any) -> Any:
    return tf.convert_to_tensor(value, dtype_hint=getattr(like, "dtype", None))


# The verbs of this framework. TensorFlow has no namespace of the array-API standard; this one has the names that are used here.
XP = SimpleNamespace(
    **{
        name: getattr(tf, name)
        for name in ("abs", "add", "argsort", "broadcast_to", "concat", "cos", "exp", "expand_dims", "eye", "matmul")
    },
    **{name: getattr(tf, name) for name in ("maximum", "minimum", "ones_like", "reshape", "sign", "sin", "sqrt", "square", "squeeze")},
    **{name: getattr(tf, name) for name in ("stack", "tan", "tanh", "zeros_like")},
    **{name: getattr(tf, "reduce_" + name) for name in ("all", "any", "max", "mean", "min", "prod", "sum")},
    **{name: getattr(tf.math, name) for name in ("atan2", "log")},
    isfinite=tf.math.is_finite,
    isnan=tf.math.is_nan,
    astype=tf.cast,
    cumulative_sum=lambda x, axis=-1: tf.cumsum(x, axis),
    where=lambda condition, x, y: tf.where(condition, _tensor(x, y), _tensor(y, x)),
    linalg=SimpleNamespace(solve=tf.linalg.solve, cholesky=tf.linalg.cholesky),
    matrix_transpose=tf.linalg.matrix_transpose,
    moveaxis=tensorflow.experimental.numpy.moveaxis,
    sort=lambda x, axis=-1, descending=False: tf.sort(x, axis, "DESCENDING" if descending else "ASCENDING"),
    take_along_axis=lambda x, indices, axis=-1: tensorflow.experimental.numpy.take_along_axis(x, indices, axis),
)


def _vjp(f: Callable, x: Any) -> tuple[Any, Callable]:
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = f(x)
    return y, lambda g: (tape.gradient(y, x, output_gradients=g, unconnected_gradients="zero"),)


def _loop(going: Callable, body: Callable, state: tuple) -> tuple:
    return unrolled_loop(going, body, state) if tf.executing_eagerly() else tuple(tf.while_loop(going, body, tuple(state)))


def _constant(f: Callable, ranks: Any, *arrays: Any) -> tuple[Any, ...]:
    with record.stop_recording():
        found = f(*map(tf.stop_gradient, arrays))
    return tuple(map(tf.stop_gradient, found))


def _normal(seed: Any, shape: Sequence[int], like: Any) -> Any:
    if isinstance(seed, tf.random.Generator):
        return seed.normal(shape, dtype=like.dtype)
    return tf.random.stateless_normal(shape, seed=(int(seed), 0), dtype=like.dtype)


def _called(core: HostMap, *params: Any, return_info: bool = False, **options: Any) -> Any:
    call = _Call(core, params, Options(**options))
    outputs = tuple(call.solve())
    return (outputs, call.info) if return_info else outputs


VERBS = Verbs(
    xp=XP,
    asarray=lambda value, like: tf.cast(_tensor(value, like), like.dtype),
    stop=tf.stop_gradient,
    vjp=_vjp,
    loop=_loop,
    scan=unrolled_scan(tf.stack),
    constant=_constant,
    sigmoid=tf.math.sigmoid,
    normal=_normal,
    call=_called,
)
register(Backend("tensorflow", _host, _resolution, VERBS))
