"""What TrainingCurveDisplay draws, read back from the artists, and what it refuses."""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_iris, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer, zero_one_loss
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_validate
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbn import MLPClassifierBN, TrainingCurveDisplay

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
plt = pytest.importorskip("matplotlib.pyplot")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

from_estimator = TrainingCurveDisplay.from_estimator
from_estimators = TrainingCurveDisplay.from_estimators
from_cv_results = TrainingCurveDisplay.from_cv_results


@pytest.fixture(autouse=True)
def _close_figures():
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    return X[order], y[order]


@pytest.fixture(scope="module")
def fit(iris):
    """A function that fits a small network with validation data."""
    X, y = iris

    def fit(batch_norm="after", **options):
        options = {"max_iter": 12, "learning_rate_init": 0.01, "random_state": 0} | options
        classifier = MLPClassifierBN((8,), batch_norm=batch_norm, **options)
        return classifier.fit(X[:100], y[:100], X_val=X[100:], y_val=y[100:])

    return fit


class Classifier(ClassifierMixin, BaseEstimator):
    """Curves without a network."""

    def __init__(self, *, loss_curve, scoring=None, **curves):
        self.loss_curve_ = loss_curve
        self.scoring = scoring
        vars(self).update(curves)

    def fit(self, X, y):
        raise NotImplementedError


class Regressor(RegressorMixin, Classifier):
    """The same for regression."""

    def __init__(self, loss="squared_error", **curves):
        super().__init__(**curves)
        self.loss = loss


def legend_texts(display):
    return [text.get_text() for text in display.legend_.get_texts()]


def data(lines):
    return [line.get_ydata().tolist() for line in lines]


def band(collection, epoch):
    """Lower and upper edge of a band."""
    vertices = np.concatenate([path.vertices for path in collection.get_paths()])
    edges = vertices[vertices[:, 0] == epoch, 1]
    return (edges.min(), edges.max()) if edges.size else None


# One estimator


def test_the_loss_of_an_estimator(fit):
    clf = fit()
    display = from_estimator(clf)
    assert isinstance(display, TrainingCurveDisplay)
    assert isinstance(display.ax_, matplotlib.axes.Axes)
    assert display.figure_ is display.ax_.figure
    training, validation = display.lines_
    assert_array_equal(training.get_ydata(), clf.loss_curve_)
    assert_array_equal(validation.get_ydata(), clf.validation_loss_curve_)
    for line in display.lines_:
        assert_array_equal(line.get_xdata(), np.arange(1, 13))
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    assert training.get_color() == validation.get_color()
    assert display.ax_.get_xlabel() == "Epoch"
    assert display.ax_.get_ylabel() == "Log loss"
    assert display.ax_.get_yscale() == "linear"
    assert legend_texts(display) == ["training mode", "validation"]
    dashes = [line.get_linestyle() for line in display.legend_.get_lines()]
    assert dashes == ["-", "--"]
    assert not display.fill_between_ + display.run_lines_ + display.best_


def test_the_score_of_an_estimator(fit):
    clf = fit()
    display = from_estimator(clf, kind="score")
    assert data(display.lines_) == [clf.train_scores_, clf.validation_scores_]
    assert display.ax_.get_ylabel() == "Accuracy"


def test_both(fit):
    clf = fit()
    display = from_estimator(clf, kind="both", log_scale=True)
    assert data(display.lines_) == [
        clf.loss_curve_,
        clf.validation_loss_curve_,
        clf.train_scores_,
        clf.validation_scores_,
    ]
    loss, score = display.ax_
    assert [line.axes for line in display.lines_] == [loss, loss, score, score]
    assert (loss.get_ylabel(), score.get_ylabel()) == ("Log loss", "Accuracy")
    assert (loss.get_yscale(), score.get_yscale()) == ("log", "linear")
    assert {line.get_color() for line in display.lines_} == {display.lines_[0].get_color()}
    assert display.figure_.axes == [loss, score]
    assert display.legend_.axes is score


def test_inside_pipelines_and_searches(fit, iris):
    X, y = iris
    clf = fit()
    pipeline = make_pipeline(StandardScaler(), MLPClassifierBN((8,), max_iter=3, random_state=0))
    grid = {"mlpclassifierbn__batch_norm": ["before", "input"]}
    fitted = pipeline.fit(X, y)
    assert data(from_estimator(fitted).lines_) == [fitted[-1].loss_curve_]
    for search in (
        GridSearchCV(pipeline, grid, cv=2),
        RandomizedSearchCV(pipeline, grid, n_iter=2, cv=2),
        make_pipeline(StandardScaler(), GridSearchCV(clf.set_params(max_iter=3), {}, cv=2)),
    ):
        search.fit(X, y)
        best = getattr(search, "best_estimator_", search)[-1]
        best = getattr(best, "best_estimator_", best)
        assert data(from_estimator(search).lines_) == [best.loss_curve_]


def test_scikit_learns_own_networks(iris):
    X, y = iris
    own = MLPClassifier((8,), max_iter=5, early_stopping=True, random_state=0).fit(X, y)
    display = from_estimator(own, kind="both", mark_best=True)
    assert data(display.lines_) == [own.loss_curve_, own.validation_scores_]
    assert [line.get_linestyle() for line in display.lines_] == ["-", "--"]
    assert not display.best_


def test_regressors():
    X, y = make_regression(60, 3, random_state=0)
    scaled = TransformedTargetRegressor(
        MLPRegressor(hidden_layer_sizes=(4,), max_iter=5, random_state=0),
        transformer=StandardScaler(),
    ).fit(X, y)
    display = from_estimator(scaled)
    assert data(display.lines_) == [scaled.regressor_.loss_curve_]
    assert display.ax_.get_ylabel() == "Squared error loss"

    curves = {"loss_curve": [2.0, 1.0], "train_scores_": [0.1, 0.2]}
    display = from_estimator(Regressor("huber", **curves), kind="both")
    assert [ax.get_ylabel() for ax in display.ax_] == ["Huber loss", "R²"]
    assert data(display.lines_) == [[2.0, 1.0], [0.1, 0.2]]


@pytest.mark.parametrize("missing", [None, [], [np.nan, np.nan]])
def test_missing_curves_are_skipped(missing):
    clf = Classifier(loss_curve=[2.0, 1.0], validation_loss_curve_=missing, train_scores_=missing)
    display = from_estimator(clf)
    assert data(display.lines_) == [[2.0, 1.0]]
    assert legend_texts(display) == ["training mode"]
    for kind in ("score", "both"):
        plt.close("all")
        with pytest.raises(ValueError, match="There is no score to plot: none was recorded"):
            from_estimator(clf, kind=kind)
        assert not plt.get_fignums()


def test_epochs_without_validation_are_gaps(fit, iris):
    clf = fit(max_iter=3, warm_start=True)
    clf.fit(*iris)
    clf.fit(*iris, X_val=iris[0], y_val=iris[1])
    display = from_estimator(clf)
    training, validation = display.lines_
    assert np.isfinite(training.get_ydata()).all()
    assert_array_equal(np.isnan(validation.get_ydata()), [0, 0, 0, 1, 1, 1, 0, 0, 0])
    assert_array_equal(validation.get_xdata(), np.arange(1, 10))


def test_an_epoch_on_its_own_is_visible():
    """A line needs two points, so an epoch between gaps is a dot."""
    nan = np.nan
    clf = Classifier(loss_curve=[4.0, 3.0, 2.0, 1.0], validation_loss_curve_=[3.0, nan, 2.0, 1.0])
    training, validation = from_estimator(clf).lines_
    assert training.get_marker() == "None"
    assert validation.get_marker() == "."
    assert_array_equal(validation.get_markevery(), [True, False, False, False])

    display = from_estimator(Classifier(loss_curve=[1.0]))
    assert display.lines_[0].get_marker() == "."
    low, high = display.ax_.get_xlim()
    assert [tick for tick in display.ax_.get_xticks() if low < tick < high] == [1]

    (line, _) = from_estimator(clf, line_kw={"marker": "s"}).lines_
    assert (line.get_marker(), line.get_markevery()) == ("s", None)


def test_ticks_are_whole_epochs():
    display = from_estimator(Classifier(loss_curve=[3.0, 2.0, 1.0]))
    display.figure_.canvas.draw()
    assert_array_equal(display.ax_.get_xticks() % 1, 0)


# What scores measure


def roc_auc(estimator, X, y):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "scoring", "label"),
    [
        (Classifier, "roc_auc", "Roc auc"),
        (Classifier, "neg_log_loss", "Negative log loss"),
        (Classifier, "loss", "Negative loss"),
        (Classifier, roc_auc, "Roc auc"),
        (Classifier, make_scorer(zero_one_loss), "Score"),
        (Regressor, "accuracy", "Accuracy"),
        (Regressor, "neg_mean_absolute_error", "Negative mean absolute error"),
    ],
)
def test_another_score_does_not_share_the_axis(kind, scoring, label):
    curves = {"loss_curve": [2.0, 1.0], "train_scores_": [0.5, 0.6], "scoring": scoring}
    display = from_estimator(kind(**curves, validation_scores_=[0.7, 0.8]), kind="score")
    assert data(display.lines_) == [[0.7, 0.8]]
    assert display.lines_[0].get_linestyle() == "--"
    assert display.ax_.get_ylabel() == label
    assert legend_texts(display) == ["validation"]
    # Without validation nothing was scored by it.
    display = from_estimator(kind(**curves), kind="score")
    assert data(display.lines_) == [[0.5, 0.6]]
    assert display.ax_.get_ylabel() in ("Accuracy", "R²")


@pytest.mark.parametrize(
    ("kind", "scoring", "label"), [(Classifier, "accuracy", "Accuracy"), (Regressor, "r2", "R²")]
)
def test_the_default_score_by_its_name(kind, scoring, label):
    curves = {"train_scores_": [0.5, 0.6], "validation_scores_": [0.7, 0.8]}
    display = from_estimator(kind(loss_curve=[2.0, 1.0], scoring=scoring, **curves), kind="score")
    assert data(display.lines_) == [[0.5, 0.6], [0.7, 0.8]]
    assert display.ax_.get_ylabel() == label


def test_different_quantities_do_not_share_an_axis():
    curves = {"loss_curve": [2.0, 1.0], "train_scores_": [0.5, 0.6]}
    mixed = {"c": Classifier(**curves), "r": Regressor(**curves)}
    with pytest.raises(ValueError, match=r"cannot share an axis; got Log loss, Squared error loss"):
        from_estimators(mixed)
    with pytest.raises(ValueError, match=r"cannot share an axis; got Accuracy, R²"):
        from_estimators(mixed, kind="score")
    assert not plt.get_fignums()
    losses = {name: Regressor(name, **curves) for name in ("squared_error", "poisson")}
    assert len(from_estimators(losses, kind="score").lines_) == 2
    with pytest.raises(ValueError, match="cannot share an axis"):
        from_estimators(losses)


# Several estimators


def test_a_colour_a_name_and_a_style_a_mode(fit):
    placements = {str(p): fit(p) for p in (None, "before", "after")}
    display = from_estimators(placements, kind="both")
    loss, score = display.lines_[:6], display.lines_[6:]
    assert data(loss) == [
        curve
        for clf in placements.values()
        for curve in (clf.loss_curve_, clf.validation_loss_curve_)
    ]
    assert [line.get_linestyle() for line in loss] == ["-", "--"] * 3
    colours = [line.get_color() for line in loss]
    assert colours == [line.get_color() for line in score]
    assert colours[::2] == colours[1::2]
    assert len(set(colours)) == 3
    texts = ["None", "before", "after", "training mode", "validation"]
    assert legend_texts(display) == texts
    handles = display.legend_.get_lines()
    assert [line.get_color() for line in handles[:3]] == colours[::2]
    assert {line.get_color() for line in handles[3:]} == {matplotlib.rcParams["text.color"]}
    assert [line.get_linestyle() for line in handles] == ["-"] * 4 + ["--"]


def test_names_need_not_be_strings(fit):
    display = from_estimators({None: fit(None), ("input", "after"): fit(("input", "after"))})
    assert legend_texts(display)[:2] == ["None", "('input', 'after')"]


def test_colours_come_from_the_property_cycle(fit):
    clf = fit()
    with plt.rc_context({"axes.prop_cycle": plt.cycler(color=["k", "m"])}):
        display = from_estimators({"a": clf, "b": clf})
    assert [line.get_color() for line in display.lines_] == ["k", "k", "m", "m"]


def test_a_name_keeps_its_colour_where_another_has_no_curve():
    curves = {"loss_curve": [2.0, 1.0]}
    display = from_estimators(
        {"lbfgs": Classifier(**curves), "adam": Classifier(**curves, train_scores_=[0.5, 0.6])},
        kind="both",
    )
    first, second, score = display.lines_
    assert score.axes is display.ax_[1]
    assert score.get_color() == second.get_color() != first.get_color()
    assert legend_texts(display) == ["lbfgs", "adam", "training mode"]


def test_a_second_display_on_the_same_axes(fit):
    first = from_estimators({"before": fit("before")})
    second = from_estimators({"after": fit("after")}, ax=first.ax_)
    assert second.ax_ is first.ax_
    assert second.lines_[0].get_color() != first.lines_[0].get_color()
    assert legend_texts(second) == ["before", "after", "training mode", "validation"]
    assert first.ax_.get_legend() is second.legend_


# Several runs


@pytest.fixture
def folds():
    """Three folds; the first stops after two epochs, the second after three."""
    return {
        "estimator": [
            Classifier(loss_curve=[9.0, 6.0], best_iter_=2),
            Classifier(loss_curve=[6.0, 3.0, 2.0], best_iter_=3),
            Classifier(loss_curve=[3.0, 0.0, 5.0, 1.0], best_iter_=2),
        ]
    }


def test_the_mean_ends_with_the_shortest_fold(folds):
    nan = np.nan
    display = from_cv_results(folds)
    (mean,) = display.lines_
    assert_array_equal(mean.get_xdata(), [1, 2, 3, 4])
    assert_array_equal(mean.get_ydata(), [6, 3, nan, nan])
    (filled,) = display.fill_between_
    std = np.std([3, 6, 9])
    assert_allclose(band(filled, 1), (6 - std, 6 + std))
    assert_allclose(band(filled, 2), (3 - std, 3 + std))
    assert band(filled, 3) is None
    # Each of the others goes on by itself, from where it stood.
    second, third = display.run_lines_
    assert_array_equal(second.get_ydata(), [nan, 3, 2, nan])
    assert_array_equal(third.get_ydata(), [nan, 0, 5, 1])
    for line in display.run_lines_:
        assert line.get_color() == mean.get_color()
        assert line.get_linestyle() == mean.get_linestyle()
        assert line.get_linewidth() < mean.get_linewidth()
    assert legend_texts(display) == ["training mode", "mean ± std", "single runs"]


def test_folds_of_equal_length(folds):
    folds["estimator"] = folds["estimator"][:1] * 2
    display = from_cv_results(folds)
    assert data(display.lines_) == [[9.0, 6.0]]
    assert not display.run_lines_
    assert legend_texts(display) == ["training mode", "mean ± std"]


def test_a_single_fold_has_no_band(folds):
    folds["estimator"] = folds["estimator"][:1]
    display = from_cv_results(folds)
    assert data(display.lines_) == [[9.0, 6.0]]
    assert not display.fill_between_
    assert legend_texts(display) == ["training mode"]


def test_cross_validate(iris):
    clf = MLPClassifierBN((8,), early_stopping=True, n_iter_no_change=3, random_state=0)
    clf.set_params(learning_rate_init=0.05, tol=0.0)
    clf = make_pipeline(StandardScaler(), clf)
    results = cross_validate(clf, *iris, cv=4, return_estimator=True, return_indices=True)
    networks = [fold[-1] for fold in results["estimator"]]
    n_epochs = sorted(network.n_iter_ for network in networks)
    assert n_epochs[0] < n_epochs[-1]
    display = from_cv_results(results, kind="both")
    attributes = ["loss_curve_", "validation_loss_curve_", "train_scores_", "validation_scores_"]
    for line, filled, attribute in zip(
        display.lines_, display.fill_between_, attributes, strict=True
    ):
        curves = np.array([getattr(network, attribute)[: n_epochs[0]] for network in networks])
        mean, std = curves.mean(axis=0), curves.std(axis=0)
        assert_allclose(line.get_ydata()[: n_epochs[0]], mean)
        assert np.isnan(line.get_ydata()[n_epochs[0] :]).all()
        assert_allclose(band(filled, n_epochs[0]), (mean[-1] - std[-1], mean[-1] + std[-1]))
        assert_allclose(filled.get_facecolor()[0, :3], matplotlib.colors.to_rgb(line.get_color()))
    assert [ax.get_ylabel() for ax in display.ax_] == ["Log loss", "Accuracy"]

    named = from_cv_results({"a": results, "b": results})
    assert len(named.lines_) == len(named.fill_between_) == 4
    assert len({line.get_color() for line in named.lines_}) == 2
    assert legend_texts(named)[:2] == ["a", "b"]


def test_curves_by_hand():
    curves = [
        {"train_loss": [2, 1], "name": "one run", "best_iter": 2},
        {"train_loss": [[2, 4], [1, 1]], "validation_score": np.array([0.5, 0.6])},
    ]
    display = TrainingCurveDisplay(curves=curves)
    assert display.curves is curves
    assert display.plot(kind="both", mark_best=True) is display
    assert data(display.lines_) == [[2, 1], [3, 1], [0.5, 0.6]]
    assert len(display.fill_between_) == 1
    assert [ax.get_ylabel() for ax in display.ax_] == ["Loss", "Score"]
    assert [mark.get_xdata().tolist() for mark in display.best_] == [[2]]
    first = display.figure_
    assert data(display.plot().lines_) == [[2, 1], [3, 1]]
    assert display.figure_ is not first
    assert not display.best_


# Options


def test_best_epochs(fit, folds):
    clf = fit(early_stopping=True)
    display = from_estimator(clf, mark_best=True)
    best = clf.best_iter_
    marks = [mark.get_xydata().tolist() for mark in display.best_]
    assert marks == [
        [[best, clf.loss_curve_[best - 1]]],
        [[best, clf.validation_loss_curve_[best - 1]]],
    ]
    assert legend_texts(display)[-1] == "best epoch"
    # Of several runs, each on its own curve.
    (mark,) = from_cv_results(folds, mark_best=True).best_
    assert mark.get_xydata().tolist() == [[2, 6], [3, 2], [2, 0]]


def test_axes_of_the_user(fit):
    clf = fit()
    figure, axes = plt.subplots(1, 3)
    display = from_estimator(clf, ax=axes[1])
    assert display.ax_ is axes[1]
    assert display.figure_ is figure
    display = from_estimators({"after": clf}, ax=[axes[0], axes[2]], kind="both")
    assert list(display.ax_) == [axes[0], axes[2]]
    assert [len(ax.lines) for ax in axes] == [2, 2, 2]
    assert from_cv_results({"estimator": [clf, clf]}, ax=axes[1]).ax_ is axes[1]
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="Expected ax to have 2 axes, got 1"):
        from_estimator(clf, ax=axes[0], kind="both")
    with pytest.raises(ValueError, match="Expected ax to have 1 axes, got 2"):
        from_estimator(clf, ax=axes[:2])


def test_keyword_arguments_of_the_user(fit, folds):
    display = from_estimator(fit(), line_kw={"lw": 3, "c": "k", "label": "mine"})
    for line in display.lines_:
        assert (line.get_linewidth(), line.get_color()) == (3, "k")
    assert legend_texts(display) == ["mine", "training mode", "validation"]
    display = from_estimators({"after": fit()}, line_kw={"ls": ":"})
    assert {line.get_linestyle() for line in display.lines_} == {":"}
    assert {line.get_linestyle() for line in display.legend_.get_lines()} == {":"}
    (filled,) = from_cv_results(folds, fill_between_kw={"fc": "r", "alpha": 0.5}).fill_between_
    assert_array_equal(filled.get_facecolor(), [[1, 0, 0, 0.5]])
    with pytest.raises(TypeError, match=r"linewidth.*lw|lw.*linewidth"):
        from_estimator(fit(), line_kw={"lw": 1, "linewidth": 2})


def test_the_estimator_is_left_alone(fit, iris, unchanged):
    clf = fit(early_stopping=True)
    copied = copy.deepcopy(clf)
    with unchanged(clf, iris[0]):
        display = from_estimator(clf, kind="both", mark_best=True)
        from_estimators({"a": clf}, log_scale=True)
        from_cv_results({"estimator": [clf, copied]})
        for values in display.curves[0].values():
            if isinstance(values, np.ndarray):
                values[:] = 0
        display.plot()


# Errors


def test_unfitted(fit):
    search = GridSearchCV(MLPClassifierBN(), {})
    for estimator in (
        MLPClassifierBN(),
        make_pipeline(StandardScaler(), MLPClassifierBN()),
        search,
    ):
        name = type(estimator).__name__
        with pytest.raises(NotFittedError, match=f"This {name} instance is not fitted yet"):
            from_estimator(estimator)
        with pytest.raises(NotFittedError, match=name):
            from_estimators({"fitted": fit(), "unfitted": estimator})
        with pytest.raises(NotFittedError, match=name):
            from_cv_results({"estimator": [fit(), estimator]})
    assert not plt.get_fignums()


def test_other_types(fit, iris):
    clf = fit()
    with pytest.raises(TypeError, match=r"Pipeline that ends in one.*LogisticRegression has no"):
        from_estimator(make_pipeline(LogisticRegression()).fit(*iris))
    with pytest.raises(TypeError, match=r"refit=True.*GridSearchCV has no loss_curve_"):
        from_estimator(GridSearchCV(clf, {}, cv=2, refit=False).fit(*iris))
    with pytest.raises(TypeError, match="is a class, not an instance"):
        from_estimator(MLPClassifierBN)
    with pytest.raises(TypeError, match="passthrough is not an estimator instance"):
        from_estimator(make_pipeline(clf, "passthrough"))
    with pytest.raises(TypeError, match="`estimators` must be a dict, got list"):
        from_estimators([clf])
    with pytest.raises(TypeError, match="`cv_results` must be a dict, got list"):
        from_cv_results([clf])
    assert not plt.get_fignums()


def test_cv_results_without_estimators(iris):
    results = cross_validate(MLPClassifierBN((8,), max_iter=2), *iris, cv=2)
    for cv_results in (results, {"a": results}):
        with pytest.raises(ValueError, match=r"required key 'estimator'.*return_estimator=True"):
            from_cv_results(cv_results)


def test_nothing_to_plot():
    for make in (from_estimators, from_cv_results):
        with pytest.raises(ValueError, match="There is no loss to plot"):
            make({})


def test_unknown_kind(fit):
    with pytest.raises(ValueError, match=r"Unknown kind: accuracy. Should be one of 'loss'"):
        from_estimator(fit(), kind="accuracy")
    assert not plt.get_fignums()


def test_without_matplotlib(fit, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"plot requires matplotlib.*skbn\[plot\]"):
        from_estimator(fit())
