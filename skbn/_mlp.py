"""What classifier and regressor share: parameters, validation, fitted attributes. No arithmetic.

An estimator turns what users give into a network, an optimizer and rows of data, hands them to the
one training loop and takes what comes back as its fitted attributes, all at once at the end: work
goes on in copies, so that a call that fails leaves the estimator exactly as it was.
"""
# SPDX-License-Identifier: BSD-3-Clause

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from functools import cache, partial
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from scipy.sparse import csc_array, csr_array, issparse
from sklearn.base import BaseEstimator
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.model_selection import train_test_split
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted

from skbn._callbacks import EpochTasks
from skbn._devices import check_same_place, on_host, received, resolved, validator
from skbn._folding import folded, folded_for_predictions
from skbn._layers import ACTIVATIONS, BatchNorm, multilayer_perceptron
from skbn._network import BatchNormRecord, Network, architecture
from skbn._progress import progress
from skbn._random import WEIGHT_INITS, dropout_key, initialize_weights, seeded
from skbn._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    Options,
    StrOptions,
    accepts_sample_weight,
    check_sample_weight,
    has_callbacks,
    make_constraint,
    plain_mlp,
    with_callbacks,
)
from skbn._training import (
    INTERRUPTED,
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
from skbn.backends import card_number, get_executor

if TYPE_CHECKING:
    from skbn._typing import Array, MatrixLike

PLACEMENTS = ("input", "before", "after")
ROWS_PER_CALL = 8192  # of predictions, and a multiple of it for few outputs

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


def readable_rows(X):
    """Return X as executors read it.

    Dense rows are taken as they lie, but for numbers across word boundaries (views of records);
    sparse ones become CSR. Their structure is checked first: conversions and kernels trust it.
    """
    if card_number(X) is not None:
        return X
    if issparse(X):
        container = csr_array if X.format == "csr" else csc_array
        parts = (np.require(part, requirements="CA") for part in (X.data, X.indices, X.indptr))
        X = container(tuple(parts), shape=X.shape)
        X.check_format(full_check=True)
        return X.tocsr()
    return X if X.flags.aligned else X.copy()


def validated_weights(sample_weight, X, name="sample_weight"):
    """Return weights as float64, one a row, or None where there are none."""
    if sample_weight is None:
        return None
    try:
        weights = check_sample_weight(sample_weight, X, dtype=np.float64)
    except ValueError as error:
        raise ValueError(str(error).replace("sample_weight", name)) from error
    if weights.min() < 0:
        raise ValueError(f"Negative values in data passed to `{name}`.")
    too_small = (weights > 0) & (weights < np.finfo(np.float64).tiny)
    if too_small.any():
        weights = np.where(too_small, 0.0, weights)  # as kernels do
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    with np.errstate(over="ignore"):
        total = weights.sum()
    if not np.finfo(np.float64).tiny <= total < np.inf:
        raise ValueError(f"{name} sums up to {total}, by which nothing can be divided.")
    return weights


def restorer(estimator):
    """Return a function that puts everything back as it is now, a RandomState of the user's too.

    Arrays need no copies: they are never changed in place. Curves only grow.
    """
    before = vars(estimator).copy()
    curves = estimator._history.curves if hasattr(estimator, "_history") else []
    lengths = [len(curve) for curve in curves]
    random_state = estimator.random_state
    drawn = isinstance(random_state, np.random.RandomState) and random_state.get_state(legacy=False)

    def restore():
        vars(estimator).clear()
        vars(estimator).update(before)
        for curve, length in zip(curves, lengths, strict=True):
            del curve[length:]
        if drawn:
            random_state.set_state(drawn)

    return restore


@contextmanager
def _unchanged_on_error(estimator):
    """Put everything back if the block raises."""
    restore = restorer(estimator)
    try:
        yield
    except BaseException:
        restore()
        raise


class Plan(NamedTuple):
    """What one fit trains, on what and how: decided before the first epoch."""

    network: Network
    optimizer: Optimizer | None
    history: History
    data: Rows
    validation: Rows | None
    executor_options: dict


class BaseMLPBN(CallbackSupportMixin, BaseEstimator):
    """What the classifier and the regressor share: everything but labels and losses."""

    n_features_in_: int
    feature_names_in_: Array
    n_layers_: int
    n_outputs_: int
    out_activation_: str
    n_iter_: int
    t_: int
    loss_: float
    best_loss_: float | None
    best_iter_: int
    loss_curve_: list[float]
    train_scores_: list[float]
    validation_scores_: list[float] | None
    validation_loss_curve_: list[float] | None
    best_validation_score_: float | None

    _predicts_for_scorer = False  # whose labels are NumPy's, so predictions are too

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
        "shuffle": ["boolean", StrOptions({"blocks"})],
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
        """Return how many rows a mini-batch has."""
        return min(200 if self.batch_size == "auto" else self.batch_size, n_samples)

    def _weigh_classes(self, targets, weights, incremental):
        """Return the weights that rows have in training, None where they have none."""
        return weights

    def _split(self, data, weights, random_state):
        """Hold out rows for early stopping with scikit-learn's draws; nothing is copied.

        Their scores count by ``weights``, which are those of the rows without those of classes.
        They are read in order, which disks prefer.
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
        data = data._replace(rows=rows)
        validation = data._replace(weights=weights, rows=np.sort(held_out))
        for name, part in (("training", data), ("validation", validation)):
            if part.weights is not None and not part.weights[part.rows].any():
                raise ValueError(f"All sample weights of the {name} set are zero.")
        return data, validation

    def _validate_validation_data(self, X_val, y_val, sample_weight_val, dtype):
        if (X_val is None) != (y_val is None):
            given, missing = ("X_val", "y_val") if y_val is None else ("y_val", "X_val")
            raise ValueError(f"{given} was given without {missing}; give both or neither.")
        if X_val is None:
            if sample_weight_val is not None:
                raise ValueError("sample_weight_val was given without X_val and y_val.")
            return None
        try:
            X_val = self._validate_rows(X_val, dtype)
        except ValueError as error:
            raise ValueError(f"X_val: {error}") from error
        targets = self._validation_targets(on_host(y_val), dtype)
        if X_val.shape[0] != len(targets):
            raise ValueError(
                "Found input variables with inconsistent numbers of samples: X_val has "
                f"{X_val.shape[0]}, y_val has {len(targets)}."
            )
        weights = validated_weights(on_host(sample_weight_val), targets, "sample_weight_val")
        return Rows(X_val, targets, weights, np.arange(X_val.shape[0], dtype=np.intp))

    def _scorer(self, validation):
        """Return what scores a network on the validation rows: None, "loss" or a function."""
        if validation is None:
            return None
        if self.scoring is None or self.scoring == "loss":
            return self.scoring
        scorer = check_scoring(self, self.scoring)
        X, rows = validation.X, validation.rows
        if len(rows) < X.shape[0]:  # split off: scorers know no indices
            X = X[rows]
        y = self._labels(validation.targets[rows])
        weights = {}
        if validation.weights is not None and accepts_sample_weight(scorer):
            weights["sample_weight"] = validation.weights[rows]

        def score(network):
            twin = self._snapshot(network)
            twin._predicts_for_scorer = True
            return scorer(twin, X, y, **weights)

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

    def _fit(
        self, X, y, sample_weight, X_val, y_val, sample_weight_val, *, seed=None, observers=()
    ):
        """Validate and train; on any error the estimator is as it was.

        ``seed`` stands in for ``random_state=None``. Returns whether training came to its own end.
        """
        seed = self.random_state if seed is None else seed
        sample_weight = on_host(sample_weight)
        given = {"X": X, "y": y, "sample_weight": sample_weight}
        X, place = received(X, self.device)
        with place, _unchanged_on_error(self), seeded(seed) as random_state:
            data = self._validate_training_data(X, on_host(y), sample_weight, incremental=False)
            if X_val is not None:
                X_val, _ = received(X_val, self.device)
                check_same_place(X, X_val)
            validation = self._validate_validation_data(
                X_val, y_val, sample_weight_val, data[0].dtype
            )
            return self._train(*data, validation, random_state, False, given, observers)

    def _partial_fit(self, X, y, sample_weight, **first_call):
        """Validate and train for one epoch; on any error the estimator is as it was."""
        self._validate_params()  # scikit-learn does so before the first call only
        sample_weight = on_host(sample_weight)
        given = {"X": X, "y": y, "sample_weight": sample_weight}
        X, place = received(X, self.device)
        with place, _unchanged_on_error(self), seeded(self.random_state) as random_state:
            self._check_first_call(**first_call)
            data = self._validate_training_data(X, on_host(y), sample_weight, incremental=True)
            self._train(*data, None, random_state, True, given)
        return self

    def _check_first_call(self):
        """Take what the first call of partial_fit needs to know."""

    @with_callbacks
    def _train(
        self, X, targets, weights, validation, random_state, incremental, given, observers=()
    ):
        """Train on validated rows and publish the result; callbacks see the data as given.

        Returns whether training came to its own end.
        """
        n_samples = X.shape[0]
        row_weights = self._weigh_classes(targets, weights, incremental)
        data = Rows(X, targets, row_weights, np.arange(n_samples, dtype=np.intp))
        plan = self._plan(data, weights, validation, random_state, incremental)
        network, optimizer, history, data, validation, _ = plan
        max_iter = 1 if incremental else self.max_iter
        observers, tasks = Observers(observers), None
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
        executor = self._executor_for(X)(network, **plan.executor_options)
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
        del executor  # and its gradients and buffers
        if self._wants_population(network) and completed and not incremental:
            data.rows.sort()  # training is over
            self._measure_population(network, data)
            if network.first_non_finite_layer() is not None:
                raise diverged(network, history.n_iter)
        self._publish(network, optimizer, history)
        if tasks:
            tasks.fit_ended()
        return completed

    def _plan(self, data, weights, validation, random_state, incremental, network=None):
        """Return all that training needs; ``data`` has the weights of classes, ``weights`` has not.

        A first fit initializes ``network``, or a new one.
        """
        self._check_solver(incremental)
        if self.scoring is not None and not (incremental or self.early_stopping or validation):
            warnings.warn(
                f"scoring={self.scoring!r} has no effect without validation data or "
                "early_stopping=True.",
                stacklevel=2,
            )
        layers = self._layers(data.X.shape[1], self._loss.n_outputs)
        self._check_batch_norm_sizes(data, layers)
        if self._is_first_fit(incremental):
            network, history = network or Network(layers, data.X.dtype), History()
            initialize_weights(network, self.weight_init, self.activation, random_state)
        else:
            network, history = self._continued_network(layers), self._history.go_on()
        if self.solver != "lbfgs" and self.early_stopping and validation is None:
            data, validation = self._split(data, weights, random_state)
            self._check_batch_norm_sizes(data, layers)
        n_rows, optimizer = len(data.rows), None
        batch_size = n_rows if self.solver == "lbfgs" else self._batch_size(n_rows)
        if self.solver != "lbfgs":
            if self.batch_size != "auto" and self.batch_size > n_rows:
                warnings.warn(
                    "Got `batch_size` less than 1 or larger than sample size. "
                    "It is going to be clipped",
                    stacklevel=2,
                )
            # a rest shorter than min_rows is no batch of its own
            n_batches = -(-(n_rows - network.min_rows + 1) // batch_size)
            optimizer = self._make_optimizer(network, self.max_iter * n_batches, incremental)
        network.use_population = False
        executor_options = {
            "loss_kind": self._loss.kind,
            "alpha": self.alpha,
            "batch_size": batch_size,
            "dropout_key": dropout_key(random_state) if self.dropout > 0 else (0, 0),
        }
        return Plan(network, optimizer, history, data, validation, executor_options)

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

    def _wants_population(self, network):
        return self.bn_statistics == "population" and bool(network.batch_norm_indices)

    def _measure_population(self, network, data):
        """Measure the population statistics; if the user interrupts that, keep the moving ones."""
        try:
            with self._executor_for(data.X)(network) as executor:
                executor.update_population_statistics(data.X, data.weights, data.rows)
        except KeyboardInterrupt:
            network.use_population = False
            warnings.warn(INTERRUPTED, stacklevel=2)

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
        from skbn._persistence import to_document  # 3 ms, for those who store and load

        return to_document(super().__getstate__())

    def __setstate__(self, state):
        from skbn._persistence import check_consistency, from_document

        super().__setstate__(from_document(state, type(self).__name__))
        check_consistency(self)

    @property
    def coefs_(self) -> list[Array]:
        """Weight matrices."""
        return self._fitted_network("coefs_").coefs

    @property
    def intercepts_(self) -> list[Array]:
        """Bias vectors."""
        return self._fitted_network("intercepts_").intercepts

    @property
    def batch_norms_(self) -> list[BatchNormRecord]:
        """One record a norm, in network order.

        Each has position, layer, gamma, beta, and the moving and the population's mean and
        variance.
        """
        return self._fitted_network("batch_norms_").batch_norms

    def _fitted_network(self, attribute):
        if not hasattr(self, "_network"):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {attribute!r} before it is fitted"
            )
        return self._network

    def _executor_for(self, X):
        """Return the executor class for validated rows."""
        return get_executor(resolved(self.device, X))

    def _validate_rows(self, X, dtype):
        """Return rows of the features and the type that a network has."""
        validate = validator(X)
        accepted = ["csr", "csc"]
        return readable_rows(validate(self, X, dtype=dtype, accept_sparse=accepted, reset=False))

    def _predict(self, X, finish):
        """Return what ``finish`` makes of the raw outputs; only that is ever there for all rows."""
        check_is_fitted(self)
        X, place = received(X, self.device)
        with place:
            X = self._validate_rows(X, self._network.dtype)
            result = self._predict_in_blocks(X, finish)
            return place.read(result) if self._predicts_for_scorer else place.give_back(result)

    def _predict_in_blocks(self, X, finish):
        n_rows = X.shape[0]
        network = folded_for_predictions(self._network, n_rows)
        # Whole blocks of the executor, so results do not depend on where rows are cut.
        block_size = ROWS_PER_CALL * max(1, 32 // network.n_outputs)
        with self._executor_for(X)(network) as executor:
            if n_rows <= block_size:
                return finish(executor.predict(X))
            result = None
            for block in gen_batches(n_rows, block_size):
                part = finish(executor.predict(X[block]))
                if result is None:
                    result = np.empty_like(part, order="C", shape=(n_rows, *part.shape[1:]))
                result[block] = part
            return result

    def transform_hidden(self, X: MatrixLike, layer: int = -1) -> Array:
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
        X, place = received(X, self.device)
        network = self._network.head(dense[layer % n_hidden + 1])
        with place:
            X = self._validate_rows(X, network.dtype)
            with self._executor_for(X)(network) as executor:
                return place.give_back(executor.predict(X))

    def fold(self) -> tuple[list[Array], list[Array]]:
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

    def to_sklearn(self) -> Any:
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

    def recalibrate(self, X: MatrixLike) -> Self:
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
        check_is_fitted(self)
        X, place = received(X, self.device)
        with place:
            X = self._validate_rows(X, self._network.dtype)
            if not self._network.batch_norm_indices:
                raise ValueError("There is no batch normalization to recalibrate in this network.")
            data = Rows(X, None, None, np.arange(X.shape[0], dtype=np.intp))
            self._check_batch_norm_sizes(data, self._network.layers)
            network = self._network.copy()
            with self._executor_for(X)(network) as executor:
                executor.update_population_statistics(X, None, data.rows)
        if not np.isfinite(network.state).all():
            raise ValueError(
                "The statistics of X are not finite. The input data may contain large values and "
                "need to be preprocessed."
            )
        self._network = network
        return self
