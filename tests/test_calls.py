"""What a constructor and a call take, in every framework: arguments, warm starts, failures, misuse. Parameters are NumPy's here."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cvxlayers.errors import InaccurateWarning, SolverError, Status
from tests.backends import TABLE, adapter, requested, tensor
from tests.problems import cp

every_backend = pytest.mark.parametrize("backend", requested())
P = np.array([[2.2, 0.3, -0.6, -4.0], [0.1, 3.0, -1.2, 0.2], [1.5, 0.0, 0.7, -0.2]])
R = np.array([1.0, 2.0, 0.5])


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    """JAX has none unless it is told."""
    with importlib.import_module("jax").enable_x64(True) if "jax" in requested() else contextlib.nullcontext():
        yield


def box(backend: str, **options: Any) -> Any:
    """argmin |x - p|^2 with -r <= x <= r, and the dual variable of its upper bound."""
    x, p, r = cp.Variable(4), cp.Parameter(4, name="p"), cp.Parameter(nonneg=True, name="r")
    above = x <= r
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= -r, above])
    return adapter(backend).CvxpyLayer(problem, [p, r], [x, above.dual_variables[0]], **options)


def clipped(p: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.clip(p, -r[..., None], r[..., None])


def simple() -> tuple[Any, list, list]:
    x, p = cp.Variable(2, name="x"), cp.Parameter(2, name="p")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x]


# ---- batches and infos ----


@every_backend
def test_rows_share_what_has_no_batch_axes(backend: str) -> None:
    layer, weights = box(backend), [np.ones((2, 3, 4)), np.zeros((2, 3, 4))]
    p, r = np.stack([P, -P]), np.stack([R, R + 0.9])
    for values in ([p, r], [p, R[0]], [P[0], r]):
        (x, dual), (gp, gr) = TABLE[backend](layer, [np.asarray(v) for v in values], weights)
        whole_p, whole_r = np.broadcast_to(values[0], (2, 3, 4)), np.broadcast_to(values[1], (2, 3))
        np.testing.assert_allclose(x, clipped(whole_p, whole_r), atol=1e-8)
        np.testing.assert_allclose(dual, 2 * np.maximum(whole_p - whole_r[..., None], 0), atol=1e-8)
        inside, signs = abs(whole_p) < whole_r[..., None], np.sign(whole_p) * (abs(whole_p) > whole_r[..., None])
        for got, want, value in ((gp, inside.astype(float), values[0]), (gr, signs.sum(axis=-1), values[1])):
            own = tuple(range(want.ndim - np.ndim(value)))
            np.testing.assert_allclose(got, want.sum(axis=own), atol=1e-6)


@every_backend
@pytest.mark.parametrize("batch", [(), (0,), (2, 0), (1, 1)], ids=str)
def test_infos_have_the_shape_of_the_batch(backend: str, batch: tuple[int, ...]) -> None:
    outputs, info = box(backend)(np.ones((*batch, 4)), 0.5, return_info=True)
    assert isinstance(outputs, tuple) and [tuple(v.shape) for v in outputs] == [(*batch, 4)] * 2
    for figure in (info.status, info.objective, info.primal_residual, info.dual_residual, info.gap, info.iterations, info.warm_started):
        assert isinstance(figure, np.ndarray) and figure.shape == batch
    np.testing.assert_allclose(info.objective, np.ones(batch), rtol=1e-7)
    assert (info.status == Status.SOLVED).all() and isinstance(info.solver, str) and info.solution.x.shape[:-1] == batch


# ---- failures ----


@every_backend
def test_every_policy_for_failed_rows(backend: str) -> None:
    layer, r = box(backend), np.array([1.0, -1.0, np.nan])
    with pytest.raises(SolverError, match="rows? 1, 2") as caught:
        layer(P, r)
    assert caught.value.rows == (1, 2) and set(caught.value.statuses) == {Status.INVALID_PARAMETER}
    (x, dual), info = layer(P, r, on_failure="nan", return_info=True)
    assert info.status.tolist() == [0, Status.INVALID_PARAMETER, Status.INVALID_PARAMETER]
    assert np.isnan(np.asarray(x)[1:]).all() and np.isnan(np.asarray(dual)[1:]).all()
    np.testing.assert_allclose(x[0], clipped(P[:1], R[:1])[0], atol=1e-8)
    with pytest.warns(InaccurateWarning, match="last iterates are returned"):
        layer(P, r, on_failure="return")
    with pytest.raises(ValueError, match="on_failure is 'ignore'; wanted one of 'raise', 'nan', 'return'"):
        layer(P, R, on_failure="ignore")


@every_backend
@pytest.mark.parametrize(("dtype", "spacing"), [("float32", 2.0**-23), ("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
def test_a_declaration_is_checked_at_the_resolution_of_the_arrays_own_dtype(backend: str, dtype: str, spacing: float) -> None:
    x, p = cp.Variable(2), cp.Parameter(2, bounds=[0.5, 1.0])
    layer = adapter(backend).CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x])
    for steps, status in ((1, Status.SOLVED), (16, Status.INVALID_PARAMETER)):
        value = tensor(backend, np.array([0.75, 1 + steps * spacing]), dtype)
        _, info = layer(value, on_failure="nan", return_info=True)
        assert info.status == status


# ---- warm starts ----


@every_backend
@pytest.mark.parametrize("solver", ["SCS", "CLARABEL", "DAQP", "INTERIOR"])
def test_warm_start_is_an_argument(backend: str, solver: str) -> None:
    layer, weights = box(backend, solver=solver), [np.ones((3, 4)), np.ones((3, 4))]
    cold, info = layer(P, R, return_info=True)
    warm, again = layer(P + 1e-4, R, return_info=True, warm_start=info)
    assert not info.warm_started.any() and (again.warm_started == (solver == "SCS")).all() and again.warm_started.shape == (3,)
    if solver == "SCS":
        assert (again.iterations <= info.iterations).all() and again.iterations.sum() < info.iterations.sum()
    for a, b, c in zip(warm, layer(P + 1e-4, R), layer(P, R, warm_start=False), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)
        assert c.shape == a.shape
    for a, b in zip(layer(P, R), cold, strict=True):
        np.testing.assert_array_equal(a, b, err_msg="a warm start has left a trace")
    started = TABLE[backend](lambda *v: layer(*v, warm_start=info), [P + 1e-4, R], weights)[1]
    for a, b in zip(started, TABLE[backend](layer, [P + 1e-4, R], weights)[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)


@every_backend
def test_warm_start_skips_rows_that_failed(backend: str) -> None:
    layer, spoiled = box(backend, solver="SCS"), P.copy()
    spoiled[1, 0] = np.nan
    _, info = layer(spoiled, R, return_info=True, on_failure="nan")
    (x, _), again = layer(P, R, return_info=True, warm_start=info)
    assert again.warm_started.tolist() == [True, False, True]
    np.testing.assert_allclose(x, clipped(P, R), rtol=1e-8, atol=1e-8)


@every_backend
def test_wrong_warm_starts(backend: str) -> None:
    layer = box(backend)
    _, info = layer(P, R, return_info=True)
    with pytest.raises(ValueError, match="warm_start is a bool; wanted the info of an earlier call"):
        layer(P, R, warm_start=True)
    with pytest.raises(ValueError, match=r"warm_start has batch shape \(3,\).*wanted \(2,\)"):
        layer(P[:2], R[:2], warm_start=info)
    with pytest.raises(ValueError, match="warm_start has batch shape"):
        adapter(backend).CvxpyLayer(*simple())(np.ones((3, 2)), warm_start=info)


# ---- misuse ----


@every_backend
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((np.ones(4),), r"got 1 parameter values; wanted 2, one for each of 'p', 'r'"),
        ((np.ones(4), 1.0, 2.0), r"got 3 parameter values; wanted 2"),
        ((np.ones(3), 1.0), r"'p' \(1 of 2\) has shape \(3,\); wanted \(4,\) or \(\*batch, 4\)"),
        ((np.ones((4, 1)), 1.0), r"\(1 of 2\) has shape \(4, 1\); wanted \(4,\) or \(\*batch, 4\)"),
        ((1.0, 1.0), r"has shape \(\); wanted \(4,\)"),
        ((np.ones((2, 4)), np.ones(3)), r"has batch shape \(2,\) and parameter 'r' has batch shape \(3,\); wanted equal"),
        ((np.ones((2, 4)), np.ones(1)), r"batch shape \(2,\) and .* has batch shape \(1,\)"),
        ((np.ones((2, 3, 4)), np.ones(3)), r"batch shape \(2, 3\) and .* has batch shape \(3,\)"),
        ((np.ones(4) * 1j, 1.0), r"'p' is real and got complex values"),
        ((["a", "b", "c", "d"], 1.0), r"parameter 'p': "),
        ((None, 1.0), r"parameter 'p'"),
        (([[1, 2], [3]], 1.0), r"parameter 'p': .*inhomogeneous"),
    ],
    ids=lambda v: None if isinstance(v, tuple) else v[:40],
)
def test_a_wrong_count_shape_or_kind_is_a_value_error_whatever_the_policy(backend: str, values: tuple, message: str) -> None:
    layer = box(backend)
    for policy in ("raise", "nan", "return"):
        with pytest.raises(ValueError, match=message):
            layer(*values, on_failure=policy)


@every_backend
def test_matrix_parameters_say_their_shape(backend: str) -> None:
    x, A, b = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5, name="b")
    layer = adapter(backend).CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x))), [A, b], [x])
    with pytest.raises(ValueError, match=r"has shape \(10, 4, 2\); wanted \(5, 3\) or \(\*batch, 5, 3\)"):
        layer(np.ones((10, 4, 2)), np.ones(5))
    with pytest.raises(ValueError, match=r"'b'.*has shape \(2, 3\); wanted"):
        layer(np.ones((5, 3)), np.ones((2, 3)))


# ---- the constructor, and other layers' spelling ----


@every_backend
def test_the_signature_is_that_of_cvxpylayers(backend: str) -> None:
    """Names and order as in cvxpylayers 1.x, so that positional calls mean the same."""
    signature = inspect.signature(adapter(backend).CvxpyLayer.__init__)
    ours = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert ours == ["self", "problem", "parameters", "variables", "solver", "gp", "verbose", "canon_backend", "solver_args"]


@every_backend
def test_positional_arguments(backend: str) -> None:
    x, p = cp.Variable(pos=True), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Minimize(x + p / x))
    layer = adapter(backend).CvxpyLayer(problem, [p], [x], "SCS", True, False, None, {"eps": 1e-8})
    (out,), info = layer(np.array(4.0), return_info=True)
    assert abs(float(out) - 2) < 1e-6 and info.solver == "SCS"


@every_backend
@pytest.mark.parametrize(
    ("solver", "solver_args", "ran", "ignored"),
    [
        (None, {"solve_method": "ECOS"}, "ECOS", []),
        (None, {"solve_method": "Clarabel"}, "CLARABEL", []),
        ("DIFFCP", {"solve_method": "SCS"}, "DIFFCP", []),
        (cp.SCS, {"eps": 1e-9, "max_iters": 20_000, "acceleration_lookback": 0}, "SCS", []),
        (None, {"eps": 1e-9, "max_iters": 200, "acceleration_lookback": 0}, "ACTIVE_SET", ["acceleration_lookback"]),
        ("CLARABEL", {"mode": "dense", "n_jobs_forward": 1, "n_jobs_backward": 1}, "CLARABEL", ["mode", "n_jobs_backward"]),
        ("clarabel", {"n_jobs_forward": 2}, "CLARABEL", []),
    ],
)
def test_solver_args_of_other_layers(backend: str, solver: str | None, solver_args: dict, ran: str, ignored: list[str]) -> None:
    """At construction and at the call alike; what has no meaning is said once for each layer."""
    for at_call in (False, True):
        if at_call and "solve_method" in solver_args:
            continue  # the solver decides how the problem is written, so it is chosen at construction
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = adapter(backend).CvxpyLayer(*simple(), solver=solver, solver_args=None if at_call else solver_args)
            for _ in range(3):
                (x,), info = layer(np.array([1.0, -1.0]), solver_args=solver_args if at_call else None, return_info=True)
        assert info.solver == ran
        np.testing.assert_allclose(x, [1, 0], atol=1e-6)
        texts = [str(w.message) for w in caught if w.category is FutureWarning]
        assert len(texts) == (1 if ignored else 0)
        assert all(repr(name) in texts[0] for name in ignored)


@every_backend
def test_ignored_arguments_of_the_constructor(backend: str) -> None:
    with pytest.warns(FutureWarning) as caught:
        adapter(backend).CvxpyLayer(*simple(), verbose=True, canon_backend="SCIPY")
    assert ["verbose" in str(caught[0].message), "canon_backend" in str(caught[1].message), len(caught)] == [True, True, 2]
    assert all(w.filename == __file__ for w in caught)


@every_backend
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda q, p, x: ((q,), {"params": p, "out": x}), TypeError, "'params'; write parameters="),
        (lambda q, p, x: ((q, p), {"out": x}), TypeError, "'out'; write variables="),
        (lambda q, p, x: ((q, p), {"outputs": x}), TypeError, "'outputs'; write variables="),
        (lambda q, p, x: ((q, p, x), {"solvers": 1}), TypeError, "unexpected keyword argument 'solvers'$"),
        (lambda q, p, x: ((q,), {}), TypeError, "got no parameters; wanted"),
        (lambda q, p, x: ((q, p), {}), TypeError, "got no variables; wanted"),
        (lambda q, p, x: ((q, [], x), {}), ValueError, "'p'.* missing from parameters"),
        (lambda q, p, x: ((q, p, p), {}), ValueError, r"variables\[0\] is a Parameter"),
        (lambda q, p, x: ((q, p, x, "GUROBI"), {}), ValueError, "solver 'GUROBI' is not known; choose one of CLARABEL"),
        (lambda q, p, x: ((q, p, x), {"solver_args": {"epsilon": 1}}), ValueError, "no option 'epsilon'; it takes"),
        (lambda q, p, x: ((q, p, x, "SCS"), {"solver_args": {"solve_method": "ECOS"}}), ValueError, "ask for different solvers"),
    ],
)
def test_wrong_constructors(backend: str, arguments: Callable, error: type[Exception], message: str) -> None:
    positional, named = arguments(*simple())
    with pytest.raises(error, match=message):
        adapter(backend).CvxpyLayer(*positional, **named)


@every_backend
def test_unknown_options_of_a_call(backend: str) -> None:
    layer = adapter(backend).CvxpyLayer(*simple())
    with pytest.raises(ValueError, match="no option 'epsilon'"):
        layer(np.ones(2), solver_args={"epsilon": 1.0})
    with pytest.raises(TypeError, match="unexpected keyword argument 'return_infos'"):
        layer(np.ones(2), return_infos=True)


@every_backend
def test_options_of_a_call_hold_for_that_call(backend: str) -> None:
    layer = adapter(backend).CvxpyLayer(*simple(), solver="SCS", solver_args={"eps": 1e-9})
    p = np.array([1.0, -1.0])
    options = (None, {"eps": 1e-2, "acceleration_lookback": 0}, None)
    counts = [layer(p, return_info=True, solver_args=args)[1].iterations for args in options]
    assert counts[0] == counts[2] > counts[1]
