"""Where users' arrays lie: how skbn takes them, and how results go back to where they came from.

Arrays on a card, CuPy's or any library's that speaks DLPack, are computed with there and never
copied; results stay on that card, in the library of the input. All else becomes a NumPy array or a
sparse matrix of scipy's and is answered in NumPy; but where scikit-learn's array API dispatch is
on, arrays of every library that it knows are answered in kind.
"""
# SPDX-License-Identifier: BSD-3-Clause

import sys

import numpy as np
from scipy.sparse import csr_array
from sklearn import get_config
from sklearn.utils import assert_all_finite, check_array
from sklearn.utils.validation import validate_data

from skbn._sklearn_compat import array_api_namespace, convert_to_numpy
from skbn.backends import card_number, get_card, non_finite


class Place:
    """Where an array came from, as a context in which to compute; this one is the processor."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass  # nothing is held

    def read(self, array):
        """Return an array that lies here as NumPy knows it."""
        return array

    def give_back(self, result):
        """Return a result as the user's library knows it."""
        return result


PROCESSOR = Place()


class _OtherLibrary(Place):
    """An array API namespace and one of its devices, reached through NumPy."""

    def __init__(self, namespace, device):
        self.namespace, self.device = namespace, device

    def give_back(self, result):
        if not (isinstance(result, np.ndarray) and result.dtype.kind in "biuf"):
            return result  # strings, and sparse indicators: no such library has them
        return self.namespace.asarray(result, device=self.device)


class _OnCard(Place):
    """A card, and the library whose arrays lie there."""

    def __init__(self, card, library):
        self.card, self.library = card, library

    def __enter__(self):
        self.card.__enter__()
        return self

    def __exit__(self, *exception):
        self.card.__exit__(*exception)

    def read(self, array):
        return self.card.read(array) if card_number(array) is not None else array

    def give_back(self, result):
        if self.library is None or card_number(result) is None:
            return result
        return self.library.from_dlpack(result)


def received(array, device=None):
    """Take an array from the user.

    Parameters
    ----------
    array : object
        Rows, labels or weights, of whatever kind.
    device : {None, "cpu", "cuda"}
        Where the user wants to compute.

    Returns
    -------
    array : object
        An array on a card, or something for scikit-learn to validate.
    place : Place
        Where it came from.

    Raises
    ------
    TypeError
        If the array lies on a card and ``device`` is "cpu", or if it is a sparse matrix there.
    """
    if isinstance(array, np.ndarray):
        return array, PROCESSOR
    number = card_number(array)
    if number is not None:
        if device == "cpu":
            raise TypeError(
                "device='cpu' does not compute with arrays that lie on a card. Set device=None, or "
                "copy the array to the processor: CuPy's by its method get()."
            )
        card, library = get_card(number), None
        if not card.is_array(array):
            library = _library(array)
            with card:
                array = card.from_dlpack(array)
        return array, _OnCard(card, library)
    if type(array).__module__.startswith("cupyx.scipy.sparse"):
        check_array(csr_array((1, 1)), input_name="X")  # raises scikit-learn's error
    namespace, device = array_api_namespace(array)
    if namespace is None:
        return array, PROCESSOR
    return convert_to_numpy(array, namespace), _OtherLibrary(namespace, device)


def _library(array):
    """Return the module with the ``from_dlpack`` of an array's library."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return sys.modules[type(array).__module__.partition(".")[0]]  # torch


def on_host(array):
    """Return labels, targets or weights where NumPy can read them; this copies from a card."""
    array, place = received(array)
    return place.read(array)


def taken(values, indices):
    """Return ``values[indices]``, where the indices lie if these values can lie there."""
    number = card_number(indices)
    if number is None:
        return values[indices]
    card = get_card(number)
    if values.dtype.kind not in "biuf":
        return values[card.read(indices)]
    return card.upload(values)[indices]


def check_same_place(X, X_val):
    """Refuse two arrays of which one lies on another device."""
    devices = [f"cuda:{n}" if n is not None else "cpu" for n in map(card_number, (X, X_val))]
    if devices[0] != devices[1]:
        raise ValueError(
            f"Input arrays use different devices: X lies on {devices[0]}, X_val on {devices[1]}."
        )


def resolved(device, X):
    """Return where to compute with X, "cpu" or "cuda"; None is where X lies."""
    return device or ("cpu" if card_number(X) is None else "cuda")


def validator(X):
    """Return scikit-learn's ``validate_data``, or what does the same where X lies on a card."""
    return validate_data if card_number(X) is None else _validate_on_card


def _validate_on_card(estimator, X, *y, dtype, **options):
    """Let scikit-learn see shape and type alone; look for what is not finite on the card."""
    shown = _shown(X, dtype)
    options |= {"dtype": dtype, "ensure_all_finite": False}
    result = validate_data(estimator, shown, *y, **options)
    X = X.astype(shown.dtype, copy=False)
    if not get_config()["assume_finite"]:
        for value, found in zip((np.nan, np.inf), non_finite(X), strict=True):
            if found:
                name = type(estimator).__name__
                assert_all_finite(shown.dtype.type(value), estimator_name=name, input_name="X")
    return (X, *result[1:]) if y else X


def checker(X):
    """Return scikit-learn's ``check_array``, or what does the same where X lies on a card.

    There it does not look for what is not finite.
    """
    return check_array if card_number(X) is None else _check_on_card


def _check_on_card(X, *, dtype, **options):
    shown = _shown(X, dtype)
    check_array(shown, dtype=dtype, **options)
    return X.astype(shown.dtype, copy=False)


def _shown(X, dtype):
    """Return for scikit-learn an array of one number, of the shape of X and the type it will have.

    What is about to be refused is shown as it is: it may stand in the message.
    """
    if X.ndim != 2 or X.dtype.kind not in "biuf":
        return get_card(card_number(X)).read(X)
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    converted = X.dtype if X.dtype in dtypes else np.dtype(dtypes[0])
    return np.broadcast_to(np.zeros((), converted), X.shape)
