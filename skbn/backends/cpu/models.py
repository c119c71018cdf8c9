"""Many small networks that train side by side, in one call an epoch."""
# SPDX-License-Identifier: BSD-3-Clause

from functools import cache
from itertools import compress
from math import inf

from joblib import effective_n_jobs

from skbn.backends.cpu import threads
from skbn.backends.models import Models


class CPUModels(Models):
    """Train networks for which one thread is enough."""

    compiled = None  # the module of the executor
    n_together = 32  # what they train in stays in the caches

    @staticmethod
    def n_threads(n_jobs):
        """Return how many threads may train networks at the same time, by joblib's count."""
        return threads.team_size(inf) if n_jobs is None else effective_n_jobs(n_jobs)

    @classmethod
    def accepts(cls, network, *, loss_kind, batch_size, X):
        """Return whether a mini-batch is too little work for several threads."""
        seconds = cls.compiled.seconds_of_batch(batch_size, network.n_params, network.row_size)
        return seconds < threads.WORTH_A_TEAM

    def train(self, X, targets, weights, rows, optimizers, active, sums):
        """Do an epoch of every network that is active."""
        several = (self.executors, weights, rows, optimizers, sums)
        executors, weights, rows, optimizers, sums = (list(compress(s, active)) for s in several)
        self.compiled.train_in_turn(executors, X, targets, weights, rows, optimizers, sums)


@cache
def models_of(compiled):
    """Return the models over the executor of a compiled module."""
    members = {"executor_class": compiled.CPUExecutor, "compiled": compiled}
    return type("CPUModels", (CPUModels,), members)
