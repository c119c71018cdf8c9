"""What skbn.functional promises: parameters, shapes, types, errors, memory, threads.

The numbers in it are tests/backends/test_arrays.py, tests/test_numerics_arrays.py and
tests/test_properties.py.
"""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import each_dtype, read_only, untyped_signature
from formulas import ACTIVATIONS
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from threadpoolctl import threadpool_info

import skbn
from skbn import functional
from skbn.functional import (
    BatchNormSaved,
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    moments,
)

F32, F64 = np.float32, np.float64
X = np.random.RandomState(0).normal(2, 3, size=(6, 4, 5))


def inference(x, **options):
    return batch_norm_inference(x, 0.5, 2.0, **options)


def training(x, **options):
    return batch_norm(x, **options)[0]


def backward(x, **options):
    return batch_norm_backward(x, batch_norm(x)[1], **options)[0]


# All that take an array, all that give one of its shape, all that take parameters.
each_function = pytest.mark.parametrize("function", [moments, batch_norm, inference])
each_writer = pytest.mark.parametrize("function", [training, inference, backward])
each_norm = pytest.mark.parametrize("function", [training, inference])


# The module.


def test_names():
    assert functional.__all__ == sorted(functional.__all__)
    assert all(hasattr(functional, name) for name in functional.__all__)
    assert "functional" in dir(skbn)
    assert "functional" in skbn.__all__
    assert skbn.functional is functional


def test_import_is_late():
    """The package alone does not load it; the attribute does."""
    program = (
        "import sys, skbn; print('skbn.functional' in sys.modules); "
        "print(skbn.functional.batch_norm is sys.modules['skbn.functional'].batch_norm)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["False", "True"]


def test_signatures():
    """What may be given by position, and the defaults."""
    signatures = [
        str(untyped_signature(function))
        for function in (batch_norm, batch_norm_backward, batch_norm_inference, moments)
    ]
    assert signatures == [
        "(x, gamma=None, beta=None, *, axis=-1, epsilon=0.001, activation=None, "
        "sample_weight=None, out=None)",
        "(dy, saved, *, out=None)",
        "(x, mean, var, gamma=None, beta=None, *, axis=-1, epsilon=0.001, activation=None, "
        "out=None)",
        "(x, *, axis=-1, sample_weight=None)",
    ]


# Formulas and parameters.


def by_formula(x, axis=(-1,), gamma=1.0, beta=0.0, epsilon=1e-3, activation="identity"):
    """Keeping NumPy's axes of length one."""
    axes = [a % x.ndim for a in axis]
    reduced = tuple(a for a in range(x.ndim) if a not in axes)
    z = (x - x.mean(axis=reduced, keepdims=True)) / np.sqrt(
        x.var(axis=reduced, keepdims=True) + epsilon
    )
    shape = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    gamma, beta = (
        np.asarray(v) if np.ndim(v) == 0 else np.reshape(v, shape) for v in (gamma, beta)
    )
    return ACTIVATIONS[activation](z * gamma + beta)


@pytest.mark.parametrize(
    ("axis", "kept"),
    [
        (-1, (5,)),
        (0, (6,)),
        (1, (4,)),
        (-2, (4,)),
        (np.int64(1), (4,)),
        (None, ()),
        ((), ()),
        ([], ()),
        ((1,), (4,)),
        ([1], (4,)),
        ((0, 2), (6, 5)),
        ((2, 0), (6, 5)),
        ((-1, 0), (6, 5)),
        ((-1, -2), (4, 5)),
    ],
    ids=str,
)
def test_axis(axis, kept):
    """The axes named keep their statistics, in their order in x whatever the order in axis."""
    axes = () if axis is None else tuple(np.atleast_1d(axis).astype(int))
    ascending = tuple(sorted(a % 3 for a in axes))
    reduced = tuple(a for a in range(3) if a not in ascending)
    rng = np.random.RandomState(1)
    gamma, beta = rng.normal(size=(2, *kept))
    mean, var = moments(X, axis=axis)
    y, saved = batch_norm(X, gamma, beta, axis=axis)
    inferred = batch_norm_inference(X, mean, var, gamma, beta, axis=axis)
    dx, dgamma, dbeta = batch_norm_backward(X, saved)
    per_column = (mean, var, saved.mean, saved.var, saved.inv_std, dgamma, dbeta)
    assert all(isinstance(a, np.ndarray) and a.dtype == F64 for a in per_column)
    assert {a.shape for a in (*per_column, saved.gamma, saved.beta)} == {kept}
    assert y.shape == inferred.shape == dx.shape == X.shape
    assert saved.axis == ascending
    assert_allclose(mean, X.mean(axis=reduced), rtol=1e-14)
    assert_allclose(var, X.var(axis=reduced), rtol=1e-13)
    expected = by_formula(X, ascending, gamma, beta)
    assert_allclose(y, expected, rtol=1e-12, atol=1e-13)
    assert_allclose(inferred, expected, rtol=1e-12, atol=1e-13)
    assert_allclose(dbeta, X.sum(axis=reduced), rtol=1e-12, atol=1e-13)


def test_columns_of_a_matrix_by_default():
    assert_array_equal(training(X), training(X, axis=2))
    assert_array_equal(moments(X), moments(X, axis=2))
    assert_array_equal(inference(X), inference(X, axis=2))


@pytest.mark.parametrize("shape", [(7,), (1, 1), (1, 3), (3, 1), (1,) * 32, (2, 1, 3, 1, 2)])
def test_any_number_of_axes(shape):
    x = np.random.RandomState(0).normal(size=shape)
    axes = None if len(shape) == 1 else -1
    y, saved = batch_norm(x, axis=axes)
    assert y.shape == shape
    assert_allclose(y, by_formula(x, () if axes is None else (-1,)), rtol=1e-12, atol=1e-13)
    assert batch_norm_backward(y, saved)[0].shape == shape


@each_norm
@pytest.mark.parametrize(
    ("option", "one", "other"),
    [
        ("axis", -1, 0),
        ("epsilon", 1e-3, 1e-2),
        ("activation", None, "silu"),
        ("gamma", None, 2.0),
        ("beta", None, 0.5),
        ("out", None, np.zeros_like(X)),
    ],
)
def test_options_matter(option, one, other, function):
    """One is the default, and the other is something else."""
    default, same = function(X), function(X, **{option: one})
    assert_array_equal(same, default)
    found = function(X, **{option: other})
    if option == "out":
        assert found is other
        assert_array_equal(found, default)
    elif not (function is inference and option == "axis"):  # one mean, one variance for all
        assert not np.allclose(found, default, rtol=1e-4)


@each_dtype
@pytest.mark.parametrize("epsilon", [0, 1e-3, 1, np.float32(0.5), np.int64(2)])
def test_epsilon(epsilon, dtype):
    x = X.astype(dtype)
    _, saved = batch_norm(x, epsilon=epsilon)
    assert_allclose(saved.inv_std, 1 / np.sqrt(saved.var + float(epsilon)), rtol=1e-14)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is F32 else {"rtol": 1e-12, "atol": 1e-13}
    expected = by_formula(x.astype(F64), epsilon=float(epsilon))
    assert_allclose(training(x, epsilon=epsilon), expected, **tolerance)


@pytest.mark.parametrize(
    "value", [-1.5, 0.0, 2, np.float32(0.5), [2.0], np.array([[3.0]]), np.array(2)], ids=repr
)
@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_one_parameter_for_all(
    name,
    value,
):
    """A number, or an array of one: as an array of as many as there are columns."""
    columns = np.full(5, float(np.asarray(value).item()))
    for function in (training, inference):
        assert_array_equal(function(X, **{name: value}), function(X, **{name: columns}))
    found, expected = (batch_norm(X, **{name: v})[1] for v in (value, columns))
    for part, same in zip(*(batch_norm_backward(X, s) for s in (found, expected)), strict=True):
        assert_array_equal(part, same)
    for mean, var in ((value, 2.0), (0.5, abs(columns[0]))):
        arrays = [np.full(5, float(np.asarray(v).item())) for v in (mean, var)]
        assert_array_equal(batch_norm_inference(X, mean, var), batch_norm_inference(X, *arrays))


@pytest.mark.parametrize("kind", [list, tuple, F32, np.int32, ">f8"], ids=str)
def test_parameters_of_any_kind(kind):
    """Read as float64."""
    gamma, beta, mean, var = (np.array([i, 2, -1, 0, 3]) ** 2.0 for i in range(4))
    others = [
        kind(v) if kind in (list, tuple) else v.astype(kind) for v in (gamma, beta, mean, var)
    ]
    assert_array_equal(
        training(X, gamma=others[0], beta=others[1]), training(X, gamma=gamma, beta=beta)
    )
    assert_array_equal(
        batch_norm_inference(X, *others[2:], *others[:2]),
        batch_norm_inference(X, mean, var, gamma, beta),
    )


def test_gamma_negative_and_zero():
    """Nothing divides by it: what it hides has a gradient."""
    gamma, beta = np.array([-2.0, -1, 0, 1, 0.5]), np.arange(5.0)
    y, saved = batch_norm(X, gamma, beta)
    assert_allclose(y, by_formula(X, gamma=gamma, beta=beta), rtol=1e-12, atol=1e-13)
    assert_array_equal(y[..., 2], beta[2])
    dx, dgamma, dbeta = batch_norm_backward(X, saved)
    assert_array_equal(dx[..., 2], 0)
    assert_allclose(dgamma, (X * training(X)).sum(axis=(0, 1)), rtol=1e-12)
    assert_allclose(dbeta, X.sum(axis=(0, 1)), rtol=1e-12)


@each_norm
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name, function):
    """Behind scale and shift, and in front of them nothing."""
    plain = function(X, gamma=-2.0, beta=0.3)
    assert_allclose(
        function(X, gamma=-2.0, beta=0.3, activation=name),
        ACTIVATIONS[name](plain),
        rtol=1e-12,
        atol=1e-14,
    )


def test_weights_are_repetition():
    """Zero is absence, and only ratios matter to the mean."""
    weights = np.array([2, 0, 1, 3, 0, 1])
    repeated = np.repeat(X, weights, axis=0)
    for kind in (weights, weights.tolist(), weights.astype(F32), 0.1 * weights):
        for found, expected in zip(moments(X, sample_weight=kind), moments(repeated), strict=True):
            assert_allclose(found, expected, rtol=1e-13)
    y, saved = batch_norm(X, sample_weight=weights)
    assert_allclose(np.repeat(y, weights, axis=0), training(repeated), rtol=1e-12, atol=1e-13)
    assert_array_equal(saved.sample_weight, weights)
    dx, *_ = batch_norm_backward(X * weights[:, None, None], saved)
    assert_array_equal(dx[weights == 0], 0)
    assert_array_equal(training(X, sample_weight=np.ones(6)).shape, X.shape)
    assert_allclose(training(X, sample_weight=np.ones(6)), training(X), rtol=1e-12, atol=1e-14)


# Types.


@each_dtype
@each_writer
def test_dtype_stays(function, dtype):
    x = X.astype(dtype)
    assert function(x).dtype == dtype
    assert all(array.dtype == F64 for array in moments(x))


@each_writer
@pytest.mark.parametrize(
    "dtype", ["f2", "i1", "u1", "i4", "i8", "u8", "?", "g", ">f8", ">i4", "O", "U9", "S9"]
)
def test_all_else_is_float64(dtype, function):
    """Integers, booleans, half precision, objects and strings of numbers."""
    x = (X > 2).astype(dtype) if dtype in ("?", "O") else X.astype(int).astype(dtype)
    x = np.char.mod("%d", X.astype(int)).astype(dtype) if dtype in ("U9", "S9") else x
    y = function(x)
    assert y.dtype == F64
    assert_array_equal(y, function(x.astype(F64)))


def test_big_endian_float32_stays_float32():
    y = training(X.astype(">f4"))
    assert y.dtype == F32
    assert_array_equal(y, training(X.astype(F32)))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_gradient_of_another_type(dtype):
    """It is read in the type of x."""
    x = X.astype(dtype)
    _, saved = batch_norm(x)
    dy = np.arange(X.size).reshape(X.shape)
    expected = batch_norm_backward(dy.astype(dtype), saved)
    for other in (dy, dy.tolist(), dy.astype(F32), dy.astype(">f8")):
        for part, same in zip(batch_norm_backward(other, saved), expected, strict=True):
            assert part.dtype == same.dtype
            assert_array_equal(part, same)


@each_function
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X + 1j, ValueError, "Complex data not supported"),
        (np.array([["a", "b"]]), ValueError, "could not convert string to float"),
        (np.array([[None, object()]]), TypeError, "float"),
        ([[1, 2], [3]], ValueError, "inhomogeneous"),
        (csr_array(np.eye(3)), (TypeError, ValueError), "float|Sparse"),
    ],
    ids=["complex", "strings", "objects", "ragged", "sparse"],
)
def test_what_is_no_array_of_numbers(x, error, message, function):
    with pytest.raises(error, match=message):
        function(x)


# Errors.


@each_function
@pytest.mark.parametrize(
    ("shape", "axis", "message"),
    [
        ((3, 2), 2, "axis 2 is out of bounds for array of dimension 2"),
        ((3, 2), -3, "axis -3 is out of bounds"),
        ((3, 2), (0, 5), "axis 5 is out of bounds"),
        ((), 0, "axis 0 is out of bounds for array of dimension 0"),
    ],
)
def test_axis_out_of_bounds(shape, axis, message, function):
    with pytest.raises(np.exceptions.AxisError, match=message):
        function(np.ones(shape), axis=axis)


@each_function
@pytest.mark.parametrize(
    ("shape", "axis", "message"),
    [
        ((3, 2), (0, 0), r"axis=\(0, 0\) names an axis twice"),
        ((3, 2), (1, -1), r"axis=\(1, -1\) names an axis twice"),
        (
            (3, 2),
            (0, 1),
            r"axis=\(0, 1\) keeps every axis of an array with 2 of them; one at least",
        ),
        ((3,), -1, "axis=-1 keeps every axis of an array with 1 of them"),
        ((), None, r"axis=None keeps every axis of an array with 0 of them"),
    ],
)
def test_axis_without_meaning(shape, axis, message, function):
    with pytest.raises(ValueError, match=message):
        function(np.ones(shape), axis=axis)


@each_function
@pytest.mark.parametrize("axis", [1.0, "1", (0.0,), {1}])
def test_axis_that_is_no_integer(axis, function):
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        function(np.ones((3, 2)), axis=axis)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
def test_empty(shape):
    """Without numbers there are no statistics; with given ones nothing is left to do."""
    x = np.ones(shape, F32)
    for function in (moments, batch_norm):
        with pytest.raises(ValueError, match="x is empty: it has shape"):
            function(x)
    y = inference(x)
    assert (y.shape, y.dtype) == (shape, F32)
    out = np.empty(shape, F32)
    assert inference(x, out=out) is out


@each_norm
@pytest.mark.parametrize(
    ("epsilon", "error", "message"),
    [
        (-1e-9, ValueError, "epsilon must be a finite number, 0 or more, got -1e-09"),
        (np.inf, ValueError, "got inf"),
        (np.nan, ValueError, "got nan"),
        (None, TypeError, "float"),
        ("small", ValueError, "could not convert string to float"),
    ],
)
def test_bad_epsilon(epsilon, error, message, function):
    with pytest.raises(error, match=message):
        function(X, epsilon=epsilon)


@each_norm
@pytest.mark.parametrize("activation", ["ReLU", "swish", "", 3, ["relu"], np.tanh])
def test_bad_activation(activation, function):
    names = "activation must be None or one of identity, logistic, tanh, relu, .* softplus, got "
    with pytest.raises(ValueError, match=names):
        function(X, activation=activation)


@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "var"])
@pytest.mark.parametrize("shape", [(4,), (6,), (0,), (1, 5), (5, 1), (6, 4, 5)])
def test_bad_shape_of_a_parameter(shape, name):
    """A row of one number for each column has the shape of the columns, and no other."""
    message = rf"{name} has shape .*; the axes kept have shape \(5,\)"
    given = {"mean": 0.0, "var": 1.0} | {name: np.ones(shape)}
    with pytest.raises(ValueError, match=message):
        batch_norm_inference(X, **given)
    if name in ("gamma", "beta"):
        with pytest.raises(ValueError, match=message):
            batch_norm(X, **{name: np.ones(shape)})


def test_parameters_of_two_axes_are_not_flat():
    with pytest.raises(
        ValueError, match=r"gamma has shape \(20,\); the axes kept have .* \(4, 5\)"
    ):
        batch_norm(X, np.ones(20), axis=(1, 2))
    assert training(X, gamma=np.ones((4, 5)), axis=(1, 2)).shape == X.shape


@each_norm
@pytest.mark.parametrize(
    "value", [1j, [1, 2j, 3, 4, 5], "one", object()], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_parameters_are_numbers(name, value, function):
    with pytest.raises((TypeError, ValueError), match=r"Complex data|convert string|float"):
        function(X, **{name: value})


def test_bad_statistics():
    for mean, var in ((None, 1.0), (0.0, None)):
        with pytest.raises(ValueError, match="mean and var must be given"):
            batch_norm_inference(X, mean, var)
    for var in (-1e-9, [1, 2, -1, 3, 4], -np.inf):
        with pytest.raises(ValueError, match="var holds negative values"):
            batch_norm_inference(X, 0.0, var)


@pytest.mark.parametrize("function", [moments, batch_norm])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(5), r"sample_weight has shape \(5,\), expected \(6,\)"),
        (np.ones((6, 1)), r"sample_weight has shape \(6, 1\), expected \(6,\)"),
        (1.0, r"sample_weight has shape \(\), expected \(6,\)"),
        ([1, 1, -1, 1, 1, 1], "negative or not finite"),
        ([1, 1, np.nan, 1, 1, 1], "negative or not finite"),
        ([1, 1, np.inf, 1, 1, 1], "negative or not finite"),
        (np.zeros(6), "sample_weight is zero for every sample"),
        (np.ones(6, complex), "Complex data not supported"),
        (list("abcdef"), "could not convert string"),
    ],
)
def test_bad_weights(weights, message, function):
    with pytest.raises(ValueError, match=message):
        function(X, sample_weight=weights)


@pytest.mark.parametrize("function", [moments, batch_norm])
@pytest.mark.parametrize("axis", [0, -3, (0, 1)])
def test_weights_of_samples_that_are_kept(axis, function):
    with pytest.raises(ValueError, match="needs the first axis, which holds the samples, reduced"):
        function(X, axis=axis, sample_weight=np.ones(6))


def test_bad_gradient():
    _, saved = batch_norm(X)
    with pytest.raises(ValueError, match=r"dy has shape \(6, 5, 4\), but x has shape \(6, 4, 5\)"):
        batch_norm_backward(X.reshape(6, 5, 4), saved)
    with pytest.raises(ValueError, match="Complex data not supported\ndy has dtype complex128"):
        batch_norm_backward(X + 0j, saved)


# out.


def unaligned(x):
    raw = np.empty(x.nbytes + 1, dtype=np.uint8)[1:]
    out = np.ndarray(x.shape, x.dtype, buffer=raw)
    out[...] = x
    return out


@each_writer
@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (
            np.empty((6, 4)),
            ValueError,
            r"out must be an aligned array of shape \(6, 4, 5\) and type",
        ),
        (np.empty((1, 6, 4, 5)), ValueError, r"got shape \(1, 6, 4, 5\)"),
        (np.empty(X.shape, F32), ValueError, "type float64, got shape .* and type float32"),
        (np.empty(X.shape, ">f8"), ValueError, "got shape .* and type >f8"),
        (unaligned(X), ValueError, "aligned array"),
        (read_only(X.copy())[0], ValueError, "out is read-only"),
        (X.tolist(), TypeError, "out must be a NumPy array, got list"),
        (True, TypeError, "got bool"),
    ],
    ids=["axes", "more axes", "type", "byte order", "unaligned", "read-only", "list", "bool"],
)
def test_bad_out(out, error, message, function):
    with pytest.raises(error, match=message):
        function(X, out=out)


@each_writer
@pytest.mark.parametrize("kind", ["C", "F", "strided", "reversed", "memmap"])
def test_out(kind, function, tmp_path):
    """It is written to the last number, no number beside it, and returned itself."""
    memory = np.full([2 * n for n in X.shape], np.nan)
    out = {
        "C": lambda: np.full(X.shape, np.nan),
        "F": lambda: np.full(X.shape, np.nan, order="F"),
        "strided": lambda: memory[1::2, ::2, 1::2],
        "reversed": lambda: memory[5::-1, 3::-1, 4::-1],
        "memmap": lambda: np.memmap(tmp_path / "out", F64, "w+", shape=X.shape),
    }[kind]()
    expected = function(X)
    assert function(X, out=out) is out
    assert_array_equal(out, expected)
    if kind in ("strided", "reversed"):
        out[...] = np.nan
        assert np.isnan(memory).all()


def test_out_of_training_may_not_be_x():
    """Backward reads x again: refused before anything is written, shifted or as a whole."""
    memory = np.arange(40.0).reshape(10, 4)
    before = memory.copy()
    for x, out in ((memory, memory), (memory[:6], memory[2:8]), (memory[::2], memory[4::-1])):
        with pytest.raises(ValueError, match="out shares memory with x, which batch_norm_backward"):
            batch_norm(x, out=out)
    assert_array_equal(memory, before)
    x, out = memory[:5], memory[5:]  # one after the other is fine
    assert_array_equal(training(x.copy()), training(x, out=out))


@each_dtype
@pytest.mark.parametrize("order", ["C", "F"])
def test_out_may_be_what_is_read(order, dtype):
    """In inference x, in backward x or dy: nothing is copied, the result is the same."""
    x, dy = (np.array(array, dtype=dtype, order=order) for array in (X, X[::-1] ** 2))
    expected = inference(x)
    over = x.copy(order)
    assert inference(over, out=over) is over
    assert_array_equal(over, expected)
    expected = batch_norm_backward(dy, batch_norm(x)[1])
    for into in ("x", "dy"):
        pair = {"x": x.copy(order), "dy": dy.copy(order)}
        _, saved = batch_norm(pair["x"])
        found = batch_norm_backward(pair["dy"], saved, out=pair[into])
        assert found[0] is pair[into]
        for part, same in zip(found, expected, strict=True):
            assert_array_equal(part, same)


def test_out_may_overlap_what_is_read():
    """By some rows or turned round, below and above: as if it did not."""
    for view in (np.s_[2:8], np.s_[:6], np.s_[5::-1], np.s_[8:2:-1]):
        values = np.random.RandomState(2).normal(size=(10, 4))
        for function in (inference, backward):
            memory = values.copy()
            x, out = memory[1:7], memory[view]
            expected = function(x.copy())
            found = function(x, out=out)
            assert found is out
            assert_array_equal(found, expected)


def test_results_are_new_arrays():
    """Of x nothing is written; results share memory with nothing that was given."""
    (x,) = read_only(X.copy())
    gamma, beta, weights = read_only(np.ones(5), np.zeros(5), np.ones(6))
    y, saved = batch_norm(x, gamma, beta, sample_weight=weights)
    results = [y, batch_norm_inference(x, beta, gamma, gamma, beta), *batch_norm_backward(x, saved)]
    results += [*moments(x, sample_weight=weights), saved.mean, saved.var, saved.inv_std]
    for result in results:
        assert result.flags.writeable
        assert not any(np.shares_memory(result, given) for given in (x, gamma, beta, weights))


@each_writer
@pytest.mark.parametrize("shape", [(30, 20, 6), (70, 700, 6)], ids=["small", "large"])
def test_results_lie_as_x_does(shape, function):
    """So that the next pass over them finds numbers side by side."""
    x = np.random.RandomState(0).normal(size=shape)
    for order in ("C", "F"):
        laid = np.asarray(x.reshape(-1, 6), order=order)
        assert function(laid).strides == laid.strides
    moved = np.moveaxis(x, 1, 0)
    assert function(moved).strides == moved.strides
    for apart in (x[:, ::2], np.asfortranarray(x)):
        assert function(apart).flags.forc


# saved.


def test_saved():
    gamma, weights = np.arange(5.0), np.arange(6)
    _, saved = batch_norm(X, gamma, axis=-1, activation="tanh", sample_weight=weights, epsilon=0.5)
    assert isinstance(saved, BatchNormSaved)
    assert saved.x is X
    assert_array_equal(saved.gamma, gamma)
    assert saved.beta is None
    assert (saved.axis, saved.activation) == ((2,), "tanh")
    for found, expected in zip(
        (saved.mean, saved.var), moments(X, sample_weight=weights), strict=True
    ):
        assert_array_equal(found, expected)
    assert_allclose(saved.inv_std, 1 / np.sqrt(saved.var + 0.5), rtol=1e-15)
    assert saved.sample_weight.dtype == F64
    assert_array_equal(saved.sample_weight, weights)
    plain = batch_norm(X)[1]
    assert (plain.gamma, plain.beta, plain.sample_weight) == (None, None, None)
    assert plain.activation == "identity"
    assert "_statistics" not in repr(plain)
    assert "mean=" in repr(plain)
    assert plain != batch_norm(X)[1]  # a handle, not a value


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_saved_serves_twice(twin):
    """Backward changes nothing in it, and a copy is as good."""
    _, saved = batch_norm(X, 2.0, 0.5, activation="gelu", sample_weight=np.arange(6))
    first = batch_norm_backward(X, saved)
    for other in (saved, twin(saved)):
        for part, same in zip(batch_norm_backward(X, other), first, strict=True):
            assert_array_equal(part, same)


@pytest.mark.parametrize(
    ("lay", "copied"),
    [
        (lambda x: x, False),
        (lambda x: np.asfortranarray(x.reshape(-1, 5)), False),
        (lambda x: np.moveaxis(x, 1, 2), False),
        (lambda x: x[::2], False),
        (lambda x: x[:, :, 1:3], False),
        (lambda x: x[::-1], False),
        (lambda x: x[::-1, :, ::-1], True),
        (np.asfortranarray, True),  # the rows count in C order and do not touch either
        (lambda x: read_only(x.copy())[0], False),
        (lambda x: x.astype(F32), False),
        (lambda x: x[:, :, :1], True),
        (lambda x: x[:, :, ::2], True),
        (lambda x: x[:, :, :1][::2, ::2], True),
        (lambda x: x.astype(">f8"), True),
        (lambda x: x.astype(int), True),
        (unaligned, True),
    ],
)
def test_x_is_copied_only_if_need_be(lay, copied):
    """Where columns or rows lie side by side it is read where it is, for backward too."""
    x = lay(X.copy())
    y, saved = batch_norm(x)
    assert np.shares_memory(saved.x, x) is not copied
    assert_array_equal(saved.x, x)
    if copied:
        strides = sorted(s for s, n in zip(saved.x.strides, x.shape, strict=True) if n > 1)
        assert strides[0] == saved.x.itemsize
    assert_array_equal(y, training(np.array(x, dtype=y.dtype, order="C")))


# What may hold numbers.


@pytest.mark.parametrize("kind", ["list", "tuple", "frame", "masked", "memmap", "buffer"])
@pytest.mark.parametrize("function", [moments, training, inference])
def test_array_like(function, kind, tmp_path):
    """Results are plain arrays; what a mask hides counts, as in NumPy's own asarray."""
    x = np.round(X[0], 3)
    if kind == "frame":
        other = pytest.importorskip("pandas").DataFrame(x)
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", x)
        other = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert isinstance(other, np.memmap)
    else:
        other = {
            "list": x.tolist(),
            "tuple": tuple(map(tuple, x)),
            "masked": np.ma.masked_array(x, mask=x > 3),
            "buffer": memoryview(x.copy()),
        }[kind]
    found = function(other)
    assert type(found) in (np.ndarray, tuple)
    assert_array_equal(found, function(x))


# torch is a second judge: other formulas, other code.


TORCH_NAMES = {name: name for name in ACTIVATIONS} | {"logistic": "sigmoid"}
TORCH_NAMES.pop("identity")


@each_dtype
@pytest.mark.parametrize("activation", [None, *TORCH_NAMES])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((20, 6), 1), ((8, 6, 11), 1), ((4, 3, 9, 7), 1), ((3, 4, 5, 6, 7), 1)],
    ids=str,
)
def test_torch(shape, axis, activation, dtype):
    """BatchNorm1d, 2d and 3d, what follows them, and their gradients."""
    torch = pytest.importorskip("torch")
    rng = np.random.RandomState(3)
    x, dy = (rng.normal(1, 2, shape).astype(dtype) for _ in range(2))
    gamma, beta = rng.normal(size=(2, shape[axis]))
    layer = getattr(torch.nn, f"BatchNorm{max(1, len(shape) - 2)}d")(shape[axis], eps=1e-3)
    layer = layer.double()
    layer.weight.data, layer.bias.data = (torch.from_numpy(v.copy()) for v in (gamma, beta))
    given = torch.from_numpy(x.astype(F64)).requires_grad_()
    function = getattr(torch.nn.functional, TORCH_NAMES.get(activation, ""), lambda z: z)
    expected = function(layer(given))
    expected.backward(torch.from_numpy(dy.astype(F64)))

    y, saved = batch_norm(x, gamma, beta, axis=axis, activation=activation)
    found = (y, *batch_norm_backward(dy, saved))
    wanted = (expected.detach(), given.grad, layer.weight.grad, layer.bias.grad)
    for part, same in zip(found, wanted, strict=True):
        tolerance = 4e-6 if dtype is F32 else 1e-13
        assert_allclose(part, same, rtol=0, atol=tolerance * max(1, float(same.abs().max())))

    layer.eval()
    mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
    y = batch_norm_inference(x, mean, var, gamma, beta, axis=axis, activation=activation)
    with torch.no_grad():
        same = function(layer(given))
    assert_allclose(y, same, rtol=0, atol=4e-6 if dtype is F32 else 1e-13)


# Threads and processes.


def everything(x):
    y, saved = batch_norm(x, 2.0, 0.5, activation="silu")
    parts = (y, *batch_norm_backward(x, saved), *moments(x), inference(x, activation="tanh"))
    return [part.tobytes() for part in parts]


def test_threads_that_share_x():
    """Calls at once, on one array and with one saved: each gives what it gives alone."""
    (x,) = read_only(np.random.RandomState(4).normal(size=(70_000, 7)))
    alone = everything(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == alone for found in pool.map(everything, [x] * 8))
    _, saved = batch_norm(x)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda dy: batch_norm_backward(dy, saved), [x] * 8))
    for found in parts[1:]:
        for part, same in zip(found, parts[0], strict=True):
            assert_array_equal(part, same)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child():
    """Its parent has used threads, which the child lacks: it must not wait for them."""
    program = """
import hashlib, multiprocessing
import numpy as np
from skbn.functional import batch_norm, batch_norm_backward
x = np.random.RandomState(0).normal(size=(200_000, 3))
def digest():
    y, saved = batch_norm(x, activation="tanh")
    parts = (y, *batch_norm_backward(x, saved))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
before = digest()
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply_async(digest).get(60) == before == digest())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["True"]


def test_limits_of_threads_are_left_alone():
    x = np.random.RandomState(0).normal(size=(200_000, 3))
    everything(x)
    before = threadpool_info()
    everything(x)
    assert threadpool_info() == before


def test_no_warnings_about_nan_and_infinity():
    """They stay in their column and say nothing."""
    x = X.copy()
    x[0, 0, :3] = np.nan, np.inf, -np.inf
    with np.errstate(all="raise"):
        y, saved = batch_norm(x)
        dx, *_ = batch_norm_backward(x, saved)
        inferred = inference(x)
        mean, _ = moments(x)
    assert_array_equal(np.isfinite(mean), [False] * 3 + [True] * 2)
    for result in (y, dx):
        assert np.isnan(result[..., :3]).all()
        assert np.isfinite(result[..., 3:]).all()
    assert_array_equal(np.isfinite(inferred), np.isfinite(x))
