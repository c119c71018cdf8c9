"""What computes on a device: executors walk a network's table, array functions normalize arrays.

``get_executor`` and ``get_array_functions`` are the only switches.
"""
# SPDX-License-Identifier: BSD-3-Clause

from functools import cache

# OpenMP comes with it: a limit counts that threadpoolctl set before the first fit.
from skbn.backends import cpu


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
    raise _unknown(device)


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
    raise _unknown(device)


def _unknown(device):
    """Return the error that says what is wrong with a device."""
    if device == "cuda":
        return NotImplementedError(
            "device='cuda' is not implemented in this version of skbn; use device=None or 'cpu'."
        )
    return ValueError(f"device must be None, 'cpu' or 'cuda', got {device!r}.")
