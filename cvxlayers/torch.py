"""The PyTorch adapter: a module around a `Layer`, and the autograd function that wires its gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvxlayers.backend import Backend, backend_of, register
from cvxlayers.host import Options
from cvxlayers.layer import Layer, check_spelling, ignore_legacy
from cvxlayers.program import Info


class CvxpyLayer(torch.nn.Module):
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
        super().__init__()
        check_spelling(unknown)
        ignore_legacy(verbose, canon_backend)
        self.core = Layer(problem, parameters, variables, solver, gp, solver_args)

    def forward(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        return_info: bool = False,
        on_failure: str = "raise",
        warm_start: Info | None = None,
    ) -> Any:
        """Solve for every row of the batch: parameters (*batch, *shape) or shape -> tuple of variables (*batch, *shape).

        Batch shapes are equal, or () for what all rows share. Results have the widest dtype and the device of the tensors given; inside
        everything is float64. With ``return_info`` the result is (variables, `Info`), and ``warm_start`` takes the Info of an earlier
        call. ``on_failure``: "raise" a SolverError, "nan" makes failed rows NaN with zero gradient, "return" hands out the last iterate
        with a warning. Raises ValueError for a wrong count, shape or dtype.
        """
        tensors = [p for p in params if isinstance(p, Tensor)]
        for p, spec in zip(params, self.core.canonical.parameters, strict=False):
            if isinstance(p, Tensor) and not (p.is_floating_point() or p.is_complex()):
                raise ValueError(f"parameter '{spec.name}' is a tensor of dtype {p.dtype}; wanted a floating one, as from x.double()")
        options = Options(solver_args, on_failure, warm_start or None)
        call = _Call(self.core, params, options)
        outputs = _Solve.apply(call, *tensors) if tensors else call.run(())
        return (outputs, call.info) if return_info else outputs


class _Call:
    """One call of a layer: where tensors stand among the parameters, and what comes back beside the outputs."""

    info: Info

    def __init__(self, core: Layer, params: Sequence[Any], options: Options) -> None:
        self.core, self.params, self.options = core, params, options
        self.positions = [k for k, p in enumerate(params) if isinstance(p, Tensor)]

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        dtype, device = torch.get_default_dtype() if not self.params else torch.float64, torch.device("cpu")
        if tensors:
            dtype, device = tensors[0].dtype, tensors[0].device
            for tensor in tensors:
                dtype = torch.promote_types(dtype, tensor.dtype)
            dtype = dtype.to_real()
        values, self.info, self.saved = self.core.forward(self.params, self.options)
        wide = torch.promote_types(dtype, torch.complex64)  # half precision has no complex type of its own
        return tuple(torch.from_numpy(v).to(device=device, dtype=wide if np.iscomplexobj(v) else dtype) for v in values)


class _Solve(torch.autograd.Function):
    """The solution map and its adjoint; what the backward pass needs are arrays."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = call.run(tensors)
        ctx.core, ctx.saved, ctx.positions = call.core, call.saved, call.positions
        ctx.like = [(t.dtype, t.device) for t in tensors]
        ctx.save_for_backward(*tensors)  # not for their values: PyTorch then refuses tensors changed in place since the call
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = (*ctx.saved_tensors, *(g for g in cotangents if g is not None))
        needed = [False] * len(ctx.core.canonical.parameters)
        for position, wanted in zip(ctx.positions, ctx.needs_input_grad[1:], strict=True):
            needed[position] = wanted
        host = [None if g is None else backend_of(g).host(g) for g in cotangents]
        gradients = ctx.core.vjp(ctx.saved, host, needed)
        given = zip(ctx.positions, ctx.like, strict=True)
        results = [None if gradients[k] is None else _tensor(gradients[k], dtype, device) for k, (dtype, device) in given]
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            results = [None if r is None else _Once.apply(r, *tensors) for r in results]
        return None, *results


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again: an error where a silent zero would be wrong."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *tensors: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise RuntimeError(
            "CvxpyLayer has no second derivative yet: its gradient cannot be differentiated (create_graph, hessian, jvp of grad)"
        )


def _tensor(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A real tensor given for a complex parameter takes the real part, as PyTorch's own functions do.
    return torch.from_numpy(np.ascontiguousarray(value if dtype.is_complex else value.real)).to(dtype=dtype, device=device)


def _host(x: Tensor) -> np.ndarray:
    wide = torch.complex128 if x.is_complex() else torch.float64
    return x.detach().to(device="cpu", dtype=wide).resolve_conj().resolve_neg().numpy()


def _resolution(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


register(Backend("torch", _host, _resolution))
