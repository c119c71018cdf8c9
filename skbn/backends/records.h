/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The records that a network is made of, and every number that Python, Cython and CUDA must agree on.
 *
 * A network is a table of LayerRecord over flat vectors (docs/design.md). Executors walk the table; nobody keeps a
 * second description. Fields are 8 bytes wide, so the layout is the same on every platform and the NumPy dtype, which
 * records.pyx derives from this struct, has no holes.
 *
 * Offsets `weight` and `bias` count elements of `params` and `grads`; `state` counts elements of `state`. Buffers
 * depend on the batch size and the table does not, so `input`, `output` and `saved` are offsets *per row* (per
 * virtual batch for `saved`): multiply by the number of rows (virtual batches) that the buffers were made for.
 */
#ifndef SKBN_RECORDS_H
#define SKBN_RECORDS_H

#ifdef __CUDACC_RTC__ /* compiles without a C library */
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned int uint32_t;
#else
#include <stdint.h>
#endif

enum { SKBN_DENSE = 1, SKBN_BATCH_NORM = 2, SKBN_DROPOUT = 3, SKBN_ELEMENTWISE = 4 };

enum {
    SKBN_IDENTITY = 0,
    SKBN_LOGISTIC = 1,
    SKBN_TANH = 2,
    SKBN_RELU = 3,
    SKBN_LEAKY_RELU = 4,
    SKBN_ELU = 5,
    SKBN_SELU = 6,
    SKBN_GELU = 7,
    SKBN_SILU = 8,
    SKBN_SOFTPLUS = 9
};

/* Slope of leaky ReLU below 0: Maas et al. (2013), and the default of PyTorch. */
#define SKBN_LEAKY_SLOPE 0.01

/* SELU is scale * z above 0 and scale * alpha * (exp(z) - 1) below, with mean 0 and variance 1 as a fixed point:
 * Klambauer et al. (2017), by the formulas of their appendix. */
#define SKBN_SELU_SCALE 1.0507009873554804934193349852946
#define SKBN_SELU_SCALE_ALPHA 1.7580993408473768599402175208123

enum {
    SKBN_BINARY_LOG_LOSS = 1,
    SKBN_CATEGORICAL_LOG_LOSS = 2,
    SKBN_SQUARED_ERROR = 3,
    SKBN_ABSOLUTE_ERROR = 4,
    SKBN_HUBER = 5,
    SKBN_POISSON = 6
};

enum { SKBN_SGD = 1, SKBN_ADAM = 2, SKBN_RMSPROP = 3 };

/* How the learning rate moves from step to step; what moves from epoch to epoch is the training loop's. */
enum { SKBN_STEADY = 0, SKBN_COSINE = 1, SKBN_ONECYCLE = 2 };

#define SKBN_WARM_UP 0.3        /* share of the steps in which "onecycle" rises (Smith & Topin, 2017; torch's default) */
#define SKBN_START_RATE 0.04    /* where it starts and, */
#define SKBN_FINAL_RATE 4e-6    /* where it ends, as shares of the largest rate: 1 / 25 and that / 1e4, as in torch */

/* Rows of `statistics` in a batch norm's block of `state`, each `out_stride` long but for the last, which holds the
 * number of batches seen. */
enum {
    SKBN_MOVING_MEAN = 0,
    SKBN_MOVING_VAR = 1,
    SKBN_POPULATION_MEAN = 2,
    SKBN_POPULATION_VAR = 3,
    SKBN_N_BATCHES = 4
};

typedef struct {
    int64_t kind;               /* SKBN_DENSE, ... */
    int64_t activation;         /* applied to what the layer computes, SKBN_IDENTITY, ...; elementwise: what it computes */
    int64_t n_in, n_out;        /* true widths */
    int64_t in_stride;          /* widths padded to 64 bytes: the strides between rows */
    int64_t out_stride;
    int64_t input, output;      /* where the layer reads and writes, per row of the buffers */
    int64_t weight;             /* dense: (n_in, out_stride) weights; batch norm: gamma; -1: none */
    int64_t bias;               /* dense: bias; batch norm: beta; -1: none */
    int64_t train_bias;         /* 0: the bias is never trained (a batch norm behind it cancels it) */
    int64_t state;              /* batch norm: its statistics; -1: none */
    int64_t saved;              /* batch norm: what forward saves for backward, per virtual batch; -1: none */
    int64_t virtual_batch_size; /* batch norm: rows that share statistics; 0: the whole mini-batch */
    double momentum;            /* batch norm: fraction of the moving statistics retained; NaN: cumulative */
    double epsilon;             /* batch norm */
    double rate;                /* dropout: probability that a unit is dropped */
} LayerRecord;

typedef struct {
    int64_t kind;               /* SKBN_SGD, ... */
    int64_t nesterov;
    int64_t t;                  /* updates done so far */
    double learning_rate;
    double momentum;
    double beta_1, beta_2, epsilon;
    double max_grad_norm;       /* longer gradients are scaled down to this norm; infinity: never */
    int64_t schedule;           /* SKBN_STEADY, ... */
    int64_t n_steps;            /* updates that the schedule is planned for */
} OptimizerRecord;

#endif
