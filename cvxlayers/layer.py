"""The framework-free path of a layer: parameters in, variables out, forward and backward, on NumPy arrays.

    p --M--> (P, q, A, b) --solve--> (x, y, s) --R--> variables

An adapter converts its tensors to NumPy float64 or complex128, calls `Layer.forward`, keeps the `Saved` arrays, and calls `Layer.vjp` (or
`Layer.jvp`) with them later. Complex values travel as their real part followed by their imaginary part, so a cotangent g stands for
dL/d(real) + i dL/d(imag).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cvxlayers import failures, solvers
from cvxlayers.affine import Affine
from cvxlayers.backend import backend_of
from cvxlayers.conic import ConicLayer, flattened
from cvxlayers.host import Arrays, HostMap, Options, Port
from cvxlayers.program import ConeProgram, Info, Solution


@dataclass(frozen=True)
class Saved:
    """What the backward pass needs, arrays only: ``inputs`` (rows or 1, size) of M per parameter, the flat solution, the batch shape."""

    inputs: tuple[np.ndarray, ...]
    batched: tuple[bool, ...]
    batch: tuple[int, ...]
    solution: Solution
    scale: np.ndarray


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
        self.canonical = canonicalize(problem, parameters, variables, gp=gp, quadratic=quadratic)
        self.conic = ConicLayer(self.canonical.pattern, solver, solver_args)
        self.inputs = tuple(Port(spec.name, spec.shape, spec.complex) for spec in self.canonical.parameters)
        self.outputs = tuple(Port(spec.name, spec.shape, spec.complex) for spec in self.canonical.variables)
        self._affine = Affine(self.canonical)
        self._missing = self._affine.may_be_missing()
        self._exponential = np.repeat([v.exp for v in self.canonical.variables], [v.size for v in self.canonical.variables])
        self._RT = self.canonical.R.T.tocsr()

    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Info, Saved]:
        """The variables' values, each (*batch, *shape), what happened, and what the backward pass needs.

        params: arrays, tensors or numbers, (*batch, *shape) or shape. Raises ValueError for misuse and SolverError for failed rows under
        ``on_failure="raise"``.
        """
        failures.check_policy(options.on_failure)
        values = self.values(params)
        resolutions = [backend_of(param).resolution(param) for param in params]
        batch, batched = self.batch(values)
        rows = int(np.prod(batch))
        flat = [self._flatten(v, spec.shape) for v, spec in zip(values, self.canonical.parameters, strict=True)]
        inputs = tuple(self._input(v, spec) for v, spec in zip(flat, self.canonical.parameters, strict=True))
        invalid, complaints = self._check(flat, inputs, resolutions, rows)

        program, constant = self._affine.program(inputs, batched, rows)
        solution, info = self.conic.solve(program, batch, solver_args=options.solver_args, warm_start=options.warm_start, invalid=invalid)
        info = replace(info, objective=self._objective(info.objective, constant.reshape(batch)))
        failures.settle(info, options.on_failure, complaints)
        shown = failures.mask_failed(solution, solution.status, options.on_failure)
        out, scale = self._recover(shown)
        kept = Solution(*(array.copy() for array in vars(solution).values()))  # info.solution is the caller's, who may change it
        return self._split(out, batch), info, Saved(inputs, batched, batch, kept, scale)

    def vjp(self, saved: Saved, cotangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        """Cotangents of the parameters from those of the variables, in the shapes of `forward`; None where not ``needed``."""
        gradient, _ = self.conic.vjp(self.program(saved), saved.solution, self.cotangent(saved, cotangents))
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
        flat = [self._flatten(v, spec.shape) for v, spec in zip(values, self.canonical.parameters, strict=True)]
        inputs = tuple(self._input(v, spec) for v, spec in zip(flat, self.canonical.parameters, strict=True))
        solution = flattened(solution, batch)
        return Saved(inputs, batched, batch, solution, self._recover(solution)[1])

    def cotangent(self, saved: Saved, cotangents: Arrays) -> Solution:
        """The cotangent of the cone program's solution from those of the variables."""
        pulled = (self._RT @ (self._join(cotangents, saved) * saved.scale).T).T
        n = self.canonical.pattern.n
        on_x, on_y = np.ascontiguousarray(pulled[:, :n]), np.ascontiguousarray(pulled[:, n:])
        return Solution(on_x, on_y, np.zeros_like(on_y))

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
        out = (self.canonical.R @ np.concatenate([moved.x, moved.y], axis=1).T).T
        return self._split(out * saved.scale, saved.batch)

    def _recover(self, solution: Solution) -> tuple[np.ndarray, np.ndarray]:
        """R [x; y], exponentials taken, (rows, outputs), and the derivative of taking them."""
        out = (self.canonical.R @ np.concatenate([solution.x, solution.y], axis=1).T).T
        scale = np.where(self._exponential, np.exp(np.where(self._exponential, out, 0.0)), 1.0)
        return np.where(self._exponential, scale, out), scale

    def _check_twice(self) -> None:
        if self.canonical.gp:
            raise ValueError("a geometric program has no second derivatives here; write the problem in the logarithms of its variables")

    def program(self, saved: Saved) -> ConeProgram:
        """The flat batch of cone programs behind a call."""
        return self._affine.program(saved.inputs, saved.batched, len(saved.solution.x))[0]

    @staticmethod
    def _flatten(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(*batch, *shape) -> (rows, *shape); one row if unbatched."""
        rows = int(np.prod(value.shape[: value.ndim - len(shape)]))
        return value.reshape(rows, *shape)

    def _check(
        self, flat: Sequence[np.ndarray], inputs: Sequence[np.ndarray], resolutions: Sequence[float], rows: int
    ) -> tuple[np.ndarray | None, dict[int, str]]:
        """Rows with a value that is infinite or against its parameter's declaration (None: no row), and what to say of each."""
        invalid, complaints = np.zeros(rows, dtype=bool), {}
        for k, (spec, value, resolution) in enumerate(zip(self.canonical.parameters, flat, resolutions, strict=True)):
            found: list[Any] = list(spec.domain.violations(value, resolution))
            if np.isinf(inputs[k]).any():
                plus, minus = (may[self._affine.starts[k] : self._affine.starts[k + 1]] for may in self._missing)
                wild = np.isinf(inputs[k]) & ~np.where(inputs[k] > 0, plus, minus)
                if wild.any():
                    found.append((wild.any(axis=1), f"{inputs[k][wild][0]:g}", "finite numbers"))
            for broken, got, wanted in found:
                broken = np.broadcast_to(broken, (rows,))
                invalid |= broken
                for row in np.flatnonzero(broken):
                    complaints.setdefault(int(row), f"parameter '{spec.name}': got {got}, wanted {wanted}")
        return (invalid if invalid.any() else None), complaints

    @staticmethod
    def _input(value: np.ndarray, spec: Any) -> np.ndarray:
        part = _stack(value, spec.complex)
        if spec.log:
            return np.log(np.where(part > 0, part, np.nan))  # rows that are not positive have been marked invalid
        return np.array(part)  # never a view of the caller's memory: what is kept must be the values of this call

    def _objective(self, value: np.ndarray, constant: np.ndarray) -> np.ndarray:
        value = value + constant
        if self.canonical.maximize:
            value = -value
        return np.asarray(np.exp(value) if self.canonical.gp else value)

    def _split(self, out: np.ndarray, batch: tuple[int, ...]) -> list[np.ndarray]:
        parts, start = [], 0
        for spec in self.canonical.variables:
            part = out[:, start : start + spec.size]
            start += spec.size
            if spec.complex:
                half = spec.size // 2
                part = part[:, :half] + 1j * part[:, half:]
            parts.append(np.ascontiguousarray(part).reshape(batch + spec.shape))
        return parts

    def _join(self, cotangents: Arrays, saved: Saved) -> np.ndarray:
        rows = len(saved.solution.x)
        parts = []
        for spec, g in zip(self.canonical.variables, cotangents, strict=True):
            parts.append(np.zeros((rows, spec.size)) if g is None else _stack(np.asarray(g).reshape(rows, *spec.shape), spec.complex))
        return np.concatenate(parts, axis=1)

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
    flat = value.reshape(len(value), int(np.prod(value.shape[1:])))
    return np.concatenate([flat.real, flat.imag], axis=1) if is_complex else flat.real
