"""The contract of a layer: closed forms for values and gradients, crossed with everything a call may look like."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math
import pickle
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from cvxlayers import GradientWarning, Status, diagnose
from cvxlayers.cones import NonNegative, Product, SecondOrder, Zero
from cvxlayers.conic import ConicLayer
from cvxlayers.host import HostMap, Options
from cvxlayers.layer import Layer
from cvxlayers.products import Products, residuals
from cvxlayers.program import ConeProgram, Pattern
from cvxlayers.torch import CvxpyLayer
from tests.problems import CASES as PROBLEMS

torch.manual_seed(0)


@dataclass(frozen=True)
class Case:
    """A problem with a closed form: ``formula`` maps the tensors of one row to its outputs and then the objective, by torch alone."""

    build: Callable[[], tuple[cp.Problem, list, list]]
    sample: Callable[[torch.Generator], list[Tensor]]
    formula: Callable[..., tuple[Tensor, ...]]
    options: dict[str, Any] = field(default_factory=dict)


def normal(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda g: torch.randn(*shape, generator=g, dtype=torch.float64)


CASES: dict[str, Case] = {}


def case(sample: Sequence[Callable[[torch.Generator], Tensor]], **options: Any) -> Callable:
    def register(function: Callable) -> Callable:
        CASES[function.__name__] = Case(function, lambda g: [draw(g) for draw in sample], function.formula, options)  # type: ignore[attr-defined]
        return function

    return register


def formula(closed: Callable) -> Callable:
    def attach(build: Callable) -> Callable:
        build.formula = closed  # type: ignore[attr-defined]
        return build

    return attach


def _ridge(A: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    x = torch.linalg.solve(A.T @ A + torch.eye(3, dtype=A.dtype), A.T @ b)
    return x, (A @ x - b).square().sum() + x.square().sum()


@case([normal(5, 3), normal(5)])
@formula(_ridge)
def ridge_regression() -> tuple:
    x, A, b = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x))), [A, b], [x]


def _clip(p: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    x = torch.minimum(torch.maximum(p, -r), r)
    return x, 2 * torch.relu(p - r), (x - p).square().sum()


@case([normal(4), lambda g: torch.rand((), generator=g, dtype=torch.float64) + 0.2])
@formula(_clip)
def projection_on_a_box_with_its_dual() -> tuple:
    x, p, r = cp.Variable(4), cp.Parameter(4), cp.Parameter(nonneg=True)
    above = x <= r
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= -r, above]), [p, r], [x, above.dual_variables[0]]


def _equality(P: Tensor, q: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    S = (P + P.T) / 2
    K = torch.cat([torch.cat([S, A.T], 1), torch.cat([A, torch.zeros(2, 2, dtype=A.dtype)], 1)])
    z = torch.linalg.solve(K, torch.cat([-q, b]))
    return z[4:], z[:4], z[:4] @ S @ z[:4] / 2 + q @ z[:4]


def definite(n: int) -> Callable[[torch.Generator], Tensor]:
    def draw(g: torch.Generator) -> Tensor:
        F = normal(n, n)(g)
        return F @ F.T + torch.eye(n, dtype=torch.float64)

    return draw


@case([definite(4), normal(4), normal(2, 4), normal(2)])
@formula(_equality)
def quadratic_program_with_equations() -> tuple:
    x, P, q, A, b = cp.Variable(4), cp.Parameter((4, 4), PSD=True), cp.Parameter(4), cp.Parameter((2, 4)), cp.Parameter(2)
    equal = A @ x == b
    return cp.Problem(cp.Minimize(cp.quad_form(x, P) / 2 + q @ x), [equal]), [P, q, A, b], [equal.dual_variables[0], x]


def _softmax(c: Tensor) -> tuple[Tensor, ...]:
    return torch.softmax(c.reshape(-1), 0).reshape(c.shape), torch.logsumexp(c.reshape(-1), 0)


@case([normal(2, 3)])
@formula(_softmax)
def softmax_by_maximization() -> tuple:
    x, c = cp.Variable((2, 3)), cp.Parameter((2, 3))
    return cp.Problem(cp.Maximize(cp.sum(cp.multiply(c, x)) + cp.sum(cp.entr(x))), [cp.Zero(cp.sum(x) - 1)]), [c], [x]


def _ball(p: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    x = p * torch.minimum(torch.ones((), dtype=p.dtype), r / p.norm())
    return x, (x - p).norm() + 1


@case([lambda g: 3 + normal(3)(g), lambda g: torch.rand((), generator=g, dtype=torch.float64) + 0.5])
@formula(_ball)
def projection_on_a_ball() -> tuple:
    x, p, r = cp.Variable(3), cp.Parameter(3), cp.Parameter(pos=True)
    return cp.Problem(cp.Minimize(cp.norm(x - p) + 1), [cp.norm(x) <= r]), [p, r], [x]


def _geometric(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    x, y = (b / a).sqrt(), a**2
    return x, y, 2 * (a * b).sqrt()


@case([lambda g: torch.rand((), generator=g, dtype=torch.float64) + 0.5] * 2, gp=True)
@formula(_geometric)
def geometric_program() -> tuple:
    x, y, a, b = cp.Variable(pos=True), cp.Variable(pos=True), cp.Parameter(pos=True), cp.Parameter(pos=True)
    return cp.Problem(cp.Minimize(a * x + b / x), [y == a**2]), [a, b], [x, y]


def _complex(c: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    z = c / (1 + w)
    return z, z.real, ((z - c).abs().square() + w * z.abs().square()).sum()


@case([lambda g: torch.complex(normal(3)(g), normal(3)(g)), lambda g: torch.rand((), generator=g, dtype=torch.float64)])
@formula(_complex)
def complex_shrinkage() -> tuple:
    z, c, w = cp.Variable(3, complex=True), cp.Parameter(3, complex=True), cp.Parameter(nonneg=True)
    re = cp.Variable(3)
    return cp.Problem(cp.Minimize(cp.sum_squares(z - c) + w * cp.sum_squares(z)), [re == cp.real(z)]), [c, w], [z, re]


@functools.cache
def layer_of(name: str) -> CvxpyLayer:
    problem, parameters, variables = CASES[name].build()
    return CvxpyLayer(problem, parameters, variables, **CASES[name].options)


def draw(name: str, batch: tuple[int, ...] = (), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [CASES[name].sample(generator) for _ in range(math.prod(batch))]
    if not rows:
        return [torch.zeros((*batch, *t.shape), dtype=t.dtype) for t in CASES[name].sample(generator)]
    return [torch.stack(column).reshape((*batch, *column[0].shape)) for column in zip(*rows, strict=True)]


def closed_form(name: str, tensors: Sequence[Tensor], batch: tuple[int, ...]) -> list[Tensor]:
    """Outputs and objective of every row; parameters without batch axes are shared."""
    shapes = [t.shape for t in draw(name)]
    flat = [t.expand((*batch, *shape)).reshape(-1, *shape) for t, shape in zip(tensors, shapes, strict=True)]
    rows = [CASES[name].formula(*(t[i] for t in flat)) for i in range(math.prod(batch))]
    return [torch.stack(column).reshape((*batch, *column[0].shape)) for column in zip(*rows, strict=True)]


def weighted(outputs: Sequence[Tensor]) -> Tensor:
    """A loss that tells every entry of every output from every other."""
    generator = torch.Generator().manual_seed(9)
    total = torch.zeros((), dtype=torch.float64)
    for out in outputs:
        real = torch.view_as_real(out) if out.is_complex() else out
        total = total + (real.double() * torch.randn(real.shape, generator=generator, dtype=torch.float64)).sum()
    return total


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


# ---- values, gradients and infos ----


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_objective_equal_the_closed_form(name: str, batch: tuple[int, ...]) -> None:
    tensors = leaves(draw(name, batch))
    outputs, info = layer_of(name)(*tensors, return_info=True)
    *wanted, objective = closed_form(name, tensors, batch)
    assert isinstance(outputs, tuple)
    for out, want in zip(outputs, wanted, strict=True):
        assert out.shape == want.shape and out.dtype == want.dtype
        torch.testing.assert_close(out, want, rtol=1e-8, atol=1e-8)  # what SOLVED promises
    torch.testing.assert_close(torch.as_tensor(info.objective), objective.detach(), rtol=1e-7, atol=1e-7)
    got, want = (torch.autograd.grad(weighted(values), tensors) for values in (outputs, wanted))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for field_ in (info.status, info.objective, info.primal_residual, info.dual_residual, info.gap, info.iterations, info.warm_started):
        assert isinstance(field_, np.ndarray) and field_.shape == batch
    assert (info.status == Status.SOLVED).all() and isinstance(info.solver, str) and info.solution.x.shape[:-1] == batch


@pytest.mark.parametrize("name", CASES)
def test_every_choice_of_shared_parameters(name: str) -> None:
    single, many = draw(name, seed=1), draw(name, (2, 2), seed=2)
    for choice in itertools.product((False, True), repeat=len(single)):
        if not any(choice):
            continue
        tensors = leaves([m if batched else s for s, m, batched in zip(single, many, choice, strict=True)])
        outputs, wanted = layer_of(name)(*tensors), closed_form(name, tensors, (2, 2))[:-1]
        for out, want in zip(outputs, wanted, strict=True):
            torch.testing.assert_close(out, want, rtol=1e-8, atol=1e-8)
        got, want = (torch.autograd.grad(weighted(values), tensors) for values in (outputs, wanted))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [(0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_rows(name: str, batch: tuple[int, ...]) -> None:
    single, none = draw(name), draw(name, batch)
    for tensors in (leaves(none), leaves([*none[:1], *single[1:]])):
        outputs, info = layer_of(name)(*tensors, return_info=True)
        for out, one in zip(outputs, layer_of(name)(*single), strict=True):
            assert out.shape == (*batch, *one.shape) and out.dtype == one.dtype
        assert info.status.shape == info.objective.shape == batch
        for tensor, gradient in zip(tensors, torch.autograd.grad(weighted(outputs), tensors), strict=True):
            assert gradient.shape == tensor.shape and (gradient == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    """PyTorch's own check, which holds complex parameters to PyTorch's convention."""
    layer = layer_of(name)
    if name == "quadratic_program_with_equations":
        return  # gradcheck perturbs one triangle of P, which is no symmetric matrix; its gradient is tested above
    assert torch.autograd.gradcheck(lambda *t: layer(*t), leaves(draw(name, (2,), seed=3)), eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_forward_tangents_equal_those_of_the_closed_form(name: str) -> None:
    tensors = draw(name, (3,), seed=4)
    directions = draw(name, (3,), seed=5)
    core: HostMap = layer_of(name).core
    _, _, saved = core.forward(tensors, Options())
    pushed = core.jvp(saved, [d.numpy() for d in directions])
    _, wanted = torch.autograd.functional.jvp(lambda *t: tuple(closed_form(name, t, (3,))[:-1]), tuple(tensors), tuple(directions))
    for a, b in zip(pushed, wanted, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-6, atol=1e-6)
    nothing = core.jvp(saved, [None] * len(tensors))
    assert all((t == 0).all() for t in nothing)


@pytest.mark.parametrize("name", PROBLEMS)
def test_objective_is_the_value_that_cvxpy_finds(name: str) -> None:
    """Minimize, maximize and geometric programs, with constants in the objective; CVXPY's default solver is the oracle."""
    problem = PROBLEMS[name]()
    values = problem.sample(np.random.default_rng(0))
    shifted = cp.Problem(problem.problem.objective + type(problem.problem.objective)(cp.Constant(3.0)), problem.problem.constraints)
    layer = CvxpyLayer(shifted, problem.parameters, problem.variables, gp=problem.gp)
    for parameter, value in zip(problem.parameters, values, strict=True):
        if parameter.sparse_idx is not None:
            parameter.value_sparse = sp.coo_array((value[tuple(parameter.sparse_idx)], parameter.sparse_idx), shape=parameter.shape)
        else:
            parameter.value = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shifted.solve(gp=problem.gp)
    _, info = layer(*values, return_info=True)
    np.testing.assert_allclose(
        info.objective, np.asarray(shifted.value, dtype=float), rtol=1e-4, atol=1e-4
    )  # the accuracy of CVXPY's default solver


def dense_residuals(P, A, q, b, x, y, s, distances) -> tuple[float, float, float]:
    """The residuals of one row by dense matrices: primal, dual, gap, relative to the size of their terms."""

    def size(*terms: np.ndarray) -> float:
        return 1 + max(np.abs(t).max() for t in terms)

    primal = max(np.abs(A @ x + s - b).max(), distances(s)) / size(A @ x, s, b)
    dual = max(np.abs(P @ x + q + A.T @ y).max(), distances(y, dual=True)) / size(P @ x, q, A.T @ y)
    parts = x @ P @ x, q @ x, b @ y
    return primal, dual, abs(sum(parts)) / (1 + max(map(abs, parts)))


@dataclass(frozen=True)
class Dense:
    """One pattern, three rows of data, as dense matrices."""

    P: np.ndarray
    A: np.ndarray
    q: np.ndarray
    b: np.ndarray
    pattern: Pattern

    @property
    def program(self) -> ConeProgram:
        ones = np.ones((3, 1))
        return ConeProgram(ones * self.P.T[np.tril_indices(4)], self.q, ones * self.A.T.ravel(), self.b)  # P: its upper triangle by columns


def dense_program() -> Dense:
    rng, n, rows = np.random.default_rng(0), 4, 3
    F, A = rng.standard_normal((n, n)), rng.standard_normal((7, n)) * 10.0 ** rng.uniform(-2, 2, (7, 1))
    pattern = Pattern.of(F @ F.T, A, Product((Zero(1), NonNegative(3), SecondOrder(3))))
    slack = np.concatenate([np.zeros((rows, 1)), rng.random((rows, 3)), [[2, 0.5, 0.5]] * rows], axis=1)
    return Dense(F @ F.T, A, rng.standard_normal((rows, n)), rng.standard_normal((rows, n)) @ A.T + slack, pattern)


def distance(v: np.ndarray, dual: bool = False) -> float:
    """The largest entry of the step from v to the cone {0} x R+^3 x second-order cone, or to its dual."""
    t, u = v[4], np.linalg.norm(v[5:])
    cone = 0.0 if u <= t else np.abs(v[4:]).max()
    if abs(t) < u:
        middle = (u + t) / 2
        cone = max(abs(t - middle), np.abs(v[5:] * (1 - middle / u)).max())
    return max(0.0 if dual else abs(v[0]), (-v[1:4]).max(), cone)


@pytest.mark.parametrize("solver", ["SCS", "CLARABEL", "INTERIOR"])
def test_residuals_are_those_of_the_unscaled_data(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxlayers.verdict.LONGEST", 0)  # else nothing but rounding is left to compare
    dense = dense_program()
    layer: Any = ConicLayer(dense.pattern, solver, {"eps": 1e-4})
    (x, y, s), info = layer(*vars(dense.program).values(), return_info=True)
    for row in range(3):
        wanted = dense_residuals(dense.P, dense.A, dense.q[row], dense.b[row], x[row], y[row], s[row], distance)
        got = info.primal_residual[row], info.dual_residual[row], info.gap[row]
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-14)  # rounding in the terms, which are of size one
        np.testing.assert_allclose(info.objective[row], x[row] @ dense.P @ x[row] / 2 + dense.q[row] @ x[row], rtol=1e-10)
    assert max(info.dual_residual.max(), info.primal_residual.max()) > 1e-10, "too accurate: only rounding was compared"


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_residuals_of_points_that_are_far_from_optimal_and_outside_the_cones(size: float) -> None:
    dense, rng = dense_program(), np.random.default_rng(1)
    for _ in range(20):
        x, y, s = (size * rng.standard_normal((3, width)) for width in (4, 7, 7))
        y[0, :4] = y[1, 4:] = s[1, :4] = 0.0  # each part outside its cone alone, too
        found = residuals(Products.of(dense.pattern), dense.program, x, y, s)
        for row in range(3):
            wanted = dense_residuals(dense.P, dense.A, dense.q[row], dense.b[row], x[row], y[row], s[row], distance)
            np.testing.assert_allclose((found.primal[row], found.dual[row], found.gap[row]), wanted, rtol=1e-10)


# ---- dtypes, devices, kinds of input ----

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name != "complex_shrinkage"])
def test_dtype_is_kept_and_the_work_is_done_in_float64(name: str, dtype: torch.dtype) -> None:
    tensors = leaves([t.to(dtype) for t in draw(name, (3,), seed=6)])
    outputs = layer_of(name)(*tensors)
    gradients = torch.autograd.grad(weighted(outputs), tensors)
    wide = leaves([t.double() for t in tensors])
    reference = layer_of(name)(*wide)
    for out, ref in zip(outputs, reference, strict=True):
        assert out.dtype == dtype
        assert torch.equal(out, ref.to(dtype))
    for gradient, ref in zip(gradients, torch.autograd.grad(weighted(reference), wide), strict=True):
        assert gradient.dtype == dtype
        # The loss weights pass through the outputs' dtype on the way back: one rounding of each, 8 terms at most.
        torch.testing.assert_close(gradient.double(), ref, rtol=16 * torch.finfo(dtype).eps, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("given", "real", "complex_"),
    [
        ((torch.complex128, torch.float64), torch.float64, torch.complex128),
        ((torch.complex64, torch.float32), torch.float32, torch.complex64),
        ((torch.complex64, torch.float64), torch.float64, torch.complex128),
        ((torch.float32, torch.float32), torch.float32, torch.complex64),
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16, torch.complex64),
        ((torch.float16, torch.float16), torch.float16, torch.complex64),
    ],
    ids=str,
)
def test_complex_outputs(given: tuple[torch.dtype, torch.dtype], real: torch.dtype, complex_: torch.dtype) -> None:
    c, w = draw("complex_shrinkage")
    c, w = (c if given[0].is_complex else c.real).to(given[0]).requires_grad_(), w.to(given[1]).requires_grad_()
    z, re = layer_of("complex_shrinkage")(c, w)
    assert (z.dtype, re.dtype) == (complex_, real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a real input takes the real part of its gradient, and not by accident
        gradients = torch.autograd.grad(weighted([z, re]), [c, w])
    assert [g.dtype for g in gradients] == list(given)
    assert torch.isfinite(torch.view_as_real(gradients[0]) if given[0].is_complex else gradients[0]).all()


def test_plain_values_take_the_widest_dtype_among_the_tensors() -> None:
    layer = layer_of("projection_on_a_box_with_its_dual")
    p = np.array([[2.0, -2.0, 0.1, 0.2]])
    kinds = [
        ((p, 1), torch.float64),
        ((p.astype(np.float32), 1.0), torch.float64),
        ((p.tolist(), np.float32(1)), torch.float64),
        ((p.astype(int), np.int64(1)), torch.float64),
        ((p, torch.tensor(1.0, dtype=torch.float32)), torch.float32),
        ((torch.tensor(p, dtype=torch.bfloat16), 1), torch.bfloat16),
        ((torch.tensor(p, dtype=torch.bfloat16), torch.tensor(1.0)), torch.float32),
        ((torch.tensor(p, dtype=torch.float32), torch.tensor(1.0, dtype=torch.float64)), torch.float64),
    ]
    for values, dtype in kinds:
        x, _ = layer(*values)
        assert x.dtype == dtype and x.shape == (1, 4)
        want = np.clip(np.asarray(torch.as_tensor(values[0]).double()), -1, 1)
        np.testing.assert_allclose(x.double(), want, atol=torch.finfo(dtype).eps)


def test_a_layer_without_parameters_has_the_default_dtype() -> None:
    x = cp.Variable(2)
    (out,), info = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1))), [], [x])(return_info=True)
    assert out.dtype == torch.get_default_dtype() and out.tolist() == [1, 1] and info.status.shape == ()


def test_gradients_reach_tensors_in_their_own_dtype_and_layout() -> None:
    p = draw("ridge_regression", (4,))
    A = p[0].float().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()  # not contiguous
    b = p[1].requires_grad_()
    shared = torch.stack([b, b])[1]  # a view in the middle of memory
    (x,) = layer_of("ridge_regression")(A, shared)
    assert x.dtype == torch.float64
    gA, gb = torch.autograd.grad(weighted([x]), [A, b])
    assert (gA.dtype, gb.dtype) == (torch.float32, torch.float64)
    wide = leaves([A.double(), b])
    for got, want in zip((gA, gb), torch.autograd.grad(weighted(closed_form("ridge_regression", wide, (4,))[:-1]), wide), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_is_kept() -> None:
    tensors = leaves([t.cuda() for t in draw("ridge_regression", (3,))])
    (x,) = layer_of("ridge_regression")(*tensors)
    assert x.device == tensors[0].device
    assert all(g.device == x.device for g in torch.autograd.grad(x.sum(), tensors))


def test_a_parameter_given_twice_and_a_conjugate_view() -> None:
    c, w = draw("complex_shrinkage")
    c.requires_grad_()
    z, _ = layer_of("complex_shrinkage")(c.conj(), w)
    (gradient,) = torch.autograd.grad(z.real.sum() + 2 * z.imag.sum(), c)
    torch.testing.assert_close(gradient, torch.full_like(c, complex(1, -2)) / (1 + w), rtol=1e-8, atol=1e-8)
    t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x, y = layer_of("geometric_program")(t, t)
    torch.testing.assert_close(torch.autograd.grad(x + y, t)[0], 2 * t.detach(), rtol=1e-8, atol=1e-8)  # x = 1, y = t^2


# ---- what is asked for is computed, and no more ----


def test_unused_gradients_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, needs = layer_of("ridge_regression"), []
    plain = Layer.vjp

    def vjp(self: Layer, saved: Any, cotangents: Any, needed: Any) -> Any:
        results = plain(self, saved, cotangents, needed)
        needs.append((tuple(needed), tuple(r is not None for r in results)))
        return results

    monkeypatch.setattr(Layer, "vjp", vjp)
    A, b = draw("ridge_regression")
    (x,) = layer(A, b.clone().requires_grad_())
    x.sum().backward()
    (x,) = layer(A.numpy(), b.clone().requires_grad_())
    x.sum().backward()
    assert needs == [((False, True), (False, True))] * 2
    assert not layer(A, b)[0].requires_grad
    with torch.no_grad():
        (x,) = layer(*leaves([A, b]))
    assert not x.requires_grad and x.grad_fn is None
    assert len(needs) == 2


def test_no_derivative_is_taken_before_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a derivative was taken")

    for name in ("vjp", "jvp", "certify"):
        monkeypatch.setattr(ConicLayer, name, never)
    for tensors in (draw("ridge_regression"), leaves(draw("ridge_regression"))):
        layer_of("ridge_regression")(*tensors)
    (x,) = layer_of("ridge_regression")(*tensors)
    with pytest.raises(AssertionError, match="a derivative was taken"):
        x.sum().backward()


# ---- statelessness ----


def test_two_calls_then_their_backwards_in_any_order() -> None:
    layer = layer_of("ridge_regression")
    calls = [leaves(draw("ridge_regression", (2,), seed)) for seed in (1, 2)]
    alone = [torch.autograd.grad(weighted(layer(*tensors)), tensors) for tensors in calls]
    for order in ((0, 1), (1, 0)):
        losses = [weighted(layer(*tensors)) for tensors in calls]
        for k in order:
            for got, want in zip(torch.autograd.grad(losses[k], calls[k]), alone[k], strict=True):
                assert torch.equal(got, want)


def test_repeated_backward_and_interleaved_layers() -> None:
    names = ["ridge_regression", "geometric_program", "softmax_by_maximization"]
    inputs = [leaves(draw(name, (2,))) for name in names]
    losses = [weighted(layer_of(name)(*tensors)) for name, tensors in zip(names, inputs, strict=True)]
    rounds = [
        [torch.autograd.grad(loss, tensors, retain_graph=True) for loss, tensors in zip(losses, inputs, strict=True)] for _ in range(3)
    ]
    for again in rounds[1:]:
        for one, other in zip(rounds[0], again, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    loss = weighted(layer_of(names[0])(*inputs[0]))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_tensors_changed_in_place_after_the_call_are_refused_by_pytorch(dtype: torch.dtype) -> None:
    for which in range(2):
        tensors = leaves([t.to(dtype) for t in draw("ridge_regression", (2,))])
        (x,) = layer_of("ridge_regression")(*tensors)
        with torch.no_grad():
            tensors[which].mul_(3)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            x.sum().backward()


def test_memory_changed_behind_the_back_of_pytorch_does_not_reach_the_gradient() -> None:
    """NumPy arrays and ``.data``: the gradient is that of the forward call's values."""
    A, b = leaves(draw("ridge_regression", (2,)))
    array = A.detach().numpy().copy()
    (x,), (from_numpy,) = layer_of("ridge_regression")(A, b), layer_of("ridge_regression")(array, b)
    want = [*torch.autograd.grad(x.sum(), [A, b], retain_graph=True), *torch.autograd.grad(from_numpy.sum(), b, retain_graph=True)]
    A.data.mul_(3)
    b.data.zero_()
    x.data.fill_(7)
    array *= 3
    got = [*torch.autograd.grad(x.sum(), [A, b]), *torch.autograd.grad(from_numpy.sum(), b)]
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_a_second_derivative_that_is_unknown_is_refused_and_not_silently_zero() -> None:
    for name, message in (("softmax_by_maximization", "Exponential cones have no second"), ("geometric_program", "has no second")):
        tensors = leaves(draw(name, (2,)))
        gradients = torch.autograd.grad(weighted(layer_of(name)(*tensors)), tensors, create_graph=True)
        with pytest.raises(ValueError, match=message):
            sum(g.sum() for g in gradients).backward()  # type: ignore[union-attr]


def test_an_info_changed_in_place_does_not_reach_the_gradient() -> None:
    """Who perturbs a warm start must not perturb the backward pass of the call that gave it."""
    tensors = leaves(draw("ridge_regression", (2,)))
    (x,), info = layer_of("ridge_regression")(*tensors, return_info=True)
    want = torch.autograd.grad(x.sum(), tensors, retain_graph=True)
    for array in (info.solution.x, info.solution.y, info.solution.s, info.status):
        array += 1
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(x.sum(), tensors), want, strict=True))


def test_a_call_changes_nothing_of_the_problem() -> None:
    problem, parameters, variables = CASES["ridge_regression"].build()
    layer = CvxpyLayer(problem, parameters, variables)
    layer(*draw("ridge_regression"))
    assert all(p.value is None for p in parameters) and all(v.value is None for v in variables) and problem.status is None


def test_threads_share_a_layer() -> None:
    layer = layer_of("quadratic_program_with_equations")
    inputs = [draw("quadratic_program_with_equations", (2,), seed) for seed in range(5)]

    def solve(k: int) -> list[Tensor]:
        tensors = leaves(inputs[k])
        outputs = layer(*tensors)
        return [*outputs, *torch.autograd.grad(weighted(outputs), tensors)]

    wanted, wrong = [solve(k) for k in range(5)], []
    before = threading.active_count()

    def work(offset: int) -> None:
        try:
            for call in range(50):
                k = (call + offset) % 5
                wrong.extend(k for a, b in zip(solve(k), wanted[k], strict=True) if not torch.equal(a, b))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert threading.active_count() == before


def reloaded(layer: CvxpyLayer, how: str) -> CvxpyLayer:
    if how == "deepcopy":
        return copy.deepcopy(layer)
    if how == "pickle":
        return pickle.loads(pickle.dumps(layer))
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("name", CASES)
def test_copies_do_what_the_original_does(name: str, how: str) -> None:
    problem, parameters, variables = CASES[name].build()
    fresh = CvxpyLayer(problem, parameters, variables, **CASES[name].options)
    unused = reloaded(fresh, how)
    tensors = leaves(draw(name, (2,)))

    def outcome(layer: CvxpyLayer) -> list[Tensor]:
        outputs = layer(*tensors)
        return [*outputs, *torch.autograd.grad(weighted(outputs), tensors)]

    wanted = outcome(fresh)
    for layer in (unused, reloaded(fresh, how), reloaded(unused, how)):
        assert all(torch.equal(a, b) for a, b in zip(outcome(layer), wanted, strict=True))
        assert layer.state_dict() == {} and layer.load_state_dict({}).missing_keys == []


def test_a_layer_is_a_module() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 6).double(), torch.nn.Unflatten(-1, (2, 3)))
    layer = layer_of("softmax_by_maximization")
    model.add_module("layer", layer)
    assert layer in list(model.modules()) and [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    (out,) = model(torch.ones(5, 2, dtype=torch.float64))
    out[:, 0, 0].sum().backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None and gradient.abs().sum() > 0


class Solved(torch.utils.data.Dataset):
    """Solves in the worker that is asked for an item."""

    def __init__(self, layer: CvxpyLayer) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, k: int) -> Tensor:
        p = torch.full((4,), 0.5 * k, dtype=torch.float64, requires_grad=True)
        x, _ = self.layer(p, 1.2)
        x.sum().backward()
        assert p.grad is not None
        return torch.stack([x.detach(), p.grad])


def test_forked_data_loader_workers() -> None:
    layer = layer_of("projection_on_a_box_with_its_dual")
    layer(torch.ones(4), 1.0)  # used before the workers start
    loader = torch.utils.data.DataLoader(Solved(layer), batch_size=None, num_workers=2, multiprocessing_context="fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of fork wherever threads run
        got = list(loader)
    for k, pair in enumerate(got):
        torch.testing.assert_close(pair[0], torch.full((4,), min(0.5 * k, 1.2), dtype=torch.float64), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(pair[1], torch.full((4,), float(0.5 * k < 1.2), dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_spawned_workers_solve_differentiate_and_do_without_cvxpy() -> None:
    layer = layer_of("projection_on_a_box_with_its_dual")
    inputs = tuple(draw("projection_on_a_box_with_its_dual"))
    jacobian = torch.autograd.functional.jacobian
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        outputs = pool.apply(layer, inputs)
        jacobians = pool.apply(jacobian, (layer, inputs))
        assert not pool.apply(eval, ("'cvxpy' in __import__('sys').modules",))
    assert all(torch.equal(a, b) for a, b in zip(outputs, layer(*inputs), strict=True))
    for ours, theirs in zip(jacobian(layer, inputs), jacobians, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# ---- misuse of PyTorch's own kinds; tests/test_calls.py has the rest, for every framework ----

BOX = "projection_on_a_box_with_its_dual"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((torch.ones(4, dtype=torch.int64), 1.0), r"tensor of dtype torch.int64; wanted a floating one"),
        ((torch.ones(4, dtype=torch.bool), 1.0), r"tensor of dtype torch.bool; wanted a floating one"),
        ((torch.ones(4, dtype=torch.complex128), 1.0), r"is real and got complex values"),
    ],
    ids=["int64", "bool", "complex128"],
)
def test_a_wrong_dtype_is_a_value_error_whatever_the_policy(values: tuple, message: str) -> None:
    for policy in ("raise", "nan", "return"):
        with pytest.raises(ValueError, match=message):
            layer_of(BOX)(*values, on_failure=policy)


def simple() -> tuple[cp.Problem, list, list]:
    x, p = cp.Variable(2, name="x"), cp.Parameter(2, name="p")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x]


# ---- diagnosis ----


def test_diagnose_reports_every_row() -> None:
    layer = CvxpyLayer(*simple())
    values = torch.tensor([[[1.0, -1.0], [1.0, 0.0]], [[math.nan, 1.0], [2.0, 3.0]]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        report = diagnose(layer, values)
    assert report.status.tolist() == [[0, 0], [Status.INVALID_PARAMETER, 0]]
    np.testing.assert_array_equal(report.margin > 1e-6, [[True, False], [False, True]])
    assert np.isnan(report.margin[1, 0]) and not report.fallback.any()
    assert np.nanmax([report.primal_residual, report.dual_residual, report.gap, report.adjoint_residual]) < 1e-10
    lines = str(report).splitlines()
    assert len(lines) == 5 and lines[3].split()[:2] == ["2", "INVALID_PARAMETER"]
    x, p = cp.Variable(2), cp.Parameter(2)
    tied = CvxpyLayer(cp.Problem(cp.Minimize(cp.square(cp.sum(x) - cp.sum(p)))), [p], [x])
    assert diagnose(tied, torch.ones(2)).fallback
