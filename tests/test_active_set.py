"""ACTIVE_SET: what it promises beyond the table of solvers. Rows that do not know each other, shared factors, certificates, odd shapes."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment

from cvxlayers.cones import NonNegative, Product, Zero
from cvxlayers.conic import ConicLayer
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, take
from cvxlayers.solvers import find, get
from cvxlayers.solvers.scaling import even
from tests.families import batch
from tests.test_interior import rows_of, same
from tests.test_solvers import dense, falling, farkas, feasible, residual, row, values

EQUATIONS = 3


def solve(pattern, program, **options):
    return get("ACTIVE_SET", options or None, pattern)[0].solve(pattern, program)


def mixed(rows=64):
    """Solvable rows, and one in seven each without a feasible point, unbounded and not finite; quadratic and linear objectives."""
    pattern, program, _ = feasible("linear", True, rows=rows)
    program = rows_of(program, np.arange(rows))
    program.P[::3] = 0.0
    program.A[1::7], program.b[1::7] = 0.0, -1.0
    program.P[3::7], program.A[3::7], program.b[3::7] = 0.0, 0.0, 0.0
    program.q[5::7, 2] = np.nan
    return pattern, program


def random(rng, kind):
    """A random program, and infeasible or unbounded ones among them."""
    n = int(rng.integers(2, 25))
    m = int(rng.integers(1, 3 * n))
    equations = int(rng.integers(0, max(1, min(n, m) // 2)))
    A, q, P = rng.standard_normal((m, n)), rng.standard_normal(n), np.zeros((n, n))
    if not kind.startswith("linear"):
        F = rng.standard_normal((max(1, n // 2) if kind in ("singular", "any") else n, n))
        P = F.T @ F
    b = A @ rng.standard_normal(n) + np.r_[np.zeros(equations), rng.random(m - equations)]
    if kind == "any":
        b = rng.standard_normal(m)
    if kind in ("linear", "singular", "any", "linear_columns") and rng.random() < 0.7:
        A, b = np.vstack([A, np.eye(n), -np.eye(n)]), np.r_[b, np.full(2 * n, 5.0)]
    if kind == "rows":
        size = 10.0 ** rng.uniform(-4, 4, len(b))
        A, b = A * size[:, None], b * size
    if kind.endswith("columns"):
        size = 10.0 ** rng.uniform(-4, 4, n)
        A, P, q = A * size, P * size * size[:, None], q * size
    if kind == "repeated":
        A, b = np.vstack([A, A[equations:], A[equations:]]), np.r_[b, b[equations:], b[equations:] + 1.0]
    return row(P, q, A, b, Product((Zero(equations), NonNegative(len(b) - equations))))


FAMILIES = ("linear", "quadratic", "singular", "any", "rows", "columns", "linear_columns", "repeated")


@pytest.mark.parametrize("kind", FAMILIES)
def test_agrees_with_interior_points(kind):
    """The same status as Clarabel, and its objective to 1e-9."""
    rng, failed = np.random.default_rng(FAMILIES.index(kind)), 0
    for _ in range(60):
        pattern, program = random(rng, kind)
        ours, theirs = solve(pattern, program), get("CLARABEL", {"eps": 1e-11}, pattern)[0].solve(pattern, program)
        assert ours.status[0] == (0 if theirs.status[0] == Status.INACCURATE else theirs.status[0])
        failed += ours.status[0] > 0
        if ours.status[0] == Status.SOLVED:
            P, q, _, _ = dense(pattern, program, 0)
            value, other = (q @ x + 0.5 * x @ P @ x for x in (ours.x[0], theirs.x[0]))
            assert abs(value - other) < 1e-9 * (1 + abs(other))
            assert residual(pattern, program, ours, 0) < 1e-9
    assert failed > 3 or kind not in ("linear", "singular", "any")


def test_rows_are_the_same_in_any_company():
    """Bitwise: in every batch size and order, on one thread or two, between rows that fail."""
    pattern, program = mixed(512)
    whole = solve(pattern, program, n_jobs_forward=1)
    assert set(whole.status) == {Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE, Status.NUMERICAL_ERROR}
    assert np.isnan(whole.x[whole.status > 1]).all() and np.isfinite(whole.x[whole.status == 0]).all()
    assert same(whole, solve(pattern, program, n_jobs_forward=2), range(512))
    for rows in (0, 1, 7, 8, 9):
        assert same(solve(pattern, rows_of(program, slice(3, 3 + rows))), whole, range(rows), range(3, 3 + rows))
    order = np.random.default_rng(0).permutation(512)
    assert same(solve(pattern, rows_of(program, order)), whole, range(512), order)
    for i in range(512):
        assert whole.status[i] > 0 or residual(pattern, program, whole, i) < 1e-12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_fork_in_between():
    code = """
import os, sys
sys.path.insert(0, os.getcwd())
from tests.test_active_set import mixed, same, solve
pattern, program = mixed()
before = solve(pattern, program, n_jobs_forward=2)
child = os.fork()
if not child:
    os._exit(0 if same(solve(pattern, program, n_jobs_forward=2), before, range(64)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert same(solve(pattern, program, n_jobs_forward=2), before, range(64))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("quadratic", [False, True])
def test_rows_that_share_their_matrices(quadratic):
    """P and A given once for all rows are the same as copies, also between calls with other matrices."""
    pattern, program, _ = feasible("linear", quadratic, rows=9)
    P, A = np.broadcast_to(program.P[:1], program.P.shape), np.broadcast_to(program.A[:1], program.A.shape)
    shared = ConeProgram(P, program.q, A, program.b)
    first = solve(pattern, shared)
    solve(pattern, program)
    assert same(first, solve(pattern, rows_of(shared, np.arange(9))), range(9))
    assert same(first, solve(pattern, shared, n_jobs_forward=2), range(9))


@pytest.mark.parametrize("where", ["P", "q", "A", "b"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300])
def test_nonsense_in_any_place(where, value):
    pattern, program, _ = feasible("linear", True)
    broken = rows_of(program, np.arange(3))
    getattr(broken, where)[1, 0] = value
    solution = solve(pattern, broken)
    assert np.isfinite(value) or solution.status[1] == Status.NUMERICAL_ERROR
    assert np.isfinite(solution.x[1]).all() == Status(solution.status[1]).ok
    assert same(solution, solve(pattern, program), [0, 2])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 33])
@pytest.mark.parametrize("quadratic", [False, True])
def test_sizes_around_whole_vectors(n, quadratic):
    """A box in n variables, whose solution is known; and no constraint at all."""
    rng = np.random.default_rng(n)
    c, weight = rng.standard_normal(n), rng.uniform(1, 2, n) * quadratic
    box = np.vstack([np.eye(n), -np.eye(n)])
    pattern, program = row(np.diag(weight), -weight * c if quadratic else -c, box, np.full(2 * n, 0.5), Product((NonNegative(2 * n),)))
    np.testing.assert_allclose(solve(pattern, program).x[0], np.clip(c, -0.5, 0.5) if quadratic else 0.5 * np.sign(c), atol=1e-15)
    free, objective = row(np.diag(weight), -weight * c if quadratic else -c, np.zeros((0, n)), [], Product(()))
    found = solve(free, objective)
    assert found.y.shape == found.s.shape == (1, 0)
    if quadratic:
        np.testing.assert_allclose(found.x[0], c, rtol=1e-14)
    else:
        assert found.status[0] == Status.DUAL_INFEASIBLE


def test_equations_alone_and_twice():
    rng = np.random.default_rng(0)
    A, x, F = rng.standard_normal((3, 6)), rng.standard_normal(6), rng.standard_normal((6, 6))
    doubled = np.vstack([A, A.sum(axis=0), 2 * A])
    for right, status in ((doubled @ x, Status.SOLVED), (doubled @ x + np.eye(7)[4], Status.PRIMAL_INFEASIBLE)):
        pattern, program = row(F @ F.T, rng.standard_normal(6), doubled, right, Product((Zero(7),)))
        solution = solve(pattern, program)
        assert solution.status[0] == status
        assert status or residual(pattern, program, solution, 0) < 1e-13


def test_rows_of_zeros():
    """0'x <= b is nothing where b >= 0 and a contradiction elsewhere; 0'x = b likewise."""
    for zero, b, status in ((0, 1.0, 0), (0, 0.0, 0), (0, -1.0, 2), (1, 0.0, 0), (1, 1.0, 2)):
        A = np.vstack([np.zeros(2), -np.eye(2)])
        pattern = Pattern.of(np.eye(2), np.ones((3, 2)), Product((Zero(zero), NonNegative(3 - zero))))
        program = values(pattern, np.eye(2)[None], np.array([[1.0, -1.0]]), A[None], np.array([[b, 0.0, 0.0]]))
        solution = solve(pattern, program)
        assert solution.status[0] == status
        assert status or np.abs(solution.x[0] - [0.0, 1.0]).max() < 1e-15


def test_degenerate_programs_do_not_cycle():
    """Beale's example, an assignment problem of order nine, and a cube of Klee and Minty."""
    A = np.array([[0.25, -60, -1 / 25, 9], [0.5, -90, -1 / 50, 3], [0, 0, 1, 0]])
    cases: list[tuple] = [(np.r_[-0.75, 150, -0.02, 6], np.vstack([A, -np.eye(4)]), np.r_[0, 0, 1, np.zeros(4)], 0, -0.05)]
    k = 9
    cost = np.random.default_rng(0).integers(0, 4, (k, k)).astype(float)
    rows, columns = np.kron(np.eye(k), np.ones(k)), np.kron(np.ones(k), np.eye(k))
    best = cost[linear_sum_assignment(cost)].sum()
    cases.append((cost.reshape(-1), np.vstack([rows, columns, -np.eye(k * k)]), np.r_[np.ones(2 * k), np.zeros(k * k)], 2 * k, best))
    k = 8
    cube = np.eye(k) + np.tril(2.0 ** (np.subtract.outer(np.arange(k), np.arange(k)) + 1), -1)
    cases.append(
        (-(2.0 ** np.arange(k - 1, -1, -1)), np.vstack([cube, -np.eye(k)]), np.r_[5.0 ** np.arange(1, k + 1), np.zeros(k)], 0, -(5.0**k))
    )
    for q, A, b, equations, value in cases:
        n = len(q)
        pattern, program = row(np.zeros((n, n)), q, A, b, Product((Zero(equations), NonNegative(len(b) - equations))))
        solution = solve(pattern, program)
        assert solution.status[0] == Status.SOLVED and residual(pattern, program, solution, 0) < 1e-12
        assert abs(q @ solution.x[0] - value) < 1e-10 * abs(value)


@pytest.mark.parametrize("make, status", [(farkas, Status.PRIMAL_INFEASIBLE), (falling, Status.DUAL_INFEASIBLE)])
def test_what_has_no_solution_at_any_scale(make, status):
    rng = np.random.default_rng(17)
    for _ in range(60):
        pattern, program = make(rng)
        height, length = 10.0 ** rng.uniform(-6, 6, 2)
        scaled = ConeProgram(program.P * height, program.q * height * length, program.A, program.b * length)
        assert solve(pattern, scaled).status[0] == status


def test_active_rows_have_no_slack():
    pattern, program, _ = feasible("linear", True, rows=20)
    solution = solve(pattern, program)
    y, s = solution.y, solution.s
    assert (s[:, :EQUATIONS] == 0).all() and (y * s == 0).all() and (s >= 0).all() and (y[:, EQUATIONS:] >= 0).all()
    assert ((y[:, EQUATIONS:] > 0).sum(axis=1) + EQUATIONS <= pattern.n).all()


def test_a_loose_tolerance_is_obeyed():
    pattern, program, _ = feasible("linear", True, rows=20)
    loose, tight = solve(pattern, program, eps=1e-2), solve(pattern, program)
    assert (loose.iterations <= tight.iterations).all() and (loose.status == Status.SOLVED).all()
    assert max(residual(pattern, program, loose, i) for i in range(20)) < 1e-1


def test_through_a_layer():
    pattern, program, _ = feasible("linear", True, rows=4)
    found = {}
    for name in ("ACTIVE_SET", "CLARABEL"):
        found[name], info = ConicLayer(pattern, solver=name)(*vars(program).values(), return_info=True)
        assert info.solver == name and (info.status == Status.SOLVED).all()
    for ours, theirs in zip(found["ACTIVE_SET"][::2], found["CLARABEL"][::2], strict=True):  # y is not unique
        np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_only_linear_constraints():
    with pytest.raises(ValueError, match="'ACTIVE_SET' cannot handle SecondOrder cones; try 'CLARABEL'"):
        get("ACTIVE_SET", None, feasible("second_order", True)[0])
    assert find("active_set").cones == find("DAQP").cones


def test_many_bounds_on_few_variables():
    """Sparse rows at every place of the vectors: bounds in a shuffled order."""
    rng = np.random.default_rng(4)
    n = 21
    A = sp.csc_matrix(sp.vstack([sp.eye(n), -sp.eye(n)]).tocsr()[rng.permutation(2 * n)])
    F = rng.standard_normal((n, n))
    pattern, program = row(F @ F.T, rng.standard_normal(n), A.toarray(), np.full(2 * n, 0.05), Product((NonNegative(2 * n),)))
    sparse = Pattern.of(np.ones((n, n)), A, Product((NonNegative(2 * n),)))
    same_program = ConeProgram(program.P, program.q, A.data[None], program.b)
    a, b = solve(pattern, program), solve(sparse, same_program)
    assert a.x.tobytes() == b.x.tobytes() and residual(sparse, same_program, b, 0) < 1e-13


@pytest.mark.parametrize("family", ["linear", "quadratic"])
def test_rows_in_units_far_apart_take_a_second_attempt_in_even_ones(family: str) -> None:
    """Units from 1e-4 to 1e4: rows that one attempt leaves reach the known optimum, bitwise as they do alone."""
    left = solved = 0
    for number in (1, 4, 5, 13, 20, 21, 22):
        pattern, program, optimum = batch(family, (3, 8, 20)[number % 3], True, np.random.default_rng([7, family == "quadratic", number]))
        layer = ConicLayer(pattern, solver="ACTIVE_SET")
        solution, info = layer.solve(program, (len(program.q),))
        good = info.status == Status.SOLVED
        np.testing.assert_allclose(info.objective[good], optimum[good], rtol=1e-7, atol=1e-7)
        solver: Any = layer.solver
        again = np.flatnonzero(solver._attempt(pattern, program).status != Status.SOLVED)
        for k in again:
            alone, _ = layer.solve(take(program, slice(k, k + 1)), (1,))
            for name in ("x", "y", "s", "iterations"):
                np.testing.assert_array_equal(getattr(alone, name)[0], getattr(solution, name)[k])
        left, solved = left + len(again), solved + int(good.sum())
    assert left and solved >= 69  # of 70


def test_even_units_are_undone_exactly() -> None:
    pattern, program, _ = batch("quadratic", 8, True, np.random.default_rng(1))
    products = ConicLayer(pattern, solver="ACTIVE_SET").kkt.products
    scaled, f, e = even(products, program)
    largest = np.maximum(products.A_columns.reduce(abs(scaled.A), np.maximum), products.P_columns.reduce(abs(scaled.P), np.maximum))
    assert (largest < 4).all() and (np.log2(f) % 1 == 0).all() and (np.log2(e) % 1 == 0).all()
    x = np.random.default_rng(2).standard_normal(program.q.shape)
    np.testing.assert_array_equal(products.A(scaled.A, x / f) - scaled.b, e * (products.A(program.A, x) - program.b))
