"""MLPRegressorBN as users meet it: losses, gradients, several outputs, R2, life in scikit-learn.

What it shares with the classifier is tested there (test_mlp.py) and in test_weights.py; that it is
scikit-learn's MLPRegressor without batch norm, in test_sklearn_parity.py.
"""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import inspect
import pickle

import numpy as np
import pytest
from cases import EXECUTORS, each_dtype, each_executor
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar
from sklearn.base import clone, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.metrics import (
    mean_absolute_error,
    mean_poisson_deviance,
    mean_squared_error,
    r2_score,
)
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.multioutput import MultiOutputRegressor, RegressorChain
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches, get_tags

from skbn import MLPClassifierBN, MLPRegressorBN
from skbn._layers import Dense
from skbn._losses import REGRESSION_LOSSES, RegressionLoss
from skbn._network import Network

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PLACEMENTS = [None, "before", "after", ("input", "after")]
FROZEN = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 1e-300}

each_placement = pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
each_loss = pytest.mark.parametrize("loss", REGRESSION_LOSSES)
each_n_outputs = pytest.mark.parametrize("n_outputs", [1, 2, 3])


def make(loss="squared_error", placement="after", seed=0, **params):
    """A small regressor that trains for a few steps."""
    defaults = {"hidden_layer_sizes": (6,), "max_iter": 4, "learning_rate_init": 0.02}
    return MLPRegressorBN(loss, batch_norm=placement, random_state=seed, **defaults | params)


@pytest.fixture
def problem(seed):
    """A function that draws X and y; y is a column less where there is one output."""

    def draw(loss="squared_error", n_outputs=1, n_rows=41, dtype=np.float64):
        rng = np.random.RandomState(seed)
        X = rng.normal(size=(n_rows, 3))
        y = X @ rng.normal(size=(3, n_outputs)) + 0.3 * rng.normal(size=(n_rows, n_outputs))
        y = rng.poisson(np.exp(y.clip(-2, 2))) if loss == "poisson" else 1 + 2 * y
        return X.astype(dtype), y[:, 0] if n_outputs == 1 else y

    return draw


# Losses.


def closed_form(loss, y, raw):
    """Mean loss of raw outputs, by scikit-learn's metrics where it has one."""
    if loss == "squared_error":
        return mean_squared_error(y, raw) / 2
    if loss == "absolute_error":
        return mean_absolute_error(y, raw)
    if loss == "huber":
        error = np.abs(raw - y)
        return np.where(error <= 1, error**2 / 2, error - 0.5).mean()
    columns = zip(y.reshape(len(y), -1).T, np.exp(raw.reshape(len(y), -1).T), strict=True)
    return sum(mean_poisson_deviance(*column) / 2 for column in columns)


def evaluate(executor, loss, raw, targets):
    """Mean loss, squared errors and the gradient of the loss with respect to ``raw``.

    The weights of the only layer are ``raw`` and its input is the identity matrix.
    """
    n_rows, n_outputs = raw.shape
    network = Network([Dense(n_rows, n_outputs)], raw.dtype)
    network.coefs[0][...] = raw
    data = np.eye(n_rows, dtype=raw.dtype), targets, None, np.arange(n_rows)
    grads = network.new_vector()
    kind = RegressionLoss(loss, n_outputs).kind
    with EXECUTORS[executor](network, loss_kind=kind, batch_size=n_rows) as it:
        total, weight, *squares = it.evaluate(*data)
        in_training = it.loss_and_gradient(*data, grads)
    assert in_training == pytest.approx(total / weight, rel=1e-12, nan_ok=True)
    return total / weight, squares, network.tensors[0].view(grads)


@each_executor
@each_dtype
@each_loss
@each_n_outputs
def test_loss_in_closed_form(n_outputs, loss, dtype, executor, problem):
    _, y = problem(loss, n_outputs)
    y = y.reshape(len(y), -1).astype(dtype)
    raw = np.random.RandomState(1).normal(scale=1.5, size=y.shape).astype(dtype)
    found, squares, _ = evaluate(executor, loss, raw, y)
    wide, y = raw.astype(float), y.astype(float)
    assert found == pytest.approx(
        closed_form(loss, y, wide), rel=1e-6 if dtype == np.float32 else 1e-13
    )
    predicted = np.exp(wide) if loss == "poisson" else wide
    assert_allclose(
        squares, ((predicted - y) ** 2).sum(axis=0), rtol=1e-5 if dtype == np.float32 else 1e-13
    )


@each_executor
@each_loss
@each_n_outputs
def test_loss_and_gradient_of_torch(n_outputs, loss, executor, problem):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    _, y = problem(loss, n_outputs)
    y = y.reshape(len(y), -1).astype(float)
    raw = np.random.RandomState(1).normal(scale=1.5, size=y.shape)
    z, t = torch.tensor(raw, requires_grad=True), torch.tensor(y)
    expected = {
        "squared_error": lambda: functional.mse_loss(z, t) / 2,
        "absolute_error": lambda: functional.l1_loss(z, t),
        "huber": lambda: functional.huber_loss(z, t, delta=1.0),
        # without the part that predictions do not change, and a mean where ours is a sum
        "poisson": lambda: (
            n_outputs * (functional.poisson_nll_loss(z, t) + (torch.xlogy(t, t) - t).mean())
        ),
    }[loss]()
    expected.backward()
    found, _, gradient = evaluate(executor, loss, raw, y)
    assert found == pytest.approx(expected.item(), rel=1e-13)
    assert_allclose(gradient, z.grad.numpy(), rtol=1e-12, atol=1e-16)


@each_executor
@each_dtype
def test_errors_at_the_knee(dtype, executor):
    """At 0 and at 1, and far beyond where a square would overflow."""
    errors = np.array([[0.0], [1.0], [-1.0], [1e-3], [-1e4], [1e18]], dtype)
    zeros = np.zeros_like(errors)
    n, size = len(errors), np.abs(errors.astype(float))
    found, _, gradient = evaluate(executor, "absolute_error", errors, zeros)
    assert found == pytest.approx(size.mean(), rel=1e-6)
    assert_allclose(gradient, np.sign(errors) / n, rtol=1e-6)
    found, _, gradient = evaluate(executor, "huber", errors, zeros)
    assert found == pytest.approx(np.where(size > 1, size - 0.5, size**2 / 2).mean(), rel=1e-6)
    assert_allclose(gradient, np.clip(errors, -1, 1) / n, rtol=1e-6)


@each_executor
@each_loss
def test_loss_of_what_is_not_finite(loss, executor):
    """Is not finite: training can see it."""
    for bad in (np.nan, np.inf):
        raw = np.array([[1.0], [bad]])
        with np.errstate(invalid="ignore"):  # of the reference
            assert not np.isfinite(evaluate(executor, loss, raw, np.ones((2, 1)))[0])


@each_executor
def test_poisson_of_zero_counts(executor):
    raw = np.array([[-40.0], [0.0], [2.0]])
    found, _, gradient = evaluate(executor, "poisson", raw, np.zeros((3, 1)))
    assert found == pytest.approx(np.exp(raw).mean(), rel=1e-13)
    assert_allclose(gradient, np.exp(raw) / 3, rtol=1e-12)


# Gradients, from end to end: what one step of plain SGD subtracts is the slope of what is reported.


def reported(est, X, y, weights):
    """Loss of the network as it is."""
    twin = copy.deepcopy(est).set_params(**FROZEN, warm_start=True, max_iter=1)
    return twin.fit(X, y, weights).loss_


def tensors(est):
    """What is trained, by name; views."""
    found = {f"coef {i}": coef for i, coef in enumerate(est.coefs_)}
    found |= {f"intercept {i}": intercept for i, intercept in enumerate(est.intercepts_)}
    for i, record in enumerate(est.batch_norms_):
        found |= {f"gamma {i}": record.gamma, f"beta {i}": record.beta}
    return found


@each_placement
@each_loss
@each_n_outputs
@pytest.mark.parametrize("weighted", [False, True])
def test_one_step_is_the_slope_of_the_loss(weighted, n_outputs, loss, placement, problem, seed):
    X, y = problem(loss, n_outputs, 13)
    rng = np.random.RandomState(seed)
    weights = rng.uniform(0.1, 3, 13) if weighted else None
    start = make(loss, placement, alpha=0.5, activation="tanh", hidden_layer_sizes=(3,))
    start.fit(X, y, weights)
    before, rate, step = tensors(start), 1e-4, 1e-5
    plain = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": rate, "max_iter": 1}
    after = tensors(copy.deepcopy(start).set_params(**plain, warm_start=True).fit(X, y, weights))
    for name, view in before.items():
        where = tuple(rng.randint(size) for size in view.shape)
        middle = view[where]
        view[where] = middle + step
        above = reported(start, X, y, weights)
        view[where] = middle - step
        slope = (above - reported(start, X, y, weights)) / (2 * step)
        view[where] = middle
        if name == "intercept 0" and placement == "before":
            assert after[name][where] == middle  # batch norm cancels it
            continue
        assert_allclose((middle - after[name][where]) / rate, slope, rtol=1e-5, atol=1e-7)


# Predictions.


@each_placement
@each_loss
@each_n_outputs
@each_dtype
def test_predictions(dtype, n_outputs, loss, placement, problem):
    X, y = problem(loss, n_outputs, dtype=dtype)
    est = make(loss, placement).fit(X, y)
    predicted = est.predict(X)
    assert predicted.shape == y.shape
    assert predicted.dtype == dtype
    assert est.n_outputs_ == n_outputs
    assert est.out_activation_ == ("exp" if loss == "poisson" else "identity")
    assert est.coefs_[-1].shape == (6, n_outputs)
    if loss == "poisson":
        assert predicted.min() > 0
    assert est.score(X, y) == pytest.approx(r2_score(y, predicted))
    if placement is None:
        raw = np.maximum(X @ est.coefs_[0] + est.intercepts_[0], 0) @ est.coefs_[1]
        raw = raw + est.intercepts_[1]
        by_hand = (np.exp(raw) if loss == "poisson" else raw).reshape(y.shape)
        assert_allclose(predicted, by_hand, rtol=1e-5, atol=64 * np.finfo(dtype).eps)


def test_a_column_is_one_output(problem):
    X, y = problem()
    with pytest.warns(UserWarning, match="column-vector y was passed"):
        column = make().fit(X, y[:, None])
    assert_array_equal(column.predict(X), make().fit(X, y).predict(X))
    assert column.predict(X).ndim == 1


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber"])
def test_the_same_output_twice(loss, problem):
    """The mean over the outputs: the loss is that of one, each weight has half of its slope."""
    X, y = problem()
    params = FROZEN | {"hidden_layer_sizes": (), "alpha": 0.0, "warm_start": True, "max_iter": 1}
    single, double = make(loss, None, **params), make(loss, None, **params)
    both = np.column_stack([y, y])
    double.fit(X, both).coefs_[0][...] = single.fit(X, y).coefs_[0]
    double.intercepts_[0][...] = single.intercepts_[0]
    single.set_params(learning_rate_init=0.01).fit(X, y)
    double.set_params(learning_rate_init=0.02).fit(X, both)
    assert double.loss_ == pytest.approx(single.loss_, rel=1e-13)
    assert_allclose(double.coefs_[0], np.tile(single.coefs_[0], 2), rtol=1e-12)


@each_loss
def test_what_a_loss_predicts_without_features(loss, problem):
    """The mean, the median, or what is between them."""
    _, y = problem(loss, n_rows=301)
    X = np.zeros((301, 1))
    est = MLPRegressorBN(loss, (), batch_norm=None, alpha=0.0, max_iter=400, random_state=0)
    if loss == "absolute_error":  # whose derivative jumps
        est.set_params(learning_rate="cosine", learning_rate_init=0.1, n_iter_no_change=np.inf)
    else:
        est.set_params(solver="lbfgs", tol=1e-10)
    found = est.fit(X, y).predict(X[:1])[0]
    if loss in ("squared_error", "poisson"):
        assert found == pytest.approx(y.mean(), rel=1e-5)
    else:
        expected = minimize_scalar(lambda c: closed_form(loss, y, np.full(301, c))).x
        tolerance = 0.05 if loss == "absolute_error" else 1e-4
        assert found == pytest.approx(expected, abs=tolerance)


@each_placement
@each_loss
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop", "lbfgs"])
def test_it_learns(solver, loss, placement, problem):
    X, y = problem(loss, 2, n_rows=120)
    est = make(loss, placement, solver=solver, max_iter=60)
    if solver == "lbfgs":
        est.set_params(learning_rate_init=0.001)  # the default: it has none
    else:
        est.set_params(batch_size=20, learning_rate_init=0.01, n_iter_no_change=60)
    if solver == "rmsprop":
        est.set_params(beta_2=0.9)
    est.fit(X, y)
    assert est.loss_ < 0.7 * est.loss_curve_[0]
    assert est.score(X, y) > 0.3


# Scores.


@each_placement
@each_loss
@each_n_outputs
def test_scores_are_r2(n_outputs, loss, placement, problem):
    """Those of training rows in training mode, those of validation rows by moving statistics."""
    X, y = problem(loss, n_outputs, 60)
    X, y, X_val, y_val = X[:41], y[:41], X[41:], y[41:]
    est = make(loss, placement, warm_start=True, bn_statistics="moving")
    est.fit(X, y, X_val=X_val, y_val=y_val)
    assert est.validation_scores_[-1] == pytest.approx(r2_score(y_val, est.predict(X_val)))
    first = make(loss, placement, max_iter=1, bn_statistics="moving").fit(X, y)
    assert est.validation_scores_[0] == pytest.approx(r2_score(y_val, first.predict(X_val)))
    raw = est.predict(X_val)
    raw = np.log(raw) if loss == "poisson" else raw
    assert est.validation_loss_curve_[-1] == pytest.approx(closed_form(loss, y_val, raw))

    est.set_params(**FROZEN, max_iter=1, shuffle=False, batch_size=10, bn_momentum=0.0).fit(X, y)
    predicted = []
    for rows in gen_batches(41, 10, min_batch_size=2 if placement else 1):
        twin = copy.deepcopy(est).set_params(batch_size=len(X[rows]))
        # a network whose statistics are those of the mini-batch
        predicted.append(twin.fit(X[rows], y[rows]).predict(X[rows]))
    assert est.train_scores_[-1] == pytest.approx(r2_score(y, np.concatenate(predicted)))


@pytest.mark.parametrize("y", [np.full(20, 3.0), np.column_stack([np.ones(20), np.arange(20.0)])])
def test_constant_targets(y, seed):
    X = np.random.RandomState(seed).normal(size=(20, 2))
    est = make(bn_statistics="moving", early_stopping=True).fit(X, y, X_val=X, y_val=y)
    assert est.validation_scores_[-1] == pytest.approx(r2_score(y, est.predict(X)))
    assert np.isfinite(est.train_scores_).all()
    perfect = make(hidden_layer_sizes=(), **FROZEN, warm_start=True, placement=None, alpha=0.0)
    perfect.fit(X, np.full(20, 3.0))
    perfect.coefs_[0][...] = 0
    perfect.intercepts_[0][...] = 3
    perfect.fit(X, np.full(20, 3.0), X_val=X, y_val=np.full(20, 3.0))
    assert perfect.train_scores_[-1] == perfect.validation_scores_[-1] == 1
    assert perfect.score(X, np.full(20, 3.0)) == 1


@each_placement
def test_early_stopping(placement, problem):
    X, y = problem(n_outputs=2, n_rows=90)
    params = {"learning_rate_init": 0.3, "bn_statistics": "moving", "batch_size": 20}
    est = make(placement=placement, early_stopping=True, max_iter=60, n_iter_no_change=5, **params)
    est.fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert est.best_iter_ == np.argmax(est.validation_scores_) + 1
    assert est.best_validation_score_ == pytest.approx(est.score(X[60:], y[60:]))
    assert est.best_loss_ is None
    split = make(placement=placement, early_stopping=True).fit(X, y)
    assert len(split.validation_scores_) == split.n_iter_


# Training in several calls, and copies.


@each_placement
@each_loss
def test_partial_fits_are_epochs_of_fit(loss, placement, problem):
    X, y = problem(loss, 2)
    params = {"batch_size": 12, "bn_statistics": "moving", "shuffle": False}
    whole, parts = make(loss, placement, **params, max_iter=3), make(loss, placement, **params)
    whole.fit(X, y)
    for _ in range(3):
        assert parts.partial_fit(X, y) is parts
    assert_array_equal(whole.predict(X), parts.predict(X))
    assert whole.loss_curve_ == parts.loss_curve_
    assert whole.train_scores_ == parts.train_scores_
    warm = make(loss, placement, warm_start=True, max_iter=2).fit(X, y).fit(X, y)
    assert (len(warm.loss_curve_), warm.n_iter_, warm.t_) == (4, 2, 4 * 41)
    assert warm.loss_curve_[2] < warm.loss_curve_[0]


@each_placement
def test_recalibrate_and_copies(placement, problem, unchanged):
    X, y = problem("poisson", 2)
    est = make("poisson", placement).fit(X, y)
    predicted = est.predict(X)
    if placement:
        assert_array_equal(copy.deepcopy(est).recalibrate(X).predict(X), predicted)
        assert not np.allclose(copy.deepcopy(est).recalibrate(X + 1).predict(X), predicted)
    twin = pickle.loads(pickle.dumps(est))
    with unchanged(est, X):
        assert_array_equal(twin.predict(X), predicted)
        twin.partial_fit(X, y)
    assert_array_equal(est.partial_fit(X, y).predict(X), twin.predict(X))


def test_parameters_after_fit_do_not_change_predictions(problem):
    X, y = problem("poisson")
    est = make("poisson").fit(X, y)
    predicted = est.predict(X)
    est.set_params(loss="squared_error", batch_norm=None, hidden_layer_sizes=(3,), bn_epsilon=1.0)
    assert_array_equal(est.predict(X), predicted)


# Inside scikit-learn.


def test_names_and_tags(problem):
    est = MLPRegressorBN()
    assert is_regressor(est)
    assert repr(est) == "MLPRegressorBN()"
    assert repr(MLPRegressorBN("huber", (3,))) == (
        "MLPRegressorBN(hidden_layer_sizes=(3,), loss='huber')"
    )
    tags = get_tags(est)
    assert tags.input_tags.sparse
    assert tags.target_tags.required
    assert tags.target_tags.multi_output
    assert clone(est).get_params() == est.get_params()


def test_parameters_are_those_of_the_classifier():
    ours = inspect.signature(MLPRegressorBN).parameters
    theirs = inspect.signature(MLPClassifierBN).parameters
    assert list(ours) == ["loss", *(name for name in theirs if name != "class_weight")]
    for name, parameter in ours.items():
        if name != "loss":
            assert (parameter.kind, parameter.default) == (theirs[name].kind, theirs[name].default)
    assert ours["loss"].default == "squared_error"
    assert ours["loss"].kind == ours["loss"].POSITIONAL_OR_KEYWORD
    assert set(MLPRegressorBN._parameter_constraints) == set(ours)


def test_losses_differ(problem):
    X, y = problem()
    fits = [make(loss).fit(X, np.abs(y)).predict(X) for loss in REGRESSION_LOSSES]
    for i, one in enumerate(fits):
        for other in fits[:i]:
            assert not np.allclose(one, other)


def test_transformed_targets(problem):
    X, y = problem(n_outputs=2)
    est = TransformedTargetRegressor(make(), transformer=StandardScaler()).fit(X, 1e3 * y)
    scaler = StandardScaler().fit(1e3 * y)
    expected = scaler.inverse_transform(make().fit(X, scaler.transform(1e3 * y)).predict(X))
    assert_allclose(est.predict(X), expected)
    logs = TransformedTargetRegressor(make(), func=np.log1p, inverse_func=np.expm1)
    assert logs.fit(X, np.abs(y[:, 0])).predict(X).shape == (41,)


def test_meta_estimators(problem):
    X, y = problem(n_outputs=2, n_rows=60)
    separate = MultiOutputRegressor(make()).fit(X, y)
    for column, est in enumerate(separate.estimators_):
        assert_array_equal(est.predict(X), make().fit(X, y[:, column]).predict(X))
    assert RegressorChain(make()).fit(X, y).predict(X).shape == y.shape
    pipe = make_pipeline(StandardScaler(), make())
    result = cross_validate(pipe, X, y, cv=3, scoring=("r2", "neg_mean_absolute_error"))
    assert np.isfinite(result["test_r2"]).all()
    search = GridSearchCV(
        pipe,
        {
            "mlpregressorbn__loss": ["squared_error", "huber"],
            "mlpregressorbn__batch_norm": PLACEMENTS,
        },
        cv=2,
        error_score="raise",
    )
    assert search.fit(X, y).predict(X).shape == y.shape


def test_frames(problem):
    pd = pytest.importorskip("pandas")
    X, y = problem(n_outputs=2)
    frame, targets = pd.DataFrame(X, columns=list("abc")), pd.DataFrame(y, columns=["u", "v"])
    est = make().fit(frame, targets, X_val=frame, y_val=targets)
    assert_array_equal(est.feature_names_in_, list("abc"))
    assert_array_equal(est.predict(frame), make().fit(X, y).predict(X))
    series = make().fit(frame, targets["u"], X_val=frame, y_val=targets["u"])
    assert_array_equal(series.predict(frame), make().fit(X, y[:, 0]).predict(X))
