"""What verbose shows, as it stands on a terminal in the end."""
# SPDX-License-Identifier: BSD-3-Clause

import re
import sys
import warnings
from math import nan

import pytest

import skbn._progress
from skbn import MLPClassifierBN
from skbn._progress import EpochBar, EpochLines, progress
from skbn._training import History


class Terminal:
    """What pytest captures, as a terminal shows it."""

    def __init__(self, capsys):
        self.capsys, self.text = capsys, ""

    def written(self):
        """All that has been written so far."""
        self.text += self.capsys.readouterr().out
        return self.text

    def lines(self):
        """The lines as they stand: what follows a carriage return is written over the rest."""
        shown = []
        for line in self.written().split("\n"):
            row = ""
            for part in line.split("\r"):
                row = part + row[len(part) :]
            shown.append(row.rstrip())
        return shown


@pytest.fixture
def terminal(capsys, monkeypatch):
    """A stdout that claims to be a terminal: the class does, because a test gets its own object."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stdout: True)
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal(capsys)


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(skbn._progress, "monotonic", lambda: Clock.now)
    return Clock


class Epochs:
    """Shows an observer one epoch after the other."""

    def __init__(self, observer):
        self.observer, self.history = observer, History()

    def end(self, loss=0.5, score=None):
        self.history.append(1, loss, 0.5, None if score is None else (0.0, score))
        assert not self.observer.epoch_ended(self.history)


def make(seed, **params):
    defaults = {"max_iter": 5, "learning_rate_init": 0.02, "verbose": 2}
    return MLPClassifierBN((6,), random_state=seed, **(defaults | params))


# Which one.


@pytest.mark.parametrize(
    ("verbose", "on_terminal", "expected"),
    [
        (True, True, EpochLines),
        (1, True, EpochLines),
        (2, True, EpochBar),
        (10, True, EpochBar),
        (2, False, EpochLines),
    ],
)
def test_choice(verbose, on_terminal, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal)
    assert type(progress(verbose, 10, False)) is expected


@pytest.mark.parametrize("stdout", [None, object()], ids=["none", "no isatty"])
def test_stdout_of_another_kind(stdout, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stdout)
    assert type(progress(2, 10, False)) is EpochLines


def test_lines(capsys):
    epochs = Epochs(EpochLines(validates=True))
    epochs.end(0.25, 0.5)
    epochs.observer.message("Stopping.")
    epochs.observer.close()
    assert capsys.readouterr().out == (
        "Iteration 1, loss = 0.25000000\nValidation score: 0.500000\nStopping.\n"
    )


# The bar.


def test_bar(terminal, clock):
    epochs = Epochs(EpochBar(20, validates=True))
    for _ in range(5):
        clock.now += 1.0
        epochs.end(0.25, 0.5)
    epochs.observer.close()
    drawn = terminal.written().split("\r")
    assert drawn[0] == ""  # a carriage return comes before a drawing, never behind it
    assert [line[:13] for line in drawn[1:-1]] == [f"Epoch  {n}/20 [" for n in range(1, 6)]
    figures = "loss 0.250000, validation score 0.5000"
    bar = re.escape(figures)
    assert re.fullmatch(rf"Epoch  5/20 \[#+\.+\] {bar}, 0:00:15 left", drawn[5])
    last, empty = terminal.lines()
    assert re.fullmatch(rf"Epoch  5/20 \[#+\.+\] {bar}, 0:00:05", last)
    assert last.count("#") == pytest.approx(last.count(".") / 3, abs=1.5)
    assert empty == ""


def test_ten_drawings_a_second(terminal, clock):
    epochs = Epochs(EpochBar(10_000, validates=False))
    for _ in range(1000):
        clock.now += 0.002
        epochs.end()
    assert 15 <= terminal.written().count("\r") <= 20
    epochs.observer.close()
    assert terminal.lines()[0].startswith("Epoch  1000/10000 [")  # the last epoch is shown always


def test_full_bar(terminal, clock):
    epochs = Epochs(EpochBar(3, validates=False))
    for _ in range(3):
        epochs.end()
    epochs.observer.close()
    (last, _) = terminal.lines()
    assert re.fullmatch(r"Epoch 3/3 \[#+\] loss 0.500000, 0:00:00", last)


@pytest.mark.parametrize("columns", [20, 40, 50, 60, 200])
def test_width(columns, terminal, clock, monkeypatch):
    """One column less than there are, so that nothing wraps; the bar goes first."""
    monkeypatch.setenv("COLUMNS", str(columns))
    epochs = Epochs(EpochBar(20, validates=True))
    for loss in (1e6, 0.5):
        clock.now += 60.0
        epochs.end(loss, 0.5)
    epochs.observer.close()
    drawn = terminal.written().rstrip("\n").split("\r")[1:]
    assert {len(line) for line in drawn} == {columns - 1}
    assert [line[:11] for line in drawn] == ["Epoch  1/20", "Epoch  2/20", "Epoch  2/20"]
    assert ("[" in drawn[-1]) == (columns > 60)


def test_resized(terminal, clock, monkeypatch):
    epochs = Epochs(EpochBar(20, validates=False))
    for columns in (100, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        clock.now += 1.0
        epochs.end()
    assert [len(line) for line in terminal.written().split("\r")] == [0, 99, 59]


def test_long_time(terminal, clock):
    """Also more than a timedelta can hold: a huge max_iter says "until it stops"."""
    epochs = Epochs(EpochBar(10**15, validates=False))
    clock.now += 3600.0
    epochs.end()
    assert re.search(r", 99\d{13}:\d\d:\d\d left$", terminal.lines()[0])
    clock.now += 59.7
    epochs.observer.close()
    assert terminal.lines()[0].endswith(" 1:01:00")


def test_nothing_to_close(terminal):
    EpochBar(20, validates=False).close()
    assert terminal.written() == ""


def test_messages_have_lines_of_their_own(terminal, clock):
    epochs = Epochs(EpochBar(4, validates=False))
    epochs.end()
    epochs.observer.message("Setting learning rate to 0.1")
    clock.now += 1.0
    epochs.end()
    epochs.observer.message("Stopping.")
    epochs.observer.close()
    lines = terminal.lines()
    assert lines[1::2] == ["Setting learning rate to 0.1", "Stopping."]
    assert [line[:10] for line in lines[::2]] == ["Epoch 1/4 ", "Epoch 2/4 ", ""]


# In a fit.


def test_fit(blobs, seed, terminal):
    X, y = blobs()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        est = make(seed).fit(X, y)
    assert "Maximum iterations" in str(caught[0].message)
    last, empty = terminal.lines()
    assert last.startswith("Epoch 5/5 [")
    assert f"] loss {est.loss_:.6f}, 0:0" in last
    assert empty == ""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_same_lines_where_there_is_no_terminal(blobs, seed, capsys):
    X, y = blobs()
    make(seed, early_stopping=True, verbose=1).fit(X, y)
    lines = capsys.readouterr().out
    assert lines.count("Validation score: ") == 5
    make(seed, early_stopping=True, verbose=2).fit(X, y)
    assert capsys.readouterr().out == lines


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_no_score_without_validation(blobs, seed, terminal):
    """Not even after a fit with validation, whose curve goes on with NaN."""
    X, y = blobs()
    est = make(seed, warm_start=True).fit(X, y, X_val=X, y_val=y)
    assert f"validation score {est.validation_scores_[-1]:.4f}, " in terminal.lines()[0]
    est.fit(X, y)
    assert "score" not in terminal.lines()[1]


def test_early_stopping(blobs, seed, terminal):
    X, y = blobs()
    est = make(seed, early_stopping=True, n_iter_no_change=1, tol=0.5, max_iter=20).fit(X, y)
    assert est.n_iter_ < 20
    bar, message, empty = terminal.lines()
    assert bar.startswith(f"Epoch {est.n_iter_:2d}/20 [#")
    assert f"validation score {est.validation_scores_[-1]:.4f}, " in bar
    assert message.startswith("Validation score did not improve")
    assert message.endswith("Stopping.")
    assert empty == ""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_lbfgs(blobs, seed, terminal):
    X, y = blobs()
    est = make(seed, solver="lbfgs", learning_rate_init=0.001).fit(X, y)
    bar, empty = terminal.lines()
    assert bar.startswith("Epoch 5/5 [#")
    assert f"] loss {est.loss_:.6f}, 0:0" in bar
    assert empty == ""


def test_interrupt(blobs, seed, terminal, monkeypatch):
    """The line is closed when the warning comes, and shows the last epoch that ended."""
    run_epoch, calls = skbn._training._run_epoch, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_epoch(*args)

    monkeypatch.setattr(skbn._training, "_run_epoch", interrupted)
    monkeypatch.setattr(
        "skbn._training.warnings.warn", lambda text, *_, **__: print(f"<{text}>", end="")
    )
    X, y = blobs()
    make(seed).fit(X, y)
    bar, warning = terminal.lines()
    assert bar.startswith("Epoch 2/5 [#")
    assert warning == "<Training interrupted by user.>"


def test_divergence(blobs, seed, terminal, monkeypatch):
    monkeypatch.setattr(skbn._training, "_run_epoch", lambda *_: (nan, [0.0]))
    X, y = blobs()
    with pytest.raises(ValueError, match="epoch 1"):
        make(seed).fit(X, y)
    bar, empty = terminal.lines()
    assert "loss nan" in bar
    assert empty == ""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_silence(blobs, seed, terminal):
    X, y = blobs()
    silent = make(seed, verbose=0).fit(X, y)
    assert terminal.written() == ""
    shown = make(seed).fit(X, y)
    assert terminal.written() != ""
    assert shown.loss_curve_ == silent.loss_curve_
