"""Differentiable control: one text of every algorithm for PyTorch, JAX and TensorFlow arrays.

- ``dcem``, the differentiable cross-entropy method, searches where costs are not convex: it samples, weighs the samples by a soft top-k
  (`cvxlayers.topk.lml`) and is differentiated through samples and weights.
- ``unroll`` is gradient descent on a cost, differentiated through its steps.
- ``systems`` holds the models that the examples control: pendulum, cartpole, double integrator, planar quadrotor.

Batch axes lead: states are (*batch, n), controls (*batch, m). Models and costs are functions of the user's framework; what they reach by
closure, the weights of a network say, has its gradient too. Nothing here knows CVXPY.
"""

from cvxlayers.control import systems
from cvxlayers.control.dcem import dcem
from cvxlayers.control.unroll import unroll

__all__ = ["dcem", "systems", "unroll"]
