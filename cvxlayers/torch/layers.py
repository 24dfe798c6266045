"""Layers as PyTorch modules."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvxlayers import interface
from cvxlayers.host import HostMap, Options, check_count, converted
from cvxlayers.rules import Rule
from cvxlayers.torch.rule import CORES, PLAIN, Call, Direct, RuleFunction, array, described, nested


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
        return eager(self.core, params, options, return_info)


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


def _common(core: HostMap, params: Sequence[Any]) -> tuple[torch.dtype, torch.device | None]:
    """The widest dtype of the tensors among the parameters, and their device."""
    check_count(core.inputs, params)
    given = [p for p in params if isinstance(p, Tensor)]
    if not given:
        return torch.float64 if params else torch.get_default_dtype(), None
    return reduce(torch.promote_types, [t.dtype for t in given]), given[0].device


def eager(core: HostMap, params: Sequence[Any], options: Options, return_info: bool) -> Any:
    dtype, device = _common(core, params)
    tensors = [
        p if isinstance(p, Tensor) else torch.from_numpy(converted(port, array, p)).to(device)
        for p, port in zip(params, core.inputs, strict=True)
    ]
    call = Call(core, options, dtype)
    if nested() or not PLAIN.issuperset(map(type, tensors)):
        outputs = RuleFunction.apply(call, Rule.solution(core), *tensors)[:-1]
    elif torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):
        outputs = Direct.apply(call, *tensors)
    else:
        outputs = call.solve(tensors)
    return (outputs, call.infos[-1]) if return_info else outputs


def _traced(key: str, on_failure: str, solver_args: dict[str, Any], dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    call = described(json.dumps([key, on_failure, solver_args]), dtype)
    return RuleFunction.apply(call, Rule.solution(call.core), *tensors)[:-1]


def _at_compile_time() -> bool:
    """Have Dynamo take `_traced` unseen, for autograd to trace, and leave `eager` alone; run by Dynamo before it meets their names."""
    from torch import _dynamo  # seconds to import, but there already when something is compiled

    if not hasattr(_traced, "__wrapped__"):
        reason = "return_info and warm_start need a call outside the graph, which holds tensors only"
        globals().update(_traced=_dynamo.nonstrict_trace(_traced), eager=_dynamo.disable(eager, reason=reason))
    return True


vars(_at_compile_time)["_dynamo_marked_constant"] = True  # torch.compiler.assume_constant_result, not imported
