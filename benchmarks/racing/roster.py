"""Who races: every contestant, the environment it lives in, and the workloads it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CVXPY = ("optnet", "simplex", "box", "factor", "socp", "logistic", "sdp")
CONIC = (*CVXPY, "mpc")
DENSE = ("optnet", "simplex", "box")
CONTROL = ("mpc", "lqr", "pendulum")


@dataclass(frozen=True)
class Environment:
    """A virtual environment under .peers, made by these steps of ``pip install``; the packages whose versions are reported."""

    name: str
    steps: tuple[str, ...]
    packages: tuple[str, ...]


TORCH = "torch=={torch}"
"""The version of our own environment is filled in, so that peers stand on the same PyTorch."""

ENVIRONMENTS = {
    made.name: made
    for made in (
        Environment(
            "cvxpylayers", (TORCH, "cvxpylayers==1.2.0 moreau==0.4.1 cvxpy=={cvxpy} numpy=={numpy}"), ("cvxpylayers", "diffcp", "moreau")
        ),
        Environment("moreau", (TORCH, "moreau==0.4.1 numpy=={numpy} scipy"), ("moreau",)),
        Environment("qplayer", (TORCH, "proxsuite==0.8.0 numpy=={numpy} scipy"), ("proxsuite",)),
        Environment("qpth", (TORCH, "qpth==0.0.18"), ("qpth",)),
        Environment("mpc", (TORCH, "mpc==0.0.6 numpy<2"), ("mpc",)),
        Environment("qpax", ("qpax==0.1.4",), ("qpax", "jax")),
        Environment("jaxopt", ("jaxopt==0.8.5",), ("jaxopt", "jax")),
        Environment("piqp", ("piqp==0.7.0 numpy=={numpy} scipy",), ("piqp",)),
        Environment("qoco", ("qoco==0.3.2 numpy=={numpy} scipy",), ("qoco",)),
        Environment("daqp", ("daqp==0.11.0 numpy=={numpy} scipy",), ("daqp",)),
        Environment("clarabel", ("clarabel==0.11.1 numpy=={numpy} scipy",), ("clarabel",)),
    )
}


@dataclass(frozen=True)
class Contestant:
    """A library in one configuration; ``environment`` is None for ours, ``module`` its file in `racing.contestants`.

    ``peer`` names the library that a goal may be stated against; ``keys``, where given, are the only workloads raced.
    """

    name: str
    module: str
    kinds: tuple[str, ...]
    environment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: str = ""
    keys: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return self.environment is None and not self.peer

    def takes(self, key: str, kind: str) -> bool:
        return kind in self.kinds and (not self.keys or key in self.keys)


def _theirs(name: str, kinds: tuple[str, ...] = CVXPY, **options: Any) -> Contestant:
    return Contestant(name, "cvxpy_layer", kinds, "cvxpylayers", {"module": "cvxpylayers.torch", **options}, "cvxpylayers")


def _raw(name: str, library: str, kinds: tuple[str, ...]) -> Contestant:
    return Contestant(name, "raw", kinds, library, {"library": library}, library)


OURS = (
    Contestant("cvxlayers CvxpyLayer", "cvxpy_layer", CVXPY, options={"module": "cvxlayers.torch"}),
    Contestant("cvxlayers ConicLayer", "conic_layer", CONIC),
    Contestant("cvxlayers.control", "our_control", CONTROL),
    Contestant("cvxlayers.topk", "our_control", ("lml",)),
    Contestant("cvxlayers CvxpyLayer", "building", ("build",), options={"module": "cvxlayers.torch"}),
)

PEERS = (
    _theirs("cvxpylayers", root=True),
    _theirs("cvxpylayers [Clarabel]", root=True, solver_args={"solve_method": "Clarabel"}),
    _theirs("cvxpylayers [MOREAU]", solver="MOREAU", twice=True),
    Contestant("moreau.torch", "moreau_torch", CONIC, "moreau", {}, "moreau"),
    Contestant("moreau.torch, interior point", "moreau_torch", (*DENSE, "mpc"), "moreau", {"solver": "ipm"}, "moreau"),
    Contestant("proxsuite QPLayer", "dense_layers", DENSE, "qplayer", {"library": "proxsuite"}, "proxsuite"),
    Contestant("qpth", "dense_layers", DENSE, "qpth", {"library": "qpth"}, "qpth"),
    Contestant("qpax", "jax_layers", DENSE, "qpax", {"library": "qpax"}, "qpax"),
    Contestant("jaxopt OSQP", "jax_layers", DENSE, "jaxopt", {"library": "jaxopt"}, "jaxopt"),
    _raw("PIQP, solver only", "piqp", ("optnet", "simplex", "box", "factor", "mpc")),
    _raw("QOCO, solver only", "qoco", ("optnet", "simplex", "box", "factor", "mpc")),
    _raw("DAQP, solver only", "daqp", DENSE),
    _raw("Clarabel, solver only", "clarabel", CONIC),
    Contestant("mpc.pytorch", "mpc_pytorch", ("mpc", "lqr"), "mpc", {}, "mpc.pytorch"),
    Contestant("mpc.pytorch, one iteration", "mpc_pytorch", ("lqr",), "mpc", {"iterations": 1}, "mpc.pytorch"),
    Contestant("mpc.pytorch, 30 iterations", "mpc_pytorch", ("pendulum",), "mpc", {"iterations": 30}, "mpc.pytorch"),
    Contestant("bisection as published, eps 1e-4", "bisection", ("lml",), None, {"eps": 1e-4}, "lml"),
    Contestant("bisection as published, eps 1e-10", "bisection", ("lml",), None, {"eps": 1e-10}, "lml"),
    Contestant("cvxpylayers", "building", ("build",), "cvxpylayers", {"module": "cvxpylayers.torch"}, "cvxpylayers"),
    Contestant("CVXPY itself, no layer", "building", ("build",), None, {"module": "cvxpy"}, "cvxpy"),
)


def named_solvers(names: list[str]) -> tuple[Contestant, ...]:
    """Our layers with solvers asked for by name, besides the default."""
    return tuple(
        made
        for name in names
        for made in (
            Contestant(f"cvxlayers CvxpyLayer [{name}]", "cvxpy_layer", CVXPY, options={"module": "cvxlayers.torch", "solver": name}),
            Contestant(f"cvxlayers ConicLayer [{name}]", "conic_layer", CONIC, options={"solver": name}),
        )
    )
