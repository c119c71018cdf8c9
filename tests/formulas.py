"""Batch normalization of one column as it is written on paper, in complex numbers too.

So the derivative is an imaginary part: f(x + ih) / h, exact but for rounding at h = 1e-30.
"""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy.special import erfc

from skbn.backends.reference import SELU_SCALE, SELU_SCALE_ALPHA

ACTIVATIONS = {
    "identity": lambda z: z,
    "logistic": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu": lambda z: np.where(z.real > 0, z, 0),
    "leaky_relu": lambda z: np.where(z.real > 0, z, 0.01 * z),
    "elu": lambda z: np.where(z.real > 0, z, np.expm1(z)),
    "selu": lambda z: np.where(z.real > 0, SELU_SCALE * z, SELU_SCALE_ALPHA * np.expm1(z)),
    "gelu": lambda z: z * erfc(-z / np.sqrt(2)) / 2,
    "silu": lambda z: z / (1 + np.exp(-z)),
    "softplus": lambda z: np.log(1 + np.exp(z)),
}


def forward(x, gamma, beta, epsilon, activation, weights):
    """The formula for one column or many in rows; complex numbers go through it."""
    share = weights / weights.sum()
    mean = (x * share).sum(axis=-1, keepdims=True)
    var = ((x - mean) ** 2 * share).sum(axis=-1, keepdims=True)
    return ACTIVATIONS[activation]((x - mean) / np.sqrt(var + epsilon) * gamma + beta)


def complex_step(x, dy, gamma, beta, epsilon, activation, weights):
    """Gradients of sum(dy * forward(x)) for one column, exact but for rounding."""
    step = 1e-30

    def slope(*arguments):
        return (forward(*arguments, epsilon, activation, weights) * dy).sum(axis=-1).imag / step

    return (
        slope(x + 1j * step * np.eye(len(x)), gamma, beta),
        slope(x, gamma + 1j * step, beta),
        slope(x, gamma, beta + 1j * step),
    )
