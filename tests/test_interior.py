"""INTERIOR: what it promises beyond the table of solvers. Lanes that do not know each other, threads, forks, first use."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from cvxlayers.cones import Exponential, NonNegative, Power, Product, SecondOrder, Semidefinite
from cvxlayers.conic import ConicLayer
from cvxlayers.errors import Status
from cvxlayers.kernels import disk
from cvxlayers.kernels.lanes import LANES
from cvxlayers.kernels.ldl import norm
from cvxlayers.products import Products, residuals
from cvxlayers.program import ConeProgram, Pattern
from cvxlayers.solvers import find, get
from tests.test_solvers import CONES, dense, feasible, optimal, residual

KINDS = list(CONES)
PARTS = ("x", "y", "s", "status", "iterations")


def rows_of(program, rows):
    return ConeProgram(*(part[rows].copy() for part in vars(program).values()))


def solve(pattern, program, **options):
    return get("INTERIOR", options or None, pattern)[0].solve(pattern, program)


def same(one, two, rows, others=None):
    """Bitwise, row by row."""
    others = rows if others is None else others
    return all(
        getattr(one, part)[i].tobytes() == getattr(two, part)[j].tobytes() for i, j in zip(rows, others, strict=True) for part in PARTS
    )


def infeasible(pattern, program, row):
    """The row without a feasible point: A = 0 and b outside every cone."""
    program.A[row], program.b[row] = 0.0, -1.0


@pytest.mark.parametrize("kind", ["linear", "all"])
@pytest.mark.parametrize("position", range(LANES))
def test_a_bad_row_in_each_lane(kind, position):
    """One NaN row and one infeasible row, in each lane position: flagged, and nobody else's bits change."""
    pattern, program, _ = feasible(kind, True, rows=2 * LANES)
    clean = solve(pattern, program)
    broken = rows_of(program, np.arange(2 * LANES))
    no_number, no_point = position, LANES + (position + 3) % LANES
    broken.q[no_number, 0] = np.nan
    infeasible(pattern, broken, no_point)
    beside = solve(pattern, broken)
    assert beside.status[no_number] == Status.NUMERICAL_ERROR and np.isnan(beside.x[no_number]).all()
    assert beside.status[no_point] == Status.PRIMAL_INFEASIBLE
    assert same(beside, clean, np.setdiff1d(np.arange(2 * LANES), [no_number, no_point]))


@pytest.mark.parametrize("where", ["P", "q", "A", "b"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_nonsense_in_any_place_is_not_solved(where, value):
    pattern, program, _ = feasible("linear", True)
    broken = rows_of(program, np.arange(3))
    getattr(broken, where)[1, 0] = value
    solution = solve(pattern, broken)
    if np.isfinite(value):
        assert not Status(solution.status[1]).ok or residual(pattern, broken, solution, 1) < 1e-8
    else:
        assert not Status(solution.status[1]).ok
    assert same(solution, solve(pattern, program), [0, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_in_any_company(kind):
    """In every batch size, in every lane, on one thread or two, between converged and failing rows: bitwise."""
    pattern, program, _ = feasible(kind, True, rows=32)
    mixed = rows_of(program, np.arange(512) % 32)
    for row in range(5, 512, 7):
        infeasible(pattern, mixed, row)
    whole = solve(pattern, mixed, n_jobs_forward=1)
    assert same(whole, solve(pattern, mixed, n_jobs_forward=2), range(512))
    for rows in (0, 1, 7, 8, 9):
        assert same(solve(pattern, rows_of(mixed, slice(3, 3 + rows))), whole, range(rows), range(3, 3 + rows))
    order = np.random.default_rng(0).permutation(512)
    assert same(solve(pattern, rows_of(mixed, order)), whole, range(512), order)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_fork_in_between():
    code = """
import os, sys
sys.path.insert(0, os.getcwd())
from tests.test_interior import feasible, rows_of, same, solve
pattern, program, _ = feasible("linear", True, rows=40)
before = solve(pattern, program, n_jobs_forward=2)
child = os.fork()
if not child:
    os._exit(0 if same(solve(pattern, program, n_jobs_forward=2), before, range(40)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert same(solve(pattern, program, n_jobs_forward=2), before, range(40))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_rows_that_share_their_matrices():
    """A and P given once for all rows, as a view without memory of its own, are the same as copies."""
    pattern, program, _ = feasible("linear", True, rows=9)
    P, A = np.broadcast_to(program.P[:1], program.P.shape), np.broadcast_to(program.A[:1], program.A.shape)
    shared = ConeProgram(P, program.q, A, program.b)
    assert same(solve(pattern, shared), solve(pattern, rows_of(shared, np.arange(9))), range(9))


@pytest.mark.parametrize("kind, cone", [("exponential", Exponential), ("power", Power), ("semidefinite", Semidefinite)])
def test_no_other_solver_helps(kind, cone):
    pattern, program, _ = feasible(kind, True)
    assert cone in pattern.cone.kinds
    layer = ConicLayer(pattern, solver="INTERIOR")
    _, info = layer(program.P, program.q, program.A, program.b, return_info=True)
    assert info.solver == "INTERIOR" and (info.status == Status.SOLVED).all()
    assert (np.maximum(info.primal_residual, info.dual_residual) < 1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quadratic", [False, True])
def test_is_as_accurate_as_clarabel(kind, quadratic):
    """On sixty programs of each kind: solved after polishing wherever Clarabel is, to the same objective."""
    pattern, program, known = feasible(kind, quadratic, rows=60, n=4 if kind == "equations" else 7, seed=3)
    found = {}
    for name in ("INTERIOR", "CLARABEL"):
        _, found[name] = ConicLayer(pattern, solver=name)(*vars(program).values(), return_info=True, on_failure="return")
    ours, theirs = found["INTERIOR"], found["CLARABEL"]
    assert (ours.status <= np.maximum(theirs.status, Status.SOLVED)).all()
    np.testing.assert_allclose(ours.objective, theirs.objective, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["integer", "degenerate", "singular", "integer_singular", "diagonal", "redundant", "bound", "rows"])
def test_hard_linear_and_quadratic_programs(kind):
    rng = np.random.default_rng(len(kind))
    for _ in range(15):
        (pattern, program), best = optimal(rng, kind)
        _, info = ConicLayer(pattern, solver="INTERIOR")(*vars(program).values(), return_info=True, on_failure="return")
        assert Status(info.status[0]).ok
        P, q, _, _ = dense(pattern, program, 0)
        assert abs(info.objective[0] - best) < 1e-6 * (1 + abs(best))


def unbounded_and_infeasible(cone, rng):
    """Data with a Farkas certificate y in K*, and data with a ray."""
    n, m = 3, cone.dim
    y = cone.dual().project(rng.standard_normal(m)) + 0.1 * cone.dual().project(np.ones(m))
    A = rng.standard_normal((m, n))
    A -= np.outer(y, y @ A) / (y @ y)
    b = rng.standard_normal(m)
    b -= y * (1 + b @ y) / (y @ y)
    yield Status.PRIMAL_INFEASIBLE, rng.standard_normal(n), A, b
    d, s = rng.standard_normal(n), cone.project(rng.standard_normal(m) + 1)
    A = rng.standard_normal((m, n))
    A -= np.outer(A @ d + s, d) / (d @ d)
    q = rng.standard_normal(n)
    q -= d * (1 + q @ d) / (d @ d)
    yield Status.DUAL_INFEASIBLE, q, A, A @ rng.standard_normal(n) + s


def chained(n):
    """D (n - 1, n) of differences."""
    return sp.eye_array(n - 1, n, k=1) - sp.eye_array(n - 1, n)


def test_large_programs():
    """min |x - p|^2 / 2 + 1't subject to -t <= Dx <= t, p random walks: what looks like a certificate among so many terms is none."""
    rng, n, rows = np.random.default_rng(0), 5000, 4
    D, eye = chained(n), sp.eye_array(n - 1)
    A = sp.csc_matrix(sp.block_array([[D, -eye], [-D, -eye]]))
    pattern = Pattern.of(sp.diags_array(np.r_[np.ones(n), np.zeros(n - 1)]), A, Product((NonNegative(2 * (n - 1)),)))
    P = np.tile((pattern.P_indices < n).astype(float), (rows, 1))
    q = np.concatenate([-np.cumsum(rng.standard_normal((rows, n)), axis=1), np.ones((rows, n - 1))], axis=1)
    program = ConeProgram(P, q, np.tile(A.data, (rows, 1)), np.zeros((rows, pattern.m)))
    found = solve(pattern, program)
    assert (found.status == Status.SOLVED).all() and (found.iterations < 20).all()
    assert (residuals(Products.of(pattern), program, found.x, found.y, found.s).worst < 1e-9).all()


@pytest.mark.parametrize("bounded", [False, True])
def test_large_programs_without_a_solution(bounded):
    """n rising numbers between 0 and n - 1: rises of 2 leave no point; without the upper bound their sum has no largest value."""
    n = 3000
    rows = [-chained(n), sp.csr_array(([-1.0], ([0], [0])), (1, n))] + [sp.csr_array(([1.0], ([0], [n - 1])), (1, n))] * bounded
    A = sp.csc_matrix(sp.vstack(rows))
    b = np.r_[np.full(n - 1, -2.0 if bounded else -1.0), 0.0, [n - 1.0] * bounded]
    pattern = Pattern.of(sp.csc_matrix((n, n)), A, Product((NonNegative(len(b)),)))
    found = solve(pattern, ConeProgram(np.zeros((1, 0)), -np.ones((1, n)), A.data[None], b[None]))
    assert found.status.tolist() == [Status.PRIMAL_INFEASIBLE if bounded else Status.DUAL_INFEASIBLE]


@pytest.mark.parametrize("cone", [NonNegative(6), SecondOrder(3), SecondOrder(8), Semidefinite(3), Exponential(), Power(0.3)])
def test_certificates_of_every_cone(cone):
    rng = np.random.default_rng(4)
    product = Product((NonNegative(2), cone))
    pattern = Pattern.of(np.zeros((3, 3)), np.ones((product.dim, 3)), product)
    for _ in range(10):
        for status, q, A, b in unbounded_and_infeasible(product, rng):
            program = ConeProgram(np.zeros((1, 0)), q[None], A[pattern.A_indices, pattern.A_columns][None], b[None])
            assert solve(pattern, program).status[0] == status


def test_many_exponential_cones_take_one_attempt():
    """Logistic regressions: every row ends by itself, at the tolerance, where the scaling of their cones has lost no digits."""
    rng, rows, samples, features = np.random.default_rng(0), 16, 100, 20
    # log(1 + exp(a'x)) <= t as p + q <= 1, exp(-t) <= p, exp(a'x - t) <= q, in the variables (x, t, p, q)
    eye, none, wide = sp.eye(samples), sp.csc_matrix((samples, samples)), sp.csc_matrix((samples, features))
    one = sp.kron(eye, np.array([[1.0], [0.0], [0.0]])), sp.kron(eye, np.array([[0.0], [0.0], [-1.0]]))
    data = rng.standard_normal((rows, samples, features))
    A = [
        sp.vstack([
            sp.hstack([wide, none, eye, eye]),
            sp.hstack([sp.kron(wide, np.zeros((3, 1))), one[0], one[1], sp.kron(none, np.zeros((3, 1)))]),
            sp.hstack([-sp.kron(sp.csc_matrix(a), np.array([[1.0], [0.0], [0.0]])), one[0], sp.kron(none, np.zeros((3, 1))), one[1]]),
        ]).tocsc()
        for a in data
    ]  # fmt: skip
    b = np.r_[np.ones(samples), np.tile([0.0, 1.0, 0.0], 2 * samples)]
    n = features + 3 * samples
    P = sp.diags(np.r_[np.ones(features), np.zeros(n - features)]).tocsc()
    P.eliminate_zeros()
    pattern = Pattern.of(P, A[0], Product((NonNegative(samples), *[Exponential()] * (2 * samples))))
    q = np.r_[np.zeros(features), np.ones(samples), np.zeros(2 * samples)]
    program = ConeProgram(np.ones((rows, features)), np.tile(q, (rows, 1)), np.stack([each.data for each in A]), np.tile(b, (rows, 1)))
    found = solve(pattern, program)
    assert (found.status == Status.SOLVED).all() and (found.iterations <= 25).all()
    # The solver's own x is as far off as its tolerance and rounding leave it, 1e-6 or so; what is returned is not.
    x = ConicLayer(pattern, solver="INTERIOR").solve(program, (rows,))[0].x[:, :features]
    slope = x + np.einsum("bsf,bs->bf", data, 1 / (1 + np.exp(-np.einsum("bsf,bf->bs", data, x))))
    np.testing.assert_allclose(slope, 0, atol=1e-11)


def test_too_large_a_matrix_is_left_to_others():
    order = find("INTERIOR").semidefinite_order + 1
    size = order * (order + 1) // 2
    pattern = Pattern.of(sp.csc_matrix((size, size)), -sp.eye(size), Product((Semidefinite(order),)))
    with pytest.raises(ValueError, match=f"'INTERIOR' cannot handle Semidefinite cones of order {order}; try 'CLARABEL', 'SCS'"):
        get("INTERIOR", None, pattern)


def test_iterations_end_and_options_arrive():
    pattern, program, _ = feasible("second_order", True)
    assert (solve(pattern, program, max_iters=3).iterations == 3).all()
    loose, tight = solve(pattern, program, eps=1e-4), solve(pattern, program, eps=1e-9)
    assert (loose.iterations < tight.iterations).all()
    assert all(residual(pattern, program, tight, i) < 1e-8 for i in range(3))


# first use


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600, env={**os.environ, **environment}
    )


def test_kernels_are_loaded_from_disk():
    """What one process compiled the next one loads: under half a second of CPU time, numba's import included."""
    code = """
import time
import numpy, scipy.sparse, qdldl
start = time.process_time()
from tests.test_interior import feasible, solve
pattern, program, _ = feasible("linear", True)
start = time.process_time()
import numba
solve(pattern, program)
print(time.process_time() - start)
"""
    python(code)
    assert min(float(python(code).stdout) for _ in range(3)) < 0.5


def test_a_read_only_installation_uses_the_cache_of_the_user(tmp_path):
    """No folder to write to beside the kernels: the user's takes their place; none there either: nothing is kept, and all works."""
    code = """
import numba.core.caching as caching
refused = classmethod(lambda cls, function, file: None)
beside = caching.InTreeCacheLocator, caching.InTreeCacheLocatorFsAgnostic
for place in beside + NOWHERE:
    place.from_function = refused
import numpy as np
from cvxlayers.kernels.passes import times
from cvxlayers.kernels.systems import period
for kernel in (times.kernel, period):
    print(type(kernel._cache).__name__, kernel._cache.cache_path)
out = np.empty((1, 1))
times(np.array([0, 1], dtype=np.uint32), np.array([0], dtype=np.uint32), np.full((1, 1), 2.0), np.full((1, 1), 3.0), out)
print(out[0, 0], period(np.ones((2, 1))))
"""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    *places, values = python(code.replace("NOWHERE", "()"), **environment).stdout.splitlines()
    assert [place.startswith(f"FunctionCache {tmp_path}") for place in places] == [True, True] and values == "6.0 1"
    assert len(list(tmp_path.rglob("passes.times*.nbi"))) == len(list(tmp_path.rglob("systems.period*.nbi"))) == 1
    nowhere = code.replace("NOWHERE", "(caching.UserWideCacheLocator,)")
    assert python(nowhere, **environment).stdout.splitlines() == ["NullCache None"] * 2 + ["6.0 1"]


def test_every_kernel_is_kept_under_the_stamp_of_all():
    """numba looks at the file of a function only; the stamp of its cache holds a hash of all kernels."""
    stamps = []
    for path in sorted(Path(disk.__file__).parent.glob("*.py")):
        module = import_module(f"cvxlayers.kernels.{path.stem}")
        for value in vars(module).values():
            kernel = disk.compiled(value.function) if isinstance(value, disk.Typed) else value
            if isinstance(kernel, disk.CPUDispatcher) and not isinstance(kernel, disk.Inner):
                stamps.append(vars(kernel)["_cache"]._cache_file._source_stamp[1])
        assert path.stem == "disk" or "njit" not in path.read_text()
    assert len(stamps) > 20 and set(stamps) == {disk.STAMP} and len(disk.STAMP) == 64


def test_kernels_compile_with_a_numba_that_is_made_otherwise(tmp_path):
    """What `cvxlayers.kernels.pipeline` changes may have other names in another numba, which then compiles as it does all functions."""
    code = """
import numba.core.codegen
CHANGE
import numpy as np
from cvxlayers.kernels import disk, rows
from cvxlayers.kernels.symbolic import analyze
symbolic = analyze(np.array([0, 0, 1]), np.array([0, 1, 3]), np.array([1.0, -1.0]))
z, _ = rows.solve_rows(symbolic, np.array([[2.0, 1.0, -1.0]]), np.array([[3.0, 0.0]]), 1e-8)
print("pipeline_class" in disk.INNER, "pipeline_class" in disk.OPTIONS, z.tobytes().hex())
"""
    run = [python(code.replace("CHANGE", change), NUMBA_CACHE_DIR=str(tmp_path / change[:3])).stdout.split() for change in CHANGES]
    assert [words[:2] for words in run] == [["True", "True"], ["False", "False"], ["False", "False"]]
    assert len({words[2] for words in run}) == 1


CHANGES = ("pass", "del numba.core.codegen.JITCodeLibrary", "numba.version_info = numba.version_info._replace(short=(0, 99))")


def test_what_is_compiled_into_kernels_refuses_calls_from_python():
    with pytest.raises(TypeError, match="norm can be called in compiled code only; decorate it as compiled"):
        norm(np.zeros((1, LANES)))


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [("INTERIOR", "CLARABEL", "CLARABEL takes the place of INTERIOR"), ("ACTIVE_SET", "DAQP", "DAQP that of ACTIVE_SET")],
)
def test_another_solver_serves_where_numba_cannot_load(name, other, words):
    """In the solver's place and in that of all compiled passes, with one warning in all."""
    code = """
import sys, warnings
sys.modules["numba"] = None
import numpy as np, scipy.sparse as sp
import cvxlayers.solvers as solvers
from cvxlayers.cones import NonNegative, Product
from cvxlayers.conic import ConicLayer
from cvxlayers.program import ConeProgram, Pattern, Solution
pattern = Pattern.of(sp.eye(2), -sp.eye(2), Product((NonNegative(2),)))
solvers.choose = lambda pattern: NAME
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    names = {solvers.get(None, None, pattern)[0].name for _ in range(3)}
    layer = ConicLayer(pattern)
    program = ConeProgram(np.ones((1, 2)), -np.ones((1, 2)), -np.ones((1, 2)), np.zeros((1, 2)))
    solution, info = layer.solve(program, (1,))
    layer.vjp(program, solution, Solution(np.ones((1, 2)), np.zeros((1, 2)), np.zeros((1, 2))))
print(names, info.solver, solution.x.round(6).tolist(), len(seen), seen[0].message)
try:
    solvers.get(NAME, None, pattern)
except ImportError as error:
    print(error)
"""
    first, second = python(code.replace("NAME", repr(name))).stdout.splitlines()
    assert first.startswith(f"{{'{other}'}} {other} [[1.0, 1.0]] 1 numba cannot load") and words in first
    assert second == f"solver {name!r} needs the package 'numba'; pip install numba"


def test_warming_up(capfd):
    from cvxlayers.__main__ import main
    from cvxlayers.solvers.warmup import combinations_of_cones

    main(["warmup", "--linear"])
    assert "compiling: 100%" in capfd.readouterr().err
    assert len(set(combinations_of_cones())) == 8 and len(list(combinations_of_cones(linear_only=True))) == 1
    with pytest.raises(SystemExit):
        main([])
