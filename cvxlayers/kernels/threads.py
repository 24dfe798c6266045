"""Blocks of work over a pool of threads of our own, for kernels that release the GIL.

The pool is made when first used, serves callers from any number of threads at once, and is made anew in a forked child, whose parent's
threads do not exist there. A caller works along with its helpers and never waits for one that has not begun, so that a task may itself
call `run`. What a block computes does not depend on who computes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

VARIABLE = "CVXLAYERS_NUM_THREADS"
"""The environment variable that limits threads where the caller sets no limit."""
SHARES = 4
"""Pieces per thread: more even out pieces of unequal length, fewer cost less."""
LARGE = 3e5
"""Products of lanes from which on a second thread pays for being woken."""

_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit(jobs: int = 0) -> int:
    """The number of threads to use: ``jobs``, or if that is 0 what CVXLAYERS_NUM_THREADS says, or if it is unset one per core.

    Raises ValueError for a variable that is no positive integer.

    >>> limit(3)
    3
    """
    if jobs > 0:
        return jobs
    said = os.environ.get(VARIABLE, "")
    if not said:
        return cores()
    if not said.isdecimal() or int(said) == 0:
        raise ValueError(f"the environment variable {VARIABLE} is {said!r}; wanted a positive number of threads")
    return int(said)


def run(task: Callable[[int, int], object], blocks: int, jobs: int = 0, work: float = LARGE) -> None:
    """Call task(first, last) for consecutive pieces of range(blocks), in any order, on at most ``limit(jobs)`` threads.

    ``work`` is about how many products of lanes there are; less than `LARGE` is quicker on one thread.

    What a task raises is raised here, after the others have stopped taking pieces.

    >>> seen = []
    >>> run(lambda first, last: seen.extend(range(first, last)), 5, jobs=1)
    >>> seen
    [0, 1, 2, 3, 4]
    """
    threads = min(limit(jobs), blocks) if work >= LARGE and blocks > 1 else 1
    if threads <= 1:
        if blocks:
            task(0, blocks)
        return
    pieces = min(blocks, SHARES * threads)
    ticket = count()  # taking a number is one step of the interpreter: no two threads get the same
    stopped = False

    def take() -> None:
        nonlocal stopped
        while not stopped and (piece := next(ticket)) < pieces:
            try:
                task(piece * blocks // pieces, (piece + 1) * blocks // pieces)
            except BaseException:
                stopped = True
                raise

    helpers = [_executor().submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        stopped = True
        begun = [helper for helper in helpers if not helper.cancel()]
        errors = [error for helper in begun if (error := helper.exception()) is not None]
    if errors:
        raise errors[0]


def _executor() -> ThreadPoolExecutor:
    global _pool
    pool = _pool
    if pool is None:
        # Two threads may both come here: the pool that loses finishes what it was given and is then collected.
        _pool = pool = ThreadPoolExecutor(max(cores(), limit()), thread_name_prefix="cvxlayers")
    return pool
