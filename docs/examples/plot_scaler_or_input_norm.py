"""
==================================================
Standardize first, or batch norm on the input?
==================================================

Networks want features of one scale. A :class:`~sklearn.preprocessing.StandardScaler` in front gives
them that, and so does ``batch_norm="input"``, from inside the network. This compares both, each
alone, together, and neither, and says what the second costs in small batches.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbn import MLPClassifierBN, MLPRegressorBN

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
BLUE, VERMILION = "#0072b2", "#d55e00"  # Okabe and Ito's

# %%
# Three data sets with features as they were measured. Of the targets of diabetes only the scale is
# changed, to standard deviations, because no norm stands behind a network's output.

data = {
    "wine": load_wine(return_X_y=True),
    "breast cancer": load_breast_cancer(return_X_y=True),
    "diabetes": load_diabetes(return_X_y=True, scaled=False),
}
X, y = data["diabetes"]
data["diabetes"] = X, (y - y.mean()) / y.std()
for name, (X, _) in data.items():
    spread = X.std(axis=0)
    print(f"{name}: standard deviations of features from {spread.min():.2g} to {spread.max():.3g}")

# %%
# One, the other, both, neither
# -----------------------------
# Networks with one hidden layer of 50 units, 50 epochs in mini-batches of 32, cross-validated over
# five folds, three times with other folds and other initial weights.

SEEDS = range(3)
PLACEMENTS = [None, "before", ("input", "before"), "input"]


def cross_validate(X, y, batch_norm, scaler, seed, **params):
    """Mean score over five folds."""
    regression = y.dtype == float
    network = (MLPRegressorBN if regression else MLPClassifierBN)(
        hidden_layer_sizes=(50,),
        batch_norm=batch_norm,
        n_iter_no_change=np.inf,
        random_state=seed,
        **params,
    )
    folds = (KFold if regression else StratifiedKFold)(5, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), network) if scaler else network
    return cross_val_score(model, X, y, cv=folds).mean()


scores = {
    (name, placement, scaler): [
        cross_validate(*data[name], placement, scaler, seed, batch_size=32, max_iter=50)
        for seed in SEEDS
    ]
    for name, placement, scaler in product(data, PLACEMENTS, [False, True])
}
print(f"{'':41}raw features     StandardScaler first")
for name, placement in product(data, PLACEMENTS):
    raw, scaled = (np.array(scores[name, placement, scaler]) for scaler in (False, True))
    print(f"{name:14} {placement!s:20}", end="")
    print(f"{raw.mean():10.3f} ± {raw.std():.3f} {scaled.mean():10.3f} ± {scaled.std():.3f}")

# %%
# Neither is the one mistake. On raw features a plain network loses 6 points of accuracy on breast
# cancer, 13 on wine, and on diabetes it is worse than the mean of the targets. Batch norm behind
# the first layer ("before") mends most of that on wine and breast cancer, and all of it on
# diabetes. With a scaler, with "input" or with both, all are as good as each other.

fig, axes = plt.subplots(3, 1, figsize=(7, 8))
for ax, name in zip(axes, data, strict=True):
    for (height, placement), scaler in product(enumerate(PLACEMENTS), (False, True)):
        colour = BLUE if scaler else VERMILION
        values = np.array(scores[name, placement, scaler])
        heights = np.full(len(values), height + (0.17 if scaler else -0.17))
        ax.plot(values, heights, "o", ms=5, color=colour, alpha=0.5, mew=0)
        ax.plot(values.mean(), heights[0], "|", ms=12, mew=3, color=colour)
    ax.set_yticks(range(len(PLACEMENTS)), ["none", "before", "input and\nbefore", "input"])
    ax.set(ylim=(3.5, -0.5), xlabel="R2" if name == "diabetes" else "accuracy")
    ax.set_title(name)
    ax.grid(axis="x", color="0.92")
axes[0].annotate("raw features", (0.865, -0.05), color=VERMILION, weight="bold")
axes[0].annotate(
    "behind a\nStandardScaler", (0.972, 0.0), ha="right", color=BLUE, weight="bold", va="center"
)
fig.suptitle("A scaler in front, or batch norm on the input: either will do")
plt.show()

# %%
# The same thing in the limit
# ---------------------------
# In a batch of all rows, and without what batch norm learns, "input" *is* a StandardScaler: the
# predictions of both networks differ by rounding.

X, y = data["wine"]
full_batch = {"batch_size": len(X), "max_iter": 50, "random_state": 0}
plain = {"bn_center": False, "bn_scale": False, "bn_epsilon": 0.0}
inside = MLPClassifierBN((50,), batch_norm="input", **full_batch, **plain).fit(X, y)
in_front = make_pipeline(StandardScaler(), MLPClassifierBN((50,), batch_norm=None, **full_batch))
in_front.fit(X, y)
difference = np.abs(inside.predict_proba(X) - in_front.predict_proba(X)).max()
print(f"largest difference of a probability: {difference:.0e}")

# %%
# What it costs in small batches
# ------------------------------
# The scaler knows all training rows, batch norm those of a mini-batch, so its features carry a
# noise that grows as batches shrink. On breast cancer, 30 epochs, and the learning rate as it is:

X, y = data["breast cancer"]
batch_sizes = [2, 4, 8, 16, 32, 64]
noise = {
    (placement, size): [
        cross_validate(X, y, placement, placement is None, seed, batch_size=size, max_iter=30)
        for seed in SEEDS
    ]
    for placement, size in product(["input", None], batch_sizes)
}
for size in batch_sizes:
    inside, in_front = (np.array(noise[placement, size]) for placement in ("input", None))
    print(f"batches of {size:2}: input {inside.mean():.3f} ± {inside.std():.3f}", end="   ")
    print(f"StandardScaler {in_front.mean():.3f} ± {in_front.std():.3f}")

# %%
# Five points in batches of two, two in batches of four, less than half a point from 16 on.
#
# So: a StandardScaler where you have a Pipeline anyway, or batches below 16. "input" where the
# network should carry its own scaling, to be stored, exported or trained by
# :func:`~skbn.fit_many` and ``partial_fit`` without another step.

fig, ax = plt.subplots(figsize=(7, 4))
for placement, colour, label, at in (
    ("input", VERMILION, 'batch_norm="input"', (3.2, 0.945)),
    (None, BLUE, "StandardScaler", (2.1, 0.979)),
):
    points = np.array([noise[placement, size] for size in batch_sizes])
    ax.plot(batch_sizes, points, "o", ms=4, color=colour, alpha=0.5)
    ax.plot(batch_sizes, points.mean(axis=1), color=colour, lw=2.5)
    ax.annotate(label, at, color=colour, weight="bold")
ax.set(xscale="log", xlabel="rows in a mini-batch", ylabel="accuracy, breast cancer")
ax.set_xticks(batch_sizes, batch_sizes)
ax.minorticks_off()
ax.set_title("Below 16 rows, the statistics of a batch are a poor scaler")
plt.show()
