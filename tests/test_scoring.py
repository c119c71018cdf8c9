"""``scoring``: what the validation curve holds and early stopping watches.

The judge is scikit-learn's scorer itself, asked about a model whose training ended at the epoch in
question and that predicts with the moving statistics, as a network in training does.
"""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array, csr_matrix
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import get_scorer, log_loss, make_scorer, max_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

from skbn import MLPClassifierBN, MLPRegressorBN

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PLACEMENTS = [None, "after", ("input", "before")]
# what is asked for, how many classes (0: regression, -1: labels), and by which names
SCORERS = {
    2: ["accuracy", "roc_auc", "average_precision", "neg_log_loss", "f1", "neg_brier_score"],
    3: ["accuracy", "balanced_accuracy", "f1_macro", "roc_auc_ovr", "neg_log_loss"],
    -1: ["accuracy", "f1_samples", "roc_auc"],
    0: ["r2", "neg_mean_squared_error", "neg_mean_absolute_error", make_scorer(max_error)],
}
EACH = [(n_classes, scoring) for n_classes, names in SCORERS.items() for scoring in names]


def make(n_classes, placement="after", **params):
    """A small estimator that predicts with the moving statistics."""
    estimator = MLPClassifierBN if n_classes else MLPRegressorBN
    defaults = {"hidden_layer_sizes": (6,), "max_iter": 4, "learning_rate_init": 0.02}
    defaults |= {"bn_statistics": "moving", "random_state": 0, "batch_size": 20}
    return estimator(batch_norm=placement, **defaults | params)


@pytest.fixture
def problem(blobs):
    """A function that draws X, y, X_val, y_val for a number of classes."""

    def draw(n_classes):
        X, y = blobs(90, max(n_classes, 3) if n_classes != 2 else 2)
        if n_classes == 0:
            y = X @ [1.0, -1.0, 0.5, 0.0]
        elif n_classes == -1:
            y = np.column_stack([y == 0, y > 0, X[:, 0] > X[:, 1]]).astype(int)
        return X[:60], y[:60], X[60:], y[60:]

    return draw


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
@pytest.mark.parametrize(("n_classes", "scoring"), EACH, ids=str)
def test_scores_of_every_epoch(n_classes, scoring, placement, problem):
    X, y, X_val, y_val = problem(n_classes)
    est = make(n_classes, placement, scoring=scoring).fit(X, y, X_val=X_val, y_val=y_val)
    scorer = get_scorer(scoring)
    for epoch, score in enumerate(est.validation_scores_, 1):
        model = make(n_classes, placement, max_iter=epoch).fit(X, y)
        assert score == pytest.approx(scorer(model, X_val, y_val), rel=1e-12)
    assert isinstance(est.validation_scores_[0], float)
    assert est.best_validation_score_ == max(est.validation_scores_)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
@pytest.mark.parametrize(("n_classes", "scoring"), [*EACH, (2, "loss"), (0, "loss")], ids=str)
def test_scoring_changes_no_model(n_classes, scoring, placement, problem):
    X, y, X_val, y_val = problem(n_classes)
    rng, other_rng = np.random.RandomState(0), np.random.RandomState(0)
    est = make(n_classes, placement, scoring=scoring, random_state=rng)
    est.fit(X, y, X_val=X_val, y_val=y_val)
    plain = make(n_classes, placement, random_state=other_rng).fit(X, y)
    for ours, theirs in zip(
        [*est.coefs_, *est.intercepts_], [*plain.coefs_, *plain.intercepts_], strict=True
    ):
        assert_array_equal(ours, theirs)
    assert_array_equal(est.predict(X_val), plain.predict(X_val))
    assert est.loss_curve_ == plain.loss_curve_
    assert_array_equal(rng.get_state()[1], other_rng.get_state()[1])


@pytest.mark.parametrize("n_classes", SCORERS)
def test_defaults(n_classes, problem):
    X, y, X_val, y_val = problem(n_classes)
    default, named, loss = (
        make(n_classes, scoring=scoring).fit(X, y, X_val=X_val, y_val=y_val)
        for scoring in (None, "accuracy" if n_classes else "r2", "loss")
    )
    assert_allclose(default.validation_scores_, named.validation_scores_, rtol=1e-12)
    assert loss.validation_scores_ == [-value for value in default.validation_loss_curve_]
    assert loss.validation_loss_curve_ == default.validation_loss_curve_


def test_loss_is_the_log_loss(problem):
    X, y, X_val, y_val = problem(3)
    est = make(3, scoring="loss").fit(X, y, X_val=X_val, y_val=y_val)
    expected = log_loss(y_val, est.predict_proba(X_val), labels=est.classes_)
    assert est.validation_scores_[-1] == pytest.approx(-expected)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("n_classes", "scoring"), [(3, "loss"), (2, "roc_auc"), (0, "r2")])
def test_early_stopping(n_classes, scoring, given, problem):
    X, y, X_val, y_val = problem(n_classes)
    params = {"early_stopping": True, "max_iter": 80, "n_iter_no_change": 4}
    est = make(n_classes, scoring=scoring, learning_rate_init=0.2, **params)
    est.fit(X, y, **{"X_val": X_val, "y_val": y_val} if given else {})
    assert est.best_iter_ == np.argmax(est.validation_scores_) + 1
    assert est.best_validation_score_ == max(est.validation_scores_)
    assert est.n_iter_ < 80
    if given and scoring == "loss":
        accuracy = est.set_params(scoring=None).fit(X, y, X_val=X_val, y_val=y_val)
        assert accuracy.best_iter_ == np.argmax(accuracy.validation_scores_) + 1
    elif given:
        scorer = get_scorer(scoring)
        assert scorer(est, X_val, y_val) == pytest.approx(est.best_validation_score_)


# What a scorer is given.


@pytest.mark.parametrize("labels", [[0, 1, 2], ["a", "b", "c"]], ids=str)
def test_what_a_callable_is_given(labels, problem):
    X, y, X_val, y_val = problem(3)
    y, y_val = np.array(labels)[y], np.array(labels)[y_val]
    seen = []

    def scorer(model, X, y):
        assert type(model) is MLPClassifierBN
        assert model.get_params() == est.get_params()
        (record,) = model.batch_norms_
        assert record.population_mean is None
        seen.append((X, y, record.moving_mean.copy(), model.predict_proba(X)))
        return len(seen)

    est = make(3, scoring=scorer, bn_statistics="population", warm_start=True)
    est.fit(X, y, X_val=X_val, y_val=y_val)
    assert est.validation_scores_ == [1.0, 2.0, 3.0, 4.0]
    for given_X, given_y, _, _ in seen:
        assert_array_equal(given_X, X_val)
        assert_array_equal(given_y, y_val)
        assert given_y.dtype == y.dtype
    assert not np.array_equal(seen[0][2], seen[-1][2])
    assert_array_equal(seen[-1][2], est.batch_norms_[0].moving_mean)
    moving = make(3).fit(X, y)
    assert_array_equal(seen[-1][3], moving.predict_proba(X_val))
    assert not np.allclose(seen[-1][3], est.predict_proba(X_val))  # which has the population's


def test_held_out_rows_are_what_is_scored(problem):
    X, y, _, _ = problem(3)
    seen = []
    est = make(3, scoring=lambda model, X, y: seen.append((X, y)) or 0.0, early_stopping=True)
    est.fit(X, y)
    assert len(seen) == est.n_iter_
    held_out, labels = seen[0]
    assert held_out.shape == (6, 4)
    for row, label in zip(held_out, labels, strict=True):
        assert label == y[(X == row).all(axis=1)].item()


def test_frames_and_pipelines(problem):
    pd = pytest.importorskip("pandas")
    X, y, X_val, y_val = problem(3)
    frame, frame_val = (pd.DataFrame(rows, columns=list("abcd")) for rows in (X, X_val))
    est = make(3, scoring="neg_log_loss").fit(frame, y, X_val=frame_val, y_val=y_val)
    plain = make(3, scoring="neg_log_loss").fit(X, y, X_val=X_val, y_val=y_val)
    assert est.validation_scores_ == plain.validation_scores_
    pipe = make_pipeline(StandardScaler(), make(3, scoring="f1_macro", early_stopping=True))
    assert len(pipe.fit(X, y)[-1].validation_scores_) == pipe[-1].n_iter_


def test_sparse_rows_and_labels(problem):
    X, y, X_val, y_val = problem(-1)
    dense = make(-1, scoring="f1_samples").fit(X, y, X_val=X_val, y_val=y_val)
    sparse = make(-1, scoring="f1_samples")
    sparse.fit(X, csr_matrix(y), X_val=csr_array(X_val), y_val=csr_matrix(y_val))
    assert_allclose(sparse.validation_scores_, dense.validation_scores_)


# What goes wrong.


@pytest.mark.parametrize(
    "scoring", ["no_such_score", "Loss", ["accuracy"], 3, {"a": "accuracy"}], ids=str
)
@pytest.mark.parametrize("n_classes", [3, 0])
def test_no_scorer(n_classes, scoring, problem, unchanged):
    X, y, X_val, y_val = problem(n_classes)
    est = make(n_classes).fit(X, y).set_params(scoring=scoring)
    calls = [("fit", {}), ("fit", {"X_val": X_val, "y_val": y_val}), ("partial_fit", {})]
    for method, kwargs in calls:
        with unchanged(est, X), pytest.raises(InvalidParameterError, match="'scoring' parameter"):
            getattr(est, method)(X, y, **kwargs)


@pytest.mark.filterwarnings("ignore:scoring=.* has no effect without")
def test_a_scorer_that_fails(problem, unchanged):
    X, y, X_val, y_val = problem(3)
    rng = np.random.RandomState(0)

    def scorer(model, X, y):
        raise ZeroDivisionError("by the scorer")

    est = make(3, scoring=scorer, random_state=rng).fit(X, y)  # which needs none
    with unchanged(est, X), pytest.raises(ZeroDivisionError, match="by the scorer"):
        est.fit(X, y, X_val=X_val, y_val=y_val)
    est.partial_fit(X, y)


def test_scores_that_are_nan(problem, unchanged):
    X, y, X_val, y_val = problem(2)
    one_class = {"X_val": X_val[y_val == 0], "y_val": y_val[y_val == 0]}
    est = make(2, scoring=lambda model, X, y: np.nan).fit(X, y, **one_class)
    assert np.isnan(est.validation_scores_).all()  # a curve and no more
    assert np.isfinite(est.validation_loss_curve_).all()
    est.set_params(early_stopping=True)
    with unchanged(est, X), pytest.raises(ValueError, match="validation score of epoch 1 is nan"):
        est.fit(X, y, **one_class)
    est.set_params(scoring="roc_auc")
    with pytest.warns(UndefinedMetricWarning), pytest.raises(ValueError, match="is nan"):
        est.fit(X, y, **one_class)


def test_scorers_without_weights(problem):
    """They are not given any: not the user's, and not those of classes."""
    X, y, X_val, y_val = problem(2)

    def scorer(model, X, y):
        return model.score(X, y)

    for scoring in (scorer, "matthews_corrcoef", "neg_max_error"):
        est = make(2, scoring=scoring, early_stopping=True, class_weight="balanced")
        est.fit(
            X, y, np.ones(len(X)), X_val=X_val, y_val=y_val, sample_weight_val=np.ones(len(y_val))
        )
        assert np.isfinite(est.validation_scores_).all()


def test_scores_that_are_infinite(problem, unchanged):
    X, y, *_ = problem(2)
    est = make(2, scoring=lambda model, X, y: -np.inf, early_stopping=True)
    with unchanged(est, X), pytest.raises(ValueError, match="epoch 1 is -inf"):
        est.fit(X, y)


def test_scoring_without_validation_is_reported(problem):
    X, y, *_ = problem(2)
    with pytest.warns(UserWarning, match="scoring='loss' has no effect"):
        make(2, scoring="loss").fit(X, y)
