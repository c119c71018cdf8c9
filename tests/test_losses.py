"""Losses of raw outputs: probabilities, decisions, and what executors make of the same logits.

A network of one layer whose weights are the logits and whose input is the identity matrix shows
the loss of any logits, and its gradient, through the public interface of every executor.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from cases import EXECUTORS, each_dtype, each_executor
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import log_loss as sklearn_log_loss

from skbn._layers import Dense
from skbn._losses import (
    BinaryLogLoss,
    CategoricalLogLoss,
    ConstantLogLoss,
    log_loss,
)
from skbn._network import Network

EXTREME = np.array([0.0, 1e-300, 1e-8, 1.0, 30.0, 40.0, 700.0, 800.0, 1e4, 1e300])


def evaluate(executor, loss, raw, targets):
    """Mean loss, count of right decisions and the gradient of the loss with respect to ``raw``."""
    n_rows, n_outputs = raw.shape
    network = Network([Dense(n_rows, n_outputs)], raw.dtype)
    network.coefs[0][...] = raw
    X, rows = np.eye(n_rows, dtype=raw.dtype), np.arange(n_rows)
    grads, targets = network.new_vector(), targets.astype(raw.dtype)
    with EXECUTORS[executor](network, loss_kind=loss.kind, batch_size=n_rows) as it:
        total, weight, n_correct = it.evaluate(X, targets, None, rows)
        in_training = it.loss_and_gradient(X, targets, None, rows, grads)
    mean = total / weight
    eps = 8 * float(np.finfo(raw.dtype).eps)
    assert in_training == pytest.approx(mean, rel=eps, nan_ok=True)
    return mean, n_correct, network.tensors[0].view(grads)


def test_which_loss():
    assert type(log_loss(1)) is ConstantLogLoss
    assert type(log_loss(2)) is BinaryLogLoss
    assert type(log_loss(3)) is CategoricalLogLoss
    assert [log_loss(n).n_outputs for n in (1, 2, 3, 10)] == [1, 1, 3, 10]
    assert [log_loss(n).out_activation for n in (1, 2, 3)] == ["logistic", "logistic", "softmax"]


@pytest.mark.parametrize("n_classes", [1, 2, 3, 7])
def test_probabilities(n_classes, seed):
    """They sum to one, agree with their logarithms, and the decision is the likeliest class."""
    loss = log_loss(n_classes)
    raw = np.random.RandomState(seed).normal(scale=5, size=(50, loss.n_outputs))
    probabilities, logarithms = loss.predict_proba(raw), loss.predict_log_proba(raw)
    assert probabilities.shape == logarithms.shape == (50, n_classes)
    assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-14)
    assert_allclose(np.exp(logarithms), probabilities, rtol=1e-13)
    assert_array_equal(loss.decide(raw), probabilities.argmax(axis=1))


@each_dtype
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logarithms_are_finite(n_classes, dtype):
    """For any finite logits: what a probability of 0 has lost, its logarithm keeps."""
    loss = log_loss(n_classes)
    largest = np.finfo(dtype).max / 4
    raw = np.linspace(-largest, largest, 7 * loss.n_outputs, dtype=dtype).reshape(
        -1, loss.n_outputs
    )
    with np.errstate(over="raise", invalid="raise"):
        logarithms, probabilities = loss.predict_log_proba(raw), loss.predict_proba(raw)
    assert np.isfinite(logarithms).all()
    assert np.isfinite(probabilities).all()
    assert logarithms.dtype == probabilities.dtype == dtype
    assert logarithms.min() < -largest / 40


@pytest.mark.parametrize("loss", [BinaryLogLoss(), CategoricalLogLoss(3)])
def test_ties(loss):
    """The first class, as argmax of the probabilities says."""
    raw = np.zeros((2, loss.n_outputs))
    assert_array_equal(loss.decide(raw), 0)
    assert_array_equal(loss.predict_proba(raw).argmax(axis=1), 0)


def test_one_class():
    """Nothing to get wrong."""
    loss, raw = log_loss(1), np.array([[-3.0], [5.0]])
    assert_array_equal(loss.predict_proba(raw), np.ones((2, 1)))
    assert_array_equal(loss.predict_log_proba(raw), np.zeros((2, 1)))
    assert_array_equal(loss.decide(raw), 0)
    assert loss.score([0], 2) == 1.0
    assert log_loss(2).score([1], 2) == log_loss(3).score([1], 2) == 0.5


@each_executor
@each_dtype
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_loss_and_gradient(n_classes, dtype, executor, seed):
    """Against scikit-learn's log_loss of the probabilities, and the derivative on paper."""
    rng = np.random.RandomState(seed)
    loss = log_loss(n_classes)
    raw = rng.normal(scale=2, size=(64, loss.n_outputs)).astype(dtype)
    targets = rng.randint(n_classes, size=64)
    found, n_correct, gradient = evaluate(executor, loss, raw, targets)
    wide, eps = raw.astype(np.float64), float(np.finfo(dtype).eps)
    probabilities = loss.predict_proba(wide)
    expected = sklearn_log_loss(targets, probabilities, labels=np.arange(n_classes))
    assert found == pytest.approx(expected, rel=4 * eps)
    assert n_correct == (loss.decide(wide) == targets).sum()
    onehot = targets[:, None] == np.arange(n_classes)
    expected = (probabilities - onehot) / len(raw)
    assert_allclose(gradient, expected[:, -loss.n_outputs :], atol=4 * eps / len(raw), rtol=4 * eps)


@each_executor
@each_dtype
@pytest.mark.parametrize("n_classes", [2, 3])
def test_extreme_logits(n_classes, dtype, executor):
    """A row costs what its logits say, up to -log(epsilon) of the type; its gradient has no bound.

    The bound is scikit-learn's, which clips probabilities.
    """
    loss = log_loss(n_classes)
    z = EXTREME[EXTREME < np.finfo(dtype).max / 10]
    z = np.concatenate([-z[::-1], z]).astype(dtype)
    raw = np.zeros((2 * len(z), loss.n_outputs), dtype)
    raw[:, -1] = np.repeat(z, 2)
    targets = np.tile([0, n_classes - 1], len(z))
    bound = -np.log(np.finfo(dtype).eps)
    wide = raw.astype(np.float64)
    if n_classes == 2:
        sign = np.where(targets == 1, 1, -1)
        exact = np.logaddexp(0, -sign * wide[:, 0])
        slope = expit(wide) - targets[:, None]
    else:
        exact = -log_softmax(wide, axis=1)[np.arange(len(raw)), targets]
        slope = softmax(wide, axis=1) - (targets[:, None] == np.arange(n_classes))
    tiny, eps = float(np.finfo(dtype).tiny), float(np.finfo(dtype).eps)
    for i in range(len(raw)):
        found, _, gradient = evaluate(executor, loss, raw[[i]], targets[[i]])
        # Where a wrong answer costs the bound, log(1 + exp(-|z|)) is less than an epsilon of it.
        assert found == pytest.approx(min(exact[i], bound), rel=4 * eps, abs=eps)
        assert_allclose(gradient[0], slope[i], rtol=4 * eps, atol=max(2 * eps, 2 * tiny))


@each_executor
@each_dtype
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n_rows", [1, 255, 256, 257, 1000])
def test_sums_over_many_rows(n_rows, n_classes, dtype, executor):
    """All rows count, however they are cut into blocks; all alike, their mean is one row's."""
    loss = log_loss(n_classes)
    raw = np.full((n_rows, loss.n_outputs), 0.5, dtype)
    targets = np.zeros(n_rows)
    one = evaluate(executor, loss, raw[:1], targets[:1])[0]
    found, n_correct, _ = evaluate(executor, loss, raw, targets)
    assert found == pytest.approx(one, rel=8 * float(np.finfo(dtype).eps))
    assert n_correct == (0 if n_classes == 2 else n_rows)


@each_executor
def test_binary_is_categorical_with_a_class_of_zeros(executor, seed):
    rng = np.random.RandomState(seed)
    z, targets = rng.normal(size=(40, 1)), rng.randint(2, size=40)
    two = np.column_stack([np.zeros(40), z])
    binary, categorical = (
        evaluate(executor, loss, raw, targets)
        for loss, raw in [(BinaryLogLoss(), z), (CategoricalLogLoss(2), two)]
    )
    assert binary[0] == pytest.approx(categorical[0], rel=1e-14)
    assert binary[1] == categorical[1]
    assert_allclose(binary[2][:, 0], categorical[2][:, 1], rtol=1e-12)
