"""minimize 1/2 z'Qz + p'z subject to Gz <= h, Az = b, dense, from the parameters; in PyTorch or in jax.numpy."""

from __future__ import annotations

from typing import Any

KINDS = {"optnet": ("Q", "p", "G", "h", "A", "b"), "simplex": ("p",), "box": ("A", "b")}
"""Which workloads have this form, and the parameters that are differentiated."""


def dense_qp(kind: str, given: dict[str, Any], xp: Any) -> tuple[Any, ...]:
    """(Q, p, G, h, A, b), each with the batch axis; A and b are None where there are no equations."""
    if kind == "optnet":
        return tuple(given[name] for name in KINDS[kind])
    first = given[KINDS[kind][0]]
    batch, n = first.shape[0], first.shape[-1]

    def each(array: Any) -> Any:
        return xp.broadcast_to(array, (batch, *array.shape))

    eye, ones = xp.eye(n, dtype=first.dtype), xp.ones(n, dtype=first.dtype)
    if kind == "simplex":
        return each(2 * eye), -2 * given["p"], each(-eye), each(0 * ones), each(ones[None]), each(ones[:1])
    At = xp.swapaxes(given["A"], 1, 2)
    sides = xp.concatenate([eye, -eye]) if hasattr(xp, "concatenate") else xp.cat([eye, -eye])
    bound = xp.concatenate([ones, ones]) if hasattr(xp, "concatenate") else xp.cat([ones, ones])
    return 2 * At @ given["A"], -2 * (At @ given["b"][..., None])[..., 0], each(sides), each(bound), None, None
