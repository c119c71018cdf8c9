"""MLPClassifierBN as users meet it.

Three sources judge it: scikit-learn's own checks and tools, a forward pass written here from the
fitted attributes alone, and the estimator itself where two ways must lead to the same model.
"""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import inspect
import io
import pickle
from collections.abc import Mapping
from contextlib import redirect_stdout
from types import MappingProxyType
from typing import Any, NamedTuple

import joblib
import numpy as np
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, log_softmax
from scipy.stats import norm
from sklearn import config_context
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr, gen_batches, get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from skbn import MLPClassifierBN, MLPRegressorBN

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NORMALIZED = ["before", "after", "input", ("input", "before"), ("before", "after")]
PLACEMENTS = [None, *NORMALIZED]
ACTIVATIONS = {
    "identity": lambda z: z,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.maximum(z, 0.01 * z),
    "elu": lambda z: np.where(z > 0, z, np.exp(z) - 1),
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * (np.exp(z) - 1)),
    "gelu": lambda z: z * norm.cdf(z),
    "silu": lambda z: z * expit(z),
    "softplus": lambda z: np.log(1 + np.exp(z)),
}
# A learning rate that moves no weight: what an epoch measures can then be worked out by hand.
FROZEN = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 1e-300}

each_placement = pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
each_norm = pytest.mark.parametrize("placement", NORMALIZED, ids=str)
each_n_classes = pytest.mark.parametrize("n_classes", [2, 3])


def make(placement="after", seed=0, **params):
    """A small classifier that trains for a few steps."""
    defaults = {"hidden_layer_sizes": (6, 5), "max_iter": 4, "learning_rate_init": 0.02}
    return MLPClassifierBN(batch_norm=placement, random_state=seed, **(defaults | params))


def place(record):
    return record.position, record.layer


def positions(placement):
    return (placement,) if isinstance(placement, str) else placement or ()


# The forward pass by hand.


def walk(est, X, statistics):
    """Raw outputs of a fitted network; ``statistics(record, h)`` says what normalizes h."""
    records = {place(record): record for record in est.batch_norms_}

    def normalize(h, *where):
        if where not in records:
            return h
        record = records[where]
        mean, var = statistics(record, h)
        return (h - mean) / np.sqrt(var + est.bn_epsilon) * record.gamma + record.beta

    activate = ACTIVATIONS[est.activation]
    h = normalize(X, "input", -1)
    layers = list(zip(est.coefs_, est.intercepts_, strict=True))
    for index, (coef, intercept) in enumerate(layers[:-1]):
        h = activate(normalize(h @ coef + intercept, "before", index))
        h = normalize(h, "after", index)
    return h @ layers[-1][0] + layers[-1][1]


def population(record, h):
    return record.population_mean, record.population_var


def moving(record, h):
    return record.moving_mean, record.moving_var


def of_the_batch(size=None, keep=None):
    """Statistics of h itself, of ``size`` rows at a time; ``keep`` collects them."""

    def statistics(record, h):
        mean, var = np.empty_like(h), np.empty_like(h)
        for rows in gen_batches(len(h), size or len(h), min_batch_size=2):
            mean[rows], var[rows] = h[rows].mean(axis=0), h[rows].var(axis=0)
            if keep is not None:
                keep.append((record, mean[rows][0], var[rows][0]))
        return mean, var

    return statistics


def log_probabilities(raw):
    """The log of the class probabilities; a single output is the logit of the second class."""
    return log_softmax(np.hstack([0 * raw, raw]) if raw.shape[1] == 1 else raw, axis=1)


def mean_log_loss(est, X, codes):
    """The log loss, a row costing at most what scikit-learn's clipped probabilities let it cost."""
    losses = -est.predict_log_proba(X)[np.arange(len(codes)), codes]
    return np.minimum(losses, -np.log(np.finfo(losses.dtype).eps)).mean()


def assert_same_model(ours, theirs):
    """Same weights, gamma, beta and moving statistics, bit for bit."""
    assert_same_arrays(everything_learned(ours), everything_learned(theirs))


def assert_same_arrays(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        assert_array_equal(our, their)


def everything_learned(est):
    return [*est.coefs_, *est.intercepts_] + [
        part
        for record in est.batch_norms_
        for part in (record.gamma, record.beta, record.moving_mean, record.moving_var)
    ]


@each_n_classes
@each_placement
@pytest.mark.parametrize("statistics", [population, moving], ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", [{}, {"activation": "tanh", "dropout": 0.3}], ids=str)
def test_predictions_by_hand(placement, n_classes, statistics, options, blobs, seed):
    X, y = blobs(n_classes=n_classes)
    est = make(placement, seed, bn_statistics=statistics.__name__, **options).fit(X, y)
    log_proba = log_probabilities(walk(est, X, statistics))
    assert_allclose(est.predict_log_proba(X), log_proba, atol=1e-12)
    assert_allclose(est.predict_proba(X), np.exp(log_proba), atol=1e-12)
    assert_allclose(est.predict_proba(X).sum(axis=1), 1)
    assert_array_equal(est.predict(X), est.classes_[log_proba.argmax(axis=1)])
    assert est.score(X, y) == np.mean(est.predict(X) == y)


@each_placement
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_by_hand(activation, placement, blobs, seed):
    """From the start, and when a model goes on that was begun with another one."""
    X, y = blobs()
    for first in ("relu", "silu"):
        est = make(placement, seed, activation=first, warm_start=True).fit(X, y)
        est.set_params(activation=activation).fit(X, y)
        assert_allclose(
            est.predict_log_proba(X), log_probabilities(walk(est, X, population)), atol=1e-12
        )


def test_all_activations_are_tried():
    (choices,) = MLPClassifierBN._parameter_constraints["activation"]
    assert set(ACTIVATIONS) == choices.options


@each_norm
@pytest.mark.parametrize("options", [{}, {"activation": "tanh", "dropout": 0.3}], ids=str)
def test_population_statistics_by_hand(placement, options, blobs, seed):
    X, y = blobs()
    est = make(placement, seed, batch_size=7, **options).fit(X, y)
    measured = []
    walk(est, X, of_the_batch(keep=measured))
    assert len(measured) == len(est.batch_norms_)
    for record, mean, var in measured:
        assert_allclose(record.population_mean, mean, rtol=1e-12, atol=1e-12)
        assert_allclose(record.population_var, var, rtol=1e-12, atol=1e-12)
        assert (record.population_mean.dtype, record.population_var.dtype) == (float, float)


@each_norm
@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9, 0.99, None])
@pytest.mark.parametrize("virtual", [None, 4])
def test_moving_statistics_by_hand(placement, momentum, virtual, blobs, seed):
    # Batches of 12 rows and a last one of 13: the lone 61st row joins the batch before it, and
    # likewise within virtual batches of 4.
    X, y = blobs(61)
    est = make(
        placement,
        seed,
        **FROZEN,
        batch_size=12,
        max_iter=2,
        shuffle=False,
        bn_momentum=momentum,
        bn_virtual_batch_size=virtual,
        bn_statistics="moving",
    ).fit(X, y)
    for call in range(2):
        if call:
            est.partial_fit(X, y)  # goes on where fit stopped
        batches = [rows for _ in range(2 + call) for rows in gen_batches(61, 12, min_batch_size=2)]
        measured = []
        for rows in batches:
            walk(est, X[rows], of_the_batch(virtual, keep=measured))
        for record in est.batch_norms_:
            for column, expected in (("moving_mean", 1), ("moving_var", 2)):
                history = [m[expected] for m in measured if place(m[0]) == place(record)]
                t = len(history)
                if momentum is None:
                    average = sum(history) / t
                else:
                    weights = (1 - momentum) * momentum ** np.arange(t - 1.0, -1, -1)
                    average = weights @ history / (1 - momentum**t)
                assert_allclose(getattr(record, column), average, rtol=1e-11, atol=1e-12)


@each_n_classes
@each_placement
@pytest.mark.parametrize("virtual", [None, 4, 1000])
def test_training_curves_by_hand(placement, n_classes, virtual, blobs, seed):
    X, y = blobs(n_classes=n_classes)
    est = make(placement, seed, warm_start=True, alpha=0.5, bn_virtual_batch_size=virtual)
    est.fit(X, y)  # gamma and beta are no longer 1 and 0
    est.set_params(**FROZEN, max_iter=1, shuffle=False, batch_size=12).fit(X, y)
    penalty = 0.25 * sum(np.sum(coef**2) for coef in est.coefs_)
    loss, correct = 0.0, 0
    for rows in gen_batches(len(X), 12, min_batch_size=2 if placement else 1):
        log_proba = log_probabilities(walk(est, X[rows], of_the_batch(virtual)))
        loss += penalty - log_proba[np.arange(len(log_proba)), y[rows]].sum()
        correct += np.sum(log_proba.argmax(axis=1) == y[rows])
    assert len(est.loss_curve_) == len(est.train_scores_) == 5
    assert_allclose(est.loss_curve_[-1], loss / len(X), rtol=1e-12)
    assert est.loss_ == est.loss_curve_[-1]
    assert_allclose(est.train_scores_[-1], correct / len(X), rtol=1e-12)


@each_placement
def test_log_probabilities_of_certain_predictions(placement, blobs, seed):
    X, y = blobs()
    est = make(placement, seed).fit(X, y)
    log_proba = est.predict_log_proba(1e6 * X)
    assert_allclose(log_proba, log_probabilities(walk(est, 1e6 * X, population)), rtol=1e-9)
    assert np.exp(log_proba.min()) == 0  # log(predict_proba) would be -inf


@pytest.mark.parametrize("position", ["before", "after", "input"])
def test_records(position, blobs, seed):
    X, y = blobs(dtype=np.float32)
    est = make(position, seed).fit(X, y)
    layers, widths = ([-1], [4]) if position == "input" else ([0, 1], [6, 5])
    assert [record.position for record in est.batch_norms_] == [position] * len(layers)
    assert [record.layer for record in est.batch_norms_] == layers
    for record, width in zip(est.batch_norms_, widths, strict=True):
        assert record.gamma.dtype == record.beta.dtype == np.float32
        for name in ("gamma", "beta", "moving_mean", "moving_var", "population_var"):
            assert getattr(record, name).shape == (width,)
    both = make(("after", "input", "before"), seed).fit(X, y).batch_norms_
    assert [(record.position, record.layer) for record in both] == [
        ("input", -1),
        ("before", 0),
        ("after", 0),
        ("before", 1),
        ("after", 1),
    ]
    assert make(None, seed).fit(X, y).batch_norms_ == []


# What is learned, and what is not.


@each_norm
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("center", [True, False])
def test_biases_in_front_of_a_norm_stay(placement, solver, center, blobs, seed):
    X, y = blobs()
    # tanh: a ReLU that never fires has a bias that stays for another reason
    params = {"solver": solver, "bn_center": center, "batch_size": 12, "activation": "tanh"}
    est = make(placement, seed, **params).fit(X, y)
    start = make(placement, seed, **params).set_params(**FROZEN).fit(X, y)
    for index, (trained, initial) in enumerate(
        zip(est.intercepts_, start.intercepts_, strict=True)
    ):
        cancelled = "before" in positions(placement) and index < 2
        assert_array_equal(trained == initial, np.full(trained.shape, cancelled))


@each_norm
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_gamma_and_beta(placement, center, scale, blobs, seed):
    X, y = blobs()
    est = make(placement, seed, bn_center=center, bn_scale=scale, max_iter=20).fit(X, y)
    for record in est.batch_norms_:
        assert np.any(record.gamma != 1) == scale
        assert np.any(record.beta != 0) == center


def test_gamma_and_beta_are_not_penalized(blobs, seed):
    # With a penalty alone, weights shrink and nothing else moves.
    X, y = blobs()
    params = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 1e-3, "max_iter": 1}
    params["weight_init"] = "glorot_uniform"  # there is something to shrink in every layer
    free, penalized = (make("after", seed, alpha=alpha, **params).fit(X, y) for alpha in (0.0, 1e3))
    for coef, smaller in zip(free.coefs_, penalized.coefs_, strict=True):
        assert np.abs(smaller).sum() < 0.999 * np.abs(coef).sum()
    for ours, theirs in zip(free.batch_norms_, penalized.batch_norms_, strict=True):
        assert_same_arrays((ours.gamma, ours.beta), (theirs.gamma, theirs.beta))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"bn_virtual_batch_size": 4}], ids=str)
def test_placements_are_paired(options, blobs, seed):
    # Same seed: same initial weights, same batches, same state of the generator afterwards,
    # whatever the placement and the regularization; but the output layer behind a batch norm.
    X, y = blobs(60)
    states, weights, last_batches = [], [], []
    for placement in [*PLACEMENTS, ("input", "after")]:
        rng = np.random.RandomState(seed)
        est = make(placement, rng, **FROZEN, batch_size=7, bn_momentum=0.0, **options).fit(X, y)
        states.append(rng.get_state()[1:3])
        weights.append([*est.coefs_[:-1], *est.intercepts_[:-1]])
        last_batches += [r.moving_mean for r in est.batch_norms_ if r.position == "input"]
    plain_rng = np.random.RandomState(seed)
    plain = make(None, plain_rng, **FROZEN, batch_size=7).fit(X, y)
    for state in states:
        assert_array_equal(np.append(*state), np.append(*plain_rng.get_state()[1:3]))
    for model in weights:
        assert_same_arrays(model, [*plain.coefs_[:-1], *plain.intercepts_[:-1]])
    assert_same_arrays(last_batches, last_batches[:1] * len(last_batches))


BOUNDS = {  # standard deviation of the initial weights, from fan_in and fan_out
    "auto": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),
    "he_uniform": lambda fan_in, fan_out: np.sqrt(2 / fan_in),
    "he_normal": lambda fan_in, fan_out: np.sqrt(2 / fan_in),
    "glorot_uniform": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),
    "glorot_normal": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),
    "lecun_normal": lambda fan_in, fan_out: np.sqrt(1 / fan_in),
}


@pytest.mark.parametrize("weight_init", BOUNDS)
def test_weight_init(weight_init, blobs, seed):
    X, y = blobs(n_features=50)
    est = make("after", seed, hidden_layer_sizes=(200, 150), weight_init=weight_init, max_iter=1)
    est.set_params(**FROZEN).fit(X, y)
    for coef in est.coefs_[:2]:
        std = BOUNDS[weight_init](*coef.shape)
        assert_allclose(coef.std(), std, rtol=0.03)
        assert abs(coef.mean()) < 5 * std / np.sqrt(coef.size)
        if weight_init.endswith("uniform"):
            assert np.abs(coef).max() <= np.sqrt(3) * std
    for intercept in est.intercepts_[:2]:
        assert np.all(np.abs(intercept) < 1e-290) == (weight_init != "auto")
    assert np.all(np.abs(est.coefs_[2]) < 1e-290) == (weight_init == "auto")
    assert np.all(np.abs(est.intercepts_[2]) < 1e-290)


@each_placement
def test_dropout_is_for_training_only(placement, blobs, seed):
    X, y = blobs()
    frozen = FROZEN | {"weight_init": "glorot_uniform"}  # no output layer of zeros
    plain, dropped = (
        make(placement, seed, **frozen, dropout=rate).fit(X, y) for rate in (0.0, 0.5)
    )
    assert_array_equal(dropped.predict_proba(X), plain.predict_proba(X))
    assert plain.loss_curve_[0] != dropped.loss_curve_[0]
    assert dropped.loss_curve_[0] != dropped.loss_curve_[1]  # masks differ from step to step
    again = make(placement, seed, **frozen, dropout=0.5).fit(X, y)
    assert again.loss_curve_ == dropped.loss_curve_  # and are drawn from random_state
    other = make(placement, seed + 1, dropout=0.5).fit(X, y)
    assert other.loss_curve_ != dropped.loss_curve_


@each_norm
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop"])
def test_it_learns(placement, solver, blobs, seed):
    X, y = blobs(200, n_features=8)
    # RMSprop's usual decay: without bias correction 0.999 begins with steps 30 times as long
    decay = {"beta_2": 0.9} if solver == "rmsprop" else {}
    est = make(placement, seed, solver=solver, batch_size=20, max_iter=40, **decay).fit(X, y)
    assert est.loss_curve_[-1] < 0.8 * est.loss_curve_[0]
    assert est.score(X, y) > 0.8


# Validation data and early stopping.


@each_n_classes
@each_placement
def test_validation_curves(placement, n_classes, blobs, seed):
    X, y = blobs(90, n_classes)
    X, y, X_val, y_val = X[:60], y[:60], X[60:], y[60:]
    est = make(placement, seed, bn_statistics="moving").fit(X, y, X_val=X_val, y_val=y_val)
    assert len(est.validation_scores_) == len(est.validation_loss_curve_) == est.n_iter_ == 4
    assert est.validation_scores_[-1] == est.score(X_val, y_val)
    assert_allclose(est.validation_loss_curve_[-1], mean_log_loss(est, X_val, y_val), rtol=1e-10)

    without = make(placement, seed, bn_statistics="moving").fit(X, y)
    assert without.validation_scores_ is without.validation_loss_curve_ is None
    assert without.best_validation_score_ is None
    assert_same_model(est, without)
    assert est.loss_curve_ == without.loss_curve_
    assert est.train_scores_ == without.train_scores_
    assert est.best_loss_ == without.best_loss_


@each_placement
def test_validation_leaves_population_statistics_alone(placement, blobs, seed):
    X, y = blobs()
    with_val = make(placement, seed).fit(X, y, X_val=X[:20] + 5, y_val=y[:20])
    assert_array_equal(with_val.predict_proba(X), make(placement, seed).fit(X, y).predict_proba(X))


@pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning"
)  # scikit-learn sums X to check it
def test_validation_curves_cannot_end_a_fit(blobs, seed):
    X, y = blobs()
    X_val = X / np.abs(X).max() * 1.7e308  # finite, but the first product is not
    est = make(None, seed).fit(X, y, X_val=X_val, y_val=y)
    assert len(est.validation_scores_) == 4
    assert_same_model(est, make(None, seed).fit(X, y))


@each_placement
@pytest.mark.parametrize("statistics", ["population", "moving"])
def test_early_stopping_on_given_rows(placement, statistics, blobs, seed):
    # Splits nothing off, draws nothing, and restores weights, gamma, beta and statistics of the
    # best epoch: the model is that of a fit that ends there.
    X, y = blobs(90)
    X, y, X_val, y_val = X[:60], y[:60], X[60:], y[60:]
    params = {"bn_statistics": statistics, "learning_rate_init": 0.1, "batch_size": 20}
    rng = np.random.RandomState(seed)
    est = make(placement, rng, early_stopping=True, max_iter=25, n_iter_no_change=5, **params)
    est.fit(X, y, X_val=X_val, y_val=y_val)
    assert est.best_iter_ == np.argmax(est.validation_scores_) + 1
    assert est.best_validation_score_ == max(est.validation_scores_)
    assert est.best_loss_ is None
    assert len(est.validation_scores_) == len(est.loss_curve_) == est.n_iter_

    params |= {"tol": 0, "n_iter_no_change": 99}
    stopped = make(placement, seed, max_iter=est.best_iter_, **params).fit(X, y)
    assert_same_model(est, stopped)
    assert_array_equal(est.predict_proba(X), stopped.predict_proba(X))
    assert est.loss_curve_[: est.best_iter_] == stopped.loss_curve_

    other_rng = np.random.RandomState(seed)
    make(placement, other_rng, max_iter=est.n_iter_, **params).fit(X, y)
    assert_array_equal(rng.get_state()[1], other_rng.get_state()[1])
    assert rng.get_state()[2] == other_rng.get_state()[2]
    if statistics == "moving" or not placement:
        assert est.score(X_val, y_val) == est.best_validation_score_


@each_norm
def test_early_stopping_splits_rows_off(placement, blobs, seed):
    # The rows set aside do not enter the population statistics: an outlier among them is not seen.
    X, y = blobs(60)
    est = make(placement, seed, early_stopping=True, validation_fraction=0.5).fit(X, y)
    measured = []
    walk(est, X, of_the_batch(keep=measured))
    assert len(est.validation_scores_) == len(est.validation_loss_curve_) == est.n_iter_
    assert not np.allclose(measured[0][1], est.batch_norms_[0].population_mean)


# Training in several calls.


@each_placement
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop"])
def test_partial_fit_is_one_epoch_of_fit(placement, solver, blobs, seed):
    X, y = blobs()
    params = {"solver": solver, "batch_size": 12, "bn_statistics": "moving", "dropout": 0.2}
    one = make(placement, seed, max_iter=1, **params).fit(X, y)
    partial = make(placement, seed, **params).partial_fit(X, y, classes=np.unique(y))
    assert_same_model(one, partial)
    assert_array_equal(one.predict_proba(X), partial.predict_proba(X))


@each_placement
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop"])
def test_partial_fits_are_epochs_of_fit(placement, solver, blobs, seed):
    X, y = blobs()
    # without shuffling: each partial_fit permutes its rows anew, fit its last permutation
    params = {"solver": solver, "batch_size": 12, "bn_statistics": "moving", "shuffle": False}
    whole = make(placement, seed, max_iter=3, **params).fit(X, y)
    parts = make(placement, seed, **params)
    for _ in range(3):
        parts.partial_fit(X, y, classes=np.unique(y))
    assert_same_model(whole, parts)
    assert whole.loss_curve_ == parts.loss_curve_
    assert whole.train_scores_ == parts.train_scores_
    assert whole.t_ == parts.t_


@each_norm
def test_partial_fit_and_recalibrate(placement, blobs, seed):
    X, y = blobs()
    est = make(placement, seed).partial_fit(X[:30], y[:30], classes=np.unique(y))
    by_moving = np.exp(log_probabilities(walk(est, X, moving)))
    assert_allclose(est.predict_proba(X), by_moving, atol=1e-12)

    before = copy.deepcopy(everything_learned(est))
    assert est.recalibrate(X) is est
    assert_same_arrays(everything_learned(est), before)
    measured = []
    raw = walk(est, X, of_the_batch(keep=measured))
    assert_allclose(est.predict_proba(X), np.exp(log_probabilities(raw)), atol=1e-12)
    for record, mean, var in measured:
        assert_allclose(record.population_mean, mean, atol=1e-12)
        assert_allclose(record.population_var, var, atol=1e-12)
    assert not np.allclose(est.predict_proba(X), by_moving)

    est.partial_fit(X[30:], y[30:])
    by_moving = np.exp(log_probabilities(walk(est, X, moving)))
    assert_allclose(est.predict_proba(X), by_moving, atol=1e-12)
    # after a fit: to the training rows again, bit for bit; to others and back
    est.fit(X, y)
    proba = est.predict_proba(X)
    assert_array_equal(est.recalibrate(X).predict_proba(X), proba)
    assert not np.allclose(est.recalibrate(X + 1).predict_proba(X), proba)
    assert_array_equal(est.recalibrate(X).predict_proba(X), proba)


@each_placement
def test_warm_start(placement, blobs, seed):
    X, y = blobs()
    est = make(placement, seed, warm_start=True, max_iter=2).fit(X, y)
    cold = make(placement, seed, max_iter=2).fit(X, y)
    assert_same_model(est, cold)
    est.fit(X, y)
    assert (len(est.loss_curve_), len(est.train_scores_), est.n_iter_) == (4, 4, 2)
    assert est.loss_curve_[2] < est.loss_curve_[0]
    assert est.t_ == 4 * len(X)
    learned = copy.deepcopy(everything_learned(cold))
    assert_same_arrays(everything_learned(cold.fit(X, y)), learned)
    assert len(cold.loss_curve_) == 2


@each_placement
def test_fit_is_deterministic(placement, blobs, seed):
    X, y = blobs()
    assert_same_model(make(placement, seed).fit(X, y), make(placement, seed).fit(X, y))
    assert_same_model(clone(make(placement, seed)).fit(X, y), make(placement, seed).fit(X, y))


# State: what may and what may not change a model.


@each_placement
def test_predictions_change_nothing(placement, blobs, seed, unchanged):
    X, y = blobs()
    est = make(placement, np.random.RandomState(seed), dropout=0.3).fit(X, y)
    pickled = pickle.dumps(est)
    with unchanged(est, X):
        est.predict(X)
        est.predict_proba(X[:1])
        est.predict_log_proba(X[:7])
        est.score(X, y)
        repr(est)
    assert pickle.dumps(est) == pickled
    X[...] = np.nan  # nor does a model depend on the rows it was fitted to
    with unchanged(est):
        pickle.loads(pickle.dumps(est))


@each_placement
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda est: pickle.loads(pickle.dumps(est, protocol=5))],
    ids=["deepcopy", "pickle"],
)
def test_copies(placement, solver, copied, blobs, seed, unchanged, snapshot):
    X, y = blobs(dtype=np.float32)
    est = make(placement, seed, solver=solver, dropout=0.2).fit(X, y)
    twin = copied(est)
    assert snapshot(twin, X)["predictions[1]"] == snapshot(est, X)["predictions[1]"]
    with unchanged(est, X):
        twin.partial_fit(X, y)
    est.partial_fit(X, y)
    assert_same_model(twin, est)
    assert_array_equal(twin.predict_proba(X), est.predict_proba(X))


def test_pickles_hold_no_rows(blobs, seed, tmp_path):
    sizes = [len(pickle.dumps(make("after", seed).fit(*blobs(n)))) for n in (50, 500)]
    assert abs(sizes[0] - sizes[1]) < 64
    X, y = blobs()
    est = make("after", seed).fit(X, y)
    joblib.dump(est, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    assert_array_equal(mapped.predict_proba(X), est.predict_proba(X))
    mapped.partial_fit(X, y)


def test_fitted_arrays_are_the_model(blobs, seed):
    # As in scikit-learn: what is written into coefs_ is what predicts.
    X, y = blobs()
    est = make("after", seed).fit(X, y)
    est.coefs_[-1][...] = 0
    est.intercepts_[-1][...] = [0, 0, 9]
    assert_array_equal(est.predict(X), 2)
    est.fit(X, y).batch_norms_[-1].gamma[...] = 0
    assert np.ptp(est.predict_proba(X), axis=0).max() == 0


def test_parameters_after_fit_do_not_change_predictions(blobs, seed):
    X, y = blobs()
    est = make("after", seed).fit(X, y)
    proba = est.predict_proba(X)
    est.set_params(batch_norm=None, hidden_layer_sizes=(3,), activation="tanh", bn_epsilon=1.0)
    assert_array_equal(est.predict_proba(X), proba)


def test_predictions_never_leave_the_device_asked_for(blobs, seed, no_card):
    X, y = blobs()
    est = make("after", seed).fit(X, y).set_params(device="cuda")
    with pytest.raises(ImportError, match="device"):
        est.predict(X)


@each_placement
def test_dtypes(placement, blobs, seed):
    X, y = blobs()
    single = make(placement, seed).fit(X.astype(np.float32), y)
    double = make(placement, seed).fit(X, y)
    for est, dtype in ((single, np.float32), (double, np.float64)):
        assert {array.dtype for array in est.coefs_ + est.intercepts_} == {np.dtype(dtype)}
        assert est.predict_proba(X.astype(dtype)).dtype == dtype
    assert_allclose(single.predict_proba(X), double.predict_proba(X), atol=1e-3)
    assert_allclose(single.loss_curve_, double.loss_curve_, atol=1e-4)


@each_placement
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_rows(placement, dtype):
    est = make(placement).fit(np.array([[0, 1], [2, 1]], dtype=dtype), ["a", "b"])
    assert np.isfinite(est.predict_log_proba([[0, 1], [2, 1], [5, 5]])).all()
    assert np.isfinite(est.loss_curve_).all()


@each_placement
def test_last_batch_of_one_row(placement, blobs, seed):
    X, y = blobs(61)
    with np.errstate(all="raise"):
        est = make(placement, seed, batch_size=20).fit(X, y)
    assert est.t_ == 4 * 61
    assert np.isfinite(est.loss_curve_).all()
    assert np.isfinite(est.predict_log_proba(X)).all()


@pytest.mark.parametrize("hidden_layer_sizes", [(), 7, [1], (3, 5, 2), (17, 1, 16)], ids=str)
@pytest.mark.parametrize("n_features", [1, 8, 17])
def test_shapes(hidden_layer_sizes, n_features, blobs, seed):
    X, y = blobs(n_features=n_features)
    sizes = np.atleast_1d(np.asarray(hidden_layer_sizes, dtype=int)).tolist()
    est = make(("input", "after"), seed, hidden_layer_sizes=hidden_layer_sizes).fit(X, y)
    assert [coef.shape[1] for coef in est.coefs_] == [*sizes, 3]
    assert est.n_layers_ == len(sizes) + 2
    assert len(est.batch_norms_) == len(sizes) + 1
    assert_allclose(
        est.predict_log_proba(X), log_probabilities(walk(est, X, population)), atol=1e-12
    )


# Inside scikit-learn.

# Checks of what a later version brings.
FAST = {"hidden_layer_sizes": (10,), "max_iter": 30}
STOCHASTIC = FAST | {"learning_rate_init": 0.05, "n_iter_no_change": 30}


# One check sets n_iter_no_change whatever the solver.
@pytest.mark.filterwarnings("ignore:.* has no effect with solver")
@parametrize_with_checks(
    [
        estimator(**options, batch_norm=placement)
        for estimator in (MLPClassifierBN, MLPRegressorBN)
        for options in (STOCHASTIC, FAST | {"solver": "lbfgs"})
        for placement in (None, "before", "after", "input")
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


def test_names_and_tags():
    est = MLPClassifierBN()
    assert is_classifier(est)
    tags = get_tags(est)
    assert tags.target_tags.required
    assert not tags.input_tags.allow_nan
    assert clone(est).get_params() == est.get_params()
    assert repr(est) == "MLPClassifierBN()"
    # As scikit-learn's own estimators: there since it has callbacks.
    assert hasattr(est, "set_callbacks") == hasattr(Pipeline, "set_callbacks")
    placed = MLPClassifierBN(batch_norm=("input", "before"), bn_momentum=None)
    assert repr(placed) == "MLPClassifierBN(batch_norm=('input', 'before'), bn_momentum=None)"
    assert "MLPClassifierBN" in estimator_html_repr(placed)
    assert clone(placed).batch_norm == ("input", "before")


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes"],
        np.array(["b", "a", "c"], dtype=object),
        [False, True],
        [3, -1],
        [0.0, 2.0, 7.0],
        np.array([1, 0, 2], dtype=np.uint8),
    ],
    ids=str,
)
def test_any_labels(labels, blobs, seed):
    X, codes = blobs(n_classes=len(labels))
    labels = np.asarray(labels)
    y = labels[codes]
    est = make("after", seed, max_iter=30).fit(X, y, X_val=X, y_val=y)
    assert_array_equal(est.classes_, np.unique(labels))
    assert est.classes_.dtype == est.predict(X).dtype == labels.dtype
    assert est.score(X, y) == np.mean(est.predict(X) == y) > 0.6
    order = np.searchsorted(est.classes_, y)
    plain = make("after", seed, max_iter=30).fit(X, order)
    assert_array_equal(est.predict_proba(X), plain.predict_proba(X))
    partial = make("after", seed).partial_fit(X, y, classes=np.unique(labels))
    assert_array_equal(partial.classes_, est.classes_)


def test_validation_rows_may_lack_a_class(blobs, seed):
    X, y = blobs()
    est = make("after", seed).fit(X, y, X_val=X[y < 2], y_val=y[y < 2])
    assert np.isfinite(est.validation_loss_curve_).all()


@each_placement
def test_pipeline(placement, blobs, seed):
    X, y = blobs()
    pipe = Pipeline([("scale", StandardScaler()), ("mlp", make(placement, seed))])
    scaled = StandardScaler().fit_transform(X)
    expected = make(placement, seed).fit(scaled, y).predict_proba(scaled)
    assert_array_equal(pipe.fit(X, y).predict_proba(X), expected)
    assert cross_val_score(pipe, X, y, cv=3, error_score="raise").shape == (3,)


def test_frames(blobs, seed):
    pd = pytest.importorskip("pandas")
    X, y = blobs()
    frame = pd.DataFrame(X, columns=list("abcd"))
    est = make("after", seed, early_stopping=True).fit(frame, pd.Series(y))
    assert_array_equal(est.feature_names_in_, list("abcd"))
    unnamed = make("after", seed, early_stopping=True).fit(X, y)
    assert_array_equal(est.predict_proba(frame), unnamed.predict_proba(X))
    with pytest.warns(UserWarning, match="X does not have valid feature names, but MLPClass"):
        est.predict(X)
    pipe = Pipeline([("scale", StandardScaler()), ("mlp", make("after", seed))])
    pipe.set_output(transform="pandas").fit(frame, y)
    assert_array_equal(pipe["mlp"].feature_names_in_, list("abcd"))
    assert pipe.predict(frame).shape == y.shape


@pytest.mark.parametrize(
    ("backend", "n_jobs"),
    [("sequential", 1), ("loky", 2), ("threading", 2), ("multiprocessing", 2)],
)
def test_grid_search(backend, n_jobs, blobs, seed):
    X, y = blobs()
    pipe = Pipeline([("scale", StandardScaler()), ("mlp", make("after", seed, max_iter=8))])
    grid = {"mlp__batch_norm": PLACEMENTS, "mlp__learning_rate_init": [1e-4, 0.1]}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise")
    expected = clone(search).fit(X, y)
    with parallel_config(backend=backend, n_jobs=n_jobs):
        search.set_params(n_jobs=n_jobs).fit(X, y)
    for key in ("mean_test_score", "std_test_score"):
        assert_array_equal(search.cv_results_[key], expected.cv_results_[key])
    assert search.best_params_ == expected.best_params_
    assert_array_equal(search.predict_proba(X), expected.predict_proba(X))


def test_validation_rows_in_a_pipeline(blobs, seed):
    X, y = blobs(90)
    X, y, X_val, y_val = 10 * X[:60], y[:60], 10 * X[60:], y[60:]
    with config_context(enable_metadata_routing=True):
        mlp = make("after", seed, bn_statistics="moving").set_fit_request(X_val=True, y_val=True)
        pipe = Pipeline([("scale", StandardScaler()), ("mlp", mlp)], transform_input=["X_val"])
        pipe.fit(X, y, X_val=X_val, y_val=y_val)
        assert pipe["mlp"].validation_scores_[-1] == pipe.score(X_val, y_val)


def test_searches_slice_validation_rows_of_the_length_of_X(blobs, seed):
    # The trap: an X_val that happens to have as many rows as X is taken for a column of X.
    X, y = blobs(60)
    rng = np.random.RandomState(seed)
    rows = rng.permutation(60)[:30]
    est = make("after", seed, bn_statistics="moving")
    for X_val, y_val, sliced in ((X + 3, y, True), (X[:59] + 3, y[:59], False)):
        params = {"X_val": X_val, "y_val": y_val}
        result = cross_validate(
            est, X, y, cv=[(rows, rows)], params=params, return_estimator=True, error_score="raise"
        )
        fitted = result["estimator"][0]
        seen = rows if sliced else slice(None)
        loss = mean_log_loss(fitted, X_val[seen], y_val[seen])
        assert_allclose(fitted.validation_loss_curve_[-1], loss, rtol=1e-10)


# Every constructor parameter: its default, and that it matters.


class Parameter(NamedTuple):
    """A constructor parameter."""

    default: Any
    other: Any  # another value: where the context holds, it leads elsewhere
    context: Mapping = MappingProxyType({})
    refused: type | None = None  # the error that ``other`` is here, which names it


SGD = {"solver": "sgd"}
EARLY = {"early_stopping": True, "bn_statistics": "moving"}
PARAMETERS = {
    "hidden_layer_sizes": Parameter((100,), (99,)),
    "activation": Parameter("relu", "tanh"),
    "batch_norm": Parameter("after", "before"),
    "bn_momentum": Parameter(0.9, 0.5, {"bn_statistics": "moving"}),
    "bn_epsilon": Parameter(1e-3, 1e-2),
    "bn_center": Parameter(True, False),
    "bn_scale": Parameter(True, False),
    "bn_statistics": Parameter("population", "moving"),
    "bn_virtual_batch_size": Parameter(None, 8),
    "solver": Parameter("adam", "rmsprop"),
    "alpha": Parameter(1e-4, 0.1),
    "batch_size": Parameter("auto", 15),
    "learning_rate": Parameter("constant", "invscaling", SGD),
    "learning_rate_init": Parameter(1e-3, 1e-2),
    "power_t": Parameter(0.5, 0.1, SGD | {"learning_rate": "invscaling"}),
    "max_iter": Parameter(200, 3),
    "shuffle": Parameter(True, False, {"batch_size": 15}),
    "random_state": Parameter(None, 7),
    "tol": Parameter(1e-4, 10.0, {"n_iter_no_change": 1}),
    "verbose": Parameter(False, True),
    "warm_start": Parameter(False, True),
    "momentum": Parameter(0.9, 0.5, SGD),
    "nesterovs_momentum": Parameter(True, False, SGD),
    "early_stopping": Parameter(False, True),
    "validation_fraction": Parameter(0.1, 0.3, {"early_stopping": True}),
    "beta_1": Parameter(0.9, 0.5),
    "beta_2": Parameter(0.999, 0.9),
    "epsilon": Parameter(1e-8, 1e-2),
    "n_iter_no_change": Parameter(10, 1, {"tol": 10.0, "max_iter": 20}),
    "max_fun": Parameter(15000, 5, {"solver": "lbfgs", "max_iter": 50}),
    "dropout": Parameter(0.0, 0.5),
    "class_weight": Parameter(None, {0: 1.0, 1: 5.0}),
    "scoring": Parameter(None, "loss", EARLY),
    "weight_init": Parameter("auto", "he_normal"),
    "max_grad_norm": Parameter(None, 0.1),
    "device": Parameter(None, "cuda", refused=ImportError),
}
each_parameter = pytest.mark.parametrize("name", PARAMETERS)


def outcome(X, y, params):
    """All that can be seen of two fits in a row."""
    np.random.seed(0)
    printed = io.StringIO()
    with redirect_stdout(printed):
        est = MLPClassifierBN(**params).fit(X, y)
        first = (
            est.n_iter_,
            est.loss_curve_,
            est.validation_scores_,
            est.predict_proba(X).tolist(),
        )
        est.fit(X, y)
    return printed.getvalue(), first, est.loss_curve_


def test_defaults():
    signature = inspect.signature(MLPClassifierBN)
    assert list(signature.parameters) == list(PARAMETERS)
    for name, parameter in signature.parameters.items():
        assert parameter.default == PARAMETERS[name].default
        positional = name in ("hidden_layer_sizes", "activation")
        assert (parameter.kind is parameter.POSITIONAL_OR_KEYWORD) == positional
    assert set(MLPClassifierBN._parameter_constraints) >= set(PARAMETERS)
    for estimator in (MLPClassifierBN(), MLPRegressorBN()):
        BaseEstimator._validate_params(estimator)  # fit does not look at defaults again


@each_parameter
def test_parameters_matter(name, blobs, no_card):
    X, y = blobs(n_classes=2)
    default, other, context, refused = PARAMETERS[name]
    if refused:
        with pytest.raises(refused, match=name):
            outcome(X, y, {**context, name: other})
        return
    base = {"hidden_layer_sizes": (6,), "max_iter": 4, "random_state": 0} | context
    expected = outcome(X, y, {**base, name: default})
    assert outcome(X, y, {**base, name: default}) == expected
    assert outcome(X, y, {**base, name: other}) != expected


def test_parameters_that_change_nothing_here(blobs):
    X, y = blobs()
    base = {"max_iter": 3, "random_state": 0}
    expected = outcome(X, y, base)
    for params in (
        {"device": "cpu"},
        {"bn_virtual_batch_size": 200},
        {"batch_size": len(X)},
        {"batch_norm": ("after",)},
    ):
        assert outcome(X, y, base | params) == expected


def test_sizes_beyond_all_integers(blobs, seed):
    """As good as "all rows" and "all epochs"; they must not wrap around in a record."""
    X, y = blobs()
    expected = make(seed=seed).fit(X, y)
    for size in (2**63 - 1, 10**30):
        assert_same_model(make(seed=seed, bn_virtual_batch_size=size).fit(X, y), expected)
    stopped = {"batch_size": 20, "tol": 10.0, "n_iter_no_change": 1}
    assert make(seed=seed, **stopped | {"max_iter": 2**63 - 1}).fit(X, y).n_iter_ == 3


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_partial_fit_after_a_planned_schedule(schedule, blobs, seed):
    """What a plan that was carried out leaves is no rate to go on with."""
    X, y = blobs()
    est = make(seed=seed, learning_rate=schedule).fit(X, y)
    before = est.coefs_[0].copy()
    est.set_params(learning_rate="constant").partial_fit(X, y)
    assert np.abs(est.coefs_[0] - before).max() > 1e-3


def test_warm_start_compares_like_with_like(blobs, seed):
    """After another loss or another score, the best so far is no longer the best."""
    X, y = blobs(n_classes=2)
    est = make(seed=seed, warm_start=True, early_stopping=True, max_iter=20).fit(X, y)
    est.set_params(scoring="loss").fit(X, y)
    assert est.best_validation_score_ == max(est.validation_scores_[-est.n_iter_ :])
    assert est.best_validation_score_ < 0 < est.best_iter_
    reg = MLPRegressorBN(hidden_layer_sizes=(6,), warm_start=True, max_iter=5, random_state=seed)
    reg.fit(X, X[:, 0]).set_params(loss="absolute_error").fit(X, X[:, 0])
    assert reg.best_loss_ == min(reg.loss_curve_[-5:])


def test_subclasses_may_have_other_parameters(blobs):
    class Penalized(MLPClassifierBN):
        def __init__(self, alpha=1.0):
            super().__init__((6,), alpha=alpha, max_iter=3, solver="sgd", random_state=0)

    X, y = blobs()
    assert Penalized().fit(X, y).get_params() == {"alpha": 1.0}
    assert Penalized().fit(X, y).loss_ != Penalized(0.0).fit(X, y).loss_


def test_curves_of_a_failed_call_are_cut_back(blobs, seed):
    """They grow in place, whatever their length, and a call that fails leaves none of its own."""
    X, y = blobs()
    est = make(None, seed).fit(X, y)
    est.set_params(learning_rate_init=1e300, warm_start=True)
    curve = est.loss_curve_
    expected = list(curve)
    with pytest.raises(ValueError, match="diverged"):
        est.fit(X, y)
    assert est.loss_curve_ is curve
    assert curve == expected
    est.set_params(learning_rate_init=1e-3).partial_fit(X, y)
    assert curve[:-1] == expected
    twin = copy.copy(est).partial_fit(X, y)
    assert len(twin.loss_curve_) == len(est.loss_curve_) + 1


def test_class_weights_are_for_training(blobs, seed):
    """Validation scores count rows as they are, whether they were split off or given."""
    X, y = blobs(200, n_classes=2)
    est = make(
        seed=seed, class_weight={0: 1.0, 1: 50.0}, early_stopping=True, bn_statistics="moving"
    )
    est.fit(X, y)
    n_held_out = 20
    scores = np.array(est.validation_scores_) * n_held_out
    assert_allclose(scores, scores.round(), atol=1e-9)


def test_predictions_do_not_ask_for_the_loss(blobs, seed):
    X, _ = blobs()
    reg = MLPRegressorBN("poisson", (6,), max_iter=3, random_state=seed).fit(X, np.abs(X[:, 0]))
    expected = reg.predict(X)
    assert_array_equal(reg.set_params(loss="squared_error").predict(X), expected)
    assert_array_equal(reg.set_params(loss="no loss").predict(X), expected)
