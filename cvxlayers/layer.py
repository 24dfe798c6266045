"""The framework-free path of a layer: parameters in, variables out, forward and backward, on NumPy arrays.

    p --M--> (P, q, A, b) --solve--> (x, y, s) --R--> variables

An adapter converts its tensors to NumPy float64 or complex128, calls `Layer.forward`, keeps the `Saved` arrays, and calls `Layer.vjp` (or
`Layer.jvp`) with them later. Complex values travel as their real part followed by their imaginary part, so a cotangent g stands for
dL/d(real) + i dL/d(imag).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cvxlayers import failures, solvers
from cvxlayers.affine import Affine
from cvxlayers.backend import backend_of
from cvxlayers.conic import ConicLayer
from cvxlayers.eliminate import eliminate
from cvxlayers.host import Arrays, HostMap, Options, Port
from cvxlayers.program import ConeProgram, Solution, flattened
from cvxlayers.row_map import RowMap


@dataclass(frozen=True)
class Saved:
    """What the backward pass needs, arrays only: ``inputs`` (rows or 1, size) of M per parameter, the flat solution, the batch shape.

    ``scale`` is the derivative of taking exponentials of some outputs, (rows, outputs), None where none is taken; ``program`` the flat
    batch of cone programs, if it is at hand: then only logarithms are read of the inputs.
    """

    inputs: tuple[np.ndarray, ...]
    batched: tuple[bool, ...]
    batch: tuple[int, ...]
    solution: Solution
    scale: np.ndarray | None
    program: ConeProgram | None = None


class Layer(HostMap):
    """A CVXPY problem as a differentiable function of its parameters; the adapters' CvxpyLayer wraps one.

    Arguments as in CvxpyLayer. Raises ValueError for problems and arguments that cannot make a layer.
    """

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any] | None,
        variables: Sequence[Any] | None,
        solver: str | None = None,
        gp: bool = False,
        solver_args: Mapping[str, Any] | None = None,
    ) -> None:
        from cvxlayers.canonicalize import canonicalize  # importing CVXPY takes seconds: only who builds a layer pays

        if parameters is None or variables is None:
            absent = "parameters" if parameters is None else "variables"
            raise TypeError(f"CvxpyLayer got no {absent}; wanted CvxpyLayer(problem, parameters=[...], variables=[...])")
        asked = solvers.named(solver, solver_args)
        quadratic = solvers.find(asked).quadratic if asked is not None else True
        self.canonical = eliminate(canonicalize(problem, parameters, variables, gp=gp, quadratic=quadratic))
        self.conic = ConicLayer(self.canonical.pattern, solver, solver_args)
        self.inputs = tuple(Port(spec.name, spec.shape, spec.complex) for spec in self.canonical.parameters)
        self.outputs = tuple(Port(spec.name, spec.shape, spec.complex) for spec in self.canonical.variables)
        self._affine = Affine(self.canonical)
        self._missing = self._affine.may_be_missing()
        self._exponential = np.repeat([v.exp for v in self.canonical.variables], [v.size for v in self.canonical.variables])
        self._R = RowMap(self.canonical.R)
        n = self.canonical.pattern.n
        self._R_of_x = RowMap(self.canonical.R[:, :n]) if not self.canonical.R[:, n:].nnz else None  # no dual variable is asked for
        self._sizes = [spec.size for spec in self.canonical.variables]
        self._promises = [spec.domain.promises for spec in self.canonical.parameters]

    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Any, Saved]:
        """The variables' values, each (*batch, *shape), what happened, and what the backward pass needs.

        params: arrays, tensors or numbers, (*batch, *shape) or shape. Raises ValueError for misuse and SolverError for failed rows under
        ``on_failure="raise"``.
        """
        failures.check_policy(options.on_failure)
        values = self.values(params)
        batch, batched = self.batch(values)
        rows = prod(batch)
        inputs = self._inputs(values)
        program, finite = self._affine.program(inputs, batched, rows)
        invalid, complaints = self._check(params, values, inputs, rows, finite)

        how = {"solver_args": options.solver_args, "warm_start": options.warm_start, "invalid": invalid, "finite": finite}
        solution, told = self.conic.find(program, batch, **how)
        shown, info = solution, None
        failed = np.count_nonzero(solution.status)
        if failed or options.informed:
            info = told()
            self._finish_objective(info.objective, self._affine.constants(inputs, batched, rows).reshape(batch))
            solution = Solution(*[array.copy() for array in vars(solution).values()])  # info.solution is the caller's, who may change it
        if info is not None and failed:
            failures.settle(info, options.on_failure, complaints)
            shown = failures.mask_failed(solution, solution.status, options.on_failure)
        out, scale = self._recover(shown)
        return self._split(out, batch), info, Saved(inputs, batched, batch, solution, scale, program)

    def vjp(self, saved: Saved, cotangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        """Cotangents of the parameters from those of the variables, in the shapes of `forward`; None where not ``needed``."""
        wanted = self._affine.moved([k for k, asked in enumerate(needed) if asked])
        gradient, _ = self.conic.vjp(self.program(saved), saved.solution, self.cotangent(saved, cotangents), wanted)
        return self._pulled(gradient, saved, needed)

    def jvp(self, saved: Saved, tangents: Arrays) -> list[np.ndarray]:
        """Tangents of the variables from those of the parameters (None: zero), in the shapes of `forward`."""
        moved, _ = self.conic.jvp(self.program(saved), saved.solution, self._tangent(saved, tangents))
        return self._pushed(moved, saved)

    def second_vjp(self, saved: Saved, cotangents: Arrays, tangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        """The derivative along ``tangents`` of what `vjp` makes of ``cotangents``, in its shapes.

        Raises ValueError for geometric programs and for cones whose projection has no second derivative here.
        """
        self._check_twice()
        gradient = self.conic.second_vjp(
            self.program(saved), saved.solution, self.cotangent(saved, cotangents), self._tangent(saved, tangents)
        )
        return self._pulled(gradient, saved, needed)

    def second_jvp(self, saved: Saved, one: Arrays, two: Arrays) -> list[np.ndarray]:
        """The second derivative of the variables along two tangents of the parameters; raises as `second_vjp`."""
        self._check_twice()
        tangents = (self._tangent(saved, one), self._tangent(saved, two))
        return self._pushed(self.conic.second_jvp(self.program(saved), saved.solution, *tangents), saved)

    def restore(self, params: Sequence[Any], solution: Solution) -> Saved:
        """What `forward` saved, from its parameters and the Solution (*batch, ...) alone: derivatives need nothing but arrays."""
        values = self.values(params)
        batch, batched = self.batch(values)
        inputs = self._inputs(values)
        solution = flattened(solution, batch)
        return Saved(inputs, batched, batch, solution, self._recover(solution)[1] if self._exponential.any() else None)

    def cotangent(self, saved: Saved, cotangents: Arrays) -> Solution:
        """The cotangent of the cone program's solution from those of the variables."""
        g = self._join(cotangents, saved)
        pulled, n = self._R.adjoint(g if saved.scale is None else g * saved.scale), self.canonical.pattern.n
        return Solution(pulled[:, :n], pulled[:, n:], None)

    def _tangent(self, saved: Saved, tangents: Arrays) -> ConeProgram:
        given = [k for k, tangent in enumerate(tangents) if tangent is not None]
        inputs = []
        for k in given:
            spec = self.canonical.parameters[k]
            part = _stack(self._flatten(np.asarray(tangents[k]), spec.shape), spec.complex)
            inputs.append(part / np.exp(saved.inputs[k]) if spec.log else part)
        return self._affine.push(given, inputs, [saved.batched[k] for k in given], len(saved.solution.x))

    def _pulled(self, gradient: ConeProgram, saved: Saved, needed: Sequence[bool]) -> list[Any]:
        which = [k for k in range(len(saved.inputs)) if needed[k]]
        found = self._affine.pull(gradient, which, [saved.batched[k] for k in which])
        return [self._unflatten(found[k], k, saved) if k in found else None for k in range(len(saved.inputs))]

    def _pushed(self, moved: Solution, saved: Saved) -> list[np.ndarray]:
        out = self._outputs(moved)
        return self._split(out if saved.scale is None else out * saved.scale, saved.batch)

    def _outputs(self, solution: Solution) -> np.ndarray:
        """R [x; y], (rows, outputs)."""
        if self._R_of_x is not None:
            return self._R_of_x(solution.x)
        return self._R(np.concatenate([solution.x, solution.y], axis=1))

    def _recover(self, solution: Solution) -> tuple[np.ndarray, np.ndarray | None]:
        """R [x; y], exponentials taken, (rows, outputs), and the derivative of taking them, None where there are none."""
        out = self._outputs(solution)
        if not self.canonical.gp:
            return out, None
        scale = np.where(self._exponential, np.exp(np.where(self._exponential, out, 0.0)), 1.0)
        return np.where(self._exponential, scale, out), scale

    def _check_twice(self) -> None:
        if self.canonical.gp:
            raise ValueError("a geometric program has no second derivatives here; write the problem in the logarithms of its variables")

    def program(self, saved: Saved) -> ConeProgram:
        """The flat batch of cone programs behind a call."""
        if saved.program is not None:
            return saved.program
        return self._affine.program(saved.inputs, saved.batched, len(saved.solution.x))[0]

    @staticmethod
    def _flatten(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(*batch, *shape) -> (rows, *shape); one row if unbatched."""
        return value.reshape(prod(value.shape[: value.ndim - len(shape)]), *shape)

    def _check(
        self, params: Sequence[Any], values: Sequence[np.ndarray], inputs: Sequence[np.ndarray], rows: int, finite: bool
    ) -> tuple[np.ndarray | None, dict[int, str]]:
        """Rows with a value that is infinite or against its parameter's declaration (None: no row), and what to say of each.

        ``finite`` says that all inputs are known to be finite.
        """
        invalid, complaints = None, {}
        for k, spec in enumerate(self.canonical.parameters):
            if not self._promises[k] and (finite or np.isfinite(inputs[k]).all()):
                continue
            value, resolution = self._flatten(values[k], spec.shape), backend_of(params[k]).resolution(params[k])
            found: list[Any] = list(spec.domain.violations(value, resolution))
            if np.isinf(inputs[k]).any():
                plus, minus = (may[self._affine.starts[k] : self._affine.starts[k + 1]] for may in self._missing)
                wild = np.isinf(inputs[k]) & ~np.where(inputs[k] > 0, plus, minus)
                if wild.any():
                    found.append((wild.any(axis=1), f"{inputs[k][wild][0]:g}", "finite numbers"))
            for broken, got, wanted in found:
                broken = np.broadcast_to(broken, (rows,))
                invalid = broken | (False if invalid is None else invalid)
                for row in np.flatnonzero(broken):
                    complaints.setdefault(int(row), f"parameter '{spec.name}': got {got}, wanted {wanted}")
        return invalid, complaints

    def _inputs(self, values: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """What M acts on, (rows, size) or (1, size) each; views of the caller's memory, which may change after the call."""
        inputs = []
        for spec, value in zip(self.canonical.parameters, values, strict=True):
            part = _stack(self._flatten(value, spec.shape), spec.complex)
            # rows that are not positive will be marked invalid
            inputs.append(np.log(np.where(part > 0, part, np.nan)) if spec.log else part)
        return tuple(inputs)

    def _finish_objective(self, value: np.ndarray, constant: np.ndarray) -> None:
        """From the cone program's objective to the user's, in place."""
        value += constant
        if self.canonical.maximize:
            np.negative(value, out=value)
        if self.canonical.gp:
            np.exp(value, out=value)

    def _split(self, out: np.ndarray, batch: tuple[int, ...]) -> list[np.ndarray]:
        parts, start = [], 0
        for spec, size in zip(self.canonical.variables, self._sizes, strict=True):
            part = out[:, start : start + size]
            start += size
            if spec.complex:
                half = size // 2
                part = part[:, :half] + 1j * part[:, half:]
            parts.append(np.ascontiguousarray(part).reshape(batch + spec.shape))
        return parts

    def _join(self, cotangents: Arrays, saved: Saved) -> np.ndarray:
        rows = len(saved.solution.x)
        parts = []
        for spec, size, g in zip(self.canonical.variables, self._sizes, cotangents, strict=True):
            parts.append(np.zeros((rows, size)) if g is None else _stack(np.asarray(g).reshape(rows, *spec.shape), spec.complex))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _unflatten(self, part: np.ndarray, k: int, saved: Saved) -> np.ndarray:
        spec = self.canonical.parameters[k]
        if spec.log:
            part = np.where(part == 0, 0.0, part / np.exp(saved.inputs[k]))  # failed rows have zeros here and NaN for inputs
        if spec.complex:
            half = part.shape[1] // 2
            part = part[:, :half] + 1j * part[:, half:]
        return part.reshape((saved.batch if saved.batched[k] else ()) + spec.shape)


def _stack(value: Any, is_complex: bool) -> np.ndarray:
    """(rows, *shape) -> (rows, size): the C-order ravel, real part first and then the imaginary part of complex values."""
    flat = value if value.ndim == 2 else value.reshape(len(value), prod(value.shape[1:]))
    return np.concatenate([flat.real, flat.imag], axis=1) if is_complex else flat.real
