"""Random families of cone programs: INTERIOR against Clarabel (the long run stands in families.py; its last result in families.txt)."""

import numpy as np
import pytest

from cvxlayers.conic import ConicLayer
from cvxlayers.program import ConeProgram, Solution, take
from tests.families import FAMILIES, RESULT, batch, run


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_programs(family):
    outcome = run(family, 20)
    assert outcome.complaints == [] and outcome.solved["SOLVED"] == outcome.programs == 20
    assert outcome.compared and outcome.differenced


def test_the_last_long_run():
    """500 programs of each family; `make test-long` writes it anew."""
    lines = RESULT.read_text().splitlines()
    table = {line.split()[0]: line.split() for line in lines[1 : 1 + len(FAMILIES)]}
    assert all(int(table[family][1]) == 500 for family in FAMILIES) and "0 disagreements" in lines


def test_units_alone_send_no_row_to_least_squares():
    """Gradients in units from 1e-4 to 1e4 make long adjoint solutions of regular systems; they are right, not blown up."""
    rng = np.random.default_rng([0, FAMILIES.index("second_order"), 13])
    pattern, programs, _ = batch("second_order", 8, True, rng)
    program = take(programs, np.array([6]))
    layer = ConicLayer(pattern, solver="INTERIOR")
    solution, _ = layer.solve(program, (1,))
    for _ in range(5):
        tangent = ConeProgram(*(rng.standard_normal(part.shape) * abs(part) for part in vars(program).values()))
        weights, zero = rng.standard_normal(solution.x.shape) / abs(solution.x), np.zeros_like(solution.y)
        gradient, certificate = layer.vjp(program, solution, Solution(weights, zero, zero))
        moved, _ = layer.jvp(program, solution, tangent)
        slope = sum((getattr(gradient, k) * getattr(tangent, k)).sum() for k in ("P", "q", "A", "b"))
        np.testing.assert_allclose(slope, (moved.x * weights).sum(), rtol=1e-9)
        assert not certificate.fallback.any()
