# SPDX-License-Identifier: BSD-3-Clause
"""exp, log and what follows from them without branches, so that the compiler vectorizes the loops around them.

The compiler's own vector functions need -ffast-math, and libm's scalar ones cost ten times as much as these. exp and
tanh are within 2 ulp of the exact value, logistic and log(1 + exp) within 2.5, the normal distribution's tail within 4
(tests/backends/test_elementary.py measures them against mpmath); NaN stays NaN. In C a literal is double and makes all
around it double, at half the speed for float32: numbers have names or casts here.

Polynomials and rational functions: S. L. Moshier, Cephes mathematical library, exp.c, expf.c, tanh.c, tanhf.c, unity.c,
logf.c. Its ndtr.c was rejected for the normal distribution: three formulas to compute and choose from instead of one,
and its argument, x / sqrt(2), is rounded, which costs x**2 ulp in the tail.
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


# exp(x) = 2**k exp(r) with x = k ln 2 + r and |r| at most ln(2) / 2.


cdef inline floating in_range(floating x) noexcept nogil:
    """x, bounded to where exp(x) is a normal number."""
    if floating is float:
        x = -87.0 if x < -87.0 else x
        x = 88.0 if x > 88.0 else x
    else:
        x = -708.0 if x < -708.0 else x
        x = 709.0 if x > 709.0 else x
    return x


cdef inline floating nearest_power(floating x) noexcept nogil:
    """The integer k nearest to x / ln 2: adding a large number pushes the fraction out."""
    if floating is float:
        return (x * <float> 1.44269504088896341 + <float> 12582912.0) - <float> 12582912.0
    else:
        return (x * 1.4426950408889634073599 + 6755399441055744.0) - 6755399441055744.0


cdef inline floating subtract_ln2(floating x, floating k) noexcept nogil:
    """x - k ln 2, with ln 2 split in two so that the first product is exact."""
    if floating is float:
        return (x - k * <float> 0.693359375) - k * <float> -2.12194440e-4
    else:
        return (x - k * 6.93145751953125e-1) - k * 1.42860682030941723212e-6


cdef inline floating power_of_2(floating k) noexcept nogil:
    """2**k for integral k."""
    if floating is float:
        return exp2_integral_float(k)
    else:
        return exp2_integral_double(k)


cdef inline floating expm1_near_0(floating r, bint close) noexcept nogil:
    """exp(r) - 1 for |r| up to ln(2) / 2; where 1 is added to it, it need not be close to the last digit."""
    cdef floating z, p, a, b
    if floating is float:
        p = <float> 1.9875691500e-4
        p = p * r + <float> 1.3981999507e-3
        p = p * r + <float> 8.3334519073e-3
        p = p * r + <float> 4.1665795894e-2
        p = p * r + <float> 1.6666665459e-1
        p = p * r + <float> 5.0000001201e-1
        return p * (r * r) + r
    else:
        z = r * r
        a = (1.26177193074810590878e-4 * z + 3.02994407707441961300e-2) * z
        b = ((3.00198505138664455042e-6 * z + 2.52448340349684104192e-3) * z + 2.27265548208155028766e-1) * z
        p = r * (a + 1.0)
        if close:  # the quotient is half of r**2, and so is its error
            return r + r * ((p + (a + a - b)) / ((b + 2.0) - p))
        return 2.0 * (p / ((b + 2.0) - p))


cdef inline floating exponential(floating x) noexcept nogil:
    """exp(x) for x <= 0 or moderate x: below the normal range 0, above it the largest power reached."""
    cdef floating k, one = 1
    x = in_range(x)
    k = nearest_power(x)
    return (expm1_near_0(subtract_ln2(x, k), False) + one) * power_of_2(k)


cdef inline floating exponential_minus_1(floating x) noexcept nogil:
    """exp(x) - 1 = 2**k (exp(r) - 1) + (2**k - 1), which cancels nothing near 0, where k is 0."""
    cdef floating k, power, one = 1
    x = in_range(x)
    k = nearest_power(x)
    power = power_of_2(k)
    return power * expm1_near_0(subtract_ln2(x, k), True) + (power - one)


cdef inline floating log_1_plus(floating e) noexcept nogil:
    """log(1 + e) for e from 0 to 1; from sqrt(2) - 1 on it is ln 2 + log(1 + (e - 1) / 2)."""
    cdef floating one = 1, half = 0.5, border = 0.41421356237309504880
    cdef floating k = -one if e > border else <floating> 0
    cdef floating x = half * (e - one) if e > border else e
    cdef floating z = x * x
    cdef floating p, q
    if floating is float:
        p = <float> 7.0376836292e-2
        p = p * x + <float> -1.1514610310e-1
        p = p * x + <float> 1.1676998740e-1
        p = p * x + <float> -1.2420140846e-1
        p = p * x + <float> 1.4249322787e-1
        p = p * x + <float> -1.6668057665e-1
        p = p * x + <float> 2.0000714765e-1
        p = p * x + <float> -2.4999993993e-1
        p = p * x + <float> 3.3333331174e-1
    else:
        p = 4.5270000862445199635215e-5
        p = p * x + 4.9854102823193375972212e-1
        p = p * x + 6.5787325942061044846969e0
        p = p * x + 2.9911919328553073277375e1
        p = p * x + 6.0949667980987787057556e1
        p = p * x + 5.7112963590585538103336e1
        p = p * x + 2.0039553499201281259648e1
        q = x + 1.5062909083469192043167e1
        q = q * x + 8.3047565967967209469434e1
        q = q * x + 2.2176239823732856465394e2
        q = q * x + 3.0909872225312059774938e2
        q = q * x + 2.1642788614495947685003e2
        q = q * x + 6.0118660497603843919306e1
        p = p / q
    return subtract_ln2(x + (x * z * p - half * z), k)


cdef inline floating logistic(floating x) noexcept nogil:
    """1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow."""
    cdef floating one = 1
    cdef floating e = exponential(-magnitude(x))
    cdef floating small = e / (one + e)
    cdef floating large = one / (one + e)
    return small if x < 0 else large


cdef inline floating hyperbolic_tangent(floating x) noexcept nogil:
    """tanh(x): a rational function near 0, else from exp(2 |x|)."""
    cdef floating z, near, far, e, one = 1
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
    e = exponential(-magnitude(x + x))
    far = (one - e) / (one + e)
    far = -far if x < 0 else far
    return near if magnitude(x) < <floating> 0.625 else far


# The normal distribution's tail: Phi(-x) = exp(-x**2 / 2) R(x), x >= 0, in relative accuracy as far as it reaches.


cdef inline floating tail_magnitude(floating z) noexcept nogil:
    """|z|, bounded to where exp(-z**2 / 2) is a normal number."""
    cdef floating x = magnitude(z)
    cdef floating bound = 13.2 if floating is float else 37.6
    return bound if x > bound else x


cdef inline floating gaussian(floating x) noexcept nogil:
    """exp(-x**2 / 2) for x of tail_magnitude.

    x = high + low with few enough digits in high that its square is exact: an error of x**2 is one of the exponent.
    """
    cdef floating one = 1, half = 0.5
    cdef floating shift = 49152.0 if floating is float else 6442450944.0  # digits down to 2**-8, 2**-20
    cdef floating high = (x + shift) - shift
    cdef floating low = half * (x - high) * (x + high)
    cdef floating square = half * high * high
    cdef floating k = nearest_power(-square - low)
    return (expm1_near_0(subtract_ln2(-square, k) - low, False) + one) * power_of_2(k)


cdef inline floating scaled_tail(floating q) noexcept nogil:
    """(x + 4) R(x) as a polynomial in q = (x - 4) / (x + 4), relative error below 2**-28 and 2**-57.

    Chebyshev interpolation up to x = 14 and 39: mpmath.chebyfit with 11 and 24 terms, 60 digits.
    """
    cdef floating p
    if floating is float:
        p = <float> -5.37639455e-5
        p = p * q + <float> -2.37585484e-4
        p = p * q + <float> 1.67433393e-4
        p = p * q + <float> 1.64726415e-3
        p = p * q + <float> -3.48678173e-3
        p = p * q + <float> -7.54520904e-3
        p = p * q + <float> 6.03970600e-2
        p = p * q + <float> -1.86521340e-1
        p = p * q + <float> 3.87137395e-1
        p = p * q + <float> -6.07896656e-1
        p = p * q + <float> 7.55285130e-1
    else:
        p = -7.26241981040957930e-10
        p = p * q + -2.52209945787807354e-9
        p = p * q + 1.91827702037334026e-9
        p = p * q + 1.96196108613555597e-8
        p = p * q + 1.32807977873103278e-8
        p = p * q + -8.54084181568512498e-8
        p = p * q + -1.54964917422474505e-7
        p = p * q + 2.71804529625928358e-7
        p = p * q + 1.02155403719610153e-6
        p = p * q + -6.29696560581582333e-7
        p = p * q + -5.92017332301610292e-6
        p = p * q + 7.16666324522103119e-7
        p = p * q + 3.51446860530034630e-5
        p = p * q + -1.90825847977343311e-6
        p = p * q + -2.31094935169459014e-4
        p = p * q + 1.33344312409645737e-4
        p = p * q + 1.63081845758870119e-3
        p = p * q + -3.47969236739359515e-3
        p = p * q + -7.54018896672679157e-3
        p = p * q + 6.03965748909365607e-2
        p = p * q + -1.86521857959657247e-1
        p = p * q + 3.87137400742214541e-1
        p = p * q + -6.07896641971892108e-1
        p = p * q + 7.55285130415751493e-1
    return p
