/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a dense layer does beside its matrix products, which are cuBLAS's: bias and activation, in place, and on the
 * way back the activation's slope and the gradient of the bias. Buffers are (n_rows, width) by stride.
 */
#include "activations.cuh"
#include "columns.cuh"

/* y = activation(z + bias) where z was. */
extern "C" __global__ void __launch_bounds__(256, 1) dense_activation_forward(
    real *y, const real *bias, int64_t n_rows, int64_t width, int64_t stride, int64_t activation)
{
    for (int64_t i = warp_of_grid(); i < n_rows; i += warps_of_grid())
        for (int64_t j = lane_of_row(); j < width; j += lanes_of_row())
            y[i * stride + j] = activation_forward(activation, y[i * stride + j] + bias[j]);
}

/* dz where dy was, by parts of part_rows rows; to `parts`, (n_parts, stride), the sums of dz over them. Where there is
 * one part its sums go to dbias, unless that is NULL. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) dense_activation_backward(
    real *dy, real *dbias, double *parts, const real *y, int64_t part_rows, int64_t n_rows, int64_t width,
    int64_t stride, int64_t activation)
{
    const Place place = place_of_thread(width);
    const int64_t j = place.column, start = place.part * part_rows, stop = smaller(start + part_rows, n_rows);
    double sum = 0, unused = 0;
    if (place.is_inside)
        for (int64_t i = start + first_row_of_thread(); i < stop; i += TILE_ROWS) {
            const int64_t at = i * stride + j;
            const real dz = activation_backward(activation, dy[at], y[at]);
            dy[at] = dz;
            sum += dz;
        }
    sum_over_rows(sum, unused);
    if (!place.is_inside || threadIdx.x >= TILE_COLUMNS)
        return;
    if (part_rows < n_rows)
        parts[place.part * stride + j] = sum;
    else if (dbias)
        dbias[j] = (real)sum;
}

extern "C" __global__ void __launch_bounds__(256, 1) dense_bias_merge(
    real *dbias, const double *parts, int64_t n_parts, int64_t width, int64_t stride)
{
    for (int64_t j = thread_of_grid(); j < width; j += threads_of_grid()) {
        double sum = 0;
        for (int64_t part = 0; part < n_parts; part++)
            sum += parts[part * stride + j];
        dbias[j] = (real)sum;
    }
}
