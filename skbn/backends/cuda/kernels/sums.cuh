/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sums over the threads of a block, always in the same order: the same bits run after run, on any card.
 */
#ifndef SKBN_SUMS_CUH
#define SKBN_SUMS_CUH

#include "real.cuh"

/* NaN passes. */
DEVICE double larger(double a, double b) { return b > a || b != b ? b : a; }

/* Sum over a block of whole warps, 1024 threads at most; every thread gets it. All threads must come. */
DEVICE double sum_over_block(double value)
{
    __shared__ double of_warp[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    for (int step = 16; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    __syncthreads(); /* somebody may still read the last sum */
    if (lane == 0)
        of_warp[warp] = value;
    __syncthreads();
    value = 0;
    for (int k = 0; k < n_warps; k++)
        value += of_warp[k];
    return value;
}

/* The largest number of a block, for every thread; NaN if there is one. */
DEVICE double largest_over_block(double value)
{
    __shared__ double of_warp[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    for (int step = 16; step > 0; step /= 2)
        value = larger(value, __shfl_xor_sync(0xffffffffu, value, step));
    __syncthreads(); /* somebody may still read the last one */
    if (lane == 0)
        of_warp[warp] = value;
    __syncthreads();
    for (int k = 0; k < n_warps; k++)
        value = larger(value, of_warp[k]);
    return value;
}

#endif
