"""
===================================================
A small softmax network on handwritten digits
===================================================

Two hidden layers of 128 and 64 rectified linear units, each followed by batch normalization, and
a softmax over ten classes, trained with Adam in mini-batches of 32: a network that many
introductions to batch normalization show. Here it learns scikit-learn's digits, next to the same
network without batch normalization. Both start from the same weights and see the same batches,
five times over.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skbn import MLPClassifierBN

# %%
# ``bn_momentum`` has Keras's sense: the share of the moving statistics that every batch leaves in
# place. (What PyTorch calls 0.1 is 0.9 here.) ``X_val`` and ``y_val`` only record a curve.

N_SEEDS = 5


def load_split():
    """1347 digits to train, 450 to test; pixels from 0 to 1."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, random_state=0)


def fit_digits(batch_norm, *, random_state):
    """Train the network with batch normalization in the given place."""
    X_train, X_test, y_train, y_test = load_split()
    classifier = MLPClassifierBN(
        (128, 64),
        batch_norm=batch_norm,
        bn_momentum=0.9,
        bn_epsilon=1e-5,
        solver="adam",
        batch_size=32,
        max_iter=30,
        n_iter_no_change=np.inf,  # never stop early: curves of equal length
        random_state=random_state,
    )
    with warnings.catch_warnings():
        # The comparison is over a fixed number of epochs: that max_iter is reached is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(X_train, y_train, X_val=X_test, y_val=y_test)


# %%
# The curves show what batch normalization changes most: the first epochs. In the end both
# networks are about equally good. (The validation curve is recorded with the moving statistics;
# when training ends, exact statistics of all training rows take their place, and the score printed
# is theirs.)


def plot_curves(networks):
    """Accuracy on the test rows and training loss, epoch by epoch."""
    import matplotlib.pyplot as plt

    figure, (scores, losses) = plt.subplots(1, 2, figsize=(10, 4), dpi=120, layout="constrained")
    for (name, fits), colour in zip(networks.items(), ("#5c5c5c", "#0072b2"), strict=True):
        for ax, attribute in ((scores, "validation_scores_"), (losses, "loss_curve_")):
            curves = np.array([getattr(fit, attribute) for fit in fits]).T
            epochs = np.arange(1, len(curves) + 1)
            ax.plot(epochs, curves, color=colour, lw=0.6, alpha=0.5)
            ax.plot(epochs, curves.mean(axis=1), color=colour, lw=2.2, label=name)
    scores.set(title="Test accuracy", xlabel="epoch", ylim=(0.7, 1.0))
    losses.set(title="Training loss", xlabel="epoch", yscale="log")
    scores.legend(loc="lower right", frameon=False, title=f"mean of {N_SEEDS} seeds")
    for ax in (scores, losses):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def main():
    """Train both networks, print their scores, plot their curves."""
    import matplotlib.pyplot as plt

    _, X_test, _, y_test = load_split()
    networks = {
        name: [fit_digits(batch_norm, random_state=seed) for seed in range(N_SEEDS)]
        for name, batch_norm in (
            ("without batch norm", None),
            ("batch norm after each activation", "after"),
        )
    }
    for name, fits in networks.items():
        first = np.mean([fit.validation_scores_[0] for fit in fits])
        last = np.mean([fit.score(X_test, y_test) for fit in fits])
        print(f"{name:33} test accuracy after the first epoch {first:.3f}, in the end {last:.3f}")
    path = Path("digits_softmax.png").resolve()
    plot_curves(networks).savefig(path)
    print(f"figure: {path}")
    # Without a display, matplotlib chooses the Agg backend by itself.
    if plt.get_backend().lower() != "agg":
        plt.show()


if __name__ == "__main__":
    main()
