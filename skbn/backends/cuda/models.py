"""Many small networks that train side by side on a card, a block each, in one launch an epoch."""
# SPDX-License-Identifier: BSD-3-Clause

from math import inf

import numpy as np

from skbn.backends.cuda import card as cards
from skbn.backends.cuda import epochs
from skbn.backends.cuda.data import Data, expected, target_size
from skbn.backends.cuda.executor import CUDAExecutor


class CUDAModels(epochs.Models):
    """Train networks that fit in a block; the interface of :class:`skbn.backends.models.Models`."""

    n_together = inf

    def __init__(self, networks, *, loss_kinds, **options):
        super().__init__(networks, loss_kinds=loss_kinds, **options)
        sizes = networks[0].n_features, target_size(networks[0], loss_kinds[0])
        self.on_card = Data(self.card, self.dtype, *sizes)
        self.given = (None,) * 5

    @staticmethod
    def n_threads(n_jobs):
        """Return how many threads may train networks at the same time."""
        return 1

    @staticmethod
    def accepts(network, *, loss_kind, batch_size, X):
        """Return whether a network fits in a block, and X is dense."""
        size = target_size(network, loss_kind)
        is_dense = not hasattr(X, "indptr")
        return is_dense and epochs.fits(cards.current(), network, batch_size, size)

    def train(self, X, targets, weights, rows, optimizers, active, sums):
        """Do an epoch of every network that is active."""
        given = X, targets, weights, rows, optimizers
        if any(new is not old for new, old in zip(given, self.given, strict=True)):
            self.put(*given)
        self.put_orders()
        which, n_rows = np.flatnonzero(active), self.jobs["n_rows"]
        positions = np.zeros(len(which), np.intp)
        while len(which):
            positions = self.advance(
                which, optimizers.records, self.given_memories, positions, sums
            )
            is_left = positions < n_rows[which]
            which, positions = which[is_left], positions[is_left]

    def put(self, X, targets, weights, rows, optimizers):
        """Bring data to the card; from epoch to epoch only the order of the rows changes."""
        n_all, data = X.shape[0], self.on_card
        for order in {id(order): order for order in rows}.values():
            expected(order, np.intp, len(order), "rows")
        there = [data.weights_of(vector, n_all) for vector in weights]
        self.bind(data.rows_of(X), data.targets_of(targets, n_all), there, rows)
        self.given = X, targets, weights, rows, optimizers
        self.given_memories = [optimizer.memory for optimizer in optimizers]

    def update_population_statistics(self, X, weights, rows, wanted):
        """Measure the batch norms of the networks that are wanted, each over its rows."""
        for index in np.flatnonzero(wanted):
            with CUDAExecutor(self.networks[index]) as executor:
                executor.data = self.on_card
                executor.update_population_statistics(X, weights[index], rows[index])
