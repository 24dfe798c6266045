"""How kernels are compiled, and kept on disk: beside their files, or in the user's cache where that cannot be written to."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit


def _stamp() -> str:
    """A hash of all kernels: numba looks only at the file of a function, not at those of the functions compiled into it."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


STAMP = _stamp()


def compiled(function: Any) -> Any:
    """Compile on first use and keep the result on disk; without the GIL, and without liberties that would compile NaN away.

    Where no folder can be written to (neither beside the file nor the user's cache), it is compiled again in every process.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
    try:
        kernel: Any = njit(function, cache=True, **options)
    except RuntimeError:
        return njit(function, **options)
    index = kernel._cache._cache_file
    index._source_stamp = (index._source_stamp, STAMP)
    return kernel
