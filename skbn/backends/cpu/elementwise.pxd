# SPDX-License-Identifier: BSD-3-Clause
"""Elementwise layers: y = f(x), one function for every unit, with x kept for backward.

The activations that are not fused into dense layers and batch norms (activations.pxd), which overwrite z and have only
y to go back from. Two z share one y of GELU and SiLU, so these need z; the others could do without it, but a slope
taken from y loses the digits that y lost (ELU: y + 1 with y near -1) and two ways are one too many. The price is a
block of activations more. Fusing these as well, with z saved beside y, was rejected: every layer kind would carry it.

leaky_relu: Maas et al. (2013). elu: Clevert et al. (2016), alpha = 1. selu: Klambauer et al. (2017). gelu: Hendrycks
& Gimpel (2016), the exact form. silu: Elfwing et al. (2018). softplus: Dugas et al. (2001). Outputs are within 2.5 ulp
of the exact value, gelu within 4, down to where exp leaves the normal range.
"""

from cython cimport floating

from skbn.backends.cpu.activations cimport relu, zero_pads
from skbn.backends.cpu.elementary cimport (
    exponential,
    exponential_minus_1,
    gaussian,
    in_range,
    log_1_plus,
    logistic,
    magnitude,
    scaled_tail,
    tail_magnitude,
)
from skbn.backends.records cimport (
    SKBN_ELU,
    SKBN_GELU,
    SKBN_LEAKY_RELU,
    SKBN_LEAKY_SLOPE,
    SKBN_SELU,
    SKBN_SELU_SCALE,
    SKBN_SELU_SCALE_ALPHA,
    SKBN_SILU,
    SKBN_SOFTPLUS,
)


cdef inline floating leaky_relu(floating z) noexcept nogil:
    return z if z > 0 else z * <floating> SKBN_LEAKY_SLOPE


cdef inline floating leaky_relu_slope(floating z) noexcept nogil:
    return <floating> 1 if z > 0 else <floating> SKBN_LEAKY_SLOPE


cdef inline floating elu(floating z) noexcept nogil:
    return z if z > 0 else exponential_minus_1(z)


cdef inline floating elu_slope(floating z) noexcept nogil:
    return exponential(<floating> 0 if z > 0 else z)


cdef inline floating selu(floating z) noexcept nogil:
    cdef floating low = exponential_minus_1(z) * <floating> SKBN_SELU_SCALE_ALPHA
    cdef floating high = z * <floating> SKBN_SELU_SCALE
    return high if z > 0 else low


cdef inline floating selu_slope(floating z) noexcept nogil:
    cdef floating low = exponential(z) * <floating> SKBN_SELU_SCALE_ALPHA
    return <floating> SKBN_SELU_SCALE if z > 0 else low


cdef inline floating gelu(floating z) noexcept nogil:
    """z Phi(z) = max(z, 0) - x Phi(-x) with x = |z|."""
    cdef floating x = tail_magnitude(z), one = 1, four = 4
    cdef floating share = x / (x + four)
    return relu(z) - gaussian(x) * (share * scaled_tail(share + share - one))


cdef inline floating gelu_slope(floating z) noexcept nogil:
    """Phi(z) + z phi(z); at -z it is 1 minus that."""
    cdef floating x = tail_magnitude(z), one = 1, four = 4
    cdef floating share = x / (x + four)
    cdef floating density = x * <floating> 0.39894228040143267794  # 1 / sqrt(2 pi)
    cdef floating low = gaussian(x) * (scaled_tail(share + share - one) / (x + four) - density)
    cdef floating high = one - low
    return low if z < 0 else high


cdef inline floating silu(floating z) noexcept nogil:
    """z / (1 + exp(-z)); far below 0 as small as numbers get, -inf included."""
    cdef floating bounded = in_range(z), one = 1
    cdef floating numerator = z if z > 0 else bounded
    return numerator / (one + exponential(-bounded))


cdef inline floating silu_slope(floating z) noexcept nogil:
    """s (1 + z (1 - s)), where 1 - s is the logistic of -z and keeps its digits."""
    cdef floating one = 1
    return logistic(z) * (one + in_range(z) * logistic(-z))


cdef inline floating softplus(floating z) noexcept nogil:
    """log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|))."""
    return relu(z) + log_1_plus(exponential(-magnitude(z)))


cdef inline void elementwise_forward(
    floating* y,                # OUT (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride
    Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride, int kind,
) noexcept nogil:
    cdef Py_ssize_t k
    if kind == SKBN_LEAKY_RELU:
        for k in range(n_rows * stride):
            y[k] = leaky_relu(x[k])
    elif kind == SKBN_ELU:
        for k in range(n_rows * stride):
            y[k] = elu(x[k])
    elif kind == SKBN_SELU:
        for k in range(n_rows * stride):
            y[k] = selu(x[k])
    elif kind == SKBN_GELU:
        for k in range(n_rows * stride):
            y[k] = gelu(x[k])
    elif kind == SKBN_SILU:
        for k in range(n_rows * stride):
            y[k] = silu(x[k])
    elif kind == SKBN_SOFTPLUS:
        for k in range(n_rows * stride):
            y[k] = softplus(x[k])
        zero_pads(y, n_rows, width, stride, stride)  # softplus(0) is not 0


cdef inline void elementwise_backward(
    floating* dx,               # OUT (n_rows, width) by stride
    const floating* dy,         # IN  (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride
    Py_ssize_t n_rows, Py_ssize_t stride, int kind,
) noexcept nogil:
    cdef Py_ssize_t k
    if kind == SKBN_LEAKY_RELU:
        for k in range(n_rows * stride):
            dx[k] = dy[k] * leaky_relu_slope(x[k])
    elif kind == SKBN_ELU:
        for k in range(n_rows * stride):
            dx[k] = dy[k] * elu_slope(x[k])
    elif kind == SKBN_SELU:
        for k in range(n_rows * stride):
            dx[k] = dy[k] * selu_slope(x[k])
    elif kind == SKBN_GELU:
        for k in range(n_rows * stride):
            dx[k] = dy[k] * gelu_slope(x[k])
    elif kind == SKBN_SILU:
        for k in range(n_rows * stride):
            dx[k] = dy[k] * silu_slope(x[k])
    elif kind == SKBN_SOFTPLUS:
        for k in range(n_rows * stride):
            dx[k] = dy[k] * logistic(x[k])
