# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalization over the rows of a block (Ioffe & Szegedy, 2015); formulas: docs/design.md.

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

The inner loops run down the rows of one line (lines.pxd) with their sums in registers. A sum is a chain of dependent
additions, so even and odd rows have one each, and a phase does all lines of a tile before the next phase begins.
"""

from cython cimport floating
from libc.float cimport DBL_MAX
from libc.math cimport NAN, isnan, pow, sqrt

from skbn.backends.cpu.activations cimport activation_forward
from skbn.backends.cpu.lines cimport (
    count_lines,
    double_line,
    float_line,
    fma_line,
    line,
    relu_line,
    splat_double,
    splat_number,
    widen,
)
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


cdef inline double inverse_std(double var, double epsilon) noexcept nogil:
    """1 / sqrt(var + epsilon); 0 where both are 0, so that a constant column gives beta; NaN where var overflowed."""
    cdef double total = var + epsilon
    cdef double inverse = 1 / sqrt(total)
    inverse = NAN if total > DBL_MAX else inverse
    return 0 if total <= 0 else inverse


# Loops over lines. Tiles are (n_rows, n_lines) by stride, in lines; factors are (n_lines,).


cdef inline void sums_of_deviations(
    double* sums, double* squares,      # OUT (columns,)
    const floating* x,                  # IN  (n_rows, columns) by stride, in numbers
    const double* pivot,                # IN  (columns,)
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride,
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
        (<double_line*> (sums + j))[0] = even + odd
        (<double_line*> (squares + j))[0] = even_squares + odd_squares


cdef inline void weighted_sums_of_deviations(
    double* sums, double* squares,      # OUT (columns,)
    const floating* x,                  # IN  (n_rows, columns) by stride, in numbers
    const double* weights,              # IN  (n_rows,)
    const double* pivot,                # IN  (columns,)
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride,
) noexcept nogil:
    """Sums over the rows of w (x - pivot) and of w (x - pivot)**2, in float64; rows of weight 0 are passed over."""
    cdef Py_ssize_t i, j, lanes = sizeof(double_line) // sizeof(double)
    cdef double_line centre, deviation, weighted, total, total_squares
    for j from 0 <= j < columns by lanes:
        centre = widen(pivot + j)
        total = splat_double(0)
        total_squares = total
        for i in range(n_rows):
            if weights[i] == 0:
                continue
            deviation = widen(x + i * stride + j) - centre
            weighted = splat_double(weights[i]) * deviation
            total = total + weighted
            total_squares = fma_line(weighted, deviation, total_squares)
        (<double_line*> (sums + j))[0] = total
        (<double_line*> (squares + j))[0] = total_squares


cdef inline void normalize(
    line* y,                    # OUT
    const line* x, const line* high, const line* low, const line* scale, const line* shift,
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t stride, bint rectify,
) noexcept nogil:
    """y = ((x - high) - low) * scale + shift, then ReLU if asked."""
    cdef Py_ssize_t i, k
    cdef line h, lo, a, b
    for k in range(n_lines):
        h = high[k]
        lo = low[k]
        a = scale[k]
        b = shift[k]
        if rectify:
            for i in range(n_rows):
                y[i * stride + k] = relu_line(fma_line((x[i * stride + k] - h) - lo, a, b))
        else:
            for i in range(n_rows):
                y[i * stride + k] = fma_line((x[i * stride + k] - h) - lo, a, b)


cdef inline void gradient_sums(
    line* total, line* total_xhat,      # OUT
    const line* dz, const line* x, const line* high, const line* low, const line* inv_std,
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t stride,
) noexcept nogil:
    """Sums over the rows of dz and of dz * xhat."""
    cdef Py_ssize_t i, k
    cdef line h, lo, a, gradient, even, odd, even_xhat, odd_xhat
    for k in range(n_lines):
        h = high[k]
        lo = low[k]
        a = inv_std[k]
        even = a - a
        odd = even
        even_xhat = even
        odd_xhat = even
        for i in range(0, n_rows - 1, 2):
            gradient = dz[i * stride + k]
            even = even + gradient
            even_xhat = fma_line(gradient, ((x[i * stride + k] - h) - lo) * a, even_xhat)
            gradient = dz[(i + 1) * stride + k]
            odd = odd + gradient
            odd_xhat = fma_line(gradient, ((x[(i + 1) * stride + k] - h) - lo) * a, odd_xhat)
        if n_rows % 2:
            gradient = dz[(n_rows - 1) * stride + k]
            even = even + gradient
            even_xhat = fma_line(gradient, ((x[(n_rows - 1) * stride + k] - h) - lo) * a, even_xhat)
        total[k] = even + odd
        total_xhat[k] = even_xhat + odd_xhat


cdef inline void input_gradient(
    line* dx,                   # OUT
    const line* dz, const line* x, const line* high, const line* low,
    const line* scale, const line* mean_dz, const line* slope,
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t stride,
) noexcept nogil:
    """dx = scale * ((dz - mean_dz) - (x - mean) * slope)."""
    cdef Py_ssize_t i, k
    cdef line h, lo, a, m, s
    for k in range(n_lines):
        h = high[k]
        lo = low[k]
        a = scale[k]
        m = mean_dz[k]
        s = slope[k]
        for i in range(n_rows):
            dx[i * stride + k] = a * fma_line(lo - (x[i * stride + k] - h), s, dz[i * stride + k] - m)


cdef inline void weighted_input_gradient(
    line* dx,                   # OUT
    const line* dz, const line* x, const line* high, const line* low,
    const line* scale, const line* total, const line* slope, const double* weights, double share,
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t stride,
) noexcept nogil:
    """dx = scale * (dz - w share * (total + (x - mean) * slope))."""
    cdef Py_ssize_t i, k
    cdef line h, lo, a, m, s
    for k in range(n_lines):
        h = high[k]
        lo = low[k]
        a = scale[k]
        m = total[k]
        s = slope[k]
        for i in range(n_rows):
            dx[i * stride + k] = a * fma_line(
                fma_line(lo - (x[i * stride + k] - h), s, -m), splat_number(x, weights[i] * share),
                dz[i * stride + k],
            )


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


cdef inline void tile_moments(
    double* mean, double* correction, double* square,   # OUT (columns,)
    const floating* x,                                  # IN  (n_rows, columns) by stride
    const double* weights,                              # IN  (n_rows,); NULL: ones
    double share,                                       # 1 / sum of the weights: not a division a column
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride,
) noexcept nogil:
    """Means of at most TILE columns as mean + correction; weighted sums of squared deviations from them."""
    cdef double sums[TILE]
    cdef Py_ssize_t j, first = 0
    if weights == NULL:
        for j in range(columns):
            mean[j] = x[j]
        sums_of_deviations(sums, square, x, mean, n_rows, columns, stride)
        if floating is double:
            for j in range(columns):
                mean[j] = mean[j] + sums[j] * share
            sums_of_deviations(sums, square, x, mean, n_rows, columns, stride)
    else:
        while weights[first] == 0 and first < n_rows - 1:
            first += 1
        for j in range(columns):
            mean[j] = x[first * stride + j]
        weighted_sums_of_deviations(sums, square, x, weights, mean, n_rows, columns, stride)
        for j in range(columns):
            mean[j] = mean[j] + sums[j] * share
        weighted_sums_of_deviations(sums, square, x, weights, mean, n_rows, columns, stride)
    for j in range(columns):
        correction[j] = sums[j] * share
        square[j] = square[j] - sums[j] * correction[j]
        square[j] = 0 if square[j] < 0 else square[j]


cdef inline void normalize_tile(
    floating* y,                # OUT (n_rows, columns) by stride
    const floating* x,          # IN  (n_rows, columns) by stride
    const floating* high, const floating* low,          # IN (columns,) the two parts of the mean
    const floating* scale, const floating* shift,       # IN (columns,)
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride, bint rectify,
) noexcept nogil:
    if floating is float:
        normalize(
            <float_line*> y, <const float_line*> x, <const float_line*> high, <const float_line*> low,
            <const float_line*> scale, <const float_line*> shift, n_rows,
            count_lines(<const float_line*> x, columns), count_lines(<const float_line*> x, stride), rectify,
        )
    else:
        normalize(
            <double_line*> y, <const double_line*> x, <const double_line*> high, <const double_line*> low,
            <const double_line*> scale, <const double_line*> shift, n_rows,
            count_lines(<const double_line*> x, columns), count_lines(<const double_line*> x, stride), rectify,
        )


cdef inline double batch_norm_forward(
    floating* y,                # OUT (n_rows, width) by stride
    double* saved,              # OUT (3, stride): mean in two parts, 1 / sqrt(var + epsilon)
    double* statistics,         # OUT (2, stride): mean and variance of the batch; NULL: not wanted
    const floating* x,          # IN  (n_rows, width) by stride, whole lines
    const double* weights,      # IN  (n_rows,); NULL: ones
    const floating* gamma, const floating* beta,        # IN (stride,); NULL: ones, zeros
    Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride,
    double epsilon, int activation,
) noexcept nogil:
    """Normalize with the statistics of the rows; return their total weight. Without any, y is beta or finite."""
    cdef double mean[TILE]
    cdef double correction[TILE]
    cdef double square[TILE]
    cdef double inv_std[TILE]
    cdef floating high[TILE]
    cdef floating low[TILE]
    cdef floating scale[TILE]
    cdef floating shift[TILE]
    cdef double total = total_weight(weights, n_rows)
    cdef double share = 1 / total if total > 0 else 0
    cdef Py_ssize_t j, first, columns
    for first in range(0, stride, 64):  # TILE
        columns = min(<Py_ssize_t> TILE, stride - first)
        tile_moments(mean, correction, square, x + first, weights, share, n_rows, columns, stride)
        for j in range(columns):
            square[j] = square[j] * share
            inv_std[j] = inverse_std(square[j], epsilon)
            high[j] = <floating> (mean[j] + correction[j])
            low[j] = <floating> ((mean[j] - <double> high[j]) + correction[j])
            scale[j] = <floating> inv_std[j]
            shift[j] = 0
        if gamma != NULL:
            for j in range(columns):
                scale[j] = <floating> (inv_std[j] * gamma[first + j])
        if beta != NULL:
            for j in range(columns):
                shift[j] = beta[first + j]
        for j in range(columns):
            saved[first + j] = high[j]
            saved[stride + first + j] = low[j]
            saved[2 * stride + first + j] = inv_std[j]
        if statistics != NULL:
            for j in range(columns):
                statistics[first + j] = mean[j] + correction[j]
                statistics[stride + first + j] = square[j]
        normalize_tile(
            y + first, x + first, high, low, scale, shift, n_rows, columns, stride, activation == SKBN_RELU
        )
    if activation != SKBN_RELU and activation != SKBN_IDENTITY:
        activation_forward(y, activation, n_rows, width, stride)
    return total


cdef inline void batch_norm_backward(
    floating* dx,               # OUT (n_rows, width) by stride; NULL: not needed
    double* dgamma, double* dbeta,      # IN/OUT (stride,): this block's sums are added
    const floating* dz,         # IN  (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride, whole lines
    const double* weights,      # IN  (n_rows,); NULL: ones
    const floating* gamma,      # IN  (stride,); NULL: ones
    const double* saved,        # IN  (3, stride) as forward left it
    Py_ssize_t n_rows, Py_ssize_t stride,
) noexcept nogil:
    cdef floating high[TILE]
    cdef floating low[TILE]
    cdef floating inv_std[TILE]
    cdef floating scale[TILE]
    cdef floating mean_dz[TILE]
    cdef floating slope[TILE]
    cdef floating part[TILE]
    cdef floating part_xhat[TILE]
    cdef double total[TILE]
    cdef double total_xhat[TILE]
    cdef double weight = total_weight(weights, n_rows)
    cdef double share = 1 / weight if weight > 0 else 0
    cdef Py_ssize_t j, first, columns, start
    for first in range(0, stride, 64):  # TILE
        columns = min(<Py_ssize_t> TILE, stride - first)
        for j in range(columns):
            high[j] = <floating> saved[first + j]
            low[j] = <floating> saved[stride + first + j]
            inv_std[j] = <floating> saved[2 * stride + first + j]
            scale[j] = inv_std[j]
            total[j] = 0
            total_xhat[j] = 0
        if gamma != NULL:
            for j in range(columns):
                scale[j] = <floating> (saved[2 * stride + first + j] * gamma[first + j])
        for start in range(0, n_rows, 64):  # BLOCK
            if floating is float:
                gradient_sums(
                    <float_line*> part, <float_line*> part_xhat,
                    <const float_line*> (dz + start * stride + first),
                    <const float_line*> (x + start * stride + first),
                    <const float_line*> high, <const float_line*> low, <const float_line*> inv_std,
                    min(<Py_ssize_t> BLOCK, n_rows - start),
                    count_lines(<const float_line*> x, columns), count_lines(<const float_line*> x, stride),
                )
            else:
                gradient_sums(
                    <double_line*> part, <double_line*> part_xhat,
                    <const double_line*> (dz + start * stride + first),
                    <const double_line*> (x + start * stride + first),
                    <const double_line*> high, <const double_line*> low, <const double_line*> inv_std,
                    min(<Py_ssize_t> BLOCK, n_rows - start),
                    count_lines(<const double_line*> x, columns), count_lines(<const double_line*> x, stride),
                )
            for j in range(columns):
                total[j] = total[j] + part[j]
                total_xhat[j] = total_xhat[j] + part_xhat[j]
        for j in range(columns):
            dbeta[first + j] = dbeta[first + j] + total[j]
            dgamma[first + j] = dgamma[first + j] + total_xhat[j]
            mean_dz[j] = <floating> (total[j] * share)
            slope[j] = <floating> (total_xhat[j] * share * saved[2 * stride + first + j])
        if dx == NULL:
            continue
        if weights != NULL:
            for j in range(columns):  # the share goes with the row
                mean_dz[j] = <floating> total[j]
                slope[j] = <floating> (total_xhat[j] * saved[2 * stride + first + j])
            if floating is float:
                weighted_input_gradient(
                    <float_line*> (dx + first), <const float_line*> (dz + first), <const float_line*> (x + first),
                    <const float_line*> high, <const float_line*> low, <const float_line*> scale,
                    <const float_line*> mean_dz, <const float_line*> slope, weights, share, n_rows,
                    count_lines(<const float_line*> x, columns), count_lines(<const float_line*> x, stride),
                )
            else:
                weighted_input_gradient(
                    <double_line*> (dx + first), <const double_line*> (dz + first), <const double_line*> (x + first),
                    <const double_line*> high, <const double_line*> low, <const double_line*> scale,
                    <const double_line*> mean_dz, <const double_line*> slope, weights, share, n_rows,
                    count_lines(<const double_line*> x, columns), count_lines(<const double_line*> x, stride),
                )
        elif floating is float:
            input_gradient(
                <float_line*> (dx + first), <const float_line*> (dz + first), <const float_line*> (x + first),
                <const float_line*> high, <const float_line*> low, <const float_line*> scale,
                <const float_line*> mean_dz, <const float_line*> slope, n_rows,
                count_lines(<const float_line*> x, columns), count_lines(<const float_line*> x, stride),
            )
        else:
            input_gradient(
                <double_line*> (dx + first), <const double_line*> (dz + first), <const double_line*> (x + first),
                <const double_line*> high, <const double_line*> low, <const double_line*> scale,
                <const double_line*> mean_dz, <const double_line*> slope, n_rows,
                count_lines(<const double_line*> x, columns), count_lines(<const double_line*> x, stride),
            )


cdef inline void batch_norm_forward_eval(
    floating* y,                # OUT (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride, whole lines
    const floating* gamma, const floating* beta,        # IN (stride,); NULL: ones, zeros
    const double* mean, const double* var,              # IN (stride,)
    Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride,
    double epsilon, int activation,
) noexcept nogil:
    """Normalize with given statistics."""
    cdef floating high[TILE]
    cdef floating low[TILE]
    cdef floating scale[TILE]
    cdef floating shift[TILE]
    cdef double inv_std
    cdef Py_ssize_t j, first, columns
    for first in range(0, stride, 64):  # TILE
        columns = min(<Py_ssize_t> TILE, stride - first)
        for j in range(columns):
            inv_std = inverse_std(var[first + j], epsilon)
            high[j] = <floating> mean[first + j]
            low[j] = <floating> (mean[first + j] - <double> high[j])
            scale[j] = <floating> (inv_std * gamma[first + j] if gamma != NULL else inv_std)
            shift[j] = beta[first + j] if beta != NULL else 0
        normalize_tile(
            y + first, x + first, high, low, scale, shift, n_rows, columns, stride, activation == SKBN_RELU
        )
    if activation != SKBN_RELU and activation != SKBN_IDENTITY:
        activation_forward(y, activation, n_rows, width, stride)


cdef inline void update_moving_statistics(
    double* moving,             # IN/OUT the layer's block of the state vector
    const double* statistics,   # IN  (2, stride): mean and variance of a batch
    Py_ssize_t stride, double momentum,
) noexcept nogil:
    """Bias-corrected moving average: batch t enters with weight (1 - momentum) / (1 - momentum**t).

    That is the average that starts at zero, divided by 1 - momentum**t, without the division by a number near zero.
    NaN for momentum: every batch counts the same.
    """
    cdef double* mean = moving + SKBN_MOVING_MEAN * stride
    cdef double* var = moving + SKBN_MOVING_VAR * stride
    cdef double* n_batches = moving + SKBN_N_BATCHES * stride
    cdef double share
    cdef Py_ssize_t j
    n_batches[0] += 1
    if isnan(momentum):
        share = 1 / n_batches[0]
    else:
        share = (1 - momentum) / (1 - pow(momentum, n_batches[0]))
    for j in range(stride):
        # In this form the first batch, whose share is 1, is taken to the last bit.
        mean[j] = (1 - share) * mean[j] + share * statistics[j]
        var[j] = (1 - share) * var[j] + share * statistics[stride + j]
