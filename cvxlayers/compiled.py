"""Where compiled loops come from: the files of `cvxlayers.kernels`, which import numba, loaded by name when a layer is built."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from cvxlayers.errors import warn


@cache
def kernels(name: str) -> Any:
    """The module ``cvxlayers.kernels.<name>``, or None, with one warning, where numba cannot load: NumPy and qdldl serve instead."""
    try:
        return import_module(f"cvxlayers.kernels.{name}")
    except ImportError as error:
        warn(f"numba cannot load ({error}): layers work without it, but are slower", RuntimeWarning)
        return None
