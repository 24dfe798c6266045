"""The exponential and the natural logarithm of `Lanes`, all lanes at once; exact but for the last bits, as a mathematics library is.

    log(2^e m) = e log 2 + log m,   1/sqrt(2) <= m < sqrt(2),   log m = 2 (t + t^3/3 + t^5/5 + ...),   t = (m - 1)/(m + 1)
    exp(x) = 2^k exp(r),            k the integer next to x/log 2,  |r| <= log(2)/2,  exp r by its power series

Both series end where the next term is below the last bit. log 2 is split so that e times its first part is exact.
"""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from cvxlayers.kernels.lanes import LANES, VECTOR, Compiled, compiled, emitted, full, lanes, larger, select, smaller

WORDS = ir.VectorType(ir.IntType(64), LANES)
LOG2, LOG2_REST = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
"""log 2 to 33 bits, and what is missing of it."""
ROUND = 1.5 * 2.0**52
"""x + ROUND - ROUND is the integer next to x, and the last bits of x + ROUND hold it."""
LOG_SERIES = tuple(1.0 / k for k in range(23, 1, -2))
EXP_SERIES = tuple(1.0 / factorial(k) for k in range(13, -1, -1))
TINY, SHIFT = 2.0**-1000, 54
"""A number below TINY is multiplied by 2^SHIFT first: its exponent may not be where that of others is."""


def _constant(bits: int) -> Any:
    return ir.Constant(WORDS, [bits % 2**64] * LANES)


@emitted
def _taken_apart(typing_context: Any, a: Compiled) -> Any:
    """(m, e) with a = 2^e m and 1/sqrt(2) <= m < sqrt(2), for positive normal numbers."""
    root = int.from_bytes(np.float64(np.sqrt(0.5)).tobytes(), "little")
    fifty_two = _constant(52)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = builder.bitcast(args[0], WORDS)
        # e + 2048, which is positive; behind the exponent of 2^52 it is a float
        exponent = builder.lshr(builder.add(word, _constant(2**63 - root)), fifty_two)
        mantissa = builder.sub(builder.add(word, _constant(2**63)), builder.shl(exponent, fifty_two))
        number = builder.bitcast(builder.or_(exponent, _constant(0x433 << 52)), VECTOR)
        number = builder.fsub(number, ir.Constant(VECTOR, [2.0**52 + 2048] * LANES))
        return context.make_tuple(builder, sig.return_type, (builder.bitcast(mantissa, VECTOR), number))

    return types.UniTuple(lanes, 2)(lanes), emit


@emitted
def _power_of_two(typing_context: Any, k: Compiled) -> Any:
    """2^k for k + ROUND, an integer -1022 <= k <= 1023 in it."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = builder.add(builder.bitcast(args[0], WORDS), _constant(1023))
        return builder.bitcast(builder.shl(word, _constant(52)), VECTOR)

    return lanes(lanes), emit


@compiled
def log(a: Compiled) -> Compiled:
    """The natural logarithm: -inf at 0, NaN below."""
    tiny = a < TINY
    m, e = _taken_apart(select(tiny, a * 2.0**SHIFT, a))
    e = select(tiny, e - SHIFT, e)
    f = m - 1.0
    t = f / (2.0 + f)
    z = t * t
    series = full(0.0)
    for coefficient in LOG_SERIES:
        series = series * z + coefficient
    # log m = f - (f^2/2 - t (f^2/2 + 2 z series)): f is exact, and larger than the rest
    half = 0.5 * f * f
    value = e * LOG2 + (f - (half - (t * (half + 2.0 * z * series) + e * LOG2_REST)))
    value = select((a > 0.0) & (a < np.inf), value, a)  # inf and NaN are their own logarithms
    return select(a == 0.0, full(-np.inf), select(a < 0.0, full(np.nan), value))


@compiled
def exp(a: Compiled) -> Compiled:
    """The exponential."""
    x = larger(smaller(a, 800.0), -800.0)
    k = (x * 1.4426950408889634 + ROUND) - ROUND
    r = (x - k * LOG2) - k * LOG2_REST
    series = full(0.0)
    for coefficient in EXP_SERIES:
        series = series * r + coefficient
    # 2^k in two steps, as it need not be a normal number
    half = (0.5 * k + ROUND) - ROUND
    value = series * _power_of_two(half + ROUND) * _power_of_two(k - half + ROUND)
    return select(a == a, value, a)
