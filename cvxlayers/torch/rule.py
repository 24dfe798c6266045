"""The one autograd function that gives a `HostMap` every derivative in PyTorch.

Each `Rule` is an application of `RuleFunction`, whose backward, forward mode and vmap are the rules that `cvxlayers.rules` derives from
it, so both modes nest, up to second order. The state, the cone program's solution, is a constant to PyTorch: the rules know how it moves.
"""

from __future__ import annotations

import inspect
import json
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cvxlayers.backend import NUMPY
from cvxlayers.host import HostMap, Options, solution_of
from cvxlayers.program import Info
from cvxlayers.rules import Rule, Values, flat

PLAIN = frozenset({Tensor, torch.nn.Parameter})
CORES: weakref.WeakValueDictionary[str, HostMap] = weakref.WeakValueDictionary()  # a graph can name a map, not hold it


@dataclass
class Call:
    """How a map is called, and what came of it: Infos, and what the host saved, which holds for the tensors of that call alone."""

    core: Any
    options: Options
    dtype: torch.dtype
    key: str = ""
    infos: list[Info | None] = field(default_factory=list)
    saved: list[Any] = field(default_factory=list)

    def solve(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs."""
        found, info, saved = self.core.forward(params, self.options)
        self.infos.append(info)
        self.saved.append(saved)
        return self.tensors(found, Rule.solution(self.core), params)

    def state(self) -> Tensor:
        """The state that `solve` has found."""
        return torch.from_numpy(self.core.state(self.saved[-1]))

    def run(self, rule: Rule, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Call the host."""
        if not rule.given:
            return *self.solve(tensors), self.state()
        (*directions, params), state = rule.split(tensors)
        saved = self.saved[0] if self.saved else self.core.restore(params, solution_of(host(state), self.core.conic.pattern))
        return self.tensors(rule.run(self.core, saved, directions), rule, tensors)

    def tensors(self, found: Sequence[Any], rule: Rule, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Arrays that a rule has found as tensors."""
        return tuple([tensor(value, *kind) for value, kind in zip(found, self.kinds(rule, operands), strict=True)])

    def kinds(self, rule: Rule, tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device | None]]:
        """The dtypes and devices of the results."""
        if rule.result.kind == "inputs":
            first = len(tensors) - 1 - rule.size  # the parameters and the state come last
            return [(tensors[first + k].dtype, tensors[first + k].device) for k in rule.result.which]
        real = self.dtype.to_real()  # half precision has no complex type
        device = tensors[0].device if tensors else None
        complex_ = [self.core.outputs[k].complex for k in rule.result.which]
        return [(torch.promote_types(real, torch.complex64) if wide else real, device) for wide in complex_]


class RuleFunction(torch.autograd.Function):
    """A rule: parameters -> (*outputs, state), or (parameters, state, directions) -> what is linear in the directions."""

    @staticmethod
    def forward(call: Call, rule: Rule, *tensors: Tensor) -> tuple[Tensor, ...]:
        if PLAIN.issuperset(map(type, tensors)):  # else those of a trace, without numbers
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
        for j, asked in enumerate(needed):
            found += _pulled(call, rule, j, asked, values, state, given[: len(rule.result.which)])
        return None, None, *found, *([None] if rule.given else [])

    @staticmethod
    def jvp(ctx: Any, _call: Any, _rule: Any, *tangents: Tensor | None) -> Any:
        call, rule = ctx.call, ctx.rule
        with forward_ad._set_fwd_grad_enabled(True):
            (values, state), (moved, _) = rule.split(primals(ctx.saved_tensors)), rule.split(primals(tangents))
            terms = [_apply(call, state, *term) for term in rule.tangents(values, moved)]
            sums = [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)] or [None] * len(rule.result.which)
            return *sums, *([] if rule.given else [None])

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Call, rule: Rule, *tensors: Tensor) -> Any:
        lifted, folded = rule.mapped(call.core.inputs, info.batch_size, tensors, in_dims[2:])
        found = tuple(folded(RuleFunction.apply(replace(call, saved=[]), rule, *lifted)))
        return found, (0,) * len(found)


vars(RuleFunction.forward)["__signature__"] = inspect.signature(RuleFunction.forward)  # asked for at every call: 20 us


class Direct(torch.autograd.Function):
    """The map itself, parameters -> outputs, where no transform is at work.

    Its adjoint is that of the host; where that is to be differentiated in turn, it is the rule's.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, *params: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*params)  # PyTorch then also refuses tensors changed in place since the call
        ctx.set_materialize_grads(False)
        return call.solve(params)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        call, params, needed = ctx.call, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or nested():
            return None, *_pulled(call, Rule.solution(call.core), 0, needed, [params], call.state(), given)
        found = call.core.vjp(call.saved[0], [None if g is None else host(g) for g in given], needed)
        return None, *[tensor(g, p.dtype, p.device) if asked else None for g, p, asked in zip(found, params, needed, strict=True)]


def _pulled(call: Call, rule: Rule, j: int, asked: Sequence[bool], values: Values, state: Tensor, given: Sequence[Any]) -> list[Any]:
    """The cotangents of the entries ``asked`` of argument j of a rule, None for the others."""
    wanted = [k for k, one in zip(rule.arguments[j].which, asked, strict=True) if one]
    term = rule.adjoint(j, wanted, values, given)
    pulled = iter(_apply(call, state, *term) if term else [None] * len(wanted))
    return [next(pulled) if one else None for one in asked]


def _apply(call: Call, state: Tensor, rule: Rule, values: Values) -> tuple[Tensor, ...]:
    # nothing for second order unless it may be asked for
    apply = RuleFunction.apply if torch.is_grad_enabled() or nested() else RuleFunction.forward
    return apply(call, rule, *flat(values, state))


def nested() -> bool:
    """Whether a transform or forward mode is at work, to which even tensors that require no gradient matter."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def primals(tensors: Iterable[Any]) -> list[Any]:
    # Without this and _set_fwd_grad_enabled, forward mode inside forward mode is zero without an error (pytorch#197867).
    return [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in tensors]


def described(key: str, dtype: torch.dtype) -> Call:
    """The call that a graph names by ``key``."""
    name, on_failure, solver_args = json.loads(key)
    return Call(CORES[name], Options(solver_args, on_failure), dtype, key)


@torch.library.custom_op("cvxlayers::rule", mutates_args=(), schema="(str key, ScalarType dtype, str rule, Tensor[] tensors) -> Tensor[]")
def _rule_op(key: str, dtype: torch.dtype, rule: str, tensors: Sequence[Any]) -> list[Tensor]:
    if forward_ad._current_level >= 0:  # PyTorch would give zero tangents without an error
        raise RuntimeError("forward mode cannot pass through a compiled graph; compile the function that takes the derivative")
    return list(described(key, dtype).run(Rule.read(rule), tensors))


@_rule_op.register_fake
def _(key: str, dtype: torch.dtype, text: str, tensors: Sequence[Any]) -> list[Tensor]:
    call, rule = described(key, dtype), Rule.read(text)
    kinds = [*call.kinds(rule, tensors), *([] if rule.given else [(torch.float64, None)])]  # and the state
    results = zip(rule.shapes(call.core, tensors), kinds, strict=True)
    return [torch.empty(shape, dtype=dtype, device=device) for shape, (dtype, device) in results]


def array(value: Any) -> np.ndarray:
    """A parameter that is no tensor, in single precision if it was."""
    array = np.asarray(value)
    return np.array(array if array.dtype in (np.float32, np.complex64) else NUMPY.host(array), order="C")


def tensor(value: Any, dtype: torch.dtype, device: Any) -> Tensor:
    real = value if dtype.is_complex else value.real  # the cotangent of a real tensor that was given for a complex parameter
    found = torch.from_numpy(np.asarray(real, order="C"))
    return found if found.dtype is dtype and (device is None or device.type == "cpu") else found.to(dtype=dtype, device=device)


def host(x: Tensor) -> np.ndarray:
    if x.dtype is torch.float64:
        return x.numpy(force=True)
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"got a tensor of dtype {x.dtype}; wanted a floating one, as from x.double()")
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64).numpy(force=True)
