# SPDX-License-Identifier: BSD-3-Clause
"""Fully connected layers: y = activation(x @ weight + bias).

Gradients are overwritten. The activation's backward has turned dy into dz before ``dense_backward`` is called.
"""

from cython cimport floating

from skbn.backends.cpu.activations cimport activation_forward, relu
from skbn.backends.cpu.lines cimport count_lines, double_line, float_line, line
from skbn.backends.cpu.products cimport (
    FEW,
    multiply,
    multiply_few,
    multiply_transposed_input,
    multiply_transposed_weight,
    whole_lines,
)
from skbn.backends.records cimport SKBN_IDENTITY, SKBN_RELU


cdef inline void dense_forward(
    floating* y,                # OUT (n_rows, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    const floating* bias,       # IN  (n_out,) padded
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
    int activation,
) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef floating* row
    if n_in <= FEW and whole_lines(sizeof(floating), out_stride):
        if floating is float:
            multiply_few(
                <float_line*> y, <const float_line*> x, <const float_line*> weight, <const float_line*> bias,
                n_rows, n_in, count_lines(<const float_line*> x, in_stride),
                count_lines(<const float_line*> x, out_stride), activation == SKBN_RELU,
            )
        else:
            multiply_few(
                <double_line*> y, <const double_line*> x, <const double_line*> weight, <const double_line*> bias,
                n_rows, n_in, count_lines(<const double_line*> x, in_stride),
                count_lines(<const double_line*> x, out_stride), activation == SKBN_RELU,
            )
        if activation != SKBN_RELU:
            activation_forward(y, activation, n_rows, n_out, out_stride)
        return
    multiply(y, x, weight, n_rows, n_in, n_out, in_stride, out_stride)
    if activation == SKBN_RELU:
        for i in range(n_rows):
            row = y + i * out_stride
            for j in range(out_stride):
                row[j] = relu(row[j] + bias[j])
    else:
        for i in range(n_rows):
            row = y + i * out_stride
            for j in range(out_stride):
                row[j] = row[j] + bias[j]
        if activation != SKBN_IDENTITY:
            activation_forward(y, activation, n_rows, n_out, out_stride)


cdef inline void sum_lines(
    line* sums,                 # OUT (n_lines,)
    const line* x,              # IN  (n_rows, n_lines)
    Py_ssize_t n_rows, Py_ssize_t n_lines,
) noexcept nogil:
    cdef Py_ssize_t i, k
    cdef line even, odd
    for k in range(n_lines):
        even = x[k] - x[k]
        odd = even
        for i in range(0, n_rows - 1, 2):
            even = even + x[i * n_lines + k]
            odd = odd + x[(i + 1) * n_lines + k]
        if n_rows % 2:
            even = even + x[(n_rows - 1) * n_lines + k]
        sums[k] = even + odd


cdef inline void column_sums(
    floating* sums,             # OUT (width,)
    const floating* x,          # IN  (n_rows, width)
    Py_ssize_t n_rows, Py_ssize_t width,
) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef floating even, odd
    if not whole_lines(sizeof(floating), width):  # the output
        for j in range(width):
            even = 0
            odd = 0
            for i in range(0, n_rows - 1, 2):
                even += x[i * width + j]
                odd += x[(i + 1) * width + j]
            if n_rows % 2:
                even += x[(n_rows - 1) * width + j]
            sums[j] = even + odd
    elif floating is float:
        sum_lines(<float_line*> sums, <const float_line*> x, n_rows, count_lines(<const float_line*> x, width))
    else:
        sum_lines(<double_line*> sums, <const double_line*> x, n_rows, count_lines(<const double_line*> x, width))


cdef inline void dense_backward(
    floating* dx,               # OUT (n_rows, n_in) by in_stride; NULL: not needed
    floating* dweight,          # OUT (n_in, n_out) by out_stride
    floating* dbias,            # OUT (n_out,) padded; NULL: not trained
    const floating* dz,         # IN  (n_rows, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    multiply_transposed_input(dweight, x, dz, n_rows, n_in, n_out, in_stride, out_stride)
    if dbias != NULL:
        column_sums(dbias, dz, n_rows, out_stride)
    if dx != NULL:
        multiply_transposed_weight(dx, dz, weight, n_rows, n_in, n_out, in_stride, out_stride)


cdef inline double add_penalty(
    floating* dweight,          # IN/OUT gradient: rate * weight is added
    const floating* weight,     # IN
    Py_ssize_t size,            # a multiple of 8: pads are read as the zeros they are
    floating rate,
) noexcept nogil:
    """Return the sum of squared weights: 8 lanes over a block, blocks meet in float64."""
    cdef floating lanes[8]
    cdef double total = 0
    cdef Py_ssize_t k, lane, start
    for start in range(0, size, 1024):
        for lane in range(8):
            lanes[lane] = 0
        for k in range(start, min(start + 1024, size), 8):
            for lane in range(8):
                dweight[k + lane] = dweight[k + lane] + rate * weight[k + lane]
                lanes[lane] = lanes[lane] + weight[k + lane] * weight[k + lane]
        for lane in range(8):
            total += lanes[lane]
    return total
