"""MLPClassifierBN and MLPRegressorBN, from nets that are all overhead to nets that are all work."""
# SPDX-License-Identifier: BSD-3-Clause

import functools

import numpy as np

from .common import (
    DTYPES,
    LARGE_SCALE,
    N_THREADS,
    Estimator,
    PartialFitter,
    Predictor,
    Transformer,
)
from .datasets import circles, digits, friedman, large_digits

SMALL = {
    "solver": "sgd",
    "learning_rate_init": 0.01,
    "nesterovs_momentum": False,
    "batch_size": 32,
    "max_iter": 100,
}
LARGE = {"solver": "adam", "batch_size": 256, "max_iter": 5}

CLASSIFIERS = {  # data, and how the net is trained
    "2-50-1": (circles, {"hidden_layer_sizes": (50,), **SMALL}),
    "2-50-50-1": (circles, {"hidden_layer_sizes": (50, 50), **SMALL}),
    "64-256-128-10": (digits, {"hidden_layer_sizes": (256, 128), **LARGE}),
    "784-512-512-10": (large_digits, {"hidden_layer_sizes": (512, 512), **LARGE}),
}
REGRESSORS = {
    "10-50-1": (friedman, {"hidden_layer_sizes": (50,), **SMALL}),
    "10-256-128-1": (friedman, {"hidden_layer_sizes": (256, 128), **LARGE}),
}
if LARGE_SCALE:
    CLASSIFIERS |= {
        "2-50-1, a million rows": (
            functools.partial(circles, n_rows=1_000_000),
            {"hidden_layer_sizes": (50,), **SMALL, "max_iter": 1},
        ),
        "784-512-512-10, 70,000 rows": (
            functools.partial(large_digits, n_rows=70_000),
            {"hidden_layer_sizes": (512, 512), **LARGE, "max_iter": 1},
        ),
    }


def make_net(name, **options):
    """Return one of the estimators above, unfitted."""
    from skbn import MLPClassifierBN, MLPRegressorBN

    if name in REGRESSORS:
        estimator_class, schedule = MLPRegressorBN, REGRESSORS[name][1]
    else:
        estimator_class, schedule = MLPClassifierBN, CLASSIFIERS[name][1]
    # The same number of epochs whatever comes out.
    return estimator_class(tol=0.0, n_iter_no_change=np.inf, random_state=0, **schedule, **options)


def make_data(name, dtype):
    """Return its data."""
    return (CLASSIFIERS | REGRESSORS)[name][0](dtype)


class MLPClassifierBNBenchmark(PartialFitter, Predictor, Transformer):
    """Classifiers; ``transform`` is ``transform_hidden``."""

    method = "transform_hidden"
    param_names = ("net", "dtype", "n_threads")
    params = (tuple(CLASSIFIERS), DTYPES, N_THREADS)

    def make_data(self, params):
        return make_data(params["net"], params["dtype"])

    def make_estimator(self, params):
        return make_net(params["net"])


class MLPRegressorBNBenchmark(MLPClassifierBNBenchmark):
    """Regressors."""

    params = (tuple(REGRESSORS), DTYPES, N_THREADS)


class PlacementBenchmark(Predictor):
    """The first network with batch norm at every place and at none."""

    param_names = ("batch_norm",)
    params = (("none", "before", "after", "input"),)

    def make_data(self, params):
        return make_data("2-50-1", "float32")

    def make_estimator(self, params):
        where = params["batch_norm"]
        return make_net("2-50-1", batch_norm=None if where == "none" else where)


class LargeDataBenchmark(Estimator):
    """One epoch over 188 MB of float32: a copy of X would show."""

    param_names = ("early_stopping",)
    params = ((False, True),)
    track_train_score = track_test_score = None

    def make_data(self, params):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((60_000, 784), np.float32)
        y = rng.integers(10, size=len(X))
        return X, X[:1], y, y[:1]

    def make_estimator(self, params):
        return make_net("784-512-512-10", **params).set_params(hidden_layer_sizes=(64,), max_iter=1)
