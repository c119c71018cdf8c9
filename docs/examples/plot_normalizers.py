"""
=================================================
Normalizers side by side: drift, photos, far means
=================================================

Subtract a mean, divide by a standard deviation: scikit-learn's StandardScaler, Keras's
Normalization and BatchNormalization, torch's BatchNorm1d and BatchNorm2d, and
:class:`skbn.BatchNormTransformer` all do that. What sets them apart is which rows the two numbers
are taken from, and how many of their digits are right. Three tests:

- a stream whose mean drifts and jumps, normalized by what was learned so far;
- photos, whose colour channels are normalized one by one;
- columns whose mean is far from zero, in float32.

Packages that are not installed are left out, and the output says so. It prints the figures behind
the figure.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.preprocessing import StandardScaler

from skbn import BatchNormTransformer
from skbn.functional import batch_norm

# %%
# The others
# ----------
# Each function below takes an array or a stream, and gives back what a user of that package would
# see. Keras needs one of three packages to compute with.

if find_spec("keras"):
    engines = [name for name in ("jax", "torch", "tensorflow") if find_spec(name)]
    if engines:
        os.environ.setdefault("KERAS_BACKEND", engines[0])
        import keras
    HAS_KERAS = bool(engines)
else:
    HAS_KERAS = False
if HAS_TORCH := find_spec("torch") is not None:
    import torch

# The colours are those of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
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
# deviation is 2. After each batch, rows still to come are normalized with the statistics learned so
# far. The error is the root mean square of what that does to them, beside the true mean and
# standard deviation of the time: ``((x - m) / s) - ((x - mean) / std)``.

N_BATCHES, BATCH_SIZE, N_COLUMNS, STD = 600, 32, 50, 2.0


def true_means():
    """The mean of every batch."""
    climb = np.interp(np.arange(N_BATCHES), [0, 150, 350, N_BATCHES], [10, 10, 20, 20])
    return climb - 8 * (np.arange(N_BATCHES) >= 450)


def draw_stream():
    """The batches, float32; the columns are repetitions of one experiment."""
    noise = np.random.default_rng(0).normal(scale=STD, size=(N_BATCHES, BATCH_SIZE, N_COLUMNS))
    return (true_means()[:, np.newaxis, np.newaxis] + noise).astype(np.float32)


def follow_estimator(estimator, stream):
    """Mean and variance after every batch, learned by ``partial_fit``."""
    for batch in stream:
        estimator.partial_fit(batch)
        yield estimator.mean_.copy(), estimator.var_.copy()


def keras_statistics(*statistics):
    return tuple(np.ravel(keras.ops.convert_to_numpy(value)) for value in statistics)


def follow_keras(stream):
    layer = keras.layers.BatchNormalization()
    for batch in stream:
        layer(batch, training=True)
        yield keras_statistics(layer.moving_mean, layer.moving_variance)


def follow_keras_adapted(stream):
    # It has no way to learn on: adapting again starts anew.
    layer = keras.layers.Normalization()
    layer.adapt(stream[:50].reshape(-1, N_COLUMNS))
    for _ in stream:
        yield keras_statistics(layer.mean, layer.variance)


def follow_torch(stream):
    layer = torch.nn.BatchNorm1d(N_COLUMNS)
    for batch in stream:
        layer(torch.from_numpy(batch))
        yield layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()


def follow_all():
    """Learned means and the error they make, batch by batch, by (package, how it learns)."""
    stream = draw_stream()
    followers = {
        ("skbn", "momentum=0.9"): follow_estimator(BatchNormTransformer(momentum=0.9), stream),
        ("skbn", "momentum=None"): follow_estimator(BatchNormTransformer(), stream),
        ("StandardScaler", "all rows"): follow_estimator(StandardScaler(), stream),
    }
    if HAS_KERAS:
        followers["Keras BatchNormalization", "momentum 0.99"] = follow_keras(stream)
        followers["Keras Normalization", "adapted to the first 50"] = follow_keras_adapted(stream)
    if HAS_TORCH:
        followers["torch BatchNorm", "momentum 0.1 (0.9 kept)"] = follow_torch(stream)
    truth, results = true_means()[:, np.newaxis], {}
    for name, learned in followers.items():
        mean, var = (np.array(values) for values in zip(*learned, strict=True))
        scale = np.sqrt(np.maximum(var, 1e-12))
        error = np.sqrt(np.mean(((truth - mean) / scale) ** 2 + (STD / scale - 1) ** 2, axis=1))
        results[name] = mean.mean(axis=1), error
    return results


# %%
# Photos
# ------
# Two photos, (2, 427, 640, 3). Each colour channel has one mean and one variance over all pixels of
# both. Given the mean and the standard deviation that the output should have, ``beta`` and
# ``gamma``, the transformer is a white balance: a coloured filter in front of the lens multiplies
# each channel by a number, and that is what normalization takes out.


def load_photos():
    """Two photos, float32 between 0 and 255, channels last."""
    return np.stack(load_sample_images().images).astype(np.float32)


def filtered(photos):
    """The same photos through a yellow filter."""
    return photos * np.float32([0.95, 0.75, 0.35])


def balance(photos):
    """Photos whose channels all have mean 0.45 and standard deviation 0.3."""
    return BatchNormTransformer(gamma=0.3, beta=0.45, epsilon=0.0).fit_transform(photos)


def exact_statistics(photos):
    """Mean and variance of the channels, from sums of whole numbers."""
    rows = photos.reshape(-1, 3).astype(np.int64)
    total, squares = rows.sum(axis=0), (rows**2).sum(axis=0)
    return total / len(rows), (len(rows) * squares - total**2) / len(rows) ** 2


def photo_statistics(photos):
    """Mean and variance of the channels, by package."""
    rows = photos.reshape(-1, 3)
    ours = BatchNormTransformer().fit(photos)
    scaler = StandardScaler().fit(rows)
    found = {"skbn": (ours.mean_, ours.var_), "StandardScaler": (scaler.mean_, scaler.var_)}
    if HAS_KERAS:
        layer = keras.layers.Normalization()
        layer.adapt(photos)
        found["Keras Normalization"] = keras_statistics(layer.mean, layer.variance)
        layer = keras.layers.BatchNormalization(momentum=0.0)
        layer(photos, training=True)
        moving = keras_statistics(layer.moving_mean, layer.moving_variance)
        found["Keras BatchNormalization"] = moving
    if HAS_TORCH:
        layer = torch.nn.BatchNorm2d(3, momentum=1.0)
        layer(torch.from_numpy(photos).permute(0, 3, 1, 2))
        # torch keeps the variance of a sample, n - 1 below; the others that of the population
        var = layer.running_var.numpy() * (1 - 1 / len(rows))
        found["torch BatchNorm"] = layer.running_mean.numpy(), var
    return found


# %%
# Means far from zero
# -------------------
# A timestamp, a pressure in pascals, a price in cents: columns of float32 whose spread is small
# beside their mean. The float32 numbers themselves are exact, so their normalized values are known
# to all digits; the error is the largest difference from them, over 64 draws of 4096 rows. Epsilon
# is the smallest that each takes.

RATIOS = 10.0 ** np.arange(0, 7.5, 0.5)


def hostile_columns(ratio):
    """Columns with standard deviation 1 and the given mean, and their exact normalization."""
    x = (ratio + np.random.default_rng(0).normal(size=(4096, 64))).astype(np.float32)
    centered = x - x.mean(axis=0, dtype=np.longdouble)
    return x, centered / np.sqrt(np.mean(centered**2, axis=0))


def normalize_by_all(x):
    """Normalized columns, by package."""
    found = {
        "skbn": batch_norm(x, epsilon=0.0)[0],
        "StandardScaler": StandardScaler().fit_transform(x),
    }
    if HAS_KERAS:
        layer = keras.layers.Normalization()
        layer.adapt(x)
        found["Keras Normalization"] = keras.ops.convert_to_numpy(layer(x))
        layer = keras.layers.BatchNormalization(epsilon=1e-12)
        y = layer(x, training=True)
        found["Keras BatchNormalization"] = keras.ops.convert_to_numpy(y)
    if HAS_TORCH:
        layer = torch.nn.BatchNorm1d(x.shape[1], eps=1e-12, affine=False)
        found["torch BatchNorm"] = layer(torch.from_numpy(x)).numpy()
    return found


def hostile_errors():
    """The largest error at every ratio, by package."""
    errors = {}
    for ratio in RATIOS:
        x, exact = hostile_columns(ratio)
        for name, y in normalize_by_all(x).items():
            errors.setdefault(name, []).append(float(np.abs(y - exact).max()))
    return errors


# %%
# Print and draw
# --------------


def print_results(streams, statistics, errors):
    """The numbers behind the figure."""
    moments = {"first batch": 0, "after 20": 19, "before climb": 149, "end of climb": 349}
    moments |= {"before jump": 449, "50 after jump": 499}
    print("Stream: error of the normalized output, in standard deviations")
    print(f"{'':50}", *(f"{name:>13}" for name in moments))
    for (name, how), (_, error) in streams.items():
        print(f"{name + ', ' + how:50}", *(f"{error[i]:13.3f}" for i in moments.values()))

    print("\nPhotos: largest relative error of a channel's mean and of its variance")
    exact = exact_statistics(load_photos())
    for name, found in statistics.items():
        parts = (np.abs(value / true - 1).max() for value, true in zip(found, exact, strict=True))
        print(f"{name:26}", *(f"{part:8.0e}" for part in parts))

    print("\nColumns of float32: largest error of the normalized output, by mean / std")
    print(f"{'':26}", *(f"{ratio:8.0e}" for ratio in RATIOS[::2]))
    for name, error in errors.items():
        print(f"{name:26}", *(f"{value:8.0e}" for value in error[::2]))


DASHED = {"all rows", "momentum 0.1 (0.9 kept)"}  # these lie on the lines of others


def draw_streams(ax_mean, ax_error, streams):
    """The stream with what was learned of it, and the error."""
    stream, batches = draw_stream(), np.arange(1, N_BATCHES + 1)
    shades = np.quantile(stream, [0.05, 0.95], axis=(1, 2))
    ax_mean.fill_between(batches, *shades, color="0.9", lw=0, label="90% of the rows")
    ax_mean.plot(batches, true_means(), color="k", lw=1, ls=":", label="true mean")
    for (name, how), (mean, error) in streams.items():
        style = {"color": COLOURS[name], "lw": 2.6 if how == "momentum=0.9" else 1.6}
        if how in DASHED:
            style |= {"dashes": (3, 3), "lw": 2.0}
        ax_mean.plot(batches, mean, **style)
        ax_error.plot(batches, error, label=f"{name}, {how}", **style)
    ax_mean.set(title="A stream that drifts and jumps: the mean learned so far", ylim=(0, 25))
    ax_mean.legend(loc="lower right", frameon=False)
    ax_mean.tick_params(labelbottom=False)
    ax_error.set(yscale="log", ylim=(0.02, 30), xlabel="batches of 32 rows")
    ax_error.set_title("Error of rows normalized with it, in standard deviations")


def draw_photos(axes, photos):
    """A photo, what a filter makes of it, both balanced; and the histograms of their channels."""
    balanced = balance(filtered(photos))
    pictures = {
        "a photo": photos / 255,
        "through a yellow filter": filtered(photos) / 255,
        "either, normalized": np.clip(balanced, 0, 1),
    }
    for (title, picture), ax in zip(pictures.items(), axes, strict=False):
        ax.imshow(picture[0], interpolation="bilinear")
        ax.set_title(title)
        ax.axis("off")
    channels = {
        "channels behind the filter": filtered(photos) / 255,
        "channels normalized": balanced,
    }
    for (title, array), ax in zip(channels.items(), axes[3:], strict=True):
        for channel, colour in enumerate(["#d62728", "#2ca02c", "#1f77b4"]):
            counts, edges = np.histogram(array[..., channel], bins=80, range=(-0.1, 1.1))
            ax.stairs(counts, edges, color=colour, lw=1.4)
            ax.stairs(counts, edges, color=colour, fill=True, alpha=0.12)
        ax.set(title=title, yticks=[], xlim=(-0.1, 1.1))
        ax.spines["left"].set_visible(False)


def draw_errors(ax, errors):
    """The error of the normalized column over the distance of its mean."""
    eps = np.finfo(np.float32).eps
    ax.plot(RATIOS, RATIOS * eps, color="0.75", lw=1, ls="--", zorder=0)
    ax.annotate("dashed: float32's spacing at the mean", (10**4.0, 1e-6), color="0.5")
    for name, error in errors.items():
        ax.plot(RATIOS, error, "o-", ms=3.5, color=COLOURS[name], lw=2.4 if name == "skbn" else 1.6)
    ax.set(xscale="log", yscale="log", xlabel="mean / standard deviation of a float32 column")
    ax.set_title("Largest error of the normalized column")


def main():
    """Run the three tests, print what they gave, draw the figure."""
    for name, there in (("Keras", HAS_KERAS), ("torch", HAS_TORCH)):
        if not there:
            print(f"{name} is not installed (or has nothing to compute with) and is left out.")
    photos = load_photos()
    streams, errors = follow_all(), hostile_errors()
    print_results(streams, photo_statistics(photos), errors)

    import matplotlib.pyplot as plt

    style = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "legend.fontsize": "small",
        "figure.dpi": 120,
        "savefig.dpi": 120,
    }
    with plt.rc_context(style):
        figure = plt.figure(figsize=(14, 9.5), layout="constrained")
        axes = figure.subplot_mosaic(
            [
                ["mean"] * 6 + ["photo"] * 2 + ["filtered"] * 2 + ["balanced"] * 2,
                ["mean"] * 6 + ["before"] * 3 + ["after"] * 3,
                ["error"] * 6 + ["far"] * 6,
            ],
            height_ratios=[1, 1, 2],
        )
        draw_streams(axes["mean"], axes["error"], streams)
        names = ("photo", "filtered", "balanced", "before", "after")
        draw_photos([axes[name] for name in names], photos)
        draw_errors(axes["far"], errors)
        handles, labels = axes["error"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        path = Path("normalizers.png").resolve()
        figure.savefig(path)
    print(f"\nfigure: {path}")
    # Without a display, matplotlib chooses the Agg backend by itself.
    if plt.get_backend().lower() != "agg":
        plt.show()


if __name__ == "__main__":
    main()
