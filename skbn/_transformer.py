"""Batch normalization as a transformer: StandardScaler with the parameters of a batch norm."""
# SPDX-License-Identifier: BSD-3-Clause

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import assert_all_finite, check_array
from sklearn.utils.sparsefuncs import inplace_column_scale
from sklearn.utils.validation import check_is_fitted, validate_data

from skbn._devices import on_host, received
from skbn._mlp import readable_rows, validated_weights
from skbn._operands import operands_like
from skbn._sklearn_compat import Interval, StrOptions, fit_context
from skbn.backends import card_number, get_array_functions, get_card
from skbn.backends.records import Activation
from skbn.functional import axes_kept

if TYPE_CHECKING:
    from skbn._typing import Array, ArrayLike, MatrixLike

# Statistics are rows of an array: mean, var, and of each what float64 rounds off. Without the
# second parts the rounding of a million updates would add up, and a mean a hundred million
# standard deviations away would be good to eight digits of one.


class BatchNormTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Batch normalization of data: ``(X - mean) / sqrt(var + epsilon) * gamma + beta``.

    With ``epsilon=0`` it is scikit-learn's StandardScaler and Keras's Normalization layer; with a
    float as momentum it has the moving statistics of Keras's BatchNormalization, without their
    bias. Statistics are float64 and keep their digits in any chunks and far from zero. NaN is
    ignored in fit and kept in transform.

    Parameters
    ----------
    momentum : float or None, default=None
        How calls of `partial_fit` are averaged. None: every row counts the same, however rows were
        chunked. A float in [0, 1): the moving average of the batches' means and variances, of which
        each call retains this fraction. It is bias-corrected: batch t enters it with share
        ``(1 - momentum) / (1 - momentum**t)``.

    epsilon : float, default=1e-3
        Added to the variance; 0 or more. With 0, a feature without variance becomes beta.

    gamma : float, array-like of shape (n_features,) or None, default=None
        Standard deviation of the output (but for epsilon). None: 1.

    beta : float, array-like of shape (n_features,) or None, default=None
        Mean of the output. None: 0. Needs `with_mean`.

    axis : int or tuple of int, default=-1
        The axis or axes that keep their own statistics, as in Keras; all others are reduced. X may
        have more than two axes; the first holds the samples and is always reduced.

    with_mean : bool, default=True
        Whether to center. Sparse X cannot be centered without becoming dense, and needs False.

    copy : bool, default=True
        If False, transform in place where X has the right type and layout.

    device : {None, "cpu", "cuda"}, default=None
        Where to compute. None: where X lies. "cuda": on a card; X of NumPy's is uploaded, and the
        result is NumPy's. "cpu": on the processor; arrays on a card are refused, not copied.
        Fitted attributes are NumPy's in any case.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        Mean of each feature. In this and the next two, several axes kept are as many dimensions.

    var_ : ndarray of shape (n_features,)
        Biased variance of each feature.

    scale_ : ndarray of shape (n_features,)
        ``sqrt(var_ + epsilon)``, by which `transform` divides; where it is 0, the result is beta.

    n_samples_seen_ : int, float or ndarray of shape (n_features,)
        Number of values behind the statistics, those that are NaN not counted: an array if it
        differs between features. With weights, their sum.

    n_batches_seen_ : int or ndarray of shape (n_features,)
        Number of batches behind the statistics. A batch in which a feature is all NaN is none.

    n_features_in_ : int
        Number of features: of entries that the axes kept have.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if X in `fit` was a frame whose columns have strings as names.

    See Also
    --------
    skbn.functional.batch_norm : Batch normalization of arrays, with gradients.
    sklearn.preprocessing.StandardScaler : The same without epsilon, gamma, beta and axis.

    Notes
    -----
    Chunks are merged as (n, mean, variance) [1]_. Without centering, a feature without variance
    becomes 0 with ``epsilon=0``; StandardScaler leaves it as it is.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm
       for Computing Sample Variances", Stanford University, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from skbn import BatchNormTransformer
    >>> X = np.array([[1.0, 10.0], [2.0, 10.0], [3.0, 10.0]])
    >>> norm = BatchNormTransformer(epsilon=0.0).fit(X)
    >>> norm.transform(X)
    array([[-1.22474487,  0.        ],
           [ 0.        ,  0.        ],
           [ 1.22474487,  0.        ]])
    >>> norm.inverse_transform(norm.transform(X))
    array([[ 1., 10.],
           [ 2., 10.],
           [ 3., 10.]])

    Chunks leave no trace, unless `momentum` lets older ones fade:

    >>> norm.partial_fit([[6.0, 14.0]]).mean_
    array([ 3., 11.])
    >>> fading = BatchNormTransformer(momentum=0.9).partial_fit(X)
    >>> fading.partial_fit([[6.0, 14.0]]).mean_.round(2)
    array([ 4.11, 12.11])

    Pictures by their channels, with 5 as mean and 2 as standard deviation of the output:

    >>> pictures = np.arange(48.0).reshape(4, 2, 2, 3)
    >>> norm = BatchNormTransformer(epsilon=0.0, gamma=2.0, beta=5.0).fit(pictures)
    >>> norm.mean_
    array([22.5, 23.5, 24.5])
    >>> out = norm.transform(pictures)
    >>> out.mean(axis=(0, 1, 2)), out.std(axis=(0, 1, 2))
    (array([5., 5., 5.]), array([2., 2., 2.]))
    """

    mean_: Array
    var_: Array
    scale_: Array
    n_samples_seen_: float | Array
    n_batches_seen_: int | Array
    n_features_in_: int
    feature_names_in_: Array

    _parameter_constraints: dict = {
        "momentum": [Interval(Real, 0, 1, closed="left"), None],
        "epsilon": [Interval(Real, 0, np.inf, closed="left")],
        "gamma": [Real, "array-like", None],
        "beta": [Real, "array-like", None],
        "axis": [Integral, tuple, list],
        "with_mean": ["boolean"],
        "copy": ["boolean"],
        "device": [StrOptions({"cpu", "cuda"}), None],
    }

    def __init__(
        self,
        *,
        momentum: float | None = None,
        epsilon: float = 1e-3,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
        axis: int | Sequence[int] = -1,
        with_mean: bool = True,
        copy: bool = True,
        device: str | None = None,
    ) -> None:
        self.momentum = momentum
        self.epsilon = epsilon
        self.gamma = gamma
        self.beta = beta
        self.axis = axis
        self.with_mean = with_mean
        self.copy = copy
        self.device = device

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: MatrixLike, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Compute mean and variance of X, to be used by `transform`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or with more axes
            Data to take the statistics of.

        y : None
            Ignored.

        sample_weight : array-like of shape (n_samples,), default=None
            A sample of weight w counts as w samples.

        Returns
        -------
        self : object
            The fitted transformer.
        """
        return self._update(X, sample_weight, reset=True)

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: MatrixLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Take one more batch into mean and variance.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or with more axes
            Data to take the statistics of.

        y : None
            Ignored.

        sample_weight : array-like of shape (n_samples,), default=None
            A sample of weight w counts as w samples.

        Returns
        -------
        self : object
            The fitted transformer.
        """
        is_first = not hasattr(self, "mean_")
        if not is_first:
            self._validate_params()  # scikit-learn does so before the first call only
        return self._update(X, sample_weight, reset=is_first)

    def transform(self, X: MatrixLike, copy: bool | None = None) -> Any:
        """Normalize X with the statistics that were fitted.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or with more axes
            Data to normalize; NaN is kept.

        copy : bool, default=None
            Used in place of the parameter of this name, if given.

        Returns
        -------
        X_tr : {ndarray, sparse matrix} of the shape of X
            The result: float32 if X is, else float64.
        """
        check_is_fitted(self)
        self._check_names(X, reset=False)
        _, with_mean, epsilon, gamma, beta = self._fitted_with
        mean, low = (self.mean_, self._lows[0]) if with_mean else np.zeros((2, *self.mean_.shape))
        return self._normalize(X, copy, mean, low, self.var_, epsilon, gamma, beta)

    def inverse_transform(self, X: MatrixLike, copy: bool | None = None) -> Any:
        """Bring normalized data back to where they were.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or with more axes
            Normalized data; NaN is kept.

        copy : bool, default=None
            Used in place of the parameter of this name, if given.

        Returns
        -------
        X_original : {ndarray, sparse matrix} of the shape of X
            The result: float32 if X is, else float64.

        Raises
        ------
        ValueError
            If gamma is 0 for any feature.
        """
        check_is_fitted(self)
        _, with_mean, _, gamma, beta = self._fitted_with
        if gamma is not None and not gamma.all():
            raise ValueError("gamma is 0, so transform has made all values the same.")
        zeros, ones = np.zeros_like(self.mean_), np.ones_like(self.mean_)
        scale = self.scale_ if gamma is None else self.scale_ / gamma
        mean = self.mean_ if with_mean else None
        # A normalization again: by mean beta and variance 1 to standard deviation scale and mean.
        return self._normalize(
            X, copy, zeros if beta is None else beta, zeros, ones, 0, scale, mean
        )

    def _update(self, X, sample_weight, reset):
        """Take X into the statistics, or set them to those of X; on any error nothing changes."""
        if not reset:
            self._check_names(X, reset=False)
        # Without weights NaN and inf show in the statistics, which saves reading X twice.
        shows = sample_weight is None and not issparse(X)
        rows, place = received(X, self.device)
        with place:
            rows, axes = self._check_array(
                *(rows, self.axis, self.with_mean, reset),
                ensure_all_finite=False if shows else "allow-nan",
            )
            kept = tuple(rows.shape[axis] for axis in axes)
            parameters = self._checked_parameters(kept)
            weights = validated_weights(on_host(sample_weight), _shape_alone(rows))
            moments = self._moments(readable_rows(rows), axes, weights)
            n, mean, mean_low, var = place.read(moments).reshape(4, *kept)
        batch = np.stack([mean, var, mean_low, np.zeros(kept)])
        old, n_samples, n_batches = np.full_like(batch, np.nan), 0, 0
        if not reset:
            old = np.stack([self.mean_, self.var_, *self._lows])
            n_samples, n_batches = self.n_samples_seen_, self.n_batches_seen_
        if weights is None:
            n = n.astype(np.int64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.momentum is None:
                statistics = _merged(n_samples, old, n, batch)
            else:
                statistics = _moving_average(n_batches, old, n > 0, batch, self.momentum)
            scale = np.sqrt(statistics[1] + self.epsilon)
        n_samples, n_batches = n_samples + n, n_batches + (n > 0).astype(np.int64)
        finite = np.isfinite(statistics).all(axis=0) & np.isfinite(scale)
        overflowed = np.argwhere(~finite & (n_samples > 0))
        if overflowed.size:
            raise ValueError(
                "The variance of finite values overflows float64, first in feature "
                f"{', '.join(map(str, overflowed[0]))}. Scale the input down."
            )
        if reset:
            self._check_names(X, reset=True)
        self.n_features_in_ = prod(kept)
        self.mean_, self.var_, *self._lows = statistics
        self.scale_ = scale
        self.n_samples_seen_ = _one_if_equal(n_samples)
        self.n_batches_seen_ = _one_if_equal(n_batches)
        self._fitted_with = parameters
        return self

    def _moments(self, X, axes, weights):
        """Return weight, mean in two parts and variance; NaN is ignored, inf refused."""
        functions = self._functions(X)
        if issparse(X):
            return _sparse_moments(X, weights)
        moments = functions.moments(X, axes, weights)
        if not np.isfinite(moments).all():
            self._refuse_infinity(X, axes)
            moments = functions.moments(X, axes, weights, ignore_nan=True)
        return moments

    def _refuse_infinity(self, X, axes):
        if card_number(X) is not None:
            found = get_array_functions("cuda").find_non_finite(X, axes)[1]
            X = np.full(1, np.inf if found.any() else 0, X.dtype)
        assert_all_finite(X, allow_nan=True, estimator_name=type(self).__name__, input_name="X")

    def _functions(self, X):
        """Return what computes with X."""
        device = self.device or ("cpu" if card_number(X) is None else "cuda")
        if device == "cuda" and issparse(X):
            raise TypeError("device='cuda' needs dense X; sparse matrices stay on the processor.")
        return get_array_functions(device)

    def _normalize(self, X, copy, mean, mean_low, var, epsilon, gamma, beta):
        """Return X normalized; statistics are in the shape of the axes kept."""
        X, place = received(X, self.device)
        with place:
            axis, with_mean, *_ = self._fitted_with
            copy = self.copy if copy is None else copy
            X, axes = self._check_array(
                *(X, axis, with_mean, False),
                ensure_all_finite="allow-nan",
                force_writeable=not copy,
            )
            functions = self._functions(X)
            if issparse(X):
                scale, gamma = np.sqrt(var + epsilon), 1.0 if gamma is None else gamma
                X, factors = X.copy() if copy else X, np.zeros_like(scale)
                inplace_column_scale(X, np.divide(gamma, scale, factors, where=scale != 0))
                return X
            X = readable_rows(X)
            y = operands_like(X).empty_like(X) if copy else X
            mean, mean_low, var, gamma, beta = (
                None if value is None else value.reshape(-1)
                for value in (mean, mean_low, var, gamma, beta)
            )
            functions.batch_norm_forward_eval(
                y, X, axes, gamma, beta, mean, mean_low, var, epsilon, Activation.IDENTITY
            )
            return place.give_back(y)

    def _check_names(self, X, reset):
        validate_data(self, X, reset=reset, skip_check_array=True, ensure_2d=False)

    def _check_array(self, X, axis, with_mean, reset, **params):
        """Return X as an array and the axes kept in ascending order, after all checks on them."""
        is_on_card = card_number(X) is not None
        checked = check_array(
            _shape_alone(X),
            accept_sparse=("csr", "csc"),
            dtype=[np.float64, np.float32],
            allow_nd=True,
            estimator=self,
            input_name="X",
            **({"ensure_all_finite": False} if is_on_card else params),
        )
        X = X.astype(checked.dtype, copy=False) if is_on_card else checked
        name = type(self).__name__
        axes = axes_kept(axis, X.ndim)
        if 0 in axes:
            raise ValueError(f"axis={axis!r} keeps the first axis of X, which holds the samples.")
        if not axes:
            raise ValueError(f"axis={axis!r} must name one axis at least.")
        kept = tuple(X.shape[axis] for axis in axes)
        if not reset and prod(kept) != self.n_features_in_:
            raise ValueError(
                f"X has {prod(kept)} features, but {name} is expecting {self.n_features_in_} "
                "features as input."
            )
        if not reset and kept != self.mean_.shape:
            raise ValueError(
                f"X has shape {X.shape}, of which axis={axis!r} keeps {kept}, but {name} is "
                f"expecting {self.mean_.shape}."
            )
        if 0 in X.shape:
            raise ValueError(
                f"Found array with 0 value(s) (shape={X.shape}) while a minimum of 1 is required "
                f"by {name}."
            )
        if issparse(X) and with_mean:
            raise ValueError(
                "Cannot center sparse matrices: pass `with_mean=False` instead. See docstring for "
                "motivation and alternatives."
            )
        if is_on_card and params["ensure_all_finite"] and not get_config()["assume_finite"]:
            self._refuse_infinity(X, axes)
        return X, axes

    def _checked_parameters(self, kept):
        """Return the parameters that transform needs, gamma and beta as arrays."""
        if self.beta is not None and not self.with_mean:
            raise ValueError("beta cannot be used with with_mean=False; use beta=None.")
        gamma, beta = (self._per_feature(name, kept) for name in ("gamma", "beta"))
        return self.axis, self.with_mean, float(self.epsilon), gamma, beta

    def _per_feature(self, name, kept):
        """Return gamma or beta in the shape of the axes kept; None stays None."""
        value = getattr(self, name)
        if value is None:
            return None
        value = check_array(
            np.atleast_1d(value), dtype=np.float64, ensure_2d=False, allow_nd=True, input_name=name
        )
        if value.shape != kept and value.size != 1:
            raise ValueError(f"{name} has shape {value.shape}, expected {kept}.")
        return np.full(kept, value if value.shape == kept else value.item())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = not self.with_mean
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _shape_alone(X):
    """Return what scikit-learn may look at: of an array on a card only its shape and type."""
    number = card_number(X)
    if number is None:
        return X
    if X.ndim < 2 or X.dtype.kind not in "biuf":
        return get_card(number).read(X)  # to be refused
    dtype = np.float32 if X.dtype == np.float32 else np.float64
    return np.broadcast_to(np.zeros((), dtype), X.shape)


def _one_if_equal(values):
    first = values.flat[0]
    return first if (values == first).all() else values


# Statistics that nothing is behind are NaN; their shares may be 0 / 0.


def _merged(n_old, old, n_new, new):
    """Return the statistics of the values behind both together (Chan et al.)."""
    n = n_old + n_new
    return _average(n_old / n, old, n_new / n, new, is_one_sample=True)


def _moving_average(n_old, old, is_new, new, momentum):
    """Return the bias-corrected average of n_old batches and, where there is one, a new batch."""
    decay = momentum ** (n_old + is_new)
    share = np.where(is_new, (1 - momentum) / (1 - decay), 0)
    return _average((momentum - decay) / (1 - decay), old, share, new)


def _average(retained, old, share, new, is_one_sample=False):
    """Return ``retained * old + share * new`` of statistics in two parts; both shares sum up to 1.

    Of one sample, var grows by that between the means. What has the smaller share is added to the
    other, of which no digit is lost.
    """
    swap = share > retained
    base, other = np.where(swap, new, old), np.where(swap, old, new)
    part = np.where(swap, retained, share)
    difference = other - base
    mean, var = difference[:2] + difference[2:]
    if is_one_sample:
        var = var + (1 - part) * mean**2
    steps = np.where(part > 0, part * np.stack([mean, var]), 0)
    return np.concatenate(_two_sum(base[:2], base[2:] + steps))


def _two_sum(a, b):
    """Return a + b and what rounding leaves out of it (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _sparse_moments(X, weights):
    """Return moments as array functions do, of CSR rows: NaN is ignored, what is not stored is 0.

    The values stored are one sample, the zeros another.
    """
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    if weights is None:
        weights = np.ones(X.shape[0])
    else:
        X, weights = X[weights > 0], weights[weights > 0]
    columns, values = X.indices.astype(np.intp), X.data.astype(np.float64)
    w = np.repeat(weights, np.diff(X.indptr))

    def sums(values):
        return np.bincount(columns, values, X.shape[1])

    zeros = np.maximum(weights.sum() - sums(w), 0)
    zeros[sums(None) == X.shape[0]] = 0  # whatever rounding left
    present = ~np.isnan(values)
    columns, values, w = columns[present], values[present], w[present]
    n = sums(w)
    pivot = np.zeros(X.shape[1])
    pivot[columns] = values
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values -= pivot[columns]
        mean = sums(w * values) / n
        values -= mean[columns]
        correction = sums(w * values) / n
        var = np.maximum(sums(w * values**2) / n - correction**2, 0)
        mean, mean_low = _two_sum(pivot, mean + correction)
        stored = np.stack([mean, var, mean_low, np.zeros_like(mean)])
        mean, var, mean_low, _ = _merged(n, stored, zeros, np.zeros_like(stored))
    return np.stack([n + zeros, mean, mean_low, var])
