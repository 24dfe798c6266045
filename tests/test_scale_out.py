"""The scale-out examples run, agree with one process, and leave no process behind. Each runs in an interpreter of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MARK = "SCALE_OUT_TEST"
CALL = "import importlib, json, sys; print(json.dumps(importlib.import_module(sys.argv[1]).run(**json.loads(sys.argv[2]))))"


def descendants(mark: str) -> list[int]:
    """The processes that inherited the mark, whoever their parent is by now; none where the system has no /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # another user's, or gone
            pass
    return found


def run_example(name: str, **arguments: int) -> tuple[dict[str, float], str, str]:
    """What run(**arguments) of the example returned, printed, and wrote to standard error."""
    mark = uuid.uuid4().hex
    places = [str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-c", CALL, name, json.dumps(arguments)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        patience = time.monotonic() + 10
        while (left := descendants(mark)) and time.monotonic() < patience:
            time.sleep(0.1)
        assert not left, f"{name} left processes behind: {left}"
    finally:
        for process in descendants(mark):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
    *printed, results = done.stdout.splitlines()
    return json.loads(results), "\n".join(printed), done.stderr


def test_gradients_under_distributed_data_parallel_are_those_of_one_process() -> None:
    results, printed, progress = run_example("scale_out_torch", steps=3, processes=2)
    assert results["gradient difference"] <= 1e-10 and results["weight difference"] <= 1e-10 and results["loss difference"] <= 1e-10
    assert results["largest gradient"] > 1e-2 and results["last loss"] < results["first loss"]
    assert "2 processes against one" in printed
    assert (
        progress.count("training, 2 processes:   0%") == 1 and "training, 2 processes: 100%" in progress
    )  # the first process alone shows progress


def test_a_batch_mapped_over_ray_workers_is_that_of_one_call() -> None:
    results, printed, progress = run_example("scale_out_ray", rows=2_000, chunk=300, workers=2)
    assert results["difference"] == 0.0
    assert results["rows/s"] > 0 and "2000 rows in chunks of 300 through 2 Ray workers" in printed
    assert "2 Ray workers: 100%" in progress


def test_a_batch_sharded_over_devices_has_the_gradients_of_one_device() -> None:
    results, printed, progress = run_example("scale_out_jax", rows=400, devices=4, repeats=1)
    assert results["difference"] <= 1e-12 and results["largest gradient"] > 1e-2 and results["shards"] == 4
    assert "400 rows on 4 devices against one" in printed and "gradients: 100%" in progress
