"""The cases that judge every executor: one list of layers, one of networks, and how they are run.

A test takes a case, a dtype and an executor, lets a function of this module observe what the
executor does, and compares the observation, name by name, with that of the NumPy executor in
float64 or with another judge. Observing means: parameters, statistics and gradients lie between
walls of NaN that must stand afterwards, what is to be written is NaN before, what is only read is
read-only, and pads must be zero in the end.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cache, partial
from itertools import cycle, product
from types import MappingProxyType
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import shim
import simulated_card
from scipy.sparse import csr_array, issparse

from skbn._layers import (
    ELEMENTWISE_ACTIVATIONS,
    FUSED_ACTIVATIONS,
    BatchNorm,
    Dense,
    Dropout,
    Elementwise,
    multilayer_perceptron,
)
from skbn._losses import MultilabelLogLoss, RegressionLoss, log_loss
from skbn._network import Network
from skbn._training import Optimizer
from skbn.backends.cpu import LEVELS, executor_class
from skbn.backends.cuda import card
from skbn.backends.cuda.executor import CUDAExecutor
from skbn.backends.memory import aligned_zeros
from skbn.backends.records import LayerKind, LossKind, Statistics
from skbn.backends.reference import ReferenceExecutor

BEST = LEVELS[-1]
# Level and number of threads; three, so that their tiles come out unequal.
TEAMS = {f"{level}, 3 threads": level for level in dict.fromkeys([BEST, "baseline"])}


def on(a_card, *arguments, **options):
    """A CUDA executor on a card: a real one, or a stand-in."""
    with patch.object(card, "current", lambda: a_card):
        return CUDAExecutor(*arguments, **options)


def cards():
    """Cards by name; one has so little shared memory that all networks are trained step by step."""
    found = {}
    if shim.compiler()[0]:
        found["simulated card"] = simulated_card.SimulatedCard()
        found["simulated card, steps"] = simulated_card.SimulatedCard(shared_memory=6144)
    if importlib.util.find_spec("cupy"):
        with suppress(RuntimeError):
            found["card"] = card.current()
            found["card, steps"] = card.Card(found["card"].device.id)
            found["card, steps"].shared_memory = 6144
    return found


CARDS = cards()
EXECUTORS = (
    {"reference": ReferenceExecutor}
    | {level: executor_class(level) for level in LEVELS}
    | {team: partial(executor_class(level), threads=3) for team, level in TEAMS.items()}
    | {name: partial(on, a_card) for name, a_card in CARDS.items()}
)
COMPILED = (*LEVELS, *CARDS)
DTYPES = (np.float32, np.float64)
DROPOUT_KEY = (0x12345678, 0x9ABCDEF0)

each_executor = pytest.mark.parametrize("executor", ["reference", *COMPILED])
each_compiled = pytest.mark.parametrize("executor", COMPILED)
each_team = pytest.mark.parametrize("team", TEAMS)
each_judged = pytest.mark.parametrize("executor", ["reference", BEST])
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])

PLACEMENTS = (
    (),
    ("before",),
    ("after",),
    ("input",),
    ("input", "before"),
    ("before", "after"),
)
FUSED = tuple(FUSED_ACTIVATIONS)
ELEMENTWISE = tuple(ELEMENTWISE_ACTIVATIONS)
ACTIVATIONS = FUSED + ELEMENTWISE


def _placed(placements, activations):
    return {
        f"{'+'.join(where) or 'none'}-{activation}": (where, activation)
        for where, activation in product(placements, activations)
    }


# An elementwise layer sees only its neighbours, so three placements show it all there is.
FUSED_PLACED = _placed(PLACEMENTS, FUSED)
ELEMENTWISE_PLACED = _placed(PLACEMENTS[:3], ELEMENTWISE)
each_placed, each_elementwise_placed = (
    pytest.mark.parametrize(("placements", "activation"), list(placed.values()), ids=list(placed))
    for placed in (FUSED_PLACED | ELEMENTWISE_PLACED, ELEMENTWISE_PLACED)
)

SOLVERS = MappingProxyType(
    {
        "plain": {"solver": "sgd", "momentum": 0.0},
        "momentum": {"solver": "sgd", "nesterovs_momentum": False},
        "nesterov": {"solver": "sgd"},
        "adam": {"solver": "adam", "learning_rate_init": 0.01, "epsilon": 0.03},
        "rmsprop": {"solver": "rmsprop", "learning_rate_init": 0.01, "epsilon": 0.03},
    }
)


class Case(NamedTuple):
    """A network, the rows it is shown, and what is asked of it; frozen, so that it is a key."""

    layers: tuple
    n_classes: int = 2
    n_rows: int = 32
    alpha: float = 0.0
    seed: int = 0
    target: str = "classes"  # or "labels", or the name of a regression loss
    weighted: bool = False
    sparse: bool = False

    @property
    def loss(self):
        """The loss; ``n_classes`` are labels or outputs where there are no classes."""
        if self.target == "classes":
            return log_loss(self.n_classes)
        if self.target == "labels":
            return MultilabelLogLoss(self.n_classes)
        return RegressionLoss(self.target, self.n_classes)

    def network(self, dtype=np.float64):
        """The network with numbers that float32 holds, the same for both dtypes."""
        network = Network(self.layers, dtype)
        rng = np.random.RandomState(self.seed)

        def fill(view, centre, spread):
            view[...] = (centre + spread * rng.normal(size=view.shape)).astype(np.float32)

        for tensor in network.tensors:
            view, layer = tensor.view(network.params), network.layers[tensor.layer]
            if isinstance(layer, Dense):
                fill(view, 0.0, layer.n_in**-0.5 if tensor.role == "weight" else 0.2)
            else:  # gamma and beta
                fill(view, 1.0 if tensor.role == "weight" else 0.0, 0.2)
        for record in norms(network):
            for which in (Statistics.MOVING_MEAN, Statistics.POPULATION_MEAN):
                fill(network.statistics(record, which), 0.0, 0.3)
                variance = network.statistics(record, which + 1)
                fill(variance, 0.0, 0.1)
                variance[...] = np.exp(variance)
        return network

    def data(self, dtype=np.float64):
        """X, targets, weights and the order of rows; some rows of X are not in it."""
        rng = np.random.RandomState(self.seed + 1)
        n_all = self.n_rows + 3
        X = 0.5 + rng.normal(size=(n_all, self.layers[0].n_in)).astype(np.float32)
        targets = rng.permutation(n_all) % self.n_classes
        rows = rng.permutation(n_all)[: self.n_rows]
        if self.target == "labels":
            targets = rng.randint(0, 2, (n_all, self.n_classes))
        elif self.target == "poisson":
            targets = rng.poisson(0.7, (n_all, self.n_classes))
        elif self.target != "classes":
            targets = 1 + 2 * rng.normal(size=(n_all, self.n_classes)).astype(np.float32)
        weights = None
        if self.weighted:
            weights = np.where(rng.uniform(size=n_all) < 0.3, 0.0, rng.uniform(0.1, 5.0, n_all))
        if self.sparse:
            X = csr_array(np.where(rng.uniform(size=X.shape) < 0.6, 0, X))
        return read_only(X.astype(dtype), targets.astype(dtype), weights, rows.astype(np.intp))

    def executor(self, name, network, batch_size=None, **options):
        options = {"alpha": self.alpha, "dropout_key": DROPOUT_KEY} | options
        return EXECUTORS[name](
            network,
            loss_kind=self.loss.kind,
            batch_size=batch_size or self.n_rows,
            **options,
        )


def untyped_signature(function):
    """What may be given by position, and the defaults: a signature without its annotations."""
    found = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return found.replace(parameters=parameters, return_annotation=found.empty)


def read_only(*arrays):
    for array in arrays:
        parts = (array.data, array.indices, array.indptr) if issparse(array) else (array,)
        for part in parts:
            if part is not None:
                part.setflags(write=False)
    return arrays


def network_case(
    placements=("after",),
    activation="relu",
    hidden=(50,),
    n_features=2,
    n_classes=2,
    *,
    dropout=0.0,
    bn: Mapping = MappingProxyType({}),
    **fields,
):
    """A multilayer perceptron as a case."""
    layers = multilayer_perceptron(
        n_features,
        hidden,
        Case((), n_classes, target=fields.get("target", "classes")).loss.n_outputs,
        activation=activation,
        placements=placements,
        bn_options=bn,
        dropout=dropout,
    )
    return Case(tuple(layers), n_classes, **fields)


def _grid():
    """Placements by fused activations; sizes go round beside them in periods of their own."""
    sizes = zip(
        cycle([(50,), (1,), (64,), (3,), (50, 3, 64), (70,), (9, 7)]),
        cycle([2, 1, 20, 8, 9]),
        cycle([2, 3, 2, 10]),
        cycle([32, 31, 257, 3, 2, 64]),
        strict=False,
    )
    for (placements, activation), (hidden, n_features, n_classes, n_rows) in zip(
        product(PLACEMENTS, FUSED), sizes, strict=False
    ):
        case = network_case(placements, activation, hidden, n_features, n_classes, n_rows=n_rows)
        where = "+".join(placements) or "none"
        yield f"{where}-{activation}-{n_features}-{hidden}-{n_classes}x{n_rows}", case


NETWORKS = dict(_grid()) | {
    # Seven units and a pad that the layer behind them reads: it counts inputs by twos.
    **{
        name: network_case(*placed, (7, 19), 5, 3, n_rows=31)
        for name, placed in ELEMENTWISE_PLACED.items()
    },
    # Options of batch norm.
    "no gamma": network_case(bn={"scale": False}),
    "no beta": network_case(("input", "before"), bn={"center": False}),
    "no gamma, no beta": network_case(("input", "after"), bn={"center": False, "scale": False}),
    "virtual, a rest of one": network_case(bn={"virtual_batch_size": 5}, n_rows=31),
    "virtual, even": network_case(("before",), "tanh", bn={"virtual_batch_size": 4}),
    "virtual pairs": network_case(("input",), "logistic", bn={"virtual_batch_size": 2}, n_rows=33),
    "virtual, two layers": network_case(
        ("before",), hidden=(70, 9), bn={"virtual_batch_size": 32}, n_rows=257
    ),
    "virtual, larger than the batch": network_case(bn={"virtual_batch_size": 1000}),
    "momentum 0": network_case(bn={"momentum": 0.0}),
    "momentum 0.99": network_case(("before",), bn={"momentum": 0.99}),
    "momentum None": network_case(("before", "after"), bn={"momentum": None}),
    "epsilon 0": network_case(("before",), bn={"epsilon": 0.0}),
    "epsilon 1e-12": network_case(("input",), "tanh", bn={"epsilon": 1e-12}, n_features=9),
    "epsilon 1": network_case(bn={"epsilon": 1.0}),
    # The rest.
    "alpha": network_case((), hidden=(9, 7), n_classes=3, alpha=0.1),
    "large alpha": network_case(("before",), "tanh", (64,), 9, alpha=100.0),
    "dropout": network_case((), dropout=0.25, n_classes=3, hidden=(50, 9)),
    "dropout behind after": network_case(dropout=0.5, hidden=(70,), n_rows=257),
    "dropout of nearly all": network_case(("before",), "tanh", (64, 50), 8, dropout=0.9),
    "all options": network_case(
        ("input", "before", "after"),
        "logistic",
        (19, 33),
        7,
        5,
        dropout=0.3,
        bn={"virtual_batch_size": 9, "epsilon": 1e-5, "momentum": 0.5},
        alpha=0.01,
        n_rows=100,
    ),
    "no hidden layer": network_case(("input",), hidden=(), n_features=20, n_classes=3),
    "dropout in front": Case((Dropout(9, 0.3), Dense(9, 5, "tanh"), Dense(5, 1))),
    "one row": network_case((), "tanh", (9,), 3, n_rows=1),
    "one row, wide": network_case((), "relu", (300, 500), 9, n_rows=1),
    # Weights in more tiles of one type than of the other.
    "many tiles": network_case((), "tanh", (512,), 193, n_rows=20, alpha=0.1),
    "many wide tiles": network_case((), "tanh", (272,), 449, n_rows=3, alpha=0.1),
    # Losses.
    "squared error": network_case(target="squared_error", n_classes=1),
    "squared error, three": network_case(("before",), "tanh", target="squared_error", n_classes=3),
    "absolute error": network_case((), target="absolute_error", n_classes=2, hidden=(9,)),
    "huber": network_case(("input",), target="huber", n_classes=1, n_features=9),
    "huber, two": network_case(target="huber", n_classes=2, alpha=0.1),
    "poisson": network_case((), "logistic", (64,), target="poisson", n_classes=1, n_rows=257),
    "poisson, two": network_case(("before",), "logistic", target="poisson", n_classes=2),
    "labels": network_case(target="labels", n_classes=4, n_features=9),
    "many labels": network_case(("before",), "tanh", (9,), target="labels", n_classes=700),
    # Weights.
    "weighted": network_case(weighted=True),
    "weighted, none": network_case((), "tanh", (9, 7), 20, 3, weighted=True, alpha=0.1),
    "weighted, before": network_case(("before",), hidden=(70, 9), weighted=True, n_rows=257),
    "weighted, input": network_case(("input", "after"), "tanh", (3,), 9, 10, weighted=True),
    "weighted, virtual": network_case(
        bn={"virtual_batch_size": 5}, weighted=True, n_rows=101, dropout=0.3
    ),
    "weighted, virtual pairs": network_case(
        ("before",), bn={"virtual_batch_size": 2, "momentum": None}, weighted=True, n_rows=101
    ),
    "weighted, two rows": network_case(weighted=True, n_rows=2, seed=3),
    "weighted, squared error": network_case(target="squared_error", n_classes=3, weighted=True),
    "weighted, poisson": network_case(
        ("before",), "logistic", (9,), target="poisson", n_classes=1, weighted=True
    ),
    "weighted, huber": network_case(target="huber", n_classes=2, weighted=True),
    "weighted, labels": network_case(target="labels", n_classes=3, weighted=True),
    # Compressed rows.
    "sparse": network_case(sparse=True, n_features=20),
    "sparse, none": network_case((), "tanh", (9,), 70, 3, sparse=True, weighted=True),
    "sparse, input": network_case(("input", "before"), "relu", (9,), 33, sparse=True),
    "sparse, no hidden layer": network_case((), hidden=(), n_features=9, n_classes=3, sparse=True),
    "as wide as the rows": network_case(("after",), "relu", (128, 64), 64, 10, n_rows=32),
}
each_network = pytest.mark.parametrize("case", NETWORKS)


class LayerCase(NamedTuple):
    """One layer on a batch of rows."""

    layer: object
    n_rows: int = 32


def _norm(n_out, activation="identity", **options):
    return BatchNorm(n_out, "before", 0, activation, **options)


LAYERS = (
    {
        f"dense-{activation}-{n_in}-{n_out}x{n_rows}": LayerCase(
            Dense(n_in, n_out, activation), n_rows
        )
        for (activation, n_in), n_out, n_rows in zip(
            product(FUSED, [1, 2, 3, 5, 8, 9, 20]),
            cycle([50, 1, 3, 8, 64, 70, 16, 2, 33]),
            cycle([32, 2, 31, 3, 64]),
            strict=False,
        )
    }
    | {
        f"norm-{activation}-{n_out}x{n_rows}": LayerCase(_norm(n_out, activation), n_rows)
        for (activation, n_out), n_rows in zip(
            product(FUSED, [1, 3, 8, 50, 64, 70]), cycle([32, 2, 129, 3, 31]), strict=False
        )
    }
    | {
        f"{activation}-{n_out}x{n_rows}": LayerCase(Elementwise(n_out, activation), n_rows)
        for (activation, n_out), n_rows in zip(
            product(ELEMENTWISE, [1, 3, 50, 64]), cycle([32, 2, 129, 3, 31]), strict=False
        )
    }
    | {
        "norm-virtual": LayerCase(_norm(50, virtual_batch_size=5), 31),
        "norm-virtual-tanh": LayerCase(_norm(70, "tanh", virtual_batch_size=64), 130),
        "norm-no gamma": LayerCase(_norm(9, "relu", scale=False)),
        "norm-no beta": LayerCase(_norm(9, "relu", center=False)),
        "norm-epsilon 0": LayerCase(_norm(9, epsilon=0.0)),
        "norm-epsilon 1": LayerCase(_norm(9, epsilon=1.0)),
        "dropout": LayerCase(Dropout(50, 0.5)),
        "dropout 0.9": LayerCase(Dropout(3, 0.9), 129),
        "dropout 0.01": LayerCase(Dropout(70, 0.01), 2),
    }
)
each_layer = pytest.mark.parametrize("case", LAYERS)


# Observing.


def norms(network):
    """The records of the batch norms."""
    return network.table[network.table["kind"] == LayerKind.BATCH_NORM]


def walled(vector):
    """A copy of a vector between two walls of NaN, on the same alignment, and the walls."""
    line = 64 // vector.itemsize
    whole = aligned_zeros(vector.size + 2 * line, vector.dtype)
    whole.view(np.uint8)[:] = 255  # NaN in every floating type
    inside = whole[line : line + vector.size]
    inside[:] = vector
    return inside, (whole[:line], whole[line + vector.size :])


def tensors(network, vector):
    """The tensors of a vector by name."""
    found = {}
    for tensor in network.tensors:
        is_norm = isinstance(network.layers[tensor.layer], BatchNorm)
        role = {"weight": "gamma", "bias": "beta"}[tensor.role] if is_norm else tensor.role
        found[f"{tensor.layer}.{role}"] = tensor.view(vector)
    return found


def is_frozen(network, tensor):
    """Whether a tensor is a bias that is never trained."""
    return tensor.role == "bias" and not getattr(network.layers[tensor.layer], "train_bias", True)


def pads(network, vector):
    """What of a vector belongs to no tensor."""
    mask = np.ones(vector.size, dtype=bool)
    for tensor in network.tensors:
        tensor.view(mask)[...] = False
    return vector[mask]


def statistics(network):
    """The statistics of every batch norm by name, copied."""
    return {
        f"norm {i} {which.name.lower()}": network.statistics(record, which).copy()
        for i, record in enumerate(norms(network))
        for which in list(Statistics)[:4]
    } | {
        f"norm {i} n_batches": network.state[record["state"] + 4 * record["out_stride"]]
        for i, record in enumerate(norms(network))
    }


class Observed:
    """A case's network and executor between walls."""

    def __init__(self, executor, case, dtype, batch_size=None):
        self.network = case.network(dtype)
        self.network.params, params_walls = walled(self.network.params)
        self.network.state, state_walls = walled(self.network.state)
        self.grads, grads_walls = walled(self.network.new_vector())
        for tensor in self.network.tensors:
            if not is_frozen(self.network, tensor):
                tensor.view(self.grads)[...] = np.nan
        self.walls = [*params_walls, *state_walls, *grads_walls]
        self.executor = case.executor(executor, self.network, batch_size)
        self.data = case.data(dtype)
        self.contexts = ExitStack()

    def __enter__(self):
        """Enter the executor; the buffers that it makes get walls as well."""
        module = sys.modules[type(self.executor).__module__]
        if hasattr(module, "aligned_zeros"):
            self.contexts.enter_context(patch.object(module, "aligned_zeros", self.walled_zeros))
        self.contexts.enter_context(self.executor)

    def __exit__(self, *exception):
        self.contexts.close()

    def walled_zeros(self, size, dtype):
        inside, walls = walled(aligned_zeros(size, dtype))
        self.walls += walls
        return inside

    def check(self):
        """Fail if a wall was touched or a pad is not zero."""
        assert all((wall.view(np.uint8) == 255).all() for wall in self.walls)
        for vector in (self.network.params, self.grads):
            assert not pads(self.network, vector).any()


@cache
def observe_gradient(executor, case, dtype):
    """Training-mode loss and every gradient; parameters and statistics must stay as they are."""
    it = Observed(executor, case, dtype)
    before = it.network.params.tobytes(), it.network.state.tobytes()
    with it:
        loss = it.executor.loss_and_gradient(*it.data, it.grads, step=5)
    assert before == (it.network.params.tobytes(), it.network.state.tobytes())
    it.check()
    return {"loss": loss} | tensors(it.network, it.grads)


@cache
def observe_inference(executor, case, dtype):
    """Predictions and evaluation under both kinds of statistics, and the population statistics."""
    it = Observed(executor, case, dtype)
    found = {}

    def look(when):
        before = it.network.params.tobytes(), it.network.state.tobytes()
        raw = it.executor.predict(it.data[0])
        assert raw.dtype == dtype
        loss, weight, *scores = it.executor.evaluate(*it.data)
        assert before == (it.network.params.tobytes(), it.network.state.tobytes())
        found.update({f"{when} raw": raw, f"{when} loss": loss / weight, f"{when} scores": scores})

    with it:
        look("moving")
        it.network.use_population = True
        look("population")
        moving = [it.network.statistics(r, w).copy() for r in norms(it.network) for w in (0, 1)]
        it.executor.update_population_statistics(it.data[0], *it.data[2:])
        look("measured")
    after = [it.network.statistics(r, w) for r in norms(it.network) for w in (0, 1)]
    assert all(map(np.array_equal, moving, after))
    it.check()
    return found | statistics(it.network)


def optimizer(network, solver, **options):
    """An optimizer with scikit-learn's defaults, but for a learning rate that shows."""
    defaults = {
        "learning_rate_init": 0.1,
        "schedule": "constant",
        "power_t": 0.5,
        "momentum": 0.9,
        "nesterovs_momentum": True,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "epsilon": 1e-8,
    }
    return Optimizer(network, **(defaults | dict(SOLVERS[solver]) | options))


def train_epochs(executor, data, rule, n_epochs):
    """Train; return the sums over all epochs and the positions."""
    sums, positions = executor.new_sums(), []
    for _ in range(n_epochs):
        position = 0
        while position < len(data[3]):
            position = executor.train(*data, position, rule.record, rule.memory, sums)
            positions.append(position)
    return sums, positions


@cache
def observe_training(executor, case, dtype, solver):
    """Parameters, memory and moving statistics after two epochs of a large and a small batch."""
    it = Observed(executor, case, dtype, max(2 * case.n_rows // 3, 1))
    rule = optimizer(it.network, solver)
    rule.memory, memory_walls = walled(rule.memory)
    it.walls += memory_walls
    frozen = {
        name: view.copy()
        for tensor, (name, view) in zip(
            it.network.tensors, tensors(it.network, it.network.params).items(), strict=True
        )
        if is_frozen(it.network, tensor)
    }
    with it:
        sums, _ = train_epochs(it.executor, it.data, rule, 2)
    it.check()
    found = tensors(it.network, it.network.params)
    for name, view in frozen.items():
        assert np.array_equal(found[name], view), "a bias that batch norm cancels has moved"
    for index, vector in enumerate(np.split(rule.memory, rule.memory.size // it.network.n_params)):
        assert not pads(it.network, vector).any()
        found |= {f"memory {index} {k}": v for k, v in tensors(it.network, vector).items()}
    return (
        found
        | statistics(it.network)
        | {"loss": sums[0], "rows": sums[1], "scores": sums[2:], "t": rule.record["t"][0]}
    )


def worst(found, expected, floor=1e-3):
    """The largest error of all tensors by name, each relative to its own scale."""
    assert found.keys() == expected.keys()
    errors = {}
    for name, value in expected.items():
        value, got = np.asarray(value, dtype=np.float64), np.asarray(found[name])
        assert got.shape == value.shape, name
        error = np.abs(got.astype(np.float64) - value).max(initial=0.0)
        errors[name] = error / max(np.abs(value).max(initial=0.0), floor)
    return errors


def assert_close(found, expected, rtol, floor=1e-3):
    """Every tensor within rtol of its scale; tensors that are all but zero within rtol * floor."""
    errors = worst(found, expected, floor)
    bad = {name: error for name, error in errors.items() if not error <= rtol}
    assert not bad, f"beyond {rtol}: {bad}"


# One layer through the public interface, down to its output and the gradient of its input.


def run_layer(executor, layer, x, dy=None, given=None, *, step=0, read=None, key=DROPOUT_KEY):
    """Send ``x`` forward and ``dy`` backward through one layer; return y, dx and its gradients.

    Any executor has this door. Behind the layer stands a dense one whose bias pins the softmax to
    a class that no row has, so that the gradient of the logits is ``-1 / n`` at the row's target
    and 0 elsewhere whatever the layer returns. Row i of ``read`` has a class of its own: the
    weights of that class are ``-n dy[i]``, which makes ``dy[i]`` arrive, and their gradient is
    ``-y[i] / n``. In front stands a dense layer whose weights are ``x`` and whose input is the
    identity matrix: the gradient of its weights is ``dx``. All of it is exact for a power of two
    of rows.

    Without ``dy`` only y is wanted, of the rows ``read``, and x may have many rows.
    """
    x = np.asarray(x)
    n_rows, dtype = len(x), x.dtype
    backward = dy is not None
    read = np.arange(n_rows) if read is None else np.asarray(read)
    front = [Dense(n_rows, layer.n_in)] if backward else []
    network = Network([*front, layer, Dense(layer.n_out, len(read) + 1)], dtype)
    index = len(front)
    views = {(t.layer, t.role): t.view(network.params) for t in network.tensors}
    grads = network.new_vector()
    gradients = {(t.layer, t.role): t.view(grads) for t in network.tensors}
    for role, value in (given or {}).items():
        views[index, role][...] = value
    views[index + 1, "bias"][0] = 1e30
    X = x
    if backward:
        X = np.eye(n_rows, dtype=dtype)
        views[0, "weight"][...] = x
        views[index + 1, "weight"][:, 1:] = -n_rows * dy.T
    targets = np.zeros(n_rows, dtype=dtype)
    targets[read] = np.arange(1, len(read) + 1)
    instance = EXECUTORS[executor](
        network, loss_kind=LossKind.CATEGORICAL_LOG_LOSS, batch_size=n_rows, dropout_key=key
    )
    with instance:
        data = X, targets, None, np.arange(n_rows)
        instance.loss_and_gradient(*data, grads, step)
        found = {"y": -n_rows * gradients[index + 1, "weight"][:, 1:].T}
        if isinstance(layer, BatchNorm) and not layer.virtual_batch_size:
            rule = optimizer(network, "plain", learning_rate_init=0.0)
            instance.train(*data, 0, rule.record, rule.memory, instance.new_sums())
            record = network.batch_norms[0]
            found |= {"mean": record.moving_mean, "var": record.moving_var}
    if backward:
        found |= {"dx": gradients[0, "weight"], "sum of dx": gradients[0, "bias"]}
        found |= {f"d{role}": gradients[at, role] for at, role in gradients if at == index}
    return found
