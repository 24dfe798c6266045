"""The programs as they were given: bringing them in, how far a point is from a solution or a certificate of theirs, handing it out."""

from __future__ import annotations

import numpy as np

from cvxlayers.kernels.lanes import Compiled, full, inner, larger, load, select, store, vector
from cvxlayers.kernels.memory import AX, AZ, PX, REPORT, S_FOUND, VALUES, X_FOUND, XZ, Z_FOUND, B, D, E, Q, S
from cvxlayers.kernels.rows import gather, gather_at, scatter
from cvxlayers.kernels.system import clear


@inner
def assess(
    memory: Compiled, options: Compiled, tau: Compiled, c: Compiled, q_size: Compiled, b_size: Compiled, xPx: Compiled,
    qx: Compiled, bz: Compiled,
) -> Compiled:  # fmt: skip
    """In units of the tolerances, at most one if reached: the residuals and the gap, each relative to its largest term; the certificate
    that there is no feasible point, |A'z| <= tolerance (-b'z); and that the program is unbounded, |Px|, |Ax + s| <= tolerance (-q'x).

    ``q_size``, ``b_size``: the largest entries of the unscaled q and b. NaN in any residual is NaN in the first result.
    """
    D_, E_, s = vector(memory, D), vector(memory, E), vector(memory, S)
    n, m = len(D_), len(E_)
    Px_, Az_, Ax_, q, b = vector(memory, PX), vector(memory, AZ), vector(memory, AX), vector(memory, Q), vector(memory, B)
    Px_size, Az_size, dual = full(0.0), full(0.0), full(0.0)
    for j in range(n):
        unit, Px, Az = 1.0 / load(D_, j), load(Px_, j), load(Az_, j)
        Px_size, Az_size = larger(abs(Px) * unit, Px_size), larger(abs(Az) * unit, Az_size)
        dual = larger(abs(Px + Az + load(q, j) * tau) * unit, dual)
    Ax_size, s_size, primal, ray = full(0.0), full(0.0), full(0.0), full(0.0)
    for i in range(m):
        unit, Ax, slack = 1.0 / load(E_, i), load(Ax_, i), load(s, i)
        Ax_size, s_size = larger(abs(Ax) * unit, Ax_size), larger(abs(slack) * unit, s_size)
        primal = larger(abs(Ax + slack - load(b, i) * tau) * unit, primal)
        ray = larger(abs(Ax + slack) * unit, ray)
    gap = abs(xPx / tau + qx + bz) / (c * tau + larger(larger(abs(qx), abs(bz)), abs(xPx) / tau))
    primal = primal / (tau + larger(larger(Ax_size, s_size), tau * b_size))
    dual = dual / (c * tau + larger(larger(Px_size, Az_size), c * tau * q_size))
    merit = larger(larger(primal, dual) / options.feasibility, gap / options.gap) + 0.0 * (qx + bz + xPx)
    infeasible = select(bz < 0.0, Az_size / (-bz * options.infeasibility), np.inf)
    unbounded = select(qx < 0.0, larger(Px_size, ray * c) / (-qx * options.infeasibility), np.inf)
    return merit, infeasible, unbounded


@inner
def keep(memory: Compiled, tau: Compiled, c: Compiled, where: Compiled) -> None:
    """Remember the point, in the units of the program as it was given, in the lanes of a mask."""
    xz, s, D_, E_ = vector(memory, XZ), vector(memory, S), vector(memory, D), vector(memory, E)
    n, m = len(D_), len(E_)
    x_found, z_found, s_found = vector(memory, X_FOUND), vector(memory, Z_FOUND), vector(memory, S_FOUND)
    width, height = 1.0 / tau, 1.0 / (c * tau)
    for j in range(n):
        store(x_found, j, select(where, load(xz, j) * load(D_, j) * width, load(x_found, j)))
    for i in range(m):
        scale = load(E_, i)
        store(z_found, i, select(where, load(xz, n + i) * scale * height, load(z_found, i)))
        store(s_found, i, select(where, load(s, i) * width / scale, load(s_found, i)))


@inner
def bring(memory: Compiled, rows: Compiled, block: Compiled) -> None:
    """Fill values, q and b from the rows of a block, and what is found with NaN."""
    values = vector(memory, VALUES)
    clear(values)
    gather_at(rows[0], block, rows[4], values)
    gather_at(rows[2], block, rows[5], values)
    gather(rows[1], block, vector(memory, Q))
    gather(rows[3], block, vector(memory, B))
    for k in range(X_FOUND, REPORT):
        found = vector(memory, k)
        for i in range(len(found)):
            store(found, i, np.nan)


@inner
def deliver(memory: Compiled, rows: Compiled, block: Compiled) -> None:
    """Put what was found into the rows of a block."""
    scatter(vector(memory, X_FOUND), block, rows[6])
    scatter(vector(memory, Z_FOUND), block, rows[7])
    scatter(vector(memory, S_FOUND), block, rows[8])
    scatter(vector(memory, REPORT), block, rows[9])
