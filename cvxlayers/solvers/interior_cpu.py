"""INTERIOR: this library's own interior-point method on the CPU, for batches: one SIMD lane per row, blocks of rows over threads.

The method stands in `cvxlayers.kernels.interior`, the compiled code below it; here a pattern becomes index arrays, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import numpy as np

from cvxlayers.cones import Exponential, NonNegative, Power, SecondOrder, Semidefinite, Zero
from cvxlayers.cones.base import Cone
from cvxlayers.errors import Status
from cvxlayers.kernels.memory import DUAL_INFEASIBLE, FAILED, PRIMAL_INFEASIBLE, STALLED, Options
from cvxlayers.kernels.nonnegative import Linear
from cvxlayers.kernels.programs import Cones, solve_programs
from cvxlayers.kernels.system import DENSE, Layout
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver
from cvxlayers.solvers.layout import blocks, read_only

REACH, CAREFUL = 0.99, 0.8
"""The part of the way to the boundary of the cones that a step takes; and in the second attempt at rows that came to a halt."""

DEGREE = {SecondOrder: 1, Exponential: 3, Power: 3}


@lru_cache(maxsize=256)
def _layout(pattern: Pattern) -> tuple[Layout, Cones]:
    """K of the pattern, and where its cones stand in it."""
    zero = linear = 0
    degree, curved = 0.0, []
    for block, rows in blocks(pattern.cone):
        if isinstance(block, Zero):
            zero = linear = int(rows[-1]) + 1
        elif isinstance(block, NonNegative):
            linear = int(rows[-1]) + 1
            degree += len(rows)
        else:
            extra = 2 if isinstance(block, SecondOrder) and len(rows) > DENSE else 1 if isinstance(block, Exponential | Power) else 0
            curved.append((block, int(rows[0]), len(rows), extra))
            degree += getattr(block, "order", DEGREE.get(type(block), 0))
    places = [(first, count, extra) for _, first, count, extra in curved]
    layout = Layout.of(pattern.n, pattern.m, (pattern.P_indices, pattern.P_indptr), (pattern.A_indices, pattern.A_indptr), places)

    def of(*kinds: type[Cone]) -> list[int]:
        return [k for k, cone in enumerate(curved) if isinstance(cone[0], kinds)]

    second_order = three_dimensional = semidefinite = None
    if chosen := of(SecondOrder):
        expanded = np.array([curved[k][3] == 2 for k in chosen])
        second_order = (
            layout.system.blocks[chosen, 0].copy(),
            layout.system.blocks[chosen, 1].copy(),
            layout.block_entries[chosen],
            expanded,
        )
    if chosen := of(Exponential, Power):
        alpha = np.array([getattr(curved[k][0], "alpha", 0.0) for k in chosen])
        three_dimensional = (layout.system.blocks[chosen, 0].copy(), layout.block_entries[chosen], alpha)
    if chosen := of(Semidefinite):
        order = np.array([getattr(curved[k][0], "order", 0) for k in chosen], dtype=np.intp)
        semidefinite = (layout.system.blocks[chosen, 0].copy(), order, layout.block_entries[chosen])
    return layout, Cones(degree, Linear(zero, linear), second_order, three_dimensional, semidefinite)


@final
@dataclass(frozen=True)
class Interior(Solver):
    """Interior points in lanes; see the module."""

    name = "INTERIOR"
    cones = frozenset({Zero, NonNegative, SecondOrder, Semidefinite, Exponential, Power})
    semidefinite_order = 30
    threads = 0  # all that the machine or CVXLAYERS_NUM_THREADS allows
    quadratic = True
    options = MappingProxyType(
        {**dict.fromkeys(("tol_feas", "tol_gap", "tol_infeas", "shift"), float), **dict.fromkeys(("max_iter", "refinements"), int)}
    )
    tolerances = ("tol_feas", "tol_gap")
    limit = "max_iter"
    defaults = MappingProxyType({"tol_feas": 1e-10, "tol_gap": 1e-10, "tol_infeas": 1e-8, "max_iter": 100, "shift": 1e-8, "refinements": 5})

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row in a lane of its own; ``start`` means nothing to it."""
        layout, cones = _layout(pattern)
        names = ("tol_feas", "tol_gap", "tol_infeas", "max_iter", "shift", "refinements")
        settings: Any = self.settings
        options = Options(*(settings[name] for name in names), reach=REACH)
        data = [read_only(part) for part in (program.P, program.q, program.A, program.b)]
        found = solve_programs(layout, cones, options, self.jobs, *data, rows=len(program.q))
        again = np.flatnonzero((found[3][:, 0] == STALLED) | (found[3][:, 0] == FAILED))
        if len(again):
            careful = options._replace(shift=10 * options.shift, refinements=3 * options.refinements, reach=CAREFUL)
            part_of = [read_only(part if len(part) == 1 else part[again]) for part in data]
            second = solve_programs(layout, cones, careful, self.jobs, *part_of, rows=len(again))
            second[3][:, 1] += found[3][again, 1]
            found[3][again, 1] = second[3][:, 1]
            certified = (second[3][:, 0] == PRIMAL_INFEASIBLE) | (second[3][:, 0] == DUAL_INFEASIBLE)
            better = (second[3][:, 2] < found[3][again, 2]) | (certified & (found[3][again, 0] == FAILED))
            for one, two in zip(found, second, strict=True):
                one[again[better]] = two[better]
        x, z, s, report = found
        status = np.nan_to_num(report[:, 0], nan=Status.NUMERICAL_ERROR).astype(np.int8)
        return Solution(x, z, s, status, report[:, 1].astype(np.int32))
