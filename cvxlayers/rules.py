"""Automatic differentiation of a `HostMap` without a framework: all of its derivatives are one multilinear form.

    F(p; g; d_1, ..., d_k) = <g, f^(k)(p)[d_1, ..., d_k]>

A `Rule` is the form with one argument left out, which is its result: f(p) itself leaves out g where k = 0, f'(p)* g leaves out d_1, and
f'(p) d leaves out g. A rule is linear in each argument given, and its derivative along p has one direction more. So the tangent and the
adjoint of a rule are rules, and a rule for many rows at once is the same rule: an adapter says only how its framework asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from cvxlayers.backend import backend_of
from cvxlayers.errors import Status
from cvxlayers.host import HostMap, Port, state_size
from cvxlayers.program import Solution

Values = Sequence[Sequence[Any]]  # one list for each argument of a rule, the parameters last


@dataclass(frozen=True)
class Argument:
    """An argument of the form, of the kind of the "inputs" or the "outputs": ``which`` of its entries there are; the others are zero."""

    kind: str
    which: tuple[int, ...]

    def nonzero(self, values: Sequence[Any]) -> tuple[Argument, list[Any]]:
        """Without the entries that are None."""
        if all([value is not None for value in values]):
            return self, list(values)
        there = [(k, value) for k, value in zip(self.which, values, strict=True) if value is not None]
        return Argument(self.kind, tuple([k for k, _ in there])), [value for _, value in there]


@dataclass(frozen=True)
class Rule:
    """A map of the arguments ``given``, the ``size`` parameters and the state (see `host.state_of`) to the argument that is its ``result``.

    Its operands are the entries of the arguments, of the parameters, and the state; the map itself, with nothing given, makes the state.
    """

    given: tuple[Argument, ...]
    result: Argument
    size: int

    @classmethod
    def solution(cls, core: HostMap) -> Rule:
        """The rule that is the map itself."""
        return _whole(len(core.inputs), len(core.outputs))

    @classmethod
    def read(cls, text: str) -> Rule:
        """The rule that `text` wrote down."""
        size, *arguments = json.loads(text)
        *given, result = (Argument(kind, tuple(which)) for kind, which in arguments)
        return cls(tuple(given), result, size)

    @property
    def text(self) -> str:
        """The rule as a string, for graphs that hold nothing else."""
        return json.dumps([self.size, *((argument.kind, argument.which) for argument in (*self.given, self.result))])

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """What the rule is differentiated in: the arguments given, and the parameters."""
        return *self.given, Argument("inputs", tuple(range(self.size)))

    @cached_property
    def order(self) -> int:
        """How often the map is differentiated."""
        return sum([argument.kind == "inputs" for argument in (*self.given, self.result)])

    def split(self, operands: Sequence[Any]) -> tuple[list[Sequence[Any]], Any]:
        """The operands as the values of each argument, and the state; None where it is not there."""
        values, start = [], 0
        for argument in self.given:
            values.append(operands[start : (start := start + len(argument.which))])
        end = start + self.size
        return [*values, operands[start:end]], operands[end] if len(operands) > end else None

    def run(self, core: HostMap, saved: Any, directions: Values) -> list[np.ndarray]:
        """The derivative, on the host, from what the map has saved and the values of the arguments given, arrays of any framework."""
        dense: dict[str, list[Any]] = {"inputs": [], "outputs": []}
        for argument, values in zip(self.given, directions, strict=True):
            column: list[Any] = [None] * len(getattr(core, argument.kind))
            for k, value in zip(argument.which, values, strict=True):
                column[k] = backend_of(value).host(value)
            dense[argument.kind].append(column)
        found = getattr(core, self._verb)(saved, *dense["outputs"], *dense["inputs"], *self._needed)
        return [found[k] for k in self.result.which]

    @cached_property
    def _verb(self) -> str:
        return ("second_" if self.order == 2 else "") + ("vjp" if self.result.kind == "inputs" else "jvp")

    @cached_property
    def _needed(self) -> list[list[bool]]:
        return [[k in self.result.which for k in range(self.size)]] if self.result.kind == "inputs" else []

    def tangents(self, values: Values, moved: Values) -> list[tuple[Rule, Values]]:
        """The rules whose sum is the tangent of the result where the arguments move; None is zero."""
        terms = []
        for j, (argument, tangents) in enumerate(zip(self.arguments, moved, strict=True)):
            argument, there = argument.nonzero(tangents)
            if there:
                given = (*self.given[:j], argument, *self.given[j + 1 :])
                terms.append((_rule(given, self.result, self.size), [*values[:j], there, *values[j + 1 : -1], values[-1]]))
        return terms

    def adjoint(self, j: int, wanted: Iterable[int], values: Values, cotangents: Sequence[Any]) -> tuple[Rule, Values] | None:
        """The rule that pulls cotangents of the result back to the entries ``wanted`` of argument j; None is zero, in and out."""
        argument, there = self.result.nonzero(cotangents)
        result = Argument(self.arguments[j].kind, tuple(wanted))
        if not there or not result.which:
            return None
        rule = _rule((*self.given[:j], *self.given[j + 1 :], argument), result, self.size)
        return rule, [*values[:j], *values[j + 1 : -1], there, values[-1]]

    def batch(self, inputs: Sequence[Port], operands: Sequence[Any]) -> tuple[int, ...]:
        """The batch shape of a call."""
        if self.given:
            return tuple(operands[-1].shape[:-1])
        return next(filter(None, [_lead(p, None, port) for p, port in zip(operands[: self.size], inputs, strict=True)]), ())

    def shapes(self, core: Any, operands: Sequence[Any]) -> list[tuple[int, ...]]:
        """The shapes of the results, the last one that of the state where the rule makes it."""
        if self.result.kind == "inputs":
            params = self.split(operands)[0][-1]
            return [tuple(params[k].shape) for k in self.result.which]
        batch = self.batch(core.inputs, operands)
        state = [] if self.given else [(*batch, state_size(core.conic.pattern))]
        return [*((*batch, *core.outputs[k].shape) for k in self.result.which), *state]

    def mapped(
        self, inputs: Sequence[Port], rows: int, operands: Sequence[Any], axes: Sequence[int | None]
    ) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
        """The operands of one call for all ``rows`` along mapped axes, and what makes its results those of the rows, along axis 0.

        The mapped axis joins the batch, in front. A parameter that all rows share stays shared, unless rows have tangents or cotangents of
        their own for it. ``axes`` are None for operands that are not mapped.
        """
        (values, state), (on_values, on_state) = self.split(operands), self.split(axes)
        leads = [_lead(p, axis, port) for p, axis, port in zip(values[-1], on_values[-1], inputs, strict=True)]
        batch = next(filter(None, leads), ())
        entries = [
            (argument.kind == "inputs", k, x, axis)
            for argument, column, on in zip(self.arguments, values, on_values, strict=True)
            for k, x, axis in zip(argument.which, column, on, strict=True)
        ]
        apart = {k for inward, k, _, axis in entries if inward and (axis is not None or leads[k])}
        apart |= set(self.result.which if self.result.kind == "inputs" else ())
        apart = apart or set(range(self.size))  # the state alone is mapped

        def lift(x: Any, axis: int | None, lead: tuple[int, ...]) -> Any:
            xp = array_namespace(x)
            x = x[None] if axis is None else xp.permute_dims(x, (axis % x.ndim, *(k for k in range(x.ndim) if k != axis % x.ndim)))
            shape = tuple(x.shape[1 + len(lead) :])
            return xp.broadcast_to(xp.reshape(x, (x.shape[0], *(lead or [1] * len(batch)), *shape)), (rows, *batch, *shape))

        def folded(results: Sequence[Any]) -> list[Any]:
            if self.result.kind == "outputs" or not batch:
                return list(results)
            inner = tuple(range(1, 1 + len(batch)))  # what the rows of one mapped call share collects from all of them
            return [r if leads[k] else r.sum(inner) for k, r in zip(self.result.which, results, strict=True)]

        lifted = [x if inward and k not in apart else lift(x, axis, leads[k] if inward else batch) for inward, k, x, axis in entries]
        return [*lifted, *([] if state is None else [lift(state, on_state, batch)])], folded


def flat(values: Values, state: Any) -> list[Any]:
    """The operands that `Rule.split` splits."""
    return [*chain(*values), state]


def check_twice(core: Any) -> None:
    """Raise ValueError where the map has no second derivatives: for frameworks that can raise while they trace, and not later."""
    pattern, nothing = core.conic.pattern, [np.zeros(port.shape) for port in core.inputs]
    failed = Solution(np.zeros(pattern.n), np.zeros(pattern.m), np.zeros(pattern.m), np.array(int(Status.NUMERICAL_ERROR)), np.array(0))
    core.second_jvp(core.restore(nothing, failed), nothing, nothing)


@cache
def _whole(inputs: int, outputs: int) -> Rule:
    return Rule((), Argument("outputs", tuple(range(outputs))), inputs)


@lru_cache(maxsize=1024)
def _rule(given: tuple[Argument, ...], result: Argument, size: int) -> Rule:
    rule = Rule(given, result, size)
    if rule.order > 2:
        raise ValueError("a layer has first and second derivatives; the third was asked for")
    return rule


def _lead(x: Any, axis: int | None, port: Port) -> tuple[int, ...]:
    """The batch axes of a parameter beside its mapped axis."""
    sizes = [size for k, size in enumerate(x.shape) if axis is None or k != axis % x.ndim]
    return tuple(sizes[: len(sizes) - len(port.shape)])
