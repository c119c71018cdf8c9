"""BatchNormTransformer: StandardScaler's numbers, words and ways, and what it has beyond them.

With ``epsilon=0`` it must be StandardScaler. Keras's values are known in closed form. ``exact``
judges statistics far from zero: deviations from a value of the column are exact there.
"""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import inspect
import pickle
import re
import warnings
from math import fsum
from typing import Any, NamedTuple

import joblib
import numpy as np
import pytest
from cases import untyped_signature
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

import skbn
from skbn import BatchNormTransformer
from skbn._transformer import _merged, _moving_average
from skbn.backends.reference import update_moving_statistics

SPARSE = [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.csc_array]
METHODS = ["fit", "partial_fit", "transform", "inverse_transform"]
FITTED = ("mean_", "var_", "scale_", "n_samples_seen_", "n_batches_seen_", "n_features_in_")

each_method = pytest.mark.parametrize("method", METHODS)
each_momentum = pytest.mark.parametrize("momentum", [None, 0.9, 0.0])
each_sparse = pytest.mark.parametrize("container", SPARSE, ids=lambda c: c.__name__)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


@pytest.fixture
def rows(seed):
    """A function that draws rows whose columns differ in mean and spread."""

    def draw(n_rows=40, n_features=5, dtype=np.float64, offset=3.0, nan=0.0):
        rng = np.random.RandomState(seed)
        X = rng.normal(size=(n_rows, n_features)) * (1 + np.arange(n_features)) + offset
        X[rng.uniform(size=X.shape) < nan] = np.nan
        return X.astype(dtype)

    return draw


def exact(X):
    """Mean, as a deviation from the first row, and variance of each column."""
    deviations = X.astype(np.float64) - X[0]
    mean = np.array([fsum(column) for column in deviations.T]) / len(X)
    var = np.array([fsum(column) for column in ((deviations - mean) ** 2).T]) / len(X)
    return mean, var


def dense(X):
    return X.toarray() if sparse.issparse(X) else X


def assert_same(ours, theirs, rtol=0.0):
    for name in FITTED:
        our, their = getattr(ours, name), getattr(theirs, name)
        assert_allclose(our, their, rtol=rtol, atol=rtol, err_msg=name)


# StandardScaler.


@each_dtype
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("nan", [0.0, 0.2])
@pytest.mark.parametrize("chunk", [1, 7, 40])
@pytest.mark.parametrize("container", [None, *SPARSE])
def test_standard_scaler(container, chunk, nan, weighted, dtype, rows, seed):
    X = rows(dtype=dtype, nan=nan)
    if container:
        X[np.random.RandomState(seed).uniform(size=X.shape) < 0.5] = 0
    weights = np.random.RandomState(seed).uniform(0.1, 3, len(X)) if weighted else None
    ours = BatchNormTransformer(epsilon=0.0, with_mean=container is None)
    theirs = StandardScaler(with_mean=container is None)
    # StandardScaler forgets a feature when a batch has no value of it.
    size = len(X) if nan and chunk == 1 else chunk
    for est, step in ((ours, chunk), (theirs, size)):
        for start in range(0, len(X), step):
            part = slice(start, start + step)
            given = container(X[part]) if container else X[part]
            w = None if weights is None else weights[part].astype(dtype)
            est.partial_fit(given, sample_weight=w)
    tolerance = 2e-5 if dtype is np.float32 else 1e-12
    for name in ("mean_", "var_", "scale_", "n_samples_seen_"):
        assert_allclose(getattr(ours, name), getattr(theirs, name), tolerance, err_msg=name)
    assert np.shape(ours.n_samples_seen_) == np.shape(theirs.n_samples_seen_)
    given = container(X) if container else X
    Z, expected = ours.transform(given), theirs.transform(given)
    assert Z.dtype == expected.dtype == dtype
    assert_allclose(dense(Z), dense(expected), tolerance, tolerance)
    assert_allclose(dense(ours.inverse_transform(Z)), X, tolerance, tolerance)
    whole = BatchNormTransformer(epsilon=0.0, with_mean=container is None)
    for name in ("mean_", "var_"):
        weights32 = None if weights is None else weights.astype(dtype)
        value = getattr(whole.fit(given, sample_weight=weights32), name)
        assert_allclose(value, getattr(ours, name), 1e-12)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, bool, np.float16, np.longdouble])
def test_other_types_become_float64(dtype, rows):
    X = rows().astype(dtype)
    est = BatchNormTransformer(epsilon=0.0)
    Z = est.fit_transform(X)
    assert Z.dtype == np.float64
    assert_array_equal(Z, BatchNormTransformer(epsilon=0.0).fit_transform(X.astype(np.float64)))
    assert_allclose(Z, StandardScaler().fit_transform(X.astype(np.float64)), 1e-12, 1e-12)
    assert est.inverse_transform(np.ones((1, 5), dtype)).dtype == np.float64


@each_dtype
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
@pytest.mark.parametrize("constant", [0.0, 0.1, 100.0, 16777217.0, 1e10, -1e30])
def test_constant_features(constant, epsilon, dtype, rows):
    X = rows(dtype=dtype)
    X[:, 1] = constant
    est = BatchNormTransformer(epsilon=epsilon, gamma=3.0, beta=0.5)
    for start in range(0, 40, 8):
        est.partial_fit(X[start : start + 8])
    assert est.var_[1] == 0
    assert est.mean_[1] == dtype(constant)
    assert est.scale_[1] == np.sqrt(epsilon)
    Z = est.transform(X)
    assert_array_equal(Z[:, 1], 0.5)
    assert_array_equal(est.inverse_transform(Z)[:, 1], X[:, 1])
    plain = BatchNormTransformer(epsilon=0.0, with_mean=False)
    for given in (X, sparse.csr_array(X), sparse.csc_array(X)):
        plain.fit(given, sample_weight=np.linspace(0.1, 0.7, 40))
        assert plain.var_[1] == 0
        assert_array_equal(dense(plain.transform(given))[:, 1], 0)


def test_one_row():
    X = np.array([[1.0, -2.0, 1e8]])
    est = BatchNormTransformer().fit(X)
    assert_array_equal(est.mean_, X[0])
    assert_array_equal(est.var_, 0)
    assert est.n_samples_seen_ == est.n_batches_seen_ == 1
    assert_array_equal(est.transform(X), [[0, 0, 0]])
    assert_array_equal(est.inverse_transform([[0, 0, 0]]), X)


def test_weights_are_repetition(rows, seed):
    X = rows(nan=0.1)
    weights = np.random.RandomState(seed).randint(0, 4, len(X))
    X[weights == 0] = np.nan
    for momentum in (None, 0.7):
        ours = BatchNormTransformer(momentum=momentum)
        repeated = BatchNormTransformer(momentum=momentum)
        for part in (slice(0, 20), slice(20, 40)):
            ours.partial_fit(X[part], sample_weight=weights[part])
            repeated.partial_fit(np.repeat(X[part], weights[part], axis=0))
        assert_same(ours, repeated, 1e-13)
        assert ours.n_samples_seen_.dtype == np.float64
        assert repeated.n_samples_seen_.dtype == np.int64
    ours.partial_fit(X[:1] * 0)  # without weights after weights: they are a sum still
    assert_allclose(ours.n_samples_seen_, repeated.n_samples_seen_ + (~np.isnan(X[0])))
    assert_same(*(BatchNormTransformer().fit(X, None, w) for w in (2.5, np.full(40, 2.5))))


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("nan", [0.0, 0.2])
def test_rows_without_weight_count_nowhere(nan, container, rows, seed):
    X = rows(nan=nan)
    weights = np.random.RandomState(seed).uniform(0.1, 3, len(X))
    out = [0, 1, 17, 39]
    weights[out] = 0
    if nan:
        X[2:17, 0] = X[38, 1] = np.nan  # neither the first row with a value nor the heaviest one
        weights[38] = 4
    expected = BatchNormTransformer(with_mean=False)
    expected.fit(np.delete(X, out, axis=0), sample_weight=np.delete(weights, out))
    X[out] = 1e30  # of which no digit may be seen
    est = BatchNormTransformer(with_mean=False).fit(container(X), sample_weight=weights)
    assert_same(est, expected, 1e-13)


def test_routing(rows, seed):
    X = rows()
    weights = np.random.RandomState(seed).uniform(size=len(X))
    y = np.arange(len(X)) % 2
    with config_context(enable_metadata_routing=True):
        est = BatchNormTransformer().set_fit_request(sample_weight=True)
        est.set_partial_fit_request(sample_weight=True).set_transform_request(copy=False)
        final = LogisticRegression().set_fit_request(sample_weight=False)
        pipe = make_pipeline(est, final).fit(X, y, sample_weight=weights)
    assert_same(pipe[0], BatchNormTransformer().fit(X, sample_weight=weights))


# Keras.


def test_values_of_keras():
    # Normalization(axis=-1).adapt on maps of one channel, rows of 1, 2 and 3
    maps = np.repeat(np.arange(1.0, 4.0), 3).reshape(1, 3, 3, 1).repeat(4, axis=0)
    est = BatchNormTransformer(epsilon=0.0)
    Z = est.fit_transform(maps)
    expected = [-1.2247449, 0.0, 1.2247449]
    assert_allclose(Z, np.repeat(expected, 3).reshape(1, 3, 3, 1).repeat(4, axis=0), atol=1e-7)
    assert (est.mean_, est.var_, est.n_samples_seen_) == ([2.0], [pytest.approx(2 / 3)], 36)
    # of its documentation: adapt([1, 2, 3, 4, 5]), call([1, 2, 3])
    est = BatchNormTransformer(epsilon=0.0).fit(np.arange(1.0, 6.0)[:, None])
    Z = est.transform([[1.0], [2.0], [3.0]])
    assert_allclose(Z[:, 0], [-1.4142135, -0.70710677, 0.0], atol=1e-7)
    # and with a column for each feature
    est = BatchNormTransformer(epsilon=0.0)
    Z = est.fit([[0.0, 7, 4], [2, 9, 6], [0, 7, 4], [2, 9, 6]]).transform([[0.0, 7, 4]])
    assert_allclose(Z, [[-1, -1, -1]])


def test_moving_average_of_keras(rows):
    """BatchNormalization starts at 0 and retains the momentum; the bias is divided out here."""
    batches = [rows(offset=offset) for offset in (1.0, 5.0, -2.0)]
    est, mean, var = BatchNormTransformer(momentum=0.9), 0.0, 0.0
    for t, X in enumerate(batches, 1):
        est.partial_fit(X)
        mean = 0.9 * mean + 0.1 * X.mean(axis=0)
        var = 0.9 * var + 0.1 * X.var(axis=0)
        assert_allclose(est.mean_, mean / (1 - 0.9**t))
        assert_allclose(est.var_, var / (1 - 0.9**t))
        assert (est.n_batches_seen_, est.n_samples_seen_) == (t, 40 * t)
    assert_same(est.fit(batches[2]), BatchNormTransformer().fit(batches[2]))  # one batch


# Gamma, beta, epsilon.


@pytest.mark.parametrize("gamma", [None, 2.0, -0.5, 0.0, [1.0, 2.0, 3.0, 4.0, 5.0], [2]], ids=str)
@pytest.mark.parametrize("beta", [None, -1.0, [1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-3, 1.0])
@each_dtype
def test_formula(dtype, epsilon, beta, gamma, rows):
    X = rows(dtype=dtype)
    est = BatchNormTransformer(gamma=gamma, beta=beta, epsilon=epsilon).fit(X)
    scale = np.sqrt(X.astype(float).var(axis=0) + epsilon)
    assert_allclose(est.scale_, scale, 1e-14)
    expected = (X.astype(float) - X.astype(float).mean(axis=0)) / scale
    expected = expected * (1 if gamma is None else np.asarray(gamma))
    expected = expected + (0 if beta is None else np.asarray(beta))
    Z = est.transform(X)
    tolerance = 1e-6 if dtype is np.float32 else 1e-14
    assert_allclose(Z, expected, tolerance, 10 * tolerance)
    if gamma == 0.0:
        with pytest.raises(ValueError, match="gamma is 0"):
            est.inverse_transform(Z)
        return
    assert_allclose(est.inverse_transform(Z), X, 10 * tolerance, 10 * tolerance)
    if epsilon == 0:
        assert_allclose(
            Z.std(axis=0), np.broadcast_to(1 if gamma is None else np.abs(gamma), 5), 1e-6
        )
        assert_allclose(Z.mean(axis=0), np.zeros(5) if beta is None else beta, 0, 1e-6)


def test_fitted_parameters_are_the_model(rows):
    X = rows()
    gamma = np.full(5, 2.0)
    est = BatchNormTransformer(gamma=gamma, beta=1.0, epsilon=0.1).fit(X)
    Z, back = est.transform(X), est.inverse_transform(X)
    gamma[:] = 7
    est.set_params(epsilon=2.0, beta=None, with_mean=False, axis=(1, 2), momentum=0.5)
    assert_array_equal(est.transform(X), Z)
    assert_array_equal(est.inverse_transform(X), back)
    est.mean_[0] += 2 * est.scale_[0]  # what is written into them is what transforms
    assert_allclose(est.transform(X)[:, 0], Z[:, 0] - 4)


# Streams.


@each_dtype
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_chunks", [1, 2, 7, 64])
def test_chunks_in_any_order(n_chunks, weighted, offset, dtype, rows, seed):
    if dtype is np.float32 and offset > 1e3:
        offset = 1e5  # float32 has no more digits
    X = rows(512, dtype=dtype, offset=offset)
    rng = np.random.RandomState(seed)
    weights = rng.randint(1, 4, len(X)) if weighted else None
    mean, var = exact(np.repeat(X, weights, axis=0) if weighted else X)
    cuts = np.sort(rng.choice(np.arange(1, len(X)), n_chunks - 1, replace=False))
    est = BatchNormTransformer(epsilon=0.0)
    for chunk in rng.permutation(n_chunks):
        part = slice(*[0, *cuts, len(X)][chunk : chunk + 2])
        est.partial_fit(X[part], sample_weight=None if weights is None else weights[part])
    assert_allclose(est.var_, var, 1e-12)
    assert_allclose(est.mean_, mean + X[0].astype(float), 1e-15, 1e-14)
    # the mean is good to far more than the digits of mean_
    Z = est.transform(X.astype(np.float64))
    assert_allclose(Z, (X - X[0].astype(float) - mean) / np.sqrt(var), 0, 2e-12)
    assert est.n_batches_seen_ == n_chunks
    assert est.n_samples_seen_ == (len(X) if weights is None else weights.sum())


def test_unlike_chunks():
    """Neither a small chunk nor a wide one takes digits from the other."""
    narrow = np.linspace(-1, 1, 100001)[:, None]
    wide = np.array([[1e8], [-1e8]]) + 3
    n, var = len(narrow) + 2, narrow.var()
    delta = 3.0
    expected = (var * (n - 2) + 2 * 1e16) / n + delta**2 * 2 * (n - 2) / n**2
    for chunks in ([narrow, wide], [wide, narrow]):
        est = BatchNormTransformer()
        for X in chunks:
            est.partial_fit(X)
        assert_allclose(est.var_, expected, 1e-14)
        assert_allclose(est.mean_, 6 / n, 1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_many_updates(offset, rows):
    X = rows(20000, 1, offset=offset)
    mean, var = exact(X)
    old, one = np.array([X[0], [0.0], [0.0], [0.0]]), np.array([1.0])
    for n, x in enumerate(X[1:], 1):
        old = _merged(n, old, one, np.array([x, [0.0], [0.0], [0.0]]))
    assert_allclose(old[1], var, 1e-14)
    assert_allclose((old[0] - X[0]) + old[2], mean, 0, 1e-14 * np.sqrt(var[0]) + 1e-14)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.9999])
def test_moving_average_does_not_drift(momentum, seed):
    rng = np.random.RandomState(seed)
    means, variances = 1e8 + rng.normal(size=20000), rng.uniform(size=20000)
    seen, old = np.array([True]), np.full((4, 1), np.nan)
    judged = np.zeros(1), np.zeros(1)
    with np.errstate(all="ignore"):
        for n, (mean, var) in enumerate(zip(means, variances, strict=True)):
            new = np.array([[mean], [var], [0.0], [0.0]])
            old = _moving_average(n, old, seen, new, momentum)
            update_moving_statistics(judged, mean - 1e8, var, n + 1, momentum)
    shares = momentum ** np.arange(20000.0)[::-1]
    shares /= fsum(shares)
    assert_allclose(old[1], fsum(shares * variances), 1e-12)
    assert_allclose((old[0] - 1e8) + old[2], fsum(shares * (means - 1e8)), 0, 1e-12)
    assert_allclose(old[1], judged[1], 1e-11)  # which rounds at every update


@each_momentum
def test_batches_without_values_leave_a_feature_alone(momentum, rows):
    X, gone = rows(), [0, 3]
    batches = [X[:10].copy(), X[10:20], X[20:30].copy(), X[30:]]
    for i in (0, 2):
        batches[i][:, gone] = np.nan
    est = BatchNormTransformer(momentum=momentum).partial_fit(batches[0])
    assert_array_equal(est.n_samples_seen_, [0, 10, 10, 0, 10])
    assert_array_equal(est.n_batches_seen_, [0, 1, 1, 0, 1])
    assert np.isnan(est.mean_[gone]).all()
    assert np.isnan(est.var_[gone]).all()
    assert np.isnan(est.transform(X)[:, gone]).all()
    for batch in batches[1:]:
        est.partial_fit(batch)
    there, others = BatchNormTransformer(momentum=momentum), clone(est)
    for batch in batches:
        others.partial_fit(batch[:, [1, 2, 4]])
    for batch in (X[10:20], X[30:]):
        there.partial_fit(batch[:, gone])
    for name in ("mean_", "var_", "scale_"):
        assert_allclose(getattr(est, name)[gone], getattr(there, name), 1e-14)
        assert_allclose(getattr(est, name)[[1, 2, 4]], getattr(others, name), 1e-14)
    assert_array_equal(est.n_batches_seen_, [2, 4, 4, 2, 4])
    assert_array_equal(est.n_samples_seen_, [20, 40, 40, 20, 40])


@each_momentum
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda est: pickle.loads(pickle.dumps(est, protocol=5))],
    ids=["deepcopy", "pickle"],
)
def test_copies_go_on(copied, momentum, rows, snapshot, unchanged):
    X = rows(nan=0.1)
    est = BatchNormTransformer(momentum=momentum, gamma=2.0)
    est.partial_fit(X[:13]).partial_fit(X[13:20])
    twin = copied(est)
    assert snapshot(twin) == snapshot(est)
    with unchanged(est):
        twin.partial_fit(X[20:])
    assert snapshot(twin) == snapshot(est.partial_fit(X[20:]))
    assert_array_equal(twin.transform(X), est.transform(X))


def test_memory_mapped_models(rows, tmp_path):
    X = rows()
    joblib.dump(BatchNormTransformer().fit(X), tmp_path / "norm.joblib")
    mapped = joblib.load(tmp_path / "norm.joblib", mmap_mode="r")
    assert_array_equal(mapped.transform(X), BatchNormTransformer().fit_transform(X))
    mapped.partial_fit(X)
    assert len(pickle.dumps(mapped)) < 3000  # no rows


def test_fit_starts_anew(rows, snapshot):
    X = rows()
    expected = snapshot(BatchNormTransformer().fit(X))
    est = BatchNormTransformer().fit(rows(nan=0.3)).partial_fit(X)
    assert snapshot(est.fit(X)) == expected
    assert snapshot(BatchNormTransformer().partial_fit(X)) == expected
    assert est.fit(X[:, :2]).n_features_in_ == 2


def test_momentum_may_change(rows):
    X = rows()
    est = BatchNormTransformer().partial_fit(X[:10]).partial_fit(X[10:20])
    mean = est.mean_
    est.set_params(momentum=0.9).partial_fit(X[20:])
    share = 0.1 / (1 - 0.9**3)
    assert_allclose(est.mean_, (1 - share) * mean + share * X[20:].mean(axis=0))


# Axes.


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        *[((6, 4), a) for a in (-1, 1, (1,), [-1])],
        *[((6, 4, 3), a) for a in (1, 2, -1, -2, (1, 2), (2, 1), (-1, 1))],
        *[((5, 2, 3, 4), a) for a in (1, 2, 3, (1, 3), (2, 3), (1, 2, 3))],
    ],
    ids=str,
)
@pytest.mark.parametrize("order", ["C", "F"])
@each_dtype
def test_axes(dtype, order, shape, axis, seed):
    rng = np.random.RandomState(seed)
    X = np.asarray(rng.normal(2, size=shape), dtype=dtype, order=order)
    weights = rng.uniform(0.5, 2, len(X))
    kept = sorted({a % X.ndim for a in np.atleast_1d(axis)})
    reduced = tuple(a for a in range(X.ndim) if a not in kept)
    lengths = tuple(shape[a] for a in kept)
    wide = X.astype(np.float64)
    mean, var = wide.mean(axis=reduced, keepdims=True), wide.var(axis=reduced, keepdims=True)
    gamma, beta = rng.normal(size=(2, *lengths))
    est = BatchNormTransformer(axis=axis, gamma=gamma, beta=beta)
    Z = est.fit_transform(X)
    assert est.mean_.shape == est.var_.shape == est.scale_.shape == lengths
    assert_allclose(est.mean_, mean.reshape(lengths), 1e-13)
    assert_allclose(est.var_, var.reshape(lengths), 1e-13)
    assert est.n_features_in_ == np.prod(lengths)
    assert est.n_samples_seen_ == X.size // np.prod(lengths)
    assert_array_equal(est.get_feature_names_out(), [f"x{i}" for i in range(est.n_features_in_)])
    tolerance = 1e-5 if dtype is np.float32 else 1e-13
    at = mean.shape
    expected = (X - mean) / np.sqrt(var + 1e-3) * gamma.reshape(at) + beta.reshape(at)
    assert Z.shape == shape
    assert Z.dtype == dtype
    assert_allclose(Z, expected, tolerance, tolerance)
    assert_allclose(est.inverse_transform(Z), X, 1e3 * tolerance, 1e3 * tolerance)
    chunks = clone(est).partial_fit(X[:2], None, weights[:2]).partial_fit(X[2:], None, weights[2:])
    average = np.average(wide, axis=0, weights=weights)
    average = average.mean(axis=tuple(a - 1 for a in reduced[1:]))
    assert_allclose(chunks.mean_, average, 1e-13)
    assert_allclose(chunks.n_samples_seen_, weights.sum() * est.n_samples_seen_ / len(X))


def test_more_axes_later(rows):
    # The axes kept are what counts; sequences may have other lengths.
    X = rows()
    est = BatchNormTransformer().fit(X)
    assert_array_equal(est.transform(X.reshape(8, 5, 5)), est.transform(X).reshape(8, 5, 5))
    chunks = BatchNormTransformer().partial_fit(X[:20].reshape(4, 5, 5)).partial_fit(X[20:])
    assert_allclose(chunks.var_, est.var_, 1e-14)


BAD_AXES = {
    "samples": (0, (4, 5), "holds the samples"),
    "samples, negative": ((-2, 1), (4, 5), "holds the samples"),
    "out of bounds": (2, (4, 5), "out of bounds"),
    "out of bounds, one of two": ((1, 3), (4, 5, 6), "out of bounds"),
    "twice": ((1, -1), (4, 5), "names an axis twice"),
    "none": ((), (4, 5), "one axis at least"),
    "no number": ("last", (4, 5), "'axis' parameter"),
    "None": (None, (4, 5), "'axis' parameter"),
}


@pytest.mark.parametrize("name", BAD_AXES)
def test_bad_axes(name, unchanged):
    axis, shape, message = BAD_AXES[name]
    est = BatchNormTransformer(axis=axis)
    with unchanged(est), pytest.raises(ValueError, match=message):
        est.fit(np.zeros(shape))


def test_axes_are_integers(unchanged):
    est = BatchNormTransformer(axis=(1.0,))
    with unchanged(est), pytest.raises(TypeError, match="integer"):
        est.fit(np.zeros((4, 5)))


@each_method
def test_other_lengths(method, unchanged):
    est = BatchNormTransformer(axis=(1, 2)).fit(np.zeros((4, 2, 3)))
    if method == "fit":
        assert est.fit(np.zeros((4, 3, 2))).mean_.shape == (3, 2)
        return
    with unchanged(est), pytest.raises(ValueError, match=r"keeps \(3, 2\), but .* is expecting"):
        getattr(est, method)(np.zeros((4, 3, 2)))
    message = "X has 8 features, but BatchNormTransformer is expecting 6 features as input."
    with unchanged(est), pytest.raises(ValueError, match=message):
        getattr(est, method)(np.zeros((4, 2, 4)))


@each_method
def test_empty_arrays(method, unchanged):
    est = BatchNormTransformer().fit(np.zeros((4, 2, 3)))
    message = re.escape("Found array with 0 value(s) (shape=(4, 0, 3)) while a minimum of 1 is")
    with unchanged(est), pytest.raises(ValueError, match=message):
        getattr(est, method)(np.zeros((4, 0, 3)))


# Layouts, types, copies.

LAYOUTS = {
    "C": lambda X, path: X.copy(),
    "F": lambda X, path: np.asfortranarray(X),
    "strided": lambda X, path: np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda X, path: X[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": lambda X, path: np.broadcast_to(X, X.shape),
    "mapped": lambda X, path: _mapped(X, path),
    "swapped": lambda X, path: X.astype(X.dtype.newbyteorder()),
    "unaligned": lambda X, path: _unaligned(X),
    "lists": lambda X, path: X.tolist(),
    "objects": lambda X, path: X.astype(object),
}


def _mapped(X, path):
    np.save(path / "X.npy", X)
    return np.load(path / "X.npy", mmap_mode="r")


def _unaligned(X):
    raw = np.zeros(X.nbytes + 1, dtype=np.uint8)
    out = raw[1:].view(X.dtype).reshape(X.shape)
    out[...] = X
    assert not out.flags.aligned
    return out


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("in_place", [False, True])
@each_dtype
def test_layouts(dtype, in_place, name, rows, tmp_path):
    X = rows(dtype=dtype)
    given = LAYOUTS[name](X, tmp_path)
    expected = BatchNormTransformer().fit(X)
    est = BatchNormTransformer(copy=not in_place).fit(given)
    assert_array_equal(np.asarray(given, dtype), X)
    Z = est.transform(given)
    keeps = dtype is np.float64 or name not in ("swapped", "lists", "objects")
    assert_same(est, expected, 0 if keeps else 1e-14)
    assert Z.dtype == (dtype if keeps else np.float64)
    assert_allclose(Z, expected.transform(X), 0 if keeps else 1e-6, 0 if keeps else 1e-6)
    if in_place and name in ("C", "F", "strided", "reversed"):
        assert Z is given
    else:
        assert_array_equal(np.asarray(given, dtype), X)


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
@each_sparse
def test_copies_of_sparse_rows(container, method, rows):
    X = container(rows())
    est = BatchNormTransformer(with_mean=False).fit(X)
    before = X.toarray()
    Z = getattr(est, method)(X)
    assert (type(Z), Z.format) == (type(X), X.format)
    assert_array_equal(X.toarray(), before)
    assert getattr(est, method)(X, copy=False) is X
    assert_array_equal(X.toarray(), Z.toarray())
    X.data.setflags(write=False)
    est.set_params(copy=False)
    getattr(est, method)(X)
    assert_array_equal(X.toarray(), Z.toarray())


def test_the_method_decides_about_copies(rows):
    X = rows()
    est = BatchNormTransformer(copy=False).fit(X)
    Z = est.transform(X, copy=True)
    assert_array_equal(X, rows())
    assert est.transform(X) is X
    assert_array_equal(X, Z)
    assert est.inverse_transform(X, copy=True) is not X
    assert_array_equal(X, Z)
    assert est.inverse_transform(X) is X
    assert_allclose(X, rows())
    assert est.set_params(copy=True).transform(X, copy=False) is X


@each_dtype
def test_columns_do_not_know_each_other(dtype, rows):
    X = rows(n_features=70, dtype=dtype) * np.logspace(-20, 15, 70).astype(dtype)
    est = BatchNormTransformer().partial_fit(X[:9]).partial_fit(X[9:])
    for j in range(0, 70, 7):
        alone = BatchNormTransformer().partial_fit(X[:9, [j]]).partial_fit(X[9:, [j]])
        assert (est.mean_[j], est.var_[j]) == (alone.mean_[0], alone.var_[0])
        assert_array_equal(est.transform(X)[:, [j]], alone.transform(X[:, [j]]))


# Sparse rows.


@each_sparse
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("nan", [0.0, 0.3])
@each_momentum
@each_dtype
def test_sparse_is_dense(dtype, momentum, nan, weighted, container, rows, seed):
    rng = np.random.RandomState(seed)
    X = rows(60, 6, dtype=dtype, nan=nan)
    X[rng.uniform(size=X.shape) < 0.4] = 0
    X[:, 2] = 0
    X[:, 3] = np.abs(X[:, 3]) + 1e6  # nothing but stored values, far from zero
    X[5:15, 4] = np.nan
    weights = rng.randint(0, 3, 60) * 0.7 if weighted else None
    ours = BatchNormTransformer(with_mean=False, momentum=momentum, gamma=[1, 2, 3, 4, -5, 6])
    judge = clone(ours)
    for part in (slice(0, 5), slice(5, 15), slice(15, 60)):
        w = None if weights is None else weights[part]
        ours.partial_fit(container(X[part]), sample_weight=w)
        judge.partial_fit(X[part], sample_weight=w)
    assert_same(ours, judge, 1e-12)
    Z = ours.transform(container(X))
    assert Z.dtype == dtype
    assert Z.nnz == container(X).nnz
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    assert_allclose(Z.toarray(), judge.transform(X), tolerance)
    assert_allclose(Z.toarray(), X / judge.scale_ * [1, 2, 3, 4, -5, 6], tolerance)
    assert_allclose(ours.inverse_transform(Z).toarray(), X, tolerance)
    assert_allclose(judge.inverse_transform(judge.transform(X)), X, tolerance)


def test_sparse_rows_as_they_may_come(rows):
    X = rows(6, 3)
    expected = BatchNormTransformer(with_mean=False).fit(X)
    coo = sparse.coo_array(X)
    data = np.stack([X - 0.25, np.full(X.shape, 0.25)], axis=1).ravel()
    twice = sparse.csr_array((data, np.tile([0, 1, 2], 12), np.arange(0, 37, 6)), shape=X.shape)
    assert not twice.has_canonical_format
    unsorted = sparse.csr_array(X)
    unsorted.indices = unsorted.indices.reshape(6, 3)[:, ::-1].ravel().copy()
    unsorted.data = unsorted.data.reshape(6, 3)[:, ::-1].ravel().copy()
    unsorted.has_sorted_indices = False
    wide = sparse.csr_array(X)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    frozen = sparse.csc_array(X)
    for part in (frozen.data, frozen.indices, frozen.indptr):
        part.setflags(write=False)
    for given in (twice, unsorted, wide, frozen, coo, sparse.lil_matrix(X), sparse.dok_array(X)):
        before = given.copy()
        est = BatchNormTransformer(with_mean=False).fit(given)
        assert_same(est, expected, 1e-14)
        assert_allclose(est.transform(given).toarray(), expected.transform(X), 1e-14)
        assert given.nnz == before.nnz
    zeros = sparse.csr_array((np.zeros(2), [0, 2], [0, 1, 2]), shape=(2, 3))  # stored
    assert_array_equal(BatchNormTransformer(with_mean=False).fit(zeros).var_, 0)
    empty = sparse.csr_array((4, 3))
    assert_array_equal(BatchNormTransformer(with_mean=False).fit(empty).n_samples_seen_, 4)


@each_sparse
@each_method
def test_sparse_rows_cannot_be_centred(method, container, rows, unchanged):
    X = rows()
    est = BatchNormTransformer().fit(X)
    for tried in (est, BatchNormTransformer()):
        if tried is not est and "fit" not in method:
            continue
        with unchanged(tried), pytest.raises(ValueError, match="Cannot center sparse matrices"):
            getattr(tried, method)(container(X))


def test_broken_sparse_rows(rows, unchanged):
    X = sparse.csr_array(rows())
    X.indices[3] = 99
    est = BatchNormTransformer(with_mean=False)
    with unchanged(est), pytest.raises(ValueError, match=r"ind(ex|ices)"):
        est.fit(X)


# Refusals, in StandardScaler's words.


def put(X, value):
    X = X.copy()
    X[-1, -1] = value
    return X


def named(X, names):
    pd = pytest.importorskip("pandas")
    return pd.DataFrame(X, columns=list(names))


BAD_X = {
    "inf": lambda X: put(X, np.inf),
    "-inf beside NaN": lambda X: put(put(X, np.nan)[:, ::-1], -np.inf),
    "inf, float32": lambda X: put(X, np.inf).astype(np.float32),
    "1-D": lambda X: X[:, 0],
    "0-D": lambda X: X[0, 0],
    "no rows": lambda X: X[:0],
    "no columns": lambda X: X[:, :0],
    "text": lambda X: X.astype(str).astype(object) + "x",
    "complex": lambda X: X * 1j,
    "None": lambda X: None,
    "dicts": lambda X: np.full(X.shape, {}, dtype=object),
    "ragged": lambda X: [[1.0, 2.0], [1.0]],
}
OTHER_COLUMNS = {
    "fewer features": lambda X: X[:, :-1],
    "more features": lambda X: np.hstack([X, X]),
    "other names": lambda X: named(X, "abcdf"),
    "other order": lambda X: named(X, "bacde"),
    "fewer names": lambda X: named(X[:, :3], "abc"),
}
MIXED_NAMES = {"mixed names": lambda X: named(X, [*"abcd", 5])}


def refusal(est, method, *args, **kwargs):
    """The error that a call raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(est, method)(*args, **kwargs)
        except Exception as error:  # whatever it is: the two are compared
            return type(error), str(error).replace("BatchNormTransformer", "StandardScaler")
    return None


@each_momentum
@each_method
@pytest.mark.parametrize("name", BAD_X | OTHER_COLUMNS | MIXED_NAMES)
@pytest.mark.parametrize("start", ["fresh", "fitted"])
def test_refused_rows(start, name, method, momentum, rows, unchanged):
    X = rows()
    ours, theirs = BatchNormTransformer(momentum=momentum), StandardScaler()
    frame = "name" in name or "order" in name
    if start == "fitted":
        for est in (ours, theirs):
            est.fit(named(X, "abcde") if frame else X)
    elif "fit" not in method:
        with pytest.raises(
            NotFittedError, match="This BatchNormTransformer instance is not fitted"
        ):
            getattr(ours, method)(X)
        return
    bad = (BAD_X | OTHER_COLUMNS | MIXED_NAMES)[name](X)
    # inverse_transform of StandardScaler does not look at the number of features
    expected = refusal(theirs, "transform" if method == "inverse_transform" else method, bad)
    if frame and method == "inverse_transform":  # nor at names
        expected = refusal(theirs, "transform", np.asarray(bad))
    with unchanged(ours):
        if expected is None:
            return
        assert refusal(ours, method, bad) == expected


def test_refusals_are_tried():
    X = np.ones((3, 5))
    assert all(refusal(StandardScaler(), "fit", bad(X)) for bad in BAD_X.values())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@each_method
def test_infinity_is_refused_wherever_it_is(method, weighted, in_place, rows, unchanged):
    X = rows(500, 3)
    est = BatchNormTransformer(copy=not in_place).fit(X)
    weights = np.r_[np.ones(499), 0.0]  # a row that does not count is validated too
    for i, j in ((0, 0), (250, 1), (499, 2)):
        bad = X.copy()
        bad[1, 2] = np.nan
        bad[i, j] = np.inf
        before = bad.copy()
        args = (bad, None, weights) if weighted and "fit" in method else (bad,)
        with unchanged(est), pytest.raises(ValueError, match="Input X contains infinity"):
            getattr(est, method)(*args)
        assert_array_equal(bad, before)  # not even in place
        uncentred = BatchNormTransformer(with_mean=False).fit(X)
        with unchanged(uncentred), pytest.raises(ValueError, match="Input X contains infinity"):
            getattr(uncentred, method)(sparse.csr_array(bad), *args[1:])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(39), r"sample_weight.shape == \(39,\), expected \(40,\)!"),
        (np.ones((40, 1)), "Sample weights must be 1D array or scalar"),
        (-np.ones(40), "Negative values in data passed to `sample_weight`"),
        (np.zeros(40), "Sample weights must contain at least one non-zero number."),
        (np.full(40, np.nan), "Input sample_weight contains NaN"),
        (np.full(40, np.inf), "Input sample_weight contains infinity"),
        (np.full(40, 1e308), "sample_weight sums up to inf"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_refused_weights(container, method, weights, message, rows, unchanged):
    X = container(rows())
    est = BatchNormTransformer(with_mean=False).fit(X)
    with unchanged(est), pytest.raises(ValueError, match=message):
        getattr(est, method)(X, sample_weight=weights)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
@each_momentum
def test_overflow(momentum, container, rows, unchanged):
    X = rows()
    huge = X.copy()
    huge[3:5, 2] = 1e200, -1e200
    message = "The variance of finite values overflows float64, first in feature 2."
    est = BatchNormTransformer(momentum=momentum, with_mean=False)
    with unchanged(est), pytest.raises(ValueError, match=message):
        est.fit(container(huge))
    est.fit(container(X))
    for method in ("fit", "partial_fit"):
        with unchanged(est), pytest.raises(ValueError, match=message):
            getattr(est, method)(container(put(huge, np.nan)))
    if momentum is None:  # each batch has a variance, both together have none
        est.fit(container(np.full((2, 2), [1.0, 1e200])))
        message = message.replace("2.", "1.")
        with unchanged(est), pytest.raises(ValueError, match=message):
            est.partial_fit(container(np.full((2, 2), [1.0, -1e200])))
    est = BatchNormTransformer(epsilon=1.7e308, with_mean=False)
    with unchanged(est), pytest.raises(ValueError, match="overflows float64"):
        est.fit(container(np.array([[9e153], [-9e153]])))


def test_huge_and_tiny_numbers(rows):
    X = rows()
    for dtype, factor in ((np.float32, 1e30), (np.float32, 1e-30), (np.float64, 1e150)):
        scaled = (X * factor).astype(dtype)
        est = BatchNormTransformer(epsilon=0.0).fit(scaled)
        expected = scaled.astype(float).var(axis=0)
        assert_allclose(est.var_, expected, 1e-12)
        assert_allclose(
            est.transform(scaled), BatchNormTransformer(epsilon=0.0).fit_transform(X), 1e-4, 1e-5
        )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"momentum": 1.0}, "'momentum' parameter"),
        ({"momentum": -0.1}, "'momentum' parameter"),
        ({"momentum": np.nan}, "'momentum' parameter"),
        ({"epsilon": -1e-3}, "'epsilon' parameter"),
        ({"epsilon": np.inf}, "'epsilon' parameter"),
        ({"epsilon": None}, "'epsilon' parameter"),
        ({"gamma": "auto"}, "'gamma' parameter"),
        ({"gamma": np.ones(4)}, r"gamma has shape \(4,\), expected \(5,\)"),
        ({"gamma": np.ones((1, 5))}, r"gamma has shape \(1, 5\), expected \(5,\)"),
        ({"gamma": np.nan}, "Input gamma contains NaN"),
        ({"beta": [1, 2, 3, 4, np.inf]}, "Input beta contains infinity"),
        ({"beta": [[1], [2, 3]]}, "beta|sequence"),
        ({"beta": 0.0, "with_mean": False}, "beta cannot be used with with_mean=False"),
        ({"with_mean": "no"}, "'with_mean' parameter"),
        ({"copy": None}, "'copy' parameter"),
        ({"device": "gpu"}, "'device' parameter"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("start", ["fresh", "fitted"])
def test_refused_parameters(start, method, params, message, rows, unchanged):
    X = rows()
    est = BatchNormTransformer()
    if start == "fitted":
        est.fit(X)
    est.set_params(**params)
    with unchanged(est), pytest.raises(ValueError, match=message):
        getattr(est, method)(X)


def test_device(rows):
    """What is on a card: tests/test_arrays_on_card.py."""
    X = rows()
    est = BatchNormTransformer(device="cpu")
    assert_same(est.fit(X), clone(est).set_params(device=None).fit(X))


def test_assume_finite(rows):
    X = rows(nan=0.2)
    expected = BatchNormTransformer().fit(X)
    with config_context(assume_finite=True):
        assert_same(BatchNormTransformer().fit(X), expected)


@each_method
def test_nothing_else_changes(method, rows, unchanged):
    X = rows(nan=0.1)
    est = BatchNormTransformer().fit(rows(offset=0.0))
    before = X.copy()
    if "transform" in method:
        with unchanged(est):
            Z = getattr(est, method)(X)
        assert_array_equal(np.isnan(Z), np.isnan(X))
    else:
        getattr(est, method)(X)
    assert_array_equal(X, before)


# Inside scikit-learn.


@parametrize_with_checks(
    [
        BatchNormTransformer(),
        BatchNormTransformer(momentum=0.9),
        BatchNormTransformer(with_mean=False),
        BatchNormTransformer(with_mean=False, momentum=0.5, epsilon=0.0),
        BatchNormTransformer(epsilon=0.0),
        BatchNormTransformer(gamma=2.0, beta=-1.0, axis=(1,), device="cpu"),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


def test_names_and_tags():
    est = BatchNormTransformer()
    assert repr(est) == "BatchNormTransformer()"
    assert repr(BatchNormTransformer(axis=(1, 2))) == "BatchNormTransformer(axis=(1, 2))"
    assert skbn.BatchNormTransformer is BatchNormTransformer
    assert "BatchNormTransformer" in dir(skbn)
    tags = get_tags(est)
    assert tags.input_tags.allow_nan
    assert tags.input_tags.three_d_array
    assert not tags.input_tags.sparse
    assert get_tags(BatchNormTransformer(with_mean=False)).input_tags.sparse
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    assert not hasattr(est, "scale_")


def test_signatures_of_standard_scaler():
    for method in METHODS:
        ours, theirs = (
            untyped_signature(getattr(cls, method))
            for cls in (BatchNormTransformer, StandardScaler)
        )
        assert ours == theirs


class Parameter(NamedTuple):
    default: Any
    other: Any
    context: dict = {}


PARAMETERS = {
    "momentum": Parameter(None, 0.9),
    "epsilon": Parameter(1e-3, 0.1),
    "gamma": Parameter(None, 2.0),
    "beta": Parameter(None, [1.0, 2.0, 3.0, 4.0, 5.0]),
    "axis": Parameter(-1, (1, 2)),
    "with_mean": Parameter(True, False),
    "copy": Parameter(True, False),
    "device": Parameter(None, "cuda"),
}


def test_defaults():
    signature = inspect.signature(BatchNormTransformer)
    assert list(signature.parameters) == list(PARAMETERS)
    for name, parameter in signature.parameters.items():
        assert parameter.default == PARAMETERS[name].default
        assert parameter.kind is parameter.KEYWORD_ONLY
    assert set(BatchNormTransformer._parameter_constraints) == set(PARAMETERS)
    BaseEstimator._validate_params(BatchNormTransformer())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_matter(name, rows):
    def outcome(value):
        X = rows(n_features=25).reshape(40, 5, 5)
        est = BatchNormTransformer(**{name: value})
        est.partial_fit(X[:10]).partial_fit(X[10:])
        return est.transform(X).tolist(), X.tolist()

    default, other, _ = PARAMETERS[name]
    expected = outcome(default)
    assert outcome(default) == expected
    if name == "device":  # "cuda": tests/test_arrays_on_card.py
        assert outcome("cpu") == expected
    else:
        assert outcome(other) != expected


def test_frames(rows):
    pd = pytest.importorskip("pandas")
    X = rows(nan=0.1)
    frame = pd.DataFrame(X, columns=list("abcde"), index=np.arange(40)[::-1])
    before = frame.copy()
    est = BatchNormTransformer(copy=False).fit(frame)
    assert_array_equal(est.feature_names_in_, list("abcde"))
    assert_array_equal(est.get_feature_names_out(), list("abcde"))
    Z = BatchNormTransformer().set_output(transform="pandas").fit_transform(frame)
    assert isinstance(Z, pd.DataFrame)
    assert list(Z.columns) == list("abcde")
    assert_array_equal(Z.index, frame.index)
    assert_array_equal(Z, BatchNormTransformer().fit_transform(X))
    pd.testing.assert_frame_equal(frame, before)
    with pytest.warns(UserWarning, match="X does not have valid feature names, but BatchNorm"):
        est.transform(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(est.inverse_transform(X), np.ndarray)
        est.partial_fit(frame)
    assert not hasattr(est.fit(X), "feature_names_in_")
    missing = pd.DataFrame({"a": [1, 2, pd.NA], "b": [1.0, None, 5.0]}).astype("Float64")
    assert_array_equal(BatchNormTransformer().fit(missing).n_samples_seen_, 2)


def test_pipelines(seed):
    X, y = load_iris(return_X_y=True)
    ours, theirs = (
        make_pipeline(norm, LogisticRegression(max_iter=300))
        for norm in (BatchNormTransformer(epsilon=0.0), StandardScaler())
    )
    assert_allclose(ours.fit(X, y).predict_proba(X), theirs.fit(X, y).predict_proba(X), 1e-6, 1e-9)
    assert_array_equal(cross_val_score(ours, X, y), cross_val_score(theirs, X, y))
    pipe = Pipeline([("norm", BatchNormTransformer()), ("final", LogisticRegression(max_iter=300))])
    grid = {"norm__gamma": [0.01, 1.0, None], "norm__epsilon": [0.0, 1.0], "norm__beta": [None, 2]}
    search = GridSearchCV(pipe, grid, cv=3, error_score="raise").fit(X, y)
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    assert search.score(X, y) > 0.9


def test_clone(rows):
    gamma = np.ones(5)
    est = BatchNormTransformer(gamma=gamma, axis=(1,), momentum=0.3).fit(rows())
    fresh = clone(est)
    assert fresh.get_params().keys() == est.get_params().keys()
    assert_array_equal(fresh.gamma, gamma)
    assert not [name for name in vars(fresh) if name.endswith("_")]
