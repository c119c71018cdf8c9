# SPDX-License-Identifier: BSD-3-Clause
from enum import IntEnum

import numpy as np

class LayerKind(IntEnum):
    DENSE = 1
    BATCH_NORM = 2
    DROPOUT = 3
    ELEMENTWISE = 4

class Activation(IntEnum):
    IDENTITY = 0
    LOGISTIC = 1
    TANH = 2
    RELU = 3
    LEAKY_RELU = 4
    ELU = 5
    SELU = 6
    GELU = 7
    SILU = 8
    SOFTPLUS = 9

class LossKind(IntEnum):
    BINARY_LOG_LOSS = 1
    CATEGORICAL_LOG_LOSS = 2
    SQUARED_ERROR = 3
    ABSOLUTE_ERROR = 4
    HUBER = 5
    POISSON = 6

class OptimizerKind(IntEnum):
    SGD = 1
    ADAM = 2
    RMSPROP = 3

class Schedule(IntEnum):
    STEADY = 0
    COSINE = 1
    ONECYCLE = 2

class Statistics(IntEnum):
    MOVING_MEAN = 0
    MOVING_VAR = 1
    POPULATION_MEAN = 2
    POPULATION_VAR = 3
    N_BATCHES = 4

WARM_UP: float
START_RATE: float
FINAL_RATE: float
LEAKY_SLOPE: float
SELU_SCALE: float
SELU_SCALE_ALPHA: float
LAYER_DTYPE: np.dtype[np.void]
OPTIMIZER_DTYPE: np.dtype[np.void]
