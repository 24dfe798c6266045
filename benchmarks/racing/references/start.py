"""Near the solution of a cone form: Clarabel at tolerance 1e-12, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import clarabel as package
import numpy as np
import scipy.sparse as sp
import torch

from racing.forms.cone import ConeForm

clarabel: Any = package
"""Compiled, without type stubs."""


@dataclass(frozen=True)
class Row:
    """One row's program, minimize 1/2 x'Px + q'x subject to Ax + s = b, with a solution near the exact one."""

    P: sp.csc_matrix
    q: np.ndarray
    A: sp.csc_matrix
    b: np.ndarray
    x: np.ndarray
    y: np.ndarray
    s: np.ndarray


def entries(form: ConeForm, data: dict[str, np.ndarray]) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    """Leaves of the parameters, and the values of P, q, A, b that depend on them."""
    leaves = {name: torch.from_numpy(data[name]).requires_grad_() for name in form.names}
    return leaves, form.values(leaves)


def rows(form: ConeForm, values: tuple[torch.Tensor, ...]) -> Iterator[Row]:
    """Every row, solved."""
    settings: Any = clarabel.DefaultSettings()
    settings.verbose, settings.max_iter = False, 200
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    cones = [
        *([clarabel.ZeroConeT(form.zero)] if form.zero else []),
        *([clarabel.NonnegativeConeT(form.nonnegative)] if form.nonnegative else []),
        *(clarabel.SecondOrderConeT(size) for size in form.second_order),
        *(clarabel.PSDTriangleConeT(order) for order in form.semidefinite),
        *(clarabel.ExponentialConeT() for _ in range(form.exponential)),
    ]
    for P, q, A, b in zip(*(part.detach().numpy() for part in values), strict=True):
        upper = sp.csc_matrix((P, form.P), shape=(form.n, form.n))
        matrix = sp.csc_matrix((A, form.A), shape=(form.m, form.n))
        found = clarabel.DefaultSolver(upper, q, matrix, b, cones, settings).solve()
        yield Row(upper + sp.triu(upper, 1).T, q, matrix, b, np.array(found.x), np.array(found.z), np.array(found.s))
