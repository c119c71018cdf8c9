"""What stands between the package and CuPy, as far as it shows without a card.

CuPy itself where it is installed: all that is asked of it exists, and compiles our sources. Else a
stand-in of a few lines: what cuBLAS is told is what it must be told.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ast
import ctypes
import inspect
import sys
from functools import reduce
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from skbn.backends.cuda import card as cards
from skbn.backends.cuda import sources


@pytest.fixture
def forget():
    """What ``card`` remembers of CuPy is forgotten before and after."""

    def clear():
        cards._cupy.cache_clear()
        cards._card.cache_clear()

    clear()
    yield
    clear()


def test_without_cupy_the_error_says_what_to_install(monkeypatch, forget):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"pip install 'skbn\[cuda13\]'.*'skbn\[cuda12\]'"):
        cards.current()


# With CuPy and no card.


def test_without_a_card_the_error_says_so(forget):
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.is_available():
        pytest.skip("there is a card")
    message = r"needs an NVIDIA card and its driver; CuPy finds none \(cudaError.*device='cpu'"
    with pytest.raises(RuntimeError, match=message):
        cards.current()


def asked_of_cupy():
    """Yield every dotted name that card.py takes from CuPy."""
    for node in ast.walk(ast.parse(inspect.getsource(cards))):
        names = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            names.append(node.id)
        names = [name for name in reversed(names) if name != "self"]
        if len(names) > 1 and names[0] in ("cupy", "_cupy"):
            yield tuple(names[1:])


def test_all_that_is_asked_of_cupy_exists():
    cupy = pytest.importorskip("cupy")
    names = set(asked_of_cupy())
    assert {("RawModule",), ("cuda", "runtime", "getDevice"), ("from_dlpack",)} <= names
    for path in names:
        assert reduce(getattr, path, cupy) is not None


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("RawModule", ["get_function"]),
        ("RawKernel", ["kernel", "shared_size_bytes", "max_dynamic_shared_size_bytes"]),
        ("ndarray", ["get", "set", "data", "reshape", "shape", "dtype", "nbytes"]),
        ("cuda.MemoryPointer", ["ptr"]),
        ("cuda.MemoryPool", ["free_bytes"]),
        ("cuda.Device", ["attributes", "__enter__", "__exit__"]),
        ("cuda.Stream", ["begin_capture", "end_capture", "synchronize", "__enter__"]),
        ("cuda.Graph", ["launch"]),
        ("cuda.Function", ["__call__"]),
    ],
)
def test_what_cupy_returns_has_what_is_asked_of_it(owner, names):
    cupy = pytest.importorskip("cupy")
    cls = reduce(getattr, owner.split("."), cupy)
    assert not [name for name in names if not hasattr(cls, name)]


def test_cublas_is_found_by_cudas_own_package():
    pathfinder = pytest.importorskip("cuda.pathfinder")
    assert list(inspect.signature(pathfinder.load_nvidia_dynamic_lib).parameters) == ["libname"]
    assert "abs_path" in inspect.signature(pathfinder.LoadedDL).parameters


@pytest.mark.parametrize("file", sources.files())
def test_cupys_compiler_takes_our_sources(file):
    pytest.importorskip("cupy")
    from cupy.cuda import compiler, nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:  # whatever CuPy's finder of libraries raises
        pytest.skip(f"CuPy finds no NVRTC: {error}")
    # For linking, since any other way asks the driver for the card.
    options = (*sources.options("float32"), "-ftz=true", "-dlto")
    code, _ = compiler.compile_using_nvrtc(sources.source(file), options, "90", method="lto")
    assert len(code) > 100


# With a stand-in.


class CuBLAS:
    """A library that does what cuBLAS's manual says, in its words: columns are contiguous."""

    def __init__(self):
        self.calls = []

    def _note(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            return 0

        return call

    def __getattr__(self, name):
        if name in ("cublasSgemm_v2", "cublasDgemm_v2"):
            number = ctypes.c_float if name == "cublasSgemm_v2" else ctypes.c_double
            return lambda *arguments: self._gemm(number, *arguments)
        return self._note(name)

    def _gemm(self, number, handle, transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        for kind, values in [
            (ctypes.c_int, (transa, transb, m, n, k, lda, ldb, ldc)),
            (ctypes.c_void_p, (handle, a, b, c)),
            (number, (alpha._obj, beta._obj)),
        ]:
            assert all(type(value) is kind for value in values)
        transa, transb, m, n, k, lda, ldb, ldc = (
            value.value for value in (transa, transb, m, n, k, lda, ldb, ldc)
        )

        def matrix(pointer, rows, columns, stride):
            if stride < max(1, rows):
                return None
            size = stride * (columns - 1) + rows
            numbers = np.frombuffer((number * size).from_address(pointer.value), number)
            steps = numbers.itemsize, stride * numbers.itemsize
            return np.lib.stride_tricks.as_strided(numbers, (rows, columns), steps)

        x = matrix(a, *((k, m) if transa else (m, k)), lda)
        y = matrix(b, *((n, k) if transb else (k, n)), ldb)
        out = matrix(c, m, n, ldc)
        if x is None or y is None or out is None:
            return 7  # CUBLAS_STATUS_INVALID_VALUE
        before = beta._obj.value * out if beta._obj.value else 0
        out[...] = alpha._obj.value * ((x.T if transa else x) @ (y.T if transb else y)) + before
        return 0


class Array(np.ndarray):
    """A NumPy array that names its place as CuPy's do."""

    def __new__(cls, values):
        return np.array(values).view(cls)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


@pytest.fixture
def stand_in(monkeypatch, forget):
    """A CuPy without a card: streams that note what happens, and cuBLAS."""
    noted, current = [], [SimpleNamespace(ptr=0)]

    class Stream:
        ptr = 77

        def __init__(self, non_blocking=False):
            noted.append(("stream", non_blocking))

        def __enter__(self):
            current.append(self)

        def __exit__(self, *exception):
            current.pop()

        def begin_capture(self):
            noted.append("begin")

        def end_capture(self):
            noted.append("end")
            return SimpleNamespace(launch=lambda: noted.append("launch"))

    class Device:
        attributes = {"MaxSharedMemoryPerBlockOptin": 101376}

        def __init__(self, number):
            self.id = number

    cupy, pathfinder, blas = ModuleType("cupy"), ModuleType("cuda.pathfinder"), CuBLAS()
    runtime = SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceProperties=lambda number: {"name": b"no card"},
        CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {}),
    )
    cupy.cuda = SimpleNamespace(
        runtime=runtime, Device=Device, Stream=Stream, get_current_stream=lambda: current[-1]
    )
    cupy.empty = lambda shape, dtype: Array(np.empty(shape, dtype))
    pathfinder.load_nvidia_dynamic_lib = lambda name: SimpleNamespace(abs_path=f"lib{name}")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    opened = {"libcublas": blas}
    monkeypatch.setattr(cards.ctypes, "CDLL", opened.__getitem__)
    return SimpleNamespace(card=cards.current(), blas=blas, noted=noted)


def test_there_is_one_object_for_a_card(stand_in):
    card = stand_in.card
    assert card is cards.current()
    assert (card.name, card.shared_memory) == ("no card", 101376)


@pytest.mark.parametrize("transposed", [(a, b) for a in (False, True) for b in (False, True)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("more", [(0, 0, 0), (2, 3, 5)])
def test_products_are_those_of_matrices_in_c_order(stand_in, seed, transposed, dtype, more):
    rng = np.random.RandomState(seed)
    m, n, k = 3, 4, 5
    shapes = (m, n), ((k, m) if transposed[0] else (m, k)), ((n, k) if transposed[1] else (k, n))
    strides = tuple(shape[1] + extra for shape, extra in zip(shapes, more, strict=True))
    out, a, b = (
        Array(rng.normal(size=(shape[0], stride)).astype(dtype))
        for shape, stride in zip(shapes, strides, strict=True)
    )
    before = np.array(out)
    stand_in.card.multiply(out, a, b, (m, n, k), strides, transposed)
    x, y = (np.asarray(v)[:, : shape[1]] for v, shape in zip((a, b), shapes[1:], strict=True))
    expected = (x.T if transposed[0] else x) @ (y.T if transposed[1] else y)
    np.testing.assert_allclose(out[:, :n], expected, rtol=1e-5)
    np.testing.assert_array_equal(out[:, n:], before[:, n:])


def test_a_status_of_cublas_is_an_error(stand_in):
    a = Array(np.ones((4, 4)))
    with pytest.raises(RuntimeError, match="cuBLAS failed with status 7"):
        stand_in.card.multiply(Array(np.ones((4, 4))), a, a, (4, 4, 4), (3, 4, 4))


def test_a_graph_holds_the_products_of_its_stream(stand_in):
    a, out = Array(np.ones((2, 2))), Array(np.zeros((2, 2)))

    def multiply():
        stand_in.card.multiply(out, a, a, (2, 2, 2), (2, 2, 2))

    multiply()
    graph = stand_in.card.capture(multiply)
    assert stand_in.noted == [("stream", True), "begin", "end"]
    graph.launch()
    assert stand_in.noted[-1] == "launch"
    multiply()
    told = [(name, arguments[1:]) for name, *arguments in stand_in.blas.calls]
    names = [name for name, _ in told]
    # A workspace of our own behind each change of streams, without which cuBLAS allocates.
    change = ["cublasSetStream_v2", "cublasSetWorkspace_v2"]
    assert names == ["cublasCreate_v2", *change * 3]
    streams = [arguments[0].value for name, arguments in told if name == change[0]]
    assert streams == [None, 77, None]
    for name, arguments in told:
        if name == change[1]:
            assert [type(value) for value in arguments] == [ctypes.c_void_p, ctypes.c_size_t]
            assert arguments[1].value == cards.WORKSPACE


def test_large_arrays_go_up_in_parts(stand_in, monkeypatch):
    written = []

    def write(target, array):
        written.append(len(array))
        target[...] = array

    monkeypatch.setattr(cards, "COPIED_AT_ONCE", 100)
    monkeypatch.setattr(stand_in.card, "write", write)
    values = np.arange(60.0).reshape(20, 3)
    np.testing.assert_array_equal(stand_in.card.upload(values), values)
    assert written == [4, 4, 4, 4, 4]
