"""What a race's JSON says: a table, a chart, and the table's place in README.md.

python benchmarks/report.py        # draws the chart and the table again from results/against_cvxpylayers.json
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "against_cvxpylayers.json"
BEGIN, END = "<!-- results begin -->", "<!-- results end -->"
BAR, GOAL = "#5b9ab0", "#b3341f"


def write(results: dict[str, Any]) -> None:
    """Save the race as JSON, chart and table."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    chart(results, RESULTS.with_suffix(".png"))
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")


def table(results: dict[str, Any]) -> str:
    """The race as a Markdown table, with a line each for the overhead of a call and for the setting."""
    measured = "forward: ours, peer | ratio | forward + backward: ours, peer | ratio | goal"
    head = f"workload | batch | {measured} | error of x: ours, peer | error of the gradient: ours, peer"
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    lines += [f"| {_row(result, _peer(result, results))} |" for result in results["workloads"]]
    return "\n".join([*lines, "", _overhead(results["overhead"]), "", _setting(results["setting"])])


def chart(results: dict[str, Any], path: Path) -> None:
    """How many times faster forward + backward is: a bar with quartiles for each workload, its goal, and both sides' times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [r for r in results["workloads"] if "both" in r["ratio"]]
    places = np.arange(len(rows))[::-1]
    low, middle, high = (np.array([r["ratio"]["both"][key] for r in rows]) for key in ("low", "median", "high"))
    figure, axes = plt.subplots(figsize=(10, 0.7 * len(rows) + 1.2), layout="constrained")
    axes.barh(places, middle, 0.6, color=BAR, xerr=[middle - low, high - middle], error_kw={"lw": 1.2, "ecolor": "#444444", "capsize": 3})
    for place, end, result in zip(places, high, rows, strict=True):
        times = [_number(median(side["both"]["wall_ms"])) for side in (result["ours"], _peer(result, results))]
        faster = f"{result['ratio']['both']['median']:.1f}x" + ("" if result["valid"] else " (not valid)")
        axes.text(end + high.max() / 60, place, f"{faster}   {times[0]} against {times[1]} ms", va="center", fontsize=9)
        if result["goal"]:
            axes.plot([result["goal"]] * 2, [place - 0.4, place + 0.4], color=GOAL, lw=2)
    axes.plot([], [], color=GOAL, lw=2, label="goal")
    axes.axvline(1, color="#444444", lw=1, ls=":", label="equally fast")
    axes.set_xlim(0, high.max() * 1.5)
    axes.set_yticks(places, [f"{r['title']}\nbatch {r['batch']}" for r in rows], fontsize=9)
    versions = results["setting"]["peer"]["versions"]
    axes.set_xlabel(f"forward + backward: times faster than cvxpylayers {versions.get('cvxpylayers', '')} (median, quartiles)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _peer(result: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """The peer's side of a workload, or of its twin, which is the same problem."""
    return next((r.get("peer", {}) for r in results["workloads"] if r["name"] == (result["twin"] or result["name"])), {})


def _row(result: dict[str, Any], peer: dict[str, Any]) -> str:
    ours = result["ours"]
    cells = [result["title"], str(result["batch"])]
    for mode in ("forward", "both"):
        cells += [f"{_time(ours, mode)}, {_time(peer, mode)}", _ratio(result, mode)]
    goal = f"{result['goal']:g}x" if result["goal"] else ""
    return " | ".join([*cells, goal, *(f"{_error(ours, kind)}, {_error(peer, kind)}" for kind in ("x", "gradient"))])


def _time(side: dict[str, Any], mode: str) -> str:
    if mode not in side or "wall_ms" not in side[mode]:
        return "failed"
    return f"{_number(median(side[mode]['wall_ms']))} ({_number(median(side[mode]['cpu_ms']))})"


def _number(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _ratio(result: dict[str, Any], mode: str) -> str:
    ratio = result["ratio"].get(mode)
    if ratio is None:
        return ""
    text = f"{ratio['median']:.1f}x ({ratio['low']:.1f}-{ratio['high']:.1f})"
    return text if result["valid"] else f"{text}, not valid: our error is too large"


def _error(side: dict[str, Any], kind: str) -> str:
    return f"{side[f'error_{kind}']:.0e}" if f"error_{kind}" in side else "failed"


def _overhead(measured: dict[str, Any]) -> str:
    if "error" in measured:
        return f"A call with one problem could not be measured: {measured['error']}."
    return (
        f"A call with one problem (the simplex projection, {measured['calls']} calls, solver {measured['solver_name']}, "
        f"{measured['solver_ms']:.2f} ms) costs beyond its solver {measured['forward_beyond_solver_ms']:.2f} ms forward and "
        f"{measured['both_beyond_solver_ms']:.2f} ms forward + backward; goal: at most {measured['goal_ms']:g} ms."
    )


def _setting(setting: dict[str, Any]) -> str:
    versions = {side: ", ".join(f"{name} {version}" for name, version in setting[side]["versions"].items()) for side in ("ours", "peer")}
    threads = f"torch uses {setting['ours']['torch_threads']} threads in ours, {setting['peer']['torch_threads']} in the peer's"
    return (
        f"Setting: {setting['cores']} cores, Python {setting['python']}, {setting['repeats']} repeats; {threads}. "
        f"Ours: {versions['ours']}. The peer: {versions['peer']}."
    )


def main() -> None:
    """Draw chart and table again from the saved race."""
    write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
