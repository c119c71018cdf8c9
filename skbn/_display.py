"""Training curves drawn with matplotlib, by scikit-learn's Display convention.

What is drawn is copied from the fitted attributes, so a display holds numbers and no estimators,
and scikit-learn's own MLPs can stand beside those of skbn. Colour says which estimator, line style
which mode: two channels for two questions, so that five placements need seven entries in a legend
and not ten.

Over several runs, such as folds, mean and band end where the first run ends. The mean of those that
go on was rejected: with early stopping they are the ones that still improve, so it jumps for the
better whenever a run ends. What is left of them is drawn thinly, run by run.
"""
# SPDX-License-Identifier: BSD-3-Clause

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

    from skbn._typing import Array

ATTRIBUTES = {
    "train_loss": "loss_curve_",
    "validation_loss": "validation_loss_curve_",
    "train_score": "train_scores_",
    "validation_score": "validation_scores_",
}
MODES = {"train": ("training mode", "-"), "validation": ("validation", "--")}
KINDS = {"loss": ("loss",), "score": ("score",), "both": ("loss", "score")}

BAND = {"alpha": 0.2, "linewidth": 0}
SINGLE_RUN = {"linewidth": 0.7, "alpha": 0.8}
BEST = {"linestyle": "none", "marker": "o", "markersize": 4.5}


def _check_dict(name, value):
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must be a dict, got {type(value).__name__}.")


def _trained_network(estimator):
    """Return the fitted MLP inside an estimator."""
    check_is_fitted(estimator)
    if isinstance(estimator, Pipeline):
        return _trained_network(estimator[-1])
    for inner in ("best_estimator_", "regressor_"):
        if hasattr(estimator, inner):
            return _trained_network(getattr(estimator, inner))
    if not hasattr(estimator, "loss_curve_"):
        raise TypeError(
            "Expected a fitted MLPClassifierBN or MLPRegressorBN, a Pipeline that ends in one or a "
            f"search (with refit=True) over either; {type(estimator).__name__} has no loss_curve_."
        )
    return estimator


def _loss_name(network):
    name = "log" if is_classifier(network) else getattr(network, "loss", "")
    return f"{name} loss".replace("_", " ").strip().capitalize()


def _score_names(network):
    """Return what the scores of training and those of validation measure."""
    name, scorer = ("Accuracy", "accuracy") if is_classifier(network) else ("R²", "r2")
    scoring = getattr(network, "scoring", None)
    if scoring is None or scoring == scorer:
        return name, name
    if callable(scoring):
        scoring = getattr(scoring, "__name__", "score")
    elif scoring == "loss":
        scoring = "neg_loss"  # a score is greater where it is better
    return name, scoring.replace("neg_", "negative ").replace("_", " ").capitalize()


def _read_curves(estimators, name=None):
    """Return the curves of estimators that are runs of the same experiment."""
    networks = [_trained_network(estimator) for estimator in estimators]
    curves = {} if name is None else {"name": name}
    for key, attribute in ATTRIBUTES.items():
        runs = [getattr(network, attribute, None) for network in networks]
        runs = [() if run is None else run for run in runs]
        # One column a run, NaN where it has ended.
        values = np.array([*zip_longest(*runs, fillvalue=np.nan)], dtype=float)
        if not np.isnan(values).all():
            curves[key] = values
    curves["loss_name"] = _loss_name(networks[0])
    curves["score_name"], validation_name = _score_names(networks[0])
    if "validation_score" in curves and validation_name != curves["score_name"]:
        curves.pop("train_score", None)
        curves["score_name"] = validation_name
    best_iters = [getattr(network, "best_iter_", None) for network in networks]
    if None not in best_iters:
        curves["best_iter"] = np.array(best_iters)
    return curves


class TrainingCurveDisplay:
    """Training curves: loss or score of every epoch, in training mode and in validation.

    It is recommended to use :meth:`from_estimator`, :meth:`from_estimators` or
    :meth:`from_cv_results` to create a display. All parameters are stored as attributes.

    Parameters
    ----------
    curves : list of dict
        One dict a colour, with any of these keys:

        - "train_loss", "validation_loss", "train_score", "validation_score": array-like of shape
          (n_epochs,) or (n_epochs, n_runs), NaN where nothing was recorded. Several runs are
          drawn as their mean with a band of one standard deviation to either side.
        - "best_iter": int or array-like of shape (n_runs,), counted from 1.
        - "name": entry in the legend.
        - "loss_name", "score_name": what the values measure, the label of the y axis.

    Attributes
    ----------
    ax_ : matplotlib Axes or ndarray of two Axes
        Axes with the curves; two of them with ``kind="both"``, the loss first.

    figure_ : matplotlib Figure
        Figure containing the curves.

    lines_ : list of matplotlib Line2D
        The curves, of several runs their mean: axes by axes, dict by dict, training mode before
        validation.

    fill_between_ : list of matplotlib artists
        The bands, in the same order; empty where nothing has several runs.

    run_lines_ : list of matplotlib Line2D
        What single runs have beyond the last epoch that all runs of their dict have.

    best_ : list of matplotlib Line2D
        The marks of the best epochs, one artist for each of `lines_`; empty unless asked for.

    legend_ : matplotlib Legend
        The legend, in the last axes or to the right of them.

    See Also
    --------
    sklearn.model_selection.LearningCurveDisplay : Scores against the number of training rows.

    Notes
    -----
    The curve in training mode is what training itself sees: mini-batches normalized by their own
    statistics, with dropout, averaged while the weights move; the loss with its L2 penalty. The
    validation curve is what prediction gives after the epoch, without penalty. These are two
    questions: either curve may be the lower one.

    With `scoring` set, `validation_scores_` measure something else than `train_scores_`. The
    training scores are then left out, because different quantities share no axis.

    Colours come from matplotlib's property cycle. ``plt.style.use("petroff10")`` or, for older
    versions, ``plt.style.use("tableau-colorblind10")`` make them safe for colour-blind readers.

    Examples
    --------
    What a fit has recorded, and several fits side by side:

    >>> from sklearn.datasets import load_iris
    >>> from skbn import MLPClassifierBN, TrainingCurveDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MLPClassifierBN((20,), learning_rate_init=0.01, random_state=0).fit(X, y)
    >>> display = TrainingCurveDisplay.from_estimator(clf, kind="both")
    >>> plain = MLPClassifierBN((20,), batch_norm=None, learning_rate_init=0.01, random_state=0)
    >>> TrainingCurveDisplay.from_estimators({"none": plain.fit(X, y), "after": clf})
    <...>

    Numbers from elsewhere:

    >>> curves = {"train_loss": [0.7, 0.5, 0.4], "validation_loss": [0.6, 0.5, 0.5]}
    >>> TrainingCurveDisplay(curves=[curves]).plot()
    <...>
    """

    ax_: Any
    figure_: Figure
    lines_: list[Line2D]
    fill_between_: list[Artist]
    run_lines_: list[Line2D]
    best_: list[Line2D]
    legend_: Legend

    def __init__(self, *, curves: Sequence[Mapping[str, Any]]) -> None:
        self.curves = curves

    def plot(
        self,
        ax: Axes | Sequence[Axes] | Array | None = None,
        *,
        kind: str = "loss",
        log_scale: bool = False,
        mark_best: bool = False,
        line_kw: dict[str, Any] | None = None,
        fill_between_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Plot visualization.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of two Axes, default=None
            Axes object to plot on, two of them with ``kind="both"``. If `None`, a new figure and
            axes are created.

        kind : {"loss", "score", "both"}, default="loss"
            Whether to draw the loss, the score, or both side by side.

        log_scale : bool, default=False
            Whether the axis of the loss is logarithmic.

        mark_best : bool, default=False
            Whether to mark the best epoch of each run, `best_iter_`, on its curves.

        line_kw : dict, default=None
            Additional keyword arguments passed to matplotlib's `plot` used to draw `lines_`.

        fill_between_kw : dict, default=None
            Additional keyword arguments passed to matplotlib's `fill_between` used to draw the
            bands.

        Returns
        -------
        display : :class:`~skbn.TrainingCurveDisplay`
            Object that stores the curves and what was drawn.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__}.plot requires matplotlib. You can install matplotlib with "
                "`pip install 'skbn[plot]'`"
            ) from error
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.collections import PolyCollection
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        if kind not in KINDS:
            raise ValueError(f"Unknown kind: {kind}. Should be one of 'loss', 'score' or 'both'.")
        labels = {quantity: self._label(quantity) for quantity in KINDS[kind]}
        line_kw = normalize_kwargs(line_kw or {}, Line2D)
        fill_between_kw = normalize_kwargs(fill_between_kw or {}, PolyCollection)
        beside = {}
        if ax is None:
            width, height = plt.rcParams["figure.figsize"]
            size = ((len(labels) + 0.25) * width, height)  # a quarter for the legend
            _, ax = plt.subplots(ncols=len(labels), figsize=size, layout="constrained")
            beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
        axes = np.atleast_1d(ax)  # type: ignore[arg-type]
        if axes.shape != (len(labels),):
            raise ValueError(f"Expected ax to have {len(labels)} axes, got {axes.size}.")

        self.ax_ = axes if kind == "both" else axes[0]
        self.figure_ = axes[0].figure
        self.lines_, self.fill_between_, self.run_lines_, self.best_ = [], [], [], []
        colors, linestyles = dict[int, Any](), dict[str, Any]()
        for panel, (quantity, label) in zip(axes, labels.items(), strict=True):
            for index, mode, runs in self._recorded(quantity):
                style = {"linestyle": MODES[mode][1]}
                if index in colors:
                    style["color"] = colors[index]
                else:
                    style["label"] = self.curves[index].get("name")
                line = self._plot_runs(panel, runs, style | line_kw, fill_between_kw)
                colors[index], linestyles[mode] = line.get_color(), line.get_linestyle()
                if mark_best and "best_iter" in self.curves[index]:
                    best = np.atleast_1d(self.curves[index]["best_iter"])
                    values = runs[best - 1, np.arange(len(best))]
                    self.best_ += panel.plot(best, values, color=colors[index], **BEST)
            panel.set(xlabel="Epoch", ylabel=label)
            panel.xaxis.set_major_locator(
                MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True, min_n_ticks=1)
            )
            if quantity == "loss" and log_scale:
                panel.set_yscale("log")
        entries = self._legend_entries(axes, linestyles, plt.rcParams["text.color"])
        self.legend_ = axes[-1].legend([*entries.values()], [*entries], handlelength=2.6, **beside)
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        ax: Axes | Sequence[Axes] | Array | None = None,
        kind: str = "loss",
        log_scale: bool = False,
        mark_best: bool = False,
        line_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Create a display of the training curves of one fitted estimator.

        Parameters
        ----------
        estimator : estimator instance
            Fitted :class:`~skbn.MLPClassifierBN` or :class:`~skbn.MLPRegressorBN`, a
            :class:`~sklearn.pipeline.Pipeline` that ends in one, or a search such as
            :class:`~sklearn.model_selection.GridSearchCV` over either, whose best estimator is
            drawn. scikit-learn's own MLPs will do, with the curves that they record.

        ax : matplotlib Axes or array-like of two Axes, default=None
            Axes object to plot on, two of them with ``kind="both"``. If `None`, a new figure and
            axes are created.

        kind : {"loss", "score", "both"}, default="loss"
            Whether to draw the loss, the score, or both side by side.

        log_scale : bool, default=False
            Whether the axis of the loss is logarithmic.

        mark_best : bool, default=False
            Whether to mark the best epoch of each run, `best_iter_`, on its curves.

        line_kw : dict, default=None
            Additional keyword arguments passed to matplotlib's `plot` used to draw `lines_`.

        Returns
        -------
        display : :class:`~skbn.TrainingCurveDisplay`
            Object that stores the curves and what was drawn.

        Raises
        ------
        ValueError
            If the estimator recorded nothing of the `kind` asked for.
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it is of another type.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.model_selection import train_test_split
        >>> from skbn import MLPClassifierBN, TrainingCurveDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> X_train, X_val, y_train, y_val = train_test_split(X, y, random_state=0)
        >>> clf = MLPClassifierBN((20,), batch_size=32, learning_rate_init=0.01, random_state=0)
        >>> clf = clf.fit(X_train, y_train, X_val=X_val, y_val=y_val)
        >>> TrainingCurveDisplay.from_estimator(clf, kind="both")
        <...>
        """
        return cls(curves=[_read_curves([estimator])]).plot(
            ax,
            kind=kind,
            log_scale=log_scale,
            mark_best=mark_best,
            line_kw=line_kw,
        )

    @classmethod
    def from_estimators(
        cls,
        estimators: Mapping[Any, Any],
        *,
        ax: Axes | Sequence[Axes] | Array | None = None,
        kind: str = "loss",
        log_scale: bool = False,
        mark_best: bool = False,
        line_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Create a display that compares fitted estimators, a colour each.

        Parameters
        ----------
        estimators : dict of str to estimator instance
            Fitted estimators, as for :meth:`from_estimator`, by their names in the legend.

        ax : matplotlib Axes or array-like of two Axes, default=None
            Axes object to plot on, two of them with ``kind="both"``. If `None`, a new figure and
            axes are created.

        kind : {"loss", "score", "both"}, default="loss"
            Whether to draw the loss, the score, or both side by side.

        log_scale : bool, default=False
            Whether the axis of the loss is logarithmic.

        mark_best : bool, default=False
            Whether to mark the best epoch of each run, `best_iter_`, on its curves.

        line_kw : dict, default=None
            Additional keyword arguments passed to matplotlib's `plot` used to draw `lines_`.

        Returns
        -------
        display : :class:`~skbn.TrainingCurveDisplay`
            Object that stores the curves and what was drawn.

        Raises
        ------
        ValueError
            If no estimator recorded anything of the `kind` asked for, or if their losses or
            scores are different quantities.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skbn import MLPClassifierBN, TrainingCurveDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> options = {"batch_size": 32, "learning_rate_init": 0.01, "random_state": 0}
        >>> placements = {
        ...     batch_norm: MLPClassifierBN((20,), batch_norm=batch_norm, **options).fit(X, y)
        ...     for batch_norm in (None, "before", "after")
        ... }
        >>> TrainingCurveDisplay.from_estimators(placements, log_scale=True)
        <...>
        """
        _check_dict("estimators", estimators)
        curves = [_read_curves([estimator], str(name)) for name, estimator in estimators.items()]
        return cls(curves=curves).plot(
            ax,
            kind=kind,
            log_scale=log_scale,
            mark_best=mark_best,
            line_kw=line_kw,
        )

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[Any, Any],
        *,
        ax: Axes | Sequence[Axes] | Array | None = None,
        kind: str = "loss",
        log_scale: bool = False,
        mark_best: bool = False,
        line_kw: dict[str, Any] | None = None,
        fill_between_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Create a display of the mean over the folds of a cross-validation.

        The line is the mean over all folds and the band one standard deviation to either side.
        Folds may differ in their number of epochs. Line and band end with the shortest; from
        there the others are drawn as thin lines, one a fold, because a mean over those that
        happen to go on would be another quantity.

        Parameters
        ----------
        cv_results : dict or dict of str to dict
            What :func:`~sklearn.model_selection.cross_validate` returns with
            ``return_estimator=True``, or several such dicts by their names in the legend. Of
            each only the key "estimator" is used: fitted estimators, as for
            :meth:`from_estimator`. So a dict with that key can also hold repetitions with
            different seeds.

        ax : matplotlib Axes or array-like of two Axes, default=None
            Axes object to plot on, two of them with ``kind="both"``. If `None`, a new figure and
            axes are created.

        kind : {"loss", "score", "both"}, default="loss"
            Whether to draw the loss, the score, or both side by side.

        log_scale : bool, default=False
            Whether the axis of the loss is logarithmic.

        mark_best : bool, default=False
            Whether to mark the best epoch of each run, `best_iter_`, on its curves.

        line_kw : dict, default=None
            Additional keyword arguments passed to matplotlib's `plot` used to draw `lines_`.

        fill_between_kw : dict, default=None
            Additional keyword arguments passed to matplotlib's `fill_between` used to draw the
            bands.

        Returns
        -------
        display : :class:`~skbn.TrainingCurveDisplay`
            Object that stores the curves and what was drawn.

        Raises
        ------
        ValueError
            If there are no estimators in `cv_results`, if they recorded nothing of the `kind`
            asked for, or if their losses or scores are different quantities.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.model_selection import cross_validate
        >>> from skbn import MLPClassifierBN, TrainingCurveDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = MLPClassifierBN((20,), batch_size=32, learning_rate_init=0.01, random_state=0)
        >>> cv_results = {
        ...     batch_norm: cross_validate(
        ...         clf.set_params(batch_norm=batch_norm), X, y, return_estimator=True
        ...     )
        ...     for batch_norm in (None, "before", "after")
        ... }
        >>> TrainingCurveDisplay.from_cv_results(cv_results)
        <...>
        """
        _check_dict("cv_results", cv_results)
        if all(isinstance(value, Mapping) for value in cv_results.values()):
            named = {str(name): results for name, results in cv_results.items()}
        else:
            named = {None: cv_results}
        if not all("estimator" in results for results in named.values()):
            raise ValueError(
                "`cv_results` does not contain the required key 'estimator'. Set explicitly the "
                "parameter `return_estimator=True` to the function `cross_validate`."
            )
        curves = [_read_curves(results["estimator"], name) for name, results in named.items()]
        return cls(curves=curves).plot(
            ax,
            kind=kind,
            log_scale=log_scale,
            mark_best=mark_best,
            line_kw=line_kw,
            fill_between_kw=fill_between_kw,
        )

    def _recorded(self, quantity):
        """Yield index, mode and values, of shape (n_epochs, n_runs), of every curve there is."""
        for index, curves in enumerate(self.curves):
            for mode in MODES:
                if (values := curves.get(f"{mode}_{quantity}")) is not None:
                    yield index, mode, np.asarray(values, dtype=float).reshape(len(values), -1)

    def _label(self, quantity):
        """Return what the values measure: one thing, or they cannot share an axis."""
        recorded = {index for index, _, _ in self._recorded(quantity)}
        if not recorded:
            raise ValueError(f"There is no {quantity} to plot: none was recorded.")
        default = quantity.capitalize()
        names = {self.curves[index].get(f"{quantity}_name", default) for index in recorded}
        if len(names) > 1:
            raise ValueError(
                f"Different quantities cannot share an axis; got {', '.join(sorted(names))}."
            )
        return names.pop()

    def _plot_runs(self, ax, runs, line_kw, fill_between_kw):
        """Draw one curve: a line, and with several runs a band and what single runs have beyond."""
        epochs = np.arange(1, len(runs) + 1)
        mean, std = runs.mean(axis=1), runs.std(axis=1)  # NaN where one of the runs is
        missing = np.isnan(mean)
        before, after = np.r_[True, missing[:-1]], np.r_[missing[1:], True]
        alone = ~missing & before & after  # an epoch between gaps makes no line
        if alone.any() and "marker" not in line_kw:
            line_kw = {"marker": ".", "markevery": alone} | line_kw
        (line,) = ax.plot(epochs, mean, **line_kw)
        self.lines_.append(line)
        if runs.shape[1] == 1:
            return line
        style = {"facecolor": line.get_color()} | BAND | fill_between_kw
        self.fill_between_.append(ax.fill_between(epochs, mean - std, mean + std, **style))
        longer = (missing[:, None] & ~np.isnan(runs)).any(axis=0)
        if longer.any():
            style = {"color": line.get_color(), "linestyle": line.get_linestyle()} | SINGLE_RUN
            beyond = np.where((missing | after)[:, None], runs, np.nan)
            self.run_lines_ += ax.plot(epochs, beyond[:, longer], **style)
        return line

    def _legend_entries(self, axes, linestyles, color):
        """Return the legend: names in their colours, then in `color` what holds for all of them."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles = [ax.get_legend_handles_labels() for ax in axes]
        entries = {label: handle for pair in handles for handle, label in zip(*pair, strict=True)}
        for mode, linestyle in linestyles.items():
            entries[MODES[mode][0]] = Line2D([], [], color=color, linestyle=linestyle)
        if self.fill_between_:
            entries["mean ± std"] = Patch(facecolor=color, **BAND)
        if self.run_lines_:
            entries["single runs"] = Line2D([], [], color=color, **SINGLE_RUN)
        if self.best_:
            entries["best epoch"] = Line2D([], [], color=color, **BEST)
        return entries
