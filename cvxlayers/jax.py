"""The JAX adapter: two primitives, the solution map and its derivatives, that every transformation of JAX maps to themselves.

`derive` is a `Rule` of `cvxlayers.rules`: its tangents, transposes and batches are rules again. Each is one host call for all rows. A solution
travels to its derivatives as a record of uint32 words, so that no digit is lost where x64 is off; complex arrays travel as pairs of reals, so
that JAX's own conventions hold for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cvxlayers import interface
from cvxlayers.backend import Backend, Verbs, register
from cvxlayers.errors import Status
from cvxlayers.host import (
    HostMap,
    Options,
    Port,
    batch_shapes,
    check_count,
    check_real,
    check_start,
    common_batch,
    solution_of,
    state_of,
    state_size,
)
from cvxlayers.program import Info, Pattern, Solution
from cvxlayers.rules import Rule, check_twice, flat


class _Mapped(interface.HostLayer):
    """A host map as a function of JAX arrays. Hashed by identity, and a pytree without leaves."""

    __call__ = interface.solve

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_static(cls)

    def _hold(self, core: HostMap, **extra: Any) -> None:
        self.core = core

    def _solve(self, params: Sequence[Any], options: Options, return_info: bool) -> Any:
        core = self.core
        operands, dtypes = _operands(core, params)
        call = _Call(core, replace(options, warm_start=None), _real(core.inputs), _real(core.outputs), dtypes)
        if options.warm_start is not None:
            batch = Rule.solution(core).batch(call.inputs, operands)
            check_start(options.warm_start, batch, core.conic.pattern)
            operands.append(_start(options.warm_start))
        *outputs, record = _solve_p.bind(*operands, call=call)
        outputs = tuple(jax.lax.complex(v[..., 0], v[..., 1]) if p.complex else v for v, p in zip(outputs, core.outputs, strict=True))
        return (outputs, _info(core, record)) if return_info else outputs


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
    >>> layer = ConicLayer(Pattern.of(sp.eye(2), -sp.eye(2), Product((NonNegative(2),))))
    >>> x, y, s = layer(jnp.ones(2), jnp.array([1.0, -1.0]), -jnp.ones(2), jnp.zeros(2))
    >>> x.round(6) + 0.0
    Array([0., 1.], dtype=float32)
    """


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a map: its ports and the dtypes of its outputs as JAX sees them, all real."""

    core: Any
    options: Options
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    dtypes: Sequence[Any]


def _real(ports: Sequence[Port]) -> list[Port]:
    return [Port(port.name, port.shape + (2,) * port.complex, False) for port in ports]


def _operands(core: HostMap, params: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Real arrays for the parameters, and the real dtypes of the outputs; raises ValueError for what does not fit."""
    check_count(core.inputs, params)
    operands, kinds = [], []
    for port, param in zip(core.inputs, params, strict=True):
        try:
            array = jnp.asarray(param)
        except (TypeError, ValueError) as error:
            raise ValueError(f"parameter '{port.name}': {error}") from None
        check_real(port, jnp.iscomplexobj(array))
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            array = array.astype(float)
        elif hasattr(param, "dtype"):  # numbers and lists take the dtype of the others
            kinds.append(array.dtype)
        operands.append(array)
    common_batch(batch_shapes(core.inputs, [array.shape for array in operands]))
    real = jnp.finfo(jnp.result_type(*kinds or [float])).dtype
    wide = jnp.promote_types(real, jnp.float32)  # half precision has no complex type of its own
    pairs = [jnp.stack([a.real, a.imag], axis=-1) if port.complex else a for a, port in zip(operands, core.inputs, strict=True)]
    return pairs, [wide if port.complex else real for port in core.outputs]


def _start(info: Info) -> Any:
    """(*batch, n + 2m): the solution to start from, NaN where there is none."""
    whole = jnp.concatenate([jnp.asarray(a) for a in (info.solution.x, info.solution.y, info.solution.s)], axis=-1)
    return jax.lax.stop_gradient(jnp.where((jnp.asarray(info.status) <= Status.INACCURATE)[..., None], whole, jnp.nan))


# The record of a call, (*batch, words): a state and six figures, as doubles and once more as floats, for code that JAX traces without x64.

FIGURES = ("iterations", "warm_started", "objective", "primal_residual", "dual_residual", "gap")
jax.tree_util.register_dataclass(Solution, ["x", "y", "s", "status", "iterations"], [])
jax.tree_util.register_dataclass(Info, ["status", *FIGURES, "solution"], ["solver"])


def _pack(info: Info) -> np.ndarray:
    whole = np.concatenate([state_of(info.solution), np.stack([getattr(info, name) for name in FIGURES], axis=-1)], axis=-1)
    with np.errstate(over="ignore"):
        return np.concatenate([whole.view(np.uint32), whole.astype(np.float32).view(np.uint32)], axis=-1)


def _info(core: Any, record: Any) -> Info:
    """What happened: NumPy arrays, or JAX arrays of the widest floats where JAX traces."""
    size = state_size(core.conic.pattern)
    middle = 2 * (size + len(FIGURES))
    if not isinstance(record, Tracer):
        whole: Any = np.ascontiguousarray(np.asarray(record)[..., :middle]).view(np.float64)
    elif jnp.result_type(float) == np.float64:
        whole = jax.lax.bitcast_convert_type(record[..., :middle].reshape(*record.shape[:-1], -1, 2), jnp.float64)
    else:
        whole = jax.lax.bitcast_convert_type(record[..., middle:], jnp.float32)
    figures = {name: whole[..., size + k] for k, name in enumerate(FIGURES)}
    figures |= {"iterations": figures["iterations"].astype(np.int32), "warm_started": figures["warm_started"] != 0}
    solution = replace(solution_of(whole, core.conic.pattern), iterations=figures["iterations"])
    return Info(status=solution.status, solver=core.conic.solver.name, solution=solution, **figures)


# On the host: NumPy in, NumPy out, never an operation of JAX.


def _joined(arrays: Sequence[Any], ports: Sequence[Port]) -> list[np.ndarray]:
    pairs = zip(map(np.asarray, arrays), ports, strict=True)
    return [a[..., 0] + 1j * a[..., 1] if port.complex else a for a, port in pairs]


def _parted(arrays: Sequence[np.ndarray], ports: Sequence[Port], dtypes: Sequence[Any]) -> list[np.ndarray]:
    pairs = zip(arrays, ports, dtypes, strict=True)
    return [(np.stack([a.real, a.imag], axis=-1) if port.complex else a.real).astype(dtype) for a, port, dtype in pairs]


def _solve(*operands: Any, call: _Call, compiled: bool = False) -> list[np.ndarray]:
    core, options = call.core, call.options
    (params,), start = Rule.solution(core).split(operands)
    if compiled and options.on_failure == "raise":
        options = replace(options, on_failure="nan")
    if start is not None:
        start = np.asarray(start).astype(np.float64)
        status = np.where(np.isnan(start).any(axis=-1), Status.NUMERICAL_ERROR, Status.SOLVED)
        solution = solution_of(np.concatenate([start, status[..., None]], axis=-1), core.conic.pattern)
        options = replace(options, warm_start=Info(status, *[status] * 5, solver="", warm_started=status, solution=solution))
    outputs, info, _ = core.forward(_joined(params, core.inputs), options)
    return [*_parted(outputs, core.outputs, call.dtypes), _pack(info)]


def _derive(*operands: Any, call: _Call, rule: Rule) -> list[np.ndarray]:
    core = call.core
    (*directions, params), record = rule.split(operands)
    saved = core.restore(_joined(params, core.inputs), _info(core, record).solution)
    arguments = zip(rule.given, directions, strict=True)
    found = rule.run(core, saved, [_joined(d, [getattr(core, a.kind)[k] for k in a.which]) for a, d in arguments])
    ports = [getattr(core, rule.result.kind)[k] for k in rule.result.which]
    return _parted(found, ports, [aval.dtype for aval in _derive_avals(*operands, call=call, rule=rule)])


# The primitives and their rules.

_solve_p, _derive_p = Primitive("cvxlayers_solve"), Primitive("cvxlayers_derive")


def _solve_avals(*operands: Any, call: _Call) -> list[Any]:
    rule, words = Rule.solution(call.core), 3 * (state_size(call.core.conic.pattern) + len(FIGURES))
    batch = rule.batch(call.inputs, operands)
    outputs = [ShapedArray(batch + port.shape, dtype) for port, dtype in zip(call.outputs, call.dtypes, strict=True)]
    return [*outputs, ShapedArray((*batch, words), np.dtype(np.uint32))]


def _derive_avals(*operands: Any, call: _Call, rule: Rule) -> list[Any]:
    if rule.result.kind == "inputs":
        params = rule.split(operands)[0][-1]
        return [ShapedArray(params[k].shape, params[k].dtype) for k in rule.result.which]
    batch = rule.batch(call.inputs, operands)
    return [ShapedArray(batch + call.outputs[k].shape, call.dtypes[k]) for k in rule.result.which]


def _moving(tangents: Sequence[Any]) -> list[Any]:
    return [None if isinstance(t, ad.Zero) else t for t in tangents]


def _jvp(primitive: Any, operands: Any, tangents: Any, *, call: _Call, rule: Rule | None = None) -> tuple[list[Any], list[Any]]:
    if rule is None:
        results, rule = primitive.bind(*operands, call=call), Rule.solution(call.core)
        values, record, moved = [operands[: rule.size]], results[-1], [_moving(tangents)[: rule.size]]
    else:
        results = primitive.bind(*operands, call=call, rule=rule)
        (values, record), (moved, _) = rule.split(operands), rule.split(_moving(tangents))
    terms = rule.tangents(values, moved)
    if any(term.order == 2 > rule.order for term, _ in terms):
        check_twice(call.core)
    found = [_derive_p.bind(*flat(at, record), call=call, rule=term) for term, at in terms]
    sums = [sum(parts[1:], parts[0]) for parts in zip(*found, strict=True)]
    return results, [*sums, *(ad.Zero(jax.typeof(r).to_tangent_aval()) for r in results[len(sums) :])]


def _transpose(cotangents: Any, *operands: Any, call: _Call, rule: Rule) -> list[Any]:
    values, record = rule.split(operands)
    absent = [[ad.is_undefined_primal(x) for x in column] for column in values]
    (j,) = [j for j, column in enumerate(absent) if any(column)]
    wanted = [k for k, gone in zip(rule.arguments[j].which, absent[j], strict=True) if gone]
    term = rule.adjoint(j, wanted, values, _moving(cotangents))
    found = iter(_derive_p.bind(*flat(term[1], record), call=call, rule=term[0]) if term else [None] * len(wanted))
    return [*(next(found) if gone else None for column in absent for gone in column), None]


def _batched(primitive: Any, operands: Any, axes: Any, *, call: _Call, rule: Rule | None = None) -> tuple[list[Any], list[int]]:
    rows = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    lifted, folded = (rule or Rule.solution(call.core)).mapped(call.inputs, rows, operands, axes)
    results = folded(primitive.bind(*lifted, call=call, **({"rule": rule} if rule else {})))
    return results, [0] * len(results)


def _on_host(function: Any, *operands: Any, **params: Any) -> list[Any]:
    return [jnp.asarray(array) for array in function(*operands, **params)]


def _lowered(function: Any, ctx: Any, *operands: Any, **params: Any) -> Any:
    """One callback, made without JAX's own `pure_callback`: its device_put inside the callback costs time and can deadlock.

    Doubles come back as pairs of words: JAX checks them on the thread of the callback, which does not know `jax.enable_x64` of ours.
    """
    wide = [aval.dtype == np.float64 for aval in ctx.avals_out]
    pairs = zip(ctx.avals_out, wide, strict=True)
    words = [ShapedArray((*aval.shape, 2), np.dtype(np.uint32)) if w else aval for aval, w in pairs]

    def callback(*arrays: Any) -> list[np.ndarray]:
        return [a[..., None].view(np.uint32) if w else a for a, w in zip(function(*arrays, **params), wide, strict=True)]

    def joined(*arrays: Any) -> list[Any]:
        return [jax.lax.bitcast_convert_type(a, jnp.float64) if w else a for a, w in zip(arrays, wide, strict=True)]

    inner = ctx.replace(avals_out=words)
    results = mlir.emit_python_callback(inner, callback, None, operands, ctx.avals_in, words, has_side_effect=False)[0]
    return mlir.lower_fun(joined, multiple_results=True)(ctx.replace(avals_in=words), *results)


for _primitive, _function, _shapes in ((_solve_p, _solve, _solve_avals), (_derive_p, _derive, _derive_avals)):
    _primitive.multiple_results = True
    _primitive.def_impl(partial(_on_host, _function))
    _primitive.def_abstract_eval(_shapes)
    ad.primitive_jvps[_primitive] = partial(_jvp, _primitive)
    batching.primitive_batchers[_primitive] = partial(_batched, _primitive)
    mlir.register_lowering(_primitive, partial(_lowered, partial(_solve, compiled=True) if _primitive is _solve_p else _derive))
ad.primitive_transposes[_derive_p] = _transpose

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
