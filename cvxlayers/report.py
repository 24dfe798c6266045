"""One look at a layer's answer and its derivative at given parameters, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cvxlayers.host import Options
from cvxlayers.layer import Layer
from cvxlayers.program import Solution


@dataclass(frozen=True)
class Diagnosis:
    """What can be said of every row, (*batch) each.

    ``status`` (`Status` codes), ``primal_residual``, ``dual_residual``, ``gap``: as in `Info`. ``margin``: the strict complementarity
    margin, the distance of y - s from the nearest kink of the cones' projections relative to 1 + |y - s|; near zero the solution map has
    one-sided derivatives only. ``adjoint_residual``: the relative residual of the adjoint system for a generic gradient of the layer's
    variables; far above rounding, the solution is not unique. ``fallback``: whether the minimum-norm least-squares solution was taken.
    """

    status: np.ndarray
    primal_residual: np.ndarray
    dual_residual: np.ndarray
    gap: np.ndarray
    margin: np.ndarray
    adjoint_residual: np.ndarray
    fallback: np.ndarray

    def __str__(self) -> str:
        from cvxlayers.errors import Status

        lines = [f"{'row':>5} {'status':<18} {'primal':>8} {'dual':>8} {'gap':>8} {'margin':>8} {'adjoint':>8} fallback"]
        columns = (self.status, self.primal_residual, self.dual_residual, self.gap, self.margin, self.adjoint_residual, self.fallback)
        for row, values in enumerate(zip(*(c.reshape(-1) for c in columns), strict=True)):
            status, *numbers, fallback = values
            cells = " ".join(f"{v:8.1e}" for v in numbers)
            lines.append(f"{row:>5} {Status(int(status)).name:<18} {cells} {'yes' if fallback else 'no'}")
        return "\n".join(lines)


def diagnose(layer: Any, *params: Any, solver_args: Any = None) -> Diagnosis:
    """Solve, differentiate, and report how far each row and its derivative can be trusted.

    ``layer`` is a CvxpyLayer of any framework, ``params`` what it would be called with. Failed rows are reported, never raised. Raises
    ValueError for parameters that do not fit the layer.

    >>> import cvxpy as cp, numpy as np, cvxlayers
    >>> from cvxlayers.torch import CvxpyLayer
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x])
    >>> report = cvxlayers.diagnose(layer, np.array([[1.0, -1.0], [1.0, 0.0]]))
    >>> report.margin > 1e-6
    array([ True, False])
    """
    core: Layer = layer.core
    _, info, saved = core.forward(params, Options(solver_args, on_failure="nan"))
    rows = len(saved.solution.x)
    # A fixed generic direction: a random one meets every null space with probability one, a fixed seed keeps the report repeatable.
    canonical, pattern = core.canonical, core.canonical.pattern
    probe = np.random.default_rng(0).standard_normal((sum(spec.size for spec in canonical.variables), 1))
    pulled = np.broadcast_to((canonical.R.T @ probe).T, (rows, pattern.n + pattern.m))
    cotangent = Solution(pulled[:, : pattern.n], pulled[:, pattern.n :], np.zeros((rows, pattern.m)))
    certificate = core.conic.certify(core.program(saved), saved.solution, cotangent)
    shape = info.status.shape
    per_row = (certificate.margin, certificate.residual, certificate.fallback)
    return Diagnosis(info.status, info.primal_residual, info.dual_residual, info.gap, *(a.reshape(shape) for a in per_row))
