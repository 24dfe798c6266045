"""Problems that are not convex, started at rest: every row converges, by either method, and says whether it found a minimum."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from cvxlayers.control import MPC
from cvxlayers.control.systems import pendulum


def swing_up(**options: Any) -> Any:
    """Plans over two seconds from 25 angles and speeds; controls stop at the limit at which the model itself clips them."""
    torch = importlib.import_module("torch")

    def cost(x: Any, u: Any, params: Any) -> Any:
        return 1 - torch.cos(x[..., 0]) + 0.05 * x[..., 1] ** 2 + 0.005 * u[..., 0] ** 2

    x0 = torch.tensor([[angle, speed] for angle in np.linspace(-np.pi, np.pi, 5) for speed in np.linspace(-6, 6, 5)])
    return MPC(lambda x, u, params: pendulum(x, u), cost, horizon=40, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, **options)(x0)


@pytest.mark.parametrize("options", [{}, {"hessian": "exact"}, {"method": "ilqr"}], ids=["sqp", "exact", "ilqr"])
def test_every_swing_up_converges(options: dict[str, Any]) -> None:
    plan = swing_up(**options)
    assert plan.info.converged.all() and (plan.info.kkt_residual <= 1e-8).all()
    at_rest = np.flatnonzero(~plan.info.minimum.numpy())
    assert at_rest.tolist() == [2, 22]  # hanging at rest, where doing nothing satisfies the conditions of first order
    assert float(plan.cost.mean()) < 55.6
