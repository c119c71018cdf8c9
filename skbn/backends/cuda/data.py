"""Data on a card: checked as they come in, taken there once."""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

from skbn.backends.records import LossKind

LOG_LOSSES = (LossKind.BINARY_LOG_LOSS, LossKind.CATEGORICAL_LOG_LOSS)

COMPARED_AS_BYTES = 2**15  # below it NumPy's own overhead is longer than copying both


def words(array):
    """Return an array as a vector of integers, in which NaN is NaN and zeros have signs."""
    return array.reshape(-1).view(np.int64 if array.nbytes % 8 == 0 else np.int32)


def same_bits(a, b):
    """Return whether two vectors hold the same, NaN and signs of zeros among it."""
    if a.nbytes <= COMPARED_AS_BYTES:
        return a.tobytes() == b.tobytes()
    return np.array_equal(words(a), words(b))


def target_size(network, loss_kind):
    """Return how many numbers a row of the targets has."""
    return 1 if loss_kind == LossKind.CATEGORICAL_LOG_LOSS else network.n_outputs


def n_scores(network, loss_kind):
    """Return how many numbers a loss adds to the scores."""
    return 1 if loss_kind in LOG_LOSSES else network.n_outputs


def signed(dropout_key):
    """Return two 32-bit words as one of the integers that kernels take."""
    return int(np.uint64(dropout_key[0] | dropout_key[1] << 32).view(np.int64))


def address(array):
    """Return where an array of the card's begins; None is nowhere."""
    return 0 if array is None else array.__cuda_array_interface__["data"][0]


def expected(array, dtype, size, name, writable=False):
    """Return a vector that kernels can use, or raise."""
    fits = (
        isinstance(array, np.ndarray)
        and array.dtype == dtype
        and array.size >= size
        and array.flags.c_contiguous
        and array.flags.aligned
    )
    if not fits or (writable and not array.flags.writeable):
        raise ValueError(
            f"{name}: expected an aligned array of type {np.dtype(dtype).char!r} with {size} "
            f"elements or more{', writable' if writable else ''}, got {array.dtype.char!r} with "
            f"shape {array.shape}."
        )
    return array


class CompressedRows:
    """CSR rows on the card, no column twice in a row."""

    def __init__(self, card, X):
        if not X.has_canonical_format:
            X = X.copy()
            X.sum_duplicates()
        self.shape = X.shape
        self.is_wide = int(X.indptr.dtype == np.int64)
        self.data, self.columns, self.starts = map(card.upload, (X.data, X.indices, X.indptr))

    @property
    def place(self):
        """Where all of it begins."""
        return tuple(map(address, (self.data, self.columns, self.starts)))


class Data:
    """What is trained on, each array on the card from when it is first used.

    Parameters
    ----------
    card : Card
    dtype : dtype
        Type of the network.
    n_features, target_size : int
        Numbers in a row of X and of the targets.
    """

    def __init__(self, card, dtype, n_features, target_size):
        self.card, self.dtype = card, dtype
        self.n_features, self.target_size = n_features, target_size
        self.uploaded = {}  # by identity; the array is kept, so that no other gets its id

    def once(self, array, put):
        """Return what ``put`` makes of an array of the host's, made once."""
        if id(array) not in self.uploaded:
            self.uploaded[id(array)] = array, put(array)
        return self.uploaded[id(array)][1]

    def check_rows(self, X):
        """Refuse rows that do not fit the network."""
        fits = X.ndim == 2 and X.shape[1] == self.n_features and X.dtype == self.dtype
        if hasattr(X, "indptr"):
            fits = fits and X.format == "csr" and X.indptr.dtype in (np.int32, np.int64)
        elif not self.card.is_array(X):
            fits = fits and X.dtype.isnative and X.flags.aligned
        if not fits:
            raise ValueError(
                f"Expected aligned rows of {self.n_features} numbers of type {self.dtype.char!r}, "
                f"got {X.dtype.char!r} with shape {X.shape}."
            )

    def put(self, X):
        """Return rows on the card: X itself if it lies there."""
        if self.card.is_array(X):
            return X
        return CompressedRows(self.card, X) if hasattr(X, "indptr") else self.card.upload(X)

    def rows_of(self, X):
        """Return all rows of X on the card."""
        self.check_rows(X)
        if self.card.is_array(X):
            return X
        n_bytes = X.data.nbytes + X.indices.nbytes if hasattr(X, "indptr") else X.nbytes
        if id(X) not in self.uploaded and n_bytes > self.card.free_memory:
            raise MemoryError(
                f"X takes {n_bytes / 2**30:.1f} GiB, but {self.card.name} has "
                f"{self.card.free_memory / 2**30:.1f} GiB free. Use device='cpu', or partial_fit "
                "with some of the rows at a time."
            )
        return self.once(X, self.put)

    def targets_of(self, targets, n_rows):
        """Return targets on the card."""
        expected(targets, self.dtype, n_rows * self.target_size, "targets")
        return self.once(targets, self.card.upload)

    def weights_of(self, weights, n_rows):
        """Return weights on the card; None are ones."""
        if weights is None:
            return None
        expected(weights, np.float64, n_rows, "weights")
        return self.once(weights, self.card.upload)
