"""Build the compiled parts of skbn; everything that is not an extension is in pyproject.toml.

What computes are two Cython sources, each compiled under several names: once for any machine and,
on x86-64, once more for processors with AVX2 and once for those with AVX-512 (the levels that
compilers call x86-64-v3 and x86-64-v4). Each copy gets a build folder and so a generated C file
of its own, and ``skbn.backends.cpu`` chooses when it is imported. What the compiler can do is
found out by asking it: small programs are compiled and linked, for OpenMP and for the
instruction level. Platform names are not asked, because they do not know about cross-compiling,
universal macOS builds or a missing libomp.

The sources stay ``.pyx`` until an extension is built, so an sdist holds no generated C, and
asking for metadata runs no Cython.
"""
# SPDX-License-Identifier: BSD-3-Clause

import contextlib
import os
import sys
import tempfile
import threading
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "nonecheck": False,
    "cdivision": True,
}

# These follow Python's own flags on the command line, so this -O3 wins over its -O2 or -O3.
# -fno-math-errno and -fno-trapping-math let the loops vectorize and change no result; without
# them a step takes nearly twice as long. Contraction into fused multiply-adds is off because it
# would make the last bits depend on the compiler.
UNIX_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
MSVC_FLAGS = ["/O2"]

OPENMP_PROGRAM = """\
#include <omp.h>
#ifndef _OPENMP
#error "no OpenMP"
#endif
int main(void) {
    int n_threads = 0;
    #pragma omp parallel reduction(+:n_threads)
    n_threads += omp_get_num_threads() > 0;
    return n_threads == 0;
}
"""

X86_64_PROGRAM = """\
#if !defined(__x86_64__) && !defined(_M_X64)
#error "not x86-64"
#endif
int main(void) { return 0; }
"""


def openmp_candidates(compiler_type):
    """(compile flags, link flags) to try, in order."""
    if compiler_type == "msvc":
        return []  # threads meet by the atomics of gcc and clang (team.h), which MSVC has not
    candidates = [(["-fopenmp"], ["-fopenmp"])]
    if sys.platform == "darwin":
        # Apple's clang has the pragmas but neither the driver flag nor the library; the library
        # is Homebrew's or MacPorts' libomp, kept outside the default paths.
        for prefix in (None, "/opt/homebrew/opt/libomp", "/usr/local/opt/libomp", "/opt/local"):
            include = [f"-I{prefix}/include"] if prefix else []
            library = [f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib"] if prefix else []
            candidates.append(
                (["-Xpreprocessor", "-fopenmp", *include], [*library, "-lomp"]),
            )
    return candidates


# Instruction levels beyond the baseline that the kernels are compiled for, and their flags.
LEVELS = {
    "x86_64_v3": ["-march=x86-64-v3"],
    "x86_64_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}


@contextlib.contextmanager
def silenced(path):
    """Send what compilers print to a file: a refused probe is an answer, not an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    try:
        with open(path, "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        os.close(saved[0])
        os.close(saved[1])


class BuildExtensions(build_ext):
    """build_ext that asks the compiler what it can do, and runs Cython only when it builds."""

    # Cython keeps global state and holds the GIL anyway: one at a time. The C compiler of one
    # extension runs meanwhile beside Cython for the next.
    cython_lock = threading.Lock()

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extensions(self):
        compiler_type = self.compiler.compiler_type
        flags = MSVC_FLAGS if compiler_type == "msvc" else UNIX_FLAGS
        if compiler_type != "msvc" and not self.debug:
            flags = [*flags, "-g0"]  # Python's own -g would make the wheel five times as large

        for openmp_compile, openmp_link in openmp_candidates(compiler_type):
            if self.compiler_accepts(OPENMP_PROGRAM, openmp_compile, openmp_link):
                break
        else:
            openmp_compile, openmp_link = [], []
            self.warn("skbn: no OpenMP found: built for one thread")

        for level, level_flags in LEVELS.items():
            # MSVC has other flags and no vector types, which is what the levels are for.
            if compiler_type == "msvc" or not self.compiler_accepts(
                X86_64_PROGRAM, level_flags, []
            ):
                self.extensions[:] = [ext for ext in self.extensions if ext.level != level]

        for ext in self.extensions:
            level_flags = LEVELS.get(ext.level, [])
            ext.extra_compile_args = [*flags, *openmp_compile, *level_flags]
            ext.extra_link_args = [*openmp_link]
        super().build_extensions()

    def build_extension(self, ext):
        from Cython.Build import cythonize

        with self.cython_lock:
            (generated,) = cythonize(
                [ext],
                build_dir=f"build/cython/{ext.level}",
                compiler_directives=DIRECTIVES,
                force=self.force,
            )
        ext.sources = generated.sources
        # Only now: cythonize would copy what an extension depends on into the build folder.
        ext.depends = ["setup.py", *map(str, sorted(Path("skbn").rglob("*.h")))]
        super().build_extension(ext)

    def compiler_accepts(self, program, compile_flags, link_flags):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                with silenced(Path(folder, "log")):
                    objects = self.compiler.compile(
                        [str(source)], output_dir=folder, extra_postargs=compile_flags
                    )
                    self.compiler.link_executable(
                        objects, "probe", output_dir=folder, extra_postargs=link_flags
                    )
            except (CompileError, LinkError):
                return False
        return True


def extension(name, source, level):
    ext = Extension(
        name,
        [source],
        include_dirs=["skbn/backends"],
    )
    ext.level = level
    return ext


# Compiled at every level.
KERNELS = {
    "executor": "skbn/backends/cpu/executor.pyx",
    "arrays": "skbn/backends/cpu/arrays.pyx",
}

setup(
    cmdclass={"build_ext": BuildExtensions},
    ext_modules=[
        extension("skbn._shuffle", "skbn/_shuffle.pyx", "baseline"),
        extension("skbn.backends.records", "skbn/backends/records.pyx", "baseline"),
        extension("skbn.backends.cpu.processor", "skbn/backends/cpu/processor.pyx", "baseline"),
        *(
            extension(f"skbn.backends.cpu._{name}_{level}", source, level)
            for name, source in KERNELS.items()
            for level in ("baseline", *LEVELS)
        ),
    ],
)
