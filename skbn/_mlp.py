"""The estimators: parameters, validation, labels, fitted attributes. No arithmetic.

An estimator turns what users give into a network, an optimizer and rows of data, hands them to the
one training loop and takes what comes back as its fitted attributes, all at once at the end: work
goes on in copies, so that a call that fails leaves the estimator exactly as it was.
"""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import warnings
from contextlib import contextmanager
from functools import cache, partial
from inspect import Parameter, signature
from numbers import Integral, Real

import numpy as np
from scipy.sparse import csc_array, csr_array, csr_matrix, issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils import check_array, column_or_1d, compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from skbn._callbacks import EpochTasks
from skbn._folding import folded, folded_for_predictions
from skbn._layers import ACTIVATIONS, BatchNorm, multilayer_perceptron
from skbn._losses import REGRESSION_LOSSES, MultilabelLogLoss, RegressionLoss, log_loss
from skbn._network import Network, architecture
from skbn._persistence import check_consistency, from_document, to_document
from skbn._progress import progress
from skbn._random import WEIGHT_INITS, dropout_key, initialize_weights, seeded
from skbn._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    Options,
    StrOptions,
    accepts_sample_weight,
    check_partial_fit_first_call,
    check_sample_weight,
    fit_context,
    has_callbacks,
    make_constraint,
    plain_mlp,
    with_callbacks,
)
from skbn._training import (
    PLANNED_SCHEDULES,
    SOLVERS,
    History,
    Observers,
    Optimizer,
    Rows,
    diverged,
    train,
    train_lbfgs,
)
from skbn.backends import get_executor

PLACEMENTS = ("input", "before", "after")

# Parameters that only some solvers heed; the others are told so.
HEEDED_BY = {
    "momentum": ("sgd",),
    "nesterovs_momentum": ("sgd",),
    "power_t": ("sgd",),
    "bn_momentum": tuple(SOLVERS),
    "beta_1": ("adam",),
    "beta_2": ("adam", "rmsprop"),
    "epsilon": ("adam", "rmsprop"),
    "max_fun": ("lbfgs",),
} | dict.fromkeys(
    (
        "batch_size",
        "early_stopping",
        "learning_rate",
        "learning_rate_init",
        "max_grad_norm",
        "n_iter_no_change",
        "shuffle",
        "validation_fraction",
    ),
    tuple(SOLVERS),
)

# Fitted attributes of scikit-learn's MLP that have the same meaning here; weights come folded.
PLAIN_ATTRIBUTES = (
    *("n_features_in_", "feature_names_in_", "classes_", "n_outputs_", "out_activation_"),
    *("n_layers_", "n_iter_", "t_", "loss_", "loss_curve_", "best_loss_"),
    *("validation_scores_", "best_validation_score_"),
)


@cache
def _constraints(estimator_class):
    """Return, for every parameter of a class, the checks of which one must pass."""
    return {
        name: [make_constraint(constraint).is_satisfied_by for constraint in alternatives]
        for name, alternatives in estimator_class._parameter_constraints.items()
    }


@cache
def _defaults(estimator_class):
    """Return the default of every parameter that has one."""
    parameters = signature(estimator_class.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not Parameter.empty}


def _readable(X):
    """Return X as executors read it.

    Dense rows are taken as they lie, but for numbers across word boundaries (views of records);
    sparse ones become CSR. Their structure is checked first: conversions and kernels trust it.
    """
    if issparse(X):
        container = csr_array if X.format == "csr" else csc_array
        parts = (np.require(part, requirements="CA") for part in (X.data, X.indices, X.indptr))
        X = container(tuple(parts), shape=X.shape)
        X.check_format(full_check=True)
        return X.tocsr()
    return X if X.flags.aligned else X.copy()


@contextmanager
def _unchanged_on_error(estimator):
    """Put everything back if the block raises, a RandomState of the user's too.

    Arrays need no copies: they are never changed in place. Curves only grow.
    """
    before = vars(estimator).copy()
    curves = estimator._history.curves if hasattr(estimator, "_history") else []
    lengths = [len(curve) for curve in curves]
    random_state = estimator.random_state
    drawn = isinstance(random_state, np.random.RandomState) and random_state.get_state(legacy=False)
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        for curve, length in zip(curves, lengths, strict=True):
            del curve[length:]
        if drawn:
            random_state.set_state(drawn)
        raise


class _BaseMLPBN(CallbackSupportMixin, BaseEstimator):
    """What the classifier and the regressor share: everything but labels and losses."""

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "batch_norm": [str, tuple, list, None],  # _placements looks closer and says it better
        "bn_momentum": [Interval(Real, 0, 1, closed="left"), None],
        "bn_epsilon": [Interval(Real, 0, None, closed="left")],
        "bn_center": ["boolean"],
        "bn_scale": ["boolean"],
        "bn_statistics": [StrOptions({"population", "moving"})],
        "bn_virtual_batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "solver": [StrOptions({"lbfgs", *SOLVERS})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive", *PLANNED_SCHEDULES})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
        ],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "scoring": [StrOptions({"loss", *get_scorer_names()}), callable, None],
        "weight_init": [StrOptions(set(WEIGHT_INITS))],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "device": [StrOptions({"cpu", "cuda"}), None],
    }

    def _validate_params(self):
        """Validate by scikit-learn's constraints, made once a class; defaults are known to pass."""
        defaults = _defaults(type(self))
        for name, checks in _constraints(type(self)).items():
            value = getattr(self, name)
            if value is defaults.get(name, Parameter.empty):  # subclasses may have other ones
                continue
            for check in checks:
                if check(value):
                    break
            else:
                super()._validate_params()  # says which and why

    def _hidden_layer_sizes(self):
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if hasattr(sizes, "__iter__") else [sizes]
        if not all(isinstance(size, Integral) and not isinstance(size, bool) for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be integers, got {sizes}.")
        if any(size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        return sizes

    def _placements(self):
        given = self.batch_norm
        given = () if given is None else (given,) if isinstance(given, str) else tuple(given)
        unknown = [placement for placement in given if placement not in PLACEMENTS]
        if unknown or len(set(given)) != len(given):
            raise ValueError(
                "The 'batch_norm' parameter must be None, 'input', 'before', 'after' or a tuple of "
                f"different ones of these. Got {self.batch_norm!r} instead."
            )
        return given

    def _check_solver(self, incremental):
        """Refuse or report parameters that do not go with the solver."""
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if incremental and self.learning_rate in PLANNED_SCHEDULES:
            raise ValueError(
                f"partial_fit does not support learning_rate={self.learning_rate!r}: the schedule "
                "is planned over max_iter epochs, and partial_fit does not know how many will come."
            )
        if self.solver == "lbfgs":
            for name, off in (("dropout", 0.0), ("bn_virtual_batch_size", None)):
                if getattr(self, name) != off:
                    raise ValueError(
                        f"solver='lbfgs' does not support {name}={getattr(self, name)!r}: it needs "
                        "the same loss whenever it asks for it. Use another solver or "
                        f"{name}={off}."
                    )
        defaults, unheeded = _defaults(type(self)), []
        for name, solvers in HEEDED_BY.items():
            value = getattr(self, name)
            if self.solver not in solvers and value != defaults.get(name, value):
                unheeded.append(f"{name}={value!r}")
        if self.solver in ("adam", "rmsprop") and self.learning_rate in ("invscaling", "adaptive"):
            unheeded.append(f"learning_rate={self.learning_rate!r}")
        if unheeded:
            verb = "has" if len(unheeded) == 1 else "have"
            warnings.warn(
                f"{', '.join(unheeded)} {verb} no effect with solver={self.solver!r}.", stacklevel=2
            )

    def _check_batch_norm_sizes(self, data, layers):
        """Refuse rows and batches that have no variance."""
        if not any(isinstance(layer, BatchNorm) for layer in layers):
            return
        n_samples = len(data.rows)
        if data.weights is not None:
            n_samples = np.count_nonzero(data.weights[data.rows])
        if n_samples < 2:
            raise ValueError(
                f"Found n_samples = {n_samples}, but batch normalization needs two or more "
                "samples: collect more before fitting, or set batch_norm=None."
            )
        for name in ("batch_size", "bn_virtual_batch_size"):
            if getattr(self, name) == 1 and self.solver != "lbfgs":
                raise ValueError(
                    f"{name}=1 cannot be used with batch_norm={self.batch_norm!r}: the variance of "
                    f"one row is 0. Use {name} >= 2 or batch_norm=None."
                )

    def _layers(self, n_features, n_outputs):
        return multilayer_perceptron(
            n_features,
            self._hidden_layer_sizes(),
            n_outputs,
            activation=self.activation,
            placements=self._placements(),
            bn_options={
                "momentum": self.bn_momentum,
                "epsilon": self.bn_epsilon,
                "center": self.bn_center,
                "scale": self.bn_scale,
                "virtual_batch_size": self.bn_virtual_batch_size
                and min(self.bn_virtual_batch_size, 2**62),  # what a record holds
            },
            dropout=self.dropout,
        )

    def _continued_network(self, layers):
        """Return a copy of the fitted network, with what set_params changed about its layers."""
        network = self._network.copy()
        if network.layers == tuple(layers):
            return network
        if architecture(layers) != architecture(network.layers):
            raise ValueError(
                "The fitted network has other layers than hidden_layer_sizes, batch_norm, "
                "bn_center and bn_scale now ask for; training can only go on with the same layers."
            )
        changed = Network(layers, network.dtype)
        changed.assign(network)
        return changed

    def _batch_size(self, n_samples):
        if self.batch_size == "auto":
            return min(200, n_samples)
        if self.batch_size > n_samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. "
                "It is going to be clipped",
                stacklevel=2,
            )
        return min(self.batch_size, n_samples)

    def _weigh_classes(self, targets, weights, incremental):
        """Return the weights that rows have in training, None where they have none."""
        return weights

    def _split(self, data, weights, random_state):
        """Hold out rows for early stopping with scikit-learn's draws; nothing is copied.

        Their scores count by ``weights``, which are those of the rows without those of classes.
        """
        rows, held_out = train_test_split(
            data.rows,
            random_state=random_state,
            test_size=self.validation_fraction,
            stratify=self._stratify(data.targets),
        )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' "
                "or the size of your dataset."
            )
        data, validation = data._replace(rows=rows), data._replace(weights=weights, rows=held_out)
        for name, part in (("training", data), ("validation", validation)):
            if part.weights is not None and not part.weights[part.rows].any():
                raise ValueError(f"All sample weights of the {name} set are zero.")
        return data, validation

    def _validate_weights(self, sample_weight, X, name="sample_weight"):
        """Return weights as float64, or None where there are none."""
        if sample_weight is None:
            return None
        try:
            weights = check_sample_weight(sample_weight, X, dtype=np.float64)
        except ValueError as error:
            raise ValueError(str(error).replace("sample_weight", name)) from error
        if weights.min() < 0:
            raise ValueError(f"Negative values in data passed to `{name}`.")
        weights = np.where(weights < np.finfo(np.float64).tiny, 0.0, weights)  # as kernels do
        if not weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        with np.errstate(over="ignore"):
            total = weights.sum()
        if not np.finfo(np.float64).tiny <= total < np.inf:
            raise ValueError(f"{name} sums up to {total}, by which nothing can be divided.")
        return weights

    def _validate_validation_data(self, X_val, y_val, sample_weight_val, dtype):
        if (X_val is None) != (y_val is None):
            given, missing = ("X_val", "y_val") if y_val is None else ("y_val", "X_val")
            raise ValueError(f"{given} was given without {missing}; give both or neither.")
        if X_val is None:
            if sample_weight_val is not None:
                raise ValueError("sample_weight_val was given without X_val and y_val.")
            return None
        try:
            X_val = _readable(
                validate_data(self, X_val, dtype=dtype, accept_sparse=["csr", "csc"], reset=False)
            )
        except ValueError as error:
            raise ValueError(f"X_val: {error}") from error
        targets = self._validation_targets(y_val, dtype)
        if X_val.shape[0] != len(targets):
            raise ValueError(
                "Found input variables with inconsistent numbers of samples: X_val has "
                f"{X_val.shape[0]}, y_val has {len(targets)}."
            )
        weights = self._validate_weights(sample_weight_val, X_val, "sample_weight_val")
        return Rows(X_val, targets, weights, np.arange(X_val.shape[0], dtype=np.intp))

    def _scorer(self, validation):
        """Return what scores a network on the validation rows: None, "loss" or a function."""
        if validation is None:
            return None
        if self.scoring is None or self.scoring == "loss":
            return self.scoring
        scorer = check_scoring(self, self.scoring)
        rows = validation.rows
        X, y = validation.X[rows], self._labels(validation.targets[rows])
        weights = {}
        if validation.weights is not None and accepts_sample_weight(scorer):
            weights["sample_weight"] = validation.weights[rows]

        def score(network):
            return scorer(self._snapshot(network), X, y, **weights)

        scoring = self.scoring
        is_named = isinstance(scoring, str)
        score.name = scoring if is_named else getattr(scoring, "__name__", type(scoring).__name__)
        return score

    def _snapshot(self, network):
        """Return an estimator that predicts with a network as it is now, for scorers."""
        twin = object.__new__(type(self))
        learned = {"_network": network, "_optimizer": None, "_history": History()}
        vars(twin).update(vars(self), **learned, out_activation_=self._loss.out_activation)
        vars(twin).pop("feature_names_in_", None)  # rows come as arrays
        return twin

    def _fitted_attributes(self, network, optimizer, history):
        """Return what lets callbacks predict as of now, in copies; None if nothing can."""
        if network.first_non_finite_layer() is not None:
            return None
        twin = self._snapshot(network.copy())
        twin._publish(twin._network, optimizer and optimizer.copy(), history.copy())
        return vars(twin)

    def _fit(self, X, y, sample_weight, X_val, y_val, sample_weight_val):
        """Validate and train; on any error the estimator is as it was."""
        with _unchanged_on_error(self), seeded(self.random_state) as random_state:
            data = self._validate_training_data(X, y, sample_weight, incremental=False)
            validation = self._validate_validation_data(
                X_val, y_val, sample_weight_val, data[0].dtype
            )
            given = {"X": X, "y": y, "sample_weight": sample_weight}
            return self._train(*data, validation, random_state, False, given)

    def _partial_fit(self, X, y, sample_weight, **first_call):
        """Validate and train for one epoch; on any error the estimator is as it was."""
        self._validate_params()  # scikit-learn does so before the first call only
        with _unchanged_on_error(self), seeded(self.random_state) as random_state:
            self._check_first_call(**first_call)
            data = self._validate_training_data(X, y, sample_weight, incremental=True)
            given = {"X": X, "y": y, "sample_weight": sample_weight}
            return self._train(*data, None, random_state, True, given)

    def _check_first_call(self):
        """Take what the first call of partial_fit needs to know."""

    @with_callbacks
    def _train(self, X, targets, weights, validation, random_state, incremental, given):
        """Train on validated rows and publish the result; callbacks see the data as given."""
        n_samples, n_features = X.shape
        self._check_solver(incremental)
        layers = self._layers(n_features, self._loss.n_outputs)
        row_weights = self._weigh_classes(targets, weights, incremental)
        if self.scoring is not None and not (incremental or self.early_stopping or validation):
            warnings.warn(
                f"scoring={self.scoring!r} has no effect without validation data or "
                "early_stopping=True.",
                stacklevel=2,
            )
        data = Rows(X, targets, row_weights, np.arange(n_samples, dtype=np.intp))
        self._check_batch_norm_sizes(data, layers)
        if self._is_first_fit(incremental):
            network, history = Network(layers, X.dtype), History()
            initialize_weights(network, self.weight_init, self.activation, random_state)
        else:
            network, history = self._continued_network(layers), self._history.go_on()
        if self.solver != "lbfgs" and self.early_stopping and validation is None:
            data, validation = self._split(data, weights, random_state)
            self._check_batch_norm_sizes(data, layers)
        batch_size = n_samples if self.solver == "lbfgs" else self._batch_size(len(data.rows))
        optimizer = None
        if self.solver != "lbfgs":
            # a rest shorter than min_rows is no batch of its own
            n_batches = -(-(len(data.rows) - network.min_rows + 1) // batch_size)
            optimizer = self._make_optimizer(network, self.max_iter * n_batches, incremental)
        network.use_population = False
        executor = get_executor(self.device)(
            network,
            loss_kind=self._loss.kind,
            alpha=self.alpha,
            batch_size=batch_size,
            dropout_key=dropout_key(random_state) if self.dropout > 0 else (0, 0),
        )
        max_iter = 1 if incremental else self.max_iter
        observers, tasks = Observers(), None
        if self.verbose:
            observers.append(progress(self.verbose, max_iter, validation is not None))
        if has_callbacks(self):
            tasks = EpochTasks(
                self,
                **given,
                rows=np.sort(data.rows) if len(data.rows) < n_samples else None,
                fitted_attributes=partial(self._fitted_attributes, network, optimizer, history),
                task_name="partial_fit" if incremental else "fit",
                max_iter=max_iter,
            )
            observers.append(tasks)
        common = {
            "max_iter": max_iter,
            "tol": self.tol,
            "observers": observers,
            "scorer": self._scorer(validation),
        }
        with executor:
            if self.solver == "lbfgs":
                completed = train_lbfgs(
                    network,
                    executor,
                    self._loss,
                    history,
                    data,
                    validation,
                    max_fun=self.max_fun,
                    **common,
                )
            else:
                completed = train(
                    network,
                    executor,
                    self._loss,
                    optimizer,
                    history,
                    data,
                    validation,
                    shuffle=self.shuffle,
                    random_state=random_state,
                    early_stopping=self.early_stopping,
                    n_iter_no_change=self.n_iter_no_change,
                    incremental=incremental,
                    **common,
                )
            wants_population = self.bn_statistics == "population" and network.batch_norm_indices
            if wants_population and completed and not incremental:
                self._measure_population(executor, network, data)
                if network.first_non_finite_layer() is not None:
                    raise diverged(network, history.n_iter)
        self._publish(network, optimizer, history)
        if tasks:
            tasks.fit_ended()
        return self

    def _make_optimizer(self, network, n_steps, incremental):
        """Return a new optimizer, or a copy of the one that partial_fit goes on with."""
        if incremental and getattr(self, "_optimizer", None) is not None:
            optimizer = self._optimizer.copy()
            if not optimizer.is_planned:  # a plan that fit has carried out leaves no rate
                return optimizer
        return Optimizer(
            network,
            solver=self.solver,
            learning_rate_init=self.learning_rate_init,
            schedule=self.learning_rate,
            power_t=self.power_t,
            momentum=self.momentum,
            nesterovs_momentum=self.nesterovs_momentum,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            max_grad_norm=self.max_grad_norm,
            n_steps=n_steps,
        )

    def _measure_population(self, executor, network, data):
        """Measure the population statistics; if the user interrupts that, keep the moving ones."""
        try:
            executor.update_population_statistics(data.X, data.weights, np.sort(data.rows))
        except KeyboardInterrupt:
            network.use_population = False
            warnings.warn("Training interrupted by user.", stacklevel=2)

    def _is_first_fit(self, incremental):
        return not hasattr(self, "_network") or not (self.warm_start or incremental)

    def _publish(self, network, optimizer, history):
        """Set the fitted attributes."""
        validated = bool(history.validation_scores)
        self._network, self._optimizer, self._history = network, optimizer, history
        self.n_layers_ = len(network.coefs) + 1
        self.n_outputs_ = network.n_outputs
        self.out_activation_ = self._loss.out_activation
        self.n_iter_ = history.n_iter
        self.t_ = history.n_samples_seen
        self.loss_curve_ = history.loss_curve
        self.loss_ = history.loss_curve[-1] if history.loss_curve else np.nan
        self.train_scores_ = history.train_scores
        self.best_loss_ = None if history.watches_validation else history.best_loss
        self.best_iter_ = history.best_iter
        self.validation_scores_ = history.validation_scores if validated else None
        self.validation_loss_curve_ = history.validation_loss_curve if validated else None
        self.best_validation_score_ = history.best_validation_score if validated else None

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_network")

    def __getstate__(self):
        return to_document(super().__getstate__())

    def __setstate__(self, state):
        super().__setstate__(from_document(state, type(self).__name__))
        check_consistency(self)

    @property
    def coefs_(self):
        """Weight matrices."""
        return self._fitted_network("coefs_").coefs

    @property
    def intercepts_(self):
        """Bias vectors."""
        return self._fitted_network("intercepts_").intercepts

    @property
    def batch_norms_(self):
        """Batch normalizations."""
        return self._fitted_network("batch_norms_").batch_norms

    def _fitted_network(self, attribute):
        if not hasattr(self, "_network"):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {attribute!r} before it is fitted"
            )
        return self._network

    def _validate_rows(self, X):
        """Return rows of the features that the network was fitted to."""
        check_is_fitted(self)
        dtype = self._network.dtype
        return _readable(
            validate_data(self, X, dtype=dtype, accept_sparse=["csr", "csc"], reset=False)
        )

    def _raw_outputs(self, X):
        X = self._validate_rows(X)
        return self._run(folded_for_predictions(self._network, X.shape[0]), X)

    def _run(self, network, X):
        with get_executor(self.device)(network) as executor:
            return executor.predict(X)

    def transform_hidden(self, X, layer=-1):
        """Return the activations of a hidden layer, as predictions see them.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to send through the network.

        layer : int, default=-1
            Which hidden layer, as an index of `hidden_layer_sizes`: -1 is the last.

        Returns
        -------
        H : ndarray of shape (n_samples, hidden_layer_sizes[layer])
            What the layer hands on: behind its activation and, with "after", behind its batch
            normalization.
        """
        check_is_fitted(self)
        dense = self._network.dense_indices
        n_hidden = len(dense) - 1
        if n_hidden == 0:
            raise ValueError("There is no hidden layer in this network.")
        if not -n_hidden <= layer < n_hidden:
            raise IndexError(f"layer={layer} is out of range for {n_hidden} hidden layer(s).")
        X = self._validate_rows(X)
        return self._run(self._network.head(dense[layer % n_hidden + 1]), X)

    def fold(self):
        """Return weights in which every batch normalization is folded.

        Returns
        -------
        coefs : list of ndarray of shape (n_in, n_out)
            Weight matrices in float64, one a dense layer.

        intercepts : list of ndarray of shape (n_out,)
            Bias vectors in float64.

        Notes
        -----
        The network ``activation(X @ coefs[0] + intercepts[0]) @ coefs[1] + ...`` has the same
        outputs as this one: the statistics that predictions use, gamma and beta have gone into the
        dense layers in front ("before") or behind ("after", "input"). Dropout does nothing in
        predictions.
        """
        check_is_fitted(self)
        network = folded(self._network)
        return [c.copy() for c in network.coefs], [b.copy() for b in network.intercepts]

    def to_sklearn(self):
        """Return scikit-learn's MLP with the same predictions.

        Returns
        -------
        mlp : MLPClassifier or MLPRegressor
            Fitted as if by scikit-learn, in float64, with batch normalization folded in. It has
            this estimator's parameters as far as scikit-learn knows them, and its defaults for
            others: "adam" for ``solver="rmsprop"``, say. It can go on training with an optimizer of
            its own.

        Raises
        ------
        ValueError
            If scikit-learn has not the activation of the hidden layers, or if one class only is
            known: scikit-learn always has two columns of probabilities.
        """
        coefs, intercepts = self.fold()
        activations = {getattr(layer, "activation", "identity") for layer in self._network.layers}
        params = self.get_params(deep=False) | {
            # The fitted network's, whatever set_params has said since.
            "hidden_layer_sizes": tuple(len(intercept) for intercept in intercepts[:-1]),
            "activation": max(activations - {"identity"}, default="identity"),
        }
        fitted = {name: getattr(self, name) for name in PLAIN_ATTRIBUTES if hasattr(self, name)}
        fitted |= {"coefs_": coefs, "intercepts_": intercepts}
        return plain_mlp(self._plain_class, *copy.deepcopy((params, fitted)))

    def recalibrate(self, X):
        """Measure the population statistics anew on other data; weights stay as they are.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows of the kind that predictions will be asked for.

        Returns
        -------
        self : object
            The estimator, which predicts with the new statistics whatever `bn_statistics` says,
            until it is trained again.

        Raises
        ------
        ValueError
            If the network has no batch normalization, if there are fewer than two rows, or if
            their statistics are not finite. The estimator is then as it was.
        """
        X = self._validate_rows(X)
        if not self._network.batch_norm_indices:
            raise ValueError("There is no batch normalization to recalibrate in this network.")
        data = Rows(X, None, None, np.arange(X.shape[0], dtype=np.intp))
        self._check_batch_norm_sizes(data, self._network.layers)
        network = self._network.copy()
        with get_executor(self.device)(network) as executor:
            executor.update_population_statistics(X, None, data.rows)
        if not np.isfinite(network.state).all():
            raise ValueError(
                "The statistics of X are not finite. The input data may contain large values and "
                "need to be preprocessed."
            )
        self._network = network
        return self


class MLPClassifierBN(ClassifierMixin, _BaseMLPBN):
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
        - "adaptive": divided by 5 whenever training stops to improve; for ``solver="sgd"`` only.
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

    shuffle : bool, default=True
        Whether to shuffle the rows before each epoch.

    random_state : int, RandomState instance or None, default=None
        Source of initial weights, shuffles, the split for early stopping and dropout. The same
        int gives the same initial weights and mini-batches whatever `batch_norm` and `dropout`,
        so placements are compared on equal terms.

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
        Whether to stop when the validation score stops to improve, and to restore the weights and
        statistics of the best epoch. The validation set is `X_val` if given to `fit`, else
        `validation_fraction` of the training rows.

    validation_fraction : float, default=0.1
        Part of the training rows held out for early stopping without `X_val`.

    beta_1 : float, default=0.9
        Decay of the first moment, for ``solver="adam"``.

    beta_2 : float, default=0.999
        Decay of the second moment, for ``solver="adam"`` and ``solver="rmsprop"`` (whose custom
        is 0.9).

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
        is also given ``sample_weight`` where rows have weights and it takes them.

    weight_init : str, default="auto"
        Initial weights: "auto" (scikit-learn's rule, Glorot's uniform bounds for weights and
        biases), "he_uniform", "he_normal", "glorot_uniform", "glorot_normal" or "lecun_normal"
        (biases zero).

    max_grad_norm : float or None, default=None
        Gradients whose Euclidean norm, over all parameters, is larger are scaled down to it.
        Not for "lbfgs".

    device : {None, "cpu", "cuda"}, default=None
        Where to compute. None and "cpu" are the processor; "cuda" is not implemented yet.

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
        One record a batch normalization, in network order: `position`, `layer`, `gamma`, `beta`,
        `moving_mean`, `moving_var`, `population_mean`, `population_var`. The population
        statistics are None where predictions use the moving ones.

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
    >>> from sklearn.datasets import make_circles
    >>> from skbn import MLPClassifierBN
    >>> X, y = make_circles(1000, noise=0.1, random_state=1)
    >>> clf = MLPClassifierBN((50,), random_state=0).fit(X[:500], y[:500])
    >>> clf.score(X[500:], y[500:]) > 0.8
    True
    >>> clf.batch_norms_[0].position
    'after'
    """

    _plain_class = MLPClassifier

    _parameter_constraints: dict = {
        **_BaseMLPBN._parameter_constraints,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        batch_norm="after",
        bn_momentum=0.9,
        bn_epsilon=1e-3,
        bn_center=True,
        bn_scale=True,
        bn_statistics="population",
        bn_virtual_batch_size=None,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        dropout=0.0,
        class_weight=None,
        scoring=None,
        weight_init="auto",
        max_grad_norm=None,
        device=None,
    ):
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
        check_partial_fit_first_call(self, classes)

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
        X, y = validate_data(
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
        X = _readable(X)
        return X, self._targets(y, X.dtype), self._validate_weights(sample_weight, X)

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
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
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
        return self._fit(X, y, sample_weight, X_val, y_val, sample_weight_val)

    @available_if(lambda self: self.solver != "lbfgs")
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
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

    def predict(self, X):
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
        raw = self._raw_outputs(X)
        decided = self._loss.decide(raw)
        if self._is_multilabel:
            return csr_matrix(decided) if self._gives_sparse_labels else decided
        return self.classes_[decided]

    def predict_proba(self, X):
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
        raw = self._raw_outputs(X)
        return self._loss.predict_proba(raw)

    def predict_log_proba(self, X):
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
        raw = self._raw_outputs(X)
        return self._loss.predict_log_proba(raw)


class MLPRegressorBN(RegressorMixin, _BaseMLPBN):
    """Multi-layer perceptron regressor with batch normalization.

    With ``batch_norm=None`` it is scikit-learn's
    :class:`~sklearn.neural_network.MLPRegressor`, number for number where there is one output;
    every parameter of that class has its name, default and meaning here.

    Parameters
    ----------
    loss : {"squared_error", "poisson", "absolute_error", "huber"}, default="squared_error"
        What training minimizes, a mean over the rows:

        - "squared_error": half the squared error, the mean over the outputs.
        - "poisson": half the Poisson deviance, the sum over the outputs; predictions are
          exponentials, `y` must not be negative.
        - "absolute_error": the mean over the outputs; predictions tend to the median.
        - "huber": squared where the error is less than 1, in the units of `y`, and linear beyond
          [5]_; the mean over the outputs.

        The scale of `y` is the user's: see
        :class:`~sklearn.compose.TransformedTargetRegressor` to standardize it.

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
        - "adaptive": divided by 5 whenever training stops to improve; for ``solver="sgd"`` only.
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

    shuffle : bool, default=True
        Whether to shuffle the rows before each epoch.

    random_state : int, RandomState instance or None, default=None
        Source of initial weights, shuffles, the split for early stopping and dropout. The same
        int gives the same initial weights and mini-batches whatever `batch_norm` and `dropout`,
        so placements are compared on equal terms.

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
        Whether to stop when the validation score stops to improve, and to restore the weights and
        statistics of the best epoch. The validation set is `X_val` if given to `fit`, else
        `validation_fraction` of the training rows.

    validation_fraction : float, default=0.1
        Part of the training rows held out for early stopping without `X_val`.

    beta_1 : float, default=0.9
        Decay of the first moment, for ``solver="adam"``.

    beta_2 : float, default=0.999
        Decay of the second moment, for ``solver="adam"`` and ``solver="rmsprop"`` (whose custom
        is 0.9).

    epsilon : float, default=1e-8
        Added to the root of the second moment, for ``solver="adam"`` and ``solver="rmsprop"``.

    n_iter_no_change : int, default=10
        Epochs without improvement after which training stops; ``numpy.inf`` for never.

    max_fun : int, default=15000
        Function evaluations at most, for ``solver="lbfgs"``.

    dropout : float, default=0.0
        Probability that a hidden unit is dropped in training, behind the activation (behind its
        batch normalization with "after").

    scoring : {"loss"}, str, callable or None, default=None
        What `validation_scores_` hold and early stopping watches: None is R2, "loss"
        minus the loss, else the name of a scorer or a callable ``scorer(estimator, X, y)``, which
        is also given ``sample_weight`` where rows have weights and it takes them.

    weight_init : str, default="auto"
        Initial weights: "auto" (scikit-learn's rule, Glorot's uniform bounds for weights and
        biases), "he_uniform", "he_normal", "glorot_uniform", "glorot_normal" or "lecun_normal"
        (biases zero).

    max_grad_norm : float or None, default=None
        Gradients whose Euclidean norm, over all parameters, is larger are scaled down to it.
        Not for "lbfgs".

    device : {None, "cpu", "cuda"}, default=None
        Where to compute. None and "cpu" are the processor; "cuda" is not implemented yet.

    Attributes
    ----------
    coefs_ : list of ndarray of shape (n_in, n_out)
        Weight matrices, one a dense layer. Batch normalization is not folded in; see `fold`.

    intercepts_ : list of ndarray of shape (n_out,)
        Bias vectors. Those in front of a batch normalization ("before") are never trained, because
        the mean subtraction cancels them.

    batch_norms_ : list of BatchNormRecord
        One record a batch normalization, in network order: `position`, `layer`, `gamma`, `beta`,
        `moving_mean`, `moving_var`, `population_mean`, `population_var`. The population
        statistics are None where predictions use the moving ones.

    loss_ : float
        Loss of the last epoch, measured in training mode, penalty included.

    best_loss_ : float or None
        Lowest loss of an epoch; None with early stopping.

    loss_curve_ : list of float
        Loss after each epoch.

    train_scores_ : list of float
        R2 of each epoch in training mode: on the mini-batches, while they are trained on.

    validation_scores_ : list of float or None
        R2, or what `scoring` asks for, on the validation set after each epoch, with the moving
        statistics (so the last need not equal `score`, which uses the population statistics); NaN
        for epochs of earlier or later calls without a validation set; None if there never was one.

    validation_loss_curve_ : list of float or None
        Loss on the validation set after each epoch, without penalty.

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
        Number of outputs.

    out_activation_ : {"identity", "exp"}
        Activation of the output.

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during `fit`, where all are strings.

    See Also
    --------
    MLPClassifierBN : The classifier.
    sklearn.neural_network.MLPRegressor : The same without batch normalization.
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
    .. [5] P. J. Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical
       Statistics 35 (1964). :doi:`10.1214/aoms/1177703732`

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> from skbn import MLPRegressorBN
    >>> X, y = make_regression(500, n_features=5, noise=10, random_state=0)
    >>> reg = MLPRegressorBN(learning_rate_init=0.01, random_state=0).fit(X[:400], y[:400])
    >>> reg.score(X[400:], y[400:]) > 0.9
    True
    """

    _plain_class = MLPRegressor

    _parameter_constraints: dict = {
        **_BaseMLPBN._parameter_constraints,
        "loss": [StrOptions(set(REGRESSION_LOSSES))],
    }

    def __init__(
        self,
        loss="squared_error",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        batch_norm="after",
        bn_momentum=0.9,
        bn_epsilon=1e-3,
        bn_center=True,
        bn_scale=True,
        bn_statistics="population",
        bn_virtual_batch_size=None,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        dropout=0.0,
        scoring=None,
        weight_init="auto",
        max_grad_norm=None,
        device=None,
    ):
        self.loss = loss
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
        self.scoring = scoring
        self.weight_init = weight_init
        self.max_grad_norm = max_grad_norm
        self.device = device

    @property
    def _loss(self):
        return RegressionLoss(self.loss, self.n_outputs_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _validate_training_data(self, X, y, sample_weight, incremental):
        first_fit = self._is_first_fit(incremental)
        if issparse(y):
            check_array(y, input_name="y")  # refuses it; for several outputs validate_data does not
        X, y = validate_data(
            self,
            X,
            y,
            dtype=(np.float64, np.float32) if first_fit else self._network.dtype,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            reset=first_fit,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if first_fit:
            self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]
        X = _readable(X)
        return X, self._targets(y, X.dtype), self._validate_weights(sample_weight, X)

    def _targets(self, y, dtype, name="y"):
        """Return targets of the network's type, one column an output."""
        n_outputs = 1 if y.ndim == 1 else y.shape[1]
        if n_outputs != self.n_outputs_:
            raise ValueError(
                f"{name} has {n_outputs} outputs, but the network has {self.n_outputs_}."
            )
        if self.loss == "poisson" and y.min() < 0:
            raise ValueError(
                f"Some value(s) of {name} are out of the valid range of the loss 'poisson': they "
                "must not be negative."
            )
        with np.errstate(over="ignore"):
            targets = np.ascontiguousarray(y, dtype=dtype)
        if not np.isfinite(targets).all():
            raise ValueError(f"Input {name} contains infinity or a value too large for {dtype!r}.")
        return targets

    def _labels(self, targets):
        """Undo ``_targets``."""
        return targets

    def _stratify(self, targets):
        return None

    def _validation_targets(self, y_val, dtype):
        y_val = check_array(y_val, ensure_2d=False, dtype="numeric", input_name="y_val")
        if y_val.ndim == 2 and y_val.shape[1] == 1:
            y_val = column_or_1d(y_val, warn=True)
        return self._targets(y_val, dtype, "y_val")

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Fit the network to rows and their targets.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows; float32 is computed in float32, anything else in float64.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.

        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows: a row of weight 2 counts as if it were there twice, in the
            statistics of batch normalization too; one of weight 0 does not count.

        X_val : {array-like, sparse matrix} of shape (n_val_samples, n_features), default=None
            Validation rows, scored after each epoch. They change nothing, unless
            ``early_stopping=True``: then they take the place of the split.

        y_val : array-like of shape (n_val_samples,) or (n_val_samples, n_outputs), default=None
            Targets of `X_val`.

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
        return self._fit(X, y, sample_weight, X_val, y_val, sample_weight_val)

    @available_if(lambda self: self.solver != "lbfgs")
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Train for one epoch on the given rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.

        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

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
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X):
        """Predict the targets of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to predict for.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions, one column an output where there are several.
        """
        raw = self._raw_outputs(X)
        if self.out_activation_ == "exp":
            raw = np.exp(raw)
        return raw.ravel() if raw.shape[1] == 1 else raw
