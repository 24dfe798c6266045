"""Random families of cone programs: INTERIOR against Clarabel (the long run stands in families.py; its last result in families.txt)."""

import pytest

from tests.families import FAMILIES, RESULT, run

# Programs with every kind of cone and a singular P stop either solver short of 1e-8 now and then.
ALLOWED = {"mixed": 0.01}


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_programs(family):
    outcome = run(family, 20)
    assert outcome.complaints == [] and outcome.programs == 20 and outcome.compared > 0
    assert outcome.solved["SOLVED"] == 20


def test_the_last_long_run():
    """500 programs of each family; `make test-long` writes it anew."""
    lines = RESULT.read_text().splitlines()
    table = {line.split()[0]: line.split() for line in lines[1 : 1 + len(FAMILIES)]}
    for family in FAMILIES:
        assert int(table[family][1]) == 500
        complaints = [line for line in lines if line.startswith(f"{family} batch")]
        assert len(complaints) <= 500 * ALLOWED.get(family, 0.0)
