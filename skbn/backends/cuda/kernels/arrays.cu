/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Batch normalization of arrays (Ioffe & Szegedy, 2015). Formulas:
 * docs/user_guide/batch_normalization.md; who does what: tiles.cuh.
 *
 *     xhat = (x - mean) / sqrt(var + epsilon),    y = activation(gamma xhat + beta),    var biased
 *     dgamma = sum(dz xhat),  dbeta = sum(dz),    dx = gamma / std (dz - w / W (dbeta + xhat dgamma))
 *
 * Statistics: a chunk of rows sums deviations from its first row, and their squares, which cancels nothing but what the
 * spread of the chunk does; float64, which has no digits to spare, from the mean of its first rows. A constant
 * chunk has the variance 0 exactly. With weights, and where NaN is to be ignored, the first row may hardly count or not
 * at all: there a chunk takes the first row that does, finds the mean from it, and goes over its rows again. A chunk
 * leaves (weight, origin, mean - origin, sum of squared deviations), in two parts so that float64 keeps the digits of
 * means far from zero. Chunks are merged relative to the mean of the first one, in a kernel of its own: its blocks are
 * many and small, where the last block to finish would be one and would have to find its counter at zero.
 *
 * Up to 1,024 rows are one chunk; then a block does all of forward, or backward, for its columns, and reads their rows
 * again while they are near. Else, with N the bytes of x: forward reads x twice and writes y, 3 N; backward reads x and
 * dy twice and writes dx, 5 N; what chunks leave is N / 256 for float32 and 2,048 rows a chunk. The second passes run
 * backwards, over what may still be in the cache.
 *
 * All arithmetic but the activation's is in double. For one number of float32 that is, in the inner loops,
 *
 *     pass            bytes   conversions   operations in double
 *     moments         4       1             3
 *     normalize       8       2             2
 *     gradient_sums   8       2             4 (a conversion more for activations other than identity,
 *     input_gradient  12      3             5  in both)
 *
 * A data-centre card has 16 conversions and 64 operations a clock and multiprocessor. 4.3 TB/s on 132 multiprocessors
 * at 1.7 GHz are 19 bytes a clock each: 30 % of the former in use in moments (45 % at most, in gradient_sums), 22 % of
 * the latter. So float sums with compensation, 30 instructions a number, would cost more than they save there. With two
 * operations a clock, as other cards have, and 1 TB/s on 128 multiprocessors at 2.5 GHz, moments take 1.6 times what
 * memory would. All of this is counted; nothing is measured.
 */
#include "batch_norm.cuh"
#include "tiles.cuh"

/* Rows of what a chunk leaves of moments, (n_chunks, 4, columns), and of its gradients, (n_chunks, 2, columns). */
enum { WEIGHT = 0, ORIGIN = 1, DISTANCE = 2, SQUARES = 3, N_MOMENTS = 4 };
enum { OF_DZ_XHAT = 0, OF_DZ = 1, N_GRADIENTS = 2 };

DEVICE bool is_nan(double value) { return value != value; }
DEVICE double not_negative(double value) { return value < 0 ? 0 : value; } /* NaN stays */

/* Sums of the columns of a chunk; the mean is origin + distance. */
template <int V> struct Moments { double weight, origin[V], distance[V], squares[V]; };

template <int V> DEVICE void leave_moments(double *parts, const Seat<V> &seat, int v, const Moments<V> &moments)
{
    double *part = parts + seat.chunk * N_MOMENTS * seat.shape.columns + seat.column + v;
    part[WEIGHT * seat.shape.columns] = moments.weight;
    part[ORIGIN * seat.shape.columns] = moments.origin[v];
    part[DISTANCE * seat.shape.columns] = moments.distance[v];
    part[SQUARES * seat.shape.columns] = moments.squares[v];
}

/* For every thread of the chunk; all threads of the block must come. */
template <int V> DEVICE Moments<V> moments_of_chunk(Seat<V> &seat, const real *x, double *sums)
{
    enum { BATCH = Seat<V>::BATCH };
    const bool whole = seat.is_whole(x);
    double start[V] = {}, total[V] = {}, squares[V] = {};
    Moments<V> moments = {};
    moments.weight = (double)(seat.end - seat.first);
    if (seat.n > 0) {
        const Numbers<V> first = seat.load(x, seat.offset_of(seat.first), whole);
#pragma unroll
        for (int v = 0; v < V; v++)
            moments.origin[v] = first.at[v];
    }
    if (sizeof(real) == sizeof(double)) {
        const double n_first = (double)smaller(GROUPS, seat.end - seat.first);
        const bool is_row = seat.row < seat.end;
        const Numbers<V> numbers = is_row ? seat.load(x, seat.offset, whole) : Numbers<V>{};
#pragma unroll
        for (int v = 0; v < V; v++)
            sums[seat.template sum<1>(0, v)] = is_row ? (double)numbers.at[v] - moments.origin[v] : 0;
        add_groups(sums, LANES * V);
#pragma unroll
        for (int v = 0; v < V; v++)
            start[v] = sums[seat.template total<1>(0, v)] / n_first;
        __syncthreads(); /* somebody may still read */
    }
    while (seat.row < seat.end) {
        Numbers<V> batch[BATCH];
        bool is_row[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            is_row[k] = seat.row < seat.end;
            if (is_row[k])
                batch[k] = seat.load(x, seat.offset, whole);
            seat.next();
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (!is_row[k])
                break;
#pragma unroll
            for (int v = 0; v < V; v++) {
                double deviation = (double)batch[k].at[v] - moments.origin[v];
                if (sizeof(real) == sizeof(double))
                    deviation -= start[v];
                total[v] += deviation;
                squares[v] = fma(deviation, deviation, squares[v]);
            }
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        sums[seat.template sum<2>(0, v)] = total[v];
        sums[seat.template sum<2>(1, v)] = squares[v];
    }
    add_groups(sums, 2 * LANES * V);
#pragma unroll
    for (int v = 0; v < V; v++) {
        const double all = sums[seat.template total<2>(0, v)], mean = all / moments.weight;
        moments.distance[v] = start[v] + mean;
        moments.squares[v] = not_negative(fma(-all, mean, sums[seat.template total<2>(1, v)]));
    }
    return moments;
}

template <int V> DEVICE void moments_of_chunks(double *parts, const real *x, const Shape &shape)
{
    SHARED_MEMORY(double, sums);
    Seat<V> seat(shape, false);
    const Moments<V> moments = moments_of_chunk(seat, x, sums);
#pragma unroll
    for (int v = 0; v < V; v++)
        if (seat.group == 0 && v < seat.n)
            leave_moments(parts, seat, v, moments);
}

/* Weights of samples, one for rows_per_sample rows; none: ones. */
struct Weights {
    const double *of_sample;
    int64_t rows_per_sample;

    DEVICE_MEMBER double of_row(int64_t row) const { return of_sample ? of_sample[row / rows_per_sample] : 1.0; }
};

/* Over rows that count: those with weight, and where NaN is ignored those that are numbers. */
template <int V>
DEVICE void weighted_moments(
    double *parts, const real *x, const Weights &weights, bool ignore_nan, const Shape &shape)
{
    SHARED_MEMORY(double, sums);
    Seat<V> seat(shape, false);
    Moments<V> moments = {};

    /* The first row that counts, as a number: that of this thread, then that of its column. */
#pragma unroll
    for (int v = 0; v < V; v++) {
        double found = (double)shape.n_rows;
        if (v < seat.n) {
            for (seat.start(); seat.row < seat.end; seat.next()) {
                if (weights.of_row(seat.row) > 0 && !(ignore_nan && is_nan(x[seat.offset + v]))) {
                    found = (double)seat.row;
                    break;
                }
            }
        }
        sums[seat.template sum<1>(0, v)] = found;
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; v++) {
        double found = (double)shape.n_rows;
        for (int group = 0; group < GROUPS; group++) {
            const double row = sums[(group * LANES + seat.seat) * V + v];
            found = row < found ? row : found;
        }
        if (v < seat.n && found < (double)shape.n_rows)
            moments.origin[v] = x[seat.offset_of((int64_t)found) + v];
    }

    for (int pass = 0; pass < 2; pass++) {
        double weight[V] = {}, total[V] = {}, squares[V] = {};
        for (seat.start(); seat.row < seat.end; seat.next()) {
            const double w = weights.of_row(seat.row);
#pragma unroll
            for (int v = 0; v < V; v++) {
                if (v < seat.n && w > 0) {
                    const double value = x[seat.offset + v];
                    if (!(ignore_nan && is_nan(value))) {
                        const double deviation = (value - moments.origin[v]) - moments.distance[v];
                        const double weighted = w * deviation;
                        weight[v] += w;
                        total[v] = fma(w, deviation, total[v]); /* as both layouts shall round */
                        squares[v] = fma(weighted, deviation, squares[v]);
                    }
                }
            }
        }
        __syncthreads(); /* somebody may still read the last sums */
#pragma unroll
        for (int v = 0; v < V; v++) {
            sums[seat.template sum<3>(0, v)] = weight[v];
            sums[seat.template sum<3>(1, v)] = total[v];
            sums[seat.template sum<3>(2, v)] = squares[v];
        }
        add_groups(sums, 3 * LANES * V);
#pragma unroll
        for (int v = 0; v < V; v++) {
            const double n = sums[seat.template total<3>(0, v)], all = sums[seat.template total<3>(1, v)];
            const double correction = n > 0 ? all / n : 0;
            moments.distance[v] += correction;
            if (pass == 1 && seat.group == 0 && v < seat.n) {
                moments.weight = n;
                moments.squares[v] = not_negative(fma(-all, correction, sums[seat.template total<3>(2, v)]));
                leave_moments(parts, seat, v, moments);
            }
        }
    }
}

/* Rows of the statistics of all columns: the mean in two parts. */
struct Statistics {
    double weight, high, low, var, inv_std;

    /* The mean is origin + rest; low is what rounding leaves out of that (Knuth). */
    DEVICE_MEMBER Statistics(double weight_, double origin, double rest, double squares, double epsilon)
        : weight(weight_), high(origin + rest), var(not_negative(squares / weight_)), inv_std(inverse_std(var, epsilon))
    {
        const double moved = high - origin;
        low = (origin - (high - moved)) + (rest - moved);
    }
    DEVICE_MEMBER void write(double *statistics, int64_t column, int64_t columns) const
    {
        statistics[0 * columns + column] = weight;
        statistics[1 * columns + column] = high;
        statistics[2 * columns + column] = low;
        statistics[3 * columns + column] = var;
        statistics[4 * columns + column] = inv_std;
    }
};

/* A block of these two kernels has LANES columns; chunks take turns in the same groups. */
DEVICE int64_t column_to_merge() { return (int64_t)blockIdx.x * LANES + threadIdx.x % LANES; }

/* statistics: (5, columns), weight, mean in two parts, variance and 1 / std. */
extern "C" __global__ void __launch_bounds__(256, 2) merge_moments(
    double *statistics, const double *parts, double epsilon, int64_t n_chunks, int64_t columns)
{
    __shared__ double sums[GROUPS * 3 * LANES];
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const int64_t column = column_to_merge();
    const double *part = parts + column;
    const int64_t step = N_MOMENTS * columns;
    double origin = 0, distance = 0, weight = 0, total = 0, squares = 0;
    if (column < columns) {
        int64_t first = 0;
        while (first < n_chunks - 1 && !(part[first * step + WEIGHT * columns] > 0))
            first++;
        origin = part[first * step + ORIGIN * columns];
        distance = part[first * step + DISTANCE * columns];
#pragma unroll 4
        for (int64_t chunk = group; chunk < n_chunks; chunk += GROUPS) {
            const double *here = part + chunk * step;
            const double w = here[WEIGHT * columns];
            const double mean = (here[ORIGIN * columns] - origin) + (here[DISTANCE * columns] - distance);
            if (w > 0) {
                weight += w;
                total = fma(w, mean, total);
                squares += fma(w * mean, mean, here[SQUARES * columns]);
            }
        }
    }
    sums[(group * 3 + 0) * LANES + lane] = weight;
    sums[(group * 3 + 1) * LANES + lane] = total;
    sums[(group * 3 + 2) * LANES + lane] = squares;
    add_groups(sums, 3 * LANES);
    if (group > 0 || column >= columns)
        return;
    weight = sums[lane];
    total = sums[LANES + lane];
    const double mean = total / weight; /* NaN where nothing counts */
    const double about = fma(-total, mean, sums[2 * LANES + lane]);
    Statistics(weight, origin, distance + mean, about, epsilon).write(statistics, column, columns);
}

extern "C" __global__ void __launch_bounds__(256, 2) inverse_stds(
    double *inv_std, const double *var, double epsilon, int64_t columns)
{
    const int64_t column = thread_of_grid();
    if (column < columns)
        inv_std[column] = inverse_std(var[column], epsilon);
}

/* sums: (2, columns), dgamma and dbeta. */
extern "C" __global__ void __launch_bounds__(256, 2) merge_gradients(
    double *sums, const double *parts, const double *inv_std, int64_t n_chunks, int64_t columns)
{
    __shared__ double shared[GROUPS * 2 * LANES];
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const int64_t column = column_to_merge();
    double of_dz_xhat = 0, of_dz = 0;
    if (column < columns) {
#pragma unroll 4
        for (int64_t chunk = group; chunk < n_chunks; chunk += GROUPS) {
            const double *part = parts + chunk * N_GRADIENTS * columns + column;
            of_dz_xhat += part[OF_DZ_XHAT * columns];
            of_dz += part[OF_DZ * columns];
        }
    }
    shared[(group * 2 + 0) * LANES + lane] = of_dz_xhat;
    shared[(group * 2 + 1) * LANES + lane] = of_dz;
    add_groups(shared, 2 * LANES);
    if (group > 0 || column >= columns)
        return;
    sums[column] = shared[lane] * inv_std[column];
    sums[columns + column] = shared[LANES + lane];
}

/* What every pass over numbers needs of the columns of a thread. */
template <int V> struct Columns {
    double mean[V], low[V], scale[V], shift[V];
    int64_t activation;

    DEVICE_MEMBER void load(const Seat<V> &seat, const double *means, const double *lows, const double *inv_std)
    {
        seat.columns_of(mean, means, 0);
        seat.columns_of(low, lows, 0);
        seat.columns_of(scale, inv_std, 0);
    }

    /* Once scale is 1 / std. */
    DEVICE_MEMBER void finish(const Seat<V> &seat, const double *gamma, const double *beta, int64_t kind)
    {
        double gammas[V];
        seat.columns_of(gammas, gamma, 1);
        seat.columns_of(shift, beta, 0);
#pragma unroll
        for (int v = 0; v < V; v++)
            scale[v] *= gammas[v];
        activation = kind;
    }

    /* float32 has its digits from the first part alone. */
    DEVICE_MEMBER double deviation(real x, int v) const
    {
        const double from_high = (double)x - mean[v];
        return sizeof(real) == sizeof(float) ? from_high : from_high - low[v];
    }

    /* In front of the activation: the same bits in both directions. */
    DEVICE_MEMBER double z(double deviation, int v) const { return fma(deviation, scale[v], shift[v]); }

    DEVICE_MEMBER real forward(real x, int v) const
    {
        const real value = (real)z(deviation(x, v), v);
        if (activation == SKBN_IDENTITY)
            return value;
        if (activation <= SKBN_RELU)
            return activation_forward(activation, value);
        return elementwise_forward(activation, value);
    }

    DEVICE_MEMBER real backward(real dy, double deviation, int v) const
    {
        if (activation == SKBN_IDENTITY)
            return dy;
        const real value = (real)z(deviation, v);
        if (activation <= SKBN_RELU)
            return activation_backward(activation, dy, activation_forward(activation, value));
        return elementwise_backward(activation, dy, value);
    }
};

/* From the seat's row on; y may be x. */
template <int V> DEVICE void normalize_rows(real *y, const real *x, Seat<V> &seat, const Columns<V> &columns)
{
    enum { BATCH = Seat<V>::BATCH };
    const bool whole = seat.is_whole(x) && seat.is_whole(y);
    while (seat.row < seat.end) {
        Numbers<V> batch[BATCH];
        int64_t offsets[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            offsets[k] = seat.row < seat.end ? seat.offset : -1;
            if (offsets[k] >= 0)
                batch[k] = seat.load(x, offsets[k], whole);
            seat.next();
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (offsets[k] < 0)
                break;
#pragma unroll
            for (int v = 0; v < V; v++)
                batch[k].at[v] = columns.forward(batch[k].at[v], v);
            seat.store(y, offsets[k], batch[k], whole);
        }
    }
}

template <int V>
DEVICE void normalize(
    real *y, const real *x, const double *mean, const double *low, const double *inv_std, const double *gamma,
    const double *beta, int64_t activation, const Shape &shape)
{
    Seat<V> seat(shape, true);
    Columns<V> columns;
    columns.load(seat, mean, low, inv_std);
    columns.finish(seat, gamma, beta, activation);
    normalize_rows(y, x, seat, columns);
}

/* All of forward where one chunk has all rows: they are near when they are read again. */
template <int V>
DEVICE void forward_at_once(
    double *statistics, real *y, const real *x, const double *gamma, const double *beta, double epsilon,
    int64_t activation, const Shape &shape)
{
    SHARED_MEMORY(double, sums);
    Seat<V> seat(shape, false);
    Columns<V> columns;
    const Moments<V> moments = moments_of_chunk(seat, x, sums);
#pragma unroll
    for (int v = 0; v < V; v++) {
        const Statistics found(moments.weight, moments.origin[v], moments.distance[v], moments.squares[v], epsilon);
        if (seat.group == 0 && v < seat.n)
            found.write(statistics, seat.column + v, shape.columns);
        columns.mean[v] = found.high;
        columns.low[v] = found.low;
        columns.scale[v] = found.inv_std;
    }
    columns.finish(seat, gamma, beta, activation);
    seat.start();
    normalize_rows(y, x, seat, columns);
}

/* Sums of the columns of a chunk, in the first group's places; 1 / std comes when they meet. All threads must come. */
template <int V>
DEVICE void gradient_sums_of_chunk(
    double *sums, const real *dy, const real *x, Seat<V> &seat, const Columns<V> &columns)
{
    enum { BATCH = Seat<V>::BATCH };
    const bool whole = seat.is_whole(x) && seat.is_whole(dy);
    double of_dz[V] = {}, of_dz_deviation[V] = {};
    while (seat.row < seat.end) {
        Numbers<V> batch[BATCH], gradients[BATCH];
        bool is_row[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            is_row[k] = seat.row < seat.end;
            if (is_row[k]) {
                batch[k] = seat.load(x, seat.offset, whole);
                gradients[k] = seat.load(dy, seat.offset, whole);
            }
            seat.next();
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (!is_row[k])
                break;
#pragma unroll
            for (int v = 0; v < V; v++) {
                const double deviation = columns.deviation(batch[k].at[v], v);
                const double dz = columns.backward(gradients[k].at[v], deviation, v);
                of_dz[v] += dz;
                of_dz_deviation[v] = fma(dz, deviation, of_dz_deviation[v]);
            }
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        sums[seat.template sum<N_GRADIENTS>(OF_DZ_XHAT, v)] = of_dz_deviation[v];
        sums[seat.template sum<N_GRADIENTS>(OF_DZ, v)] = of_dz[v];
    }
    add_groups(sums, N_GRADIENTS * LANES * V);
}

template <int V>
DEVICE void gradient_sums(
    double *parts, const real *dy, const real *x, const double *mean, const double *low, const double *inv_std,
    const double *gamma, const double *beta, int64_t activation, const Shape &shape)
{
    SHARED_MEMORY(double, sums);
    Seat<V> seat(shape, false);
    Columns<V> columns;
    columns.load(seat, mean, low, inv_std);
    columns.finish(seat, gamma, beta, activation);
    gradient_sums_of_chunk(sums, dy, x, seat, columns);
#pragma unroll
    for (int v = 0; v < V; v++) {
        if (seat.group == 0 && v < seat.n) {
            double *part = parts + seat.chunk * N_GRADIENTS * shape.columns + seat.column + v;
            part[OF_DZ_XHAT * shape.columns] = sums[seat.template total<N_GRADIENTS>(OF_DZ_XHAT, v)];
            part[OF_DZ * shape.columns] = sums[seat.template total<N_GRADIENTS>(OF_DZ, v)];
        }
    }
}

/* From the seat's row on. of_mean, slope: -dbeta / W, -dgamma / (W std). dx may be dy or x. */
template <int V>
DEVICE void input_gradient_rows(
    real *dx, const real *dy, const real *x, Seat<V> &seat, const Columns<V> &columns, const double *of_mean,
    const double *slope, const Weights &weights)
{
    enum { BATCH = Seat<V>::BATCH };
    const bool whole = seat.is_whole(x) && seat.is_whole(dy) && seat.is_whole(dx);
    while (seat.row < seat.end) {
        Numbers<V> batch[BATCH], gradients[BATCH];
        int64_t offsets[BATCH];
        double weight[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            offsets[k] = seat.row < seat.end ? seat.offset : -1;
            if (offsets[k] >= 0) {
                batch[k] = seat.load(x, offsets[k], whole);
                gradients[k] = seat.load(dy, offsets[k], whole);
                weight[k] = weights.of_row(seat.row);
            }
            seat.next();
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (offsets[k] < 0)
                break;
#pragma unroll
            for (int v = 0; v < V; v++) {
                const double deviation = columns.deviation(batch[k].at[v], v);
                const double dz = columns.backward(gradients[k].at[v], deviation, v);
                const double of_statistics = fma(deviation, slope[v], of_mean[v]);
                batch[k].at[v] = (real)(columns.scale[v] * fma(weight[k], of_statistics, dz));
            }
            seat.store(dx, offsets[k], batch[k], whole);
        }
    }
}

/* sums: (2, columns), dgamma and dbeta. share: one over the weight of all rows. */
template <int V>
DEVICE void input_gradient(
    real *dx, const real *dy, const real *x, const double *sums, const double *mean, const double *low,
    const double *inv_std, const double *gamma, const double *beta, const Weights &weights, double share,
    int64_t activation, const Shape &shape)
{
    Seat<V> seat(shape, true);
    Columns<V> columns;
    columns.load(seat, mean, low, inv_std);
    double of_mean[V], slope[V];
    seat.columns_of(slope, sums, 0);
    seat.columns_of(of_mean, sums + shape.columns, 0);
#pragma unroll
    for (int v = 0; v < V; v++) {
        of_mean[v] *= -share;
        slope[v] *= -share * columns.scale[v]; /* 1 / std still */
    }
    columns.finish(seat, gamma, beta, activation);
    input_gradient_rows(dx, dy, x, seat, columns, of_mean, slope, weights);
}

/* All of backward where one chunk has all rows. */
template <int V>
DEVICE void backward_at_once(
    double *sums_of_columns, real *dx, const real *dy, const real *x, const double *mean, const double *low,
    const double *inv_std, const double *gamma, const double *beta, const Weights &weights, double share,
    int64_t activation, const Shape &shape)
{
    SHARED_MEMORY(double, sums);
    Seat<V> seat(shape, false);
    Columns<V> columns;
    double of_mean[V], slope[V], inverse[V];
    columns.load(seat, mean, low, inv_std);
    seat.columns_of(inverse, inv_std, 0);
    columns.finish(seat, gamma, beta, activation);
    gradient_sums_of_chunk(sums, dy, x, seat, columns);
#pragma unroll
    for (int v = 0; v < V; v++) {
        const double dgamma = sums[seat.template total<N_GRADIENTS>(OF_DZ_XHAT, v)] * inverse[v];
        const double dbeta = sums[seat.template total<N_GRADIENTS>(OF_DZ, v)];
        if (seat.group == 0 && v < seat.n) {
            sums_of_columns[seat.column + v] = dgamma;
            sums_of_columns[shape.columns + seat.column + v] = dbeta;
        }
        of_mean[v] = dbeta * -share;
        slope[v] = dgamma * (-share * inverse[v]);
    }
    seat.start();
    input_gradient_rows(dx, dy, x, seat, columns, of_mean, slope, weights);
}

/* Each for columns side by side and for rows side by side. */

#define SHAPE_ARGUMENTS int64_t n_rows, int64_t columns, int64_t inner, int64_t chunk_rows, int64_t across
#define SHAPE Shape{n_rows, columns, inner, chunk_rows, across}
#define STATISTICS \
    const double *mean, const double *low, const double *inv_std, const double *gamma, const double *beta

extern "C" __global__ void __launch_bounds__(256, 2) moments_across(double *parts, const real *x, SHAPE_ARGUMENTS)
{
    moments_of_chunks<VECTOR>(parts, x, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) moments_down(double *parts, const real *x, SHAPE_ARGUMENTS)
{
    moments_of_chunks<1>(parts, x, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) weighted_moments_across(
    double *parts, const real *x, const double *weights, int64_t rows_per_sample, int64_t ignore_nan, SHAPE_ARGUMENTS)
{
    weighted_moments<VECTOR>(parts, x, Weights{weights, rows_per_sample}, ignore_nan, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) weighted_moments_down(
    double *parts, const real *x, const double *weights, int64_t rows_per_sample, int64_t ignore_nan, SHAPE_ARGUMENTS)
{
    weighted_moments<1>(parts, x, Weights{weights, rows_per_sample}, ignore_nan, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) normalize_across(
    real *y, const real *x, STATISTICS, int64_t activation, SHAPE_ARGUMENTS)
{
    normalize<VECTOR>(y, x, mean, low, inv_std, gamma, beta, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) normalize_down(
    real *y, const real *x, STATISTICS, int64_t activation, SHAPE_ARGUMENTS)
{
    normalize<1>(y, x, mean, low, inv_std, gamma, beta, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) gradient_sums_across(
    double *parts, const real *dy, const real *x, STATISTICS, int64_t activation, SHAPE_ARGUMENTS)
{
    gradient_sums<VECTOR>(parts, dy, x, mean, low, inv_std, gamma, beta, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) gradient_sums_down(
    double *parts, const real *dy, const real *x, STATISTICS, int64_t activation, SHAPE_ARGUMENTS)
{
    gradient_sums<1>(parts, dy, x, mean, low, inv_std, gamma, beta, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) input_gradient_across(
    real *dx, const real *dy, const real *x, const double *sums, STATISTICS, const double *weights,
    int64_t rows_per_sample, double share, int64_t activation, SHAPE_ARGUMENTS)
{
    input_gradient<VECTOR>(
        dx, dy, x, sums, mean, low, inv_std, gamma, beta, Weights{weights, rows_per_sample}, share, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) input_gradient_down(
    real *dx, const real *dy, const real *x, const double *sums, STATISTICS, const double *weights,
    int64_t rows_per_sample, double share, int64_t activation, SHAPE_ARGUMENTS)
{
    input_gradient<1>(
        dx, dy, x, sums, mean, low, inv_std, gamma, beta, Weights{weights, rows_per_sample}, share, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) forward_at_once_across(
    double *statistics, real *y, const real *x, const double *gamma, const double *beta, double epsilon,
    int64_t activation, SHAPE_ARGUMENTS)
{
    forward_at_once<VECTOR>(statistics, y, x, gamma, beta, epsilon, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) forward_at_once_down(
    double *statistics, real *y, const real *x, const double *gamma, const double *beta, double epsilon,
    int64_t activation, SHAPE_ARGUMENTS)
{
    forward_at_once<1>(statistics, y, x, gamma, beta, epsilon, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) backward_at_once_across(
    double *sums, real *dx, const real *dy, const real *x, STATISTICS, const double *weights, int64_t rows_per_sample,
    double share, int64_t activation, SHAPE_ARGUMENTS)
{
    backward_at_once<VECTOR>(
        sums, dx, dy, x, mean, low, inv_std, gamma, beta, Weights{weights, rows_per_sample}, share, activation, SHAPE);
}

extern "C" __global__ void __launch_bounds__(256, 2) backward_at_once_down(
    double *sums, real *dx, const real *dy, const real *x, STATISTICS, const double *weights, int64_t rows_per_sample,
    double share, int64_t activation, SHAPE_ARGUMENTS)
{
    backward_at_once<1>(
        sums, dx, dy, x, mean, low, inv_std, gamma, beta, Weights{weights, rows_per_sample}, share, activation, SHAPE);
}

/* found: (2, columns) of zeros; who finds NaN, or infinity, writes 1 to the first, or the second. */
extern "C" __global__ void __launch_bounds__(256, 2) find_non_finite(
    int64_t *found, const real *x, int64_t n_rows, int64_t columns, int64_t inner)
{
    for (int64_t k = thread_of_grid(); k < n_rows * columns; k += threads_of_grid()) {
        const real value = x[k];
        if (value - value != 0)
            found[(is_nan(value) ? 0 : columns) + k / inner % columns] = 1;
    }
}
