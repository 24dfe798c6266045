"""The interior-point method: one block of LANES cone programs, each solved, stopped and certified by itself.

    minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

The homogeneous embedding of Goulart and Chen ("Clarabel: an interior-point solver for conic programs with quadratic objectives", 2024)
has a solution whether or not the program has one:

    Px + A'z + q tau = 0,   Ax + s = b tau,   x'Px / tau + q'x + b'z + kappa = 0,   (s, z) in K x K*,   tau, kappa >= 0,
    s'z = 0,  tau kappa = 0.

tau > 0 gives the solution (x, z, s) / tau; kappa > 0 a certificate that there is none: A'z = 0, b'z < 0 (no feasible point), or Px = 0,
Ax + s = 0, q'x < 0 (unbounded below). The method follows its central path (Mehrotra's predictor and corrector). With the residuals

    r_x = -(Px + A'z + q tau),   r_z = Ax + s - b tau,   r_tau = x'Px / tau + q'x + b'z + kappa,

a step solves  P dx + A'dz + q dtau = f r_x,  A dx + ds - b dtau = -f r_z,  ds + H dz = -offset,  kappa dtau + tau dkappa = -r_kappa  and the
linearized last equation, where H z = s is the cones' scaling. Eliminating ds and dtau leaves one matrix and two right-hand sides,

    [P  A'] [x1 x2]   [    f r_x       -q ]
    [A  -H] [z1 z2] = [offset - f r_z   b ],     (dx, dz) = (x1, z1) + dtau (x2, z2),

    dtau = (f r_tau - r_kappa / tau + q'x1 + b'z1 + 2 x'P x1 / tau) / (kappa / tau - q'x2 - b'z2 + x'Px / tau^2 - 2 x'P x2 / tau).

The predictor has f = 1, offset = s, r_kappa = tau kappa, and takes a step alpha; the corrector has sigma = (1 - alpha)^3, f = 1 - sigma,
r_kappa = tau kappa + dtau dkappa - sigma mu with mu = (s'z + tau kappa) / (degree + 1), and the cones' own offset.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvxlayers.kernels.cones import center, correct, enter, longest, move, rescale
from cvxlayers.kernels.equilibrate import equilibrate
from cvxlayers.kernels.lanes import Compiled, aligned, compiled, full, larger, load, select, smaller, some, store
from cvxlayers.kernels.ldl import Factors, factor, norm, refine
from cvxlayers.kernels.system import System, clear, dot, products

RUNNING, SOLVED, PRIMAL_INFEASIBLE, DUAL_INFEASIBLE, LIMIT, STALLED, FAILED = -1.0, 0.0, 2.0, 3.0, 4.0, 1.0, 7.0
"""What became of a lane; all but RUNNING are codes of `cvxlayers.errors.Status`."""

STEP = 0.99
"""The part of the way to the boundary of the cones that a step takes."""
PATIENCE = 12
"""Iterations without progress before a lane gives up."""
LOOSE = 1e4
"""A certificate of a lane that gives up may be this much less exact than one that stops a lane."""


class Options(NamedTuple):
    """Relative tolerances of residuals, gap and certificates; iterations; static regularization and refinement steps of K."""

    feasibility: float
    gap: float
    infeasibility: float
    iterations: int
    shift: float
    refinements: int


class Memory(NamedTuple):
    """One block: its numbers, the method's vectors, and what is found. Used by one thread at a time."""

    values: np.ndarray
    q: np.ndarray
    b: np.ndarray
    D: np.ndarray
    E: np.ndarray
    factors: Factors
    xz: np.ndarray
    s: np.ndarray
    constant: np.ndarray
    step: np.ndarray
    rhs: np.ndarray
    left: np.ndarray
    trial: np.ndarray
    Px: np.ndarray
    Az: np.ndarray
    Ax: np.ndarray
    ds: np.ndarray
    offset: np.ndarray
    x_found: np.ndarray
    z_found: np.ndarray
    s_found: np.ndarray
    report: np.ndarray

    @staticmethod
    def of(system: System) -> Memory:
        """Memory for the blocks of one system."""
        n, m, size, nnz = system.n, system.m, len(system.symbolic.signs), len(system.symbolic.indices)
        sizes = (nnz, n, m, n, m), (size, m, size, size, size, size, size, n, n, m, m, m, n, m, m, 2)
        first, second = ([aligned(entries) for entries in part] for part in sizes)
        return Memory(*first, Factors.of(system.symbolic), *second)


@compiled
def solve_block(system: Compiled, options: Compiled, degree: Compiled, memory: Compiled, linear: Compiled) -> None:
    """Solve the programs in ``memory``: values (P and A in K), q and b come unscaled and are destroyed.

    Leaves x, z and s in ``x_found, z_found, s_found`` and (status, iterations) in ``report``.
    """
    n, m, values, xz, s = system.n, system.m, memory.values, memory.xz, memory.s
    x, z, q, b = xz[:n], xz[n : n + m], memory.q, memory.b
    step, constant, ds, offset, Px = memory.step, memory.constant, memory.ds, memory.offset, memory.Px
    dz = step[n : n + m]
    for found in (memory.x_found, memory.z_found, memory.s_found):
        for i in range(len(found)):
            store(found, i, np.nan)
    q_size, b_size = norm(q), norm(b)
    c = equilibrate(system, values, q, b, memory.D, memory.E, memory.rhs)
    _start(system, options, memory, linear)

    tau, kappa, last = full(1.0), full(1.0), full(1.0)
    status, count, best, lowest, patience = full(RUNNING), full(0.0), full(np.inf), full(np.inf), full(0.0)
    for iteration in range(options.iterations + 1):
        products(system, values, xz, Px, memory.Az, memory.Ax)
        xPx, qx, bz = dot(x, Px), dot(q, x), dot(b, z)
        mu = (dot(s, z) + tau * kappa) / (degree + 1.0)
        merit, primal, dual = _assess(system, options, memory, tau, c, q_size, b_size, xPx, qx, bz)

        # What to do with each lane. All of it is decided by the lane's own numbers.
        running = status == RUNNING
        keep = running & (merit < best)
        if some(keep):
            _keep(memory, tau, c, keep)
        best = select(keep, merit, best)
        certificate = smaller(primal, dual)
        progress = smaller(merit, certificate)
        better = progress < 0.9 * lowest
        patience = select(better, 0.0, patience + 1.0)
        lowest = select(better, progress, lowest)
        stuck = (patience > PATIENCE) | (last < 1e-7) | ~(mu > 0.0) | ~(merit < np.inf)
        verdict = select(best <= 1.0, SOLVED, RUNNING)
        verdict = select((verdict == RUNNING) & (certificate <= 1.0), select(primal <= dual, PRIMAL_INFEASIBLE, DUAL_INFEASIBLE), verdict)
        given_up = select(certificate <= LOOSE, select(primal <= dual, PRIMAL_INFEASIBLE, DUAL_INFEASIBLE), FAILED)
        given_up = select(best * options.feasibility <= 1e-4, STALLED, given_up)
        verdict = select((verdict == RUNNING) & stuck, given_up, verdict)
        if iteration == options.iterations:
            verdict = select(verdict == RUNNING, LIMIT, verdict)
        status = select(running, verdict, status)
        count = select(running, float(iteration), count)
        running = status == RUNNING
        if not some(running):
            break

        # The residuals, and the solution of the constant right-hand side.
        rescale(system, s, z, values, linear)
        factor(system.symbolic, values, options.shift, 1e-13, 1e-7, memory.factors)
        _constant(system, memory, constant, options)
        r_tau = xPx / tau + qx + bz + kappa
        slope = kappa / tau - dot(q, constant[:n]) - dot(b, constant[n : n + m]) + (xPx / tau - 2.0 * dot(Px, constant[:n])) / tau

        # Predictor, then corrector.
        for i in range(m):
            store(offset, i, load(s, i))
        dtau, dkappa = _direction(system, memory, options, full(1.0), tau, kappa, r_tau, tau * kappa, slope)
        move(s, z, dz, offset, ds, linear)
        alpha = _longest(s, z, ds, dz, tau, dtau, kappa, dkappa, linear)
        sigma = (1.0 - alpha) * (1.0 - alpha) * (1.0 - alpha)
        correct(s, z, ds, dz, sigma * mu, offset, linear)
        r_kappa = tau * kappa + dtau * dkappa - sigma * mu
        dtau, dkappa = _direction(system, memory, options, 1.0 - sigma, tau, kappa, r_tau, r_kappa, slope)
        move(s, z, dz, offset, ds, linear)
        alpha = STEP * _longest(s, z, ds, dz, tau, dtau, kappa, dkappa, linear)

        last = alpha
        alpha = select(running, alpha, 0.0)  # a lane that has stopped stays where it is
        for j in range(n + m):
            store(xz, j, load(xz, j) + alpha * load(step, j))
        for i in range(m):
            store(s, i, load(s, i) + alpha * load(ds, i))
        tau, kappa = tau + alpha * dtau, kappa + alpha * dkappa
    store(memory.report, 0, status)
    store(memory.report, 1, count)


@compiled
def _start(system: Compiled, options: Compiled, memory: Compiled, linear: Compiled) -> None:
    """The first point: the least-squares solutions of Ax + s = b and Px + A'z + q = 0 (H = I), moved into the cones."""
    n, m, xz, s, step, rhs = system.n, system.m, memory.xz, memory.s, memory.step, memory.rhs
    z = xz[n : n + m]
    center(s, z, linear)
    rescale(system, s, z, memory.values, linear)
    factor(system.symbolic, memory.values, options.shift, 1e-13, 1e-7, memory.factors)
    clear(rhs)
    for i in range(m):
        store(rhs, n + i, load(memory.b, i))
    _solve(system, memory, options, xz)
    clear(rhs)
    for j in range(n):
        store(rhs, j, -load(memory.q, j))
    _solve(system, memory, options, step)
    for i in range(m):
        store(s, i, -load(z, i))
        store(z, i, load(step, n + i))
    for i in range(linear.zero):
        store(s, i, 0.0)
    enter(s, linear)
    enter(z, linear)


@compiled
def _solve(system: Compiled, memory: Compiled, options: Compiled, out: Compiled) -> Compiled:
    """out = K^-1 rhs."""
    return refine(
        system.symbolic, memory.values, memory.factors, memory.rhs, out, memory.left, memory.trial, options.refinements, 1e-13
    )  # fmt: skip


@compiled
def _constant(system: Compiled, memory: Compiled, out: Compiled, options: Compiled) -> None:
    """out = (x2, z2)."""
    n, m, rhs = system.n, system.m, memory.rhs
    for j in range(n):
        store(rhs, j, -load(memory.q, j))
    for i in range(m):
        store(rhs, n + i, load(memory.b, i))
    for k in range(n + m, len(rhs)):
        store(rhs, k, 0.0)
    _solve(system, memory, options, out)


@compiled
def _direction(
    system: Compiled, memory: Compiled, options: Compiled, f: Compiled, tau: Compiled, kappa: Compiled, r_tau: Compiled, r_kappa: Compiled,
    slope: Compiled,
) -> Compiled:  # fmt: skip
    """(dx, dz) into ``step``; returns dtau and dkappa."""
    n, m, rhs, step, constant = system.n, system.m, memory.rhs, memory.step, memory.constant
    for j in range(n):
        store(rhs, j, -f * (load(memory.Px, j) + load(memory.Az, j) + load(memory.q, j) * tau))
    for i in range(m):
        residual = load(memory.Ax, i) + load(memory.s, i) - load(memory.b, i) * tau
        store(rhs, n + i, load(memory.offset, i) - f * residual)
    for k in range(n + m, len(rhs)):
        store(rhs, k, 0.0)
    _solve(system, memory, options, step)
    x1, z1 = step[:n], step[n : n + m]
    change = f * r_tau - r_kappa / tau + dot(memory.q, x1) + dot(memory.b, z1) + 2.0 * dot(memory.Px, x1) / tau
    dtau = change / slope
    for k in range(n + m):
        store(step, k, load(step, k) + dtau * load(constant, k))
    return dtau, -(r_kappa + kappa * dtau) / tau


@compiled
def _longest(
    s: Compiled, z: Compiled, ds: Compiled, dz: Compiled, tau: Compiled, dtau: Compiled, kappa: Compiled, dkappa: Compiled, linear: Compiled
) -> Compiled:
    """The longest step up to one that keeps everything in its cone."""
    most = select(dtau < 0.0, smaller(-tau / dtau, 1.0), 1.0)
    most = select(dkappa < 0.0, smaller(-kappa / dkappa, most), most)
    return longest(s, z, ds, dz, most, linear)


@compiled
def _assess(
    system: Compiled, options: Compiled, memory: Compiled, tau: Compiled, c: Compiled, q_size: Compiled, b_size: Compiled, xPx: Compiled,
    qx: Compiled, bz: Compiled,
) -> Compiled:  # fmt: skip
    """How far the point is from optimal, and from a certificate of primal and of dual infeasibility, in units of the tolerances.

    All of it in the units of the unscaled program, relative to the largest term.
    """
    n, m = system.n, system.m
    Px_size, Az_size, dual = full(0.0), full(0.0), full(0.0)
    for j in range(n):
        unit = 1.0 / load(memory.D, j)
        Px, Az = load(memory.Px, j), load(memory.Az, j)
        Px_size, Az_size = larger(abs(Px) * unit, Px_size), larger(abs(Az) * unit, Az_size)
        dual = larger(abs(Px + Az + load(memory.q, j) * tau) * unit, dual)
    Ax_size, s_size, primal, ray = full(0.0), full(0.0), full(0.0), full(0.0)
    for i in range(m):
        unit = 1.0 / load(memory.E, i)
        Ax, s = load(memory.Ax, i), load(memory.s, i)
        Ax_size, s_size = larger(abs(Ax) * unit, Ax_size), larger(abs(s) * unit, s_size)
        primal = larger(abs(Ax + s - load(memory.b, i) * tau) * unit, primal)
        ray = larger(abs(Ax + s) * unit, ray)
    gap = abs(xPx / tau + qx + bz) / (c * tau + larger(larger(abs(qx), abs(bz)), abs(xPx) / tau))
    primal = primal / (tau + larger(larger(Ax_size, s_size), tau * b_size))
    dual = dual / (c * tau + larger(larger(Px_size, Az_size), c * tau * q_size))
    merit = larger(larger(primal, dual) / options.feasibility, gap / options.gap)
    merit = merit + 0.0 * (primal + dual + gap)  # NaN where one of them is
    none = options.infeasibility
    infeasible = select(bz < 0.0, Az_size / (-bz * none), np.inf)
    unbounded = select(qx < 0.0, larger(Px_size, ray * c) / (-qx * none), np.inf)
    return merit, infeasible, unbounded


@compiled
def _keep(memory: Compiled, tau: Compiled, c: Compiled, where: Compiled) -> None:
    """Remember the point, in the units of the unscaled program, in the lanes of a mask."""
    n, m, inverse = len(memory.x_found), len(memory.s_found), 1.0 / tau
    for j in range(n):
        store(memory.x_found, j, select(where, load(memory.xz, j) * load(memory.D, j) * inverse, load(memory.x_found, j)))
    height = inverse / c
    for i in range(m):
        scale = load(memory.E, i)
        store(memory.z_found, i, select(where, load(memory.xz, n + i) * scale * height, load(memory.z_found, i)))
        store(memory.s_found, i, select(where, load(memory.s, i) * inverse / scale, load(memory.s_found, i)))
