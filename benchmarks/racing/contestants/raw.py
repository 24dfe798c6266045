"""Solvers without derivatives, row after row on ready-made matrices: PIQP, QOCO, DAQP and Clarabel, with their default settings.

Forward only: building the matrices of a row is not timed, so this is the least that a layer around such a solver could take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from racing.contestants.case import Case
from racing.workload import Workload

DENSE = ("optnet", "simplex", "box")


@dataclass(frozen=True)
class Row:
    """minimize 1/2 x'Px + q'x subject to Ax + s = b; the first ``zero`` rows are equations."""

    P: sp.csc_matrix
    q: np.ndarray
    A: sp.csc_matrix
    b: np.ndarray
    zero: int


def load(workload: Workload, data: dict[str, np.ndarray], library: str) -> Case:
    if "form_q" not in data:
        raise NotImplementedError("not a convex cone program")
    zero, nonnegative, exponential = (int(data[f"form_{name}"]) for name in ("zero", "nonnegative", "exponential"))
    curved = exponential or data["form_second_order"].size or data["form_semidefinite"].size
    if curved and library != "clarabel":
        raise NotImplementedError("takes linear constraints only here")
    make = {"piqp": _piqp, "qoco": _qoco, "daqp": _daqp, "clarabel": _clarabel}[library]
    if library == "daqp" and workload.kind not in DENSE:
        raise NotImplementedError("raced on small dense QPs only")
    solve = make(workload, _clarabel_cones(data, zero, nonnegative, exponential) if library == "clarabel" else None)
    rows = _rows(data, zero)

    def forward() -> np.ndarray:
        x = np.stack([solve(row) for row in rows])
        return _output(workload, x)

    return Case(forward)


def _rows(data: dict[str, np.ndarray], zero: int) -> list[Row]:
    m, n = data["form_b"].shape[1], data["form_q"].shape[1]
    rows = []
    for P, q, A, b in zip(*(data[f"form_{name}"] for name in "PqAb"), strict=True):
        upper = sp.csc_matrix((P, (data["form_P_rows"], data["form_P_columns"])), shape=(n, n))
        rows.append(Row(upper, q, sp.csc_matrix((A, (data["form_A_rows"], data["form_A_columns"])), shape=(m, n)), b, zero))
    return rows


def _output(workload: Workload, x: np.ndarray) -> np.ndarray:
    if workload.kind == "mpc":
        return x.reshape(len(x), workload.sizes["horizon"], -1)
    if workload.kind == "sdp":
        n = workload.sizes["n"]
        columns, rows = np.tril_indices(n)
        X = np.zeros((len(x), n, n))
        X[:, rows, columns] = X[:, columns, rows] = x * np.where(rows == columns, 1.0, np.sqrt(0.5))
        return X
    return x[:, : workload.sizes["n"]]


def _full(row: Row) -> sp.csc_matrix:
    return sp.csc_matrix(row.P + sp.triu(row.P, 1).T)


def _piqp(workload: Workload, cones: Any) -> Callable[[Row], np.ndarray]:
    import piqp  # pyright: ignore[reportMissingImports]

    dense = workload.kind in DENSE
    prepared: dict[int, tuple[Any, ...]] = {}

    def arguments(row: Row) -> tuple[Any, ...]:
        parts = [_full(row), row.A[: row.zero], row.A[row.zero :]]
        P, A, G = (np.asfortranarray(part.toarray()) if dense else sp.csc_matrix(part) for part in parts)
        return P, row.q, A, row.b[: row.zero], G, np.full(len(row.b) - row.zero, -1e30), row.b[row.zero :]

    def solve(row: Row) -> np.ndarray:
        if id(row) not in prepared:
            prepared[id(row)] = arguments(row)
        solver = piqp.DenseSolver() if dense else piqp.SparseSolver()
        solver.setup(*prepared[id(row)])
        solver.solve()
        return np.array(solver.result.x)

    return solve


def _qoco(workload: Workload, cones: Any) -> Callable[[Row], np.ndarray]:
    import qoco  # pyright: ignore[reportMissingImports]

    prepared: dict[int, tuple[Any, ...]] = {}

    def solve(row: Row) -> np.ndarray:
        n, m = len(row.q), len(row.b) - row.zero
        if id(row) not in prepared:
            prepared[id(row)] = (_full(row), sp.csc_matrix(row.A[: row.zero]), sp.csc_matrix(row.A[row.zero :]))
        P, A, G = prepared[id(row)]
        equations = (A, row.b[: row.zero]) if row.zero else (None, None)
        solver = qoco.QOCO()
        solver.setup(n, m, row.zero, P, row.q, *equations, G, row.b[row.zero :], m, 0, np.zeros(0, dtype=int))
        return np.array(solver.solve().x)

    return solve


def _daqp(workload: Workload, cones: Any) -> Callable[[Row], np.ndarray]:
    import daqp

    prepared: dict[int, tuple[Any, ...]] = {}

    def solve(row: Row) -> np.ndarray:
        if id(row) not in prepared:
            equation = np.arange(len(row.b)) < row.zero
            below, sense = np.where(equation, row.b, -1e30), np.where(equation, 5, 0).astype(np.int32)
            prepared[id(row)] = (_full(row).toarray(), row.q, row.A.toarray(), row.b, below, sense)
        *parts, sense = prepared[id(row)]
        return np.array(daqp.solve(*parts, sense.copy())[0])

    return solve


def _clarabel(workload: Workload, cones: Any) -> Callable[[Row], np.ndarray]:
    import clarabel as package

    clarabel: Any = package
    settings: Any = clarabel.DefaultSettings()
    settings.verbose = False

    def solve(row: Row) -> np.ndarray:
        return np.array(clarabel.DefaultSolver(row.P, row.q, row.A, row.b, cones, settings).solve().x)

    return solve


def _clarabel_cones(data: dict[str, np.ndarray], zero: int, nonnegative: int, exponential: int) -> list[Any]:
    import clarabel as package

    clarabel: Any = package
    return [
        *([clarabel.ZeroConeT(zero)] if zero else []),
        *([clarabel.NonnegativeConeT(nonnegative)] if nonnegative else []),
        *(clarabel.SecondOrderConeT(int(size)) for size in data["form_second_order"]),
        *(clarabel.PSDTriangleConeT(int(order)) for order in data["form_semidefinite"]),
        *(clarabel.ExponentialConeT() for _ in range(exponential)),
    ]
