# SPDX-License-Identifier: BSD-3-Clause
"""records.h for Cython: the layer table, the optimizer record and the numbers they use."""

from libc.stdint cimport int64_t

cdef extern from "records.h" nogil:
    enum:
        SKBN_DENSE
        SKBN_BATCH_NORM
        SKBN_DROPOUT
        SKBN_ELEMENTWISE

    enum:
        SKBN_IDENTITY
        SKBN_LOGISTIC
        SKBN_TANH
        SKBN_RELU
        SKBN_LEAKY_RELU
        SKBN_ELU
        SKBN_SELU
        SKBN_GELU
        SKBN_SILU
        SKBN_SOFTPLUS

    const double SKBN_LEAKY_SLOPE
    const double SKBN_SELU_SCALE
    const double SKBN_SELU_SCALE_ALPHA

    enum:
        SKBN_BINARY_LOG_LOSS
        SKBN_CATEGORICAL_LOG_LOSS
        SKBN_SQUARED_ERROR
        SKBN_ABSOLUTE_ERROR
        SKBN_HUBER
        SKBN_POISSON

    enum:
        SKBN_SGD
        SKBN_ADAM
        SKBN_RMSPROP

    enum:
        SKBN_STEADY
        SKBN_COSINE
        SKBN_ONECYCLE

    const double SKBN_WARM_UP
    const double SKBN_START_RATE
    const double SKBN_FINAL_RATE

    enum:
        SKBN_MOVING_MEAN
        SKBN_MOVING_VAR
        SKBN_POPULATION_MEAN
        SKBN_POPULATION_VAR
        SKBN_N_BATCHES

    ctypedef struct LayerRecord:
        int64_t kind
        int64_t activation
        int64_t n_in
        int64_t n_out
        int64_t in_stride
        int64_t out_stride
        int64_t input
        int64_t output
        int64_t weight
        int64_t bias
        int64_t train_bias
        int64_t state
        int64_t saved
        int64_t virtual_batch_size
        double momentum
        double epsilon
        double rate

    ctypedef struct OptimizerRecord:
        int64_t kind
        int64_t nesterov
        int64_t t
        double learning_rate
        double momentum
        double beta_1
        double beta_2
        double epsilon
        double max_grad_norm
        int64_t schedule
        int64_t n_steps
