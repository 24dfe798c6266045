"""How kernels are compiled, and kept on disk: beside their files, or in the user's cache where that cannot be written to.

What Python calls is `compiled`, or `typed` where one type serves all calls; what only such functions call in turn is `inner`, has
no entry from Python and no file of its own, both of which would take more time to make than its code. None takes liberties that would
compile NaN away.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.registry import CPUDispatcher
from numba.extending import overload, register_jitable

from cvxlayers.kernels.pipeline import ENTRY, WITHIN

OPTIONS: dict[str, Any] = {
    **ENTRY,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz"},
    "no_cfunc_wrapper": True,
    "_nrt": False,
}
INNER: dict[str, Any] = {**OPTIONS, **WITHIN, "no_cpython_wrapper": True}


def _stamp() -> str:
    """A hash of all kernels and of the cones' text: numba looks only at the file of a function, not at those of what it calls."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), *sorted((here.parent / "cones").glob("*.py"))]
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


STAMP = _stamp()


def compiled(function: Any, allocates: bool = False) -> Any:
    """A function for Python and for other kernels, compiled on first use for what it is called with, and kept on disk.

    It borrows the arrays that it is given; only one that ``allocates`` may make some of its own. Where no folder can be written to (neither
    beside the file nor the user's cache), it is compiled again in every process.
    """
    options = {**OPTIONS, "_nrt": allocates}
    try:
        kernel: Any = njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)
    index = kernel._cache._cache_file
    index._source_stamp = (index._source_stamp, STAMP)
    return kernel


class Inner(CPUDispatcher):
    """A function without an entry from Python, which a call from there would run into."""

    def __call__(self, *args: Any) -> Any:
        raise TypeError(f"{self.py_func.__name__} can be called in compiled code only; decorate it as compiled to call it from Python")


def inner(function: Any) -> Any:
    """A function for other kernels, compiled into each of them; it borrows arrays and allocates none, so that nobody counts holders."""
    kernel: Any = njit(**INNER)(function)
    kernel.__class__ = Inner
    return kernel


def typed(*signature: Any, allocates: bool = False) -> Any:
    """A decorator, as `compiled` but on first use for that signature and for no other."""
    return lambda function: Typed(function, signature, allocates)


class Typed:
    """A function of one signature; ``kernel`` is numba's, made on first use."""

    def __init__(self, function: Any, signature: tuple[Any, ...], allocates: bool) -> None:
        self.function, self.signature, self.allocates, self.__doc__ = function, signature, allocates, function.__doc__

    @cached_property
    def kernel(self) -> Any:
        """Compiled, or loaded from disk."""
        kernel = compiled(self.function, self.allocates)
        kernel.compile(*self.signature)
        kernel.disable_compile()
        return kernel

    def __call__(self, *args: Any) -> Any:
        return self.kernel(*args)


def compiles(function: Any) -> None:
    """Let kernels call a plain function of another file, which stays what it is to Python: text that serves arrays, too."""
    register_jitable(**INNER)(function)


def compiles_as(function: Any, typing: Any) -> None:
    """Let kernels call something else in the place of a plain function: what ``typing`` returns for the types of the arguments."""
    options: Any = INNER
    overload(function, jit_options=options)(typing)
