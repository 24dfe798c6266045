"""One matrix at a time, refined: by QDLDL where compiled kernels cannot load, by LU where the pivots' signs are not known."""

from __future__ import annotations

import numpy as np
import qdldl
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from cvxlayers.least_squares import SparsityPattern

REFINEMENTS = 30  # each gains at least a factor two, else it stops
CONVERGED = 1e-14  # of the equilibrated residual, relative to the right-hand side: nothing is left to refine

AGAIN = 5  # steps of refinement after pivoting, at most


class Workspace:
    """One symbolic factorization, used by one thread at a time; the numbers are replaced row by row."""

    def __init__(self, indices: np.ndarray, indptr: np.ndarray, full_indices: np.ndarray, full_indptr: np.ndarray) -> None:
        size = len(indptr) - 1
        self._upper = SparsityPattern(indices, indptr, np.zeros(len(indices)))
        self._full = sp.csr_matrix((np.zeros(len(full_indices)), full_indices, full_indptr), shape=(size, size))
        self._solver: qdldl.Solver | None = None

    def solve(self, regularized: np.ndarray, full: np.ndarray, rhs: np.ndarray) -> np.ndarray:
        """Refactor, solve, refine: the solution of the unregularized system as far as refinement reaches."""
        self._upper.data = regularized
        self._full.data = full
        factors = self._solver
        try:
            if factors is None:
                factors = self._solver = qdldl.Solver(self._upper, upper=True)
            else:
                factors.update(self._upper, upper=True)
        except RuntimeError:  # a pivot vanished: the caller sees the residual and falls back
            self._solver = None
            return np.zeros_like(rhs)
        z = factors.solve(rhs)
        residual = rhs - self._full @ z
        error, goal = abs(residual).max(), CONVERGED * abs(rhs).max()
        for _ in range(REFINEMENTS):
            if not error > goal:
                break
            better = z + factors.solve(residual)
            residual = rhs - self._full @ better
            before, error = error, abs(residual).max()
            if not error < before:
                break
            z = better
            if error > before / 2:
                break
        return z


def pivoted(K: sp.csc_matrix, rhs: np.ndarray) -> np.ndarray:
    """K z = rhs by LU with pivoting and as many steps of refinement as help, NaN where K is singular."""
    try:
        factors = splu(K)
    except RuntimeError:
        return np.full_like(rhs, np.nan)
    z = factors.solve(rhs)
    left = rhs - K @ z
    for _ in range(AGAIN):
        better = z + factors.solve(left)
        after = rhs - K @ better
        if not np.linalg.norm(after) < np.linalg.norm(left):
            break
        z, left = better, after
    return z
