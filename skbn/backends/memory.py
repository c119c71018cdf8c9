"""Memory that kernels can rely on: vectors on 64-byte boundaries, rows padded to 64 bytes."""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest vector registers


def _aligned(make, size, dtype):
    """Return a vector that starts on a 64-byte boundary, in bytes made by np.zeros or np.empty."""
    n_bytes = size * dtype.itemsize
    raw = make(n_bytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + n_bytes].view(dtype)


def aligned_zeros(size, dtype):
    """Return a zero vector whose data start on a 64-byte boundary."""
    return _aligned(np.zeros, size, np.dtype(dtype))


def empty_like(x):
    """Return an array of the shape, type and layout of x, large ones on a 64-byte boundary.

    There kernels may write past the cache. Where x has gaps the result has none.
    """
    if x.nbytes < 2**20:
        return np.empty_like(x)
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    out = _aligned(np.empty, x.size, x.dtype).reshape([x.shape[axis] for axis in order])
    return out.transpose(np.argsort(order))


def padded(width, itemsize):
    """Return the stride, in elements, of rows of ``width`` elements: whole cache lines."""
    per_line = ALIGNMENT // itemsize
    return -(-width // per_line) * per_line
