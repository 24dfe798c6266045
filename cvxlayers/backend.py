"""What the library must know of an array framework: one frozen record of verbs per framework.

NumPy's record is here. A framework's record is registered by the last line of the one file that imports the framework,
``cvxlayers.<framework>``, which is loaded by name only when the framework itself is already imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy as xp
import numpy as np


@dataclass(frozen=True)
class Symmetric:
    """A linear system K(p) x = b whose K is symmetric and affine in p; p, x, b and ``held`` are tuples of arrays.

    solve(held, p, b)  x; ``held`` are constants that help, a factorization of K(p), say
    product(p, x)      the part of K(p) x that is linear in p
    rest(x)            the part that does not contain p
    pull(p, x, d)      the cotangents of p in <d, product(p, x)>
    ranks              how many axes each array of held, p and b has; all functions broadcast axes in front of these
    """

    solve: Callable[[tuple, tuple, tuple], tuple]
    product: Callable[[tuple, tuple], tuple]
    rest: Callable[[tuple], tuple]
    pull: Callable[[tuple, tuple, tuple], tuple]
    ranks: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Verbs:
    """What algorithms written once for every framework need of one, beyond the names of the array-API standard.

    xp                           the namespace of the standard: ``xp.sum(x, axis=-1)``, ``xp.linalg.solve(a, b)``
    asarray(value, like)         a number or array as one of the dtype and the device of ``like``
    stop(x)                      x as a constant
    take(x, indices)             x[..., indices] for a NumPy array of indices
    vjp(f, x)                    f(x) and its pullback g -> (f'(x)* g,), which can be differentiated again
    loop(going, body, state)     ``while going(*state): state = body(*state)``; has no derivative
    users(f)                     a function of the user's as the framework compiles Python, where it does (AutoGraph in tf.function)
    scan(body, carry, xs)        ``carry, y = body(carry, x)`` over the leading axis of the arrays xs; the last carry and the ys, stacked
    constant(f, ranks, *arrays)  the tuple f(*arrays) as constants; f may branch on values. f broadcasts the axes in front of the last
                                 ``ranks[i]`` of each array; mapped axes (vmap) are put there
    linear(f, transposed, product, ranks, *arrays)
                                 f(*arrays), linear in the last array and invertible there, constant in the others; ``transposed`` is its
                                 adjoint, ``product`` its inverse; f may branch on values, with mapped axes as for ``constant``
    symmetric(system, held, p, b) x of a `Symmetric` system, with derivatives of every order; ``held`` are constants
    projection(find, move, x)    y = find(x), whose derivative is d -> move(y, d, tracked), linear and symmetric in d; every order follows
                                 from it. Both act on the last axis; ``tracked`` is False where nothing is differentiated further
    quick(f, value, pull, *arrays)
                                 the tuple f(*arrays), floating-point outputs; where the values are at hand and no transform looks on,
                                 by value(*arrays) -> (outputs, kept) in NumPy, tuples, and its first derivative by pull(arrays, kept,
                                 cotangents, needed) -> cotangents of the arrays, None if not ``needed``; else, and further, by f
    known(x)                     x as a NumPy array of its own dtype where its values are in the host's memory, None elsewhere
    vmap(f, axes, out)           f with an axis of each argument mapped, at ``out`` in the result; None in frameworks that map no calls
    host(f, like, *arrays)       f of NumPy arrays, as an array of the shape and dtype of ``like``; None: f is called for its effect
    sigmoid(x)                   1 / (1 + exp(-x)), to full relative accuracy
    normal(seed, shape, like)    standard normal draws; the seed is an int or what the framework calls a generator or key
    call(map, *params, ...)      a `HostMap` as a differentiable function of the framework's arrays; options as in a layer's call; of an
                                 info, ``status`` is there in compiled code, too
    """

    xp: Any
    asarray: Callable[[Any, Any], Any]
    stop: Callable[[Any], Any]
    take: Callable[[Any, np.ndarray], Any]
    vjp: Callable[[Callable, Any], Any]
    loop: Callable[[Callable, Callable, tuple], tuple]
    users: Callable[[Any], Any]
    scan: Callable[[Callable, Any, Any], tuple[Any, Any]]
    constant: Callable[..., tuple]
    linear: Callable[..., Any]
    symmetric: Callable[[Symmetric, tuple, tuple, tuple], tuple]
    projection: Callable[[Callable, Callable, Any], Any]
    quick: Callable[..., tuple]
    known: Callable[[Any], np.ndarray | None]
    vmap: Callable[[Callable, tuple, int], Callable] | None
    host: Callable[..., Any]
    sigmoid: Callable[[Any], Any]
    normal: Callable[[Any, Sequence[int], Any], Any]
    call: Callable[..., Any]


@dataclass(frozen=True)
class Backend:
    """One framework.

    ``host(x)`` is x as a NumPy array of float64 or complex128 without history; ``resolution(x)`` the spacing of its dtype at one.
    """

    name: str
    host: Callable[[Any], np.ndarray]
    resolution: Callable[[Any], float]
    verbs: Verbs


REGISTERED = 2  # NumPy's mark of a dtype from elsewhere, such as the bfloat16 of JAX and TensorFlow


def _numpy_host(x: Any) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype.kind not in "biufc" and array.dtype.isbuiltin != REGISTERED:
        raise ValueError(f"got an array of dtype {array.dtype}; wanted real or complex numbers")
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64, copy=False)


def _numpy_resolution(x: Any) -> float:
    array = np.asarray(x)
    if array.dtype.isbuiltin == REGISTERED:
        return float(np.spacing(np.ones((), array.dtype)))
    return float(np.finfo(array.dtype).eps) if array.dtype.kind in "fc" else float(np.finfo(np.float64).eps)


def verbatim(f: Any) -> Any:
    """Marks a function or class of ours as one that AutoGraph, which rewrites Python for tf.function, calls as it stands.

    There is nothing to rewrite in it, and rewriting takes several times as long as the rest. Users' functions inside: `Verbs.users`.
    """
    f.autograph_info__ = {}
    return f


def unrolled_loop(going: Callable, body: Callable, state: tuple) -> tuple:
    """`Verbs.loop` where values are at hand."""
    while going(*state):
        state = body(*state)
    return state


def unrolled_scan(stack: Callable, parts: Callable = iter) -> Callable[[Callable, Any, Any], tuple[Any, Any]]:
    """`Verbs.scan` as a loop of Python's; ``stack`` joins arrays along a new leading axis, ``parts`` takes them apart."""

    def scan(body: Callable, carry: Any, xs: Sequence[Any]) -> tuple[Any, Any]:
        steps = []
        for x in zip(*map(parts, xs), strict=True):
            carry, y = body(carry, x)
            steps.append(y)
        return carry, tuple(stack(list(parts)) for parts in zip(*steps, strict=True))

    return scan


def _no_vjp(f: Callable, x: Any) -> Any:
    raise TypeError("NumPy functions have no derivatives; call with PyTorch, JAX or TensorFlow arrays")


def _numpy_call(core: Any, *params: Any, return_info: bool = False, **options: Any) -> Any:
    outputs, info, _ = core.forward(params, importlib.import_module("cvxlayers.host").Options(**options))
    return (tuple(outputs), info) if return_info else tuple(outputs)


NUMPY_VERBS = Verbs(
    xp=xp,
    asarray=lambda value, like: np.asarray(value, dtype=np.asarray(like).dtype),
    stop=lambda x: x,
    take=lambda x, indices: x[..., indices],
    vjp=_no_vjp,
    loop=unrolled_loop,
    users=lambda f: f,
    scan=unrolled_scan(np.stack),
    constant=lambda f, ranks, *arrays: f(*arrays),
    linear=lambda f, transposed, product, ranks, *arrays: f(*arrays),
    symmetric=lambda system, held, p, b: system.solve(held, p, b),
    projection=lambda find, move, x: find(x),
    quick=lambda f, value, pull, *arrays: value(*arrays)[0],
    known=np.asarray,
    vmap=None,
    host=lambda f, like, *arrays: f(*arrays),
    sigmoid=lambda x: np.exp(-np.logaddexp(0, -x)),
    normal=lambda seed, shape, like: np.random.default_rng(seed).standard_normal(shape).astype(np.asarray(like).dtype),
    call=_numpy_call,
)
NUMPY = Backend("numpy", _numpy_host, _numpy_resolution, NUMPY_VERBS)
BACKENDS = {"numpy": NUMPY}

# The package that defines an array type -> the framework it belongs to, which is also the name of the file here that imports it.
FRAMEWORKS = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "tensorflow": "tensorflow"}


def register(backend: Backend) -> None:
    """Make a framework's record known."""
    BACKENDS[backend.name] = backend


def backend_of(x: Any) -> Backend:
    """The backend of an array, tensor or number, by the name of the module that made its type.

    >>> backend_of(1.0).name
    'numpy'
    """
    for parent in type(x).__mro__:
        name = FRAMEWORKS.get(parent.__module__.partition(".")[0])
        if name is not None and name in sys.modules:
            if name not in BACKENDS:
                importlib.import_module(f"cvxlayers.{name}")
            return BACKENDS[name]
    return NUMPY
