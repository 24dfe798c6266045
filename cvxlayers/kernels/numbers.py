"""Single numbers in vectors, for compiled code that treats one row of a batch along the vectors; these names exist there only."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from cvxlayers.kernels.lanes import INDEX, LANES, Compiled, address, check, emitted, lanes


def _number(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """The address of number args[2], counted from the beginning of row args[1]."""
    row = builder.bitcast(address(context, builder, sig, args), ir.DoubleType().as_pointer())
    return builder.gep(row, [context.cast(builder, args[2], sig.args[2], types.intp)])


@emitted
def get(typing_context: Any, array: Compiled, row: Compiled, i: Compiled) -> Any:
    """Number i of those that begin with array[row], over as many rows as they take."""
    check(array)
    return types.float64(array, row, i), lambda context, builder, sig, args: builder.load(_number(context, builder, sig, args))


@emitted
def put(typing_context: Any, array: Compiled, row: Compiled, i: Compiled, value: Compiled) -> Any:
    """Set number i of those that begin with array[row]; returns nothing."""
    check(array)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = context.cast(builder, args[3], sig.args[3], types.float64)
        builder.store(number, _number(context, builder, sig, args))
        return context.get_dummy_value()

    return types.void(array, row, i, value), emit


@emitted
def insert(typing_context: Any, value: Compiled, number: Compiled, entry: Compiled) -> Any:
    """The vector with another float64 in one lane."""
    return lanes(value, number, entry), lambda context, builder, sig, args: builder.insert_element(args[0], args[2], args[1])


@emitted
def total(typing_context: Any, value: Compiled) -> Any:
    """The sum of the lanes, by halves."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (rest,), width = args, LANES
        while width > 1:
            width //= 2
            low, high = (
                builder.shuffle_vector(rest, rest, ir.Constant(ir.VectorType(INDEX, width), list(range(first, first + width))))
                for first in (0, width)
            )
            rest = builder.fadd(low, high)
        return builder.extract_element(rest, INDEX(0))

    return types.float64(value), emit


@emitted
def apart(typing_context: Any) -> Any:
    """Keep the function that this stands in out of its callers, each of which would compile it again; returns nothing."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), emit
