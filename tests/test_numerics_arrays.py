"""Batch normalization of arrays keeps its digits and its bits: N1 to N19, each a test or several.

The judge is mpmath for up to 2,000 rows, and two passes of long double in blocks for more.
tests/backends/test_numerics.py holds the same cases for networks; N20, folded against unfolded, is
tests/test_folding.py.
"""
# SPDX-License-Identifier: BSD-3-Clause

import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import mpmath
import numpy as np
import pytest
from cases import each_dtype
from formulas import ACTIVATIONS, complex_step
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

from skbn import BatchNormTransformer
from skbn.backends.cpu.processor import has_openmp
from skbn.backends.reference_arrays import as_rows
from skbn.functional import batch_norm, batch_norm_backward, batch_norm_inference, moments

F32, F64 = np.float32, np.float64
EPS32, EPS64 = float(np.finfo(F32).eps), float(np.finfo(F64).eps)
BLOCK = 2**16


# The judge.


def judge(x, read=slice(None)):
    """Mean and biased variance of the columns, and deviations of the rows read."""
    if len(x) <= 2000:
        with mpmath.workprec(300):
            columns = [[mpmath.mpf(float(v)) for v in column] for column in x.T]
            means = [mpmath.fsum(column) / len(column) for column in columns]
            deviations = [[v - m for v in c] for c, m in zip(columns, means, strict=True)]
            variances = [mpmath.fsum(d * d for d in c) / len(c) for c in deviations]
            found = means, variances, np.array(deviations).T[read]
            return [np.array(part).astype(F64) for part in found]

    def average(function):
        blocks = (wide(x[start : start + BLOCK]) for start in range(0, len(x), BLOCK))
        return sum(function(block - pivot).sum(axis=1, keepdims=True) for block in blocks) / len(x)

    pivot = wide(x[:1])
    mean = average(lambda d: d)
    mean += average(lambda d: d - mean)
    var = average(lambda d: (d - mean) ** 2)
    found = (pivot + mean)[:, 0], var[:, 0], (wide(x[read]) - pivot - mean).T
    return [part.astype(F64) for part in found]


def wide(x):
    """Columns, one after the other: so that NumPy adds pairwise."""
    return np.ascontiguousarray(x.T).astype(np.longdouble)


def some_rows(n_rows):
    return np.unique(np.linspace(0, n_rows - 1, 64).astype(np.intp))


def normal(n_rows, n_columns, seed=0):
    return np.random.RandomState(seed).normal(size=(n_rows, n_columns))


def ratios(dtype, n_rows, exponents):
    offsets = [0.0 if e is None else 10.0**e for e in exponents]
    return (normal(n_rows, len(exponents)) + offsets).astype(dtype)


def check_digits(x, var_tolerance, y_tolerance, epsilon=1e-3, mean_tolerance=4 * EPS64):
    """Means within an ulp, variances and outputs within the tolerances given."""
    read = some_rows(len(x))
    mean, var, deviations = judge(x, read)
    y, saved = batch_norm(x, epsilon=epsilon)
    assert y.dtype == x.dtype
    # Around 0 the spread, not the mean, is what rounding errors are measured by.
    ulp = np.spacing(np.abs(mean).astype(x.dtype)).astype(F64)
    assert np.all(np.abs(saved.mean - mean) <= ulp + mean_tolerance * np.sqrt(var))
    assert np.all(saved.var >= 0)
    assert_allclose(saved.var, var, rtol=var_tolerance)
    expected = deviations / np.sqrt(var + epsilon)
    assert np.all(np.abs(y[read] - expected) <= y_tolerance * np.maximum(1, np.abs(expected)))
    for found, same in zip(moments(x), (saved.mean, saved.var), strict=True):
        assert_array_equal(found, same)


# Digits.


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_n01_offsets_float32(epsilon):
    """Mean over spread of 0 and 1e2 to 1e7."""
    x = ratios(F32, 4096, [None, 2, 3, 4, 5, 6, 7])
    check_digits(x, 2 * EPS32, 4e-7, epsilon)


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_n02_offsets_float64(epsilon):
    """Mean over spread of 1e2 to 1e12: the mean that is subtracted has two parts."""
    x = ratios(F64, 4096, range(2, 13))
    check_digits(x, 1e-13, 1e-12, epsilon)


@pytest.mark.parametrize("n_rows", [2, 3, 16, 256, 100_000, 1_000_000, 10_000_000])
def test_n03_rows(n_rows):
    """From two rows to ten million, at mean over spread of 1e3."""
    x = np.random.default_rng(0).standard_normal((n_rows, 1), dtype=F32)
    x += F32(1e3)
    check_digits(x, 2 * EPS32, 4e-7)


@each_dtype
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-3])
def test_n04_small_spreads(epsilon, dtype):
    """Spreads of 1e-3 to 1e-12 about 0; nothing is clamped."""
    x = (normal(1024, 10) * 10.0 ** -np.arange(3, 13)).astype(dtype)
    eps = float(np.finfo(dtype).eps)
    check_digits(x, 2 * EPS32 if dtype is F32 else 1e-13, 4 * eps, epsilon)


CONSTANTS = [0.0, 0.1, 100, -100, 16777217, 1e10, 1e20, 1e30, 1e-3, 1e-30]


@each_dtype
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-3])
@pytest.mark.parametrize("n_rows", [2, 3, 33, 10_000, 100_001])
@pytest.mark.parametrize("order", ["C", "F"])
def test_n05_constant_columns(order, n_rows, epsilon, dtype):
    """Variance exactly 0, output exactly beta, gradients finite, no warning; weighted or not."""
    values = np.array(CONSTANTS if dtype is F32 else [*CONSTANTS, 1e200, -1e308], dtype=dtype)
    x = np.asarray(np.broadcast_to(values, (n_rows, len(values))), order=order)
    gamma, beta = np.linspace(-2, 2, len(values)), np.linspace(1, 3, len(values))
    for sample_weight in (None, np.random.RandomState(0).uniform(size=n_rows)):
        y, saved = batch_norm(x, gamma, beta, epsilon=epsilon, sample_weight=sample_weight)
        assert_array_equal(saved.mean, values)
        assert_array_equal(saved.var, 0.0)
        assert_array_equal(y, np.broadcast_to(beta.astype(dtype), x.shape))
        dx, dgamma, dbeta = batch_norm_backward(np.ones_like(x), saved)
        assert np.isfinite(dx).all()
        assert_array_equal(dgamma, 0.0)
        assert_allclose(dbeta, n_rows, rtol=1e-12)


@pytest.mark.parametrize("base", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("n_rows", [257, 1_000_000])
@pytest.mark.parametrize("place", [0, 0.3, 1])
def test_n06_one_row_differs(place, n_rows, base):
    """Wherever it stands, the first row and so the pivot of the sums included."""
    x = np.full((n_rows, 1), base, dtype=F32)
    x[int(place * (n_rows - 1))] += 1
    mean, var = moments(x)
    assert_allclose(mean, base + 1 / n_rows, rtol=EPS32)
    assert_allclose(var, (1 - 1 / n_rows) / n_rows, rtol=2 * EPS32)


@pytest.mark.parametrize(
    ("dtype", "magnitude", "overflows"),
    [
        (F32, 1e30, False),
        (F32, 1e38, False),
        (F64, 1e150, False),
        (F64, 1e155, True),
        (F64, 1e308, True),
    ],
)
@pytest.mark.parametrize("n_rows", [2, 8, 1000])
def test_n07_huge_values(n_rows, dtype, magnitude, overflows):
    """Right, or a ValueError where the variance is beyond float64: never zeros, never silence."""
    ramp = np.linspace(-1, 1, n_rows)
    x = (ramp[:, None] * magnitude).astype(dtype)
    if overflows:
        for function in (moments, batch_norm):
            with pytest.raises(ValueError, match="variance of finite values overflows float64"):
                function(x)
        with pytest.raises(ValueError, match="first in entry 1 of"):
            batch_norm(np.hstack([np.ones_like(x), x, x]))
    else:
        y, saved = batch_norm(x)
        assert_allclose(saved.var, ramp.var() * magnitude**2, rtol=1e-6)
        assert_allclose(y[:, 0], ramp / ramp.std(), rtol=4 * EPS32, atol=4 * EPS32)
        dx, *_ = batch_norm_backward(x / dtype(magnitude), saved)
        assert np.isfinite(dx).all()


def test_n07_beyond_float32_on_the_way():
    """Deviations, or gamma / std, that float32 cannot hold; what comes of them it can."""
    x = np.array([[3.4e38], [-3.4e38], [-3.4e38], [-3.4e38]], dtype=F32)
    xhat = np.array([[3.0], [-1.0], [-1.0], [-1.0]]) / math.sqrt(3)
    for scale, gamma in ((1.0, 1.0), (1e-8, 1e-12), (1e-68, 1e10), (1e-76, 1e-3)):
        z = (x.astype(F64) * scale).astype(F32)
        y, saved = batch_norm(z, gamma, epsilon=0.0)
        assert_allclose(y, xhat * gamma, rtol=1e-6)
        assert_array_equal(batch_norm_inference(z, saved.mean, saved.var, gamma, epsilon=0.0), y)


@pytest.fixture(params=[False, True], ids=["", "denormals flushed"])
def flushed(request):
    """Whether the caller's own arithmetic flushes denormals to zero; torch can say so."""
    if not request.param:
        yield False
        return
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    yield True
    torch.set_flush_denormal(False)


@each_dtype
@pytest.mark.parametrize("magnitude", [1e-30, 1e-37, 1e-38, 1e-44, 1e-150, 1e-160, 1e-300, 5e-324])
def test_n08_tiny_values(magnitude, dtype, flushed):
    """Within the smallest normal number of the formula, denormals or not."""
    ramp = np.array([[1.0], [-1.0], [3.0], [-3.0]])
    x = (ramp * magnitude).astype(dtype)
    wanted = np.array([float(v) / math.sqrt(1e-3) for v in x[:, 0]])[:, None]
    tiny = float(np.finfo(dtype).tiny)
    y, saved = batch_norm(x)
    assert_allclose(y, wanted, rtol=1e-6, atol=40 * tiny)
    dx, *_ = batch_norm_backward(np.ones_like(x), saved)
    assert np.isfinite(dx).all()
    y, saved = batch_norm(x, epsilon=0.0)
    assert np.all(saved.var >= 0)
    assert np.all(np.abs(y) < 1.7321)  # sqrt(n - 1): no row lies farther off
    if magnitude >= 10 * tiny and magnitude**2 >= np.finfo(F64).tiny:
        assert_allclose(y, ramp / math.sqrt(5), rtol=1e-6)


@each_dtype
def test_n08_floating_point_mode_is_left_alone(dtype):
    """Denormals may be flushed inside a call; the caller's arithmetic must not notice."""
    smallest, ones = np.finfo(dtype).smallest_subnormal, np.ones(4, dtype)
    x = normal(70_000, 3).astype(dtype)
    _, saved = batch_norm(x, activation="silu")
    for call in (
        lambda: moments(x),
        lambda: batch_norm(x),
        lambda: batch_norm_backward(x, saved),
        lambda: batch_norm_inference(x, 0.0, 1.0),
    ):
        call()
        assert_array_equal(ones * smallest * 2 / 2, smallest)


@each_dtype
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("low", [1.0, 3e4, 1e8, -1e-3, 1e-30])
@pytest.mark.parametrize("ulps", [1, 2, 8])
def test_n09_two_rows(ulps, low, epsilon, dtype):
    """A few ulp apart, 1e8 and 1e8 + 8 among them: the closed form within 2 ulp."""
    low = dtype(low)
    x = np.array([[low], [low + ulps * np.spacing(low)]])
    half = (F64(x[1, 0]) - F64(x[0, 0])) / 2
    y, saved = batch_norm(x, epsilon=epsilon)
    assert_allclose(saved.var, half**2, rtol=4 * EPS64, atol=np.finfo(F64).tiny)
    if abs(half) >= np.finfo(dtype).tiny and half**2 + epsilon >= np.finfo(F64).tiny:
        expected = half / math.sqrt(half**2 + epsilon)
        assert_allclose(y[:, 0], [-expected, expected], rtol=2 * np.finfo(dtype).eps)
    else:
        assert np.all(np.abs(y) <= 1)


@pytest.mark.parametrize("n_rows", [2048, 100_000])
@each_dtype
def test_n12_orders_and_tails(dtype, n_rows):
    """Sorted, alternating, Cauchy; an outlier in front, behind; two values far out."""
    rng = np.random.RandomState(2)
    z = rng.normal(size=(n_rows, 7))
    z[:, 0].sort()
    z[:, 1] = np.abs(z[:, 1]) * (-1.0) ** np.arange(n_rows)
    z[:, 2] = rng.standard_cauchy(n_rows)
    z[0, 3] = z[-1, 4] = 1e6
    z[:, 5] = 1e6 + (z[:, 5] > 0)
    z[:, 6] = np.sort(z[:, 6])[::-1] + 1e4
    tolerances = (4 * EPS32, 4e-7) if dtype is F32 else (1e-13, 1e-12)
    # Means are measured from the first row: where that is the outlier, float64 rounds it.
    check_digits(z.astype(dtype), *tolerances, mean_tolerance=1e-12)


# Shards.


def merged(parts):
    """Number, mean and variance of several shards together: Chan, Golub and LeVeque."""
    n, mean, m2 = 0, 0.0, 0.0
    for size, part_mean, part_var in parts:
        delta = part_mean - mean
        n += size
        mean = mean + delta * (size / n)
        m2 = m2 + part_var * size + delta**2 * ((n - size) * size / n)
    return n, mean, m2 / n


@each_dtype
@pytest.mark.parametrize("n_shards", [1, 2, 7, 64])
@pytest.mark.parametrize("ratio", [0.0, 1e3])
def test_n14_shards(ratio, n_shards, dtype, seed):
    """However the rows are shared out, shards of one row among them, and in any order."""
    rng = np.random.RandomState(seed)
    x = (ratio + rng.normal(size=(1000, 3))).astype(dtype)
    cuts = np.sort(rng.choice(np.arange(2, 999), n_shards - 1, replace=False))
    shards = np.split(x, np.r_[1, cuts] if n_shards > 1 else [])
    parts = [(len(shard), *moments(shard)) for shard in shards]
    mean, var = moments(x)
    for order in (np.arange(len(parts)), rng.permutation(len(parts))):
        n, found_mean, found_var = merged([parts[i] for i in order])
        assert n == 1000
        assert_allclose(found_mean, mean, rtol=1e-12, atol=1e-12)
        assert_allclose(found_var, var, rtol=1e-12)


# Gradients.


@each_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("ratio", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_n15_backward_is_the_derivative(activation, ratio, weighted, dtype, seed):
    """Against the complex step, column by column."""
    rng = np.random.RandomState(seed)
    x, dy = ((rng.normal(size=(32, 4)) + offset).astype(dtype) for offset in (ratio, 0))
    gamma, beta = rng.normal(size=(2, 4))
    weights = rng.randint(0, 4, 32).astype(F64) if weighted else np.ones(32)
    given = weights if weighted else None
    _, saved = batch_norm(x, gamma, beta, activation=activation, sample_weight=given)
    # The weight of a sample is in dy already, as a weighted loss puts it there.
    dy *= weights[:, None].astype(dtype)
    found = batch_norm_backward(dy, saved)
    tolerance = 1e-5 if dtype is F32 else 1e-9
    for column in range(4):
        wanted = complex_step(
            *(array[:, column].astype(F64) for array in (x, dy)),
            *(gamma[column], beta[column], 1e-3, activation, weights),
        )
        for part, expected in zip(found, wanted, strict=True):
            scale = max(np.abs(expected).max(), np.abs(dy[:, column]).max())
            assert_allclose(part[..., column], expected, rtol=0, atol=tolerance * scale)


@each_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("n_rows", [16, 4096, 300_000])
@pytest.mark.parametrize("ratio", [0.0, 1e4])
def test_n15_column_sums_vanish(ratio, n_rows, weighted, dtype):
    """A shift of a column changes nothing; without epsilon, neither does a stretch."""
    rng = np.random.RandomState(3)
    x, dy = (rng.normal(size=(n_rows, 3)).astype(dtype) for _ in range(2))
    x += dtype(ratio)
    weights = rng.randint(0, 4, n_rows) if weighted else np.ones(n_rows)
    _, saved = batch_norm(x, epsilon=0.0, sample_weight=weights if weighted else None)
    dy *= weights[:, None].astype(dtype)
    dx, dgamma, dbeta = batch_norm_backward(dy, saved)
    dx = dx.astype(F64)
    xhat = (x - np.average(x.astype(F64), axis=0, weights=weights)) * saved.inv_std
    wide_dy = dy.astype(F64)
    tolerance = 1e-6 if dtype is F32 else 1e-9
    assert_allclose(dbeta, wide_dy.sum(axis=0), rtol=0, atol=tolerance * n_rows**0.5)
    assert_allclose(dgamma, (wide_dy * xhat).sum(axis=0), rtol=0, atol=tolerance * n_rows**0.5)
    # What is left are the roundings of each dx and of the three terms in it.
    rounding = 8 * np.finfo(dtype).eps + EPS64 * ratio
    for factor in (1.0, xhat):
        total = np.abs((dx * factor).sum(axis=0))
        assert np.all(total <= rounding * np.abs(dx * factor).sum(axis=0))


# Epsilon and gamma.


@each_dtype
@pytest.mark.parametrize("gamma", [0.0, 1.0, -3.7])
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4])
def test_n16_epsilon_and_gamma(spread, epsilon, gamma, dtype):
    """The formula within 2 ulp of the largest of y, gamma * xhat and beta.

    Float64 has nothing wider to compute in: 3 ulp, and next to the mean, ulps of gamma.
    """
    x = (normal(64, 3) * spread + [0.0, 1.0, -50.0]).astype(dtype)
    beta = np.array([0.0, 0.3, -1e3])
    with mpmath.workprec(300):
        wide = np.vectorize(mpmath.mpf, otypes=[object])(x.astype(F64))
        deviations = wide - wide.sum(axis=0) / len(x)
        total = (deviations**2).sum(axis=0) / len(x) + mpmath.mpf(epsilon)
        scaled = deviations / np.vectorize(mpmath.sqrt, otypes=[object])(total) * gamma
        expected = scaled + beta
        largest = np.maximum(np.maximum(np.abs(expected), np.abs(scaled)), np.abs(beta))
        if dtype is F64:
            largest = np.maximum(largest, abs(gamma))

        def ulps(y):
            return np.abs(y.astype(F64) - expected).astype(F64) / np.spacing(largest.astype(dtype))

        y, saved = batch_norm(x, gamma, beta, epsilon=epsilon)
        assert ulps(y).max() <= (2 if dtype is F32 else 3)
        inferred = batch_norm_inference(x, saved.mean, saved.var, gamma, beta, epsilon=epsilon)
        if dtype is F32:  # of a mean that is handed over, float64 keeps one part
            assert ulps(inferred).max() <= 2
    if gamma == 0:
        for result in (y, inferred):
            assert_array_equal(result, np.broadcast_to(beta.astype(dtype), x.shape))


@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_n16_no_variance_and_no_epsilon(activation, dtype):
    """The activation of beta, in training and with given statistics, far off the mean too."""
    x = np.full((5, 2), 7, dtype=dtype)
    beta = np.array([0.3, -2.0])
    expected = np.broadcast_to(ACTIVATIONS[activation](beta), x.shape)
    y, saved = batch_norm(x, 3.0, beta, epsilon=0.0, activation=activation)
    assert_array_equal(saved.inv_std, 0.0)
    tolerance = 4 * np.finfo(dtype).eps
    assert_allclose(y, expected, rtol=tolerance)
    far = batch_norm_inference(x, [7.0, -1e9], 0.0, 3.0, beta, epsilon=0.0, activation=activation)
    assert_allclose(far, expected, rtol=tolerance)
    for gradient in batch_norm_backward(np.ones_like(x), saved):
        assert np.isfinite(gradient).all()


# Bits: columns, layouts, threads.


def outcome(x, dy, axis=-1, activation="identity", sample_weight=None, first=0):
    """All that the functions give for an array, by name: rows and columns, or one a column.

    Scales and shifts are those of the columns from ``first`` on.
    """
    kept = tuple(x.shape[a] for a in np.atleast_1d(axis))
    gamma, beta = (np.cos(i + first + np.arange(math.prod(kept))).reshape(kept) for i in (1, 2))
    options = {"axis": axis, "activation": activation, "epsilon": 1e-5}
    y, saved = batch_norm(x, gamma, beta, sample_weight=sample_weight, **options)
    dx, dgamma, dbeta = batch_norm_backward(dy, saved)
    mean, var = moments(x, axis=axis, sample_weight=sample_weight)
    inferred = batch_norm_inference(x, mean, var, gamma, beta, **options)
    arrays = {"y": y, "dx": dx, "inferred": inferred}
    columns = {
        "mean": mean,
        "var": var,
        "saved mean": saved.mean,
        "saved var": saved.var,
        "inv_std": saved.inv_std,
        "dgamma": dgamma,
        "dbeta": dbeta,
    }
    arrays = {name: as_rows(array, saved.axis) for name, array in arrays.items()}
    return arrays | {name: array.reshape(-1) for name, array in columns.items()}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert_array_equal(found[name], array, err_msg=name)
        assert_array_equal(np.signbit(found[name]), np.signbit(array), err_msg=name)


def filled(out, x):
    out[...] = x
    return out


def gaps(x, rows, columns):
    """Memory in which the array that is taken from it has NaN for neighbours."""
    return np.full((rows * len(x), columns * x.shape[1]), np.nan, dtype=x.dtype)


def unaligned(x):
    raw = np.empty(x.nbytes + 1, dtype=np.uint8)[1:]
    return filled(np.ndarray(x.shape, x.dtype, buffer=raw), x)


def mapped(x):
    with tempfile.TemporaryFile() as file:
        return filled(np.memmap(file, dtype=x.dtype, mode="w+", shape=x.shape), x)


def read_only(x):
    out = x.copy()
    out.setflags(write=False)
    return out


def images(x):
    """Rows as four images of five lines, their channels last."""
    return x.reshape(4, 5, -1, x.shape[1])


def first_channels(x):
    return np.moveaxis(images(x), -1, 1).copy()


# Where the same rows and columns may lie, and which axes then are the columns.
LAYOUTS = {
    "C": (np.ascontiguousarray, -1),
    "F": (np.asfortranarray, -1),
    "strided": (lambda x: filled(gaps(x, 2, 3)[::2, 1::3], x), -1),
    "padded": (lambda x: filled(gaps(x, 1, 2)[:, : x.shape[1]], x), -1),
    "reversed": (lambda x: x[::-1, ::-1].copy()[::-1, ::-1], -1),
    "read-only": (read_only, -1),
    "memmap": (mapped, -1),
    "unaligned": (unaligned, -1),
    "big-endian": (lambda x: x.astype(x.dtype.newbyteorder(">")), -1),
    "byte order spelled out": (lambda x: x.astype(x.dtype.newbyteorder("<")), -1),
    "columns first": (lambda x: x.T.copy(), 0),
    "channels last": (images, -1),
    "channels last, F": (lambda x: np.asfortranarray(images(x)), -1),
    "channels last, reversed": (lambda x: images(x)[::-1].copy()[::-1], -1),
    "channels last, lines turned": (lambda x: images(x).swapaxes(1, 2).copy().swapaxes(1, 2), -1),
    "channels first": (first_channels, 1),
    "channels first, F": (lambda x: np.asfortranarray(first_channels(x)), 1),
    "channels between": (lambda x: np.moveaxis(images(x), -1, 2).copy(), -2),
    "two axes, last": (lambda x: x.reshape(4, -1, 3, x.shape[1] // 3), (2, 3)),
    "two axes, around": (lambda x: np.moveaxis(x.reshape(len(x), 3, -1), 1, 0).copy(), (0, 2)),
    "two axes, apart": (lambda x: x.reshape(4, -1, 3, x.shape[1] // 3).swapaxes(1, 2), (1, 3)),
}


def columns_alone(x, dy, layout, activation):
    """Check that columns give together what they give alone, in C order."""
    lay, axis = LAYOUTS[layout]
    together = outcome(lay(x), lay(dy), axis, activation)
    for column in np.unique(np.linspace(0, x.shape[1] - 1, 12).astype(int)):
        one = slice(column, column + 1)
        alone = outcome(x[:, one].copy(), dy[:, one].copy(), -1, activation, first=column)
        assert_same_bits({name: array[..., one] for name, array in together.items()}, alone)


def offset_columns(n_rows, n_columns, dtype):
    """Rows and gradients; the columns lie 0 to 1000 spreads off."""
    x, dy = (normal(n_rows, n_columns, seed) for seed in (1, 2))
    return (x + np.linspace(0, 1e3, n_columns)).astype(dtype), dy.astype(dtype)


@each_dtype
@pytest.mark.parametrize("layout", ["C", "F", "strided", "channels first"])
@pytest.mark.parametrize(
    ("n_rows", "n_columns"), [(20, 1000), (3000, 65), (3000, 33), (20_000, 5), (20_000, 1)]
)
@pytest.mark.parametrize("activation", ["identity", "tanh", "gelu"])
def test_n10_columns_are_independent(activation, n_rows, n_columns, layout, dtype):
    columns_alone(*offset_columns(n_rows, n_columns, dtype), layout, activation)


@each_dtype
@pytest.mark.parametrize("layout", ["C", "F", "channels first"])
@pytest.mark.parametrize("n_rows", [20, 3000])
def test_n11_scales_side_by_side(n_rows, layout, dtype):
    """From 1e-20 to 1e20: no column sees its neighbours."""
    x, dy = (normal(n_rows, 41, seed) for seed in (3, 4))
    x = (x + np.linspace(0, 1e3, 41)[::-1]) * 10.0 ** np.arange(-20, 21)
    columns_alone(x.astype(dtype), dy.astype(dtype), layout, "identity")


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n_rows", "n_columns"), [(600, 12), (20_000, 6), (20, 660)])
@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_n17_layouts(activation, n_rows, n_columns, layout, dtype):
    """Bit for bit what C order gives."""
    x, dy = offset_columns(n_rows, n_columns, dtype)
    lay, axis = LAYOUTS[layout]
    found = outcome(lay(x), lay(dy), axis, activation)
    assert_same_bits(found, outcome(x, dy, -1, activation))


@each_dtype
@pytest.mark.parametrize("layout", [name for name, (_, axis) in LAYOUTS.items() if np.all(axis)])
@pytest.mark.parametrize(("n_rows", "n_columns"), [(600, 12), (20_000, 6)])
def test_n17_layouts_with_weights(n_rows, n_columns, layout, dtype):
    x, dy = offset_columns(n_rows, n_columns, dtype)
    lay, axis = LAYOUTS[layout]
    laid = lay(x)
    weights = np.random.RandomState(0).uniform(size=len(laid)) * (np.arange(len(laid)) != 1)
    found = outcome(laid, lay(dy), axis, sample_weight=weights)
    rows_per_sample = n_rows // len(laid)
    expected = outcome(x, dy, sample_weight=np.repeat(weights, rows_per_sample))
    assert_same_bits(found, expected)


@each_dtype
@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed"])
def test_n17_layout_of_the_output(layout, dtype):
    """``out`` may lie otherwise than x, and so may dy."""
    x, dy = offset_columns(3000, 17, dtype)
    lay, _ = LAYOUTS[layout]
    options = {"activation": "softplus", "epsilon": 1e-5}
    y, saved = batch_norm(x, out=lay(np.empty_like(x)), **options)
    dx, *sums = batch_norm_backward(lay(dy), saved, out=lay(np.empty_like(x)))
    expected, saved = batch_norm(x, **options)
    assert_array_equal(y, expected)
    for found, wanted in zip((dx, *sums), batch_norm_backward(dy, saved), strict=True):
        assert_array_equal(found, wanted)


@contextmanager
def threads(n, monkeypatch):
    """So many threads, more than there are processors if need be."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with threadpool_limits(n, user_api="openmp"):
        yield


# Tall, wide, images, columns in front: each enough for several threads.
SHAPES = [((300_001, 3), -1), ((300, 3000), -1), ((16, 8, 70, 70), 1), ((7, 90_000), 0)]


@pytest.mark.skipif(not has_openmp(), reason="built without OpenMP")
@each_dtype
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_n17_threads(weighted, shape, axis, dtype, monkeypatch):
    """The same bits for one thread and many, and run after run."""
    rng = np.random.RandomState(0)
    x, dy = ((rng.normal(size=shape) + offset).astype(dtype) for offset in (100, 0))
    weights = rng.uniform(size=shape[0]) if weighted and axis else None
    runs = []
    for n in (1, 2, 3, 4, 8, 8, 2):
        with threads(n, monkeypatch):
            runs.append(outcome(x, dy, axis, "tanh", weights))
    for found in runs[1:]:
        assert_same_bits(found, runs[0])


def test_n17_calls_that_overlap():
    """Calls in threads of their own: each gives what it gives alone."""
    data = [offset_columns(30_000 + i, 4, F32) for i in range(6)]
    alone = [outcome(*pair) for pair in data]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(lambda pair: outcome(*pair), data), alone, strict=True):
            assert_same_bits(found, expected)


# What is not finite, and inference.


@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1234, 9999])
@pytest.mark.parametrize("layout", ["C", "F", "channels first", "columns first"])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_n18_stays_within_its_column(activation, layout, row, bad, dtype):
    """NaN in all of it, so that nobody takes it for a result; the other columns do not notice."""
    x, dy = offset_columns(10_000, 6, dtype)
    lay, axis = LAYOUTS[layout]
    expected = outcome(lay(x), lay(dy), axis, activation)
    x[row, 2] = bad
    found = outcome(lay(x), lay(dy), axis, activation)
    for name in ("y", "dx", "inferred"):
        assert np.isnan(found[name][:, 2]).all(), name
    for name in ("var", "saved var", "dgamma"):
        assert np.isnan(found[name][2]), name
    assert not np.isfinite(found["mean"][2])
    for outcomes in (found, expected):
        for array in outcomes.values():
            array[..., 2] = 0
    assert_same_bits(found, expected)


@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_n18_in_the_gradient(bad, dtype):
    x, dy = offset_columns(10_000, 6, dtype)
    expected = outcome(x, dy)
    dy[9999, 4] = bad
    found = outcome(x, dy)
    assert not np.isfinite(found["dx"][:, 4]).any()
    assert not np.isfinite([found["dgamma"][4], found["dbeta"][4]]).any()
    for outcomes in (found, expected):
        for array in (outcomes["dx"], outcomes["dgamma"], outcomes["dbeta"]):
            array[..., 4] = 0
    assert_same_bits(found, expected)


@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_n18_in_a_sample_without_weight(bad, dtype):
    """It counts nowhere: only its own output shows it."""
    x, _ = offset_columns(1000, 3, dtype)
    weights = np.ones(1000)
    weights[7] = 0
    expected, _ = batch_norm(x, sample_weight=weights)
    x[7, 1] = bad
    found, saved = batch_norm(x, sample_weight=weights)
    assert np.isfinite([saved.mean, saved.var]).all()
    assert not np.isfinite(found[7, 1])
    expected[7, 1] = found[7, 1] = 0
    assert_array_equal(found, expected)


@each_dtype
@pytest.mark.parametrize("ratio", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "logistic", "gelu"])
def test_n19_training_and_inference_agree(activation, ratio, dtype):
    """The same batch through both, within 4 epsilons of the formula and so of each other."""
    x = (normal(1024, 20) * 3 + 3 * ratio).astype(dtype)
    gamma, beta = np.linspace(-2, 2, 20), np.linspace(-1, 1, 20)
    trained, saved = batch_norm(x, gamma, beta, activation=activation)
    options = {"activation": activation}
    inferred = batch_norm_inference(x, saved.mean, saved.var, gamma, beta, **options)
    _, var, deviations = judge(x)
    scaled = deviations / np.sqrt(var + 1e-3) * gamma
    expected = ACTIVATIONS[activation](scaled + beta)
    allowed = 4 * np.finfo(dtype).eps * np.maximum(1, np.maximum(np.abs(expected), np.abs(scaled)))
    assert np.all(np.abs(trained - expected) <= allowed)
    # Of a mean that is handed over, float64 keeps one part.
    assert np.all(np.abs(inferred - expected) <= allowed + 2 * EPS64 * ratio)


# BatchNormTransformer: statistics over many calls.


@pytest.mark.parametrize("momentum", [None, 0.9, 0.999999])
def test_n13_moving_average_does_not_drift(momentum):
    """A thousand updates with the same two rows, far below a thousandth of a million's 1e-12."""
    x = np.array([[0.1, -1e3, 1e-9, 1e6], [0.3, 1e3, 3e-9, 1e6 + 1]])
    norm = BatchNormTransformer(momentum=momentum)
    for _ in range(1000):
        norm.partial_fit(x)
    mean, var, _ = judge(x)
    assert_allclose(norm.mean_, mean, rtol=2 * EPS64, atol=1e-15)
    assert_allclose(norm.var_, var, rtol=4 * EPS64)
    assert_array_equal(norm.n_batches_seen_, 1000)


@pytest.mark.parametrize("momentum", [0.5, 0.99, 0.9999])
def test_n13_moving_average_by_its_definition(momentum, seed):
    """The bias-corrected average of the batches' means and variances."""
    batches = np.random.RandomState(seed).normal(size=(500, 5, 3)) + 100
    norm = BatchNormTransformer(momentum=momentum)
    for batch in batches:
        norm.partial_fit(batch)
    shares = np.longdouble(momentum) ** np.arange(499, -1, -1)
    shares = (shares / shares.sum())[:, None]
    wide_batches = batches.astype(np.longdouble)
    assert_allclose(norm.mean_, (shares * wide_batches.mean(axis=1)).sum(axis=0), rtol=1e-15)
    assert_allclose(norm.var_, (shares * wide_batches.var(axis=1)).sum(axis=0), rtol=1e-13)


@each_dtype
@pytest.mark.parametrize("n_rows", [1, 2, 37])
@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
def test_n13_cumulative_equals_the_whole(ratio, n_rows, dtype):
    """So many rows a call."""
    x = (normal(500 * min(n_rows, 4), 3) + ratio).astype(dtype)
    norm = BatchNormTransformer()
    for start in range(0, len(x), n_rows):
        norm.partial_fit(x[start : start + n_rows])
    mean, var, _ = judge(x)
    assert_allclose(norm.mean_, mean, rtol=1e-15, atol=1e-13)
    assert_allclose(norm.var_, var, rtol=1e-13)
    assert norm.n_samples_seen_ == len(x)


@each_dtype
@pytest.mark.parametrize("n_shards", [1, 2, 7, 64])
@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
def test_n14_shards_of_partial_fit(ratio, n_shards, dtype, seed):
    """In any order, one of them a single row; what comes out normalizes as one fit does."""
    rng = np.random.RandomState(seed)
    x = (ratio + rng.normal(size=(1000, 3))).astype(dtype)
    cuts = rng.choice(np.arange(2, 999), n_shards - 1, replace=False)
    shards = np.split(x, np.sort(np.r_[1, cuts])) if n_shards > 1 else [x]
    norm = BatchNormTransformer(epsilon=0.0)
    for i in rng.permutation(len(shards)):
        norm.partial_fit(shards[i])
    mean, var, deviations = judge(x)
    assert_allclose(norm.mean_, mean, rtol=1e-15, atol=1e-12)
    assert_allclose(norm.var_, var, rtol=1e-12)
    expected = deviations / np.sqrt(var)
    tolerance = 4e-7 if dtype is F32 else 1e-12
    assert np.all(
        np.abs(norm.transform(x) - expected) <= tolerance * np.maximum(1, np.abs(expected))
    )


@each_dtype
def test_n01_n02_offsets_in_the_transformer(dtype):
    """Its mean has two parts as well: transform keeps the digits that batch_norm keeps."""
    x = ratios(dtype, 2000, [None, 2, 4, 6] if dtype is F32 else [2, 4, 6, 8, 10, 12])
    _, var, deviations = judge(x)
    expected = deviations / np.sqrt(var)
    y = BatchNormTransformer(epsilon=0.0).fit_transform(x)
    tolerance = 4e-7 if dtype is F32 else 1e-12
    assert np.all(np.abs(y - expected) <= tolerance * np.maximum(1, np.abs(expected)))


@each_dtype
@pytest.mark.parametrize("row", [0, 1234, 9999])
def test_n18_in_the_transformer(row, dtype, unchanged):
    """NaN is left out in its column; infinity is refused before anything changes."""
    x, _ = offset_columns(10_000, 3, dtype)
    norm = BatchNormTransformer().fit(x)
    expected = norm.mean_, norm.var_
    x[row, 1] = np.nan
    norm.fit(x)
    mean, var, _ = judge(np.delete(x[:, 1:2], row, axis=0))
    assert_allclose([norm.mean_[1:2], norm.var_[1:2]], [mean, var], rtol=1e-13)
    for found, same in zip((norm.mean_, norm.var_), expected, strict=True):
        assert_allclose(found[[0, 2]], same[[0, 2]], rtol=1e-15)
    y = norm.transform(x)
    assert_array_equal(np.argwhere(np.isnan(y)), [[row, 1]])
    x[row, 1] = np.inf
    with unchanged(norm):
        for refuse in (norm.fit, norm.partial_fit, norm.transform):
            with pytest.raises(ValueError, match="infinity"):
                refuse(x)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("axes", [(1,), (0, 2), (2,)])
def test_n10_beside_columns_beyond_float32(axes, weighted, activation):
    """What must be computed in float64 takes nothing else with it."""
    rng = np.random.RandomState(0)
    x = rng.normal(size=(20, 18, 17)).astype(F32)
    weights = rng.randint(0, 3, size=20) if weighted and 0 not in axes else None
    dy = rng.normal(size=x.shape).astype(F32)
    kept = [x.shape[axis] for axis in axes]
    gamma, beta = rng.normal(size=(2, *kept))
    extreme = np.zeros(kept, bool)
    extreme.flat[[1, 5]] = True
    scale = np.ones(kept)
    scale.flat[[1, 5]] = 1e-33, 1e34
    beside = np.moveaxis(
        np.moveaxis(x, axes, range(-len(axes), 0)) * scale, range(-len(axes), 0), axes
    )
    beside = beside.astype(F32)

    def results(x, dy, **out):
        keys = dict(axis=axes, activation=activation)
        y, saved = batch_norm(x, gamma, beta, epsilon=0.0, sample_weight=weights, **keys)
        inferred = batch_norm_inference(
            x.copy(), saved.mean, saved.var, gamma, beta, epsilon=0.0, **keys
        )
        dx, dgamma, dbeta = batch_norm_backward(dy, saved, **out)
        first = range(len(axes))
        return [*(np.moveaxis(a, axes, first) for a in (y, inferred, dx)), dgamma, dbeta]

    copy = dy.copy()
    for alone, other, in_place in zip(
        results(x, dy), results(beside, dy), results(beside, copy, out=copy), strict=True
    ):
        assert_array_equal(alone[~extreme], other[~extreme])
        assert_array_equal(in_place, other)
    y = np.moveaxis(batch_norm(beside, axis=axes, epsilon=0.0)[0], axes, range(len(axes)))
    same = np.moveaxis(batch_norm(x, axis=axes, epsilon=0.0)[0], axes, range(len(axes)))
    assert_allclose(y[extreme], same[extreme], rtol=1e-5, atol=1e-6)


@each_dtype
@pytest.mark.parametrize("n_columns", [64, 512])
def test_n17_n18_runs_in_scratch(n_columns, dtype):
    """Rows that are one row, and moments without NaN, go down the columns, whatever the layout."""
    row = normal(1, n_columns).astype(dtype)
    x = np.broadcast_to(row, (100, n_columns))
    y, saved = batch_norm(x)
    assert_array_equal(saved.mean, row[0])
    assert_array_equal(saved.var, 0)
    assert_array_equal(y, 0)
    dx, _, _ = batch_norm_backward(np.ones_like(x), saved)
    assert np.isfinite(dx).all()
    x = normal(100, n_columns).astype(dtype)
    x[7, 3] = np.nan
    norm = BatchNormTransformer().fit(x)
    assert_allclose(norm.mean_, np.nanmean(x.astype(F64), axis=0), rtol=1e-12, atol=1e-14)
    assert_allclose(norm.var_, np.nanvar(x.astype(F64), axis=0), rtol=1e-12)


@pytest.mark.parametrize("scale", [5e-324, 1e-320, 1e-300, 1e300, 1.7e308])
def test_weights_of_any_magnitude(scale):
    """Only ratios of weights matter; sums of them need not be numbers."""
    x, dy = normal(600, 2), normal(600, 2, seed=1)
    weights = np.r_[np.zeros(300), np.ones(300)]
    y, saved = batch_norm(x, sample_weight=weights)
    y_scaled, saved_scaled = batch_norm(x, sample_weight=scale * weights)
    assert_allclose(y_scaled, y, rtol=1e-14, atol=1e-14)
    for found, expected in zip(
        batch_norm_backward(dy, saved_scaled), batch_norm_backward(dy, saved), strict=True
    ):
        assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
    negligible = np.r_[np.full(300, 1e-320), np.ones(300)]
    assert_array_equal(moments(x, sample_weight=negligible), moments(x, sample_weight=weights))


def test_one_mean_for_all_has_no_axes():
    x = normal(5, 4)
    y, saved = batch_norm(x, 2.0, np.array(1.0), axis=None)
    parts = [saved.gamma, saved.beta, saved.mean, saved.var, saved.inv_std]
    for part in [*parts, *batch_norm_backward(y, saved)[1:], *moments(x, axis=None)]:
        assert isinstance(part, np.ndarray)
        assert part.shape == ()


@pytest.mark.parametrize("n_weights", [1, 3, 16])
def test_weights_that_do_not_fit_are_refused_before_memory_is_read(n_weights):
    _, saved = batch_norm(normal(8, 2), sample_weight=np.ones(8))
    saved.sample_weight = np.ones(n_weights)
    with pytest.raises(ValueError, match="weight for each of 8"):
        batch_norm_backward(normal(8, 2), saved)


@pytest.mark.parametrize("n_rows", [3, 5000])
def test_halves_of_one_array(n_rows):
    """From some channels of an array to others, which lie between them in memory."""
    both = normal(n_rows, 128).astype(F32).reshape(n_rows, 1, 128)
    x, out = both[..., :64], both[..., 64:]
    expected = batch_norm(x.copy())[0]
    y, saved = batch_norm(x, out=out)
    assert y is out
    assert_array_equal(y, expected)
    dx, _, _ = batch_norm_backward(np.ones_like(x), saved, out=out)
    assert dx is out
    assert_array_equal(batch_norm_inference(x, saved.mean, saved.var, out=out), expected)
    with pytest.raises(ValueError, match="shares memory"):
        batch_norm(x, out=both[..., 63:127])
