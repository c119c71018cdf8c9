"""The CPU's kernels, compiled for several instruction levels; the best that runs here is taken."""
# SPDX-License-Identifier: BSD-3-Clause

from importlib import import_module
from importlib.util import find_spec

try:
    from skbn.backends.cpu.processor import has_openmp, instruction_levels
except ModuleNotFoundError as error:
    raise ImportError(
        "The compiled part of skbn is missing. In the folder of skbn's sources Python finds these, "
        "and not what is installed: go to another folder, or compile here, `pip install -e .`."
    ) from error

# A compiler may have refused a level that the processor has.
LEVELS = [level for level in instruction_levels() if find_spec(f"{__name__}._executor_{level}")]


def executor_class(level):
    """Return the CPUExecutor compiled for an instruction level."""
    return import_module(f"{__name__}._executor_{level}").CPUExecutor


def models_class(level):
    """Return what trains many networks at once, compiled for an instruction level."""
    from skbn.backends.cpu.models import models_of  # only many networks need it

    return models_of(import_module(f"{__name__}._executor_{level}"))


def array_functions(level):
    """Return the module that normalizes arrays, compiled for an instruction level."""
    return import_module(f"{__name__}._arrays_{level}")


def description():
    """Return what the kernels were compiled for, by name."""
    from skbn.backends.cpu.threads import n_threads, openmp_library

    openmp = openmp_library() if has_openmp() else "no: built for one thread"
    return {"kernels": LEVELS[-1], "OpenMP": openmp, "threads": n_threads()}
