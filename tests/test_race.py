"""The race of `benchmarks`: it runs, counts only what is right, tells what is missing in words, and its references are derivatives."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks are not part of this distribution", allow_module_level=True)
sys.path.insert(0, str(ROOT / "benchmarks"))

import race  # noqa: E402
from racing import figures, references, report  # noqa: E402
from racing.forms.cone import FORMS, whole  # noqa: E402
from racing.references import pendulum  # noqa: E402
from racing.references.start import entries  # noqa: E402
from racing.roster import OURS, PEERS, Contestant  # noqa: E402
from racing.workload import WORKLOADS, Workload  # noqa: E402

TINY = {w.key: w.tiny() for w in WORKLOADS}
JUDGED = [key for key, w in TINY.items() if w.kind in references.CONVEX]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """A quick race of ours, of a peer that lives in our environment, and of one that cannot be imported."""
    missing = Contestant("nobody", "our_control", ("simplex",), options={"nothing": 1}, peer="nobody")
    published = next(c for c in PEERS if c.module == "bisection")
    chosen = [w for w in WORKLOADS if w.key in ("W2c", "W6", "W7")]
    return race.run(chosen, (*OURS, published, missing), repeats=2, tiny=True)


def test_a_quick_race_is_right(results: dict[str, Any]) -> None:
    for result in results["workloads"]:
        for entry in result["contestants"]:
            if entry["name"] in ("cvxlayers CvxpyLayer", "cvxlayers ConicLayer") or entry["peer"] == "lml":
                for mode in ("forward", "both"):
                    assert len(entry[mode]["wall_ms"]) == len(entry[mode]["cpu_ms"]) == 2
                    assert figures.correct(entry, mode), (result["key"], entry)
    assert results["setting"]["versions"]["ours"]["numpy"] == np.__version__


def test_what_is_missing_is_told(results: dict[str, Any]) -> None:
    text = report.details(results)
    for result in results["workloads"]:
        for entry in result["contestants"]:
            if "modes" not in entry:
                reason = entry.get("unavailable") or entry["error"]
                assert reason and reason.replace("|", "/") in text
    (nobody,) = (e for r in results["workloads"] for e in r["contestants"] if e["name"] == "nobody")
    assert "unexpected keyword argument 'nothing'" in nobody["error"] and "failed: TypeError" in text
    assert results["workloads"][0]["key"] in report.summary(results) and "not measured" in report.summary(results)


def test_the_report_can_be_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    report.plot(results, tmp_path / "race.png")
    assert (tmp_path / "race.png").stat().st_size > 10_000


@pytest.mark.parametrize("key", JUDGED)
def test_references_are_derivatives(key: str) -> None:
    """The gradient along a random direction of each parameter against a central difference of the reference's own answers."""
    workload, rng = TINY[key], np.random.default_rng(5)
    data = workload.data()
    _, gradients = references.CONVEX[workload.kind](workload, data)
    for name in set(gradients) - {"R"}:  # R, the root of Q, is Q's gradient once more
        direction = rng.standard_normal(data[name].shape)
        direction = direction + np.swapaxes(direction, -1, -2) if name == "Q" else direction
        assert along(workload, data, name, direction, None) == pytest.approx((gradients[name] * direction).sum(), rel=1e-6, abs=1e-7)


def along(workload: Workload, data: dict[str, np.ndarray], name: str, direction: np.ndarray, near: np.ndarray | None) -> float:
    values = []
    for side in (1e-5, -1e-5):
        moved = {**data, name: data[name] + side * direction}
        answer = pendulum.answer(workload, moved, near) if near is not None else references.CONVEX[workload.kind](workload, moved)
        values.append((answer[0] * data["weights"]).sum())
    return (values[0] - values[1]) / 2e-5


def test_the_root_of_a_dense_qp() -> None:
    """dL/dR for Q = R'R, against differences in R."""
    workload, rng = TINY["W1"], np.random.default_rng(6)
    data = workload.data()
    _, gradients = references.CONVEX["optnet"](workload, data)
    direction, values = rng.standard_normal(data["R"].shape), []
    for side in (1e-5, -1e-5):
        R = data["R"] + side * direction
        values.append((references.CONVEX["optnet"](workload, {**data, "Q": np.swapaxes(R, 1, 2) @ R})[0] * data["weights"]).sum())
    assert (values[0] - values[1]) / 2e-5 == pytest.approx((gradients["R"] * direction).sum(), rel=1e-6)


def test_the_pendulum_next_to_a_minimum() -> None:
    """From controls that SciPy finds; from anywhere else there is no reference, and the error is infinite."""
    import torch

    workload = TINY["W6c"]
    data = workload.data()
    near = np.zeros_like(data["weights"])
    for k, x0 in enumerate(data["x0"]):
        given = torch.from_numpy(x0), torch.from_numpy(data["theta"])
        cost = torch.func.grad_and_value(lambda u, given=given: pendulum._cost(u, *given))

        def both(u: np.ndarray, cost: Any = cost) -> tuple[float, np.ndarray]:
            slope, value = cost(torch.from_numpy(u))
            return value.item(), slope.numpy()

        found = minimize(both, np.zeros(len(near)), jac=True, method="L-BFGS-B", bounds=[(-2, 2)] * len(near), options={"gtol": 1e-9})
        near[:, k, 3] = found.x
    x, gradients = pendulum.answer(workload, data, near)
    np.testing.assert_allclose(x[..., 3], near[..., 3], atol=1e-4)
    rng = np.random.default_rng(7)
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        assert along(workload, data, name, direction, near) == pytest.approx((gradient * direction).sum(), rel=1e-5)
    errors = references.Judge(workload, data).errors(np.full_like(near, np.nan), {})
    assert errors["error_x"] == np.inf


@pytest.mark.parametrize("kind", sorted({w.kind for w in WORKLOADS} & set(FORMS)))
def test_a_cone_form_by_rows_and_by_columns_is_one_matrix(kind: str) -> None:
    workload = next(w for w in TINY.values() if w.kind == kind)
    form, data = FORMS[kind](**workload.sizes), workload.data()
    leaves, (P, _, A, _) = entries(form, data)
    full = form.values(leaves, whole)[0]
    dense = np.zeros((2, form.n, form.n))
    dense[0][form.P], dense[0][form.P[::-1]] = P[0].detach(), P[0].detach()
    (rows, columns), (A_rows, A_columns, order) = form.by_rows
    dense[1][rows, columns] = full[0].detach()
    np.testing.assert_allclose(dense[1], dense[0], atol=1e-14)
    one, two = np.zeros((2, form.m, form.n))
    one[form.A], two[A_rows, A_columns] = A[0].detach(), A[0, order].detach()
    np.testing.assert_array_equal(one, two)
    assert (np.diff(A_rows) >= 0).all() and len(set(zip(*form.A, strict=True))) == A.shape[1]


def test_who_counts() -> None:
    entry = {"forward": {"wall_ms": [1.0]}, "both": {"wall_ms": [2.0]}, "error_x": 1e-5, "error_gradient": 1e-2}
    assert figures.correct(entry, "forward") and not figures.correct(entry, "both")
    assert not figures.correct({**entry, "error": "broke"}, "forward") and not figures.correct({**entry, "error_x": np.inf}, "forward")
    assert not figures.correct({"forward": {}}, "forward")


def test_the_strongest_correct_peer_and_its_ratio() -> None:
    def made(name: str, ours: bool, ms: list[float], wrong: float = 0.0, bare: bool = False) -> dict[str, Any]:
        times = {mode: {"wall_ms": ms} for mode in ("forward", "both")}
        return {
            "name": name,
            "peer": "" if ours else name,
            "ours": ours,
            "default": True,
            "bare": bare,
            "error_x": wrong,
            "error_gradient": 0,
            **times,
        }

    mine, fast, slow = made("mine", True, [1, 2, 4]), made("wrong", False, [1, 1, 1], wrong=1.0), made("slow", False, [4, 6, 8, 9])
    result = {"contestants": [mine, fast, slow, made("bare", False, [0.1], bare=True)], "goal": 4, "goals": {"wrong": 2.0}}
    best = figures.peer(result, "both")
    assert figures.ours(result, "both") is mine and best is slow
    assert figures.ratio(slow, mine, "both") == (2.5, 3.0, 3.5)
    assert [(over, wanted, peer and peer["name"]) for over, wanted, peer in figures.goals(result)] == [
        ("the strongest correct peer", 4, "slow"),
        ("wrong", 2.0, "wrong"),
    ]


def test_workloads_run_again_take_their_places() -> None:
    saved = {"setting": {"versions": {"moreau": {"moreau": "0"}}}, "workloads": [{"key": "W1", "at": 1}, {"key": "W3", "at": 1}]}
    again = {"setting": {"cores": 2, "versions": {"ours": {}}}, "workloads": [{"key": "W3", "at": 2}, {"key": "W2", "at": 2}]}
    both = race.merged(saved, again)
    assert [(w["key"], w["at"]) for w in both["workloads"]] == [("W1", 1), ("W2", 2), ("W3", 2)]
    assert both["setting"] == {"cores": 2, "versions": {"moreau": {"moreau": "0"}, "ours": {}}}


def test_workloads_are_the_same_every_time() -> None:
    for workload in TINY.values():
        one, two = workload.data(), workload.data()
        for name, value in one.items():
            np.testing.assert_array_equal(value, two[name])
    other = replace(TINY["W1"], seed=1)
    assert len(TINY) == len(WORKLOADS) and other.data()["p"][0, 0] != TINY["W1"].data()["p"][0, 0]
