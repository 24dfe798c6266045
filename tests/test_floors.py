"""Imports point downward: every source file is parsed, and every import in it, at whatever depth, must lead to a lower floor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cvxlayers

ROOT = Path(cvxlayers.__file__).parent

# From the ground up; a file may import only from floors below its own, so that files of one floor do not know each other.
FLOORS: list[tuple[str, ...]] = [
    (
        *("cones.base", "domain", "errors", "backend", "refusals", "least_squares", "kernels", "kernels.lowering", "kernels.threads"),
        *("kernels.ordering",),
    ),
    ("kernels.calls",),
    ("kernels.pipeline",),
    ("kernels.disk",),
    ("kernels.lanes", "factorization", "compiled", "cones.root"),
    ("kernels.symbolic",),
    (
        *("kernels.ldl", "kernels.nonnegative", "kernels.second_order", "kernels.small_dense", "kernels.elementary", "kernels.numbers"),
        *("cones.three_dimensional", "kernels.stages", "kernels.turned"),
    ),
    (
        "kernels.semidefinite",
        "kernels.barriers",
        "kernels.system",
        "kernels.matrices",
        "kernels.arrays",
        "cones.exponential",
        "cones.power",
    ),
    ("kernels.three_dimensional", "kernels.working_set", "kernels.projections"),
    (
        *("kernels.cones", "kernels.equilibrate", "kernels.memory", "kernels.rows", "kernels.passes", "kernels.systems", "kernels.units"),
        *("kernels.active_measures",),
    ),
    (
        *("kernels.assess", "kernels.newton", "kernels.riccati", "kernels.dense", "kernels.active_set", "kernels.active_scaling"),
        *("kernels.lml", "kernels.box", "kernels.lqr", "kernels.held"),
    ),
    ("kernels.interior", "kernels.active_rows", "kernels.staged_newton"),
    ("kernels.programs", "thresholds", "krylov"),
    (
        *("topk", "implicit", "control.expand", "control.options", "control.plan", "control.riccati", "row_map"),
        *("cones.linear", "cones.second_order", "cones.semidefinite"),
    ),
    ("control.dcem", "control.systems", "control.unroll"),
    ("cones.product",),
    ("cones",),
    ("program", "control.models"),
    ("products", "canonical", "solvers.base", "solvers.layout", "control.transcription"),
    ("solvers.dense", "solvers.scaling", "control.problem", "units"),
    (
        "kkt",
        "affine",
        "labels",
        "eliminate",
        "solvers.settings",
        "solvers.clarabel",
        "solvers.daqp",
        "solvers.ecos",
        "solvers.moreau",
        "solvers.scs",
    ),
    ("solvers.interior_cpu", "solvers.active_set"),
    ("adjoint", "canonicalize", "solvers.diffcp", "solvers", "control.conditions"),
    ("failures", "host", "verdict", "control.ilqr", "control.curvature", "control.lost", "control.mapped", "solvers.warmup"),
    ("conic", "control.line_search", "control.direct"),
    ("conic_map", "layer", "pairs", "rules", "control.lqr"),
    ("interface", "control.solved", "control.staged"),
    ("control.sqp", "control.warmup"),
    ("control.mpc",),
    ("report", "__main__", "jax.primitive", "tensorflow.call", "torch.rule", "control"),
    ("jax.layers", "tensorflow.layers", "torch.layers"),
    ("jax.verbs", "tensorflow.verbs", "torch.verbs"),
    ("jax", "tensorflow", "torch"),
    ("",),
]
FLOOR = {module: height for height, floor in enumerate(FLOORS) for module in floor}

# The only files that import each of these.
OWNERS = {
    "cvxpy": {"canonicalize"},
    "torch": {"torch", "torch.layers", "torch.rule", "torch.verbs"},
    "jax": {"jax", "jax.layers", "jax.primitive", "jax.verbs"},
    "keras": {"tensorflow.call", "tensorflow.layers"},
    "tensorflow": {"tensorflow", "tensorflow.call", "tensorflow.layers", "tensorflow.verbs"},
    "clarabel": {"solvers.clarabel"},
    "daqp": {"solvers.daqp"},
    "diffcp": {"solvers.diffcp"},
    "ecos": {"solvers.ecos"},
    "moreau_cpu": {"solvers.moreau"},
    "scs": {"solvers.scs"},
    "qdldl": {"factorization", "kernels.ordering", "least_squares"},
    "numba": {
        *("kernels.calls", "kernels.disk", "kernels.elementary", "kernels.lanes", "kernels.lowering", "kernels.numbers", "kernels.passes"),
        *("kernels.pipeline", "kernels.turned", "kernels.units"),
    },
    "tqdm": {"solvers.warmup"},
    "llvmlite": {
        *("kernels.calls", "kernels.elementary", "kernels.lanes", "kernels.lowering", "kernels.numbers", "kernels.turned"),
    },
}
ANYWHERE = {"numpy", "scipy", "array_api_compat"}

# Modules loaded by name: the backend of a framework that is already imported (the one reference upward), compiled kernels, the file of a
# solver.
BY_NAME = {"backend", "compiled", "solvers"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(path: Path, name: str) -> set[str]:
    """Full names of all modules a file imports, inside functions too; the own ones down to the file they mean."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: relative imports hide the floor; write the full name"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = {module for module in below if module.removeprefix("cvxlayers.") in SOURCES and module.startswith("cvxlayers")}
            found |= inside
            if len(inside) < len(below):
                found.add(node.module)
    return found


def test_every_file_has_a_floor() -> None:
    assert set(SOURCES) == set(FLOOR), "a new file belongs on a floor: give it one in FLOORS"
    assert len(FLOOR) == sum(map(len, FLOORS))


@pytest.mark.parametrize("name", SOURCES)
def test_imports_lead_to_lower_floors(name: str) -> None:
    for module in imports_of(SOURCES[name], name):
        package, _, rest = module.partition(".")
        if package == "cvxlayers":
            assert FLOOR[rest] < FLOOR[name], (
                f"{name or 'cvxlayers'} (floor {FLOOR[name]}) imports {rest or 'cvxlayers'} (floor {FLOOR[rest]})"
            )


@pytest.mark.parametrize("name", SOURCES)
def test_foreign_packages_have_one_owner(name: str) -> None:
    foreign = {module.partition(".")[0] for module in imports_of(SOURCES[name], name)} - {"cvxlayers"} - sys.stdlib_module_names
    for package in foreign - ANYWHERE:
        assert name in OWNERS.get(package, ()), f"{name} imports {package}, which belongs to {OWNERS.get(package, 'nobody')}"


@pytest.mark.parametrize("name", SOURCES)
def test_no_import_is_hidden(name: str) -> None:
    """By name only where it is listed, and never guarded by a try that leaves a None behind."""
    tree = ast.parse(SOURCES[name].read_text())
    called = {
        node.attr if isinstance(node, ast.Attribute) else node.id for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name))
    }
    assert (name in BY_NAME) == bool(called & {"import_module", "__import__", "exec", "eval"})
    for guard in (node for node in ast.walk(tree) if isinstance(node, ast.Try)):
        assert not any(isinstance(statement, (ast.Import, ast.ImportFrom)) for statement in guard.body), f"{name}: an import inside a try"


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


HEAVY = ("torch", "jax", "tensorflow", "cvxpy", "clarabel", "scs", "ecos", "daqp", "diffcp", "moreau_cpu", "numba", "scipy.sparse")


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import cvxlayers", set()),
        ("from cvxlayers import SolverError, GradientWarning, InaccurateWarning, Status", set()),
        ("import cvxlayers.conic", {"scipy.sparse"}),
        ("import cvxlayers.layer", {"scipy.sparse"}),
        ("from cvxlayers import diagnose", {"scipy.sparse"}),
        ("import cvxlayers.torch", {"scipy.sparse", "torch"}),
        ("import cvxlayers.jax", {"scipy.sparse", "jax"}),
        ("import cvxlayers.tensorflow", {"scipy.sparse", "jax", "tensorflow"}),  # TensorFlow itself imports JAX where there is one
    ],
)
def test_what_an_import_loads(statement: str, loaded: set[str]) -> None:
    assert set(fresh(f"import sys\n{statement}\nprint(*[m for m in {HEAVY} if m in sys.modules])").split()) == loaded


def test_the_import_is_quick() -> None:
    """Under 0.2 s beyond NumPy and SciPy; CPU time of the best of three, so that a busy machine does not fail it."""
    code = "import numpy, scipy.sparse, time\nt = time.process_time()\nimport cvxlayers, cvxlayers.conic\nprint(time.process_time() - t)"
    assert min(float(fresh(code)) for _ in range(3)) < 0.2


def test_a_framework_is_found_without_being_asked_for() -> None:
    """The reference upward: NumPy's record is there, torch's appears with the first tensor, and nobody imports torch to find out."""
    code = """
import sys
import numpy as np
from cvxlayers.backend import BACKENDS, backend_of
assert backend_of(np.ones(2)).name == backend_of(1.0).name == "numpy" and list(BACKENDS) == ["numpy"]
assert "torch" not in sys.modules
import torch
class Mine(torch.nn.Parameter): pass
assert list(BACKENDS) == ["numpy"]
print(backend_of(torch.ones(2)).name, backend_of(Mine(torch.ones(2))).name, *BACKENDS)
"""
    assert fresh(code) == "torch torch numpy torch"


def test_public_names() -> None:
    assert set(cvxlayers.__all__) == {"SolverError", "GradientWarning", "InaccurateWarning", "Status", "diagnose"}
    assert all(hasattr(cvxlayers, name) for name in cvxlayers.__all__)
    with pytest.raises(AttributeError, match="module 'cvxlayers' has no attribute 'nothing'"):
        cvxlayers.nothing  # noqa: B018
