"""Statistics and normalization keep their digits, whatever the data: mpmath is the judge.

Every set of columns goes through batch norm in both of its modes: "training" is the walk that an
optimizer step takes (one batch, moving statistics after it), "population" the pass over all rows
and the prediction behind it. Tolerances are in units of the type's epsilon and hold for every
executor, the compiled ones being the ones that could lose them.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import math
from functools import cache

import mpmath
import numpy as np
import pytest
from cases import EXECUTORS, each_compiled, each_dtype, each_executor, optimizer, run_layer
from numpy.testing import assert_allclose, assert_array_equal

from skbn._layers import BatchNorm, Dense
from skbn._network import Network
from skbn.backends import reference
from skbn.backends.records import LossKind

F32, F64 = np.float32, np.float64
EPS32, EPS64 = float(np.finfo(F32).eps), float(np.finfo(F64).eps)

each_mode = pytest.mark.parametrize("mode", ["training", "population"])


def layer_of(n_columns, epsilon, **options):
    return BatchNorm(n_columns, "input", -1, epsilon=epsilon, **options)


def normalize(executor, mode, x, epsilon=1e-3, *, read=None, given=None):
    """Send columns through batch norm; return the rows ``read`` of y, mean and variance."""
    read = np.arange(len(x)) if read is None else read
    layer = layer_of(x.shape[1], epsilon)
    if mode == "training":
        found = run_layer(executor, layer, x, given=given, read=read)
        return found["y"], found["mean"], found["var"]
    network = Network([layer, Dense(x.shape[1], x.shape[1])], x.dtype)
    np.fill_diagonal(network.coefs[0], 1.0)
    for tensor in network.tensors:
        if tensor.layer == 0 and given:
            tensor.view(network.params)[...] = given[tensor.role]
    with EXECUTORS[executor](network, loss_kind=LossKind.CATEGORICAL_LOG_LOSS) as it:
        it.update_population_statistics(x, None, np.arange(len(x)))
        y = it.predict(x)[read]
    return y, network.batch_norms[0].population_mean, network.batch_norms[0].population_var


def some_rows(rows):
    """Rows to read: all, or as many as make the classes of ``run_layer`` cheap."""
    return np.unique(np.linspace(0, rows - 1, 64).astype(np.intp))


# Sets of columns: for each the values, and what may be lost of the variance, in epsilons.


def ratios(dtype, n_rows, exponents):
    z = np.random.RandomState(0).normal(size=(n_rows, len(exponents)))
    return (z + [0.0 if e is None else 10.0**e for e in exponents]).astype(dtype)


def spreads(dtype, n_rows, exponents):
    z = np.random.RandomState(1).normal(size=(n_rows, len(exponents)))
    return (z * 10.0 ** np.array(exponents)).astype(dtype)


def shapes(dtype, n_rows):
    """Sorted, alternating, heavy-tailed, one outlier in front, one behind, two values."""
    rng = np.random.RandomState(2)
    z = rng.normal(size=(n_rows, 6))
    z[:, 0].sort()
    z[:, 1] = np.abs(z[:, 1]) * (-1.0) ** np.arange(n_rows)
    z[:, 2] = rng.standard_cauchy(n_rows)
    z[0, 3] = z[-1, 4] = 1e6
    z[:, 5] = 1e6 + (z[:, 5] > 0)
    return z.astype(dtype)


SETS = {
    "offset": (F32, 2, lambda: ratios(F32, 4096, [None, 2, 3, 4, 5, 6, 7])),
    "offset, float64": (F64, 450, lambda: ratios(F64, 4096, [2, 4, 6, 8, 10, 12])),
    "offset, 2 rows": (F32, 2, lambda: ratios(F32, 2, [3, 3, 3])),
    "offset, 3 rows": (F32, 2, lambda: ratios(F32, 3, [3, 3, 3])),
    "offset, 16 rows": (F32, 2, lambda: ratios(F32, 16, [3, 3, 3])),
    "offset, 257 rows": (F32, 2, lambda: ratios(F32, 257, [3, 3, 3])),
    "spread": (F32, 2, lambda: spreads(F32, 1024, range(-12, 13, 3))),
    "spread, float64": (F64, 20, lambda: spreads(F64, 1024, range(-12, 13, 3))),
    "shapes": (F32, 4, lambda: shapes(F32, 2048)),
    "shapes, float64": (F64, 450, lambda: shapes(F64, 2048)),
}


@cache
def exact(name):
    """Mean, biased variance and deviations of the rows read, of the set's columns, by mpmath."""
    x = SETS[name][2]()
    x.setflags(write=False)
    read = some_rows(len(x))
    with mpmath.workprec(300):
        columns = [[mpmath.mpf(float(v)) for v in column] for column in x.T]
        means = [mpmath.fsum(column) / len(column) for column in columns]
        deviations = [[v - m for v in c] for c, m in zip(columns, means, strict=True)]
        variances = [mpmath.fsum(d * d for d in c) / len(c) for c in deviations]
    kept = np.array([[float(column[i]) for column in deviations] for i in read])
    return x, read, np.array(means, dtype=F64), np.array(variances, dtype=F64), kept


@each_executor
@each_mode
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
@pytest.mark.parametrize("name", SETS)
def test_digits(name, epsilon, mode, executor):
    """Means within an ulp, variances within the set's tolerance, outputs by the formula."""
    x, read, mean, var, deviations = exact(name)
    dtype, tolerance, _ = SETS[name]
    eps = float(np.finfo(dtype).eps)
    y, found_mean, found_var = normalize(executor, mode, x, epsilon, read=read)
    # Around 0 the spread, not the mean, is what rounding errors are measured by.
    ulp = np.spacing(np.abs(mean).astype(dtype)).astype(F64)
    assert np.all(np.abs(found_mean - mean) <= ulp + 4 * EPS64 * np.sqrt(var))
    assert_allclose(found_var, var, rtol=tolerance * eps)
    std = np.sqrt(var + epsilon)
    expected = deviations / std
    allowed = np.full_like(mean, 4e-7 if dtype is F32 else 1e-14)
    if mode == "population":
        # Statistics that are kept are float64: what is beyond shows at large offsets in float64.
        allowed += EPS64 * np.abs(mean) / std
    assert np.all(np.abs(y - expected) <= allowed * np.maximum(1, np.abs(expected)))


@each_executor
@each_dtype
@each_mode
@pytest.mark.parametrize("n_rows", [2, 33, 600])
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-3])
def test_constant_columns_give_beta(epsilon, n_rows, mode, dtype, executor):
    """Exactly: variance 0, output beta, and gradients that are finite."""
    values = np.array([0.0, 0.1, -100, 16777217, 1e10, 1e20, 1e30, 1e-30, 1e-3], dtype=dtype)
    x = np.tile(values, (n_rows, 1))
    given = {
        "weight": np.linspace(-2, 2, len(values)).astype(dtype),
        "bias": np.linspace(1, 3, len(values)).astype(dtype),
    }
    read = np.unique([0, n_rows // 2, n_rows - 1])
    y, mean, var = normalize(executor, mode, x, epsilon, read=read, given=given)
    assert_array_equal(mean, values)
    assert_array_equal(var, 0.0)
    rounding = 2 * np.finfo(dtype).eps if mode == "training" and n_rows & (n_rows - 1) else 0
    assert_allclose(y, np.tile(given["bias"], (len(read), 1)), rtol=rounding)
    if n_rows <= 33:
        dy = np.random.RandomState(0).normal(size=x.shape).astype(dtype)
        layer = layer_of(len(values), epsilon)
        found = run_layer(executor, layer, x, dy, given)
        assert all(np.isfinite(found[name]).all() for name in ("dx", "dweight", "dbias"))
        assert_array_equal(found["dweight"], 0.0)


@each_executor
@each_dtype
@each_mode
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("low", [1.0, 3e4, 1e8, -1e-3, 1e-30])
def test_two_rows(low, epsilon, mode, dtype, executor):
    """An ulp apart: +-(d / 2) / sqrt(d**2 / 4 + epsilon), within 2 ulp."""
    low = dtype(low)
    high = np.nextafter(low, dtype(np.inf))
    if mode == "population" and dtype is F64:  # a second ulp, for a mean that float64 can hold
        high = np.nextafter(high, np.inf)
    x = np.array([[low], [high]])
    half = (F64(x[1, 0]) - F64(x[0, 0])) / 2
    y, _, var = normalize(executor, mode, x, epsilon)
    if half**2 >= np.finfo(F64).tiny:
        assert_allclose(var, half**2, rtol=4 * EPS64)
    else:
        assert var <= np.finfo(F64).tiny
    if half >= np.finfo(dtype).tiny and half**2 + epsilon >= np.finfo(F64).tiny:
        expected = half / math.sqrt(half**2 + epsilon)
        assert_allclose(y[:, 0], [-expected, expected], rtol=2 * np.finfo(dtype).eps)
    else:
        assert np.isfinite(y).all()
        assert np.all(np.abs(y) <= 1)


@each_executor
@each_dtype
@each_mode
def test_gamma_of_zero(mode, dtype, executor):
    x = np.random.RandomState(0).normal(size=(8, 3)).astype(dtype)
    given = {"weight": np.zeros(3, dtype), "bias": np.array([1, -2, 0.1], dtype)}
    y, _, _ = normalize(executor, mode, x, given=given)
    assert_array_equal(y, np.tile(given["bias"], (8, 1)))


@each_executor
@pytest.mark.parametrize(("n_rows", "base"), [(1_000_000, 1e3), (100_000, 0.0), (257, 1e3)])
def test_one_row_in_many_differs(base, n_rows, executor):
    x = np.full((n_rows, 1), base, dtype=F32)
    x[n_rows // 3] += 1
    _, mean, var = normalize(executor, "population", x)
    assert_allclose(var, (1 - 1 / n_rows) / n_rows, rtol=2 * EPS32)
    assert_allclose(mean, base + 1 / n_rows, rtol=EPS32)


@each_executor
@each_mode
@pytest.mark.parametrize(
    ("dtype", "magnitude"), [(F32, 1e30), (F32, 1e38), (F64, 1e155), (F64, 1e308)]
)
def test_huge_values(magnitude, dtype, mode, executor):
    """Right, or visibly not finite, so that training ends with an error: never silent zeros."""
    x = (np.linspace(-1, 1, 8)[:, None] * magnitude).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        y, _, _ = normalize(executor, mode, x)
    expected = np.linspace(-1, 1, 8) / np.std(np.linspace(-1, 1, 8))
    if np.isfinite(y).all():
        assert_allclose(y[:, 0], expected, rtol=1e-5)


@each_executor
@each_dtype
@each_mode
@pytest.mark.parametrize("magnitude", [1e-30, 1e-38, 1e-44, 1e-300, 5e-324])
def test_tiny_values(magnitude, mode, dtype, executor):
    """Within the smallest normal number of the formula, denormals or not."""
    x = (np.array([[1], [-1], [3], [-3]]) * F64(magnitude)).astype(dtype)
    for epsilon in (0.0, 1e-3):
        y, _, var = normalize(executor, mode, x, epsilon)
        assert np.isfinite(y).all()
        assert np.all(var >= 0)
        if epsilon:
            tiny = np.finfo(dtype).tiny
            assert_allclose(y, x / math.sqrt(epsilon), rtol=1e-6, atol=40 * tiny)


# Columns and rows on their own.


def wide_columns(dtype):
    """A thousand columns of scales from 1e-20 to 1e20 at offsets of 0 to 1e3 spreads."""
    rng = np.random.RandomState(3)
    z = rng.normal(size=(8, 1000)) + 10 ** rng.uniform(0, 3, 1000)
    return (z * 10 ** rng.uniform(-20, 20, 1000)).astype(dtype)


@each_compiled
@each_dtype
@pytest.mark.parametrize("n_columns", [1, 2, 7, 8, 9, 33, 64, 65, 1000])
def test_columns_are_independent(n_columns, dtype, executor):
    """Bit for bit what a column gives alone, forward, backward and in its statistics."""
    x = wide_columns(dtype)
    rng = np.random.RandomState(4)
    dy = rng.normal(size=x.shape).astype(dtype)
    given = {
        "weight": rng.normal(size=1000).astype(dtype),
        "bias": rng.normal(size=1000).astype(dtype),
    }

    def outcome(columns):
        part = {role: value[columns] for role, value in given.items()}
        layer = layer_of(len(columns), 1e-5)
        found = run_layer(executor, layer, x[:, columns], dy[:, columns], part)
        _, mean, var = normalize(executor, "population", x[:, columns], 1e-5)
        return found | {"population mean": mean, "population var": var}

    together = outcome(np.arange(n_columns))
    for column in np.unique(np.linspace(0, n_columns - 1, 12).astype(int)):
        for name, alone in outcome(np.array([column])).items():
            assert_array_equal(together[name].T[column], alone.T[0], err_msg=name)


@each_executor
@each_dtype
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "logistic"])
def test_training_and_inference_agree(activation, dtype, executor):
    """The same full batch through both paths: within 4 epsilons of the formula, and so of it."""
    x = (np.random.RandomState(5).normal(size=(256, 20)) * 3 + 7).astype(dtype)
    layer = layer_of(20, 1e-3, activation=activation)
    trained = run_layer(executor, layer, x, read=np.arange(256))["y"]
    network = Network([layer, Dense(20, 20)], dtype)
    np.fill_diagonal(network.coefs[0], 1.0)
    with EXECUTORS[executor](network, loss_kind=LossKind.CATEGORICAL_LOG_LOSS) as it:
        it.update_population_statistics(x, None, np.arange(256))
        predicted = it.predict(x)
    assert_allclose(
        trained, predicted, rtol=0, atol=4 * np.finfo(dtype).eps * np.abs(trained).max()
    )


# Moving statistics.


def moving_after(executor, x, n_batches, momentum, dtype):
    """Moving mean and variance after so many batches of the same two rows."""
    network = Network([layer_of(x.shape[1], 1e-3, momentum=momentum), Dense(x.shape[1], 1)], dtype)
    rule = optimizer(network, "plain", learning_rate_init=0.0)
    rows = np.tile(np.arange(len(x)), n_batches)
    it = EXECUTORS[executor](network, loss_kind=LossKind.BINARY_LOG_LOSS, batch_size=len(x))
    data = x, np.zeros(len(x), dtype), None, rows
    position, sums = 0, it.new_sums()
    while position < len(rows):
        position = it.train(*data, position, rule.record, rule.memory, sums)
    return network.batch_norms[0].moving_mean, network.batch_norms[0].moving_var


@each_executor
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 0.999999, None])
def test_moving_statistics_do_not_drift(momentum, executor):
    """As many batches as there is time for, all the same: their statistics stay as they are."""
    x = np.array([[0.1, -1e3, 1e-9], [0.3, 1e3, 3e-9]])
    n_batches = 300 if executor.startswith(("reference", "simulated")) else 100_000
    mean, var = moving_after(executor, x, n_batches, momentum, F64)
    assert_allclose(mean, x.mean(axis=0), rtol=1e-12, atol=1e-13)
    assert_allclose(var, x.var(axis=0), rtol=1e-12)


@each_executor
@pytest.mark.parametrize("momentum", [0.0, 0.9, None])
def test_first_batch_counts_in_full(momentum, executor):
    """Whatever stood there before: 1e-24 is not lost beside it."""
    x = np.array([[1e-12, 1e6, 0.0], [-1e-12, 1e6 + 1, 0.0]])
    mean, var = moving_after(executor, x, 1, momentum, F64)
    assert_allclose(mean, [0.0, 1e6 + 0.5, 0.0], rtol=0)
    assert_allclose(var, [1e-24, 0.25, 0.0], rtol=2 * EPS64)


def test_moving_average_by_its_definition(seed):
    """The update that needs no division by a small number is the average it says it is."""
    rng = np.random.RandomState(seed)
    batches = rng.normal(size=(50, 3))
    for momentum in (0.5, 0.99, np.nan):
        moving = [np.full(3, 7.0), np.full(3, 5.0)]
        biased = np.zeros(3)
        for t, batch in enumerate(batches, start=1):
            reference.update_moving_statistics(moving, batch, batch**2, t, momentum)
            biased = momentum * biased + (1 - momentum) * batch
            expected = (
                batches[:t].mean(axis=0) if np.isnan(momentum) else biased / (1 - momentum**t)
            )
            assert_allclose(moving[0], expected, rtol=0, atol=1e-13)


# Weights.


@each_executor
@each_dtype
@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
def test_weighted_statistics(ratio, dtype, executor, seed):
    """Right at any offset; a row that hardly counts may lie far off."""
    rng = np.random.RandomState(seed)
    x = (ratio + rng.normal(size=(200, 3))).astype(dtype)
    weights = rng.uniform(0.1, 5.0, size=200)
    weights[1::7] = 0.0
    x[1::7] = 1e30
    weights[0] = 1e-30
    x[0] = ratio + 1e5
    wide, share = x.astype(np.longdouble), (weights / weights.sum())[:, None]
    mean = (share * np.where(share > 0, wide, 0)).sum(axis=0)
    var = (share * np.where(share > 0, wide - mean, 0) ** 2).sum(axis=0)

    network = Network([layer_of(3, 1e-3), Dense(3, 1)], dtype)
    rule = optimizer(network, "plain", learning_rate_init=0.0)
    it = EXECUTORS[executor](network, loss_kind=LossKind.BINARY_LOG_LOSS, batch_size=200)
    data = x, np.zeros(200, dtype), weights, np.arange(200)
    it.train(*data, 0, rule.record, rule.memory, it.new_sums())
    it.update_population_statistics(x, weights, np.arange(200))
    record = network.batch_norms[0]
    # One float64 rounding of the mean at the offset moves the variance by less than this.
    for found in (record.moving_mean, record.population_mean):
        np.testing.assert_allclose(found, mean.astype(float), rtol=1e-15, atol=1e-15)
    for found in (record.moving_var, record.population_var):
        np.testing.assert_allclose(found, var.astype(float), rtol=1e-12)
