# SPDX-License-Identifier: BSD-3-Clause
"""Fully connected layers: y = activation(x @ weight + bias).

Gradients are overwritten; dy becomes dz, the gradient before the activation. A layer of few inputs, the first of most
tables, is done in one sweep forward and one backward, activation and bias included.
"""

from cython cimport floating

from skbn.backends.cpu.activations cimport activation_backward, activation_forward, relu
from skbn.backends.cpu.lines cimport (
    count_lines,
    double_line,
    float_line,
    fma_line,
    line,
    mask_line,
    relu_line,
    splat_item,
)
from skbn.backends.cpu.products cimport (
    is_small,
    multiply,
    multiply_small,
    multiply_transposed_input,
    multiply_transposed_weight,
    whole_lines,
)
from skbn.backends.records cimport SKBN_IDENTITY, SKBN_RELU

cdef enum:
    FEW = 8  # inputs up to which the sweeps win over BLAS


cdef inline void forward_few(
    line* y,                    # OUT (n_rows, n_lines)
    const line* x,              # IN  (n_rows, in_lines): the pad behind an odd number of inputs is zero
    const line* weight,         # IN  (n_in, n_lines)
    const line* bias,           # IN  (n_lines,)
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t in_lines, Py_ssize_t n_lines, bint rectify,
) noexcept nogil:
    """y = x @ weight + bias, then ReLU if asked; two inputs at a time."""
    cdef Py_ssize_t i, j, k
    cdef line first, second, start, z
    cdef bint last
    for k in range(n_lines):
        start = bias[k]
        for j in range(0, n_in, 2):
            first = weight[j * n_lines + k]
            second = weight[(j + 1) * n_lines + k] if j + 1 < n_in else first
            last = rectify and j + 2 >= n_in
            for i in range(n_rows):
                z = start if j == 0 else y[i * n_lines + k]
                z = fma_line(splat_item(x + i * in_lines, j), first, z)
                z = fma_line(splat_item(x + i * in_lines, j + 1), second, z)
                y[i * n_lines + k] = relu_line(z) if last else z


cdef inline void backward_few(
    line* dweight,              # OUT (n_in, n_lines)
    line* dbias,                # OUT (n_lines,); NULL: not trained
    line* dy,                   # IN/OUT (n_rows, n_lines): dy, then dz
    const line* y,              # IN  (n_rows, n_lines)
    const line* x,              # IN  (n_rows, in_lines): the pad behind an odd number of inputs is zero
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t in_lines, Py_ssize_t n_lines, bint rectified,
) noexcept nogil:
    """ReLU backward if asked, dbias and dweight = x.T @ dz, two inputs at a time."""
    cdef Py_ssize_t i, j, k
    cdef line gradient, total, sum0, sum1  # three chains of additions
    cdef const line* row
    for k in range(n_lines):
        for j in range(0, n_in, 2):
            total = y[k] - y[k]
            sum0 = total
            sum1 = total
            for i in range(n_rows):
                gradient = dy[i * n_lines + k]
                if rectified and j == 0:
                    gradient = mask_line(gradient, y[i * n_lines + k])
                    dy[i * n_lines + k] = gradient
                row = x + i * in_lines
                total = total + gradient
                sum0 = fma_line(splat_item(row, j), gradient, sum0)
                sum1 = fma_line(splat_item(row, j + 1), gradient, sum1)
            dweight[j * n_lines + k] = sum0
            if j + 1 < n_in:
                dweight[(j + 1) * n_lines + k] = sum1
            if dbias != NULL:
                dbias[k] = total


cdef inline void dense_forward(
    floating* y,                # OUT (n_rows, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    const floating* bias,       # IN  (n_out,) padded
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
    int activation,
) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef floating* row
    if n_in <= FEW and whole_lines(sizeof(floating), out_stride):
        if floating is float:
            forward_few(
                <float_line*> y, <const float_line*> x, <const float_line*> weight, <const float_line*> bias,
                n_rows, n_in, count_lines(<const float_line*> x, in_stride),
                count_lines(<const float_line*> x, out_stride), activation == SKBN_RELU,
            )
        else:
            forward_few(
                <double_line*> y, <const double_line*> x, <const double_line*> weight, <const double_line*> bias,
                n_rows, n_in, count_lines(<const double_line*> x, in_stride),
                count_lines(<const double_line*> x, out_stride), activation == SKBN_RELU,
            )
        if activation != SKBN_RELU:
            activation_forward(y, activation, n_rows, n_out, out_stride)
        return
    # A single row reads every weight once, so nothing has to stay in cache and packing never pays.
    if is_small(sizeof(floating), n_in if n_rows > 1 else 1, out_stride):
        multiply_small(
            y, x, weight, bias, n_rows, n_in, out_stride, in_stride, 1, activation == SKBN_RELU
        )
        if activation != SKBN_RELU:
            activation_forward(y, activation, n_rows, n_out, out_stride)
        return
    multiply(y, x, weight, n_rows, n_in, n_out, in_stride, out_stride)
    if activation == SKBN_RELU:
        for i in range(n_rows):
            row = y + i * out_stride
            for j in range(out_stride):
                row[j] = relu(row[j] + bias[j])
    else:
        for i in range(n_rows):
            row = y + i * out_stride
            for j in range(out_stride):
                row[j] = row[j] + bias[j]
        if activation != SKBN_IDENTITY:
            activation_forward(y, activation, n_rows, n_out, out_stride)


cdef inline void sum_lines(
    line* sums,                 # OUT (n_lines,)
    const line* x,              # IN  (n_rows, n_lines)
    Py_ssize_t n_rows, Py_ssize_t n_lines,
) noexcept nogil:
    cdef Py_ssize_t i, k
    cdef line even, odd
    for k in range(n_lines):
        even = x[k] - x[k]
        odd = even
        for i in range(0, n_rows - 1, 2):
            even = even + x[i * n_lines + k]
            odd = odd + x[(i + 1) * n_lines + k]
        if n_rows % 2:
            even = even + x[(n_rows - 1) * n_lines + k]
        sums[k] = even + odd


cdef inline void column_sums(
    floating* sums,             # OUT (width,)
    const floating* x,          # IN  (n_rows, width)
    Py_ssize_t n_rows, Py_ssize_t width,
) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef floating even, odd
    if not whole_lines(sizeof(floating), width):  # the output
        for j in range(width):
            even = 0
            odd = 0
            for i in range(0, n_rows - 1, 2):
                even += x[i * width + j]
                odd += x[(i + 1) * width + j]
            if n_rows % 2:
                even += x[(n_rows - 1) * width + j]
            sums[j] = even + odd
    elif floating is float:
        sum_lines(<float_line*> sums, <const float_line*> x, n_rows, count_lines(<const float_line*> x, width))
    else:
        sum_lines(<double_line*> sums, <const double_line*> x, n_rows, count_lines(<const double_line*> x, width))


cdef inline void dense_backward(
    floating* dx,               # OUT (n_rows, n_in) by in_stride; NULL: not needed
    floating* dweight,          # OUT (n_in, n_out) by out_stride
    floating* dbias,            # OUT (n_out,) padded; NULL: not trained
    floating* transposed,       # OUT (n_out, in_stride): room for the transposed weights
    floating* dy,               # IN/OUT (n_rows, n_out) by out_stride: dy, then dz
    const floating* y,          # IN  (n_rows, n_out) by out_stride
    const floating* x,          # IN  (n_rows, n_in) by in_stride
    const floating* weight,     # IN  (n_in, n_out) by out_stride
    Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out,
    Py_ssize_t in_stride, Py_ssize_t out_stride,
    int activation,
) noexcept nogil:
    if n_in <= FEW and whole_lines(sizeof(floating), out_stride):
        if activation != SKBN_RELU:
            activation_backward(dy, y, activation, n_rows, out_stride)
        if floating is float:
            backward_few(
                <float_line*> dweight, <float_line*> dbias, <float_line*> dy, <const float_line*> y,
                <const float_line*> x, n_rows, n_in, count_lines(<const float_line*> x, in_stride),
                count_lines(<const float_line*> x, out_stride), activation == SKBN_RELU,
            )
        else:
            backward_few(
                <double_line*> dweight, <double_line*> dbias, <double_line*> dy, <const double_line*> y,
                <const double_line*> x, n_rows, n_in, count_lines(<const double_line*> x, in_stride),
                count_lines(<const double_line*> x, out_stride), activation == SKBN_RELU,
            )
    else:
        activation_backward(dy, y, activation, n_rows, out_stride)
        multiply_transposed_input(dweight, x, dy, n_rows, n_in, n_out, in_stride, out_stride)
        if dbias != NULL:
            column_sums(dbias, dy, n_rows, out_stride)
    if dx != NULL:
        multiply_transposed_weight(dx, transposed, dy, weight, n_rows, n_in, n_out, in_stride, out_stride)


cdef inline double add_penalty(
    floating* dweight,          # IN/OUT gradient: rate * weight is added
    const floating* weight,     # IN
    Py_ssize_t size,            # a multiple of 8: pads are read as the zeros they are
    floating rate,
) noexcept nogil:
    """Return the sum of squared weights: 8 lanes over a block, blocks meet in float64."""
    cdef floating lanes[8]
    cdef double total = 0
    cdef Py_ssize_t k, lane, start
    for start in range(0, size, 1024):
        for lane in range(8):
            lanes[lane] = 0
        for k in range(start, min(start + 1024, size), 8):
            for lane in range(8):
                dweight[k + lane] = dweight[k + lane] + rate * weight[k + lane]
                lanes[lane] = lanes[lane] + weight[k + lane] * weight[k + lane]
        for lane in range(8):
            total += lanes[lane]
    return total
