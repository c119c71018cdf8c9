"""Sparse X: the same network as of the same numbers in a dense array, and never made dense.

Where batch norm on the input comes first, mini-batches are made dense and the same kernels run: the
same bits. Elsewhere the first layer multiplies what is stored, in another order of sums.
"""
# SPDX-License-Identifier: BSD-3-Clause

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from cases import each_executor, network_case, optimizer
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from skbn import MLPClassifierBN, MLPRegressorBN
from skbn._losses import REGRESSION_LOSSES

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PLACEMENTS = [None, "before", "after", "input", ("input", "after")]
each_placement = pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
TARGETS = ["binary", "classes", "labels", *REGRESSION_LOSSES]


def make(target="classes", placement="after", **params):
    is_classifier = target in ("binary", "classes", "labels")
    estimator = MLPClassifierBN() if is_classifier else MLPRegressorBN(target)
    defaults = {"hidden_layer_sizes": (6, 5), "max_iter": 3, "random_state": 0, "batch_size": 12}
    if params.get("solver") == "lbfgs":
        defaults["batch_size"] = "auto"
    return estimator.set_params(**defaults | {"batch_norm": placement, "epsilon": 1e-8} | params)


@pytest.fixture
def problem(seed):
    """A function that draws a dense X, three quarters of it zeros, and y."""

    def draw(target="classes", n_rows=41, n_features=7, dtype=np.float64):
        rng = np.random.RandomState(seed)
        X = rng.normal(size=(n_rows, n_features)) * (rng.uniform(size=(n_rows, n_features)) < 0.25)
        X[3] = 0  # a row, and a column, of which nothing is stored
        X[:, 2] = 0
        raw = X @ rng.normal(size=(n_features, 2)) + 0.3 * rng.normal(size=(n_rows, 2))
        y = {
            "binary": np.arange(n_rows) % 2,
            "classes": np.arange(n_rows) % 3,
            "labels": (raw > 0).astype(int),
            "poisson": rng.poisson(np.exp(raw.clip(-2, 2))),
        }.get(target, raw)
        return X.astype(dtype), y

    return draw


def learned(est):
    parts = [*est.coefs_, *est.intercepts_, est.loss_curve_, est.train_scores_]
    for record in est.batch_norms_:
        parts += [record.gamma, record.beta, record.moving_mean, record.moving_var]
        parts += [] if record.population_mean is None else [record.population_mean]
        parts += [] if record.population_var is None else [record.population_var]
    return parts


def assert_same_network(ours, theirs, atol=1e-10):
    for our, their in zip(learned(ours), learned(theirs), strict=True):
        assert_allclose(our, their, rtol=atol, atol=atol)


# The same as dense.


@each_placement
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop", "lbfgs"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_same_as_dense(weighted, target, solver, placement, problem, seed):
    X, y = problem(target)
    weights = np.random.RandomState(seed).randint(0, 3, len(X)) if weighted else None
    dense = make(target, placement, solver=solver).fit(X, y, weights)
    ours = make(target, placement, solver=solver).fit(sparse.csr_array(X), y, weights)
    gathered = placement is not None and "input" in placement
    # some gradients in front of a norm are rounding, of which Adam makes 1e-9
    assert_same_network(ours, dense, 0 if gathered else 1e-7)
    predict = "predict_proba" if hasattr(ours, "predict_proba") else "predict"
    theirs = getattr(dense, predict)(X)
    for rows in (X, sparse.csr_array(X), sparse.csc_matrix(X)):
        assert_allclose(getattr(ours, predict)(rows), theirs, rtol=1e-6, atol=1e-6)


@each_placement
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool])
def test_dtypes(dtype, placement, problem):
    X, y = problem()
    X = np.round(2 * X).astype(dtype)
    est = make(placement=placement).fit(sparse.csr_array(X), y)
    dense = make(placement=placement).fit(X, y)
    assert est.coefs_[0].dtype == (np.float32 if dtype is np.float32 else np.float64)
    assert_same_network(est, dense, 1e-4 if dtype is np.float32 else 1e-8)


@pytest.mark.parametrize(
    "kind", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"], ids=lambda name: name
)
@pytest.mark.parametrize("family", ["array", "matrix"])
def test_formats(family, kind, problem):
    X, y = problem()
    given = getattr(sparse, f"{kind}_{family}")(X)
    est = make().fit(given, y, X_val=given, y_val=y)
    expected = make().fit(sparse.csr_array(X), y, X_val=X, y_val=y)
    assert_same_network(est, expected, 0)
    assert_array_equal(est.predict_proba(given), expected.predict_proba(sparse.csr_array(X)))
    assert_allclose(est.validation_scores_, expected.validation_scores_)
    assert given.format == kind


@each_placement
def test_the_rest_of_the_estimator(placement, problem):
    X, y = problem(n_rows=60)
    S = sparse.csr_matrix(X)
    params = {"early_stopping": True, "validation_fraction": 0.2, "max_iter": 6}
    est, dense = make(placement=placement, **params), make(placement=placement, **params)
    assert_same_network(est.fit(S, y), dense.fit(X, y), 1e-7)
    assert est.validation_scores_ == dense.validation_scores_
    assert est.score(S, y) == dense.score(X, y)
    # validation rows of the one kind beside training rows of the other
    for train, val in ((S, X), (X, S)):
        mixed = make(placement=placement).fit(train[:40], y[:40], X_val=val[40:], y_val=y[40:])
        same = make(placement=placement).fit(X[:40], y[:40], X_val=X[40:], y_val=y[40:])
        assert_allclose(mixed.validation_loss_curve_, same.validation_loss_curve_, rtol=1e-6)
    est, dense = make(placement=placement), make(placement=placement)
    for rows in (slice(20), slice(20, 40), slice(40, 60)):
        est.partial_fit(S[rows], y[rows], classes=[0, 1, 2])
        dense.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    assert_same_network(est, dense, 1e-7)
    if placement:
        est.recalibrate(S)
        dense.recalibrate(X)
        assert_allclose(est.predict_proba(X), dense.predict_proba(X), rtol=1e-6)


@each_placement
@pytest.mark.parametrize("target", ["classes", "poisson"])
def test_many_rows(target, placement, problem):
    """So many that predictions fold what can be folded."""
    X, y = problem(target)
    est = make(target, placement).fit(sparse.csr_array(X), y)
    many = np.tile(X, (500, 1))
    assert len(many) > 20_000
    few = est.predict(X)
    for rows in (many, sparse.csr_array(many)):
        assert_allclose(est.predict(rows)[: len(X)], few, rtol=1e-9)


def test_in_a_pipeline():
    texts = ["red apple", "green apple pie", "blue car", "red car wheel", "a green wheel"] * 6
    pipe = make_pipeline(
        CountVectorizer(), MaxAbsScaler(), make(learning_rate_init=0.05, max_iter=30)
    )
    y = np.arange(30) % 5 < 2
    assert pipe.fit(texts, y).score(texts, y) > 0.9
    assert cross_val_score(pipe, texts, y, cv=2, error_score="raise").shape == (2,)


# What a sparse matrix may look like.


def duplicated(S):
    """Every number as the sum of two entries, with zeros among them, out of order."""
    S = sparse.csr_array(S)
    starts, columns, data = [0], [], []
    for row in range(S.shape[0]):
        part = slice(S.indptr[row], S.indptr[row + 1])
        columns += [*S.indices[part][::-1], *S.indices[part], 0, 5]
        data += [*(0.25 * S.data[part][::-1]), *(0.75 * S.data[part]), 0.0, 0.0]
        starts.append(len(data))
    return sparse.csr_array((np.array(data), np.array(columns), np.array(starts)), shape=S.shape)


def read_only(S):
    S = sparse.csr_array(S)
    for part in (S.data, S.indices, S.indptr):
        part.setflags(write=False)
    return S


def strided(S):
    S = sparse.csr_array(S)
    data, indices, indptr = (np.repeat(p, 2)[::2] for p in (S.data, S.indices, S.indptr))
    return sparse.csr_array((data, indices, indptr), shape=S.shape)


def wide_indices(S):
    S = sparse.csr_array(S)
    S.indices, S.indptr = S.indices.astype(np.int64), S.indptr.astype(np.int64)
    return S


def room_to_spare(S):
    S = sparse.csr_array(S)
    S.data = np.append(S.data, [np.pi] * 3)
    S.indices = np.append(S.indices, [0] * 3).astype(S.indices.dtype)
    return S


SHAPES = {f.__name__: f for f in (duplicated, read_only, strided, wide_indices, room_to_spare)}


@each_placement
@pytest.mark.parametrize("name", SHAPES)
def test_forms(name, placement, problem):
    X, y = problem()
    given = SHAPES[name](X)
    before = given.copy() if name != "room_to_spare" else None
    est = make(placement=placement, solver="sgd").fit(given, y, X_val=given, y_val=y)
    expected = make(placement=placement, solver="sgd").fit(sparse.csr_array(X), y, X_val=X, y_val=y)
    assert_same_network(est, expected, 1e-9 if name == "duplicated" else 0)
    proba = est.predict_proba(given)
    assert_allclose(proba, expected.predict_proba(sparse.csr_array(X)), rtol=1e-9)
    if before is not None:  # nothing was sorted or summed in place
        for part in ("data", "indices", "indptr"):
            assert_array_equal(getattr(given, part), getattr(before, part))
            assert getattr(given, part).dtype == getattr(before, part).dtype


@each_executor
@pytest.mark.parametrize("placements", [(), ("input",)])
def test_indices_of_64_bits(placements, executor):
    """An executor reads them as they are: there are matrices that need them."""
    case = network_case(placements, "tanh", (9,), 20, 3, sparse=True, n_rows=20)
    found = []
    for integer in (np.int32, np.int64):
        network = case.network()
        X, *rest = case.data()
        X = sparse.csr_array(X)
        X.indices, X.indptr = X.indices.astype(integer), X.indptr.astype(integer)
        grads, rule = network.new_vector(), optimizer(network, "adam")
        with case.executor(executor, network) as it:
            loss = it.loss_and_gradient(X, *rest, grads)
            it.train(X, *rest, 0, rule.record, rule.memory, it.new_sums())
            if placements:
                it.update_population_statistics(X, *rest[1:])
            found.append([loss, grads, network.params, network.state, it.predict(X)])
    for narrow, wide in zip(*found, strict=True):
        assert_array_equal(narrow, wide)


def test_nothing_stored(problem):
    _, y = problem()
    for placement in PLACEMENTS:
        with np.errstate(all="raise"):
            est = make(placement=placement).fit(sparse.csr_array((41, 7)), y)
        dense = make(placement=placement).fit(np.zeros((41, 7)), y)
        assert_same_network(est, dense, 1e-12)
        assert np.ptp(est.predict_proba(sparse.csr_array((5, 7))), axis=0).max() == 0


# What is not a sparse matrix. Kernels and scipy's conversions would read, and write, anywhere.

MALFORMED = """
import json, sys, warnings
import numpy as np
from scipy import sparse
from skbn import MLPClassifierBN

warnings.simplefilter("ignore")

def spoil(S, part, where, value):
    array = getattr(S, part)
    if where == "cut":
        setattr(S, part, array[:value])
    else:
        array[where] = value
    return S

rng = np.random.default_rng(0)
X, y = sparse.csr_array(rng.normal(size=(60, 6)) * (rng.random((60, 6)) < 0.5)), np.arange(60) % 3
found = {}
for kind in ("csr_matrix", "csr_array", "csc_matrix", "csc_array"):
    for spoiling in json.loads(sys.argv[1]):
        for method in ("fit", "partial_fit", "predict", "recalibrate", "X_val"):
            bad = spoil(getattr(sparse, kind)(X).copy(), *spoiling)
            est = MLPClassifierBN((4,), batch_norm=("input", "after"), max_iter=1, random_state=0)
            if method != "fit":
                est.fit(X, y)
            args = {"fit": (bad, y), "partial_fit": (bad, y)}.get(method, (bad,))
            try:
                if method == "X_val":
                    est.fit(X, y, X_val=bad, y_val=y)
                else:
                    getattr(est, method)(*args)
                result = "accepted"
            except Exception as error:
                result = type(error).__name__
            found[f"{kind}, {spoiling}, {method}"] = result
print(json.dumps(found))
"""
SPOILINGS = [
    ("indices", 5, 10**8),
    ("indices", 5, 1000),
    ("indices", 5, -1),
    ("indices", -1, -(10**8)),
    ("indptr", 3, 10**8),
    ("indptr", 3, -(10**8)),
    ("indptr", 0, 1),
    ("indptr", -1, 10**8),
    ("indptr", "cut", -2),
    ("data", "cut", -3),
    ("indices", "cut", -3),
]


def test_malformed():
    """In a process of its own: what it is about ends in a crash where it is not refused."""
    command = [sys.executable, "-c", MALFORMED, json.dumps(SPOILINGS)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == 4 * 5 * len(SPOILINGS)
    assert set(found.values()) == {"ValueError"}


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_array])
def test_a_refusal_changes_nothing(container, problem, unchanged):
    X, y = problem()
    est = make().fit(X, y)
    bad = container(X)
    bad.indices[0] = 1000
    for call in (
        lambda: est.fit(bad, y),
        lambda: est.partial_fit(bad, y),
        lambda: est.fit(X, y, X_val=bad, y_val=y),
        lambda: est.recalibrate(bad),
        lambda: est.predict(bad),
    ):
        with unchanged(est, X), pytest.raises(ValueError, match=r"ind(ices|ex values) must be"):
            call()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(value, problem, unchanged):
    X, y = problem()
    est, bad = make().fit(X, y), sparse.csr_array(X)
    bad.data[3] = value
    for method, args in (("fit", (bad, y)), ("partial_fit", (bad, y)), ("predict", (bad,))):
        with unchanged(est, X), pytest.raises(ValueError, match=r"NaN|infinity"):
            getattr(est, method)(*args)


# Memory.


@pytest.mark.parametrize("placement", ["input", None, "after"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_x_is_never_made_dense(dtype, placement):
    """Of 5,000 rows of 20,000 features: 400 or 800 MB, were they dense."""
    rng = np.random.default_rng(0)
    places = rng.integers(5000, size=10_000), rng.integers(20_000, size=10_000)
    X = sparse.csr_array((rng.random(10_000, dtype), places), shape=(5000, 20_000))
    y = np.arange(5000) % 2
    size = X.shape[0] * X.shape[1] * X.dtype.itemsize
    est = make("binary", placement, hidden_layer_sizes=(2,), max_iter=1, batch_size=20)
    tracemalloc.start()
    est.fit(X, y, X_val=X[:300], y_val=y[:300])
    est.predict(X)
    if placement:
        est.recalibrate(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 3
