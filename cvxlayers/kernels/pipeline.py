"""What numba leaves out when it compiles a kernel, which takes much time and makes no kernel faster.

Numba optimizes every function, makes machine code of it, and gives what it optimized to the functions that call it, where all of that is
done again. A function that only kernels call needs neither: `Within` hands on its code as it was lowered, and what Python calls is
optimized with everything that it calls, once. Kernels also do without some passes of numba's, and have a shorter way to LLVM
(`cvxlayers.kernels.lowering`, `cvxlayers.kernels.calls`); types of calls are found once; and the collector of Python, which would go over
millions of objects again and again to find little, waits until a kernel is compiled.

ENTRY and WITHIN are the options that say so, for the one and for the other; both are empty with a numba that is older or newer than
TRIED, or has other names for what is changed here, and then compiles kernels as it does all functions.
"""

from __future__ import annotations

import gc
from typing import Any

import numba
from numba import types
from numba.core import callconv, codegen, compiler, compiler_machinery, cpu, lowering, typed_passes
from numba.core.typing import context

Library: Any = getattr(codegen, "JITCodeLibrary", object)
Base: Any = getattr(compiler, "CompilerBase", object)
CHANGED = {
    Library: ("_optimize_final_module", "_finalize_final_module", "get_pointer_to_function", "codegen"),
    Base: ("compile_extra", "define_pipelines"),
    compiler: ("DefaultPassBuilder",),
    compiler_machinery: ("PassManager", "register_pass"),
    getattr(context, "Context", None): ("resolve_function_type",),
    getattr(cpu, "CPUContext", None): ("call_conv", "remove_user_function"),
    getattr(callconv, "CPUCallConv", None): ("return_user_exc", "return_status_propagate"),
    typed_passes: ("BaseNativeLowering",),
    getattr(lowering, "Lower", None): (
        *("_find_singly_assigned_variable", "lower_block", "lower_inst", "storevar", "alloca_lltype", "lower_expr", "lower_binop"),
        *("_lower_call_normal", "lower_getitem", "lower_setitem", "setup_function", "extract_function_arguments"),
    ),
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
COUNTING = frozenset({"IRLegalization"})
"""Passes that tell where a variable is read last, to count holders of arrays."""


class Pipeline(Base):
    """The passes that a kernel needs, run without Python's collector."""

    lowers = "EntryPass"  # of `cvxlayers.kernels.calls`

    def define_pipelines(self) -> list[Any]:
        """Numba's passes, less UNUSED, with our own way to LLVM where nobody counts holders of arrays."""
        from cvxlayers.kernels import calls  # here, for it cannot be imported with a numba that has other names

        passes, borrows = compiler_machinery.PassManager("kernel"), not self.state.flags.nrt
        for each, purpose in compiler.DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if each.__name__ not in (UNUSED | COUNTING if borrows else UNUSED):
                passes.add_pass(getattr(calls, self.lowers) if borrows and each.__name__ == "NativeLowering" else each, purpose)
        passes.finalize()
        return [passes]

    def compile_extra(self, func: Any) -> Any:
        """Compile; numba holds its lock, so that no other thread compiles meanwhile."""
        types_of, collects = self.state.typingctx, gc.isenabled()
        outermost = not isinstance(types_of.resolve_function_type, Remembered)
        gc.disable()
        if outermost:
            types_of.resolve_function_type = Remembered(types_of.resolve_function_type)
        try:
            return super().compile_extra(func)
        finally:
            if outermost:
                del types_of.resolve_function_type
            if collects:
                gc.enable()


class Remembered:
    """What numba finds out about the types of calls, which it asks for many times over."""

    def __init__(self, resolve: Any) -> None:
        self.resolve = resolve
        self.known: dict[Any, Any] = {}

    def __call__(self, function: Any, args: Any, keywords: Any) -> Any:
        """The signature of a call."""
        if keywords or not isinstance(function, types.Function):
            return self.resolve(function, args, keywords)
        key = id(function), tuple(args)  # by identity: what it finds it also notes in the function's type, which has equals
        if key not in self.known:
            self.known[key] = function, self.resolve(function, args, keywords)
        return self.known[key][1]


class Within(Pipeline):
    """A pipeline for what only kernels call."""

    lowers = "InnerPass"

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


TRIED = (0, 62), (0, 68)
KNOWN = TRIED[0] <= tuple(numba.version_info.short) <= TRIED[1] and all(
    hasattr(place, name) for place, names in CHANGED.items() for name in names
)
ENTRY: dict[str, Any] = {"pipeline_class": Pipeline} if KNOWN else {}
WITHIN: dict[str, Any] = {"pipeline_class": Within} if KNOWN else {}
