"""Train through a layer with PyTorch's DistributedDataParallel: several processes, each with its share of every batch.

A linear map predicts the returns of six assets from features, and a layer turns predictions into a portfolio,

    w(mu) = argmin_w  1/2 w'Sw - mu'w   subject to  w >= 0,  sum(w) = 1,

which is trained for the return it would have had, not for the prediction. Nothing is special about a layer in such a model: it has no
weights and no state, so DistributedDataParallel averages the gradients that its backward pass sends to the linear map. The example
repeats the training in one process and compares the averaged gradients of every step, and the weights at the end.

The processes speak gloo over the loopback interface and meet in a file, so there is no port to choose.

    python examples/scale_out_torch.py [--steps 50] [--processes 2]
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cvxlayers.torch import CvxpyLayer

FEATURES, ASSETS, BATCH = 8, 6, 64
TOLERANCE = 1e-10


class Allocator(nn.Module):
    """Features (rows, FEATURES) in, portfolio weights (rows, ASSETS) out."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Linear(FEATURES, ASSETS, dtype=torch.float64)
        factors = np.random.default_rng(0).normal(size=(ASSETS, 3))
        w, mu = cp.Variable(ASSETS), cp.Parameter(ASSETS, name="mu")
        objective = cp.quad_form(w, factors @ factors.T + np.eye(ASSETS)) / 2 - mu @ w
        constraints: Any = [w >= 0, cp.sum(w) == 1]
        self.allocate = CvxpyLayer(cp.Problem(cp.Minimize(objective), constraints), parameters=[mu], variables=[w])

    def forward(self, features: Tensor) -> Tensor:
        (w,) = self.allocate(self.predict(features))
        return w


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    """Features and the returns that followed, the same in every process."""
    generator = torch.Generator().manual_seed(step)
    truth = torch.randn(FEATURES, ASSETS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = torch.randn(BATCH, FEATURES, dtype=torch.float64, generator=generator)
    noise = torch.randn(BATCH, ASSETS, dtype=torch.float64, generator=generator)
    return features, features @ truth + noise


def train(steps: int, rank: int = 0, processes: int = 1) -> dict[str, Any]:
    """Train on share ``rank`` of every batch; returns losses and gradients of all steps, the final weights, and the seconds it took."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each process has of the machine; batches are too small for more
    torch.manual_seed(0)
    model: nn.Module = Allocator()
    if processes > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    share = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    losses, gradients, began = [], [], time.perf_counter()
    with tqdm(range(steps), desc=f"training, {processes} process{'es' * (processes > 1)}", disable=rank > 0) as progress:
        for step in progress:
            features, returns = (part[share] for part in batch_of(step))
            optimizer.zero_grad()
            loss = -(model(features) * returns).sum(dim=1).mean()
            loss.backward()
            losses.append(loss.item())
            gradients.append(flat([p.grad for p in model.parameters()]))
            optimizer.step()
            progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    seconds = time.perf_counter() - began
    torch.set_num_threads(threads)
    weights = flat([p.detach() for p in model.parameters()])
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "gradients": torch.stack(gradients),
        "weights": weights,
        "seconds": seconds,
    }


def flat(tensors: list[Any]) -> Tensor:
    """All entries in one vector, a copy."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def worker(rank: int, steps: int, processes: int, folder: str) -> None:
    """One process of the group; leaves what `train` returned in the folder."""
    for _, interface in socket.if_nameindex():
        if interface in ("lo", "lo0"):  # the loopback interface of Linux and of macOS
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    meeting = (Path(folder) / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes, timeout=timedelta(minutes=2))
    try:
        torch.save(train(steps, rank, processes), Path(folder) / f"{rank}.pt")
        dist.barrier()  # nobody leaves while another is still talking
    finally:
        dist.destroy_process_group()


def run(steps: int = 50, processes: int = 2) -> dict[str, float]:
    """Train in ``processes`` processes and in one, and compare; returns the numbers it prints."""
    if steps < 1 or processes < 2 or BATCH % processes:
        raise ValueError(f"got {steps} steps and {processes} processes; wanted at least 1, and equal shares of {BATCH} rows for 2 or more")
    with tempfile.TemporaryDirectory() as folder:
        # The processes are daemons: they end with this one, and all end when one fails.
        spawn(worker, args=(steps, processes, folder), nprocs=processes, daemon=True)
        many = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]
    one = train(steps)
    results = {
        "gradient difference": max(float((r["gradients"] - one["gradients"]).abs().max()) for r in many),
        "weight difference": max(float((r["weights"] - one["weights"]).abs().max()) for r in many),
        "largest gradient": float(one["gradients"].abs().max()),
        "loss difference": float((torch.stack([r["losses"] for r in many]).mean(0) - one["losses"]).abs().max()),
        "first loss": float(one["losses"][0]),
        "last loss": float(one["losses"][-1]),
        "seconds": max(r["seconds"] for r in many),
        "seconds alone": one["seconds"],
    }
    report(results, steps, processes)
    return results


def agrees(results: dict[str, float]) -> bool:
    """Whether the two trainings are the same within TOLERANCE."""
    return max(results["gradient difference"], results["weight difference"], results["loss difference"]) <= TOLERANCE


def report(results: dict[str, float], steps: int, processes: int) -> None:
    """Print the comparison."""
    print(f"loss {results['first loss']:.3f} -> {results['last loss']:.3f} in {steps} steps of {BATCH} rows")
    print(f"{processes} processes against one, largest differences (wanted: at most {TOLERANCE:.0e}):")
    print(f"  gradients of all steps {results['gradient difference']:.1e} (largest entry {results['largest gradient']:.1e})")
    print(f"  losses of all steps    {results['loss difference']:.1e}")
    print(f"  weights at the end     {results['weight difference']:.1e}")
    print(f"seconds: {results['seconds']:.2f} in {processes} processes, {results['seconds alone']:.2f} in one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if not agrees(run(arguments.steps, arguments.processes)):
        raise SystemExit("the trainings differ")
