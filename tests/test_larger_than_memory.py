"""Data that do not fit in memory: mapped files under a limit, batches of files, stops in between.

The limit is on private memory that can be written (RLIMIT_DATA, which Linux counts from 4.7 on):
mapped files pass, copies of them do not.
"""
# SPDX-License-Identifier: BSD-3-Clause

import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_classification

from skbn import BatchNormTransformer, MLPClassifierBN, MLPRegressorBN

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def python(code, *args):
    """Run code in a new process; return what it prints, as JSON."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, args)]
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each has a stack
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | one_thread
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Mapped files.

LIMITED = """
    import json, resource, sys
    import numpy as np
    from skbn import MLPClassifierBN, MLPRegressorBN

    path, estimator, shuffle, n_rows, n_features = sys.argv[1:]
    shape = int(n_rows), int(n_features)
    X = np.memmap(path, np.float32, "r", shape=shape)
    y = np.arange(shape[0]) % 2
    X_head, y_head = np.array(X[:1000]), y[:1000]
    shuffle = shuffle == "rows" or shuffle
    est = globals()[estimator](
        hidden_layer_sizes=(4,), shuffle=shuffle, max_iter=1, random_state=0
    )
    est.fit(X_head, y_head).score(X_head, y_head)  # what is imported late is there now

    with open("/proc/self/status") as file:
        status = dict(line.split(":") for line in file)
    limit = int(status["VmData"].split()[0]) * 1024 + 24 * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    assert X.nbytes > limit, (X.nbytes, limit)
    try:
        X + 0
        copied = True
    except MemoryError:
        copied = False

    est.set_params(early_stopping=True).fit(X, y)
    found = {"n_iter": est.n_iter_, "copied": copied, "score": est.score(X, y)}
    est.recalibrate(X)
    est.set_params(early_stopping=False).partial_fit(X, y)
    found["hidden"] = est.transform_hidden(X[:, ::-1]).shape
    print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits private memory alone")
@pytest.mark.parametrize(
    ("estimator", "shuffle"), [("MLPClassifierBN", "rows"), ("MLPRegressorBN", "blocks")]
)
def test_files_larger_than_the_memory_limit(estimator, shuffle, tmp_path):
    """Training, validation, statistics and predictions; a copy of X would end in MemoryError."""
    n_rows, n_features = 32_000, 2048
    path = tmp_path / "X"
    with path.open("wb") as file:
        file.write(np.random.RandomState(0).normal(size=(1000, n_features)).astype("f4").tobytes())
        file.truncate(n_rows * n_features * 4)  # the rest is zeros, which take no room on disk
    found = python(LIMITED, path, estimator, shuffle, n_rows, n_features)
    assert found["copied"] is False
    assert found["n_iter"] == 1
    assert found["hidden"] == [n_rows, 4]


@pytest.mark.parametrize("estimator", [MLPClassifierBN, MLPRegressorBN])
@pytest.mark.parametrize("shuffle", [True, False, "blocks"])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_mapped_files_give_the_bits_of_arrays(
    estimator, shuffle, early_stopping, blobs, snapshot, tmp_path, monkeypatch
):
    monkeypatch.setattr("skbn._random.BLOCK_BYTES", 200)
    monkeypatch.setattr("skbn._random.BLOCKS_IN_WINDOW", 3)
    X, y = blobs(331, dtype=np.float32)
    np.save(tmp_path / "X.npy", X)
    params = {"shuffle": shuffle, "early_stopping": early_stopping, "max_iter": 5, "batch_size": 32}
    expected, found = (
        estimator(
            hidden_layer_sizes=(7,), batch_norm=("input", "after"), random_state=0, **params
        ).fit(rows, y)
        for rows in (X, np.load(tmp_path / "X.npy", mmap_mode="r"))
    )
    assert snapshot(found, X) == snapshot(expected, X)


def test_what_blocks_cost(monkeypatch):
    """Scores of three seeds, 16 windows: nothing on rows in random order, little on sorted ones."""
    X, y = make_classification(
        20_000, n_informative=10, n_classes=4, n_clusters_per_class=2, random_state=0
    )
    X = X.astype(np.float32)
    monkeypatch.setattr("skbn._random.BLOCK_BYTES", X.nbytes // 512)

    def score(shuffle, rows):
        params = {"shuffle": shuffle, "max_iter": 6, "batch_size": 50}
        nets = [MLPClassifierBN((32,), **params, random_state=seed) for seed in range(3)]
        return np.mean([net.fit(X[rows], y[rows]).score(X, y) for net in nets])

    as_drawn, by_class = np.arange(len(X)), np.argsort(y, kind="stable")
    best = score(True, as_drawn)
    assert abs(score("blocks", as_drawn) - best) < 0.01
    assert best - 0.05 < score("blocks", by_class) < best
    assert score(False, by_class) < 0.4


# Batches of files.

BATCH = 64


@pytest.fixture
def parquet(blobs, tmp_path):
    """A file of 331 rows, what is in it, and a function that reads its batches."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    X, y = blobs(331, dtype=np.float32)
    columns = {f"x{i}": column for i, column in enumerate(X.T)} | {"y": y}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=100)

    def batches():
        for batch in pq.ParquetFile(tmp_path / "rows.parquet").iter_batches(BATCH):
            names = [name for name in batch.schema.names if name != "y"]
            yield np.column_stack([batch[name] for name in names]), np.asarray(batch["y"])

    return X, y, batches


def slices(X, y):
    for start in range(0, len(X), BATCH):
        yield X[start : start + BATCH], y[start : start + BATCH]


def models():
    """A transformer and a network for its rows."""
    return BatchNormTransformer(), MLPClassifierBN((7,), batch_size=8, random_state=0)


def trained(batches, n_epochs=2):
    """What two passes, over statistics and then over weights, make of batches."""
    scaler, clf = models()
    for X, _ in batches():
        scaler.partial_fit(X)
    for _ in range(n_epochs):
        for X, y in batches():
            clf.partial_fit(scaler.transform(X), y, classes=[0, 1, 2])
    return scaler, clf


def test_batches_of_files_give_the_bits_of_arrays(parquet, snapshot):
    X, y, batches = parquet
    (scaler, clf), expected = trained(batches), trained(lambda: slices(X, y))
    assert snapshot(scaler) == snapshot(expected[0])
    assert snapshot(clf, X) == snapshot(expected[1], X)

    whole = BatchNormTransformer().fit(X)
    assert_allclose(scaler.mean_, whole.mean_, rtol=1e-14, atol=1e-15)
    assert_allclose(scaler.var_, whole.var_, rtol=1e-14)
    assert scaler.n_samples_seen_ == len(X)
    chunked = [clf.predict_proba(scaler.transform(X)) for X, _ in batches()]
    assert_allclose(np.concatenate(chunked), clf.predict_proba(scaler.transform(X)), rtol=1e-5)


RESUMED = """
    import json, pickle, sys
    import numpy as np

    folder, stop = sys.argv[1:]
    with open(f"{folder}/stopped", "rb") as file:
        scaler, clf, position = pickle.load(file)
    X, y = np.load(f"{folder}/X.npy", mmap_mode="r"), np.load(f"{folder}/y.npy")
    for start in range(position, len(X), 64):
        clf.partial_fit(scaler.transform(X[start : start + 64]), y[start : start + 64])
    with open(f"{folder}/resumed", "wb") as file:
        pickle.dump(clf, file)
    print(json.dumps(position))
"""


@pytest.mark.parametrize(
    "params",
    [
        {"dropout": 0.3},
        {"random_state": np.random.RandomState(3)},
        {"solver": "sgd", "learning_rate": "invscaling", "shuffle": "blocks"},
    ],
    ids=lambda params: ", ".join(params),
)
def test_stopping_in_the_middle_changes_no_bit(params, blobs, snapshot, tmp_path):
    """A new process goes on from a pickle of both models and the position."""
    X, y = blobs(331, dtype=np.float32)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", y)
    scaler, clf = models()
    clf.set_params(**params)
    scaler.fit(X)
    position = 0
    for X_part, y_part in slices(X, y):
        if position == 3 * BATCH:
            (tmp_path / "stopped").write_bytes(pickle.dumps((scaler, clf, position)))
        clf.partial_fit(scaler.transform(X_part), y_part, classes=[0, 1, 2])
        position += len(X_part)
    assert python(RESUMED, tmp_path, BATCH) == 3 * BATCH
    resumed = pickle.loads((tmp_path / "resumed").read_bytes())
    finished = pickle.loads(pickle.dumps(clf))  # equal curves are one list before, two behind
    assert snapshot(resumed, X) == snapshot(finished, X)
    stopped = pickle.loads((tmp_path / "stopped").read_bytes())[1]
    assert not np.array_equal(stopped.coefs_[0], clf.coefs_[0])


def test_statistics_of_all_batches(blobs, tmp_path):
    """Batches leave moving statistics; a mapped file of what they hold gives those of all rows."""
    X, y = blobs(331, dtype=np.float32)
    scaler, clf = trained(lambda: slices(X, y))
    mapped = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.float32, X.shape)
    start = 0
    for X_part, _ in slices(X, y):
        mapped[start : start + len(X_part)] = scaler.transform(X_part)
        start += len(X_part)
    assert clf.batch_norms_[0].population_mean is None
    clf.recalibrate(mapped)
    expected = pickle.loads(pickle.dumps(clf)).recalibrate(scaler.transform(X))
    assert_array_equal(
        clf.batch_norms_[0].population_mean, expected.batch_norms_[0].population_mean
    )
