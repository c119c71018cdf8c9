"""Every kernel compiles for every card, and keeps what it computes with in registers.

NVRTC and ptxas do that without a card. NVRTC comes with ``pip install nvidia-cuda-nvrtc-cu12``;
nvcc is asked too where there is one.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ctypes
import importlib.metadata
import re
import shutil
import subprocess
from functools import cache

import pytest

from skbn.backends.cuda import sources

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

# What CuPy tells NVRTC, besides the options that it is given; what ptxas shall tell us; and no
# remark on functions of a header that one file has no use for.
CUPYS = ("-ftz=true", "--device-as-default-execution-space")
OURS = ("--ptxas-options=-v", "-diag-suppress=177")

# A multiprocessor has 65536 registers: with 128 a thread it holds 512 threads, enough to hide the
# latency of memory. A kernel that is to have more says so here.
MOST_REGISTERS = 128
MORE_REGISTERS = {"train_epoch": 255}  # alone on its multiprocessor, whose shared memory it fills

DISTRIBUTIONS = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'(.*?)(?=Compiling entry|\Z)", re.S)
LOCAL = re.compile(
    r"Function properties for (\w+)\s+(?:ptxas\s*\.)?\s*"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)


@cache
def nvrtc():
    """Return NVRTC's library, or None."""
    for distribution in DISTRIBUTIONS:
        try:
            files = importlib.metadata.files(distribution) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if re.fullmatch(r"libnvrtc\.so\.\d+|nvrtc64_\d+_0\.dll", file.name):
                return ctypes.CDLL(str(file.locate()))
    return None


def compiled_by_nvrtc(code, dtype, architecture):
    """Compile a source; return NVRTC's status and all that it and ptxas say."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    if library is None:
        pytest.skip("NVRTC is not installed")
    options = (*sources.options(dtype), *CUPYS, f"-arch={architecture}", *OURS)
    packed = (ctypes.c_char_p * len(options))(*map(str.encode, options))
    arguments = code.encode(), b"kernels.cu", 0, None, None
    assert library.nvrtcCreateProgram(ctypes.byref(program), *arguments) == 0
    status = library.nvrtcCompileProgram(program, len(options), packed)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return status, log.value.decode()


def complaints(log, names):
    """Return what is wrong with kernels, by what ptxas says of them."""
    found = [line for line in log.splitlines() if re.search(r"\b(warning|error)\b", line)]
    entries = ENTRY.findall(log)
    if {name for name, _, _ in entries} != set(names):
        found.append(f"compiled {sorted(name for name, *_ in entries)}, not {sorted(names)}")
    for name, frame, stores, loads in LOCAL.findall(log):
        if frame != "0":
            found.append(f"{name} has {frame} bytes in local memory")
        if stores != "0" or loads != "0":
            found.append(f"{name} spills registers: stores {stores} bytes, loads {loads}")
    for name, architecture, properties in entries:
        registers = re.search(r"Used (\d+) registers", properties)
        most = MORE_REGISTERS.get(name, MOST_REGISTERS)
        if not registers or int(registers[1]) > most:
            used = registers and registers[1]
            found.append(f"{name} uses {used} registers on {architecture}, not at most {most}")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", sources.files())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nvrtc_compiles_without_a_complaint(file, dtype, architecture):
    status, log = compiled_by_nvrtc(sources.source(file), dtype, architecture)
    assert status == 0, log
    assert not complaints(log, sources.kernel_names(file))


@pytest.mark.parametrize("file", sources.files())
def test_nvcc_compiles_without_a_complaint(file, tmp_path):
    if not shutil.which("nvcc"):
        pytest.skip("there is no nvcc")
    run = {"capture_output": True, "text": True, "check": False}
    known = subprocess.run(["nvcc", "--list-gpu-code"], **run).stdout.split()
    # The oldest and the newest; a file takes seconds.
    codes = [name for name in (ARCHITECTURES[0], ARCHITECTURES[-1]) if name in known]
    targets = [f"-gencode=arch=compute_{code[3:]},code={code}" for code in codes]
    (tmp_path / f"{file}.cu").write_text(sources.source(file), encoding="utf-8")
    options = (*sources.options("float32"), "-ftz=true", *targets, *OURS)
    command = ["nvcc", "-fatbin", *options, f"{file}.cu", "-o", "kernels.fatbin"]
    done = subprocess.run(command, cwd=tmp_path, **run)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert not complaints(log, sources.kernel_names(file))


def test_every_kernel_says_how_many_threads_it_is_for():
    # Without bounds a kernel gets as many registers as it likes and may then not be launched.
    for file in sources.files():
        text = sources.source(file)
        n_kernels = len(re.findall(r"\b__global__\b", text))
        assert len(sources.kernel_names(file)) == n_kernels > 0
        assert len(re.findall(r"__global__ void\s+__launch_bounds__\(", text)) == n_kernels


# The check itself.

HEAD = 'extern "C" __global__ void __launch_bounds__({}) test(real *x, const int *index)'
MANY_NUMBERS = """{
    real v[96];
    #pragma unroll
    for (int k = 0; k < 96; k++) v[k] = x[k * 1024 + threadIdx.x];
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        __syncthreads();
        #pragma unroll
        for (int k = 0; k < 96; k++) v[k] = fma(v[k], v[(k * 37 + 11) % 96], v[(k + 1) % 96]);
    }
    #pragma unroll
    for (int k = 0; k < 96; k++) x[k * 1024 + threadIdx.x] = v[k];
}"""
MISTAKES = {
    "spills registers": HEAD.format(1024) + MANY_NUMBERS,
    "registers on sm_80, not at most 128": HEAD.format(128) + MANY_NUMBERS,
    "in local memory": HEAD.format(128)
    + "{ real v[32]; for (int k = 0; k < 32; k++) v[index[k]] = x[k];\n"
    "for (int k = 0; k < 32; k++) x[k] = v[index[32 + k]]; }",
    "warning": HEAD.format(128) + "{ int k; x[0] = k; }",
    "compiled ['other', 'test'], not ['test']": HEAD.format(128)
    + "{}\n"
    + HEAD.format(128).replace("test", "other")
    + "{}",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake):
    status, log = compiled_by_nvrtc(MISTAKES[mistake], "float64", "sm_80")
    assert status == 0, log
    assert any(mistake in complaint for complaint in complaints(log, ["test"]))


def test_ptxas_refuses_more_than_48_kb_of_static_shared_memory():
    body = "{{ __shared__ real s[{}]; s[index[0]] = 1; x[0] = s[index[1]]; }}"
    for n, fits in ((6144, True), (6145, False)):
        code = HEAD.format(128) + body.format(n)
        assert (compiled_by_nvrtc(code, "float64", "sm_90")[0] == 0) == fits
