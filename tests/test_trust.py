"""Gradients where they are hard, or do not exist: exact, or told so."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import nnls

from cvxlayers import adjoint
from cvxlayers.cones import NonNegative, Product, SecondOrder, Zero
from cvxlayers.conic import ConicLayer
from cvxlayers.errors import GradientWarning, Status
from cvxlayers.host import Options
from cvxlayers.kkt import KKT
from cvxlayers.layer import Layer
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.report import diagnose
from tests.problems import cp


def forward(layer: Layer, *values: np.ndarray):
    outputs, info, saved = layer.forward(values, Options())
    assert (info.status == Status.SOLVED).all()
    return outputs, saved


def gradient(layer: Layer, values: list[np.ndarray], cotangent: np.ndarray) -> list[np.ndarray]:
    _, saved = forward(layer, *values)
    return layer.vjp(saved, [cotangent], [True] * len(values))


# Closed forms


def test_projection_on_the_simplex_has_its_closed_form_derivative(rng: np.random.Generator) -> None:
    n = 8
    x, p = cp.Variable(n), cp.Parameter(n)
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0]), [p], [x])
    points, g = rng.standard_normal((16, n)), rng.standard_normal((16, n))
    (got,), saved = forward(layer, points)
    descending = -np.sort(-points, axis=1)
    taus = (np.cumsum(descending, axis=1) - 1) / np.arange(1, n + 1)
    count = (descending > taus).sum(axis=1)
    want = np.maximum(points - taus[np.arange(16), count - 1][:, None], 0)
    np.testing.assert_allclose(got, want, atol=1e-13)
    support = want > 0
    mean = (g * support).sum(1, keepdims=True) / support.sum(1, keepdims=True)
    np.testing.assert_allclose(layer.vjp(saved, [g], [True])[0], support * (g - mean), atol=1e-12)


@pytest.mark.parametrize("radius", [0.5, 5.0])
def test_projection_on_a_ball(rng: np.random.Generator, radius: float) -> None:
    n = 5
    x, p = cp.Variable(n), cp.Parameter(n)
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= radius]), [p], [x])
    point, g = rng.standard_normal(n), rng.standard_normal(n)
    (got,), saved = forward(layer, point)
    size = np.linalg.norm(point)
    unit = point / size
    inside = size <= radius
    np.testing.assert_allclose(got, point if inside else radius * unit, atol=1e-12)
    want = g if inside else radius / size * (g - unit * (unit @ g))
    np.testing.assert_allclose(layer.vjp(saved, [g], [True])[0], want, atol=1e-11)


def test_projection_on_semidefinite_matrices(rng: np.random.Generator) -> None:
    """The Daleckii-Krein formula, at order 5: packing by rows instead of columns would show."""
    n = 5
    X, S = cp.Variable((n, n), PSD=True), cp.Parameter((n, n), symmetric=True)
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(X - S))), [S], [X])
    M, G = rng.standard_normal((2, n, n))
    M, G = (M + M.T) / 2, (G + G.T) / 2
    (got,), saved = forward(layer, M)
    w, Q = np.linalg.eigh(M)
    np.testing.assert_allclose(got, Q @ np.diag(np.maximum(w, 0)) @ Q.T, atol=1e-11)
    plus = np.maximum(w, 0)
    quotient = (plus[:, None] - plus) / np.where(w[:, None] == w, 1, w[:, None] - w)
    quotient[np.diag_indices(n)] = w > 0
    np.testing.assert_allclose(layer.vjp(saved, [G], [True])[0], Q @ (quotient * (Q.T @ G @ Q)) @ Q.T, atol=1e-9)


def test_maximum_entropy_is_the_softmax(rng: np.random.Generator) -> None:
    n = 6
    p, c = cp.Variable(n), cp.Parameter(n)
    layer = Layer(cp.Problem(cp.Maximize(c @ p + cp.sum(cp.entr(p))), [cp.sum(p) == 1]), [c], [p])
    score, g = rng.standard_normal(n), rng.standard_normal(n)
    (got,), saved = forward(layer, score)
    want = np.exp(score) / np.exp(score).sum()
    np.testing.assert_allclose(got, want, atol=1e-12)
    np.testing.assert_allclose(layer.vjp(saved, [g], [True])[0], want * (g - want @ g), atol=1e-10)


def test_the_weighted_geometric_mean_has_its_closed_form() -> None:
    """max x^a y^(1-a) - w1 x - w2 y over a power cone and x + y <= 1: at the optimum x = a, y = 1 - a when w1 = w2."""
    a = 0.3
    v, c = cp.Variable(3), cp.Parameter(2)
    layer = Layer(cp.Problem(cp.Maximize(v[2]), [cp.PowCone3D(v[0], v[1], v[2], a), c @ v[:2] <= 1]), [c], [v])
    price = np.array([1.5, 0.7])
    (got,), saved = forward(layer, price)
    x, y = a / price[0], (1 - a) / price[1]
    np.testing.assert_allclose(got, [x, y, x**a * y ** (1 - a)], atol=1e-12)
    pulled = layer.vjp(saved, [np.array([0.0, 0.0, 1.0])], [True])[0]
    np.testing.assert_allclose(pulled, -got[2] * np.array([a, 1 - a]) / price, atol=1e-10)


def test_a_quadratic_program_against_a_dense_solve_of_its_active_set(rng: np.random.Generator) -> None:
    n, m, e = 12, 10, 3
    P = rng.standard_normal((n, n))
    P = P @ P.T + np.eye(n)
    A, q, inside = rng.standard_normal((e + m, n)), rng.standard_normal(n), rng.standard_normal(n)
    b = A @ inside + np.r_[np.zeros(e), rng.random(m) / 4]
    pattern = Pattern.of(sp.csc_matrix(P), sp.csc_matrix(A), Product((Zero(e), NonNegative(m))))
    layer = ConicLayer(pattern)
    upper = P[pattern.P_indices, pattern.P_columns]
    x, y, s = layer(upper, q, A.T.ravel(), b)
    active = np.r_[np.arange(e), e + np.flatnonzero(y[e:] > 0)]
    assert e < len(active) < n
    K = np.block([[P, A[active].T], [A[active], np.zeros((len(active), len(active)))]])
    z = np.linalg.solve(K, np.r_[-q, b[active]])
    np.testing.assert_allclose(x, z[:n], atol=1e-12)
    np.testing.assert_allclose(y[active], z[n:], atol=1e-11)

    gx, gy = rng.standard_normal(n), rng.standard_normal(e + m)
    w = np.linalg.solve(K, np.r_[gx, gy[active]])
    u, t = w[:n], np.zeros(e + m)
    t[active] = w[n:]
    program = ConeProgram(upper[None], q[None], A.T.ravel()[None], b[None])
    solution = Solution(x[None], y[None], s[None], np.zeros(1, np.int8))
    pulled, _ = layer.vjp(program, solution, Solution(gx[None], gy[None], np.zeros((1, e + m))))
    full = -(np.outer(u, x) + np.outer(x, u)) / 2
    np.testing.assert_allclose(pulled.q[0], -u, atol=1e-11)
    np.testing.assert_allclose(pulled.b[0], t, atol=1e-11)
    np.testing.assert_allclose(pulled.A[0], -(np.outer(y, u) + np.outer(t, x)).T.ravel(), atol=1e-10)
    off = pattern.P_indices != pattern.P_columns  # a stored entry above the diagonal stands for two
    np.testing.assert_allclose(pulled.P[0], full[pattern.P_indices, pattern.P_columns] * np.where(off, 2, 1), atol=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_semidefinite_gradients_equal_those_of_the_reference_adjoint(rng: np.random.Generator) -> None:
    """diffcp's dense adjoint through SCS, on order 4 and 5 at once; its Clarabel road packs these orders wrongly."""
    import diffcp

    n = 4 * 5 // 2 + 5 * 6 // 2
    inside = np.concatenate([np.eye(k).T[np.triu_indices(k)] for k in (4, 5)])  # lower triangles by columns
    A = sp.csc_matrix(np.vstack([inside, rng.standard_normal(n), -np.eye(n)]))  # the trace is fixed: a bounded problem
    c = rng.standard_normal(n)
    b = np.concatenate([A[:2] @ inside, np.zeros(n)])
    _, _, _, _, DT = diffcp.solve_and_derivative(A, b, c, {"z": 2, "s": [4, 5]}, solve_method="SCS", eps=1e-11, mode="dense")
    g = rng.standard_normal(n)
    _, _, dc = DT(g, np.zeros(n + 2), np.zeros(n + 2))

    # SCS stacks lower triangles by columns, we stack upper triangles by columns.
    order = np.concatenate([_lower_to_upper(4), 10 + _lower_to_upper(5)])
    from cvxlayers.cones import Semidefinite

    ours = sp.csc_matrix(A.toarray()[np.r_[0, 1, 2 + order]])
    pattern = Pattern.of(sp.csc_matrix((n, n)), ours, Product((Zero(2), Semidefinite(4), Semidefinite(5))))
    layer = ConicLayer(pattern, "CLARABEL")
    x, y, s = layer(np.zeros(0), c, ours.data, b)
    program = ConeProgram(np.zeros((1, 0)), c[None], ours.data[None], b[None])
    solution = Solution(x[None], y[None], s[None], np.zeros(1, np.int8))
    pulled, _ = layer.vjp(program, solution, Solution(g[None], 0 * y[None], 0 * s[None]))
    np.testing.assert_allclose(pulled.q[0], dc, atol=1e-5 * np.max(abs(dc)))  # the accuracy of the reference


def _lower_to_upper(k: int) -> np.ndarray:
    """For every entry of the upper triangle by columns, its place in the lower triangle by columns."""
    place = {}
    for column in range(k):
        for row in range(column, k):
            place[(row, column)] = len(place)
    return np.array([place[(column, row)] for column in range(k) for row in range(column + 1)])


# Conditioning


@pytest.mark.parametrize("bound", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("exponent", [0, 2, 4, 6, 8])
@pytest.mark.parametrize("solver", ["DAQP", "CLARABEL", "INTERIOR"])
def test_ill_conditioning_is_exact_or_told(solver: str, exponent: int, bound: float, rng: np.random.Generator) -> None:
    """min 1/2 |F x|^2 + q'x, x >= -bound: where the bound is inactive dx = -P^-1 dq, where it is active the row drops out."""
    n = 12
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    F = np.diag(10 ** np.linspace(0, exponent / 2, n)) @ Q.T
    q = F.T @ rng.standard_normal(n)
    x, p = cp.Variable(n), cp.Parameter(n)
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(F @ x) / 2 + p @ x), [x >= -bound]), [p], [x], solver)
    g = rng.standard_normal(n)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (got,), saved = forward(layer, q)
        pulled = layer.vjp(saved, [g], [True])[0]
    # The oracle: nonnegative least squares finds the active set, a QR factorization the derivative.
    lifted, _ = nnls(F, F @ np.full(n, bound) - np.linalg.lstsq(F.T, q, rcond=None)[0], maxiter=1000)
    free = lifted > 0
    np.testing.assert_allclose(got, lifted - bound, atol=1e-6 * (1 + np.max(abs(lifted - bound))))
    _, R = np.linalg.qr(F[:, free])
    want = np.zeros(n)
    want[free] = -np.linalg.solve(R, np.linalg.solve(R.T, g[free]))
    error = np.max(abs(pulled - want)) / np.max(abs(want))
    assert error < 1e-5 or any(issubclass(w.category, GradientWarning) for w in told), error


# Degenerate instances


def test_redundant_constraints_leave_the_derivative_exact(rng: np.random.Generator) -> None:
    n = 4
    x, p, b = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    rows = np.vstack([np.ones(n)] * 3)
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [rows @ x == b * np.ones(3), rows @ x <= b + 5]), [p, b], [x])
    g = rng.standard_normal(n)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        dp, db = gradient(layer, [rng.standard_normal(n), np.array(0.7)], g)
    np.testing.assert_allclose(dp, g - g.mean(), atol=1e-10)
    np.testing.assert_allclose(db, g.mean(), atol=1e-10)


def test_duplicated_active_inequalities_leave_the_derivative_exact(rng: np.random.Generator) -> None:
    n = 3
    x, p, u = cp.Variable(n), cp.Parameter(n), cp.Parameter(n)
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x <= u, x <= u, 2 * x <= 2 * u]), [p, u], [x], "CLARABEL")
    g = rng.standard_normal(n)
    dp, du = gradient(layer, [np.array([2.0, -1.0, 3.0]), np.ones(n)], g)
    np.testing.assert_allclose(dp, g * [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(du, g * [1, 0, 1], atol=1e-9)


@pytest.mark.parametrize("solver", ["DAQP", "CLARABEL", "INTERIOR"])
def test_a_set_of_solutions_is_told_and_answered_by_least_norm(solver: str) -> None:
    """A linear program whose optimal face is an edge: no derivative exists; the answer is finite, repeatable, and flagged."""
    x, c = cp.Variable(3), cp.Parameter(3)
    layer = Layer(cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0, x <= 0.8]), [c], [x], solver)
    cost, g = np.array([1.0, 1.0, 2.0]), np.array([1.0, -1.0, 0.0])
    with pytest.warns(GradientWarning, match="row 0 of 1.*not unique"):
        first = gradient(layer, [cost], g)[0]
    report = diagnose(_Wrapped(layer), cost)
    assert report.fallback and report.adjoint_residual > 1e-3 and report.status == Status.SOLVED
    assert np.isfinite(first).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        np.testing.assert_array_equal(first, gradient(layer, [cost], g)[0])


@pytest.mark.parametrize("solver", ["DAQP", "CLARABEL", "SCS", "INTERIOR"])
def test_a_kink_is_told_with_its_row(solver: str) -> None:
    x, p = cp.Variable(2), cp.Parameter(2)
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x], solver)
    points = np.array([[1.0, -1.0], [1.0, 0.0], [2.0, 3.0]])
    (_,), saved = forward(layer, points)
    with pytest.warns(GradientWarning, match="row 1 of 3.*kink"):
        pulled = layer.vjp(saved, [np.ones((3, 2))], [True])[0]
    np.testing.assert_allclose(pulled[[0, 2]], [[1, 0], [1, 1]], atol=1e-10)
    assert abs(pulled[1, 0] - 1) < 1e-8 and -1e-8 <= pulled[1, 1] <= 1 + 1e-8  # inside the generalized Jacobian
    np.testing.assert_array_equal(diagnose(_Wrapped(layer), points).margin <= adjoint.KINK, [False, True, False])


def test_the_apex_of_a_norm_is_told() -> None:
    """min |x - p| + c'x / 2: x = p is the kink of the norm but no kink of the solution map; at |c| = 2 the multiplier meets it."""
    x, p, c = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    layer = Layer(cp.Problem(cp.Minimize(cp.norm(x - p) + c @ x / 2), [cp.norm(x - p) <= 3]), [p, c], [x])
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        dp, dc = gradient(layer, [np.array([1.0, 2.0]), np.array([0.5, 0.2])], np.array([1.0, 0.0]))
    np.testing.assert_allclose(dp, [1, 0], atol=1e-9)
    np.testing.assert_allclose(dc, [0, 0], atol=1e-9)


def test_an_unbounded_set_of_minimizers_is_told(rng: np.random.Generator) -> None:
    """A rank-deficient least-squares problem: the minimizer is a line."""
    x, g = cp.Variable(3), cp.Parameter(2)
    F = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(F @ x - g))), [g], [x], "CLARABEL")
    (_,), saved = forward(layer, rng.standard_normal(2))
    with pytest.warns(GradientWarning, match="not unique"):
        pulled = layer.vjp(saved, [np.array([1.0, 1.0, 0.0])], [True])[0]
    np.testing.assert_allclose(pulled, np.linalg.pinv(F).T @ [1, 1, 0], atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)  # a loss that does not see the line has an ordinary gradient
        pulled = layer.vjp(saved, [np.array([1.0, 1.0, 1.0])], [True])[0]
    np.testing.assert_allclose(pulled, [1, 1], atol=1e-9)


def test_second_derivatives_are_certified_like_the_first(rng: np.random.Generator) -> None:
    x, g = cp.Variable(3), cp.Parameter(2)
    F = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(F @ x - g))), [g], [x], "CLARABEL")
    (_,), saved = forward(layer, rng.standard_normal(2))
    with pytest.warns(GradientWarning, match="row 0 of 1.*not unique"):
        layer.second_vjp(saved, [np.array([1.0, 1.0, 0.0])], [np.ones(2)], [True])
    point, parameter = cp.Variable(2), cp.Parameter(2)
    kink = Layer(cp.Problem(cp.Minimize(cp.sum_squares(point - parameter)), [point >= 0]), [parameter], [point])
    (_,), saved = forward(kink, np.array([1.0, 0.0]))
    with pytest.warns(GradientWarning, match="kink"):
        kink.second_jvp(saved, [np.ones(2)], [np.ones(2)])


class _Wrapped:
    """What `diagnose` reads of an adapter's layer."""

    def __init__(self, core: Layer) -> None:
        self.core = core


# The linear system


def _system(rng: np.random.Generator, rows: int) -> tuple[KKT, ConeProgram, Solution]:
    n, cone = 12, Product((Zero(2), NonNegative(5), SecondOrder(4), SecondOrder(3)))
    A = sp.csc_matrix(np.random.default_rng(1).random((cone.dim, n)) < 0.7, dtype=float)
    root = rng.standard_normal((rows, n, n))
    pattern = Pattern.of(sp.csc_matrix(np.ones((n, n))), A, cone)
    P = (root @ np.swapaxes(root, 1, 2))[:, pattern.P_indices, pattern.P_columns]
    v = rng.standard_normal((rows, cone.dim))
    y = cone.dual().project(v)
    program = ConeProgram(
        P, rng.standard_normal((rows, n)), rng.standard_normal((rows, pattern.nnzA)), rng.standard_normal((rows, cone.dim))
    )
    return KKT(pattern), program, Solution(rng.standard_normal((rows, n)), y, y - v, np.zeros(rows, np.int8))


def test_the_system_is_the_one_written_in_its_docstring(rng: np.random.Generator) -> None:
    kkt, program, solution = _system(rng, 3)
    pattern = kkt.pattern
    derivative = kkt.dual_cone.derivative(solution.y - solution.s)
    values = kkt.assemble(program, derivative)
    for row in range(3):
        K = sp.csc_matrix((values[row], kkt.indices, kkt.indptr), shape=(kkt.size, kkt.size)).toarray()
        K = K + np.triu(K, 1).T
        P = sp.csc_matrix((program.P[row], pattern.P_indices, pattern.P_indptr), shape=(pattern.n, pattern.n)).toarray()
        A = sp.csc_matrix((program.A[row], pattern.A_indices, pattern.A_indptr), shape=(pattern.m, pattern.n)).toarray()
        turned = np.stack([derivative.rotate(column[None].repeat(3, 0), transpose=True)[row] for column in A.T], axis=1)
        B = np.sqrt(derivative.values[row])[:, None] * turned
        want = np.block([[P + np.triu(P, 1).T, B.T], [B, np.diag(derivative.values[row] - 1)]])
        np.testing.assert_allclose(K, want, atol=1e-13)
        rhs = rng.standard_normal(kkt.size)
        solved = kkt.solve(values[[row]], rhs[None])
        np.testing.assert_allclose(solved.z[0], np.linalg.solve(want, rhs), rtol=1e-9, atol=1e-9)
        assert not solved.fallback and solved.residual < 1e-12


@pytest.mark.parametrize("dense", [0, 400])
def test_the_fallback_is_the_minimum_norm_least_squares_solution(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dense: int
) -> None:
    monkeypatch.setattr("cvxlayers.least_squares.DENSE", dense)
    n, cone = 5, Product((NonNegative(4),))
    A = np.vstack([rng.standard_normal((2, n)), np.zeros((2, n))])
    A[2], A[3] = A[0] + A[1], A[0] - A[1]
    kkt = KKT(Pattern.of(sp.csc_matrix((n, n)), sp.csc_matrix(A), cone))
    program = ConeProgram(np.zeros((1, 0)), np.zeros((1, n)), A.T.ravel()[None], np.zeros((1, 4)))
    values = kkt.assemble(program, kkt.dual_cone.derivative(np.ones((1, 4))))
    K = np.block([[np.zeros((n, n)), A.T], [A, np.zeros((4, 4))]])
    rhs = rng.standard_normal(n + 4)
    solved = kkt.solve(values, rhs[None])
    assert solved.fallback and solved.residual > 0.1
    np.testing.assert_allclose(solved.z[0], np.linalg.pinv(K) @ rhs, atol=1e-10 if dense else 1e-6)  # rounding over DAMPING


def test_backward_makes_no_sparse_matrix(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    kkt, program, solution = _system(rng, 64)
    cotangent = Solution(*(rng.standard_normal(a.shape) for a in (solution.x, solution.y, solution.s)))
    adjoint.vjp(kkt, program, solution, cotangent)  # the workspace of this thread is made once
    made = []
    for kind in (sp.csc_matrix, sp.csr_matrix, sp.coo_matrix, sp.csc_array, sp.csr_array, sp.coo_array):
        original = kind.__init__

        def counting(self, *args, original=original, **kwargs):
            made.append(type(self).__name__)
            original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", counting)
    adjoint.vjp(kkt, program, solution, cotangent)
    adjoint.jvp(kkt, program, solution, program)
    assert made == []
    sp.csc_matrix((2, 2))
    assert made  # the counter counts


def test_rows_do_not_depend_on_how_the_batch_is_cut(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    kkt, program, solution = _system(rng, 9)
    cotangent = Solution(*(rng.standard_normal(a.shape) for a in (solution.x, solution.y, solution.s)))
    whole, _ = adjoint.vjp(kkt, program, solution, cotangent)
    monkeypatch.setattr("cvxlayers.kkt.CHUNK", 500)
    assert kkt.chunk < 4
    cut, _ = adjoint.vjp(kkt, program, solution, cotangent)
    for a, b in zip(vars(whole).values(), vars(cut).values(), strict=True):
        assert np.array_equal(a, b)
