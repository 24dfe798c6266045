"""What building a layer costs: minimize |A x - b|^2 over x >= 0 with A (500, 500) and b as parameters; time and memory.

    python benchmarks/build.py [--size 500] [--repeats 5]

Every repeat is a process of its own, which imports everything, then builds the layer: the time of the constructor, and by how much the
largest resident memory of the process grew, are what is measured. Writes results/build.json and prints a table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "build.json"
GOALS = {"wall_s": 0.5, "memory_mb": 100}


def build(size: int) -> dict[str, float]:
    """Build one layer in this process."""
    cp: Any = importlib.import_module("cvxpy")
    layers: Any = importlib.import_module("cvxlayers.torch")
    importlib.import_module("cvxlayers.canonicalize")
    x, A, b = cp.Variable(size), cp.Parameter((size, size)), cp.Parameter(size)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    layer = layers.CvxpyLayer(problem, parameters=[A, b], variables=[x])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 2**20
    return {"wall_s": wall, "cpu_s": cpu, "memory_mb": memory, "nonzeros_of_M": layer.core.canonical.M.nnz}


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table: medians, and in parentheses the extremes."""
    head = "layer | time, s | goal | cpu, s | peak memory, MB | goal | nonzeros of M"
    cells = [f"A({results['size']}, {results['size']})"]
    for name, goal in (("wall_s", True), ("cpu_s", False), ("memory_mb", True)):
        values = [repeat[name] for repeat in results["repeats"]]
        cells.append(f"{median(values):.3g} ({min(values):.3g}-{max(values):.3g})")
        cells += [f"{GOALS[name]:g}"] if goal else []
    cells.append(str(results["repeats"][0]["nonzeros_of_M"]))
    return "\n".join([f"| {head} |", "|" + "---|" * (head.count("|") + 1), f"| {' | '.join(cells)} |", "", results["setting"]])


def main() -> None:
    """Build in fresh processes, save and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        sys.stdout.write(json.dumps(build(options.size)) + "\n")
        return
    repeats = []
    for _ in tqdm(range(options.repeats)):
        command = [sys.executable, __file__, "--here", "--size", str(options.size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        repeats.append(json.loads(done.stdout.splitlines()[-1]))
    setting = f"{os.cpu_count()} cores, Python {platform.python_version()}, {options.repeats} processes."
    results = {"size": options.size, "repeats": repeats, "setting": setting}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
