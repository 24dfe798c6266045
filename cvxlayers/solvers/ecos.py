"""ECOS: an interior-point method for linear, second-order and exponential cones, without quadratic objectives; optional, GPL.

Domahidi, Chu and Boyd, "ECOS: an SOCP solver for embedded systems", 2013. Equations stand apart (A, b), the other rows (G, h) in the
order linear, second-order, exponential; ECOS writes an exponential cone (x, z, y) where `cvxlayers.program` has (x, y, z).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, final

import ecos
import numpy as np

from cvxlayers.cones import Exponential, NonNegative, SecondOrder, Zero
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution
from cvxlayers.solvers.base import Solver, map_rows
from cvxlayers.solvers.layout import blank, blocks, filled, pick, zero_rows, zeros

STATUS = {
    0: Status.SOLVED,
    1: Status.PRIMAL_INFEASIBLE,
    2: Status.DUAL_INFEASIBLE,
    10: Status.INACCURATE,
    11: Status.PRIMAL_INFEASIBLE,
    12: Status.DUAL_INFEASIBLE,
    -1: Status.ITERATION_LIMIT,
    -2: Status.NUMERICAL_ERROR,
    -3: Status.NUMERICAL_ERROR,
    -7: Status.NUMERICAL_ERROR,
}
INTERRUPTED = -4
"""ECOS swallows an interrupt from the keyboard and returns this."""


@lru_cache(maxsize=256)
def _layout(pattern: Pattern) -> tuple[Any, ...]:
    equations = np.flatnonzero(zero_rows(pattern))
    cones = [(block, rows) for block, rows in blocks(pattern.cone) if not isinstance(block, Zero)]
    rows = [where[[0, 2, 1]] if isinstance(block, Exponential) else where for block, where in cones]
    dims = {
        "l": sum(block.dim for block, _ in cones if isinstance(block, NonNegative)),
        "q": [block.dim for block, _ in cones if isinstance(block, SecondOrder)],
        "e": sum(1 for block, _ in cones if isinstance(block, Exponential)),
    }
    others = np.concatenate([np.arange(0), *rows])
    if not len(others):
        # without any G ECOS does not see unboundedness: give it 0'x <= 1
        return equations, *_part(pattern, equations), others, others, zeros(1, pattern.n), {"l": 1, "q": [], "e": 0}
    return equations, *_part(pattern, equations), others, *_part(pattern, others), dims


def _part(pattern: Pattern, rows: np.ndarray) -> tuple[np.ndarray, Any]:
    """Rows of A as `pick` has them; ECOS crashes on a matrix without entries, so that gets a zero."""
    take, made = pick(pattern, rows)
    return take, made if len(take) else zeros(len(rows), pattern.n)


@final
@dataclass(frozen=True)
class ECOS(Solver):
    """Interior points for linear, second-order and exponential cones; see the module."""

    name = "ECOS"
    cones = frozenset({Zero, NonNegative, SecondOrder, Exponential})
    quadratic = False
    options = MappingProxyType(
        {
            **dict.fromkeys(("abstol", "reltol", "feastol", "abstol_inacc", "reltol_inacc", "feastol_inacc"), float),
            "max_iters": int,
            "verbose": bool,
        }
    )
    tolerances = ("abstol", "reltol", "feastol")
    limit = "max_iters"
    defaults = MappingProxyType({"abstol": 1e-10, "reltol": 1e-10, "feastol": 1e-10, "max_iters": 100, "verbose": False})

    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row afresh; ``start`` means nothing to ECOS."""
        equations, take_A, A, others, take_G, G, dims = _layout(pattern)
        solution, limit = blank(pattern, len(program.q)), int(str(self.settings[self.limit]))

        def solve_row(row: int) -> None:
            values, b = program.A[row], program.b[row]
            equality = (filled(A, values[take_A]) if len(take_A) else A, b[equations]) if len(equations) else (None, None)
            conic = (filled(G, values[take_G]) if len(take_G) else G, b[others] if len(others) else np.ones(1))
            try:
                found = ecos.solve(program.q[row], *conic, dims, *equality, **self.settings)
            except RuntimeError:
                return
            flag, steps = found["info"]["exitFlag"], found["info"]["iter"]
            if flag == INTERRUPTED:
                raise KeyboardInterrupt
            solution.x[row], solution.y[row, equations], solution.y[row, others] = found["x"], found["y"], found["z"][: len(others)]
            solution.s[row, equations], solution.s[row, others] = 0.0, found["s"][: len(others)]
            # at its limit ECOS guesses; its guess that there is no solution was seen on programs that have one
            guess = flag in (11, 12) and steps >= limit
            status = Status.ITERATION_LIMIT if guess else STATUS.get(flag, Status.NUMERICAL_ERROR)
            # from NaN it may return an iterate of an earlier problem that lay in the same memory
            nonsense = status.ok and np.isnan(program.q[row].sum() + values.sum() + b.sum())
            solution.status[row] = Status.NUMERICAL_ERROR if nonsense else status
            solution.iterations[row] = steps

        map_rows(solve_row, len(program.q), self.jobs)
        return solution
