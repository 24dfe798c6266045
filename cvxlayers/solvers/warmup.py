"""Solving one small program with every combination of cones, so that what the compiled solvers need for it is on disk afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from cvxlayers.cones import Exponential, NonNegative, Power, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.cones.base import Cone
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern
from cvxlayers.solvers import COMPILED, find, get, lacks

THREE_DIMENSIONAL: tuple[Cone, ...] = (Exponential(), Power(0.5))
LINEAR: tuple[Cone, ...] = (Zero(1), NonNegative(2))
CURVED: tuple[Cone, ...] = (SecondOrder(3), Semidefinite(2), Exponential())


def combinations_of_cones(linear_only: bool = False) -> Iterator[Product]:
    """Linear cones alone, then with every choice among the others: kernels are compiled for each."""
    for count in range(0 if linear_only else len(CURVED) + 1):
        for chosen in combinations(CURVED, count):
            yield Product((*LINEAR, *chosen))
    if linear_only:
        yield Product(LINEAR)


def warmup(linear_only: bool = False) -> None:
    """Compile, with a progress bar. Raises RuntimeError where a compiled solver does not solve its program."""
    products = list(combinations_of_cones(linear_only))
    for cone in (bar := tqdm(products, desc="compiling")):
        bar.set_postfix_str(", ".join(sorted(kind.__name__ for kind in cone.kinds)))
        m = cone.dim
        pattern = Pattern.of(sp.eye(m), -sp.eye(m), cone)
        program = ConeProgram(np.ones((1, m)), np.ones((1, m)), -np.ones((1, m)), np.zeros((1, m)))
        for name in COMPILED:
            if lacks(find(name), pattern):
                continue
            solution = get(name, None, pattern)[0].solve(pattern, program)
            if not Status(solution.status[0]).ok:
                raise RuntimeError(f"the compiled solver {name} fails on {cone}: {Status(solution.status[0]).sentence}; please report this")
    for cone in () if linear_only else THREE_DIMENSIONAL:
        cone.project(np.ones(3))
        cone.linearize(np.ones(3))
