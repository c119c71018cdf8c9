"""The kernels' sources: real .cu files, each handed to a compiler as one text.

Includes are put in here, because CuPy's cache of compiled kernels looks at the text alone: it
would go on with an old header after an upgrade.
"""
# SPDX-License-Identifier: BSD-3-Clause

import re
from functools import cache
from pathlib import Path

import numpy as np

KERNELS = Path(__file__).parent / "kernels"
HEADERS = (KERNELS, KERNELS.parents[1])  # the second has records.h, which the CPU shares

# What CuPy tells NVRTC, and we tell whoever compiles a kernel.
OPTIONS = ("-std=c++17",)

_FIELD = re.compile(r"^    (?:const )?(\w+) ([*\w, ]+);", re.MULTILINE)
_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)
_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(')


def files():
    """Return the names of all files with kernels, without their ending."""
    return sorted(path.stem for path in KERNELS.glob("*.cu"))


@cache
def source(file):
    """Return the text of a file with kernels, every header where it is first asked for."""
    seen = set()

    def read(name):
        if name in seen:
            return ""
        seen.add(name)
        path = next(folder / name for folder in HEADERS if (folder / name).exists())
        return _INCLUDE.sub(lambda match: read(match[1]), path.read_text(encoding="utf-8"))

    return read(f"{file}.cu")


@cache
def kernel_names(file):
    """Return the kernels of a file."""
    return tuple(_KERNEL.findall(source(file)))


def options(dtype):
    """Return the compiler's options for a type of numbers."""
    return (*OPTIONS, f"-Dreal={'float' if dtype == 'float32' else 'double'}")


@cache
def record(header, name):
    """Return the NumPy dtype of a struct whose fields are pointers, int64_t and double."""
    text = (KERNELS / header).read_text(encoding="utf-8")
    fields = []
    for kind, names in _FIELD.findall(text[: text.index(f"}} {name};")]):
        for field in names.split(","):
            is_number = kind == "double" and "*" not in field
            fields.append((field.strip(" *"), np.float64 if is_number else np.int64))
    return np.dtype(fields)
