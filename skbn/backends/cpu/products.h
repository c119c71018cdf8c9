/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The innermost loop of matrix products: a few rows by one or two lines, whose sums stay in registers.
 *
 * In C because the compiler must know how many sums there are: then an array of them is registers. Six rows by two
 * lines are twelve sums, enough to keep two multiply-adders of latency 4 busy, in fewer than sixteen registers.
 */
#ifndef SKBN_PRODUCTS_H
#define SKBN_PRODUCTS_H

#include "lines.h"

/* A second factor up to SKBN_SMALL_FACTOR bytes is read as it lies: so far loops over it beat BLAS without packing, with
 * 32 and 256 rows, 50 to 512 columns. */
#if defined(__GNUC__) && defined(__AVX512F__)
enum { SKBN_HAS_PRODUCTS = 1, SKBN_SMALL_FACTOR = 256 * 1024, SKBN_PANEL = 64 };
#elif defined(__GNUC__) && defined(__FMA__)
enum { SKBN_HAS_PRODUCTS = 1, SKBN_SMALL_FACTOR = 32 * 1024, SKBN_PANEL = 64 };
#else
enum { SKBN_HAS_PRODUCTS = 0, SKBN_SMALL_FACTOR = 0, SKBN_PANEL = 256 };
#endif

#if defined(__GNUC__)
#define SKBN_INLINE static inline __attribute__((always_inline))
#else
#define SKBN_INLINE static inline
#endif

#define SKBN_ARGUMENTS out, in, y + j, b, n_rows - i, n_inner, z_stride, row_step, step, y_stride, add, rectify

/* z[i] = x[i] @ y (added to what is there, if asked) + bias, then ReLU if asked. (i, k) of x is number
 * i * row_step + k * step. Sums of rows beyond n_rows are the last row's once more, and are not stored. */
#define SKBN_DEFINE_PRODUCTS(real)                                                                                     \
    SKBN_INLINE void skbn_block_##real(                                                                                \
        const int n_sums, const int n_lines,                                                                           \
        real *z, const real *x, const real *y, const real *bias, ptrdiff_t n_rows, ptrdiff_t n_inner,                  \
        ptrdiff_t z_stride, ptrdiff_t row_step, ptrdiff_t step, ptrdiff_t y_stride, int add, int rectify               \
    ) {                                                                                                                \
        real##_line sums[6][2];                                                                                        \
        const real *row[6];                                                                                            \
        for (int i = 0; i < n_sums; i++) {                                                                             \
            row[i] = x + (i < n_rows ? i : n_rows - 1) * row_step;                                                     \
            for (int j = 0; j < n_lines; j++) sums[i][j] = skbn_splat_##real(0);                                       \
        }                                                                                                              \
        ptrdiff_t k = 0;                                                                                               \
        do {                                                                                                           \
            real##_line there[2];                                                                                      \
            for (int j = 0; j < n_lines; j++) there[j] = skbn_at_##real((const real##_line *) (y + k * y_stride), j);  \
            for (int i = 0; i < n_sums; i++) {                                                                         \
                const real##_line factor = skbn_splat_##real(row[i][k * step]);                                        \
                for (int j = 0; j < n_lines; j++) sums[i][j] = skbn_fma_##real(factor, there[j], sums[i][j]);          \
            }                                                                                                          \
        } while (++k < n_inner);                                                                                       \
        for (int i = 0; i < n_sums && i < n_rows; i++) {                                                               \
            for (int j = 0; j < n_lines; j++) {                                                                        \
                real##_line *out = (real##_line *) (z + i * z_stride), sum = sums[i][j];                               \
                if (add) sum = skbn_at_##real(out, j) + sum;                                                           \
                if (bias != NULL) sum = sum + skbn_at_##real((const real##_line *) bias, j);                           \
                if (rectify) sum = skbn_relu_##real(sum);                                                              \
                skbn_put_##real(out, j, sum);                                                                          \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    /* (n_rows, columns), whole lines: sixes of rows, and fours at the end where that leaves fewer rows to repeat. */  \
    static void skbn_products_##real(                                                                                  \
        real *z, const real *x, const real *y, const real *bias, ptrdiff_t n_rows, ptrdiff_t columns,                  \
        ptrdiff_t n_inner, ptrdiff_t z_stride, ptrdiff_t row_step, ptrdiff_t step, ptrdiff_t y_stride,                 \
        int add, int rectify                                                                                           \
    ) {                                                                                                                \
        const ptrdiff_t size = sizeof(real##_line) / sizeof(real);                                                     \
        const ptrdiff_t left = n_rows % 6;                                                                             \
        const ptrdiff_t sixes = left == 0 || left == 5 ? n_rows : n_rows - left - (left < 3 ? 6 : 0);                  \
        for (ptrdiff_t j = 0; j < columns; j += 2 * size) {                                                            \
            const real *b = bias == NULL ? NULL : bias + j;                                                            \
            const int is_pair = j + size < columns;                                                                    \
            for (ptrdiff_t i = 0; i < n_rows; i += i < sixes ? 6 : 4) {                                                \
                real *out = z + i * z_stride + j;                                                                      \
                const real *in = x + i * row_step;                                                                     \
                if (i < sixes) {                                                                                       \
                    if (is_pair) skbn_block_##real(6, 2, SKBN_ARGUMENTS); else skbn_block_##real(6, 1, SKBN_ARGUMENTS);\
                } else {                                                                                               \
                    if (is_pair) skbn_block_##real(4, 2, SKBN_ARGUMENTS); else skbn_block_##real(4, 1, SKBN_ARGUMENTS);\
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

SKBN_DEFINE_PRODUCTS(float)
SKBN_DEFINE_PRODUCTS(double)

#endif
