"""Automatic differentiation of a `HostMap` without a framework: all of its derivatives are one multilinear form.

    F(p; g; d_1, ..., d_k) = <g, f^(k)(p)[d_1, ..., d_k]>

A `Rule` is the form with one argument left out, which is its result: f(p) itself leaves out g where k = 0, f'(p)* g leaves out d_1, f'(p) d
leaves out g. A rule is linear in each argument given, and its derivative along p has one direction more. So the tangent and the adjoint of a
rule are rules, and a rule for many rows at once is the same rule: an adapter says only how its framework asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvxlayers.errors import Status
from cvxlayers.host import HostMap, Port
from cvxlayers.program import Solution

Directions = Sequence[Sequence[Any]]  # one list of values for each argument given


@dataclass(frozen=True)
class Argument:
    """An argument of the form, of the kind of the "inputs" or the "outputs": ``which`` of its entries there are; the others are zero."""

    kind: str
    which: tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """A map of the parameters, the state (see `host.state_of`) and the arguments ``given``, to the argument that is its ``result``."""

    given: tuple[Argument, ...]
    result: Argument

    @classmethod
    def solution(cls, core: HostMap) -> Rule:
        """The rule that is the map itself, which takes the parameters alone."""
        return cls((), Argument("outputs", tuple(range(len(core.outputs)))))

    @classmethod
    def read(cls, text: str) -> Rule:
        """The rule that `text` wrote down."""
        *given, result = (Argument(kind, tuple(which)) for kind, which in json.loads(text))
        return cls(tuple(given), result)

    @property
    def text(self) -> str:
        """The rule as a string, for graphs that hold nothing else."""
        return json.dumps([(argument.kind, argument.which) for argument in (*self.given, self.result)])

    @property
    def order(self) -> int:
        """How often the map is differentiated."""
        return sum(argument.kind == "inputs" for argument in (*self.given, self.result))

    def split(self, operands: Sequence[Any], count: int) -> tuple[Sequence[Any], Any, list[Sequence[Any]]]:
        """The operands of a call in their parts: ``count`` parameters, the state if it is there, and the values of each argument given."""
        params, state, start, directions = operands[:count], None, count, []
        if len(operands) > count:
            state, start = operands[count], count + 1
        for argument in self.given:
            end = start + len(argument.which)
            directions.append(operands[start:end])
            start = end
        return params, state, directions

    def run(self, core: HostMap, saved: Any, directions: Directions) -> list[np.ndarray]:
        """The derivative, on the host."""
        dense: dict[str, list[Any]] = {"inputs": [], "outputs": []}
        for argument, values in zip(self.given, directions, strict=True):
            there = dict(zip(argument.which, values, strict=True))
            dense[argument.kind].append([there.get(k) for k in range(len(getattr(core, argument.kind)))])
        if self.result.kind == "outputs":
            found = (core.jvp if self.order == 1 else core.second_jvp)(saved, *dense["inputs"])
        else:
            needed = [k in self.result.which for k in range(len(core.inputs))]
            found = (core.vjp if self.order == 1 else core.second_vjp)(saved, *dense["outputs"], *dense["inputs"], needed)
        return [found[k] for k in self.result.which]

    def tangents(self, directions: Directions, moved: Directions) -> list[tuple[Rule, Directions]]:
        """The rules whose sum is the tangent of the result, for tangents of each argument given and then of the parameters; None is zero."""
        terms = []
        for j, values in enumerate(moved):
            own = self.given[j] if j < len(self.given) else Argument("inputs", tuple(range(len(values))))
            argument, there = _nonzero(own, values)
            if there:
                rule = Rule((*self.given[:j], argument, *self.given[j + 1 :]), self.result)
                terms.append((_known(rule), [*directions[:j], there, *directions[j + 1 :]]))
        return terms

    def adjoint(self, j: int, wanted: Sequence[int], directions: Directions, cotangents: Sequence[Any]) -> tuple[Rule, Directions] | None:
        """The rule that pulls cotangents of the result back to argument j of those given, or to the parameters, which come after them.

        ``wanted`` are the entries to find; a cotangent that is None is zero, and the answer is None if all of them are.
        """
        argument, there = _nonzero(self.result, cotangents)
        if not there or not wanted:
            return None
        kind = self.given[j].kind if j < len(self.given) else "inputs"
        rule = Rule((*self.given[:j], *self.given[j + 1 :], argument), Argument(kind, tuple(wanted)))
        return _known(rule), [*directions[:j], *directions[j + 1 :], there]

    def shapes(self, inputs: Sequence[Port], outputs: Sequence[Port], operands: Sequence[Any]) -> list[tuple[int, ...]]:
        """The shapes of the results."""
        params = operands[: len(inputs)]
        if self.result.kind == "inputs":
            return [tuple(params[k].shape) for k in self.result.which]
        leads = (tuple(p.shape[: p.ndim - len(port.shape)]) for p, port in zip(params, inputs, strict=True))
        batch = operands[len(inputs)].shape[:-1] if self.given else next(filter(None, leads), ())
        return [(*batch, *outputs[k].shape) for k in self.result.which]

    def mapped(
        self, xp: Any, inputs: Sequence[Port], rows: int, operands: Sequence[Any], axes: Sequence[int | None]
    ) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
        """The operands of one call for all ``rows`` along mapped axes, and what makes its results those of the rows, along axis 0.

        The mapped axis joins the batch, in front. A parameter that all rows share stays shared, unless rows have tangents or cotangents of
        their own for it. ``axes`` are None for operands that are not mapped; ``xp`` has the functions moveaxis and broadcast_to.
        """
        (params, state, directions), (on_params, on_state, on_directions) = self.split(operands, len(inputs)), self.split(axes, len(inputs))
        leads = [_lead(p, axis, port) for p, axis, port in zip(params, on_params, inputs, strict=True)]
        batch = next(filter(None, leads), ())
        apart = {k for k, axis in enumerate(on_params) if axis is not None or leads[k]}
        for argument, on in zip(self.given, on_directions, strict=True):
            apart |= {k for k, axis in zip(argument.which, on, strict=True) if argument.kind == "inputs" and axis is not None}
        apart |= set(self.result.which if self.result.kind == "inputs" else ())
        apart = apart or set(range(len(inputs)))  # where the state alone is mapped

        def lift(x: Any, axis: int | None, lead: tuple[int, ...]) -> Any:
            x = x[None] if axis is None else xp.moveaxis(x, axis, 0)
            shape = tuple(x.shape[1 + len(lead) :])
            return xp.broadcast_to(x.reshape((x.shape[0], *(lead or [1] * len(batch)), *shape)), (rows, *batch, *shape))

        def raised(k: int, x: Any, axis: int | None) -> Any:
            return lift(x, axis, leads[k]) if k in apart else x

        lifted = [raised(k, x, axis) for k, (x, axis) in enumerate(zip(params, on_params, strict=True))]
        lifted += [] if state is None else [lift(state, on_state, batch)]
        for argument, values, on in zip(self.given, directions, on_directions, strict=True):
            parts = zip(argument.which, values, on, strict=True)
            lifted += [raised(k, x, axis) if argument.kind == "inputs" else lift(x, axis, batch) for k, x, axis in parts]

        def folded(results: Sequence[Any]) -> list[Any]:
            if self.result.kind == "outputs" or not batch:
                return list(results)
            inner = tuple(range(1, 1 + len(batch)))  # what the rows of one mapped call share collects from all of them
            return [r if leads[k] else r.sum(inner) for k, r in zip(self.result.which, results, strict=True)]

        return lifted, folded


def check_twice(core: Any) -> None:
    """Raise ValueError where the map has no second derivatives: for frameworks that can raise while they trace, and not later."""
    pattern, nothing = core.conic.pattern, [np.zeros(port.shape) for port in core.inputs]
    failed = Solution(np.zeros(pattern.n), np.zeros(pattern.m), np.zeros(pattern.m), np.array(int(Status.NUMERICAL_ERROR)), np.array(0))
    core.second_jvp(core.restore(nothing, failed), nothing, nothing)


def _known(rule: Rule) -> Rule:
    if rule.order > 2:
        raise ValueError("a layer has first and second derivatives; the third was asked for")
    return rule


def _nonzero(argument: Argument, values: Sequence[Any]) -> tuple[Argument, list[Any]]:
    there = [(k, value) for k, value in zip(argument.which, values, strict=True) if value is not None]
    return Argument(argument.kind, tuple(k for k, _ in there)), [value for _, value in there]


def _lead(x: Any, axis: int | None, port: Port) -> tuple[int, ...]:
    """The batch axes of a parameter beside its mapped axis."""
    sizes = [size for k, size in enumerate(x.shape) if axis is None or k != axis % x.ndim]
    return tuple(sizes[: len(sizes) - len(port.shape)])
