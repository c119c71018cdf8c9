"""What MLPClassifierBN refuses, in which words, and that a refusal changes nothing.

Every refusal runs inside ``unchanged``: a fresh estimator stays unfitted, a fitted one keeps its
state and its predictions bit for bit. Where scikit-learn's MLPClassifier refuses the same input,
its words are the ones expected.
"""
# SPDX-License-Identifier: BSD-3-Clause

import os
import re
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.neural_network import MLPClassifier

from skbn import MLPClassifierBN

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NORMALIZED = ["before", "after", "input", ("input", "before")]
SMALL = {"hidden_layer_sizes": (6,), "max_iter": 4}
NON_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and "
    "need to be preprocessed."
)

each_norm = pytest.mark.parametrize("placement", NORMALIZED, ids=str)
each_placement = pytest.mark.parametrize("placement", [None, *NORMALIZED], ids=str)
each_start = pytest.mark.parametrize("start", ["fresh", "fitted", "partially fitted"])


def make(placement="after", **params):
    return MLPClassifierBN(batch_norm=placement, **(SMALL | {"random_state": 0} | params))


def started(est, start, X, y):
    """The estimator before the bad call: fresh, or with a state to lose."""
    if start == "fitted":
        est.fit(X, y)
    elif start == "partially fitted":
        est.partial_fit(X, y, classes=np.unique(y))
    return est


def says(*words):
    """A pattern: all these words, in any order and case."""
    return "(?is)" + "".join(f"(?=.*{re.escape(word)})" for word in words)


def named(X, names):
    pd = pytest.importorskip("pandas")
    return pd.DataFrame(X, columns=list(names))


def put(X, value):
    X = X.copy()
    X[-1, -1] = value
    return X


# In scikit-learn's words.

BAD_X = {
    "NaN": lambda X: put(X, np.nan),
    "inf": lambda X: put(X, -np.inf),
    "1-D": lambda X: X[:, 0],
    "0-D": lambda X: X[0, 0],
    "3-D": lambda X: X[..., None],
    "no rows": lambda X: X[:0],
    "no columns": lambda X: X[:, :0],
    "text": lambda X: X.astype(str).astype(object) + "x",
    "a word": lambda X: [["word"] * X.shape[1]] * len(X),
    "complex": lambda X: X * 1j,
    "None": lambda X: None,
    "dicts": lambda X: np.full(X.shape, {}, dtype=object),
}
OTHER_COLUMNS = {
    "fewer features": lambda X: X[:, :-1],
    "more features": lambda X: np.hstack([X, X]),
    "other names": lambda X: named(X, "abce"),
    "other order": lambda X: named(X, "bacd"),
    "fewer names": lambda X: named(X[:, :3], "abc"),
}
BAD_Y = {
    "None": lambda y: None,
    "too short": lambda y: y[:-1],
    "NaN": lambda y: np.where(np.arange(len(y)) == 3, np.nan, y),
    "continuous": lambda y: y + 0.5,
    "2-D": lambda y: np.column_stack([y, y]),
    "ragged": lambda y: [[i] * (i + 1) for i in y],
    "no rows": lambda y: y[:0],
}


def refusal(est, method, *args, **kwargs):
    """The error that a call raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(est, method)(*args, **kwargs)
        except Exception as error:  # whatever it is: the two are compared
            return type(error), str(error).replace("MLPClassifierBN", "MLPClassifier")
    return None


def assert_refused_as_by_sklearn(ours, theirs, method, args, kwargs, unchanged, X):
    # In the first call of partial_fit scikit-learn looks at y before it validates it; here both
    # methods validate alike, so the words of its fit will do as well.
    expected = refusal(theirs, method, *args, **kwargs)
    fresh = MLPClassifier(**SMALL)
    assert expected is not None
    with unchanged(ours, X):
        assert brief(refusal(ours, method, *args, **kwargs)) in (
            brief(expected),
            brief(refusal(fresh, "fit", *args)),
        )
    if not hasattr(ours, "coefs_"):
        with pytest.raises(NotFittedError):
            ours.predict(X)


def brief(refused):
    """Without what follows "Unknown label type": a word here, all labels in scikit-learn."""
    return refused and (refused[0], refused[1].partition("Unknown label type")[:2])


BAD_FITS = {
    **{f"X: {name}": (spoil, lambda y: y) for name, spoil in BAD_X.items()},
    **{f"y: {name}": (lambda X: X, spoil) for name, spoil in BAD_Y.items()},
}


@each_start
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", BAD_FITS)
def test_training_data(name, method, start, blobs, unchanged):
    X, y = blobs()
    spoil_X, spoil_y = BAD_FITS[name]
    ours, theirs = (started(est, start, X, y) for est in (make(), MLPClassifier(**SMALL)))
    kwargs = {"classes": np.unique(y)} if method == "partial_fit" else {}
    args = (spoil_X(X), spoil_y(y))
    assert_refused_as_by_sklearn(ours, theirs, method, args, kwargs, unchanged, X)


@pytest.mark.parametrize("method", ["partial_fit", "fit"])
@pytest.mark.parametrize("name", OTHER_COLUMNS)
def test_other_columns_in_training(name, method, blobs, unchanged):
    X, y = blobs()
    X = named(X, "abcd") if "features" not in name else X
    params = SMALL | {"warm_start": method == "fit"}
    ours, theirs = (est.fit(X, y) for est in (make(**params), MLPClassifier(**params)))
    args = (OTHER_COLUMNS[name](np.asarray(X)), y)
    assert_refused_as_by_sklearn(ours, theirs, method, args, {}, unchanged, X)


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "predict_log_proba", "score", "recalibrate"]
)
@pytest.mark.parametrize("name", BAD_X | OTHER_COLUMNS)
def test_data_to_predict(name, method, blobs, unchanged):
    X, y = blobs()
    X = named(X, "abcd") if "name" in name or "order" in name else X
    ours, theirs = (est.fit(X, y) for est in (make(), MLPClassifier(**SMALL)))
    bad = (BAD_X | OTHER_COLUMNS)[name](np.asarray(X))
    # predictions validate X as training does; scikit-learn's differ in how they name text and None
    expected = refusal(theirs, "predict", bad), refusal(theirs, "partial_fit", bad, y)
    assert None not in expected
    with unchanged(ours, X):
        assert refusal(ours, method, *((bad, y) if method == "score" else (bad,))) in expected


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score", "recalibrate"])
def test_unfitted(method, blobs, unchanged):
    X, y = blobs()
    est = make()
    with unchanged(est), pytest.raises(NotFittedError, match="MLPClassifierBN"):
        getattr(est, method)(*((X, y) if method == "score" else (X,)))


BAD_CLASSES = {
    "none in the first call": ("fresh", {}, lambda y: y, None),
    "a label that is not among them": ("fresh", {}, lambda y: y, [0, 1]),
    "text for numbers": ("fresh", {}, lambda y: y, ["a", "b"]),
    "others than before": ("partially fitted", {}, lambda y: y, [0, 1, 3]),
    "fewer than before": ("fitted", {}, lambda y: y, [0, 1]),
    "a new label": ("partially fitted", {}, lambda y: y + 1, None),
    "a new label after fit": ("fitted", {}, lambda y: y + 1, None),
    "a lost label, warm": ("partially fitted", {"warm_start": True}, lambda y: y % 2, None),
    "early stopping": ("fresh", {"early_stopping": True}, lambda y: y, [0, 1, 2]),
    "early stopping before": ("fitted", {"early_stopping": True}, lambda y: y, None),
}


@pytest.mark.parametrize("name", BAD_CLASSES)
def test_classes_of_partial_fit(name, blobs, unchanged):
    X, y = blobs()
    start, params, spoil, classes = BAD_CLASSES[name]
    params = SMALL | params
    ours, theirs = (started(est, start, X, y) for est in (make(**params), MLPClassifier(**params)))
    args, kwargs = (X, spoil(y)), {"classes": classes}
    assert_refused_as_by_sklearn(ours, theirs, "partial_fit", args, kwargs, unchanged, X)


@pytest.mark.parametrize("labels", [lambda y: y % 2, lambda y: y + 1, lambda y: y.astype(str)])
def test_classes_of_warm_start(labels, blobs, unchanged):
    X, y = blobs()
    params = SMALL | {"warm_start": True}
    ours, theirs = (est.fit(X, y) for est in (make(**params), MLPClassifier(**params)))
    assert_refused_as_by_sklearn(ours, theirs, "fit", (X, labels(y)), {}, unchanged, X)


@pytest.mark.parametrize("start", ["fresh", "fitted"])
@pytest.mark.parametrize(
    "params",
    [
        {"hidden_layer_sizes": (5, 0)},
        {"hidden_layer_sizes": -1},
        {"activation": "sine"},
        {"alpha": -1.0},
        {"batch_size": 0},
        {"learning_rate": "cyclic"},
        {"learning_rate_init": 0.0},
        {"max_iter": 0},
        {"tol": -1.0},
        {"momentum": 1.5},
        {"beta_1": 1.0},
        {"beta_2": -0.1},
        {"epsilon": 0.0},
        {"validation_fraction": 1.0},
        {"n_iter_no_change": 0},
        {"random_state": "seed"},
        {"early_stopping": True, "validation_fraction": 0.01},
    ],
    ids=str,
)
def test_parameters_of_sklearn(params, start, blobs, unchanged):
    X, y = blobs()
    ours, theirs = (
        started(est, start, X, y).set_params(**params) for est in (make(), MLPClassifier(**SMALL))
    )
    # The message of a choice lists the choices, and in an order of its own.
    expected, got = (refusal(est, "fit", X, y) for est in (theirs, ours))
    assert got[0] is expected[0]
    if not {"activation", "learning_rate"} & set(params):
        assert got[1] == expected[1]
    with unchanged(ours):
        refusal(ours, "fit", X, y)
    if start == "fresh":
        with pytest.raises(NotFittedError):
            ours.predict(X)


# In words of our own.


@pytest.mark.parametrize("start", ["fresh", "fitted"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_norm", "middle"),
        ("batch_norm", ("after", "nowhere")),
        ("batch_norm", True),
        ("bn_momentum", 1.0),
        ("bn_momentum", -0.1),
        ("bn_epsilon", -1e-3),
        ("bn_epsilon", np.nan),
        ("bn_center", "yes"),
        ("bn_scale", None),
        ("bn_statistics", "batch"),
        ("bn_virtual_batch_size", 0),
        ("bn_virtual_batch_size", 2.5),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("weight_init", "magic"),
        ("solver", "adagrad"),
        ("device", "tpu"),
    ],
)
def test_our_parameters(name, value, start, blobs, unchanged):
    X, y = blobs()
    est = started(make(), start, X, y).set_params(**{name: value})
    with unchanged(est), pytest.raises(ValueError, match=f"'{name}' parameter"):
        est.fit(X, y)


def one_row(X, y):
    return X[:1], y[:1]


def same(X, y):
    return X, y


# (parameters, method, data, further arguments, error, words)
REFUSALS = {
    "one row": ({}, "fit", one_row, {}, ValueError, ("n_samples = 1", "batch norm")),
    "one row to partial_fit": (
        {},
        "partial_fit",
        one_row,
        {"classes": [0, 1, 2]},
        ValueError,
        ("two or more", "collect", "batch norm"),
    ),
    "one row left to train": (
        {"early_stopping": True, "validation_fraction": 0.6},
        "fit",
        lambda X, y: (X[:3], 0 * y[:3]),
        {},
        ValueError,
        ("n_samples = 1", "batch norm"),
    ),
    **{
        f"{name}=1, {method}": (
            {name: 1},
            method,
            same,
            {"classes": [0, 1, 2]} if method == "partial_fit" else {},
            ValueError,
            (f"{name}=1", "batch_norm"),
        )
        for name in ("batch_size", "bn_virtual_batch_size")
        for method in ("fit", "partial_fit")
    },
}


@each_start
@each_norm
@pytest.mark.parametrize("name", REFUSALS)
def test_too_few_rows_to_normalize(name, placement, start, blobs, unchanged):
    X, y = blobs()
    params, method, data, kwargs, error, words = REFUSALS[name]
    est = started(make(placement), start, X, y).set_params(**params)
    with unchanged(est, X), pytest.raises(error, match=says(*words)):
        getattr(est, method)(*data(X, y), **kwargs)
    if start == "fresh":
        with pytest.raises(NotFittedError):
            est.predict(X)
    make(None, batch_size=1).fit(X[:1], y[:1])  # a matter of batch norm alone


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "params",
    [{"hidden_layer_sizes": (7,)}, {"hidden_layer_sizes": ()}]
    + [{"batch_norm": placement} for placement in (None, "before", ("input", "after"))],
    ids=str,
)
def test_training_goes_on_with_the_same_layers(params, method, blobs, unchanged):
    X, y = blobs()
    est = make(warm_start=True).fit(X, y).set_params(**params)
    with unchanged(est, X), pytest.raises(ValueError, match=says("layers", *params)):
        getattr(est, method)(X, y)


BAD_VALIDATION = {
    "X_val alone": (lambda X, y: {"X_val": X}, ("X_val", "y_val")),
    "y_val alone": (lambda X, y: {"y_val": y}, ("X_val", "y_val")),
    "another number of rows": (lambda X, y: {"X_val": X, "y_val": y[:-1]}, ("inconsistent",)),
    "no rows": (lambda X, y: {"X_val": X[:0], "y_val": y[:0]}, ("0 sample",)),
    "NaN": (lambda X, y: {"X_val": put(X, np.nan), "y_val": y}, ("NaN",)),
    "1-D": (lambda X, y: {"X_val": X[:, 0], "y_val": y}, ("2D array",)),
    "complex": (lambda X, y: {"X_val": X * 1j, "y_val": y}, ("complex",)),
    "fewer features": (lambda X, y: {"X_val": X[:, :3], "y_val": y}, ("3 features", "4 features")),
    "an unknown class": (lambda X, y: {"X_val": X, "y_val": y + 1}, ("y_val",)),
    "continuous": (lambda X, y: {"X_val": X, "y_val": y + 0.5}, ("y_val",)),
    "text for numbers": (lambda X, y: {"X_val": X, "y_val": y.astype(str)}, ("y_val",)),
    "other names": (lambda X, y: {"X_val": named(X, "abce"), "y_val": y}, ("names",)),
}


@pytest.mark.parametrize("start", ["fresh", "fitted"])
@pytest.mark.parametrize("name", BAD_VALIDATION)
def test_validation_data(name, start, blobs, unchanged):
    X, y = blobs()
    spoil, words = BAD_VALIDATION[name]
    train = named(X, "abcd") if "names" in name else X
    rng = np.random.RandomState(0)
    est = started(make(random_state=rng), start, train, y)
    with unchanged(est, train), pytest.raises(ValueError, match=says(*words)):
        est.fit(train, y, **spoil(X, y))


def test_partial_fit_needs_a_stochastic_solver():
    for estimator in (MLPClassifierBN(solver="lbfgs"), MLPClassifier(solver="lbfgs")):
        assert not hasattr(estimator, "partial_fit")
    ours, theirs = (
        refusal(est, "partial_fit", [[0.0]], [0])
        for est in (MLPClassifierBN(solver="lbfgs"), MLPClassifier(solver="lbfgs"))
    )
    assert ours == theirs


# Numbers at the border.


@each_norm
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 16777217.0, 1e10, 1e30])
def test_constant_feature(placement, dtype, constant, blobs, seed):
    # Normalized to exactly beta: what its column says makes no difference, and nothing warns.
    X, y = blobs(dtype=dtype)
    X[:, 1] = constant
    if "input" not in placement:
        X[:, 1] = min(constant, 1.0)  # a dense layer in front cannot cancel 1e30 in its products
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        est = make(placement, max_iter=3, n_iter_no_change=1, tol=1e9).fit(X, y)
        proba = est.predict_proba(X)
    assert np.isfinite(proba).all()
    assert all(np.isfinite(coef).all() for coef in est.coefs_)
    if "input" in placement:
        record = est.batch_norms_[0]
        for mean, var in (
            (record.population_mean, record.population_var),
            (record.moving_mean, record.moving_var),
        ):
            assert mean[1] == dtype(constant)
            assert var[1] == 0
        # all that the column adds is beta, whatever the constant was
        X[:, 1] = 0
        other = make(placement, max_iter=3, n_iter_no_change=1, tol=1e9).fit(X, y)
        assert_allclose(other.predict_proba(X), proba, rtol=0, atol=np.finfo(dtype).eps * 8)


@pytest.mark.parametrize("placement", ["after", ("before", "after")], ids=str)
def test_dead_units(placement, blobs, seed):
    # A ReLU that never fires is a constant feature of the next layer.
    X, y = blobs()
    est = make(placement, activation="relu", batch_size=5, max_iter=3, random_state=seed)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error", RuntimeWarning)
        est.fit(np.abs(X) * [-1, 1, 1, 1] * [100, 0, 0, 0], y)
    assert np.isfinite(est.loss_curve_).all()


@pytest.mark.parametrize("placement", ["input", ("input", "after")], ids=str)
@pytest.mark.parametrize("statistics", ["population", "moving"])
def test_mean_far_above_the_spread(placement, statistics, blobs, seed):
    X, y = blobs(dtype=np.float32)
    X += np.float32(1e6)
    fits = [
        make(placement, bn_statistics=statistics, random_state=seed).fit(X.astype(dtype), y)
        for dtype in (np.float32, np.float64)
    ]
    single, double = fits
    assert_allclose(single.loss_curve_, double.loss_curve_, rtol=1e-4)
    assert_allclose(single.predict_proba(X), double.predict_proba(X.astype(float)), atol=1e-4)
    record = single.batch_norms_[0]
    if statistics == "population":
        assert_allclose(record.population_mean, X.mean(axis=0, dtype=float), rtol=1e-12)
        assert_allclose(record.population_var, X.var(axis=0, dtype=float), rtol=2.4e-7)


@each_start
@pytest.mark.parametrize("placement", [None, "before", "after"], ids=str)
def test_overflow_in_fit(placement, start, blobs, seed, unchanged):
    X, y = blobs()
    est = started(make(placement, solver="sgd", activation="identity", batch_size=12), start, X, y)
    huge = -1e300 * X  # of the other sign: a fitted model is wrong about every row
    pattern = "^" + re.escape(NON_FINITE) + says("layer", "epoch").removeprefix("(?is)")
    with unchanged(est, X), np.errstate(all="ignore"), pytest.raises(ValueError, match=pattern):
        est.fit(huge, y)
    if start == "fresh":
        with pytest.raises(NotFittedError):
            est.predict(X)
    else:
        with unchanged(est, X), pytest.raises(ValueError, match=pattern):
            est.partial_fit(huge, y)


@pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning"
)  # scikit-learn sums X to check it
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, 1e30), (np.float32, 1e37), (np.float64, 1e150), (np.float64, 1e300)],
)
def test_overflowing_variance_of_the_input(dtype, scale, blobs, seed):
    # Finite and right, or refused; never zeros in silence.
    X, y = blobs(dtype=dtype)
    try:
        est = make("input", random_state=seed).fit(X * dtype(scale), y)
    except ValueError as error:
        assert scale in (1e37, 1e300)
        assert str(error).startswith(NON_FINITE)  # noqa: PT017
    else:
        expected = make("input", bn_epsilon=1e-30, random_state=seed).fit(X, y).predict_proba(X)
        assert_allclose(est.predict_proba(X * dtype(scale)), expected, atol=1e-4)


# The penalty alone multiplies every weight by -1e30 at each step: finite for ten steps.
DIVERGING = {
    "solver": "sgd",
    "momentum": 0.0,
    "learning_rate_init": 1.0,
    "alpha": 61e30,
    "max_iter": 20,
    "n_iter_no_change": 20,
}


@each_placement
def test_divergence(placement, blobs, seed, unchanged, snapshot):
    X, y = blobs()
    pattern = "^" + re.escape(NON_FINITE) + says("layer", "epoch").removeprefix("(?is)")
    est = make(placement, **DIVERGING, random_state=seed)
    with unchanged(est), pytest.raises(ValueError, match=pattern):
        est.fit(X, y)
    with pytest.raises(NotFittedError):
        est.predict(X)
    for _ in range(DIVERGING["max_iter"]):
        before = snapshot(est)
        error = refusal(est, "partial_fit", X, y, classes=np.unique(y))
        if error is not None:
            break
    assert error[0] is ValueError
    assert re.match(pattern, error[1])
    assert snapshot(est) == before
    assert len(est.loss_curve_) > 2


@each_placement
@pytest.mark.parametrize("given", [True, False])
def test_divergence_with_early_stopping(placement, given, blobs, seed):
    X, y = blobs(90)
    validation = {"X_val": X[61:], "y_val": y[61:]} if given else {}
    est = make(placement, **DIVERGING, early_stopping=True, random_state=seed)
    with pytest.warns(UserWarning, match="(?i)non-finite"):
        est.fit(X[:61], y[:61], **validation)
    assert np.isnan(est.validation_scores_[-1])
    assert np.isfinite(est.validation_scores_[est.best_iter_ - 1])
    assert est.best_validation_score_ == np.nanmax(est.validation_scores_)
    assert all(np.isfinite(array).all() for array in est.coefs_ + est.intercepts_)
    assert set(est.predict(X)) <= set(est.classes_)


# Ctrl-C.


@pytest.fixture
def ctrl_c():
    """A function that sends this process Ctrl-C after a while, and tells when it did."""
    sent = []

    def press():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timers = []

    def arrange(seconds):
        timers.append(threading.Timer(seconds, press))
        timers[-1].start()
        return sent

    yield arrange
    for timer in timers:
        timer.cancel()
        timer.join()


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to oneself")
@pytest.mark.parametrize("size", ["many small epochs", "one long epoch"])
@pytest.mark.parametrize("placement", [None, ("input", "after")], ids=str)
def test_interrupt(size, placement, blobs, seed, ctrl_c):
    n_rows, widths = (61, (6,)) if size == "many small epochs" else (60_000, (300, 300))
    X, y = blobs(n_rows, dtype=np.float32)
    est = make(placement, hidden_layer_sizes=widths, max_iter=10**9, tol=0)
    est.set_params(n_iter_no_change=np.inf, early_stopping=size == "many small epochs")
    sent = ctrl_c(0.2)
    with pytest.warns(UserWarning, match="^Training interrupted by user.$"):
        est.fit(X, y)
    assert time.perf_counter() - sent[0] < 0.5
    assert len(est.loss_curve_) == est.n_iter_
    assert np.isfinite(est.predict_proba(X[:10])).all()
    assert_array_equal(est.classes_, [0, 1, 2])
