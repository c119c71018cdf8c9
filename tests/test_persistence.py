"""Stored estimators: the same model comes back, from anywhere, and nothing else gets in."""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import pickle
import re
import warnings
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skbn
from skbn import MLPClassifierBN, MLPRegressorBN, _persistence
from skbn._layers import ACTIVATIONS
from skbn.backends.memory import ALIGNMENT
from skbn.backends.records import OPTIMIZER_DTYPE, LayerKind
from skbn.exceptions import InconsistentVersionWarning

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def make(estimator=MLPClassifierBN, **params):
    defaults = {"hidden_layer_sizes": (6, 5), "max_iter": 3, "random_state": 0, "batch_size": 16}
    return estimator(**(defaults | params))


MODELS = {
    "adam": {"batch_norm": ("input", "before", "after"), "dropout": 0.2, "early_stopping": True},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "bn_momentum": None},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "bn_virtual_batch_size": 4},
    "onecycle": {"learning_rate": "onecycle", "max_grad_norm": 0.1},
    "rmsprop": {"solver": "rmsprop", "bn_statistics": "moving", "bn_center": False},
    "lbfgs": {"solver": "lbfgs", "batch_size": "auto"},
    "plain": {"batch_norm": None, "hidden_layer_sizes": np.array([4, 9])},
    "no hidden layer": {"hidden_layer_sizes": (), "random_state": np.random.RandomState(7)},
    "multilabel": {"class_weight": [{0: 1.0, 1: 2.0}] * 3},
    "regressor": {"estimator": MLPRegressorBN, "loss": "huber"},
}
DTYPES = {"adam": np.float32, "invscaling": np.float32, "plain": np.float32}
each_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def model():
    """Which model it is about, where a test is not about each."""
    return "adam"


@pytest.fixture
def data(model, blobs):
    X, y = blobs(n_classes=2 if model == "adaptive" else 3, dtype=DTYPES.get(model, np.float64))
    if model in ("multilabel", "regressor"):
        y = np.eye(3, dtype=int)[y]
    return X, y


@pytest.fixture
def fitted(model, data):
    return make(**copy.deepcopy(MODELS[model])).fit(*data)


def train_on(est, X, y):
    """Use all that is remembered: the optimizer's memory, then the weights and the history."""
    est.set_params(early_stopping=False)
    if est.solver == "lbfgs":  # not in partial_fit
        est.set_params(solver="adam")
    if est.learning_rate == "onecycle":  # nor this, but an optimizer that has it goes on
        est.set_params(learning_rate="constant")
    return est.partial_fit(X, y).set_params(warm_start=True).fit(X, y)


def frozen(value):
    """A value in a form that can be compared bit for bit."""
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype.hasobject else value.tobytes()
        return value.dtype.str, value.shape, content
    if isinstance(value, np.random.RandomState):
        value = value.get_state(legacy=False)
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    return repr(value)


def outputs(est, X):
    return est.predict_proba(X) if is_classifier(est) else est.predict(X)


def memory_of(est):
    """What an optimizer left behind; L-BFGS leaves none."""
    return [] if est._optimizer is None else [est._optimizer.record, est._optimizer.memory]


def bits(est):
    """All of an estimator: what it stores, and the vectors as they lie in memory."""
    network = est._network
    memory = [network.table, network.params, network.state, *memory_of(est)]
    return frozen(est.__getstate__()), [array.tobytes() for array in memory]


# Ways out and back.


def through_joblib(est, path, mmap_mode=None, **options):
    joblib.dump(est, path / "model.joblib", **options)
    return joblib.load(path / "model.joblib", mmap_mode=mmap_mode)


def through_buffers(est, path):
    """Out-of-band pickling over memory that cannot be written."""
    buffers = []
    data = pickle.dumps(est, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


def through_cloudpickle(est, path):
    cloudpickle = pytest.importorskip("cloudpickle")
    return pickle.loads(cloudpickle.dumps(est))


def through_skops(est, path):
    io = pytest.importorskip("skops.io")
    data = io.dumps(est)
    trusted = io.get_untrusted_types(data=data)
    assert trusted == [f"{type(est).__module__}.{type(est).__name__}"]
    return io.loads(data, trusted=trusted)


WAYS = {
    **{
        f"pickle {protocol}": lambda est, path, p=protocol: pickle.loads(pickle.dumps(est, p))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "buffers": through_buffers,
    "joblib": through_joblib,
    "joblib compressed": lambda est, path: through_joblib(est, path, compress=3),
    "joblib memmap": lambda est, path: through_joblib(est, path, "r"),
    "cloudpickle": through_cloudpickle,
    "copy": lambda est, path: copy.copy(est),
    "deepcopy": lambda est, path: copy.deepcopy(est),
    "skops": through_skops,
}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
@each_model
def test_the_same_model_comes_back(model, way, data, fitted, tmp_path):
    X, _ = data
    twin = WAYS[way](fitted, tmp_path)
    assert type(twin) is type(fitted)
    assert bits(twin) == bits(fitted)
    assert vars(twin).keys() == vars(fitted).keys()
    assert_array_equal(outputs(twin, X), outputs(fitted, X))
    for vector in (twin._network.params, twin._network.state, *memory_of(twin)[1:]):
        assert vector.flags.writeable
        assert vector.size == 0 or vector.__array_interface__["data"][0] % ALIGNMENT == 0


@each_way
@each_model
def test_training_goes_on_as_it_would_have(model, way, data, fitted, unchanged, tmp_path):
    twin = WAYS[way](fitted, tmp_path)
    if way == "copy":  # which shares parameters
        twin.random_state = copy.deepcopy(twin.random_state)
    with unchanged(fitted):
        train_on(twin, *data)
    assert bits(twin) == bits(train_on(fitted, *data))
    assert twin.loss_curve_ == fitted.loss_curve_


@each_way
def test_unfitted(way, tmp_path):
    est = make(batch_norm=("input", "after"))
    assert WAYS[way](est, tmp_path).get_params() == est.get_params()


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes", "?"],
        np.array(["b", "a", "c"], dtype=object),
        [False, True],
        [0.0, 2.0, 7.0],
        np.array([1, 0, 2], dtype=np.uint8),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["pickle 5", "joblib memmap", "skops"])
def test_labels(labels, way, blobs, tmp_path):
    X, codes = blobs(n_classes=len(labels))
    est = make().fit(X, np.asarray(labels)[codes])
    twin = WAYS[way](est, tmp_path)
    assert twin.classes_.dtype == est.classes_.dtype
    assert_array_equal(twin.predict(X), est.predict(X))


def test_feature_names(blobs, tmp_path):
    pd = pytest.importorskip("pandas")
    X, y = blobs()
    frame = pd.DataFrame(X, columns=list("abcd"))
    est = make().fit(frame, y)
    for way in WAYS.values():
        twin = way(est, tmp_path)
        assert_array_equal(twin.feature_names_in_, est.feature_names_in_)
        with pytest.raises(ValueError, match="feature names"):
            twin.predict(frame[list("bacd")])


class Derived(MLPClassifierBN):
    """A class of a user's, with an attribute of its own."""

    def fit(self, X, y):
        self.n_fits_ = getattr(self, "n_fits_", 0) + 1
        return super().fit(X, y)


def test_subclasses_and_what_is_around(blobs):
    X, y = blobs()
    est = Derived((4,), max_iter=2, random_state=0).fit(X, y).fit(X, y)
    twin = pickle.loads(pickle.dumps(est))
    assert (type(twin), twin.n_fits_) == (Derived, 2)
    search = GridSearchCV(make_pipeline(StandardScaler(), make()), {}, cv=2).fit(X, y)
    twin = pickle.loads(pickle.dumps(search))
    assert_array_equal(twin.predict_proba(X), search.predict_proba(X))
    assert clone(twin).fit(X, y).best_score_ == search.best_score_


def test_a_scorer_may_keep_copies(data):
    X, y = data
    kept = []

    def score(est, X_val, y_val):
        kept.append(copy.deepcopy(est))
        return est.score(X_val, y_val)

    est = make(scoring=score, bn_statistics="moving").fit(X, y, X_val=X, y_val=y)
    assert [copied.score(X, y) for copied in kept] == est.validation_scores_
    assert_array_equal(kept[-1].predict_proba(X), est.predict_proba(X))
    assert kept[0].partial_fit(X, y).n_iter_ == 1


# What is stored.


def parts(value, path=()):
    """Yield (path, value) for all that a document holds."""
    yield path, value
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from parts(item, (*path, key))


@each_model
def test_plain_types_only(model, fitted):
    fitted.random_state = 0  # a generator is the user's
    found = {type(value) for _, value in parts(fitted.__getstate__())}
    assert found <= {dict, list, tuple, str, int, float, bool, type(None), np.ndarray}


@each_model
def test_no_pads_and_no_rows(model, data, fitted):
    document = fitted.__getstate__()
    norms = fitted.batch_norms_
    learned = [np.size(part) for part in (*fitted.coefs_, *fitted.intercepts_)]
    learned += [
        len(norm.gamma) * (fitted.bn_scale + fitted.bn_center) for norm in norms
    ]  # those that are not learned are not stored
    assert document["_network"]["params"].shape == (sum(learned),)
    statistics = sum(4 * len(norm.gamma) + 1 for norm in norms)
    assert document["_network"]["state"].shape == (statistics,)
    if model != "lbfgs":
        assert document["_optimizer"]["memory"].shape[1:] == (sum(learned),)
    arrays = [value for _, value in parts(document) if isinstance(value, np.ndarray)]
    assert not [array for array in arrays if array.shape[:1] == (len(data[0]),)]


def test_storing_changes_nothing(fitted, unchanged):
    with unchanged(fitted):
        document = fitted.__getstate__()
        document["_network"]["params"][:] = 0
        document["_optimizer"]["record"]["t"] = 0
        document["_network"]["layers"].clear()
        document.clear()


def test_loading_and_training_do_not_change_a_document(fitted, data):
    document = fitted.__getstate__()
    before = frozen(document)
    load(document).fit(*data)
    assert frozen(document) == before


def test_every_field_has_a_constraint():
    assert {layer.kind for layer in _persistence.LAYERS} == set(LayerKind)
    for layer, constraints in _persistence.LAYERS.items():
        assert list(constraints) == [field.name for field in fields(layer)]
    assert list(_persistence.RECORD) == list(OPTIMIZER_DTYPE.names)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_can_be_stored(activation, blobs):
    est = make(activation=activation, max_iter=1).fit(*blobs())
    assert bits(pickle.loads(pickle.dumps(est))) == bits(est)


# Versions.


def load(document, estimator=MLPClassifierBN):
    est = object.__new__(estimator)
    est.__setstate__(document)
    return est


def test_version(fitted):
    document = fitted.__getstate__()
    assert document["_skbn_version"] == skbn.__version__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = load(document)
    assert not hasattr(twin, "_skbn_version")
    with pytest.warns(InconsistentVersionWarning, match=r"MLPClassifierBN.* 0\.0\.7 ") as caught:
        twin = load(document | {"_skbn_version": "0.0.7"})
    assert bits(twin) == bits(fitted)
    warning = caught[0].message
    assert warning.original_skbn_version == "0.0.7"
    assert warning.current_skbn_version == skbn.__version__
    assert warning.estimator_name == "MLPClassifierBN"
    assert caught[0].filename == __file__
    for version in (None, 3):
        with pytest.raises(ValueError, match="damaged: its version is"):
            load(document | {"_skbn_version": version})


def test_version_of_scikit_learn():
    """Its base class stamps and checks its own version: that must go on where it applies."""
    inside = type("Inside", (MLPClassifierBN,), {"__module__": "sklearn.inside"})
    document = inside().__getstate__()
    assert {"_skbn_version", "_sklearn_version"} <= document.keys()
    est = object.__new__(inside)
    with pytest.warns(UserWarning, match="from version 0.1 when using") as caught:
        est.__setstate__(document | {"_sklearn_version": "0.1"})
    assert len(caught) == 1


# Arrays as files hand them out.


def read_only(array):
    array.flags.writeable = False
    return array


def unaligned(array):
    raw = np.empty(array.nbytes + 1, dtype=np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert array.size == 0 or not view.flags.aligned
    return read_only(view)


ARRAYS = {
    "read-only": read_only,
    "unaligned": unaligned,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array: array.astype(array.dtype.newbyteorder("<")),
    "Fortran order": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=0)[::2],
}


@each_model
@pytest.mark.parametrize("how", ARRAYS)
def test_arrays_of_files(model, how, data, fitted):
    fitted.random_state = 0
    document = fitted.__getstate__()
    for part, name in (("_network", "params"), ("_network", "state"), ("_optimizer", "memory")):
        if document[part]:
            document[part][name] = ARRAYS[how](document[part][name])
    twin = load(document, type(fitted))
    assert bits(twin) == bits(fitted)
    assert bits(train_on(twin, *data)) == bits(train_on(fitted, *data))


# Damage.


def edited(document, path, value):
    """A document with another value at a path; ``DROP`` leaves the entry out."""
    twin = copy.copy(document)
    key, *rest = path
    if rest:
        twin[key] = edited(document[key], rest, value)
    elif value is DROP:
        del twin[key]
    else:
        twin[key] = value(document[key]) if callable(value) else value
    return twin


DROP = object()
NETWORK, OPTIMIZER, HISTORY = ("_network",), ("_optimizer",), ("_history",)
LAYER = (*NETWORK, "layers")  # 0: BatchNorm on the input, 1: Dense, 2: BatchNorm, ... -1: Dense
RECORD = (*OPTIMIZER, "record")


def with_value(index, value):
    def write(array):
        array = array.copy()
        array.flat[index] = value
        return array

    return write


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (NETWORK, DROP, "lacks _network"),
        (OPTIMIZER, DROP, "lacks _optimizer"),
        (HISTORY, DROP, "lacks _history"),
        (NETWORK, [], "the network is a list"),
        (NETWORK, lambda x: x | {"more": 1}, "the network has unknown fields 'more'"),
        (LAYER, [], "last layer"),
        (LAYER, lambda x: x[:-1], "last layer"),
        (LAYER, lambda x: x[1:], "params has shape"),
        (LAYER, lambda x: x[:4] + x[5:], None),  # dropout holds nothing: the rest is a network
        ((*LAYER, 0), DROP, "params has shape"),
        ((*LAYER, 0), 5, "layer 0 is of kind None"),
        ((*LAYER, 1, "kind"), "Conv2D", "layer 1 is of kind 'Conv2D'"),
        ((*LAYER, 1, "kind"), ["Dense"], "layer 1 is of kind"),
        ((*LAYER, 1, "kind"), "Dropout", "layer 1 lacks 'rate'"),
        ((*LAYER, 1, "n_in"), DROP, "layer 1 lacks 'n_in'"),
        ((*LAYER, 1, "n_in"), 0, "'n_in' parameter of layer 1 must be an int"),
        ((*LAYER, 1, "n_in"), 4.0, "'n_in' parameter of layer 1 must be an int"),
        ((*LAYER, 1, "n_in"), True, "'n_in' of layer 1 is a bool"),
        ((*LAYER, 1, "n_in"), np.int64(4), "'n_in' of layer 1 is a int64"),
        ((*LAYER, 1, "n_in"), 2**40, "'n_in' parameter of layer 1"),
        ((*LAYER, 1, "n_out"), 2**31 - 1, "params has shape"),
        ((*LAYER, 1, "n_out"), 5, "params has shape"),
        ((*LAYER, 1, "activation"), "sin", "'activation' parameter of layer 1"),
        ((*LAYER, 1, "activation"), "gelu", "'activation' parameter of layer 1"),
        ((*LAYER, 1, "train_bias"), 0, "'train_bias' parameter of layer 1"),
        ((*LAYER, 4, "n_out"), 99, "Layer 4 takes 99 inputs"),
        ((*LAYER, 4, "rate"), 1.0, "'rate' parameter of layer 4"),
        ((*LAYER, 2, "n_out"), 2**31 - 1, "params has shape"),
        ((*LAYER, 2, "position"), "behind", "'position' parameter of layer 2"),
        ((*LAYER, 2, "hidden_layer"), -2, "'hidden_layer' parameter of layer 2"),
        ((*LAYER, 2, "momentum"), 1.0, "'momentum' parameter of layer 2"),
        ((*LAYER, 2, "epsilon"), -1e-3, "'epsilon' parameter of layer 2"),
        ((*LAYER, 2, "epsilon"), np.nan, "'epsilon' parameter of layer 2"),
        ((*LAYER, 2, "virtual_batch_size"), 0, "'virtual_batch_size' parameter of layer 2"),
        ((*LAYER, 2, "center"), False, "params has shape"),
        ((*NETWORK, "dtype"), "float16", "'dtype' parameter of the network"),
        ((*NETWORK, "dtype"), "float64", "params has shape .* and dtype float32"),
        ((*NETWORK, "use_population"), 1, "'use_population' parameter of the network"),
        ((*NETWORK, "params"), lambda x: x[:-1], "params has shape"),
        ((*NETWORK, "params"), lambda x: x[None], "params has shape"),
        ((*NETWORK, "params"), lambda x: x.tolist(), "'params' parameter of the network"),
        ((*NETWORK, "params"), lambda x: x.astype(object), "dtype object"),
        ((*NETWORK, "params"), lambda x: x.astype(str), "params has shape"),
        ((*NETWORK, "params"), with_value(3, np.inf), "params has values that are not finite"),
        ((*NETWORK, "state"), lambda x: x[1:], "state has shape"),
        ((*NETWORK, "state"), lambda x: x.astype("f4"), "state has shape"),
        ((*NETWORK, "state"), with_value(0, np.nan), "state has values that are not finite"),
        ((*NETWORK, "state"), with_value(4, -1.0), "negative variance"),
        ((*NETWORK, "state"), with_value(12, -1.0), "negative variance"),
        ((*NETWORK, "state"), with_value(16, -1.0), "number of batches"),
        ((*NETWORK, "state"), with_value(16, 0.5), "number of batches"),
        ((*OPTIMIZER, "memory"), lambda x: x[:1], "memory has shape"),
        ((*OPTIMIZER, "memory"), lambda x: x[:, 1:], "memory has shape"),
        ((*OPTIMIZER, "memory"), with_value(0, np.nan), "memory has values"),
        ((*OPTIMIZER, "memory"), with_value(-1, -1), "memory has values"),
        ((*OPTIMIZER, "schedule"), "cosine", "'schedule' parameter of the optimizer"),
        ((*OPTIMIZER, "power_t"), None, "'power_t' parameter of the optimizer"),
        (RECORD, None, "'record' parameter of the optimizer"),
        ((*RECORD, "kind"), 99, "'kind' parameter of the optimizer"),
        ((*RECORD, "kind"), 1, "memory has shape"),
        ((*RECORD, "t"), -1, "'t' parameter of the optimizer"),
        ((*RECORD, "t"), 10**30, "'t' parameter of the optimizer"),
        ((*RECORD, "learning_rate"), np.inf, "'learning_rate' parameter of the optimizer"),
        ((*RECORD, "learning_rate"), 10**400, "'learning_rate' parameter of the optimizer"),
        ((*RECORD, "beta_2"), 1.0, "'beta_2' parameter of the optimizer"),
        ((*RECORD, "max_grad_norm"), -1.0, "'max_grad_norm' parameter of the optimizer"),
        ((*RECORD, "schedule"), 99, "'schedule' parameter of the optimizer"),
        ((*RECORD, "n_steps"), 0.5, "'n_steps' parameter of the optimizer"),
        ((*RECORD, "epsilon"), DROP, "the optimizer lacks 'epsilon'"),
        ((*HISTORY, "n_iter"), -1, "'n_iter' parameter of the history"),
        ((*HISTORY, "loss_curve"), "long", "'loss_curve' parameter of the history"),
        ((*HISTORY, "loss_curve", 1), "low", "loss_curve of the history"),
        ((*HISTORY, "best_loss"), None, "'best_loss' parameter of the history"),
        ((*HISTORY, "watches_validation"), 3, "'watches_validation' parameter of the history"),
        (("classes_",), DROP, "no attribute 'classes_'"),
        (("classes_",), [0, 1, 2], "classes_ is not"),
        (("classes_",), np.array([0, 2, 1]), "classes_ is not a sorted"),
        (("classes_",), np.array([0, 1, 1]), "classes_ is not a sorted"),
        (("classes_",), np.array([0, "b", None], dtype=object), "classes_ is not a sorted"),
        (("classes_",), np.arange(4), "other than the 3 outputs of the network"),
        (("classes_",), np.arange(2), "other than the 3 outputs"),
        (("classes_",), np.arange(0), "other than the 3 outputs"),
        (("n_features_in_",), DROP, "no attribute 'n_features_in_'"),
        (("n_features_in_",), 5, "n_features_in_ is not 4"),
        (("n_features_in_",), np.arange(4), "n_features_in_ is not 4"),
        (("feature_names_in_",), lambda x: x[:3], "feature_names_in_ is not an array of 4 strings"),
        (("feature_names_in_",), np.arange(4), "feature_names_in_ is not an array of 4 strings"),
        (("out_activation_",), "sine", "out_activation_ is not a str among"),
        (("_is_multilabel",), DROP, "no attribute '_is_multilabel'"),
        (("_gives_sparse_labels",), 1, "_gives_sparse_labels is not a bool"),
        (("alpha",), DROP, "has no attribute 'alpha'"),
    ],
)
def test_damage_is_named(path, value, named, fitted):
    document = fitted.__getstate__() | {"feature_names_in_": np.array(list("abcd"), dtype=object)}
    document = edited(document, path, value)
    if named is None:
        load(document)
        return
    with pytest.raises(ValueError, match=f"^The stored model is damaged: .*{named}"):
        load(document)


@pytest.mark.parametrize("model", ["regressor"])
@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("n_outputs_",), 2, "other than the 3 outputs"),
        (("n_outputs_",), np.arange(3), "other than the 3 outputs"),
        (("n_outputs_",), DROP, "no attribute 'n_outputs_'"),
    ],
)
def test_damage_of_a_regressor_is_named(path, value, named, fitted):
    with pytest.raises(ValueError, match=f"^The stored model is damaged: .*{named}"):
        load(edited(fitted.__getstate__(), path, value), MLPRegressorBN)


def test_damaged_documents(fitted):
    for document in (None, [], "text", fitted.__getstate__().items()):
        with pytest.raises(ValueError, match="The stored model is damaged: it is a"):
            load(document)


def test_truncated_files(fitted):
    data = pickle.dumps(fitted)
    for size in range(0, len(data), 101):
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            pickle.loads(data[:size])


VALUES = (
    *(None, True, 0, 1, -1, 2**31, 2**63, 10**30, 10**400),
    *(0.5, -0.5, 1e308, np.nan, np.inf, -np.inf),
    *("", "text", b"bytes", (), [], {}, [1], {"a": 1}, object(), 1j, np.float32(2), np.str_("a")),
    *(np.zeros(0), np.zeros((2, 2)), np.array(1.0), np.array([None]), np.array(["a", "b", "c"])),
)
CHANGES = (
    *(lambda x: x[:-1], lambda x: x[1:], lambda x: x[::-1], lambda x: x + x, lambda x: -x),
    *(lambda x: x * 1e30, lambda x: x.astype(object), lambda x: x.astype("U"), lambda x: x[None]),
    *(lambda x: x.astype("f2"), lambda x: x.astype("i8"), lambda x: x.astype("c16")),
    *(lambda x: x * np.nan, lambda x: np.append(x, x), lambda x: [x], lambda x: x.tolist()),
    *(lambda x: {**x, "more": 1}, lambda x: list(x), lambda x: tuple(x), lambda x: str(x)),
)


@pytest.mark.parametrize(
    "model", ["adam", "adaptive", "rmsprop", "lbfgs", "multilabel", "regressor"]
)
def test_any_damage_is_an_error_or_harmless(model, data, fitted):
    """Whatever stands in any place: loading says what is wrong, or the model can be used."""
    X, y = data
    document = fitted.__getstate__()
    n_errors = 0
    for path, present in list(parts(document))[1:]:
        if path[0] in fitted.get_params():
            continue  # parameters may be anything until fit looks at them
        changed = []
        for change in CHANGES:
            try:
                changed.append(change(present))
            except (TypeError, ValueError, AttributeError, LookupError, OverflowError):
                pass  # the change is none for this type
        for value in (DROP, *VALUES, *changed):
            damaged = edited(document, path, value)
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                try:
                    est = load(damaged, type(fitted))
                except ValueError as error:
                    assert str(error).startswith("The stored model is damaged: ")  # noqa: PT017
                    n_errors += 1
                    continue
                assert est.predict(X).shape[0] == outputs(est, X).shape[0] == len(y)
                if path[0].startswith("_"):
                    with suppress(ValueError):  # huge weights, other layers than asked for
                        est.set_params(early_stopping=False, solver="adam").partial_fit(X, y)
    assert n_errors > 1000


# Models that travel to other processes and back.


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_other_processes(backend, blobs, seed):
    X, y = blobs()
    est = make(random_state=seed, batch_norm=("input", "before"), dropout=0.1)

    def validated(n_jobs):
        return cross_validate(
            est, X, y, cv=3, n_jobs=n_jobs, return_estimator=True, error_score="raise"
        )

    alone = validated(1)
    with joblib.parallel_config(backend=backend):
        beside = validated(2)
    assert_array_equal(beside["test_score"], alone["test_score"])
    pairs = list(zip(beside["estimator"], alone["estimator"], strict=True))
    assert [bits(a) for a, _ in pairs] == [bits(b) for _, b in pairs]
    for a, b in pairs:
        assert bits(a.partial_fit(X, y)) == bits(b.partial_fit(X, y))
    with joblib.parallel_config(backend=backend):
        fitted = [joblib.delayed(est.predict_proba)(X) for _, est in pairs]
        for found, (_, est) in zip(joblib.Parallel(n_jobs=2)(fitted), pairs, strict=True):
            assert_array_equal(found, est.predict_proba(X))


# The page about it.

PAGE = Path(__file__).parents[1] / "docs" / "user_guide" / "persistence.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the tests lie elsewhere than the sources")
def test_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("skops")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    names = {}
    with warnings.catch_warnings():  # one of the blocks sets a filter
        for block in blocks:
            exec(block, names)
        document = names["clf"].__getstate__() | {"_skbn_version": "0.0.7"}
        with pytest.raises(InconsistentVersionWarning):
            load(document)
