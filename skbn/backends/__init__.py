"""What computes on a device: executors walk a network's table, models are many of them at once,
array functions normalize arrays.

``get_executor``, ``get_models`` and ``get_array_functions`` are the only switches.
``card_number`` says which arrays lie on a card, without a look at any library but their own.
"""
# SPDX-License-Identifier: BSD-3-Clause

from functools import cache

import numpy as np

# Small, and early: a fork must be noticed from the start, and limits that are set on OpenMP reach
# only what is loaded. Kernels are loaded when something computes.
from skbn.backends import cpu, cuda
from skbn.backends.cpu import threads  # noqa: F401

ON_CARD = (2, 13)  # DLPack's kinds of memory: a card's own, and what it shares with the processor


def card_number(array):
    """Return the number of the card that an array lies on, None for anything else."""
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
        return None
    kind, number = array.__dlpack_device__()
    return int(number) if kind in ON_CARD else None


def get_card(number):
    """Return the card of this number; raise if there is no CuPy or no card at all."""
    return cuda.get_card(number)


def non_finite(array):
    """Return whether NaN, and whether infinity, is in a matrix on a card."""
    return cuda.non_finite(array)


def description():
    """Return what computes here, by name: kernels, OpenMP, threads, CuPy and its card."""
    return {**cpu.description(), **cuda.description()}


def get_executor(device):
    """Return the executor class for a device.

    Parameters
    ----------
    device : {None, "cpu", "reference", "cuda"}
        None is "cpu". "reference" is the NumPy executor that judges the others.

    Returns
    -------
    type
        A class with the interface of :class:`skbn.backends.reference.ReferenceExecutor`.
    """
    if device is None or device == "cpu":
        return cpu.executor_class(cpu.LEVELS[-1])
    if device == "reference":
        from skbn.backends.reference import ReferenceExecutor

        return ReferenceExecutor
    if device == "cuda":
        return cuda.executor_class()
    raise _unknown(device)


def get_models(device):
    """Return what trains many small networks at once on a device.

    Parameters
    ----------
    device : {None, "cpu", "reference", "cuda"}
        As for :func:`get_executor`.

    Returns
    -------
    type
        A class with the interface of :class:`skbn.backends.models.Models`.
    """
    if device is None or device == "cpu":
        return cpu.models_class(cpu.LEVELS[-1])
    if device == "cuda":
        return cuda.models_class()
    from skbn.backends.models import models_of

    return models_of(get_executor(device))


@cache
def get_array_functions(device):
    """Return the module that normalizes arrays on a device.

    Parameters
    ----------
    device : {None, "cpu", "reference", "cuda"}
        None is "cpu". "reference" is the NumPy module that judges the others.

    Returns
    -------
    module
        A module with the functions of :mod:`skbn.backends.reference_arrays`.
    """
    if device is None or device == "cpu":
        return cpu.array_functions(cpu.LEVELS[-1])
    if device == "reference":
        from skbn.backends import reference_arrays

        return reference_arrays
    if device == "cuda":
        return cuda.array_functions()
    raise _unknown(device)


def _unknown(device):
    """Return the error for a device that does not exist."""
    return ValueError(f"device must be None, 'cpu' or 'cuda', got {device!r}.")
