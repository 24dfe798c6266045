"""What a race's JSON says: tables in Markdown and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from racing.figures import Entry, correct, fastest, goals, ours, peer, quartiles, ratio, wall

BAR, OTHER, GOAL = "#5b9ab0", "#c9d9df", "#b3341f"
MODES = {"forward": "forward", "both": "forward + backward"}


def summary(results: dict[str, Any]) -> str:
    """One line per workload: our fastest against the strongest correct layer, the fastest bare solver, and the goals."""
    head = "workload | batch | forward: ours, peer | ratio | bare solver | forward + backward: ours, peer | ratio | goals"
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for result in results["workloads"]:
        cells = [f"{result['key']}: {result['title']}", str(result["batch"])]
        for mode in MODES:
            cells += _pair(result, mode) + ([_bare(result)] if mode == "forward" else [])
        lines.append(f"| {' | '.join([*cells, _goals(result)])} |")
    return "\n".join([*lines, "", setting(results["setting"])])


def details(results: dict[str, Any]) -> str:
    """A table of all contestants for each workload."""
    heads = (
        f"### {r['key']}: {r['title']}, batch {r['batch']}\n\n{r['when']}, {r['repeats']} repeats{_load(r)}." for r in results["workloads"]
    )
    return "\n\n".join(f"{head}\n\n{_table(r)}" for head, r in zip(heads, results["workloads"], strict=True))


def setting(told: dict[str, Any]) -> str:
    """What ran, on what."""
    packages = "; ".join(
        f"{name}: {', '.join(f'{package} {version}' for package, version in versions.items())}"
        for name, versions in told["versions"].items()
    )
    return f"{told['cores']} cores, Python {told['python']}. {packages}."


def _load(result: dict[str, Any]) -> str:
    return f", load average {result['load']:g}" if result.get("load") is not None else ""


def _table(result: dict[str, Any]) -> str:
    measured = "wall ms | cpu ms | ours faster by"
    head = f"contestant | forward: {measured} | forward + backward: {measured} | error of x | of the gradient | counts"
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for entry in result["contestants"]:
        name = f"**{entry['name']}**" if entry["ours"] else entry["name"]
        name += f" ({entry['note']})" if entry.get("note") else ""
        why = entry.get("unavailable") or entry.get("error")
        if why and not wall(entry, "forward"):
            kind = "not available" if entry.get("unavailable") else "failed"
            lines.append(f"| {name} | {kind}: {why.replace('|', '/')} |" + " |" * 8)
            continue
        cells = [name]
        for mode in MODES:
            best = ours(result, mode)
            beaten = ratio(entry, best, mode) if best and not entry["ours"] and wall(entry, mode) else None
            cells += [_spread(entry.get(mode, {}).get(unit, [])) for unit in ("wall_ms", "cpu_ms")] + [_times(beaten)]
        cells += [_error(entry, "error_x"), _error(entry, "error_gradient"), _counts(entry)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _counts(entry: Entry) -> str:
    if "peak_mb" in entry.get("forward", {}):
        return f"+{quartiles(entry['forward']['peak_mb'])[1]:.0f} MB"
    if entry.get("error"):
        return f"no: {entry['error']}"
    modes = [text for mode, text in MODES.items() if correct(entry, mode)]
    return " and ".join(modes) if modes else "no: wrong"


def _pair(result: dict[str, Any], mode: str) -> list[str]:
    mine, theirs = ours(result, mode), peer(result, mode)
    text = [f"{_number(quartiles(wall(e, mode))[1])} ({e['name']})" if e else "none" for e in (mine, theirs)]
    if not (mine or theirs):
        return ["", ""]
    return [", ".join(text), _times(ratio(theirs, mine, mode)) if mine and theirs else ""]


def _bare(result: dict[str, Any]) -> str:
    found = fastest([e for e in result["contestants"] if e["bare"] and correct(e, "forward")], "forward")
    return f"{_number(quartiles(wall(found, 'forward'))[1])} ({found['name'].partition(',')[0]})" if found else ""


def _goals(result: dict[str, Any]) -> str:
    mine, told = ours(result, "both"), []
    for over, wanted, theirs in goals(result):
        reached = ratio(theirs, mine, "both") if mine and theirs else None
        word = "not measured" if reached is None else f"{'met' if reached[1] >= wanted else 'missed'}, {reached[1]:.1f}x"
        told.append(f"{wanted:g}x {over}: {word}" + ("" if theirs is None or correct(theirs, "both") else " (its answer is wrong)"))
    return "; ".join(told)


def _number(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    low, middle, high = quartiles(values)
    return f"{_number(middle)} ({_number(low)}-{_number(high)})"


def _times(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else f"{found[1]:.1f}x ({found[0]:.1f}-{found[2]:.1f})"


def _error(entry: Entry, kind: str) -> str:
    return f"{entry[kind]:.0e}" if kind in entry else ""


def plot(results: dict[str, Any], path: Path) -> None:
    """How many times faster ours is than the strongest correct peer: forward + backward with quartiles, forward, and the goals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, NullLocator

    rows = [r for r in results["workloads"] if any(ours(r, mode) and peer(r, mode) for mode in MODES)]
    figure, axes = plt.subplots(figsize=(12, 0.6 * len(rows) + 2), layout="constrained")
    ends, notes = [1.0], []
    for place, result in zip(range(len(rows) - 1, -1, -1), rows, strict=True):
        for mode, color, at, height in (("forward", OTHER, place + 0.24, 0.2), ("both", BAR, place - 0.08, 0.4)):
            mine, theirs = ours(result, mode), peer(result, mode)
            if not (mine and theirs):
                continue
            low, middle, high = ratio(theirs, mine, mode) or (np.nan,) * 3
            ends += [low, high]
            axes.barh(at, middle - 1, height, left=1, color=color, xerr=[[middle - low], [high - middle]], error_kw={"lw": 1, "capsize": 2})
            if mode == "both" or result["kind"] == "build":
                times = [_number(quartiles(wall(e, mode))[1]) for e in (mine, theirs)]
                notes.append((place, f"{middle:.1f}x: {times[0]} against {times[1]} ms, {theirs['name']}"))
        for _, wanted, _ in goals(result):
            ends.append(wanted)
            axes.plot([wanted] * 2, [place - 0.32, place + 0.16], color=GOAL, lw=2)
    for place, text in notes:
        axes.text(1.01, place - 0.08, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axvline(1, color="#444444", lw=1)
    axes.set_xscale("log")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(min(ends) / 1.3, max(ends) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows) - 1, -1, -1), [f"{r['key']}: {r['title']}\nbatch {r['batch']}" for r in rows], fontsize=8)
    axes.set_xlabel("times faster than the strongest correct peer, wall time (median and quartiles of neighbouring samples)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    key: list[Any] = [Patch(color=BAR, label="forward + backward"), Patch(color=OTHER, label="forward")]
    key.append(Line2D([], [], color=GOAL, lw=2, label="goal, forward + backward, over the peer it names"))
    figure.legend(handles=key, frameon=False, loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
