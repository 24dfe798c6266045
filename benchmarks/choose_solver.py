"""The measurements behind `cvxlayers.solvers.choose`: CPU time per row of every solver for linear and quadratic programs.

    python benchmarks/choose_solver.py [--quick] [--solvers NAME ...]

Prints one line per program and batch size: sizes, density of A, microseconds of process CPU time per row on one thread (the fewest of
several runs), the fastest solver, and what `choose` takes. A star marks rows that failed. A solver that was thirty times slower than the
fastest at one size is not asked again at larger ones. Writes nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from cvxlayers.cones import NonNegative, Product, Zero
from cvxlayers.products import Products
from cvxlayers.program import ConeProgram, Pattern
from cvxlayers.solvers import choose, get

ROWS = 64
SOLVERS = ("ACTIVE_SET", "INTERIOR", "DAQP", "CLARABEL")
TOGETHER = ("ACTIVE_SET", "INTERIOR")
"""Solvers that are asked for all rows; the others take them one by one, and of large programs a few are enough."""
FEW, SMALL = 4, 40
HOPELESS = 30.0

Case = tuple[str, Pattern, ConeProgram]


def random_program(rng: np.random.Generator, n: int, density: float, quadratic: bool) -> tuple[Pattern, ConeProgram]:
    """2n inequalities with entries of the given density around a feasible point, and a box."""
    A = sp.vstack(
        [sp.random_array((2 * n, n), density=density, rng=rng, data_sampler=rng.standard_normal), sp.eye_array(n), -sp.eye_array(n)]
    )
    P = sp.csc_matrix((n, n))
    if quadratic:
        root = sp.random_array((n, n), density=density, rng=rng, data_sampler=rng.standard_normal)
        P = sp.csc_matrix(root @ root.T + 0.1 * sp.eye_array(n))
    pattern = Pattern.of(P, A, Product((NonNegative(4 * n),)))
    return _rows(rng, pattern, sp.csc_matrix(sp.triu(P)), sp.csc_matrix(A))


def simplex(rng: np.random.Generator, n: int) -> tuple[Pattern, ConeProgram]:
    """Projection on the simplex."""
    A = sp.csc_matrix(sp.vstack([np.ones((1, n)), -sp.eye_array(n)]))
    pattern = Pattern.of(sp.eye(n), A, Product((Zero(1), NonNegative(n))))
    program = ConeProgram(
        np.ones((ROWS, n)), rng.standard_normal((ROWS, n)), np.tile(A.data, (ROWS, 1)), np.tile(np.r_[1, np.zeros(n)], (ROWS, 1))
    )
    return pattern, program


def total_variation(rng: np.random.Generator, n: int) -> tuple[Pattern, ConeProgram]:
    """min |x - p|^2 / 2 + 1't subject to -t <= Dx <= t: banded."""
    D = sp.eye_array(n - 1, n, k=1) - sp.eye_array(n - 1, n)
    eye = sp.eye_array(n - 1)
    A = sp.csc_matrix(sp.block_array([[D, -eye], [-D, -eye]]))
    P = sp.diags_array(np.r_[np.ones(n), np.zeros(n - 1)])
    pattern = Pattern.of(P, A, Product((NonNegative(2 * (n - 1)),)))
    q = np.concatenate([-np.cumsum(rng.standard_normal((ROWS, n)), axis=1), np.ones((ROWS, n - 1))], axis=1)
    ones = np.ones((ROWS, pattern.nnzP))
    ones[:, pattern.P_indices >= n] = 0.0
    return pattern, ConeProgram(ones, q, np.tile(A.data, (ROWS, 1)), np.zeros((ROWS, pattern.m)))


def _rows(rng: np.random.Generator, pattern: Pattern, P: sp.csc_matrix, A: sp.csc_matrix) -> tuple[Pattern, ConeProgram]:
    values = A.data * (1 + 0.1 * rng.standard_normal((ROWS, pattern.nnzA)))
    inside, slack = rng.uniform(-0.5, 0.5, (ROWS, pattern.n)), rng.random((ROWS, pattern.m))
    b = Products.of(pattern).A(values, inside) + slack
    return pattern, ConeProgram(np.tile(P.data, (ROWS, 1)), rng.standard_normal((ROWS, pattern.n)), values, b)


def families(quick: bool) -> Iterator[Iterator[Case]]:
    """Families of programs by growing size."""
    rng = np.random.default_rng(0)
    sizes = (2, 10, 40) if quick else (2, 5, 10, 20, 40, 80, 150, 300)
    for kind in ("QP", "LP"):
        for density in (0.05, 0.2, 0.5, 1.0):
            yield (
                (f"{kind} {density:4.0%} n = {n}", *random_program(rng, n, density, kind == "QP"))
                for n in sizes
                if n * density >= 2 or (n == 2 and density == 1.0)
            )
    yield ((f"simplex n = {n}", *simplex(rng, n)) for n in sizes)
    yield ((f"total variation n = {n}", *total_variation(rng, n)) for n in sizes[:-2])


def microseconds(name: str, pattern: Pattern, program: ConeProgram, rows: int) -> tuple[float, bool]:
    """CPU time per row of a batch, and whether all rows were solved."""
    rows = rows if name in TOGETHER or pattern.n <= SMALL else min(rows, FEW)
    part = ConeProgram(*(np.ascontiguousarray(values[:rows]) for values in vars(program).values()))
    solver = get(name, {"n_jobs_forward": 1}, pattern)[0]
    good = bool((solver.solve(pattern, part).status <= 1).all())
    best, spent, runs = np.inf, 0.0, 0
    while runs < 2 or (spent < 0.1 and runs < 50):
        began = time.process_time()
        solver.solve(pattern, part)
        best, spent, runs = min(best, time.process_time() - began), spent + time.process_time() - began, runs + 1
        if spent > 2.0:
            break
    return best / rows * 1e6, good


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--solvers", nargs="+", default=SOLVERS)
    arguments = parser.parse_args()
    print(
        f"{'program':27}{'m':>5}{'nnz(A)/nm':>11}{'batch':>6}" + "".join(f"{name:>12}" for name in arguments.solvers) + "  fastest, choose"
    )
    for family in families(arguments.quick):
        asked = {rows: list(arguments.solvers) for rows in (ROWS, 1)}
        for name, pattern, program in tqdm(family, leave=False):
            for rows in (ROWS, 1):
                found = {solver: microseconds(solver, pattern, program, rows) for solver in asked[rows]}
                fastest = min(found, key=lambda solver: found[solver][0])
                columns = "".join(
                    f"{found[solver][0]:11.1f}{' ' if found[solver][1] else '*'}" if solver in found else f"{'-':>11} "
                    for solver in arguments.solvers
                )
                density = pattern.nnzA / (pattern.n * pattern.m)
                tqdm.write(f"{name:27}{pattern.m:5}{density:11.3f}{rows:6}{columns}  {fastest}, {choose(pattern)}")
                asked[rows] = [solver for solver in found if found[solver][0] < HOPELESS * found[fastest][0]]


if __name__ == "__main__":
    main()
