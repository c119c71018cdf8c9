# SPDX-License-Identifier: BSD-3-Clause
"""Activations on some columns of a block of padded rows, in place.

Forward turns z into y; backward turns dy into dz with the saved y, from which every derivative here follows. Both
leave pads zero. One switch and one plain loop per activation: a switch inside of the loop would keep it from
vectorizing, and function pointers would keep it from being inlined.
"""

from cython cimport floating

from skbn.backends.cpu.elementary cimport hyperbolic_tangent, logistic
from skbn.backends.records cimport SKBN_IDENTITY, SKBN_LOGISTIC, SKBN_RELU, SKBN_TANH


cdef inline floating relu(floating z) noexcept nogil:
    # In this order NaN passes; `z if z > 0 else 0` would turn it into 0 and hide a diverged network.
    return 0 if z < 0 else z


cdef inline void zero_pads(
    floating* block, Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t columns, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t i, j
    for i in range(n_rows):
        for j in range(width, columns):
            block[i * stride + j] = 0


cdef inline void activation_forward(
    floating* y,                # IN/OUT (n_rows, columns) by stride: z, then activation(z)
    int kind, Py_ssize_t n_rows,
    Py_ssize_t width,           # columns beyond are pads
    Py_ssize_t columns, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t i, k, n_runs = n_rows, run = columns
    cdef floating* z
    if columns == stride:  # whole rows are one run
        n_runs = 1
        run = n_rows * stride
    for i in range(n_runs):
        z = y + i * stride
        if kind == SKBN_RELU:
            for k in range(run):
                z[k] = relu(z[k])
        elif kind == SKBN_TANH:
            for k in range(run):
                z[k] = hyperbolic_tangent(z[k])
        elif kind == SKBN_LOGISTIC:
            for k in range(run):
                z[k] = logistic(z[k])
    if kind == SKBN_LOGISTIC:
        zero_pads(y, n_rows, width, columns, stride)  # logistic(0) is not 0


cdef inline void activation_backward(
    floating* dy,               # IN/OUT (n_rows, columns) by stride: dy, then dz
    const floating* y,          # IN
    int kind, Py_ssize_t n_rows, Py_ssize_t columns, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t i, k, n_runs = n_rows, run = columns
    cdef floating gradient
    cdef floating* dz
    cdef const floating* out
    if kind == SKBN_IDENTITY:
        return
    if columns == stride:
        n_runs = 1
        run = n_rows * stride
    for i in range(n_runs):
        dz = dy + i * stride
        out = y + i * stride
        if kind == SKBN_RELU:
            for k in range(run):
                gradient = dz[k]  # loaded in any case: a conditional load does not vectorize
                dz[k] = gradient if out[k] > 0 else 0
        elif kind == SKBN_TANH:
            for k in range(run):
                dz[k] = dz[k] * (1 - out[k] * out[k])
        elif kind == SKBN_LOGISTIC:
            for k in range(run):
                dz[k] = dz[k] * out[k] * (1 - out[k])
