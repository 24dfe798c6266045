"""What kernels are made of does in compiled code what it does in Python: variables, ranges, entries and rows of arrays, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba.core.errors import NumbaError

from cvxlayers.kernels.disk import compiled, inner

A = np.arange(24.0).reshape(2, 3, 4)
PLACES = np.array([2, 0, 1], dtype=np.uint32)


def ranges(a: Any, places: Any) -> float:
    total = 0.0
    for i in range(len(places)):
        for j in range(places[i], a.shape[2]):
            total = 2 * total + a[i % 2, i, j]
        for j in range(a.shape[2] - 1, -1, -2):
            total = 3 * total - a[0, i, j]
        for j in range(i, 1):
            total += 100.0 * j
        for j in range(3, 0, -1):
            if j == 2:
                continue
            if total > 1e6:
                break
            total += j
    return total


def entries(a: Any, places: Any) -> float:
    last, row, k = a[-1], a[1, 2], -2
    total = last[-1, -1] + 10 * last[0][k] + 100 * row[places[0]] + 1000 * a[places[1], places[2], 3]
    for i in range(-3, 0):
        total = total * 1.5 + last[i, i]
    return total


def variables(a: Any, places: Any) -> float:
    low, high = 0.0, 1.0
    for i in range(a.shape[1]):
        value = a[0, i, i]
        if value > 4:
            low, high = high, low + value
            found = value
        else:
            found = -value
        while found > 3:
            found -= 1.25
        low += found
    pair = (low, high)
    for each in (a[0], a[1]):
        high += each[0, 0]
    return pair[0] + 10 * pair[1] + 100 * high


def calls(a: Any, places: Any) -> float:
    total = 0.0
    for i in range(len(places)):
        count, large = _count(a[:, i], 4.0)
        total = total * 7 + count + (0.5 if large else 0.0)
        _double(a[0], i)
    return total + min(a[1, 0, 0], 3.0) + max(2, len(places))


def _count(a: Any, bound: float) -> tuple[int, bool]:
    count = 0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            if a[i, j] > bound:
                count += 1
    return count, count > 3


def _double(a: Any, i: int) -> None:
    for j in range(len(a[i])):
        a[i, j] *= 2
    a[i, -1] += 1


FUNCTIONS = (ranges, entries, variables, calls)
LAYOUTS: dict[str, Callable[[], Any]] = {
    "contiguous": lambda: A.copy(),
    "transposed": lambda: np.asfortranarray(A),
    "strided": lambda: np.repeat(np.repeat(A, 2, axis=0), 3, axis=2)[::2, :, ::3],
    "reversed": lambda: A[::-1, :, ::-1].copy()[::-1, :, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_compiled_code_does_what_python_does(function: Any, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted_array = LAYOUTS[layout]()
    wanted = function(wanted_array, PLACES.astype(int))
    monkeypatch.setitem(globals(), "_count", inner(_count))
    monkeypatch.setitem(globals(), "_double", inner(_double))
    within = inner(function)

    def entry(a: Any, places: Any) -> Any:
        return within(a, places)

    for kernel in (compiled(function), compiled(entry)):
        array = LAYOUTS[layout]()
        assert kernel(array, PLACES) == wanted
        np.testing.assert_array_equal(array, wanted_array)


def test_what_only_kernels_call_cannot_raise() -> None:
    @inner
    def refuses(a: Any) -> float:
        if a[0] > 0:
            raise ValueError("positive")
        return a[0]

    def entry(a: Any) -> float:
        return refuses(a)

    with pytest.raises(NumbaError, match="cannot raise"):
        compiled(entry)(np.ones(1))
