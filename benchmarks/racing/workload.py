"""The workloads, as records of sizes; their numbers are in `draw`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from racing.draw import DRAW


@dataclass(frozen=True)
class Workload:
    """One problem of the race.

    ``kind`` says which problem, ``sizes`` how large, ``small`` how large in a quick race. ``goal`` is the ratio wanted over the strongest
    correct peer, forward + backward; ``goals`` the ratios wanted over single contestants. ``calls`` are averaged in one sample.
    """

    key: str
    kind: str
    title: str
    batch: int
    sizes: Mapping[str, int]
    small: Mapping[str, int] = field(default_factory=dict)
    goal: float | None = None
    goals: Mapping[str, float] = field(default_factory=dict)
    calls: int = 1
    seed: int = 0

    def data(self) -> dict[str, np.ndarray]:
        """The parameters by name and ``weights``: the loss is the sum of weights times the answer."""
        return DRAW[self.kind](np.random.default_rng(self.seed), self.batch, **self.sizes)

    def tiny(self) -> Workload:
        """The same problem, small, for a quick race."""
        return replace(self, batch=min(self.batch, 3), sizes={**self.sizes, **self.small}, calls=1)


OPTNET, OPTNET_SMALL = {"n": 100, "inequalities": 100, "equalities": 50}, {"n": 8, "inequalities": 8, "equalities": 3}
MPC_GOALS = {"moreau": 6.0, "mpc.pytorch": 10.0}
PLANT = {"n_state": 12, "n_ctrl": 4}

WORKLOADS = (
    Workload("W1", "optnet", "dense QP, n = 100, 100 inequalities, 50 equalities", 128, OPTNET, OPTNET_SMALL, goal=4),
    Workload("W1b", "optnet", "dense QP of the same sizes, one problem", 1, OPTNET, OPTNET_SMALL, goal=2, calls=5),
    Workload("W2", "simplex", "projection on the simplex, n = 20", 512, {"n": 20}, {"n": 5}, goal=5),
    Workload("W2b", "box", "box-constrained least squares, 30 x 20", 512, {"n": 20, "m": 30}, {"n": 4, "m": 6}, goal=5),
    Workload("W2c", "simplex", "projection on the simplex, one problem", 1, {"n": 20}, {"n": 5}, goal=4, calls=50),
    Workload("W3", "factor", "factor portfolio, 500 assets, 20 factors", 32, {"n": 500, "k": 20}, {"n": 12, "k": 3}, goal=10),
    Workload("W4", "socp", "SOCP, n = 50, ten cones of dimension 10", 128, {"n": 50, "cones": 10}, {"n": 6, "cones": 2}, goal=3),
    Workload("W5a", "logistic", "logistic regression, 100 x 20 (exponential cones)", 32, {"n": 20, "m": 100}, {"n": 3, "m": 8}, goal=3),
    Workload("W5b", "sdp", "nearest correlation matrix, 10 x 10 (SDP)", 32, {"n": 10}, {"n": 3}, goal=1.5),
    Workload("W5b20", "sdp", "nearest correlation matrix, 20 x 20 (SDP)", 32, {"n": 20}, {"n": 4}, goal=1.5),
    Workload("W6", "mpc", "linear MPC, box, 12 states, 4 controls, T = 20", 128, {**PLANT, "horizon": 20}, {"horizon": 3}, goals=MPC_GOALS),
    Workload(
        "W6b", "mpc", "linear MPC, box, 12 states, 4 controls, T = 50", 128, {**PLANT, "horizon": 50}, {"horizon": 4}, goals=MPC_GOALS
    ),
    Workload("W6c", "pendulum", "pendulum MPC, not convex, box, T = 20", 128, {"horizon": 20}, {"horizon": 4}, goals={"mpc.pytorch": 8.0}),
    Workload(
        "W6d20", "lqr", "LQR, 12 states, 4 controls, T = 20", 128, {**PLANT, "horizon": 20}, {"horizon": 3}, goals={"mpc.pytorch": 30.0}
    ),
    Workload(
        "W6d50", "lqr", "LQR, 12 states, 4 controls, T = 50", 128, {**PLANT, "horizon": 50}, {"horizon": 4}, goals={"mpc.pytorch": 30.0}
    ),
    Workload("W7", "lml", "LML projection, n = 1000, k = 50", 512, {"n": 1000, "k": 50}, {"n": 12, "k": 3}, goal=10),
    Workload("W8", "build", "building a layer: A (500, 500) as the parameter of A @ x", 1, {"n": 500}, {"n": 10}),
)
