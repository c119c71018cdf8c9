"""The epoch loop by itself: schedules, histories, stopping, restoring, and what ends it.

An executor with a script stands in for the real ones, so that every decision can be staged.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

from math import inf, nan

import numpy as np
import pytest
from cases import SOLVERS, network_case, optimizer
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from skbn._losses import log_loss
from skbn._training import NOT_FINITE, History, Observer, Observers, Rows, train
from skbn.backends.records import OptimizerKind

N_ROWS = 10


class Scripted:
    """Says what it is told, epoch by epoch, and writes the epoch's number into the weights."""

    def __init__(self, network, losses, scores=(), validation_losses=()):
        self.network, self.losses, self.scores = network, losses, scores
        self.validation_losses = validation_losses or [0.5] * len(scores)
        self.epoch = self.entered = 0
        self.orders = []

    def __enter__(self):
        self.entered += 1
        return self

    def __exit__(self, *exception):
        self.entered -= 1

    def new_sums(self):
        return np.zeros(3)

    def train(self, X, targets, weights, rows, start, record, memory, sums):
        """Half of the rows a call, as an executor does whose epochs are long."""
        assert self.entered == 1
        if start == 0:
            self.orders.append(rows.copy())
            sums += [0.0, N_ROWS // 2, 1]
            return N_ROWS // 2
        loss = self.losses[self.epoch]
        self.epoch += 1
        self.network.params[:] = self.network.state[:] = self.epoch
        if loss is KeyboardInterrupt:
            raise KeyboardInterrupt
        record["t"] += 1
        sums += [loss * N_ROWS, N_ROWS // 2, 2]
        return N_ROWS

    def evaluate(self, X, targets, weights, rows):
        loss, score = self.validation_losses[self.epoch - 1], self.scores[self.epoch - 1]
        return np.array([loss * N_ROWS, N_ROWS, score])


class Recorder(Observer):
    """Writes down what it hears; wants to stop after an epoch, if told so."""

    def __init__(self, stop_after=None):
        self.heard, self.stop_after = [], stop_after

    def epoch_began(self):
        self.heard.append("began")

    def epoch_ended(self, history):
        self.heard.append((history.n_iter, history.loss_curve[-1], history.best_iter))
        return history.n_iter == self.stop_after

    def message(self, text):
        self.heard.append(text)

    def close(self):
        self.heard.append("closed")


def run(losses, scores=(), *, rule=None, history=None, n_classes=2, **options):
    """Train on a script; return everything that it leaves."""
    network = network_case().network()
    options = {
        "max_iter": len(losses),
        "shuffle": False,
        "random_state": np.random.RandomState(0),
        "early_stopping": False,
        "tol": 0.01,
        "n_iter_no_change": 2,
        "observers": Observers(),
    } | options
    executor = Scripted(network, losses, scores, options.pop("validation_losses", ()))
    history = history or History()
    rule = rule or optimizer(network, "plain", learning_rate_init=1.0)
    rows = Rows(np.zeros((N_ROWS, 2)), np.zeros(N_ROWS), None, np.arange(N_ROWS))
    completed = train(
        network,
        executor,
        log_loss(n_classes),
        rule,
        history,
        rows,
        rows if len(scores) else None,
        **options,
    )
    assert executor.entered == 0
    return network, history, rule, executor, completed


ignore_convergence = pytest.mark.filterwarnings(
    "ignore:Stochastic Optimizer:sklearn.exceptions.ConvergenceWarning"
)


# Optimizer.


@pytest.mark.parametrize("solver", SOLVERS)
def test_optimizer_record(solver):
    network = network_case().network(np.float32)
    rule = optimizer(network, solver, learning_rate_init=0.25, beta_1=0.5, beta_2=0.75)
    (record,) = rule.record
    assert record["kind"] == OptimizerKind[SOLVERS[solver]["solver"].upper()]
    assert (record["t"], record["learning_rate"]) == (0, 0.25)
    assert (record["beta_1"], record["beta_2"]) == (0.5, 0.75)
    assert record["nesterov"] == SOLVERS[solver].get("nesterovs_momentum", True)
    assert rule.memory.dtype == network.dtype
    assert rule.memory.size == network.n_params * (2 if solver == "adam" else 1)
    assert not rule.memory.any()


def test_optimizer_copy():
    rule = optimizer(network_case().network(), "adam")
    twin = rule.copy()
    twin.memory += 1
    twin.record["t"] += 1
    assert not rule.memory.any()
    assert rule.record["t"] == 0


@pytest.mark.parametrize("solver", ["plain", "adam", "rmsprop"])
def test_invscaling(solver):
    """learning_rate_init / (rows seen + 1)**power_t, for "sgd" alone."""
    rule = optimizer(
        network_case().network(),
        solver,
        learning_rate_init=0.5,
        schedule="invscaling",
        power_t=0.25,
    )
    for n_seen in (10, 20):
        rule.end_epoch(n_seen)
        expected = 0.5 / (n_seen + 1) ** 0.25 if solver == "plain" else 0.5
        assert rule.record["learning_rate"][0] == pytest.approx(expected, rel=1e-15)


def test_adaptive():
    """A fifth at a time, down to 1e-6; others stop at once."""
    rule = optimizer(
        network_case().network(), "plain", learning_rate_init=2e-5, schedule="adaptive"
    )
    rates, recorder = [], Recorder()
    while not rule.should_stop("It did not improve.", Observers([recorder])):
        rates.append(rule.record["learning_rate"][0])
    assert rates == pytest.approx([4e-6, 8e-7])
    assert recorder.heard[0] == "It did not improve. Setting learning rate to 0.000004"
    assert recorder.heard[-1] == "It did not improve. Learning rate too small. Stopping."
    for solver, schedule in [("plain", "constant"), ("adam", "adaptive")]:
        rule = optimizer(network_case().network(), solver, schedule=schedule)
        assert rule.should_stop("It did not improve.", Observers())


# History.


@pytest.mark.parametrize(
    ("early_stopping", "values", "counts", "best"),
    [
        # Losses must fall by more than tol = 0.1 below the best; every new best is taken.
        (False, [1.0, 0.5, 0.45, 0.44, 0.3], [0, 0, 1, 2, 0], [1, 1, 1, 1, 1]),
        (False, [1.0, 1.0, 2.0, 0.95], [0, 1, 2, 3], [1, 0, 0, 1]),
        # Scores must rise by tol or more above the best.
        (True, [0.5, 0.6, 0.65, 0.75], [0, 0, 1, 0], [1, 1, 1, 1]),
        (True, [0.5, 0.5, 0.4, 0.55], [0, 1, 2, 3], [1, 0, 0, 1]),
    ],
)
def test_history(early_stopping, values, counts, best):
    history = History()
    for epoch, value in enumerate(values):
        history.loss_curve.append(1.0 if early_stopping else value)
        if early_stopping:
            history.validation_scores.append(value)
        assert history.update(early_stopping, 0.1) == bool(best[epoch])
        assert history.no_improvement_count == counts[epoch]
        assert history.best_iter == max(i + 1 for i in range(epoch + 1) if best[i])
    assert history.best_loss == min(history.loss_curve)
    assert history.best_validation_score == (max(values) if early_stopping else -inf)


def test_history_copy():
    history = History(n_iter=3, loss_curve=[1.0])
    twin = history.copy()
    assert twin == history
    twin.loss_curve.append(2.0)
    twin.n_iter = 4
    assert history == History(n_iter=3, loss_curve=[1.0])


# The loop.


@ignore_convergence
def test_curves():
    _, history, rule, _, completed = run(
        [0.9, 0.7, 0.5], [5, 6, 7], validation_losses=[0.8, 0.75, 0.7]
    )
    assert completed
    assert history.loss_curve == pytest.approx([0.9, 0.7, 0.5])
    assert history.train_scores == [0.3, 0.3, 0.3]
    assert history.validation_scores == [0.5, 0.6, 0.7]
    assert history.validation_loss_curve == [0.8, 0.75, 0.7]
    assert (history.n_iter, history.n_samples_seen, history.best_iter) == (3, 30, 3)
    assert rule.record["t"][0] == 3


@pytest.mark.parametrize("early_stopping", [False, True])
def test_stops_when_nothing_improves(early_stopping):
    """After more than n_iter_no_change epochs; with early stopping the best one comes back."""
    if early_stopping:
        network, history, *_ = run([1.0] * 9, [5, 8, 7, 8, 8, 9], early_stopping=True)
        assert history.validation_scores == [0.5, 0.8, 0.7, 0.8, 0.8]
        assert (history.best_iter, history.best_validation_score) == (2, 0.8)
    else:
        network, history, *_ = run([1.0, 0.5, 0.5, 0.6, 0.495, 0.1])
        assert history.loss_curve == pytest.approx([1.0, 0.5, 0.5, 0.6, 0.495])
        assert (history.best_iter, history.best_loss) == (5, 0.495)
    assert history.n_iter == 5
    assert set(network.params) == set(network.state) == {2 if early_stopping else 5}


@ignore_convergence
def test_adaptive_goes_on():
    rule = optimizer(network_case().network(), "plain", learning_rate_init=1.0, schedule="adaptive")
    _, history, *_ = run([1.0] * 9, rule=rule)
    assert history.n_iter == 9
    assert rule.record["learning_rate"][0] == pytest.approx(1 / 25)


@ignore_convergence
def test_shuffle():
    """Permutations compose, epoch after epoch, as scikit-learn's do; else rows stay in order."""
    orders = run([1.0, 0.5, 0.2], shuffle=True)[3].orders
    random_state, expected = np.random.RandomState(0), np.arange(N_ROWS)
    for order in orders:
        random_state.shuffle(expected)
        assert_array_equal(order, expected)
    for order in run([1.0, 0.5], shuffle="blocks")[3].orders:
        assert_array_equal(np.sort(order), np.arange(N_ROWS))
        assert not np.array_equal(order, np.arange(N_ROWS))
    for order in run([1.0, 0.5])[3].orders:
        assert_array_equal(order, np.arange(N_ROWS))


def test_incremental():
    """One epoch, without a word, however many there might be."""
    _, history, *_ = run([1.0, 0.5, 0.2], max_iter=3, incremental=True)
    assert history.loss_curve == [1.0]
    _, history, *_ = run([0.9], history=history, incremental=True)
    assert history.loss_curve == pytest.approx([1.0, 0.9])
    assert (history.n_iter, history.n_samples_seen) == (1, 20)


def test_last_epoch_warns():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        run([1.0, 0.5])


def test_silent_unless_observed(capsys):
    run([1.0] * 4, [5] * 4, early_stopping=True)
    assert capsys.readouterr().out == ""


def test_observers():
    """All hear everything, in order, whatever one of them wants; the figures are those so far."""
    hasty, patient = Recorder(stop_after=2), Recorder()
    *_, completed = run([1.0, 0.5, 0.2], observers=Observers([hasty, patient]))
    assert hasty.heard == ["began", (1, 1.0, 1), "began", (2, 0.5, 2), "closed"]
    assert patient.heard == hasty.heard
    assert completed


def test_observers_with_early_stopping():
    """The best epoch is chosen before they hear of the epoch, and comes back if they stop."""
    recorder = Recorder(stop_after=3)
    network, *_ = run(
        [1.0, 0.5, 0.2], [5, 9, 6], early_stopping=True, observers=Observers([recorder])
    )
    assert recorder.heard[1::2] == [(1, 1.0, 1), (2, 0.5, 2), (3, 0.2, 2)]
    assert set(network.params) == {2}


def test_message():
    recorder = Recorder()
    run([1.0] * 5, [5] * 5, early_stopping=True, observers=Observers([recorder]))
    assert recorder.heard[-2:] == [
        "Validation score did not improve more than tol=0.010000 for 2 consecutive epochs. "
        "Stopping.",
        "closed",
    ]


@pytest.mark.parametrize(
    ("losses", "scores", "warning"),
    [
        ([1.0, 0.5], [], "Maximum iterations"),
        ([1.0, KeyboardInterrupt], [], "interrupted by user"),
        ([1.0, nan], [9, 9], "are restored"),
    ],
)
def test_observers_close_before_warnings(losses, scores, warning, monkeypatch):
    """What they have begun to print is complete when something else is printed."""
    recorder = Recorder()
    monkeypatch.setattr(
        "skbn._training.warnings.warn", lambda text, *_, **__: recorder.message(text)
    )
    run(losses, scores, early_stopping=bool(scores), observers=Observers([recorder]))
    assert recorder.heard[-2] == "closed"
    assert warning in recorder.heard[-1]


def test_observers_close_before_errors():
    recorder = Recorder()
    with pytest.raises(ValueError, match="diverged"):
        run([1.0, inf], observers=Observers([recorder]))
    assert recorder.heard[2:] == ["began", (2, inf, 1), "closed"]


def test_interrupt():
    """What has been learnt stays, with scikit-learn's warning."""
    with pytest.warns(UserWarning, match="interrupted by user"):
        network, history, *_, completed = run([1.0, 0.5, KeyboardInterrupt, 0.1])
    assert not completed
    assert history.loss_curve == pytest.approx([1.0, 0.5])
    assert set(network.params) == {3}
    with pytest.warns(UserWarning, match="interrupted by user"):
        network, *_ = run([1.0, 0.5, KeyboardInterrupt], [9, 5, 5], early_stopping=True)
    assert set(network.params) == {1}


@pytest.mark.parametrize("loss", [nan, inf])
def test_divergence(loss):
    """An error that begins with scikit-learn's sentence and names the epoch; or the best epoch."""
    with pytest.raises(ValueError, match="epoch 2") as error:
        run([1.0, loss, 0.5])
    assert str(error.value).startswith(NOT_FINITE)
    with pytest.raises(ValueError, match="epoch 1"):
        run([loss], [5], early_stopping=True)
    with pytest.warns(ConvergenceWarning, match="epoch 1 are restored"):
        network, history, *_ = run([1.0, loss, 0.5], [6, 5, 5], early_stopping=True)
    assert set(network.params) == {1}
    assert_array_equal(history.validation_scores, [0.6, nan])


@ignore_convergence
def test_validation_that_overflows():
    """A curve, and no more, unless it is what decides."""
    given = {"scores": [5, 5, 5], "validation_losses": [0.5, inf, 0.5]}
    _, history, *_ = run([1.0, 0.5, 0.2], **given)
    assert history.validation_loss_curve == [0.5, inf, 0.5]
    assert_array_equal(history.validation_scores, [0.5, nan, 0.5])
    with pytest.warns(ConvergenceWarning, match="epoch 1 are restored"):
        network, *_ = run([1.0, 0.5, 0.2], **given, early_stopping=True)
    assert set(network.params) == {1}


@ignore_convergence
@pytest.mark.parametrize(("n_classes", "expected"), [(1, 1.0), (2, 0.3), (3, 0.3)])
def test_accuracy_is_what_the_loss_says(n_classes, expected):
    assert run([1.0, 0.5], n_classes=n_classes)[1].train_scores == [expected] * 2
