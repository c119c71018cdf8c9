"""Small networks on a card: whole epochs in one launch, and many models at once, one a block.

A network is small if its parameters, its gradients and a mini-batch's activations fit in the shared
memory of a block. What a launch changes lies in one piece of memory that is read back in one copy.
The kernel is kernels/epochs.cu.
"""
# SPDX-License-Identifier: BSD-3-Clause

from time import perf_counter

import numpy as np

from skbn.backends.cuda import card as cards
from skbn.backends.cuda import sources
from skbn.backends.cuda.data import words
from skbn.backends.memory import ALIGNMENT
from skbn.backends.records import LAYER_DTYPE, OPTIMIZER_DTYPE, LossKind

THREADS = 256  # EPOCH_THREADS
STATIC_MEMORY = 4096  # bytes: what the kernel keeps beside the room it is given, and to spare
SECONDS_PER_CALL = 0.05  # so that Ctrl-C is heard
JOB = sources.record("epochs.cuh", "Job")


def compact_table(network):
    """Return the layer table with `input` and `output` that count true widths, and their sum."""
    table = np.array(network.table, dtype=LAYER_DTYPE)
    table["output"] = table["n_in"][0] + np.cumsum(table["n_out"])
    table["output"] -= table["n_out"]
    table["input"][0] = 0
    table["input"][1:] = table["output"][:-1]
    return table, int(table["n_in"][0] + table["n_out"].sum())


def count_virtual(network, capacity):
    """Return how many virtual batches a mini-batch is cut into at most."""
    sizes = [int(size) for size in network.table["virtual_batch_size"] if size]
    return max([1, *(-(-(capacity - 1) // size) for size in sizes)])


class Sizes:
    """What a model needs of a block's shared memory."""

    def __init__(self, network, batch_size, target_size):
        self.capacity = batch_size + network.min_rows - 1
        self.n_virtual = count_virtual(network, self.capacity)
        self.layers = len(network.table)
        self.saved = self.n_virtual * network.saved_size
        self.params = network.n_params
        self.row_size = compact_table(network)[1]
        self.widest = int(max(network.table["n_in"].max(), network.table["n_out"].max()))
        self.targets = target_size

    def arguments(self):
        """Return the sizes in the order in which the kernel takes them."""
        return (
            *(self.capacity, self.layers, self.saved, self.params),
            *(self.row_size, self.widest, self.targets),
        )


def room(sizes, itemsize):
    """Return the bytes of shared memory that blocks of these sizes need."""
    capacity, layers, saved, params, row_size, widest, targets = sizes
    pitch = capacity | 1
    doubles = saved + pitch
    numbers = 2 * params + (row_size + 2 * widest + targets) * pitch
    return 8 * doubles + layers * LAYER_DTYPE.itemsize + numbers * itemsize


def fits(card, network, batch_size, target_size):
    """Return whether a network is small."""
    sizes = Sizes(network, batch_size, target_size).arguments()
    return room(sizes, network.dtype.itemsize) <= card.shared_memory - STATIC_MEMORY


def address(array):
    """Return where an array of the card's begins; None is nowhere."""
    return 0 if array is None else array.__cuda_array_interface__["data"][0]


class Models:
    """Train small networks of one type, each with its own hyperparameters, on rows of one X.

    Parameters
    ----------
    networks : list of Network
        Trained in place: ``fetch`` and leaving bring them up to date.
    loss_kinds : list of LossKind
    alphas : list of float
    batch_sizes : list of int
    dropout_keys : list of (int, int)
        What an executor gets for each of them.
    card : Card or None
        None: the current one.
    """

    def __init__(self, networks, *, loss_kinds, alphas, batch_sizes, dropout_keys, card=None):
        self.card = cards.current() if card is None else card
        self.networks = networks
        self.dtype = networks[0].dtype
        n_outputs = [network.n_outputs for network in networks]
        is_categorical = [kind == LossKind.CATEGORICAL_LOG_LOSS for kind in loss_kinds]
        self.target_sizes = [1 if c else n for c, n in zip(is_categorical, n_outputs, strict=True)]
        is_log_loss = [
            kind in (LossKind.BINARY_LOG_LOSS, LossKind.CATEGORICAL_LOG_LOSS) for kind in loss_kinds
        ]
        self.n_scores = [1 if log else n for log, n in zip(is_log_loss, n_outputs, strict=True)]
        self.sizes = [
            Sizes(*each) for each in zip(networks, batch_sizes, self.target_sizes, strict=True)
        ]
        self.jobs = np.zeros(len(networks), JOB)
        for job, network, size, loss, alpha, batch_size, key in zip(
            *(self.jobs, networks, self.sizes, loss_kinds, alphas, batch_sizes, dropout_keys),
            strict=True,
        ):
            job["n_layers"], job["n_params"] = size.layers, size.params
            job["n_virtual"], job["target_size"] = size.n_virtual, size.targets
            job["batch_size"], job["min_rows"] = batch_size, network.min_rows
            job["loss"], job["alpha"] = loss, alpha
            job["key"] = np.uint64(key[0] | key[1] << 32).astype(np.int64)
        self.jobs["n_scores"] = self.n_scores
        self.optimizers = None
        self.data = None
        self.is_ahead = False
        # One mini-batch until it is measured: the first call compiles the kernel.
        self.seconds_per_batch = SECONDS_PER_CALL

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.is_ahead:
            self.fetch(range(len(self.networks)))

    def new_sums(self):
        """Return zeros for what ``train`` adds up: loss, rows, scores of each model."""
        return np.zeros((len(self.networks), 2 + max(self.n_scores)))

    def allocate(self, optimizers):
        """Lay out what changes: updates, sums and optimizers; statistics, parameters, memory."""
        roles = {
            "sums": [(3 + n, np.float64) for n in self.n_scores],
            "optimizer": [(OPTIMIZER_DTYPE.itemsize // 8, np.float64) for _ in optimizers],
            "state": [(network.n_state, np.float64) for network in self.networks],
            "params": [(network.n_params, self.dtype) for network in self.networks],
            "memory": [(optimizer.memory.size, self.dtype) for optimizer in optimizers],
        }
        stop, places = 0, {}
        for role, vectors in roles.items():
            if role == "state":
                self.control = slice(0, stop)
            places[role] = []
            for size, dtype in vectors:
                n_bytes = size * np.dtype(dtype).itemsize
                places[role].append((stop, n_bytes, dtype))
                stop += -(-n_bytes // ALIGNMENT) * ALIGNMENT
        self.vectors = slice(self.control.stop, stop)
        self.there = self.card.zeros(stop, np.uint8)
        self.known = self.card.pinned(stop, np.uint8)
        self.known[:] = 0
        base = address(self.there)
        self.views = {}
        for role, vectors in places.items():
            self.jobs[role] = [base + start for start, _, _ in vectors]
            self.views[role] = [self.known[a : a + n].view(dtype) for a, n, dtype in vectors]
        self.tables = [self.card.upload(words(compact_table(n)[0])) for n in self.networks]
        self.jobs["layers"] = [address(table) for table in self.tables]

    def push(self, optimizers):
        """Let the card have what the host has changed."""
        self.optimizers = optimizers
        self._push(
            self.control,
            sums=[optimizer.record["t"].astype(np.float64) for optimizer in optimizers],
            optimizer=[optimizer.record.view(np.float64) for optimizer in optimizers],
        )
        if not self.is_ahead:
            self._push(
                self.vectors,
                state=[network.state for network in self.networks],
                params=[network.params for network in self.networks],
                memory=[optimizer.memory for optimizer in optimizers],
            )

    def _push(self, part, **roles):
        is_new = False
        for role, vectors in roles.items():
            for known, vector in zip(self.views[role], vectors, strict=True):
                place = known[: vector.size]
                if not np.array_equal(words(place), words(vector)):
                    place[:] = vector
                    is_new = True
        if is_new:
            self.card.write(self.there[part], self.known[part])

    def fetch(self, which):
        """Bring these models' networks and optimizers up to date."""
        self.card.read(self.there, self.known)
        for m in which:
            self.networks[m].params[:] = self.views["params"][m]
            self.networks[m].state[:] = self.views["state"][m]
            self.optimizers[m].memory[:] = self.views["memory"][m]

    def bind(self, X, targets, weights, rows):
        """Let jobs point to data: X and targets are the card's, weights and rows one a model."""
        self.data = X, targets, weights
        itemsize = self.dtype.itemsize
        self.jobs["X"], self.jobs["targets"] = address(X), address(targets)
        self.jobs["row_stride"], self.jobs["column_stride"] = (s // itemsize for s in X.strides)
        self.jobs["weights"] = [address(weight) for weight in weights]
        # Models that see the same rows in the same order share them.
        places, stop = {}, 0
        for order in rows:
            if id(order) not in places:
                places[id(order)] = stop, order
                stop += len(order)
        together = np.concatenate([order for _, order in places.values()])
        if getattr(self, "rows", None) is None or self.rows.size < stop:
            self.rows = self.card.empty(stop, np.int64)
        self.card.write(self.rows[:stop], together)
        self.jobs["rows"] = [address(self.rows) + 8 * places[id(order)][0] for order in rows]
        self.jobs["n_rows"] = [len(order) for order in rows]

    def advance(self, which, optimizers, positions, sums):
        """Train these models from their positions on, for as long as a launch may take.

        Adds to ``sums``, one row a model of all; returns the next positions.
        """
        if self.optimizers is None:
            self.allocate(optimizers)
        self.push(optimizers)
        self.is_ahead = True
        began = perf_counter()
        jobs = self.jobs[which]
        jobs["position"] = positions
        n_batches = max(1, int(SECONDS_PER_CALL / self.seconds_per_batch))
        jobs["n_batches"] = n_batches
        sizes = np.max([self.sizes[m].arguments() for m in which], axis=0)
        kernel = self.card.kernel("epochs", "train_epoch", self.dtype)
        self.card.launch(
            *(kernel, (len(jobs),), (THREADS,)),
            (self.card.upload(words(jobs)), *map(int, sizes)),
            shared=int(room(sizes, self.dtype.itemsize)),
        )
        positions = self.positions_after(jobs, n_batches)
        self.card.read(self.there[self.control], self.known[self.control])
        for m in which:
            step, *found = self.views["sums"][m]
            sums[m, : len(found)] += found
            self.optimizers[m].record["t"] = step
        seconds = perf_counter() - began
        done = np.max((positions - jobs["position"]) / jobs["batch_size"])
        self.seconds_per_batch = seconds / max(1.0, done)
        return positions

    @staticmethod
    def positions_after(jobs, n_batches):
        """Return where jobs are after so many mini-batches; a short rest joins the last one."""
        last = jobs["position"] + (n_batches - 1) * jobs["batch_size"]
        is_end = jobs["n_rows"] - last - jobs["min_rows"] < jobs["batch_size"]
        return np.where(is_end, jobs["n_rows"], last + jobs["batch_size"])


class Rule:
    """The record and the memory of an optimizer, as an executor gets them."""

    def __init__(self, record, memory):
        self.record, self.memory = record, memory
