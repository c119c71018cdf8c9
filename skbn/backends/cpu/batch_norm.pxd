# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalization over the rows of a block (Ioffe & Szegedy, 2015); formulas: docs/design.md.

    xhat = (x - mean) / sqrt(var + epsilon),    y = activation(gamma xhat + beta),    var biased
    dgamma = sum(dz xhat),  dbeta = sum(dz),    dx = gamma / std (dz - dbeta / n - xhat dgamma / n)

Accuracy does not hang on the data's offset: the first pass finds a mean by sums shifted by the first row, the second
measures float64 deviations from it and corrects it, so the variance has all its digits at any ratio of mean to spread
and is exactly 0 for a constant column. The mean is kept in two parts, mean = high + low, and the output is
((x - high) - low) * scale + beta at the speed of the network's own type. One-pass sums of squares were rejected (they
go negative from mean / std = 1e3), Welford's update too (a division an element for no digit more).

Columns are independent of each other and rows are summed in order, so a column's bits do not depend on its neighbours.
"""

from cython cimport floating
from libc.math cimport isnan, pow, sqrt

from skbn.backends.cpu.activations cimport activation_forward, relu
from skbn.backends.records cimport (
    SKBN_IDENTITY,
    SKBN_MOVING_MEAN,
    SKBN_MOVING_VAR,
    SKBN_N_BATCHES,
    SKBN_RELU,
)

cdef enum:
    TILE = 64  # columns whose sums stay in local arrays, that is in registers and L1
    BLOCK = 64  # rows that backward sums in the network's type before they meet in float64


cdef inline double inverse_std(double var, double epsilon) noexcept nogil:
    """1 / sqrt(var + epsilon), and 0 where both are 0: a constant column then gives beta."""
    return 1 / sqrt(var + epsilon) if not var + epsilon <= 0 else 0


cdef inline void centred_moments(
    double* mean, double* correction, double* square,   # OUT (columns,)
    const floating* x,                                  # IN  (n_rows, columns) by stride
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride,
) noexcept nogil:
    """Column means as mean + correction, and sums of squared deviations from the corrected mean."""
    cdef floating shift[TILE]
    cdef floating total[TILE]
    cdef double deviation
    cdef double sums[TILE]
    cdef double squares[TILE]
    cdef double pivots[TILE]
    cdef Py_ssize_t i, j
    cdef const floating* row
    for j in range(columns):
        shift[j] = x[j]
        total[j] = 0
    for i in range(1, n_rows):
        row = x + i * stride
        for j in range(columns):
            total[j] = total[j] + (row[j] - shift[j])
    for j in range(columns):
        pivots[j] = <double> shift[j] + <double> total[j] / n_rows
        sums[j] = 0
        squares[j] = 0
    for i in range(n_rows):
        row = x + i * stride
        for j in range(columns):
            deviation = <double> row[j] - pivots[j]
            sums[j] = sums[j] + deviation
            squares[j] = squares[j] + deviation * deviation
    for j in range(columns):
        mean[j] = pivots[j]
        correction[j] = sums[j] / n_rows
        deviation = squares[j] - sums[j] * correction[j]
        square[j] = 0 if deviation < 0 else deviation


cdef inline void normalize(
    floating* y,                # OUT (n_rows, columns) by stride
    const floating* x,          # IN  (n_rows, columns) by stride
    const floating* high, const floating* low,          # IN (columns,) the two parts of the mean
    const floating* scale, const floating* shift,       # IN (columns,)
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride,
    bint rectify,
) noexcept nogil:
    """y = ((x - high) - low) * scale + shift, then ReLU if asked."""
    cdef Py_ssize_t i, j
    cdef const floating* source
    cdef floating* target
    if rectify:
        for i in range(n_rows):
            source = x + i * stride
            target = y + i * stride
            for j in range(columns):
                target[j] = relu(((source[j] - high[j]) - low[j]) * scale[j] + shift[j])
    else:
        for i in range(n_rows):
            source = x + i * stride
            target = y + i * stride
            for j in range(columns):
                target[j] = ((source[j] - high[j]) - low[j]) * scale[j] + shift[j]


cdef inline void batch_norm_forward(
    floating* y,                # OUT (n_rows, width) by stride
    double* saved,              # OUT (3, stride): mean in two parts, 1 / sqrt(var + epsilon)
    double* statistics,         # OUT (2, stride): mean and variance of the batch; NULL: not wanted
    const floating* x,          # IN  (n_rows, width) by stride
    const floating* gamma, const floating* beta,        # IN (width,) padded; NULL: ones, zeros
    Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride,
    double epsilon, int activation,
) noexcept nogil:
    cdef double mean[TILE]
    cdef double correction[TILE]
    cdef double square[TILE]
    cdef floating high[TILE]
    cdef floating low[TILE]
    cdef floating scale[TILE]
    cdef floating shift[TILE]
    cdef double inv_std
    cdef Py_ssize_t j, first, columns
    for first in range(0, stride, 64):  # TILE
        columns = min(<Py_ssize_t> TILE, stride - first)
        centred_moments(mean, correction, square, x + first, n_rows, columns, stride)
        for j in range(columns):
            inv_std = inverse_std(square[j] / n_rows, epsilon)
            high[j] = <floating> mean[j]
            low[j] = <floating> ((mean[j] - <double> high[j]) + correction[j])
            scale[j] = <floating> inv_std
            shift[j] = 0
            saved[first + j] = high[j]
            saved[stride + first + j] = low[j]
            saved[2 * stride + first + j] = inv_std
        if gamma != NULL:
            for j in range(columns):
                scale[j] = <floating> (saved[2 * stride + first + j] * gamma[first + j])
        if beta != NULL:
            for j in range(columns):
                shift[j] = beta[first + j]
        if statistics != NULL:
            for j in range(columns):
                statistics[first + j] = mean[j] + correction[j]
                statistics[stride + first + j] = square[j] / n_rows
        normalize(
            y + first, x + first, high, low, scale, shift, n_rows, columns, stride, activation == SKBN_RELU
        )
    if activation != SKBN_RELU and activation != SKBN_IDENTITY:
        activation_forward(y, activation, n_rows, width, stride)


cdef inline void batch_norm_backward(
    floating* dx,               # OUT (n_rows, width) by stride; NULL: not needed
    double* dgamma, double* dbeta,      # IN/OUT (stride,): this block's sums are added
    const floating* dz,         # IN  (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride
    const floating* gamma,      # IN  (width,) padded; NULL: ones
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
    cdef Py_ssize_t i, j, first, columns, start, stop
    cdef const floating* source
    cdef const floating* gradient
    cdef floating* target
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
            stop = min(start + BLOCK, n_rows)
            for j in range(columns):
                part[j] = 0
                part_xhat[j] = 0
            for i in range(start, stop):
                source = x + i * stride + first
                gradient = dz + i * stride + first
                for j in range(columns):
                    part[j] = part[j] + gradient[j]
                    part_xhat[j] = part_xhat[j] + gradient[j] * (((source[j] - high[j]) - low[j]) * inv_std[j])
            for j in range(columns):
                total[j] = total[j] + part[j]
                total_xhat[j] = total_xhat[j] + part_xhat[j]
        for j in range(columns):
            dbeta[first + j] = dbeta[first + j] + total[j]
            dgamma[first + j] = dgamma[first + j] + total_xhat[j]
            mean_dz[j] = <floating> (total[j] / n_rows)
            slope[j] = <floating> (total_xhat[j] / n_rows * saved[2 * stride + first + j])
        if dx == NULL:
            continue
        for i in range(n_rows):
            source = x + i * stride + first
            gradient = dz + i * stride + first
            target = dx + i * stride + first
            for j in range(columns):
                target[j] = scale[j] * (
                    (gradient[j] - mean_dz[j]) - ((source[j] - high[j]) - low[j]) * slope[j]
                )


cdef inline void batch_norm_forward_eval(
    floating* y,                # OUT (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride
    const floating* gamma, const floating* beta,        # IN (width,) padded; NULL: ones, zeros
    const double* mean, const double* var,              # IN (width,) padded
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
        normalize(
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
        mean[j] = mean[j] + share * (statistics[j] - mean[j])
        var[j] = var[j] + share * (statistics[stride + j] - var[j])
