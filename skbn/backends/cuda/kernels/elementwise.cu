/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Layers that map each unit to itself: a warp a row, or several. Dropout's generator gives a thread the words of four
 * units. Buffers are (n_rows, width) by stride; pads are not touched.
 */
#include "activations.cuh"
#include "dropout.cuh"

extern "C" __global__ void __launch_bounds__(256, 1) elementwise_layer_forward(
    real *y, const real *x, int64_t n_rows, int64_t width, int64_t stride, int64_t kind)
{
    for (int64_t i = warp_of_grid(); i < n_rows; i += warps_of_grid())
        for (int64_t j = lane_of_row(); j < width; j += lanes_of_row())
            y[i * stride + j] = elementwise_forward(kind, x[i * stride + j]);
}

extern "C" __global__ void __launch_bounds__(256, 1) elementwise_layer_backward(
    real *dx, const real *dy, const real *x, int64_t n_rows, int64_t width, int64_t stride, int64_t kind)
{
    for (int64_t i = warp_of_grid(); i < n_rows; i += warps_of_grid())
        for (int64_t j = lane_of_row(); j < width; j += lanes_of_row())
            dx[i * stride + j] = elementwise_backward(kind, dy[i * stride + j], x[i * stride + j]);
}

/* Forward, or backward with dx and dy for y and x. `steps` holds the position in the epoch and the step. */
extern "C" __global__ void __launch_bounds__(256, 1) dropout_apply(
    real *y, const real *x, const int64_t *steps, int64_t n_rows, int64_t width, int64_t stride, double rate,
    int64_t key, int64_t layer)
{
    const uint64_t threshold = dropout_threshold(rate);
    const real scale = (real)(1 / (1 - rate));
    for (int64_t i = warp_of_grid(); i < n_rows; i += warps_of_grid())
        for (int64_t quad = lane_of_row(); 4 * quad < width; quad += lanes_of_row()) {
            uint32_t words[4];
            dropout_words(words, quad, i, layer, steps[1], (uint64_t)key);
#pragma unroll
            for (int q = 0; q < 4; q++) {
                const int64_t at = i * stride + 4 * quad + q;
                if (4 * quad + q < width)
                    y[at] = words[q] < threshold ? (real)0 : x[at] * scale;
            }
        }
}
