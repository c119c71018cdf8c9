"""
==================================================
Higher learning rates: how far, and what they give
==================================================

Batch normalization is said to allow much higher learning rates. Here is how much higher: two hidden
layers of 64 rectified linear units learn handwritten digits with rates from 0.0001 to 10, with each
placement of batch normalization and without, with plain gradient descent and with Adam, four times
each.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings
from copy import deepcopy
from itertools import product
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedShuffleSplit

from skbn import MLPClassifierBN, fit_many

# Ten epochs are meant to be the end: that max_iter is reached is no news.
warnings.filterwarnings("ignore", category=ConvergenceWarning)
plt.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "legend.frameon": False,
    }
)

# %%
# Eleven rates
# ------------
# :func:`~skbn.fit_many` trains all networks of a solver in one call. ``rows`` says which rows each
# network learns from: another split for every seed. Some rates are too high, on purpose. Training
# that diverges is an error, and ``return_exceptions=True`` puts it in the place of the network that
# it concerns, while the others go on.

X, y = load_digits(return_X_y=True)
X /= 16
splits = list(StratifiedShuffleSplit(4, test_size=0.25, random_state=0).split(X, y))
placements = {"none": None, "input": "input", "before": "before", "after": "after"}
colours = {"none": "#5c5c5c", "input": "#009e73", "before": "#d55e00", "after": "#0072b2"}
rates = 10 ** np.arange(-4, 1.5, 0.5)


def sweep(solver, max_iter):
    """Fit every placement with every rate on every split; return networks or their errors."""
    networks = [
        MLPClassifierBN(
            (64, 64),
            batch_norm=batch_norm,
            solver=solver,
            learning_rate_init=rate,
            batch_size=32,
            max_iter=max_iter,
            n_iter_no_change=np.inf,
            random_state=seed,
        )
        for batch_norm, rate, seed in product(placements.values(), rates, range(len(splits)))
    ]
    rows = [train for train, _ in splits] * (len(networks) // len(splits))
    fitted = fit_many(networks, X, y, rows=rows, return_exceptions=True)
    return np.reshape(np.array(fitted, dtype=object), (len(placements), len(rates), len(splits)))


def score(networks):
    """Accuracy on the test rows of each split, by placement and rate; NaN where it diverged."""
    scores = np.full(networks.shape, np.nan)
    for (place, rate, seed), clf in np.ndenumerate(networks):
        if not isinstance(clf, Exception):
            _, test = splits[seed]
            scores[place, rate, seed] = clf.score(X[test], y[test])
    return dict(zip(placements, scores, strict=True))


networks = {solver: sweep(solver, max_iter=10) for solver in ("sgd", "adam")}
scores = {solver: score(fitted) for solver, fitted in networks.items()}

# %%
# Lines are means over the four splits, bands go from the least to the largest. A cross marks a rate
# with which training diverged on at least one split.


def draw(ax, scores, labels):
    """One line a placement, with its label at the given place."""
    ax.axhline(0.1, color="k", lw=0.8, ls=":")
    for position, (name, values) in enumerate(scores.items()):
        diverged = np.isnan(values)
        some = ~diverged.all(axis=1)  # the rates that at least one network has survived
        low, high = np.nanmin(values[some], axis=1), np.nanmax(values[some], axis=1)
        ax.fill_between(rates[some], low, high, color=colours[name], alpha=0.2, lw=0)
        means = np.nanmean(values[some], axis=1)
        ax.plot(rates[some], means, "o-", color=colours[name], lw=2, ms=4)
        failed = rates[diverged.any(axis=1)]
        ax.plot(failed, np.full(len(failed), -0.03 * position), "x", color=colours[name], mew=2)
        ax.text(*labels[name], name, color=colours[name], fontweight="bold")
    ax.set(xscale="log", ylim=(-0.12, 1.02), ylabel="accuracy on the test rows")


labels = {
    "sgd": {"none": (0.05, 0.3), "input": (0.02, 0.6), "before": (0.45, 0.85), "after": (0.4, 0.7)},
    "adam": {
        "none": (0.16, 0.55),
        "input": (0.02, 0.4),
        "before": (0.55, 0.55),
        "after": (2, 0.95),
    },
}
figure, (sgd, adam) = plt.subplots(2, figsize=(6.4, 8), sharex=True)
draw(sgd, scores["sgd"], labels["sgd"])
draw(adam, scores["adam"], labels["adam"])
sgd.text(10, 0.12, "guessing", ha="right")
sgd.text(0.6, -0.08, "errors", ha="right")
sgd.set_title("Gradient descent: at 0.3, only next to the activations")
adam.set_title("Adam: after the activations, at any of these rates")
adam.set_xlabel("learning rate")
plt.show()

# %%
# How wide is the range? These are the rates with a mean accuracy of 90% and more, and the best.

ranges, best = {}, {}
for solver, by_placement in scores.items():
    for name, values in by_placement.items():
        means = np.nan_to_num(values.mean(axis=1))
        good = rates[means >= 0.9]
        ranges[solver, name] = good.min(), good.max()
        best[solver, name] = means.max(), rates[means.argmax()]
        print(
            f"{solver:4} {name:6} 90% from {good.min():.5f} to {good.max():.2f}; "
            f"best {means.max():.3f} at {rates[means.argmax()]:.4f}"
        )

# %%
# - Next to the activations, gradient descent still learns at 0.3, where the plain network guesses,
#   before them far better than after. The range grows downwards too: small rates bring the network
#   further in ten epochs.
# - With Adam and batch normalization after the activations nothing fails, up to 10, though rates
#   above 0.1 cost six points and more.
# - The *best* rate is not higher. With gradient descent it is even lower than the plain network's,
#   and the accuracy there is better by one to two points. What the wide range gives is that the
#   choice matters less.
# - On the **input** alone the range does not grow: it lies lower.

# %%
# What diverged, and how
# ----------------------
# A network whose weights overflow could only predict nonsense, so ``fit`` refuses to end like that.
# The error says where it happened, and the estimator is as it was before. That a fit survives does
# not mean that it has learned: only after the activations do rates that are too high all end in
# errors; elsewhere most of them end in guessing, without one. The last line is one of the errors.

for name, fitted in zip(placements, networks["sgd"], strict=True):
    failed = [clf for clf in fitted.flat if isinstance(clf, Exception)]
    guessing = np.sum(scores["sgd"][name] < 0.2)
    print(f"{name:6} {len(failed):2} of {fitted.size} diverged, {guessing:2} guess")
print(fill(str(failed[-1]), 80))

# %%
# What a rate is worth in one epoch
# ---------------------------------
# The same networks with gradient descent, after a single epoch: 43 steps.

early = score(sweep("sgd", max_iter=1))

figure, ax = plt.subplots(figsize=(6.4, 4.6))
draw(
    ax,
    early,
    {"none": (0.012, 0.6), "input": (0.011, 0.78), "before": (0.2, 0.9), "after": (4e-4, 0.68)},
)
plain, _ = best["sgd", "none"]
ax.axhline(plain, color=colours["none"], ls="--", lw=1.5)
ax.text(1e-4, plain + 0.01, "none, after ten epochs", color=colours["none"], va="bottom")
ax.set(xlabel="learning rate", ylim=(0, 1.05))
ax.set_title("Before the activations, one epoch is nearly worth ten")
plt.show()

for name, values in early.items():
    means = np.nan_to_num(values.mean(axis=1))
    print(f"{name:6} {means.max():.3f} at {rates[means.argmax()]:.4f}")

# %%
# With batch normalization before the activations, one epoch at the best rate comes within a point
# of the plain network after ten, and after them within three points. There the smallest rates are
# not lost either: three digits of four are right at 0.0001, because the output layer starts at zero
# and what it has learned decides, however little it is.

# %%
# Why a step that is too large does less harm
# -------------------------------------------
# In front of a batch normalization the size of weights and biases does not count: ten times as
# large, they make the standard deviation ten times as large, and the quotient is what it was. (With
# rectified linear units in between, which pass on any positive factor, so too.) What does not
# depend on the size of the weights has smaller gradients where they are larger, by the same factor.
# So a step that was too large may leave weights that are too large, but that changes no prediction,
# and the next steps are the smaller for it.
#
# Here weights and biases of the second hidden layer are multiplied by 10; ``recalibrate`` measures
# what batch normalization then divides by.

(train, test), changes = splits[0], {}
for name, fitted in zip(placements, networks["sgd"], strict=True):
    clf = deepcopy(fitted[4, 0])  # the first split, with a rate of 0.01
    before = clf.predict_proba(X[test])
    clf.coefs_[1] *= 10
    clf.intercepts_[1] *= 10
    if clf.batch_norms_:
        clf.recalibrate(X[train])
    changes[name] = np.abs(clf.predict_proba(X[test]) - before).max()
    print(f"{name:6} the largest change of a probability is {changes[name]:.3f}")

# %%
# (What is left next to the activations is the work of epsilon, which is added to the variance.)
