"""What the first use of a layer costs: kernels are compiled once, on first need, and loaded from disk by later processes.

    python benchmarks/first_use.py [--colds 3] [--warms 5]

A process imports everything, numba first, then builds a PyTorch layer of a small linear or quadratic program, with the solver that the
library chooses or with INTERIOR, and calls it forward and backward for the first time. "Cold" has an empty folder for compiled code
(NUMBA_CACHE_DIR), "warm" the folder that a cold process left behind. The time from the constructor to the end of the backward pass, and
that of importing numba apart. Processor time is what to compare where the machine has other work. Writes results/first_use.json and
prints a table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "first_use.json"
GOALS = {"cold": 10.0, "warm": 0.5}
PROGRAMS = {f"{name}, solver={solver}": (name == "quadratic", solver) for name in ("linear", "quadratic") for solver in (None, "INTERIOR")}
"""What is measured: whether the program is quadratic, and the solver."""


def clocks() -> tuple[float, float]:
    """Wall time and the process's CPU time."""
    return time.perf_counter(), time.process_time()


def first_use(quadratic: bool, solver: str | None) -> dict[str, Any]:
    """Build and call one layer in this process; the times, and the name of the solver that served."""
    importlib.import_module("numpy")
    start = clocks()
    importlib.import_module("numba")
    numba = [after - before for before, after in zip(start, clocks(), strict=True)]
    cp: Any = importlib.import_module("cvxpy")
    torch: Any = importlib.import_module("torch")
    layers: Any = importlib.import_module("cvxlayers.torch")
    importlib.import_module("cvxlayers.canonicalize")
    start = clocks()
    x, q, b = cp.Variable(5), cp.Parameter(5), cp.Parameter()
    cost = q @ x + (cp.sum_squares(x) if quadratic else 0)
    layer = layers.CvxpyLayer(cp.Problem(cp.Minimize(cost), [cp.sum(x) == b, x >= 0]), [q, b], [x], solver=solver)
    values = torch.arange(5.0, dtype=torch.float64, requires_grad=True), torch.ones((), dtype=torch.float64, requires_grad=True)
    (answer,), info = layer(*values, return_info=True)
    answer.square().sum().backward()
    wall, cpu = (after - before for before, after in zip(start, clocks(), strict=True))
    return {"solver": info.solver, "wall_s": wall, "cpu_s": cpu, "numba_wall_s": numba[0], "numba_cpu_s": numba[1]}


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table: medians, and in parentheses the extremes."""
    columns = {"wall_s": "time, s", "cpu_s": "cpu, s", "numba_wall_s": "import of numba, s", "numba_cpu_s": "cpu, s"}
    head = " | ".join(["first use", "goal", *columns.values()])
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for kind, goal in GOALS.items():
        for program, runs in results[kind].items():
            cells = [f"{program} ({runs[0]['solver']}), {kind}", f"{goal:g}"]
            for name in columns:
                values = [run[name] for run in runs]
                cells.append(f"{median(values):.3g} ({min(values):.3g}-{max(values):.3g})")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", results["setting"]])


def main() -> None:
    """Measure in fresh processes, save and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--colds", type=int, default=3)
    parser.add_argument("--warms", type=int, default=5)
    parser.add_argument("--here", choices=tuple(PROGRAMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        sys.stdout.write(json.dumps(first_use(*PROGRAMS[options.here])) + "\n")
        return
    results: dict[str, Any] = {kind: {program: [] for program in PROGRAMS} for kind in GOALS}
    for _ in tqdm(range(options.colds)):
        for program in PROGRAMS:
            with tempfile.TemporaryDirectory() as folder:
                for kind, times in (("cold", 1), ("warm", options.warms)):
                    results[kind][program] += [in_a_process(program, folder) for _ in range(times)]
    results["setting"] = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, Python {platform.python_version()}."
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(table(results) + "\n")


def in_a_process(program: str, folder: str) -> dict[str, Any]:
    """`first_use` in a process of its own, which keeps compiled code in ``folder``."""
    command = [sys.executable, __file__, "--here", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "NUMBA_CACHE_DIR": folder})
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
