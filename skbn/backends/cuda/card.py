"""A card: its memory, kernels, matrix products and graphs. The only module that imports CuPy.

All that the executor and the array functions want of a device goes through :class:`Card`, so tests
can put a processor in its place. Work is queued on CuPy's current stream; only ``read`` waits. What
a kernel is given are pointers, ``long long`` for every Python integer and ``double`` for every
float.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ctypes
import threading
from contextlib import contextmanager
from functools import cache

import numpy as np

from skbn.backends.cuda import sources

WORKSPACE = 2**25  # bytes for cuBLAS: what it wants on recent cards
COPIED_AT_ONCE = 2**26  # bytes: what a copy to the card may take of the host's memory


@cache
def _cupy():
    """Return CuPy, or say how to get it."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "device='cuda' needs CuPy, which is not installed: install it by "
            "\"pip install 'skbn[cuda13]'\" or, for a driver of CUDA 12, "
            "\"pip install 'skbn[cuda12]'\"."
        ) from error
    return cupy


def current():
    """Return the card that CuPy now works on.

    Raises
    ------
    ImportError
        If CuPy is not installed.
    RuntimeError
        If there is no card, or none that its driver lets us use.
    """
    cupy = _cupy()
    try:
        number = cupy.cuda.runtime.getDevice()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f"device='cuda' needs an NVIDIA card and its driver; CuPy finds none ({error}). Use "
            "device='cpu' or None."
        ) from error
    return _card(number)


@cache
def _card(number):
    return Card(number)


def description():
    """Return what CuPy and the current card are, by name; what is missing is said, not raised."""
    try:
        cupy = _cupy()
    except ImportError as error:
        missing = isinstance(error.__cause__, ModuleNotFoundError)
        return {"CuPy": "not installed" if missing else f"not usable: {error.__cause__}"}
    try:
        card, runtime = current(), cupy.cuda.runtime
        versions = f"driver {runtime.driverGetVersion()}, runtime {runtime.runtimeGetVersion()}"
        return {"CuPy": cupy.__version__, "card": f"{card.name} (CUDA {versions})"}
    except RuntimeError as error:  # of CUDA too
        return {"CuPy": cupy.__version__, "card": f"none: {error.__cause__ or error}"}


class Graph:
    """Launches that were captured, to be done again and again at once."""

    def __init__(self, graph, workspace):
        self.graph, self.workspace = graph, workspace  # its products write there

    def launch(self):
        """Queue all of them."""
        self.graph.launch()


class Card:
    """One card.

    Parameters
    ----------
    number : int
        Which one, as CUDA counts them.
    """

    def __init__(self, number):
        cupy = self._cupy = _cupy()
        self.device = cupy.cuda.Device(number)
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        self.name = properties["name"].decode()
        self.shared_memory = self.device.attributes["MaxSharedMemoryPerBlockOptin"]
        self._modules, self._kernels = {}, {}
        self._blas = threading.local()  # a handle has one stream and one workspace

    def at(self, number):
        """Return the card of this number."""
        return _card(number)

    def __enter__(self):
        self.device.__enter__()
        return self

    def __exit__(self, *exception):
        self.device.__exit__(*exception)

    # Memory.

    @property
    def free_memory(self):
        """Bytes that can be had now, those that CuPy keeps for later among them."""
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        return free + self._cupy.get_default_memory_pool().free_bytes()

    def empty(self, shape, dtype):
        """Return a new array."""
        return self._cupy.empty(shape, dtype)

    def zeros(self, shape, dtype):
        """Return a new array of zeros."""
        return self._cupy.zeros(shape, dtype)

    def pinned(self, size, dtype):
        """Return a NumPy vector from which and to which copies are fast."""
        import cupyx

        return cupyx.empty_pinned(size, dtype)

    def upload(self, array):
        """Return a copy, in C order, of a NumPy array; the host's memory holds no second one."""
        target = self.empty(array.shape, array.dtype)
        if array.nbytes <= COPIED_AT_ONCE:
            self.write(target, array)
            return target
        n_rows = max(1, COPIED_AT_ONCE * len(array) // array.nbytes)
        for start in range(0, len(array), n_rows):
            self.write(target[start : start + n_rows], array[start : start + n_rows])
        return target

    def write(self, target, array):
        """Copy a NumPy array over a contiguous one of the card's, of the same shape."""
        target.set(np.ascontiguousarray(array))

    def read(self, source, out=None):
        """Return a contiguous array as a NumPy array, once all that is queued is done."""
        return source.get(out=out)

    def synchronize(self):
        """Wait until all that is queued is done."""
        self._cupy.cuda.get_current_stream().synchronize()

    # Arrays of users.

    def is_array(self, x):
        """Return whether this is an array of CuPy's."""
        return isinstance(x, self._cupy.ndarray)

    def from_dlpack(self, x):
        """Return an array that shares the memory of another library's."""
        return self._cupy.from_dlpack(x)

    # Kernels.

    def kernel(self, file, name, dtype):
        """Return a kernel of a file, compiled for a type of numbers when it is first wanted."""
        key = file, name, dtype
        if key not in self._kernels:
            module = self._module(file, np.dtype(dtype).name)
            kernel = module.get_function(name)
            static = kernel.shared_size_bytes
            if self.shared_memory - static > 48 * 1024:
                kernel.max_dynamic_shared_size_bytes = self.shared_memory - static
            self._kernels[key] = kernel.kernel
        return self._kernels[key]

    def _module(self, file, dtype):
        if (file, dtype) not in self._modules:
            self._modules[file, dtype] = self._cupy.RawModule(
                code=sources.source(file), options=sources.options(dtype)
            )
        return self._modules[file, dtype]

    def launch(self, kernel, grid, block, arguments, shared=0):
        """Queue a kernel: a grid of blocks of threads, with bytes of dynamic shared memory."""
        kernel(grid, block, arguments, shared)

    def multiply(self, out, a, b, shape, strides, transposed=(False, False)):
        """Queue ``out = a @ b``, matrices in C order, by cuBLAS.

        Parameters
        ----------
        out, a, b : device array
            Where the matrices begin.
        shape : (m, n, k)
            Rows and columns of the result, and what is summed over.
        strides : (out, a, b)
            Numbers from row to row, as they lie in memory.
        transposed : (bool, bool)
            Whether a and b are to be transposed.
        """
        self._handle().multiply(out, a, b, shape, strides, transposed)

    def capture(self, launches):
        """Return what a function queues, as a graph; nothing is done yet."""
        stream = self._cupy.cuda.Stream(non_blocking=True)
        with self._handle().borrowed_workspace() as workspace, stream:
            stream.begin_capture()
            try:
                launches()
            finally:
                graph = stream.end_capture()
        return Graph(graph, workspace)

    def _handle(self):
        if not hasattr(self._blas, "handle"):
            self._blas.handle = _Blas(self._cupy)
        return self._blas.handle


class _Blas:
    """cuBLAS by a handle of our own: CuPy refuses to call its own while a graph is captured."""

    def __init__(self, cupy):
        from cuda.pathfinder import load_nvidia_dynamic_lib

        self._cupy = cupy
        self._library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        self._handle = ctypes.c_void_p()
        self._check(self._library.cublasCreate_v2(ctypes.byref(self._handle)))
        self._workspaces = {}  # products on two streams may run at the same time
        self._stream = self._borrowed = None

    def _check(self, status):
        if status != 0:
            raise RuntimeError(f"cuBLAS failed with status {status}.")

    def _workspace(self, stream):
        if stream not in self._workspaces:
            self._workspaces[stream] = self._cupy.empty(WORKSPACE, np.uint8)
        return self._workspaces[stream]

    @contextmanager
    def borrowed_workspace(self):
        """Let what is captured use the workspace of the stream on which it will be launched."""
        self._borrowed = self._workspace(self._cupy.cuda.get_current_stream().ptr)
        self._stream = None
        try:
            yield self._borrowed
        finally:
            self._stream = self._borrowed = None

    def _use_stream(self):
        stream = self._cupy.cuda.get_current_stream().ptr
        if stream != self._stream:
            self._check(self._library.cublasSetStream_v2(self._handle, ctypes.c_void_p(stream)))
            # A new stream forgets the workspace; cuBLAS may not allocate during a capture.
            workspace = self._workspace(stream) if self._borrowed is None else self._borrowed
            pointer, size = ctypes.c_void_p(workspace.data.ptr), ctypes.c_size_t(WORKSPACE)
            self._check(self._library.cublasSetWorkspace_v2(self._handle, pointer, size))
            self._stream = stream

    def multiply(self, out, a, b, shape, strides, transposed):
        """Queue a product; see :meth:`Card.multiply`."""
        self._use_stream()
        m, n, k = shape
        ldout, lda, ldb = strides
        ta, tb = transposed
        is_double = out.dtype == np.float64
        number = ctypes.c_double if is_double else ctypes.c_float
        one, zero = number(1), number(0)
        gemm = self._library.cublasDgemm_v2 if is_double else self._library.cublasSgemm_v2
        # cuBLAS thinks in columns: what we store is its transpose, and out' = b' a'.
        self._check(
            gemm(
                self._handle,
                ctypes.c_int(tb),
                ctypes.c_int(ta),
                *map(ctypes.c_int, (n, m, k)),
                ctypes.byref(one),
                ctypes.c_void_p(b.data.ptr),
                ctypes.c_int(ldb),
                ctypes.c_void_p(a.data.ptr),
                ctypes.c_int(lda),
                ctypes.byref(zero),
                ctypes.c_void_p(out.data.ptr),
                ctypes.c_int(ldout),
            )
        )
