"""One side of the race, in a process and an environment of its own: reads one command per line, answers one line of JSON.

python worker.py cvxlayers.torch     commands: {"do": "load" | "time" | "answer" | "overhead" | "setting", ...}, as in `Side`
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from statistics import median
from typing import Any

import numpy as np
import torch
from workloads import WORKLOADS

PACKAGES = ("cvxlayers", "cvxpylayers", "diffcp", "torch", "cvxpy", "numpy", "scipy", "clarabel", "scs", "daqp", "qdldl")


class Side:
    """A library's layer and one workload's data."""

    def __init__(self, module: str) -> None:
        self.module = import_module(module)
        self.layer: Any = None
        self.tensors: list[torch.Tensor] = []

    def setting(self) -> dict[str, Any]:
        """Versions of what takes part, and torch's threads."""
        installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
        versions = {name: metadata.version(name) for name in PACKAGES if name in installed}
        return {"versions": versions, "torch_threads": torch.get_num_threads()}

    def load(self, name: str) -> dict[str, float]:
        """Build the layer of a workload and call it once; the seconds that building took."""
        self.layer = None
        workload = next(w for w in WORKLOADS if w.name == name)
        self.tensors = [torch.from_numpy(v).requires_grad_() for v in workload.data()]
        self.weights = torch.from_numpy(workload.weights())
        problem, parameters, variables = workload.state()
        start = time.perf_counter()
        self.layer = self.module.CvxpyLayer(problem, parameters=parameters, variables=variables)
        built = time.perf_counter() - start
        self._gradient()
        self._forward()
        return {"build_s": built}

    def time(self, backward: bool, calls: int) -> dict[str, float]:
        """Median wall and processor milliseconds of a call; the processor's are of all threads together."""
        wall, cpu = _clock(self._gradient if backward else self._forward, calls)
        return {"wall_ms": wall, "cpu_ms": cpu}

    def answer(self, path: str) -> dict[str, str]:
        """Save x and the gradient of sum(weights * x) in every parameter."""
        x, gradients = self._gradient()
        np.savez(path, x.detach().numpy(), *(g.numpy() for g in gradients))
        return {"path": path}

    def overhead(self, calls: int) -> dict[str, float]:
        """Wall milliseconds of a call, and of the bare solver on the same program; ours only. The three are measured in turns."""
        from cvxlayers.host import Options

        core = self.layer.core
        program = core.program(core.forward([t.detach() for t in self.tensors], Options())[2])
        solver, pattern = core.conic.solver, core.canonical.pattern
        kinds = {"forward": self._forward, "both": self._gradient, "solver": lambda: solver.solve(pattern, program)}
        samples: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(calls):
            for kind, function in kinds.items():
                samples[kind].append(_clock(function, 1)[0])
        medians = {f"{kind}_ms": median(values) for kind, values in samples.items()}
        return {**medians, "solver_name": solver.name, "calls": calls}

    def _forward(self) -> torch.Tensor:
        with torch.no_grad():
            return self.layer(*self.tensors)[0]

    def _gradient(self) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        (x,) = self.layer(*self.tensors)
        return x, torch.autograd.grad((x * self.weights).sum(), self.tensors)


def _clock(function: Callable[[], Any], calls: int) -> tuple[float, float]:
    wall, cpu = [], []
    for _ in range(calls):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        function()
        cpu.append(1e3 * (time.process_time() - cpu_start))
        wall.append(1e3 * (time.perf_counter() - wall_start))
    return median(wall), median(cpu)


def main() -> None:
    """Answer commands until the input ends. What libraries print goes to the error stream, for the answers own the output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    side = Side(sys.argv[1])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            result = getattr(side, command.pop("do"))(**command)
        except Exception as error:  # a library that cannot do a workload loses that workload, not the race
            result = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
        answers.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
