"""In which order the rows and columns of a sparse symmetric matrix are eliminated, that its factor has few entries."""

from __future__ import annotations

import numpy as np
import qdldl
import scipy.sparse as sp
from scipy.sparse.linalg import spilu

FEW, MULTIPLE = 100, 200_000
"""Up to FEW rows the first order of elimination is as good as another; beyond MULTIPLE entries a second one takes more than a tenth of a
second to find."""


def minimum_degree(indices: np.ndarray, indptr: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, sp.csc_matrix]:
    """The approximate minimum degree ordering of Amestoy, Davis and Duff (1996) and L in that order, whose pattern depends on no number.

    As QDLDL brings both, on numbers that cannot fail.
    """
    if not len(signs):
        return np.zeros(0, dtype=np.intp), sp.csc_matrix((0, 0))
    lower, _, permutation = qdldl.Solver(_easy(indices, indptr, signs), upper=True).factors()
    lower.sort_indices()
    return np.asarray(permutation, dtype=np.intp), lower


def multiple_minimum_degree(indices: np.ndarray, indptr: np.ndarray, signs: np.ndarray) -> np.ndarray | None:
    """The multiple minimum degree ordering of Liu (1985), as SuperLU brings it, where it may be better and takes no time; else None.

    The approximate ordering puts the rows with more than 10 sqrt(N) entries last and forgets them, among the others as well: where the
    degrees left are small, as in a portfolio with factors, it then takes any of them for the least.
    """
    if len(signs) <= FEW or len(indices) > MULTIPLE:
        return None
    K = _easy(indices, indptr, signs)
    options = {"SymmetricMode": True}  # and nothing is worth keeping, so that only the order is found
    factors = spilu(K + sp.triu(K, 1).T, 1.0, 1.0, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    return np.argsort(factors.perm_c).astype(np.intp)


def _easy(indices: np.ndarray, indptr: np.ndarray, signs: np.ndarray) -> sp.csc_matrix:
    """A matrix of the pattern that every library can factor, as they want to."""
    values = np.zeros(len(indices))
    values[indptr[1:] - 1] = signs
    values[values == 0.0] = 1e-3 / len(signs)
    return sp.csc_matrix((values, indices, indptr), shape=(len(signs), len(signs)))
