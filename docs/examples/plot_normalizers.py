"""
==================================================
Normalizers side by side: drift, photos, far means
==================================================

Subtract a mean, divide by a standard deviation: scikit-learn's StandardScaler, Keras's
Normalization and BatchNormalization, torch's BatchNorm1d and BatchNorm2d, and
:class:`skbn.BatchNormTransformer` all do that. What sets them apart is which rows the two numbers
are taken from, and how many of their digits are right. Three tests:

- a stream whose mean drifts and jumps, normalized by what was learned so far;
- photos, whose colour channels are normalized one by one;
- columns whose mean is far from zero, in float32.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

# sphinx_gallery_thumbnail_number = 2

# %%
# Keras and torch take part where they are installed; Keras needs one of three packages to compute
# with.

import os
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.preprocessing import StandardScaler

from skbn import BatchNormTransformer
from skbn.functional import batch_norm

engines = [name for name in ("jax", "torch", "tensorflow") if find_spec(name)]
if has_keras := find_spec("keras") is not None and bool(engines):
    os.environ.setdefault("KERAS_BACKEND", engines[0])
    import keras
if has_torch := find_spec("torch") is not None:
    import torch
for name, there in (("Keras", has_keras), ("torch", has_torch)):
    if not there:
        print(f"{name} is not installed (or has nothing to compute with) and is left out.")

plt.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "font.size": 12,
        "legend.fontsize": 10,
        "legend.frameon": False,
    }
)
COLOURS = {  # of Okabe and Ito
    "skbn": "#0072b2",
    "StandardScaler": "#5c5c5c",
    "Keras BatchNormalization": "#d55e00",
    "Keras Normalization": "#e69f00",
    "torch BatchNorm": "#009e73",
}

# %%
# A stream that drifts
# --------------------
# Batches of 32 rows come in. Their mean stays for a while, climbs, and jumps; their standard
# deviation is 2. The 50 columns are repetitions of one experiment.

N_BATCHES, BATCH_SIZE, N_COLUMNS, STD = 600, 32, 50, 2.0

true_means = np.interp(np.arange(N_BATCHES), [0, 150, 350, N_BATCHES], [10, 10, 20, 20])
true_means[450:] -= 8
noise = np.random.default_rng(0).normal(scale=STD, size=(N_BATCHES, BATCH_SIZE, N_COLUMNS))
stream = (true_means[:, np.newaxis, np.newaxis] + noise).astype(np.float32)

# %%
# Each function below gives mean and variance after every batch, as that package has learned them.


def follow_estimator(estimator):
    for batch in stream:
        estimator.partial_fit(batch)
        yield estimator.mean_.copy(), estimator.var_.copy()


def keras_statistics(*statistics):
    return tuple(np.ravel(keras.ops.convert_to_numpy(value)) for value in statistics)


def follow_keras():
    layer = keras.layers.BatchNormalization()
    for batch in stream:
        layer(batch, training=True)
        yield keras_statistics(layer.moving_mean, layer.moving_variance)


def follow_keras_adapted():
    # It has no way to learn on: adapting again starts anew.
    layer = keras.layers.Normalization()
    layer.adapt(stream[:50].reshape(-1, N_COLUMNS))
    for _ in stream:
        yield keras_statistics(layer.mean, layer.variance)


def follow_torch():
    layer = torch.nn.BatchNorm1d(N_COLUMNS)
    for batch in stream:
        layer(torch.from_numpy(batch))
        yield layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()


followers = {
    ("skbn", "momentum=0.9"): follow_estimator(BatchNormTransformer(momentum=0.9)),
    ("skbn", "momentum=None"): follow_estimator(BatchNormTransformer()),
    ("StandardScaler", "all rows"): follow_estimator(StandardScaler()),
}
if has_keras:
    followers["Keras BatchNormalization", "momentum 0.99"] = follow_keras()
    followers["Keras Normalization", "adapted to the first 50"] = follow_keras_adapted()
if has_torch:
    followers["torch BatchNorm", "momentum 0.1 (0.9 kept)"] = follow_torch()

# %%
# After each batch, rows still to come are normalized with the statistics learned so far. The error
# is the root mean square of what that does to them, beside the true mean m and standard deviation s
# of the time: ``(x - m) / s - (x - mean) / std``.

learned, stream_errors = {}, {}
for name, statistics in followers.items():
    mean, var = (np.array(values) for values in zip(*statistics, strict=True))
    scale = np.sqrt(np.maximum(var, 1e-12))
    shift = (true_means[:, np.newaxis] - mean) / scale
    learned[name] = mean.mean(axis=1)
    stream_errors[name] = np.sqrt(np.mean(shift**2 + (STD / scale - 1) ** 2, axis=1))

moments = {"first batch": 0, "after 20": 19, "before climb": 149, "end of climb": 349}
moments |= {"before jump": 449, "50 after jump": 499}
print(f"{'':46}", *(f"{name:>13}" for name in moments))
for (name, how), error in stream_errors.items():
    print(f"{name + ', ' + how:46}", *(f"{error[i]:13.3f}" for i in moments.values()))

# %%
# While nothing moves, more rows are better: ``momentum=None`` and StandardScaler, which are the
# same here, gain with each batch. When the mean moves, they remember too much. A moving average
# that retains 0.9 lags a quarter of a standard deviation behind in the climb, and 50 batches after
# the jump it has forgotten it. It is bias-corrected: the first batch counts in full.

figure, (ax_mean, ax_error) = plt.subplots(2, 1, figsize=(7, 7.5), sharex=True)
batches = np.arange(1, N_BATCHES + 1)
shades = np.quantile(stream, [0.05, 0.95], axis=(1, 2))
ax_mean.fill_between(batches, *shades, color="0.9", lw=0, label="90% of the rows")
ax_mean.plot(batches, true_means, color="k", lw=1, ls=":", label="true mean")
dashed = {"all rows", "momentum 0.1 (0.9 kept)"}  # these lie on the lines of others
for (name, how), mean in learned.items():
    style = {"color": COLOURS[name], "lw": 2.6 if how == "momentum=0.9" else 1.6}
    if how in dashed:
        style |= {"dashes": (3, 3), "lw": 2.0}
    ax_mean.plot(batches, mean, **style)
    ax_error.plot(batches, stream_errors[name, how], label=f"{name}, {how}", **style)
ax_mean.set(title="The mean learned so far", ylim=(0, 26))
ax_mean.legend(loc="lower right")
ax_error.set(yscale="log", ylim=(0.01, 30), xlabel="batches of 32 rows")
ax_error.set_title("Error of rows normalized with it, in standard deviations")
figure.legend(*ax_error.get_legend_handles_labels(), loc="outside upper left", ncols=2)
plt.show()

# %%
# Photos
# ------
# Two photos, 427 x 640 pixels of three colours. Each colour has one mean and one variance over all
# pixels of both. Given the mean and the standard deviation that the output should have, ``beta``
# and ``gamma``, the transformer is a white balance: a coloured filter in front of the lens
# multiplies each channel by a number, and that is what normalization takes out.

photos = np.stack(load_sample_images().images).astype(np.float32)
filtered = photos * np.float32([0.95, 0.75, 0.35])


def balance(photos):
    """Photos whose channels all have mean 0.45 and standard deviation 0.3."""
    return BatchNormTransformer(gamma=0.3, beta=0.45, epsilon=0.0).fit_transform(photos)


balanced, balanced_without = balance(filtered), balance(photos)
difference = np.abs(balanced - balanced_without).max()
print(f"with and without the filter, pixels differ by at most {difference:.0e}")

figure, axes = plt.subplots(2, 2, figsize=(7, 5.4))
for ax, picture, title in (
    (axes[0, 0], filtered / 255, "through a yellow filter"),
    (axes[0, 1], np.clip(balanced, 0, 1), "normalized"),
):
    ax.imshow(picture[0], interpolation="bilinear")
    ax.set_title(title)
    ax.axis("off")
for ax, array in zip(axes[1], (filtered / 255, balanced), strict=True):
    for channel, colour in enumerate(["#d62728", "#2ca02c", "#1f77b4"]):
        counts, edges = np.histogram(array[..., channel], bins=80, range=(-0.1, 1.1))
        ax.stairs(counts, edges, color=colour, lw=1.4)
        ax.stairs(counts, edges, color=colour, fill=True, alpha=0.12)
    ax.set(title="its three channels", yticks=[], xlim=(-0.1, 1.1))
    ax.spines["left"].set_visible(False)
plt.show()

# %%
# The statistics of the unfiltered photos can be checked against sums of whole numbers. For pictures
# all of them are good enough.

rows = photos.reshape(-1, 3)
whole = rows.astype(np.int64)
total, squares = whole.sum(axis=0), (whole**2).sum(axis=0)
exact = total / len(whole), (len(whole) * squares - total**2) / len(whole) ** 2

transformer, scaler = BatchNormTransformer().fit(photos), StandardScaler().fit(rows)
statistics = {
    "skbn": (transformer.mean_, transformer.var_),
    "StandardScaler": (scaler.mean_, scaler.var_),
}
if has_keras:
    layer = keras.layers.Normalization()
    layer.adapt(photos)
    statistics["Keras Normalization"] = keras_statistics(layer.mean, layer.variance)
    layer = keras.layers.BatchNormalization(momentum=0.0)
    layer(photos, training=True)
    moving = keras_statistics(layer.moving_mean, layer.moving_variance)
    statistics["Keras BatchNormalization"] = moving
if has_torch:
    layer = torch.nn.BatchNorm2d(3, momentum=1.0)
    layer(torch.from_numpy(photos).permute(0, 3, 1, 2))
    # torch keeps the variance of a sample, n - 1 below; the others that of the population
    var = layer.running_var.numpy() * (1 - 1 / len(rows))
    statistics["torch BatchNorm"] = layer.running_mean.numpy(), var

print("largest relative error of a channel's mean and of its variance")
for name, found in statistics.items():
    parts = (np.abs(value / true - 1).max() for value, true in zip(found, exact, strict=True))
    print(f"{name:26}", *(f"{part:8.0e}" for part in parts))

# %%
# Means far from zero
# -------------------
# A timestamp, a pressure in pascals, a price in cents: columns of float32 whose spread is small
# beside their mean. The float32 numbers themselves are exact, so their normalized values are known
# to all digits; the error is the largest difference from them, over 64 draws of 4096 rows. Epsilon
# is the smallest that each takes.


def normalize_by_all(x):
    """Normalized columns, by package."""
    found = {
        "skbn": batch_norm(x, epsilon=0.0)[0],
        "StandardScaler": StandardScaler().fit_transform(x),
    }
    if has_keras:
        layer = keras.layers.Normalization()
        layer.adapt(x)
        found["Keras Normalization"] = keras.ops.convert_to_numpy(layer(x))
        layer = keras.layers.BatchNormalization(epsilon=1e-12)
        y = layer(x, training=True)
        found["Keras BatchNormalization"] = keras.ops.convert_to_numpy(y)
    if has_torch:
        layer = torch.nn.BatchNorm1d(x.shape[1], eps=1e-12, affine=False)
        found["torch BatchNorm"] = layer(torch.from_numpy(x)).numpy()
    return found


ratios = 10.0 ** np.arange(0, 7.5, 0.5)
far_errors = {}
for ratio in ratios:
    x = (ratio + np.random.default_rng(0).normal(size=(4096, 64))).astype(np.float32)
    centered = x - x.mean(axis=0, dtype=np.longdouble)
    normalized = centered / np.sqrt(np.mean(centered**2, axis=0))
    for name, y in normalize_by_all(x).items():
        far_errors.setdefault(name, []).append(float(np.abs(y - normalized).max()))
print(f"{'mean / standard deviation':26}", *(f"{ratio:8.0e}" for ratio in ratios[::2]))
for name, error in far_errors.items():
    print(f"{name:26}", *(f"{value:8.0e}" for value in error[::2]))

# %%
# A mean that is rounded to float32 is off by up to half the spacing of float32 numbers there, which
# grows with the mean: the dashed line. StandardScaler's mean is float64, but ``transform`` rounds
# it to the type of X (from scikit-learn 1.8 on). In skbn the mean is held in two parts and
# subtracted in two steps, and the error is that of a few roundings at any distance.

figure, ax = plt.subplots(figsize=(7, 4.6))
ax.plot(ratios, ratios * np.finfo(np.float32).eps, color="0.75", lw=1, ls="--", zorder=0)
ax.annotate("float32's spacing at the mean", (10**4.6, 4e-4), color="0.5", size=11)
for name, error in far_errors.items():
    width = 2.4 if name == "skbn" else 1.6
    ax.plot(ratios, error, "o-", ms=3.5, color=COLOURS[name], lw=width, label=name)
ax.set(xscale="log", yscale="log", xlabel="mean / standard deviation of a float32 column")
ax.set_title("Largest error of the normalized column")
ax.legend(loc="upper left")
plt.show()
