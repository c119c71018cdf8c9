"""The only epoch loop: shuffles, schedules, early stopping, curves.

No arithmetic on weights, no devices. It drives an executor through a whole epoch in one call (or a
few, where an epoch is long, so that Ctrl-C works) and decides what happens between epochs, word for
word as scikit-learn's MLP does: what it prints, when it stops, how the learning rate moves. What
scikit-learn has not is added beside it: scores in training mode, validation curves, the best
epoch's statistics, and an end to training that has diverged.
"""
# SPDX-License-Identifier: BSD-3-Clause

import warnings
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skbn._shuffle import shuffle as shuffle_rows
from skbn.backends.memory import aligned_zeros
from skbn.backends.records import OPTIMIZER_DTYPE, OptimizerKind

SOLVERS = {"sgd": OptimizerKind.SGD, "adam": OptimizerKind.ADAM, "rmsprop": OptimizerKind.RMSPROP}

NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and "
    "need to be preprocessed."  # scikit-learn's sentence
)


class Rows(NamedTuple):
    """Rows of a data set: X and targets are never copied, ``rows`` says which of them count."""

    X: np.ndarray
    targets: np.ndarray
    rows: np.ndarray


@dataclass
class History:
    """What training leaves behind, carried on by warm starts and ``partial_fit``."""

    n_iter: int = 0
    n_samples_seen: int = 0
    loss_curve: list = field(default_factory=list)
    train_scores: list = field(default_factory=list)
    validation_scores: list = field(default_factory=list)
    validation_loss_curve: list = field(default_factory=list)
    best_loss: float = inf
    best_validation_score: float = -inf
    best_iter: int = 0
    no_improvement_count: int = 0
    watches_validation: bool | None = None

    def copy(self):
        """Return a history that can grow without changing this one."""
        fields = vars(self).items()
        return History(**{k: list(v) if isinstance(v, list) else v for k, v in fields})

    def watch(self, validation):
        """Begin to watch the validation score or the loss; another than before starts afresh."""
        if self.watches_validation not in (None, validation):
            self.best_loss, self.best_validation_score = inf, -inf
            self.best_iter = self.no_improvement_count = 0
        self.watches_validation = validation

    def append_validation(self, loss, score):
        """Enter the last epoch in the validation curves; epochs without validation are NaN."""
        for curve, value in ((self.validation_loss_curve, loss), (self.validation_scores, score)):
            curve.extend([nan] * (len(self.loss_curve) - 1 - len(curve)))
            curve.append(value)

    def update(self, early_stopping, tol):
        """Take the last epoch into the best values; return whether it is the best so far."""
        if early_stopping:
            score = self.validation_scores[-1]
            improved = not score < self.best_validation_score + tol
            best = score > self.best_validation_score
        else:
            loss = self.loss_curve[-1]
            improved = not loss > self.best_loss - tol
            best = loss < self.best_loss
        self.no_improvement_count = 0 if improved else self.no_improvement_count + 1
        self.best_loss = min(self.best_loss, self.loss_curve[-1])
        if self.validation_scores and self.validation_scores[-1] > self.best_validation_score:
            self.best_validation_score = self.validation_scores[-1]
        if best:
            self.best_iter = len(self.loss_curve)
        return best


class Optimizer:
    """An update rule with its memory and its learning rate schedule.

    Parameters
    ----------
    network : Network
        Network whose parameters it will update.
    solver : {"sgd", "adam", "rmsprop"}
        Update rule.
    learning_rate_init : float
        Learning rate to begin with.
    schedule : {"constant", "invscaling", "adaptive"}
        How the learning rate of "sgd" moves; the other rules adapt by themselves.
    power_t : float
        Exponent of "invscaling".
    momentum, nesterovs_momentum, beta_1, beta_2, epsilon
        As in :class:`skbn.MLPClassifierBN`.
    """

    def __init__(
        self,
        network,
        *,
        solver,
        learning_rate_init,
        schedule,
        power_t,
        momentum,
        nesterovs_momentum,
        beta_1,
        beta_2,
        epsilon,
    ):
        self.schedule = schedule if solver == "sgd" else "constant"
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        n_vectors = 2 if solver == "adam" else 1
        self.memory = aligned_zeros(n_vectors * network.n_params, network.dtype)
        self.record = np.zeros(1, dtype=OPTIMIZER_DTYPE)
        self.record[0] = (
            SOLVERS[solver],
            nesterovs_momentum,
            0,
            learning_rate_init,
            momentum,
            beta_1,
            beta_2,
            epsilon,
        )

    def copy(self):
        """Return an optimizer that can go on without changing this one."""
        twin = object.__new__(Optimizer)
        memory = aligned_zeros(self.memory.size, self.memory.dtype)
        memory[:] = self.memory
        twin.__dict__.update(self.__dict__, memory=memory, record=self.record.copy())
        return twin

    def end_epoch(self, n_samples_seen):
        """Move the learning rate of "invscaling"."""
        if self.schedule == "invscaling":
            rate = self.learning_rate_init / (n_samples_seen + 1) ** self.power_t
            self.record["learning_rate"] = rate

    def should_stop(self, message, verbose):
        """Answer a lack of improvement: stop, or (if "adaptive") go on with a fifth of the rate."""
        ending = " Stopping."
        if self.schedule == "adaptive":
            rate = self.record["learning_rate"][0]
            if rate > 1e-6:
                self.record["learning_rate"] = rate / 5.0
                ending = f" Setting learning rate to {rate / 5.0:f}"
            else:
                ending = " Learning rate too small. Stopping."
        if verbose:
            print(message + ending)
        return ending.endswith("Stopping.")


def _run_epoch(executor, optimizer, data):
    """Return mean loss and rows decided right of one epoch, both as seen in training mode."""
    total, n_correct, position = 0.0, 0, 0
    n_samples = len(data.rows)
    while position < n_samples:
        loss, correct, position = executor.train(
            data.X, data.targets, data.rows, position, optimizer.record, optimizer.memory
        )
        total += loss
        n_correct += correct
    return total / n_samples, n_correct


def diverged(network, epoch):
    """Return the error for a network whose loss or weights are not finite."""
    layer = network.first_non_finite_layer()
    n_hidden = len(network.intercepts) - 1
    where = {
        None: "at the output layer, whose loss is not finite",
        -1: "in the normalization layer of the input",
        n_hidden: "in the output layer",
    }.get(layer, f"in hidden layer {layer}")
    return ValueError(f"{NOT_FINITE} Training diverged {where}, epoch {epoch}.")


def train(
    network,
    executor,
    loss_function,
    optimizer,
    history,
    data,
    validation=None,
    *,
    max_iter,
    shuffle,
    random_state,
    early_stopping,
    tol,
    n_iter_no_change,
    verbose,
    incremental=False,
):
    """Train a network in place, epoch by epoch.

    Parameters
    ----------
    network : Network
        Trained in place; with early stopping it ends as it was after its best epoch.
    executor : executor
        What computes; made for this network.
    loss_function : object of skbn._losses
        Says what the counts of right decisions mean.
    optimizer : Optimizer
        Advanced in place.
    history : History
        Extended in place.
    data : Rows
        Training rows; ``rows`` is shuffled in place.
    validation : Rows or None
        Rows to score after each epoch.
    max_iter : int
        Epochs at most.
    shuffle : bool
        Whether to shuffle before each epoch.
    random_state : RandomState
        Source of the shuffles.
    early_stopping : bool
        Whether the validation score, instead of the training loss, decides when to stop.
    tol, n_iter_no_change, verbose
        As in :class:`skbn.MLPClassifierBN`.
    incremental : bool
        Whether to do one epoch only and say nothing about convergence (``partial_fit``).

    Returns
    -------
    bool
        Whether training came to its own end (False: it was interrupted by the user).

    Raises
    ------
    ValueError
        If loss or weights stop being finite, unless early stopping has a finite epoch to return to.
    """
    best = network.copy() if early_stopping else None
    watched = "Validation score" if early_stopping else "Training loss"
    history.n_iter = 0
    history.watch(early_stopping)
    completed = True
    try:
        with executor:
            for _ in range(max_iter):
                if shuffle:
                    # Shuffling the indices again and again composes to scikit-learn's permutations.
                    shuffle_rows(data.rows, random_state)
                loss, n_correct = _run_epoch(executor, optimizer, data)
                history.n_iter += 1
                history.n_samples_seen += len(data.rows)
                history.loss_curve.append(loss)
                history.train_scores.append(loss_function.accuracy(n_correct, len(data.rows)))
                if verbose:
                    print(f"Iteration {history.n_iter}, loss = {loss:.8f}")
                is_finite = isfinite(loss)
                if validation is not None:
                    validation_loss, n_correct = executor.evaluate(*validation)
                    score = nan
                    if is_finite and isfinite(validation_loss):
                        score = loss_function.accuracy(n_correct, len(validation.rows))
                    history.append_validation(validation_loss, score)
                    is_finite = is_finite and not (early_stopping and score != score)
                    if verbose:
                        print(f"Validation score: {score:f}")
                elif history.validation_scores:
                    history.append_validation(nan, nan)
                if not is_finite:
                    if early_stopping and isfinite(history.best_validation_score):
                        warnings.warn(
                            f"{NOT_FINITE} The weights of epoch {history.best_iter} are restored.",
                            ConvergenceWarning,
                            stacklevel=2,
                        )
                        break
                    raise diverged(network, history.n_iter)
                if history.update(early_stopping, tol) and early_stopping:
                    best.assign(network)
                optimizer.end_epoch(history.n_samples_seen)
                if history.no_improvement_count > n_iter_no_change:
                    message = (
                        f"{watched} did not improve more than tol={tol:f} for "
                        f"{n_iter_no_change} consecutive epochs."
                    )
                    if optimizer.should_stop(message, verbose):
                        break
                    history.no_improvement_count = 0
                if incremental:
                    break
                if history.n_iter == max_iter:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({max_iter}) reached and the "
                        "optimization hasn't converged yet.",
                        ConvergenceWarning,
                        stacklevel=2,
                    )
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.", stacklevel=2)
        completed = False
    if early_stopping:
        network.assign(best)
    if network.first_non_finite_layer() is not None:
        raise diverged(network, history.n_iter)
    return completed
