"""Many estimators on a simulated card: one launch an epoch for all, and the bits of single fits."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from sklearn.base import clone

from skbn import MLPClassifierBN, MLPRegressorBN, fit_many
from skbn.backends import get_models
from skbn.backends.cuda import epochs

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

VARIANTS = [
    *({"batch_norm": placement} for placement in (None, "input", "before", ("input", "after"))),
    {"solver": "sgd", "learning_rate": "invscaling"},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1},
    {"learning_rate": "onecycle", "dropout": 0.3},
    {"tol": 0.5, "n_iter_no_change": 1},
    {"hidden_layer_sizes": (3, 2), "shuffle": False, "bn_virtual_batch_size": 4},
]


@pytest.fixture
def launches(simulated_card, monkeypatch):
    """The launches of whole epochs on a card, of as many blocks as the numbers say."""
    card, blocks = simulated_card, []
    # An epoch that is cut into launches by the clock has its losses added up in parts.
    monkeypatch.setattr(epochs, "SECONDS_PER_CALL", 1e9)
    launch = card.launch

    def counted(kernel, grid, block, arguments, shared=0):
        if grid and block == (epochs.THREADS,):
            blocks.append(grid[0])
        return launch(kernel, grid, block, arguments, shared)

    monkeypatch.setattr(card, "launch", counted)
    return blocks


def estimators(estimator_class, **parameters):
    common = {"hidden_layer_sizes": (5,), "batch_size": 16, "max_iter": 4, "random_state": 0}
    common |= {"device": "cuda"} | parameters
    return [estimator_class(**common | variant) for variant in VARIANTS]


@pytest.mark.parametrize("estimator_class", [MLPClassifierBN, MLPRegressorBN])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bits_of_single_fits(estimator_class, dtype, launches, blobs, snapshot):
    X, y = blobs(n_samples=40, n_classes=2, dtype=dtype)
    w = np.where(np.arange(40) % 7, 1.0, 3.0)
    rows = [None if index % 2 else np.arange(40) % 3 > 0 for index in range(len(VARIANTS))]
    together = fit_many(estimators(estimator_class), X, y, w, rows=rows)
    assert launches[0] == len(VARIANTS)
    for one, part in zip(together, rows, strict=True):
        part = slice(None) if part is None else part
        assert snapshot(one, X) == snapshot(clone(one).fit(X[part], y[part], w[part]), X)


def test_a_launch_an_epoch(launches, blobs):
    X, y = blobs(n_samples=40)
    endless = {"n_iter_no_change": np.inf, "tol": 0.0, "solver": "adam", "bn_statistics": "moving"}
    many = [est.set_params(**endless) for est in estimators(MLPClassifierBN)[:4]]
    many[1].set_params(max_iter=2)
    fit_many(many, X, y)
    assert launches[-4:] == [4, 4, 3, 3]
    assert len(launches) <= 5  # the first launch is one step: it compiles


def test_networks_that_do_not_fit_in_a_block(launches, blobs):
    X, y = blobs(n_samples=40)
    small, large = estimators(MLPClassifierBN)[1], MLPClassifierBN((300, 300), device="cuda")
    models = get_models("cuda")
    options = {"loss_kind": small.fit(X, y)._loss.kind, "batch_size": 16, "X": X}
    assert models.accepts(small._network, **options)
    large.set_params(max_iter=1, batch_norm=None, device="cpu").fit(X, y)
    assert not models.accepts(large._network, **options)


def test_a_wide_network_beside_large_batches(launches, blobs, snapshot):
    X, y = blobs(n_samples=300, n_classes=2, dtype=np.float32)
    wide = MLPClassifierBN((500,), batch_size=2, max_iter=1, random_state=0, device="cuda")
    long = clone(wide).set_params(hidden_layer_sizes=(8,), batch_size=300)
    together = fit_many([wide, long], X, y)  # no block has room for the larger of each size
    assert launches[0] == 2
    for one in together:
        assert snapshot(one, X) == snapshot(clone(one).fit(X, y), X)
