"""Batch normalization of arrays and its transformer, beside torch and StandardScaler."""
# SPDX-License-Identifier: BSD-3-Clause

from timeit import default_timer

import numpy as np
from joblib import cpu_count
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skbn.functional import batch_norm, batch_norm_backward, moments

LAYOUTS = {  # shape in C order, how it is seen, and the axis kept
    "256 x 128": ((256, 128), lambda x: x, 1),
    "65536 x 128": ((65536, 128), lambda x: x, 1),
    "65536 x 128, Fortran order": ((128, 65536), np.transpose, 1),
    "65536 x 128, every other row": ((131072, 128), lambda x: x[::2], 1),
    "32 x 64 x 28 x 28, channels first": ((32, 64, 28, 28), lambda x: x, 1),
}


def make_numbers(layout, dtype):
    """Return x, dy and the axis kept."""
    shape, view, axis = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    return *(view(rng.standard_normal(shape, np.float32).astype(dtype)) for _ in range(2)), axis


class SkbnNorm:
    """Batch norm and ReLU of an array."""

    def __init__(self, x, dy, axis):
        self.x, self.dy, self.axis = x, dy, axis
        self.gamma = self.beta = np.ones(x.shape[axis])
        self.y, self.saved = self.forward()

    def forward(self):
        return batch_norm(self.x, self.gamma, self.beta, axis=self.axis, activation="relu")

    def backward(self):
        return batch_norm_backward(self.dy, self.saved)

    def moments(self):
        return moments(self.x, axis=self.axis)


class TorchNorm:
    """The same in torch."""

    def __init__(self, x, dy, axis):
        try:
            import torch
        except ModuleNotFoundError:
            raise NotImplementedError from None  # asv passes over it
        self.torch = torch
        x, self.dy = (torch.from_numpy(np.moveaxis(array, axis, 1)) for array in (x, dy))
        columns = torch.ones(x.shape[1], dtype=x.dtype), torch.zeros(x.shape[1], dtype=x.dtype)
        self.wanted = [tensor.requires_grad_() for tensor in (x, *columns)]
        self.y = self.forward()

    def forward(self):
        x, gamma, beta = self.wanted
        functional = self.torch.nn.functional
        return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-3).relu_()

    def backward(self):
        return self.torch.autograd.grad(self.y, self.wanted, self.dy, retain_graph=True)

    def moments(self):
        x = self.wanted[0].detach()
        reduced = [axis for axis in range(x.ndim) if axis != 1]
        return self.torch.var_mean(x, dim=reduced, correction=0)


class Arrays:
    """Layouts, types and threads."""

    timer = default_timer  # wall time; the default counts the processor time of all threads
    processes = 1
    timeout = 120
    param_names = ("layout", "dtype", "n_threads", "package")
    params = (tuple(LAYOUTS), ("float32", "float64"), (1, 2), ("skbn", "torch"))

    def setup(self, layout, dtype, n_threads, package):
        if n_threads > cpu_count():
            raise NotImplementedError
        numbers = make_numbers(layout, dtype)
        self.norm = {"skbn": SkbnNorm, "torch": TorchNorm}[package](*numbers)
        self.limits = threadpool_limits(n_threads)
        if package == "torch":
            self.norm.torch.set_num_threads(n_threads)

    def teardown(self, *params):
        self.limits.restore_original_limits()

    def time_forward(self, *params):
        self.norm.forward()

    def time_backward(self, *params):
        self.norm.backward()

    def time_moments(self, *params):
        self.norm.moments()


class Memory:
    """Peak of forward and backward: x and dy, and what comes on top."""

    timeout = 120
    param_names = ("layout", "package")
    params = (tuple(LAYOUTS)[1:], ("skbn", "torch"))

    def setup(self, layout, package):
        numbers = make_numbers(layout, "float32")
        self.norm = {"skbn": SkbnNorm, "torch": TorchNorm}[package](*numbers)

    def peakmem_forward_backward(self, *params):
        self.norm.forward()
        self.norm.backward()


class Bits:
    """Whether results are the same bits on any number of threads: 1 or 0."""

    timeout = 120
    param_names = ("layout", "dtype")
    params = (tuple(LAYOUTS), ("float32", "float64"))

    def track_equal_bits(self, layout, dtype):
        seen = set()
        SkbnNorm(*make_numbers(layout, dtype))  # limits reach only what is loaded
        for n_threads in range(1, cpu_count() + 1):
            with threadpool_limits(n_threads):
                norm = SkbnNorm(*make_numbers(layout, dtype))
                results = (norm.y, norm.saved.mean, norm.saved.var, *norm.backward())
            seen.add(b"".join(result.tobytes() for result in results))
        return int(len(seen) == 1)


class HostileColumn:
    """How far off the output is where the mean is `ratio` standard deviations from zero."""

    timeout = 120
    param_names = ("ratio", "package")
    params = ((1e0, 1e2, 1e4, 1e6), ("skbn", "torch", "StandardScaler"))

    def track_error(self, ratio, package):
        rng = np.random.default_rng(0)
        x = (rng.standard_normal((4096, 1)) + ratio).astype(np.float32)
        exact = x.astype(np.longdouble)
        exact -= exact.mean()
        if package == "skbn":
            y, _ = batch_norm(x, epsilon=0.0)
        elif package == "StandardScaler":
            y = StandardScaler().fit_transform(x)
        else:
            y = self.in_torch(x)
        return float(np.abs(y - exact / exact.std()).max())

    def in_torch(self, x):
        try:
            from torch import from_numpy
            from torch.nn.functional import batch_norm as torch_batch_norm
        except ModuleNotFoundError:
            return np.full_like(x, np.nan)  # asv's "n/a"
        y = torch_batch_norm(from_numpy(x), None, None, training=True, eps=1e-12)  # it takes no 0
        return y.numpy()


class Transformer:
    """Statistics of a whole array and of a stream, and their use."""

    timer = default_timer
    processes = 1
    timeout = 120
    param_names = ("dtype", "scaler")
    params = (("float32", "float64"), ("skbn", "StandardScaler"))

    def setup(self, dtype, scaler):
        rng = np.random.default_rng(0)
        self.X = rng.standard_normal((200_000, 64), np.float32).astype(dtype)
        from skbn import BatchNormTransformer

        self.scaler = BatchNormTransformer(epsilon=0.0) if scaler == "skbn" else StandardScaler()
        self.scaler.fit(self.X)

    def time_fit(self, *params):
        self.scaler.fit(self.X)

    def time_transform(self, *params):
        self.scaler.transform(self.X)

    def time_partial_fit(self, *params):
        self.scaler.partial_fit(self.X[:1000])

    def peakmem_fit_transform(self, *params):
        self.scaler.fit_transform(self.X)
