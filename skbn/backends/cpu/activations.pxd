# SPDX-License-Identifier: BSD-3-Clause
"""Activations on a block of padded rows, in place.

Forward turns z into y; backward turns dy into dz with the saved y, from which every derivative here follows. Both
leave pads zero. One switch per block and one plain loop per activation: a switch inside of the loop would keep it from
vectorizing, and function pointers would keep it from being inlined.
"""

from cython cimport floating

from skbn.backends.cpu.elementary cimport hyperbolic_tangent, logistic
from skbn.backends.records cimport SKBN_LOGISTIC, SKBN_RELU, SKBN_TANH


cdef inline floating relu(floating z) noexcept nogil:
    # In this order NaN passes; `z if z > 0 else 0` would turn it into 0 and hide a diverged network.
    return 0 if z < 0 else z


cdef inline void zero_pads(
    floating* block, Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t i, j
    for i in range(n_rows):
        for j in range(width, stride):
            block[i * stride + j] = 0


cdef inline void activation_forward(
    floating* y,                # IN/OUT (n_rows, width) by stride: z, then activation(z)
    int kind, Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t k
    if kind == SKBN_RELU:
        for k in range(n_rows * stride):
            y[k] = relu(y[k])
    elif kind == SKBN_TANH:
        for k in range(n_rows * stride):
            y[k] = hyperbolic_tangent(y[k])
    elif kind == SKBN_LOGISTIC:
        for k in range(n_rows * stride):
            y[k] = logistic(y[k])
        zero_pads(y, n_rows, width, stride)  # logistic(0) is not 0


cdef inline void activation_backward(
    floating* dy,               # IN/OUT (n_rows, width) by stride: dy, then dz
    const floating* y,          # IN
    int kind, Py_ssize_t n_rows, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t k
    cdef floating gradient
    if kind == SKBN_RELU:
        for k in range(n_rows * stride):
            gradient = dy[k]  # loaded in any case: a conditional load does not vectorize
            dy[k] = gradient if y[k] > 0 else 0
    elif kind == SKBN_TANH:
        for k in range(n_rows * stride):
            dy[k] = dy[k] * (1 - y[k] * y[k])
    elif kind == SKBN_LOGISTIC:
        for k in range(n_rows * stride):
            dy[k] = dy[k] * y[k] * (1 - y[k])
