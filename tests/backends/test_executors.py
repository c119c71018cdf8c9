"""Every compiled executor against the NumPy one: each case of the table, each output by name.

The judge is the NumPy executor in float64 on the same numbers, for float32 too: what is measured
then is the error of the kernels, not the difference of two errors.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from cases import (
    COMPILED,
    EXECUTORS,
    LAYERS,
    NETWORKS,
    SOLVERS,
    assert_close,
    each_compiled,
    each_dtype,
    each_executor,
    each_layer,
    each_network,
    network_case,
    observe_gradient,
    observe_inference,
    observe_training,
    optimizer,
    read_only,
    run_layer,
    tensors,
    train_epochs,
)
from numpy.testing import assert_array_equal

from skbn._layers import BatchNorm, Dense, Dropout
from skbn.backends import get_executor, reference
from skbn.backends.cpu.processor import instruction_levels

F64, F32 = np.float64, np.float32
JUDGE = "reference"


def close(found, expected, dtype, float32, float64=1e-11):
    assert_close(found, expected, float32 if dtype is F32 else float64)


# The table.


def layer_by_formula(layer, x, dy, given):
    """What a layer must return, from the reference's functions in float64."""
    x, dy = x.astype(F64), dy.astype(F64)
    weight, bias = given.get("weight", 1.0), given.get("bias", 0.0)
    activation = layer.record_fields()["activation"]
    if isinstance(layer, Dense):
        y = reference.dense_forward(x, weight, bias, activation)
        dx, dweight, dbias = reference.dense_backward(dy, y, x, weight, activation)
    elif isinstance(layer, Dropout):
        mask = reference.dropout_mask(x.shape, layer.rate, (3, 4), 7, 1, np.dtype(F64))
        return {"y": x * mask, "dx": dy * mask, "sum of dx": (dy * mask).sum(axis=0)}
    else:
        y, dx, dweight, dbias = np.empty_like(x), np.empty_like(x), 0, 0
        for rows in reference.batch_slices(len(x), layer.virtual_batch_size, 2):
            y[rows], saved = reference.batch_norm_forward(
                x[rows], weight, bias, layer.epsilon, activation
            )
            dx[rows], *parts = reference.batch_norm_backward(
                dy[rows], y[rows], x[rows], weight, saved, activation
            )
            dweight, dbias = dweight + parts[0], dbias + parts[1]
    expected = {"y": y, "dx": dx, "sum of dx": dx.sum(axis=0)}
    return expected | {"dweight": dweight, "dbias": dbias}


@each_executor
@each_dtype
@each_layer
def test_layer(case, dtype, executor, seed):
    layer, n_rows = LAYERS[case]
    rng = np.random.RandomState(seed)
    x, dy = (rng.normal(size=(n_rows, n)).astype(F32) for n in (layer.n_in, layer.n_out))
    given = {s.role: (s.initial + rng.normal(size=s.shape)).astype(F32) for s in layer.tensors()}
    found = run_layer(executor, layer, x.astype(dtype), dy.astype(dtype), given, step=7, key=(3, 4))
    expected = layer_by_formula(layer, x, dy, {k: v.astype(F64) for k, v in given.items()})
    close({k: found[k] for k in expected if k in found}, {k: expected[k] for k in expected if k in found}, dtype, 1e-5, 1e-13)


@each_compiled
@each_dtype
@each_network
def test_loss_and_gradient(case, dtype, executor):
    case = NETWORKS[case]
    expected = observe_gradient(JUDGE, case, F64)
    close(observe_gradient(executor, case, dtype), expected, dtype, 2e-5)


@each_compiled
@each_dtype
@each_network
def test_inference(case, dtype, executor):
    case = NETWORKS[case]
    expected = observe_inference(JUDGE, case, F64)
    close(observe_inference(executor, case, dtype), expected, dtype, 2e-5)


@each_compiled
@each_dtype
@pytest.mark.parametrize("solver", SOLVERS)
@each_network
def test_training(case, solver, dtype, executor):
    case = NETWORKS[case]
    expected = observe_training(JUDGE, case, F64, solver)
    close(observe_training(executor, case, dtype, solver), expected, dtype, 1e-4)
