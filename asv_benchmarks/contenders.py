"""What skbn and its rivals do when they are timed: the same work, each in its own way.

A problem says what to train on which rows. A contender takes a problem and returns its variants,
``{name: turn}``, where ``turn(seed, number)`` does the work ``number`` times and returns the mean
seconds and the last model's ``predict_proba`` (or None); turns.py makes turns, and sets on how many
threads they run. A contender whose package is missing raises ModuleNotFoundError.

All train in float32 from Glorot-uniform weights, from unbuilt model to trained model, through the
interface that a user would call. torch eager has its data in tensors beforehand, one gather an
epoch, no DataLoader and gradients set to None; JAX has one jitted ``lax.scan`` an epoch, donated
state, compiled before the clock starts and dispatched without a second thread; Keras is its own
``fit`` on JAX. scikit-learn's MLPClassifier has no batch norm to do.
"""
# SPDX-License-Identifier: BSD-3-Clause

import functools
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sklearn.datasets import make_circles, make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from turns import timed

LEARNING_RATE = {"sgd": 0.01, "adam": 0.001}
MOMENTUM = 0.9
BN_EPSILON = 1e-3
BN_RETAINED = 0.9  # of the moving statistics; torch counts the other way round

# Variants beyond what the targets name: timed once and noted, never a row's rival.
ASIDE = ("whole fit in one call", "torch.compile", "without the population pass")


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


def like_images(n_rows=2048):
    """Ten overlapping classes in as many dimensions as a picture of 28 x 28 has pixels."""
    X, y = make_classification(n_rows, 784, n_informative=40, n_classes=10, random_state=1)
    return X.astype(np.float32), y


# The networks of the targets.
CIRCLES = functools.partial(circles, 500)
SMALL_SGD = Problem(CIRCLES)
SMALL_ADAM = replace(SMALL_SGD, solver="adam")
TWO_LAYERS = replace(SMALL_SGD, hidden=(50, 50))
WIDE = Problem(ten_classes, hidden=(256, 128), solver="adam", batch_size=256, epochs=5)
BIG = Problem(like_images, hidden=(512, 512), solver="adam", batch_size=256, epochs=20)
SEARCH = Problem(
    functools.partial(circles, 1000),
    grid={
        "hidden_layer_sizes": [(25,), (50,)],
        "momentum": [0.8, 0.9],
        "learning_rate_init": [0.003, 0.01, 0.03, 0.1],
    },
)
TINY = Problem(functools.partial(circles, 32), hidden=(2,), solver="adam", epochs=1)


# ------------------------------------------------------------------------------------- contenders


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

    return timed(fit)


def skbn_net(problem, **options):
    from skbn import MLPClassifierBN

    fit = fit_estimator(
        MLPClassifierBN,
        problem,
        batch_norm="after",
        bn_momentum=BN_RETAINED,
        bn_epsilon=BN_EPSILON,
        **options,
    )
    return {"fit": fit}


def sklearn_net(problem):
    return {"fit": fit_estimator(MLPClassifier, problem)}


def torch_on_card():
    """Return torch, which multiplies float32 in float32, or say that it has no card."""
    import torch

    if not torch.cuda.is_available():
        raise ModuleNotFoundError("torch finds no card", name="torch for CUDA, with a card,")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch


def torch_net(problem, with_compile=False, by_loader=False, device="cpu", in_graph=False):
    """Fits of a torch network; on a card X and y lie there before.

    ``in_graph``: steps that gather their batch and replay what the card does for it, captured once.
    """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    wait = None if device == "cpu" else torch_on_card().cuda.synchronize
    X, y = (torch.from_numpy(array).to(device) for array in problem.data())
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

    loader = DataLoader(TensorDataset(X, y), problem.batch_size, shuffle=True)

    def batches():
        if by_loader:
            return loader
        order = torch.randperm(len(X), device=device)
        gathered = (rows.index_select(0, order).split(problem.batch_size) for rows in (X, y))
        return zip(*gathered, strict=True)

    def untrained(seed, **implementation):
        torch.manual_seed(seed)
        widths = [X.shape[1], *problem.hidden]
        layers = []
        for n_in, n_out in itertools.pairwise(widths):
            norm = nn.BatchNorm1d(n_out, eps=BN_EPSILON, momentum=1 - BN_RETAINED)
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), norm]
        model = nn.Sequential(*layers, nn.Linear(widths[-1], n_outputs)).to(device)
        for dense in model[::3]:
            nn.init.xavier_uniform_(dense.weight)
        return model, make_optimizer(
            model.parameters(), lr=LEARNING_RATE[problem.solver], **implementation
        )

    def predicting(model):
        def predict_proba(rows):
            with torch.inference_mode():
                return to_proba(model.eval()(torch.from_numpy(rows).to(device))).cpu().numpy()

        return predict_proba

    def fit(seed, objective=objective, **implementation):
        model, optimizer = untrained(seed, **implementation)
        for _ in range(problem.epochs):
            for x, target in batches():
                optimizer.zero_grad(set_to_none=True)
                objective(model, x, target).backward()
                optimizer.step()
        return predicting(model)

    def graph():
        model, optimizer = untrained(0, fused=True, capturable=True)
        x, target = X[: problem.batch_size].clone(), y[: problem.batch_size].clone()

        def step():
            optimizer.zero_grad(set_to_none=True)
            objective(model, x, target).backward()
            optimizer.step()

        aside = torch.cuda.Stream()
        with torch.cuda.stream(aside):
            for _ in range(3):  # what libraries allocate, they allocate now
                step()
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()

        def fit_on(seed):
            for _ in range(problem.epochs):
                for rows in torch.randperm(len(X), device=device).split(problem.batch_size):
                    torch.index_select(X, 0, rows, out=x)
                    torch.index_select(y, 0, rows, out=target)
                    captured.replay()

        return timed(fit_on, wait)

    if in_graph:
        return {"fused": graph()}
    implementations = {"fused": {"fused": True}, "foreach": {"foreach": True}}
    if with_compile:
        implementations["torch.compile"] = {"fused": True, "objective": torch.compile(objective)}
    return {
        name: timed(functools.partial(fit, **options), wait)
        for name, options in implementations.items()
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


def keras_net(problem, with_compiling=False, by_epochs=True):
    os.environ["KERAS_BACKEND"] = "jax"  # before the first import
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import keras

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    X, y = problem.data()

    def build(**options):
        layers = []
        for width in problem.hidden:
            layers += [
                keras.layers.Dense(width, activation="relu"),
                keras.layers.BatchNormalization(momentum=BN_RETAINED, epsilon=BN_EPSILON),
            ]
        inputs, output = keras.Input(X.shape[1:]), keras.layers.Dense(1, activation="sigmoid")
        model = keras.Sequential([inputs, *layers, output])
        optimizer = keras.optimizers.SGD(LEARNING_RATE["sgd"], momentum=MOMENTUM)
        model.compile(optimizer, "binary_crossentropy", jit_compile=True, **options)
        optimizer.build(model.trainable_variables)
        return model

    def train(model):
        model.fit(X, y, batch_size=problem.batch_size, epochs=problem.epochs, verbose=0)
        return functools.partial(model.predict, verbose=0)

    def compile_and_train(**options):
        def fit(seed):
            keras.utils.set_random_seed(seed)
            return train(build(**options))

        return fit

    def train_again(**options):
        """Fits of one model, which compiled at its first, from the same weights every time."""
        model = build(**options)
        state = [*model.variables, *model.optimizer.variables]
        start = [np.array(variable) for variable in state]

        def fit(seed):
            keras.utils.set_random_seed(seed)
            for variable, value in zip(state, start, strict=True):
                variable.assign(value)
            return train(model)

        return fit

    ways = {"step by step": {}}
    if by_epochs:
        n_steps = math.ceil(len(X) / problem.batch_size)
        ways["an epoch of steps an execution"] = {"steps_per_execution": n_steps}
    prepare = compile_and_train if with_compiling else train_again
    return {name: timed(prepare(**options)) for name, options in ways.items()}


def products(problem):
    """The bare matrix products of a fit's steps, written where they go: nothing else is done.

    Forward and the gradients of weights are a product a layer, the gradients of inputs one for
    every layer but the first; each step reads its own rows of X, in order.
    """
    from scipy.linalg.blas import sgemm

    X, y = problem.data()
    widths = [X.shape[1], *problem.hidden, int(y.max()) + 1]
    rng = np.random.default_rng(0)

    def filled(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    weights = [filled(*shape) for shape in itertools.pairwise(widths)]
    gradients = [np.empty_like(weight) for weight in weights]
    outputs = [filled(problem.batch_size, width) for width in widths[1:]]
    deltas = [filled(problem.batch_size, width) for width in widths[1:]]

    def by_numpy(a, b, out):
        np.matmul(a, b, out=out)

    def by_scipy(a, b, out):
        # BLAS counts in columns, so what is in C order is transposed: out.T = b.T @ a.T
        a, b, flags = a.T, b.T, {}
        if not b.flags.f_contiguous:
            b, flags["trans_a"] = b.T, True
        if not a.flags.f_contiguous:
            a, flags["trans_b"] = a.T, True
        sgemm(1.0, b, a, c=out.T, overwrite_c=True, **flags)

    def fit(seed, multiply):
        for _ in range(problem.epochs):
            for start in range(0, len(X), problem.batch_size):
                inputs = [X[start : start + problem.batch_size], *outputs[:-1]]
                m = len(inputs[0])
                for a, weight, out in zip(inputs, weights, outputs, strict=True):
                    multiply(a[:m], weight, out[:m])
                for i in reversed(range(len(weights))):
                    multiply(inputs[i][:m].T, deltas[i][:m], gradients[i])
                    if i > 0:
                        multiply(deltas[i][:m], weights[i].T, deltas[i - 1][:m])

    return {
        name: timed(functools.partial(fit, multiply=multiply))
        for name, multiply in [("numpy", by_numpy), ("scipy's sgemm", by_scipy)]
    }


def fitted(contender, method, n_rows, problem):
    """Calls of one method of a model that was fitted before: ``predict`` or ``partial_fit``."""
    X, y = problem.data()
    model = contender(problem)["fit"](0, 1)[1].__self__
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
