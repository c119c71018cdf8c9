/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Losses of a batch: a thread a row, a block LOSS_ROWS rows.
 *
 * `parts` is (blocks, 2 + n_scores): the weighted sum of the losses, the weight, and the scores; who adds them up does
 * so in order. `steps[0]` is where in `rows` the batch begins. draw, weights, rows may be NULL; total NULL: n_rows.
 */
#include "losses.cuh"
#include "sums.cuh"

#define LOSS_ROWS 128

extern "C" __global__ void __launch_bounds__(LOSS_ROWS, 1) loss_forward_backward(
    real *draw, double *parts, const real *raw, const real *targets, const double *weights, const double *total,
    const int64_t *rows, const int64_t *steps, int64_t n_rows, int64_t n_out, int64_t stride, int64_t kind)
{
    const int64_t i = thread_of_grid();
    const bool is_inside = i < n_rows;
    const double weight = is_inside ? weights ? weights[i] : 1 : 0;
    const double sum = total ? total[0] : (double)n_rows, rate = sum > 0 ? 1 / sum : 0;
    const int64_t row = is_inside ? rows ? rows[steps[0] + i] : steps[0] + i : 0;
    double loss = 0;
    if (is_log_loss(kind)) {
        double right = 0;
        if (is_inside) {
            bool is_right;
            real *const slopes = draw ? draw + i * stride : 0;
            if (kind == SKBN_BINARY_LOG_LOSS)
                loss = binary_log_loss(
                    slopes, is_right, raw + i * stride, targets + row * n_out, n_out, 1, weight * rate, 1);
            else
                loss = categorical_log_loss(
                    slopes, is_right, raw + i * stride, targets + row, n_out, 1, weight * rate);
            loss = weight > 0 ? weight * loss : 0;
            right = is_right ? weight : 0;
        }
        right = sum_over_block(right);
        if (threadIdx.x == 0)
            parts[blockIdx.x * 3 + 2] = right;
    } else {
        const double share = share_of_output(kind, n_out);
        for (int64_t j = 0; j < n_out; j++) {
            double error = 0, slope = 0;
            if (is_inside && weight > 0)
                loss += weight * share * error_loss(kind, raw[i * stride + j], targets[row * n_out + j], error, slope);
            if (is_inside && draw)
                draw[i * stride + j] = (real)(slope * weight * rate * share);
            const double squares = sum_over_block(weight * error * error);
            if (threadIdx.x == 0)
                parts[blockIdx.x * (2 + n_out) + 2 + j] = squares;
        }
    }
    const int64_t n_parts = 2 + (is_log_loss(kind) ? 1 : n_out);
    loss = sum_over_block(loss);
    const double seen = sum_over_block(weight);
    if (threadIdx.x == 0) {
        parts[blockIdx.x * n_parts] = loss;
        parts[blockIdx.x * n_parts + 1] = seen;
    }
}
