"""The optimality conditions of a linear-quadratic problem as a symmetric linear system, solved by Riccati recursion.

The multipliers lambda_0 of x_0 = x0 and lambda_{t+1} of x_{t+1} = F_t tau_t + f_t are the costates, tau_t = [x_t; u_t]:

    C_t tau_t + F_t' lambda_{t+1} - [lambda_t; 0] = -c_t,      -x_0 = -x0,      F_t tau_t - x_{t+1} = -f_t.

Arrays have the axes (..., stage, row, ...): C (T or 1, B or 1, s, s), F (T-1 or 1, B or 1, n, s), tau (T, B, s), lambda (T, B, n), where an
axis of size one is for what all stages or rows share and is never expanded; axes in front are those of mapped calls. C counts as
(C + C')/2. One text for every framework, and the compiled passes of `kernels.riccati` where values are in the host's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvxlayers.backend import Symmetric, backend_of
from cvxlayers.kernels import riccati as kernel


def factor(C: Any, F: Any, stages: int) -> tuple[Any, Any]:
    """Factors (T, B or 1, n^2 + mn + m^2), all of V_t, K_t, W_t, and where every reduced Hessian is positive definite (B or 1,)."""
    verbs = backend_of(C).verbs
    known = _known(verbs, (C, F))
    if known:
        lead = np.broadcast_shapes(C.shape[:-4], F.shape[:-4])
        C_rows, F_rows = _rows_behind(known, [4, 4], lead)
        factors, convex = kernel.factor(C_rows, F_rows, stages)
        factors, convex = (_as(verbs, a, C) for a in _rows_before([factors, convex], [3, 1], lead))
        return factors, convex
    return _factor(verbs, C, F, stages)


def _solve(held: Sequence[Any], p: Sequence[Any], b: Sequence[Any]) -> tuple[Any, Any]:
    verbs, arrays = backend_of(b[0]).verbs, (p[1], held[0], *b)
    known = _known(verbs, arrays)
    if known:
        lead = np.broadcast_shapes(*(a.shape[:-rank] for a, rank in zip(arrays, (4, 3, 3, 3), strict=True)))
        F, factors, right, shift = _rows_behind(known, [4, 3, 3, 3], lead)
        tau, multipliers = _rows_before(kernel.solve(F, factors, right, shift), [3, 3], lead)
        return _as(verbs, tau, b[0]), _as(verbs, multipliers, b[0])
    return _passes(verbs, *arrays)


def _known(verbs: Any, arrays: Sequence[Any]) -> list[np.ndarray]:
    """The arrays for compiled passes, or none of them where some are elsewhere."""
    known = [a for a in map(verbs.known, arrays) if a is not None and a.dtype in (np.float32, np.float64)]
    return known if len(known) == len(arrays) else []


def _as(verbs: Any, array: np.ndarray, like: Any) -> Any:
    return verbs.asarray(array, like) if array.dtype != np.bool_ else verbs.asarray(array, like) > 0


def _rows_behind(arrays: Sequence[np.ndarray], ranks: Sequence[int], lead: tuple[int, ...]) -> list[np.ndarray]:
    """(*lead, stage, row, ...) -> (stage, rows, ...): mapped axes join the rows."""
    if not lead:
        return list(arrays)
    width = max(a.shape[1 - rank] for a, rank in zip(arrays, ranks, strict=True))
    joined = []
    for a, rank in zip(arrays, ranks, strict=True):
        if a.ndim > rank:
            a = np.broadcast_to(a, (*lead, a.shape[-rank], width, *a.shape[2 - rank :]))
            a = np.moveaxis(a, -rank, 0).reshape(a.shape[-rank], -1, *a.shape[2 - rank :])
        elif a.shape[1] > 1:
            a = np.tile(a, (1, int(np.prod(lead)), *[1] * (rank - 2)))
        joined.append(a)
    return joined


def _rows_before(arrays: Sequence[np.ndarray], ranks: Sequence[int], lead: tuple[int, ...]) -> list[np.ndarray]:
    """The way back; an array of rank one has rows alone."""
    if not lead:
        return list(arrays)
    apart = []
    for a, rank in zip(arrays, ranks, strict=True):
        front = min(rank - 1, 1)
        size = a.shape[front]
        rows = (*lead, size // int(np.prod(lead))) if size > 1 else (*[1] * len(lead), 1)
        a = a.reshape(*a.shape[:front], *rows, *a.shape[front + 1 :])
        apart.append(np.moveaxis(a, 0, len(lead)) if front else a)
    return apart


# The same in the words that all frameworks share.


def times(M: Any, v: Any) -> Any:
    """M v for M (..., T or 1, B or 1, r, k) and v (..., T, B, k); one matrix product where rows or stages share M."""
    xp = backend_of(v).verbs.xp
    if M.shape[-3] > 1 and M.shape[-4] == 1 and v.shape[-3] > 1:  # stages share it: one product for all of a row's
        product = xp.matmul(xp.moveaxis(v, -3, -2), xp.matrix_transpose(M[..., 0, :, :, :]))
        return xp.moveaxis(product, -2, -3)
    if M.shape[-3] > 1:
        return xp.matmul(M, v[..., None])[..., 0]
    if M.shape[-4] > 1 or v.shape[-3] == 1:
        return xp.matmul(v, xp.matrix_transpose(M[..., 0, :, :]))
    flat = xp.reshape(v, (*v.shape[:-3], v.shape[-3] * v.shape[-2], v.shape[-1]))
    product = xp.matmul(flat, xp.matrix_transpose(M[..., 0, 0, :, :]))
    return xp.reshape(product, (*product.shape[:-2], *v.shape[-3:-1], M.shape[-2]))


def _outer(pairs: Sequence[tuple[Any, Any]], like: Any) -> Any:
    """The cotangent of M in sum of <a, M b> over pairs (a, b), in the shape of M: sums over what stages, rows or mapped calls share."""
    verbs = backend_of(like).verbs
    xp = verbs.xp
    if like.shape[-3] > 1:
        left, right = (xp.stack(vectors, axis=-1) for vectors in zip(*pairs, strict=True))
        found = xp.matmul(left, xp.matrix_transpose(right))
    else:
        left, right = (xp.concat(vectors, axis=-2) for vectors in zip(*pairs, strict=True))  # all rows, pair after pair
        if like.shape[-4] > 1 or left.shape[-3] == 1:
            found = xp.matmul(xp.matrix_transpose(left), right)[..., None, :, :]
        else:
            left, right = (xp.reshape(v, (*v.shape[:-3], v.shape[-3] * v.shape[-2], v.shape[-1])) for v in (left, right))
            found = xp.matmul(xp.matrix_transpose(left), right)[..., None, None, :, :]
    extra = len(found.shape) - len(like.shape)
    found = xp.sum(found, axis=tuple(range(extra))) if extra else found
    kept = tuple(k for k, size in enumerate(like.shape) if size == 1 and found.shape[k] > 1)
    return xp.sum(found, axis=kept, keepdims=True) if kept else found


def _product(p: Sequence[Any], x: Sequence[Any]) -> tuple[Any, Any]:
    (C, F), (tau, multipliers) = p, x
    xp = backend_of(tau).verbs.xp
    first = (times(C, tau) + times(xp.matrix_transpose(C), tau)) / 2
    if tau.shape[-3] == 1:
        return first, xp.zeros_like(multipliers)
    back = times(xp.matrix_transpose(F), multipliers[..., 1:, :, :])
    first = first + xp.concat([back, xp.zeros_like(tau[..., :1, :, :])], axis=-3)
    return first, xp.concat([xp.zeros_like(multipliers[..., :1, :, :]), times(F, tau[..., :-1, :, :])], axis=-3)


def _rest(x: Sequence[Any]) -> tuple[Any, Any]:
    tau, multipliers = x
    xp, n = backend_of(tau).verbs.xp, multipliers.shape[-1]
    return xp.concat([-multipliers, xp.zeros_like(tau[..., n:])], axis=-1), -tau[..., :n]


def _pull(p: Sequence[Any], x: Sequence[Any], d: Sequence[Any]) -> tuple[Any, Any]:
    (C, F), (tau, multipliers), (moved, costates) = p, x, d
    xp = backend_of(tau).verbs.xp
    C_bar = _outer([(moved / 2, tau), (tau / 2, moved)], C)
    if tau.shape[-3] == 1:
        return C_bar, xp.zeros_like(F)
    before = [v[..., :-1, :, :] for v in (moved, tau)]
    after = [v[..., 1:, :, :] for v in (multipliers, costates)]
    return C_bar, _outer(list(zip(after, before, strict=True)), F)


def _stages_first(xp: Any, a: Any, rank: int, stages: int) -> Any:
    a = xp.moveaxis(a, -rank, 0)
    return a if a.shape[0] == stages else xp.broadcast_to(a, (stages, *a.shape[1:]))


def _padded(xp: Any, F: Any, stages: int) -> Any:
    """F by stages with a zero for the last, which has no successor."""
    if stages == 1:
        return xp.zeros_like(xp.moveaxis(F[..., :1, :, :, :], -4, 0))
    F = _stages_first(xp, F, 4, stages - 1)
    return xp.concat([F, xp.zeros_like(F[:1])], axis=0)


def _factor(verbs: Any, C: Any, F: Any, stages: int) -> tuple[Any, Any]:
    xp, n = verbs.xp, F.shape[-2]
    C = _stages_first(xp, (C + xp.matrix_transpose(C)) / 2, 4, stages)
    F = _padded(xp, F, stages)
    nothing = C[0] * 0 + xp.matmul(xp.matrix_transpose(F[0]), F[0]) * 0  # in the shape of what is carried, whoever is batched or mapped

    def step(carry: tuple[Any, Any], stage: tuple[Any, Any]) -> tuple[tuple[Any, Any], Any]:
        (V, convex), (C, F) = carry, stage
        Q = C + xp.matmul(xp.matrix_transpose(F), xp.matmul(V, F))
        W, positive = _inverse(verbs, Q[..., n:, n:])
        K = -xp.matmul(W, Q[..., n:, :n])
        V = Q[..., :n, :n] + xp.matmul(Q[..., :n, n:], K)
        convex = xp.minimum(convex, positive)
        V, K, W = (xp.where(convex[..., None, None] > 0, part, xp.zeros_like(part)) for part in ((V + xp.matrix_transpose(V)) / 2, K, W))
        flat = [xp.reshape(part, (*part.shape[:-2], part.shape[-2] * part.shape[-1])) for part in (V, K, W)]
        return (V, convex), (xp.concat(flat, axis=-1),)

    carry = (nothing[..., :n, :n], nothing[..., 0, 0] + 1)
    (_, convex), (factors,) = verbs.scan(step, carry, (xp.flip(C, axis=0), xp.flip(F, axis=0)))
    return xp.moveaxis(xp.flip(factors, axis=0), 0, -3), convex > 0


def _inverse(verbs: Any, A: Any) -> tuple[Any, Any]:
    """The inverse of a symmetric positive definite matrix by sweeps, and 1 where it is that, else 0; other pivots count as one."""
    xp, size, positive = verbs.xp, A.shape[-1], None
    diagonal = [abs(A[..., k, k]) for k in range(size)]
    tiny = 16 * backend_of(A).resolution(A)
    for k in range(size):
        pivot = A[..., k, k]
        fine = pivot > tiny * diagonal[k]
        positive = fine if positive is None else positive & fine
        pivot = xp.where(fine, pivot, xp.ones_like(pivot))[..., None, None]
        e = verbs.asarray(np.eye(size)[:, k : k + 1], A)
        column = A[..., :, k : k + 1] * (1 - e) - e
        A = A * (1 - e) * (1 - xp.matrix_transpose(e)) - column * xp.matrix_transpose(column) / pivot
    return -A, xp.where(positive, xp.ones_like(A[..., 0, 0]), xp.zeros_like(A[..., 0, 0]))


def _passes(verbs: Any, F: Any, factors: Any, b: Any, shift: Any) -> tuple[Any, Any]:
    xp, stages, n, s = verbs.xp, b.shape[-3], F.shape[-2], F.shape[-1]
    m = s - n

    def matrix(first: int, rows: int, columns: int) -> Any:
        part = factors[..., first : first + rows * columns]
        return xp.reshape(part, (*part.shape[:-1], rows, columns))

    V, K, W = matrix(0, n, n), matrix(n * n, m, n), matrix(n * s, m, m)
    q = -b
    if stages > 1:
        ahead = times(xp.matrix_transpose(F), -times(V[..., 1:, :, :, :], shift[..., 1:, :, :]))
        q = q + xp.concat([ahead, xp.zeros_like(ahead[..., :1, :, :])], axis=-3)
    F_padded, K_staged, q_staged = _padded(xp, F, stages), _stages_first(xp, K, 4, stages), _stages_first(xp, q, 3, stages)

    def back(v: Any, stage: tuple[Any, Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        F, K, q = stage
        q = q + _row_times(xp, xp.matrix_transpose(F), v)
        v = q[..., :n] + _row_times(xp, xp.matrix_transpose(K), q[..., n:])
        return v, (v, q[..., n:])

    nothing = (q_staged[0] + _row_times(xp, xp.matrix_transpose(F_padded[0]), xp.moveaxis(shift, -3, 0)[0]))[..., :n] * 0
    _, (v, q_u) = verbs.scan(back, nothing, tuple(xp.flip(a, axis=0) for a in (F_padded, K_staged, q_staged)))
    v, q_u = xp.flip(v, axis=0), xp.flip(q_u, axis=0)
    k = xp.moveaxis(-times(W, xp.moveaxis(q_u, 0, -3)), -3, 0)

    def ahead_of(x: Any, stage: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
        F, K, k, f = stage
        tau = xp.concat([x, k + _row_times(xp, K, x)], axis=-1)
        return f + _row_times(xp, F, tau), (tau,)

    f = -xp.moveaxis(shift, -3, 0)
    f_padded = xp.concat([f[1:], xp.zeros_like(f[:1])], axis=0)
    _, (tau,) = verbs.scan(ahead_of, nothing + f[0], (F_padded, K_staged, k, f_padded))
    tau = xp.moveaxis(tau, 0, -3)
    return tau, times(V, tau[..., :n]) + xp.moveaxis(v, 0, -3)


def _row_times(xp: Any, M: Any, v: Any) -> Any:
    """M v for M (..., B or 1, r, k) and v (..., B, k)."""
    if M.shape[-3] > 1:
        return xp.matmul(M, v[..., None])[..., 0]
    return xp.matmul(v, xp.matrix_transpose(M[..., 0, :, :]))


SYSTEM = Symmetric(_solve, _product, _rest, _pull, ranks=((3,), (4, 4), (3, 3)))
"""The system for (factors,), (C, F), (-c, shift) -> (tau, lambda), shift = -[x0; f_0; ...; f_{T-2}]."""
