"""Batch-normalized neural networks as scikit-learn estimators."""
# SPDX-License-Identifier: BSD-3-Clause

from skbn import exceptions
from skbn._classifier import MLPClassifierBN
from skbn._display import TrainingCurveDisplay
from skbn._regressor import MLPRegressorBN
from skbn._version import __version__

__all__ = [
    "MLPClassifierBN",
    "MLPRegressorBN",
    "TrainingCurveDisplay",
    "__version__",
    "exceptions",
]
