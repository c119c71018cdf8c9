/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A line: as many floats or doubles as one vector register holds, and what Cython cannot say about it.
 *
 * gcc and clang compute with vector types by the ordinary operators, on any processor, so kernels written over lines
 * need neither intrinsics nor the vectorizer's good will (which turned loops over 16 columns into shuffles, and put an
 * overlap check in front of every row). Elsewhere a line is one number and the same kernels are plain loops.
 */
#ifndef SKBN_LINES_H
#define SKBN_LINES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__GNUC__)
#if defined(__AVX__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define SKBN_LINE_BYTES 64
#elif defined(__AVX__)
#define SKBN_LINE_BYTES 32
#else
#define SKBN_LINE_BYTES 16
#endif
#define SKBN_LINE(bytes) __attribute__((vector_size(bytes), may_alias))
typedef float float_line SKBN_LINE(SKBN_LINE_BYTES);
typedef double double_line SKBN_LINE(SKBN_LINE_BYTES);
typedef int32_t float_mask SKBN_LINE(SKBN_LINE_BYTES);
typedef int64_t double_mask SKBN_LINE(SKBN_LINE_BYTES);

/* In memory, lines lie on boundaries of their numbers. They have types of their own there: gcc keeps variables of such
 * types in memory, or copies them between registers in every turn of a loop. */
#define SKBN_LINE_IN_MEMORY(bytes, boundary) __attribute__((vector_size(bytes), aligned(boundary), may_alias))
typedef float float_line_in_memory SKBN_LINE_IN_MEMORY(SKBN_LINE_BYTES, 4);
typedef double double_line_in_memory SKBN_LINE_IN_MEMORY(SKBN_LINE_BYTES, 8);
typedef float float_half SKBN_LINE_IN_MEMORY(SKBN_LINE_BYTES / 2, 4);
static inline float_line skbn_at_float(const float_line *x, ptrdiff_t k) { return ((const float_line_in_memory *) x)[k]; }
static inline double_line skbn_at_double(const double_line *x, ptrdiff_t k) { return ((const double_line_in_memory *) x)[k]; }
static inline void skbn_put_float(float_line *y, ptrdiff_t k, float_line z) { ((float_line_in_memory *) y)[k] = z; }
static inline void skbn_put_double(double_line *y, ptrdiff_t k, double_line z) { ((double_line_in_memory *) y)[k] = z; }

/* 0 where z < 0, else z. NaN passes: x86's maximum returns its second operand where one is NaN. */
#if defined(__AVX512F__)
static inline float_line skbn_relu_float(float_line z) {
    return (float_line) _mm512_max_ps(_mm512_setzero_ps(), (__m512) z);
}
static inline double_line skbn_relu_double(double_line z) {
    return (double_line) _mm512_max_pd(_mm512_setzero_pd(), (__m512d) z);
}
#elif defined(__AVX__)
static inline float_line skbn_relu_float(float_line z) {
    return (float_line) _mm256_max_ps(_mm256_setzero_ps(), (__m256) z);
}
static inline double_line skbn_relu_double(double_line z) {
    return (double_line) _mm256_max_pd(_mm256_setzero_pd(), (__m256d) z);
}
#else
static inline float_line skbn_relu_float(float_line z) { return (float_line)(~(z < 0) & (float_mask) z); }
static inline double_line skbn_relu_double(double_line z) { return (double_line)(~(z < 0) & (double_mask) z); }
#endif
/* dy where y > 0, else 0. */
static inline float_line skbn_mask_float(float_line dy, float_line y) { return (float_line)((y > 0) & (float_mask) dy); }
static inline double_line skbn_mask_double(double_line dy, double_line y) { return (double_line)((y > 0) & (double_mask) dy); }
/* Minus 0 changes no number, so the compiler drops it; plus 0 would turn -0 into 0. */
static inline float_line skbn_splat_float(float value) { return value - (float_line){0}; }
static inline double_line skbn_splat_double(double value) { return value - (double_line){0}; }

/* a * b + c, in one rounding where the processor can. -ffp-contract=off leaves the choice to us, so that bits do not
 * depend on what a compiler chooses to fuse. */
#if defined(__AVX512F__)
static inline float_line skbn_fma_float(float_line a, float_line b, float_line c) {
    return (float_line) _mm512_fmadd_ps((__m512) a, (__m512) b, (__m512) c);
}
static inline double_line skbn_fma_double(double_line a, double_line b, double_line c) {
    return (double_line) _mm512_fmadd_pd((__m512d) a, (__m512d) b, (__m512d) c);
}
#elif defined(__FMA__)
static inline float_line skbn_fma_float(float_line a, float_line b, float_line c) {
    return (float_line) _mm256_fmadd_ps((__m256) a, (__m256) b, (__m256) c);
}
static inline double_line skbn_fma_double(double_line a, double_line b, double_line c) {
    return (double_line) _mm256_fmadd_pd((__m256d) a, (__m256d) b, (__m256d) c);
}
#else
static inline float_line skbn_fma_float(float_line a, float_line b, float_line c) { return a * b + c; }
static inline double_line skbn_fma_double(double_line a, double_line b, double_line c) { return a * b + c; }
#endif
/* Half a line of floats as a line of doubles. */
static inline double_line skbn_widen_float(const float *x) {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm256_loadu_ps(x)); /* gcc 12 makes two halves of the general form */
#else
    return __builtin_convertvector(*(const float_half *) x, double_line);
#endif
}
/* Store past the cache, on a boundary of a line: what will not be read soon need not be read first either. */
#if defined(__AVX512F__)
static inline void skbn_stream_float(float_line *y, float_line z) { _mm512_stream_ps((float *) y, (__m512) z); }
static inline void skbn_stream_double(double_line *y, double_line z) { _mm512_stream_pd((double *) y, (__m512d) z); }
#elif defined(__AVX__)
static inline void skbn_stream_float(float_line *y, float_line z) { _mm256_stream_ps((float *) y, (__m256) z); }
static inline void skbn_stream_double(double_line *y, double_line z) { _mm256_stream_pd((double *) y, (__m256d) z); }
#elif defined(__SSE2__)
static inline void skbn_stream_float(float_line *y, float_line z) { _mm_stream_ps((float *) y, (__m128) z); }
static inline void skbn_stream_double(double_line *y, double_line z) { _mm_stream_pd((double *) y, (__m128d) z); }
#else
static inline void skbn_stream_float(float_line *y, float_line z) { *y = z; }
static inline void skbn_stream_double(double_line *y, double_line z) { *y = z; }
#endif
#else
typedef float float_line;
typedef double double_line;
static inline float_line skbn_at_float(const float_line *x, ptrdiff_t k) { return x[k]; }
static inline double_line skbn_at_double(const double_line *x, ptrdiff_t k) { return x[k]; }
static inline void skbn_put_float(float_line *y, ptrdiff_t k, float_line z) { y[k] = z; }
static inline void skbn_put_double(double_line *y, ptrdiff_t k, double_line z) { y[k] = z; }
static inline void skbn_stream_float(float_line *y, float_line z) { *y = z; }
static inline void skbn_stream_double(double_line *y, double_line z) { *y = z; }
static inline float_line skbn_relu_float(float_line z) { return z < 0 ? 0 : z; }
static inline double_line skbn_relu_double(double_line z) { return z < 0 ? 0 : z; }
static inline float_line skbn_mask_float(float_line dy, float_line y) { return y > 0 ? dy : 0; }
static inline double_line skbn_mask_double(double_line dy, double_line y) { return y > 0 ? dy : 0; }
static inline float_line skbn_splat_float(float value) { return value; }
static inline double_line skbn_splat_double(double value) { return value; }
static inline float_line skbn_fma_float(float_line a, float_line b, float_line c) { return a * b + c; }
static inline double_line skbn_fma_double(double_line a, double_line b, double_line c) { return a * b + c; }
static inline double_line skbn_widen_float(const float *x) { return *x; }
#endif

static inline double_line skbn_widen_double(const double *x) { return skbn_at_double((const double_line *) x, 0); }

/* What was stored past the cache is there for other threads too. */
static inline void skbn_stream_end(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* Transpose a block of 4 by 4; strides count numbers. */
static inline void skbn_transpose_float(
    float *out, ptrdiff_t out_stride, const float *x, ptrdiff_t stride
) {
#if defined(__SSE2__)
    __m128 row0 = _mm_loadu_ps(x), row1 = _mm_loadu_ps(x + stride);
    __m128 row2 = _mm_loadu_ps(x + 2 * stride), row3 = _mm_loadu_ps(x + 3 * stride);
    _MM_TRANSPOSE4_PS(row0, row1, row2, row3);
    _mm_storeu_ps(out, row0);
    _mm_storeu_ps(out + out_stride, row1);
    _mm_storeu_ps(out + 2 * out_stride, row2);
    _mm_storeu_ps(out + 3 * out_stride, row3);
#else
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) out[j * out_stride + i] = x[i * stride + j];
#endif
}
static inline void skbn_transpose_double(
    double *out, ptrdiff_t out_stride, const double *x, ptrdiff_t stride
) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) out[j * out_stride + i] = x[i * stride + j];
}

/* Sum of the lanes, by halves. */
static inline float skbn_sum_float(float_line line) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512) line);
#else
    float x[8] = {0};
    memcpy(x, &line, sizeof line);
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
#endif
}
static inline double skbn_sum_double(double_line line) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_pd((__m512d) line);
#else
    double x[4] = {0};
    memcpy(x, &line, sizeof line);
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

#endif
