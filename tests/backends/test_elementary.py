"""The executors' own exp, logistic and tanh against mpmath, and what NaN does to a network.

Kernels have no door to Python, and need none: a network of one layer with a weight of 1 is its
activation.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

from functools import cache

import mpmath
import numpy as np
import pytest
from cases import ACTIVATIONS, EXECUTORS, PLACEMENTS, each_dtype, each_executor, network_case

from skbn._layers import Dense
from skbn._network import Network
from skbn.backends.records import LossKind

F32, F64 = np.float32, np.float64

EXACT = {
    "identity": lambda z: z,
    "logistic": lambda z: 1 / (1 + mpmath.exp(-z)),
    "tanh": mpmath.tanh,
    "relu": lambda z: max(z, mpmath.mpf(0)),
}
# In ulp. NumPy promises 4 for its own tanh, and the reference uses it.
ALLOWED = {"identity": 0, "relu": 0, "logistic": 2, "tanh": 2}
REFERENCE_ALLOWED = {"identity": 0, "relu": 0, "logistic": 4, "tanh": 4}


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


def apply(executor, activation, z):
    network = Network([Dense(1, 1, activation)], z.dtype)
    network.coefs[0][...] = 1
    it = EXECUTORS[executor](network, loss_kind=LossKind.BINARY_LOG_LOSS)
    return it.predict(z[:, None])[:, 0]


@each_executor
@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_accuracy(activation, dtype, executor):
    """Within 2 ulp, and within 2 of the smallest normal numbers where denormals are flushed."""
    z, expected = points(dtype), exact(activation, dtype)
    found = apply(executor, activation, z)
    tiny, eps = float(np.finfo(dtype).tiny), float(np.finfo(dtype).eps)
    with mpmath.workprec(200):
        pairs = zip(found, expected, strict=True)
        error = np.array([float(abs(mpmath.mpf(float(f)) - e)) for f, e in pairs])
        size = np.array([float(abs(e)) for e in expected])
    ulp = eps * 2.0 ** np.floor(np.log2(np.maximum(size, tiny)))  # where the exact value lies
    bound = (REFERENCE_ALLOWED if executor == "reference" else ALLOWED)[activation]
    allowed = np.where(size < 2 * tiny, 2 * tiny, bound * ulp)
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
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("placements", PLACEMENTS, ids=lambda p: "+".join(p) or "none")
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
