"""Batch normalization of arrays in NumPy: the formulas, on rows. It judges cpu/arrays.pyx.

Every array is seen as rows and columns: the axes that keep their own statistics are the columns,
all others, in C order, the rows. Statistics come as a float64 array of one column for each entry
kept.
"""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

from skbn.backends import reference
from skbn.backends.records import Activation

FUSED = {Activation.IDENTITY, Activation.LOGISTIC, Activation.TANH, Activation.RELU}


def as_rows(x, axes):
    """Return the (n_rows, n_columns) matrix that an array is."""
    reduced = [axis for axis in range(x.ndim) if axis not in axes]
    n_columns = int(np.prod([x.shape[axis] for axis in axes]))
    return x.transpose([*reduced, *axes]).reshape(-1, n_columns)


def fill(out, rows, axes):
    """Write a matrix of rows into the array it belongs to."""
    reduced = [axis for axis in range(out.ndim) if axis not in axes]
    order = [*reduced, *axes]
    out.transpose(order)[...] = rows.reshape([out.shape[axis] for axis in order])


def row_weights(weights, x, axes):
    """Return the weight of every row: that of its sample."""
    if weights is None:
        return None
    return np.repeat(weights, as_rows(x, axes).shape[0] // x.shape[0])


def activated(z, activation):
    if activation in FUSED:
        return reference.activation_forward(activation, z)
    return reference.elementwise_forward(z, activation)


def moments(x, axes, weights=None, ignore_nan=False):
    """Return weight, mean in two parts and biased variance of each column, (4, n_columns)."""
    rows, weights = as_rows(x, axes).astype(np.longdouble), row_weights(weights, x, axes)
    share = np.ones_like(rows) if weights is None else np.repeat(weights[:, None], rows.shape[1], 1)
    if weights is not None or ignore_nan:
        absent = (share == 0) | (np.isnan(rows) if ignore_nan else False)
        rows, share = np.where(absent, 0, rows), np.where(absent, 0, share)
    total = share.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = share / total
        pivot = np.take_along_axis(rows, np.argmax(share > 0, axis=0)[None], axis=0)[0]
        rows = rows - pivot  # the mean as a whole would have no digits left for its distance
        mean = (share * rows).sum(axis=0)
        correction = (share * (rows - mean)).sum(axis=0)
        var = np.maximum((share * (rows - mean) ** 2).sum(axis=0) - correction**2, 0)
        mean = mean + correction
        high = (pivot + mean).astype(np.float64)
        return np.stack([total, high, (pivot - high) + mean, var]).astype(np.float64)


def batch_norm_forward(y, x, axes, gamma, beta, epsilon, activation, weights=None):
    """Normalize with the statistics of x; return mean in two parts, variance and 1/std, (4, n)."""
    _, mean, low, var = moments(x, axes, weights)
    batch_norm_forward_eval(y, x, axes, gamma, beta, mean, low, var, epsilon, activation)
    return np.stack([mean, low, var, reference.inverse_std(var, epsilon)])


def batch_norm_forward_eval(y, x, axes, gamma, beta, mean, low, var, epsilon, activation):
    """Normalize with given statistics."""
    centred = (as_rows(x, axes).astype(np.longdouble) - mean) - low
    z = centred * reference.inverse_std(var, epsilon)
    z = z * (1 if gamma is None else gamma) + (0 if beta is None else beta)
    fill(y, activated(z.astype(np.float64), activation), axes)


def batch_norm_backward(dx, dy, x, axes, gamma, beta, statistics, activation, weights=None):
    """Write dx; return dgamma and dbeta, (2, n_columns)."""
    mean, low, _, inv_std = statistics
    gamma = np.ones_like(inv_std) if gamma is None else gamma
    xhat = ((as_rows(x, axes).astype(np.float64) - mean) - low) * inv_std
    z = xhat * gamma + (0 if beta is None else beta)
    dy = as_rows(dy, axes).astype(np.float64)
    if activation in FUSED:
        dz = reference.activation_backward(activation, dy, activated(z, activation))
    else:
        dz = reference.elementwise_backward(dy, z, activation)
    dgamma, dbeta = (dz * xhat).sum(axis=0), dz.sum(axis=0)
    shares = reference.shares(row_weights(weights, x, axes), len(dz))
    fill(dx, gamma * inv_std * (dz - shares * (dbeta + xhat * dgamma)), axes)
    return np.stack([dgamma, dbeta])
