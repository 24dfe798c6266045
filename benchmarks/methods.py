"""The two methods of `cvxlayers.control.MPC` on problems that are not convex: iterations, cost and time to 1e-8 from rest.

    python benchmarks/methods.py

128 pendulums over 20 steps (workload W6c of the race) and 25 swing-ups over 40 steps (tests/test_mpc_hard.py): prints rows converged, the
largest number of iterations, the mean cost, and the processor's seconds of one plan on one thread, the median of REPEATS. Writes nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("CVXLAYERS_NUM_THREADS", "1")

import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch
from racing.forms.pendulum import COST, LIMIT, TARGET, move
from racing.workload import WORKLOADS
from tqdm import tqdm

from cvxlayers.control import MPC, Plan, QuadraticCost
from cvxlayers.control.systems import pendulum

REPEATS = 5


def pendulums(method: str) -> Callable[[], Plan]:
    """Those of the race."""
    workload = next(w for w in WORKLOADS if w.key == "W6c")
    x0, theta = (torch.tensor(workload.data()[name]) for name in ("x0", "theta"))
    cost = QuadraticCost(torch.diag(torch.tensor(COST, dtype=x0.dtype)), torch.tensor(TARGET, dtype=x0.dtype))
    mpc = MPC(move, cost, horizon=workload.sizes["horizon"], n_state=3, n_ctrl=1, u_lower=-LIMIT, u_upper=LIMIT, method=method)
    return lambda: mpc(x0, params=theta)


def swing_ups(method: str) -> Callable[[], Plan]:
    """From 25 angles and speeds, over two seconds."""

    def cost(x: torch.Tensor, u: torch.Tensor, params: None) -> torch.Tensor:
        return 1 - torch.cos(x[..., 0]) + 0.05 * x[..., 1] ** 2 + 0.005 * u[..., 0] ** 2

    x0 = torch.tensor([[angle, speed] for angle in np.linspace(-np.pi, np.pi, 5) for speed in np.linspace(-6, 6, 5)])
    options = {"horizon": 40, "n_state": 2, "n_ctrl": 1, "u_lower": -2.0, "u_upper": 2.0}
    mpc = MPC(lambda x, u, params: pendulum(x, u), cost, method=method, **options)
    return lambda: mpc(x0)


def lines() -> Iterator[str]:
    """The table."""
    yield "| problem | method | converged | iterations at most | mean cost | cpu, s |"
    yield "|---|---|---|---|---|---|"
    for made in tqdm((pendulums, swing_ups)):
        for method in ("sqp", "ilqr"):
            call = made(method)
            plan, seconds = call(), []
            for _ in range(REPEATS):
                began = time.process_time()
                plan = call()
                seconds.append(time.process_time() - began)
            converged, most = int(plan.info.converged.sum()), int(plan.info.iterations.max())
            name, rows = made.__name__.replace("_", "-"), len(plan.info.converged)
            yield f"| {name} | {method} | {converged} of {rows} | {most} | {float(plan.cost.mean()):.1f} | {median(seconds):.2f} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(lines()))
