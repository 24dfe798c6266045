"""The functions of an array namespace on `Lanes`, by the names of the array-API standard: ``xp`` where text for arrays is compiled."""

from __future__ import annotations

from cvxlayers.kernels.elementary import exp, log
from cvxlayers.kernels.lanes import Compiled, full, inner, select, sqrt
from cvxlayers.kernels.lanes import larger as maximum
from cvxlayers.kernels.lanes import smaller as minimum

abs, where = abs, select


@inner
def zeros_like(a: Compiled) -> Compiled:
    """Zero in every lane."""
    return full(0.0)


@inner
def pow(a: Compiled, power: Compiled) -> Compiled:
    """a^power for a >= 0 and a positive number."""
    return exp(power * log(a))


@inner
def expm1(a: Compiled) -> Compiled:
    """exp(a) - 1, small values to all digits: a (u - 1) / log(u) with u = exp(a), whose rounding errors cancel."""
    u = exp(a)
    plain = u - 1.0
    curved = (abs(a) < 0.5) & ~(plain == 0.0)
    return select(curved, a * (plain / log(select(curved, u, 2.0))), select(plain == 0.0, a, plain))


__all__ = ["abs", "exp", "expm1", "log", "maximum", "minimum", "pow", "sqrt", "where", "zeros_like"]
