"""Swing a pendulum up by model predictive control, then learn the controller's cost from an expert's trajectories.

At every step of gymnasium's Pendulum-v1 the controller solves a non-convex optimal control problem with bounds on the torque,

    minimize  sum_t  w1 (1 - cos angle_t) + w2 velocity_t^2 + 0.01 torque_t^2   subject to  |torque_t| <= 2 and the pendulum's equations,

and applies the first torque of its plan. Then a second controller, which begins with wrong weights w1 and w2, sees states and planned
torques of the first and descends the mean squared difference of the plans: the gradient passes through the controller.

    python examples/pendulum_mpc.py [--quick] [--figure FILE]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib
import numpy as np
import torch
from tqdm import tqdm

import cvxlayers.torch  # noqa: F401
from cvxlayers.control import MPC, systems

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).with_suffix(".png")
EXPERT = torch.tensor([1.0, 0.02], dtype=torch.float64)  # w1 and w2
NOVICE = torch.tensor([0.2, 0.2], dtype=torch.float64)


def dynamics(x: Any, u: Any, weights: Any) -> Any:
    """Gymnasium's pendulum; the bound on the torque is the controller's own."""
    return systems.pendulum(x, u, {"max_torque": None})


def cost(x: Any, u: Any, weights: Any) -> Any:
    """The distance from standing upright."""
    return weights[..., 0] * (1 - torch.cos(x[..., 0])) + weights[..., 1] * x[..., 1].square() + 0.01 * u[..., 0].square()


def controller(horizon: int) -> MPC:
    """Plans of ``horizon`` steps of 0.05 s."""
    return MPC(dynamics, cost, horizon=horizon, n_state=2, n_ctrl=1, u_lower=-2.0, u_upper=2.0, max_iter=100)


def swing_up(mpc: MPC, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Angles and velocities (steps, 2), torques (steps,) and the sum of rewards of one closed loop that starts hanging down."""
    environment: Any = gymnasium.make("Pendulum-v1", max_episode_steps=steps).unwrapped
    environment.reset(seed=0)
    environment.state = np.array([math.pi - 0.1, 0.0])
    states, torques, total, plan = [], [], 0.0, None
    with tqdm(range(steps), desc="swinging up") as progress:
        for _ in progress:
            state = np.array(environment.state)
            plan = mpc(torch.tensor(state[None]), EXPERT, warm_start=plan)
            torque = plan.u[0, 0].numpy()
            _, reward, *_ = environment.step(torque)
            states.append(state)
            torques.append(float(torque[0]))
            total += float(reward)
            progress.set_postfix(angle=f"{math.remainder(state[0], math.tau):+.2f}", refresh=False)
    return np.array(states), np.array(torques), total


def learn(mpc: MPC, states: torch.Tensor, steps: int) -> tuple[list[float], list[list[float]], float]:
    """The imitation loss and the weights along the descent, and the gradient's error against central differences at its start."""
    with torch.no_grad():
        shown = mpc(states, EXPERT).u

    def loss(log_weights: torch.Tensor) -> torch.Tensor:
        plan = mpc(states, log_weights.exp())
        return (plan.u - shown).square().mean()

    log_weights = NOVICE.log().requires_grad_()
    optimizer = torch.optim.Adam([log_weights], lr=0.1)
    (gradient,) = torch.autograd.grad(loss(log_weights), log_weights)
    with torch.no_grad():
        moves = 1e-5 * torch.eye(2, dtype=torch.float64)
        differences = torch.stack([(loss(log_weights + move) - loss(log_weights - move)) / 2e-5 for move in moves])
    losses, weights = [], []
    with tqdm(range(steps), desc="learning the cost") as progress:
        for _ in progress:
            optimizer.zero_grad()
            value = loss(log_weights)
            value.backward()
            losses.append(value.item())
            weights.append(log_weights.detach().exp().tolist())
            optimizer.step()
            progress.set_postfix(loss=f"{losses[-1]:.2e}", refresh=False)
    return losses, weights, float((gradient - differences).abs().max() / gradient.abs().max())


def run(quick: bool = False, figure: Path | None = FIGURE) -> dict[str, Any]:
    """Swing up, learn, draw; returns the numbers it prints."""
    torch.manual_seed(0)
    states, torques, total = swing_up(controller(30), 12 if quick else 160)
    mpc = controller(8 if quick else 15)
    spread = torch.tensor([1.5, 2.0], dtype=torch.float64)  # near enough to upright that the best plan is one of a kind
    samples = spread * (2 * torch.rand(4 if quick else 16, 2, dtype=torch.float64) - 1)
    losses, weights, error = learn(mpc, samples, 4 if quick else 60)
    upright = abs(np.array([math.remainder(angle, math.tau) for angle in states[:, 0]]))
    results = {
        "reward": total,
        "last angle": float(upright[-1]),
        "first loss": losses[0],
        "last loss": losses[-1],
        "weights": weights[-1],
        "gradient error": error,
    }
    print(f"swing-up: reward {total:.1f}, {upright[-1]:.3f} rad from upright after {len(states)} steps")
    print(f"imitation: loss {losses[0]:.2e} -> {losses[-1]:.2e}, weights {weights[-1][0]:.3f} {weights[-1][1]:.3f} (expert 1 and 0.02)")
    print(f"gradient against central differences: error {error:.1e} relative to its largest entry")
    if figure is not None:
        draw(figure, states, torques, losses, np.array(weights))
    return results


def draw(path: Path, states: np.ndarray, torques: np.ndarray, losses: list[float], weights: np.ndarray) -> None:
    """The closed loop, the imitation loss, and the weights on their way to the expert's."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    time = 0.05 * np.arange(len(states))
    axes[0].plot(time, states[:, 0], color="tab:blue", label="angle, rad")
    axes[0].step(time, torques, where="post", color="tab:orange", label="torque, N m")
    for turn in (0, 2 * math.pi):
        axes[0].axhline(turn, color="tab:gray", linestyle="--", linewidth=0.8)
    axes[0].set(xlabel="time, s", title="swing-up in closed loop (dashed: upright)")
    axes[0].legend()
    axes[1].semilogy(losses, color="tab:blue")
    axes[1].set(xlabel="step", ylabel="mean squared difference of torques", title="imitation of the expert's plans")
    for k, name in enumerate(("$w_1$ (angle)", "$w_2$ (velocity)")):
        (line,) = axes[2].plot(weights[:, k], label=name)
        axes[2].axhline(float(EXPERT[k]), color=line.get_color(), linestyle="--")
    axes[2].set(xlabel="step", yscale="log", title="learned weights (dashed: the expert's)")
    axes[2].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"figure: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    run(arguments.quick, arguments.figure)
