"""Products of a batch of sparse matrices of one pattern with a batch of vectors: P x, A x, A'y, and the residuals built from them.

Every row of the batch is summed by itself in a fixed order, so its result is bitwise the same whatever its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cvxlayers.compiled import kernels
from cvxlayers.cones import NonNegative, Zero
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
        if self.passes is not None:
            return self._passed(self.passes.symmetric, self.places[:2], P, x, pattern.n)
        lower = self.P_columns.reduce(np.where(self.P_diagonal, 0.0, P) * x[:, pattern.P_indices])
        return lower + self.P_rows.reduce(P * x[:, pattern.P_columns])

    def A(self, A: np.ndarray, x: np.ndarray) -> np.ndarray:
        """A x."""
        if self.passes is not None:
            return self._passed(self.passes.times, self.places[2:], A, x, self.pattern.m)
        return self.A_rows.reduce(A * x[:, self.pattern.A_columns])

    def AT(self, A: np.ndarray, y: np.ndarray) -> np.ndarray:
        """A'y."""
        if self.passes is not None:
            return self._passed(self.passes.transposed, self.places[2:], A, y, self.pattern.n)
        return self.A_columns.reduce(A * y[:, self.pattern.A_indices])

    @cached_property
    def passes(self) -> Any:
        """The compiled passes over rows, None where there are none."""
        return kernels("passes")

    @cached_property
    def places(self) -> tuple[np.ndarray, ...]:
        """The indices of the pattern as the compiled passes take them: P_indptr, P_indices, A_indptr, A_indices."""
        pattern = self.pattern
        return tuple(a.view(np.uint32) for a in (pattern.P_indptr, pattern.P_indices, pattern.A_indptr, pattern.A_indices))

    @cached_property
    def kind(self) -> np.ndarray:
        """(m,): 0 for rows of zero cones, 1 for rows of nonnegative ones, 2 for others."""
        kinds = [0 if isinstance(c, Zero) else 1 if isinstance(c, NonNegative) else 2 for c in self.pattern.cone.cones]
        return np.repeat(kinds, [c.dim for c in self.pattern.cone.cones]).astype(np.uint32)

    @cached_property
    def sides(self) -> np.ndarray:
        """(first row, dim) of every cone that is not a zero cone, one after the other; every nonnegative row is a cone of its own."""
        first, found = 0, []
        for cone in self.pattern.cone.cones:
            if isinstance(cone, NonNegative):
                found += [(first + i, 1) for i in range(cone.dim)]
            elif not isinstance(cone, Zero) and cone.dim:
                found.append((first, cone.dim))
            first += cone.dim
        return np.array(found, dtype=np.uint32).reshape(-1)

    @cached_property
    def linear(self) -> bool:
        """Whether all cones are zero and nonnegative ones."""
        return not (self.kind == 2).any()

    def finite(self, *arrays: np.ndarray) -> np.ndarray | None:
        """The rows (rows,) in which all arrays (rows, ...), four at most, hold finite numbers only; None if that is so in all of them."""
        if self.passes is not None and self.passes.all_finite(*arrays, *arrays[:1] * (4 - len(arrays))):
            return None
        rows = np.ones(len(arrays[0]), dtype=bool)
        for array in arrays:
            rows &= np.isfinite(array).all(axis=1)
        return None if rows.all() else rows

    def work(self) -> np.ndarray:
        """Memory for one pass over the rows: Px, A'y and Ax."""
        return np.empty(2 * self.pattern.n + self.pattern.m)

    def _passed(self, product: Any, places: tuple[np.ndarray, ...], values: np.ndarray, v: np.ndarray, size: int) -> np.ndarray:
        out = np.empty((len(v), size))
        product(*places, values, v, out)
        return out


@dataclass(frozen=True)
class Residuals:
    """How far a point is from optimality, per row and relative to the size of the terms: each (rows,).

    primal: |Ax + s - b| and the distance of s from K, dual: |Px + q + A'y| and the distance of y from K*, both in the maximum norm;
    gap: |x'Px + q'x + b'y|; objective: 1/2 x'Px + q'x; worst: the largest of the first three, NaN where one is.
    """

    primal: np.ndarray
    dual: np.ndarray
    gap: np.ndarray
    objective: np.ndarray
    worst: np.ndarray


def residuals(products: Products, program: ConeProgram, x: np.ndarray, y: np.ndarray, s: np.ndarray, projected: bool = False) -> Residuals:
    """The residuals of the optimality conditions, from the data as given (no scaling of any solver enters).

    ``projected`` says that y is a projection on K* and s its Moreau complement: curved cones are not asked again whether they hold them.
    """
    if products.passes is not None:
        cone = products.pattern.cone
        nearest = (s, y) if products.linear or projected else (cone.project(s), cone.dual().project(y))
        out = np.empty((5, len(x)))
        data = program.P, program.q, program.A, program.b
        products.passes.residuals(*data, x, y, s, *nearest, *products.places, products.kind, products.work(), out)
        return Residuals(*out)
    Px, Ax, ATy = products.P(program.P, x), products.A(program.A, x), products.AT(program.A, y)
    q, b = program.q, program.b
    cone = products.pattern.cone
    nearest_s, nearest_y = (s, y) if projected else (cone.project(s), cone.dual().project(y))
    primal = np.maximum(_peak(Ax + s - b), _peak(nearest_s - s)) / (1 + np.maximum(np.maximum(_peak(Ax), _peak(s)), _peak(b)))
    dual = np.maximum(_peak(Px + q + ATy), _peak(nearest_y - y)) / (1 + np.maximum(np.maximum(_peak(Px), _peak(ATy)), _peak(q)))
    xPx, qx, by = _dot(x, Px), _dot(q, x), _dot(b, y)
    gap = abs(xPx + qx + by) / (1 + np.maximum(abs(xPx), np.maximum(abs(qx), abs(by))))
    return Residuals(primal, dual, gap, xPx / 2 + qx, np.maximum(np.maximum(primal, dual), gap))


def _peak(v: np.ndarray) -> np.ndarray:
    return abs(v).max(axis=-1, initial=0.0)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=-1)
