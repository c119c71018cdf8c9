"""Many estimators fitted to the same data at once.

What single fits do is done by the same methods here: validation, the plan of a fit, its rules
between epochs, publishing. New is only who waits for whom: all networks of a group do an epoch,
then it is decided about all of them, and what does not go into a group is fitted by itself.
"""
# SPDX-License-Identifier: BSD-3-Clause

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from copy import copy
from functools import partial
from math import ceil
from threading import Event, Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, overload

import numpy as np
from sklearn import config_context, get_config
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, gen_even_slices

from skbn._classifier import MLPClassifierBN
from skbn._devices import checker, on_host, received, resolved
from skbn._mlp import BaseMLPBN, readable_rows, restorer
from skbn._network import Network
from skbn._random import seeded
from skbn._regressor import MLPRegressorBN
from skbn._sklearn_compat import has_callbacks, safe_indexing
from skbn._training import INTERRUPTED, Fit, Observer, Order, Rows, diverged, train_together
from skbn.backends import get_models

if TYPE_CHECKING:
    from skbn._typing import ArrayLike, MatrixLike

Estimator = TypeVar("Estimator", bound=BaseMLPBN)


@overload
def fit_many(
    estimators: Iterable[Estimator],
    X: MatrixLike,
    y: MatrixLike,
    sample_weight: ArrayLike | None = ...,
    *,
    rows: Sequence[ArrayLike | None] | None = ...,
    n_jobs: int | None = ...,
    return_exceptions: Literal[False] = ...,
) -> list[Estimator]: ...
@overload
def fit_many(
    estimators: Iterable[Estimator],
    X: MatrixLike,
    y: MatrixLike,
    sample_weight: ArrayLike | None = ...,
    *,
    rows: Sequence[ArrayLike | None] | None = ...,
    n_jobs: int | None = ...,
    return_exceptions: bool,
) -> list[Estimator | Exception]: ...
def fit_many(
    estimators, X, y, sample_weight=None, *, rows=None, n_jobs=None, return_exceptions=False
):
    """Fit many estimators to the same data at once, each with its own parameters.

    Every estimator ends up, bit for bit, as its own `fit` would leave it. Small networks train side
    by side: on the CPU over threads, on a card in one launch an epoch. What cannot go together is
    fitted by itself inside of the same call: ``solver="lbfgs"``, `early_stopping`, `warm_start` of
    a fitted estimator, `verbose`, callbacks, and large networks.

    Parameters
    ----------
    estimators : iterable of MLPClassifierBN and MLPRegressorBN
        Estimators to fit; no object may be there twice.

    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Training rows of all estimators.

    y : {array-like, sparse matrix} of shape (n_samples,) or (n_samples, n_outputs)
        Labels or targets.

    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.

    rows : list of (array-like or None), default=None
        For each estimator the indices of the rows that it is fitted to, such as the training part
        of a fold; None are all rows. Where networks train side by side, X is not copied.

    n_jobs : int, default=None
        Threads on the CPU, as joblib counts: -1 is one for each processor. None are as many as
        skbn may use. Results do not depend on it.

    return_exceptions : bool, default=False
        What happens if an estimator cannot be fitted, because training diverges, say. False: the
        exception is raised, and all estimators are as they were. True: it stands in the list that
        is returned, in the place of that estimator, which is as it was; the others are fitted. The
        notes of the exception tell whose it is.

    Returns
    -------
    fitted : list
        The estimators, in order.

    Raises
    ------
    TypeError
        If `estimators` has anything but skbn's classifiers and regressors.
    ValueError
        If an estimator is there twice, if `rows` are not as many as the estimators, and, unless
        `return_exceptions`, for anything that an estimator's `fit` refuses.

    Warns
    -----
    ConvergenceWarning
        Once, with the number of estimators whose training `max_iter` ended.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : Any estimator, pipelines too, over several processes.

    Notes
    -----
    ``random_state=None`` gives each estimator that trains beside others a generator of its own,
    seeded by NumPy's global one. A RandomState instance advances as it would in one fit after the
    other; estimators that share one are fitted so.

    Ctrl-C ends training, with a warning, and all estimators are usable, if all have been trained by
    then; if some have not, KeyboardInterrupt is raised and all are as they were.

    Examples
    --------
    >>> from sklearn.datasets import make_circles
    >>> from skbn import MLPClassifierBN, fit_many
    >>> X, y = make_circles(200, noise=0.1, random_state=1)
    >>> placements = [None, "before", "after", "input"]
    >>> estimators = [
    ...     MLPClassifierBN((20,), batch_norm=placement, max_iter=300, random_state=0)
    ...     for placement in placements
    ... ]
    >>> fitted = fit_many(estimators, X, y)
    >>> max(clf.score(X, y) for clf in fitted) > 0.8
    True
    """
    estimators = list(estimators)
    _check_estimators(estimators)
    if not estimators:
        return []
    restore = [restorer(estimator) for estimator in estimators]
    X, place = received(X)
    try:
        with place:
            data = _Data(X, on_host(y), on_host(sample_weight), estimators[0])
            call = _Call(estimators, data, restore, n_jobs, return_exceptions)
            call.plan(data.indices(rows, len(estimators)))
            call.train()
    except BaseException:
        for put_back in restore:
            put_back()
        raise
    return [call.errors.get(index, estimator) for index, estimator in enumerate(estimators)]


def _check_estimators(estimators):
    """Refuse what is not ours, or is there twice."""
    fits = (MLPClassifierBN.fit, MLPRegressorBN.fit)
    for index, estimator in enumerate(estimators):
        if getattr(type(estimator), "fit", None) not in fits:
            raise TypeError(
                "fit_many fits MLPClassifierBN and MLPRegressorBN, but estimators"
                f"[{index}] is {estimator!r}. Pass the networks themselves, and X as what comes "
                "before them leaves it."
            )
    if len({id(estimator) for estimator in estimators}) < len(estimators):
        raise ValueError("The same object is more than once among the estimators; use clone.")


class _Overseer(Observer):
    """Ends a fit in another thread when training is over for all."""

    def __init__(self, is_over):
        self.is_over = is_over

    def epoch_ended(self, history):
        return self.is_over.is_set()


class _Member(NamedTuple):
    """One of the fits that go together."""

    index: int  # type: ignore[assignment]  # among the estimators
    fit: Fit  # without an order of the rows
    executor_options: dict
    random_state: object  # that shuffles: an instance of the user's, or the state of another


class _Data:
    """X, y and weights, validated once for all estimators that ask the same of them."""

    def __init__(self, X, y, sample_weight, estimator):
        self.given = X, y, sample_weight
        self.X = readable_rows(
            checker(X)(
                X,
                dtype=(np.float64, np.float32),
                accept_sparse=["csr", "csc"],
                ensure_all_finite=False,  # estimators look at the rows that they are given
                estimator=estimator,
                input_name="X",
            )
        )
        self.all_rows = np.arange(self.X.shape[0], dtype=np.intp)
        self._validated = {}
        self._spread = {"targets": [], "weights": []}

    def indices(self, rows, n_estimators):
        """Return the rows of every estimator; equal ones are one array."""
        if rows is None:
            return [self.all_rows] * n_estimators
        rows = list(rows)
        if len(rows) != n_estimators:
            raise ValueError(f"rows has {len(rows)} entries for {n_estimators} estimators.")
        found, by_content = {id(None): self.all_rows}, {self.all_rows.tobytes(): self.all_rows}
        for index, part in enumerate(rows):
            if id(part) not in found:
                selected = self.all_rows[np.asarray(part)]
                if selected.ndim != 1:
                    raise ValueError(
                        f"rows[{index}] must be None, or indices or a mask of one dimension."
                    )
                found[id(part)] = by_content.setdefault(selected.tobytes(), selected)
        return [found[id(part)] for part in rows]

    def part(self, rows):
        """Return X, y and weights as given, of some rows."""
        if rows is self.all_rows:
            return self.given
        X, y, sample_weight = self.given
        if sample_weight is not None and np.ndim(sample_weight) > 0:
            sample_weight = safe_indexing(sample_weight, rows)
        return safe_indexing(X, rows), safe_indexing(y, rows), sample_weight

    def teach(self, estimator, rows):
        """Let an estimator learn what validation tells it; return its targets and row weights.

        Both are over all rows of X, and where folds agree on them they are the same array.
        """
        key = type(estimator), getattr(estimator, "loss", None), id(rows)
        if key not in self._validated:
            student = object.__new__(type(estimator))
            parameters = estimator.get_params(deep=False)
            vars(student).update(parameters)
            _, targets, weights = student._validate_training_data(*self.part(rows), False)
            learned = {k: v for k, v in vars(student).items() if k not in parameters}
            spread = (
                self._spread_out(targets, rows, "targets"),
                self._spread_out(weights, rows, "weights"),
            )
            self._validated[key] = learned, targets, weights, spread
        learned, targets, weights, spread = self._validated[key]
        vars(estimator).pop("feature_names_in_", None)  # of an earlier fit
        vars(estimator).update({name: copy(value) for name, value in learned.items()})
        of_rows = estimator._weigh_classes(targets, weights, False)
        if of_rows is weights:
            return spread
        return spread[0], self._at(of_rows, rows)

    def _at(self, values, rows):
        """Return an array over all rows of X that has values at some rows."""
        if rows is self.all_rows:
            return values
        array = np.zeros((len(self.all_rows), *values.shape[1:]), values.dtype)
        array[rows] = values
        return array

    def _spread_out(self, values, rows, role):
        """Return what ``_at`` does, in an array that has other rows' values already if it can."""
        if values is None:
            return None
        for array, is_known in self._spread[role]:
            if (array.dtype, array.shape[1:]) == (values.dtype, values.shape[1:]):
                known = is_known[rows]
                if np.array_equal(array[rows][known], values[known]):
                    if not known.all():
                        array[rows], is_known[rows] = values, True
                    return array
        array, is_known = self._at(values, rows), np.zeros(len(self.all_rows), dtype=bool)
        is_known[rows] = True
        self._spread[role].append((array, is_known))
        return array


class _Call:
    """One call of :func:`fit_many`."""

    def __init__(self, estimators, data, restore, n_jobs, return_exceptions):
        self.estimators, self.data, self.restore = estimators, data, restore
        self.n_jobs, self.return_exceptions = n_jobs, return_exceptions
        self.errors = {}  # by index
        self.members = {}  # lists of those that go together
        self.networks = {}  # by layers, one of each, without weights
        self.for_this_thread, self.for_any_thread = deque(), deque()  # what there is to do
        self.n_threads = {}  # by models
        self.is_over = Event()  # for all threads, because of an error or of Ctrl-C
        self.unconverged = []
        states = [estimator.random_state for estimator in estimators]
        uses = Counter(id(state) for state in states if isinstance(state, np.random.RandomState))
        self.shared = {identity for identity, n_uses in uses.items() if n_uses > 1}

    def failed(self, index, error):
        """Raise what went wrong with an estimator, or put it in its place."""
        error.add_note(f"This is about estimators[{index}], {self.estimators[index]!r}.")
        if not self.return_exceptions:
            raise error
        self.errors[index] = error

    def plan(self, rows):
        """Validate, and find out what goes together."""
        for index, (estimator, part) in enumerate(zip(self.estimators, rows, strict=True)):
            try:
                if not get_config()["skip_parameter_validation"]:
                    estimator._validate_params()
                self._plan_fit(index, estimator, part)
            except Exception as error:
                self.restore[index]()
                self.failed(index, error)
        for (models, *_), members in self.members.items():
            n_threads = self.n_threads[models]
            n_rounds = max(1, ceil(len(members) / (n_threads * models.n_together)))
            for part in gen_even_slices(len(members), n_threads * n_rounds):
                jobs = self.for_any_thread if n_threads > 1 else self.for_this_thread
                jobs.append(partial(self._train_together, models, members[part]))

    def _plan_fit(self, index, estimator, rows):
        """Plan a fit beside others if it can be, else by itself."""
        received(self.data.X, estimator.device)  # refuses rows that it cannot compute with
        models = get_models(resolved(estimator.device, self.data.X))
        if models not in self.n_threads:
            self.n_threads[models] = models.n_threads(self.n_jobs)
        seed = estimator.random_state
        if seed is None:
            seed = int(check_random_state(None).randint(2**31))
        if not self._goes_together(estimator, rows) or not self._join(index, rows, models, seed):
            # Prints and callbacks come from one thread; a shared generator is drawn from in order.
            stays = estimator.verbose or has_callbacks(estimator) or id(seed) in self.shared
            is_free = not stays and self.n_threads[models] > 1
            jobs = self.for_any_thread if is_free else self.for_this_thread
            jobs.append(partial(self._train_alone, index, rows, seed))

    def _goes_together(self, estimator, rows):
        """Return whether the parameters of an estimator let it train beside others."""
        return not (
            estimator.solver == "lbfgs"
            or estimator.early_stopping
            or estimator.verbose
            or has_callbacks(estimator)
            or not estimator._is_first_fit(False)
            or id(estimator.random_state) in self.shared
            or (estimator.shuffle == "blocks" and rows is not self.data.all_rows)
        )

    def _join(self, index, rows, models, seed):
        """Plan a fit beside others, unless its network is too large for that."""
        estimator, X = self.estimators[index], self.data.X
        targets, weights = self.data.teach(estimator, rows)
        loss = estimator._loss
        layers = tuple(estimator._layers(X.shape[1], loss.n_outputs))
        if layers not in self.networks:
            self.networks[layers] = Network(layers, X.dtype)
        batch_size = estimator._batch_size(len(rows))
        network = self.networks[layers]
        if not models.accepts(network, loss_kind=loss.kind, batch_size=batch_size, X=X):
            self.restore[index]()  # it learns by itself
            return False
        data = Rows(X, targets, weights, rows)
        with seeded(seed) as generator:
            network = network.copy()
            plan = estimator._plan(data, None, None, generator, False, network)
            state = seed if generator is seed else generator.get_state()
        fit = Fit(
            network,
            loss,
            plan.optimizer,
            data,
            None,
            estimator.max_iter,
            estimator.tol,
            estimator.n_iter_no_change,
        )
        key = models, id(targets), loss.kind, loss.n_outputs
        member = _Member(index, fit, plan.executor_options, state)
        self.members.setdefault(key, []).append(member)
        return True

    def train(self):
        """Train everything that is planned.

        This thread works too, so Ctrl-C ends training as it ends a fit, and then everybody's.
        """
        errors = []

        def work(*queues):
            try:
                for job in self._jobs(queues):
                    if not job():
                        self.is_over.set()
            except BaseException as error:
                errors.append(error)
                self.is_over.set()

        config = get_config()

        def help_out():
            with config_context(**config):  # which is each thread's own
                work(self.for_any_thread)

        n_helpers = min(max(self.n_threads.values()) - 1, len(self.for_any_thread))
        helpers = [Thread(target=help_out) for _ in range(n_helpers)]
        for helper in helpers:
            helper.start()
        work(self.for_this_thread, self.for_any_thread)
        for helper in helpers:
            while helper.is_alive():
                try:
                    helper.join(0.1)  # on Windows, Ctrl-C is heard in between
                except KeyboardInterrupt:
                    warnings.warn(INTERRUPTED, stacklevel=3)
                    self.is_over.set()
        if errors:
            raise errors[0]
        if self.for_this_thread or self.for_any_thread:
            raise KeyboardInterrupt
        if self.unconverged:
            warnings.warn(
                "Stochastic Optimizer: Maximum iterations reached and the optimization hasn't "
                f"converged yet for {len(self.unconverged)} of {len(self.estimators)} estimators, "
                f"estimators[{min(self.unconverged)}] the first of them.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _jobs(self, queues):
        """Yield what is left to do, until training is over."""
        for jobs in queues:
            while jobs and not self.is_over.is_set():
                with suppress(IndexError):  # another thread has been faster
                    yield jobs.popleft()

    def _train_alone(self, index, rows, seed):
        """Fit an estimator by itself; return whether training came to its own end."""
        X, y, sample_weight = self.data.part(rows)
        observers = [] if current_thread() is main_thread() else [_Overseer(self.is_over)]
        try:
            return self.estimators[index]._fit(
                X, y, sample_weight, None, None, None, seed=seed, observers=observers
            )
        except Exception as error:
            self.failed(index, error)
            return True

    def _train_together(self, models, members):
        """Train what goes together; return whether training came to its own end."""
        options = [member.executor_options for member in members]
        models = models(
            [member.fit.network for member in members],
            loss_kinds=[option["loss_kind"] for option in options],
            alphas=[option["alpha"] for option in options],
            batch_sizes=[option["batch_size"] for option in options],
            dropout_keys=[option["dropout_key"] for option in options],
        )
        with ExitStack() as lent:
            fits = [member.fit._replace(order=o) for member, o in self._ordered(members, lent)]
            histories, completed, unconverged = train_together(
                models, fits, to_the_end=self.return_exceptions, is_over=self.is_over
            )
        self.unconverged += [members[fit].index for fit in np.flatnonzero(unconverged)]
        self._refuse_diverged(members, histories)
        if completed:
            self._measure_population(models, members)
            self._refuse_diverged(members, histories)
        for (index, fit, *_), history in zip(members, histories, strict=True):
            if index not in self.errors:
                self.estimators[index]._publish(fit.network, fit.optimizer, history)
        return completed

    def _ordered(self, members, lent):
        """Yield each member with its order of rows, one for all that would draw the same."""
        orders = {}
        for member in members:
            data, shuffle = member.fit.data, self.estimators[member.index].shuffle
            generator, key = member.random_state, (id(data.rows), shuffle)
            if isinstance(generator, np.random.RandomState):
                key += (member.index,)
            elif shuffle:
                key += (generator[1].tobytes(), *generator[2:])
            if key not in orders:
                if isinstance(generator, tuple):
                    state, generator = generator, lent.enter_context(seeded(0))
                    generator.set_state(state)
                orders[key] = Order(data._replace(rows=data.rows.copy()), shuffle, generator)
            yield member, orders[key]

    def _refuse_diverged(self, members, histories):
        """Find the networks that are not finite."""
        for (index, fit, *_), history in zip(members, histories, strict=True):
            lost = history.loss_curve and not history.is_finite
            if index not in self.errors and (
                lost or fit.network.first_non_finite_layer() is not None
            ):
                self.restore[index]()
                self.failed(index, diverged(fit.network, history.n_iter))

    def _measure_population(self, models, members):
        """Measure the population statistics; if the user interrupts that, keep the moving ones."""
        wanted = [
            index not in self.errors and self.estimators[index]._wants_population(fit.network)
            for index, fit, *_ in members
        ]
        data = [fit.data for _, fit, *_ in members]
        try:
            models.update_population_statistics(
                data[0].X, [d.weights for d in data], [d.rows for d in data], wanted
            )
        except KeyboardInterrupt:
            for _, fit, *_ in members:
                fit.network.use_population = False
            warnings.warn(INTERRUPTED, stacklevel=2)
