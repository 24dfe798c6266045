"""Products of a batch of sparse matrices of one pattern with a batch of vectors: P x, A x, A'y, and the residuals built from them.

Every row of the batch is summed by itself in a fixed order, so its result is bitwise the same whatever its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvxlayers.program import ConeProgram, Pattern


@dataclass(frozen=True)
class Segments:
    """Sums over groups of entries: out[..., targets[g]] = sum of terms[..., order] over the g-th run, zero where no run points."""

    order: np.ndarray | None
    starts: np.ndarray
    targets: np.ndarray
    size: int

    @staticmethod
    def by(keys: np.ndarray, size: int) -> Segments:
        """Group entries by their key in 0 ... size - 1."""
        order = None if (np.diff(keys) >= 0).all() else np.argsort(keys, kind="stable")
        ordered = keys if order is None else keys[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        return Segments(order, starts, ordered[starts], size)

    def reduce(self, terms: np.ndarray, ufunc: np.ufunc = np.add) -> np.ndarray:
        """terms (rows, entries) -> (rows, size)."""
        out = np.zeros((len(terms), self.size))
        if len(self.starts):
            out[:, self.targets] = ufunc.reduceat(terms if self.order is None else terms[:, self.order], self.starts, axis=1)
        return out


@dataclass(frozen=True)
class Products:
    """The products of one `Pattern`; arrays are NumPy float64 with one batch axis: (rows, ...)."""

    pattern: Pattern
    P_rows: Segments
    P_columns: Segments
    P_diagonal: np.ndarray
    A_rows: Segments
    A_columns: Segments

    @staticmethod
    def of(pattern: Pattern) -> Products:
        """The index arrays of a pattern."""
        return Products(
            pattern,
            Segments.by(pattern.P_indices, pattern.n),
            Segments.by(pattern.P_columns, pattern.n),
            pattern.P_indices == pattern.P_columns,
            Segments.by(pattern.A_indices, pattern.m),
            Segments.by(pattern.A_columns, pattern.n),
        )

    def P(self, P: np.ndarray, x: np.ndarray) -> np.ndarray:
        """P x, with P symmetric and stored as its upper triangle."""
        pattern = self.pattern
        if not pattern.nnzP:
            return np.zeros_like(x)
        lower = self.P_columns.reduce(np.where(self.P_diagonal, 0.0, P) * x[:, pattern.P_indices])
        return lower + self.P_rows.reduce(P * x[:, pattern.P_columns])

    def A(self, A: np.ndarray, x: np.ndarray) -> np.ndarray:
        """A x."""
        return self.A_rows.reduce(A * x[:, self.pattern.A_columns])

    def AT(self, A: np.ndarray, y: np.ndarray) -> np.ndarray:
        """A'y."""
        return self.A_columns.reduce(A * y[:, self.pattern.A_indices])


@dataclass(frozen=True)
class Residuals:
    """How far a point is from optimality, per row and relative to the size of the terms: each (rows,).

    primal: |Ax + s - b| and the distance of s from K, dual: |Px + q + A'y| and the distance of y from K*, both in the maximum norm;
    gap: |x'Px + q'x + b'y|; objective: 1/2 x'Px + q'x.
    """

    primal: np.ndarray
    dual: np.ndarray
    gap: np.ndarray
    objective: np.ndarray

    @property
    def worst(self) -> np.ndarray:
        """The largest of the three, (rows,); NaN where any is."""
        return np.maximum(np.maximum(self.primal, self.dual), self.gap)


def residuals(products: Products, program: ConeProgram, x: np.ndarray, y: np.ndarray, s: np.ndarray) -> Residuals:
    """The residuals of the optimality conditions, from the data as given (no scaling of any solver enters)."""
    Px, Ax, ATy = products.P(program.P, x), products.A(program.A, x), products.AT(program.A, y)
    q, b = program.q, program.b
    cone = products.pattern.cone
    dual_cone = cone.dual()
    primal = np.maximum(_peak(Ax + s - b), _peak(cone.project(s) - s)) / (1 + np.maximum(np.maximum(_peak(Ax), _peak(s)), _peak(b)))
    dual = np.maximum(_peak(Px + q + ATy), _peak(dual_cone.project(y) - y)) / (1 + np.maximum(np.maximum(_peak(Px), _peak(ATy)), _peak(q)))
    xPx, qx, by = _dot(x, Px), _dot(q, x), _dot(b, y)
    gap = abs(xPx + qx + by) / (1 + np.maximum(abs(xPx), np.maximum(abs(qx), abs(by))))
    return Residuals(primal, dual, gap, xPx / 2 + qx)


def _peak(v: np.ndarray) -> np.ndarray:
    return abs(v).max(axis=-1, initial=0.0)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=-1)
