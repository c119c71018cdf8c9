"""
========================
Dropout with batch norm
========================

Dropout sets hidden units to zero at random while a network trains, and none when it predicts. A
batch normalization behind it learns its variance in training, and meets a smaller one in
prediction: the variance shift of `Li, Chen, Hu and Yang (2019)
<https://arxiv.org/abs/1801.05134>`_. Here it is measured and mended, and then dropout is put to
work, where it is needed and where it is not.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss

from skbn import MLPClassifierBN, fit_many

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
# Two hidden layers learn digits from 500 rows in 50 epochs, twice: from labels of which one in five
# has been replaced by a random digit, and from the right ones. They are tested on right ones.
# ``dropout`` stands at the end of each hidden layer, behind the activation (behind the batch norm
# with ``batch_norm="after"``), so the first norm sees no dropout, and the second sees that of the
# first layer. Survivors are scaled up, so the mean stays, but the variance grows.

X, y = load_digits(return_X_y=True)
X = X / 16
SEEDS = range(5)
RATES = [0.0, 0.2, 0.4, 0.6]
PLACEMENTS = [None, "before"]
splits, labels = [], {"wrong": [], "right": []}
for seed in SEEDS:
    rng = np.random.default_rng(seed)
    splits.append(rng.permutation(len(X)))
    wrong = np.where(rng.random(len(y)) < 0.2, rng.integers(10, size=len(y)), y)
    labels["wrong"].append(wrong)
    labels["right"].append(y)

fits = {}
for kind, seed in product(labels, SEEDS):
    networks = {
        (placement, rate): MLPClassifierBN(
            (64, 64),
            batch_norm=placement,
            bn_statistics="moving",  # those of training, for now
            dropout=rate,
            batch_size=32,
            max_iter=50,
            n_iter_no_change=np.inf,
            random_state=seed,
        )
        for placement, rate in product(PLACEMENTS, RATES)
    }
    rows = splits[seed][:500]
    fit_many(networks.values(), X[rows], labels[kind][seed][rows])
    fits |= {(kind, *key, seed): network for key, network in networks.items()}

# %%
# The variance shift
# ------------------
# Predictions of these networks use the statistics gathered in training, with dropout.
# ``recalibrate`` measures them anew without it, on the same rows. That is what ``fit`` does by
# itself when it ends, unless ``bn_statistics="moving"`` says otherwise. The ratio of the two
# variances is the shift, and each network is scored with both.

scores, losses, shift = {}, {}, {}
for key, network in fits.items():
    kind, placement, rate, seed = key
    train, test = splits[seed][:500], splits[seed][500:]
    before = [norm.moving_var for norm in network.batch_norms_]
    for statistics in ("moving", "population"):
        if statistics == "population" and placement is not None:
            network.recalibrate(X[train])
            after = [norm.population_var for norm in network.batch_norms_]
            shift[key] = np.divide(after, before)  # a row a norm, a column a unit
        place = statistics, *key[:-1]
        scores.setdefault(place, []).append(network.score(X[test], y[test]))
        losses.setdefault(place, []).append(log_loss(y[test], network.predict_proba(X[test])))

ratios = {
    rate: np.hstack([shift["wrong", "before", rate, seed] for seed in SEEDS]) for rate in RATES
}
for rate, (first, second) in ratios.items():
    print(f"dropout {rate}: median ratio {np.median(first):.2f} in the first norm,", end=" ")
    print(f"{np.median(second):.2f} in the second")

# %%
# The first norm has no dropout in front of it, and no shift. In the second, units lose 43% of their
# variance with a dropout of 0.6.

fig, ax = plt.subplots(figsize=(7, 4))
rng = np.random.default_rng(0)
for norm, colour, offset in ((0, GREY, -0.2), (1, BLUE, 0.2)):
    for position, values in enumerate(ratios.values()):
        jitter = position + offset + rng.uniform(-0.12, 0.12, values.shape[1])
        ax.scatter(jitter, values[norm], s=6, color=colour, alpha=0.35, lw=0)
        centre = position + offset + np.array([-0.16, 0.16])
        ax.plot(centre, [np.median(values[norm])] * 2, color=colour, lw=3)
ax.axhline(1, color="0.8", lw=1, zorder=0)
ax.annotate("first norm", (-0.4, 1.14), color=GREY, weight="bold")
ax.annotate("second norm, behind dropout", (-0.4, 0.45), color=BLUE, weight="bold")
ax.set_xticks(range(len(RATES)), RATES)
ax.set(ylim=(0.25, 1.2), xlabel="dropout", ylabel="variance in prediction / in training")
ax.set_title("Behind dropout, a norm expects more variance than it gets")
plt.show()

# %%
# What it does to predictions
# ---------------------------

for name, measure in (("test accuracy", scores), ("test log loss", losses)):
    print(f"{name:40}", *(f"dropout {rate}   " for rate in RATES))
    for kind, (placement, statistics) in product(
        labels, [(None, "moving"), ("before", "moving"), ("before", "population")]
    ):
        values = [measure[statistics, kind, placement, rate] for rate in RATES]
        cells = [f"{np.mean(value):.3f} ± {np.std(value):.3f}" for value in values]
        print(f"  {kind} labels, {placement!s:6}, {statistics:10}".ljust(40), *cells)

# %%
# Decisions hardly notice the shift: the accuracies with both statistics are within 0.002 of each
# other. Probabilities do. At a dropout of 0.6 the log loss is 0.64 with the statistics of training
# and 0.46 with those measured anew.
#
# Where labels are wrong, batch norm alone is the worst choice: it learns the wrong ones too.
# Dropout heals that. At 0.4 the networks with and without batch norm are equally good, and with it
# the log loss is lower. Where labels are right, batch norm alone is as good as anything, and
# dropout has nothing to add.

fig, axes = plt.subplots(2, 2, figsize=(7, 7), sharex=True, sharey="row")
lines = [
    (None, "moving", GREY, "-"),
    ("before", "moving", VERMILION, "--"),
    ("before", "population", BLUE, "-"),
]
for (row, measure), (column, kind) in product(enumerate((scores, losses)), enumerate(labels)):
    for placement, statistics, colour, style in lines:
        values = np.array([measure[statistics, kind, placement, rate] for rate in RATES])
        axes[row, column].plot(RATES, values, "o", ms=3, color=colour, alpha=0.4)
        axes[row, column].plot(RATES, values.mean(axis=1), style, color=colour, lw=2.5)
axes[0, 0].set_title("One label in five replaced:\ndropout helps")
axes[0, 1].set_title("All labels right:\ndropout has nothing to add")
axes[0, 0].set(ylabel="test accuracy")
axes[1, 0].set(ylabel="test log loss", xticks=RATES)
axes[0, 1].annotate("no batch norm", (0.0, 0.925), color=GREY, weight="bold")
axes[1, 1].annotate(
    "batch norm,\ntraining's statistics", (0.0, 0.46), color=VERMILION, weight="bold"
)
axes[1, 1].annotate("batch norm,\nmeasured anew", (0.0, 0.29), color=BLUE, weight="bold")
for ax in axes[1]:
    ax.set(xlabel="dropout")
plt.show()

# %%
# So: try batch norm and dropout each alone, then both. With both, keep ``bn_statistics`` at its
# default; behind ``partial_fit``, which never sees all rows, call ``recalibrate``. With a single
# hidden layer there is nothing to mend, because no norm stands behind the dropout.
