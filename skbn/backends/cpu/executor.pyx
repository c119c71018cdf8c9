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
from cython.parallel cimport parallel, threadid
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
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memset

from time import perf_counter

import numpy as np

from skbn.backends.cpu.activations cimport zero_pads
from skbn.backends.cpu.batch_norm cimport (
    IN_ORDER,
    TILE,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_forward_eval,
    batch_stop,
    merge_moments,
    tile_moments,
    total_weight,
)
from skbn.backends.cpu.dense cimport (
    add_penalty,
    count_gradient_tiles,
    dense_activation_backward,
    dense_backward,
    dense_forward,
)
from skbn.backends.cpu.dropout cimport dropout_apply
from skbn.backends.cpu.elementwise cimport elementwise_backward, elementwise_forward
from skbn.backends.cpu.floating_point cimport flush_denormals, restore_mode
from skbn.backends.cpu.losses cimport (
    binary_log_loss,
    categorical_log_loss,
    error_loss,
    multilabel_log_loss,
)
from skbn.backends.cpu.optimizers cimport optimizer_tiles, optimizer_update, optimizer_vectors
from skbn.backends.cpu.products cimport (
    DEPTH,
    ROWS_THAT_PACK,
    SKBN_HAS_PRODUCTS,
    SKBN_PANEL,
)
from skbn.backends.cpu.rows cimport (
    Rows,
    compressed_dense_backward,
    compressed_dense_forward,
    gather,
    row_index,
)
from skbn.backends.cpu.team cimport (
    SKBN_HAS_TEAMS,
    Team,
    Worker,
    clock,
    count_tiles,
    first_tile,
    meet,
    next_tile,
    report,
    rows_of_tile,
    workers_here,
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

from skbn.backends.cpu.threads import Pace, at_work, single_threaded_blas, team_size
from skbn.backends.memory import aligned_zeros

cdef enum:
    EVAL_ROWS = 256  # rows that go through the network together at prediction: they stay in cache
    GROUP = 128  # blocks of rows whose moments one call takes at most

cdef char INTP = ord(np.dtype(np.intp).char)

# A call into the compiled walk ends within about this time, so that Ctrl-C works. A single mini-batch that takes
# longer asks for signals between its layers.
cdef double SECONDS_PER_CALL = 0.05

_inference_pace = Pace()  # of all executors: an inference may be a single call

cdef list _raised = []  # by signal handlers, inside of a call


cdef struct Plan:
    const LayerRecord* layers
    Py_ssize_t n_layers
    Py_ssize_t n_params
    Py_ssize_t capacity         # rows that the buffers hold
    Py_ssize_t row_size         # numbers a row has in each of them
    Py_ssize_t n_virtual        # virtual batches that `saved` holds
    Py_ssize_t batch_size
    Py_ssize_t min_rows         # a shorter rest joins the batch before it
    Py_ssize_t rows_per_call    # rows that SECONDS_PER_CALL suffice to train on
    Py_ssize_t input_stride
    Py_ssize_t widest           # largest stride of the network
    Py_ssize_t target_size      # numbers a row has in the targets
    Py_ssize_t n_scores         # numbers that a loss adds to the scores
    Py_ssize_t room_size        # bytes of a worker's room
    int loss
    double alpha
    uint32_t key[2]
    double* state
    double* saved
    double* batch_weights       # (capacity,)
    double* losses              # (tiles of the loss, 1 + n_scores)
    double* squares             # one a tile of the weights
    double* norms               # one a tile of the optimizer
    char* rooms                 # one a worker
    bint use_population


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


# Stages that are shared out over rows or columns; those of dense layers and batch norms are with their kernels.


cdef void gather_together(
    const Worker* me, floating* x, const Rows* source, const Py_ssize_t* rows, const double* weights,
    Py_ssize_t n_rows, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t size = rows_of_tile(stride), tile = first_tile(me), first
    while tile * size < n_rows:
        first = tile * size
        gather(
            x + first * stride, source, rows, weights + first if weights != NULL else NULL,
            first, min(size, n_rows - first), stride,
        )
        tile = next_tile(me, tile)
    meet(me)


cdef void compressed_forward(
    const Worker* me, floating* y, const Rows* X, const Py_ssize_t* rows, const double* weights,
    const floating* weight, const floating* bias, Py_ssize_t n_rows, const LayerRecord* layer,
) noexcept nogil:
    cdef Py_ssize_t size = rows_of_tile(layer.out_stride), tile = first_tile(me), first
    while tile * size < n_rows:
        first = tile * size
        compressed_dense_forward(
            y + first * layer.out_stride, X, rows, weights + first if weights != NULL else NULL, first,
            weight, bias, min(size, n_rows - first), layer.n_out, layer.out_stride, layer.activation,
        )
        tile = next_tile(me, tile)
    meet(me)


cdef void compressed_backward(
    const Worker* me, floating* dweight, floating* dbias, double* squares, floating* dy, const floating* y,
    const Rows* X, const Py_ssize_t* rows, const double* weights, const floating* weight, floating penalty,
    Py_ssize_t n_rows, const LayerRecord* layer,
) noexcept nogil:
    cdef Py_ssize_t tile, column, columns
    dense_activation_backward(me, dy, y, layer.activation, n_rows, layer.out_stride)
    tile = first_tile(me)
    while tile < count_tiles(layer.out_stride, SKBN_PANEL):
        column = tile * SKBN_PANEL
        columns = min(<Py_ssize_t> SKBN_PANEL, layer.out_stride - column)
        compressed_dense_backward(
            dweight + column, dbias + column if dbias != NULL else NULL, <const floating*> dy + column,
            X, rows, weights, n_rows, columns, layer.out_stride,
        )
        if penalty != 0:
            squares[tile] = add_penalty(
                dweight + column, weight + column, X.n_columns, columns, layer.out_stride, penalty
            )
        tile = next_tile(me, tile)
    meet(me)


cdef void dropout(
    const Worker* me, floating* y, const floating* x, Py_ssize_t n_rows, const LayerRecord* layer,
    const uint32_t* key, uint32_t step, uint32_t index,
) noexcept nogil:
    cdef Py_ssize_t size = rows_of_tile(layer.out_stride), tile = first_tile(me), first
    while tile * size < n_rows:
        first = tile * size
        dropout_apply(
            y + first * layer.out_stride, x + first * layer.out_stride, first, min(size, n_rows - first),
            layer.n_out, layer.out_stride, layer.rate, key, step, index,
        )
        tile = next_tile(me, tile)
    meet(me)


cdef void elementwise(
    const Worker* me, floating* out, const floating* dy, const floating* x, Py_ssize_t n_rows,
    const LayerRecord* layer,
) noexcept nogil:
    """Forward, or given dy backward."""
    cdef Py_ssize_t stride = layer.out_stride, size = rows_of_tile(stride), tile = first_tile(me), start, n
    while tile * size < n_rows:
        start = tile * size * stride
        n = min(size, n_rows - tile * size)
        if dy == NULL:
            elementwise_forward(out + start, x + start, n, layer.n_out, stride, layer.activation)
        else:
            elementwise_backward(out + start, dy + start, x + start, n, stride, layer.activation)
        tile = next_tile(me, tile)
    meet(me)


cdef inline bint must_stop(const Worker* me, const Plan* plan, Py_ssize_t n_rows) noexcept nogil:
    """Whether a signal handler raised; asked between the layers of a long mini-batch.

    What the leader hears now, all hear when they have met the next time.
    """
    if n_rows > plan.rows_per_call and me.number == 0 and not me.team.wants_to_stop and handlers_raise():
        me.team.wants_to_stop = True
        if me.size == 1:
            me.team.is_stopped = True
    return me.team.is_stopped


cdef void forward(
    const Worker* me, const Plan* plan, const floating* params, floating* activations,
    const Rows* X, const Py_ssize_t* rows, const double* weights,
    Py_ssize_t n_rows, uint32_t step, bint update_statistics,
) noexcept nogil:
    """Training mode: batch norm uses, saves and (if asked) averages the statistics of these rows."""
    cdef const LayerRecord* layer
    cdef const floating* x
    cdef const floating* weight
    cdef const floating* bias
    cdef floating* y
    cdef Py_ssize_t index
    if not meets_compressed(plan, X):
        gather_together(me, activations, X, rows, weights, n_rows, plan.input_stride)
    for index in range(plan.n_layers):
        if must_stop(me, plan, n_rows):
            return
        layer = &plan.layers[index]
        x = activations + layer.input * plan.capacity
        y = activations + layer.output * plan.capacity
        weight = params + layer.weight if layer.weight >= 0 else NULL
        bias = params + layer.bias if layer.bias >= 0 else NULL
        if index == 0 and meets_compressed(plan, X):
            compressed_forward(me, y, X, rows, weights, weight, bias, n_rows, layer)
        elif layer.kind == SKBN_DENSE:
            dense_forward(
                me, y, x, weight, bias, n_rows, layer.n_in, layer.n_out,
                layer.in_stride, layer.out_stride, layer.activation,
            )
        elif layer.kind == SKBN_BATCH_NORM:
            batch_norm_forward(
                me, y, plan.saved + layer.saved * plan.n_virtual,
                plan.state + layer.state if update_statistics else NULL, x, weights, weight, bias,
                n_rows, layer.n_out, layer.out_stride, layer.virtual_batch_size,
                layer.epsilon, layer.momentum, layer.activation,
            )
        elif layer.kind == SKBN_DROPOUT:
            dropout(me, y, x, n_rows, layer, plan.key, step, <uint32_t> index)
        elif layer.kind == SKBN_ELEMENTWISE:
            elementwise(me, y, <const floating*> NULL, x, n_rows, layer)


cdef double backward(
    const Worker* me, const Plan* plan, const floating* params, floating* grads,
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
    cdef floating* dweight
    cdef floating* dbias
    cdef double squares = 0
    cdef floating penalty = <floating> (plan.alpha / total)
    cdef Py_ssize_t index, n_tiles = 0, k
    for index in range(plan.n_layers - 1, -1, -1):
        if must_stop(me, plan, n_rows):
            return 0
        layer = &plan.layers[index]
        x = activations + layer.input * plan.capacity
        y = activations + layer.output * plan.capacity
        dy = deltas + layer.output * plan.capacity
        dx = deltas + layer.input * plan.capacity if index > 0 else NULL
        weight = params + layer.weight if layer.weight >= 0 else NULL
        dweight = grads + layer.weight if layer.weight >= 0 else NULL
        dbias = grads + layer.bias if layer.bias >= 0 else NULL
        if layer.kind == SKBN_DENSE:
            if not layer.train_bias:
                dbias = NULL
            if index == 0 and meets_compressed(plan, X):
                compressed_backward(
                    me, dweight, dbias, plan.squares + n_tiles, dy, y, X, rows, weights, weight, penalty,
                    n_rows, layer,
                )
                n_tiles += count_tiles(layer.out_stride, SKBN_PANEL)
            else:
                dense_backward(
                    me, dx, dweight, dbias, plan.squares + n_tiles, dy, y, x, weight, penalty,
                    n_rows, layer.n_in, layer.n_out, layer.in_stride, layer.out_stride, layer.activation,
                )
                n_tiles += count_gradient_tiles(layer.n_in, layer.out_stride)
        elif layer.kind == SKBN_BATCH_NORM:
            batch_norm_backward(
                me, dx, dweight, dbias, dy, y, x, weights, weight, plan.saved + layer.saved * plan.n_virtual,
                n_rows, layer.out_stride, layer.virtual_batch_size, layer.activation,
            )
        elif layer.kind == SKBN_DROPOUT and dx != NULL:
            dropout(me, dx, dy, n_rows, layer, plan.key, step, <uint32_t> index)
        elif layer.kind == SKBN_ELEMENTWISE and dx != NULL:
            elementwise(me, dx, dy, x, n_rows, layer)
    if plan.alpha != 0:
        for k in range(n_tiles):
            squares += plan.squares[k]
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


cdef inline Py_ssize_t rows_of_loss(Py_ssize_t stride) noexcept nogil:
    """Rows whose losses are summed by themselves."""
    return min(<Py_ssize_t> 256, max(<Py_ssize_t> 16, 16384 // stride))


cdef double loss_together(
    const Worker* me, const Plan* plan, const floating* raw, floating* draw, double* scores,
    const floating* targets, const double* weights, const Py_ssize_t* rows, Py_ssize_t n_rows, double rate,
) noexcept nogil:
    """The same for a mini-batch; the leader adds the scores."""
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    cdef Py_ssize_t tile = first_tile(me), most = rows_of_loss(last.out_stride), first, k, size = 1 + plan.n_scores
    cdef double loss = 0
    cdef double* part
    while tile * most < n_rows:
        first = tile * most
        part = plan.losses + tile * size
        memset(part, 0, size * sizeof(double))
        part[0] = loss_and_delta(
            plan, raw + first * last.out_stride, draw + first * last.out_stride, part + 1, targets,
            weights + first if weights != NULL else NULL, rows + first,
            min(most, n_rows - first), rate,
        )
        tile = next_tile(me, tile)
    meet(me)
    if me.number == 0:
        for tile in range(count_tiles(n_rows, most)):
            loss += plan.losses[tile * size]
            for k in range(1, size):
                scores[k - 1] += plan.losses[tile * size + k]
    return loss


cdef double gradient_of_batch(
    const Worker* me, const Plan* plan, const floating* params, floating* grads,
    floating* activations, floating* deltas,
    const Rows* X, const floating* targets, const double* weights, const Py_ssize_t* rows, Py_ssize_t n_rows,
    double total, uint32_t step, bint update_statistics, double* scores,
) noexcept nogil:
    """Loss of one batch, summed over its rows, penalty included; its mean's gradient to grads.

    ``weights`` are those of these rows, ``total`` is their sum. Only what the leader returns counts.
    """
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    cdef double loss
    forward(me, plan, params, activations, X, rows, weights, n_rows, step, update_statistics)
    if me.team.is_stopped:
        return 0
    loss = loss_together(
        me, plan, activations + last.output * plan.capacity, deltas + last.output * plan.capacity,
        scores, targets, weights, rows, n_rows, 1 / total,
    )
    return loss + backward(me, plan, params, grads, activations, deltas, X, rows, weights, n_rows, total, step)


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


cdef const double* gather_weights_together(
    const Worker* me, const Plan* plan, const double* weights, const Py_ssize_t* rows, Py_ssize_t n_rows,
) noexcept nogil:
    if weights == NULL:
        return NULL
    if me.number == 0:
        gather_weights(plan.batch_weights, weights, rows, 0, n_rows)
    meet(me)
    return plan.batch_weights


cdef enum Task:
    TRAIN           # on mini-batches
    DIFFERENTIATE   # all rows as one batch
    PREDICT         # blocks of rows: raw outputs, and/or losses and scores
    TAKE_MOMENTS    # of what enters a batch norm, block by block


cdef struct Call:
    Task task
    const Rows* X
    const void* targets
    const double* weights
    const Py_ssize_t* rows
    Py_ssize_t n_rows
    void* params
    # Training.
    void* grads
    void* activations
    void* deltas
    double* sums                # IN/OUT loss, rows, scores
    Py_ssize_t position         # IN/OUT where to begin and, for as many mini-batches, with what
    Py_ssize_t n_batches
    OptimizerRecord* optimizer
    void* memory
    uint32_t step
    bint update_statistics
    double loss                 # OUT mean with penalty
    # Inference.
    int most_workers
    void* work                  # (most_workers, work_size)
    Py_ssize_t work_size
    Py_ssize_t first, stop      # blocks
    void* raw                   # OUT (n_rows, n_out); NULL: not wanted
    double* parts               # OUT (blocks, 2 + n_scores), or of moments (blocks, 2, stride)
    double* totals              # OUT weight of each block
    const double* origin        # IN  (stride,) moments are taken relative to it
    Py_ssize_t layer            # in front of which moments are taken
    # What came of it.
    double work_done            # rows trained on; IN  what inference will do
    int n_workers               # OUT
    double seconds_worked       # OUT by all workers of a team together


cdef void train_batches(const Worker* me, const Plan* plan, Call* call, floating* params) noexcept nogil:
    """Train on up to n_batches mini-batches from position on; add to the sums (see ``train``)."""
    cdef const double* weights
    cdef double total, loss
    cdef Py_ssize_t _batch, start = call.position, stop
    cdef int64_t t = call.optimizer.t
    for _batch in range(call.n_batches):
        if start >= call.n_rows:
            break
        stop = batch_stop(start, call.n_rows, plan.batch_size, plan.min_rows)
        weights = gather_weights_together(me, plan, call.weights, call.rows + start, stop - start)
        total = total_weight(weights, stop - start)
        if total > 0:  # else nothing in it counts
            loss = gradient_of_batch(
                me, plan, params, <floating*> call.grads, <floating*> call.activations,
                <floating*> call.deltas, call.X, <const floating*> call.targets, weights, call.rows + start,
                stop - start, total, <uint32_t> t, True, call.sums + 2,
            )
            if me.team.is_stopped:
                break
            if me.number == 0:
                call.work_done += stop - start
                call.sums[0] += loss if weights == NULL else loss * ((stop - start) / total)
                call.sums[1] += stop - start
            optimizer_update(
                me, params, <floating*> call.memory, <floating*> call.grads, plan.norms,
                plan.n_params, call.optimizer, t,
            )
            t += 1
        else:
            meet(me)  # all have seen the weights
        start = stop
    meet(me)  # all have read where to begin
    if me.number == 0:
        call.position = start
        call.optimizer.t = t


cdef void take_gradient(const Worker* me, const Plan* plan, Call* call, const floating* params) noexcept nogil:
    """The gradient of all rows as one batch; to the sums is added what training adds."""
    cdef const double* weights = gather_weights_together(me, plan, call.weights, call.rows, call.n_rows)
    cdef double total = total_weight(weights, call.n_rows), loss
    loss = gradient_of_batch(
        me, plan, params, <floating*> call.grads, <floating*> call.activations,
        <floating*> call.deltas, call.X, <const floating*> call.targets, weights, call.rows, call.n_rows,
        total, call.step, call.update_statistics, call.sums + 2,
    )
    if me.number == 0:
        call.work_done = call.n_rows
        call.loss = loss / total
        call.sums[0] += call.loss * call.n_rows
        call.sums[1] += call.n_rows


cdef inline Worker by_itself(const Worker* me) noexcept nogil:
    """The same worker, meeting nobody."""
    cdef Worker alone = me[0]
    alone.team = NULL
    alone.size = 1
    return alone


cdef floating* forward_eval(
    const Worker* me, const Plan* plan, const floating* params, floating* here, floating* there,
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
        zero_pads(here, n_rows, X.n_columns, plan.input_stride, plan.input_stride)
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
                me, there, here, weight, bias, n_rows, layer.n_in, layer.n_out,
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


cdef void predict_blocks(const Worker* me, const Plan* plan, Call* call, const floating* params) noexcept nogil:
    """Send blocks of rows through the network, each by one worker; copy raw outputs and/or take losses and scores."""
    cdef const LayerRecord* last = &plan.layers[plan.n_layers - 1]
    cdef floating* here = <floating*> call.work + me.number * call.work_size
    cdef floating* raw = <floating*> call.raw
    cdef Py_ssize_t block = call.first + first_tile(me), first, size, i
    cdef double room[EVAL_ROWS]
    cdef const double* weights
    cdef double* sums
    cdef floating* out
    cdef Worker alone = by_itself(me)
    while block < call.stop:
        first = block * EVAL_ROWS
        size = min(<Py_ssize_t> EVAL_ROWS, call.n_rows - first)
        weights = gather_weights(room, call.weights, call.rows, first, size)
        out = forward_eval(
            &alone, plan, params, here, here + call.work_size // 2, call.X, call.rows, weights, first, size,
            plan.n_layers,
        )
        if raw != NULL:
            for i in range(size):
                memcpy(raw + (first + i) * last.n_out, out + i * last.out_stride, last.n_out * sizeof(floating))
        if call.parts != NULL:
            sums = call.parts + block * (2 + plan.n_scores)
            memset(sums, 0, (2 + plan.n_scores) * sizeof(double))
            sums[0] = loss_and_delta(
                plan, <const floating*> out, <floating*> NULL, sums + 2, <const floating*> call.targets, weights,
                call.rows + first, size, 0.0,
            )
            sums[1] = total_weight(weights, size)
        block = call.first + next_tile(me, block - call.first)
    meet(me)


cdef void moments_of_blocks(const Worker* me, const Plan* plan, Call* call, const floating* params) noexcept nogil:
    """Moments of what enters a batch norm: mean - origin, squared deviations and weight of blocks, which have some."""
    cdef Py_ssize_t stride = plan.layers[call.layer].in_stride, block = call.first + first_tile(me)
    cdef Py_ssize_t first, size, start, columns, j
    cdef floating* here = <floating*> call.work + me.number * call.work_size
    cdef double correction[TILE]
    cdef double sums[TILE]
    cdef double room[EVAL_ROWS]
    cdef double total
    cdef double* mean
    cdef const double* weights
    cdef floating* out
    cdef Worker alone = by_itself(me)
    while block < call.stop:
        first = block * EVAL_ROWS
        size = min(<Py_ssize_t> EVAL_ROWS, call.n_rows - first)
        weights = gather_weights(room, call.weights, call.rows, first, size)
        total = total_weight(weights, size)
        out = forward_eval(
            &alone, plan, params, here, here + call.work_size // 2, call.X, call.rows, weights, first, size,
            call.layer,
        )
        mean = call.parts + 2 * (block - call.first) * stride
        for start in range(0, stride, 64):  # TILE
            columns = min(<Py_ssize_t> TILE, stride - start)
            tile_moments(
                mean + start, correction, mean + stride + start, <const floating*> out + start,
                weights, 1 / total, sums, size, columns, stride, IN_ORDER,
            )
            for j in range(start, start + columns):
                mean[j] = (mean[j] - call.origin[j]) + correction[j - start]
        call.totals[block - call.first] = total
        block = call.first + next_tile(me, block - call.first)
    meet(me)


cdef void work(Team* team, const Plan* plan, Call* call, int number, int size, bint is_double) noexcept nogil:
    """What each worker of a team does."""
    cdef Worker me
    cdef unsigned long long mode = flush_denormals()
    cdef long long start = clock() if size > 1 else 0
    if number == 0:
        call.n_workers = size
    me.team = team
    me.number = number
    me.size = size
    me.room = plan.rooms + number * plan.room_size
    if is_double:
        do_task(&me, plan, call, <double*> call.params)
    else:
        do_task(&me, plan, call, <float*> call.params)
    restore_mode(mode)
    if size > 1:
        report(team, clock() - start)


cdef inline void do_task(const Worker* me, const Plan* plan, Call* call, floating* params) noexcept nogil:
    if call.task == TRAIN:
        train_batches(me, plan, call, params)
    elif call.task == DIFFERENTIATE:
        take_gradient(me, plan, call, <const floating*> params)
    elif call.task == PREDICT:
        predict_blocks(me, plan, call, <const floating*> params)
    else:
        moments_of_blocks(me, plan, call, <const floating*> params)


cdef bint work_together(const Plan* plan, Call* call, int threads, bint is_double) noexcept nogil:
    """Let a team do it; return whether a signal handler raised."""
    cdef Team team
    memset(&team, 0, sizeof(Team))
    if threads == 1:
        work(&team, plan, call, 0, 1, is_double)
    else:
        with parallel(num_threads=threads):
            work(&team, plan, call, threadid(), workers_here(), is_double)
    call.seconds_worked = 1e-9 * team.worked
    return team.wants_to_stop


cdef struct Student:
    const Plan* plan
    Call call
    bint is_double


cdef bint work_in_turn(Student* students, Py_ssize_t n_students) noexcept nogil:
    """Do the call of each; return whether a signal handler raised meanwhile."""
    cdef Py_ssize_t index
    for index in range(n_students):
        if work_together(students[index].plan, &students[index].call, 1, students[index].is_double):
            return True
        if handlers_raise():
            return True
    return False


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


cpdef double seconds_of_batch(Py_ssize_t n_rows, Py_ssize_t n_params, Py_ssize_t row_size):
    """About, on one core: the products, and some passes over all activations."""
    return n_rows * (6e-11 * n_params + 1e-9 * row_size)


def train_in_turn(executors, X, targets, weights, rows, optimizers, sums):
    """Do an epoch of several networks, one after the other, in one call.

    Parameters
    ----------
    executors : list of CPUExecutor
        One for each network, all of one type and number of inputs.
    X, targets
        Rows, of all networks.
    weights, rows, optimizers, sums : list
        What ``CPUExecutor.train`` takes, for each network.
    """
    cdef CPUExecutor executor = executors[0]
    cdef Rows source = rows_of(X, executor.kind, executor.n_features)
    cdef Py_ssize_t n_students = len(executors), n_left, index, n_rows = X.shape[0]
    cdef bint is_stopped
    cdef Student* students = <Student*> PyMem_Calloc(n_students, sizeof(Student))
    if students == NULL:
        raise MemoryError
    try:
        for index in range(n_students):
            executor = executors[index]
            optimizer = optimizers[index]
            students[index].plan = &executor.plan
            students[index].is_double = executor.is_double
            executor.describe_epoch(
                &students[index].call, rows[index], 0, optimizer.record, optimizer.memory, sums[index]
            )
            executor.get_ready(&students[index].call, &source, targets, weights[index], n_rows, 1)
        while n_students > 0:
            with nogil:
                is_stopped = work_in_turn(students, n_students)
            if is_stopped:
                raise _raised.pop()
            n_left = 0
            for index in range(n_students):
                if students[index].call.position < students[index].call.n_rows:
                    students[n_left], n_left = students[index], n_left + 1
            n_students = n_left
    finally:
        PyMem_Free(students)


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
    threads : int or None
        Threads that share out the work; None: as many as pay, see ``threads.py``.

    Attributes
    ----------
    n_workers : int
        Threads that worked on the last call.
    """

    cdef Plan plan
    cdef bint is_double, lacks_input
    cdef readonly int n_workers
    cdef double seconds_per_row, seconds_per_work
    cdef char kind              # of the network's type: 'f' or 'd'
    cdef Py_ssize_t n_features, n_outputs
    cdef void* params
    cdef void* activations
    cdef void* deltas
    cdef object grads, network, dtype, owners, train_owners, rooms, threads, pace

    def __init__(
        self, network, *, loss_kind=None, double alpha=0.0, Py_ssize_t batch_size=1, dropout_key=(0, 0),
        threads=None,
    ):
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
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be None, or 1 or more, got {threads}.")
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
        deepest = plan.capacity
        for index in range(plan.n_layers):
            plan.widest = max(plan.widest, layers[index].out_stride)
            deepest = max(deepest, layers[index].n_in, layers[index].n_out)
            if layers[index].virtual_batch_size:
                plan.n_virtual = max(plan.n_virtual, plan.capacity // layers[index].virtual_batch_size + 1)
        plan.room_size = min(<Py_ssize_t> DEPTH, deepest) * SKBN_PANEL * self.dtype.itemsize
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
        self.grads = None
        self.rooms = None
        self.threads = threads
        self.pace = Pace()
        # Until they are measured. A step costs 6 multiplications and additions a parameter and row, and some overhead.
        self.seconds_per_row = (6.0 * plan.n_params + 100.0 * plan.row_size) / 1e10
        self.seconds_per_work = 2e-10
        plan.rows_per_call = max(1, int(SECONDS_PER_CALL / self.seconds_per_row))

    def __enter__(self):
        if not SKBN_HAS_PRODUCTS:
            single_threaded_blas().__enter__()
        at_work.__enter__()
        return self

    def __exit__(self, *exception):
        at_work.__exit__(*exception)
        if not SKBN_HAS_PRODUCTS:
            single_threaded_blas().__exit__(*exception)

    cdef new_rooms(self, int threads):
        """Give every worker a room; they live as long as what is returned."""
        rooms = aligned_zeros(threads * self.plan.room_size, np.int8)
        self.plan.rooms = <char*> address(rooms, b"b", 0, True)
        return rooms

    cdef allocate(self, bint compressed):
        """Make the buffers that training needs, when it first needs them.

        The input comes first in them. Nobody takes a gradient of it, and where rows are compressed nobody gathers it:
        the addresses then begin in front of what is allocated.
        """
        cdef Plan* plan = &self.plan
        cdef Py_ssize_t input_size = plan.capacity * plan.input_stride, size = plan.capacity * plan.row_size
        cdef Py_ssize_t input_bytes = input_size * <Py_ssize_t> (sizeof(double) if self.is_double else sizeof(float))
        cdef Py_ssize_t n_tiles = 0, index
        if self.train_owners is not None and (compressed or not self.lacks_input):
            return
        for index in range(plan.n_layers):
            if plan.layers[index].kind == SKBN_DENSE:
                n_tiles += count_gradient_tiles(plan.layers[index].n_in, plan.layers[index].out_stride)
        activations = aligned_zeros(size - (input_size if compressed else 0), self.dtype)
        deltas = aligned_zeros(size - input_size, self.dtype)
        saved = aligned_zeros(max(1, plan.n_virtual * self.network.saved_size), np.float64)
        weights = aligned_zeros(plan.capacity, np.float64)
        index = rows_of_loss(plan.layers[plan.n_layers - 1].out_stride)
        losses = aligned_zeros(count_tiles(plan.capacity, index) * (1 + plan.n_scores), np.float64)
        squares = aligned_zeros(n_tiles, np.float64)
        norms = aligned_zeros(optimizer_tiles(plan.n_params), np.float64)
        self.activations = <char*> address(activations, self.kind, 0, True) - (input_bytes if compressed else 0)
        self.deltas = <char*> address(deltas, self.kind, 0, True) - input_bytes
        plan.saved = <double*> address(saved, b"d", 0, True)
        plan.batch_weights = <double*> address(weights, b"d", 0, True)
        plan.losses = <double*> address(losses, b"d", 0, True)
        plan.squares = <double*> address(squares, b"d", 0, True)
        plan.norms = <double*> address(norms, b"d", 0, True)
        self.lacks_input = compressed
        self.train_owners = (activations, deltas, saved, weights, losses, squares, norms)

    cdef check_loss(self):
        """Refuse to train or evaluate without a loss."""
        if self.plan.loss == 0:
            raise ValueError("This executor was made without a loss.")

    def new_sums(self):
        """Return zeros for what ``train`` adds up: loss, rows, scores."""
        return np.zeros(2 + self.plan.n_scores)

    cdef int workers(self, Py_ssize_t n_rows):
        """How many threads a mini-batch of so many rows is worth."""
        if not SKBN_HAS_TEAMS:
            return 1
        if self.threads is not None:
            return self.threads
        return team_size(seconds_of_batch(n_rows, self.plan.n_params, self.plan.row_size))

    cdef get_ready(self, Call* call, const Rows* X, targets, weights, Py_ssize_t n_rows, int workers):
        """Give a call that trains on X, which has so many rows, all that lasts from call to call."""
        cdef Plan* plan = &self.plan
        self.check_loss()
        self.allocate(meets_compressed(plan, X))
        call.X = X
        call.targets = address(targets, self.kind, n_rows * plan.target_size, False)
        call.weights = weights_of(weights, n_rows)
        call.params = self.params
        if call.grads == NULL:
            if self.grads is None:
                self.grads = aligned_zeros(plan.n_params, self.dtype)
            call.grads = address(self.grads, self.kind, 0, True)
        call.activations = self.activations
        call.deltas = self.deltas
        if self.rooms is None or self.rooms.size < workers * plan.room_size:
            self.rooms = self.new_rooms(workers)
        plan.rooms = <char*> address(self.rooms, b"b", 0, True)

    cdef describe_epoch(self, Call* call, rows, Py_ssize_t start, optimizer, memory, sums):
        """Say what mini-batches a call trains on: as many from position start on as one call may take."""
        cdef Plan* plan = &self.plan
        call.n_rows = rows.shape[0]
        call.rows = <const Py_ssize_t*> address(rows, INTP, call.n_rows, False)
        call.position = start
        call.n_batches = max(1, <Py_ssize_t> (SECONDS_PER_CALL / (plan.batch_size * self.seconds_per_row + 1e-6)))
        call.task = TRAIN
        call.optimizer = <OptimizerRecord*> address(optimizer, b"T", 1, True)
        call.memory = address(memory, self.kind, optimizer_vectors(call.optimizer.kind) * plan.n_params, True)
        call.sums = <double*> address(sums, b"d", 2 + plan.n_scores, True)

    cdef run(self, Call* call, const Rows* X, targets, weights, Py_ssize_t n_rows, Py_ssize_t batch_size):
        """Train: let a team work on a call; raise what signal handlers raised meanwhile."""
        cdef int wanted = self.workers(batch_size)
        cdef double seconds
        self.get_ready(call, X, targets, weights, n_rows, wanted)
        seconds = self.go(call, wanted, self.pace)
        if call.work_done > 0:
            self.seconds_per_row = seconds / call.work_done
            self.plan.rows_per_call = max(1, <Py_ssize_t> (SECONDS_PER_CALL / self.seconds_per_row))

    cdef double go(self, Call* call, int wanted, pace) except -1:
        """Let as many workers as pay, `wanted` at most, do a call's task; return the seconds it took."""
        cdef bint is_free = wanted > 1 and self.threads is None
        cdef bint is_stopped
        cdef int threads = pace.threads(wanted) if is_free else wanted
        cdef double seconds, start = perf_counter()
        with nogil:
            is_stopped = work_together(&self.plan, call, threads, self.is_double)
        seconds = perf_counter() - start
        self.n_workers = call.n_workers
        if is_stopped:
            raise _raised.pop()
        if is_free and call.work_done > 0:
            pace.saw(threads, seconds, call.work_done, call.seconds_worked / (call.n_workers * seconds))
        return seconds

    def train(self, X, targets, weights, rows, Py_ssize_t start, optimizer, memory, sums):
        """Train on mini-batches of X[rows] from position start on, for as long as one call may take.

        Adds to ``sums`` the loss of the mini-batches times their rows, these rows, and the scores; returns the next
        position. Mini-batches without weight are passed over.
        """
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef Call call
        memset(&call, 0, sizeof(Call))
        self.describe_epoch(&call, rows, start, optimizer, memory, sums)
        self.run(&call, &source, targets, weights, X.shape[0], min(self.plan.batch_size, call.n_rows))
        return call.position

    def loss_and_gradient(
        self, X, targets, weights, rows, grads, uint32_t step=0, *, bint update_statistics=False, sums=None
    ):
        """Return the mean loss with penalty over one batch; write its gradient into ``grads``.

        The batch's statistics enter the moving ones if asked; to ``sums`` is added what ``train`` adds.
        """
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef Call call
        sums = self.new_sums() if sums is None else sums
        memset(&call, 0, sizeof(Call))
        call.n_rows = rows.shape[0]
        call.rows = <const Py_ssize_t*> address(rows, INTP, call.n_rows, False)
        call.task = DIFFERENTIATE
        call.grads = address(grads, self.kind, plan.n_params, True)
        call.sums = <double*> address(sums, b"d", 2 + plan.n_scores, True)
        call.step = step
        call.update_statistics = update_statistics
        if call.n_rows > plan.capacity:
            raise ValueError(f"{call.n_rows} rows do not fit buffers for {plan.capacity}.")
        self.run(&call, &source, targets, weights, X.shape[0], call.n_rows)
        return call.loss

    cdef double work_of_row(self, X):
        """Multiplications and numbers written for one row at prediction."""
        cdef const LayerRecord* first = &self.plan.layers[0]
        cdef double work = self.plan.n_params + self.plan.row_size
        if not PyObject_CheckBuffer(X) and first.kind == SKBN_DENSE:  # only what is stored is multiplied
            work -= (first.n_in - <double> X.nnz / max(1, X.shape[0])) * first.out_stride + first.in_stride
        return work

    cdef run_blocks(self, Call* call, double work_of_row, Py_ssize_t most):
        """Let a team go on with a call's blocks, up to `most` of them, for about SECONDS_PER_CALL."""
        cdef double seconds_per_block = self.seconds_per_work * EVAL_ROWS * work_of_row
        PyErr_CheckSignals()
        call.first = call.stop
        most = min(most, count_tiles(call.n_rows, EVAL_ROWS) - call.first)
        call.stop = call.first + max(<Py_ssize_t> 1, min(most, <Py_ssize_t> (SECONDS_PER_CALL / seconds_per_block)))
        call.work_done = (min(call.stop * EVAL_ROWS, call.n_rows) - call.first * EVAL_ROWS) * work_of_row
        seconds = self.go(call, min(<Py_ssize_t> call.most_workers, call.stop - call.first), _inference_pace)
        self.seconds_per_work = seconds / call.work_done

    cdef int workers_for_blocks(self, double work, Py_ssize_t n_blocks):
        """How many threads so much work is worth, at 10 operations a nanosecond, if there are blocks enough."""
        if not SKBN_HAS_TEAMS or n_blocks == 1:
            return 1
        if self.threads is not None:
            return self.threads
        return min(team_size(1e-10 * work), n_blocks)

    cdef prepare(self, Call* call, X, const Rows* source, weights, rows, Py_ssize_t n_rows):
        """Describe the rows of a call, and give each worker its memory, which lives as long as what is returned."""
        cdef int threads = self.workers_for_blocks(n_rows * self.work_of_row(X), count_tiles(n_rows, EVAL_ROWS))
        call.X = source
        call.n_rows = n_rows
        call.weights = weights_of(weights, X.shape[0])
        if rows is not None:
            call.rows = <const Py_ssize_t*> address(rows, INTP, n_rows, False)
        call.params = self.params
        call.most_workers = threads
        call.work_size = 2 * min(<Py_ssize_t> EVAL_ROWS, n_rows) * self.plan.widest
        buffers = aligned_zeros(threads * call.work_size, self.dtype)
        call.work = address(buffers, self.kind, 0, True)
        # One row needs no room, and this is much of its time.
        return buffers, self.new_rooms(threads if n_rows >= ROWS_THAT_PACK else 0)

    cdef infer(self, X, targets, weights, rows, Py_ssize_t n_rows, raw, parts):
        """Raw outputs and/or losses and scores of rows, block by block."""
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef double work = self.work_of_row(X)
        cdef Py_ssize_t n_blocks = count_tiles(n_rows, EVAL_ROWS)
        cdef Call call
        memset(&call, 0, sizeof(Call))
        call.task = PREDICT
        _owners = self.prepare(&call, X, &source, weights, rows, n_rows)
        self.plan.use_population = self.network.use_population
        if raw is not None:
            call.raw = address(raw, self.kind, n_rows * self.n_outputs, True)
        if parts is not None:
            call.targets = address(targets, self.kind, X.shape[0] * self.plan.target_size, False)
            call.parts = <double*> address(parts, b"d", 0, True)
        while call.stop < n_blocks:  # Ctrl-C works between calls
            self.run_blocks(&call, work, n_blocks)

    def predict(self, X):
        """Return the raw outputs."""
        raw = np.empty((X.shape[0], self.n_outputs), dtype=self.dtype)
        self.infer(X, None, None, None, X.shape[0], raw, None)
        return raw

    def evaluate(self, X, targets, weights, rows):
        """Return the weighted sum of the rows' losses, without penalty, the weight of all rows, and the scores."""
        self.check_loss()
        n_rows = rows.shape[0]
        parts = np.empty((count_tiles(n_rows, EVAL_ROWS), 2 + self.plan.n_scores))
        self.infer(X, targets, weights, rows, n_rows, None, parts)
        return parts.sum(axis=0)

    def update_population_statistics(self, X, weights, rows):
        """Measure every batch norm over all rows, each behind the final statistics of those before."""
        cdef Plan* plan = &self.plan
        cdef Rows source = rows_of(X, self.kind, self.n_features)
        cdef double work = self.work_of_row(X)
        cdef Py_ssize_t stride, n_blocks, layer
        cdef double* mean
        cdef double* square
        cdef double* origin
        cdef double block_totals[GROUP]
        cdef double seen
        cdef Call call
        if weights is not None:
            rows = rows[weights[rows] > 0]  # so every block has weight
        if rows.shape[0] == 0:
            raise ValueError("There are no rows with weight to take statistics of.")
        memset(&call, 0, sizeof(Call))
        call.task = TAKE_MOMENTS
        n_blocks = count_tiles(rows.shape[0], EVAL_ROWS)
        _owners = self.prepare(&call, X, &source, weights, rows, rows.shape[0])
        parts = aligned_zeros(2 * min(<Py_ssize_t> GROUP, n_blocks) * plan.widest, np.float64)
        totals = aligned_zeros(3 * plan.widest, np.float64)
        mean = <double*> address(totals, b"d", 0, True)
        call.parts = <double*> address(parts, b"d", 0, True)
        call.totals = block_totals
        self.network.use_population = True
        plan.use_population = True
        for layer in self.network.batch_norm_indices:
            call.layer = layer
            stride = plan.layers[layer].out_stride
            square = mean + stride
            origin = square + stride
            call.origin = origin
            totals[:] = 0
            # The mean of the first block is near all others, so that differences keep their digits.
            call.stop = 0
            self.run_blocks(&call, work, 1)
            totals[2 * stride : 3 * stride] = parts[:stride]
            seen = 0
            call.stop = 0
            while call.stop < n_blocks:  # Ctrl-C works between calls
                self.run_blocks(&call, work, GROUP)
                seen = merge_moments(
                    mean, square, call.parts, block_totals, seen, call.stop - call.first, stride, 2 * stride, stride, 1
                )
            totals[:stride] += totals[2 * stride : 3 * stride]
            totals[stride : 2 * stride] /= seen
            start = plan.layers[layer].state + SKBN_POPULATION_MEAN * stride
            self.network.state[start : start + 2 * stride] = totals[: 2 * stride]
