"""Every solver against the laws of `cvxlayers.solvers.base`: one table of solvers, one of programs, crossed with properties."""

import inspect
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp

from cvxlayers.cones import Exponential, NonNegative, Power, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers import REGISTRY, choose, find, get, named
from cvxlayers.solvers.base import map_rows
from cvxlayers.solvers.layout import lower_triangle

# name, relative KKT residual it reaches with its defaults, error of x on programs with strong convexity
SOLVERS = [
    ("CLARABEL", 2e-8, 1e-5),
    ("SCS", 1e-8, 1e-5),
    ("ECOS", 1e-9, 1e-5),
    ("DIFFCP", 1e-8, 1e-5),
    ("DAQP", 1e-11, 1e-9),
    ("MOREAU", 2e-8, 1e-5),
    ("INTERIOR", 1e-8, 1e-5),
    ("ACTIVE_SET", 1e-11, 1e-9),
]
NAMES = [name for name, _, _ in SOLVERS]

CONES = {
    "equations": (Zero(4),),
    "linear": (Zero(3), NonNegative(12)),
    "second_order": (Zero(2), NonNegative(4), SecondOrder(1), SecondOrder(2), SecondOrder(3), SecondOrder(6)),
    "semidefinite": (NonNegative(2), Semidefinite(1), Semidefinite(4), Semidefinite(5)),
    "exponential": (Zero(1), NonNegative(2), Exponential(), Exponential(), Exponential()),
    "power": (NonNegative(2), Power(0.3), Power(0.6)),
    "socp_exp": (Zero(2), NonNegative(3), SecondOrder(3), SecondOrder(4), Exponential(), Exponential()),
    "all": (Zero(1), NonNegative(2), SecondOrder(3), SecondOrder(4), Semidefinite(4), Semidefinite(2), Exponential(), Power(0.25)),
}


def row(P, q, A, b, cone):
    """A pattern and a program of one row from dense arrays."""
    n, m = len(q), len(b)
    P, A = np.asarray(P, dtype=float).reshape(n, n), np.asarray(A, dtype=float).reshape(m, n)
    pattern = Pattern.of(sp.csc_matrix(P), sp.csc_matrix(A), cone)
    return pattern, values(pattern, P[None], np.asarray(q, float)[None], A[None], np.asarray(b, float)[None])


def values(pattern, P, q, A, b):
    """The program of stacked dense matrices."""
    P, A = P[:, pattern.P_indices, pattern.P_columns], A[:, pattern.A_indices, pattern.A_columns]
    return ConeProgram(*(np.ascontiguousarray(part, dtype=float) for part in (P, q, A, b)))


def dense(pattern, program, i):
    P = sp.csc_matrix((program.P[i], pattern.P_indices, pattern.P_indptr), shape=(pattern.n, pattern.n)).toarray()
    A = sp.csc_matrix((program.A[i], pattern.A_indices, pattern.A_indptr), shape=(pattern.m, pattern.n)).toarray()
    return P + np.triu(P, 1).T, program.q[i], A, program.b[i]


@cache
def feasible(kind, quadratic, rows=3, n=7, seed=0):
    """Random programs with a known optimal point: any v splits into s = Pi_K(v) and y = s - v, which are complementary."""
    rng = np.random.default_rng(seed)
    cone = Product(CONES[kind])
    m = cone.dim
    A, x, v = rng.standard_normal((rows, m, n)), rng.standard_normal((rows, n)), rng.standard_normal((rows, m))
    s = cone.project(v)
    y = s - v
    F = rng.standard_normal((rows, n, n))
    P = (F @ F.transpose(0, 2, 1) / n + 0.1 * np.eye(n)) * quadratic
    pattern = Pattern.of(np.full((n, n), float(quadratic)), np.ones((m, n)), cone)
    q = -np.einsum("bij,bj->bi", P, x) - np.einsum("bmn,bm->bn", A, y)
    return pattern, values(pattern, P, q, A, np.einsum("bmn,bn->bm", A, x) + s), Solution(x, y, s)


def residual(pattern, program, solution, i):
    """The worst violation of the optimality conditions, each relative to the largest of its terms."""
    P, q, A, b = dense(pattern, program, i)
    x, y, s = solution.x[i], solution.y[i], solution.s[i]
    cone = pattern.cone
    terms = [P @ x, q, A.T @ y], [A @ x, s, -b]
    worst = [np.abs(sum(part)).max() / (1 + max(np.abs(t).max() for t in part)) for part in terms if part[0].size]
    worst.append(abs(x @ P @ x + q @ x + b @ y) / (1 + min(abs(q @ x + 0.5 * x @ P @ x), abs(b @ y + 0.5 * x @ P @ x))))
    if pattern.m:
        worst.append(np.abs(cone.project(s) - s).max() / (1 + np.abs(s).max()))
        worst.append(np.abs(cone.dual().project(y) - y).max() / (1 + np.abs(y).max()))
    return max(worst)


def able(name, pattern):
    try:
        return get(name, None, pattern)[0]
    except ValueError:
        return None


def cases():
    for name, tolerance, error in SOLVERS:
        for kind, cones in CONES.items():
            for quadratic in (False, True):
                cls = find(name)
                if {type(cone) for cone in cones} <= cls.cones and (cls.quadratic or not quadratic):
                    yield pytest.param(name, kind, quadratic, tolerance, error, id=f"{name}-{kind}-{'P' if quadratic else '0'}")


CASES = list(cases())


def test_the_table_leaves_nothing_out():
    assert set(NAMES) == set(REGISTRY)
    assert {cone for name in NAMES for cone in find(name).cones} == {type(cone) for cones in CONES.values() for cone in cones}


@pytest.mark.parametrize("name, kind, quadratic, tolerance, error", CASES)
def test_solves_random_programs(name, kind, quadratic, tolerance, error):
    if kind == "equations" and not quadratic:
        n = 4
        pattern, program, known = feasible(kind, quadratic, n=n)
    else:
        pattern, program, known = feasible(kind, quadratic)
    solution = get(name, None, pattern)[0].solve(pattern, program)
    assert solution.status.dtype == np.int8 and solution.iterations.shape == (3,)
    assert all(Status(code).ok for code in solution.status)
    for i in range(3):
        assert residual(pattern, program, solution, i) < tolerance
    if quadratic:
        assert np.abs(solution.x - known.x).max() < error
    for part in (solution.x, solution.y, solution.s):
        assert part.flags.c_contiguous and part.dtype == np.float64


@pytest.mark.parametrize(
    "name, kind, quadratic, tolerance, error", [case for case in CASES if case.values[2] or case.values[0] in ("ECOS", "DIFFCP")]
)
def test_rows_do_not_know_each_other(name, kind, quadratic, tolerance, error):
    pattern, program, _ = feasible(kind, quadratic)
    broken = ConeProgram(program.P, program.q, program.A.copy(), program.b.copy())
    broken.A[1], broken.b[1] = 0.0, -1.0  # 0'x + s = -1: no cone holds it
    solver = get(name, None, pattern)[0]
    together, beside, threaded = (
        solver.solve(pattern, program),
        solver.solve(pattern, broken),
        get(name, {"n_jobs_forward": 2}, pattern)[0].solve(pattern, program),
    )
    for i in range(3):
        alone = solver.solve(pattern, ConeProgram(*(part[i : i + 1].copy() for part in vars(program).values())))
        for part in ("x", "y", "s", "status", "iterations"):
            wanted = getattr(alone, part)[0].tobytes()
            assert getattr(together, part)[i].tobytes() == wanted
            assert getattr(threaded, part)[i].tobytes() == wanted
            assert i == 1 or getattr(beside, part)[i].tobytes() == wanted
    assert not Status(beside.status[1]).ok


@pytest.mark.parametrize("name", NAMES)
def test_batches_may_be_empty(name):
    pattern, program, _ = feasible("linear", False)
    none = get(name, None, pattern)[0].solve(pattern, ConeProgram(*(part[:0] for part in vars(program).values())))
    assert none.x.shape == (0, 7) and none.y.shape == none.s.shape == (0, 15) and none.status.shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_status_of_what_has_no_solution(name):
    infeasible = row(np.zeros((2, 2)), [1, 0], [[1, 0], [-1, 0]], [-1, -1], Product((NonNegative(2),)))
    contradiction = row(np.zeros((2, 2)), [1, 2], [[1, 0], [0, 1], [1, 1]], [1, 1, 3], Product((Zero(3),)))
    unbounded = row(np.zeros((2, 2)), [-1, -1], -np.eye(2), [0, 0], Product((NonNegative(2),)))
    line = row(np.zeros((2, 2)), [1, 2], [[1, 1]], [3], Product((Zero(1),)))
    for (pattern, program), status in [
        (infeasible, Status.PRIMAL_INFEASIBLE),
        (contradiction, Status.PRIMAL_INFEASIBLE),
        (unbounded, Status.DUAL_INFEASIBLE),
        (line, Status.DUAL_INFEASIBLE),
    ]:
        assert get(name, None, pattern)[0].solve(pattern, program).status[0] == status


@pytest.mark.parametrize("method", ["SCS", "ECOS", "CLARABEL"])
def test_status_of_diffcp_with_each_method(method):
    cone = Product((NonNegative(2),))
    for q, A, b, status in [
        ([1, 0], [[1, 0], [-1, 0]], [-1, -1], Status.PRIMAL_INFEASIBLE),
        ([-1, -1], -np.eye(2), [0, 0], Status.DUAL_INFEASIBLE),
        ([1, 1], -np.eye(2), [0, 0], Status.SOLVED),
    ]:
        pattern, program = row(np.zeros((2, 2)), q, A, b, cone)
        assert get("DIFFCP", {"solve_method": method}, pattern)[0].solve(pattern, program).status[0] == status


LIMITS = [
    ("CLARABEL", {}),
    ("SCS", {}),
    ("ECOS", {}),
    ("DIFFCP", {}),
    ("DIFFCP", {"solve_method": "SCS"}),
    ("DAQP", {}),
    ("MOREAU", {}),
    ("INTERIOR", {}),
    ("ACTIVE_SET", {}),
]


@pytest.mark.parametrize("name, options", LIMITS)
def test_iteration_limit(name, options):
    pattern, program, _ = feasible("linear", False, n=7)
    solution = get(name, {"max_iters": 2, **options}, pattern)[0].solve(pattern, program)
    assert (solution.status == Status.ITERATION_LIMIT).all()
    assert (solution.iterations <= 3).all()


@pytest.mark.parametrize(
    "name, option", [("CLARABEL", "time_limit"), ("SCS", "time_limit_secs"), ("DAQP", "time_limit"), ("MOREAU", "time_limit")]
)
def test_time_limit(name, option):
    rng = np.random.default_rng(0)
    n = 150
    F = rng.standard_normal((n, n))
    A = rng.standard_normal((2 * n, n))
    pattern, program = row(F @ F.T + np.eye(n), rng.standard_normal(n), A, rng.random(2 * n), Product((NonNegative(2 * n),)))
    solution = get(name, {option: 1e-6, "eps": 1e-12}, pattern)[0].solve(pattern, program)
    assert solution.status[0] == Status.TIME_LIMIT


def test_status_tables_are_complete():
    import scs

    from cvxlayers.solvers import clarabel, daqp, diffcp, ecos, moreau
    from cvxlayers.solvers import scs as ours

    members = {name for name in dir(clarabel.clarabel.SolverStatus) if name[0].isupper()}
    assert set(clarabel.STATUS) == members
    assert set(moreau.STATUS) == {word.name for word in moreau.moreau.SolverStatus}
    codes = {code for word, code in vars(scs).items() if word.isupper() and isinstance(code, int)}
    assert {scs.SOLVED, scs.FAILED} < codes == set(ours.STATUS) | {ours.INTERRUPTED}
    # ECOS: ecos.h, offset 10 for inaccurate; DAQP: its page of parameters
    assert set(ecos.STATUS) | {ecos.INTERRUPTED} == {0, 1, 2, 10, 11, 12, -1, -2, -3, -4, -7}
    assert set(daqp.STATUS) == {2, 1, -1, -2, -3, -4, -5, -6, -7, -8}
    # diffcp says no status but in its source: all words of its tables, except what it makes of a solver's success
    source = inspect.getsource(diffcp.solve_internal)
    tables = re.findall(r"STATUS\w* = \{(.*?)\}", source, re.DOTALL)
    words = {word for table in tables for word in re.findall(r": *\"([^\"]+)\"", table)} | set(re.findall(r", \"(Failure)\"\)", source))
    words |= {word for table in tables for word in re.findall(r": *'([^']+)'", table)}
    assert {"Solved", "Infeasible", "Failure"} < words
    assert words <= set(diffcp.STATUS)


def test_every_status_of_scs():
    from cvxlayers.solvers.scs import INTERRUPTED, status_of

    assert status_of(1, "solved") == Status.SOLVED
    assert status_of(2, "solved (inaccurate - reached max_iters)") == Status.ITERATION_LIMIT
    assert status_of(-7, "infeasible (inaccurate - reached time_limit_secs)") == Status.TIME_LIMIT
    assert status_of(-7, "infeasible (inaccurate)") == Status.PRIMAL_INFEASIBLE
    assert status_of(99, "new word") == Status.NUMERICAL_ERROR
    with pytest.raises(KeyboardInterrupt):
        status_of(INTERRUPTED, "interrupted")


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_is_a_status(name):
    """Contract: what is above keeps NaN away; should one come through, it is not called solved."""
    pattern, program = row(np.zeros((2, 2)), [np.nan, 1], -np.eye(2), [0, 0], Product((NonNegative(2),)))
    assert not Status(get(name, None, pattern)[0].solve(pattern, program).status[0]).ok


# closed forms


@pytest.mark.parametrize("name", ["CLARABEL", "SCS", "DAQP", "MOREAU", "INTERIOR", "ACTIVE_SET"])
def test_projection_on_the_simplex(name):
    rng = np.random.default_rng(1)
    c = rng.standard_normal(6)
    A = np.vstack([np.ones(6), -np.eye(6)])
    pattern, program = row(np.eye(6), -c, A, np.r_[1.0, np.zeros(6)], Product((Zero(1), NonNegative(6))))
    x = get(name, None, pattern)[0].solve(pattern, program).x[0]
    u = np.sort(c)[::-1]
    k = np.flatnonzero(u * np.arange(1, 7) > np.cumsum(u) - 1)[-1]
    np.testing.assert_allclose(x, np.maximum(c - (np.cumsum(u)[k] - 1) / (k + 1), 0), atol=1e-8)


@pytest.mark.parametrize("name", ["CLARABEL", "SCS", "MOREAU", "INTERIOR"])
@pytest.mark.parametrize("kind", ["second_order", "semidefinite", "exponential", "power", "all"])
def test_projection_on_a_cone(name, kind):
    cone = Product(CONES[kind])
    c = np.random.default_rng(2).standard_normal(cone.dim)
    pattern, program = row(np.eye(cone.dim), -c, -np.eye(cone.dim), np.zeros(cone.dim), cone)
    solution = get(name, None, pattern)[0].solve(pattern, program)
    np.testing.assert_allclose(solution.x[0], cone.project(c), atol=2e-5)
    np.testing.assert_allclose(solution.s[0], cone.project(c), atol=2e-5)
    np.testing.assert_allclose(solution.y[0], cone.project(c) - c, atol=2e-5)


@pytest.mark.parametrize("name", ["CLARABEL", "SCS", "DIFFCP", "MOREAU", "INTERIOR"])
@pytest.mark.parametrize("orders", [(4,), (5, 4), (4, 2, 6)])
def test_smallest_eigenvalues(name, orders):
    """minimize tr(C X), tr X = 1, X >= 0 per block: X = v v', the multiplier C - lambda I; a wrong packing shows at order four."""
    rng = np.random.default_rng(3)
    packs, x, y = [], [], []
    for order in orders:
        C = rng.standard_normal((order, order))
        C = C + C.T
        lam, V = np.linalg.eigh(C)
        pack = lambda S, o=order: (S * np.where(np.eye(o, dtype=bool), 1, np.sqrt(2))).T[np.tril_indices(o)]  # noqa: E731
        packs.append((pack(C), pack(np.eye(order))))
        x.append(pack(np.outer(V[:, 0], V[:, 0])))
        y.append(pack(C - lam[0] * np.eye(order)))
    n = sum(map(len, x))
    traces = np.zeros((len(orders), n))
    start = 0
    for k, (_, identity) in enumerate(packs):
        traces[k, start : start + len(identity)] = identity
        start += len(identity)
    cone = Product((Zero(len(orders)), *map(Semidefinite, orders)))
    A, b = np.vstack([traces, -np.eye(n)]), np.r_[np.ones(len(orders)), np.zeros(n)]
    pattern, program = row(np.zeros((n, n)), np.concatenate([pack for pack, _ in packs]), A, b, cone)
    solution = get(name, None, pattern)[0].solve(pattern, program)
    np.testing.assert_allclose(solution.x[0], np.concatenate(x), atol=1e-6)
    np.testing.assert_allclose(solution.s[0][len(orders) :], np.concatenate(x), atol=1e-6)
    np.testing.assert_allclose(solution.y[0][len(orders) :], np.concatenate(y), atol=1e-6)


@pytest.mark.parametrize(
    "name, options",
    [("CLARABEL", {}), ("SCS", {}), ("ECOS", {}), ("DIFFCP", {}), ("DIFFCP", {"solve_method": "ECOS"}), ("MOREAU", {}), ("INTERIOR", {})],
)
def test_exponentials(name, options):
    """minimize sum z_i with (a_i, c_i, z_i) in the exponential cone: z = c exp(a / c); its rows are all different."""
    a, c = np.array([0.3, -1.0, 0.8]), np.array([1.0, 2.0, 0.5])
    A, b = np.zeros((9, 3)), np.zeros(9)
    A[2::3] = -np.eye(3)
    b[0::3], b[1::3] = a, c
    pattern, program = row(np.zeros((3, 3)), np.ones(3), A, b, Product((Exponential(),) * 3))
    solution = get(name, options, pattern)[0].solve(pattern, program)
    z = c * np.exp(a / c)
    np.testing.assert_allclose(solution.x[0], z, atol=1e-7)
    np.testing.assert_allclose(solution.s[0].reshape(3, 3), np.stack([a, c, z], 1), atol=1e-7)
    np.testing.assert_allclose(solution.y[0].reshape(3, 3), np.stack([-z / c, -z / c * (1 - a / c), np.ones(3)], 1), rtol=3e-4)


@pytest.mark.parametrize("name", ["CLARABEL", "SCS", "MOREAU", "INTERIOR"])
def test_powers(name):
    """maximize z_1 + z_2 with (2, 3, z) in the power cone of a: z = 2^a 3^(1 - a)."""
    alphas = np.array([0.3, 0.8])
    A, b = np.zeros((6, 2)), np.array([2.0, 3.0, 0.0] * 2)
    A[2, 0] = A[5, 1] = -1
    pattern, program = row(np.zeros((2, 2)), -np.ones(2), A, b, Product(tuple(Power(float(a)) for a in alphas)))
    solution = get(name, None, pattern)[0].solve(pattern, program)
    np.testing.assert_allclose(solution.x[0], 2**alphas * 3 ** (1 - alphas), atol=1e-7)


@pytest.mark.parametrize("name", ["CLARABEL", "SCS", "ECOS", "DIFFCP", "INTERIOR"])
def test_linear_objective_on_a_ball(name):
    q = np.array([3.0, -4.0, 12.0])
    A, b = np.vstack([np.zeros(3), -np.eye(3)]), np.array([1.0, 0, 0, 0])
    pattern, program = row(np.zeros((3, 3)), q, A, b, Product((SecondOrder(4),)))
    solution = get(name, None, pattern)[0].solve(pattern, program)
    np.testing.assert_allclose(solution.x[0], -q / 13, atol=1e-6)
    np.testing.assert_allclose(solution.y[0], np.r_[13, q], atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "second_order", "semidefinite", "exponential", "socp_exp"])
def test_solvers_agree_on_linear_objectives(kind):
    pattern, program, known = feasible(kind, False, seed=5)
    best = np.einsum("bi,bi->b", program.q, known.x)
    for name in NAMES:
        solver = able(name, pattern)
        if solver is not None:
            np.testing.assert_allclose(np.einsum("bi,bi->b", program.q, solver.solve(pattern, program).x), best, atol=2e-7)


# small and odd shapes


SHAPES = {
    "no rows, convex": (np.diag([1.0, 2.0]), [1, 2], np.zeros((0, 2)), [], (), [-1, -1]),
    "no rows, nothing to do": (np.zeros((2, 2)), [0, 0], np.zeros((0, 2)), [], (), None),
    "no rows, unbounded": (np.zeros((2, 2)), [1, 0], np.zeros((0, 2)), [], (), Status.DUAL_INFEASIBLE),
    "no rows, singular and unbounded": (np.diag([1.0, 0.0]), [1, 1], np.zeros((0, 2)), [], (), Status.DUAL_INFEASIBLE),
    "one variable": ([[1.0]], [1], [[-1]], [0], (NonNegative(1),), [0]),
    "equations only": (np.zeros((2, 2)), [1, 2], np.eye(2), [3, 4], (Zero(2),), [3, 4]),
    "empty cones": (np.zeros((2, 2)), [1, 1], -np.eye(2), [0, 0], (Zero(0), NonNegative(2), NonNegative(0)), [0, 0]),
    "split cones": (np.zeros((2, 2)), [1, 1], -np.eye(2), [0, -1], (NonNegative(1), NonNegative(1)), [0, 1]),
    "a column of zeros": (np.zeros((2, 2)), [1, 0], [[-1, 0]], [0], (NonNegative(1),), None),
    "a row of zeros": (np.zeros((2, 2)), [1, 1], [[-1, 0], [0, -1], [0, 0]], [0, 0, 1], (NonNegative(3),), [0, 0]),
    "0 <= -1": (np.zeros((2, 2)), [1, 1], [[-1, 0], [0, -1], [0, 0]], [0, 0, -1], (NonNegative(3),), Status.PRIMAL_INFEASIBLE),
    "0 = 0": (np.zeros((2, 2)), [1, 0], [[0, 0], [-1, 0]], [0, 0], (Zero(1), NonNegative(1)), None),
    "0 = 1": (np.zeros((2, 2)), [1, 0], [[0, 0], [-1, 0]], [1, 0], (Zero(1), NonNegative(1)), Status.PRIMAL_INFEASIBLE),
    "only zeros": (np.zeros((2, 2)), [0, 0], np.zeros((2, 2)), [0, 1], (Zero(1), NonNegative(1)), None),
}


@pytest.mark.parametrize(
    "name, shape", [(name, shape) for name in NAMES for shape, (P, *_) in SHAPES.items() if find(name).quadratic or not np.any(P)]
)
def test_odd_shapes(name, shape):
    P, q, A, b, cones, wanted = SHAPES[shape]
    pattern, program = row(P, q, A, b, Product(cones))
    solver = get(name, None, pattern)[0]
    solution = solver.solve(pattern, program)
    if isinstance(wanted, Status):
        assert solution.status[0] == wanted
    else:
        assert solution.status[0] == Status.SOLVED
        assert residual(pattern, program, solution, 0) < 1e-8
        if wanted is not None:
            np.testing.assert_allclose(solution.x[0], wanted, atol=1e-7)


# the active set, on what active sets fear


def optimal(rng, kind):
    """A program made optimal at a chosen point: degenerate, singular, redundant or badly scaled as ``kind`` says."""
    n = int(rng.integers(2, 12))
    equations, m = int(rng.integers(0, n // 2 + 1)), int(rng.integers(n, 3 * n))
    whole = kind in ("integer", "integer_singular")
    draw = (lambda *shape: rng.integers(-2, 3, shape).astype(float)) if whole else (lambda *shape: rng.standard_normal(shape))
    A, x = draw(equations + m, n), draw(n)
    F = draw(n, int(rng.integers(1, n)))
    P = F @ F.T if kind in ("singular", "integer_singular", "redundant", "bound") else np.zeros((n, n))
    if kind == "diagonal":
        P = np.diag(np.where(rng.random(n) < 0.5, 0.0, rng.random(n)))
    active = rng.random(m) < (0.7 if kind == "degenerate" else 0.4)
    s = np.where(active, 0.0, 1.0 + rng.integers(0, 2, m) if whole else rng.random(m))
    y = np.r_[draw(equations), np.where(active, rng.integers(0, 3, m) if whole else rng.random(m), 0.0)]
    b, q = A @ x + np.r_[np.zeros(equations), s], -P @ x - A.T @ y
    if kind == "redundant":
        mix, double, times = rng.standard_normal((2, equations)), rng.integers(0, m, 4), 0.1 + 3 * rng.random(4)
        more, limits = times[:, None] * A[equations + double], times * b[equations + double]
        A = np.vstack([A[:equations], mix @ A[:equations], A[equations:], more])
        b = np.concatenate([b[:equations], mix @ b[:equations], b[equations:], limits])
        equations += 2
    if kind == "bound":
        A, b = np.vstack([A, np.eye(n), -np.eye(n)]), np.concatenate([b, np.full(2 * n, 1e6)])
    if kind == "rows":
        size = 10.0 ** rng.uniform(-3, 3, len(b))
        A, b = A * size[:, None], b * size
    if kind == "large":
        b, q = 1e5 * b, 1e5 * q
    if kind == "tiny":
        b, q = 1e-5 * b, 1e-5 * q
    return row(P, q, A, b, Product((Zero(equations), NonNegative(len(b) - equations)))), q @ x + 0.5 * x @ P @ x


HARD = ("integer", "degenerate", "singular", "integer_singular", "diagonal", "redundant", "bound", "rows", "large", "tiny")


ACTIVE = ("DAQP", "ACTIVE_SET")


@pytest.mark.parametrize("name", ACTIVE)
@pytest.mark.parametrize("kind", HARD)
def test_active_set_on_hard_programs(kind, name):
    rng = np.random.default_rng(HARD.index(kind))
    for _ in range(40):
        (pattern, program), _ = optimal(rng, kind)
        solution = get(name, None, pattern)[0].solve(pattern, program)
        assert solution.status[0] == Status.SOLVED
        P, q, A, b = dense(pattern, program, 0)
        x, y, s = solution.x[0], solution.y[0], solution.s[0]
        for terms in ([P @ x, q, A.T @ y], [A @ x, s, -b]):
            assert np.abs(sum(terms)).max() <= 1e-9 * max(np.abs(term).max() for term in terms) + 1e-14
        assert (s >= 0).all() and (y * s == 0).all() and (y[pattern.cone.cones[0].dim :] >= -1e-12 * np.abs(y).max()).all()


@pytest.mark.parametrize("name", ACTIVE)
@pytest.mark.parametrize("kind", HARD[:7])
def test_active_set_agrees_with_interior_points(kind, name):
    rng = np.random.default_rng(100 + HARD.index(kind))
    for _ in range(15):
        (pattern, program), _ = optimal(rng, kind)
        P, q, _, _ = dense(pattern, program, 0)
        x, z = (get(solver, None, pattern)[0].solve(pattern, program).x[0] for solver in (name, "CLARABEL"))
        value = [q @ v + 0.5 * v @ P @ v for v in (x, z)]
        assert abs(value[0] - value[1]) < 1e-6 * (1 + abs(value[1]))
        assert np.abs(P @ (x - z)).max() < 1e-3 * (1 + np.abs(P @ z).max())  # Px is unique where x is not


def farkas(rng):
    """An infeasible program: y'A = 0, y'b < 0, y >= 0 on the inequalities."""
    n = int(rng.integers(2, 10))
    m, equations = int(rng.integers(n + 1, 3 * n)), int(rng.integers(0, n))
    A, y = rng.standard_normal((m, n)), rng.random(m) * (rng.random(m) < 0.6)
    y[:equations] = rng.standard_normal(equations)
    y[-1] = 1.0
    A[-1] = -A[:-1].T @ y[:-1]
    b = A @ rng.standard_normal(n) + np.r_[np.zeros(equations), rng.random(m - equations)]
    b -= (b @ y + rng.choice([1e-2, 1, 100])) * y / (y @ y)
    F = rng.standard_normal((n, n)) * (rng.random() < 0.5)
    return row(F @ F.T, rng.standard_normal(n), A, b, Product((Zero(equations), NonNegative(m - equations))))


def falling(rng):
    """An unbounded program: a direction d with Pd = 0, Ad = 0 on the equations, Ad <= 0 elsewhere, q'd < 0."""
    n = int(rng.integers(2, 10))
    m = int(rng.integers(1, 2 * n))
    equations = int(rng.integers(0, min(n, m)))
    d, A = rng.standard_normal(n), rng.standard_normal((m, n))
    A[:equations] -= np.outer(A[:equations] @ d, d) / (d @ d)
    A[equations:][A[equations:] @ d > 0] *= -1
    F = rng.standard_normal((n, n - 1)) * (rng.random() < 0.6)
    F -= np.outer(d, d @ F) / (d @ d)
    q = rng.standard_normal(n)
    q -= d * (q @ d + 1) / (d @ d)
    b = A @ rng.standard_normal(n) + np.r_[np.zeros(equations), rng.random(m - equations)]
    return row(F @ F.T, q, A, b, Product((Zero(equations), NonNegative(m - equations))))


@pytest.mark.parametrize("name", ACTIVE)
@pytest.mark.parametrize("make, status", [(farkas, Status.PRIMAL_INFEASIBLE), (falling, Status.DUAL_INFEASIBLE)])
def test_active_set_knows_what_has_no_solution(make, status, name):
    rng = np.random.default_rng(9)
    for _ in range(100):
        pattern, program = make(rng)
        assert get(name, None, pattern)[0].solve(pattern, program).status[0] == status


def test_polishing_returns_to_the_optimum():
    from cvxlayers.solvers.daqp import _Program

    rng = np.random.default_rng(3)
    pattern, program, known = feasible("linear", True)
    for i in range(3):
        scaled = _Program(*dense(pattern, program, i), equation=np.arange(15) < 3)
        off = known.x[i] + 1e-6 * rng.standard_normal(7), np.where(known.y[i] == 0, 0, known.y[i] * (1 + 1e-6 * rng.random(15)))
        assert scaled.error(*scaled.polished(*off)) < 1e-12 < 1e-8 < scaled.error(*off)


@pytest.mark.parametrize("name", ACTIVE)
def test_a_failed_active_set_shows_no_memory(name):
    pattern, program, _ = feasible("linear", True)
    solver = get(name, {"max_iters": 1}, pattern)[0]
    solution, again = solver.solve(pattern, program), solver.solve(pattern, program)
    assert (solution.status == Status.ITERATION_LIMIT).all()
    for part, other in zip((solution.x, solution.y, solution.s), (again.x, again.y, again.s), strict=True):
        assert np.isnan(part).all() if name == "DAQP" else np.isfinite(part).all() and part.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", ACTIVE)
def test_active_set_refuses_a_saddle(name):
    pattern, program = row(-np.eye(2), [1, 1], -np.eye(2), [0, 0], Product((NonNegative(2),)))
    assert not Status(get(name, None, pattern)[0].solve(pattern, program).status[0]).ok


def test_interior_points_fall_back_when_asked_for_too_much():
    pattern, program, _ = feasible("second_order", True, rows=40, seed=11)
    solution = get("CLARABEL", {"eps": 1e-14}, pattern)[0].solve(pattern, program)
    assert all(Status(code).ok for code in solution.status) and (solution.status == Status.INACCURATE).any()
    assert max(residual(pattern, program, solution, i) for i in range(40)) < 2e-8


# warm start


def test_warm_start_saves_iterations():
    pattern, program, _ = feasible("all", True)
    solver = get("SCS", None, pattern)[0]
    cold = solver.solve(pattern, program)
    warm = solver.solve(pattern, program, cold)
    assert (warm.iterations < 0.5 * cold.iterations).all()
    np.testing.assert_allclose(warm.x, cold.x, atol=1e-6)
    partly = Solution(cold.x.copy(), cold.y, cold.s)
    partly.x[1] = np.nan
    mixed = solver.solve(pattern, program, partly)
    assert mixed.x[1].tobytes() == cold.x[1].tobytes() and mixed.x[0].tobytes() == warm.x[0].tobytes()
    assert [name for name in NAMES if find(name).warm_start] == ["SCS"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "SCS"])
def test_others_ignore_a_start(name):
    pattern, program, known = feasible("linear", False)
    solver = get(name, None, pattern)[0]
    assert solver.solve(pattern, program, known).x.tobytes() == solver.solve(pattern, program).x.tobytes()


# choosing and options


def test_choose_by_pattern():
    def quadratic(n, m, density=1.0):
        rng = np.random.default_rng(0)
        A = sp.random_array((m, n), density=density, rng=rng)
        return Pattern.of(sp.random_array((n, n), density=density, rng=rng) + sp.eye(n), A, Product((NonNegative(m),)))

    def linear(n, m, density=1.0):
        return Pattern.of(
            np.zeros((n, n)), sp.random_array((m, n), density=density, rng=np.random.default_rng(0)), Product((NonNegative(m),))
        )

    def banded(n):
        return Pattern.of(sp.eye(n), sp.eye(n) - sp.eye(n, k=1), Product((NonNegative(n),)))

    def semidefinite(order):
        dim = order * (order + 1) // 2
        return Pattern.of(sp.eye(dim), -sp.eye(dim), Product((Semidefinite(order),)))

    assert choose(feasible("linear", True)[0]) == "ACTIVE_SET"
    assert choose(feasible("second_order", True)[0]) == choose(feasible("all", True)[0]) == "INTERIOR"
    table = {
        "ACTIVE_SET": [quadratic(100, 150), quadratic(300, 600, 0.2), quadratic(400, 100), linear(20, 60), linear(100, 200), banded(50)],
        "INTERIOR": [banded(300), banded(20000), quadratic(200, 400, 0.01), linear(100, 300, 0.1), semidefinite(30)],
        "CLARABEL": [linear(400, 600), quadratic(800, 1600, 0.1), banded(40000), semidefinite(31)],
    }
    for name, patterns in table.items():
        assert [choose(pattern) for pattern in patterns] == [name] * len(patterns)
    assert choose(Pattern.of(sp.eye(500), np.zeros((0, 500)), Product(()))) == "INTERIOR"
    assert choose(Pattern.of(np.zeros((1, 1)), np.zeros((0, 1)), Product(()))) == "ACTIVE_SET"
    for kind in CONES:
        pattern = feasible(kind, True)[0]
        solver, ignored = get(None, None, pattern)
        assert solver.name == choose(pattern) and ignored == ()


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    for spelling in (name, name.lower(), name.capitalize()):
        assert get(spelling)[0].name == name
        assert get(None, {"solve_method": spelling})[0].name == name
    assert find(name)().settings == find(name).defaults


def test_cvxpy_constants():
    import cvxpy

    for name in NAMES:
        assert get(getattr(cvxpy, name, name))[0].name == name


def test_wrong_names():
    with pytest.raises(ValueError, match="'OSQP' is not known; choose one of CLARABEL, DAQP, SCS, ECOS, DIFFCP, MOREAU, INTERIOR"):
        get("OSQP")
    with pytest.raises(ValueError, match="'MOSEK' is not known"):
        get(None, {"solve_method": "MOSEK"})
    with pytest.raises(ValueError, match="ask for different solvers"):
        get("SCS", {"solve_method": "ECOS"})
    assert named("scs", {"solve_method": "SCS"}) == "scs"
    assert get("DIFFCP", {"solve_method": "SCS"})[0].settings["solve_method"] == "SCS"


def test_what_a_solver_cannot_do():
    semidefinite, quadratic = feasible("semidefinite", False)[0], feasible("linear", True)[0]
    with pytest.raises(ValueError, match="solver 'ECOS' cannot handle Semidefinite cones; try 'CLARABEL', 'SCS', 'DIFFCP', 'MOREAU', 'INT"):
        get("ECOS", None, semidefinite)
    with pytest.raises(ValueError, match="'DAQP' cannot handle Semidefinite cones"):
        get("daqp", None, semidefinite)
    with pytest.raises(ValueError, match="'DIFFCP' cannot handle a quadratic objective; try 'CLARABEL', 'DAQP', 'SCS', 'MOREAU', 'INT"):
        get("DIFFCP", None, quadratic)
    with pytest.raises(ValueError, match="'DIFFCP' cannot handle Power cones; try 'CLARABEL', 'SCS', 'MOREAU', 'INTERIOR'$"):
        get("DIFFCP", None, feasible("power", False)[0])
    pattern, program, _ = feasible("semidefinite", False)
    for method in ("Clarabel", "ECOS"):
        with pytest.raises(ValueError, match="is wrong for Semidefinite cones of order 5; try 'SCS'"):
            get("DIFFCP", {"solve_method": method}, pattern)[0].solve(pattern, program)
    with pytest.raises(ValueError, match="solve_method 'OSQP'"):
        get("DIFFCP", {"solve_method": "OSQP"})[0].solve(pattern, program)
    with pytest.raises(ValueError, match="with solve_method 'SCS' has no option 'abstol'"):
        get("DIFFCP", {"solve_method": "SCS", "abstol": 1e-9})[0].solve(pattern, program)


@pytest.mark.parametrize("name", NAMES)
def test_common_options(name):
    cls = find(name)
    solver, ignored = get(name, {"eps": 1e-5, "max_iters": 77, "verbose": False, "n_jobs_forward": 3})
    assert ignored == () and solver.jobs == 3
    assert solver.settings[cls.limit] == 77 and all(solver.settings[option] == 1e-5 for option in cls.tolerances)
    assert get(name, {"n_jobs_forward": -1})[0].jobs == 0
    own = next(option for option in ("tol_feas", "eps_abs", "feastol", "primal_tol") if option in cls.options)
    for order in ({own: 1e-4, "eps": 1e-6}, {"eps": 1e-6, own: 1e-4}):
        assert get(name, order)[0].settings[own] == 1e-4
    solver, ignored = get(name, {"acceleration_lookback": 0, "mode": "lsqr", "n_jobs_backward": 2})
    assert set(ignored) == {"mode", "n_jobs_backward"} | (set() if "acceleration_lookback" in cls.options else {"acceleration_lookback"})
    with pytest.raises(ValueError, match=f"solver '{name}' has no option 'tolerance', 'speed'; it takes ") as caught:
        get(name, {"tolerance": 1, "speed": 2})
    assert {own, "eps", "max_iters", "n_jobs_forward", "solve_method", "verbose"} <= set(re.split(", | ", str(caught.value)))
    for bad in ({"eps": "small"}, {"max_iters": 1.5}, {"eps": 0.0}, {"max_iters": 0}, {"n_jobs_forward": "all"}):
        with pytest.raises(ValueError, match=f"option '{next(iter(bad))}' of solver '{name}' is .*; wanted"):
            get(name, bad)


@pytest.mark.parametrize("name", ["CLARABEL", "SCS", "DIFFCP", "MOREAU", "INTERIOR"])
def test_a_looser_tolerance_costs_fewer_iterations(name):
    pattern, program, _ = feasible("second_order", False)
    loose, tight = (get(name, {"eps": eps}, pattern)[0].solve(pattern, program) for eps in (1e-3, 1e-8))
    assert (loose.iterations < tight.iterations).all()


def test_options_reach_the_solver(capfd):
    pattern, program, _ = feasible("linear", False)
    for args in (
        {"solve_method": "ECOS", "abstol": np.float64(1e-9), "verbose": False},
        {"solve_method": "Clarabel", "tol_gap_abs": 1e-9, "direct_solve_method": "qdldl"},
        {
            "solve_method": "SCS",
            "eps": 1e-8,
            "max_iters": np.int64(10000),
            "acceleration_lookback": 0,
            "acceleration_type_1": 0,
            "acceleration_regularization": 1e-8,
            "normalize": 1,
        },
        {"solve_method": "DIFFCP", "acceleration_lookback": 5},
        {"solve_method": "DAQP", "cycle_tol": 20},
    ):
        solver, _ = get(None, args, pattern)
        assert all(Status(code).ok for code in solver.solve(pattern, program).status)
    assert capfd.readouterr() == ("", "")
    get("CLARABEL", {"verbose": True}, pattern)[0].solve(pattern, program)
    assert "verbose" in get("DAQP", {"verbose": True})[1]


def test_packages_are_imported_when_used():
    packages = {"clarabel", "scs", "ecos", "diffcp", "daqp", "moreau_cpu", "cvxpy"}
    code = f"import sys, cvxlayers.solvers; print(sorted({packages} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("package, name", [("ecos", "ECOS"), ("diffcp", "DIFFCP"), ("moreau_cpu", "MOREAU")])
def test_a_missing_package_is_named(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    for module in [module for module in sys.modules if module.startswith((f"{package}.", f"cvxlayers.solvers.{name.lower()}"))]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=rf"solver '{name}' needs the package '{package}'; pip install cvxlayers\[{name.lower()}\]"):
        get(name)
    with pytest.raises(ValueError, match="cannot handle SecondOrder cones; try 'CLARABEL'"):
        get("DAQP", None, feasible("second_order", False)[0])


# the small parts


@pytest.mark.parametrize("jobs", [0, 1, 2, 5])
def test_map_rows_visits_each_row_once(jobs):
    visits = np.zeros(7, dtype=int)
    map_rows(lambda i: visits.__setitem__(i, visits[i] + 1), 7, jobs)
    assert (visits == 1).all()
    map_rows(lambda i: 1 / 0, 0, jobs)
    with pytest.raises(ZeroDivisionError):
        map_rows(lambda i: 1 / 0, 2, jobs)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 7])
def test_lower_triangle(order):
    """Pack a matrix of distinct entries both ways."""
    S = np.arange(order * order, dtype=float).reshape(order, order)
    S = np.minimum(S, S.T)
    upper = [S[i, j] for j in range(order) for i in range(j + 1)]
    lower = [S[i, j] for j in range(order) for i in range(j, order)]
    assert np.array(upper)[lower_triangle(order)].tolist() == lower
