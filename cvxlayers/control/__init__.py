"""Differentiable control: one text of every algorithm for PyTorch, JAX and TensorFlow arrays.

- ``lqr`` is the linear-quadratic regulator, by Riccati recursion; ``MPC`` plans under constraints, with the user's own dynamics and costs
  or `LinearDynamics` and `QuadraticCost`.
- ``dcem``, the differentiable cross-entropy method, searches where costs are not convex: it samples, weighs the samples by a soft top-k
  (`cvxlayers.topk.lml`) and is differentiated through samples and weights.
- ``unroll`` is gradient descent on a cost, differentiated through its steps.
- ``systems`` holds the models that the examples control: pendulum, cartpole, double integrator, planar quadrotor.

Batch axes lead, time before them: states are (*batch, n), trajectories (T, *batch, n). Models and costs are functions of the user's
framework; what they reach by closure, the weights of a network say, has its gradient too. Nothing here knows CVXPY.
"""

from cvxlayers.control import systems
from cvxlayers.control.dcem import dcem
from cvxlayers.control.lqr import Trajectory, lqr
from cvxlayers.control.models import LinearDynamics, QuadraticCost
from cvxlayers.control.mpc import MPC
from cvxlayers.control.plan import Plan, PlanInfo
from cvxlayers.control.unroll import unroll

__all__ = ["MPC", "LinearDynamics", "Plan", "PlanInfo", "QuadraticCost", "Trajectory", "dcem", "lqr", "systems", "unroll"]
