"""Time whole fits of skbn against its rivals, as ratios measured in one process.

    python asv_benchmarks/compare_rivals.py [C1 C2 ...] [--repeats N] [--markdown] [--json FILE]

What a row means
----------------
Both sides train the same network on the same float32 rows for the same number of steps, each in its
own best way (contenders.py says how). They take turns in one process (turns.py); the ratio is rival
/ ours.

Threads: rows of one network run in a process that is bound to a single core for the length of the
row (where the system can do that), with BLAS, OpenMP and torch limited to one thread. JAX has no
such call: XLA sizes its thread pool by the cores it may use when its first computation starts,
which happens inside the binding, so it gets one.

Speed without accuracy is worth nothing, so each row carries the training accuracy of both sides
(median over the turns, a seed each) and says so where they differ by more than ACCURACY_MARGIN.
"""
# SPDX-License-Identifier: BSD-3-Clause

import functools
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import contenders
import numpy as np
from contenders import (
    ASIDE,
    SEARCH,
    SMALL_ADAM,
    SMALL_SGD,
    TINY,
    TWO_LAYERS,
    WIDE,
    Problem,
    fitted,
    jax_net,
    keras_net,
    products,
    skbn_net,
    sklearn_net,
    torch_net,
)
from results import arguments, load_average, machine, report, verdict
from sklearn.exceptions import ConvergenceWarning
from turns import ONE, compare, on_threads, one_core

PACKAGES = ("skbn", "numpy", "scipy", "scikit-learn", "torch", "jax", "keras")
ACCURACY_MARGIN = 0.02  # about twice the spread of one seed's training accuracy on circles


@dataclass(frozen=True)
class Target:
    """One row; a bound that is None is not set."""

    id: str
    what: str
    problem: Problem | None
    rival: Callable
    must: float | None
    aim: float | None
    unit: str = "x"
    floor: str | None = None  # what nobody could beat, where that is known
    floor_of: Callable | None = None  # or the contender that shows it, in turn with the others
    ours: Callable = skbn_net
    one_core: bool = True
    our_threads: tuple | None = ONE  # numbers of threads to be tried; None leaves them alone
    rival_threads: tuple | None = ONE
    compare_accuracy: bool = True


FREE = {"one_core": False, "our_threads": None, "rival_threads": None}

TARGETS = [
    Target("C1", "2-50-1, SGD: torch eager", SMALL_SGD, torch_net, 100, 180),
    Target("C2", "2-50-1, Adam: torch eager", SMALL_ADAM, torch_net, 120, 220),
    Target("C3", "2-50-1, SGD: scikit-learn without batch norm", SMALL_SGD, sklearn_net, 40, 60),
    *(
        Target(
            "C4",
            f"2-50-1, SGD: Keras's fit on JAX, {what}",
            SMALL_SGD,
            functools.partial(keras_net, **options),
            must,
            aim,
        )
        for what, options, must, aim in [
            ("once compiled", {"by_epochs": False}, 100, None),
            ("once compiled, an epoch of steps an execution", {}, 100, None),
            ("compiling counted", {"with_compiling": True}, None, 300),
        ]
    ),
    Target("C5", "2-50-1, SGD: JAX, an epoch in one lax.scan", SMALL_SGD, jax_net, 4, 7),
    Target("C6", "2-50-50-1, SGD: torch eager", TWO_LAYERS, torch_net, 40, 60),
    Target(
        "C9",
        "64-256-128-10, batch 256, Adam: torch eager",
        WIDE,
        torch_net,
        must=1.5,
        aim=1.85,
        floor_of=products,
    ),
    Target(
        "C14",
        "GridSearchCV, 16 candidates x 3 folds, n_jobs=2: scikit-learn without batch norm",
        SEARCH,
        sklearn_net,
        must=10,
        aim=20,
        **FREE,
    ),
    *(
        Target(
            id,
            f"2-50-1, SGD, {what}: scikit-learn without batch norm",
            SMALL_SGD,
            functools.partial(fitted, sklearn_net, method, n_rows),
            must,
            aim,
            ours=functools.partial(fitted, skbn_net, method, n_rows),
            **({} if n_rows < 1000 else FREE),
        )
        for id, what, method, n_rows, must, aim in [
            ("C15", "predict one row", "predict", 1, 1, 1.5),
            ("C15", "predict a million rows", "predict", 1_000_000, 1.5, 3),
            ("C18", "partial_fit of 32 rows", "partial_fit", 32, 2, 4),
        ]
    ),
    Target(
        "C16",
        "import beyond scikit-learn's; beside it the import of sklearn.neural_network",
        None,
        contenders.sklearn_import,
        must=25,
        aim=10,
        unit="ms",
        ours=contenders.skbn_import,
        compare_accuracy=False,
        **FREE,
    ),
    Target(
        "C16",
        "fixed cost: a fit of one step, 32 x 2, 2 hidden units; beside it scikit-learn's",
        TINY,
        sklearn_net,
        must=1,
        aim=0.5,
        unit="ms",
        compare_accuracy=False,
    ),
]


def accuracy(predict_proba, X, y):
    proba = np.asarray(predict_proba(X)).reshape(len(X), -1)
    labels = proba.argmax(1) if proba.shape[1] > 1 else proba[:, 0] > 0.5
    return float(np.mean(labels == y))


def measure(target, repeats):
    """Time one target; its row as a dictionary."""

    def score(predict_proba):
        return accuracy(predict_proba, *target.problem.data())

    def side(contender, threads):
        variants = contender(target.problem)
        return variants if threads is None else on_threads(variants, threads)

    sides = {
        "ours": functools.partial(side, target.ours, target.our_threads),
        "rival": functools.partial(side, target.rival, target.rival_threads),
    }
    if target.floor_of is not None:
        sides["floor"] = functools.partial(side, target.floor_of, target.rival_threads)
    load = load_average()
    with one_core() if target.one_core else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter ends every fit here
        scores = {"accuracy": score} if target.compare_accuracy else {}
        row = compare(target, sides, repeats, scores, ASIDE)
    row |= {"load": load, "met": verdict(row)}
    found = [row[who]["accuracy"] for who in ("ours", "rival") if "accuracy" in row.get(who, ())]
    if found and np.ptp(found) > ACCURACY_MARGIN:
        row["met"] += ", but accuracies differ"
    return row


def main(description, targets):
    args = arguments(description, [target.id for target in targets])
    about, rows = machine(PACKAGES), []
    for target in targets:
        if target.id not in args.ids:
            continue
        print(f"{target.id}: {target.what} ...", file=sys.stderr, flush=True)
        if args.torch_compile and target.rival is torch_net:
            target = replace(target, rival=functools.partial(torch_net, with_compile=True))
        rows.append(measure(target, args.repeats))
    report(args, about, rows, "accuracy")


if __name__ == "__main__":
    main(__doc__.partition("\n")[0], TARGETS)
