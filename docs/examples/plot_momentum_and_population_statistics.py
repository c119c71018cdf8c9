"""
=======================================
Momentum, lag and population statistics
=======================================

A batch-normalized network is trained with the statistics of each mini-batch, and predicts with one
fixed mean and variance for every unit. The usual choice is moving averages that are collected
during training, and their momentum has to suit the number of steps: too much, and the averages lag
behind the weights; too little, and they are those of the last few rows. This example shows both
mistakes, with Keras's momentum of 0.99 among them, and what skbn does about it: averages that are
corrected for their start, and statistics measured over all training rows when training ends.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

# sphinx_gallery_thumbnail_number = 2

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skbn import MLPClassifierBN

# How many epochs there are is part of the experiment: that max_iter is reached is no news.
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
# Few steps
# ---------
# scikit-learn's wine: 178 rows, 13 columns of very different sizes, which nobody has scaled here.
# With the automatic batch size all training rows are one mini-batch, so 200 epochs are 200 steps.

n_seeds, n_steps = 6, 200


def split(data, seed):
    """Training and test rows: another split for every seed."""
    return train_test_split(*data, random_state=seed, stratify=data[1])


# %%
# ``bn_momentum`` has Keras's sense: the share of the average that every step leaves in place.
# (PyTorch's 0.1 is 0.9 here.) Keras and PyTorch begin their averages at mean 0 and variance 1;
# after :math:`t` steps with 0.99, a share of :math:`0.99^t` is still that. skbn takes it out, as
# Adam does with its own averages: the first batch counts in full. Put back by hand, it gives what
# Keras would have after the same steps.
#
# ``partial_fit`` goes over the rows once, here in one step. The same seed gives the same weights
# whatever the momentum, because training in mini-batches does not use the averages. How far are
# they off, and what does that cost? The exact statistics are those of all training rows behind the
# weights of the time.


def evaluate(clf, mean, var, X, y):
    """Score the network with these statistics: what predict does, by hand."""
    norm = clf.batch_norms_[0]
    z = X @ clf.coefs_[0] + clf.intercepts_[0]
    z = (z - mean) / np.sqrt(var + clf.bn_epsilon) * norm.gamma + norm.beta
    output = np.maximum(z, 0) @ clf.coefs_[1] + clf.intercepts_[1]
    return np.mean(clf.classes_[output.argmax(axis=1)] == y)


def run(seed):
    """Return {statistics: (error, accuracy) after every step}."""
    X_train, X_test, y_train, y_test = split(load_wine(return_X_y=True), seed)
    networks = [
        MLPClassifierBN((100,), batch_norm="before", bn_momentum=momentum, random_state=seed)
        for momentum in (0.9, 0.99)
    ]
    curves = {}
    for step in range(1, n_steps + 1):
        for clf in networks:
            clf.partial_fit(X_train, y_train, classes=np.unique(y_train))
        z = X_train @ clf.coefs_[0] + clf.intercepts_[0]
        exact, scale = z.mean(axis=0), z.std(axis=0)
        short, long = (clf.batch_norms_[0] for clf in networks)
        share = 1 - 0.99**step
        statistics = {
            "all training rows": (exact, scale**2),
            "0.9": (short.moving_mean, short.moving_var),
            "0.99": (long.moving_mean, long.moving_var),
            "0.99 from 0 and 1": (share * long.moving_mean, share * long.moving_var + 1 - share),
        }
        for name, (mean, var) in statistics.items():
            error = np.sqrt(np.mean(((mean - exact) / scale) ** 2))
            accuracy = evaluate(clf, mean, var, X_test, y_test)
            curves.setdefault(name, []).append((error, accuracy))
    return {name: np.transpose(values) for name, values in curves.items()}


runs = [run(seed) for seed in range(n_seeds)]
errors, accuracies = (
    {name: np.array([curves[name][i] for curves in runs]) for name in runs[0]} for i in (0, 1)
)

# %%
# The error of the averages, in standard deviations of each unit: root mean square over the 100
# units, median over six seeds and six splits, with quartiles as a band.

colours = {
    "all training rows": "#0072b2",
    "0.9": "#009e73",
    "0.99": "#e69f00",
    "0.99 from 0 and 1": "#d55e00",
}
steps = np.arange(1, n_steps + 1)


def draw(ax, name, values, height):
    """Median and quartiles over the seeds, and the name at the given height."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    ax.fill_between(steps, low, high, color=colours[name], alpha=0.2, lw=0)
    ax.plot(steps, middle, color=colours[name], lw=2)
    ax.text(n_steps + 4, height, name, color=colours[name], va="center", fontweight="bold")


figure, ax = plt.subplots(figsize=(6.4, 4.4))
for name, height in (("0.9", 0.55), ("0.99", 16), ("0.99 from 0 and 1", 11.5)):
    draw(ax, name, errors[name], height)
ax.set(yscale="log", xlim=(0, n_steps), xlabel="step", ylabel="error in standard deviations")
ax.set_title("With 0.99, means are off by more than ten standard deviations", fontsize=12)
plt.show()

# %%
# All curves of a seed are of the same weights; only the statistics differ that ``predict`` uses.

final = {name: values[:, -1].mean() for name, values in accuracies.items()}

figure, ax = plt.subplots(figsize=(6.4, 4.4))
for name, height in zip(colours, (0.98, 0.93, 0.64, 0.87), strict=True):
    draw(ax, name, accuracies[name], height)
ax.set(xlim=(0, n_steps), xlabel="step", ylabel="accuracy on the test rows")
ax.set_title(f"The same weights: {final['all training rows']:.0%} or {final['0.99']:.0%}")
plt.show()

for name in colours:
    print(f"{name:17} accuracy {final[name]:.3f} ± {accuracies[name][:, -1].std(ddof=1):.3f}")

# %%
# - An average over some hundred steps describes weights that are long gone. With **0.99** the
#   network predicts as if it had learned next to nothing after the first twenty steps.
# - Begun at **0 and 1**, as in Keras, it only guesses for sixty steps: this is what the correction
#   mends. Against the lag it does nothing. Later the uncorrected average even happens to be better
#   on these data, because what is left of 0 and 1 waters down the oldest batches.
# - **0.9** follows closely enough. It is the default of ``bn_momentum``.
# - The statistics of **all training rows** have nothing to follow. When ``fit`` ends they are
#   measured in one exact pass, layer by layer, and ``predict`` uses them: that is
#   ``bn_statistics="population"``, the default. ``partial_fit`` cannot know all rows, so after it
#   the moving averages serve, until ``recalibrate`` is given rows to measure.

X_train, X_test, y_train, y_test = split(load_wine(return_X_y=True), 0)
clf = MLPClassifierBN((100,), batch_norm="before", bn_momentum=0.99, random_state=0)
for _ in range(n_steps):
    clf.partial_fit(X_train, y_train, classes=np.unique(y_train))
lagging = clf.score(X_test, y_test)
recalibrated = clf.recalibrate(X_train).score(X_test, y_test)
print(f"after partial_fit {lagging:.3f}, recalibrated {recalibrated:.3f}")

# %%
# Few steps, many steps, small batches
# ------------------------------------
# Which momentum is right? With one large batch for each step any will do that forgets quickly. With
# many small batches it is the other way round: an average over few of them is noise. And a network
# may have both problems, few steps and small batches. ``bn_statistics="moving"`` predicts with the
# averages as training left them; ``recalibrate`` measures the same networks' exact statistics.

momenta = [0.0, 0.5, 0.9, 0.99, 0.999]
tasks = {
    "wine, one batch an epoch, 200 steps": (load_wine, {"max_iter": 200}),
    "digits, batches of 8, 1690 steps": (load_digits, {"batch_size": 8, "max_iter": 10}),
    "wine, batches of 8, 510 steps": (load_wine, {"batch_size": 8, "max_iter": 30}),
}


def sweep(load_data, options, momentum, seed):
    """Accuracy on the test rows with moving averages and with exact statistics."""
    X_train, X_test, y_train, y_test = split(load_data(return_X_y=True), seed)
    clf = MLPClassifierBN(
        (100,),
        batch_norm="before",
        bn_momentum=momentum,
        bn_statistics="moving",
        n_iter_no_change=np.inf,
        random_state=seed,
        **options,
    ).fit(X_train, y_train)
    return clf.score(X_test, y_test), clf.recalibrate(X_train).score(X_test, y_test)


sweeps = {
    name: np.array(
        [[sweep(*task, momentum, seed) for seed in range(n_seeds)] for momentum in momenta]
    )
    for name, task in tasks.items()
}

figure, axes = plt.subplots(3, figsize=(6.4, 8.4), sharex=True)
for ax, (name, scores) in zip(axes, sweeps.items(), strict=True):
    moving, exact = scores[..., 0], scores[0, :, 1]
    ax.axhline(exact.mean(), color=colours["all training rows"], lw=2)
    low, high = exact.mean() + np.array([-1, 1]) * exact.std(ddof=1)
    ax.axhspan(low, high, color=colours["all training rows"], alpha=0.2, lw=0)
    ax.errorbar(
        range(5), moving.mean(axis=1), moving.std(axis=1, ddof=1), color="#5c5c5c", marker="o", lw=2
    )
    ax.set(xticks=range(5), xticklabels=momenta, ylim=(0.4, 1.02), ylabel="accuracy")
    ax.set_title(name, fontsize=11)
axes[0].text(0, 0.8, "all training rows", color=colours["all training rows"], fontweight="bold")
axes[0].text(2.95, 0.8, "moving averages", color="#5c5c5c", fontweight="bold")
axes[-1].set_xlabel("momentum")
figure.suptitle("No momentum is right for all of them")
plt.show()

# %%
# Exact statistics are as good as the best momentum, without a choice to make, and where steps are
# few *and* batches small, they are better than any. With enough steps, as on the digits, 0.9 and
# 0.99 are both as good as exact, which is why nobody notices on large data.

for name, scores in sweeps.items():
    moving = scores[..., 0].mean(axis=1)
    print(
        f"{name:36} best momentum {momenta[moving.argmax()]} {moving.max():.3f}, "
        f"all training rows {scores[0, :, 1].mean():.3f}"
    )
