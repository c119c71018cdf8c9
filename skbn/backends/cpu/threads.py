"""How many threads, and the guard that keeps BLAS on one.

Two pools of spinning threads that take turns cost a hundred times what they save, and a matrix
product's bits depend on how many threads shared it. So BLAS runs on one thread while skbn computes,
and all parallelism is a region of our own over blocks fixed by shape. The BLAS limit is
process-wide while fits overlap in threads: it is counted, the first to come sets it and the last to
leave restores it.
"""
# SPDX-License-Identifier: BSD-3-Clause

import os
import threading
from functools import cache

from joblib import cpu_count
from threadpoolctl import ThreadpoolController

from skbn.backends.cpu.processor import openmp_max_threads

_forked = False


def _after_fork():
    global _forked, _guard
    _forked = True  # OpenMP's threads did not survive; asking for them would hang
    _guard.leave_for_good()  # whoever held it did not survive either
    _guard = SingleThreadedBlas()


@cache
def _n_cpus():
    """Return the processors this process may use, a container's quota respected."""
    return cpu_count()


def n_threads():
    """Return the number of threads for a region: what OpenMP allows, one in a forked child.

    Without a word from the user (OMP_NUM_THREADS) OpenMP counts the processors of the machine, not
    those that this process may use.
    """
    if _forked:
        return 1
    limit = openmp_max_threads()
    return limit if "OMP_NUM_THREADS" in os.environ else min(limit, _n_cpus())


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


def single_threaded_blas():
    """Return the process-wide guard, a context manager."""
    return _guard


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
