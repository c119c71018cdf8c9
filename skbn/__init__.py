"""Batch-normalized neural networks as scikit-learn estimators."""
# SPDX-License-Identifier: BSD-3-Clause

from skbn._display import TrainingCurveDisplay
from skbn._mlp import MLPClassifierBN, MLPRegressorBN

__version__ = "0.1.0.dev0"

__all__ = ["MLPClassifierBN", "MLPRegressorBN", "TrainingCurveDisplay"]
