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
import scipy.sparse as sp

from cvxlayers import failures, solvers
from cvxlayers.backend import backend_of
from cvxlayers.cones import NonNegative
from cvxlayers.conic import ConicLayer, common_batch
from cvxlayers.errors import warn
from cvxlayers.program import ConeProgram, Info, Solution

SPELLING = {"params": "parameters", "out": "variables", "outputs": "variables"}


@dataclass(frozen=True)
class Options:
    """How one call is made: the keyword arguments of a layer's call."""

    solver_args: Mapping[str, Any] | None = None
    on_failure: str = "raise"
    warm_start: Info | None = None


@dataclass(frozen=True)
class Saved:
    """What the backward pass needs, arrays only: ``inputs`` (rows or 1, size) of M per parameter, the flat solution, the batch shape."""

    inputs: tuple[np.ndarray, ...]
    batched: tuple[bool, ...]
    batch: tuple[int, ...]
    solution: Solution
    scale: np.ndarray


class Layer:
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
        sizes = [spec.size for spec in self.canonical.parameters]
        self._starts = np.cumsum([0, *sizes])
        self._exponential = np.repeat([v.exp for v in self.canonical.variables], [v.size for v in self.canonical.variables])
        self._constant = self.canonical.M[:, [-1]].toarray().T
        self._missing = self._may_be_missing()
        pattern = self.canonical.pattern
        edges = np.cumsum([0, pattern.nnzP, pattern.n, pattern.nnzA, pattern.m, 1]).tolist()
        self._parts = [slice(*ends) for ends in zip(edges, edges[1:], strict=False)]
        self._RT = self.canonical.R.T.tocsr()
        self._maps: dict[tuple[int, ...], tuple[sp.csr_matrix, sp.csr_matrix]] = {}

    def values(self, params: Sequence[Any]) -> list[np.ndarray]:
        """The parameters as NumPy float64 or complex128 arrays; raises ValueError for a wrong count or dtype."""
        specs = self.canonical.parameters
        if len(params) != len(specs):
            names = ", ".join(repr(s.name) for s in specs)
            raise ValueError(f"got {len(params)} parameter values; wanted {len(specs)}, one for each of {names or 'no parameters'}")
        values = []
        for spec, param in zip(specs, params, strict=True):
            try:
                value = backend_of(param).host(param)
            except (TypeError, ValueError) as error:
                raise ValueError(f"parameter '{spec.name}': {error}") from None
            if value.dtype.kind == "c" and not spec.complex:
                raise ValueError(f"parameter '{spec.name}' is real and got complex values; pass its real part, or declare it complex=True")
            values.append(value)
        return values

    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Info, Saved]:
        """The variables' values, each (*batch, *shape), what happened, and what the backward pass needs.

        params: arrays, tensors or numbers, (*batch, *shape) or shape. Raises ValueError for misuse and SolverError for failed rows under
        ``on_failure="raise"``.
        """
        failures.check_policy(options.on_failure)
        values = self.values(params)
        resolutions = [backend_of(param).resolution(param) for param in params]
        batch, batched = self._batch(values)
        rows = int(np.prod(batch))
        flat = [self._flatten(v, spec.shape) for v, spec in zip(values, self.canonical.parameters, strict=True)]
        inputs = tuple(self._input(v, spec) for v, spec in zip(flat, self.canonical.parameters, strict=True))
        invalid, complaints = self._check(flat, inputs, resolutions, rows)

        program, constant = self._program(inputs, batched, rows)
        solution, info = self.conic.solve(program, batch, solver_args=options.solver_args, warm_start=options.warm_start, invalid=invalid)
        info = replace(info, objective=self._objective(info.objective, constant.reshape(batch)))
        failures.settle(info, options.on_failure, complaints)
        shown = failures.mask_failed(solution, solution.status, options.on_failure)
        out = (self.canonical.R @ np.concatenate([shown.x, shown.y], axis=1).T).T
        scale = np.where(self._exponential, np.exp(np.where(self._exponential, out, 0.0)), 1.0)
        out = np.where(self._exponential, scale, out)
        kept = Solution(*(array.copy() for array in vars(solution).values()))  # info.solution is the caller's, who may change it
        return self._split(out, batch), info, Saved(inputs, batched, batch, kept, scale)

    def vjp(self, saved: Saved, cotangents: Sequence[np.ndarray | None], needed: Sequence[bool]) -> list[Any]:
        """Cotangents of the parameters from those of the variables, in the shapes of `forward`; None where not ``needed``."""
        g = self._join(cotangents, saved) * saved.scale
        program, _ = self._program(saved.inputs, saved.batched, len(g))
        pulled = (self._RT @ g.T).T
        n = self.canonical.pattern.n
        on_x, on_y = np.ascontiguousarray(pulled[:, :n]), np.ascontiguousarray(pulled[:, n:])
        cotangent = Solution(on_x, on_y, np.zeros_like(on_y))
        gradient, _ = self.conic.vjp(program, saved.solution, cotangent)
        stacked = np.concatenate([gradient.P, gradient.q, gradient.A, gradient.b], axis=1)
        results: list[np.ndarray | None] = [None] * len(saved.inputs)
        for group in (True, False):
            which = tuple(k for k in range(len(results)) if needed[k] and saved.batched[k] == group)
            if which:
                summed = stacked if group else stacked.sum(axis=0, keepdims=True)
                _, MT = self._map(which)
                pulled = (MT @ summed.T).T
                edges = np.cumsum([self._width(k) for k in which])[:-1]
                for k, part in zip(which, np.split(pulled, edges, axis=1), strict=True):
                    results[k] = self._unflatten(part, k, saved)
        return results

    def jvp(self, saved: Saved, tangents: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Tangents of the variables from those of the parameters (None: zero), in the shapes of `forward`."""
        rows = len(saved.solution.x)
        given = [k for k, tangent in enumerate(tangents) if tangent is not None]
        inputs = []
        for k in given:
            spec = self.canonical.parameters[k]
            part = _stack(self._flatten(np.asarray(tangents[k]), spec.shape), spec.complex)
            inputs.append(part / np.exp(saved.inputs[k]) if spec.log else part)
        program, _ = self._split_program(self._apply(tuple(given), tuple(inputs), [saved.batched[k] for k in given], rows))
        solution, _ = self.conic.jvp(self._program(saved.inputs, saved.batched, rows)[0], saved.solution, program)
        out = (self.canonical.R @ np.concatenate([solution.x, solution.y], axis=1).T).T
        return self._split(out * saved.scale, saved.batch)

    def program(self, saved: Saved) -> ConeProgram:
        """The flat batch of cone programs behind a call."""
        return self._program(saved.inputs, saved.batched, len(saved.solution.x))[0]

    def _batch(self, values: Sequence[np.ndarray]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        shapes = []
        for position, (spec, value) in enumerate(zip(self.canonical.parameters, values, strict=True), 1):
            lead = value.ndim - len(spec.shape)
            if lead < 0 or value.shape[lead:] != spec.shape:
                wanted = f"{spec.shape} or (*batch{''.join(f', {size}' for size in spec.shape)})"
                raise ValueError(f"parameter '{spec.name}' ({position} of {len(values)}) has shape {value.shape}; wanted {wanted}")
            shapes.append((f"parameter '{spec.name}'", value.shape[:lead]))
        return common_batch(shapes), tuple(shape != () for _, shape in shapes)

    @staticmethod
    def _flatten(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(*batch, *shape) -> (rows, *shape); one row if unbatched."""
        rows = int(np.prod(value.shape[: value.ndim - len(shape)]))
        return value.reshape(rows, *shape)

    def _may_be_missing(self) -> tuple[np.ndarray, np.ndarray]:
        """The entries of p that may be inf and that may be -inf: those that make some b in a nonnegative row inf, and nothing else."""
        pattern, entries = self.canonical.pattern, self.canonical.M.tocoo()
        allowed = np.zeros(self._constant.size, dtype=bool)
        allowed[-1 - pattern.m : -1] = [isinstance(cone, NonNegative) for cone in pattern.cone.cones for _ in range(cone.dim)]
        may = np.ones((2, self._starts[-1] + 1), dtype=bool)
        for sign, row in ((1, 0), (-1, 1)):
            may[row, entries.col[~(allowed[entries.row] & (sign * entries.data > 0))]] = False
        return may[0], may[1]

    def _check(
        self, flat: Sequence[np.ndarray], inputs: Sequence[np.ndarray], resolutions: Sequence[float], rows: int
    ) -> tuple[np.ndarray | None, dict[int, str]]:
        """Rows with a value that is infinite or against its parameter's declaration (None: no row), and what to say of each."""
        invalid, complaints = np.zeros(rows, dtype=bool), {}
        for k, (spec, value, resolution) in enumerate(zip(self.canonical.parameters, flat, resolutions, strict=True)):
            found: list[Any] = list(spec.domain.violations(value, resolution))
            if np.isinf(inputs[k]).any():
                plus, minus = (may[self._starts[k] : self._starts[k + 1]] for may in self._missing)
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

    def _program(self, inputs: tuple[np.ndarray, ...], batched: Sequence[bool], rows: int) -> tuple[ConeProgram, np.ndarray]:
        return self._split_program(self._constant + self._apply(tuple(range(len(inputs))), inputs, batched, rows))

    def _apply(self, which: tuple[int, ...], inputs: tuple[np.ndarray, ...], batched: Sequence[bool], rows: int) -> np.ndarray:
        """M restricted to the parameters ``which``, applied to their inputs: (rows, outputs of M). Shared inputs are multiplied once."""
        total = np.zeros((rows, self._constant.size))
        for group in (False, True):
            chosen = [i for i in range(len(which)) if batched[i] == group]
            if chosen:
                M, _ = self._map(tuple(which[i] for i in chosen))
                total += (M @ np.concatenate([inputs[i] for i in chosen], axis=1).T).T
        return total

    def _split_program(self, stacked: np.ndarray) -> tuple[ConeProgram, np.ndarray]:
        P, q, A, b, constant = (stacked[:, part] for part in self._parts)
        return ConeProgram(P, q, A, b), constant[:, 0]

    def _map(self, which: tuple[int, ...]) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """The columns of M that belong to the parameters ``which``, and their transpose; kept, for a layer sees few combinations."""
        if which not in self._maps:
            columns = np.concatenate([np.arange(self._starts[k], self._starts[k + 1]) for k in which])
            M = self.canonical.M[:, columns].tocsr()
            self._maps[which] = (M, M[:-1].T.tocsr())
        return self._maps[which]

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

    def _join(self, cotangents: Sequence[np.ndarray | None], saved: Saved) -> np.ndarray:
        rows = len(saved.solution.x)
        parts = []
        for spec, g in zip(self.canonical.variables, cotangents, strict=True):
            parts.append(np.zeros((rows, spec.size)) if g is None else _stack(np.asarray(g).reshape(rows, *spec.shape), spec.complex))
        return np.concatenate(parts, axis=1)

    def _width(self, k: int) -> int:
        return int(self._starts[k + 1] - self._starts[k])

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


def check_spelling(unknown: Mapping[str, Any]) -> None:
    """Raise TypeError for keyword arguments that no layer has, naming the right spelling of known wrong ones."""
    for name in unknown:
        hint = f"; write {SPELLING[name]}=" if name in SPELLING else ""
        raise TypeError(f"CvxpyLayer got an unexpected keyword argument {name!r}{hint}")


def ignore_legacy(verbose: bool, canon_backend: str | None) -> None:
    """Warn that arguments which other layers take have no meaning here."""
    for name, given in (("verbose", verbose), ("canon_backend", canon_backend is not None)):
        if given:
            warn(f"CvxpyLayer ignores {name}=: it has no meaning here", FutureWarning)
