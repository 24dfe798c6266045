"""Race cvxlayers against cvxpylayers on the problems of `workloads`, with both libraries' default solvers and settings.

Each library runs in a process and an environment of its own. A repeat measures every workload once on each side, ours and the peer's
in turns, so that whatever else the machine does falls on both. Errors are measured on the same data against `reference`. A ratio counts
only where ours is correct: error of x below 1e-4 and of the gradient below 1e-3.

    python benchmarks/against_cvxpylayers.py [--peer-python PATH] [--repeats 9] [--only simplex optnet]

Without --peer-python (or CVXLAYERS_PEER_PYTHON) the peer's environment is made in .peers/cvxpylayers. Writes results/*.json, *.png and
the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import reference
import report
from tqdm import tqdm
from workloads import WORKLOADS, Workload

HERE = Path(__file__).parent
PEERS = HERE.parent / ".peers"
PEER_VERSION = "1.2.0"
X_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
OVERHEAD_CALLS = 300


class Process:
    """A `worker` at the other end of two pipes."""

    def __init__(self, python: str, module: str, log: Path) -> None:
        self.log = log
        command = [python, str(HERE / "worker.py"), module]
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)

    def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        """One command and its answer; raises RuntimeError when the process has died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that runs {self.process.args} has died:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process by ending its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def peer_python(given: str | None) -> str:
    """The interpreter of an environment with the peer; made where it is missing, with our versions of torch, cvxpy and the solvers."""
    if given:
        return given
    python = PEERS / "cvxpylayers" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = PEERS / "cvxpylayers" / "ready"
    if not ready.exists():
        print(f"installing cvxpylayers {PEER_VERSION} into {python.parent.parent.relative_to(HERE.parent)}", flush=True)
        venv.create(PEERS / "cvxpylayers", with_pip=True, clear=True)
        same = [f"{name}=={metadata.version(name).split('+')[0]}" for name in ("torch", "cvxpy", "numpy", "scipy", "scs", "clarabel")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"cvxpylayers=={PEER_VERSION}", *same], check=True)
        ready.touch()
    return str(python)


def race(workload: Workload, ours: Process, peer: Process, repeats: int, bar: tqdm) -> dict[str, Any]:
    """Load, time in turns, and judge one workload: a JSON object."""
    bar.set_postfix_str(workload.name)
    sides = {"ours": ours} if workload.twin else {"ours": ours, "peer": peer}
    result: dict[str, Any] = {"name": workload.name, "title": workload.title, "batch": workload.batch, "goal": workload.goal}
    result["twin"] = workload.twin
    for side, process in sides.items():
        result[side] = process.do("load", name=workload.name)
    running = {side: process for side, process in sides.items() if "error" not in result[side]}
    for _ in range(repeats):
        for mode in ("forward", "both"):
            for side, process in running.items():
                sample = process.do("time", backward=mode == "both", calls=workload.calls)
                for unit, value in sample.items():
                    result[side].setdefault(mode, {}).setdefault(unit, []).append(value)
        bar.update()
    exact = reference.answer(workload)
    for side, process in running.items():
        result[side].update(errors(process, exact))
    bar.update()
    return result


def errors(process: Process, exact: tuple[np.ndarray, list[np.ndarray]]) -> dict[str, Any]:
    """The errors of x and of the worst parameter's gradient, relative to their largest entries."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "answer.npz")
        told = process.do("answer", path=path)
        if "error" in told:
            return told
        with np.load(path) as saved:
            x, *gradients = (saved[name] for name in saved.files)
    pairs = zip(gradients, exact[1], strict=True)
    return {"error_x": reference.error(x, exact[0]), "error_gradient": max(reference.error(g, e) for g, e in pairs)}


def compare(results: Sequence[dict[str, Any]]) -> None:
    """Add to each result its validity, and median and quartiles of the ratios of neighbouring samples, peer over ours."""
    by_name = {r["name"]: r for r in results}
    for result in results:
        peer = by_name.get(result["twin"] or result["name"], {}).get("peer", {})
        result["valid"] = (
            result["ours"].get("error_x", np.inf) < X_TOLERANCE and result["ours"].get("error_gradient", np.inf) < GRADIENT_TOLERANCE
        )
        result["ratio"] = {}
        for mode in ("forward", "both"):
            theirs, mine = (np.array(side.get(mode, {}).get("wall_ms", [])) for side in (peer, result["ours"]))
            if len(theirs) == len(mine) > 0:
                low, middle, high = np.quantile(theirs / mine, (0.25, 0.5, 0.75))
                result["ratio"][mode] = {"median": float(middle), "low": float(low), "high": float(high)}


def overhead(ours: Process) -> dict[str, Any]:
    """What a call of ours with one problem costs beyond the solver: the simplex projection, batch 1."""
    ours.do("load", name="simplex_one")
    measured = ours.do("overhead", calls=OVERHEAD_CALLS)
    if "error" in measured:
        return measured
    beyond = {f"{mode}_beyond_solver_ms": measured[f"{mode}_ms"] - measured["solver_ms"] for mode in ("forward", "both")}
    return {**measured, **beyond, "goal_ms": 1.0}


def run(python: str, repeats: int, chosen: Sequence[Workload]) -> dict[str, Any]:
    """The whole race as one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Process(sys.executable, "cvxlayers.torch", Path(folder) / "ours.log")
        peer = Process(python, "cvxpylayers.torch", Path(folder) / "peer.log")
        setting = {
            "cores": os.cpu_count(),
            "python": sys.version.split()[0],
            "repeats": repeats,
            "ours": ours.do("setting"),
            "peer": peer.do("setting"),
        }
        with tqdm(total=len(chosen) * (repeats + 1), unit="round") as bar:
            results = [race(workload, ours, peer, repeats, bar) for workload in chosen]
        compare(results)
        beyond = overhead(ours)
        ours.close()
        peer.close()
    return {"setting": setting, "workloads": results, "overhead": beyond}


def main() -> None:
    """Run the race, save it, show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("CVXLAYERS_PEER_PYTHON"), help="interpreter that has cvxpylayers and torch")
    parser.add_argument("--repeats", type=int, default=9, help="samples of each side per workload")
    parser.add_argument("--only", nargs="*", choices=[w.name for w in WORKLOADS], help="race these only, and write no result")
    arguments = parser.parse_args()
    chosen = [w for w in WORKLOADS if not arguments.only or w.name in arguments.only]
    results = run(peer_python(arguments.peer_python), arguments.repeats, chosen)
    if not arguments.only:
        report.write(results)
    print(report.table(results))


if __name__ == "__main__":
    main()
