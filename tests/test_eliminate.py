"""Variables that CVXPY adds as shifted copies of others are taken out, and nothing that a user sees changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cvxlayers import layer as layers
from cvxlayers.canonicalize import canonicalize
from cvxlayers.eliminate import eliminate
from cvxlayers.host import Options
from cvxlayers.layer import Layer
from tests.problems import cp

rng = np.random.default_rng(0)
ROOT = rng.standard_normal((4, 4))
Built = tuple[Any, list, list]


def _simplex() -> Built:
    x, a = cp.Variable(4), cp.Parameter(4)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [cp.sum(x) == 1, x >= 0]), [a], [x]


def _scaled_copies() -> Built:
    """Several copies of one variable, and one that is a constant."""
    x, a, b = cp.Variable(4), cp.Parameter(4), cp.Parameter()
    cost = cp.sum_squares(cp.multiply([2.0, -1.0, 3.0, 0.5], x) - a) + 2 * cp.sum_squares(x + b) + cp.square(x[0] - x[0] + 3 * b)
    return cp.Problem(cp.Minimize(cost), [x <= 0.3]), [a, b], [x]


def _crossed() -> Built:
    """A quadratic form of shifted variables, two of them of the same variable."""
    x, t, a = cp.Variable(3), cp.Variable(4), cp.Parameter(4)
    shifted = cp.hstack([x[0], -2 * x[0], x[1], x[2]]) - a
    cost = cp.quad_form(t, ROOT @ ROOT.T + np.eye(4)) + cp.sum(x) + cp.sum(t)
    return cp.Problem(cp.Minimize(cost), [t == shifted, x >= -1, x[1] + x[2] == 1]), [a], [x]


def _maximized() -> Built:
    x, a, w = cp.Variable(4), cp.Parameter(4), cp.Parameter(4)
    return cp.Problem(cp.Maximize(w @ x - cp.sum_squares(x - a)), [cp.norm(x) <= 1]), [w, a], [x]


def _kept_factor() -> Built:
    """The copies' factor is a parameter: they stay."""
    x, g, a = cp.Variable(4), cp.Parameter(4, pos=True), cp.Parameter(4)
    return cp.Problem(cp.Minimize(cp.sum_squares(cp.multiply(g, x) - a)), [cp.sum(x) == 1]), [g, a], [x]


def _kept_weight() -> Built:
    x, t, g, a = cp.Variable(4), cp.Variable(4), cp.Parameter(nonneg=True), cp.Parameter(4)
    return cp.Problem(cp.Minimize(g * cp.sum_squares(t) + cp.sum_squares(x)), [t == x - a, cp.sum(x) == 1]), [g, a], [x]


def _shown() -> Built:
    """A copy of the user's own that is asked for, and one whose row's multiplier is."""
    x, t, u, a = cp.Variable(2), cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    row = u == 2 * x + a
    return cp.Problem(cp.Minimize(cp.sum_squares(t) + cp.sum_squares(u)), [t == x - a, row, x >= 0]), [a], [t, row.dual_variables[0]]


def _own() -> Built:
    """Copies of the user's own that are not asked for."""
    x, t, a = cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    return cp.Problem(cp.Minimize(cp.sum_squares(t) + cp.sum(t)), [t == x - a, x >= 0]), [a], [x]


def _wide() -> Built:
    """Rows of several variables stay."""
    x, a = cp.Variable(3), cp.Parameter(4)
    return cp.Problem(cp.Minimize(cp.sum_squares(ROOT[:, :3] @ x - a)), [x >= 0]), [a], [x]


# the problem, and how many variables and rows go
CASES: dict[str, tuple[Callable[[], Built], int]] = {
    "simplex": (_simplex, 4),
    "scaled copies": (_scaled_copies, 9),
    "crossed": (_crossed, 4),
    "maximized": (_maximized, 4),
    "a parameter as factor": (_kept_factor, 0),
    "a parameter as weight": (_kept_weight, 0),
    "shown": (_shown, 0),
    "own": (_own, 2),
    "wide": (_wide, 0),
}


def _values(parameters: list, rows: int) -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    values = [draw.standard_normal((rows, *p.shape)) for p in parameters]
    return [np.abs(v) + 0.5 if p.is_nonneg() else v for p, v in zip(parameters, values, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_how_many_go(name: str) -> None:
    build, gone = CASES[name]
    whole = canonicalize(*build())
    smaller = eliminate(whole)
    assert (smaller.pattern.n, smaller.pattern.m) == (whole.pattern.n - gone, whole.pattern.m - gone)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_whole(name: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    build, _ = CASES[name]
    problem, parameters, variables = build()
    smaller = Layer(problem, parameters, variables, solver="CLARABEL")
    with monkeypatch.context() as patch:
        patch.setattr(layers, "eliminate", lambda canonical: canonical)
        whole = Layer(problem, parameters, variables, solver="CLARABEL")
    values = _values(parameters, 3)
    values = [values[0][0], *values[1:]] if shared else values  # the first shared by all rows
    args = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}
    (out, info, saved), (want, want_info, want_saved) = (layer.forward(values, Options(args)) for layer in (smaller, whole))
    draw = np.random.default_rng(2)
    cotangents = [draw.standard_normal(a.shape) for a in want]
    tangents = [draw.standard_normal(v.shape) for v in values]
    everything = [True] * len(values)
    pulled, want_pulled = (layer.vjp(kept, cotangents, everything) for layer, kept in ((smaller, saved), (whole, want_saved)))
    pushed, want_pushed = (layer.jvp(kept, tangents) for layer, kept in ((smaller, saved), (whole, want_saved)))
    np.testing.assert_allclose(info.objective, want_info.objective, rtol=1e-9, atol=1e-9)
    for found, wanted in ((out, want), (pulled, want_pulled), (pushed, want_pushed)):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
    for row in range(len(info.objective) if info.objective.ndim else 1):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = value[row] if value.ndim > parameter.ndim else value
        problem.solve(solver="CLARABEL", **dict.fromkeys(args, 1e-10))
        np.testing.assert_allclose(info.objective.ravel()[row], problem.value, rtol=1e-8, atol=1e-8)


def test_rows_that_are_not_finite_are_told_still() -> None:
    """What goes into q, too, may not be infinite, whatever it was before."""
    problem, parameters, variables = _simplex()
    value = np.zeros((2, 4))
    value[1, 2] = np.inf
    _, info, _ = Layer(problem, parameters, variables).forward([value], Options(on_failure="nan"))
    assert info.status.tolist()[0] == 0 and info.status.tolist()[1] != 0
