"""From numba's typed statements to LLVM: as numba does, in a quarter of the instructions.

Numba keeps every variable in memory of its own, filled with zeros, and takes every array and range apart through more of such memory, which
LLVM then clears away again. Here a variable that is assigned once is a value; an entry of an array is an address and a load; a range counts
down.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import analysis, cgutils
from numba.core import ir as statements
from numba.core.lowering import Lower

ARRAY = {name: place for place, name in enumerate(("meminfo", "parent", "nitems", "itemsize", "data", "shape", "strides"))}
"""Where the parts of an array are."""
POWERS = (operator.pow, operator.ipow)
"""What numba does in another way where the right side is a constant."""
Tuple: Any = types.BaseTuple
INTP = ir.IntType(64)


class Lowering(Lower):
    """The statements of one function."""

    def _find_singly_assigned_variable(self) -> None:
        """Find what may be a value: assigned in one place, and read only where that place has been passed."""
        places: dict[str, int] = {}
        counts: Counter[str] = Counter()
        shared: set[str] = set()
        dominators = analysis.compute_cfg_from_blocks(self.blocks).dominators()
        for offset, block in sorted(self.blocks.items()):
            for statement in block.body:
                assigns = isinstance(statement, statements.Assign)
                source = statement.value if assigns else statement
                read = (source,) if isinstance(source, statements.Var) else getattr(source, "list_vars", tuple)()
                shared.update(each.name for each in read if places.get(each.name) not in dominators[offset])
                if assigns:
                    counts[statement.target.name] += 1
                    places[statement.target.name] = offset
        self._singly_assigned_vars = {name for name, count in counts.items() if count == 1 and name not in shared}
        self._blk_local_varmap: dict[str, Any] = {}
        self._ends: dict[Any, Any] = {}

    def lower_block(self, block: Any) -> None:
        for statement in block.body:
            self.loc = statement.loc
            self.lower_inst(statement)

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        if name in self._singly_assigned_vars:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))

    def alloca_lltype(self, name: str, lltype: Any, datamodel: Any = None) -> Any:
        with self.builder.goto_entry_block():
            return self.builder.alloca(lltype, name=name)

    def lower_inst(self, inst: Any) -> Any:
        if isinstance(inst, statements.StaticSetItem) and isinstance(self.typeof(inst.target.name), types.Array):
            return self.lower_setitem(inst.target, inst.index_var, inst.value, self.fndesc.calltypes[inst])
        return super().lower_inst(inst)

    def lower_expr(self, resty: Any, expr: Any) -> Any:
        if expr.op in ("getiter", "iternext", "getattr", "static_getitem"):
            kind, value = self.typeof(expr.value.name), expr.value.name
            if expr.op == "getiter" and isinstance(kind, types.RangeType):
                return self._iterator(self.loadvar(value))
            if expr.op == "iternext" and isinstance(kind, types.RangeIteratorType):
                return self._next(self.loadvar(value))
            if expr.op == "getattr" and isinstance(kind, types.Array) and expr.attr == "shape":
                return self.builder.extract_value(self.loadvar(value), ARRAY["shape"])
            if expr.op == "static_getitem" and isinstance(kind, types.Array) and expr.index_var is not None:
                return self.lower_getitem(resty, expr, expr.value, expr.index_var, self.fndesc.calltypes[expr])
        return super().lower_expr(resty, expr)

    def lower_binop(self, resty: Any, expr: Any, op: Any) -> Any:
        signature = self.fndesc.calltypes[expr]
        if op in POWERS or any(isinstance(kind, types.Literal) for kind in signature.args):
            return super().lower_binop(resty, expr, op)
        context, builder = self.context, self.builder
        function = context.typing_context.resolve_value_type(op)
        if signature.args not in function._impl_keys:
            function.get_call_type(context.typing_context, signature.args, {})
        emit = context.get_function(function, signature)
        names = expr.lhs.name, expr.rhs.name
        sides = [
            context.cast(builder, self.loadvar(name), self.typeof(name), kind) for name, kind in zip(names, signature.args, strict=True)
        ]
        return context.cast(builder, emit(builder, sides), signature.return_type, resty)

    def _lower_call_normal(self, fnty: Any, expr: Any, signature: Any) -> Any:
        if isinstance(fnty, types.Function) and not expr.kws and not expr.vararg:
            if fnty.typing_key is len and isinstance(signature.args[0], types.Array):
                return self.builder.extract_value(self.loadvar(expr.args[0].name), (ARRAY["shape"], 0))
            if fnty.typing_key is range and isinstance(signature.return_type, types.RangeType):
                return self._range(signature.return_type.dtype, expr.args)
        return super()._lower_call_normal(fnty, expr, signature)

    def _range(self, number: Any, args: list[Any]) -> Any:
        """(start, stop, step)"""
        width = self.context.get_value_type(number)
        given = [self.context.cast(self.builder, self.loadvar(each.name), self.typeof(each.name), number) for each in args]
        ends = [width(0), *given, width(1)] if len(given) == 1 else [*given, width(1)] if len(given) == 2 else given
        bounds = cgutils.pack_struct(self.builder, ends)
        self._ends[bounds] = ends
        return bounds

    def _iterator(self, bounds: Any) -> Any:
        """(address of the next number, stop, step, address of how many are left)"""
        builder = self.builder
        start, stop, step = self._ends.get(bounds) or cgutils.unpack_tuple(builder, bounds, 3)
        width = start.type
        with builder.goto_entry_block():
            number, left = builder.alloca(width), builder.alloca(width)
        distance = builder.sub(stop, start)
        if not (isinstance(step, ir.Constant) and step.constant == 1):
            up = builder.icmp_signed(">", step, width(0))
            distance = builder.select(up, distance, builder.neg(distance))
            size = builder.select(up, step, builder.neg(step))
            distance = builder.sdiv(builder.add(distance, builder.sub(size, width(1))), size)
        builder.store(start, number)
        builder.store(builder.select(builder.icmp_signed(">", distance, width(0)), distance, width(0)), left)
        return cgutils.pack_struct(builder, [number, stop, step, left])

    def _next(self, iterator: Any) -> Any:
        """(the next number, whether there is one)"""
        builder = self.builder
        number, _, step, left = cgutils.unpack_tuple(builder, iterator, 4)
        now, count = builder.load(number), builder.load(left)
        builder.store(builder.add(now, step), number)
        builder.store(builder.sub(count, count.type(1)), left)
        return cgutils.pack_struct(builder, [now, builder.icmp_signed(">", count, count.type(0))])

    def lower_getitem(self, resty: Any, expr: Any, value: Any, index: Any, signature: Any) -> Any:
        array, places = signature.args[0], _places(signature.args[1])
        if not isinstance(array, types.Array) or places is None or len(places) > array.ndim or resty != signature.return_type:
            return super().lower_getitem(resty, expr, value, index, signature)
        whole = self.loadvar(value.name)
        address = self._address(array, whole, places, self.typeof(index.name), self.loadvar(index.name))
        if len(places) == array.ndim:
            return self.context.unpack_value(self.builder, array.dtype, address, align=None if array.aligned else 1)
        return self._rest(array, resty, whole, address, len(places))

    def lower_setitem(self, target_var: Any, index_var: Any, value_var: Any, signature: Any) -> Any:
        array, places = signature.args[0], _places(signature.args[1])
        if not isinstance(array, types.Array) or places is None or len(places) != array.ndim:
            return super().lower_setitem(target_var, index_var, value_var, signature)
        address = self._address(array, self.loadvar(target_var.name), places, self.typeof(index_var.name), self.loadvar(index_var.name))
        value = self.context.cast(self.builder, self.loadvar(value_var.name), self.typeof(value_var.name), array.dtype)
        return self.context.pack_value(self.builder, array.dtype, value, address, align=None if array.aligned else 1)

    def _address(self, array: Any, whole: Any, places: tuple[Any, ...], kind: Any, index: Any) -> Any:
        """Where array[index] begins; an index below zero counts from the end."""
        builder, found = self.builder, []
        given = (
            zip(kind.types, cgutils.unpack_tuple(builder, index, len(places)), strict=True) if isinstance(kind, Tuple) else [(kind, index)]
        )
        shape = cgutils.unpack_tuple(builder, builder.extract_value(whole, ARRAY["shape"]), array.ndim)
        for axis, ((own, value), wanted) in enumerate(zip(given, places, strict=True)):
            place = self.context.cast(
                builder, self.context.cast(builder, value, own, wanted), wanted, types.intp if wanted.signed else types.uintp
            )
            if wanted.signed:
                place = builder.select(builder.icmp_signed("<", place, INTP(0)), builder.add(place, shape[axis]), place)
            found.append(place)
        data = builder.extract_value(whole, ARRAY["data"])
        if array.layout == "C":
            offset = found[0]
            for axis in range(1, array.ndim):
                offset = builder.mul(offset, shape[axis])
                if axis < len(found):
                    offset = builder.add(offset, found[axis])
            return builder.gep(data, [offset])
        steps = builder.extract_value(whole, ARRAY["strides"])
        offsets = [builder.mul(place, builder.extract_value(steps, axis)) for axis, place in enumerate(found)]
        total = offsets[0]
        for offset in offsets[1:]:
            total = builder.add(total, offset)
        return cgutils.pointer_add(builder, data, total)

    def _rest(self, array: Any, resty: Any, whole: Any, address: Any, used: int) -> Any:
        """The array of the axes that are left, which begins at an address."""
        builder = self.builder
        rest = ir.Constant(self.context.get_value_type(resty), None)
        rest = builder.insert_value(rest, builder.extract_value(whole, ARRAY["itemsize"]), ARRAY["itemsize"])
        rest = builder.insert_value(rest, address, ARRAY["data"])
        for part in ("shape", "strides"):
            for axis in range(used, array.ndim):
                rest = builder.insert_value(rest, builder.extract_value(whole, (ARRAY[part], axis)), (ARRAY[part], axis - used))
        return rest


def _places(index: Any) -> tuple[Any, ...] | None:
    """The types of the integers of an index, None where it is anything else."""
    kinds = index.types if isinstance(index, Tuple) else (index,)
    return tuple(kinds) if kinds and all(isinstance(kind, types.Integer) for kind in kinds) else None
