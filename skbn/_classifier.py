"""The classifier: labels and class weights."""
# SPDX-License-Identifier: BSD-3-Clause

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.neural_network import MLPClassifier
from sklearn.utils import check_array, column_or_1d, compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from skbn._devices import on_host, taken, validator
from skbn._losses import MultilabelLogLoss, log_loss
from skbn._mlp import BaseMLPBN, readable_rows, validated_weights
from skbn._sklearn_compat import (
    StrOptions,
    available_if,
    check_partial_fit_first_call,
    fit_context,
)

if TYPE_CHECKING:
    from skbn._typing import Array, ArrayLike, ClassWeight, MatrixLike, RandomState, Scoring


class MLPClassifierBN(ClassifierMixin, BaseMLPBN):
    """Multi-layer perceptron classifier with batch normalization.

    It minimizes the log loss. With ``batch_norm=None`` it is
    scikit-learn's :class:`~sklearn.neural_network.MLPClassifier`, number for number; every
    parameter of that class has its name, default and meaning here.

    Parameters
    ----------
    hidden_layer_sizes : array-like of int, default=(100,)
        Number of units of each hidden layer.

    activation : {"identity", "logistic", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", \
            "silu", "softplus"}, default="relu"
        Activation of the hidden layers, a function of each unit's z:

        - "identity": z.
        - "logistic": 1 / (1 + exp(-z)).
        - "tanh": tanh(z).
        - "relu": max(z, 0).
        - "leaky_relu": z above 0 and 0.01 z below (Maas et al., 2013; the slope is PyTorch's).
        - "elu": z above 0 and exp(z) - 1 below (Clevert et al., 2016).
        - "selu": ELU by the two factors that keep mean 0 and variance 1 (Klambauer et al., 2017),
          made for ``weight_init="lecun_normal"``.
        - "gelu": z times the normal distribution function at z (Hendrycks and Gimpel, 2016).
        - "silu": z / (1 + exp(-z)), also called swish (Elfwing et al., 2018).
        - "softplus": log(1 + exp(z)) (Dugas et al., 2001).

    batch_norm : {"input", "before", "after"}, tuple of these or None, default="after"
        Where batch normalization stands:

        - "input": on ``X`` itself.
        - "before": between a dense layer and its activation, as in [1]_.
        - "after": behind the activation.
        - a tuple: in several places, e.g. ``("input", "after")``.
        - None: nowhere.

        The output layer is never normalized, so without hidden layers there is nothing to
        normalize but the input.

    bn_momentum : float or None, default=0.9
        Fraction of the moving statistics that is *retained* at each mini-batch, in [0, 1), as in
        Keras (PyTorch's momentum is one minus this). None weighs every mini-batch so far equally.
        With `bn_virtual_batch_size`, every virtual batch counts as one.

    bn_epsilon : float, default=1e-3
        Added to the variance before the square root is taken; 0 is allowed.

    bn_center : bool, default=True
        Whether to learn a shift, beta.

    bn_scale : bool, default=True
        Whether to learn a scale, gamma.

    bn_statistics : {"population", "moving"}, default="population"
        What predictions normalize with: mean and variance over all training rows, measured once
        when `fit` ends, or the moving averages over mini-batches. `partial_fit` never sees all
        rows and always leaves the moving ones in use; see `recalibrate`.

    bn_virtual_batch_size : int or None, default=None
        Number of rows that share statistics in training ("ghost batch normalization" [2]_). None:
        the whole mini-batch.

    solver : {"sgd", "adam", "rmsprop", "lbfgs"}, default="adam"
        Optimizer. "lbfgs" takes all rows at once, so the statistics of its batch are the
        population's; it supports neither dropout nor virtual batches.

    alpha : float, default=0.0001
        L2 penalty on the weights; biases, gamma and beta are never penalized. The penalty is
        divided by the number of rows of the mini-batch.

    batch_size : int or "auto", default="auto"
        Rows in a mini-batch; "auto" is ``min(200, n_samples)``. Where batch normalization is on, a
        last mini-batch of a single row joins the one before it.

    learning_rate : {"constant", "invscaling", "adaptive", "cosine", "onecycle"}, \
            default="constant"
        Schedule of the learning rate:

        - "constant": `learning_rate_init`.
        - "invscaling": divided by ``t ** power_t``; for ``solver="sgd"`` only.
        - "adaptive": divided by 5 whenever training stops improving; for ``solver="sgd"`` only.
        - "cosine": down to 0 along half a cosine over `max_iter` epochs [3]_.
        - "onecycle": up from 1/25 of `learning_rate_init` to all of it over the first 30% of
          `max_iter` epochs, then down to 4e-6 of it, along half cosines [4]_.

        The last two move with every mini-batch. They are planned over `max_iter` epochs: if
        training should not stop before these are done, set ``n_iter_no_change=numpy.inf``.

    learning_rate_init : float, default=0.001
        Learning rate to begin with; for "onecycle" the largest.

    power_t : float, default=0.5
        Exponent of "invscaling".

    max_iter : int, default=200
        Number of epochs at most.

    shuffle : bool or "blocks", default=True
        Whether to shuffle the rows before each epoch. "blocks" is for an `X` on disk that does not
        fit in memory: blocks of consecutive rows, 8 MiB each, are shuffled, and then the rows of
        every 32 blocks that follow each other. Where `X` is sorted, shuffle it once before.

    random_state : int, RandomState instance or None, default=None
        Source of initial weights, shuffles, the split for early stopping and dropout. The same
        int gives the same initial weights and mini-batches whatever `batch_norm` and `dropout`
        (but for the output layer, see `weight_init`), so placements are compared on equal terms.

    tol : float, default=1e-4
        Improvement of the loss (or of the validation score) below which an epoch counts as
        without improvement.

    verbose : bool or int, default=False
        Whether to print loss and validation score after each epoch. With 2 or more a progress bar
        takes the place of these lines, where stdout is a terminal.

    warm_start : bool, default=False
        Whether `fit` goes on from the weights of the previous call.

    momentum : float, default=0.9
        Momentum of ``solver="sgd"``, in [0, 1].

    nesterovs_momentum : bool, default=True
        Whether momentum of ``solver="sgd"`` is Nesterov's.

    early_stopping : bool, default=False
        Whether to stop when the validation score stops improving, and to restore the weights and
        statistics of the best epoch. The validation set is `X_val` if given to `fit`, else
        `validation_fraction` of the training rows.

    validation_fraction : float, default=0.1
        Part of the training rows held out for early stopping without `X_val`.

    beta_1 : float, default=0.9
        Decay of the first moment, for ``solver="adam"``.

    beta_2 : float, default=0.999
        Decay of the second moment, for ``solver="adam"`` and ``solver="rmsprop"`` (where 0.9
        is usual).

    epsilon : float, default=1e-8
        Added to the root of the second moment, for ``solver="adam"`` and ``solver="rmsprop"``.

    n_iter_no_change : int, default=10
        Epochs without improvement after which training stops; ``numpy.inf`` for never.

    max_fun : int, default=15000
        Function evaluations at most, for ``solver="lbfgs"``.

    dropout : float, default=0.0
        Probability that a hidden unit is dropped in training, behind the activation (behind its
        batch normalization with "after").

    class_weight : dict, list of dict, "balanced" or None, default=None
        Weights of the classes, which multiply the weights of their rows in training and so also
        shift the statistics of batch normalization; validation scores do not count them.
        "balanced": inversely proportional to the frequencies of the classes. A list: one dict a
        label, for multilabel `y`.

    scoring : {"loss"}, str, callable or None, default=None
        What `validation_scores_` hold and early stopping watches: None is the accuracy, "loss"
        minus the loss, else the name of a scorer or a callable ``scorer(estimator, X, y)``, which
        is also given ``sample_weight`` where rows have weights and it takes them. Labels and
        predictions are NumPy arrays there, also where `X` lies on a card.

    weight_init : str, default="auto"
        Initial weights: "auto" (scikit-learn's rule, Glorot's uniform bounds for weights and
        biases; but with "after", behind a batch norm, the output layer starts at zero),
        "he_uniform", "he_normal", "glorot_uniform", "glorot_normal" or "lecun_normal" (biases
        zero).

    max_grad_norm : float or None, default=None
        Gradients whose Euclidean norm, over all parameters, is larger are scaled down to it.
        Not for "lbfgs".

    device : {None, "cpu", "cuda"}, default=None
        Where to compute; None is where `X` lies. "cuda" is CuPy's current card, to which an `X` in
        NumPy is copied. An `X` that lies on a card (CuPy's, or another library's by DLPack) stays
        there, and results are on that card and of that library. Labels that are not numbers, and
        all fitted attributes, are NumPy's, so a model predicts on either device, whichever it was
        fitted on. `y` and weights may lie on either side and are read on the processor.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.

    coefs_ : list of ndarray of shape (n_in, n_out)
        Weight matrices, one a dense layer. Batch normalization is not folded in; see `fold`.

    intercepts_ : list of ndarray of shape (n_out,)
        Bias vectors. Those in front of a batch normalization ("before") are never trained, because
        the mean subtraction cancels them.

    batch_norms_ : list of BatchNormRecord
        One record a norm, in network order, a named tuple. `position`: "input", "before" or
        "after". `layer`: index of the hidden layer; -1 for the input. `gamma`, `beta`: scale and
        shift of shape (n_units,); ones and zeros where they are not learned. `moving_mean`,
        `moving_var`: bias-corrected moving statistics of the mini-batches; the variance is the
        biased one. `population_mean`, `population_var`: those of all training rows; None where
        predictions use the moving ones.

    loss_ : float
        Loss of the last epoch, measured in training mode, penalty included.

    best_loss_ : float or None
        Lowest loss of an epoch; None with early stopping.

    loss_curve_ : list of float
        Loss after each epoch.

    train_scores_ : list of float
        Accuracy of each epoch in training mode: on the mini-batches, while they are trained on.

    validation_scores_ : list of float or None
        Accuracy, or what `scoring` asks for, on the validation set after each epoch, with the
        moving statistics (so the last need not equal `score`, which uses the population
        statistics); NaN for epochs of earlier or later calls without a validation set; None if
        there never was one.

    validation_loss_curve_ : list of float or None
        Log loss on the validation set after each epoch, without penalty.

    best_validation_score_ : float or None
        Highest of `validation_scores_`.

    best_iter_ : int
        Epoch, counted from 1 along `loss_curve_`, of the best validation score with early
        stopping, else of the lowest loss.

    n_iter_ : int
        Epochs done by the last call.

    t_ : int
        Training rows seen, repetitions counted.

    n_layers_ : int
        Number of layers, input and output included.

    n_outputs_ : int
        Number of outputs: 1 for two classes.

    out_activation_ : {"logistic", "softmax"}
        Activation of the output.

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during `fit`, where all are strings.

    See Also
    --------
    sklearn.neural_network.MLPClassifier : The same without batch normalization.
    MLPRegressorBN : The regressor.
    fit_many : Fits many estimators in one call.
    TrainingCurveDisplay : Draws the training and validation curves.

    Notes
    -----
    Computation is in the type of `X`: float32 stays float32. Statistics are float64 always.

    From scikit-learn 1.9 on, `set_callbacks` takes what :mod:`sklearn.callback` has: `fit` is a
    task, with one task in it for each epoch. The estimators that callbacks see there have the
    weights of that epoch and predict with the moving statistics. A callback may end training.

    In a Pipeline, `X_val` has to go through the steps before this one:
    ``Pipeline(..., transform_input=["X_val"])`` does that where metadata routing is on and
    ``set_fit_request(X_val=True, y_val=True)`` asks for it. Beware of `GridSearchCV`: it slices
    every fit parameter that has as many rows as `X`, an `X_val` of that length included.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
       Reducing Internal Covariate Shift", ICML 2015. :arxiv:`1502.03167`
    .. [2] E. Hoffer, I. Hubara and D. Soudry, "Train longer, generalize better", NIPS 2017.
       :arxiv:`1705.08741`
    .. [3] I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
       ICLR 2017. :arxiv:`1608.03983`
    .. [4] L. N. Smith and N. Topin, "Super-Convergence: Very Fast Training of Neural Networks
       Using Large Learning Rates", 2017. :arxiv:`1708.07120`

    Examples
    --------
    Fit, predict, and see where batch normalization stands:

    >>> from sklearn.datasets import make_circles
    >>> from skbn import MLPClassifierBN
    >>> X, y = make_circles(1000, noise=0.1, random_state=1)
    >>> X_train, X_test, y_train, y_test = X[:500], X[500:], y[:500], y[500:]
    >>> clf = MLPClassifierBN((50,), random_state=0).fit(X_train, y_train)
    >>> clf.predict(X_test).shape, clf.predict_proba(X_test).shape
    ((500,), (500, 2))
    >>> clf.score(X_test, y_test) > 0.8
    True
    >>> clf.batch_norms_
    [BatchNormRecord(position='after', layer=0, 50 units)]

    Stop on rows of one's own, and get the best epoch back:

    >>> clf = MLPClassifierBN((50,), batch_norm=("input", "before"), early_stopping=True)
    >>> clf = clf.fit(X_train, y_train, X_val=X_test, y_val=y_test)
    >>> clf.best_validation_score_ == max(clf.validation_scores_)
    True

    Learn from pieces, then measure the statistics on rows that stand for all:

    >>> clf = MLPClassifierBN((50,), random_state=0)
    >>> for piece in range(5):
    ...     clf = clf.partial_fit(X_train[piece::5], y_train[piece::5], classes=[0, 1])
    >>> clf = clf.recalibrate(X_train)

    Take the network out: activations, plain weights, an MLP of scikit-learn's:

    >>> clf.transform_hidden(X_test).shape
    (500, 50)
    >>> coefs, intercepts = clf.fold()
    >>> clf.to_sklearn().score(X_test, y_test) == clf.score(X_test, y_test)
    True
    """

    classes_: Array

    _plain_class = MLPClassifier

    _parameter_constraints: dict = {
        **BaseMLPBN._parameter_constraints,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: ArrayLike = (100,),
        activation: str = "relu",
        *,
        batch_norm: str | Sequence[str] | None = "after",
        bn_momentum: float | None = 0.9,
        bn_epsilon: float = 1e-3,
        bn_center: bool = True,
        bn_scale: bool = True,
        bn_statistics: str = "population",
        bn_virtual_batch_size: int | None = None,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool | str = True,
        random_state: RandomState = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        class_weight: ClassWeight = None,
        scoring: Scoring = None,
        weight_init: str = "auto",
        max_grad_norm: float | None = None,
        device: str | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.batch_norm = batch_norm
        self.bn_momentum = bn_momentum
        self.bn_epsilon = bn_epsilon
        self.bn_center = bn_center
        self.bn_scale = bn_scale
        self.bn_statistics = bn_statistics
        self.bn_virtual_batch_size = bn_virtual_batch_size
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.class_weight = class_weight
        self.scoring = scoring
        self.weight_init = weight_init
        self.max_grad_norm = max_grad_norm
        self.device = device

    @property
    def _loss(self):
        n_classes = len(self.classes_)
        return MultilabelLogLoss(n_classes) if self._is_multilabel else log_loss(n_classes)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _check_first_call(self, classes):
        check_partial_fit_first_call(self, on_host(classes))

    def _check_labels(self, y):
        """Return labels as one column or as an indicator matrix, or say why they are neither."""
        if y.ndim == 2 and y.shape[1] == 1 and not issparse(y):
            y = column_or_1d(y, warn=True)
        if y.ndim == 1 and y.dtype.kind in "biuU":
            return y  # integers and strings always are classes; asking takes 80 us
        check_classification_targets(y)
        if y.ndim != 1 and not type_of_target(y).startswith("multilabel"):
            raise ValueError("Multioutput target data is not supported with label binarization")
        return y

    def _check_known_classes(self, y):
        """Refuse labels that training cannot continue with; scikit-learn's words."""
        classes = np.unique(y) if y.ndim == 1 else unique_labels(y)
        if (y.ndim == 2) != self._is_multilabel:
            was = "was" if self._is_multilabel else "was not"
            raise ValueError(f"The object {was} fitted with multilabel input.")
        if self.warm_start:
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous "
                    f"call to fit. Previously got {self.classes_}, `y` has {classes}"
                )
        elif len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                f"'y' has {classes}."
            )
        if self._is_multilabel and y.shape[1] != len(self.classes_):
            raise ValueError(
                f"classes {self.classes_} mismatch with the labels {classes} found in the data"
            )

    def _validate_training_data(self, X, y, sample_weight, incremental):
        first_fit = self._is_first_fit(incremental)
        X, y = validator(X)(
            self,
            X,
            y,
            dtype=(np.float64, np.float32) if first_fit else self._network.dtype,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            reset=first_fit,
        )
        y = self._check_labels(y)
        if first_fit:
            self._is_multilabel, self._gives_sparse_labels = y.ndim == 2, issparse(y)
            if not incremental:
                self.classes_ = np.arange(y.shape[1]) if self._is_multilabel else np.unique(y)
        if not first_fit or incremental:
            self._check_known_classes(y)
        X = readable_rows(X)
        return X, self._targets(y, X.dtype), validated_weights(sample_weight, y)

    def _weigh_classes(self, targets, weights, incremental):
        """Return the weights of the rows, times those of their classes."""
        if self.class_weight is None:
            return weights
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit. In order to use "
                "'balanced' weights, use compute_class_weight('balanced', classes=classes, y=y). "
                "In place of y you can use a large enough sample of the full training set target "
                "to properly estimate the class frequency distributions. Pass the resulting "
                "weights as the class_weight parameter."
            )

        y = self._labels(targets)

        def by_class(classes, y):
            of_classes = compute_class_weight(
                self.class_weight, classes=classes, y=y, sample_weight=weights
            )
            return of_classes[np.searchsorted(classes, y)]

        with np.errstate(divide="ignore", invalid="ignore"):  # of classes without any weight
            if not self._is_multilabel:
                of_rows = by_class(self.classes_, y)
            elif self.class_weight == "balanced":  # by weight, as it is for classes
                of_rows = np.prod([by_class(np.unique(column), column) for column in y.T], axis=0)
            else:
                of_rows = compute_sample_weight(self.class_weight, y)
            if weights is not None:
                of_rows = np.where(weights > 0, of_rows * weights, 0.0)
        if not np.isfinite(of_rows).all() or of_rows.min() < 0 or not of_rows.any():
            raise ValueError(
                "class_weight must be finite and not negative, nor 0 for all classes in `y`."
            )
        return of_rows

    def _targets(self, y, dtype):
        """Return the codes of the classes, or the indicator matrix."""
        if not self._is_multilabel:
            return np.searchsorted(self.classes_, y).astype(dtype)
        return np.ascontiguousarray((y.toarray() if issparse(y) else y) != 0, dtype=dtype)

    def _labels(self, targets):
        """Undo ``_targets``."""
        codes = targets.astype(np.intp)
        return codes if self._is_multilabel else self.classes_[codes]

    def _stratify(self, targets):
        return targets if self._loss.n_outputs == 1 else None  # as scikit-learn does

    def _validation_targets(self, y_val, dtype):
        if self._is_multilabel:
            if not issparse(y_val):
                y_val = check_array(y_val, ensure_2d=False, dtype=None, input_name="y_val")
            if not type_of_target(y_val, input_name="y_val").startswith("multilabel"):
                raise ValueError("y_val must be multilabel, as `y` is.")
            if y_val.shape[1] != len(self.classes_):
                raise ValueError(
                    f"y_val has {y_val.shape[1]} labels, `y` has {len(self.classes_)}."
                )
            return self._targets(y_val, dtype)
        y_val = column_or_1d(y_val, warn=True)
        unknown = np.setdiff1d(y_val, self.classes_)
        if len(unknown):
            raise ValueError(f"`y_val` has classes that `y` has not: {unknown}.")
        return self._targets(y_val, dtype)

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: MatrixLike,
        y: MatrixLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: MatrixLike | None = None,
        y_val: MatrixLike | None = None,
        sample_weight_val: ArrayLike | None = None,
    ) -> Self:
        """Fit the network to labelled rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows; float32 is computed in float32, anything else in float64.

        y : {array-like, sparse matrix} of shape (n_samples,) or (n_samples, n_labels)
            Class labels, or an indicator matrix of zeros and ones (multilabel).

        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows: a row of weight 2 counts as if it were there twice, in the
            statistics of batch normalization too; one of weight 0 does not count.

        X_val : {array-like, sparse matrix} of shape (n_val_samples, n_features), default=None
            Validation rows, scored after each epoch. They change nothing, unless
            ``early_stopping=True``: then they take the place of the split.

        y_val : array-like of shape (n_val_samples,) or (n_val_samples, n_labels), default=None
            Labels of `X_val`.

        sample_weight_val : array-like of shape (n_val_samples,), default=None
            Weights of the validation rows.

        Returns
        -------
        self : object
            Fitted estimator.

        Raises
        ------
        ValueError
            If the data or a parameter is not usable, or if training diverges. The estimator is then
            as it was before the call.
        """
        self._fit(X, y, sample_weight, X_val, y_val, sample_weight_val)
        return self

    @available_if(lambda self: self.solver != "lbfgs")
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: MatrixLike,
        y: MatrixLike,
        sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Self:
        """Train for one epoch on the given rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows.

        y : {array-like, sparse matrix} of shape (n_samples,) or (n_samples, n_labels)
            Class labels, or an indicator matrix.

        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        classes : array-like of shape (n_classes,), default=None
            All classes that will ever occur. Needed at the first call only.

        Returns
        -------
        self : object
            Trained estimator, which predicts with the moving statistics until `recalibrate`.

        Raises
        ------
        ValueError
            If the data or a parameter is not usable, or if training diverges. The estimator is then
            as it was before the call.
        """
        return self._partial_fit(X, y, sample_weight, classes=classes)

    def predict(self, X: MatrixLike) -> Array:
        """Predict the class of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to classify.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_labels)
            Predicted classes; a sparse indicator matrix where that is what `fit` was given.
        """

        def decide(raw):
            decided = self._loss.decide(raw)
            return decided if self._is_multilabel else taken(self.classes_, decided)

        y = self._predict(X, decide)
        is_sparse = self._is_multilabel and self._gives_sparse_labels and isinstance(y, np.ndarray)
        return csr_matrix(y) if is_sparse else y

    def score(self, X: MatrixLike, y: MatrixLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on the given rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to classify.

        y : {array-like, sparse matrix} of shape (n_samples,) or (n_samples, n_labels)
            True labels.

        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        score : float
            Share of the rows whose label, or all of whose labels, are predicted.
        """
        y, y_pred, sample_weight = map(on_host, (y, self.predict(X), sample_weight))
        return accuracy_score(y, y_pred, sample_weight=sample_weight)

    def predict_proba(self, X: MatrixLike) -> Array:
        """Predict the probability of each class.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to classify.

        Returns
        -------
        y_prob : ndarray of shape (n_samples, n_classes)
            Probabilities, columns in the order of `classes_`; multilabel: of every label.
        """
        return self._predict(X, lambda raw: self._loss.predict_proba(raw))

    def predict_log_proba(self, X: MatrixLike) -> Array:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to classify.

        Returns
        -------
        log_y_prob : ndarray of shape (n_samples, n_classes)
            Log-probabilities, from the logits: never minus infinity for finite logits.
        """
        return self._predict(X, lambda raw: self._loss.predict_log_proba(raw))
