# SPDX-License-Identifier: BSD-3-Clause
"""Fully connected layers: y = activation(x @ weight + bias).

Gradients are overwritten; dy becomes dz, the gradient before the activation. Stages are shared out in tiles, rows by a
panel of columns. A layer of few inputs, the first of most tables, is done in one sweep forward and one backward,
activation and bias included.
"""

from cython cimport floating

from skbn.backends.cpu.activations cimport activation_backward, activation_forward
from skbn.backends.cpu.lines cimport (
    at,
    count_lines,
    double_line,
    float_line,
    fma_line,
    line,
    mask_line,
    put,
    relu_line,
    splat_item,
    splat_number,
    sum_line,
)
from skbn.backends.cpu.products cimport (
    ROWS,
    SKBN_PANEL,
    dot,
    multiply_tile,
    multiply_transposed_one,
    outer_product,
    rows_of_product,
)
from skbn.backends.cpu.team cimport Worker, count_tiles, first_tile, meet, next_tile, rows_of_tile
from skbn.backends.records cimport SKBN_IDENTITY, SKBN_RELU

cdef enum:
    FEW = 8  # inputs up to which the sweeps win over products by tiles


cdef inline void forward_few(
    line* y,                    # OUT (n_rows, n_lines) by stride, in lines
    const line* x,              # IN  (n_rows, in_lines): the pad behind an odd number of inputs is zero
    const line* weight,         # IN  (n_in, n_lines) by stride
    const line* bias,           # IN  (n_lines,)
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t in_lines, Py_ssize_t n_lines, Py_ssize_t stride, bint rectify,
) noexcept nogil:
    """y = x @ weight + bias, then ReLU if asked; two inputs at a time."""
    cdef Py_ssize_t i, j, k
    cdef line first, second, start, z
    cdef bint last
    for k in range(n_lines):
        start = at(bias, k)
        for j in range(0, n_in, 2):
            first = at(weight, j * stride + k)
            second = at(weight, (j + 1) * stride + k) if j + 1 < n_in else first
            last = rectify and j + 2 >= n_in
            for i in range(n_rows):
                z = start if j == 0 else at(y, i * stride + k)
                z = fma_line(splat_item(x + i * in_lines, j), first, z)
                z = fma_line(splat_item(x + i * in_lines, j + 1), second, z)
                put(y, i * stride + k, relu_line(z) if last else z)


cdef inline void backward_few(
    line* dweight,              # OUT (n_in, n_lines) by stride, in lines
    line* dbias,                # OUT (n_lines,); NULL: not trained
    line* dy,                   # IN/OUT (n_rows, n_lines) by stride: dy, then dz
    const line* y,              # IN  (n_rows, n_lines) by stride
    const line* x,              # IN  (n_rows, in_lines): the pad behind an odd number of inputs is zero
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t in_lines, Py_ssize_t n_lines, Py_ssize_t stride, bint rectified,
) noexcept nogil:
    """ReLU backward if asked, dbias and dweight = x.T @ dz, two inputs at a time."""
    cdef Py_ssize_t i, j, k
    cdef line gradient, total, sum0, sum1  # three chains of additions
    cdef const line* row
    for k in range(n_lines):
        for j in range(0, n_in, 2):
            total = at(y, k) - at(y, k)
            sum0 = total
            sum1 = total
            for i in range(n_rows):
                gradient = at(dy, i * stride + k)
                if rectified and j == 0:
                    gradient = mask_line(gradient, at(y, i * stride + k))
                    put(dy, i * stride + k, gradient)
                row = x + i * in_lines
                total = total + gradient
                sum0 = fma_line(splat_item(row, j), gradient, sum0)
                sum1 = fma_line(splat_item(row, j + 1), gradient, sum1)
            put(dweight, j * stride + k, sum0)
            if j + 1 < n_in:
                put(dweight, (j + 1) * stride + k, sum1)
            if dbias != NULL:
                put(dbias, k, total)


cdef inline void sum_lines(
    line* sums,                 # OUT (n_lines,)
    const line* x,              # IN  (n_rows, n_lines) by stride, in lines
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t i, k
    cdef line even, odd
    for k in range(n_lines):
        even = at(x, k) - at(x, k)
        odd = even
        for i in range(0, n_rows - 1, 2):
            even = even + at(x, i * stride + k)
            odd = odd + at(x, (i + 1) * stride + k)
        if n_rows % 2:
            even = even + at(x, (n_rows - 1) * stride + k)
        put(sums, k, even + odd)


cdef inline void column_sums(
    floating* sums,             # OUT (columns,)
    const floating* x,          # IN  (n_rows, columns) by stride
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef floating even, odd
    if stride == 1:  # a single output
        even = 0
        odd = 0
        for i in range(0, n_rows - 1, 2):
            even += x[i]
            odd += x[i + 1]
        if n_rows % 2:
            even += x[n_rows - 1]
        sums[0] = even + odd
    elif floating is float:
        sum_lines(
            <float_line*> sums, <const float_line*> x, n_rows,
            count_lines(<const float_line*> x, columns), count_lines(<const float_line*> x, stride),
        )
    else:
        sum_lines(
            <double_line*> sums, <const double_line*> x, n_rows,
            count_lines(<const double_line*> x, columns), count_lines(<const double_line*> x, stride),
        )


cdef inline void dense_forward_tile(
    floating* y, const floating* x, const floating* weight, const floating* bias, floating* room,
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t width, Py_ssize_t columns,
    Py_ssize_t in_stride, Py_ssize_t out_stride, int activation,
) noexcept nogil:
    """Some rows and columns; the pointers are theirs."""
    cdef Py_ssize_t i
    cdef bint rectify = activation == SKBN_RELU
    if out_stride == 1:
        for i in range(n_rows):
            y[i] = dot(x + i * in_stride, weight, in_stride) + bias[0]
        rectify = False
    elif n_in > FEW:
        multiply_tile(
            y, x, weight, bias, room, n_rows, width, columns, n_in,
            out_stride, in_stride, 1, out_stride, False, rectify,
        )
    elif floating is float:
        forward_few(
            <float_line*> y, <const float_line*> x, <const float_line*> weight, <const float_line*> bias,
            n_rows, n_in, count_lines(<const float_line*> x, in_stride),
            count_lines(<const float_line*> x, columns), count_lines(<const float_line*> x, out_stride), rectify,
        )
    else:
        forward_few(
            <double_line*> y, <const double_line*> x, <const double_line*> weight, <const double_line*> bias,
            n_rows, n_in, count_lines(<const double_line*> x, in_stride),
            count_lines(<const double_line*> x, columns), count_lines(<const double_line*> x, out_stride), rectify,
        )
    if activation != SKBN_IDENTITY and not rectify:
        activation_forward(y, activation, n_rows, width, columns, out_stride)


cdef inline void dense_forward(
    const Worker* me,
    floating* y,                # OUT (n_rows, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    const floating* bias,       # IN  (n_out,) padded
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
    int activation,
) noexcept nogil:
    cdef Py_ssize_t n_panels = count_tiles(out_stride, SKBN_PANEL), rows = rows_of_product(me, n_rows, n_panels, 32)
    cdef Py_ssize_t tile = first_tile(me), row, column, columns
    while tile < n_panels * count_tiles(n_rows, rows):
        row = tile // n_panels * rows
        column = tile % n_panels * SKBN_PANEL
        columns = min(<Py_ssize_t> SKBN_PANEL, out_stride - column)
        dense_forward_tile(
            y + row * out_stride + column, x + row * in_stride, weight + column, bias + column, <floating*> me.room,
            min(rows, n_rows - row), n_in, min(columns, n_out - column), columns,
            in_stride, out_stride, activation,
        )
        tile = next_tile(me, tile)
    meet(me)


cdef inline double add_penalty_lines(
    line* dweight,              # IN/OUT (n_rows, n_lines) by stride, in lines: rate * weight is added
    const line* weight,         # IN
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t stride, double rate,
) noexcept nogil:
    cdef line factor = splat_number(weight, rate), total, there
    cdef double squares = 0
    cdef Py_ssize_t i, k, start, rows_together = max(<Py_ssize_t> 1, 64 // n_lines)
    for start from 0 <= start < n_rows by rows_together:
        total = factor - factor
        for i in range(start, min(start + rows_together, n_rows)):
            for k in range(n_lines):
                there = at(weight, i * stride + k)
                put(dweight, i * stride + k, fma_line(factor, there, at(dweight, i * stride + k)))
                total = fma_line(there, there, total)
        squares += sum_line(total)
    return squares


cdef inline double add_penalty(
    floating* dweight,          # IN/OUT (n_rows, columns) by stride: rate * weight is added
    const floating* weight,     # IN
    Py_ssize_t n_rows,
    Py_ssize_t columns,         # pads are read as the zeros they are
    Py_ssize_t stride, floating rate,
) noexcept nogil:
    """Return the sum of squared weights: some 64 lines at a time, which meet in float64."""
    if stride == 1:  # a single output, padded behind its last weight
        stride = columns = 64 // sizeof(floating)
        n_rows = (n_rows + columns - 1) // columns
    if floating is float:
        return add_penalty_lines(
            <float_line*> dweight, <const float_line*> weight, n_rows,
            count_lines(<const float_line*> weight, columns), count_lines(<const float_line*> weight, stride), rate,
        )
    else:
        return add_penalty_lines(
            <double_line*> dweight, <const double_line*> weight, n_rows,
            count_lines(<const double_line*> weight, columns), count_lines(<const double_line*> weight, stride), rate,
        )


cdef inline void gradient_tile(
    floating* dweight, floating* dbias, floating* dy, const floating* y, const floating* x, floating* room,
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_inputs, Py_ssize_t width, Py_ssize_t columns,
    Py_ssize_t in_stride, Py_ssize_t out_stride, bint rectified,
) noexcept nogil:
    """The gradient of the weights of n_inputs of the n_in inputs to some columns; the pointers are theirs.

    dbias may be NULL. Where inputs are few, dy is masked on the way, if asked.
    """
    if out_stride == 1:
        if floating is float:
            multiply_transposed_one(
                <float_line*> dweight, <const float_line*> x, <const float_line*> dy, n_rows,
                count_lines(<const float_line*> x, in_stride),
            )
        else:
            multiply_transposed_one(
                <double_line*> dweight, <const double_line*> x, <const double_line*> dy, n_rows,
                count_lines(<const double_line*> x, in_stride),
            )
    elif n_in > FEW:
        multiply_tile(
            dweight, x, <const floating*> dy, <const floating*> NULL, room, n_inputs, width, columns, n_rows,
            out_stride, 1, in_stride, out_stride, False, False,
        )
    elif floating is float:
        backward_few(
            <float_line*> dweight, <float_line*> dbias, <float_line*> dy, <const float_line*> y,
            <const float_line*> x, n_rows, n_in, count_lines(<const float_line*> x, in_stride),
            count_lines(<const float_line*> x, columns), count_lines(<const float_line*> x, out_stride), rectified,
        )
        return
    else:
        backward_few(
            <double_line*> dweight, <double_line*> dbias, <double_line*> dy, <const double_line*> y,
            <const double_line*> x, n_rows, n_in, count_lines(<const double_line*> x, in_stride),
            count_lines(<const double_line*> x, columns), count_lines(<const double_line*> x, out_stride), rectified,
        )
        return
    if dbias != NULL:
        column_sums(dbias, <const floating*> dy, n_rows, columns, out_stride)


cdef inline void input_gradient_tile(
    floating* dx, const floating* dz, const floating* weight, floating* room,
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t width, Py_ssize_t columns, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """dx = dz @ weight.T for some rows and inputs; the pointers are theirs."""
    cdef Py_ssize_t i, j
    if out_stride == 1:
        if floating is float:
            outer_product(
                <float_line*> dx, <const float_line*> dz, <const float_line*> weight, n_rows,
                count_lines(<const float_line*> dx, columns), count_lines(<const float_line*> dx, in_stride),
            )
        else:
            outer_product(
                <double_line*> dx, <const double_line*> dz, <const double_line*> weight, n_rows,
                count_lines(<const double_line*> dx, columns), count_lines(<const double_line*> dx, in_stride),
            )
    elif n_in <= 2:
        for i in range(n_rows):
            for j in range(n_in):
                dx[i * in_stride + j] = dot(dz + i * out_stride, weight + j * out_stride, out_stride)
    else:
        multiply_tile(
            dx, dz, weight, <const floating*> NULL, room, n_rows, width, columns, n_out,
            in_stride, out_stride, 1, out_stride, True, False,
        )


cdef inline Py_ssize_t inputs_of_tile(Py_ssize_t n_in, Py_ssize_t out_stride) noexcept nogil:
    """Rows of a tile of a weight matrix: some sixteen tiles, not too small. Fixed, since each sums its squares."""
    cdef Py_ssize_t part = n_in * count_tiles(out_stride, SKBN_PANEL) // 16
    return n_in if out_stride == 1 else max(<Py_ssize_t> 64, min(<Py_ssize_t> ROWS, (part + 31) // 32 * 32))


cdef inline Py_ssize_t count_gradient_tiles(Py_ssize_t n_in, Py_ssize_t out_stride) noexcept nogil:
    return count_tiles(n_in, inputs_of_tile(n_in, out_stride)) * count_tiles(out_stride, SKBN_PANEL)


cdef inline void dense_input_gradient(
    const Worker* me, floating* dx, const floating* dz, const floating* weight, Py_ssize_t tile,
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out, Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """One tile of dx = dz @ weight.T."""
    cdef Py_ssize_t n_panels = count_tiles(in_stride, SKBN_PANEL)
    cdef Py_ssize_t rows = rows_of_product(me, n_rows, n_panels, 128), row = tile // n_panels * rows
    cdef Py_ssize_t column = tile % n_panels * SKBN_PANEL, columns = min(<Py_ssize_t> SKBN_PANEL, in_stride - column)
    input_gradient_tile(
        dx + row * in_stride + column, dz + row * out_stride, weight + column * out_stride, <floating*> me.room,
        min(rows, n_rows - row), n_in, min(columns, n_in - column), columns, n_out,
        in_stride, out_stride,
    )


cdef inline void dense_activation_backward(
    const Worker* me, floating* dy, const floating* y, int activation, Py_ssize_t n_rows, Py_ssize_t stride,
) noexcept nogil:
    """dz of whole rows. Where nothing is to do, workers do not meet: what wrote dy has made them."""
    cdef Py_ssize_t rows = rows_of_tile(stride), tile
    if activation == SKBN_IDENTITY:
        return
    tile = first_tile(me)
    while tile * rows < n_rows:
        activation_backward(
            dy + tile * rows * stride, y + tile * rows * stride, activation, min(rows, n_rows - tile * rows),
            stride, stride,
        )
        tile = next_tile(me, tile)
    meet(me)


cdef inline void dense_backward(
    const Worker* me,
    floating* dx,               # OUT (n_rows, n_in) by in_stride; NULL: not needed
    floating* dweight,          # OUT (n_in, n_out) by out_stride
    floating* dbias,            # OUT (n_out,) padded; NULL: not trained
    double* squares,            # OUT (gradient tiles,): sums of squared weights, if there is a penalty
    floating* dy,               # IN/OUT (n_rows, n_out) by out_stride: dy, then dz
    const floating* y,          # IN  (n_rows, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    floating penalty,           # this times the weights is added to their gradient
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
    int activation,
) noexcept nogil:
    cdef Py_ssize_t n_panels = count_tiles(out_stride, SKBN_PANEL), n_in_panels = count_tiles(in_stride, SKBN_PANEL)
    cdef Py_ssize_t n_gradient_tiles = count_gradient_tiles(n_in, out_stride)
    cdef Py_ssize_t n_tiles = n_gradient_tiles, n_inputs = inputs_of_tile(n_in, out_stride)
    cdef Py_ssize_t n_dx_tiles = n_in_panels * count_tiles(n_rows, rows_of_product(me, n_rows, n_in_panels, 128))
    cdef Py_ssize_t tile, row, column, columns, rows
    cdef bint few = n_in <= FEW and out_stride > 1
    if not (few and activation == SKBN_RELU):
        dense_activation_backward(me, dy, y, activation, n_rows, out_stride)
    if dx != NULL and not few:  # dz is whole already
        n_tiles += n_dx_tiles
    tile = first_tile(me)
    while tile < n_tiles:
        if tile < n_gradient_tiles:
            row = tile // n_panels * n_inputs
            column = tile % n_panels * SKBN_PANEL
            rows = min(n_inputs, n_in - row)
            columns = min(<Py_ssize_t> SKBN_PANEL, out_stride - column)
            gradient_tile(
                dweight + row * out_stride + column, dbias + column if dbias != NULL and row == 0 else NULL,
                dy + column, y + column, x + row, <floating*> me.room, n_rows, n_in, rows,
                min(columns, n_out - column), columns, in_stride, out_stride, activation == SKBN_RELU,
            )
            if penalty != 0:
                squares[tile] = add_penalty(
                    dweight + row * out_stride + column, weight + row * out_stride + column, rows, columns, out_stride,
                    penalty,
                )
        else:
            dense_input_gradient(
                me, dx, dy, weight, tile - n_gradient_tiles, n_rows, n_in, n_out, in_stride, out_stride
            )
        tile = next_tile(me, tile)
    meet(me)
    if dx != NULL and few:
        tile = first_tile(me)
        while tile < n_dx_tiles:
            dense_input_gradient(me, dx, dy, weight, tile, n_rows, n_in, n_out, in_stride, out_stride)
            tile = next_tile(me, tile)
        meet(me)
