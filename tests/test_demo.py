"""The demonstration runs, learns, and differentiates rightly."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demonstration_beats_plain_cross_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo, figure = example("tune_regression"), tmp_path / "figure.png"
    results = demo.run(steps=5, figure=figure)
    assert results["learned validation"] < results["plain validation"]  # it starts from the plain penalties and takes five steps down
    assert results["gradient error"] < 1e-5  # what central differences of step 1e-4 can see
    assert figure.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{results['learned validation']:.1f}" in printed and f"figure: {figure}" in printed


def test_the_controller_swings_and_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "figure.png"
    results = example("pendulum_mpc").run(quick=True, figure=figure)
    assert results["last loss"] < results["first loss"] and results["gradient error"] < 1e-5
    assert figure.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"reward {results['reward']:.1f}" in printed and f"figure: {figure}" in printed
