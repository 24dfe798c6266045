"""Gradients of the whole road, from parameters to variables and duals, against independent oracles."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest

from cvxlayers.errors import Status
from cvxlayers.host import Options
from cvxlayers.layer import Layer
from tests.problems import CASES, PAIRS, Case, cp, inner


@functools.cache
def case_of(name: str) -> Case:
    return CASES[name]()


@functools.cache
def layer_of(name: str, solver: str | None = None) -> Layer:
    case = case_of(name)
    return Layer(case.problem, case.parameters, case.variables, solver, case.gp)


def tangent_of(case: Case, values: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """A direction in which every parameter keeps what its declaration promises."""
    first, second = (case.sample(np.random.default_rng(int(rng.integers(1 << 30)))) for _ in range(2))
    return [(a - b) / 2 for a, b in zip(first, second, strict=True)]


def solve(layer: Layer, values: list[np.ndarray]) -> list[np.ndarray]:
    return layer.forward(values, Options())[0]


def five_point(function, step: float) -> list[np.ndarray]:
    """The derivative of a function of one number at zero, by a five-point stencil."""
    far, near = [function(k * step) for k in (-2, 2)], [function(k * step) for k in (-1, 1)]
    return [(8 * (b - a) - (d - c)) / (12 * step) for a, b, c, d in zip(near[0], near[1], far[0], far[1], strict=True)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_jvp_and_vjp_equal_finite_differences(name: str, seed: int) -> None:
    case, layer, rng = case_of(name), layer_of(name), np.random.default_rng(seed)
    values = case.sample(rng)
    outputs, info, saved = layer.forward(values, Options())
    assert info.status == Status.SOLVED and max(info.primal_residual, info.dual_residual, info.gap) < 1e-12
    for k in range(len(values)):
        directions = tangent_of(case, values, rng)
        direction = [d if i == k else None for i, d in enumerate(directions)]

        def moved(t: float, k: int = k, directions: list[np.ndarray] = directions) -> list[np.ndarray]:
            return solve(layer, [v + t * directions[k] if i == k else v for i, v in enumerate(values)])

        differences = five_point(moved, 1e-5)
        pushed = layer.jvp(saved, direction)
        scale = max(1.0, *(float(np.max(abs(d), initial=0)) for d in differences))
        # Forward solutions are polished to rounding, so the stencil's own error (rounding / step) is the tolerance.
        for got, wanted in zip(pushed, differences, strict=True):
            assert np.max(abs(got - wanted), initial=0) < 1e-7 * scale
        cotangents = [rng.standard_normal(o.shape) * (1 + 1j if np.iscomplexobj(o) else 1) for o in outputs]
        gradient = layer.vjp(saved, cotangents, [True] * len(values))[k]
        want = sum(inner(g, d) for g, d in zip(cotangents, differences, strict=True))
        assert abs(inner(gradient, directions[k]) - want) < 1e-7 * scale * sum(np.sum(abs(g)) for g in cotangents)


@pytest.mark.parametrize("name, solver", PAIRS)
def test_every_solver_gives_the_same_outputs_and_gradients(name: str, solver: str) -> None:
    case, rng = case_of(name), np.random.default_rng(7)
    values = [np.stack(v) for v in zip(case.sample(rng), case.sample(rng), strict=True)]
    results = []
    for layer in (layer_of(name), layer_of(name, solver)):
        outputs, info, saved = layer.forward(values, Options())
        assert (info.status == Status.SOLVED).all()
        direction = np.random.default_rng(1)
        cotangents = [direction.standard_normal(o.shape) for o in outputs]
        results.append(outputs + layer.vjp(saved, cotangents, [True] * len(values)))
    assert layer_of(name, solver).conic.solver.name == solver
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-7 * (1 + np.max(abs(wanted))), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_values_and_duals_equal_those_of_cvxpy(name: str) -> None:
    case, layer, rng = case_of(name), layer_of(name), np.random.default_rng(3)
    problem: Any = case.problem
    values = case.sample(rng)
    outputs, info, _ = layer.forward(values, Options())
    for parameter, value in zip(case.parameters, values, strict=True):
        parameter.project_and_assign(value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CVXPY's remarks on accuracy at this tolerance
        problem.solve(solver=cp.CLARABEL, gp=case.gp, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    # CVXPY's own solution is not polished: curved cones leave about the square root of the tolerance.
    np.testing.assert_allclose(info.objective, problem.value, rtol=1e-7, atol=1e-7)
    for variable, got in zip(case.variables, outputs, strict=True):
        np.testing.assert_allclose(got, np.reshape(np.asarray(variable.value), variable.shape), atol=1e-4)  # SOC duals come as columns


@pytest.mark.parametrize("name", CASES)
def test_jvp_and_vjp_are_adjoint(name: str) -> None:
    case, layer, rng = case_of(name), layer_of(name), np.random.default_rng(11)
    values = case.sample(rng)
    outputs, _, saved = layer.forward(values, Options())
    tangents = tangent_of(case, values, rng)
    cotangents = [rng.standard_normal(o.shape) * (1 - 2j if np.iscomplexobj(o) else 1) for o in outputs]
    pushed = layer.jvp(saved, tangents)
    pulled = layer.vjp(saved, cotangents, [True] * len(values))
    left = sum(inner(g, d) for g, d in zip(cotangents, pushed, strict=True))
    right = sum(inner(g, d) for g, d in zip(pulled, tangents, strict=True))
    size = sum(np.sum(abs(g) * abs(d)) for g, d in zip(cotangents, pushed, strict=True))
    assert abs(left - right) < 1e-9 * max(size, 1)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_rows_bitwise(name: str) -> None:
    case, layer, rng = case_of(name), layer_of(name), np.random.default_rng(5)
    rows = [case.sample(rng) for _ in range(3)]
    together, info, saved = layer.forward([np.stack(v) for v in zip(*rows, strict=True)], Options())
    cotangents = [np.random.default_rng(2).standard_normal(o.shape) for o in together]
    gradients = layer.vjp(saved, cotangents, [True] * len(rows[0]))
    for i, row in enumerate(rows):
        alone, _, kept = layer.forward([v[None] for v in row], Options())
        single = layer.vjp(kept, [g[i : i + 1] for g in cotangents], [True] * len(row))
        for a, b in zip(alone + single, together + gradients, strict=True):
            assert np.array_equal(a[0], b[i])


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_adjoint_is_linear_at_every_scale(scale: float) -> None:
    case, layer, rng = case_of("mixed_cones"), layer_of("mixed_cones"), np.random.default_rng(4)
    outputs, _, saved = layer.forward(case.sample(rng), Options())
    g1, g2 = ([rng.standard_normal(o.shape) for o in outputs] for _ in range(2))
    needed = [True] * len(case.parameters)
    one, two, both, scaled = (
        layer.vjp(saved, g, needed) for g in (g1, g2, [a + b for a, b in zip(g1, g2, strict=True)], [scale * a for a in g1])
    )
    for a, b, c, d in zip(one, two, both, scaled, strict=True):
        np.testing.assert_allclose(a + b, c, rtol=0, atol=1e-11 * np.max(abs(c)))
        np.testing.assert_allclose(scale * a, d, rtol=0, atol=1e-13 * scale * np.max(abs(a)))
    assert all(not g.any() for g in layer.vjp(saved, [np.zeros_like(o) for o in outputs], needed))


def test_a_shared_parameter_collects_the_gradients_of_all_rows() -> None:
    case, layer, rng = case_of("least_squares"), layer_of("least_squares"), np.random.default_rng(8)
    F, g, lasso = case.sample(rng)
    many = rng.standard_normal((4, 2, len(g)))
    (x,), _, saved = layer.forward([F, many, lasso], Options())
    cotangent = rng.standard_normal(x.shape)
    shared = layer.vjp(saved, [cotangent], [True] * 3)
    _, _, kept = layer.forward([np.broadcast_to(F, (4, 2, *F.shape)), many, np.broadcast_to(lasso, (4, 2))], Options())
    each = layer.vjp(kept, [cotangent], [True] * 3)
    np.testing.assert_allclose(shared[0], each[0].sum((0, 1)), atol=1e-12)
    np.testing.assert_allclose(shared[1], each[1], atol=1e-12)
    np.testing.assert_allclose(shared[2], each[2].sum(), atol=1e-12)
    tangent = [rng.standard_normal(F.shape), rng.standard_normal(many.shape), np.array(1.0)]
    wide = [np.broadcast_to(tangent[0], (4, 2, *F.shape)), tangent[1], np.broadcast_to(tangent[2], (4, 2))]
    np.testing.assert_allclose(layer.jvp(saved, tangent)[0], layer.jvp(kept, wide)[0], atol=1e-12)


TWICE = ("linear_program", "least_squares", "quadratic_program", "second_order_program", "bounded_portfolio")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives_equal_finite_differences_of_the_first(name: str, seed: int) -> None:
    case, layer, rng = case_of(name), layer_of(name), np.random.default_rng(20 + seed)
    values = case.sample(rng)
    outputs, _, saved = layer.forward(values, Options())
    needed = [True] * len(values)
    one, two = tangent_of(case, values, rng), tangent_of(case, values, rng)
    cotangents = [rng.standard_normal(o.shape) for o in outputs]

    def at(t: float):
        return layer.forward([v + t * d for v, d in zip(values, two, strict=True)], Options())[2]

    checks = (
        (layer.second_vjp(saved, cotangents, two, needed), five_point(lambda t: layer.vjp(at(t), cotangents, needed), 1e-5)),
        (layer.second_jvp(saved, one, two), five_point(lambda t: layer.jvp(at(t), one), 1e-5)),
    )
    for found, wanted in checks:
        for got, want in zip(found, wanted, strict=True):
            # first derivatives are exact to about 1e-13 of their size, which the step magnifies
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * (1 + float(np.max(abs(want)))))
    for got, want in zip(layer.second_jvp(saved, one, two), layer.second_jvp(saved, two, one), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * (1 + float(np.max(abs(want)))))


@pytest.mark.parametrize("name", sorted(set(CASES) - set(TWICE)))
def test_second_derivatives_are_refused_where_unknown(name: str) -> None:
    case, layer = case_of(name), layer_of(name)
    values = case.sample(np.random.default_rng(0))
    outputs, _, saved = layer.forward(values, Options())
    tangents = tangent_of(case, values, np.random.default_rng(1))
    with pytest.raises(ValueError, match="second derivatives"):
        layer.second_vjp(saved, outputs, tangents, [True] * len(values))
    with pytest.raises(ValueError, match="second derivatives"):
        layer.second_jvp(saved, tangents, tangents)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_need_nothing_but_arrays(name: str) -> None:
    case, layer, rng = case_of(name), layer_of(name), np.random.default_rng(6)
    values = [np.stack(v) for v in zip(case.sample(rng), case.sample(rng), strict=True)]
    outputs, info, saved = layer.forward(values, Options())
    again = layer.restore(values, info.solution)
    cotangents = [rng.standard_normal(o.shape) for o in outputs]
    for a, b in zip(*(layer.vjp(s, cotangents, [True] * len(values)) for s in (saved, again)), strict=True):
        assert np.array_equal(a, b)
