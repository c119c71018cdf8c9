"""Achieved over allowed error of batch normalization: skbn beside its rivals, on the same arrays.

    python asv_benchmarks/compare_accuracy.py [N1 N5 ...] [--json FILE]

Prints a Markdown table; docs/numerics.md shows it and says what it means. Errors are against long
double in two passes over deviations from the first row. An error above what is allowed is a figure
above 1. Results do not depend on how busy the machine is; all cases take half a minute.

Every side is asked for what it offers: its statistics and its output in training. They round to
the type of the array, or to float64 where the side keeps that. StandardScaler and Keras's
Normalization have no epsilon and are held against the formula without.
"""
# SPDX-License-Identifier: BSD-3-Clause

import argparse
import importlib.metadata
import json
import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

F32, F64 = np.float32, np.float64
EPS32, EPS64 = float(np.finfo(F32).eps), float(np.finfo(F64).eps)
PACKAGES = ("skbn", "numpy", "torch", "keras", "jax", "scikit-learn")
SAME, DIFFERENT = "same", "differ"


# -------------------------------------------------------------------------------------- the sides


class Skbn:
    """Functions on arrays."""

    name = "skbn"
    has_epsilon = True

    def __init__(self):
        from skbn import BatchNormTransformer, functional

        self.functional, self.transformer = functional, BatchNormTransformer

    def normalize(self, x, epsilon):
        """Return variance and output."""
        y, saved = self.functional.batch_norm(x, epsilon=epsilon)
        return saved.var, y

    def gradient(self, x, dy, epsilon):
        _, saved = self.functional.batch_norm(x, epsilon=epsilon)
        return self.functional.batch_norm_backward(dy, saved)[0]

    def normalize_shards(self, shards, epsilon):
        """Return variance and output of BatchNormTransformer after partial_fit of all shards."""
        norm = self.transformer(epsilon=epsilon)
        for shard in shards:
            norm.partial_fit(shard)
        return norm.var_, norm.transform(np.concatenate(shards))


class Torch:
    """BatchNorm1d in training; its running variance after one batch that counts in full."""

    name = "torch"
    has_epsilon = True
    normalize_shards = None  # nor Keras: their statistics over batches are moving averages

    def __init__(self):
        import torch

        self.torch = torch

    def _layer(self, x, epsilon):
        tensor = self.torch.from_numpy(x)
        layer = self.torch.nn.BatchNorm1d(x.shape[1], eps=epsilon, momentum=1.0, dtype=tensor.dtype)
        return layer, tensor

    def normalize(self, x, epsilon):
        layer, tensor = self._layer(x, epsilon)
        y = layer(tensor).detach().numpy()
        unbiased = layer.running_var.numpy().astype(F64)
        return unbiased * ((len(x) - 1) / len(x)), y

    def gradient(self, x, dy, epsilon):
        layer, tensor = self._layer(x, epsilon)
        tensor = tensor.requires_grad_()
        layer(tensor).backward(self.torch.from_numpy(dy))
        return tensor.grad.numpy()


class Keras:
    """BatchNormalization in training, on JAX; its moving variance after one batch in full."""

    name = "Keras"
    has_epsilon = True
    normalize_shards = None

    def __init__(self):
        os.environ.setdefault("KERAS_BACKEND", "jax")
        import jax
        import keras

        jax.config.update("jax_enable_x64", True)
        self.jax, self.keras = jax, keras

    def _layer(self, x, epsilon):
        layer = self.keras.layers.BatchNormalization(
            momentum=0.0, epsilon=epsilon, dtype=x.dtype.name
        )
        layer.build(x.shape)
        return layer

    def normalize(self, x, epsilon):
        layer = self._layer(x, epsilon)
        y = np.asarray(layer(x, training=True))
        return np.asarray(layer.moving_variance, dtype=F64), y

    def gradient(self, x, dy, epsilon):
        layer = self._layer(x, epsilon)
        variables = [
            [variable.value for variable in kind]
            for kind in (layer.trainable_variables, layer.non_trainable_variables)
        ]

        def loss(x):
            return (layer.stateless_call(*variables, x, training=True)[0] * dy).sum()

        return np.asarray(self.jax.grad(loss)(x))


class KerasNormalization(Keras):
    """Normalization, adapted."""

    name = "Keras Normalization"
    has_epsilon = False
    gradient = None

    def normalize(self, x, epsilon):
        layer = self.keras.layers.Normalization(dtype=x.dtype.name)
        layer.adapt(x)
        return np.asarray(layer.variance, dtype=F64).ravel(), np.asarray(layer(x))


class Scaler:
    """StandardScaler, whose statistics are float64."""

    name = "scikit-learn"
    has_epsilon = False
    gradient = None

    def __init__(self):
        from sklearn.preprocessing import StandardScaler

        self.scaler = StandardScaler

    def normalize(self, x, epsilon):
        return self.normalize_shards([x], epsilon)

    def normalize_shards(self, shards, epsilon):
        scaler = self.scaler()
        for shard in shards:
            scaler.partial_fit(shard)
        return scaler.var_, scaler.transform(np.concatenate(shards))


SIDES = (Skbn, Torch, Keras, KerasNormalization, Scaler)
HEADER = ["id", "case", "type", *(side.name for side in SIDES)]


# -------------------------------------------------------------------------------------- the judge


def exact(x, epsilon):
    """Variance, output and 1 / std of the one column, rounded from long double."""
    deviations = x[:, 0].astype(np.longdouble) - np.longdouble(x[0, 0])
    deviations -= deviations.mean()
    deviations -= deviations.mean()
    var = np.mean(deviations**2)
    std = np.sqrt(var + np.longdouble(epsilon))
    inv_std = 1 / std if std else std
    return var, deviations * inv_std, inv_std


def exact_gradient(x, dy, epsilon):
    """Gradient of sum(dy * y) with respect to the one column."""
    _, y, inv_std = exact(x, epsilon)
    dy = dy[:, 0].astype(np.longdouble)
    return inv_std * (dy - dy.mean() - y * np.mean(dy * y))


def worst(found, expected, allowed):
    """Largest error in units of what is allowed; where that is 0, infinity unless exact."""
    found, expected = np.asarray(found, dtype=np.longdouble), np.asarray(expected)
    error, allowed = np.abs(found - expected), np.broadcast_to(allowed, expected.shape)
    if not np.isfinite(error).all():
        return np.nan
    ratio = np.divide(error, allowed, out=np.full(error.shape, np.inf), where=allowed > 0)
    return float(np.where(error == 0, 0, ratio).max())


# -------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """One row: an array of one column, and what is allowed to be lost of it."""

    id: str
    what: str
    dtype: type
    data: Callable  # of the type, to (n_rows, 1)
    var: float | None = None  # relative error allowed; None: not asked
    y: float | None = None  # error allowed, relative to the output but to 1 at least
    relative: bool = False  # to the output however small
    epsilon: float = 1e-3
    small: bool = True  # cheap enough for a test
    without_epsilon: bool = True  # sides that have none are asked as well

    def check(self, side):
        """Errors of variance and output, each over what is allowed, or what went wrong."""
        if not (side.has_epsilon or self.without_epsilon):
            return None
        x = self.data(self.dtype)
        epsilon = self.epsilon if side.has_epsilon else 0.0
        var, y, _ = exact(x, epsilon)
        try:
            found_var, found_y = self.normalize(side, x, epsilon)
        except ValueError:
            return "ValueError"
        ratios = []
        if self.var is not None:
            ratios.append(worst(found_var, var[None], self.var * var))
        if self.y is not None:
            least = 0 if self.relative else 1
            ratios.append(worst(found_y[:, 0], y, self.y * np.maximum(least, np.abs(y))))
        return ratios

    def normalize(self, side, x, epsilon):
        return side.normalize(x, epsilon)


@dataclass(frozen=True)
class Shards(Case):
    """The same array in shards of 1, 2, 3 ... rows, merged."""

    def check(self, side):
        return None if side.normalize_shards is None else super().check(side)

    def normalize(self, side, x, epsilon):
        return side.normalize_shards(np.split(x, np.cumsum(np.arange(1, 64))), epsilon)


@dataclass(frozen=True)
class Gradient(Case):
    """dx against the formula, relative to its largest entry."""

    def check(self, side):
        if side.gradient is None:
            return None
        x = self.data(self.dtype)
        dy = normal(len(x), seed=1).astype(self.dtype)
        expected = exact_gradient(x, dy, self.epsilon)
        found = side.gradient(x, dy, self.epsilon)[:, 0]
        return [worst(found, expected, self.y * np.abs(expected).max())]


@dataclass(frozen=True)
class Bits(Case):
    """Whether the first column comes out the same in another array."""

    other: Callable = None

    def check(self, side):
        x = self.data(self.dtype)
        epsilon = self.epsilon if side.has_epsilon else 0.0
        pairs = zip(side.normalize(x, epsilon), side.normalize(self.other(x), epsilon), strict=True)
        return SAME if all(np.array_equal(a[..., 0], b[..., 0]) for a, b in pairs) else DIFFERENT


def normal(n_rows, n_columns=1, seed=0):
    return np.random.RandomState(seed).normal(size=(n_rows, n_columns))


def offset(ratio, n_rows=4096):
    return lambda dtype: (normal(n_rows) + ratio).astype(dtype)


def spread(size):
    return lambda dtype: (normal(1024) * size).astype(dtype)


def constant(value):
    return lambda dtype: np.full((1000, 1), value, dtype=dtype)


def ramp(magnitude):
    return lambda dtype: (np.linspace(-1, 1, 8)[:, None] * magnitude).astype(dtype)


def neighbours(low, ulps):
    return lambda dtype: np.array([[low], [dtype(low) + ulps * np.spacing(dtype(low))]], dtype)


def one_differs(dtype):
    x = np.full((1_000_000, 1), 1e3, dtype=dtype)
    x[333_333] += 1
    return x


def in_order(dtype):
    return np.sort(normal(100_000), axis=0).astype(dtype)


def alternating(dtype):
    return (np.abs(normal(100_000)) * (-1.0) ** np.arange(100_000)[:, None]).astype(dtype)


def cauchy(dtype):
    return np.random.RandomState(0).standard_cauchy((100_000, 1)).astype(dtype)


def beside(x):
    return np.hstack([x, normal(len(x), 32, seed=1).astype(x.dtype)])


CASES = [
    *(
        Case("N1", f"mean / std {ratio:g}", F32, offset(ratio), 2 * EPS32, 4e-7)
        for ratio in (0, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7)
    ),
    *(
        Case("N2", f"mean / std {ratio:g}", F64, offset(ratio), 1e-13, 1e-12)
        for ratio in (1e2, 1e4, 1e6, 1e8)
    ),
    Case("N2", "mean / std 1e+12", F64, offset(1e12), 1e-13),
    *(
        Case(
            "N3", f"mean / std 1e3, {n:,} rows", F32, offset(1e3, n), 2 * EPS32, 4e-7, small=n < 1e6
        )
        for n in (2, 256, 100_000, 1_000_000, 10_000_000)
    ),
    *(
        Case(
            "N4",
            f"spread {size:g} about 0, epsilon 1e-30",
            F32,
            spread(size),
            2 * EPS32,
            4e-7,
            relative=True,
            epsilon=1e-30,
        )
        for size in (1e-3, 1e-6, 1e-12)
    ),
    *(
        Case("N5", f"constant {value:g}", F32, constant(value), 0.0, 0.0)
        for value in (0.1, 100, 16777217, 1e10, 1e20, 1e30)
    ),
    Case("N6", "one row in a million differs by 1, at 1e3", F32, one_differs, 2 * EPS32, 4e-7),
    *(
        Case("N7", f"values up to {magnitude:g}", dtype, ramp(magnitude), None, 4e-7)
        for dtype, magnitude in ((F32, 1e18), (F32, 1e30), (F32, 1e38), (F64, 1e150), (F64, 1e155))
    ),
    Case("N8", "values up to 1e-30", F32, ramp(1e-30), None, 4e-7, True, without_epsilon=False),
    Case("N9", "3e4 and the next number", F32, neighbours(3e4, 1), 2 * EPS32, 2 * EPS32),
    Case("N9", "1e8 and 1e8 + 8", F32, neighbours(1e8, 1), 2 * EPS32, 2 * EPS32),
    Bits("N10", "a column alone and beside 32 others", F32, offset(1e2), other=beside),
    Case("N12", "sorted rows", F32, in_order, 4 * EPS32, 4e-7),
    Case("N12", "alternating signs", F32, alternating, 4 * EPS32, 4e-7),
    Case("N12", "Cauchy", F32, cauchy, 4 * EPS32, 4e-7),
    *(
        Shards("N14", f"64 shards, mean / std {ratio:g}", F64, offset(ratio), 1e-12)
        for ratio in (0, 1e3, 1e6)
    ),
    *(
        Gradient("N15", f"gradient, mean / std {ratio:g}", dtype, offset(ratio, 1024), y=allowed)
        for dtype, allowed in ((F32, 1e-5), (F64, 1e-9))
        for ratio in (0, 1e2, 1e4)
    ),
    Bits(
        "N17", "C and Fortran order", F32, lambda d: beside(offset(1e2)(d)), other=np.asfortranarray
    ),
]


# -------------------------------------------------------------------------------------- reporting


def installed():
    """The sides that can be asked, and for each that cannot the package that is missing."""
    sides, missing = {}, {}
    for side in SIDES:
        try:
            sides[side.name] = side()
        except ModuleNotFoundError as error:
            missing[side.name] = error.name
    return sides, missing


def check(case, side):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # overflows, which the figures show
        return case.check(side)


def cell(result):
    if result is None:
        return "-"
    if isinstance(result, str):
        return result
    return ", ".join("inexact" if ratio == np.inf else f"{ratio:.2g}" for ratio in result)


def name(case):
    """The first three cells of a row."""
    return [case.id, case.what, np.dtype(case.dtype).name]


def table(rows):
    """Markdown; the header first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def versions():
    found = [f"Python {platform.python_version()}, {platform.machine()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = list(dict.fromkeys(case.id for case in CASES))
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"all of {' '.join(known)} if none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    args = parser.parse_args()
    if unknown := set(args.ids) - set(known):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")

    sides, missing = installed()
    cases = [case for case in CASES if not args.ids or case.id in args.ids]
    results = [{who: check(case, side) for who, side in sides.items()} for case in cases]
    rows = [
        [*name(case), *(cell(result[s.name]) if s.name in sides else "?" for s in SIDES)]
        for case, result in zip(cases, results, strict=True)
    ]
    print(table([HEADER, *rows]), versions(), sep="\n\n")
    for who, package in missing.items():
        print(f"{who}: {package} is not installed")
    if args.json:
        found = [
            dict(zip(("id", "case", "type"), name(case), strict=True), results=result)
            for case, result in zip(cases, results, strict=True)
        ]
        args.json.write_text(json.dumps({"versions": versions(), "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
