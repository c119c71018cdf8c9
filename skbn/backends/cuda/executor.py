"""The executor of a card: the walk over the layer table as launches of kernels.

A step of training is a fixed list of launches for a number of rows: what changes from step to step
(where the batch begins, how many updates there were, the weight of its rows) lies in the card's
memory. So steps that are alike are captured as a graph, and done again as often as wanted. Small
networks go another way (epochs.py). Parameters, statistics and the optimizer's memory have twins on
the card; the host's are brought up to date when an epoch ends and when the executor is left, and
the card's whenever the host's have changed. Data go to the card once and must not change while the
executor is in use.

Kernels are named as the reference's functions; matrix products are cuBLAS's. Our kernels add up
nothing in an order that depends on the card. Results are the same bits run after run; from card to
card cuBLAS's products may differ. An executor belongs to the stream that was current when it was
first used.
"""
# SPDX-License-Identifier: BSD-3-Clause

from functools import partial
from time import perf_counter

import numpy as np

from skbn.backends.cuda import card as cards
from skbn.backends.cuda import epochs
from skbn.backends.cuda.data import (
    CompressedRows,
    Data,
    address,
    expected,
    n_scores,
    same_bits,
    signed,
    target_size,
)
from skbn.backends.cuda.epochs import SECONDS_PER_CALL, count_virtual
from skbn.backends.records import (
    LAYER_DTYPE,
    OPTIMIZER_DTYPE,
    Activation,
    LayerKind,
    OptimizerKind,
    Statistics,
)

# Steps whose queueing takes longer than their computing are captured as graphs: many of them at
# once, and one for what is left. Where that begins was estimated (10 TFLOP/s, 5 us a launch).
STEPS_IN_GRAPH = (16, 1)
WORK_IN_GRAPH = 2**28  # parameters times rows
THREADS = 256
MOST_BLOCKS = 2**16  # of elementwise kernels, whose threads take further numbers in turn
WARPS = 2**15  # that take rows: more than a card has at a time

# What the kernels' files call so.
TILE_COLUMNS = 8
LOSS_ROWS = 128
PARAMS_TILE = 1024

PART_ROWS = 2048  # rows whose statistics one block takes; a second pass finds them in the cache
EVAL_NUMBERS = 2**25  # about so many go through a layer together at prediction
SLICE_ROWS = 2048  # rows a block of an elementwise pass over columns takes


def count(size, tile):
    """Return how many tiles cover a size."""
    return -(-size // tile)


def batch_stop(start, n_rows, size, min_rows):
    """Return where the batch that begins at start ends; a rest shorter than min_rows joins it."""
    return n_rows if n_rows - start - min_rows < size else start + size


class Twin:
    """A vector of the host's and its copy on the card."""

    def __init__(self, card, size, dtype):
        self.card = card
        self.vector = card.zeros(max(1, size), dtype)
        self.known = card.pinned(max(1, size), dtype)  # what the card has, unless it computed since
        self.is_known = False

    def push(self, host):
        """Bring the card up to date."""
        size = host.size
        if not (self.is_known and same_bits(self.known[:size], host)):
            self.known[:size] = host
            self.card.write(self.vector, self.known)
            self.card.synchronize()  # else the next push, or owner of this memory, might overtake
            self.is_known = True

    def pull(self, host):
        """Bring the host up to date."""
        self.card.read(self.vector, self.known)
        host[:] = self.known[: host.size]
        self.is_known = True


class CUDAExecutor:
    """Walk the layer table on a card.

    The interface is that of :class:`skbn.backends.reference.ReferenceExecutor`; X may lie on the
    card already.

    Parameters
    ----------
    network : Network
        Table and vectors; training changes ``params`` and ``state`` in place, at the latest when
        an epoch ends or the executor is left.
    loss_kind : LossKind or None
        Loss over the raw outputs; None where nothing is trained or evaluated.
    alpha : float
        L2 penalty on dense weights.
    batch_size : int
        Rows in a mini-batch.
    dropout_key : tuple of two int
        Key of the dropout generator.
    """

    def __init__(self, network, *, loss_kind=None, alpha=0.0, batch_size=1, dropout_key=(0, 0)):
        self.card = cards.current()
        self.network = network
        self.dtype = np.dtype(network.dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"The CUDA executor computes in float32 and float64, not in {self.dtype}."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
        self.layers = list(network.table)
        for layer in self.layers:
            if layer["kind"] not in set(LayerKind):
                raise ValueError(f"The CUDA executor does not know layers of kind {layer['kind']}.")
            if layer["virtual_batch_size"] < 0:
                raise ValueError(
                    f"Virtual batches of {layer['virtual_batch_size']} rows are not possible."
                )
        self.loss_kind = loss_kind
        self.alpha = float(alpha)
        self.batch_size = batch_size
        self.dropout_key = dropout_key
        self.key = signed(dropout_key)
        self.capacity = batch_size + network.min_rows - 1
        self.n_virtual = max(
            count_virtual(self.capacity, layer["virtual_batch_size"]) for layer in self.layers
        )
        self.n_scores = n_scores(network, loss_kind)
        self.target_size = target_size(network, loss_kind)
        self.n_tiles = count(network.n_params, PARAMS_TILE)
        self.widest = max(int(layer[key]) for layer in self.layers for key in STRIDES)
        expected(network.params, self.dtype, network.n_params, "params", writable=True)
        expected(network.state, np.float64, network.n_state, "state", writable=True)
        self.params = Twin(self.card, network.n_params, self.dtype)
        self.state = Twin(self.card, network.n_state, np.float64)
        self.table = self.card.upload(np.array(network.table, dtype=LAYER_DTYPE).view(np.float64))
        self.memory = self.host_memory = None
        self.buffers = None
        self.order = None
        self.graphs, self.have_run = {}, set()
        # What trains a network that fits into one block, and what it was given.
        self.is_small = loss_kind is not None and epochs.fits(
            self.card, network, batch_size, self.target_size
        )
        self.small, self.bound = None, (None,) * 5
        self.data = Data(self.card, self.dtype, network.n_features, self.target_size)
        self.is_ahead = False  # whether the card has trained further than the host knows
        # One step until it is measured: the first call compiles kernels.
        self.seconds_per_step = SECONDS_PER_CALL

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.is_ahead:
            self.fetch()

    # Memory.

    def push(self):
        """Let the card have the host's parameters and statistics."""
        self.params.push(self.network.params)
        self.state.push(self.network.state)

    def fetch(self):
        """Bring the host's parameters, statistics and optimizer's memory up to date."""
        self.is_ahead = False
        if self.small is not None:
            self.small.fetch([0])
            return
        self.params.pull(self.network.params)
        self.state.pull(self.network.state)
        self.memory.pull(self.host_memory)

    def allocate(self):
        """Make what training needs, when it first needs it."""
        if self.buffers is not None:
            return
        card, rows = self.card, self.capacity
        n_norms = self.n_virtual * self.network.saved_size
        most_parts = self.n_virtual * count(rows, PART_ROWS)
        self.buffers = {
            "activations": card.zeros(rows * self.network.row_size, self.dtype),
            "deltas": card.zeros(rows * self.network.row_size, self.dtype),
            "grads": card.zeros(self.network.n_params, self.dtype),
            "weights": card.zeros(rows, np.float64),
            "total": card.zeros(1, np.float64),
            "saved": card.zeros(max(1, n_norms), np.float64),
            "statistics": card.zeros(max(1, n_norms // 3 * 2), np.float64),
            "totals": card.zeros(len(self.layers) * self.n_virtual, np.float64),
            "parts": card.zeros(most_parts * 4 * self.widest, np.float64),
            "gradient sums": card.zeros(self.n_virtual * 2 * self.widest, np.float64),
            "losses": card.zeros(count(rows, LOSS_ROWS) * (2 + self.n_scores), np.float64),
            "squares": card.zeros(3 * self.n_tiles, np.float64),
            "factor": card.zeros(1, np.float64),
            "sums": card.zeros(2 + self.n_scores, np.float64),
            "loss": card.zeros(1, np.float64),
            "steps": card.zeros(2, np.int64),
            "rate": card.zeros(1, np.float64),
            "optimizer": card.zeros(OPTIMIZER_DTYPE.itemsize // 8, np.float64),
        }

    # Launches.

    def launch(self, file, name, blocks, *arguments, threads=THREADS):
        """Queue a kernel."""
        kernel = self.card.kernel(file, name, self.dtype)
        self.card.launch(kernel, (int(blocks),), (threads,), arguments)

    def each(self, file, name, size, *arguments):
        """Queue a kernel whose threads take ``size`` numbers in turn."""
        self.launch(file, name, min(count(size, THREADS), MOST_BLOCKS), *arguments)

    def each_row(self, file, name, n_rows, width, *arguments):
        """Queue a kernel whose warps take rows in turn, and share each row if there are few."""
        n_blocks = min(count(32 * n_rows, THREADS), MOST_BLOCKS)
        n_sharing = max(1, min(count(width, 32), WARPS // n_rows))
        kernel = self.card.kernel(file, name, self.dtype)
        self.card.launch(kernel, (n_blocks, n_sharing), (THREADS,), arguments)

    def columns(self, file, name, width, n_parts, *arguments):
        """Queue a kernel whose blocks take tiles of columns and parts of the rows."""
        self.launch(file, name, count(width, TILE_COLUMNS) * n_parts, *arguments)

    def tensor(self, layer, role, vector):
        """Return where a tensor begins in a flat vector; None where there is none."""
        return None if layer[role] < 0 else vector[int(layer[role]) :]

    def gather(self, x, X, rows, weights, steps, n_rows):
        """Queue rows of X, as a block of the input's stride."""
        stride = int(self.layers[0]["in_stride"])
        if isinstance(X, CompressedRows):
            self.each_row(
                *("rows", "gather_compressed_rows", n_rows, 1),  # nobody shares what is sparse
                *(x, X.data, X.columns, X.starts, X.is_wide, rows, weights, steps),
                *(n_rows, self.network.n_features, stride),
            )
            return
        row_stride, column_stride = (s // self.dtype.itemsize for s in X.strides)
        self.each_row(
            *("rows", "gather_rows", n_rows, self.network.n_features),
            *(x, X, rows, weights, steps, n_rows, self.network.n_features, stride),
            *(row_stride, column_stride),
        )

    def dense_forward(self, y, x, layer, n_rows):
        """Queue ``y = activation(x @ weight + bias)``."""
        n_in, n_out, in_stride, out_stride = (int(layer[key]) for key in SIZES)
        weight = self.tensor(layer, "weight", self.params.vector)
        bias = self.tensor(layer, "bias", self.params.vector)
        self.card.multiply(y, x, weight, (n_rows, n_out, n_in), (out_stride, in_stride, out_stride))
        self.each_row(
            *("dense", "dense_activation_forward", n_rows, n_out),
            *(y, bias, n_rows, n_out, out_stride, int(layer["activation"])),
        )

    def dense_backward(self, dx, dy, y, x, layer, n_rows):
        """Queue the gradients of a dense layer; dx None: not wanted."""
        n_in, n_out, in_stride, out_stride = (int(layer[key]) for key in SIZES)
        grads, buffers = self.buffers["grads"], self.buffers
        dbias = self.tensor(layer, "bias", grads) if layer["train_bias"] else None
        if dbias is not None or layer["activation"] != Activation.IDENTITY:
            n_parts = count(n_rows, PART_ROWS)
            self.columns(
                *("dense", "dense_activation_backward", n_out, n_parts),
                *(dy, dbias, buffers["parts"], y, PART_ROWS, n_rows, n_out, out_stride),
                int(layer["activation"]),
            )
            if n_parts > 1 and dbias is not None:
                self.each(
                    *("dense", "dense_bias_merge", n_out),
                    *(dbias, buffers["parts"], n_parts, n_out, out_stride),
                )
        self.card.multiply(
            *(self.tensor(layer, "weight", grads), x, dy, (n_in, n_out, n_rows)),
            *((out_stride, in_stride, out_stride), (True, False)),
        )
        if dx is not None:
            weight = self.tensor(layer, "weight", self.params.vector)
            self.card.multiply(
                *(dx, dy, weight, (n_rows, n_in, n_out)),
                *((in_stride, out_stride, out_stride), (False, True)),
            )

    def norm_of(self, index, n_rows):
        """Return what a batch norm keeps of a batch, and how its rows are cut into parts."""
        layer, buffers = self.layers[index], self.buffers
        saved = int(layer["saved"]) * self.n_virtual
        kept = {
            "saved": buffers["saved"][saved:],
            "statistics": buffers["statistics"][saved // 3 * 2 :],
            "totals": buffers["totals"][index * self.n_virtual :],
        }
        size = int(layer["virtual_batch_size"])
        n_batches = count_virtual(n_rows, size)
        longest = n_rows if n_batches == 1 else size + 1
        return kept, size if n_batches > 1 else 0, n_batches, count(longest, PART_ROWS)

    def batch_norm_forward(self, y, x, weights, index, n_rows):
        """Queue batch norm with the statistics of the batch, or of each virtual batch."""
        layer, buffers = self.layers[index], self.buffers
        kept, virtual_size, n_batches, n_parts = self.norm_of(index, n_rows)
        width, stride = int(layer["n_out"]), int(layer["out_stride"])
        gamma, beta = (self.tensor(layer, role, self.params.vector) for role in ROLES)
        epsilon, activation = float(layer["epsilon"]), int(layer["activation"])
        if n_parts == 1:
            self.columns(
                *("batch_norm", "batch_norm_forward", width, n_batches),
                *(y, *kept.values(), x, weights, gamma, beta, n_rows, width, stride),
                *(virtual_size, epsilon, activation),
            )
            return
        parts = buffers["parts"]
        self.columns(
            *("batch_norm", "batch_norm_moments", width, n_batches * n_parts),
            *(parts, x, weights, n_parts, PART_ROWS, n_rows, width, stride),
            virtual_size,
        )
        self.each(
            *("batch_norm", "batch_norm_merge", n_batches * width, *kept.values()),
            *(parts, n_parts, n_batches, width, stride, epsilon),
        )
        self.columns(
            *("batch_norm", "batch_norm_normalize", width, n_batches * n_parts),
            *(y, x, kept["saved"], gamma, beta, n_parts, PART_ROWS, n_rows, width, stride),
            *(virtual_size, activation),
        )

    def batch_norm_backward(self, dx, dy, y, x, weights, index, n_rows):
        """Queue the gradients of batch norm; dx None: not wanted."""
        layer, buffers = self.layers[index], self.buffers
        kept, virtual_size, n_batches, n_parts = self.norm_of(index, n_rows)
        width, stride = int(layer["n_out"]), int(layer["out_stride"])
        gamma = self.tensor(layer, "weight", self.params.vector)
        dgamma, dbeta = (self.tensor(layer, role, buffers["grads"]) for role in ROLES)
        activation = int(layer["activation"])
        if n_parts == n_batches == 1:
            self.columns(
                *("batch_norm", "batch_norm_backward", width, 1, dx, dgamma, dbeta, dy, y, x),
                *(kept["saved"], kept["totals"], weights, gamma, n_rows, width, stride),
                activation,
            )
            return
        parts, sums = buffers["parts"], buffers["gradient sums"]
        cut = n_parts, PART_ROWS, n_rows, width, stride, virtual_size, activation
        self.columns(
            *("batch_norm", "batch_norm_gradient_sums", width, n_batches * n_parts),
            *(parts, dy, y, x, kept["saved"], *cut),
        )
        self.each(
            *("batch_norm", "batch_norm_gradient_merge", width),
            *(sums, dgamma, dbeta, parts, n_parts, n_batches, width, stride),
        )
        if dx is not None:
            self.columns(
                *("batch_norm", "batch_norm_input_gradient", width, n_batches * n_parts),
                *(dx, dy, y, x, kept["saved"], sums, kept["totals"], weights, gamma, *cut),
            )

    def dropout_apply(self, y, x, index, n_rows):
        """Queue dropout, forward or backward."""
        layer = self.layers[index]
        width = int(layer["n_out"])
        self.each_row(
            *("elementwise", "dropout_apply", n_rows, width),
            *(y, x, self.buffers["steps"], n_rows, width, int(layer["out_stride"])),
            *(float(layer["rate"]), self.key, index),
        )

    def elementwise_forward(self, y, x, layer, n_rows):
        """Queue an elementwise layer."""
        width, stride = int(layer["n_out"]), int(layer["out_stride"])
        self.each_row(
            *("elementwise", "elementwise_layer_forward", n_rows, width),
            *(y, x, n_rows, width, stride, int(layer["activation"])),
        )

    def elementwise_backward(self, dx, dy, x, layer, n_rows):
        """Queue the gradient of an elementwise layer."""
        width, stride = int(layer["n_out"]), int(layer["out_stride"])
        self.each_row(
            *("elementwise", "elementwise_layer_backward", n_rows, width),
            *(dx, dy, x, n_rows, width, stride, int(layer["activation"])),
        )

    # The walk.

    def at(self, index, key, buffer):
        """Return where a layer reads ("input") or writes ("output") in a buffer."""
        return self.buffers[buffer][int(self.layers[index][key]) * self.capacity :]

    def gradient(self, data, n_rows):
        """Queue the gradient of a batch, and what its loss is made of."""
        X, targets, weights, rows = data
        buffers = self.buffers
        steps, batch_weights, total = buffers["steps"], None, None
        if weights is not None:
            batch_weights, total = buffers["weights"], buffers["total"]
            self.launch(
                "rows", "gather_weights", 1, batch_weights, total, weights, rows, steps, n_rows
            )
        self.gather(self.at(0, "input", "activations"), X, rows, weights, steps, n_rows)
        for index, layer in enumerate(self.layers):
            x, y = (self.at(index, key, "activations") for key in ("input", "output"))
            if layer["kind"] == LayerKind.DENSE:
                self.dense_forward(y, x, layer, n_rows)
            elif layer["kind"] == LayerKind.BATCH_NORM:
                self.batch_norm_forward(y, x, batch_weights, index, n_rows)
            elif layer["kind"] == LayerKind.DROPOUT:
                self.dropout_apply(y, x, index, n_rows)
            else:
                self.elementwise_forward(y, x, layer, n_rows)
        last = len(self.layers) - 1
        raw, draw = (self.at(last, "output", buffer) for buffer in ("activations", "deltas"))
        self.loss(draw, buffers["losses"], raw, targets, batch_weights, total, rows, steps, n_rows)
        for index in range(last, -1, -1):
            layer = self.layers[index]
            x, y = (self.at(index, key, "activations") for key in ("input", "output"))
            dx, dy = (self.at(index, key, "deltas") for key in ("input", "output"))
            dx = dx if index > 0 else None
            if layer["kind"] == LayerKind.DENSE:
                self.dense_backward(dx, dy, y, x, layer, n_rows)
            elif layer["kind"] == LayerKind.BATCH_NORM:
                self.batch_norm_backward(dx, dy, y, x, batch_weights, index, n_rows)
            elif dx is not None and layer["kind"] == LayerKind.DROPOUT:
                self.dropout_apply(dx, dy, index, n_rows)
            elif dx is not None:
                self.elementwise_backward(dx, dy, x, layer, n_rows)

    def loss(self, draw, parts, raw, targets, weights, total, rows, steps, n_rows):
        """Queue losses, scores and, unless draw is None, the gradient of the raw outputs."""
        last = self.layers[-1]
        self.launch(
            *("losses", "loss_forward_backward", count(n_rows, LOSS_ROWS)),
            *(draw, parts, raw, targets, weights, total, rows, steps),
            *(n_rows, int(last["n_out"]), int(last["out_stride"]), int(self.loss_kind)),
            threads=LOSS_ROWS,
        )

    def finish(self, data, n_rows, max_norm, *, update_statistics=True, update_params=True):
        """Queue what follows a gradient: penalty, update, statistics, sums."""
        buffers, network = self.buffers, self.network
        total = None if data[2] is None else buffers["total"]
        clips = update_params and np.isfinite(max_norm)
        if self.alpha != 0 or clips:
            self.launch(
                *("optimizers", "add_penalty", self.n_tiles, buffers["grads"], buffers["squares"]),
                *(self.params.vector, self.table, len(self.layers), total, self.alpha),
                *(n_rows, network.n_params, int(clips)),
            )
        if update_params:
            if clips:
                self.launch(
                    *("optimizers", "clip_norm", 1, buffers["factor"], buffers["squares"]),
                    *(self.n_tiles, float(max_norm)),
                )
            self.each(
                *("optimizers", "optimizer_update", network.n_params, self.params.vector),
                *(self.memory.vector, buffers["grads"], buffers["optimizer"], buffers["rate"]),
                *(total, buffers["factor"] if clips else None, network.n_params),
            )
        if update_statistics and network.batch_norm_indices:
            self.launch(
                *("batch_norm", "update_moving_statistics", len(self.layers), self.state.vector),
                *(buffers["statistics"], buffers["totals"], total, self.table),
                *(self.n_virtual, n_rows),
            )
        self.launch(
            *("optimizers", "finish_step", 1, buffers["sums"], buffers["loss"], buffers["steps"]),
            *(buffers["rate"], buffers["optimizer"] if update_params else None, buffers["losses"]),
            *(count(n_rows, LOSS_ROWS), self.n_scores, buffers["squares"]),
            *(self.n_tiles, total, self.alpha, n_rows),
        )

    def put(self, X, targets, weights):
        """Return all that batches are taken from, on the card."""
        n_all, data = X.shape[0], self.data
        return (
            data.rows_of(X),
            data.targets_of(targets, n_all),
            data.weights_of(weights, n_all),
        )

    def put_rows(self, rows):
        """Return the order of rows on the card, where that of the last call was if it can be."""
        expected(rows, np.intp, len(rows), "rows")
        if self.order is None or self.order.size < len(rows):
            self.order = self.card.empty(len(rows), np.int64)
        self.card.write(self.order[: len(rows)], rows)
        return self.order

    def check_loss(self):
        """Refuse to train or evaluate without a loss."""
        if self.loss_kind is None:
            raise ValueError("This executor was made without a loss.")

    def new_sums(self):
        """Return zeros for what ``train`` adds up: loss, rows, scores."""
        return np.zeros(2 + self.n_scores)

    def loss_and_gradient(
        self, X, targets, weights, rows, grads, step=0, *, update_statistics=False, sums=None
    ):
        """Return the mean loss with penalty over one batch; write its gradient into ``grads``.

        The batch's statistics enter the moving ones if asked; to ``sums`` is added what ``train``
        adds.
        """
        self.check_loss()
        n_rows, n_params = len(rows), self.network.n_params
        if n_rows > self.capacity:
            raise ValueError(f"{n_rows} rows do not fit buffers for {self.capacity}.")
        expected(grads, self.dtype, n_params, "grads", writable=True)
        data = (*self.put(X, targets, weights), self.put_rows(rows))
        self.allocate()
        self.push()
        self.card.write(self.buffers["steps"], np.array([0, step]))
        self.card.write(self.buffers["sums"], self.new_sums())
        self.gradient(data, n_rows)
        self.finish(data, n_rows, np.inf, update_statistics=update_statistics, update_params=False)
        grads[:n_params] = self.card.read(self.buffers["grads"])
        if update_statistics:
            self.state.pull(self.network.state)
        if sums is not None:
            sums += self.card.read(self.buffers["sums"])
        return float(self.card.read(self.buffers["loss"])[0])

    def train(self, X, targets, weights, rows, start, optimizer, memory, sums):
        """Train on mini-batches of X[rows] from position start on, for as long as a call may take.

        Adds to ``sums`` the loss of the mini-batches times their rows, these rows, and the scores;
        returns the next position. Mini-batches without weight are passed over.
        """
        self.check_loss()
        expected(optimizer, OPTIMIZER_DTYPE, 1, "optimizer", writable=True)
        n_vectors = 2 if optimizer["kind"][0] == OptimizerKind.ADAM else 1
        expected(memory, self.dtype, n_vectors * self.network.n_params, "memory", writable=True)
        expected(sums, np.float64, 2 + self.n_scores, "sums", writable=True)
        expected(rows, np.intp, len(rows), "rows")
        train = self.train_small if self.is_small and not hasattr(X, "indptr") else self.train_steps
        start = train(self.put(X, targets, weights), rows, start, optimizer, memory, sums)
        if start == len(rows):
            self.fetch()
        return start

    def train_small(self, data, rows, start, optimizer, memory, sums):
        """Train a network that fits into one block, in one launch."""
        if self.small is None:
            self.small = epochs.Models(
                [self.network],
                loss_kinds=[self.loss_kind],
                alphas=[self.alpha],
                batch_sizes=[self.batch_size],
                dropout_keys=[self.dropout_key],
                card=self.card,
            )
        bound = *data, rows, memory
        if any(new is not old for new, old in zip(bound, self.bound, strict=True)):
            X, targets, weights = data
            self.small.bind(X, targets, [weights], [rows])
            self.bound, self.memories = bound, [memory]
        self.small.put_orders()
        self.is_ahead = True
        which, start = np.zeros(1, np.intp), np.array([start])
        positions = self.small.advance(which, optimizer, self.memories, start, sums[np.newaxis])
        return int(positions[0])

    def train_steps(self, data, rows, start, optimizer, memory, sums):
        """Train by launches, step by step."""
        data, n_rows = (*data, self.put_rows(rows)), len(rows)
        self.allocate()
        if self.memory is None or self.memory.vector.size < memory.size:
            self.memory = Twin(self.card, memory.size, self.dtype)
        if not self.is_ahead:
            self.push()
            self.memory.push(memory)
        self.host_memory = memory
        buffers, card = self.buffers, self.card
        card.write(buffers["optimizer"], optimizer.view(np.float64))
        card.write(buffers["steps"], np.array([start, optimizer["t"][0]]))
        card.write(buffers["sums"], sums)  # so that no bit depends on how calls cut an epoch
        self.launch(
            *("optimizers", "plan_first_rate", 1, buffers["rate"], buffers["optimizer"]),
            buffers["steps"],
            threads=32,
        )
        max_norm = float(optimizer["max_grad_norm"][0])
        began, n_steps = perf_counter(), 0
        most = max(1, int(SECONDS_PER_CALL / self.seconds_per_step))
        self.is_ahead = True
        while start < n_rows and n_steps < most:
            stop = batch_stop(start, n_rows, self.batch_size, self.network.min_rows)
            alike = (n_rows - self.network.min_rows - start) // self.batch_size
            alike = max(1, min(alike, most - n_steps))
            self.do_steps(data, stop - start, alike, max_norm)
            start, n_steps = start + alike * (stop - start), n_steps + alike
        sums[:] = card.read(buffers["sums"])
        optimizer["t"] = card.read(buffers["steps"])[1]
        self.seconds_per_step = (perf_counter() - began) / n_steps
        return start

    def do_steps(self, data, n_rows, n_steps, max_norm):
        """Queue steps of as many rows each, as graphs where that pays and all kernels have run."""

        def steps(n_steps):
            for _ in range(n_steps):
                self.gradient(data, n_rows)
                self.finish(data, n_rows, max_norm)

        if n_rows * self.network.n_params > WORK_IN_GRAPH:
            steps(n_steps)
            return
        X, *vectors = data
        place = X.place if isinstance(X, CompressedRows) else (address(X), *X.strides)
        kind = (n_rows, max_norm, place, *map(address, (self.memory.vector, *vectors)))
        if kind not in self.have_run:
            steps(1)
            self.have_run.add(kind)
            n_steps -= 1
        for size in STEPS_IN_GRAPH:
            for _ in range(n_steps // size):
                if (kind, size) not in self.graphs:
                    self.graphs[kind, size] = self.card.capture(partial(steps, size))
                self.graphs[kind, size].launch()
            n_steps %= size

    # Inference.

    def forward_eval(self, X, rows, weights, steps, n_rows, work, stop):
        """Queue rows through the layers before ``stop``; return where they lie."""
        here, there = work
        self.gather(here, X, rows, weights, steps, n_rows)
        which = (
            Statistics.POPULATION_MEAN if self.network.use_population else Statistics.MOVING_MEAN
        )
        for layer in self.layers[:stop]:
            if layer["kind"] == LayerKind.DENSE:
                self.dense_forward(there, here, layer, n_rows)
                here, there = there, here
            elif layer["kind"] == LayerKind.BATCH_NORM:
                width, stride = int(layer["n_out"]), int(layer["out_stride"])
                mean = self.state.vector[int(layer["state"] + which * stride) :]
                gamma, beta = (self.tensor(layer, role, self.params.vector) for role in ROLES)
                self.columns(
                    *("batch_norm", "batch_norm_forward_eval", width, count(n_rows, SLICE_ROWS)),
                    *(here, here, mean, gamma, beta, SLICE_ROWS, n_rows, width, stride),
                    *(float(layer["epsilon"]), int(layer["activation"])),
                )
            elif layer["kind"] == LayerKind.ELEMENTWISE:
                self.elementwise_forward(there, here, layer, n_rows)
                here, there = there, here
        return here

    def blocks(self, n_rows):
        """Yield slices of rows that go through the network together, and two blocks for them."""
        size = max(PART_ROWS, EVAL_NUMBERS // self.widest // PART_ROWS * PART_ROWS)
        size = min(size, n_rows)
        work = [self.card.empty(size * self.widest, self.dtype) for _ in range(2)]
        for start in range(0, n_rows, size):
            yield slice(start, min(start + size, n_rows)), work

    def predict(self, X):
        """Return the raw outputs, on the card if X lies there."""
        self.data.check_rows(X)
        if not self.is_ahead:
            self.push()
        card, n_rows, n_outputs = self.card, X.shape[0], self.network.n_outputs
        is_there = card.is_array(X)
        steps = card.zeros(2, np.int64)
        raw = card.empty((n_rows, n_outputs), self.dtype) if is_there else None
        result = raw if is_there else np.empty((n_rows, n_outputs), self.dtype)
        for block, work in self.blocks(n_rows):
            size = block.stop - block.start
            part = self.data.put(X[block])
            out = self.forward_eval(part, None, None, steps, size, work, None)
            target = raw[block] if is_there else card.empty((size, n_outputs), self.dtype)
            stride = int(self.layers[-1]["out_stride"])
            copied = target, out, size, n_outputs, stride
            self.each_row("rows", "copy_rows", size, n_outputs, *copied)
            if not is_there:
                card.read(target, result[block])
        return result

    def weights_of_block(self, weights, rows, steps, n_rows):
        """Return the gathered weights of a block of rows, and their sum."""
        if weights is None:
            return None, None
        gathered, total = (self.card.empty(size, np.float64) for size in (n_rows, 1))
        self.launch("rows", "gather_weights", 1, gathered, total, weights, rows, steps, n_rows)
        return gathered, total

    def evaluate(self, X, targets, weights, rows):
        """Return the sum of the losses, without penalty, the weight of all rows, and the scores."""
        self.check_loss()
        n_rows = len(rows)
        (X, targets, weights), rows = self.put(X, targets, weights), self.put_rows(rows)
        if not self.is_ahead:
            self.push()
        size = 2 + self.n_scores
        parts = self.card.empty(count(n_rows, LOSS_ROWS) * size, np.float64)
        steps = self.card.zeros(2, np.int64)
        for block, work in self.blocks(n_rows):
            some, n_some = rows[block], block.stop - block.start
            raw = self.forward_eval(X, some, weights, steps, n_some, work, None)
            gathered, _ = self.weights_of_block(weights, some, steps, n_some)
            here = parts[block.start // LOSS_ROWS * size :]
            self.loss(None, here, raw, targets, gathered, None, some, steps, n_some)
        return self.card.read(parts).reshape(-1, size).sum(axis=0)

    def update_population_statistics(self, X, weights, rows):
        """Measure every batch norm over all rows, behind the final statistics of those before."""
        if weights is not None:
            rows = rows[weights[rows] > 0]
        if len(rows) == 0:
            raise ValueError("There are no rows with weight to take statistics of.")
        n_all = X.shape[0]
        X, weights = self.data.rows_of(X), self.data.weights_of(weights, n_all)
        if not self.is_ahead:
            self.push()
        self.network.use_population = True
        rows, n_rows = self.put_rows(rows), len(rows)
        n_parts = count(n_rows, PART_ROWS)
        parts = self.card.empty(n_parts * 4 * self.widest, np.float64)
        steps = self.card.zeros(2, np.int64)
        for index in self.network.batch_norm_indices:
            layer = self.layers[index]
            width, stride = int(layer["n_out"]), int(layer["out_stride"])
            for block, work in self.blocks(n_rows):
                some, n_some = rows[block], block.stop - block.start
                x = self.forward_eval(X, some, weights, steps, n_some, work, index)
                gathered, _ = self.weights_of_block(weights, some, steps, n_some)
                here = parts[block.start // PART_ROWS * 4 * stride :]
                n_here = count(n_some, PART_ROWS)
                self.columns(
                    *("batch_norm", "batch_norm_moments", width, n_here, here),
                    *(x, gathered, n_here, PART_ROWS, n_some),
                    *(width, stride, 0),
                )
            population = self.state.vector[
                int(layer["state"] + Statistics.POPULATION_MEAN * stride) :
            ]
            self.each(
                *("batch_norm", "population_merge", width),
                *(population, parts, n_parts, width, stride),
            )
        self.state.pull(self.network.state)


ROLES = ("weight", "bias")
SIZES = ("n_in", "n_out", "in_stride", "out_stride")
STRIDES = ("in_stride", "out_stride")
