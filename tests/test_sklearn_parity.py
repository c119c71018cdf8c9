"""``batch_norm=None`` is scikit-learn's MLPClassifier: same draws, same batches, same numbers.

Each case is a list of calls that both estimators take in turn. After every call one function
compares all that a user can see: what was printed, warned and raised, every fitted attribute of
scikit-learn's, every prediction, and the state the random number generator was left in.
"""
# SPDX-License-Identifier: BSD-3-Clause

import io
import itertools
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.neural_network import MLPClassifier
from sklearn.utils.fixes import parse_version

from skbn import MLPClassifierBN

OLD_SKLEARN = parse_version(sklearn.__version__) < parse_version("1.8")

# float32: scikit-learn rounds each product and sum in another order; four epochs of Adam turn
# that into at most a few 1e-5 on weights of order 1.
TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}

ALL = slice(None)


class Case(NamedTuple):
    """One run of both estimators."""

    params: Mapping = MappingProxyType({})
    calls: tuple = (("fit", ALL),)  # ("fit" | "partial_fit", rows) or ("set_params", dict)
    n_classes: int = 3
    labels: Any = None  # what stands for class 0, 1, 2
    convert: Callable = lambda X: X  # what becomes of X
    dtype: type = np.float64
    random_state: str = "instance"  # | "int" | "global"


def frame(X):
    pd = pytest.importorskip("pandas")
    return pd.DataFrame(X, columns=[f"feature {i}" for i in range(X.shape[1])])


def without_last_class(y):
    return np.flatnonzero(y != y.max())[:20]


# Every solver with every schedule, by every activation, link, batch size and order of the rows:
# 61 rows make a last batch of one row with batches of 12.
SOLVERS = {
    "sgd plain": {"momentum": 0.0},
    "sgd momentum": {"nesterovs_momentum": False},
    "sgd nesterov": {"nesterovs_momentum": True},
    "adam": {"solver": "adam", "learning_rate_init": 0.01},
}
GRID = {}
for (name, solver), schedule, activation, n_classes, shuffle, batch in itertools.product(
    SOLVERS.items(),
    ("constant", "invscaling", "adaptive"),
    ("identity", "logistic", "tanh", "relu"),
    (2, 3),
    (True, False),
    ({"batch_size": 12, "alpha": 0.0}, {"batch_size": "auto", "alpha": 5.0}),
):
    if name == "adam" and schedule != "constant":
        continue  # the schedules are for sgd
    GRID[f"{name}, {schedule}, {activation}, {n_classes}, {shuffle}, {batch['batch_size']}"] = Case(
        {
            "solver": "sgd",
            "learning_rate_init": 0.03,
            **solver,
            "learning_rate": schedule,
            "activation": activation,
            "shuffle": shuffle,
            **batch,
        },
        n_classes=n_classes,
    )

SGD = {"solver": "sgd", "learning_rate_init": 0.03}
# stops, or divides the learning rate, every other epoch
IMPATIENT = {"tol": 10.0, "n_iter_no_change": 1, "max_iter": 60}
EARLY = {"early_stopping": True, "max_iter": 20, "n_iter_no_change": 3, "learning_rate_init": 0.01}
BATCHES = tuple(("partial_fit", slice(first, first + 20)) for first in range(0, 60, 20))

SPECIAL = {
    # shapes of the network and of the data
    "no hidden layer": Case({"hidden_layer_sizes": ()}),
    "one width as an int": Case({"hidden_layer_sizes": 7}),
    "two hidden layers": Case({"hidden_layer_sizes": [7, 5]}),
    "three hidden layers": Case({"hidden_layer_sizes": np.array([3, 17, 2]), **SGD}),
    "one unit": Case({"hidden_layer_sizes": (1,), **SGD}),
    "one class": Case(n_classes=1),
    "one class, early stopping": Case(EARLY, n_classes=1),
    "one row": Case(calls=(("fit", slice(1)),), n_classes=1),
    "defaults": Case({"hidden_layer_sizes": (100,), "max_iter": 3}, n_classes=2),
    # batches
    "batches of one row": Case({"batch_size": 1}),
    "batch as large as the data": Case({"batch_size": 61}),
    "batch too large": Case({"batch_size": 62}),
    "batch too large, partial_fit": Case({"batch_size": 21}, BATCHES, n_classes=2),
    # options of the solvers
    "power_t 0.1": Case({**SGD, "learning_rate": "invscaling", "power_t": 0.1}),
    "momentum 1": Case({**SGD, "momentum": 1.0, "learning_rate_init": 0.001}),
    "betas 0": Case({"beta_1": 0.0, "beta_2": 0.0, "epsilon": 1e-3}),
    "epsilon 0.1": Case({"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}),
    # stopping
    "tol stops": Case({**SGD, "tol": 0.01, "max_iter": 200, "n_iter_no_change": 2}),
    "tol stops, verbose": Case({**IMPATIENT, "verbose": True}),
    "converges exactly at max_iter": Case({**IMPATIENT, "max_iter": 3}),
    "never stops": Case({"tol": 10.0, "n_iter_no_change": np.inf, "max_iter": 12}),
    "adaptive to the end": Case({**SGD, **IMPATIENT, "learning_rate": "adaptive", "verbose": True}),
    "verbose 10": Case({"verbose": 10}, n_classes=2),
    # early stopping
    "early stopping": Case({**EARLY, "verbose": True}),
    "early stopping, binary": Case({**EARLY, "validation_fraction": 0.3}, n_classes=2),
    "early stopping, sgd": Case({**EARLY, **SGD, "batch_size": 9}),
    "early stopping, adaptive": Case(
        {**EARLY, **SGD, "learning_rate": "adaptive", "tol": 0.5, "max_iter": 60, "verbose": True}
    ),
    "early stopping, labels": Case(EARLY, labels=["b", "a", "c"]),
    "early stopping, tol stops": Case({**EARLY, "tol": 0.5, "max_iter": 60}),
    "early stopping, no shuffle": Case({**EARLY, "shuffle": False}, random_state="int"),
    "early stopping, frame": Case(EARLY, convert=frame),
    "early stopping, float32": Case(EARLY, dtype=np.float32),
    "early stopping, too few rows": Case(EARLY, (("fit", slice(9)),)),
    # labels and arrays
    "string labels": Case(labels=["no", "yes"], n_classes=2),
    "object labels": Case(labels=np.array(["b", "a", "c"], dtype=object)),
    "bool labels": Case(labels=[False, True], n_classes=2),
    "negative labels": Case(labels=[3, -1, 20]),
    "float labels": Case(labels=[0.0, 2.0, 1.0]),
    "column of labels": Case(labels=[[0], [1], [2]]),
    "frame": Case(convert=frame),
    "lists": Case(convert=np.ndarray.tolist),
    "integers": Case(convert=lambda X: np.round(3 * X).astype(int)),
    "float16": Case(convert=lambda X: X.astype(np.float16)),
    "Fortran order": Case(convert=np.asfortranarray),
    "unscaled": Case({"max_iter": 20, "tol": 0.1}, convert=lambda X: 100 * X),
    # far enough that losses are 0 or the largest there is: in between, scikit-learn's log(1 - p)
    # has lost digits
    "unscaled, binary": Case(convert=lambda X: 1e6 * X, n_classes=2),
    "strided": Case(convert=lambda X: np.repeat(X, 2, axis=1)[:, ::2]),
    "read-only": Case(convert=lambda X: X.setflags(write=False) or X),
    "constant features": Case(convert=lambda X: X * [1, 0, 1, 0]),
    **{
        f"float32, {solver}, {activation}, {n_classes}": Case(
            {"activation": activation, "batch_size": 12, **options},
            n_classes=n_classes,
            dtype=np.float32,
        )
        for activation in ("identity", "logistic", "tanh", "relu")
        for n_classes in (2, 3)
        for solver, options in {"sgd": SGD, "adam": {}}.items()
    },
    # the same model, several calls
    "global random state": Case(random_state="global"),
    "fit twice": Case(calls=(("fit", ALL), ("fit", slice(30)))),
    **{
        f"{call}, {solver}, {random_state}, {n_classes}": Case(
            {**options, **more, "verbose": True},
            calls,
            n_classes=n_classes,
            random_state=random_state,
        )
        for solver, options in {
            "adam": {"batch_size": 7},
            "sgd": {**SGD, "learning_rate": "invscaling"},
            "adaptive": {**SGD, **IMPATIENT, "max_iter": 5, "learning_rate": "adaptive"},
        }.items()
        for call, more, calls in (
            ("partial_fit", {}, BATCHES * 3),
            ("partial_fit, missing class", {}, (("partial_fit", without_last_class), *BATCHES)),
            ("partial_fit, one row", {}, (("partial_fit", slice(1)), ("partial_fit", slice(1, 3)))),
            ("fit, partial_fit, fit", {}, (("fit", ALL), *BATCHES, ("fit", ALL))),
            ("warm start", {"warm_start": True}, (("fit", ALL), ("fit", ALL), ("fit", ALL))),
            ("warm partial_fit", {"warm_start": True}, (*BATCHES, ("fit", ALL), *BATCHES)),
        )
        for random_state, n_classes in (("instance", 2), ("int", 3))
    },
    "warm start, other parameters": Case(
        {**SGD, "warm_start": True},
        (
            ("fit", ALL),
            ("set_params", {"learning_rate_init": 0.02, "batch_size": 12, "max_iter": 6}),
            ("fit", ALL),
            ("set_params", {"solver": "adam", "alpha": 1.0}),
            ("fit", slice(40)),
        ),
    ),
    # The first call shrinks all weights to nothing, so that the second beats it: where it does not,
    # scikit-learn returns its last weights instead of the best, which it has overwritten in place.
    "warm start, early stopping": Case(
        {**EARLY, **SGD, "warm_start": True, "validation_fraction": 0.5, "activation": "logistic"}
        | {"learning_rate_init": 1e-6, "alpha": 30e6, "momentum": 0.0, "max_iter": 1},
        (
            ("fit", ALL),
            ("set_params", {"learning_rate_init": 0.5, "alpha": 0.0, "momentum": 0.9}),
            ("set_params", {"max_iter": 60, "n_iter_no_change": 60}),
            ("fit", ALL),
        ),
        n_classes=2,
    ),
    "warm start, lost class": Case(
        {"warm_start": True}, (("fit", ALL), ("fit", without_last_class))
    ),
    "partial_fit, early stopping": Case({"early_stopping": True}, BATCHES),
    "partial_fit after early stopping": Case(EARLY, (("fit", ALL), *BATCHES)),
    "partial_fit, labels": Case(calls=BATCHES, labels=["b", "a", "c"]),
    "partial_fit, frame": Case(calls=BATCHES, convert=frame),
    "partial_fit, float32": Case(calls=BATCHES * 2, dtype=np.float32),
}


def observe(est, call, X, y, classes):
    """Make one call and write down what it printed, warned and raised."""
    method, argument = call
    printed = io.StringIO()
    raised = None
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(printed):
        warnings.simplefilter("always")
        try:
            if method == "set_params":
                est.set_params(**argument)
            else:
                rows = argument(y) if callable(argument) else argument
                X = X.iloc[rows] if hasattr(X, "iloc") else X[rows]
                known = {"classes": classes} if method == "partial_fit" else {}
                assert getattr(est, method)(X, y[rows], **known) is est
        except ValueError as error:
            raised = str(error).replace("MLPClassifierBN", "MLPClassifier")
    warned = [(warning.category, str(warning.message)) for warning in caught]
    return printed.getvalue(), warned, raised


def assert_same_value(ours, theirs, atol, name):
    """Numbers within ``atol`` of max(1, size), everything else equal, types included."""
    if isinstance(theirs, list):
        assert isinstance(ours, list), name
        assert len(ours) == len(theirs), name
        for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_value(our, their, atol, f"{name}[{index}]")
    elif isinstance(theirs, np.ndarray):
        # scikit-learn turns labels of type object into strings; here they come back as they were
        assert ours.dtype in (theirs.dtype, object), name
        assert ours.shape == theirs.shape, name
        if theirs.dtype.kind == "f":
            assert_allclose(ours, theirs, rtol=atol, atol=atol, err_msg=name)
        else:
            assert_array_equal(ours, theirs, err_msg=name)
    elif isinstance(theirs, float | np.floating):
        assert isinstance(ours, float | np.floating), name
        assert_allclose(ours, theirs, rtol=atol, atol=atol, err_msg=name)
    else:
        assert type(ours) is type(theirs), name
        assert ours == theirs, name


def assert_same_model(ours, theirs, X, y, atol):
    """Every fitted attribute that scikit-learn's model has, and every prediction."""
    for name, value in vars(theirs).items():
        if name.endswith("_") and not name.startswith("_"):
            assert_same_value(getattr(ours, name), value, atol, name)
    assert_same_value(ours.predict(X), theirs.predict(X), atol, "predict")
    # With one class scikit-learn still gives two columns, of which neither is certain.
    if len(theirs.classes_) > 1:
        theirs_proba = theirs.predict_proba(X)
        assert_same_value(ours.predict_proba(X), theirs_proba, 20 * atol, "predict_proba")
        # scikit-learn takes the logarithm of rounded probabilities, skbn starts from the logits
        log_proba = ours.predict_log_proba(X)
        assert_same_value(np.exp(log_proba), theirs_proba, 20 * atol, "predict_log_proba")
    assert ours.score(X, y) == theirs.score(X, y)


def same_random_state(ours, theirs):
    """Whether two RandomStates, None standing for NumPy's own, would go on alike."""
    states = [getattr(state, "get_state", np.random.get_state)() for state in (ours, theirs)]
    return all(np.array_equal(our, their) for our, their in zip(*states, strict=True))


@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in (GRID | SPECIAL).items()])
def test_same_as_sklearn(case, blobs, seed):
    if case is SPECIAL["early stopping, labels"] and OLD_SKLEARN:
        pytest.skip("scikit-learn 1.7 looks for NaN in predicted strings and fails")
    X, y = blobs(n_classes=case.n_classes, dtype=case.dtype)
    X = case.convert(X)
    y = y if case.labels is None else np.array(case.labels)[y]
    params = {"hidden_layer_sizes": (6,), "max_iter": 4, **case.params}

    models, global_states = [], []
    for estimator in (MLPClassifierBN(batch_norm=None), MLPClassifier()):
        estimator.set_params(**params)
        if case.random_state == "instance":
            estimator.set_params(random_state=np.random.RandomState(seed))
        elif case.random_state == "int":
            estimator.set_params(random_state=seed)
        models.append(estimator)
    ours, theirs = models

    for call in case.calls:
        observed = []
        for estimator in models:
            np.random.seed(seed)
            observed.append(observe(estimator, call, X, y, np.unique(y)))
            global_states.append(np.random.get_state()[1:3])
        (printed, warned, raised), (expected_printed, expected_warned, expected_raised) = observed
        assert printed == expected_printed
        assert warned == expected_warned
        assert raised == expected_raised
        if raised:
            return
        assert_array_equal(*(np.append(*state) for state in global_states[-2:]))
        if case.random_state == "instance":
            assert same_random_state(ours.random_state, theirs.random_state)
        assert_same_model(ours, theirs, X, y, TOLERANCE[case.dtype])
