"""Moreau's own PyTorch solver on the workloads as cone programs, with its default settings; its cones on x are not used."""

from __future__ import annotations

import warnings
from typing import Any

import moreau  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from moreau.torch import Solver  # pyright: ignore[reportMissingImports]

from racing.contestants.case import Case
from racing.contestants.torch_case import torch_case
from racing.forms.cone import FORMS, whole
from racing.forms.take import take
from racing.workload import Workload


def load(workload: Workload, data: dict[str, np.ndarray], **settings: Any) -> Case:
    """``settings`` are fields of moreau.Settings."""
    if workload.kind not in FORMS:
        raise NotImplementedError("not a convex cone program")
    form = FORMS[workload.kind](**workload.sizes)
    (P_rows, P_columns), (A_rows, A_columns, A_order) = form.by_rows
    cones = moreau.Cones(
        num_zero_cones=form.zero,
        num_nonneg_cones=form.nonnegative,
        so_cone_dims=list(form.second_order),
        psd_dims=list(form.semidefinite),
        num_exp_cones=form.exponential,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make: Any = Solver
        solver = make(
            form.n,
            form.m,
            *_offsets(P_rows, P_columns, form.n),
            *_offsets(A_rows, A_columns, form.m),
            cones,
            moreau.Settings(batch_size=workload.batch, enable_grad=True, device="cpu", **settings),
        )

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        P, q, A, b = form.values(given, whole)
        return form.output(solver.solve(P, take(A, A_order), q, b).x)

    return torch_case(data, form.names, answer, f"solver {solver._settings.solver.value}")


def _offsets(rows: np.ndarray, columns: np.ndarray, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.searchsorted(rows, np.arange(count + 1))), torch.from_numpy(columns.astype(np.int64))
