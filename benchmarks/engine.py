"""Forward solves of INTERIOR beside Clarabel and DAQP on the cone programs of the race, per row, without any layer around them.

    python benchmarks/engine.py [--quick] [--only NAME ...] [--threads N]

Prints per program and solver: wall and CPU microseconds per row (the fewest of several runs), iterations, worst relative residual, and
rows that failed. Writes nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from cvxlayers.cones import Exponential, NonNegative, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.products import Products, residuals
from cvxlayers.program import ConeProgram, Pattern
from cvxlayers.solvers import find, get, lacks

Batch = tuple[Pattern, ConeProgram]


def stack(pattern: Pattern, P: np.ndarray, q: np.ndarray, A: np.ndarray, b: np.ndarray, rows: int) -> Batch:
    """The program whose parts are given once or per row."""
    widths = (pattern.nnzP, pattern.n, pattern.nnzA, pattern.m)
    parts = (
        np.ascontiguousarray(np.broadcast_to(part, (rows, width)), dtype=float) for part, width in zip((P, q, A, b), widths, strict=True)
    )
    return pattern, ConeProgram(*parts)


def sparse(P: Any, A: Any, cone: Product, q: np.ndarray, b: np.ndarray, rows: int) -> Batch:
    """P and A shared by all rows."""
    P, A = sp.csc_matrix(sp.triu(P)), sp.csc_matrix(A)
    for matrix in (P, A):
        matrix.sum_duplicates()
    return stack(Pattern.of(P, A, cone), P.data, q, A.data, b, rows)


def simplex(rng: np.random.Generator, rows: int = 512, n: int = 20) -> Batch:
    """Projection on the simplex."""
    A, b = sp.vstack([np.ones((1, n)), -sp.eye(n)]), np.r_[1.0, np.zeros(n)]
    return sparse(sp.eye(n), A, Product((Zero(1), NonNegative(n))), -rng.standard_normal((rows, n)), b, rows)


def mpc(rng: np.random.Generator, rows: int = 128, states: int = 12, controls: int = 4, horizon: int = 20) -> Batch:
    """Linear MPC with boxes on the controls: variables x_1, ..., x_T, u_0, ..., u_{T-1}."""
    F = np.eye(states) + 0.2 * rng.standard_normal((states, states)) / np.sqrt(states)
    B = rng.standard_normal((states, controls))
    Q, R = np.eye(states), 0.1 * np.eye(controls)
    eye = sp.eye(horizon)
    dynamics = sp.hstack([sp.kron(eye, sp.eye(states)) - sp.kron(sp.eye(horizon, k=-1), F), -sp.kron(eye, B)])
    box = sp.hstack([sp.csc_matrix((horizon * controls, horizon * states)), sp.eye(horizon * controls)])
    A = sp.vstack([dynamics, box, -box])
    P = sp.block_diag([sp.kron(eye, Q), sp.kron(eye, R)])
    first = 3 * rng.standard_normal((rows, states)) @ F.T
    b = np.concatenate([first, np.zeros((rows, (horizon - 1) * states)), np.full((rows, 2 * horizon * controls), 0.5)], axis=1)
    cone = Product((Zero(horizon * states), NonNegative(2 * horizon * controls)))
    return sparse(P, A, cone, np.zeros(horizon * (states + controls)), b, rows)


def portfolio(rng: np.random.Generator, rows: int = 32, assets: int = 500, factors: int = 20) -> Batch:
    """Factor model: maximize mu'x - x'Dx - f'f, f = F'x, sum x = 1, x >= 0."""
    F = sp.random_array((assets, factors), density=0.5, rng=rng, data_sampler=rng.standard_normal)
    A = sp.vstack(
        [
            sp.hstack([F.T, -sp.eye(factors)]),
            sp.csc_matrix(np.r_[np.ones(assets), np.zeros(factors)][None]),
            -sp.eye(assets, assets + factors),
        ]
    )
    P = sp.diags_array(np.r_[rng.random(assets) * np.sqrt(factors), np.ones(factors)])
    q = np.concatenate([-rng.standard_normal((rows, assets)), np.zeros((rows, factors))], axis=1)
    b = np.r_[np.zeros(factors), 1.0, np.zeros(assets)]
    return sparse(P, A, Product((Zero(factors + 1), NonNegative(assets))), q, b, rows)


def dense(rng: np.random.Generator, rows: int = 128, n: int = 100, inequalities: int = 100, equalities: int = 50) -> Batch:
    """The dense QP of OptNet, all data different in every row."""
    L = rng.random((rows, n, n))
    P = L @ L.transpose(0, 2, 1) + 1e-3 * np.eye(n)
    A = rng.standard_normal((rows, equalities + inequalities, n))
    b = np.einsum("rmn,rn->rm", A, rng.standard_normal((rows, n)))
    b[:, equalities:] += rng.random((rows, inequalities))
    pattern = Pattern.of(np.ones((n, n)), np.ones(A.shape[1:]), Product((Zero(equalities), NonNegative(inequalities))))
    P, A = P[:, pattern.P_indices, pattern.P_columns], A[:, pattern.A_indices, pattern.A_columns]
    return stack(pattern, P, rng.standard_normal((rows, n)), A, b, rows)


def socp(rng: np.random.Generator, rows: int = 128, n: int = 50, cones: int = 10, size: int = 10) -> Batch:
    """minimize |x|^2 / 2 + q'x subject to |F_k x + g_k| <= h_k'x + 1 for ten cones."""
    A, b = rng.standard_normal((rows, cones * size, n)) / np.sqrt(n), 0.3 * rng.standard_normal((rows, cones * size))
    b[:, ::size] = 1.0
    cone = Product((SecondOrder(size),) * cones)
    pattern = Pattern.of(sp.eye(n), np.ones(A.shape[1:]), cone)
    q = 3 * rng.standard_normal((rows, n))
    return stack(pattern, np.ones(n), q, A[:, pattern.A_indices, pattern.A_columns], b, rows)


def logistic(rng: np.random.Generator, rows: int = 32, points: int = 100, features: int = 20) -> Batch:
    """Logistic regression: t_i >= log(1 + exp(-z_i'w)) by two exponential cones per point, variables w, t, u, v."""
    Z = rng.standard_normal((rows, points, features))
    Z *= np.sign(Z @ rng.standard_normal((rows, features, 1))) * np.where(rng.random((rows, points, 1)) < 0.1, -1, 1)
    n, eye, nothing = features + 3 * points, np.eye(points), np.zeros((points, points))
    mask = np.zeros((points, features))
    blank = np.zeros((rows, points, features))
    # u + v <= 1; (-z'w - t, 1, u) and (-t, 1, v) in the cone
    lines = [np.hstack([mask, nothing, eye, eye])]
    P = sp.diags_array(np.r_[np.ones(features), np.zeros(3 * points)])
    full = lambda block: np.concatenate([np.broadcast_to(part, (rows, *part.shape[-2:])) for part in block], axis=2)  # noqa: E731
    x1, x2 = full([Z, eye, nothing, nothing]), full([blank, eye, nothing, nothing])
    y = np.zeros((rows, points, n))
    z1, z2 = full([blank, nothing, -eye, nothing]), full([blank, nothing, nothing, -eye])
    cones = np.stack([np.stack([x1, y, z1], 2), np.stack([x2, y, z2], 2)], 2).reshape(rows, 6 * points, n)
    A = np.concatenate([np.broadcast_to(lines[0], (rows, points, n)), cones], axis=1)
    b = np.r_[np.ones(points), np.tile([0.0, 1.0, 0.0], 2 * points)]
    pattern = Pattern.of(P, (A != 0).any(0).astype(float), Product((NonNegative(points), *(Exponential(),) * (2 * points))))
    q = np.r_[np.zeros(features), np.ones(points), np.zeros(2 * points)]
    ones = np.ones(features)
    return stack(pattern, ones, q, A[:, pattern.A_indices, pattern.A_columns], b, rows)


def correlation(rng: np.random.Generator, rows: int = 32, order: int = 10) -> Batch:
    """The nearest correlation matrix: minimize |X - C|^2 / 2, X >= 0, diagonal one."""
    size = order * (order + 1) // 2
    diagonal = np.cumsum(np.arange(1, order + 1)) - 1
    A = sp.vstack([sp.csr_matrix((np.ones(order), (np.arange(order), diagonal)), shape=(order, size)), -sp.eye(size)])
    b = np.r_[np.ones(order), np.zeros(size)]
    return sparse(sp.eye(size), A, Product((Zero(order), Semidefinite(order))), rng.standard_normal((rows, size)), b, rows)


def large_correlation(rng: np.random.Generator, rows: int = 32) -> Batch:
    """The same of order 20."""
    return correlation(rng, rows, 20)


PROGRAMS: dict[str, Callable[..., Batch]] = {
    "simplex": simplex,
    "mpc": mpc,
    "portfolio": portfolio,
    "dense": dense,
    "socp": socp,
    "logistic": logistic,
    "sdp10": correlation,
    "sdp20": large_correlation,
}
SOLVERS = ("INTERIOR", "CLARABEL", "DAQP")


def measure(name: str, batch: Batch, threads: int, repeats: int) -> str:
    """One line of the table."""
    pattern, program = batch
    solver = get(name, {"n_jobs_forward": threads}, pattern)[0]
    rows = len(program.q)
    solver.solve(pattern, ConeProgram(*(part[:2].copy() for part in vars(program).values())))
    walls, cpus, solution = [], [], None
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        solution = solver.solve(pattern, program)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    assert solution is not None
    worst = residuals(Products.of(pattern), program, solution.x, solution.y, solution.s).worst
    failed = int((solution.status > 1).sum())
    return (
        f"  {name:10} wall {1e6 * min(walls) / rows:9.1f} us  cpu {1e6 * min(cpus) / rows:9.1f} us  "
        f"iterations {solution.iterations.mean():5.1f} (most {solution.iterations.max()})  residual {np.nanmax(worst):.0e}  failed {failed}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(PROGRAMS))
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    for title in tqdm(args.only):
        batch = PROGRAMS[title](np.random.default_rng(0), *([16] if args.quick else []))
        pattern = batch[0]
        print(f"{title}: n = {pattern.n}, m = {pattern.m}, nnz {pattern.nnzP} + {pattern.nnzA}, {len(batch[1].q)} rows")
        for name in args.solvers:
            if not lacks(find(name), pattern):
                print(measure(name, batch, args.threads, 2 if name != "INTERIOR" else 5))


if __name__ == "__main__":
    main()
