"""Folded networks predict what unfolded ones do, and are used where that loses nothing.

The judge is the NumPy executor in float64, which walks the unfolded table. tests/test_deployment.py
works out what fitted networks predict from their folded weights alone.
"""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from cases import BEST, NETWORKS, Case, each_dtype, each_network, network_case
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import issparse

from skbn import _folding
from skbn._folding import MAX_RATIO, MIN_ROWS, folded, folded_for_predictions
from skbn._layers import BatchNorm, Dense, Dropout, Elementwise
from skbn.backends.records import Statistics

F32, F64 = np.float32, np.float64
NO_EPSILON = {"epsilon": 0.0}

each_kind_of_statistics = pytest.mark.parametrize("population", [False, True])


def prepare(case, population, dtype=F64):
    """The network of a case in a type and in float64, and the rows."""
    twins = case.network(dtype), case.network(F64)
    for network in twins:
        network.use_population = population
    X = case.data(dtype)[0]
    return *twins, X.toarray() if issparse(X) else X


def run(executor, network, X):
    with Case(network.layers).executor(executor, network) as instance:
        return instance.predict(X.astype(network.dtype))


def error(found, expected):
    """The largest error relative to the largest output."""
    return np.abs(found - expected).max() / np.abs(expected).max()


def n_norms(network):
    return len(network.batch_norm_indices)


def norm_of(network, index):
    return network.table[network.batch_norm_indices[index]]


def set_statistics(network, index, mean=None, var=None):
    record = norm_of(network, index)
    for which, value in ((Statistics.POPULATION_MEAN, mean), (Statistics.POPULATION_VAR, var)):
        if value is not None:
            network.statistics(record, which)[...] = value
    network.use_population = True


# All of it, in float64.


@each_kind_of_statistics
@each_dtype
@each_network
def test_folded_predicts_the_same(case, dtype, population):
    network, wide, X = prepare(NETWORKS[case], population, dtype)
    result = folded(network)
    gone = [layer for layer in network.layers if not isinstance(layer, Dense | Elementwise)]
    assert len(result.layers) == len(network.layers) - len(gone)
    assert n_norms(result) == 0
    assert result.params.dtype == F64
    X = X.astype(F64)
    assert error(run("reference", result, X), run("reference", wide, X)) < 1e-13


def test_the_statistics_of_predictions_are_taken():
    network, _, X = prepare(NETWORKS["all options"], False)
    moving = run("reference", folded(network), X)
    network.use_population = True
    assert error(run("reference", folded(network), X), moving) > 0.1


@pytest.mark.parametrize("placement", ["input", "before", "after"])
def test_a_constant_unit_gives_beta(placement):
    """With epsilon 0, exactly: whatever feeds it, it adds beta times its weights."""
    network, _, _ = prepare(network_case((placement,), "tanh", (3,), 3, bn=NO_EPSILON), True)
    set_statistics(network, 0, mean=[7.0, 0.5, -2.0], var=[0.0, 4.0, 0.0])
    result, (norm,) = folded(network), network.batch_norms
    if placement == "before":
        assert not result.coefs[0][:, [0, 2]].any()
        assert_array_equal(result.intercepts[0][[0, 2]], norm.beta[[0, 2]])
    else:
        index = 0 if placement == "input" else 1
        (weight, bias), given = (
            (network.coefs[index], network.intercepts[index]),
            result.coefs[index],
        )
        assert not given[[0, 2]].any()
        assert_allclose(given[1], weight[1] * norm.gamma[1] / 2, rtol=1e-15)
        shift = norm.beta - [0, 0.25 * norm.gamma[1], 0]
        assert_allclose(result.intercepts[index], bias + shift @ weight, rtol=1e-14)


def test_nothing_is_shared_or_changed():
    network, _, _ = prepare(NETWORKS["all options"], True, F32)
    network.params.setflags(write=False)
    network.state.setflags(write=False)
    for result in (folded(network), folded_for_predictions(network, MIN_ROWS)):
        assert result is not network
        assert not np.shares_memory(result.params, network.params)
        assert not np.shares_memory(result.state, network.state)


class Stranger:
    """A layer of a kind that folding does not know; executors take it for dropout."""

    def __init__(self, n_out):
        self._dropout = Dropout(n_out, 0.5)

    def __getattr__(self, name):
        return getattr(self._dropout, name)


def norm_layer(activation="identity"):
    return BatchNorm(4, "after", 0, activation)


STRANGERS = {
    "behind a norm": (norm_layer(), Stranger(4), Dense(4, 1)),
    "between dense and norm": (Dense(2, 4), Stranger(4), norm_layer("tanh"), Dense(4, 1)),
    "between dense layers": (Dense(2, 4), Stranger(4), Dense(4, 1)),
    "two activations": (Dense(2, 4, "relu"), norm_layer("tanh"), Dense(4, 1)),
}


@pytest.mark.parametrize("where", STRANGERS)
def test_no_other_layer_is_passed_over(where):
    case = Case(STRANGERS[where])
    network, wide, X = prepare(case, True)
    with pytest.raises(ValueError, match="cannot be folded into a dense layer"):
        folded(network)
    result = folded_for_predictions(network, MIN_ROWS)
    assert result.layers == network.layers
    assert error(run(BEST, result, X), run("reference", wide, X)) < 1e-14


def test_a_stranger_beside_a_foldable_norm():
    layers = (Dense(2, 4), Stranger(4), norm_layer(), Dropout(4, 0.1), Dense(4, 1))
    network, wide, X = prepare(Case(layers), True)
    result = folded_for_predictions(network, MIN_ROWS)
    assert result.layers == (layers[0], layers[1], layers[4])
    assert error(run(BEST, result, X), run("reference", wide, X)) < 1e-14


def test_weights_that_a_type_cannot_hold():
    case = network_case(("before",), bn=NO_EPSILON)
    network, wide, _ = prepare(case, True, F32)
    for each, weight, var in ((network, 1e34, 1e-12), (wide, 1e200, 1e-250)):
        each.coefs[0][0, 0] = weight
        set_statistics(each, 0, var=var)
    assert np.isfinite(folded(network).params).all()
    assert folded_for_predictions(network, MIN_ROWS) is network
    with pytest.raises(ValueError, match="not finite"):
        folded(wide)


# For predictions: of the same type, where it loses nothing.


@each_kind_of_statistics
@each_dtype
@each_network
def test_predictions_are_as_exact(case, dtype, population):
    network, wide, X = prepare(NETWORKS[case], population, dtype)
    result = folded_for_predictions(network, MIN_ROWS)
    assert (result is network) == (n_norms(network) == 0)
    assert n_norms(result) == 0  # the means of these cases are small
    assert result.dtype == dtype
    tolerance = {F32: 2e-6, F64: 1e-14}[dtype]  # what unfolded executors are allowed
    assert error(run(BEST, result, X), run("reference", wide, X.astype(F64))) < tolerance


def test_few_rows_do_not_pay():
    network, _, _ = prepare(NETWORKS["all options"], True)
    assert folded_for_predictions(network, MIN_ROWS - 1) is network


@each_dtype
@pytest.mark.parametrize("placement", ["input", "after"])
def test_a_norm_in_front_of_its_layer_stays_where_means_are_large(placement, dtype):
    """One unit beyond the bound is enough."""
    network, _, _ = prepare(network_case((placement,), "tanh", (4,), 4), True, dtype)
    set_statistics(network, 0, mean=[0, 0, -MAX_RATIO, 0], var=1.0 - 1e-3)
    assert n_norms(folded_for_predictions(network, MIN_ROWS)) == 0
    set_statistics(network, 0, mean=[0, 0, -MAX_RATIO * 1.01, 0])
    result = folded_for_predictions(network, MIN_ROWS)
    assert result.layers == network.layers
    assert_array_equal(result.params, network.params)
    assert_array_equal(result.state, network.state)
    assert result.use_population


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
def test_hostile_input(ratio, monkeypatch):
    """Features of mean 1e6 and deviation 1, in float32: centred first, the prediction is right."""
    case = network_case(("input",), "tanh", (50,), 9, n_rows=257)
    network, wide, X = prepare(case, True, F32)
    X = (X + F32(ratio)).astype(F32)
    for each in (network, wide):
        set_statistics(each, 0, mean=X.mean(axis=0, dtype=F64), var=X.var(axis=0, dtype=F64))
    expected = run("reference", wide, X)
    kept = folded_for_predictions(network, MIN_ROWS)
    assert error(run(BEST, kept, X), expected) < 2e-6
    monkeypatch.setattr(_folding, "MAX_RATIO", np.inf)
    lossy = folded_for_predictions(network, MIN_ROWS)
    assert n_norms(lossy) == 0
    assert error(run(BEST, lossy, X), expected) > 1e-8 * ratio
    assert error(run("reference", folded(network), X), expected) < 1e-14 * ratio


@pytest.mark.parametrize("ratio", [1, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("fed_by", ["bias", "rows"])
def test_a_norm_behind_its_layer_loses_nothing_at_any_ratio(fed_by, ratio, seed):
    """What cancels has been rounded in the product already, folded or not."""
    case = network_case(("before",), "tanh", (50,), 20, n_rows=257, seed=seed)
    network, wide, X = prepare(case, True, F32)
    if fed_by == "rows":
        X = (X + F32(ratio)).astype(F32)
    else:
        for each in (network, wide):
            each.intercepts[0][...] += F32(ratio)
    with case.executor(BEST, network) as executor:
        executor.update_population_statistics(X, None, np.arange(len(X)))
    (norm,) = network.batch_norms
    set_statistics(wide, 0, mean=norm.population_mean, var=norm.population_var)
    expected = run("reference", wide, X.astype(F64))
    result = folded_for_predictions(network, MIN_ROWS)
    assert n_norms(result) == 0
    unfolded, found = (error(run(BEST, each, X), expected) for each in (network, result))
    assert found < 2 * unfolded + 1e-6


@pytest.mark.parametrize("placement", ["input", "before", "after"])
@pytest.mark.parametrize("std", [1e-30, 1e-10, 1e10, 1e30])
def test_no_weight_leaves_the_range_of_float32(placement, std):
    network, _, _ = prepare(network_case((placement,), "tanh", (3,), 3, bn=NO_EPSILON), True, F32)
    set_statistics(network, 0, mean=0.0, var=[1.0, std**2, 0.0])
    assert folded_for_predictions(network, MIN_ROWS).layers == network.layers
    set_statistics(network, 0, var=[1.0, 4.0, 0.0])
    assert n_norms(folded_for_predictions(network, MIN_ROWS)) == 0
