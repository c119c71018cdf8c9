"""Every compiled executor against the NumPy one: each case of the table, each output by name.

The judge is the NumPy executor in float64 on the same numbers, for float32 too: what is measured
then is the error of the kernels, not the difference of two errors.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from cases import (
    EXECUTORS,
    LAYERS,
    LEVELS,
    NETWORKS,
    SOLVERS,
    TEAMS,
    assert_close,
    each_compiled,
    each_dtype,
    each_executor,
    each_layer,
    each_network,
    each_team,
    network_case,
    observe_gradient,
    observe_inference,
    observe_training,
    optimizer,
    read_only,
    run_layer,
    train_epochs,
)
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array

from skbn._layers import BatchNorm, Dense, Dropout, Elementwise
from skbn.backends import get_executor, reference
from skbn.backends.cpu.processor import has_openmp, instruction_levels

F64, F32 = np.float64, np.float32
JUDGE = "reference"


# What is above a table's own float32 tolerance, and why. One feature and three units: four steps of
# training stretch a rounding error a thousand times, in float64 as well (4e-13 and 8e-5 were seen).
# Two rows: with fused multiply-adds a beta whose gradient cancels was seen at 6e-5.
LOOSER = {
    ("training", "after-relu-1-(50, 3, 64)-10x64"): 2e-4,
    ("gradient", "before-identity-9-(50, 3, 64)-2x2"): 1e-4,
}


def close(found, expected, dtype, kind, case=None):
    """Within the tolerance of a table, relative to the scale of each tensor."""
    float32, float64, floor = {
        "layer": (3e-6, 2e-14, 1.0),  # inputs are of order 1, their sums may cancel
        # A shift that a later batch norm cancels has a gradient of rounding noise, 6e-8 in float32
        # where two rows share statistics ("before-identity-9-(50, 3, 64)-2x2").
        "gradient": (2e-5, 1e-12, 1e-2),
        "inference": (2e-6, 1e-14, 1e-3),
        "training": (2e-5, 1e-12, 1e-3),
    }[kind]
    rtol = LOOSER.get((kind, case), float32) if dtype is F32 else float64
    assert_close(found, expected, rtol, floor)


# The table.


def layer_by_formula(layer, x, dy, given, key, step):
    """What a layer must return, by the reference's functions in float64."""
    weight, bias = given.get("weight", 1.0), given.get("bias", 0.0)
    fields = layer.record_fields()
    if isinstance(layer, Dense):
        y = reference.dense_forward(x, weight, bias, fields["activation"])
        dx, *gradients = reference.dense_backward(dy, y, x, weight, fields["activation"])
    elif isinstance(layer, Dropout):
        mask = reference.dropout_mask(x.shape, layer.rate, key, step, 1, x.dtype)
        y, dx, gradients = x * mask, dy * mask, (None, None)
    elif isinstance(layer, Elementwise):
        y = reference.elementwise_forward(x, fields["activation"])
        dx = reference.elementwise_backward(dy, x, fields["activation"])
        gradients = (None, None)
    else:
        y, dx, gradients = np.empty_like(x), np.empty_like(x), [0, 0]
        for rows in reference.batch_slices(len(x), layer.virtual_batch_size, 2):
            y[rows], saved = reference.batch_norm_forward(
                x[rows], weight, bias, layer.epsilon, fields["activation"]
            )
            dx[rows], *parts = reference.batch_norm_backward(
                dy[rows], y[rows], x[rows], weight, saved, fields["activation"]
            )
            gradients = [total + part for total, part in zip(gradients, parts, strict=True)]
    gradients = dict(zip(("weight", "bias"), gradients, strict=True))
    return {"y": y, "dx": dx} | {f"d{role}": gradients[role] for role in given}


@each_executor
@each_dtype
@each_layer
def test_layer(case, dtype, executor, seed):
    layer, n_rows = LAYERS[case]
    rng = np.random.RandomState(seed)
    x, dy = (rng.normal(size=(n_rows, n)).astype(F32) for n in (layer.n_in, layer.n_out))
    given = {s.role: (s.initial + rng.normal(size=s.shape)).astype(F32) for s in layer.tensors()}
    key, step = (seed, 4), 7
    found = run_layer(executor, layer, x.astype(dtype), dy.astype(dtype), given, key=key, step=step)
    wide = {role: value.astype(F64) for role, value in given.items()}
    expected = layer_by_formula(layer, x.astype(F64), dy.astype(F64), wide, key, step)
    close({name: found[name] for name in expected}, expected, dtype, "layer", case)


@each_compiled
@each_dtype
@each_network
def test_loss_and_gradient(case, dtype, executor):
    expected = observe_gradient(JUDGE, NETWORKS[case], F64)
    close(observe_gradient(executor, NETWORKS[case], dtype), expected, dtype, "gradient", case)


@each_compiled
@each_dtype
@each_network
def test_inference(case, dtype, executor):
    expected = observe_inference(JUDGE, NETWORKS[case], F64)
    close(observe_inference(executor, NETWORKS[case], dtype), expected, dtype, "inference", case)


@each_compiled
@each_dtype
@pytest.mark.parametrize("solver", SOLVERS)
@each_network
def test_training(case, solver, dtype, executor):
    expected = observe_training(JUDGE, NETWORKS[case], F64, solver)
    found = observe_training(executor, NETWORKS[case], dtype, solver)
    close(found, expected, dtype, "training", case)


# Teams: not a bit differs from what one thread, judged above, has found.


def assert_same_bits(found, expected):
    different = [name for name in expected if bits(found[name]) != bits(expected[name])]
    assert found.keys() == expected.keys()
    assert not different


def bits(value):
    return np.asarray(value).tobytes()


@each_team
@each_dtype
@each_layer
def test_layer_of_a_team(case, dtype, team, seed):
    layer, n_rows = LAYERS[case]
    rng = np.random.RandomState(seed)
    x, dy = (rng.normal(size=(n_rows, n)).astype(dtype) for n in (layer.n_in, layer.n_out))
    found, expected = (run_layer(executor, layer, x, dy) for executor in (team, TEAMS[team]))
    assert_same_bits(found, expected)


@each_team
@each_dtype
@each_network
def test_gradient_of_a_team(case, dtype, team):
    found, expected = (observe_gradient(it, NETWORKS[case], dtype) for it in (team, TEAMS[team]))
    assert_same_bits(found, expected)


@each_team
@each_dtype
@each_network
def test_inference_of_a_team(case, dtype, team):
    found, expected = (observe_inference(it, NETWORKS[case], dtype) for it in (team, TEAMS[team]))
    assert_same_bits(found, expected)


@each_team
@each_dtype
@each_network
def test_training_of_a_team(case, dtype, team):
    found, expected = (
        observe_training(it, NETWORKS[case], dtype, "adam") for it in (team, TEAMS[team])
    )
    assert_same_bits(found, expected)


@pytest.mark.skipif(not has_openmp(), reason="built without OpenMP")
@each_team
def test_a_team_works(team):
    case = network_case()
    network = case.network()
    with case.executor(team, network) as it:
        it.loss_and_gradient(*case.data(), network.new_vector())
    assert it.n_workers == 3


@pytest.mark.parametrize("case", ["alpha", "dropout", "virtual, even", "epsilon 1", "no gamma"])
def test_options_matter(case):
    """Without its option a case of the table gives other numbers: the table is not blind to it."""
    case = NETWORKS[case]
    plain = case._replace(
        alpha=0.0,
        layers=tuple(
            replace(layer, virtual_batch_size=None, epsilon=1e-3, scale=True)
            if isinstance(layer, BatchNorm)
            else layer
            for layer in case.layers
            if not isinstance(layer, Dropout)
        ),
    )
    assert plain.layers != case.layers or plain.alpha != case.alpha
    loss, other = (observe_gradient(JUDGE, c, F64)["loss"] for c in (case, plain))
    assert abs(loss - other) > 1e-6


# What a caller hands over: any strides, nothing but what fits.


def strided(X):
    wide = np.full((2 * len(X), 3 * X.shape[1]), np.nan, X.dtype)
    wide[::2, ::3] = X
    return wide[::2, ::3]


def unaligned(X):
    """On the boundary of an item, but not of a cache line or a vector register."""
    flat = np.empty(X.size + 1, X.dtype)
    flat[1:] = X.ravel()
    return flat[1:].reshape(X.shape)


LAYOUTS = {
    "F order": np.asfortranarray,
    "strided": strided,
    "negative strides": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "unaligned": unaligned,
    "memmap": None,
}


@each_executor
@each_dtype
@pytest.mark.parametrize("n_features", [1, 3, 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, n_features, dtype, executor, tmp_path):
    """Rows in another layout give the same bits, wherever rows go in."""
    case = network_case(("input",), "tanh", (9,), n_features, n_rows=300)
    X, targets, weights, rows = case.data(dtype)
    if layout == "memmap":
        np.save(tmp_path / "X.npy", X)
        other = np.load(tmp_path / "X.npy", mmap_mode="r")
        assert isinstance(other, np.memmap)
    else:
        (other,) = read_only(LAYOUTS[layout](X))
    assert_array_equal(other, X)

    def outcome(X):
        network = case.network(dtype)
        grads, rule = network.new_vector(), optimizer(network, "adam")
        with case.executor(executor, network) as it:
            yield it.loss_and_gradient(X, targets, weights, rows, grads)
            yield grads
            yield train_epochs(it, (X, targets, weights, rows), rule, 2)[0]
            yield network.params
            it.update_population_statistics(X, weights, rows)
            yield network.state
            yield it.evaluate(X, targets, weights, rows)
            yield it.predict(X)

    for one, two in zip(outcome(X), outcome(other), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


@each_compiled
@each_dtype
@pytest.mark.parametrize("hidden", [(64, 20, 20), (50, 3, 64), (8, 8), (1, 70, 5)], ids=str)
def test_rows_are_independent(hidden, dtype, executor):
    """In inference a row neither sees its block nor what an earlier block left in a buffer."""
    case = network_case(("input",), "relu", hidden, 3, n_rows=700)
    network = case.network(dtype)
    X = case.data(dtype)[0].copy()
    X[::5] = np.nan
    X[1::5] = np.finfo(dtype).max
    clean = ~np.isin(np.arange(len(X)) % 5, (0, 1))
    with case.executor(executor, network) as it:
        raw = it.predict(X)
        assert np.isnan(raw[::5]).all()
        assert_close({"raw": raw[clean]}, {"raw": it.predict(X[clean])}, 1e-6)
        alone = np.concatenate([it.predict(X[i : i + 1]) for i in np.flatnonzero(clean)])
    assert_close({"raw": raw[clean]}, {"raw": alone}, 1e-6)


@each_compiled
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("X", lambda X: X.astype(F32)),
        ("X", lambda X: X.astype(">f8")),
        ("X", lambda X: X[:, :-1]),
        ("X", lambda X: X[0]),
        ("X", lambda X: np.frombuffer(b"0" + X.tobytes(), np.uint8)[1:].view(F64).reshape(X.shape)),
        ("targets", lambda targets: targets.astype(np.intp)),
        ("targets", lambda targets: targets[:-1]),
        ("targets", lambda targets: np.repeat(targets, 2)[::2]),
        ("X", lambda X: csr_array(X).tocsc()),
        ("X", lambda X: csr_array(X[:, :-1])),
        ("X", lambda X: csr_array(X.astype(F32))),
        ("weights", lambda _: np.ones(11, F32)),
        ("weights", lambda _: np.ones(10)),
        ("sums", lambda sums: sums[:-1]),
        ("rows", lambda rows: rows.astype(np.int32)),
        ("rows", lambda rows: rows[::2]),
        ("grads", lambda grads: grads.astype(F32)),
        ("grads", lambda grads: grads[:-8]),
        ("grads", lambda grads: read_only(grads)[0]),
        ("network.params", lambda params: params[:-8]),
        ("network.state", lambda state: state.astype(F32)),
        ("memory", lambda memory: memory[:-8]),
        ("memory", lambda memory: read_only(memory)[0]),
        ("optimizer", lambda record: record[:0]),
    ],
)
def test_what_does_not_fit_is_an_error(name, wrong, executor):
    """Arrays of another type, size or layout are refused before a kernel sees them."""
    case = network_case(n_features=3, n_rows=8)
    network = case.network()
    rule = optimizer(network, "momentum")
    given = dict(zip(("X", "targets", "weights", "rows"), case.data(), strict=True))
    given |= {"grads": network.new_vector(), "memory": rule.memory, "optimizer": rule.record}
    given |= {"sums": np.zeros(3)}

    def run():
        it = case.executor(executor, network)
        data = [given[name] for name in ("X", "targets", "weights", "rows")]
        it.loss_and_gradient(*data, given["grads"])
        it.train(*data, 0, given["optimizer"], given["memory"], given["sums"])

    run()
    if name.startswith("network."):
        field = name.removeprefix("network.")
        setattr(network, field, wrong(getattr(network, field)))
    else:
        given[name] = wrong(given[name])
    with pytest.raises((ValueError, BufferError)):
        run()


@each_compiled
def test_adam_needs_both_its_vectors(executor):
    case = network_case()
    network = case.network()
    rule = optimizer(network, "adam")
    with pytest.raises(ValueError, match="elements or more"):
        case.executor(executor, network).train(
            *case.data(), 0, rule.record, rule.memory[: network.n_params], np.zeros(3)
        )


@each_compiled
def test_more_rows_than_buffers_hold(executor):
    case = network_case(n_rows=32)
    network = case.network()
    with pytest.raises(ValueError, match="32 rows do not fit"):
        case.executor(executor, network, batch_size=30).loss_and_gradient(
            *case.data(), network.new_vector()
        )


@each_executor
def test_gradients_are_overwritten(executor):
    """Not added to: twice the call, the same vector."""
    case = NETWORKS["all options"]
    network = case.network()
    grads = network.new_vector()
    with case.executor(executor, network) as it:
        losses = [it.loss_and_gradient(*case.data(), grads) for _ in range(2)]
        once = grads.copy()
        it.loss_and_gradient(*case.data(), grads)
    assert losses[0] == losses[1]
    assert_array_equal(once, grads)


# Batches.


@each_executor
@pytest.mark.parametrize(
    ("n_rows", "batch_size", "with_norm", "stops"),
    [
        (10, 5, True, [5, 10]),
        (11, 5, True, [5, 11]),
        (11, 5, False, [5, 10, 11]),
        (12, 5, True, [5, 10, 12]),
        (3, 2, True, [3]),
        (1, 5, False, [1]),
        (4, 100, True, [4]),
    ],
)
def test_batches(n_rows, batch_size, with_norm, stops, executor):
    """A rest of one row joins the batch before it where a batch norm needs two."""
    case = network_case(("after",) if with_norm else (), "tanh", (5,), n_rows=n_rows)
    X, targets, _, rows = case.data()
    network, single = case.network(), case.network()
    rule, other = optimizer(network, "nesterov"), optimizer(single, "nesterov")
    with case.executor(executor, network, batch_size) as it:
        train_epochs(it, (X, targets, None, rows), rule, 1)
    assert rule.record["t"][0] == len(stops)
    with case.executor(executor, single, batch_size + 1) as it:
        for start, stop in zip([0, *stops], stops, strict=False):
            batch = rows[start:stop]
            it.train(X, targets, None, batch, 0, other.record, other.memory, it.new_sums())
    assert_array_equal(network.params, single.params)
    assert_array_equal(network.state, single.state)


@each_compiled
def test_long_epochs_take_several_calls(executor):
    """So that Ctrl-C is heard: a call ends after a while, and the next one goes on from there."""
    case = network_case(("after",), "tanh", (300, 70), 20, 3, n_rows=4000)
    X, targets, _, rows = case.data()
    network, single = case.network(), case.network()
    rule, other = optimizer(network, "adam"), optimizer(single, "adam")
    with case.executor(executor, network, batch_size=100) as it:
        _, positions = train_epochs(it, (X, targets, None, rows), rule, 1)
        assert len(positions) > 1
        assert positions == sorted(positions)
        assert positions[-1] == 4000
    with case.executor(executor, single, batch_size=100) as it:
        for start in range(0, 4000, 100):
            batch = rows[start : start + 100]
            it.train(X, targets, None, batch, 0, other.record, other.memory, it.new_sums())
    assert_array_equal(network.params, single.params)
    assert_array_equal(network.state, single.state)


@pytest.mark.skipif(os.name == "nt", reason="no timers there")
@pytest.mark.parametrize("executor", [*LEVELS, *TEAMS])
def test_signals_are_heard_inside_a_long_batch(executor):
    """Between its layers: the gradient, written from the last layer on, stays unfinished."""

    class Rang(Exception):
        pass

    def ring(*_):
        raise Rang

    case = network_case(("before",), "tanh", (300,) * 4, 20, n_rows=3000)
    network, data = case.network(), case.data()
    grads = network.new_vector()
    grads[:] = np.nan
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with case.executor(executor, network) as it:
            it.loss_and_gradient(*data, network.new_vector())
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(Rang):
                it.loss_and_gradient(*data, grads)
            assert np.isnan(network.tensors[0].view(grads)).all()
            it.loss_and_gradient(*data, grads)  # as if nothing had happened
            assert np.isfinite(network.tensors[0].view(grads)).all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@each_compiled
@each_dtype
def test_floating_point_mode_is_restored(dtype, executor):
    """Kernels flush denormals to zero; their callers' arithmetic must not notice."""
    case = network_case(("input",), n_rows=300)
    network = case.network(dtype)
    smallest = np.finfo(dtype).smallest_subnormal
    rule, ones = optimizer(network, "adam"), np.ones(4, dtype)
    with case.executor(executor, network) as it:
        for call in (
            lambda: it.loss_and_gradient(*case.data(dtype), network.new_vector()),
            lambda: it.train(*case.data(dtype), 0, rule.record, rule.memory, it.new_sums()),
            lambda: it.update_population_statistics(case.data(dtype)[0], *case.data(dtype)[2:]),
            lambda: it.evaluate(*case.data(dtype)),
            lambda: it.predict(case.data(dtype)[0]),
        ):
            call()
            assert_array_equal(ones * smallest * 2 / 2, smallest)
            assert ones[0] * smallest / 1 > 0


# Which executor.


def test_get_executor(no_card):
    best = EXECUTORS[LEVELS[-1]]
    assert get_executor(None) is get_executor("cpu") is best
    assert get_executor("reference") is EXECUTORS[JUDGE]
    with pytest.raises(ImportError, match="cuda"):
        get_executor("cuda")
    with pytest.raises(ValueError, match="device must be"):
        get_executor("tpu")


def test_levels():
    """The baseline runs everywhere; a level is used only where the processor has it."""
    assert LEVELS[0] == "baseline"
    assert set(LEVELS) <= set(instruction_levels())


@each_compiled
def test_other_dtypes_are_refused(executor):
    case = network_case()
    network = case.network()
    network.dtype = np.dtype(np.float16)
    with pytest.raises(ValueError, match="float16"):
        case.executor(executor, network)
