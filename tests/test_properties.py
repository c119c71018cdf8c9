"""What holds for any array: hypothesis looks for shapes, axes, layouts and values where it fails.

Examples are the same in every run.
"""
# SPDX-License-Identifier: BSD-3-Clause

import math

import numpy as np
import pytest
from formulas import ACTIVATIONS, complex_step
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from skbn import BatchNormTransformer
from skbn.backends import get_array_functions
from skbn.backends.records import Activation
from skbn.backends.reference_arrays import as_rows
from skbn.functional import batch_norm, batch_norm_backward, batch_norm_inference, moments

bounded = settings(derandomize=True, deadline=None, max_examples=60, database=None)

dtypes = st.sampled_from([np.float32, np.float64])
activations = st.sampled_from(list(ACTIVATIONS))
epsilons = st.sampled_from([0.0, 1e-12, 1e-3, 1.0])


@st.composite
def shapes(draw, min_rows=2):
    """A shape and the axes kept, with so many rows at least over all others."""
    n_axes = draw(st.integers(1, 4))
    axes = draw(st.sets(st.integers(0, n_axes - 1), max_size=n_axes - 1))
    shape = [draw(st.integers(1, 9)) for _ in range(n_axes)]
    reduced = [axis for axis in range(n_axes) if axis not in axes]
    n_rows = math.prod(shape[axis] for axis in reduced)
    if n_rows < min_rows:
        shape[reduced[0]] *= -(-min_rows // n_rows)
    if draw(st.booleans()):  # long enough for several blocks, somewhere
        shape[reduced[0]] *= draw(st.sampled_from([7, 60, 300]))
    signed = tuple(axis - n_axes * draw(st.booleans()) for axis in sorted(axes))
    return tuple(shape), signed


@st.composite
def laid_out(draw, values):
    """The values in memory of any order, with any gaps, read in any direction."""
    order = draw(st.permutations(range(values.ndim)))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2])) for _ in order]
    lengths = [values.shape[axis] * abs(step) for axis, step in zip(order, steps, strict=True)]
    memory = np.full(lengths, np.nan, dtype=values.dtype)
    view = memory[tuple(slice(None, None, step) for step in steps)].transpose(np.argsort(order))
    view[...] = values
    return view


@st.composite
def arrays(draw, n=1, min_rows=2, dtype=None):
    """Arrays of one shape and type, whole numbers over 64 in whatever layouts; and the axes kept.

    Their sums, and shifts of them by a few thousand, are exact in float32.
    """
    shape, axes = draw(shapes(min_rows))
    dtype = dtype or draw(dtypes)
    rng = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    values = [(rng.randint(-256, 257, shape) / 64).astype(dtype) for _ in range(n)]
    return [draw(laid_out(array)) for array in values], axes


@st.composite
def parameters(draw, x, axes):
    """Scale and shift, or None."""
    kept = tuple(x.shape[axis] for axis in sorted(axis % x.ndim for axis in axes))
    rng = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    return [rng.normal(size=kept) if draw(st.booleans()) else None for _ in range(2)]


@st.composite
def weights(draw, x, axes, largest=3):
    """Whole weights of the samples, or None where the first axis is kept."""
    if 0 in [axis % x.ndim for axis in axes]:
        return None
    rng = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    drawn = rng.randint(0, largest + 1, len(x))
    drawn[0] = max(drawn[0], 1)
    return drawn


def rows_of(x, axes):
    return as_rows(x, tuple(sorted(axis % x.ndim for axis in axes)))


def eps(x):
    return float(np.finfo(x.dtype).eps)


def close(found, expected, tolerance):
    """Within so much of the largest value, or of 1."""
    largest = max(1.0, np.abs(expected).max())
    assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


@bounded
@given(st.data())
def test_any_axes_in_any_layout(data):
    """The NumPy functions are the judge."""
    (x, dy), axes = data.draw(arrays(2))
    gamma, beta = data.draw(parameters(x, axes))
    sample_weight = data.draw(st.none() | weights(x, axes))
    activation, epsilon = data.draw(activations), data.draw(epsilons.filter(bool))
    y, saved = batch_norm(
        *(x, gamma, beta),
        axis=axes,
        epsilon=epsilon,
        activation=activation,
        sample_weight=sample_weight,
    )
    dx, dgamma, dbeta = batch_norm_backward(dy, saved)

    judge, kind = get_array_functions("reference"), Activation[activation.upper()]
    flat = [None if value is None else value.reshape(-1) for value in (gamma, beta)]
    wide, wide_dy, expected, expected_dx = (np.array(a, dtype=np.float64) for a in (x, dy, x, x))
    shares = None if sample_weight is None else sample_weight.astype(np.float64)
    common = expected, wide, saved.axis, *flat, epsilon, kind, shares
    statistics = judge.batch_norm_forward(*common)
    common = expected_dx, wide_dy, wide, saved.axis, *flat, statistics, kind, shares
    sums = judge.batch_norm_backward(*common)

    tolerance = 8 * eps(x)
    assert_allclose(saved.mean.ravel(), statistics[0], rtol=0, atol=tolerance)
    assert_allclose(saved.var.ravel(), statistics[2], rtol=tolerance, atol=1e-30)
    close(y, expected, tolerance)
    # A batch norm of few values divides small differences by a small spread.
    steep = max(1.0, np.abs(saved.inv_std).max())
    close(dx, expected_dx, 8 * tolerance * steep)
    for found, wanted in zip((dgamma, dbeta), sums, strict=True):
        n_rows = x.size / max(1, wanted.size)
        close(found.ravel(), wanted, 8 * tolerance * n_rows**0.5)
    inferred = batch_norm_inference(
        *(x, saved.mean, saved.var, gamma, beta), axis=axes, epsilon=epsilon, activation=activation
    )
    close(inferred, expected, tolerance * steep)


@bounded
@given(st.data(), st.integers(-30, 30))
def test_scaling_by_a_power_of_two(data, exponent):
    """Nothing rounds: without epsilon the output is the same bit for bit, and dx the inverse."""
    (x, dy), axes = data.draw(arrays(2))
    options = {"axis": axes, "epsilon": 0.0, "activation": data.draw(activations)}
    scale = x.dtype.type(2.0**exponent)
    y, saved = batch_norm(x, **options)
    scaled_y, scaled = batch_norm(x * scale, **options)
    assert_array_equal(scaled_y, y)
    assert_array_equal(scaled.mean, saved.mean * scale)
    assert_array_equal(scaled.var, saved.var * float(scale) ** 2)
    dx, *sums = batch_norm_backward(dy, saved)
    scaled_dx, *scaled_sums = batch_norm_backward(dy, scaled)
    assert_array_equal(scaled_dx, dx / scale)
    for found, expected in zip(scaled_sums, sums, strict=True):
        assert_array_equal(found, expected)


@bounded
@given(st.data(), st.integers(-(2**18), 2**18))
def test_shifting(data, steps):
    """By what the type holds exactly, up to a thousand spreads: only the mean moves."""
    (x,), axes = data.draw(arrays())
    shift = steps / 64
    y, saved = batch_norm(x, axis=axes)
    shifted_y, shifted = batch_norm(x + x.dtype.type(shift), axis=axes)
    assert_allclose(shifted.mean, saved.mean + shift, rtol=0, atol=1e-12)
    assert_allclose(shifted.var, saved.var, rtol=1e-12, atol=1e-15)
    close(shifted_y, y, 16 * eps(x))


@bounded
@given(st.data())
def test_permuting_rows(data):
    (x, dy), axes = data.draw(arrays(2))
    reduced = [a for a in range(x.ndim) if a not in [axis % x.ndim for axis in axes]]
    axis = data.draw(st.sampled_from(reduced))
    order = np.random.RandomState(data.draw(st.integers(0, 99))).permutation(x.shape[axis])
    y, saved = batch_norm(x, axis=axes)
    permuted_y, permuted = batch_norm(np.take(x, order, axis), axis=axes)
    assert_allclose(permuted.mean, saved.mean, rtol=0, atol=1e-13)
    assert_allclose(permuted.var, saved.var, rtol=1e-13, atol=1e-16)
    close(permuted_y, np.take(y, order, axis), 16 * eps(x))
    dx, *_ = batch_norm_backward(dy, saved)
    permuted_dx, *_ = batch_norm_backward(np.take(dy, order, axis), permuted)
    close(permuted_dx, np.take(dx, order, axis), 64 * eps(x) * max(1, saved.inv_std.max()))


@bounded
@given(st.data())
def test_permuting_columns(data):
    """Bit for bit: no column knows its neighbours."""
    (x, dy), axes = data.draw(arrays(2).filter(lambda drawn: drawn[1]))
    axis = data.draw(st.sampled_from(axes))
    order = np.random.RandomState(data.draw(st.integers(0, 99))).permutation(x.shape[axis])
    place = sorted(a % x.ndim for a in axes).index(axis % x.ndim)
    y, saved = batch_norm(x, axis=axes, activation="gelu")
    permuted_y, permuted = batch_norm(np.take(x, order, axis), axis=axes, activation="gelu")
    assert_array_equal(permuted_y, np.take(y, order, axis))
    dx, *sums = batch_norm_backward(dy, saved)
    permuted_dx, *permuted_sums = batch_norm_backward(np.take(dy, order, axis), permuted)
    assert_array_equal(permuted_dx, np.take(dx, order, axis))
    for found, expected in zip(permuted_sums, sums, strict=True):
        assert_array_equal(found, np.take(expected, order, place))


@bounded
@given(st.data())
def test_weights_are_repetition(data):
    """Forward, and backward: a repeated row's gradients add up in the row of their weight."""
    (x, dy), axes = data.draw(arrays(2).filter(lambda d: 0 not in [a % d[0][0].ndim for a in d[1]]))
    sample_weight, options = data.draw(weights(x, axes)), {"axis": axes, "activation": "tanh"}
    y, saved = batch_norm(x, sample_weight=sample_weight, **options)
    repeated_y, repeated = batch_norm(np.repeat(x, sample_weight, axis=0), **options)
    assert_allclose(saved.mean, repeated.mean, rtol=0, atol=1e-13)
    assert_allclose(saved.var, repeated.var, rtol=1e-12, atol=1e-15)
    close(np.repeat(y, sample_weight, axis=0), repeated_y, 16 * eps(x))
    columns = sample_weight.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    dx, *sums = batch_norm_backward(dy * columns, saved)
    repeated_dx, *repeated_sums = batch_norm_backward(np.repeat(dy, sample_weight, 0), repeated)
    scale = 64 * eps(x) * max(1, saved.inv_std.max())
    counted = sample_weight > 0
    first = (np.cumsum(sample_weight) - sample_weight)[counted]
    close(dx[counted], repeated_dx[first] * columns[counted], scale)
    assert_array_equal(dx[~counted], 0)
    for found, expected in zip(sums, repeated_sums, strict=True):
        close(found, expected, 64 * eps(x) * len(x) ** 0.5)


@bounded
@given(st.data())
def test_constant_columns(data):
    """Whatever the constant and the weights: variance 0 and output beta."""
    shape, axes = data.draw(shapes(min_rows=1))
    dtype = data.draw(dtypes)
    width = 32 if dtype is np.float32 else 64
    constant = data.draw(st.floats(width=width, allow_nan=False, allow_infinity=False))
    x = data.draw(laid_out(np.full(shape, constant, dtype=dtype)))
    sample_weight = data.draw(st.none() | weights(x, axes))
    y, saved = batch_norm(
        *(x, 3.0, 0.5), axis=axes, epsilon=data.draw(epsilons), sample_weight=sample_weight
    )
    assert_array_equal(saved.mean, x.flat[0])
    assert_array_equal(saved.var, 0)
    assert_array_equal(y, 0.5)


@bounded
@given(st.data())
def test_idempotence(data):
    """What is normalized has mean 0 and variance 1, and normalizing it again changes nothing."""
    (x,), axes = data.draw(arrays())
    y, saved = batch_norm(x, axis=axes, epsilon=0.0)
    mean, var = moments(y, axis=axes)
    assert_allclose(mean, 0, atol=2 * eps(x))
    assert_allclose(var, saved.var > 0, atol=4 * eps(x))
    again, _ = batch_norm(y, axis=axes, epsilon=0.0)
    varied = np.where(rows_of(y, axes).any(axis=0), rows_of(again, axes), 0)
    close(varied, rows_of(y, axes), 8 * eps(x))


@bounded
@given(st.data())
def test_writing_into_what_is_read(data):
    """out may be x, or dy, or memory that they share in part: the result is the same bits."""
    (x, dy), axes = data.draw(arrays(2))
    options = {"axis": axes, "activation": data.draw(activations)}
    y, saved = batch_norm(x, **options)
    given_statistics = saved.mean, saved.var
    inferred = batch_norm_inference(x, *given_statistics, **options)
    expected = batch_norm_backward(dy, saved)

    into = data.draw(laid_out(np.zeros_like(x)))
    assert batch_norm(x, out=into, **options)[0] is into
    assert_array_equal(into, y)

    gradient = data.draw(laid_out(dy))
    found = batch_norm_backward(gradient, saved, out=gradient)
    assert found[0] is gradient
    for part, wanted in zip(found, expected, strict=True):
        assert_array_equal(part, wanted)

    found = batch_norm_backward(dy, saved, out=x)  # x is gone now
    for part, wanted in zip(found, expected, strict=True):
        assert_array_equal(part, wanted)

    x = data.draw(laid_out(dy))
    inferred = batch_norm_inference(x, *given_statistics, **options)
    assert batch_norm_inference(x, *given_statistics, out=x, **options) is x
    assert_array_equal(x, inferred)


@bounded
@given(st.data(), st.integers(-3, 3))
def test_writing_beside_what_is_read(data, offset):
    """Input and output overlap, moved by some rows or turned round."""
    dtype, n_rows = data.draw(dtypes), data.draw(st.sampled_from([5, 100, 3000]))
    values = np.random.RandomState(0).normal(size=(n_rows + 3, 4)).astype(dtype)
    turned = data.draw(st.booleans())

    def views():
        memory = values.copy()
        out = memory[max(offset, 0) :][:n_rows]
        return memory[max(-offset, 0) :][:n_rows], out[::-1] if turned else out

    x, out = views()
    expected = batch_norm_inference(x.copy(), 0.5, 2.0)
    assert_array_equal(batch_norm_inference(x, 0.5, 2.0, out=out), expected)
    for which in ("x", "dy"):
        shared, out = views()
        other = np.ones((n_rows, 4), dtype=dtype) * np.arange(n_rows, dtype=dtype)[:, None]
        x, dy = (shared, other) if which == "x" else (other, shared)
        wanted = batch_norm_backward(dy.copy(), batch_norm(x.copy())[1])
        found = batch_norm_backward(dy, batch_norm(x)[1], out=out)
        for part, same in zip(found, wanted, strict=True):
            assert_array_equal(part, same)
    shared, out = views()
    with pytest.raises(ValueError, match="shares memory"):
        batch_norm(shared, out=out)


@bounded
@given(st.data())
def test_backward_is_the_derivative(data):
    """Against the complex step, in float64, one column of the array after the other."""
    (x, dy), axes = data.draw(arrays(2, dtype=np.float64).filter(lambda d: d[0][0].size <= 600))
    gamma, beta = data.draw(parameters(x, axes))
    sample_weight = data.draw(st.none() | weights(x, axes))
    activation, epsilon = data.draw(activations), data.draw(epsilons.filter(lambda e: e > 1e-6))
    _, saved = batch_norm(
        *(x, gamma, beta),
        axis=axes,
        epsilon=epsilon,
        activation=activation,
        sample_weight=sample_weight,
    )
    shares = np.ones(x.shape)
    if sample_weight is not None:
        shares *= sample_weight.reshape(-1, *[1] * (x.ndim - 1))
    dy = dy * shares
    dx, dgamma, dbeta = batch_norm_backward(dy, saved)
    columns = (rows_of(array, axes).T for array in (x, dy, dx, shares))
    flat = [
        np.full(saved.mean.shape, d) if v is None else v for v, d in ((gamma, 1.0), (beta, 0.0))
    ]
    per_column = (array.ravel() for array in (*flat, dgamma, dbeta))
    for xs, dys, dxs, ws, g, b, *found in zip(*columns, *per_column, strict=True):
        # At a kink of the activation there is no derivative; constant columns lie on it.
        if np.ptp(xs) == 0 or (activation in ("relu", "leaky_relu", "elu", "selu") and b == 0):
            continue
        expected = complex_step(xs, dys, g, b, epsilon, activation, ws)
        for part, wanted in zip((dxs, *found), expected, strict=True):
            close(part, wanted, 1e-9 * max(1, np.abs(dys).sum()))


@bounded
@given(st.data())
def test_chunks_in_any_order(data):
    """However the samples are cut and ordered, the transformer ends with the whole's statistics."""
    (x,), axes = data.draw(
        arrays().filter(lambda d: d[1] and 0 not in [a % d[0][0].ndim for a in d[1]])
    )
    cuts = data.draw(st.lists(st.integers(1, len(x)), max_size=9))
    chunks = [chunk for chunk in np.split(x, sorted(cuts)) if len(chunk)]
    norm = BatchNormTransformer(axis=axes)
    for chunk in data.draw(st.permutations(chunks)):
        norm.partial_fit(chunk)
    mean, var = moments(x, axis=axes)
    assert_allclose(norm.mean_, mean, rtol=0, atol=1e-13)
    assert_allclose(norm.var_, var, rtol=1e-12, atol=1e-15)
    y, _ = batch_norm(x, axis=axes)
    close(norm.transform(x), y, 16 * eps(x))
