"""Gradient descent and momentum whose iterations are differentiated as they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cvxlayers.backend import verbatim
from cvxlayers.thresholds import floats


class Descent(NamedTuple):
    """The last iterate (*batch, d), and the costs (n_iter, *batch) of those before it."""

    x: Any
    trace: Any


@verbatim
def unroll(cost: Callable[[Any], Any], x0: Any, *, step: Any = 0.1, n_iter: int = 10, momentum: Any = 0.0) -> Descent:
    """Descend a cost for n_iter steps from x0 (*batch, d), differentiably:

        v_{j+1} = momentum v_j - step * gradient of cost at x_j,    x_{j+1} = x_j + v_{j+1},    v_0 = 0.

    ``cost`` maps (*batch, d) to (*batch), row by row. ``step`` and ``momentum`` are numbers or arrays that broadcast with x0, and have
    gradients as x0 and whatever ``cost`` reaches have. What comes out depends on n_iter: it is the derivative of these steps, not of the
    minimizer (`cvxlayers.implicit` gives that one). Raises ValueError for a cost of the wrong shape.

    >>> import torch
    >>> target = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> x = unroll(lambda x: ((x - target) ** 2).sum(-1), torch.zeros(2), step=0.25, n_iter=3).x
    >>> x.sum().backward()
    >>> x.tolist(), target.grad.tolist()
    ([0.875, 1.75], [0.875, 0.875])
    """
    if n_iter < 1:
        raise ValueError(f"got n_iter={n_iter}; wanted at least 1")
    verbs, (x0,) = floats(x0)
    xp, cost = verbs.xp, verbs.users(cost)
    step, momentum = verbs.asarray(step, x0), verbs.asarray(momentum, x0)

    def iterate(state: tuple[Any, Any], _: Any) -> tuple[tuple[Any, Any], tuple[Any]]:
        x, v = state
        value, pull = verbs.vjp(cost, x)
        if tuple(value.shape) != tuple(x.shape)[:-1]:
            raise ValueError(f"got a cost of shape {tuple(value.shape)} for points of shape {tuple(x.shape)}; wanted {tuple(x.shape)[:-1]}")
        v = momentum * v - step * pull(xp.ones_like(value))[0]
        return (x + v, v), (value,)

    counted = verbs.asarray([0.0] * n_iter, x0)
    (x, _), (trace,) = verbs.scan(iterate, (x0, xp.zeros_like(x0)), (counted,))
    return Descent(x, trace)
