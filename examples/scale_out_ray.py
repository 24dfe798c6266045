"""Map a large batch through a layer on a local Ray cluster, chunk by chunk.

A layer can be pickled, so it is built once and shipped once to every worker; the rows follow in chunks. A row's solution does not depend
on its neighbours, hence the result is that of one call on the whole batch, bit for bit, which the example checks. The problem is a
portfolio of five assets,

    w(mu) = argmin_w  1/2 w'Sw - mu'w   subject to  w >= 0,  sum(w) = 1,

for a hundred thousand predictions mu. The cluster lives on the loopback interface of this machine and ends with the example; on a cluster
that is already there only the call of ray.init differs.

    python examples/scale_out_ray.py [--rows 100000] [--chunk 5000] [--workers 2]
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cvxpy as cp
import numpy as np
from tqdm import tqdm

# Read when Ray is imported: listen on 127.0.0.1 alone (the name stands for more than it says), send no reports, spare us a warning.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
import ray
from ray.util import ActorPool

from cvxlayers.torch import CvxpyLayer

ASSETS = 5
STORE = 200 * 2**20  # bytes of shared memory for arrays under way


def build_layer() -> CvxpyLayer:
    """Predicted returns in, portfolio weights out."""
    factors = np.random.default_rng(0).normal(size=(ASSETS, 3))
    w, mu = cp.Variable(ASSETS), cp.Parameter(ASSETS, name="mu")
    objective = cp.quad_form(w, factors @ factors.T + np.eye(ASSETS)) / 2 - mu @ w
    constraints: Any = [w >= 0, cp.sum(w) == 1]
    return CvxpyLayer(cp.Problem(cp.Minimize(objective), constraints), parameters=[mu], variables=[w])


class Solver:
    """What lives in a worker: the layer."""

    def __init__(self, layer: CvxpyLayer) -> None:
        self.layer = layer

    def solve(self, mu: np.ndarray) -> np.ndarray:
        """mu (rows, ASSETS) -> w (rows, ASSETS)."""
        (w,) = self.layer(mu)
        return w.numpy()


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """A quiet Ray cluster of this process alone."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=STORE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()


def run(rows: int = 100_000, chunk: int = 5_000, workers: int = 2) -> dict[str, float]:
    """Solve in ``workers`` processes and in one call, and compare; returns the numbers it prints."""
    if min(rows, chunk, workers) < 1:
        raise ValueError(f"got rows {rows}, chunk {chunk}, workers {workers}; wanted positive numbers")
    mu = np.random.default_rng(1).normal(size=(rows, ASSETS))
    layer, began = build_layer(), time.perf_counter()
    with cluster(workers):
        remote: Any = ray.remote(num_cpus=1)(Solver)
        shared = ray.put(layer)
        solvers = [remote.remote(shared) for _ in range(workers)]
        ray.get([solver.solve.remote(mu[:1]) for solver in solvers])  # all have imported what they need
        start = time.perf_counter() - began

        began = time.perf_counter()
        chunks = [mu[first : first + chunk] for first in range(0, rows, chunk)]
        parts = []
        with tqdm(total=rows, desc=f"{workers} Ray worker{'s' * (workers > 1)}", unit=" rows") as progress:
            for part in ActorPool(solvers).map(lambda solver, some: solver.solve.remote(some), chunks):
                parts.append(part)
                progress.update(len(part))
        mapped = np.concatenate(parts)
        seconds = time.perf_counter() - began
        del parts, part  # they lie in the cluster's memory

    began = time.perf_counter()
    (whole,) = layer(mu)
    alone = time.perf_counter() - began
    results = {
        "difference": float(np.abs(mapped - whole.numpy()).max()),
        "rows/s": rows / seconds,
        "rows/s in one call": rows / alone,
        "seconds to start": start,
    }
    report(results, rows, chunk, workers)
    return results


def report(results: dict[str, float], rows: int, chunk: int, workers: int) -> None:
    """Print the comparison."""
    print(f"{rows} rows in chunks of {chunk} through {workers} Ray workers: {results['rows/s']:.0f} rows/s")
    print(f"in one call of the layer, without Ray: {results['rows/s in one call']:.0f} rows/s")
    print(f"largest difference {results['difference']:.1e}; starting the cluster took {results['seconds to start']:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--chunk", type=int, default=5_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if run(arguments.rows, arguments.chunk, arguments.workers)["difference"] > 0:
        raise SystemExit("the results differ")
