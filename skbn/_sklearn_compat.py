"""The only file that touches scikit-learn's private names."""
# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Callable
from inspect import signature
from typing import Any, TypeVar

import numpy as np
from sklearn import get_config
from sklearn.base import _fit_context, is_classifier
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils import check_random_state, metaestimators
from sklearn.utils._array_api import _convert_to_numpy as convert_to_numpy
from sklearn.utils._array_api import get_namespace_and_device
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    make_constraint,
    validate_parameter_constraints,
)
from sklearn.utils._show_versions import _get_deps_info as get_deps_info
from sklearn.utils._show_versions import _get_sys_info as get_sys_info
from sklearn.utils.multiclass import _check_partial_fit_first_call as check_partial_fit_first_call
from sklearn.utils.optimize import _check_optimize_result as check_optimize_result
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9 has no callbacks, so its estimators have no set_callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Support nothing."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


# scikit-learn has no types: a method behind its decorators would have none either.
Method = TypeVar("Method", bound=Callable[..., Any])


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[Method], Method]:
    """Return scikit-learn's decorator of fits, which keeps the type of a method."""
    return _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)


def available_if(check: Callable[[Any], bool]) -> Callable[[Method], Method]:
    """Return scikit-learn's decorator of methods that not all have; it keeps their type."""
    return metaestimators.available_if(check)


def array_api_namespace(array):
    """Return namespace and device of an array; None, None where array API dispatch is off.

    Objects that are no arrays have no namespace either.
    """
    if not (hasattr(array, "__dlpack__") and get_config()["array_api_dispatch"]):
        return None, None
    namespace, _, device = get_namespace_and_device(array)
    return namespace, device


def has_callbacks(estimator):
    """Return whether callbacks are set, by the user or by the meta-estimator around."""
    return hasattr(estimator, "_skl_callbacks")


def accepts_sample_weight(scorer):
    """Return whether a scorer can be called with ``sample_weight``."""
    function = getattr(scorer, "_score_func", scorer)  # of scikit-learn's own scorers
    parameters = signature(function).parameters.values()
    return any(p.name == "sample_weight" or p.kind is p.VAR_KEYWORD for p in parameters)


__all__ = [
    "CallbackSupportMixin",
    "Interval",
    "InvalidParameterError",
    "Options",
    "StrOptions",
    "accepts_sample_weight",
    "array_api_namespace",
    "available_if",
    "check_optimize_result",
    "check_partial_fit_first_call",
    "check_sample_weight",
    "convert_to_numpy",
    "fit_context",
    "get_deps_info",
    "get_sys_info",
    "has_callbacks",
    "make_constraint",
    "plain_mlp",
    "safe_indexing",
    "validate_parameter_constraints",
    "with_callbacks",
]


def plain_mlp(mlp_class, params, fitted):
    """Make a fitted MLP of scikit-learn's.

    Parameters
    ----------
    mlp_class : {MLPClassifier, MLPRegressor}
        Class to make one of.
    params : dict
        Its parameters; where scikit-learn does not know a name or a value, its default stands.
    fitted : dict
        Its public fitted attributes.

    Returns
    -------
    MLPClassifier or MLPRegressor
        An estimator that predicts, goes on training, is copied and pickled like any other.

    Raises
    ------
    ValueError
        If it does not know the activation, which no default can replace, or if one class only is
        known: its probabilities have two columns then.
    """
    known = {
        name: params[name]
        for name, alternatives in mlp_class._parameter_constraints.items()
        if name in params
        and any(make_constraint(allowed).is_satisfied_by(params[name]) for allowed in alternatives)
    }
    if "activation" not in known:
        options = sorted(mlp_class._parameter_constraints["activation"][0].options)
        raise ValueError(
            f"{mlp_class.__name__} has no activation {params['activation']!r}, only "
            f"{', '.join(options)}."
        )
    mlp = mlp_class(**known)
    vars(mlp).update(fitted)
    mlp._random_state = check_random_state(mlp.random_state)
    mlp._no_improvement_count = 0
    mlp._best_coefs = [coef.copy() for coef in mlp.coefs_]  # early stopping begins with these
    mlp._best_intercepts = [intercept.copy() for intercept in mlp.intercepts_]
    if is_classifier(mlp):
        if len(mlp.classes_) == 1:
            raise ValueError(
                "MLPClassifier cannot predict the same: it has two columns of probabilities for "
                f"the one class, {mlp.classes_[0]}."
            )
        multilabel = mlp.out_activation_ == "logistic" and mlp.n_outputs_ > 1
        labels = np.eye(mlp.n_outputs_, dtype=int) if multilabel else mlp.classes_
        mlp._label_binarizer = LabelBinarizer().fit(labels)
    return mlp
