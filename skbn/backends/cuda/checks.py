"""What is asked of users' arrays before a card computes with them."""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

THREADS = 256
MAX_BLOCKS = 2048


def non_finite(card, x):
    """Return whether NaN, and whether infinity, is in a matrix, however it lies in memory."""
    strides = (stride // x.dtype.itemsize for stride in x.strides)
    # Neighbours in memory are for neighbours among the threads.
    (stride, n), (outer_stride, n_outer) = sorted(
        zip(strides, x.shape, strict=True), key=lambda axis: (abs(axis[0]), axis[1])
    )
    if outer_stride == n * stride:
        n, n_outer = n * n_outer, 1
    found = card.zeros(2, np.int32)
    blocks = min(-(-n // THREADS) * n_outer, MAX_BLOCKS)
    kernel = card.kernel("checks", "find_non_finite", x.dtype)
    card.launch(kernel, (blocks,), (THREADS,), (found, x, n, stride, n_outer, outer_stride))
    return [bool(flag) for flag in card.read(found)]
