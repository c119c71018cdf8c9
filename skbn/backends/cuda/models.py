"""Many small networks that train side by side on a card, a block each, in one launch an epoch."""
# SPDX-License-Identifier: BSD-3-Clause

from math import inf

import numpy as np

from skbn.backends.cuda import card as cards
from skbn.backends.cuda import epochs
from skbn.backends.cuda.data import Data, expected
from skbn.backends.cuda.executor import CUDAExecutor
from skbn.backends.records import LossKind


def target_size(network, loss_kind):
    """Return how many numbers a row of the targets has."""
    return 1 if loss_kind == LossKind.CATEGORICAL_LOG_LOSS else network.n_outputs


class CUDAModels(epochs.Models):
    """Train networks that fit in a block; the interface of :class:`skbn.backends.models.Models`."""

    n_together = inf

    def __init__(self, networks, *, loss_kinds, **options):
        super().__init__(networks, loss_kinds=loss_kinds, **options)
        sizes = networks[0].n_features, target_size(networks[0], loss_kinds[0])
        self.on_card = Data(self.card, self.dtype, *sizes)

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
        n_all, data = X.shape[0], self.on_card
        for order in {id(order): order for order in rows}.values():
            expected(order, np.intp, len(order), "rows")
        self.bind(
            data.rows_of(X),
            data.targets_of(targets, n_all),
            [data.weights_of(vector, n_all) for vector in weights],
            rows,
        )
        memories = [optimizer.memory for optimizer in optimizers]
        which, n_rows = np.flatnonzero(active), np.array([len(order) for order in rows])
        positions = np.zeros(len(which), np.intp)
        while len(which):
            positions = self.advance(which, optimizers.records, memories, positions, sums)
            is_left = positions < n_rows[which]
            which, positions = which[is_left], positions[is_left]

    def update_population_statistics(self, X, weights, rows, wanted):
        """Measure the batch norms of the networks that are wanted, each over its rows."""
        for index in np.flatnonzero(wanted):
            with CUDAExecutor(self.networks[index]) as executor:
                executor.data = self.on_card
                executor.update_population_statistics(X, weights[index], rows[index])
