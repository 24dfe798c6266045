"""The cone program as a layer: derivatives of all three outputs in all four data, missing bounds, shapes, the verdict on solvers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from cvxlayers.cones import Exponential, NonNegative, Power, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.conic import ConicLayer
from cvxlayers.conic_map import ConicMap
from cvxlayers.errors import InaccurateWarning, SolverError, Status
from cvxlayers.host import Options
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver
from cvxlayers.solvers.clarabel import Clarabel

CONES = {
    "zero": Product((Zero(3),)),
    "nonnegative": Product((NonNegative(6),)),
    "second_order": Product((SecondOrder(1), SecondOrder(2), SecondOrder(5), SecondOrder(5))),
    "semidefinite": Product((Semidefinite(2), Semidefinite(4))),
    "exponential": Product((Exponential(), Exponential(), Exponential())),
    "power": Product((Power(0.25), Power(0.7), Power(0.7))),
    "mixed": Product((Zero(2), NonNegative(4), SecondOrder(4), Semidefinite(3), Exponential(), Exponential(), Power(0.4))),
    "none": Product(()),
}


def regular(cone: Product, rng: np.random.Generator, rows: int = 2) -> tuple[ConicLayer, ConeProgram, Solution]:
    """Programs built backwards from strictly complementary y and s, so that the solution is known and unique."""
    n, m = 16, cone.dim
    A = sp.csc_matrix(np.where(rng.random((m, n)) < 0.8, rng.standard_normal((m, n)), 0.0))
    pattern = Pattern.of(sp.csc_matrix(np.ones((n, n))), A, cone)
    layer = ConicLayer(pattern)
    root, x = rng.standard_normal((rows, n, n)), rng.standard_normal((rows, n))
    P = (root @ np.swapaxes(root, 1, 2) + np.eye(n))[:, pattern.P_indices, pattern.P_columns]
    values = A.data * (1 + 0.1 * rng.standard_normal((rows, pattern.nnzA)))
    v = rng.standard_normal((rows, m))
    y = cone.dual().project(v)
    s = y - v
    products = layer.kkt.products
    q = -products.P(P, x) - products.AT(values, y)
    return layer, ConeProgram(P, q, values, products.A(values, x) + s), Solution(x, y, s, np.zeros(rows, np.int8))


def call(layer: ConicLayer, program: ConeProgram) -> Solution:
    return Solution(*layer(program.P, program.q, program.A, program.b))


@pytest.mark.parametrize("name", CONES)
def test_the_solution_is_the_one_built_in(name: str, rng: np.random.Generator) -> None:
    layer, program, known = regular(CONES[name], rng)
    found = call(layer, program)
    for got, want in zip((found.x, found.y, found.s), (known.x, known.y, known.s), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.parametrize("name", CONES)
def test_no_work_for_cotangents_that_nobody_wants(name: str, rng: np.random.Generator) -> None:
    layer, program, known = regular(CONES[name], rng)
    solution = replace(call(layer, program), status=known.status)
    x, y = rng.standard_normal(known.x.shape), rng.standard_normal(known.y.shape)
    whole, _ = layer.vjp(program, solution, Solution(x, y, np.zeros_like(known.s)))
    for wanted in ((False, False), (True, False), (False, True)):
        part, _ = layer.vjp(program, solution, Solution(x, y, None), wanted)
        assert [part.P is not None, part.A is not None] == list(wanted)
        for got, want in zip(vars(part).values(), vars(whole).values(), strict=True):
            assert got is None or np.array_equal(got, want)


@pytest.mark.parametrize("name", CONES)
def test_derivatives_of_x_y_s_in_P_q_A_b(name: str, rng: np.random.Generator) -> None:
    layer, program, known = regular(CONES[name], rng)
    solution = replace(call(layer, program), status=known.status)
    cotangent = Solution(*(rng.standard_normal(a.shape) for a in (known.x, known.y, known.s)))
    pulled, certificate = layer.vjp(program, solution, cotangent)
    assert (certificate.residual < 1e-9).all() and (certificate.margin > 1e-6).all()
    for datum in ("P", "q", "A", "b"):
        zero = ConeProgram(*(np.zeros_like(a) for a in vars(program).values()))
        tangent = replace(zero, **{datum: rng.standard_normal(getattr(program, datum).shape)})
        step = 1e-5

        def moved(t: float, datum: str = datum, tangent: ConeProgram = tangent) -> Solution:
            return call(layer, replace(program, **{datum: getattr(program, datum) + t * getattr(tangent, datum)}))

        far, near = (moved(-2 * step), moved(2 * step)), (moved(-step), moved(step))
        pushed, _ = layer.jvp(program, solution, tangent)
        total = 0.0
        for output in ("x", "y", "s"):
            a, b, c, d = (getattr(p, output) for p in (*near, *far))
            difference = (8 * (b - a) - (d - c)) / (12 * step)
            np.testing.assert_allclose(getattr(pushed, output), difference, atol=1e-6 * (1 + np.max(abs(difference), initial=0)))
            total = total + (getattr(cotangent, output) * difference).sum(1)
        got = (getattr(pulled, datum) * getattr(tangent, datum)).sum(1)
        np.testing.assert_allclose(got, total, atol=1e-6 * (1 + np.max(abs(total))))


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "ECOS", "DAQP", "DIFFCP", "MOREAU", "INTERIOR"])
def test_an_infinite_bound_is_a_missing_bound(solver: str, rng: np.random.Generator) -> None:
    """min |x - p|_1 or q'x on a box with open sides: x <= inf is no constraint, and moves nothing."""
    n = 3
    A = sp.csc_matrix(np.vstack([np.eye(n), -np.eye(n)]))
    layer = ConicLayer(Pattern.of(sp.csc_matrix((n, n)), A, Product((NonNegative(2 * n),))), solver)
    q, b = np.array([1.0, -2.0, 1.0]), np.array([np.inf, 4.0, np.inf, 1.0, np.inf, 3.0])
    (x, y, s), info = layer(np.zeros(0), q, A.data, b, return_info=True)
    assert info.status == Status.SOLVED
    np.testing.assert_allclose(x, [-1, 4, -3], atol=1e-7)
    np.testing.assert_allclose(y, [0, 2, 0, 1, 0, 1], atol=1e-7)
    assert np.isinf(s[[0, 2, 4]]).all() and np.isfinite(s[[1, 3, 5]]).all()
    program = ConeProgram(np.zeros((1, 0)), q[None], A.data[None], b[None])
    solution = Solution(x[None], y[None], s[None], np.zeros(1, np.int8))
    pulled, _ = layer.vjp(program, solution, Solution(np.ones((1, n)), np.zeros((1, 2 * n)), np.ones((1, 2 * n))))
    assert all(np.isfinite(a).all() for a in vars(pulled).values())
    assert (pulled.b[0, [0, 2, 4]] == 0).all() and (pulled.A[0, [0, 3, 4]] == 0).all()
    pushed, _ = layer.jvp(program, solution, ConeProgram(program.P, 0 * q[None], 0 * A.data[None], np.ones((1, 2 * n))))
    np.testing.assert_allclose(pushed.x, [[-1, 1, -1]], atol=1e-9)


@pytest.mark.parametrize("entry, where", [(-np.inf, "nonnegative"), (np.inf, "zero"), (np.inf, "second_order"), (np.nan, "nonnegative")])
def test_other_infinite_data_are_invalid(entry: float, where: str, rng: np.random.Generator) -> None:
    layer, program, _ = regular(CONES[where], rng)
    b = program.b.copy()
    b[1, 1] = entry
    (x, _, _), info = layer(program.P, program.q, program.A, b, on_failure="nan", return_info=True)
    np.testing.assert_array_equal(info.status, [Status.SOLVED, Status.INVALID_PARAMETER])
    assert np.isnan(x[1]).all() and np.array_equal(x[0], layer(program.P[0], program.q[0], program.A[0], program.b[0])[0])


def test_batches_of_any_shape_and_shared_data(rng: np.random.Generator) -> None:
    layer, program, _ = regular(CONES["mixed"], rng, rows=6)
    flat = call(layer, program)
    cube = layer(*(a.reshape(3, 1, 2, -1) for a in vars(program).values()))
    assert all(np.array_equal(a.reshape(6, -1), b) for a, b in zip(cube, (flat.x, flat.y, flat.s), strict=True))
    shared = layer(program.P[0], program.q, program.A[0], program.b[0], on_failure="nan")
    alone = layer(program.P[0], program.q[0], program.A[0], program.b[0])
    assert shared[0].shape == (6, 16) and np.array_equal(shared[0][0], alone[0])
    (x, y, s), info = layer(*(a[:0] for a in vars(program).values()), return_info=True)
    assert x.shape == (0, 16) and y.shape == s.shape == (0, layer.pattern.m) and info.status.shape == (0,)
    empty, certificate = layer.vjp(ConeProgram(*(a[:0] for a in vars(program).values())), Solution(x, y, s, info.status), Solution(x, y, s))
    assert empty.A.shape == (0, layer.pattern.nnzA) and certificate.residual.shape == (0,)


def test_misuse_is_a_value_error(rng: np.random.Generator) -> None:
    layer, program, _ = regular(CONES["mixed"], rng)
    P, q, A, b = vars(program).values()
    pattern = layer.pattern
    other, info = layer(P, q, A, b, return_info=True)
    misuses: list[tuple[str, tuple, dict[str, Any]]] = [
        ("q has shape", (P, q[:, :3], A, b), {}),
        ("q has batch shape .* and b has batch shape", (P[0], q, A[0], b[:1]), {}),
        ("on_failure is 'ignore'", (P, q, A, b), {"on_failure": "ignore"}),
        ("warm_start is a dict", (P, q, A, b), {"warm_start": {}}),
        ("warm_start has batch shape", (P[0], q[0], A[0], b[0]), {"warm_start": info}),
        ("no option 'speed'", (P, q, A, b), {"solver_args": {"speed": 1}}),
    ]
    for match, arguments, options in misuses:
        with pytest.raises(ValueError, match=match):
            layer(*arguments, **options)
    with pytest.raises(ValueError, match="cannot handle.*try 'CLARABEL'"):
        ConicLayer(pattern, "ECOS")
    for match, change in (
        ("order", {"cone": Product((NonNegative(2), Zero(pattern.m - 2)))}),
        ("cone has dimension", {"cone": Product((Zero(1),))}),
        ("below the diagonal", {"P_indices": np.r_[1, pattern.P_indices[1:]]}),
        ("unsorted or duplicate", {"A_indices": np.zeros_like(pattern.A_indices)}),
        ("reach outside", {"A_indices": pattern.A_indices + pattern.m}),
        ("P_indptr", {"P_indptr": pattern.P_indptr[:-1]}),
    ):
        fields = {k: getattr(pattern, k) for k in ("n", "m", "P_indices", "P_indptr", "A_indices", "A_indptr", "cone")}
        with pytest.raises(ValueError, match=match):
            Pattern(**{**fields, **change})


@dataclass(frozen=True)
class _Liar(Solver):
    """A solver that says ``word`` of every row and shifts what it found."""

    name = "LIAR"
    cones = Clarabel.cones
    quadratic = True
    honest: Solver = field(default_factory=Clarabel)
    shift: float = 0.0
    word: Status = Status.SOLVED

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        found = self.honest.solve(pattern, program, start)
        return replace(found, x=found.x + self.shift, status=np.full(len(found.x), self.word, np.int8))


@pytest.mark.parametrize(
    "shift, word, verdict",
    [
        (0.0, Status.SOLVED, Status.SOLVED),
        (0.0, Status.INACCURATE, Status.SOLVED),
        (1e-5, Status.SOLVED, Status.INACCURATE),
        (1e-5, Status.INACCURATE, Status.INACCURATE),
        (0.5, Status.SOLVED, Status.NUMERICAL_ERROR),
        (np.nan, Status.SOLVED, Status.NUMERICAL_ERROR),
        (0.5, Status.ITERATION_LIMIT, Status.ITERATION_LIMIT),
        (0.5, Status.PRIMAL_INFEASIBLE, Status.PRIMAL_INFEASIBLE),
        (0.0, Status.ITERATION_LIMIT, Status.SOLVED),
        (0.0, Status.PRIMAL_INFEASIBLE, Status.SOLVED),
    ],
)
def test_the_residuals_judge_not_the_solver(
    shift: float, word: Status, verdict: Status, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, program, _ = regular(CONES["mixed"], rng)
    monkeypatch.setattr("cvxlayers.verdict.LONGEST", 0)  # else the shift would be repaired
    liar = _Liar(shift=shift, word=word)
    monkeypatch.setattr("cvxlayers.solvers.get", lambda *_: (liar, ()))
    layer = ConicLayer(layer.pattern)
    data = tuple(vars(program).values())
    if verdict == Status.SOLVED:
        layer(*data)
    elif verdict == Status.INACCURATE:
        with pytest.warns(InaccurateWarning, match="rows 0, 1 of 2: INACCURATE"):
            layer(*data)
    else:
        with pytest.raises(SolverError, match=f"rows 0, 1 of 2: {verdict.name}") as caught:
            layer(*data)
        assert caught.value.rows == (0, 1) and caught.value.statuses == (verdict, verdict)


def test_newton_steps_polish_what_a_solver_leaves(rng: np.random.Generator) -> None:
    layer, program, known = regular(CONES["mixed"], rng)
    rough = {"eps": 1e-5}
    (x, _, _), info = layer(*vars(program).values(), solver_args=rough, return_info=True)
    assert (np.maximum(info.primal_residual, info.dual_residual) < 1e-12).all()
    np.testing.assert_allclose(x, known.x, atol=1e-10)
    raw = layer.solver.solve(layer.pattern, program)
    assert np.max(abs(raw.x - known.x)) > 1e-10  # the polish had something to do


def test_the_map_that_adapters_see_is_the_layer(rng: np.random.Generator) -> None:
    layer, program, _ = regular(CONES["mixed"], rng, rows=3)
    core = ConicMap(ConicLayer(layer.pattern))
    shared = [program.P[0], program.q, program.A[0], program.b]
    options = Options(on_failure="nan")
    outputs, info, saved = core.forward(shared, options)
    wide = [np.broadcast_to(a, (3, a.shape[-1])) for a in shared]
    for got, want in zip(outputs, layer(*wide, on_failure="nan"), strict=True):
        np.testing.assert_array_equal(got, want)
    assert [port.name for port in core.inputs + core.outputs] == ["P", "q", "A", "b", "x", "y", "s"]

    flat = ConeProgram(*(np.array(a) for a in wide))
    cotangents = [rng.standard_normal(o.shape) for o in outputs]
    tangents = [rng.standard_normal(a.shape) for a in shared]
    pulled, _ = layer.vjp(flat, saved.solution, Solution(*cotangents))
    pushed, _ = layer.jvp(flat, saved.solution, ConeProgram(*(np.broadcast_to(t, (3, t.shape[-1])) for t in tangents)))
    for state in (saved, core.restore(shared, info.solution)):
        for got, want, array in zip(core.vjp(state, cotangents, [True] * 4), vars(pulled).values(), shared, strict=True):
            np.testing.assert_array_equal(got, want if array.ndim > 1 else want.sum(0))
        for got, want in zip(core.jvp(state, tangents), (pushed.x, pushed.y, pushed.s), strict=True):
            np.testing.assert_array_equal(got, want)
    assert core.vjp(saved, [None, None, cotangents[2]], [False, True, False, False])[0] is None
    with pytest.raises(ValueError, match="second derivatives"):
        core.second_jvp(saved, tangents, tangents)
    for match, arguments in (("wanted 4", shared[:3]), (r"'q' \(2 of 4\) has shape", [shared[0], shared[1][:, :2], *shared[2:]])):
        with pytest.raises(ValueError, match=match):
            core.forward(arguments, options)


def test_second_derivatives_of_the_map_equal_finite_differences(rng: np.random.Generator) -> None:
    layer, program, _ = regular(Product((Zero(2), NonNegative(5), SecondOrder(4), SecondOrder(4))), rng)
    core, data = ConicMap(ConicLayer(layer.pattern)), list(vars(program).values())
    one, two = ([rng.standard_normal(a.shape) for a in data] for _ in range(2))
    outputs, _, saved = core.forward(data, Options())
    cotangents, needed, step = [rng.standard_normal(o.shape) for o in outputs], [True] * 4, 1e-5

    def at(t: float):
        return core.forward([a + t * d for a, d in zip(data, two, strict=True)], Options())[2]

    ahead, behind, far, back = (at(k * step) for k in (1, -1, 2, -2))
    for got, first in (
        (core.second_jvp(saved, one, two), lambda state: core.jvp(state, one)),
        (core.second_vjp(saved, cotangents, two, needed), lambda state: core.vjp(state, cotangents, needed)),
    ):
        stencil = zip(got, *(first(state) for state in (ahead, behind, far, back)), strict=True)
        for found, a, b, c, d in stencil:
            want = (8 * (a - b) - (c - d)) / (12 * step)
            np.testing.assert_allclose(found, want, atol=1e-6 * (1 + float(np.max(abs(want)))))
