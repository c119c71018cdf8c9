"""
=================================
Batch size, and virtual batches
=================================

Batch normalization takes mean and variance from the mini-batch, so what a row becomes depends on
the rows beside it. Small batches make that dependence a noise, very small ones leave little else.
How small may a batch be? And what can a large batch gain by being normalized in parts?
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

# sphinx_gallery_thumbnail_number = 2

import time
import warnings
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from skbn import MLPClassifierBN, fit_many
from skbn.functional import batch_norm

# Every network below trains for a fixed number of epochs.
warnings.simplefilter("ignore", ConvergenceWarning)

plt.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "font.size": 12,
    }
)
GREY, BLUE, VERMILION = "#5c5c5c", "#0072b2", "#d55e00"  # Okabe and Ito's

# %%
# One row among others
# --------------------
# A unit has mean 0 and standard deviation 1, and one row has the value 1 there. Here is what batch
# normalization makes of that row in 300 batches, each with other companions. In a batch of two it
# is always -1 or 1: the larger of two numbers is one standard deviation above their mean, whatever
# they are. Nothing but the order of the two is left. By 32 rows, nine in ten values are within 0.4
# of 1, which the statistics of all rows would make of it.

rng = np.random.default_rng(0)
sizes = [2, 4, 8, 16, 32, 64, 128]
normalized = {}
for size in sizes:
    batches = rng.normal(size=(size, 300))  # a column a batch
    batches[0] = 1.0
    normalized[size] = batch_norm(batches, epsilon=1e-9)[0][0]
    low, high = np.quantile(normalized[size], [0.05, 0.95])
    print(f"batch of {size:3}: 90% between {low:5.2f} and {high:4.2f}")

# %%

fig, ax = plt.subplots(figsize=(7, 4))
for position, values in enumerate(normalized.values()):
    jitter = rng.uniform(-0.3, 0.3, len(values))
    ax.scatter(position + jitter, values, s=9, color=BLUE, alpha=0.35, lw=0)
ax.axhline(1, color=VERMILION, lw=1.5, zorder=0)
ax.annotate("by the statistics of all rows", (6.5, 1.75), ha="right", color=VERMILION)
ax.set_xticks(range(len(sizes)), sizes)
ax.set(xlabel="rows in the batch", ylabel="the same row, normalized")
ax.set_title("What a row becomes depends on its companions")
plt.show()

# %%
# Accuracy and time
# -----------------
# Networks of 64 and 64 units learn digits from 300 rows, for 20 epochs, in batches of 2 to 300. A
# large batch wants a larger learning rate, so each batch size is tried with three, and the one that
# does best on 500 further rows is scored on the remaining 997. All of that four times, with other
# rows and other initial weights.

X, y = load_digits(return_X_y=True)
X = X / 16
SEEDS = range(4)
RATES = [0.001, 0.004, 0.016]
batch_sizes = [2, 4, 8, 16, 32, 64, 300]
splits = [np.random.default_rng(seed).permutation(len(X)) for seed in SEEDS]


def accuracy(estimator, rows):
    return estimator.score(X[rows], y[rows])


scores, seconds = {}, {}
for placement, batch_size in product([None, "before"], batch_sizes):
    start = time.perf_counter()
    fits = [
        MLPClassifierBN(
            (64, 64),
            batch_norm=placement,
            batch_size=batch_size,
            learning_rate_init=rate,
            max_iter=20,
            n_iter_no_change=np.inf,
            random_state=seed,
        )
        for seed, rate in product(SEEDS, RATES)
    ]
    with threadpool_limits(1, user_api="openmp"):
        fit_many(fits, X, y, rows=[splits[fit.random_state][:300] for fit in fits], n_jobs=1)
    seconds[placement, batch_size] = (time.perf_counter() - start) / len(fits)
    chosen = [
        max(fits[i : i + len(RATES)], key=lambda fit: accuracy(fit, split[300:800]))
        for i, split in zip(range(0, len(fits), len(RATES)), splits, strict=True)
    ]
    scores[placement, batch_size] = [
        accuracy(fit, split[800:]) for fit, split in zip(chosen, splits, strict=True)
    ]

print("batch size   no batch norm   batch norm before the activation")
for size in batch_sizes:
    none, before = (np.array(scores[placement, size]) for placement in (None, "before"))
    print(f"{size:10}   {none.mean():.3f} ± {none.std():.3f}", end="   ")
    print(f"{before.mean():.3f} ± {before.std():.3f}")

# %%
# Batches of two break batch norm, as the first figure lets one expect: even with the best of three
# learning rates the network without it is nine points better. Batches of four already do as well
# as no batch norm, and from 16 on it is ahead, by half a point to a point.
#
# An epoch of small batches takes longer, with batch norm or without, because there are more of
# them. The lower panel is the mean time of a fit on one core of the machine that drew it.

fig, (ax, clock) = plt.subplots(2, 1, figsize=(7, 6.5), sharex=True, height_ratios=[3, 2])
for placement, colour, label, at in (
    (None, GREY, "no batch norm", (2.1, 0.957)),
    ("before", BLUE, "batch norm", (2.4, 0.865)),
):
    points = np.array([scores[placement, size] for size in batch_sizes])
    ax.plot(batch_sizes, points, "o", ms=4, color=colour, alpha=0.5)
    ax.plot(batch_sizes, points.mean(axis=1), color=colour, lw=2.5)
    ax.annotate(label, at, color=colour, weight="bold")
    times = [1000 * seconds[placement, size] for size in batch_sizes]
    clock.plot(batch_sizes, times, "o-", color=colour, lw=2.5, ms=4)
ax.set_title("Batches of two break batch norm, batches of four do not")
ax.set(ylabel="test accuracy", xscale="log")
clock.set_title("Small batches take longer, with it or without")
clock.set(ylabel="time of a fit [ms]", xlabel="rows in a mini-batch", ylim=0)
clock.set_xticks(batch_sizes, batch_sizes)
clock.minorticks_off()
plt.show()

# %%
# Virtual batches
# ---------------
# A large batch has little of that noise, and its regularization is missed. With
# ``bn_virtual_batch_size`` every mini-batch is cut into parts that are normalized each by itself,
# while the gradient stays that of the whole: "ghost batch normalization" (Hoffer, Hubara and
# Soudry, 2017, `Train longer, generalize better <https://arxiv.org/abs/1705.08741>`_). Here 500
# digits are one batch, for 50 epochs, in ten repetitions, and each is compared with the network
# that has the same rows and initial weights and normalizes the 500 together.

virtual_sizes = [2, 4, 8, 16, 32, 64, None]
SEEDS = range(10)
splits = [np.random.default_rng(seed).permutation(len(X)) for seed in SEEDS]
fits = [
    MLPClassifierBN(
        (64, 64),
        batch_norm="before",
        batch_size=500,
        bn_virtual_batch_size=size,
        learning_rate_init=0.016,
        max_iter=50,
        n_iter_no_change=np.inf,
        random_state=seed,
    )
    for size, seed in product(virtual_sizes, SEEDS)
]
fit_many(fits, X, y, rows=[splits[fit.random_state][:500] for fit in fits])
virtual = np.reshape(
    [accuracy(fit, splits[fit.random_state][500:]) for fit in fits], (len(virtual_sizes), -1)
)
gains = 100 * (virtual[:-1] - virtual[-1])
for size, gain in zip(virtual_sizes, gains, strict=False):
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    print(f"virtual batches of {size:2}: {gain.mean():+5.2f} points of accuracy, ± {error:.2f}")

# %%
# About half a point, with virtual batches of 8 to 32: worth a try where batches are large and rows
# are few, and no more than that. Virtual batches of two are as bad as real ones.

fig, ax = plt.subplots(figsize=(7, 4))
for position, gain in enumerate(gains):
    ax.scatter(np.full(len(gain), position), gain, s=22, color=BLUE, alpha=0.4, lw=0)
    ax.plot(position + np.array([-0.25, 0.25]), [gain.mean()] * 2, color=BLUE, lw=3)
ax.axhline(0, color=GREY, lw=1.5)
ax.annotate("all 500 rows normalized together", (5.4, -1.5), ha="right", va="top", color=GREY)
ax.set_xticks(range(len(gains)), virtual_sizes[:-1])
ax.set(xlabel="rows in a virtual batch", ylabel="points of test accuracy gained")
ax.set_title("Virtual batches of 8 to 64 gain a little, of 2 lose a lot")
plt.show()
