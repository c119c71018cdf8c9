# SPDX-License-Identifier: BSD-3-Clause
"""How an array lies in memory, seen as rows and columns, and how patches of it get to the kernels.

Columns are the entries that keep their own statistics, rows everything else, both counted in C order of the array's
axes. A patch is a block of rows by some columns. Kernels take patches whose columns lie side by side (ACROSS), whose
rows do (DOWN), or both (END_TO_END), so most arrays are read and written where they are: C order, Fortran order,
channels first or last, slices of these. Any other patch is copied into scratch, and from there the same kernels give
the same bits. Copying whole arrays was rejected: it takes two passes through memory where the kernels need three.
"""

from cython cimport floating
from libc.string cimport memcpy

from skbn.backends.cpu.lines cimport transpose_double, transpose_float

cdef enum:
    MAX_AXES = 64  # NumPy's own limit


cdef struct Shape:
    Py_ssize_t n_rows, n_columns
    int n_row_axes, n_column_axes       # axes of more than one entry, neighbours merged where all operands allow it
    Py_ssize_t row_axes[MAX_AXES]       # lengths, outermost first
    Py_ssize_t column_axes[MAX_AXES]


cdef struct Operand:
    void* data
    Py_ssize_t row_strides[MAX_AXES]    # in numbers
    Py_ssize_t column_strides[MAX_AXES]


cdef inline Py_ssize_t offset(
    const Py_ssize_t* lengths, const Py_ssize_t* strides, int n_axes, Py_ssize_t index,
) noexcept nogil:
    """Where the index-th entry over these axes lies."""
    cdef Py_ssize_t total = 0
    cdef int axis
    for axis in range(n_axes - 1, 0, -1):
        total += index % lengths[axis] * strides[axis]
        index //= lengths[axis]
    return total + index * strides[0] if n_axes > 0 else total


cdef inline Py_ssize_t stretch(const Py_ssize_t* lengths, int n_axes, Py_ssize_t index, Py_ssize_t most) noexcept nogil:
    """How many entries from this one on, `most` at most, are one stride apart."""
    if n_axes < 2:
        return most
    return min(most, lengths[n_axes - 1] - index % lengths[n_axes - 1])


cdef inline Py_ssize_t innermost(const Py_ssize_t* strides, int n_axes) noexcept nogil:
    """Stride from one entry to the next; 0 where there is one entry only."""
    return strides[n_axes - 1] if n_axes > 0 else 0


cdef inline floating* entry(
    const floating* kind, const Operand* operand, const Shape* shape, Py_ssize_t row, Py_ssize_t column,
) noexcept nogil:
    """Address of one number."""
    return (
        <floating*> operand.data
        + offset(shape.row_axes, operand.row_strides, shape.n_row_axes, row)
        + offset(shape.column_axes, operand.column_strides, shape.n_column_axes, column)
    )


cdef inline void transpose(
    floating* out, Py_ssize_t out_stride, const floating* x, Py_ssize_t stride, Py_ssize_t n_rows, Py_ssize_t n_columns,
) noexcept nogil:
    """out[j, i] = x[i, j]."""
    cdef Py_ssize_t i, j, full_rows = n_rows // 4 * 4, full_columns = n_columns // 4 * 4
    for j from 0 <= j < full_columns by 4:
        for i from 0 <= i < full_rows by 4:
            if floating is float:
                transpose_float(out + j * out_stride + i, out_stride, x + i * stride + j, stride)
            else:
                transpose_double(out + j * out_stride + i, out_stride, x + i * stride + j, stride)
    for j in range(n_columns):
        for i in range(0 if j >= full_columns else full_rows, n_rows):
            out[j * out_stride + i] = x[i * stride + j]


cdef inline void copy_matrix(
    floating* out, Py_ssize_t out_row, Py_ssize_t out_column,
    const floating* x, Py_ssize_t x_row, Py_ssize_t x_column,
    Py_ssize_t n_rows, Py_ssize_t n_columns,
) noexcept nogil:
    """out[i, j] = x[i, j], with the strides of their rows and columns."""
    cdef Py_ssize_t i, j
    if out_column == 1 and x_column == 1:
        for i in range(n_rows):
            memcpy(out + i * out_row, x + i * x_row, n_columns * sizeof(floating))
    elif out_row == 1 and x_row == 1:
        for j in range(n_columns):
            memcpy(out + j * out_column, x + j * x_column, n_rows * sizeof(floating))
    elif out_row == 1 and x_column == 1:
        transpose(out, out_column, x, x_row, n_rows, n_columns)
    elif out_column == 1 and x_row == 1:
        transpose(out, out_row, x, x_column, n_columns, n_rows)
    elif out_column == 1:
        for i in range(n_rows):
            for j in range(n_columns):
                out[i * out_row + j] = x[i * x_row + j * x_column]
    elif out_row == 1:
        for j in range(n_columns):
            for i in range(n_rows):
                out[j * out_column + i] = x[i * x_row + j * x_column]
    else:
        for i in range(n_rows):
            for j in range(n_columns):
                out[i * out_row + j * out_column] = x[i * x_row + j * x_column]


cdef inline void copy_patch(
    floating* patch, Py_ssize_t patch_row, Py_ssize_t patch_column,     # scratch and its strides
    const Operand* operand, const Shape* shape,
    Py_ssize_t first_row, Py_ssize_t n_rows, Py_ssize_t first_column, Py_ssize_t n_columns, bint back,
) noexcept nogil:
    """Copy a patch of an array into scratch, or back, stretch by stretch."""
    cdef Py_ssize_t i = 0, j, rows, columns
    cdef Py_ssize_t row_stride = innermost(operand.row_strides, shape.n_row_axes)
    cdef Py_ssize_t column_stride = innermost(operand.column_strides, shape.n_column_axes)
    cdef floating* here
    while i < n_rows:
        rows = stretch(shape.row_axes, shape.n_row_axes, first_row + i, n_rows - i)
        j = 0
        while j < n_columns:
            columns = stretch(shape.column_axes, shape.n_column_axes, first_column + j, n_columns - j)
            here = entry(<const floating*> patch, operand, shape, first_row + i, first_column + j)
            if back:
                copy_matrix(
                    here, row_stride, column_stride,
                    patch + i * patch_row + j * patch_column, patch_row, patch_column, rows, columns,
                )
            else:
                copy_matrix(
                    patch + i * patch_row + j * patch_column, patch_row, patch_column,
                    here, row_stride, column_stride, rows, columns,
                )
            j += columns
        i += rows
