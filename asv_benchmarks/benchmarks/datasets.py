"""Data for the benchmarks, of a type, split into training and test rows."""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from sklearn.datasets import load_digits, make_circles, make_friedman1
from sklearn.model_selection import train_test_split


def split(X, y, dtype):
    return train_test_split(X.astype(dtype), y, test_size=0.25, random_state=0)


def circles(dtype, n_rows=700):
    """Two noisy circles."""
    return split(*make_circles(n_rows, noise=0.1, random_state=1), dtype)


def digits(dtype):
    """Digits, 8 x 8."""
    X, y = load_digits(return_X_y=True)
    return split(X / 16, y, dtype)


def large_digits(dtype, n_rows=1797):
    """The same drawn on 28 x 28, as MNIST's are; again and again for more rows."""
    X, y = load_digits(return_X_y=True)
    X = np.kron((X / 16).astype(dtype).reshape(-1, 8, 8), np.ones((1, 3, 3), dtype))
    X = np.pad(X, ((0, 0), (2, 2), (2, 2))).reshape(-1, 784)
    return split(np.resize(X, (n_rows, 784)), np.resize(y, n_rows), dtype)


def friedman(dtype):
    """Friedman's first regression problem."""
    X, y = make_friedman1(2000, noise=1.0, random_state=0)
    return split(X, y.astype(dtype), dtype)
