# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalization over the rows of a block (Ioffe & Szegedy, 2015); formulas:
docs/user_guide/batch_normalization.md.

    xhat = (x - mean) / sqrt(var + epsilon),    y = activation(gamma xhat + beta),    var biased
    dgamma = sum(dz xhat),  dbeta = sum(dz),    dx = gamma / std (dz - dbeta / n - xhat dgamma / n)

Rows may have weights: a row of weight w counts as w rows, so n is the sum of the weights W, sums for mean and variance
are weighted, and 1 / n in row i of dx becomes w_i / W (dz holds the row's weight already, from the loss).

Accuracy does not hang on the data's offset. Deviations from a pivot near the mean and their squares are summed in
float64, and the sum of deviations corrects mean and variance. For float32 the first row serves as pivot: it is at most
sqrt(n) standard deviations away, so at most a factor n of float64's 2**29 digits to spare is lost. float64 has none to
spare and gets a mean from a pass of its own first. So the variance has all its digits at any ratio of mean to spread,
and a constant column has variance 0 exactly. The mean is kept in two parts, mean = high + low, and the output is
((x - high) - low) * scale + beta at the speed of the network's own type. Sums of squares without a pivot were rejected
(they go negative from mean / std = 1e3), Welford's update too (a division an element for no digit more).

With weights the first row may be one that hardly counts, so there both types get the mean first.

Columns are independent of each other and rows are summed in order, so a column's bits do not depend on its neighbours.
In a block of an array (arrays.pyx) the rows take turns in LANES sums. Where the columns lie side by side, a lane is
every sixteenth row; where a column's rows do, or all numbers of the block, sixteen rows are one row of a matrix. All go
through the loops below and give the same bits.

The inner loops run down the rows of one line (lines.pxd) with their sums in registers. A sum is a chain of dependent
additions, so even and odd rows have one each, and a phase does all lines of a tile before the next phase begins.
"""

from cython cimport floating
from libc.float cimport DBL_MAX
from libc.math cimport NAN, isnan, pow, sqrt
from libc.string cimport memcpy

from skbn.backends.cpu.activations cimport activation_backward, activation_forward
from skbn.backends.cpu.lines cimport (
    at,
    below,
    count_lines,
    double_line,
    float_line,
    fma_line,
    line,
    mask_line,
    put,
    relu_line,
    splat_double,
    splat_number,
    stream_line,
    widen,
)
from skbn.backends.cpu.team cimport Worker, fair_share, first_tile, meet, next_tile
from skbn.backends.records cimport (
    SKBN_IDENTITY,
    SKBN_MOVING_MEAN,
    SKBN_MOVING_VAR,
    SKBN_N_BATCHES,
    SKBN_RELU,
)

cdef enum:
    TILE = 64  # columns whose sums and factors stay in local arrays
    BLOCK = 64  # rows that backward sums in the network's type before they meet in float64
    BLOCK_ROWS = 256  # rows of a block of an array
    LANES = 16  # sums that the rows of such a block take turns in: whole lines of float and double everywhere
    STRIP = 8  # rows of a lane that are summed before the next lane's: few enough places in memory at a time
    GRADIENT_STRIP = 4  # the same where two arrays are read

cdef enum Order:  # in which elementwise kernels go
    DOWN_THE_LINES  # factors in registers: for what lies in the nearest cache
    ROW_BY_ROW      # in the order of memory
    STREAMING       # the same, and results are stored past the cache

cdef enum Lie:
    IN_ORDER    # a network's buffer: columns side by side, rows summed in order
    ACROSS      # a block of an array, columns side by side: row i is summed in lane i % LANES
    DOWN        # a block of an array, the rows of a column side by side, columns `stride` apart; the same lanes
    END_TO_END  # a block of an array, all numbers side by side: LANES rows are one row of a matrix; the same lanes


cdef inline double inverse_std(double var, double epsilon) noexcept nogil:
    """1 / sqrt(var + epsilon); 0 where both are 0, so that a constant column gives beta; NaN where var overflowed."""
    cdef double total = var + epsilon
    cdef double inverse = 1 / sqrt(total)
    inverse = NAN if total > DBL_MAX else inverse
    return 0 if total <= 0 else inverse


# Loops over lines. Tiles are (n_rows, n_lines) by a stride in bytes; factors are (n_lines,).


cdef inline void sums_of_deviations(
    double* sums, double* squares,      # OUT (columns,); IN/OUT if what is there is added to
    const floating* x,                  # IN  (n_rows, columns) by stride, in numbers
    const double* pivot,                # IN  (columns,)
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride, bint add,
) noexcept nogil:
    """Sums over the rows of x - pivot and of its square, in float64."""
    cdef Py_ssize_t i, j, lanes = sizeof(double_line) // sizeof(double)
    cdef double_line centre, deviation, even, odd, even_squares, odd_squares
    for j from 0 <= j < columns by lanes:
        centre = widen(pivot + j)
        even = splat_double(0)
        odd = even
        even_squares = even
        odd_squares = even
        for i in range(0, n_rows - 1, 2):
            deviation = widen(x + i * stride + j) - centre
            even = even + deviation
            even_squares = fma_line(deviation, deviation, even_squares)
            deviation = widen(x + (i + 1) * stride + j) - centre
            odd = odd + deviation
            odd_squares = fma_line(deviation, deviation, odd_squares)
        if n_rows % 2:
            deviation = widen(x + (n_rows - 1) * stride + j) - centre
            even = even + deviation
            even_squares = fma_line(deviation, deviation, even_squares)
        even = even + odd
        even_squares = even_squares + odd_squares
        if add:
            even = at(<double_line*> (sums + j), 0) + even
            even_squares = at(<double_line*> (squares + j), 0) + even_squares
        put(<double_line*> (sums + j), 0, even)
        put(<double_line*> (squares + j), 0, even_squares)


cdef inline void weighted_sums_of_deviations(
    double* sums, double* squares,      # OUT (columns,); IN/OUT if what is there is added to
    const floating* x,                  # IN  (n_rows, columns) by stride, in numbers
    const double* weights,              # IN  (n_rows,), every `step`
    const double* pivot,                # IN  (columns,)
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride, Py_ssize_t step, bint add,
) noexcept nogil:
    """Sums over the rows of w (x - pivot) and of w (x - pivot)**2, in float64; rows of weight 0 are passed over."""
    cdef Py_ssize_t i, j, lanes = sizeof(double_line) // sizeof(double)
    cdef double_line centre, deviation, weighted, total, total_squares
    for j from 0 <= j < columns by lanes:
        centre = widen(pivot + j)
        total = splat_double(0)
        total_squares = total
        for i in range(n_rows):
            if weights[i * step] == 0:
                continue
            deviation = widen(x + i * stride + j) - centre
            weighted = splat_double(weights[i * step]) * deviation
            total = total + weighted
            total_squares = fma_line(weighted, deviation, total_squares)
        if add:
            total = at(<double_line*> (sums + j), 0) + total
            total_squares = at(<double_line*> (squares + j), 0) + total_squares
        put(<double_line*> (sums + j), 0, total)
        put(<double_line*> (squares + j), 0, total_squares)


cdef inline line normalized(line x, line high, line low, line scale, line shift, bint rectify) noexcept nogil:
    """((x - high) - low) * scale + shift, then ReLU if asked."""
    cdef line z = fma_line((x - high) - low, scale, shift)
    return relu_line(z) if rectify else z


cdef inline void normalize(
    line* y,                    # OUT
    const line* x, const line* high, const line* low, const line* scale, const line* shift,
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t y_stride, Py_ssize_t x_stride,
    bint rectify, Order order,
) noexcept nogil:
    """Every column for itself, or row by row, past the cache if asked."""
    cdef Py_ssize_t _row, i, k
    cdef line h, lo, a, b
    if order == DOWN_THE_LINES:
        for k in range(n_lines):
            h = at(high, k)
            lo = at(low, k)
            a = at(scale, k)
            b = at(shift, k)
            for i in range(n_rows):
                put(below(y, i * y_stride), k, normalized(at(below(x, i * x_stride), k), h, lo, a, b, rectify))
    elif order == ROW_BY_ROW:
        for _row in range(n_rows):
            for k in range(n_lines):
                put(y, k, normalized(at(x, k), at(high, k), at(low, k), at(scale, k), at(shift, k), rectify))
            y = below(y, y_stride)
            x = below(x, x_stride)
    else:
        for _row in range(n_rows):
            for k in range(n_lines):
                stream_line(y + k, normalized(at(x, k), at(high, k), at(low, k), at(scale, k), at(shift, k), rectify))
            y = below(y, y_stride)
            x = below(x, x_stride)


cdef inline void gradient_sums(
    line* total, line* total_xhat,      # OUT; IN/OUT if what is there is added to
    const line* dy, const line* x, const line* high, const line* low, const line* inv_std,
    const line* scale, const line* shift,
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t dy_stride, Py_ssize_t x_stride, bint rectify, bint add,
) noexcept nogil:
    """Sums over the rows of dz and of dz * xhat. dz is dy or, if asked, dy where ReLU let z pass."""
    cdef Py_ssize_t i, k
    cdef line h, lo, a, dz, centred, even, odd, even_xhat, odd_xhat
    for k in range(n_lines):
        h = at(high, k)
        lo = at(low, k)
        a = at(inv_std, k)
        even = a - a
        odd = even
        even_xhat = even
        odd_xhat = even
        for i in range(0, n_rows - 1, 2):
            dz = at(below(dy, i * dy_stride), k)
            centred = (at(below(x, i * x_stride), k) - h) - lo
            if rectify:
                dz = mask_line(dz, fma_line(centred, at(scale, k), at(shift, k)))
            even = even + dz
            even_xhat = fma_line(dz, centred * a, even_xhat)
            dz = at(below(dy, (i + 1) * dy_stride), k)
            centred = (at(below(x, (i + 1) * x_stride), k) - h) - lo
            if rectify:
                dz = mask_line(dz, fma_line(centred, at(scale, k), at(shift, k)))
            odd = odd + dz
            odd_xhat = fma_line(dz, centred * a, odd_xhat)
        if n_rows % 2:
            dz = at(below(dy, (n_rows - 1) * dy_stride), k)
            centred = (at(below(x, (n_rows - 1) * x_stride), k) - h) - lo
            if rectify:
                dz = mask_line(dz, fma_line(centred, at(scale, k), at(shift, k)))
            even = even + dz
            even_xhat = fma_line(dz, centred * a, even_xhat)
        even = even + odd
        even_xhat = even_xhat + odd_xhat
        put(total, k, at(total, k) + even if add else even)
        put(total_xhat, k, at(total_xhat, k) + even_xhat if add else even_xhat)


cdef inline line gradient_in(
    line dy, line x, line high, line low, line scale, line shift, line mean_dz, line slope, bint rectify,
) noexcept nogil:
    """dx = scale * ((dz - mean_dz) - (x - mean) * slope), dz as in gradient_sums."""
    cdef line centred = (x - high) - low
    if rectify:
        dy = mask_line(dy, fma_line(centred, scale, shift))
    return scale * fma_line(-centred, slope, dy - mean_dz)


cdef inline void input_gradient(
    line* dx,                   # OUT
    const line* dy, const line* x, const line* high, const line* low,
    const line* scale, const line* shift, const line* mean_dz, const line* slope,
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t dx_stride, Py_ssize_t dy_stride, Py_ssize_t x_stride,
    bint rectify, Order order,
) noexcept nogil:
    """The gradient with respect to x, in the orders of normalize."""
    cdef Py_ssize_t _row, i, k
    cdef line h, lo, a, b, m, s
    if order == DOWN_THE_LINES:
        for k in range(n_lines):
            h = at(high, k)
            lo = at(low, k)
            a = at(scale, k)
            b = at(shift, k)
            m = at(mean_dz, k)
            s = at(slope, k)
            for i in range(n_rows):
                put(below(dx, i * dx_stride), k, gradient_in(
                    at(below(dy, i * dy_stride), k), at(below(x, i * x_stride), k), h, lo, a, b, m, s, rectify
                ))
    elif order == ROW_BY_ROW:
        for _row in range(n_rows):
            for k in range(n_lines):
                put(dx, k, gradient_in(
                    at(dy, k), at(x, k), at(high, k), at(low, k), at(scale, k), at(shift, k),
                    at(mean_dz, k), at(slope, k), rectify,
                ))
            dx = below(dx, dx_stride)
            dy = below(dy, dy_stride)
            x = below(x, x_stride)
    else:
        for _row in range(n_rows):
            for k in range(n_lines):
                stream_line(dx + k, gradient_in(
                    at(dy, k), at(x, k), at(high, k), at(low, k), at(scale, k), at(shift, k),
                    at(mean_dz, k), at(slope, k), rectify,
                ))
            dx = below(dx, dx_stride)
            dy = below(dy, dy_stride)
            x = below(x, x_stride)


cdef inline void weighted_input_gradient(
    line* dx,                   # OUT
    const line* dy, const line* x, const line* high, const line* low,
    const line* scale, const line* shift, const line* total, const line* slope,
    const double* weights, double share,
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t dx_stride, Py_ssize_t dy_stride, Py_ssize_t x_stride,
    bint rectify,
) noexcept nogil:
    """dx = scale * (dz - w share * (total + (x - mean) * slope)), dz as in gradient_sums."""
    cdef Py_ssize_t i, k
    cdef line h, lo, a, m, s, dz, centred
    for k in range(n_lines):
        h = at(high, k)
        lo = at(low, k)
        a = at(scale, k)
        m = at(total, k)
        s = at(slope, k)
        for i in range(n_rows):
            dz = at(below(dy, i * dy_stride), k)
            centred = (at(below(x, i * x_stride), k) - h) - lo
            if rectify:
                dz = mask_line(dz, fma_line(centred, a, at(shift, k)))
            put(below(dx, i * dx_stride), k, a * fma_line(
                fma_line(-centred, s, -m), splat_number(x, weights[i] * share), dz
            ))


# Batch norm of one block of rows, tile by tile.


cdef inline double total_weight(const double* weights, Py_ssize_t n_rows) noexcept nogil:
    """How many rows these count as; NULL: ones."""
    cdef double total = 0
    cdef Py_ssize_t i
    if weights == NULL:
        return n_rows
    for i in range(n_rows):
        total += weights[i]
    return total


cdef inline Py_ssize_t rows_in_lane(Py_ssize_t n_rows, Py_ssize_t lane, Py_ssize_t strip) noexcept nogil:
    """Rows of a strip that fall to a lane, if so many rows are left."""
    return max(<Py_ssize_t> 0, min(strip, (n_rows - lane + LANES - 1) // LANES))


cdef inline void add_lanes(
    double* lanes,              # IN/OUT (LANES, columns); the first row becomes the sum
    Py_ssize_t columns,
) noexcept nogil:
    """Sum over the lanes, by halves."""
    cdef Py_ssize_t half = LANES // 2, k
    while half > 0:
        for k in range(half * columns):
            lanes[k] = lanes[k] + lanes[half * columns + k]
        half //= 2


cdef inline void run_sums(
    double* lanes,              # OUT (2, width): the first columns become the sums and those of squares
    const floating* x,          # IN  (n_numbers,) rows of the block end to end
    const double* pivots,       # IN  (width,)
    floating* filled,           # room (STRIP, width)
    Py_ssize_t n_numbers, Py_ssize_t columns,
) noexcept nogil:
    """Sums of deviations in lanes: LANES rows are one row of a matrix, whose last is filled up with pivots."""
    cdef Py_ssize_t width = LANES * columns, done, left, k
    cdef const floating* strip
    for done from 0 <= done < n_numbers by STRIP * width:
        left = min(n_numbers - done, STRIP * width)
        strip = x + done
        if left % width:
            memcpy(filled, strip, left * sizeof(floating))
            for k in range(left, (left + width - 1) // width * width):
                filled[k] = <floating> pivots[k % width]
            strip = filled
        sums_of_deviations(
            lanes, lanes + width, strip, pivots, (left + width - 1) // width, width, width, done > 0
        )
    add_lanes(lanes, columns)
    add_lanes(lanes + width, columns)


cdef inline void block_sums(
    double* sums, double* squares,      # OUT (columns,)
    const floating* x,                  # IN  (n_rows, columns) by stride
    const double* weights,              # IN  (n_rows,); NULL: ones
    const double* pivot,                # IN  (columns,)
    double* lanes,                      # room (3 + STRIP, LANES, columns), unless rows are IN_ORDER
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride, Lie lie,
) noexcept nogil:
    """Sums of deviations and of their squares over rows that lie in one of these ways."""
    cdef double* squared_lanes = lanes + LANES * columns
    cdef Py_ssize_t j, k, lane, first, n_in_lane
    if lie == IN_ORDER:
        if weights == NULL:
            sums_of_deviations(sums, squares, x, pivot, n_rows, columns, stride, False)
        else:
            weighted_sums_of_deviations(sums, squares, x, weights, pivot, n_rows, columns, stride, 1, False)
    elif lie == DOWN:
        for j in range(columns):
            for k in range(LANES):
                lanes[2 * LANES + k] = pivot[j]
            run_sums(
                lanes, x + j * stride, <const double*> lanes + 2 * LANES, <floating*> (lanes + 3 * LANES), n_rows, 1
            )
            sums[j] = lanes[0]
            squares[j] = lanes[LANES]
        return
    elif lie == END_TO_END:
        for k in range(LANES):
            memcpy(squared_lanes + (LANES + k) * columns, pivot, columns * sizeof(double))
        run_sums(
            lanes, x, <const double*> squared_lanes + LANES * columns,
            <floating*> (squared_lanes + 2 * LANES * columns), n_rows * columns, columns,
        )
    else:
        for first from 0 <= first < n_rows by 128:  # STRIP * LANES
            for lane in range(LANES):
                n_in_lane = rows_in_lane(n_rows - first, lane, STRIP)
                if weights == NULL:
                    sums_of_deviations(
                        lanes + lane * columns, squared_lanes + lane * columns, x + (first + lane) * stride, pivot,
                        n_in_lane, columns, LANES * stride, first > 0,
                    )
                else:
                    weighted_sums_of_deviations(
                        lanes + lane * columns, squared_lanes + lane * columns, x + (first + lane) * stride,
                        weights + first + lane, pivot, n_in_lane, columns, LANES * stride, LANES, first > 0,
                    )
        add_lanes(lanes, columns)
        add_lanes(squared_lanes, columns)
    if lie != IN_ORDER:
        memcpy(sums, lanes, columns * sizeof(double))
        memcpy(squares, squared_lanes, columns * sizeof(double))


cdef inline void tile_moments(
    double* mean, double* correction, double* square,   # OUT (columns,)
    const floating* x,                                  # IN  (n_rows, columns) by stride
    const double* weights,                              # IN  (n_rows,); NULL: ones
    double share,                                       # 1 / sum of the weights: not a division a column
    double* sums,                                       # room (columns,), and what block_sums needs
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride, Lie lie,
) noexcept nogil:
    """Means as mean + correction; weighted sums of squared deviations from them."""
    cdef double* lanes = sums + columns
    cdef Py_ssize_t j, first = 0, column_stride = stride if lie == DOWN else 1
    cdef bint again = floating is double or weights != NULL  # the first row will not do as a pivot
    if weights != NULL:
        while weights[first] == 0 and first < n_rows - 1:
            first += 1
    for j in range(columns):
        mean[j] = x[first * stride + j * column_stride]
    block_sums(sums, square, x, weights, mean, lanes, n_rows, columns, stride, lie)
    if again:
        for j in range(columns):
            mean[j] = mean[j] + sums[j] * share
        block_sums(sums, square, x, weights, mean, lanes, n_rows, columns, stride, lie)
    for j in range(columns):
        correction[j] = sums[j] * share
        square[j] = square[j] - sums[j] * correction[j]
        square[j] = 0 if square[j] < 0 else square[j]


cdef inline double merge_moments(
    double* mean, double* square,       # IN/OUT (columns,): of the rows seen so far
    const double* parts,                # IN  means and, `apart` further on, sums of squared deviations, block by block
    const double* totals,               # IN  weight of each block, every `totals_pitch`
    double seen, Py_ssize_t n_blocks, Py_ssize_t columns,
    Py_ssize_t pitch, Py_ssize_t apart, Py_ssize_t totals_pitch,
) noexcept nogil:
    """Take further blocks into mean and sum of squared deviations, in order (Chan et al., 1979).

    ``seen`` is the weight seen before; returns the weight seen now.
    """
    cdef Py_ssize_t block, j
    cdef double delta, share, total
    for block in range(n_blocks):
        total = totals[block * totals_pitch]
        if total > 0:
            share = total / (seen + total)
            for j in range(columns):
                delta = parts[j] - mean[j]
                mean[j] = mean[j] + delta * share
                square[j] = square[j] + (parts[apart + j] + delta * delta * share * seen)
            seen += total
        parts += pitch
    return seen


cdef enum:  # rows of the factors of columns, `pitch` numbers each
    HIGH, LOW,          # the mean in two parts
    SCALE, SHIFT,       # gamma / std and beta
    INV_STD,
    MEAN_DZ, SLOPE      # backward: sum(dz) / n and sum(dz xhat) / n / std; with weights not divided by n
    N_FACTORS


cdef inline void normalize_tile(
    floating* y,                # OUT (n_rows, columns) by y_stride, whole lines
    const floating* x,          # IN  (n_rows, columns) by x_stride, whole lines
    const floating* factors, Py_ssize_t pitch,  # IN  (SHIFT + 1, columns) by pitch
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t y_stride, Py_ssize_t x_stride, bint rectify, Order order,
) noexcept nogil:
    if floating is float:
        normalize(
            <float_line*> y, <const float_line*> x,
            <const float_line*> (factors + HIGH * pitch), <const float_line*> (factors + LOW * pitch),
            <const float_line*> (factors + SCALE * pitch), <const float_line*> (factors + SHIFT * pitch),
            n_rows, count_lines(<const float_line*> x, columns),
            y_stride * sizeof(float), x_stride * sizeof(float), rectify, order,
        )
    else:
        normalize(
            <double_line*> y, <const double_line*> x,
            <const double_line*> (factors + HIGH * pitch), <const double_line*> (factors + LOW * pitch),
            <const double_line*> (factors + SCALE * pitch), <const double_line*> (factors + SHIFT * pitch),
            n_rows, count_lines(<const double_line*> x, columns),
            y_stride * sizeof(double), x_stride * sizeof(double), rectify, order,
        )


cdef inline void gradient_sums_of_tile(
    floating* total, floating* total_xhat,      # OUT (columns,); IN/OUT if what is there is added to
    const floating* dy, const floating* x,      # IN  (n_rows, columns) by their strides, whole lines
    const floating* factors, Py_ssize_t pitch,  # IN  (INV_STD + 1, columns) by pitch
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t dy_stride, Py_ssize_t x_stride, bint rectify, bint add,
) noexcept nogil:
    if floating is float:
        gradient_sums(
            <float_line*> total, <float_line*> total_xhat, <const float_line*> dy, <const float_line*> x,
            <const float_line*> (factors + HIGH * pitch), <const float_line*> (factors + LOW * pitch),
            <const float_line*> (factors + INV_STD * pitch),
            <const float_line*> (factors + SCALE * pitch), <const float_line*> (factors + SHIFT * pitch),
            n_rows, count_lines(<const float_line*> x, columns),
            dy_stride * sizeof(float), x_stride * sizeof(float), rectify, add,
        )
    else:
        gradient_sums(
            <double_line*> total, <double_line*> total_xhat, <const double_line*> dy, <const double_line*> x,
            <const double_line*> (factors + HIGH * pitch), <const double_line*> (factors + LOW * pitch),
            <const double_line*> (factors + INV_STD * pitch),
            <const double_line*> (factors + SCALE * pitch), <const double_line*> (factors + SHIFT * pitch),
            n_rows, count_lines(<const double_line*> x, columns),
            dy_stride * sizeof(double), x_stride * sizeof(double), rectify, add,
        )


cdef inline void input_gradient_of_tile(
    floating* dx,                               # OUT (n_rows, columns) by dx_stride, whole lines
    const floating* dy, const floating* x,      # IN  (n_rows, columns) by their strides, whole lines
    const floating* factors, Py_ssize_t pitch,  # IN  (N_FACTORS, columns) by pitch
    const double* weights, double share,        # IN  (n_rows,); NULL: ones; 1 / sum of the weights
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t dx_stride, Py_ssize_t dy_stride, Py_ssize_t x_stride,
    bint rectify, Order order,
) noexcept nogil:
    if floating is float:
        if weights != NULL:
            weighted_input_gradient(
                <float_line*> dx, <const float_line*> dy, <const float_line*> x,
                <const float_line*> (factors + HIGH * pitch), <const float_line*> (factors + LOW * pitch),
                <const float_line*> (factors + SCALE * pitch), <const float_line*> (factors + SHIFT * pitch),
                <const float_line*> (factors + MEAN_DZ * pitch), <const float_line*> (factors + SLOPE * pitch),
                weights, share, n_rows, count_lines(<const float_line*> x, columns),
                dx_stride * sizeof(float), dy_stride * sizeof(float), x_stride * sizeof(float), rectify,
            )
        else:
            input_gradient(
                <float_line*> dx, <const float_line*> dy, <const float_line*> x,
                <const float_line*> (factors + HIGH * pitch), <const float_line*> (factors + LOW * pitch),
                <const float_line*> (factors + SCALE * pitch), <const float_line*> (factors + SHIFT * pitch),
                <const float_line*> (factors + MEAN_DZ * pitch), <const float_line*> (factors + SLOPE * pitch),
                n_rows, count_lines(<const float_line*> x, columns),
                dx_stride * sizeof(float), dy_stride * sizeof(float), x_stride * sizeof(float), rectify, order,
            )
    elif weights != NULL:
        weighted_input_gradient(
            <double_line*> dx, <const double_line*> dy, <const double_line*> x,
            <const double_line*> (factors + HIGH * pitch), <const double_line*> (factors + LOW * pitch),
            <const double_line*> (factors + SCALE * pitch), <const double_line*> (factors + SHIFT * pitch),
            <const double_line*> (factors + MEAN_DZ * pitch), <const double_line*> (factors + SLOPE * pitch),
            weights, share, n_rows, count_lines(<const double_line*> x, columns),
            dx_stride * sizeof(double), dy_stride * sizeof(double), x_stride * sizeof(double), rectify,
        )
    else:
        input_gradient(
            <double_line*> dx, <const double_line*> dy, <const double_line*> x,
            <const double_line*> (factors + HIGH * pitch), <const double_line*> (factors + LOW * pitch),
            <const double_line*> (factors + SCALE * pitch), <const double_line*> (factors + SHIFT * pitch),
            <const double_line*> (factors + MEAN_DZ * pitch), <const double_line*> (factors + SLOPE * pitch),
            n_rows, count_lines(<const double_line*> x, columns),
            dx_stride * sizeof(double), dy_stride * sizeof(double), x_stride * sizeof(double), rectify, order,
        )


cdef inline void forward_factors(
    floating* factors, Py_ssize_t pitch,        # OUT (SHIFT + 1, columns) by pitch
    const double* mean, const double* correction, const double* inv_std,    # IN  (columns,)
    Py_ssize_t columns,
) noexcept nogil:
    """Factors of a tile with gamma 1 and beta 0."""
    cdef Py_ssize_t j
    for j in range(columns):
        factors[HIGH * pitch + j] = <floating> (mean[j] + correction[j])
        factors[LOW * pitch + j] = <floating> ((mean[j] - <double> factors[HIGH * pitch + j]) + correction[j])
        factors[SCALE * pitch + j] = <floating> inv_std[j]
        factors[SHIFT * pitch + j] = 0


cdef inline Py_ssize_t batch_stop(
    Py_ssize_t start, Py_ssize_t n_rows, Py_ssize_t size, Py_ssize_t min_rows,
) noexcept nogil:
    """End of the batch that begins at start; a rest shorter than min_rows joins it."""
    return n_rows if size == 0 or n_rows - start - min_rows < size else start + size


cdef inline void normalize_columns(
    floating* y,                # OUT (n_rows, columns) by stride
    double* saved,              # OUT (3, columns) by stride: mean in two parts, 1 / sqrt(var + epsilon)
    double* statistics,         # OUT (2, columns) by TILE: mean and variance of the batch
    const floating* x,          # IN  (n_rows, columns) by stride, whole lines
    const double* weights, double share,        # IN  (n_rows,); NULL: ones; 1 / their sum
    const floating* gamma, const floating* beta,        # IN (columns,); NULL: ones, zeros
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride, double epsilon, bint rectify,
) noexcept nogil:
    """Normalize up to TILE columns with the statistics of the rows."""
    # Arrays of its own: the compiler knows that they are not each other's.
    cdef double mean[TILE]
    cdef double var[TILE]
    cdef double sums[TILE]
    cdef double correction[TILE]
    cdef double inv_std[TILE]
    cdef floating factors[N_FACTORS * TILE]
    cdef Py_ssize_t j
    tile_moments(mean, correction, var, x, weights, share, sums, n_rows, columns, stride, IN_ORDER)
    for j in range(columns):
        var[j] = var[j] * share
        inv_std[j] = inverse_std(var[j], epsilon)
    forward_factors(factors, TILE, mean, correction, inv_std, columns)
    if gamma != NULL:
        for j in range(columns):
            factors[SCALE * TILE + j] = <floating> (inv_std[j] * gamma[j])
    if beta != NULL:
        for j in range(columns):
            factors[SHIFT * TILE + j] = beta[j]
    for j in range(columns):
        saved[j] = factors[HIGH * TILE + j]
        saved[stride + j] = factors[LOW * TILE + j]
        saved[2 * stride + j] = inv_std[j]
        statistics[j] = mean[j] + correction[j]
        statistics[TILE + j] = var[j]
    normalize_tile(
        y, x, <const floating*> factors, TILE, n_rows, columns, stride, stride, rectify, DOWN_THE_LINES
    )


cdef inline void update_moving_statistics(
    double* moving,             # IN/OUT some columns of the layer's block of the state vector, by stride
    const double* statistics,   # IN  (2, columns) by TILE: mean and variance of a batch
    Py_ssize_t columns, Py_ssize_t stride,
    double n_batches,           # with this one
    double momentum,
) noexcept nogil:
    """Bias-corrected moving average: batch t enters with weight (1 - momentum) / (1 - momentum**t).

    That is the average that starts at zero, divided by 1 - momentum**t, without the division by a number near zero.
    NaN for momentum: every batch counts the same.
    """
    cdef double* moving_mean = moving + SKBN_MOVING_MEAN * stride
    cdef double* moving_var = moving + SKBN_MOVING_VAR * stride
    cdef double share = 1 / n_batches if isnan(momentum) else (1 - momentum) / (1 - pow(momentum, n_batches))
    cdef Py_ssize_t j
    for j in range(columns):
        # In this form the first batch, whose share is 1, is taken to the last bit.
        moving_mean[j] = (1 - share) * moving_mean[j] + share * statistics[j]
        moving_var[j] = (1 - share) * moving_var[j] + share * statistics[TILE + j]


cdef inline void batch_norm_forward(
    const Worker* me,
    floating* y,                # OUT (n_rows, width) by stride
    double* saved,              # OUT (virtual batches, 3, stride): see normalize_columns
    double* moving,             # IN/OUT the layer's block of the state vector; NULL: not updated
    const floating* x,          # IN  (n_rows, width) by stride, whole lines
    const double* weights,      # IN  (n_rows,); NULL: ones
    const floating* gamma, const floating* beta,        # IN (stride,); NULL: ones, zeros
    Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride, Py_ssize_t virtual_batch_size,
    double epsilon, double momentum, int activation,
) noexcept nogil:
    """Normalize every virtual batch with its own statistics. One without weight gives beta or finite numbers.

    Tiles are columns: their statistics and what averages them are nobody else's.
    """
    cdef double statistics[2 * TILE]
    cdef double weight, n_batches = 0
    cdef Py_ssize_t column, columns, start, stop, tile = first_tile(me), most = fair_share(me, stride, 16, 16, TILE)
    cdef double* saved_here
    while tile * most < stride:
        column = tile * most
        columns = min(most, stride - column)
        n_batches = moving[SKBN_N_BATCHES * stride] if moving != NULL else 0
        saved_here = saved + column
        start = 0
        while start < n_rows:
            stop = batch_stop(start, n_rows, virtual_batch_size, 2)
            weight = total_weight(weights + start if weights != NULL else NULL, stop - start)
            normalize_columns(
                y + start * stride + column, saved_here, statistics, x + start * stride + column,
                weights + start if weights != NULL else NULL, 1 / weight if weight > 0 else 0,
                gamma + column if gamma != NULL else NULL, beta + column if beta != NULL else NULL,
                stop - start, columns, stride, epsilon, activation == SKBN_RELU,
            )
            if weight > 0:
                n_batches += 1
                if moving != NULL:
                    update_moving_statistics(moving + column, statistics, columns, stride, n_batches, momentum)
            saved_here += 3 * stride
            start = stop
        if activation != SKBN_RELU and activation != SKBN_IDENTITY:
            activation_forward(y + column, activation, n_rows, min(columns, width - column), columns, stride)
        tile = next_tile(me, tile)
    meet(me)
    if moving != NULL and me.number == 0:  # now that all have read it
        start = 0
        while start < n_rows:
            stop = batch_stop(start, n_rows, virtual_batch_size, 2)
            if weights == NULL or total_weight(weights + start, stop - start) > 0:
                moving[SKBN_N_BATCHES * stride] += 1
            start = stop


cdef inline void differentiate_columns(
    floating* dx,               # OUT (n_rows, columns) by stride; NULL: not needed
    double* dbeta, double* dgamma,      # IN/OUT (columns,): this batch's sums are added
    const floating* dz,         # IN  (n_rows, columns) by stride
    const floating* x,          # IN  (n_rows, columns) by stride, whole lines
    const double* weights,      # IN  (n_rows,); NULL: ones
    const floating* gamma,      # IN  (columns,); NULL: ones
    const double* saved,        # IN  (3, columns) by stride
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride,
) noexcept nogil:
    """The backward of normalize_columns."""
    cdef floating factors[N_FACTORS * TILE]
    cdef floating part[TILE]
    cdef floating part_xhat[TILE]
    cdef double total[TILE]
    cdef double total_xhat[TILE]
    cdef double weight = total_weight(weights, n_rows)
    cdef double share = 1 / weight if weight > 0 else 0
    cdef double divided = share if weights == NULL else 1  # else the share goes with the row
    cdef Py_ssize_t j, start
    for j in range(columns):
        factors[HIGH * TILE + j] = <floating> saved[j]
        factors[LOW * TILE + j] = <floating> saved[stride + j]
        factors[INV_STD * TILE + j] = <floating> saved[2 * stride + j]
        factors[SCALE * TILE + j] = factors[INV_STD * TILE + j]
        total[j] = 0
        total_xhat[j] = 0
    if gamma != NULL:
        for j in range(columns):
            factors[SCALE * TILE + j] = <floating> (saved[2 * stride + j] * gamma[j])
    for start in range(0, n_rows, 64):  # BLOCK
        gradient_sums_of_tile(
            part, part_xhat, dz + start * stride, x + start * stride, <const floating*> factors, TILE,
            min(<Py_ssize_t> BLOCK, n_rows - start), columns, stride, stride, False, False,
        )
        for j in range(columns):
            total[j] = total[j] + part[j]
            total_xhat[j] = total_xhat[j] + part_xhat[j]
    for j in range(columns):
        dbeta[j] = dbeta[j] + total[j]
        dgamma[j] = dgamma[j] + total_xhat[j]
        factors[MEAN_DZ * TILE + j] = <floating> (total[j] * divided)
        factors[SLOPE * TILE + j] = <floating> (total_xhat[j] * divided * saved[2 * stride + j])
    if dx != NULL:
        input_gradient_of_tile(
            dx, dz, x, <const floating*> factors, TILE, weights, share, n_rows, columns,
            stride, stride, stride, False, DOWN_THE_LINES,
        )


cdef inline void batch_norm_backward(
    const Worker* me,
    floating* dx,               # OUT (n_rows, width) by stride; NULL: not needed
    floating* dgamma, floating* dbeta,  # OUT (stride,); NULL: not trained
    floating* dy,               # IN/OUT (n_rows, width) by stride: dy, then dz
    const floating* y,          # IN  (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride, whole lines
    const double* weights,      # IN  (n_rows,); NULL: ones
    const floating* gamma,      # IN  (stride,); NULL: ones
    const double* saved,        # IN  (virtual batches, 3, stride) as forward left it
    Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t virtual_batch_size, int activation,
) noexcept nogil:
    cdef double total[TILE]
    cdef double total_xhat[TILE]
    cdef Py_ssize_t j, column, columns, start, stop, tile = first_tile(me), most = fair_share(me, stride, 16, 16, TILE)
    cdef const double* saved_here
    while tile * most < stride:
        column = tile * most
        columns = min(most, stride - column)
        activation_backward(dy + column, y + column, activation, n_rows, columns, stride)
        for j in range(columns):
            total[j] = 0
            total_xhat[j] = 0
        saved_here = saved + column
        start = 0
        while start < n_rows:
            stop = batch_stop(start, n_rows, virtual_batch_size, 2)
            differentiate_columns(
                dx + start * stride + column if dx != NULL else NULL, total, total_xhat,
                dy + start * stride + column, x + start * stride + column,
                weights + start if weights != NULL else NULL, gamma + column if gamma != NULL else NULL,
                saved_here, stop - start, columns, stride,
            )
            saved_here += 3 * stride
            start = stop
        for j in range(columns):
            if dgamma != NULL:
                dgamma[column + j] = <floating> total_xhat[j]
            if dbeta != NULL:
                dbeta[column + j] = <floating> total[j]
        tile = next_tile(me, tile)
    meet(me)


cdef inline void batch_norm_forward_eval(
    floating* y,                # OUT (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride, whole lines
    const floating* gamma, const floating* beta,        # IN (stride,); NULL: ones, zeros
    const double* mean, const double* var,              # IN (stride,)
    Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride,
    double epsilon, int activation,
) noexcept nogil:
    """Normalize with given statistics."""
    cdef floating factors[N_FACTORS * TILE]
    cdef double inv_std[TILE]
    cdef double correction[TILE]
    cdef Py_ssize_t j, first, columns
    for first in range(0, stride, 64):  # TILE
        columns = min(<Py_ssize_t> TILE, stride - first)
        for j in range(columns):
            inv_std[j] = inverse_std(var[first + j], epsilon)
            correction[j] = 0
        forward_factors(factors, TILE, mean + first, correction, inv_std, columns)
        if gamma != NULL:
            for j in range(columns):
                factors[SCALE * TILE + j] = <floating> (inv_std[j] * gamma[first + j])
        if beta != NULL:
            for j in range(columns):
                factors[SHIFT * TILE + j] = beta[first + j]
        normalize_tile(
            y + first, x + first, <const floating*> factors, TILE, n_rows, columns, stride, stride,
            activation == SKBN_RELU, DOWN_THE_LINES,
        )
    if activation != SKBN_RELU and activation != SKBN_IDENTITY:
        activation_forward(y, activation, n_rows, width, stride, stride)
