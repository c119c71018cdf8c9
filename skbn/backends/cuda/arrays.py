"""Batch normalization of arrays on a card: reference_arrays.py's functions, by arrays.cu's kernels.

Arrays lie on the current card, or are NumPy's: those are uploaded, and results are NumPy's too.
Gamma, beta and statistics, float64, may lie here or there; weights are NumPy's. Kernels want an
array's memory as (outer, columns, inner), the rows before and behind the columns: C and Fortran
order and channels first or last are that as they lie. What is not is packed: one copy, and one more
of what is written.
"""
# SPDX-License-Identifier: BSD-3-Clause

from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from math import prod
from typing import NamedTuple

import numpy as np

from skbn.backends.cuda import card as cards

# As in kernels/tiles.cuh.
GROUPS, LANES = 32, 8
THREADS = GROUPS * LANES
AT_ONCE = 1024  # rows of a column that one block goes over
N_MOMENTS, N_GRADIENTS = 4, 2  # what a chunk leaves for a column


def moments(x, axes, weights=None, ignore_nan=False):
    """Return weight, mean in two parts and biased variance of each column, (4, n_columns)."""
    data = _Data(x, axes)
    return data.result(_statistics(data, 0, weights, ignore_nan)[:4])


def batch_norm_forward(y, x, axes, gamma, beta, epsilon, activation, weights=None):
    """Normalize with the statistics of x; return mean in two parts, variance and 1/std, (4, n)."""
    data = _Data(x, axes)
    if data.tiles.n_chunks > 1 or weights is not None:
        statistics = _statistics(data, epsilon, weights)
        _normalize(y, data, statistics[1:], gamma, beta, activation)
    else:
        statistics = data.card.empty((5, data.tiles.columns), np.float64)
        given = *data.vectors(gamma, beta), float(epsilon), int(activation)
        with data.written(y) as target:
            data.launch_tiles("forward_at_once", (statistics, target, data.x, *given), 2)
    return data.result(statistics[1:])


def batch_norm_forward_eval(y, x, axes, gamma, beta, mean, low, var, epsilon, activation):
    """Normalize with given statistics."""
    data = _Data(x, axes)
    mean, low, var = data.vectors(mean, low, var)
    inv_std = data.card.empty(data.tiles.columns, np.float64)
    data.launch("inverse_stds", THREADS, (inv_std, var, float(epsilon)))
    _normalize(y, data, (mean, low, None, inv_std), gamma, beta, activation)


def batch_norm_backward(dx, dy, x, axes, gamma, beta, statistics, activation, weights=None):
    """Write dx; return dgamma and dbeta, (2, n_columns)."""
    data = _Data(x, axes)
    dy = data.packed(dy)
    mean, low, _, inv_std = statistics
    given = data.vectors(mean, low, inv_std, gamma, beta)
    total, weights = data.weights(weights)
    sums = data.card.empty((N_GRADIENTS, data.tiles.columns), np.float64)
    of_rows = *given, *weights, 1 / total, int(activation)
    with data.written(dx) as target:
        if data.tiles.n_chunks == 1:
            arguments = sums, target, dy, data.x, *of_rows
            data.launch_tiles("backward_at_once", arguments, N_GRADIENTS)
        else:
            parts = data.parts(N_GRADIENTS)
            arguments = parts, dy, data.x, *given, int(activation)
            data.launch_tiles("gradient_sums", arguments, N_GRADIENTS)
            data.launch("merge_gradients", LANES, (sums, parts, given[2], data.tiles.n_chunks))
            data.launch_tiles("input_gradient", (target, dy, data.x, sums, *of_rows))
    return data.result(sums)


def find_non_finite(x, axes):
    """Return whether NaN, and whether infinity, is in each column: (2, n_columns), NumPy's."""
    data = _Data(x, axes)
    found = data.card.zeros((2, data.tiles.columns), np.int64)
    kernel = data.card.kernel("arrays", "find_non_finite", x.dtype)
    blocks = min(-(-x.size // THREADS), 2**16)
    shape = data.tiles.n_rows, data.tiles.columns, data.tiles.inner
    data.card.launch(kernel, (blocks,), (THREADS,), (found, data.x, *shape))
    return data.card.read(found) > 0


def _statistics(data, epsilon, weights=None, ignore_nan=False):
    """Return weight, mean in two parts, variance and 1/std of each column, (5, n_columns)."""
    parts = data.parts(N_MOMENTS)
    if weights is None and not ignore_nan:
        data.launch_tiles("moments", (parts, data.x), 2)
    else:
        _, weights = data.weights(weights)
        data.launch_tiles("weighted_moments", (parts, data.x, *weights, int(ignore_nan)), 3)
    statistics = data.card.empty((5, data.tiles.columns), np.float64)
    data.launch("merge_moments", LANES, (statistics, parts, float(epsilon), data.tiles.n_chunks))
    return statistics


def _normalize(y, data, statistics, gamma, beta, activation):
    mean, low, _, inv_std = statistics
    given = data.vectors(mean, low, inv_std, gamma, beta)
    with data.written(y) as target:
        data.launch_tiles("normalize", (target, data.x, *given, int(activation)))


class _Data:
    """An array that kernels can read, and how their blocks share it out.

    Parameters
    ----------
    x : device array or ndarray
        The array.
    axes : tuple of int
        The axes kept, in ascending order.
    """

    def __init__(self, x, axes):
        self.card, self.is_host = cards.current(), isinstance(x, np.ndarray)
        self.axes, self.shape, self.dtype = axes, x.shape, x.dtype
        if x.dtype not in (np.float32, np.float64) or x.size == 0:
            raise ValueError(f"Expected numbers of float32 or float64, got {x.dtype}, {x.shape}.")
        self.order, self.tiles = layout(x.shape, x.strides, x.dtype.itemsize, axes)
        self.x = self.packed(x)

    def vectors(self, *values):
        """Return numbers of the columns, or None, on the card; kernels trust them."""
        return [self._vector(value, self.tiles.columns) for value in values]

    def _vector(self, value, size):
        if value is None:
            return None
        self._check(value, (size,), np.dtype(np.float64))
        if isinstance(value, np.ndarray):
            return self.card.upload(value)
        return value if value.flags.c_contiguous else value.copy()

    def _check(self, array, shape, dtype):
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"Expected numbers of type {dtype.char!r} in shape {shape}, got "
                f"{array.dtype.char!r} in shape {array.shape}."
            )

    def result(self, array):
        """Return a result where the array came from."""
        return self.card.read(array) if self.is_host else array

    def packed(self, x):
        """Return an array of this shape on the card, in the order of x: as it lies if it can."""
        self._check(x, self.shape, self.dtype)
        if isinstance(x, np.ndarray):
            return self.card.upload(x.transpose(self.order))
        return x if self._is_dense(x) else x.transpose(self.order).copy()

    def _is_dense(self, x):
        return is_dense(x.shape, x.strides, x.dtype.itemsize, self.order)

    @contextmanager
    def written(self, out):
        """Give memory for what belongs into ``out``, and take it there in the end."""
        self._check(out, self.shape, self.dtype)
        if not isinstance(out, np.ndarray) and self._is_dense(out):
            yield out
            return
        view = out.transpose(self.order)
        target = self.card.empty(view.shape, view.dtype)
        yield target
        view[...] = self.result(target)

    def weights(self, weights):
        """Return the weight of all rows, and what kernels want to know of each."""
        if weights is None:
            return float(self.tiles.n_rows), (None, 1)
        if weights.shape != self.shape[:1] or 0 in self.axes:
            raise ValueError(
                f"Expected a weight for each of {self.shape[0]} samples, got {weights.shape}."
            )
        rows_per_sample = self.tiles.n_rows // weights.size
        total = float(weights.sum() * rows_per_sample)
        return total, (self._vector(weights, weights.size), rows_per_sample)

    def parts(self, n):
        """Return memory for n numbers that every chunk leaves of every column."""
        return self.card.empty((self.tiles.n_chunks, n, self.tiles.columns), np.float64)

    def launch(self, name, columns_per_block, arguments):
        """Queue a kernel over the columns."""
        kernel = self.card.kernel("arrays", name, self.x.dtype)
        columns = self.tiles.columns
        blocks = -(-columns // columns_per_block)
        self.card.launch(kernel, (blocks,), (THREADS,), (*arguments, columns))

    def launch_tiles(self, name, arguments, n_sums=0):
        """Queue a kernel in which every thread has so many sums for each of its columns."""
        tiles = self.tiles
        side_by_side = "across" if tiles.vector > 1 else "down"
        kernel = self.card.kernel("arrays", f"{name}_{side_by_side}", self.x.dtype)
        n_tiles = -(-tiles.columns // (tiles.across * tiles.vector))
        blocks = n_tiles * -(-tiles.n_chunks // (LANES // tiles.across))
        shared = THREADS * tiles.vector * n_sums * 8
        self.card.launch(kernel, (blocks,), (THREADS,), (*arguments, *tiles[:5]), shared)


class Tiles(NamedTuple):
    """How blocks share out an array; the order of sums depends on the number of rows alone."""

    n_rows: int
    columns: int
    inner: int
    chunk_rows: int
    across: int
    vector: int

    @property
    def n_chunks(self):
        """Number of chunks of the rows."""
        return -(-self.n_rows // self.chunk_rows)

    @classmethod
    def of(cls, n_rows, columns, inner, itemsize):
        """Return the tiles of an array of numbers of so many bytes.

        Few rows are one chunk, and all is done in one launch. Else chunks grow with the square root
        of the rows: there are enough of them to keep a card busy, and few enough to be merged in no
        time.
        """
        chunk_rows = AT_ONCE
        if n_rows > AT_ONCE:
            chunk_rows = 1 << max(7, ((4 * n_rows - 1).bit_length() + 1) // 2)
        vector = 16 // itemsize if inner == 1 else 1
        across = 1  # seats for columns; the others are for chunks
        while across < LANES and across * vector < columns and (vector > 1 or n_rows <= AT_ONCE):
            across *= 2
        return cls(n_rows, columns, inner, chunk_rows, across, vector)


# How an array lies.


@lru_cache(maxsize=1024)
def layout(shape, strides, itemsize, axes):
    """Return the order of axes in which kernels read an array, and its tiles.

    It is that of memory if rows and columns are in C order there, and columns in one piece; else
    rows come first.
    """
    axes_of_memory = sorted(range(len(shape)), key=lambda a: (shape[a] > 1, -strides[a]))
    order = tuple(axes_of_memory)
    long = [axis for axis in order if shape[axis] > 1]
    reduced, kept = ([a for a in long if (a in axes) == is_kept] for is_kept in (False, True))
    pieces = [is_kept for is_kept, _ in groupby(long, lambda axis: axis in axes)]
    if not (
        is_dense(shape, strides, itemsize, order)
        and reduced == sorted(reduced)
        and kept == sorted(kept)
        and sum(pieces) <= 1
    ):
        order = (*(axis for axis in range(len(shape)) if axis not in axes), *axes)
        long = [axis for axis in order if shape[axis] > 1]
        kept = [axis for axis in long if axis in axes]
    columns = prod(shape[axis] for axis in kept)
    behind = long[long.index(kept[-1]) + 1 :] if kept else long
    inner = prod(shape[axis] for axis in behind)
    return order, Tiles.of(prod(shape) // columns, columns, inner, itemsize)


@lru_cache(maxsize=1024)
def is_dense(shape, strides, itemsize, order):
    """Return whether an array is in C order, without gaps, if its axes are in this order."""
    for axis in reversed(order):
        if shape[axis] > 1 and strides[axis] != itemsize:
            return False
        itemsize *= shape[axis]
    return True


def packed(x, axes):
    """Return x, or a copy without gaps where kernels cannot read it as it lies."""
    order, _ = layout(x.shape, x.strides, x.dtype.itemsize, axes)
    if is_dense(x.shape, x.strides, x.dtype.itemsize, order):
        return x
    return x.transpose(order).copy().transpose(np.argsort(order).tolist())
