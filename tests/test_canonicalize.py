"""The maps M and R against CVXPY itself: same variables, same duals, same value, for every kind of problem and two sets of parameters."""

# cvxpy's annotations promise neither values nor attributes, and its operators less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false

import tracemalloc
import warnings

import clarabel
import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from cvxlayers.canonicalize import _Rows, canonicalize
from cvxlayers.cones import Exponential, NonNegative, Power, SecondOrder, Semidefinite, Zero

CASES = {}
TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11, "tol_ktratio": 1e-9}


def case(function):
    """A case returns (problem, parameters, variables, draw), draw(rng) giving the values of the parameters; options may follow."""
    CASES[function.__name__] = function
    return function


def solve(made, values):
    """Outputs and objective of a Canonical at parameter values, by Clarabel on the numbers that M gives."""
    pattern = made.pattern
    p = [np.log(v) if spec.log else v for spec, v in zip(made.parameters, values, strict=True)]
    p = [np.asarray(v.toarray() if sp.issparse(v) else v) for v in p]
    p = [
        np.concatenate([v.real.ravel(), v.imag.ravel()]) if spec.complex else v.ravel() for spec, v in zip(made.parameters, p, strict=True)
    ]
    numbers = made.M @ np.concatenate([*p, [1.0]])
    P, q, A, b, constant = np.split(numbers, np.cumsum([pattern.nnzP, pattern.n, pattern.nnzA, pattern.m]))
    P = sp.csc_matrix((P, pattern.P_indices, pattern.P_indptr), shape=(pattern.n, pattern.n))
    A = sp.csc_matrix((A, pattern.A_indices, pattern.A_indptr), shape=(pattern.m, pattern.n))
    kinds = {
        Zero: lambda c: clarabel.ZeroConeT(c.dim),
        NonNegative: lambda c: clarabel.NonnegativeConeT(c.dim),
        SecondOrder: lambda c: clarabel.SecondOrderConeT(c.dim),
        Semidefinite: lambda c: clarabel.PSDTriangleConeT(c.order),
        Exponential: lambda c: clarabel.ExponentialConeT(),
        Power: lambda c: clarabel.PowerConeT(c.alpha),
    }
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    for name, value in TIGHT.items():
        setattr(settings, name, value)
    solution = clarabel.DefaultSolver(P, q, A, b, [kinds[type(c)](c) for c in pattern.cone.cones], settings).solve()
    assert str(solution.status) in ("Solved", "AlmostSolved", "InsufficientProgress")
    x, y = np.array(solution.x), np.array(solution.z)
    value = 0.5 * x @ (P + sp.triu(P, 1).T) @ x + q @ x + constant[0]
    value = -value if made.maximize else value
    out, outputs = made.R @ np.concatenate([x, y]), []
    for spec in made.variables:
        part, out = out[: spec.size], out[spec.size :]
        part = part[: spec.size // 2] + 1j * part[spec.size // 2 :] if spec.complex else part
        outputs.append(np.exp(part).reshape(spec.shape) if spec.exp else part.reshape(spec.shape))
    return outputs, np.exp(value) if made.gp else value


def dense(value):
    return np.asarray(value.toarray() if sp.issparse(value) else value)


def assign(parameter, value):
    if parameter.sparse_idx is None:
        parameter.value = value
    else:
        parameter.value_sparse = sp.coo_array((value[tuple(parameter.sparse_idx)], parameter.sparse_idx), shape=parameter.shape)


def current(variable):
    return dense(variable.value if variable.sparse_idx is None else variable.value_sparse)


def psd(rng, n, shift=1.0):
    F = rng.normal(size=(n, n))
    return F @ F.T / n + shift * np.eye(n)


def hermitian(rng, n):
    F = rng.normal(size=(n, n)) + 1j * rng.normal(size=(n, n))
    return F + F.conj().T


# ---- plain problems ----


@case
def least_squares():
    x, A, b = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [b, A], [x], lambda r: [r.normal(size=5), r.normal(size=(5, 3))]


@case
def linear_program_maximize():
    x, c, A, b = cp.Variable(4), cp.Parameter(4), cp.Parameter((6, 4)), cp.Parameter(6)
    le, up = A @ x <= b, x <= 1
    problem = cp.Problem(cp.Maximize(c @ x + 3), [le, x >= -1, up])
    duals = [le.dual_variables[0], up.dual_variables[0]]
    return problem, [c, A, b], [x, *duals], lambda r: [r.normal(size=4), r.normal(size=(6, 4)), np.ones(6)]


@case
def equality_duals():
    x, b, s = cp.Variable((2, 3)), cp.Parameter(2), cp.Parameter()
    eq, one = cp.sum(x, axis=1) == b, x[0, 0] == 2 * s
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [eq, one])
    return problem, [b, s], [x, eq.dual_variables[0], one.dual_variables[0]], lambda r: [r.normal(size=2), r.normal()]


@case
def equality_duals_maximize():
    x, b = cp.Variable((2, 3)), cp.Parameter((2, 3))
    eq, le = cp.sum(x, axis=0) == b[0], x <= b
    problem = cp.Problem(cp.Maximize(-cp.sum_squares(x - 1) + cp.sum(cp.multiply(b, x))), [eq, le])
    return problem, [b], [eq.dual_variables[0], x, le.dual_variables[0]], lambda r: [np.abs(r.normal(size=(2, 3))) * [[1], [2]]]


@case
def no_constraints():
    x, b = cp.Variable(), cp.Parameter()
    return cp.Problem(cp.Minimize((x - b) ** 2)), [b], [x], lambda r: [r.normal()]


@case
def no_constraints_no_linear_term():
    x, w = cp.Variable(3), cp.Parameter(3, nonneg=True)
    return cp.Problem(cp.Minimize(w @ cp.square(x) + 1)), [w], [x], lambda r: [r.uniform(1, 2, 3)]


@case
def no_parameters():
    x = cp.Variable(3)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - [1, -2, 3])), [x >= 0]), [], [x], lambda r: []


@case
def constant_objective():
    x, b = cp.Variable(2), cp.Parameter(2)
    eq = np.array([[1.0, 2], [3, 4]]) @ x == b
    return cp.Problem(cp.Minimize(7), [eq]), [b], [x], lambda r: [r.normal(size=2)]


@case
def parameter_in_constant_only():
    x, b, k = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    return cp.Problem(cp.Minimize(cp.sum_squares(x - b) + 3 * k)), [k, b], [x], lambda r: [r.normal(), r.normal(size=2)]


@case
def constraint_without_variables():
    x, b = cp.Variable(2), cp.Parameter(2)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [b >= -9, x >= 0]), [b], [x], lambda r: [r.normal(size=2)]


@case
def shared_and_repeated_terms():
    x, y, g = cp.Variable(2), cp.Variable(2), cp.Parameter(nonneg=True)
    objective = g * cp.sum_squares(x - y) + cp.sum_squares(x - 1) + 2 * (cp.sum_squares(y + 1) - x[0]) - (y[1] - g)
    return cp.Problem(cp.Minimize(objective)), [g], [y, x], lambda r: [r.uniform(1, 2)]


@case
def zero_sized_pieces():
    x, b = cp.Variable(3), cp.Parameter(3)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x[:0] >= 0, x[1:] >= 0]), [b], [x], lambda r: [r.normal(size=3)]


@case
def variable_matrix_fortran_order():
    X, A, B = cp.Variable((2, 3)), cp.Parameter((2, 2)), cp.Parameter((2, 3))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ X - B) + cp.sum_squares(X[0])), [cp.sum(X) == 1])
    return problem, [A, B], [X], lambda r: [r.normal(size=(2, 2)), r.normal(size=(2, 3))]


@case
def three_axes():
    X, B = cp.Variable((2, 3, 2)), cp.Parameter((2, 3, 2))
    low = X >= -0.5
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - B)), [low, cp.sum(X, axis=2) == B[:, :, 1]])
    return problem, [B], [X, low.dual_variables[0]], lambda r: [r.uniform(-0.9, 0.9, (2, 3, 2))]


# ---- parametric quadratic forms ----


@case
def quad_form_psd():
    x, P, q = cp.Variable(4), cp.Parameter((4, 4), PSD=True), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), [cp.sum(x) == 1])
    return problem, [P, q], [x], lambda r: [psd(r, 4), r.normal(size=4)], {"needs_quadratic": True}


@case
def quad_form_sum_with_constant():
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    P0 = np.array([[2.0, 1, 0], [1, 3, 0], [0, 0, 1]])
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, P0 + 2 * P) + q @ x + cp.sum_squares(x)), [x <= 1])
    return problem, [q, P], [x], lambda r: [r.normal(size=3), psd(r, 3, 0.0)], {"needs_quadratic": True}


@case
def quad_form_maximize():
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    low = x >= 0
    problem = cp.Problem(cp.Maximize(q @ x - 2 * cp.quad_form(x - 1, P) - 1), [low])
    return problem, [q, P], [x, low.dual_variables[0]], lambda r: [r.normal(size=3), psd(r, 3)], {"needs_quadratic": True}


@case
def quad_form_nsd():
    x, N, q = cp.Variable(3), cp.Parameter((3, 3), NSD=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(q @ x - cp.quad_form(x, N)), [x >= -1])
    return problem, [q, N], [x], lambda r: [r.normal(size=3), -psd(r, 3)], {"needs_quadratic": True}


@case
def quad_form_diag():
    x, D, q = cp.Variable(3), cp.Parameter((3, 3), diag=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, cp.psd_wrap(D)) + q @ x), [x >= -1])
    return problem, [q, D], [x], lambda r: [r.normal(size=3), np.diag(r.uniform(1, 2, 3))], {"needs_quadratic": True}


# ---- attributes of parameters and variables ----


@case
def symmetric_parameter():
    X, S = cp.Variable((4, 4), symmetric=True), cp.Parameter((4, 4), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - S)), [cp.trace(X) == 1, cp.abs(X) <= 2])
    return problem, [S], [X], lambda r: [np.array(psd(r, 4) - 2)]


@case
def nsd_and_diag_parameters():
    x, N, D = cp.Variable(3), cp.Parameter((3, 3), NSD=True), cp.Parameter((3, 3), diag=True)
    return cp.Problem(cp.Minimize(cp.sum_squares((N + D) @ x - 1))), [D, N], [x], lambda r: [np.diag(r.uniform(3, 4, 3)), -psd(r, 3)]


@case
def sparse_parameter():
    x, S = cp.Variable(3), cp.Parameter((4, 3), sparsity=([0, 1, 3, 2, 0], [2, 0, 1, 2, 1]))

    def draw(r):
        mask = np.zeros((4, 3))
        mask[[0, 1, 3, 2, 0], [2, 0, 1, 2, 1]] = 1
        return [mask * r.normal(size=(4, 3))]

    return cp.Problem(cp.Minimize(cp.sum_squares(S @ x - 1) + cp.sum_squares(x))), [S], [x], draw


@case
def sparse_diag_variables():
    X, D, B = cp.Variable((3, 3), sparsity=([0, 1, 2, 0], [1, 2, 0, 0])), cp.Variable((3, 3), diag=True), cp.Parameter((3, 3))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X + D - B) + cp.sum_squares(D) + cp.sum_squares(X)), [X >= -1])
    return problem, [B], [D, X], lambda r: [r.normal(size=(3, 3))]


@case
def stack_of_matrices():
    X, S, B = cp.Variable((2, 3, 3), PSD=True), cp.Variable((2, 3, 3), symmetric=True), cp.Parameter((2, 3, 3))
    cone = X + S >> -1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - B) + cp.sum_squares(S + B)), [cone])
    return problem, [B], [X, S, cone.dual_variables[0]], lambda r: [r.normal(size=(2, 3, 3))]


@case
def psd_variable():
    X, B = cp.Variable((4, 4), PSD=True), cp.Parameter((4, 4), symmetric=True)
    return cp.Problem(cp.Minimize(cp.sum_squares(X - B))), [B], [X], lambda r: [psd(r, 4) - 2 * np.eye(4)]


@case
def nsd_variable():
    X, B = cp.Variable((4, 4), NSD=True), cp.Parameter((4, 4), symmetric=True)
    return cp.Problem(cp.Minimize(cp.sum_squares(X - B))), [B], [X], lambda r: [psd(r, 4) - 2 * np.eye(4)]


@case
def signed_variables():
    u, v, w, b = cp.Variable(2, nonpos=True), cp.Variable(2, pos=True), cp.Variable(2, neg=True), cp.Parameter((3, 2))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - b[0]) + cp.sum_squares(v - b[1]) + cp.sum_squares(w - b[2])))
    return problem, [b], [u, v, w], lambda r: [r.normal(size=(3, 2))]


@case
def parametric_bounds():
    lo, up = cp.Parameter(3), cp.Parameter()
    x, y, b = cp.Variable(3, bounds=[lo, 2]), cp.Variable((2, 2), bounds=[None, up]), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b) + cp.sum_squares(y - b[0])), [x[0] + y[0, 1] >= -1])
    return problem, [up, b, lo], [x, y], lambda r: [r.normal(), 2 * r.normal(size=3), r.uniform(-1, 1, 3)]


# ---- complex ----


@case
def complex_variable_and_parameter():
    z, A, b = cp.Variable(3, complex=True), cp.Parameter((4, 3), complex=True), cp.Parameter(4, complex=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ z - b)), [cp.abs(z) <= 1, cp.real(z[0]) >= 0])

    def draw(r):
        return [r.normal(size=(4, 3)) + 1j * r.normal(size=(4, 3)), 3 * r.normal(size=4) + 1j * r.normal(size=4)]

    return problem, [A, b], [z], draw


@case
def complex_equality_dual():
    z, b, t = cp.Variable((2, 2), complex=True), cp.Parameter((2, 2), complex=True), cp.Parameter()
    eq = z[0] == b[1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - b) + t * cp.real(z[1, 0])), [eq])
    return problem, [b, t], [z, eq.dual_variables[0]], lambda r: [r.normal(size=(2, 2)) + 1j * r.normal(size=(2, 2)), r.normal()]


@case
def imaginary():
    z, b = cp.Variable((2, 3), imag=True), cp.Parameter((2, 3), imag=True)
    eq = cp.sum(z, axis=0) == 1j * np.ones(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.imag(z - b))), [eq])
    return problem, [b], [z, eq.dual_variables[0]], lambda r: [1j * r.normal(size=(2, 3))]


@case
def complex_sparse_parameter():
    z, S = cp.Variable(3, complex=True), cp.Parameter((3, 3), complex=True, diag=True)
    eq = cp.sum(z) == 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(S @ z)), [eq])
    return problem, [S], [z, eq.dual_variables[0]], lambda r: [np.diag(r.normal(size=3) + 1j * r.normal(size=3))]


@case
def hermitian_variable_and_parameter():
    Z, H = cp.Variable((4, 4), hermitian=True), cp.Parameter((4, 4), hermitian=True)
    cone = Z >> 0
    problem = cp.Problem(cp.Minimize(cp.sum_squares(Z - H)), [cone, cp.real(cp.trace(Z)) == 5])
    return problem, [H], [Z, cone.dual_variables[0]], lambda r: [hermitian(r, 4)]


@case
def complex_psd_variable():
    Z, H = cp.Variable((3, 3), complex=True, PSD=True), cp.Parameter((3, 3), hermitian=True)
    return cp.Problem(cp.Minimize(cp.sum_squares(Z - H))), [H], [Z], lambda r: [hermitian(r, 3)]


# ---- cones and atoms, with duals ----


@case
def second_order_cones():
    x, c, A = cp.Variable(3), cp.Parameter(3), cp.Parameter((2, 3))
    soc, rows = cp.SOC(c @ x + 2, x), cp.SOC(cp.hstack([x[0] + 2, x[1] + 3]), cp.vstack([A @ x, x[1:]]), axis=1)
    problem = cp.Problem(cp.Minimize(cp.sum(x) + cp.norm(A @ x - 1) + 2 * cp.norm(x - 1, 1)), [soc, rows])
    return problem, [c, A], [x, *soc.dual_variables, *rows.dual_variables], lambda r: [0.1 * r.normal(size=3), 0.3 * r.normal(size=(2, 3))]


@case
def second_order_cones_maximize():
    x, c = cp.Variable(3), cp.Parameter(3)
    soc, packed = cp.SOC(c @ x + 2, x), cp.SOC(cp.hstack([1.0, 2.0, x[2] + 1]), cp.bmat([[x[0], x[1], x[2]], [x[1], x[2], x[0]]]))
    problem = cp.Problem(cp.Maximize(c @ x), [soc, packed])
    return problem, [c], [x, *packed.dual_variables, *soc.dual_variables], lambda r: [r.normal(size=3)]


@case
def semidefinite_dual():
    X, C, y = cp.Variable((5, 5), symmetric=True), cp.Parameter((5, 5), symmetric=True), cp.Variable(2)
    cone, other = X >> 0.1 * np.eye(5), cp.bmat([[y[0], y[1], 1], [y[1], 2, 0], [1, 0, 3]]) >> 0
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X) + cp.sum_squares(X) + y[0] + y[1]), [cone, other, cp.trace(X) == 4])
    return problem, [C], [X, y, cone.dual_variables[0], other.dual_variables[0]], lambda r: [psd(r, 5) - 1.5 * np.eye(5)]


@case
def semidefinite_dual_maximize():
    X, C = cp.Variable((4, 4)), cp.Parameter((4, 4))
    cone = np.eye(4) >> X + X.T
    problem = cp.Problem(cp.Maximize(cp.trace(C @ X) - cp.sum_squares(X)), [cone])
    return problem, [C], [X, cone.dual_variables[0]], lambda r: [3 * r.normal(size=(4, 4))]


@case
def exponential_cone_dual():
    x, c = cp.Variable(6), cp.Parameter(6)
    cone = cp.ExpCone(x[:2], x[2:4], x[4:])
    problem = cp.Problem(cp.Minimize(c @ x + cp.sum_squares(x)), [cone, x[2:4] >= 0.5])
    return problem, [c], [x, *cone.dual_variables], lambda r: [r.normal(size=6) - [2, 2, 0, 0, 0, 0]]


@case
def exponential_cone_matrix_maximize():
    x, c = cp.Variable((2, 2)), cp.Parameter((2, 2))
    cone = cp.ExpCone(x, np.ones((2, 2)), 3 + c)
    return cp.Problem(cp.Maximize(cp.sum(cp.multiply(c, x))), [cone]), [c], [x, *cone.dual_variables], lambda r: [r.uniform(0.5, 2, (2, 2))]


@case
def power_cone_dual():
    x, c = cp.Variable(6), cp.Parameter(6)
    cone = cp.PowCone3D(x[:2], x[2:4], x[4:], [0.3, 0.6])
    problem = cp.Problem(cp.Minimize(c @ x + cp.sum_squares(x)), [cone])
    return problem, [c], [x, *cone.dual_variables], lambda r: [r.normal(size=6) - [0, 0, 0, 0, 3, 3]]


@case
def power_cone_dual_maximize():
    x, c = cp.Variable(3), cp.Parameter(3, nonneg=True)
    cone = cp.PowCone3D(x[0], x[1], x[2], 0.7)
    return cp.Problem(cp.Maximize(x[2] - c[:2] @ cp.square(x[:2])), [cone]), [c], [x, *cone.dual_variables], lambda r: [r.uniform(1, 2, 3)]


@case
def power_cone_of_many():
    W, z, c = cp.Variable((4, 2)), cp.Variable(2), cp.Parameter((4, 2), nonneg=True)
    alpha = np.array([[0.1, 0.25], [0.2, 0.25], [0.3, 0.3], [0.4, 0.2]])
    cone = cp.PowConeND(W, z, alpha)
    problem = cp.Problem(cp.Maximize(cp.sum(z) - cp.sum(cp.multiply(c, cp.square(W)))), [cone])
    return problem, [c], [W, z, *cone.dual_variables], lambda r: [r.uniform(1, 2, (4, 2))]


@case
def geometric_mean_and_powers():
    x, b = cp.Variable(4), cp.Parameter(4)
    objective = cp.geo_mean(x, [1, 2, 3, 4]) - cp.sum(cp.power(x, 3.3)) + cp.sum(cp.power(x[:2], 0.4))
    return cp.Problem(cp.Maximize(objective - cp.sum_squares(x - b)), [cp.inv_pos(x) <= 9]), [b], [x], lambda r: [r.uniform(0.5, 1.5, 4)]


@case
def entropies():
    x, b, c = cp.Variable(3), cp.Parameter(3, pos=True), cp.Parameter((2, 3))
    objective = cp.sum(cp.kl_div(x, b)) - cp.sum(cp.entr(x)) + cp.sum(cp.logistic(c @ x)) + cp.log_sum_exp(x)
    return cp.Problem(cp.Minimize(objective), [cp.sum(x) == 2]), [b, c], [x], lambda r: [r.uniform(0.5, 2, 3), r.normal(size=(2, 3))]


@case
def spectral_atoms():
    X, B = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    objective = cp.lambda_max(X) - cp.log_det(X) + cp.sum_squares(X - B) + cp.normNuc(X - B)
    return cp.Problem(cp.Minimize(objective)), [B], [X], lambda r: [psd(r, 3)]


@case
def assorted_atoms():
    x, b, t = cp.Variable(4), cp.Parameter(4), cp.Variable()
    objective = cp.sum(cp.huber(x - b)) + cp.norm1(x) + cp.norm_inf(x + b) + cp.quad_over_lin(x - b, t) + t
    objective += 0.3 * cp.pnorm(x, 3) + cp.max(x) + cp.sum_squares(x)
    return cp.Problem(cp.Minimize(objective), [t <= 4]), [b], [x, t], lambda r: [2 * r.normal(size=4)]


@case
def structured_atoms():
    x, b, w = cp.Variable(3), cp.Parameter(3), cp.Parameter(3, nonneg=True)
    y, s = cp.Variable(), cp.Variable(nonneg=True)
    objective = cp.dotsort(x, w) + cp.sum(cp.huber(x - b, w[0])) + cp.perspective(cp.square(y), s) + b[0] * y + cp.sum_squares(x)
    return cp.Problem(cp.Minimize(objective + cp.square(s - 1))), [b, w], [x, y, s], lambda r: [r.normal(size=3), r.uniform(0, 1, 3)]


@case
def powers_without_approximation():
    x, b = cp.Variable(3), cp.Parameter(3)
    objective = cp.geo_mean(x, [1, 2.2, np.pi], approx=False) - cp.pnorm(x - 1, np.pi, approx=False)
    objective -= cp.sum(cp.power(x, np.pi, approx=False)) + cp.sum_squares(x - b)
    return cp.Problem(cp.Maximize(objective)), [b], [x], lambda r: [r.uniform(0.5, 2, 3)]


@case
def matrix_fractional():
    x, b, d = cp.Variable(3), cp.Parameter(3), cp.Variable(3)
    objective = cp.matrix_frac(x - b, cp.diag(d)) + cp.sum_squares(x) + cp.sum_squares(d)
    return cp.Problem(cp.Minimize(objective), [d <= 3]), [b], [x, d], lambda r: [r.uniform(1, 2, 3)]


# ---- log-log convex ----


@case
def geometric_program():
    x, y, z = (cp.Variable(pos=True) for _ in range(3))
    a, b, c = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter(value=None)
    total, ratio = a * (x * y + x * z + y * z) <= b, x >= y**c
    problem = cp.Problem(cp.Maximize(x * y * z), [total, ratio, y <= 2])

    def draw(r):
        return [r.uniform(1, 2), r.uniform(0.4, 0.6), r.uniform(4, 6)]

    return problem, [a, c, b], [x, y, z, total.dual_variables[0]], draw, {"gp": True}


@case
def geometric_program_matrices():
    X, P, w = cp.Variable((2, 2), pos=True), cp.Parameter((2, 2), pos=True), cp.Parameter(2, pos=True)
    objective = cp.sum(cp.multiply(P, X)) + cp.sum(w / cp.prod(X, axis=0)) + cp.pnorm(X[0], 2)
    problem = cp.Problem(cp.Minimize(objective), [X[0, 1] == w[0] * X[1, 0]])
    return problem, [w, P], [X], lambda r: [r.uniform(1, 2, 2), r.uniform(1, 2, (2, 2))], {"gp": True}


@case
def geometric_program_symmetric():
    X, S, y = cp.Variable((2, 2), pos=True), cp.Parameter((2, 2), pos=True, symmetric=True), cp.Variable((2, 2), pos=True, symmetric=True)
    objective = cp.sum(cp.multiply(X, S)) + cp.sum(cp.multiply(S, y)) + cp.sum(1 / y)

    def draw(r):
        return [(lambda F: F + F.T)(r.uniform(1, 2, (2, 2)))]

    return cp.Problem(cp.Minimize(objective), [cp.prod(X) == 1]), [S], [y, X], draw, {"gp": True}


@case
def geometric_program_bounds():
    lo = cp.Parameter(2, pos=True)
    x, s = cp.Variable(2, bounds=[lo, 10], pos=True), cp.Variable(pos=True)
    return cp.Problem(cp.Minimize(x[0] * x[1] + s + 1 / s), []), [lo], [x, s], lambda r: [r.uniform(1, 2, 2)], {"gp": True}


def build(name):
    problem, parameters, variables, draw, *rest = CASES[name]()
    return problem, parameters, variables, draw, (rest[0] if rest else {})


def oracle(problem, parameters, variables, values, gp, quadratic):
    for parameter, value in zip(parameters, values, strict=True):
        assign(parameter, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(solver="CLARABEL", gp=gp, ignore_dpp=True, use_quad_obj=quadratic, **TIGHT)
        return [current(v) for v in variables], problem.value


@pytest.mark.parametrize("quadratic", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_cvxpy(name, quadratic):
    problem, parameters, variables, draw, options = build(name)
    if options.get("needs_quadratic") and not quadratic:
        with pytest.raises(ValueError, match="CLARABEL, SCS, DAQP"):
            canonicalize(problem, parameters, variables, quadratic=False)
        return
    gp = options.get("gp", False)
    made = canonicalize(problem, parameters, variables, gp=gp, quadratic=quadratic)
    assert all(p.value is None for p in parameters if p.sparse_idx is None)
    assert [spec.name for spec in made.parameters] == [p.name() for p in parameters]
    assert [spec.shape for spec in made.variables] == [v.shape for v in variables]
    assert quadratic or made.pattern.nnzP == 0
    rng = np.random.default_rng(len(name))
    for _ in range(2):
        values = draw(rng)
        outputs, value = solve(made, values)
        wanted, wanted_value = oracle(problem, parameters, variables, values, gp, quadratic)
        # Without a quadratic objective the optimum is found to about the square root of the tolerance: both solutions are that far off.
        tolerance = 2e-5 if quadratic else 3e-4
        assert value == pytest.approx(wanted_value, rel=1e-6, abs=1e-6)
        for variable, got, expected in zip(variables, outputs, wanted, strict=True):
            np.testing.assert_allclose(got, expected.reshape(variable.shape), rtol=tolerance, atol=tolerance, err_msg=variable.name())


# ---- one constraint, every spelling ----

HALF = 0.5 * np.eye(3) + 0.5
SPELLINGS = {
    "nonneg": {
        "x >= 0": lambda: (x := cp.Variable(3), [x >= 0]),
        "0 <= x": lambda: (x := cp.Variable(3), [0 <= x]),
        "-x <= 0": lambda: (x := cp.Variable(3), [-x <= 0]),
        "NonNeg": lambda: (x := cp.Variable(3), [cp.NonNeg(x)]),
        "NonPos": lambda: (x := cp.Variable(3), [cp.NonPos(-x)]),
        "entries": lambda: (x := cp.Variable(3), [x[i] >= 0 for i in range(3)]),
        "eye @ x": lambda: (x := cp.Variable(3), [np.eye(3) @ x >= 0]),
        "2 x": lambda: (x := cp.Variable(3), [2 * x >= 0]),
        "attribute": lambda: (cp.Variable(3, nonneg=True), []),
        "strict": lambda: (cp.Variable(3, pos=True), []),
        "bounds": lambda: (cp.Variable(3, bounds=[0, None]), []),
        "both bounds": lambda: (cp.Variable(3, bounds=[np.zeros(3), np.inf]), []),
        "norm": lambda: (x := cp.Variable(3), [cp.norm_inf(cp.neg(x)) <= 0]),
    },
    "ball": {
        "norm": lambda: (x := cp.Variable(3), [cp.norm(x) <= 0.5]),
        "SOC": lambda: (x := cp.Variable(3), [cp.SOC(0.5, x)]),
        "variable SOC": lambda: ((x := cp.Variable(3)), [cp.SOC(t := cp.Variable(), x), t == 0.5]),
        "squares": lambda: (x := cp.Variable(3), [cp.sum_squares(x) <= 0.25]),
        "scaled": lambda: (x := cp.Variable(3), [cp.norm(2 * x) <= 1]),
    },
    "psd": {
        "X >> 0": lambda: (X := cp.Variable((3, 3), symmetric=True), [X >> 0]),
        "0 << X": lambda: (X := cp.Variable((3, 3), symmetric=True), [0 << X]),
        "PSD": lambda: (X := cp.Variable((3, 3), symmetric=True), [cp.PSD(X)]),
        "attribute": lambda: (cp.Variable((3, 3), PSD=True), []),
        "full": lambda: (X := cp.Variable((3, 3)), [X >> 0, X == X.T]),
        "congruent": lambda: (X := cp.Variable((3, 3), symmetric=True), [HALF @ X @ HALF >> 0]),
        "eigenvalue": lambda: (X := cp.Variable((3, 3), symmetric=True), [cp.lambda_min(X) >= 0]),
        "negative": lambda: (X := cp.Variable((3, 3), symmetric=True), [-X << 0]),
    },
}


def nearest(kind, point):
    if kind == "nonneg":
        return np.maximum(point, 0)
    if kind == "ball":
        return point * min(1, 0.5 / np.linalg.norm(point))
    values, vectors = np.linalg.eigh(point)
    return (vectors * np.maximum(values, 0)) @ vectors.T


@pytest.mark.filterwarnings(r"ignore:[\s\S]*NonPos")
@pytest.mark.parametrize(("kind", "spelling"), [(kind, spelling) for kind in SPELLINGS for spelling in SPELLINGS[kind]])
def test_every_spelling_of_a_constraint_is_kept(kind, spelling):
    x, constraints = SPELLINGS[kind][spelling]()
    target = cp.Parameter(x.shape)
    made = canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x - target)), constraints), [target], [x])
    point = np.array([1.0, -2, 0.5]) if x.ndim == 1 else np.array([[1.0, 2, 0], [2, -1, 1], [0, 1, 0.5]])
    (got,), _ = solve(made, [point])
    np.testing.assert_allclose(got, nearest(kind, point), atol=1e-4)


# ---- structure of the maps ----


def test_rows_come_cone_by_cone():
    x, t = cp.Variable(4), cp.Parameter(4)
    X = cp.Variable((4, 4), symmetric=True)
    constraints = [
        cp.PowCone3D(x[0], x[1], x[2], 0.25),
        cp.ExpCone(x[0], x[1], x[2]),
        X >> 0,
        cp.SOC(x[0], x[1:]),
        x <= t,
        cp.sum(x) == 1,
    ]
    cones = canonicalize(cp.Problem(cp.Minimize(cp.trace(X)), constraints), [t], [x]).pattern.cone.cones
    assert cones == (Zero(1), NonNegative(4), SecondOrder(4), Semidefinite(4), Exponential(), Power(0.25))


def test_semidefinite_rows_are_the_upper_triangle_by_columns_times_sqrt_two():
    X, S = cp.Variable((4, 4), symmetric=True), cp.Parameter((4, 4))
    made = canonicalize(cp.Problem(cp.Minimize(cp.trace(X)), [X + S + S.T >> 0]), [S], [X])
    value = np.arange(16.0).reshape(4, 4)
    b = (made.M @ np.append(value.ravel(), 1.0))[-11:-1]
    upper = np.array([(i, j) for j in range(4) for i in range(j + 1)])
    wanted = [(value + value.T)[i, j] * (1 if i == j else np.sqrt(2)) for i, j in upper]
    np.testing.assert_allclose(b, wanted, rtol=1e-14)


STRUCTURES = [{"symmetric": True}, {"PSD": True}, {"hermitian": True}, {"diag": True}, {"sparsity": ([0, 2], [1, 0])}]


@pytest.mark.parametrize("attributes", STRUCTURES)
def test_declared_structure_of_parameters_is_folded_into_M(attributes):
    S = cp.Parameter((3, 3), **attributes)
    X = cp.Variable((3, 3), complex="hermitian" in attributes)
    made = canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(X - S))), [S], [X])
    columns = made.M[:, :-1].T.toarray()
    real = columns[:9].reshape(3, 3, -1)
    if "diag" in attributes or "sparsity" in attributes:
        support = made.parameters[0].domain.support
        assert support.sum() == (3 if "diag" in attributes else 2)
        assert (np.abs(real).sum(axis=2) > 0).tolist() == support.tolist()
        return
    np.testing.assert_array_equal(real, real.swapaxes(0, 1))
    assert np.abs(real[0, 1]).max() == 0.5
    if "hermitian" in attributes:
        imaginary = columns[9:].reshape(3, 3, -1)
        np.testing.assert_array_equal(imaginary, -imaginary.swapaxes(0, 1))
        assert np.abs(imaginary[0, 1]).max() == 0.5


def test_nonsymmetric_matrix_of_a_quadratic_form_is_symmetrized():
    x, A = cp.Variable(2), cp.Parameter((2, 2))
    made = canonicalize(cp.Problem(cp.Minimize(cp.quad_form(x, cp.psd_wrap(A + A.T)) - cp.sum(x))), [A], [x])
    (got,), _ = solve(made, [np.array([[2.0, 1.0], [0.5, 3.0]])])
    np.testing.assert_allclose(got, np.linalg.solve(2 * np.array([[4.0, 1.5], [1.5, 6.0]]), [1, 1]), atol=1e-7)


@pytest.mark.parametrize("spelling", ["least squares", "equality", "quadratic form", "linear and cone"])
def test_no_intermediate_of_nonzeros_times_parameters(spelling):
    """A dense array (n x parameters) would take 8 n^3 bytes = 64 MB or more; sparse ones take a few hundred bytes per parameter."""
    n = 200
    A, P, b, x = cp.Parameter((n, n)), cp.Parameter((n, n), PSD=True), cp.Parameter(n), cp.Variable(n)
    problem = {
        "least squares": cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]),
        "equality": cp.Problem(cp.Minimize(cp.sum_squares(x) + b @ x), [A @ x == b]),
        "quadratic form": cp.Problem(cp.Minimize(cp.quad_form(x, P) + b @ x), [x >= b]),
        "linear and cone": cp.Problem(cp.Minimize(cp.norm(x) + cp.sum(A @ x)), [x >= b]),
    }[spelling]
    tracemalloc.start()
    made = canonicalize(problem, problem.parameters(), [x])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.M.nnz <= 3 * n * n
    assert peak < 8 * n**3 / 2


def test_domains_tell_what_the_declarations_promise():
    kinds = [
        cp.Parameter(2),
        cp.Parameter(2, nonneg=True),
        cp.Parameter((2,), neg=True),
        cp.Parameter(2, bounds=[np.array([-np.inf, 1]), 3]),
        cp.Parameter((2, 2), PSD=True),
        cp.Parameter((2, 2), NSD=True),
        cp.Parameter((2, 2), diag=True, nonneg=True),
        cp.Parameter((2, 2), symmetric=True),
        cp.Parameter((2, 2), hermitian=True),
        cp.Parameter((2, 2), sparsity=([0], [1]), bounds=[-1, 2]),
        cp.Parameter(2, imag=True),
    ]
    x = cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(x) + sum(cp.real(cp.sum(p)) for p in kinds)))
    domains = [spec.domain for spec in canonicalize(problem, kinds, [x]).parameters]
    assert (domains[0].lower, domains[0].upper, domains[0].strict) == (None, None, False)
    assert (domains[1].lower, domains[1].upper, domains[1].strict) == (0, None, False)
    assert (domains[2].lower, domains[2].upper, domains[2].strict) == (None, 0, True)
    assert (domains[3].lower.tolist(), float(domains[3].upper)) == ([-np.inf, 1], 3)
    assert [(d.symmetric, d.definite) for d in domains[4:9]] == [(True, 1), (True, -1), (False, 0), (True, 0), (True, 0)]
    assert [d.imaginary for d in domains] == [False] * 10 + [True]
    assert domains[6].support.tolist() == [[True, False], [False, True]]
    assert domains[9].support.tolist() == [[False, True], [False, False]]
    assert domains[9].lower.tolist() == [[-np.inf, -1], [-np.inf, -np.inf]]


def test_leaves_the_problem_alone():
    x, a, P = cp.Variable(2), cp.Parameter(2), cp.Parameter((2, 2), PSD=True)
    low = x >= a
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P)), [low])
    cache = vars(problem._cache).copy()
    canonicalize(problem, [a, P], [x, low.dual_variables[0]])
    assert vars(problem._cache) == cache
    assert (x.value, a.value, P.value, low.dual_value, problem.status) == (None,) * 5
    for value in (1.0, 2.0):
        a.value, P.value = value * np.ones(2), np.eye(2)
        assert problem.solve(solver="CLARABEL") == pytest.approx(2 * value**2, rel=1e-6)
        canonicalize(problem, [a, P], [x, low.dual_variables[0]], quadratic=True)
        np.testing.assert_allclose(low.dual_value, 2 * value, rtol=1e-5)
        np.testing.assert_allclose(a.value, value)


def test_does_not_depend_on_the_values_of_parameters():
    x, a = cp.Variable(2), cp.Parameter((2, 2))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(a @ x - 1)), [a[0] @ x <= 1])
    before = canonicalize(problem, [a], [x])
    a.value = np.zeros((2, 2))
    after = canonicalize(problem, [a], [x])
    assert before.pattern == after.pattern
    assert (before.M != after.M).nnz == 0


def test_gives_no_warnings():
    x, S = cp.Variable((3, 3), sparsity=([0], [1])), cp.Parameter((3, 3), sparsity=([2], [1]))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - S)), [x[0, 1] <= 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canonicalize(problem, [S], [x])


# ---- refusals ----


def refused(message, problem, parameters=None, variables=None, **options):
    with pytest.raises(ValueError, match=message):
        canonicalize(
            problem,
            problem.parameters() if parameters is None else parameters,
            problem.variables() if variables is None else variables,
            **options,
        )


def test_refuses_lists_that_do_not_fit():
    x, y, a, b = cp.Variable(2, name="x"), cp.Variable(name="y"), cp.Parameter(2, name="a"), cp.Parameter(name="b")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a)))
    refused("problem's parameters 'a' is missing", problem, [])
    refused("'b' does not occur", problem, [a, b])
    refused("'a' is listed twice", problem, [a, a])
    refused(r"parameters\[0\] is a ndarray; wanted a cvxpy Parameter", problem, [np.ones(2)])
    refused(r"parameters\[1\] is a Variable; wanted a cvxpy Parameter", problem, [a, x])
    refused(r"variables\[0\] is a Parameter; wanted a cvxpy Variable", problem, [a], [a])
    refused("'y' is neither a variable of the problem", problem, [a], [y])
    refused("got a Parameter as parameters; wanted a list", problem, a)
    refused("got a Variable as variables; wanted a list", problem, [a], x)
    refused("got a int as variables; wanted a list", problem, [a], 3)
    with pytest.raises(ValueError, match="wanted a cvxpy Problem"):
        canonicalize(problem.objective, [a], [x])


def test_refuses_discrete_problems():
    u, v, x = cp.Variable(2, boolean=True, name="u"), cp.Variable((2, 2), integer=[(0, 1)], name="v"), cp.Variable(name="x")
    refused("'u' is boolean.*Relax", cp.Problem(cp.Minimize(cp.sum(u))))
    refused("'v' is integer.*Relax", cp.Problem(cp.Minimize(cp.sum(v))))
    refused("mixed-integer", cp.Problem(cp.Minimize(x), [cp.FiniteSet(x, [1, 2])]))


def test_refuses_problems_without_variables():
    a = cp.Parameter()
    refused("no variables", cp.Problem(cp.Minimize(a), [a >= 1]))
    refused("no variables", cp.Problem(cp.Minimize(3)))
    refused("no entries", cp.Problem(cp.Minimize(cp.sum(cp.Variable(0)))))


def test_refuses_undisciplined_problems():
    x, y = cp.Variable(2, name="x"), cp.Variable(2, pos=True, name="y")
    refused(r"not DCP because of `.*quad_over_lin\(x.*minimize convex", cp.Problem(cp.Maximize(cp.sum_squares(x))))
    refused(r"not DCP because of `x\[0\] [@*] x\[1\]` in `.*1.0", cp.Problem(cp.Minimize(x[0] * x[1] + 1)))
    refused(r"not DCP because of `Power.*<= 1.0`; rewrite", cp.Problem(cp.Minimize(1), [cp.sqrt(x) <= 1]))
    refused("pass gp=True", cp.Problem(cp.Minimize(y[0] * y[1]), [y >= 2]))
    refused("not DGP.*pass gp=False", cp.Problem(cp.Minimize(cp.sum(x)), [x >= 2]), gp=True)
    refused("not DGP.*pos=True", cp.Problem(cp.Minimize(x[0] * y[1]), [y >= 2]), gp=True)


def test_refuses_parameters_that_do_not_enter_affinely():
    x, a, b, w = cp.Variable(2, name="x"), cp.Parameter(name="a"), cp.Parameter(name="b", nonneg=True), cp.Parameter(2, name="w")
    refused(r"not DPP because of `a [@*] b`", cp.Problem(cp.Minimize(a * b * x[0]), [x >= 0]))
    refused("one new parameter and pass the product", cp.Problem(cp.Minimize(a * b * x[0]), [x >= 0]))
    refused("introduce a variable z", cp.Problem(cp.Minimize(cp.sum(b * (w[0] * x))), [x >= 0]))
    refused(r"not DPP because of `exp\(a\) [@*] x.*must enter affinely", cp.Problem(cp.Minimize(cp.exp(a) * x[0]), [x >= 0]))
    refused("not DPP because of .* in `.*<= 1", cp.Problem(cp.Minimize(x[0]), [a * b * x <= 1]))
    refused("bounds of variable 'z'", cp.Problem(cp.Minimize(cp.sum(cp.Variable(2, name="z", bounds=[a * b, None])))), [a, b])


def test_refuses_quadratic_forms_it_cannot_keep():
    x, n = cp.Variable(3, name="x"), (3, 3)
    P, S, g = cp.Parameter(n, PSD=True, name="P"), cp.Parameter(n, symmetric=True, name="S"), cp.Parameter(nonneg=True, name="g")
    v = cp.Parameter(3, name="v")
    refused(r"gamma \* P as one parameter", cp.Problem(cp.Minimize(g * cp.quad_form(x, P))))
    refused("PSD=True", cp.Problem(cp.Minimize(cp.quad_form(x, S))))
    refused("objective only.*sum_squares", cp.Problem(cp.Minimize(cp.sum(x)), [cp.quad_form(x, P) <= 1]))
    refused("introduce a variable y", cp.Problem(cp.Minimize(cp.quad_form(x - v, P))))
    refused("CLARABEL, SCS, DAQP", cp.Problem(cp.Minimize(cp.quad_form(x, P))), quadratic=False)


def test_refuses_parameters_whose_present_value_would_be_frozen():
    x, a, v = cp.Variable(3), cp.Parameter(value=0.3, name="a"), cp.Parameter(2, value=[0.3, 0.7])
    refused("exponents of power cones must be constants", cp.Problem(cp.Minimize(x[0]), [cp.PowCone3D(x[0], x[1], x[2], a)]))
    refused("exponents of power cones must be constants", cp.Problem(cp.Minimize(x[0]), [cp.PowConeND(x[:2], x[2], v)]))
    refused("not DPP because of `quad_over_lin", cp.Problem(cp.Minimize(cp.quad_over_lin(x, cp.Parameter(pos=True, value=1)))))


def test_refuses_a_parameter_used_through_its_logarithm_and_as_it_is():
    x, a = cp.Variable(pos=True), cp.Parameter(pos=True, name="a")
    refused("'a' is used both as an exponent and as a factor", cp.Problem(cp.Minimize(a * x), [x**a >= 2]), gp=True)
    refused("base or in its exponent", cp.Problem(cp.Minimize((a * x) ** a)), gp=True)


def test_refuses_declarations_that_would_be_dropped():
    for attributes in ({"diag": True}, {"symmetric": True}, {"sparsity": ([0], [1])}):
        Z = cp.Variable((2, 2), complex=True, name="Z", **attributes)
        refused(f"complex variable 'Z' is declared {next(iter(attributes))}", cp.Problem(cp.Minimize(cp.norm(Z))))
    S = cp.Parameter((2, 3, 3), symmetric=True, name="S")
    refused(r"'S' of shape \(2, 3, 3\) is declared symmetric", cp.Problem(cp.Minimize(cp.sum_squares(cp.Variable((2, 3, 3)) - S))))


def test_refuses_duals_that_do_not_exist():
    z = cp.Variable(2, complex=True)
    soc = cp.SOC(1, z)
    problem = cp.Problem(cp.Maximize(cp.real(cp.sum(z))), [soc])
    refused("no dual value for .*SOC", problem, [], [soc.dual_variables[1]])
    x = cp.Variable(3)
    relative = cp.RelEntrConeQuad(x[0], x[1], x[2], 3, 3)
    refused("no dual value for", cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [relative]), [], [relative.dual_variables[0]])


def test_refuses_constants_that_are_not_finite():
    x, y = cp.Variable(2), cp.Variable(2, pos=True)
    refused("NaN or infinite", cp.Problem(cp.Minimize(np.array([1.0, np.inf]) @ x), [x >= 0]))
    refused("NaN or infinite", cp.Problem(cp.Minimize(cp.sum(x)), [x >= np.array([0.0, np.nan])]))
    refused(r"not DGP because of `\[1. 0.\]`", cp.Problem(cp.Minimize(cp.sum(y)), [y >= np.array([1.0, 0.0])]), gp=True)


def test_a_bound_of_infinity_is_no_bound():
    x, p = cp.Variable(3), cp.Parameter(3)
    (got,), _ = solve(canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x <= [np.inf, 1, 2]]), [p], [x]), [np.full(3, 5.0)])
    np.testing.assert_allclose(got, [5, 1, 2], atol=1e-7)


def test_reports_what_cvxpy_itself_cannot_reduce():
    z = cp.Variable(2, imag=True)
    refused("CVXPY .* cannot reduce", cp.Problem(cp.Minimize(cp.sum_squares(z - 1j))))


@pytest.mark.parametrize(("change", "message"), [("key", "surprise"), ("field", "novelty"), ("direct cones", "dir_cones")])
def test_never_drops_what_it_does_not_know(change, message, monkeypatch):
    plain = _Rows.apply

    def apply(self, problem):
        data, inverse = plain(self, problem)
        if change == "key":
            data["surprise"] = 1
        if change == "field":
            data["param_prob"].novelty = 1
        return data, inverse

    monkeypatch.setattr(_Rows, "apply", apply)
    if change == "direct cones":
        monkeypatch.setattr(_Rows, "DIR_CONE_KINDS", frozenset({"nonneg"}))
    x = cp.Variable(2)
    with pytest.raises(RuntimeError, match=message):
        canonicalize(cp.Problem(cp.Minimize(cp.sum(x)), [x >= 0]), [], [x])
