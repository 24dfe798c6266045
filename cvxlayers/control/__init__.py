"""Control: optimization over time, differentiable; time leads, then the batch."""

from __future__ import annotations

from cvxlayers.control.lqr import Trajectory, lqr

__all__ = ["Trajectory", "lqr"]
