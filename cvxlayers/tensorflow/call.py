"""One call of a layer in TensorFlow, and the custom gradients that wire its derivatives.

Each derivative is a `Rule` of `cvxlayers.rules`, a call of the host tied to the rules of its own derivatives. The host is called straight
away in eager mode and by a node of the graph inside tf.function, where the state is a tensor of that graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import tensorflow
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from cvxlayers.backend import NUMPY, backend_of
from cvxlayers.host import HostMap, Options, batch_shapes, check_count, common_batch, converted, solution_of, state_size
from cvxlayers.program import Info
from cvxlayers.rules import Rule, Values

tf: Any = tensorflow  # TensorFlow loads its names lazily, out of a type checker's sight

NO_EXPORT = "A SavedModel cannot hold this layer, which calls the host: save the weights, or a .keras file and your factory."


class Call:
    """One call of a map: its parameters as tensors, those ``at`` which there were tensors, and what comes back beside the outputs."""

    info: Info  # in eager mode
    status: Any

    def __init__(self, core: HostMap, params: Sequence[Any], options: Options) -> None:
        check_count(core.inputs, params)
        self.core, self.eager = core, tf.executing_eagerly()
        self.options = replace(options, informed=self.eager)
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
        found = on_host(self._forward, self.params, [*self.specs, *self.state])
        self.status = self.info.status if self.eager else found[-1][..., -1]
        return self._tied(found[: len(self.specs)], Rule.solution(self.core), [self.params], found[len(self.specs) :])

    def _forward(self, params: Sequence[np.ndarray]) -> list[Any]:
        outputs, info, saved = self.core.forward(params, self.options)
        if self.eager:
            self.info, self.saved = info, saved
            return outputs
        return [*outputs, self.core.state(saved)]

    def derive(self, rule: Rule, values: Values, state: Sequence[Any]) -> list[Any]:
        """A derivative. ``state`` is empty in eager mode, where the host has saved more than that."""

        def work(arrays: Sequence[np.ndarray]) -> list[Any]:
            (*directions, params), record = rule.split(arrays)
            saved = self.core.restore(params, solution_of(record, self.core.conic.pattern)) if state else self.saved
            return rule.run(self.core, saved, directions)

        like = self.specs if rule.result.kind == "outputs" else [(p.dtype, p.shape) for p in self.params]
        results = on_host(work, [*chain(*values), *state], [like[k] for k in rule.result.which])
        return self._tied(results, rule, values, state)

    def _tied(self, results: list[Any], rule: Rule, values: Values, state: Sequence[Any]) -> list[Any]:
        """The results of a rule with their derivatives: one tie for each argument, as TensorFlow does not tell which of them it wants."""
        if not recording():
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
                tied = tie(results, args[j], pull)
            else:
                tied = [r + zero for r, zero in zip(tied, tie([tf.zeros_like(r) for r in results], args[j], pull), strict=True)]
        return tied


def on_host(work: Callable, tensors: Sequence[Any], specs: Sequence[Any]) -> list[Any]:
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


def tie(values: Sequence[Any], args: Sequence[Any], pull: Callable) -> list[Any]:
    """``values`` with the derivative that ``pull`` gives them with respect to ``args``."""

    @tf.custom_gradient
    def tied(*given: Any) -> Any:
        return list(given[: len(values)]), lambda *g: [None] * len(values) + list(pull(*g))

    return tied(*values, *args) if args else list(values)


def recording() -> bool:
    return not tf.executing_eagerly() or record.could_possibly_record()


def _array(value: Any) -> np.ndarray:
    """A parameter that is no tensor, in single precision if it was."""
    return np.asarray(value) if getattr(value, "dtype", None) in (np.float32, np.complex64) else backend_of(value).host(value)


def host_array(x: Any) -> np.ndarray:
    return NUMPY.host(tf.convert_to_tensor(x).numpy())


def resolution(x: Any) -> float:
    return NUMPY.resolution(np.ones((), tf.as_dtype(x.dtype).as_numpy_dtype))
