"""Layers for dense quadratic programs in JAX, compiled and mapped over the batch: qpax and jaxopt (OSQP), in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from racing.contestants.case import Case
from racing.forms.dense_qp import KINDS, dense_qp
from racing.workload import Workload


def load(workload: Workload, data: dict[str, np.ndarray], library: str) -> Case:
    """``library``: "qpax" or "jaxopt"."""
    if workload.kind not in KINDS:
        raise NotImplementedError("raced on dense QPs only")
    jax.config.update("jax_enable_x64", True)
    row = {"qpax": _qpax, "jaxopt": _jaxopt}[library]()
    given = {name: jnp.asarray(data[name]) for name in KINDS[workload.kind]}
    weights = jnp.asarray(data["weights"])

    def answer(given: dict[str, Any]) -> Any:
        Q, p, G, h, A, b = dense_qp(workload.kind, given, jnp)
        if A is None:
            A, b = jnp.zeros((len(Q), 0, Q.shape[-1])), jnp.zeros((len(Q), 0))
        return jax.vmap(row)(Q, p, G, h, A, b)

    def loss(given: dict[str, Any]) -> tuple[Any, Any]:
        x = answer(given)
        return (x * weights).sum(), x

    forward, gradient = jax.jit(answer), jax.jit(jax.grad(loss, has_aux=True))

    def both() -> tuple[Any, dict[str, Any]]:
        gradients, x = jax.block_until_ready(gradient(given))
        return x, gradients

    return Case(lambda: jax.block_until_ready(forward(given)), both)


def _qpax() -> Any:
    import qpax  # pyright: ignore[reportMissingImports]

    return lambda Q, p, G, h, A, b: qpax.solve_qp_primal(Q, p, A, b, G, h)


def _jaxopt() -> Any:
    import jaxopt  # pyright: ignore[reportMissingImports]

    solver = jaxopt.OSQP(tol=1e-6)  # its own 1e-3 is wrong by as much

    def row(Q: Any, p: Any, G: Any, h: Any, A: Any, b: Any) -> Any:
        equations = (A, b) if len(b) else None
        return solver.run(params_obj=(Q, p), params_eq=equations, params_ineq=(G, h)).params.primal

    return row
