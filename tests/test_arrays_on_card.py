"""``skbn.functional`` and ``BatchNormTransformer`` with arrays on a card, which is simulated.

Numbers are judged in tests/backends/test_arrays.py and tests/test_numerics_on_card.py. Here: what
comes back lies where x does and in its library, data are never copied, and what is refused is
refused in the words that NumPy's arrays get.
"""
# SPDX-License-Identifier: BSD-3-Clause

import pickle
import re
import sys
from types import ModuleType

import numpy as np
import pytest
from cases import each_dtype
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from simulated_array import SimulatedArray
from sklearn import config_context
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from skbn import BatchNormTransformer
from skbn.functional import batch_norm, batch_norm_backward, batch_norm_inference, moments

F32, F64 = np.float32, np.float64


@pytest.fixture
def card(simulated_card):
    return simulated_card


@pytest.fixture
def x(seed):
    return np.random.RandomState(seed).normal(3, 2, size=(40, 3, 5))


@pytest.fixture
def carried(card, monkeypatch):
    """Sizes of all that is copied from or to the card from now on."""
    sizes = []

    def watched(name):
        function = getattr(type(card), name)

        def call(self, array, *args):
            sizes.append(array.size)
            return function(self, array, *args)

        monkeypatch.setattr(type(card), name, call)

    watched("upload")
    watched("read")
    monkeypatch.setattr(SimulatedArray, "get", lambda *_: pytest.fail("a copy to the host"))
    monkeypatch.setattr(type(card), "read", lambda _, a, out=None: np.array(a._values))
    watched("read")
    return sizes


def read(value):
    if isinstance(value, SimulatedArray):
        return value.get()
    return [read(part) for part in value] if isinstance(value, tuple) else value


def inference(x, **options):
    return batch_norm_inference(x, 0.5, 2.0, **options)


def training(x, **options):
    return batch_norm(x, **options)[0]


def backward(x, **options):
    return batch_norm_backward(x, batch_norm(x)[1], **options)[0]


each_writer = pytest.mark.parametrize("function", [training, inference, backward])


# The functions.


@each_dtype
@pytest.mark.parametrize("axis", [-1, 0, (0, 1), (1, 2), None])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_same_results_on_the_card(weighted, axis, dtype, x, card, seed):
    x = x.astype(dtype)
    keeps_samples = axis is not None and 0 in np.atleast_1d(axis)
    weights = np.random.RandomState(seed).randint(0, 3, 40) if weighted else None
    options = {} if keeps_samples else {"sample_weight": weights}
    kept = [] if axis is None else [x.shape[a] for a in np.atleast_1d(axis)]
    gamma, beta = np.random.RandomState(seed).normal(size=(2, *kept))
    both = []
    for put in (np.asarray, lambda a: card.upload(a.reshape(-1)).reshape(a.shape)):
        mean, var = moments(put(x), axis=axis, **options)
        y, saved = batch_norm(
            *(put(x), put(gamma), put(beta)), axis=axis, activation="silu", **options
        )
        dx, dgamma, dbeta = batch_norm_backward(put(x[::-1].copy()), saved)
        inferred = batch_norm_inference(put(x), mean, var, put(gamma), put(beta), axis=axis)
        vectors = [mean, var, saved.mean, saved.var, saved.inv_std, dgamma, dbeta]
        for array in (y, dx, inferred, *vectors):
            assert isinstance(array, type(put(x)))
        assert {array.dtype for array in (y, dx, inferred)} == {x.dtype}
        assert {array.dtype for array in vectors} == {np.dtype(F64)}
        assert {array.shape for array in vectors} == {tuple(kept)}
        both.append([read(array) for array in (y, dx, inferred, *vectors)])
    tolerance = 2e-5 if dtype is F32 else 1e-10
    for found, expected in zip(*both, strict=True):
        assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@each_dtype
def test_data_are_never_copied(dtype, x, card, carried):
    """Of float32 nothing goes to the host; of float64 the variances do, which may overflow."""
    x, dy, out = (card.upload(array.astype(dtype)) for array in (x, x, x))
    gamma = card.upload(np.ones(5))
    carried.clear()
    _, saved = batch_norm(x, gamma, activation="relu")
    assert saved.x is x
    assert saved.gamma is gamma
    dx, *_ = batch_norm_backward(dy, saved, out=dy)
    assert dx is dy
    assert batch_norm(x, out=out)[0] is out
    moments(x)
    assert carried == ([] if dtype is F32 else [5, 5, 5])
    carried.clear()
    batch_norm(x, 2.0, np.arange(5))
    batch_norm_inference(x, saved.mean, np.ones(5), out=x)
    assert max(carried) == 5


@each_writer
def test_results_lie_as_x_does(function, x, card):
    for order in ((0, 1, 2), (2, 0, 1), (0, 2, 1)):
        lain = card.upload(x.transpose(order)).transpose(np.argsort(order))
        y = function(lain)
        assert y.strides == lain.strides
        assert_array_equal(y.get(), function(card.upload(x)).get())


@pytest.mark.parametrize("lay", [np.s_[::2], np.s_[:, :, ::-1], np.s_[..., 1:]], ids=str)
def test_gaps(lay, x, card):
    """What has gaps is packed once, and the packed one is saved."""
    whole = card.upload(x)
    y, saved = batch_norm(whole[lay], axis=1)
    expected, _ = batch_norm(card.upload(x[lay].copy()), axis=1)
    assert_array_equal(y.get(), expected.get())
    assert saved.x.shape == y.shape
    out = card.upload(np.zeros_like(x))
    dx, *_ = batch_norm_backward(whole[lay], saved, out=out[lay])
    assert_array_equal(dx.get(), batch_norm_backward(whole[lay], saved)[0].get())
    assert_array_equal(out[lay].get(), dx.get())


def test_out_may_overlap_what_is_read(x, card):
    memory = card.upload(np.r_[x.ravel(), 0.0])
    first, second = memory[:-1].reshape(x.shape), memory[1:].reshape(x.shape)
    expected = inference(card.upload(x)).get()
    assert inference(first, out=second) is second
    assert_array_equal(second.get(), expected)
    memory[:-1] = card.upload(x.ravel())
    _, saved = batch_norm(first)
    expected = batch_norm_backward(card.upload(x), saved)[0].get()
    dx, *_ = batch_norm_backward(card.upload(x), saved, out=second)
    assert_array_equal(dx.get(), expected)
    memory[:-1] = card.upload(x.ravel())
    for out in (first, second):
        with pytest.raises(ValueError, match="shares memory with x"):
            batch_norm(first, out=out)
    halves = card.upload(np.stack([x, x], axis=-1))
    batch_norm(halves[..., 0], out=halves[..., 1])


WRONG = {
    "axis beyond": lambda x, put: batch_norm(x, axis=3),
    "axis twice": lambda x, put: moments(x, axis=(0, -3)),
    "every axis": lambda x, put: batch_norm_inference(x, 0, 1, axis=(0, 1, 2)),
    "empty": lambda x, put: moments(x[:0]),
    "epsilon": lambda x, put: batch_norm(x, epsilon=-1),
    "activation": lambda x, put: batch_norm(x, activation="swish"),
    "gamma": lambda x, put: batch_norm(x, put(np.ones(4))),
    "beta": lambda x, put: batch_norm(x, None, np.ones((5, 1))),
    "mean": lambda x, put: batch_norm_inference(x, put(np.ones(3)), 1.0),
    "var": lambda x, put: batch_norm_inference(x, 0.0, put(-np.ones(5))),
    "no var": lambda x, put: batch_norm_inference(x, 0.0, None),
    "weights' shape": lambda x, put: moments(x, sample_weight=put(np.ones(4))),
    "weights' sign": lambda x, put: moments(x, sample_weight=put(-np.ones(40))),
    "no weight": lambda x, put: batch_norm(x, sample_weight=put(np.zeros(40))),
    "weights of columns": lambda x, put: moments(x, axis=0, sample_weight=put(np.ones(40))),
    "gradient's shape": lambda x, put: batch_norm_backward(x[:-1], batch_norm(x)[1]),
    "out's shape": lambda x, put: batch_norm(x, out=x[:-1]),
    "out's type": lambda x, put: inference(x, out=put(np.zeros(x.shape, F32))),
    "complex": lambda x, put: moments(put(np.ones((3, 2), complex))),
    "overflow": lambda x, put: batch_norm(x * 1e200),
    "overflow beside NaN": lambda x, put: moments(put(np.r_[[[np.nan, 1e200]], [[1.0, -1e200]]])),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_errors_are_those_of_numpy(call, x, card):
    with pytest.raises((ValueError, TypeError, IndexError)) as expected:
        call(x, np.asarray)
    with pytest.raises(expected.type) as found:
        call(card.upload(x), card.upload)
    shared = "out shares memory"
    assert str(found.value) == str(expected.value) or shared in str(expected.value)


def test_arrays_on_two_sides(x, card):
    on_card = card.upload(x)
    _, saved = batch_norm(on_card)
    with pytest.raises(ValueError, match="dy lies on the processor, x on cuda:0"):
        batch_norm_backward(x, saved)
    with pytest.raises(TypeError, match="where x lies, got ndarray"):
        batch_norm(on_card, out=np.empty_like(x))
    with pytest.raises(TypeError, match="out must be a NumPy array, got SimulatedArray"):
        batch_norm(x, out=on_card)
    for call in (
        lambda: batch_norm_backward(on_card, batch_norm(x)[1]),
        lambda: batch_norm(x, card.upload(np.ones(5))),
    ):
        with pytest.raises(TypeError, match="Implicit conversion"):
            call()


def test_numbers_of_other_types(x, card):
    for dtype in (np.int32, np.float16, bool):
        y, _ = batch_norm(card.upload(x.astype(dtype)))
        assert y.dtype == F64
        assert_allclose(y.get(), batch_norm(x.astype(dtype))[0], rtol=1e-12, atol=1e-12)


class Tensor:
    """An array of another library's, which only speaks DLPack."""

    def __init__(self, array):
        self.array = array

    shape = property(lambda self: self.array.shape)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


@pytest.fixture
def library(card, monkeypatch):
    """Something like torch: the module that its arrays' class is in has ``from_dlpack``."""
    module = ModuleType("tensors")
    module.from_dlpack = lambda array: Tensor(array)
    monkeypatch.setattr(Tensor, "__module__", "tensors.core")
    monkeypatch.setitem(sys.modules, "tensors", module)
    return lambda array: Tensor(card.upload(array))


def test_other_libraries(library, x, card):
    tensor, gamma = library(x), library(np.linspace(1, 2, 5))
    y, saved = batch_norm(tensor, gamma, card.upload(np.ones(5)))
    out = library(np.zeros_like(x))
    dx, dgamma, dbeta = batch_norm_backward(tensor, saved, out=out)
    assert dx is out
    inferred = batch_norm_inference(tensor, saved.mean, saved.var, gamma, 1.0)
    parts = [y, dx, dgamma, dbeta, inferred, *moments(tensor), saved.x, saved.mean, saved.gamma]
    assert {type(part) for part in parts} == {Tensor}
    expected, saved = batch_norm(x, np.linspace(1, 2, 5), 1.0)
    assert_allclose(y.array.get(), expected, rtol=1e-12)
    assert_allclose(inferred.array.get(), expected, rtol=1e-12)
    assert_allclose(dx.array.get(), batch_norm_backward(x, saved)[0], atol=1e-12)
    norm = BatchNormTransformer().fit(tensor)
    assert type(norm.transform(tensor)) is Tensor
    assert_allclose(norm.mean_, x.mean(axis=(0, 1)))


# The transformer.


def rows(seed, dtype=F64, nan=0.0):
    rng = np.random.RandomState(seed)
    X = rng.normal(50, 3, size=(60, 4)).astype(dtype)
    X[rng.uniform(size=X.shape) < nan] = np.nan
    return X


def assert_same_fit(found, expected):
    for name in ("mean_", "var_", "scale_", "n_samples_seen_", "n_batches_seen_"):
        value, wanted = getattr(found, name), getattr(expected, name)
        assert type(value) is type(wanted)
        assert_allclose(value, wanted, rtol=1e-13)
    assert found.n_features_in_ == expected.n_features_in_


@each_dtype
@pytest.mark.parametrize("nan", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("params", [{}, {"momentum": 0.9}, {"gamma": 2.0, "beta": [1, 2, 3, 4]}])
def test_transformer(params, weighted, nan, dtype, card, seed):
    X = rows(seed, dtype, nan)
    weights = np.random.RandomState(seed).uniform(size=60) if weighted else None
    put_weights = (lambda w: None if w is None else card.upload(w)), (lambda w: w)
    expected = BatchNormTransformer(**params)
    found, uploaded = clone(expected), clone(expected).set_params(device="cuda")
    for part in (slice(0, 25), slice(25, 60)):
        w = None if weights is None else weights[part]
        expected.partial_fit(X[part], sample_weight=w)
        found.partial_fit(card.upload(X[part]), sample_weight=put_weights[part.start > 0](w))
        uploaded.partial_fit(X[part], sample_weight=w)
    for norm in (found, uploaded):
        assert_same_fit(norm, expected)
    Z = expected.transform(X)
    tolerance = {"rtol": 1e-5 if dtype is F32 else 1e-12, "atol": 1e-5 if dtype is F32 else 1e-11}
    for method, given in (("transform", X), ("inverse_transform", Z)):
        wanted = getattr(expected, method)(given)
        on_card = getattr(found, method)(card.upload(given))
        assert isinstance(on_card, SimulatedArray)
        assert on_card.dtype == dtype
        assert_allclose(on_card.get(), wanted, **tolerance)
        on_host = getattr(uploaded, method)(given)
        assert type(on_host) is np.ndarray
        assert_array_equal(on_host, on_card.get())
    # A model knows nothing of where it was fitted.
    again = pickle.loads(pickle.dumps(found))
    assert_array_equal(again.transform(X), found.transform(X))


def test_transformer_data_are_never_copied(card, carried, seed):
    X = card.upload(rows(seed, F32))
    carried.clear()
    norm = BatchNormTransformer(copy=False).fit(X)
    assert norm.transform(X) is X
    assert max(carried) <= 4 * 4


@pytest.mark.parametrize("axis", [-1, 1, (1, 2)])
def test_transformer_of_more_axes(axis, x, card):
    expected, found = (BatchNormTransformer(axis=axis).fit(array) for array in (x, card.upload(x)))
    assert_same_fit(found, expected)
    assert_allclose(found.transform(card.upload(x)).get(), expected.transform(x), atol=1e-12)


def test_transformer_in_a_pipeline(card, seed):
    X = rows(seed)
    pipeline = make_pipeline(BatchNormTransformer(), BatchNormTransformer(epsilon=0.0))
    found = pipeline.fit_transform(card.upload(X))
    assert_allclose(found.get(), clone(pipeline).fit_transform(X), atol=1e-11)


def test_integers_become_float64(card):
    X = np.arange(12).reshape(6, 2)
    found = BatchNormTransformer().fit_transform(card.upload(X))
    assert found.dtype == F64
    assert_allclose(found.get(), BatchNormTransformer().fit_transform(X), atol=1e-12)


def infinite(X):
    X = X.copy()
    X[3, 1] = np.inf
    return X


REFUSED = {
    "features": lambda X: X[:, :3],
    "infinity": infinite,
    "one axis": lambda X: X[:, 0].copy(),
    "rows": lambda X: X[:0],
    "complex": lambda X: X.astype(complex),
    "more axes": lambda X: X[:, :, np.newaxis].repeat(2, axis=2),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("method", ["partial_fit", "transform", "inverse_transform"])
def test_transformer_refuses_in_scikit_learns_words(method, make, card, seed, unchanged):
    X = rows(seed)
    norm = BatchNormTransformer().fit(X)
    with pytest.raises(ValueError, match=r"\w") as expected:
        getattr(norm, method)(make(X))
    with unchanged(norm), pytest.raises(ValueError, match=re.escape(str(expected.value))):
        getattr(norm, method)(card.upload(make(X)))


def test_transformer_assume_finite(card, seed):
    X = infinite(rows(seed))
    norm = BatchNormTransformer().fit(rows(seed))
    with config_context(assume_finite=True):
        assert_allclose(norm.transform(card.upload(X)).get(), norm.transform(X), atol=1e-11)


def test_transformer_overflow(card, seed):
    X = rows(seed)
    X[:, 2] *= 1e200
    with pytest.raises(ValueError, match="overflows float64, first in feature 2"):
        BatchNormTransformer().fit(card.upload(X))


def test_transformer_device(card, seed, unchanged):
    X = rows(seed)
    norm = BatchNormTransformer(device="cpu").fit(X)
    with unchanged(norm):
        for method in (norm.fit, norm.partial_fit, norm.transform, norm.inverse_transform):
            with pytest.raises(TypeError, match="device='cpu' does not compute with arrays that"):
                method(card.upload(X))
    norm = BatchNormTransformer(device="cuda", with_mean=False)
    for method in (norm.fit, norm.partial_fit):
        with unchanged(norm), pytest.raises(TypeError, match="device='cuda' needs dense X"):
            method(csr_array(X))
    norm.fit(X)
    with pytest.raises(TypeError, match="device='cuda' needs dense X"):
        norm.transform(csr_array(X))


def test_transformer_without_a_card(seed, monkeypatch, unchanged):
    monkeypatch.setattr("skbn.backends.cuda.card.current", lambda: 1 / 0)
    norm = BatchNormTransformer(device="cuda")
    with unchanged(norm), pytest.raises(ZeroDivisionError):
        norm.fit(rows(seed))
