"""Blocks of work over a pool of threads of our own, for kernels that release the GIL.

The pool is made when first used, serves callers from any number of threads at once, and is made anew in a forked child, whose parent's
threads do not exist there. A caller works along with its helpers and never waits for one that has not begun, so that a task may itself
call `run`. What a block computes does not depend on who computes it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

VARIABLE = "CVXLAYERS_NUM_THREADS"
"""The environment variable that limits threads where the caller sets no limit."""
SHARES = 4
"""Pieces per thread: more even out pieces of unequal length, fewer cost less."""
LARGE = 3e5
"""Products of lanes from which on a second thread pays for being woken."""

FEW = 3
"""Helpers that are kept off the caller's processor: more find places by themselves, and each costs a call of the system."""

_pool: ThreadPoolExecutor | None = None
_helpers: list[threading.Thread] = []
_kept_off: frozenset[int] = frozenset()


def _forget() -> None:
    global _pool, _kept_off
    _pool, _kept_off = None, frozenset()
    _helpers.clear()


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

    _keep_off()
    helpers = [_executor().submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        stopped = True
        begun = [helper for helper in helpers if not helper.cancel()]
        errors = [error for helper in begun if (error := helper.exception()) is not None]
    if errors:
        raise errors[0]


def _processor() -> Callable[[], int] | None:
    """The function that tells on which processor the calling thread runs, where the system has it."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_here = _processor()


def _keep_off() -> None:
    """Let helpers run where the caller does not: a thread woken where it slept last may wait there until the caller has done it all."""
    global _kept_off
    if _here is None or not 0 < len(_helpers) <= FEW:
        return
    allowed = frozenset(os.sched_getaffinity(0)) - {_here()}
    if not allowed or allowed == _kept_off:
        return
    for helper in tuple(_helpers):
        if helper.is_alive() and helper.native_id is not None:
            with suppress(OSError):  # it is a matter of speed alone, and some systems forbid it
                os.sched_setaffinity(helper.native_id, allowed)
    _kept_off = allowed


def _arrive() -> None:
    global _kept_off
    _helpers.append(threading.current_thread())
    _kept_off = frozenset()


def _executor() -> ThreadPoolExecutor:
    global _pool
    pool = _pool
    if pool is None:
        # Two threads may both come here: the pool that loses finishes what it was given and is then collected.
        _pool = pool = ThreadPoolExecutor(max(cores(), limit()), "cvxlayers", _arrive)
    return pool
