# SPDX-License-Identifier: BSD-3-Clause
"""Lines: vector registers as a fused type, so that a kernel is written once for both dtypes and every processor.

Cython is told that a line is a number, which it is to its operators. What needs a function has one here. Rows of the
network's buffers are whole lines (skbn.backends.memory), so there are no remainders.
"""

from cython cimport floating

cdef extern from "cpu/lines.h" nogil:
    ctypedef float float_line
    ctypedef double double_line
    float_line at_float "skbn_at_float"(const float_line* x, Py_ssize_t k) noexcept
    double_line at_double "skbn_at_double"(const double_line* x, Py_ssize_t k) noexcept
    void put_float "skbn_put_float"(float_line* y, Py_ssize_t k, float_line z) noexcept
    void put_double "skbn_put_double"(double_line* y, Py_ssize_t k, double_line z) noexcept
    float_line relu_float "skbn_relu_float"(float_line z) noexcept
    double_line relu_double "skbn_relu_double"(double_line z) noexcept
    float_line mask_float "skbn_mask_float"(float_line dy, float_line y) noexcept
    double_line mask_double "skbn_mask_double"(double_line dy, double_line y) noexcept
    float_line fma_float "skbn_fma_float"(float_line a, float_line b, float_line c) noexcept
    double_line fma_double "skbn_fma_double"(double_line a, double_line b, double_line c) noexcept
    float_line splat_float "skbn_splat_float"(float value) noexcept
    double_line splat_double "skbn_splat_double"(double value) noexcept
    double_line widen_float "skbn_widen_float"(const float* x) noexcept
    double_line widen_double "skbn_widen_double"(const double* x) noexcept
    void stream_float "skbn_stream_float"(float_line* y, float_line z) noexcept
    void stream_double "skbn_stream_double"(double_line* y, double_line z) noexcept
    void stream_end "skbn_stream_end"() noexcept
    void transpose_float "skbn_transpose_float"(
        float* out, Py_ssize_t out_stride, const float* x, Py_ssize_t stride
    ) noexcept
    void transpose_double "skbn_transpose_double"(
        double* out, Py_ssize_t out_stride, const double* x, Py_ssize_t stride
    ) noexcept
    float sum_float "skbn_sum_float"(float_line x) noexcept
    double sum_double "skbn_sum_double"(double_line x) noexcept

ctypedef fused line:
    float_line
    double_line


cdef inline line at(const line* x, Py_ssize_t k) noexcept nogil:
    """The k-th line in memory, which may lie anywhere that numbers lie."""
    if line is float_line:
        return at_float(x, k)
    else:
        return at_double(x, k)


cdef inline void put(line* y, Py_ssize_t k, line z) noexcept nogil:
    """Store the k-th line."""
    if line is float_line:
        put_float(y, k, z)
    else:
        put_double(y, k, z)


cdef inline line relu_line(line z) noexcept nogil:
    """max(z, 0), but NaN stays NaN."""
    if line is float_line:
        return relu_float(z)
    else:
        return relu_double(z)


cdef inline line mask_line(line dy, line y) noexcept nogil:
    """dy where y > 0, else 0: the backward of ReLU."""
    if line is float_line:
        return mask_float(dy, y)
    else:
        return mask_double(dy, y)


cdef inline line fma_line(line a, line b, line c) noexcept nogil:
    """a * b + c, in one rounding where the processor can."""
    if line is float_line:
        return fma_float(a, b, c)
    else:
        return fma_double(a, b, c)


cdef inline double sum_line(line z) noexcept nogil:
    """Sum of the numbers in a line, by halves."""
    if line is float_line:
        return sum_float(z)
    else:
        return sum_double(z)


cdef inline line* below(const line* row, Py_ssize_t n_bytes) noexcept nogil:
    """The row so many bytes further on, which may be no whole number of lines."""
    return <line*> (<char*> row + n_bytes)


cdef inline void stream_line(line* y, line z) noexcept nogil:
    """Store past the cache, on a 64-byte boundary."""
    if line is float_line:
        stream_float(y, z)
    else:
        stream_double(y, z)


cdef inline line splat_item(const line* row, Py_ssize_t k) noexcept nogil:
    """A line filled with the k-th number of a row."""
    if line is float_line:
        return splat_float((<const float*> row)[k])
    else:
        return splat_double((<const double*> row)[k])


cdef inline line splat_number(const line* kind, double value) noexcept nogil:
    """A line of this kind filled with a number."""
    if line is float_line:
        return splat_float(<float> value)
    else:
        return splat_double(value)


cdef inline double_line widen(const floating* x) noexcept nogil:
    """The next numbers, as many as a line has doubles."""
    if floating is float:
        return widen_float(x)
    else:
        return widen_double(x)


cdef inline Py_ssize_t count_lines(const line* row, Py_ssize_t stride) noexcept nogil:
    """Lines in a row of this many numbers."""
    if line is float_line:
        return stride * sizeof(float) // sizeof(float_line)
    else:
        return stride * sizeof(double) // sizeof(double_line)
