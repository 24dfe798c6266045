"""Layers as layers of Keras, which are plain functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow

from cvxlayers import interface
from cvxlayers.host import HostMap, Options
from cvxlayers.tensorflow.call import NO_EXPORT, Call

tf: Any = tensorflow  # TensorFlow loads its names lazily, out of a type checker's sight

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
        call = Call(self.core, params, options)
        outputs = tuple(call.solve())
        return (outputs, call.info) if return_info else outputs

    def compute_output_spec(self, *params: Any, **options: Any) -> tuple[Any, ...]:
        tensors = [tf.TensorSpec(p.shape, p.dtype) if isinstance(p, keras.KerasTensor) else p for p in params]
        specs = Call(self.core, tensors, Options()).specs
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
