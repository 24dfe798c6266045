"""Units: a program's derivative does not depend on those that its data come in, however far apart they are."""

import warnings

import numpy as np
import pytest

from cvxlayers import compiled
from cvxlayers import units as module
from cvxlayers.conic import ConicLayer
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Solution
from cvxlayers.units import in_units, units
from tests.families import FAMILIES, MARGIN, batch

SIZES = {"mixed": (10, 20, 40)}  # the others: (3, 8)


def slopes(layer: ConicLayer, program: ConeProgram, seed: int) -> tuple[np.ndarray, ...]:
    """w'dx by jvp and by vjp along a relative change of the data, w relative to x, over the sum of the terms' sizes: both free of units.

    Then the statuses, where the derivative is one that no warning speaks of, and the smallest margin.
    """
    rng = np.random.default_rng(seed)
    solution, info = layer.solve(program, (len(program.q),))
    weights = rng.standard_normal(solution.x.shape) / (1e-300 + abs(solution.x))
    tangent = ConeProgram(*(rng.standard_normal(part.shape) * abs(part) for part in vars(program).values()))
    zero = np.zeros_like(solution.y)
    gradient, certificate = layer.vjp(program, solution, Solution(weights, zero, zero))
    moved, forward = layer.jvp(program, solution, tangent)
    terms = np.concatenate([getattr(gradient, k) * getattr(tangent, k) for k in ("P", "q", "A", "b")], axis=1)
    silent = ~(certificate.not_unique | forward.not_unique | certificate.kink)
    return terms.sum(1), (moved.x * weights).sum(1), abs(terms).sum(1), info.status, silent, certificate.margin


@pytest.mark.parametrize("solver", ["INTERIOR", "CLARABEL"])
@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_do_not_depend_on_units(family: str, solver: str) -> None:
    """The same programs, in units from 1e-4 to 1e4 and in good ones, where they are smooth and solved."""
    compared = told = 0
    sizes = SIZES.get(family, (3, 8))
    for number in range(2 * len(sizes)):
        n = sizes[number % len(sizes)]
        results = []
        for scaled in (False, True):
            pattern, program, _ = batch(family, n, scaled, np.random.default_rng([7, FAMILIES.index(family), number]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results.append(slopes(ConicLayer(pattern, solver), program, number))
        (vjp, jvp, size, status, silent, margin), (other_vjp, other_jvp, _, other_status, other_silent, _) = results
        good = silent & (margin > MARGIN) & (status == Status.SOLVED) & (other_status == Status.SOLVED)
        believed = good & other_silent & (size > 0)
        compared, told = compared + int(believed.sum()), told + int((good & ~other_silent).sum())
        np.testing.assert_allclose(other_vjp[believed] / size[believed], vjp[believed] / size[believed], rtol=0, atol=1e-6)
        np.testing.assert_allclose(other_jvp[believed] / size[believed], jvp[believed] / size[believed], rtol=0, atol=1e-6)
    assert compared >= 10 and told <= compared  # most are told nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_units_are_those_of_the_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, program, _ = batch(family, 8, True, np.random.default_rng(3))
    layer = ConicLayer(pattern, "INTERIOR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution, _ = layer.solve(program, (len(program.q),))
    solution = Solution(solution.x, solution.y + 1e-9, solution.s + 1e-9)
    found = units(layer.kkt.products, program, solution)
    assert compiled.kernels("units") is not None and found is not None and (found != 1).any() and (np.log2(found) % 1 == 0).all()
    assert (found[:, : pattern.cone.cones[0].dim] == 1).all()  # equations
    monkeypatch.setattr(module, "kernels", lambda name: None)
    np.testing.assert_array_equal(units(layer.kkt.products, program, solution), found)


def test_units_change_nothing_but_units() -> None:
    """x, the residuals' zeros and y's stay; there and back again is exact."""
    pattern, program, _ = batch("mixed", 8, False, np.random.default_rng(4))
    rng = np.random.default_rng(5)
    e = np.exp2(rng.integers(-20, 20, (len(program.q), pattern.m)))
    layer = ConicLayer(pattern)
    solution = Solution(*(rng.standard_normal((len(program.q), k)) for k in (pattern.n, pattern.m, pattern.m)))
    products = layer.kkt.products
    turned, there = in_units(products, program, e), in_units(products, solution, e)
    np.testing.assert_array_equal(products.A(turned.A, there.x) - turned.b, e * (products.A(program.A, solution.x) - program.b))
    np.testing.assert_array_equal((there.y * there.s).sum(1), (solution.y * solution.s).sum(1))
    for record, changed in ((program, turned), (solution, there)):
        for name, part in vars(in_units(products, changed, 1 / e)).items():
            np.testing.assert_array_equal(part, getattr(record, name))


def test_nothing_is_rescaled_where_the_sides_are_alike() -> None:
    for family in FAMILIES:
        pattern, program, _ = batch(family, 3, False, np.random.default_rng(6))
        ones = Solution(*(np.ones((len(program.q), k)) for k in (pattern.n, pattern.m, pattern.m)))
        same = ConeProgram(*(np.ones_like(part) for part in vars(program).values()))
        assert units(ConicLayer(pattern).kkt.products, same, ones) is None
