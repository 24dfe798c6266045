"""How kernels call each other: values as they are, without exceptions.

Numba would pass every number of every array by itself, give a result through a pointer, and an exception through another. A function that
only kernels call raises none, and takes and gives its values as LLVM has them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import callconv, cgutils, typed_passes
from numba.core import ir as statements
from numba.core.compiler_machinery import register_pass
from numba.core.cpu import CPUContext
from numba.core.errors import UnsupportedError

from cvxlayers.kernels.lowering import Lowering

Pass: Any = typed_passes.BaseNativeLowering


class InnerLowering(Lowering):
    """The statements of a function that only kernels call."""

    def init(self) -> None:
        super().init()
        self.context.__class__, self.context.function = Context, None

    def setup_function(self, fndesc: Any) -> None:
        self.function = self.context.function = _declared(self.context, self.module, fndesc)
        self.entry_block = self.function.append_basic_block("entry")
        self.builder = ir.IRBuilder(self.entry_block)
        self.call_helper = self.call_conv.init_call_helper(self.builder)

    def extract_function_arguments(self) -> Any:
        self.fnargs = self.function.args
        return self.fnargs

    def lower_inst(self, inst: Any) -> Any:
        if isinstance(inst, statements.Return):
            return self.builder.ret(self.loadvar(inst.value.name))
        if isinstance(inst, statements.StaticRaise | statements.DynamicRaise):
            raise UnsupportedError("what only kernels call cannot raise", self.loc)
        return super().lower_inst(inst)


class Silent(callconv.CPUCallConv):
    """A convention for functions without exceptions; those of numba's that they call keep its own."""

    def return_user_exc(self, builder: Any, *args: Any, **options: Any) -> None:
        """Tell LLVM that it does not come to this, as to the end of a tuple of known length."""
        if builder.function is self.context.function:
            builder.unreachable()
        else:
            super().return_user_exc(builder, *args, **options)

    def return_status_propagate(self, builder: Any, status: Any) -> None:
        """Tell LLVM that what is called does not raise."""
        if builder.function is self.context.function:
            builder.unreachable()
        else:
            super().return_status_propagate(builder, status)


class Context(CPUContext):
    """What emits code of functions without exceptions."""

    @property
    def call_conv(self) -> Any:
        return Silent(self)


def _declared(context: Any, module: Any, fndesc: Any) -> Any:
    """The function of a module that takes and gives values as they are."""
    kind = ir.FunctionType(context.get_value_type(fndesc.restype), [context.get_value_type(each) for each in fndesc.argtypes])
    return cgutils.get_or_insert_function(module, kind, fndesc.mangled_name)


def _called(fndesc: Any, library: Any) -> Any:
    """What emits a call of such a function."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.call(_declared(context, builder.module, fndesc), args)

    emit.signature, emit.libs = fndesc.argtypes, (library,)
    return emit


@register_pass(mutates_CFG=True, analysis_only=False)
class EntryPass(Pass):
    """Lower what Python calls."""

    _name = "kernel_lowering"
    lowering_class = Lowering


@register_pass(mutates_CFG=True, analysis_only=False)
class InnerPass(Pass):
    """Lower what only kernels call."""

    _name = "inner_lowering"
    lowering_class = InnerLowering

    def run_pass(self, state: Any) -> bool:
        super().run_pass(state)
        entry, fndesc = state["cr"].cfunc, state["cr"].fndesc
        state.targetctx.remove_user_function(entry)
        emit = _called(fndesc, state.library)
        state.targetctx._defns[entry].append(emit, emit.signature)
        return True
