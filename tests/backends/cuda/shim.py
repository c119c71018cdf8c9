"""Kernels on this processor: their sources compiled as C++ behind shim.h, their launches checked.

What a card would take without a word, and compute nonsense with, is an error here: arguments of the
wrong kind, too many threads, memory that is gone.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

import numpy as np
from simulated_array import SimulatedArray

from skbn.backends.cuda import sources

HERE = Path(__file__).parent
BUILT = HERE / "__pycache__"  # nobody looks for sources there, git ignores it
SANITIZED = "alignment,bounds,shift,integer-divide-by-zero,signed-integer-overflow,unreachable"
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-exceptions"),
    # The distribution's check of longjmp refuses to change stacks.
    *("-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"),
    f"-fsanitize={SANITIZED},float-cast-overflow,return",
)
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
    everything = "\0".join(
        [version, *flags, *(path.read_text("utf-8") for path in sorted(HERE.glob("*.h"))), code]
    )
    target = BUILT / f"kernels-{hashlib.sha256(everything.encode()).hexdigest()[:32]}.so"
    if not target.exists():
        BUILT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as folder:
            source, object_file, built = (
                Path(folder, f"kernels.{end}") for end in ("cpp", "o", "so")
            )
            source.write_text(code, encoding="utf-8")
            _run([program, *flags, f"-I{HERE}", "-c", source, "-o", object_file])
            # Without -fsanitize, which would ask for a library: shim.h has all of it.
            _run([program, "-shared", object_file, "-o", built])
            built.replace(target)  # tests may run in several processes
    return ctypes.CDLL(str(target))


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")


class _Pointer(ctypes.c_void_p):
    """An address, and the memory that it is in."""

    def __init__(self, address, memory):
        super().__init__(address)
        self.memory = memory


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
                    memory, address = value._held(), value._address
                    return lambda: _Pointer(address, memory())
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
            if isinstance(value, _Pointer):
                value.memory.check(f"{where}: somebody, through argument {position} perhaps,")


@cache
def compiled(file, name, dtype):
    """Return a kernel of the package."""
    return Kernel(sources.source(file), sources.kernel_names(file), name, dtype)
