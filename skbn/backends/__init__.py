"""Executors walk a network's table on a device; ``get_executor`` is the only switch."""
# SPDX-License-Identifier: BSD-3-Clause


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
        from skbn.backends.cpu import CPUExecutor

        return CPUExecutor
    if device == "reference":
        from skbn.backends.reference import ReferenceExecutor

        return ReferenceExecutor
    if device == "cuda":
        raise NotImplementedError(
            "device='cuda' is not implemented in this version of skbn; use device=None or 'cpu'."
        )
    raise ValueError(f"device must be None, 'cpu' or 'cuda', got {device!r}.")
