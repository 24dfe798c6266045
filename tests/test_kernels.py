"""The compiled kernels below the engine: lanes, factorization, rows, threads."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.sparse as sp

from cvxlayers.kernels import elementary, lanes, ldl, threads
from cvxlayers.kernels import rows as rows_
from cvxlayers.kernels.disk import compiled
from cvxlayers.kernels.ldl import Factors
from cvxlayers.kernels.rows import solve_rows
from cvxlayers.kernels.symbolic import analyze

LANES = lanes.LANES
factor, solve = compiled(ldl.factor.py_func), compiled(ldl.solve.py_func)  # what is compiled into kernels, as kernels
gather, scatter = compiled(rows_.gather.py_func), compiled(rows_.scatter.py_func)


def system(seed=0, n=20, m=25, density=0.1, rows=11):
    """A random quasi-definite pattern with a batch of numbers, and the dense matrices."""
    rng = np.random.default_rng(seed)
    A, F = (sp.random_array((k, n), density=density, rng=rng, data_sampler=rng.standard_normal) for k in (m, n))
    K = sp.csc_matrix(sp.triu(sp.block_array([[F.T @ F + sp.eye(n), A.T], [A, -sp.eye(m)]])))
    K.sort_indices()
    columns = np.repeat(np.arange(n + m), np.diff(K.indptr))
    scale = rng.uniform(0.5, 1.5, (rows, n + m))  # a congruence keeps every matrix quasi-definite
    values = K.data * scale[:, K.indices] * scale[:, columns]
    dense = np.zeros((rows, n + m, n + m))
    dense[:, K.indices, columns] = dense[:, columns, K.indices] = values
    return analyze(K.indices, K.indptr, np.r_[np.ones(n), -np.ones(m)]), values, rng.standard_normal((rows, n + m)), dense


@pytest.mark.parametrize("n, m, density", [(1, 0, 1.0), (3, 0, 1.0), (1, 5, 1.0), (12, 9, 1.0), (20, 25, 0.1), (60, 80, 0.03)])
def test_factors_solve_what_lapack_solves(n, m, density):
    symbolic, values, rhs, dense = system(n, n, m, density)
    wanted = np.linalg.solve(dense, rhs[..., None])[..., 0]
    z, error = solve_rows(symbolic, values, rhs, 1e-8)
    np.testing.assert_allclose(z, wanted, rtol=1e-9, atol=1e-11)
    assert (error < 1e-12 * (1 + np.abs(rhs).max(1))).all()


def test_the_factors_are_those_of_the_permuted_matrix():
    symbolic, values, _, dense = system(rows=LANES)
    factors, numbers = Factors.of(symbolic), lanes.aligned(values.shape[1])
    gather(values, 0, numbers)
    factor(symbolic, numbers, 0.0, 0.0, 0.0, factors)
    size = len(symbolic.permutation)
    nodes, ends = symbolic.nodes[:-1], symbolic.nodes[1:]
    for j in range(LANES):
        L = np.eye(size)
        for (first, start, panel, height), (last, stop, end, _) in zip(nodes, ends, strict=True):
            lines = factors.lower[panel:end, j].reshape(-1, last - first)
            L[symbolic.rows[start:stop], first:last] = lines[height:]
            if height > 1:
                L[first:last, first:last] += np.tril(lines[:height], -1)
        permuted = dense[j][np.ix_(symbolic.permutation, symbolic.permutation)]
        np.testing.assert_allclose((L / factors.inverse[:, j]) @ L.T, permuted, atol=1e-12)
        assert (np.sign(factors.inverse[:, j]) == symbolic.signs).all()


def test_dense_rows_come_last_but_count():
    """A portfolio with factors: of each asset's chain (bound, asset, risk, its equation) the asset, which meets all factors, goes last."""
    n, k = 500, 20
    none, wide, chain = sp.csc_matrix((n, n)), sp.csc_matrix((n, k)), sp.eye(n)
    A = sp.block_array([[chain, wide, none], [-chain, wide, chain], [np.ones((k, n)), sp.eye(k), sp.csc_matrix((k, n))]])
    K = sp.csc_matrix(sp.triu(sp.block_array([[sp.eye(2 * n + k), A.T], [A, -sp.eye(2 * n + k)]])))
    K.sort_indices()
    symbolic = analyze(K.indices, K.indptr, np.r_[np.ones(2 * n + k), -np.ones(2 * n + k)])
    assert symbolic.counts.sum() <= n * (k + 3) + k * k
    assert len(symbolic.nodes) < 3 * n + n // 4  # the assets stand together
    assert sorted(symbolic.permutation) == list(range(4 * n + 2 * k))


def test_no_lane_knows_its_neighbours():
    """Bitwise, whatever stands in the other lanes, in whichever lane a row lies, and however many rows there are."""
    symbolic, values, rhs, _ = system(rows=3 * LANES)
    together, _ = solve_rows(symbolic, values, rhs, 1e-7)
    for i in range(len(rhs)):
        assert solve_rows(symbolic, values[i : i + 1], rhs[i : i + 1], 1e-7, jobs=1)[0].tobytes() == together[i].tobytes()
    for position in range(LANES):
        broken = values.copy()
        broken[LANES + position] = np.nan
        broken[2 * LANES + position] = np.inf
        beside, error = solve_rows(symbolic, broken, rhs, 1e-7, jobs=2)
        bad = [LANES + position, 2 * LANES + position]
        assert np.isnan(error[bad]).all()
        good = np.setdiff1d(np.arange(3 * LANES), bad)
        assert beside[good].tobytes() == together[good].tobytes()


def test_a_vanishing_pivot_is_replaced():
    """[[0, 1], [1, 0]] has no LDL' without regularization; with it, refinement reaches the solution."""
    symbolic = analyze(np.array([0, 0, 1]), np.array([0, 1, 3]), np.array([1.0, -1.0]))
    z, error = solve_rows(symbolic, np.array([[0.0, 1.0, 0.0]]), np.array([[2.0, 3.0]]), 0.0, tiny=1e-13, large=1e-7)
    np.testing.assert_allclose(z, [[3.0, 2.0]], atol=1e-12)
    assert error < 1e-12


@pytest.mark.parametrize(
    "indices, indptr", [([0, 1, 0], [0, 1, 3]), ([0, 0], [0, 1, 2]), ([0, 1, 1], [0, 2, 3]), ([0, 0, 0, 1], [0, 1, 4]), ([1], [0, 0, 1])]
)
def test_a_wrong_pattern_is_refused(indices, indptr):
    with pytest.raises(ValueError, match="not an upper triangle by columns with sorted rows and a full diagonal"):
        analyze(np.array(indices), np.array(indptr), np.ones(2))


def test_an_empty_matrix():
    symbolic = analyze(np.zeros(0, dtype=int), np.zeros(1, dtype=int), np.zeros(0))
    z, error = solve_rows(symbolic, np.zeros((3, 0)), np.zeros((3, 0)), 1e-8)
    assert z.shape == (3, 0) and (error == 0).all()


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 20])
def test_gather_and_scatter(rows):
    source = np.arange(rows * 3.0).reshape(rows, 3)
    back, block = np.full_like(source, np.nan), np.empty((3, LANES))
    for number in range(-(-rows // LANES)):
        gather(source, number, block)
        for j in range(LANES):
            assert (block[:, j] == source[min(number * LANES + j, rows - 1)]).all()
        scatter(block, number, back)
    assert (back == source).all()


@compiled
def _arithmetic(a, b, out):
    x, y = lanes.load(a, 0), lanes.load(b, 0)
    z = 2 * x - y / 3.0
    z += 1
    lanes.store(out, 0, z)
    lanes.store(out, 1, lanes.select((x < y) | ~(x <= 2.0) & (y >= x), -x, abs(y)))
    lanes.store(out, 2, lanes.smaller(x, y))
    lanes.store(out, 3, lanes.larger(x, y))
    lanes.store(out, 4, lanes.sqrt(abs(x)))
    lanes.store(out, 5, lanes.full(lanes.lane(x, 3)))
    return lanes.some(x > 1e300), lanes.some(x == x)


def test_lanes_compute_as_floats_do():
    rng = np.random.default_rng(0)
    a, b, out = rng.standard_normal((1, LANES)), rng.standard_normal((1, LANES)), np.empty((6, LANES))
    a[0, 1], b[0, 4] = np.nan, np.nan
    assert _arithmetic(a, b, out) == (False, True)
    x, y = a[0], b[0]
    wanted = [2 * x - y / 3 + 1, np.where((x < y) | ~(x <= 2) & (y >= x), -x, abs(y)), np.where(x < y, x, y), np.where(x > y, x, y)]
    wanted += [np.sqrt(abs(x)), np.full(LANES, x[3])]
    np.testing.assert_allclose(out, wanted, rtol=4e-16)


@lanes.compiled
def _elementary(a, out):
    for i in range(len(a)):
        lanes.store(out[0], i, elementary.exp(lanes.load(a, i)))
        lanes.store(out[1], i, elementary.log(lanes.load(a, i)))


def test_exponential_and_logarithm_are_right_to_the_last_bits():
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, 1e-310, 2.3e-308, 1.7e308, 709.7, 710.0, -745.0, -746.0, 1e4]
    ranges = [
        rng.standard_normal(4000),
        rng.uniform(-745, 709, 4000),
        np.exp(rng.uniform(-708, 709, 4000)),
        1 + 1e-9 * rng.standard_normal(4000),
    ]
    a = np.concatenate([special, *ranges]).reshape(-1, LANES)
    out = np.empty((2, *a.shape))
    _elementary(a, out)
    with np.errstate(all="ignore"):
        wanted = np.stack([np.exp(a), np.log(a)])
    np.testing.assert_allclose(out, wanted, rtol=5e-16, atol=5e-324)


def test_the_largest_entry_of_a_lane_is_nan_where_there_is_one():
    from cvxlayers.kernels.ldl import norm

    @compiled
    def outside(v, out):
        lanes.store(out, 0, norm(v))

    for place in range(3):
        v, out = np.arange(3.0 * LANES).reshape(3, LANES), np.empty((1, LANES))
        v[place, 5] = np.nan
        v[0, 2] = -np.inf
        outside(v, out)
        assert np.isnan(out[0, 5]) and out[0, 2] == np.inf and out[0, 0] == 2 * LANES


def test_arrays_of_a_wrong_kind_do_not_compile():
    with pytest.raises(Exception, match="lanes live in C-contiguous float64 arrays"):
        _arithmetic(np.zeros((1, LANES), dtype=np.float32), np.zeros((1, LANES)), np.zeros((9, LANES)))


# threads


@pytest.mark.parametrize("jobs", [0, 1, 2, 5])
@pytest.mark.parametrize("blocks", [0, 1, 2, 7, 100])
def test_every_block_is_visited_once(blocks, jobs):
    visits = np.zeros(blocks, dtype=int)

    def task(first, last):
        visits[first:last] += 1

    threads.run(task, blocks, jobs)
    assert (visits == 1).all()


def test_an_error_arrives_and_the_pool_lives_on():
    for jobs in (1, 2):
        with pytest.raises(ZeroDivisionError):
            threads.run(lambda first, last: 1 / 0, 20, jobs)
    test_every_block_is_visited_once(100, 2)


def test_a_task_may_call_run_and_many_threads_may_call_at_once():
    total = np.zeros(8, dtype=int)

    def outer(number):
        def inner(first, last):
            threads.run(lambda a, b: None, 10, 3)
            total[number] += last - first

        threads.run(inner, 50, 3)

    callers = [threading.Thread(target=outer, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not any(caller.is_alive() for caller in callers)


def test_the_limit_on_threads(monkeypatch):
    assert threads.limit(3) == 3
    monkeypatch.setenv(threads.VARIABLE, "5")
    assert threads.limit() == 5 and threads.limit(2) == 2
    monkeypatch.delenv(threads.VARIABLE)
    assert threads.limit() == threads.cores() >= 1
    for bad in ("0", "-1", "many"):
        monkeypatch.setenv(threads.VARIABLE, bad)
        with pytest.raises(ValueError, match="CVXLAYERS_NUM_THREADS is .*; wanted a positive number of threads"):
            threads.limit()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this platform binds no threads")
def test_helpers_run_where_the_caller_does_not(monkeypatch):
    allowed = os.sched_getaffinity(0)
    monkeypatch.setattr(threads, "FEW", 1000)
    for here in sorted(allowed)[:2] * 2:
        monkeypatch.setattr(threads, "_here", lambda here=here: here)
        for _ in range(3):  # a run may be the one that makes a helper, where those there are not idle yet
            time.sleep(0.02)
            threads.run(lambda first, last: None, 40, 2)
        wanted = (allowed - {here}) or allowed
        assert threads._helpers and all(os.sched_getaffinity(helper.native_id or 0) == wanted for helper in threads._helpers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_makes_its_own_pool():
    code = """
import os
from cvxlayers.kernels.threads import run
seen = []
run(lambda a, b: seen.extend(range(a, b)), 40, 2)
child = os.fork()
if not child:
    run(lambda a, b: seen.extend(range(a, b)), 40, 2)
    os._exit(0 if sorted(seen) == sorted(2 * list(range(40))) else 1)
run(lambda a, b: seen.extend(range(a, b)), 40, 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and len(seen) == 80
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_memory_is_aligned():
    assert lanes.aligned(0).shape == (0, LANES)
    for entries in (1, 5, 100):
        memory = lanes.aligned(entries)
        assert memory.shape == (entries, LANES) and memory.flags.c_contiguous and memory.ctypes.data % 64 == 0


def test_solve_needs_no_refinement_where_nothing_is_regularized():
    symbolic, values, rhs, dense = system(rows=LANES)
    factors, numbers, z = Factors.of(symbolic), lanes.aligned(values.shape[1]), lanes.aligned(rhs.shape[1])
    gather(values, 0, numbers)
    gather(rhs, 0, z)
    factor(symbolic, numbers, 0.0, 0.0, 0.0, factors)
    solve(symbolic, factors, z)
    np.testing.assert_allclose(z.T, np.linalg.solve(dense, rhs[..., None])[..., 0], atol=1e-12)
