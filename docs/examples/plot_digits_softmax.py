"""
===================================================
A small softmax network on handwritten digits
===================================================

Two hidden layers of 128 and 64 rectified linear units, each followed by batch normalization, and
a softmax over ten classes, trained with Adam in mini-batches of 32: a network that many
introductions to batch normalization show. Here it learns scikit-learn's digits, next to the same
network without batch normalization. Both start from the same weights and see the same batches.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skbn import MLPClassifierBN

# %%
# ``bn_momentum`` has Keras's sense: the share of the moving statistics that every batch leaves in
# place. (What PyTorch calls 0.1 is 0.9 here.) ``X_val`` and ``y_val`` only record a curve.


def load_split():
    """1347 digits to train, 450 to test; pixels from 0 to 1."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, random_state=0, stratify=y)


def fit_digits(batch_norm, *, max_iter=20):
    """Train the network with batch normalization in the given place."""
    X_train, X_test, y_train, y_test = load_split()
    classifier = MLPClassifierBN(
        (128, 64),
        batch_norm=batch_norm,
        bn_momentum=0.9,
        bn_epsilon=1e-5,
        solver="adam",
        batch_size=32,
        max_iter=max_iter,
        random_state=0,
    )
    with warnings.catch_warnings():
        # The comparison is over a fixed number of epochs: that max_iter is reached is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(X_train, y_train, X_val=X_test, y_val=y_test)


# %%
# Twenty epochs are enough for both. The curves show what batch normalization changes: the first
# epochs.


def plot_curves(networks):
    """Accuracy on the test rows and training loss, epoch by epoch."""
    import matplotlib.pyplot as plt

    figure, (scores, losses) = plt.subplots(1, 2, figsize=(10, 4), dpi=120, layout="constrained")
    for (name, network), colour in zip(networks.items(), ("#5c5c5c", "#0072b2"), strict=True):
        epochs = range(1, network.n_iter_ + 1)
        scores.plot(epochs, network.validation_scores_, color=colour, lw=2, label=name)
        losses.plot(epochs, network.loss_curve_, color=colour, lw=2, label=name)
    scores.set(title="Test accuracy", xlabel="epoch", ylim=(0.7, 1.0))
    losses.set(title="Training loss", xlabel="epoch", yscale="log")
    scores.legend(loc="lower right", frameon=False)
    for ax in (scores, losses):
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xticks(range(0, 21, 5))
    return figure


def main():
    """Train both, print their scores, plot their curves."""
    import matplotlib.pyplot as plt

    _, X_test, _, y_test = load_split()
    networks = {
        "without batch norm": fit_digits(None),
        "batch norm after each activation": fit_digits("after"),
    }
    for name, network in networks.items():
        first, last = network.validation_scores_[0], network.score(X_test, y_test)
        print(f"{name:33} test accuracy after 1 epoch {first:.3f}, after 20 {last:.3f}")
    path = Path("digits_softmax.png").resolve()
    plot_curves(networks).savefig(path)
    print(f"figure: {path}")
    # Without a display, matplotlib chooses the Agg backend by itself.
    if plt.get_backend().lower() != "agg":
        plt.show()


if __name__ == "__main__":
    main()
