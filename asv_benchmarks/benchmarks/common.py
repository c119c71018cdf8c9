"""What benchmarks share: profiles, threads, and a mixin for each thing that an estimator does.

Laid out as scikit-learn's own suite is: a class says in ``params`` what to vary, in ``make_data``
and ``make_estimator`` what to run, and inherits what to measure. The same parameters are the same
work in every profile. SKBN_BENCH_PROFILE names the profile:

- ``quick``: every benchmark once, in float32, of the rivals only scikit-learn;
- ``regular``, the default: many times;
- ``large_scale``: as regular, with large data as well.
"""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import os
import warnings
from abc import ABC, abstractmethod
from contextlib import ExitStack
from timeit import default_timer

import numpy as np
from joblib import cpu_count
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from turns import limited_to

PROFILE = os.environ.get("SKBN_BENCH_PROFILE", "regular")
SAMPLING = {
    "quick": {"repeat": 1, "number": 1, "warmup_time": 0, "min_run_count": 1},
    "regular": {"repeat": (5, 100, 2.0), "warmup_time": 0.1},
}
SAMPLING["large_scale"] = SAMPLING["regular"]
WITH_RIVALS, LARGE_SCALE = PROFILE != "quick", PROFILE == "large_scale"
N_THREADS = sorted({1, 2, cpu_count()})
ALL_DTYPES = ("float32", "float64")
DTYPES = ALL_DTYPES[:1] if PROFILE == "quick" else ALL_DTYPES


class Benchmark:
    """How asv runs a class."""

    timer = default_timer  # wall time; the default counts the processor time of all threads
    rounds = 1  # more than one process each would be asked to take turns
    timeout = 300
    locals().update(SAMPLING[PROFILE])

    def limit_threads(self, n_threads):
        """Limit what is loaded by now, until teardown."""
        if n_threads > cpu_count():
            raise NotImplementedError  # asv passes over it
        self.limits = ExitStack()
        self.limits.enter_context(limited_to(n_threads))

    def teardown(self, *params):
        if hasattr(self, "limits"):
            self.limits.close()


class Estimator(Benchmark, ABC):
    """Time, peak memory and scores of ``fit``.

    asv repeats ``setup`` before every call that it times. What is made there is made once, fitted
    once (so that fits are timed warm, and limits find all libraries loaded), and copied.
    """

    @abstractmethod
    def make_data(self, params):
        """Return X_train, X_test, y_train and y_test."""

    @abstractmethod
    def make_estimator(self, params):
        """Return an unfitted estimator."""

    def setup(self, *params):
        params = dict(zip(self.param_names, params, strict=True))
        warnings.simplefilter("ignore", ConvergenceWarning)  # every fit ends at max_iter
        if not hasattr(self, "fitted"):
            self.X, self.X_test, self.y, self.y_test = self.make_data(params)
            self.fitted = self.make_estimator(params).fit(self.X, self.y)
        self.estimator = copy.deepcopy(self.fitted)
        self.limit_threads(params.get("n_threads", cpu_count()))

    def time_fit(self, *params):
        self.estimator.fit(self.X, self.y)

    def peakmem_fit(self, *params):
        self.estimator.fit(self.X, self.y)

    def track_train_score(self, *params):
        return float(self.estimator.score(self.X, self.y))

    def track_test_score(self, *params):
        return float(self.estimator.score(self.X_test, self.y_test))


class PartialFitter(Estimator):
    """The same of ``partial_fit``: the training rows once, in the mini-batches of ``fit``."""

    def stream(self, estimator, **first):
        size = getattr(estimator, "batch_size", 1000)
        for start in range(0, len(self.X) - size + 1, size):
            rows = slice(start, start + size)
            estimator.partial_fit(self.X[rows], self.y[rows], **first)
            first = {}
        return estimator

    def time_partial_fit(self, *params):
        self.stream(self.estimator)

    def peakmem_partial_fit(self, *params):
        self.stream(self.estimator)

    def track_partial_fit_score(self, *params):
        classes = {"classes": np.unique(self.y)} if hasattr(self.fitted, "classes_") else {}
        streamed = self.stream(clone(self.fitted), **classes)
        return float(streamed.score(self.X_test, self.y_test))


class ManyRows(Estimator):
    """For methods that are about many rows: the test rows again and again."""

    def setup(self, *params):
        super().setup(*params)
        if not hasattr(self, "X_many"):
            n_features = self.X_test.shape[1]
            n_rows = min(200_000, 10_000_000 // n_features)
            self.X_many = np.resize(self.X_test, (n_rows, n_features))


class Predictor(ManyRows):
    """Time and peak memory of ``predict``; scores are those of fit."""

    def time_predict(self, *params):
        self.estimator.predict(self.X_many)

    def peakmem_predict(self, *params):
        self.estimator.predict(self.X_many)

    def time_predict_one_row_100_times(self, *params):
        for _ in range(100):
            self.estimator.predict(self.X_test[:1])


class Transformer(ManyRows):
    """Time and peak memory of what transforms rows."""

    method = "transform"

    def time_transform(self, *params):
        getattr(self.estimator, self.method)(self.X_many)

    def peakmem_transform(self, *params):
        getattr(self.estimator, self.method)(self.X_many)
