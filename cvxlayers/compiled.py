"""Where compiled code comes from: the files of `cvxlayers.kernels`, which import numba, loaded by name when first needed.

The one place that knows what happens without numba: `kernels` gives None, NumPy, qdldl and Clarabel serve, and one warning says so.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from cvxlayers.errors import warn


@cache
def numba_loads() -> bool:
    """Whether numba can load; warns, once, where it cannot."""
    try:
        import_module("cvxlayers.kernels.disk")
    except ImportError as error:
        places = "CLARABEL takes the place of INTERIOR, DAQP that of ACTIVE_SET"
        warn(f"numba cannot load ({error}): everything works without it, but more slowly; {places}", RuntimeWarning)
        return False
    return True


@cache
def kernels(name: str) -> Any:
    """The module ``cvxlayers.kernels.<name>``, or None where numba cannot load: NumPy, qdldl and Clarabel serve instead."""
    return import_module(f"cvxlayers.kernels.{name}") if numba_loads() else None
