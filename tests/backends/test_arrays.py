"""The processor's array functions and a card's against NumPy's: a table of arrays, in every layout.

The judge computes in float64 or wider on the same numbers, for float32 too. It sees an array once,
in C order; every other layout must give the bits that C order gave. Arrays lie between walls of NaN
that must stand afterwards, what is to be written is NaN before, what is only read is read-only.
Values are multiples of 1/8 and ReLU's border lies between two of them, so that no rounding crosses
it. What users see of all this: tests/test_functional.py, tests/test_numerics_arrays.py.
"""
# SPDX-License-Identifier: BSD-3-Clause

import math
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import NamedTuple

import numpy as np
import pytest
from cases import LEVELS, each_dtype, read_only
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

from skbn.backends import cpu, get_array_functions, reference_arrays
from skbn.backends.cpu.processor import has_openmp
from skbn.backends.memory import aligned_zeros, empty_like
from skbn.backends.records import Activation
from skbn.backends.reference import inverse_std
from skbn.backends.reference_arrays import as_rows, fill, row_weights

F32, F64 = np.float32, np.float64
EPSILON = 1e-3
WALL = 1024  # numbers before and behind an array

needs_openmp = pytest.mark.skipif(not has_openmp(), reason="built without OpenMP")


@pytest.fixture(params=LEVELS)
def compiled(request):
    return cpu.array_functions(request.param)


@pytest.fixture(params=[*LEVELS, "cuda, simulated"])
def functions(request):
    if request.param in LEVELS:
        return cpu.array_functions(request.param)
    return OnCard(request.getfixturevalue("simulated_card"))


class OnCard:
    """A card's functions, on NumPy's memory as if it were the card's."""

    def __init__(self, card):
        self.card = card

    def __getattr__(self, name):
        from simulated_array import Memory, SimulatedArray

        function = getattr(get_array_functions("cuda"), name)

        def called(*args, **kwargs):
            given = signature(function).bind(*args, **kwargs)
            for key in given.arguments.keys() & {"x", "y", "dx", "dy"}:
                x = given.arguments[key]
                memory = Memory(self.card, x.nbytes, x.dtype, x)
                given.arguments[key] = SimulatedArray(x, memory)
            result = function(*given.args, **given.kwargs)
            return None if result is None else self.card.read(result)

        return called


# Arrays in memory.


class Layout(NamedTuple):
    """Order of the axes in memory, outermost first, by rotation or reversal; the rest innermost."""

    rotation: int = 0
    fortran: bool = False
    step: int = 1
    gap: int = 0  # numbers between innermost lines
    start: int = 0  # numbers from the boundary of a cache line

    def order(self, ndim):
        axes = list(np.roll(range(ndim), self.rotation))
        return axes[::-1] if self.fortran else axes


LAYOUTS = {
    "C": Layout(),
    "C, off the cache lines": Layout(start=1),
    "C, lines apart": Layout(gap=5),
    "C, every second": Layout(step=2),
    "C, reversed": Layout(step=-1),
    "F": Layout(fortran=True),
    "F, lines apart": Layout(fortran=True, gap=3, start=3),
    "F, every third backwards": Layout(fortran=True, step=-3),
    "last axis outermost": Layout(rotation=1),
    "first axis innermost": Layout(rotation=-1),
}
# Of x, of the gradient and of the result.
ALIKE = [(name,) * 3 for name in LAYOUTS]
MIXED = [
    ("C", "F", "C, off the cache lines"),
    ("C", "C, lines apart", "F"),
    ("F", "C", "C"),
    ("F", "F, lines apart", "C, every second"),
    ("C, reversed", "last axis outermost", "C"),
    ("last axis outermost", "C", "F"),
]


def laid_out(values, layout):
    """Memory of NaN, and a view of it that holds the values; None: NaN as well."""
    layout, x = LAYOUTS[layout], np.asarray(values)
    axes = layout.order(x.ndim)
    lengths = [x.shape[axis] * abs(layout.step) for axis in axes]
    lengths[-1] += layout.gap
    memory = aligned_zeros(2 * WALL + math.prod(lengths), x.dtype)
    memory[:] = np.nan
    inner = memory[WALL + layout.start :][: math.prod(lengths)].reshape(lengths)
    inner = inner[tuple(slice(None, None, layout.step) for _ in axes)]
    view = inner[..., : x.shape[axes[-1]]].transpose(np.argsort(axes))
    view[...] = x
    return memory, view


def given(values, layout):
    (x,) = read_only(laid_out(values, layout)[1])
    return x


@contextmanager
def wanted(like, layout):
    """An array of NaN to be written, in walls that must stand."""
    memory, view = laid_out(np.full_like(like, np.nan), layout)
    yield view
    written = view.copy()
    view[...] = np.nan
    assert np.isnan(memory).all(), "a number beside the array"
    view[...] = written


def same_bits(found, expected, what):
    """Zeros of either sign are not the same; NaN is NaN."""
    for name, array in expected.items():
        assert_array_equal(found[name], array, err_msg=f"{name}, {what}")
        assert_array_equal(np.signbit(found[name]), np.signbit(array), err_msg=f"{name}, {what}")


# The table.


class Case(NamedTuple):
    shape: tuple
    axes: tuple
    activation: str = "identity"
    weighted: bool = False

    @property
    def n_columns(self):
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def n_rows(self):
        return math.prod(self.shape) // self.n_columns


SHAPES = {
    # columns side by side: whole lines, a rest, both; one block, several, a block of one row
    "one number": ((1, 1), (1,)),
    "one row": ((1, 40), (1,)),
    "one column": ((700, 1), (1,)),
    "few of both": ((5, 3), (1,)),
    "one line": ((17, 16), (1,)),
    "one block of one tile": ((256, 64), (1,)),
    "a row more, a column more": ((257, 65), (1,)),
    "rest of a line": ((300, 33), (1,)),
    "no whole line": ((530, 13), (1,)),
    "two tiles": ((40, 128), (1,)),
    "wide": ((40, 300), (1,)),
    "a wide tile": ((30, 512), (1,)),
    "several wide tiles and panels": ((20, 1100), (1,)),
    "wide tiles and panels, whole": ((7, 2048), (1,)),
    # 512 KiB at most stay in the cache: wide tiles, narrow ones, none; gradients need twice that
    "wide tiles do not fit": ((270, 530), (1,)),
    "narrow tiles do not fit": ((2100, 70), (1,)),
    "not even one column": ((67_000, 1), (1,)),
    # rows side by side
    "one axis": ((700,), ()),
    "none kept": ((7, 40, 3), ()),
    "columns first": ((40, 300), (0,)),
    "many columns first": ((600, 20), (0,)),
    # images: runs that divide a block, that do not, that are longer; channels anywhere
    "channels first": ((6, 5, 7, 9), (1,)),
    "channels first, runs of a block": ((3, 18, 16, 16), (1,)),
    "channels first, runs of four blocks": ((2, 3, 32, 32), (1,)),
    "channels first, short runs": ((60, 20, 3, 2), (1,)),
    "channels last": ((6, 5, 7, 33), (3,)),
    "channels between": ((4, 9, 20, 6), (2,)),
    "sequences": ((9, 50, 32), (2,)),
    # several axes kept: that merge, that do not
    "two axes kept": ((33, 7, 5), (1, 2)),
    "two axes in front": ((7, 5, 33), (0, 1)),
    "axes apart": ((40, 6, 3, 11), (1, 3)),
    "axes apart, the first one kept": ((12, 5, 17, 4), (0, 2)),
    "axes apart, more than a tile": ((3, 10, 90, 9), (1, 3)),
    "axes of one": ((1, 50, 1, 20, 1), (0, 3)),
    "six axes": ((2, 3, 2, 1, 5, 7), (1, 4)),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)
# ReLU the kernels apply themselves, as they do identity; all others take the same way.
MODES = [("relu", False), ("relu", True), ("gelu", False)]
each_mode = pytest.mark.parametrize(("activation", "weighted"), MODES)


def case_of(shape, activation="identity", weighted=False):
    """Samples have no weights of their own where the first axis is kept."""
    shape, axes = SHAPES[shape]
    return Case(shape, axes, activation, weighted and 0 not in axes)


class Problem(NamedTuple):
    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    weights: np.ndarray | None


@cache
def problem(case, dtype):
    """Numbers in eighths, half of the columns 1000 off; beta puts z = 0 between two of them."""
    rng = np.random.RandomState(0)
    rows = rng.randint(-24, 25, (case.n_rows, case.n_columns)) / 8
    rows[:, ::2] += 1000
    x = np.empty(case.shape, dtype)
    fill(x, rows, case.axes)
    dy = rng.randint(-64, 65, case.shape).astype(dtype) / dtype(32)
    weights = None
    if case.weighted:
        weights = rng.uniform(0.5, 2, case.shape[0]) * (rng.uniform(size=case.shape[0]) < 0.7)
        weights[: min(300, case.shape[0] - 1)] *= case.shape[0] < 300  # a block without weight
        weights[-1] = 1.5
    gamma = rng.choice([-1, 1], case.n_columns) * rng.uniform(0.5, 1.5, case.n_columns)
    _, mean, low, var = reference_arrays.moments(x, case.axes, weights)
    border = np.floor(mean * 8) / 8 + 1 / 16
    beta = -gamma * (border - mean - low) * inverse_std(var, EPSILON)
    read_only(*(array for array in (x, dy, gamma, beta, weights) if array is not None))
    return Problem(x, dy, gamma, beta, weights)


def outcome(functions, case, p, layouts=("C", "C", "C")):
    """All that the functions give, arrays in C order."""
    kind = Activation[case.activation.upper()]
    x, dy = (given(array, layout) for array, layout in zip((p.x, p.dy), layouts, strict=False))
    with wanted(p.x, layouts[2]) as y, wanted(p.x, layouts[2]) as dx:
        statistics = functions.batch_norm_forward(
            y, x, case.axes, p.gamma, p.beta, EPSILON, kind, p.weights
        )
        sums = functions.batch_norm_backward(
            dx, dy, x, case.axes, p.gamma, p.beta, statistics, kind, p.weights
        )
    found = dict(zip(("mean", "low", "var", "inv_std"), statistics, strict=True))
    found |= {"y": y, "dx": dx, "dgamma": sums[0], "dbeta": sums[1]}
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


@cache
def judged(case, dtype):
    """What the judge says of the numbers as float64, and of what size the summands were."""
    p = problem(case, dtype)
    wide = p._replace(x=p.x.astype(F64), dy=p.dy.astype(F64))
    expected = outcome(reference_arrays, case, wide)
    inv_std, dy = expected["inv_std"], np.abs(as_rows(wide.dy, case.axes))
    shares = row_weights(p.weights, p.x, case.axes)
    shares = np.ones(len(dy)) if shares is None else shares
    shares = (shares / shares.sum())[:, None]
    deviations = (as_rows(wide.x, case.axes) - expected["mean"]) - expected["low"]
    xhat = np.abs(deviations * inv_std)
    size = {"dgamma": (dy * xhat).sum(axis=0), "dbeta": dy.sum(axis=0)}
    size["y"] = np.maximum(1, np.abs(p.gamma) * xhat + np.abs(p.beta))
    size["dx"] = np.abs(p.gamma) * inv_std * (dy + shares * (size["dbeta"] + xhat * size["dgamma"]))
    return expected, size


def check(found, case, dtype):
    """Within so many roundings; in a float64 output there are those of mean and variance.

    Weights are added one after the other, so there are more of them.
    """
    expected, size = judged(case, dtype)
    eps, eps64 = np.finfo(dtype).eps, np.finfo(F64).eps
    mean = (found["mean"] - expected["mean"]) + (found["low"] - expected["low"])
    assert np.all(np.abs(mean) <= 8 * eps64 * np.sqrt(expected["var"])), "mean"
    for name in ("var", "inv_std"):
        assert_allclose(found[name], expected[name], rtol=1e-13 if case.weighted else 32 * eps64)
    arrays = 3 if dtype is F32 else 12 if not case.weighted else 100
    for name, roundings in (("y", arrays), ("dx", arrays), ("dgamma", 3), ("dbeta", 3)):
        error = np.abs(found[name] - expected[name])
        if name in ("y", "dx"):
            error = as_rows(error, case.axes)
        assert np.all(error <= roundings * eps * size[name]), name


@each_shape
@each_mode
@each_dtype
def test_against_the_judge(dtype, activation, weighted, shape, functions):
    case = case_of(shape, activation, weighted)
    p = problem(case, dtype)
    found = outcome(functions, case, p)
    check(found, case, dtype)
    # Half of the layouts for each mode, or two or three of them for what is large.
    first = MODES.index((activation, weighted)) % 2
    for layouts in (ALIKE[1:] + MIXED)[first :: 2 if p.x.size < 20_000 else 6]:
        same_bits(outcome(functions, case, p, layouts), found, layouts)


@each_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("activation", [kind.name.lower() for kind in Activation])
@pytest.mark.parametrize("shape", ["a row more, a column more", "channels first, short runs"])
def test_activations(shape, activation, weighted, dtype, functions):
    case = case_of(shape, activation, weighted)
    p = problem(case, dtype)
    found = outcome(functions, case, p)
    check(found, case, dtype)
    for layouts in (("F",) * 3, ("C, every second", "F", "C")):
        same_bits(outcome(functions, case, p, layouts), found, layouts)


@each_dtype
@pytest.mark.parametrize("given_names", [(), ("gamma",), ("beta",)], ids=str)
@pytest.mark.parametrize("layout", ["C", "F", "C, every second"])
def test_without_scale_or_shift(layout, given_names, dtype, functions):
    """None is ones and zeros."""
    case = case_of("rest of a line")
    p = problem(case, dtype)
    plain = {"gamma": np.ones(case.n_columns), "beta": np.zeros(case.n_columns)}
    plain |= {name: getattr(p, name) for name in given_names}
    expected = outcome(functions, case, p._replace(**plain), (layout,) * 3)
    nones = {name: None for name in plain if name not in given_names}
    same_bits(outcome(functions, case, p._replace(**nones), (layout,) * 3), expected, given_names)


# Moments.


def with_nan(x, axes):
    """A first value, a block, all values of a column, and every seventh of the others' are NaN."""
    rows = as_rows(x, axes).copy()
    rows[::7, 1:] = np.nan
    rows[256:512, ::3] = np.nan
    rows[:, -1] = np.nan
    rows[1:2, 0] = np.nan
    out = np.empty_like(x)
    fill(out, rows, axes)
    return out


@each_shape
@each_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_moments(weighted, dtype, shape, functions):
    case = case_of(shape, weighted=weighted)
    p = problem(case, dtype)
    for x, ignore_nan in ((p.x, False), (with_nan(p.x, case.axes), True)):
        options = case.axes, p.weights, ignore_nan
        weight, mean, low, var = found = functions.moments(given(x, "C"), *options)
        judged_weight, judged_mean, judged_low, judged_var = reference_arrays.moments(x, *options)
        assert_allclose(weight, judged_weight, rtol=1e-13)
        assert_allclose(var, judged_var, rtol=1e-13 if case.weighted else 1e-14)
        assert_array_equal(np.isnan(mean), weight == 0)
        seen = weight > 0
        error = ((mean - judged_mean) + (low - judged_low))[seen]
        assert np.all(np.abs(error) <= 8 * np.finfo(F64).eps * np.sqrt(judged_var[seen]))
        others = list(LAYOUTS)[1:]
        for layout in others[:: 1 if x.size < 20_000 else 5]:
            again = functions.moments(given(x, layout), *options)
            same_bits({"moments": again}, {"moments": found}, (layout, ignore_nan))


@each_dtype
@pytest.mark.parametrize("ignore_nan", [False, True], ids=["", "ignore_nan"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_without_weight_are_not_read(layout, ignore_nan, dtype, functions):
    case = case_of("a row more, a column more", weighted=True)
    p = problem(case, dtype)
    x = p.x.copy()
    x[p.weights == 0] = np.nan
    found, expected = (
        functions.moments(given(array, layout), case.axes, p.weights, ignore_nan)
        for array in (x, p.x)
    )
    same_bits({"moments": found}, {"moments": expected}, layout)


# Arrays that repeat one row or one column: strides of zero.


@each_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("n_columns", [16, 30, 512, 1100])
@pytest.mark.parametrize("repeats", ["a row", "a column", "a number"])
def test_broadcast(repeats, n_columns, weighted, dtype, compiled):
    """As an input and as a gradient, in memory of their own all the same."""
    check_broadcast(repeats, n_columns, weighted, dtype, compiled)


@each_dtype
@pytest.mark.parametrize("repeats", ["a row", "a column", "a number"])
def test_broadcast_on_a_card(repeats, dtype, simulated_card):
    check_broadcast(repeats, 30, True, dtype, OnCard(simulated_card))


def check_broadcast(repeats, n_columns, weighted, dtype, functions):
    case = Case((300, n_columns), (1,), "relu", weighted)
    p = problem(case, dtype)
    cut = {"a row": np.s_[:1], "a column": np.s_[:, :1], "a number": np.s_[:1, :1]}[repeats]
    kind = Activation.RELU
    for x, dy in ((p.x[cut], p.dy), (p.x, p.dy[cut]), (p.x[cut], p.dy[cut])):
        outcomes = []
        for copy in (False, True):
            views = [np.broadcast_to(array, case.shape) for array in (x, dy)]
            lie, lie_dy = (view.copy() for view in views) if copy else views
            with wanted(p.x, "C") as y, wanted(p.x, "C") as dx:
                statistics = functions.batch_norm_forward(
                    y, lie, case.axes, p.gamma, p.beta, EPSILON, kind, p.weights
                )
                sums = functions.batch_norm_backward(
                    dx, lie_dy, lie, case.axes, p.gamma, p.beta, statistics, kind, p.weights
                )
            moments = functions.moments(lie, case.axes, p.weights, True)
            parts = {"y": y, "dx": dx, "statistics": statistics, "sums": sums, "moments": moments}
            outcomes.append(parts)
        same_bits(*outcomes, repeats)


# Given statistics, and writing over what is read.


@each_shape
@each_dtype
def test_given_statistics(dtype, shape, functions):
    """The bits of training; y may be x."""
    activation = ["relu", "softplus"][list(SHAPES).index(shape) % 2]
    case = case_of(shape, activation)
    p, kind = problem(case, dtype), Activation[activation.upper()]
    y = np.empty_like(p.x)
    statistics = functions.batch_norm_forward(y, p.x, case.axes, p.gamma, p.beta, EPSILON, kind)
    rest = case.axes, p.gamma, p.beta, *statistics[:3], EPSILON, kind
    for layout in ("C", "F", "C, lines apart", "C, every second"):
        with wanted(p.x, layout) as out:
            functions.batch_norm_forward_eval(out, given(p.x, layout), *rest)
        same_bits({"y": out}, {"y": y}, layout)
        memory, x = laid_out(p.x, layout)
        functions.batch_norm_forward_eval(x, x, *rest)
        same_bits({"y": x}, {"y": y}, f"{layout}, in place")
        x[...] = np.nan
        assert np.isnan(memory).all()


@each_dtype
@pytest.mark.parametrize("layout", ["C", "F", "C, lines apart", "C, every second"])
@pytest.mark.parametrize("shape", ["wide", "narrow tiles do not fit", "channels first"])
@pytest.mark.parametrize(("activation", "weighted"), [("relu", False), ("silu", True)])
def test_gradient_over_what_is_read(activation, weighted, shape, layout, dtype, functions):
    case = case_of(shape, activation, weighted)
    p, kind = problem(case, dtype), Activation[activation.upper()]
    expected = outcome(functions, case, p)
    statistics = np.stack([expected[name] for name in ("mean", "low", "var", "inv_std")])
    for into in ("x", "dy"):
        views = {"x": laid_out(p.x, layout)[1], "dy": laid_out(p.dy, layout)[1]}
        dx, rest = views[into], (case.axes, p.gamma, p.beta, statistics, kind, p.weights)
        dgamma, dbeta = functions.batch_norm_backward(dx, views["dy"], views["x"], *rest)
        found = {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}
        same_bits(found, {name: expected[name] for name in found}, into)


# Factors that float32 does not hold.


@pytest.mark.parametrize("layout", ["C", "F", "C, every second"])
@pytest.mark.parametrize(
    ("spread", "scale"), [(1e37, 1.0), (1e-36, 1.0), (1e-20, 1e15), (1e30, 1e-3), (1e-20, 1e-35)]
)
def test_factors_beyond_float32(spread, scale, layout, functions):
    """One such column among others is enough; results that float32 does hold are right."""
    case = Case((300, 20), (1,), "relu")
    p = problem(case, F32)
    mean = reference_arrays.moments(p.x, case.axes)[1]
    x, gamma = (p.x - mean).astype(F32), p.gamma.copy()
    x[:, 7] *= F32(spread)
    gamma[7] *= scale
    beta = np.where(np.arange(20) == 7, 0, p.beta)
    rest = case.axes, gamma, beta
    expected, expected_dx = np.empty(x.shape), np.empty(x.shape)
    dy = p.dy * F32(min(1.0, spread))  # so that dx is not beyond float32 either
    wide, wide_dy = x.astype(F64), dy.astype(F64)
    judge = reference_arrays
    statistics = judge.batch_norm_forward(expected, wide, *rest, 0.0, Activation.RELU)
    sums = judge.batch_norm_backward(expected_dx, wide_dy, wide, *rest, statistics, Activation.RELU)

    def close(found, expected):
        largest = np.abs(expected).max(axis=0)
        assert np.all(np.abs(found - expected) <= 1e-5 * largest + np.finfo(F32).tiny)

    with wanted(x, layout) as y:
        found = functions.batch_norm_forward(y, given(x, layout), *rest, 0.0, Activation.RELU)
    close(y, expected)
    assert_allclose(found[[2, 3]], statistics[[2, 3]], rtol=1e-13)
    over = laid_out(x, layout)[1]
    functions.batch_norm_forward_eval(over, over, *rest, *found[:3], 0.0, Activation.RELU)
    assert_array_equal(over, y)
    for into in ("dx", "dy", "x"):
        views = {
            name: laid_out(array, layout)[1] for name, array in (("dx", x), ("dy", dy), ("x", x))
        }
        found_sums = functions.batch_norm_backward(
            views[into], views["dy"], views["x"], *rest, found, Activation.RELU
        )
        close(views[into], expected_dx)
        assert_allclose(found_sums, sums, rtol=1e-5, atol=1e-5 * np.abs(sums).max())


# Threads, and results too large for the cache.


@contextmanager
def threads(n, monkeypatch):
    """So many, more than there are processors if need be."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with threadpool_limits(n, user_api="openmp"):
        yield


# From 400,000 numbers on: tiles in the cache, shared out; passes by blocks; rows side by side.
LARGE = [
    Case((300, 1400), (1,), "relu"),
    Case((13_000, 33), (1,), "relu"),
    Case((5, 84_001), (0,)),
    Case((9, 7, 80, 81), (1,), "tanh"),
    Case((1300, 330), (1,), "relu", weighted=True),
]


@needs_openmp
@each_dtype
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_any_number_of_threads(case, dtype, compiled, monkeypatch):
    p = problem(case, dtype)
    found = []
    for n in (1, 2, 3, 4, 8):
        with threads(n, monkeypatch):
            parts = outcome(compiled, case, p)
            parts["ignore_nan"] = compiled.moments(p.x, case.axes, p.weights, True)
        found.append(parts)
        same_bits(parts, found[0], f"{n} threads")
    found[0].pop("ignore_nan")
    check(found[0], case, dtype)


@pytest.mark.parametrize(("order", "activation"), [("C", "relu"), ("F", "tanh")])
def test_streaming(activation, order, compiled):
    """From 32 MiB on results go past the cache, if they lie on cache lines: the same bits."""
    shape, kind = (2**17, 64), Activation[activation.upper()]
    x = np.empty(shape, F32, order=order)
    memory = aligned_zeros(x.size + 2 * WALL, F32)
    x[...] = ((np.arange(2**17) * 37 % 101)[:, None] + (np.arange(64) * 5 % 17)).astype(F32) / 8
    dy = x[::-1]
    gamma, beta = np.linspace(-1, 2, 64), np.linspace(3, -3, 64)
    runs = []
    for start in (WALL, WALL + 1):  # on a line, and not
        y = memory[start:][: x.size].reshape(shape, order=order)
        memory[:] = np.nan
        statistics = compiled.batch_norm_forward(y, x, (1,), gamma, beta, EPSILON, kind)
        results = [statistics, y.copy()]
        y[...] = np.nan
        results.append(compiled.batch_norm_backward(y, dy, x, (1,), gamma, beta, statistics, kind))
        results.append(y.copy())
        y[...] = np.nan
        assert np.isnan(memory).all()
        runs.append(results)
    for one, two in zip(*runs, strict=True):
        assert one.tobytes() == two.tobytes()
        assert np.isfinite(one).all()


# Anything else.


def test_drawn(seed, functions):
    """Shapes, axes, types, layouts, activations and weights as they come."""
    rng = np.random.RandomState(seed)
    kinds = [kind.name.lower() for kind in Activation]
    for _ in range(20):
        shape = tuple(rng.choice([1, 2, 3, 5, 7, 16, 17, 33, 64, 70, 260, 300], rng.randint(1, 5)))
        shape = tuple(int(n) for n in shape)
        if math.prod(shape) > 40_000:
            continue
        n_kept = rng.randint(len(shape))
        axes = tuple(sorted(int(a) for a in rng.choice(len(shape), n_kept, replace=False)))
        case = Case(shape, axes, rng.choice(kinds), 0 not in axes and rng.uniform() < 0.4)
        dtype = F32 if rng.uniform() < 0.5 else F64
        p = problem.__wrapped__(case, dtype)
        found = outcome(functions, case, p)
        check(found, case, dtype)
        for _ in range(4):
            layouts = tuple(rng.choice(list(LAYOUTS), 3))
            same_bits(outcome(functions, case, p, layouts), found, (case, layouts))


# What does not fit.


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", lambda x: x.astype(np.float16)),
        ("x", lambda x: x.astype(">f8")),
        ("x", lambda x: x.astype(np.int64)),
        ("x", lambda x: np.frombuffer(b"0" + x.tobytes(), np.uint8)[1:].view(F64).reshape(x.shape)),
        ("y", lambda y: y.astype(F32)),
        ("y", lambda y: y[:-1]),
        ("y", lambda y: y.T.copy()),
        ("y", lambda y: read_only(y.copy())[0]),
        ("dy", lambda dy: dy.astype(F32)),
        ("dy", lambda dy: dy[:, :-1]),
        ("gamma", lambda gamma: gamma[:-1]),
        ("gamma", lambda gamma: gamma.astype(F32)),
        ("beta", lambda beta: beta[:-1]),
        ("beta", lambda beta: np.repeat(beta, 2)[::2]),
        ("weights", lambda weights: weights.astype(F32)),
        ("weights", lambda weights: np.repeat(weights, 2)[::2]),
    ],
)
def test_what_does_not_fit_is_an_error(name, wrong, compiled):
    """Before a kernel sees it."""
    check_that_it_does_not_fit(name, wrong, compiled)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", lambda x: x.astype(np.float16)),
        ("x", lambda x: x.astype(np.int64)),
        ("y", lambda y: y.astype(F32)),
        ("y", lambda y: y[:-1]),
        ("y", lambda y: y.T.copy()),
        ("dy", lambda dy: dy.astype(F32)),
        ("dy", lambda dy: dy[:, :-1]),
        ("gamma", lambda gamma: gamma[:-1]),
        ("gamma", lambda gamma: gamma.astype(F32)),
        ("beta", lambda beta: beta[:-1]),
        ("weights", lambda weights: weights.astype(F32)),
        ("weights", lambda weights: weights[:-1]),
    ],
)
def test_what_does_not_fit_on_a_card(name, wrong, simulated_card):
    check_that_it_does_not_fit(name, wrong, OnCard(simulated_card))


def check_that_it_does_not_fit(name, wrong, functions):
    case = Case((30, 20), (1,), weighted=True)
    p = problem(case, F64)
    parts = p._asdict() | {"y": np.full(case.shape, np.nan)}

    def run():
        x, dy, gamma, beta, weights, y = parts.values()
        rest = EPSILON, Activation.IDENTITY, weights
        statistics = np.ones((4, case.n_columns))
        if name != "dy":
            functions.batch_norm_forward(y, x, case.axes, gamma, beta, *rest)
        functions.batch_norm_backward(y, dy, x, case.axes, gamma, beta, statistics, *rest[1:])

    run()
    parts["y"][...] = np.nan
    parts[name] = wrong(parts[name])
    with pytest.raises((ValueError, BufferError)):
        run()
    assert np.isnan(parts["y"].astype(F64)).all()


# Which functions.


def test_get_array_functions():
    best = cpu.array_functions(LEVELS[-1])
    assert get_array_functions(None) is get_array_functions("cpu") is best
    assert get_array_functions("reference") is reference_arrays
    with pytest.raises(ValueError, match="device must be"):
        get_array_functions("tpu")


def test_get_array_functions_of_a_card(simulated_card):
    functions = get_array_functions("cuda")
    for name in vars(reference_arrays):
        if name.startswith(("moments", "batch_norm")):
            assert signature(getattr(functions, name)) == signature(getattr(reference_arrays, name))


@pytest.mark.parametrize("shape", [(700, 300), (3, 400, 250)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_results_lie_on_cache_lines(order, shape):
    """In the layout of what they are like, without its gaps: so that they can be streamed."""
    x = np.empty(shape, order=order)
    for like in (x, x[::2, ::-1][..., ::2].repeat(4, axis=0).copy(order)):
        out = empty_like(like)
        assert out.__array_interface__["data"][0] % 64 == 0
        assert (out.shape, out.dtype, out.strides) == (like.shape, like.dtype, like.strides)
