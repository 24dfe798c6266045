"""In which order, by which pieces and from which entries the LDL' factors of one sparse pattern are made, found once for all numbers.

Columns of L that stand together and have the same entries below are one node, factored as a dense panel (supernodes: Ng and Peyton, "Block
sparse Cholesky algorithms on advanced uniprocessor computers", 1993). Of two kinds of columns that is true: a column and its parent in the
elimination tree, which lack nothing but the entry that couples them, and siblings, between which there is none: the assets of a
portfolio with factors meet the same factors, and not each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.lanes import Compiled, compiled
from cvxlayers.kernels.ordering import minimum_degree, multiple_minimum_degree

WIDEST = 16
"""The most columns of a node: what it takes from another panel stays in the first cache."""
RELAXED = 0.2
"""The share of a node's entries that may be zero for the sake of fewer and wider nodes."""


class Symbolic(NamedTuple):
    """What the pattern of K determines; N is its size, position k of the elimination holds row and column ``permutation[k]``.

    ``indices, indptr``: the pattern itself. ``signs`` (N,) of the pivots and ``counts`` (N,), the entries of L below each, in the order of
    elimination. ``nodes`` (nodes + 1, 4): of each its first column; where its ``rows`` begin, the rows of L below it; where its panel
    begins in the numbers of L; and the panel's height above those rows: the width where the columns are coupled, 1, for the pivots alone,
    where they are not. A panel lies row by row. ``sources`` (panels,) names the entry of the pattern that each number begins as, -1 where
    there is none. ``updates`` (., 4) lists for every node, from ``update_starts`` on, what goes before: a node, the first and last of its
    rows that are columns here, and what to add to the number of a row, from the first on, to find in ``targets`` where the row's line
    begins in the panel here, less the first column.
    """

    indices: np.ndarray
    indptr: np.ndarray
    permutation: np.ndarray
    signs: np.ndarray
    counts: np.ndarray
    nodes: np.ndarray
    rows: np.ndarray
    sources: np.ndarray
    update_starts: np.ndarray
    updates: np.ndarray
    targets: np.ndarray


def analyze(indices: np.ndarray, indptr: np.ndarray, signs: np.ndarray) -> Symbolic:
    """Choose the order of elimination and find the pattern of L: upper triangle by columns, signs (N,) of the pivots.

    Raises ValueError where the pattern has unsorted rows, entries below the diagonal or a gap on the diagonal.
    """
    indices, indptr, size = np.asarray(indices, dtype=np.intp), np.asarray(indptr, dtype=np.intp), len(indptr) - 1
    columns = np.repeat(np.arange(size), np.diff(indptr))
    last = indices[indptr[1:] - 1] if (np.diff(indptr) > 0).all() else np.full(size, -1)
    if (indices > columns).any() or (np.diff(columns * (size + 1) + indices) <= 0).any() or (last != np.arange(size)).any():
        raise ValueError("the pattern is not an upper triangle by columns with sorted rows and a full diagonal")
    signs = np.asarray(signs, dtype=float)
    permutation, lower = minimum_degree(indices, indptr, signs)
    starts, rows = lower.indptr.astype(np.intp), lower.indices.astype(np.intp)
    other = multiple_minimum_degree(indices, indptr, signs)
    if other is not None:
        matrix, second, scratch = (
            _permuted(indices, columns, other),
            np.zeros(size + 1, dtype=np.intp),
            np.full((3, size), -1, dtype=np.intp),
        )
        _count_factor(*matrix, second, scratch)
        if _work(second) < _work(starts):
            permutation, starts, rows = other, second, np.empty(second[size], dtype=np.intp)
            _fill_factor(*matrix, starts, rows, scratch)
    return _assembled(indices, indptr, columns, signs, permutation, starts, rows)


def _permuted(indices: np.ndarray, columns: np.ndarray, permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strict upper triangle of the permuted matrix: where its columns start, and their rows."""
    size = len(permutation)
    position = np.empty(size, dtype=np.intp)
    position[permutation] = np.arange(size)
    off = indices != columns
    one, two = position[indices[off]], position[columns[off]]
    low, high = np.minimum(one, two), np.maximum(one, two)
    order = np.lexsort((low, high))
    return np.searchsorted(high[order], np.arange(size + 1)).astype(np.intp), low[order]


def _work(column_starts: np.ndarray) -> float:
    """Multiplications to factor and to solve."""
    count = np.diff(column_starts).astype(float)
    return float((count * (count + 3)).sum())


@compiled
def _count_factor(starts: Compiled, rows: Compiled, column_starts: Compiled, scratch: Compiled) -> None:
    """Where the columns of L begin: row k is what the elimination tree reaches from the entries of column k."""
    size = len(starts) - 1
    for k in range(size):
        scratch[1, k] = k
        for p in range(starts[k], starts[k + 1]):
            i = rows[p]
            while scratch[1, i] != k:
                if scratch[0, i] == -1:
                    scratch[0, i] = k
                column_starts[i + 1] += 1
                scratch[1, i] = k
                i = scratch[0, i]
    for k in range(size):
        column_starts[k + 1] += column_starts[k]


@compiled
def _fill_factor(starts: Compiled, rows: Compiled, column_starts: Compiled, column_rows: Compiled, scratch: Compiled) -> None:
    """The rows of L by columns, ascending; ``scratch`` holds the elimination tree."""
    size = len(starts) - 1
    for k in range(size):
        scratch[1, k] = -1
        scratch[2, k] = column_starts[k]
    for k in range(size):
        scratch[1, k] = k
        for p in range(starts[k], starts[k + 1]):
            i = rows[p]
            while scratch[1, i] != k:
                column_rows[scratch[2, i]] = k
                scratch[2, i] += 1
                scratch[1, i] = k
                i = scratch[0, i]


def _assembled(
    indices: np.ndarray, indptr: np.ndarray, columns: np.ndarray, signs: np.ndarray, permutation: np.ndarray, starts: np.ndarray,
    below: np.ndarray,
) -> Symbolic:  # fmt: skip
    """The nodes of L, whose columns ``starts`` and rows ``below`` come in the order of a permutation that changes none of L's entries."""
    size, counts = len(permutation), np.diff(starts)
    parent = np.full(size, -1)
    some = np.flatnonzero(counts)
    parent[some] = below[starts[some]]
    groups = _ordered(parent, counts)
    order = np.fromiter((j for group, _ in groups for j in group), dtype=np.intp, count=size)
    position = np.empty(size, dtype=np.intp)
    position[order] = np.arange(size)
    permutation = permutation[order]

    pieces, end = [], 0
    for group, coupled in groups:
        begin, end = end, end + len(group)
        pieces += ((first, min(first + WIDEST, end), end, coupled, group[-1]) for first in range(begin, end, WIDEST))
    first, after, end, coupled, last = np.array(pieces, dtype=np.intp).reshape(-1, 5).T
    width, inside, outside = after - first, np.where(coupled, end - after, 0), counts[last]
    count, height, number = inside + outside, np.where(coupled, width, 1), np.arange(len(pieces))
    nodes = np.zeros((len(pieces) + 1, 4), dtype=np.intp)
    nodes[:-1, 0], nodes[-1, 0], nodes[:-1, 3] = first, size, height
    nodes[1:, 1], nodes[1:, 2] = np.cumsum(count), np.cumsum((height + count) * width)
    own, others = _runs(after, inside), position[below[_runs(starts[last], outside)]]
    keys = np.sort(np.concatenate([np.repeat(number, inside) * size + own, np.repeat(number, outside) * size + others]))
    owner, node_of = np.repeat(number, count), np.repeat(number, width)
    rows = keys - owner * size

    def line(node: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Where the line of a row begins in the panel of a node."""
        first, start, panel, height = nodes[node].T
        own = np.where(height > 1, row - first, 0)
        return panel + width[node] * np.where(node_of[row] == node, own, height + np.searchsorted(keys, node * size + row) - start)

    # Where the entries of K begin: the column that is eliminated first has them.
    place = np.empty(size, dtype=np.intp)
    place[permutation] = np.arange(size)
    low, high = np.minimum(place[indices], place[columns]), np.maximum(place[indices], place[columns])
    sources = np.full(nodes[-1, 2], -1, dtype=np.intp)
    sources[line(node_of[low], high) + low - nodes[node_of[low], 0]] = np.arange(len(indices))

    # A node updates those that its rows are columns of.
    target = node_of[rows]
    begins = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(target, prepend=-1) != 0))
    ends = np.append(begins[1:], len(rows))
    by_target = np.argsort(target[begins], kind="stable")
    begins, ends = begins[by_target], ends[by_target]
    source, target = owner[begins], target[begins]
    further = nodes[source + 1, 1] - begins
    into = np.repeat(target, further)
    targets = line(into, rows[_runs(begins, further)]) - nodes[into, 0]
    start = nodes[source, 1]
    updates = np.stack([source, begins - start, ends - start, np.cumsum(further) - further - begins + start], axis=1)
    update_starts = np.searchsorted(target, np.arange(len(nodes))).astype(np.intp)
    signs = np.ascontiguousarray(signs[permutation])
    return Symbolic(indices, indptr, permutation, signs, counts[order], nodes, rows, sources, update_starts, updates, targets)


def _runs(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """begins[0], begins[0] + 1, ... lengths[0] numbers, then those of the next."""
    return np.repeat(begins - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def _ordered(parent: np.ndarray, counts: np.ndarray) -> list[tuple[list[int], bool]]:
    """The columns of every node and whether they are coupled, in an order of elimination that adds no entry.

    A column that has one entry more than its parent has that parent and all the parent's entries.
    """
    size = len(parent)
    lacking = np.where(parent >= 0, counts[parent] + 1 - counts, -1)  # entries of the parent that a column does not have
    heads = np.bincount(parent[lacking == 0], minlength=size) > 0
    siblings = (lacking == 0) & ~heads
    siblings &= np.bincount(parent[siblings], minlength=size)[parent] > 1
    node_of, members, zeros = np.full(size, -1), [], []
    groups: dict[int, int] = {}
    ready: list[list[int]] = [[] for _ in range(size)]  # the nodes below a column that it may continue
    for j, (above, sibling) in enumerate(zip(parent.tolist(), siblings.tolist(), strict=True)):
        if sibling:
            node = groups.setdefault(above, len(members))
            if node == len(members):
                members.append([])
                zeros.append(-1)
        else:
            node, best, entries = len(members), 0, counts[j] + 1
            for other in ready[j]:
                width = len(members[other])
                added = zeros[other] + width * lacking[members[other][-1]]
                if added <= RELAXED * width * entries and (node == len(members) or added < best):
                    node, best = other, added
            if node == len(members):
                members.append([])
                zeros.append(0)
            else:
                zeros[node] = best
            if above >= 0:
                ready[above].append(node)
        members[node].append(j)
        node_of[j] = node
    children: list[list[int]] = [[] for _ in members]
    stack = []
    for node, group in enumerate(members):
        above = parent[group[-1]]
        (children[node_of[above]] if above >= 0 else stack).append(node)
    found = []
    while stack:  # from the last to be eliminated down
        node = stack.pop()
        found.append(node)
        stack.extend(children[node])
    return [(members[node], zeros[node] >= 0) for node in reversed(found)]
