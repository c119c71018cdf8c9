"""Batch-normalized neural networks as scikit-learn estimators."""
# SPDX-License-Identifier: BSD-3-Clause

from importlib import import_module
from typing import TYPE_CHECKING

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

# What no fit needs is loaded when it is asked for, which saves milliseconds of importing.
if TYPE_CHECKING:
    from skbn import functional
    from skbn._display import TrainingCurveDisplay
    from skbn._fit_many import fit_many
    from skbn._show_versions import show_versions
    from skbn._transformer import BatchNormTransformer
else:
    _LATE = {
        "BatchNormTransformer": "skbn._transformer",
        "TrainingCurveDisplay": "skbn._display",
        "fit_many": "skbn._fit_many",
        "show_versions": "skbn._show_versions",
    }

    def __getattr__(name):
        if name in _LATE:
            return getattr(import_module(_LATE[name]), name)
        if name == "functional":
            return import_module("skbn.functional")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
