"""What a call costs beyond its solver: one problem, in every framework, forward and forward + backward; and how often the host is called.

    python benchmarks/overhead.py [--calls N] [--only torch jax tensorflow]

The problem is the projection on the simplex, n = 20. The solver's own time is taken inside the very call that is measured: its `solve` is
wrapped by a clock, and what the clock saw is subtracted from the call's time. So the solver runs with the caches as the call leaves them,
and nothing is compared across calls. Wall time is that of the call, processor time that of all threads of the process. Every framework
runs in a process of its own, PyTorch eagerly, JAX under jit, TensorFlow under tf.function, everything in float64. Writes
results/overhead.json and prints a table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results" / "overhead.json"
GOALS = {"torch": (0.1, 0.5), "jax": (0.3, 0.6), "tensorflow": (0.6, 1.0)}
"""Milliseconds beyond the solver: forward, forward + backward."""
BATCH = 512


class Clock:
    """Counts and times the calls of one function of an object, which it replaces there."""

    def __init__(self, owner: Any, name: str) -> None:
        self.function, self.calls, self.wall, self.cpu = getattr(owner, name), 0, 0.0, 0.0
        object.__setattr__(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.thread_time() - cpu
            self.calls += 1


def torch_calls(layer: Any, values: list[np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward, and forward + backward, of the layer as it is called eagerly."""
    torch: Any = importlib.import_module("torch")
    tensors = [torch.from_numpy(v).requires_grad_() for v in values]

    def forward() -> Any:
        with torch.no_grad():
            return layer(*tensors)[0]

    return forward, lambda: torch.autograd.grad(layer(*tensors)[0].sum(), tensors)


def jax_calls(layer: Any, values: list[np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same under jit, results waited for."""
    jax: Any = importlib.import_module("jax")
    arrays = [jax.numpy.asarray(v) for v in values]
    forward = jax.jit(lambda *p: layer(*p)[0])
    both = jax.jit(jax.value_and_grad(lambda *p: layer(*p)[0].sum(), argnums=tuple(range(len(values)))))
    return lambda: jax.block_until_ready(forward(*arrays)), lambda: jax.block_until_ready(both(*arrays))


def tensorflow_calls(layer: Any, values: list[np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same under tf.function."""
    tf: Any = importlib.import_module("tensorflow")
    tensors = [tf.constant(v) for v in values]

    def gradient(*p: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(p)
            total = tf.reduce_sum(layer(*p)[0])
        return tape.gradient(total, p)

    forward, both = tf.function(lambda *p: layer(*p)[0]), tf.function(gradient)
    return lambda: forward(*tensors).numpy(), lambda: [g.numpy() for g in both(*tensors)]


CALLS = {"torch": torch_calls, "jax": jax_calls, "tensorflow": tensorflow_calls}


def measure(framework: str, calls: int) -> dict[str, Any]:
    """One framework's numbers, in this process."""
    os.environ["JAX_ENABLE_X64"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    module: Any = importlib.import_module(f"cvxlayers.{framework}")
    workload = next(w for w in WORKLOADS if w.name == "simplex_one")
    problem, parameters, variables = workload.state()
    layer = module.CvxpyLayer(problem, parameters=parameters, variables=variables)
    core = layer.core
    solver = Clock(core.conic.solver, "solve")

    found: dict[str, Any] = {"framework": framework, "solver": core.conic.solver.name}
    for mode, call in zip(("forward", "both"), CALLS[framework](layer, [v[0] for v in workload.data()]), strict=True):
        for _ in range(max(20, calls // 10)):
            call()
        samples = []
        for _ in range(calls):
            seen = solver.wall, solver.cpu, solver.calls
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if solver.calls != seen[2] + 1:
                raise RuntimeError(f"{framework}: {solver.calls - seen[2]} solves in one call; wanted 1")
            own = solver.wall - seen[0], solver.cpu - seen[1]
            samples.append((wall - own[0], cpu - own[1], own[0]))
        columns = 1e3 * np.array(samples).T
        found[mode] = {
            name: np.percentile(column, (25, 50, 75)).tolist()
            for name, column in zip(("wall_ms", "cpu_ms", "solver_wall_ms"), columns, strict=True)
        }
    found["crossings"] = crossings(framework, layer, workload)
    return found


def crossings(framework: str, layer: Any, workload: Any) -> list[int]:
    """How often the host is called forward and backward for one call with gradients of a batch of 512."""
    values = [np.repeat(v, BATCH, axis=0) for v in workload.data()]
    both = CALLS[framework](layer, values)[1]
    both()
    forward, backward = Clock(layer.core, "forward"), Clock(layer.core, "vjp")
    both()
    return [forward.calls, backward.calls]


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    head = "framework | forward: median (quartiles), ms | goal | forward + backward | goal | cpu: forward, both | host calls for 512 rows"
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for found in results["frameworks"]:
        cells = [found["framework"]]
        for mode, goal in zip(("forward", "both"), GOALS[found["framework"]], strict=True):
            low, middle, high = found[mode]["wall_ms"]
            cells += [f"{middle:.3f} ({low:.3f}-{high:.3f})", f"{goal:g}"]
        cells.append(", ".join(f"{found[mode]['cpu_ms'][1]:.3f}" for mode in ("forward", "both")))
        cells.append(" + ".join(map(str, found["crossings"])))
        lines.append(f"| {' | '.join(cells)} |")
    solver = results["frameworks"][0]
    own = solver["forward"]["solver_wall_ms"][1]
    return "\n".join([*lines, "", f"The solver, {solver['solver']}, takes {own:.3f} ms of every call, not counted. {results['setting']}"])


def main() -> None:
    """Measure every framework in a process of its own, save and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--measure", choices=list(GOALS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure(options.measure, options.calls)) + "\n")
        return
    frameworks = []
    for name in tqdm(options.only):
        command = [sys.executable, __file__, "--measure", name, "--calls", str(options.calls)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        frameworks.append(json.loads(done.stdout.splitlines()[-1]))
    setting = f"{os.cpu_count()} cores, Python {platform.python_version()}, {options.calls} calls each."
    results = {"frameworks": frameworks, "setting": setting}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
