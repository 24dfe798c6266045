"""The verbs of JAX: what `cvxlayers.topk`, `cvxlayers.implicit` and `cvxlayers.control` ask of a framework."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from cvxlayers.backend import Symmetric, Verbs, unrolled_scan
from cvxlayers.host import HostMap
from cvxlayers.jax.layers import Mapped


def _constant(f: Any, ranks: Any, *arrays: Any) -> tuple[Any, ...]:
    """Where values are at hand f runs on them: traced anew in every call, its loops would be compiled anew in every call.

    `jax.closure_convert` also makes what f reaches by closure a constant: a while loop inside could not be differentiated.
    """
    arrays = tuple(map(jax.lax.stop_gradient, arrays))
    if not _traced(arrays):
        try:
            found = f(*arrays)
            if not _traced(found):
                return tuple(found)
        except Reached:
            pass
    pure, reached = jax.closure_convert(f, *arrays)
    return tuple(map(jax.lax.stop_gradient, pure(*arrays, *map(jax.lax.stop_gradient, reached))))


class Reached(Exception):
    """A loop over values at hand has met a traced one, which came by closure."""


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _loop(going: Any, body: Any, state: tuple) -> tuple:
    """In Python where values are at hand: there a `while_loop` of new functions is compiled in every call."""
    if _traced(state):
        return jax.lax.while_loop(lambda s: going(*s), lambda s: tuple(body(*s)), tuple(state))
    while True:
        more = going(*state)
        if _traced(more):
            raise Reached
        if not more:
            return tuple(state)
        state = body(*state)
        if _traced(state):
            raise Reached


def _scan(body: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    if _traced((carry, tuple(xs))):
        return jax.lax.scan(body, carry, tuple(xs))
    return unrolled_scan(jnp.stack)(body, carry, tuple(xs))


def _linear(f: Any, transposed: Any, product: Any, ranks: Any, *arrays: Any) -> Any:
    *held, b = arrays
    held = list(map(jax.lax.stop_gradient, held))
    inverse, adjoint = (lambda _, b: f(*held, b)), (lambda _, b: transposed(*held, b))
    return jax.lax.custom_linear_solve(lambda x: product(*held, x), b, inverse, adjoint)


def _symmetric(system: Symmetric, held: Any, p: Any, b: Any) -> Any:
    flat, parted = ravel_pytree(tuple(b))  # JAX transposes a system only where all parts of b are linear, or none

    def matvec(x: Any) -> Any:
        parts = parted(x)
        return ravel_pytree(tuple(map(jnp.add, system.product(p, parts), system.rest(parts))))[0]

    held, at = jax.lax.stop_gradient((tuple(held), tuple(p)))
    solve = lambda _, given: ravel_pytree(tuple(system.solve(held, at, parted(given))))[0]  # noqa: E731
    return parted(jax.lax.custom_linear_solve(matvec, flat, solve, symmetric=True))


def _projection(find: Any, move: Any, x: Any) -> Any:
    at = jax.lax.stop_gradient(x)
    value = None if _traced(at) else find(at)  # where values are at hand, found once
    projected = jax.custom_jvp(find if value is None else lambda x: value)

    @projected.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        y = projected(*primals)
        return y, move(y, tangents[0], True)

    return projected(x)


def _called_on_host(f: Any, like: Any, *arrays: Any) -> Any:
    """Doubles travel as pairs of words, for the reason that `_lowered` gives."""
    wide = [a.dtype == np.float64 for a in arrays]

    def call(*words: Any) -> Any:
        found = f(*(np.asarray(a).view(np.float64)[..., 0] if w else np.asarray(a) for a, w in zip(words, wide, strict=True)))
        if like is None:
            return None
        found = np.array(np.broadcast_to(found, like.shape), like.dtype)
        return found[..., None].view(np.uint32) if like.dtype == np.float64 else found

    words = [jax.lax.bitcast_convert_type(a, jnp.uint32) if w else a for a, w in zip(arrays, wide, strict=True)]
    if like is None:
        return jax.debug.callback(call, *words)
    shape, pair = like.shape, like.dtype == np.float64
    spec = jax.ShapeDtypeStruct((*shape, 2), np.uint32) if pair else jax.ShapeDtypeStruct(shape, like.dtype)
    found = jax.pure_callback(call, spec, *words, vmap_method="sequential")
    return jax.lax.bitcast_convert_type(found, jnp.float64) if pair else found


def _called(core: HostMap, *params: Any, **options: Any) -> Any:
    mapped = Mapped()
    mapped._hold(core)
    return mapped(*params, **options)


VERBS = Verbs(
    xp=jnp,
    asarray=lambda value, like: jnp.asarray(value, dtype=like.dtype),
    stop=jax.lax.stop_gradient,
    take=lambda x, indices: x[..., indices],
    vjp=jax.vjp,
    loop=_loop,
    users=lambda f: f,
    scan=_scan,
    constant=_constant,
    linear=_linear,
    symmetric=_symmetric,
    projection=_projection,
    quick=lambda f, value, pull, *arrays: f(*arrays),
    known=lambda x: None if isinstance(x, Tracer) else np.asarray(x),
    vmap=jax.vmap,
    host=_called_on_host,
    sigmoid=jax.nn.sigmoid,
    normal=lambda seed, shape, like: jax.random.normal(jax.random.key(seed) if isinstance(seed, int) else seed, tuple(shape), like.dtype),
    call=_called,
)
