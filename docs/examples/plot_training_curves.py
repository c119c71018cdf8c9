"""
=====================================================
Training curves: where batch normalization saves time
=====================================================

Two hidden layers of logistic units learn handwritten digits with plain stochastic gradient
descent: an old-fashioned network that learns slowly, because its gradients shrink from layer to
layer. Here are its training curves with batch normalization on the input, before or after each
activation, and without any, drawn by :class:`skbn.TrainingCurveDisplay`: once on one split of the
data, once over the folds of a cross-validation.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_validate, train_test_split

from skbn import MLPClassifierBN, TrainingCurveDisplay

# %%
# The colours are those of Okabe and Ito, which colour-blind readers can tell apart. A display takes
# the colours of matplotlib's property cycle, one a name.

PLACEMENTS = {"none": None, "input": "input", "before": "before", "after": "after"}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 120,
    "savefig.dpi": 120,
}
COLOURS = ["#5c5c5c", "#009e73", "#d55e00", "#0072b2"]


def make_classifier(batch_norm, **options):
    """Return the network with batch normalization in the given place."""
    return MLPClassifierBN(
        (64, 64),
        "logistic",
        batch_norm=batch_norm,
        solver="sgd",
        learning_rate_init=0.02,
        batch_size=32,
        max_iter=60,
        random_state=0,
        **options,
    )


# %%
# One split
# ---------
# ``X_val`` and ``y_val`` give every epoch a validation loss and score. The solid curves are what
# training itself sees, mini-batches in training mode, so they may well lie above the dashed ones.
# Without batch normalization the network guesses for a dozen epochs, with it on the input for two.
# Next to the activations, ten epochs bring a lower validation loss than the bare network has after
# sixty.


def fit_placements():
    """Fit every placement on the same split; returns {name: classifier}."""
    X, y = load_digits(return_X_y=True)
    X_train, X_val, y_train, y_val = train_test_split(X / 16, y, random_state=0, stratify=y)
    return {
        name: make_classifier(batch_norm, n_iter_no_change=np.inf).fit(
            X_train, y_train, X_val=X_val, y_val=y_val
        )
        for name, batch_norm in PLACEMENTS.items()
    }


# %%
# Five folds
# ----------
# With ``early_stopping`` every fold holds out rows of its own, and stops when it will. A line is
# the mean and its band the standard deviation as far as *all* folds go; from there each fold is on
# its own. The dots are the epochs whose weights are kept.


def cross_validate_placements():
    """Cross-validate every placement; returns {name: cv_results}."""
    X, y = load_digits(return_X_y=True)
    return {
        name: cross_validate(
            make_classifier(batch_norm, early_stopping=True), X / 16, y, return_estimator=True
        )
        for name, batch_norm in PLACEMENTS.items()
    }


def main():
    """Fit, print the scores, draw two figures."""
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        # Sixty epochs are meant to be the end: that max_iter is reached is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifiers = fit_placements()
        cv_results = cross_validate_placements()
    for name, results in cv_results.items():
        scores, epochs = results["test_score"], [fit.n_iter_ for fit in results["estimator"]]
        print(
            f"{name:7} accuracy {scores.mean():.3f} ± {scores.std():.3f} "
            f"after {min(epochs)} to {max(epochs)} epochs"
        )
    with plt.rc_context(STYLE | {"axes.prop_cycle": plt.cycler(color=COLOURS)}):
        displays = {
            "training_curves": TrainingCurveDisplay.from_estimators(
                classifiers, kind="both", log_scale=True
            ),
            "training_curves_folds": TrainingCurveDisplay.from_cv_results(
                cv_results, kind="both", log_scale=True, mark_best=True
            ),
        }
        for name, display in displays.items():
            path = Path(f"{name}.png").resolve()
            display.figure_.savefig(path)
            print(f"figure: {path}")
    # Without a display, matplotlib chooses the Agg backend by itself.
    if plt.get_backend().lower() != "agg":
        plt.show()


if __name__ == "__main__":
    main()
