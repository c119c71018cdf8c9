# SPDX-License-Identifier: BSD-3-Clause
"""Fully connected layers: y = activation(x @ weight + bias).

Gradients are overwritten. The activation's backward has turned dy into dz before ``dense_backward`` is called.
"""

from cython cimport floating

from skbn.backends.cpu.activations cimport activation_forward, relu
from skbn.backends.cpu.blas cimport multiply, multiply_transposed_input, multiply_transposed_weight
from skbn.backends.records cimport SKBN_IDENTITY, SKBN_RELU

cdef enum:
    TILE = 64  # columns whose sums stay in local arrays, that is in registers


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


cdef inline void column_sums(
    floating* sums,             # OUT (width,)
    const floating* x,          # IN  (n_rows, width)
    Py_ssize_t n_rows, Py_ssize_t width,
) noexcept nogil:
    cdef Py_ssize_t i, j, first, columns
    cdef floating total[TILE]
    cdef const floating* row
    for first in range(0, width, 64):  # TILE
        columns = min(<Py_ssize_t> TILE, width - first)
        for j in range(columns):
            total[j] = 0
        for i in range(n_rows):
            row = x + i * width + first
            for j in range(columns):
                total[j] = total[j] + row[j]
        for j in range(columns):
            sums[first + j] = total[j]


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
