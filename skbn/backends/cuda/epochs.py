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
from skbn.backends.cuda.data import address, n_scores, same_bits, signed, target_size, words
from skbn.backends.memory import padded
from skbn.backends.records import LAYER_DTYPE, OPTIMIZER_DTYPE

THREADS = 256  # EPOCH_THREADS
STATIC_MEMORY = 6144  # bytes: what the kernel keeps beside the room it is given, and to spare
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


def count_virtual(n_rows, size):
    """Return how many virtual batches of this size, or a little more, so many rows make."""
    return max(1, -(-(n_rows - 1) // int(size))) if size else 1


class Sizes:
    """What a model needs of a block's shared memory."""

    def __init__(self, network, batch_size, target_size):
        self.capacity = batch_size + network.min_rows - 1
        self.n_virtual = max(
            count_virtual(self.capacity, size) for size in network.table["virtual_batch_size"]
        )
        self.layers = len(network.table)
        self.saved = self.n_virtual * network.saved_size
        self.params = network.n_params
        self.row_size = compact_table(network)[1]
        self.widest = int(max(network.table["n_in"].max(), network.table["n_out"].max()))
        self.targets = target_size

    def room(self, itemsize):
        """Return the bytes of shared memory that a block needs."""
        pitch = self.capacity | 1
        doubles = self.layers + self.saved + 2 * pitch
        numbers = 2 * self.params + (self.row_size + 2 * self.widest + self.targets) * pitch
        return 8 * doubles + self.layers * LAYER_DTYPE.itemsize + numbers * itemsize


def fits(card, network, batch_size, target_size):
    """Return whether a network is small."""
    room = Sizes(network, batch_size, target_size).room(network.dtype.itemsize)
    return room <= card.shared_memory - STATIC_MEMORY


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
        known = list(zip(networks, loss_kinds, strict=True))
        self.n_scores = [n_scores(network, kind) for network, kind in known]
        target_sizes = [target_size(network, kind) for network, kind in known]
        self.sizes = [
            Sizes(*each) for each in zip(networks, batch_sizes, target_sizes, strict=True)
        ]
        self.jobs = np.zeros(len(networks), JOB)
        for job, network, size, loss, alpha, batch_size, key in zip(
            *(self.jobs, networks, self.sizes, loss_kinds, alphas, batch_sizes, dropout_keys),
            strict=True,
        ):
            job["n_layers"], job["n_params"] = size.layers, size.params
            job["n_virtual"], job["target_size"] = size.n_virtual, size.targets
            job["batch_size"], job["min_rows"] = batch_size, network.min_rows
            for name in ("capacity", "saved", "row_size", "widest"):
                job[name] = getattr(size, name)
            job["loss"], job["alpha"] = loss, alpha
            job["key"] = signed(key)
        self.jobs["n_scores"] = self.n_scores
        self.rooms = np.array([size.room(self.dtype.itemsize) for size in self.sizes])
        self.memories = self.memory_sizes = self.data = self.rows = None
        self.jobs_there = self.jobs_known = None
        self.has_read_all = False
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

    def allocate(self, memories):
        """Lay out what changes: sums and optimizers, then parameters, statistics and memory."""
        n = len(self.networks)
        shapes = (n, 3 + max(self.n_scores)), (n, OPTIMIZER_DTYPE.itemsize // 8)
        stop, control = 0, []
        for shape in shapes:
            control.append((slice(stop, stop + 8 * shape[0] * shape[1]), shape))
            stop = padded(control[-1][0].stop, 1)
        self.control = slice(0, stop)
        places = {"state": [], "params": [], "memory": []}
        for network, memory in zip(self.networks, memories, strict=True):
            vectors = network.state, network.params, memory
            for role, vector in zip(places, vectors, strict=True):
                places[role].append((slice(stop, stop + vector.nbytes), vector.dtype))
                stop += padded(vector.nbytes, 1)
        self.vectors = slice(self.control.stop, stop)
        self.there = self.card.zeros(stop, np.uint8)
        self.known = self.card.pinned(stop, np.uint8)
        self.known[:] = 0
        self.sums, self.records = (
            self.known[part].view(np.float64).reshape(shape) for part, shape in control
        )
        self.views = {
            role: [self.known[part].view(dtype) for part, dtype in vectors]
            for role, vectors in places.items()
        }
        base = address(self.there)
        for role, (part, shape) in zip(("sums", "optimizer"), control, strict=True):
            self.jobs[role] = base + part.start + 8 * shape[1] * np.arange(n)
        for role, vectors in places.items():
            self.jobs[role] = [base + part.start for part, _ in vectors]
        parts = 2 * THREADS + 2 + int(self.jobs["n_layers"].max())
        self.parts = self.card.zeros((n, parts), np.float64)
        self.jobs["parts"] = address(self.parts) + 8 * parts * np.arange(n)
        self.jobs["is_new"] = 1
        self.tables = [self.card.upload(words(compact_table(n)[0])) for n in self.networks]
        self.jobs["layers"] = [address(table) for table in self.tables]
        self.begun = np.zeros((n, 2 + max(self.n_scores)))  # sums when an epoch began
        self.expected = np.full(n, -1)  # positions at which sums go on

    def push(self, records):
        """Let the card have what the host has changed."""
        rules = records.copy()
        rules["t"] = 0  # the card counts in the sums
        rules = rules.view(np.float64).reshape(self.records.shape)
        is_new = not same_bits(rules, self.records)
        if is_new or not np.array_equal(self.sums[:, 0], records["t"]):
            self.jobs["is_new"][self.sums[:, 0] != records["t"]] = 1
            self.records[:], self.sums[:, 0] = rules, records["t"]
            self.card.write(self.there[self.control], self.known[self.control])
        if not self.is_ahead:
            is_new = False
            for m, network in enumerate(self.networks):
                for role, vector in self.host(m, network):
                    if not same_bits(self.views[role][m], vector):
                        self.views[role][m][:] = vector
                        self.jobs["is_new"][m] = is_new = True
            if is_new:
                self.card.write(self.there[self.vectors], self.known[self.vectors])

    def host(self, m, network):
        """Return a model's vectors by role."""
        return ("state", network.state), ("params", network.params), ("memory", self.memories[m])

    def fetch(self, which):
        """Bring these models' networks and optimizers up to date."""
        if not self.has_read_all:
            self.read(slice(None))
        for m in which:
            for role, vector in self.host(m, self.networks[m]):
                vector[:] = self.views[role][m]
        self.is_ahead = len(which) < len(self.networks)

    def bind(self, X, targets, weights, rows):
        """Let jobs point to data: X and targets are the card's, weights and rows one a model."""
        self.data = X, targets, weights, rows
        itemsize = self.dtype.itemsize
        self.jobs["X"], self.jobs["targets"] = address(X), address(targets)
        self.jobs["row_stride"], self.jobs["column_stride"] = (s // itemsize for s in X.strides)
        self.jobs["weights"] = [address(weight) for weight in weights]
        # Models that see the same rows in the same order share them.
        self.orders, places, stop = [], {}, 0
        for order in rows:
            if id(order) not in places:
                places[id(order)] = stop
                self.orders.append(order)
                stop += len(order)
        if self.rows is None or self.rows.size < stop:
            self.rows = self.card.empty(stop, np.int64)
        base = address(self.rows)
        self.jobs["rows"] = [base + 8 * places[id(order)] for order in rows]
        self.jobs["n_rows"] = [len(order) for order in rows]

    def put_orders(self):
        """Bring the order of the rows to the card, which changes from epoch to epoch."""
        together = self.orders[0] if len(self.orders) == 1 else np.concatenate(self.orders)
        self.card.write(self.rows[: len(together)], together)

    def advance(self, which, records, memories, positions, sums):
        """Train these models from their positions on, for as long as a launch may take.

        Adds to ``sums``, one row a model of all; returns the next positions.
        """
        if memories is not self.memories:
            sizes = [memory.size for memory in memories]
            if sizes != self.memory_sizes:
                self.memory_sizes = sizes
                self.allocate(memories)
            self.memories = memories
        self.push(records)
        self.is_ahead = True
        began = perf_counter()
        is_first = positions != self.expected[which]
        self.begun[which[is_first]] = sums[which[is_first]]
        jobs = self.jobs[which]
        jobs["position"], jobs["is_first"] = positions, is_first
        left = int((-(-(jobs["n_rows"] - positions) // jobs["batch_size"])).max())
        n_batches = min(left, max(1, int(SECONDS_PER_CALL / self.seconds_per_batch)))
        jobs["n_batches"] = n_batches
        kernel = self.card.kernel("epochs", "train_epoch", self.dtype)
        self.card.launch(
            *(kernel, (len(jobs),), (THREADS,)),
            (self.put_jobs(words(jobs)),),
            shared=int(self.rooms[which].max()),
        )
        self.jobs["is_new"][which] = 0
        positions = self.positions_after(jobs, n_batches)
        self.expected[which] = np.where(positions < jobs["n_rows"], positions, -1)
        self.read(self.control if len(self.networks) > 1 else slice(None))
        sums[which] = self.begun[which] + self.sums[which, 1:]
        records["t"][which] = self.sums[which, 0]
        seconds = perf_counter() - began
        done = np.max((positions - jobs["position"]) / jobs["batch_size"])
        self.seconds_per_batch = seconds / max(1.0, done)
        return positions

    def put_jobs(self, jobs):
        """Return the jobs on the card; from epoch to epoch they seldom change."""
        if self.jobs_known is None or not same_bits(self.jobs_known, jobs):
            if self.jobs_there is None:
                self.jobs_there = self.card.empty(self.jobs.size * (JOB.itemsize // 8), np.int64)
            self.card.write(self.jobs_there[: jobs.size], jobs)
            self.jobs_known = jobs
        return self.jobs_there

    def read(self, part):
        """Read some of what launches change: of a single model all, since a copy takes its time."""
        self.card.read(self.there[part], self.known[part])
        self.has_read_all = part != self.control

    @staticmethod
    def positions_after(jobs, n_batches):
        """Return where jobs are after so many mini-batches; a short rest joins the last one."""
        last = jobs["position"] + (n_batches - 1) * jobs["batch_size"]
        is_end = jobs["n_rows"] - last - jobs["min_rows"] < jobs["batch_size"]
        return np.where(is_end, jobs["n_rows"], last + jobs["batch_size"])
