/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How rows of X get into a network, and raw outputs out of it. `steps[0]` is where in `rows` the batch begins; rows of
 * weight 0 are read as zeros, whatever stands in them. rows NULL: in order. A warp a row, or several.
 */
#include "sums.cuh"

DEVICE int64_t row_at(const int64_t *rows, int64_t i) { return rows ? rows[i] : i; }

extern "C" __global__ void __launch_bounds__(256, 1) gather_rows(
    real *x, const real *X, const int64_t *rows, const double *weights, const int64_t *steps,
    int64_t n_rows, int64_t n_columns, int64_t stride, int64_t row_stride, int64_t column_stride)
{
    const int64_t start = steps[0];
    for (int64_t i = warp_of_grid(); i < n_rows; i += warps_of_grid()) {
        const int64_t row = row_at(rows, start + i);
        const bool counts = !weights || weights[row] != 0;
        for (int64_t j = lane_of_row(); j < n_columns; j += lanes_of_row())
            x[i * stride + j] = counts ? X[row * row_stride + j * column_stride] : (real)0;
    }
}

DEVICE int64_t integer(const void *integers, int64_t is_wide, int64_t k)
{
    return is_wide ? ((const int64_t *)integers)[k] : ((const int *)integers)[k];
}

/* CSR without duplicates. */
extern "C" __global__ void __launch_bounds__(256, 1) gather_compressed_rows(
    real *x, const real *data, const void *columns, const void *starts, int64_t is_wide,
    const int64_t *rows, const double *weights, const int64_t *steps,
    int64_t n_rows, int64_t n_columns, int64_t stride)
{
    const int64_t start = steps[0];
    for (int64_t i = warp_of_grid(); i < n_rows; i += warps_of_grid()) {
        const int64_t row = row_at(rows, start + i);
        for (int64_t j = lane(); j < n_columns; j += 32)
            x[i * stride + j] = 0;
        __syncwarp();
        if (weights && weights[row] == 0)
            continue;
        const int64_t stop = integer(starts, is_wide, row + 1);
        for (int64_t k = integer(starts, is_wide, row) + lane(); k < stop; k += 32)
            x[i * stride + integer(columns, is_wide, k)] = data[k];
    }
}

/* Weights of a batch and their sum; one block. */
extern "C" __global__ void __launch_bounds__(256, 1) gather_weights(
    double *batch_weights, double *total, const double *weights, const int64_t *rows, const int64_t *steps,
    int64_t n_rows)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n_rows; i += blockDim.x) {
        const double weight = weights[row_at(rows, steps[0] + i)];
        batch_weights[i] = weight;
        sum += weight;
    }
    sum = sum_over_block(sum);
    if (threadIdx.x == 0)
        total[0] = sum;
}

/* Rows without their pads. */
extern "C" __global__ void __launch_bounds__(256, 1) copy_rows(
    real *out, const real *x, int64_t n_rows, int64_t width, int64_t stride)
{
    for (int64_t i = warp_of_grid(); i < n_rows; i += warps_of_grid())
        for (int64_t j = lane_of_row(); j < width; j += lanes_of_row())
            out[i * width + j] = x[i * stride + j];
}
