"""The cone program as a differentiable layer on NumPy arrays: (P, q, A, b) -> (x, y, s), any solver, any number of batch axes.

    minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

Above the solvers, once for all of them: data that are not finite never reach a solver; an infinite entry of b in a nonnegative row is
a missing bound; the answer is polished by Newton steps, judged by residuals of the unscaled data, and flagged. What a solver says of
itself is never the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from cvxlayers import adjoint, failures, solvers
from cvxlayers.adjoint import Certificate
from cvxlayers.errors import Status, warn
from cvxlayers.host import check_start, common_batch
from cvxlayers.kkt import KKT
from cvxlayers.program import ConeProgram, Info, Pattern, Solution, shaped, spread, take
from cvxlayers.solvers.base import Solver
from cvxlayers.verdict import judge, told

OK = int(Status.INACCURATE)  # comparing arrays with plain integers costs a tenth of comparing them with members of an enumeration
DOUBLE, DATA = np.dtype(np.float64), frozenset("xysPqAb")


class ConicLayer:
    """A batch of cone programs that share a `Pattern`, solved and differentiated.

        minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

    ``solver`` names a solver (None: chosen from the pattern alone) or is one, ``solver_args`` are its options. Raises ValueError for a
    solver that cannot take the pattern, and for unknown options. ``kkt`` is the pattern's `KKT`, if it is not the plain one.

    >>> import numpy as np, scipy.sparse as sp
    >>> from cvxlayers.cones import NonNegative, Product
    >>> pattern = Pattern.of(sp.eye(2), -sp.eye(2), Product((NonNegative(2),)))
    >>> layer = ConicLayer(pattern)
    >>> x, y, s = layer(np.ones(2), np.array([1.0, -1.0]), -np.ones(2), np.zeros(2))
    >>> np.round(x, 9) + 0.0
    array([0., 1.])
    """

    def __init__(
        self,
        pattern: Pattern,
        solver: str | Solver | None = None,
        solver_args: Mapping[str, Any] | None = None,
        kkt: KKT | None = None,
    ) -> None:
        self.pattern = pattern
        self.kkt = KKT(pattern) if kkt is None else kkt
        self._name, self._args = solver, dict(solver_args or {})
        self._warned: set[str] = set()
        self._solver = self._configure(self._args)

    @property
    def solver(self) -> Solver:
        """The solver with its settings."""
        return self._solver

    def __call__(
        self,
        P: np.ndarray,
        q: np.ndarray,
        A: np.ndarray,
        b: np.ndarray,
        *,
        solver_args: Mapping[str, Any] | None = None,
        return_info: bool = False,
        on_failure: str = "raise",
        warm_start: Info | None = None,
    ) -> Any:
        """Solve: P (*batch, nnzP), q (*batch, n), A (*batch, nnzA), b (*batch, m) -> x (*batch, n), y (*batch, m), s (*batch, m).

        Batch shapes are equal, or () for what all rows share. With ``return_info`` the result is ((x, y, s), info). Raises ValueError
        for shapes that do not fit and SolverError for failed rows under ``on_failure="raise"``.
        """
        failures.check_policy(on_failure)
        program, batch = self._broadcast(P, q, A, b)
        solution, info = self.solve(program, batch, solver_args=solver_args, warm_start=warm_start)
        failures.settle(info, on_failure)
        solution = shaped(failures.mask_failed(solution, info.status.reshape(-1), on_failure), batch)
        outputs = (solution.x, solution.y, solution.s)
        return (outputs, info) if return_info else outputs

    def solve(self, program: ConeProgram, batch: tuple[int, ...], **how: Any) -> tuple[Solution, Info]:
        """Solve a flat batch, as `find` does: the Solution is flat, the Info in batch shape."""
        solution, info = self.find(program, batch, **how)
        return solution, info()

    def find(
        self,
        program: ConeProgram,
        batch: tuple[int, ...],
        *,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: Info | None = None,
        invalid: np.ndarray | None = None,
        finite: bool = False,
    ) -> tuple[Solution, Callable[[], Info]]:
        """Solve a flat batch: program (rows, ...), rows = prod(batch); the Solution, and what makes its Info.

        Rows marked ``invalid`` (rows,) and rows with data that are not finite become INVALID_PARAMETER without reaching the solver;
        ``finite`` says that all data are known to be finite.
        """
        solver = self._configure({**self._args, **solver_args}) if solver_args else self._solver
        program, missing, valid = self._settle_data(program, invalid, finite)
        start = self._start(solver, warm_start, batch, valid)

        good = program if valid is None else take(program, valid)
        solution, quality = judge(self.kkt, good, solver.solve(self.pattern, good, start), solver.tolerance)
        if valid is not None:
            solution, quality = spread(solution, valid, np.nan), spread(quality, valid, np.nan)
            solution.status[~valid] = Status.INVALID_PARAMETER
        if missing is not None:
            solution.s[missing] = np.inf
        return solution, partial(told, solver.name, batch, solution, quality, start, valid)

    def vjp(
        self, program: ConeProgram, solution: Solution, cotangent: Solution, wanted: tuple[bool, bool] = (True, True)
    ) -> tuple[ConeProgram, Certificate]:
        """Pull cotangents of (x, y, s) back to (P, q, A, b); flat batches (rows, ...). Failed rows get zero.

        The cotangent of s may be None for zero; those of P and of A are None where not ``wanted``. The equations stand in
        `cvxlayers.adjoint`. Issues a GradientWarning that names rows whose derivative is not an ordinary one.
        """
        if np.count_nonzero(solution.status) or not self._plain(program, solution, cotangent):
            return self._differentiate(partial(adjoint.vjp, wanted=wanted), program, solution, cotangent)  # pyright: ignore[reportReturnType]
        found = adjoint.vjp(self.kkt, program, solution, cotangent, wanted)
        failures.warn_gradient(found[1])
        return found

    def jvp(self, program: ConeProgram, solution: Solution, tangent: ConeProgram) -> tuple[Solution, Certificate]:
        """Push a tangent of (P, q, A, b) forward to (x, y, s); flat batches (rows, ...). Failed rows get zero."""
        moved, certificate = self._differentiate(adjoint.jvp, program, solution, tangent)
        return moved, certificate

    def newton(self, program: ConeProgram, solution: Solution) -> Solution:
        """One Newton step, however long, on the optimality conditions from the rows that did not fail; the others are NaN."""
        good = solution.status <= OK
        program, missing, valid = self._settle_data(program, ~good)
        if missing is not None:
            solution = replace(solution, s=np.where(missing, 1.0, solution.s))
        if valid is None:
            moved = adjoint.newton(self.kkt, program, solution, reach=np.inf)
        elif valid.any():
            moved = spread(adjoint.newton(self.kkt, take(program, valid), take(solution, valid), reach=np.inf), valid, np.nan)
        else:
            moved = spread(take(solution, valid), valid, np.nan)
        return moved if missing is None else replace(moved, s=np.where(missing, np.inf, moved.s))

    def certify(self, program: ConeProgram, solution: Solution, cotangent: Solution) -> Certificate:
        """How far the derivative of each row can be trusted for this cotangent, without warning."""
        return self._differentiate(partial(adjoint.vjp, wanted=(False, False)), program, solution, cotangent, warn=False)[1]

    def second_vjp(self, program: ConeProgram, solution: Solution, cotangent: Solution, tangent: ConeProgram) -> ConeProgram:
        """The derivative along ``tangent`` of what `vjp` makes of ``cotangent``; raises ValueError where the cones have none."""
        self._check_twice()
        return self._differentiate(adjoint.second_vjp, program, solution, cotangent, tangent)[0]

    def second_jvp(self, program: ConeProgram, solution: Solution, one: ConeProgram, two: ConeProgram) -> Solution:
        """The second derivative of (x, y, s) along two tangents; raises ValueError where the cones have none."""
        self._check_twice()
        return self._differentiate(adjoint.second_jvp, program, solution, one, two)[0]

    def _check_twice(self) -> None:
        lacking = sorted({type(cone).__name__ for cone in self.pattern.cone.cones if not cone.twice})
        if lacking:
            raise ValueError(
                f"programs with {' and '.join(lacking)} cones have no second derivatives here; only zero, nonnegative and second-order "
                "cones have them"
            )

    def _differentiate(self, rule: Any, program: ConeProgram, solution: Solution, *directions: Any, warn: bool = True) -> tuple[Any, ...]:
        """The records that ``rule`` returns for the rows that did not fail, zero (a Certificate NaN) in the others."""
        program, solution, directions = _in_double(program), _in_double(solution), tuple(map(_in_double, directions))
        good = solution.status <= OK if np.count_nonzero(solution.status) else None  # None: all of them
        program, missing = self._without_missing(program)
        if missing is not None:
            solution = replace(solution, s=np.where(missing, 1.0, solution.s))
            directions = tuple(self._without(direction, missing) for direction in directions)
        records = (program, solution, *directions)
        results = rule(self.kkt, *(records if good is None else [take(record, good) for record in records]))
        if good is not None:
            results = tuple(spread(r, good, np.nan if isinstance(r, Certificate) else 0.0) for r in results)
        if missing is not None:
            results = (self._without(results[0], missing), *results[1:])
        if warn:
            failures.warn_gradient(results[1])
        return results

    def _plain(self, *records: Any) -> bool:
        """Whether there is nothing to convert or to leave out: all numbers are double, and no bound is missing."""
        double = all([a is None or a.dtype is DOUBLE for record in records for name, a in vars(record).items() if name in DATA])
        return double and self.kkt.products.finite(records[0].b) is None

    def _settle_data(
        self, program: ConeProgram, invalid: np.ndarray | None, finite: bool = False
    ) -> tuple[ConeProgram, np.ndarray | None, np.ndarray | None]:
        """The program without missing bounds (b = inf in a nonnegative row: it becomes 0'x + s = 1), where they were, and the valid rows.

        ``missing`` is (rows, m), None if there are none; valid rows (rows,) hold finite data and are not marked ``invalid``, None if all.
        """
        products = self.kkt.products
        finite = finite or products.finite(program.P, program.q, program.A, program.b) is None
        if finite and invalid is None:
            return program, None, None
        valid, missing = np.ones(len(program.q), dtype=bool), None
        if not finite:
            given = program
            program, missing = self._without_missing(given)
            found = products.finite(given.P, given.q, given.A, program.b)
            valid = valid if found is None else found
        if invalid is not None:
            valid &= ~invalid
        return program, missing, None if valid.all() else valid

    def _without_missing(self, program: ConeProgram) -> tuple[ConeProgram, np.ndarray | None]:
        """The program without missing bounds, and where they were, None if there are none."""
        if self.kkt.products.finite(program.b) is None:
            return program, None
        missing = (program.b == np.inf) & self.pattern.nonnegative
        if not missing.any():
            return program, None
        A = np.where(missing[:, self.pattern.A_indices], 0.0, program.A)
        return replace(program, A=A, b=np.where(missing, 1.0, program.b)), missing

    def _without(self, direction: Any, missing: np.ndarray) -> Any:
        """A tangent or cotangent without its part in missing rows."""
        if isinstance(direction, Solution):
            return direction if direction.s is None else replace(direction, s=np.where(missing, 0.0, direction.s))
        A = None if direction.A is None else np.where(missing[:, self.pattern.A_indices], 0.0, direction.A)
        return replace(direction, A=A, b=np.where(missing, 0.0, direction.b))

    def _start(self, solver: Solver, info: Info | None, batch: tuple[int, ...], valid: np.ndarray | None) -> Solution | None:
        if info is None:
            return None
        check_start(info, batch, self.pattern)
        if not solver.warm_start:
            return None
        cold = ~(info.status.reshape(-1, 1) <= OK)
        rows = slice(None) if valid is None else valid
        x, y, s = (
            np.where(cold, np.nan, a.reshape(len(cold), a.shape[-1]))[rows] for a in (info.solution.x, info.solution.y, info.solution.s)
        )
        return Solution(x, y, np.where(np.isinf(s), 1.0, s))

    def _configure(self, args: Mapping[str, Any]) -> Solver:
        if isinstance(self._name, Solver):
            return self._name
        solver, ignored = solvers.get(self._name, args, self.pattern)
        fresh = [name for name in ignored if name not in self._warned]
        if fresh:
            self._warned.update(fresh)
            warn(f"solver_args {', '.join(map(repr, fresh))} mean nothing to solver {solver.name!r} and are ignored", FutureWarning)
        return solver

    def _broadcast(self, P: Any, q: Any, A: Any, b: Any) -> tuple[ConeProgram, tuple[int, ...]]:
        pattern = self.pattern
        arrays = [np.asarray(a, dtype=np.float64, order="C") for a in (P, q, A, b)]
        names, widths = ("P", "q", "A", "b"), (pattern.nnzP, pattern.n, pattern.nnzA, pattern.m)
        for name, width, array in zip(names, widths, arrays, strict=True):
            if array.ndim == 0 or array.shape[-1] != width:
                raise ValueError(f"{name} has shape {array.shape}; wanted (*batch, {width}), the entries stored by the pattern")
        batch = common_batch([(name, a.shape[:-1]) for name, a in zip(names, arrays, strict=True)])
        rows = prod(batch)
        flat = (np.broadcast_to(a.reshape(rows, w) if a.ndim > 1 else a, (rows, w)) for a, w in zip(arrays, widths, strict=True))
        return ConeProgram(*flat), batch


def _in_double(record: Any) -> Any:
    """The record with its x, y, s or P, q, A, b in float64; itself if they are."""
    odd = [name for name, array in vars(record).items() if name in DATA and array is not None and array.dtype is not DOUBLE]
    return replace(record, **{name: np.asarray(getattr(record, name), dtype=DOUBLE) for name in odd}) if odd else record
