"""Initial weights, dropout's key and its generator: who draws what, and from which stream."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from cases import ELEMENTWISE, each_dtype, each_executor, network_case, run_layer
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array
from scipy.stats import kstest
from sklearn.neural_network import MLPClassifier

from skbn._layers import Dropout
from skbn._random import (
    WEIGHT_INITS,
    dropout_key,
    initialize_weights,
    rows_in_block,
    seeded,
    shuffle_blocks,
)
from skbn._shuffle import shuffle
from skbn.backends.reference import dropout_mask, philox4x32

# Rule: (uniform within sqrt(a / (b fan_in + c fan_out)) | normal with variance of the same form).
RULES = {
    "auto": ("uniform", lambda fan_in, fan_out: 6 / (fan_in + fan_out)),
    "he_uniform": ("uniform", lambda fan_in, fan_out: 6 / fan_in),
    "he_normal": ("normal", lambda fan_in, fan_out: 2 / fan_in),
    "glorot_uniform": ("uniform", lambda fan_in, fan_out: 6 / (fan_in + fan_out)),
    "glorot_normal": ("normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "lecun_normal": ("normal", lambda fan_in, fan_out: 1 / fan_in),
}


def peek(random_state):
    """What would be drawn next, without drawing it."""
    twin = np.random.RandomState()
    twin.set_state(random_state.get_state())
    return twin.uniform(size=5)


def initialized(
    weight_init, random_state, activation="relu", placements=(), dtype=np.float64, **sizes
):
    case = network_case(placements, activation, **({"hidden": (60, 40), "n_features": 30} | sizes))
    network = case.network(dtype)
    initialize_weights(network, weight_init, activation, random_state)
    return network


@pytest.mark.parametrize("weight_init", WEIGHT_INITS)
def test_weight_init(weight_init, seed):
    """The distribution that the name stands for, layer by layer; biases zero but for "auto"."""
    assert set(RULES) == set(WEIGHT_INITS)
    shape, square = RULES[weight_init]
    network = initialized(weight_init, np.random.RandomState(seed), n_classes=5)
    for coef, intercept in zip(network.coefs, network.intercepts, strict=True):
        size = np.sqrt(square(*coef.shape))
        if shape == "uniform":
            assert np.abs(coef).max() <= size
            reference = ("uniform", (-size, 2 * size))
        else:
            reference = ("norm", (0, size))
        assert kstest(coef.ravel(), *reference).pvalue > 1e-5
        if weight_init == "auto":
            assert np.abs(intercept).max() <= size
            assert len(np.unique(intercept)) == intercept.size
        else:
            assert not intercept.any()


@each_dtype
@pytest.mark.parametrize("activation", ["logistic", "tanh"])
def test_auto_is_scikit_learns(activation, dtype, seed):
    """The same draws in the same order: what a fit of no epochs but one of tiny steps leaves."""
    X = np.random.RandomState(0).normal(size=(6, 3)).astype(dtype)
    model = MLPClassifier(
        (5, 4), activation, solver="sgd", learning_rate_init=1e-300, random_state=seed, max_iter=1
    ).partial_fit(X, [0, 1, 2] * 2, classes=[0, 1, 2])
    network = initialized(
        "auto",
        np.random.RandomState(seed),
        activation,
        dtype=dtype,
        hidden=(5, 4),
        n_features=3,
        n_classes=3,
    )
    for ours, theirs in zip(network.coefs, model.coefs_, strict=True):
        assert_array_equal(ours, theirs)
    for ours, theirs in zip(network.intercepts, model.intercepts_, strict=True):
        assert_array_equal(ours, theirs)


@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_auto_where_scikit_learn_has_no_such_activation(activation, seed):
    """Its bound for all but logistic units."""
    ours, expected = (
        initialized("auto", np.random.RandomState(seed), a).params for a in (activation, "relu")
    )
    assert_array_equal(ours, expected)


def test_draws_do_not_depend_on_what_is_compared(seed):
    """Placement, dropout and dtype change no weight; weight_init changes nothing drawn later."""
    plain = np.random.RandomState(seed)
    expected = initialized("auto", plain)
    for options in (
        {"placements": ("input", "before")},
        {"dropout": 0.5},
        {"dtype": np.float32},
    ):
        other = np.random.RandomState(seed)
        network = initialized("auto", other, **options)
        for ours, theirs in zip(
            network.coefs + network.intercepts, expected.coefs + expected.intercepts, strict=True
        ):
            assert_array_equal(ours, theirs.astype(ours.dtype))
        assert_array_equal(peek(other), peek(plain))
    for options in ({}, {"dropout": 0.5}, {"dtype": np.float32}):
        other = np.random.RandomState(seed)
        network = initialized("auto", other, placements=("after",), **options)
        assert_array_equal(network.coefs[0], expected.coefs[0].astype(network.dtype))
        assert not network.coefs[-1].any()  # the output layer behind a batch norm
        assert not network.intercepts[-1].any()
        assert_array_equal(peek(other), peek(plain))
    for weight_init in ("he_uniform", "glorot_uniform"):
        other = np.random.RandomState(seed)
        assert initialized(weight_init, other).coefs[0].any()
        assert_array_equal(peek(other), peek(plain))


def test_dropout_key_draws_nothing(seed):
    """Two words that depend on the state and leave it as it was."""
    random_state = np.random.RandomState(seed)
    expected = peek(random_state)
    key = dropout_key(random_state)
    assert_array_equal(peek(random_state), expected)
    assert all(type(word) is int and 0 <= word < 2**32 for word in key)
    assert key == dropout_key(random_state)
    random_state.uniform()
    assert key != dropout_key(random_state)
    keys = {dropout_key(np.random.RandomState(i)) for i in range(100)}
    assert len(keys) == 100


# Dropout's generator and its masks.


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, expected):
    """The vectors that Random123 publishes for philox4x32_10."""
    assert tuple(int(word) for word in philox4x32(counter, key)) == expected


def observed_mask(executor, dtype, n_rows, n_units, rate, *, key=(1, 2), step=3):
    """What a layer makes of ones; it is the second of its network, number 1."""
    ones = np.ones((n_rows, n_units), dtype)
    found = run_layer(executor, Dropout(n_units, rate), ones, ones, key=key, step=step)
    assert_array_equal(found["dx"], found["y"])  # the same mask on the way back
    return found["y"]


@each_executor
@each_dtype
@pytest.mark.parametrize("n_units", [1, 3, 4, 50, 70])
@pytest.mark.parametrize("rate", [0.01, 0.25, 0.5, 0.9])
def test_masks_are_the_same_everywhere(rate, n_units, dtype, executor):
    """Bit for bit, in every executor and both dtypes."""
    expected = dropout_mask((32, n_units), rate, (1, 2), 3, 1, np.dtype(dtype))
    assert_array_equal(observed_mask(executor, dtype, 32, n_units, rate), expected)
    assert set(np.unique(expected)) <= {0, dtype(1 / (1 - rate))}


@each_executor
def test_masks_depend_on_all_that_they_are_drawn_for(executor):
    """Step, both words of the key, row and unit; and layer, which stands third in the counter."""
    shape = (64, 64)
    masks = [
        observed_mask(executor, np.float64, *shape, 0.5, **options) > 0
        for options in ({}, {"step": 4}, {"key": (0, 2)}, {"key": (1, 3)}, {"step": 2**31})
    ]
    masks.append(dropout_mask(shape, 0.5, (1, 2), 3, 2, np.dtype(np.float64)) > 0)
    masks += [np.roll(masks[0], shift, axis) for axis in (0, 1) for shift in (1, 2, 4)]
    masks.append(masks[0].T)
    for i, one in enumerate(masks):
        for other in masks[i + 1 :]:
            # Half of 4096 fair coins agree, give or take six standard deviations.
            assert abs((one == other).mean() - 0.5) < 6 * 0.5 / 64


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_dropout_rate(rate, seed):
    """The share that is dropped, and so the mean of what remains, over 100,000 units."""
    mask = dropout_mask((1000, 100), rate, (seed, 0), 0, 0, np.dtype(np.float64))
    deviation = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs((mask == 0).mean() - rate) < 5 * deviation
    assert abs(mask.mean() - 1) < 5 * deviation / (1 - rate)
    assert np.abs((mask == 0).mean(axis=0) - rate).max() < 6 * np.sqrt(rate * (1 - rate) / 1000)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 64, 65, 500, 70_000])
@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.PCG64])
def test_shuffle_is_that_of_random_state(n_rows, bits, seed):
    ours, numpys = (np.random.RandomState(bits(seed)) for _ in range(2))
    found, expected = np.arange(n_rows), np.arange(n_rows)
    for _ in range(3):
        shuffle(found, ours)
        numpys.shuffle(expected)
    assert_array_equal(found, expected)
    assert ours.random_sample() == numpys.random_sample()  # both have drawn the same


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 rows of 10 numbers of 8 bytes, 3 in a window."""
    monkeypatch.setattr("skbn._random.BLOCK_BYTES", 320)
    monkeypatch.setattr("skbn._random.BLOCKS_IN_WINDOW", 3)


def test_rows_in_block(small_blocks):
    X = np.zeros((50, 10))
    assert rows_in_block(X) == rows_in_block(np.asfortranarray(X)) == rows_in_block(X[::-1]) == 4
    assert rows_in_block(X.astype(np.float32)) == 8
    assert rows_in_block(X[:0]) >= 1
    assert rows_in_block(np.zeros((3, 10_000))) == 1  # rows larger than a block
    sparse = csr_array(np.eye(50))  # a number and an index of 4 bytes a row
    assert rows_in_block(sparse) == 320 // 12
    assert rows_in_block(csr_array((50, 10))) == 320 * 50  # nothing is stored


@pytest.mark.parametrize("n_rows", [1, 3, 4, 5, 12, 13, 50, 1000])
def test_shuffle_blocks(n_rows, small_blocks, seed):
    """Every row once, blocks whole inside a window, windows and what is in them by chance."""
    random_state = np.random.RandomState(seed)
    given = 3 * np.arange(n_rows)  # what early stopping leaves
    rows, orders = random_state.permutation(given), []
    for _ in range(30):
        shuffle_blocks(rows, 4, random_state)
        assert_array_equal(np.sort(rows), given)
        orders.append(rows // 3)
    if n_rows > 3:
        assert not np.array_equal(orders[0], orders[1])
    for order in orders:
        for window in np.split(order, range(12, n_rows, 12)):
            # Consecutive rows: three blocks, and a rest before the first or a cut in the last.
            assert np.count_nonzero(np.diff(np.sort(window)) != 1) <= 4
    if n_rows == 1000:
        positions = np.array([np.flatnonzero(order == 500)[0] for order in orders])
        assert positions.std() > 150  # 289 expected of 30 uniform draws


def test_shuffle_blocks_of_all_rows_is_a_shuffle(small_blocks, seed):
    """Where all fits in a window, every row comes to every place equally often."""
    random_state, rows = np.random.RandomState(seed), np.arange(11)
    first = []
    for _ in range(2200):
        shuffle_blocks(rows, 4, random_state)
        first.append(rows[0])
    counts = np.bincount(first, minlength=11)
    assert np.abs(counts - 200).max() < 6 * np.sqrt(200)


def test_blocks_touch_few_pages():
    """Of a file of 4 GiB, 256 MiB of rows touch 256 MiB; shuffled one by one, nearly all of it."""
    n_rows, bytes_per_row = 2**21, 2048
    block = rows_in_block(np.broadcast_to(np.float32(0), (n_rows, bytes_per_row // 4)))
    assert block * bytes_per_row == 8 * 2**20
    touched = {}
    for how in ("rows", "blocks"):
        rows, random_state = np.arange(n_rows), np.random.RandomState(0)
        if how == "blocks":
            shuffle_blocks(rows, block, random_state)
        else:
            random_state.shuffle(rows)
        window = rows[: 2**28 // bytes_per_row]
        touched[how] = len(np.unique(window * bytes_per_row // 2**17)) * 2**17  # as disks read
    assert touched["blocks"] == 2**28
    assert touched["rows"] > 0.95 * n_rows * bytes_per_row


def test_shuffle_by_something_that_only_shuffles():
    class Reverse:
        def shuffle(self, rows):
            rows[:] = rows[::-1].copy()

    rows = np.arange(5)
    shuffle(rows, Reverse())
    assert_array_equal(rows, [4, 3, 2, 1, 0])


def test_seeded_is_check_random_state(seed):
    with seeded(seed) as first, seeded(seed) as second:
        assert first is not second
        expected = np.random.RandomState(seed)
        assert_array_equal(first.normal(size=3), expected.normal(size=3))
        assert_array_equal(first.random_sample(3), expected.random_sample(3))
        assert_array_equal(second.normal(size=3), np.random.RandomState(seed).normal(size=3))
    with seeded(seed) as again:  # lent a second time, with half a normal draw left behind
        assert again in (first, second)
        assert_array_equal(again.normal(size=3), np.random.RandomState(seed).normal(size=3))
    with seeded(expected) as given:
        assert given is expected
    with pytest.raises(ValueError, match="Seed must be between"), seeded(-1):
        pass
