"""A fit has the same bits on any number of threads, and run after run."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import hashlib

import numpy as np
import pytest
from cases import PLACEMENTS, each_dtype
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from skbn import MLPClassifierBN, MLPRegressorBN
from skbn.backends import get_executor
from skbn.backends.cpu import threads
from skbn.backends.cpu.processor import has_openmp

pytestmark = pytest.mark.skipif(not has_openmp(), reason="built without OpenMP")

N_THREADS = (1, 2, 3, 4, 8)


@pytest.fixture
def on(monkeypatch):
    """A function that fits on so many threads, and fails unless so many have worked."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")  # the user's word, above the number of processors
    monkeypatch.setattr(threads, "WORTH_A_TEAM", 0.0)
    monkeypatch.setattr(threads.Pace, "WORKED", 0.0)  # a busy machine must not change the number
    sizes = []

    class Watched(get_executor("cpu")):
        def train(self, *args):
            position = super().train(*args)
            sizes.append(self.n_workers)
            return position

        def loss_and_gradient(self, *args, **kwargs):
            loss = super().loss_and_gradient(*args, **kwargs)
            sizes.append(self.n_workers)
            return loss

    monkeypatch.setattr("skbn._mlp.get_executor", lambda device: Watched)

    def fit(n_threads, estimator, *args, **kwargs):
        sizes.clear()
        with threadpool_limits(n_threads, user_api="openmp"):
            estimator.fit(*args, **kwargs)
        assert set(sizes) == {n_threads}
        return estimator

    return fit


def digest(model, X):
    """A hash over all arrays of a fitted estimator and over what it predicts."""
    found = hashlib.sha256()

    def take(value):
        if isinstance(value, np.ndarray):
            found.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, list | tuple):
            for item in value:
                take(item)
        elif hasattr(value, "__dict__"):
            take([item for _, item in sorted(vars(value).items())])
        elif isinstance(value, float):
            found.update(np.float64(value).tobytes())

    take(model)
    take([model.predict(X), model.transform_hidden(X)])
    take(model.predict_proba(X) if hasattr(model, "predict_proba") else [])
    return found.hexdigest()


def problem(dtype, n_rows=700, n_features=23, n_classes=4, n_outputs=None):
    """Rows, and codes of classes or numbers; odd sizes, so that every tile has an edge."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n_rows, n_features)).astype(dtype)
    raw = X @ rng.normal(size=(n_features, n_outputs or n_classes))
    return X, (raw.argmax(axis=1) if n_outputs is None else raw)


def model(kind, **params):
    params = {
        "hidden_layer_sizes": (150, 70),
        "batch_size": 300,
        "max_iter": 3,
        "tol": 0.0,
        "random_state": 0,
    } | params
    return {"classifier": MLPClassifierBN, "regressor": MLPRegressorBN}[kind](**params)


def assert_same(on, make, X, *args, **kwargs):
    found = {n: digest(on(n, make(), X, *args, **kwargs), X) for n in N_THREADS}
    assert len(set(found.values())) == 1, found
    assert digest(on(2, make(), X, *args, **kwargs), X) == found[2]  # run after run


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("placements", PLACEMENTS, ids=lambda p: "+".join(p) or "none")
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
@each_dtype
def test_placements(on, kind, placements, dtype):
    X, y = problem(dtype, n_outputs=None if kind == "classifier" else 3)
    assert_same(on, lambda: model(kind, batch_norm=placements), X, y)


OPTIONS = {
    "tanh": {"activation": "tanh"},
    "logistic, before": {"activation": "logistic", "batch_norm": "before"},
    "gelu": {"activation": "gelu"},
    "softplus": {"activation": "softplus"},
    "dropout": {"dropout": 0.3},
    "virtual batches": {"bn_virtual_batch_size": 37},
    "clipped": {"max_grad_norm": 0.01},
    "no penalty": {"alpha": 0.0},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.01},
    "rmsprop": {"solver": "rmsprop"},
    "early stopping": {"early_stopping": True, "batch_size": 200},
    "lbfgs": {"solver": "lbfgs", "batch_size": "auto"},
    "moving statistics": {"bn_statistics": "moving"},
    "wide": {"hidden_layer_sizes": (600,), "max_iter": 1},
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:The max_iter was reached")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(on, options):
    X, y = problem(np.float32)
    assert_same(on, lambda: model("classifier", **options), X, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("batch_norm", ["after", "input"])
def test_sparse_rows(on, batch_norm):
    X, y = problem(np.float32, n_features=60)
    X[np.random.RandomState(1).uniform(size=X.shape) < 0.8] = 0
    assert_same(on, lambda: model("classifier", batch_norm=batch_norm), csr_array(X), y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@each_dtype
def test_weights(on, dtype):
    """Some of them zero, and the whole of a mini-batch."""
    X, y = problem(dtype)
    weights = np.random.RandomState(1).uniform(0, 2, len(X)) // 0.5
    weights[:300] = 0
    make = lambda: model("classifier", shuffle=False)  # noqa: E731
    assert_same(on, make, X, y, sample_weight=weights)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_labels_and_a_single_output(on):
    X, raw = problem(np.float32, n_outputs=5)
    labels = (raw > 0).astype(int)
    assert_same(on, lambda: model("classifier"), X, labels)
    assert_same(on, lambda: model("classifier"), X, labels[:, 0])
    assert_same(on, lambda: model("regressor", loss="huber"), X, raw[:, 0])
