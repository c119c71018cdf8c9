"""
==============================================
Saturating activations: tanh and logistic nets
==============================================

The hyperbolic tangent and the logistic function are flat on both sides. A unit out there hardly
responds to its input, and hardly passes on a gradient. Batch normalization in front of it brings it
back to where the function is steep. This example looks at both ways to be stuck, inputs that are
too large and networks that are too deep, and at where batch normalization is no help.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedShuffleSplit

from skbn import MLPClassifierBN, fit_many

# The number of epochs is part of the experiment: that max_iter is reached is no news.
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
# Inputs that are too large
# -------------------------
# Two hidden layers of 64 units with tanh learn handwritten digits, whose pixels lie between 0 and
# 1, times a factor. Nobody would do that to pixels, but with columns in cents, grams or
# milliseconds it happens by itself. ``fit_many`` trains all networks in one call, each four times,
# with other weights and another split. Lines are means, bands go from the least to the largest.

n_seeds = 4
placements = {"none": None, "input": "input", "before": "before", "after": "after"}
colours = {"none": "#5c5c5c", "input": "#009e73", "before": "#d55e00", "after": "#0072b2"}


def fit_on_splits(X, y, settings):
    """Fit a network with each of the settings on each split; return networks and test scores."""
    splits = list(StratifiedShuffleSplit(n_seeds, test_size=0.25, random_state=0).split(X, y))
    networks = [
        MLPClassifierBN(
            **options, batch_size=32, max_iter=10, n_iter_no_change=np.inf, random_state=seed
        )
        for options, seed in product(settings, range(n_seeds))
    ]
    fit_many(networks, X, y, rows=[train for train, _ in splits] * len(settings))
    tests = [test for _, test in splits] * len(settings)
    scores = [clf.score(X[test], y[test]) for clf, test in zip(networks, tests, strict=True)]
    return networks[::n_seeds], np.reshape(scores, (len(settings), n_seeds))


def draw(ax, x, scores, name, label):
    """Mean over the splits, their range as a band, and the name at the given place."""
    low, high = scores.min(axis=1), scores.max(axis=1)
    ax.fill_between(x, low, high, color=colours[name], alpha=0.2, lw=0)
    ax.plot(x, scores.mean(axis=1), "o-", color=colours[name], lw=2)
    ax.text(*label, name, color=colours[name], fontweight="bold")


X, y = load_digits(return_X_y=True)
X /= 16
factors = 10.0 ** np.arange(-2, 4)
by_factor = {name: [] for name in placements}
scaled = {}
for factor in factors:
    settings = [
        {"hidden_layer_sizes": (64, 64), "activation": "tanh", "batch_norm": batch_norm}
        for batch_norm in placements.values()
    ]
    networks, scores = fit_on_splits(factor * X, y, settings)
    scaled[factor] = dict(zip(placements, networks, strict=True))
    for name, row in zip(placements, scores, strict=True):
        by_factor[name].append(row)
by_factor = {name: np.array(rows) for name, rows in by_factor.items()}

labels = {"none": (20, 0.85), "input": (0.02, 0.985), "before": (200, 0.985), "after": (250, 0.94)}
figure, ax = plt.subplots(figsize=(6.4, 4.6))
for name, scores in by_factor.items():
    draw(ax, factors, scores, name, labels[name])
ax.set(
    xscale="log",
    ylim=(0.6, 1),
    xlabel="pixels are multiplied by",
    ylabel="accuracy on the test rows",
)
ax.set_title("In front of the tanh, batch norm takes any scale")
plt.show()

for name, scores in by_factor.items():
    print(f"{name:6} " + " ".join(f"{score:.3f}" for score in scores.mean(axis=1)))

# %%
# Without batch normalization only some scales suit. With it *after* the activation small inputs are
# no trouble, and large ones do as much harm as without: what it normalizes is already flat. On the
# input and before the activation the factor is divided out. Standardizing the columns first would
# do that as well; batch normalization on the input is part of the network and cannot be forgotten.
#
# What the units do
# -----------------
# ``transform_hidden`` gives the activations of a hidden layer: here of the first, for the trained
# networks of the first split and all digits. At 0 tanh is steep, at -1 and 1 it is flat.

cases = [("none", 1.0), ("before", 1.0), ("none", 1000.0), ("before", 1000.0)]
saturated = {}
figure, axes = plt.subplots(2, 2, figsize=(6.4, 5.2), sharex=True)
for ax, (name, factor) in zip(axes.flat, cases, strict=True):
    activations = scaled[factor][name].transform_hidden(factor * X, layer=0)
    saturated[name, factor] = np.mean(np.abs(activations) > 0.99)
    ax.hist(activations.ravel(), bins=41, range=(-1, 1), color=colours[name])
    ax.set(xticks=[-1, 0, 1], yticks=[])
    ax.spines["left"].set_visible(False)
    ax.set_title(f"{name}, pixels times {factor:g}:\n{saturated[name, factor]:.0%} beyond ±0.99")
for ax in axes[1]:
    ax.set_xlabel("activation")
plt.show()

# %%
# With large inputs the units of the plain network are switches: all of them are where the function
# is flat. With batch normalization before the activation, 1000 is the same as 1.
#
# Networks that are too deep
# --------------------------
# The pixels are between 0 and 1 again, the hidden layers have 32 units, and there are more and more
# of them.

depths = [1, 2, 4, 8, 12]
by_depth = {}
for activation, name in product(("logistic", "tanh"), ("none", "before", "after")):
    settings = [
        {
            "hidden_layer_sizes": (32,) * depth,
            "activation": activation,
            "batch_norm": placements[name],
        }
        for depth in depths
    ]
    _, by_depth[activation, name] = fit_on_splits(X, y, settings)

labels = {
    "logistic": {"none": (4.5, 0.35), "before": (9, 0.99), "after": (10, 0.87)},
    "tanh": {"none": (10, 0.97), "before": (8.5, 0.78), "after": (5, 0.86)},
}
figure, axes = plt.subplots(2, figsize=(6.4, 7.6), sharex=True)
for ax, (activation, places) in zip(axes, labels.items(), strict=True):
    for name, place in places.items():
        draw(ax, depths, by_depth[activation, name], name, place)
    ax.set(ylabel="accuracy on the test rows", ylim=(0, 1.05))
axes[0].set_title("logistic: batch norm makes depth possible")
axes[1].set_title("tanh: little to mend, and harm in the deepest")
axes[1].set(xlabel="hidden layers", xticks=depths)
plt.show()

for (activation, name), scores in by_depth.items():
    row = " ".join(f"{score:.3f}" for score in scores.mean(axis=1))
    print(f"{activation:8} {name:6} {row}")

# %%
# With logistic units each further layer costs accuracy, until the network only guesses. With batch
# normalization, before or after, twelve layers learn as well as one. With tanh there is little to
# mend: the initial weights (Glorot and Bengio's, as in scikit-learn) are made for it. With one or
# two layers batch normalization gains one to three points; in the deepest of these networks it does
# harm, before the activations more than after.
#
# Signals and gradients at the start
# ----------------------------------
# Why do deep logistic networks not learn? After the first small step, look at each layer of eight:
# how much do its activations differ between the digits, and how large is the gradient of its
# weights? A step of gradient descent moves the weights by the learning rate times the gradient, so
# two networks that take one such step and two give the gradient away. (The first step itself would
# not do: with batch normalization after the activations the output layer starts at zero, and then
# that step moves nothing else.)


def at_the_start(activation, batch_norm, seed, depth=8):
    """Standard deviation of the activations over all rows, and RMS of the gradient, by layer."""
    rate = 0.01
    once, twice = (
        MLPClassifierBN(
            (32,) * depth,
            activation,
            batch_norm=batch_norm,
            solver="sgd",
            momentum=0.0,
            alpha=0.0,
            learning_rate_init=rate,
            batch_size=len(X),
            max_iter=steps,
            random_state=seed,
        ).fit(X, y)
        for steps in (1, 2)
    )
    activations = [once.transform_hidden(X, layer) for layer in range(depth)]
    gradients = [(a - b) / rate for a, b in zip(once.coefs_[:-1], twice.coefs_[:-1], strict=True)]
    return (
        [np.sqrt(np.mean(layer.var(axis=0))) for layer in activations],
        [np.sqrt(np.mean(gradient**2)) for gradient in gradients],
    )


start = {
    (activation, name): np.array(
        [at_the_start(activation, placements[name], seed) for seed in range(n_seeds)]
    )
    for activation, name in by_depth
}

layers = np.arange(1, 9)
figure, axes = plt.subplots(2, figsize=(6.4, 7.6), sharex=True)
for (activation, name), values in start.items():
    if activation == "tanh" and name != "none":
        continue  # level, like the logistic ones
    line, label = ("-", name) if activation == "logistic" else (":", "none, tanh")
    for ax, quantity in zip(axes, np.moveaxis(values, 1, 0), strict=True):
        low, high = quantity.min(axis=0), quantity.max(axis=0)
        ax.fill_between(layers, low, high, color=colours[name], alpha=0.2, lw=0)
        ax.plot(layers, quantity.mean(axis=0), line, color=colours[name], lw=2, marker="o")
        above = {"none, tanh": "top", "before": "bottom"}.get(label, "center")
        ax.text(8.2, quantity[:, -1].mean(), label, color=colours[name], va=above)
    axes[0].set(yscale="log", ylabel="spread of the activations")
    axes[1].set(yscale="log", ylabel="size of the gradient", xlabel="layer")
axes[0].set_title("Layer by layer the signal is lost on its way forward ...")
axes[1].set_title("... and the gradient on its way back")
plt.show()

# %%
# In the plain logistic network every layer divides the differences between digits by about seven,
# because the function is nowhere steeper than 1/4 and the initial weights do not make up for it.
# Every layer on the way back divides the gradient by about seven. Nothing is saturated here: the
# units all sit where the function is steepest, and say nothing. Batch normalization restores the
# size of the signal behind each layer, and with it the gradient is the same size in all of them
# (after the activations a smaller one: the output layer, at zero a step ago, is still small). So it
# is with tanh, even without: its slope at 0 is 1.

for (activation, name), values in start.items():
    (first, *_, last), (first_gradient, *_, last_gradient) = values.mean(axis=0)
    print(
        f"{activation:8} {name:6} first to last layer: spread {first:.2f} to {last:.2g}, "
        f"gradient {first_gradient:.1g} to {last_gradient:.1g}"
    )
