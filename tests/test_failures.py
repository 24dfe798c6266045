"""What happens to a row that cannot be solved, and that nothing happens to its neighbours."""

from __future__ import annotations

import functools
import pickle
import threading
import time
import warnings
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers import GradientWarning, InaccurateWarning, SolverError, Status, failures, solvers
from cvxlayers.errors import warn
from cvxlayers.program import Info, Solution
from cvxlayers.torch import CvxpyLayer

SOLVERS = list(solvers.REGISTRY)
NAMES = ("p", "lower", "upper", "slope")


@functools.cache
def box(solver: str | None) -> CvxpyLayer:
    """minimize |x - p|^2 + slope y over lower <= x <= upper, y >= 0: x = clip(p, lower, upper), y = 0."""
    x, y = cp.Variable(2), cp.Variable()
    p, lower, upper, slope = (
        cp.Parameter(2, name="p"),
        cp.Parameter(2, name="lower"),
        cp.Parameter(2, name="upper"),
        cp.Parameter(name="slope"),
    )
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + slope * y), [x >= lower, x <= upper, y >= 0])
    return CvxpyLayer(problem, parameters=[p, lower, upper, slope], variables=[x, y], solver=solver)


def test_a_parameter_that_the_cone_program_does_not_have_is_checked_all_the_same() -> None:
    x, p, q = cp.Variable(2), cp.Parameter(2, name="p"), cp.Parameter(2, name="q")
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p) + q[0]), [x >= 0]), [p, q], [x])
    values = np.ones((3, 2)), np.array([[1.0, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
    _, info = layer(*values, on_failure="nan", return_info=True)
    assert info.status.tolist() == [Status.SOLVED, Status.INVALID_PARAMETER, Status.INVALID_PARAMETER]
    assert info.objective[0] == pytest.approx(1.0)


def good() -> list[np.ndarray]:
    return [np.array([[0.3, 2.0], [-3.0, 0.1], [0.5, 0.5], [0.7, -0.2]]), -np.ones((4, 2)), np.ones((4, 2)), np.array([1.0, 2.0, 3.0, 0.5])]


def spoiled(which: str, row: int, value: float) -> list[np.ndarray]:
    values = good()
    array = values[NAMES.index(which)]
    array[(row, 1) if array.ndim == 2 else row] = value
    return values


def outside() -> list[np.ndarray]:
    """Every point outside every bound: no solver can stop after one step, not even an active set."""
    p, *others = good()
    return [11 * p, *others]


def call(layer: CvxpyLayer, values: list[np.ndarray], **options: Any) -> tuple[list[np.ndarray], list[np.ndarray], Info]:
    """Outputs, gradients of sum w out^2 (NaN outputs have NaN cotangents) and info."""
    tensors = [torch.tensor(value, requires_grad=True) for value in values]
    outputs, info = layer(*tensors, **{"on_failure": "nan", **options}, return_info=True)
    rng = np.random.default_rng(0)
    loss = sum((out.square() * torch.tensor(rng.standard_normal(out.shape))).sum() for out in outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        gradients = torch.autograd.grad(loss, tensors)  # type: ignore[arg-type]
    return [out.detach().numpy() for out in outputs], [g.numpy() for g in gradients], info


def per_row(info: Info) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(info).items() if isinstance(value, np.ndarray)}


def assert_rows_equal(kept: list[int], one: tuple, other: tuple) -> None:
    """Outputs, gradients and infos of the kept rows are equal to the last bit."""
    for a, b in zip(one[0] + one[1], other[0] + other[1], strict=True):
        np.testing.assert_array_equal(a[kept], b[kept])
    for name, value in per_row(one[2]).items():
        np.testing.assert_array_equal(value[kept], per_row(other[2])[name][kept], err_msg=name)


def assert_failed(rows: list[int], outcome: tuple) -> None:
    """Failed rows show no number and have no gradient."""
    outputs, gradients, _ = outcome
    assert all(np.isnan(out[rows]).all() for out in outputs)
    assert all((g[rows] == 0).all() for g in gradients)


FAILURES = {
    "infeasible": ("lower", 2.0, Status.PRIMAL_INFEASIBLE, np.inf, "relax"),
    "unbounded": ("slope", -1.0, Status.DUAL_INFEASIBLE, -np.inf, "add a bound"),
    "nan": ("p", np.nan, Status.INVALID_PARAMETER, np.nan, r"'p': got nan, wanted numbers.*correct the value"),
    "inf": ("p", np.inf, Status.INVALID_PARAMETER, np.nan, r"'p': got inf, wanted finite numbers.*correct the value"),
    "-inf as an upper bound": ("upper", -np.inf, Status.INVALID_PARAMETER, np.nan, r"'upper': got -inf, wanted finite numbers"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_failed_row_is_flagged_and_its_neighbours_do_not_notice(solver: str, failure: str) -> None:
    which, value, status, objective, _ = FAILURES[failure]
    whole, broken = call(box(solver), good()), call(box(solver), spoiled(which, 1, value))
    np.testing.assert_array_equal(whole[2].status, Status.SOLVED)
    np.testing.assert_array_equal(broken[2].status, [Status.SOLVED, status, Status.SOLVED, Status.SOLVED])
    np.testing.assert_equal(broken[2].objective[1], objective)
    assert_failed([1], broken)
    assert_rows_equal([0, 2, 3], broken, whole)
    np.testing.assert_allclose(broken[0][0][[0, 2, 3]], np.clip(good()[0], -1, 1)[[0, 2, 3]], atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_kind_of_failure_in_one_batch(solver: str) -> None:
    kinds = list(FAILURES.values())
    values = [
        np.concatenate([v[[0]], *(spoiled(which, 1, value)[k][[1]] for which, value, *_ in kinds), v[[2]]]) for k, v in enumerate(good())
    ]
    mended = [np.concatenate([v[[0]], *[v[[1]]] * len(kinds), v[[2]]]) for v in good()]
    broken, rows = call(box(solver), values), list(range(1, 1 + len(kinds)))
    np.testing.assert_array_equal(broken[2].status, [Status.SOLVED, *(kind[2] for kind in kinds), Status.SOLVED])
    assert_failed(rows, broken)
    assert_rows_equal([0, len(kinds) + 1], broken, call(box(solver), mended))


@pytest.mark.parametrize("bad", [1, 7, 63])
@pytest.mark.parametrize("solver", SOLVERS)
def test_any_number_of_failed_rows_among_many(solver: str, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Derivatives are taken in chunks of a few rows, whose borders move when failed rows are left out."""
    monkeypatch.setattr("cvxlayers.kkt.CHUNK", 5 * box(solver).core.conic.kkt.nnz)
    rng = np.random.default_rng(bad)
    whole = [rng.standard_normal((64, 2)), -rng.random((64, 2)), rng.random((64, 2)), rng.random(64) + 0.1]
    broken, rows = [value.copy() for value in whole], rng.permutation(64)
    for row, (which, value, *_) in zip(rows[:bad], list(FAILURES.values()) * 64, strict=False):
        array = broken[NAMES.index(which)]
        array[(row, 1) if array.ndim == 2 else row] = value
    outcome = call(box(solver), broken)
    assert_failed(rows[:bad].tolist(), outcome)
    assert_rows_equal(rows[bad:].tolist(), outcome, call(box(solver), whole))


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_at_the_iteration_limit(solver: str) -> None:
    """Rows of very different size need different numbers of iterations; a limit between them fails some."""
    rng = np.random.default_rng(1)
    size = 10.0 ** rng.uniform(-3, 4, (16, 1))
    p, lower, slope = size * rng.standard_normal((16, 2)), -size * rng.random((16, 2)), rng.random(16) + 0.1
    values = [p, lower, lower + size * rng.random((16, 2)), slope]
    mixed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccurateWarning)
        most = call(box(solver), values)[2].iterations.max()
        for limit in np.unique(np.geomspace(2, most, 12).astype(int)):
            options = {"solver_args": {"max_iters": int(limit)}}
            limited = call(box(solver), values, **options)
            status = limited[2].status
            failed, solved = np.flatnonzero(status > Status.INACCURATE).tolist(), np.flatnonzero(status <= Status.INACCURATE).tolist()
            # ECOS calls a point near the limit close to optimal; where its residuals say otherwise the row is a numerical error.
            assert set(status[failed]) <= {Status.ITERATION_LIMIT, Status.NUMERICAL_ERROR}
            if Status.ITERATION_LIMIT in status and solved:
                mixed += 1
                assert_failed(failed, limited)
                replaced = [value.copy() for value in values]
                for value in replaced:
                    value[failed] = value[solved[0]]
                assert_rows_equal(solved, limited, call(box(solver), replaced, **options))
    assert mixed, "no limit failed some rows and not others: nothing was tested"


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_rows_at_the_iteration_limit(solver: str) -> None:
    outcome = call(box(solver), outside(), solver_args={"max_iters": 1})
    np.testing.assert_array_equal(outcome[2].status, Status.ITERATION_LIMIT)
    assert_failed([0, 1, 2, 3], outcome)


@pytest.mark.parametrize(("solver", "option"), [("CLARABEL", "time_limit"), ("SCS", "time_limit_secs"), ("DAQP", "time_limit")])
def test_the_time_limit(solver: str, option: str) -> None:
    rng, n = np.random.default_rng(0), 100
    x, q = cp.Variable(n), cp.Parameter(n)
    F, A = rng.standard_normal((n, n)), rng.standard_normal((2 * n, n))
    edge = A @ (10 * rng.standard_normal(n))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(F @ x) + q @ x), [A @ x <= edge]), [q], [x], solver=solver)
    value = rng.standard_normal((2, n))
    (out,), (gradient,), info = call(layer, [value], solver_args={option: 1e-7, "eps": 1e-12})
    np.testing.assert_array_equal(info.status, Status.TIME_LIMIT)
    assert np.isnan(out).all() and (gradient == 0).all()
    with pytest.raises(SolverError, match="TIME_LIMIT.*raise the time limit"):
        layer(torch.tensor(value), solver_args={option: 1e-7, "eps": 1e-12})


def cone_failures() -> dict[str, tuple]:
    """Programs over curved cones: objective, constraints, variable; a good and a bad value of t; the status at the bad one; the solvers."""
    x, X, t = cp.Variable(3), cp.Variable((3, 3), symmetric=True), cp.Parameter(name="t")
    near, near_X = cp.sum_squares(x - np.arange(3.0)), cp.sum_squares(X - np.diag([1.0, 2.0, -1.0]))
    matrix = ("CLARABEL", "SCS", "DIFFCP", "MOREAU", "INTERIOR")
    vector = (*matrix, "ECOS")
    empty, endless = Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE
    return {
        "a ball of negative radius": ((near, [cp.norm(x) <= t], x), 1.0, -1.0, empty, vector),
        "a semidefinite matrix of negative trace": ((near_X, [X >> 0, cp.trace(X) == t], X), 1.0, -1.0, empty, matrix),
        "exponentials with a negative sum": ((near, [cp.sum(cp.exp(x)) <= t], x), 2.0, -2.0, empty, vector),
        "down a cone that opens upwards": ((t * x[2] + x[0], [cp.norm(x[:2]) <= x[2]], x), 2.0, -2.0, endless, vector),
        "a trace without a bound": ((cp.trace(X) * t, [X >> np.eye(3)], X), 1.0, -1.0, endless, matrix),
    }


CONE_FAILURES = [(name, solver) for name, case in cone_failures().items() for solver in case[-1]]


@pytest.mark.parametrize(("name", "solver"), CONE_FAILURES)
def test_failures_over_curved_cones(name: str, solver: str) -> None:
    (objective, constraints, variable), fine, bad, status, _ = cone_failures()[name]
    problem = cp.Problem(cp.Minimize(objective), constraints)
    layer = CvxpyLayer(problem, problem.parameters(), [variable], solver=solver)
    whole, broken = (call(layer, [np.array([fine, other, fine + 0.5])]) for other in (fine + 0.25, bad))
    np.testing.assert_array_equal(whole[2].status, Status.SOLVED)
    np.testing.assert_array_equal(broken[2].status, [Status.SOLVED, status, Status.SOLVED])
    assert_failed([1], broken)
    assert_rows_equal([0, 2], broken, whole)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rows", [(0, 0), (0, 1)])
def test_singular_equations_are_solved_or_flagged(solver: str, rows: tuple[int, int]) -> None:
    """A given twice: still a projection onto {a'x = b}, by closed form. With different right-hand sides: infeasible. A = 0: no equation."""
    x, p, A, b = cp.Variable(3), cp.Parameter(3), cp.Parameter((2, 3)), cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [A @ x == b]), [p, A, b], [x], solver=solver)
    a = np.array([1.0, -2.0, 0.5])
    point = np.array([0.3, 0.1, -1.0])
    A_v = np.stack([np.stack([a, a]), np.stack([a, a]), np.zeros((2, 3)), np.zeros((2, 3))])
    b_v = np.array([[0.7, 0.7], [0.7, -0.7], [0.0, 0.0], [1.0, 1.0]])
    tensors = [
        torch.tensor(np.broadcast_to(v, (4, *np.shape(v)[-d:])).copy(), requires_grad=True) for v, d in ((point, 1), (A_v, 2), (b_v, 1))
    ]
    (out,), info = layer(*tensors, on_failure="nan", return_info=True)
    np.testing.assert_array_equal(info.status > Status.INACCURATE, [False, True, False, True])
    projected = point - a * (a @ point - 0.7) / (a @ a)
    # Residuals of 1e-8 are the promise; the dual is not unique, so a polishing step may have been refused.
    np.testing.assert_allclose(out.detach()[[0, 2]], [projected, point], atol=1e-7)
    assert torch.isnan(out[[1, 3]]).all()
    g = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        gradients = torch.autograd.grad(out[rows[0]] @ g, tensors) if rows[0] == rows[1] else torch.autograd.grad(out[0::2].sum(), tensors)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    if rows[0] == rows[1]:
        np.testing.assert_allclose(gradients[0][0], g.numpy() - a * (a @ g.numpy()) / (a @ a), atol=1e-7)


# ---- policies and messages ----


@pytest.mark.parametrize("failure", FAILURES)
def test_raise_names_rows_statuses_and_what_to_try(failure: str) -> None:
    which, value, status, _, words = FAILURES[failure]
    values = [torch.tensor(v) for v in spoiled(which, 2, value)]
    with pytest.raises(SolverError, match=rf"row 2 of 4: {status.name}: {status.sentence}.*{words}") as caught:
        box("CLARABEL")(*values)
    assert caught.value.rows == (2,) and caught.value.statuses == (status,)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.rows, copy.statuses) == (str(caught.value), (2,), (status,))


def test_raise_names_every_status_and_not_every_row() -> None:
    values = [np.repeat(v[:1], 20, axis=0).reshape(4, 5, *v.shape[1:]) for v in good()]
    values[0][1:, :, 0] = np.nan
    values[1][0, 3] = 3.0
    with pytest.raises(SolverError) as caught:
        box("CLARABEL")(*values)
    assert caught.value.rows == (3, *range(5, 20))
    assert caught.value.statuses == (Status.PRIMAL_INFEASIBLE, *[Status.INVALID_PARAMETER] * 15)
    assert "row 3 of 20: PRIMAL_INFEASIBLE" in str(caught.value)
    assert "rows 5, 6, 7, 8, 9, 10, 11, 12, ... of 20: INVALID_PARAMETER" in str(caught.value)


@pytest.mark.parametrize("solver", SOLVERS)
def test_return_hands_out_the_last_iterate_with_a_warning_and_no_gradient(solver: str) -> None:
    values = outside()
    values[0][1, 1] = np.nan
    with pytest.warns(
        InaccurateWarning, match=r"rows 0, 2, 3 of 4: ITERATION_LIMIT.*row 1 of 4: INVALID.*last iterates.*zero gradient"
    ) as caught:
        outcome = call(box(solver), values, on_failure="return", solver_args={"max_iters": 1})
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(outcome[2].status[[0, 2, 3]], Status.ITERATION_LIMIT)
    assert all((g == 0).all() for g in outcome[1])
    # DAQP has no iterate to show: it leaves x as it found the memory, which must not come out.
    np.testing.assert_array_equal(np.isfinite(outcome[0][0][[0, 2, 3]]), solver != "DAQP")
    assert np.isnan(outcome[0][0][1]).all()


def test_return_leaves_good_rows_alone() -> None:
    whole = call(box("CLARABEL"), good())
    with pytest.warns(InaccurateWarning):
        broken = call(box("CLARABEL"), spoiled("lower", 1, 2.0), on_failure="return")
    assert_rows_equal([0, 2, 3], broken, whole)


def test_unknown_policies_are_refused_before_anything_is_solved() -> None:
    with pytest.raises(ValueError, match="on_failure is 'ignore'; wanted one of 'raise', 'nan', 'return'"):
        box("CLARABEL")(*good(), on_failure="ignore")


def made_info(*statuses: Status) -> Info:
    status = np.array(statuses)
    zero = np.zeros(len(status))
    return Info(status, zero, zero, zero, zero, zero, "SOLVER", zero > 0, Solution(zero, zero, zero))


@pytest.mark.parametrize("status", [status for status in Status if not status.ok])
@pytest.mark.parametrize("policy", failures.POLICIES)
def test_every_status_has_its_sentence_and_advice(status: Status, policy: str) -> None:
    info = made_info(Status.SOLVED, status)
    wanted = rf"row 1 of 2: {status.name}: {status.sentence}; solver SOLVER; try: {failures.ADVICE[status]}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if policy == "raise":
            with pytest.raises(SolverError, match=wanted):
                failures.settle(info, policy)
        else:
            failures.settle(info, policy)
    assert [w.category for w in caught] == ([InaccurateWarning] if policy == "return" else [])


@pytest.mark.parametrize("policy", failures.POLICIES)
def test_inaccurate_rows_are_returned_with_a_warning(policy: str) -> None:
    with pytest.warns(InaccurateWarning, match="row 1 of 3: INACCURATE: .*scale the data"):
        failures.settle(made_info(Status.SOLVED, Status.INACCURATE, Status.SOLVED), policy)


def test_solved_rows_are_returned_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(box("CLARABEL"), good(), on_failure="raise")


def test_warnings_point_at_the_line_of_the_caller() -> None:
    with pytest.warns(UserWarning, match="here") as caught:
        warn("here", UserWarning)
    assert caught[0].filename == __file__


# ---- a gradient that is not an ordinary one ----

KINKS = {
    "half-line": (lambda x, p: (cp.sum_squares(x - p), [x >= 0]), [0.0, 1.0], [1.0, -2.0]),
    "soft threshold": (lambda x, p: (cp.sum_squares(x - p) / 2 + cp.norm1(x), []), [2.0, 1.0], [0.5, 3.0]),
    "ball": (lambda x, p: (cp.sum_squares(x - p), [cp.norm(x) <= 1]), [0.0, 1.0], [0.1, 0.2]),
}


@pytest.mark.parametrize("kink", KINKS)
def test_a_kink_is_named_and_its_derivative_lies_between_the_sides(kink: str) -> None:
    build, at, regular = KINKS[kink]
    x, p = cp.Variable(2), cp.Parameter(2)
    objective, constraints = build(x, p)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(objective), constraints), [p], [x])
    value = torch.tensor([regular, at, regular], dtype=torch.float64, requires_grad=True)

    def jacobian(value: torch.Tensor) -> torch.Tensor:
        (out,) = layer(value)
        return torch.stack([torch.autograd.grad(out[..., k].sum(), value, retain_graph=True)[0] for k in range(2)], dim=-2)

    with pytest.warns(GradientWarning, match="gradient of row 1 of 3: .*kink") as caught:
        first = jacobian(value)
    assert all(w.filename == __file__ for w in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        assert torch.equal(first, jacobian(value))
        sides = [jacobian((value + 1e-3 * torch.tensor(step)).detach().requires_grad_()) for step in ([1.0, 1.0], [-1.0, -1.0])]
    low, high = (torch.stack(sides).amin(0)[1], torch.stack(sides).amax(0)[1])
    # Between the one-sided derivatives, each taken 1e-3 away and so off by about as much.
    assert ((first[1] >= low - 5e-3) & (first[1] <= high + 5e-3)).all()


DEGENERATE = {
    "tied linear program": lambda x, p: (p @ x, [cp.sum(x) == 1, x >= 0]),
    "no objective": lambda x, p: (0, [x >= p, x <= p + 1]),
    "redundant constraints": lambda x, p: (cp.sum_squares(x - p), [x <= 0, 2 * x <= 0, cp.sum(x) <= 0]),
    "rank-deficient objective": lambda x, p: (cp.square(x[0] + x[1] - p[0] - p[1]), []),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_problems_have_a_finite_repeatable_gradient(name: str, solver: str) -> None:
    x, p = cp.Variable(2), cp.Parameter(2)
    objective, constraints = DEGENERATE[name](x, p)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(objective), constraints), [p], [x], solver=solver)
    outcomes = [call(layer, [np.ones((3, 2))], on_failure="raise") for _ in range(2)]
    assert np.isfinite(outcomes[0][0][0]).all() and np.isfinite(outcomes[0][1][0]).all()
    assert_rows_equal([0, 1, 2], *outcomes)
    np.testing.assert_array_equal(outcomes[0][0][0][0], outcomes[0][0][0][2])


# ---- nothing is left behind ----


def counted(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def test_memory_and_threads_stay_flat_over_failing_calls() -> None:
    values = spoiled("lower", 1, 2.0)

    def work(calls: int) -> None:
        for k in range(calls):
            try:
                (x, y), _ = box("CLARABEL")(
                    *(torch.tensor(v, requires_grad=True) for v in values),
                    on_failure="raise" if k % 2 else "nan",
                    return_info=True,
                    solver_args={"n_jobs_forward": 2} if k % 4 else None,
                )
                (x.sum() + y.sum()).backward()
            except SolverError:
                pass

    work(100)
    threads, kernel_threads, memory = threading.active_count(), counted("Threads"), counted("VmRSS")
    work(1000)
    assert threading.active_count() == threads
    patience = time.monotonic() + 2
    while counted("Threads") > kernel_threads and time.monotonic() < patience:  # a joined thread may still be on its way out
        time.sleep(0.01)
    assert counted("Threads") <= kernel_threads
    assert counted("VmRSS") - memory < 4096  # kB: room for the allocator; 4 kB a call, about what one call holds, would come to 4000
