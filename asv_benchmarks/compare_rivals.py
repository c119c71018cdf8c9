"""Time whole fits of skbn against its rivals, as ratios measured in one process.

    python asv_benchmarks/compare_rivals.py [C1 C2 ...] [--repeats N] [--markdown] [--json FILE]

What a row means
----------------
Both sides train the same network on the same float32 rows for the same number of steps, from
Glorot-uniform weights, through the interface a user would call, from unbuilt model to trained
model. They take turns in one process (turns.py says how); the ratio is rival / ours.

Threads: rows of one network run in a process that is bound to a single core for the length of the
row (where the system can do that), with BLAS and OpenMP limited to one thread by threadpoolctl and
torch by ``torch.set_num_threads(1)``. JAX has no such call: XLA sizes its thread pool by the cores
it may use when its first computation starts, which happens inside the binding, so it gets one.

Rivals at their best: torch eager with its data in tensors beforehand, one gather an epoch, no
DataLoader, gradients set to None, and the fastest of its optimizer implementations; JAX with one
jitted ``lax.scan`` an epoch, donated state, compiled before the clock starts and dispatched without
a second thread; scikit-learn's MLPClassifier has no batch norm to do.

Speed without accuracy is worth nothing, so each row carries the training accuracy of both sides
(median over the turns, a seed each) and says so where they differ by more than ACCURACY_MARGIN.
"""
# SPDX-License-Identifier: BSD-3-Clause

import functools
import itertools
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from sklearn.datasets import make_circles, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from turns import (
    arguments,
    enter,
    machine,
    met,
    quartiles,
    report,
    spread,
    summary,
    timed,
    turns,
)

PACKAGES = ("skbn", "numpy", "scipy", "scikit-learn", "torch", "jax")
ACCURACY_MARGIN = 0.02  # about twice the spread of one seed's training accuracy on circles

LEARNING_RATE = {"sgd": 0.01, "adam": 0.001}
MOMENTUM = 0.9
BN_EPSILON = 1e-3
BN_RETAINED = 0.9  # of the moving statistics; torch counts the other way round

# Variants beyond what the targets name: timed once and noted, never a row's rival.
ASIDE = {"whole fit in one call", "torch.compile"}


# --------------------------------------------------------------------------- what both sides train


@dataclass(frozen=True)
class Problem:
    """Rows, network and schedule, the same for both sides of a row."""

    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    hidden: tuple[int, ...] = (50,)
    solver: str = "sgd"
    batch_size: int = 32
    epochs: int = 100
    grid: dict | None = None  # search over it instead of one fit


def circles(n_rows, n_drawn=1000):
    """The first rows of the two noisy circles on which batch-norm tutorials train."""
    X, y = make_circles(n_drawn, noise=0.1, random_state=1)
    return X[:n_rows].astype(np.float32), y[:n_rows]


def ten_classes():
    """Ten overlapping classes in 64 dimensions, a few of the labels wrong."""
    X, y = make_classification(
        8192, 64, n_informative=20, n_classes=10, flip_y=0.05, random_state=1
    )
    return X.astype(np.float32), y


# ------------------------------------------------------------------------------------- contenders
#
# Each takes a problem and returns its variants: {name: turn}, where turn(seed, number) does the
# work `number` times and returns the mean seconds and the last model's predict_proba (or None).


def fit_estimator(estimator_class, problem, **extra):
    """Whole fits (or whole searches) of a scikit-learn estimator."""
    X, y = problem.data()

    def fit(seed):
        model = estimator_class(
            hidden_layer_sizes=problem.hidden,
            solver=problem.solver,
            alpha=0.0,
            batch_size=problem.batch_size,
            learning_rate_init=LEARNING_RATE[problem.solver],
            max_iter=problem.epochs,
            momentum=MOMENTUM,
            nesterovs_momentum=problem.solver != "sgd",  # plain momentum; no warning elsewhere
            tol=0.0,
            n_iter_no_change=np.inf,
            random_state=seed,
            **extra,
        )
        if problem.grid is not None:
            model = GridSearchCV(model, problem.grid, cv=3, n_jobs=2)
        return model.fit(X, y).predict_proba

    return {"fit" if problem.grid is None else "search": timed(fit)}


def skbn_net(problem):
    from skbn import MLPClassifierBN

    return fit_estimator(
        MLPClassifierBN,
        problem,
        batch_norm="after",
        bn_momentum=BN_RETAINED,
        bn_epsilon=BN_EPSILON,
    )


def sklearn_net(problem):
    return fit_estimator(MLPClassifier, problem)


def torch_net(problem, with_compile=False):
    import torch
    from torch import nn

    torch.set_num_threads(1)
    X, y = map(torch.from_numpy, problem.data())
    n_outputs = int(y.max()) + 1
    if n_outputs == 2:
        y, n_outputs = y[:, None].float(), 1
        loss_of, to_proba = nn.functional.binary_cross_entropy_with_logits, torch.sigmoid
    else:
        loss_of, to_proba = nn.functional.cross_entropy, functools.partial(torch.softmax, dim=1)
    make_optimizer = {
        "sgd": functools.partial(torch.optim.SGD, momentum=MOMENTUM),
        "adam": torch.optim.Adam,
    }[problem.solver]

    def objective(model, x, target):
        return loss_of(model(x), target)

    def fit(seed, objective=objective, **implementation):
        torch.manual_seed(seed)
        widths = [X.shape[1], *problem.hidden]
        layers = []
        for n_in, n_out in itertools.pairwise(widths):
            norm = nn.BatchNorm1d(n_out, eps=BN_EPSILON, momentum=1 - BN_RETAINED)
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), norm]
        model = nn.Sequential(*layers, nn.Linear(widths[-1], n_outputs))
        for dense in model[::3]:
            nn.init.xavier_uniform_(dense.weight)
        optimizer = make_optimizer(
            model.parameters(), lr=LEARNING_RATE[problem.solver], **implementation
        )
        for _ in range(problem.epochs):
            order = torch.randperm(len(X))
            batches = (rows.index_select(0, order).split(problem.batch_size) for rows in (X, y))
            for x, target in zip(*batches, strict=True):
                optimizer.zero_grad(set_to_none=True)
                objective(model, x, target).backward()
                optimizer.step()

        def predict_proba(rows):
            with torch.inference_mode():
                return to_proba(model.eval()(torch.from_numpy(rows))).numpy()

        return predict_proba

    implementations = {"fused": {"fused": True}, "foreach": {"foreach": True}}
    if with_compile:
        implementations["torch.compile"] = {"fused": True, "objective": torch.compile(objective)}
    return {
        name: timed(functools.partial(fit, **options)) for name, options in implementations.items()
    }


def jax_net(problem):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp
    from jax import lax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    X, y = map(jnp.asarray, problem.data())
    widths = [X.shape[1], *problem.hidden, 1]
    n_full = len(X) // problem.batch_size * problem.batch_size  # rows in batches of full size

    def start(rng):
        layers, moving = [], []
        for n_in, n_out in itertools.pairwise(widths):
            bound = math.sqrt(6 / (n_in + n_out))
            kernel = rng.uniform(-bound, bound, (n_in, n_out))
            layers.append({"kernel": kernel, "bias": np.zeros(n_out)})
        for layer, n_out in zip(layers, problem.hidden, strict=False):
            layer |= {"gamma": np.ones(n_out), "beta": np.zeros(n_out)}
            moving.append({"mean": np.zeros(n_out), "var": np.ones(n_out)})
        velocity = jax.tree.map(np.zeros_like, layers)
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (layers, velocity, moving))

    def logits(layers, moving, x, training):
        updated = []
        for layer, old in zip(layers, moving, strict=False):
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
            new = {"mean": x.mean(0), "var": x.var(0)} if training else old
            scale = layer["gamma"] * lax.rsqrt(new["var"] + BN_EPSILON)
            x = (x - new["mean"]) * scale + layer["beta"]
            updated.append(
                jax.tree.map(lambda o, n: BN_RETAINED * o + (1 - BN_RETAINED) * n, old, new)
            )
        return (x @ layers[-1]["kernel"] + layers[-1]["bias"])[:, 0], updated

    def objective(layers, moving, x, target):
        z, moving = logits(layers, moving, x, training=True)
        return jnp.mean(jax.nn.softplus(z) - target * z), moving

    def step(state, rows):
        layers, velocity, moving = state
        gradient, moving = jax.grad(objective, has_aux=True)(layers, moving, X[rows], y[rows])
        rate = LEARNING_RATE["sgd"]
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v - rate * g, velocity, gradient)
        return (jax.tree.map(jnp.add, layers, velocity), velocity, moving), None

    def epoch(state, order):
        state, _ = lax.scan(step, state, order[:n_full].reshape(-1, problem.batch_size))
        if n_full < len(X):
            state, _ = step(state, order[n_full:])
        return state, None

    def fit(seed, run):
        rng = np.random.RandomState(seed)
        orders = (rng.permutation(len(X)).astype(np.int32) for _ in range(problem.epochs))
        layers, _, moving = jax.block_until_ready(run(start(rng), orders))

        def predict_proba(rows):
            return np.asarray(jax.nn.sigmoid(logits(layers, moving, rows, training=False)[0]))

        return predict_proba

    jitted_epoch = jax.jit(epoch, donate_argnums=0)
    jitted_fit = jax.jit(functools.partial(lax.scan, epoch), donate_argnums=0)

    def epoch_by_epoch(state, orders):
        for order in orders:
            state, _ = jitted_epoch(state, order)
        return state

    def all_at_once(state, orders):
        return jitted_fit(state, np.stack(list(orders)))[0]

    return {
        "one call an epoch": timed(functools.partial(fit, run=epoch_by_epoch)),
        "whole fit in one call": timed(functools.partial(fit, run=all_at_once)),
    }


def fitted(contender, method, n_rows, problem):
    """Calls of one method of a model that was fitted before: ``predict`` or ``partial_fit``."""
    X, y = problem.data()
    ((_, turn),) = contender(problem).items()
    model = turn(0, 1)[1].__self__
    rows = np.resize(X, (n_rows, X.shape[1]))
    arguments = (rows,) if method == "predict" else (rows, np.resize(y, n_rows))

    def call(seed):
        getattr(model, method)(*arguments)
        return model.predict_proba

    return {method: timed(call)}


def import_in_fresh_interpreter(module, loaded_before):
    """A turn that starts new interpreters and times one import in them."""
    code = (
        f"import time\n{loaded_before}\nstart = time.perf_counter()\n"
        f"import {module}\nprint(time.perf_counter() - start)"
    )

    def turn(seed, number):
        command = [sys.executable, "-P", "-c", code]  # the installed package, not a folder
        seconds = [float(subprocess.check_output(command, text=True)) for _ in range(number)]
        return sum(seconds) / number, None

    return {"import": turn}


def skbn_import(problem):
    # A user of scikit-learn's networks has this loaded already.
    return import_in_fresh_interpreter("skbn", "import sklearn.neural_network")


def sklearn_import(problem):
    return import_in_fresh_interpreter("sklearn.neural_network", "import numpy, scipy")


# ---------------------------------------------------------------------------------- the targets


@dataclass(frozen=True)
class Target:
    """One row: must and aim are ratios ("x", more is better) or our own time ("ms")."""

    id: str
    what: str
    problem: Problem | None
    rival: Callable
    must: float
    aim: float
    unit: str = "x"
    ours: Callable = skbn_net
    one_core: bool = True
    compare_accuracy: bool = True


CIRCLES = functools.partial(circles, 500)
SMALL_SGD = Problem(CIRCLES)
SMALL_ADAM = replace(SMALL_SGD, solver="adam")
TWO_LAYERS = replace(SMALL_SGD, hidden=(50, 50))
WIDE = Problem(ten_classes, hidden=(256, 128), solver="adam", batch_size=256, epochs=5)
SEARCH = Problem(
    functools.partial(circles, 1000),
    grid={
        "hidden_layer_sizes": [(25,), (50,)],
        "momentum": [0.8, 0.9],
        "learning_rate_init": [0.003, 0.01, 0.03, 0.1],
    },
)
TINY = Problem(functools.partial(circles, 32), hidden=(2,), solver="adam", epochs=1)

TARGETS = [
    Target("C1", "2-50-1, SGD: torch eager", SMALL_SGD, torch_net, 100, 180),
    Target("C2", "2-50-1, Adam: torch eager", SMALL_ADAM, torch_net, 120, 220),
    Target("C3", "2-50-1, SGD: scikit-learn without batch norm", SMALL_SGD, sklearn_net, 40, 60),
    Target("C5", "2-50-1, SGD: JAX, an epoch in one lax.scan", SMALL_SGD, jax_net, 4, 7),
    Target("C6", "2-50-50-1, SGD: torch eager", TWO_LAYERS, torch_net, 40, 60),
    Target("C9", "64-256-128-10, batch 256, Adam: torch eager", WIDE, torch_net, 1.5, 1.85),
    Target(
        "C14",
        "GridSearchCV, 16 candidates x 3 folds, n_jobs=2: scikit-learn without batch norm",
        SEARCH,
        sklearn_net,
        must=10,
        aim=20,
        one_core=False,
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
            one_core=n_rows < 1000,
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
        sklearn_import,
        must=25,
        aim=10,
        unit="ms",
        ours=skbn_import,
        one_core=False,
        compare_accuracy=False,
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


# ------------------------------------------------------------------------------------ the harness


@contextmanager
def one_core():
    """Bind the process to one core, where the system can, and BLAS and OpenMP to one thread."""
    can_bind = hasattr(os, "sched_setaffinity")
    cores = os.sched_getaffinity(0) if can_bind else set()
    with threadpool_limits(1):
        try:
            if can_bind:
                os.sched_setaffinity(0, {max(cores)})  # core 0 is where interrupts tend to land
            yield
        finally:
            if can_bind:
                os.sched_setaffinity(0, cores)


def accuracy(predict_proba, X, y):
    proba = np.asarray(predict_proba(X)).reshape(len(X), -1)
    labels = proba.argmax(1) if proba.shape[1] > 1 else proba[:, 0] > 0.5
    return float(np.mean(labels == y))


def measure(target, repeats):
    """Time one target; the row as a dictionary."""
    row = {key: getattr(target, key) for key in ("id", "what", "unit", "must", "aim")}
    sides = {"ours": enter(target.ours(target.problem), ASIDE)}
    try:
        sides["rival"] = enter(target.rival(target.problem), ASIDE)
    except ModuleNotFoundError as error:
        row["missing"] = error.name
    seconds = {who: [] for who in sides}
    scores = {who: [] for who in sides}
    for who, mean_seconds, predict_proba in turns(sides, repeats):
        seconds[who].append(mean_seconds)
        if target.compare_accuracy:
            scores[who].append(accuracy(predict_proba, *target.problem.data()))
    for who, side in sides.items():
        row[who] = summary(seconds[who]) | {"notes": side.notes}
        if scores[who]:
            row[who]["accuracy"] = float(np.median(scores[who]))
    if "rival" in sides:
        row["ratio"] = summary(np.divide(seconds["rival"], seconds["ours"]))
    row["met"] = verdict(row)
    return row


def verdict(row):
    """Which of the two bounds is met: "aim", "must" or "no"."""
    if row["unit"] == "ms":
        figure = row["ours"]["median"] * 1e3
    elif "missing" in row:
        return f"{row['missing']} not installed"
    else:
        figure = row["ratio"]["median"]
    reached = met(figure, row["must"], row["aim"])
    scores = [row[who].get("accuracy", 0.0) for who in ("ours", "rival") if who in row]
    return reached if np.ptp(scores) <= ACCURACY_MARGIN else f"{reached}, but accuracies differ"


# -------------------------------------------------------------------------------------- reporting


def cells(row):
    """A row of the printed table."""
    ratio, score = "-", "-"
    if "ratio" in row and row["unit"] == "x":
        ratio = quartiles(row["ratio"])
    if "accuracy" in row["ours"]:
        both = (row[who]["accuracy"] for who in ("ours", "rival") if who in row)
        score = " / ".join(f"{value:.3f}" for value in both)
    bounds = [f"{row[key]:g} {row['unit']}" for key in ("must", "aim")]
    times = [spread(row, "ours"), spread(row, "rival")]
    return [row["id"], row["what"], *times, ratio, *bounds, row["met"], score]


HEADER = ["id", "what", "ours, ms", "rival, ms", "ratio", "must", "aim", "met?", "accuracy"]


def main():
    args = arguments(__doc__.partition("\n")[0], [target.id for target in TARGETS])
    about, rows = machine(PACKAGES), []
    for target in TARGETS:
        if target.id not in args.ids:
            continue
        print(f"{target.id}: {target.what} ...", file=sys.stderr, flush=True)
        if args.torch_compile and target.rival is torch_net:
            target = replace(target, rival=functools.partial(torch_net, with_compile=True))
        with one_core() if target.one_core else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter ends every fit here
            rows.append(measure(target, args.repeats))
    report(args, about, rows, [HEADER, *map(cells, rows)])


if __name__ == "__main__":
    main()
