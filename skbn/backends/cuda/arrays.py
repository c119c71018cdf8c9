"""Batch normalization of arrays on a card: reference_arrays.py's functions, by arrays.cu's kernels.

Arrays are device arrays of float32 or float64; gamma, beta and statistics are float64, on the card
or NumPy's; weights are NumPy's. Results are on the card. Kernels want an array's memory as (outer,
columns, inner), the rows before and behind the columns: C and Fortran order and channels first or
last are that as they lie. What is not is packed: one copy, and one more of what is written.
"""
# SPDX-License-Identifier: BSD-3-Clause

from functools import cache
from itertools import groupby
from math import prod
from typing import NamedTuple

import numpy as np

from skbn.backends.cuda import card as cards

# As in kernels/tiles.cuh.
GROUPS, LANES = 32, 8
THREADS = GROUPS * LANES
N_MOMENTS, N_GRADIENTS = 4, 2  # what a chunk leaves for a column


def moments(x, axes, weights=None, ignore_nan=False):
    """Return weight, mean in two parts and biased variance of each column, (4, n_columns)."""
    card, order = cards.current(), memory_order(x, axes)
    return _statistics(card, _packed(x, order), _Tiles.of(x, axes, order), 0, weights, ignore_nan)[
        :4
    ]


def batch_norm_forward(y, x, axes, gamma, beta, epsilon, activation, weights=None):
    """Normalize with the statistics of x; return mean in two parts, variance and 1/std, (4, n)."""
    card, order = cards.current(), memory_order(x, axes)
    x, tiles = _packed(x, order), _Tiles.of(x, axes, order)
    statistics = _statistics(card, x, tiles, epsilon, weights)[1:]
    gamma, beta = _on_card(card, gamma, beta)
    _normalize(card, y, x, order, tiles, statistics, gamma, beta, activation)
    return statistics


def batch_norm_forward_eval(y, x, axes, gamma, beta, mean, low, var, epsilon, activation):
    """Normalize with given statistics."""
    card, order = cards.current(), memory_order(x, axes)
    x, tiles = _packed(x, order), _Tiles.of(x, axes, order)
    mean, low, var, gamma, beta = _on_card(card, mean, low, var, gamma, beta)
    inv_std = card.empty(tiles.columns, np.float64)
    blocks = -(-tiles.columns // THREADS)
    kernel = card.kernel("arrays", "inverse_stds", x.dtype)
    card.launch(kernel, (blocks,), (THREADS,), (inv_std, var, float(epsilon), tiles.columns))
    _normalize(card, y, x, order, tiles, (mean, low, None, inv_std), gamma, beta, activation)


def batch_norm_backward(dx, dy, x, axes, gamma, beta, statistics, activation, weights=None):
    """Write dx; return dgamma and dbeta, (2, n_columns)."""
    card, order = cards.current(), memory_order(x, axes)
    tiles = _Tiles.of(x, axes, order)
    x, dy = _packed(x, order), _packed(dy, order)
    statistics, gamma, beta = _on_card(card, statistics, gamma, beta)
    mean, low, _, inv_std = statistics
    given = mean, low, inv_std, gamma, beta
    parts = card.empty((tiles.n_chunks, N_GRADIENTS, tiles.columns), np.float64)
    tiles.launch(card, "gradient_sums", (parts, dy, x, *given, int(activation)), N_GRADIENTS)
    sums = card.empty((N_GRADIENTS, tiles.columns), np.float64)
    _merge(card, "merge_gradients", x.dtype, (sums, parts, inv_std), tiles)
    total, weights = _weights(card, weights, tiles.n_rows)
    target = _target(card, dx, order)
    tiles.launch(
        card, "input_gradient", (target, dy, x, sums, *given, *weights, 1 / total, int(activation))
    )
    _give(dx, target, order)
    return sums


def find_non_finite(x, axes):
    """Return whether there is NaN, and whether infinity, in each column: NumPy, (2, n_columns)."""
    card, order = cards.current(), memory_order(x, axes)
    tiles = _Tiles.of(x, axes, order)
    found = card.zeros((2, tiles.columns), np.int64)
    blocks = min(-(-x.size // THREADS), 2**16)
    kernel = card.kernel("arrays", "find_non_finite", x.dtype)
    shape = tiles.n_rows, tiles.columns, tiles.inner
    card.launch(kernel, (blocks,), (THREADS,), (found, _packed(x, order), *shape))
    return card.read(found) > 0


# How an array lies.


def memory_order(x, axes):
    """Return all axes in an order in which kernels can read an array: that of its memory if it has one.

    Rows and columns must be in C order, and columns in one piece; else rows come first.
    """
    reduced = [axis for axis in range(x.ndim) if axis not in axes]
    order = sorted(range(x.ndim), key=lambda axis: (x.shape[axis] > 1, -x.strides[axis]))
    long = [axis for axis in order if x.shape[axis] > 1]
    pieces = [is_kept for is_kept, _ in groupby(long, lambda axis: axis in axes)]
    in_order = all(
        part == sorted(part)
        for part in ([a for a in long if a in axes], [a for a in long if a not in axes])
    )
    if in_order and sum(pieces) <= 1 and x.transpose(order).flags.c_contiguous:
        return order
    return [*reduced, *axes]


def _packed(x, order):
    """Return an array with its axes in this order, without gaps: a copy only if need be."""
    x = x.transpose(order)
    return x if x.flags.c_contiguous else x.copy()


def _target(card, out, order):
    """Return where to write what belongs into out."""
    target = out.transpose(order)
    return target if target.flags.c_contiguous else card.empty(target.shape, target.dtype)


def _give(out, target, order):
    """Write the target to where it belongs, if it does not lie there."""
    view = out.transpose(order)
    if not view.flags.c_contiguous:
        view[...] = target


class _Tiles(NamedTuple):
    """How the blocks of a kernel share out an array; sums depend on the number of rows alone."""

    n_rows: int
    columns: int
    inner: int
    chunk_rows: int
    across: int
    vector: int

    @classmethod
    def of(cls, x, axes, order):
        """Return the tiles of an array whose axes have an order in memory."""
        lengths = [x.shape[axis] for axis in order]
        kept = [k for k, axis in enumerate(order) if axis in axes and lengths[k] > 1]
        columns = prod(lengths[k] for k in kept)
        n_rows = x.size // columns
        inner = prod(lengths[kept[-1] + 1 :]) if kept else n_rows
        return _tiles(n_rows, columns, inner, x.dtype.itemsize)

    @property
    def n_chunks(self):
        return -(-self.n_rows // self.chunk_rows)

    def launch(self, card, name, arguments, n_sums=0):
        """Queue a kernel in which every thread has so many sums for each of its columns."""
        side_by_side = "across" if self.vector > 1 else "down"
        kernel = card.kernel("arrays", f"{name}_{side_by_side}", arguments[1].dtype)
        n_tiles = -(-self.columns // (self.across * self.vector))
        blocks = n_tiles * -(-self.n_chunks // (LANES // self.across))
        shared = THREADS * self.vector * n_sums * 8
        card.launch(kernel, (blocks,), (THREADS,), (*arguments, *self[:5]), shared)


@cache
def _tiles(n_rows, columns, inner, itemsize):
    """Chunks grow like the square root of the rows, so that their sums are as many as they are."""
    chunk_rows = 1 << max(7, ((4 * n_rows - 1).bit_length() + 1) // 2)
    vector = 16 // itemsize if inner == 1 else 1
    across = 1
    while vector > 1 and across < LANES and across * vector < columns:
        across *= 2
    return _Tiles(n_rows, columns, inner, chunk_rows, across, vector)


# Kernels.


def _on_card(card, *vectors):
    """Return vectors of float64 as they are needed by kernels: what is NumPy's is uploaded."""
    return [card.upload(v) if isinstance(v, np.ndarray) else v for v in vectors]


def _weights(card, weights, n_rows):
    """Return the weight of all rows, and what kernels want to know of each."""
    if weights is None:
        return float(n_rows), (None, 1)
    rows_per_sample = n_rows // weights.size
    return float(weights.sum() * rows_per_sample), (card.upload(weights), rows_per_sample)


def _statistics(card, x, tiles, epsilon, weights=None, ignore_nan=False):
    """Return weight, mean in two parts, variance and 1/std of each column, (5, n_columns)."""
    parts = card.empty((tiles.n_chunks, N_MOMENTS, tiles.columns), np.float64)
    if weights is None and not ignore_nan:
        tiles.launch(card, "moments", (parts, x), 2)
    else:
        _, weights = _weights(card, weights, tiles.n_rows)
        tiles.launch(card, "weighted_moments", (parts, x, *weights, int(ignore_nan)), 3)
    statistics = card.empty((5, tiles.columns), np.float64)
    _merge(card, "merge_moments", x.dtype, (statistics, parts, float(epsilon)), tiles)
    return statistics


def _merge(card, name, dtype, arguments, tiles):
    kernel = card.kernel("arrays", name, dtype)
    blocks = -(-tiles.columns // LANES)
    card.launch(kernel, (blocks,), (THREADS,), (*arguments, tiles.n_chunks, tiles.columns))


def _normalize(card, y, x, order, tiles, statistics, gamma, beta, activation):
    """Write the output for an array packed in this order."""
    mean, low, _, inv_std = statistics
    target = _target(card, y, order)
    given = target, x, mean, low, inv_std, gamma, beta, int(activation)
    tiles.launch(card, "normalize", given)
    _give(y, target, order)
