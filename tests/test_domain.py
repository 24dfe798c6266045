"""What a parameter's declaration promises: checked row by row, named in the error, and enforced on value and gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers import SolverError, Status, solvers
from cvxlayers.domain import Domain
from cvxlayers.torch import CvxpyLayer

WIDE, SINGLE, BRAIN = (torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16))
UPPER = np.triu(np.ones((2, 2), dtype=bool))


def skew(gap: float) -> np.ndarray:
    return np.array([[2.0, 1.0], [1.0 + 2 * gap, 1.0]])


# Each: the promises, a value that keeps them, one that breaks them, the resolution, and what is said of the broken one.
PROMISES = {
    "numbers": ({}, [0.0, 1.0], [0.0, np.nan], WIDE, "nan", "numbers"),
    "complex numbers": ({}, [1j, 0], [1j, complex(0, np.nan)], WIDE, "nan", "numbers"),
    "imaginary": ({"imaginary": True}, [1j, 0], [1j, 1 + 1j], WIDE, "a nonzero real part", "imaginary numbers"),
    "nonnegative": ({"lower": np.array(0.0)}, [0.0, 1.0], [3.0, -2.0], WIDE, "-2", "at least 0"),
    "nonnegative but for rounding": ({"lower": np.array(0.0)}, [-1e-9, 1.0], [-2e-8, 1.0], WIDE, "-2e-08", "at least 0"),
    "nonnegative in single precision": ({"lower": np.array(0.0)}, [-1e-7, 1.0], [-1e-5, 1.0], SINGLE, "-1e-05", "at least 0"),
    "nonnegative in half precision": ({"lower": np.array(0.0)}, [0.0, 1.0], [-1e-3, 1.0], BRAIN, "-0.001", "at least 0"),
    "a bound rounded to half precision": ({"upper": np.array(0.1)}, [0.10009765625], [0.11], BRAIN, "0.11", "at most 0.1"),
    "nonpositive": ({"upper": np.array(0.0)}, [-np.inf, 0.0], [1.0, 0.0], WIDE, "1", "at most 0"),
    "positive": ({"lower": np.array(0.0), "strict": True}, [1e-30, 1.0], [0.0, 1.0], WIDE, "0", "more than 0"),
    "negative": ({"upper": np.array(0.0), "strict": True}, [-1e-30, -1.0], [0.0, -1.0], WIDE, "0", "less than 0"),
    "bounds entry by entry": ({"lower": np.array([0.0, 5.0])}, [0.0, 5.0], [5.0, 0.0], WIDE, "0", "at least its bound"),
    "one bound missing": ({"lower": np.array([0.0, -np.inf])}, [0.0, -np.inf], [-1.0, 0.0], WIDE, "-1", "at least its bound"),
    "sparsity": ({"support": UPPER}, [[1.0, 2.0], [0.0, 1.0]], [[1.0, 2.0], [1e-9, 1.0]], WIDE, "a nonzero outside", "zero there"),
    "symmetric": ({"symmetric": True}, skew(0.9e-6), skew(1.1e-6), WIDE, "a difference of 2.2e-06", "a symmetric"),
    "symmetric in single precision": ({"symmetric": True}, skew(0.9e-3), skew(1.1e-3), SINGLE, "a difference of 0.0022", "a symmetric"),
    "symmetric in half precision": ({"symmetric": True}, skew(0.9e-3), skew(1.1e-3), BRAIN, "a difference of 0.0022", "a symmetric"),
    "hermitian": ({"symmetric": True}, [[1, 1j], [-1j, 2]], [[1, 1j], [1j, 2]], WIDE, "a difference of 2", "Hermitian"),
    "real diagonal of a hermitian": ({"symmetric": True}, [[1, 0], [0, 2]], [[1, 0], [0, 2j]], WIDE, "a difference of 4", "Hermitian"),
    "positive semidefinite": (
        {"definite": 1},
        [[1.0, 1.0], [1.0, 1.0]],
        [[1.0, 2.0], [2.0, 1.0]],
        WIDE,
        "an eigenvalue -1",
        "a positive semi",
    ),
    "semidefinite to 1e-8": (
        {"definite": 1},
        np.diag([1.0, -0.9e-8]),
        np.diag([1.0, -1.1e-8]),
        WIDE,
        "an eigenvalue -1.1e-08",
        "a positive",
    ),
    "semidefinite, all zeros": ({"definite": 1}, np.zeros((2, 2)), -np.eye(2) * 1e-300, WIDE, "an eigenvalue -1e-300", "a positive"),
    "negative semidefinite": ({"definite": -1}, -np.eye(2), np.diag([-1.0, 0.5]), WIDE, "an eigenvalue 0.5", "a negative semidefinite"),
    "complex semidefinite": (
        {"definite": 1},
        [[1, 1j], [-1j, 1]],
        [[1, 2j], [-2j, 1]],
        WIDE,
        "an eigenvalue -1",
        "a positive semidefinite",
    ),
}


@pytest.mark.parametrize("name", PROMISES)
def test_each_promise_is_checked_row_by_row(name: str) -> None:
    promises, kept, broken, resolution, got, wanted = PROMISES[name]
    kept, broken, domain = np.asarray(kept), np.asarray(broken), Domain(**promises)
    assert list(domain.violations(np.stack([kept, kept]), resolution)) == []
    for rows in ([0, 1, 0], [1, 1, 1], [1]):
        values = np.stack([broken if row else kept for row in rows])
        found = list(domain.violations(values, resolution))
        assert len(found) == 1
        np.testing.assert_array_equal(found[0][0], np.array(rows, dtype=bool))
        assert got in found[0][1] and wanted in found[0][2]
    assert list(domain.violations(kept[None][:0], resolution)) == []


def test_several_broken_promises_are_all_told() -> None:
    domain = Domain(lower=np.array(0.0), symmetric=True, definite=1)
    found = list(domain.violations(np.array([[[1.0, -3.0], [-2.0, 1.0]]]), WIDE))
    assert [wanted.split()[-1] for _, _, wanted in found] == ["0", "matrix", "matrix"]


# ---- the declarations of CVXPY, through a layer ----

DECLARATIONS: dict[str, tuple[tuple[int, ...], dict[str, Any], Any, Any, str]] = {
    "nonneg": ((2,), {"nonneg": True}, [0, 1], [-1, 1], "got -1, wanted at least 0"),
    "nonpos": ((2,), {"nonpos": True}, [0, -1], [-1, 1], "got 1, wanted at most 0"),
    "pos": ((2,), {"pos": True}, [1, 2], [0, 2], "got 0, wanted more than 0"),
    "neg": ((2,), {"neg": True}, [-1, -2], [0, -2], "got 0, wanted less than 0"),
    "bounds": ((2,), {"bounds": [np.array([0, -1]), 3]}, [0, -1], [-1, 0], "got -1, wanted at least its bound"),
    "upper bound": ((2,), {"bounds": [-2, 3]}, [3, -2], [4, 0], "got 4, wanted at most 3"),
    "symmetric": (
        (2, 2),
        {"symmetric": True},
        [[1, 2], [2, 3]],
        [[1, 2], [3, 3]],
        "a difference of 1 between S and S', wanted a symmetric",
    ),
    "PSD": ((2, 2), {"PSD": True}, [[2, 1], [1, 2]], [[1, 2], [2, 1]], "got an eigenvalue -1, wanted a positive semidefinite matrix"),
    "NSD": ((2, 2), {"NSD": True}, [[-2, 1], [1, -2]], [[1, 2], [2, 1]], "got an eigenvalue 3, wanted a negative semidefinite matrix"),
    "PSD and symmetric": ((2, 2), {"PSD": True}, [[2, 1], [1, 2]], [[2, 1], [0, 2]], "a difference of 1 between S and S'"),
    "hermitian": (
        (2, 2),
        {"hermitian": True},
        [[1, 1j], [-1j, 3]],
        [[1, 1j], [1j, 3]],
        "a difference of 2 between S and S', wanted a symmetric",
    ),
    "diag": ((2, 2), {"diag": True}, [[1, 0], [0, 3]], [[1, 1], [0, 3]], "a nonzero outside its sparsity pattern, wanted zero there"),
    "sparsity": ((2, 2), {"sparsity": ([0, 1], [1, 0])}, [[0, 1], [2, 0]], [[1, 1], [0, 0]], "a nonzero outside its sparsity pattern"),
}


@functools.cache
def identity(name: str) -> CvxpyLayer:
    """x = p, whatever is promised of p."""
    shape, attributes, *_ = DECLARATIONS[name]
    p = cp.Parameter(shape, name="theta", **attributes)
    x = cp.Variable(shape, complex=p.is_complex())
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x])


def tensor_of(value: Any, dtype: torch.dtype) -> torch.Tensor:
    value = np.asarray(value)
    return torch.tensor(value).to(dtype.to_complex() if np.iscomplexobj(value) and dtype != torch.bfloat16 else dtype)


DTYPES = (torch.float64, torch.float32, torch.bfloat16)
# bfloat16 has no complex type
PAIRS = [(name, dtype) for name in DECLARATIONS for dtype in DTYPES if (name, dtype) != ("hermitian", torch.bfloat16)]


@pytest.mark.parametrize("name, dtype", PAIRS, ids=str)
def test_a_row_against_its_declaration_is_invalid_and_named(name: str, dtype: torch.dtype) -> None:
    _, _, kept, broken, message = DECLARATIONS[name]
    batch = torch.stack([tensor_of(v, dtype) for v in (kept, broken, kept)]).requires_grad_()
    (x,), info = identity(name)(batch, on_failure="nan", return_info=True)
    assert info.status.tolist() == [Status.SOLVED, Status.INVALID_PARAMETER, Status.SOLVED]
    assert torch.isnan(x[1]).all()
    torch.testing.assert_close(x[[0, 2]], batch[[0, 2]].detach(), rtol=1e-8 + torch.finfo(dtype).eps, atol=1e-9)
    (x if not x.is_complex() else torch.view_as_real(x)).sum().backward()
    assert batch.grad is not None and (batch.grad[1] == 0).all() and (batch.grad[0] != 0).any()
    with pytest.raises(SolverError, match=f"row 1 of 3: INVALID_PARAMETER.*parameter 'theta': .*{message}.*correct the value") as caught:
        identity(name)(batch)
    assert caught.value.rows == (1,)


@pytest.mark.parametrize("name", DECLARATIONS)
def test_a_shared_value_against_its_declaration_fails_every_row(name: str) -> None:
    shape, attributes, kept, broken, message = DECLARATIONS[name]
    p, q = cp.Parameter(shape, name="theta", **attributes), cp.Parameter(name="q")
    x = cp.Variable(shape, complex=p.is_complex())
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p - q))), [p, q], [x])
    value = tensor_of(broken, torch.float64).requires_grad_()
    q_t = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (out,), info = layer(value, q_t, on_failure="nan", return_info=True)
    assert (info.status == Status.INVALID_PARAMETER).all() and torch.isnan(out).all()
    for gradient in torch.autograd.grad(out.abs().sum(), [value, q_t]):
        assert (gradient == 0).all()
    with pytest.raises(SolverError, match=f"rows 0, 1 of 2.*{message}"):
        layer(value, q_t)
    assert torch.isfinite(layer(tensor_of(kept, torch.float64), q_t)[0].abs()).all()


@pytest.mark.parametrize("value", [-1.0, 0.0, np.nan])
def test_a_geometric_program_wants_positive_values(value: float) -> None:
    """The gradient of a failed row is zero there too, with and without a batch axis."""
    x, a, b = cp.Variable(pos=True), cp.Parameter(pos=True, name="a"), cp.Parameter(pos=True, name="b")
    layer = CvxpyLayer(cp.Problem(cp.Minimize(a * x + b / x)), [a, b], [x], gp=True)
    for given in (value, [2.0, value]):
        a_t, b_t = torch.tensor(given, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        (out,), info = layer(a_t, b_t, on_failure="nan", return_info=True)
        assert info.status.reshape(-1)[-1] == Status.INVALID_PARAMETER
        g_a, g_b = torch.autograd.grad(out.sum(), [a_t, b_t])
        assert g_a.reshape(-1)[-1] == 0 and torch.isfinite(g_b) and torch.isfinite(g_a).all()
        with pytest.raises(SolverError, match="'a': got .*, wanted (more than 0|numbers)"):
            layer(a_t, b_t)


# ---- symmetric values ----


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-7), (torch.float32, 4e-4)], ids=str)
def test_a_symmetric_value_is_symmetrized_and_so_is_its_gradient(dtype: torch.dtype, gap: float) -> None:
    """x = -inv(S) q for both triangles alike; the gradient is the symmetric part of that of a free matrix."""
    x, S, q = cp.Variable(2), cp.Parameter((2, 2), PSD=True), cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.quad_form(x, S) / 2 + q @ x)), [S, q], [x])
    value = torch.tensor([[2.0, 0.5], [0.5 + gap, 1.0]], dtype=dtype)
    q_t = torch.tensor([1.0, -1.0], dtype=dtype)
    given = [v.clone().requires_grad_() for v in (value, value.T)]
    outputs = [layer(v, q_t)[0] for v in given]
    free = value.double().requires_grad_()
    wanted = -torch.linalg.solve((free + free.T) / 2, q_t.double())
    (gradient,) = torch.autograd.grad(wanted[0], free)
    for v, out in zip(given, outputs, strict=True):
        torch.testing.assert_close(out, wanted.detach().to(dtype), rtol=1e-8 + torch.finfo(dtype).eps, atol=1e-9)
        (got,) = torch.autograd.grad(out[0], v)
        torch.testing.assert_close(got, got.T, rtol=0, atol=0)
        torch.testing.assert_close(got, gradient.to(dtype), rtol=1e-7 + 8 * torch.finfo(dtype).eps, atol=1e-9)


# ---- infinite bounds ----

BOUNDS: dict[str, Callable[[Any, Any], Any]] = {
    "x <= u": lambda x, u: x <= u,
    "-u <= x": lambda x, u: -u <= x,
    "2 x <= u": lambda x, u: 2 * x <= u,
    "x - u <= 0": lambda x, u: x - u <= 0,
    "A x <= u": lambda x, u: np.array([[1.0, 1.0], [0.0, 1.0]]) @ x <= u,
}


@pytest.mark.parametrize("solver", solvers.REGISTRY)
@pytest.mark.parametrize("name", BOUNDS)
def test_an_infinite_bound_is_a_bound_that_is_not_there(name: str, solver: str) -> None:
    """Values, duals and gradients are those of a very loose bound; the bound itself has no gradient."""
    x, p, u = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    bound = BOUNDS[name](x, u)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [bound]), [p, u], [x, bound.dual_variables[0]], solver=solver)
    p_t = torch.tensor([[3.0, 4.0], [-3.0, -2.0]], dtype=torch.float64)
    outcomes = []
    for missing in (np.inf, 50.0):
        u_t = torch.tensor([[1.0, missing], [missing, 1.0]], dtype=torch.float64, requires_grad=True)
        q_t = p_t.clone().requires_grad_()
        (out, dual), info = layer(q_t, u_t, return_info=True)
        assert (info.status == Status.SOLVED).all()
        outcomes.append([out.detach(), dual.detach(), *torch.autograd.grad(out.square().sum() + dual.square().sum(), [q_t, u_t])])
    for with_none, with_loose in zip(*outcomes, strict=True):
        torch.testing.assert_close(with_none, with_loose, rtol=1e-6, atol=1e-6)  # the accuracy of the gradient of squares near 10
    assert outcomes[0][3][0, 1] == 0 and outcomes[0][3][1, 0] == 0


WRONG_INFINITIES = {
    "in the objective": (lambda x, p, u: cp.Problem(cp.Minimize(cp.sum_squares(x) + p @ x), [x <= u]), np.inf, 1.0, "p"),
    "as an equation": (lambda x, p, u: cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x == u]), 1.0, np.inf, "u"),
    "of the wrong sign": (lambda x, p, u: cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x <= u]), 1.0, -np.inf, "u"),
    "as a radius": (lambda x, p, u: cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.SOC(u[0], x)]), 1.0, np.inf, "u"),
    "as a factor": (lambda x, p, u: cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.multiply(u, x) <= 1]), 1.0, np.inf, "u"),
    "beside a missing bound": (lambda x, p, u: cp.Problem(cp.Minimize(cp.sum_squares(x) + p @ x), [x <= u]), -np.inf, np.inf, "p"),
}


@pytest.mark.parametrize("name", WRONG_INFINITIES)
def test_any_other_infinity_names_its_parameter(name: str) -> None:
    build, p_v, u_v, guilty = WRONG_INFINITIES[name]
    x, p, u = cp.Variable(2), cp.Parameter(2, name="p"), cp.Parameter(2, name="u")
    layer = CvxpyLayer(build(x, p, u), [p, u], [x])
    values = [torch.ones(2, 2, dtype=torch.float64) for _ in range(2)]
    values[0][1, 0], values[1][1, 0] = p_v, u_v
    assert (layer(*values, on_failure="nan", return_info=True)[1].status == [Status.SOLVED, Status.INVALID_PARAMETER]).all()
    with pytest.raises(SolverError, match=rf"row 1 of 2: INVALID_PARAMETER.*parameter '{guilty}': got -?inf, wanted finite numbers"):
        layer(*values)
