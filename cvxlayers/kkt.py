"""The linear system at a solution: assemble, factor, solve, refine, fall back.

Let v = y - s, so that y = Pi_K*(v) and s = Pi_K*(v) - v, and let D = U diag(d) U' be the derivative of Pi_K* at v. With
B = diag(sqrt d) U' A and dy = U diag(sqrt d) t, the linearized optimality conditions

    P dx + A'dy = r1,   A dx + ds = r2,   dy = D dv,   ds = dy - dv     are     K [dx; t] = [r1; diag(sqrt d) U' r2],

    K = [[P, B'], [B, -diag(1 - d)]],   dv = dy - ds,   ds = r2 - A dx.

K is symmetric: one factorization serves the derivative (jvp), its adjoint (vjp) and a Newton step. It extends the active set of a
quadratic program to every cone: d = 1 is an active row, d = 0 an inactive one, whose equation reads t = 0. Size and pattern do not
depend on the data. K + diag(eps I, -eps I) is quasi-definite, so LDL' exists for every elimination order (Vanderbei, "Symmetric
quasidefinite matrices", SIAM J. Optim. 1995); the perturbation is removed by iterative refinement against K itself.

Where K is singular and the right-hand side outside its range (the solution is not unique), refinement cannot converge, and the
minimum-norm least-squares solution is computed instead, and reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.compiled import kernels
from cvxlayers.cones import Derivative
from cvxlayers.factorization import CONVERGED, REFINEMENTS, Workspace, pivoted
from cvxlayers.least_squares import MinimumNorm
from cvxlayers.products import Products, Segments
from cvxlayers.program import ConeProgram, Pattern

STRONG, WEAK = 1e-7, 1e-11  # regularizations of the equilibrated K, in the order in which they are tried
CLEAN = 1e-12  # a relative residual up to this one needs no second factorization
TRUSTED = 1e-9  # a relative residual above this one sends a row to the least-squares fallback
BLOWUP = 1e10  # so does |z| above this times |r| / |K|: a direction that K all but annihilates has been followed
# Where the sparse factorization takes more than this share of a full one's work, and the size is at least this, dense storage is quicker:
# measured at share 0.13 0.6 times as fast, at 0.3 to 0.5 1.5 to 3 times, at 1 up to 20 times, and 10 times for one row alone.
FULL, SMALL = 0.25, 64
SCALINGS = 6  # of an equilibration: each takes the square root of how far apart the columns' largest entries are
CHUNK = 1 << 23  # numbers in the largest work array of one chunk of rows


@dataclass(frozen=True)
class Solved:
    """K z = r, row by row: z (rows, n + m), the relative residual |K z - r| / |r| of the unscaled system and whether the fallback ran."""

    z: np.ndarray
    residual: np.ndarray
    fallback: np.ndarray


@dataclass(frozen=True)
class _Rotated:
    """Index maps of B = diag(sqrt d) U' A for the equal cones of one Block: A is gathered into dense (count, size, width) pieces."""

    first: int
    entries: np.ndarray
    cells: np.ndarray
    shape: tuple[int, int, int]
    picked: np.ndarray
    positions: np.ndarray
    compiled: tuple[np.ndarray, ...]


class KKT:
    """The system of one `Pattern`: all index arrays are computed once; methods take NumPy float64 with one batch axis (rows, ...)."""

    def __init__(self, pattern: Pattern, special: Callable[[KKT], Any] | None = None) -> None:
        self.pattern = pattern
        n, m = pattern.n, pattern.m
        self.size = n + m
        self.dual_cone = pattern.cone.dual()
        blocks = self.dual_cone.derivative(np.zeros((1, m))).blocks
        rotated = np.zeros(m, dtype=bool)
        for block in blocks:
            rotated[block.start : block.start + block.count * block.size] = True

        # The upper triangle of K, column by column: P and a diagonal, then B' and a diagonal.
        linear = np.flatnonzero(~rotated[pattern.A_indices])
        pieces = [_piece(pattern, block.start, block.count, block.size) for block in blocks]
        rows = [pattern.P_indices, np.arange(self.size), pattern.A_columns[linear], *(p[0] for p in pieces)]
        columns = [pattern.P_columns, np.arange(self.size), n + pattern.A_indices[linear], *(p[1] for p in pieces)]
        upper = sp.csc_matrix((np.ones(sum(map(len, rows))), (np.concatenate(rows), np.concatenate(columns))), shape=(self.size, self.size))
        upper.sum_duplicates()
        self.indices, self.indptr = upper.indices, upper.indptr
        self.nnz = len(self.indices)
        self._columns = np.repeat(np.arange(self.size), np.diff(self.indptr))
        keys = self._columns.astype(np.int64) * self.size + self.indices

        def positions(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            return np.searchsorted(keys, columns.astype(np.int64) * self.size + rows).astype(np.uint32)

        self._P = positions(rows[0], columns[0])
        self._diagonal = positions(rows[1], columns[1])
        self._linear = positions(rows[2], columns[2])
        self._linear_rows, self._linear_entries = pattern.A_indices[linear].astype(np.uint32), linear.astype(np.uint32)
        self.maps = self._P, self._diagonal, self._linear, self._linear_rows, self._linear_entries  # as `kernels.passes` takes them
        self._rotated = [
            _Rotated(b.start, p[2], p[3], p[4], p[5], positions(p[0], p[1]), p[6]) for b, p in zip(blocks, pieces, strict=True)
        ]
        self._sign = np.where(np.arange(self.size) < n, 1.0, -1.0)

        off = self.indices != self._columns
        rows_, columns_ = np.r_[self.indices, self._columns[off]], np.r_[self._columns, self.indices[off]]
        order = np.lexsort((rows_, columns_))
        self._full = np.r_[np.arange(self.nnz), np.flatnonzero(off)][order]
        self._full_indices = rows_[order].astype(np.int32)
        self._full_columns = columns_[order]
        self._full_indptr = np.searchsorted(self._full_columns, np.arange(self.size + 1)).astype(np.int32)
        self._by_column = Segments.by(self._full_columns, self.size)
        self._spare: list[Workspace] = []
        self.products = Products.of(pattern)
        self.places = self._P, self._diagonal, self._linear, self._linear_entries  # of P, the diagonal, and those entries of A, in K
        # What knows more of the pattern than its entries, tried first: solve(values, rhs) as of `kernels.systems.Systems`.
        self._made, self._special = special, None if special is None else special(self)

    @property
    def chunk(self) -> int:
        """Rows so few that their largest work arrays stay in the cache or at least in memory."""
        return max(1, CHUNK // self._width)

    @cached_property
    def _width(self) -> int:
        return max([1, self.nnz, *(prod(r.shape) for r in self._rotated), *(r.shape[0] * r.shape[1] ** 2 for r in self._rotated)])

    def assemble(self, program: ConeProgram, derivative: Derivative) -> np.ndarray:
        """The stored entries of K, (rows, nnz), from the numbers of the program and D = derivative of Pi_K* at y - s."""
        n, passes = self.pattern.n, self.products.passes
        if passes is not None:
            values = np.empty((len(program.q), self.nnz))
            passes.assemble(program.P, program.A, derivative.values, *self.maps, values)
        else:
            root = np.sqrt(derivative.values)
            values = np.zeros((len(program.q), self.nnz))
            values[:, self._P] = program.P
            values[:, self._diagonal[n:]] = derivative.values - 1
            values[:, self._linear] = program.A[:, self._linear_entries] * root[:, self._linear_rows]
        root = np.sqrt(derivative.values) if self._rotated else derivative.values
        for maps, block in zip(self._rotated, derivative.blocks, strict=True):
            count, size, width = maps.shape
            own = root[:, maps.first : maps.first + count * size]
            if passes is not None:
                passes.rotate(program.A, block.vectors, own, *maps.compiled, maps.positions, values)
                continue
            dense = np.zeros((len(values), count * size * width))
            dense[:, maps.cells] = program.A[:, maps.entries]
            turned = np.swapaxes(block.vectors, -1, -2) @ dense.reshape(len(values), count, size, width)
            turned *= own.reshape(len(values), count, size, 1)
            values[:, maps.positions] = turned.reshape(len(values), count * size * width)[:, maps.picked]
        return values

    def solve(self, values: np.ndarray, rhs: np.ndarray, reach: tuple[np.ndarray, np.ndarray | None] | None = None) -> Solved:
        """Solve K z = rhs for every row; values (rows, nnz), rhs (rows, n + m).

        The strong regularization keeps the factors accurate where K is singular and the equations consistent; rows that it cannot refine
        to `CLEAN` are ill-conditioned and get the weak one. Rows that stay above `TRUSTED`, or whose |z| is longer than ``reach[0]``
        (rows,) and, in the units that equilibrate K, than the largest of ``reach[1]`` (rows, n + m) if that is given (without ``reach``
        longer than what `BLOWUP` says of both), get the minimum-norm least-squares solution.
        """
        z, figures = self._attempt(values, rhs, STRONG)
        worst, longest, highest = figures.max(axis=0, initial=0.0).tolist()
        if reach is None and worst <= CLEAN and longest * highest <= BLOWUP:
            return Solved(z, figures[:, 0], np.zeros(len(z), dtype=bool))
        residual, _, largest = figures.T
        finite = np.isfinite(peak := _peak(rhs))
        unclean = np.flatnonzero(~(residual <= CLEAN) & finite)
        if len(unclean):
            second, other = self._attempt(values[unclean], rhs[unclean], WEAK)
            better = (other[:, 0] < residual[unclean] / 2) & ~self._long(unclean, second, other, values, rhs, reach)
            z[unclean[better]], figures[unclean[better]] = second[better], other[better]
        # P may be indefinite: the pivots' signs are not known then; and a derivative with a residual may be far off in units of its own.
        for row in np.flatnonzero(~(residual <= (CLEAN if reach is None else TRUSTED)) & finite):
            own = slice(row, row + 1)
            K = sp.csc_matrix((values[row, self._full], self._full_indices, self._full_indptr), shape=(self.size, self.size))
            found = pivoted(K, rhs[row])[None]
            told = np.array([[self._residual(values[own], found, rhs[own])[0], np.max(abs(found)) / peak[row], largest[row]]])
            better = told[0, 0] <= TRUSTED and not told[0, 0] >= residual[row] / 2
            if better and (not residual[row] <= TRUSTED or not self._long(own, found, told, values, rhs, reach)[0]):
                z[own], figures[own] = found, told
        fallback = (~(residual <= TRUSTED) | self._long(slice(None), z, figures, values, rhs, reach)) & finite
        if fallback.any():
            unit = rhs / peak[:, None]
            for row in np.flatnonzero(fallback):
                z[row] = self._least_squares.solve(values[row, self._full], unit[row])
            scale = np.concatenate([np.ones((1, fallback.sum(), self.size)), self._equilibration(values[fallback])[None]])
            residual[fallback] = self._residual(values[fallback], z[fallback], unit[fallback], scale).max(axis=0)  # in either units
            z[fallback] *= peak[fallback, None]
        return Solved(z, residual, fallback)

    def _long(self, rows: Any, z: np.ndarray, figures: np.ndarray, values: np.ndarray, rhs: np.ndarray, reach: Any) -> np.ndarray:
        """Where |z| of the ``rows`` is longer than `solve` allows."""
        known = figures[:, 1] * figures[:, 2] <= BLOWUP if reach is None else figures[:, 1] <= reach[0][rows] / _peak(rhs[rows])
        if (long := ~known).any() and (reach is None or reach[1] is not None):  # long by the units of the data alone is no blow-up
            scale = self._equilibration(values[rows][long])
            most = BLOWUP * abs(scale * rhs[rows][long]) if reach is None else reach[1][rows][long] / scale
            long[long] = ~(np.max(abs(z[long] / scale), axis=1) <= np.max(most, axis=1))
        return long

    def _attempt(self, values: np.ndarray, rhs: np.ndarray, regularization: float) -> tuple[np.ndarray, np.ndarray]:
        """z (rows, n + m) and figures (rows, 3): |K z - rhs| / |rhs|, the largest |z| over the largest |rhs|, the largest |K|.

        Every row by one regularized factorization and iterative refinement in equilibrated coordinates.
        """
        if regularization == STRONG and self._special is not None:
            return self._special.solve(values, rhs)
        if self._systems is not None:
            return self._systems.solve(values, rhs, regularization, REFINEMENTS, CONVERGED)
        # The derivative is linear in rhs: solving for rhs / |rhs| keeps tolerances meaningful for gradients of any size.
        peak = _peak(rhs)
        unit, scale = rhs / peak[:, None], self._equilibration(values)
        scaled = values * scale.take(self.indices, axis=1) * scale.take(self._columns, axis=1)
        z = scale * self._refined(scaled, unit * scale, regularization)
        figures = (self._residual(values, z, unit), np.max(abs(z), axis=1, initial=0.0), np.max(abs(values), axis=1, initial=0.0))
        return z * peak[:, None], np.stack(figures, axis=1)

    def _refined(self, scaled: np.ndarray, rhs: np.ndarray, regularization: float) -> np.ndarray:
        """Every row by a regularized factorization and iterative refinement, in equilibrated coordinates."""
        regularized = scaled.copy()
        regularized[:, self._diagonal] += regularization * self._sign
        full, z = scaled.take(self._full, axis=1), np.zeros_like(rhs)
        try:  # one workspace per thread at a time; pop and append are atomic
            workspace = self._spare.pop()
        except IndexError:
            workspace = Workspace(self.indices, self.indptr, self._full_indices, self._full_indptr)
        for row in range(len(rhs)):
            z[row] = workspace.solve(regularized[row], full[row], rhs[row])
        self._spare.append(workspace)
        return z

    def _equilibration(self, values: np.ndarray) -> np.ndarray:
        """Scales e (rows, n + m) that bring the largest entry of every column of diag(e) K diag(e) near one (Ruiz 2001)."""
        full = abs(values.take(self._full, axis=1))
        scale = np.ones((len(values), self.size))
        for _ in range(SCALINGS):
            largest = self._by_column.reduce(full, np.maximum)
            step = 1 / np.sqrt(np.where(largest > 0, largest, 1.0))
            full *= step.take(self._full_indices, axis=1)
            full *= step.take(self._full_columns, axis=1)
            scale *= step
        return scale

    def _residual(self, values: np.ndarray, z: np.ndarray, rhs: np.ndarray, scale: Any = 1.0) -> np.ndarray:
        """|diag(scale) (K z - rhs)| / |diag(scale) rhs| in the Euclidean norm, (rows,); zero where rhs is zero."""
        Kz = self._by_column.reduce(values.take(self._full, axis=1) * z.take(self._full_indices, axis=1))
        norm = np.linalg.norm(scale * rhs, axis=-1)
        return np.linalg.norm(scale * (Kz - rhs), axis=-1) / np.where(norm > 0, norm, 1.0)

    @cached_property
    def _systems(self) -> Any:
        """The compiled solver of all rows at once, None where there is none."""
        orders = kernels("symbolic")
        if orders is None:
            return None
        symbolic = orders.analyze(self.indices, self.indptr, self._sign)
        full = self.size**3 / 3  # multiplications for a full matrix, of which rows that leave save more than half
        if self.size >= SMALL and (symbolic.counts.astype(float) ** 2).sum() > FULL * full:
            return kernels("dense").DenseSystems(self.indices, self.indptr, self.pattern.n)
        return kernels("systems").Systems(symbolic)

    @cached_property
    def _least_squares(self) -> MinimumNorm:
        return MinimumNorm(self._full_indices, self._full_indptr)

    def __reduce__(self):
        return KKT, (self.pattern, self._made)


def _peak(rhs: np.ndarray) -> np.ndarray:
    """The largest magnitude in every row, one where all is zero."""
    peak = np.max(abs(rhs), axis=1, initial=0.0)
    return np.where(peak == 0, 1.0, peak)


def _piece(pattern: Pattern, start: int, count: int, size: int) -> tuple:
    """Where U'A of ``count`` equal cones lies: rows and columns in K, and the maps between A's entries and dense pieces."""
    entries = np.flatnonzero((pattern.A_indices >= start) & (pattern.A_indices < start + count * size))
    cone, inner = np.divmod(pattern.A_indices[entries] - start, size)
    column = pattern.A_columns[entries]
    pairs = np.unique(cone.astype(np.int64) * pattern.n + column)
    pair_cone, pair_column = np.divmod(pairs, pattern.n)
    first = np.searchsorted(pair_cone, np.arange(count))
    slot = np.arange(len(pairs)) - first[pair_cone]
    width = int(slot.max(initial=-1)) + 1
    place = slot[np.searchsorted(pairs, cone.astype(np.int64) * pattern.n + column)]
    cells = (cone * size + inner) * width + place
    # Rotation fills every row of a cone in every column that the cone touches.
    every = np.arange(size)[:, None]
    rows = np.broadcast_to(pair_column, (size, len(pairs))).ravel()
    columns = (pattern.n + start + pair_cone * size + every).ravel()
    picked = ((pair_cone * size + every) * width + slot).ravel()
    # The same cone by cone, for the compiled pass: entries, where they stand, where each cone begins.
    order = np.argsort(cone, kind="stable")
    starts = np.searchsorted(cone[order], np.arange(count + 1)), np.r_[first, len(pairs)]
    compiled = tuple(a.astype(np.uint32) for a in (entries[order], inner[order], place[order], *starts))
    return rows, columns, entries, cells, (count, size, width), picked, compiled
