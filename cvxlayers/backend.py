"""What the library must know of an array framework: one frozen record of verbs per framework.

NumPy's record is here. A framework's record is registered by the last line of the one file that imports the framework,
``cvxlayers.<framework>``, which is loaded by name only when the framework itself is already imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Backend:
    """The verbs of one framework.

    ``host(x)`` is x as a NumPy array of float64 or complex128 without history; ``resolution(x)`` the spacing of its dtype at one.
    """

    name: str
    host: Callable[[Any], np.ndarray]
    resolution: Callable[[Any], float]


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


NUMPY = Backend("numpy", _numpy_host, _numpy_resolution)
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
