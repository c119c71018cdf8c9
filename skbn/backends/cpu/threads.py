"""How many threads work is worth, when one is, and the guard that keeps BLAS on one.

All parallelism is OpenMP regions of our own. Two pools of spinning threads that take turns cost a
hundred times what they save, and the bits of BLAS's products depend on how many threads shared
them: where products are BLAS's (see products.pxd), it runs on one thread while skbn computes. That
limit is process-wide while fits overlap in threads: it is counted, the first to come sets it and
the last to leave restores it.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ctypes
import math
import os
import threading
import time
from collections import Counter
from functools import cache

from joblib import cpu_count
from threadpoolctl import ThreadpoolController

from skbn.backends.cpu.processor import openmp_address, openmp_max_threads

# Seconds of work, on one thread, below which meeting at every layer costs more than others save.
WORTH_A_TEAM = 100e-6

_forked = False


def _after_fork():
    global _forked, _guard
    _forked = True  # OpenMP's threads did not survive; asking for them would hang
    _guard.leave_for_good()  # whoever held it did not survive either
    _guard = SingleThreadedBlas()
    at_work.__init__()  # in place: executors know it by name


@cache
def _cpu_count(n_allowed):
    """Return joblib's count, which takes 70 us because it asks the container too."""
    return cpu_count()


def _n_cpus():
    """Return the processors this thread may use, a container's quota respected."""
    return _cpu_count(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)


def n_threads():
    """Return the number of threads for a region: what OpenMP allows, one in a forked child.

    Without a word from the user (OMP_NUM_THREADS) OpenMP counts the processors of the machine, not
    those that this process may use.
    """
    if _forked:
        return 1
    limit = openmp_max_threads()
    return limit if "OMP_NUM_THREADS" in os.environ else min(limit, _n_cpus())


def openmp_library():
    """Return the path of our OpenMP library: of several in a process, the one that kernels call."""
    for library in ThreadpoolController().select(user_api="openmp").lib_controllers:
        function = library.dynlib.omp_get_max_threads
        if ctypes.cast(function, ctypes.c_void_p).value == openmp_address():
            return library.filepath
    return "one that threadpoolctl does not know"


class AtWork:
    """Context that counts the Python threads in which executors are entered."""

    def __init__(self):
        self._lock = threading.Lock()
        self._depths = Counter()

    def __enter__(self):
        with self._lock:
            self._depths[threading.get_ident()] += 1

    def __exit__(self, *exception):
        with self._lock:
            self._depths[threading.get_ident()] -= 1
            self._depths = +self._depths

    @property
    def threads(self):
        """Their identifiers."""
        with self._lock:
            return set(self._depths)


def team_size(seconds):
    """Return how many threads work is worth that takes one of them so long.

    Fits that overlap, in threads of the user's, share the processors.
    """
    if seconds < WORTH_A_TEAM:
        return 1
    return max(1, n_threads() // len(at_work.threads | {threading.get_ident()}))


class Pace:
    """Whether a team is faster than one thread just now.

    Another process that wants a core stops one worker of a team while the others wait: two threads
    are then slower than one. Where waits show it, one call alone is timed, and if that was faster,
    so are the next ones, until it is time to try the team again. Results do not depend on it.
    """

    WORKED = 0.85  # share of the time for which workers had a core, below which that is suspected
    RECENT = 0.15  # seconds of work after which what was before counts by a third
    PATIENCE = 0.25, 4.0  # seconds until the choice is questioned again: at first, at most

    def __init__(self, clock=time.monotonic):
        # No lock: threads that share a pace may take one call for another, which costs some time.
        self._clock = clock
        self._patience = self.PATIENCE[0]
        self._settled = 0.0  # until when the choice is not questioned
        self._is_alone = self._is_trial = False
        self._pace = math.inf  # of the team: seconds a unit of work
        self._worked = 1.0

    def threads(self, wanted):
        """Return how many threads a call takes that is worth so many."""
        if self._is_alone and not self._is_trial and self._clock() >= self._settled:
            self._is_alone, self._pace = False, math.inf
            self._worked = self.WORKED  # one bad call, and it is suspected again
        return 1 if self._is_alone or self._is_trial else wanted

    def saw(self, threads, seconds, work, worked):
        """Take note of a call that was worth more than one thread.

        It took so many seconds for so much work, and for this share of them its workers had cores.
        """
        if threads > 1:
            if self._is_alone:
                return  # it began before the choice
            weight = -math.expm1(-seconds / self.RECENT)
            usual = seconds / work if self._pace == math.inf else self._pace
            self._pace = usual + weight * (seconds / work - usual)
            self._worked += weight * (worked - self._worked)
            if self._worked > (1 + self.WORKED) / 2:
                self._patience = self.PATIENCE[0]
            elif self._clock() >= self._settled:
                self._is_trial = self._worked < self.WORKED
        elif self._is_trial:
            self._is_trial, self._is_alone = False, seconds / work < self._pace
            self._settled = self._clock() + self._patience
            self._patience = min(2 * self._patience, self.PATIENCE[1])


class SingleThreadedBlas:
    """Re-entrant, counted context in which BLAS uses one thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._depth = 0
        self._controller = None
        self._limiter = None

    def __enter__(self):
        with self._lock:
            if self._depth == 0:
                if self._controller is None:  # 2 ms, once a process
                    self._controller = ThreadpoolController().select(user_api="blas")
                self._take_control()
                self._limiter = self._controller.limit(limits=1)
            self._depth += 1

    def __exit__(self, *exception):
        with self._lock:
            if self._depth == 0:  # entered before a fork
                return
            self._depth -= 1
            if self._depth == 0:
                self._take_control()
                self._limiter.restore_original_limits()
                self._take_control()

    def leave_for_good(self):
        """Restore the limits whatever the count: the holders are in another process."""
        if self._depth > 0:
            self._limiter.restore_original_limits()

    def _take_control(self):
        """Let this thread set the limit: threadpoolctl 3.8 heeds only the first thread that did."""
        for library in self._controller.lib_controllers:
            clear = getattr(library, "clear_controlling_thread", None)
            if clear is not None:
                clear(force=True)


_guard = SingleThreadedBlas()
at_work = AtWork()


def single_threaded_blas():
    """Return the process-wide guard, a context manager."""
    return _guard


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
