"""The verbs of TensorFlow: what `cvxlayers.topk`, `cvxlayers.implicit` and `cvxlayers.control` ask of a framework.

TensorFlow has no namespace of the array-API standard; the one here has the names that are used there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow

from cvxlayers.backend import Symmetric, Verbs, unrolled_loop, unrolled_scan
from cvxlayers.host import HostMap, Options
from cvxlayers.tensorflow.call import Call, recording, tie

tf: Any = tensorflow  # TensorFlow loads its names lazily, out of a type checker's sight


LOOPED = 4  # steps from which on a loop in the graph is worth its nodes

_unrolled = unrolled_scan(tf.stack, tf.unstack)


def _tensor(value: Any, like: Any) -> Any:
    return tf.convert_to_tensor(value, dtype_hint=getattr(like, "dtype", None))


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
    argmin=tf.argmin,
    astype=tf.cast,
    flip=lambda x, axis: tf.reverse(x, [axis]),
    cumulative_sum=lambda x, axis=-1: tf.cumsum(x, axis),
    where=lambda condition, x, y: tf.where(condition, _tensor(x, y), _tensor(y, x)),
    linalg=SimpleNamespace(
        solve=tf.linalg.solve, cholesky=tf.linalg.cholesky, eigh=tf.linalg.eigh, svd=lambda a, full_matrices: _svd(a, full_matrices)
    ),
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


def _scan(body: Callable, carry: Any, xs: Sequence[Any]) -> tuple[Any, Any]:
    """In a graph one loop, after a first step that shows what the others return; written out, each step would be traced anew."""
    count = xs[0].shape[0]
    if tf.executing_eagerly() or count is None or count < LOOPED:
        return _unrolled(body, carry, xs)
    carry, first = body(carry, tuple(x[0] for x in xs))
    kept = [tf.TensorArray(y.dtype, count, element_shape=y.shape).write(0, y) for y in first]

    def step(k: Any, carry: Any, kept: Any) -> Any:
        carry, found = body(carry, tuple(x[k] for x in xs))
        return k + 1, carry, [a.write(k, y) for a, y in zip(kept, found, strict=True)]

    _, carry, kept = tf.while_loop(lambda k, *_: k < count, step, (1, carry, kept), maximum_iterations=count - 1)
    return carry, tuple(a.stack() for a in kept)


def _users(f: Any) -> Any:
    graph = tf.__internal__.autograph
    return f if tf.executing_eagerly() else graph.tf_convert(f, graph.control_status_ctx())


def _constant(f: Callable, ranks: Any, *arrays: Any) -> tuple[Any, ...]:
    return tuple(map(tf.stop_gradient, f(*map(tf.stop_gradient, arrays))))


def _linear_map(f: Callable, transposed: Callable, product: Any, ranks: Any, *arrays: Any) -> Any:
    held = list(map(tf.stop_gradient, arrays[:-1]))

    @tf.custom_gradient
    def applied(x: Any) -> Any:
        return f(*held, x), lambda g: _linear_map(transposed, f, product, ranks, *held, g)

    return applied(arrays[-1])


def _called_on_host(f: Callable, like: Any, *arrays: Any) -> Any:
    if like is None:
        return tf.numpy_function(lambda *values: f(*values) or [], arrays, [])
    found = tf.numpy_function(lambda *values: np.asarray(f(*values), like.dtype.as_numpy_dtype), arrays, like.dtype)
    return tf.ensure_shape(found, like.shape)


def _svd(a: Any, full_matrices: bool = False) -> tuple[Any, Any, Any]:
    s, u, v = tf.linalg.svd(a, full_matrices=full_matrices)
    return u, s, tf.linalg.matrix_transpose(v)


def _system(system: Symmetric, held: Sequence[Any], p: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
    """A rule that solves again for x rather than take the one at hand, which is a constant to an outer tape."""
    p, b = tuple(map(tf.convert_to_tensor, p)), tuple(map(tf.convert_to_tensor, b))
    values = tuple(system.solve(tuple(held), tuple(map(tf.stop_gradient, p)), tuple(map(tf.stop_gradient, b))))

    def pull(*g: Any) -> list[Any]:
        d = _system(system, held, p, tuple(map(tf.convert_to_tensor, g)))
        x = _system(system, held, p, b) if recording() else values
        return [*system.pull(p, x, tuple(-t for t in d)), *d]

    return tuple(tie([tf.stop_gradient(v) for v in values], [*p, *b], pull))


def _projection(find: Callable, move: Callable, x: Any) -> Any:
    """Found again for the rule where an outer tape watches, as in `_system`."""
    x = tf.convert_to_tensor(x)
    value = tf.stop_gradient(find(tf.stop_gradient(x)))

    def pull(g: Any) -> list[Any]:
        watched = recording()
        return [move(_projection(find, move, x) if watched else value, tf.convert_to_tensor(g), watched)]

    return tie([value], [x], pull)[0]


def _known(x: Any) -> np.ndarray | None:
    return x.numpy() if hasattr(x, "numpy") and tf.executing_eagerly() else None


def _normal(seed: Any, shape: Sequence[int], like: Any) -> Any:
    if isinstance(seed, tf.random.Generator):
        return seed.normal(shape, dtype=like.dtype)
    return tf.random.stateless_normal(shape, seed=(int(seed), 0), dtype=like.dtype)


def _called(core: HostMap, *params: Any, return_info: bool = False, **options: Any) -> Any:
    call = Call(core, params, Options(**options))
    outputs = tuple(call.solve())
    return (outputs, SimpleNamespace(status=call.status)) if return_info else outputs


VERBS = Verbs(
    xp=XP,
    asarray=lambda value, like: tf.cast(_tensor(value, like), like.dtype),
    stop=tf.stop_gradient,
    take=lambda x, indices: tf.gather(x, indices, axis=-1),
    vjp=_vjp,
    loop=_loop,
    users=_users,
    scan=_scan,
    constant=_constant,
    linear=_linear_map,
    symmetric=_system,
    projection=_projection,
    quick=lambda f, value, pull, *arrays: f(*arrays),
    known=_known,
    vmap=None,
    host=_called_on_host,
    sigmoid=tf.math.sigmoid,
    normal=_normal,
    call=_called,
)
