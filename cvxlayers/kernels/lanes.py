"""One number of each of LANES problems, side by side in a SIMD register: a type of compiled code with the arithmetic of a scalar.

Kernels are written for one problem, in `Lanes` instead of floats; what the compiler makes of them treats every lane alike, so that a
problem's result does not depend on the lane it sits in, bitwise, nor on its neighbours. Arrays are float64 (entries, LANES), C-contiguous.

- ``load(array, i)``, ``store(array, i, v)``, ``full(number)``, ``lane(v, j)``;
- ``+ - * / < <= > >= ==``, ``abs``, ``sqrt`` (``exp`` and ``log``: `cvxlayers.kernels.elementary`); a product and the sum it goes into
  may be fused (no other liberty);
- a comparison gives a `Mask`, false where NaN takes part: ``select(mask, a, b)``, ``& | ~``, ``some(mask)``;
- ``smaller(a, b)`` is a where a < b else b, ``larger(a, b)`` likewise: where a is NaN they are b.

These names exist in compiled code only.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from cvxlayers.kernels.disk import compiled as compiled
from cvxlayers.kernels.disk import inner as inner

LANES = 8
"""Problems per register: 512 bits of float64, or two registers of 256, or four of 128."""

DEFINITE = 1e-15
"""Added to the diagonal of a positive definite matrix, relative to its size, lest rounding make it indefinite."""

Compiled = Any
"""What stands in compiled code only, where annotations are not read."""

FUSED = ("contract",)
VECTOR, BITS = ir.VectorType(ir.DoubleType(), LANES), ir.VectorType(ir.IntType(1), LANES)
INDEX = ir.IntType(32)


def emitted(function: Any) -> Any:
    """A function of compiled code that emits its own instructions."""
    return intrinsic(function)


class Lanes(types.Type):
    """The type of a vector of float64."""


class Mask(types.Type):
    """The type of a vector of truth values."""


lanes, mask = Lanes("lanes"), Mask("mask")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, BITS)


def _spread(builder: Any, value: Any) -> Any:
    """A vector that holds ``value`` in every lane."""
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, INDEX(0))
    return builder.shuffle_vector(one, ir.Constant(VECTOR, ir.Undefined), ir.Constant(ir.VectorType(INDEX, LANES), [0] * LANES))


def _vector(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return value if kind is lanes else _spread(builder, context.cast(builder, value, kind, types.float64))


def _typed(function: Any, result_of: Any) -> None:
    """Let ``result_of(*kinds)`` be the type that ``function`` gives for operands of those types, None for those that it does not know."""

    class Template(AbstractTemplate):
        key = function
        metadata = {"target": "cpu"}  # has numba ask here before its own templates, a dozen for every sign

        def generic(self, kinds: Any, keywords: Any) -> Any:
            result = result_of(*kinds)
            return None if result is None else signature(result, *kinds)

    infer_global(function, types.Function(Template))


def _binary(function: Any, result: Any, emit: Any) -> None:
    """Give ``function`` a meaning for two operands of which one at least is `Lanes`, the other that or a number."""

    def result_of(a: Any, b: Any) -> Any:
        return result if lanes in (a, b) and all(kind is lanes or isinstance(kind, types.Number) for kind in (a, b)) else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *(_vector(context, builder, kind, value) for kind, value in zip(sig.args, args, strict=True)))

    _typed(function, result_of)
    for kinds in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(function, *kinds)(lower)


def _unary(function: Any, kind: Any, emit: Any) -> None:
    _typed(function, lambda a: kind if a is kind else None)
    lower_builtin(function, type(kind))(lambda context, builder, sig, args: emit(builder, args[0]))


def _logical(function: Any, emit: Any) -> None:
    _typed(function, lambda a, b: mask if a is mask and b is mask else None)
    lower_builtin(function, Mask, Mask)(lambda context, builder, sig, args: emit(builder, *args))


for _names, _emit in {
    ("add", "iadd"): lambda builder, a, b: builder.fadd(a, b, flags=FUSED),
    ("sub", "isub"): lambda builder, a, b: builder.fsub(a, b, flags=FUSED),
    ("mul", "imul"): lambda builder, a, b: builder.fmul(a, b, flags=FUSED),
    ("truediv", "itruediv"): lambda builder, a, b: builder.fdiv(a, b),
}.items():
    for _name in _names:
        _binary(getattr(operator, _name), lanes, _emit)
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}.items():
    _binary(getattr(operator, _name), mask, lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b))
for _names, _emit in {
    ("and_", "iand"): lambda builder, a, b: builder.and_(a, b),
    ("or_", "ior"): lambda builder, a, b: builder.or_(a, b),
}.items():
    for _name in _names:
        _logical(getattr(operator, _name), _emit)
_unary(operator.neg, lanes, lambda builder, a: builder.fneg(a))
_unary(operator.invert, mask, lambda builder, a: builder.not_(a))


def _intrinsic_of(name: str) -> Any:
    """The function of one vector that LLVM knows by that name."""

    def emit(builder: Any, a: Any) -> Any:
        known = builder.module.globals.get(f"llvm.{name}.v{LANES}f64")
        return builder.call(known or ir.Function(builder.module, ir.FunctionType(VECTOR, (VECTOR,)), f"llvm.{name}.v{LANES}f64"), (a,))

    return emit


_unary(abs, lanes, _intrinsic_of("fabs"))


@emitted
def sqrt(typing_context: Any, a: Compiled) -> Any:
    """The square root."""
    emit = _intrinsic_of("sqrt")
    return lanes(lanes), lambda context, builder, sig, args: emit(builder, args[0])


def _at(context: Any, array: Any, name: str) -> int:
    """Where a part of an array is among its parts."""
    return context.data_model_manager[array].get_field_position(name)


def address(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    row = context.cast(builder, args[1], sig.args[1], types.intp)
    start = builder.bitcast(builder.extract_value(args[0], _at(context, sig.args[0], "data")), VECTOR.as_pointer())
    return builder.gep(start, [row])


def check(array: Any) -> None:
    if not (isinstance(array, types.Array) and array.ndim == 2 and array.layout == "C" and array.dtype == types.float64):
        raise TypeError(f"lanes live in C-contiguous float64 arrays (entries, {LANES}), not in {array}")


@emitted
def load(typing_context: Any, array: Compiled, row: Compiled) -> Any:
    """array[row, :]"""
    check(array)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(address(context, builder, sig, args), align=8)

    return lanes(array, row), emit


@emitted
def store(typing_context: Any, array: Compiled, row: Compiled, value: Compiled) -> Any:
    """array[row, :] = value; returns nothing"""
    check(array)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(_vector(context, builder, sig.args[2], args[2]), address(context, builder, sig, args), align=8)
        return context.get_dummy_value()

    return types.void(array, row, value), emit


def _part(context: Any, builder: Any, kind: Any, whole: Any, start: Any, stop: Any) -> Any:
    data, shape = (_at(context, kind, name) for name in ("data", "shape"))
    place = builder.mul(start, builder.extract_value(whole, (shape, 1)))
    out = builder.insert_value(whole, builder.gep(builder.extract_value(whole, data), [place]), data)
    return builder.insert_value(out, builder.sub(stop, start), (shape, 0))


@emitted
def part(typing_context: Any, array: Compiled, first: Compiled, last: Compiled) -> Any:
    """array[first:last], borrowed: it must not outlive the array. A slice proper is ten times as much code."""
    check(array)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        ends = (context.cast(builder, value, kind, types.intp) for value, kind in zip(args[1:], sig.args[1:], strict=True))
        return _part(context, builder, array, args[0], *ends)

    return array(array, first, last), emit


@emitted
def vector(typing_context: Any, memory: Compiled, k: Compiled) -> Any:
    """Vector k of a tuple (numbers (entries, LANES), starts, ...): numbers[starts[k] : starts[k + 1]], borrowed."""
    numbers, starts = memory.types[:2]
    check(numbers)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = builder.extract_value(args[0], (1, _at(context, starts, "data")))
        place = builder.gep(first, [context.cast(builder, args[1], sig.args[1], types.intp)])
        after = builder.gep(place, [context.get_constant(types.intp, 1)])
        return _part(context, builder, numbers, builder.extract_value(args[0], 0), builder.load(place), builder.load(after))

    return numbers(memory, k), emit


@emitted
def full(typing_context: Any, number: Compiled) -> Any:
    """The same number in every lane."""
    return lanes(number), lambda context, builder, sig, args: _vector(context, builder, sig.args[0], args[0])


@emitted
def select(typing_context: Any, condition: Compiled, a: Compiled, b: Compiled) -> Any:
    """a where the condition holds, b elsewhere."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        yes, no = (_vector(context, builder, kind, value) for kind, value in zip(sig.args[1:], args[1:], strict=True))
        return builder.select(args[0], yes, no)

    return lanes(condition, a, b), emit


def _extreme(sign: str) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_vector(context, builder, kind, value) for kind, value in zip(sig.args, args, strict=True))
        return builder.select(builder.fcmp_ordered(sign, a, b), a, b)

    return emit


@emitted
def smaller(typing_context: Any, a: Compiled, b: Compiled) -> Any:
    """a where a < b, b elsewhere."""
    return lanes(a, b), _extreme("<")


@emitted
def larger(typing_context: Any, a: Compiled, b: Compiled) -> Any:
    """a where a > b, b elsewhere."""
    return lanes(a, b), _extreme(">")


@emitted
def some(typing_context: Any, condition: Compiled) -> Any:
    """Whether a mask is true in some lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", word, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(condition), emit


@emitted
def lane(typing_context: Any, value: Compiled, number: Compiled) -> Any:
    """The float64 in one lane."""
    return types.float64(value, number), lambda context, builder, sig, args: builder.extract_element(args[0], args[1])


@emitted
def insert(typing_context: Any, value: Compiled, number: Compiled, entry: Compiled) -> Any:
    """The vector with another float64 in one lane."""
    return lanes(value, number, entry), lambda context, builder, sig, args: builder.insert_element(args[0], args[2], args[1])


def aligned(entries: int) -> np.ndarray:
    """Uninitialized (entries, LANES), on a boundary of cache lines."""
    raw = np.empty((entries + 1) * LANES)
    skip = -raw.ctypes.data % (8 * LANES) // 8
    return raw[skip : skip + entries * LANES].reshape(entries, LANES)
