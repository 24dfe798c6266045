"""Race cvxlayers against its peers on the workloads of `racing.workload`: forward, and forward + backward, errors beside every time.

Every contestant runs in a process of its own, every peer in an environment of its own, made under .peers on first use. A repeat takes one
sample of each contestant in turns, so that whatever else the machine does falls on all. A figure counts only with its error: of x below
1e-4, of the gradient below 1e-3, against `racing.references`.

    python benchmarks/race.py [--repeats 7] [--solvers MOREAU]                     # all workloads; more of our solvers
    python benchmarks/race.py --only W1 W6 [--keep]                                # some; kept among the saved results, or shown only
    python benchmarks/race.py --quick                                              # small, without peers, writes nothing
    python benchmarks/race.py --report                                             # tables and plot again from the saved JSON

Writes results/race.json, race.md, race.png and the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from racing import report
from racing.process import Lost, Process, python_of
from racing.references import Judge
from racing.roster import ENVIRONMENTS, OURS, PEERS, Contestant, named_solvers
from racing.workload import WORKLOADS, Workload
from tqdm import tqdm

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- race begin -->", "<!-- race end -->"
LIMIT = 120.0
"""Seconds that loading (compiling and two warm calls included) or one sample may take."""
PACKAGES = ("cvxlayers", "torch", "cvxpy", "numpy", "scipy", "clarabel", "scs", "daqp", "moreau", "numba", "qdldl")


@dataclass
class Race:
    """The processes, and what they share; ``budget`` is the seconds of samples that one contestant may take on one workload."""

    contestants: Sequence[Contestant]
    repeats: int
    budget: float
    tiny: bool
    folder: Path
    processes: dict[str, Process] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def workload(self, workload: Workload, bar: Any) -> dict[str, Any]:
        """Load, time in turns and judge one workload: a JSON object."""
        sized = workload.tiny() if self.tiny else workload
        data = sized.data()
        path = self.folder / "data.npz"
        saved: dict[str, Any] = {**data, **cone_entries(sized, data)}
        np.savez(path, **saved)
        entries = {c.name: entry(c) for c in self.contestants if c.takes(workload.key, workload.kind)}
        for c in self.contestants:
            if c.takes(workload.key, workload.kind):
                bar.set_postfix_str(f"{workload.key}: {c.name}")
                entries[c.name] |= self.ask(c, "load", key=workload.key, tiny=self.tiny, path=str(path), module=c.module, options=c.options)
        racing = [c for c in self.contestants if "modes" in entries.get(c.name, {}) and c.takes(workload.key, workload.kind)]
        for repeat in range(self.repeats):
            for mode in ("forward", "both"):
                for c in racing:
                    mine = entries[c.name]
                    allowed = min(self.repeats, max(2, int(self.budget / max(mine["seconds"], 1e-9))))
                    if mode in mine["modes"] and repeat < allowed and "error" not in mine:
                        self.sample(c, mine, mode, sized.calls)
            bar.update()
        bar.set_postfix_str(f"{workload.key}: reference")
        self.judge(sized, data, [(c, entries[c.name]) for c in racing])
        if not self.tiny:
            self.close()  # a fresh process for the next workload: some keep gigabytes
        bar.update()
        told = {
            "when": time.strftime("%d %b %Y"),
            "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
            "repeats": self.repeats,
            "key": workload.key,
            "kind": workload.kind,
            "title": workload.title,
            "batch": sized.batch,
        }
        return {**told, "goal": workload.goal, "goals": dict(workload.goals), "contestants": list(entries.values())}

    def sample(self, c: Contestant, mine: dict[str, Any], mode: str, calls: int) -> None:
        """One sample, added to the entry."""
        told = self.ask(c, "time", mode=mode, calls=calls)
        if "error" in told:
            mine["error"] = told["error"]
        else:
            for unit, value in told.items():
                mine.setdefault(mode, {}).setdefault(unit, []).append(value)

    def judge(self, workload: Workload, data: dict[str, np.ndarray], racing: list[tuple[Contestant, dict[str, Any]]]) -> None:
        """Add the errors to the entries."""
        if workload.kind == "build":
            for _, mine in racing:
                mine["judged"] = False
            return
        judge = Judge(workload, data)
        for c, mine in racing:
            if "error" in mine:
                continue
            path = self.folder / "answer.npz"
            told = self.ask(c, "answer", path=str(path))
            if "error" in told:
                mine |= told
                continue
            with np.load(path) as saved:
                found = {name: saved[name] for name in saved.files}
            mine |= judge.errors(found.pop("x"), {name[1:]: value for name, value in found.items()})

    def ask(self, c: Contestant, what: str, **arguments: Any) -> dict[str, Any]:
        """A command to a contestant's process, which is started where it does not run; what went wrong comes back in words."""
        try:
            if c.name not in self.processes:
                environment = ENVIRONMENTS[c.environment] if c.environment else None
                log = self.folder / f"{len(self.processes)}.log"
                process = self.processes[c.name] = Process(python_of(environment), log, own=environment is None)
                packages = environment.packages if environment else PACKAGES
                self.versions[c.environment or "ours"] = process.do("setting", LIMIT, packages=list(packages))["versions"]
            return self.processes[c.name].do(what, LIMIT, **arguments)
        except Lost as lost:
            self.processes.pop(c.name).close()
            return {"error": str(lost)}
        except RuntimeError as error:
            return {"unavailable": str(error)}

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()
        self.processes.clear()


def entry(c: Contestant) -> dict[str, Any]:
    """What is known of a contestant before it runs."""
    return {
        "name": c.name,
        "ours": c.ours,
        "peer": c.peer,
        "bare": c.module == "raw" or c.peer == "cvxpy",
        "default": "solver" not in c.options,
    }


def cone_entries(workload: Workload, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The numbers of the cone form, for solvers that cannot make them from the parameters."""
    from racing.forms.cone import FORMS
    from racing.references.start import entries

    if workload.kind not in FORMS:
        return {}
    form = FORMS[workload.kind](**workload.sizes)
    told = {name: value.detach().numpy() for name, value in zip("PqAb", entries(form, data)[1], strict=True)}
    index = {"P_rows": form.P[0], "P_columns": form.P[1], "A_rows": form.A[0], "A_columns": form.A[1]}
    sizes = {name: np.array(getattr(form, name)) for name in ("zero", "nonnegative", "second_order", "semidefinite", "exponential")}
    return {f"form_{name}": value for name, value in {**told, **index, **sizes}.items()}


def run(
    workloads: Sequence[Workload],
    contestants: Sequence[Contestant],
    repeats: int,
    budget: float = 15.0,
    tiny: bool = False,
    after: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The whole race as one JSON object; ``after`` each workload gets it as far as it has come."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for the references: on a busy machine a second thread waits more than it helps
    told = {"cores": os.cpu_count(), "python": sys.version.split()[0]}
    results: dict[str, Any] = {"setting": told, "workloads": []}
    with tempfile.TemporaryDirectory() as folder:
        race = Race(contestants, repeats, budget, tiny, Path(folder))
        try:
            with tqdm(total=len(workloads) * (repeats + 1), unit="round") as bar:
                for workload in workloads:
                    results["workloads"].append(race.workload(workload, bar))
                    results["setting"]["versions"] = race.versions
                    if after:
                        after(results)
        finally:
            race.close()
            torch.set_num_threads(threads)
    return results


def write(results: dict[str, Any]) -> None:
    """Save the race as JSON, tables and plot."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "race.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "race.md").write_text(f"# The race, contestant by contestant\n\n{report.details(results)}\n")
    report.plot(results, RESULTS / "race.png")
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{report.summary(results)}\n{END}{after}")


def merged(saved: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """The saved race with the workloads of another in their places."""
    by_key = {r["key"]: r for r in (*saved["workloads"], *results["workloads"])}
    versions = {**saved["setting"]["versions"], **results["setting"]["versions"]}
    return {"setting": {**results["setting"], "versions": versions}, "workloads": [by_key[w.key] for w in WORKLOADS if w.key in by_key]}


def main() -> None:
    """Run the race, save it, show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="samples of each contestant per workload, at most")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of samples of one contestant on one workload; two at least")
    parser.add_argument("--only", nargs="*", choices=[w.key for w in WORKLOADS], help="race these workloads only")
    parser.add_argument("--keep", action="store_true", help="with --only: put them in place of the saved ones")
    parser.add_argument("--solvers", nargs="*", default=[], help="also our layers with these solvers")
    parser.add_argument("--quick", action="store_true", help="small problems, without peers, and write no result")
    parser.add_argument("--report", action="store_true", help="write tables and plot again from the saved race")
    arguments = parser.parse_args()
    if arguments.report:
        write(json.loads((RESULTS / "race.json").read_text()))
        return
    chosen = [w for w in WORKLOADS if not arguments.only or w.key in arguments.only]
    contestants = (*OURS, *named_solvers(arguments.solvers), *(() if arguments.quick else PEERS))
    saved: dict[str, Any] = {"setting": {"versions": {}}, "workloads": []}
    if arguments.keep and (RESULTS / "race.json").exists():
        saved = json.loads((RESULTS / "race.json").read_text())

    def after(results: dict[str, Any]) -> None:
        if not (arguments.quick or arguments.only and not arguments.keep):
            write(merged(saved, results))

    results = run(chosen, contestants, 2 if arguments.quick else arguments.repeats, arguments.budget, arguments.quick, after)
    print(report.summary(results), report.details(results), sep="\n\n")


if __name__ == "__main__":
    main()
