"""The steps of the method: its first point and its directions, by the factors of K; the equations stand in `interior`.

``kkt`` is the order of elimination of K and its factors, (Symbolic, Factors).
"""

from __future__ import annotations

from cvxlayers.kernels import nonnegative, semidefinite
from cvxlayers.kernels.cones import center, enter, rescale
from cvxlayers.kernels.lanes import Compiled, full, inner, load, part, store, vector
from cvxlayers.kernels.ldl import factor, refine, solve
from cvxlayers.kernels.memory import AX, AZ, CONSTANT, DS, LEFT, OFFSET, PX, RHS, STEP, TRIAL, VALUES, XZ, B, Q, S
from cvxlayers.kernels.system import dot

TINY, LARGE = 1e-13, 1e-7
"""A pivot below TINY is replaced by LARGE."""
EXACT = 1e-13
"""The relative residual of K that is refined no further."""


@inner
def constant(
    system: Compiled, kkt: Compiled, memory: Compiled, options: Compiled, q_part: Compiled, b_part: Compiled, harmless: Compiled,
    out: Compiled,
) -> None:  # fmt: skip
    """out = K^-1 (-q_part q, b_part b, 0)."""
    n, m, rhs, q, b = system.n, system.m, vector(memory, RHS), vector(memory, Q), vector(memory, B)
    left, trial = vector(memory, LEFT), vector(memory, TRIAL)
    for j in range(n):
        store(rhs, j, -q_part * load(q, j))
    for i in range(m):
        store(rhs, n + i, b_part * load(b, i))
    for k in range(n + m, len(rhs)):
        store(rhs, k, 0.0)
    refine(kkt[0], vector(memory, VALUES), kkt[1], rhs, out, left, trial, options.refinements, EXACT, harmless)


@inner
def start(
    system: Compiled, kkt: Compiled, memory: Compiled, options: Compiled, linear: Compiled, so: Compiled, three: Compiled, sd: Compiled
) -> None:  # fmt: skip
    """The first point: the solution without cones but with |s|^2 / 2 added to the objective (H = I), moved into the cones.

    Without P that would be unbalanced: x and s are then those of least |s|, z that of least |z| with A'z + q = 0.
    """
    n, m, xz, s, step = system.n, system.m, vector(memory, XZ), vector(memory, S), vector(memory, STEP)
    z = part(xz, n, n + m)
    center(s, z, linear, so, three, sd)
    rescale(system, s, z, full(0.0) > 1.0, vector(memory, VALUES), linear, so, three, sd)
    if three is not None:  # cones without symmetry begin at their center
        for k in range(n):
            store(xz, k, 0.0)
        return
    factor(kkt[0], vector(memory, VALUES), options.shift, TINY, LARGE, kkt[1])
    constant(system, kkt, memory, options, 1.0 if system.quadratic else 0.0, 1.0, 0.0, xz)
    for i in range(m):
        store(s, i, -load(z, i))
    for i in range(linear.zero):
        store(s, i, 0.0)
    if not system.quadratic:
        constant(system, kkt, memory, options, 1.0, 0.0, 0.0, step)
        for i in range(m):
            store(z, i, load(step, n + i))
    enter(s, linear, so, three, sd)
    enter(z, linear, so, three, sd)


@inner
def direction(
    system: Compiled, kkt: Compiled, memory: Compiled, options: Compiled, f: Compiled, tau: Compiled, kappa: Compiled, r_tau: Compiled,
    r_kappa: Compiled, slope: Compiled, refinements: Compiled, harmless: Compiled,
) -> Compiled:  # fmt: skip
    """(dx, dz) into ``step``; returns dtau and dkappa. ``slope`` is dtau's denominator, ``refinements`` are the most to do."""
    n, m, rhs, step, fixed = system.n, system.m, vector(memory, RHS), vector(memory, STEP), vector(memory, CONSTANT)
    q, b, s, offset = vector(memory, Q), vector(memory, B), vector(memory, S), vector(memory, OFFSET)
    Px, Az, Ax, left, trial = vector(memory, PX), vector(memory, AZ), vector(memory, AX), vector(memory, LEFT), vector(memory, TRIAL)
    for j in range(n):
        store(rhs, j, -f * (load(Px, j) + load(Az, j) + load(q, j) * tau))
    for i in range(m):
        store(rhs, n + i, load(offset, i) - f * (load(Ax, i) + load(s, i) - load(b, i) * tau))
    for k in range(n + m, len(rhs)):
        store(rhs, k, 0.0)
    if refinements:
        refine(kkt[0], vector(memory, VALUES), kkt[1], rhs, step, left, trial, refinements, EXACT, harmless)
    else:
        for k in range(len(rhs)):
            store(step, k, load(rhs, k))
        solve(kkt[0], kkt[1], step)
    change = f * r_tau - r_kappa / tau + dot(q, part(step, 0, n)) + dot(b, part(step, n, n + m)) + 2.0 * dot(Px, part(step, 0, n)) / tau
    dtau = change / slope
    for k in range(n + m):
        store(step, k, load(step, k) + dtau * load(fixed, k))
    return dtau, -(r_kappa + kappa * dtau) / tau


@inner
def follow(system: Compiled, memory: Compiled, linear: Compiled, f: Compiled, tau: Compiled, dtau: Compiled, sd: Compiled) -> None:
    """ds of a direction: -H dz - offset in linear rows and matrices, -f r_z - A dx + b dtau in others.

    The two are equal but for rounding. Near the boundary of a curved cone H has eigenvalues of all sizes, and what is lost of H dz is of
    the size of the largest; it is better lost from complementarity than from feasibility.
    """
    n, indices, indptr, values = system.n, system.indices, system.indptr, vector(memory, VALUES)
    step, s, ds, b, Ax = vector(memory, STEP), vector(memory, S), vector(memory, DS), vector(memory, B), vector(memory, AX)
    z, dz = part(vector(memory, XZ), n, n + system.m), part(step, n, n + system.m)
    nonnegative.move(linear, s, z, dz, vector(memory, OFFSET), ds)
    for block in range(len(system.blocks)):
        for i in range(system.blocks[block, 0], system.blocks[block, 1]):
            total = f * (load(Ax, i) + load(s, i) - load(b, i) * tau) - load(b, i) * dtau
            for p in range(indptr[n + i], system.A_ends[i]):
                total += load(values, p) * load(step, indices[p])
            store(ds, i, -total)
    if sd is not None:
        semidefinite.move(sd, dz, vector(memory, OFFSET), ds)
