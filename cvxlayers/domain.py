"""What a parameter's declaration promises about its value, and the check of that promise for a whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

COARSE = 1e-10  # a dtype with a spacing above this (float32, bfloat16) gets the wider of each pair of tolerances


@dataclass(frozen=True, eq=False)
class Domain:
    """The promises of one parameter: bounds entry by entry, support, symmetry, definiteness.

    ``lower`` and ``upper`` broadcast against ``shape`` (None: no bound); ``strict`` makes a zero bound exclusive. ``support`` is a
    boolean mask (shape) of the entries that may differ from zero. ``symmetric`` means S == S' (S == conj(S)' for complex ones).
    ``definite`` is +1 for positive semidefinite, -1 for negative semidefinite, 0 for no promise. ``imaginary`` means a zero real part.
    """

    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    strict: bool = False
    support: np.ndarray | None = None
    symmetric: bool = False
    definite: int = 0
    imaginary: bool = False

    @property
    def promises(self) -> bool:
        """Whether anything is promised beyond numbers."""
        bounded = self.lower is not None or self.upper is not None
        return bounded or self.support is not None or self.symmetric or self.definite != 0 or self.imaginary

    def violations(self, value: np.ndarray, resolution: float) -> Iterator[tuple[Any, str, str]]:
        """For value (rows, *shape): yields (rows,) masks of broken promises, each with what was got in its first row and what was wanted.

        ``resolution`` is the spacing of the dtype in which the value came: what rounding alone can do is not a broken promise.
        Infinite entries pass here: they may be missing bounds, which is for the cone program to say.
        """
        rows, axes = len(value), tuple(range(1, value.ndim))
        slack = 1e-8 if resolution < COARSE else 4 * resolution
        missing = np.isnan(value).any(axis=axes)
        if missing.any():
            yield missing, "nan", "numbers"
        words = ("more than", "less than") if self.strict else ("at least", "at most")
        for bound, sign, word in ((self.lower, 1.0, words[0]), (self.upper, -1.0, words[1])):
            if bound is None:
                continue
            # A number cannot be rounded across zero, so there the wide tolerance of a coarse dtype has no business.
            allowed = min(slack, 1e-6) + slack * abs(np.where(np.isfinite(bound), bound, 0.0))
            with np.errstate(invalid="ignore"):  # inf - inf, a missing value at a missing bound
                short = sign * (value - bound) < -allowed
            if self.strict:
                short |= (sign * value <= 0) & (np.asarray(bound) == 0)
            broken = short.any(axis=axes)
            if broken.any():
                extreme = (value.min if sign > 0 else value.max)(axis=axes)[broken][0]
                limit = f"{float(np.ravel(bound)[0]):g}" if np.size(bound) == 1 else "its bound"
                yield broken, f"{extreme:g}", f"{word} {limit}"
        if self.imaginary:
            broken = (np.real(value) != 0).any(axis=axes)
            if broken.any():
                yield broken, "a nonzero real part", "imaginary numbers"
        if self.support is not None:
            broken = (value[:, ~self.support] != 0).any(axis=1)
            if broken.any():
                yield broken, "a nonzero outside its sparsity pattern", "zero there"
        if self.symmetric or self.definite:
            known = np.isfinite(value)
            finite = value if known.all() else np.where(known, value, 0.0)
            adjoint = np.swapaxes(finite, -1, -2)
            adjoint = np.conj(adjoint) if np.iscomplexobj(value) else adjoint
            size = np.max(abs(finite), axis=axes, initial=0.0)
            gap = np.max(abs(finite - adjoint), axis=axes, initial=0.0)
            broken = gap > size * (1e-6 if resolution < COARSE else 1e-3)
            if broken.any():
                yield broken, f"a difference of {gap[broken][0]:.2g} between S and S'", "a symmetric (Hermitian) matrix"
            if self.definite:
                shift = (min(slack, 1e-3) * np.linalg.norm(finite, axis=(-2, -1)))[:, None] + np.finfo(float).tiny
                tested, diagonal = (finite + adjoint) * (self.definite / 2), np.arange(value.shape[-1])
                tested[:, diagonal, diagonal] += shift
                if not _has_cholesky(tested):
                    broken = ~np.array([_has_cholesky(tested[row]) for row in range(rows)], dtype=bool)
                    sign = "positive" if self.definite > 0 else "negative"
                    worst = np.linalg.eigvalsh(self.definite * (finite + adjoint)[broken][0] / 2)[0] * self.definite
                    yield broken, f"an eigenvalue {worst:.2g}", f"a {sign} semidefinite matrix"


def _has_cholesky(matrix: np.ndarray) -> bool:
    """Whether a matrix, or all of several, (..., n, n), can be factored."""
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True
