"""``batch_norm=None`` is scikit-learn's MLPClassifier and MLPRegressor, number for number.

Each case is a list of calls that both estimators take in turn. After every call one function
compares all that a user can see: what was printed, warned and raised, every fitted attribute of
scikit-learn's, every prediction, and the state the random number generator was left in. What
differs on purpose stands in docs/coming_from/scikit_learn.md; the second half of this file shows
it, row by row.
"""
# SPDX-License-Identifier: BSD-3-Clause

import io
import itertools
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csc_array, csc_matrix, csr_array, csr_matrix, issparse
from sklearn.datasets import make_classification
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.fixes import parse_version
from threadpoolctl import threadpool_limits

from skbn import MLPClassifierBN, MLPRegressorBN

SKLEARN = parse_version(sklearn.__version__)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# float32: scikit-learn rounds each product and sum in another order; four epochs of Adam turn
# that into at most a few 1e-5 on weights of order 1.
TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}

ALL = slice(None)


class Case(NamedTuple):
    """One run of both estimators."""

    params: Mapping = MappingProxyType({})
    calls: tuple = (("fit", ALL),)  # ("fit" | "partial_fit", rows) or ("set_params", dict)
    n_classes: int = 3  # or labels, or outputs
    labels: Any = None  # what stands for class 0, 1, 2
    convert: Callable = lambda X: X  # what becomes of X
    dtype: type = np.float64
    random_state: str = "instance"  # | "int" | "global"
    target: str = "classes"  # | "labels" | the name of a regressor's loss
    convert_y: Callable = lambda y: y
    weighted: bool = False

    def estimators(self):
        """Ours and scikit-learn's."""
        if self.target in ("classes", "labels"):
            return MLPClassifierBN(batch_norm=None), MLPClassifier()
        return MLPRegressorBN(self.target, batch_norm=None), MLPRegressor(self.target)

    def data(self, blobs, seed):
        """X, y and weights, none of them 0."""
        X, y = blobs(n_classes=self.n_classes, dtype=self.dtype)
        rng = np.random.RandomState(seed)
        if self.target == "poisson":
            X = X / 4  # so that exponentials of linear units do not blow up
        if self.target == "classes":
            y = y if self.labels is None else np.array(self.labels)[y]
        else:
            y = X @ rng.normal(size=(X.shape[1], self.n_classes)) + rng.normal(size=(len(X), 1))
            if self.target == "labels":
                y = (y > 0).astype(int)
            elif self.target == "poisson":
                y = rng.poisson(np.exp(y.clip(-2, 2)))
            if self.target != "labels" and self.n_classes == 1:
                y = y[:, 0]
        weights = rng.uniform(0.1, 3.0, len(X)) if self.weighted else None
        return self.convert(X), self.convert_y(y), weights


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

SLOW = SGD | {"learning_rate_init": 0.003}
LBFGS = {"solver": "lbfgs", "max_iter": 6}
# name: what the network is asked for
TARGETS = {
    "binary": {"n_classes": 2},
    "multiclass": {"n_classes": 3},
    "labels": {"target": "labels", "n_classes": 3},
    "squared error": {"target": "squared_error", "n_classes": 1},
    "poisson": {"target": "poisson", "n_classes": 1},
    "poisson, two": {"target": "poisson", "n_classes": 2},
}
TRAINED = {
    "sgd": {**SLOW, "batch_size": 12},
    "adam": {"learning_rate_init": 0.01, "batch_size": 12},
    "lbfgs": LBFGS,
}
SPARSE = {kind.__name__: kind for kind in (csr_matrix, csc_matrix, csr_array, csc_array)}


def thinned(kind):
    """X with few numbers left, in a container of this kind."""
    return lambda X: kind(np.where(np.abs(X) > 1, X, 0))


MORE = {
    # regressors and multilabel classifiers, and every solver of everything
    **{
        f"{target}, {solver}, {activation}": Case(
            {**options, "activation": activation}, **TARGETS[target]
        )
        for target in TARGETS
        for solver, options in (
            TRAINED | {"invscaling": SLOW | {"learning_rate": "invscaling"}}
        ).items()
        for activation in ("identity", "logistic", "tanh", "relu")
        if solver == "lbfgs" or target not in ("binary", "multiclass")
    },
    # weights
    **{
        f"weights, {target}, {solver}": Case(
            {**options, "alpha": 2.0}, **TARGETS[target], weighted=True
        )
        for target in TARGETS
        for solver, options in (
            TRAINED
            | {
                "sgd plain": {**SLOW, "momentum": 0.0},
                "adaptive": {**SLOW, "learning_rate": "adaptive"},
            }
        ).items()
    },
    "weights, no hidden layer": Case({"hidden_layer_sizes": ()}, weighted=True),
    "weights, one class": Case(n_classes=1, weighted=True),
    "weights, frame": Case(convert=frame, weighted=True),
    "weights, batches of one row": Case({"batch_size": 1}, weighted=True),
    # early stopping: on accuracy, subset accuracy, R2
    **{
        f"early stopping, {target}, {weighted}": Case(
            {**EARLY, "verbose": True, "validation_fraction": 0.3},
            **TARGETS[target],
            weighted=weighted,
        )
        for target in TARGETS
        for weighted in (False, True)
    },
    "early stopping, sgd, regression": Case(
        {**EARLY, **SLOW, "batch_size": 9}, **TARGETS["squared error"]
    ),
    "early stopping, too few rows, regression": Case(
        EARLY, (("fit", slice(9)),), **TARGETS["squared error"]
    ),
    # several calls
    **{
        f"{call}, {target}, {solver}, {weighted}": Case(
            {**options, **more, "verbose": True}, calls, **TARGETS[target], weighted=weighted
        )
        for target in TARGETS
        for solver, options in {
            "adam": {"batch_size": 7},
            "sgd": {**SLOW, "learning_rate": "invscaling"},
        }.items()
        for weighted in (False, True)
        for call, more, calls in (
            ("partial_fit", {}, BATCHES * 2),
            ("warm start", {"warm_start": True}, (("fit", ALL), ("fit", ALL))),
            ("fit, partial_fit, fit", {}, (("fit", ALL), *BATCHES, ("fit", ALL))),
        )
        if weighted or target not in ("binary", "multiclass")
    },
    "partial_fit, one row, regression": Case(
        calls=(("partial_fit", slice(1)), ("partial_fit", slice(1, 3))), **TARGETS["squared error"]
    ),
    # L-BFGS: how it ends, and from where it goes on
    "lbfgs, no hidden layer": Case({**LBFGS, "hidden_layer_sizes": ()}),
    "lbfgs, two hidden layers": Case({**LBFGS, "hidden_layer_sizes": (7, 5)}),
    "lbfgs, one class": Case(LBFGS, n_classes=1),
    "lbfgs, one row": Case(LBFGS, calls=(("fit", slice(1)),), n_classes=1),
    "lbfgs, large alpha": Case({**LBFGS, "alpha": 30.0}),
    "lbfgs, max_fun": Case({**LBFGS, "max_fun": 4, "max_iter": 60}),
    "lbfgs, max_iter 1": Case({**LBFGS, "max_iter": 1}),
    "lbfgs, gradient small": Case({**LBFGS, "tol": 0.1, "max_iter": 100}),
    "lbfgs, nothing to do": Case({**LBFGS, "tol": 1e3}),
    # converged by the decrease of the loss, whose limit is scipy's
    "lbfgs, decrease small": Case(
        {"solver": "lbfgs", "max_iter": 300, "tol": 0.0, "hidden_layer_sizes": (), "alpha": 10.0}
    ),
    "lbfgs, string labels": Case(LBFGS, labels=["b", "a", "c"]),
    "lbfgs, frame": Case(LBFGS, convert=frame),
    "lbfgs, global random state": Case(LBFGS, random_state="global"),
    "lbfgs, int random state": Case(LBFGS, random_state="int"),
    "lbfgs, fit twice": Case(LBFGS, (("fit", ALL), ("fit", slice(30)))),
    **{
        f"lbfgs, warm start, {target}": Case(
            {**LBFGS, "max_iter": 3, "warm_start": True},
            (("fit", ALL), ("fit", ALL), ("set_params", {"alpha": 1.0}), ("fit", slice(40))),
            **TARGETS[target],
        )
        for target in TARGETS
    },
    # sparse X
    **{
        f"{kind}, {target}, {solver}, {weighted}": Case(
            options, **TARGETS[target], weighted=weighted, convert=thinned(SPARSE[kind])
        )
        for kind in SPARSE
        for target in ("binary", "labels", "squared error")
        for solver, options in TRAINED.items()
        for weighted in (False, True)
    },
    **{
        f"sparse, {name}": Case(params, calls, convert=thinned(csr_matrix), **more)
        for name, params, calls, more in (
            ("partial_fit", {}, BATCHES * 2, {"n_classes": 2}),
            ("early stopping", EARLY, (("fit", ALL),), {}),
            ("warm start", {"warm_start": True}, (("fit", ALL), ("fit", ALL)), {}),
            ("float32", {}, (("fit", ALL),), {"dtype": np.float32}),
            ("no shuffle", {"shuffle": False, "batch_size": 12}, (("fit", ALL),), {}),
            ("no hidden layer", {"hidden_layer_sizes": ()}, (("fit", ALL),), {}),
            ("one class", {}, (("fit", ALL),), {"n_classes": 1}),
            ("regression", {"batch_size": 7}, BATCHES, TARGETS["squared error"]),
        )
    },
    # y in other forms
    **{
        f"labels as {kind}, {call}": Case(
            params, calls, target="labels", convert_y=kind_of, n_classes=3
        )
        for kind, kind_of in (
            SPARSE | {"bool": lambda y: y.astype(bool), "2": lambda y: 2 * y}
        ).items()
        for call, params, calls in (
            ("fit", {}, (("fit", ALL),)),
            ("lbfgs", LBFGS, (("fit", ALL),)),
            ("partial_fit", {"verbose": True}, BATCHES),
            ("early stopping", EARLY, (("fit", ALL),)),
        )
    },
    "labels that never occur": Case(target="labels", convert_y=lambda y: y * [1, 0, 1]),
    "column of targets": Case(convert_y=lambda y: y[:, None], **TARGETS["squared error"]),
    "integer targets": Case(
        convert_y=lambda y: np.round(5 * y).astype(int), **TARGETS["squared error"]
    ),
    "bool targets": Case(convert_y=lambda y: y > 0, **TARGETS["squared error"]),
    "constant targets": Case(
        {**EARLY, "validation_fraction": 0.3},
        convert_y=lambda y: 0 * y + 3,
        **TARGETS["squared error"],
    ),
    "float32 regression": Case(TRAINED["sgd"], dtype=np.float32, **TARGETS["squared error"]),
    "float32 regression, adam": Case(dtype=np.float32, **TARGETS["squared error"]),
    "float32 poisson": Case(dtype=np.float32, **TARGETS["poisson"]),
    "float32 labels": Case(dtype=np.float32, **TARGETS["labels"]),
    "unscaled regression": Case(
        {"max_iter": 20, "tol": 0.1}, convert=lambda X: 100 * X, **TARGETS["squared error"]
    ),
    "tol stops, regression": Case(
        {**SLOW, **IMPATIENT, "verbose": True},
        **TARGETS["squared error"],
    ),
}


def observe(est, call, X, y, weights, classes):
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
                weights = None if weights is None else weights[rows]
                known = {"classes": classes} if method == "partial_fit" else {}
                known = known if hasattr(est, "predict_proba") else {}
                assert getattr(est, method)(X, y[rows], sample_weight=weights, **known) is est
        except ValueError as error:
            raised = re.sub("(MLP[a-zA-Z]*)BN", r"\1", str(error))
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
    elif issparse(theirs):
        assert type(ours) is type(theirs), name
        assert_same_value(ours.toarray(), theirs.toarray(), atol, name)
    elif isinstance(theirs, float | np.floating):
        assert isinstance(ours, float | np.floating), name
        assert_allclose(ours, theirs, rtol=atol, atol=atol, err_msg=name)
    else:
        assert type(ours) is type(theirs), name
        assert ours == theirs, name


def assert_same_model(ours, theirs, X, y, weights, atol):
    """Every fitted attribute that scikit-learn's model has, and every prediction."""
    for name, value in vars(theirs).items():
        if name == "t_" and theirs.solver == "lbfgs":
            continue  # documented as n_iter_ times the rows, and left at 0
        if name.endswith("_") and not name.startswith("_"):
            assert_same_value(getattr(ours, name), value, atol, name)
    assert_same_value(ours.predict(X), theirs.predict(X), 20 * atol, "predict")
    # With one class scikit-learn still gives two columns, of which neither is certain.
    if len(getattr(theirs, "classes_", ())) > 1:
        theirs_proba = theirs.predict_proba(X)
        assert_same_value(ours.predict_proba(X), theirs_proba, 20 * atol, "predict_proba")
        # scikit-learn takes the logarithm of rounded probabilities, skbn starts from the logits
        log_proba = ours.predict_log_proba(X)
        assert_same_value(np.exp(log_proba), theirs_proba, 20 * atol, "predict_log_proba")
    scores = [model.score(X, y, sample_weight=weights) for model in (ours, theirs)]
    assert_same_value(*scores, 20 * atol, "score")


def same_random_state(ours, theirs):
    """Whether two RandomStates, None standing for NumPy's own, would go on alike."""
    states = [getattr(state, "get_state", np.random.get_state)() for state in (ours, theirs)]
    return all(np.array_equal(our, their) for our, their in zip(*states, strict=True))


CASES = GRID | SPECIAL | MORE


@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in CASES.items()])
def test_same_as_sklearn(case, blobs, seed):
    special = case.labels is not None or case.convert_y in SPARSE.values()
    if special and case.params == EARLY and SKLEARN < parse_version("1.9"):
        pytest.skip("scikit-learn looks for NaN in predicted strings and sparse matrices and fails")
    X, y, weights = case.data(blobs, seed)
    classes = np.arange(case.n_classes) if case.target == "labels" else np.unique(y)
    params = {"hidden_layer_sizes": (6,), "max_iter": 4, **case.params}

    models, global_states = case.estimators(), []
    for estimator in models:
        estimator.set_params(**params)
        if case.random_state == "instance":
            estimator.set_params(random_state=np.random.RandomState(seed))
        elif case.random_state == "int":
            estimator.set_params(random_state=seed)
    ours, theirs = models

    for call in case.calls:
        observed = []
        for estimator in models:
            np.random.seed(seed)
            observed.append(observe(estimator, call, X, y, weights, classes))
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
        assert_same_model(ours, theirs, X, y, weights, TOLERANCE[case.dtype])


# Differences on purpose: a test for every row of docs/coming_from/scikit_learn.md, which its
# docstring names.

TABLE = pathlib.Path(__file__).parents[1] / "docs" / "coming_from" / "scikit_learn.md"
QUIET = {"hidden_layer_sizes": (6,), "max_iter": 4, "random_state": 0}


def classifiers(**params):
    return MLPClassifierBN(batch_norm=None, **QUIET | params), MLPClassifier(**QUIET | params)


def regressors(**params):
    return MLPRegressorBN(batch_norm=None, **QUIET | params), MLPRegressor(**QUIET | params)


def quietly(function, *args, **kwargs):
    """Call; return what it raised, if anything, and the text of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function(*args, **kwargs)
            error = None
        except Exception as raised:  # of whatever kind: it is looked at
            error = raised
    return error, [str(warning.message) for warning in caught]


@pytest.mark.skipif(not TABLE.exists(), reason="the pages are not part of this installation")
def test_every_difference_is_shown():
    section = TABLE.read_text("utf-8").partition("\n## What differs\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    rows = [line.split("|")[1].strip() for line in table[2:]]
    named = [f.__doc__ for name, f in globals().items() if name.startswith("test_difference")]
    assert sorted(rows) == sorted(named)


def test_difference_default():
    """default `batch_norm`"""
    assert MLPClassifierBN().batch_norm == MLPRegressorBN().batch_norm == "after"


def test_difference_threads():
    """threads"""
    X, y = make_classification(600, 20, random_state=0)
    fits = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            est = MLPClassifierBN((200, 200), max_iter=2, random_state=0)
            quietly(est.fit, X, y)
            fits.append(est.coefs_)
    assert all(np.array_equal(one, two) for one, two in zip(*fits, strict=True))


def test_difference_failing_call(blobs):
    """a call that fails"""
    X, y = blobs()
    ours, theirs = (est.fit(X, y) for est in classifiers())
    for est in (ours, theirs):
        before = est.n_features_in_
        error, _ = quietly(est.fit, np.hstack([X, X]), y + 0.5)
        assert isinstance(error, ValueError)
        assert (est.n_features_in_ == before) == (est is ours)


def test_difference_divergence(blobs):
    """training that diverges"""
    X, _ = blobs()
    huge = {"solver": "sgd", "learning_rate_init": 1e300, "max_iter": 50}
    ours, theirs = (quietly(est.fit, X, X[:, 0]) for est in regressors(**huge))
    assert str(ours[0]).startswith(str(theirs[0]))
    assert "Training diverged" in str(ours[0])
    assert re.search(r"hidden layer 0, epoch [12]\.", str(ours[0]))
    assert any("overflow" in text for text in theirs[1])  # of NumPy, on the way
    assert not ours[1]


def test_difference_divergence_with_early_stopping(blobs):
    """training that diverges, with early stopping"""
    X, _ = blobs()
    params = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 1.0, "alpha": 61e30}
    params |= {"max_iter": 20, "n_iter_no_change": 20, "early_stopping": True}
    ours, theirs = regressors(**params)
    _, warned = quietly(ours.fit, X, X[:, 0])
    assert "non-finite" in warned[-1]
    assert np.flatnonzero(np.isnan(ours.validation_scores_)) == [ours.n_iter_ - 1]
    assert ours.best_iter_ == np.nanargmax(ours.validation_scores_) + 1
    assert quietly(theirs.fit, X, X[:, 0])[0] is None
    assert np.isnan(theirs.validation_scores_).sum() > 1


def test_difference_log_proba(blobs):
    """`predict_log_proba`"""
    X, y = blobs()
    ours, theirs = (est.fit(X, y) for est in classifiers())
    with np.errstate(divide="ignore"):
        assert np.isneginf(theirs.predict_log_proba(1e6 * X)).any()
    assert np.isfinite(ours.predict_log_proba(1e6 * X)).all()


def test_difference_one_class(blobs):
    """one class in `y`"""
    X, _ = blobs()
    ours, theirs = (est.fit(X, np.ones(len(X), int)) for est in classifiers())
    assert_array_equal(ours.predict_proba(X), np.ones((len(X), 1)))
    assert theirs.predict_proba(X).shape == (len(X), 2)


def test_difference_object_labels(blobs):
    """labels of type object"""
    X, y = blobs()
    y = np.array(["b", "a", "c"], dtype=object)[y]
    ours, theirs = (est.fit(X, y) for est in classifiers())
    assert ours.predict(X).dtype == object
    assert theirs.predict(X).dtype.kind == "U"


def test_difference_views(blobs):
    """`coefs_`, `intercepts_`"""
    X, y = blobs()
    ours, theirs = (est.fit(X, y) for est in classifiers())
    for est in (ours, theirs):
        est.coefs_[-1] = np.zeros_like(est.coefs_[-1])
        est.intercepts_[-1] = np.array([0.0, 0.0, 9.0])
        assert (est.predict(X) == 2).all() == (est is theirs)
        est.coefs_[-1][...] = 0
        est.intercepts_[-1][...] = [0, 0, 9]
        assert (est.predict(X) == 2).all()


def test_difference_architecture(blobs):
    """architecture changed by `set_params` before a warm start"""
    X, y = blobs()
    ours, theirs = (est.fit(X, y) for est in classifiers(warm_start=True))
    quietly(theirs.set_params(hidden_layer_sizes=(3,)).fit, X, y)
    assert theirs.coefs_[0].shape == (4, 6)
    with pytest.raises(ValueError, match="same layers"):
        ours.set_params(hidden_layer_sizes=(3,)).fit(X, y)


def test_difference_warm_early_stopping(blobs):
    """warm start with early stopping, when no epoch beats the best of before"""
    X, y = blobs(90)
    params = {"early_stopping": True, "warm_start": True, "max_iter": 40, "tol": 0.0}
    models = classifiers(**params, learning_rate_init=0.05, n_iter_no_change=40)
    ours, theirs = (est.fit(X, y) for est in models)
    assert ours.best_validation_score_ == theirs.best_validation_score_
    for est in models:
        # nothing but a penalty, which leaves no weight
        est.set_params(solver="sgd", momentum=0.0, learning_rate_init=1e-9, alpha=81e9, max_iter=3)
        best = [coef.copy() for coef in est.coefs_]
        quietly(est.fit, X, y)
        kept = all(map(np.array_equal, best, est.coefs_))
        assert kept == (est is ours)


def test_difference_validation(blobs):
    """`validation_scores_`"""
    X, y = blobs(n_classes=2)
    ours, theirs = (est.fit(X, y) for est in classifiers())
    assert ours.validation_scores_ is theirs.validation_scores_ is None
    assert len(ours.fit(X, y, X_val=X, y_val=y).validation_scores_) == 4


def test_difference_progress(blobs, capsys, monkeypatch):
    """`verbose=2`"""
    X, y = blobs()
    printed = []
    for verbose, is_terminal in ((1, False), (2, False), (2, True)):
        monkeypatch.setattr("sys.stdout.isatty", lambda is_terminal=is_terminal: is_terminal)
        for est in classifiers(verbose=verbose):
            est.fit(X, y)
            printed.append(capsys.readouterr().out)
    assert len(set(printed[:4])) == 1
    assert printed[5] == printed[0]
    assert "\r" in printed[4]


def test_difference_callbacks():
    """`set_callbacks`"""
    ours, theirs = classifiers()
    assert not hasattr(theirs, "set_callbacks")
    assert hasattr(ours, "set_callbacks") == (SKLEARN >= parse_version("1.9"))


def test_difference_interrupt(blobs, interrupt, monkeypatch):
    """Ctrl-C"""
    X, y = blobs()
    est = MLPClassifierBN(**QUIET)
    interrupt("update_population_statistics", 1)
    assert quietly(est.fit, X, y)[1][-1] == "Training interrupted by user."
    assert est.n_iter_ == 4
    assert est.batch_norms_[0].population_mean is None
    # and during L-BFGS, where scikit-learn loses the fit
    ours, theirs = classifiers(solver="lbfgs")
    interrupt("loss_and_gradient", 4)
    assert quietly(ours.fit, X, y)[1] == ["Training interrupted by user."]
    assert ours.n_iter_ == len(ours.loss_curve_) > 0

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(theirs, "_loss_grad_lbfgs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        theirs.fit(X, y)


@pytest.mark.parametrize("n_outputs", [2, 3])
@pytest.mark.parametrize(
    "solver",
    [
        {"solver": "sgd", "momentum": 0.0},
        {"solver": "sgd", "nesterovs_momentum": False, "learning_rate": "invscaling"},
        {"solver": "sgd", "learning_rate": "adaptive"},
        {"solver": "adam"},
    ],
    ids=str,
)
def test_difference_several_outputs(solver, n_outputs, blobs, seed):
    """`MLPRegressor` with several outputs"""
    X, _ = blobs()
    Y = X @ np.random.RandomState(seed).normal(size=(4, n_outputs))
    params = QUIET | solver | {"alpha": 0.0, "batch_size": 9, "learning_rate_init": 0.003}
    theirs = MLPRegressor(**params)
    ours = MLPRegressorBN(**params, batch_norm=None)
    if solver["solver"] == "adam":  # knows no scale but epsilon's
        theirs.set_params(epsilon=n_outputs * ours.epsilon)
    else:
        ours.set_params(learning_rate_init=n_outputs * theirs.learning_rate_init)
    assert_same_model(ours.fit(X, Y), theirs.fit(X, Y), X, Y, None, 1e-10)
    theirs.set_params(epsilon=ours.epsilon, learning_rate_init=ours.learning_rate_init).fit(X, Y)
    assert not np.allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-9, atol=0)


def test_difference_lbfgs_curves(blobs):
    """curves of `solver="lbfgs"`"""
    X, y = blobs()
    ours, theirs = (est.fit(X, y) for est in classifiers(solver="lbfgs"))
    for name in ("loss_curve_", "best_loss_"):
        assert not hasattr(theirs, name)
    assert len(ours.loss_curve_) == len(ours.train_scores_) == ours.n_iter_ == theirs.n_iter_ == 4
    assert ours.loss_curve_[-1] == ours.best_loss_ == ours.loss_
    assert_allclose(ours.loss_, theirs.loss_, rtol=1e-12)


def test_difference_lbfgs_t(blobs):
    """`t_` with `solver="lbfgs"`"""
    X, y = blobs()
    ours, theirs = (est.fit(X, y) for est in classifiers(solver="lbfgs"))
    assert theirs.t_ == 0
    assert ours.t_ == ours.n_iter_ * len(X)


def test_difference_lbfgs_float32(blobs):
    """float32 `X` with `solver="lbfgs"`"""
    X, y = blobs(dtype=np.float32)
    ours, theirs = (est.fit(X, y) for est in classifiers(solver="lbfgs"))
    assert theirs.coefs_[0].dtype == np.float64
    assert ours.coefs_[0].dtype == np.float32
    assert_allclose(ours.coefs_[0], theirs.coefs_[0], atol=1e-3)


def test_difference_lbfgs_verbose(blobs, capfd):
    """`verbose` with `solver="lbfgs"`"""
    X, y = blobs()
    ours, theirs = classifiers(solver="lbfgs", verbose=True)
    theirs.fit(X, y)
    assert "Iteration 1, loss" not in capfd.readouterr().out
    ours.fit(X, y)
    printed = capfd.readouterr().out.splitlines()
    assert printed == [f"Iteration {i}, loss = {x:.8f}" for i, x in enumerate(ours.loss_curve_, 1)]


@pytest.mark.parametrize("params", [{"solver": "lbfgs", "early_stopping": True}, {"max_fun": 3}])
def test_difference_unheeded(params, blobs):
    """parameters that the solver does not heed"""
    X, y = blobs()
    ours, theirs = (quietly(est.fit, X, y)[1] for est in classifiers(**params))
    name, value = list(params.items())[-1]
    assert f"{name}={value} has no effect with solver=" in ours.pop(0)
    assert ours == theirs


def test_difference_negative_weights(blobs):
    """negative `sample_weight`"""
    X, y = blobs()
    weights = np.where(np.arange(len(X)) == 3, -0.1, 1.0)
    ours, theirs = (quietly(est.fit, X, y, weights)[0] for est in classifiers())
    assert theirs is None
    assert str(ours) == "Negative values in data passed to `sample_weight`."


def test_difference_all_zero_weights(blobs):
    """`sample_weight` of zeros only"""
    X, y = blobs()
    ours, theirs = (quietly(est.fit, X, y, 0 * y)[0] for est in classifiers())
    assert isinstance(ours, ValueError)
    assert isinstance(theirs, ValueError if SKLEARN >= parse_version("1.9") else ZeroDivisionError)


def test_difference_batches_without_weight(blobs):
    """mini-batches whose weights are all zero"""
    X, y = blobs(60)
    weights = np.repeat([1.0, 0.0, 1.0], 20)
    models = classifiers(batch_size=20, shuffle=False)
    ours, theirs = (quietly(est.fit, X, y, weights)[0] for est in models)
    assert ours is None
    assert isinstance(theirs, ZeroDivisionError)


def test_difference_zero_weights(blobs):
    """rows of weight zero"""
    X, _ = blobs()
    weights = (np.arange(len(X)) != 3).astype(float)
    huge = np.where(weights > 0, X[:, 0], 1e200)
    ours, theirs = regressors()
    with np.errstate(all="ignore"):
        assert np.isnan(theirs.fit(X, huge, weights).loss_)
    expected = ours.fit(X, X[:, 0], weights).loss_curve_
    assert ours.fit(X, huge, weights).loss_curve_ == expected


def test_difference_negative_counts(blobs):
    """negative `y` with `loss="poisson"`"""
    X, _ = blobs()
    ours, theirs = (est.set_params(loss="poisson") for est in regressors())
    assert quietly(theirs.fit, X, X[:, 0])[0] is None
    assert np.isnan(theirs.loss_)
    with pytest.raises(ValueError, match="out of the valid range of the loss 'poisson'"):
        ours.fit(X, X[:, 0])


def test_difference_known_labels(blobs):
    """multilabel `partial_fit` with more `classes` than labels"""
    X, y = blobs()
    Y = np.eye(3, dtype=int)[y]
    ours, theirs = (quietly(est.partial_fit, X, Y, classes=range(5))[0] for est in classifiers())
    assert theirs is None
    assert "mismatch with the labels [0 1 2]" in str(ours)
