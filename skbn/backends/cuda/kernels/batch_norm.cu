/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Batch norm of a network's buffers, (n_rows, width) by stride. A block has a tile of columns and one part of the rows.
 *
 * Up to PART_ROWS rows that share statistics are one part, and one kernel does all: what its second pass reads lies in
 * the cache. More rows are cut into parts of so many; then there are three kernels: moments (or sums) of each part,
 * what they come to, merged in order (Chan et al., 1979), and the elementwise pass. Rejected: merging by the block that
 * happens to be the last, which saves a launch for large batches and needs counters that must be reset.
 *
 * Moments are taken as on the CPU: deviations from a pivot near the mean and their squares in double, the first row
 * for float, a mean from a pass of its own for double and for weighted rows.
 *
 * `saved` is (n_virtual, 3, stride): the mean in two parts and 1 / std. `statistics` is (n_virtual, 2, stride): mean
 * and variance; `totals` is (n_virtual,): the weight of each virtual batch. gamma, beta, weights may be NULL.
 */
#include "batch_norm.cuh"
#include "columns.cuh"

/* Moments of some rows of this thread's column: mean = origin + distance, sum of squared deviations. */
struct Moments {
    double origin, distance, square, weight;
};

DEVICE void sums_of_deviations(
    double &sum, double &squares, const real *x, const double *weights, int64_t start, int64_t stop, int64_t stride,
    double pivot)
{
    sum = squares = 0;
    for (int64_t i = start + first_row_of_thread(); i < stop; i += TILE_ROWS) {
        const double weight = weights ? weights[i] : 1;
        if (weight == 0)
            continue;
        const double deviation = (double)x[i * stride] - pivot;
        sum += weight * deviation;
        squares += weight * deviation * deviation;
    }
    sum_over_rows(sum, squares);
}

DEVICE Moments column_moments(
    const real *x, const double *weights, int64_t start, int64_t stop, int64_t stride)
{
    Moments m;
    double correction;
    int64_t first = start;
    m.weight = stop - start;
    if (weights) {
        double weight = 0, unused = 0;
        for (int64_t i = start + first_row_of_thread(); i < stop; i += TILE_ROWS)
            weight += weights[i];
        sum_over_rows(weight, unused);
        m.weight = weight;
        while (first < stop - 1 && weights[first] == 0)
            first++;
    }
    const double share = m.weight > 0 ? 1 / m.weight : 0;
    m.origin = x[first * stride];
    sums_of_deviations(correction, m.square, x, weights, start, stop, stride, m.origin);
    m.distance = correction * share;
    if (sizeof(real) == sizeof(double) || weights) {
        m.origin += m.distance;
        sums_of_deviations(correction, m.square, x, weights, start, stop, stride, m.origin);
        m.distance = correction * share;
    }
    m.square -= correction * m.distance;
    m.square = m.square < 0 ? 0 : m.square;
    return m;
}

/* Keep what a column's moments come to; return what normalizes it. */
DEVICE Normalization keep(
    const Moments &m, double *saved, double *statistics, const real *gamma, const real *beta, double epsilon,
    int64_t stride, int64_t j, bool is_mine)
{
    const double var = m.weight > 0 ? m.square / m.weight : 0, inv_std = inverse_std(var, epsilon);
    Normalization n;
    n.set(m.origin, m.distance, inv_std, gamma, beta, j);
    if (is_mine) {
        saved[j] = n.high;
        saved[stride + j] = n.low;
        saved[2 * stride + j] = inv_std;
        statistics[j] = m.origin + m.distance;
        statistics[stride + j] = var;
    }
    return n;
}

/* Every virtual batch is one part. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_forward(
    real *y, double *saved, double *statistics, double *totals, const real *x, const double *weights,
    const real *gamma, const real *beta, int64_t n_rows, int64_t width, int64_t stride, int64_t virtual_size,
    double epsilon, int64_t activation)
{
    const Place place = place_of_thread(width);
    const int64_t start = place.part * virtual_size, stop = virtual_stop(start, n_rows, virtual_size);
    const int64_t j = place.column;
    const bool is_mine = place.is_inside && threadIdx.x < TILE_COLUMNS;
    const Moments m = column_moments(x + j, weights, start, stop, stride);
    const Normalization n = keep(
        m, saved + place.part * 3 * stride, statistics + place.part * 2 * stride, gamma, beta, epsilon, stride, j,
        is_mine);
    if (j == 0 && is_mine)
        totals[place.part] = m.weight;
    if (place.is_inside)
        for (int64_t i = start + first_row_of_thread(); i < stop; i += TILE_ROWS)
            y[i * stride + j] = n.forward(x[i * stride + j], activation);
}

/* Where part number `part` begins and ends: virtual batches are cut into `n_parts` parts, the last ones shorter. */
struct Rows {
    int64_t batch, start, stop;
};

DEVICE Rows rows_of_part(int64_t part, int64_t n_parts, int64_t part_rows, int64_t n_rows, int64_t virtual_size)
{
    Rows rows;
    rows.batch = part / n_parts;
    const int64_t first = rows.batch * virtual_size, stop = virtual_stop(first, n_rows, virtual_size);
    rows.start = smaller(first + part % n_parts * part_rows, stop);
    rows.stop = smaller(rows.start + part_rows, stop);
    return rows;
}

/* parts is (virtual batches * n_parts, 4, stride): the Moments of each part. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_moments(
    double *parts, const real *x, const double *weights,
    int64_t n_parts, int64_t part_rows, int64_t n_rows, int64_t width, int64_t stride, int64_t virtual_size)
{
    const Place place = place_of_thread(width);
    const Rows rows = rows_of_part(place.part, n_parts, part_rows, n_rows, virtual_size);
    const int64_t j = place.column;
    Moments m = {0, 0, 0, 0};
    if (rows.start < rows.stop)
        m = column_moments(x + j, weights, rows.start, rows.stop, stride);
    if (place.is_inside && threadIdx.x < TILE_COLUMNS) {
        double *mine = parts + place.part * 4 * stride + j;
        mine[0] = m.origin;
        mine[stride] = m.distance;
        mine[2 * stride] = m.square;
        mine[3 * stride] = m.weight;
    }
}

/* Relative to the origin of the first part with weight, so that means far from zero keep their digits. */
DEVICE Moments merged(const double *parts, int64_t n_parts, int64_t stride)
{
    Moments m = {0, 0, 0, 0};
    for (int64_t k = 0; k < n_parts; k++, parts += 4 * stride) {
        const double weight = parts[3 * stride];
        if (weight > 0) {
            if (m.weight == 0)
                m.origin = parts[0];
            const double delta = (parts[0] - m.origin) + (parts[stride] - m.distance);
            const double share = weight / (m.weight + weight);
            m.distance += delta * share;
            m.square += parts[2 * stride] + delta * delta * share * m.weight;
            m.weight += weight;
        }
    }
    return m;
}

/* One thread for every column and virtual batch. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_merge(
    double *saved, double *statistics, double *totals, const double *parts,
    int64_t n_parts, int64_t n_batches, int64_t width, int64_t stride, double epsilon)
{
    for (int64_t k = thread_of_grid(); k < n_batches * width; k += threads_of_grid()) {
        const int64_t batch = k / width, j = k % width;
        const double *part = parts + batch * n_parts * 4 * stride + j;
        const Moments m = merged(part, n_parts, stride);
        keep(m, saved + batch * 3 * stride, statistics + batch * 2 * stride, 0, 0, epsilon, stride, j, true);
        if (j == 0)
            totals[batch] = m.weight;
    }
}

/* Population statistics, (2, stride), from the parts of all rows. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) population_merge(
    double *population, const double *parts, int64_t n_parts, int64_t width, int64_t stride)
{
    for (int64_t j = thread_of_grid(); j < width; j += threads_of_grid()) {
        const Moments m = merged(parts + j, n_parts, stride);
        population[j] = m.origin + m.distance;
        population[stride + j] = m.weight > 0 ? m.square / m.weight : 0;
    }
}

/* The elementwise pass over parts of part_rows rows, with what was saved. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_normalize(
    real *y, const real *x, const double *saved, const real *gamma, const real *beta,
    int64_t n_parts, int64_t part_rows, int64_t n_rows, int64_t width, int64_t stride, int64_t virtual_size,
    int64_t activation)
{
    const Place place = place_of_thread(width);
    const Rows rows = rows_of_part(place.part, n_parts, part_rows, n_rows, virtual_size);
    const int64_t j = place.column;
    const double *mine = saved + rows.batch * 3 * stride + j;
    Normalization n;
    n.set(mine[0], mine[stride], mine[2 * stride], gamma, beta, j);
    if (place.is_inside)
        for (int64_t i = rows.start + first_row_of_thread(); i < rows.stop; i += TILE_ROWS)
            y[i * stride + j] = n.forward(x[i * stride + j], activation);
}

/* Inference: statistics are given, mean and var one behind the other. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_forward_eval(
    real *y, const real *x, const double *mean, const real *gamma, const real *beta,
    int64_t part_rows, int64_t n_rows, int64_t width, int64_t stride, double epsilon, int64_t activation)
{
    const Place place = place_of_thread(width);
    const int64_t j = place.column, start = place.part * part_rows, stop = smaller(start + part_rows, n_rows);
    const double scale = inverse_std(mean[stride + j], epsilon) * (gamma ? (double)gamma[j] : 1.0);
    const double shift = beta ? (double)beta[j] : 0.0;
    if (place.is_inside)
        for (int64_t i = start + first_row_of_thread(); i < stop; i += TILE_ROWS) {
            const double z = ((double)x[i * stride + j] - mean[j]) * scale + shift;
            y[i * stride + j] = activation_forward(activation, (real)z);
        }
}

/* Sums of dz and dz xhat over some rows of this thread's column. */
DEVICE void gradient_sums(
    double &sum, double &sum_xhat, const real *dy, const real *y, const real *x, const double *saved,
    int64_t start, int64_t stop, int64_t stride, int64_t activation)
{
    const real high = (real)saved[0], low = (real)saved[stride];
    const double inv_std = saved[2 * stride];
    sum = sum_xhat = 0;
    for (int64_t i = start + first_row_of_thread(); i < stop; i += TILE_ROWS) {
        const double dz = activation_backward(activation, dy[i * stride], y[i * stride]);
        sum += dz;
        sum_xhat += dz * ((double)((x[i * stride] - high) - low) * inv_std);
    }
    sum_over_rows(sum, sum_xhat);
}

DEVICE void input_gradient(
    real *dx, const real *dy, const real *y, const real *x, const double *saved, const double *weights,
    const real *gamma, double sum, double sum_xhat, double total, int64_t start, int64_t stop, int64_t stride,
    int64_t j, int64_t activation)
{
    const real high = (real)saved[j], low = (real)saved[stride + j];
    Gradient g;
    g.set(sum, sum_xhat, total, weights != 0, saved[2 * stride + j], gamma, j);
    for (int64_t i = start + first_row_of_thread(); i < stop; i += TILE_ROWS) {
        const int64_t at = i * stride + j;
        const real dz = activation_backward(activation, dy[at], y[at]);
        dx[at] = g.dx(dz, (x[at] - high) - low, weights ? weights[i] : 1);
    }
}

/* The whole batch is one part. dx, dgamma, dbeta may be NULL. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_backward(
    real *dx, real *dgamma, real *dbeta, const real *dy, const real *y, const real *x, const double *saved,
    const double *totals, const double *weights, const real *gamma,
    int64_t n_rows, int64_t width, int64_t stride, int64_t activation)
{
    const Place place = place_of_thread(width);
    const int64_t j = place.column;
    double sum, sum_xhat;
    gradient_sums(sum, sum_xhat, dy + j, y + j, x + j, saved + j, 0, n_rows, stride, activation);
    if (!place.is_inside)
        return;
    if (threadIdx.x < TILE_COLUMNS) {
        if (dgamma)
            dgamma[j] = (real)sum_xhat;
        if (dbeta)
            dbeta[j] = (real)sum;
    }
    if (dx)
        input_gradient(
            dx, dy, y, x, saved, weights, gamma, sum, sum_xhat, totals[0], 0, n_rows, stride, j, activation);
}

/* parts is (virtual batches * n_parts, 2, stride): the sums of each part. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_gradient_sums(
    double *parts, const real *dy, const real *y, const real *x, const double *saved,
    int64_t n_parts, int64_t part_rows, int64_t n_rows, int64_t width, int64_t stride, int64_t virtual_size,
    int64_t activation)
{
    const Place place = place_of_thread(width);
    const Rows rows = rows_of_part(place.part, n_parts, part_rows, n_rows, virtual_size);
    const int64_t j = place.column;
    double sum, sum_xhat;
    gradient_sums(
        sum, sum_xhat, dy + j, y + j, x + j, saved + rows.batch * 3 * stride + j, rows.start, rows.stop, stride,
        activation);
    if (place.is_inside && threadIdx.x < TILE_COLUMNS) {
        parts[place.part * 2 * stride + j] = sum;
        parts[(place.part * 2 + 1) * stride + j] = sum_xhat;
    }
}

/* sums is (n_batches, 2, stride): those of each virtual batch. One thread a column. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_gradient_merge(
    double *sums, real *dgamma, real *dbeta, const double *parts,
    int64_t n_parts, int64_t n_batches, int64_t width, int64_t stride)
{
    for (int64_t j = thread_of_grid(); j < width; j += threads_of_grid()) {
        double all = 0, all_xhat = 0;
        for (int64_t batch = 0; batch < n_batches; batch++) {
            double sum = 0, sum_xhat = 0;
            for (int64_t k = batch * n_parts; k < (batch + 1) * n_parts; k++) {
                sum += parts[k * 2 * stride + j];
                sum_xhat += parts[(k * 2 + 1) * stride + j];
            }
            sums[batch * 2 * stride + j] = sum;
            sums[(batch * 2 + 1) * stride + j] = sum_xhat;
            all += sum;
            all_xhat += sum_xhat;
        }
        if (dgamma)
            dgamma[j] = (real)all_xhat;
        if (dbeta)
            dbeta[j] = (real)all;
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) batch_norm_input_gradient(
    real *dx, const real *dy, const real *y, const real *x, const double *saved, const double *sums,
    const double *totals, const double *weights, const real *gamma,
    int64_t n_parts, int64_t part_rows, int64_t n_rows, int64_t width, int64_t stride, int64_t virtual_size,
    int64_t activation)
{
    const Place place = place_of_thread(width);
    const Rows rows = rows_of_part(place.part, n_parts, part_rows, n_rows, virtual_size);
    const int64_t j = place.column;
    const double *mine = sums + rows.batch * 2 * stride + j;
    if (place.is_inside)
        input_gradient(
            dx, dy, y, x, saved + rows.batch * 3 * stride, weights, gamma, mine[0], mine[stride],
            totals[rows.batch], rows.start, rows.stop, stride, j, activation);
}

/* Take the statistics of a batch, virtual batch by virtual batch, into the moving ones
 * (docs/user_guide/statistics.md).
 *
 * A block takes a layer. `statistics` of a layer begin behind those of the layers before it, whose `saved` count three
 * rows where these have two; `totals` is (n_layers, n_virtual). A batch without weight changes nothing. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) update_moving_statistics(
    double *state, const double *statistics, const double *totals, const double *total, const LayerRecord *layers,
    int64_t n_virtual, int64_t n_rows)
{
    const LayerRecord *layer = layers + blockIdx.x;
    if (layer->kind != SKBN_BATCH_NORM || (total && total[0] == 0))
        return;
    const int64_t stride = layer->out_stride;
    double *moving = state + layer->state, *counter = moving + SKBN_N_BATCHES * stride;
    const double before = counter[0];
    double t = before;
    statistics += layer->saved / 3 * 2 * n_virtual;
    totals += blockIdx.x * n_virtual;
    __syncthreads(); /* all have read the counter */
    for (int64_t j = threadIdx.x; j < layer->n_out || j == threadIdx.x; j += blockDim.x) {
        t = before;
        int64_t batch = 0;
        for (int64_t start = 0; start < n_rows; batch++) {
            if (totals[batch] > 0) {
                t += 1;
                if (j < layer->n_out) {
                    const double share = share_of_batch(layer->momentum, t, pow(layer->momentum, t));
#pragma unroll
                    for (int which = SKBN_MOVING_MEAN; which <= SKBN_MOVING_VAR; which++) {
                        double *average = moving + which * stride + j;
                        *average = (1 - share) * *average + share * statistics[(batch * 2 + which) * stride + j];
                    }
                }
            }
            start = virtual_stop(start, n_rows, layer->virtual_batch_size);
        }
    }
    if (threadIdx.x == 0)
        counter[0] = t;
}
