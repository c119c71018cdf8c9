"""Many fits in one call: the bits of single fits, whatever goes together and whatever does not."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import itertools
import threading
import warnings
from math import inf, nan

import numpy as np
import pytest
from cases import network_case, optimizer
from numpy.testing import assert_array_equal
from scipy.sparse import csc_array, csr_array
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold

from skbn import MLPClassifierBN, MLPRegressorBN, fit_many
from skbn._losses import log_loss
from skbn._training import Fit, Histories, History, Observers, Order, Rows, train, train_together
from skbn.backends import get_executor, get_models
from skbn.backends.models import models_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore:Got `batch_size`:UserWarning"
)


@pytest.fixture(params=["cpu", "cpu, one by one", "reference"])
def device(request, monkeypatch):
    """What the estimators compute on: the CPU's models, or the general ones over two executors."""
    name = request.param.split(",")[0]
    models = get_models(name) if name == request.param else models_of(get_executor(name))
    monkeypatch.setattr("skbn._mlp.get_executor", lambda device: get_executor(name))
    monkeypatch.setattr("skbn._fit_many.get_models", lambda device: models)
    return request.param


@pytest.fixture
def together(snapshot):
    """A function that fits many, and fails unless each is what its own fit leaves, to the bit."""

    def check(estimators, X, y, sample_weight=None, rows=None, **options):
        singles = [clone(estimator) for estimator in estimators]
        fitted = fit_many(estimators, X, y, sample_weight, rows=rows, **options)
        assert [id(e) for e in fitted] == [id(e) for e in estimators]
        parts = [None] * len(estimators) if rows is None else rows
        for estimator, single, part in zip(estimators, singles, parts, strict=True):
            part = slice(None) if part is None else part
            w = None if sample_weight is None else sample_weight[part]
            single.fit(X[part], y[part], w)
            assert snapshot(estimator, X) == snapshot(single, X), estimator
        return estimators

    return check


def classifier(**parameters):
    defaults = {"hidden_layer_sizes": (5,), "batch_size": 16, "max_iter": 6, "random_state": 0}
    return MLPClassifierBN(**defaults | parameters)


def regressor(**parameters):
    defaults = {"hidden_layer_sizes": (5,), "batch_size": 16, "max_iter": 6, "random_state": 0}
    return MLPRegressorBN(**defaults | parameters)


VARIANTS = [
    *({"batch_norm": p} for p in (None, "input", "before", "after", ("input", "after"))),
    {"solver": "rmsprop"},
    {"solver": "sgd", "learning_rate_init": 0.01},
    {"solver": "lbfgs", "batch_size": "auto"},
    {"solver": "sgd", "learning_rate": "invscaling"},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1},
    {"learning_rate": "cosine", "max_iter": 9},
    {"learning_rate": "onecycle"},
    {"hidden_layer_sizes": (7, 3), "activation": "gelu"},
    {"hidden_layer_sizes": ()},
    {"dropout": 0.3},
    {"dropout": 0.3, "random_state": 5},
    {"shuffle": False},
    {"shuffle": "blocks"},
    {"batch_size": 61},
    {"batch_size": 20, "batch_norm": "before"},  # a rest of one row
    {"bn_virtual_batch_size": 5, "alpha": 0.1, "bn_momentum": None},
    {"bn_statistics": "moving", "bn_scale": False},
    {"tol": 0.5, "n_iter_no_change": 2, "max_iter": 50},
    {"max_grad_norm": 0.1, "weight_init": "he_normal"},
    {"early_stopping": True},
    {"early_stopping": True, "scoring": "loss", "random_state": 3},
]


def test_the_bits_of_single_fits(device, together, blobs):
    X, y = blobs()
    together([classifier(**variant) for variant in VARIANTS], X, y)


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber", "poisson"])
def test_regression(loss, device, together, blobs):
    X, _ = blobs(dtype=np.float32)
    y = np.abs(X[:, 0])
    variants = VARIANTS if loss == "squared_error" else VARIANTS[:5]
    together([regressor(loss=loss, **variant) for variant in variants], X, y)


def test_several_outputs_have_scores_of_the_same_bits(device, together, seed):
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(50, 3))
    y = X @ rng.normal(size=(3, 11))
    y[:, 4] = 2.0
    together([regressor(batch_norm=p) for p in ("before", "after", None)], X, y)


@pytest.mark.parametrize("container", [np.asfortranarray, csr_array, csc_array])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_layouts_and_folds(container, n_classes, device, together, blobs):
    X, y = blobs(n_classes=n_classes)
    variants = [{"batch_norm": p} for p in (None, "input", "before")] + [{"early_stopping": True}]
    folds = [*(fold for fold, _ in StratifiedKFold(3).split(X, y)), None]
    pairs = list(itertools.product(variants, folds))
    estimators = [classifier(**variant, max_iter=3) for variant, _ in pairs]
    together(estimators, container(X), y, rows=[fold for _, fold in pairs])


def test_rows_of_any_kind(device, together, blobs, seed):
    X, y = blobs()
    rng = np.random.RandomState(seed)
    rows = [
        rng.permutation(61)[:40],
        rng.randint(0, 61, size=61),  # a bootstrap
        np.arange(61) % 3 > 0,
        np.arange(-30, 0),
        None,
    ]
    together([classifier(batch_norm=("input", "before")) for _ in rows], X, y, rows=rows)
    together([classifier(shuffle="blocks") for _ in rows], X, y, rows=rows)
    lists = [np.flatnonzero(rows[2]).tolist(), [0, 1, 2, 3]]
    fitted = fit_many([classifier(), classifier()], X.tolist(), y.tolist(), rows=lists)
    assert fitted[1].t_ == 4 * 6


def test_weights(device, together, blobs, seed):
    X, y = blobs()
    w = np.random.RandomState(seed).choice([0.0, 0.5, 2.0], size=61)
    folds = [None, np.arange(40), np.arange(20, 61)]
    weights = [None, "balanced", {0: 2.0, 1: 1.0, 2: 0.5}]
    pairs = list(itertools.product(weights, folds))
    estimators = [classifier(class_weight=weight) for weight, _ in pairs]
    together(estimators, X, y, w, rows=[fold for _, fold in pairs])
    together([clone(e) for e in estimators], X, y, rows=[fold for _, fold in pairs])
    together([regressor(batch_norm=p) for p in (None, "before")], X, X[:, 0], w)


def test_folds_without_a_class(device, together, blobs):
    X, y = blobs(n_classes=4)
    rows = [None, y > 0, y < 3, np.flatnonzero(y % 2), y == 1]
    fitted = together([classifier(batch_norm="before") for _ in rows], X, y, rows=rows)
    assert [len(estimator.classes_) for estimator in fitted] == [4, 3, 3, 2, 1]
    names = np.array(["a", "b", "c", "d"])[y]
    together([classifier() for _ in rows], X, names, rows=rows)


def test_classifiers_and_regressors(device, together, blobs):
    X, y = blobs(n_classes=2)
    estimators = [classifier(), regressor(), classifier(batch_norm=None), regressor(loss="huber")]
    together(estimators, X, y)
    multilabel = np.column_stack([y, X[:, 0] > 0])
    together([clone(estimator) for estimator in estimators[:3]], X, multilabel)


def test_what_has_been_fitted_before(device, blobs, snapshot):
    pandas = pytest.importorskip("pandas")
    X, y = blobs()
    for warm_start in (False, True):
        together, single = (
            classifier(warm_start=warm_start).fit(pandas.DataFrame(X).add_prefix("x"), y)
            for _ in range(2)
        )
        fresh = classifier()
        fit_many([together, fresh], X, y)
        assert snapshot(together) == snapshot(single.fit(X, y))
        assert not hasattr(fresh, "feature_names_in_")
    fit_many([fresh], pandas.DataFrame(X).add_prefix("y"), y)
    assert fresh.feature_names_in_[0] == "y0"


def test_long_epochs(together):
    """An epoch that one call does not finish goes on with the next."""
    X = np.arange(80_000.0)[:, np.newaxis] / 40_000 - 1
    tiny = {"hidden_layer_sizes": (1,), "batch_norm": None, "max_iter": 1, "shuffle": False}
    estimators = [regressor(batch_size=size, **tiny) for size in (2, 70_000, 3)]
    together(estimators, X, X[:, 0], rows=[None, None, np.arange(10)])


def test_large_networks_train_by_themselves(together, blobs, monkeypatch):
    X, y = blobs()
    monkeypatch.setattr("skbn.backends.cpu.threads.WORTH_A_TEAM", 1e-9)
    monkeypatch.setattr(get_models("cpu"), "train", None)
    together([classifier(), classifier(batch_norm=None)], X, y, n_jobs=1)


@pytest.mark.parametrize("n_jobs", [1, 2, 3, -1])
def test_threads(n_jobs, together, blobs, monkeypatch):
    X, y = blobs()
    names, begun = set(), threading.Barrier(min(n_jobs, 2)) if n_jobs > 0 else None
    original = get_models("cpu").__enter__

    def enter(self):
        if begun and not names & {threading.current_thread().name} and len(names) < 2:
            names.add(threading.current_thread().name)
            begun.wait(60)
        return original(self)

    monkeypatch.setattr(get_models("cpu"), "__enter__", enter)
    together([classifier(**variant) for variant in VARIANTS * 2], X, y, n_jobs=n_jobs)
    assert n_jobs < 0 or len(names) == min(n_jobs, 2)


def test_joblib_says_what_n_jobs_may_be(blobs):
    with pytest.raises(ValueError, match="n_jobs"):
        fit_many([classifier()], *blobs(), n_jobs=0)


# Between epochs.

LOSSES = {
    "down": [1.0, 0.9, 0.5, 0.2, 0.1, 0.05],
    "flat": [1.0] * 6,
    "by less than tol": [1.0, 0.995, 0.99, 0.985, 0.98, 0.975],
    "up and down": [1.0, 2.0, 0.5, 0.5, 0.7, 0.4],
    "to infinity": [1.0, inf, 1.0, 1.0, 1.0, 1.0],
    "to nothing": [1.0, 0.8, nan, 0.1, 0.1, 0.1],
    "from infinity": [inf, 1.0, 1.0, 1.0, 1.0, 1.0],
    "below zero": [-1.0, -2.0, -1.0, -inf, 0.0, 0.0],
}


@pytest.mark.parametrize("tol", [0.0, 0.01])
def test_histories_decide_as_a_history_does(tol):
    singles = [History() for _ in LOSSES]
    many = Histories(np.full(len(LOSSES), tol))
    table = np.array(list(LOSSES.values())).T
    for epoch, losses in enumerate(table):
        active = np.arange(len(LOSSES)) != epoch  # each has a rest once, and one has none
        sums = np.where(active, [losses * 4, np.full(len(losses), 4.0), losses], 0.0).T
        finite = many.append(sums, active)
        for single, loss, goes_on in zip(singles, losses.tolist(), active, strict=True):
            if goes_on:
                single.append(4, loss, 0.0, None)
                single.update(False, tol)
        rows = zip(singles, active, finite, strict=True)
        assert all(is_finite == single.is_finite for single, is_on, is_finite in rows if is_on)
        for name in ("n_iter", "best_iter", "best_loss", "no_improvement_count"):
            expected = [getattr(single, name) for single in singles]
            assert_array_equal(getattr(many, name), expected, name)


class Scripted:
    """An executor, and models, that say what they are told."""

    def __init__(self, losses):
        self.losses, self.epochs = losses, np.zeros(len(losses), dtype=int)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def new_sums(self):
        return np.zeros((len(self.losses), 3)) if len(self.losses) > 1 else np.zeros(3)

    def train(self, X, targets, weights, rows, *rest):
        *_, active, sums = rest if len(self.losses) > 1 else (*rest[:-1], [True], [rest[-1]])
        for index in np.flatnonzero(active):
            sums[index] += [self.losses[index][self.epochs[index]] * 4, 4, 3]
            self.epochs[index] += 1
        return 4


@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive"])
@pytest.mark.parametrize("max_iter", [3, 6])
def test_the_two_loops_keep_the_same_rules(schedule, max_iter):
    network = network_case().network()
    data = Rows(np.zeros((4, 2)), np.zeros(4), None, np.arange(4))

    def rule():
        return optimizer(network, "plain", learning_rate_init=1e-5, schedule=schedule)

    def order():
        return Order(data, False, None)

    options = {"max_iter": max_iter, "tol": 0.01, "n_iter_no_change": 1}
    names = list(LOSSES)
    fits = [Fit(network, log_loss(2), rule(), data, order(), **options) for _ in names]
    histories, completed, unconverged = train_together(
        Scripted(list(LOSSES.values())), fits, to_the_end=True, is_over=threading.Event()
    )
    assert completed
    for name, fit, history, at_end in zip(names, fits, histories, unconverged, strict=True):
        single, own_rule = History(), rule()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                train(
                    network,
                    Scripted([LOSSES[name]]),
                    log_loss(2),
                    own_rule,
                    single,
                    data,
                    shuffle=False,
                    random_state=None,
                    early_stopping=False,
                    observers=Observers(),
                    **options,
                )
            except ValueError:
                assert not single.is_finite
        assert history.is_finite == single.is_finite
        assert at_end == (len(warned) > 0), name
        assert repr(history) == repr(single), name
        assert fit.optimizer.record.tobytes() == own_rule.record.tobytes(), name


def test_shuffles_are_drawn_once(blobs, monkeypatch):
    X, y = blobs()
    begin_epoch, calls = Order.begin_epoch, []
    monkeypatch.setattr(Order, "begin_epoch", lambda order: calls.append(begin_epoch(order)))
    placements = ("input", "before", "after", None)
    fit_many([classifier(batch_norm=p) for p in placements], X, y, n_jobs=1)
    assert len(calls) == 6
    others = [{"random_state": 1}, {"hidden_layer_sizes": 6}, {"shuffle": False}]
    fit_many([classifier(**other) for other in [{}, *others]], X, y, n_jobs=1)
    assert len(calls) == 6 + 4 * 6


# random_state.


def test_generators_of_the_users(device, blobs, snapshot):
    X, y = blobs()

    def estimators():
        own = [np.random.RandomState(seed) for seed in (1, 1, 2)]
        shared = np.random.RandomState(3)
        states = [*own, shared, 4, shared, np.random.RandomState(1)]
        return [
            classifier(random_state=state, max_iter=n, n_iter_no_change=3)
            for state, n in zip(states, (3, 5, 5, 3, 3, 4, 9), strict=True)
        ]

    together, singles = fit_many(estimators(), X, y), [e.fit(X, y) for e in estimators()]
    for one, other in zip(together, singles, strict=True):
        assert snapshot(one, X) == snapshot(other, X)
        states = [
            e.random_state.get_state()[1].tolist() if e.random_state != 4 else 4
            for e in (one, other)
        ]
        assert states[0] == states[1]


def test_without_a_random_state(device, blobs):
    X, y = blobs()
    parameters = [{}, {}, {"early_stopping": True}, {"solver": "lbfgs", "batch_size": "auto"}]

    def fitted():
        np.random.seed(7)
        estimators = [classifier(random_state=None, **p) for p in parameters]
        return [e.predict_proba(X) for e in fit_many(estimators, X, y)]

    first, again = fitted(), fitted()
    assert_array_equal(first, again)
    assert (first[0] != first[1]).any()


# What goes wrong.


def test_what_is_refused(blobs, unchanged):
    X, y = blobs()
    est = classifier()
    with unchanged(est):
        with pytest.raises(ValueError, match="same object"):
            fit_many([est, classifier(), est], X, y)
        with pytest.raises(TypeError, match=r"estimators\[1\] is KFold"):
            fit_many([est, KFold()], X, y)
        with pytest.raises(ValueError, match="rows has 1 entries for 2"):
            fit_many([est, classifier()], X, y, rows=[[0, 1]])
        with pytest.raises(IndexError):
            fit_many([est], X, y, rows=[[0, 61]])
        with pytest.raises(ValueError, match="Expected 2D array"):
            fit_many([est], X[0], y)
    assert fit_many([], X, y) == []


FAULTY = [
    ({"alpha": -1}, "'alpha' parameter"),
    ({"batch_size": 1}, "batch_size=1 cannot"),
    ({"solver": "sgd", "learning_rate_init": 1e30, "batch_norm": None}, "Training diverged"),
    ({"solver": "lbfgs", "batch_size": "auto", "dropout": 0.5}, "does not support dropout"),
    (
        {"early_stopping": True, "validation_fraction": 0.01},
        "validation set is too small|test_size",
    ),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the reference
@pytest.mark.parametrize(("parameters", "message"), FAULTY)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_all_or_nothing(parameters, message, n_jobs, device, blobs, unchanged, snapshot):
    X, y = blobs(n_classes=2)
    fitted = classifier(random_state=np.random.RandomState(1), warm_start=True).fit(X, y)
    fresh, faulty = classifier(), classifier(**parameters)
    stopping = classifier(early_stopping=True)
    estimators = [fresh, fitted, faulty, stopping, classifier(max_iter=3)]
    with unchanged(fresh), unchanged(fitted, X), unchanged(faulty), unchanged(stopping):
        with pytest.raises(ValueError, match=message) as caught:
            fit_many(estimators, X, y, n_jobs=n_jobs)
    assert caught.value.__notes__ == [f"This is about estimators[2], {faulty!r}."]

    with unchanged(faulty):
        results = fit_many(estimators, X, y, n_jobs=n_jobs, return_exceptions=True)
    assert isinstance(results[2], ValueError)
    assert results[:2] + results[3:] == estimators[:2] + estimators[3:]
    assert snapshot(fresh, X) == snapshot(classifier().fit(X, y), X)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_statistics_that_are_not_finite(device):
    X = np.linspace(-1, 1, 40)[:, np.newaxis] * [1.0, 1e200]
    est = classifier(batch_norm="input", alpha=0.0)
    with pytest.raises(ValueError, match="diverged in the normalization layer of the input") as one:
        clone(est).fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match="diverged") as other:
        fit_many([est], X, X[:, 0] > 0)
    assert str(one.value) == str(other.value)
    assert not hasattr(est, "n_iter_")


def test_one_warning_for_all(blobs):
    X, y = blobs()
    patient = [classifier(n_iter_no_change=inf) for _ in range(3)]
    easy = classifier(tol=10.0, n_iter_no_change=1)
    with pytest.warns(ConvergenceWarning) as warned:
        fit_many([easy, *patient], X, y)
    (warning,) = warned
    assert "hasn't converged yet for 3 of 4 estimators, estimators[1] the first" in str(
        warning.message
    )
    assert warning.filename == __file__
    with pytest.warns(UserWarning, match="power_t=0.1 has no effect"):
        fit_many([clone(easy).set_params(power_t=0.1)], X, y)
    with pytest.warns(UserWarning, match="scoring='loss' has no effect"):
        fit_many([clone(easy).set_params(scoring="loss")], X, y)


@pytest.fixture
def ctrl_c(monkeypatch, device):
    """A function after which one call of a method of the models ends in Ctrl-C."""

    def arrange(method, call):
        from skbn import _fit_many

        models, calls = _fit_many.get_models(None), itertools.count(1)
        original = getattr(models, method)

        def interrupted(*args):
            if next(calls) == call:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(models, method, interrupted)

    return arrange


def test_ctrl_c(ctrl_c, blobs):
    X, y = blobs()
    ctrl_c("train", 4)
    estimators = [classifier(), classifier(tol=10.0, n_iter_no_change=1), classifier(max_iter=3)]
    with pytest.warns(UserWarning, match="interrupted by user"):
        fit_many(estimators, X, y, n_jobs=1)
    assert [est.n_iter_ for est in estimators] == [3, 3, 3]
    assert len(estimators[0].loss_curve_) == 3
    assert all(est.batch_norms_[0].population_mean is None for est in estimators)
    assert estimators[0].predict(X).shape == y.shape


def test_ctrl_c_in_the_first_epoch_and_at_the_end(ctrl_c, blobs):
    X, y = blobs()
    ctrl_c("train", 1)
    with pytest.warns(UserWarning, match="interrupted by user"):
        (est,) = fit_many([classifier()], X, y)
    assert est.n_iter_ == 0
    assert est.loss_curve_ == []
    assert np.isnan(est.loss_)
    ctrl_c("update_population_statistics", 1)
    with pytest.warns(UserWarning, match="interrupted by user"):
        (est,) = fit_many([classifier()], X, y)
    assert est.n_iter_ == 6
    assert est.batch_norms_[0].population_mean is None


def test_ctrl_c_while_something_has_not_begun(ctrl_c, blobs, unchanged):
    X, y = blobs()
    ctrl_c("train", 2)
    estimators = [classifier(), regressor(), classifier(early_stopping=True)]
    with unchanged(estimators[0]), unchanged(estimators[1]), unchanged(estimators[2]):
        with pytest.warns(UserWarning, match="interrupted by user"):
            with pytest.raises(KeyboardInterrupt):
                fit_many(estimators, X, y, n_jobs=1)


def test_ctrl_c_ends_what_other_threads_do(blobs, monkeypatch):
    X, y = blobs()
    models, executor = get_models("cpu"), get_executor("cpu")
    all_have_begun, here = threading.Barrier(3), threading.local()

    def interrupted(train):
        def in_main_thread(*args):
            if not hasattr(here, "has_begun"):
                here.has_begun = all_have_begun.wait(60)
            elif threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return train(*args)

        return in_main_thread

    twin = type("Interrupted", (executor,), {"train": interrupted(executor.train)})
    monkeypatch.setattr("skbn._mlp.get_executor", lambda device: twin)
    monkeypatch.setattr(models, "train", interrupted(models.train))
    endless = {"max_iter": 10**9, "n_iter_no_change": inf}
    estimators = [
        classifier(**endless),
        classifier(batch_norm=None, **endless),
        classifier(early_stopping=True, **endless),
    ]
    with pytest.warns(UserWarning, match="interrupted by user"):
        fit_many(estimators, X, y, n_jobs=3)
    assert all(est.n_iter_ >= 1 for est in estimators)
