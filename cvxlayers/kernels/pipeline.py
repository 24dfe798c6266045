"""What numba leaves out when it compiles a kernel, which takes much time and makes no kernel faster.

Numba optimizes every function, makes machine code of it, and gives what it optimized to the functions that call it, where all of that is
done again. A function that only kernels call needs neither: `Within` hands on its code as it was lowered, and what Python calls is
optimized with everything that it calls, once. Kernels also do without some passes of numba's, and the collector of Python, which would go
over millions of objects again and again to find little, waits until a kernel is compiled.

ENTRY and WITHIN are the options that say so, for the one and for the other; both are empty with a numba that is newer than TRIED, or has
other names for what is changed here, and then compiles kernels as it does all functions.
"""

from __future__ import annotations

import gc
from typing import Any

import numba
from numba.core import codegen, compiler, compiler_machinery

Library: Any = getattr(codegen, "JITCodeLibrary", object)
Base: Any = getattr(compiler, "CompilerBase", object)
CHANGED = {
    Library: ("_optimize_final_module", "_finalize_final_module", "get_pointer_to_function", "codegen"),
    Base: ("compile_extra", "define_pipelines"),
    compiler: ("DefaultPassBuilder",),
    compiler_machinery: ("PassManager",),
}
"""What is changed or called here, and where it stands."""

UNUSED = frozenset(
    {
        *("WithLifting", "InlineClosureLikes", "MakeFunctionToJitFunction", "InlineInlinables", "InlineOverloads"),
        *("FindLiterallyCalls", "LiteralUnroll", "LiteralPropagationSubPipelinePass", "NopythonRewrites", "DumpParforDiagnostics"),
    }
)
"""Passes for what no kernel has: objects of Python, functions within functions, inlining before types are known, literal arguments,
expressions of whole arrays."""


class Pipeline(Base):
    """The passes that a kernel needs, run without Python's collector."""

    def define_pipelines(self) -> list[Any]:
        """Numba's passes, less UNUSED."""
        passes = compiler_machinery.PassManager("kernel")
        for each, purpose in compiler.DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if each.__name__ not in UNUSED:
                passes.add_pass(each, purpose)
        passes.finalize()
        return [passes]

    def compile_extra(self, func: Any) -> Any:
        """Compile; numba holds its lock, so that no other thread compiles meanwhile."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(func)
        finally:
            if collects:
                gc.enable()


class Within(Pipeline):
    """A pipeline for what only kernels call."""

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        super().__init__(typingctx, targetctx, library or Code(targetctx.codegen(), "kernel"), *rest)


class Code(Library):
    """The code of a function as it was lowered, to be linked into others; nothing in it has an address."""

    def _optimize_final_module(self) -> None:
        """Leave it: those that it is linked into are optimized."""

    def _finalize_final_module(self) -> None:
        """Make no machine code."""
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Zero, numba's word for a function that is not there."""
        return 0

    @property
    def codegen(self) -> Any:
        """What numba tells the address of the function's constants of Python, of which a kernel has none."""
        return Addresses()


class Addresses:
    """Takes addresses and forgets them."""

    def set_env(self, name: str, environment: object) -> None:
        """Do nothing."""


TRIED = (0, 68)
KNOWN = tuple(numba.version_info.short) <= TRIED and all(hasattr(place, name) for place, names in CHANGED.items() for name in names)
ENTRY: dict[str, Any] = {"pipeline_class": Pipeline} if KNOWN else {}
WITHIN: dict[str, Any] = {"pipeline_class": Within} if KNOWN else {}
