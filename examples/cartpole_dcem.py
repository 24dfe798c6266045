"""Plan a cartpole by the cross-entropy method, and learn through it a two-dimensional space of controls in which less is to search.

A plan is a sequence of 20 controls, one second, and its cost from a given state is that of the rollout,

    sum_t  -cos(angle_t) + 0.1 position_t^2 + 1e-5 force_t^2,    |force_t| <= 100 N,    20 steps of 0.05 s:

the task of Amos and Yarats, "The differentiable cross-entropy method", 2020. The cross-entropy method (`dcem` at temperature 0) searches
the 20 controls themselves. A decoder, a network from two latent coordinates to 20 controls, is then trained end to end: DCEM searches the
latent square, and the cost of the decoded plan is descended through the search. Everything is compared on the 100 states of that task,
which training never sees; the animation controls the cartpole by planning anew at every step.

    python examples/cartpole_dcem.py [--quick] [--steps 400] [--figure FILE] [--animation FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from tqdm import tqdm

from cvxlayers.control import dcem
from cvxlayers.control.systems import cartpole

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter

FIGURE = Path(__file__).with_suffix(".png")
ANIMATION = Path(__file__).with_suffix(".gif")
HORIZON, LATENT, WIDTH, BATCH = 20, 2, 256, 16
FORCE = 100.0  # newtons for a control of one


def push(x: jax.Array, u: jax.Array) -> jax.Array:
    """One step of the cartpole under controls in [-1, 1]."""
    return cartpole(x, u, {"force": FORCE})


def rollout_cost(state: jax.Array, controls: jax.Array) -> jax.Array:
    """States (*batch, 4), controls (*batch, n_sample, HORIZON) -> costs (*batch, n_sample)."""
    start = jnp.broadcast_to(state[..., None, :], (*controls.shape[:-1], 4))

    def step(x: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        return push(x, u[..., None]), -jnp.cos(x[..., 2]) + 0.1 * x[..., 0] ** 2 + 1e-5 * (FORCE * u) ** 2

    return jax.lax.scan(step, start, jnp.moveaxis(controls, -1, 0))[1].sum(0)


def plan(state: jax.Array, key: Any, n_iter: int, temperature: float) -> jax.Array:
    """Search the controls themselves: states (*batch, 4) -> plans (*batch, HORIZON)."""
    mean = jnp.zeros((*state.shape[:-1], HORIZON))
    cost = lambda u: rollout_cost(state, u)  # noqa: E731
    return dcem(cost, mean, 1.0, n_iter=n_iter, temperature=temperature, lower=-1.0, upper=1.0, seed=key).mean


def decode(weights: list[Any], z: jax.Array) -> jax.Array:
    """Latent points (*batch, LATENT) -> controls (*batch, HORIZON) in [-1, 1]."""
    for W, b in weights[:-1]:
        z = jax.nn.elu(z @ W + b)
    W, b = weights[-1]
    return jnp.tanh((z @ W + b) / 2)


def latent_plan(weights: list[Any], state: jax.Array, key: Any) -> jax.Array:
    """Search the latent square and decode."""
    cost = lambda z: rollout_cost(state, decode(weights, z))  # noqa: E731
    mean = jnp.zeros((*state.shape[:-1], LATENT))
    return decode(weights, dcem(cost, mean, 0.5, lower=-1.0, upper=1.0, seed=key).mean)


def draw_states(key: Any, count: int) -> jax.Array:
    """Within half a metre of the middle, at moderate speeds, at any angle."""
    return jax.random.uniform(key, (count, 4), minval=-1.0, maxval=1.0) * jnp.array([0.5, 0.5, np.pi, 1.0])


def validation_states() -> jax.Array:
    """The 100 states of the published task, which draws them by a Mersenne twister seeded with 0, 24 bits each."""
    words = np.random.RandomState(0).randint(0, 2**32, size=(4, 100), dtype=np.uint32)
    share = (words & 0xFFFFFF) / 2.0**23 - 1.0
    return jnp.asarray(share.T * np.array([0.5, 0.5, np.pi, 1.0]))


def first_weights(key: Any) -> list[Any]:
    sizes = [LATENT, WIDTH, WIDTH, WIDTH, HORIZON]
    keys = jax.random.split(key, len(sizes) - 1)
    return [(jax.random.normal(k, (m, n)) * 2 / np.sqrt(m + n), jnp.zeros(n)) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]


@jax.jit
def train_step(weights: Any, moments: Any, count: Any, key: Any) -> Any:
    """One step of Adam on the cost of the decoded plans, the gradient clipped to norm one."""
    draw, search = jax.random.split(key)
    states = draw_states(draw, BATCH)

    def loss(weights: Any) -> jax.Array:
        return rollout_cost(states, latent_plan(weights, states, search)[:, None]).mean()

    value, gradient = jax.value_and_grad(loss)(weights)
    norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda g: g / jnp.maximum(norm, 1.0), gradient)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, moments[1], gradient)
    rate = 5e-4 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
    return jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), weights, first, second), (first, second), value


def control(planner: Callable[[jax.Array, Any], jax.Array], state: jax.Array, steps: int) -> np.ndarray:
    """Plan, apply the first control of the better of the new plan and the rest of the last, plan anew: the states (steps + 1, 4)."""

    def step(carry: tuple[jax.Array, jax.Array], key: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        x, last = carry
        plans = jnp.stack([planner(x, key), jnp.append(last[1:], 0.0)])
        best = plans[rollout_cost(x, plans).argmin()]
        x = push(x, best[:1])
        return (x, best), x

    start = (state, jnp.zeros(HORIZON))
    visited = jax.jit(lambda start: jax.lax.scan(step, start, jax.random.split(jax.random.key(5), steps))[1])(start)
    return np.concatenate([state[None], np.asarray(visited)])


def run(steps: int = 400, figure: Path | None = FIGURE, animation: Path | None = ANIMATION, frames: int = 120) -> dict[str, float]:
    """Plan, train, compare, draw; returns the numbers it prints."""
    states, key = validation_states(), jax.random.key(101)
    costs = jax.jit(lambda u: rollout_cost(states, u[:, None])[:, 0])
    planned = {
        "CEM, 100 samples x 30": costs(jax.jit(lambda x: plan(x, key, 30, 0.0))(states)),
        "CEM, 100 samples x 10": costs(jax.jit(lambda x: plan(x, key, 10, 0.0))(states)),
        "DCEM, 100 samples x 10": costs(jax.jit(lambda x: plan(x, key, 10, 0.1))(states)),
    }
    validate = jax.jit(lambda weights: rollout_cost(states, latent_plan(weights, states, key)[:, None])[:, 0])
    weights = first_weights(jax.random.key(0))
    moments = (jax.tree.map(jnp.zeros_like, weights),) * 2
    history, best, began = [(0, float(validate(weights).mean()))], weights, time.perf_counter()
    with tqdm(range(1, steps + 1), desc="training the latent space through DCEM") as progress:
        for count in progress:
            weights, moments, _ = train_step(weights, moments, count, jax.random.key(1000 + count))
            if count % max(steps // 40, 1) == 0:
                history.append((count, float(validate(weights).mean())))
                if history[-1][1] <= min(cost for _, cost in history):
                    best = weights
                progress.set_postfix(validation=f"{history[-1][1]:.2f}", refresh=False)
    seconds = time.perf_counter() - began
    planned["latent DCEM, 100 samples x 10"] = validate(best)
    results = {name: float(values.mean()) for name, values in planned.items()}
    results.update({"latent before training": history[0][1], "seconds": seconds})
    report(results, steps)
    if figure is not None:
        draw(figure, history, planned, best, states[:4])
    if animation is not None:
        down = jnp.array([0.0, 0.0, np.pi, 0.0])
        paths = {
            "CEM in 20 dimensions, 3000 rollouts per step": control(lambda x, key: plan(x, key, 30, 0.0), down, frames),
            "DCEM in 2 learned dimensions, 1000 rollouts per step": control(lambda x, key: latent_plan(best, x, key), down, frames),
        }
        animate(animation, paths)
        for name, visited in paths.items():
            results[f"held by {name}"] = float(held(visited))
            print(f"{name}: upright for the last {held(visited)} of {frames} steps")
    return results


def held(states: np.ndarray) -> int:
    """How many of the last steps in a row the pole is within a third of a radian of upright."""
    fallen = np.flatnonzero(np.cos(states[:, 2]) < np.cos(1 / 3))
    return len(states) - 1 - int(fallen[-1]) if len(fallen) else len(states)


def report(results: dict[str, float], steps: int) -> None:
    """Print the comparison."""
    print("mean cost of the plan from 100 states")
    for name, value in results.items():
        if not name.startswith(("seconds", "held")):
            print(f"{name:32}{value:10.3f}")
    print(f"{steps} training steps in {results['seconds']:.0f} s")


def draw(path: Path, history: list[tuple[int, float]], planned: dict[str, Any], weights: Any, states: jax.Array) -> None:
    """The training curve, the plans' costs state by state, and the cost over the latent square for some states."""
    figure = plt.figure(figsize=(13, 3.9), constrained_layout=True)
    subfigures: Any = figure.subfigures(1, 3)
    left, middle, right = subfigures
    axes = left.subplots()
    axes.plot(*zip(*history, strict=True), color="tab:blue", label="latent DCEM")
    for (name, values), color in zip(list(planned.items())[:3], ("black", "tab:gray", "tab:orange"), strict=True):
        axes.axhline(float(values.mean()), color=color, linestyle="--", label=name)
    axes.set(xlabel="training step", ylabel="mean cost on 100 states", title="training through the search")
    axes.legend(fontsize=8)
    axes = middle.subplots()
    names = ["CEM, 100 samples x 30", "latent DCEM, 100 samples x 10"]
    x, y = (np.asarray(planned[name]) for name in names)
    span = [min(x.min(), y.min()), max(x.max(), y.max())]
    axes.plot(span, span, color="tab:gray", linewidth=1)
    axes.scatter(x, y, s=12, color="tab:blue")
    axes.set(xlabel=names[0], ylabel=names[1], title="cost of the plan, each state", aspect="equal")
    grid = jnp.linspace(-1, 1, 81)
    points = jnp.stack(jnp.meshgrid(grid, grid), axis=-1).reshape(-1, LATENT)
    panels = right.subplots(2, 2, sharex=True, sharey=True)
    for panel, state in zip(panels.flat, states, strict=True):
        values = np.asarray(rollout_cost(state, decode(weights, points))).reshape(81, 81)
        panel.contourf(grid, grid, values, 20, cmap="viridis")
        panel.plot(*points[int(values.argmin())], "o", color="red", markersize=4)
        panel.set(aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    right.suptitle("cost over the latent square, four states", fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"figure: {path}")


def animate(path: Path, paths: dict[str, np.ndarray]) -> None:
    """The cartpole under each controller, one above the other."""
    figure, axes = plt.subplots(len(paths), 1, figsize=(5.2, 4.4), constrained_layout=True)
    artists, reach = [], max(float(np.abs(states[:, 0]).max()) for states in paths.values()) + 0.3
    for panel, (name, states) in zip(axes, paths.items(), strict=True):
        panel.set(xlim=(-reach, reach), ylim=(-1.25, 1.25), aspect="equal", yticks=[])
        panel.set_title(name, fontsize=9)
        panel.axhline(0, color="tab:gray", linewidth=1)
        artists.append(
            (states, panel.plot([], [], "s", color="black", markersize=14)[0], panel.plot([], [], color="tab:orange", linewidth=4)[0])
        )

    def show(frame: int) -> list[Any]:
        for states, cart, pole in artists:
            position, _, angle, _ = states[frame]
            cart.set_data([position], [0])
            pole.set_data([position, position + np.sin(angle)], [0, np.cos(angle)])
        return [artist for _, *pair in artists for artist in pair]

    count = len(next(iter(paths.values())))
    FuncAnimation(figure, show, frames=count, blit=True).save(path, writer=PillowWriter(fps=20), dpi=70)
    plt.close(figure)
    print(f"animation: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that all parts work")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--animation", type=Path, default=ANIMATION)
    arguments = parser.parse_args()
    run(4 if arguments.quick else arguments.steps, arguments.figure, arguments.animation, 10 if arguments.quick else 120)
