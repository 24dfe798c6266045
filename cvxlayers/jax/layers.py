"""Layers as functions of JAX arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from cvxlayers import host, interface
from cvxlayers.host import HostMap, Options
from cvxlayers.jax.primitive import Call, info_of, rule_p
from cvxlayers.pairs import Pairs
from cvxlayers.rules import Rule


class Mapped(interface.HostLayer):
    """A host map as a function of JAX arrays. Hashed by identity, and a pytree without leaves."""

    __call__ = interface.solve

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_static(cls)

    def _hold(self, core: HostMap, **extra: Any) -> None:
        self.core, self.pairs = core, Pairs(core)

    def _solve(self, params: Sequence[Any], options: Options, return_info: bool) -> Any:
        operands, dtypes = _operands(self.core, params)
        rule, info = Rule.solution(self.core), options.warm_start
        if info is not None:
            host.check_start(info, rule.batch(self.pairs.inputs, operands), self.core.conic.pattern)
            operands.append(jax.lax.stop_gradient(host.state_of(jax.tree.map(jnp.asarray, info.solution), jnp.concatenate)))
        options = replace(options, warm_start=None, informed=True)
        *outputs, record = rule_p.bind(*operands, call=Call(self.pairs, options, dtypes), rule=rule)
        pairs = zip(outputs, self.core.outputs, strict=True)
        outputs = tuple(jax.lax.complex(v[..., 0], v[..., 1]) if port.complex else v for v, port in pairs)
        return (outputs, info_of(self.core, record)) if return_info else outputs


class CvxpyLayer(interface.CvxpyLayer, Mapped):
    """A disciplined convex problem as a differentiable function of JAX arrays.

    Works under jit, vmap, grad, jvp, jacfwd, jacrev, scan and checkpoint, one host call for a whole batch; `jax.hessian` for zero,
    nonnegative and second-order cones, a ValueError for others. In compiled code (jit, scan, checkpoint) nothing can be raised: there
    ``on_failure="raise"`` means "nan", and ``info.status`` tells.

    >>> import cvxpy as cp
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), parameters=[p], variables=[x])
    >>> jax.jit(jax.grad(lambda p: layer(p)[0].sum()))(jnp.array([2.0, -1.0])).round(6) + 0.0
    Array([1., 0.], dtype=float32)
    """


class ConicLayer(interface.ConicLayer, Mapped):
    """A cone program as a differentiable function of JAX arrays, (P, q, A, b) -> (x, y, s).

    >>> import scipy.sparse as sp
    >>> from cvxlayers.cones import NonNegative, Product
    >>> from cvxlayers.program import Pattern
    >>> layer = ConicLayer(Pattern.of(sp.eye(2), -sp.eye(2), Product((NonNegative(2),))))
    >>> x, y, s = layer(jnp.ones(2), jnp.array([1.0, -1.0]), -jnp.ones(2), jnp.zeros(2))
    >>> x.round(6) + 0.0
    Array([0., 1.], dtype=float32)
    """


def _operands(core: HostMap, params: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Real arrays for the parameters, and the real dtypes of the outputs; raises ValueError for what does not fit."""
    host.check_count(core.inputs, params)
    arrays, kinds = [], []
    for port, param in zip(core.inputs, params, strict=True):
        array = host.converted(port, jnp.asarray, param)
        host.check_real(port, jnp.iscomplexobj(array))
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            array = array.astype(float)
        elif hasattr(param, "dtype"):  # numbers and lists take the dtype of the others
            kinds.append(array.dtype)
        arrays.append(array)
    host.common_batch(host.batch_shapes(core.inputs, [array.shape for array in arrays]))
    real = jnp.finfo(jnp.result_type(*kinds or [float])).dtype
    wide = jnp.promote_types(real, jnp.float32)  # half precision has no complex type of its own
    pairs = [jnp.stack([a.real, a.imag], axis=-1) if port.complex else a for a, port in zip(arrays, core.inputs, strict=True)]
    return pairs, [wide if port.complex else real for port in core.outputs]
