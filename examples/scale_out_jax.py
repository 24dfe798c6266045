"""One layer on several devices: a batch sharded with `jax.shard_map`, its gradients equal to those of one device.

Every device makes its own call to the host, for its own share of the rows. Without accelerators XLA can split the CPU into several devices,
which is what happens here.

    python examples/scale_out_jax.py [--rows 20000] [--devices 4] [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import cvxpy as cp
import numpy as np
from tqdm import tqdm


def run(rows: int = 20_000, devices: int = 4, repeats: int = 5) -> dict[str, float]:
    """Project rows on the simplex, sharded and in one piece; returns the differences and the rows per second it prints."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"  # read when JAX starts, so before it is imported
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from cvxlayers.jax import CvxpyLayer

    jax.config.update("jax_enable_x64", True)
    check_devices(len(jax.devices()), devices)
    x, p = cp.Variable(10), cp.Parameter(10)
    constraints: Any = [cp.sum(x) == 1, x >= 0]
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), [p], [x])

    def gradient(points: Any) -> Any:
        return jax.grad(lambda points: (layer(points)[0] ** 2).sum())(points)

    mesh = Mesh(np.array(jax.devices()), ("rows",))
    split = PartitionSpec("rows")
    # JAX's check of what varies over the mesh knows only its own primitives
    sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
    points = np.random.default_rng(0).standard_normal((rows, 10))
    spread = jax.device_put(points, NamedSharding(mesh, split))

    times: dict[str, list[float]] = {"sharded": [], "one device": []}
    found: dict[str, Any] = {}
    for _ in tqdm(range(repeats), desc="gradients"):
        for name, function, argument in (("sharded", sharded, spread), ("one device", jax.jit(gradient), points)):
            began = time.perf_counter()
            found[name] = jax.block_until_ready(function(argument))
            times[name].append(time.perf_counter() - began)
    results = {
        "difference": float(np.max(abs(np.asarray(found["sharded"]) - np.asarray(found["one device"])))),
        "largest gradient": float(np.max(abs(np.asarray(found["one device"])))),
        "shards": float(len(found["sharded"].sharding.device_set)),
        **{f"rows/s, {name}": rows / float(np.median(seconds)) for name, seconds in times.items()},
    }
    print(f"{rows} rows on {devices} devices against one: largest difference of the gradients {results['difference']:.1e}")
    print(f"rows per second: {results['rows/s, sharded']:.0f} sharded, {results['rows/s, one device']:.0f} on one device")
    return results


def check_devices(found: int, wanted: int) -> None:
    """Raise RuntimeError if JAX had started before the number of devices was set."""
    if found != wanted:
        raise RuntimeError(f"JAX runs on {found} devices, wanted {wanted}; it was started before XLA_FLAGS was set")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    run(arguments.rows, arguments.devices, arguments.repeats)
