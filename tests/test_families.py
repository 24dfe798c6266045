"""Random families of cone programs: INTERIOR against Clarabel (the long run stands in families.py; its last result in families.txt)."""

import pytest

from tests.families import FAMILIES, RESULT, run

# Rows of 500 whose status or objective may disagree: with all kinds of curved cones at once and bad scaling one ends INACCURATE where
# Clarabel does not (Clarabel: sixteen where ours are SOLVED). One more than the last run had.
ALLOWED = {"mixed": 2}
# Rows of 500 with bad scaling whose derivative may differ from differences of solutions though no warning tells: which constraints are
# active is read off y and s in their own units, which a spread of eight decades can hide. One more than the last run had.
UNTOLD = 2


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_programs(family):
    outcome = run(family, 20)
    assert outcome.complaints == [] and outcome.solved["SOLVED"] == outcome.programs == 20
    assert family == "mixed" or (outcome.compared and outcome.differenced)


def test_the_last_long_run():
    """500 programs of each family; `make test-long` writes it anew."""
    lines = RESULT.read_text().splitlines()
    table = {line.split()[0]: line.split() for line in lines[1 : 1 + len(FAMILIES)]}
    for family in FAMILIES:
        assert int(table[family][1]) == 500
        complaints = [line for line in lines if line.startswith(f"{family} batch")]
        slopes = [line for line in complaints if "derivative" in line]
        assert len(complaints) - len(slopes) <= ALLOWED.get(family, 0)
        assert len(slopes) <= UNTOLD and all("scaled" in line for line in slopes)
