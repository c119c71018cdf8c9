"""Results do not depend on the number of threads, and threads of others are left alone."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import itertools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import BEST, NETWORKS, TEAMS, each_dtype, network_case, optimizer, train_epochs
from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_info, threadpool_limits

from skbn import MLPRegressorBN
from skbn.backends.cpu import executor_class, threads
from skbn.backends.cpu.processor import has_openmp, openmp_max_threads
from skbn.backends.cpu.threads import (
    Pace,
    SingleThreadedBlas,
    at_work,
    n_threads,
    single_threaded_blas,
    team_size,
)

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


def train(case, executor=BEST):
    network = case.network()
    rule = optimizer(network, "nesterov")
    with case.executor(executor, network, batch_size=20) as it:
        train_epochs(it, case.data(), rule, 30 if executor == BEST else 5)
        return bits([network.params, network.state, it.predict(case.data()[0])])


@pytest.mark.parametrize("executor", [BEST, *TEAMS])
def test_fits_that_overlap(executor, monkeypatch):
    """Executors in threads of their own, without the GIL: each gets what it gets alone."""
    cases = [NETWORKS["all options"]._replace(seed=seed) for seed in range(4)]
    alone = [train(case, executor) for case in cases]
    assert len(set(map(str, alone))) == len(cases)
    monkeypatch.setattr(threads, "WORTH_A_TEAM", 0.0)
    monkeypatch.setattr(threads, "n_threads", lambda: 8)  # shared: two each, then more
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(train, cases, itertools.repeat(executor))) == alone
    assert not at_work.threads


def test_fits_that_overlap_leave_blas_as_it_was(two_blas_threads):
    """The first to end must not give threads back to the products of the others."""
    cases = [NETWORKS["all options"]._replace(seed=seed) for seed in range(4)]
    alone = [train(case, "baseline") for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(train, cases, itertools.repeat("baseline")))
    assert found == alone
    assert blas_threads() == two_blas_threads


# How many threads.


@pytest.fixture
def eight_threads(monkeypatch):
    monkeypatch.setattr(threads, "n_threads", lambda: 8)


def test_little_work_is_not_worth_a_team(eight_threads):
    assert team_size(0.99 * threads.WORTH_A_TEAM) == 1
    assert team_size(threads.WORTH_A_TEAM) == 8


def test_overlapping_fits_share_the_processors(eight_threads):
    """Those of other threads: what is inside of a fit, a scorer, has all that the fit has."""
    found, ready, go = [team_size(1.0)], threading.Barrier(4), threading.Event()

    def compute():
        with at_work:
            ready.wait(10)
            go.wait(10)

    others = [threading.Thread(target=compute) for _ in range(3)]
    for thread in others:
        thread.start()
    ready.wait(10)
    found.append(team_size(1.0))
    with at_work, at_work:
        found.append(team_size(1.0))
    go.set()
    for thread in others:
        thread.join(10)
    with at_work, at_work:
        found.append(team_size(1.0))
    assert found == [8, 2, 2, 8]
    assert not at_work.threads


def test_a_fit_that_calls_itself_counts_once(eight_threads):
    """An executor is entered by who makes it and by the training loop."""
    case = network_case()
    with case.executor(BEST, case.network()) as it, it:
        assert len(at_work.threads) == 1
    assert not at_work.threads


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("executor", [BEST, "baseline"])
def test_errors_leave_nothing_behind(executor, error, two_blas_threads):
    case = network_case()

    def work():
        with case.executor(executor, case.network()):
            assert len(at_work.threads) == 1
            raise error

    with pytest.raises(error):
        work()
    assert not at_work.threads
    assert blas_threads() == two_blas_threads


@needs_openmp
def test_quota_of_a_container(monkeypatch):
    """joblib reads it; here it says so."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with threadpool_limits(3, user_api="openmp"):
        for quota, expected in [(1, 1), (2, 2), (5, 3)]:
            threads._cpu_count.cache_clear()
            monkeypatch.setattr(threads, "cpu_count", lambda quota=quota: quota)
            assert n_threads() == expected
    threads._cpu_count.cache_clear()


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity there")
def test_narrower_affinity(monkeypatch):
    """Also where threads were counted before."""
    here = os.sched_getaffinity(0)
    if len(here) == 1:
        pytest.skip("one processor only")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with threadpool_limits(2, user_api="openmp"):
        found = [n_threads()]
        try:
            os.sched_setaffinity(0, [min(here)])
            found.append(n_threads())
        finally:
            os.sched_setaffinity(0, here)
    assert [*found, n_threads()] == [2, 1, min(len(here), n_threads())]


@needs_openmp
def test_inner_limit_of_joblib():
    with parallel_config(backend="loky", inner_max_num_threads=1):
        assert Parallel(n_jobs=2)(delayed(n_threads)() for _ in range(2)) == [1, 1]


# When a team gives way.


class Calls:
    """Calls of 50 ms, in simulated time, of something that two threads are wanted for."""

    def __init__(self):
        self.now = 0.0
        self.pace = Pace(clock=lambda: self.now)

    def make(self, n_calls, *, worked=1.0, alone=1.0, team=1.0):
        """Threads that each call took; a row takes a team and one alone so many seconds."""
        taken = []
        for _ in range(n_calls):
            n = self.pace.threads(2)
            self.now += 0.05
            self.pace.saw(n, 0.05, 0.05 / (team if n == 2 else alone), worked if n == 2 else 0.0)
            taken.append(n)
        return taken


def stretches(taken):
    """How often in a row one thread, or the team, had its turn."""
    return [(n, len(list(group))) for n, group in itertools.groupby(taken)]


def test_a_team_that_has_cores_goes_on():
    assert set(Calls().make(1000, alone=0.1)) == {2}


def test_one_bad_call_is_no_reason():
    calls = Calls()
    assert set(calls.make(100) + calls.make(1, worked=0.5, alone=0.1) + calls.make(100)) == {2}


def test_without_cores_one_thread_goes_on_alone():
    calls = Calls()
    taken = calls.make(600, worked=0.5, alone=0.7)
    first = taken.index(1)
    assert 1 < first < 10
    # The trial, then five calls in 0.25 s; the team is tried again, and patience doubles up to 4 s.
    found = stretches(taken[first:])
    assert all(length == 1 for n, length in found if n == 2)
    alone = [length - 1 for n, length in found if n == 1][:6]
    assert alone == pytest.approx([5, 10, 20, 40, 80, 80], abs=1)


def test_a_team_that_is_faster_all_the_same():
    """Alone for a trial now and then, ever less often."""
    taken = Calls().make(600, worked=0.5, alone=1.5)
    found = stretches(taken)
    assert all(length == 1 for n, length in found if n == 1)
    between = [length for n, length in found if n == 2][1:7]
    assert between == pytest.approx([5, 10, 20, 40, 80, 80], abs=1)


def test_the_team_comes_back():
    """When the other process has gone: at the next attempt, and with its first patience."""
    calls = Calls()
    assert calls.make(100, worked=0.5, alone=0.7)[-1] == 1
    found = stretches(calls.make(400))
    assert [n for n, _ in found] == [1, 2]
    assert found[0][1] <= 80
    first = stretches(calls.make(60, worked=0.5, alone=0.7))
    assert first[1] == (1, pytest.approx(6, abs=1))


def test_calls_that_overlap_share_a_pace():
    """A team's call that began before another went alone may end after that one's patience."""
    calls = Calls()
    while calls.pace.threads(2) == 2:
        calls.make(1, worked=0.3)
    calls.pace.saw(1, 0.5, 1.0, 0.0)
    calls.now += 1.0
    calls.pace.saw(2, 1.0, 1.0, 0.3)
    assert set(calls.make(10, worked=0.3, alone=0.5)) <= {1, 2}


def test_small_calls_are_no_trial(monkeypatch):
    """Only what a team would have done can be compared with what a team did."""
    module = sys.modules[executor_class(BEST).__module__]
    monkeypatch.setattr(threads, "n_threads", lambda: 2)
    pace = Pace()
    monkeypatch.setattr(module, "_inference_pace", pace)
    pace.saw(2, 1.0, 1.0, 0.0)
    assert pace.threads(2) == 1
    case = network_case()
    with case.executor(BEST, case.network()) as it:
        it.predict(case.data()[0][:1])
        it.predict(np.repeat(case.data()[0], 10, axis=0))
    pace.saw(1, 2.0, 1.0, 0.0)
    assert pace.threads(2) == 2


# Ctrl-C.


@pytest.mark.skipif(os.name == "nt", reason="no timers there")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_ctrl_c_in_a_batch_of_a_team(monkeypatch):
    """One mini-batch takes longer than a call may; the next fit knows nothing of it."""
    monkeypatch.setattr(threads, "n_threads", lambda: 2)
    rng = np.random.RandomState(0)
    X = rng.normal(size=(20_000, 30)).astype(np.float32)
    model = MLPRegressorBN(
        hidden_layer_sizes=(200, 200), batch_size=len(X), max_iter=2, random_state=0
    )
    expected = bits(model.fit(X, X[:, 0]).coefs_)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.warns(UserWarning, match="interrupted by user"):
            model.set_params(max_iter=10_000).fit(X, X[:, 0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not at_work.threads
    assert bits(model.set_params(max_iter=2).fit(X, X[:, 0]).coefs_) == expected


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


def run(program, before="", **environment):
    done = subprocess.run(
        [sys.executable, "-c", before + PRELUDE + program],
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
with multiprocessing.get_context("fork").Pool(2) as pool:
    found, inside = pool.starmap(fit, [()] * 4), pool.apply(n_threads)
print(before, inside, found == 4 * [expected], n_threads() == before)
"""
    threads = "2" if has_openmp() else "1"
    assert run(program, OMP_NUM_THREADS=threads) == [threads, "1", "True", "True"]


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forks_in_the_midst_of_fits():
    """While another thread fits, and from a fit's own scorer: the child gets the same bits."""
    program = """
import os, threading
from skbn.backends.cpu import executor_class, threads
threads.WORTH_A_TEAM = 0.0

def outcome_of_child(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

expected, done = fit(), threading.Event()
def go_on():
    while not done.is_set():
        fit()
worker = threading.Thread(target=go_on)
worker.start()
pids = []
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(fit() != expected or n_threads() != 1)
    pids.append(pid)
print(*map(outcome_of_child, pids))
done.set()
worker.join()
print(fit() == expected, threads.at_work.threads == set())

pid = None
def score(model, X, y):
    global pid
    if forks and pid is None:
        pid = os.fork()
    return model.score(X, y)

for forks in (False, True):
    found = fit(early_stopping=True, scoring=score)
    if pid == 0:
        os._exit(found != before or fit() != expected)
    before = found if not forks else before
print(outcome_of_child(pid), found == before)
"""
    found = run(program, OMP_NUM_THREADS="2")
    assert found == ["0"] * 5 + ["True", "True"] + ["0", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_a_fit_that_holds_blas():
    """It ends the fit, and holds BLAS again in its own next one."""
    program = """
import os
from threadpoolctl import threadpool_info, threadpool_limits
from skbn._layers import Dense
from skbn._network import Network
from skbn.backends.cpu import executor_class

def executor():
    return executor_class("baseline")(Network([Dense(2, 1)], np.float64))

def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

with threadpool_limits(2, user_api="blas"):
    with executor():
        pid = os.fork()
    if pid == 0:
        with executor():
            held = blas_threads()
        os._exit(held != {1} or blas_threads() != {2})
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *blas_threads())
"""
    assert run(program) == ["0", "2"]


@needs_openmp
def test_limits_that_others_set():
    """OMP_NUM_THREADS, and threadpoolctl, also where a limit was set before the first fit."""
    program = """
from threadpoolctl import threadpool_limits
with threadpool_limits(1, user_api="openmp"):
    inside = n_threads()
print(inside, n_threads())
"""
    first = "import skbn, threadpoolctl; limit = threadpoolctl.threadpool_limits(1, 'openmp')\n"
    assert run(program, OMP_NUM_THREADS="3") == ["1", "3"]
    assert run("print(n_threads())", OMP_NUM_THREADS="1") == ["1"]
    assert run("print(n_threads())", before=first, OMP_NUM_THREADS="3") == ["1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_a_parent_that_has_computed_nothing():
    """Another package may have used the same OpenMP: having imported skbn is enough."""
    program = """
import os, skbn
pid = os.fork()
if pid == 0:
    from skbn.backends.cpu.threads import n_threads
    os._exit(n_threads() != 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout.split(), done.returncode) == (["0"], 0), done.stderr


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
