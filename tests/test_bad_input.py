"""What the estimators refuse, in which words, and that a refusal changes nothing.

Every refusal runs inside ``unchanged``: a fresh estimator stays unfitted, a fitted one keeps its
state and its predictions bit for bit. Where scikit-learn's MLPClassifier or MLPRegressor refuses
the same input, its words are the ones expected.
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
from scipy.sparse import csr_array, csr_matrix
from sklearn.exceptions import NotFittedError
from sklearn.neural_network import MLPClassifier, MLPRegressor

from skbn import MLPClassifierBN, MLPRegressorBN

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NORMALIZED = ["before", "after", "input", ("input", "before")]
SMALL = {"hidden_layer_sizes": (6,), "max_iter": 4}
NON_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and "
    "need to be preprocessed."
)

ESTIMATORS = {
    "classifier": (MLPClassifierBN, MLPClassifier),
    "regressor": (MLPRegressorBN, MLPRegressor),
}
each_kind = pytest.mark.parametrize("kind", ESTIMATORS)
each_norm = pytest.mark.parametrize("placement", NORMALIZED, ids=str)
each_placement = pytest.mark.parametrize("placement", [None, *NORMALIZED], ids=str)
each_start = pytest.mark.parametrize("start", ["fresh", "fitted", "partially fitted"])


def make(placement="after", kind="classifier", **params):
    estimator = ESTIMATORS[kind][0]
    return estimator(batch_norm=placement, **(SMALL | {"random_state": 0} | params))


def pair(kind, **params):
    """Ours and scikit-learn's."""
    return make(kind=kind, **params), ESTIMATORS[kind][1](**SMALL | params)


def known(est, y, method="partial_fit"):
    """What partial_fit of a classifier asks for besides rows."""
    is_asked = method == "partial_fit" and hasattr(est, "predict_proba")
    return {"classes": np.unique(y)} if is_asked else {}


def started(est, start, X, y):
    """The estimator before the bad call: fresh, or with a state to lose."""
    if start == "fitted":
        est.fit(X, y)
    elif start == "partially fitted":
        est.partial_fit(X, y, **known(est, y))
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
BAD_TARGETS = {
    "None": lambda y: None,
    "too short": lambda y: y[:-1],
    "NaN": lambda y: np.where(np.arange(len(y)) == 3, np.nan, y),
    "3-D": lambda y: np.zeros((len(y), 2, 1)),
    "ragged": lambda y: [[i] * (i + 1) for i in y],
    "no rows": lambda y: y[:0],
    "complex": lambda y: y * 1j,
}
BAD_Y = {
    "classifier": BAD_TARGETS
    | {
        "continuous": lambda y: y + 0.5,
        "2-D": lambda y: np.column_stack([y, y]),
    },
    "regressor": BAD_TARGETS
    | {
        "inf": lambda y: np.where(np.arange(len(y)) == 3, np.inf, y),
        "no outputs": lambda y: np.zeros((len(y), 0)),
    },
}


def refusal(est, method, *args, **kwargs):
    """The error that a call raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(est, method)(*args, **kwargs)
        except Exception as error:  # whatever it is: the two are compared
            return type(error), re.sub("(MLP[a-zA-Z]+)BN", r"\1", str(error))
    return None


def assert_refused_as_by_sklearn(ours, theirs, method, args, kwargs, unchanged, X):
    # In the first call of partial_fit scikit-learn looks at y before it validates it; here both
    # methods validate alike, so the words of its fit will do as well.
    expected = refusal(theirs, method, *args, **kwargs)
    fresh = type(theirs)(**SMALL)
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


@each_start
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", BAD_X)
@each_kind
def test_rows_to_train_on(kind, name, method, start, blobs, unchanged):
    X, y = blobs()
    ours, theirs = (started(est, start, X, y) for est in pair(kind))
    args, kwargs = (BAD_X[name](X), y), known(ours, y, method)
    assert_refused_as_by_sklearn(ours, theirs, method, args, kwargs, unchanged, X)


@each_start
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("kind", "name"), [(k, name) for k, bad in BAD_Y.items() for name in bad])
def test_targets_to_train_on(kind, name, method, start, blobs, unchanged):
    X, y = blobs()
    ours, theirs = (started(est, start, X, y) for est in pair(kind))
    args, kwargs = (X, BAD_Y[kind][name](y)), known(ours, y, method)
    assert_refused_as_by_sklearn(ours, theirs, method, args, kwargs, unchanged, X)


@pytest.mark.parametrize("method", ["partial_fit", "fit"])
@pytest.mark.parametrize("name", OTHER_COLUMNS)
@each_kind
def test_other_columns_in_training(kind, name, method, blobs, unchanged):
    X, y = blobs()
    X = named(X, "abcd") if "features" not in name else X
    ours, theirs = (est.fit(X, y) for est in pair(kind, warm_start=method == "fit"))
    args = (OTHER_COLUMNS[name](np.asarray(X)), y)
    assert_refused_as_by_sklearn(ours, theirs, method, args, {}, unchanged, X)


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "predict_log_proba", "score", "recalibrate"]
)
@pytest.mark.parametrize("name", BAD_X | OTHER_COLUMNS)
@each_kind
def test_data_to_predict(kind, name, method, blobs, unchanged):
    X, y = blobs()
    X = named(X, "abcd") if "name" in name or "order" in name else X
    ours, theirs = (est.fit(X, y) for est in pair(kind))
    if not hasattr(ours, method):
        return
    bad = (BAD_X | OTHER_COLUMNS)[name](np.asarray(X))
    # predictions validate X as training does; scikit-learn's differ in how they name text and None
    expected = refusal(theirs, "predict", bad), refusal(theirs, "partial_fit", bad, y)
    assert None not in expected
    with unchanged(ours, X):
        assert refusal(ours, method, *((bad, y) if method == "score" else (bad,))) in expected


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score", "recalibrate"])
@each_kind
def test_unfitted(kind, method, blobs, unchanged):
    X, y = blobs()
    est = make(kind=kind)
    if hasattr(est, method):
        with unchanged(est), pytest.raises(NotFittedError, match=type(est).__name__):
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
        {"max_fun": 0},
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
@each_kind
def test_parameters_of_sklearn(kind, params, start, blobs, unchanged):
    X, y = blobs()
    ours, theirs = (started(est, start, X, y).set_params(**params) for est in pair(kind))
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
        ("shuffle", "rows"),
        ("weight_init", "magic"),
        ("solver", "adagrad"),
        ("device", "tpu"),
        ("scoring", "no_such_score"),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", -1.0),
        ("learning_rate", "two cycles"),
        ("class_weight", "uneven"),
        ("class_weight", 2.0),
        ("loss", "log_loss"),
        ("loss", None),
    ],
)
@each_kind
def test_our_parameters(kind, name, value, start, blobs, unchanged):
    X, y = blobs()
    est = started(make(kind=kind), start, X, y)
    if name not in est.get_params() or (name == "loss" and start == "fitted"):
        return  # a fitted regressor cannot even be looked at with a loss of no known name
    est.set_params(**{name: value})
    for method in ("fit", "partial_fit"):
        with unchanged(est), pytest.raises(ValueError, match=f"'{name}' parameter"):
            getattr(est, method)(X, y, **known(est, y, method))


def one_row(X, y):
    return X[:1], y[:1]


def same(X, y):
    return X, y


# (parameters, method, data, words)
REFUSALS = {
    "one row": ({}, "fit", one_row, ("n_samples = 1", "batch norm")),
    "one row to partial_fit": (
        {},
        "partial_fit",
        one_row,
        ("two or more", "collect", "batch norm"),
    ),
    "one row left to train": (
        {"early_stopping": True, "validation_fraction": 0.6},
        "fit",
        lambda X, y: (X[:3], 0 * y[:3]),
        ("n_samples = 1", "batch norm"),
    ),
    **{
        f"one row of weight, {method}": (
            {},
            method,
            lambda X, y: (X, y, (np.arange(len(y)) == 3).astype(float)),
            ("n_samples = 1", "batch norm"),
        )
        for method in ("fit", "partial_fit")
    },
    "one row, lbfgs": ({"solver": "lbfgs"}, "fit", one_row, ("n_samples = 1", "batch norm")),
    **{
        f"{name}=1, {method}": ({name: 1}, method, same, (f"{name}=1", "batch_norm"))
        for name in ("batch_size", "bn_virtual_batch_size")
        for method in ("fit", "partial_fit")
    },
}


@each_start
@each_norm
@pytest.mark.parametrize("name", REFUSALS)
@each_kind
def test_too_few_rows_to_normalize(kind, name, placement, start, blobs, unchanged):
    X, y = blobs()
    params, method, data, words = REFUSALS[name]
    est = started(make(placement, kind), start, X, y).set_params(**params)
    with unchanged(est, X), pytest.raises(ValueError, match=says(*words)):
        getattr(est, method)(*data(X, y), **known(est, y, method))
    if start == "fresh":
        with pytest.raises(NotFittedError):
            est.predict(X)
    make(None, kind, batch_size=1).fit(X[:1], y[:1])  # a matter of batch norm alone


# (weights of 61 rows, words)
BAD_WEIGHTS = {
    "too short": (np.ones(60), ("shape", "(60,)", "(61,)")),
    "2-D": (np.ones((61, 2)), ("Sample weights must be 1D",)),
    "NaN": (np.full(61, np.nan), ("sample_weight", "contains NaN")),
    "inf": (np.full(61, np.inf), ("sample_weight", "contains infinity")),
    "negative": (np.linspace(-1, 1, 61), ("Negative values", "sample_weight")),
    "zeros": (np.zeros(61), ("must contain at least one non-zero number",)),
    "zero": (0.0, ("must contain at least one non-zero number",)),
    "too small": (np.full(61, 1e-320), ("at least one non-zero",)),
    "too large": (np.full(61, 1e308), ("sample_weight", "sums up to inf")),
    "text": (["heavy"] * 61, ("could not convert string",)),
    "complex": (np.ones(61) * 1j, ("complex",)),
}


@each_start
@pytest.mark.parametrize("method", ["fit", "partial_fit", "validation"])
@pytest.mark.parametrize("name", BAD_WEIGHTS)
@each_kind
def test_weights(kind, name, method, start, blobs, unchanged):
    X, y = blobs()
    weights, words = BAD_WEIGHTS[name]
    est = started(make(kind=kind, random_state=np.random.RandomState(0)), start, X, y)
    kwargs = {"sample_weight": weights} | known(est, y, method)
    if method == "validation":
        method, kwargs = "fit", {"X_val": X, "y_val": y, "sample_weight_val": weights}
    with unchanged(est, X), pytest.raises(ValueError, match=says(*words)):
        getattr(est, method)(X, y, **kwargs)


# Targets that scikit-learn takes, or refuses in words that nobody understands:
# (kind, parameters, y, error, words)
REFUSED_TARGETS = {
    "negative counts": (
        "regressor",
        {"loss": "poisson"},
        lambda y: y - 1,
        ValueError,
        ("y", "poisson"),
    ),
    "sparse": (
        "regressor",
        {},
        lambda y: csr_matrix(np.column_stack([y, y])),
        TypeError,
        ("Sparse data was passed for y",),
    ),
    "words": ("regressor", {}, lambda y: ["high"] * len(y), ValueError, ("could not convert",)),
    "too large for float32": (
        "regressor",
        {},
        lambda y: y + 1e40,
        ValueError,
        ("Input y", "too large", "float32"),
    ),
    "sparse column": (
        "classifier",
        {},
        lambda y: csr_matrix(y[:, None]),
        ValueError,
        ("not supported",),
    ),
    "class weights for other labels": (
        "classifier",
        {"class_weight": {0: 1.0, 7: 2.0}},
        lambda y: y,
        ValueError,
        ("not in class_weight",),
    ),
    "class weights that are no list": (
        "classifier",
        {"class_weight": {0: 1.0}},
        lambda y: np.eye(3, dtype=int)[y],
        ValueError,
        ("list of dicts",),
    ),
}


@pytest.mark.parametrize("start", ["fresh", "fitted"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", REFUSED_TARGETS)
def test_refused_targets(name, method, start, blobs, unchanged):
    X, y = blobs(dtype=np.float32)
    kind, params, spoil, error, words = REFUSED_TARGETS[name]
    multilabel = name == "class weights that are no list"
    good = spoil(y) if multilabel else y
    est = started(make(kind=kind), start, X, good).set_params(**params)
    asked = {"classes": [0, 1, 2]} if known(est, y, method) else {}
    with unchanged(est, X), pytest.raises(error, match=says(*words)):
        getattr(est, method)(X, spoil(y), **asked)


def several(y):
    return np.column_stack([y, y % 2])


def labels(y):
    return np.eye(3, dtype=int)[y]


# (kind, y of before, y of now, pattern)
OTHER_TARGETS = {
    "two outputs after one": ("regressor", lambda y: y, several, "y has 2 outputs, .* has 1"),
    "one output after two": ("regressor", several, lambda y: y, "y has 1 outputs, .* has 2"),
    "labels after classes": ("classifier", lambda y: y, labels, "was not fitted with multilabel"),
    "classes after labels": ("classifier", labels, lambda y: y, "was fitted with multilabel"),
    "fewer labels": ("classifier", labels, lambda y: labels(y)[:, :2], r"(labels|`y` has) \[0 1\]"),
    "more labels": ("classifier", labels, lambda y: labels(y)[:, [0, 1, 2, 0]], r"\[0 1 2 3\]"),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", OTHER_TARGETS)
def test_training_goes_on_with_the_same_targets(name, method, blobs, unchanged):
    X, y = blobs()
    kind, before, now, pattern = OTHER_TARGETS[name]
    est = make(kind=kind, warm_start=method == "fit").fit(X, before(y))
    with unchanged(est, X), pytest.raises(ValueError, match=pattern):
        getattr(est, method)(X, now(y))


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 2, 3], ["a", "b", "c"]], ids=str)
def test_classes_of_multilabel_partial_fit(classes, blobs, unchanged):
    X, y = blobs()
    est = make()
    with unchanged(est), pytest.raises(ValueError, match="classes"):
        est.partial_fit(X, labels(y), classes=classes)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "params",
    [{"hidden_layer_sizes": (7,)}, {"hidden_layer_sizes": ()}]
    + [{"batch_norm": placement} for placement in (None, "before", ("input", "after"))],
    ids=str,
)
@each_kind
def test_training_goes_on_with_the_same_layers(kind, params, method, blobs, unchanged):
    X, y = blobs()
    est = make(kind=kind, warm_start=True).fit(X, y).set_params(**params)
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
    "other names": (lambda X, y: {"X_val": named(X, "abce"), "y_val": y}, ("names",)),
    "weights alone": (lambda X, y: {"sample_weight_val": y + 1}, ("sample_weight_val", "X_val")),
    "NaN in y_val": (lambda X, y: {"X_val": X, "y_val": np.where(y == 1, np.nan, y)}, ("y_val",)),
    "sparse NaN": (
        lambda X, y: {"X_val": csr_array(put(X, np.nan)), "y_val": y},
        ("X_val", "NaN"),
    ),
}
BAD_VALIDATION_OF = {
    "classifier": {
        "an unknown class": (lambda X, y: {"X_val": X, "y_val": y + 1}, ("y_val",)),
        "continuous": (lambda X, y: {"X_val": X, "y_val": y + 0.5}, ("y_val",)),
        "text for numbers": (lambda X, y: {"X_val": X, "y_val": y.astype(str)}, ("y_val",)),
        "labels": (lambda X, y: {"X_val": X, "y_val": labels(y)}, ("1d array",)),
    },
    "regressor": {
        "two outputs": (lambda X, y: {"X_val": X, "y_val": several(y)}, ("y_val has 2 outputs",)),
        "words": (lambda X, y: {"X_val": X, "y_val": ["high"] * len(y)}, ("numeric",)),
        "3-D targets": (lambda X, y: {"X_val": X, "y_val": np.zeros((61, 2, 1))}, ("dim 3",)),
        "inf": (lambda X, y: {"X_val": X, "y_val": y + np.inf}, ("y_val", "infinity")),
    },
}


@pytest.mark.parametrize("start", ["fresh", "fitted"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ESTIMATORS for name in BAD_VALIDATION | BAD_VALIDATION_OF[kind]],
)
def test_validation_data(kind, name, start, blobs, unchanged):
    X, y = blobs()
    spoil, words = (BAD_VALIDATION | BAD_VALIDATION_OF[kind])[name]
    train = named(X, "abcd") if "names" in name else X
    rng = np.random.RandomState(0)
    est = started(make(kind=kind, random_state=rng), start, train, y)
    with unchanged(est, train), pytest.raises(ValueError, match=says(*words)):
        est.fit(train, y, **spoil(X, y))


# (y_val, words)
BAD_LABELS = {
    "one column": (lambda Y: Y[:, 0], ("y_val must be multilabel",)),
    "fewer labels": (lambda Y: Y[:, :2], ("y_val has 2 labels", "`y` has 3")),
    "sparse, fewer labels": (lambda Y: csr_matrix(Y[:, :2]), ("y_val has 2 labels",)),
    "a list, fewer rows": (lambda Y: Y[:-1].tolist(), ("inconsistent",)),
    "numbers": (lambda Y: Y + 0.5, ("y_val must be multilabel",)),
    "three values": (lambda Y: Y + np.arange(3), ("y_val must be multilabel",)),
    "NaN": (lambda Y: np.where(Y == 1, np.nan, Y), ("y_val", "NaN")),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_validation_labels(name, blobs, unchanged):
    X, y = blobs()
    spoil, words = BAD_LABELS[name]
    est = make().fit(X, labels(y))
    with unchanged(est, X), pytest.raises(ValueError, match=says(*words)):
        est.fit(X, labels(y), X_val=X, y_val=spoil(labels(y)))


def test_validation_targets_of_poisson_and_float32(blobs, unchanged):
    X, y = blobs(dtype=np.float32)
    est = make(kind="regressor", loss="poisson").fit(X, y)
    for bad, words in ((y - 1.0, ("y_val", "poisson")), (y + 1e40, ("y_val", "float32"))):
        with unchanged(est, X), pytest.raises(ValueError, match=says(*words)):
            est.fit(X, y, X_val=X, y_val=bad)


@each_kind
def test_partial_fit_needs_a_stochastic_solver(kind):
    ours, theirs = pair(kind, solver="lbfgs")
    assert not hasattr(ours, "partial_fit")
    if kind == "classifier":  # whose check scikit-learn's regressor has but does not call
        assert not hasattr(theirs, "partial_fit")
        expected, got = (refusal(est, "partial_fit", [[0.0]], [0]) for est in (theirs, ours))
        assert got == expected


@each_kind
def test_partial_fit_knows_no_early_stopping(kind, blobs, unchanged):
    X, y = blobs()
    for start in ("fresh", "fitted"):
        ours, theirs = (started(est, start, X, y) for est in pair(kind))
        ours, theirs = (est.set_params(early_stopping=True) for est in (ours, theirs))
        kwargs = known(ours, y)
        assert_refused_as_by_sklearn(ours, theirs, "partial_fit", (X, y), kwargs, unchanged, X)


# Numbers at the border.


@each_norm
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 16777217.0, 1e10, 1e30])
@each_kind
def test_constant_feature(kind, placement, dtype, constant, blobs, seed):
    # Normalized to exactly beta: what its column says makes no difference, and nothing warns.
    X, y = blobs(dtype=dtype)
    X[:, 1] = constant
    if "input" not in placement:
        X[:, 1] = min(constant, 1.0)  # a dense layer in front cannot cancel 1e30 in its products
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        est = make(placement, kind, max_iter=3, n_iter_no_change=1, tol=1e9).fit(X, y)
        proba = getattr(est, "predict_proba", est.predict)(X)
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
        other = make(placement, kind, max_iter=3, n_iter_no_change=1, tol=1e9).fit(X, y)
        same = getattr(other, "predict_proba", other.predict)(X)
        assert_allclose(same, proba, rtol=0, atol=np.finfo(dtype).eps * 8)


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
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@each_kind
def test_mean_far_above_the_spread(kind, solver, placement, statistics, blobs, seed):
    X, y = blobs(dtype=np.float32)
    X += np.float32(1e6)
    params = {"bn_statistics": statistics, "random_state": seed, "solver": solver}
    fits = [
        make(placement, kind, **params).fit(X.astype(dtype), y)
        for dtype in (np.float32, np.float64)
    ]
    single, double = fits
    assert_allclose(single.loss_curve_, double.loss_curve_, rtol=1e-3)
    predictions = [getattr(est, "predict_proba", est.predict)(X.astype(float)) for est in fits]
    assert_allclose(*predictions, atol=1e-3)
    record = single.batch_norms_[0]
    if statistics == "population":
        assert_allclose(record.population_mean, X.mean(axis=0, dtype=float), rtol=1e-12)
        assert_allclose(record.population_var, X.var(axis=0, dtype=float), rtol=2.4e-7)


@each_start
@pytest.mark.parametrize("placement", [None, "before", "after"], ids=str)
@each_kind
def test_overflow_in_fit(kind, placement, start, blobs, seed, unchanged):
    X, y = blobs()
    params = {"solver": "sgd", "activation": "identity", "batch_size": 12}
    est = started(make(placement, kind, **params), start, X, y)
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
@each_kind
def test_divergence(kind, placement, blobs, seed, unchanged, snapshot):
    X, y = blobs()
    pattern = "^" + re.escape(NON_FINITE) + says("layer", "epoch").removeprefix("(?is)")
    est = make(placement, kind, **DIVERGING, random_state=seed)
    with unchanged(est), pytest.raises(ValueError, match=pattern):
        est.fit(X, y)
    with pytest.raises(NotFittedError):
        est.predict(X)
    for _ in range(DIVERGING["max_iter"]):
        before = snapshot(est)
        error = refusal(est, "partial_fit", X, y, **known(est, y))
        if error is not None:
            break
    assert error[0] is ValueError
    assert re.match(pattern, error[1])
    assert snapshot(est) == before
    assert len(est.loss_curve_) >= 2


@each_placement
@pytest.mark.parametrize("given", [True, False])
@each_kind
def test_divergence_with_early_stopping(kind, placement, given, blobs, seed):
    X, y = blobs(90)
    validation = {"X_val": X[61:], "y_val": y[61:]} if given else {}
    est = make(placement, kind, **DIVERGING, early_stopping=True, random_state=seed)
    with pytest.warns(UserWarning, match="(?i)non-finite"):
        est.fit(X[:61], y[:61], **validation)
    assert np.isnan(est.validation_scores_[-1])
    assert np.isfinite(est.validation_scores_[est.best_iter_ - 1])
    assert est.best_validation_score_ == np.nanmax(est.validation_scores_)
    assert all(np.isfinite(array).all() for array in est.coefs_ + est.intercepts_)
    assert np.isfinite(est.predict(X)).all()


# Ctrl-C.


@pytest.fixture
def ctrl_c():
    """A function that sends this process Ctrl-C after a while, and tells when it did."""
    sent = []

    def press():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timers = []
    # Shells start what runs in the background with a deaf ear for it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def arrange(seconds):
        timers.append(threading.Timer(seconds, press))
        timers[-1].start()
        return sent

    yield arrange
    for timer in timers:
        timer.cancel()
        timer.join()
    signal.signal(signal.SIGINT, handler)


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
