"""What the method asks of the cones, answered kind by kind; a kind that a program does not have is None and is not compiled.

s and z lie inside the cone and its dual, H is symmetric positive definite with H z = s (`interior`).
"""

from __future__ import annotations

from cvxlayers.kernels import nonnegative, second_order, semidefinite, three_dimensional
from cvxlayers.kernels.lanes import Compiled, full, inner, select
from cvxlayers.kernels.system import dot


@inner
def center(s: Compiled, z: Compiled, linear: Compiled, so: Compiled, three: Compiled, sd: Compiled) -> None:
    """Start at the central point of every cone."""
    nonnegative.center(linear, s, z)
    if so is not None:
        second_order.center(so, s, z)
    if three is not None:
        three_dimensional.center(three, s, z)
    if sd is not None:
        semidefinite.center(sd, s, z)


@inner
def enter(v: Compiled, linear: Compiled, so: Compiled, three: Compiled, sd: Compiled) -> None:
    """Move v into the interior of the cones along their central ray, where it is not already well inside; symmetric cones only."""
    least = nonnegative.margin(linear, v, full(1e300))
    if so is not None:
        least = second_order.margin(so, v, least)
    if sd is not None:
        least = semidefinite.margin(sd, v, least)
    length = select(least < 1e-4, 1.0 - least, 0.0)
    nonnegative.shift(linear, v, length)
    if so is not None:
        second_order.shift(so, v, length)
    if sd is not None:
        semidefinite.shift(sd, v, length)


@inner
def rescale(
    system: Compiled,
    s: Compiled,
    z: Compiled,
    dual: Compiled,
    values: Compiled,
    linear: Compiled,
    so: Compiled,
    three: Compiled,
    sd: Compiled,
) -> None:
    """Find H at (s, z) and put -H into K; cones that have two kinds of H take the one of the dual barrier in the lanes ``dual``."""
    nonnegative.rescale(linear, system, s, z, values)
    if so is not None:
        second_order.rescale(so, system, s, z, values)
    if three is not None:
        three_dimensional.rescale(three, system, s, z, dual, values)
    if sd is not None:
        semidefinite.rescale(sd, system, s, z, values)


@inner
def correct(
    s: Compiled,
    z: Compiled,
    ds: Compiled,
    dz: Compiled,
    target: Compiled,
    offset: Compiled,
    work: Compiled,
    linear: Compiled,
    so: Compiled,
    three: Compiled,
    sd: Compiled,
) -> None:
    """The offset of the corrected step: towards the central path at ``target``, with the second-order term of the predictor (ds, dz)."""
    nonnegative.correct(linear, s, z, ds, dz, target, offset)
    if so is not None:
        second_order.correct(so, s, z, ds, dz, target, offset, work)
    if three is not None:
        three_dimensional.correct(three, s, z, ds, dz, target, offset)
    if sd is not None:
        semidefinite.correct(sd, s, ds, dz, target, offset)


@inner
def longest(
    s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, most: Compiled, linear: Compiled, so: Compiled, three: Compiled, sd: Compiled
) -> Compiled:
    """The longest step up to ``most`` that keeps s + step ds and z + step dz in the cones; cones in R^3 are left to `shorten`."""
    most = nonnegative.longest(s, ds, linear.zero, linear.end, most)
    most = nonnegative.longest(z, dz, linear.zero, linear.end, most)
    if so is not None:
        most = second_order.longest(so, s, ds, most)
        most = second_order.longest(so, z, dz, most)
    if sd is not None:
        most = semidefinite.longest(sd, ds, True, most)
        most = semidefinite.longest(sd, dz, False, most)
    return most


@inner
def shorten(
    s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, near: Compiled, tau: Compiled, dtau: Compiled, kappa: Compiled, dkappa: Compiled,
    mu: Compiled, degree: Compiled, step: Compiled, three: Compiled,
) -> Compiled:  # fmt: skip
    """A step that keeps cones in R^3, too, and where ``near`` stays in a neighbourhood of the central path."""
    if three is not None:
        first_order = (dot(s, dz) + dot(ds, z) + tau * dkappa + kappa * dtau) / (degree + 1.0)
        curvature = (dot(ds, dz) + dtau * dkappa) / (degree + 1.0)
        step = three_dimensional.shorten(three, s, z, ds, dz, near, mu, first_order, curvature, step)
    return step
