"""The workloads as cone programs, minimize 1/2 x'Px + q'x subject to Ax + s = b, s in K, with entries that PyTorch differentiates.

Rows stand zero, nonnegative, second-order, semidefinite (upper triangle by columns, off-diagonal times sqrt 2), exponential.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from racing.forms.take import upper_triangle

Values = tuple[Tensor, Tensor, Tensor, Tensor]
Index = np.ndarray
Triangle = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ConeForm:
    """A pattern and the map from parameters to its entries.

    ``P`` (upper triangle) and ``A`` are (rows, columns) of the entries, in any order. ``values(given, triangle)`` are the values
    (batch, .) of P, q, A, b from the parameters, which ``names`` lists; ``triangle`` takes the entries of a symmetric matrix, those of its
    upper triangle unless told otherwise. ``output(x)`` is what the workload asks for.
    """

    n: int
    m: int
    names: tuple[str, ...]
    P: tuple[Index, Index]
    A: tuple[Index, Index]
    values: Callable[..., Values]
    output: Callable[[Tensor], Tensor]
    zero: int = 0
    nonnegative: int = 0
    second_order: tuple[int, ...] = ()
    semidefinite: tuple[int, ...] = ()
    exponential: int = 0

    @cached_property
    def by_columns(self) -> tuple[Tensor, Tensor]:
        """Orders that sort the entries of P and of A by columns."""
        return tuple(torch.from_numpy(np.lexsort(index)) for index in (self.P, self.A))  # pyright: ignore[reportReturnType]

    @cached_property
    def by_rows(self) -> tuple[tuple[Index, Index], tuple[Index, Index, Tensor]]:
        """(rows, columns) of all of P, sorted by rows, and (rows, columns, order) of A, sorted by rows.

        P needs no order: it is diagonal, or made of dense blocks on the diagonal, whose entries ``values(given, whole)`` gives row by row.
        """
        off = self.P[0] != self.P[1]
        rows, columns = np.concatenate([self.P[0], self.P[1][off]]), np.concatenate([self.P[1], self.P[0][off]])
        order, A = np.lexsort((columns, rows)), np.lexsort(self.A[::-1])
        return (rows[order], columns[order]), (self.A[0][A], self.A[1][A], torch.from_numpy(A))


def whole(matrices: Tensor) -> Tensor:
    """All entries of symmetric matrices, row by row."""
    return matrices.flatten(1)


def _grid(rows: Index, columns: Index) -> tuple[Index, Index]:
    """All entries of a dense block, row by row."""
    r, c = np.meshgrid(rows, columns, indexing="ij")
    return r.ravel(), c.ravel()


def _upper(n: int) -> tuple[Index, Index]:
    """All entries of the upper triangle of a dense block, column by column."""
    columns, rows = np.tril_indices(n)
    return rows, columns


def _join(*parts: tuple[Index, Index]) -> tuple[Index, Index]:
    rows, columns = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(columns)


def _first(x: Tensor) -> Tensor:
    return x


def _rows(like: Tensor, *values: Tensor | np.ndarray) -> Tensor:
    """Values side by side, the constants among them repeated for every row of the batch; (batch, .)."""
    batch = like.shape[0]
    return torch.cat([v.reshape(batch, -1) if isinstance(v, Tensor) else torch.from_numpy(v).expand(batch, -1) for v in values], dim=1)


def optnet(n: int, inequalities: int, equalities: int) -> ConeForm:
    m = inequalities + equalities

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        stacked = torch.cat([given["A"], given["G"]], dim=1).flatten(1)
        return triangle(given["Q"]), given["p"], stacked, torch.cat([given["b"], given["h"]], dim=1)

    A = _grid(np.arange(m), np.arange(n))
    return ConeForm(n, m, ("Q", "p", "G", "h", "A", "b"), _upper(n), A, values, _first, zero=equalities, nonnegative=inequalities)


def simplex(n: int) -> ConeForm:
    i = np.arange(n)

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        p = given["p"]
        return _rows(p, np.full(n, 2.0)), -2 * p, _rows(p, np.ones(n), -np.ones(n)), _rows(p, np.ones(1), np.zeros(n))

    return ConeForm(n, n + 1, ("p",), (i, i), _join((0 * i, i), (1 + i, i)), values, _first, zero=1, nonnegative=n)


def box(n: int, m: int) -> ConeForm:
    i = np.arange(n)

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        A, b = given["A"], given["b"]
        P, q = triangle(A.mT @ A), (b[..., None, :] @ A)[..., 0, :]
        return 2 * P, -2 * q, _rows(A, np.ones(n), -np.ones(n)), _rows(A, np.ones(2 * n))

    return ConeForm(n, 2 * n, ("A", "b"), _upper(n), _join((i, i), (n + i, i)), values, _first, nonnegative=2 * n)


def factor(n: int, k: int) -> ConeForm:
    """Variables (x, y), y = F'x; the k rows of y, the budget, x >= 0."""
    i, j = np.arange(n), np.arange(k)
    loadings = _grid(i, j)
    A = _join((loadings[1], loadings[0]), (j, n + j), (np.full(n, k), i), (k + 1 + i, i))

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        d, F, mu = given["d"], given["F"], given["mu"]
        entries = _rows(F, F, -np.ones(k), np.ones(n), -np.ones(n))
        return _rows(d, 2 * d**2, np.full(k, 2.0)), _rows(mu, -mu, np.zeros(k)), entries, _rows(mu, np.zeros(k), np.ones(1), np.zeros(n))

    P = (np.arange(n + k), np.arange(n + k))
    return ConeForm(n + k, n + k + 1, ("mu", "F", "d"), P, A, values, lambda x: x[..., :n], zero=k + 1, nonnegative=n)


def socp(n: int, cones: int) -> ConeForm:
    nothing = np.zeros(0, dtype=int)

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        return _rows(given["c"], np.zeros(0)), given["c"], given["A"].flatten(1), given["b"]

    A = _grid(np.arange(10 * cones), np.arange(n))
    return ConeForm(n, 10 * cones, ("A", "b", "c"), (nothing, nothing), A, values, _first, second_order=(10,) * cones)


def logistic(n: int, m: int) -> ConeForm:
    """Variables (w, t, u, v): u + v <= 1, (-z'w - t, 1, u) and (-t, 1, v) exponential, minimize sum t + |w|^2 / 2."""
    i, w = np.arange(m), np.arange(n)
    t, u, v, first = n + i, n + m + i, n + 2 * m + i, m + 6 * i
    A = _join((i, u), (i, v), _grid(first, w), (first, t), (first + 2, u), (first + 3, t), (first + 5, v))
    b = np.concatenate([np.ones(m), np.tile([0.0, 1.0, 0.0], 2 * m)])

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        Z, ones = given["Z"], np.ones(m)
        entries = _rows(Z, ones, ones, Z, ones, -ones, ones, -ones)
        return _rows(Z, np.ones(n)), _rows(Z, np.zeros(n), ones, np.zeros(2 * m)), entries, _rows(Z, b)

    return ConeForm(n + 3 * m, 7 * m, ("Z",), (w, w), A, values, lambda x: x[..., :n], nonnegative=m, exponential=2 * m)


def sdp(n: int) -> ConeForm:
    """minimize |X - C|^2 subject to diag X = 1 over x = svec(X): diagonal rows, then -x + s = 0."""
    columns, rows = np.tril_indices(n)  # upper triangle by columns: entry (row, column), row <= column
    size, scale = len(rows), torch.from_numpy(np.where(rows == columns, 1.0, np.sqrt(0.5)))
    diagonal, i, j = np.flatnonzero(rows == columns), np.arange(n), np.arange(size)
    place = np.zeros((n, n), dtype=int)
    place[rows, columns] = place[columns, rows] = j

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        C = given["C"]
        q = -(C[:, rows, columns] + C[:, columns, rows]) / 2 / scale * 2
        return _rows(C, np.full(size, 2.0)), q, _rows(C, np.ones(n), -np.ones(size)), _rows(C, np.ones(n), np.zeros(size))

    A = _join((i, diagonal), (n + j, j))
    return ConeForm(size, n + size, ("C",), (j, j), A, values, lambda x: (x * scale)[..., place], zero=n, semidefinite=(n,))


def mpc(n_state: int, n_ctrl: int, horizon: int) -> ConeForm:
    """Variables tau_t = (x_t, u_t): x_0 = x0, x_{t+1} - F tau_t = f, |u| <= 1."""
    s, size = n_state, n_state + n_ctrl
    n, steps = size * horizon, np.arange(horizon - 1)
    initial = (np.arange(s), np.arange(s))
    moves = _join(*(_grid(s * (t + 1) + np.arange(s), size * t + np.arange(size)) for t in steps))
    arrivals = _join(*((s * (t + 1) + np.arange(s), size * (t + 1) + np.arange(s)) for t in steps))
    controls = (size * np.arange(horizon)[:, None] + s + np.arange(n_ctrl)).ravel()
    equations, bounds = s * horizon, len(controls)
    sides = _join((equations + np.arange(bounds), controls), (equations + bounds + np.arange(bounds), controls))

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        F, f, x0 = given["F"], given["f"], given["x0"]
        moved = -F.flatten(1).repeat(1, horizon - 1)
        ones = np.ones(bounds)
        entries = _rows(F, np.ones(s), moved, np.ones(s * (horizon - 1)), ones, -ones)
        right = _rows(x0, x0, f.repeat(1, horizon - 1), ones, ones)
        return (given["r"] ** 2).repeat(1, horizon), given["c"].repeat(1, horizon), entries, right

    def output(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], horizon, size)

    A = _join(initial, moves, arrivals, sides)
    P = (np.arange(n), np.arange(n))
    return ConeForm(n, equations + 2 * bounds, ("r", "c", "F", "f", "x0"), P, A, values, output, zero=equations, nonnegative=2 * bounds)


def lqr(n_state: int, n_ctrl: int, horizon: int) -> ConeForm:
    """As `mpc` without bounds, all of C, c, F, f for each step; parameters and answer have time before the batch."""
    s, size = n_state, n_state + n_ctrl
    n, steps = size * horizon, np.arange(horizon)
    upper = _upper(size)
    P = _join(*((size * t + upper[0], size * t + upper[1]) for t in steps))
    moves = _join(*(_grid(s * (t + 1) + np.arange(s), size * t + np.arange(size)) for t in steps[:-1]))
    arrivals = _join(*((s * t + np.arange(s), size * t + np.arange(s)) for t in steps))

    def values(given: dict[str, Tensor], triangle: Triangle = upper_triangle) -> Values:
        C, c, F, f = (given[name].transpose(0, 1) for name in ("C", "c", "F", "f"))
        entries = _rows(F, -F, np.ones(s * horizon))
        return triangle(C.flatten(0, 1)).reshape(len(C), -1), c.flatten(1), entries, _rows(F, given["x0"], f)

    def output(x: Tensor) -> Tensor:
        return x.reshape(-1, horizon, size).transpose(0, 1)

    return ConeForm(n, s * horizon, ("C", "c", "F", "f", "x0"), P, _join(moves, arrivals), values, output, zero=s * horizon)


FORMS: Mapping[str, Callable[..., ConeForm]] = {
    made.__name__: made for made in (optnet, simplex, box, factor, socp, logistic, sdp, mpc, lqr)
}
