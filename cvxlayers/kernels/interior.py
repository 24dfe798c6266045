"""The interior-point method: one block of LANES cone programs, each solved, stopped and certified by itself.

    minimize 1/2 x'Px + q'x   subject to  Ax + s = b,  s in K

The homogeneous embedding of Goulart and Chen ("Clarabel: an interior-point solver for conic programs with quadratic objectives", 2024)
has a solution whether or not the program has one:

    Px + A'z + q tau = 0,   Ax + s = b tau,   x'Px / tau + q'x + b'z + kappa = 0,   (s, z) in K x K*,   tau, kappa >= 0,
    s'z = 0,  tau kappa = 0.

tau > 0 gives the solution (x, z, s) / tau; kappa > 0 a certificate that there is none: A'z = 0, b'z < 0 (no feasible point), or Px = 0,
Ax + s = 0, q'x < 0 (unbounded below). The method follows its central path (Mehrotra's predictor and corrector). With the residuals

    r_x = -(Px + A'z + q tau),   r_z = Ax + s - b tau,   r_tau = x'Px / tau + q'x + b'z + kappa,

a step solves  P dx + A'dz + q dtau = f r_x,  A dx + ds - b dtau = -f r_z,  ds + H dz = -offset,  kappa dtau + tau dkappa = -r_kappa
and the linearized last equation, where H z = s is the cones' scaling. Eliminating ds and dtau leaves one matrix and two right-hand sides,

    [P  A'] [x1 x2]   [    f r_x       -q ]
    [A  -H] [z1 z2] = [offset - f r_z   b ],     (dx, dz) = (x1, z1) + dtau (x2, z2),

    dtau = (f r_tau - r_kappa / tau + q'x1 + b'z1 + 2 x'P x1 / tau) / (kappa / tau - q'x2 - b'z2 + x'Px / tau^2 - 2 x'P x2 / tau).

The predictor has f = 1, offset = s, r_kappa = tau kappa, and takes a step alpha; the corrector has sigma = (1 - alpha)^3, f = 1 - sigma,
r_kappa = tau kappa + dtau dkappa - sigma mu with mu = (s'z + tau kappa) / (degree + 1), and the cones' own offset.
"""

from __future__ import annotations

import numpy as np

from cvxlayers.kernels import memory as at
from cvxlayers.kernels.assess import assess, bring, deliver, keep
from cvxlayers.kernels.cones import correct, longest, rescale, shorten
from cvxlayers.kernels.equilibrate import equilibrate
from cvxlayers.kernels.lanes import Compiled, compiled, full, inner, larger, load, part, select, smaller, some, store, vector
from cvxlayers.kernels.ldl import factor, norm
from cvxlayers.kernels.memory import DUAL_INFEASIBLE, FAILED, LIMIT, PRIMAL_INFEASIBLE, RUNNING, SOLVED, STALLED
from cvxlayers.kernels.newton import LARGE, TINY, constant, direction, follow, start
from cvxlayers.kernels.system import dot, products

SLOW = 0.7
"""From its first step shorter than this on, a lane scales by the dual barrier alone: the other scaling makes longer steps until rounding
in the shadows, which grows like the inverse of the distance to the boundary, spoils it."""
SHORT, TINY_STEP, CENTERING = 0.1, 1e-7, 0.8
"""A lane whose step was SHORT takes one with sigma >= CENTERING and no second-order term; two in a row, the last TINY, end it."""
PATIENCE, IMPATIENCE = 12.0, 4.0
"""Iterations without progress before a lane gives up, and before one does whose residuals are below ROUGH / 100."""
HARMLESS = 1e-4
"""Of mu: where the equations of a step hold to this they are not refined. Next to the boundary of cones in R^3 and of matrices what is
lost there would be missed in complementarity, so theirs always are."""
ROUGH, DOUBTFUL = 1e-4, 1e2
"""In a lane that gives up residuals up to ROUGH are worth returning, and a certificate up to DOUBTFUL times its tolerance is believed."""


@compiled
def solve_blocks(
    begin: Compiled, end: Compiled, system: Compiled, kkt: Compiled, options: Compiled, degree: Compiled, memory: Compiled, rows: Compiled,
    linear: Compiled, so: Compiled, three: Compiled, sd: Compiled,
) -> None:  # fmt: skip
    """Solve blocks begin ... end - 1 of a batch. ``rows`` holds P, q, A, b, then where P and A stand in K, and takes x, z, s and
    (status, iterations, error), NaN where nothing was found. A kind of cone that the programs do not have is None.
    """
    n, m, values, xz, s = system.n, system.m, vector(memory, at.VALUES), vector(memory, at.XZ), vector(memory, at.S)
    q, b, ds, offset = vector(memory, at.Q), vector(memory, at.B), vector(memory, at.DS), vector(memory, at.OFFSET)
    step, fixed, report, Px = vector(memory, at.STEP), vector(memory, at.CONSTANT), vector(memory, at.REPORT), vector(memory, at.PX)
    x, z, dz, work = part(xz, 0, n), part(xz, n, n + m), part(step, n, n + m), part(vector(memory, at.TRIAL), 0, m)
    for block in range(begin, end):
        bring(memory, rows, block)
        q_size, b_size = norm(q), norm(b)
        c = equilibrate(system, values, q, b, vector(memory, at.D), vector(memory, at.E), vector(memory, at.RHS))
        start(system, kkt, memory, options, linear, so, three, sd)

        tau, kappa, alpha = full(1.0), full(1.0), full(1.0)
        status, count, patience, weak = full(RUNNING), full(0.0), full(0.0), full(0.0) > 1.0
        dual = full(0.0) > 1.0
        best, nearest, closest, least, far = full(np.inf), full(np.inf), full(np.inf), full(np.inf), ROUGH / options.feasibility
        for iteration in range(options.iterations + 1):
            products(system, values, xz, Px, vector(memory, at.AZ), vector(memory, at.AX))
            xPx, qx, bz = dot(x, Px), dot(q, x), dot(b, z)
            mu = (dot(s, z) + tau * kappa) / (degree + 1.0)
            merit, infeasible, unbounded = assess(memory, options, tau, c, q_size, b_size, xPx, qx, bz)

            # What becomes of each lane: decided by its own numbers.
            running = status == RUNNING
            improved = running & (merit < best)
            if some(improved):
                keep(memory, tau, c, improved)
            best = select(improved, merit, best)
            certificate = smaller(infeasible, unbounded)
            certified = select(infeasible <= unbounded, PRIMAL_INFEASIBLE, DUAL_INFEASIBLE)
            progress = (merit < 0.9 * nearest) | (certificate < 0.9 * closest) | ((merit > far) & (mu < 0.9 * least))
            patience = select(progress, 0.0, patience + 1.0)
            nearest, closest, least = smaller(merit, nearest), smaller(certificate, closest), smaller(mu, least)
            stuck = (
                (patience > select(best <= 1e-2 * far, full(IMPATIENCE), PATIENCE))
                | (weak & (alpha < TINY_STEP))
                | ~(mu > 0.0)
                | ~(merit < np.inf)
            )
            weak = alpha < SHORT
            dual = dual | (alpha < SLOW)
            resigned = select(best <= far, STALLED, select(certificate <= DOUBTFUL, certified, FAILED))
            verdict = select(stuck, resigned, full(LIMIT if iteration == options.iterations else RUNNING))
            verdict = select(best <= 1.0, SOLVED, select(certificate <= 1.0, certified, verdict))
            status = select(running, verdict, status)
            count = select(running, float(iteration), count)
            running = status == RUNNING
            if not some(running):
                break

            rescale(system, s, z, dual, values, linear, so, three, sd)
            factor(kkt[0], values, options.shift, TINY, LARGE, kkt[1])
            harmless = HARMLESS * mu if three is None and sd is None else full(0.0)
            constant(system, kkt, memory, options, 1.0, 1.0, harmless, fixed)
            r_tau = xPx / tau + qx + bz + kappa
            x2, z2 = part(fixed, 0, n), part(fixed, n, n + m)
            slope = kappa / tau - dot(q, x2) - dot(b, z2) + (xPx / tau - 2.0 * dot(Px, x2)) / tau

            for i in range(m):
                store(offset, i, load(s, i))
            # The predictor says how far to go and which way it bends: where all cones are linear, it is good enough unrefined.
            few = 0 if so is None and three is None and sd is None else options.refinements
            dtau, dkappa = direction(system, kkt, memory, options, full(1.0), tau, kappa, r_tau, tau * kappa, slope, few, harmless)
            follow(system, memory, linear, full(1.0), tau, dtau, sd)
            alpha = longest(s, z, ds, dz, _longest(tau, dtau, kappa, dkappa), linear, so, three, sd)
            alpha = shorten(s, z, ds, dz, False, tau, dtau, kappa, dkappa, mu, degree, alpha, three)
            sigma = (1.0 - alpha) * (1.0 - alpha) * (1.0 - alpha)
            # After a short step, back to the central path: the second-order term is only good for long ones.
            sigma, damped = select(weak, larger(sigma, CENTERING), sigma), select(weak, 0.0, full(1.0))
            for i in range(m):
                store(ds, i, damped * load(ds, i))
            correct(s, z, ds, dz, sigma * mu, offset, work, linear, so, three, sd)
            r_kappa = tau * kappa + damped * dtau * dkappa - sigma * mu
            most = options.refinements
            dtau, dkappa = direction(system, kkt, memory, options, 1.0 - sigma, tau, kappa, r_tau, r_kappa, slope, most, harmless)
            follow(system, memory, linear, 1.0 - sigma, tau, dtau, sd)
            alpha = options.reach * longest(s, z, ds, dz, _longest(tau, dtau, kappa, dkappa), linear, so, three, sd)
            alpha = shorten(s, z, ds, dz, True, tau, dtau, kappa, dkappa, mu, degree, alpha, three)

            taken = select(running, alpha, 0.0)  # a lane that has stopped stays where it is
            for k in range(n + m):
                store(xz, k, load(xz, k) + taken * load(step, k))
            for i in range(m):
                store(s, i, load(s, i) + taken * load(ds, i))
            tau, kappa = tau + taken * dtau, kappa + taken * dkappa
        store(report, 0, status)
        store(report, 1, count)
        store(report, 2, best)
        deliver(memory, rows, block)


@inner
def _longest(tau: Compiled, dtau: Compiled, kappa: Compiled, dkappa: Compiled) -> Compiled:
    """The longest step up to one that keeps tau and kappa nonnegative."""
    most = select(dtau < 0.0, smaller(-tau / dtau, 1.0), 1.0)
    return select(dkappa < 0.0, smaller(-kappa / dkappa, most), most)
