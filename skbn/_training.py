"""The only training loops: epochs with shuffles, schedules, early stopping, curves; and L-BFGS.

No arithmetic on weights, no devices. ``train`` drives an executor through a whole epoch in one call
(or a few, where an epoch is long, so that Ctrl-C works) and decides what happens between epochs,
word for word as scikit-learn's MLP does: what it says, when it stops, how the learning rate moves.
What scikit-learn has not is added beside it: scores in training mode, validation curves, the best
epoch's statistics, and an end to training that has diverged. ``train_together`` does the same for
many networks at once, by the same rules. ``train_lbfgs`` hands the flat vector to scipy. None
prints: observers hear of every epoch, and they print, draw and call back.
"""
# SPDX-License-Identifier: BSD-3-Clause

import warnings
from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from skbn._random import rows_in_block, shuffle_blocks
from skbn._shuffle import shuffle as shuffle_rows
from skbn._sklearn_compat import check_optimize_result
from skbn.backends.memory import aligned_zeros
from skbn.backends.records import OPTIMIZER_DTYPE, OptimizerKind, Schedule

PLANNED_SCHEDULES = {"cosine": Schedule.COSINE, "onecycle": Schedule.ONECYCLE}
SOLVERS = {"sgd": OptimizerKind.SGD, "adam": OptimizerKind.ADAM, "rmsprop": OptimizerKind.RMSPROP}

NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and "
    "need to be preprocessed."  # scikit-learn's sentence
)
INTERRUPTED = "Training interrupted by user."


class Rows(NamedTuple):
    """Rows of a data set: X and targets are never copied, ``rows`` says which of them count.

    X may be a CSR matrix; ``weights`` is float64, or None where every row counts the same.
    """

    X: np.ndarray
    targets: np.ndarray | None
    weights: np.ndarray | None
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
    measures: str = ""  # what losses and validation scores are

    @property
    def curves(self):
        """All that grows with every epoch."""
        return [curve for curve in vars(self).values() if isinstance(curve, list)]

    def copy(self):
        """Return a history that can grow without changing this one."""
        fields = vars(self).items()
        return History(**{k: list(v) if isinstance(v, list) else v for k, v in fields})

    def go_on(self):
        """Return a history that grows on the same curves, which may be long by now."""
        return replace(self)

    def watch(self, validation, measures):
        """Begin to watch the validation score or the loss; others than before start afresh."""
        if (self.watches_validation, self.measures) not in ((None, ""), (validation, measures)):
            self.best_loss, self.best_validation_score = inf, -inf
            self.best_iter = self.no_improvement_count = 0
        self.watches_validation, self.measures = validation, measures

    @property
    def is_finite(self):
        """Whether the losses of the last epoch are, that of validation where it is watched."""
        validation_loss = self.validation_loss_curve[-1] if self.watches_validation else 0.0
        return isfinite(self.loss_curve[-1]) and isfinite(validation_loss)

    def append(self, n_rows, loss, score, validation):
        """Enter an epoch over so many rows: what it gave in training mode, then in validation.

        ``validation`` is a loss and a score, or None; epochs without are NaN in their curves.
        """
        self.n_iter += 1
        self.n_samples_seen += n_rows
        self.loss_curve.append(loss)
        self.train_scores.append(score)
        if validation is None and not self.validation_scores:
            return
        loss, score = validation or (nan, nan)
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


class Histories:
    """The histories of first fits that go on together; an entry of every array is one fit's.

    What :class:`History` decides about one fit after an epoch, decided about all at once and by the
    same rules: on a card, an epoch of a thousand fits takes less than a thousand Python calls. What
    they watch is the training loss.

    Parameters
    ----------
    tol : ndarray
        As in :class:`skbn.MLPClassifierBN`, for each fit.
    """

    def __init__(self, tol):
        self.tol = tol
        self.n_iter, self.best_iter, self.no_improvement_count = np.zeros((3, len(tol)), np.intp)
        self.best_loss = np.full(len(tol), inf)
        self.sums = []  # of every epoch, (n_fits, 2 + n_scores): loss times rows, rows, scores

    def append(self, sums, active):
        """Enter an epoch of the fits that are ``active``; return which of their losses are finite.

        Does what ``History.append`` and ``History.update`` do.
        """
        self.sums.append(sums)
        with np.errstate(invalid="ignore"):
            loss = sums[:, 0] / np.where(active, sums[:, 1], nan)
        worse, best = loss > self.best_loss - self.tol, loss < self.best_loss
        self.n_iter += active
        self.no_improvement_count[active] += 1
        self.no_improvement_count[active & ~worse] = 0
        self.best_loss[best] = loss[best]
        self.best_iter[best] = self.n_iter[best]
        return np.isfinite(loss)

    def split(self, loss_functions, data):
        """Return a :class:`History` for each fit, of whose ``data`` scores are measured."""
        sums = np.stack(self.sums, axis=1) if self.sums else np.empty((len(data), 0, 2))
        baselines, histories = {}, []
        for index, (loss_function, part) in enumerate(zip(loss_functions, data, strict=True)):
            key = id(part.weights), id(part.rows)
            if key not in baselines:
                baselines[key] = loss_function.baseline(part.targets, part.weights, part.rows)
            n_iter = int(self.n_iter[index])
            curves = sums[index, :n_iter].T
            with np.errstate(invalid="ignore"):
                scores = loss_function.score(curves[2:], baselines[key]) if n_iter else []
                history = History(
                    n_iter=n_iter,
                    n_samples_seen=n_iter * len(part.rows),
                    loss_curve=(curves[0] / curves[1]).tolist(),
                    train_scores=np.broadcast_to(scores, n_iter).tolist(),
                    best_loss=float(self.best_loss[index]),
                    best_iter=int(self.best_iter[index]),
                    no_improvement_count=int(self.no_improvement_count[index]),
                )
            history.watch(False, _measures(loss_function, None))
            histories.append(history)
        return histories


def optimizer_vectors(kind):
    """Return how many vectors an optimizer remembers, each as long as ``params``."""
    return 2 if kind == OptimizerKind.ADAM else 1


class Observer:
    """What hears of every epoch, and may end training. This one does nothing."""

    def epoch_began(self):
        """Hear that an epoch begins."""

    def epoch_ended(self, history):
        """Hear that an epoch has ended, its figures last in ``history``; return whether to stop."""
        return False

    def message(self, text):
        """Hear what training has to say."""

    def close(self):
        """Hear that no more epochs come, whatever the reason; warnings and errors come later."""


class Observers(list):
    """Observers as one, and a context that closes them. False if there are none."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for observer in self:
            observer.close()

    def epoch_began(self):
        """Tell all that an epoch begins."""
        for observer in self:
            observer.epoch_began()

    def epoch_ended(self, history):
        """Tell all that an epoch has ended; return whether one of them wants to stop."""
        return any([observer.epoch_ended(history) for observer in self])  # a list: all hear it

    def message(self, text):
        """Tell all what training has to say."""
        for observer in self:
            observer.message(text)


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
    schedule : {"constant", "invscaling", "adaptive", "cosine", "onecycle"}
        How the learning rate moves; the second and third are for "sgd" only.
    power_t : float
        Exponent of "invscaling".
    momentum, nesterovs_momentum, beta_1, beta_2, epsilon, max_grad_norm
        As in :class:`skbn.MLPClassifierBN`.
    n_steps : int
        Updates that "cosine" and "onecycle" are planned for.
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
        max_grad_norm=None,
        n_steps=0,
    ):
        self.schedule = schedule if solver == "sgd" else "constant"
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        n_vectors = optimizer_vectors(SOLVERS[solver])
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
            inf if max_grad_norm is None else max_grad_norm,
            PLANNED_SCHEDULES.get(schedule, Schedule.STEADY),
            min(n_steps, 2**62),  # max_iter may be anything
        )

    @property
    def is_planned(self):
        """Whether the learning rate is planned over a number of steps."""
        return self.record["schedule"][0] != Schedule.STEADY

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

    def should_stop(self, message, observers):
        """Answer a lack of improvement: stop, or (if "adaptive") go on with a fifth of the rate."""
        ending = " Stopping."
        if self.schedule == "adaptive":
            rate = self.record["learning_rate"][0]
            if rate > 1e-6:
                self.record["learning_rate"] = rate / 5.0
                ending = f" Setting learning rate to {rate / 5.0:f}"
            else:
                ending = " Learning rate too small. Stopping."
        observers.message(message + ending)
        return ending.endswith("Stopping.")


class Optimizers(list):
    """Optimizers side by side: their records are the elements of one array, ``records``."""

    def __enter__(self):
        self.records = np.zeros(len(self), dtype=OPTIMIZER_DTYPE)
        for index, optimizer in enumerate(self):
            self.records[index] = optimizer.record[0]
            optimizer.record = self.records[index : index + 1]
        return self

    def __exit__(self, *exception):
        for optimizer in self:
            optimizer.record = optimizer.record.copy()


class Order:
    """Rows in the order in which fits see them, shuffled before every epoch.

    Parameters
    ----------
    data : Rows
        Its ``rows`` are shuffled in place.
    shuffle : bool or "blocks"
        Whether to shuffle; "blocks" keeps rows that are near each other near.
    random_state : RandomState
        Source of the shuffles.
    """

    def __init__(self, data, shuffle, random_state):
        self.rows, self.shuffle, self.random_state = data.rows, shuffle, random_state
        self.block_size = rows_in_block(data.X) if shuffle == "blocks" else None

    def begin_epoch(self):
        """Shuffle."""
        if self.block_size:
            shuffle_blocks(self.rows, self.block_size, self.random_state)
        elif self.shuffle:
            # Shuffling the indices again and again composes to scikit-learn's permutations.
            shuffle_rows(self.rows, self.random_state)


def _run_epoch(executor, optimizer, data, sums):
    """Return the mean loss of one epoch and its scores, both as seen in training mode."""
    sums.fill(0)
    position = 0
    while position < len(data.rows):
        position = executor.train(*data, position, optimizer.record, optimizer.memory, sums)
    loss, n_rows, *scores = sums.tolist()  # Python's floats are faster one by one
    return loss / n_rows, scores


def _measures(loss_function, scorer):
    """Name what losses and validation scores are, so that only like is compared with like."""
    scores = getattr(scorer, "name", scorer) or loss_function.score_name
    return f"{loss_function.kind.name}, {scores}"


class _Validation:
    """Scores a network on rows that it is not trained on."""

    def __init__(self, executor, loss_function, data, scorer):
        self.executor, self.loss_function = executor, loss_function
        self.data, self.scorer = data, scorer
        self.baseline = loss_function.baseline(data.targets, data.weights, data.rows)

    def measure(self, network, is_finite=True):
        """Return mean loss and score; the score of a network that is not finite is NaN."""
        total, weight, *scores = self.executor.evaluate(*self.data).tolist()
        loss = total / weight
        if not (is_finite and isfinite(loss)):
            return loss, nan
        if self.scorer == "loss":
            return loss, -loss
        if self.scorer is not None:
            return loss, float(self.scorer(network))
        return loss, self.loss_function.score(scores, self.baseline)


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
    observers,
    scorer=None,
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
        Says what the sums of scores mean.
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
    shuffle : bool or "blocks"
        Whether to shuffle before each epoch; "blocks" keeps rows that are near each other near.
    random_state : RandomState
        Source of the shuffles.
    early_stopping : bool
        Whether the validation score, instead of the training loss, decides when to stop.
    tol, n_iter_no_change
        As in :class:`skbn.MLPClassifierBN`.
    observers : Observers
        What hears of every epoch.
    scorer : callable, "loss" or None
        Score of the network on the validation rows: a function of the network (with a ``name``),
        minus the loss, or the loss function's own.
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
    baseline = loss_function.baseline(data.targets, data.weights, data.rows)
    sums, order = executor.new_sums(), Order(data, shuffle, random_state)
    if validation is not None:
        validation = _Validation(executor, loss_function, validation, scorer)
    history.n_iter = 0
    history.watch(early_stopping, _measures(loss_function, scorer))
    completed, warning = True, None
    try:
        with executor, observers:
            for _ in range(max_iter):
                if observers:
                    observers.epoch_began()
                order.begin_epoch()
                loss, scores = _run_epoch(executor, optimizer, data, sums)
                measured = validation and validation.measure(network, isfinite(loss))
                score = loss_function.score(scores, baseline)
                history.append(len(data.rows), loss, score, measured)
                if early_stopping and history.is_finite and not isfinite(measured[1]):
                    raise ValueError(
                        f"The validation score of epoch {history.n_iter} is {measured[1]}: early "
                        "stopping cannot watch it."
                    )
                if history.update(early_stopping, tol) and early_stopping:
                    best.assign(network)
                optimizer.end_epoch(history.n_samples_seen)
                stop = observers and observers.epoch_ended(history)
                if not history.is_finite:
                    if early_stopping and isfinite(history.best_validation_score):
                        restored = f"The weights of epoch {history.best_iter} are restored."
                        warning = f"{NOT_FINITE} {restored}"
                        break
                    raise diverged(network, history.n_iter)
                if stop:
                    break
                if history.no_improvement_count > n_iter_no_change:
                    message = (
                        f"{watched} did not improve more than tol={tol:f} for "
                        f"{n_iter_no_change} consecutive epochs."
                    )
                    if optimizer.should_stop(message, observers):
                        break
                    history.no_improvement_count = 0
                if incremental:
                    break
            else:
                warning = (
                    f"Stochastic Optimizer: Maximum iterations ({max_iter}) reached and the "
                    "optimization hasn't converged yet."
                )
    except KeyboardInterrupt:
        warnings.warn(INTERRUPTED, stacklevel=2)
        completed = False
    if warning:
        warnings.warn(warning, ConvergenceWarning, stacklevel=2)
    if early_stopping:
        network.assign(best)
    if network.first_non_finite_layer() is not None:
        raise diverged(network, history.n_iter)
    return completed


class Fit(NamedTuple):
    """One of several fits that go on together, with the parameters that decide when it ends."""

    network: object
    loss_function: object
    optimizer: Optimizer
    data: Rows
    order: Order  # of the rows of ``data``; fits that share one see the same batches
    max_iter: int
    tol: float
    n_iter_no_change: float


def train_together(models, fits, *, to_the_end, is_over):
    """Train networks in place from the beginning, epoch by epoch, all of them in every epoch.

    What :func:`train` does with each of them, to the bit, without validation and observers. What
    every epoch asks is decided for all at once (:class:`Histories`); what a few fits need now and
    then, by the same methods as there.

    Parameters
    ----------
    models : models
        What computes; made for these networks.
    fits : list of Fit
        They share X and targets.
    to_the_end : bool
        Whether the others go on when the loss of one is no longer finite.
    is_over : threading.Event
        What ends training from another thread, as an interruption by the user would.

    Returns
    -------
    histories : list of History
        One for each fit.
    completed : bool
        Whether training came to its own end (False: it was interrupted by the user).
    unconverged : ndarray of bool
        Which fits ``max_iter`` has ended.
    """
    _, loss_functions, optimizers, data, orders, max_iter, tol, n_iter_no_change = zip(
        *fits, strict=True
    )
    X, targets = data[0].X, data[0].targets
    weights, rows = [part.weights for part in data], [order.rows for order in orders]
    max_iter, patience = np.array([min(n, 2**62) for n in max_iter]), np.array(n_iter_no_change)
    decaying = [index for index, rule in enumerate(optimizers) if rule.schedule == "invscaling"]
    places = {order: place for place, order in enumerate(dict.fromkeys(orders))}
    place_of_fit = np.array([places[order] for order in orders])
    histories, optimizers = Histories(np.array(tol, dtype=float)), Optimizers(optimizers)
    active, unconverged = np.ones(len(fits), dtype=bool), np.zeros(len(fits), dtype=bool)
    completed = False
    try:
        with models, optimizers:
            while active.any() and not is_over.is_set():
                n_active = np.bincount(place_of_fit, active)
                for order, place in places.items():
                    if n_active[place]:
                        order.begin_epoch()
                sums = models.new_sums()
                models.train(X, targets, weights, rows, optimizers, active, sums)
                is_finite = histories.append(sums, active)
                for index in decaying:
                    if active[index]:
                        n_samples_seen = int(histories.n_iter[index]) * len(rows[index])
                        optimizers[index].end_epoch(n_samples_seen)
                if not (is_finite[active].all() or to_the_end):
                    break
                active &= is_finite
                impatient = active & (histories.no_improvement_count > patience)
                for index in np.flatnonzero(impatient):
                    if optimizers[index].should_stop("", Observers()):
                        active[index] = False
                    else:
                        histories.no_improvement_count[index] = 0
                ended = active & (histories.n_iter >= max_iter)
                unconverged |= ended
                active &= ~ended
            completed = not active.any()
    except KeyboardInterrupt:
        warnings.warn(INTERRUPTED, stacklevel=2)
    return histories.split(loss_functions, data), completed, unconverged


def train_lbfgs(
    network,
    executor,
    loss_function,
    history,
    data,
    validation=None,
    *,
    max_iter,
    max_fun,
    tol,
    observers,
    scorer=None,
):
    """Train a network in place by L-BFGS on the whole flat vector and all rows at once.

    Every evaluation leaves the statistics of its batch, which is all rows, as the moving ones, so
    the network can be scored, and interrupted, after any iteration. Pads and biases that batch norm
    cancels have gradients of 0: L-BFGS never moves them.

    Parameters
    ----------
    network : Network
        Trained in place.
    executor : executor
        What computes; made for this network and a batch of all rows.
    loss_function : object of skbn._losses
        Says what the sums of scores mean.
    history : History
        Extended in place, an entry an iteration.
    data : Rows
        Training rows.
    validation : Rows or None
        Rows to score after each iteration.
    max_iter, max_fun, tol
        As in :class:`skbn.MLPClassifierBN`.
    observers : Observers
        What hears of every iteration.
    scorer : callable, "loss" or None
        As in :func:`train`.

    Returns
    -------
    bool
        Whether training came to its own end (False: it was interrupted by the user).

    Raises
    ------
    ValueError
        If loss or weights are not finite.
    """
    grads = network.new_vector()
    baseline = loss_function.baseline(data.targets, data.weights, data.rows)
    if validation is not None:
        validation = _Validation(executor, loss_function, validation, scorer)
    latest = network.copy()  # as it was after the last iteration
    evaluated = {}  # by the last call of the objective; L-BFGS goes on from where it evaluated last
    history.n_iter = 0
    history.watch(False, _measures(loss_function, scorer))
    completed, stopped = True, False

    def objective(params):
        network.params[:] = params
        network.forget_batches()
        sums = executor.new_sums()
        loss = executor.loss_and_gradient(*data, grads, update_statistics=True, sums=sums)
        evaluated.update(loss=loss, scores=sums[2:].tolist())
        return loss, grads.astype(np.float64)

    def record():
        latest.assign(network)
        score = loss_function.score(evaluated["scores"], baseline)
        measured = validation and validation.measure(network)
        history.append(len(data.rows), evaluated["loss"], score, measured)
        history.update(False, tol)

    def end_iteration(_):
        nonlocal stopped
        record()
        if observers:
            stopped = observers.epoch_ended(history)
            if stopped:
                raise StopIteration
            if history.n_iter < max_iter:
                observers.epoch_began()

    try:
        with executor, observers:
            observers.epoch_began()
            result = minimize(
                objective,
                network.params.astype(np.float64),
                method="L-BFGS-B",
                jac=True,
                callback=end_iteration,
                options={
                    "maxiter": max_iter,
                    "maxfun": max_fun,
                    "gtol": tol,
                    # scipy's own, but no digits that the type does not have.
                    "ftol": max(1e7 * np.finfo(np.float64).eps, np.finfo(network.dtype).eps),
                },
            )
        objective(result.x)
        if history.n_iter == 0:  # there was nothing to improve
            record()
        if not isfinite(result.fun):
            raise diverged(network, history.n_iter)
        if not stopped:
            history.n_iter = check_optimize_result("lbfgs", result, max_iter)
    except KeyboardInterrupt:
        warnings.warn(INTERRUPTED, stacklevel=2)
        network.assign(latest)
        completed = False
    if network.first_non_finite_layer() is not None:
        raise diverged(network, history.n_iter)
    return completed
