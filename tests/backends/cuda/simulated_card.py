"""A card that is not there: kernels on this processor (see shim.h), and NumPy for the rest.

``SimulatedCard`` has the methods of :class:`skbn.backends.cuda.card.Card`, and its arrays refuse
what CuPy's refuse, so code that forgets where an array lives fails here as it would on a card.
Memory has walls, and is NaN before somebody writes to it.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ctypes
import itertools
import math
import threading
import weakref
from typing import NamedTuple

import numpy as np
from shim import compiled, compiler
from simulated_array import Memory, SimulatedArray

__all__ = ["Memory", "SimulatedArray", "SimulatedCard", "check", "compiler"]


class Graph:
    """What was captured."""

    def __init__(self, calls):
        self.calls = calls

    def launch(self):
        for call in self.calls:
            call()


class Device(NamedTuple):
    """Which card."""

    id: int


class SimulatedCard:
    """The stand-in for :class:`skbn.backends.cuda.card.Card`.

    Parameters
    ----------
    seed : int
        Decides in which order blocks and threads run; no result may depend on it.
    shared_memory, memory : int
        What it has.
    """

    def __init__(self, seed=0, *, shared_memory=101376, memory=2**30):
        self.device, self.name = Device(0), "simulated card"
        self.shared_memory = shared_memory
        self._memory = memory
        self._seeds = itertools.count(seed << 32)
        self._thread = threading.local()  # each has its stream, and may capture
        self._damage = []  # what walls of memory that is gone showed
        self._memories = weakref.WeakSet()
        self._pinned, self._in_flight = [], []

    def at(self, number):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def _outside_captures(self, what):
        if getattr(self._thread, "captured", None) is not None:
            raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while capturing")

    # Memory.

    @property
    def free_memory(self):
        return self._memory - sum(memory.bytes.size for memory in list(self._memories))

    def empty(self, shape, dtype):
        self._outside_captures("an allocation")
        dtype, shape = np.dtype(dtype), (shape,) if np.ndim(shape) == 0 else tuple(shape)
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes > self.free_memory:
            raise MemoryError(f"Out of memory allocating {n_bytes:,} bytes.")
        memory = Memory(self, n_bytes, dtype)
        self._memories.add(memory)
        return SimulatedArray(memory.bytes.view(dtype).reshape(shape), memory)

    def _filled(self, values):
        array = self.empty(values.shape, values.dtype)
        array._values[...] = values
        return array

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array._memory.bytes.fill(0)
        return array

    def pinned(self, size, dtype):
        buffer = np.full(size * np.dtype(dtype).itemsize, 0xFF, np.uint8)
        self._pinned.append(weakref.ref(buffer))
        return np.frombuffer(buffer, dtype)

    def upload(self, array):
        target = self.empty(array.shape, array.dtype)
        self.write(target, array)
        return target

    def write(self, target, array):
        source = np.ascontiguousarray(array)
        target.set(source)
        for pinned in self._pinned:
            buffer = pinned()
            if buffer is not None and np.may_share_memory(buffer, source):
                start = source.ctypes.data - buffer.ctypes.data
                part = slice(start, start + source.nbytes)
                self._in_flight.append((pinned, part, buffer[part].tobytes()))

    def read(self, source, out=None):
        return source.get(out=out)

    def synchronize(self):
        self._outside_captures("waiting")
        # A card reads pinned memory when it gets there; CuPy gives what is freed to the next one.
        in_flight, self._in_flight = self._in_flight, []
        for pinned, part, copied in in_flight:
            buffer = pinned()
            if buffer is None or buffer[part].tobytes() != copied:
                raise RuntimeError(
                    "Pinned memory was written to, or freed, while it was being copied to the card."
                )

    # Arrays of users.

    def is_array(self, x):
        return isinstance(x, SimulatedArray)

    def from_dlpack(self, x):
        kind, _ = x.__dlpack_device__()
        if kind != 2:
            raise TypeError(
                "CPU arrays cannot be directly imported to CuPy. "
                "Use `cupy.array(numpy.from_dlpack(input))` instead."
            )
        if isinstance(x, SimulatedArray):
            return x._view(x._values)
        host = np.from_dlpack(_OnHost(x))
        size = sum((n - 1) * step for n, step in zip(host.shape, host.strides, strict=True))
        size = size + host.itemsize if host.size else 0
        # By its address, as on a card; NumPy would not write to it.
        raw = np.ndarray(size, np.uint8, (ctypes.c_uint8 * size).from_address(host.ctypes.data))
        memory = Memory(self, size, host.dtype, raw)
        memory.owner = host
        return SimulatedArray(np.ndarray(host.shape, host.dtype, raw, 0, host.strides), memory)

    # Kernels.

    def kernel(self, file, name, dtype):
        return compiled(file, name, np.dtype(dtype).name)

    def launch(self, kernel, grid, block, arguments, shared=0):
        # CuPy makes 1 of 0.
        grid, block = (tuple(max(1, n) for n in (*d, 1, 1)[:3]) for d in (grid, block))
        if max(grid[1:]) > 65535 or grid[0] >= 2**31 or block[2] > 64:
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {kernel.name}: {grid}, {block}")
        if np.prod(block) > kernel.most_threads:
            raise RuntimeError(
                f"CUDA_ERROR_INVALID_VALUE: {kernel.name} is for {kernel.most_threads} threads, "
                f"got a block of {block}"
            )
        if kernel.static_shared + shared > self.shared_memory:
            raise RuntimeError(
                f"CUDA_ERROR_INVALID_VALUE: {kernel.name}: {shared} bytes of dynamic shared memory "
                f"and {kernel.static_shared} of static are more than {self.shared_memory}"
            )
        values = kernel.packed(arguments)
        self._queue(lambda: kernel(grid, block, values, shared, next(self._seeds)))

    def _queue(self, call):
        captured = getattr(self._thread, "captured", None)
        call() if captured is None else captured.append(call)

    def multiply(self, out, a, b, shape, strides, transposed=(False, False)):
        m, n, k = shape
        ta, tb = transposed
        sizes = (m, n), ((k, m) if ta else (m, k)), ((n, k) if tb else (k, n))
        if not out.dtype == a.dtype == b.dtype or out.dtype not in (np.float32, np.float64):
            raise TypeError(f"matrices of {out.dtype}, {a.dtype} and {b.dtype}")
        matrices = [_matrix(*matrix) for matrix in zip((out, a, b), sizes, strides, strict=True)]

        def multiply():
            target, x, y = (matrix() for matrix in matrices)
            with np.errstate(all="ignore"):
                target[...] = (x.T if ta else x) @ (y.T if tb else y)

        self._queue(multiply)

    def capture(self, launches):
        self._outside_captures("another capture")
        self._thread.captured = calls = []
        try:
            launches()
        finally:
            self._thread.captured = None
        return Graph(calls)


def check(card):
    """Raise if somebody wrote outside of the card's arrays, those that are gone among them."""
    for memory in list(card._memories):
        memory.check("Somebody")
    if card._damage:
        raise RuntimeError("; ".join(card._damage))


class _OnHost:
    """Another library's array as NumPy wants to see it."""

    def __init__(self, x):
        self.x = x

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, **kwargs):
        return self.x.__dlpack__(stream=1)


def _matrix(array, shape, stride):
    """Return a function that gives a matrix at an array's beginning, by the numbers of a row."""
    rows, columns = shape
    if stride < max(1, columns):
        raise RuntimeError(f"cuBLAS failed with status 7: rows of {columns} every {stride}.")
    begin = array._address - array._memory.bytes.ctypes.data
    needed = ((rows - 1) * stride + columns) * array.itemsize if rows and columns else 0
    if begin + needed > array._memory.bytes.size:
        raise RuntimeError(f"A matrix of {shape}, rows {stride} apart, is larger than its memory.")
    memory, dtype, steps = array._held(), array.dtype, (stride * array.itemsize, array.itemsize)
    return lambda: np.ndarray(shape, dtype, memory().bytes, begin, steps)
