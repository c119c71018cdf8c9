"""The arrays of a well-known tutorial on normalization layers give the numbers it prints.

"Using Normalization Layers to Improve Deep Learning Models" (machinelearningmastery.com), which
docs/user_guide/normalization.md goes through. Its arithmetic is float32's, so its last printed
digit may be off.
"""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest

from skbn import BatchNormTransformer
from skbn.functional import batch_norm, batch_norm_inference, moments

UP = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
MAPS = np.stack([np.ones_like(UP), UP, 10 - UP])[np.newaxis]  # (1, 3, 3, 3)
CONSTANT_MAPS = np.repeat(np.float32([1, 2, 3]), 9).reshape(3, 3, 3, 1)

# What the tutorial prints of the rising map, with epsilon 1e-3 (Keras) and 0 (NumPy). The constant
# map is its first number everywhere; the falling map is the rising one backwards.
PRINTED = {
    1e-3: [
        *(-0.9427501, -0.5892188, -0.2356875),
        *(0.11784375, 0.471375, 0.82490635),
        *(1.1784375, 1.5319688, 1.8855002),
    ],
    0.0: [
        *(-0.94280916, -0.58925575, -0.2357023),
        *(0.11785112, 0.47140455, 0.82495797),
        *(1.1785114, 1.5320647, 1.8856182),
    ],
}
PRINTED_WITHIN = 3e-7  # two float32 numbers, at most, and half a digit


def printed_maps(epsilon):
    rising = np.reshape(PRINTED[epsilon], (3, 3))
    return np.stack([np.full_like(rising, rising[0, 0]), rising, rising[::-1, ::-1]])[np.newaxis]


@pytest.mark.parametrize("epsilon", PRINTED)
def test_maps(epsilon):
    y, saved = batch_norm(MAPS, axis=0, epsilon=epsilon)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, printed_maps(epsilon), rtol=0, atol=PRINTED_WITHIN)
    exact = (MAPS.astype(np.float64) - 11 / 3) / np.sqrt(8 + epsilon)
    np.testing.assert_array_max_ulp(y, exact.astype(np.float32), maxulp=2)
    np.testing.assert_allclose([saved.mean[0], saved.var[0]], [11 / 3, 8], rtol=1e-15)


def test_maps_whole_and_in_inference():
    """The one entry of the first axis is all there is; its statistics serve later."""
    y, _ = batch_norm(MAPS, axis=0)
    np.testing.assert_array_equal(batch_norm(MAPS, axis=None)[0], y)
    mean, var = moments(MAPS, axis=0)
    assert f"{mean[0]:.7f} {np.sqrt(var[0]):.7f}" == "3.6666667 2.8284271"
    np.testing.assert_array_max_ulp(batch_norm_inference(MAPS, mean, var, axis=0), y, maxulp=2)


def test_constant_maps():
    norm = BatchNormTransformer(epsilon=0.0).fit(CONSTANT_MAPS)
    assert f"{norm.mean_[0]:.1f} {norm.scale_[0]:.7f}" == "2.0 0.8164966"
    y = norm.transform(CONSTANT_MAPS)
    assert y.dtype == np.float32
    assert {str(value) for value in y[0].ravel()} == {"-1.2247449"}
    np.testing.assert_array_equal(y[1], 0)
    np.testing.assert_array_equal(y[2], -y[0])


@pytest.fixture
def keras(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras")


def test_maps_against_keras(keras):
    layer = keras.layers.BatchNormalization(axis=0)
    expected = keras.ops.convert_to_numpy(layer(MAPS, training=True))
    y, _ = batch_norm(MAPS, axis=0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=PRINTED_WITHIN)


def test_constant_maps_against_keras(keras):
    layer = keras.layers.Normalization()
    layer.adapt(CONSTANT_MAPS)
    expected = keras.ops.convert_to_numpy(layer(CONSTANT_MAPS))
    y = BatchNormTransformer(epsilon=0.0).fit_transform(CONSTANT_MAPS)
    np.testing.assert_allclose(y, expected, rtol=0, atol=PRINTED_WITHIN)


def test_feature_maps_against_keras(keras, seed):
    """A convolution's maps, per channel: output in training, moving statistics and inference."""
    maps = np.random.RandomState(seed).normal(3, 2, (16, 6, 5, 4)).astype(np.float32)
    layer = keras.layers.BatchNormalization(momentum=0.0)
    y, saved = batch_norm(maps)
    expected = keras.ops.convert_to_numpy(layer(maps, training=True))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    moving = [keras.ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance)]
    np.testing.assert_allclose([saved.mean, saved.var], moving, rtol=1e-5)
    y = batch_norm_inference(maps[:3], saved.mean, saved.var)
    expected = keras.ops.convert_to_numpy(layer(maps[:3], training=False))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
