"""The contract of a host solver: arrays in, arrays out, one status per row.

minimize 1/2 x'Px + q'x  subject to  Ax + s = b, s in K, for a batch of rows that share one `Pattern`.

A solver file translates: the cones' order and packing to its own, its own settings from ours, its own status words to `Status`
(one table per file, every word the solver can say is in it). It does not judge its answer: whether a row is accurate is decided
once, above, from residuals of the unscaled data.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

from cvxlayers.cones.base import Cone
from cvxlayers.errors import Status
from cvxlayers.program import ConeProgram, Pattern, Solution


@dataclass(frozen=True)
class Solver(ABC):
    """A solver with its settings; instances are immutable and may be used from several threads.

    ``settings`` holds the solver's own option names, already translated and checked by `configure`; ``defaults`` fill it up.
    ``jobs`` is the number of threads over the rows of a batch, 0 for one per core.
    """

    name: ClassVar[str]
    """The name a user writes."""
    cones: ClassVar[frozenset[type[Cone]]]
    """The cones it takes."""
    semidefinite_order: ClassVar[int] = 1 << 31
    """The largest order of a semidefinite cone that it takes."""
    quadratic: ClassVar[bool]
    """Whether it takes a quadratic objective P."""
    warm_start: ClassVar[bool] = False
    """Whether it can begin at a given Solution."""
    threads: ClassVar[int] = 1
    """The ``jobs`` of a solver that was not told a number of threads."""
    where: ClassVar[str] = "host"
    options: ClassVar[Mapping[str, type]] = MappingProxyType({})
    """Its own option names that pass through, each with the type of its value."""
    tolerances: ClassVar[tuple[str, ...]] = ()
    """The options that ``eps`` sets."""
    limit: ClassVar[str] = ""
    """The option that ``max_iters`` sets."""
    defaults: ClassVar[Mapping[str, object]] = MappingProxyType({})
    """Options of ours that differ from the solver's own defaults."""

    settings: Mapping[str, object] = field(default_factory=dict)
    jobs: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", {**self.defaults, **self.settings})

    @cached_property
    def tolerance(self) -> float:
        """The loosest tolerance this solver was asked for; zero if it was asked for none."""
        return max((float(str(self.settings[name])) for name in self.tolerances if name in self.settings), default=0.0)

    @abstractmethod
    def solve(self, pattern: Pattern, program: ConeProgram, start: Solution | None = None) -> Solution:
        """Solve every row of ``program``.

        program: NumPy float64, one batch axis (rows, ...), C-contiguous, finite. start: a Solution with the same batch axis, or None;
        rows of it may hold NaN, and are then started cold. Returns a Solution whose failed rows may hold anything but whose status
        says so; never raises for numerical reasons. A row's result does not depend on the other rows, bitwise.
        """


def map_rows(solve_row: Callable[[int], object], rows: int, jobs: int) -> None:
    """Call solve_row(i) for every row, on ``jobs`` threads (0: one per core); each thread takes a contiguous share."""
    jobs = min(rows, jobs or os.cpu_count() or 1)
    if jobs <= 1:
        for row in range(rows):
            solve_row(row)
        return

    def share(job: int) -> None:
        for row in range(job * rows // jobs, (job + 1) * rows // jobs):
            solve_row(row)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(share, range(jobs)))


__all__ = ["Solver", "Status", "map_rows"]
