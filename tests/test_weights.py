"""Weights are repetition: a row of weight k is k rows, one of weight 0 is none.

With a full batch that is an equation between two fits, of which no part is left out: losses,
penalty, gradients, the statistics of batch norm, scores. ``learned`` writes down all of a model,
``assert_same`` compares. Where only the order of sums differs, 1e-9 is left for it.
"""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array, csr_matrix, issparse
from scipy.special import log_softmax
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, BaggingRegressor
from sklearn.metrics import get_scorer
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from skbn import MLPClassifierBN, MLPRegressorBN

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    # scikit-learn sums X to see whether it is finite
    pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning"),
]

PLACEMENTS = [None, "before", "after", "input", ("input", "after")]
# Some gradients behind a batch norm are nothing but rounding: epsilon keeps Adam from dividing
# them by themselves.
SOLVERS = {
    "sgd": {},
    "adam": {"epsilon": 1e-4},
    "rmsprop": {"epsilon": 1e-4, "beta_2": 0.9},
    "lbfgs": {},
}
TARGETS = ["binary", "classes", "labels", "squared_error", "poisson", "absolute_error", "huber"]
N_ROWS = 24

each_placement = pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
each_norm = pytest.mark.parametrize("placement", PLACEMENTS[1:], ids=str)
each_solver = pytest.mark.parametrize("solver", SOLVERS)
each_target = pytest.mark.parametrize("target", TARGETS)
each_kind = pytest.mark.parametrize("kind", [np.asarray, csr_array], ids=["dense", "sparse"])


def make(target, placement="after", solver="sgd", **params):
    """A small estimator for this kind of target that trains for a few steps on full batches."""
    is_classifier = target in ("binary", "classes", "labels")
    estimator = MLPClassifierBN() if is_classifier else MLPRegressorBN(target)
    defaults = {"hidden_layer_sizes": (5,), "activation": "tanh", "max_iter": 4, "alpha": 0.3}
    defaults |= {"random_state": 0, "batch_norm": placement, "solver": solver}
    defaults |= SOLVERS[solver]
    if solver != "lbfgs":
        defaults["learning_rate_init"] = 0.02
    return estimator.set_params(**defaults | params)


@pytest.fixture
def problem(seed):
    """A function that draws X, half of it zeros, and y of a kind."""

    def draw(target, n_rows=N_ROWS, dtype=np.float64):
        rng = np.random.RandomState(seed)
        X = rng.normal(size=(n_rows, 3)) * (rng.uniform(size=(n_rows, 3)) < 0.5)
        X[:3] = rng.normal(size=(3, 3))
        raw = X @ rng.normal(size=(3, 3)) + 0.5 * rng.normal(size=(n_rows, 3))
        uneven = (raw + np.array([1, 0, -1])).argmax(axis=1)
        place = np.arange(n_rows) % 30  # every class is among the first three of 30 rows
        y = {
            "binary": ((place == 1) | (raw[:, 0] > 1) & (place % 3 == 0)).astype(int),
            "classes": np.where(place < 3, place, uneven),
            "labels": (raw > 0).astype(int),
            "poisson": rng.poisson(np.exp(raw[:, :2].clip(-2, 2))),
        }.get(target, raw[:, :2])
        return X.astype(dtype), y

    return draw


def learned(est, X):
    """All that a fit has made, by name."""
    found = {"loss": est.loss_curve_, "scores": est.train_scores_, "predictions": est.predict(X)}
    found |= {f"coef {i}": coef for i, coef in enumerate(est.coefs_)}
    found |= {f"intercept {i}": intercept for i, intercept in enumerate(est.intercepts_)}
    for i, record in enumerate(est.batch_norms_):
        found |= {f"{name} {i}": value for name, value in record._asdict().items()}
    return found


def assert_same(ours, theirs, X, atol=1e-9):
    found, expected = learned(ours, X), learned(theirs, X)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None or isinstance(value, str | int) or atol == 0:
            assert_array_equal(found[name], value, err_msg=name)
        else:
            assert_allclose(found[name], value, rtol=atol, atol=atol, err_msg=name)


# Repetition and absence.


@each_kind
@each_solver
@each_placement
@each_target
def test_weight_is_repetition(target, placement, solver, kind, problem, seed):
    X, y = problem(target)
    weights = np.random.RandomState(seed).randint(1, 5, N_ROWS)
    repeated = np.repeat(np.arange(N_ROWS), weights)
    ours = make(target, placement, solver).fit(kind(X), y, weights)
    theirs = make(target, placement, solver).fit(kind(X[repeated]), y[repeated])
    assert_same(ours, theirs, X)
    unweighted = make(target, placement, solver).fit(kind(X), y)
    assert not np.allclose(unweighted.loss_curve_, ours.loss_curve_, rtol=1e-6)


@each_kind
@each_solver
@each_placement
@each_target
def test_weight_zero_is_absence(target, placement, solver, kind, problem, seed):
    X, y = problem(target)
    rng = np.random.RandomState(seed)
    weights = rng.uniform(0.5, 2, N_ROWS)
    out = 3 + rng.permutation(N_ROWS - 3)[:8]  # the first three hold every class
    weights[out] = 0
    keep = np.flatnonzero(weights)
    theirs = make(target, placement, solver).fit(kind(X[keep]), y[keep], weights[keep])
    # whatever stands in those rows
    X = X.copy()
    X[out] = rng.choice([1e300, -1e300, 3.0, 0.0], X[out].shape)
    if target not in ("binary", "classes", "labels"):
        y = y.astype(float)
        y[out] = 1e300
    ours = make(target, placement, solver).fit(kind(X), y, weights)
    assert_same(ours, theirs, X[keep])


@pytest.mark.parametrize("placement", ["after", ("input", "before")], ids=str)
@each_target
def test_weights_in_float32(target, placement, problem, seed):
    X, y = problem(target, dtype=np.float32)
    weights = np.random.RandomState(seed).randint(0, 4, N_ROWS)
    weights[:3] = 1
    repeated = np.repeat(np.arange(N_ROWS), weights)
    X[weights == 0] = 1e38
    ours = make(target, placement).fit(X, y, weights)
    theirs = make(target, placement).fit(X[repeated], y[repeated])
    assert ours.coefs_[0].dtype == np.float32
    assert_same(ours, theirs, X[repeated], 1e-4)


@each_norm
@pytest.mark.parametrize("momentum", [0.0, 0.9, None])
def test_moving_statistics_are_weighted(placement, momentum, problem, seed):
    # in use at prediction, over several mini-batches in a fixed order: rows repeated in their batch
    X, y = problem("binary")
    weights = np.random.RandomState(seed).randint(1, 4, N_ROWS)
    params = {"shuffle": False, "bn_momentum": momentum, "bn_statistics": "moving", "alpha": 0.0}
    ours = make("binary", placement, batch_size=12, **params).fit(X, y, weights)
    theirs = make("binary", placement, warm_start=True, **params)
    for _ in range(4):
        for half in (np.arange(12), np.arange(12, 24)):
            rows = np.repeat(half, weights[half])
            theirs.partial_fit(X[rows], y[rows], classes=[0, 1])
    for ours_record, record in zip(ours.batch_norms_, theirs.batch_norms_, strict=True):
        for name in ("gamma", "beta", "moving_mean", "moving_var"):
            assert_allclose(getattr(ours_record, name), getattr(record, name), atol=1e-10)
    assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-10)


@each_target
def test_virtual_batches_are_weighted(target, problem, seed):
    # a virtual batch of all rows is the batch; of half of them, each half has statistics of its own
    X, y = problem(target)
    weights = np.random.RandomState(seed).uniform(0.1, 3, N_ROWS)
    fits = {
        size: make(target, bn_virtual_batch_size=size, shuffle=False).fit(X, y, weights)
        for size in (None, N_ROWS, 12)
    }
    assert_same(fits[N_ROWS], fits[None], X, 0)
    assert not np.allclose(fits[12].loss_curve_, fits[None].loss_curve_)
    # a virtual batch without weight does not count
    weights[12:] = 0
    whole = make(target, bn_virtual_batch_size=12, shuffle=False).fit(X, y, weights)
    half = make(target, shuffle=False).fit(X[:12], y[:12], weights[:12])
    assert whole.batch_norms_[0].moving_mean == pytest.approx(half.batch_norms_[0].moving_mean)
    assert_allclose(whole.coefs_[0], half.coefs_[0], atol=1e-10)


# The scale of weights.


@each_solver
@each_placement
@each_target
def test_scale_of_the_weights(target, placement, solver, problem, seed):
    X, y = problem(target)
    weights = np.random.RandomState(seed).uniform(0.1, 3, N_ROWS)
    plain = make(target, placement, solver, alpha=0.0).fit(X, y, weights)
    for scale, atol in ((2.0**10, 1e-12), (1000.0, 1e-9), (1e-30, 1e-9), (1e30, 1e-9)):
        scaled = make(target, placement, solver, alpha=0.0).fit(X, y, scale * weights)
        assert_same(scaled, plain, X, atol)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@each_target
def test_scale_of_the_weights_in_float32(target, scale, problem, seed):
    X, y = problem(target, dtype=np.float32)
    weights = np.random.RandomState(seed).uniform(0.1, 3, N_ROWS)
    plain = make(target, ("input", "after"), alpha=0.0).fit(X, y, weights)
    scaled = make(target, ("input", "after"), alpha=0.0).fit(X, y, scale * weights)
    assert_same(scaled, plain, X, 1e-5)


@each_target
def test_the_penalty_is_divided_by_the_total_weight(target, problem):
    X, y = problem(target)
    frozen = {"momentum": 0.0, "learning_rate_init": 1e-300, "max_iter": 1}
    weights = np.linspace(0.5, 3, N_ROWS)
    without, with_penalty = (
        make(target, alpha=alpha, **frozen).fit(X, y, weights) for alpha in (0.0, 0.7)
    )
    penalty = 0.35 * sum(np.sum(coef**2) for coef in without.coefs_) / weights.sum()
    assert_allclose(with_penalty.loss_ - without.loss_, penalty, rtol=1e-10)


# Mini-batches.


@each_target
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("placement", [None, "after", ("input", "before")], ids=str)
def test_batches_without_weight_are_passed_over(target, solver, placement, problem):
    X, y = problem(target)
    weights = np.repeat([1.0, 0.0, 2.0], 8)
    params = {"shuffle": False, "batch_size": 8}
    keep = np.flatnonzero(weights)
    ours = make(target, placement, solver, **params).fit(X, y, weights)
    theirs = make(target, placement, solver, **params).fit(X[keep], y[keep], weights[keep])
    assert_same(ours, theirs, X, 1e-13)
    assert ours._optimizer.record["t"] == theirs._optimizer.record["t"] == 8
    assert np.isfinite(ours.loss_curve_).all()


@pytest.mark.parametrize("momentum", [0.0, None])
def test_one_row_of_weight_in_a_batch_gives_beta(momentum, problem):
    X, y = problem("classes")
    weights = np.repeat([0.0, 1.0], 12)
    weights[5] = 0.25
    params = {"shuffle": False, "batch_size": 12, "max_iter": 1, "learning_rate_init": 1e-300}
    params |= {"alpha": 0.0, "bn_momentum": momentum, "momentum": 0.0, "activation": "relu"}
    est = make("classes", "after", **params).fit(X, y, weights)
    hidden = np.maximum(X @ est.coefs_[0] + est.intercepts_[0], 0)
    record, second = est.batch_norms_[0], hidden[12:]
    # behind the norm of the first batch stands beta, 0
    loss = -log_softmax(est.intercepts_[1])[y[5]]
    normalized = (second - second.mean(axis=0)) / np.sqrt(second.var(axis=0) + est.bn_epsilon)
    raw = log_softmax(normalized @ est.coefs_[1] + est.intercepts_[1], axis=1)
    loss += -raw[np.arange(12), y[12:]].mean()
    assert_allclose(est.loss_curve_, [loss / 2], rtol=1e-12)
    share = 1.0 if momentum == 0 else 0.5
    mean = share * second.mean(axis=0) + (1 - share) * hidden[5]
    assert_allclose(record.moving_mean, mean, atol=1e-12)
    assert_allclose(record.moving_var, share * second.var(axis=0), atol=1e-12)


# Forms of weights.


@pytest.mark.parametrize("form", [list, np.float32, np.int64, "Series", "read-only", "strided"])
def test_forms(form, problem):
    X, y = problem("classes")
    weights = np.arange(N_ROWS) % 4 + 1.0
    given = weights
    if form is list:
        given = weights.tolist()
    elif form == "Series":
        pd = pytest.importorskip("pandas")
        given = pd.Series(weights, index=np.arange(N_ROWS)[::-1])
    elif form == "read-only":
        given = weights.copy()
        given.setflags(write=False)
    elif form == "strided":
        given = np.repeat(weights, 2)[::2]
    else:
        given = weights.astype(form)
    for call in ("fit", "partial_fit"):
        known = {"classes": [0, 1, 2]} if call == "partial_fit" else {}
        ours, theirs = (
            getattr(make("classes"), call)(X, y, sample_weight=w, **known) for w in (given, weights)
        )
        assert_same(ours, theirs, X, 0)


def test_ones_are_no_weights(problem):
    for target in TARGETS:
        X, y = problem(target)
        ours = make(target).fit(X, y, np.ones(N_ROWS))
        assert_same(ours, make(target).fit(X, y), X)


def test_partial_fit_with_weights(problem):
    X, y = problem("classes")
    weights = np.arange(N_ROWS) % 3 + 1
    rows = np.repeat(np.arange(N_ROWS), weights)
    ours, theirs = make("classes"), make("classes")
    for _ in range(3):
        ours.partial_fit(X, y, weights, classes=[0, 1, 2])
        theirs.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    assert_same(ours, theirs, X)


# Weights of classes.

LABELS = [{0: 1.0, 1: 3.0}, {0: 0.5, 1: 1.0}, {0: 1.0, 1: 0.0}]
CLASS_WEIGHTS = {
    "binary": [{0: 1.0, 1: 4.0}, {1: 0.5}, "balanced"],
    "classes": [{0: 1.0, 1: 4.0, 2: 0.0}, "balanced"],
    "labels": [LABELS, "balanced"],
}


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize(
    ("target", "class_weight"), [(t, w) for t, given in CLASS_WEIGHTS.items() for w in given]
)
def test_class_weight_is_sample_weight(target, class_weight, solver, problem, seed):
    X, y = problem(target)
    of_rows = compute_sample_weight(class_weight, y)
    assert len(np.unique(of_rows)) > 1
    ours = make(target, solver=solver, class_weight=class_weight).fit(X, y)
    assert_same(ours, make(target, solver=solver).fit(X, y, of_rows), X, 1e-12)
    plain = make(target, solver=solver).fit(X, y)
    assert not np.allclose(
        plain.batch_norms_[0].population_mean, ours.batch_norms_[0].population_mean
    )

    # both at once: they are multiplied; "balanced" counts the rows by their weights
    weights = np.random.RandomState(seed).randint(1, 4, N_ROWS)
    rows = np.repeat(np.arange(N_ROWS), weights)
    ours = make(target, solver=solver, class_weight=class_weight).fit(X, y, weights)
    repeated = make(target, solver=solver, class_weight=class_weight).fit(X[rows], y[rows])
    assert_same(ours, repeated, X)


def test_class_weight_with_names(problem):
    X, y = problem("classes")
    names = np.array(["ox", "ant", "bee"])[y]
    given = {"ant": 2.0, "ox": 5.0}
    ours = make("classes", class_weight=given).fit(X, names)
    weights = np.array([5.0, 2.0, 1.0])[y]
    assert_same(ours, make("classes").fit(X, names, weights), X, 0)
    known = {"classes": ["ant", "bee", "ox"]}
    ours = make("classes", class_weight=given).partial_fit(X, names, **known)
    assert_same(ours, make("classes").partial_fit(X, names, weights, **known), X, 0)


def test_class_weight_of_sparse_labels(problem):
    X, Y = problem("labels")
    for class_weight in CLASS_WEIGHTS["labels"]:
        ours, theirs = (
            make("labels", class_weight=class_weight).fit(X, y) for y in (csr_matrix(Y), Y)
        )
        assert issparse(ours.predict(X))
        assert_array_equal(ours.predict(X).toarray(), theirs.predict(X))
        assert_array_equal(ours.coefs_[0], theirs.coefs_[0])


def test_balanced_where_a_class_has_no_weight(problem):
    X, y = problem("classes")
    weights = (y != 2).astype(float)
    est = make("classes", class_weight="balanced").fit(X, y, weights)
    assert np.isfinite(est.loss_curve_).all()
    share = {c: weights.sum() / (3 * np.sum(y == c)) for c in (0, 1)} | {2: 0.0}
    theirs = make("classes").fit(X, y, [share[c] for c in y])
    assert_same(est, theirs, X, 1e-12)


@pytest.mark.parametrize("target", ["classes", "labels"])
def test_balanced_needs_all_rows(target, problem, unchanged):
    X, y = problem(target)
    est = make(target, class_weight="balanced")
    for _ in range(2):
        with unchanged(est), pytest.raises(ValueError, match="not supported for partial_fit"):
            est.partial_fit(X, y, classes=[0, 1, 2])
        est.fit(X, y)


@pytest.mark.parametrize(
    "class_weight", [{0: -1.0}, {0: np.nan}, {0: np.inf}, {0: 0.0, 1: 0.0, 2: 0.0}], ids=str
)
def test_class_weights_that_make_no_sense(class_weight, problem, unchanged):
    X, y = problem("classes")
    est = make("classes", class_weight=class_weight)
    with unchanged(est), pytest.raises(ValueError, match="class_weight must be finite"):
        est.fit(X, y)


# Validation data.


@each_target
def test_weights_of_validation_rows(target, problem, seed):
    X, y = problem(target, 60)
    X, y, X_val, y_val = X[:30], y[:30], X[30:].copy(), y[30:]
    weights = np.random.RandomState(seed).randint(0, 4, 30)
    rows = np.repeat(np.arange(30), weights)
    ours, theirs = make(target), make(target)
    theirs.fit(X, y, X_val=X_val[rows], y_val=y_val[rows])
    X_val[weights == 0] = 1e300
    ours.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weights)
    assert_same(ours, theirs, X, 0)
    assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-9)
    assert_allclose(ours.validation_loss_curve_, theirs.validation_loss_curve_, rtol=1e-9)


@pytest.mark.parametrize(
    ("target", "scoring"),
    [("classes", "neg_log_loss"), ("binary", "roc_auc"), ("huber", "neg_mean_absolute_error")],
)
def test_scorers_are_given_the_weights(target, scoring, problem):
    X, y = problem(target, 60)
    weights = np.arange(60) % 4
    est = make(target, scoring=scoring, bn_statistics="moving")
    est.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:], sample_weight_val=weights[30:])
    scorer = get_scorer(scoring)
    expected = scorer(est, X[30:], y[30:], sample_weight=weights[30:])
    assert_allclose(est.validation_scores_[-1], expected, rtol=1e-12)
    assert not np.isclose(scorer(est, X[30:], y[30:]), expected)


def test_early_stopping_watches_the_weighted_score(problem):
    # rows whose labels are turned round have no weight: as if they were not there
    X, y = problem("binary", 60)
    X_val, y_val = X[30:], np.where(np.arange(30) < 20, 1 - y[30:], y[30:])
    weights = (np.arange(30) >= 20).astype(float)
    params = {"early_stopping": True, "max_iter": 30, "n_iter_no_change": 3, "batch_size": 5}
    fits = [
        make("binary", **params).fit(
            X[:30], y[:30], X_val=X_val[r], y_val=y_val[r], sample_weight_val=w
        )
        for r, w in ((slice(None), weights), (slice(20, None), None), (slice(None), None))
    ]
    assert fits[0].validation_scores_ == fits[1].validation_scores_ != fits[2].validation_scores_
    assert_same(fits[0], fits[1], X, 0)


def test_early_stopping_splits_the_weights_too(problem):
    # held-out rows keep their weights: where one side has none, that is said
    X, y = problem("classes", 60)
    est = make("classes", early_stopping=True, validation_fraction=0.2)
    weights = np.zeros(60)
    weights[:2] = 1
    with pytest.raises(ValueError, match=r"All sample weights of the .* set are zero"):
        est.fit(X, y, weights)
    one = np.ones(60)
    assert_allclose(est.fit(X, y, 3 * one).validation_scores_, est.fit(X, y).validation_scores_)


# Inside scikit-learn.


def test_scikit_learn_passes_weights(problem):
    X, y = problem("classes", 60)
    weights = np.arange(60) % 3 + 1.0
    for ensemble in (
        BaggingClassifier(make("classes"), n_estimators=2, random_state=0),
        AdaBoostClassifier(make("classes", alpha=0.0, max_iter=60), n_estimators=2),
    ):
        assert ensemble.fit(X, y).predict(X).shape == y.shape
        assert ensemble.fit(X, y, weights).predict(X).shape == y.shape
    X, y = problem("huber", 60)
    BaggingRegressor(make("huber"), n_estimators=2, random_state=0).fit(X, y[:, 0], weights)
    pipe = make_pipeline(StandardScaler(), make("huber"))
    pipe.fit(X, y, mlpregressorbn__sample_weight=weights)
    scaled = pipe[0].transform(X)
    assert_same(pipe[1], make("huber").fit(scaled, y, weights), scaled, 0)
    rows = np.arange(40)
    result = cross_validate(
        make("huber"),
        X,
        y,
        cv=[(rows, np.arange(40, 60))],
        params={"sample_weight": weights},
        return_estimator=True,
    )
    assert_same(result["estimator"][0], make("huber").fit(X[:40], y[:40], weights[:40]), X, 0)
