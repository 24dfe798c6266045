"""The verbs of PyTorch: what `cvxlayers.topk`, `cvxlayers.implicit` and `cvxlayers.control` ask of a framework."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import array_api_compat.torch as torch_namespace
import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cvxlayers.backend import Symmetric, Verbs, unrolled_loop, unrolled_scan
from cvxlayers.host import Options
from cvxlayers.torch.layers import eager
from cvxlayers.torch.rule import nested, primals

IN_CONSTANT: ContextVar[bool] = ContextVar("in_constant", default=False)  # nobody differentiates what happens there
FUNCTORCH: Any = vars(torch._C)["_functorch"]  # its stub does not say that it is there


class _Constant(torch.autograd.Function):
    """Outputs of any function as constants: no transform looks inside, mapped axes become leading ones."""

    @staticmethod
    def forward(f: Any, ranks: Any, *arrays: Tensor) -> tuple[Tensor, ...]:
        outside = IN_CONSTANT.set(True)
        try:
            with torch.enable_grad():  # f may take gradients of its own
                found = f(*(a.detach() for a in arrays))
        finally:
            IN_CONSTANT.reset(outside)
        return tuple(a.detach() for a in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.count = len(output)
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *given: Any) -> Any:
        return (None,) * ctx.count

    @staticmethod
    def vmap(info: Any, in_dims: Any, f: Any, ranks: Any, *arrays: Tensor) -> Any:
        found = _Constant.apply(f, ranks, *_mapped_first(arrays, in_dims[2:], ranks))
        return found, (0,) * len(found)


def _mapped_first(arrays: Sequence[Tensor], dims: Sequence[Any], ranks: Sequence[int]) -> list[Tensor]:
    """The mapped axis in front of all others."""
    pairs = list(zip(arrays, dims, ranks, strict=True))
    lead = max(a.ndim - (d is not None) - rank for a, d, rank in pairs)
    return [a if d is None else a.movedim(d, 0)[(slice(None), *(None,) * (lead - a.ndim + 1 + r))] for a, d, r in pairs]


def _vjp(f: Any, x: Tensor) -> Any:
    """`torch.func.vjp`; without its levels where no transform is at work and it is known what must not be differentiated again.

    There x lies in memory entry by entry: functions take rows apart, and what they take is then contiguous.
    """
    again = torch.is_grad_enabled() and x.requires_grad
    plain = type(x) in (Tensor, torch.nn.Parameter) and not nested() and not torch.compiler.is_compiling()
    if not plain or not (again or IN_CONSTANT.get()):
        return torch.func.vjp(f, x)
    with torch.enable_grad():
        z = x.view_as(x) if again else x.detach().movedim(-1, 0).contiguous().movedim(0, -1).requires_grad_()
        value = f(z)

    def pull(g: Tensor) -> tuple[Tensor, ...]:
        if not value.requires_grad:
            return (torch.zeros_like(x),)
        return torch.autograd.grad(value, z, g, retain_graph=True, create_graph=again, materialize_grads=True)

    return value if again else value.detach(), pull


class _Linear(torch.autograd.Function):
    """A function linear in its last array, and its transpose."""

    @staticmethod
    def forward(pair: Any, ranks: Any, *arrays: Tensor) -> Tensor:
        with torch.enable_grad():
            return pair[0](*(a.detach() for a in arrays)).detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.pair, ctx.ranks, *arrays = inputs
        ctx.save_for_backward(*arrays[:-1])
        ctx.save_for_forward(*arrays[:-1])

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        return *(None,) * (1 + len(ctx.ranks)), _Linear.apply(ctx.pair[::-1], ctx.ranks, *ctx.saved_tensors, given[0])

    @staticmethod
    def jvp(ctx: Any, *given: Any) -> Any:
        return _Linear.apply(ctx.pair, ctx.ranks, *ctx.saved_tensors, given[-1])

    @staticmethod
    def vmap(info: Any, in_dims: Any, pair: Any, ranks: Any, *arrays: Tensor) -> Any:
        return _Linear.apply(pair, ranks, *_mapped_first(arrays, in_dims[2:], ranks)), 0


class _Symmetric(torch.autograd.Function):
    """A `Symmetric` system; the rule is the implicit function theorem, written in itself, so that every order follows."""

    @staticmethod
    def forward(system: Symmetric, sizes: tuple[int, int], *arrays: Tensor) -> tuple[Tensor, ...]:
        return tuple(system.solve(*_split(arrays, sizes)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.system, ctx.sizes, *arrays = inputs
        ctx.save_for_backward(*arrays, *output)
        ctx.save_for_forward(*arrays, *output)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        system, sizes, count = ctx.system, ctx.sizes, len(given)
        (held, p, _), x = _split(ctx.saved_tensors[:-count], sizes), ctx.saved_tensors[-count:]
        apply = _Symmetric.apply if torch.is_grad_enabled() or nested() else _Symmetric.forward
        d = apply(system, sizes, *held, *p, *given)
        moved = [None] * sizes[1]
        if any(ctx.needs_input_grad[2 + sizes[0] : 2 + sum(sizes)]):
            moved = system.pull(p, x, tuple(-t for t in d))
        return None, None, *[None] * sizes[0], *moved, *d

    @staticmethod
    def jvp(ctx: Any, _system: Any, _sizes: Any, *tangents: Tensor | None) -> Any:
        system, sizes = ctx.system, ctx.sizes
        with forward_ad._set_fwd_grad_enabled(True):
            saved = primals(ctx.saved_tensors)
            held, p, b = _split(saved[: len(tangents)], sizes)
            x = saved[len(tangents) :]
            _, moved, right = _split(primals(tangents), sizes)
            moved = [torch.zeros_like(a) if t is None else t for a, t in zip(p, moved, strict=True)]
            right = [torch.zeros_like(a) if t is None else t for a, t in zip(b, right, strict=True)]
            right = [t - change for t, change in zip(right, system.product(tuple(moved), tuple(x)), strict=True)]
            return _Symmetric.apply(system, sizes, *held, *p, *right)

    @staticmethod
    def vmap(info: Any, in_dims: Any, system: Symmetric, sizes: tuple[int, int], *arrays: Tensor) -> Any:
        found = _Symmetric.apply(system, sizes, *_mapped_first(arrays, in_dims[2:], [rank for part in system.ranks for rank in part]))
        return found, (0,) * len(found)


class _Projection(torch.autograd.Function):
    """A projection of rows whose derivative is a function of its value."""

    @staticmethod
    def forward(find: Any, move: Any, x: Tensor) -> Tensor:
        return find(x.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.move = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        return None, None, ctx.move(ctx.saved_tensors[0], given[0], torch.is_grad_enabled() or nested())

    @staticmethod
    def jvp(ctx: Any, *given: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            (y,), (d,) = primals(ctx.saved_tensors), primals(given[2:])
            return ctx.move(y, d, True)

    @staticmethod
    def vmap(info: Any, in_dims: Any, find: Any, move: Any, x: Tensor) -> Any:
        return _Projection.apply(find, move, x.movedim(in_dims[2], 0)), 0


class _Quick(torch.autograd.Function):
    """Compiled code of the value and of one derivative; a derivative that is differentiated further is that of ``f``."""

    @staticmethod
    def forward(ctx: Any, f: Any, value: Any, pull: Any, *arrays: Tensor) -> tuple[Tensor, ...]:
        outputs, kept = value(*(a.detach().numpy() for a in arrays))
        ctx.f, ctx.pull = f, pull
        ctx.save_for_backward(*arrays, *map(torch.from_numpy, kept))
        return tuple(map(torch.from_numpy, outputs))

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        needed, saved = ctx.needs_input_grad[3:], ctx.saved_tensors
        arrays, kept = saved[: len(needed)], saved[len(needed) :]
        if torch.is_grad_enabled():
            wanted = [a for a, asked in zip(arrays, needed, strict=True) if asked]
            found = iter(torch.autograd.grad(ctx.f(*arrays), wanted, given, create_graph=True, materialize_grads=True))
            return None, None, None, *(next(found) if asked else None for asked in needed)
        pulled = ctx.pull(*([a.detach().numpy() for a in part] for part in (arrays, kept, given)), needed)
        return None, None, None, *(torch.from_numpy(g) if asked else None for g, asked in zip(pulled, needed, strict=True))


def _quick(f: Any, value: Any, pull: Any, *arrays: Tensor) -> tuple[Tensor, ...]:
    plain = all(type(a) in (Tensor, torch.nn.Parameter) and a.device.type == "cpu" for a in arrays) and not nested()
    alike = len({a.dtype for a in arrays}) == 1 and arrays[0].dtype in (torch.float32, torch.float64)
    return _Quick.apply(f, value, pull, *arrays) if plain and alike else f(*arrays)


def _split(arrays: Sequence[Any], sizes: tuple[int, int]) -> tuple[tuple[Any, ...], ...]:
    return tuple(arrays[: sizes[0]]), tuple(arrays[sizes[0] : sum(sizes)]), tuple(arrays[sum(sizes) :])


def _symmetric(system: Symmetric, held: Sequence[Tensor], p: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return _Symmetric.apply(system, (len(held), len(p)), *held, *p, *b)


def _known(x: Any) -> np.ndarray | None:
    """Also the values below the transforms of torch.func, whose levels a reader of values need not see."""
    while FUNCTORCH.is_functorch_wrapped_tensor(x):
        x = FUNCTORCH.get_unwrapped(x)
    if type(x) not in (Tensor, torch.nn.Parameter) or x.device.type != "cpu" or x.dtype == torch.bfloat16:  # which NumPy does not have
        return None
    with torch._C._DisableFuncTorch():
        return x.detach().numpy()


def _on_host(f: Any, like: Any, *arrays: Tensor) -> Any:
    found = f(*(a.numpy(force=True) for a in arrays))
    return None if like is None else torch.as_tensor(found, dtype=like.dtype, device=like.device)


def _normal(seed: Any, shape: Sequence[int], like: Tensor) -> Tensor:
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator(like.device).manual_seed(int(seed))
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


# Under torch.func.vmap torch.moveaxis has no rule, torch.movedim has one.
XP = SimpleNamespace(**{**vars(torch_namespace), "moveaxis": torch.movedim})
VERBS = Verbs(
    xp=XP,
    asarray=lambda value, like: torch.as_tensor(value, dtype=like.dtype, device=like.device),
    stop=torch.Tensor.detach,
    take=lambda x, indices: x.index_select(-1, torch.from_numpy(indices).to(x.device)),
    vjp=_vjp,
    loop=unrolled_loop,
    users=lambda f: f,
    scan=unrolled_scan(torch.stack),
    constant=_Constant.apply,
    linear=lambda f, transposed, product, ranks, *arrays: _Linear.apply((f, transposed), ranks, *arrays),
    symmetric=_symmetric,
    projection=_Projection.apply,
    quick=_quick,
    known=_known,
    vmap=torch.func.vmap,
    host=_on_host,
    sigmoid=torch.sigmoid,
    normal=_normal,
    call=lambda core, *params, return_info=False, **options: eager(core, params, Options(**options), return_info),
)
