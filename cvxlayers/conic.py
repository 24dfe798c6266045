"""The cone program as a differentiable layer on NumPy arrays: (P, q, A, b) -> (x, y, s), any solver, any number of batch axes.

    minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

Above the solvers, once for all of them: data that are not finite never reach a solver; an infinite entry of b in a nonnegative row is
a missing bound; the answer is polished by Newton steps, judged by residuals of the unscaled data, and flagged. What a solver says of
itself is never the last word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from cvxlayers import adjoint, failures, solvers
from cvxlayers.adjoint import Certificate
from cvxlayers.errors import Status, warn
from cvxlayers.host import check_start, common_batch
from cvxlayers.kkt import KKT
from cvxlayers.program import ConeProgram, Info, Pattern, Solution, spread, take
from cvxlayers.solvers.base import Solver
from cvxlayers.verdict import judge

# Comparing arrays with plain integers costs a tenth of comparing them with members of an enumeration.
OK, PRIMAL_INFEASIBLE, DUAL_INFEASIBLE = int(Status.INACCURATE), int(Status.PRIMAL_INFEASIBLE), int(Status.DUAL_INFEASIBLE)


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

    def solve(
        self,
        program: ConeProgram,
        batch: tuple[int, ...],
        *,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: Info | None = None,
        invalid: np.ndarray | None = None,
    ) -> tuple[Solution, Info]:
        """Solve a flat batch: program (rows, ...), rows = prod(batch); the Solution is flat, the Info in batch shape.

        Rows marked ``invalid`` (rows,) and rows with data that are not finite become INVALID_PARAMETER without reaching the solver.
        """
        solver = self._configure({**self._args, **solver_args}) if solver_args else self._solver
        program, missing, valid = self._settle_data(program, invalid)
        start = self._start(solver, warm_start, batch, valid)

        good = program if valid is None else take(program, valid)
        solution, quality = judge(self.kkt, good, solver.solve(self.pattern, good, start), solver.tolerance)
        if valid is not None:
            solution, quality = spread(solution, valid, np.nan), spread(quality, valid, np.nan)
            solution.status[~valid] = Status.INVALID_PARAMETER
        status, objective = solution.status, quality.objective
        if missing is not None:
            solution.s[missing] = np.inf
        if status.any():
            objective = np.where(status <= OK, objective, np.nan)
            objective[status == PRIMAL_INFEASIBLE] = np.inf
            objective[status == DUAL_INFEASIBLE] = -np.inf
        warm = np.zeros(len(status), dtype=bool)
        if start is not None:
            warm[valid if valid is not None else slice(None)] = np.isfinite(start.x).all(axis=1)
        found = shaped(solution, batch)
        info = Info(
            status=found.status,
            objective=objective.reshape(batch),
            primal_residual=quality.primal.reshape(batch),
            dual_residual=quality.dual.reshape(batch),
            gap=quality.gap.reshape(batch),
            iterations=found.iterations,
            solver=solver.name,
            warm_started=warm.reshape(batch),
            solution=found,
        )
        return solution, info

    def vjp(self, program: ConeProgram, solution: Solution, cotangent: Solution) -> tuple[ConeProgram, Certificate]:
        """Pull cotangents of (x, y, s) back to (P, q, A, b); flat batches (rows, ...). Failed rows get zero.

        The equations stand in `cvxlayers.adjoint`. Issues a GradientWarning that names rows whose derivative is not an ordinary one.
        """
        gradient, certificate = self._differentiate(adjoint.vjp, program, solution, cotangent)
        return gradient, certificate

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
        return self._differentiate(adjoint.vjp, program, solution, cotangent, warn=False)[1]

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
        good = solution.status <= OK
        whole = good.all()
        program, missing, _ = self._settle_data(program, None)
        if missing is not None:
            solution = replace(solution, s=np.where(missing, 1.0, solution.s))
            directions = tuple(self._without(direction, missing) for direction in directions)
        records = (program, solution, *directions)
        results = rule(self.kkt, *(records if whole else (take(record, good) for record in records)))
        if not whole:
            results = tuple(spread(r, good, np.nan if isinstance(r, Certificate) else 0.0) for r in results)
        if missing is not None:
            results = (self._without(results[0], missing), *results[1:])
        if warn:
            failures.warn_gradient(results[1])
        return results

    def _settle_data(self, program: ConeProgram, invalid: np.ndarray | None) -> tuple[ConeProgram, np.ndarray | None, np.ndarray | None]:
        """The program without missing bounds (b = inf in a nonnegative row: it becomes 0'x + s = 1), where they were, and the valid rows.

        ``missing`` is (rows, m), None if there are none; valid rows (rows,) hold finite data and are not marked ``invalid``, None if all.
        """
        finite, missing, passes = self.kkt.products.finite, None, self.kkt.products.passes
        if invalid is None and passes is not None and passes.all_finite(program.P, program.q, program.A, program.b):
            return program, None, None
        valid = finite(program.P, program.q, program.A)
        valid = np.ones(len(program.q), dtype=bool) if valid is None else valid
        b_finite = np.isfinite(program.b)
        if not b_finite.all():
            absent = (program.b == np.inf) & self.pattern.nonnegative
            valid &= (b_finite | absent).all(1)
            if absent.any():
                missing = absent
                A = np.where(absent[:, self.pattern.A_indices], 0.0, program.A)
                program = replace(program, A=A, b=np.where(absent, 1.0, program.b))
        if invalid is not None:
            valid &= ~invalid
        return program, missing, None if valid.all() else valid

    def _without(self, direction: Any, missing: np.ndarray) -> Any:
        """A tangent or cotangent without its part in missing rows."""
        if isinstance(direction, Solution):
            return replace(direction, s=np.where(missing, 0.0, direction.s))
        A = np.where(missing[:, self.pattern.A_indices], 0.0, direction.A)
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
    names = ("x", "y", "s") if isinstance(record, Solution) else ("P", "q", "A", "b")
    odd = {name: array for name in names if (array := getattr(record, name)).dtype != np.float64}
    return replace(record, **{name: np.asarray(a, dtype=np.float64) for name, a in odd.items()}) if odd else record


def shaped(solution: Solution, batch: tuple[int, ...]) -> Solution:
    """A flat solution in batch shape."""
    return Solution(*(a.reshape(batch + a.shape[1:]) for a in vars(solution).values()))


def flattened(solution: Solution, batch: tuple[int, ...]) -> Solution:
    """A solution in batch shape as a flat one."""
    rows = prod(batch)
    return Solution(*(None if a is None else np.asarray(a).reshape((rows, *a.shape[len(batch) :])) for a in vars(solution).values()))
