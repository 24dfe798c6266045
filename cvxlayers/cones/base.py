"""What a cone is to this library: its projection, the derivative of the projection, and its dual.

For a closed convex cone K in R^dim, with K* = {y : y's >= 0 for all s in K}, every implementation obeys these laws
(tests/test_cones.py checks them on each class):

    project(project(v)) == project(v)                                  idempotence
    v == project(v) - dual().project(-v)                               Moreau: an orthogonal splitting, project(v)' dual().project(-v) == 0
    D = derivative(v) is symmetric, 0 <= D <= I                        the projection is the gradient of 1/2 |project(v)|^2
    derivative of project along w == derivative(v).apply(w)            wherever project is differentiable
    dual().derivative(v) + derivative(-v) == I                         Moreau, differentiated

All methods take arrays (*batch, dim) of any array-API namespace and keep batch axes in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

Array = Any


@dataclass(frozen=True)
class Block:
    """Orthogonal eigenvectors of ``count`` consecutive diagonal blocks of equal size.

    ``vectors`` is (*batch, count, size, size), eigenvectors in columns; the blocks cover coordinates start ... start + count * size.
    """

    start: int
    count: int
    size: int
    vectors: Array


@dataclass(frozen=True)
class Derivative:
    """A symmetric matrix D = U diag(values) U' with 0 <= values <= 1 and U block diagonal and orthogonal.

    ``values`` is (*batch, dim); ``blocks`` come in ascending order. Coordinates that no block covers have U = I there: linear cones
    need no blocks at all. At a point where the projection has a kink this is one element of its generalized (Clarke) Jacobian.
    """

    values: Array
    blocks: tuple[Block, ...] = ()

    def apply(self, w: Array) -> Array:
        """D w for w (*batch, dim)."""
        return self.rotate(self.values * self.rotate(w, transpose=True))

    def rotate(self, w: Array, transpose: bool = False) -> Array:
        """U w, or U' w, for w (*batch, dim)."""
        if not self.blocks:
            return w
        xp = array_namespace(w)
        batch, pieces, end = w.shape[:-1], [], 0
        for block in self.blocks:
            stop = block.start + block.count * block.size
            if block.start > end:
                pieces.append(w[..., end : block.start])
            vectors = xp.matrix_transpose(block.vectors) if transpose else block.vectors
            columns = xp.reshape(w[..., block.start : stop], (*batch, block.count, block.size, 1))
            pieces.append(xp.reshape(vectors @ columns, (*batch, stop - block.start)))
            end = stop
        if end < w.shape[-1]:
            pieces.append(w[..., end:])
        return pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=-1)


class Cone(ABC):
    """A closed convex cone in R^dim; the laws stand in the module's docstring. Instances are frozen and hashable."""

    dim: int

    @property
    def twice(self) -> bool:
        """Whether `second` is known."""
        return False

    @abstractmethod
    def project(self, v: Array) -> Array:
        """The point of the cone nearest to v; v and the result are (*batch, dim)."""

    @abstractmethod
    def derivative(self, v: Array) -> Derivative:
        """The derivative of `project` at v (*batch, dim), with no block or one that covers all coordinates (`Product` has more)."""

    @abstractmethod
    def dual(self) -> Cone:
        """The dual cone K* = {y : y's >= 0 for all s in K}."""

    @abstractmethod
    def margin(self, v: Array) -> Array:
        """How far v (*batch, dim) is from the nearest kink of `project`: (*batch), zero on a kink, homogeneous of degree one."""

    def linearize(self, v: Array) -> tuple[Derivative, Array]:
        """``derivative(v), margin(v)``, with what they share done once."""
        return self.derivative(v), self.margin(v)

    def second(self, v: Array, a: Array, b: Array) -> Array:
        """The second derivative of `project` at v along a and b, bilinear and symmetric in them; all (*batch, dim).

        Cones that know it say so by ``twice``. Raises ValueError elsewhere.
        """
        raise ValueError(f"the projection on {self} has no second derivative here; only linear and second-order cones have one")
