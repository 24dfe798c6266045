"""The TensorFlow adapter: Keras layers around a `HostMap`, and the custom gradients that wire its derivatives.

    pull(g) = f'(p)* g,   push(d) = f'(p) d,   d pull(g) = pull(dg) + second(g, dp),   d push(d) = push(dd) + f''(p)[d, dp]

Each is a call of the host and a custom gradient made of the others. The host is called straight away in eager mode and by a node of the
graph inside tf.function; what the derivatives need besides the parameters, x, y, s and the status of the rows, are tensors of that graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from cvxlayers.backend import Backend, Verbs, backend_of, register, unrolled_loop, unrolled_scan
from cvxlayers.conic_map import ConicMap
from cvxlayers.host import HostMap, Options
from cvxlayers.layer import Layer, check_spelling, ignore_legacy
from cvxlayers.program import Info, Pattern, Solution

tf: Any = tensorflow  # TensorFlow loads its names lazily, out of a type checker's sight

NO_EXPORT = "A SavedModel cannot hold this layer, which calls the host: save the weights, or a .keras file and your factory."
NO_REBUILD = (
    "A file holds no optimization problem: to load this layer, pass load_model(..., custom_objects={{{name!r}: factory}}) where "
    "factory.from_config(config) builds it, config['name'] being its name."
)


class HostLayer(keras.layers.Layer):
    """A `HostMap` as a layer without weights: a plain function of tensors that Keras models can contain."""

    def __init__(self, core: HostMap, name: str | None = None) -> None:
        super().__init__(name=name, autocast=False)  # Keras would cast float64 to float32
        self.core = core
        self.supports_jit = False
        self.built = True

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *params: Any, training: Any = None, **options: Any) -> Any:
        # Past Keras, whose own call turns NumPy values into tensors, of which the widest sets the dtype of the results.
        symbolic = any(isinstance(p, keras.KerasTensor) for p in params)
        return keras.Operation.symbolic_call(self, *params, **options) if symbolic else self.call(*params, **options)

    def call(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        return_info: bool = False,
        on_failure: str = "raise",
        warm_start: Info | None = None,
    ) -> Any:
        """Solve for every row of the batch: parameters (*batch, *shape) or shape -> tuple of outputs (*batch, *shape).

        Batch shapes are equal, or () for what all rows share. Results have the widest dtype of the tensors given; inside everything is
        float64. With ``return_info`` the result is (outputs, `Info`), in eager mode only, and ``warm_start`` takes the Info of an earlier
        call. ``on_failure``: "raise" a SolverError (inside tf.function TensorFlow makes it a tf.errors.UnknownError with the same text),
        "nan" makes failed rows NaN with zero gradient, "return" hands out the last iterate with a warning. Raises ValueError for a wrong
        count, shape or dtype; inside tf.function, a shape that is not known until it runs is a tf.errors.InvalidArgumentError.
        """
        if return_info and not tf.executing_eagerly():
            raise ValueError("return_info=True inside tf.function: a graph cannot hold an Info; call the layer eagerly for it")
        call = _Call(self.core, params, Options(solver_args, on_failure, warm_start or None))
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


def _copied(kind: Any, core: HostMap, name: str) -> HostLayer:
    layer = kind.__new__(kind)
    HostLayer.__init__(layer, core, name)
    return layer


class CvxpyLayer(HostLayer):
    """A disciplined convex problem as a differentiable TensorFlow function and Keras 3 layer.

        x*(p) = argmin_x f(x; p)  subject to the problem's constraints

    ``problem`` obeys CVXPY's DPP rules; ``parameters`` are all its parameters, in the order of the call; ``variables`` are variables of
    the problem or dual variables of its constraints, in the order of the result. ``solver`` is the name of a solver (None: chosen from
    the problem's pattern), ``gp`` says that the problem is a geometric program, ``solver_args`` holds the solver's options, ``name`` is
    the name of the Keras layer. Raises ValueError for problems and arguments that cannot make a layer.

    Method: Agrawal, Amos, Barratt, Boyd, Diamond, Kolter, "Differentiable convex optimization layers", 2019; the derivative is that of
    the optimality conditions (docs/mathematics.md). Tapes nest twice. Forward accumulators are refused where they can be seen: an
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

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any] | None = None,
        variables: Sequence[Any] | None = None,
        solver: str | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
        name: str | None = None,
        **unknown: Any,
    ) -> None:
        check_spelling(unknown)
        ignore_legacy(verbose, canon_backend)
        super().__init__(Layer(problem, parameters, variables, solver, gp, solver_args), name)


class ConicLayer(HostLayer):
    """A batch of cone programs that share a `Pattern`: ``x, y, s = layer(P, q, A, b)``, arguments as in `cvxlayers.conic.ConicLayer`.

        minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

    >>> import numpy as np, scipy.sparse as sp
    >>> from cvxlayers.cones import NonNegative, Product
    >>> layer = ConicLayer(Pattern.of(sp.eye(2), -sp.eye(2), Product((NonNegative(2),))))
    >>> x, y, s = layer(np.ones(2), tf.constant([1.0, -1.0]), -np.ones(2), np.zeros(2))
    >>> x.numpy().round(6) + 0.0
    array([0., 1.], dtype=float32)
    """

    def __init__(
        self, pattern: Pattern, solver: str | None = None, solver_args: Mapping[str, Any] | None = None, name: str | None = None
    ) -> None:
        super().__init__(ConicMap(pattern, solver, solver_args), name)


class _Call:
    """One call of a map: where tensors stand among its parameters, the derivatives there, and what comes back beside the outputs."""

    info: Info

    def __init__(self, core: HostMap, params: Sequence[Any], options: Options) -> None:
        if len(params) != len(core.inputs):
            names = ", ".join(repr(port.name) for port in core.inputs)
            raise ValueError(f"got {len(params)} parameter values; wanted {len(core.inputs)}, one for each of {names or 'no parameters'}")
        self.core, self.options, self.eager = core, options, tf.executing_eagerly()
        self.at = [k for k, p in enumerate(params) if backend_of(p).name == "tensorflow"]
        self.tensors = [params[k] if isinstance(params[k], tf.TensorSpec) else tf.convert_to_tensor(params[k]) for k in self.at]
        # A graph keeps the numbers that were there when it was traced: copies of what is no tensor.
        self.params = self._filled(self.tensors, [p if self.eager or k in self.at else np.array(p) for k, p in enumerate(params)])
        dtype, batch = self._dtype(), self._batch()
        wide = tf.complex128 if dtype == tf.float64 else tf.complex64
        self.specs = [(wide if port.complex else dtype, batch + port.shape) for port in core.outputs]
        self.like = [(tensor.dtype, tensor.shape) for tensor in self.tensors]

    def _dtype(self) -> Any:
        """The widest real dtype of the tensors."""
        for k, tensor in zip(self.at, self.tensors, strict=True):
            port = self.core.inputs[k]
            if not (tensor.dtype.is_floating or tensor.dtype.is_complex and port.complex):
                wanted = "a complex or a floating one" if port.complex else "a floating one"
                raise ValueError(f"parameter '{port.name}' is a tensor of dtype {tensor.dtype.name}; wanted {wanted}")
        real = {tensor.dtype.real_dtype for tensor in self.tensors} or {tf.float64}
        widest = [dtype for dtype in real if dtype.size == max(other.size for other in real)]
        return widest[0] if len(widest) == 1 else tf.float32  # of the two of half precision, neither holds the other

    def _batch(self) -> Any:
        """The batch shape as far as it is known; the host, which sees the values, looks at the rest."""
        batch = tf.TensorShape([])
        for port, p in zip(self.core.inputs, self.params, strict=True):
            shape = tf.TensorShape(p.shape if hasattr(p, "shape") else np.shape(p))
            lead = None if shape.rank is None else shape.rank - len(port.shape)
            if lead is not None and (lead < 0 or not shape[lead:].is_compatible_with(port.shape)):
                raise ValueError(f"parameter '{port.name}' has shape {shape}; wanted {port.shape}, alone or after batch axes")
            own = shape[:lead] if lead is not None else tf.TensorShape(None)
            if batch.rank and own.rank and not batch.is_compatible_with(own):
                raise ValueError(f"parameter '{port.name}' has batch shape {own}, one before it {batch}; wanted equal ones, or none")
            if own.rank != 0:
                batch = own if batch.rank == 0 else batch.merge_with(own)
        return batch

    def solve(self) -> Sequence[Any]:
        if self.tensors and forwardprop_util.pack_tangents(self.tensors).tangents:
            raise ValueError("CvxpyLayer and ConicLayer have no forward mode in TensorFlow: use a GradientTape, not a ForwardAccumulator")
        if self.eager:
            outputs = self._host(self._forward, self.tensors, self.specs)
        else:
            if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
                raise ValueError("XLA cannot hold this layer, which calls the host: use tf.function without jit_compile=True.")
            state = [(tf.float64, None)] * 3 + [(tf.int8, None)]
            found = self._host(self._forward, self.tensors, [*self.specs, *state])
            outputs, self.state = found[: len(self.specs)], found[len(self.specs) :]
        return _tie(outputs, self.tensors, self.pull) if self.tensors else outputs

    def pull(self, *g: Any) -> Sequence[Any]:
        """f'(params)* g."""
        if save_context.in_save_context():
            raise ValueError(NO_EXPORT)
        g = tuple(map(tf.convert_to_tensor, g))  # the cotangent of a gather is not a tensor
        pulled = self._derive("vjp", self.like, g, None)
        return _linear(pulled, g, self.push, self.tensors, lambda *d: self.second(g, d))

    def push(self, *d: Any) -> Sequence[Any]:
        """f'(params) d."""
        d = tuple(map(tf.convert_to_tensor, d))
        pushed = self._derive("jvp", self.specs, None, d)
        return _linear(pushed, d, self.pull, self.tensors, lambda *g: self.second(g, d))

    def second(self, g: Sequence[Any], d: Sequence[Any]) -> Sequence[Any]:
        """The derivative along d of f'(params)* g, which is also the adjoint of e -> f''(params)[d, e] at g."""
        g, d = tuple(map(tf.convert_to_tensor, g)), tuple(map(tf.convert_to_tensor, d))
        return _tie(self._derive("second_vjp", self.like, g, d), [*self.tensors, *g, *d], _third)

    def _forward(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        outputs, info, saved = self.core.forward(self._filled(arrays, self.params), self.options)
        if self.eager:
            self.info, self.saved = info, saved
            return outputs
        found = info.solution
        return [*outputs, found.x, found.y, found.s, found.status]

    def _filled(self, given: Sequence[Any], base: Sequence[Any]) -> list[Any]:
        filled = list(base)
        for k, value in zip(self.at, given, strict=True):
            filled[k] = value
        return filled

    def _derive(self, rule: str, specs: Sequence[tuple[Any, Any]], g: Sequence[Any] | None, d: Sequence[Any] | None) -> list[Any]:
        """A derivative of the map for cotangents g of its outputs, tangents d of its tensors, or both."""
        held = [] if self.eager else [*self.tensors, *self.state]
        own, needed = len(self.at), [k in self.at for k in range(len(self.params))]

        def work(arrays: Sequence[np.ndarray]) -> list[Any]:
            rest = [backend_of(a).host(a) for a in arrays[len(held) :]]
            if self.eager:
                saved = self.saved
            else:
                saved = self.core.restore(self._filled(arrays[:own], self.params), Solution(*arrays[own : len(held)]))
            tangents = [] if d is None else [self._filled(rest[-own:], [None] * len(needed))]
            if g is None:
                return self.core.jvp(saved, *tangents)
            results = getattr(self.core, rule)(saved, rest[: len(g)], *tangents, needed)
            return [results[k] for k in self.at]

        return self._host(work, [*held, *(g or ()), *(d or ())], specs)

    @staticmethod
    def _host(work: Callable, tensors: Sequence[Any], specs: Sequence[tuple[Any, Any]]) -> list[Any]:
        """``work`` on arrays, now or as a node of the graph; tensors of these dtypes and static shapes."""

        def run(*arrays: np.ndarray) -> list[np.ndarray]:
            found = work([a if a.dtype.kind in "biufc" else tf.constant(a) for a in arrays])  # bfloat16 is no dtype of NumPy's own
            pairs = zip(found, specs, strict=True)
            return [np.asarray(v if dtype.is_complex else v.real, dtype=dtype.as_numpy_dtype) for v, (dtype, _) in pairs]

        if tf.executing_eagerly():
            return [tf.constant(v) for v in run(*(t.numpy() for t in tensors))]
        results = tf.numpy_function(run, tensors, [dtype for dtype, _ in specs], stateful=False)
        for result, (_, shape) in zip(results, specs, strict=True):
            result.set_shape(shape)
        return results


def _tie(values: Sequence[Any], args: Sequence[Any], rule: Callable) -> list[Any]:
    """``values`` with the derivative that ``rule`` gives them with respect to ``args``."""

    @tf.custom_gradient
    def tied(*given: Any) -> Any:
        return list(given[: len(values)]), lambda *g: [None] * len(values) + list(rule(*g))

    return tied(*values, *args) if _recording() else list(values)


def _linear(values: Sequence[Any], args: Sequence[Any], adjoint: Callable, params: Sequence[Any], rule: Callable) -> list[Any]:
    """``values``, linear in ``args``; two ties, for TensorFlow does not tell a rule which derivatives are wanted."""
    if not _recording():
        return list(values)
    nothing = _tie([tf.zeros_like(v) for v in values], params, rule)
    return [v + zero for v, zero in zip(_tie(values, args, adjoint), nothing, strict=True)]


def _recording() -> bool:
    return not tf.executing_eagerly() or record.could_possibly_record()


def _third(*cotangents: Any) -> Any:
    raise ValueError("CvxpyLayer and ConicLayer have derivatives up to the second order only: nest two tapes, not three")


def _host_array(x: Any) -> np.ndarray:
    array = tf.convert_to_tensor(x).numpy()
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _resolution(x: Any) -> float:
    dtype = tf.as_dtype(x.dtype)
    known = dtype.as_numpy_dtype if dtype.is_floating or dtype.is_complex else np.float64
    return 2.0**-7 if dtype == tf.bfloat16 else float(np.finfo(known).eps)


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
register(Backend("tensorflow", _host_array, _resolution, VERBS))
