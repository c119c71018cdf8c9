# SPDX-License-Identifier: BSD-3-Clause
"""Matrix products of row-major blocks: loops over lines while a factor stays in cache, else BLAS.

A BLAS call packs its operands and costs 100 to 400 ns before the first multiplication, more than the product itself in
a small network: with 50 hidden units twice, a step takes 5.5 us with these loops and 10.8 with BLAS. They read pads and
write them as the zeros they are. BLAS gets the true sizes and knows no pads; behind ``multiply`` they are written,
because inference uses the same memory for layers of different widths.
"""

from cython cimport floating

from skbn.backends.cpu.blas cimport gemm
from skbn.backends.cpu.lines cimport (
    count_lines,
    double_line,
    float_line,
    fma_line,
    line,
    relu_line,
    splat_item,
    sum_double,
    sum_float,
    transpose_double,
    transpose_float,
)
cdef extern from "cpu/lines.h" nogil:
    enum:
        SKBN_SMALL_FACTOR


cdef inline void multiply_lines(
    line* z,                    # OUT (n_rows, n_lines)
    const line* x,              # IN  (n_rows, n_inner) numbers: (i, k) is number i * row_step + k * step
    const line* y,              # IN  (n_inner, n_lines)
    const line* bias,           # IN  (n_lines,), added to every row; NULL: nothing
    Py_ssize_t n_rows, Py_ssize_t n_inner, Py_ssize_t n_lines, Py_ssize_t row_step, Py_ssize_t step,
    bint rectify,
) noexcept nogil:
    """z = x @ y (+ bias, then ReLU), in tiles of 4 rows and 2 lines: 8 sums in registers keep two adders busy.

    At the edges rows and lines are repeated: the same sum is computed and stored again.
    """
    cdef Py_ssize_t i, j, k, i1, i2, i3, j1
    cdef line first, second, factor
    cdef line s00, s01, s10, s11, s20, s21, s30, s31
    for j in range(0, n_lines, 2):
        j1 = min(j + 1, n_lines - 1)
        for i in range(0, n_rows, 4):
            i1 = min(i + 1, n_rows - 1)
            i2 = min(i + 2, n_rows - 1)
            i3 = min(i + 3, n_rows - 1)
            first = y[j]
            second = y[j1]
            factor = splat_item(x, i * row_step)
            s00 = factor * first
            s01 = factor * second
            factor = splat_item(x, i1 * row_step)
            s10 = factor * first
            s11 = factor * second
            factor = splat_item(x, i2 * row_step)
            s20 = factor * first
            s21 = factor * second
            factor = splat_item(x, i3 * row_step)
            s30 = factor * first
            s31 = factor * second
            for k in range(1, n_inner):
                first = y[k * n_lines + j]
                second = y[k * n_lines + j1]
                factor = splat_item(x, i * row_step + k * step)
                s00 = fma_line(factor, first, s00)
                s01 = fma_line(factor, second, s01)
                factor = splat_item(x, i1 * row_step + k * step)
                s10 = fma_line(factor, first, s10)
                s11 = fma_line(factor, second, s11)
                factor = splat_item(x, i2 * row_step + k * step)
                s20 = fma_line(factor, first, s20)
                s21 = fma_line(factor, second, s21)
                factor = splat_item(x, i3 * row_step + k * step)
                s30 = fma_line(factor, first, s30)
                s31 = fma_line(factor, second, s31)
            if bias != NULL:
                first = bias[j]
                second = bias[j1]
                s00 = s00 + first
                s01 = s01 + second
                s10 = s10 + first
                s11 = s11 + second
                s20 = s20 + first
                s21 = s21 + second
                s30 = s30 + first
                s31 = s31 + second
            if rectify:
                s00 = relu_line(s00)
                s01 = relu_line(s01)
                s10 = relu_line(s10)
                s11 = relu_line(s11)
                s20 = relu_line(s20)
                s21 = relu_line(s21)
                s30 = relu_line(s30)
                s31 = relu_line(s31)
            z[i * n_lines + j] = s00
            z[i * n_lines + j1] = s01
            z[i1 * n_lines + j] = s10
            z[i1 * n_lines + j1] = s11
            z[i2 * n_lines + j] = s20
            z[i2 * n_lines + j1] = s21
            z[i3 * n_lines + j] = s30
            z[i3 * n_lines + j1] = s31


cdef inline void multiply_small(
    floating* z,                # OUT (n_rows, stride)
    const floating* x,          # IN  (n_rows, n_inner): (i, k) is number i * row_step + k * step
    const floating* y,          # IN  (n_inner, stride), whole lines
    const floating* bias,       # IN  (stride,), added to every row; NULL: nothing
    Py_ssize_t n_rows, Py_ssize_t n_inner, Py_ssize_t stride, Py_ssize_t row_step, Py_ssize_t step,
    bint rectify,
) noexcept nogil:
    """z = x @ y (+ bias, then ReLU) by lines."""
    if floating is float:
        multiply_lines(
            <float_line*> z, <const float_line*> x, <const float_line*> y, <const float_line*> bias,
            n_rows, n_inner, count_lines(<const float_line*> x, stride), row_step, step, rectify,
        )
    else:
        multiply_lines(
            <double_line*> z, <const double_line*> x, <const double_line*> y, <const double_line*> bias,
            n_rows, n_inner, count_lines(<const double_line*> x, stride), row_step, step, rectify,
        )


cdef inline bint whole_lines(Py_ssize_t itemsize, Py_ssize_t stride) noexcept nogil:
    """Whether rows are whole lines: all but those of the output are."""
    return stride * itemsize % 64 == 0


cdef inline bint is_small(Py_ssize_t itemsize, Py_ssize_t n_inner, Py_ssize_t stride) noexcept nogil:
    """Whether the second factor stays in cache, so that the loops need no packing and beat BLAS."""
    return whole_lines(itemsize, stride) and n_inner * stride * itemsize <= SKBN_SMALL_FACTOR


cdef inline line products(const line* x, const line* y, Py_ssize_t n_lines) noexcept nogil:
    """Products of two rows, summed over the lines."""
    cdef Py_ssize_t k
    cdef line total = x[0] * y[0]
    for k in range(1, n_lines):
        total = fma_line(x[k], y[k], total)
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
            even = fma_line(x[i * n_lines + k], splat_item(dz, i), even)
            odd = fma_line(x[(i + 1) * n_lines + k], splat_item(dz, i + 1), odd)
        if n_rows % 2:
            even = fma_line(x[(n_rows - 1) * n_lines + k], splat_item(dz, n_rows - 1), even)
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
    elif is_small(sizeof(floating), n_rows, out_stride):
        multiply_small(dweight, x, dz, <const floating*> NULL, n_in, n_rows, out_stride, 1, in_stride, False)
    else:
        gemm(b"N", b"T", n_out, n_in, n_rows, dz, out_stride, x, in_stride, dweight, out_stride)


cdef inline void transpose(
    floating* transposed,       # OUT (n_out, n_in) by in_stride, pads too
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    Py_ssize_t n_in, Py_ssize_t n_out, Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """Transpose by blocks of 4 by 4, then the edges."""
    cdef Py_ssize_t i, j, whole_in = n_in - n_in % 4, whole_out = n_out - n_out % 4
    for j in range(0, whole_out, 4):
        for i in range(0, whole_in, 4):
            if floating is float:
                transpose_float(transposed + j * in_stride + i, in_stride, weight + i * out_stride + j, out_stride)
            else:
                transpose_double(transposed + j * in_stride + i, in_stride, weight + i * out_stride + j, out_stride)
    for j in range(n_out):
        for i in range(whole_in if j < whole_out else 0, n_in):
            transposed[j * in_stride + i] = weight[i * out_stride + j]
        for i in range(n_in, in_stride):
            transposed[j * in_stride + i] = 0


cdef inline void multiply_transposed_weight(
    floating* dx,               # OUT (n_rows, n_in) by in_stride
    floating* transposed,       # OUT (n_out, in_stride): room for the transposed weights
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
    elif is_small(sizeof(floating), n_out, in_stride):
        transpose(transposed, weight, n_in, n_out, in_stride, out_stride)
        multiply_small(
            dx, dz, <const floating*> transposed, <const floating*> NULL, n_rows, n_out, in_stride, out_stride, 1, False
        )
    else:
        gemm(b"T", b"N", n_in, n_rows, n_out, weight, out_stride, dz, out_stride, dx, in_stride)
