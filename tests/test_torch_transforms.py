"""PyTorch's transforms of a layer equal plain calls: torch.func, forward mode, second order, torch.compile, autocast."""

from __future__ import annotations

import copy
import functools
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor, func
from torch.autograd import forward_ad

from cvxlayers import SolverError
from cvxlayers.cones import NonNegative, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.conic_map import ConicMap
from cvxlayers.layer import Layer
from cvxlayers.program import Pattern
from cvxlayers.torch import ConicLayer, CvxpyLayer
from tests.problems import CASES

grad, hessian, jacfwd, jacrev, vmap = func.grad, func.hessian, func.jacfwd, func.jacrev, func.vmap
jvp: Any = func.jvp  # these return two values or three, as their arguments say
vjp: Any = func.vjp

TWICE = ("least_squares", "quadratic_program", "second_order_program", "conic")
ONCE = ("mixed_cones", "hermitian_program", "geometric_program", "semidefinite_conic")
ALL = TWICE + ONCE


def conic_layer(cone: Product) -> tuple[ConicLayer, Callable[[np.random.Generator], list[np.ndarray]]]:
    """A cone program with dense P and A, and a sampler of feasible and bounded (P, q, A, b)."""
    n, m = 6, cone.dim
    pattern = Pattern.of(np.ones((n, n)), np.ones((m, n)), cone)

    def sample(rng: np.random.Generator) -> list[np.ndarray]:
        F, A, v = rng.standard_normal((n, n)), rng.standard_normal((m, n)), 2 * rng.standard_normal((1, m))
        dual = cone.dual().project(v)[0]
        x, s = rng.standard_normal(n), dual - v[0]
        P = F @ F.T + np.eye(n)
        return [sp.csc_matrix(np.triu(P)).data, -P @ x - A.T @ dual, A.T.ravel(), A @ x + s]

    return ConicLayer(pattern), sample


class Problem:
    """A layer, its parameters' samples, and ``f``: the layer as a function of unconstrained tensors, which it symmetrizes."""

    def __init__(self, name: str) -> None:
        if name.endswith("conic"):
            cone = (NonNegative(2), SecondOrder(3)) if name == "conic" else (Semidefinite(2),)
            self.layer, self.sample = conic_layer(Product((Zero(1), *cone)))
            self.hermitian = [False] * 4
        else:
            case = CASES[name]()
            self.layer, self.sample = CvxpyLayer(case.problem, case.parameters, case.variables, gp=case.gp), case.sample
            self.hermitian = [
                "hermitian" if p.attributes["hermitian"] else "symmetric" if p.ndim == 2 and p.is_symmetric() else ""
                for p in case.parameters
            ]
        self.core: Layer | ConicMap = self.layer.core

    def f(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
        given = [(t + t.mT.conj()) / 2 if hermitian else t for t, hermitian in zip(tensors, self.hermitian, strict=True)]
        return self.layer(*given, **options)

    def loss(self, *tensors: Tensor) -> Tensor:
        """A curved real function of all outputs, one number for each row of none."""
        total = torch.zeros((), dtype=torch.float64)
        for k, out in enumerate(self.f(*tensors)):
            real = torch.view_as_real(out) if out.is_complex() else out
            weight = torch.cos(torch.arange(real.numel(), dtype=torch.float64) + k).reshape(real.shape)
            total = total + (weight * real).sum() + (real**2).sum() / 2
        return total

    def draw(self, *seeds: int) -> list[Tensor]:
        """The tensors of one seed, or those of several in a batch."""
        rows = [[torch.from_numpy(np.array(v)) for v in self.sample(np.random.default_rng(seed))] for seed in seeds]
        return rows[0] if len(rows) == 1 else [torch.stack(column) for column in zip(*rows, strict=True)]

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(range(len(self.hermitian)))


@functools.cache
def problem(name: str) -> Problem:
    return Problem(name)


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def close(got: Any, want: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=atol)


def stacked(rows: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def eager(p: Problem, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    tensors = leaves(tensors)
    return torch.autograd.grad(p.loss(*tensors), tensors)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the host's methods, as they are called."""
    made: list[str] = []

    def counted(cls: type, name: str) -> None:
        plain = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda self, *a: (made.append(name), plain(self, *a))[1])

    for cls in (Layer, ConicMap):
        for name in ("forward", "vjp", "jvp", "second_vjp", "second_jvp"):
            counted(cls, name)
    return made


# ---- finite differences ----


@pytest.mark.parametrize("name", ALL)
def test_gradcheck_in_both_modes(name: str) -> None:
    p = problem(name)
    check = functools.partial(torch.autograd.gradcheck, p.f, eps=1e-6, atol=1e-4, rtol=1e-4, check_forward_ad=True)
    assert check(leaves(p.draw(0)), fast_mode=True)
    assert name in ONCE or check(leaves(p.draw(0, 1)), fast_mode=True)


@pytest.mark.parametrize("name", TWICE)
def test_gradgradcheck_in_both_modes(name: str) -> None:
    p = problem(name)
    single, many = p.draw(0), p.draw(1, 2)
    for tensors in (single, many, [*single[:1], *many[1:]]):
        assert torch.autograd.gradgradcheck(
            p.f, leaves(tensors), eps=1e-6, atol=1e-4, rtol=1e-4, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True
        )


@pytest.mark.parametrize("name", TWICE)
def test_hessian_equals_finite_differences_of_the_gradient(name: str) -> None:
    p, tensors, step = problem(name), problem(name).draw(0), 1e-5
    directions = [torch.from_numpy(np.random.default_rng(9).standard_normal(t.shape)) for t in tensors]
    _, got = jvp(grad(p.loss, p.numbers), tuple(tensors), tuple(directions))
    ends = [eager(p, [t + sign * step * d for t, d in zip(tensors, directions, strict=True)]) for sign in (1, -1)]
    want = tuple((plus - minus) / (2 * step) for plus, minus in zip(*ends, strict=True))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


# ---- torch.func ----


@pytest.mark.parametrize("name", ALL)
def test_vmap_equals_a_loop_in_one_host_call(name: str, calls: list[str]) -> None:
    p = problem(name)
    singles = [p.draw(seed) for seed in (0, 1, 2)]
    rows, want = p.draw(0, 1, 2), stacked([p.f(*single) for single in singles])
    calls.clear()
    close(vmap(p.f)(*rows), want)
    assert calls == ["forward"]
    close(vmap(p.f, in_dims=-1, out_dims=-1)(*(r.movedim(0, -1) for r in rows)), tuple(w.movedim(0, -1) for w in want))
    for k in p.numbers:  # one parameter shared, and one parameter mapped
        for mapped in ({k}, set(p.numbers) - {k}):
            if mapped and not (name.endswith("conic") and mapped != set(p.numbers)):
                dims = tuple(0 if j in mapped else None for j in p.numbers)
                mixed = [[rows[j][i] if j in mapped else rows[j][0] for j in p.numbers] for i in range(3)]
                close(vmap(p.f, dims)(*(rows[j] if j in mapped else rows[j][0] for j in p.numbers)), stacked([p.f(*m) for m in mixed]))


@pytest.mark.parametrize("name", ALL)
def test_nested_vmap_and_batches_inside(name: str, calls: list[str]) -> None:
    p = problem(name)
    rows = [t.reshape(2, 2, *t.shape[1:]) for t in p.draw(0, 1, 2, 3)]
    want = p.f(*rows)
    calls.clear()
    close(vmap(vmap(p.f))(*rows), want)
    close(vmap(p.f)(*rows), want)
    close(vmap(p.f, in_dims=1, out_dims=1)(*rows), want)
    assert calls == ["forward"] * 3


@pytest.mark.parametrize("name", ALL)
def test_grad_vjp_and_jvp_equal_eager(name: str, calls: list[str]) -> None:
    p, tensors, others = problem(name), problem(name).draw(0), problem(name).draw(1)
    want = eager(p, tensors)
    close(grad(p.loss, p.numbers)(*tensors), want)
    value, pull = vjp(p.loss, *tensors)
    close(pull(torch.ones_like(value)), want)
    calls.clear()
    value, tangent = jvp(p.loss, tuple(tensors), tuple(others))
    assert calls == ["forward", "jvp"]
    close(tangent, sum(((w.conj() * d).real.sum() for w, d in zip(want, others, strict=True)), torch.zeros(())).double(), atol=1e-8)
    rows = p.draw(0, 1, 2)
    calls.clear()
    got = vmap(grad(p.loss, p.numbers))(*rows)
    assert calls == ["forward", "vjp"]
    close(got, stacked([eager(p, p.draw(seed)) for seed in (0, 1, 2)]), atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_jacobians_of_both_modes_agree(name: str, calls: list[str]) -> None:
    p, tensors = problem(name), problem(name).draw(0)
    if name == "hermitian_program":
        real = [torch.view_as_real(t) for t in tensors]  # torch.func has no complex Jacobians

        def f(*parts: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.view_as_real(out) for out in p.f(*(torch.view_as_complex(t.contiguous()) for t in parts)))
    else:
        real, f = tensors, p.f
    calls.clear()
    reverse = jacrev(f, p.numbers)(*real)
    assert calls == ["forward", "vjp"]
    close(jacfwd(f, p.numbers)(*real), reverse, atol=1e-8)
    want = torch.autograd.functional.jacobian(f, tuple(real))
    close(reverse, want, atol=1e-9)


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives_of_all_modes_agree(name: str) -> None:
    """Forward mode inside forward mode is where PyTorch itself gives wrong numbers without an error."""
    p, tensors = problem(name), problem(name).draw(0)
    which = 1

    def f(t: Tensor) -> Tensor:
        return p.loss(*tensors[:which], t, *tensors[which + 1 :])

    want: Any = torch.autograd.functional.hessian(f, tensors[which])
    assert want.abs().max() > 1e-3
    for transform in (hessian, lambda g: jacfwd(jacfwd(g)), lambda g: jacrev(jacrev(g)), lambda g: jacrev(jacfwd(g))):
        close(transform(f)(tensors[which]), want, atol=1e-8)


@pytest.mark.parametrize("name", TWICE)
def test_mapped_second_derivatives(name: str, calls: list[str]) -> None:
    p, rows = problem(name), problem(name).draw(0, 1)
    directions = p.draw(2, 3)

    def product(*both: Tensor) -> Any:
        half = len(both) // 2
        return jvp(grad(p.loss, p.numbers), both[:half], both[half:])[1]

    calls.clear()
    got = vmap(product)(*rows, *directions)
    assert sorted(calls) == ["forward", "jvp", "second_vjp", "vjp", "vjp"]
    for i in range(2):
        tensors = leaves([r[i] for r in rows])
        gradient = torch.autograd.grad(p.loss(*tensors), tensors, create_graph=True)
        want = torch.autograd.grad(gradient, tensors, [d[i] for d in directions])
        close(tuple(g[i] for g in got), want, atol=1e-7)


def test_a_batch_that_shares_parameters_under_vmap() -> None:
    """Rows of one mapped call that share a parameter sum its gradient; different mapped calls do not."""
    p = problem("least_squares")
    F, g, lasso = p.draw(0, 1, 2, 3)
    inner = [F[:2], g.reshape(2, 2, -1), lasso[0]]
    got = vmap(grad(p.loss, (0, 1, 2)), in_dims=(0, 0, None))(*inner)
    close(got, stacked([eager(p, [F[i], inner[1][i], lasso[0]]) for i in range(2)]), atol=1e-9)
    got = vmap(grad(p.loss, (0, 1, 2)), in_dims=(None, 0, None))(F[0], *inner[1:])
    close(got, stacked([eager(p, [F[0], inner[1][i], lasso[0]]) for i in range(2)]), atol=1e-9)


def test_plain_values_beside_mapped_tensors() -> None:
    p = problem("least_squares")
    F, g, lasso = p.draw(0, 1, 2, 3)
    want = p.layer(F[:2], g[:2], 0.7)
    close(vmap(lambda g: p.layer(F[0].numpy(), g, 0.7))(g), p.layer(F[0], g, 0.7))
    arrays = F[:2].numpy()  # a batch of arrays inside
    close(vmap(lambda g: p.layer(arrays, g, 0.7))(torch.stack([g[:2], g[:2]])), tuple(torch.stack([w, w]) for w in want))

    def loss(g: Tensor) -> Tensor:
        return p.layer(arrays, g, 0.7)[0].square().sum()

    close(vmap(grad(loss))(torch.stack([g[:2], g[2:]])), torch.stack([grad(loss)(g[:2]), grad(loss)(g[2:])]))


def test_the_info_and_the_warm_start_of_a_mapped_call() -> None:
    case, infos = CASES["second_order_program"](), []
    layer = CvxpyLayer(case.problem, case.parameters, case.variables, solver="SCS")

    def f(*tensors: Tensor, warm: Any = None) -> Tensor:
        (x, _), info = layer(*tensors, return_info=True, warm_start=warm)
        infos.append(info)
        return x

    rows = problem("second_order_program").draw(0, 1, 2)
    cold = vmap(f)(*rows)
    warm = vmap(functools.partial(f, warm=infos[0]))(*rows)
    torch.testing.assert_close(warm, cold, rtol=1e-7, atol=1e-7)
    assert infos[0].status.shape == (3,) and infos[1].warm_started.tolist() == [True] * 3


def test_failures_inside_transforms() -> None:
    p = problem("least_squares")
    rows = p.draw(0, 1)
    rows[1][1, 0] = torch.nan
    with pytest.raises(SolverError, match="row 1 of 2: INVALID_PARAMETER"):
        vmap(p.f)(*rows)
    (x,) = vmap(functools.partial(p.f, on_failure="nan"))(*rows)
    assert not x[0].isnan().any() and x[1].isnan().all()
    gradients = vmap(grad(lambda *t: p.f(*t, on_failure="nan")[0].sum(), (0, 1, 2)))(*rows)
    assert all((g[1] == 0).all() and (g[0] != 0).any() for g in gradients)


# ---- forward mode and second order, refused where they do not exist ----


@pytest.mark.parametrize("name", ALL)
def test_dual_numbers_never_have_a_silent_zero_tangent(name: str) -> None:
    p, tensors, others = problem(name), problem(name).draw(0), problem(name).draw(1)
    _, want = jvp(p.f, tuple(tensors), tuple(others))
    for require in (False, True):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t.clone().requires_grad_(require), d) for t, d in zip(tensors, others, strict=True)]
            got: Any = tuple(forward_ad.unpack_dual(out).tangent for out in p.f(*duals))
            with torch.no_grad():
                again = tuple(forward_ad.unpack_dual(out).tangent for out in p.f(*duals))
        assert all(t is not None for t in got) and got[0].abs().max() > 1e-3
        close(got, want)
        close(again, want)


@pytest.mark.parametrize("name", ONCE)
def test_missing_second_derivatives_are_errors_in_every_mode(name: str) -> None:
    p, tensors = problem(name), problem(name).draw(0)
    leaf = leaves(tensors)
    gradients = torch.autograd.grad(p.loss(*leaf), leaf, create_graph=True)
    with pytest.raises(ValueError, match="no second derivatives here"):
        sum((g.abs().sum() for g in gradients), torch.zeros(())).backward()

    def f(t: Tensor) -> Tensor:
        return p.f(t, *tensors[1:])[0].abs().square().sum()

    def by_dual_numbers() -> None:
        with forward_ad.dual_level():
            dual = [forward_ad.make_dual(t, torch.ones_like(t)) for t in leaf]
            torch.autograd.grad(p.loss(*dual), leaf)

    for second in (
        lambda: jvp(grad(f), (tensors[0],), (tensors[0],)),
        lambda: vjp(grad(f), tensors[0])[1](tensors[0]),
        lambda: jvp(lambda t: jvp(f, (t,), (tensors[0],))[1], (tensors[0],), (tensors[0],)),
        lambda: grad(lambda t: jvp(f, (t,), (tensors[0],))[1])(tensors[0]),
        by_dual_numbers,
    ):
        with pytest.raises(ValueError, match="no second derivatives here"):
            second()


def test_third_derivatives_are_refused() -> None:
    p = problem("quadratic_program")
    tensors = p.draw(0)

    def f(t: Tensor) -> Tensor:
        return p.loss(t, *tensors[1:])

    def along(g: Callable) -> Callable:
        return lambda t: jvp(g, (t,), (tensors[0],))[1]

    def pulled(g: Callable) -> Callable:
        return grad(lambda t: (g(t) * tensors[0]).sum())

    for third in (along(along(along(f))), pulled(pulled(grad(f))), along(pulled(grad(f))), pulled(grad(along(f)))):
        with pytest.raises(ValueError, match="the third was asked for"):
            third(tensors[0])


def test_first_order_does_no_second_order_work(calls: list[str]) -> None:
    for name in ONCE + TWICE:
        p = problem(name)
        tensors = leaves(p.draw(0, 1))
        calls.clear()
        p.loss(*tensors).backward()
        torch.autograd.grad(p.loss(*tensors), tensors, create_graph=True)
        assert calls == ["forward", "vjp"] * 2


def test_a_gradient_penalty_and_an_unrolled_step() -> None:
    """Double backward as it is used: through a step of gradient descent whose gradient came out of the layer."""
    p = problem("least_squares")
    F, g, lasso = leaves(p.draw(0))

    def outer(F: Tensor, g: Tensor) -> Tensor:
        (step,) = torch.autograd.grad(p.loss(F, g, lasso), g, create_graph=True)
        return p.loss(F, g - 0.1 * step, lasso) + step.square().sum()

    assert torch.autograd.gradcheck(outer, (F, g), eps=1e-6, atol=1e-5, rtol=1e-5)


# ---- the cone program ----


def test_the_conic_layer_is_differentiable_in_all_and_on_all() -> None:
    p = problem("conic")
    tensors = leaves(p.draw(0, 1))
    (x, y, s), info = p.layer(*tensors, return_info=True)
    assert (info.status == 0).all()
    for out in (x, y, s):
        for gradient in torch.autograd.grad(out.square().sum(), tensors, retain_graph=True):
            assert gradient.abs().max() > 1e-6
    again = p.layer(*tensors, warm_start=info, on_failure="nan")
    close(again, (x, y, s))
    with pytest.raises(ValueError, match=r"'q' \(2 of 4\) has shape"):
        p.layer(tensors[0], tensors[1][:, :2], *tensors[2:])
    with pytest.raises(ValueError, match="got 3 parameter values; wanted 4, one for each of 'P', 'q', 'A', 'b'"):
        p.layer(*tensors[:3])
    single = p.layer(*(t.float() for t in p.draw(0)))
    assert all(t.dtype == torch.float32 for t in single)


# ---- autocast and torch.compile ----


@pytest.mark.parametrize("name", ALL)
def test_autocast_leaves_the_precision_alone(name: str) -> None:
    p, tensors = problem(name), leaves(problem(name).draw(0, 1))
    want = p.layer(*tensors)
    for dtype in (torch.float64, torch.float32):
        given = [t.to(torch.complex128 if t.is_complex() else dtype) for t in tensors]
        plain = p.layer(*given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = p.layer(*given)
            gradients = torch.autograd.grad(sum((out.abs().square().sum() for out in outputs), torch.zeros(())), tensors)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(outputs, plain, strict=True))
        if dtype == torch.float64:
            close(outputs, want)
        close(gradients, torch.autograd.grad(sum((out.abs().square().sum() for out in plain), torch.zeros(())), tensors))


def compiled(f: Callable) -> Callable:
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ("least_squares", "hermitian_program", "semidefinite_conic"))
def test_compiled_whole_equals_eager(name: str) -> None:
    p = problem(name)

    def step(*t: Tensor) -> Tensor:
        return p.loss(*(v * 1.0 for v in t))

    graph = compiled(step)
    for seeds in ((0, 1), (2, 3)):
        tensors = p.draw(*seeds)
        one, other = leaves(tensors), leaves(tensors)
        got, want = graph(*one), step(*other)
        close(got, want)
        close(torch.autograd.grad(got, one), torch.autograd.grad(want, other), atol=1e-9)
        with torch.no_grad():
            close(graph(*tensors), want)
    with pytest.raises(RuntimeError, match="double backward|create_graph"):
        (gradient, *_) = torch.autograd.grad(graph(*one), one, create_graph=True)
        torch.autograd.grad(gradient.abs().sum(), one)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_transforms_equal_eager_ones() -> None:
    p = problem("least_squares")
    F, g, lasso = p.draw(0, 1)

    def loss(g: Tensor) -> Tensor:
        return p.layer(F[0], g, 0.7)[0].square().sum()

    for f in (vmap(loss), vmap(grad(loss)), jacfwd(loss), lambda g: jvp(loss, (g,), (F[0, :, :2].T,))[1], lambda g: hessian(loss)(g[0])):
        close(compiled(lambda g, f=f: f(g))(g), f(g))
    with pytest.raises(Exception, match="is not supported"):
        grad(compiled(loss))(g)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler here, which PyTorch's inductor needs")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_machine_code_by_inductor_equals_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    p, tensors = problem("least_squares"), problem("least_squares").draw(0, 1)

    def step(F: Tensor, g: Tensor, lasso: Tensor) -> Tensor:
        return (p.layer(F * 1.5, g, lasso)[0].cos() + 1).sum()

    torch._dynamo.reset()
    one, other = leaves(tensors), leaves(tensors)
    got, want = torch.compile(step, fullgraph=True)(*one), step(*other)
    close(got, want)
    close(torch.autograd.grad(got, one), torch.autograd.grad(want, other), atol=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_a_compiled_call_takes() -> None:
    layer = problem("least_squares").layer
    F, g, lasso = problem("least_squares").draw(0, 1)
    want = layer(F, g, 0.7)
    for one in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        close(compiled(one)(F, g, 0.7), want)
    array = F[0].numpy()
    close(compiled(lambda g: layer(array, g, 0.7, on_failure="nan", solver_args={"max_iters": 1000}))(g), layer(array, g, 0.7))
    assert compiled(lambda g: layer(array, g, 0.7))(g.float())[0].dtype == torch.float32
    spoiled = g.clone()
    spoiled[1, 0] = torch.nan
    graph = compiled(lambda g: layer(F[0], g, 0.7)[0])
    with pytest.raises(SolverError, match="row 1 of 2: INVALID_PARAMETER"):
        graph(spoiled)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode cannot pass through a compiled graph"):
        graph(forward_ad.make_dual(g, g))
    with pytest.raises(Exception, match="return_info and warm_start need a call outside the graph"):
        compiled(lambda g: layer(F[0], g, 0.7, return_info=True))(g)
    torch._dynamo.reset()
    broken = torch.compile(lambda g: layer(F[0], g * 1.0, 0.7, return_info=True), backend="aot_eager")  # in pieces it works
    outputs, info = broken(g)
    close(outputs, layer(F[0], g, 0.7))
    assert info.status.shape == (2,)
