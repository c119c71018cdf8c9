"""A network is data: flat vectors, a table of records that point into them, and views."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from cases import NETWORKS, each_dtype, each_network, network_case, norms, pads, tensors
from numpy.testing import assert_array_equal

from skbn._layers import BatchNorm, Dense, Dropout
from skbn._network import Network
from skbn.backends.memory import ALIGNMENT, aligned_zeros, padded
from skbn.backends.records import (
    LAYER_DTYPE,
    OPTIMIZER_DTYPE,
    Activation,
    LayerKind,
    LossKind,
    OptimizerKind,
    Statistics,
)


def is_aligned(array):
    return array.size == 0 or array.__array_interface__["data"][0] % ALIGNMENT == 0


# Records and memory.


@pytest.mark.parametrize("dtype", [LAYER_DTYPE, OPTIMIZER_DTYPE], ids=["layer", "optimizer"])
def test_records_have_no_holes(dtype):
    """Fields of 8 bytes side by side: the same bytes for C, Cython and CUDA."""
    assert dtype.isnative
    assert dtype.itemsize == 8 * len(dtype.names)
    offsets = [dtype.fields[name][1] for name in dtype.names]
    assert offsets == list(range(0, dtype.itemsize, 8))
    assert {dtype.fields[name][0] for name in dtype.names} == {np.dtype("i8"), np.dtype("f8")}


@pytest.mark.parametrize("kind", [LayerKind, Activation, LossKind, OptimizerKind, Statistics])
def test_numbers_are_distinct(kind):
    assert len({int(member) for member in kind}) == len(kind.__members__)


@pytest.mark.parametrize("size", [0, 1, 7, 1000])
@each_dtype
def test_aligned_zeros(size, dtype):
    vector = aligned_zeros(size, dtype)
    assert (vector.shape, vector.dtype) == ((size,), dtype)
    assert is_aligned(vector)
    assert not vector.any()
    assert vector.flags.writeable
    assert vector.flags.c_contiguous


def test_padded():
    for itemsize in (4, 8):
        for width in range(1, 200):
            stride = padded(width, itemsize)
            assert stride * itemsize % ALIGNMENT == 0
            assert 0 <= (stride - width) * itemsize < ALIGNMENT


# Layout.


@each_dtype
@each_network
def test_layout(case, dtype):
    """Tensors are aligned, apart from each other, inside the vector; the rest is zero."""
    network = Network(NETWORKS[case].layers, dtype)
    assert is_aligned(network.params)
    assert is_aligned(network.state)
    assert network.params.size == network.n_params == network.new_vector().size
    owner = np.full(network.n_params, -1)
    for index, tensor in enumerate(network.tensors):
        view = tensor.view(network.params)
        assert view.shape == tensor.shape
        assert np.shares_memory(view, network.params)
        assert is_aligned(view)
        assert (tensor.view(owner) == -1).all()
        tensor.view(owner)[...] = index
    assert not pads(network, network.params).any()
    sizes = sum(int(np.prod(tensor.shape)) for tensor in network.tensors)
    assert (owner >= 0).sum() == sizes


@each_dtype
@each_network
def test_table(case, dtype):
    """Every layer reads what the one before it wrote; buffers and state do not overlap."""
    network = Network(NETWORKS[case].layers, dtype)
    table, itemsize = network.table, np.dtype(dtype).itemsize
    assert table.dtype == LAYER_DTYPE
    assert_array_equal(table["kind"], [layer.kind for layer in network.layers])
    assert_array_equal(table["input"][1:], table["output"][:-1])
    assert_array_equal(table["in_stride"][1:], table["out_stride"][:-1])
    assert_array_equal(table["input"] + table["in_stride"], table["output"])
    assert network.row_size == table["output"][-1] + table["out_stride"][-1]
    alone = [False] * (len(table) - 1) + [network.n_outputs == 1]
    assert_array_equal(table["out_stride"] * itemsize % ALIGNMENT != 0, alone)
    assert table["out_stride"][-1] == 1 or network.n_outputs > 1
    assert (network.n_features, network.n_outputs) == (table["n_in"][0], table["n_out"][-1])
    normal = norms(network)
    assert_array_equal(
        np.flatnonzero(table["kind"] == LayerKind.BATCH_NORM), network.batch_norm_indices
    )
    others = table[table["kind"] != LayerKind.BATCH_NORM]
    assert np.all(others["state"] == -1)
    assert np.all(others["saved"] == -1)
    ends = np.append(normal["state"] + Statistics.N_BATCHES * normal["out_stride"], 0)
    assert np.all(normal["state"][1:] > ends[:-2])
    assert network.state.size == network.n_state
    assert network.n_state > ends.max() or not len(normal)
    assert network.saved_size == 3 * normal["out_stride"].sum()


def test_initial_values():
    """gamma and variances 1, all else 0: predictions before any batch change nothing."""
    network = Network(NETWORKS["all options"].layers, np.float64)
    for name, view in tensors(network, network.params).items():
        assert_array_equal(view, float(name.endswith("gamma")))
    network.use_population = True
    for record in network.batch_norms:
        for mean, var in [record[4:6], record[6:8]]:
            assert_array_equal(mean, 0.0)
            assert_array_equal(var, 1.0)


# Views.


@each_dtype
def test_views_are_views(dtype):
    """What users see is the memory that executors work on, without its pads."""
    network = network_case(("input", "before"), hidden=(5, 4), n_features=3, n_classes=3).network(
        dtype
    )
    network.use_population = True
    assert [coef.shape for coef in network.coefs] == [(3, 5), (5, 4), (4, 3)]
    assert [intercept.shape for intercept in network.intercepts] == [(5,), (4,), (3,)]
    records = network.batch_norms
    assert [(r.position, r.layer, r.gamma.size) for r in records] == [
        ("input", -1, 3),
        ("before", 0, 5),
        ("before", 1, 4),
    ]
    for view in (
        *network.coefs,
        *network.intercepts,
        *(r.gamma for r in records),
        *(r.beta for r in records),
    ):
        assert view.dtype == dtype
        view[...] = 7
        assert np.shares_memory(view, network.params)
    assert (network.params == 7).sum() == sum(
        v.size for v in tensors(network, network.params).values()
    )
    assert not pads(network, network.params).any()
    for record in records:
        for statistic in record[4:]:
            assert statistic.dtype == np.float64
            assert np.shares_memory(statistic, network.state)
    network.use_population = False
    assert {r.population_mean for r in network.batch_norms} == {None}
    assert {r.population_var for r in network.batch_norms} == {None}


def test_gamma_and_beta_that_are_not_learned():
    network = network_case(bn={"center": False, "scale": False}).network(np.float32)
    (record,) = network.batch_norms
    assert_array_equal(record.gamma, np.ones(50, np.float32))
    assert_array_equal(record.beta, np.zeros(50, np.float32))
    assert record.gamma.dtype == record.beta.dtype == np.float32
    assert len(network.tensors) == 4


@pytest.mark.parametrize("where", ["coefs", "intercepts"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_first_non_finite_layer(value, where):
    for index in range(3):
        network = network_case(hidden=(5, 4)).network()
        assert network.first_non_finite_layer() is None
        getattr(network, where)[index].flat[-1] = value
        assert network.first_non_finite_layer() == index


@pytest.mark.parametrize("role", ["gamma", "beta"])
def test_first_non_finite_gamma(role):
    """They are parameters like any other: the hidden layer that they belong to is named."""
    network = network_case(("input", "before"), hidden=(5, 4)).network()
    getattr(network.batch_norms[-1], role)[2] = np.nan
    assert network.first_non_finite_layer() == 1


# Copies.


@pytest.fixture(params=["all options", "alpha", "no gamma, no beta"])
def trained(request):
    network = NETWORKS[request.param].network(np.float32)
    network.use_population = True
    return network


def assert_same(one, other):
    assert (one.layers, one.dtype) == (other.layers, other.dtype)
    assert one.use_population == other.use_population
    for name in ("params", "state", "table"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert one.tensors == other.tensors
    assert is_aligned(other.params)
    assert is_aligned(other.state)


def test_copies(trained):
    """Equal, aligned, writable, and of no consequence to each other."""
    twin = trained.copy()
    assert_same(trained, twin)
    before = trained.params.tobytes(), trained.state.tobytes()
    for vector in (twin.params, twin.state):
        assert vector.flags.writeable
        vector[:] = -1
    assert (trained.params.tobytes(), trained.state.tobytes()) == before
    trained.assign(twin)
    assert_same(trained, twin)
    twin.params[:] = 5
    assert not np.shares_memory(twin.params, trained.params)
    assert (trained.params == -1).all()


def test_assign_keeps_views(trained):
    """Early stopping assigns: the fitted attributes must go on seeing the network."""
    view = trained.coefs[0]
    other = trained.copy()
    other.params *= 2
    trained.assign(other)
    assert_array_equal(view, other.coefs[0])
    assert np.shares_memory(view, trained.params)


@pytest.mark.parametrize(
    "layers",
    [
        [Dense(3, 5), Dense(7, 2)],
        [Dense(3, 5), BatchNorm(6, "before", 0), Dense(5, 2)],
        [Dense(3, 5), Dropout(4, 0.5), Dense(4, 2)],
    ],
    ids=["dense", "batch norm", "dropout"],
)
def test_layers_that_do_not_fit_together(layers):
    """What one layer writes the next one reads: other widths would be read out of bounds."""
    with pytest.raises(ValueError, match=r"[Ll]ayer"):
        Network(layers, np.float64)
