"""What a contestant makes of a workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """A workload, ready to be called.

    ``forward()`` returns the answer; ``both()`` (answer, {parameter: gradient of the sum of weights times the answer}), or is None for a
    library without derivatives. ``note`` says what chose itself: a solver, a mode.
    """

    forward: Callable[[], Any]
    both: Callable[[], tuple[Any, dict[str, Any]]] | None = None
    note: str = ""


def array(value: Any) -> np.ndarray:
    """A tensor of any framework as a NumPy array."""
    return np.asarray(value.detach() if hasattr(value, "detach") else value)
