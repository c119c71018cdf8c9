# SPDX-License-Identifier: BSD-3-Clause
"""Matrix products of row-major blocks: BLAS, and loops over lines for the shapes where its overhead is the cost.

A BLAS call packs its operands and costs 100 to 400 ns before the first multiplication, a tenth of the whole step of a
small network. So a layer of FEW inputs and a single output are loops over lines (lines.pxd); they write pads as the
zeros they are. BLAS gets the true sizes and neither reads nor writes pads.
"""

from cython cimport floating

from skbn.backends.cpu.blas cimport gemm
from skbn.backends.cpu.lines cimport (
    count_lines,
    double_line,
    float_line,
    line,
    relu_line,
    splat_item,
    sum_double,
    sum_float,
)

cdef enum:
    FEW = 8  # inputs up to which the loops win


cdef inline void multiply_few(
    line* y,                    # OUT (n_rows, n_lines)
    const line* x,              # IN  (n_rows, in_lines): the pad behind an odd number of inputs is zero
    const line* weight,         # IN  (n_in, n_lines)
    const line* bias,           # IN  (n_lines,)
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t in_lines, Py_ssize_t n_lines, bint rectify,
) noexcept nogil:
    """y = x @ weight + bias, then ReLU if asked; two inputs at a time."""
    cdef Py_ssize_t i, j, k
    cdef line first, second, start, z
    cdef bint last
    for k in range(n_lines):
        start = bias[k]
        for j in range(0, n_in, 2):
            first = weight[j * n_lines + k]
            second = weight[(j + 1) * n_lines + k] if j + 1 < n_in else first
            last = rectify and j + 2 >= n_in
            for i in range(n_rows):
                z = start if j == 0 else y[i * n_lines + k]
                z = (z + splat_item(x + i * in_lines, j) * first) + splat_item(x + i * in_lines, j + 1) * second
                y[i * n_lines + k] = relu_line(z) if last else z


cdef inline void multiply_transposed_few(
    line* dweight,              # OUT (n_in, n_lines)
    const line* x,              # IN  (n_rows, in_lines): the pad behind an odd number of inputs is zero
    const line* dz,             # IN  (n_rows, n_lines)
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t in_lines, Py_ssize_t n_lines,
) noexcept nogil:
    """dweight = x.T @ dz, two inputs at a time, even and odd rows apart, so that additions overlap."""
    cdef Py_ssize_t i, j, k
    cdef line gradient, even0, even1, odd0, odd1
    cdef const line* row
    for k in range(n_lines):
        for j in range(0, n_in, 2):
            even0 = dz[k] - dz[k]
            even1 = even0
            odd0 = even0
            odd1 = even0
            for i in range(0, n_rows - 1, 2):
                gradient = dz[i * n_lines + k]
                row = x + i * in_lines
                even0 = even0 + splat_item(row, j) * gradient
                even1 = even1 + splat_item(row, j + 1) * gradient
                gradient = dz[(i + 1) * n_lines + k]
                row = x + (i + 1) * in_lines
                odd0 = odd0 + splat_item(row, j) * gradient
                odd1 = odd1 + splat_item(row, j + 1) * gradient
            if n_rows % 2:
                gradient = dz[(n_rows - 1) * n_lines + k]
                row = x + (n_rows - 1) * in_lines
                even0 = even0 + splat_item(row, j) * gradient
                even1 = even1 + splat_item(row, j + 1) * gradient
            dweight[j * n_lines + k] = even0 + odd0
            if j + 1 < n_in:
                dweight[(j + 1) * n_lines + k] = even1 + odd1


cdef inline line row_dot(const line* row, const line* weight, Py_ssize_t n_lines) noexcept nogil:
    """Products of two rows, summed over the lines."""
    cdef Py_ssize_t k
    cdef line total = row[0] * weight[0]
    for k in range(1, n_lines):
        total = total + row[k] * weight[k]
    return total


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
    cdef Py_ssize_t i
    if out_stride > 1:
        gemm(b"N", b"N", n_out, n_rows, n_in, weight, out_stride, x, in_stride, z, out_stride)
    elif floating is float:
        for i in range(n_rows):
            z[i] = sum_float(row_dot(
                <const float_line*> (x + i * in_stride), <const float_line*> weight,
                count_lines(<const float_line*> x, in_stride),
            ))
    else:
        for i in range(n_rows):
            z[i] = sum_double(row_dot(
                <const double_line*> (x + i * in_stride), <const double_line*> weight,
                count_lines(<const double_line*> x, in_stride),
            ))


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
    elif n_in <= FEW and whole_lines(sizeof(floating), out_stride):
        if floating is float:
            multiply_transposed_few(
                <float_line*> dweight, <const float_line*> x, <const float_line*> dz, n_rows, n_in,
                count_lines(<const float_line*> x, in_stride), count_lines(<const float_line*> x, out_stride),
            )
        else:
            multiply_transposed_few(
                <double_line*> dweight, <const double_line*> x, <const double_line*> dz, n_rows, n_in,
                count_lines(<const double_line*> x, in_stride), count_lines(<const double_line*> x, out_stride),
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
    if out_stride > 1:
        gemm(b"T", b"N", n_in, n_rows, n_out, weight, out_stride, dz, out_stride, dx, in_stride)
    elif floating is float:
        outer_product(
            <float_line*> dx, <const float_line*> dz, <const float_line*> weight, n_rows,
            count_lines(<const float_line*> dx, in_stride),
        )
    else:
        outer_product(
            <double_line*> dx, <const double_line*> dz, <const double_line*> weight, n_rows,
            count_lines(<const double_line*> dx, in_stride),
        )
