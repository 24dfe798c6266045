"""The JAX adapter: two primitives, the solution map and its derivatives, that every transformation of JAX maps to themselves.

    solve: p -> outputs,        derive: (p; g; d_1, ..., d_k) -> f^(k)(p)[d_1, ..., d_k]  or, with g,  grad_p <g, f^(k)(p)[d_1, ..., d_k]>

`derive` is linear in g and in each d; its derivative along p has one d more, its transposes are derive again, its batches are batches.
Each is one host call for all rows. A solution travels to its derivatives as a record of uint32 words, so that no digit is lost where
x64 is off; complex arrays travel as pairs of reals, so that JAX's own conventions hold for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cvxlayers.backend import Backend, Verbs, register
from cvxlayers.conic import common_batch
from cvxlayers.conic_map import ConicMap
from cvxlayers.errors import Status
from cvxlayers.failures import check_policy
from cvxlayers.host import HostMap, Options, Port
from cvxlayers.layer import Layer, check_spelling, ignore_legacy
from cvxlayers.program import Info, Pattern, Solution


class _Mapped:
    """A host map as a function of JAX arrays. Hashed by identity, and a pytree without leaves."""

    core: Any

    def __call__(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        return_info: bool = False,
        on_failure: str = "raise",
        warm_start: Info | None = None,
    ) -> Any:
        """Solve for every row of the batch: parameters (*batch, *shape) or shape -> tuple of outputs (*batch, *shape).

        Batch shapes are equal, or () for what all rows share; `jax.vmap` adds batch axes. Results have the widest dtype of the arrays
        given; inside everything is float64. With ``return_info`` the result is (outputs, `Info`), without derivatives; ``warm_start``
        takes the Info of an earlier call. ``on_failure``: "raise" a SolverError, "nan" makes failed rows NaN with zero gradient,
        "return" hands out the last iterate with a warning. In compiled code (jit, scan, checkpoint) nothing can be raised: there
        "raise" means "nan", and ``info.status`` tells. Raises ValueError for a wrong count, shape or dtype.
        """
        check_policy(on_failure)
        core, pattern = self.core, self.core.conic.pattern
        operands, batch, dtypes = _operands(core, params)
        if warm_start is not None:
            operands.append(_start(warm_start, batch, pattern))
        call = _Call(core, Options(solver_args, on_failure), batch, dtypes)
        *outputs, record = _solve_p.bind(*operands, call=call)
        outputs = tuple(jax.lax.complex(v[..., 0], v[..., 1]) if p.complex else v for v, p in zip(outputs, core.outputs, strict=True))
        return (outputs, _info(core, record)) if return_info else outputs


@jax.tree_util.register_static
class CvxpyLayer(_Mapped):
    """A disciplined convex problem as a differentiable function of JAX arrays; arguments and call as in `cvxlayers.torch.CvxpyLayer`.

        x*(p) = argmin_x f(x; p)  subject to the problem's constraints

    Works under jit, vmap, grad, jvp, jacfwd, jacrev, scan and checkpoint, one host call for a whole batch; `jax.hessian` for zero,
    nonnegative and second-order cones, a ValueError for others. Raises ValueError for problems that cannot make a layer.

    >>> import cvxpy as cp
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), parameters=[p], variables=[x])
    >>> jax.jit(jax.grad(lambda p: layer(p)[0].sum()))(jnp.array([2.0, -1.0])).round(6) + 0.0
    Array([1., 0.], dtype=float32)
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
        **unknown: Any,
    ) -> None:
        check_spelling(unknown)
        ignore_legacy(verbose, canon_backend)
        self.core = Layer(problem, parameters, variables, solver, gp, solver_args)


@jax.tree_util.register_static
class ConicLayer(_Mapped):
    """A cone program as a differentiable function of JAX arrays, (P, q, A, b) -> (x, y, s).

        minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

    >>> import scipy.sparse as sp
    >>> from cvxlayers.cones import NonNegative, Product
    >>> layer = ConicLayer(Pattern.of(sp.eye(2), -sp.eye(2), Product((NonNegative(2),))))
    >>> x, y, s = layer(jnp.ones(2), jnp.array([1.0, -1.0]), -jnp.ones(2), jnp.zeros(2))
    >>> x.round(6) + 0.0
    Array([0., 1.], dtype=float32)
    """

    def __init__(self, pattern: Pattern, solver: str | None = None, solver_args: Mapping[str, Any] | None = None) -> None:
        self.core = ConicMap(pattern, solver, solver_args)


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a map: ``dtypes`` are those of the outputs, real ones, as all operands are."""

    core: Any
    options: Options
    batch: tuple[int, ...]
    dtypes: tuple[Any, ...]


def _operands(core: HostMap, params: Sequence[Any]) -> tuple[list[Any], tuple[int, ...], tuple[Any, ...]]:
    """Real arrays for the parameters, the batch shape and the real dtypes of the outputs; raises ValueError for what does not fit."""
    if len(params) != len(core.inputs):
        names = ", ".join(repr(port.name) for port in core.inputs)
        raise ValueError(f"got {len(params)} parameter values; wanted {len(core.inputs)}, one for each of {names or 'no parameters'}")
    operands, shapes, kinds = [], [], []
    for position, (port, param) in enumerate(zip(core.inputs, params, strict=True), 1):
        try:
            array = jnp.asarray(param)
        except (TypeError, ValueError) as error:
            raise ValueError(f"parameter '{port.name}': {error}") from None
        lead = array.ndim - len(port.shape)
        if lead < 0 or array.shape[lead:] != port.shape:
            wanted = f"{port.shape} or (*batch{''.join(f', {size}' for size in port.shape)})"
            raise ValueError(f"parameter '{port.name}' ({position} of {len(params)}) has shape {array.shape}; wanted {wanted}")
        if jnp.iscomplexobj(array) and not port.complex:
            raise ValueError(f"parameter '{port.name}' is real and got complex values; pass its real part, or declare it complex=True")
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            array = array.astype(float)
        elif hasattr(param, "dtype"):  # numbers and lists take the dtype of the others
            kinds.append(array.dtype)
        shapes.append((f"parameter '{port.name}'", array.shape[:lead]))
        operands.append(jnp.stack([array.real, array.imag], axis=-1) if port.complex else array)
    real = jnp.finfo(jnp.result_type(*kinds or [float])).dtype
    wide = jnp.promote_types(real, jnp.float32)  # half precision has no complex type of its own
    return operands, common_batch(shapes), tuple(wide if port.complex else real for port in core.outputs)


def _start(info: Any, batch: tuple[int, ...], pattern: Pattern) -> Any:
    """(*batch, n + 2m): the solution to start from, NaN where there is none."""
    if not isinstance(info, Info):
        raise ValueError(f"warm_start is a {type(info).__name__}; wanted the info of an earlier call (return_info=True)")
    status, solution = jnp.asarray(info.status), info.solution
    sizes = (jnp.shape(solution.x)[-1], jnp.shape(solution.y)[-1])
    if status.shape != batch or sizes != (pattern.n, pattern.m):
        raise ValueError(
            f"warm_start has batch shape {status.shape} and sizes {sizes[0]}, {sizes[1]}; wanted {batch} and {pattern.n}, {pattern.m}, "
            "as in the call that made it"
        )
    whole = jnp.concatenate([jnp.asarray(a) for a in (solution.x, solution.y, solution.s)], axis=-1)
    return jax.lax.stop_gradient(jnp.where((status <= Status.INACCURATE)[..., None], whole, jnp.nan))


# The record of a call, (*batch, words): status, iterations, warm_started; then x, y, s, objective, primal and dual residual, gap as
# float64, two words each; then these once more as float32, for who wants to see them in compiled code where x64 is off.


def _pack(info: Info) -> np.ndarray:
    figures = (info.objective, info.primal_residual, info.dual_residual, info.gap)
    floats = np.concatenate([info.solution.x, info.solution.y, info.solution.s, np.stack(figures, axis=-1)], axis=-1, dtype=np.float64)
    codes = np.stack([info.status, info.iterations, info.warm_started], axis=-1).astype(np.int32)
    with np.errstate(over="ignore"):
        short = floats.astype(np.float32)
    return np.concatenate([codes.view(np.uint32), floats.view(np.uint32), short.view(np.uint32)], axis=-1)


def _info(core: Any, record: Any) -> Info:
    """What happened: NumPy arrays, or JAX arrays of the widest floats where JAX traces."""
    n, m = core.conic.pattern.n, core.conic.pattern.m
    middle = 3 + 2 * (n + 2 * m + 4)
    codes: Any
    floats: Any
    if not isinstance(record, Tracer):
        words = np.asarray(record)
        codes, floats = words[..., :3].view(np.int32), np.ascontiguousarray(words[..., 3:middle]).view(np.float64)
    elif jnp.result_type(float) == np.float64:
        pairs = record[..., 3:middle].reshape(*record.shape[:-1], -1, 2)
        codes, floats = record[..., :3].astype(jnp.int32), jax.lax.bitcast_convert_type(pairs, jnp.float64)
    else:
        codes, floats = record[..., :3].astype(jnp.int32), jax.lax.bitcast_convert_type(record[..., middle:], jnp.float32)
    x, y, s = floats[..., :n], floats[..., n : n + m], floats[..., n + m : n + 2 * m]
    objective, primal, dual, gap = (floats[..., n + 2 * m + k] for k in range(4))
    status, iterations, warm = (codes[..., k] for k in range(3))
    solution = Solution(x, y, s, status, iterations)
    return Info(status, objective, primal, dual, gap, iterations, core.conic.solver.name, warm != 0, solution)


_FIGURES = ["status", "objective", "primal_residual", "dual_residual", "gap", "iterations", "warm_started", "solution"]
jax.tree_util.register_dataclass(Solution, ["x", "y", "s", "status", "iterations"], [])
jax.tree_util.register_dataclass(Info, _FIGURES, ["solver"])


# On the host: NumPy in, NumPy out, never an operation of JAX.


def _host(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16 and its like are no dtypes of NumPy's own


def _joined(arrays: Sequence[Any], ports: Sequence[Port]) -> list[Any]:
    pairs = zip([None if a is None else _host(a) for a in arrays], ports, strict=True)
    return [a[..., 0] + 1j * a[..., 1] if a is not None and port.complex else a for a, port in pairs]


def _parted(arrays: Sequence[Any], ports: Sequence[Port], dtypes: Sequence[Any]) -> list[np.ndarray]:
    pairs = zip(arrays, ports, dtypes, strict=True)
    return [(np.stack([a.real, a.imag], axis=-1) if port.complex else a.real).astype(dtype) for a, port, dtype in pairs]


def _solve(*operands: Any, call: _Call, compiled: bool = False) -> list[np.ndarray]:
    core, options, n = call.core, call.options, call.core.conic.pattern.n
    k, m = len(core.inputs), core.conic.pattern.m
    if compiled and options.on_failure == "raise":
        options = replace(options, on_failure="nan")
    if len(operands) > k:
        start = _host(operands[k]).astype(np.float64)
        status = np.where(np.isnan(start).any(axis=-1), Status.NUMERICAL_ERROR, Status.SOLVED)
        solution = Solution(start[..., :n], start[..., n : n + m], start[..., n + m :])
        options = replace(options, warm_start=Info(status, *[status] * 5, solver="", warm_started=status, solution=solution))
    outputs, info, _ = core.forward(_joined(operands[:k], core.inputs), options)
    return [*_parted(outputs, core.outputs, call.dtypes), _pack(info)]


def _derive(*operands: Any, call: _Call, pull: tuple[int, ...] | None, along: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    core = call.core
    params, record, cotangents, directions = _parts(operands, call, pull, along)
    info = _info(core, np.asarray(record))
    saved = core.restore(_joined(params, core.inputs), info.solution)
    tangents = []
    for which, direction in zip(along, directions, strict=True):
        given = dict(zip(which, direction, strict=True))
        tangents.append(_joined([given.get(k) for k in range(len(params))], core.inputs))
    if pull is None:
        outputs = core.jvp(saved, *tangents) if len(along) == 1 else core.second_jvp(saved, *tangents)
        return _parted(outputs, core.outputs, call.dtypes)
    rule = core.second_vjp if along else core.vjp
    found = rule(saved, _joined(cotangents, core.outputs), *tangents, [k in pull for k in range(len(params))])
    return _parted([found[k] for k in pull], [core.inputs[k] for k in pull], [params[k].dtype for k in pull])


def _parts(operands: Sequence[Any], call: _Call, pull: Any, along: Any) -> tuple[Any, Any, Any, list[Any]]:
    """The operands of derive: parameters, record, cotangents (none without ``pull``), and one list of tangents per direction."""
    sizes = [len(call.core.inputs), 1, 0 if pull is None else len(call.core.outputs), *map(len, along)]
    ends = np.cumsum(sizes)
    params, record, cotangents, *directions = (operands[end - size : end] for end, size in zip(ends, sizes, strict=True))
    return params, record[0], cotangents, directions


# The primitives and their rules.

_solve_p, _derive_p = Primitive("cvxlayers_solve"), Primitive("cvxlayers_derive")


def _avals(call: _Call) -> list[Any]:
    shapes = [call.batch + port.shape + (2,) * port.complex for port in call.core.outputs]
    return [ShapedArray(shape, dtype) for shape, dtype in zip(shapes, call.dtypes, strict=True)]


def _solve_avals(*operands: Any, call: _Call) -> list[Any]:
    pattern = call.core.conic.pattern
    return [*_avals(call), ShapedArray((*call.batch, 3 + 3 * (pattern.n + 2 * pattern.m + 4)), np.dtype(np.uint32))]


def _derive_avals(*operands: Any, call: _Call, pull: Any, along: Any) -> list[Any]:
    return _avals(call) if pull is None else [ShapedArray(operands[k].shape, operands[k].dtype) for k in pull]


def _zero(x: Any) -> bool:
    return isinstance(x, ad.Zero)


def _solve_jvp(operands: Any, tangents: Any, *, call: _Call) -> tuple[list[Any], list[Any]]:
    results = _solve_p.bind(*operands, call=call)
    k = len(call.core.inputs)
    which = tuple(i for i in range(k) if not _zero(tangents[i]))
    moved = [ad.Zero(jax.typeof(r).to_tangent_aval()) for r in results]
    if which:
        moved[:-1] = _derive_p.bind(*operands[:k], results[-1], *(tangents[i] for i in which), call=call, pull=None, along=(which,))
    return results, moved


def _derive_jvp(operands: Any, tangents: Any, *, call: _Call, pull: Any, along: Any) -> tuple[list[Any], list[Any]]:
    """Linear in the cotangents and in each direction; along the parameters, one direction more."""
    results = _derive_p.bind(*operands, call=call, pull=pull, along=along)
    params, record, cotangents, directions = _parts(operands, call, pull, along)
    on_params, _, on_cotangents, on_directions = _parts(tangents, call, pull, along)
    flat, moved = [d for direction in directions for d in direction], []
    if not all(map(_zero, on_cotangents)):
        moved.append(_derive_p.bind(*params, record, *map(ad.instantiate_zeros, on_cotangents), *flat, call=call, pull=pull, along=along))
    for j, on in enumerate(on_directions):
        which = tuple(k for k, t in zip(along[j], on, strict=True) if not _zero(t))
        if which:
            others = [*directions[:j], [t for t in on if not _zero(t)], *directions[j + 1 :]]
            given = (d for direction in others for d in direction)
            moved.append(
                _derive_p.bind(*params, record, *cotangents, *given, call=call, pull=pull, along=(*along[:j], which, *along[j + 1 :]))
            )
    which = tuple(k for k, t in enumerate(on_params) if not _zero(t))
    if which:
        _check_order(call.core, len(along) + (pull is not None))
        more = [on_params[k] for k in which]
        moved.append(_derive_p.bind(*params, record, *cotangents, *flat, *more, call=call, pull=pull, along=(*along, which)))
    if not moved:
        return results, [ad.Zero(jax.typeof(r).to_tangent_aval()) for r in results]
    return results, [sum(parts[1:], parts[0]) for parts in zip(*moved, strict=True)]


def _check_order(core: Any, order: int) -> None:
    """Raise where a layer has no derivative beyond ``order``, while JAX traces: in compiled code nothing can be raised."""
    if order > 1:
        raise ValueError("a layer has no third derivatives; its second ones (jax.hessian) cannot be differentiated")
    pattern = core.conic.pattern
    nothing = [np.zeros(port.shape) for port in core.inputs]
    failed = Solution(np.zeros(pattern.n), np.zeros(pattern.m), np.zeros(pattern.m), np.array(int(Status.NUMERICAL_ERROR)), np.array(0))
    core.second_jvp(core.restore(nothing, failed), nothing, nothing)


def _derive_transpose(cotangents: Any, *operands: Any, call: _Call, pull: Any, along: Any) -> list[Any]:
    """g -> f^(k)[d_1, ..., d_k] and each d_j -> ... are one multilinear form with an argument left out: another one is given."""
    params, record, given, directions = _parts(operands, call, pull, along)
    kept = [j for j, direction in enumerate(directions) if not any(map(ad.is_undefined_primal, direction))]
    ours, along_ours = [d for j in kept for d in directions[j]], tuple(along[j] for j in kept)
    if pull is None:
        given = [ad.instantiate_zeros(g) for g in cotangents]
    else:
        which = tuple(k for k, g in zip(pull, cotangents, strict=True) if not _zero(g))
        ours, along_ours = [*ours, *(g for g in cotangents if not _zero(g))], (*along_ours, which)
    results: list[Any] = [None] * len(operands)
    first = len(params) + 1 + (0 if pull is None else len(given))
    if len(kept) == len(along):  # the cotangents are what is left out
        start, wanted = len(params) + 1, None
        found = _derive_p.bind(*params, record, *ours, call=call, pull=None, along=along_ours)
        names = range(len(found))
    else:
        (j,) = set(range(len(along))) - set(kept)
        start = first + sum(map(len, along[:j]))
        wanted = tuple(k for k, d in zip(along[j], directions[j], strict=True) if ad.is_undefined_primal(d))
        found = _derive_p.bind(*params, record, *given, *ours, call=call, pull=wanted, along=along_ours)
        names = [along[j].index(k) for k in wanted]
    for name, value in zip(names, found, strict=True):
        if ad.is_undefined_primal(operands[start + name]):
            results[start + name] = value
    return results


def _lift(x: Any, axis: int | None, rows: int, lead: int, batch: tuple[int, ...]) -> Any:
    """The mapped axis in front of the batch axes, of which x has ``lead``: (rows, *batch, *shape)."""
    x = x[None] if axis is None else jnp.moveaxis(x, axis, 0)
    shape = x.shape[1 + lead :]
    return jnp.broadcast_to(x.reshape(x.shape[0], *(x.shape[1 : 1 + lead] or [1] * len(batch)), *shape), (rows, *batch, *shape))


def _leads(core: HostMap, params: Sequence[Any], axes: Sequence[Any]) -> list[int]:
    """How many batch axes each parameter has beside the mapped one."""
    pairs = zip(params, axes, core.inputs, strict=True)
    return [x.ndim - len(port.shape) - port.complex - (axis is not None) for x, axis, port in pairs]


def _solve_batched(operands: Any, axes: Any, *, call: _Call) -> tuple[list[Any], list[int]]:
    rows = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    k = len(call.core.inputs)
    leads = [*_leads(call.core, operands[:k], axes[:k]), len(call.batch)]
    lifted = [
        x if axis is None and lead == 0 and i < k else _lift(x, axis, rows, lead, call.batch)
        for i, (x, axis, lead) in enumerate(zip(operands, axes, leads, strict=False))
    ]
    results = _solve_p.bind(*lifted, call=replace(call, batch=(rows, *call.batch)))
    return results, [0] * len(results)


def _derive_batched(operands: Any, axes: Any, *, call: _Call, pull: Any, along: Any) -> tuple[list[Any], list[int]]:
    """Parameters that all rows share stay shared, unless rows have tangents or cotangents of their own for them."""
    rows = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    params, record, cotangents, directions = _parts(operands, call, pull, along)
    on_params, on_record, on_cotangents, on_directions = _parts(axes, call, pull, along)
    leads = _leads(call.core, params, on_params)
    apart = {k for k, (axis, lead) in enumerate(zip(on_params, leads, strict=True)) if axis is not None or lead} | set(pull or ())
    apart |= {k for which, on in zip(along, on_directions, strict=True) for k, axis in zip(which, on, strict=True) if axis is not None}

    def raised(x: Any, axis: Any, k: int) -> Any:
        return _lift(x, axis, rows, leads[k], call.batch) if k in apart else x

    whole = len(call.batch)
    lifted = [raised(x, axis, k) for k, (x, axis) in enumerate(zip(params, on_params, strict=True))]
    lifted += [_lift(x, axis, rows, whole, call.batch) for x, axis in zip((record, *cotangents), (on_record, *on_cotangents), strict=True)]
    for which, direction, on in zip(along, directions, on_directions, strict=True):
        lifted += [raised(x, axis, k) for k, x, axis in zip(which, direction, on, strict=True)]
    results = _derive_p.bind(*lifted, call=replace(call, batch=(rows, *call.batch)), pull=pull, along=along)
    if pull is not None and whole:  # what the rows of the inner batch share collects from all of them
        results = [r if leads[k] else r.sum(axis=tuple(range(1, 1 + whole))) for k, r in zip(pull, results, strict=True)]
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


for _primitive, _function, _shapes, _jvp, _batched in (
    (_solve_p, _solve, _solve_avals, _solve_jvp, _solve_batched),
    (_derive_p, _derive, _derive_avals, _derive_jvp, _derive_batched),
):
    _primitive.multiple_results = True
    _primitive.def_impl(partial(_on_host, _function))
    _primitive.def_abstract_eval(_shapes)
    ad.primitive_jvps[_primitive] = _jvp
    batching.primitive_batchers[_primitive] = _batched
    mlir.register_lowering(_primitive, partial(_lowered, partial(_solve, compiled=True) if _primitive is _solve_p else _derive))
ad.primitive_transposes[_derive_p] = _derive_transpose

# The verbs of this framework.


def _constant(f: Any, ranks: Any, *arrays: Any) -> tuple[Any, ...]:
    """`jax.closure_convert` also makes what f reaches by closure a constant: a while loop inside could not be differentiated."""
    pure, reached = jax.closure_convert(f, *arrays)
    return tuple(map(jax.lax.stop_gradient, pure(*map(jax.lax.stop_gradient, arrays), *map(jax.lax.stop_gradient, reached))))


def _called(core: HostMap, *params: Any, **options: Any) -> Any:
    mapped = _Mapped()
    mapped.core = core
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
