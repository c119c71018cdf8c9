# SPDX-License-Identifier: BSD-3-Clause
"""exp, logistic and tanh without branches, so that the compiler vectorizes the loops around them.

The compiler's own vector functions need -ffast-math, and libm's scalar ones cost ten times as much as these. All are
within 2 ulp of the exact value (tests/backends/test_elementary.py measures it against mpmath); NaN stays NaN.
Polynomials and rational functions: S. L. Moshier, Cephes mathematical library, exp.c, expf.c, tanh.c, tanhf.c.
"""

from cython cimport floating
from libc.math cimport fabs, fabsf, sqrt, sqrtf

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* 2**k for integral k in the exponent's range; |k| is at most 1023 (127). */
    static inline double skbn_exp2_double(double k) {
        /* Adding 1.5 * 2**52 leaves k in the low bits: an integer conversion that vectorizes everywhere. */
        double shifted = k + 6755399441055744.0, result;
        uint64_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        bits = (bits + 1023) << 52;
        memcpy(&result, &bits, sizeof result);
        return result;
    }
    static inline float skbn_exp2_float(float k) {
        float shifted = k + 12582912.0f, result;
        uint32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        bits = (bits + 127) << 23;
        memcpy(&result, &bits, sizeof result);
        return result;
    }
    """
    double exp2_integral_double "skbn_exp2_double"(double k) noexcept nogil
    float exp2_integral_float "skbn_exp2_float"(float k) noexcept nogil


cdef inline floating magnitude(floating x) noexcept nogil:
    """|x|. A conditional expression over the two would be double for both."""
    if floating is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline floating root(floating x) noexcept nogil:
    """sqrt(x)."""
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline floating exponential(floating x) noexcept nogil:
    """exp(x) for x <= 0 or moderate x: below the normal range 0, above it the largest power reached.

    x = k ln 2 + r, exp(x) = 2**k exp(r); ln 2 is split in two so that k ln 2 is exact.
    """
    cdef floating k, r, z, p, q
    if floating is float:
        x = -87.0 if x < -87.0 else x
        x = 88.0 if x > 88.0 else x
        k = (x * <float> 1.44269504088896341 + <float> 12582912.0) - <float> 12582912.0  # to the nearest integer
        r = (x - k * <float> 0.693359375) - k * <float> -2.12194440e-4
        p = <float> 1.9875691500e-4
        p = p * r + <float> 1.3981999507e-3
        p = p * r + <float> 8.3334519073e-3
        p = p * r + <float> 4.1665795894e-2
        p = p * r + <float> 1.6666665459e-1
        p = p * r + <float> 5.0000001201e-1
        p = p * (r * r) + r + <float> 1.0
        return p * exp2_integral_float(k)
    else:
        x = -708.0 if x < -708.0 else x
        x = 709.0 if x > 709.0 else x
        k = (x * 1.4426950408889634073599 + 6755399441055744.0) - 6755399441055744.0
        r = (x - k * 6.93145751953125e-1) - k * 1.42860682030941723212e-6
        z = r * r
        p = r * ((1.26177193074810590878e-4 * z + 3.02994407707441961300e-2) * z + 9.99999999999999999910e-1)
        q = ((3.00198505138664455042e-6 * z + 2.52448340349684104192e-3) * z + 2.27265548208155028766e-1) * z + 2.0
        return (1.0 + 2.0 * (p / (q - p))) * exp2_integral_double(k)


cdef inline floating logistic(floating x) noexcept nogil:
    """1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow."""
    cdef floating e = exponential(-magnitude(x))
    cdef floating small = e / (1 + e)
    cdef floating large = 1 / (1 + e)
    return small if x < 0 else large


cdef inline floating hyperbolic_tangent(floating x) noexcept nogil:
    """tanh(x): a rational function near 0, else from exp(2 |x|)."""
    cdef floating z, near, far, e
    z = x * x
    if floating is float:
        near = <float> -5.70498872745e-3
        near = near * z + <float> 2.06390887954e-2
        near = near * z + <float> -5.37397155531e-2
        near = near * z + <float> 1.33314422036e-1
        near = near * z + <float> -3.33332819422e-1
        near = near * z * x + x
    else:
        near = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
        near = near / (((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3)
        near = near * z * x + x
    e = exponential(-2 * magnitude(x))
    far = (1 - e) / (1 + e)
    far = -far if x < 0 else far
    return near if magnitude(x) < <floating> 0.625 else far
