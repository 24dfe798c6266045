"""The linear systems of a whole batch: lanes and dense storage against dense algebra, rows alone and together, shared factorizations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from cvxlayers import adjoint, compiled, kkt
from cvxlayers.cones import Exponential, NonNegative, Product, SecondOrder, Zero
from cvxlayers.conic import ConicLayer
from cvxlayers.host import Options
from cvxlayers.kernels.dense import DenseSystems
from cvxlayers.kernels.symbolic import analyze
from cvxlayers.kernels.systems import Systems, arranged, period
from cvxlayers.layer import Layer
from cvxlayers.products import Products, residuals
from cvxlayers.program import ConeProgram, Pattern, Solution
from tests.problems import CASES

N, M = 13, 22
KINDS = ("lanes", "dense")


def systems(rng: np.random.Generator, rows: int, density: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The upper triangle of [[P, B'], [B, -F]] with some empty rows of B: indices, indptr, values (rows, nnz), the matrices."""
    B = np.where(rng.random((M, N)) < density, 1.0, 0.0)
    mask = np.block([[np.triu(np.ones((N, N))), B.T], [np.zeros((M, N)), np.eye(M)]])
    pattern = sp.csc_matrix(mask)
    pattern.sort_indices()
    root = rng.standard_normal((rows, N, N))
    values = np.zeros((rows, N + M, N + M))
    values[:, :N, :N] = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(N)
    gone = rng.random((rows, M)) < 0.5
    values[:, :N, N:] = (B * rng.standard_normal((rows, M, N)) * ~gone[:, :, None]).swapaxes(1, 2)
    values[:, range(N, N + M), range(N, N + M)] = np.where(gone, -1.0, -rng.random((rows, M)))
    columns = np.repeat(np.arange(N + M), np.diff(pattern.indptr))
    entries = values[:, pattern.indices, columns]
    full = np.triu(values) + np.swapaxes(np.triu(values, 1), 1, 2)
    return pattern.indices, pattern.indptr, entries, full


def solver_of(kind: str, indices: np.ndarray, indptr: np.ndarray) -> Any:
    signs = np.where(np.arange(N + M) < N, 1.0, -1.0)
    return DenseSystems(indices, indptr, N) if kind == "dense" else Systems(analyze(indices, indptr, signs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 33])
@pytest.mark.parametrize("density", [0.15, 1.0])
def test_every_row_is_solved_and_certified(kind: str, rows: int, density: float, rng: np.random.Generator) -> None:
    indices, indptr, values, full = systems(rng, rows, density)
    rhs = rng.standard_normal((rows, N + M)) * 10.0 ** rng.integers(-20, 20, (rows, 1))
    z, figures = solver_of(kind, indices, indptr).solve(values, rhs, kkt.STRONG, kkt.REFINEMENTS, kkt.CONVERGED)
    assert (figures[:, 0] < 1e-11).all()
    for row in range(rows):
        np.testing.assert_allclose(z[row], np.linalg.solve(full[row], rhs[row]), rtol=0, atol=1e-9 * np.max(abs(z[row])))
    left = (full @ z[:, :, None])[:, :, 0] - rhs
    np.testing.assert_allclose(figures[:, 0], np.linalg.norm(left, axis=1) / np.linalg.norm(rhs, axis=1), rtol=0, atol=1e-13)
    np.testing.assert_allclose(figures[:, 1], np.max(abs(z), axis=1) / np.max(abs(rhs), axis=1), rtol=1e-12)
    np.testing.assert_array_equal(figures[:, 2], np.max(abs(values), axis=1))


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_every_company(kind: str, jobs: int, rng: np.random.Generator) -> None:
    """Alone, in every lane, beside rows of NaN and of zeros, on one thread and on two."""
    indices, indptr, values, _ = systems(rng, 20, 0.3)
    rhs = rng.standard_normal((20, N + M))
    solver, settings = solver_of(kind, indices, indptr), (kkt.STRONG, kkt.REFINEMENTS, kkt.CONVERGED, jobs)
    rhs[3], values[4, 5], rhs[5, 0], values[6] = 0.0, np.nan, np.inf, 0.0
    z, figures = solver.solve(values, rhs, *settings)
    for row in range(20):
        alone, figure = solver.solve(values[row : row + 1], rhs[row : row + 1], *settings)
        np.testing.assert_array_equal(alone[0], z[row])
        np.testing.assert_array_equal(figure[0], figures[row])
    assert not z[3].any() and np.isnan(figures[4, 0]) and np.isfinite(np.delete(z, [4, 5], axis=0)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distinct, times", [(1, 1), (1, 35), (2, 9), (3, 8), (8, 5), (11, 4)])
def test_equal_matrices_are_factored_once(kind: str, distinct: int, times: int, rng: np.random.Generator) -> None:
    indices, indptr, values, _ = systems(rng, distinct, 0.3)
    values, rhs = np.tile(values, (times, 1)), rng.standard_normal((distinct * times, N + M))
    solver, settings = solver_of(kind, indices, indptr), (kkt.STRONG, kkt.REFINEMENTS, kkt.CONVERGED, 1)
    z, figures = solver.solve(values, rhs, *settings)
    factored = solver.factored
    for row in range(len(rhs)):
        alone, figure = solver.solve(values[row : row + 1], rhs[row : row + 1], *settings)
        np.testing.assert_array_equal(alone[0], z[row])
        np.testing.assert_array_equal(figure[0], figures[row])
    lanes = distinct if distinct < 8 and times > 1 else -(-distinct // 8)
    assert factored == (distinct if kind == "dense" else lanes)


def test_periods_and_blocks_cover_all_rows() -> None:
    for rows in range(1, 40):
        for repeated in (r for r in range(1, rows + 1) if rows % r == 0):
            assert set(arranged(rows, repeated).ravel().tolist()) == set(range(rows))
            values = np.tile(np.arange(repeated, dtype=float)[:, None], (rows // repeated, 3))
            assert period(values) == repeated


def test_a_jacobian_costs_one_factorization(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """What jacrev and jacfwd of the frameworks ask: one host call whose rows are one problem, with every basis vector."""
    monkeypatch.setenv("CVXLAYERS_NUM_THREADS", "1")  # else every thread factors for itself
    case = CASES["quadratic_program"]()
    layer, values = Layer(case.problem, case.parameters, case.variables), case.sample(rng)
    size = sum(port.shape[0] for port in layer.outputs)
    repeated = [np.broadcast_to(v, (size, *v.shape)) for v in values]
    outputs, _, saved = layer.forward(repeated, Options())
    basis = np.split(np.eye(size), np.cumsum([port.shape[0] for port in layer.outputs])[:-1], axis=1)
    jacobian = layer.vjp(saved, basis, [True] * len(values))
    assert layer.conic.kkt._systems.factored == 1
    _, _, alone = layer.forward(values, Options())
    for row in (0, size - 1):
        for got, want in zip(jacobian, layer.vjp(alone, [g[row] for g in basis], [True] * len(values)), strict=True):
            np.testing.assert_array_equal(got[row], want)
    directions = [np.zeros((size, *v.shape)) for v in values]
    directions[1][range(6), range(6)] = 1.0
    layer.jvp(saved, directions)
    assert layer.conic.kkt._systems.factored == 1


def test_full_patterns_are_solved_on_dense_storage(rng: np.random.Generator) -> None:
    def built(n: int, density: float) -> Any:
        A = sp.random_array((n, n), density=density, rng=rng) + sp.eye_array(n)
        P = sp.csc_matrix(np.ones((n, n))) if density == 1.0 else sp.eye_array(n)
        return ConicLayer(Pattern.of(P, A, Product((Zero(3), NonNegative(n - 3)))))

    assert isinstance(built(60, 1.0).kkt._systems, DenseSystems)
    assert isinstance(built(60, 0.02).kkt._systems, Systems)
    assert isinstance(built(8, 1.0).kkt._systems, Systems)


@pytest.mark.parametrize("name", CASES)
def test_without_numba_everything_is_the_same_to_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, rng = CASES[name](), np.random.default_rng(3)
    values = [np.stack(v) for v in zip(case.sample(rng), case.sample(rng), strict=True)]
    results = []
    for _ in range(2):
        layer = Layer(case.problem, case.parameters, case.variables, gp=case.gp)
        outputs, info, saved = layer.forward(values, Options())
        weights = np.random.default_rng(4)
        cotangents = [weights.standard_normal(o.shape) for o in outputs]
        results.append([*outputs, info.objective, *layer.vjp(saved, cotangents, [True] * len(values))])
        for module in ("products", "kkt", "row_map"):
            monkeypatch.setattr(f"cvxlayers.{module}.kernels", lambda name: None)
    assert layer.conic.kkt._systems is None and layer.conic.kkt.products.passes is None
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * (1 + np.max(abs(want))))


def test_a_missing_numba_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError("no module named numba")

    monkeypatch.setattr("cvxlayers.compiled.import_module", absent)
    compiled.kernels.cache_clear()
    compiled.numba_loads.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="numba cannot load"):
            assert compiled.kernels("passes") is None
        assert compiled.kernels("passes") is compiled.kernels("ldl") is None  # and silently
    finally:
        compiled.kernels.cache_clear()
        compiled.numba_loads.cache_clear()


def test_compiled_passes_are_the_formulas(rng: np.random.Generator) -> None:
    """Products and residuals against dense matrices, K's entries and the outer products against the NumPy path."""
    cone = Product((Zero(2), NonNegative(3), SecondOrder(4), SecondOrder(4), Exponential()))
    m, n, rows = cone.dim, 6, 3
    A = sp.csc_matrix(np.where(rng.random((m, n)) < 0.6, 1.0, 0.0))
    pattern = Pattern.of(sp.csc_matrix(np.triu(rng.random((n, n)) < 0.6) | np.eye(n, dtype=bool)), A, cone)
    program = ConeProgram(*(rng.standard_normal((rows, k)) for k in (pattern.nnzP, n, pattern.nnzA, m)))
    point = Solution(*(rng.standard_normal((rows, k)) for k in (n, m, m)))
    products = Products.of(pattern)
    for row in range(rows):
        dense_A = sp.csc_matrix((program.A[row], pattern.A_indices, pattern.A_indptr), shape=(m, n)).toarray()
        upper = sp.csc_matrix((program.P[row], pattern.P_indices, pattern.P_indptr), shape=(n, n)).toarray()
        dense_P = upper + np.triu(upper, 1).T
        np.testing.assert_allclose(products.P(program.P, point.x)[row], dense_P @ point.x[row], atol=1e-13)
        np.testing.assert_allclose(products.A(program.A, point.x)[row], dense_A @ point.x[row], atol=1e-13)
        np.testing.assert_allclose(products.AT(program.A, point.y)[row], dense_A.T @ point.y[row], atol=1e-13)

    def all_of(system: kkt.KKT) -> list[np.ndarray]:
        found = residuals(system.products, program, point.x, point.y, point.s)
        pulled, certificate = adjoint.vjp(system, program, point, Solution(point.s[:, :n], point.y, point.s))
        entries = system.assemble(program, system.dual_cone.derivative(point.y - point.s))
        return [*vars(found).values(), *vars(pulled).values(), certificate.margin, entries]

    fast = all_of(kkt.KKT(pattern))
    slow_system = kkt.KKT(pattern)
    slow_system.products.__dict__["passes"] = None
    slow_system.__dict__["_systems"] = None
    for got, want in zip(fast, all_of(slow_system), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * (1 + float(np.max(abs(want)))))
