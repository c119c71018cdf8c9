# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers: one loop over the flat vectors, pads included (they are zero and stay zero).

``memory`` holds the optimizer's own vectors one behind the other, each as long as ``params``.
"""

from cython cimport floating
from libc.float cimport DBL_MAX, DBL_MIN, FLT_MIN
from libc.math cimport M_PI, cos, pow, sqrt
from libc.stdint cimport int64_t

from skbn.backends.cpu.elementary cimport magnitude, root
from skbn.backends.cpu.team cimport Worker, count_tiles, first_tile, meet, next_tile
from skbn.backends.records cimport (
    SKBN_ADAM,
    SKBN_COSINE,
    SKBN_FINAL_RATE,
    SKBN_ONECYCLE,
    SKBN_SGD,
    SKBN_START_RATE,
    SKBN_WARM_UP,
    OptimizerRecord,
)

cdef enum:
    TILE = 4096  # numbers of the flat vectors that are updated at a time


cdef inline void sgd_update(
    floating* params, floating* velocity,       # IN/OUT (size,)
    const floating* grads,                      # IN
    Py_ssize_t size, floating learning_rate, floating momentum, bint nesterov,
) noexcept nogil:
    """Momentum (Sutskever et al., 2013), in the form that scikit-learn uses."""
    cdef Py_ssize_t k
    cdef floating v
    if nesterov:
        for k in range(size):
            v = momentum * velocity[k] - learning_rate * grads[k]
            velocity[k] = v
            params[k] = params[k] + (momentum * v - learning_rate * grads[k])
    else:
        for k in range(size):
            v = momentum * velocity[k] - learning_rate * grads[k]
            velocity[k] = v
            params[k] = params[k] + v


cdef inline void adam_update(
    floating* params, floating* first, floating* second,    # IN/OUT (size,)
    const floating* grads,                                  # IN
    Py_ssize_t size, floating rate, double beta_1, double beta_2, floating epsilon,
) noexcept nogil:
    """Kingma & Ba, 2014; ``rate`` holds the bias corrections."""
    cdef Py_ssize_t k
    # 1 - 0.999 in float32 would be 5e-5 off.
    cdef floating keep_1 = <floating> beta_1, rest_1 = <floating> (1 - beta_1)
    cdef floating keep_2 = <floating> beta_2, rest_2 = <floating> (1 - beta_2)
    cdef floating m, v
    for k in range(size):
        m = keep_1 * first[k] + rest_1 * grads[k]
        v = keep_2 * second[k] + rest_2 * (grads[k] * grads[k])
        first[k] = m
        second[k] = v
        params[k] = params[k] - rate * m / (root(v) + epsilon)


cdef inline void rmsprop_update(
    floating* params, floating* second,         # IN/OUT (size,)
    const floating* grads,                      # IN
    Py_ssize_t size, floating rate, double beta_2, floating epsilon,
) noexcept nogil:
    """Hinton's lecture 6e, 2012; ``beta_2`` is the decay of the mean square."""
    cdef Py_ssize_t k
    cdef floating keep_2 = <floating> beta_2, rest_2 = <floating> (1 - beta_2), v
    for k in range(size):
        v = keep_2 * second[k] + rest_2 * (grads[k] * grads[k])
        second[k] = v
        params[k] = params[k] - rate * grads[k] / (root(v) + epsilon)


cdef inline Py_ssize_t optimizer_vectors(int64_t kind) noexcept nogil:
    """Vectors that an optimizer remembers."""
    return 2 if kind == SKBN_ADAM else 1


cdef inline double between(double start, double end, double share) noexcept nogil:
    """Go from start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1 + cos(M_PI * share))


cdef inline double scheduled_rate(const OptimizerRecord* optimizer, double t) noexcept nogil:
    """Learning rate of the update that comes after t others (Loshchilov & Hutter, 2017; Smith & Topin, 2017)."""
    cdef double rate = optimizer.learning_rate
    cdef double last = optimizer.n_steps - 1, peak = SKBN_WARM_UP * optimizer.n_steps - 1
    if optimizer.schedule == SKBN_COSINE:
        return rate * between(1, 0, min(1.0, t / optimizer.n_steps))
    if optimizer.schedule == SKBN_ONECYCLE:
        if t < peak:
            return rate * between(SKBN_START_RATE, 1, t / peak)
        return rate * between(1, SKBN_FINAL_RATE, min(1.0, (t - peak) / (last - peak)))
    return rate


cdef inline Py_ssize_t optimizer_tiles(Py_ssize_t size) noexcept nogil:
    return count_tiles(size, TILE)


cdef inline void sum_squares(
    const Worker* me,
    double* parts,              # OUT one sum a tile
    const floating* x, Py_ssize_t size,
) noexcept nogil:
    cdef Py_ssize_t tile = first_tile(me), k
    cdef double total
    while tile * TILE < size:
        total = 0
        for k in range(tile * TILE, min((tile + 1) * TILE, size)):
            total += <double> x[k] * x[k]
        parts[tile] = total
        tile = next_tile(me, tile)
    meet(me)


cdef inline double euclidean_norm(const double* parts, const floating* x, Py_ssize_t size) noexcept nogil:
    """Norm of a vector, given the sums of squares of its tiles, which may have overflowed."""
    cdef double squares = 0, largest = 0, norm
    cdef Py_ssize_t k
    for k in range(optimizer_tiles(size)):
        squares += parts[k]
    norm = sqrt(squares)
    if norm > DBL_MAX:
        for k in range(size):
            largest = max(largest, <double> magnitude(x[k]))
        squares = 0
        for k in range(size):
            squares += (x[k] / largest) * (x[k] / largest)
        norm = largest * sqrt(squares)
    return norm


cdef inline void optimizer_update(
    const Worker* me,
    floating* params, floating* memory, floating* grads, double* parts, Py_ssize_t size,
    const OptimizerRecord* optimizer, int64_t t,
) noexcept nogil:
    """Do the update that comes after t others. ``parts`` is room for a number a tile."""
    cdef double rate = scheduled_rate(optimizer, t), norm
    # An epsilon that underflows would make 0 / 0 of pads and dead units.
    cdef double epsilon = max(optimizer.epsilon, <double> FLT_MIN if floating is float else DBL_MIN)
    cdef Py_ssize_t tile, first, k, n
    cdef floating scale = 1
    if optimizer.max_grad_norm <= DBL_MAX:  # Pascanu et al., 2013
        sum_squares(me, parts, <const floating*> grads, size)
        norm = euclidean_norm(<const double*> parts, <const floating*> grads, size)
        meet(me)
        if norm > optimizer.max_grad_norm:  # NaN stays
            scale = <floating> (optimizer.max_grad_norm / norm)
    if optimizer.kind == SKBN_ADAM:
        rate *= sqrt(1 - pow(optimizer.beta_2, t + 1)) / (1 - pow(optimizer.beta_1, t + 1))
    tile = first_tile(me)
    while tile * TILE < size:
        first = tile * TILE
        n = min(<Py_ssize_t> TILE, size - first)
        if scale != 1:
            for k in range(first, first + n):
                grads[k] = grads[k] * scale
        if optimizer.kind == SKBN_SGD:
            sgd_update(
                params + first, memory + first, grads + first, n,
                <floating> rate, <floating> optimizer.momentum, optimizer.nesterov,
            )
        elif optimizer.kind == SKBN_ADAM:
            adam_update(
                params + first, memory + first, memory + size + first, grads + first, n, <floating> rate,
                optimizer.beta_1, optimizer.beta_2, <floating> epsilon,
            )
        else:
            rmsprop_update(
                params + first, memory + first, grads + first, n,
                <floating> rate, optimizer.beta_2, <floating> epsilon,
            )
        tile = next_tile(me, tile)
    meet(me)
