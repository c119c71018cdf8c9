# SPDX-License-Identifier: BSD-3-Clause
"""Losses of raw outputs: the sum over the rows, its gradient, and how many rows are decided right.

The reduction is decided in skbn/_losses.py, and so is the bound on what a row costs: the gradient is multiplied by
``rate`` (1 / rows of the batch), the sum is not. ``draw`` may be NULL (evaluation).
"""

from cython cimport floating
from libc.math cimport log

from skbn.backends.cpu.elementary cimport exponential, magnitude

cdef enum:
    ROWS = 256  # rows that share one logarithm: a product of at most 2**256
    LANES = 8  # sums and products that run side by side


cdef inline double bounded(double loss, const floating* raw) noexcept nogil:
    """At most -log(machine epsilon) of the type of ``raw``; NaN passes."""
    cdef double bound = 23 * 0.6931471805599453 if floating is float else 52 * 0.6931471805599453
    return bound if loss > bound else loss


cdef inline double binary_log_loss(
    floating* draw,             # OUT (n_rows,)
    Py_ssize_t* n_correct,      # IN/OUT
    const floating* raw,        # IN  (n_rows,) logits
    const floating* targets,    # IN  (n_all,) codes 0 and 1
    const Py_ssize_t* rows,     # IN  (n_rows,) rows of targets; NULL: the first n_rows
    Py_ssize_t n_rows, floating rate,
) noexcept nogil:
    """sum of max(z, 0) - z y + log(1 + exp(-|z|)).

    The logarithms are one: the sum of log(1 + e) is the log of the product of the (1 + e), each in (1, 2].
    """
    cdef floating e[ROWS]
    cdef floating y[ROWS]
    cdef double linear[ROWS]
    cdef double sums[LANES]
    cdef double products[LANES]
    cdef floating z, p
    cdef double total = 0
    cdef Py_ssize_t i, lane, start, block, correct
    for start in range(0, n_rows, 256):  # ROWS
        block = min(<Py_ssize_t> ROWS, n_rows - start)
        for i in range(block):
            y[i] = targets[rows[start + i] if rows != NULL else start + i]
        correct = 0
        for i in range(block):
            z = raw[start + i]
            e[i] = exponential(-magnitude(z))
            # NaN arrives by way of z * y. At the bound, log(1 + e) is less than epsilon.
            linear[i] = bounded((z if z > 0 else 0) - z * y[i], raw)
            correct += (z > 0) == (y[i] > 0)
        n_correct[0] += correct
        for lane in range(LANES):
            sums[lane] = 0
            products[lane] = 1
        for i in range(0, block - LANES + 1, 8):  # LANES
            for lane in range(LANES):
                sums[lane] = sums[lane] + linear[i + lane]
                products[lane] = products[lane] * (1 + <double> e[i + lane])
        for i in range(block - block % LANES, block):
            sums[0] = sums[0] + linear[i]
            products[0] = products[0] * (1 + <double> e[i])
        for lane in range(1, LANES):
            sums[0] = sums[0] + sums[lane]
            products[0] = products[0] * products[lane]
        total += sums[0] + log(products[0])
        if draw != NULL:
            for i in range(block):
                z = raw[start + i]
                p = (e[i] if z < 0 else 1) / (1 + e[i])
                draw[start + i] = (p - y[i]) * rate
    return total


cdef inline double categorical_log_loss(
    floating* draw,             # OUT (n_rows, n_classes) by stride
    Py_ssize_t* n_correct,      # IN/OUT
    const floating* raw,        # IN  (n_rows, n_classes) by stride
    const floating* targets,    # IN  (n_all,) codes
    const Py_ssize_t* rows,     # IN  (n_rows,) rows of targets; NULL: the first n_rows
    Py_ssize_t n_rows, Py_ssize_t n_classes, Py_ssize_t stride, floating rate,
) noexcept nogil:
    """sum of log(sum(exp(z - max z))) - (z_y - max z)."""
    cdef const floating* z
    cdef floating largest, inverse
    cdef double total = 0, exponentials
    cdef Py_ssize_t i, j, code, best
    for i in range(n_rows):
        z = raw + i * stride
        code = <Py_ssize_t> targets[rows[i] if rows != NULL else i]
        largest = z[0]
        best = 0
        for j in range(1, n_classes):
            if z[j] > largest:
                largest = z[j]
                best = j
        n_correct[0] += best == code
        exponentials = 0
        if draw == NULL:
            for j in range(n_classes):
                exponentials += exponential(z[j] - largest)
        else:
            for j in range(n_classes):
                draw[i * stride + j] = exponential(z[j] - largest)
                exponentials += draw[i * stride + j]
            inverse = <floating> (rate / exponentials)
            for j in range(n_classes):
                draw[i * stride + j] = draw[i * stride + j] * inverse
            draw[i * stride + code] = draw[i * stride + code] - rate
        total += bounded(log(exponentials) + (largest - z[code]), raw)
    return total
