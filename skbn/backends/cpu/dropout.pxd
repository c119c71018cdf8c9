# SPDX-License-Identifier: BSD-3-Clause
"""Inverted dropout with masks that are a pure function of (key, step, layer, row, unit).

Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"): nothing is stored between forward
and backward, and every executor draws the same masks in any order and on any number of threads.
"""

from cython cimport floating
from libc.stdint cimport uint32_t, uint64_t


cdef inline void philox4x32(uint32_t* words, uint32_t key0, uint32_t key1) noexcept nogil:
    """Turn the counter in ``words`` into four random words."""
    cdef uint64_t product0, product1
    cdef int _turn
    for _turn in range(10):
        product0 = <uint64_t> 0xD2511F53u * words[0]
        product1 = <uint64_t> 0xCD9E8D57u * words[2]
        words[0] = <uint32_t> (product1 >> 32) ^ words[1] ^ key0
        words[1] = <uint32_t> product1
        words[2] = <uint32_t> (product0 >> 32) ^ words[3] ^ key1
        words[3] = <uint32_t> product0
        key0 += 0x9E3779B9u
        key1 += 0xBB67AE85u


cdef inline void dropout_apply(
    floating* y,                # OUT (n_rows, width) by stride
    const floating* x,          # IN  (n_rows, width) by stride
    Py_ssize_t first,           # of these rows in the mini-batch
    Py_ssize_t n_rows, Py_ssize_t width, Py_ssize_t stride,
    double rate, const uint32_t* key, uint32_t step, uint32_t layer,
) noexcept nogil:
    """y = x * mask: forward on activations, backward on gradients, with the same arguments."""
    cdef uint32_t words[4]
    cdef uint64_t threshold = <uint64_t> (rate * 4294967296.0)
    cdef floating scale = <floating> (1 / (1 - rate))
    cdef Py_ssize_t i, j, k
    for i in range(n_rows):
        for j in range(0, width, 4):
            words[0] = <uint32_t> (j // 4)
            words[1] = <uint32_t> (first + i)
            words[2] = layer
            words[3] = step
            philox4x32(words, key[0], key[1])
            for k in range(min(<Py_ssize_t> 4, width - j)):
                y[i * stride + j + k] = x[i * stride + j + k] * scale if words[k] >= threshold else 0
