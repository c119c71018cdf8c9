/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Layers that map each unit to itself: one thread a number (a quad of units for dropout, whose generator gives four).
 * Buffers are (n_rows, width) by stride; pads are not touched.
 */
#include "activations.cuh"
#include "dropout.cuh"

extern "C" __global__ void __launch_bounds__(256, 1) elementwise_layer_forward(
    real *y, const real *x, int64_t n_rows, int64_t width, int64_t stride, int64_t kind)
{
    for (int64_t k = thread_of_grid(); k < n_rows * width; k += threads_of_grid()) {
        const int64_t at = k / width * stride + k % width;
        y[at] = elementwise_forward(kind, x[at]);
    }
}

extern "C" __global__ void __launch_bounds__(256, 1) elementwise_layer_backward(
    real *dx, const real *dy, const real *x, int64_t n_rows, int64_t width, int64_t stride, int64_t kind)
{
    for (int64_t k = thread_of_grid(); k < n_rows * width; k += threads_of_grid()) {
        const int64_t at = k / width * stride + k % width;
        dx[at] = elementwise_backward(kind, dy[at], x[at]);
    }
}

/* Forward, or backward with dx and dy for y and x. `steps` holds the position in the epoch and the step. */
extern "C" __global__ void __launch_bounds__(256, 1) dropout_apply(
    real *y, const real *x, const int64_t *steps, int64_t n_rows, int64_t width, int64_t stride, double rate,
    int64_t key, int64_t layer)
{
    const int64_t quads = (width + 3) / 4;
    const uint64_t threshold = dropout_threshold(rate);
    const real scale = (real)(1 / (1 - rate));
    for (int64_t k = thread_of_grid(); k < n_rows * quads; k += threads_of_grid()) {
        const int64_t row = k / quads, first = k % quads * 4;
        uint32_t words[4];
        dropout_words(words, k % quads, row, layer, steps[1], (uint64_t)key);
#pragma unroll
        for (int unit = 0; unit < 4; unit++) {
            if (first + unit < width) {
                const int64_t at = row * stride + first + unit;
                y[at] = words[unit] < threshold ? (real)0 : x[at] * scale;
            }
        }
    }
}
