"""Forward solves of INTERIOR beside Clarabel and DAQP on the cone programs of the race, per row, without any layer around them.

    python benchmarks/engine.py [--quick] [--only NAME ...] [--threads N]

Prints per program and solver: wall and CPU microseconds per row (the fewest of several runs), iterations, worst relative residual, and
rows that failed. Writes nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from cvxlayers.canonicalize import canonicalize
from cvxlayers.cones import NonNegative, Product, Zero
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


def sparse(P: sp.spmatrix, A: sp.spmatrix, cone: Product, q: np.ndarray, b: np.ndarray, rows: int) -> Batch:
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
    return sparse(P, A, cone, np.zeros(A.shape[1]), b, rows)


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


def stated(problem: cp.Problem, values: dict[cp.Parameter, np.ndarray], rows: int) -> Batch:
    """The cone programs of a CVXPY problem at values (rows, *shape) of its parameters."""
    form = canonicalize(problem, list(values), problem.variables())
    return form.pattern, form.program([np.asarray(v, dtype=float) for v in values.values()])  # type: ignore[attr-defined]


PROGRAMS: dict[str, Callable[..., Batch]] = {"simplex": simplex, "mpc": mpc, "portfolio": portfolio, "dense": dense}
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
