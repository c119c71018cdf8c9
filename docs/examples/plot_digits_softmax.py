"""
===============================================
A small softmax network on handwritten digits
===============================================

Two hidden layers of 128 and 64 rectified linear units, each followed by batch normalization, and
a softmax over ten classes, trained with Adam in mini-batches of 32: a network that many
introductions to batch normalization show. Here it learns scikit-learn's digits, next to the same
network without batch normalization. Then: what does it confuse, and which digits are hard?
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

# sphinx_gallery_thumbnail_number = 3

# %%
# Both networks start from the same hidden weights and see the same batches, ten times over. (The
# output layer starts at zero where batch norm stands in front of it.) ``bn_momentum`` has Keras's
# sense: the share of the moving statistics that every batch leaves in place. (What PyTorch calls
# 0.1 is 0.9 here.) ``X_val`` and ``y_val`` only record a curve.

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split

from skbn import MLPClassifierBN

# Thirty epochs are meant to be the end: that max_iter is reached is no news.
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
GREY, BLUE = "#5c5c5c", "#0072b2"  # of Okabe and Ito

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
SEEDS = range(10)


def fit_digits(batch_norm, seed):
    network = MLPClassifierBN(
        (128, 64),
        batch_norm=batch_norm,
        bn_momentum=0.9,
        bn_epsilon=1e-5,
        solver="adam",
        batch_size=32,
        max_iter=30,
        n_iter_no_change=np.inf,  # never stop early: curves of equal length
        random_state=seed,
    )
    return network.fit(X_train, y_train, X_val=X_test, y_val=y_test)


networks = {
    "no batch norm": [fit_digits(None, seed) for seed in SEEDS],
    "batch norm after each activation": [fit_digits("after", seed) for seed in SEEDS],
}
for name, fits in networks.items():
    first = np.array([fit.validation_scores_[0] for fit in fits])
    last = np.array([fit.score(X_test, y_test) for fit in fits])
    print(f"{name}:")
    print(f"  test accuracy after one epoch {first.mean():.3f} ± {first.std():.3f}")
    print(f"  test accuracy in the end      {last.mean():.3f} ± {last.std():.3f}")

# %%
# The first epochs
# ----------------
# They are what batch normalization changes most: nine points of accuracy after the first. In the
# end it is still ahead on the test rows, by three digits of 450 on average, and on the training
# rows the plain network has the lower loss. (The validation curve is recorded with the moving
# statistics; when training ends, exact statistics of all training rows take their place, and the
# scores printed are theirs.)

figure, axes = plt.subplots(2, 1, figsize=(7, 6.5), sharex=True)
curves = {"validation_scores_": axes[0], "loss_curve_": axes[1]}
for fits, colour in zip(networks.values(), (GREY, BLUE), strict=True):
    for attribute, ax in curves.items():
        runs = np.array([getattr(fit, attribute) for fit in fits]).T
        epochs = np.arange(1, len(runs) + 1)
        ax.plot(epochs, runs, color=colour, lw=0.6, alpha=0.5)
        ax.plot(epochs, runs.mean(axis=1), color=colour, lw=2.5)
axes[0].set(title="Nine points ahead after one epoch, less than one in the end", ylim=(0.75, 1))
axes[0].set(ylabel="test accuracy")
axes[0].annotate("no batch norm", (8, 0.85), color=GREY, weight="bold")
axes[0].annotate("batch norm after each activation", (8, 0.9), color=BLUE, weight="bold")
axes[1].set(xlabel="epoch", ylabel="training loss", yscale="log")
plt.show()

# %%
# What it confuses
# ----------------
# All mistakes of the ten networks with batch norm, on 450 test digits each. The diagonal, which
# would hold what they got right, is left empty.

fits = networks["batch norm after each activation"]
decided = np.array([fit.predict(X_test) for fit in fits])
mistakes = np.zeros((10, 10), dtype=int)
np.add.at(mistakes, (np.tile(y_test, (len(fits), 1)), decided), 1)
np.fill_diagonal(mistakes, 0)
for actual, found in zip(
    *np.unravel_index(np.argsort(-mistakes.ravel())[:3], (10, 10)), strict=True
):
    print(f"a {actual} taken for a {found}: {mistakes[actual, found]} times")

# %%

figure, ax = plt.subplots(figsize=(6, 5.4))
display = ConfusionMatrixDisplay(mistakes).plot(ax=ax, cmap="Blues", colorbar=False)
for text in display.text_.ravel():
    if text.get_text() == "0":
        text.set_text("")
ax.spines[:].set_visible(False)
ax.set(xlabel="taken for", ylabel="digit", title="Mistakes of ten networks")
plt.show()

# %%
# The hardest digits
# ------------------
# Those to which the ten networks give the lowest probability of being what they are, on average:

probability = np.mean([fit.predict_proba(X_test) for fit in fits], axis=0)
right = probability[np.arange(len(y_test)), y_test]
hardest = np.argsort(right)[:10]
always_wrong = np.flatnonzero(np.all(decided != y_test, axis=0))
print(f"{len(always_wrong)} of {len(y_test)} digits are decided wrong by all ten networks")
figure, axes = plt.subplots(2, 5, figsize=(7, 3.9))
for ax, row in zip(axes.flat, hardest, strict=True):
    ax.imshow(X_test[row].reshape(8, 8), cmap="gray_r")
    count = np.sum(decided[:, row] == y_test[row])
    ax.set_title(f"{y_test[row]}: {right[row]:.0%}\n{count} of 10 right", size=11, loc="center")
    ax.axis("off")
figure.suptitle("The ten hardest digits, and the probability of the right one")
plt.show()
