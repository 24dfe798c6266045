"""The records of the middle map: a cone program with fixed pattern and varying numbers, and its solution.

    minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K          (primal)
    y in K*,  Px + A'y + q = 0,  s'y = 0                               (optimality)

Conventions, here once for the whole library:

- P is stored as its upper triangle; P and A are in compressed column order with sorted rows and no duplicates.
- Batch axes lead, any number of them; an unbatched program has batch (). Nothing is ever squeezed.
- Rows of A come cone by cone in the order zero, nonnegative, second-order, semidefinite, exponential, power.
- A semidefinite cone holds the upper triangle of a symmetric matrix, column by column, off-diagonal entries times sqrt 2.
- The exponential cone is cl {(x, y, z) : y > 0, y exp(x/y) <= z}; the power cone {(x, y, z) : x^a y^(1-a) >= |z|, x, y >= 0}.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.cones import NonNegative, Product

Array = Any


@dataclass(frozen=True, eq=False)
class Pattern:
    """What never changes between calls: sizes, the patterns of P and A, the cone. Immutable and hashable.

    ``P_indices, P_indptr`` hold the upper triangle of the n x n matrix P, ``A_indices, A_indptr`` the m x n matrix A, both in
    compressed column order with sorted rows. Raises ValueError for arrays that do not fit together.

    >>> import scipy.sparse as sp
    >>> from cvxlayers.cones import NonNegative, Product
    >>> Pattern.of(sp.eye(2), sp.eye(2), Product((NonNegative(2),))).m
    2
    """

    n: int
    m: int
    P_indices: np.ndarray
    P_indptr: np.ndarray
    A_indices: np.ndarray
    A_indptr: np.ndarray
    cone: Product

    def __post_init__(self) -> None:
        for name in ("P_indices", "P_indptr", "A_indices", "A_indptr"):
            array = np.array(getattr(self, name), dtype=np.int32)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for name, rows in (("P", self.n), ("A", self.m)):
            indices, indptr = getattr(self, name + "_indices"), getattr(self, name + "_indptr")
            if len(indptr) != self.n + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
                raise ValueError(f"{name}_indptr has length {len(indptr)}; wanted {self.n + 1} nondecreasing offsets from 0 to nnz")
            if len(indices) and (indices.min() < 0 or indices.max() >= rows):
                raise ValueError(f"{name}_indices reach outside the {rows} rows of {name}")
            columns = np.repeat(np.arange(self.n), np.diff(indptr))
            if (np.diff(columns * max(rows, 1) + indices.astype(np.int64)) <= 0).any():
                raise ValueError(f"{name} has unsorted or duplicate entries; sort its rows within each column and sum duplicates")
            if name == "P" and (indices > columns).any():
                raise ValueError("P has entries below the diagonal; store its upper triangle only")
        if not self.cone.ordered:
            raise ValueError("the cones come in a wrong order; wanted zero, nonnegative, second-order, semidefinite, exponential, power")
        if self.cone.dim != self.m:
            raise ValueError(f"the cone has dimension {self.cone.dim}, A has {self.m} rows; wanted equal")

    @staticmethod
    def of(P: Any, A: Any, cone: Product) -> Pattern:
        """The pattern of scipy matrices P (n, n; only its upper triangle is read) and A (m, n)."""
        P, A = sp.csc_matrix(sp.triu(P)), sp.csc_matrix(A)
        for matrix in (P, A):
            matrix.sum_duplicates()
        return Pattern(A.shape[1], A.shape[0], P.indices, P.indptr, A.indices, A.indptr, cone)

    @cached_property
    def _key(self) -> tuple:
        return (self.n, self.m, self.cone, *(getattr(self, f).tobytes() for f in ("P_indices", "P_indptr", "A_indices", "A_indptr")))

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Pattern) and self._hash == other._hash and self._key == other._key)

    def __reduce__(self):
        return Pattern, (self.n, self.m, self.P_indices, self.P_indptr, self.A_indices, self.A_indptr, self.cone)

    @cached_property
    def P_columns(self) -> np.ndarray:
        """The column of every stored entry of P."""
        return np.repeat(np.arange(self.n, dtype=np.int32), np.diff(self.P_indptr))

    @cached_property
    def A_columns(self) -> np.ndarray:
        """The column of every stored entry of A."""
        return np.repeat(np.arange(self.n, dtype=np.int32), np.diff(self.A_indptr))

    @cached_property
    def nonnegative(self) -> np.ndarray:
        """Which rows of A belong to nonnegative cones, (m,)."""
        return np.repeat([isinstance(c, NonNegative) for c in self.cone.cones], [c.dim for c in self.cone.cones]).astype(bool)

    @property
    def nnzP(self) -> int:
        return len(self.P_indices)

    @property
    def nnzA(self) -> int:
        return len(self.A_indices)


@dataclass(frozen=True)
class ConeProgram:
    """The numbers of a batch of programs: P (*batch, nnzP), q (*batch, n), A (*batch, nnzA), b (*batch, m).

    Also the type of its own tangent and cotangent. The cotangent of P is that of the stored upper triangle: an off-diagonal entry
    stands for two entries of the symmetric matrix and collects both.
    """

    P: Array
    q: Array
    A: Array
    b: Array


@dataclass(frozen=True)
class Solution:
    """Primal and dual solution of a batch: x (*batch, n), y (*batch, m), s (*batch, m), status (*batch), iterations (*batch).

    Also the warm start of a later call and, with ``status`` and ``iterations`` unused, the type of its own tangent and cotangent.
    """

    x: Array
    y: Array
    s: Array
    status: Array = None
    iterations: Array = None


@dataclass(frozen=True)
class Info:
    """What happened in one call, per row (*batch): what is returned beside the numbers, so that none comes without a flag.

    ``status`` holds `Status` codes; ``objective`` the value of the user's own problem (inf where infeasible, -inf where unbounded
    below, NaN where unknown); ``primal_residual``, ``dual_residual`` and ``gap`` are relative and recomputed from the unscaled data;
    ``solver`` names the solver; ``warm_started`` tells which rows began at a given solution. ``solution`` is the cone program's
    `Solution`; an Info passed as ``warm_start=`` of a later call starts from it.
    """

    status: np.ndarray
    objective: np.ndarray
    primal_residual: np.ndarray
    dual_residual: np.ndarray
    gap: np.ndarray
    iterations: np.ndarray
    solver: str
    warm_started: np.ndarray
    solution: Solution


def take(record: Any, rows: Any) -> Any:
    """The rows (a slice, a mask or indices) of every array of a record; None stays None."""
    return type(record)(**{name: None if a is None else a[rows] for name, a in vars(record).items()})


def join(parts: list[Any]) -> Any:
    """Records of the same kind, one after the other along their first axis."""
    if len(parts) == 1:
        return parts[0]
    fields = vars(parts[0]).items()
    return type(parts[0])(**{name: None if a is None else np.concatenate([getattr(p, name) for p in parts]) for name, a in fields})


def spread(record: Any, mask: np.ndarray, fill: float) -> Any:
    """A record whose rows stand where ``mask`` (rows,) is true, with ``fill`` (0 in arrays that are not floating) elsewhere."""

    def placed(a: np.ndarray) -> np.ndarray:
        out = np.full((len(mask), *a.shape[1:]), fill if a.dtype.kind == "f" else 0, dtype=a.dtype)
        out[mask] = a
        return out

    return type(record)(**{name: None if a is None else placed(a) for name, a in vars(record).items()})


def shaped(solution: Solution, batch: tuple[int, ...]) -> Solution:
    """A flat solution in batch shape."""
    return Solution(*[a.reshape(batch + a.shape[1:]) for a in vars(solution).values()])


def flattened(solution: Solution, batch: tuple[int, ...]) -> Solution:
    """A solution in batch shape as a flat one."""
    rows = prod(batch)
    return Solution(*(None if a is None else np.asarray(a).reshape((rows, *a.shape[len(batch) :])) for a in vars(solution).values()))
