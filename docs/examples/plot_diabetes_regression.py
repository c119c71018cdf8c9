"""
======================
Regression on diabetes
======================

The progression of diabetes after a year, from ten measurements of 442 patients: few rows, much
noise, and a relation that is almost linear. :class:`skbn.MLPRegressorBN` next to ridge regression
and boosted trees, with validation rows of its own to stop on, and with four losses where some
targets are wrong.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

# sphinx_gallery_thumbnail_number = 3

# %%
# Targets are from 25 to 346. No norm stands behind a network's output, so it would be far to go
# there from its initial weights; in hundreds they are near 1.

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import PredictionErrorDisplay, mean_absolute_error, r2_score
from sklearn.model_selection import KFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skbn import MLPRegressorBN, TrainingCurveDisplay

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

X, y = load_diabetes(return_X_y=True, scaled=False)
y = y / 100


def network(batch_norm, *, loss="squared_error", alpha=1.0, random_state):
    return MLPRegressorBN(
        loss,
        (20,),
        batch_norm=batch_norm,
        alpha=alpha,
        batch_size=32,
        learning_rate_init=0.003,
        max_iter=300,
        early_stopping=True,
        scoring="loss",
        n_iter_no_change=20,
        random_state=random_state,
    )


# %%
# Stopping on rows of one's own
# -----------------------------
# ``fit`` takes validation rows as ``X_val`` and ``y_val``, and ``early_stopping`` heeds them: the
# epoch with the best validation loss comes back, weights and statistics. The loss in training is
# the larger one here, because it holds the L2 penalty and the noise of mini-batches.

X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=0.3, random_state=0)
one = network("input", random_state=0).fit(X_train, y_train, X_val=X_val, y_val=y_val)
display = TrainingCurveDisplay.from_estimator(one, kind="loss", mark_best=True)
display.figure_.set_size_inches(7, 4)
display.ax_.set(ylim=(0, 0.6), title=f"Epoch {one.best_iter_} of {one.n_iter_} comes back")
plt.show()

# %%
# Beside others
# -------------
# Five folds, three times. A fifth of their training rows tells networks when to stop and which of
# three L2 penalties to take; that costs them data which the others learn from. The 20 units and the
# size of the trees were chosen by hand, and on these folds.


def predict_folds(fit, seed, y_train=y):
    """Predictions for all rows, each by a model that was fitted to the other four folds."""
    predictions = np.empty_like(y)
    with threadpool_limits(1, user_api="openmp"):  # for more there are too few rows
        for train, test in KFold(5, shuffle=True, random_state=seed).split(X):
            predictions[test] = fit(train, y_train, seed).predict(X[test])
    return predictions


def ridge(train, y_train, seed):
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 16)))
    return model.fit(X[train], y_train[train])


def boosted_trees(train, y_train, seed):
    model = HistGradientBoostingRegressor(learning_rate=0.05, max_iter=60, max_leaf_nodes=8)
    return model.fit(X[train], y_train[train])


chosen = {}


def stopped(batch_norm, loss="squared_error"):
    """Fit a network that stops, and chooses its penalty, on a fifth of the rows."""

    def fit(train, y_train, seed):
        train, val = train_test_split(train, test_size=0.2, random_state=seed)
        # Without batch norm on the input somebody has to scale; else this one does nothing.
        scaler = StandardScaler(with_mean=batch_norm is None, with_std=batch_norm is None)
        X_train, X_val = scaler.fit_transform(X[train]), scaler.transform(X[val])
        networks = [
            network(batch_norm, loss=loss, alpha=alpha, random_state=seed).fit(
                X_train, y_train[train], X_val=X_val, y_val=y_train[val]
            )
            for alpha in (0.1, 1.0, 10.0)
        ]
        best = max(networks, key=lambda network: network.best_validation_score_)
        chosen.setdefault((batch_norm, loss), []).append(best.alpha)
        return make_pipeline(scaler, best)

    return fit


SEEDS = range(3)
models = {
    "ridge regression": ridge,
    "boosted trees": boosted_trees,
    "network, no batch norm": stopped(None),
    'network, "input"': stopped("input"),
    'network, "input" and "before"': stopped(("input", "before")),
    'network, "input" and "after"': stopped(("input", "after")),
}
predictions = {name: [predict_folds(fit, seed) for seed in SEEDS] for name, fit in models.items()}
r2 = {name: [r2_score(y, found) for found in runs] for name, runs in predictions.items()}
for name, values in r2.items():
    print(f"{name:30} R2 {np.mean(values):.3f} ± {np.std(values):.3f}")

# %%
# A linear model is hard to beat here, and on average no network beats it. Batch norm on the input
# does what a StandardScaler does. In the hidden layer it asks for ten times the penalty, and then
# gains nothing, or loses.

for (batch_norm, _), values in chosen.items():
    print(f"batch_norm={batch_norm!r}: median alpha {np.median(values):g}")

figure, ax = plt.subplots(figsize=(7, 3.6))
for height, (name, values) in enumerate(r2.items()):
    colour = BLUE if "network" in name else GREY
    ax.plot(values, np.full(len(values), height), "o", ms=6, color=colour, alpha=0.5, mew=0)
    ax.plot(np.mean(values), height, "|", ms=18, mew=3, color=colour)
ax.set_yticks(range(len(r2)), [name.replace(", ", ",\n") for name in r2])
ax.set(xlabel="R2 over five folds, three repetitions", ylim=(len(r2) - 0.5, -0.5))
ax.set_title("A linear model is hard to beat")
ax.grid(axis="x", color="0.92")
plt.show()

# %%
# The actual values over the predicted ones, of every patient once. Two very different models see
# the same thing, and the same rest that ten measurements do not tell.

figure, axes = plt.subplots(1, 2, figsize=(7, 4))
for ax, name, colour in zip(
    axes, ("ridge regression", 'network, "input"'), (GREY, BLUE), strict=True
):
    found = predictions[name][0]
    PredictionErrorDisplay.from_predictions(
        y,
        found,
        kind="actual_vs_predicted",
        ax=ax,
        scatter_kwargs={"color": colour, "alpha": 0.35, "s": 16, "lw": 0},
    )
    ax.set(title=f"{name}\nR2 = {r2_score(y, found):.2f}", xlabel="predicted", ylabel="")
    ax.set(xticks=[1, 2, 3], yticks=[1, 2, 3])
axes[0].set(ylabel="actual, in hundreds")
plt.show()
correlation = np.corrcoef(predictions["ridge regression"][0], predictions['network, "input"'][0])[
    0, 1
]
print(f"correlation of the two predictions: {correlation:.2f}")

# %%
# Wrong targets, and four losses
# ------------------------------
# One target in twenty gets a zero too many, in training and validation alike, not in the test. The
# squared error and Poisson's deviance follow these. The absolute error, whose best prediction is
# the median, and Huber's, which is absolute beyond 1 (here a hundred units), hardly notice.

LOSSES = ["squared_error", "poisson", "absolute_error", "huber"]
errors = {}
for loss, share in product(LOSSES, (0, 0.05)):
    for seed in SEEDS:
        wrong = np.random.default_rng(seed).random(len(y)) < share
        found = predict_folds(stopped("input", loss), seed, np.where(wrong, 10 * y, y))
        errors.setdefault((loss, share), []).append(100 * mean_absolute_error(y, found))
for loss in LOSSES:
    right, wrong = (np.array(errors[loss, share]) for share in (0, 0.05))
    print(f"{loss:15} mean absolute error {right.mean():.1f} ± {right.std():.1f}", end=", ")
    print(f"with wrong targets {wrong.mean():.1f} ± {wrong.std():.1f}")

# %%

figure, ax = plt.subplots(figsize=(7, 3.4))
for (height, loss), share in product(enumerate(LOSSES), (0, 0.05)):
    values, colour = errors[loss, share], VERMILION if share else BLUE
    ax.plot(values, np.full(len(values), height), "o", ms=6, color=colour, alpha=0.5, mew=0)
    ax.plot(np.mean(values), height, "|", ms=18, mew=3, color=colour)
ax.annotate("all targets right", (48, 0.1), color=BLUE, weight="bold")
ax.annotate("5% with a zero too many", (64, 0.6), color=VERMILION, weight="bold")
ax.set_yticks(range(len(LOSSES)), LOSSES)
ax.set(xlabel="mean absolute error of the test rows", ylim=(3.5, -0.5))
ax.set_title("Absolute error and Huber's bear with wrong targets")
ax.grid(axis="x", color="0.92")
plt.show()
