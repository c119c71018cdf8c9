"""Every compiled executor against the NumPy one: each case of the table, each output by name.

The judge is the NumPy executor in float64 on the same numbers, for float32 too: what is measured
then is the error of the kernels, not the difference of two errors.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

from dataclasses import replace

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


# What is above a table's own float32 tolerance, and why. Two rows: gradients through batch norm are
# differences that vanish but for epsilon. One feature and three units: four steps of training
# stretch a rounding error a thousand times, in float64 as well (4e-13).
LOOSER = {
    ("gradient", "before-identity-9-(50, 3, 64)-2x2"): 1e-4,
    ("training", "after-relu-1-(50, 3, 64)-10x64"): 4e-4,
}


def close(found, expected, dtype, kind, case=None):
    """Within the tolerance of a table, relative to the scale of each tensor."""
    float32, float64 = {
        "layer": (2e-6, 2e-15),
        "gradient": (2e-5, 1e-12),
        "inference": (2e-6, 1e-14),
        "training": (4e-5, 1e-12),
    }[kind]
    assert_close(found, expected, LOOSER.get((kind, case), float32) if dtype is F32 else float64)


# The table.


def layer_by_formula(layer, x, dy, given, key, step):
    """What a layer must return, by the reference's functions in float64."""
    weight, bias = given.get("weight", 1.0), given.get("bias", 0.0)
    fields = layer.record_fields()
    if isinstance(layer, Dense):
        y = reference.dense_forward(x, weight, bias, fields["activation"])
        dx, *gradients = reference.dense_backward(dy, y, x, weight, fields["activation"])
    elif isinstance(layer, Dropout):
        mask = reference.dropout_mask(x.shape, layer.rate, key, step, 1, x.dtype)
        y, dx, gradients = x * mask, dy * mask, (None, None)
    else:
        y, dx, gradients = np.empty_like(x), np.empty_like(x), [0, 0]
        for rows in reference.batch_slices(len(x), layer.virtual_batch_size, 2):
            y[rows], saved = reference.batch_norm_forward(
                x[rows], weight, bias, layer.epsilon, fields["activation"]
            )
            dx[rows], *parts = reference.batch_norm_backward(
                dy[rows], y[rows], x[rows], weight, saved, fields["activation"]
            )
            gradients = [total + part for total, part in zip(gradients, parts, strict=True)]
    gradients = dict(zip(("weight", "bias"), gradients, strict=True))
    return {"y": y, "dx": dx} | {f"d{role}": gradients[role] for role in given}


@each_executor
@each_dtype
@each_layer
def test_layer(case, dtype, executor, seed):
    layer, n_rows = LAYERS[case]
    rng = np.random.RandomState(seed)
    x, dy = (rng.normal(size=(n_rows, n)).astype(F32) for n in (layer.n_in, layer.n_out))
    given = {s.role: (s.initial + rng.normal(size=s.shape)).astype(F32) for s in layer.tensors()}
    key, step = (seed, 4), 7
    found = run_layer(executor, layer, x.astype(dtype), dy.astype(dtype), given, key=key, step=step)
    wide = {role: value.astype(F64) for role, value in given.items()}
    expected = layer_by_formula(layer, x.astype(F64), dy.astype(F64), wide, key, step)
    close({name: found[name] for name in expected}, expected, dtype, "layer", case)


@each_compiled
@each_dtype
@each_network
def test_loss_and_gradient(case, dtype, executor):
    expected = observe_gradient(JUDGE, NETWORKS[case], F64)
    close(observe_gradient(executor, NETWORKS[case], dtype), expected, dtype, "gradient", case)


@each_compiled
@each_dtype
@each_network
def test_inference(case, dtype, executor):
    expected = observe_inference(JUDGE, NETWORKS[case], F64)
    close(observe_inference(executor, NETWORKS[case], dtype), expected, dtype, "inference", case)


@each_compiled
@each_dtype
@pytest.mark.parametrize("solver", SOLVERS)
@each_network
def test_training(case, solver, dtype, executor):
    expected = observe_training(JUDGE, NETWORKS[case], F64, solver)
    found = observe_training(executor, NETWORKS[case], dtype, solver)
    close(found, expected, dtype, "training", case)


@pytest.mark.parametrize("case", ["alpha", "dropout", "virtual, even", "epsilon 1", "no gamma"])
def test_options_matter(case):
    """Without its option a case of the table gives other numbers: the table is not blind to it."""
    case = NETWORKS[case]
    plain = case._replace(
        alpha=0.0,
        layers=tuple(
            replace(layer, virtual_batch_size=None, epsilon=1e-3, scale=True)
            if isinstance(layer, BatchNorm)
            else layer
            for layer in case.layers
            if not isinstance(layer, Dropout)
        ),
    )
    assert plain.layers != case.layers or plain.alpha != case.alpha
    loss, other = (observe_gradient(JUDGE, c, F64)["loss"] for c in (case, plain))
    assert abs(loss - other) > 1e-6
