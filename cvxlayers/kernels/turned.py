"""Squares of LANES rows and LANES entries, turned in registers on their way from a batch to lanes and back.

One by one numbers would take three times as long. Arrays of a batch are `contiguous`, of float32 or float64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from cvxlayers.kernels.lanes import INDEX, LANES, VECTOR, Compiled, check, emitted


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The transpose of LANES vectors: blocks of 1, 2, 4 entries change places."""
    width = 1
    while width < LANES:
        found = list(rows)
        for i in range(LANES):
            if not i & width:
                a, b = rows[i], rows[i + width]
                low = [k if not k & width else k - width + LANES for k in range(LANES)]
                high = [k + width if not k & width else k + LANES for k in range(LANES)]
                for at, order in ((i, low), (i + width, high)):
                    found[at] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INDEX, LANES), order))
        rows, width = found, 2 * width
    return rows


def _corner(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> tuple[list[Any], Any]:
    """The addresses of array[row + i, column], i < LANES, for vectors of LANES entries, and the type of these."""
    whole = context.make_array(kind)(context, builder, array)
    vector = ir.VectorType(context.get_value_type(kind.dtype), LANES)
    width = cgutils.unpack_tuple(builder, whole.shape)[1]
    start = builder.gep(whole.data, [builder.add(builder.mul(row, width), column)])
    places = [builder.gep(start, [builder.mul(width, width.type(i))]) for i in range(LANES)]
    return [builder.bitcast(place, vector.as_pointer()) for place in places], vector


@emitted
def contiguous(typing_context: Any, array: Compiled) -> Any:
    """Whether rows follow each other without gaps, as far as the type of the array tells."""
    return types.boolean(array), lambda context, builder, sig, args: context.get_constant(types.boolean, array.layout == "C")


@emitted
def turn_in(typing_context: Any, source: Compiled, row: Compiled, column: Compiled, target: Compiled) -> Any:
    """target[column + k, j] = source[row + j, column + k] for j and k below LANES."""
    check(target)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        row, column = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2))
        places, vector = _corner(context, builder, sig.args[0], args[0], row, column)
        rows = [builder.load(place, align=4) for place in places]
        rows = rows if vector == VECTOR else [builder.fpext(a, VECTOR) for a in rows]
        start = builder.gep(builder.bitcast(context.make_array(sig.args[3])(context, builder, args[3]).data, VECTOR.as_pointer()), [column])
        for k, a in enumerate(_turned(builder, rows)):
            builder.store(a, builder.gep(start, [INDEX(k)]), align=8)
        return context.get_dummy_value()

    return types.void(source, row, column, target), emit


@emitted
def turn_out(typing_context: Any, source: Compiled, row: Compiled, column: Compiled, target: Compiled) -> Any:
    """target[row + j, column + k] = source[column + k, j] for j and k below LANES."""
    check(source)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        row, column = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2))
        start = builder.gep(builder.bitcast(context.make_array(sig.args[0])(context, builder, args[0]).data, VECTOR.as_pointer()), [column])
        rows = _turned(builder, [builder.load(builder.gep(start, [INDEX(k)]), align=8) for k in range(LANES)])
        places, vector = _corner(context, builder, sig.args[3], args[3], row, column)
        for a, place in zip(rows, places, strict=True):
            builder.store(a if vector == VECTOR else builder.fptrunc(a, vector), place, align=4)
        return context.get_dummy_value()

    return types.void(source, row, column, target), emit
