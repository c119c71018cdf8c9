"""``solver="lbfgs"`` with batch normalization: one function of all rows, minimized by scipy.

The statistics of its batch are those of all rows, so moving and population statistics are the same
thing and a network is what its predictions say after every iteration. Without batch norm it is
scikit-learn's (test_sklearn_parity.py).
"""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score

from skbn import MLPClassifierBN, MLPRegressorBN
from skbn._losses import REGRESSION_LOSSES

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PLACEMENTS = ["before", "after", "input", ("input", "before"), ("before", "after")]
each_norm = pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
each_placement = pytest.mark.parametrize("placement", [None, *PLACEMENTS], ids=str)
TARGETS = ["classes", "labels", *REGRESSION_LOSSES]
each_target = pytest.mark.parametrize("target", TARGETS)


def make(target="classes", placement="after", **params):
    is_classifier = target in ("classes", "labels")
    estimator = MLPClassifierBN() if is_classifier else MLPRegressorBN(target)
    defaults = {"hidden_layer_sizes": (6, 4), "activation": "tanh", "max_iter": 12}
    defaults |= {"solver": "lbfgs", "alpha": 0.1, "random_state": 0, "batch_norm": placement}
    return estimator.set_params(**defaults | params)


@pytest.fixture
def problem(blobs):
    """A function that draws X and y."""

    def draw(target="classes", n_rows=61, dtype=np.float64):
        X, y = blobs(n_rows, dtype=dtype)
        if target == "labels":
            y = np.column_stack([y == 0, X[:, 0] > 0]).astype(int)
        elif target != "classes":
            y = np.exp(X[:, :2] / 4)
        return X, y

    return draw


def assert_same_network(ours, theirs):
    for name in ("coefs_", "intercepts_"):
        for our, their in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            assert_array_equal(our, their)
    for our, their in zip(ours.batch_norms_, theirs.batch_norms_, strict=True):
        for name in ("gamma", "beta", "moving_mean", "moving_var"):
            assert_array_equal(getattr(our, name), getattr(their, name))


def step_of_sgd(est, X, y, rate):
    """Loss of the network in training mode and its gradient, by a step of plain SGD."""
    twin = copy.deepcopy(est).set_params(solver="sgd", momentum=0.0, learning_rate_init=rate)
    twin.set_params(warm_start=True, max_iter=1, shuffle=False).fit(X, y)
    before, after = ([*e.coefs_, *e.intercepts_] for e in (est, twin))
    before += [part for r in est.batch_norms_ for part in (r.gamma, r.beta)]
    after += [part for r in twin.batch_norms_ for part in (r.gamma, r.beta)]
    slopes = [(b - a) / rate for b, a in zip(before, after, strict=True)]
    return twin.loss_curve_[-1], np.concatenate([slope.ravel() for slope in slopes])


# What is minimized.


@each_placement
@each_target
def test_loss_goes_down_and_is_that_of_the_network(target, placement, problem):
    X, y = problem(target)
    est = make(target, placement).fit(X, y)
    assert len(est.loss_curve_) == len(est.train_scores_) == est.n_iter_ > 3
    assert np.all(np.diff(est.loss_curve_) <= 0)
    assert est.loss_ == est.loss_curve_[-1] == est.best_loss_
    assert est.best_iter_ == est.n_iter_
    loss, _ = step_of_sgd(est, X, y, 1e-300)
    assert est.loss_ == pytest.approx(loss, rel=1e-12)


@each_placement
@pytest.mark.parametrize("target", ["classes", "labels", "squared_error", "poisson", "huber"])
def test_it_follows_the_gradient(target, placement, problem):
    # There is no bottom behind a norm: weights may shrink, gamma may grow, and neither costs.
    X, y = problem(target)
    est = make(target, placement, max_iter=300, bn_epsilon=0.1)
    _, start = step_of_sgd(clone(est).set_params(max_iter=1).fit(X, y), X, y, 1e-6)
    _, slopes = step_of_sgd(est.fit(X, y), X, y, 1e-6)
    assert np.linalg.norm(slopes) < 0.1 * np.linalg.norm(start)


def test_it_converges(problem):
    X, y = problem()
    for tol in (1e-2, 1e-4):
        est = make(placement=None, tol=tol, max_iter=2000, alpha=5.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            est.fit(X, y)
        assert np.abs(step_of_sgd(est, X, y, 1e-6)[1]).max() < 2 * tol


# Statistics.


@each_norm
@each_target
@pytest.mark.parametrize("max_iter", [1, 7])
def test_statistics_are_those_of_all_rows(max_iter, target, placement, problem):
    X, y = problem(target, 300)
    est = make(target, placement, max_iter=max_iter).fit(X, y)
    for record in est.batch_norms_:
        for moment in ("mean", "var"):
            moving, population = (
                getattr(record, f"{w}_{moment}") for w in ("moving", "population")
            )
            assert_allclose(moving, population, rtol=1e-12, atol=1e-12)
    if "input" in placement:
        assert_allclose(est.batch_norms_[0].population_mean, X.mean(axis=0), rtol=1e-12)
        assert_allclose(est.batch_norms_[0].population_var, X.var(axis=0), rtol=1e-12)
    elif "before" in placement:
        z = X @ est.coefs_[0] + est.intercepts_[0]
        assert_allclose(est.batch_norms_[0].moving_mean, z.mean(axis=0), rtol=1e-12, atol=1e-12)
        assert_allclose(est.batch_norms_[0].moving_var, z.var(axis=0), rtol=1e-12)
    else:
        h = np.tanh(X @ est.coefs_[0] + est.intercepts_[0])
        assert_allclose(est.batch_norms_[0].moving_mean, h.mean(axis=0), rtol=1e-12, atol=1e-12)
        assert_allclose(est.batch_norms_[0].moving_var, h.var(axis=0), rtol=1e-12)
    moving = make(target, placement, max_iter=max_iter, bn_statistics="moving").fit(X, y)
    assert moving.batch_norms_[0].population_mean is None
    assert_same_network(moving, est)
    assert_allclose(moving.predict(X), est.predict(X), rtol=1e-9)


@each_norm
def test_training_score_is_the_score(placement, problem):
    # in training mode and at prediction it is the same network
    X, y = problem()
    est = make(placement=placement).fit(X, y)
    assert est.train_scores_[-1] == pytest.approx(est.score(X, y))
    log_proba = est.predict_log_proba(X)
    assert_allclose(log_softmax(log_proba, axis=1), log_proba, atol=1e-12)
    loss = -log_proba[np.arange(61), y].mean()
    penalty = 0.05 * sum(np.sum(coef**2) for coef in est.coefs_) / 61
    assert est.loss_ == pytest.approx(loss + penalty, rel=1e-10)
    X, y = problem("huber")
    est = make("huber", placement).fit(X, y)
    assert est.train_scores_[-1] == pytest.approx(r2_score(y, est.predict(X)))


# Validation rows.


@each_placement
@each_target
def test_validation_curves(target, placement, problem):
    X, y = problem(target, 90)
    X, y, X_val, y_val = X[:60], y[:60], X[60:], y[60:]
    est = make(target, placement).fit(X, y, X_val=X_val, y_val=y_val)
    assert len(est.validation_scores_) == len(est.validation_loss_curve_) == est.n_iter_
    assert est.validation_scores_[-1] == pytest.approx(est.score(X_val, y_val))
    early = make(target, placement, max_iter=5).fit(X, y)
    assert est.validation_scores_[4] == pytest.approx(early.score(X_val, y_val))
    assert_same_network(est, make(target, placement).fit(X, y))


def test_scoring_and_early_stopping(problem):
    X, y = problem(n_rows=90)
    est = make(scoring="neg_log_loss").fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert_allclose(est.validation_scores_, -np.array(est.validation_loss_curve_), rtol=1e-9)
    with pytest.warns(UserWarning, match="early_stopping=True has no effect"):
        told = make(early_stopping=True).fit(X, y)
    assert_same_network(told, make().fit(X, y))
    assert told.validation_scores_ is None
    assert told.best_loss_ == min(told.loss_curve_)


# How it ends.


@pytest.mark.parametrize("params", [{"dropout": 0.1}, {"bn_virtual_batch_size": 8}], ids=str)
@pytest.mark.parametrize("target", ["classes", "huber"])
def test_what_it_does_not_support(target, params, problem, unchanged):
    X, y = problem(target)
    ((name, value),) = params.items()
    message = f"^solver='lbfgs' does not support {name}={value}: it needs the same loss"
    est = make(target)
    for _ in ("fresh", "fitted"):
        est.set_params(**params)
        with unchanged(est), pytest.raises(ValueError, match=message):
            est.fit(X, y)
        est.set_params(dropout=0.0, bn_virtual_batch_size=None).fit(X, y)
    assert not hasattr(est, "partial_fit")


@each_placement
def test_max_fun(placement, problem):
    X, y = problem()
    free = make(placement=placement, max_iter=40).fit(X, y)
    short = make(placement=placement, max_iter=40, max_fun=5)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge after"):
        short.fit(X, y)
    assert 1 <= short.n_iter_ <= 5 < free.n_iter_
    assert short.loss_curve_ == free.loss_curve_[: short.n_iter_]
    assert_same_network(
        short, make(placement=placement, max_iter=short.n_iter_, max_fun=15000).fit(X, y)
    )


def test_limit_on_the_decrease(problem, monkeypatch):
    """scipy's default, which scikit-learn does not touch; in float32 nothing below its epsilon."""
    given = []

    def recorded(*args, **kwargs):
        given.append(kwargs["options"]["ftol"])
        return minimize(*args, **kwargs)

    monkeypatch.setattr("skbn._training.minimize", recorded)
    X, y = problem()
    for dtype in (np.float64, np.float32):
        make().fit(X.astype(dtype), y)
    assert given == [2.2204460492503131e-09, np.finfo(np.float32).eps]


def test_nothing_to_improve(problem):
    X, y = problem()
    # An output layer of zeros would have the same loss on all rows.
    est = make(tol=1e6, warm_start=True, weight_init="glorot_uniform").fit(X, y, X_val=X, y_val=y)
    assert est.n_iter_ == 0
    assert len(est.loss_curve_) == len(est.validation_scores_) == 1
    assert est.loss_ == est.best_loss_ == est.loss_curve_[0]
    assert est.batch_norms_[0].population_mean is not None
    first = est.loss_
    est.fit(X + 1, y)  # another loss, of which nothing can be improved either
    loss, _ = step_of_sgd(est, X + 1, y, 1e-300)
    assert est.loss_ == pytest.approx(loss)
    assert est.loss_ != first


@each_placement
def test_warm_start(placement, problem):
    X, y = problem()
    est = make(placement=placement, warm_start=True, max_iter=4).fit(X, y)
    assert_same_network(est, make(placement=placement, max_iter=4).fit(X, y))
    reached = est.loss_
    est.fit(X, y)
    assert (est.n_iter_, len(est.loss_curve_), est.t_) == (4, 8, 8 * 61)
    assert est.loss_ < est.loss_curve_[4] <= reached
    # on to another solver and back
    est.set_params(solver="adam").partial_fit(X, y)
    assert len(est.loss_curve_) == 9
    est.set_params(solver="lbfgs", max_iter=2).fit(X, y)
    assert len(est.loss_curve_) == 11
    assert np.isfinite(est.predict_log_proba(X)).all()


@each_placement
def test_float32(placement, problem):
    X, y = problem(dtype=np.float32)
    single, double = (make(placement=placement).fit(X.astype(t), y) for t in (np.float32, float))
    assert {array.dtype for array in single.coefs_ + single.intercepts_} == {np.dtype(np.float32)}
    assert_allclose(single.loss_curve_[:4], double.loss_curve_[:4], rtol=1e-3)
    assert np.all(np.diff(single.loss_curve_) <= 0)


def test_float32_ends_by_its_own_digits(problem):
    X, y = problem(dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        single = make(placement=None, max_iter=2000, alpha=5.0, tol=0.0).fit(X, y)
    double = make(placement=None, max_iter=2000, alpha=5.0).fit(X.astype(float), y)
    assert single.loss_ == pytest.approx(double.loss_, rel=1e-2)


@each_placement
@pytest.mark.parametrize("call", [1, 2, 6])
def test_interrupt(call, placement, problem, interrupt):
    X, y = problem()
    est = make(placement=placement)
    plain = [make(placement=placement, max_iter=n, bn_statistics="moving") for n in range(1, 6)]
    plain = {fitted.n_iter_: fitted for fitted in (m.fit(X, y) for m in plain)}
    interrupt("loss_and_gradient", call)
    with pytest.warns(UserWarning, match=r"^Training interrupted by user\.$"):
        est.fit(X, y, X_val=X, y_val=y)
    assert len(est.loss_curve_) == est.n_iter_ < 6
    assert np.isfinite(est.predict_log_proba(X)).all()
    for record in est.batch_norms_:
        assert np.isfinite([record.moving_mean, record.moving_var]).all()
        assert record.population_mean is None
    if est.n_iter_:  # it is the network of the last iteration that was done
        assert_same_network(est, plain[est.n_iter_])
        assert est.validation_scores_[-1] == est.score(X, y)
    else:
        assert call < 3


def test_interrupt_of_the_population_pass(problem, interrupt):
    X, y = problem()
    interrupt("update_population_statistics", 1)
    with pytest.warns(UserWarning, match="interrupted by user"):
        est = make().fit(X, y)
    assert est.batch_norms_[0].population_mean is None
    assert_allclose(est.train_scores_[-1], est.score(X, y))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@each_placement
def test_divergence(placement, problem, unchanged):
    X, y = problem("squared_error")
    est = make("squared_error", placement).fit(X, y)
    message = "^Solver produced non-finite parameter weights.* Training diverged .*, epoch 1"
    with unchanged(est, X), pytest.raises(ValueError, match=message):
        est.fit(X, 1e200 * y)


def test_it_is_deterministic(problem):
    for target in TARGETS:
        X, y = problem(target)
        assert_same_network(make(target).fit(X, y), make(target).fit(X, y))
    other = make(target, random_state=1).fit(X, y)
    assert not np.allclose(other.loss_curve_, make(target).fit(X, y).loss_curve_)


def test_verbose(problem, capsys):
    X, y = problem()
    est = make(verbose=True, max_iter=2).fit(X, y, X_val=X, y_val=y)
    expected = []
    for i in range(2):
        expected += [f"Iteration {i + 1}, loss = {est.loss_curve_[i]:.8f}"]
        expected += [f"Validation score: {est.validation_scores_[i]:f}"]
    assert capsys.readouterr().out.splitlines() == expected
