"""The demonstration runs, learns, and differentiates rightly."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parent.parent / "examples" / "tune_regression.py"


def test_the_demonstration_beats_plain_cross_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("tune_regression", DEMO)
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    figure = tmp_path / "figure.png"
    results = demo.run(steps=5, figure=figure)
    assert results["learned validation"] < results["plain validation"]  # it starts from the plain penalties and takes five steps down
    assert results["gradient error"] < 1e-5  # what central differences of step 1e-4 can see
    assert figure.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{results['learned validation']:.1f}" in printed and f"figure: {figure}" in printed
