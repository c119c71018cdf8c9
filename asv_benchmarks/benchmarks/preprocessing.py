"""BatchNormTransformer beside StandardScaler: statistics of whole arrays and of streams."""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from sklearn.preprocessing import StandardScaler

from .common import DTYPES, N_THREADS, PartialFitter, Transformer


class BatchNormTransformerBenchmark(PartialFitter, Transformer):
    """The score is the largest error of what comes out, against float64."""

    param_names = ("scaler", "dtype", "n_threads")
    params = (("BatchNormTransformer", "StandardScaler"), DTYPES, N_THREADS)
    track_test_score = track_partial_fit_score = None

    def make_data(self, params):
        rng = np.random.default_rng(0)
        X = (rng.standard_normal((100_000, 64), np.float32) + 10).astype(params["dtype"])
        return X, X, np.zeros(len(X)), np.zeros(len(X))

    def make_estimator(self, params):
        from skbn import BatchNormTransformer

        if params["scaler"] == "StandardScaler":
            return StandardScaler()
        return BatchNormTransformer(epsilon=0.0)

    def track_train_score(self, *params):
        X = self.X.astype(np.float64)
        exact = (X - X.mean(axis=0)) / X.std(axis=0)
        return float(np.abs(self.estimator.transform(self.X) - exact).max())
