"""What the method asks of the cones, answered kind by kind; a kind that a program does not have is None and is not compiled.

s and z lie inside the cone and its dual, H is symmetric positive definite with H z = s (`interior`).
"""

from __future__ import annotations

from cvxlayers.kernels import nonnegative
from cvxlayers.kernels.lanes import Compiled, compiled, full, select


@compiled
def center(s: Compiled, z: Compiled, linear: Compiled) -> None:
    """Start at the central point of every cone."""
    nonnegative.center(linear, s, z)


@compiled
def enter(v: Compiled, linear: Compiled) -> None:
    """Move v into the interior of the cones along their central ray, where it is not already well inside; symmetric cones only."""
    least = nonnegative.margin(linear, v, full(1e300))
    length = select(least < 1e-4, 1.0 - least, 0.0)
    nonnegative.shift(linear, v, length)


@compiled
def rescale(system: Compiled, s: Compiled, z: Compiled, values: Compiled, linear: Compiled) -> None:
    """Find H at (s, z) and put -H into K."""
    nonnegative.write(linear, system, s, z, values)


@compiled
def move(s: Compiled, z: Compiled, dz: Compiled, offset: Compiled, ds: Compiled, linear: Compiled) -> None:
    """ds = -H dz - offset."""
    nonnegative.affine(linear, s, z, dz, offset, ds)


@compiled
def correct(s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, target: Compiled, offset: Compiled, linear: Compiled) -> None:
    """The offset of the corrected step: towards the central path at ``target``, with the second-order term of the predictor (ds, dz)."""
    nonnegative.correct(linear, s, z, ds, dz, target, offset)


@compiled
def longest(s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, most: Compiled, linear: Compiled) -> Compiled:
    """The longest step up to ``most`` that keeps s + step ds and z + step dz in the cones."""
    most = nonnegative.longest(s, ds, linear.zero, linear.end, most)
    return nonnegative.longest(z, dz, linear.zero, linear.end, most)
