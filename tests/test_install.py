"""The package as a user gets it: installed with no extra into a fresh environment, it solves and differentiates on NumPy alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# minimize 1/2 |x|^2 - c'x subject to x >= 0: x = max(c, 0), and d(w'x)/dc = w where c > 0.
SOLVE = """
import importlib.util, json, sys

import numpy as np, scipy.sparse as sp

import cvxlayers
from cvxlayers.cones import NonNegative, Product
from cvxlayers.conic import ConicLayer
from cvxlayers.program import ConeProgram, Pattern, Solution

pattern = Pattern.of(sp.eye(3), -sp.eye(3), Product((NonNegative(3),)))
layer = ConicLayer(pattern)
c = np.array([[1.0, -1.0, 2.0], [-3.0, 0.5, -0.1]])
(x, y, s), info = layer(np.ones(3), -c, -np.ones(3), np.zeros(3), return_info=True)
program = ConeProgram(np.ones((2, 3)), -c, -np.ones((2, 3)), np.zeros((2, 3)))
w = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
gradient, _ = layer.vjp(program, info.solution, Solution(w, np.zeros((2, 3)), np.zeros((2, 3))))
extras = ["torch", "jax", "tensorflow", "ecos", "diffcp"]
print(json.dumps({
    "where": cvxlayers.__file__,
    "x": x.tolist(),
    "gradient": (-gradient.q).tolist(),
    "status": info.status.tolist(),
    "importable": [name for name in extras if importlib.util.find_spec(name)],
    "imported": [name for name in [*extras, "cvxpy"] if name in sys.modules],
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_an_installation_without_extras_solves_and_differentiates(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(python, *pip, "--constraint", source / "constraints.txt", source, cwd=tmp_path)

    found = json.loads(run(python, "-c", SOLVE, cwd=tmp_path))
    assert (tmp_path / "venv") in Path(found["where"]).parents
    assert found["status"] == [0, 0]
    assert [[round(v, 8) for v in row] for row in found["x"]] == [[1, 0, 2], [0, 0.5, 0]]
    assert [[round(v, 8) for v in row] for row in found["gradient"]] == [[1, 0, 3], [0, 5, 0]]
    assert found["importable"] == [] and found["imported"] == []

    built = {path.name for path in (tmp_path / "venv").rglob("cvxlayers/*.py")}
    assert {path.name for path in (ROOT / "cvxlayers").glob("*.py")} <= built
    assert list((tmp_path / "venv").rglob("cvxlayers/py.typed"))
    missing = subprocess.run([python, "-c", "import cvxlayers.torch"], cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode != 0 and "No module named 'torch'" in missing.stderr
    unsolved = subprocess.run(
        [python, "-c", "from cvxlayers import solvers; solvers.find('ECOS')"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "needs the package 'ecos'" in unsolved.stderr and "cvxlayers[ecos]" in unsolved.stderr
