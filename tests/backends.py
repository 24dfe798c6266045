"""The table of frameworks: for each, how to call a layer and pull a cotangent back, in NumPy terms.

CVXLAYERS_TEST_BACKENDS names those to test, separated by commas; the default is all that are installed. One that is asked for and missing
is a failure, not a skip.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

Run = Callable[[Any, Sequence[np.ndarray], Sequence[np.ndarray]], tuple[list[np.ndarray], list[np.ndarray]]]


def _torch(layer: Any, values: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    torch = importlib.import_module("torch")
    leaves = [torch.tensor(v, requires_grad=True) for v in values]
    outputs = layer(*leaves)
    gradients = torch.autograd.grad(outputs, leaves, [torch.tensor(g) for g in cotangents])
    return [o.detach().numpy() for o in outputs], [g.resolve_conj().numpy() for g in gradients]


def _jax(layer: Any, values: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    jax = importlib.import_module("jax")
    with jax.enable_x64(values[0].dtype.itemsize >= 8):
        outputs, pull = jax.vjp(layer, *map(jax.numpy.asarray, values))
        # JAX pairs without conjugation: its cotangents are the conjugates of dL/d(real) + i dL/d(imag)
        gradients = pull(tuple(jax.numpy.asarray(np.conj(g)) for g in cotangents))
        return [np.asarray(o) for o in outputs], [np.conj(np.asarray(g)) for g in gradients]


def _tensorflow(layer: Any, values: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    tf = importlib.import_module("tensorflow")
    leaves = [tf.constant(v) for v in values]
    with tf.GradientTape() as tape:
        for leaf in leaves:
            tape.watch(leaf)
        outputs = layer(*leaves)
    gradients = tape.gradient(outputs, leaves, output_gradients=[tf.constant(g) for g in cotangents])
    return [o.numpy() for o in outputs], [g.numpy() for g in gradients]


TABLE: dict[str, Run] = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}


def tensor(name: str, value: np.ndarray, dtype: str) -> Any:
    """An array of the framework."""
    module = importlib.import_module(name)
    if name == "torch":
        return module.tensor(value, dtype=getattr(module, dtype))
    return module.constant(value, dtype=dtype) if name == "tensorflow" else module.numpy.asarray(value, dtype=dtype)


def compiled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """As users of the framework call what takes long: under jit in JAX, as it is elsewhere."""
    return importlib.import_module("jax").jit(function) if name == "jax" else function


def evaluated(name: str, function: Callable[..., Any], *values: np.ndarray) -> list[np.ndarray]:
    """What a compiled function makes of the framework's arrays: a tuple of tensors."""
    with double(name) if values[0].dtype.itemsize >= 8 else nullcontext():
        found = compiled(name, function)(*(tensor(name, value, value.dtype.name) for value in values))
        return [np.asarray(a.detach() if name == "torch" else a) for a in found]


def double(name: str) -> AbstractContextManager[Any]:
    """Double precision, which JAX has to be asked for."""
    return importlib.import_module("jax").enable_x64(True) if name == "jax" else nullcontext()


def requested() -> list[str]:
    """The frameworks to test."""
    asked = os.environ.get("CVXLAYERS_TEST_BACKENDS")
    if asked is None:
        return [name for name in TABLE if importlib.util.find_spec(name) is not None]
    return [name.strip() for name in asked.split(",") if name.strip()]


def adapter(name: str) -> Any:
    """The module ``cvxlayers.<name>``."""
    return importlib.import_module(f"cvxlayers.{name}")
