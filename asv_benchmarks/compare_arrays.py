"""Time batch normalization of arrays against its rivals, as ratios measured in one process.

    python asv_benchmarks/compare_arrays.py [C10 C11 ...] [--repeats N] [--markdown] [--json FILE]

What a row means
----------------
Both sides do the same work on the same float32 numbers and take turns in one process (turns.py says
how). The ratio is rival / ours, more is better; in the unit "copies" it is ours / rival, less is
better. Every side is tried on one thread and on all cores, and enters with the faster; torch also
with its ReLU in place and not.

"forward and backward" is training's batch norm with gamma, beta and ReLU, and the gradients with
respect to all three. torch and the rows "fresh" make new arrays for y and dx every time; in rows
"out=" ours writes into the same two again.

A result is worth as much as its digits, so each row carries the errors of both sides over a few
columns: the norm of the difference from float64 over the norm of what float64 gives, the largest
over the arrays returned. A row says so where ours is the larger.
"""
# SPDX-License-Identifier: BSD-3-Clause

import functools
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from results import arguments, load_average, machine, report, verdict
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from turns import ALL, BEST, ONE, compare, on_threads, timed

from skbn import functional

PACKAGES = ("skbn", "numpy", "scikit-learn", "torch")
ROUNDING = 1e-6  # errors below are those of float32, whatever one does
EPSILON = 1e-3
ASIDE = ("torch.compile",)


# ------------------------------------------------------------------------------------------- data


@functools.lru_cache(maxsize=1)  # the arrays of one row at a time
def numbers(shape, axis=-1):
    """Return x, dy, gamma and beta."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    x += np.float32(0.5)
    gamma, beta = rng.normal(1, 0.2, shape[axis]), rng.normal(0, 0.2, shape[axis])
    return x, dy, gamma.astype(np.float32), beta.astype(np.float32)


LAYOUTS = {  # as they are made from C order, and the axis kept
    "Fortran order, 65536 x 128": ((128, 65536), np.transpose, 1),
    "every other row of 131072 x 128": ((131072, 128), lambda x: x[::2], 1),
    "every other column of 65536 x 256": ((65536, 256), lambda x: x[:, ::2], 1),
    "64 x 64 x 28 x 28 seen as 28 x 28 x 64 x 64": (
        (64, 64, 28, 28),
        lambda x: x.transpose(2, 3, 0, 1),
        3,
    ),
}


def laid_out(name):
    """Return x, dy, gamma, beta and the axis kept of one of LAYOUTS."""
    shape, view, axis = LAYOUTS[name]
    x, dy, _, _ = numbers(shape)
    ones = np.ones(view(x).shape[axis])
    return view(x), view(dy), ones, ones, axis


# ------------------------------------------------------------------------------- what is exact


def few_columns(array, axis):
    """A few columns of an array that keeps an axis, or a few of the numbers of a vector."""
    axis = axis if array.ndim > 1 else 0
    picked = np.unique(np.linspace(0, array.shape[axis] - 1, 4).astype(int))
    return np.moveaxis(np.take(array, picked, axis), axis, -1).astype(np.float64)


def exact_moments(shape, axis=-1):
    x = few_columns(numbers(shape)[0], axis)
    return x.mean(axis=0), x.var(axis=0)


def exact_standardized(shape, axis=-1):
    x = few_columns(numbers(shape)[0], axis)
    return ((x - x.mean(axis=0)) / x.std(axis=0),)


def exact_step(x, dy, gamma, beta, axis):
    x, dy, gamma, beta = (few_columns(array, axis) for array in (x, dy, gamma, beta))
    reduced = tuple(range(x.ndim - 1))
    inv_std = 1 / np.sqrt(x.var(axis=reduced) + EPSILON)
    xhat = (x - x.mean(axis=reduced)) * inv_std
    z = xhat * gamma + beta
    dz = np.where(z > 0, dy, 0)
    dgamma, dbeta = (dz * xhat).sum(axis=reduced), dz.sum(axis=reduced)
    dx = dz - (dbeta + xhat * dgamma) * (x.shape[-1] / x.size)
    return np.maximum(z, 0), gamma * inv_std * dx, dgamma, dbeta


def exact_norm(shape, axis=-1):
    return exact_step(*numbers(shape, axis), axis)


def exact_in_layout(name):
    return exact_step(*laid_out(name))


# ------------------------------------------------------------------------------------- contenders
#
# Each returns its variants: {name: turn}, as in turns.py.


def working(work, counts=BEST, name="call", finish=tuple):
    """Variants of ``work() -> results``: one for each number of threads."""
    turn = timed(lambda seed: work())

    def finished(seed, number):
        seconds, results = turn(seed, number)
        return seconds, finish(results)

    return on_threads({name: finished}, counts, user_api="openmp")


def skbn_steps(x, dy, gamma, beta, axis, reuse):
    def step(out=None, dx_out=None):
        y, saved = functional.batch_norm(
            x, gamma, beta, axis=axis, epsilon=EPSILON, activation="relu", out=out
        )
        return y, *functional.batch_norm_backward(dy, saved, out=dx_out)

    return functools.partial(step, *step()[:2]) if reuse else step


def skbn_norm(shape, axis=-1, reuse=False, counts=BEST):
    return working(skbn_steps(*numbers(shape, axis), axis, reuse), counts)


def torch_norm(shape, axis=-1, with_compile=False):
    import torch
    from torch.nn.functional import batch_norm, relu

    def channels_second(array):
        return torch.from_numpy(np.moveaxis(array, axis, 1))

    x, dy, gamma, beta = numbers(shape, axis)
    x, dy = channels_second(x), channels_second(dy)
    wanted = [tensor.detach().requires_grad_() for tensor in map(torch.as_tensor, (x, gamma, beta))]

    def forward(activation, x, gamma, beta):
        return activation(batch_norm(x, None, None, gamma, beta, training=True, eps=EPSILON))

    def step(forward):
        y = forward(*wanted)
        return y, *torch.autograd.grad(y, wanted, dy)

    def as_ours(results):
        y, dx, *sums = (tensor.detach().numpy() for tensor in results)
        return [np.moveaxis(y, 1, axis), np.moveaxis(dx, 1, axis), *sums]

    ways = {
        "ReLU": functools.partial(forward, relu),
        "ReLU in place": functools.partial(forward, torch.relu_),
    }
    if with_compile:
        ways["torch.compile"] = torch.compile(ways["ReLU"])
    variants = {}
    for name, way in ways.items():
        variants |= working(functools.partial(step, way), name=name, finish=as_ours)
    return variants


def copying(shape):
    """Copy x into a warm buffer, each thread a share of the rows."""
    x = numbers(shape)[0]
    buffer = np.zeros_like(x)

    def copy(pool, n_threads):
        shares = zip(np.array_split(buffer, n_threads), np.array_split(x, n_threads), strict=True)
        list(pool.map(lambda share: np.copyto(*share), shares))
        return ()

    variants = {}
    for n_threads in BEST:
        work = functools.partial(copy, ThreadPoolExecutor(n_threads), n_threads)
        variants |= working(work, (n_threads,))
    return variants


def in_layout(name, copy_first):
    """Forward and backward on an array that is not in C order, as it is or copied to C order."""
    x, dy, gamma, beta, axis = laid_out(name)
    if not copy_first:
        y, _ = functional.batch_norm(x, axis=axis)
        np.copyto(y, dy)
        dy = y  # laid out as the y that it is the gradient of
        return working(skbn_steps(x, dy, gamma, beta, axis, reuse=False))
    dy = np.ascontiguousarray(dy)

    def copy_and_step():
        return skbn_steps(np.ascontiguousarray(x), dy, gamma, beta, axis, reuse=False)()

    return working(copy_and_step)


def make_transformer():
    from skbn import BatchNormTransformer

    return BatchNormTransformer(epsilon=0.0)


def learned(scaler):
    return scaler.mean_, scaler.var_


def fitting(make, shape):
    x = numbers(shape)[0]
    return working(lambda: learned(make().fit(x)))


def transforming(make, shape):
    x = numbers(shape)[0]
    scaler = make().fit(x)
    return working(lambda: (scaler.transform(x),))


def streaming(make, shape, n_chunks=1000):
    chunks = np.array_split(numbers(shape)[0], n_chunks)

    def stream():
        scaler = make()
        for chunk in chunks:
            scaler.partial_fit(chunk)
        return learned(scaler)

    return working(stream)


def skbn_moments(shape):
    x = numbers(shape)[0]
    return working(lambda: functional.moments(x))


def numpy_moments(shape):
    x = numbers(shape)[0]
    return working(lambda: (np.mean(x, axis=0), np.var(x, axis=0)), ONE)


def torch_moments(shape):
    import torch

    x = torch.from_numpy(numbers(shape)[0])

    def moments():
        var, mean = torch.var_mean(x, dim=0, correction=0)
        return mean.numpy(), var.numpy()

    return working(moments)


# ---------------------------------------------------------------------------------- the targets


@dataclass(frozen=True)
class Target:
    """One row; without a bound it only reports."""

    id: str
    what: str
    ours: Callable
    rival: Callable
    exact: Callable
    axis: int = -1
    must: float | None = None
    aim: float | None = None
    unit: str = "x"
    floor: str | None = None  # what nobody could beat, where that is known


def product(shape):
    return " x ".join(map(str, shape))


TALL = (1_000_000, 64)
QUARTER_GIB = (2**20, 64)  # 256 MiB of float32
OUTPUTS = {"fresh": False, "out=": True}

TARGETS = [
    *(
        Target(
            "C10",
            f"{product(shape)}, forward and backward, {outputs}: torch",
            functools.partial(skbn_norm, shape, reuse=reuse),
            functools.partial(torch_norm, shape),
            functools.partial(exact_norm, shape),
            must=2,
            aim=3.5,
        )
        for shape in [(256, 128), (4096, 256), (65536, 512), TALL]
        for outputs, reuse in OUTPUTS.items()
    ),
    *(
        Target(
            "C11",
            f"{product(QUARTER_GIB)} (256 MB), forward and backward, {outputs}: copying x",
            functools.partial(skbn_norm, QUARTER_GIB, reuse=reuse),
            functools.partial(copying, QUARTER_GIB),
            functools.partial(exact_norm, QUARTER_GIB),
            must=5.0,
            aim=4.4,
            unit="copies",
            floor="4",
        )
        for outputs, reuse in OUTPUTS.items()
    ),
    *(
        Target(
            "C12",
            f"{product(shape)}, forward and backward, out=, all cores: one thread",
            functools.partial(skbn_norm, shape, reuse=True, counts=ALL),
            functools.partial(skbn_norm, shape, reuse=True, counts=ONE),
            functools.partial(exact_norm, shape),
            must=0.97,  # never slower, but for the noise of the clock
        )
        for shape in [(32, 50), (256, 128), (1000, 64), (4096, 64), (4096, 256), TALL]
    ),
    *(
        Target(
            "maps",
            f"{product(shape)}, channels {where}, forward and backward, fresh: torch",
            functools.partial(skbn_norm, shape, axis),
            functools.partial(torch_norm, shape, axis),
            functools.partial(exact_norm, shape, axis),
            axis=axis,
            must=1.5,
        )
        for where, shape, axis in [("last", (64, 56, 56, 64), 3), ("first", (64, 64, 56, 56), 1)]
    ),
    *(
        Target(
            "layouts",
            f"{name}, forward and backward, fresh: copied to C order first",
            functools.partial(in_layout, name, copy_first=False),
            functools.partial(in_layout, name, copy_first=True),
            functools.partial(exact_in_layout, name),
            axis=LAYOUTS[name][2],
            must=1,
        )
        for name in LAYOUTS
    ),
    *(
        Target(
            "scaler",
            f"{product(TALL)}, BatchNormTransformer, {what}: StandardScaler",
            functools.partial(work, make_transformer, TALL),
            functools.partial(work, StandardScaler, TALL),
            functools.partial(exact, TALL),
            must=must,
        )
        for what, work, exact, must in [
            ("fit", fitting, exact_moments, 1.5),
            ("transform", transforming, exact_standardized, 1),
            ("partial_fit of 1000 chunks", streaming, exact_moments, None),
        ]
    ),
    *(
        Target(
            "moments",
            f"{product(shape)}, mean and variance: {name}",
            functools.partial(skbn_moments, shape),
            functools.partial(rival, shape),
            functools.partial(exact_moments, shape),
        )
        for shape in [(4096, 256), TALL]
        for name, rival in [("np.mean, np.var", numpy_moments), ("torch.var_mean", torch_moments)]
    ),
]


def relative_error(results, exact, axis):
    """Norm of the difference from what is exact over its norm, the largest over the arrays."""
    found = [few_columns(result, axis) for result in results]
    norms = [np.linalg.norm((a - b).ravel()) for a, b in zip(found, exact, strict=True)]
    return float(max(np.divide(norms, [np.linalg.norm(b.ravel()) for b in exact])))


def measure(target, repeats):
    """Time one target; its row as a dictionary."""
    exact = target.exact()

    def error(results):
        return relative_error(results, exact, target.axis)

    load = load_average()
    sides = {"ours": target.ours, "rival": target.rival}
    row = compare(target, sides, repeats, {"error": error}, ASIDE)
    row |= {"load": load, "met": verdict(row)}
    if row["ours"]["error"] > max(row.get("rival", {}).get("error", math.inf), ROUNDING):
        row["met"] += ", but less accurate"
    return row


def main():
    args = arguments(__doc__.partition("\n")[0], [target.id for target in TARGETS])
    about, rows = machine(PACKAGES), []
    for target in TARGETS:
        if target.id not in args.ids:
            continue
        print(f"{target.id}: {target.what} ...", file=sys.stderr, flush=True)
        if args.torch_compile and target.rival.func is torch_norm:
            compiled = functools.partial(target.rival, with_compile=True)
            target = replace(target, rival=compiled)
        # Only errors are taken with BLAS, and its threads would spin on into the next turn.
        with threadpool_limits(1, user_api="blas"):
            rows.append(measure(target, args.repeats))
    report(args, about, rows, "error")


if __name__ == "__main__":
    main()
