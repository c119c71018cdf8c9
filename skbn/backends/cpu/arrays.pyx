# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalization of arrays of any layout, at the speed of memory. Formulas: docs/design.md.

The kernels are the network's (batch_norm.pxd); what is different is that rows are many and lie as the user has them. An
array is cut into blocks of BLOCK_ROWS rows by tiles of TILE columns (layout.pxd). Sums are taken block by block and
merged in the order of the blocks: mean and squared deviations by Chan et al. (1979), relative to the first row, so that
means far from zero keep their digits. Blocks depend on the number of rows alone and every column is summed for itself,
so a result has the same bits whatever the layout, the neighbours and the number of threads.

Passes over memory: forward reads x twice and writes y, backward reads x and dy twice and writes dx; once each where the
columns of a tile fit the cache. The second pass runs backwards, over what the first has left in the cache. Large
results are written past it.
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
from libc.math cimport NAN
from libc.string cimport memcpy, memset

import numpy as np

from skbn.backends.cpu.activations cimport activation_backward, activation_forward
from skbn.backends.cpu.batch_norm cimport (
    ACROSS,
    BLOCK_ROWS,
    DOWN,
    HIGH,
    INV_STD,
    LANES,
    LOW,
    MEAN_DZ,
    N_FACTORS,
    SCALE,
    SHIFT,
    SLOPE,
    STRIP,
    TILE,
    Lie,
    add_lanes,
    forward_factors,
    gradient_sums_of_tile,
    input_gradient_of_tile,
    inverse_std,
    merge_moments,
    normalize_tile,
    rows_in_lane,
    tile_moments,
    total_weight,
)
from skbn.backends.cpu.elementwise cimport elementwise_backward, elementwise_forward
from skbn.backends.cpu.layout cimport (
    MAX_AXES,
    Operand,
    Shape,
    copy_patch,
    entry,
    innermost,
    stretch,
)
from skbn.backends.cpu.lines cimport prefetch, stream_end
from skbn.backends.records cimport (
    SKBN_IDENTITY,
    SKBN_LOGISTIC,
    SKBN_RELU,
    SKBN_TANH,
)

from skbn.backends.cpu.threads import n_threads

cdef enum:
    GROUP = 8  # rows that an elementwise kernel takes at a time: it goes down one line of each, memory row by row
    PARALLEL_NUMBERS = 400_000  # below, a parallel region costs more than it saves
    CACHE_BYTES = 512 * 1024  # columns of a tile that stay in the cache of a core between passes
    STREAM_BYTES = 32 * 1024 * 1024  # larger results would only push out of the cache what is still needed
    PATCH = BLOCK_ROWS * TILE  # numbers in scratch for one operand
    N_PATCHES = 4

cdef enum What:  # what a pass does with a unit: a block by a tile, or a whole tile
    MOMENTS
    MERGE_MOMENTS
    NORMALIZE
    SUM_GRADIENTS
    MERGE_GRADIENTS
    INPUT_GRADIENT
    FORWARD
    BACKWARD


cdef struct Task:
    Shape shape
    Operand x, dy
    Operand y                   # what is written: y or dx
    Py_ssize_t n_blocks, n_tiles
    bint tiles_first            # whether the blocks of a tile are neighbours in memory rather than the tiles of a block
    bint ignore_nan
    bint past_cache
    int threads
    const double* weights       # one a sample; NULL: ones
    Py_ssize_t rows_per_sample
    Py_ssize_t first_row        # the first one that counts
    double share                # 1 / weight of all rows
    double* parts               # (n_blocks, 2, n_columns): what each block found
    double* totals              # weight of each block; with ignore_nan, of each of its columns
    double* weight              # OUT moments: weight of each column; NULL: not wanted
    double* mean                # (n_columns,) in two parts
    double* low
    double* var
    double* inv_std
    double* dgamma
    double* dbeta
    const double* gamma         # NULL: ones
    const double* beta          # NULL: zeros
    double epsilon
    int activation


# Patches: where the numbers of a block by some columns are, or a copy of them.


cdef inline floating* patch(
    Py_ssize_t* stride,         # OUT between rows (ACROSS) or columns (DOWN)
    floating* scratch,          # (BLOCK_ROWS, TILE) or (TILE, BLOCK_ROWS)
    const Operand* operand, const Shape* shape, Lie lie,
    Py_ssize_t first_row, Py_ssize_t n_rows, Py_ssize_t first_column, Py_ssize_t n_columns, bint read,
) noexcept nogil:
    """Numbers of an operand as a kernel needs them: where they are, if they lie that way, else in scratch."""
    cdef Py_ssize_t row_stride = innermost(operand.row_strides, shape.n_row_axes)
    cdef Py_ssize_t column_stride = innermost(operand.column_strides, shape.n_column_axes)
    if (
        (n_columns % LANES == 0 and column_stride == 1 if lie == ACROSS else row_stride == 1)
        and stretch(shape.row_axes, shape.n_row_axes, first_row, n_rows) == n_rows
        and stretch(shape.column_axes, shape.n_column_axes, first_column, n_columns) == n_columns
    ):
        stride[0] = row_stride if lie == ACROSS else column_stride
        return entry(<const floating*> scratch, operand, shape, first_row, first_column)
    stride[0] = TILE if lie == ACROSS else BLOCK_ROWS
    if read:
        if lie == ACROSS and n_columns % LANES:
            memset(scratch, 0, n_rows * TILE * sizeof(floating))  # kernels take whole lines
        copy_patch(
            scratch, TILE if lie == ACROSS else 1, 1 if lie == ACROSS else BLOCK_ROWS,
            operand, shape, first_row, n_rows, first_column, n_columns, False,
        )
    return scratch


cdef inline void put_back(
    const floating* found, const floating* scratch, const Operand* operand, const Shape* shape, Lie lie,
    Py_ssize_t first_row, Py_ssize_t n_rows, Py_ssize_t first_column, Py_ssize_t n_columns,
) noexcept nogil:
    """Copy a result from scratch to where it belongs, if it is not there already."""
    if found == scratch:
        copy_patch(
            <floating*> scratch, TILE if lie == ACROSS else 1, 1 if lie == ACROSS else BLOCK_ROWS,
            operand, shape, first_row, n_rows, first_column, n_columns, True,
        )


cdef inline Py_ssize_t columns_across(const Task* task, Py_ssize_t n_columns) noexcept nogil:
    """How many of a tile's columns are taken side by side; the rest is taken column by column.

    Weights go with the rows, so with weights all are, filled up to whole lines.
    """
    if task.weights != NULL:
        return n_columns
    if innermost(task.x.column_strides, task.shape.n_column_axes) == 1:
        return n_columns // LANES * LANES
    return 0


cdef inline Py_ssize_t whole_lines(Py_ssize_t n_columns) noexcept nogil:
    return (n_columns + LANES - 1) // LANES * LANES


cdef inline const double* weights_of_block(
    double* room,               # OUT (n_rows,)
    const Task* task, Py_ssize_t first_row, Py_ssize_t n_rows,
) noexcept nogil:
    cdef Py_ssize_t i
    if task.weights == NULL:
        return NULL
    for i in range(n_rows):
        room[i] = task.weights[(first_row + i) // task.rows_per_sample]
    return room


cdef inline void prefetch_block(
    const floating* kind, const Operand* operand, const Task* task, Py_ssize_t block, Py_ssize_t tile,
) noexcept nogil:
    """Ask for the block below, whose rows the lanes would otherwise reach in jumps."""
    cdef const Shape* shape = &task.shape
    cdef Py_ssize_t i, j, first_row = block * BLOCK_ROWS, first = tile * TILE
    cdef Py_ssize_t stride = innermost(operand.row_strides, shape.n_row_axes)
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, shape.n_rows - first_row)
    cdef Py_ssize_t n_bytes = min(<Py_ssize_t> TILE, shape.n_columns - first) * sizeof(floating)
    cdef const char* row
    if block >= task.n_blocks or shape.n_row_axes > 1:
        return
    row = <const char*> entry(kind, operand, shape, first_row, first)
    for i in range(n_rows):
        for j from 0 <= j < n_bytes by 64:
            prefetch(row + j)
        row += stride * sizeof(floating)


# Moments.


cdef double moments_of_valid(
    double* mean, double* correction, double* square,   # OUT (1,)
    const floating* x,                                  # IN  (n_rows,)
    const double* weights,                              # IN  (n_rows,); NULL: ones
    Py_ssize_t n_rows,
) noexcept nogil:
    """Moments of one column without the NaN in it; return the weight of what is left."""
    cdef Py_ssize_t i, sweep
    cdef double total = 0, deviation, weight, sum_of_deviations
    mean[0] = 0
    for sweep in range(2):  # deviations from a first value, then from their mean
        sum_of_deviations = 0
        total = 0
        square[0] = 0
        for i in range(n_rows):
            weight = 1 if weights == NULL else weights[i]
            if x[i] != x[i] or weight == 0:
                continue
            if sweep == 0 and total == 0:
                mean[0] = x[i]
            deviation = x[i] - mean[0]
            total += weight
            sum_of_deviations += weight * deviation
            square[0] = square[0] + weight * deviation * deviation
        if total == 0:
            return 0
        correction[0] = sum_of_deviations / total
        if sweep == 0:
            mean[0] = mean[0] + correction[0]
    square[0] = square[0] - sum_of_deviations * correction[0]
    square[0] = 0 if square[0] < 0 else square[0]
    return total


cdef void moments_of_patch(
    const Task* task, floating* scratch, Lie lie, Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t first_row = block * BLOCK_ROWS, stride, j
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - first_row)
    cdef double mean[TILE]
    cdef double correction[TILE]
    cdef double square[TILE]
    cdef double room[BLOCK_ROWS]
    cdef const double* weights = weights_of_block(room, task, first_row, n_rows)
    cdef double total = total_weight(weights, n_rows)
    cdef double* parts = task.parts + 2 * block * task.shape.n_columns + first
    cdef const floating* x
    x = patch(&stride, scratch, &task.x, &task.shape, lie, first_row, n_rows, first, n_columns, True)
    if task.ignore_nan:
        for j in range(n_columns):
            task.totals[block * task.shape.n_columns + first + j] = moments_of_valid(
                mean + j, correction + j, square + j, x + j * stride, weights, n_rows
            )
    else:
        if first == 0:
            task.totals[block] = total
        if total == 0:
            return
        tile_moments(
            mean, correction, square, x, weights, 1 / total, n_rows,
            whole_lines(n_columns) if lie == ACROSS else n_columns, stride, lie,
        )
    for j in range(n_columns):
        parts[j] = (mean[j] - task.mean[first + j]) + correction[j]
        parts[task.shape.n_columns + j] = square[j]


cdef void find_origins(Task* task, const floating* kind, Py_ssize_t first, Py_ssize_t n_columns) noexcept nogil:
    """A value of each column for its mean to be measured from; it waits where the mean goes."""
    cdef Py_ssize_t j, row
    cdef floating value
    for j in range(first, first + n_columns):
        row = task.first_row
        value = entry(kind, &task.x, &task.shape, row, j)[0]
        while task.ignore_nan and value != value and row < task.shape.n_rows - 1:
            row += 1
            value = entry(kind, &task.x, &task.shape, row, j)[0]
        task.mean[j] = value


cdef void merge_blocks(Task* task, Py_ssize_t first, Py_ssize_t n_columns) noexcept nogil:
    """Mean and variance of some columns from what their blocks found."""
    cdef double mean[TILE]
    cdef double square[TILE]
    cdef double seen, origin, back
    cdef Py_ssize_t j, all_columns = task.shape.n_columns
    memset(mean, 0, sizeof(mean))
    memset(square, 0, sizeof(square))
    if not task.ignore_nan:
        seen = merge_moments(
            mean, square, task.parts + first, task.totals, 0, task.n_blocks, n_columns,
            2 * all_columns, all_columns, 1,
        )
    for j in range(n_columns):
        if task.ignore_nan:
            seen = merge_moments(
                mean + j, square + j, task.parts + first + j, task.totals + first + j, 0, task.n_blocks, 1,
                2 * all_columns, all_columns, all_columns,
            )
            if seen == 0:
                mean[j] = NAN
        # origin + mean in two parts (Knuth's TwoSum).
        origin = task.mean[first + j]
        task.mean[first + j] = origin + mean[j]
        back = task.mean[first + j] - origin
        task.low[first + j] = (origin - (task.mean[first + j] - back)) + (mean[j] - back)
        task.var[first + j] = square[j] / seen
        if task.weight != NULL:
            task.weight[first + j] = seen
        if task.inv_std != NULL:
            task.inv_std[first + j] = inverse_std(task.var[first + j], task.epsilon)


# Factors, activations.


cdef inline void factors_of_columns(
    floating* factors,          # OUT (N_FACTORS, TILE)
    const Task* task, Py_ssize_t first, Py_ssize_t n_columns, bint with_sums,
) noexcept nogil:
    cdef Py_ssize_t j
    cdef double divided = task.share if task.weights == NULL else 1  # else the share goes with the row
    forward_factors(factors, task.mean + first, task.low + first, task.inv_std + first, n_columns)
    if task.gamma != NULL:
        for j in range(n_columns):
            factors[SCALE * TILE + j] = <floating> (task.inv_std[first + j] * task.gamma[first + j])
    if task.beta != NULL:
        for j in range(n_columns):
            factors[SHIFT * TILE + j] = <floating> task.beta[first + j]
    if with_sums:
        for j in range(n_columns):
            factors[MEAN_DZ * TILE + j] = <floating> (task.dbeta[first + j] * divided)
            factors[SLOPE * TILE + j] = <floating> (task.dgamma[first + j] * divided * task.inv_std[first + j])


cdef inline void splat_factors(
    floating* one,              # OUT (N_FACTORS, TILE): the first LANES of each row
    const floating* factors, Py_ssize_t column,
) noexcept nogil:
    """Factors of one column for as many columns as there are lanes."""
    cdef Py_ssize_t k, i
    for k in range(N_FACTORS):
        for i in range(LANES):
            one[k * TILE + i] = factors[k * TILE + column]


cdef inline bint is_fused(int activation) noexcept nogil:
    """Whether the kernels apply the activation themselves."""
    return activation == SKBN_IDENTITY or activation == SKBN_RELU


cdef inline void activate(
    floating* y,                # IN/OUT (n,): z, then activation(z)
    int activation, Py_ssize_t n,
) noexcept nogil:
    cdef floating z[BLOCK_ROWS]  # a loop over one array that is read and written in two names would not vectorize
    if activation == SKBN_TANH or activation == SKBN_LOGISTIC:
        activation_forward(y, activation, 1, n, n)
    else:
        memcpy(z, y, n * sizeof(floating))
        elementwise_forward(y, <const floating*> z, 1, n, n, activation)


cdef inline void deactivate(
    floating* dz,               # IN/OUT (n,): z, then dz
    const floating* dy, int activation, Py_ssize_t n,
) noexcept nogil:
    cdef floating y[BLOCK_ROWS]
    memcpy(y, dz, n * sizeof(floating))
    if activation == SKBN_TANH or activation == SKBN_LOGISTIC:
        activation_forward(y, activation, 1, n, n)
        memcpy(dz, dy, n * sizeof(floating))
        activation_backward(dz, <const floating*> y, activation, 1, n)
    else:
        elementwise_backward(dz, dy, <const floating*> y, 1, n, activation)


# Elementwise passes.


cdef inline void normalize_run(
    floating* y, const floating* x, const floating* factors, Py_ssize_t n_rows, bint rectify, bint past_cache,
) noexcept nogil:
    """One column of a block, number after number: a matrix of LANES columns with the same factors."""
    cdef floating room[LANES]
    cdef Py_ssize_t full = n_rows // LANES, rest = n_rows % LANES
    normalize_tile(y, x, factors, full, LANES, LANES, LANES, rectify, past_cache and <size_t> y % 64 == 0)
    if rest:
        memset(room, 0, sizeof(room))
        memcpy(room, x + full * LANES, rest * sizeof(floating))
        normalize_tile(room, <const floating*> room, factors, 1, LANES, LANES, LANES, rectify, False)
        memcpy(y + full * LANES, room, rest * sizeof(floating))


cdef void normalize_block(
    floating* y, const floating* x, const floating* factors, int activation, Lie lie,
    Py_ssize_t n_rows, Py_ssize_t n_columns, Py_ssize_t y_stride, Py_ssize_t x_stride, bint past_cache,
) noexcept nogil:
    cdef floating one[N_FACTORS * TILE]
    cdef bint rectify = activation == SKBN_RELU
    cdef Py_ssize_t i, j
    if lie == ACROSS:
        past_cache = past_cache and <size_t> y % 64 == 0 and y_stride * sizeof(floating) % 64 == 0
        for i from 0 <= i < n_rows by 8:  # GROUP
            normalize_tile(
                y + i * y_stride, x + i * x_stride, factors, min(<Py_ssize_t> GROUP, n_rows - i),
                whole_lines(n_columns), y_stride, x_stride, rectify, past_cache,
            )
        if not is_fused(activation):
            for i in range(n_rows):
                activate(y + i * y_stride, activation, n_columns)
    else:
        for j in range(n_columns):
            splat_factors(one, factors, j)
            normalize_run(y + j * y_stride, x + j * x_stride, <const floating*> one, n_rows, rectify, past_cache)
            if not is_fused(activation):
                activate(y + j * y_stride, activation, n_rows)


cdef void normalize_patch(
    const Task* task, floating* scratch, Lie lie, Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t first_row = block * BLOCK_ROWS, x_stride, y_stride
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - first_row)
    cdef floating factors[N_FACTORS * TILE]
    cdef const floating* x
    cdef floating* y
    x = patch(&x_stride, scratch, &task.x, &task.shape, lie, first_row, n_rows, first, n_columns, True)
    scratch += PATCH
    y = patch(&y_stride, scratch, &task.y, &task.shape, lie, first_row, n_rows, first, n_columns, False)
    factors_of_columns(factors, task, first, n_columns, False)
    normalize_block(
        y, x, <const floating*> factors, task.activation, lie, n_rows, n_columns, y_stride, x_stride,
        task.past_cache and y != scratch,
    )
    put_back(
        <const floating*> y, <const floating*> scratch, &task.y, &task.shape, lie,
        first_row, n_rows, first, n_columns,
    )


# Backward.


cdef const floating* gradient_behind(
    Py_ssize_t* stride,         # OUT
    floating* scratch,          # (2, PATCH)
    const Task* task, const floating* x, Py_ssize_t x_stride, const floating* factors, Lie lie,
    Py_ssize_t first_row, Py_ssize_t n_rows, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    """The gradient that the kernels take: dy where they know the activation, else dz in scratch."""
    cdef Py_ssize_t i, dy_stride, n_runs = n_rows if lie == ACROSS else n_columns
    cdef const floating* dy = patch(
        &dy_stride, scratch, &task.dy, &task.shape, lie, first_row, n_rows, first, n_columns, True
    )
    cdef floating* dz = scratch + PATCH
    stride[0] = dy_stride
    if is_fused(task.activation):
        return dy
    stride[0] = TILE if lie == ACROSS else BLOCK_ROWS
    normalize_block(dz, x, factors, SKBN_IDENTITY, lie, n_rows, n_columns, stride[0], x_stride, False)
    for i in range(n_runs):
        deactivate(
            dz + i * stride[0], dy + i * dy_stride, task.activation,
            whole_lines(n_columns) if lie == ACROSS else n_rows,
        )
    return dz


cdef inline void gradient_sums_of_run(
    double* total, double* total_xhat,      # OUT (1,)
    const floating* dy, const floating* x, const floating* factors, Py_ssize_t n_rows, bint rectify,
) noexcept nogil:
    """One column of a block, filled up with rows without gradient."""
    cdef floating filled_dy[BLOCK_ROWS]
    cdef floating filled_x[BLOCK_ROWS]
    cdef floating part[LANES]
    cdef floating part_xhat[LANES]
    cdef double lanes[LANES]
    cdef double lanes_xhat[LANES]
    cdef Py_ssize_t i, n_full = (n_rows + LANES - 1) // LANES
    if n_rows % LANES:
        memcpy(filled_dy, dy, n_rows * sizeof(floating))
        memcpy(filled_x, x, n_rows * sizeof(floating))
        for i in range(n_rows, n_full * LANES):
            filled_dy[i] = 0
            filled_x[i] = x[0]
        dy = filled_dy
        x = filled_x
    for i from 0 <= i < n_full by 4:  # STRIP
        gradient_sums_of_tile(
            part, part_xhat, dy + i * LANES, x + i * LANES, factors, min(<Py_ssize_t> STRIP, n_full - i),
            LANES, LANES, LANES, rectify, i > 0,
        )
    for i in range(LANES):
        lanes[i] = part[i]
        lanes_xhat[i] = part_xhat[i]
    add_lanes(total, lanes, 1)
    add_lanes(total_xhat, lanes_xhat, 1)


cdef void gradient_sums_of_patch(
    const Task* task, floating* scratch, Lie lie, Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t first_row = block * BLOCK_ROWS, x_stride, dy_stride, lane, i, j
    cdef Py_ssize_t width = whole_lines(n_columns)
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - first_row)
    cdef bint rectify = task.activation == SKBN_RELU
    cdef floating factors[N_FACTORS * TILE]
    cdef floating one[N_FACTORS * TILE]
    cdef floating part[LANES * TILE]
    cdef floating part_xhat[LANES * TILE]
    cdef double lanes[LANES * TILE]
    cdef double lanes_xhat[LANES * TILE]
    cdef double* dbeta = task.parts + 2 * block * task.shape.n_columns + first
    cdef double* dgamma = dbeta + task.shape.n_columns
    cdef const floating* x
    cdef const floating* dy
    factors_of_columns(factors, task, first, n_columns, False)
    x = patch(&x_stride, scratch, &task.x, &task.shape, lie, first_row, n_rows, first, n_columns, True)
    dy = gradient_behind(
        &dy_stride, scratch + PATCH, task, x, x_stride, <const floating*> factors, lie,
        first_row, n_rows, first, n_columns,
    )
    if lie == DOWN:
        for j in range(n_columns):
            splat_factors(one, <const floating*> factors, j)
            gradient_sums_of_run(
                dbeta + j, dgamma + j, dy + j * dy_stride, x + j * x_stride, <const floating*> one, n_rows, rectify
            )
        return
    for i from 0 <= i < n_rows by 64:  # STRIP * LANES
        for lane in range(LANES):
            gradient_sums_of_tile(
                part + lane * TILE, part_xhat + lane * TILE, dy + (i + lane) * dy_stride, x + (i + lane) * x_stride,
                <const floating*> factors, rows_in_lane(n_rows - i, lane), width,
                LANES * dy_stride, LANES * x_stride, rectify, i > 0,
            )
    for lane in range(LANES):
        for j in range(n_columns):
            lanes[lane * n_columns + j] = part[lane * TILE + j]
            lanes_xhat[lane * n_columns + j] = part_xhat[lane * TILE + j]
    add_lanes(dbeta, lanes, n_columns)
    add_lanes(dgamma, lanes_xhat, n_columns)


cdef void merge_gradients(Task* task, Py_ssize_t first, Py_ssize_t n_columns) noexcept nogil:
    cdef Py_ssize_t block, j
    cdef const double* parts = task.parts + first
    memset(task.dbeta + first, 0, n_columns * sizeof(double))
    memset(task.dgamma + first, 0, n_columns * sizeof(double))
    for block in range(task.n_blocks):
        for j in range(n_columns):
            task.dbeta[first + j] = task.dbeta[first + j] + parts[j]
            task.dgamma[first + j] = task.dgamma[first + j] + parts[task.shape.n_columns + j]
        parts += 2 * task.shape.n_columns


cdef inline void input_gradient_of_run(
    floating* dx, const floating* dy, const floating* x, const floating* factors, Py_ssize_t n_rows,
    bint rectify, bint past_cache,
) noexcept nogil:
    cdef floating room_dy[LANES]
    cdef floating room_x[LANES]
    cdef Py_ssize_t full = n_rows // LANES, rest = n_rows % LANES
    input_gradient_of_tile(
        dx, dy, x, factors, NULL, 0, full, LANES, LANES, LANES, LANES, rectify, past_cache and <size_t> dx % 64 == 0
    )
    if rest:
        memset(room_dy, 0, sizeof(room_dy))
        memset(room_x, 0, sizeof(room_x))
        memcpy(room_dy, dy + full * LANES, rest * sizeof(floating))
        memcpy(room_x, x + full * LANES, rest * sizeof(floating))
        input_gradient_of_tile(
            room_dy, <const floating*> room_dy, <const floating*> room_x, factors, NULL, 0,
            1, LANES, LANES, LANES, LANES, rectify, False,
        )
        memcpy(dx + full * LANES, room_dy, rest * sizeof(floating))


cdef void input_gradient_of_patch(
    const Task* task, floating* scratch, Lie lie, Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t first_row = block * BLOCK_ROWS, x_stride, dy_stride, dx_stride, i, j
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - first_row)
    cdef bint rectify = task.activation == SKBN_RELU, past_cache = task.past_cache
    cdef floating factors[N_FACTORS * TILE]
    cdef floating one[N_FACTORS * TILE]
    cdef double room[BLOCK_ROWS]
    cdef const double* weights = weights_of_block(room, task, first_row, n_rows)
    cdef const floating* x
    cdef const floating* dy
    cdef floating* dx
    factors_of_columns(factors, task, first, n_columns, True)
    x = patch(&x_stride, scratch, &task.x, &task.shape, lie, first_row, n_rows, first, n_columns, True)
    dy = gradient_behind(
        &dy_stride, scratch + PATCH, task, x, x_stride, <const floating*> factors, lie,
        first_row, n_rows, first, n_columns,
    )
    scratch += 3 * PATCH
    dx = patch(&dx_stride, scratch, &task.y, &task.shape, lie, first_row, n_rows, first, n_columns, False)
    past_cache = past_cache and dx != scratch
    if lie == ACROSS:
        past_cache = past_cache and <size_t> dx % 64 == 0 and dx_stride * sizeof(floating) % 64 == 0
        for i from 0 <= i < n_rows by 8:  # GROUP
            input_gradient_of_tile(
                dx + i * dx_stride, dy + i * dy_stride, x + i * x_stride, <const floating*> factors,
                weights + i if weights != NULL else NULL, task.share, min(<Py_ssize_t> GROUP, n_rows - i),
                whole_lines(n_columns), dx_stride, dy_stride, x_stride, rectify, past_cache,
            )
    else:
        for j in range(n_columns):
            splat_factors(one, <const floating*> factors, j)
            input_gradient_of_run(
                dx + j * dx_stride, dy + j * dy_stride, x + j * x_stride, <const floating*> one, n_rows,
                rectify, past_cache,
            )
    put_back(
        <const floating*> dx, <const floating*> scratch, &task.y, &task.shape, lie,
        first_row, n_rows, first, n_columns,
    )


# Passes: units shared out over threads.


cdef void do_patch(
    Task* task, floating* scratch, What what, Lie lie, Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    if what == MOMENTS:
        moments_of_patch(task, scratch, lie, block, first, n_columns)
    elif what == NORMALIZE:
        normalize_patch(task, scratch, lie, block, first, n_columns)
    elif what == SUM_GRADIENTS:
        gradient_sums_of_patch(task, scratch, lie, block, first, n_columns)
    else:
        input_gradient_of_patch(task, scratch, lie, block, first, n_columns)


cdef void do_block(Task* task, floating* scratch, What what, Py_ssize_t block, Py_ssize_t tile) noexcept nogil:
    """A block by a tile: columns side by side, then the rest."""
    cdef Py_ssize_t first = tile * TILE, n_columns = min(<Py_ssize_t> TILE, task.shape.n_columns - tile * TILE)
    cdef Py_ssize_t across = 0 if task.ignore_nan else columns_across(task, n_columns)
    if across > 0:
        do_patch(task, scratch, what, ACROSS, block, first, across)
    if across < n_columns:
        do_patch(task, scratch, what, DOWN, block, first + across, n_columns - across)


cdef void do_tile(Task* task, floating* scratch, What what, Py_ssize_t tile) noexcept nogil:
    """All that is left to do for a tile: merge, or every pass after the other while its columns are in the cache."""
    cdef Py_ssize_t first = tile * TILE, n_columns = min(<Py_ssize_t> TILE, task.shape.n_columns - tile * TILE), block
    if what == FORWARD:
        find_origins(task, <const floating*> scratch, first, n_columns)
        for block in range(task.n_blocks):
            do_block(task, scratch, MOMENTS, block, tile)
    if what == BACKWARD:
        for block in range(task.n_blocks):
            do_block(task, scratch, SUM_GRADIENTS, block, tile)
    if what == FORWARD or what == MERGE_MOMENTS:
        merge_blocks(task, first, n_columns)
    else:
        merge_gradients(task, first, n_columns)
    if what == FORWARD and task.y.data != NULL:
        for block in range(task.n_blocks - 1, -1, -1):
            do_block(task, scratch, NORMALIZE, block, tile)
    if what == BACKWARD:
        for block in range(task.n_blocks - 1, -1, -1):
            do_block(task, scratch, INPUT_GRADIENT, block, tile)


cdef void do_unit(Task* task, floating* scratch, What what, Py_ssize_t unit) noexcept nogil:
    if what == FORWARD or what == BACKWARD or what == MERGE_MOMENTS or what == MERGE_GRADIENTS:
        do_tile(task, scratch, what, unit)
        return
    if what == NORMALIZE or what == INPUT_GRADIENT:  # from the end, where the pass before stopped
        unit = task.n_blocks * task.n_tiles - 1 - unit
    if task.tiles_first:
        do_block(task, scratch, what, unit % task.n_blocks, unit // task.n_blocks)
    else:
        do_block(task, scratch, what, unit // task.n_tiles, unit % task.n_tiles)


cdef void run_units(Task* task, floating* scratch, What what, Py_ssize_t n_units) noexcept nogil:
    cdef Py_ssize_t unit
    if task.threads == 1:
        for unit in range(n_units):
            do_unit(task, scratch, what, unit)
    else:
        for unit in prange(n_units, num_threads=task.threads, schedule="static"):
            do_unit(task, scratch + threadid() * N_PATCHES * PATCH, what, unit)
    if task.past_cache:
        stream_end()


cdef void run_whole(Task* task, floating* scratch, What whole) noexcept nogil:
    """Forward (with y or without) or backward: tile by tile where columns stay in the cache, else pass by pass."""
    cdef Py_ssize_t n_units = task.n_blocks * task.n_tiles
    cdef Py_ssize_t n_bytes = task.shape.n_rows * TILE * sizeof(floating)
    if n_bytes <= CACHE_BYTES and (task.threads == 1 or task.n_tiles >= task.threads):
        run_units(task, scratch, whole, task.n_tiles)
    elif whole == FORWARD:
        find_origins(task, <const floating*> scratch, 0, task.shape.n_columns)
        run_units(task, scratch, MOMENTS, n_units)
        run_units(task, scratch, MERGE_MOMENTS, task.n_tiles)
        if task.y.data != NULL:
            run_units(task, scratch, NORMALIZE, n_units)
    else:
        run_units(task, scratch, SUM_GRADIENTS, n_units)
        run_units(task, scratch, MERGE_GRADIENTS, task.n_tiles)
        run_units(task, scratch, INPUT_GRADIENT, n_units)


# From Python.


cdef double* doubles(object array, Py_ssize_t size) except? NULL:
    """Data of a contiguous float64 array of at least this many entries; NULL for None."""
    cdef Py_buffer buffer
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    fits = buffer.format[0] == b"d" and buffer.len >= size * <Py_ssize_t> sizeof(double)
    PyBuffer_Release(&buffer)  # the caller holds the array
    if not fits:
        raise ValueError(f"Expected {size} numbers of type 'd', got {array.dtype.char!r} with shape {array.shape}.")
    return <double*> buffer.buf


cdef void* numbers(object array, object like, bint writable, Py_ssize_t* strides) except? NULL:
    """Data and strides, in numbers, of an array of the shape and type of another."""
    cdef Py_buffer buffer
    cdef bint fits
    cdef int axis
    PyObject_GetBuffer(array, &buffer, PyBUF_STRIDED_RO | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
    fits = (
        buffer.format[0] in (b"f", b"d") and array.dtype == like.dtype and array.shape == like.shape
        and <size_t> buffer.buf % buffer.itemsize == 0
    )
    for axis in range(buffer.ndim):
        fits = fits and buffer.strides[axis] % buffer.itemsize == 0
        strides[axis] = buffer.strides[axis] // buffer.itemsize
    PyBuffer_Release(&buffer)
    if not fits:
        raise ValueError(
            f"Expected aligned numbers of type {like.dtype.char!r} in shape {like.shape}, got "
            f"{array.dtype.char!r} in shape {array.shape}."
        )
    return buffer.buf


cdef int add_axis(
    Py_ssize_t* lengths, int n_axes, Py_ssize_t length,
    Py_ssize_t** strides, const Py_ssize_t** stride, int n_operands,
) noexcept:
    """Add an axis to rows or columns, or lengthen the last where all operands allow it; return how many there are."""
    cdef int k
    cdef bint merges = n_axes > 0
    for k in range(n_operands):
        merges = merges and strides[k][n_axes - 1] == length * stride[k][0]
    if merges:
        n_axes -= 1
        length *= lengths[n_axes]
    lengths[n_axes] = length
    for k in range(n_operands):
        strides[k][n_axes] = stride[k][0]
    return n_axes + 1


cdef class Call:
    """A task, and what it refers to.

    Parameters
    ----------
    x : ndarray
        Input.
    axes : tuple of int
        Axes that keep their statistics.
    weights : ndarray of float64 or None
        Weight of each entry of the first axis.
    dy, y : ndarray or None
        Gradient, and where to write.
    """

    cdef Task task
    cdef bint is_double
    cdef list owners

    def __init__(self, x, tuple axes, weights, dy=None, y=None):
        cdef Task* task = &self.task
        cdef Shape* shape = &task.shape
        cdef Operand* operands[3]
        cdef Py_ssize_t all_strides[3][MAX_AXES]
        cdef Py_ssize_t* row_strides[3]
        cdef Py_ssize_t* column_strides[3]
        cdef const Py_ssize_t* stride[3]
        cdef Py_ssize_t length
        cdef int n_operands = 0, axis, k
        memset(task, 0, sizeof(Task))
        self.owners = [x, weights, dy, y]
        self.is_double = x.dtype == np.float64
        operands[0] = &task.x
        operands[1] = &task.dy
        operands[2] = &task.y
        for operand, array in enumerate((x, dy, y)):
            if array is not None:
                k = operand
                operands[n_operands] = operands[k]
                operands[k].data = numbers(array, x, k == 2, all_strides[n_operands])
                row_strides[n_operands] = operands[k].row_strides
                column_strides[n_operands] = operands[k].column_strides
                n_operands += 1
        shape.n_rows = 1
        shape.n_columns = 1
        for axis in range(x.ndim):
            length = x.shape[axis]
            for k in range(n_operands):
                stride[k] = &all_strides[k][axis]
            if axis in axes:
                shape.n_columns *= length
                if length != 1:
                    shape.n_column_axes = add_axis(
                        shape.column_axes, shape.n_column_axes, length, column_strides, stride, n_operands
                    )
            else:
                shape.n_rows *= length
                if length != 1:
                    shape.n_row_axes = add_axis(
                        shape.row_axes, shape.n_row_axes, length, row_strides, stride, n_operands
                    )
        task.n_blocks = (shape.n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
        task.n_tiles = (shape.n_columns + TILE - 1) // TILE
        task.tiles_first = innermost(task.x.row_strides, shape.n_row_axes) == 1
        task.past_cache = y is not None and y.nbytes >= STREAM_BYTES and not any(
            other is not None and np.may_share_memory(y, other) for other in (x, dy)
        )
        task.threads = 1
        if shape.n_rows * shape.n_columns >= PARALLEL_NUMBERS:
            task.threads = min(<Py_ssize_t> n_threads(), task.n_blocks * task.n_tiles)
        task.share = 1.0 / shape.n_rows
        if weights is not None:
            task.rows_per_sample = shape.n_rows // <Py_ssize_t> weights.shape[0]
            task.weights = doubles(weights, weights.shape[0])
            task.share = 1 / (weights.sum() * task.rows_per_sample)
            task.first_row = weights.argmax() * task.rows_per_sample

    cdef double* parameter(self, object array) except? NULL:
        """Data of one number a column, kept alive; NULL for None."""
        self.owners.append(array)
        return doubles(array, self.task.shape.n_columns)

    cdef run(self, What what):
        """Compute: the whole of forward or backward, or one pass."""
        cdef Task* task = &self.task
        cdef Py_ssize_t n_columns = task.shape.n_columns, n_units = task.n_blocks * task.n_tiles
        cdef void* room
        cdef Py_buffer buffer
        scratch = np.empty(task.threads * N_PATCHES * PATCH, np.float64 if self.is_double else np.float32)
        parts = np.empty(2 * task.n_blocks * n_columns)
        totals = np.empty(task.n_blocks * (n_columns if task.ignore_nan else 1))
        task.parts = doubles(parts, 0)
        task.totals = doubles(totals, 0)
        PyObject_GetBuffer(scratch, &buffer, PyBUF_WRITABLE)
        room = buffer.buf
        PyBuffer_Release(&buffer)
        with nogil:
            if what == NORMALIZE and self.is_double:
                run_units(task, <double*> room, what, n_units)
            elif what == NORMALIZE:
                run_units(task, <float*> room, what, n_units)
            elif self.is_double:
                run_whole(task, <double*> room, what)
            else:
                run_whole(task, <float*> room, what)


def moments(x, axes, weights=None, bint ignore_nan=False):
    """Return weight, mean in two parts and biased variance of each column, (4, n_columns)."""
    cdef Call call = Call(x, axes, weights)
    cdef Task* task = &call.task
    statistics = np.empty((4, task.shape.n_columns))
    task.ignore_nan = ignore_nan
    task.weight = call.parameter(statistics[0])
    task.mean = call.parameter(statistics[1])
    task.low = call.parameter(statistics[2])
    task.var = call.parameter(statistics[3])
    call.run(FORWARD)
    return statistics


def batch_norm_forward(y, x, axes, gamma, beta, double epsilon, int activation, weights=None):
    """Normalize with the statistics of x; return mean in two parts, variance and 1/std, (4, n_columns)."""
    cdef Call call = Call(x, axes, weights, None, y)
    cdef Task* task = &call.task
    statistics = np.empty((4, task.shape.n_columns))
    task.mean = call.parameter(statistics[0])
    task.low = call.parameter(statistics[1])
    task.var = call.parameter(statistics[2])
    task.inv_std = call.parameter(statistics[3])
    task.gamma = call.parameter(gamma)
    task.beta = call.parameter(beta)
    task.epsilon = epsilon
    task.activation = activation
    call.run(FORWARD)
    return statistics


def batch_norm_forward_eval(y, x, axes, gamma, beta, mean, low, var, double epsilon, int activation):
    """Normalize with given statistics."""
    cdef Call call = Call(x, axes, None, None, y)
    cdef Task* task = &call.task
    cdef Py_ssize_t j
    task.mean = call.parameter(mean)
    task.low = call.parameter(low)
    task.var = call.parameter(var)
    task.inv_std = call.parameter(np.empty(task.shape.n_columns))
    task.gamma = call.parameter(gamma)
    task.beta = call.parameter(beta)
    task.activation = activation
    for j in range(task.shape.n_columns):
        task.inv_std[j] = inverse_std(task.var[j], epsilon)
    call.run(NORMALIZE)


def batch_norm_backward(dx, dy, x, axes, gamma, beta, statistics, int activation, weights=None):
    """Write dx; return dgamma and dbeta, (2, n_columns)."""
    cdef Call call = Call(x, axes, weights, dy, dx)
    cdef Task* task = &call.task
    sums = np.empty((2, task.shape.n_columns))
    task.mean = call.parameter(statistics[0])
    task.low = call.parameter(statistics[1])
    task.inv_std = call.parameter(statistics[3])
    task.gamma = call.parameter(gamma)
    task.beta = call.parameter(beta)
    task.dgamma = call.parameter(sums[0])
    task.dbeta = call.parameter(sums[1])
    task.activation = activation
    call.run(BACKWARD)
    return sums
