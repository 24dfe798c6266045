"""What an adapter costs: one call at batch 1 around a host map that does nothing, in CPU milliseconds.

    python benchmarks/adapters.py [torch jax tensorflow] [--calls 400]

Forward and forward with backward: PyTorch eager, JAX under jit, TensorFlow inside tf.function and eager. Medians of CPU time per call, for
the process and all its threads, the best of several rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import import_module
from statistics import median
from typing import Any

import cvxpy as cp
import numpy as np

from cvxlayers.host import Options

SIZE, ROUNDS = 10, 5


def idle(module: str) -> Any:
    """A layer of two parameters and one output whose host map answers at once."""
    x, p, w = cp.Variable(SIZE), cp.Parameter(SIZE), cp.Parameter(nonneg=True)
    layer = import_module(module).CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p) + w * cp.sum(x)), [x >= 0]), [p, w], [x])
    values = [np.linspace(-1, 1, SIZE), np.array(0.5)]
    answer, gradients = layer.core.forward(values, Options()), [np.ones(SIZE), np.array(1.0)]
    layer.core.forward = lambda params, options: answer
    layer.core.restore = lambda params, solution: None
    layer.core.vjp = lambda saved, cotangents, needed: gradients
    return layer


def in_torch() -> dict[str, Callable[[], Any]]:
    """The calls in PyTorch."""
    torch, layer = import_module("torch"), idle("cvxlayers.torch")
    leaves = [torch.linspace(-1, 1, SIZE, dtype=torch.float64).requires_grad_(), torch.tensor(0.5, dtype=torch.float64).requires_grad_()]

    def forward() -> Any:
        with torch.no_grad():
            return layer(*leaves)

    return {"forward": forward, "both": lambda: torch.autograd.grad(layer(*leaves)[0].sum(), leaves)}


def in_jax() -> dict[str, Callable[[], Any]]:
    """The calls in JAX."""
    jax, layer = import_module("jax"), idle("cvxlayers.jax")
    jax.config.update("jax_enable_x64", True)
    arrays = [jax.numpy.linspace(-1, 1, SIZE), jax.numpy.asarray(0.5)]
    forward, both = jax.jit(layer), jax.jit(jax.value_and_grad(lambda *a: layer(*a)[0].sum(), argnums=(0, 1)))
    return {"forward": lambda: jax.block_until_ready(forward(*arrays)), "both": lambda: jax.block_until_ready(both(*arrays))}


def in_tensorflow() -> dict[str, Callable[[], Any]]:
    """The calls in TensorFlow."""
    tf, layer = import_module("tensorflow"), idle("cvxlayers.tensorflow")
    tensors = [tf.linspace(np.float64(-1), np.float64(1), SIZE), tf.constant(0.5, tf.float64)]

    def gradient(*given: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(given)
            loss = tf.reduce_sum(layer(*given)[0])
        return tape.gradient(loss, given)

    forward, both = tf.function(lambda *t: layer(*t), autograph=False), tf.function(gradient, autograph=False)
    return {
        "forward": lambda: forward(*tensors)[0].numpy(),
        "both": lambda: both(*tensors)[0].numpy(),
        "forward, eager": lambda: layer(*tensors)[0].numpy(),
        "both, eager": lambda: gradient(*tensors)[0].numpy(),
    }


def measured(call: Callable[[], Any], calls: int) -> float:
    """Median CPU milliseconds of a call, the best of the rounds."""
    best = np.inf
    for _ in range(ROUNDS):
        samples = []
        for _ in range(calls):
            began = time.process_time()
            call()
            samples.append(1e3 * (time.process_time() - began))
        best = min(best, median(samples))
    return round(best, 4)


def main() -> None:
    """Measure and print one line of JSON per framework."""
    table = {"torch": in_torch, "jax": in_jax, "tensorflow": in_tensorflow}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frameworks", nargs="*", default=list(table), help="all by default")
    parser.add_argument("--calls", type=int, default=400)
    arguments = parser.parse_args()
    for name in arguments.frameworks:
        times = {kind: measured(call, arguments.calls) for kind, call in table[name]().items()}
        print(json.dumps({"framework": name, **times}))


if __name__ == "__main__":
    main()
