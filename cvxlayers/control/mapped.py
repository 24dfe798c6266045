"""Mapped calls (vmap) of a controller: their axes come in front of all others, and become rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from cvxlayers.control.problem import Problem, with_leaves


def merged(verbs: Any, arrays: list[Any], ranks: list[int], lead: tuple[int, ...]) -> list[Any]:
    """(*lead, stage, row, ...) -> (stage, rows, ...), and (*lead, row, n) -> (rows, n); what rows share stays shared."""
    if not lead:
        return arrays
    xp, joined, own = verbs.xp, [], arrays[0].shape[-2]
    for a, rank in zip(arrays, ranks, strict=True):
        axis = len(a.shape) - rank + (rank > 2)  # of the rows
        if len(a.shape) == rank and a.shape[axis] == 1 and rank > 2:
            joined.append(a)
            continue
        rest = tuple(a.shape)[axis + 1 :]
        a = xp.broadcast_to(a, (*lead, *a.shape[axis - 1 : axis], own, *rest) if rank > 2 else (*lead, own, *rest))
        a = xp.moveaxis(a, len(lead), 0) if rank > 2 else a
        joined.append(xp.reshape(a, (*(a.shape[:1] if rank > 2 else ()), int(np.prod(lead)) * own, *rest)))
    return joined


def mapped_problem(verbs: Any, problem: Problem, params: Any, leaves: Any, given: Any, lead: tuple[int, ...], batch: int) -> Problem:
    """The problem whose functions see each call of a mapped one by itself, with parameters ``given`` (*lead, ...)."""
    whole = [verbs.xp.broadcast_to(a, (*lead, *leaf.shape)) for a, leaf in zip(given, leaves, strict=True)]

    def each(function: Any) -> Any:
        def called(*states: Any) -> Any:
            front = len(states[0].shape) - 1 - batch - len(lead)

            def one(*arguments: Any) -> Any:
                return function(*arguments[: len(states) - 1], with_leaves(params, list(arguments[len(states) - 1 :])))

            for _ in lead:
                one = verbs.vmap(one, (*[front] * (len(states) - 1), *[0] * len(whole)), front)
            return one(*states[:-1], *whole)

        return called

    return problem.made(each)
