# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalization of arrays of any layout, at the speed of memory. Formulas:
docs/user_guide/batch_normalization.md.

The kernels are the network's (batch_norm.pxd); what is different is that rows are many and lie as the user has them. An
array is cut into blocks of BLOCK_ROWS rows by tiles of columns (layout.pxd). Sums are taken block by block and
merged in the order of the blocks: mean and squared deviations by Chan et al. (1979), relative to the first row, so that
means far from zero keep their digits. Blocks depend on the number of rows alone and every column is summed for itself,
so a result has the same bits whatever the layout, the neighbours and the number of threads.

Passes over memory: forward reads x twice and writes y, backward reads x and dy twice and writes dx; once each where the
columns of a tile fit the cache. The second pass runs backwards, over what the first has left in the cache. Large
results are written past it.
"""

from cython cimport floating
from cython.parallel cimport parallel, threadid
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_STRIDED_RO,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.math cimport NAN, fabs
from libc.string cimport memcpy, memset

import sys

from collections import defaultdict
from time import perf_counter

import numpy as np

from skbn.backends.cpu.activations cimport activation_backward, activation_forward
from skbn.backends.cpu.batch_norm cimport (
    ACROSS,
    BLOCK_ROWS,
    DOWN,
    DOWN_THE_LINES,
    END_TO_END,
    GRADIENT_STRIP,
    HIGH,
    INV_STD,
    LANES,
    MEAN_DZ,
    N_FACTORS,
    ROW_BY_ROW,
    SCALE,
    SHIFT,
    SLOPE,
    STREAMING,
    TILE,
    Lie,
    Order,
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
from skbn.backends.cpu.lines cimport stream_end
from skbn.backends.cpu.team cimport (
    SKBN_HAS_TEAMS,
    Team,
    Worker,
    clock,
    first_tile,
    meet,
    next_tile,
    report,
    workers_here,
)
from skbn.backends.records cimport (
    SKBN_IDENTITY,
    SKBN_LOGISTIC,
    SKBN_RELU,
    SKBN_TANH,
)

from skbn.backends.cpu.threads import Pace, n_threads

_paces = defaultdict(Pace)  # of each task

cdef char NATIVE = ord("<" if sys.byteorder == "little" else ">")

cdef enum:
    GROUP = 8  # rows that an elementwise kernel goes down at a time
    PARALLEL_NUMBERS = 400_000  # below, a parallel region costs more than it saves
    CACHE_BYTES = 512 * 1024  # columns of a tile that stay in the cache of a core between passes
    STREAM_BYTES = 32 * 1024 * 1024  # larger results would only push out of the cache what is still needed
    WIDE_TILE = 512  # columns of a tile where nothing needs to be copied: longer stretches of memory
    PANEL = 1024  # the same for elementwise passes, which keep nothing of a column
    PATCH = BLOCK_ROWS * TILE  # numbers in scratch for one operand
    N_PATCHES = 4
    N_ROOMS = 4 + 3 * LANES  # sums in scratch for a column of a tile
    N_RUN_ROOMS = 4 + 12 * LANES  # the same where rows lie end to end, filled strips included

cdef enum What:  # what a pass does with a unit: a block by a tile, or a whole tile
    START
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
    Py_ssize_t n_blocks, n_tiles, tile          # columns of a tile
    Py_ssize_t n_panels, panel                  # the same for elementwise passes
    bint end_to_end             # whether few columns lie side by side in every operand, row after row
    bint rows_are_near          # nearer to each other than columns: blocks of a tile before tiles of a block
    bint ignore_nan
    Order order                 # of elementwise passes
    int threads
    const double* weights       # one a sample; NULL: ones
    Py_ssize_t rows_per_sample
    Py_ssize_t first_row        # the first one that counts
    double share                # 1 / weight of all rows
    double* rooms               # (threads, room_size)
    Py_ssize_t room_size
    void* factors               # (N_FACTORS, n_columns) by pitch
    Py_ssize_t pitch
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
    unsigned char* is_extreme   # OUT (n_columns,) a factor is out of the range of float32, or nearly so
    bint needs_double           # OUT so it is in one of the columns
    bint goes_on                # whatever the factors


# Patches: where the numbers of a block by some columns are, or a copy of them.


cdef inline Py_ssize_t scratch_stride(Lie lie, Py_ssize_t n_columns) noexcept nogil:
    """Between the rows of a patch in scratch, or where they lie DOWN, between its columns."""
    return TILE if lie == ACROSS else BLOCK_ROWS if lie == DOWN else n_columns


cdef inline floating* patch(
    Py_ssize_t* stride,         # OUT between rows (ACROSS) or columns (DOWN)
    floating* scratch,          # (BLOCK_ROWS, TILE) or (TILE, BLOCK_ROWS)
    const Operand* operand, const Shape* shape, Lie lie,
    Py_ssize_t first_row, Py_ssize_t n_rows, Py_ssize_t first_column, Py_ssize_t n_columns, bint read,
) noexcept nogil:
    """Numbers of an operand as a kernel needs them: where they are, if they lie that way, else in scratch."""
    cdef Py_ssize_t row_stride = innermost(operand.row_strides, shape.n_row_axes)
    cdef Py_ssize_t column_stride = innermost(operand.column_strides, shape.n_column_axes)
    if lie == END_TO_END:
        stride[0] = n_columns
        return entry(<const floating*> scratch, operand, shape, first_row, first_column)
    if (
        (n_columns % LANES == 0 and column_stride == 1 if lie == ACROSS else row_stride == 1)
        and stretch(shape.row_axes, shape.n_row_axes, first_row, n_rows) == n_rows
        and stretch(shape.column_axes, shape.n_column_axes, first_column, n_columns) == n_columns
    ):
        stride[0] = row_stride if lie == ACROSS else column_stride
        return entry(<const floating*> scratch, operand, shape, first_row, first_column)
    stride[0] = scratch_stride(lie, n_columns)
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

    Those that are nearer to each other in memory than the rows are, as far as they fill whole lines. Weights go with
    the rows, so with weights all are, filled up to whole lines.
    """
    if task.weights != NULL:
        return n_columns
    if task.rows_are_near:
        return 0
    return n_columns // LANES * LANES


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
    const Task* task, floating* scratch, double* room, Lie lie,
    Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t first_row = block * BLOCK_ROWS, stride, j, width = whole_lines(n_columns)
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - first_row)
    cdef double* mean = room
    cdef double* correction = room + width
    cdef double* square = room + 2 * width
    cdef double row_weights[BLOCK_ROWS]
    cdef const double* weights = weights_of_block(row_weights, task, first_row, n_rows)
    cdef double* parts = task.parts + 2 * block * task.shape.n_columns + first
    cdef const floating* x
    x = patch(&stride, scratch, &task.x, &task.shape, lie, first_row, n_rows, first, n_columns, True)
    if task.ignore_nan:
        for j in range(n_columns):
            task.totals[block * task.shape.n_columns + first + j] = moments_of_valid(
                mean + j, correction + j, square + j, x + j * stride, weights, n_rows
            )
    else:
        if task.totals[block] == 0:
            return
        tile_moments(
            mean, correction, square, x, weights, 1 / task.totals[block], room + 3 * width, n_rows,
            width if lie == ACROSS else n_columns, stride, lie,
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
        while (
            task.ignore_nan and row < task.shape.n_rows - 1
            and (value != value or task.weights != NULL and task.weights[row // task.rows_per_sample] == 0)
        ):
            row += 1
            value = entry(kind, &task.x, &task.shape, row, j)[0]
        task.mean[j] = value


cdef void merge_blocks(Task* task, double* room, Py_ssize_t first, Py_ssize_t n_columns) noexcept nogil:
    """Mean and variance of some columns from what their blocks found."""
    cdef double* mean = room
    cdef double* square = room + n_columns
    cdef double seen = 0, origin, back
    cdef Py_ssize_t j, all_columns = task.shape.n_columns
    memset(room, 0, 2 * n_columns * sizeof(double))
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


# Factors, activations.


cdef inline floating* factors_from(const floating* kind, const Task* task, Py_ssize_t first) noexcept nogil:
    return <floating*> task.factors + first


cdef inline bint is_extreme(float factor) noexcept nogil:
    """Whether what it multiplies, or the product, may leave the range of float32 on the way."""
    return factor != 0 and (fabs(factor) < 1e-30 or fabs(factor) > 1e30)


cdef void set_factors(Task* task, const floating* kind, Py_ssize_t first, Py_ssize_t n_columns) noexcept nogil:
    """What normalizing some columns takes, from their mean and variance."""
    cdef floating* factors = factors_from(kind, task, first)
    cdef Py_ssize_t j
    if task.var != NULL:  # backward takes what forward saved
        for j in range(first, first + n_columns):
            task.inv_std[j] = inverse_std(task.var[j], task.epsilon)
    forward_factors(factors, task.pitch, task.mean + first, task.low + first, task.inv_std + first, n_columns)
    for j in range(n_columns):
        factors[INV_STD * task.pitch + j] = <floating> task.inv_std[first + j]
    if task.gamma != NULL:
        for j in range(n_columns):
            factors[SCALE * task.pitch + j] = <floating> (task.inv_std[first + j] * task.gamma[first + j])
    if task.beta != NULL:
        for j in range(n_columns):
            factors[SHIFT * task.pitch + j] = <floating> task.beta[first + j]
    if task.end_to_end:
        repeat_factors(factors, task.pitch, <const floating*> factors, task.pitch, n_columns)
    if floating is float:
        for j in range(n_columns):
            if (
                is_extreme(factors[INV_STD * task.pitch + j]) or is_extreme(factors[SCALE * task.pitch + j])
                or fabs(task.mean[first + j]) > 1e30
            ):
                task.is_extreme[first + j] = 1
                task.needs_double = True


cdef inline void repeat_factors(
    floating* repeated, Py_ssize_t pitch,       # OUT (N_FACTORS, LANES * n_columns) by pitch
    const floating* factors, Py_ssize_t factors_pitch, Py_ssize_t n_columns,
) noexcept nogil:
    """Factors of some columns for LANES rows end to end."""
    cdef Py_ssize_t k, i, j
    for k in range(N_FACTORS):
        for i in range(LANES):
            for j in range(n_columns):
                repeated[k * pitch + i * n_columns + j] = factors[k * factors_pitch + j]


cdef inline bint is_fused(int activation) noexcept nogil:
    """Whether the kernels apply the activation themselves."""
    return activation == SKBN_IDENTITY or activation == SKBN_RELU


cdef inline void activate(
    floating* y,                # IN/OUT (n,): z, then activation(z)
    int activation, Py_ssize_t n,
) noexcept nogil:
    cdef floating z[BLOCK_ROWS]  # a loop over one array that is read and written in two names would not vectorize
    if activation == SKBN_TANH or activation == SKBN_LOGISTIC:
        activation_forward(y, activation, 1, n, n, n)
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
        activation_forward(y, activation, 1, n, n, n)
        memcpy(dz, dy, n * sizeof(floating))
        activation_backward(dz, <const floating*> y, activation, 1, n, n)
    else:
        elementwise_backward(dz, dy, <const floating*> y, 1, n, activation)


# Elementwise passes.


cdef inline Py_ssize_t repeat_length(Py_ssize_t n_columns) noexcept nogil:
    """Numbers of rows end to end after which the factors repeat at the beginning of a line."""
    return n_columns if n_columns % LANES == 0 else LANES * n_columns


cdef inline Order order_for(const floating* y, Py_ssize_t stride, Order wanted) noexcept nogil:
    """Past the cache only if that was wanted and y lies on the boundaries of lines."""
    if wanted == STREAMING and (<size_t> y % 64 or stride * sizeof(floating) % 64):
        return ROW_BY_ROW
    return wanted


cdef inline void normalize_run(
    floating* y, const floating* x, const floating* factors, Py_ssize_t pitch,
    Py_ssize_t n_numbers, Py_ssize_t width, bint rectify, Order order,
) noexcept nogil:
    """Numbers side by side, whose factors repeat after `width`, which is whole lines."""
    cdef floating room[LANES * TILE]
    cdef Py_ssize_t full = n_numbers // width, rest = n_numbers % width
    order = order_for(<const floating*> y, width, order)
    normalize_tile(y, x, factors, pitch, full, width, width, width, rectify, order)
    if rest:
        memset(room, 0, width * sizeof(floating))
        memcpy(room, x + full * width, rest * sizeof(floating))
        normalize_tile(room, <const floating*> room, factors, pitch, 1, width, width, width, rectify, DOWN_THE_LINES)
        memcpy(y + full * width, room, rest * sizeof(floating))


cdef void normalize_block(
    floating* y, const floating* x, const floating* factors, Py_ssize_t pitch, int activation, Lie lie,
    Py_ssize_t n_rows, Py_ssize_t n_columns, Py_ssize_t y_stride, Py_ssize_t x_stride, Order order,
) noexcept nogil:
    cdef floating one[N_FACTORS * LANES]
    cdef bint rectify = activation == SKBN_RELU
    cdef Py_ssize_t i, j, step, n_numbers = n_rows * n_columns
    if lie == ACROSS:
        order = order_for(<const floating*> y, y_stride, order)
        step = GROUP if order == DOWN_THE_LINES else n_rows
        for i from 0 <= i < n_rows by step:
            normalize_tile(
                y + i * y_stride, x + i * x_stride, factors, pitch, min(step, n_rows - i), whole_lines(n_columns),
                y_stride, x_stride, rectify, order,
            )
        if not is_fused(activation):
            for i in range(n_rows):
                activate(y + i * y_stride, activation, n_columns)
    elif lie == DOWN:
        for j in range(n_columns):
            repeat_factors(one, LANES, factors + j, pitch, 1)
            normalize_run(
                y + j * y_stride, x + j * x_stride, <const floating*> one, LANES, n_rows, LANES, rectify, order
            )
            if not is_fused(activation):
                activate(y + j * y_stride, activation, n_rows)
    else:
        normalize_run(y, x, factors, pitch, n_numbers, repeat_length(n_columns), rectify, order)
        if not is_fused(activation):
            for i from 0 <= i < n_numbers by 256:  # BLOCK_ROWS
                activate(y + i, activation, min(<Py_ssize_t> BLOCK_ROWS, n_numbers - i))


cdef void normalize_patch(
    const Task* task, floating* scratch, Lie lie, Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t first_row = block * BLOCK_ROWS, x_stride, y_stride
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - first_row)
    cdef const floating* factors = factors_from(<const floating*> scratch, task, first)
    cdef const floating* x
    cdef floating* y
    x = patch(&x_stride, scratch, &task.x, &task.shape, lie, first_row, n_rows, first, n_columns, True)
    scratch += PATCH
    y = patch(&y_stride, scratch, &task.y, &task.shape, lie, first_row, n_rows, first, n_columns, False)
    normalize_block(
        y, x, factors, task.pitch, task.activation, lie, n_rows, n_columns, y_stride, x_stride,
        task.order if y != scratch else DOWN_THE_LINES,
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
    cdef Py_ssize_t i, dy_stride, n_numbers = n_rows * n_columns
    cdef const floating* dy = patch(
        &dy_stride, scratch, &task.dy, &task.shape, lie, first_row, n_rows, first, n_columns, True
    )
    cdef floating* dz = scratch + PATCH
    stride[0] = dy_stride
    if is_fused(task.activation):
        return dy
    stride[0] = scratch_stride(lie, n_columns)
    normalize_block(
        dz, x, factors, task.pitch, SKBN_IDENTITY, lie, n_rows, n_columns, stride[0], x_stride, DOWN_THE_LINES
    )
    if lie == END_TO_END:
        for i from 0 <= i < n_numbers by 256:  # BLOCK_ROWS
            deactivate(dz + i, dy + i, task.activation, min(<Py_ssize_t> BLOCK_ROWS, n_numbers - i))
    else:
        for i in range(n_rows if lie == ACROSS else n_columns):
            deactivate(
                dz + i * stride[0], dy + i * dy_stride, task.activation,
                whole_lines(n_columns) if lie == ACROSS else n_rows,
            )
    return dz


cdef inline void gradient_sums_of_run(
    double* lanes,              # OUT (2, width): the first columns become the sums of dz and of dz * xhat
    const floating* dy, const floating* x,      # IN (n_numbers,) rows of the block end to end
    const floating* factors, Py_ssize_t pitch,  # IN (INV_STD + 1, width) by pitch
    floating* room,             # (2 + 2 * GRADIENT_STRIP, width)
    Py_ssize_t n_numbers, Py_ssize_t columns, bint rectify,
) noexcept nogil:
    """Sums in lanes: LANES rows are one row of a matrix, whose last is filled up without gradient."""
    cdef Py_ssize_t width = LANES * columns, done, left, size, k
    cdef floating* filled_dy = room + 2 * width
    cdef floating* filled_x = filled_dy + GRADIENT_STRIP * width
    cdef const floating* strip_of_dy
    cdef const floating* strip_of_x
    for done from 0 <= done < n_numbers by GRADIENT_STRIP * width:
        left = min(n_numbers - done, GRADIENT_STRIP * width)
        size = (left + width - 1) // width * width
        strip_of_dy = dy + done
        strip_of_x = x + done
        if left < size:
            memcpy(filled_dy, strip_of_dy, left * sizeof(floating))
            memcpy(filled_x, strip_of_x, left * sizeof(floating))
            for k in range(left, size):
                filled_dy[k] = 0
                filled_x[k] = factors[HIGH * pitch + k % width]
            strip_of_dy = filled_dy
            strip_of_x = filled_x
        gradient_sums_of_tile(
            room, room + width, strip_of_dy, strip_of_x, factors, pitch, size // width, width, width, width,
            rectify, done > 0,
        )
    for k in range(2 * width):
        lanes[k] = room[k]
    add_lanes(lanes, columns)
    add_lanes(lanes + width, columns)


cdef void gradient_sums_of_patch(
    const Task* task, floating* scratch, double* room, Lie lie,
    Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t first_row = block * BLOCK_ROWS, x_stride, dy_stride, lane, i, k, width = whole_lines(n_columns)
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - first_row)
    cdef bint rectify = task.activation == SKBN_RELU
    cdef const floating* factors = factors_from(<const floating*> scratch, task, first)
    cdef floating one[N_FACTORS * LANES]
    cdef double* lanes = room
    cdef floating* part = <floating*> (room + LANES * width)
    cdef floating* part_xhat = part + LANES * width
    cdef double* dbeta = task.parts + 2 * block * task.shape.n_columns + first
    cdef double* dgamma = dbeta + task.shape.n_columns
    cdef const floating* x
    cdef const floating* dy
    x = patch(&x_stride, scratch, &task.x, &task.shape, lie, first_row, n_rows, first, n_columns, True)
    dy = gradient_behind(
        &dy_stride, scratch + PATCH, task, x, x_stride, factors, lie, first_row, n_rows, first, n_columns
    )
    if lie == DOWN:
        for i in range(n_columns):
            repeat_factors(one, LANES, factors + i, task.pitch, 1)
            gradient_sums_of_run(
                lanes, dy + i * dy_stride, x + i * x_stride, <const floating*> one, LANES,
                <floating*> (room + 2 * LANES), n_rows, 1, rectify,
            )
            dbeta[i] = lanes[0]
            dgamma[i] = lanes[LANES]
        return
    if lie == END_TO_END:
        gradient_sums_of_run(
            lanes, dy, x, factors, task.pitch, <floating*> (room + 2 * LANES * n_columns),
            n_rows * n_columns, n_columns, rectify,
        )
        memcpy(dbeta, lanes, n_columns * sizeof(double))
        memcpy(dgamma, lanes + LANES * n_columns, n_columns * sizeof(double))
        return
    for i from 0 <= i < n_rows by 64:  # GRADIENT_STRIP * LANES
        for lane in range(LANES):
            gradient_sums_of_tile(
                part + lane * width, part_xhat + lane * width, dy + (i + lane) * dy_stride, x + (i + lane) * x_stride,
                factors, task.pitch, rows_in_lane(n_rows - i, lane, GRADIENT_STRIP), width,
                LANES * dy_stride, LANES * x_stride, rectify, i > 0,
            )
    for k in range(LANES * width):
        lanes[k] = part[k]
    add_lanes(lanes, width)
    memcpy(dbeta, lanes, n_columns * sizeof(double))
    for k in range(LANES * width):
        lanes[k] = part_xhat[k]
    add_lanes(lanes, width)
    memcpy(dgamma, lanes, n_columns * sizeof(double))


cdef void merge_gradients(Task* task, const floating* kind, Py_ssize_t first, Py_ssize_t n_columns) noexcept nogil:
    cdef Py_ssize_t _block, j
    cdef double divided = task.share if task.weights == NULL else 1  # else the share goes with the row
    cdef floating* factors = factors_from(kind, task, first)
    cdef double* dbeta = task.dbeta + first
    cdef double* dgamma = task.dgamma + first
    cdef const double* parts = task.parts + first
    memset(dbeta, 0, n_columns * sizeof(double))
    memset(dgamma, 0, n_columns * sizeof(double))
    for _block in range(task.n_blocks):
        for j in range(n_columns):
            dbeta[j] = dbeta[j] + parts[j]
            dgamma[j] = dgamma[j] + parts[task.shape.n_columns + j]
        parts += 2 * task.shape.n_columns
    for j in range(n_columns):
        factors[MEAN_DZ * task.pitch + j] = <floating> (dbeta[j] * divided)
        factors[SLOPE * task.pitch + j] = <floating> (dgamma[j] * divided * task.inv_std[first + j])
    if task.end_to_end:
        repeat_factors(factors, task.pitch, <const floating*> factors, task.pitch, n_columns)


cdef inline void input_gradient_of_run(
    floating* dx, const floating* dy, const floating* x, const floating* factors, Py_ssize_t pitch,
    Py_ssize_t n_numbers, Py_ssize_t width, bint rectify, Order order,
) noexcept nogil:
    """As normalize_run."""
    cdef floating room_dy[LANES * TILE]
    cdef floating room_x[LANES * TILE]
    cdef Py_ssize_t full = n_numbers // width, rest = n_numbers % width
    input_gradient_of_tile(
        dx, dy, x, factors, pitch, NULL, 0, full, width, width, width, width, rectify,
        order_for(<const floating*> dx, width, order),
    )
    if rest:
        memset(room_dy, 0, width * sizeof(floating))
        memset(room_x, 0, width * sizeof(floating))
        memcpy(room_dy, dy + full * width, rest * sizeof(floating))
        memcpy(room_x, x + full * width, rest * sizeof(floating))
        input_gradient_of_tile(
            room_dy, <const floating*> room_dy, <const floating*> room_x, factors, pitch, NULL, 0,
            1, width, width, width, width, rectify, DOWN_THE_LINES,
        )
        memcpy(dx + full * width, room_dy, rest * sizeof(floating))


cdef void input_gradient_of_patch(
    const Task* task, floating* scratch, Lie lie, Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    cdef Py_ssize_t first_row = block * BLOCK_ROWS, x_stride, dy_stride, dx_stride, i, j, step
    cdef Py_ssize_t n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - first_row)
    cdef bint rectify = task.activation == SKBN_RELU
    cdef Order order
    cdef const floating* factors = factors_from(<const floating*> scratch, task, first)
    cdef floating one[N_FACTORS * LANES]
    cdef double room[BLOCK_ROWS]
    cdef const double* weights = weights_of_block(room, task, first_row, n_rows)
    cdef const floating* x
    cdef const floating* dy
    cdef floating* dx
    x = patch(&x_stride, scratch, &task.x, &task.shape, lie, first_row, n_rows, first, n_columns, True)
    dy = gradient_behind(
        &dy_stride, scratch + PATCH, task, x, x_stride, factors, lie, first_row, n_rows, first, n_columns
    )
    scratch += 3 * PATCH
    dx = patch(&dx_stride, scratch, &task.y, &task.shape, lie, first_row, n_rows, first, n_columns, False)
    order = task.order if dx != scratch else DOWN_THE_LINES
    if lie == ACROSS:
        order = order_for(<const floating*> dx, dx_stride, order)
        step = GROUP if order == DOWN_THE_LINES else n_rows
        for i from 0 <= i < n_rows by step:
            input_gradient_of_tile(
                dx + i * dx_stride, dy + i * dy_stride, x + i * x_stride, factors, task.pitch,
                weights + i if weights != NULL else NULL, task.share, min(step, n_rows - i), whole_lines(n_columns),
                dx_stride, dy_stride, x_stride, rectify, order,
            )
    elif lie == DOWN:
        for j in range(n_columns):
            repeat_factors(one, LANES, factors + j, task.pitch, 1)
            input_gradient_of_run(
                dx + j * dx_stride, dy + j * dy_stride, x + j * x_stride, <const floating*> one, LANES,
                n_rows, LANES, rectify, order,
            )
    else:
        input_gradient_of_run(
            dx, dy, x, factors, task.pitch, n_rows * n_columns, repeat_length(n_columns), rectify, order
        )
    put_back(
        <const floating*> dx, <const floating*> scratch, &task.y, &task.shape, lie,
        first_row, n_rows, first, n_columns,
    )


# Passes: units shared out over threads.


cdef void do_patch(
    Task* task, floating* scratch, double* room, What what, Lie lie,
    Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    if what == MOMENTS:
        moments_of_patch(task, scratch, room, lie, block, first, n_columns)
    elif what == NORMALIZE:
        normalize_patch(task, scratch, lie, block, first, n_columns)
    elif what == SUM_GRADIENTS:
        gradient_sums_of_patch(task, scratch, room, lie, block, first, n_columns)
    else:
        input_gradient_of_patch(task, scratch, lie, block, first, n_columns)


cdef void do_block(
    Task* task, floating* scratch, double* room, What what,
    Py_ssize_t block, Py_ssize_t first, Py_ssize_t n_columns,
) noexcept nogil:
    """A block by some columns: all end to end, or those that are taken side by side, then the rest."""
    cdef Py_ssize_t across = 0 if task.ignore_nan else columns_across(task, n_columns)
    if task.end_to_end:
        do_patch(task, scratch, room, what, END_TO_END, block, first, n_columns)
        return
    if across > 0:
        do_patch(task, scratch, room, what, ACROSS, block, first, across)
    if across < n_columns:
        do_patch(task, scratch, room, what, DOWN, block, first + across, n_columns - across)


cdef void do_tile(Task* task, floating* scratch, double* room, What what, Py_ssize_t tile) noexcept nogil:
    """What is done tile by tile: merging, or every pass after the other while the columns are in the cache."""
    cdef Py_ssize_t first = tile * task.tile, n_columns = min(task.tile, task.shape.n_columns - tile * task.tile), block
    if what == FORWARD:
        find_origins(task, <const floating*> scratch, first, n_columns)
        for block in range(task.n_blocks):
            do_block(task, scratch, room, MOMENTS, block, first, n_columns)
    if what == START:
        set_factors(task, <const floating*> scratch, first, n_columns)
    if what == BACKWARD:
        for block in range(task.n_blocks):
            do_block(task, scratch, room, SUM_GRADIENTS, block, first, n_columns)
    if what == FORWARD or what == MERGE_MOMENTS:
        merge_blocks(task, room, first, n_columns)
        if task.y.data != NULL:
            set_factors(task, <const floating*> scratch, first, n_columns)
    if what == BACKWARD or what == MERGE_GRADIENTS:
        merge_gradients(task, <const floating*> scratch, first, n_columns)
    if what == FORWARD and task.y.data != NULL:
        for block in range(task.n_blocks - 1, -1, -1):
            do_block(task, scratch, room, NORMALIZE, block, first, n_columns)
    if what == BACKWARD:
        for block in range(task.n_blocks - 1, -1, -1):
            do_block(task, scratch, room, INPUT_GRADIENT, block, first, n_columns)


cdef void do_unit(Task* task, floating* scratch, double* room, What what, Py_ssize_t unit) noexcept nogil:
    cdef bint elementwise = what == NORMALIZE or what == INPUT_GRADIENT
    cdef Py_ssize_t width = task.panel if elementwise else task.tile
    cdef Py_ssize_t n_tiles = task.n_panels if elementwise else task.n_tiles
    cdef Py_ssize_t block, first
    if elementwise:  # from the end, where the pass before stopped
        unit = task.n_blocks * n_tiles - 1 - unit
    if task.rows_are_near:
        block = unit % task.n_blocks
        first = unit // task.n_blocks * width
    else:
        block = unit // n_tiles
        first = unit % n_tiles * width
    do_block(task, scratch, room, what, block, first, min(width, task.shape.n_columns - first))
    if task.order == STREAMING:
        stream_end()


cdef void run_units(
    const Worker* me, Task* task, floating* scratch, What what, Py_ssize_t n_units, bint by_tile,
) noexcept nogil:
    cdef double* room = task.rooms + me.number * task.room_size
    cdef Py_ssize_t unit = first_tile(me)
    scratch += me.number * N_PATCHES * PATCH
    while unit < n_units:
        if by_tile:
            do_tile(task, scratch, room, what, unit)
        else:
            do_unit(task, scratch, room, what, unit)
        unit = next_tile(me, unit)
    meet(me)


cdef void run_tiles(const Worker* me, Task* task, floating* scratch, What what) noexcept nogil:
    run_units(me, task, scratch, what, task.n_tiles, True)


cdef void run_blocks(const Worker* me, Task* task, floating* scratch, What what) noexcept nogil:
    cdef bint elementwise = what == NORMALIZE or what == INPUT_GRADIENT
    run_units(me, task, scratch, what, task.n_blocks * (task.n_panels if elementwise else task.n_tiles), False)


cdef void run_passes(const Worker* me, Task* task, floating* scratch, What what, bint in_cache) noexcept nogil:
    """FORWARD (without y: moments alone), BACKWARD or NORMALIZE, which takes statistics as given.

    Tile by tile where the columns of a tile stay in the cache, else pass by pass.
    """
    if what == NORMALIZE or what == BACKWARD:
        run_tiles(me, task, scratch, START)
        if task.needs_double and not task.goes_on:  # before anything is written: y may be x
            return
    if what == NORMALIZE:
        run_blocks(me, task, scratch, NORMALIZE)
    elif in_cache:
        run_tiles(me, task, scratch, what)
    elif what == FORWARD:
        if me.number == 0:
            find_origins(task, <const floating*> scratch, 0, task.shape.n_columns)
        meet(me)
        run_blocks(me, task, scratch, MOMENTS)
        run_tiles(me, task, scratch, MERGE_MOMENTS)
        if task.y.data != NULL:
            run_blocks(me, task, scratch, NORMALIZE)
    else:
        run_blocks(me, task, scratch, SUM_GRADIENTS)
        run_tiles(me, task, scratch, MERGE_GRADIENTS)
        run_blocks(me, task, scratch, INPUT_GRADIENT)


cdef void work(
    Team* team, Task* task, void* scratch, What what, bint in_cache, bint is_double, int number, int size,
) noexcept nogil:
    """What each worker of a team does."""
    cdef long long start = clock() if size > 1 else 0
    cdef Worker me
    me.team = team
    me.number = number
    me.size = size
    me.room = NULL
    if is_double:
        run_passes(&me, task, <double*> scratch, what, in_cache)
    else:
        run_passes(&me, task, <float*> scratch, what, in_cache)
    if size > 1:
        report(team, clock() - start)


cdef double work_together(Task* task, void* scratch, What what, bint in_cache, bint is_double) noexcept nogil:
    """Let a team do it; return the seconds that its workers had a core."""
    cdef Team team
    memset(&team, 0, sizeof(Team))
    if task.threads == 1:
        work(&team, task, scratch, what, in_cache, is_double, 0, 1)
    else:
        with parallel(num_threads=task.threads):
            work(&team, task, scratch, what, in_cache, is_double, threadid(), workers_here())
    return 1e-9 * team.worked


# From Python.


def columns_last(x, axes):
    """View of an array, the axes kept behind the others."""
    return x.transpose([*(axis for axis in range(x.ndim) if axis not in axes), *axes])


cdef inline bint is_native(const char* format, char kind) noexcept:
    """Whether a buffer holds native numbers of this kind, in either spelling."""
    return format[0] == kind or (format[0] == NATIVE and format[1] == kind)


cdef double* doubles(object array, Py_ssize_t size) except? NULL:
    """Data of a contiguous float64 array of at least this many entries; NULL for None."""
    cdef Py_buffer buffer
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    cdef bint fits = is_native(buffer.format, b"d") and buffer.len >= size * <Py_ssize_t> sizeof(double)
    PyBuffer_Release(&buffer)  # the caller holds the array
    if not fits:
        raise ValueError(f"Expected {size} numbers of type 'd', got {array.dtype.char!r} with shape {array.shape}.")
    return <double*> buffer.buf


cdef void* data(object array) except NULL:
    """Data of an array of our own."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(array, &buffer, PyBUF_WRITABLE)
    PyBuffer_Release(&buffer)  # the caller holds the array
    return buffer.buf


cdef void* numbers(object array, object like, bint is_double, bint writable, Py_ssize_t* strides) except? NULL:
    """Data and strides, in numbers, of an array of the shape and type of another."""
    cdef Py_buffer buffer
    cdef bint fits
    cdef int axis
    PyObject_GetBuffer(array, &buffer, PyBUF_STRIDED_RO | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
    fits = (
        is_native(buffer.format, b"d" if is_double else b"f") and array.shape == like.shape
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
    activation : Activation
        Behind the normalization.
    ignore_nan : bool
        Whether moments are those of the other numbers of a column.
    """

    cdef Task task
    cdef bint is_double, in_cache, has_scratch
    cdef list owners
    cdef object extreme

    def __init__(
        self, x, tuple axes, weights, dy=None, y=None, int activation=SKBN_IDENTITY, bint ignore_nan=False
    ):
        cdef Task* task = &self.task
        cdef Shape* shape = &task.shape
        cdef Operand* operands[3]
        cdef Py_ssize_t all_strides[3][MAX_AXES]
        cdef Py_ssize_t* row_strides[3]
        cdef Py_ssize_t* column_strides[3]
        cdef const Py_ssize_t* stride[3]
        cdef Py_ssize_t length
        cdef int n_operands = 0, axis, k
        if x.size == 0:
            raise ValueError(f"There is nothing to normalize in an array of shape {x.shape}.")
        memset(task, 0, sizeof(Task))
        task.activation = activation
        task.ignore_nan = ignore_nan
        self.owners = [x, weights, dy, y]
        self.is_double = x.dtype == np.float64
        operands[0] = &task.x
        operands[1] = &task.dy
        operands[2] = &task.y
        for operand, array in enumerate((x, dy, y)):
            if array is not None:
                k = operand
                operands[n_operands] = operands[k]
                operands[k].data = numbers(array, x, self.is_double, k == 2, all_strides[n_operands])
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
        task.rows_are_near = shape.n_column_axes == 0 or shape.n_row_axes > 0 and (
            abs(innermost(task.x.row_strides, shape.n_row_axes))
            < abs(innermost(task.x.column_strides, shape.n_column_axes))
        )
        task.order = ROW_BY_ROW
        if y is not None and y.nbytes >= STREAM_BYTES and not (
            np.may_share_memory(y, x) or dy is not None and np.may_share_memory(y, dy)
        ):
            task.order = STREAMING
        task.threads = 1
        if shape.n_rows * shape.n_columns >= PARALLEL_NUMBERS:
            task.threads = n_threads() if SKBN_HAS_TEAMS else 1
        task.share = 1.0 / shape.n_rows
        if weights is not None:
            if weights.shape != x.shape[:1] or 0 in axes:
                raise ValueError(f"Expected a weight for each of {x.shape[0]} samples, got {weights.shape}.")
            task.rows_per_sample = shape.n_rows // <Py_ssize_t> weights.shape[0]
            task.weights = doubles(weights, weights.shape[0])
            total = weights.sum() * task.rows_per_sample
            task.share = 1 / total if total > 0 else 0
            task.first_row = (weights > 0).argmax() * task.rows_per_sample
        self.choose_tiles(operands, n_operands)

    cdef choose_tiles(self, Operand** operands, int n_operands):
        """How many columns are taken at a time, and whether they stay in the cache from pass to pass."""
        cdef Task* task = &self.task
        cdef Shape* shape = &task.shape
        cdef Py_ssize_t size = sizeof(double) if self.is_double else sizeof(float)
        cdef Py_ssize_t n_read = 1 if task.dy.data == NULL else 2
        cdef bint in_place = shape.n_row_axes < 2 and shape.n_column_axes == 1 and not (
            task.weights != NULL or task.ignore_nan or task.rows_are_near  # whole tiles, or runs, from scratch
        )
        cdef int k
        for k in range(n_operands):
            in_place = in_place and innermost(operands[k].column_strides, shape.n_column_axes) == 1
        task.end_to_end = in_place and shape.n_columns < TILE
        for k in range(n_operands):
            task.end_to_end = task.end_to_end and (
                shape.n_row_axes == 0 or operands[k].row_strides[0] == shape.n_columns
            )
        in_place = in_place and is_fused(task.activation)
        task.tile = WIDE_TILE if in_place else TILE
        task.panel = PANEL if in_place else TILE
        if shape.n_rows * task.tile * size * n_read > CACHE_BYTES:
            if shape.n_rows * TILE * size * n_read <= CACHE_BYTES:
                task.tile = TILE
        task.n_tiles = (shape.n_columns + task.tile - 1) // task.tile
        task.n_panels = (shape.n_columns + task.panel - 1) // task.panel
        task.threads = min(task.threads, task.n_blocks * task.n_tiles)
        self.in_cache = shape.n_rows * task.tile * size * n_read <= CACHE_BYTES and (
            task.threads == 1 or task.n_tiles >= task.threads
        )
        if self.in_cache:
            task.order = DOWN_THE_LINES
        self.has_scratch = not (in_place and (task.end_to_end or shape.n_columns % LANES == 0))

    cdef double* parameter(self, object array) except? NULL:
        """Data of one number a column, kept alive; NULL for None."""
        self.owners.append(array)
        return doubles(array, self.task.shape.n_columns)

    cdef run(self, What what):
        """Compute."""
        cdef Task* task = &self.task
        cdef Py_ssize_t n_columns = task.shape.n_columns, block, n_rows
        cdef double row_weights[BLOCK_ROWS]
        cdef double worked
        cdef int wanted = task.threads
        cdef void* room
        task.pitch = LANES * n_columns if task.end_to_end else whole_lines(n_columns)
        dtype = np.float64 if self.is_double else np.float32
        scratch = np.empty(task.threads * N_PATCHES * PATCH if self.has_scratch else 1, dtype)
        factors = np.zeros(N_FACTORS * task.pitch if what != FORWARD or task.y.data != NULL else 1, dtype)
        task.room_size = max(
            N_ROOMS * min(task.tile, whole_lines(n_columns)), N_RUN_ROOMS * min(<Py_ssize_t> TILE, n_columns)
        )
        rooms = np.empty(task.threads * task.room_size)
        parts = np.empty(2 * task.n_blocks * n_columns)
        totals = np.empty(task.n_blocks * (n_columns if task.ignore_nan else 1))
        self.extreme = np.zeros(n_columns, np.uint8)
        task.is_extreme = <unsigned char*> data(self.extreme)
        task.rooms = doubles(rooms, 0)
        task.parts = doubles(parts, 0)
        task.totals = doubles(totals, 0)
        task.factors = data(factors)
        room = data(scratch)
        start = perf_counter()
        task.threads = _paces[what].threads(wanted) if wanted > 1 else 1
        with nogil:
            if what == FORWARD and not task.ignore_nan:
                for block in range(task.n_blocks):
                    n_rows = min(<Py_ssize_t> BLOCK_ROWS, task.shape.n_rows - block * BLOCK_ROWS)
                    task.totals[block] = total_weight(
                        weights_of_block(row_weights, task, block * BLOCK_ROWS, n_rows), n_rows
                    )
            worked = work_together(task, room, what, self.in_cache, self.is_double)
        if wanted > 1:
            seconds = perf_counter() - start
            numbers = task.shape.n_rows * n_columns
            _paces[what].saw(task.threads, seconds, numbers, worked / (task.threads * seconds))
            task.threads = wanted


def moments(x, axes, weights=None, bint ignore_nan=False):
    """Return weight, mean in two parts and biased variance of each column, (4, n_columns)."""
    cdef Call call = Call(x, axes, weights, ignore_nan=ignore_nan)
    cdef Task* task = &call.task
    statistics = np.empty((4, task.shape.n_columns))
    task.weight = call.parameter(statistics[0])
    task.mean = call.parameter(statistics[1])
    task.low = call.parameter(statistics[2])
    task.var = call.parameter(statistics[3])
    call.run(FORWARD)
    return statistics


def batch_norm_forward(y, x, axes, gamma, beta, double epsilon, int activation, weights=None):
    """Normalize with the statistics of x; return mean in two parts, variance and 1/std, (4, n_columns)."""
    cdef Call call = Call(x, axes, weights, None, y, activation)
    cdef Task* task = &call.task
    statistics = np.empty((4, task.shape.n_columns))
    task.mean = call.parameter(statistics[0])
    task.low = call.parameter(statistics[1])
    task.var = call.parameter(statistics[2])
    task.inv_std = call.parameter(statistics[3])
    task.gamma = call.parameter(gamma)
    task.beta = call.parameter(beta)
    task.epsilon = epsilon
    call.run(FORWARD)
    if task.needs_double:
        batch_norm_forward_eval(y, x, axes, gamma, beta, *statistics[:3], epsilon, activation)
    return statistics


def batch_norm_forward_eval(y, x, axes, gamma, beta, mean, low, var, double epsilon, int activation):
    """Normalize with given statistics."""
    cdef Call call = Call(x, axes, None, None, y, activation)
    cdef Task* task = &call.task
    task.mean = call.parameter(mean)
    task.low = call.parameter(low)
    task.var = call.parameter(var)
    task.inv_std = call.parameter(np.empty(task.shape.n_columns))
    task.gamma = call.parameter(gamma)
    task.beta = call.parameter(beta)
    task.epsilon = epsilon
    call.run(NORMALIZE)
    if task.needs_double:
        extreme = call.extreme.view(bool)  # these in float64, the others as they are without them
        chosen = extreme.reshape([x.shape[axis] for axis in axes])
        wide_x = columns_last(x, axes)[..., chosen].astype(np.float64)
        wide = np.empty_like(wide_x)
        parameters = (None if array is None else array[extreme] for array in (gamma, beta, mean, low, var))
        batch_norm_forward_eval(wide, wide_x, (wide.ndim - 1,), *parameters, epsilon, activation)
        task.goes_on = True
        call.run(NORMALIZE)
        with np.errstate(over="ignore"):
            columns_last(y, axes)[..., chosen] = wide


def batch_norm_backward(dx, dy, x, axes, gamma, beta, statistics, int activation, weights=None):
    """Write dx; return dgamma and dbeta, (2, n_columns)."""
    cdef Call call = Call(x, axes, weights, dy, dx, activation)
    cdef Task* task = &call.task
    sums = np.empty((2, task.shape.n_columns))
    task.mean = call.parameter(statistics[0])
    task.low = call.parameter(statistics[1])
    task.inv_std = call.parameter(statistics[3])
    task.gamma = call.parameter(gamma)
    task.beta = call.parameter(beta)
    task.dgamma = call.parameter(sums[0])
    task.dbeta = call.parameter(sums[1])
    call.run(BACKWARD)
    if task.needs_double:
        extreme = call.extreme.view(bool)
        chosen = extreme.reshape([x.shape[axis] for axis in axes])
        wide_dy, wide_x = (columns_last(array, axes)[..., chosen].astype(np.float64) for array in (dy, x))
        wide = np.empty_like(wide_x)
        parameters = (None if array is None else array[extreme] for array in (gamma, beta))
        wide_sums = batch_norm_backward(
            wide, wide_dy, wide_x, (wide.ndim - 1,), *parameters, [row[extreme] for row in statistics],
            activation, weights,
        )
        task.goes_on = True
        call.run(BACKWARD)
        with np.errstate(over="ignore"):
            columns_last(dx, axes)[..., chosen] = wide
        sums[:, extreme] = wide_sums
    return sums
