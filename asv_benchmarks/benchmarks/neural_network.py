"""MLPClassifierBN, every placement of batch norm, beside scikit-learn's MLPClassifier."""
# SPDX-License-Identifier: BSD-3-Clause

from typing import ClassVar

import numpy as np
from sklearn.datasets import load_digits, make_circles
from sklearn.neural_network import MLPClassifier

from skbn import MLPClassifierBN

from .estimators import Fit, PartialFit, Predict

RIVAL = "sklearn"  # has no batch norm to do


class NetworkBenchmark(Fit, Predict, PartialFit):
    """The axes and the schedule that all networks share."""

    param_names = ("dtype", "batch_norm")
    params = (("float32", "float64"), (RIVAL, "none", "before", "after", "input"))
    schedule: ClassVar[dict]  # the network and how it is trained

    def make_estimator(self, dtype, batch_norm):
        shared = dict(self.schedule, tol=0.0, n_iter_no_change=np.inf, random_state=0)
        if batch_norm == RIVAL:
            return MLPClassifier(**shared)
        return MLPClassifierBN(batch_norm=None if batch_norm == "none" else batch_norm, **shared)


class SmallNetwork(NetworkBenchmark):
    """2-50-1 on circles: overheads, not arithmetic."""

    schedule: ClassVar = {
        "hidden_layer_sizes": (50,),
        "solver": "sgd",
        "learning_rate_init": 0.01,
        "nesterovs_momentum": False,
        "batch_size": 32,
        "max_iter": 100,
    }

    def make_data(self, dtype, batch_norm):
        X, y = make_circles(500, noise=0.1, random_state=1)
        return X.astype(dtype), y


class DigitsNetwork(NetworkBenchmark):
    """64-256-128-10 on digits: mostly matrix products."""

    schedule: ClassVar = {
        "hidden_layer_sizes": (256, 128),
        "solver": "adam",
        "batch_size": 256,
        "max_iter": 5,
    }

    def make_data(self, dtype, batch_norm):
        X, y = load_digits(return_X_y=True)
        return (X / 16).astype(dtype), y
