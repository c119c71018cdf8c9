/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is asked of users' arrays before a card computes with them.
 */
#include "real.cuh"

/* found[0]: NaN; found[1]: infinity; whoever writes there writes 1. A block takes blockDim.x numbers of one entry. */
extern "C" __global__ void __launch_bounds__(256) find_non_finite(
    int *found, const real *x, int64_t n, int64_t stride, int64_t n_outer, int64_t outer_stride)
{
    const int64_t parts = (n + blockDim.x - 1) / blockDim.x;
    for (int64_t k = blockIdx.x; k < parts * n_outer; k += gridDim.x) {
        const int64_t i = k % parts * blockDim.x + threadIdx.x;
        if (i >= n)
            continue;
        const real value = x[k / parts * outer_stride + i * stride];
        if (value - value != 0)
            found[value == value] = 1;
    }
}
