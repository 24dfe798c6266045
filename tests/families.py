"""Random families of cone programs on which INTERIOR is compared with Clarabel and with optima known beforehand.

    python -m tests.families [COUNT]

solves COUNT (500) programs of each family, every second batch badly scaled, and writes what came out to tests/families.txt. It counts as a
disagreement

- a row that Clarabel solves (or finds infeasible) at its defaults and INTERIOR does not, both after polishing;
- an objective of INTERIOR more than AGREE from the optimum that the program was made around;
- where no warning says that the derivative is not an ordinary one: a vjp that differs from the jvp, from the vjp at Clarabel's solution
  (away from kinks), or from five-point differences of the solutions beside it (where halving their step does not change them).

Rows on which Clarabel fails or is inaccurate, or whose objective by Clarabel is off, are counted apart.
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

from cvxlayers.adjoint import KINK
from cvxlayers.cones import Exponential, NonNegative, Power, Product, SecondOrder, Semidefinite, Zero
from cvxlayers.cones.base import Cone
from cvxlayers.conic import ConicLayer
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution, take

FAMILIES = ("linear", "quadratic", "second_order", "exponential", "power", "mixed")
SIZES, WIDE = (3, 8, 20), (10, 20, 40)  # of variables; of mixed programs, whose active parts would else leave no multipliers unique
BATCH = 10
RESULT = Path(__file__).with_name("families.txt")
AGREE = 1e-7  # of objectives, relative to 1 + their size
SLOPE = 1e-4  # of directional derivatives, relative
MARGIN = 1e-4  # distance from a kink, relative to the largest multiplier or slack, above which two solutions have one derivative
SPREAD = 4  # decades of scaling to either side
STEP, SMOOTH = 1e-3, 1e-6  # of differences, and how much they may change with half the step where they are believed


def cones_of(family: str, n: int, rng: np.random.Generator) -> tuple[Cone, ...]:
    """A product for n variables: enough rows that the solution is held by them."""
    equations, bounds = Zero(int(rng.integers(0, n // 2 + 1))), NonNegative(int(rng.integers(n, 3 * n)))
    few = max(1, n // (12 if family == "mixed" else 4))
    kinds: dict[str, tuple[Cone, ...]] = {
        "second_order": tuple(SecondOrder(int(rng.integers(2, 9))) for _ in range(few)),
        "semidefinite": (Semidefinite(int(rng.integers(2, 5))),),
        "exponential": (Exponential(),) * few,
        "power": tuple(Power(float(rng.uniform(0.1, 0.9))) for _ in range(few)),
    }
    mixed = sum(kinds.values(), ())
    return equations, bounds, *(mixed if family == "mixed" else kinds.get(family, ()))


def batch(family: str, n: int, scaled: bool, rng: np.random.Generator) -> tuple[Pattern, ConeProgram, np.ndarray]:
    """BATCH programs of one pattern and their optimal values, known because any v splits into complementary s = Pi_K(v) and y = s - v.

    ``scaled``: linear rows of A one by one, those of every other cone together, columns of A, and the objective are multiplied by numbers
    between 1e-4 and 1e4.
    """
    cone = Product(cones_of(family, n, rng))
    m = cone.dim
    mask = rng.random((m, n)) < rng.choice([0.3, 1.0])
    mask[np.arange(m), rng.integers(0, n, m)] = True
    A = rng.standard_normal((BATCH, m, n)) * mask
    x, v = rng.standard_normal((BATCH, n)), rng.standard_normal((BATCH, m))
    # as many active rows as variables make a vertex, unique; no more, else the multipliers are not, and no derivative is ordinary
    equations, linear = cone.cones[0].dim, cone.cones[0].dim + cone.cones[1].dim
    active = n - equations if family == "linear" else max(0, n - equations - 2 * (len(cone.cones) - 2)) // 2
    place = rng.permuted(np.tile(np.arange(linear - equations), (BATCH, 1)), axis=1)
    v[:, equations:linear] = np.where(place < active, -1, 1) * abs(v[:, equations:linear])
    s = cone.project(v)
    quadratic = family == "quadratic" or (family != "linear" and rng.random() < 0.7)
    F = rng.standard_normal((BATCH, n, n if rng.random() < 0.7 else int(rng.integers(1, n + 1))))
    P = F @ F.transpose(0, 2, 1) / n * quadratic
    if scaled:
        factors = (10 ** rng.uniform(-SPREAD, SPREAD, c.dim if isinstance(c, (Zero, NonNegative)) else 1) for c in cone.cones)
        rows = np.concatenate([np.broadcast_to(f, c.dim) for c, f in zip(cone.cones, factors, strict=True)])
        size, columns = 10 ** rng.uniform(-SPREAD, SPREAD), 10 ** rng.uniform(-SPREAD, SPREAD, n)
        A, s, y = A * rows[:, None] * columns, s * rows, (s - v) / rows * size
        x, P = x / columns, P * columns[:, None] * columns * size
    else:
        y = s - v
    q = -np.einsum("bij,bj->bi", P, x) - np.einsum("bmn,bm->bn", A, y)
    b = np.einsum("bmn,bn->bm", A, x) + s
    pattern = Pattern.of(np.full((n, n), float(quadratic)), sp.csc_matrix(mask.astype(float)), cone)
    values = P[:, pattern.P_indices, pattern.P_columns], q, A[:, pattern.A_indices, pattern.A_columns], b
    optimum = (np.einsum("bi,bij,bj->b", x, P, x) / 2) + (q * x).sum(1)
    return pattern, ConeProgram(*(np.ascontiguousarray(part) for part in values)), optimum


def spoil(program: ConeProgram, optimum: np.ndarray, rng: np.random.Generator) -> ConeProgram:
    """One program of the batch loses its feasible points: A = 0, b outside every cone."""
    A, b, row = program.A.copy(), program.b.copy(), rng.integers(len(program.q))
    A[row], b[row], optimum[row] = 0.0, -1.0, np.nan
    return ConeProgram(program.P, program.q, A, b)


@dataclass
class Outcome:
    """What came out for one family: counts, worst relative differences, what disagreed, and what is Clarabel's alone."""

    programs: int = 0
    solved: Counter = field(default_factory=Counter)
    objective: float = 0.0
    slope: float = 0.0
    compared: int = 0
    difference: float = 0.0
    differenced: int = 0
    iterations: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    theirs: Counter = field(default_factory=Counter)


def compare(pattern: Pattern, program: ConeProgram, optimum: np.ndarray, name: str, outcome: Outcome, rng: np.random.Generator) -> None:
    """Solve by both, compare, and add to the outcome."""
    layers = {solver: ConicLayer(pattern, solver=solver) for solver in ("INTERIOR", "CLARABEL")}
    found = {solver: layer.solve(program, (len(program.q),)) for solver, layer in layers.items()}
    (ours, info), (theirs, other) = found["INTERIOR"], found["CLARABEL"]
    outcome.programs += len(program.q)
    outcome.solved.update(Status(code).name for code in info.status)
    outcome.iterations += info.iterations.tolist()
    outcome.theirs.update(Status(code).name for code in other.status[other.status != info.status])
    for row, (mine, reference) in enumerate(zip(info.status, other.status, strict=True)):
        if mine != reference and reference in (Status.SOLVED, Status.PRIMAL_INFEASIBLE):
            outcome.complaints.append(f"{name} row {row}: {Status(mine).name}, Clarabel says {Status(reference).name}")
    for objective, status, mine in ((info.objective, info.status, True), (other.objective, other.status, False)):
        known = np.where(status == Status.SOLVED, optimum, np.nan)
        apart = np.nan_to_num(abs(objective - known) / (1 + abs(known)))
        if mine:
            outcome.objective = max(outcome.objective, apart.max())
            outcome.complaints += [f"{name} row {row}: objective off by {apart[row]:.0e}" for row in np.flatnonzero(apart > AGREE)]
        else:
            outcome.theirs["objective off"] += int((apart > AGREE).sum())
    rows = np.flatnonzero((info.status == Status.SOLVED) & (other.status == Status.SOLVED))
    if len(rows):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            differentiate(
                layers, take(program, rows), take(ours, rows), take(theirs, rows), [f"{name} row {k}" for k in rows], outcome, rng
            )


def differentiate(
    layers: dict[str, ConicLayer], program: ConeProgram, ours: Solution, theirs: Solution, names: list[str], outcome: Outcome,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Compare derivatives of w'x, x in its own units, along a relative change of the data."""
    tangent = ConeProgram(*(rng.standard_normal(part.shape) * abs(part) for part in vars(program).values()))
    weights = rng.standard_normal(ours.x.shape) / (1e-300 + abs(ours.x))
    zero = np.zeros_like(ours.y)
    slopes, jvps, ordinary, unique = [], [], np.ones(len(names), dtype=bool), np.ones(len(names), dtype=bool)
    for title, solution in (("INTERIOR", ours), ("CLARABEL", theirs)):
        gradient, certificate = layers[title].vjp(program, solution, Solution(weights, zero, zero))
        slopes.append(sum((getattr(gradient, k) * getattr(tangent, k)).sum(1) for k in ("P", "q", "A", "b")))
        moved, forward = layers[title].jvp(program, solution, tangent)
        jvps.append(moved.x * weights)
        unique &= ~certificate.not_unique & ~forward.not_unique & (certificate.margin > KINK)  # else a warning tells
        ordinary &= unique & (certificate.margin > MARGIN)
    size = abs(jvps[0]).sum(1) + 1e-300
    complain = [("jvp and vjp differ", np.where(ordinary, abs(jvps[0].sum(1) - slopes[0]) / size, 0.0))]
    differ = np.where(ordinary, abs(slopes[0] - slopes[1]) / size, 0.0)
    complain.append(("derivative differs from that at Clarabel's solution", differ))
    outcome.slope, outcome.compared = max(outcome.slope, differ.max()), outcome.compared + int(ordinary.sum())

    coarse, fine = (five_points(layers["INTERIOR"], program, tangent, weights, step) for step in (STEP, STEP / 2))
    smooth = unique & (abs(coarse - fine) <= SMOOTH * size)  # no change of active constraints in between, and solved accurately
    against = np.where(smooth, abs(slopes[0] - fine) / size, 0.0)
    outcome.difference, outcome.differenced = max(outcome.difference, against.max()), outcome.differenced + int(smooth.sum())
    complain.append(("derivative differs from five-point differences", against))
    for words, values in complain:
        outcome.complaints += [f"{names[k]}: {words} by {values[k]:.0e}" for k in np.flatnonzero(values > SLOPE)]


def five_points(layer: ConicLayer, program: ConeProgram, tangent: ConeProgram, weights: np.ndarray, step: float) -> np.ndarray:
    """The derivative of w'x by differences of solutions, (rows,), NaN where one was not found."""
    slope = np.zeros(len(weights))
    for times, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
        beside = ConeProgram(*(getattr(program, k) + times * step * getattr(tangent, k) for k in ("P", "q", "A", "b")))
        solution, info = layer.solve(beside, (len(weights),))
        slope += factor * np.where(info.status == Status.SOLVED, (solution.x * weights).sum(1), np.nan)
    return slope / (12 * step)


def run(family: str, count: int, seed: int = 0) -> Outcome:
    """Compare on ``count`` programs of a family: sizes and scalings in turn, one infeasible row in every third batch."""
    outcome = Outcome()
    for number in range(-(-count // BATCH)):
        rng = np.random.default_rng([seed, FAMILIES.index(family), number])
        n, scaled = (WIDE if family == "mixed" else SIZES)[number % len(SIZES)], number % 2 == 1
        pattern, program, optimum = batch(family, n, scaled, rng)
        if number % 3 == 2:
            program = spoil(program, optimum, rng)
        compare(pattern, program, optimum, f"{family} batch {number} (n = {n}{', scaled' if scaled else ''})", outcome, rng)
    return outcome


def report(outcomes: Iterator[tuple[str, Outcome]]) -> str:
    """A table, then the complaints."""
    head = (
        "family",
        "programs",
        "objective",
        "derivative",
        "rows",
        "differences",
        "rows",
        "iterations",
        "statuses; Clarabel, where it differs",
    )
    form, complaints = "{:13} {:>8}  {:>9}  {:>10} {:>5}  {:>11} {:>5}  {:>10}  {}", []
    lines = [form.format(*head)]
    for family, o in outcomes:
        words = ["; ".join(", ".join(f"{count} {name}" for name, count in c.most_common() if count) or "-" for c in (o.solved, o.theirs))]
        numbers = f"{o.objective:.0e}", f"{o.slope:.0e}", o.compared, f"{o.difference:.0e}", o.differenced, f"{np.mean(o.iterations):.1f}"
        lines.append(form.format(family, o.programs, *numbers, *words))
        complaints += o.complaints
    return "\n".join([*lines, "", f"{len(complaints)} disagreements", *complaints, ""])


if __name__ == "__main__":
    programs = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    text = report((family, run(family, programs)) for family in tqdm(FAMILIES))
    RESULT.write_text(text)
    print(text)
