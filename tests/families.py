"""Random families of cone programs on which INTERIOR is compared with Clarabel: status, objective and derivative.

    python -m tests.families [COUNT]

solves COUNT (500) programs of each family and writes what came out to tests/families.txt.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from cvxlayers.cones import Exponential, NonNegative, Power, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.cones.base import Cone
from cvxlayers.conic import ConicLayer
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution, take

FAMILIES = ("linear", "quadratic", "second_order", "exponential", "power", "mixed")
SIZES = (3, 8, 20)
BATCH = 10
RESULT = Path(__file__).with_name("families.txt")
AGREE = 1e-7  # of objectives, relative
SLOPE = 1e-4  # of directional derivatives, relative, where both solvers' certificates say that the derivative is an ordinary one


def cones_of(family: str, n: int, rng: np.random.Generator) -> tuple[Cone, ...]:
    """A product for n variables: enough rows that the solution is held by them."""
    equations, bounds = Zero(int(rng.integers(0, n // 2 + 1))), NonNegative(int(rng.integers(n, 3 * n)))
    few = max(1, n // 4)
    kinds: dict[str, tuple[Cone, ...]] = {
        "second_order": tuple(SecondOrder(int(rng.integers(2, 9))) for _ in range(few)),
        "semidefinite": (Semidefinite(int(rng.integers(2, 5))),),
        "exponential": (Exponential(),) * few,
        "power": tuple(Power(float(rng.uniform(0.1, 0.9))) for _ in range(few)),
    }
    mixed = sum(kinds.values(), ())
    return equations, bounds, *(mixed if family == "mixed" else kinds.get(family, ()))


def batch(family: str, n: int, scaled: bool, rng: np.random.Generator) -> tuple[Pattern, ConeProgram]:
    """BATCH programs of one pattern with known optimal points: any v splits into s = Pi_K(v) and y = s - v, which are complementary.

    ``scaled``: rows of A (one factor per cone) and columns of A are multiplied by numbers between 0.1 and 10, the objective by one between
    1e-3 and 1e3.
    """
    cone = Product(cones_of(family, n, rng))
    m = cone.dim
    mask = rng.random((m, n)) < rng.choice([0.3, 1.0])
    mask[np.arange(m), rng.integers(0, n, m)] = True
    A = rng.standard_normal((BATCH, m, n)) * mask
    x, v = rng.standard_normal((BATCH, n)), rng.standard_normal((BATCH, m))
    if family == "linear":  # as many active rows as variables: a vertex, and a unique one
        equations = cone.cones[0].dim
        place = rng.permuted(np.tile(np.arange(m - equations), (BATCH, 1)), axis=1)
        v[:, equations:] = np.where(place < n - equations, -1, 1) * abs(v[:, equations:])
    s = cone.project(v)
    quadratic = family == "quadratic" or (family != "linear" and rng.random() < 0.7)
    F = rng.standard_normal((BATCH, n, n if rng.random() < 0.7 else int(rng.integers(1, n + 1))))
    P = F @ F.transpose(0, 2, 1) / n * quadratic
    if scaled:
        # no wider than two decades around a common size, so that unit tolerances still mean something
        rows = np.concatenate([np.full(c.dim, f) if not isinstance(c, (Zero, NonNegative)) else f * np.ones(c.dim)
                               for c, f in zip(cone.cones, 10 ** rng.uniform(-1, 1, len(cone.cones)), strict=True)])  # fmt: skip
        size, columns = 10 ** rng.uniform(-3, 3), 10 ** rng.uniform(-1, 1, n)
        A, s, v = A * rows[:, None] * columns, s * rows, v * rows
        x = x / columns
        P = P * columns[:, None] * columns * size
        y = (s - v) / rows**2 * size
    else:
        y = s - v
    q = -np.einsum("bij,bj->bi", P, x) - np.einsum("bmn,bm->bn", A, y)
    b = np.einsum("bmn,bn->bm", A, x) + s
    pattern = Pattern.of(np.full((n, n), float(quadratic)), sp.csc_matrix(mask.astype(float)), cone)
    values = P[:, pattern.P_indices, pattern.P_columns], q, A[:, pattern.A_indices, pattern.A_columns], b
    return pattern, ConeProgram(*(np.ascontiguousarray(part) for part in values))


def spoil(program: ConeProgram, rng: np.random.Generator) -> ConeProgram:
    """One program of the batch loses its feasible points: A = 0, b outside every cone."""
    A, b, row = program.A.copy(), program.b.copy(), rng.integers(len(program.q))
    A[row], b[row] = 0.0, -1.0
    return ConeProgram(program.P, program.q, A, b)


@dataclass
class Outcome:
    """What came out for one family: counts, worst relative difference of objectives, worst of derivatives, and what disagreed."""

    programs: int = 0
    solved: Counter = field(default_factory=Counter)
    objective: float = 0.0
    slope: float = 0.0
    compared: int = 0
    iterations: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def compare(pattern: Pattern, program: ConeProgram, name: str, outcome: Outcome, rng: np.random.Generator) -> None:
    """Solve by both, compare, and add to the outcome."""
    layers = {solver: ConicLayer(pattern, solver=solver) for solver in ("INTERIOR", "CLARABEL")}
    found = {solver: layer.solve(program, (len(program.q),)) for solver, layer in layers.items()}
    (ours, info), (theirs, other) = found["INTERIOR"], found["CLARABEL"]
    outcome.programs += len(program.q)
    outcome.solved.update(Status(code).name for code in info.status)
    outcome.iterations += info.iterations.tolist()
    for row, (mine, reference) in enumerate(zip(info.status, other.status, strict=True)):
        good = Status(mine).ok if Status(reference).ok else mine == reference or Status(mine).ok
        if not good or (mine == Status.INACCURATE and reference == Status.SOLVED):
            outcome.complaints.append(f"{name} row {row}: {Status(mine).name}, Clarabel says {Status(reference).name}")
    both = (info.status <= Status.INACCURATE) & (other.status <= Status.INACCURATE)
    one, two = np.where(both, info.objective, 0.0), np.where(both, other.objective, 0.0)
    apart = abs(one - two) / (1 + np.maximum(abs(one), abs(two)))
    outcome.objective = max(outcome.objective, apart.max())
    outcome.complaints += [f"{name} row {row}: objectives differ by {apart[row]:.0e}" for row in np.flatnonzero(apart > AGREE)]

    rows = np.flatnonzero((info.status == Status.SOLVED) & (other.status == Status.SOLVED))
    if not len(rows):
        return
    tangent = ConeProgram(*(rng.standard_normal(part.shape) * abs(part) for part in vars(take(program, rows)).values()))
    weights = rng.standard_normal((len(rows), pattern.n))
    zero = np.zeros((len(rows), pattern.m))
    part, slopes, usable = take(program, rows), [], np.ones(len(rows), dtype=bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for solver, solution in (("INTERIOR", ours), ("CLARABEL", theirs)):
            moved, certificate = layers[solver].jvp(part, take(solution, rows), tangent)
            gradient, _ = layers[solver].vjp(part, take(solution, rows), Solution(weights, zero, zero))
            forward = (moved.x * weights).sum(1)
            backward = sum((getattr(gradient, k) * getattr(tangent, k)).sum(1) for k in ("P", "q", "A", "b"))
            size = 1e-300 + abs(moved.x * weights).sum(1)
            usable &= ordinary(certificate)
            slopes.append((forward, backward, size))
    for (forward, backward, size), title in zip(slopes, ("INTERIOR", "CLARABEL"), strict=True):
        wrong = np.where(usable, abs(forward - backward) / size, 0.0)
        outcome.complaints += [f"{name} row {rows[k]}: jvp and vjp of {title} differ" for k in np.flatnonzero(wrong > SLOPE)]
    differ = np.where(usable, abs(slopes[0][0] - slopes[1][0]) / np.maximum(slopes[0][2], slopes[1][2]), 0.0)
    outcome.slope, outcome.compared = max(outcome.slope, differ.max()), outcome.compared + int(usable.sum())
    outcome.complaints += [f"{name} row {rows[k]}: derivatives differ by {differ[k]:.0e}" for k in np.flatnonzero(differ > SLOPE)]


def ordinary(certificate) -> np.ndarray:
    """Rows whose derivative exists in the ordinary sense, as the certificate tells."""
    return ~certificate.not_unique & (certificate.margin > 1e-4)


def run(family: str, count: int, seed: int = 0) -> Outcome:
    """Compare on ``count`` programs of a family: sizes and scalings in turn, one infeasible row in every third batch."""
    outcome = Outcome()
    for number in range(-(-count // BATCH)):
        rng = np.random.default_rng([seed, FAMILIES.index(family), number])
        n, scaled = SIZES[number % len(SIZES)], number % 2 == 1
        pattern, program = batch(family, n, scaled, rng)
        if number % 3 == 2:
            program = spoil(program, rng)
        compare(pattern, program, f"{family} batch {number} (n = {n}{', scaled' if scaled else ''})", outcome, rng)
    return outcome


def report(outcomes: Iterator[tuple[str, Outcome]]) -> str:
    """A table, then the complaints."""
    lines, complaints = ["family        programs  worst objective  worst derivative (compared)  iterations  statuses"], []
    for family, o in outcomes:
        mean = np.mean(o.iterations)
        statuses = ", ".join(f"{count} {name}" for name, count in o.solved.most_common())
        slope = f"{o.slope:16.0e} {f'({o.compared})':>11}"
        lines.append(f"{family:13} {o.programs:8}  {o.objective:15.0e}  {slope}  {mean:10.1f}  {statuses}")
        complaints += o.complaints
    return "\n".join([*lines, "", f"{len(complaints)} disagreements", *complaints, ""])


if __name__ == "__main__":
    programs = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    text = report((family, run(family, programs)) for family in tqdm(FAMILIES))
    RESULT.write_text(text)
    print(text)
