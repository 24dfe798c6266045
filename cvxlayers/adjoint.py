"""The derivative of the solution map (P, q, A, b) -> (x, y, s): vjp and jvp, from arrays only.

With K, U, d and t as in `cvxlayers.kkt`, the tangent (dP, dq, dA, db) moves the solution by

    K [dx; t] = [-(dP x + dA'y + dq); diag(sqrt d) U'(db - dA x)],   dy = U diag(sqrt d) t,   ds = db - dA x - A dx,

and, K being symmetric, cotangents (gx, gy, gs) pull back through

    K [u; t] = [gx - A'gs; diag(sqrt d) U' gy],   w = U diag(sqrt d) t + gs,

    dq = -u,   db = w,   dA = -(y u' + w x'),   dP = -(u x' + x u') / 2.

The optimality conditions themselves are differentiated, not the homogeneous embedding that some solvers iterate on: its matrix is
singular at every solution (Agrawal, Barratt, Boyd, Busseti, Moursi, "Differentiating through a cone program", 2019, use it with LSQR).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cvxlayers.cones import Derivative
from cvxlayers.kkt import KKT, TRUSTED
from cvxlayers.program import ConeProgram, Solution, join, take
from cvxlayers.units import apart, in_units, units

REACH = 1e-3  # of the Newton steps that polish: how long they may be, relative to 1 + |v|
KINK = 1e-6  # a margin below this, relative to 1 + |v|, is taken for a kink


@dataclass(frozen=True)
class Certificate:
    """How far a derivative can be trusted, per row, (rows,) each.

    residual: |K z - r| / |r| of the linear solve, against the unscaled data; fallback: whether the minimum-norm least-squares solution
    had to be taken, whose residual is the larger of that one and of the one in units that equilibrate K; margin: distance of v = y - s
    from the nearest kink of the cones' projections relative to 1 + |v| (the strict complementarity margin), where that is small in
    `cvxlayers.units`.
    """

    residual: np.ndarray
    fallback: np.ndarray
    margin: np.ndarray

    @property
    def not_unique(self) -> np.ndarray:
        """Rows where no derivative exists because the solution is not unique: even least squares leaves a residual."""
        return self.fallback & ~(self.residual <= 1e-6)

    @property
    def kink(self) -> np.ndarray:
        """Rows where the solution map has, to working accuracy, only one-sided derivatives."""
        return self.margin <= KINK


def vjp(
    kkt: KKT, program: ConeProgram, solution: Solution, cotangent: Solution, wanted: tuple[bool, bool] = (True, True)
) -> tuple[ConeProgram, Certificate]:
    """Pull cotangents of (x, y, s), of which that of s may be None for zero, back to (P, q, A, b).

    All arrays are NumPy float64 with one batch axis; the solution satisfies the optimality conditions. The cotangent of P is that of
    its stored upper triangle: off-diagonal entries collect both symmetric halves. Those of P and of A are None where not ``wanted``.
    """
    return _by_chunks(partial(_balanced, partial(_vjp, wanted=wanted)), kkt, program, solution, cotangent)


def jvp(kkt: KKT, program: ConeProgram, solution: Solution, tangent: ConeProgram) -> tuple[Solution, Certificate]:
    """Push a tangent of (P, q, A, b) forward to (x, y, s); arrays as in `vjp`."""
    return _by_chunks(partial(_balanced, _jvp), kkt, program, solution, tangent)


def second_jvp(kkt: KKT, program: ConeProgram, solution: Solution, one: ConeProgram, two: ConeProgram) -> tuple[Solution, Certificate]:
    """The second derivative of (x, y, s) along two tangents, bilinear and symmetric in them.

    With (dx_i, dv_i) the first derivatives and c the second derivative of Pi_K* at v along dv_1 and dv_2,

        K [ddx; t] = [-(dP1 dx2 + dP2 dx1 + dA1'dy2 + dA2'dy1 + A'c); diag(sqrt d) U' r],   r = -(dA1 dx2 + dA2 dx1 + c),

    ddy = U diag(sqrt d) t + c, dds = r - A ddx + c. Raises ValueError where the cone's projection has no second derivative.
    """
    return _by_chunks(partial(_balanced, _second_jvp), kkt, program, solution, one, two)


def second_vjp(
    kkt: KKT, program: ConeProgram, solution: Solution, cotangent: Solution, tangent: ConeProgram
) -> tuple[ConeProgram, Certificate]:
    """The derivative along ``tangent`` of what `vjp` makes of ``cotangent``: a row of second derivatives of cotangent'(x, y, s).

    With u and w of the vjp, dot the derivative along the tangent, and c that of Pi_K*'s derivative applied to gy + gs - A u - w,

        K [u.; t] = [A'c - dP u - dA'w; diag(sqrt d) U'(c - dA u)],   w. = U diag(sqrt d) t - c.

    Raises ValueError where the cone's projection has no second derivative.
    """
    return _by_chunks(partial(_balanced, _second_vjp), kkt, program, solution, cotangent, tangent)


def newton(kkt: KKT, program: ConeProgram, solution: Solution, reach: float = REACH, far: float = 0.0) -> Solution:
    """One Newton step on the residual map, from v = y - s; the new y and s lie on their cones and are exactly complementary.

    A step longer than ``reach``, relative to 1 + |v|, and than ``far``, relative to (x, v) in the units that equilibrate K, is taken for
    one along a null direction, and replaced by the minimum-norm step.
    """
    return _by_chunks(partial(_newton, reach=reach, far=far), kkt, program, solution)[0]


def _by_chunks(rule: Any, kkt: KKT, *records: Any) -> Any:
    """The records that ``rule`` returns, chunk by chunk of the rows."""
    rows, step = len(records[0].q), kkt.chunk
    if rows <= step:
        return rule(kkt, *records)
    parts = [rule(kkt, *(take(record, slice(i, i + step)) for record in records)) for i in range(0, rows, step)]
    return tuple(join(list(each)) for each in zip(*parts, strict=True))


def _balanced(rule: Any, kkt: KKT, program: ConeProgram, solution: Solution, *directions: Any) -> tuple[Any, Certificate]:
    """What ``rule`` returns, worked out in `cvxlayers.units`.

    Linear cones have the same derivative in all units; there the margin alone is measured anew, where it is a kink's in those given.
    """
    if kkt.products.linear:
        result, certificate = rule(kkt, program, solution, *directions)
        return result, _in_doubt(kkt, program, solution, certificate)
    e = units(kkt.products, program, solution) if apart(kkt.products, solution) else None
    if e is None:
        return rule(kkt, program, solution, *directions)
    turned = (in_units(kkt.products, d, 1 / e if isinstance(d, Solution) else e) for d in directions)
    result, certificate = rule(kkt, in_units(kkt.products, program, e), in_units(kkt.products, solution, e), *turned)
    return in_units(kkt.products, result, 1 / e if isinstance(result, Solution) else e), certificate


def _in_doubt(kkt: KKT, program: ConeProgram, solution: Solution, certificate: Certificate) -> Certificate:
    """The certificate with the margins of what looks like a kink measured in `cvxlayers.units`."""
    rows = np.flatnonzero(certificate.kink)
    if not len(rows):
        return certificate
    there = take(solution, rows)
    e = units(kkt.products, take(program, rows), there)
    if e is None:
        return certificate
    margin = certificate.margin.copy()
    there = in_units(kkt.products, there, e)
    margin[rows] = _linearize(kkt, there.y - there.s)[1]
    return replace(certificate, margin=margin)


def _vjp(
    kkt: KKT, program: ConeProgram, solution: Solution, cotangent: Solution, wanted: tuple[bool, bool]
) -> tuple[ConeProgram, Certificate]:
    certificate, u, w = _pulled(kkt, program, solution, cotangent)
    return _outer(kkt, solution.x, solution.y, u, w, wanted), certificate


def _pulled(kkt: KKT, program: ConeProgram, solution: Solution, cotangent: Solution) -> tuple[Certificate, np.ndarray, np.ndarray]:
    """u and w of a cotangent."""
    if cotangent.s is None:
        return _solve(kkt, program, solution, cotangent.x, cotangent.y)
    certificate, u, w = _solve(kkt, program, solution, cotangent.x - kkt.products.AT(program.A, cotangent.s), cotangent.y)
    return certificate, u, w + cotangent.s


def _jvp(kkt: KKT, program: ConeProgram, solution: Solution, tangent: ConeProgram) -> tuple[Solution, Certificate]:
    products, x, y = kkt.products, solution.x, solution.y
    top = -(products.P(tangent.P, x) + products.AT(tangent.A, y) + tangent.q)
    bottom = tangent.b - products.A(tangent.A, x)
    certificate, dx, dy = _solve(kkt, program, solution, top, bottom)
    return Solution(dx, dy, bottom - products.A(program.A, dx)), certificate


def _newton(kkt: KKT, program: ConeProgram, solution: Solution, reach: float, far: float) -> tuple[Solution]:
    products, x, y, s = kkt.products, solution.x, solution.y, solution.s
    dual_residual = products.P(program.P, x) + program.q + products.AT(program.A, y)
    primal_residual = products.A(program.A, x) + s - program.b
    v = y - s
    most = reach * (1 + np.max(abs(v), axis=1, initial=0.0))
    each = None
    if far:
        derivative = kkt.dual_cone.derivative(v)
        each = far * abs(np.concatenate([x, np.sqrt(derivative.values) * derivative.rotate(v, transpose=True)], axis=1))
    _, dx, dy = _solve(kkt, program, solution, -dual_residual, -primal_residual, (most, each))
    v = v + dy + primal_residual + products.A(program.A, dx)
    y = kkt.dual_cone.project(v)
    return (Solution(x + dx, y, y - v, solution.status, solution.iterations),)


def _second_jvp(kkt: KKT, program: ConeProgram, solution: Solution, one: ConeProgram, two: ConeProgram) -> tuple[Solution, Certificate]:
    products = kkt.products
    (first, below), (other, beside) = _jvp(kkt, program, solution, one), _jvp(kkt, program, solution, two)
    c = kkt.dual_cone.second(solution.y - solution.s, first.y - first.s, other.y - other.s)
    bottom = -(products.A(one.A, other.x) + products.A(two.A, first.x) + c)
    top = products.P(one.P, other.x) + products.P(two.P, first.x) + products.AT(one.A, other.y) + products.AT(two.A, first.y)
    certificate, ddx, ddy = _solve(kkt, program, solution, -(top + products.AT(program.A, c)), bottom)
    return Solution(ddx, ddy + c, bottom - products.A(program.A, ddx) + c), _worst(certificate, below, beside)


def _second_vjp(
    kkt: KKT, program: ConeProgram, solution: Solution, cotangent: Solution, tangent: ConeProgram
) -> tuple[ConeProgram, Certificate]:
    products = kkt.products
    pulled, u, w = _pulled(kkt, program, solution, cotangent)
    moved, below = _jvp(kkt, program, solution, tangent)
    given = cotangent.y if cotangent.s is None else cotangent.y + cotangent.s
    inner = given - products.A(program.A, u) - w
    c = kkt.dual_cone.second(solution.y - solution.s, moved.y - moved.s, inner)
    top = products.AT(program.A, c) - products.P(tangent.P, u) - products.AT(tangent.A, w)
    certificate, du, dw = _solve(kkt, program, solution, top, c - products.A(tangent.A, u))
    one = _outer(kkt, solution.x, solution.y, du, dw - c)
    two = _outer(kkt, moved.x, moved.y, u, w)
    return ConeProgram(one.P + two.P, one.q, one.A + two.A, one.b), _worst(certificate, pulled, below)


def _worst(*certificates: Certificate) -> Certificate:
    """The certificate of a derivative that took several linear solves at one point."""
    residual = np.max([each.residual for each in certificates], axis=0)
    return Certificate(residual, np.any([each.fallback for each in certificates], axis=0), certificates[0].margin)


def _outer(kkt: KKT, x: np.ndarray, y: np.ndarray, u: np.ndarray, w: np.ndarray, wanted: tuple[bool, bool] = (True, True)) -> ConeProgram:
    """dP = -(u x' + x u')/2, dq = -u, dA = -(y u' + w x'), db = w, on the stored entries; dP and dA None where not ``wanted``."""
    pattern, passes = kkt.pattern, kkt.products.passes
    if passes is not None:
        dP, dA = np.empty((len(x) * wanted[0], pattern.nnzP)), np.empty((len(x) * wanted[1], pattern.nnzA))
        if any(wanted):
            passes.outer(x, y, u, w, *kkt.products.places, dP, dA)
        return ConeProgram(dP if wanted[0] else None, -u, dA if wanted[1] else None, w)
    rows, columns = pattern.P_indices, pattern.P_columns
    dP = -(u[:, rows] * x[:, columns] + x[:, rows] * u[:, columns]) * np.where(rows == columns, 0.5, 1.0)
    rows, columns = pattern.A_indices, pattern.A_columns
    dA = -(y[:, rows] * u[:, columns] + w[:, rows] * x[:, columns])
    return ConeProgram(dP, -u, dA, w)


def _linearize(kkt: KKT, v: np.ndarray) -> tuple[Derivative, np.ndarray]:
    """The derivative of Pi_K* at v, and the margin."""
    derivative, margin = kkt.dual_cone.linearize(v)
    return derivative, margin / (1 + np.max(abs(v), axis=1, initial=0.0))


def _solve(
    kkt: KKT, program: ConeProgram, solution: Solution, top: np.ndarray, bottom: np.ndarray, reach: Any = None
) -> tuple[Certificate, np.ndarray, np.ndarray]:
    """K [u; t] = [top; diag(sqrt d) U' bottom]: how well, u, and U diag(sqrt d) t; ``reach`` as of `KKT.solve`, without the margin.

    Where turned cones touch A, U'A has rounding errors the size of A's entries. A direction that A' annihilates then meets nothing but
    these, and K z = r may hold along it although Pu + A'w = top does not: such rows get the least-squares solution.
    """
    n = kkt.pattern.n
    if kkt.products.linear and kkt.products.passes is not None:
        values, rhs, d, margin = _at_active_set(kkt, program, solution, top, bottom)
        solved = kkt.solve(values, rhs, reach)
        return Certificate(solved.residual, solved.fallback, margin), solved.z[:, :n], d * solved.z[:, n:]
    v = solution.y - solution.s
    derivative, margin = _linearize(kkt, v) if reach is None else (kkt.dual_cone.derivative(v), np.full(len(v), np.nan))
    root = np.sqrt(derivative.values)
    rhs = np.concatenate([top, root * derivative.rotate(bottom, transpose=True)], axis=1)
    values = kkt.assemble(program, derivative)
    solved = kkt.solve(values, rhs, reach)
    u, w = solved.z[:, :n], derivative.rotate(root * solved.z[:, n:])
    if kkt.products.linear or reach is not None:
        return Certificate(solved.residual, solved.fallback, margin), u, w
    error = _missed(kkt, program, u, w, top, rhs)
    lost = np.flatnonzero(~solved.fallback & (error > TRUSTED))
    if len(lost):
        again = kkt.solve(values[lost], rhs[lost], (np.zeros(len(lost)), None))
        solved.z[lost], solved.fallback[lost], solved.residual[lost] = again.z, True, again.residual
        u, w = solved.z[:, :n], derivative.rotate(root * solved.z[:, n:])
        error = _missed(kkt, program, u, w, top, rhs)
    return Certificate(np.maximum(solved.residual, error), solved.fallback, margin), u, w


def _at_active_set(kkt: KKT, program: ConeProgram, solution: Solution, top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, ...]:
    """For zero and nonnegative cones, in one compiled pass: the entries of K, [top; diag(sqrt d) bottom], d, and the margin."""
    rows, m = solution.y.shape
    d, values, rhs, margin = np.empty((rows, m)), np.empty((rows, kkt.nnz)), np.empty((rows, kkt.size)), np.empty(rows)
    given = program.P, program.A, solution.y, solution.s, top, bottom
    kkt.products.passes.system(*given, kkt.products.kind, *kkt.maps, d, values, rhs, margin)
    return values, rhs, d, margin


def _missed(kkt: KKT, program: ConeProgram, u: np.ndarray, w: np.ndarray, top: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """|Pu + A'w - top| / |rhs|, (rows,)."""
    norm = np.linalg.norm(rhs, axis=1)
    error = np.linalg.norm(kkt.products.P(program.P, u) + kkt.products.AT(program.A, w) - top, axis=1)
    return error / np.where(norm > 0, norm, 1.0)
