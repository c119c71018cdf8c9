"""
=====================================================
Training curves: where batch normalization saves time
=====================================================

Two hidden layers of logistic units learn handwritten digits with plain stochastic gradient
descent: an old-fashioned network that learns slowly, because its gradients shrink from layer to
layer. :class:`skbn.TrainingCurveDisplay` draws how it learns without batch normalization and with
it, on the input, before or after each activation: over five seeds on one split of the data, then
over the folds of a cross-validation.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_validate, train_test_split

from skbn import MLPClassifierBN, TrainingCurveDisplay

# Sixty epochs are meant to be the end: that max_iter is reached is no news.
warnings.filterwarnings("ignore", category=ConvergenceWarning)
plt.rcParams.update(
    {
        "axes.prop_cycle": plt.cycler(color=["#5c5c5c", "#009e73", "#d55e00", "#0072b2"]),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "legend.frameon": False,
    }
)

# %%
# The network
# -----------
# Four times the same, but for the place of batch normalization. (A display takes one colour of
# matplotlib's property cycle for each name; those above are of Okabe and Ito, which colour-blind
# readers can tell apart.)

placements = {"none": None, "input": "input", "before": "before", "after": "after"}
X, y = load_digits(return_X_y=True)
X /= 16


def network(batch_norm, *, random_state, **options):
    """Return the network with batch normalization in the given place."""
    return MLPClassifierBN(
        (64, 64),
        "logistic",
        batch_norm=batch_norm,
        solver="sgd",
        learning_rate_init=0.02,
        batch_size=32,
        max_iter=60,
        random_state=random_state,
        **options,
    )


# %%
# One split, five seeds
# ---------------------
# ``X_val`` and ``y_val`` give every epoch a validation loss and score. The display takes what
# :func:`~sklearn.model_selection.cross_validate` returns, or any other dict that holds fitted
# estimators under "estimator": here, repetitions with other seeds. A line is their mean, a band
# their standard deviation.

X_train, X_val, y_train, y_val = train_test_split(X, y, random_state=0, stratify=y)
repetitions = {
    name: {
        "estimator": [
            network(batch_norm, random_state=seed, n_iter_no_change=np.inf).fit(
                X_train, y_train, X_val=X_val, y_val=y_val
            )
            for seed in range(5)
        ]
    }
    for name, batch_norm in placements.items()
}

figure, axes = plt.subplots(2, figsize=(6.4, 8.4), sharex=True)
display = TrainingCurveDisplay.from_cv_results(repetitions, ax=axes, kind="both", log_scale=True)
axes[0].set(title="Next to the activations, learning starts at once", xlabel="")
plt.show()

# %%
# Without batch normalization the network does little better than guess for ten epochs, with it on
# the input for two. Next to the activations, ten epochs bring a lower validation loss than the bare
# network has after sixty; then they level off, and on the input, after sixty, is as good. The solid
# curves are what training itself sees, mini-batches in training mode, so they may well be worse
# than the dashed ones.

for name, fits in repetitions.items():
    scores, losses = (
        np.mean([getattr(fit, attribute) for fit in fits["estimator"]], axis=0)
        for attribute in ("validation_scores_", "validation_loss_curve_")
    )
    print(
        f"{name:7} first epoch with 80%: {np.argmax(scores >= 0.8) + 1:2}; "
        f"loss after 10 epochs {losses[9]:.2f}, after 60 {losses[-1]:.2f}"
    )

# %%
# Five folds, early stopping
# --------------------------
# With ``early_stopping`` every fold holds out rows of its own, and stops when it will. Lines and
# bands go as far as *all* folds do; from there each fold is on its own. The dots are the epochs
# whose weights are kept.

cv_results = {
    name: cross_validate(
        network(batch_norm, random_state=0, early_stopping=True), X, y, return_estimator=True
    )
    for name, batch_norm in placements.items()
}
epochs = {name: [fit.n_iter_ for fit in cv["estimator"]] for name, cv in cv_results.items()}
epochs["next to activations"] = epochs["before"] + epochs["after"]
ranges = {name: f"{min(counts)} to {max(counts)}" for name, counts in epochs.items()}

figure, axes = plt.subplots(2, figsize=(6.4, 8.4), sharex=True)
TrainingCurveDisplay.from_cv_results(
    cv_results, ax=axes, kind="both", log_scale=True, mark_best=True
)
title = f"Next to activations: {ranges['next to activations']} epochs, not {ranges['none']}"
axes[0].set(title=title, xlabel="")
plt.show()

# %%
# On the rows that the folds leave out, the network that learned slowly is also the least accurate:
# some of its folds would have needed more than sixty epochs.

for name, results in cv_results.items():
    scores = results["test_score"]
    print(
        f"{name:7} accuracy {scores.mean():.3f} ± {scores.std(ddof=1):.3f} "
        f"after {ranges[name]} epochs"
    )
