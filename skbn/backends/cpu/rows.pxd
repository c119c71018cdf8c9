# SPDX-License-Identifier: BSD-3-Clause
"""How rows of X are read: gathered by index into a block, or multiplied where they lie compressed.

X is never copied. Dense rows may have any strides. Compressed rows (CSR) meet a first dense layer without being made
dense, a multiplication for every number that is stored; where something else comes first (batch norm on the input),
the rows of one mini-batch are made dense at a time. A row of weight 0 is read as zeros: whatever stands in it, it makes
nothing infinite that a weight of 0 would turn into NaN.
"""

from cython cimport floating
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from skbn.backends.cpu.activations cimport activation_forward
from skbn.backends.cpu.dense cimport column_sums


cdef struct Rows:
    const void* data            # numbers
    Py_ssize_t n_columns
    Py_ssize_t row_stride       # of dense rows, in elements
    Py_ssize_t column_stride
    const void* starts          # compressed: where each row starts in `data` and `columns`; NULL: dense
    const void* columns
    bint is_wide                # whether starts and columns are 64-bit integers, else 32


cdef inline Py_ssize_t integer(const void* integers, bint is_wide, Py_ssize_t k) noexcept nogil:
    if is_wide:
        return <Py_ssize_t> (<const int64_t*> integers)[k]
    return (<const int32_t*> integers)[k]


cdef inline Py_ssize_t row_index(const Py_ssize_t* rows, Py_ssize_t i) noexcept nogil:
    """The i-th of the rows; NULL: all in order."""
    return rows[i] if rows != NULL else i


cdef inline void gather(
    floating* x,                # OUT (n_rows, n_columns) by stride
    const Rows* source,
    const Py_ssize_t* rows,     # IN  (first + n_rows,) which rows; NULL: in order
    const double* weights,      # IN  (n_rows,); NULL: ones
    Py_ssize_t first, Py_ssize_t n_rows, Py_ssize_t stride,
) noexcept nogil:
    """Copy rows[first : first + n_rows] of the source."""
    cdef Py_ssize_t i, j, k, row
    cdef const floating* data = <const floating*> source.data
    if source.starts != NULL:
        memset(x, 0, n_rows * stride * sizeof(floating))
        for i in range(n_rows):
            row = row_index(rows, first + i)
            for k in range(
                integer(source.starts, source.is_wide, row), integer(source.starts, source.is_wide, row + 1)
            ):
                j = integer(source.columns, source.is_wide, k)
                x[i * stride + j] = x[i * stride + j] + data[k]
    elif source.column_stride == 1 and source.n_columns >= 16:  # a call pays for a cache line or more
        for i in range(n_rows):
            row = row_index(rows, first + i)
            memcpy(x + i * stride, data + row * source.row_stride, source.n_columns * sizeof(floating))
    else:
        for j in range(source.n_columns):
            for i in range(n_rows):
                row = row_index(rows, first + i)
                x[i * stride + j] = data[row * source.row_stride + j * source.column_stride]
    if weights != NULL:
        for i in range(n_rows):
            if weights[i] == 0:
                memset(x + i * stride, 0, source.n_columns * sizeof(floating))


cdef inline void compressed_dense_forward(
    floating* y,                # OUT (n_rows, n_out) by out_stride
    const Rows* source, const Py_ssize_t* rows, const double* weights, Py_ssize_t first,    # as in gather
    const floating* weight,     # IN  (n_columns, n_out) by out_stride
    const floating* bias,       # IN  (n_out,) padded
    Py_ssize_t n_rows, Py_ssize_t n_out, Py_ssize_t out_stride, int activation,
) noexcept nogil:
    """y = activation(x @ weight + bias), a multiplication and addition of a row of weights for every stored number."""
    cdef const floating* data = <const floating*> source.data
    cdef const floating* factors
    cdef floating* z
    cdef floating value
    cdef Py_ssize_t i, j, k, row
    for i in range(n_rows):
        z = y + i * out_stride
        memcpy(z, bias, out_stride * sizeof(floating))
        if weights != NULL and weights[i] == 0:
            continue
        row = row_index(rows, first + i)
        for k in range(
            integer(source.starts, source.is_wide, row), integer(source.starts, source.is_wide, row + 1)
        ):
            value = data[k]
            factors = weight + integer(source.columns, source.is_wide, k) * out_stride
            for j in range(out_stride):
                z[j] = z[j] + value * factors[j]
    activation_forward(y, activation, n_rows, n_out, out_stride, out_stride)


cdef inline void compressed_dense_backward(
    floating* dweight,          # OUT (n_columns, columns) by out_stride
    floating* dbias,            # OUT (columns,); NULL: not trained
    const floating* dz,         # IN  (n_rows, columns) by out_stride
    const Rows* source, const Py_ssize_t* rows, const double* weights,      # as in gather
    Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t out_stride,
) noexcept nogil:
    """dweight = x.T @ dz, dbias of some columns: rows of weights that no stored number meets get zeros."""
    cdef const floating* data = <const floating*> source.data
    cdef const floating* there
    cdef floating* gradient
    cdef floating value
    cdef Py_ssize_t i, j, k, row
    for i in range(source.n_columns):
        memset(dweight + i * out_stride, 0, columns * sizeof(floating))
    for i in range(n_rows):
        if weights != NULL and weights[i] == 0:
            continue
        there = dz + i * out_stride
        row = row_index(rows, i)
        for k in range(
            integer(source.starts, source.is_wide, row), integer(source.starts, source.is_wide, row + 1)
        ):
            value = data[k]
            gradient = dweight + integer(source.columns, source.is_wide, k) * out_stride
            for j in range(columns):
                gradient[j] = gradient[j] + value * there[j]
    if dbias != NULL:
        column_sums(dbias, dz, n_rows, columns, out_stride)
