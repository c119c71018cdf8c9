/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How the threads of a block share out an array, and the order in which they sum: fixed by the number of rows alone.
 *
 * An array is (outer, columns, inner) in C order; its rows are the pairs of outer and inner. Rows are cut into chunks,
 * and the rows of a chunk take turns in GROUPS sums; a thread has one of them for V columns. A block has LANES such
 * seats for each group: on columns, as many as `across` says, times chunks. V = 1: the rows of a column lie side by
 * side, and the threads of a warp go down them. V > 1: the columns do; a thread takes 16 bytes of a row, and LANES
 * threads a line of the cache, 128 bytes.
 *
 * Groups are added up by halves and chunks in turn, so a column has the same bits alone, among others and in either
 * way to lie.
 */
#ifndef SKBN_TILES_CUH
#define SKBN_TILES_CUH

#include "real.cuh"

enum { GROUPS = 32, LANES = 8, TILE_THREADS = GROUPS * LANES, VECTOR = 16 / sizeof(real) };

struct Shape {
    int64_t n_rows, columns, inner;
    int64_t chunk_rows;
    int64_t across;             /* seats side by side: a power of two, up to LANES */
};

/* V numbers of a row. */
template <int V> struct alignas(V * sizeof(real)) Numbers { real at[V]; };

/* The seat of this thread, and the row where it stands. */
template <int V> struct Seat {
    enum { BATCH = V == 1 ? 8 : 4 }; /* rows that are on their way from memory at a time */

    Shape shape;
    int group, seat, n;         /* n: columns here, fewer than V at the end of a row, 0 beyond */
    int64_t chunk, column;
    int64_t first, row, end;    /* of the chunk; this thread's next one; behind the chunk's last one */
    int64_t offset, place;      /* of `row` in memory, and within `inner` */

    DEVICE_MEMBER Seat(const Shape &given, bool backwards) : shape(given)
    {
        const int across = (int)shape.across, together = V == 1 ? 1 : across; /* seats that share a warp */
        const int64_t n_tiles = (shape.columns + across * V - 1) / (across * V);
        const int64_t block = backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
        group = threadIdx.x / together % GROUPS;
        seat = threadIdx.x / (together * GROUPS) * together + threadIdx.x % together;
        chunk = block / n_tiles * (LANES / across) + seat / across;
        column = (block % n_tiles * across + seat % across) * V;
        first = chunk * shape.chunk_rows;
        end = smaller(first + shape.chunk_rows, shape.n_rows);
        n = first < end ? (int)smaller(shape.columns - column, V) : 0;
        n = n < 0 ? 0 : n;
        start();
    }

    /* Go to this thread's first row. */
    DEVICE_MEMBER void start()
    {
        row = n > 0 ? first + group : end;
        offset = offset_of(row);
        place = V == 1 ? row % shape.inner : 0;
    }

    DEVICE_MEMBER int64_t offset_of(int64_t at) const
    {
        if (V == 1)
            return (at / shape.inner * shape.columns + column) * shape.inner + at % shape.inner;
        return at * shape.columns + column;
    }

    DEVICE_MEMBER void next()
    {
        row += GROUPS;
        if (V > 1) {
            offset += GROUPS * shape.columns;
            return;
        }
        offset += GROUPS;
        place += GROUPS;
        while (place >= shape.inner) {
            place -= shape.inner;
            offset += (shape.columns - 1) * shape.inner;
        }
    }

    /* Whether V numbers of a row can be had at once. */
    DEVICE_MEMBER bool is_whole(const void *x) const
    {
        return shape.columns % V == 0 && reinterpret_cast<size_t>(x) % sizeof(Numbers<V>) == 0;
    }

    DEVICE_MEMBER Numbers<V> load(const real *x, int64_t from, bool whole) const
    {
        if (whole)
            return *reinterpret_cast<const Numbers<V> *>(x + from);
        Numbers<V> numbers;
#pragma unroll
        for (int v = 0; v < V; v++)
            numbers.at[v] = v < n ? x[from + v] : 0;
        return numbers;
    }

    DEVICE_MEMBER void store(real *y, int64_t to, const Numbers<V> &numbers, bool whole) const
    {
        if (whole) {
            *reinterpret_cast<Numbers<V> *>(y + to) = numbers;
            return;
        }
#pragma unroll
        for (int v = 0; v < V; v++)
            if (v < n)
                y[to + v] = numbers.at[v];
    }

    /* Columns of per-column numbers; missing ones, and those beyond the last column, are `otherwise`. */
    DEVICE_MEMBER void columns_of(double *numbers, const double *values, double otherwise) const
    {
#pragma unroll
        for (int v = 0; v < V; v++)
            numbers[v] = values != 0 && v < n ? values[column + v] : otherwise;
    }

    /* Where sum k of column v stands in shared memory, (GROUPS, K, LANES, V). */
    template <int K> DEVICE_MEMBER int sum(int k, int v) const { return group * K * LANES * V + total<K>(k, v); }

    /* The same of the first group, where all of them meet. */
    template <int K> DEVICE_MEMBER int total(int k, int v) const { return (k * LANES + seat) * V + v; }
};

/* Add the rows of (GROUPS, n) in shared memory up into the first one, always in the same order. */
DEVICE void add_groups(double *sums, int n)
{
    for (int half = GROUPS / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int k = threadIdx.x; k < half * n; k += TILE_THREADS)
            sums[k] += sums[k + half * n];
    }
    __syncthreads();
}

#endif
