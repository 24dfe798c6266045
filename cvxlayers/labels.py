"""The maps into and out of a reduced problem, read off the reductions by labels.

Entry k of a vector carries the number k through the chain of reductions, and the number that arrives at a place says which entry it is.
One pass gives a whole map, whatever its size, and no reduction has to be known here except the one that is not linear: the logarithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.canonical import ParameterSpec, VariableSpec, admissible, domain_of, selection, split


@dataclass(frozen=True)
class Reduced:
    """A reduced problem: its matrices, the reductions that led to it, and the way back for duals.

    ``logarithm`` is the reduction that replaces positive variables and parameters by their logarithms, None unless the problem is
    log-log convex. ``recover(y)`` gives the dual value of every constraint, by its id, when the cone program's dual solution is y (m).
    """

    program: Any
    reductions: tuple[Any, ...]
    logarithm: Any
    recover: Callable[[np.ndarray], dict[int, Any]]


def parameter_map(reduced: Reduced, parameters: tuple) -> tuple[tuple[ParameterSpec, ...], sp.csr_matrix]:
    """The specs of the parameters, and L with [reduced parameters; 1] = L [p; 1].

    Raises ValueError for a parameter that enters both through its logarithm and as it is, RuntimeError for a reduced parameter that
    comes from nowhere.
    """
    program, width = reduced.program, sum(_width(p) for p in parameters)
    sources = [_reduced_labels(reduced, parameters, logarithms) for logarithms in (False, True)]
    final, marks = np.zeros(program.total_param_size + 1), np.zeros((2, width), dtype=bool)
    for parameter in program.parameters:
        source = [parameter.id in labels for labels in sources]
        if not any(source):
            raise RuntimeError(f"reduced parameter '{parameter.name()}' comes from no parameter of the problem; please report it")
        labels = np.ravel(np.real(sources[source.index(True)][parameter.id]), order="F")
        final[program.param_id_to_col[parameter.id] + np.arange(labels.size)] = labels
        marks[source.index(True), labels.astype(int) - 1] = True
    specs, start = [], 0
    for p in parameters:
        plain, log = (mark[start : start + _width(p)].any() for mark in marks)
        start += _width(p)
        if plain and log:
            raise ValueError(
                f"parameter '{p.name()}' is used both as an exponent and as a factor; declare a second one and give both the same value"
            )
        specs.append(ParameterSpec(p.name(), p.shape, p.is_complex(), bool(log), domain_of(p)))
    final[-1] = width + 1
    project = sp.block_diag([admissible(tuple(specs)), sp.identity(1)], format="csr")
    return tuple(specs), sp.csr_matrix(selection(final, width + 1) @ project)


def _width(leaf: Any) -> int:
    return leaf.size * (2 if leaf.is_complex() else 1)


def _reduced_labels(reduced: Reduced, parameters: tuple, logarithms: bool) -> dict[int, Any]:
    """Labels 1, 2, ... of the entries of p, carried to the reduced parameters: id -> array.

    A log-log convex problem keeps an exponent as it is and replaces every other parameter by a new one, its logarithm; ``logarithms``
    says which of the two are followed.
    """
    if logarithms and reduced.logarithm is None:
        return {}
    labels, start = {}, 1
    for p in parameters:
        block = np.arange(start, start + p.size, dtype=float).reshape(p.shape)
        labels[p.id] = block + 1j * (block + p.size) if p.is_complex() else block
        start += _width(p)
    for reduction in reduced.reductions:
        if reduction is not reduced.logarithm:
            labels = reduction.param_forward(labels)
        elif logarithms:
            labels = {made.id: labels[p.id] for p, made in reduction.canon_methods._parameters.items()}
    return labels


def variable_map(reduced: Reduced, variables: tuple, duals: dict[int, Any]) -> tuple[tuple[VariableSpec, ...], sp.csr_matrix]:
    """The specs of the outputs, and R with out = R [x; y]; ``duals`` gives the constraint of every dual variable, by its id.

    Raises ValueError for duals that are not available or not linear in y.
    """
    n, m = reduced.program.x.size, reduced.program.constr_size
    primal = _primal_labels(reduced)
    dual_blocks = _dual_blocks(reduced, [duals[v.id] for v in variables if v.id in duals])
    specs, blocks = [], [sp.csr_matrix((0, n + m))]
    for v in variables:
        if v.id in duals:
            block, is_complex = dual_blocks[v.id]
            block = sp.csr_matrix(sp.hstack([sp.csr_matrix((v.size * (2 if is_complex else 1), n)), block]))
        else:
            value, is_complex = primal.get(v.id, np.zeros(v.shape)), v.is_complex()
            block = selection(split(value.toarray() if sp.issparse(value) else value, is_complex), n + m)
        specs.append(VariableSpec(v.name(), v.shape, is_complex, reduced.logarithm is not None and v.id not in duals))
        blocks.append(block)
    return tuple(specs), sp.csr_matrix(sp.vstack(blocks, format="csr"))


def _primal_labels(reduced: Reduced) -> dict[int, Any]:
    """Labels 1 ... n of the entries of x, carried back to the variables of the problem: id -> array."""
    labels = {}
    for key, column in reduced.program.var_id_to_col.items():
        variable = reduced.program.id_to_var[key]
        labels[key] = np.arange(column + 1, column + 1 + variable.size, dtype=float).reshape(variable.shape, order="F")
    for reduction in reversed(reduced.reductions):
        if reduction is not reduced.logarithm:
            labels = reduction.var_forward(labels)
        else:
            labels |= {v.id: labels[made.id] for v, made in reduction.canon_methods._variables.items() if made.id in labels}
    return labels


def _dual_blocks(reduced: Reduced, constraints: list) -> dict[int, tuple[sp.csr_matrix, bool]]:
    """For the dual variables of each constraint the map (entries, m) from y, and whether they are complex: id -> map.

    The way back is a scaled selection: each entry is c y_k. It is read off by sending y = (1, ..., 1) through it, which gives c, and
    y = (1, 2, ..., m), which gives c k; a third y checks the outcome.
    """
    if not constraints:
        return {}
    m, blocks = reduced.program.constr_size, {}
    probes = [np.ones(m), np.arange(1.0, m + 1), np.random.default_rng(0).uniform(1.0, 2.0, m)]
    answers = [reduced.recover(y) for y in probes]
    for constraint in constraints:
        for dual, *values in zip(constraint.dual_variables, *(_dual_values(constraint, answer) for answer in answers), strict=True):
            is_complex = np.iscomplexobj(values[0])
            c, ck, check = (split(value, is_complex) for value in values)
            rows = np.flatnonzero(c)
            columns = np.rint(ck[rows] / c[rows]).astype(np.int64) - 1
            block = sp.csr_matrix((c[rows], (rows, columns)), shape=(c.size, m))
            if not np.allclose(block @ probes[2], check, rtol=1e-9, atol=0):
                raise ValueError(f"the dual of `{constraint}` is not a scaled selection of the program's duals, so it cannot be an output")
            blocks[dual.id] = block, is_complex
    return blocks


def _dual_values(constraint: Any, answer: dict[int, Any]) -> list[np.ndarray]:
    """The values that would be stored in constraint.dual_variables, in their shapes; the constraint itself is left alone."""
    twin = constraint.copy(constraint.args)
    if constraint.id in answer:
        twin.save_dual_value(answer[constraint.id])
    if any(dual._value is None for dual in twin.dual_variables):
        raise ValueError(f"there is no dual value for `{constraint}` ({type(constraint).__name__}), so it cannot be an output; remove it")
    return [np.reshape(dual._value, dual.shape) for dual in twin.dual_variables]
