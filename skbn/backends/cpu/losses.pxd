# SPDX-License-Identifier: BSD-3-Clause
"""Losses of raw outputs: the sum over the rows, its gradient, and what scores are made of.

The reduction is decided in skbn/_losses.py, and so is the bound on what a row costs: the gradient is multiplied by
``rate`` (1 / total weight of the batch), the sum is not. ``draw`` may be NULL (evaluation). A row of weight w counts as
w rows; ``weights`` may be NULL (ones). To ``scores`` is added the weight of the rows decided right, one number, or the
squared errors of the predictions, one number an output.
"""

from cython cimport floating
from libc.math cimport fabs, log

from skbn.backends.cpu.elementary cimport exponential, magnitude
from skbn.backends.records cimport (
    SKBN_ABSOLUTE_ERROR,
    SKBN_HUBER,
    SKBN_POISSON,
)

cdef enum:
    ROWS = 256  # rows that share one logarithm: a product of at most 2**256
    LANES = 8  # sums and products that run side by side


cdef inline double bounded(double loss, const floating* raw) noexcept nogil:
    """At most -log(machine epsilon) of the type of ``raw``; NaN passes."""
    cdef double bound = 23 * 0.6931471805599453 if floating is float else 52 * 0.6931471805599453
    return bound if loss > bound else loss


cdef inline double binary_log_loss(
    floating* draw,             # OUT (n_rows,)
    double* scores,             # IN/OUT (1,)
    const floating* raw,        # IN  (n_rows,) logits
    const floating* targets,    # IN  (n_all,) codes 0 and 1
    const Py_ssize_t* rows,     # IN  (n_rows,) rows of targets; NULL: the first n_rows
    Py_ssize_t n_rows, floating rate,
) noexcept nogil:
    """sum of max(z, 0) - z y + log(1 + exp(-|z|)), without weights.

    The logarithms are one: the sum of log(1 + e) is the log of the product of the (1 + e), each in (1, 2].
    """
    cdef floating e[ROWS]
    cdef floating y[ROWS]
    cdef double linear[ROWS]
    cdef double sums[LANES]
    cdef double products[LANES]
    cdef floating z, p, one = 1
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
            linear[i] = bounded((z if z > 0 else <floating> 0) - z * y[i], raw)
            correct += (z > 0) == (y[i] > 0)
        scores[0] += correct
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
                p = (e[i] if z < 0 else one) / (one + e[i])
                draw[start + i] = (p - y[i]) * rate
    return total


cdef inline double multilabel_log_loss(
    floating* draw,             # OUT (n_rows, n_labels) by stride
    double* scores,             # IN/OUT (1,)
    const floating* raw,        # IN  (n_rows, n_labels) by stride: logits
    const floating* targets,    # IN  (n_all, n_labels) zeros and ones
    const double* weights,      # IN  (n_rows,)
    const Py_ssize_t* rows,     # IN  (n_rows,) rows of targets; NULL: the first n_rows
    Py_ssize_t n_rows, Py_ssize_t n_labels, Py_ssize_t stride, double rate,
) noexcept nogil:
    """sum of max(z, 0) - z y + log(1 + exp(-|z|)) over the labels; a row is right where all of its labels are."""
    cdef const floating* z
    cdef const floating* y
    cdef floating e, p, factor, one = 1
    cdef double total = 0, weight = 1, loss, product
    cdef Py_ssize_t i, j
    cdef bint right
    for i in range(n_rows):
        z = raw + i * stride
        y = targets + (rows[i] if rows != NULL else i) * n_labels
        if weights != NULL:
            weight = weights[i]
        factor = <floating> (weight * rate)
        right = True
        loss = 0
        product = 1
        for j in range(n_labels):
            e = exponential(-magnitude(z[j]))
            loss += bounded((z[j] if z[j] > 0 else <floating> 0) - z[j] * y[j], raw)
            product *= 1 + <double> e
            if j % 512 == 511:
                loss += log(product)
                product = 1
            right = right and (z[j] > 0) == (y[j] > 0)
            if draw != NULL:
                p = (e if z[j] < 0 else one) / (one + e)
                draw[i * stride + j] = (p - y[j]) * factor
        total += weight * (loss + log(product))
        scores[0] += weight if right else 0
    return total


cdef inline double categorical_log_loss(
    floating* draw,             # OUT (n_rows, n_classes) by stride
    double* scores,             # IN/OUT (1,)
    const floating* raw,        # IN  (n_rows, n_classes) by stride
    const floating* targets,    # IN  (n_all,) codes
    const double* weights,      # IN  (n_rows,)
    const Py_ssize_t* rows,     # IN  (n_rows,) rows of targets; NULL: the first n_rows
    Py_ssize_t n_rows, Py_ssize_t n_classes, Py_ssize_t stride, double rate,
) noexcept nogil:
    """sum of log(sum(exp(z - max z))) - (z_y - max z)."""
    cdef const floating* z
    cdef floating largest, inverse
    cdef double total = 0, exponentials, weight = 1
    cdef Py_ssize_t i, j, code, best
    for i in range(n_rows):
        z = raw + i * stride
        if weights != NULL:
            weight = weights[i]
        code = <Py_ssize_t> targets[rows[i] if rows != NULL else i]
        largest = z[0]
        best = 0
        for j in range(1, n_classes):
            if z[j] > largest:
                largest = z[j]
                best = j
        if best == code:
            scores[0] += weight
        exponentials = 0
        if draw == NULL:
            for j in range(n_classes):
                exponentials += exponential(z[j] - largest)
        else:
            for j in range(n_classes):
                draw[i * stride + j] = exponential(z[j] - largest)
                exponentials += draw[i * stride + j]
            inverse = <floating> (weight * rate / exponentials)
            for j in range(n_classes):
                draw[i * stride + j] = draw[i * stride + j] * inverse
            draw[i * stride + code] = draw[i * stride + code] - <floating> (weight * rate)
        total += weight * bounded(log(exponentials) + (largest - z[code]), raw)
    return total


cdef inline double error_loss(
    floating* draw,             # OUT (n_rows, n_outputs) by stride
    double* scores,             # IN/OUT (n_outputs,)
    const floating* raw,        # IN  (n_rows, n_outputs) by stride
    const floating* targets,    # IN  (n_all, n_outputs)
    const double* weights,      # IN  (n_rows,)
    const Py_ssize_t* rows,     # IN  (n_rows,) rows of targets; NULL: the first n_rows
    Py_ssize_t n_rows, Py_ssize_t n_outputs, Py_ssize_t stride, int kind, double rate,
) noexcept nogil:
    """Regression: half the squared error, the absolute error or Huber's (knee at 1), the mean over the outputs.

    Poisson: half the deviance, y log(y) - y z - y + exp(z), the sum over the outputs.
    """
    cdef const floating* z
    cdef const floating* y
    cdef double share = 1 if kind == SKBN_POISSON else 1.0 / n_outputs
    cdef double total = 0, weight = 1, loss, error, slope
    cdef Py_ssize_t i, j
    for i in range(n_rows):
        z = raw + i * stride
        y = targets + (rows[i] if rows != NULL else i) * n_outputs
        if weights != NULL:
            weight = weights[i]
        if weight == 0:  # whatever its targets are
            if draw != NULL:
                for j in range(n_outputs):
                    draw[i * stride + j] = 0
            continue
        loss = 0
        for j in range(n_outputs):
            if kind == SKBN_POISSON:
                error = exponential(<double> z[j]) - y[j]
                slope = error
                loss += error - y[j] * z[j]
                if y[j] > 0:
                    loss += y[j] * log(<double> y[j])
            else:
                error = <double> z[j] - y[j]
                slope = error
                if kind == SKBN_ABSOLUTE_ERROR:
                    loss += fabs(error)
                    slope = 1 if error > 0 else -1 if error < 0 else error  # NaN passes
                elif kind == SKBN_HUBER and fabs(error) > 1:
                    loss += fabs(error) - 0.5
                    slope = 1 if error > 0 else -1
                else:
                    loss += 0.5 * error * error
            scores[j] += weight * error * error
            if draw != NULL:
                draw[i * stride + j] = <floating> (slope * weight * rate * share)
        total += weight * loss * share
    return total
