"""The PyTorch adapter: modules around a `HostMap`, and the autograd function that gives them every derivative.

    rule        backward                        forward mode
    forward     vjp                             jvp
    vjp(g)      jvp for g, second_vjp           vjp + second_vjp
    jvp(d)      vjp for d, second_vjp           jvp + second_jvp

The state, the cone program's solution, is a constant to PyTorch: the rules know how it moves. All of them are one `_Rule` again, so both
modes nest, up to second order; the third is refused. Under vmap the mapped axis joins the batch: the host is called once for all of it.
"""

from __future__ import annotations

import inspect
import json
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import array_api_compat.torch as torch_namespace
import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cvxlayers.backend import NUMPY, Backend, Verbs, register, unrolled_loop, unrolled_scan
from cvxlayers.conic_map import ConicMap
from cvxlayers.host import Options
from cvxlayers.layer import Layer, check_spelling, ignore_legacy
from cvxlayers.program import Info, Pattern, Solution

CORES: weakref.WeakValueDictionary[str, Layer | ConicMap] = weakref.WeakValueDictionary()  # a graph can name a map, not hold it
DIRECTIONS = {"forward": "", "vjp": "o", "jvp": "i", "second_vjp": "oi", "second_jvp": "ii"}  # like the outputs or like the inputs


class _Module(torch.nn.Module):
    """A map as a module."""

    core: Any  # a Layer or a ConicMap

    def __init__(self, core: Layer | ConicMap) -> None:
        super().__init__()
        self.__setstate__({"core": core})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.key = uuid.uuid4().hex  # names this very map in compiled graphs
        CORES[self.key] = self.core

    def forward(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        return_info: bool = False,
        on_failure: str = "raise",
        warm_start: Info | None = None,
    ) -> Any:
        """Solve for every row of the batch: parameters (*batch, *shape) or shape -> tuple of outputs (*batch, *shape).

        Batch shapes are equal, or () for what all rows share. Results have the widest dtype and the device of the tensors given; inside
        everything is float64. With ``return_info`` the result is (outputs, `Info`), and ``warm_start`` takes the Info of an earlier
        call; under vmap an Info is that of the whole batch, mapped axes first, and in torch.compile there is none. ``on_failure``:
        "raise" a SolverError, "nan" makes failed rows NaN with zero gradient, "return" hands out the last iterate with a warning.
        Raises ValueError for a wrong count, shape or dtype, and from a second derivative that the program does not have.
        """
        if torch.compiler.is_compiling() and _at_compile_time() and not (return_info or warm_start):
            _, dtype, device = _checked(params, self.core)
            tensors = [p if isinstance(p, Tensor) else torch.as_tensor(np.asarray(p), device=device) for p in params]
            return _traced(self.key, on_failure, dict(solver_args or {}), dtype, *tensors)
        return _eager(self.core, params, Options(solver_args, on_failure, warm_start or None), return_info)


class CvxpyLayer(_Module):
    """A disciplined convex problem as a differentiable PyTorch module.

        x*(p) = argmin_x f(x; p)  subject to the problem's constraints

    ``problem`` obeys CVXPY's DPP rules; ``parameters`` are all its parameters, in the order of the call; ``variables`` are variables of
    the problem or dual variables of its constraints, in the order of the result. ``solver`` is the name of a solver (None: chosen from
    the problem's pattern), ``gp`` says that the problem is a geometric program, ``solver_args`` holds the solver's options. Raises
    ValueError for problems and arguments that cannot make a layer.

    Method: Agrawal, Amos, Barratt, Boyd, Diamond, Kolter, "Differentiable convex optimization layers", 2019; the derivative is that of
    the optimality conditions (docs/mathematics.md).

    >>> import cvxpy as cp
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), parameters=[p], variables=[x])
    >>> p_t = torch.tensor([2.0, -1.0], requires_grad=True)
    >>> (x_star,) = layer(p_t)
    >>> x_star.sum().backward()
    >>> p_t.grad.round(decimals=9)
    tensor([1., 0.])
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
        super().__init__(Layer(problem, parameters, variables, solver, gp, solver_args))


class ConicLayer(_Module):
    """A batch of cone programs of one `Pattern` as a differentiable PyTorch module: ``x, y, s = layer(P, q, A, b)``.

        minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

    P (*batch, nnzP), q (*batch, n), A (*batch, nnzA), b (*batch, m) -> x (*batch, n), y (*batch, m), s (*batch, m); P and A are the
    entries stored by the pattern. ``solver`` names a solver (None: chosen from the pattern), ``solver_args`` holds its options.
    """

    def __init__(self, pattern: Pattern, solver: str | None = None, solver_args: Mapping[str, Any] | None = None) -> None:
        super().__init__(ConicMap(pattern, solver, solver_args))


class _Call:
    """How a map is called, and what came of it.

    ``saved`` is what the host keeps of a plain call; it holds for the tensors of that call alone, and others restore it from tensors.
    """

    def __init__(self, core: Any, options: Options, dtype: torch.dtype, device: Any, key: str = "", infos: list[Info] | None = None):
        self.core, self.options, self.dtype, self.device, self.key = core, options, dtype.to_real(), device, key
        self.saved: Any = None
        self.infos: list[Info] = [] if infos is None else infos

    def split(self, rule: str, tensors: Sequence[Any]) -> tuple[Any, Any, list[Any]]:
        """Parameters, state and directions among the tensors of a rule."""
        count, parts = len(self.core.inputs), []
        rest = tensors[count + 1 :]
        for kind in DIRECTIONS[rule]:
            size = count if kind == "i" else len(self.core.outputs)
            parts.append(rest[:size])
            rest = rest[size:]
        return tensors[:count], tensors[count] if len(tensors) > count else None, parts

    def run(self, rule: str, needed: Sequence[bool], tensors: Sequence[Any]) -> tuple[Tensor, ...]:
        """Call the host. The state is [x, y, s, status] along its last axis; of parameters' cotangents only those ``needed`` return."""
        if rule == "forward":
            values, info, self.saved = self.core.forward(tensors, self.options)
            self.infos.append(info)
            found = info.solution
            state = np.concatenate([found.x, found.y, found.s, np.asarray(found.status)[..., None]], axis=-1)
            return (*self.outputs(values), torch.from_numpy(state))
        params, state, directions = self.split(rule, tensors)
        saved = self.saved
        if saved is None:
            n, m = self.core.conic.pattern.n, self.core.conic.pattern.m
            x, y, s, status = np.split(_host(state), [n, n + m, n + 2 * m], axis=-1)
            saved = self.core.restore(params, Solution(x, y, s, status[..., 0].astype(np.int64)))
        host = [[None if t is None else _host(t) for t in part] for part in directions]
        if not rule.endswith("vjp"):
            return self.outputs(getattr(self.core, rule)(saved, *host))
        found = getattr(self.core, rule)(saved, *host, needed)
        return tuple(_tensor(g, p) for g, p, wanted in zip(found, params, needed, strict=True) if wanted)

    def outputs(self, values: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(v).to(device=self.device, dtype=self.type(np.iscomplexobj(v))) for v in values)

    def type(self, is_complex: bool) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.complex64) if is_complex else self.dtype  # half precision has no complex type


class _Rule(torch.autograd.Function):
    """A rule of `HostMap`: parameters -> (*outputs, state), or (parameters, state, directions) -> what is linear in the directions."""

    @staticmethod
    def forward(rule: str, call: _Call, needed: tuple[bool, ...], *tensors: Any) -> tuple[Tensor, ...]:
        if all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors):  # else those of a trace, without numbers
            return call.run(rule, needed, tensors)
        return tuple(_rule_op(call.key, call.dtype, rule, needed, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.rule, ctx.call, ctx.needed, *tensors = inputs
        if ctx.rule == "forward":
            tensors.append(output[-1])
            ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(*tensors)  # PyTorch then also refuses tensors changed in place since the call
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        call, (params, state, directions) = ctx.call, ctx.call.split(_once(ctx.rule), ctx.saved_tensors)
        wanted, _, linear = call.split(ctx.rule, ctx.needs_input_grad[3:])
        at = (*params, state)
        if ctx.rule == "forward":
            return None, None, None, *_apply("vjp", call, wanted, at, given[:-1])
        if ctx.rule == "vjp":
            sparse = iter(given)
            given = tuple(next(sparse) if n else None for n in ctx.needed)
            first = _apply("jvp", call, linear[0], at, given)
            second = _apply("second_vjp", call, wanted, at, *directions, given)
        else:
            first = _apply("vjp", call, linear[0], at, given)
            second = _apply("second_vjp", call, wanted, at, given, *directions)
        return None, None, None, *second, None, *first

    @staticmethod
    def jvp(ctx: Any, _rule: Any, _call: Any, _needed: Any, *tangents: Tensor | None) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            call, (params, state, directions) = ctx.call, ctx.call.split(_once(ctx.rule), _primals(ctx.saved_tensors))
            moved, _, along = call.split(ctx.rule, _primals(tangents))
            at = (*params, state)
            if ctx.rule == "forward":
                return *_apply("jvp", call, None, at, moved), None
            first = _apply(ctx.rule, call, ctx.needed, at, *along)
            second = _apply("second_" + ctx.rule, call, ctx.needed, at, *directions, moved)
            sums = [b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)]
            return tuple(total for total, wanted in zip(sums, ctx.needed or [True] * len(sums), strict=True) if wanted)

    @staticmethod
    def vmap(info: Any, in_dims: Any, rule: str, call: _Call, needed: tuple[bool, ...], *tensors: Any) -> Any:
        (params, state, directions), (dims, axis, moved) = call.split(rule, tensors), call.split(rule, in_dims[3:])
        ranks = {"i": [len(port.shape) for port in call.core.inputs], "o": [len(port.shape) for port in call.core.outputs]}
        leads = [_unmapped(p, d)[: p.ndim - (d is not None) - rank] for p, d, rank in zip(params, dims, ranks["i"], strict=True)]
        rows = (info.batch_size, *next((lead for lead in leads if lead), ()))
        inward = [dims, *(part for kind, part in zip(DIRECTIONS[rule], moved, strict=True) if kind == "i")]
        still = [all(d is None for d in each) for each in zip(*inward, strict=True)]
        shared = [one and not (lead or wanted) for one, lead, wanted in zip(still, leads, needed or [False] * len(leads), strict=True)]
        lifted = [*_lift(params, dims, ranks["i"], rows, shared), *([] if state is None else _lift([state], [axis], [1], rows, [False]))]
        for kind, part, each in zip(DIRECTIONS[rule], directions, moved, strict=True):
            lifted += _lift(part, each, ranks[kind], rows, shared if kind == "i" else [False] * len(part))
        inner = _Call(call.core, call.options, call.dtype, call.device, call.key, call.infos)
        found = _Rule.apply(rule, inner, needed, *lifted)
        if rule.endswith("vjp") and len(rows) > 1:  # what the rows of one mapped call share collects their cotangents
            own = [bool(lead) for lead, wanted in zip(leads, needed, strict=True) if wanted]
            found = tuple(g if one else g.sum(tuple(range(1, len(rows)))) for g, one in zip(found, own, strict=True))
        return found, (0,) * len(found)


_Rule.forward.__signature__ = inspect.signature(_Rule.forward)  # type: ignore[attr-defined]  # asked for at every call: 20 us


def _apply(rule: str, call: _Call, needed: Sequence[bool] | None, at: Iterable[Any], *directions: Any) -> list[Any]:
    """One entry for each parameter or output; None where it is zero or not needed."""
    pulls = rule.endswith("vjp")
    size = len(call.core.inputs if pulls else call.core.outputs)
    if (needed and not any(needed)) or any(all(t is None for t in part) for part in directions):
        return [None] * size
    apply = _Rule.apply if torch.is_grad_enabled() or _nested() else _Rule.forward  # nothing for second order unless it may be asked for
    found = iter(apply(rule, call, tuple(needed or ()) if pulls else (), *at, *chain(*directions)))
    if pulls:
        return [next(found) if wanted else None for wanted in needed or ()]
    return [out if wanted else None for out, wanted in zip(found, needed or [True] * size, strict=True)]


def _once(rule: str) -> str:
    if rule.startswith("second"):
        raise RuntimeError("a layer has first and second derivatives; the third was asked for")
    return rule


def _nested() -> bool:
    """Whether a transform or forward mode is at work, to which even tensors that require no gradient matter."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _primals(tensors: Iterable[Any]) -> list[Any]:
    # Without this and _set_fwd_grad_enabled, forward mode inside forward mode is zero without an error (pytorch#197867).
    return [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in tensors]


def _unmapped(t: Tensor, axis: int | None) -> tuple[int, ...]:
    return tuple(size for k, size in enumerate(t.shape) if k != axis)


def _lift(tensors: Any, dims: Any, ranks: Sequence[int], rows: tuple[int, ...], kept: Sequence[bool]) -> list[Any]:
    """Tensors as (*rows, *shape), the mapped axis in front; those ``kept``, and None, as they are."""

    def lift(t: Tensor, d: int | None, rank: int) -> Tensor:
        t = t.unsqueeze(0) if d is None else t.movedim(d, 0)
        lead = t.shape[1 : t.ndim - rank] or (1,) * (len(rows) - 1)
        return t.reshape(t.shape[:1] + lead + t.shape[t.ndim - rank :]).expand(*rows, *t.shape[t.ndim - rank :])

    return [t if t is None or keep else lift(t, d, r) for t, d, r, keep in zip(tensors, dims, ranks, kept, strict=True)]


def _checked(params: Sequence[Any], core: Layer | ConicMap) -> tuple[list[Tensor], torch.dtype, torch.device | None]:
    """The tensors among the parameters, their widest dtype, their device."""
    if len(params) != len(core.inputs):
        names = ", ".join([repr(port.name) for port in core.inputs])
        raise ValueError(f"got {len(params)} parameter values; wanted {len(core.inputs)}, one for each of {names or 'no parameters'}")
    given = [p for p in params if isinstance(p, Tensor)]
    dtype = given[0].dtype if given else torch.float64 if params else torch.get_default_dtype()
    for tensor in given:
        dtype = torch.promote_types(dtype, tensor.dtype)
    for p, port in zip(params, core.inputs, strict=True):
        if isinstance(p, Tensor) and not (p.is_floating_point() or p.is_complex()):
            raise ValueError(f"parameter '{port.name}' is a tensor of dtype {p.dtype}; wanted a floating one, as from x.double()")
    return given, dtype, given[0].device if given else None


def _eager(core: Layer | ConicMap, params: Sequence[Any], options: Options, return_info: bool) -> Any:
    given, dtype, device = _checked(params, core)
    tensors = [p if isinstance(p, Tensor) else _constant(p, port.name) for p, port in zip(params, core.inputs, strict=True)]
    call = _Call(core, options, dtype, device)
    differentiable = _nested() or (torch.is_grad_enabled() and any(t.requires_grad for t in given))
    *outputs, _ = (_Rule.apply if differentiable else _Rule.forward)("forward", call, (), *tensors)
    return (tuple(outputs), call.infos[-1]) if return_info else tuple(outputs)


def _traced(key: str, on_failure: str, solver_args: dict[str, Any], dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    call = _described(json.dumps([key, on_failure, solver_args]), dtype, tensors)
    return _Rule.apply("forward", call, (), *tensors)[:-1]


def _at_compile_time() -> bool:
    """Have Dynamo take `_traced` unseen, for autograd to trace, and leave `_eager` alone; run by Dynamo before it meets their names."""
    from torch import _dynamo  # seconds to import, but there already when something is compiled

    if not hasattr(_traced, "__wrapped__"):
        reason = "return_info and warm_start need a call outside the graph, which holds tensors only"
        globals().update(_traced=_dynamo.nonstrict_trace(_traced), _eager=_dynamo.disable(_eager, reason=reason))
    return True


_at_compile_time._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler.assume_constant_result, not imported


def _described(key: str, dtype: torch.dtype, tensors: Sequence[Any]) -> _Call:
    """The call that a graph names by ``key``."""
    name, on_failure, solver_args = json.loads(key)
    return _Call(CORES[name], Options(solver_args, on_failure), dtype, tensors[0].device if tensors else None, key)


SCHEMA = "(str key, ScalarType dtype, str rule, bool[] needed, Tensor?[] tensors) -> Tensor[]"


@torch.library.custom_op("cvxlayers::rule", mutates_args=(), schema=SCHEMA)
def _rule_op(key: str, dtype: torch.dtype, rule: str, needed: Sequence[bool], tensors: Sequence[Any]) -> list[Tensor]:
    if forward_ad._current_level >= 0:  # PyTorch would give zero tangents without an error
        raise RuntimeError("forward mode cannot pass through a compiled graph; compile the function that takes the derivative")
    return list(_described(key, dtype, tensors).run(rule, needed, tensors))


@_rule_op.register_fake
def _(key: str, dtype: torch.dtype, rule: str, needed: Sequence[bool], tensors: Sequence[Any]) -> list[Tensor]:
    call = _described(key, dtype, tensors)
    core, pattern, (params, *_) = call.core, call.core.conic.pattern, call.split(rule, tensors)
    if rule.endswith("vjp"):
        return [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p, wanted in zip(params, needed, strict=True) if wanted]
    leads = (p.shape[: p.ndim - len(port.shape)] for p, port in zip(params, core.inputs, strict=True))
    batch = next((lead for lead in leads if lead), ())
    outputs = [torch.empty((*batch, *port.shape), dtype=call.type(port.complex), device=call.device) for port in core.outputs]
    state = [torch.empty((*batch, pattern.n + 2 * pattern.m + 1), dtype=torch.float64)]
    return outputs + state if rule == "forward" else outputs


def _constant(value: Any, name: str) -> Tensor:
    """A parameter that is no tensor as one, in single precision if it was."""
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.array(array if array.dtype in (np.float32, np.complex64) else NUMPY.host(array), order="C"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"parameter '{name}': {error}") from None


def _tensor(value: Any, like: Tensor) -> Tensor:
    # A real tensor given for a complex parameter takes the real part, as PyTorch's own functions do.
    value = value if like.is_complex() else value.real
    return torch.from_numpy(np.ascontiguousarray(value)).to(dtype=like.dtype, device=like.device)


def _host(x: Tensor) -> np.ndarray:
    if x.dtype not in (torch.float64, torch.complex128):
        x = x.detach().to(torch.complex128 if x.is_complex() else torch.float64)
    return x.numpy(force=True)


def _resolution(x: Tensor) -> float:
    return torch.finfo(x.dtype if x.is_floating_point() or x.is_complex() else torch.float64).eps


# The verbs of this framework.


class _Constant(torch.autograd.Function):
    """Outputs of any function as constants: no transform looks inside, mapped axes become leading ones."""

    @staticmethod
    def forward(f: Any, ranks: Any, *arrays: Tensor) -> tuple[Tensor, ...]:
        return tuple(f(*arrays))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *given: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, f: Any, ranks: Any, *arrays: Tensor) -> Any:
        pairs = list(zip(arrays, in_dims[2:], ranks, strict=True))
        lead = max(a.ndim - (d is not None) - rank for a, d, rank in pairs)
        lifted = [a if d is None else a.movedim(d, 0)[(slice(None), *(None,) * (lead - a.ndim + 1 + r))] for a, d, r in pairs]
        found = _Constant.apply(f, ranks, *lifted)
        return found, (0,) * len(found)


def _normal(seed: Any, shape: Sequence[int], like: Tensor) -> Tensor:
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator(like.device).manual_seed(int(seed))
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


VERBS = Verbs(
    xp=torch_namespace,
    asarray=lambda value, like: torch.as_tensor(value, dtype=like.dtype, device=like.device),
    stop=torch.Tensor.detach,
    vjp=torch.func.vjp,
    loop=unrolled_loop,
    scan=unrolled_scan(torch.stack),
    constant=_Constant.apply,
    sigmoid=torch.sigmoid,
    normal=_normal,
    call=lambda core, *params, return_info=False, **options: _eager(core, params, Options(**options), return_info),
)
register(Backend("torch", _host, _resolution, VERBS))
