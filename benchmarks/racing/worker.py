"""One contestant in a process of its environment: reads one command per line, answers one line of JSON.

python -m racing.worker     commands: {"do": "load" | "time" | "answer" | "setting", ...}, as in `Worker`
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module, metadata
from statistics import median
from typing import Any

import numpy as np

from racing.contestants.case import Case, array
from racing.workload import WORKLOADS


class Worker:
    """A contestant and the workload it has loaded."""

    def __init__(self) -> None:
        self.case: Case | None = None

    def setting(self, packages: list[str]) -> dict[str, Any]:
        """Versions of the packages that are installed."""
        installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
        return {"versions": {name: metadata.version(name) for name in packages if name in installed}}

    def load(self, key: str, tiny: bool, path: str, module: str, options: dict[str, Any]) -> dict[str, Any]:
        """Make the case and call it once in each mode; ``seconds`` is what a call takes when it is warm."""
        self.case = None
        workload = next(w for w in WORKLOADS if w.key == key)
        workload = workload.tiny() if tiny else workload
        with np.load(path) as saved:
            data = {name: saved[name] for name in saved.files}
        try:
            case = import_module(f"racing.contestants.{module}").load(workload, data, **options)
        except NotImplementedError as reason:
            return {"unable": str(reason)}
        except ModuleNotFoundError as missing:
            return {"unavailable": f"{missing.name} is not there"}
        self.case = case
        calls = [case.forward] + ([case.both] if case.both else [])
        began = time.perf_counter()
        for call in calls:
            call()
        seconds = time.perf_counter() - began
        if seconds < 8:  # once more, warm
            began = time.perf_counter()
            for call in calls:
                call()
            seconds = time.perf_counter() - began
        return {"seconds": seconds, "modes": ["forward", "both"][: len(calls)], "note": case.note}

    def time(self, mode: str, calls: int) -> dict[str, float]:
        """Median wall and processor milliseconds of a call; the processor's are of all threads together."""
        assert self.case is not None
        call: Any = getattr(self.case, mode)
        wall, cpu = [], []
        for _ in range(calls):
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            told = call()
            cpu.append(1e3 * (time.process_time() - cpu_start))
            wall.append(1e3 * (time.perf_counter() - wall_start))
        if isinstance(told, dict):  # measured elsewhere, in a process of its own
            return told
        return {"wall_ms": median(wall), "cpu_ms": median(cpu)}

    def answer(self, path: str) -> dict[str, Any]:
        """Save the answer as ``x`` and the gradients by their names with a ``d`` before."""
        assert self.case is not None
        x, gradients = self.case.both() if self.case.both else (self.case.forward(), {})
        found: dict[str, Any] = {"x": array(x), **{f"d{name}": array(g) for name, g in gradients.items()}}
        np.savez(path, **found)
        return {}


def main() -> None:
    """Answer commands until the input ends. What libraries print goes to the error stream, for the answers own the output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            result = getattr(worker, command.pop("do"))(**command)
        except (Exception, SystemExit) as error:  # a library that cannot do a workload loses that workload, not the race
            text = str(error).strip().splitlines()
            result = {"error": f"{type(error).__name__}: {text[0] if text else ''}"[:200]}
        answers.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
