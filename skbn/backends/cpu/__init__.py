"""The CPU executor, compiled for several instruction levels from one source; the best that runs here is taken."""
# SPDX-License-Identifier: BSD-3-Clause

from importlib import import_module
from importlib.util import find_spec

from skbn.backends.cpu.processor import has_x86_64_v3

LEVELS = ["baseline"]
if has_x86_64_v3() and find_spec("skbn.backends.cpu._executor_x86_64_v3"):
    LEVELS.append("x86_64_v3")


def executor_class(level):
    """Return the CPUExecutor compiled for an instruction level."""
    return import_module(f"skbn.backends.cpu._executor_{level}").CPUExecutor


CPUExecutor = executor_class(LEVELS[-1])
