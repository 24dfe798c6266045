"""Programs in units in which no row and no column of P and A is of another size than the others."""

from __future__ import annotations

import numpy as np

from cvxlayers.products import Products
from cvxlayers.program import ConeProgram, Solution

PASSES = 8
"""Each takes the square root of how far the largest entries are apart."""


def even(products: Products, program: ConeProgram) -> tuple[ConeProgram, np.ndarray, np.ndarray]:
    """The program for x / f, e s and y / e, with f (rows, n) and e (rows, m) that bring the largest entry of every column of

        [ diag(f) P diag(f)   diag(f) A' diag(e) ]
        [ diag(e) A diag(f)           0          ]

    near one (Ruiz, 2001), for cones that such an e leaves as they are: zero and nonnegative ones. f and e are powers of two, so that
    nothing is rounded.
    """
    pattern, P, A = products.pattern, abs(program.P), abs(program.A)
    f, e = np.ones((len(program.q), pattern.n)), np.ones((len(program.q), pattern.m))
    for _ in range(PASSES):
        there = A * e[:, pattern.A_indices] * f[:, pattern.A_columns]
        curves = P * f[:, pattern.P_indices] * f[:, pattern.P_columns]
        columns = np.maximum(products.P_rows.reduce(curves, np.maximum), products.P_columns.reduce(curves, np.maximum))
        columns, rows = np.maximum(columns, products.A_columns.reduce(there, np.maximum)), products.A_rows.reduce(there, np.maximum)
        f /= np.sqrt(np.where(columns > 0, columns, 1.0))
        e /= np.sqrt(np.where(rows > 0, rows, 1.0))
    f, e = np.exp2(np.round(np.log2(f))), np.exp2(np.round(np.log2(e)))
    P = program.P * f[:, pattern.P_indices] * f[:, pattern.P_columns]
    A = program.A * e[:, pattern.A_indices] * f[:, pattern.A_columns]
    return ConeProgram(P, program.q * f, A, program.b * e), f, e


def back(solution: Solution, f: np.ndarray, e: np.ndarray) -> Solution:
    """A solution of the program that `even` returns in the units that it came in."""
    return Solution(solution.x * f, solution.y * e, solution.s / e, solution.status, solution.iterations)
