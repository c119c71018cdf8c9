"""What fits and predictions need beside X: no copy of it, few bytes a row, few vectors of weights.

Python's own counter sees every array that NumPy makes, those of the executors too, and no file that
is only mapped. What is counted is the most that there was at any time above what was there before.
"""
# SPDX-License-Identifier: BSD-3-Clause

import gc
import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from skbn import MLPClassifierBN, MLPRegressorBN
from skbn.backends import get_executor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N_ROWS, N_FEATURES = 50_000, 48
INDEX = 8 * N_ROWS  # bytes of one index a row
SOME = 300_000  # bytes: buffers of one batch, what is cached; less than an index a row
SMALL = {"hidden_layer_sizes": (8,), "batch_size": 100, "max_iter": 2, "random_state": 0}


@pytest.fixture(autouse=True)
def one_thread():
    """Each thread has blocks of its own."""
    get_executor(None)  # now its OpenMP is there to be limited
    with threadpool_limits(1):
        yield


def peak(function, *args, **kwargs):
    """The most bytes that there were at any time during a call, above those before it."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        function(*args, **kwargs)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def X():
    return np.random.RandomState(0).normal(size=(N_ROWS, N_FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def y(X):
    return (X[:, 0] > 0).astype(int)


def memmap(X, folder):
    X.tofile(folder / "X")
    return np.memmap(folder / "X", np.float32, "r", shape=X.shape)


def pandas(X, folder):
    return pytest.importorskip("pandas").DataFrame(X)


LAYOUTS = {
    "C": lambda X, folder: X,
    "Fortran": lambda X, folder: np.asfortranarray(X),
    "every second column": lambda X, folder: np.repeat(X, 2, axis=1)[:, ::2],
    "every second row": lambda X, folder: np.repeat(X, 2, axis=0)[::2],
    "float64": lambda X, folder: X.astype(np.float64),
    "read-only memmap": memmap,
    "DataFrame": pandas,
    "CSR": lambda X, folder: csr_array(np.where(X > 0, X, 0)),
}
each_estimator = pytest.mark.parametrize("estimator", [MLPClassifierBN, MLPRegressorBN])


@each_estimator
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fit_needs_an_index_and_a_target_a_row(estimator, layout, X, y, tmp_path, monkeypatch):
    monkeypatch.setattr("skbn._random.BLOCK_BYTES", 2**18)  # a block of indices is copied at a time
    given = LAYOUTS[layout](X, tmp_path)
    est = estimator(**SMALL).fit(given[:200], y[:200])  # what is imported late is there now
    itemsize = 8 if layout == "float64" else 4
    wanted = INDEX + N_ROWS * itemsize + SOME * itemsize // 4
    for shuffle in (True, "blocks"):
        est.set_params(shuffle=shuffle)
        assert peak(est.fit, given, y) < wanted
    assert peak(est.partial_fit, given, y) < wanted
    assert peak(est.recalibrate, given) < INDEX + SOME * itemsize // 4


@each_estimator
def test_pipelines_hand_rows_on(estimator, X, y):
    pipe = make_pipeline("passthrough", estimator(**SMALL)).fit(X[:200], y[:200])
    assert peak(pipe.fit, X, y) < INDEX + 4 * N_ROWS + SOME


def test_weights_need_what_they_are(X, y):
    """Weights of float64 are taken as they are; the statistics of all rows need one more index."""
    reg = MLPRegressorBN(**SMALL).fit(X[:200], y[:200])
    assert peak(reg.fit, X, y, np.linspace(1, 2, N_ROWS)) < 2 * INDEX + 5 * N_ROWS + INDEX + SOME


@pytest.mark.parametrize("scoring", [None, "neg_mean_absolute_error"])
def test_validation_rows_are_not_copied(scoring, X, y):
    """A scorer is given X_val itself; its metric is scikit-learn's, which has arrays of its own."""
    reg = MLPRegressorBN(**SMALL, scoring=scoring, early_stopping=True)
    reg.fit(X[:200], y[:200], X_val=X[:200], y_val=y[:200])
    assert peak(reg.fit, X, y, X_val=X, y_val=y) < 2 * INDEX + 40 * N_ROWS < X.nbytes / 2


@each_estimator
def test_rows_held_out_are_not_copied(estimator, X, y):
    """Splitting takes scikit-learn 90 bytes a row for a moment, where it stratifies."""
    est = estimator(**SMALL, early_stopping=True).fit(X[:200], y[:200])
    assert peak(est.fit, X, y) < 90 * N_ROWS < X.nbytes / 2


def test_predictions_need_what_they_return(X):
    """Neither X is copied nor are there raw outputs of all rows."""
    n_classes = 40
    classes = np.arange(N_ROWS) % n_classes
    clf = MLPClassifierBN(**SMALL).fit(X[:200], classes[:200])
    block = 8192 * n_classes * 4
    assert clf.predict(X[:9000]).shape == (9000,)
    assert peak(clf.predict, X) < INDEX + block + 8 * 8192 + SOME < N_ROWS * n_classes * 4
    assert peak(clf.score, X, classes) < 6 * INDEX + block
    for predict in (clf.predict_proba, clf.predict_log_proba):
        assert peak(predict, X) < N_ROWS * n_classes * 4 + 5 * block + SOME
    assert peak(clf.transform_hidden, X) < N_ROWS * 8 * 4 + SOME
    reg = MLPRegressorBN(**SMALL).fit(X[:200], classes[:200])
    assert peak(reg.predict, X) < N_ROWS * 4 + SOME


@pytest.mark.parametrize("n_classes", [2, 3, 40])
def test_predictions_do_not_depend_on_where_rows_are_cut(n_classes, X):
    """Blocks of 262144 rows for one output, 8192 for many."""
    X = np.tile(X, (6, 1))[:, :3] if n_classes < 40 else X
    classes = np.arange(len(X)) % n_classes
    clf = MLPClassifierBN(**SMALL).fit(
        X[:400], np.array([f"c{c}" for c in range(n_classes)])[classes[:400]]
    )
    some = np.r_[:300, 262_044:262_244] if n_classes < 40 else np.r_[8000:8400]
    assert (clf.predict(X)[some] == clf.predict(X[some])).all()
    for method in (clf.predict_proba, clf.predict_log_proba):
        np.testing.assert_allclose(method(X)[some], method(X[some]), rtol=1e-4, atol=1e-6)


# Vectors as long as all weights together. Layers are small beside them: initial weights are drawn
# in float64, a layer at a time.

WIDE = {
    "hidden_layer_sizes": (512,) * 12,
    "batch_size": 8,
    "max_iter": 2,
    "random_state": 0,
}
VECTOR = 4 * 12 * 512**2


@pytest.fixture(scope="module")
def few_rows():
    rng = np.random.RandomState(0)
    return rng.normal(size=(40, 512)).astype(np.float32), np.arange(40) % 2


@pytest.mark.parametrize(
    ("params", "n_vectors"),
    [
        ({"solver": "sgd"}, 3),  # weights, gradients, and what the optimizer remembers
        ({"solver": "rmsprop"}, 3),
        ({"solver": "adam"}, 4),
        ({"solver": "adam", "early_stopping": True, "validation_fraction": 0.2}, 5),
    ],
    ids=["sgd", "rmsprop", "adam", "early stopping"],
)
def test_fits_hold_few_vectors(params, n_vectors, few_rows):
    X, y = few_rows
    clf = MLPClassifierBN(**WIDE, **params)
    assert peak(clf.fit, X, y) < (n_vectors + 0.3) * VECTOR
    if n_vectors < 5:
        assert (
            peak(clf.partial_fit, X, y) < (n_vectors + 0.3) * VECTOR
        )  # in copies, until it is done
    assert peak(clf.recalibrate, X) < 1.3 * VECTOR
    assert peak(clf.predict, X) < 0.2 * VECTOR
