"""Cones: their projections, the derivatives of these, their duals.

A cone here is a closed convex cone K in R^dim that can do four things for a whole batch at once: `Cone.project` onto itself, give the
`Cone.derivative` of that projection in factored form U diag(values) U' with 0 <= values <= 1, name its `Cone.dual`, and tell by
`Cone.margin` how far a point is from the nearest kink of the projection. The laws that tie these together are stated in ``base``.

- `Zero`, `Free` (its dual), `NonNegative`: entry by entry, of any dimension.
- `SecondOrder`: |z| <= t.
- `Semidefinite`: symmetric matrices, upper triangle column by column, off-diagonal entries times sqrt 2.
- `Exponential`, `Power`: in R^3; their duals are `Dual`.
- `Product`: several of them, one after the other.

All of it is written against the array-API standard and runs on NumPy, PyTorch (float64) and JAX (x64) arrays alike, with a fixed
number of steps and no branch on values. To add a cone, write one class with the four methods and add one row to the table of
tests/test_cones.py, which checks the laws. A cone in R^3 only describes its boundary (``three_dimensional``).
"""

from cvxlayers.cones.base import Block, Cone, Derivative
from cvxlayers.cones.exponential import Exponential
from cvxlayers.cones.linear import Free, NonNegative, Zero
from cvxlayers.cones.power import Power
from cvxlayers.cones.product import Product
from cvxlayers.cones.second_order import SecondOrder
from cvxlayers.cones.semidefinite import Semidefinite
from cvxlayers.cones.three_dimensional import Dual

__all__ = [
    "Block",
    "Cone",
    "Derivative",
    "Dual",
    "Exponential",
    "Free",
    "NonNegative",
    "Power",
    "Product",
    "SecondOrder",
    "Semidefinite",
    "Zero",
]
