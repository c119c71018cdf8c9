"""Batch normalization of arrays and of what torch offers beside it."""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

from .common import DTYPES, N_THREADS, WITH_RIVALS, Benchmark

PACKAGES = ("skbn", "torch") if WITH_RIVALS else ("skbn",)

LAYOUTS = {  # shape in C order, how it is seen, the axis kept, calls in one measurement
    "256 x 128, 100 times": ((256, 128), lambda x: x, 1, 100),
    "32768 x 128": ((32768, 128), lambda x: x, 1, 1),
    "32768 x 128, Fortran order": ((128, 32768), np.transpose, 1, 1),
    "32768 x 128, every other row": ((65536, 128), lambda x: x[::2], 1, 1),
    "32 x 64 x 28 x 28, channels first": ((32, 64, 28, 28), lambda x: x, 1, 1),
}


def make_numbers(layout, dtype):
    """Return x, dy and the axis kept."""
    shape, view, axis, _ = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    return *(view(rng.standard_normal(shape, np.float32).astype(dtype)) for _ in range(2)), axis


class SkbnNorm:
    """Batch norm and ReLU of an array."""

    def __init__(self, x, dy, axis):
        from skbn import functional

        self.functional = functional
        self.x, self.dy, self.axis = x, dy, axis
        self.gamma = self.beta = np.ones(x.shape[axis])
        self.y, self.saved = self.forward()

    def forward(self):
        return self.functional.batch_norm(
            self.x, self.gamma, self.beta, axis=self.axis, activation="relu"
        )

    def backward(self):
        return self.functional.batch_norm_backward(self.dy, self.saved)

    def inference(self):
        return self.functional.batch_norm_inference(
            self.x, self.gamma, self.gamma, self.gamma, self.beta, axis=self.axis, activation="relu"
        )

    def moments(self):
        return self.functional.moments(self.x, axis=self.axis)


class TorchNorm:
    """The same in torch."""

    def __init__(self, x, dy, axis):
        try:
            import torch
        except ModuleNotFoundError:
            raise NotImplementedError from None
        self.torch = torch
        x, self.dy = (torch.from_numpy(np.moveaxis(array, axis, 1)) for array in (x, dy))
        columns = torch.ones(x.shape[1], dtype=x.dtype), torch.zeros(x.shape[1], dtype=x.dtype)
        self.wanted = [tensor.requires_grad_() for tensor in (x, *columns)]
        self.y = self.forward()

    def batch_norm(self, *statistics, training):
        x, gamma, beta = self.wanted
        functional = self.torch.nn.functional
        y = functional.batch_norm(x, *statistics, gamma, beta, training=training, eps=1e-3)
        return y.relu_()

    def forward(self):
        return self.batch_norm(None, None, training=True)

    def backward(self):
        return self.torch.autograd.grad(self.y, self.wanted, self.dy, retain_graph=True)

    def inference(self):
        ones = self.wanted[1].detach()
        with self.torch.inference_mode():
            return self.batch_norm(ones, ones, training=False)

    def moments(self):
        x = self.wanted[0].detach()
        reduced = [axis for axis in range(x.ndim) if axis != 1]
        return self.torch.var_mean(x, dim=reduced, correction=0)


class FunctionalBenchmark(Benchmark):
    """Time of each function, new results every time."""

    param_names = ("package", "layout", "dtype", "n_threads")
    params = (PACKAGES, tuple(LAYOUTS), DTYPES, N_THREADS)

    def setup(self, package, layout, dtype, n_threads):
        if not hasattr(self, "norm"):
            side = {"skbn": SkbnNorm, "torch": TorchNorm}[package]
            self.norm = side(*make_numbers(layout, dtype))
        self.calls = range(LAYOUTS[layout][-1])
        self.limit_threads(n_threads)

    def time_forward(self, *params):
        for _ in self.calls:
            self.norm.forward()

    def time_backward(self, *params):
        for _ in self.calls:
            self.norm.backward()

    def time_inference(self, *params):
        for _ in self.calls:
            self.norm.inference()

    def time_moments(self, *params):
        for _ in self.calls:
            self.norm.moments()


class FunctionalMemoryBenchmark(FunctionalBenchmark):
    """Peak of forward and backward: x and dy, and what comes on top."""

    params = (PACKAGES, tuple(LAYOUTS)[1:], ("float32",), (1,))
    time_forward = time_backward = time_inference = time_moments = None

    def peakmem_forward_backward(self, *params):
        self.norm.forward()
        self.norm.backward()
