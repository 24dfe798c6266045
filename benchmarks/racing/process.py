"""Environments of peers, and a worker at the other end of two pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

from racing.roster import Environment

BENCHMARKS = Path(__file__).parent.parent
PEERS = BENCHMARKS.parent / ".peers"


class Lost(RuntimeError):
    """The process has died or was stopped."""


class Process:
    """A `racing.worker`; it dies with its input. ``own`` tells whether it runs in this environment, with this tree's cvxlayers."""

    def __init__(self, python: str, log: Path, own: bool) -> None:
        self.log = log
        paths = os.pathsep.join([str(BENCHMARKS), *([str(BENCHMARKS.parent)] if own else [])])
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-W", "ignore", "-m", "racing.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": paths},
            )

    def do(self, what: str, limit: float, **arguments: Any) -> dict[str, Any]:
        """One command and its answer; raises Lost where none comes within ``limit`` seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not line:
            last = self.log.read_text().strip().splitlines()[-1:]
            raise Lost(f"no answer to {what!r} within {limit:.0f} s" if late else f"its process died: {' '.join(last)[:160]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process by ending its input."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()


def python_of(environment: Environment | None) -> str:
    """The interpreter of an environment, made where it is missing; raises RuntimeError with pip's last words where that fails."""
    if environment is None:
        return sys.executable
    folder = PEERS / environment.name
    python, ready, failed = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), folder / "ready", folder / "failed"
    if failed.exists():
        raise RuntimeError(failed.read_text())
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        for step in environment.steps:
            told = [step.format(**{name: metadata.version(name).split("+")[0] for name in ("torch", "cvxpy", "numpy")})]
            command = [str(python), "-m", "pip", "install", "--quiet", *told[0].split()]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
                failed.write_text(f"pip install {told[0]}: {errors[-1]}"[:300])
                raise RuntimeError(failed.read_text())
        ready.touch()
    return str(python)
