"""The PyTorch adapter: modules around a `HostMap`, and the one autograd function that gives them every derivative.

Each `Rule` is an application of `_Rule`, whose backward, forward mode and vmap are the rules that `cvxlayers.rules` derives from it, so
both modes nest, up to second order. The state, the cone program's solution, is a constant to PyTorch: the rules know how it moves.
"""

from __future__ import annotations

import inspect
import json
import uuid
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import array_api_compat.torch as torch_namespace
import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cvxlayers import interface
from cvxlayers.backend import NUMPY, Backend, Verbs, register, unrolled_loop, unrolled_scan
from cvxlayers.host import HostMap, Options, check_count, converted, solution_of, state_of
from cvxlayers.program import Info
from cvxlayers.rules import Rule, Values, flat

CORES: weakref.WeakValueDictionary[str, HostMap] = weakref.WeakValueDictionary()  # a graph can name a map, not hold it


class _Module(interface.HostLayer, torch.nn.Module):
    """A map as a module."""

    forward = interface.solve

    def _hold(self, core: HostMap, **extra: Any) -> None:
        torch.nn.Module.__init__(self)
        self.__setstate__({"core": core})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.key = uuid.uuid4().hex  # names this very map in compiled graphs
        CORES[self.key] = self.core

    def _solve(self, params: Sequence[Any], options: Options, return_info: bool) -> Any:
        if torch.compiler.is_compiling() and _at_compile_time() and not (return_info or options.warm_start):
            dtype, device = _common(self.core, params)
            tensors = [p if isinstance(p, Tensor) else torch.as_tensor(np.asarray(p), device=device) for p in params]
            return _traced(self.key, options.on_failure, dict(options.solver_args or {}), dtype, *tensors)
        return _eager(self.core, params, options, return_info)


class CvxpyLayer(interface.CvxpyLayer, _Module):
    """A disciplined convex problem as a differentiable PyTorch module.

    Results have the device of the tensors given. Under vmap an Info is that of the whole batch, mapped axes first; in torch.compile there
    is none.

    >>> import cvxpy as cp
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), parameters=[p], variables=[x])
    >>> p_t = torch.tensor([2.0, -1.0], requires_grad=True)
    >>> (x_star,) = layer(p_t)
    >>> x_star.sum().backward()
    >>> p_t.grad.round(decimals=9)
    tensor([1., 0.])
    """


class ConicLayer(interface.ConicLayer, _Module):
    """A batch of cone programs of one `Pattern` as a differentiable PyTorch module: ``x, y, s = layer(P, q, A, b)``."""


@dataclass
class _Call:
    """How a map is called, and what came of it: Infos, and what the host saved, which holds for the tensors of that call alone."""

    core: Any
    options: Options
    dtype: torch.dtype
    key: str = ""
    infos: list[Info] = field(default_factory=list)
    saved: list[Any] = field(default_factory=list)

    def run(self, rule: Rule, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Call the host."""
        if rule.given:
            (*directions, params), state = rule.split(tensors)
            saved = self.saved[0] if self.saved else self.core.restore(params, solution_of(_host(state), self.core.conic.pattern))
            found = rule.run(self.core, saved, directions)
        else:
            found, info, saved = self.core.forward(tensors, self.options)
            self.infos.append(info)
            self.saved.append(saved)
            found = [*found, state_of(info.solution)]
        return tuple(_tensor(value, *kind) for value, kind in zip(found, self.kinds(rule, tensors), strict=True))

    def kinds(self, rule: Rule, tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device | None]]:
        """The dtypes and devices of the results."""
        if rule.result.kind == "inputs":
            params = rule.split(tensors)[0][-1]
            return [(params[k].dtype, params[k].device) for k in rule.result.which]
        real = self.dtype.to_real()  # half precision has no complex type
        device = tensors[0].device if tensors else None
        complex_ = [self.core.outputs[k].complex for k in rule.result.which]
        outputs = [(torch.promote_types(real, torch.complex64) if wide else real, device) for wide in complex_]
        return outputs if rule.given else [*outputs, (torch.float64, None)]


class _Rule(torch.autograd.Function):
    """A rule: parameters -> (*outputs, state), or (parameters, state, directions) -> what is linear in the directions."""

    @staticmethod
    def forward(call: _Call, rule: Rule, *tensors: Tensor) -> tuple[Tensor, ...]:
        if all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors):  # else those of a trace, without numbers
            return call.run(rule, tensors)
        return tuple(_rule_op(call.key, call.dtype, rule.text, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, ctx.rule, *tensors = inputs
        if not ctx.rule.given:
            tensors.append(output[-1])
            ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(*tensors)  # PyTorch then also refuses tensors changed in place since the call
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        call, rule = ctx.call, ctx.rule
        (values, state), (needed, _) = rule.split(ctx.saved_tensors), rule.split(ctx.needs_input_grad[2:])
        found: list[Any] = []
        for j, (argument, asked) in enumerate(zip(rule.arguments, needed, strict=True)):
            wanted = [k for k, one in zip(argument.which, asked, strict=True) if one]
            term = rule.adjoint(j, wanted, values, given[: len(rule.result.which)])
            pulled = iter(_apply(call, state, *term) if term else [None] * len(wanted))
            found += [next(pulled) if one else None for one in asked]
        return None, None, *found, *([None] if rule.given else [])

    @staticmethod
    def jvp(ctx: Any, _call: Any, _rule: Any, *tangents: Tensor | None) -> Any:
        call, rule = ctx.call, ctx.rule
        with forward_ad._set_fwd_grad_enabled(True):
            (values, state), (moved, _) = rule.split(_primals(ctx.saved_tensors)), rule.split(_primals(tangents))
            terms = [_apply(call, state, *term) for term in rule.tangents(values, moved)]
            sums = [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)] or [None] * len(rule.result.which)
            return *sums, *([] if rule.given else [None])

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: _Call, rule: Rule, *tensors: Tensor) -> Any:
        lifted, folded = rule.mapped(call.core.inputs, info.batch_size, tensors, in_dims[2:])
        found = tuple(folded(_Rule.apply(replace(call, saved=[]), rule, *lifted)))
        return found, (0,) * len(found)


vars(_Rule.forward)["__signature__"] = inspect.signature(_Rule.forward)  # asked for at every call: 20 us


def _apply(call: _Call, state: Tensor, rule: Rule, values: Values) -> tuple[Tensor, ...]:
    apply = _Rule.apply if torch.is_grad_enabled() or _nested() else _Rule.forward  # nothing for second order unless it may be asked for
    return apply(call, rule, *flat(values, state))


def _nested() -> bool:
    """Whether a transform or forward mode is at work, to which even tensors that require no gradient matter."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _primals(tensors: Iterable[Any]) -> list[Any]:
    # Without this and _set_fwd_grad_enabled, forward mode inside forward mode is zero without an error (pytorch#197867).
    return [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in tensors]


def _common(core: HostMap, params: Sequence[Any]) -> tuple[torch.dtype, torch.device | None]:
    """The widest dtype of the tensors among the parameters, and their device."""
    check_count(core.inputs, params)
    given = [p for p in params if isinstance(p, Tensor)]
    if not given:
        return torch.float64 if params else torch.get_default_dtype(), None
    return reduce(torch.promote_types, [t.dtype for t in given]), given[0].device


def _eager(core: HostMap, params: Sequence[Any], options: Options, return_info: bool) -> Any:
    dtype, device = _common(core, params)
    tensors = [
        p if isinstance(p, Tensor) else torch.from_numpy(converted(port, _array, p)).to(device)
        for p, port in zip(params, core.inputs, strict=True)
    ]
    call = _Call(core, options, dtype)
    differentiable = _nested() or (torch.is_grad_enabled() and any([t.requires_grad for t in tensors]))
    *outputs, _ = (_Rule.apply if differentiable else _Rule.forward)(call, Rule.solution(core), *tensors)
    return (tuple(outputs), call.infos[-1]) if return_info else tuple(outputs)


def _traced(key: str, on_failure: str, solver_args: dict[str, Any], dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    call = _described(json.dumps([key, on_failure, solver_args]), dtype)
    return _Rule.apply(call, Rule.solution(call.core), *tensors)[:-1]


def _at_compile_time() -> bool:
    """Have Dynamo take `_traced` unseen, for autograd to trace, and leave `_eager` alone; run by Dynamo before it meets their names."""
    from torch import _dynamo  # seconds to import, but there already when something is compiled

    if not hasattr(_traced, "__wrapped__"):
        reason = "return_info and warm_start need a call outside the graph, which holds tensors only"
        globals().update(_traced=_dynamo.nonstrict_trace(_traced), _eager=_dynamo.disable(_eager, reason=reason))
    return True


vars(_at_compile_time)["_dynamo_marked_constant"] = True  # torch.compiler.assume_constant_result, not imported


def _described(key: str, dtype: torch.dtype) -> _Call:
    """The call that a graph names by ``key``."""
    name, on_failure, solver_args = json.loads(key)
    return _Call(CORES[name], Options(solver_args, on_failure), dtype, key)


@torch.library.custom_op("cvxlayers::rule", mutates_args=(), schema="(str key, ScalarType dtype, str rule, Tensor[] tensors) -> Tensor[]")
def _rule_op(key: str, dtype: torch.dtype, rule: str, tensors: Sequence[Any]) -> list[Tensor]:
    if forward_ad._current_level >= 0:  # PyTorch would give zero tangents without an error
        raise RuntimeError("forward mode cannot pass through a compiled graph; compile the function that takes the derivative")
    return list(_described(key, dtype).run(Rule.read(rule), tensors))


@_rule_op.register_fake
def _(key: str, dtype: torch.dtype, text: str, tensors: Sequence[Any]) -> list[Tensor]:
    call, rule = _described(key, dtype), Rule.read(text)
    results = zip(rule.shapes(call.core, tensors), call.kinds(rule, tensors), strict=True)
    return [torch.empty(shape, dtype=dtype, device=device) for shape, (dtype, device) in results]


def _array(value: Any) -> np.ndarray:
    """A parameter that is no tensor, in single precision if it was."""
    array = np.asarray(value)
    return np.array(array if array.dtype in (np.float32, np.complex64) else NUMPY.host(array), order="C")


def _tensor(value: Any, dtype: torch.dtype, device: Any) -> Tensor:
    real = value if dtype.is_complex else value.real  # the cotangent of a real tensor that was given for a complex parameter
    return torch.from_numpy(np.asarray(real, order="C")).to(dtype=dtype, device=device)


def _host(x: Tensor) -> np.ndarray:
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"got a tensor of dtype {x.dtype}; wanted a floating one, as from x.double()")
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64).numpy(force=True)


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
register(Backend("torch", _host, lambda x: torch.finfo(x.dtype).eps, VERBS))
