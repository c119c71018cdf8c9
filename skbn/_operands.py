"""What array functions compute with: arrays in NumPy's memory or on a card.

Two classes of the same methods. The processor takes whatever NumPy makes an array of; a card takes
what lies on it, and of small vectors (scale, shift, statistics) NumPy's as well, but it never
copies data from or to the processor.
"""
# SPDX-License-Identifier: BSD-3-Clause

from functools import cached_property

import numpy as np
from scipy.sparse import issparse

from skbn._devices import on_host
from skbn.backends import card_number, get_array_functions, get_card
from skbn.backends.memory import empty_like


def operands_like(x):
    """Return the operands for where an array lies."""
    if isinstance(x, np.ndarray):
        return PROCESSOR
    number = card_number(x)
    return PROCESSOR if number is None else OnCard(number)


class OnProcessor:
    """Operands in NumPy's memory."""

    empty_like = staticmethod(empty_like)

    def native(self, x):
        """Return an array of a result as NumPy's; None stays None."""
        return x if x is None or isinstance(x, np.ndarray) else on_host(x)

    @property
    def functions(self):
        """The array functions that compute here."""
        return get_array_functions(None)

    def array(self, x, name, dtype=None):
        """Return x as an aligned array of native float32 or float64, itself if it is one."""
        if not isinstance(x, np.ndarray) and issparse(x):
            raise TypeError(
                f"Sparse data was passed for {name}, but dense data is required. Use '.toarray()' "
                "to convert to a dense numpy array."
            )
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            _refuse(x.dtype, name)
            x = x.astype(np.float64)  # objects and strings of numbers, or NumPy's own error
        dtype = _type_of_numbers(x) if dtype is None else dtype
        if x.dtype != dtype or not x.flags.aligned:
            x = x.astype(dtype)
        return x

    def vector(self, value, name, shape):
        """Return statistics or parameters as float64 in C order; one number is for all entries."""
        value = self.array(value, name, np.dtype(np.float64))
        if value.shape != shape and value.size != 1:
            raise ValueError(f"{name} has shape {value.shape}; the axes kept have shape {shape}.")
        return np.asarray(value if value.shape == shape else np.full(shape, value), order="C")

    def packed(self, x, axes):
        """Return x, or a copy in C order where neither columns nor rows lie side by side.

        Kernels would have to collect the numbers anew in each of their passes.
        """
        if x.flags.c_contiguous:
            return x
        for kept in (True, False):
            axis = max(
                (a for a in range(x.ndim) if (a in axes) == kept and x.shape[a] > 1), default=-1
            )
            if axis >= 0 and x.strides[axis] == x.itemsize:
                return x
        return np.ascontiguousarray(x)

    def output(self, out, x):
        """Return out if x fits into it, or a new array laid out as x is."""
        if out is None:
            return empty_like(x)
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be a NumPy array, got {type(out).__name__}.")
        if out.shape != x.shape or out.dtype != x.dtype or not out.flags.aligned:
            raise ValueError(
                f"out must be an aligned array of shape {x.shape} and type {x.dtype}, got shape "
                f"{out.shape} and type {out.dtype}{'' if out.flags.aligned else ', unaligned'}."
            )
        if not out.flags.writeable:
            raise ValueError("out is read-only.")
        return out

    def overlap(self, out, x):
        """Return whether two arrays may have memory in common."""
        return isinstance(out, np.ndarray) and np.may_share_memory(out, x, max_work=1)

    def address(self, x):
        """Return where the first number of an array lies."""
        return x.__array_interface__["data"][0]

    def check_overflow(self, var, x, axes):
        """Refuse finite numbers whose variance is not: silence would make zeros or NaN of them."""
        if np.isfinite(var).all():
            return
        reduced = tuple(axis for axis in range(x.ndim) if axis not in axes)
        _refuse_overflow(var, np.isfinite(x).all(axis=reduced).reshape(-1))


PROCESSOR = OnProcessor()


class OnCard:
    """Operands on a card, of which it must be the current one.

    Parameters
    ----------
    number : int
        Which card, as CUDA counts them.
    """

    def __init__(self, number):
        self.number = number

    @cached_property
    def card(self):
        """The card."""
        return get_card(self.number)

    @property
    def functions(self):
        """The array functions that compute here."""
        return get_array_functions("cuda")

    def native(self, x):
        """Return an array of this card as kernels know it; None stays None."""
        return x if x is None or self.card.is_array(x) else self.card.from_dlpack(x)

    def array(self, x, name, dtype=None):
        """Return x, which must lie here, as an array of float32 or float64, itself if it is one."""
        number = card_number(x)
        if number != self.number:
            place = "the processor" if number is None else f"cuda:{number}"
            raise ValueError(
                f"Input arrays use different devices: {name} lies on {place}, x on "
                f"cuda:{self.number}."
            )
        x = self.native(x)
        _refuse(x.dtype, name)
        return x.astype(_type_of_numbers(x) if dtype is None else dtype, copy=False)

    def vector(self, value, name, shape):
        """Return statistics or parameters as float64 in C order; those of NumPy are uploaded."""
        if card_number(value) is None:
            return self._uploaded(PROCESSOR.vector(value, name, shape))
        value = self.array(value, name, np.dtype(np.float64))
        if value.shape != shape:
            return self._uploaded(PROCESSOR.vector(self.card.read(value), name, shape))
        return value if value.flags.c_contiguous else value.copy()

    def _uploaded(self, value):
        return self.card.upload(value.reshape(-1)).reshape(value.shape)

    def empty_like(self, x):
        """Return an array of the shape, type and layout of x, without its gaps."""
        order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
        out = self.card.empty([x.shape[axis] for axis in order], x.dtype)
        return out.transpose(np.argsort(order).tolist())

    def packed(self, x, axes):
        """Return x, or a copy without gaps where kernels cannot read it as it lies."""
        return self.functions.packed(x, axes)

    def output(self, out, x):
        """Return out if x fits into it, or a new array laid out as x is."""
        if out is None:
            return self.empty_like(x)
        if card_number(out) != self.number:
            raise TypeError(
                f"out must be an array on cuda:{self.number}, where x lies, got "
                f"{type(out).__name__}."
            )
        out = self.native(out)
        if out.shape != x.shape or out.dtype != x.dtype:
            raise ValueError(
                f"out must be an aligned array of shape {x.shape} and type {x.dtype}, got shape "
                f"{out.shape} and type {out.dtype}."
            )
        return out

    def overlap(self, out, x):
        """Return whether two arrays may have memory in common."""
        if card_number(out) != self.number:
            return False
        first, second = _Addresses(self.native(out)), _Addresses(x)
        return np.may_share_memory(np.asarray(first), np.asarray(second), max_work=1)

    def address(self, x):
        """Return where the first number of an array lies."""
        return x.__cuda_array_interface__["data"][0]

    def check_overflow(self, var, x, axes):
        """Refuse finite numbers whose variance is not; those of float32 need no look."""
        if x.dtype == np.float32:
            return
        var = self.card.read(var)
        if not np.isfinite(var).all():
            _refuse_overflow(var, ~self.functions.find_non_finite(x, axes).any(axis=0))


class _Addresses:
    """Memory of a card as NumPy would address it: to be compared, never to be read."""

    def __init__(self, x):
        self.__array_interface__ = {
            key: x.__cuda_array_interface__[key] for key in ("data", "shape", "strides", "typestr")
        } | {"version": 3}


def weights_on_host(sample_weight):
    """Return the weights of samples as float64 of NumPy's, where they are checked; None stays."""
    if sample_weight is None:
        return None
    return PROCESSOR.array(on_host(sample_weight), "sample_weight", np.dtype(np.float64))


def _type_of_numbers(x):
    return np.float32 if x.dtype.type is np.float32 else np.float64


def _refuse(dtype, name):
    """Raise for what are no numbers."""
    if dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{name} has dtype {dtype}.")
    if dtype.kind in "mMV":
        raise ValueError(f"{name} has dtype {dtype}, expected numbers.")


def _refuse_overflow(var, is_finite):
    overflowed = np.flatnonzero(is_finite & ~np.isfinite(var))
    if overflowed.size:
        raise ValueError(
            f"The variance of finite values overflows float64, first in entry {overflowed[0]} of "
            "the axes kept. Scale the input down."
        )
