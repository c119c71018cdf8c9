"""
============================================
Training mode and inference mode: three gaps
============================================

A batch-normalized network is two functions. In training mode every mini-batch is normalized by its
own mean and variance; in inference mode, by one fixed mean and variance for every unit. So the
accuracy that training reports is not that of the network which will predict, and learning curves
that seem to tell of underfitting or overfitting may tell of neither. Here the distance is taken
apart: weights that still move, the noise of the batches, and statistics that lag behind.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skbn import MLPClassifierBN
from skbn.functional import batch_norm

# Fifteen epochs are meant to be the end: that max_iter is reached is no news.
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
# The same rows, two accuracies
# -----------------------------
# One hidden layer learns handwritten digits in mini-batches of 8, five times over, each time with
# other weights and another split. ``partial_fit`` does one epoch. (A ``RandomState`` goes on from
# call to call. With an integer every call would shuffle in the same way, and the network would meet
# the same batches again and again.) After each epoch the training rows are scored
#
# - as training saw them: ``train_scores_``, in training mode, before each step;
# - in training mode again, in new mini-batches, but with the weights at rest;
# - in inference mode, with the moving averages that ``partial_fit`` leaves;
# - in inference mode, with the exact statistics of all training rows, as after ``fit``.
#
# Lines are means over the five, bands go from the least to the largest.

n_seeds, n_epochs = 5, 15
X, y = load_digits(return_X_y=True)
X /= 16


def in_batches(clf, X, batch_size, rng):
    """Shuffle rows and cut them into whole mini-batches; return them and the inputs of the norm."""
    rows = rng.permutation(len(X))[: len(X) // batch_size * batch_size]
    rows = rows.reshape(-1, batch_size)
    return rows, X[rows] @ clf.coefs_[0] + clf.intercepts_[0]


def training_mode_score(clf, X, y, batch_size, rng):
    """Accuracy in training mode with the weights at rest."""
    norm, (rows, batches) = clf.batch_norms_[0], in_batches(clf, X, batch_size, rng)
    hits = []
    for batch, labels in zip(batches, y[rows], strict=True):
        z, _ = batch_norm(batch, norm.gamma, norm.beta, epsilon=clf.bn_epsilon, activation="relu")
        outputs = z @ clf.coefs_[1] + clf.intercepts_[1]
        hits.append(clf.classes_[outputs.argmax(axis=1)] == labels)
    return np.mean(hits)


def run(seed, **options):
    """One row for each epoch; the columns are the four scores, then that of the test rows."""
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=seed, stratify=y)
    random_state, rng = np.random.RandomState(seed), np.random.default_rng(seed)
    clf = MLPClassifierBN((64,), batch_norm="before", random_state=random_state, **options)
    scores = []
    for _ in range(n_epochs):
        clf.partial_fit(X_train, y_train, classes=np.unique(y))
        exact = deepcopy(clf).recalibrate(X_train)
        scores.append(
            (
                clf.train_scores_[-1],
                training_mode_score(clf, X_train, y_train, clf.batch_size, rng),
                clf.score(X_train, y_train),
                exact.score(X_train, y_train),
                exact.score(X_test, y_test),
            )
        )
    return scores


epochs = np.arange(1, n_epochs + 1)
small = np.array([run(seed, batch_size=8) for seed in range(n_seeds)])


def draw(ax, values, label, height, colour, line="-"):
    """Mean over the seeds, the range of all of them as a band, and a label beside the end."""
    ax.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)
    ax.plot(epochs, values.mean(axis=0), line, color=colour, lw=2)
    ax.text(n_epochs + 0.4, height, label, color=colour, va="center", fontweight="bold")


said, _, _, predicted, tested = small[:, -1].mean(axis=0)

figure, ax = plt.subplots(figsize=(6.4, 4.6))
draw(ax, small[..., 3], "training rows,\npredicted", 1.0, "#0072b2")
draw(ax, small[..., 4], "test rows,\npredicted", 0.977, "#5c5c5c", "--")
draw(ax, small[..., 0], "training rows,\ntraining mode", 0.952, "#d55e00")
ax.set(xlim=(0.5, n_epochs), ylim=(0.85, 1.008), xlabel="epoch", ylabel="accuracy")
ax.set_title(f"Training says {said:.1%}; the same rows, predicted: {predicted:.1%}", fontsize=12)
plt.show()

print(f"test rows, predicted: {tested:.1%}")

# %%
# Taken by itself, the orange curve looks like underfitting: below the test rows. In truth the
# network gets nearly all of its training rows right, when it is asked in inference mode.
#
# Three reasons
# -------------
# Each gap is the difference between two of the scores, in points of accuracy:
#
# - **weights that move**: a training score is a mean over the epoch, most of whose batches met
#   younger weights. This holds with batch normalization or without.
# - **batch noise**: the same weights, in mini-batches and with exact statistics.
# - **lag**: the same weights, with moving averages and with exact statistics.
#
# Below them, the same for mini-batches of 128 rows, with a tenfold learning rate and Keras's
# momentum of 0.99.

large = np.array(
    [
        run(seed, batch_size=128, learning_rate_init=0.01, bn_momentum=0.99)
        for seed in range(n_seeds)
    ]
)


def gaps(scores):
    """What training mode loses by moving weights and by noise, and prediction by its lag."""
    moving_weights = scores[..., 1] - scores[..., 0]
    noise = scores[..., 3] - scores[..., 1]
    lag = scores[..., 3] - scores[..., 2]
    return 100 * moving_weights, 100 * noise, 100 * lag


figure, axes = plt.subplots(2, figsize=(6.4, 7.2), sharex=True)
names = "weights that move", "batch noise", "lag"
for ax, scores, heights in ((axes[0], small, (0.75, 2.5, 0.05)), (axes[1], large, (-0.2, 0, 0.2))):
    colours = "#009e73", "#d55e00", "#0072b2"
    for values, height, name, colour in zip(gaps(scores), heights, names, colours, strict=True):
        draw(ax, values, name, height, colour)
    ax.axhline(0, color="k", lw=0.8)
    ax.set(xlim=(2, n_epochs), ylabel="points of accuracy")
axes[0].set(ylim=(-2.5, 7), title="batches of 8, momentum 0.9: noise remains")
axes[1].set(ylim=(-0.7, 3.5), title="batches of 128, momentum 0.99: lag, at first", xlabel="epoch")
plt.show()

for name, in_small, in_large in zip(names, gaps(small), gaps(large), strict=True):
    first, last = (
        [f"{values[:, epoch].mean():5.2f}" for values in (in_small, in_large)] for epoch in (0, -1)
    )
    print(f"{name:18} first epoch {' and '.join(first)} points, last {' and '.join(last)}")

# %%
# (The first epoch is off the scale: for more than twenty points the weights of a network that has
# hardly learned are to blame.) In small batches the noise stays to the end. In large ones there is
# none to speak of; instead *prediction* is behind, until the weights come to rest.
#
# The gap as a function of batch size
# -----------------------------------
# The mean of :math:`m` rows misses that of all rows by :math:`1/\sqrt{m}` standard deviations, if
# they are drawn independently. (Mini-batches are drawn without replacement, so at 128 of 1347 rows
# it is a little less.) Here ``fit`` trains each network for 15 epochs, and ends with exact
# statistics.

batch_sizes = [4, 8, 16, 32, 64, 128]


def fit_and_compare(batch_size, seed):
    """Noise of the batch means; accuracy in training mode, of the same rows predicted, in test."""
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=seed, stratify=y)
    clf = MLPClassifierBN(
        (64,),
        batch_norm="before",
        batch_size=batch_size,
        max_iter=15,
        n_iter_no_change=np.inf,
        random_state=seed,
    ).fit(X_train, y_train)
    rng, norm = np.random.default_rng(seed), clf.batch_norms_[0]
    draws = [in_batches(clf, X_train, batch_size, rng)[1].mean(axis=1) for _ in range(10)]
    noise = (np.vstack(draws) - norm.population_mean) / np.sqrt(norm.population_var)
    return (
        np.sqrt(np.mean(noise**2)),
        training_mode_score(clf, X_train, y_train, batch_size, rng),
        clf.score(X_train, y_train),
        clf.score(X_test, y_test),
    )


results = np.array(
    [[fit_and_compare(size, seed) for seed in range(n_seeds)] for size in batch_sizes]
)

figure, (top, bottom) = plt.subplots(2, figsize=(6.4, 7.2), sharex=True)
top.plot(batch_sizes, 1 / np.sqrt(batch_sizes), color="k", lw=1, ls="--")
top.text(10, 0.4, "one over the root\nof the batch size")
columns = (
    (top, 0, "batch means", "#d55e00", (5, 0.2)),
    (bottom, 1, "training rows,\ntraining mode", "#d55e00", (6, 0.93)),
    (bottom, 2, "training rows, predicted", "#0072b2", (14, 1.003)),
    (bottom, 3, "test rows, predicted", "#5c5c5c", (25, 0.948)),
)
for ax, column, label, colour, place in columns:
    values = results[..., column]
    low, high = values.min(axis=1), values.max(axis=1)
    ax.fill_between(batch_sizes, low, high, color=colour, alpha=0.2, lw=0)
    ax.plot(batch_sizes, values.mean(axis=1), color=colour, lw=2, marker="o")
    ax.text(*place, label, color=colour, fontweight="bold")
top.set(xscale="log", yscale="log", ylabel="noise in standard deviations")
title = (
    "The smaller the batch, the noisier its mean,\nand the further training mode is from prediction"
)
top.set_title(title, fontsize=12)
bottom.set(xticks=batch_sizes, xticklabels=batch_sizes, xlabel="batch size", ylabel="accuracy")
top.set(yticks=[0.1, 0.2, 0.4], yticklabels=[0.1, 0.2, 0.4])
for ax in (top, bottom):
    ax.minorticks_off()
plt.show()

for batch_size, row in zip(batch_sizes, results.mean(axis=1), strict=True):
    print(
        f"batch size {batch_size:3}: training mode is {100 * (row[2] - row[1]):4.1f} points below"
    )

# %%
# What to make of it
# ------------------
# - Compare learning curves within one mode. ``score(X_train, y_train)`` after ``fit`` is in the
#   same mode as the score of test rows, and says whether there is underfitting.
# - A low training-mode accuracy does no harm by itself. In batches of 8 it is three points below
#   the training rows' own, and below the test rows' too, and yet no batch size predicts the test
#   rows better after these 15 epochs.
# - A validation curve that lags asks for a smaller ``bn_momentum``, not for another network. The
#   default of 0.9 hardly lags here, and when ``fit`` ends, exact statistics end the lag.
