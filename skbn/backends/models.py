"""Many networks that train side by side on the same rows: the interface, and a loop over executors.

A device that can do better has models of its own: one launch an epoch for all of them. These here
judge it, as the NumPy executor judges other executors.
"""
# SPDX-License-Identifier: BSD-3-Clause

from contextlib import ExitStack
from functools import cache
from math import inf

import numpy as np


class Models:
    """Train networks one after the other, each by an executor of its own.

    Parameters
    ----------
    networks : list of Network
        Of one type, with the same numbers of inputs and outputs; they may differ in all else.
    loss_kinds, alphas, batch_sizes, dropout_keys : list
        What an executor takes, for each network; the losses have as many scores.
    """

    executor_class = None  # of the device
    n_together = inf  # networks at most

    def __init__(self, networks, *, loss_kinds, alphas, batch_sizes, dropout_keys):
        options = zip(networks, loss_kinds, alphas, batch_sizes, dropout_keys, strict=True)
        self.executors = [
            self.executor_class(
                network, loss_kind=kind, alpha=alpha, batch_size=size, dropout_key=key
            )
            for network, kind, alpha, size, key in options
        ]

    @staticmethod
    def n_threads(n_jobs):
        """Return how many threads may train networks at the same time."""
        return 1

    @staticmethod
    def accepts(network, *, loss_kind, batch_size, X):
        """Return whether a network is small enough to train beside others, on rows such as X's."""
        return True

    def __enter__(self):
        with ExitStack() as stack:
            for executor in self.executors:
                stack.enter_context(executor)
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *exception):
        """Bring networks and optimizers up to date, where they were trained elsewhere."""
        self._entered.close()

    def new_sums(self):
        """Return zeros for what ``train`` adds up, a row for each network."""
        return np.zeros((len(self.executors), self.executors[0].new_sums().size))

    def train(self, X, targets, weights, rows, optimizers, active, sums):
        """Do all mini-batches of an epoch of every network that is ``active``.

        Parameters
        ----------
        X, targets
            Rows, of all networks.
        weights : list of (ndarray of float64, or None)
            Weights of the rows of X, for each network.
        rows : list of ndarray of intp
            Which rows each network sees, in their order; networks may share an array.
        optimizers : Optimizers
            One for each network, advanced in place.
        active : ndarray of bool
            Which networks are trained.
        sums : ndarray of shape (n_networks, 2 + n_scores)
            To whose rows is added what the executor's ``train`` adds.
        """
        for index in np.flatnonzero(active):
            optimizer, position = optimizers[index], 0
            while position < len(rows[index]):
                position = self.executors[index].train(
                    X,
                    targets,
                    weights[index],
                    rows[index],
                    position,
                    optimizer.record,
                    optimizer.memory,
                    sums[index],
                )

    def update_population_statistics(self, X, weights, rows, wanted):
        """Measure the batch norms of the networks that are ``wanted``, each over its rows.

        Training is over: this is called outside of the context.
        """
        for index in np.flatnonzero(wanted):
            with self.executors[index] as executor:
                executor.update_population_statistics(X, weights[index], rows[index])


@cache
def models_of(executor_class):
    """Return the models that loop over executors of a class."""
    return type("Models", (Models,), {"executor_class": executor_class})
