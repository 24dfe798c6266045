"""Rows without numbers fail by themselves: others are solved and differentiated as without them; and batches without rows."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pytest

from cvxlayers.backend import backend_of
from cvxlayers.control import MPC, LinearDynamics, QuadraticCost
from cvxlayers.errors import InaccurateWarning, SolverError, Status
from tests.backends import TABLE, compiled, requested

T = 4


def push(x: Any, u: Any, params: Any) -> Any:
    """A pendulum; params: the strength of each row, and what all rows share."""
    xp = backend_of(x).verbs.xp
    speed = x[..., 1] + 0.1 * (params[1] * xp.sin(x[..., 0]) + params[0] * u[..., 0])
    return xp.stack([x[..., 0] + 0.1 * speed, speed], axis=-1)


def shared(x: Any, u: Any, params: Any) -> Any:
    return params[0] * params[1] * (x[..., 0] * x[..., 0] + x[..., 1] * x[..., 1]) + 0.1 * u[..., 0] * u[..., 0]


CASES: dict[str, dict[str, Any]] = {
    "exact": dict(),
    "constrained": dict(x_upper=[2.0, 0.5], hessian="exact"),
    "ilqr": dict(method="ilqr"),
    "unroll": dict(backward="unroll", max_iter=3),
    "linear": dict(linear=True),
}
WHERE = [("exact", "params"), ("constrained", "x0"), ("ilqr", "x0"), ("unroll", "x0"), ("unroll", "params"), ("linear", "x0")]
WHERE_OF = [(b, *case) for b in requested() for case in (WHERE if b == "torch" else [WHERE[0], WHERE[3], WHERE[5]])]
X0, STRENGTHS, SHARED = np.array([[1.0, 0.2], [0.3, 0.1], [-0.5, 0.6]]), np.array([1.0, 1.2, 0.8]), np.array(1.3)
KEPT = [0, 2]


def planned(name: str, x0: Any, strengths: Any, weight: Any, **options: Any) -> Any:
    options = {"horizon": T, "n_state": 2, "n_ctrl": 1, "u_lower": -1.0, "u_upper": 1.0, **CASES[name], **options}
    if not options.pop("linear", False):
        return MPC(push, shared, **options)(x0, (strengths, weight))
    verbs = backend_of(x0).verbs
    F, x0 = weight * verbs.asarray(np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]]), x0), x0 + strengths[..., None] - 1
    return MPC(LinearDynamics(F), QuadraticCost(weight * verbs.asarray(np.diag([2.0, 2.0, 0.2]), x0)), **options)(x0)


COTANGENTS = [
    np.random.default_rng(seed).standard_normal((*front, 3, *back))
    for seed, (front, back) in enumerate([((T,), (2,)), ((T,), (1,)), ((), ())])
]


def solved(backend: str, name: str, x0: np.ndarray, strengths: np.ndarray, cotangents: list[np.ndarray]) -> Any:
    def call(*values: Any) -> tuple[Any, Any, Any]:
        plan = planned(name, *values)
        return plan.x, plan.u, plan.cost

    return TABLE[backend](compiled(backend, call), [x0, strengths, SHARED], cotangents)


@functools.cache
def without(name: str) -> Any:
    """What PyTorch makes of the other rows alone."""
    return solved("torch", name, X0[KEPT], STRENGTHS[KEPT], [*(g[:, KEPT] for g in COTANGENTS[:2]), COTANGENTS[2][KEPT]])


@pytest.mark.parametrize(("backend", "name", "where"), WHERE_OF)
@pytest.mark.filterwarnings("ignore::cvxlayers.errors.InaccurateWarning")
def test_other_rows_do_not_see_it(backend: str, name: str, where: str) -> None:
    """The middle row has NaN in one of its numbers; the loss takes the others."""
    x0, strengths, cotangents = X0.copy(), STRENGTHS.copy(), [g.copy() for g in COTANGENTS]
    (x0[1] if where == "x0" else strengths[1:2])[0] = np.nan
    for g in (cotangents[0][:, 1], cotangents[1][:, 1], cotangents[2][1:2]):
        g[:] = 0
    found, gradients = solved(backend, name, x0, strengths, cotangents)
    wanted, slopes = without(name)
    near = 1e-10 if backend == "torch" else 1e-7
    for got, want in zip(found, wanted, strict=True):
        rows = np.moveaxis(got, -1 if got.ndim == 1 else 1, 0)
        np.testing.assert_allclose(rows[KEPT], np.moveaxis(want, -1 if got.ndim == 1 else 1, 0), rtol=0, atol=near)
        assert np.isnan(rows[1]).all()
    np.testing.assert_allclose(gradients[0][KEPT], slopes[0], rtol=0, atol=near)
    np.testing.assert_allclose(gradients[1][KEPT], slopes[1], rtol=0, atol=near)
    np.testing.assert_allclose(gradients[2], slopes[2], rtol=0, atol=near)
    assert (gradients[0][1] == 0).all() and gradients[1][1] == 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", requested())
def test_a_batch_without_rows(backend: str, name: str) -> None:
    """Plans without entries, and zeros of the right shapes as gradients."""
    values, cotangents = [X0[:0], STRENGTHS[:0], SHARED], [*(g[:, :0] for g in COTANGENTS[:2]), COTANGENTS[2][:0]]

    def call(*values: Any) -> tuple[Any, Any, Any]:
        plan = planned(name, *values)
        assert plan.info.converged.shape == plan.info.grad_ok.shape == (0,)
        return plan.x, plan.u, plan.cost

    found, gradients = TABLE[backend](call, values, cotangents)
    assert [a.shape for a in found] == [g.shape for g in cotangents]
    assert [g.shape for g in gradients] == [v.shape for v in values] and not any(g.any() for g in gradients)


@pytest.mark.parametrize("name", CASES)
def test_the_row_is_told(name: str) -> None:
    torch = importlib.import_module("torch")
    values = [torch.tensor(a) for a in (X0, STRENGTHS, SHARED)]
    values[0][1, 1] = np.nan
    with pytest.warns(InaccurateWarning, match="row 1 of 3 did not.*states, parameters or derivatives of row 1 are not finite"):
        info = planned(name, *values, max_iter=50).info
    assert info.converged.tolist() == info.minimum.tolist() == [True, False, True]
    assert info.kkt_residual[1] == np.inf and not (info.grad_ok[1] | info.infeasible[1] | info.unbounded[1])
    with pytest.raises(SolverError) as caught:
        planned(name, *values, max_iter=50, on_unconverged="raise")
    assert caught.value.rows == (1,) and caught.value.statuses == (Status.INVALID_PARAMETER,)
    for policy in ("nan", "zero_grad"):
        plan = planned(name, *values, max_iter=50, on_unconverged=policy)
        assert plan.u.isnan().any(-1).any(0).tolist() == [False, True, False]
