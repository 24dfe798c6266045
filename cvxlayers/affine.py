"""The map M of a `Canonical`, cut by parameters: p -> (P, q, A, b) and its adjoint, with what all rows share multiplied only once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from cvxlayers.canonical import Canonical
from cvxlayers.program import ConeProgram


class Affine:
    """M as a function of one flat array per parameter, (rows, size), or (1, size) where it is shared by all rows."""

    def __init__(self, canonical: Canonical) -> None:
        self.canonical = canonical
        self.starts = np.cumsum([0, *(spec.size for spec in canonical.parameters)])
        pattern = canonical.pattern
        edges = np.cumsum([0, pattern.nnzP, pattern.n, pattern.nnzA, pattern.m, 1]).tolist()
        self._parts = [slice(*ends) for ends in zip(edges, edges[1:], strict=False)]
        self._constant = canonical.M[:, [-1]].toarray().T
        self._columns: dict[tuple[int, ...], tuple[sp.csr_matrix, sp.csr_matrix]] = {}

    def program(self, inputs: Sequence[np.ndarray], batched: Sequence[bool], rows: int) -> tuple[ConeProgram, np.ndarray]:
        """M [p; 1]: a flat batch of programs and the constants of their objectives, (rows,)."""
        return self._split(self._constant + self._apply(range(len(inputs)), inputs, batched, rows))

    def push(self, which: Sequence[int], tangents: Sequence[np.ndarray], batched: Sequence[bool], rows: int) -> ConeProgram:
        """The tangent of the programs when the parameters ``which`` move along ``tangents``."""
        return self._split(self._apply(which, tangents, batched, rows))[0]

    def pull(self, gradient: ConeProgram, which: Sequence[int], batched: Sequence[bool]) -> dict[int, np.ndarray]:
        """The cotangents of the parameters ``which``, flat, from that of the programs; a shared parameter collects all rows."""
        stacked = np.concatenate([gradient.P, gradient.q, gradient.A, gradient.b], axis=1)
        found: dict[int, np.ndarray] = {}
        for group in (True, False):
            chosen = tuple(k for k, own in zip(which, batched, strict=True) if own == group)
            if chosen:
                _, MT = self._map(chosen)
                pulled = (MT @ (stacked if group else stacked.sum(axis=0, keepdims=True)).T).T
                edges = np.cumsum([self.starts[k + 1] - self.starts[k] for k in chosen])[:-1]
                found.update(zip(chosen, np.split(pulled, edges, axis=1), strict=True))
        return found

    def may_be_missing(self) -> tuple[np.ndarray, np.ndarray]:
        """The entries of p that may be inf and that may be -inf: those that make some b in a nonnegative row inf, and nothing else."""
        pattern, entries = self.canonical.pattern, self.canonical.M.tocoo()
        allowed = np.zeros(self._constant.size, dtype=bool)
        allowed[-1 - pattern.m : -1] = pattern.nonnegative
        may = np.ones((2, self.starts[-1] + 1), dtype=bool)
        for sign, row in ((1, 0), (-1, 1)):
            may[row, entries.col[~(allowed[entries.row] & (sign * entries.data > 0))]] = False
        return may[0], may[1]

    def _apply(self, which: Sequence[int], inputs: Sequence[np.ndarray], batched: Sequence[bool], rows: int) -> np.ndarray:
        total = np.zeros((rows, self._constant.size))
        for group in (False, True):
            chosen = [i for i, own in enumerate(batched) if own == group]
            if chosen:
                M, _ = self._map(tuple(which[i] for i in chosen))
                total += (M @ np.concatenate([inputs[i] for i in chosen], axis=1).T).T
        return total

    def _split(self, stacked: np.ndarray) -> tuple[ConeProgram, np.ndarray]:
        P, q, A, b, constant = (stacked[:, part] for part in self._parts)
        return ConeProgram(P, q, A, b), constant[:, 0]

    def _map(self, which: tuple[int, ...]) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """The columns of M that belong to the parameters ``which``, and their transpose; kept, for a layer sees few combinations."""
        if which not in self._columns:
            columns = np.concatenate([np.arange(self.starts[k], self.starts[k + 1]) for k in which])
            M = self.canonical.M[:, columns].tocsr()
            self._columns[which] = (M, M[:-1].T.tocsr())
        return self._columns[which]
