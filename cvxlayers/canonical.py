"""A problem as two constant sparse maps: what goes in, what comes out, and the cone program in between.

    [p; 1] --M--> (P, q, A, b, constant) --solve--> (x, y) --R--> out

``p`` stacks the parameters in the user's order, ``out`` the variables in theirs: each one the C-order ravel of its full value, a complex
one the ravel of its real part and then that of its imaginary part. M and R are made once; nothing here knows who made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.domain import Domain
from cvxlayers.program import Pattern

Matrix = Any  # a scipy sparse matrix; scipy's annotations leave the shape of one open


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter: ``shape`` of its full value, ``complex``, and ``log`` when M acts on the logarithm of its entries."""

    name: str
    shape: tuple[int, ...]
    complex: bool
    log: bool
    domain: Domain

    @property
    def size(self) -> int:
        """How many entries of p it takes."""
        return prod(self.shape) * (2 if self.complex else 1)


@dataclass(frozen=True)
class VariableSpec:
    """One variable: ``shape`` of its full value, ``complex``, and ``exp`` when its value is the exponential of the entries of R [x; y]."""

    name: str
    shape: tuple[int, ...]
    complex: bool
    exp: bool

    @property
    def size(self) -> int:
        """How many entries of ``out`` it takes."""
        return prod(self.shape) * (2 if self.complex else 1)


@dataclass(frozen=True, eq=False)
class Canonical:
    """A problem as constant maps around a cone program.

    ``M`` (nnzP + n + nnzA + m + 1, n_p + 1) acts on [p; 1]; its rows are the values of P (upper triangle, compressed columns), q, the
    values of A (compressed columns), b, and the constant c of the objective. ``R`` (n_out, n + m) acts on [x; y]. The problem's value is
    v = 1/2 x'Px + q'x + c + 1/2 r'W r, with the sign turned if ``maximize``, and after that its exponential if ``gp``; the offsets
    r = D [p; 1] and their curvature W are what eliminated variables (`cvxlayers.eliminate`) leave of the objective.
    """

    pattern: Pattern
    M: sp.csr_matrix
    R: sp.csr_matrix
    parameters: tuple[ParameterSpec, ...]
    variables: tuple[VariableSpec, ...]
    maximize: bool
    gp: bool
    offsets: sp.csr_matrix | None = None
    curvature: sp.csr_matrix | None = None


@dataclass(frozen=True)
class Tensors:
    """Sparse maps from a vector r = [reduced parameters; 1] to the numbers of a cone program, dense matrices stacked column by column.

    ``P`` (n n, len r; None: no quadratic term) gives the matrix P, symmetric or not; ``q`` (n + 1, len r) gives q and then the constant
    of the objective; ``Ab`` (m (n + 1), len r) gives the m x (n + 1) matrix [-A, b].
    """

    n: int
    m: int
    P: Any
    q: Any
    Ab: Any


def assemble(tensors: Tensors, L: Matrix, cone: Any) -> tuple[Pattern, sp.csr_matrix]:
    """The pattern and the map M of a program whose reduced parameters are r = L [p; 1].

    Patterns hold the entries that some p makes nonzero. The upper triangle of P takes (P + P')/2, so that x'Px is kept whatever P.
    Work and memory are those of the sparse product, never nonzeros times parameters.
    """
    n, m = tensors.n, tensors.m
    P_positions, P_values = _upper_triangle(tensors.P, n, L)
    q = sp.csr_matrix(sp.csr_matrix(tensors.q) @ L)
    Ab = sp.coo_matrix(tensors.Ab)
    data, width = np.asarray(Ab.data, dtype=float), L.shape[0]
    position, b_entry = Ab.row.astype(np.int64), Ab.row.astype(np.int64) >= np.int64(m) * n
    A_positions, A_values = _compress(position[~b_entry], Ab.col[~b_entry], np.negative(data[~b_entry]), L)
    b_rows = position[b_entry] - np.int64(m) * n
    b = sp.csr_matrix((data[b_entry], (b_rows, Ab.col[b_entry])), shape=(m, width)) @ L
    M = sp.csr_matrix(sp.vstack([P_values, q[:n], A_values, b, q[n:]], format="csr"))
    M.sum_duplicates()
    M.eliminate_zeros()
    columns = (_offsets(P_positions, n, n), _offsets(A_positions, m, n))
    pattern = Pattern(n, m, P_positions % max(n, 1), columns[0], A_positions % max(m, 1), columns[1], cone)
    return pattern, M


def _upper_triangle(P: Any, n: int, L: Matrix) -> tuple[np.ndarray, sp.csr_matrix]:
    """Positions and values of the upper triangle of (P + P')/2."""
    if P is None:
        return np.zeros(0, dtype=np.int64), sp.csr_matrix((0, L.shape[1]))
    P = sp.coo_matrix(P)
    row, column = P.row.astype(np.int64) % max(n, 1), P.row.astype(np.int64) // max(n, 1)
    weights = np.where(row == column, 1.0, 0.5)
    return _compress(np.maximum(row, column) * n + np.minimum(row, column), P.col, P.data * weights, L)


def _compress(positions: np.ndarray, parameters: np.ndarray, data: np.ndarray, L: Matrix) -> tuple[np.ndarray, sp.csr_matrix]:
    """The positions some p makes nonzero, in increasing order, and the rows that give their values."""
    kept, rows = np.unique(positions, return_inverse=True)
    values = sp.csr_matrix(sp.csr_matrix((data, (rows.ravel(), parameters)), shape=(len(kept), L.shape[0])) @ L)
    values.eliminate_zeros()
    alive = np.diff(values.indptr) > 0
    return kept[alive], values[alive]


def _offsets(positions: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Where each column starts among entries sorted by position = column * rows + row."""
    return np.searchsorted(positions, np.arange(columns + 1, dtype=np.int64) * rows)


def selection(labels: np.ndarray, width: int) -> sp.csr_matrix:
    """The matrix (labels.size, width) with sign(label) at column |label| - 1 of each row, and an empty row where the label is 0.

    >>> selection(np.array([2.0, 0.0, -1.0]), 2).toarray()
    array([[ 0.,  1.],
           [ 0.,  0.],
           [-1.,  0.]])
    """
    labels = np.asarray(labels, dtype=float).ravel()
    rows = np.flatnonzero(labels)
    columns = np.abs(labels[rows]).astype(np.int64) - 1
    return sp.csr_matrix((np.sign(labels[rows]), (rows, columns)), shape=(labels.size, width))


def split(values: np.ndarray, complex_: bool) -> np.ndarray:
    """The C-order ravel of values, or of their real and then their imaginary part."""
    return np.concatenate([np.real(values).ravel(), np.imag(values).ravel()]) if complex_ else np.real(values).ravel()


def admissible(specs: tuple[ParameterSpec, ...]) -> sp.csr_matrix:
    """The projection of p, parameter by parameter, onto what the declarations allow: shape (n_p, n_p).

    A symmetric S becomes (S + S')/2, a hermitian one (S + conj(S)')/2, and entries outside a support become 0. With it a gradient with
    respect to a symmetric S comes back symmetric (hermitian), whichever triangle was read.
    """
    blocks: list[Any] = [sp.csr_matrix((0, 0))]
    for spec in specs:
        entries = int(np.prod(spec.shape))
        allowed = np.ones(entries) if spec.domain.support is None else spec.domain.support.ravel().astype(float)
        real = imaginary = sp.csr_matrix(sp.diags_array(allowed))
        if spec.domain.symmetric:
            transpose = real[np.arange(entries).reshape(spec.shape).swapaxes(-2, -1).ravel()]
            real, imaginary = (real + transpose) / 2, (real - transpose) / 2  # the imaginary part of a hermitian matrix is antisymmetric
        blocks += [real, imaginary] if spec.complex else [real]
    return sp.csr_matrix(sp.block_diag(blocks, format="csr"))


def domain_of(leaf: Any) -> Domain:
    """What the declaration of a parameter promises about its value."""
    attributes, support = leaf.attributes, None
    if attributes["diag"]:
        support = np.eye(leaf.shape[-1], dtype=bool)
    elif leaf.sparse_idx is not None:
        support = np.zeros(leaf.shape, dtype=bool)
        support[tuple(leaf.sparse_idx)] = True
    definite = 1 if attributes["PSD"] else -1 if attributes["NSD"] else 0
    return Domain(
        lower=_bound(leaf, 0, ("nonneg", "pos"), support),
        upper=_bound(leaf, 1, ("nonpos", "neg"), support),
        strict=bool(attributes["pos"] or attributes["neg"]),
        support=support,
        symmetric=bool(definite or attributes["symmetric"] or attributes["hermitian"]),
        definite=definite,
        imaginary=bool(attributes["imag"]),
    )


def _bound(leaf: Any, side: int, signs: tuple[str, str], support: np.ndarray | None) -> np.ndarray | None:
    """The lower (side 0) or upper (side 1) bound, None if there is none; entries outside the support are free of it."""
    free, tighter = (-np.inf, np.maximum) if side == 0 else (np.inf, np.minimum)
    bound: Any = free if leaf.bounds is None else leaf.bounds[side]
    bound = np.asarray(bound.toarray() if sp.issparse(bound) else bound, dtype=float)
    if any(leaf.attributes[sign] for sign in signs):
        bound = tighter(bound, 0.0)
    if leaf.attributes["boolean"] is True:
        bound = tighter(bound, float(side))
    if support is not None:
        bound = np.where(support, bound, free)
    return np.asarray(bound) if np.isfinite(bound).any() else None
