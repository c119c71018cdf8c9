# SPDX-License-Identifier: BSD-3-Clause
"""Matrix products, tile by tile: loops over lines where there is a fused multiply-add, else BLAS.

A tile is some rows by a panel of columns. Its second factor is packed, a block of DEPTH rows at a time, so that the
innermost loop (products.h) reads it from one place; a factor that stays in cache as it is, is not. OpenBLAS packs at
every call, both factors, which costs most where layers are small; C7 of docs/benchmarks.md holds a large network
against its products. BLAS is for processors without fused multiply-adds and for compilers without vector types.

Sums run over a block in order and blocks are added in order, so an element's bits depend on nothing but its row, its
column and their length. BLAS promises nothing of the kind, but gets the same tiles on any number of threads, and one
thread each.

Loops over lines read pads and write them as the zeros they are. BLAS gets the true sizes; pads are written behind it,
because inference uses the same memory for layers of different widths.
"""

from cython cimport floating
from libc.string cimport memcpy

from skbn.backends.cpu.blas cimport gemm
from skbn.backends.cpu.lines cimport (
    at,
    count_lines,
    double_line,
    float_line,
    fma_line,
    line,
    put,
    splat_item,
    sum_line,
    transpose_double,
    transpose_float,
)
from skbn.backends.cpu.team cimport Worker, count_tiles, fair_share

cdef extern from "cpu/products.h" nogil:
    enum:
        SKBN_HAS_PRODUCTS   # whether the loops beat BLAS
        SKBN_SMALL_FACTOR   # bytes of a second factor up to which packing does not pay
        SKBN_PANEL          # columns of a tile
    void products_float "skbn_products_float"(
        float* z, const float* x, const float* y, const float* bias, Py_ssize_t n_rows, Py_ssize_t columns,
        Py_ssize_t n_inner, Py_ssize_t z_stride, Py_ssize_t row_step, Py_ssize_t step, Py_ssize_t y_stride,
        bint add, bint rectify,
    ) noexcept
    void products_double "skbn_products_double"(
        double* z, const double* x, const double* y, const double* bias, Py_ssize_t n_rows, Py_ssize_t columns,
        Py_ssize_t n_inner, Py_ssize_t z_stride, Py_ssize_t row_step, Py_ssize_t step, Py_ssize_t y_stride,
        bint add, bint rectify,
    ) noexcept

cdef enum:
    ROWS = 256              # of a tile, at most
    DEPTH = 256             # rows of the second factor that are packed at a time
    ROWS_THAT_PACK = 16     # fewer read every number of the second factor so seldom that packing costs more


cdef inline Py_ssize_t rows_of_product(
    const Worker* me, Py_ssize_t n_rows, Py_ssize_t n_panels, Py_ssize_t least,
) noexcept nogil:
    """Rows of a tile; BLAS's are fixed, because its bits may depend on them."""
    return fair_share(me, n_rows * n_panels, 32, least, ROWS) if SKBN_HAS_PRODUCTS else ROWS


cdef inline line products(const line* x, const line* y, Py_ssize_t n_lines) noexcept nogil:
    """Products of two rows, summed over the lines."""
    cdef Py_ssize_t k
    cdef line total = at(x, 0) * at(y, 0)
    for k in range(1, n_lines):
        total = fma_line(at(x, k), at(y, k), total)
    return total


cdef inline floating dot(const floating* x, const floating* y, Py_ssize_t size) noexcept nogil:
    """Scalar product of two rows of whole lines."""
    if floating is float:
        return <floating> sum_line(
            products(<const float_line*> x, <const float_line*> y, count_lines(<const float_line*> x, size))
        )
    else:
        return sum_line(
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
        even = at(x, k) - at(x, k)
        odd = even
        for i in range(0, n_rows - 1, 2):
            even = fma_line(at(x, i * n_lines + k), splat_item(dz, i), even)
            odd = fma_line(at(x, (i + 1) * n_lines + k), splat_item(dz, i + 1), odd)
        if n_rows % 2:
            even = fma_line(at(x, (n_rows - 1) * n_lines + k), splat_item(dz, n_rows - 1), even)
        put(dweight, k, even + odd)


cdef inline void outer_product(
    line* dx,                   # OUT (n_rows, n_lines) by stride, in lines
    const line* dz,             # IN  (n_rows,) numbers
    const line* weight,         # IN  (n_lines,)
    Py_ssize_t n_rows, Py_ssize_t n_lines, Py_ssize_t stride,
) noexcept nogil:
    """dx = dz @ weight.T for one output."""
    cdef Py_ssize_t i, k
    for i in range(n_rows):
        for k in range(n_lines):
            put(dx, i * stride + k, splat_item(dz, i) * at(weight, k))


cdef inline void transpose(
    floating* transposed,       # OUT (n_out, n_in) by in_stride, pads too
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    Py_ssize_t n_in, Py_ssize_t n_out, Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """Transpose by blocks of 4 by 4, then the edges."""
    cdef Py_ssize_t i, j, start, whole_in = n_in - n_in % 4, whole_out = n_out - n_out % 4
    for start in range(0, whole_out, 16):  # all of a cache line while it is there
        for i in range(0, whole_in, 4):
            for j in range(start, min(start + 16, whole_out), 4):
                if floating is float:
                    transpose_float(
                        transposed + j * in_stride + i, in_stride, weight + i * out_stride + j, out_stride
                    )
                else:
                    transpose_double(
                        transposed + j * in_stride + i, in_stride, weight + i * out_stride + j, out_stride
                    )
    for j in range(n_out):
        for i in range(whole_in if j < whole_out else 0, n_in):
            transposed[j * in_stride + i] = weight[i * out_stride + j]
        for i in range(n_in, in_stride):
            transposed[j * in_stride + i] = 0


cdef inline void multiply_tile(
    floating* z,                # OUT (n_rows, columns) by z_stride
    const floating* x,          # IN  (n_rows, n_inner): (i, k) is number i * row_step + k * step
    const floating* y,          # IN  (n_inner, columns) by y_stride; if transposed (columns, n_inner) by y_stride
    const floating* bias,       # IN  (columns,), added to every row; NULL: nothing
    floating* room,             # OUT (DEPTH, SKBN_PANEL)
    Py_ssize_t n_rows,
    Py_ssize_t width,           # columns beyond are pads
    Py_ssize_t columns, Py_ssize_t n_inner,
    Py_ssize_t z_stride, Py_ssize_t row_step, Py_ssize_t step, Py_ssize_t y_stride, bint transposed, bint rectify,
) noexcept nogil:
    """z = x @ y (+ bias, then ReLU); y may be stored transposed."""
    cdef Py_ssize_t i, j, k, first, depth, here, stride
    cdef bint packed = n_rows >= ROWS_THAT_PACK and n_inner * y_stride * sizeof(floating) > SKBN_SMALL_FACTOR
    cdef bint is_last
    cdef const floating* there
    cdef const floating* shift
    cdef floating value
    if not SKBN_HAS_PRODUCTS:
        gemm(
            b"T" if transposed else b"N", b"N" if step == 1 else b"T", width, n_rows, n_inner,
            y, y_stride, x, row_step if step == 1 else step, z, z_stride,
        )
        for i in range(n_rows):
            for j in range(width, columns):
                z[i * z_stride + j] = 0
            if bias != NULL:
                for j in range(width):
                    value = z[i * z_stride + j] + bias[j]
                    z[i * z_stride + j] = 0 if rectify and value < 0 else value  # in this order NaN passes
        return
    depth = count_tiles(n_inner, count_tiles(n_inner, DEPTH))
    for first from 0 <= first < n_inner by depth:
        here = min(depth, n_inner - first)
        is_last = first + here == n_inner
        stride = columns
        if transposed:
            transpose(room, y + first, width, here, columns, y_stride)
            there = room
        elif packed:
            for k in range(here):
                memcpy(room + k * columns, y + (first + k) * y_stride, columns * sizeof(floating))
            there = room
        else:
            there = y + first * y_stride
            stride = y_stride
        shift = bias if is_last else NULL
        if floating is float:
            products_float(
                z, x + first * step, there, shift, n_rows, columns, here, z_stride, row_step, step, stride,
                first > 0, rectify and is_last,
            )
        else:
            products_double(
                z, x + first * step, there, shift, n_rows, columns, here, z_stride, row_step, step, stride,
                first > 0, rectify and is_last,
            )
