"""A constant sparse matrix M that acts on every row of a batch: x -> M x, and its adjoint g -> M'g."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.compiled import kernels


class RowMap:
    """M (entries, size) on batches (rows, size). Every row is summed by itself, bitwise the same whatever its neighbours.

    >>> M = RowMap(sp.csr_matrix([[1.0, 0.0], [2.0, 3.0]]))
    >>> M(np.array([[1.0, 1.0]]))
    array([[1., 5.]])
    >>> M.adjoint([np.array([[1.0, 1.0], [0.0, 1.0]])], shared=True)
    array([[5., 6.]])
    """

    def __init__(self, M: Any) -> None:
        self.M = sp.csr_matrix(M)
        self.indptr, self.indices = self.M.indptr.astype(np.int32), self.M.indices.astype(np.int32)
        self.data = np.asarray(self.M.data, dtype=np.float64)
        self._zero = np.zeros((1, self.M.shape[0]))

    def __call__(self, x: np.ndarray, base: np.ndarray | None = None) -> np.ndarray:
        """base + M x, (rows, entries): x (rows, size), base (rows, entries) or (1, entries)."""
        base = self._zero if base is None else base
        passes = kernels("passes")
        if passes is None:
            return base + (self.M @ x.T).T
        out = np.empty((len(x), self.M.shape[0]))
        passes.combine(base, self.indptr, self.indices, self.data, x, out)
        return out

    def adjoint(self, parts: Sequence[np.ndarray], shared: bool = False) -> np.ndarray:
        """M'g, (rows, size), of g = ``parts`` side by side, each (rows, ...), which need not reach to M's last entry.

        (1, size), the sum over all rows, if x is ``shared`` by them.
        """
        passes = kernels("passes")
        if passes is None:
            g = np.concatenate(parts, axis=1)
            g = g.sum(axis=0, keepdims=True) if shared else g
            return (self._transpose[:, : g.shape[1]] @ g.T).T
        out = np.zeros((1 if shared else len(parts[0]), self.M.shape[1]))
        start = 0
        for part in parts:
            passes.collect(self.indptr[start:], self.indices, self.data, part, out)
            start += part.shape[1]
        return out

    @cached_property
    def _transpose(self) -> Any:
        return self.M.T.tocsr()
