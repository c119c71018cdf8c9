"""Losses and their links: the one place where the reduction over rows and outputs is decided.

The loss of a batch is the weighted mean over its rows; its gradient, which executors hand to the
optimizer, is the derivative of exactly that. Over outputs, losses of errors are averaged (their
scale does not hang on how many outputs there are), log losses and deviances are summed (they add up
to the likelihood of a row); so scikit-learn reports them too, but its gradient of the squared error
is the sum's. The reported training loss adds ``alpha / (2 * total weight) * sum(weights**2)`` as
scikit-learn's does. Losses are functions of the raw outputs, never of probabilities, so no digit is
lost near 0 and 1. An entry of a log loss costs at most -log(machine epsilon), 36 in float64 and 16
in float32, as in scikit-learn, so that curves and stopping are the same on unscaled data; as there,
the gradient knows no such bound.

What users see of raw outputs is computed where these lie, by functions that arrays on a card answer
as NumPy's do.
"""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy.special import expit, log_expit
from sklearn.utils import gen_batches

from skbn.backends.records import LossKind


def _softmax(x):
    """Return what scipy.special's softmax does, which is no ufunc and knows NumPy only."""
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _log_softmax(x):
    """Return what scipy.special's log_softmax does."""
    largest = x.max(axis=1, keepdims=True)
    shifted = x - np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class _LogLoss:
    """What losses over classes share: the score is the accuracy."""

    score_name = "accuracy"

    def baseline(self, targets, weights, rows):
        """Return what ``score`` measures against: the weight of all rows."""
        return len(rows) if weights is None else float(weights[rows].sum())

    def score(self, scores, baseline):
        """Return the share of rows decided right, by weight; of every epoch if given arrays."""
        return scores[0] / baseline


class BinaryLogLoss(_LogLoss):
    """Log loss of one logit per row; the target is the code of the class, 0 or 1."""

    kind = LossKind.BINARY_LOG_LOSS
    out_activation = "logistic"
    n_outputs = 1

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

    def score(self, scores, baseline):
        """Return 1: there is nothing to get wrong."""
        return 1.0

    def decide(self, raw):
        """Return code 0."""
        return np.zeros_like(raw[:, 0], dtype=np.intp)

    def predict_proba(self, raw):
        """Return ones."""
        return np.ones_like(raw)

    def predict_log_proba(self, raw):
        """Return zeros."""
        return np.zeros_like(raw)


class CategoricalLogLoss(_LogLoss):
    """Log loss of one logit per class and row; the target is the code of the class."""

    kind = LossKind.CATEGORICAL_LOG_LOSS
    out_activation = "softmax"

    def __init__(self, n_classes):
        self.n_outputs = n_classes

    def decide(self, raw):
        """Return the code of the likeliest class, the first where several are."""
        return raw.argmax(axis=1)

    def predict_proba(self, raw):
        """Return the probabilities of all classes."""
        return _softmax(raw)

    def predict_log_proba(self, raw):
        """Return the log-probabilities of all classes, finite for finite logits."""
        return _log_softmax(raw)


class MultilabelLogLoss(_LogLoss):
    """Binary log loss of one logit per label, summed over the labels; targets are 0 and 1."""

    kind = LossKind.BINARY_LOG_LOSS
    out_activation = "logistic"

    def __init__(self, n_labels):
        self.n_outputs = n_labels

    def decide(self, raw):
        """Return 1 for every label that is likelier than not."""
        return (raw > 0).astype(np.intp)

    def predict_proba(self, raw):
        """Return the probability of every label."""
        return expit(raw)

    def predict_log_proba(self, raw):
        """Return the log-probability of every label, finite for finite logits."""
        return log_expit(raw)


class RegressionLoss:
    """Loss of predictions that are numbers; the score is R2.

    Parameters
    ----------
    name : str
        One of ``REGRESSION_LOSSES``.
    n_outputs : int
        Number of outputs.
    """

    score_name = "r2"

    def __init__(self, name, n_outputs):
        self.kind = REGRESSION_LOSSES[name]
        self.out_activation = "exp" if self.kind == LossKind.POISSON else "identity"
        self.n_outputs = n_outputs

    def baseline(self, targets, weights, rows):
        """Return what ``score`` measures against: the squared deviations of each output."""
        if weights is not None:
            rows = rows[weights[rows] > 0]  # what has no weight may be anything
        origin = targets[rows[0]].astype(np.float64)

        def total(function):
            """Sum over the rows, a block at a time: in float64 they need more room than y."""
            sums = 0.0
            for block in gen_batches(len(rows), 4096):
                part = rows[block]
                y = (targets[part].astype(np.float64) - origin).reshape(len(part), -1)
                w = 1.0 if weights is None else weights[part, np.newaxis]
                sums += (w * function(y)).sum(axis=0)
            return sums

        with np.errstate(over="ignore", invalid="ignore"):  # R2 is then NaN
            mean = total(lambda y: y) / (len(rows) if weights is None else weights[rows].sum())
            return total(lambda y: (y - mean) ** 2)

    def score(self, scores, baseline):
        """Return R2, the mean over the outputs, as :func:`sklearn.metrics.r2_score` does.

        Of every epoch, if each entry of ``scores`` is an array over epochs.
        """
        varies, scores = baseline > 0, np.asarray(scores).T
        constant = np.where(scores == 0, 1.0, 0.0)
        with np.errstate(invalid="ignore"):
            share = scores / np.where(varies, baseline, 1)
        found = np.where(varies, 1 - share, constant)
        return (found.sum(axis=-1) / found.shape[-1]).tolist()


REGRESSION_LOSSES = {
    "squared_error": LossKind.SQUARED_ERROR,
    "poisson": LossKind.POISSON,
    "absolute_error": LossKind.ABSOLUTE_ERROR,
    "huber": LossKind.HUBER,
}


def log_loss(n_classes):
    """Return the log loss for this number of classes: one logit up to two, else one for each."""
    if n_classes == 1:
        return ConstantLogLoss()
    return BinaryLogLoss() if n_classes == 2 else CategoricalLogLoss(n_classes)
