/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A block of 256 threads and 8 columns of a matrix whose rows lie one behind the other: thread k has column k % 8 and
 * every 32nd row, from k / 8 on. Eight numbers are what memory hands over at a time, so nothing is read in vain, and
 * the columns of a layer give work to many multiprocessors. Sums over the rows come in the same order on any card.
 */
#ifndef SKBN_COLUMNS_CUH
#define SKBN_COLUMNS_CUH

#include "real.cuh"

#define TILE_THREADS 256
#define TILE_COLUMNS 8
#define TILE_ROWS (TILE_THREADS / TILE_COLUMNS)

DEVICE int64_t first_row_of_thread() { return threadIdx.x / TILE_COLUMNS; }

/* Sums of two numbers over the threads of this thread's column; every one of them gets both. All threads must come. */
DEVICE void sum_over_rows(double &a, double &b)
{
    __shared__ double parts[2][TILE_THREADS / 32][TILE_COLUMNS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = lane % TILE_COLUMNS;
#pragma unroll
    for (int step = TILE_COLUMNS; step < 32; step *= 2) {
        a += __shfl_xor_sync(0xffffffffu, a, step);
        b += __shfl_xor_sync(0xffffffffu, b, step);
    }
    __syncthreads(); /* somebody may still read the last sums */
    if (lane < TILE_COLUMNS) {
        parts[0][warp][lane] = a;
        parts[1][warp][lane] = b;
    }
    __syncthreads();
    a = b = 0;
#pragma unroll
    for (int k = 0; k < TILE_THREADS / 32; k++) {
        a += parts[0][k][column];
        b += parts[1][k][column];
    }
}

/* Where this block works: grids are (tiles of columns) x (parts of the rows), in one dimension. */
struct Place {
    int64_t column;     /* of this thread; beyond the last one it reads the last and writes nothing */
    int64_t part;
    bool is_inside;
};

DEVICE Place place_of_thread(int64_t n_columns)
{
    const int64_t tiles = (n_columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int64_t column = blockIdx.x % tiles * TILE_COLUMNS + threadIdx.x % TILE_COLUMNS;
    Place place;
    place.is_inside = column < n_columns;
    place.column = place.is_inside ? column : n_columns - 1;
    place.part = blockIdx.x / tiles;
    return place;
}

#endif
