"""The implicit function theorem for any residual and any solver: g(theta, u(theta)) = 0 makes u a differentiable function.

    D u(theta) = -D_u g(theta, u)^{-1} D_theta g(theta, u)

The solver only gives the root, as a constant. Two steps of Newton's method with its Jacobian held fixed, written around that root, are
zero in value and move with theta as the root does up to the second derivative; the framework differentiates them in any of its modes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from cvxlayers.backend import NUMPY, Verbs, backend_of, verbatim
from cvxlayers.errors import GradientWarning, InaccurateWarning, warn
from cvxlayers.krylov import least_squares


def implicit_function(
    residual: Callable[[Any, Any], Any],
    solve: Callable[[Any], Any],
    *,
    like: Callable[[Any], Any] | None = None,
    method: str = "dense",
    max_iter: int | None = None,
) -> Callable[[Any], Any]:
    """Make a differentiable function theta -> u of a solver ``u = solve(theta)`` for ``residual(theta, u) = 0``.

    theta is an array of PyTorch, JAX or TensorFlow, or tuples, lists and dicts of arrays. u is (*batch, m) and so is the residual, of
    which every row depends on the same row of u alone. The residual is written in the framework, and what it reaches by closure (the
    weights of a network, say) has its gradient too; in what way ``solve`` finds the root does not matter. A solver for NumPy arrays, from
    SciPy for example, is announced by ``like``, a function of theta that returns any array of the framework with the shape and dtype of
    u: the solver is then given theta in NumPy arrays, and may be called in compiled code.

    Derivatives go to second order, in reverse and forward mode, under the framework's transforms; a third is a ValueError. Mapped rows
    (vmap) are solved one by one. ``method="dense"`` forms the Jacobian D_u g and decomposes it; ``"krylov"`` only multiplies by it, in at
    most ``max_iter`` iterations (4 m) for each direction, and keeps up to m vectors of every row. Rows whose Jacobian is singular get the
    derivative by its pseudo-inverse and a GradientWarning that names them ("krylov" sees it where a direction cannot be solved); rows that
    one Newton step would still move, or whose derivative "krylov" has not found within ``max_iter``, get an InaccurateWarning. Raises
    ValueError for an unknown method and for a residual that is not of the shape of u.

    >>> import torch
    >>> root = implicit_function(lambda a, u: u * u - a, lambda a: a**0.5, like=lambda a: a)
    >>> a = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)
    >>> u = root(a[:, None])
    >>> u.sum().backward()
    >>> u[:, 0].tolist(), a.grad.tolist()
    ([2.0, 3.0], [0.25, 0.16666666666666666])
    """

    if method not in ("dense", "krylov"):
        raise ValueError(f"got the method {method!r}; wanted 'dense' or 'krylov'")
    if max_iter is not None and (not isinstance(max_iter, Integral) or max_iter < 1):
        raise ValueError(f"got max_iter={max_iter!r}; wanted a positive integer, or None for four times the length of u")
    limit = lambda u: 4 * u.shape[-1] if max_iter is None else int(max_iter)  # noqa: E731

    @verbatim
    def function(theta: Any) -> Any:
        leaves, rebuild = _flatten(theta)
        at = [k for k, leaf in enumerate(leaves) if backend_of(leaf) is not NUMPY and "float" in str(leaf.dtype)]
        if not at:
            return solve(theta)
        verbs = backend_of(leaves[at[0]]).verbs
        equation, solver = verbs.users(residual), verbs.users(solve) if like is None else solve
        xp, arrays = verbs.xp, [verbs.asarray(leaves[k], leaves[k]) for k in at]

        def filled(arrays: Any) -> Any:
            given = dict(zip(at, arrays, strict=True))
            return rebuild([given.get(k, leaf) for k, leaf in enumerate(leaves)])

        def find(*arrays: Any) -> tuple[Any, ...]:
            u = _solution(verbs, solver, like, filled, arrays)
            g = lambda u: equation(filled(arrays), u)  # noqa: E731
            if method == "dense":
                return u, _inverse(verbs, g, u)
            _check(u, g(u))
            _report(verbs, least_squares(verbs, *_products(verbs, g, u), g(u), limit(u))[0], u, None)
            return (u,)

        def solved(transposed: bool) -> Callable:
            """J^{-1} b, or J'^{-1} b, at the root: the arrays, the root, b."""

            def run(*given: Any) -> Any:
                *at, u, b = given
                forward, backward = _products(verbs, lambda u: equation(filled(at), u), u)
                first, second = (backward, forward) if transposed else (forward, backward)
                x, singular, unsolved = least_squares(verbs, first, second, b, limit(b))
                verbs.host(_tell, None, singular, singular & ~singular, unsolved)
                return (x,)

            mapped = _row_by_row(verbs, run, (*ranks, len(root.shape), len(root.shape)))
            return lambda *given: mapped(*given)[0]

        def product(*given: Any) -> Any:
            *at, u, x = given
            return _products(verbs, lambda u: equation(filled(at), u), u)[0](x)

        ranks = tuple(len(a.shape) for a in arrays)
        root, *inverse = verbs.constant(_row_by_row(verbs, find, ranks), ranks, *arrays)
        u, held = root, [verbs.stop(a) for a in arrays]
        for _ in range(2):
            value = equation(filled(arrays), u)
            gap = value - verbs.stop(value)
            if method == "dense":
                u = u - xp.matmul(inverse[0], gap[..., None])[..., 0]
            else:
                outer = (*ranks, len(root.shape), len(root.shape))
                u = u - verbs.linear(solved(False), solved(True), product, outer, *held, root, gap)
        return _up_to(2, verbs, u)

    return function


def _up_to(order: int, verbs: Verbs, u: Any) -> Any:
    """u, whose derivatives beyond that order are refused: each rule of an identity holds one of the next lower order, times zero."""
    xp = verbs.xp

    def move(u: Any, d: Any, tracked: bool) -> Any:
        if order == 0:
            raise ValueError("implicit_function has first and second derivatives; the third was asked for")
        return d + 0 * _up_to(order - 1, verbs, xp.where(xp.isfinite(u), u, xp.zeros_like(u))) if tracked else d

    return verbs.projection(lambda u: u, move, u)


def _solution(verbs: Verbs, solve: Callable, like: Callable | None, filled: Callable, arrays: Any) -> Any:
    if like is None:
        u = solve(filled(arrays))
        if backend_of(u).verbs is not verbs:
            raise ValueError(
                f"got a {type(u).__name__} from solve for theta of another framework; wanted an array of the framework of theta, or "
                "like=..., a function of theta that returns one with the shape and dtype of u: solve is then given NumPy arrays"
            )
        return verbs.stop(u)
    return verbs.host(lambda *values: solve(filled(values)), like(filled(arrays)), *arrays)


def _inverse(verbs: Verbs, g: Callable, u: Any) -> Any:
    """The pseudo-inverse (*batch, m, m) of the Jacobian of g at its root u; what is not as it should be is told."""
    xp, eps = verbs.xp, backend_of(u).resolution(u)
    _check(u, g(u))
    size = u.shape[-1]
    value, pull = verbs.vjp(g, u)
    units = [verbs.asarray(row, u) for row in np.eye(size)]
    jacobian = verbs.stop(xp.stack([pull(row + xp.zeros_like(u))[0] for row in units], axis=-2))
    sound = xp.all(xp.isfinite(jacobian), axis=(-2, -1)) & xp.all(xp.isfinite(u), axis=-1)
    jacobian = xp.where(sound[..., None, None], jacobian, xp.zeros_like(jacobian))
    left, s, right = xp.linalg.svd(jacobian, full_matrices=False)
    kept = s > 8 * size * eps * xp.max(s, axis=-1, keepdims=True)
    scaled = xp.where(kept, 1 / xp.where(kept, s, xp.ones_like(s)), xp.zeros_like(s))[..., None] * xp.matrix_transpose(left)
    inverse = xp.matmul(xp.matrix_transpose(right), scaled)
    _report(verbs, xp.matmul(inverse, value[..., None])[..., 0], u, sound & ~xp.all(kept, axis=-1))
    return inverse


def _check(u: Any, value: Any) -> None:
    if not len(u.shape):
        raise ValueError("got a number from solve; wanted an array (*batch, m), as from u[None]")
    if tuple(value.shape) != tuple(u.shape):
        raise ValueError(f"got a residual of shape {tuple(value.shape)} for u of shape {tuple(u.shape)}; wanted equal ones")


def _report(verbs: Verbs, move: Any, u: Any, singular: Any) -> None:
    """Tell of rows that a Newton step would move, and of singular ones."""
    xp, eps = verbs.xp, backend_of(u).resolution(u)
    near = xp.max(xp.abs(move), axis=-1) <= eps**0.5 * (1 + xp.max(xp.abs(u), axis=-1))
    verbs.host(_tell, None, near & ~near if singular is None else singular, ~(near & xp.all(xp.isfinite(u), axis=-1)))


def _products(verbs: Verbs, g: Callable, u: Any) -> tuple[Callable, Callable]:
    """Products with the Jacobian of g at u and with its transpose. A pullback is linear, so that its own pullback is the first."""
    _, pull = verbs.vjp(g, u)
    back = lambda y: pull(y)[0]  # noqa: E731
    return lambda x: verbs.vjp(back, verbs.xp.zeros_like(u))[1](x)[0], back


def _tell(singular: np.ndarray, far: np.ndarray, unsolved: np.ndarray | tuple = ()) -> None:
    """Warn once for each thing that went wrong, naming the rows."""
    unfinished = "method='krylov' has not found the derivative there within max_iter iterations; raise max_iter or use method='dense'"
    for rows, category, sentence in (
        (singular, GradientWarning, "the Jacobian of the residual is singular there: the derivative is that of its pseudo-inverse"),
        (far, InaccurateWarning, "solve returned no root: a Newton step would still move it, and its derivative is not that of a root"),
        (unsolved, InaccurateWarning, unfinished),
    ):
        which = np.flatnonzero(rows)
        if which.size:
            named = ", ".join(map(str, which[:8])) + (", ..." if which.size > 8 else "")
            warn(f"row{'s' if which.size > 1 else ''} {named} of {np.size(rows)}: {sentence}", category)


def _row_by_row(verbs: Verbs, f: Callable, ranks: tuple[int, ...]) -> Callable:
    """f for arrays that may have axes in front of their ranks, called once for each entry of these."""

    def mapped(*arrays: Any) -> tuple[Any, ...]:
        count = max((len(a.shape) - rank for a, rank in zip(arrays, ranks, strict=True)), default=0)
        if count <= 0:
            return f(*arrays)
        sizes = [a.shape[0] if len(a.shape) - rank == count else 1 for a, rank in zip(arrays, ranks, strict=True)]
        rows = [
            mapped(
                *(a[min(k, size - 1)] if len(a.shape) - rank == count else a for a, rank, size in zip(arrays, ranks, sizes, strict=True))
            )
            for k in range(max(sizes))
        ]
        return tuple(verbs.xp.stack(list(part), axis=0) for part in zip(*rows, strict=True))

    return mapped


def _flatten(tree: Any) -> tuple[list[Any], Callable[[Any], Any]]:
    """The leaves of tuples, lists and dicts, and what puts others in their places."""
    if isinstance(tree, Mapping):
        keys, parts, make = list(tree), list(tree.values()), lambda values: dict(zip(keys, values, strict=True))
    elif isinstance(tree, (tuple, list)):
        parts = list(tree)
        make = (lambda values: type(tree)(*values)) if hasattr(tree, "_fields") else type(tree)
    else:
        return [tree], lambda leaves: leaves[0]
    flat = [_flatten(part) for part in parts]

    def rebuild(leaves: Any) -> Any:
        rest, values = list(leaves), []
        for own, inner in flat:
            values.append(inner(rest[: len(own)]))
            rest = rest[len(own) :]
        return make(values)

    return [leaf for own, _ in flat for leaf in own], rebuild
