"""How many results differ in any bit from those of one thread: 0, always."""
# SPDX-License-Identifier: BSD-3-Clause

import os
import warnings

import joblib
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from .common import ALL_DTYPES, Benchmark
from .functional import LAYOUTS, SkbnNorm, make_numbers
from .neural_network import CLASSIFIERS, REGRESSORS, make_data, make_net


def count_different(work):
    """Return how many of some numbers of threads give other bits than one thread does."""
    os.environ["OMP_NUM_THREADS"] = "4"  # the user's word: more threads than processors
    warnings.simplefilter("ignore", ConvergenceWarning)
    work()  # limits reach only what is loaded
    from skbn.backends.cpu.threads import Pace

    Pace.WORKED = 0.0  # on a busy machine too, as many threads as were asked for
    hashes = []
    for n_threads in (1, 2, 4):
        with threadpool_limits(n_threads):
            hashes.append(joblib.hash(work()))
    return sum(found != hashes[0] for found in hashes)


class FitBitsBenchmark(Benchmark):
    """All that a fitted estimator holds, and what it predicts."""

    unit = "differ"
    param_names = ("net", "batch_norm", "dtype")
    params = (tuple(CLASSIFIERS | REGRESSORS), ("before", "after"), ALL_DTYPES)

    def track_different_bits(self, net, batch_norm, dtype):
        X, X_test, y, _ = make_data(net, dtype)

        def work():
            model = make_net(net, batch_norm=batch_norm).set_params(max_iter=2).fit(X, y)
            return vars(model), model.predict(X_test), model.transform_hidden(X_test)

        return count_different(work)


class FunctionalBitsBenchmark(Benchmark):
    """Results of batch norm of an array and its gradient."""

    unit = "differ"
    param_names = ("layout", "dtype")
    params = (tuple(LAYOUTS), ALL_DTYPES)

    def track_different_bits(self, layout, dtype):
        norm = SkbnNorm(*make_numbers(layout, dtype))

        def work():
            norm.y, norm.saved = norm.forward()
            statistics = norm.saved.mean, norm.saved.var
            return norm.y, statistics, norm.backward(), norm.inference(), norm.moments()

        return count_different(work)
