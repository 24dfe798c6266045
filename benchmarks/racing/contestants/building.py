"""Building a layer, in a fresh process each time: its time, and by how much it raises the peak of memory.

python building.py cvxlayers.torch 500     prints a JSON object; "cvxpy" builds CVXPY's own problem data for Clarabel
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from racing.contestants.case import Case

FOLDER = Path(__file__).parent.parent.parent


def load(workload: Any, data: dict[str, np.ndarray], module: str) -> Case:
    """``module`` holds a CvxpyLayer, or is "cvxpy"."""
    if workload.kind != "build":
        raise NotImplementedError("building a layer only")
    command = [sys.executable, "-m", __name__, module, str(workload.sizes["n"])]

    def forward() -> dict[str, float]:
        run = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER)
        if run.returncode:
            raise RuntimeError(run.stderr.strip().splitlines()[-1] if run.stderr.strip() else f"exit status {run.returncode}")
        return json.loads(run.stdout.splitlines()[-1])

    return Case(forward)


def peak() -> float:
    """The peak of this process's memory in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform.startswith("linux") else 1024**2)


def main() -> None:
    """Build once, and tell."""
    from racing.forms.statement import build, directly

    module, n = sys.argv[1], int(sys.argv[2])
    library: Any = import_module(module)
    problem, parameters, x = build(directly, n)
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    if module == "cvxpy":
        problem.get_problem_data(library.CLARABEL)
    else:
        library.CvxpyLayer(problem, parameters=list(parameters.values()), variables=[x])
    told = {"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (time.process_time() - cpu), "peak_mb": peak() - before}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
