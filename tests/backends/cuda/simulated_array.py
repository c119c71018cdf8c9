"""What ``cupy.ndarray`` is on a card, in NumPy's memory: what CuPy refuses, this refuses."""
# SPDX-License-Identifier: BSD-3-Clause

import weakref

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

WALL = 128  # pairs of bytes


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

    def _held(self):
        """Return a function that gives the memory, which a graph does not keep alive."""
        memory = weakref.ref(self._memory)

        def alive():
            if memory() is None:
                raise RuntimeError("A graph was launched after an array of its was freed.")
            return memory()

        return alive

    @property
    def _address(self):
        """Where it begins."""
        return self._values.ctypes.data

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
        self._memory.card.synchronize()
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
