"""What every estimator's benchmarks share: a mixin for each thing that is measured.

Laid out as scikit-learn's own suite is: a benchmark class says in `params` what to vary, in
`make_data` and `make_estimator` what to run, and inherits what to measure. `setup` fits once, so
that prediction and scores need no fit of their own and fit itself is measured warm.
"""
# SPDX-License-Identifier: BSD-3-Clause

import warnings
from abc import ABC, abstractmethod
from timeit import default_timer

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning


class Benchmark(ABC):
    """How asv runs a class, and the estimator it runs."""

    timer = default_timer  # wall time; the default counts the processor time of all threads
    processes = 1
    timeout = 120

    @abstractmethod
    def make_data(self, *params):
        """Return X and y for a combination of parameters."""

    @abstractmethod
    def make_estimator(self, *params):
        """Return an unfitted estimator for a combination of parameters."""

    def setup(self, *params):
        # Every fit here ends at max_iter, by design.
        warnings.simplefilter("ignore", ConvergenceWarning)
        self.X, self.y = self.make_data(*params)
        self.fitted = self.make_estimator(*params).fit(self.X, self.y)
        self.estimator = clone(self.fitted)


class Fit(Benchmark):
    def time_fit(self, *params):
        self.estimator.fit(self.X, self.y)

    def peakmem_fit(self, *params):
        self.estimator.fit(self.X, self.y)

    def track_train_score(self, *params):
        return float(self.fitted.score(self.X, self.y))


class Predict(Benchmark):
    def time_predict(self, *params):
        self.fitted.predict(self.X)


class PartialFit(Benchmark):
    n_rows = 32

    def time_partial_fit(self, *params):
        self.fitted.partial_fit(self.X[: self.n_rows], self.y[: self.n_rows])
