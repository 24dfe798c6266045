"""The JAX adapter: one primitive, which every transformation of JAX maps to itself.

It is a `Rule` of `cvxlayers.rules`: its tangents, transposes and batches are rules again, one host call for all rows. A solution travels
to its derivatives as a record of uint32 words, so that no digit is lost where x64 is off; complex arrays travel as pairs of reals, so that
JAX's own conventions hold for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cvxlayers import host, interface
from cvxlayers.backend import Backend, Verbs, register
from cvxlayers.host import HostMap, Options
from cvxlayers.pairs import Pairs
from cvxlayers.program import Info, Solution
from cvxlayers.rules import Rule, check_twice, flat

jax.tree_util.register_dataclass(Solution, ["x", "y", "s", "status", "iterations"], [])
jax.tree_util.register_dataclass(Info, ["status", *host.FIGURES, "solution"], ["solver"])


class _Mapped(interface.HostLayer):
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
        *outputs, record = _rule_p.bind(*operands, call=_Call(self.pairs, replace(options, warm_start=None), dtypes), rule=rule)
        pairs = zip(outputs, self.core.outputs, strict=True)
        outputs = tuple(jax.lax.complex(v[..., 0], v[..., 1]) if port.complex else v for v, port in pairs)
        return (outputs, _info(self.core, record)) if return_info else outputs


class CvxpyLayer(interface.CvxpyLayer, _Mapped):
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


class ConicLayer(interface.ConicLayer, _Mapped):
    """A cone program as a differentiable function of JAX arrays, (P, q, A, b) -> (x, y, s).

    >>> import scipy.sparse as sp
    >>> from cvxlayers.cones import NonNegative, Product
    >>> from cvxlayers.program import Pattern
    >>> layer = ConicLayer(Pattern.of(sp.eye(2), -sp.eye(2), Product((NonNegative(2),))))
    >>> x, y, s = layer(jnp.ones(2), jnp.array([1.0, -1.0]), -jnp.ones(2), jnp.zeros(2))
    >>> x.round(6) + 0.0
    Array([0., 1.], dtype=float32)
    """


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a map: in pairs of reals, with the dtypes of its outputs."""

    core: Pairs
    options: Options
    dtypes: Sequence[Any]


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


def _info(core: HostMap, record: Any) -> Info:
    """What happened: NumPy arrays, or JAX arrays of the widest floats where JAX traces.

    The record is (*batch, words): a host record as doubles, and once more as floats, for code that JAX traces without x64.
    """
    middle = record.shape[-1] // 3 * 2
    if not isinstance(record, Tracer):
        return host.info_of(np.ascontiguousarray(np.asarray(record)[..., :middle]).view(np.float64), core)
    if jnp.result_type(float) == np.float64:
        pairs = record[..., :middle].reshape(*record.shape[:-1], -1, 2)
        return host.info_of(jax.lax.bitcast_convert_type(pairs, jnp.float64), core)
    return host.info_of(jax.lax.bitcast_convert_type(record[..., middle:], jnp.float32), core)


def _run(*operands: Any, call: _Call, rule: Rule, compiled: bool = False) -> list[np.ndarray]:
    """A rule on the host: NumPy in, NumPy out, never an operation of JAX."""
    core, options = call.core, call.options
    found: list[Any]
    (*directions, params), state = rule.split([np.asarray(x) for x in operands])
    dtypes = [aval.dtype for aval in _avals(*operands, call=call, rule=rule)]
    if rule.given:
        found = rule.run(core, core.restore(params, _info(core, state).solution), directions)
    else:
        if compiled and options.on_failure == "raise":
            options = replace(options, on_failure="nan")
        if state is not None:
            options = replace(options, warm_start=host.start_of(state, core.conic.pattern))
        found, info, _ = core.forward(params, options)
        record = host.record_of(info)
        with np.errstate(over="ignore"):
            found = [*found, np.concatenate([record.view(np.uint32), record.astype(np.float32).view(np.uint32)], axis=-1)]
    return [value.real.astype(dtype) for value, dtype in zip(found, dtypes, strict=True)]


# The primitive and its rules.

_rule_p = Primitive("cvxlayers_rule")


def _avals(*operands: Any, call: _Call, rule: Rule) -> list[Any]:
    *shapes, last = rule.shapes(call.core, operands)
    if rule.result.kind == "inputs":
        params = rule.split(operands)[0][-1]
        dtypes = [params[k].dtype for k in rule.result.which]
    else:
        dtypes = [call.dtypes[k] for k in rule.result.which]
    if not rule.given:
        last, dtypes = (*last[:-1], 3 * (last[-1] + len(host.FIGURES))), [*dtypes, np.dtype(np.uint32)]
    return [ShapedArray(shape, dtype) for shape, dtype in zip([*shapes, last], dtypes, strict=True)]


def _moving(tangents: Sequence[Any]) -> list[Any]:
    return [None if isinstance(t, ad.Zero) else t for t in tangents]


def _jvp(operands: Any, tangents: Any, *, call: _Call, rule: Rule) -> tuple[list[Any], list[Any]]:
    results = _rule_p.bind(*operands, call=call, rule=rule)
    (values, state), (moved, _) = rule.split(operands), rule.split(_moving(tangents))
    terms = rule.tangents(values, moved)
    if any(term.order == 2 > rule.order for term, _ in terms):
        check_twice(call.core)  # in compiled code nothing can be raised
    record = state if rule.given else results[-1]
    found = [_rule_p.bind(*flat(at, record), call=call, rule=term) for term, at in terms]
    sums = [sum(parts[1:], parts[0]) for parts in zip(*found, strict=True)]
    return results, [*sums, *(ad.Zero(jax.typeof(r).to_tangent_aval()) for r in results[len(sums) :])]


def _transpose(cotangents: Any, *operands: Any, call: _Call, rule: Rule) -> list[Any]:
    values, record = rule.split(operands)
    absent = [[ad.is_undefined_primal(x) for x in column] for column in values]
    (j,) = [j for j, column in enumerate(absent) if any(column)]
    wanted = [k for k, gone in zip(rule.arguments[j].which, absent[j], strict=True) if gone]
    term = rule.adjoint(j, wanted, values, _moving(cotangents))
    found = iter(_rule_p.bind(*flat(term[1], record), call=call, rule=term[0]) if term else [None] * len(wanted))
    return [*(next(found) if gone else None for column in absent for gone in column), None]


def _batched(operands: Any, axes: Any, *, call: _Call, rule: Rule) -> tuple[list[Any], list[int]]:
    rows = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    lifted, folded = rule.mapped(call.core.inputs, rows, operands, axes)
    results = folded(_rule_p.bind(*lifted, call=call, rule=rule))
    return results, [0] * len(results)


def _lowered(ctx: Any, *operands: Any, **params: Any) -> Any:
    """One callback, made without JAX's own `pure_callback`: its device_put inside the callback costs time and can deadlock.

    Doubles come back as pairs of words: JAX checks them on the thread of the callback, which does not know `jax.enable_x64` of ours.
    """
    wide = [aval.dtype == np.float64 for aval in ctx.avals_out]
    pairs = zip(ctx.avals_out, wide, strict=True)
    words = [ShapedArray((*aval.shape, 2), np.dtype(np.uint32)) if w else aval for aval, w in pairs]

    def callback(*arrays: Any) -> list[np.ndarray]:
        return [a[..., None].view(np.uint32) if w else a for a, w in zip(_run(*arrays, **params, compiled=True), wide, strict=True)]

    def joined(*arrays: Any) -> list[Any]:
        return [jax.lax.bitcast_convert_type(a, jnp.float64) if w else a for a, w in zip(arrays, wide, strict=True)]

    inner = ctx.replace(avals_out=words)
    results = mlir.emit_python_callback(inner, callback, None, operands, ctx.avals_in, words, has_side_effect=False)[0]
    return mlir.lower_fun(joined, multiple_results=True)(ctx.replace(avals_in=words), *results)


_rule_p.multiple_results = True
_rule_p.def_impl(lambda *operands, **params: [jnp.asarray(array) for array in _run(*operands, **params)])
_rule_p.def_abstract_eval(_avals)
ad.primitive_jvps[_rule_p] = _jvp
ad.primitive_transposes[_rule_p] = _transpose
batching.primitive_batchers[_rule_p] = _batched
mlir.register_lowering(_rule_p, _lowered)


# The verbs of this framework.


def _constant(f: Any, ranks: Any, *arrays: Any) -> tuple[Any, ...]:
    """`jax.closure_convert` also makes what f reaches by closure a constant: a while loop inside could not be differentiated."""
    pure, reached = jax.closure_convert(f, *arrays)
    return tuple(map(jax.lax.stop_gradient, pure(*map(jax.lax.stop_gradient, arrays), *map(jax.lax.stop_gradient, reached))))


def _called(core: HostMap, *params: Any, **options: Any) -> Any:
    mapped = _Mapped()
    mapped._hold(core)
    return mapped(*params, **options)


VERBS = Verbs(
    xp=jnp,
    asarray=lambda value, like: jnp.asarray(value, dtype=like.dtype),
    stop=jax.lax.stop_gradient,
    vjp=jax.vjp,
    loop=lambda going, body, state: jax.lax.while_loop(lambda s: going(*s), lambda s: tuple(body(*s)), tuple(state)),
    scan=lambda body, carry, xs: jax.lax.scan(body, carry, tuple(xs)),
    constant=_constant,
    sigmoid=jax.nn.sigmoid,
    normal=lambda seed, shape, like: jax.random.normal(jax.random.key(seed) if isinstance(seed, int) else seed, tuple(shape), like.dtype),
    call=_called,
)
register(
    Backend(
        "jax",
        lambda x: np.asarray(x, np.complex128 if jnp.iscomplexobj(x) else np.float64),
        lambda x: float(jnp.finfo(x.dtype).eps),
        VERBS,
    )
)
