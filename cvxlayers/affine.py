"""The map M of a `Canonical`, cut by parameters: p -> (P, q, A, b) and its adjoint, with what all rows share multiplied only once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.canonical import Canonical
from cvxlayers.program import ConeProgram
from cvxlayers.row_map import RowMap

P, A, B, REST = 0, 2, 3, 4
"""Parts of M's rows, in the order P, q, A, b, and the rest: the objective's constant and the offsets of its curvature."""


class Affine:
    """M as a function of one flat array per parameter, (rows, size), or (1, size) where it is shared by all rows."""

    def __init__(self, canonical: Canonical) -> None:
        self.canonical = canonical
        self._sizes = [spec.size for spec in canonical.parameters]
        self.starts = np.cumsum([0, *self._sizes])
        pattern = canonical.pattern
        edges = np.cumsum([0, pattern.nnzP, pattern.n, pattern.nnzA, pattern.m]).tolist()
        self._parts = [slice(*ends) for ends in zip(edges, [*edges[1:], None], strict=True)]
        self._M: Any = canonical.M
        if canonical.offsets is not None:
            self._M = sp.csr_matrix(sp.vstack([canonical.M, canonical.offsets], format="csr"))
        column = self._M[:, [-1]].toarray().T
        self._plans: dict[tuple[int, tuple[int, ...], tuple[bool, ...]], list[tuple[int, RowMap]]] = {}
        self._everyone = tuple(range(len(self._sizes)))
        self._constant = [np.ascontiguousarray(column[:, part]) for part in self._parts]

    def program(self, inputs: Sequence[np.ndarray], batched: Sequence[bool], rows: int) -> tuple[ConeProgram, bool]:
        """M [p; 1]: a flat batch of programs, and whether all numbers, of p too, are known to be finite."""
        parts, finite = self._constant[:REST], self._visible
        for part in range(REST):
            if self._maps[part] or rows != 1:
                parts[part], fine = self._apply(part, parts[part], self._everyone, inputs, batched, rows)
                finite = finite and fine
        return ConeProgram(*parts), finite

    def constants(self, inputs: Sequence[np.ndarray], batched: Sequence[bool], rows: int) -> np.ndarray:
        """The constants of the objectives, (rows,)."""
        rest, _ = self._apply(REST, self._constant[REST], self._everyone, inputs, batched, rows)
        constant, offsets = rest[:, 0], rest[:, 1:]
        if self.canonical.curvature is None:
            return constant
        return constant + np.einsum("ij,ij->i", offsets, (self.canonical.curvature @ offsets.T).T) / 2

    def push(self, which: Sequence[int], tangents: Sequence[np.ndarray], batched: Sequence[bool], rows: int) -> ConeProgram:
        """The tangent of the programs when the parameters ``which`` move along ``tangents``."""
        zeros = map(np.zeros_like, self._constant[:REST])
        return ConeProgram(*[self._apply(part, zero, which, tangents, batched, rows)[0] for part, zero in enumerate(zeros)])

    def pull(self, gradient: ConeProgram, which: Sequence[int], batched: Sequence[bool]) -> dict[int, np.ndarray]:
        """The cotangents of the parameters ``which``, flat, from that of the programs; a shared parameter collects all rows."""
        found = {k: np.zeros((len(gradient.q) if own else 1, self._sizes[k])) for k, own in zip(which, batched, strict=True)}
        for part, g in enumerate((gradient.P, gradient.q, gradient.A, gradient.b)):
            for k, pulled in found.items():
                if k in self._maps[part]:
                    self._maps[part][k].collect(g, pulled)
        return found

    def moved(self, which: Sequence[int]) -> tuple[bool, bool]:
        """Whether P, and whether A, depends on one of the parameters ``which``."""
        return not self._maps[P].keys().isdisjoint(which), not self._maps[A].keys().isdisjoint(which)

    def _plan(self, part: int, which: tuple[int, ...], batched: tuple[bool, ...]) -> list[tuple[int, RowMap]]:
        """Positions in ``which`` and maps of the parameters that enter: what all rows share first, so that it is multiplied once."""
        if (part, which, batched) not in self._plans:
            maps = self._maps[part]
            order = sorted([i for i, k in enumerate(which) if k in maps], key=batched.__getitem__)
            self._plans[part, which, batched] = [(i, maps[which[i]]) for i in order]
        return self._plans[part, which, batched]

    @cached_property
    def _maps(self) -> list[dict[int, RowMap]]:
        """For each part of M's rows the columns of the parameters that enter it."""
        cut = [self._M[part].tocsc() for part in self._parts]
        ends = list(zip(self.starts, self.starts[1:], strict=False))
        return [{k: RowMap(rows[:, i:j]) for k, (i, j) in enumerate(ends) if rows[:, i:j].nnz} for rows in cut]

    @cached_property
    def _visible(self) -> bool:
        """Whether every parameter enters the program, and the constants are finite."""
        entering = set().union(*self._maps[:REST])
        return len(entering) == len(self._sizes) and all(np.isfinite(column).all() for column in self._constant[:REST])

    def may_be_missing(self) -> tuple[np.ndarray, np.ndarray]:
        """The entries of p that may be inf and that may be -inf: those that make some b in a nonnegative row inf, and nothing else."""
        pattern, entries = self.canonical.pattern, self._M.tocoo()
        allowed = np.zeros(self._M.shape[0], dtype=bool)
        allowed[self._parts[B]] = pattern.nonnegative
        may = np.ones((2, self.starts[-1] + 1), dtype=bool)
        for sign, row in ((1, 0), (-1, 1)):
            may[row, entries.col[~(allowed[entries.row] & (sign * entries.data > 0))]] = False
        return may[0], may[1]

    def _apply(
        self, part: int, base: np.ndarray, which: Sequence[int], inputs: Sequence[np.ndarray], batched: Sequence[bool], rows: int
    ) -> tuple[np.ndarray, bool]:
        """base + one part of M's rows, (rows, entries), one row for all of them where no parameter of their own enters; is it finite?"""
        finite, given = True, base
        for i, M in self._plan(part, tuple(which), tuple(batched)):
            base, fine = M.checked(inputs[i], base, inplace=base is not given and len(base) == len(inputs[i]))
            finite = finite and fine
        return base if len(base) == rows else np.broadcast_to(base, (rows, base.shape[1])), finite
