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
    PyObject_GetBuffer,
)
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

import numpy as np

from skbn.backends.cpu.activations cimport activation_backward, zero_pads
from skbn.backends.cpu.batch_norm cimport (
    TILE,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_forward_eval,
    tile_moments,
    update_moving_statistics,
)
from skbn.backends.cpu.dense cimport add_penalty, dense_backward, dense_forward
from skbn.backends.cpu.dropout cimport dropout_apply
from skbn.backends.cpu.floating_point cimport flush_denormals, restore_mode
from skbn.backends.cpu.losses cimport binary_log_loss, categorical_log_loss
from skbn.backends.cpu.optimizers cimport optimizer_update, optimizer_vectors
from skbn.backends.records cimport (
    SKBN_BATCH_NORM,
    SKBN_BINARY_LOG_LOSS,
    SKBN_DENSE,
    SKBN_DROPOUT,
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

# A call into the compiled walk ends within about this time, so that Ctrl-C works.
cdef double SECONDS_PER_CALL = 0.05


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
    Py_ssize_t input_stride
    Py_ssize_t widest           # largest stride of the network
    int loss
    double alpha
    uint32_t key[2]
    double* state
    double* saved
    double* scratch             # (4, widest): statistics of a batch; sums for gamma and beta
    bint use_population


cdef struct Rows:
    # Rows of a two-dimensional array of any strides, in elements.
    const void* data
    Py_ssize_t n_columns
    Py_ssize_t row_stride
    Py_ssize_t column_stride


cdef inline Py_ssize_t batch_stop(
    Py_ssize_t start, Py_ssize_t n_rows, Py_ssize_t size, Py_ssize_t min_rows,
) noexcept nogil:
    """End of the batch that begins at start; a rest shorter than min_rows joins it."""
    return n_rows if size == 0 or n_rows - start < size + min_rows else start + size


cdef void gather(
    floating* x,                # OUT (n_rows, n_columns) by stride
    const Rows* source, const Py_ssize_t* rows, Py_ssize_t first, Py_ssize_t n_rows, Py_ssize_t stride,
) noexcept nogil:
    """Copy rows[first : first + n_rows] of the source (NULL: its rows in order)."""
    cdef Py_ssize_t i, j, row
    cdef const floating* data = <const floating*> source.data
    if source.column_stride == 1 and source.n_columns >= 16:  # a call pays for a cache line or more
        for i in range(n_rows):
            row = rows[first + i] if rows != NULL else first + i
            memcpy(x + i * stride, data + row * source.row_stride, source.n_columns * sizeof(floating))
    else:
        for j in range(source.n_columns):
            for i in range(n_rows):
                row = rows[first + i] if rows != NULL else first + i
                x[i * stride + j] = data[row * source.row_stride + j * source.column_stride]


cdef void forward(
    const Plan* plan, const floating* params, floating* activations,
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
    cdef Py_ssize_t index, start, stop
    for index in range(plan.n_layers):
        layer = &plan.layers[index]
        x = activations + layer.input * plan.capacity
        y = activations + layer.output * plan.capacity
        weight = params + layer.weight if layer.weight >= 0 else NULL
        bias = params + layer.bias if layer.bias >= 0 else NULL
        if layer.kind == SKBN_DENSE:
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
                batch_norm_forward(
                    y + start * layer.out_stride, saved, statistics, x + start * layer.out_stride,
                    weight, bias, stop - start, layer.n_out, layer.out_stride,
                    layer.epsilon, layer.activation,
                )
                if update_statistics:
                    update_moving_statistics(
                        plan.state + layer.state, statistics, layer.out_stride, layer.momentum
                    )
                saved += 3 * layer.out_stride
                start = stop
        elif layer.kind == SKBN_DROPOUT:
            dropout_apply(
                y, x, n_rows, layer.n_out, layer.out_stride, layer.rate, plan.key, step, <uint32_t> index
            )


cdef double backward(
    const Plan* plan, const floating* params, floating* grads,
    const floating* activations, floating* deltas, Py_ssize_t n_rows, uint32_t step,
) noexcept nogil:
    """Write the gradient of every tensor, given the loss's in the last delta; return the penalty."""
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
    cdef Py_ssize_t index, start, stop, j
    for index in range(plan.n_layers - 1, -1, -1):
        layer = &plan.layers[index]
        x = activations + layer.input * plan.capacity
        dy = deltas + layer.output * plan.capacity
        dx = deltas + layer.input * plan.capacity if index > 0 else NULL
        weight = params + layer.weight if layer.weight >= 0 else NULL
        y = activations + layer.output * plan.capacity
        if layer.kind == SKBN_DENSE:
            dense_backward(
                dx, grads + layer.weight, grads + layer.bias if layer.train_bias else NULL,
                deltas + plan.capacity * plan.row_size,
                dy, y, x, weight, n_rows, layer.n_in, layer.n_out,
                layer.in_stride, layer.out_stride, layer.activation,
            )
            if plan.alpha != 0:
                squares += add_penalty(
                    grads + layer.weight, weight, (layer.n_in * layer.out_stride + 7) // 8 * 8,
                    <floating> (plan.alpha / n_rows),
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
                    dy + start * layer.out_stride, x + start * layer.out_stride, weight, saved,
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
    return 0.5 * plan.alpha * squares


cdef double loss_and_delta(
    const Plan* plan, const floating* raw, floating* draw, Py_ssize_t* n_correct,
    const floating* targets, const Py_ssize_t* rows, Py_ssize_t n_rows, double rate,
) noexcept nogil:
    """Sum of the rows' losses; the gradient of the mean goes to draw (NULL: not wanted)."""
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    if plan.loss == SKBN_BINARY_LOG_LOSS:
        return binary_log_loss(draw, n_correct, raw, targets, rows, n_rows, <floating> rate)
    return categorical_log_loss(
        draw, n_correct, raw, targets, rows, n_rows, last.n_out, last.out_stride, <floating> rate
    )


cdef double gradient_of_batch(
    const Plan* plan, const floating* params, floating* grads, floating* activations, floating* deltas,
    const Rows* X, const floating* targets, const Py_ssize_t* rows, Py_ssize_t n_rows,
    uint32_t step, bint update_statistics, Py_ssize_t* n_correct,
) noexcept nogil:
    """Loss of one batch, summed over its rows, penalty included; its mean's gradient to grads."""
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    cdef double loss
    gather(activations, X, rows, 0, n_rows, plan.input_stride)
    forward(plan, params, activations, n_rows, step, update_statistics)
    loss = loss_and_delta(
        plan, activations + last.output * plan.capacity, deltas + last.output * plan.capacity,
        n_correct, targets, rows, n_rows, 1.0 / n_rows,
    )
    return loss + backward(plan, params, grads, activations, deltas, n_rows, step)


cdef double train_batches(
    const Plan* plan, floating* params, floating* grads, floating* memory,
    floating* activations, floating* deltas,
    const Rows* X, const floating* targets, const Py_ssize_t* rows, Py_ssize_t n_rows,
    Py_ssize_t* position, Py_ssize_t n_batches, OptimizerRecord* optimizer, Py_ssize_t* n_correct,
) noexcept nogil:
    """Train on up to n_batches mini-batches from position on; return the loss summed over their rows."""
    cdef double total = 0
    cdef Py_ssize_t _batch, start, stop
    for _batch in range(n_batches):
        start = position[0]
        if start >= n_rows:
            break
        stop = batch_stop(start, n_rows, plan.batch_size, plan.min_rows)
        total += gradient_of_batch(
            plan, params, grads, activations, deltas, X, targets, rows + start, stop - start,
            <uint32_t> optimizer.t, True, n_correct,
        )
        optimizer_update(params, memory, grads, plan.n_params, optimizer)
        position[0] = stop
    return total


cdef floating* forward_eval(
    const Plan* plan, const floating* params, floating* here, floating* there,
    Py_ssize_t n_layers, Py_ssize_t n_rows,
) noexcept nogil:
    """Inference mode through the first n_layers, from the input in `here`; return where the result lies."""
    cdef const LayerRecord* layer
    cdef const floating* weight
    cdef const floating* bias
    cdef const double* mean
    cdef Py_ssize_t index
    for index in range(n_layers):
        layer = &plan.layers[index]
        weight = params + layer.weight if layer.weight >= 0 else NULL
        bias = params + layer.bias if layer.bias >= 0 else NULL
        if layer.kind == SKBN_DENSE:
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
    return here


cdef void predict_block(
    const Plan* plan, const floating* params, floating* work,
    floating* raw, double* loss, Py_ssize_t* n_correct,
    const Rows* X, const floating* targets, const Py_ssize_t* rows, Py_ssize_t n_rows, Py_ssize_t block,
) noexcept nogil:
    """Send one block of rows through the network; copy its raw outputs and/or take its loss."""
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    cdef Py_ssize_t first = block * EVAL_ROWS, size = min(<Py_ssize_t> EVAL_ROWS, n_rows - block * EVAL_ROWS)
    cdef Py_ssize_t i
    cdef unsigned long long mode = flush_denormals()
    cdef floating* out
    gather(work, X, rows, first, size, plan.input_stride)
    zero_pads(work, size, X.n_columns, plan.input_stride)
    out = forward_eval(plan, params, work, work + EVAL_ROWS * plan.widest, plan.n_layers, size)
    if raw != NULL:
        for i in range(size):
            memcpy(raw + (first + i) * last.n_out, out + i * last.out_stride, last.n_out * sizeof(floating))
    if loss != NULL:
        n_correct[block] = 0
        loss[block] = loss_and_delta(
            plan, <const floating*> out, <floating*> NULL, n_correct + block,
            targets, rows + first, size, 0.0,
        )
    restore_mode(mode)


cdef void predict_blocks(
    const Plan* plan, const floating* params, floating* work, Py_ssize_t work_size,
    floating* raw, double* loss, Py_ssize_t* n_correct,
    const Rows* X, const floating* targets, const Py_ssize_t* rows, Py_ssize_t n_rows,
    Py_ssize_t first, Py_ssize_t stop, int threads,
) noexcept nogil:
    """Blocks first to stop, shared out over threads; every block's bits are its own."""
    cdef Py_ssize_t block
    for block in prange(first, stop, num_threads=threads, schedule="static"):
        predict_block(
            plan, params, work + threadid() * work_size, raw, loss, n_correct, X, targets, rows, n_rows, block
        )


cdef void block_moments(
    const Plan* plan, const floating* params, floating* work,
    double* mean, double* square,       # OUT (stride,) of the layer
    const double* origin,               # IN  (stride,)
    const Rows* X, const Py_ssize_t* rows, Py_ssize_t n_rows, Py_ssize_t block, Py_ssize_t index,
) noexcept nogil:
    """Moments of what enters batch norm `index`, over one block of rows: mean - origin, squared deviations."""
    cdef Py_ssize_t first = block * EVAL_ROWS, size = min(<Py_ssize_t> EVAL_ROWS, n_rows - block * EVAL_ROWS)
    cdef Py_ssize_t stride = plan.layers[index].in_stride, start, columns, j
    cdef double correction[TILE]
    cdef unsigned long long mode = flush_denormals()
    cdef floating* out
    gather(work, X, rows, first, size, plan.input_stride)
    zero_pads(work, size, X.n_columns, plan.input_stride)
    out = forward_eval(plan, params, work, work + EVAL_ROWS * plan.widest, index, size)
    for start in range(0, stride, 64):  # TILE
        columns = min(<Py_ssize_t> TILE, stride - start)
        tile_moments(
            mean + start, correction, square + start, <const floating*> out + start, size, columns, stride
        )
        for j in range(columns):
            mean[start + j] = (mean[start + j] - origin[start + j]) + correction[j]
    restore_mode(mode)


cdef void merge_moments(
    double* mean, double* square,       # IN/OUT (stride,): of the rows seen so far
    const double* parts,                # IN  mean and sum of squared deviations, block by block
    Py_ssize_t seen, Py_ssize_t n_rows, Py_ssize_t stride,
) noexcept nogil:
    """Take the blocks of n_rows further rows into mean and sum of squared deviations, in order (Chan et al., 1979)."""
    cdef Py_ssize_t start, size, j
    cdef double delta, share
    for start in range(0, n_rows, 256):  # EVAL_ROWS
        size = min(<Py_ssize_t> EVAL_ROWS, n_rows - start)
        share = <double> size / (seen + start + size)
        for j in range(stride):
            delta = parts[j] - mean[j]
            mean[j] = mean[j] + delta * share
            square[j] = square[j] + (parts[stride + j] + delta * delta * share * (seen + start))
        parts += 2 * stride


cdef void group_moments(
    const Plan* plan, const floating* params, floating* work, Py_ssize_t work_size, double* parts,
    const double* origin, const Rows* X, const Py_ssize_t* rows, Py_ssize_t n_rows, Py_ssize_t index, int threads,
) noexcept nogil:
    """Moments of every block of a group of rows, shared out over threads."""
    cdef Py_ssize_t stride = plan.layers[index].in_stride, block, n_blocks = (n_rows + EVAL_ROWS - 1) // EVAL_ROWS
    for block in prange(n_blocks, num_threads=threads, schedule="static"):
        block_moments(
            plan, params, work + threadid() * work_size,
            parts + 2 * block * stride, parts + (2 * block + 1) * stride, origin,
            X, rows, n_rows, block, index,
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
    """Describe the rows of a two-dimensional array of any strides."""
    cdef Py_buffer buffer
    cdef Rows rows
    PyObject_GetBuffer(X, &buffer, PyBUF_STRIDED_RO | PyBUF_FORMAT)
    cdef bint fits = (
        buffer.ndim == 2 and buffer.format[0] == kind and buffer.shape[1] == n_columns
        and <size_t> buffer.buf % buffer.itemsize == 0
        and buffer.strides[0] % buffer.itemsize == 0 and buffer.strides[1] % buffer.itemsize == 0
    )
    if fits:
        rows.data = buffer.buf
        rows.n_columns = n_columns
        rows.row_stride = buffer.strides[0] // buffer.itemsize
        rows.column_stride = buffer.strides[1] // buffer.itemsize
    PyBuffer_Release(&buffer)
    if not fits:
        raise ValueError(
            f"Expected aligned rows of {n_columns} numbers of type {chr(kind)!r}, got "
            f"{X.dtype.char!r} with shape {X.shape}."
        )
    return rows


cdef class CPUExecutor:
    """Walk the layer table in compiled code.

    The interface is that of :class:`skbn.backends.reference.ReferenceExecutor`.

    Parameters
    ----------
    network : Network
        Table and vectors; training changes ``params`` and ``state`` in place.
    loss_kind : LossKind
        Loss over the raw outputs.
    alpha : float
        L2 penalty on dense weights.
    batch_size : int
        Rows in a mini-batch.
    dropout_key : tuple of two int
        Key of the dropout generator.
    """

    cdef Plan plan
    cdef bint is_double
    cdef char kind              # of the network's type: 'f' or 'd'
    cdef Py_ssize_t n_features, n_outputs, n_batches_per_call
    cdef void* params
    cdef void* grads
    cdef void* activations
    cdef void* deltas
    cdef object network, dtype, owners, train_owners

    def __init__(self, network, *, loss_kind, double alpha=0.0, Py_ssize_t batch_size=1, dropout_key=(0, 0)):
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
            if layers[index].kind not in (SKBN_DENSE, SKBN_BATCH_NORM, SKBN_DROPOUT):
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
            plan.largest = max(plan.largest, layers[index].n_out * layers[index].in_stride)
            if layers[index].virtual_batch_size:
                plan.n_virtual = max(plan.n_virtual, plan.capacity // layers[index].virtual_batch_size + 1)
        plan.loss = loss_kind
        plan.alpha = alpha
        plan.key[0], plan.key[1] = dropout_key
        self.params = address(network.params, self.kind, network.n_params, True)
        plan.state = <double*> address(network.state, b"d", network.n_state, True)
        self.owners = (table, network.params, network.state)
        self.train_owners = None
        # A step costs 6 multiplications and additions a parameter and row, and some overhead.
        seconds = batch_size * (6.0 * plan.n_params + 100.0 * plan.row_size) / 1e10 + 1e-6
        self.n_batches_per_call = max(1, int(SECONDS_PER_CALL / seconds))

    def __enter__(self):
        single_threaded_blas().__enter__()
        return self

    def __exit__(self, *exception):
        single_threaded_blas().__exit__(*exception)

    cdef allocate(self):
        """Make the buffers that training needs, when it first needs them."""
        cdef Plan* plan = &self.plan
        if self.train_owners is not None:
            return
        activations = aligned_zeros(plan.capacity * plan.row_size, self.dtype)
        # Behind the deltas: room for transposed weights.
        deltas = aligned_zeros(plan.capacity * plan.row_size + plan.largest, self.dtype)
        grads = aligned_zeros(plan.n_params, self.dtype)
        saved = aligned_zeros(max(1, plan.n_virtual * self.network.saved_size), np.float64)
        scratch = aligned_zeros(4 * plan.widest, np.float64)
        self.activations = address(activations, self.kind, 0, True)
        self.deltas = address(deltas, self.kind, 0, True)
        self.grads = address(grads, self.kind, 0, True)
        plan.saved = <double*> address(saved, b"d", 0, True)
        plan.scratch = <double*> address(scratch, b"d", 0, True)
        self.train_owners = (activations, deltas, grads, saved, scratch)

    def train(self, X, targets, rows, Py_ssize_t start, optimizer, memory):
        """Train on mini-batches of X[rows] from position start on, for as long as one call may take.

        Returns the loss summed over the rows done, how many of them were decided right, and the next position.
        """
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef Py_ssize_t n_rows = rows.shape[0], position = start, n_correct = 0
        cdef void* y = address(targets, self.kind, X.shape[0], False)
        cdef const Py_ssize_t* index = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        cdef OptimizerRecord* record = <OptimizerRecord*> address(optimizer, b"T", 1, True)
        cdef void* m = address(memory, self.kind, optimizer_vectors(record.kind) * plan.n_params, True)
        cdef unsigned long long mode
        cdef double loss
        self.allocate()
        with nogil:
            mode = flush_denormals()
            if self.is_double:
                loss = train_batches(
                    plan, <double*> self.params, <double*> self.grads, <double*> m,
                    <double*> self.activations, <double*> self.deltas, &source, <double*> y,
                    index, n_rows, &position, self.n_batches_per_call, record, &n_correct,
                )
            else:
                loss = train_batches(
                    plan, <float*> self.params, <float*> self.grads, <float*> m,
                    <float*> self.activations, <float*> self.deltas, &source, <float*> y,
                    index, n_rows, &position, self.n_batches_per_call, record, &n_correct,
                )
            restore_mode(mode)
        return loss, n_correct, position

    def loss_and_gradient(self, X, targets, rows, grads, uint32_t step=0):
        """Return the mean loss with penalty over one batch; write its gradient into ``grads``."""
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef Py_ssize_t n_rows = rows.shape[0], n_correct = 0
        cdef void* y = address(targets, self.kind, X.shape[0], False)
        cdef const Py_ssize_t* index = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        cdef void* g = address(grads, self.kind, plan.n_params, True)
        cdef unsigned long long mode
        cdef double loss
        if n_rows > plan.capacity:
            raise ValueError(f"{n_rows} rows do not fit buffers for {plan.capacity}.")
        self.allocate()
        with nogil:
            mode = flush_denormals()
            if self.is_double:
                loss = gradient_of_batch(
                    plan, <double*> self.params, <double*> g, <double*> self.activations,
                    <double*> self.deltas, &source, <double*> y, index, n_rows, step, False, &n_correct,
                )
            else:
                loss = gradient_of_batch(
                    plan, <float*> self.params, <float*> g, <float*> self.activations,
                    <float*> self.deltas, &source, <float*> y, index, n_rows, step, False, &n_correct,
                )
            restore_mode(mode)
        return loss / n_rows

    cdef Py_ssize_t blocks_per_call(self):
        """Blocks of rows that one call may take: it ends within about SECONDS_PER_CALL."""
        cdef double seconds_per_block = 2.0 * EVAL_ROWS * (self.plan.n_params + self.plan.row_size) / 1e10
        return max(1, min(<Py_ssize_t> GROUP, <Py_ssize_t> (SECONDS_PER_CALL / seconds_per_block)))

    cdef int threads_for(self, Py_ssize_t n_rows):
        """One thread where a parallel region would cost more than it saves."""
        n_blocks = (n_rows + EVAL_ROWS - 1) // EVAL_ROWS
        work = n_rows * (self.plan.n_params + self.plan.row_size)
        return 1 if n_blocks == 1 or work < PARALLEL_WORK else min(n_threads(), n_blocks)

    cdef run_blocks(self, X, targets, rows, Py_ssize_t n_rows, raw, losses, counts):
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef const Py_ssize_t* index = NULL
        cdef double* loss = NULL
        cdef Py_ssize_t* n_correct = NULL
        cdef void* y = NULL
        cdef void* out = NULL
        cdef void* work
        cdef int threads = self.threads_for(n_rows)
        cdef Py_ssize_t work_size = 2 * EVAL_ROWS * plan.widest, first, stop
        cdef Py_ssize_t n_blocks = (n_rows + EVAL_ROWS - 1) // EVAL_ROWS
        plan.use_population = self.network.use_population
        if rows is not None:
            index = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        if raw is not None:
            out = address(raw, self.kind, n_rows * self.n_outputs, True)
        if losses is not None:
            y = address(targets, self.kind, X.shape[0], False)
            loss = <double*> address(losses, b"d", 0, True)
            n_correct = <Py_ssize_t*> address(counts, INTP, 0, True)
        buffers = aligned_zeros(threads * work_size, self.dtype)
        work = address(buffers, self.kind, 0, True)
        for first in range(0, n_blocks, self.blocks_per_call()):  # Ctrl-C works between calls
            stop = min(first + self.blocks_per_call(), n_blocks)
            with nogil:
                if self.is_double:
                    predict_blocks(
                        plan, <double*> self.params, <double*> work, work_size, <double*> out, loss,
                        n_correct, &source, <double*> y, index, n_rows, first, stop, threads,
                    )
                else:
                    predict_blocks(
                        plan, <float*> self.params, <float*> work, work_size, <float*> out, loss,
                        n_correct, &source, <float*> y, index, n_rows, first, stop, threads,
                    )

    def predict(self, X):
        """Return the raw outputs."""
        raw = np.empty((X.shape[0], self.n_outputs), dtype=self.dtype)
        self.run_blocks(X, None, None, X.shape[0], raw, None, None)
        return raw

    def evaluate(self, X, targets, rows):
        """Return the mean loss, without penalty, and how many rows are decided right."""
        n_rows = rows.shape[0]
        n_blocks = (n_rows + EVAL_ROWS - 1) // EVAL_ROWS
        losses, counts = np.empty(n_blocks), np.empty(n_blocks, dtype=np.intp)
        self.run_blocks(X, targets, rows, n_rows, None, losses, counts)
        return float(losses.sum()) / n_rows, int(counts.sum())

    def update_population_statistics(self, X, rows):
        """Measure every batch norm over all rows, each behind the final statistics of those before."""
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef Py_ssize_t n_rows = rows.shape[0], seen, size, stride, rows_per_call = EVAL_ROWS * self.blocks_per_call()
        cdef const Py_ssize_t* index = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        cdef int threads = self.threads_for(n_rows), layer
        cdef Py_ssize_t work_size = 2 * EVAL_ROWS * plan.widest
        cdef double* mean
        cdef double* square
        cdef double* origin
        cdef double* moments
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
                    &source, index, n_rows, 0, layer,
                )
            else:
                block_moments(
                    plan, <float*> self.params, <float*> work, moments, moments + stride, origin,
                    &source, index, n_rows, 0, layer,
                )
            totals[2 * stride : 3 * stride] = parts[:stride]
            for seen in range(0, n_rows, rows_per_call):  # Ctrl-C works between calls
                size = min(rows_per_call, n_rows - seen)
                with nogil:
                    if self.is_double:
                        group_moments(
                            plan, <double*> self.params, <double*> work, work_size, moments,
                            origin, &source, index + seen, size, layer, threads,
                        )
                    else:
                        group_moments(
                            plan, <float*> self.params, <float*> work, work_size, moments,
                            origin, &source, index + seen, size, layer, threads,
                        )
                    merge_moments(mean, square, moments, seen, size, stride)
            totals[:stride] += totals[2 * stride : 3 * stride]
            totals[stride : 2 * stride] /= n_rows
            start = plan.layers[layer].state + SKBN_POPULATION_MEAN * stride
            self.network.state[start : start + 2 * stride] = totals[: 2 * stride]
