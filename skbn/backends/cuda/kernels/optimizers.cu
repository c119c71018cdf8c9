/* SPDX-License-Identifier: BSD-3-Clause
 *
 * From gradients to the next step, over the flat vectors, pads included (they are zero and stay zero).
 *
 * A batch whose weights sum to zero (total[0] == 0) changes nothing; total NULL: there are no weights. `steps` holds
 * where in the rows the batch begins and how many updates there have been. Sums are taken tile by tile, in order.
 */
#include "optimizers.cuh"
#include "sums.cuh"

#define PARAMS_TILE 1024 /* numbers a block of 256 threads sums */

DEVICE double weight_of(const double *total, int64_t n_rows) { return total ? total[0] : (double)n_rows; }

/* Add the penalty's gradient; to `parts`, (tiles, 3), the sum of squares of the weights and, if the norm `clips`, the
 * largest number of the gradient and the sum of squares of all divided by that: squares alone may overflow. */
extern "C" __global__ void __launch_bounds__(256, 1) add_penalty(
    real *grads, double *parts, const real *params, const LayerRecord *layers, int64_t n_layers,
    const double *total, double alpha, int64_t n_rows, int64_t n_params, int64_t clips)
{
    const double sum = weight_of(total, n_rows);
    const real penalty = (real)(sum > 0 ? alpha / sum : 0);
    const int64_t start = blockIdx.x * (int64_t)PARAMS_TILE, stop = smaller(start + PARAMS_TILE, n_params);
    double squares = 0, largest = 0, scaled = 0;
    for (int64_t k = start + threadIdx.x; k < stop; k += blockDim.x) {
        real gradient = grads[k];
        if (alpha != 0 && is_penalized(layers, n_layers, k)) {
            const real w = params[k];
            squares += (double)w * w;
            gradient += penalty * w;
            grads[k] = gradient;
        }
        largest = larger(largest, fabs((double)gradient));
    }
    squares = sum_over_block(squares);
    if (threadIdx.x == 0)
        parts[blockIdx.x * 3] = squares;
    if (!clips)
        return;
    largest = largest_over_block(largest);
    if (largest > 0)
        for (int64_t k = start + threadIdx.x; k < stop; k += blockDim.x) {
            const double share = (double)grads[k] / largest;
            scaled += share * share;
        }
    scaled = sum_over_block(scaled);
    if (threadIdx.x == 0) {
        parts[blockIdx.x * 3 + 1] = largest;
        parts[blockIdx.x * 3 + 2] = scaled;
    }
}

/* What gradients are multiplied with so that their norm is max_norm at most; one block. */
extern "C" __global__ void __launch_bounds__(256, 1) clip_norm(
    double *factor, const double *parts, int64_t n_tiles, double max_norm)
{
    double largest = 0, squares = 0;
    for (int64_t k = threadIdx.x; k < n_tiles; k += blockDim.x)
        largest = larger(largest, parts[k * 3 + 1]);
    largest = largest_over_block(largest);
    if (largest > 0)
        for (int64_t k = threadIdx.x; k < n_tiles; k += blockDim.x) {
            const double share = parts[k * 3 + 1] / largest;
            squares += share * share * parts[k * 3 + 2];
        }
    const double norm = largest * sqrt(sum_over_block(squares));
    if (threadIdx.x == 0)
        factor[0] = norm > max_norm ? max_norm / norm : 1;
}

/* The rate of the next update: powers take longer than all else that an update does, so one thread takes them. */
DEVICE double next_rate(const OptimizerRecord *optimizer, int64_t t)
{
    const double n_updates = (double)(t + 1);
    return rate_of_update(optimizer, t, pow(optimizer->beta_1, n_updates), pow(optimizer->beta_2, n_updates));
}

/* Before the first step. */
extern "C" __global__ void __launch_bounds__(32, 1) plan_first_rate(
    double *rate, const OptimizerRecord *optimizer, const int64_t *steps)
{
    if (threadIdx.x == 0)
        rate[0] = next_rate(optimizer, steps[1]);
}

/* factor NULL: 1. */
extern "C" __global__ void __launch_bounds__(256, 1) optimizer_update(
    real *params, real *memory, const real *grads, const OptimizerRecord *optimizer, const double *rate,
    const double *total, const double *factor, int64_t n_params)
{
    if (total && total[0] == 0)
        return;
    Update update;
    update.set(optimizer, rate[0]);
    const real scale = factor ? (real)factor[0] : (real)1;
    real unused = 0;
    for (int64_t k = thread_of_grid(); k < n_params; k += threads_of_grid())
        update.apply(
            params[k], memory[k], update.kind == SKBN_ADAM ? memory[n_params + k] : unused, grads[k] * scale);
}

/* Add what a batch gave to the sums (loss with penalty times rows, rows, scores), and go on to the next; one block.
 *
 * loss[0] becomes the mean loss of the batch, rate[0] the rate of the next update (optimizer NULL: there is none). */
extern "C" __global__ void __launch_bounds__(256, 1) finish_step(
    double *sums, double *loss, int64_t *steps, double *rate, const OptimizerRecord *optimizer,
    const double *loss_parts, int64_t n_loss_parts, int64_t n_scores, const double *penalty_parts, int64_t n_tiles,
    const double *total, double alpha, int64_t n_rows)
{
    const double weight = weight_of(total, n_rows);
    const int64_t size = 2 + n_scores;
    __syncthreads();
    if (weight > 0) {
        double squares = 0;
        if (alpha != 0)
            for (int64_t k = threadIdx.x; k < n_tiles; k += blockDim.x)
                squares += penalty_parts[k * 3];
        squares = sum_over_block(squares);
        for (int64_t k = threadIdx.x; k < n_scores + 1; k += blockDim.x) {
            double sum = 0;
            const int64_t column = k == 0 ? 0 : k + 1;
            for (int64_t part = 0; part < n_loss_parts; part++)
                sum += loss_parts[part * size + column];
            if (k == 0) {
                loss[0] = (sum + 0.5 * alpha * squares) / weight;
                sums[0] += loss[0] * (double)n_rows;
                sums[1] += (double)n_rows;
            } else {
                sums[k + 1] += sum;
            }
        }
    }
    if (threadIdx.x == 0) {
        steps[0] += n_rows;
        if (weight > 0)
            steps[1] += 1;
        if (optimizer)
            rate[0] = next_rate(optimizer, steps[1]);
    }
}
