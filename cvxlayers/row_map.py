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

    Most rows of such an M have one entry: they are gathered and scaled. The others are summed.

    >>> M = RowMap(sp.csr_matrix([[1.0, 0.0], [2.0, 3.0]]))
    >>> M(np.array([[1.0, 1.0]]))
    array([[1., 5.]])
    >>> M.adjoint([np.array([[1.0, 1.0], [0.0, 1.0]])], shared=True)
    array([[5., 6.]])
    """

    def __init__(self, M: Any) -> None:
        self.M: Any = sp.csr_matrix(M)
        self.entries, self.size = self.M.shape
        self._zero = np.zeros((1, self.entries))
        self._cut: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}

    def __call__(self, x: np.ndarray, base: np.ndarray | None = None) -> np.ndarray:
        """base + M x, (rows, entries): x (rows, size), base (rows, entries) or (1, entries)."""
        base = self._zero if base is None else base
        passes = kernels("passes")
        if passes is None:
            return base + (self.M @ x.T).T
        x, out = np.ascontiguousarray(x, dtype=np.float64), np.empty((len(x), self.entries))
        passes.combine(base, *self._pieces(0, self.entries), x, out)
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
        out = np.zeros((1 if shared else len(parts[0]), self.size))
        start = 0
        for part in parts:
            stop = start + part.shape[1]
            passes.collect(*self._pieces(start, stop), np.ascontiguousarray(part, dtype=np.float64), out)
            start = stop
        return out

    def _pieces(self, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Of the rows start ... stop of M: those with one entry, their columns and factors; the longer ones by compressed rows."""
        if (start, stop) not in self._cut:
            part = self.M[start:stop]
            lengths = np.diff(part.indptr)
            ones, rest = np.flatnonzero(lengths == 1), np.flatnonzero(lengths > 1)
            at, long = part.indptr[ones], part[rest]
            places = (ones, part.indices[at], rest, long.indptr, long.indices)
            one, column, rest, starts, indices = (np.ascontiguousarray(a, dtype=np.uint32) for a in places)
            factors, data = (np.ascontiguousarray(a, dtype=np.float64) for a in (part.data[at], long.data))
            self._cut[start, stop] = (one, column, factors, rest, starts, indices, data)
        return self._cut[start, stop]

    @cached_property
    def _transpose(self) -> Any:
        return self.M.T.tocsr()
