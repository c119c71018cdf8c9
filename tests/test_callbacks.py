"""Callbacks of scikit-learn on the estimator alone, in a Pipeline and in a grid search.

What a hook is given at an epoch is judged by a fit that ends with that epoch.
"""
# SPDX-License-Identifier: BSD-3-Clause

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import coo_array, csc_array, csr_array
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skbn._training
from skbn import MLPClassifierBN, MLPRegressorBN

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SCORING = ["accuracy", "neg_log_loss"]


def make(seed=0, **params):
    defaults = {
        "hidden_layer_sizes": (6, 5),
        "batch_norm": ("input", "after"),
        "learning_rate_init": 0.02,
        "max_iter": 4,
    }
    return MLPClassifierBN(random_state=seed, **(defaults | params))


class Recorder:
    """Writes down every hook with what it was given; may ask to stop, or raise."""

    def __init__(self, stop_after=None, fail_at=None, error=RuntimeError):
        self.heard, self.stop_after = [], stop_after
        self.fail_at, self.error = fail_at, error

    def hear(self, hook, context, **given):
        self.heard.append((hook, context.task_name, context.task_id, given))
        if self.fail_at in (hook, f"{hook} {context.task_name} {context.task_id}"):
            raise self.error("mine")

    def setup(self, estimator, context):
        self.hear("setup", context)

    def on_fit_task_begin(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None
    ):
        self.hear("begin", context, X=X, y=y, metadata=metadata, fitted=fitted_estimator)

    def on_fit_task_end(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None
    ):
        self.hear("end", context, X=X, y=y, metadata=metadata, fitted=fitted_estimator)
        return self.stop_after == (context.task_name, context.task_id)

    def teardown(self, estimator, context):
        self.hear("teardown", context)

    @property
    def tasks(self):
        return [" ".join(map(str, event[:3])) for event in self.heard]

    def given(self, hook, task_name="epoch"):
        return [event[3] for event in self.heard if event[:2] == (hook, task_name)]


def epochs(n):
    return [f"{hook} epoch {epoch}" for epoch in range(n) for hook in ("begin", "end")]


def whole(tasks, name="fit"):
    """All that is heard around the tasks of the epochs."""
    return [f"setup {name} 0", f"begin {name} 0", *tasks, f"end {name} 0", f"teardown {name} 0"]


@pytest.fixture
def trained(snapshot):
    """A function that writes down what training left in an estimator, bit for bit.

    Without the number of steps that were planned: it is what tells a fit that ended from one that
    was to end.
    """

    def take(est):
        twin = copy.copy(est)
        learned = {name: part for name, part in sorted(vars(est).items()) if name[-1] == "_"}
        learned |= {name: vars(est)[name] for name in ("_network", "_optimizer", "_history")}
        if est._optimizer is not None:
            learned["_optimizer"] = est._optimizer.copy()
            learned["_optimizer"].record["n_steps"] = 0
        vars(twin).clear()
        vars(twin).update(learned)
        return snapshot(twin)

    return take


# What hooks hear.


def test_tasks(blobs, seed):
    X, y = blobs()
    recorder = Recorder()
    est = make(seed).set_callbacks(recorder).fit(X, y)
    assert recorder.tasks == whole(epochs(4))
    for given in recorder.given("begin") + recorder.given("end") + recorder.given("end", "fit"):
        assert given["X"] is X
        assert given["y"] is y
        assert given["metadata"] is None
    (at_the_end,) = recorder.given("end", "fit")
    assert at_the_end["fitted"] is not est
    assert_array_equal(at_the_end["fitted"].predict_proba(X), est.predict_proba(X))


def test_tasks_of_partial_fit(blobs, seed, trained):
    X, y = blobs()
    recorder = Recorder()
    est = make(seed).set_callbacks(recorder).partial_fit(X, y, classes=[0, 1, 2])
    assert recorder.tasks == whole(epochs(1), "partial_fit")
    (epoch,) = recorder.given("end")
    assert trained(epoch["fitted"]) == trained(est)
    est.partial_fit(X, y)
    assert recorder.tasks == whole(epochs(1), "partial_fit") * 2


@pytest.mark.parametrize("placement", [None, "before", "after", "input"], ids=str)
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"solver": "sgd"}], ids=str)
def test_estimator_of_every_epoch(placement, options, blobs, seed, trained):
    """As if fit had ended there, with the moving statistics, and left alone by later epochs."""
    X, y = blobs()
    recorder = Recorder()
    options = {"batch_norm": placement, **options}
    make(seed, **options).set_callbacks(recorder).fit(X, y)
    before, after = recorder.given("begin"), recorder.given("end")
    for epoch, given in enumerate(after, start=1):
        short = make(seed, **options, bn_statistics="moving", max_iter=epoch).fit(X, y)
        assert trained(given["fitted"]) == trained(short)
        assert_array_equal(given["fitted"].predict_proba(X), short.predict_proba(X))
        if epoch < len(before):
            assert trained(before[epoch]["fitted"]) == trained(short)
    assert np.isfinite(before[0]["fitted"].predict_proba(X)).all()


def test_estimator_of_an_epoch_can_go_on(blobs, seed, trained):
    """With the optimizer of its own fit, not with one that an earlier fit has left."""
    X, y = blobs()
    recorder = Recorder()
    est = make(seed, hidden_layer_sizes=(3,)).fit(X, y)
    est.set_params(hidden_layer_sizes=(6, 5)).set_callbacks(recorder).fit(X, y)
    second = recorder.given("end")[1]["fitted"].set_callbacks()
    short = make(seed, bn_statistics="moving", max_iter=2).fit(X, y)
    assert trained(second.partial_fit(X, y)) == trained(short.partial_fit(X, y))


@pytest.mark.parametrize("placement", [None, "after"], ids=str)
def test_iterations_of_lbfgs(placement, blobs, seed, trained):
    """Tasks too: each begins where the one before it ended, also the one that never was."""
    X, y = blobs()
    recorder = Recorder()
    options = {"solver": "lbfgs", "batch_norm": placement, "learning_rate_init": 0.001}
    make(seed, **options).set_callbacks(recorder).fit(X, y)
    assert recorder.tasks == whole(epochs(4))
    for epoch, given in enumerate(recorder.given("end"), start=1):
        short = make(seed, **options, bn_statistics="moving", max_iter=epoch).fit(X, y)
        assert_array_equal(given["fitted"].predict_proba(X), short.predict_proba(X))
        assert given["fitted"].loss_curve_ == short.loss_curve_
    recorder = Recorder()
    est = make(seed, **options, tol=1.0, max_iter=50).set_callbacks(recorder).fit(X, y)
    assert est.n_iter_ < 50
    assert recorder.tasks == whole(epochs(est.n_iter_ + 1))
    assert recorder.given("end")[-1]["fitted"] is None


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_regressor(solver, blobs, seed):
    X, _ = blobs()
    Y = X[:, :2] ** 2
    monitor = callback.ScoringMonitor(scoring="r2")
    est = MLPRegressorBN(hidden_layer_sizes=(5,), solver=solver, max_iter=4, random_state=seed)
    est.set_callbacks(monitor).fit(X, Y, X_val=X, y_val=Y)
    at_the_end, *curve = [row["r2"] for row in monitor.get_logs().data]
    assert curve == pytest.approx(est.validation_scores_)
    assert at_the_end == est.score(X, Y)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("kind", ["array", "list", "number"])
def test_sample_weight(early_stopping, kind, blobs, seed):
    """Scorers get the weights of the rows that they get."""
    X, y = blobs()
    weights = {"array": 1.0 + np.arange(61), "list": [1.0 + n for n in range(61)], "number": 3.0}
    given = weights[kind]
    recorder, monitor = Recorder(), callback.ScoringMonitor(scoring="accuracy")
    est = make(seed, early_stopping=early_stopping).set_callbacks(recorder, monitor)
    est.fit(X, y, sample_weight=given)
    heard = recorder.given("end")[-1]
    index = {row.tobytes(): n for n, row in enumerate(X)}
    rows = [index[row.tobytes()] for row in heard["X"]]
    assert len(rows) == (54 if early_stopping else 61)
    assert_array_equal(heard["metadata"]["sample_weight"], np.broadcast_to(given, 61)[rows])
    score = heard["fitted"].score(heard["X"], heard["y"], **heard["metadata"])
    assert monitor.get_logs().data[-1]["accuracy"] == score


@pytest.mark.parametrize("container", [csr_array, csc_array, coo_array, np.ndarray.tolist])
def test_rows_of_every_container(container, blobs, seed):
    X, y = blobs()
    monitors = [callback.ScoringMonitor(scoring=SCORING) for _ in range(2)]
    for data, monitor in zip((X, container(X)), monitors, strict=True):
        est = make(seed, batch_norm="after", early_stopping=True).set_callbacks(monitor)
        est.fit(data, y.tolist())
    dense, other = [scores(monitor.get_logs(), (0,)) for monitor in monitors]
    assert_allclose(other[0], dense[0])
    assert_allclose(other[1], dense[1])


def test_warm_start(blobs, seed):
    X, y = blobs()
    recorder = Recorder()
    est = make(seed, warm_start=True).fit(X, y)
    est.set_callbacks(recorder).fit(X, y)
    lengths = [len(given["fitted"].loss_curve_) for given in recorder.given("end")]
    assert lengths == [5, 6, 7, 8]


def test_early_stopping(blobs, seed):
    """The rows are those of training; the weights are the epoch's, not the best ones."""
    X, y = blobs()
    recorder = Recorder()
    est = make(seed, early_stopping=True).set_callbacks(recorder).fit(X, y)
    rows = recorder.given("end")[0]["X"]
    assert len(rows) == 54
    held_out = ~(X[:, None] == rows).all(axis=2).any(axis=1)
    assert held_out.sum() == 7
    for given in recorder.given("begin") + recorder.given("end", "fit"):
        assert given["X"] is rows
        assert_array_equal(given["y"], y[~held_out])
    scores = [given["fitted"].score(X[held_out], y[held_out]) for given in recorder.given("end")]
    assert scores == pytest.approx(est.validation_scores_)


def test_validation_data_of_ones_own(blobs, seed):
    X, y = blobs()
    recorder = Recorder()
    est = make(seed, early_stopping=True).set_callbacks(recorder)
    est.fit(X[:40], y[:40], X_val=X[40:], y_val=y[40:])
    assert_array_equal(recorder.given("end")[0]["X"], X[:40])
    scores = [given["fitted"].score(X[40:], y[40:]) for given in recorder.given("end")]
    assert scores == pytest.approx(est.validation_scores_)


@pytest.mark.filterwarnings("error:X does not have valid feature names")
@pytest.mark.parametrize("early_stopping", [False, True])
def test_frames_stay_frames(early_stopping, blobs, seed):
    pandas = pytest.importorskip("pandas")
    X, y = blobs()
    X, y = pandas.DataFrame(X, columns=list("abcd")), pandas.Series(y).map(list("xyz").__getitem__)
    monitor = callback.ScoringMonitor(scoring="accuracy")
    make(seed, early_stopping=early_stopping).set_callbacks(monitor).fit(X, y)
    assert len(monitor.get_logs().data) == 5


def test_only_what_is_asked_for_is_made(blobs, seed, monkeypatch):
    """A bar needs no copies of the network."""

    class Silent:
        def nothing(self, estimator, context):
            return None

        setup = teardown = on_fit_task_begin = on_fit_task_end = nothing

    def fail(*_):
        raise AssertionError("nobody asked")

    monkeypatch.setattr(MLPClassifierBN, "_snapshot", fail)
    X, y = blobs()
    make(seed).set_callbacks(Silent()).fit(X, y)
    with pytest.raises(AssertionError, match="nobody asked"):
        make(seed).set_callbacks(Recorder()).fit(X, y)


# What hooks change: nothing, unless they ask to stop.


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"dropout": 0.5}], ids=str)
def test_same_model_with_callbacks(options, blobs, seed, snapshot):
    X, y = blobs()
    monitor = callback.ScoringMonitor(scoring=SCORING)
    observed = make(seed, **options).set_callbacks(monitor, Recorder()).fit(X, y)
    assert len(monitor.get_logs().data) == 5
    assert snapshot(observed.set_callbacks(), X) == snapshot(make(seed, **options).fit(X, y), X)


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs", "learning_rate_init": 0.001}], ids=str)
def test_stop(options, blobs, seed, trained):
    """One callback is enough, and no warning says that there was no convergence."""
    X, y = blobs()
    recorder, hasty = Recorder(), Recorder(stop_after=("epoch", 1))
    est = make(seed, **options).set_callbacks(hasty, recorder).fit(X, y)
    assert recorder.tasks == hasty.tasks == whole(epochs(2))
    with pytest.warns(ConvergenceWarning):
        short = make(seed, **options, max_iter=2).fit(X, y)
    assert trained(est) == trained(short)


def test_stop_of_the_whole_task_is_no_stop(blobs, seed):
    X, y = blobs()
    recorder = Recorder(stop_after=("fit", 0))
    assert make(seed).set_callbacks(recorder).fit(X, y).n_iter_ == 4


@pytest.mark.parametrize(
    "fail_at", ["setup", "begin fit 0", "begin epoch 0", "end epoch 2", "end fit 0", "teardown"]
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("fitted", [False, True])
def test_hooks_that_raise(fail_at, method, fitted, blobs, seed, unchanged):
    """The error is the user's own, the estimator is as it was, and every setup has its teardown."""
    X, y = blobs()
    if method == "partial_fit":
        fail_at = fail_at.replace("fit", "partial_fit").replace("2", "0")
    failing, before, behind = Recorder(fail_at=fail_at), Recorder(), Recorder()
    est = make(np.random.RandomState(seed))
    if fitted:
        est.fit(X, y)
    # The order of hooks is that of the callbacks; a setup that was not begun needs no teardown.
    est.set_callbacks(before, failing, behind)
    kept = vars(est).pop("_skl_callbacks")
    with unchanged(est):
        est._skl_callbacks = kept
        options = {"classes": [0, 1, 2]} if method == "partial_fit" else {}
        with pytest.raises(RuntimeError, match="mine"):
            getattr(est, method)(X, y, **options)
        assert vars(est).pop("_skl_callbacks") is kept
    for recorder in (before, failing, behind):
        hooks = [hook for hook, *_ in recorder.heard]
        assert hooks.count("setup") == hooks.count("teardown")
    assert before.heard[-1][0] == failing.heard[-1][0] == "teardown"


def test_bad_input_with_callbacks(blobs, seed, unchanged):
    X, y = blobs()
    est = make(seed).fit(X, y).set_callbacks(Recorder())
    (recorder,) = vars(est).pop("_skl_callbacks")
    with unchanged(est, X):
        est.set_callbacks(recorder)
        with pytest.raises(ValueError, match="NaN"):
            est.fit(np.where(X == X[0, 0], np.nan, X), y)
        est.set_callbacks()
    assert not recorder.heard


def test_divergence(blobs, seed):
    """The error that names the epoch; no hook is asked to score what cannot predict."""
    X, y = blobs()
    recorder = Recorder()
    monitor = callback.ScoringMonitor(scoring=SCORING)
    est = make(seed, batch_norm=None, solver="sgd", learning_rate_init=1e300, batch_size=10)
    est.set_callbacks(monitor, recorder)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"epoch \d"):
        est.fit(X, y)
    assert recorder.given("end")[-1]["fitted"] is None
    assert recorder.tasks[-1] == "teardown fit 0"
    assert set(vars(est)) == {*est.get_params(), "_skl_callbacks"}


def test_interrupt_by_a_hook(blobs, seed, trained):
    """Ctrl-C while a callback works is Ctrl-C during training."""
    X, y = blobs()
    recorder = Recorder(fail_at="end epoch 1", error=KeyboardInterrupt)
    with pytest.warns(match="interrupted by user"):
        est = make(seed).set_callbacks(recorder).fit(X, y)
    assert recorder.tasks == whole(epochs(2))
    assert trained(est) == trained(make(seed, bn_statistics="moving", max_iter=2).fit(X, y))


def test_interrupt_of_an_epoch(blobs, seed, monkeypatch):
    """An epoch that was broken off ends as a task too, without an estimator."""
    run_epoch, calls = skbn._training._run_epoch, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_epoch(*args)

    monkeypatch.setattr(skbn._training, "_run_epoch", interrupted)
    X, y = blobs()
    recorder = Recorder()
    with pytest.warns(match="interrupted by user"):
        make(seed).set_callbacks(recorder).fit(X, y)
    assert recorder.tasks == whole(epochs(3))
    assert [given["fitted"] is None for given in recorder.given("end")] == [False, False, True]


def test_clones_share_callbacks(blobs, seed):
    X, y = blobs()
    recorder = Recorder()
    est = make(seed).set_callbacks(recorder).fit(X, y)
    clone(est).fit(X, y)
    assert recorder.tasks == whole(epochs(4)) * 2


def test_pickle(blobs, seed):
    X, y = blobs()
    est = make(seed).set_callbacks(callback.ScoringMonitor(scoring="accuracy")).fit(X, y)
    twin = pickle.loads(pickle.dumps(est))
    assert_array_equal(twin.predict_proba(X), est.predict_proba(X))
    twin.fit(X, y)
    assert len(twin._skl_callbacks[0].get_logs(select="all")) == 2


# scikit-learn's own callbacks.


def scores(log, path):
    """The scores of a task and of its epochs."""
    rows = {row["task_id_path"]: [row[name] for name in SCORING] for row in log.data}
    return rows[path], [row for key, row in rows.items() if key[:-1] == path]


def expected_scores(est, X, y):
    """The scores of the fit, and of fits that end epoch by epoch."""
    whole, *ends = [clone(est).fit(X, y)] + [
        clone(est).set_params(max_iter=epoch, bn_statistics="moving").fit(X, y)
        for epoch in range(1, est.max_iter + 1)
    ]
    return measure(whole, X, y), [measure(end, X, y) for end in ends]


def measure(est, X, y):
    values = check_scoring(est, SCORING)(est, X, y)
    return [values[name] for name in SCORING]


def test_scoring_monitor(blobs, seed):
    X, y = blobs()
    monitor = callback.ScoringMonitor(scoring=SCORING)
    make(seed).set_callbacks(monitor).fit(X, y)
    measured = scores(monitor.get_logs(), (0,))
    assert measured == expected_scores(make(seed), X, y)
    assert len({tuple(row) for row in measured[1]}) == 4


def test_scoring_monitor_in_a_pipeline(blobs, seed):
    X, y = blobs()
    monitor = callback.ScoringMonitor(scoring=SCORING)
    make_pipeline(StandardScaler(), make(seed).set_callbacks(monitor)).fit(X, y)
    X = StandardScaler().fit_transform(X)
    assert scores(monitor.get_logs(), (0, 1)) == expected_scores(make(seed), X, y)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_scoring_monitor_in_a_grid_search(n_jobs, blobs, seed):
    X, y = blobs()
    monitor = callback.ScoringMonitor(scoring=SCORING)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), make(seed).set_callbacks(monitor)),
        {"mlpclassifierbn__batch_norm": [None, "after"]},
        cv=[(np.arange(40), np.arange(40, 61)), (np.arange(20, 61), np.arange(20))],
        n_jobs=n_jobs,
    )
    search.fit(X, y)
    log = monitor.get_logs()
    # Search, candidate and fold (or refit), step, epoch.
    assert len(log.data) == (2 * 2 + 1) * (1 + 4)
    X_fold = StandardScaler().fit_transform(X[20:])
    last = (0, 0, 3, 1)
    assert scores(log, last) == expected_scores(make(seed, batch_norm="after"), X_fold, y[20:])


def test_progress_bar(blobs, seed, capsys):
    pytest.importorskip("rich")
    X, y = blobs()
    bar = callback.ProgressBar(max_propagation_depth=None)
    make(seed, max_iter=50, n_iter_no_change=2, tol=1.0).set_callbacks(bar).fit(X, y)
    out = capsys.readouterr().out
    assert "MLPClassifierBN - fit" in out
    assert out.count("100%") == 1  # though training ended long before max_iter
    pipe = make_pipeline(StandardScaler(), make(seed))
    GridSearchCV(pipe, {"mlpclassifierbn__alpha": [0, 1]}, cv=2).set_callbacks(bar).fit(X, y)
    out = capsys.readouterr().out
    assert out.count("Pipeline - fit-final-estimator | MLPClassifierBN - fit") == 2 * 2 + 1
