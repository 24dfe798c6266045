"""The laws of cvxlayers/cones/base.py, for every cone: one row in CONES per cone, one test per law."""

import warnings
from typing import Any

import jax
import numpy as np
import pytest
import torch
from mpmath import mp

from cvxlayers.cones import Cone, Dual, Exponential, Free, NonNegative, Power, Product, SecondOrder, Semidefinite, Zero, three_dimensional

MIXED = Product(
    (Zero(2), NonNegative(3), SecondOrder(3), SecondOrder(3), SecondOrder(1), Semidefinite(2), Semidefinite(2))
    + (Exponential(), Exponential(), Power(0.3), Power(0.3), Power(0.6))
)

CONES: list[Cone] = [
    *(Zero(0), Zero(3), Free(0), Free(3), NonNegative(0), NonNegative(4)),
    *(SecondOrder(1), SecondOrder(2), SecondOrder(3), SecondOrder(8)),
    *(Semidefinite(1), Semidefinite(2), Semidefinite(3), Semidefinite(5)),
    *(Exponential(), Exponential().dual()),
    *(Power(0.2), Power(0.5), Power(0.83), Power(0.2).dual(), Power(0.5).dual(), Power(0.83).dual()),
    *(Product(()), Product((Zero(1), NonNegative(2))), Product((SecondOrder(3), Free(2), Exponential(), NonNegative(2)))),
    *(MIXED, MIXED.dual()),
]

CURVED = [Exponential(), Exponential().dual(), Power(0.2), Power(0.5), Power(0.83), Power(0.2).dual(), Power(0.83).dual()]

TWICE = Product((Zero(1), NonNegative(2), SecondOrder(3), SecondOrder(3), SecondOrder(5), Free(2)))
CONES.append(TWICE)

every_cone = pytest.mark.parametrize("cone", CONES, ids=lambda cone: str(cone)[:50])
curved_cone = pytest.mark.parametrize("cone", CURVED, ids=str)


@pytest.fixture(autouse=True)
def no_warnings():
    """Overflow, division by zero and invalid operations are errors in all of these tests."""
    with np.errstate(over="raise", divide="raise", invalid="raise"), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.fixture(params=["compiled", "arrays"])
def each_text(request, monkeypatch):
    """Cones in R^3 are one text: NumPy arrays meet what is compiled from it, those of other frameworks the text itself."""
    if request.param == "arrays":
        monkeypatch.setattr(three_dimensional, "kernels", lambda name: None)


both_texts = pytest.mark.usefixtures("each_text")


def points(cone: Cone, count: int, seed: int = 0, decades: float = 0.0) -> np.ndarray:
    """Random points (count, dim), each coordinate also scaled by up to 10^-decades."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, cone.dim)) * 10 ** rng.uniform(-decades, 0, (count, cone.dim))


def matrix(cone: Cone, v: np.ndarray) -> np.ndarray:
    """The derivative at v (*batch, dim) as a matrix (*batch, dim, dim)."""
    derivative = cone.derivative(v)
    columns = [derivative.apply(np.broadcast_to(axis, v.shape)) for axis in np.eye(cone.dim)]
    return np.stack(columns, axis=-1) if columns else np.zeros((*v.shape, 0))


def orthogonal(cone: Cone, v: np.ndarray) -> np.ndarray:
    """U of the derivative at v as a matrix."""
    derivative = cone.derivative(v)
    columns = [derivative.rotate(np.broadcast_to(axis, v.shape)) for axis in np.eye(cone.dim)]
    return np.stack(columns, axis=-1) if columns else np.zeros((*v.shape, 0))


def in_exponential(x, y, z) -> bool:
    return (x * 1.0 <= y * np.log(z / y)) if y > 0 and z > 0 else (y == 0 and x <= 0 and z >= 0)


def contains(cone: Cone, s: np.ndarray, slack: float) -> bool:
    """Whether s (dim) lies within about ``slack`` of the cone, from the cone's definition alone.

    s is first moved by ``slack`` into the cone, so that rounding of s, not of the defining inequality, is what is forgiven.
    """
    match cone:
        case Zero():
            return bool((np.abs(s) <= slack).all())
        case Free():
            return True
        case NonNegative():
            return bool((s >= -slack).all())
        case SecondOrder():
            return bool(np.linalg.norm(s[1:]) <= s[0] + slack)
        case Semidefinite(order=order):
            X = np.zeros((order, order))
            places = [(i, j) for j in range(order) for i in range(j + 1)]
            for value, (i, j) in zip(s, places, strict=True):
                X[i, j] = X[j, i] = value if i == j else value / np.sqrt(2)
            return bool(np.linalg.eigvalsh(X).min() >= -slack)
        case Exponential():
            return bool(in_exponential(s[0] - slack, s[1] + slack, s[2] + slack))
        case Power(alpha=alpha):
            x, y = s[0] + slack, s[1] + slack
            return bool(x >= 0 and y >= 0 and abs(s[2]) <= x**alpha * y ** (1 - alpha) + slack)
        case Dual(cone=Exponential()):
            # u < 0, -u exp(v/u) <= e w is the exponential cone's inequality for (u - v, -u, w)
            return contains(Exponential(), np.array([s[0] - s[1], -s[0], s[2]]), 2 * slack)
        case Dual(cone=Power(alpha=alpha)):
            return contains(Power(alpha), np.array([s[0] / alpha, s[1] / (1 - alpha), s[2]]), slack / min(alpha, 1 - alpha))
        case Product(cones=cones):
            ends = np.cumsum([part.dim for part in cones])
            return all(contains(part, s[end - part.dim : end], slack) for part, end in zip(cones, ends, strict=True))
    raise TypeError(f"no definition of {cone}")


def check_optimality(cone: Cone, v: np.ndarray, tolerance: float) -> None:
    """p = project(v) solves the projection problem: p in K, p - v in K*, p orthogonal to p - v; per row, relative to |v|."""
    scale = np.maximum(np.abs(v).max(axis=-1, initial=0.0), 1e-300)
    v = v / scale[:, None]
    p = cone.project(v)
    q = p - v
    assert np.isfinite(p).all()
    assert (np.abs((p * q).sum(axis=-1)) <= tolerance * max(cone.dim, 1)).all()
    for row in range(len(v)):
        assert contains(cone, p[row], tolerance), (v[row], p[row])
        assert contains(cone.dual(), q[row], tolerance), (v[row], q[row])


# ---- the projection


@every_cone
def test_projection_is_optimal(cone):
    check_optimality(cone, np.concatenate([points(cone, 60), points(cone, 60, 1, decades=8)]), 1e-14)


@every_cone
def test_projection_is_idempotent(cone):
    p = cone.project(points(cone, 200, decades=2))
    np.testing.assert_allclose(cone.project(p), p, rtol=0, atol=1e-14)


@every_cone
def test_moreau(cone):
    v = points(cone, 200, decades=2)
    p, q = cone.project(v), cone.dual().project(-v)
    np.testing.assert_allclose(p - q, v, rtol=0, atol=1e-14)
    np.testing.assert_allclose((p * q).sum(axis=-1), 0, atol=1e-13)


@every_cone
@pytest.mark.parametrize("factor", [1e-8, 1e-3, 3.0, 1e8])
def test_projection_is_homogeneous(cone, factor):
    v = points(cone, 100)
    np.testing.assert_allclose(cone.project(factor * v) / factor, cone.project(v), rtol=0, atol=2e-14)
    np.testing.assert_allclose(cone.margin(factor * v) / factor, cone.margin(v), rtol=1e-9, atol=2e-14)
    np.testing.assert_allclose(matrix(cone, factor * v), matrix(cone, v), rtol=0, atol=1e-12)


@every_cone
def test_dual_of_dual(cone):
    assert cone.dual().dual() == cone
    assert hash(cone.dual().dual()) == hash(cone)
    assert cone.dual().dim == cone.dim


# ---- the derivative


@every_cone
def test_derivative_against_differences(cone):
    v, w = points(cone, 400), points(cone, 400, 1)
    h = 2e-4
    # a stencil that reaches over a kink says nothing
    keep = cone.margin(v) > 0.1
    v, w = v[keep], w[keep]
    assert len(v) >= 10 or cone.dim > 20
    shifted = {k: cone.project(v + k * h * w) for k in (-2, -1, 1, 2)}
    differences = (8 * (shifted[1] - shifted[-1]) - (shifted[2] - shifted[-2])) / (12 * h)
    # the stencil's own error: 1e-15/h from rounding, h^4 = 2e-15 times a fifth derivative that grows like margin^-4 from truncation
    np.testing.assert_allclose(cone.derivative(v).apply(w), differences, rtol=0, atol=2e-9)


@every_cone
def test_derivative_is_a_symmetric_contraction(cone):
    v = points(cone, 100, decades=3)
    D, U, values = matrix(cone, v), orthogonal(cone, v), cone.derivative(v).values
    transposed = np.swapaxes(U, -1, -2)
    np.testing.assert_allclose(D, np.swapaxes(D, -1, -2), rtol=0, atol=1e-14)
    np.testing.assert_allclose(U @ transposed, np.broadcast_to(np.eye(cone.dim), U.shape), rtol=0, atol=1e-14)
    np.testing.assert_allclose((U * values[..., None, :]) @ transposed, D, rtol=0, atol=1e-14)
    assert values.shape == v.shape and (values >= 0).all() and (values <= 1).all()


@every_cone
def test_derivative_reproduces_the_projection(cone):
    # Euler: project is homogeneous of degree one, so D v = project(v), everywhere
    v = points(cone, 200, decades=6)
    np.testing.assert_allclose(cone.derivative(v).apply(v), cone.project(v), rtol=0, atol=2e-14)


@every_cone
def test_derivatives_of_cone_and_dual_sum_to_identity(cone):
    v = points(cone, 100)
    total = matrix(cone, v) + matrix(cone.dual(), -v)
    np.testing.assert_allclose(total, np.broadcast_to(np.eye(cone.dim), total.shape), rtol=0, atol=1e-13)


@every_cone
def test_rotate_inverts_its_transpose(cone):
    v, w = points(cone, 20), points(cone, 20, 1)
    derivative = cone.derivative(v)
    np.testing.assert_allclose(derivative.rotate(derivative.rotate(w, transpose=True)), w, rtol=0, atol=1e-14)


# ---- the second derivative


@every_cone
def test_second_derivative_against_differences_or_refused(cone):
    v, a, b = points(cone, 400), points(cone, 400, 1), points(cone, 400, 2)
    if not cone.twice:
        with pytest.raises(ValueError, match="no second derivative"):
            cone.second(v, a, b)
        return
    keep = cone.margin(v) > 0.1
    v, a, b = v[keep], a[keep], b[keep]
    h = 2e-4
    shifted = {k: cone.derivative(v + k * h * b).apply(a) for k in (-2, -1, 1, 2)}
    differences = (8 * (shifted[1] - shifted[-1]) - (shifted[2] - shifted[-2])) / (12 * h)
    np.testing.assert_allclose(cone.second(v, a, b), differences, rtol=0, atol=1e-8)  # one order less smooth than the first derivative
    np.testing.assert_allclose(cone.second(v, a, b), cone.second(v, b, a), rtol=0, atol=1e-12)
    # Euler: the derivative is homogeneous of degree zero
    np.testing.assert_allclose(cone.second(v, a, v), 0, atol=1e-12)


# ---- batches and namespaces


@every_cone
def test_batch_equals_loop_bitwise(cone):
    v, w = points(cone, 12, decades=3), points(cone, 12, 1)
    derivative = cone.derivative(v)
    for row in range(len(v)):
        alone = cone.derivative(v[row])
        assert (cone.project(v[row]) == cone.project(v)[row]).all()
        assert (cone.margin(v[row]) == cone.margin(v)[row]).all()
        assert (alone.values == derivative.values[row]).all()
        assert (alone.apply(w[row]) == derivative.apply(w)[row]).all()


@every_cone
@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 3)])
def test_batch_axes_lead(cone, batch):
    v = points(cone, int(np.prod(batch))).reshape(*batch, cone.dim)
    derivative = cone.derivative(v)
    assert cone.project(v).shape == derivative.values.shape == derivative.apply(v).shape == v.shape
    assert cone.margin(v).shape == batch
    for block in derivative.blocks:
        assert block.vectors.shape == (*batch, block.count, block.size, block.size)


@every_cone
def test_torch_agrees(cone):
    v, w = points(cone, 30, decades=3), points(cone, 30, 1)
    results = outputs(cone, torch.from_numpy(v), torch.from_numpy(w))
    assert all(result.dtype == torch.float64 for result in results)
    for other, expected in zip(results, outputs(cone, v, w), strict=True):
        np.testing.assert_allclose(other.numpy(), expected, rtol=0, atol=1e-12)


def test_jax_agrees():
    """Compiled, which proves that no branch depends on values; one cone that holds all classes, as compiling takes seconds."""
    cone = Product((NonNegative(2), SecondOrder(3), SecondOrder(3), Semidefinite(3), Exponential(), Power(0.3).dual(), Zero(1), Free(1)))
    v, w = points(cone, 30, decades=3), points(cone, 30, 1)
    with jax.enable_x64(True):
        results = jax.jit(lambda v, w: outputs(cone, v, w))(jax.numpy.asarray(v), jax.numpy.asarray(w))
        assert all(result.dtype == np.float64 for result in results)
    for other, expected in zip(results, outputs(cone, v, w), strict=True):
        np.testing.assert_allclose(np.asarray(other), expected, rtol=0, atol=1e-12)


def outputs(cone, v, w):
    return cone.project(v), cone.derivative(v).apply(w), cone.margin(v)


# ---- special and hard points


@every_cone
def test_special_points(cone):
    """Zero, axes and coordinate planes: finite values, an optimal projection, a derivative that obeys its laws."""
    axes = np.eye(cone.dim)
    planes = (axes[:, None] - axes[None, :]).reshape(cone.dim**2, cone.dim)[:: 1 + cone.dim // 10]
    ones = np.ones((1, cone.dim))
    v = np.concatenate([0 * ones, ones, -ones, axes, -axes, planes])
    v = np.concatenate([v, 1e-8 * v, 1e8 * v])
    check_optimality(cone, v, 1e-14)
    derivative, U = cone.derivative(v), orthogonal(cone, v)
    assert np.isfinite(U).all() and (derivative.values >= 0).all() and (derivative.values <= 1).all()
    np.testing.assert_allclose(U @ np.swapaxes(U, -1, -2), np.broadcast_to(np.eye(cone.dim), U.shape), rtol=0, atol=1e-14)
    assert (cone.margin(v) >= 0).all()


HARD = [
    *[(1.0, 1e-9, 1.0), (100.0, -1.0, 1e-3), (-1e3, 1.0, 1.0), (50.0, 2.0, -3.0), (1.0, 1.0, 1.0), (1e-9, 1.0, 1e-9)],
    *[(-1e-9, 1.0, -1e-9), (1e8, 1e-8, 1.0), (-1e8, 1e-8, -1.0), (1e-8, -1e8, 1e8), (1e-8, 1e8, -1e8), (-1e-8, -1e8, 1e8)],
    *[(1.0, -30.0, 1e-8), (-30.0, 1.0, -1e-8), (-20.0, 1.0, 1e-9), (1e-300, 1.0, -1.0), (1.0, 1e-300, -1.0), (700.0, 1.0, -1e8)],
    *[(-1.0, 1e-300, -1e-300), (1e-300, -1.0, 1.0), (1e-310, -1e-310, -1.0), (1e300, -1e300, 1e300), (1e-300, 1e-300, 1e-301)],
    *[(-1.0, 1.0, 1e-310), (-1e-3, 1e3, 1e-200), (1.0, 2.0, 1e-15)],
]


@both_texts
@curved_cone
def test_hard_points(cone):
    v = np.array(HARD)
    v = np.concatenate([v, -v, v[:, [1, 0, 2]], v * [1, 1, -1]])
    check_optimality(cone, v, 1e-14)
    U, values = orthogonal(cone, v), cone.derivative(v).values
    np.testing.assert_allclose(U @ np.swapaxes(U, -1, -2), np.broadcast_to(np.eye(3), U.shape), rtol=0, atol=1e-14)
    assert (values >= 0).all() and (values <= 1).all()
    scaled = v / np.abs(v).max(axis=-1, keepdims=True)
    np.testing.assert_allclose(cone.derivative(v).apply(scaled), cone.project(scaled), rtol=0, atol=1e-14)


@both_texts
@curved_cone
@pytest.mark.parametrize("decades", [0.0, 8.0, 100.0, 320.0])
def test_what_is_compiled_is_the_text(cone, decades, monkeypatch):
    """To rounding, at random points of all sizes, at the hard ones and beside the boundaries of the cone and its polar."""
    v = points(cone, 1001, 5, decades)
    p, q = cone.project(v), cone.dual().project(-v)
    hard = np.array(HARD)
    v = np.concatenate([v, p, -q, p * (1 + 1e-15), p - 1e-13 * q, 1e-13 * p - q, hard, -hard, 0 * hard[:1]])
    v = v[np.abs(v).max(axis=-1) < 1e300]
    compiled = cone.project(v), matrix(cone, v), cone.margin(v)
    monkeypatch.setattr(three_dimensional, "kernels", lambda name: None)
    text = cone.project(v), matrix(cone, v), cone.margin(v)
    size = np.abs(v).max(axis=-1)
    assert (np.abs(compiled[0] - text[0]).max(axis=-1) <= 1e-14 * size).all()
    assert (np.abs(compiled[2] - text[2]) <= 1e-14 * size).all()
    # on a kink, and where the curvature changes within the rounding of the point, either derivative is right
    apart = np.abs(compiled[1] - text[1]).max(axis=(-2, -1))
    assert (apart[text[2] > 1e-6 * size] <= 1e-12).all()


@curved_cone
def test_what_is_compiled_takes_any_layout(cone):
    v = points(cone, 24).reshape(4, 3, 2, 3)
    wanted = cone.project(v), cone.derivative(v).values, cone.margin(v)
    fixed = v.copy()
    fixed.flags.writeable = False
    for other in (fixed, np.asfortranarray(v), np.concatenate([v, v], axis=-1)[..., :3], v[::-1].copy()[::-1]):
        for found, expected in zip((cone.project(other), cone.derivative(other).values, cone.margin(other)), wanted, strict=True):
            assert (found == expected).all()
    broken = v.copy()
    broken[1, 2, 0, 1], broken[3, 0, 1, 2] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        found = cone.project(broken)
    good = np.isfinite(broken).all(axis=-1)
    assert (found[good] == wanted[0][good]).all()
    assert not np.isfinite(found[~good]).all(axis=-1).any()


@both_texts
@curved_cone
@pytest.mark.parametrize("decades", [0.0, 8.0, 16.0, 100.0])
def test_many_ratios(cone, decades):
    check_optimality(cone, points(cone, 1500, 2, decades), 1e-14)


@both_texts
@curved_cone
@pytest.mark.parametrize("distance", [1e-4, 1e-8, 1e-12])
def test_close_to_cone_and_polar(cone, distance):
    """Between K and its polar U depends on p/|p| and q/|q| alone, and with D = 1/(1 + k) there k is proportional to |q|/|p|."""
    v = points(cone, 400, 3)
    p, q = cone.project(v), cone.dual().project(-v)
    lengths = np.stack([np.linalg.norm(p, axis=-1), np.linalg.norm(q, axis=-1)])
    U, values = orthogonal(cone, v), cone.derivative(v).values
    middle = np.sort(values, axis=-1)[:, 1]
    # a strong curvature (near the faces) turns the rounding of the new point into a visible change of D, a weak one loses digits of k
    keep = (lengths.min(axis=0) > 1e-2) & (middle > 0.05) & (middle < 0.95)
    v, p, q, lengths, U, values = v[keep], p[keep], q[keep], lengths[:, keep], U[keep], values[keep]
    assert len(v) > 30
    for near, part, other in ((p - distance * q, values, distance * (1 - values)), (distance * p - q, distance * values, 1 - values)):
        check_optimality(cone, near, 2e-14)
        expected = (U * (part / (part + other))[:, None, :]) @ np.swapaxes(U, -1, -2)
        np.testing.assert_allclose(matrix(cone, near), expected, rtol=0, atol=1e-12)
    # only the first: the crease of the exponential cone may be nearer than the boundary
    assert (cone.margin(p - distance * q) <= distance * lengths[1] + 1e-15 * lengths.max(axis=0)).all()


def bisect_exponential(v: np.ndarray) -> tuple[np.ndarray, float]:
    """Projection and middle eigenvalue by bisection in 50 digits, for v outside the cone and its polar, x > 0 or y > 0."""
    with mp.workdps(50):
        x, y, z = (mp.mpf(float(value)) for value in v)

        def solve(rho):
            c = rho**2 - rho + 1
            return (y + (rho - 1) * x) / c, (x - rho * y) / c

        low = 1 - y / x if x > 0 else x / y - 200
        high = x / y if y > 0 else low + 200
        for _ in range(200):
            rho = (low + high) / 2
            s, m = solve(rho)
            low, high = (rho, high) if s * mp.exp(rho) - m * mp.exp(-rho) < z else (low, rho)
        rho = (low + high) / 2
        s, m = solve(rho)
        p = mp.matrix([s * rho, s, s * mp.exp(rho)])
        # bordered Hessian: minimize 1/2 |p - v|^2 with p on the boundary z = y exp(x/y)
        e, t = mp.exp(rho), 1 / s
        mu = m * mp.exp(-rho)
        g = mp.matrix([e, e * (1 - rho), -1])
        H = mp.eye(3) + mu * e * t * mp.matrix([[1, -rho, 0], [-rho, rho**2, 0], [0, 0, 0]])
        system: Any = mp.zeros(4)
        system[:3, :3] = H
        for i in range(3):
            system[i, 3] = system[3, i] = g[i]
        D = (system**-1)[:3, :3]
        return np.array([float(value) for value in p]), float(D[0, 0] + D[1, 1] + D[2, 2] - 1)


DIGITS = [
    *[(1.0, 1e-2, 1.0), (2.0, 5.0, -3.0), (10.0, -1.0, 1e-3), (-3.0, 1.0, -1.0), (1e-6, 1.0, 1e-3)],
    # close to the boundary, to the polar cone, to the faces, and of all sizes
    *[(1.0, 1.0, 2.718281828), (-2.0, 1.0, 0.135335283), (1.0, 0.5, 3.694528), (1.0, 1.0, -1e-9), (-1e-9, 1.0, -1e-9)],
    *[(1e-12, 1.0, 0.5), (1.0, -1e-12, 1.0), (3e-200, 1e-200, 2e-200), (4e150, 1e150, -1e150), (1e-310, 2e-310, 1e-310)],
]


@both_texts
@pytest.mark.parametrize("v", DIGITS)
def test_exponential_against_many_digits(v):
    p, middle = bisect_exponential(np.array(v))
    np.testing.assert_allclose(Exponential().project(np.array(v)), p, rtol=0, atol=1e-15 * np.abs(v).max())
    np.testing.assert_allclose(Exponential().derivative(np.array(v)).values, [1, middle, 0], rtol=0, atol=2e-15)


@both_texts
@pytest.mark.parametrize("alpha, value", [(0.2, 1.0), (0.5, 0.5), (0.83, 0.0)])
def test_power_derivative_at_a_vanishing_third_coordinate(alpha, value):
    # near (0, 2, 0) the boundary is x = |z|^(1/alpha) times a constant; for alpha = 1/2 it is x = z^2/2, and minimizing
    # (x + 1)^2 + (z - z0)^2 gives z = z0/2
    v = np.array([-1.0, 2.0, 0.0])
    np.testing.assert_allclose(matrix(Power(alpha), v), np.diag([0, 1, value]), rtol=0, atol=1e-15)
    np.testing.assert_allclose(matrix(Power(1 - alpha), v[[1, 0, 2]]), np.diag([1, 0, value]), rtol=0, atol=1e-15)
    np.testing.assert_allclose(matrix(Power(alpha), v + [0, 0, 1e-90]), np.diag([0, 1, value]), rtol=0, atol=1e-12)


def test_semidefinite_packing():
    """Upper triangle column by column, as against the lower triangle: different from order 3 on."""
    X = np.array([[2.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 4.0]])
    root2 = np.sqrt(2)
    packed = np.array([2.0, root2 * 1.0, 3.0, root2 * 0.5, root2 * -1.0, 4.0])
    np.testing.assert_allclose(Semidefinite(3).margin(packed), np.linalg.eigvalsh(X).min(), rtol=1e-13)
    np.testing.assert_allclose(Semidefinite(3).project(packed), packed, rtol=0, atol=1e-14)


# ---- the margin


KINKS = [
    (NonNegative(3), [1.0, 0.0, -1.0]),
    (SecondOrder(1), [0.0]),
    (SecondOrder(3), [5.0, 3.0, 4.0]),
    (SecondOrder(3), [-5.0, 3.0, 4.0]),
    (SecondOrder(3), [0.0, 0.0, 0.0]),
    (Semidefinite(2), [1.0, np.sqrt(2), 1.0]),
    (Exponential(), [0.0, 1.0, 1.0]),
    (Exponential(), [-1.0, 0.0, 2.0]),
    (Exponential(), [-1.0, 0.0, -2.0]),
    (Exponential(), [0.0, -1.0, 2.0]),
    (Exponential(), [0.0, -1.0, -2.0]),
    (Exponential(), [-1.0, -1.0, 0.0]),
    (Exponential(), [1.0, 1.0, -1.0]),
    (Exponential().dual(), [-1.0, 0.0, np.exp(-1)]),
    (Power(0.2), [1.0, 1.0, -1.0]),
    (Power(0.2), [-0.2, -0.8, 1.0]),
    (Power(0.2), [0.0, 1.0, 0.0]),
    (Power(0.83).dual(), [0.83, 0.17, 1.0]),
    (Product((NonNegative(1), Exponential(), Exponential())), [1.0, 3.0, 1.0, 2.0, 0.0, 1.0, 1.0]),
]


@pytest.mark.parametrize("cone, v", KINKS, ids=str)
def test_margin_on_and_off_kinks(cone, v):
    v = np.array(v)
    np.testing.assert_allclose(cone.margin(v), 0, atol=3e-16)
    # close to a kink the margin is about the distance, up to a factor
    for row in range(20):
        w = np.random.default_rng(row).normal(size=v.shape)
        near = v + 1e-6 * w / np.linalg.norm(w)
        assert 0 < cone.margin(near) < 1e-5


@every_cone
def test_margin_bounds_the_reach_of_the_derivative(cone):
    """Within a small fraction of the margin the derivative changes little; across no point with a margin does it jump."""
    v = points(cone, 300)
    margin = cone.margin(v)
    assert (margin > 0).all()
    step = 1e-6 * np.where(np.isfinite(margin), margin, 1.0)[:, None] * points(cone, 300, 1)
    # the relative change of a smooth function over the step, with room for curvature of order 1e3 over the margin
    np.testing.assert_allclose(matrix(cone, v + step), matrix(cone, v), rtol=0, atol=1e-3)


# ---- products and misuse


def test_product_equals_its_parts():
    v = points(MIXED, 7)
    ends = np.cumsum([cone.dim for cone in MIXED.cones])
    pieces = [(cone, v[:, end - cone.dim : end]) for cone, end in zip(MIXED.cones, ends, strict=True)]
    assert (MIXED.project(v) == np.concatenate([cone.project(part) for cone, part in pieces], axis=-1)).all()
    assert (MIXED.derivative(v).values == np.concatenate([cone.derivative(part).values for cone, part in pieces], axis=-1)).all()
    assert (MIXED.margin(v) == np.min([cone.margin(part) for cone, part in pieces], axis=0)).all()


def test_product_calls_equal_cones_once():
    assert [block.count for block in MIXED.derivative(points(MIXED, 1)).blocks] == [2, 2, 2, 2, 1]


def test_product_flattens_and_describes_itself():
    inner = Product((NonNegative(2), SecondOrder(3)))
    assert Product((Zero(1), inner)) == Product((Zero(1), NonNegative(2), SecondOrder(3)))
    assert inner.kinds == {NonNegative, SecondOrder}
    assert hash(Product(inner.cones)) == hash(inner)
    assert MIXED.ordered and inner.ordered and Product(()).ordered
    assert not Product((SecondOrder(3), Zero(1))).ordered
    assert not Product((Zero(1), Exponential().dual())).ordered


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Zero(-1), "Zero got dim = -1; wanted dim >= 0"),
        (lambda: NonNegative(-2), "NonNegative got dim = -2; wanted dim >= 0"),
        (lambda: SecondOrder(0), "SecondOrder got dim = 0; wanted dim >= 1"),
        (lambda: Semidefinite(0), "Semidefinite got order = 0; wanted order >= 1"),
        (lambda: Power(0.0), "Power got alpha = 0.0; wanted 0 < alpha < 1"),
        (lambda: Power(float("nan")), "Power got alpha = nan; wanted 0 < alpha < 1"),
    ],
)
def test_misuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()
