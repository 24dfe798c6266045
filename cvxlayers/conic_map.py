"""The cone program as a `HostMap`: what the adapters' ConicLayer wraps, (P, q, A, b) -> (x, y, s)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvxlayers import failures
from cvxlayers.conic import ConicLayer
from cvxlayers.host import Arrays, HostMap, Options, Port
from cvxlayers.program import ConeProgram, Solution, flattened, shaped


@dataclass(frozen=True)
class Saved:
    """A flat batch of programs with its solution, and which of P, q, A, b had batch axes."""

    program: ConeProgram
    solution: Solution
    batched: tuple[bool, ...]
    batch: tuple[int, ...]


class ConicMap(HostMap):
    """P (*batch, nnzP), q (*batch, n), A (*batch, nnzA), b (*batch, m) -> x (*batch, n), y (*batch, m), s (*batch, m).

    What ``conic`` solves, as a map of arrays that frameworks call.
    """

    def __init__(self, conic: ConicLayer) -> None:
        self.conic, pattern = conic, conic.pattern
        widths = (("P", pattern.nnzP), ("q", pattern.n), ("A", pattern.nnzA), ("b", pattern.m))
        self.inputs = tuple(Port(name, (width,), False) for name, width in widths)
        self.outputs = tuple(Port(name, (width,), False) for name, width in (("x", pattern.n), ("y", pattern.m), ("s", pattern.m)))

    def forward(self, params: Sequence[Any], options: Options) -> tuple[list[np.ndarray], Any, Saved]:
        failures.check_policy(options.on_failure)
        program, batched, batch = self._program(params)
        solution, told = self.conic.find(program, batch, solver_args=options.solver_args, warm_start=options.warm_start)
        shown, info = solution, None
        if options.informed or np.count_nonzero(solution.status):
            info = told()
            failures.settle(info, options.on_failure)
            shown = failures.mask_failed(solution, solution.status, options.on_failure)
            solution = Solution(*[array.copy() for array in vars(solution).values()])  # info.solution is the caller's
        shown = shaped(shown, batch)  # as the outputs are
        return [shown.x.copy(), shown.y.copy(), shown.s.copy()], info, Saved(program, solution, batched, batch)

    def restore(self, params: Sequence[Any], solution: Solution) -> Saved:
        program, batched, batch = self._program(params)
        return Saved(program, flattened(solution, batch), batched, batch)

    def vjp(self, saved: Saved, cotangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        wanted = needed[0], needed[2]
        return self._pulled(self.conic.vjp(saved.program, saved.solution, self._cotangent(saved, cotangents), wanted)[0], saved, needed)

    def jvp(self, saved: Saved, tangents: Arrays) -> list[np.ndarray]:
        return self._pushed(self.conic.jvp(saved.program, saved.solution, self._tangent(saved, tangents))[0], saved)

    def second_vjp(self, saved: Saved, cotangents: Arrays, tangents: Arrays, needed: Sequence[bool]) -> list[Any]:
        directions = self._cotangent(saved, cotangents), self._tangent(saved, tangents)
        return self._pulled(self.conic.second_vjp(saved.program, saved.solution, *directions), saved, needed)

    def second_jvp(self, saved: Saved, one: Arrays, two: Arrays) -> list[np.ndarray]:
        directions = self._tangent(saved, one), self._tangent(saved, two)
        return self._pushed(self.conic.second_jvp(saved.program, saved.solution, *directions), saved)

    def _program(self, params: Sequence[Any]) -> tuple[ConeProgram, tuple[bool, ...], tuple[int, ...]]:
        arrays = [np.array(value, order="C") for value in self.values(params)]  # copies: what is kept must be the values of this call
        batch, batched = self.batch(arrays)
        return ConeProgram(*self._flat(arrays, batched, int(np.prod(batch)))), batched, batch

    def _flat(self, arrays: Arrays, batched: Sequence[bool], rows: int) -> list[np.ndarray]:
        flat = []
        for port, array, own in zip(self.inputs, arrays, batched, strict=True):
            width = port.shape[0]
            whole = np.zeros(width) if array is None else np.asarray(array, dtype=np.float64)
            flat.append(np.broadcast_to(whole.reshape(rows, width) if own and array is not None else whole, (rows, width)))
        return flat

    def _tangent(self, saved: Saved, tangents: Arrays) -> ConeProgram:
        return ConeProgram(*self._flat(tangents, saved.batched, len(saved.solution.x)))

    def _cotangent(self, saved: Saved, cotangents: Arrays) -> Solution:
        like = (saved.solution.x, saved.solution.y, saved.solution.s)
        given = zip(like, cotangents, strict=True)
        x, y, s = (None if g is None else np.asarray(np.reshape(g, a.shape), dtype=np.float64) for a, g in given)
        return Solution(np.zeros_like(like[0]) if x is None else x, np.zeros_like(like[1]) if y is None else y, s)

    def _pulled(self, gradient: ConeProgram, saved: Saved, needed: Sequence[bool]) -> list[Any]:
        parts = zip(vars(gradient).values(), saved.batched, needed, strict=True)
        return [(g.reshape(*saved.batch, g.shape[1]) if own else g.sum(axis=0)) if wanted else None for g, own, wanted in parts]

    def _pushed(self, moved: Solution, saved: Saved) -> list[np.ndarray]:
        return [a.reshape(*saved.batch, a.shape[1]) for a in (moved.x, moved.y, moved.s)]
