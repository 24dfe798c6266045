"""The sparse cone program of an optimal control problem with linear dynamics and constraints and quadratic costs, on a fixed pattern.

Variables: tau_t = [x_t; u_t] for t < T, then slacks of soft constraints. Rows A w + s = b, s = 0 in the first two groups, s >= 0 below:

    initial      x_0 = x0                                dynamics     x_{t+1} - F_t tau_t = f_t
    u_upper      u_t <= upper                            u_lower      -u_t <= -lower
    x_upper      x_t <= upper, t >= 1                    x_lower      -x_t <= -lower, t >= 1
    constraints  G_t tau_t - e_t <= g_t                  terminal     E x_{T-1} - e <= h
    slew_upper   u_t - u_{t-1} <= limit, t >= 1          slew_lower   u_{t-1} - u_t <= limit, t >= 1
    slack        -e <= 0, where soft constraints are penalized by their l1 norm

States and controls are variables, so that a start need not satisfy the dynamics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.backend import backend_of
from cvxlayers.cones import NonNegative, Product, Zero
from cvxlayers.program import Pattern


@dataclass(frozen=True)
class Layout:
    """Sizes: T stages, n states, m controls, ``path`` and ``terminal`` constraints; which bounds there are; the kinds of soft and slew."""

    stages: int
    n: int
    m: int
    path: int
    terminal: int
    bounds: tuple[str, ...]
    soft: str | None
    slew: str | None

    @property
    def groups(self) -> dict[str, tuple[int, int]]:
        """The groups of rows in their order, (stages, width) each; empty ones left out."""
        T, n, m = self.stages, self.n, self.m
        slacks, bounded = self.soft == "l1", self.slew == "bound"
        sizes = {
            "initial": (1, n),
            "dynamics": (T - 1, n),
            **{name: (T, m) for name in ("u_upper", "u_lower") if name in self.bounds},
            **{name: (T - 1, n) for name in ("x_upper", "x_lower") if name in self.bounds},
            "constraints": (T, self.path),
            "terminal": (1, self.terminal),
            **({"slew_upper": (T - 1, m), "slew_lower": (T - 1, m)} if bounded else {}),
            **({"slack": (1, T * self.path + self.terminal)} if slacks else {}),
        }
        return {name: size for name, size in sizes.items() if size[0] * size[1]}

    @property
    def slacks(self) -> int:
        """The number of slack variables."""
        return self.stages * self.path + self.terminal if self.soft is not None else 0


class Transcription:
    """Index arrays of one `Layout`, and the numbers of its programs."""

    def __init__(self, layout: Layout) -> None:
        self.layout, T, n, m = layout, layout.stages, layout.n, layout.m
        s, path, last = n + m, layout.path, layout.terminal
        first_slack = T * s
        # Values of A: 1, -1, then -F (T-1, n, s), G (T, path, s), E (terminal, n).
        F_at, G_at, E_at = 2, 2 + (T - 1) * n * s, 2 + (T - 1) * n * s + T * path * s
        t, i, j = np.arange(T), np.arange(n), np.arange(s)
        x = t[:, None] * s + i  # columns of the states and of the controls
        u = t[:, None] * s + n + np.arange(m)
        triples: list[tuple[Any, Any, Any]] = []
        row, self.rows = 0, {}
        for name, (count, width) in layout.groups.items():
            at = row + np.arange(count * width).reshape(count, width)
            self.rows[name] = slice(row, row + count * width)
            row += count * width
            if name == "initial":
                triples.append((at, x[:1], 0))
            elif name == "dynamics":
                triples.append((at, x[1:], 0))
                numbers = F_at + (t[:-1, None, None] * n + i[:, None]) * s + j
                triples.append((at[:, :, None], (t[:-1, None] * s + j)[:, None, :], numbers))
            elif name in ("u_upper", "u_lower"):
                triples.append((at, u, int(name == "u_lower")))
            elif name in ("x_upper", "x_lower"):
                triples.append((at, x[1:], int(name == "x_lower")))
            elif name == "constraints":
                numbers = G_at + (t[:, None, None] * path + np.arange(path)[:, None]) * s + j
                triples.append((at[:, :, None], (t[:, None] * s + j)[:, None, :], numbers))
                if layout.slacks:
                    triples.append((at, first_slack + np.arange(T * path).reshape(T, path), 1))
            elif name == "terminal":
                triples.append((at[0][:, None], x[-1], E_at + np.arange(last)[:, None] * n + i))
                if layout.slacks:
                    triples.append((at[0], first_slack + T * path + np.arange(last), 1))
            elif name == "slack":
                triples.append((at[0], first_slack + np.arange(layout.slacks), 1))
            else:
                sign = int(name == "slew_lower")
                triples += [(at, u[1:], sign), (at, u[:-1], 1 - sign)]
        equal = sum(layout.groups[name][0] * n for name in ("initial", "dynamics") if name in layout.groups)
        cone = Product(tuple(c for c in (Zero(equal), NonNegative(row - equal)) if c.dim))
        size = first_slack + layout.slacks
        A, self._A = _matrix(triples, (row, size))

        # Values of P: the weights of quadratic soft constraints, those of a quadratic slew (m,) negated, then H (T, s, s).
        self._slack_weights = np.concatenate([np.tile(np.arange(path), T), path + np.arange(last)]).astype(np.int64)
        slew_at = path + last if layout.soft == "quadratic" else 0
        self._H_at = slew_at + (m if layout.slew == "quadratic" else 0)
        a, b = np.triu_indices(s)
        triples = [(t[:, None] * s + a, t[:, None] * s + b, self._H_at + t[:, None] * s * s + a * s + b)]
        if layout.soft == "quadratic":
            triples.append((first_slack + np.arange(layout.slacks), first_slack + np.arange(layout.slacks), self._slack_weights))
        if layout.slew == "quadratic":
            triples.append((u[:-1], u[1:], slew_at + np.arange(m)))
        P, self._P = _matrix(triples, (size, size))
        self.pattern = Pattern(size, row, P.indices, P.indptr, A.indices, A.indptr, cone)

    @property
    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of P's stored values in H (T, s, s), and of A's in F (T-1, n, s); -1 for values that are not from there."""
        layout = self.layout
        first, size = self._H_at, (layout.stages - 1) * layout.n * (layout.n + layout.m)
        H, F = self._P - first, self._A - 2
        return np.where(H >= 0, H, -1), np.where((F >= 0) & (F < size), F, -1)

    def program(
        self, H: Any, c: Any, F: Any, G: Any, E: Any, b: Mapping[str, Any], weights: Mapping[str, Any] | None = None
    ) -> tuple[Any, Any, Any, Any]:
        """P, q, A, b from H (T, B, s, s), c (T, B, s), F (T-1, B, n, s), G (T, B, path, s), E (1, B, terminal, n), b by groups of rows.

        ``weights`` holds those of "soft" (1, B, path + terminal) and "slew" (1, B, m) where there are such. An axis of stages or rows may
        have size one. Arrays that all rows share stay without a batch axis.
        """
        layout, verbs = self.layout, backend_of(c).verbs
        xp, T, weights = verbs.xp, layout.stages, weights or {}
        quadratic = [_rows(xp, weights["soft"], 1)] if layout.soft == "quadratic" else []
        if layout.slew == "quadratic":
            slew, neighbours = weights["slew"], np.ones((T, 1, 1, 1)) * 2
            neighbours[0] -= 1
            neighbours[-1] -= 1
            unit = verbs.asarray(np.eye(layout.n + layout.m)[:, layout.n :], H)
            H = H + verbs.asarray(neighbours, H) * xp.matmul(unit * slew[..., None, :], xp.matrix_transpose(unit))
            quadratic.append(-_rows(xp, slew, 1))
        P = _chosen(xp, [*quadratic, _rows(xp, H, T)], self._P)
        linear = [_rows(xp, c, T)]
        if layout.slacks:
            linear.append(self.slack_costs(c, weights["soft"]))
        q = _joined(xp, linear)
        if len(q.shape) == 1:  # one array at least tells the number of rows
            q = xp.broadcast_to(q, (b["initial"].shape[1], q.shape[0]))
        blocks = [verbs.asarray([1.0, -1.0], c)]
        blocks += [_rows(xp, -F, T - 1)] if T > 1 else []
        blocks += [_rows(xp, G, T)] if layout.path else []
        blocks += [_rows(xp, E, 1)] if layout.terminal else []
        A = _chosen(xp, blocks, self._A)
        return P, q, A, self.sides(b)

    def sides(self, b: Mapping[str, Any]) -> Any:
        """b (B, rows of A), or (rows of A,), from its groups (T or 1, B or 1, width)."""
        xp = backend_of(b["initial"]).verbs.xp
        return _joined(xp, [_rows(xp, b[name], count) for name, (count, _) in self.layout.groups.items()])

    def slack_costs(self, like: Any, soft: Any) -> Any:
        """What slacks cost, (B or none, slacks): their weights in the l1 norm, nothing where their squares are in P."""
        verbs = backend_of(like).verbs
        if self.layout.soft != "l1":
            return verbs.asarray(np.zeros(self.layout.slacks), like)
        return self.slack_weights(soft)

    def slack_weights(self, soft: Any) -> Any:
        """The weight of each slack, (B or none, slacks)."""
        verbs = backend_of(soft).verbs
        return verbs.take(_rows(verbs.xp, soft, 1), self._slack_weights)

    def parted(self, y: Any) -> dict[str, Any]:
        """The groups of y (B, m), (stages, B, width) each."""
        xp, rows = backend_of(y).verbs.xp, y.shape[0]
        groups = self.layout.groups
        return {name: xp.moveaxis(xp.reshape(y[:, part], (rows, *groups[name])), 1, 0) for name, part in self.rows.items()}

    def stages_of(self, w: Any) -> Any:
        """tau (T, B, s) among the variables w (B, size)."""
        xp, T, s = backend_of(w).verbs.xp, self.layout.stages, self.layout.n + self.layout.m
        return xp.moveaxis(xp.reshape(w[:, : T * s], (w.shape[0], T, s)), 1, 0)


def _matrix(triples: Sequence[tuple[Any, Any, Any]], shape: tuple[int, int]) -> tuple[Any, np.ndarray]:
    """The pattern in compressed columns, and for each stored entry the number of its value."""
    parts = [[a.reshape(-1) for a in np.broadcast_arrays(*triple)] for triple in triples]
    rows, columns, numbers = (np.concatenate(list(pieces)).astype(np.int64) for pieces in zip(*parts, strict=True))
    matrix = sp.csc_matrix((numbers + 1.0, (rows, columns)), shape=shape)
    matrix.sort_indices()
    return matrix, matrix.data.astype(np.int64) - 1


def _rows(xp: Any, a: Any, stages: int) -> Any:
    """(T or 1, B or 1, ...) as (B, numbers), or (numbers,) where all rows share it."""
    if a.shape[0] != stages:
        a = xp.broadcast_to(a, (stages, *a.shape[1:]))
    size = int(np.prod(a.shape[2:])) * stages
    if a.shape[1] == 1:
        return xp.reshape(a, (size,))
    return xp.reshape(xp.moveaxis(a, 0, 1), (a.shape[1], size))


def _joined(xp: Any, parts: Sequence[Any]) -> Any:
    rows = max((part.shape[0] for part in parts if len(part.shape) > 1), default=0)
    if rows:
        parts = [part if len(part.shape) > 1 else xp.broadcast_to(part, (rows, part.shape[0])) for part in parts]
    return xp.concat(list(parts), axis=-1)


def _chosen(xp: Any, parts: Sequence[Any], numbers: np.ndarray) -> Any:
    verbs = backend_of(parts[0]).verbs
    return verbs.take(_joined(xp, parts), numbers)
