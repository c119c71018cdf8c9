# SPDX-License-Identifier: BSD-3-Clause
"""Matrix products by BLAS, the one that SciPy carries: the only file that knows it.

BLAS is column-major: a row-major (n_rows, n_columns) block with a row stride is, to it, the transposed block with that
leading dimension.
"""

from cython cimport floating
from scipy.linalg.cython_blas cimport dgemm, sgemm


cdef inline void gemm(
    char* transpose_a, char* transpose_b, Py_ssize_t n_rows, Py_ssize_t n_columns, Py_ssize_t n_inner,
    const floating* a, Py_ssize_t stride_a, const floating* b, Py_ssize_t stride_b,
    floating* c, Py_ssize_t stride_c,
) noexcept nogil:
    """c = op(a) op(b), column-major."""
    cdef int m = <int> n_rows, n = <int> n_columns, k = <int> n_inner
    cdef int lda = <int> stride_a, ldb = <int> stride_b, ldc = <int> stride_c
    cdef floating one = 1, zero = 0
    if floating is float:
        sgemm(
            transpose_a, transpose_b, &m, &n, &k, &one,
            <float*> a, &lda, <float*> b, &ldb, &zero, c, &ldc,
        )
    else:
        dgemm(
            transpose_a, transpose_b, &m, &n, &k, &one,
            <double*> a, &lda, <double*> b, &ldb, &zero, c, &ldc,
        )
