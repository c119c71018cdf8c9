"""
==============================
A grid search over everything
==============================

Where to normalize, how fast to learn, how many units, which activation: to scikit-learn these are
parameters like any others. A :class:`~sklearn.model_selection.GridSearchCV` tries 100 combinations
on five folds. Its results are drawn, with the spread that decides how much of them to believe, and
then :func:`skbn.fit_many` fits the same 500 networks in one call.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

# %%
# The search
# ----------
# 500 digits to search on; the other 1297 are kept for the end.

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skbn import MLPClassifierBN, fit_many

# Fifteen epochs are meant to be the end: that max_iter is reached is no news.
warnings.filterwarnings("ignore", category=ConvergenceWarning)
plt.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "font.size": 12,
    }
)
BLUE, VERMILION = "#0072b2", "#d55e00"  # of Okabe and Ito

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, train_size=500, stratify=y, random_state=0)

network = MLPClassifierBN(batch_size=32, max_iter=15, n_iter_no_change=np.inf, random_state=0)
grid = {
    "activation": ["relu", "tanh"],
    "batch_norm": [None, "before", "after", "input", ("input", "before")],
    "hidden_layer_sizes": [(20,), (20, 20)],
    "learning_rate_init": [0.001, 0.003, 0.01, 0.03, 0.1],
}
folds = StratifiedKFold(5, shuffle=True, random_state=0)
search = GridSearchCV(
    make_pipeline(StandardScaler(), network),
    {f"mlpclassifierbn__{name}": values for name, values in grid.items()},
    cv=folds,
)
with threadpool_limits(1, user_api="openmp"):  # to compare times below
    start = time.perf_counter()
    search.fit(X, y)
    search_seconds = time.perf_counter() - start

candidates = list(ParameterGrid(grid))
scores = np.transpose([search.cv_results_[f"split{fold}_test_score"] for fold in range(5)])
means = scores.mean(axis=1)
best = means.argmax()
print(f"the best of {len(candidates)}: {candidates[best]}")

# %%
# Placement and learning rate
# ---------------------------
# Scores come in the order of the grid, so they are an array with one axis a parameter. Here are the
# means over activations and numbers of units.

shape = [len(values) for values in grid.values()]
table = 100 * means.reshape(shape).mean(axis=(0, 2))

figure, ax = plt.subplots(figsize=(7, 4))
ax.imshow(table, cmap="Blues", vmin=80, vmax=97, aspect="auto")
for (row, column), value in np.ndenumerate(table):
    dark = value > 90
    ax.text(column, row, f"{value:.1f}", ha="center", va="center", color="w" if dark else "k")
names = ["none", "before", "after", "input", "input and\nbefore"]
ax.set_yticks(range(5), names)
ax.set_xticks(range(5), grid["learning_rate_init"])
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
ax.set(xlabel="learning rate", ylabel="batch norm")
ax.set_title('Accuracy in percent: "before" bears a rate of 0.1')
plt.show()

# %%
# At 0.001, too little for fifteen epochs, the networks with batch norm after the activation come
# three points further than all others. From there to 0.03 the placement hardly matters, by two
# points at most. At 0.1 the networks with batch norm before the activation are within two points of
# their best; all others lose four and more.
#
# How much to believe
# -------------------
# The twelve best, fold by fold. Folds of 100 digits differ by more than these candidates do: what a
# search calls the best is one of many.

figure, ax = plt.subplots(figsize=(7, 5.6))
top = np.argsort(-means, kind="stable")[:12]
for height, index in enumerate(top):
    ax.plot(100 * scores[index], np.full(5, height), "o", ms=6, color=BLUE, alpha=0.4, mew=0)
    ax.plot(100 * means[index], height, "|", ms=16, mew=3, color=BLUE)
labels = []
for index in top:
    params = candidates[index]
    place = names[grid["batch_norm"].index(params["batch_norm"])].replace("\n", " ")
    units = "+".join(map(str, params["hidden_layer_sizes"]))
    labels.append(f"{place}, {params['activation']}, {units}, {params['learning_rate_init']:g}")
ax.set_yticks(range(12), labels, size=11)
ax.set(xlabel="accuracy on a fold, percent", ylim=(11.5, -0.5))
ax.grid(axis="x", color="0.92")
figure.suptitle("Folds differ by more than the twelve best candidates do")
plt.show()

# %%
# The same with fit_many
# ----------------------
# ``fit_many`` fits many networks to the same data in one call, here the 100 candidates to the
# training rows of a fold. It knows no Pipeline, so the scaler is applied by hand. The scores are
# those of the search, to the last bit. Both times are for one thread, on the machine that made this
# page: the search clones, scales and validates for every fit anew, and the rest, which is most of
# it, is training.

networks = [MLPClassifierBN(**(network.get_params() | params)) for params in candidates]
scores_many = np.empty_like(scores)
start = time.perf_counter()
with threadpool_limits(1, user_api="openmp"):
    for fold, (train, test) in enumerate(folds.split(X, y)):
        scaler = StandardScaler().fit(X[train])
        fit_many(networks, scaler.transform(X[train]), y[train], n_jobs=1)
        X_fold = scaler.transform(X[test])
        scores_many[:, fold] = [fitted.score(X_fold, y[test]) for fitted in networks]
many_seconds = time.perf_counter() - start
print(f"the same scores: {np.array_equal(scores_many, scores)}")
print(f"GridSearchCV {search_seconds:.1f} s, fit_many {many_seconds:.1f} s")

# %%
# The rows kept
# -------------
# At last all candidates are fitted to the 500 digits and scored on the other 1297.

scaler = StandardScaler().fit(X)
fit_many(networks, scaler.transform(X), y)
kept = np.array([fitted.score(scaler.transform(X_test), y_test) for fitted in networks])
place = np.sum(kept > kept[best]) + 1
print(f"the winner: {means[best]:.3f} in the search, {kept[best]:.3f} on the rows kept")
print(f"it is number {place} of {len(kept)} there; the best has {kept.max():.3f}")
half = means >= np.median(means)
correlation = spearmanr(means[half], kept[half]).statistic
print(f"rank correlation of both scores among the better half: {correlation:.2f}")
row, column = np.unravel_index(table.argmax(), table.shape)
cell = kept.reshape(shape)[:, row, :, column]
print(f"the four candidates of the table's best cell: {cell.min():.3f} to {cell.max():.3f}")

# %%
# Among the better half, the place in the search says next to nothing about the place on the rows
# kept, and the winner's score in the search is the largest of a hundred numbers with luck in them.
# The table above is the better adviser, because each of its cells is the mean of 20 networks: all
# candidates of its best cell are good ones.

figure, ax = plt.subplots(figsize=(7, 4.4))
edge = np.array([params["learning_rate_init"] == 0.1 for params in candidates])
for chosen, colour in ((~edge, BLUE), (edge, VERMILION)):
    ax.plot(100 * means[chosen], 100 * kept[chosen], "o", color=colour, alpha=0.6, mew=0)
ax.annotate("learning rate 0.1", (83, 74), color=VERMILION, weight="bold")
ax.annotate("smaller rates", (79, 89), color=BLUE, weight="bold", ha="right")
ax.annotate(
    "the winner",
    (100 * means[best], 100 * kept[best]),
    (95.4, 86),
    ha="right",
    arrowprops={"arrowstyle": "->"},
)
ax.set(xlabel="mean over the folds, percent", ylabel="rows kept, percent")
ax.set_title("At the top, the search's order is luck")
plt.show()
