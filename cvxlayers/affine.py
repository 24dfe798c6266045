"""The map M of a `Canonical`, cut by parameters: p -> (P, q, A, b) and its adjoint, with what all rows share multiplied only once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from cvxlayers.canonical import Canonical
from cvxlayers.program import ConeProgram
from cvxlayers.row_map import RowMap


class Affine:
    """M as a function of one flat array per parameter, (rows, size), or (1, size) where it is shared by all rows."""

    def __init__(self, canonical: Canonical) -> None:
        self.canonical = canonical
        self._sizes = [spec.size for spec in canonical.parameters]
        self.starts = np.cumsum([0, *self._sizes])
        pattern = canonical.pattern
        edges = np.cumsum([0, pattern.nnzP, pattern.n, pattern.nnzA, pattern.m, 1]).tolist()
        self._parts = [slice(*ends) for ends in zip(edges, edges[1:], strict=False)]
        self._offsets, self._M = slice(edges[-1], None), canonical.M
        if canonical.offsets is not None:
            self._M = sp.csr_matrix(sp.vstack([canonical.M, canonical.offsets], format="csr"))
        self._constant = self._M[:, [-1]].toarray().T
        self._zero = np.zeros_like(self._constant)
        self._maps: dict[tuple[int, ...], RowMap] = {}
        self._plans: dict[tuple[tuple[int, ...], tuple[bool, ...]], list[tuple[list[int], RowMap]]] = {}

    def program(self, inputs: Sequence[np.ndarray], batched: Sequence[bool], rows: int) -> tuple[ConeProgram, np.ndarray]:
        """M [p; 1]: a flat batch of programs and the constants of their objectives, (rows,)."""
        stacked = self._apply(self._constant, range(len(inputs)), inputs, batched, rows)
        program, constant = self._split(stacked)
        if self.canonical.curvature is not None:
            offsets = stacked[:, self._offsets]
            constant = constant + np.einsum("ij,ij->i", offsets, (self.canonical.curvature @ offsets.T).T) / 2
        return program, constant

    def push(self, which: Sequence[int], tangents: Sequence[np.ndarray], batched: Sequence[bool], rows: int) -> ConeProgram:
        """The tangent of the programs when the parameters ``which`` move along ``tangents``."""
        return self._split(self._apply(self._zero, which, tangents, batched, rows))[0]

    def pull(self, gradient: ConeProgram, which: Sequence[int], batched: Sequence[bool]) -> dict[int, np.ndarray]:
        """The cotangents of the parameters ``which``, flat, from that of the programs; a shared parameter collects all rows."""
        parts = (gradient.P, gradient.q, gradient.A, gradient.b)
        found: dict[int, np.ndarray] = {}
        for group in (True, False):
            chosen = tuple(k for k, own in zip(which, batched, strict=True) if own == group)
            if chosen:
                pulled, end = self._map(chosen).adjoint(parts, shared=not group), 0
                for k in chosen:
                    start, end = end, end + self._sizes[k]
                    found[k] = pulled[:, start:end]
        return found

    def may_be_missing(self) -> tuple[np.ndarray, np.ndarray]:
        """The entries of p that may be inf and that may be -inf: those that make some b in a nonnegative row inf, and nothing else."""
        pattern, entries = self.canonical.pattern, self._M.tocoo()
        allowed = np.zeros(self._constant.size, dtype=bool)
        allowed[self._parts[3]] = pattern.nonnegative
        may = np.ones((2, self.starts[-1] + 1), dtype=bool)
        for sign, row in ((1, 0), (-1, 1)):
            may[row, entries.col[~(allowed[entries.row] & (sign * entries.data > 0))]] = False
        return may[0], may[1]

    def _apply(
        self, base: np.ndarray, which: Sequence[int], inputs: Sequence[np.ndarray], batched: Sequence[bool], rows: int
    ) -> np.ndarray:
        for chosen, M in self._plan(tuple(which), tuple(batched)):
            base = M(inputs[chosen[0]] if len(chosen) == 1 else np.concatenate([inputs[i] for i in chosen], axis=1), base)
        return base if len(base) == rows else np.repeat(base, rows, axis=0)

    def _plan(self, which: tuple[int, ...], batched: tuple[bool, ...]) -> list[tuple[list[int], RowMap]]:
        """Positions in ``which`` and the map of these parameters: what all rows share first, so that it is multiplied once."""
        if (which, batched) not in self._plans:
            groups = [[i for i, own in enumerate(batched) if own is group] for group in (False, True)]
            self._plans[which, batched] = [(chosen, self._map(tuple(which[i] for i in chosen))) for chosen in groups if chosen]
        return self._plans[which, batched]

    def _split(self, stacked: np.ndarray) -> tuple[ConeProgram, np.ndarray]:
        P, q, A, b, constant = (stacked[:, part] for part in self._parts)
        return ConeProgram(P, q, A, b), constant[:, 0]

    def _map(self, which: tuple[int, ...]) -> RowMap:
        """The columns of M that belong to the parameters ``which``; kept, for a layer sees few combinations."""
        if which not in self._maps:
            columns = np.concatenate([np.arange(self.starts[k], self.starts[k + 1]) for k in which])
            self._maps[which] = RowMap(self._M[:, columns])
        return self._maps[which]
