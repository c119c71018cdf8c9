"""The card's kernels and what drives them. Nothing here is imported before something is on a card.

``card.py`` is the only module that imports CuPy.
"""
# SPDX-License-Identifier: BSD-3-Clause

from importlib import import_module


def executor_class():
    """Return the executor that computes on the current card; raise if there is none."""
    import_module(f"{__name__}.card").current()
    return import_module(f"{__name__}.executor").CUDAExecutor


def models_class():
    """Return what trains many networks at once on the current card; raise if there is none."""
    import_module(f"{__name__}.card").current()
    return import_module(f"{__name__}.models").CUDAModels


def array_functions():
    """Return the module that normalizes arrays on cards; raise if there is none."""
    import_module(f"{__name__}.card").current()
    return import_module(f"{__name__}.arrays")


def get_card(number):
    """Return the card of this number; raise if there is no CuPy or no card at all."""
    return import_module(f"{__name__}.card").current().at(number)


def non_finite(array):
    """Return whether NaN, and whether infinity, is in a matrix on the current card."""
    card = import_module(f"{__name__}.card").current()
    return import_module(f"{__name__}.checks").non_finite(card, array)


def description():
    """Return what CuPy and the current card are, by name; what is missing is said, not raised."""
    return import_module(f"{__name__}.card").description()
