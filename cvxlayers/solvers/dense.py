"""Linear and quadratic programs as small dense matrices: what a dense active-set solver needs around it, one row or all rows at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import lu_factor, lu_solve

from cvxlayers.products import Products
from cvxlayers.program import ConeProgram, Pattern
from cvxlayers.solvers.layout import zero_rows

EQUATION = 5
"""DAQP's word for a constraint that is active and stays so."""
SHIFT = 1e-8
"""What makes the equations of an active set regular."""


@dataclass(frozen=True)
class Layout:
    """Where stored values stand: P twice and A in flat dense matrices, A sorted by row, and what DAQP calls each row."""

    upper: np.ndarray
    lower: np.ndarray
    entries: np.ndarray
    by_row: np.ndarray
    starts: np.ndarray
    filled: np.ndarray
    equation: np.ndarray
    sense: np.ndarray


@lru_cache(maxsize=256)
def layout_of(pattern: Pattern) -> Layout:
    n, equation = np.int64(pattern.n), zero_rows(pattern)
    filled, starts = np.unique(np.sort(pattern.A_indices), return_index=True)
    return Layout(
        upper=pattern.P_indices * n + pattern.P_columns,
        lower=pattern.P_columns * n + pattern.P_indices,
        entries=pattern.A_indices * n + pattern.A_columns,
        by_row=np.argsort(pattern.A_indices, kind="stable"),
        starts=starts,
        filled=filled,
        equation=equation,
        sense=np.where(equation, EQUATION, 0).astype(np.intc),
    )


@lru_cache(maxsize=256)
def products_of(pattern: Pattern) -> Products:
    """The products of a pattern, made once."""
    return Products.of(pattern)


def power_of_two(size: Any) -> Any:
    """The power of two just above ``size``, one for zero."""
    return np.ldexp(1.0, np.frexp(size)[1])


def height_of(P: np.ndarray, q: np.ndarray, length: np.ndarray) -> np.ndarray:
    """What to divide the objective by when x is in units of ``length``: (rows,)."""
    return power_of_two(np.maximum(np.abs(P).max(axis=-1, initial=0.0), np.abs(q).max(axis=-1) / length))


def length_of(b: np.ndarray) -> np.ndarray:
    """The typical right-hand side (rows,): the median, not the largest, as a bound of 1e6 for form's sake must not hide the others."""
    if not b.shape[-1]:
        return np.ones(len(b))
    sizes = np.sort(np.abs(b), axis=-1)
    zeros = np.count_nonzero(sizes == 0.0, axis=-1)
    middle = np.minimum((zeros + b.shape[-1]) // 2, b.shape[-1] - 1)
    return power_of_two(sizes[np.arange(len(b)), middle])


@dataclass(frozen=True)
class Dense:
    """One row, dense and scaled: minimize 1/2 x'Px + q'x subject to Ax = b where ``equation``, Ax <= b elsewhere."""

    P: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    equation: np.ndarray

    def error(self, x: np.ndarray, y: np.ndarray) -> float:
        """How far (x, y) is from optimality, relative to the sizes of x and of q or Px; NaN counts as infinitely far."""
        slack = self.b - self.A @ x
        primal = np.where(self.equation | (y > 0), np.abs(slack), -slack).max(initial=0.0)
        Px = self.P @ x
        dual = np.abs(Px + self.q + y @ self.A).max()
        sign = np.where(self.equation, 0.0, -y).max(initial=0.0)
        worst = primal / max(np.abs(x).max(), 1e-8) + (dual + sign) / max(np.abs(self.q).max(), np.abs(Px).max(), 1e-8)
        return worst if worst < np.inf else np.inf

    def polished(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve Px + q + A'y = 0, Ax = b over the active rows, beginning at (x, y).

        The matrix is shifted to be regular whatever the active set, and the shift is refined away (proximal steps of length 1 / SHIFT).
        """
        active = self.equation | (y > 0)
        A = self.A[active]
        K = np.block([[self.P, A.T], [A, np.zeros((len(A), len(A)))]])
        shift = np.where(np.arange(len(K)) < len(x), SHIFT, -SHIFT)
        factor = lu_factor(K + np.diag(shift))
        right = np.concatenate([-self.q, self.b[active]])
        z = np.concatenate([x, y[active]])
        for _ in range(3):
            z = z + lu_solve(factor, right - K @ z)
        y = y.copy()
        y[active] = z[len(x) :]
        return z[: len(x)], np.where(self.equation, y, np.maximum(y, 0.0))

    def falls(self, x: np.ndarray, flat: float) -> bool:
        """Whether x, run far away, points along a direction that is feasible for ever and on which the objective falls for ever.

        ``flat`` is the curvature, relative to P, that counts as none.
        """
        d = x / max(np.abs(x).max(), 1.0)
        along = self.A @ d
        leaves = np.where(self.equation, np.abs(along), along).max(initial=0.0)
        curves = np.abs(self.P @ d).max() > flat * np.abs(self.P).max()
        return bool(self.q @ d < -1e-6 and leaves < 1e-6 and not curves)


def checked(products: Products, program: ConeProgram, x: np.ndarray, y: np.ndarray, equation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slack b - Ax, (rows, m), and `Dense.error` of every row, (rows,), not finite where that is infinite.

    An active row has no slack, not even one of rounding; what is wrong with x stays visible in Ax + s - b.
    """
    slack, error = np.empty(program.b.shape), np.empty(len(x))
    if products.passes is not None:
        data = program.P, program.q, program.A, program.b
        products.passes.active_error(*data, x, y, *products.places, products.kind, products.work(), slack, error)
        return slack, error
    with np.errstate(over="ignore", invalid="ignore"):
        slack, Px, ATy = program.b - products.A(program.A, x), products.P(program.P, x), products.AT(program.A, y)
        primal = np.where(equation | (y > 0), np.abs(slack), -slack).max(axis=1, initial=0.0)
        dual = np.abs(Px + program.q + ATy).max(axis=1)
        sign = np.where(equation, 0.0, -y).max(axis=1, initial=0.0)
        size = np.maximum(np.abs(program.q).max(axis=1), np.abs(Px).max(axis=1))
        error = primal / np.maximum(np.abs(x).max(axis=1), 1e-8) + (dual + sign) / np.maximum(size, 1e-8)
    slack[equation | (y > 0) | (slack < 0)] = 0.0
    return slack, error


def dense(pattern: Pattern, P: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P (rows, nnzP) and A (rows, nnzA) as dense matrices (rows, n, n) and (rows, m, n)."""
    at, n, m = layout_of(pattern), pattern.n, pattern.m
    full, tall = np.zeros((len(P), n * n)), np.zeros((len(A), m * n))
    full[:, at.upper] = full[:, at.lower] = P
    tall[:, at.entries] = A
    return full.reshape(len(P), n, n), tall.reshape(len(A), m, n)
