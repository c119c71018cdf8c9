"""A card that is not there: the kernels' sources as C++ (see shim.h), and NumPy for the rest.

``SimulatedCard`` has the methods of :class:`skbn.backends.cuda.card.Card`, and
``SimulatedArray`` refuses what CuPy's arrays refuse, so code that forgets where an array lives
fails here as it would on a card. Memory has walls, and is NaN before somebody writes to it.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ctypes
import hashlib
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from skbn.backends.cuda import sources

SHIM = Path(__file__).with_name("shim.h")
BUILT = Path(__file__).with_name("__pycache__")  # nobody looks for sources there, git ignores it
SANITIZED = "alignment,bounds,shift,integer-divide-by-zero,signed-integer-overflow,unreachable"
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-exceptions"),
    # The distribution's check of longjmp refuses to change stacks.
    *("-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"),
    f"-fsanitize={SANITIZED},float-cast-overflow,return",
)
WALL = 128  # pairs of bytes
BOUNDS = re.compile(r"__launch_bounds__\(([^,)]*)[^)]*\)\s*(\w+)\(")
LAUNCHING = threading.Lock()  # a compiled file runs one grid at a time


@cache
def compiler():
    """Return a C++ compiler and what it calls itself, or None and why there is none."""
    if sys.platform != "linux":
        return None, "the shim is for Linux: other linkers name sections differently"
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            version = subprocess.run([name, "--version"], capture_output=True, check=True).stdout
            return name, version.decode()
    return None, "there is no C++ compiler"


@cache
def library(text, names, dtype):
    """Compile the text of a kernel file for a type of numbers, once per machine, and load it."""
    program, version = compiler()
    assert program, version
    real = "float" if dtype == "float32" else "double"
    flags = [*FLAGS, f"-Dreal={real}"]
    bounds = {**dict.fromkeys(names, 1024), **{name: n for n, name in BOUNDS.findall(text)}}
    launchers = "".join(f"SHIM_KERNEL({name}, {n})\n" for name, n in bounds.items())
    code = f'#include "shim.h"\n#line 1 "kernels"\n{text}\n{launchers}'
    everything = "\0".join([version, *flags, SHIM.read_text("utf-8"), code])
    target = BUILT / f"kernels-{hashlib.sha256(everything.encode()).hexdigest()[:32]}.so"
    if not target.exists():
        BUILT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as folder:
            source, object_file, built = (
                Path(folder, f"kernels.{end}") for end in ("cpp", "o", "so")
            )
            source.write_text(code, encoding="utf-8")
            _run([program, *flags, f"-I{SHIM.parent}", "-c", source, "-o", object_file])
            # Without -fsanitize, which would ask for a library: shim.h has all of it.
            _run([program, "-shared", object_file, "-o", built])
            built.replace(target)  # tests may run in several processes
    return ctypes.CDLL(str(target))


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")


class Memory:
    """An allocation full of NaN between walls; or what another library has.

    Walls are signalling NaN: arithmetic changes its bits, so one that was read, computed with and
    written shows it.
    """

    def __init__(self, card, n_bytes, dtype, foreign=None):
        self.card, self.walls, self.bytes = card, (), foreign
        if foreign is None:
            self.wall = np.tile(
                np.array([0xB5 if dtype == np.float32 else 0xF5, 0xFF], np.uint8), WALL
            )
            buffer = np.full(n_bytes + 2 * self.wall.size + 16, 0xFF, np.uint8)
            begin = self.wall.size + -buffer.ctypes.data % 16
            end = begin + n_bytes
            self.bytes = buffer[begin:end]
            self.walls = (
                buffer[begin - self.wall.size : begin],
                buffer[end : end + self.wall.size],
            )
            for wall in self.walls:
                wall[:] = self.wall

    def check(self, what):
        """Raise if somebody wrote to a wall."""
        for side, wall in zip(("before", "behind"), self.walls, strict=False):
            if not np.array_equal(wall, self.wall):
                wall[:] = self.wall
                raise RuntimeError(f"{what} wrote {side} an array of {self.bytes.size} bytes.")

    def __del__(self):
        try:
            self.check("Somebody")
        except RuntimeError as error:
            self.card._damage.append(str(error))


def _bare(value):
    """Return what CuPy would compute with, as NumPy arrays; refuse what it would refuse."""
    if isinstance(value, SimulatedArray):
        return value._values
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(map(_bare, value))
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items()}
    return value


class SimulatedArray(NDArrayOperatorsMixin):
    """What ``cupy.ndarray`` is on a card; reductions give arrays without dimensions, as there."""

    __array_priority__ = 100

    def __init__(self, values, memory):
        self._values, self._memory = values, memory

    def _view(self, values):
        return SimulatedArray(values, self._memory)

    def _new(self, values):
        """Return results in memory of their own."""
        if isinstance(values, list | tuple):
            return type(values)(map(self._new, values))
        if not isinstance(values, np.ndarray | np.generic):
            return values
        return self._memory.card._filled(np.asarray(values))

    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    itemsize = property(lambda self: self._values.itemsize)
    ndim = property(lambda self: self._values.ndim)
    strides = property(lambda self: self._values.strides)
    flags = property(lambda self: self._values.flags)
    device = property(lambda self: self._memory.card.device)
    T = property(lambda self: self._view(self._values.T))

    @property
    def __cuda_array_interface__(self):
        host = self._values.__array_interface__
        return {**host, "version": 3, "stream": 1}

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if dl_device not in (None, (1, 0), (2, 0)) or (dl_device is None and stream is None):
            raise BufferError("unsupported device requested.")  # by NumPy, for one
        return (self.get() if dl_device == (1, 0) else self._values).__dlpack__()

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        known = np.generic | np.ndarray | int | float | complex | SimulatedArray
        if not all(isinstance(value, known) for value in (*inputs, *out)):
            return NotImplemented
        if out:
            getattr(ufunc, method)(*_bare(inputs), out=_bare(out), **_bare(kwargs))
            return out[0]
        return self._new(getattr(ufunc, method)(*_bare(inputs), **_bare(kwargs)))

    def __array_function__(self, function, types, args, kwargs):
        if not all(issubclass(t, SimulatedArray | np.ndarray) for t in types):
            return NotImplemented
        return self._new(function(*_bare(args), **_bare(kwargs)))

    def __getitem__(self, index):
        index = index.get() if isinstance(index, SimulatedArray) else index
        values = self._values[index]
        is_view = isinstance(values, np.ndarray) and np.may_share_memory(values, self._values)
        return self._view(values) if is_view else self._new(values)

    def __setitem__(self, index, value):
        self._values[_bare(index)] = _bare(value)

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __bool__(self):
        return bool(self._values)

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __repr__(self):
        return repr(self.get())

    def __reduce__(self):
        raise NotImplementedError("a simulated array is not for files")

    def __deepcopy__(self, memo):
        return self.copy()

    def get(self, stream=None, order="C", out=None, blocking=True):
        """Return a copy in NumPy's memory."""
        self._memory.card._outside_captures("a copy to the host")
        self._memory.check("Somebody")
        if out is None:
            return np.array(self._values, order=order)
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")
        if out.dtype != self.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        if out.shape != self.shape:
            raise ValueError(
                f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}"
            )
        out[...] = self._values
        return out

    def set(self, array, stream=None):
        """Copy a NumPy array over this one."""
        self._memory.card._outside_captures("a copy to the card")
        if not isinstance(array, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != array.dtype:
            raise TypeError(f"{array.dtype} array cannot be set to {self.dtype} array")
        if self.shape != array.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {array.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        self._values[...] = array

    def reshape(self, *shape, order="C", copy=None):
        """Return a view where there can be one, else a copy."""
        values = self._values.reshape(*shape, order=order)
        return (
            self._view(values) if np.may_share_memory(values, self._values) else self._new(values)
        )

    def ravel(self, order="C"):
        return self.reshape(-1, order=order)

    def transpose(self, *axes):
        return self._view(self._values.transpose(*axes))

    def item(self, *args):
        return self.get().item(*args)

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and self.dtype == dtype:
            return self
        with np.errstate(all="ignore"):
            return self._new(self._values.astype(dtype, order=order))


def _computed(name):
    def method(self, *args, **kwargs):
        return self._new(getattr(self._values, name)(*_bare(args), **_bare(kwargs)))

    return method


for _name in ("all", "any", "argmax", "copy", "max", "mean", "min", "sum"):
    setattr(SimulatedArray, _name, _computed(_name))


class Kernel:
    """A kernel of a file: its function, the kinds of its arguments, its launch bounds."""

    def __init__(self, text, names, name, dtype):
        loaded = library(text, names, dtype)
        self.name, self.lines = f"{name} ({dtype})", text.splitlines()
        self.function = getattr(loaded, f"launch_{name}")
        self.function.restype = ctypes.c_char_p
        self.function.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_uint64,
        ]
        describe = getattr(loaded, f"arguments_{name}")
        describe.restype = ctypes.c_char_p
        self.kinds = describe().decode().split()
        self.static_shared = loaded.static_shared()  # of the whole file: more than the kernel's
        self.most_threads = getattr(loaded, f"bounds_{name}")()

    def packed(self, arguments):
        """Check arguments as the kernel declares them; return functions that give their values."""
        if len(arguments) != len(self.kinds):
            raise TypeError(f"{self.name} takes {len(self.kinds)} arguments, got {len(arguments)}.")
        return [
            self._packed(*item) for item in enumerate(zip(arguments, self.kinds, strict=True), 1)
        ]

    def _packed(self, position, item):
        value, kind = item
        if kind[0] == "p":
            if value is None:
                return lambda: ctypes.c_void_p()
            if isinstance(value, SimulatedArray):
                dtype = value.dtype
                is_kind = f"p{'i' if dtype.kind in 'iub' else dtype.kind}{dtype.itemsize}" == kind
                if is_kind or kind[1] == "V" or dtype == np.uint8:
                    memory, address = weakref.ref(value._memory), value._values.ctypes.data
                    return lambda: _Pointer(memory(), address)
        elif kind == "i8" and type(value) in (int, np.int64):
            return lambda: ctypes.c_int64(value)
        elif kind == "f8" and type(value) in (float, np.float64):
            return lambda: ctypes.c_double(value)
        got = f"an array of {value.dtype}" if hasattr(value, "dtype") else repr(value)
        raise TypeError(f"Argument {position} of {self.name} is {kind}, got {got}.")

    def __call__(self, grid, block, values, shared, seed):
        values = [value() for value in values]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        with LAUNCHING:
            failure = self.function((ctypes.c_uint * 6)(*grid, *block), shared, pointers, seed)
            failure = failure and failure.decode()
        where = f"{self.name}, grid {grid}, block {block}"
        if failure:
            number = re.match(r"line (\d+)", failure)
            line = self.lines[int(number[1]) - 1].strip() if number else ""
            raise RuntimeError(f"{where}: {failure}: {line}")
        for position, value in enumerate(values, 1):
            if isinstance(value, _Pointer) and value.memory is not None:
                value.memory.check(f"{where}: somebody, through argument {position} perhaps,")


@cache
def compiled(file, name, dtype):
    """Return a kernel of the package."""
    return Kernel(sources.source(file), sources.kernel_names(file), name, dtype)


class _Pointer(ctypes.c_void_p):
    """The address of an array's first number; the memory must still be there."""

    def __init__(self, memory, address):
        super().__init__(address)
        if memory is None:
            raise RuntimeError("A graph was launched after an array of its was freed.")
        self.memory = memory


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
    shared_memory, multiprocessors, memory : int
        What it has; no result may depend on it.
    """

    def __init__(self, seed=0, *, shared_memory=101376, multiprocessors=4, memory=2**30):
        self.device, self.name = Device(0), "simulated card"
        self.multiprocessors, self.shared_memory = multiprocessors, shared_memory
        self._memory = memory
        self._seeds = itertools.count(seed << 32)
        self._captured = None
        self._damage = []  # what walls of memory that is gone showed
        self._memories = weakref.WeakSet()

    def at(self, number):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def _outside_captures(self, what):
        if self._captured is not None:
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
        return np.frombuffer(np.full(size * np.dtype(dtype).itemsize, 0xFF, np.uint8), dtype)

    def upload(self, array):
        target = self.empty(array.shape, array.dtype)
        self.write(target, array)
        return target

    def write(self, target, array):
        target.set(np.ascontiguousarray(array))

    def read(self, source, out=None):
        return source.get(out=out)

    def synchronize(self):
        self._outside_captures("waiting")

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
        if self._captured is None:
            call()
        else:
            self._captured.append(call)

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
        self._captured = calls = []
        try:
            launches()
        finally:
            self._captured = None
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
    begin = array._values.ctypes.data - array._memory.bytes.ctypes.data
    needed = ((rows - 1) * stride + columns) * array.itemsize if rows and columns else 0
    if begin + needed > array._memory.bytes.size:
        raise RuntimeError(f"A matrix of {shape}, rows {stride} apart, is larger than its memory.")
    memory, dtype = weakref.ref(array._memory), array.dtype

    def matrix():
        if memory() is None:
            raise RuntimeError("A graph was launched after an array of its was freed.")
        strides = stride * dtype.itemsize, dtype.itemsize
        return np.ndarray(shape, dtype, memory().bytes, begin, strides)

    return matrix
