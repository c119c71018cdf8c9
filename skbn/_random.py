"""Everything random, drawn on the host so that every executor starts from the same numbers.

Initial weights and shuffles come from the ``RandomState`` of ``random_state``, in scikit-learn's
order, so that ``batch_norm=None`` reproduces scikit-learn draw for draw. Dropout has a stream of
its own, a counter-based generator keyed once per fit: turning dropout on changes neither the
initial weights nor the batches.
"""
# SPDX-License-Identifier: BSD-3-Clause

from contextlib import contextmanager
from copy import deepcopy
from numbers import Integral

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import check_random_state, gen_batches

from skbn._shuffle import shuffle as shuffle_rows
from skbn.backends.records import LayerKind

WEIGHT_INITS = (
    "auto",
    "he_uniform",
    "he_normal",
    "glorot_uniform",
    "glorot_normal",
    "lecun_normal",
)


# What shuffle="blocks" keeps together, and how many blocks are mixed: a disk finds a block in about
# the time in which it reads one, and a window fits in any memory.
BLOCK_BYTES = 2**23
BLOCKS_IN_WINDOW = 32

_idle: list = []  # generators that no fit uses; list.pop and list.append are atomic


@contextmanager
def seeded(random_state):
    """Lend what ``sklearn.utils.check_random_state`` would make of ``random_state``.

    A new ``RandomState(seed)`` first asks the system for entropy and then throws it away, which is
    a tenth of a small fit's fixed cost; seeding an old one anew gives the same numbers.
    """
    if not isinstance(random_state, Integral):
        yield check_random_state(random_state)
        return
    generator = _idle.pop() if _idle else np.random.RandomState()
    try:
        generator.seed(random_state)
        yield generator
    finally:
        _idle.append(generator)


def initialize_weights(network, weight_init, activation, random_state):
    """Draw the initial weights of every dense layer into ``network.params``.

    Weights and bias are drawn layer by layer, in network order, also where they are then set to
    zero, so that what is drawn next does not depend on ``weight_init`` or on placements.

    Parameters
    ----------
    network : Network
        Its ``params`` are written.
    weight_init : str
        One of ``WEIGHT_INITS``. "auto" is scikit-learn's rule: uniform weights and biases within
        ``sqrt(6 / (fan_in + fan_out))``, 2 instead of 6 for logistic units (Glorot & Bengio, 2010);
        but an output layer behind a batch norm starts at zero. Units of variance 1 through random
        weights would be noise as large as the targets, and training removes it only where there are
        rows.
        The others are Keras's rules with zero biases, but that normal draws are not truncated.
    activation : str
        Activation of the hidden layers.
    random_state : RandomState
        Source of the draws.
    """
    for coef, intercept in zip(network.coefs, network.intercepts, strict=True):
        fan_in, fan_out = coef.shape
        bound = np.sqrt((2.0 if activation == "logistic" else 6.0) / (fan_in + fan_out))
        if weight_init.endswith("normal"):
            scale = {
                "he_normal": np.sqrt(2.0 / fan_in),
                "glorot_normal": np.sqrt(2.0 / (fan_in + fan_out)),
                "lecun_normal": np.sqrt(1.0 / fan_in),
            }[weight_init]
            coef[...] = random_state.normal(0.0, scale, coef.shape)
        else:
            limit = {
                "auto": bound,
                "he_uniform": np.sqrt(6.0 / fan_in),
                "glorot_uniform": np.sqrt(6.0 / (fan_in + fan_out)),
            }[weight_init]
            coef[...] = random_state.uniform(-limit, limit, coef.shape)
        intercept[...] = random_state.uniform(-bound, bound, fan_out)
        if weight_init != "auto":
            intercept[...] = 0.0
    if weight_init == "auto" and any(
        layer.kind == LayerKind.BATCH_NORM and layer.position == "after" for layer in network.layers
    ):
        network.coefs[-1][...] = network.intercepts[-1][...] = 0.0


def rows_in_block(X):
    """Return how many rows ``shuffle="blocks"`` keeps together, by the size of X alone."""
    numbers = X.data.nbytes + X.indices.nbytes if issparse(X) else X.nbytes
    return max(1, BLOCK_BYTES * X.shape[0] // max(1, numbers))


def shuffle_blocks(rows, block_size, random_state):
    """Shuffle row indices so that rows near each other in X are read near each other in time.

    Blocks of consecutive rows are shuffled, then the rows of every 32 blocks that now follow each
    other: rows of 32 places of X, drawn anew at each call, are mixed.

    Parameters
    ----------
    rows : ndarray of intp
        Shuffled in place. Their order does not matter: blocks are of ascending rows.
    block_size : int
        Rows in a block. The rest, less than a block, is before the first or behind the last.
    random_state : RandomState
        Source of the draws.
    """
    rows.sort()
    n_blocks, rest = divmod(len(rows), block_size)
    start = random_state.randint(rest + 1)
    random_state.shuffle(rows[start : start + n_blocks * block_size].reshape(n_blocks, block_size))
    for window in gen_batches(len(rows), BLOCKS_IN_WINDOW * block_size):
        shuffle_rows(rows[window], random_state)


def dropout_key(random_state):
    """Return two 32-bit words for the dropout generator, without advancing ``random_state``."""
    twin = deepcopy(random_state)
    return tuple(int(word) for word in twin.randint(0, 2**32, size=2, dtype=np.uint32))
