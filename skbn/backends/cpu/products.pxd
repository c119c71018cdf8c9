# SPDX-License-Identifier: BSD-3-Clause
"""Matrix products of row-major blocks: BLAS, and loops over lines for the shapes where its overhead is the cost.

A BLAS call packs its operands and costs 100 to 400 ns before the first multiplication, a third of the whole step of a
small network. So a single output is a loop over lines (lines.pxd), which reads pads and writes them as the zeros they
are; a layer of few inputs has loops of its own (dense.pxd). BLAS gets the true sizes and knows no pads;
behind ``multiply`` they are written, because inference uses the same memory for layers of different widths.
"""

from cython cimport floating

from skbn.backends.cpu.blas cimport gemm
from skbn.backends.cpu.lines cimport (
    count_lines,
    double_line,
    float_line,
    line,
    splat_item,
    sum_double,
    sum_float,
)

cdef inline line products(const line* x, const line* y, Py_ssize_t n_lines) noexcept nogil:
    """Products of two rows, summed over the lines."""
    cdef Py_ssize_t k
    cdef line total = x[0] * y[0]
    for k in range(1, n_lines):
        total = total + x[k] * y[k]
    return total


cdef inline floating dot(const floating* x, const floating* y, Py_ssize_t size) noexcept nogil:
    """Scalar product of two rows of whole lines."""
    if floating is float:
        return sum_float(
            products(<const float_line*> x, <const float_line*> y, count_lines(<const float_line*> x, size))
        )
    else:
        return sum_double(
            products(<const double_line*> x, <const double_line*> y, count_lines(<const double_line*> x, size))
        )


cdef inline void multiply_transposed_one(
    line* dweight,              # OUT (n_lines,)
    const line* x,              # IN  (n_rows, n_lines)
    const line* dz,             # IN  (n_rows,) numbers
    Py_ssize_t n_rows, Py_ssize_t n_lines,
) noexcept nogil:
    """dweight = x.T @ dz for one output."""
    cdef Py_ssize_t i, k
    cdef line even, odd
    for k in range(n_lines):
        even = x[k] - x[k]
        odd = even
        for i in range(0, n_rows - 1, 2):
            even = even + x[i * n_lines + k] * splat_item(dz, i)
            odd = odd + x[(i + 1) * n_lines + k] * splat_item(dz, i + 1)
        if n_rows % 2:
            even = even + x[(n_rows - 1) * n_lines + k] * splat_item(dz, n_rows - 1)
        dweight[k] = even + odd


cdef inline void outer_product(
    line* dx,                   # OUT (n_rows, n_lines)
    const line* dz,             # IN  (n_rows,) numbers
    const line* weight,         # IN  (n_lines,)
    Py_ssize_t n_rows, Py_ssize_t n_lines,
) noexcept nogil:
    """dx = dz @ weight.T for one output."""
    cdef Py_ssize_t i, k
    for i in range(n_rows):
        for k in range(n_lines):
            dx[i * n_lines + k] = splat_item(dz, i) * weight[k]


cdef inline bint whole_lines(Py_ssize_t itemsize, Py_ssize_t stride) noexcept nogil:
    """Whether rows are whole lines: all but those of the output are."""
    return stride * itemsize % 64 == 0


cdef inline void multiply(
    floating* z,                # OUT (n_rows, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """z = x @ weight."""
    cdef Py_ssize_t i, j
    if out_stride > 1:
        gemm(b"N", b"N", n_out, n_rows, n_in, weight, out_stride, x, in_stride, z, out_stride)
        for i in range(n_rows):
            for j in range(n_out, out_stride):
                z[i * out_stride + j] = 0
    else:
        for i in range(n_rows):
            z[i] = dot(x + i * in_stride, weight, in_stride)


cdef inline void multiply_transposed_input(
    floating* dweight,          # OUT (n_in, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* dz,         # IN  (n_rows, n_out) by out_stride
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """dweight = x.T @ dz."""
    if out_stride == 1:
        if floating is float:
            multiply_transposed_one(
                <float_line*> dweight, <const float_line*> x, <const float_line*> dz, n_rows,
                count_lines(<const float_line*> x, in_stride),
            )
        else:
            multiply_transposed_one(
                <double_line*> dweight, <const double_line*> x, <const double_line*> dz, n_rows,
                count_lines(<const double_line*> x, in_stride),
            )
    else:
        gemm(b"N", b"T", n_out, n_in, n_rows, dz, out_stride, x, in_stride, dweight, out_stride)


cdef inline void multiply_transposed_weight(
    floating* dx,               # OUT (n_rows, n_in) by in_stride
    const floating* dz,         # IN  (n_rows, n_out) by out_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """dx = dz @ weight.T."""
    cdef Py_ssize_t i, j
    if out_stride == 1:
        if floating is float:
            outer_product(
                <float_line*> dx, <const float_line*> dz, <const float_line*> weight, n_rows,
                count_lines(<const float_line*> dx, in_stride),
            )
        else:
            outer_product(
                <double_line*> dx, <const double_line*> dz, <const double_line*> weight, n_rows,
                count_lines(<const double_line*> dx, in_stride),
            )
    elif n_in <= 2 and whole_lines(sizeof(floating), out_stride):
        for i in range(n_rows):
            for j in range(n_in):
                dx[i * in_stride + j] = dot(dz + i * out_stride, weight + j * out_stride, out_stride)
    else:
        gemm(b"T", b"N", n_in, n_rows, n_out, weight, out_stride, dz, out_stride, dx, in_stride)
