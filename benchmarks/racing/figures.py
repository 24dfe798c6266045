"""What a race's samples say: medians with quartiles, who is correct, ratios of neighbouring samples, goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

X_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
Entry = dict[str, Any]


def wall(entry: Entry, mode: str) -> list[float]:
    """The wall milliseconds of its samples; empty where it has none."""
    return entry.get(mode, {}).get("wall_ms", [])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def correct(entry: Entry, mode: str) -> bool:
    """Whether it has times and counts: error of x below 1e-4, of the gradient below 1e-3. Where nothing is solved, times are enough."""
    if not wall(entry, mode) or "error" in entry:
        return False
    if not entry.get("judged", True):
        return True
    right = entry.get("error_x", np.inf) < X_TOLERANCE
    return right and (mode == "forward" or entry.get("error_gradient", np.inf) < GRADIENT_TOLERANCE)


def fastest(entries: Sequence[Entry], mode: str) -> Entry | None:
    """The one with the lowest median wall time."""
    timed = [entry for entry in entries if wall(entry, mode)]
    return min(timed, key=lambda entry: quartiles(wall(entry, mode))[1], default=None)


def ours(result: dict[str, Any], mode: str) -> Entry | None:
    """Our fastest correct contestant with the default solver."""
    return fastest([e for e in result["contestants"] if e["ours"] and e["default"] and correct(e, mode)], mode)


def peer(result: dict[str, Any], mode: str, library: str = "") -> Entry | None:
    """The strongest correct peer that is a layer; of one library only, and correct or not if none of it is correct, with ``library``."""
    peers = [e for e in result["contestants"] if not (e["ours"] or e["bare"]) and library in ("", e["peer"])]
    return fastest([e for e in peers if correct(e, mode)], mode) or (fastest(peers, mode) if library else None)


def ratio(slow: Entry, fast: Entry, mode: str) -> tuple[float, float, float] | None:
    """Quartiles of the ratios of neighbouring samples, slow over fast."""
    both = list(zip(wall(slow, mode), wall(fast, mode), strict=False))
    return quartiles([a / b for a, b in both]) if both else None


def goals(result: dict[str, Any]) -> list[tuple[str, float, Entry | None]]:
    """(whom a goal is over, the ratio wanted, that peer)."""
    over = [("the strongest correct peer", result["goal"], peer(result, "both"))] if result["goal"] else []
    return over + [(library, wanted, peer(result, "both", library)) for library, wanted in result["goals"].items()]
