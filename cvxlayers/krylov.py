"""Linear systems that are known by their products alone: A x = b by Golub-Kahan bidiagonalization, kept orthogonal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cvxlayers.backend import Verbs, backend_of

FIRST, GROWTH = 64, 8  # vectors kept at first, and by how much their number grows: memory is written as a whole in every iteration
ENTRIES = 2**24  # of the vectors kept for one row: all of them up to m = 4096, as many as a Jacobian has; the last ones beyond


def least_squares(verbs: Verbs, forward: Callable, backward: Callable, b: Any, limit: int) -> tuple[Any, Any, Any]:
    """The least-norm x (*batch, m) of least |A x - b|; which rows (*batch) have a singular A; which others are not solved.

    A and its transpose are the products ``forward`` and ``backward``, row by row; ``limit`` is that of the iterations. A counts as
    singular where its condition is seen to be beyond 1 / (8 m eps), or b outside of what it reaches.

    Method: LSQR of Paige, Saunders, "LSQR: an algorithm for sparse linear equations and sparse least squares", 1982. Both sequences of
    vectors are orthogonalized again, twice, against those kept: without it the iterations of ill-conditioned systems do not end.
    """
    xp, eps, size = verbs.xp, backend_of(b).resolution(b), b.shape[-1]
    tiny = 8 * size * eps
    zeros = xp.zeros_like(b)
    no = xp.zeros_like(b[..., :1])

    def direction(v: Any, scale: Any, kept: Any) -> tuple[Any, Any]:
        """v without its parts along the rows of ``kept``, as a length and a unit vector; zero where only rounding is left."""
        for _ in range(2):
            along = xp.matmul(kept, v[..., None])
            v = v - xp.matmul(xp.matrix_transpose(kept), along)[..., 0]
        length = _norm(verbs, v)
        there = ~(length <= eps * scale)
        return xp.where(there, length, no), xp.where(there, v / xp.where(length > 0, length, no + 1), zeros)

    def together(*lengths: Any) -> Any:
        return _norm(verbs, xp.concat(list(lengths), axis=-1))

    def remember(kept: Any, v: Any) -> Any:
        return xp.concat([v[..., None, :], kept[..., :-1, :]], axis=-2)

    def body(x: Any, u: Any, v: Any, w: Any, a: Any, numbers: Any, us: Any, vs: Any, going: Any, singular: Any, count: Any) -> tuple:
        rest, left, scale, spread = (numbers[..., k : k + 1] for k in range(4))
        b, u = direction(forward(v) - a * u, scale, us)
        us, scale = remember(us, u), together(scale, a, b)
        a, fresh = direction(backward(u) - b * v, scale, vs)
        # one more rotation makes the bidiagonal matrix triangular: [rest 0; b a] -> [r, s a; 0, -c a]
        r = together(rest, b)
        r = xp.where(r > 0, r, no + 1)
        c, s = rest / r, b / r
        spread = together(spread, _norm(verbs, w / r))
        beyond = tiny * scale * spread > 1
        moved = going & ~beyond
        x = xp.where(moved, x + c * left / r * w, x)
        left = xp.where(moved, s * left, left)
        stuck = a * xp.abs(c) <= tiny * scale  # |A'(A x - b)| against |A x - b|
        solved = left <= eps * (first + scale * _norm(verbs, x))
        singular = singular | (going & (beyond | (stuck & ~solved)))
        numbers = xp.concat([-c * a, left, scale, spread], axis=-1)
        going = moved & ~stuck & (left > 0) & ~solved
        return x, u, fresh, fresh - s * a / r * w, a, numbers, us, remember(vs, fresh), going, singular, count + 1

    first, u = direction(b, no, zeros[..., None, :])
    a, v = direction(backward(u), no, zeros[..., None, :])
    kept = min(size, limit, max(FIRST, ENTRIES // max(size, 1)))
    us, vs, going = u[..., None, :], v[..., None, :], (first > 0) & (a > 0)
    # a and the first column of the bidiagonal matrix, what is left of b, the norms of the matrix and of the inverse of its triangle
    numbers = xp.concat([a, first, no, no], axis=-1)
    state = (zeros, u, v, v, a, numbers, us, vs, going, (first > 0) & (a == 0), 0)
    for sizes, last in _stages(kept, limit):
        *front, us, vs, going, singular, count = state
        us, vs = (_padded(verbs, held, sizes) for held in (us, vs))
        state = (*front, us, vs, going, singular, count)
        state = verbs.loop(lambda *state, last=last: xp.any(state[8]) & (state[10] < last), body, state)
    x, scale, singular = state[0], state[5][..., 2:3], state[9]
    gap, bound = _norm(verbs, b - forward(x)), eps**0.75 * (first + scale * _norm(verbs, x))
    x = xp.where(xp.isfinite(first), x, math.nan)
    return x, singular[..., 0], (~singular & (gap > bound))[..., 0]


def _stages(kept: int, limit: int) -> list[tuple[int, int]]:
    """How many vectors are kept, up to which iteration."""
    sizes = [FIRST * GROWTH**k for k in range(8) if FIRST * GROWTH**k < kept]
    return [*((size, size - 1) for size in sizes), (kept, limit)]


def _padded(verbs: Verbs, held: Any, size: int) -> Any:
    """(*batch, size, m), with zeros behind."""
    more = size - held.shape[-2]
    return held if more <= 0 else verbs.xp.concat([held, *[verbs.xp.zeros_like(held[..., :1, :])] * more], axis=-2)


def _norm(verbs: Verbs, v: Any) -> Any:
    """The norms (*batch, 1), whatever the unit of v."""
    xp = verbs.xp
    most = xp.max(xp.abs(v), axis=-1, keepdims=True)
    unit = xp.where((most > 0) & (most < math.inf), most, xp.ones_like(most))
    return unit * xp.sqrt(xp.sum((v / unit) ** 2, axis=-1, keepdims=True))
