"""The only file that touches scikit-learn's private names."""
# SPDX-License-Identifier: BSD-3-Clause

from sklearn.base import _fit_context as fit_context
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    make_constraint,
    validate_parameter_constraints,
)
from sklearn.utils.multiclass import _check_partial_fit_first_call as check_partial_fit_first_call
from sklearn.utils.optimize import _check_optimize_result as check_optimize_result
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9 has no callbacks, so its estimators have no set_callbacks

    class CallbackSupportMixin:
        """Support nothing."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


def has_callbacks(estimator):
    """Return whether callbacks are set, by the user or by the meta-estimator around."""
    return hasattr(estimator, "_skl_callbacks")


__all__ = [
    "CallbackSupportMixin",
    "Interval",
    "InvalidParameterError",
    "Options",
    "StrOptions",
    "check_optimize_result",
    "check_partial_fit_first_call",
    "check_sample_weight",
    "fit_context",
    "has_callbacks",
    "make_constraint",
    "safe_indexing",
    "validate_parameter_constraints",
    "with_callbacks",
]
