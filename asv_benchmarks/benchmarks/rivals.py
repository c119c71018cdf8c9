"""Whole fits of skbn and of its rivals, as compare_rivals.py times them in turn.

That script's ratios are the figures to quote: sides that take turns share what else happens on the
machine. This follows each side alone, over commits and over releases of the rivals.
"""
# SPDX-License-Identifier: BSD-3-Clause

import os
import warnings

import numpy as np
from compare_rivals import accuracy
from contenders import (
    ASIDE,
    BIG,
    SMALL_ADAM,
    SMALL_SGD,
    TWO_LAYERS,
    WIDE,
    jax_net,
    keras_net,
    skbn_net,
    sklearn_net,
    torch_net,
)
from joblib import cpu_count
from sklearn.exceptions import ConvergenceWarning
from turns import enter, on_threads, turns

from .common import N_THREADS, PROFILE, WITH_RIVALS, Benchmark


def compiled_torch_net(problem):
    return {"torch.compile": torch_net(problem, with_compile=True)["torch.compile"]}


CONTENDERS = {"skbn": skbn_net, "sklearn": sklearn_net}
PROBLEMS = {"2-50-1, SGD": SMALL_SGD}
if WITH_RIVALS:
    CONTENDERS |= {
        "torch": torch_net,
        "torch compiled": compiled_torch_net,
        "jax scan": jax_net,
        "keras": keras_net,
    }
    PROBLEMS |= {
        "2-50-1, Adam": SMALL_ADAM,
        "2-50-50-1, SGD": TWO_LAYERS,
        "64-256-128-10, Adam": WIDE,
        "784-512-512-10, Adam": BIG,
    }
ONLY_SGD_AND_ONE_OUTPUT = {"jax scan", "keras"}


class RivalsBenchmark(Benchmark):
    """The same work for all, in float32, each with the fastest of its variants."""

    timeout = 1800
    param_names = ("package", "problem", "n_threads")
    params = (tuple(CONTENDERS), tuple(PROBLEMS), N_THREADS)

    def setup(self, package, problem, n_threads):
        if n_threads > cpu_count():
            raise NotImplementedError
        if package in ONLY_SGD_AND_ONE_OUTPUT and PROBLEMS[problem] not in (SMALL_SGD, TWO_LAYERS):
            raise NotImplementedError
        if hasattr(os, "sched_setaffinity"):  # JAX has no other limit
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-n_threads:])
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            variants = CONTENDERS[package](PROBLEMS[problem])
        except ModuleNotFoundError:
            raise NotImplementedError from None
        self.variants = on_threads(variants, (n_threads,))

    def fit_in_turns(self, problem):
        """Return median seconds and accuracy over some seeds."""
        aside = () if next(iter(self.variants)).startswith("torch.compile") else ASIDE
        side = {"it": enter(self.variants, aside)}
        found = [
            (seconds, accuracy(predict_proba, *PROBLEMS[problem].data()))
            for _, seconds, predict_proba in turns(side, 1 if PROFILE == "quick" else 5)
        ]
        return np.median(found, axis=0).tolist()

    def track_fit_time(self, package, problem, n_threads):
        return self.fit_in_turns(problem)[0]

    def track_train_score(self, package, problem, n_threads):
        return self.fit_in_turns(problem)[1]

    def peakmem_fit(self, *params):
        next(iter(self.variants.values()))(0, 1)


RivalsBenchmark.track_fit_time.unit = "seconds"
