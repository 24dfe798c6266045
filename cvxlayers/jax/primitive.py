"""The one primitive of the JAX adapter, which every transformation of JAX maps to itself.

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

from cvxlayers import host
from cvxlayers.host import HostMap, Options
from cvxlayers.pairs import Pairs
from cvxlayers.program import Info, Solution
from cvxlayers.rules import Rule, check_twice, flat

jax.tree_util.register_dataclass(Solution, ["x", "y", "s", "status", "iterations"], [])
jax.tree_util.register_dataclass(Info, ["status", *host.FIGURES, "solution"], ["solver"])


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a map: in pairs of reals, with the dtypes of its outputs."""

    core: Pairs
    options: Options
    dtypes: Sequence[Any]


def info_of(core: HostMap, record: Any) -> Info:
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


def _run(*operands: Any, call: Call, rule: Rule, compiled: bool = False) -> list[np.ndarray]:
    """A rule on the host: NumPy in, NumPy out, never an operation of JAX."""
    core, options = call.core, call.options
    found: list[Any]
    (*directions, params), state = rule.split([np.asarray(x) for x in operands])
    dtypes = [aval.dtype for aval in _avals(*operands, call=call, rule=rule)]
    if rule.given:
        found = rule.run(core, core.restore(params, info_of(core, state).solution), directions)
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

rule_p = Primitive("cvxlayers_rule")


def _avals(*operands: Any, call: Call, rule: Rule) -> list[Any]:
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


def _jvp(operands: Any, tangents: Any, *, call: Call, rule: Rule) -> tuple[list[Any], list[Any]]:
    results = rule_p.bind(*operands, call=call, rule=rule)
    (values, state), (moved, _) = rule.split(operands), rule.split(_moving(tangents))
    terms = rule.tangents(values, moved)
    if any(term.order == 2 > rule.order for term, _ in terms):
        check_twice(call.core)  # in compiled code nothing can be raised
    record = state if rule.given else results[-1]
    found = [rule_p.bind(*flat(at, record), call=call, rule=term) for term, at in terms]
    sums = [sum(parts[1:], parts[0]) for parts in zip(*found, strict=True)]
    return results, [*sums, *(ad.Zero(jax.typeof(r).to_tangent_aval()) for r in results[len(sums) :])]


def _transpose(cotangents: Any, *operands: Any, call: Call, rule: Rule) -> list[Any]:
    values, record = rule.split(operands)
    absent = [[ad.is_undefined_primal(x) for x in column] for column in values]
    (j,) = [j for j, column in enumerate(absent) if any(column)]
    wanted = [k for k, gone in zip(rule.arguments[j].which, absent[j], strict=True) if gone]
    term = rule.adjoint(j, wanted, values, _moving(cotangents))
    found = iter(rule_p.bind(*flat(term[1], record), call=call, rule=term[0]) if term else [None] * len(wanted))
    return [*(next(found) if gone else None for column in absent for gone in column), None]


def _batched(operands: Any, axes: Any, *, call: Call, rule: Rule) -> tuple[list[Any], list[int]]:
    rows = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    lifted, folded = rule.mapped(call.core.inputs, rows, operands, axes)
    results = folded(rule_p.bind(*lifted, call=call, rule=rule))
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


rule_p.multiple_results = True
rule_p.def_impl(lambda *operands, **params: [jnp.asarray(array) for array in _run(*operands, **params)])
rule_p.def_abstract_eval(_avals)
ad.primitive_jvps[rule_p] = _jvp
ad.primitive_transposes[rule_p] = _transpose
batching.primitive_batchers[rule_p] = _batched
mlir.register_lowering(rule_p, _lowered)
