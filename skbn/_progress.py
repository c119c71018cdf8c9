"""What ``verbose`` shows of the epochs: scikit-learn's lines, or one bar where there is a terminal.

The bar is one line of plain ASCII, rewritten after a carriage return and padded to the width of
the terminal, so that it needs no escape sequence and no encoding. It is drawn between epochs, by
the thread that trains. Rejected: tqdm and rich, which a user would have to install, and which
redraw from a thread of their own.
"""
# SPDX-License-Identifier: BSD-3-Clause

import sys
from math import inf
from shutil import get_terminal_size
from time import monotonic

from skbn._training import Observer

INTERVAL = 0.1  # seconds between two drawings: an eye sees no more, and a fit takes milliseconds
NARROWEST_BAR = 5


def progress(verbose, max_iter, validates):
    """Return the observer that a true ``verbose`` asks for.

    Parameters
    ----------
    verbose : bool or int
        More than 1 asks for a bar. Where stdout is not a terminal (a file, a notebook) that would
        leave every drawing of it behind, so lines are printed there.
    max_iter : int
        Epochs at most.
    validates : bool
        Whether epochs have a validation score.
    """
    isatty = getattr(sys.stdout, "isatty", None)  # stdout may be None, or a class of the user's
    if verbose > 1 and isatty is not None and isatty():
        return EpochBar(max_iter, validates)
    return EpochLines(validates)


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class EpochLines(Observer):
    """Prints what scikit-learn's MLP prints, word for word."""

    def __init__(self, validates):
        self.validates = validates

    def epoch_ended(self, history):
        print(f"Iteration {history.n_iter}, loss = {history.loss_curve[-1]:.8f}")
        if self.validates:
            print(f"Validation score: {history.validation_scores[-1]:f}")
        return False

    def message(self, text):
        print(text)


class EpochBar(Observer):
    """Keeps one line up to date; a message, or the end of training, closes it."""

    def __init__(self, max_iter, validates):
        self.max_iter, self.validates = max_iter, validates
        self.started, self.drawn = monotonic(), -inf
        self.history = None  # what the open line shows; None while no line is open

    def epoch_ended(self, history):
        self.history = history
        now = monotonic()
        if now - self.drawn >= INTERVAL:
            self.drawn = now
            epochs_left = self.max_iter - history.n_iter
            seconds_left = (now - self.started) / history.n_iter * epochs_left
            self._draw(f"{_clock(seconds_left)} left")
        return False

    def message(self, text):
        self.close()
        print(text)

    def close(self):
        if self.history is not None:
            self._draw(_clock(monotonic() - self.started), end="\n")
            self.history = None

    def _draw(self, time, end=""):
        n_iter = self.history.n_iter
        epochs = f"Epoch {n_iter:{len(str(self.max_iter))}}/{self.max_iter}"
        figures = f"loss {self.history.loss_curve[-1]:.6f}"
        if self.validates:
            figures += f", validation score {self.history.validation_scores[-1]:.4f}"
        columns = get_terminal_size().columns - 1  # a full last column makes some terminals wrap
        width = columns - len(f"{epochs} [] {figures}, {time}")
        bar = ""
        if width >= NARROWEST_BAR:
            bar = f"[{'#' * (width * n_iter // self.max_iter):.<{width}}] "
        line = f"{epochs} {bar}{figures}, {time}"[:columns]
        print(f"\r{line:<{columns}}", end=end, flush=True)
