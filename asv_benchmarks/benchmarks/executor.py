"""The training step alone, at every instruction level that this machine has."""
# SPDX-License-Identifier: BSD-3-Clause

from .common import DTYPES, Benchmark


class StepBenchmark(Benchmark):
    """The best of many epochs on one thread, a mini-batch of 32 rows, as in time_step.py."""

    unit = "us"
    param_names = ("level", "hidden", "solver", "dtype")
    params = (("baseline", "x86_64_v3", "x86_64_v4"), ("50", "50-50"), ("sgd", "adam"), DTYPES)

    def track_step(self, level, hidden, solver, dtype):
        from time_step import microseconds_a_step

        from skbn.backends.cpu import LEVELS

        if level not in LEVELS:
            return float("nan")  # asv's "n/a"
        hidden = tuple(map(int, hidden.split("-")))
        return microseconds_a_step(level, dtype, hidden, ("after",), solver)
