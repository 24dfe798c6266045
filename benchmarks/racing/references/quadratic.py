"""Quadratic programs: the active set from `start`, then its optimality conditions solved directly, by sparse LU with refinement.

K = [P A'; A 0] over the active rows,  K [x; y] = [-q; b],  K [u; w] = [g; 0]
dP = -(u x' + x u') / 2,  dq = -u,  dA = -(y u' + w x'),  db = w
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu

from racing.forms.cone import FORMS, ConeForm
from racing.references.start import Row, entries, rows
from racing.workload import Workload

SHIFT, STEPS, EXACT = 1e-9, 5, 1e-9


def answer(workload: Workload, data: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The answer and the gradients of the sum of weights times it."""
    form = FORMS[workload.kind](**workload.sizes)
    leaves, values = entries(form, data)
    x = torch.zeros(len(values[1]), form.n, dtype=torch.float64, requires_grad=True)
    (directions,) = torch.autograd.grad((form.output(x) * torch.from_numpy(data["weights"])).sum(), x)
    solved = [_row(workload, form, row, g) for row, g in zip(rows(form, values), directions.numpy(), strict=True)]
    found, *pulled = (torch.from_numpy(np.stack(part)) for part in zip(*solved, strict=True))
    used = [(value, g) for value, g in zip(values, pulled, strict=True) if value.requires_grad]
    gradients = torch.autograd.grad([value for value, _ in used], list(leaves.values()), [g for _, g in used])
    by_name = {name: g.numpy() for name, g in zip(leaves, gradients, strict=True)}
    if workload.kind == "optnet":  # Q = R'R: the gradient in R for those who need Q so
        Q = by_name["Q"]
        by_name["R"] = data["R"] @ (Q + np.swapaxes(Q, 1, 2))
    return form.output(found).numpy(), by_name


def _row(workload: Workload, form: ConeForm, row: Row, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """x and what g pulls back to: P, q, A, b."""
    active = (np.arange(form.m) < form.zero) | (row.y > row.s)
    A, n = sp.csr_matrix(row.A)[active], form.n
    K = sp.csc_matrix(sp.bmat([[row.P, A.T], [A, None]]) if A.shape[0] else row.P)
    solve = _refined(K, n)
    xy = solve(np.concatenate([-row.q, row.b[active]]))
    x, y = xy[:n], np.zeros(form.m)
    y[active] = xy[n:]
    _check(workload, form, row, x, y, active)
    uw = solve(np.concatenate([g, np.zeros(A.shape[0])]))
    u, w = uw[:n], np.zeros(form.m)
    w[active] = uw[n:]
    i, j = form.P
    dP = -(u[i] * x[j] + x[i] * u[j]) / np.where(i == j, 2, 1)
    i, j = form.A
    return x, dP, -u, -(y[i] * u[j] + w[i] * x[j]), w


def _refined(K: Any, n: int) -> Any:
    """Solve with K by a factorization of K shifted to be regular whatever the active set; the shift is refined away."""
    shift = np.where(np.arange(K.shape[0]) < n, SHIFT, -SHIFT)
    factor = splu(sp.csc_matrix(K + sp.diags(shift)))

    def solve(right: np.ndarray) -> np.ndarray:
        z = factor.solve(right)
        for _ in range(STEPS):
            z = z + factor.solve(right - K @ z)
        return z

    return solve


def _check(workload: Workload, form: ConeForm, row: Row, x: np.ndarray, y: np.ndarray, active: np.ndarray) -> None:
    slack, inequality = row.b - row.A @ x, np.arange(form.m) >= form.zero
    wrong = max(np.max(-y[inequality], initial=0.0), np.max(-slack[inequality & ~active], initial=0.0))
    left = max(np.abs(row.P @ x + row.q + row.A.T @ y).max(), np.abs(slack[active]).max(initial=0.0))
    if not max(wrong, left) < EXACT * max(1.0, np.abs(x).max(), np.abs(y).max(initial=0.0)):
        raise RuntimeError(f"no reference for {workload.key}: residual {left:.1e}, wrong signs {wrong:.1e}")
