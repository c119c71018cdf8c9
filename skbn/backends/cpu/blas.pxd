# SPDX-License-Identifier: BSD-3-Clause
"""Matrix products of row-major blocks: the only file that knows BLAS.

BLAS is column-major, so a row-major (n_rows, n_columns) block with a row stride is the transposed block with that
leading dimension. Products keep the true sizes; pads are neither read nor written. A single output is a matrix-vector
product: gemm with one column costs twice as much.
"""

from cython cimport floating
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv


cdef inline void _gemm(
    char* transpose_a, char* transpose_b, int m, int n, int k,
    floating* a, int lda, floating* b, int ldb, floating* c, int ldc,
) noexcept nogil:
    """c = op(a) op(b), column-major."""
    cdef floating one = 1, zero = 0
    if floating is float:
        sgemm(transpose_a, transpose_b, &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &ldc)
    else:
        dgemm(transpose_a, transpose_b, &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &ldc)


cdef inline void _gemv(
    char* transpose, int m, int n, floating* a, int lda, floating* x, floating* y,
) noexcept nogil:
    """y = op(a) x, column-major, contiguous x and y."""
    cdef floating one = 1, zero = 0
    cdef int step = 1
    if floating is float:
        sgemv(transpose, &m, &n, &one, a, &lda, x, &step, &zero, y, &step)
    else:
        dgemv(transpose, &m, &n, &one, a, &lda, x, &step, &zero, y, &step)


cdef inline void multiply(
    floating* z,                # OUT (n_rows, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """z = x @ weight."""
    if out_stride == 1:
        _gemv(b"T", <int> n_in, <int> n_rows, <floating*> x, <int> in_stride, <floating*> weight, z)
    else:
        _gemm(
            b"N", b"N", <int> n_out, <int> n_rows, <int> n_in,
            <floating*> weight, <int> out_stride, <floating*> x, <int> in_stride, z, <int> out_stride,
        )


cdef inline void multiply_transposed_input(
    floating* dweight,          # OUT (n_in, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* dz,         # IN  (n_rows, n_out) by out_stride
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
) noexcept nogil:
    """dweight = x.T @ dz."""
    if out_stride == 1:
        _gemv(b"N", <int> n_in, <int> n_rows, <floating*> x, <int> in_stride, <floating*> dz, dweight)
    else:
        _gemm(
            b"N", b"T", <int> n_out, <int> n_in, <int> n_rows,
            <floating*> dz, <int> out_stride, <floating*> x, <int> in_stride, dweight, <int> out_stride,
        )


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
        # An outer product. The column of weights is padded like a row of dx, so pads come out zero.
        for i in range(n_rows):
            for j in range(in_stride):
                dx[i * in_stride + j] = dz[i] * weight[j]
    else:
        _gemm(
            b"T", b"N", <int> n_in, <int> n_rows, <int> n_out,
            <floating*> weight, <int> out_stride, <floating*> dz, <int> out_stride, dx, <int> in_stride,
        )
