"""The cone of positive semidefinite matrices, packed as vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
from array_api_compat import array_namespace, device

from cvxlayers.cones.base import Array, Block, Cone, Derivative


@dataclass(frozen=True)
class Semidefinite(Cone):
    """The positive semidefinite matrices of one order, its own dual; dim = order (order + 1)/2.

    A symmetric X is packed as its upper triangle, column by column, with off-diagonal entries times sqrt 2, so that the inner product
    of two packed vectors is trace(XY). With X = Q diag(l) Q',

        project(X) = Q diag(max(l, 0)) Q'
        D has the eigenvectors (q_i q_j' + q_j q_i')/sqrt 2 and q_i q_i', with eigenvalue 1 where l_i, l_j > 0, 0 where both are <= 0,
        and max/(max - min) of the two otherwise.

    (Malick and Sendov, Clarke generalized Jacobian of the projection onto the cone of positive semidefinite matrices, 2006.)

    >>> import numpy as np
    >>> Semidefinite(2).project(np.array([1.0, 0.0, -2.0]))
    array([1., 0., 0.])
    """

    order: int

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ValueError(f"Semidefinite got order = {self.order}; wanted order >= 1")

    @property
    def dim(self) -> int:
        return self.order * (self.order + 1) // 2

    def project(self, v: Array) -> Array:
        xp = array_namespace(v)
        eigenvalues, Q = self._eigen(xp, v)
        X = (Q * xp.where(eigenvalues > 0, eigenvalues, 0.0)[..., None, :]) @ xp.matrix_transpose(Q)
        flat = xp.reshape(X, (*v.shape[:-1], self.order**2))
        packed = xp.take(flat, self._index(xp, v, self._rows * self.order + self._columns), axis=-1)
        return packed / self._weights(xp, v)

    def derivative(self, v: Array) -> Derivative:
        xp = array_namespace(v)
        eigenvalues, Q = self._eigen(xp, v)
        rows, columns = self._index(xp, v, self._rows), self._index(xp, v, self._columns)
        # entry (r, c) of the eigenvector (i, j) is Q_ri Q_cj + Q_rj Q_ci, times 1/sqrt 2 for each of r = c and i = j
        top, bottom = xp.take(Q, rows, axis=-2), xp.take(Q, columns, axis=-2)
        vectors = xp.take(top, rows, axis=-1) * xp.take(bottom, columns, axis=-1)
        vectors = vectors + xp.take(top, columns, axis=-1) * xp.take(bottom, rows, axis=-1)
        diagonal = np.where(self._rows == self._columns, 1 / sqrt(2), 1.0)
        vectors = vectors * xp.asarray(np.outer(diagonal, diagonal), dtype=v.dtype, device=device(v))
        # eigenvalues ascend and i <= j, so l_i is the smaller; where both vanish the value is 0
        low, high = xp.take(eigenvalues, rows, axis=-1), xp.take(eigenvalues, columns, axis=-1)
        spread = xp.where(high > 0, high, 0.0) - xp.where(low < 0, low, 0.0)
        values = xp.where(high > 0, high, 0.0) / xp.where(spread > 0, spread, 1.0)
        return Derivative(values, (Block(0, 1, self.dim, vectors[..., None, :, :]),))

    def dual(self) -> Semidefinite:
        return self

    def margin(self, v: Array) -> Array:
        xp = array_namespace(v)
        return xp.min(xp.abs(self._eigen(xp, v)[0]), axis=-1)

    def _eigen(self, xp, v: Array) -> tuple[Array, Array]:
        """Ascending eigenvalues (*batch, order) and eigenvectors (*batch, order, order) of the matrix packed in v."""
        entries = xp.take(v * self._weights(xp, v), self._index(xp, v, self._places), axis=-1)
        return xp.linalg.eigh(xp.reshape(entries, (*v.shape[:-1], self.order, self.order)))

    def _weights(self, xp, v: Array) -> Array:
        """1 on the diagonal, 1/sqrt 2 off it: packed entry times weight is the matrix entry."""
        return xp.asarray(np.where(self._rows == self._columns, 1.0, 1 / sqrt(2)), dtype=v.dtype, device=device(v))

    def _index(self, xp, v: Array, index: np.ndarray) -> Array:
        return xp.asarray(index, device=device(v))

    @cached_property
    def _columns(self) -> np.ndarray:
        """The column of every packed entry."""
        return np.repeat(np.arange(self.order), np.arange(1, self.order + 1))

    @cached_property
    def _rows(self) -> np.ndarray:
        """The row of every packed entry."""
        return np.arange(self.dim) - self._columns * (self._columns + 1) // 2

    @cached_property
    def _places(self) -> np.ndarray:
        """Where each of the order^2 matrix entries is found in the packed vector."""
        row, column = np.divmod(np.arange(self.order**2), self.order)
        low, high = np.minimum(row, column), np.maximum(row, column)
        return high * (high + 1) // 2 + low
