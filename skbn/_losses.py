"""Losses and their links: the one place where the reduction over rows and outputs is decided.

The loss of a batch is the mean over its rows of the loss summed over outputs; its gradient, which
executors hand to the optimizer, is the derivative of exactly that. The reported training loss adds
``alpha / (2 * n_rows) * sum(weights**2)`` as scikit-learn's does. Losses are functions of the raw
outputs (logits), never of probabilities, so no digit is lost near 0 and 1. One row costs at most
-log(machine epsilon), 36 in float64 and 16 in float32, as in scikit-learn, so that curves and
stopping are the same on unscaled data; as there, the gradient knows no such bound.
"""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax

from skbn.backends.records import LossKind


class BinaryLogLoss:
    """Log loss of one logit per row; the target is the code of the class, 0 or 1."""

    kind = LossKind.BINARY_LOG_LOSS
    out_activation = "logistic"
    n_outputs = 1

    def accuracy(self, n_correct, n_rows):
        """Return the share of rows on the right side of 0."""
        return n_correct / n_rows

    def decide(self, raw):
        """Return the code of the likelier class."""
        return (raw[:, 0] > 0).astype(np.intp)

    def predict_proba(self, raw):
        """Return the probabilities of both classes."""
        return np.column_stack([expit(-raw[:, 0]), expit(raw[:, 0])])

    def predict_log_proba(self, raw):
        """Return the log-probabilities of both classes, finite for finite logits."""
        return np.column_stack([log_expit(-raw[:, 0]), log_expit(raw[:, 0])])


class ConstantLogLoss(BinaryLogLoss):
    """Log loss where only one class is known: every target is code 0."""

    def accuracy(self, n_correct, n_rows):
        """Return 1: there is nothing to get wrong."""
        return 1.0

    def decide(self, raw):
        """Return code 0."""
        return np.zeros(len(raw), dtype=np.intp)

    def predict_proba(self, raw):
        """Return ones."""
        return np.ones((len(raw), 1), dtype=raw.dtype)

    def predict_log_proba(self, raw):
        """Return zeros."""
        return np.zeros((len(raw), 1), dtype=raw.dtype)


class CategoricalLogLoss:
    """Log loss of one logit per class and row; the target is the code of the class."""

    kind = LossKind.CATEGORICAL_LOG_LOSS
    out_activation = "softmax"

    def __init__(self, n_classes):
        self.n_outputs = n_classes

    def accuracy(self, n_correct, n_rows):
        """Return the share of rows whose class has the largest logit."""
        return n_correct / n_rows

    def decide(self, raw):
        """Return the code of the likeliest class, the first where several are."""
        return raw.argmax(axis=1)

    def predict_proba(self, raw):
        """Return the probabilities of all classes."""
        return softmax(raw, axis=1)

    def predict_log_proba(self, raw):
        """Return the log-probabilities of all classes, finite for finite logits."""
        return log_softmax(raw, axis=1)


def log_loss(n_classes):
    """Return the log loss for this number of classes: one logit up to two, else one for each."""
    if n_classes == 1:
        return ConstantLogLoss()
    return BinaryLogLoss() if n_classes == 2 else CategoricalLogLoss(n_classes)
