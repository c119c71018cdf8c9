"""The executors' own activations against mpmath, and what NaN does to a network.

Kernels have no door to Python, and need none: a network of one unit whose weights are 1 is its
activation.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

from functools import cache

import mpmath
import numpy as np
import pytest
from cases import (
    ACTIVATIONS,
    ELEMENTWISE,
    EXECUTORS,
    each_dtype,
    each_executor,
    each_placed,
    network_case,
    run_layer,
)

from skbn._layers import Elementwise, multilayer_perceptron
from skbn._network import Network
from skbn.backends.records import LossKind

F32, F64 = np.float32, np.float64


def selu_constants():
    """The scale and alpha for which normal numbers come out with mean 0 and variance 1."""
    root = mpmath.sqrt(2)
    # E[exp(z); z < 0] and E[exp(2 z); z < 0], which a mean and a mean square are made of.
    first = mpmath.exp(0.5) * mpmath.erfc(1 / root) / 2
    second = mpmath.exp(2) * mpmath.erfc(root) / 2
    alpha = 1 / mpmath.sqrt(2 * mpmath.pi) / (mpmath.mpf(1) / 2 - first)
    square = mpmath.mpf(1) / 2 + alpha**2 * (second - 2 * first + mpmath.mpf(1) / 2)
    return 1 / mpmath.sqrt(square), alpha


with mpmath.workprec(200):
    SELU_SCALE, SELU_ALPHA = selu_constants()


def logistic(z):
    return 1 / (1 + mpmath.exp(-z))


EXACT = {
    "identity": lambda z: z,
    "logistic": logistic,
    "tanh": mpmath.tanh,
    "relu": lambda z: max(z, mpmath.mpf(0)),
    "leaky_relu": lambda z: z if z > 0 else z / 100,
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "selu": lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * mpmath.expm1(z)),
    "gelu": lambda z: z * mpmath.ncdf(z),
    "silu": lambda z: z * logistic(z),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
}
# The terms whose sum is the derivative: where they cancel, errors are measured against their size.
SLOPES = {
    "leaky_relu": lambda z: [1 if z > 0 else mpmath.mpf(1) / 100],
    "elu": lambda z: [1 if z > 0 else mpmath.exp(z)],
    "selu": lambda z: [SELU_SCALE * (1 if z > 0 else SELU_ALPHA * mpmath.exp(z))],
    "gelu": lambda z: [mpmath.ncdf(z), z * mpmath.npdf(z)],
    "silu": lambda z: [logistic(z), z * logistic(z) * logistic(-z)],
    "softplus": lambda z: [logistic(z)],
}
# In ulp. NumPy promises 4 for its own tanh, and the reference uses it.
ALLOWED = {
    "identity": 0,
    "relu": 0,
    "leaky_relu": 1,
    "logistic": 2,
    "tanh": 2,
    "elu": 2,
    "selu": 2,
    "silu": 2.5,
    "softplus": 2.5,
    "gelu": 4,
}
REFERENCE_ALLOWED = {"identity": 0, "relu": 0}  # else 4
# Numbers smaller than this are as good as 0: where exp(z) is denormal, its product with z need not.
SMALLEST = {"silu": 2048, "gelu": 4}  # normal numbers; else 2


def tail(executor, activation, z):
    """The reference's ulp for GELU's tail: scipy rounds z / sqrt(2) before it squares it."""
    far = executor == "reference" and activation == "gelu"
    return 2 * np.minimum(z, 0).astype(float) ** 2 if far else 0


@cache
def points(dtype):
    """Both signs of: powers of ten down to denormals, a fine grid, the ends of every range."""
    tiny = float(np.finfo(dtype).tiny)
    rng = np.random.RandomState(0)
    magnitudes = np.concatenate(
        [
            [
                0.0,
                tiny / 4,
                tiny,
                1e-30,
                1e-8,
                40.0,
                87.0,
                88.0,
                88.8,
                104.0,
                708.0,
                710.0,
                750.0,
                1e4,
                1e30,
            ],
            10 ** rng.uniform(-12, 1.5, 500),
            rng.uniform(0, 1.3, 400),
            rng.uniform(0, 100, 300),
            np.linspace(0.62, 0.63, 41),  # where tanh changes its formula
            np.arange(20) * np.log(2) / 2,  # where exp rounds to another power of two
        ]
    )
    z = np.concatenate([magnitudes, -magnitudes]).astype(dtype)
    z.setflags(write=False)
    return z


@cache
def exact(activation, dtype):
    with mpmath.workprec(200):
        return [EXACT[activation](mpmath.mpf(float(z))) for z in points(dtype)]


def apply(executor, activation, x, weight=1):
    layers = multilayer_perceptron(
        1, (1,), 1, activation=activation, placements=(), bn_options={}, dropout=0.0
    )
    network = Network(layers, x.dtype)
    network.coefs[0][...] = weight
    network.coefs[1][...] = 1
    it = EXECUTORS[executor](network, loss_kind=LossKind.BINARY_LOG_LOSS)
    return it.predict(x[:, None])[:, 0]


@each_executor
@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_accuracy(activation, dtype, executor):
    """Within some ulp, and within some of the smallest numbers where denormals are flushed."""
    z, expected = points(dtype), exact(activation, dtype)
    found = apply(executor, activation, z)
    tiny, eps = float(np.finfo(dtype).tiny), float(np.finfo(dtype).eps)
    with mpmath.workprec(200):
        pairs = zip(found, expected, strict=True)
        error = np.array([float(abs(mpmath.mpf(float(f)) - e)) for f, e in pairs])
        size = np.array([float(abs(e)) for e in expected])
    ulp = eps * 2.0 ** np.floor(np.log2(np.maximum(size, tiny)))  # where the exact value lies
    bound = REFERENCE_ALLOWED.get(activation, 4) if executor == "reference" else ALLOWED[activation]
    smallest = SMALLEST.get(activation, 2) * tiny
    bound = bound + tail(executor, activation, z)
    allowed = np.where(size < smallest, smallest, bound * ulp)
    bad = error > allowed
    assert not bad.any(), dict(zip(z[bad], (error / ulp)[bad], strict=True))


@each_executor
@each_dtype
def test_ranges(dtype, executor):
    """Never outside of what the function can be, exactly odd, exactly 1/2 at 0."""
    z = points(dtype)
    positive = z[: len(z) // 2]
    logistic, tanh = apply(executor, "logistic", z), apply(executor, "tanh", z)
    assert np.all((logistic >= 0) & (logistic <= 1))
    assert np.all(np.abs(tanh) <= 1)
    assert np.array_equal(apply(executor, "tanh", -positive), -apply(executor, "tanh", positive))
    assert logistic[z == 0] == pytest.approx(0.5, rel=0)
    assert np.all(np.diff(apply(executor, "logistic", np.sort(z))) >= -np.finfo(dtype).eps)


@each_executor
@each_dtype
@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_slopes(activation, dtype, executor):
    """The derivative, within 4 units in the last place of its larger term, tails included."""
    z = points(dtype)[np.abs(points(dtype)) < 1e5]
    z = np.random.RandomState(1).choice(z, 512, replace=False)
    found = run_layer(executor, Elementwise(1, activation), z[:, None], np.ones_like(z[:, None]))
    with mpmath.workprec(200):
        terms = [SLOPES[activation](mpmath.mpf(float(value))) for value in z]
        error = [
            float(abs(mpmath.mpf(float(dx)) - sum(parts)))
            for dx, parts in zip(found["dx"][:, 0], terms, strict=True)
        ]
        size = np.array([float(sum(map(abs, parts))) for parts in terms])
    smallest = 2048 * float(np.finfo(dtype).tiny)
    bound = 4 + tail(executor, activation, z)
    allowed = np.where(size < smallest, smallest, bound * np.finfo(dtype).eps * size)
    bad = error > allowed
    assert not bad.any(), z[bad]


@each_executor
@each_dtype
@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_infinities(activation, dtype, executor):
    """Overflow on the way in becomes a limit, not the NaN that 0 times infinity would be."""
    below = {"leaky_relu": -np.inf, "elu": -1, "selu": float(-SELU_SCALE * SELU_ALPHA)}
    largest = np.array([-1, 1], dtype) * np.finfo(dtype).max
    with np.errstate(over="ignore"):
        low, high = apply(executor, activation, largest, weight=largest[1])
    assert high == np.inf
    eps = float(np.finfo(dtype).eps)
    assert low == pytest.approx(below.get(activation, 0), rel=eps, abs=1e-35)


@each_executor
@each_dtype
@pytest.mark.parametrize("n_classes", [2, 3])
@each_placed
def test_nan_stays(placements, n_classes, activation, dtype, executor):
    """A weight that is NaN must not be mended on the way: the loss has to tell of it."""
    case = network_case(placements, activation, (9, 5), 3, n_classes)
    for index in range(3):
        network = case.network(dtype)
        network.coefs[index][0, 0] = np.nan
        with case.executor(executor, network) as it:
            raw = it.predict(case.data(dtype)[0])
            assert np.isnan(raw[:, 0]).all()
            assert np.isnan(raw).all() == (index < 2 or n_classes == 2)
            assert np.isnan(it.evaluate(*case.data(dtype))[0])
            loss = it.loss_and_gradient(*case.data(dtype), network.new_vector())
            assert np.isnan(loss)
