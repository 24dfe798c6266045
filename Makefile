# make demo and make test need git, make and Python 3.11 or newer; everything else they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo demo-control test test-long lint types units docs bench race clean

demo: .venv/demo.stamp
	$(BIN)/python examples/tune_regression.py

demo-control: .venv/demo.stamp
	$(BIN)/python examples/pendulum_mpc.py

test: lint types units

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test.stamp
	$(BIN)/pyright

units: .venv/test.stamp
	$(BIN)/python -m pytest --numprocesses 2

# Compares INTERIOR with Clarabel on 500 programs of each random family; commit tests/families.txt.
test-long: .venv/test.stamp
	$(BIN)/python -m tests.families

docs: .venv/docs.stamp
	$(BIN)/mkdocs build --strict

# Peers are installed into environments of their own, because their pins conflict with ours and with each other's.
bench race: .venv/bench.stamp
	$(BIN)/python benchmarks/race.py

.venv/pip.stamp:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo.stamp: .venv/pip.stamp setup.cfg constraints.txt
	$(INSTALL) --editable '.[examples]'
	touch $@

.venv/test.stamp: .venv/pip.stamp setup.cfg constraints.txt
	$(INSTALL) --editable '.[torch,jax,tensorflow,ecos,diffcp,moreau,ray,examples,test]'
	touch $@

.venv/docs.stamp: .venv/pip.stamp setup.cfg constraints.txt
	$(INSTALL) --editable '.[docs]'
	touch $@

.venv/bench.stamp: .venv/pip.stamp setup.cfg constraints.txt
	$(INSTALL) --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv .peers build dist site
