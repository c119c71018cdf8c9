"""``device="cuda"`` and arrays on a card, through the estimators; the card is simulated.

Whether kernels compute right is judged in tests/backends. Here: the same fit on either device,
arrays that never leave the card nor come back as something else, and what is refused.
"""
# SPDX-License-Identifier: BSD-3-Clause

import os
import pickle
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import scipy.special
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array, issparse
from simulated_card import SimulatedArray, SimulatedCard
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skbn import MLPClassifierBN, MLPRegressorBN, fit_many
from skbn._losses import log_loss
from skbn.backends.cuda import epochs, executor
from skbn.backends.cuda.card import current
from skbn.backends.cuda.executor import CUDAExecutor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# An output layer that starts at zero lets hardly any gradient through in the first steps, and Adam
# makes full steps even of what is little more than float32's rounding.
SMALL = {"hidden_layer_sizes": (6,), "max_iter": 3, "random_state": 0, "batch_size": 20}
SMALL |= {"weight_init": "glorot_uniform"}
TOLERANCE = {np.float32: 1e-3, np.float64: 1e-10}  # an epoch in float32: another order of sums


@pytest.fixture
def card(simulated_card):
    return simulated_card


def make(kind="classifier", **params):
    return {"classifier": MLPClassifierBN, "regressor": MLPRegressorBN}[kind](**SMALL | params)


def target(kind, y):
    return y if kind == "classifier" else y * 1.5 - 1


each_kind = pytest.mark.parametrize("kind", ["classifier", "regressor"])
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def assert_same_fit(found, expected, dtype):
    """All fitted numbers agree, and all arrays are NumPy's."""
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert type(a) is np.ndarray
            assert a.dtype == dtype
            assert_allclose(a, b, **tolerance)
    for a, b in zip(found.batch_norms_, expected.batch_norms_, strict=True):
        for field in ("gamma", "beta", "moving_mean", "moving_var", "population_mean"):
            if getattr(b, field) is not None:
                assert_allclose(getattr(a, field), getattr(b, field), **tolerance)
    for name in ("loss_curve_", "validation_loss_curve_", "train_scores_", "validation_scores_"):
        if getattr(expected, name) is not None:
            assert_allclose(getattr(found, name), getattr(expected, name), **tolerance)
    assert found.t_ == expected.t_


def assert_same_bits(found, expected):
    for a, b in zip(found.coefs_, expected.coefs_, strict=True):
        assert_array_equal(a, b)
    # Sums over an epoch of a small network depend on how many launches it takes.
    assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-14)


# The same fit on either device.

EARLY = {"early_stopping": True, "validation_fraction": 0.2}
OPTIONS = {
    "nothing": {"batch_norm": None},
    "before": {"batch_norm": "before"},
    "after": {},
    "input": {"batch_norm": "input"},
    "three": {"batch_norm": ("input", "before", "after"), "hidden_layer_sizes": (5, 4)},
    "no hidden layer": {"hidden_layer_sizes": ()},
    "gelu": {"activation": "gelu"},
    "sgd": {"solver": "sgd", "learning_rate": "adaptive"},
    "rmsprop": {"solver": "rmsprop", "learning_rate": "cosine"},
    "lbfgs": {"solver": "lbfgs", "batch_size": "auto"},
    "dropout": {"dropout": 0.4},
    "virtual batches": {"bn_virtual_batch_size": 8},
    "moving": {"bn_statistics": "moving", "bn_momentum": None},
    "no gamma, no beta": {"bn_center": False, "bn_scale": False},
    "early stopping": EARLY,
    "scoring": EARLY | {"scoring": "neg_mean_absolute_error"},
    "gradients cut": {"max_grad_norm": 0.1},
    "blocks": {"shuffle": "blocks"},
    "no shuffle": {"shuffle": False},
}


@each_dtype
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_same_fit(card, options, dtype, blobs):
    X, y = blobs(dtype=dtype)
    y = y.astype(np.float64)
    est = MLPRegressorBN(**SMALL | options)
    expected = clone(est).fit(X, y)
    by_name = clone(est).set_params(device="cuda").fit(X, y)
    by_place = clone(est).fit(card.upload(X), y)
    assert_same_fit(by_name, expected, dtype)
    assert_same_bits(by_place, by_name)
    given = by_name.predict(X)
    assert type(given) is np.ndarray
    assert given.dtype == dtype
    assert_allclose(given, expected.predict(X), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert_array_equal(by_place.predict(card.upload(X)).get(), given)


@pytest.mark.parametrize("placement", [None, "before", "after", "input"])
@each_kind
def test_one_step(card, kind, placement, blobs):
    """In float32 a step differs by no more than another order of its sums."""
    X, y = blobs(n_classes=2, dtype=np.float32)
    y = target(kind, y)
    est = make(kind, batch_norm=placement, solver="sgd", batch_size="auto")
    kwargs = {"classes": [0, 1]} if kind == "classifier" else {}
    expected = clone(est).partial_fit(X, y, **kwargs)
    found = clone(est).partial_fit(card.upload(X), y, **kwargs)
    for a, b in zip(found.coefs_, expected.coefs_, strict=True):
        assert_allclose(a, b, rtol=2e-6, atol=2e-6)
    assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=2e-6)


@each_kind
def test_weights_and_validation_rows(card, kind, blobs, seed):
    X, y = blobs(n_classes=2)
    y = target(kind, y)
    weights = np.random.RandomState(seed).uniform(0, 2, len(y))
    arrays = (X[:40], y[:40], weights[:40])
    val = {"X_val": X[40:], "y_val": y[40:], "sample_weight_val": weights[40:]}
    options = {"class_weight": {0: 1.0, 1: 3.0}} if kind == "classifier" else {}
    expected = make(kind, **options).fit(*arrays, **val)
    for put in (lambda a: a, card.upload):  # labels and weights may lie on either side
        on_card = (card.upload(arrays[0]), *map(put, arrays[1:]))
        on_card_val = {k: (card.upload if k == "X_val" else put)(v) for k, v in val.items()}
        assert_same_fit(make(kind, **options).fit(*on_card, **on_card_val), expected, np.float64)


@pytest.mark.parametrize("labels", [[0, 1], [2, 3, 7], ["no", "yes"], [False, True], [0.0, 2.0]])
def test_partial_fit(card, labels, blobs):
    X, codes = blobs(n_classes=len(labels))
    labels = np.array(labels)
    y = labels[codes]
    ests = make(), make()
    for rows in (slice(0, 20), slice(20, 40)):
        ests[0].partial_fit(X[rows], y[rows], classes=labels)
        ests[1].partial_fit(card.upload(X)[rows], y[rows], classes=labels)
    assert_same_fit(ests[1], ests[0], np.float64)
    if labels.dtype.kind in "biuf":
        on_card = card.upload(y)
        found = make().partial_fit(card.upload(X), on_card, classes=card.upload(labels))
        assert_array_equal(found.classes_, labels)


@each_kind
def test_training_goes_on_on_the_other_device(card, kind, blobs):
    X, y = blobs(n_classes=2)
    y = target(kind, y)
    expected = make(kind, warm_start=True).fit(X, y).fit(X, y).partial_fit(X, y)
    est = make(kind, warm_start=True).fit(card.upload(X), y).fit(X, y)
    assert_same_fit(est.partial_fit(card.upload(X), y), expected, np.float64)


@each_kind
def test_sparse_rows(card, kind, blobs):
    X, y = blobs(n_classes=2)
    X[X < 0] = 0
    y = target(kind, y)
    expected = make(kind).fit(X, y)
    est = make(kind, device="cuda").fit(csr_array(X), y)
    assert_same_fit(est, expected, np.float64)
    assert_allclose(est.predict(csr_array(X)), expected.predict(X), rtol=1e-9)


def test_many_fits_at_once(card, blobs):
    X, y = blobs(n_classes=2)
    folds = [np.arange(40), None, None]
    ests = [make(batch_norm="before"), make(solver="lbfgs", batch_size="auto"), make(device="cuda")]
    expected = [
        clone(est).fit(X, y) if rows is None else clone(est).fit(X[rows], y[rows])
        for est, rows in zip(ests, folds, strict=True)
    ]
    for weights in (None, card.upload(np.ones(61))):
        fit_many(ests, card.upload(X), card.upload(y), weights, rows=folds)
        for est, same in zip(ests, expected, strict=True):
            assert_same_fit(est, same, np.float64)
    with pytest.raises(TypeError, match="device='cpu'"):
        fit_many([make(), make(device="cpu")], card.upload(X), y)
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        fit_many([make()], card.upload(X), y)


def test_recalibrate(card, blobs):
    X, y = blobs()
    expected, est = make().fit(X, y), make().fit(X, y)
    assert_same_fit(est.recalibrate(card.upload(X * 3)), expected.recalibrate(X * 3), np.float64)


# For what executors measure: how long a step takes decides how many of them make a call.
ONE_SECOND = property(lambda self: 1.0, lambda self, measured: None)


@pytest.mark.parametrize("way", ["epochs", "steps"])
@each_kind
def test_no_bit_depends_on_the_clock(kind, way, card, blobs, monkeypatch):
    """An epoch is a few calls of the executor, each of as many steps as time has it."""
    X, y = blobs(200)
    if way == "steps":
        X = csr_array(X)  # which no small network takes whole
    monkeypatch.setattr(CUDAExecutor, "seconds_per_step", ONE_SECOND, raising=False)
    monkeypatch.setattr(epochs.Models, "seconds_per_batch", ONE_SECOND, raising=False)
    ests = []
    for n_steps in (100, 2, 3, 5):
        for module in (executor, epochs):
            monkeypatch.setattr(module, "SECONDS_PER_CALL", n_steps)
        ests.append(make(kind, device="cuda", batch_size=7).fit(X, y))
        assert_same_bits(ests[-1], ests[0])
        assert ests[-1].loss_curve_ == ests[0].loss_curve_


@pytest.mark.parametrize("in_graphs", [True, False])
def test_graphs_do_what_launches_do(in_graphs, card, blobs, monkeypatch):
    """Not a bit differs; and there are graphs, of many steps and of one."""
    X, y = blobs(300)
    monkeypatch.setattr(CUDAExecutor, "seconds_per_step", ONE_SECOND, raising=False)
    monkeypatch.setattr(executor, "SECONDS_PER_CALL", 100)
    captured = []
    capture = type(card).capture
    monkeypatch.setattr(
        type(card), "capture", lambda self, work: captured.append(work) or capture(self, work)
    )
    options = {"device": "cuda", "batch_size": 10, "max_iter": 3}
    expected = make(**options).fit(csr_array(X), y)
    assert {work.args for work in captured} >= {(16,), (1,)}
    captured.clear()
    if not in_graphs:
        monkeypatch.setattr(executor, "WORK_IN_GRAPH", 0)
    assert_same_bits(make(**options).fit(csr_array(X), y), expected)
    assert bool(captured) == in_graphs


def test_rows_that_do_not_fit_on_the_card(card, blobs, monkeypatch, unchanged):
    X, y = blobs(5000)
    est = make(device="cuda")
    monkeypatch.setattr(type(card), "free_memory", X.nbytes - 1)
    with (
        unchanged(est),
        pytest.raises(MemoryError, match=r"X takes .* GiB free\. Use device='cpu'"),
    ):
        est.fit(X, y)


# Results lie where X lies.

METHODS = {
    "classifier": ("predict", "predict_proba", "predict_log_proba", "transform_hidden"),
    "regressor": ("predict", "transform_hidden"),
}


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("block", [7, 8192])
@each_kind
@each_dtype
def test_results_lie_where_rows_lie(card, kind, dtype, n_outputs, block, blobs, monkeypatch):
    monkeypatch.setattr("skbn._mlp.ROWS_PER_CALL", block)
    X, y = blobs(260, n_outputs, dtype=dtype)
    if kind == "regressor":
        y = np.column_stack([y, -y, y])[:, :n_outputs]
    est = make(kind, hidden_layer_sizes=(3,), max_iter=1, batch_size=260).fit(X, y.squeeze())
    for method in METHODS[kind]:
        expected = getattr(est, method)(X)
        found = getattr(est, method)(card.upload(X))
        assert type(found) is SimulatedArray
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert_allclose(found.get(), expected, rtol=1e-5, atol=1e-6)
    assert_allclose(est.score(card.upload(X), y), est.score(X, y), atol=1e-6)
    assert_allclose(est.score(card.upload(X), card.upload(y)), est.score(X, y), atol=1e-6)


@pytest.mark.parametrize(
    "labels", [["no", "yes", "who"], np.array(["b", "a", "c"], object), [3, -1, 7], [0.0, 2.0, 7.0]]
)
def test_labels(card, labels, blobs):
    X, codes = blobs()
    y = np.asarray(labels)[codes]
    est = make().fit(card.upload(X), y)
    assert type(est.classes_) is np.ndarray
    found, expected = est.predict(card.upload(X)), est.predict(X)
    assert expected.dtype == found.dtype == y.dtype
    # strings cannot lie on a card
    assert type(found) is (np.ndarray if y.dtype.kind in "UO" else SimulatedArray)
    assert_array_equal(found if y.dtype.kind in "UO" else found.get(), expected)
    weights = np.linspace(0, 1, len(y))
    expected = np.average(expected == y, weights=weights)
    assert_allclose(est.score(card.upload(X), y, card.upload(weights)), expected)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_indicators(card, is_sparse, blobs):
    X, y = blobs()
    Y = (y[:, None] == [0, 1]).astype(int)
    expected = make().fit(X, Y)
    est = make().fit(card.upload(X), csr_array(Y) if is_sparse else card.upload(Y))
    assert_same_fit(est, expected, np.float64)
    found = est.predict(card.upload(X))
    assert type(found) is SimulatedArray
    assert_array_equal(found.get(), expected.predict(X))
    assert issparse(est.predict(X)) == is_sparse
    assert est.score(card.upload(X), Y) == expected.score(X, Y)


@each_dtype
@pytest.mark.parametrize("n_classes", [1, 2, 3])
def test_links(card, dtype, n_classes, seed):
    """On a card as in NumPy; in NumPy as in scipy, bit for bit."""
    loss = log_loss(n_classes)
    raw = np.random.RandomState(seed).normal(scale=9, size=(50, loss.n_outputs)).astype(dtype)
    if n_classes == 3:
        raw[:3] = [[np.inf, 0, 0], [np.nan, 0, 1], [-np.inf, -np.inf, -np.inf]]
        with np.errstate(invalid="ignore"):
            assert_array_equal(loss.predict_proba(raw), scipy.special.softmax(raw, axis=1))
            assert_array_equal(loss.predict_log_proba(raw), scipy.special.log_softmax(raw, axis=1))
    for link in (loss.decide, loss.predict_proba, loss.predict_log_proba):
        with np.errstate(invalid="ignore"):
            found, expected = link(card.upload(raw)), link(raw)
        assert type(found) is SimulatedArray
        assert found.dtype == expected.dtype
        assert_array_equal(found.get(), expected)


def test_rows_do_not_travel(card, blobs, monkeypatch):
    """Whatever is done with rows on a card, they are not copied from it, nor once more to it."""
    X, y = blobs(120, n_classes=2, n_features=64)
    on_card, travelled = card.upload(X), []

    def count(name, which):
        method = getattr(card, name)

        def counted(*args, **kwargs):
            travelled.append(args[which].nbytes)
            return method(*args, **kwargs)

        monkeypatch.setattr(card, name, counted)

    for name, which in (("read", 0), ("upload", 0), ("write", 1)):
        count(name, which)
    est = make(hidden_layer_sizes=(1,), max_iter=1, early_stopping=True)
    est.fit(on_card, y, X_val=on_card[:100], y_val=y[:100])
    est.set_params(early_stopping=False).partial_fit(on_card, y)
    est.recalibrate(on_card)
    for method in METHODS["classifier"]:
        getattr(est, method)(on_card)
    est.score(on_card, y)
    assert travelled
    assert max(travelled) < X.nbytes / 4


@pytest.mark.parametrize("convert", [np.int32, np.uint8, np.bool_, np.float16], ids=str)
def test_types(card, convert, blobs):
    X, y = blobs()
    X = np.abs(X).astype(convert)
    expected = make().fit(X, y)
    est = make().fit(card.upload(X), y)
    assert_same_fit(est, expected, np.float64)
    single = make().fit(card.upload(X.astype(np.float32)), y)
    found = single.predict_proba(card.upload(X))  # of another type than the network
    assert found.dtype == np.float32
    assert_allclose(found.get(), single.predict_proba(X), rtol=1e-4, atol=1e-5)


LAYOUTS = {
    "columns": lambda X: X.T.copy().T,
    "every other row": lambda X: X.repeat(2, axis=0)[::2],
    "every other column": lambda X: X.repeat(2, axis=1)[:, ::2],
    "backwards": lambda X: X[::-1].copy()[::-1],
}


@pytest.mark.parametrize("lie", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(card, lie, blobs):
    X, y = blobs()
    on_card = card.upload(X)
    laid = lie(X)
    base = laid.base if laid.base is not None else laid
    on_card = card.upload(np.ascontiguousarray(base))
    on_card = SimulatedArray(
        np.ndarray(X.shape, X.dtype, on_card._values.data, 0, laid.strides)
        if min(laid.strides) > 0
        else on_card._values[::-1],
        on_card._memory,
    )
    assert_array_equal(on_card.get(), X)
    est = make().fit(on_card, y)
    assert_same_bits(est, make().fit(card.upload(X), y))
    assert_array_equal(est.predict(on_card).get(), est.predict(card.upload(X)).get())


# Scorers.


@pytest.mark.parametrize("where", ["split", "X_val"])
@pytest.mark.parametrize("scoring", ["balanced_accuracy", "neg_log_loss", "callable"])
def test_scorers(card, scoring, where, blobs):
    """Scorers are given labels and predictions as NumPy arrays, rows as they are."""
    X, y = blobs(n_classes=2)
    seen = []

    def scorer(est, X, y):
        seen.append((type(X), type(y), type(est.predict(X))))
        return (est.predict(X) == y).mean()

    scoring = scorer if scoring == "callable" else scoring
    options = {"early_stopping": True, "scoring": scoring, "validation_fraction": 0.3}
    val = {"X_val": X[:30], "y_val": y[:30]} if where == "X_val" else {}
    expected = make(**options).fit(X, y, **val)
    val |= {"X_val": card.upload(X[:30])} if val else {}
    est = make(**options).fit(card.upload(X), y, **val)
    assert_same_fit(est, expected, np.float64)
    assert type(est.predict(card.upload(X))) is SimulatedArray
    if scoring is scorer:
        assert seen[-1] == (SimulatedArray, np.ndarray, np.ndarray)


# Inside scikit-learn.


def test_meta_estimators(card, blobs):
    X, y = blobs()
    pipe = Pipeline([("scale", StandardScaler()), ("mlp", make())])
    grid = {"mlp__batch_norm": ["before", "after"], "mlp__device": [None, "cuda"]}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert_allclose(scores[::2], scores[1::2], atol=1e-9)
    expected = cross_val_score(make(), X, y, cv=3)
    assert_allclose(cross_val_score(make(), card.upload(X), y, cv=3), expected)


@parametrize_with_checks(
    [
        MLPClassifierBN((5,), max_iter=15, learning_rate_init=0.1, device="cuda"),
        MLPRegressorBN("squared_error", (5,), max_iter=15, solver="lbfgs", device="cuda"),
    ]
)
@pytest.mark.filterwarnings("ignore:.* has no effect with solver")
def test_sklearn_checks(estimator, check, card):
    check(estimator)


# Models leave the card.


@each_kind
def test_models_open_where_there_is_no_card(card, kind, blobs, monkeypatch, no_card):
    X, y = blobs(n_classes=2)
    by_place = make(kind).fit(card.upload(X), target(kind, y))
    by_name = make(kind, device="cuda").fit(X, target(kind, y))
    expected = by_name.predict(X)
    stored = pickle.dumps((by_place, by_name))
    monkeypatch.setattr("skbn.backends.cuda.card.current", current)
    by_place, by_name = pickle.loads(stored)
    assert_allclose(by_place.predict(X), expected, rtol=1e-9)
    with pytest.raises(ImportError, match=r"skbn\[cuda13\]"):
        by_name.predict(X)
    assert_allclose(by_name.set_params(device=None).predict(X), expected, rtol=1e-9)


def test_pickles_hold_numpy_arrays(card, blobs):
    X, y = blobs()
    expected = pickle.dumps(make(device="cuda").fit(X, y))
    assert len(pickle.dumps(make(device="cuda").fit(card.upload(X), y))) == len(expected)


# What is refused.


@contextmanager
def refused(unchanged, est, error, match):
    with unchanged(est), pytest.raises(error, match=match):
        yield


def calls(est, X, y):
    """All that can be asked of an estimator with rows."""
    classes = {"classes": [0, 1]} if isinstance(est, MLPClassifierBN) else {}
    yield lambda: est.fit(X, y)
    yield lambda: est.partial_fit(X, y, **(classes if not hasattr(est, "coefs_") else {}))
    for method in ("predict", "transform_hidden", "recalibrate"):
        if hasattr(est, "coefs_"):
            yield lambda method=method: getattr(est, method)(X)


@each_kind
def test_cpu_does_not_take_what_lies_on_a_card(card, kind, blobs, unchanged):
    X, y = blobs(n_classes=2)
    est = make(kind, device="cpu").fit(X, target(kind, y))
    for call in calls(est, card.upload(X), target(kind, y)):
        with refused(unchanged, est, TypeError, "device='cpu' does not compute with arrays that"):
            call()


@pytest.mark.parametrize("start", ["fresh", "fitted"])
@each_kind
def test_no_card(kind, start, blobs, unchanged, no_card):
    X, y = blobs(n_classes=2)
    est = make(kind) if start == "fresh" else make(kind).fit(X, target(kind, y))
    est.set_params(device="cuda")
    for call in calls(est, X, target(kind, y)):
        with refused(unchanged, est, ImportError, r"device='cuda' needs CuPy.*skbn\[cuda13\]"):
            call()


def test_no_driver(blobs, unchanged, monkeypatch):
    class CUDARuntimeError(RuntimeError):
        pass

    def get_device():
        raise CUDARuntimeError("cudaErrorNoDevice")

    runtime = SimpleNamespace(getDevice=get_device, CUDARuntimeError=CUDARuntimeError)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr("skbn.backends.cuda.card._cupy", lambda: cupy)
    X, y = blobs()
    est = make().fit(X, y).set_params(device="cuda")
    for call in calls(est, X, y):
        with refused(unchanged, est, RuntimeError, "needs an NVIDIA card.*cudaErrorNoDevice"):
            call()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@each_dtype
@each_kind
def test_not_finite(card, kind, dtype, value, blobs, unchanged):
    X, y = blobs(n_classes=2, dtype=dtype)
    y = target(kind, y)
    est, bad = make(kind).fit(X, y), X.copy()
    bad[17, 2] = value
    with pytest.raises(ValueError, match="Input X contains") as by_numpy:
        est.predict(bad)
    for call in calls(est, card.upload(bad), y):
        with refused(unchanged, est, ValueError, re.escape(str(by_numpy.value))):
            call()
    with refused(unchanged, est, ValueError, "X_val: Input X contains"):
        est.fit(card.upload(X), y, X_val=card.upload(bad), y_val=y)


def test_nothing_is_looked_for_in_finite_rows(card, blobs, monkeypatch):
    X, y = blobs()
    est = make().fit(X, y)
    monkeypatch.setattr("skbn._devices.non_finite", lambda X: pytest.fail("a look at all rows"))
    with sklearn.config_context(assume_finite=True):
        est.predict(card.upload(X))


def test_nobody_waits_for_predictions_but_parameters_arrive(card, blobs):
    """What a card copies is there until it has been copied."""
    X, y = blobs()
    est = make().fit(X, y)
    rows = card.upload(X)
    with sklearn.config_context(assume_finite=True):
        est.transform_hidden(rows)
    card.synchronize()
    with CUDAExecutor(est._network) as executor:
        for _ in range(2):
            est._network.params += 1
            executor.predict(rows)
    card.synchronize()


def test_too_large_for_the_network(card, blobs):
    X, y = blobs(dtype=np.float32)
    est = make().fit(X, y)
    X = X.astype(np.float64) + 1e300
    with pytest.raises(ValueError, match=r"infinity or a value too large for dtype\('float32'\)"):
        est.predict(card.upload(X))


BAD = {
    "one dimension": lambda X: X[0],
    "no dimension": lambda X: X[0, 0].reshape(()),
    "three dimensions": lambda X: X[:, :, None],
    "no rows": lambda X: X[:0],
    "no columns": lambda X: X[:, :0],
    "other columns": lambda X: X[:, :3],
    "complex": lambda X: X + 1j,
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
@each_kind
def test_in_the_words_of_sklearn(card, kind, spoil, blobs, unchanged):
    X, y = blobs(n_classes=2)
    y = target(kind, y)
    est = make(kind).fit(X, y)
    bad = np.atleast_1d(spoil(X))
    on_card = card.upload(bad).reshape(np.shape(spoil(X)))
    for method in ("predict", "fit"):
        rest = (y,) if method == "fit" else ()
        if method == "fit" and spoil is BAD["other columns"]:
            continue
        with pytest.raises(ValueError, match=r"\w") as expected:
            getattr(est, method)(spoil(X), *rest)
        with refused(unchanged, est, ValueError, re.escape(str(expected.value))):
            getattr(est, method)(on_card, *rest)


def test_other_lengths(card, blobs):
    X, y = blobs()
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: .61, 60"):
        make().fit(card.upload(X), card.upload(y[:60]))
    with pytest.raises(ValueError, match=r"sample_weight.shape == .60,., expected .61,."):
        make().fit(card.upload(X), y, sample_weight=card.upload(np.ones(60)))


def test_names_of_features_are_forgotten(card, blobs):
    pd = pytest.importorskip("pandas")
    X, y = blobs()
    est = make(device="cuda").fit(pd.DataFrame(X, columns=list("abcd")), y)
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        est.predict(card.upload(X))
    assert not hasattr(est.fit(card.upload(X), y), "feature_names_in_")


def test_sparse_matrices_on_a_card(card, blobs, unchanged):
    X, y = blobs()
    matrix = type("csr_matrix", (), {"__module__": "cupyx.scipy.sparse._csr", "shape": X.shape})()
    est = make().fit(X, y)
    for call in calls(est, matrix, y):
        with refused(unchanged, est, TypeError, "Sparse data was passed for X, but dense data"):
            call()


@each_kind
def test_rows_and_validation_rows_lie_together(card, kind, blobs, unchanged):
    X, y = blobs(n_classes=2)
    y = target(kind, y)
    est = make(kind).fit(X, y)
    for device in (None, "cuda"):
        est.set_params(device=device)
        for rows, rows_val in ((X, card.upload(X)), (card.upload(X), X)):
            with refused(unchanged, est, ValueError, "Input arrays use different devices"):
                est.fit(rows, y, X_val=rows_val, y_val=y)


# Other cards, other libraries.


class OnSecondCard(SimulatedArray):
    def __dlpack_device__(self):
        return (2, 1)


def test_the_card_where_rows_lie(card, blobs, monkeypatch):
    """Work is done on the card of the rows, whichever is the current one."""
    entered = []

    class Second(SimulatedCard):
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *exception):
            entered.append("out")

    second = Second()
    monkeypatch.setattr(card, "at", [card, second].__getitem__, raising=False)
    X, y = blobs()
    on_card = card.upload(X)
    on_second = OnSecondCard(on_card._values, on_card._memory)
    est = make().fit(on_card, y)
    assert not entered
    for call in calls(est, on_second, y):
        call()
        assert entered == ["in", "out"]
        entered.clear()
    with pytest.raises(ValueError, match="X lies on cuda:0, X_val on cuda:1"):
        est.fit(on_card, y, X_val=on_second, y_val=y)


class Tensor:
    """An array of another library: only DLPack leads in, and out again."""

    __module__ = "other_library.tensors"

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("has_namespace", [False, True])
def test_other_libraries_on_a_card(card, has_namespace, blobs, monkeypatch):
    library = ModuleType("other_library")
    library.from_dlpack = Tensor
    if has_namespace:
        monkeypatch.setattr(Tensor, "__array_namespace__", lambda self: library, raising=False)
    else:
        monkeypatch.setitem(sys.modules, "other_library", library)
    X, y = blobs()
    expected = make().fit(card.upload(X), y, X_val=card.upload(X), y_val=y)
    rows = Tensor(card.upload(X))
    est = make().fit(rows, Tensor(card.upload(y)), X_val=rows, y_val=y)
    assert_same_bits(est, expected)
    for method in METHODS["classifier"]:
        found = getattr(est, method)(rows)
        assert type(found) is Tensor
        assert_array_equal(found.array.get(), getattr(est, method)(card.upload(X)).get())
    assert est.score(rows, y) == est.score(X, y)
    est = make().fit(rows, y.astype(str))
    assert type(est.predict(rows)) is np.ndarray


# scikit-learn's array API dispatch, in a process of its own: scipy reads its switch when imported.


@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
def test_array_api_dispatch(library):
    pytest.importorskip(library)
    code = """
        import sys
        import numpy as np
        import library as xp
        from sklearn import config_context
        from sklearn.metrics import accuracy_score
        from skbn import MLPClassifierBN, MLPRegressorBN

        rng = np.random.RandomState(0)
        X, y = rng.normal(size=(60, 4)).astype(np.float32), rng.randint(3, size=60)
        options = {"hidden_layer_sizes": (5,), "max_iter": 2, "random_state": 0, "tol": 0}
        weights = rng.uniform(size=60)
        there, labels = xp.asarray(X), xp.asarray(y)

        def same(found, expected):
            assert type(found) is type(there), type(found)
            assert found.shape == expected.shape
            np.testing.assert_array_equal(np.asarray(found), expected)

        with config_context(array_api_dispatch=True):
            for scoring in (None, "accuracy"):
                params = options | {"early_stopping": scoring is not None, "scoring": scoring}
                est = MLPClassifierBN(**params).fit(
                    there, labels, xp.asarray(weights),
                    X_val=there, y_val=labels, sample_weight_val=xp.asarray(weights),
                )
                expected = MLPClassifierBN(**params).fit(
                    X, y, weights, X_val=X, y_val=y, sample_weight_val=weights
                )
                assert all(type(coef) is np.ndarray for coef in est.coefs_)
                for method in ("predict", "predict_proba", "predict_log_proba", "transform_hidden"):
                    same(getattr(est, method)(there), getattr(expected, method)(X))
                score = expected.score(X, y)
                assert est.score(there, labels) == score
                assert np.isclose(float(accuracy_score(labels, est.predict(there))), score)
            est.set_params(early_stopping=False).partial_fit(there, labels).recalibrate(there)
            words = MLPClassifierBN(**options).fit(there, y.astype(str))
            assert type(words.predict(there)) is np.ndarray
            reg = MLPRegressorBN(**options).fit(there, there[:, 0])
            expected = MLPRegressorBN(**options).fit(X, X[:, 0])
            same(reg.predict(there), expected.predict(X))
            assert reg.score(there, there[:, 0]) == expected.score(X, X[:, 0])
        """
    code = textwrap.dedent(code).replace("library", library)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
    )
    assert done.returncode == 0, done.stderr
