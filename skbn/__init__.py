"""Batch-normalized neural networks as scikit-learn estimators."""
# SPDX-License-Identifier: BSD-3-Clause

from importlib import import_module

from skbn import exceptions
from skbn._classifier import MLPClassifierBN
from skbn._regressor import MLPRegressorBN
from skbn._version import __version__

__all__ = [
    "BatchNormTransformer",
    "MLPClassifierBN",
    "MLPRegressorBN",
    "TrainingCurveDisplay",
    "__version__",
    "exceptions",
    "fit_many",
    "functional",
    "show_versions",
]


def __getattr__(name):
    # What no fit needs is loaded when it is asked for, which saves milliseconds of importing.
    if name == "TrainingCurveDisplay":
        from skbn._display import TrainingCurveDisplay

        return TrainingCurveDisplay
    if name == "BatchNormTransformer":
        from skbn._transformer import BatchNormTransformer

        return BatchNormTransformer
    if name == "fit_many":
        from skbn._fit_many import fit_many

        return fit_many
    if name == "show_versions":
        from skbn._show_versions import show_versions

        return show_versions
    if name == "functional":
        return import_module("skbn.functional")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
