"""A constant sparse matrix M that acts on every row of a batch: x -> M x, and its adjoint g -> M'g."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.compiled import kernels


class RowMap:
    """M (entries, size) on batches (rows, size). Every row is summed by itself, bitwise the same whatever its neighbours.

    Most rows of such an M have one entry: they are gathered and scaled. The others are summed.

    >>> M = RowMap(sp.csr_matrix([[1.0, 0.0], [2.0, 3.0]]))
    >>> M(np.array([[1.0, 1.0]]))
    array([[1., 5.]])
    >>> M.adjoint(np.array([[1.0, 1.0], [0.0, 1.0]]))
    array([[3., 3.],
           [2., 3.]])
    """

    def __init__(self, M: Any) -> None:
        self.M: Any = sp.csr_matrix(M)
        self.entries, self.size = self.M.shape
        self.empty, self._zero = not self.M.nnz, np.zeros((1, self.entries))
        one = len(self.M.data) == self.entries > 0 and (self.M.data == 1.0).all() and (np.diff(self.M.indptr) == 1).all()
        start = int(self.M.indices[0]) if one else 0
        run = one and (self.M.indices == np.arange(start, start + self.entries)).all()
        self._run = slice(start, start + self.entries) if run else None  # M x is a piece of x

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """M x, (rows, entries): x (rows, size)."""
        if self._run is not None:
            return np.array(x[:, self._run])
        return self.checked(x, self._zero)[0]

    def checked(self, x: np.ndarray, base: np.ndarray, inplace: bool = False) -> tuple[np.ndarray, bool]:
        """base + M x, base (rows, entries) or (1, entries), and whether that and x are known to be finite numbers only.

        ``inplace`` allows to write into base, of as many rows as x.
        """
        passes = kernels("passes")
        if passes is None:
            return base + (self.M @ x.T).T, False
        x, out = np.ascontiguousarray(x, dtype=np.float64), base if inplace else np.empty((len(x), self.entries))
        return out, passes.combine(base, *self._pieces, x, out)

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        """M'g, (rows, size): g (rows, entries)."""
        out = np.zeros((len(g), self.size))
        if self._run is not None:
            out[:, self._run] = g
        else:
            self.collect(g, out)
        return out

    def collect(self, g: np.ndarray, out: np.ndarray) -> None:
        """out += M'g, (rows, size); out (1, size) collects all rows."""
        if self.empty:
            return
        passes = kernels("passes")
        if passes is None:
            out += (self._transpose @ (g if len(out) == len(g) else g.sum(axis=0, keepdims=True)).T).T
        else:
            passes.collect(*self._pieces, np.ascontiguousarray(g, dtype=np.float64), out)

    @cached_property
    def _pieces(self) -> tuple[np.ndarray, ...]:
        """The rows of M with one entry, their columns and factors; the longer ones by compressed rows."""
        lengths = np.diff(self.M.indptr)
        ones, rest = np.flatnonzero(lengths == 1), np.flatnonzero(lengths > 1)
        at, long = self.M.indptr[ones], self.M[rest]
        places = (ones, self.M.indices[at], rest, long.indptr, long.indices)
        one, column, rest, starts, indices = (np.ascontiguousarray(a, dtype=np.uint32) for a in places)
        factors, data = (np.ascontiguousarray(a, dtype=np.float64) for a in (self.M.data[at], long.data))
        return one, column, factors, rest, starts, indices, data

    @cached_property
    def _transpose(self) -> Any:
        return self.M.T.tocsr()
