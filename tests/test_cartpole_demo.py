"""The cartpole demonstration runs, learns, and draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parent.parent / "examples" / "cartpole_dcem.py"


def test_the_demonstration_learns_in_a_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jax")
    spec = importlib.util.spec_from_file_location("cartpole_dcem", DEMO)
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    figure, animation = tmp_path / "figure.png", tmp_path / "animation.gif"
    results = demo.run(steps=4, figure=figure, animation=animation, frames=3)
    assert results["latent DCEM, 100 samples x 10"] < results["latent before training"]
    assert results["CEM, 100 samples x 30"] < results["CEM, 100 samples x 10"]
    assert abs(results["CEM, 100 samples x 30"] + 9.16) < 0.2  # what the published task's code reaches, one draw of the noise from the next
    assert figure.read_bytes().startswith(b"\x89PNG") and animation.read_bytes().startswith(b"GIF8")
    assert f"figure: {figure}" in capsys.readouterr().out
