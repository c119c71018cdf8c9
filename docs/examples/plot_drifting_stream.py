"""
=================
A drifting stream
=================

A network is trained, put to work, and then the features drift: sensors age, units change, prices
rise. Batch normalization alone does not help, for the statistics that a network predicts with are
those of the time when it was trained. But they can be measured anew, from rows without labels:
``recalibrate`` does that for a network, and a :class:`skbn.BatchNormTransformer` in front of any
model by ``partial_fit``. And there is a drift for which that is the wrong remedy.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

# %%
# The stream
# ----------
# Four classes, 20 features, 2000 rows to train. Then 120 batches of 32 rows come in. From batch 20
# to batch 70 each feature moves by a few of its standard deviations and is stretched or shrunk;
# before and after that nothing changes. Each of five repetitions has other data, another drift and
# other initial weights.

import warnings
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

from skbn import BatchNormTransformer, MLPClassifierBN

# Twenty epochs are meant to be the end: that max_iter is reached is no news.
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
GREY, BLUE, VERMILION, GREEN = "#5c5c5c", "#0072b2", "#d55e00", "#009e73"  # of Okabe and Ito

N_TRAIN, N_BATCHES, BATCH_SIZE, N_FEATURES = 2000, 120, 32, 20
SEEDS = range(5)
level = np.interp(np.arange(N_BATCHES), [0, 20, 70, N_BATCHES], [0, 0, 1, 1])


def make_data(seed):
    """Training rows and labels, and a stream of batches of both that does not drift yet."""
    X, y = make_classification(
        N_TRAIN + N_BATCHES * BATCH_SIZE,
        N_FEATURES,
        n_informative=12,
        n_redundant=0,
        n_classes=4,
        class_sep=2.0,
        random_state=seed,
    )
    X = StandardScaler().fit(X[:N_TRAIN]).transform(X)
    stream = zip(
        np.split(X[N_TRAIN:], N_BATCHES),
        np.split(y[N_TRAIN:], N_BATCHES),
        strict=True,
    )
    return X[:N_TRAIN], y[:N_TRAIN], list(stream)


def drift(stream, seed):
    """The same batches, each feature moved and stretched."""
    rng = np.random.default_rng(seed)
    stretch = np.exp(rng.normal(scale=0.7, size=N_FEATURES))
    move = rng.normal(scale=2.0, size=N_FEATURES)
    return [(X * stretch**t + move * t, y) for (X, y), t in zip(stream, level, strict=True)]


# %%
# Seven ways to meet it
# ---------------------
# Every batch is predicted first and learned from afterwards. Networks without and with batch norm
# on the input that learn nothing are two of them. Three learn without labels:
#
# - ``recalibrate`` on the last eight batches: new population statistics, the weights stay;
# - a plain network behind a ``BatchNormTransformer(momentum=0.9)``, which follows the stream by a
#   moving average, as Keras's layer does in training;
# - the same with ``momentum=None``, to which all rows so far count the same.
#
# Two need labels: ``partial_fit``, without batch norm and with it.


class Fixed:
    """Learns nothing."""

    def __init__(self, network):
        self.network = network

    def predict(self, X):
        return self.network.predict(X)

    def learn(self, X, y):
        pass


class Recalibrated(Fixed):
    """Measures its statistics on the last eight batches."""

    recent = ()

    def learn(self, X, y):
        self.recent = [*self.recent[-7:], X]
        self.network.recalibrate(np.concatenate(self.recent))


class Trained(Fixed):
    """Learns from labels; predicts with moving statistics."""

    def learn(self, X, y):
        self.network.partial_fit(X, y)


class Normalized(Fixed):
    """Has a transformer in front, which learns."""

    def __init__(self, network, transformer):
        super().__init__(network)
        self.transformer = transformer

    def predict(self, X):
        return super().predict(self.transformer.transform(X))

    def learn(self, X, y):
        self.transformer.partial_fit(X)


def make_models(X, y, seed):
    plain, norm = (
        MLPClassifierBN((50,), batch_norm=place, batch_size=32, max_iter=20, random_state=seed).fit(
            X, y
        )
        for place in (None, "input")
    )
    return {
        "no batch norm, fixed": Fixed(plain),
        "batch norm on the input, fixed": Fixed(norm),
        "recalibrated": Recalibrated(deepcopy(norm)),
        "behind a moving average": Normalized(plain, BatchNormTransformer(momentum=0.9).fit(X)),
        "behind an average of all": Normalized(plain, BatchNormTransformer().fit(X)),
        "no batch norm, partial_fit": Trained(deepcopy(plain)),
        "batch norm on the input, partial_fit": Trained(deepcopy(norm)),
    }


def follow(models, stream):
    """Accuracy on every batch, before it is learned from, by model."""
    accuracy = {name: [] for name in models}
    for X, y in stream:
        for name, model in models.items():
            accuracy[name].append(np.mean(model.predict(X) == y))
            model.learn(X, y)
    return accuracy


runs = []
for seed in SEEDS:
    X, y, stream = make_data(seed)
    runs.append(follow(make_models(X, y, seed), drift(stream, seed)))
accuracy = {name: np.array([run[name] for run in runs]) for name in runs[0]}
phases = {"before": slice(0, 20), "while it drifts": slice(20, 70), "after": slice(90, None)}
print(f"{'':36}", *(f"{phase:>17}" for phase in phases))
for name, found in accuracy.items():
    means = [found[:, phase].mean(axis=1) for phase in phases.values()]
    print(f"{name:36}", *(f"{mean.mean():9.3f} ± {mean.std():.3f}" for mean in means))

# %%
# Batch norm by itself is no protection: a fixed network loses nearly half of its accuracy, with it
# and without it. Measured anew, without a single label, it stays where it was, within a point or
# so. A moving average in front of a plain network looks further back, lags while the features drift
# and recovers when they stop; an average over all rows cannot forget. With labels both networks
# learn on: the one with batch norm on its input gets back to where it was, the other does not.


def smooth(found):
    """Mean over the repetitions and over eleven batches."""
    return np.convolve(found.mean(axis=0), np.full(11, 1 / 11), "valid")


panels = {
    "Without labels: measure the statistics anew": {
        "no batch norm, fixed": (GREY, (52, 0.43)),
        "batch norm on the input, fixed": ("#e69f00", (4, 0.52)),
        "recalibrated": (BLUE, (78, 1.0)),
        "behind a moving average": (GREEN, (80, 0.87)),
        "behind an average of all": (VERMILION, (76, 0.74)),
    },
    "With labels: batch norm helps to learn on": {
        "no batch norm, partial_fit": (GREY, (70, 0.83)),
        "batch norm on the input, partial_fit": (BLUE, (46, 1.0)),
    },
}
figure, axes = plt.subplots(2, 1, figsize=(7, 7), sharex=True, height_ratios=[3, 2])
for ax, (title, lines) in zip(axes, panels.items(), strict=True):
    ax.axvspan(20, 70, color="0.94")
    for name, (colour, place) in lines.items():
        ax.plot(np.arange(5, N_BATCHES - 5), smooth(accuracy[name]), color=colour, lw=2.5)
        ax.annotate(name, place, color=colour, weight="bold", size=11)
    ax.set(title=title, ylabel="accuracy", ylim=(0.4, 1.05))
axes[0].annotate("features drift", (21, 1.0), color="0.45", size=11)
axes[1].set(ylim=(0.7, 1.05), xlabel="batches of 32 rows")
plt.show()

# %%
# Which statistics
# ----------------
# The mean of one feature: in the stream, and as three networks know it. ``fit`` leaves population
# statistics, which stay. ``partial_fit`` follows with moving ones. ``recalibrate`` measures the
# population of the rows that it is given.

X, y, stream = make_data(0)
stream = drift(stream, 0)
models = make_models(X, y, 0)
names = {
    "batch norm on the input, fixed": ("fit: the population's", "#e69f00", (40, 0.2)),
    "recalibrated": ("recalibrate:\nthe last eight batches", BLUE, (1, 2.3)),
    "batch norm on the input, partial_fit": ("partial_fit: moving", VERMILION, (62, 1.5)),
}
means = np.array([X.mean(axis=0) for X, _ in stream])
feature = means[-1].argmax()
known = {name: [] for name in names}
for X, y in stream:
    for name, found in known.items():
        models[name].learn(X, y)
        norm = models[name].network.batch_norms_[0]
        moving = norm.population_mean is None
        found.append((norm.moving_mean if moving else norm.population_mean)[feature])

figure, ax = plt.subplots(figsize=(7, 4))
ax.axvspan(20, 70, color="0.94")
ax.plot(means[:, feature], ".", color=GREY, ms=5)
ax.annotate("mean of a batch", (84, 4.2), color=GREY, weight="bold")
for name, (label, colour, place) in names.items():
    ax.plot(known[name], color=colour, lw=2.5)
    ax.annotate(label, place, color=colour, weight="bold")
ax.set(xlabel="batches of 32 rows", ylabel="mean of one feature")
ax.set_title("Statistics of fit stay; the others follow")
plt.show()

# %%
# The wrong remedy
# ----------------
# Now the features stay as they are, and the labels come sorted: 30 batches of one class, then of
# the next. The mean of such batches is that of a class. To measure it and take it out is to take
# out what tells the class.

runs = []
for seed in SEEDS:
    X, y, stream = make_data(seed)
    rows, labels = (np.concatenate(part) for part in zip(*stream, strict=True))
    order = np.argsort(labels, kind="stable")
    parts = (np.split(part[order], N_BATCHES) for part in (rows, labels))
    models = make_models(X, y, seed)
    chosen = ("batch norm on the input, fixed", "recalibrated", "behind a moving average")
    runs.append(follow({name: models[name] for name in chosen}, zip(*parts, strict=True)))
sorted_accuracy = {name: np.array([np.mean(run[name]) for run in runs]) for name in runs[0]}
for name, found in sorted_accuracy.items():
    print(f"{name:36} {found.mean():.3f} ± {found.std():.3f}")

# %%
# The fixed network does not care, and those that measure anew lose 35 points and more. So
# recalibrate where features drift and the mixture of the rows stays, and on enough rows to be a
# sample of it.
