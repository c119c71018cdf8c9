"""GridSearchCV over MLPClassifierBN: many short fits, side by side."""
# SPDX-License-Identifier: BSD-3-Clause

from joblib import cpu_count, parallel_config
from sklearn.model_selection import GridSearchCV

from .common import N_THREADS, Estimator
from .neural_network import make_data, make_net


class GridSearchCVBenchmark(Estimator):
    """Eight candidates, three folds, on circles, in threads.

    asv ends its processes without cleaning up, and worker processes would outlive them.
    """

    param_names = ("n_jobs",)
    params = (N_THREADS,)

    def make_data(self, params):
        return make_data("2-50-1", "float32")

    def make_estimator(self, params):
        if params["n_jobs"] > cpu_count():
            raise NotImplementedError
        parallel_config("threading")  # until the process ends
        grid = {
            "batch_norm": [None, "before", "after", "input"],
            "learning_rate_init": [0.01, 0.1],
        }
        return GridSearchCV(make_net("2-50-1"), grid, cv=3, n_jobs=params["n_jobs"])
