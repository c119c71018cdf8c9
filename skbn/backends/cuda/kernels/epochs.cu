/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whole epochs of small networks in one launch: a block trains a model, everything it touches in a step in shared
 * memory but for the optimizer's memory and the statistics, which the first cache holds. Many models are many blocks.
 *
 * Matrices stand on their side: unit u of row r is at [u * pitch + r], pitch odd, so neither threads that take
 * neighbouring rows nor those that take neighbouring units meet in a bank. Products are taken by threads of one row (or
 * unit) and four units (or inputs), in the order of the inner index; a unit's statistics by the threads of a group,
 * neighbours in a warp, without a barrier. Rows and targets of the next mini-batch are on their way in
 * registers during a step, their indices a step before that. The number of threads is fixed, and with it every order
 * of summation: a model gets the same bits alone and among others. What lies in shared memory is counted in 32 bits.
 */
#include "batch_norm.cuh"
#include "dropout.cuh"
#include "epochs.cuh"
#include "losses.cuh"
#include "optimizers.cuh"
#include "sums.cuh"

#define EPOCH_THREADS 256
#define QUAD 4
/* Blocks of a multiprocessor that registers must do for: as many as they do for without spilling. */
#define BLOCKS (sizeof(real) == 4 ? 2 : 1)
#define PREFETCHED 2 /* numbers a thread has on their way */

/* End of the mini-batch that begins at `start`; a rest shorter than min_rows joins it. */
DEVICE int64_t batch_stop(int64_t start, int64_t n_rows, int64_t size, int64_t min_rows)
{
    return n_rows - start - min_rows < size ? n_rows : start + size;
}

/* What a mini-batch works with, all in shared memory but for state and memory. */
struct Workplace {
    const Job *job;
    LayerRecord *layers;
    real *params, *grads;
    real *activations;      /* layer by layer, `input` and `output` of the records times pitch */
    real *deltas[2];
    real *targets;          /* (target_size, pitch) */
    double *weights;        /* (pitch,) */
    double *saved;          /* `saved` of the records times n_virtual, (3, stride) a virtual batch */
    int64_t *order;         /* (pitch,): rows of the next mini-batch */
    int64_t start, stop, next_stop, last_stop;  /* of this mini-batch, the next, and the one after that */
    int64_t step;
    double rows_seen;
    int pitch, n_rows;
    double total;           /* weight of the batch */
    double *loss, *right;   /* (threads,): what each has added to loss and score */
    double *decays;         /* (n_layers,): batch norm's momentum to the power of the batches seen */
    double decay_1, decay_2;    /* Adam's betas to the power of the updates */
    Update update;
};

/* y = activation(x W + b): a thread has one row and four units. */
DEVICE void dense_forward(const Workplace &w, const LayerRecord &layer, real *y, const real *x)
{
    const real *weight = w.params + layer.weight, *bias = w.params + layer.bias;
    const int pitch = w.pitch, stride = (int)layer.out_stride, n_in = (int)layer.n_in, n_out = (int)layer.n_out;
    const int quads = (n_out + QUAD - 1) / QUAD;
    for (int k = threadIdx.x; k < quads * w.n_rows; k += EPOCH_THREADS) {
        const int r = k % w.n_rows, u = k / w.n_rows * QUAD;
        real sum[QUAD];
        if (n_out == 1) {
            sum[0] = 0;
            for (int i = 0; i < n_in; i++)
                sum[0] += x[i * pitch + r] * weight[i * stride];
        } else { /* rows of weights are padded to whole quads */
#pragma unroll
            for (int q = 0; q < QUAD; q++)
                sum[q] = 0;
            for (int i = 0; i < n_in; i++) {
                const real value = x[i * pitch + r];
#pragma unroll
                for (int q = 0; q < QUAD; q++)
                    sum[q] += value * weight[i * stride + u + q];
            }
        }
#pragma unroll
        for (int q = 0; q < QUAD; q++)
            if (u + q < n_out)
                y[(u + q) * pitch + r] = activation_forward(layer.activation, sum[q] + bias[u + q]);
    }
    __syncthreads();
}

/* Gradients of weights (with penalty) and bias: a thread has one input and four units, far apart; the bias is an input
 * that is always 1. dy becomes dz. dx NULL: not wanted. A thread adds its share of the penalty to the loss. */
DEVICE void dense_backward(
    const Workplace &w, const LayerRecord &layer, real *dx, real *dy, const real *y, const real *x, real penalty)
{
    const real *weight = w.params + layer.weight;
    real *dweight = w.grads + layer.weight, *dbias = w.grads + layer.bias;
    const int pitch = w.pitch, stride = (int)layer.out_stride, n_in = (int)layer.n_in, n_out = (int)layer.n_out;
    const int n_rows = w.n_rows, quads = (n_out + QUAD - 1) / QUAD;
    double squares = 0;
    if (layer.activation != SKBN_IDENTITY) {
        for (int k = threadIdx.x; k < n_out * n_rows; k += EPOCH_THREADS) {
            const int at = k / n_rows * pitch + k % n_rows;
            dy[at] = activation_backward(layer.activation, dy[at], y[at]);
        }
        __syncthreads();
    }
    for (int k = threadIdx.x; k < (n_in + 1) * quads; k += EPOCH_THREADS) {
        const int i = k / quads, u = k % quads;
        const bool is_bias = i == n_in;
        int at[QUAD];
        real sum[QUAD];
#pragma unroll
        for (int q = 0; q < QUAD; q++) {
            at[q] = min(u + q * quads, n_out - 1) * pitch;
            sum[q] = 0;
        }
        for (int r = 0; r < n_rows; r++) {
            const real value = is_bias ? (real)1 : x[i * pitch + r];
#pragma unroll
            for (int q = 0; q < QUAD; q++)
                sum[q] += value * dy[at[q] + r];
        }
#pragma unroll
        for (int q = 0; q < QUAD; q++) {
            const int unit = u + q * quads;
            if (unit < n_out && !is_bias) {
                const real value = weight[i * stride + unit];
                squares += (double)value * value;
                dweight[i * stride + unit] = sum[q] + penalty * value;
            } else if (unit < n_out && layer.train_bias) {
                dbias[unit] = sum[q];
            }
        }
    }
    if (dx) {
        const int input_quads = (n_in + QUAD - 1) / QUAD;
        for (int k = threadIdx.x; k < input_quads * n_rows; k += EPOCH_THREADS) {
            const int r = k % n_rows, i = k / n_rows * QUAD;
            int at[QUAD];
            real sum[QUAD];
#pragma unroll
            for (int q = 0; q < QUAD; q++) {
                at[q] = min(i + q, n_in - 1) * stride;
                sum[q] = 0;
            }
            for (int u = 0; u < n_out; u++) {
                const real value = dy[u * pitch + r];
#pragma unroll
                for (int q = 0; q < QUAD; q++)
                    sum[q] += value * weight[at[q] + u];
            }
#pragma unroll
            for (int q = 0; q < QUAD; q++)
                if (i + q < n_in)
                    dx[(i + q) * pitch + r] = sum[q];
        }
    }
    w.loss[threadIdx.x] += 0.5 * w.job->alpha * squares * (w.n_rows / w.total);
    __syncthreads();
}

/* The threads that share a unit: neighbours, as many for any number of units, so that a unit's bits are its own. */
struct Group {
    static constexpr int size = 8;
    const int rank = threadIdx.x % size;

    /* The sum over the group, for each of its threads. */
    DEVICE_MEMBER double sum(double value) const
    {
#pragma unroll
        for (int step = 1; step < size; step *= 2)
            value += __shfl_xor_sync(0xffffffffu, value, step);
        return value;
    }
};

DEVICE void sums_of_deviations(
    double &sum, double &squares, const Group &group, const real *x, const double *weights, int start,
    int stop, double pivot)
{
    sum = squares = 0;
    for (int r = start + group.rank; r < stop; r += group.size) {
        const double weight = weights ? weights[r] : 1;
        if (weight == 0)
            continue;
        const double deviation = (double)x[r] - pivot;
        sum += weight * deviation;
        squares += weight * deviation * deviation;
    }
    sum = group.sum(sum);
    squares = group.sum(squares);
}

/* Normalize unit by unit, virtual batch by virtual batch, and take their statistics into the moving ones. */
DEVICE void batch_norm_forward(const Workplace &w, const LayerRecord &layer, real *y, const real *x, int64_t index)
{
    const int stride = (int)layer.out_stride, n_out = (int)layer.n_out;
    const Group group;
    const double *weights = w.job->weights ? w.weights : 0;
    const real *gamma = layer.weight >= 0 ? w.params + layer.weight : 0;
    const real *beta = layer.bias >= 0 ? w.params + layer.bias : 0;
    double *moving = w.job->state + layer.state, *counter = moving + SKBN_N_BATCHES * stride;
    const double before = counter[0], decay_before = w.decays[index];
    double t = before, decay = decay_before;
    for (int first = 0; first < n_out; first += EPOCH_THREADS / group.size) {
        const int unit = first + threadIdx.x / group.size, j = min(unit, n_out - 1);
        const bool is_mine = unit < n_out && group.rank == 0;
        const real *column = x + j * w.pitch;
        double *saved = w.saved + layer.saved * w.job->n_virtual + j;
        t = before;
        decay = decay_before;
        for (int start = 0; start < w.n_rows; saved += 3 * stride) {
            const int stop = (int)virtual_stop(start, w.n_rows, layer.virtual_batch_size);
            double weight = (double)(stop - start), correction, square;
            int pivot_row = start;
            if (weights) {
                weight = 0;
                for (int r = start; r < stop; r++)
                    weight += weights[r];
                while (pivot_row < stop - 1 && weights[pivot_row] == 0)
                    pivot_row++;
            }
            const double share = weight > 0 ? 1 / weight : 0;
            double origin = column[pivot_row];
            sums_of_deviations(correction, square, group, column, weights, start, stop, origin);
            if (sizeof(real) == sizeof(double) || weights) {
                origin += correction * share;
                sums_of_deviations(correction, square, group, column, weights, start, stop, origin);
            }
            const double distance = correction * share;
            square -= correction * distance;
            const double var = square < 0 ? 0 : square * share, inv_std = inverse_std(var, layer.epsilon);
            Normalization n;
            n.set(origin, distance, inv_std, gamma, beta, j);
            if (weight > 0) {
                t += 1;
                decay *= layer.momentum;
            }
            if (is_mine) {
                saved[0] = n.high;
                saved[stride] = n.low;
                saved[2 * stride] = inv_std;
                if (weight > 0) {
                    const double part = share_of_batch(layer.momentum, t, decay);
                    moving[j] = (1 - part) * moving[j] + part * (origin + distance);
                    moving[stride + j] = (1 - part) * moving[stride + j] + part * var;
                }
            }
            if (unit < n_out)
                for (int r = start + group.rank; r < stop; r += group.size)
                    y[j * w.pitch + r] = n.forward(column[r], layer.activation);
            start = stop;
        }
    }
    __syncthreads(); /* and all have read the counter */
    if (threadIdx.x == 0) {
        counter[0] = t;
        w.decays[index] = decay;
    }
}

DEVICE void batch_norm_backward(
    const Workplace &w, const LayerRecord &layer, real *dx, const real *dy, const real *y, const real *x)
{
    const int stride = (int)layer.out_stride, n_out = (int)layer.n_out;
    const Group group;
    const double *weights = w.job->weights ? w.weights : 0;
    const real *gamma = layer.weight >= 0 ? w.params + layer.weight : 0;
    for (int first = 0; first < n_out; first += EPOCH_THREADS / group.size) {
        const int unit = first + threadIdx.x / group.size, j = min(unit, n_out - 1);
        const int at = j * w.pitch;
        const double *saved = w.saved + layer.saved * w.job->n_virtual + j;
        double all = 0, all_xhat = 0;
        for (int start = 0; start < w.n_rows; saved += 3 * stride) {
            const int stop = (int)virtual_stop(start, w.n_rows, layer.virtual_batch_size);
            const real high = (real)saved[0], low = (real)saved[stride];
            const double inv_std = saved[2 * stride];
            double sum = 0, sum_xhat = 0, weight = (double)(stop - start);
            if (weights) {
                weight = 0;
                for (int r = start; r < stop; r++)
                    weight += weights[r];
            }
            for (int r = start + group.rank; r < stop; r += group.size) {
                const double dz = activation_backward(layer.activation, dy[at + r], y[at + r]);
                sum += dz;
                sum_xhat += dz * ((double)((x[at + r] - high) - low) * inv_std);
            }
            sum = group.sum(sum);
            sum_xhat = group.sum(sum_xhat);
            all += sum;
            all_xhat += sum_xhat;
            if (dx && unit < n_out) {
                Gradient g;
                g.set(sum, sum_xhat, weight, weights != 0, inv_std, gamma, j);
                for (int r = start + group.rank; r < stop; r += group.size) {
                    const real dz = activation_backward(layer.activation, dy[at + r], y[at + r]);
                    dx[at + r] = g.dx(dz, (x[at + r] - high) - low, weights ? weights[r] : 1);
                }
            }
            start = stop;
        }
        if (unit < n_out && group.rank == 0) {
            if (layer.weight >= 0)
                w.grads[layer.weight + j] = (real)all_xhat;
            if (layer.bias >= 0)
                w.grads[layer.bias + j] = (real)all;
        }
    }
    __syncthreads();
}

DEVICE void dropout_apply(
    const Workplace &w, const LayerRecord &layer, real *y, const real *x, int64_t index)
{
    const int n_out = (int)layer.n_out, quads = (n_out + 3) / 4;
    const uint64_t threshold = dropout_threshold(layer.rate);
    const real scale = (real)(1 / (1 - layer.rate));
    for (int k = threadIdx.x; k < quads * w.n_rows; k += EPOCH_THREADS) {
        const int r = k % w.n_rows, quad = k / w.n_rows;
        uint32_t words[4];
        dropout_words(words, quad, r, index, w.step, (uint64_t)w.job->key);
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const int at = (quad * 4 + q) * w.pitch + r;
            if (quad * 4 + q < n_out)
                y[at] = words[q] < threshold ? (real)0 : x[at] * scale;
        }
    }
    __syncthreads();
}

/* Forward, or given dy backward. */
DEVICE void elementwise(const Workplace &w, const LayerRecord &layer, real *out, const real *dy, const real *x)
{
    const int n_out = (int)layer.n_out;
    for (int k = threadIdx.x; k < n_out * w.n_rows; k += EPOCH_THREADS) {
        const int at = k / w.n_rows * w.pitch + k % w.n_rows;
        out[at] = dy ? elementwise_backward(layer.activation, dy[at], x[at])
                     : elementwise_forward(layer.activation, x[at]);
    }
    __syncthreads();
}

/* Gradient of the raw outputs. A thread adds what its rows cost and, for log losses, what they decide right; squared
 * errors are added to the sums in global memory, output by output. */
DEVICE void loss_forward_backward(
    const Workplace &w, real *draw, const real *raw, int n_out)
{
    const Job &job = *w.job;
    const double rate = 1 / w.total, scale = w.n_rows * rate;
    double loss = 0, right = 0;
    if (is_log_loss(job.loss)) {
        for (int r = threadIdx.x; r < w.n_rows; r += EPOCH_THREADS) {
            const double weight = job.weights ? w.weights[r] : 1;
            bool is_right;
            double cost;
            if (job.loss == SKBN_CATEGORICAL_LOG_LOSS) {
                cost = categorical_log_loss(
                    draw + r, is_right, raw + r, w.targets + r, n_out, w.pitch, weight * rate);
            } else {
                cost = binary_log_loss(
                    draw + r, is_right, raw + r, w.targets + r, n_out, w.pitch, weight * rate, w.pitch);
            }
            if (weight > 0) {
                loss += weight * cost;
                right += is_right ? weight : 0;
            }
        }
    } else {
        const Group group;
        const double share = share_of_output(job.loss, n_out);
        for (int first = 0; first < n_out; first += EPOCH_THREADS / group.size) {
            const int unit = first + threadIdx.x / group.size, j = min(unit, n_out - 1), at = j * w.pitch;
            double squares = 0;
            for (int r = group.rank; r < w.n_rows && unit < n_out; r += group.size) {
                const double weight = job.weights ? w.weights[r] : 1;
                double error = 0, slope = 0;
                if (weight > 0)
                    loss += weight * share * error_loss(job.loss, raw[at + r], w.targets[at + r], error, slope);
                draw[at + r] = (real)(slope * weight * rate * share);
                squares += weight * error * error;
            }
            squares = group.sum(squares);
            if (unit < n_out && group.rank == 0)
                job.sums[3 + j] += squares;
        }
    }
    w.loss[threadIdx.x] += loss * scale;
    w.right[threadIdx.x] += right;
    __syncthreads();
}

/* What gradients are multiplied with so that their norm is max_norm at most. */
DEVICE double clip_norm(const Workplace &w, double max_norm)
{
    double largest = 0, squares = 0;
    for (int k = threadIdx.x; k < w.job->n_params; k += EPOCH_THREADS) {
        largest = larger(largest, fabs((double)w.grads[k]));
    }
    largest = largest_over_block(largest);
    if (largest > 0)
        for (int k = threadIdx.x; k < w.job->n_params; k += EPOCH_THREADS) {
            const double share = (double)w.grads[k] / largest;
            squares += share * share;
        }
    const double norm = largest * sqrt(sum_over_block(squares));
    return norm > max_norm ? max_norm / norm : 1;
}

/* What a mini-batch is made of: fields of its rows, numbers of X and, behind the features, of the targets.
 *
 * A thread carries its share of the next mini-batch in registers while this one is trained on, and a row of the one
 * after that: its place in X must be known before its numbers can be asked for. */
struct Carrier {
    real value[PREFETCHED];
    int64_t row;

    /* Ask for the fields of n_rows rows, whose places are in w.order. */
    DEVICE_MEMBER void ask(const Workplace &w, int n_fields, int n_rows)
    {
#pragma unroll
        for (int p = 0; p < PREFETCHED; p++) {
            const int k = threadIdx.x + p * EPOCH_THREADS;
            if (k < n_rows * n_fields)
                value[p] = field_of(*w.job, w.order[k / n_fields], k % n_fields, n_fields);
        }
    }
    DEVICE_MEMBER void put(const Workplace &w, int n_fields, int n_rows) const
    {
#pragma unroll
        for (int p = 0; p < PREFETCHED; p++) {
            const int k = threadIdx.x + p * EPOCH_THREADS;
            if (k < n_rows * n_fields)
                place_of(w, k / n_fields, k % n_fields, n_fields) = value[p];
        }
    }
    DEVICE_MEMBER void ask_order(const Workplace &w, int64_t start, int64_t stop)
    {
        if (start + threadIdx.x < stop)
            row = w.job->rows[start + threadIdx.x];
    }
    DEVICE_MEMBER void put_order(const Workplace &w, int64_t start, int64_t stop) const
    {
        if (start + threadIdx.x < stop)
            w.order[threadIdx.x] = row;
    }
    /* Put the fields of rows that nobody has carried. */
    static DEVICE_MEMBER void fetch(const Workplace &w, int n_fields, int64_t start, int n_rows)
    {
        for (int k = threadIdx.x; k < n_rows * n_fields; k += EPOCH_THREADS) {
            const int r = k / n_fields, field = k % n_fields;
            place_of(w, r, field, n_fields) = field_of(*w.job, w.job->rows[start + r], field, n_fields);
        }
    }
    /* What has no weight is read as zeros. */
    static DEVICE_MEMBER real field_of(const Job &job, int64_t row, int field, int n_fields)
    {
        const int target = field - (n_fields - (int)job.target_size);
        if (target >= 0)
            return job.targets[row * job.target_size + target];
        if (job.weights && job.weights[row] == 0)
            return 0;
        return job.X[row * job.row_stride + field * job.column_stride];
    }
    static DEVICE_MEMBER real &place_of(const Workplace &w, int r, int field, int n_fields)
    {
        const int target = field - (n_fields - (int)w.job->target_size);
        return target >= 0 ? w.targets[target * w.pitch + r] : w.activations[field * w.pitch + r];
    }
};

/* Train on one mini-batch whose rows are there; add to the thread's loss and scores. */
DEVICE void train_batch(const Workplace &w)
{
    const Job &job = *w.job;
    const LayerRecord &last = w.layers[job.n_layers - 1];
    for (int64_t index = 0; index < job.n_layers; index++) {
        const LayerRecord &layer = w.layers[index];
        const real *x = w.activations + layer.input * w.pitch;
        real *y = w.activations + layer.output * w.pitch;
        if (layer.kind == SKBN_DENSE)
            dense_forward(w, layer, y, x);
        else if (layer.kind == SKBN_BATCH_NORM)
            batch_norm_forward(w, layer, y, x, index);
        else if (layer.kind == SKBN_DROPOUT)
            dropout_apply(w, layer, y, x, index);
        else
            elementwise(w, layer, y, 0, x);
    }
    real *dy = w.deltas[0], *dx = w.deltas[1];
    loss_forward_backward(w, dy, w.activations + last.output * w.pitch, (int)last.n_out);
    for (int64_t index = job.n_layers - 1; index >= 0; index--) {
        const LayerRecord &layer = w.layers[index];
        const real *x = w.activations + layer.input * w.pitch, *y = w.activations + layer.output * w.pitch;
        real *const out = index > 0 ? dx : 0;
        if (layer.kind == SKBN_DENSE)
            dense_backward(w, layer, out, dy, y, x, (real)(job.alpha / w.total));
        else if (layer.kind == SKBN_BATCH_NORM)
            batch_norm_backward(w, layer, out, dy, y, x);
        else if (out && layer.kind == SKBN_DROPOUT)
            dropout_apply(w, layer, out, dy, index);
        else if (out)
            elementwise(w, layer, out, dy, x);
        dx = dy;
        dy = out;
    }
    const Update update = w.update;
    const real factor = isfinite(job.optimizer->max_grad_norm) ? (real)clip_norm(w, job.optimizer->max_grad_norm)
                                                               : (real)1;
    real *const second = job.memory + (update.kind == SKBN_ADAM ? job.n_params : 0); /* else nobody looks */
    for (int64_t k = threadIdx.x; k < job.n_params; k += EPOCH_THREADS)
        update.apply(w.params[k], job.memory[k], second[k], w.grads[k] * factor);
}

DEVICE void copy_words(void *to, const void *from, int n_bytes)
{
    for (int k = threadIdx.x; k < n_bytes / 8; k += EPOCH_THREADS)
        ((int64_t *)to)[k] = ((const int64_t *)from)[k];
}

extern "C" __global__ void __launch_bounds__(EPOCH_THREADS, BLOCKS) train_epoch(const Job *jobs)
{
    SHARED_MEMORY(double, room);
    __shared__ Job job; /* and not in the registers of every thread */
    __shared__ Workplace w;
    __shared__ double losses[EPOCH_THREADS], scores[EPOCH_THREADS];
    copy_words(&job, jobs + blockIdx.x, sizeof(Job));
    __syncthreads();
    if (threadIdx.x == 0) { /* doubles first; the room is that of the largest job */
        w.job = &job;
        w.pitch = (int)job.capacity | 1;
        w.loss = losses;
        w.right = scores;
        w.decays = room;
        w.saved = w.decays + job.n_layers;
        w.weights = w.saved + job.saved;
        w.order = (int64_t *)(w.weights + w.pitch);
        w.layers = (LayerRecord *)(w.order + w.pitch);
        w.params = (real *)(w.layers + job.n_layers);
        w.grads = w.params + job.n_params;
        w.activations = w.grads + job.n_params;
        w.deltas[0] = w.activations + job.row_size * w.pitch;
        w.deltas[1] = w.deltas[0] + job.widest * w.pitch;
        w.targets = w.deltas[1] + job.widest * w.pitch;
        w.start = job.position;
        w.stop = batch_stop(w.start, job.n_rows, job.batch_size, job.min_rows);
        w.next_stop = batch_stop(w.stop, job.n_rows, job.batch_size, job.min_rows);
        if (job.is_first)
            for (int k = 1; k < 3 + job.n_scores; k++)
                job.sums[k] = 0;
        w.step = (int64_t)job.sums[0];
        w.rows_seen = job.sums[2];
    }
    __syncthreads();
    copy_words(w.layers, job.layers, (int)job.n_layers * sizeof(LayerRecord));
    for (int64_t k = threadIdx.x; k < job.n_params; k += EPOCH_THREADS) {
        w.params[k] = job.params[k];
        w.grads[k] = 0; /* pads and biases that are not trained stay so */
    }
    __syncthreads();
    double *const powers = job.parts + 2 * EPOCH_THREADS;
    for (int k = threadIdx.x; k < (int)job.n_layers; k += EPOCH_THREADS)
        if (w.layers[k].kind == SKBN_BATCH_NORM)
            w.decays[k] = job.is_new ? pow(w.layers[k].momentum,
                                           job.state[w.layers[k].state + SKBN_N_BATCHES * w.layers[k].out_stride])
                                     : powers[2 + k];
    if (threadIdx.x == 0) {
        w.decay_1 = job.is_new ? pow(job.optimizer->beta_1, job.sums[0]) : powers[0];
        w.decay_2 = job.is_new ? pow(job.optimizer->beta_2, job.sums[0]) : powers[1];
    }
    __syncthreads();
    const int n_fields = (int)(w.layers[0].n_in + job.target_size), capacity = (int)job.capacity;
    const bool is_carried = capacity * n_fields <= PREFETCHED * EPOCH_THREADS && capacity <= EPOCH_THREADS;
    double *const parts = job.parts + threadIdx.x;
    w.loss[threadIdx.x] = job.is_first ? 0 : parts[0];
    w.right[threadIdx.x] = job.is_first ? 0 : parts[EPOCH_THREADS];
    Carrier carrier;
    if (is_carried) {
        Carrier::fetch(w, n_fields, w.start, (int)(w.stop - w.start));
        carrier.ask_order(w, w.stop, w.next_stop);
        carrier.put_order(w, w.stop, w.next_stop);
        __syncthreads();
    }
    for (int64_t batch = 0; batch < job.n_batches && w.start < job.n_rows; batch++) {
        double total = (double)(w.stop - w.start);
        if (!is_carried)
            Carrier::fetch(w, n_fields, w.start, (int)total);
        if (job.weights) {
            total = 0;
            for (int r = threadIdx.x; r < (int)(w.stop - w.start); r += EPOCH_THREADS) {
                w.weights[r] = job.weights[job.rows[w.start + r]];
                total += w.weights[r];
            }
            total = sum_over_block(total);
        }
        if (threadIdx.x == EPOCH_THREADS - 1) {
            w.n_rows = (int)(w.stop - w.start);
            w.total = total;
            w.last_stop = batch_stop(w.next_stop, job.n_rows, job.batch_size, job.min_rows);
            if (total > 0) {
                w.decay_1 *= job.optimizer->beta_1;
                w.decay_2 *= job.optimizer->beta_2;
                w.update.set(job.optimizer, rate_of_update(job.optimizer, w.step, w.decay_1, w.decay_2));
            }
        }
        __syncthreads();
        if (is_carried) {
            carrier.ask(w, n_fields, (int)(w.next_stop - w.stop));
            carrier.ask_order(w, w.next_stop, w.last_stop);
        }
        if (w.total > 0) /* else nothing in it counts */
            train_batch(w);
        __syncthreads(); /* all have read this batch's rows and written their parameters */
        if (is_carried) {
            carrier.put(w, n_fields, (int)(w.next_stop - w.stop));
            carrier.put_order(w, w.next_stop, w.last_stop);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            w.start = w.stop;
            w.stop = w.next_stop;
            w.next_stop = w.last_stop;
            if (w.total > 0) {
                w.step += 1;
                w.rows_seen += w.n_rows;
            }
        }
        __syncthreads();
    }
    for (int64_t k = threadIdx.x; k < job.n_params; k += EPOCH_THREADS)
        job.params[k] = w.params[k];
    for (int k = threadIdx.x; k < (int)job.n_layers; k += EPOCH_THREADS)
        powers[2 + k] = w.decays[k];
    parts[0] = w.loss[threadIdx.x];
    parts[EPOCH_THREADS] = w.right[threadIdx.x];
    const double loss = sum_over_block(w.loss[threadIdx.x]), right = sum_over_block(w.right[threadIdx.x]);
    if (threadIdx.x == 0) {
        powers[0] = w.decay_1;
        powers[1] = w.decay_2;
        job.sums[0] = (double)w.step;
        job.sums[1] = loss;
        job.sums[2] = w.rows_seen;
        if (is_log_loss(job.loss))
            job.sums[3] = right;
    }
}
