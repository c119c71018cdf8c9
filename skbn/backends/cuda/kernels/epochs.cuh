/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a block needs to train one model: fields of 8 bytes, whose names Python reads off this text (sources.record).
 * Pointers are addresses on the card. `input` and `output` of the layers count true widths here, without pads.
 */
#ifndef SKBN_EPOCHS_CUH
#define SKBN_EPOCHS_CUH

#include "real.cuh"

typedef struct {
    const LayerRecord *layers;
    const OptimizerRecord *optimizer;
    real *params;
    real *memory;
    double *state;
    double *sums;               /* IN/OUT number of updates so far; loss, rows and scores of an epoch so far */
    double *parts;              /* IN/OUT (2, threads): what each thread has added to loss and score of it; powers of
                                   Adam's betas (2,) and of the momentum of batch norms (n_layers,) */
    const real *X;
    const real *targets;
    const double *weights;      /* NULL: ones */
    const int64_t *rows;
    int64_t row_stride, column_stride, target_size;
    int64_t n_layers, n_params, n_virtual;
    int64_t capacity, saved, row_size, widest;  /* rows of a mini-batch at most; sizes of what a block works with */
    int64_t n_rows, position, n_batches;    /* how many rows, where to begin, and with how many mini-batches at most */
    int64_t is_first, is_new;   /* whether sums begin here, and powers: no bit depends on how launches cut an epoch */
    int64_t batch_size, min_rows;
    int64_t loss, n_scores, key;
    double alpha;
} Job;

#endif
