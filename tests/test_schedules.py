"""Learning rates that move with every update, the bound on gradients, and parameters unheeded.

A regressor without features whose targets are never reached has a gradient of exactly -1 in its
only intercept: every step of plain SGD is the learning rate itself. A scorer reads the intercept.
"""
# SPDX-License-Identifier: BSD-3-Clause

import warnings

import numpy as np
import pytest
from cases import each_dtype, each_executor, network_case, optimizer, tensors
from numpy.testing import assert_allclose, assert_array_equal

from skbn import MLPClassifierBN, MLPRegressorBN
from skbn._mlp import HEEDED_BY

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RATE = 0.25
PLAIN = {"solver": "sgd", "momentum": 0.0}
SOLVERS = {"sgd": PLAIN, "adam": {"solver": "adam"}, "rmsprop": {"solver": "rmsprop"}}


def steps(schedule, n_steps, **params):
    """How far the intercept went with every update, an epoch each."""
    path = []
    est = MLPRegressorBN(
        "absolute_error",
        (),
        batch_norm=None,
        weight_init="he_normal",  # the intercept begins at 0
        learning_rate=schedule,
        learning_rate_init=RATE,
        max_iter=n_steps,
        n_iter_no_change=np.inf,
        random_state=0,
        scoring=lambda model, X, y: path.append(model.intercepts_[0][0]) or 0.0,
        **params,
    )
    X, y = np.zeros((2, 1)), np.full(2, 1e6)
    est.fit(X, y, X_val=X, y_val=y)
    return np.diff([0.0, *path])


def cosine(t, n):
    return RATE / 2 * (1 + np.cos(np.pi * t / n))


def onecycle(t, n):
    peak = 0.3 * n - 1
    rise = (1 - np.cos(np.pi * t / peak)) / 2
    fall = (1 + np.cos(np.pi * (t - peak) / (n - 1 - peak))) / 2
    low, end = RATE / 25, RATE / 25e4
    return np.where(t < peak, low + (RATE - low) * rise, end + (RATE - end) * fall)


SCHEDULES = {"cosine": cosine, "onecycle": onecycle, "constant": lambda t, n: RATE + 0 * t}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 10, 17, 300])
def test_closed_form(n_steps, schedule, solver):
    t = np.arange(n_steps)
    expected = SCHEDULES[schedule](t, n_steps)
    if solver == "rmsprop":  # whose second moment begins at 0
        expected = expected / np.sqrt(1 - 0.999 ** (t + 1))
    found = steps(schedule, n_steps, **SOLVERS[solver])
    assert_allclose(found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("n_steps", [4, 10, 17, 300, 1000])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_as_in_torch(schedule, n_steps):
    torch = pytest.importorskip("torch")
    rule = torch.optim.SGD([torch.zeros(1, requires_grad=True)], RATE)
    plan = (
        torch.optim.lr_scheduler.CosineAnnealingLR(rule, n_steps)
        if schedule == "cosine"
        else torch.optim.lr_scheduler.OneCycleLR(
            rule, RATE, total_steps=n_steps, cycle_momentum=False
        )
    )
    rates = []
    for t in range(n_steps):
        rates.append(plan.get_last_lr()[0])
        rule.step()
        if t < n_steps - 1:
            plan.step()
    assert_allclose(steps(schedule, n_steps, **PLAIN), rates, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
@pytest.mark.parametrize("placement", [None, "after"])
@pytest.mark.parametrize("n_rows", [20, 21, 22, 40, 41])
def test_planned_to_the_last_update(n_rows, placement, schedule, seed):
    # with batch norm a last row by itself is no mini-batch of its own
    X = np.random.RandomState(seed).normal(size=(n_rows, 3))
    est = MLPRegressorBN(hidden_layer_sizes=(4,), batch_norm=placement, learning_rate=schedule)
    est.set_params(batch_size=20, max_iter=3, n_iter_no_change=np.inf, random_state=0)
    (record,) = est.fit(X, X[:, 0])._optimizer.record
    assert record["t"] == record["n_steps"]
    with_val = est.fit(X, X[:, 0], X_val=X, y_val=X[:, 0])._optimizer.record[0]
    assert with_val["n_steps"] == record["n_steps"]
    est.set_params(early_stopping=True, batch_size=10)
    split = est.fit(X, X[:, 0])._optimizer.record[0]
    assert split["t"] == split["n_steps"]


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_warm_start_begins_anew(schedule, seed):
    X = np.random.RandomState(seed).normal(size=(40, 3))
    est = MLPRegressorBN(hidden_layer_sizes=(4,), learning_rate=schedule, warm_start=True)
    est.set_params(max_iter=3, random_state=0).fit(X, X[:, 0])
    before = est.coefs_[0].copy()
    est.fit(X, X[:, 0])
    assert est._optimizer.record["t"] == 3
    assert not np.allclose(est.coefs_[0], before)


@pytest.mark.parametrize("start", ["fresh", "fitted"])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_partial_fit_has_no_plan(schedule, start, blobs, unchanged):
    X, y = blobs()
    for est, known in ((MLPClassifierBN((4,)), {"classes": [0, 1, 2]}), (MLPRegressorBN(), {})):
        est.set_params(max_iter=2, random_state=0, learning_rate=schedule)
        est = est.fit(X, y) if start == "fitted" else est
        message = f"partial_fit does not support learning_rate='{schedule}'"
        with unchanged(est), pytest.raises(ValueError, match=message):
            est.partial_fit(X, y, **known)


# max_grad_norm.


def one_step(executor, case, dtype, **options):
    """Gradient of a batch, and what one step of plain SGD with a learning rate of 1 subtracts."""
    network = case.network(dtype)
    data = case.data(dtype)
    grads = network.new_vector()
    rule = optimizer(network, "plain", learning_rate_init=1.0, **options)
    with case.executor(executor, network) as it:
        it.loss_and_gradient(*data, grads)
        before = network.params.copy()
        it.train(*data, 0, rule.record, rule.memory, it.new_sums())
    return grads.astype(float), (before.astype(float) - network.params)


CLIPPED = network_case(("before",), "tanh", (9, 5), 3, 3, n_rows=20, alpha=0.5)


@each_executor
@each_dtype
@pytest.mark.parametrize("share", [0.9, 1e-3])
def test_gradients_are_scaled_down(share, dtype, executor):
    eps = float(np.finfo(dtype).eps)
    grads, _ = one_step(executor, CLIPPED, dtype)
    norm = np.linalg.norm(grads)
    assert norm > 0.1
    _, step = one_step(executor, CLIPPED, dtype, max_grad_norm=share * norm)
    # a step is seen in weights of order 1
    assert_allclose(step, share * grads, atol=8 * eps)
    assert np.linalg.norm(step) == pytest.approx(share * norm, abs=100 * eps)


@each_executor
@each_dtype
def test_shorter_gradients_are_left_alone(dtype, executor):
    grads, plain = one_step(executor, CLIPPED, dtype)
    for bound in (1.001 * np.linalg.norm(grads), 1e10, 1e300):
        _, step = one_step(executor, CLIPPED, dtype, max_grad_norm=bound)
        assert_array_equal(step, plain)


@each_executor
@pytest.mark.parametrize("bound", [0.01, 0.5, 100.0])
def test_clipped_as_in_torch(bound, executor):
    torch = pytest.importorskip("torch")
    grads, _ = one_step(executor, CLIPPED, np.float64)
    other = torch.zeros(len(grads), dtype=torch.float64)
    other.grad = torch.tensor(grads)
    torch.nn.utils.clip_grad_norm_(other, bound)
    _, step = one_step(executor, CLIPPED, np.float64, max_grad_norm=bound)
    # torch adds 1e-6 to the norm
    assert_allclose(step, other.grad.numpy(), rtol=2e-6 / np.linalg.norm(grads), atol=1e-15)


@each_executor
@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e30), (np.float64, 1e200)])
def test_norms_whose_squares_overflow(dtype, size, executor):
    case = network_case((), hidden=(), n_features=3, n_classes=1, target="absolute_error", n_rows=4)
    network = case.network(dtype)
    X, targets, _, rows = case.data(dtype)
    rule = optimizer(network, "plain", learning_rate_init=1.0, max_grad_norm=0.5)
    before, grads = network.params.copy(), network.new_vector()
    X = X * dtype(size)
    with case.executor(executor, network) as it, np.errstate(over="ignore"):
        it.loss_and_gradient(X, targets, None, rows, grads)
        assert np.isinf(np.sum(grads**2))
        it.train(X, targets, None, rows, 0, rule.record, rule.memory, it.new_sums())
    step = (before - network.params).astype(float)
    direction = grads / np.abs(grads).max()
    expected = 0.5 * direction / np.linalg.norm(direction)
    assert_allclose(step, expected, atol=1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("solver", SOLVERS)
def test_exploding_gradients(solver, seed):
    # features so large that the first step would throw the weights away
    X = 1e100 * np.random.RandomState(seed).normal(size=(40, 3))
    params = {"hidden_layer_sizes": (), "batch_norm": None, "max_iter": 3, "random_state": 0}
    params |= {"learning_rate_init": 1e-3, "alpha": 0.0}
    est = MLPRegressorBN("absolute_error", **params | SOLVERS[solver])
    est.set_params(max_grad_norm=1.0).fit(X, X[:, 0] / 1e100)
    assert np.isfinite(est.loss_curve_).all()
    if solver == "sgd":
        free = est.set_params(max_grad_norm=None).fit(X, X[:, 0] / 1e100)
        assert np.abs(free.coefs_[0]).max() > 1e90


def test_pads_and_biases_that_batch_norm_cancels_do_not_count():
    grads, _ = one_step("reference", CLIPPED, np.float64)
    named = tensors(CLIPPED.network(), grads)
    assert np.linalg.norm(grads) == pytest.approx(
        np.sqrt(sum(np.sum(value**2) for value in named.values())), rel=1e-14
    )
    assert not named["0.bias"].any()


# Parameters that a solver does not heed.

OTHER_VALUES = {
    "momentum": 0.5,
    "nesterovs_momentum": False,
    "power_t": 0.3,
    "beta_1": 0.5,
    "beta_2": 0.5,
    "epsilon": 1e-3,
    "bn_momentum": 0.5,
    "max_fun": 10,
    "batch_size": 30,
    "early_stopping": True,
    "learning_rate": "cosine",
    "learning_rate_init": 0.01,
    "max_grad_norm": 1.0,
    "n_iter_no_change": 3,
    "shuffle": False,
    "validation_fraction": 0.2,
}


def warnings_of(est, X, y):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        est.fit(X, y)
    return [str(w.message) for w in caught if "no effect with" in str(w.message)]


@pytest.mark.parametrize("estimator", [MLPClassifierBN, MLPRegressorBN])
@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop", "lbfgs"])
@pytest.mark.parametrize("name", HEEDED_BY)
def test_unheeded_parameters(name, solver, estimator, blobs):
    X, y = blobs()
    assert set(OTHER_VALUES) == set(HEEDED_BY)
    est = estimator((3,) if estimator is MLPClassifierBN else "huber", solver=solver, max_iter=2)
    assert warnings_of(est, X, y) == []  # of defaults nobody is told
    value = OTHER_VALUES[name]
    heeded = solver in HEEDED_BY[name]
    est.set_params(random_state=0)
    default = est.fit(X, y).loss_curve_
    expected = [] if heeded else [f"{name}={value!r} has no effect with solver={solver!r}."]
    assert warnings_of(est.set_params(**{name: value}), X, y) == expected
    if not heeded:
        assert est.loss_curve_ == default  # it has none


@pytest.mark.parametrize("schedule", ["invscaling", "adaptive"])
def test_unheeded_schedules(schedule, blobs):
    X, y = blobs()
    for solver in ("sgd", "adam", "rmsprop", "lbfgs"):
        est = MLPClassifierBN((3,), solver=solver, max_iter=2, learning_rate=schedule)
        told = [f"learning_rate={schedule!r} has no effect with solver={solver!r}."]
        assert warnings_of(est, X, y) == ([] if solver == "sgd" else told)


def test_all_that_is_unheeded_is_one_warning(blobs):
    X, y = blobs()
    est = MLPClassifierBN((3,), solver="lbfgs", max_iter=2, shuffle=False, beta_1=0.5)
    (told,) = warnings_of(est, X, y)
    assert told == "beta_1=0.5, shuffle=False have no effect with solver='lbfgs'."
    est.set_params(solver="adam", power_t=0.1)
    with pytest.warns(UserWarning, match="power_t=0.1 has no effect with solver='adam'"):
        est.partial_fit(X, y, classes=[0, 1, 2])
