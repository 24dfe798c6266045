"""The measurements behind `cvxlayers.solvers.choose`: time of Clarabel over time of DAQP on linear and quadratic programs.

    python benchmarks/choose_solver.py [--quick]

Prints one line per program: sizes, density, the median ratio over paired runs with its quartiles, and what `choose` takes. Above one,
DAQP is faster. Writes nothing.
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

ROWS, REPEATS = 4, 5


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
    return _rows(rng, pattern, sp.csc_matrix(sp.triu(P)), sp.csc_matrix(A), zero=0)


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


def _rows(rng: np.random.Generator, pattern: Pattern, P: sp.csc_matrix, A: sp.csc_matrix, zero: int) -> tuple[Pattern, ConeProgram]:
    values = A.data * (1 + 0.1 * rng.standard_normal((ROWS, pattern.nnzA)))
    inside, slack = rng.uniform(-0.5, 0.5, (ROWS, pattern.n)), rng.random((ROWS, pattern.m))
    slack[:, :zero] = 0
    b = Products.of(pattern).A(values, inside) + slack
    return pattern, ConeProgram(np.tile(P.data, (ROWS, 1)), rng.standard_normal((ROWS, pattern.n)), values, b)


def programs(quick: bool) -> Iterator[tuple[str, Pattern, ConeProgram]]:
    """The table of programs."""
    rng = np.random.default_rng(0)
    sizes = (10, 30) if quick else (10, 30, 100, 200, 400)
    for density in (1.0, 0.1):
        for quadratic in (True, False):
            for n in sizes:
                if n * density >= 3:
                    yield f"{'QP' if quadratic else 'LP'}, {density:.0%} full, n = {n}", *random_program(rng, n, density, quadratic)
    for n in sizes:
        yield f"simplex, n = {n}", *simplex(rng, n)
    for n in sizes[:3]:
        yield f"total variation, n = {n}", *total_variation(rng, n)


def ratio(pattern: Pattern, program: ConeProgram) -> np.ndarray:
    """Quartiles of the paired ratios of times, Clarabel over DAQP."""
    solvers = [get(name, None, pattern)[0] for name in ("CLARABEL", "DAQP")]
    samples = []
    for _ in range(REPEATS):
        times = []
        for solver in solvers:
            began = time.perf_counter()
            solver.solve(pattern, program)
            times.append(time.perf_counter() - began)
        samples.append(times[0] / times[1])
    return np.percentile(samples, (25, 50, 75))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    table = list(programs(parser.parse_args().quick))
    lines = []
    for name, pattern, program in tqdm(table):
        low, middle, high = ratio(pattern, program)
        lines.append(f"{name:28} m = {pattern.m:5}  Clarabel/DAQP {middle:6.2f} ({low:.2f}-{high:.2f})  choose: {choose(pattern)}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
