"""The workloads as CVXPY problems: (problem, {name: parameter}, variable)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cvxpy as cp

Stated = tuple[cp.Problem, dict[str, Any], Any]
Held = Callable[[Any], Any]


def directly(variable: Any) -> Any:
    """A constraint on the variable itself."""
    return variable


def doubled(variable: Any) -> Any:
    """The same, twice: for a library that loses a constraint where it says no more than that a variable lies in a cone."""
    return 2 * variable


def optnet(held: Held, n: int, inequalities: int, equalities: int, root: bool = False) -> Stated:
    """Stated by the matrix Q itself, or by its root R for a library whose quadratic terms cannot hold parameters."""
    z, p = cp.Variable(n), cp.Parameter(n)
    G, h = cp.Parameter((inequalities, n)), cp.Parameter(inequalities)
    A, b = cp.Parameter((equalities, n)), cp.Parameter(equalities)
    Q = cp.Parameter((n, n)) if root else cp.Parameter((n, n), PSD=True)
    curved = cp.sum_squares(Q @ z) if root else cp.quad_form(z, Q)
    constraints: list[Any] = [G @ z <= h, A @ z == b]
    return cp.Problem(cp.Minimize(0.5 * curved + p @ z), constraints), {"R" if root else "Q": Q, "p": p, "G": G, "h": h, "A": A, "b": b}, z


def simplex(held: Held, n: int) -> Stated:
    x, p = cp.Variable(n), cp.Parameter(n)
    constraints: list[Any] = [cp.sum(x) == 1, held(x) >= 0]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), {"p": p}, x


def box(held: Held, n: int, m: int) -> Stated:
    x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [held(x + 1) >= 0, held(1 - x) >= 0]), {"A": A, "b": b}, x


def factor(held: Held, n: int, k: int) -> Stated:
    x, y = cp.Variable(n), cp.Variable(k)
    mu, F, d = cp.Parameter(n), cp.Parameter((n, k)), cp.Parameter(n, nonneg=True)
    risk = cp.sum_squares(cp.multiply(d, x)) + cp.sum_squares(y)
    constraints: list[Any] = [y == F.T @ x, cp.sum(x) == 1, held(x) >= 0]
    return cp.Problem(cp.Minimize(risk - mu @ x), constraints), {"mu": mu, "F": F, "d": d}, x


def socp(held: Held, n: int, cones: int) -> Stated:
    x, c = cp.Variable(n), cp.Parameter(n)
    A, b = cp.Parameter((10 * cones, n)), cp.Parameter(10 * cones)
    s = b - A @ x
    constraints: list[Any] = [cp.norm(s[10 * k + 1 : 10 * k + 10]) <= s[10 * k] for k in range(cones)]
    return cp.Problem(cp.Minimize(c @ x), constraints), {"A": A, "b": b, "c": c}, x


def logistic(held: Held, n: int, m: int) -> Stated:
    w, Z = cp.Variable(n), cp.Parameter((m, n))
    return cp.Problem(cp.Minimize(cp.sum(cp.logistic(-(Z @ w))) + 0.5 * cp.sum_squares(w))), {"Z": Z}, w


def sdp(held: Held, n: int) -> Stated:
    X, C = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n))
    return cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [held(X) >> 0, cp.diag(X) == 1]), {"C": C}, X


def build(held: Held, n: int) -> Stated:
    x, A, b = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [held(x) >= 0]), {"A": A, "b": b}, x


STATEMENTS: Mapping[str, Callable[..., Stated]] = {
    made.__name__: made for made in (optnet, simplex, box, factor, socp, logistic, sdp, build)
}
