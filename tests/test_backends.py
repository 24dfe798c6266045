"""What holds in every framework: the same numbers as the host, whatever the cone, batch, dtype or failure."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from cvxlayers.errors import SolverError, Status
from cvxlayers.host import Options
from tests.backends import TABLE, adapter, requested
from tests.problems import CASES, Case, cp

every_backend = pytest.mark.parametrize("backend", requested())


@functools.cache
def case_of(name: str) -> Case:
    return CASES[name]()


@functools.cache
def layer_of(backend: str, name: str) -> Any:
    case = case_of(name)
    return adapter(backend).CvxpyLayer(case.problem, case.parameters, case.variables, gp=case.gp)


def draw(name: str, batch: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = [case_of(name).sample(rng) for _ in range(int(np.prod(batch)))]
    return [np.stack(v).reshape(*batch, *np.shape(v[0])) for v in zip(*rows, strict=True)]


def cotangents_of(outputs: list[np.ndarray], seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    pairs = [(rng.standard_normal(o.shape), rng.standard_normal(o.shape)) for o in outputs]
    return [(a + 1j * b if np.iscomplexobj(o) else a).astype(o.dtype) for o, (a, b) in zip(outputs, pairs, strict=True)]


@every_backend
@pytest.mark.parametrize("batch", [(2,), (2, 1)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_framework_gives_the_numbers_of_the_host(backend: str, name: str, batch: tuple[int, ...]) -> None:
    layer, values = layer_of(backend, name), draw(name, batch)
    outputs, _, saved = layer.core.forward(values, Options())
    cotangents = cotangents_of(outputs)
    gradients = layer.core.vjp(saved, cotangents, [True] * len(values))
    found, pulled = TABLE[backend](layer, values, cotangents)
    for got, want in zip(found, outputs, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    for got, want in zip(pulled, gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * (1 + float(np.max(abs(want)))))


@every_backend
def test_single_precision_stays_single_precision(backend: str) -> None:
    layer = layer_of(backend, "quadratic_program")
    values = [v.astype(np.float32) for v in draw("quadratic_program", (3,))]
    outputs, _, saved = layer.core.forward(values, Options())
    cotangents = cotangents_of(outputs)
    found, pulled = TABLE[backend](layer, values, [g.astype(np.float32) for g in cotangents])
    wide = layer.core.vjp(saved, [g.astype(np.float32).astype(float) for g in cotangents], [True] * len(values))
    assert {a.dtype for a in found + pulled} == {np.dtype(np.float32)}
    for got, want in zip(found + pulled, outputs + wide, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * (1 + float(np.max(abs(want)))))  # rounding to float32


@every_backend
def test_a_failed_row_is_nan_with_zero_gradient_or_raised(backend: str) -> None:
    x, p = cp.Variable(2), cp.Parameter(2)
    layer = adapter(backend).CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0, cp.sum(x) <= p[0]]), [p], [x])
    values = [np.array([[2.0, 0.5], [-1.0, 0.0], [3.0, 1.0]])]  # the second asks for a negative sum

    def masked(*arguments: Any) -> Any:
        outputs, info = layer(*arguments, on_failure="nan", return_info=True)
        seen.append(np.asarray(info.status))
        return outputs

    seen: list[np.ndarray] = []
    (found,), (pulled,) = TABLE[backend](masked, values, [np.ones((3, 2))])
    np.testing.assert_array_equal(seen[0], [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED])
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all() and (pulled[1] == 0).all() and pulled[[0, 2]].any()
    with pytest.raises(SolverError, match="row 1 of 3: PRIMAL_INFEASIBLE"):
        TABLE[backend](layer, values, [np.ones((3, 2))])


@every_backend
def test_the_cone_program_below(backend: str) -> None:
    core = layer_of(backend, "mixed_cones").core
    layer = adapter(backend).ConicLayer(core.canonical.pattern)
    _, _, saved = core.forward(draw("mixed_cones", (3,)), Options())
    data = list(vars(core.program(saved)).values())
    outputs, _, kept = layer.core.forward(data, Options())
    cotangents = cotangents_of(outputs)
    found, pulled = TABLE[backend](layer, data, cotangents)
    for got, want in zip(found + pulled, outputs + layer.core.vjp(kept, cotangents, [True] * 4), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * (1 + float(np.max(abs(want), initial=0))))
