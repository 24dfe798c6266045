"""Our ConicLayer on the workloads as cone programs."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from cvxlayers.cones import Exponential, NonNegative, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.program import Pattern
from cvxlayers.torch import ConicLayer
from racing.contestants.case import Case
from racing.contestants.torch_case import torch_case
from racing.forms.cone import FORMS, ConeForm
from racing.forms.take import take
from racing.workload import Workload


def load(workload: Workload, data: dict[str, np.ndarray], solver: str | None = None) -> Case:
    if workload.kind not in FORMS:
        raise NotImplementedError("not a convex cone program")
    form = FORMS[workload.kind](**workload.sizes)
    pattern = _pattern(form)
    layer = ConicLayer(pattern, solver)
    P_order, A_order = form.by_columns

    def answer(given: dict[str, torch.Tensor]) -> torch.Tensor:
        P, q, A, b = form.values(given)
        x, _, _ = layer(take(P, P_order), q, take(A, A_order), b)
        return form.output(x)

    return torch_case(data, form.names, answer, f"solver {layer.core.conic.solver.name}")


def _pattern(form: ConeForm) -> Pattern:
    P = sp.coo_array((np.ones(len(form.P[0])), form.P), shape=(form.n, form.n))
    A = sp.coo_array((np.ones(len(form.A[0])), form.A), shape=(form.m, form.n))
    kinds = [
        *(kind(size) for kind, size in ((Zero, form.zero), (NonNegative, form.nonnegative)) if size),
        *map(SecondOrder, form.second_order),
        *map(Semidefinite, form.semidefinite),
        *(Exponential() for _ in range(form.exponential)),
    ]
    return Pattern.of(P + sp.triu(P, 1).T, A, Product(tuple(kinds)))
