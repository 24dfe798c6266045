"""Minimum-norm least squares for a symmetric sparse system that may be singular: what remains of a derivative where none exists."""

from __future__ import annotations

import numpy as np
import qdldl

DENSE = 400  # up to this size a singular value decomposition is exact and quick enough for the rare row that needs it
CUTOFF = 1e-10  # singular values below this, relative to the largest, count as zero
DAMPING = 1e-9  # of the sparse system, relative to the largest entry of K squared: its accuracy is rounding over damping
STEPS = 30


class SparsityPattern:
    """The part of a sparse matrix that qdldl reads, without the cost of making one; ``data`` is replaced for every row."""

    def __init__(self, indices: np.ndarray, indptr: np.ndarray, data: np.ndarray) -> None:
        self.indices, self.indptr, self.data = indices, indptr, data
        self.shape, self.nnz = (len(indptr) - 1, len(indptr) - 1), len(indices)


class MinimumNorm:
    """Least squares for symmetric matrices of one pattern, given column by column with both triangles and a full diagonal."""

    def __init__(self, indices: np.ndarray, indptr: np.ndarray) -> None:
        size = len(indptr) - 1
        self.size, self.indices, self.indptr = size, indices, indptr
        self.columns = np.repeat(np.arange(size), np.diff(indptr))
        # [[I, K], [K, -lam I]] by columns, upper triangle only
        self.augmented_indptr = np.r_[np.arange(size), size + np.r_[0, np.cumsum(np.diff(indptr) + 1)]].astype(np.int32)
        self.damped = self.augmented_indptr[size + 1 :] - 1
        self.entries = np.ones(self.augmented_indptr[-1], dtype=bool)
        self.entries[:size] = self.entries[self.damped] = False
        self.augmented_indices = np.empty(self.augmented_indptr[-1], dtype=np.int32)
        self.augmented_indices[:size] = np.arange(size)
        self.augmented_indices[self.damped] = size + np.arange(size)
        self.augmented_indices[self.entries] = indices

    def solve(self, values: np.ndarray, rhs: np.ndarray) -> np.ndarray:
        """The minimizer of |K z - rhs| of least norm, for one matrix with entries ``values`` (nnz,) and rhs (size,)."""
        return self._dense(values, rhs) if self.size <= DENSE else self._sparse(values, rhs)

    def _dense(self, values: np.ndarray, rhs: np.ndarray) -> np.ndarray:
        K = np.zeros((self.size, self.size))
        K[self.indices, self.columns] = values
        return np.linalg.lstsq(K, rhs, rcond=CUTOFF)[0]

    def _sparse(self, values: np.ndarray, rhs: np.ndarray) -> np.ndarray:
        """Proximal steps (K'K + lam I) dz = K'(rhs - K z) from z = 0 stay in the range of K and converge to the solution.

        Each is one solve with the quasi-definite [[I, K], [K, -lam I]].
        """
        largest = max(np.max(abs(values)), np.finfo(float).tiny)
        scaled, target = values / largest, rhs / largest
        data = np.empty(len(self.entries))
        data[: self.size], data[self.damped], data[self.entries] = 1.0, -DAMPING, scaled
        solver = qdldl.Solver(SparsityPattern(self.augmented_indices, self.augmented_indptr, data), upper=True)
        z, before = np.zeros(self.size), np.inf
        for _ in range(STEPS):
            Kz = np.add.reduceat(scaled * z[self.indices], self.indptr[:-1])
            step = solver.solve(np.r_[target - Kz, np.zeros(self.size)])[self.size :]
            length = np.max(abs(step))
            if not length < before / 2:  # only the rounding of the part that no z can reach is left
                break
            z, before = z + step, length
        return z
