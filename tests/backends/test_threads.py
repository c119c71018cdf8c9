"""Results do not depend on the number of threads, and threads of others are left alone."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import BEST, NETWORKS, each_dtype, network_case, optimizer, train_epochs
from threadpoolctl import threadpool_info, threadpool_limits

from skbn.backends.cpu.processor import has_openmp, openmp_max_threads
from skbn.backends.cpu.threads import SingleThreadedBlas, n_threads, single_threaded_blas

needs_openmp = pytest.mark.skipif(not has_openmp(), reason="built without OpenMP")

# Enough work for a parallel region, and for several of its blocks of 256 rows.
LARGE = network_case(("input", "after"), "tanh", (300, 70), 20, 3, n_rows=10_000)


def bits(values):
    return [np.asarray(value).tobytes() for value in values]


def infer(dtype):
    """All that inference computes over many rows."""
    network = LARGE.network(dtype)
    with LARGE.executor(BEST, network) as it:
        it.update_population_statistics(LARGE.data(dtype)[0], *LARGE.data(dtype)[2:])
        return bits(
            [network.state, it.predict(LARGE.data(dtype)[0]), it.evaluate(*LARGE.data(dtype))]
        )


@needs_openmp
@each_dtype
def test_inference_is_the_same_on_any_number_of_threads(dtype, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the user's word, above the number of processors
    found = {}
    for limit in (1, 2, 3, 7):
        with threadpool_limits(limit, user_api="openmp"):
            assert n_threads() == openmp_max_threads() == limit
            found[limit] = infer(dtype)
    assert all(found[limit] == found[1] for limit in found)


@needs_openmp
def test_no_more_threads_than_processors_unless_asked(monkeypatch):
    monkeypatch.setattr("skbn.backends.cpu.threads._n_cpus", lambda: 1)
    with threadpool_limits(2, user_api="openmp"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert n_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert n_threads() == 2


@each_dtype
@pytest.mark.parametrize("case", [LARGE, NETWORKS["all options"]], ids=["large", "all options"])
def test_training_is_the_same_run_after_run(case, dtype):
    X, targets, weights, rows = case.data(dtype)

    def train():
        network = case.network(dtype)
        rule = optimizer(network, "adam")
        with case.executor(BEST, network, batch_size=50) as it:
            sums, _ = train_epochs(it, (X, targets, weights, rows[:500]), rule, 3)
        return bits([network.params, network.state, rule.memory, sums])

    assert train() == train()


def test_fits_that_overlap():
    """Executors in threads of their own, without the GIL: each gets what it gets alone."""
    cases = [NETWORKS["all options"]._replace(seed=seed) for seed in range(4)]

    def train(case):
        network = case.network()
        rule = optimizer(network, "nesterov")
        with case.executor(BEST, network, batch_size=20) as it:
            train_epochs(it, case.data(), rule, 30)
            return bits([network.params, network.state, it.predict(case.data()[0])])

    alone = [train(case) for case in cases]
    assert len(set(map(str, alone))) == len(cases)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(train, cases)) == alone


# In processes of their own: a pool of threads is made once, and a fork copies only one of them.

PRELUDE = """
import hashlib, warnings
import numpy as np
from sklearn.datasets import make_classification
from skbn import MLPClassifierBN
from skbn.backends.cpu.threads import n_threads
warnings.simplefilter("ignore")

def fit(**params):
    X, y = make_classification(6000, 20, n_informative=9, n_classes=3, random_state=0)
    params |= {"batch_norm": ("input", "after"), "max_iter": 2, "random_state": 0}
    model = MLPClassifierBN((200,), **params)
    probabilities = model.fit(X, y).predict_proba(X)
    digest = hashlib.sha256()
    for array in (probabilities, *model.coefs_, *model.intercepts_, model.loss_curve_):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
"""


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_openmp
def test_fits_are_the_same_on_any_number_of_threads():
    """Through the public interface, BLAS's threads included."""
    program = "print(n_threads(), fit(dropout=0.2), fit(batch_size=3000))"
    one, two = (run(program, OMP_NUM_THREADS=n, OPENBLAS_NUM_THREADS=n) for n in "12")
    assert (one[0], two[0]) == ("1", "2")
    assert one[1:] == two[1:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_can_fit():
    """Its parent has used threads, which the child lacks: it must not wait for them."""
    program = """
import multiprocessing
expected, before = fit(), n_threads()
with multiprocessing.get_context("fork").Pool(1) as pool:
    found, inside = pool.apply(fit), pool.apply(n_threads)
print(before, inside, expected == found, n_threads() == before)
"""
    threads = "2" if has_openmp() else "1"
    assert run(program, OMP_NUM_THREADS=threads) == [threads, "1", "True", "True"]


# The guard that keeps BLAS on one thread.


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture
def two_blas_threads():
    """A limit of two, so that there is something to lower and to restore."""
    with threadpool_limits(2, user_api="blas"):
        if not any(n == 2 for n in blas_threads()):
            pytest.skip("BLAS has no second thread to take away")
        yield blas_threads()


def test_guard_nests(two_blas_threads):
    guard = SingleThreadedBlas()
    for _ in range(2):  # it can be entered again
        with guard:
            with guard:
                assert set(blas_threads()) == {1}
            assert set(blas_threads()) == {1}
        assert blas_threads() == two_blas_threads


def test_guard_restores_after_an_error(two_blas_threads):
    with pytest.raises(RuntimeError, match="inside"), SingleThreadedBlas():
        raise RuntimeError("inside")
    assert blas_threads() == two_blas_threads


def test_guard_works_in_any_thread(two_blas_threads):
    """Also where another thread, here the main one, was the first to set a limit."""
    seen = []

    def work():
        with SingleThreadedBlas():
            seen.extend(blas_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert set(seen) == {1}
    assert blas_threads() == two_blas_threads


def test_guard_is_shared_by_overlapping_threads(two_blas_threads):
    """The first to leave must not give the threads back while the other still computes."""
    guard = SingleThreadedBlas()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with guard:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with guard:
        thread.start()
        assert inside.wait(10)
    assert set(blas_threads()) == {1}
    leave.set()
    thread.join(10)
    assert blas_threads() == two_blas_threads


def test_executors_share_the_guard(two_blas_threads):
    """One guard a process, which executors hold while they are entered, if products are BLAS's."""
    assert single_threaded_blas() is single_threaded_blas()
    case = network_case()
    with case.executor("baseline", case.network()), case.executor("baseline", case.network()):
        assert set(blas_threads()) == {1}
    assert blas_threads() == two_blas_threads
