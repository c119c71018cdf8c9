"""What every test may ask for: a seed, a small problem drawn with it, and a watch over a model.

``seed`` is one seed unless the command line says otherwise: ``pytest --seeds 7``,
``pytest --seeds 0-99`` or ``pytest --seeds all``. A test that takes it must pass for each of them.
"""
# SPDX-License-Identifier: BSD-3-Clause

import dataclasses
import itertools
import sys
from argparse import ArgumentTypeError
from contextlib import contextmanager
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import pytest

from skbn.backends import get_executor

ALL_SEEDS = range(100)


def _seeds(text):
    """The seeds that ``--seeds`` names."""
    first, _, last = ("0-99" if text == "all" else text).partition("-")
    try:
        seeds = range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = range(0)
    if not seeds or seeds[0] not in ALL_SEEDS or seeds[-1] not in ALL_SEEDS:
        raise ArgumentTypeError(f"a seed, a range such as 0-9, or 'all', within 0-99; got {text!r}")
    return list(seeds)


def pytest_addoption(parser):
    parser.addoption(
        "--seeds",
        type=_seeds,
        default="42",
        metavar="SEED|FIRST-LAST|all",
        help="seeds from 0 to 99 that the tests which draw numbers run with (default: 42)",
    )


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", metafunc.config.getoption("seeds"))


@pytest.fixture
def blobs(seed):
    """A function that draws a small classification problem with every class in equal numbers."""

    def draw(n_samples=61, n_classes=3, *, n_features=4, dtype=np.float64):
        rng = np.random.RandomState(seed)
        y = rng.permutation(np.arange(n_samples) % n_classes)
        centers = rng.normal(scale=2, size=(n_classes, n_features))
        X = centers[y] + rng.normal(size=(n_samples, n_features))
        return X.astype(dtype), y

    return draw


def _leaves(value, path, seen):
    """Yield (path, content) for all that a value holds, arrays bit for bit."""
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype.hasobject else value.tobytes()
        yield path, (value.dtype.str, value.shape, content)
        return
    if isinstance(value, np.random.RandomState):
        value = value.get_state(legacy=False)
    if isinstance(value, dict):
        items = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(f"{path}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif hasattr(value, "__dict__") and not isinstance(
        value, type | FunctionType | BuiltinFunctionType | ModuleType
    ):
        items = [(f"{path}.{name}", item) for name, item in vars(value).items()]
    else:
        yield path, repr(value)
        return
    yield path, (type(value).__name__, len(items))
    if id(value) not in seen:
        seen.add(id(value))
        for item_path, item in items:
            yield from _leaves(item, item_path, seen)


def _public(est):
    """The fitted attributes that users see, properties included."""
    names = [name for name in dir(est) if name.endswith("_") and not name.startswith("_")]
    return {name: getattr(est, name) for name in names if hasattr(est, name)}


@pytest.fixture
def snapshot():
    """A function that writes down all of an estimator, bit for bit, by path."""

    def take(est, X=None):
        parts = {"vars": vars(est), "fitted": _public(est)}
        if X is not None and hasattr(est, "coefs_"):
            methods = ("predict", "predict_proba")
            parts["predictions"] = [getattr(est, m)(X) for m in methods if hasattr(est, m)]
        return {
            path: content
            for name, part in parts.items()
            for path, content in _leaves(part, name, set())
        }

    return take


@pytest.fixture
def unchanged(snapshot):
    """A context that fails if what happens inside it changes the estimator in any bit."""

    @contextmanager
    def watch(est, X=None):
        before = snapshot(est, X)
        yield
        assert snapshot(est, X) == before

    return watch


@pytest.fixture
def interrupt(monkeypatch):
    """A function after which one call, counted from 1, of an executor's method ends in Ctrl-C."""

    def arrange(method, call):
        executor, calls = get_executor("cpu"), itertools.count(1)

        def interrupted(*args, **kwargs):
            if next(calls) == call:
                raise KeyboardInterrupt
            return getattr(executor, method)(*args, **kwargs)

        twin = type("Interrupted", (executor,), {method: interrupted})
        monkeypatch.setattr("skbn._mlp.get_executor", lambda device: twin)

    return arrange


@pytest.fixture
def simulated_card(monkeypatch):
    """A card that is not there, where the package asks for CuPy's."""
    from simulated_card import SimulatedCard, check, compiler

    name, reason = compiler()
    if not name:
        pytest.skip(reason)
    card = SimulatedCard()
    monkeypatch.setattr("skbn.backends.cuda.card.current", lambda: card)
    yield card
    check(card)


@pytest.fixture
def no_card(monkeypatch):
    """A machine without CuPy, whatever is installed on this one."""
    card = import_module("skbn.backends.cuda.card")
    card._cupy.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy", None)
    yield
    card._cupy.cache_clear()
