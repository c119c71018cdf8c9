"""Batch normalization of arrays: for layers of your own, and for images and sequences.

Each function normalizes over all axes but those in ``axis``, which keep their own statistics, as in
Keras. Arrays may have any number of axes and any layout: C or Fortran order, strided, read-only,
memory-mapped; they are read where they lie if columns or rows touch. Statistics are float64
whatever the type of the array, with all their digits however far the mean is from zero, and the
same bits on any number of threads and in any layout. NaN and infinity stay within their column.
Formulas: docs/user_guide/batch_normalization.md (Ioffe & Szegedy, 2015).

Where x lies on a card, CuPy's or another library's that speaks DLPack, so do all results, float64
statistics and gradients of gamma and beta among them, in the library of x. Data are never copied
between card and processor; gamma, beta and given statistics may lie on either side, and weights of
samples are read. Only of float64 arrays the variances are waited for: they may overflow.
"""
# SPDX-License-Identifier: BSD-3-Clause

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import TYPE_CHECKING

import numpy as np

from skbn._devices import received
from skbn._operands import operands_like, weights_on_host
from skbn.backends.records import Activation

if TYPE_CHECKING:
    from skbn._typing import Array, ArrayLike

__all__ = ["BatchNormSaved", "batch_norm", "batch_norm_backward", "batch_norm_inference", "moments"]

_ACTIVATIONS = {activation.name.lower(): activation for activation in Activation}


@dataclass(eq=False, slots=True)
class BatchNormSaved:
    """What :func:`batch_norm` hands to :func:`batch_norm_backward`.

    Parameters
    ----------
    x : ndarray
        The input itself; a copy only where it was converted, or lay in gaps.
    gamma, beta : ndarray of float64 or None
        Scale and shift, in the shape of the axes kept.
    mean, var : ndarray of float64
        Mean and biased variance of x, in the shape of the axes kept.
    inv_std : ndarray of float64
        ``1 / sqrt(var + epsilon)``; 0 where both are 0.
    axis : tuple of int
        The axes kept, in ascending order.
    activation : str
        Name of the activation.
    sample_weight : ndarray of float64 or None
        Weights of the samples, NumPy's wherever x lies.
    statistics : ndarray of float64 of shape (4, n_entries)
        What the backend keeps: mean in two parts, variance and 1/std, one after the other.

    See Also
    --------
    batch_norm : Gives it.
    batch_norm_backward : Takes it.

    Examples
    --------
    >>> import numpy as np
    >>> from skbn.functional import batch_norm
    >>> _, saved = batch_norm(np.array([[1.0], [3.0]]), epsilon=0.0)
    >>> saved.mean, saved.var, saved.inv_std
    (array([2.]), array([1.]), array([1.]))
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    mean: Array
    var: Array
    inv_std: Array
    axis: tuple[int, ...]
    activation: str
    sample_weight: Array | None
    statistics: Array = field(repr=False)


def moments(
    x: ArrayLike,
    *,
    axis: int | Sequence[int] | None = -1,
    sample_weight: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Mean and biased variance over all axes but those in ``axis``.

    Parameters
    ----------
    x : array-like
        Numbers; float32 and float64 are read as they are, all else as float64.
    axis : int, tuple of int or None, default=-1
        The axis or axes that keep their own statistics; all others are reduced. None keeps none.
    sample_weight : array-like of shape (x.shape[0],), default=None
        A sample of weight w counts as w samples. Needs the first axis to be reduced.

    Returns
    -------
    mean : ndarray of float64
        Mean, in the shape of the axes kept.
    var : ndarray of float64
        Biased (population) variance, in the same shape.

    Raises
    ------
    ValueError
        If nothing is reduced, if x is empty, or if weights are negative, not finite or all zero.

    Examples
    --------
    >>> import numpy as np
    >>> from skbn.functional import moments
    >>> mean, var = moments(np.array([[1.0, 10.0], [3.0, 10.0]]))
    >>> mean
    array([ 2., 10.])
    >>> var
    array([1., 0.])
    """
    x, place = received(x)
    operands = operands_like(x)
    with place:
        x, axes, kept = _array_and_axes(x, axis, operands)
        weights = _weights(sample_weight, x, axes)
        statistics = operands.functions.moments(x, axes, _ratios(weights))
        operands.check_overflow(statistics[3], x, axes)
        mean, var = statistics[1].reshape(kept), statistics[3].reshape(kept)
        return place.give_back(mean), place.give_back(var)


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] | None = -1,
    epsilon: float = 1e-3,
    activation: str | None = None,
    sample_weight: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Array, BatchNormSaved]:
    """Batch normalization with the statistics of x, as in training.

    ``activation((x - mean) / sqrt(var + epsilon) * gamma + beta)``, with mean and biased variance
    over all axes but those in ``axis`` (algorithm 1 of [1]_).

    Parameters
    ----------
    x : array-like
        Input; float32 and float64 are read as they are, all else as float64.
    gamma : array-like or None, default=None
        Scale of each entry kept, or one for all; None: ones.
    beta : array-like or None, default=None
        Shift of each entry kept, or one for all; None: zeros.
    axis : int, tuple of int or None, default=-1
        The axis or axes that keep their own statistics; all others are reduced. None keeps none.
    epsilon : float, default=1e-3
        Added to the variance; 0 or more. Where variance and epsilon are both 0, the output is the
        activation of beta.
    activation : str or None, default=None
        Applied to the result: "identity", "logistic", "tanh", "relu", "leaky_relu", "elu", "selu",
        "gelu", "silu" or "softplus". None: "identity".
    sample_weight : array-like of shape (x.shape[0],), default=None
        A sample of weight w counts as w samples in mean and variance. Needs the first axis to be
        reduced.
    out : ndarray, default=None
        Where to write the result: an array of the shape and type of x that shares no memory with
        it (backward reads x again). After an error what it holds is undefined.

    Returns
    -------
    y : ndarray
        The result, of the shape and type of x; ``out`` if that was given.
    saved : BatchNormSaved
        What :func:`batch_norm_backward` needs, mean and variance among it. It refers to x.

    Raises
    ------
    ValueError
        If a shape does not fit, if nothing is reduced, if x is empty, if a variance overflows
        float64, or if a parameter is out of its range.

    See Also
    --------
    batch_norm_backward : The gradients.
    batch_norm_inference : Normalization with given statistics.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
       Reducing Internal Covariate Shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from skbn.functional import batch_norm
    >>> y, saved = batch_norm(np.array([[1.0], [2.0], [3.0]]), epsilon=0.0)
    >>> y.ravel()
    array([-1.22474487,  0.        ,  1.22474487])
    >>> saved.mean, saved.var
    (array([2.]), array([0.66666667]))

    Pictures, (batch, height, width, channels), are normalized by their channels; with channels
    first, ``axis=1``:

    >>> pictures = np.arange(48.0).reshape(4, 2, 2, 3)
    >>> y, saved = batch_norm(pictures, activation="relu")
    >>> y.shape, saved.mean
    ((4, 2, 2, 3), array([22.5, 23.5, 24.5]))
    """
    x, place = received(x)
    operands = operands_like(x)
    with place:
        x, axes, kept = _array_and_axes(x, axis, operands)
        gamma = _kept(gamma, "gamma", kept, operands)
        beta = _kept(beta, "beta", kept, operands)
        activation = _activation(activation)
        weights = _weights(sample_weight, x, axes)
        epsilon = _epsilon(epsilon)
        if out is not None and operands.overlap(out, x):
            raise ValueError("out shares memory with x, which batch_norm_backward reads again.")
        x = operands.packed(x, axes)
        y = operands.output(out, x)
        statistics = operands.functions.batch_norm_forward(
            y, x, axes, _flat(gamma), _flat(beta), epsilon, activation, _ratios(weights)
        )
        operands.check_overflow(statistics[2], x, axes)
        mean, _, var, inv_std = (row.reshape(kept) for row in statistics)
        x, gamma, beta, mean, var, inv_std = map(
            place.give_back, (x, gamma, beta, mean, var, inv_std)
        )
        name = activation.name.lower()
        saved = BatchNormSaved(x, gamma, beta, mean, var, inv_std, axes, name, weights, statistics)
        return place.give_back(y) if out is None else out, saved


def batch_norm_backward(
    dy: ArrayLike, saved: BatchNormSaved, *, out: Array | None = None
) -> tuple[Array, Array, Array]:
    """Differentiate :func:`batch_norm` with respect to x, gamma and beta.

    With dz the gradient in front of the activation, xhat the normalized x and n the number of
    values that share a mean: ``dbeta = sum(dz)``, ``dgamma = sum(dz * xhat)`` and
    ``dx = gamma / sqrt(var + epsilon) * (dz - dbeta / n - xhat * dgamma / n)``; with weights w, n
    is their sum and the last two terms are multiplied by w.

    Parameters
    ----------
    dy : array-like
        Gradient with respect to the output of ``batch_norm``, of the shape of x. Weights are part
        of it already, as those of a weighted loss are.
    saved : BatchNormSaved
        What ``batch_norm`` returned. Its arrays must not have changed in between: x, gamma and
        beta may be the caller's own.
    out : ndarray, default=None
        Where to write dx: an array of the shape and type of x, which may be ``dy`` or ``saved.x``.

    Returns
    -------
    dx : ndarray
        Gradient with respect to x; ``out`` if that was given.
    dgamma : ndarray of float64
        Gradient with respect to gamma, in the shape of the axes kept.
    dbeta : ndarray of float64
        Gradient with respect to beta, in the shape of the axes kept.

    Raises
    ------
    ValueError
        If the shape of dy is not that of x, or if ``out`` does not fit.

    See Also
    --------
    batch_norm : What is differentiated.

    Notes
    -----
    A sample of weight 0 has no part in the statistics, but its output is one like any other and has
    gradients, so what stands in it must be finite.

    Examples
    --------
    >>> import numpy as np
    >>> from skbn.functional import batch_norm, batch_norm_backward
    >>> y, saved = batch_norm(np.array([[1.0], [2.0], [3.0]]), epsilon=0.0)
    >>> dx, dgamma, dbeta = batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), saved)
    >>> dgamma.round(3), dbeta
    (array([-1.225]), array([1.]))
    >>> dx.ravel().round(3)  # neither a shift nor a scale of x would change y
    array([ 0.204, -0.408,  0.204])
    """
    x, place = received(saved.x)
    operands = operands_like(x)
    with place:
        dy = operands.array(dy, "dy", x.dtype)
        if dy.shape != x.shape:
            raise ValueError(f"dy has shape {dy.shape}, but x has shape {x.shape}.")
        dx = operands.output(out, x)
        dy, target = operands.packed(dy, saved.axis), dx
        if out is not None and (
            _overlaps_shifted(dx, x, operands) or _overlaps_shifted(dx, dy, operands)
        ):
            target = operands.empty_like(x)
        sums = operands.functions.batch_norm_backward(
            target,
            dy,
            x,
            saved.axis,
            _flat(operands.native(saved.gamma)),
            _flat(operands.native(saved.beta)),
            saved.statistics,
            _activation(saved.activation),
            _ratios(saved.sample_weight),
        )
        if target is not dx:
            dx[...] = target
        dgamma, dbeta = (row.reshape(saved.mean.shape) for row in sums)
        dx = place.give_back(dx) if out is None else out
        return dx, place.give_back(dgamma), place.give_back(dbeta)


def batch_norm_inference(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] | None = -1,
    epsilon: float = 1e-3,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Batch normalization with given statistics, as at prediction.

    ``activation((x - mean) / sqrt(var + epsilon) * gamma + beta)``.

    Parameters
    ----------
    x : array-like
        Input; float32 and float64 are read as they are, all else as float64.
    mean : array-like
        Mean of each entry kept, or one for all.
    var : array-like
        Variance of each entry kept, or one for all; 0 or more.
    gamma : array-like or None, default=None
        Scale of each entry kept, or one for all; None: ones.
    beta : array-like or None, default=None
        Shift of each entry kept, or one for all; None: zeros.
    axis : int, tuple of int or None, default=-1
        The axis or axes that have statistics of their own. None: one mean and variance for all.
    epsilon : float, default=1e-3
        Added to the variance; 0 or more. Where variance and epsilon are both 0, the output is the
        activation of beta.
    activation : str or None, default=None
        Applied to the result; names as in :func:`batch_norm`.
    out : ndarray, default=None
        Where to write the result: an array of the shape and type of x, which may be x.

    Returns
    -------
    y : ndarray
        The result, of the shape and type of x; ``out`` if that was given.

    Raises
    ------
    ValueError
        If a shape does not fit, if a variance is negative, or if a parameter is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from skbn.functional import batch_norm_inference
    >>> batch_norm_inference(np.array([[1.0, 2.0]]), mean=[0.0, 2.0], var=4.0, epsilon=0.0)
    array([[0.5, 0. ]])
    """
    x, place = received(x)
    operands = operands_like(x)
    with place:
        x, axes, kept = _array_and_axes(x, axis, operands, may_be_empty=True)
        given = {"mean": mean, "var": var, "gamma": gamma, "beta": beta}
        mean, var, gamma, beta = (
            _kept(value, name, kept, operands) for name, value in given.items()
        )
        if mean is None or var is None:
            raise ValueError("mean and var must be given; batch_norm takes them from x.")
        if (var < 0).any():
            raise ValueError("var holds negative values.")
        activation, epsilon = _activation(activation), _epsilon(epsilon)
        y = target = operands.output(out, x)
        if out is not None and _overlaps_shifted(y, x, operands):
            target = operands.empty_like(x)
        if x.size:
            operands.functions.batch_norm_forward_eval(
                *(target, x, axes, _flat(gamma), _flat(beta)),
                *(_flat(mean), np.zeros(mean.size), _flat(var), epsilon, activation),
            )
        if target is not y:
            y[...] = target
        return place.give_back(y) if out is None else out


def axes_kept(axis, ndim):
    """Return the axes that keep their own statistics, in ascending order."""
    if axis is None:
        axis = ()
    given = [operator.index(a) for a in (axis if isinstance(axis, tuple | list) else (axis,))]
    for a in given:
        if not -ndim <= a < ndim:
            raise np.exceptions.AxisError(a, ndim, "axis")
    axes = tuple(sorted({a % ndim for a in given}))
    if len(axes) < len(given):
        raise ValueError(f"axis={axis!r} names an axis twice.")
    return axes


def _array_and_axes(x, axis, operands, may_be_empty=False):
    """Return x as an array, the axes kept in ascending order, and their lengths."""
    x = operands.array(x, "x")
    axes = axes_kept(axis, x.ndim)
    if len(axes) == x.ndim:
        raise ValueError(
            f"axis={axis!r} keeps every axis of an array with {x.ndim} of them; one at least must "
            "be left to take statistics over."
        )
    if x.size == 0 and not may_be_empty:
        raise ValueError(f"x is empty: it has shape {x.shape}.")
    return x, axes, tuple(x.shape[a] for a in axes)


def _kept(value, name, kept, operands):
    """Return a parameter as a float64 array in the shape of the axes kept; None stays None."""
    return None if value is None else operands.vector(value, name, kept)


def _flat(value):
    return None if value is None else value.reshape(-1)


def _weights(sample_weight, x, axes):
    """Return the weights of the samples as float64 of NumPy's, or None."""
    if sample_weight is None:
        return None
    if 0 in axes:
        raise ValueError("sample_weight needs the first axis, which holds the samples, reduced.")
    weights = weights_on_host(sample_weight)
    if weights.shape != x.shape[:1]:
        raise ValueError(f"sample_weight has shape {weights.shape}, expected {x.shape[:1]}.")
    if not (weights >= 0).all() or weights.max() == inf:
        raise ValueError("sample_weight holds values that are negative or not finite.")
    if not weights.any():
        raise ValueError("sample_weight is zero for every sample.")
    return weights


def _ratios(weights):
    """Return weights over a power of two, so that no sum overflows and all have an inverse."""
    if weights is None:
        return None
    weights = np.ldexp(weights, -np.frexp(weights.max())[1])
    return np.where(weights < np.finfo(np.float64).tiny, 0.0, weights)


def _epsilon(epsilon):
    epsilon = float(epsilon)
    if not (isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be a finite number, 0 or more, got {epsilon}.")
    return epsilon


def _activation(name):
    try:
        return _ACTIVATIONS["identity" if name is None else name]
    except (KeyError, TypeError):
        raise ValueError(
            f"activation must be None or one of {', '.join(_ACTIVATIONS)}, got {name!r}."
        ) from None


def _overlaps_shifted(out, x, operands):
    """Whether writing into out would overwrite numbers of x that are still to be read."""
    return operands.overlap(out, x) and not (
        operands.address(out) == operands.address(x) and out.strides == x.strides
    )
