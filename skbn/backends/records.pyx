# SPDX-License-Identifier: BSD-3-Clause
"""The records of records.h as NumPy dtypes, and its numbers as Python enumerations.

The dtypes are read off the C structs, so there is one description of a layer for Python, Cython and CUDA.
"""

from enum import IntEnum

import numpy as np


class LayerKind(IntEnum):
    """What a layer computes."""

    DENSE = SKBN_DENSE
    BATCH_NORM = SKBN_BATCH_NORM
    DROPOUT = SKBN_DROPOUT
    ELEMENTWISE = SKBN_ELEMENTWISE


class Activation(IntEnum):
    """Elementwise function of a hidden unit."""

    IDENTITY = SKBN_IDENTITY
    LOGISTIC = SKBN_LOGISTIC
    TANH = SKBN_TANH
    RELU = SKBN_RELU
    LEAKY_RELU = SKBN_LEAKY_RELU
    ELU = SKBN_ELU
    SELU = SKBN_SELU
    GELU = SKBN_GELU
    SILU = SKBN_SILU
    SOFTPLUS = SKBN_SOFTPLUS


class LossKind(IntEnum):
    """Loss over the raw outputs of a network."""

    BINARY_LOG_LOSS = SKBN_BINARY_LOG_LOSS
    CATEGORICAL_LOG_LOSS = SKBN_CATEGORICAL_LOG_LOSS
    SQUARED_ERROR = SKBN_SQUARED_ERROR
    ABSOLUTE_ERROR = SKBN_ABSOLUTE_ERROR
    HUBER = SKBN_HUBER
    POISSON = SKBN_POISSON


class OptimizerKind(IntEnum):
    """Rule by which gradients become updates."""

    SGD = SKBN_SGD
    ADAM = SKBN_ADAM
    RMSPROP = SKBN_RMSPROP


class Schedule(IntEnum):
    """How the learning rate moves from step to step."""

    STEADY = SKBN_STEADY
    COSINE = SKBN_COSINE
    ONECYCLE = SKBN_ONECYCLE


WARM_UP, START_RATE, FINAL_RATE = SKBN_WARM_UP, SKBN_START_RATE, SKBN_FINAL_RATE


class Statistics(IntEnum):
    """Rows of a batch norm's block of the state vector."""

    MOVING_MEAN = SKBN_MOVING_MEAN
    MOVING_VAR = SKBN_MOVING_VAR
    POPULATION_MEAN = SKBN_POPULATION_MEAN
    POPULATION_VAR = SKBN_POPULATION_VAR
    N_BATCHES = SKBN_N_BATCHES


LEAKY_SLOPE = SKBN_LEAKY_SLOPE
SELU_SCALE = SKBN_SELU_SCALE
SELU_SCALE_ALPHA = SKBN_SELU_SCALE_ALPHA


def _dtypes():
    cdef LayerRecord layer
    cdef OptimizerRecord optimizer
    return (
        np.asarray(<LayerRecord[:1]> &layer).dtype,
        np.asarray(<OptimizerRecord[:1]> &optimizer).dtype,
    )


LAYER_DTYPE, OPTIMIZER_DTYPE = _dtypes()
