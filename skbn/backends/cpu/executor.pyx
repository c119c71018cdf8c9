# SPDX-License-Identifier: BSD-3-Clause
"""The compiled executor: the walk over the layer table, without the GIL, a whole epoch in one call.

This is the only translation unit of the kernels, so the compiler sees through all of them; it is compiled once for
every instruction level (setup.py), and ``skbn.backends.cpu`` picks one at import. Free functions over fused types walk
flat buffers. Rejected: a class per layer behind virtual calls, because attributes of extension types cannot be fused
and lead to template files.

Buffers: ``activations`` holds the output of every layer, ``deltas`` the gradient with respect to it at the same place.
Gradients are overwritten, never added to.
"""

from cython cimport floating
from cython.parallel cimport prange, threadid
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_STRIDED_RO,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

import numpy as np

from skbn.backends.cpu.activations cimport activation_backward, zero_pads
from skbn.backends.cpu.batch_norm cimport (
    IN_ORDER,
    TILE,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_forward_eval,
    merge_moments,
    tile_moments,
    total_weight,
    update_moving_statistics,
)
from skbn.backends.cpu.dense cimport add_penalty, dense_backward, dense_forward
from skbn.backends.cpu.dropout cimport dropout_apply
from skbn.backends.cpu.elementwise cimport elementwise_backward, elementwise_forward
from skbn.backends.cpu.floating_point cimport flush_denormals, restore_mode
from skbn.backends.cpu.losses cimport (
    binary_log_loss,
    categorical_log_loss,
    error_loss,
    multilabel_log_loss,
)
from skbn.backends.cpu.optimizers cimport optimizer_update, optimizer_vectors
from skbn.backends.cpu.rows cimport (
    Rows,
    compressed_dense_backward,
    compressed_dense_forward,
    gather,
    row_index,
)
from skbn.backends.records cimport (
    SKBN_BATCH_NORM,
    SKBN_BINARY_LOG_LOSS,
    SKBN_CATEGORICAL_LOG_LOSS,
    SKBN_DENSE,
    SKBN_DROPOUT,
    SKBN_ELEMENTWISE,
    SKBN_MOVING_MEAN,
    SKBN_POPULATION_MEAN,
    LayerRecord,
    OptimizerRecord,
)

from skbn.backends.cpu.threads import n_threads, single_threaded_blas
from skbn.backends.memory import aligned_zeros

cdef enum:
    EVAL_ROWS = 256  # rows that go through the network together at prediction: they stay in cache
    GROUP = 32  # blocks of rows that one call takes at most
    # A parallel region pays from about 100 us of work; a core does some 10 multiplications a nanosecond.
    PARALLEL_WORK = 1_000_000

cdef char INTP = ord(np.dtype(np.intp).char)

# A call into the compiled walk ends within about this time, so that Ctrl-C works. A single mini-batch that takes
# longer asks for signals between its layers.
cdef double SECONDS_PER_CALL = 0.05

cdef list _raised = []  # by signal handlers, inside of a call


cdef struct Plan:
    const LayerRecord* layers
    Py_ssize_t n_layers
    Py_ssize_t n_params
    Py_ssize_t capacity         # rows that the buffers hold
    Py_ssize_t row_size         # numbers a row has in each of them
    Py_ssize_t largest          # numbers in the largest transposed weight matrix
    Py_ssize_t n_virtual        # virtual batches that `saved` holds
    Py_ssize_t batch_size
    Py_ssize_t min_rows         # a shorter rest joins the batch before it
    Py_ssize_t rows_per_call    # rows that SECONDS_PER_CALL suffice to train on
    Py_ssize_t input_stride
    Py_ssize_t widest           # largest stride of the network
    Py_ssize_t target_size      # numbers a row has in the targets
    Py_ssize_t n_scores         # numbers that a loss adds to the scores
    int loss
    double alpha
    uint32_t key[2]
    double* state
    double* saved
    double* scratch             # (4, widest): statistics of a batch; sums for gamma and beta
    double* batch_weights       # (capacity,)
    bint use_population
    bint is_stopped             # a signal handler raised: return as you are


cdef inline Py_ssize_t batch_stop(
    Py_ssize_t start, Py_ssize_t n_rows, Py_ssize_t size, Py_ssize_t min_rows,
) noexcept nogil:
    """End of the batch that begins at start; a rest shorter than min_rows joins it."""
    return n_rows if size == 0 or n_rows - start - min_rows < size else start + size


cdef bint handlers_raise() noexcept with gil:
    """Let Python's signal handlers run; keep what they raise."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        _raised.append(error)
        return True
    return False


cdef inline bint meets_compressed(const Plan* plan, const Rows* X) noexcept nogil:
    """Whether the first layer takes the rows of X as they are, compressed."""
    return X.starts != NULL and plan.layers[0].kind == SKBN_DENSE


cdef void forward(
    Plan* plan, const floating* params, floating* activations,
    const Rows* X, const Py_ssize_t* rows, const double* weights,
    Py_ssize_t n_rows, uint32_t step, bint update_statistics,
) noexcept nogil:
    """Training mode: batch norm uses, saves and (if asked) averages the statistics of these rows."""
    cdef const LayerRecord* layer
    cdef const floating* x
    cdef const floating* weight
    cdef const floating* bias
    cdef floating* y
    cdef double* saved
    cdef double* statistics
    cdef double weight_seen
    cdef bint is_long = n_rows > plan.rows_per_call
    cdef Py_ssize_t index, start, stop
    if not meets_compressed(plan, X):
        gather(activations, X, rows, weights, 0, n_rows, plan.input_stride)
    for index in range(plan.n_layers):
        if is_long and handlers_raise():
            plan.is_stopped = True
            return
        layer = &plan.layers[index]
        x = activations + layer.input * plan.capacity
        y = activations + layer.output * plan.capacity
        weight = params + layer.weight if layer.weight >= 0 else NULL
        bias = params + layer.bias if layer.bias >= 0 else NULL
        if index == 0 and meets_compressed(plan, X):
            compressed_dense_forward(
                y, X, rows, weights, 0, weight, bias, n_rows, layer.n_out, layer.out_stride, layer.activation
            )
        elif layer.kind == SKBN_DENSE:
            dense_forward(
                y, x, weight, bias, n_rows, layer.n_in, layer.n_out,
                layer.in_stride, layer.out_stride, layer.activation,
            )
        elif layer.kind == SKBN_BATCH_NORM:
            saved = plan.saved + layer.saved * plan.n_virtual
            statistics = plan.scratch if update_statistics else NULL
            start = 0
            while start < n_rows:
                stop = batch_stop(start, n_rows, layer.virtual_batch_size, 2)
                weight_seen = batch_norm_forward(
                    y + start * layer.out_stride, saved, statistics, x + start * layer.out_stride,
                    weights + start if weights != NULL else NULL,
                    weight, bias, stop - start, layer.n_out, layer.out_stride,
                    layer.epsilon, layer.activation,
                )
                if update_statistics and weight_seen > 0:
                    update_moving_statistics(
                        plan.state + layer.state, statistics, layer.out_stride, layer.momentum
                    )
                saved += 3 * layer.out_stride
                start = stop
        elif layer.kind == SKBN_DROPOUT:
            dropout_apply(
                y, x, n_rows, layer.n_out, layer.out_stride, layer.rate, plan.key, step, <uint32_t> index
            )
        elif layer.kind == SKBN_ELEMENTWISE:
            elementwise_forward(y, x, n_rows, layer.n_out, layer.out_stride, layer.activation)


cdef double backward(
    Plan* plan, const floating* params, floating* grads,
    const floating* activations, floating* deltas,
    const Rows* X, const Py_ssize_t* rows, const double* weights,
    Py_ssize_t n_rows, double total, uint32_t step,
) noexcept nogil:
    """Write the gradient of every tensor, given the loss's in the last delta; return the penalty.

    ``total`` is the weight of all rows.
    """
    cdef const LayerRecord* layer
    cdef const floating* x
    cdef const floating* y
    cdef const floating* weight
    cdef floating* dy
    cdef floating* dx
    cdef const double* saved
    cdef double* dgamma = plan.scratch + 2 * plan.widest
    cdef double* dbeta = plan.scratch + 3 * plan.widest
    cdef double squares = 0
    cdef bint is_long = n_rows > plan.rows_per_call
    cdef Py_ssize_t index, start, stop, j
    for index in range(plan.n_layers - 1, -1, -1):
        if is_long and handlers_raise():
            plan.is_stopped = True
            return 0
        layer = &plan.layers[index]
        x = activations + layer.input * plan.capacity
        dy = deltas + layer.output * plan.capacity
        dx = deltas + layer.input * plan.capacity if index > 0 else NULL
        weight = params + layer.weight if layer.weight >= 0 else NULL
        y = activations + layer.output * plan.capacity
        if layer.kind == SKBN_DENSE:
            if index == 0 and meets_compressed(plan, X):
                compressed_dense_backward(
                    grads + layer.weight, grads + layer.bias if layer.train_bias else NULL,
                    dy, y, X, rows, weights, n_rows, layer.out_stride, layer.activation,
                )
            else:
                dense_backward(
                    dx, grads + layer.weight, grads + layer.bias if layer.train_bias else NULL,
                    deltas + plan.capacity * plan.row_size,
                    dy, y, x, weight, n_rows, layer.n_in, layer.n_out,
                    layer.in_stride, layer.out_stride, layer.activation,
                )
            if plan.alpha != 0:
                squares += add_penalty(
                    grads + layer.weight, weight, (layer.n_in * layer.out_stride + 7) // 8 * 8,
                    <floating> (plan.alpha / total),
                )
        elif layer.kind == SKBN_BATCH_NORM:
            activation_backward(dy, y, layer.activation, n_rows, layer.out_stride)
            saved = plan.saved + layer.saved * plan.n_virtual
            memset(dgamma, 0, layer.out_stride * sizeof(double))
            memset(dbeta, 0, layer.out_stride * sizeof(double))
            start = 0
            while start < n_rows:
                stop = batch_stop(start, n_rows, layer.virtual_batch_size, 2)
                batch_norm_backward(
                    dx + start * layer.out_stride if dx != NULL else NULL, dgamma, dbeta,
                    dy + start * layer.out_stride, x + start * layer.out_stride,
                    weights + start if weights != NULL else NULL, weight, saved,
                    stop - start, layer.out_stride,
                )
                saved += 3 * layer.out_stride
                start = stop
            if layer.weight >= 0:
                for j in range(layer.out_stride):
                    grads[layer.weight + j] = <floating> dgamma[j]
            if layer.bias >= 0:
                for j in range(layer.out_stride):
                    grads[layer.bias + j] = <floating> dbeta[j]
        elif layer.kind == SKBN_DROPOUT and dx != NULL:
            dropout_apply(
                dx, dy, n_rows, layer.n_out, layer.out_stride, layer.rate, plan.key, step, <uint32_t> index
            )
        elif layer.kind == SKBN_ELEMENTWISE and dx != NULL:
            elementwise_backward(dx, dy, x, n_rows, layer.out_stride, layer.activation)
    return 0.5 * plan.alpha * squares


cdef double loss_and_delta(
    const Plan* plan, const floating* raw, floating* draw, double* scores,
    const floating* targets, const double* weights, const Py_ssize_t* rows, Py_ssize_t n_rows, double rate,
) noexcept nogil:
    """Weighted sum of the rows' losses; the gradient of the mean goes to draw (NULL: not wanted)."""
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    if plan.loss == SKBN_BINARY_LOG_LOSS:
        if last.n_out == 1 and weights == NULL:
            return binary_log_loss(draw, scores, raw, targets, rows, n_rows, <floating> rate)
        return multilabel_log_loss(
            draw, scores, raw, targets, weights, rows, n_rows, last.n_out, last.out_stride, rate
        )
    if plan.loss == SKBN_CATEGORICAL_LOG_LOSS:
        return categorical_log_loss(
            draw, scores, raw, targets, weights, rows, n_rows, last.n_out, last.out_stride, rate
        )
    return error_loss(
        draw, scores, raw, targets, weights, rows, n_rows, last.n_out, last.out_stride, plan.loss, rate
    )


cdef double gradient_of_batch(
    Plan* plan, const floating* params, floating* grads, floating* activations, floating* deltas,
    const Rows* X, const floating* targets, const double* weights, const Py_ssize_t* rows, Py_ssize_t n_rows,
    double total, uint32_t step, bint update_statistics, double* scores,
) noexcept nogil:
    """Loss of one batch, summed over its rows, penalty included; its mean's gradient to grads.

    ``weights`` are those of these rows, ``total`` is their sum.
    """
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    cdef double loss
    forward(plan, params, activations, X, rows, weights, n_rows, step, update_statistics)
    if plan.is_stopped:
        return 0
    loss = loss_and_delta(
        plan, activations + last.output * plan.capacity, deltas + last.output * plan.capacity,
        scores, targets, weights, rows, n_rows, 1 / total,
    )
    return loss + backward(plan, params, grads, activations, deltas, X, rows, weights, n_rows, total, step)


cdef inline const double* gather_weights(
    double* batch_weights,      # OUT (n_rows,)
    const double* weights, const Py_ssize_t* rows, Py_ssize_t first, Py_ssize_t n_rows,
) noexcept nogil:
    """Weights of rows[first : first + n_rows], NULL where rows have none."""
    cdef Py_ssize_t i
    if weights == NULL:
        return NULL
    for i in range(n_rows):
        batch_weights[i] = weights[row_index(rows, first + i)]
    return batch_weights


cdef void train_batches(
    Plan* plan, floating* params, floating* grads, floating* memory,
    floating* activations, floating* deltas,
    const Rows* X, const floating* targets, const double* weights, const Py_ssize_t* rows, Py_ssize_t n_rows,
    Py_ssize_t* position, Py_ssize_t n_batches, OptimizerRecord* optimizer, double* sums,
) noexcept nogil:
    """Train on up to n_batches mini-batches from position on; add to the sums (see ``train``)."""
    cdef const double* batch_weights
    cdef double total, loss
    cdef Py_ssize_t _batch, start, stop
    for _batch in range(n_batches):
        start = position[0]
        if start >= n_rows:
            break
        stop = batch_stop(start, n_rows, plan.batch_size, plan.min_rows)
        position[0] = stop
        batch_weights = gather_weights(plan.batch_weights, weights, rows, start, stop - start)
        total = total_weight(batch_weights, stop - start)
        if total == 0:
            continue  # nothing in it counts
        loss = gradient_of_batch(
            plan, params, grads, activations, deltas, X, targets, batch_weights, rows + start, stop - start,
            total, <uint32_t> optimizer.t, True, sums + 2,
        )
        if plan.is_stopped:
            break
        sums[0] += loss if weights == NULL else loss * ((stop - start) / total)
        sums[1] += stop - start
        optimizer_update(params, memory, grads, plan.n_params, optimizer)


cdef floating* forward_eval(
    const Plan* plan, const floating* params, floating* here, floating* there,
    const Rows* X, const Py_ssize_t* rows, const double* weights, Py_ssize_t first, Py_ssize_t n_rows,
    Py_ssize_t n_layers,
) noexcept nogil:
    """Inference mode: rows[first : first + n_rows] of X through the first n_layers; return where the result lies."""
    cdef const LayerRecord* layer
    cdef const floating* weight
    cdef const floating* bias
    cdef const double* mean
    cdef bint compressed = meets_compressed(plan, X) and n_layers > 0
    cdef Py_ssize_t index
    if not compressed:
        gather(here, X, rows, weights, first, n_rows, plan.input_stride)
        zero_pads(here, n_rows, X.n_columns, plan.input_stride)
    for index in range(n_layers):
        layer = &plan.layers[index]
        weight = params + layer.weight if layer.weight >= 0 else NULL
        bias = params + layer.bias if layer.bias >= 0 else NULL
        if index == 0 and compressed:
            compressed_dense_forward(
                there, X, rows, weights, first, weight, bias,
                n_rows, layer.n_out, layer.out_stride, layer.activation,
            )
            here, there = there, here
        elif layer.kind == SKBN_DENSE:
            dense_forward(
                there, here, weight, bias, n_rows, layer.n_in, layer.n_out,
                layer.in_stride, layer.out_stride, layer.activation,
            )
            here, there = there, here
        elif layer.kind == SKBN_BATCH_NORM:
            mean = plan.state + layer.state + layer.out_stride * (
                SKBN_POPULATION_MEAN if plan.use_population else SKBN_MOVING_MEAN
            )
            batch_norm_forward_eval(
                here, here, weight, bias, mean, mean + layer.out_stride,
                n_rows, layer.n_out, layer.out_stride, layer.epsilon, layer.activation,
            )
        elif layer.kind == SKBN_ELEMENTWISE:
            elementwise_forward(there, here, n_rows, layer.n_out, layer.out_stride, layer.activation)
            here, there = there, here
    return here


cdef void predict_block(
    const Plan* plan, const floating* params, floating* work,
    floating* raw, double* sums,
    const Rows* X, const floating* targets, const double* weights, const Py_ssize_t* rows,
    Py_ssize_t n_rows, Py_ssize_t block,
) noexcept nogil:
    """Send one block of rows through the network; copy its raw outputs and/or take its loss and scores."""
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    cdef Py_ssize_t first = block * EVAL_ROWS, size = min(<Py_ssize_t> EVAL_ROWS, n_rows - block * EVAL_ROWS)
    cdef Py_ssize_t i
    cdef unsigned long long mode = flush_denormals()
    cdef double room[EVAL_ROWS]
    cdef const double* block_weights = gather_weights(room, weights, rows, first, size)
    cdef floating* out
    out = forward_eval(
        plan, params, work, work + min(<Py_ssize_t> EVAL_ROWS, n_rows) * plan.widest,
        X, rows, block_weights, first, size, plan.n_layers
    )
    if raw != NULL:
        for i in range(size):
            memcpy(raw + (first + i) * last.n_out, out + i * last.out_stride, last.n_out * sizeof(floating))
    if sums != NULL:
        sums += block * (2 + plan.n_scores)
        memset(sums, 0, (2 + plan.n_scores) * sizeof(double))
        sums[0] = loss_and_delta(
            plan, <const floating*> out, <floating*> NULL, sums + 2, targets, block_weights, rows + first, size, 0.0
        )
        sums[1] = total_weight(block_weights, size)
    restore_mode(mode)


cdef void predict_blocks(
    const Plan* plan, const floating* params, floating* work, Py_ssize_t work_size,
    floating* raw, double* sums,
    const Rows* X, const floating* targets, const double* weights, const Py_ssize_t* rows, Py_ssize_t n_rows,
    Py_ssize_t first, Py_ssize_t stop, int threads,
) noexcept nogil:
    """Blocks first to stop, shared out over threads; every block's bits are its own."""
    cdef Py_ssize_t block
    for block in prange(first, stop, num_threads=threads, schedule="static"):
        predict_block(
            plan, params, work + threadid() * work_size, raw, sums, X, targets, weights, rows, n_rows, block
        )


cdef double block_moments(
    const Plan* plan, const floating* params, floating* work,
    double* mean, double* square,       # OUT (stride,) of the layer
    const double* origin,               # IN  (stride,)
    const Rows* X, const double* weights, const Py_ssize_t* rows,
    Py_ssize_t n_rows, Py_ssize_t block, Py_ssize_t index,
) noexcept nogil:
    """Moments of what enters batch norm `index`, over one block of rows: mean - origin, squared deviations.

    Returns the weight of the block, which is not 0.
    """
    cdef Py_ssize_t first = block * EVAL_ROWS, size = min(<Py_ssize_t> EVAL_ROWS, n_rows - block * EVAL_ROWS)
    cdef Py_ssize_t stride = plan.layers[index].in_stride, start, columns, j
    cdef double correction[TILE]
    cdef double sums[TILE]
    cdef double room[EVAL_ROWS]
    cdef const double* block_weights = gather_weights(room, weights, rows, first, size)
    cdef double total = total_weight(block_weights, size)
    cdef unsigned long long mode = flush_denormals()
    cdef floating* out
    out = forward_eval(
        plan, params, work, work + EVAL_ROWS * plan.widest, X, rows, block_weights, first, size, index
    )
    for start in range(0, stride, 64):  # TILE
        columns = min(<Py_ssize_t> TILE, stride - start)
        tile_moments(
            mean + start, correction, square + start, <const floating*> out + start,
            block_weights, 1 / total, sums, size, columns, stride, IN_ORDER,
        )
        for j in range(columns):
            mean[start + j] = (mean[start + j] - origin[start + j]) + correction[j]
    restore_mode(mode)
    return total


cdef void group_moments(
    const Plan* plan, const floating* params, floating* work, Py_ssize_t work_size, double* parts, double* totals,
    const double* origin, const Rows* X, const double* weights, const Py_ssize_t* rows,
    Py_ssize_t n_rows, Py_ssize_t index, int threads,
) noexcept nogil:
    """Moments and weight of every block of a group of rows, shared out over threads."""
    cdef Py_ssize_t stride = plan.layers[index].in_stride, block, n_blocks = (n_rows + EVAL_ROWS - 1) // EVAL_ROWS
    for block in prange(n_blocks, num_threads=threads, schedule="static"):
        totals[block] = block_moments(
            plan, params, work + threadid() * work_size,
            parts + 2 * block * stride, parts + (2 * block + 1) * stride, origin,
            X, weights, rows, n_rows, block, index,
        )


cdef void* address(object array, char kind, Py_ssize_t size, bint writable) except NULL:
    """Data of a contiguous array that has at least this many elements of this kind ('f', 'd', ...)."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
    cdef bint fits = (
        buffer.format[0] == kind and buffer.len >= size * buffer.itemsize
        and (kind != b"T" or buffer.itemsize == sizeof(OptimizerRecord))
        and <size_t> buffer.buf % min(buffer.itemsize, <Py_ssize_t> 8) == 0
    )
    PyBuffer_Release(&buffer)  # the caller holds the array
    if not fits:
        raise ValueError(
            f"Expected an aligned array of type {chr(kind)!r} with {size} elements or more, got "
            f"{array.dtype.char!r} with shape {array.shape}."
        )
    return buffer.buf


cdef Rows rows_of(object X, char kind, Py_ssize_t n_columns) except *:
    """Describe the rows of a two-dimensional array of any strides, or of a CSR matrix of sound structure."""
    cdef Py_buffer buffer
    cdef Rows rows
    cdef bint fits
    memset(&rows, 0, sizeof(Rows))
    rows.n_columns = n_columns
    if not PyObject_CheckBuffer(X):
        if X.format != "csr" or X.shape[1] != n_columns or X.indptr.dtype not in (np.int32, np.int64):
            raise ValueError(
                f"Expected CSR rows of {n_columns} numbers, got {X.format} with shape {X.shape} and indices of "
                f"type {X.indptr.dtype}."
            )
        rows.is_wide = X.indptr.dtype == np.int64
        index_kind = ord(X.indptr.dtype.char)
        rows.starts = address(X.indptr, index_kind, X.shape[0] + 1, False)
        rows.columns = address(X.indices, index_kind, X.nnz, False)
        rows.data = address(X.data, kind, X.nnz, False)
        return rows
    PyObject_GetBuffer(X, &buffer, PyBUF_STRIDED_RO | PyBUF_FORMAT)
    fits = (
        buffer.ndim == 2 and buffer.format[0] == kind and buffer.shape[1] == n_columns
        and <size_t> buffer.buf % buffer.itemsize == 0
        and buffer.strides[0] % buffer.itemsize == 0 and buffer.strides[1] % buffer.itemsize == 0
    )
    if fits:
        rows.data = buffer.buf
        rows.row_stride = buffer.strides[0] // buffer.itemsize
        rows.column_stride = buffer.strides[1] // buffer.itemsize
    PyBuffer_Release(&buffer)
    if not fits:
        raise ValueError(
            f"Expected aligned rows of {n_columns} numbers of type {chr(kind)!r}, got "
            f"{X.dtype.char!r} with shape {X.shape}."
        )
    return rows


cdef const double* weights_of(object weights, Py_ssize_t n_rows) except? NULL:
    """Data of the weights of rows; NULL where there are none."""
    if weights is None:
        return NULL
    return <const double*> address(weights, b"d", n_rows, False)


cdef class CPUExecutor:
    """Walk the layer table in compiled code.

    The interface is that of :class:`skbn.backends.reference.ReferenceExecutor`.

    Parameters
    ----------
    network : Network
        Table and vectors; training changes ``params`` and ``state`` in place.
    loss_kind : LossKind or None
        Loss over the raw outputs; None where nothing is trained or evaluated.
    alpha : float
        L2 penalty on dense weights.
    batch_size : int
        Rows in a mini-batch.
    dropout_key : tuple of two int
        Key of the dropout generator.
    """

    cdef Plan plan
    cdef bint is_double, lacks_input
    cdef char kind              # of the network's type: 'f' or 'd'
    cdef Py_ssize_t n_features, n_outputs, n_batches_per_call
    cdef void* params
    cdef void* grads
    cdef void* activations
    cdef void* deltas
    cdef object network, dtype, owners, train_owners

    def __init__(self, network, *, loss_kind=None, double alpha=0.0, Py_ssize_t batch_size=1, dropout_key=(0, 0)):
        table = network.table
        cdef const LayerRecord[::1] layers = table
        cdef Plan* plan = &self.plan
        self.network = network
        self.dtype = network.dtype
        self.is_double = self.dtype == np.float64
        if not self.is_double and self.dtype != np.float32:
            raise ValueError(f"The CPU executor computes in float32 and float64, not in {self.dtype}.")
        self.kind = b"d" if self.is_double else b"f"
        self.n_features, self.n_outputs = network.n_features, network.n_outputs
        plan.row_size = network.row_size
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
        for index in range(layers.shape[0]):
            if layers[index].kind not in (SKBN_DENSE, SKBN_BATCH_NORM, SKBN_DROPOUT, SKBN_ELEMENTWISE):
                raise ValueError(f"The CPU executor does not know layers of kind {layers[index].kind}.")
            if layers[index].virtual_batch_size < 0:
                raise ValueError(f"Virtual batches of {layers[index].virtual_batch_size} rows are not possible.")
        plan.layers = &layers[0]
        plan.n_layers = layers.shape[0]
        plan.n_params = network.n_params
        plan.batch_size = batch_size
        plan.min_rows = network.min_rows
        plan.capacity = batch_size + plan.min_rows - 1
        plan.n_virtual = 1
        plan.input_stride = layers[0].in_stride
        plan.widest = layers[0].in_stride
        plan.largest = 0
        for index in range(plan.n_layers):
            plan.widest = max(plan.widest, layers[index].out_stride)
            if layers[index].kind == SKBN_DENSE:
                plan.largest = max(plan.largest, layers[index].n_out * layers[index].in_stride)
            if layers[index].virtual_batch_size:
                plan.n_virtual = max(plan.n_virtual, plan.capacity // layers[index].virtual_batch_size + 1)
        plan.loss = 0 if loss_kind is None else loss_kind
        n_out = layers[plan.n_layers - 1].n_out
        plan.n_scores = 1 if loss_kind in (SKBN_BINARY_LOG_LOSS, SKBN_CATEGORICAL_LOG_LOSS) else n_out
        plan.target_size = 1 if loss_kind == SKBN_CATEGORICAL_LOG_LOSS else n_out
        plan.alpha = alpha
        plan.key[0], plan.key[1] = dropout_key
        self.params = address(network.params, self.kind, network.n_params, True)
        plan.state = <double*> address(network.state, b"d", network.n_state, True)
        self.owners = (table, network.params, network.state)
        self.train_owners = None
        # A step costs 6 multiplications and additions a parameter and row, and some overhead.
        seconds_per_row = (6.0 * plan.n_params + 100.0 * plan.row_size) / 1e10
        plan.rows_per_call = max(1, int(SECONDS_PER_CALL / seconds_per_row))
        self.n_batches_per_call = max(1, int(SECONDS_PER_CALL / (batch_size * seconds_per_row + 1e-6)))

    def __enter__(self):
        single_threaded_blas().__enter__()
        return self

    def __exit__(self, *exception):
        single_threaded_blas().__exit__(*exception)

    cdef allocate(self, bint compressed):
        """Make the buffers that training needs, when it first needs them.

        The input comes first in them. Nobody takes a gradient of it, and where rows are compressed nobody gathers it:
        the addresses then begin in front of what is allocated.
        """
        cdef Plan* plan = &self.plan
        cdef Py_ssize_t input_size = plan.capacity * plan.input_stride, size = plan.capacity * plan.row_size
        cdef Py_ssize_t input_bytes = input_size * <Py_ssize_t> (sizeof(double) if self.is_double else sizeof(float))
        if self.train_owners is not None and (compressed or not self.lacks_input):
            return
        self.lacks_input = compressed
        activations = aligned_zeros(size - (input_size if compressed else 0), self.dtype)
        # Behind the deltas: room for transposed weights.
        deltas = aligned_zeros(size - input_size + plan.largest, self.dtype)
        grads = aligned_zeros(plan.n_params, self.dtype)
        saved = aligned_zeros(max(1, plan.n_virtual * self.network.saved_size), np.float64)
        scratch = aligned_zeros(4 * plan.widest, np.float64)
        weights = aligned_zeros(plan.capacity, np.float64)
        self.activations = <char*> address(activations, self.kind, 0, True) - (input_bytes if compressed else 0)
        self.deltas = <char*> address(deltas, self.kind, 0, True) - input_bytes
        self.grads = address(grads, self.kind, 0, True)
        plan.saved = <double*> address(saved, b"d", 0, True)
        plan.scratch = <double*> address(scratch, b"d", 0, True)
        plan.batch_weights = <double*> address(weights, b"d", 0, True)
        self.train_owners = (activations, deltas, grads, saved, scratch, weights)

    cdef check_loss(self):
        """Refuse to train or evaluate without a loss."""
        if self.plan.loss == 0:
            raise ValueError("This executor was made without a loss.")

    cdef raise_what_was_raised(self):
        """Raise what stopped a call."""
        if self.plan.is_stopped:
            self.plan.is_stopped = False
            raise _raised.pop()

    def new_sums(self):
        """Return zeros for what ``train`` adds up: loss, rows, scores."""
        return np.zeros(2 + self.plan.n_scores)

    def train(self, X, targets, weights, rows, Py_ssize_t start, optimizer, memory, sums):
        """Train on mini-batches of X[rows] from position start on, for as long as one call may take.

        Adds to ``sums`` the loss of the mini-batches times their rows, these rows, and the scores; returns the next
        position. Mini-batches without weight are passed over.
        """
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef Py_ssize_t n_rows = rows.shape[0], position = start
        cdef void* y = address(targets, self.kind, X.shape[0] * plan.target_size, False)
        cdef const double* w = weights_of(weights, X.shape[0])
        cdef const Py_ssize_t* index = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        cdef OptimizerRecord* record = <OptimizerRecord*> address(optimizer, b"T", 1, True)
        cdef void* m = address(memory, self.kind, optimizer_vectors(record.kind) * plan.n_params, True)
        cdef double* totals = <double*> address(sums, b"d", 2 + plan.n_scores, True)
        cdef unsigned long long mode
        self.check_loss()
        self.allocate(meets_compressed(plan, &source))
        with nogil:
            mode = flush_denormals()
            if self.is_double:
                train_batches(
                    plan, <double*> self.params, <double*> self.grads, <double*> m,
                    <double*> self.activations, <double*> self.deltas, &source, <double*> y, w,
                    index, n_rows, &position, self.n_batches_per_call, record, totals,
                )
            else:
                train_batches(
                    plan, <float*> self.params, <float*> self.grads, <float*> m,
                    <float*> self.activations, <float*> self.deltas, &source, <float*> y, w,
                    index, n_rows, &position, self.n_batches_per_call, record, totals,
                )
            restore_mode(mode)
        self.raise_what_was_raised()
        return position

    def loss_and_gradient(
        self, X, targets, weights, rows, grads, uint32_t step=0, *, bint update_statistics=False, sums=None
    ):
        """Return the mean loss with penalty over one batch; write its gradient into ``grads``.

        The batch's statistics enter the moving ones if asked; to ``sums`` is added what ``train`` adds.
        """
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef Py_ssize_t n_rows = rows.shape[0]
        cdef void* y = address(targets, self.kind, X.shape[0] * plan.target_size, False)
        cdef const double* w = weights_of(weights, X.shape[0])
        cdef const Py_ssize_t* index = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        cdef void* g = address(grads, self.kind, plan.n_params, True)
        sums = self.new_sums() if sums is None else sums
        cdef double* totals = <double*> address(sums, b"d", 2 + plan.n_scores, True)
        cdef unsigned long long mode
        cdef double loss, total
        if n_rows > plan.capacity:
            raise ValueError(f"{n_rows} rows do not fit buffers for {plan.capacity}.")
        self.check_loss()
        self.allocate(meets_compressed(plan, &source))
        with nogil:
            mode = flush_denormals()
            w = gather_weights(plan.batch_weights, w, index, 0, n_rows)
            total = total_weight(w, n_rows)
            if self.is_double:
                loss = gradient_of_batch(
                    plan, <double*> self.params, <double*> g, <double*> self.activations,
                    <double*> self.deltas, &source, <double*> y, w, index, n_rows, total, step,
                    update_statistics, totals + 2,
                )
            else:
                loss = gradient_of_batch(
                    plan, <float*> self.params, <float*> g, <float*> self.activations,
                    <float*> self.deltas, &source, <float*> y, w, index, n_rows, total, step,
                    update_statistics, totals + 2,
                )
            restore_mode(mode)
        self.raise_what_was_raised()
        totals[0] += loss / total * n_rows
        totals[1] += n_rows
        return loss / total

    cdef double work_of_row(self, X):
        """Multiplications and numbers written for one row at prediction."""
        cdef const LayerRecord* first = &self.plan.layers[0]
        cdef double work = self.plan.n_params + self.plan.row_size
        if not PyObject_CheckBuffer(X) and first.kind == SKBN_DENSE:  # only what is stored is multiplied
            work -= (first.n_in - <double> X.nnz / max(1, X.shape[0])) * first.out_stride + first.in_stride
        return work

    cdef Py_ssize_t blocks_per_call(self, X):
        """Blocks of rows that one call may take: it ends within about SECONDS_PER_CALL."""
        cdef double seconds_per_block = 2.0 * EVAL_ROWS * self.work_of_row(X) / 1e10
        return max(1, min(<Py_ssize_t> GROUP, <Py_ssize_t> (SECONDS_PER_CALL / seconds_per_block)))

    cdef int threads_for(self, X, Py_ssize_t n_rows):
        """One thread where a parallel region would cost more than it saves."""
        n_blocks = min((n_rows + EVAL_ROWS - 1) // EVAL_ROWS, self.blocks_per_call(X))
        work = n_rows * self.work_of_row(X)
        return 1 if n_blocks == 1 or work < PARALLEL_WORK else min(n_threads(), n_blocks)

    cdef run_blocks(self, X, targets, weights, rows, Py_ssize_t n_rows, raw, parts):
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef const Py_ssize_t* index = NULL
        cdef const double* w = weights_of(weights, X.shape[0])
        cdef double* sums = NULL
        cdef void* y = NULL
        cdef void* out = NULL
        cdef void* work
        cdef int threads = self.threads_for(X, n_rows)
        cdef Py_ssize_t work_size = 2 * min(<Py_ssize_t> EVAL_ROWS, n_rows) * plan.widest, first, stop
        cdef Py_ssize_t n_blocks = (n_rows + EVAL_ROWS - 1) // EVAL_ROWS
        plan.use_population = self.network.use_population
        if rows is not None:
            index = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        if raw is not None:
            out = address(raw, self.kind, n_rows * self.n_outputs, True)
        if parts is not None:
            y = address(targets, self.kind, X.shape[0] * plan.target_size, False)
            sums = <double*> address(parts, b"d", 0, True)
        buffers = aligned_zeros(threads * work_size, self.dtype)
        work = address(buffers, self.kind, 0, True)
        for first in range(0, n_blocks, self.blocks_per_call(X)):  # Ctrl-C works between calls
            stop = min(first + self.blocks_per_call(X), n_blocks)
            with nogil:
                if self.is_double:
                    predict_blocks(
                        plan, <double*> self.params, <double*> work, work_size, <double*> out, sums,
                        &source, <double*> y, w, index, n_rows, first, stop, threads,
                    )
                else:
                    predict_blocks(
                        plan, <float*> self.params, <float*> work, work_size, <float*> out, sums,
                        &source, <float*> y, w, index, n_rows, first, stop, threads,
                    )

    def predict(self, X):
        """Return the raw outputs."""
        raw = np.empty((X.shape[0], self.n_outputs), dtype=self.dtype)
        self.run_blocks(X, None, None, None, X.shape[0], raw, None)
        return raw

    def evaluate(self, X, targets, weights, rows):
        """Return the weighted sum of the rows' losses, without penalty, the weight of all rows, and the scores."""
        self.check_loss()
        n_rows = rows.shape[0]
        parts = np.empty(((n_rows + EVAL_ROWS - 1) // EVAL_ROWS, 2 + self.plan.n_scores))
        self.run_blocks(X, targets, weights, rows, n_rows, None, parts)
        return parts.sum(axis=0)

    def update_population_statistics(self, X, weights, rows):
        """Measure every batch norm over all rows, each behind the final statistics of those before."""
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        if weights is not None:
            rows = rows[weights[rows] > 0]  # so every block has weight
        cdef const double* w = weights_of(weights, X.shape[0])
        cdef Py_ssize_t n_rows = rows.shape[0], done, size, stride, rows_per_call = EVAL_ROWS * self.blocks_per_call(X)
        cdef const Py_ssize_t* index = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        cdef int threads = self.threads_for(X, n_rows), layer
        cdef Py_ssize_t work_size = 2 * EVAL_ROWS * plan.widest
        cdef double* mean
        cdef double* square
        cdef double* origin
        cdef double* moments
        cdef double block_totals[GROUP]
        cdef double seen
        cdef void* work
        buffers = aligned_zeros(threads * work_size, self.dtype)
        parts = aligned_zeros(2 * GROUP * plan.widest, np.float64)
        totals = aligned_zeros(3 * plan.widest, np.float64)
        work = address(buffers, self.kind, 0, True)
        moments = <double*> address(parts, b"d", 0, True)
        mean = <double*> address(totals, b"d", 0, True)
        self.network.use_population = True
        plan.use_population = True
        for layer in self.network.batch_norm_indices:
            stride = plan.layers[layer].out_stride
            square = mean + stride
            origin = square + stride
            totals[:] = 0
            # The mean of the first block is near all others, so that differences keep their digits.
            if self.is_double:
                block_moments(
                    plan, <double*> self.params, <double*> work, moments, moments + stride, origin,
                    &source, w, index, n_rows, 0, layer,
                )
            else:
                block_moments(
                    plan, <float*> self.params, <float*> work, moments, moments + stride, origin,
                    &source, w, index, n_rows, 0, layer,
                )
            totals[2 * stride : 3 * stride] = parts[:stride]
            seen = 0
            for done in range(0, n_rows, rows_per_call):  # Ctrl-C works between calls
                size = min(rows_per_call, n_rows - done)
                with nogil:
                    if self.is_double:
                        group_moments(
                            plan, <double*> self.params, <double*> work, work_size, moments, block_totals,
                            origin, &source, w, index + done, size, layer, threads,
                        )
                    else:
                        group_moments(
                            plan, <float*> self.params, <float*> work, work_size, moments, block_totals,
                            origin, &source, w, index + done, size, layer, threads,
                        )
                    seen = merge_moments(
                        mean, square, moments, block_totals, seen, (size + EVAL_ROWS - 1) // EVAL_ROWS,
                        stride, 2 * stride, stride, 1,
                    )
            totals[:stride] += totals[2 * stride : 3 * stride]
            totals[stride : 2 * stride] /= seen
            start = plan.layers[layer].state + SKBN_POPULATION_MEAN * stride
            self.network.state[start : start + 2 * stride] = totals[: 2 * stride]
