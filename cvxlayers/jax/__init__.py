"""The JAX adapter: `CvxpyLayer` and `ConicLayer` as functions of JAX arrays, under every transformation."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from cvxlayers.backend import Backend, register
from cvxlayers.jax.layers import ConicLayer, CvxpyLayer
from cvxlayers.jax.verbs import VERBS

__all__ = ["ConicLayer", "CvxpyLayer"]

register(
    Backend(
        "jax",
        lambda x: np.asarray(x, np.complex128 if jnp.iscomplexobj(x) else np.float64),
        lambda x: float(jnp.finfo(x.dtype).eps),
        VERBS,
    )
)
