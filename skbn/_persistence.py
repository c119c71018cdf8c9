"""Fitted estimators as documents: what pickle, joblib, skops and copies see, checked on the way in.

A document is made of dicts, lists, strings, numbers and NumPy arrays, so that a file needs no trust
in any type but the estimator's and can be read without this package. It says what was learned, not
how that lies in memory: one number after the other, tensor by tensor in the order of the layers;
table, offsets and pads are rebuilt.

Kernels check nothing and a file may hold anything, so a document is believed in no point: its
fields must be exactly the expected ones, each must pass a constraint (scikit-learn's, as for
parameters), and vectors must have the size that the layers need before memory of that size is
asked for.

Rejected: pickling Network, Optimizer and History as they are. Their class names and pads would
become a file format, and skops would ask its users to trust each of them.
"""
# SPDX-License-Identifier: BSD-3-Clause

import warnings
from dataclasses import fields
from math import prod
from numbers import Integral, Real
from types import NoneType

import numpy as np
from sklearn.base import is_classifier

from skbn._layers import (
    ELEMENTWISE_ACTIVATIONS,
    FUSED_ACTIVATIONS,
    BatchNorm,
    Dense,
    Dropout,
    Elementwise,
)
from skbn._network import Network
from skbn._sklearn_compat import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from skbn._training import History, Optimizer, optimizer_vectors
from skbn._version import __version__
from skbn.backends.memory import aligned_zeros
from skbn.backends.records import OPTIMIZER_DTYPE, OptimizerKind, Schedule, Statistics
from skbn.exceptions import InconsistentVersionWarning

PLAIN = (dict, list, str, bool, int, float, NoneType, np.ndarray)

# Whatever fits a record's int64 and double; WIDTH is what BLAS can count.
LARGEST = float(np.finfo(np.float64).max)
COUNT = Interval(Integral, 0, 2**62, closed="both")
WIDTH = Interval(Integral, 1, 2**31 - 1, closed="both")
FINITE = Interval(Real, -LARGEST, LARGEST, closed="both")
NOT_NEGATIVE = Interval(Real, 0, LARGEST, closed="both")
FRACTION = Interval(Real, 0, 1, closed="left")

# What each field must be, kind by kind.
FUSED = StrOptions(set(FUSED_ACTIVATIONS))
ELEMENTWISE = StrOptions(set(ELEMENTWISE_ACTIVATIONS))
LAYERS = {
    Dense: {
        "n_in": [WIDTH],
        "n_out": [WIDTH],
        "activation": [FUSED],
        "train_bias": ["boolean"],
    },
    BatchNorm: {
        "n_out": [WIDTH],
        "position": [StrOptions({"input", "before", "after"})],
        "hidden_layer": [Interval(Integral, -1, 2**31 - 1, closed="both")],
        "activation": [FUSED],
        "momentum": [FRACTION, None],
        "epsilon": [NOT_NEGATIVE],
        "center": ["boolean"],
        "scale": ["boolean"],
        "virtual_batch_size": [Interval(Integral, 1, 2**62, closed="both"), None],
    },
    Dropout: {"n_out": [WIDTH], "rate": [FRACTION]},
    Elementwise: {"n_out": [WIDTH], "activation": [ELEMENTWISE]},
}
KINDS = {layer.__name__: layer for layer in LAYERS}
NETWORK = {
    "layers": [list],
    "dtype": [StrOptions({"float32", "float64"})],
    "use_population": ["boolean"],
    "params": [np.ndarray],
    "state": [np.ndarray],
}
RECORD = {
    "kind": [Options(Integral, set(map(int, OptimizerKind)))],
    "nesterov": [Options(Integral, {0, 1})],
    "t": [COUNT],
    "learning_rate": [NOT_NEGATIVE],
    "momentum": [Interval(Real, 0, 1, closed="both")],
    "beta_1": [FRACTION],
    "beta_2": [FRACTION],
    "epsilon": [NOT_NEGATIVE],
    "max_grad_norm": [NOT_NEGATIVE, Options(Real, {np.inf})],
    "schedule": [Options(Integral, set(map(int, Schedule)))],
    "n_steps": [COUNT],
}
OPTIMIZER = {
    "schedule": [StrOptions({"constant", "invscaling", "adaptive"})],
    "learning_rate_init": [NOT_NEGATIVE],
    "power_t": [NOT_NEGATIVE],
    "record": [dict],
    "memory": [np.ndarray],
}
# Curves may hold NaN, and best values begin at infinity.
HISTORY_TYPES: dict = {
    int: [COUNT],
    float: [float, FINITE],
    list: [list],
    str: [str],
    bool | None: ["boolean", None],
}
HISTORY = {field.name: HISTORY_TYPES[field.type] for field in fields(History)}

OUT_ACTIVATION = StrOptions({"identity", "exp", "logistic", "softmax"})


def _damaged(message):
    return ValueError(f"The stored model is damaged: {message}")


def _checked(document, constraints, owner):
    """Return a document that has exactly the fields with a constraint, each of which passes it."""
    if not isinstance(document, dict):
        raise _damaged(f"{owner} is a {type(document).__name__}, not a dict.")
    for title, names in (
        ("lacks", constraints.keys() - document.keys()),
        ("has unknown fields", document.keys() - constraints.keys()),
    ):
        if names:
            raise _damaged(f"{owner} {title} {', '.join(sorted(map(repr, names)))}.")
    for name, value in document.items():
        is_stray_bool = isinstance(value, bool) and "boolean" not in constraints[name]
        if is_stray_bool or not isinstance(value, PLAIN):
            raise _damaged(f"{name!r} of {owner} is a {type(value).__name__}.")
    try:
        validate_parameter_constraints(constraints, document, owner)
    except InvalidParameterError as error:
        raise _damaged(error) from None
    return document


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


def _fields(thing, *but):
    return {name: _plain(value) for name, value in vars(thing).items() if name not in but}


# Vectors: with pads in memory, without them in documents.


def _tensors(network, vector):
    """Return views of all tensors of a vector laid out as ``params``."""
    return [tensor.view(vector) for tensor in network.tensors]


def _statistics(network):
    """Return, for each batch norm, views of its four statistics and of its number of batches."""
    views = []
    for norm in network.table[network.batch_norm_indices]:
        views += [network.statistics(norm, which) for which in range(Statistics.N_BATCHES)]
        count = norm["state"] + Statistics.N_BATCHES * norm["out_stride"]
        views.append(network.state[count : count + 1])
    return views


def _join(views, dtype):
    """Return the numbers of all views, one after the other."""
    return np.concatenate([np.empty(0, dtype), *(view.ravel() for view in views)])


def _fill(views, numbers):
    """Write the numbers of ``_join`` into the views; they may be unaligned or byte-swapped."""
    start = 0
    for view in views:
        view[...] = numbers[start : start + view.size].reshape(view.shape)
        start += view.size


def _check_numbers(numbers, shape, dtype, owner):
    """Refuse an array of another shape or type."""
    if numbers.shape != shape or numbers.dtype.newbyteorder("=") != dtype:
        raise _damaged(
            f"{owner} has shape {numbers.shape} and dtype {numbers.dtype}, the layers need "
            f"{shape} and {dtype}."
        )


# Networks.


def _network_document(network):
    return {
        "layers": [{"kind": type(layer).__name__, **_fields(layer)} for layer in network.layers],
        "dtype": network.dtype.name,
        "use_population": network.use_population,
        "params": _join(_tensors(network, network.params), network.dtype),
        "state": _join(_statistics(network), np.float64),
    }


def _layer(document, owner):
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise _damaged(f"{owner} is of kind {kind!r}, which is none of {', '.join(KINDS)}.")
    values = {name: value for name, value in document.items() if name != "kind"}
    return KINDS[kind](**_checked(values, LAYERS[KINDS[kind]], owner))


def _network(document):
    _checked(document, NETWORK, "the network")
    layers = [_layer(layer, f"layer {index}") for index, layer in enumerate(document["layers"])]
    if not layers or not isinstance(layers[-1], Dense):
        raise _damaged("its last layer is not a Dense.")
    # The pads come on top, so what is allocated below is in proportion to what was read.
    n_params = sum(prod(spec.shape) for layer in layers for spec in layer.tensors())
    norms = [layer for layer in layers if isinstance(layer, BatchNorm)]
    n_state = sum(Statistics.N_BATCHES * norm.n_out + 1 for norm in norms)
    _check_numbers(document["params"], (n_params,), np.dtype(document["dtype"]), "params")
    _check_numbers(document["state"], (n_state,), np.dtype(np.float64), "state")
    try:
        network = Network(layers, document["dtype"])
    except ValueError as error:  # a layer does not take what the one before it gives
        raise _damaged(error) from None
    _fill(_tensors(network, network.params), document["params"])
    _fill(_statistics(network), document["state"])
    network.use_population = bool(document["use_population"])
    for name in ("params", "state"):
        if not np.isfinite(getattr(network, name)).all():
            raise _damaged(f"{name} has values that are not finite.")
    views = _statistics(network)
    _, moving_var, _, population_var, n_batches = (views[i :: len(Statistics)] for i in Statistics)
    if any((variance < 0).any() for variance in moving_var + population_var):
        raise _damaged("state has a negative variance.")
    if any(count < 0 or count != np.floor(count) for count in n_batches):
        raise _damaged("state has a number of batches that is none.")
    return network


# Optimizers.


def _optimizer_document(optimizer, network):
    if optimizer is None:  # L-BFGS leaves none behind
        return None
    vectors = optimizer.memory.reshape(-1, network.n_params)
    return _fields(optimizer, "record", "memory") | {
        "record": {name: optimizer.record[name].item() for name in OPTIMIZER_DTYPE.names},
        "memory": np.stack([_join(_tensors(network, v), network.dtype) for v in vectors]),
    }


def _optimizer(document, network):
    if document is None:
        return None
    _checked(document, OPTIMIZER, "the optimizer")
    record = _checked(document["record"], RECORD, "the optimizer")
    stored = document["memory"]
    n_vectors = optimizer_vectors(record["kind"])
    n_params = sum(prod(tensor.shape) for tensor in network.tensors)
    _check_numbers(stored, (n_vectors, n_params), network.dtype, "memory")
    # The last vector of "adam" and "rmsprop" is a mean of squares. It may hold infinity: squares
    # that overflowed in float32 only make the steps zero.
    has_squares = record["kind"] != OptimizerKind.SGD
    if np.isnan(stored).any() or (has_squares and (stored[-1] < 0).any()):
        raise _damaged("memory has values that no optimizer leaves behind.")
    optimizer = object.__new__(Optimizer)
    vars(optimizer).update(document)
    optimizer.record = np.array([tuple(record[n] for n in OPTIMIZER_DTYPE.names)], OPTIMIZER_DTYPE)
    optimizer.memory = aligned_zeros(n_vectors * network.n_params, network.dtype)
    for vector, numbers in zip(optimizer.memory.reshape(n_vectors, -1), stored, strict=True):
        _fill(_tensors(network, vector), numbers)
    return optimizer


# Histories.


def _history(document):
    history = History(**_checked(document, HISTORY, "the history")).copy()
    for name, curve in vars(history).items():
        if isinstance(curve, list) and not all(isinstance(value, Real) for value in curve):
            raise _damaged(f"{name} of the history has values that are no numbers.")
    return history


# Estimators.


def to_document(state):
    """Return an estimator's state with its version, and what training left as documents.

    Parameters
    ----------
    state : dict
        Attributes of an estimator; not changed.

    Returns
    -------
    dict
        Attributes of plain types, apart from parameters that the user chose otherwise.
    """
    document = state | {"_skbn_version": __version__}
    if "_network" in state:
        network = state["_network"]
        document["_network"] = _network_document(network)
        document["_optimizer"] = _optimizer_document(state["_optimizer"], network)
        document["_history"] = _fields(state["_history"])
    return document


def from_document(document, estimator_name):
    """Return the state that :func:`to_document` was given.

    Parameters
    ----------
    document : dict
        What a file holds; not changed.
    estimator_name : str
        Name of the estimator's class.

    Returns
    -------
    dict
        Attributes of an estimator.

    Raises
    ------
    ValueError
        If the document is damaged.
    """
    if not isinstance(document, dict):
        raise _damaged(f"it is a {type(document).__name__}, not a dict.")
    state = document.copy()
    version = state.pop("_skbn_version", None)
    if not isinstance(version, str):
        raise _damaged(f"its version is {version!r}.")
    if version != __version__:
        warnings.warn(
            InconsistentVersionWarning(
                estimator_name=estimator_name,
                current_skbn_version=__version__,
                original_skbn_version=version,
            ),
            stacklevel=3,  # who called __setstate__
        )
    parts = {"_network", "_optimizer", "_history"}
    if parts & state.keys():
        if parts - state.keys():
            raise _damaged(f"it lacks {', '.join(sorted(parts - state.keys()))}.")
        network = state["_network"] = _network(state["_network"])
        state["_optimizer"] = _optimizer(state["_optimizer"], network)
        state["_history"] = _history(state["_history"])
    return state


def _is_count(value, expected):
    return isinstance(value, Integral) and value == expected


def _are_names(value, size):
    is_vector = isinstance(value, np.ndarray) and value.shape == (size,)
    return is_vector and all(isinstance(name, str) for name in value)


def _are_classes(value):
    """Return whether labels become codes by bisection, and codes indices in kernels, safely."""
    try:
        return isinstance(value, np.ndarray) and np.array_equal(np.unique(value), value)
    except TypeError:  # labels that cannot be compared
        return False


def check_consistency(estimator):
    """Refuse an estimator whose attributes are missing or do not fit its network.

    Parameters
    ----------
    estimator : estimator
        As it was loaded.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    try:
        estimator.get_params(deep=False)
        if not hasattr(estimator, "_network"):
            return
        n_features, n_outputs = estimator._network.n_features, estimator._network.n_outputs
        if not _is_count(estimator.n_features_in_, n_features):
            raise _damaged(f"n_features_in_ is not {n_features}, as the network needs.")
        named = hasattr(estimator, "feature_names_in_")
        if named and not _are_names(estimator.feature_names_in_, n_features):
            raise _damaged(f"feature_names_in_ is not an array of {n_features} strings.")
        if not OUT_ACTIVATION.is_satisfied_by(estimator.out_activation_):
            raise _damaged(f"out_activation_ is not {OUT_ACTIVATION}.")
        if is_classifier(estimator):
            if not _are_classes(estimator.classes_):
                raise _damaged("classes_ is not a sorted array of different labels.")
            for flag in ("_is_multilabel", "_gives_sparse_labels"):
                if not isinstance(getattr(estimator, flag), bool):
                    raise _damaged(f"{flag} is not a bool.")
        # A regressor's loss may have been changed since, its outputs have not.
        found = estimator._loss.n_outputs if is_classifier(estimator) else estimator.n_outputs_
        if not _is_count(found, n_outputs):
            raise _damaged(f"its loss needs other than the {n_outputs} outputs of the network.")
    except (
        AttributeError,
        LookupError,
        TypeError,
    ) as error:  # LookupError: a loss of no known name
        raise _damaged(f"{type(error).__name__}: {error}") from error
