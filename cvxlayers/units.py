"""Units in which the two sides of every cone meet as equals.

The rows of a cone may be multiplied by a positive number e,

    (A, b, s, y)  ->  (e A, e b, e s, y / e),

which leaves x as it is. What is done at v = y - s does not stay the same: beside a y of size 1e12 an s of 1e-4 is below the rounding of v,
and with it where on the boundary of the cone s lies; which of y and s of a linear row is zero but for rounding is asked of v, too.
So e makes y and s of one size. The size of s is that of the terms of Ax + s = b in the rows of the cone, that of y at least what the
terms of Px + A'y + q = 0 in the columns that these rows meet leave uncertain, so that what is zero but for rounding stays small beside the
other. Where the product of the two is negligible among the terms of the objective one of them may be nothing but rounding: e is one there.
e is a power of two, so that nothing is rounded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cvxlayers.compiled import kernels
from cvxlayers.products import Products
from cvxlayers.program import ConeProgram, Solution

EQUAL = 2.0**10
"""Sizes that differ by less than this factor are left as they are."""
PART = 1e-4
"""Of the largest term of the objective: what is not negligible."""


def units(products: Products, program: ConeProgram, solution: Solution) -> np.ndarray | None:
    """The numbers e, (rows, m), one in zero cones and wherever the sizes are near each other; None where all are one."""
    compiled, found = kernels("units"), np.empty(solution.y.shape)
    if compiled is not None:
        n, m = products.pattern.n, products.pattern.m
        data = program.P, program.q, program.A, program.b, solution.x, solution.y, solution.s
        work = np.empty((1, n)), np.empty((2, m))
        return found if compiled.units(*data, *products.places, products.sides, *work, EQUAL, PART, found) else None
    pattern, A, P, x, y = products.pattern, abs(program.A), abs(program.P), abs(solution.x), abs(solution.y)
    sides = np.maximum(products.A_rows.reduce(A * x[:, pattern.A_columns], np.maximum), np.maximum(abs(program.b), abs(solution.s)))
    slopes = np.maximum(products.A_columns.reduce(A * y[:, pattern.A_indices], np.maximum), abs(program.q))
    slopes = np.maximum(slopes, products.P_rows.reduce(P * x[:, pattern.P_columns], np.maximum))
    slopes = np.maximum(slopes, products.P_columns.reduce(P * x[:, pattern.P_indices], np.maximum))
    blurred = np.where(A > 0, slopes[:, pattern.A_columns] / np.where(A > 0, A, 1.0), np.inf)
    least = products.A_rows.reduce(blurred, np.minimum)
    negligible = PART * np.max(np.concatenate([slopes * x, abs(program.b) * y], axis=1), axis=1, initial=0.0)
    y = np.maximum(y, np.where(least < np.inf, least, 0.0))
    found[:] = 1.0
    for first, dim in products.sides.reshape(-1, 2).astype(int):
        one, other = y[:, first : first + dim].max(axis=1), sides[:, first : first + dim].max(axis=1)
        known = (one > 0) & (other > 0) & (one * other >= negligible)
        apart = np.log2(np.where(known, one, 1.0)) - np.log2(np.where(known, other, 1.0))
        found[:, first : first + dim] = np.where(abs(apart) < np.log2(EQUAL), 1.0, np.exp2(np.round(apart / 2)))[:, None]
    return None if (found == 1.0).all() else found


def apart(products: Products, solution: Solution) -> bool:
    """Whether somewhere both y and s of a curved cone are there and differ in size by more than `EQUAL`: else v = y - s holds both."""
    cones = products.sides.reshape(-1, 2).astype(int)
    starts = cones[cones[:, 1] > 1, 0]
    if not len(starts):
        return False
    y, s = (np.maximum.reduceat(abs(v), starts, axis=1) for v in (solution.y, solution.s))
    return bool(((np.minimum(y, s) > 0) & (np.maximum(y, s) > EQUAL * np.minimum(y, s))).any())


def in_units(products: Products, record: Any, e: np.ndarray) -> Any:
    """A program, or a tangent or cotangent of one, in units e; a solution or its tangent in units e, its cotangent in units 1 / e."""
    if isinstance(record, Solution):
        return replace(record, y=record.y / e, s=None if record.s is None else record.s * e)
    return replace(record, A=None if record.A is None else record.A * e[:, products.pattern.A_indices], b=record.b * e)
