"""LDL' factorization of symmetric quasi-definite matrices of one sparse pattern, LANES matrices at a time.

K = [[E, B'], [B, -F]] with E, F positive definite is quasi-definite: P K P' = L D L' exists for every permutation P, and the sign of
every pivot is known beforehand (Vanderbei, "Symmetric quasidefinite matrices", SIAM J. Optim. 1995). So the permutation is chosen once,
for little fill, by `symbolic.analyze`, and serves every matrix of the pattern. Each lane is a matrix of its own: no operation crosses
lanes, and a NaN or an overflow stays in its lane.

A matrix is the upper triangle in compressed column order with sorted rows and a full diagonal; its numbers are an array (nnz, LANES).
`factor` adds ``shift`` times the known sign to every pivot (static regularization, which also makes a semidefinite E or F definite), and
replaces a pivot whose magnitude falls below ``tiny``, or whose sign is wrong, by ``large`` times its sign (dynamic regularization);
`refine` removes the effect of both, where the matrix is regular.

>>> import numpy as np
>>> from cvxlayers.kernels.rows import solve_rows
>>> from cvxlayers.kernels.symbolic import analyze
>>> symbolic = analyze(np.array([0, 0, 1]), np.array([0, 1, 3]), np.array([1.0, -1.0]))  # [[a, b], [b, c]]
>>> z, error = solve_rows(symbolic, np.array([[2.0, 1.0, -1.0]]), np.array([[3.0, 0.0]]), 1e-8)
>>> z.round(12).tolist()
[[1.0, 1.0]]
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import Compiled, aligned, full, inner, larger, load, select, some, store
from cvxlayers.kernels.symbolic import WIDEST, Symbolic


class Factors(NamedTuple):
    """The numbers of one factorization and the memory to make it: L by panels with D on its diagonal, 1/D (N, LANES), work (N, LANES), and
    some rows of a node times D.
    """

    lower: np.ndarray
    inverse: np.ndarray
    work: np.ndarray
    scaled: np.ndarray

    @staticmethod
    def of(symbolic: Symbolic) -> Factors:
        """Memory for one factorization, used by one thread at a time and as often as it likes."""
        size = len(symbolic.permutation)
        return Factors(aligned(len(symbolic.sources)), aligned(size), aligned(size), aligned(WIDEST**2))


@inner
def factor(symbolic: Compiled, values: Compiled, shift: Compiled, tiny: Compiled, large: Compiled, factors: Compiled) -> None:
    """Factor the matrices ``values`` (nnz, LANES), node by node (left-looking); the regularizations are those of the module."""
    nodes, rows, sources, updates, targets, lower = (
        symbolic.nodes,
        symbolic.rows,
        symbolic.sources,
        symbolic.updates,
        symbolic.targets,
        factors.lower,
    )
    for node in range(len(nodes) - 1):
        first, panel, height = nodes[node, 0], nodes[node, 2], nodes[node, 3]
        width, end = nodes[node + 1, 0] - first, nodes[node + 1, 2]
        for p in range(panel, end):
            if sources[p] < 0:
                store(lower, p, 0.0)
            else:
                store(lower, p, load(values, sources[p]))
        for u in range(symbolic.update_starts[node], symbolic.update_starts[node + 1]):
            other, begin, stop, into = updates[u, 0], updates[u, 1], updates[u, 2], updates[u, 3]
            _update(nodes, rows, targets, lower, factors.scaled, other, begin, stop, into)
        _eliminate(lower, factors.inverse, symbolic.signs, first, width, panel, height, end, shift, tiny, large)


@inner
def _update(
    nodes: Compiled, rows: Compiled, targets: Compiled, lower: Compiled, scaled: Compiled, node: Compiled, begin: Compiled, end: Compiled,
    into: Compiled,
) -> None:  # fmt: skip
    """Subtract L D L' of a node from the panel whose columns are its rows begin ... end - 1: two rows by two columns at a time."""
    start, panel, height = nodes[node, 1], nodes[node, 2], nodes[node, 3]
    width, count = nodes[node + 1, 0] - nodes[node, 0], nodes[node + 1, 1] - start
    pivot, below = width + 1 if height > 1 else 1, panel + height * width
    if width == 1:
        own = load(lower, panel)
        for j in range(begin, end):
            column, quotient = rows[start + j], own * load(lower, below + j)
            for t in range(j, count):
                place = targets[into + t] + column
                store(lower, place, load(lower, place) - load(lower, below + t) * quotient)
        return
    for j in range(begin, end):
        for k in range(width):
            store(scaled, (j - begin) * width + k, load(lower, below + j * width + k) * load(lower, panel + k * pivot))
    for t in range(begin, count, 2):
        more = 1 if t + 1 < count else 0
        one, two = below + t * width, below + (t + more) * width
        here, there = targets[into + t], targets[into + t + more]
        for j in range(begin, min(end, t + 2), 2):
            beside = 1 if j + 1 < end else 0
            left, right = (j - begin) * width, (j - begin + beside) * width
            a, b, c, d = full(0.0), full(0.0), full(0.0), full(0.0)
            for k in range(width):
                u, v, x, y = load(lower, one + k), load(lower, two + k), load(scaled, left + k), load(scaled, right + k)
                a += u * x
                b += u * y
                c += v * x
                d += v * y
            p, q = rows[start + j], rows[start + j + beside]
            store(lower, here + p, load(lower, here + p) - a)
            if beside:
                store(lower, here + q, load(lower, here + q) - b)
            if more:
                store(lower, there + p, load(lower, there + p) - c)
                if beside:
                    store(lower, there + q, load(lower, there + q) - d)


@inner
def _eliminate(
    lower: Compiled, inverse: Compiled, signs: Compiled, first: Compiled, width: Compiled, panel: Compiled, height: Compiled,
    end: Compiled, shift: Compiled, tiny: Compiled, large: Compiled,
) -> None:  # fmt: skip
    """Factor a panel that lacks nothing of what goes before."""
    coupled = height > 1
    for k in range(width):
        line = panel + (k * width if coupled else 0)
        sign, own = signs[first + k], load(lower, line + k)
        if coupled:
            for i in range(k):
                total = load(lower, line + i)
                for m in range(i):
                    total -= load(lower, line + m) * load(lower, panel + i * width + m)
                store(lower, line + i, total)
            for i in range(k):
                total = load(lower, line + i)
                quotient = total * load(inverse, first + i)
                own -= total * quotient
                store(lower, line + i, quotient)
        own += shift * sign
        own = select(own * sign <= tiny, large * sign, own)
        store(lower, line + k, own)
        store(inverse, first + k, 1.0 / own)
    for one in range(panel + height * width, end, 2 * width):
        two = one + width if one + width < end else one
        if coupled:
            for i in range(1, width):
                u, v = load(lower, one + i), load(lower, two + i)
                for m in range(i):
                    factor_ = load(lower, panel + i * width + m)
                    u -= load(lower, one + m) * factor_
                    v -= load(lower, two + m) * factor_
                store(lower, one + i, u)
                store(lower, two + i, v)
        for i in range(width):
            u, v = load(lower, one + i) * load(inverse, first + i), load(lower, two + i) * load(inverse, first + i)
            store(lower, one + i, u)
            store(lower, two + i, v)


@inner
def solve(symbolic: Compiled, factors: Compiled, z: Compiled) -> None:
    """Solve with the factors in place: z (N, LANES) comes as the right-hand side and leaves as the solution."""
    permutation, nodes, rows, lower, inverse, work = (
        symbolic.permutation,
        symbolic.nodes,
        symbolic.rows,
        factors.lower,
        factors.inverse,
        factors.work,
    )
    size, last = len(permutation), len(nodes) - 2
    for k in range(size):
        store(work, k, load(z, permutation[k]))
    for node in range(last + 1):
        first, start, panel, height = nodes[node, 0], nodes[node, 1], nodes[node, 2], nodes[node, 3]
        width, count = nodes[node + 1, 0] - first, nodes[node + 1, 1] - start
        below = panel + height * width
        if width == 1:
            own = load(work, first)
            for t in range(count):
                store(work, rows[start + t], load(work, rows[start + t]) - load(lower, below + t) * own)
            continue
        for k in range(1, width if height > 1 else 0):
            total = load(work, first + k)
            for m in range(k):
                total -= load(lower, panel + k * width + m) * load(work, first + m)
            store(work, first + k, total)
        for k in range(0, width, 2):
            beside = 1 if k + 1 < width else 0
            u, v = load(work, first + k), load(work, first + k + 1) if beside else full(0.0)
            for t in range(count):
                line = below + t * width + k
                store(work, rows[start + t], load(work, rows[start + t]) - load(lower, line) * u - load(lower, line + beside) * v)
    for back in range(last + 1):
        node = last - back
        first, start, panel, height = nodes[node, 0], nodes[node, 1], nodes[node, 2], nodes[node, 3]
        width, count = nodes[node + 1, 0] - first, nodes[node + 1, 1] - start
        below = panel + height * width
        if width == 1:
            own = load(work, first) * load(inverse, first)
            for t in range(count):
                own -= load(lower, below + t) * load(work, rows[start + t])
            store(work, first, own)
            continue
        for k in range(0, width, 2):
            beside = 1 if k + 1 < width else 0
            one, two = first + k, first + k + beside
            u, v = load(work, one) * load(inverse, one), load(work, two) * load(inverse, two)
            for t in range(count):
                line, own = below + t * width + k, load(work, rows[start + t])
                u -= load(lower, line) * own
                v -= load(lower, line + beside) * own
            store(work, one, u)
            store(work, two, v)
        for less in range(1, width if height > 1 else 0):
            k = width - less
            own = load(work, first + k)
            for m in range(k):
                store(work, first + m, load(work, first + m) - load(lower, panel + k * width + m) * own)
    for k in range(size):
        store(z, permutation[k], load(work, k))


@inner
def residual(symbolic: Compiled, values: Compiled, z: Compiled, rhs: Compiled, out: Compiled) -> Compiled:
    """out = rhs - K z with the matrices as given, (N, LANES); returns the largest |out| of every lane, NaN where there is one."""
    indices, indptr = symbolic.indices, symbolic.indptr
    size = len(indptr) - 1
    for j in range(size):
        store(out, j, load(rhs, j))
    for j in range(size):
        last = indptr[j + 1] - 1
        own, total = load(z, j), load(out, j) - load(values, last) * load(z, j)
        for p in range(indptr[j], last):
            i, value = indices[p], load(values, p)
            store(out, i, load(out, i) - value * own)
            total = total - value * load(z, i)
        store(out, j, total)
    return norm(out)


@inner
def norm(v: Compiled) -> Compiled:
    """The largest magnitude of every lane, NaN where there is one."""
    largest = full(0.0)
    for j in range(len(v)):
        size = abs(load(v, j))
        largest = select(size <= largest, largest, size + 0.0 * largest)
    return largest


@inner
def refine(
    symbolic: Compiled, values: Compiled, factors: Compiled, rhs: Compiled, z: Compiled, left: Compiled, step: Compiled, most: Compiled,
    goal: Compiled, harmless: Compiled,
) -> Compiled:  # fmt: skip
    """Solve K z = rhs by the factors and at most ``most`` steps of iterative refinement; returns the largest |rhs - K z| of every lane.

    A lane goes on while its residual exceeds ``goal`` times its right-hand side and ``harmless``, and halves in every step, and keeps its
    best z; where no z is finite it is zero. ``left`` and ``step`` are (N, LANES) to work in; ``left`` leaves as rhs - K z of the last step
    tried.
    """
    size = len(symbolic.permutation)
    for j in range(size):
        store(z, j, load(rhs, j))
    solve(symbolic, factors, z)
    error, enough = residual(symbolic, values, z, rhs, left), larger(goal * norm(rhs), harmless)
    going = error > enough
    for _ in range(most):
        if not some(going):
            break
        for j in range(size):
            store(step, j, load(left, j))
        solve(symbolic, factors, step)
        for j in range(size):
            store(step, j, load(z, j) + load(step, j))
        after = residual(symbolic, values, step, rhs, left)
        better = going & (after < error)
        for j in range(size):
            store(z, j, select(better, load(step, j), load(z, j)))
        going = going & (after < 0.5 * error) & (after > enough)
        error = select(better, after, error)
    return error
