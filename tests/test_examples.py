"""The examples run as a reader would run them, and their prose says what their numbers show.

Every docs/examples/plot_*.py is run from top to bottom in an empty folder, once: it warns of
nothing, leaves no file, and the test that bears its name finds in its variables what its text says.

The strongest test of the engine as a whole is here: over twenty seeds, seven networks on two
circles train to the accuracies and losses that Keras gives for the same networks.
"""

# SPDX-License-Identifier: BSD-3-Clause

import importlib.util
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn
from sklearn.utils.fixes import parse_version

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"

if not EXAMPLES.is_dir():
    pytest.skip("the examples are not part of this installation", allow_module_level=True)


@pytest.fixture
def run(request, monkeypatch, tmp_path, capfd):
    """A function that runs the example whose name the test bears; returns its variables.

    With them comes ``printed``, what it wrote to the screen.
    """
    matplotlib = pytest.importorskip("matplotlib")
    plt = pytest.importorskip("matplotlib.pyplot")
    name = request.function.__name__.replace("test_", "plot_", 1)

    def show():
        """Draw what is open and close it, as a reader closes a window."""
        assert plt.get_fignums(), "nothing to show"
        for number in plt.get_fignums():
            figure = plt.figure(number)
            figure.canvas.draw()  # where a missing glyph or a layout too narrow is noticed
            assert any(ax.has_data() for ax in figure.axes)
        plt.close("all")

    def run_example():
        plt.close("all")
        plt.switch_backend("agg")
        monkeypatch.setattr(plt, "show", show)
        monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings(record=True) as caught, matplotlib.rc_context():
            # What Python shows the reader of a script, and nothing that pytest adds.
            warnings.resetwarnings()
            for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):
                warnings.simplefilter("ignore", unseen)
            variables = runpy.run_path(EXAMPLES / f"{name}.py", run_name="__main__")
        printed, errors = capfd.readouterr()
        assert [str(warning.message) for warning in caught] == []
        assert errors == ""
        assert not plt.get_fignums(), "a figure is not shown"
        assert list(tmp_path.iterdir()) == []
        return SimpleNamespace(**variables, printed=printed)

    return run_example


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_has_its_test(path):
    text = path.read_text(encoding="utf-8")
    assert f"test_{path.stem.removeprefix('plot_')}" in globals()
    assert text.startswith('"""\n')
    assert "\n# SPDX-License-Identifier: BSD-3-Clause\n" in text
    assert text.count("\n# %%\n") >= 2
    assert "plt.show()" in text
    assert "savefig" not in text


def test_training_curves(run):
    example = run()
    scores, losses = {}, {}
    for name, fits in example.repetitions.items():
        assert len(fits["estimator"]) == 5
        for curves, attribute in (
            (scores, "validation_scores_"),
            (losses, "validation_loss_curve_"),
        ):
            curves[name] = np.mean([getattr(fit, attribute) for fit in fits["estimator"]], axis=0)
    assert scores["none"][:10].max() < 0.25 < scores["none"][14]
    assert scores["input"][:2].max() < 0.25 < scores["input"][4]
    for name in ("before", "after"):
        assert scores[name][0] > 0.8
        assert losses[name][9] < losses["none"][59]
        assert losses[name][59] > 0.6 * losses[name][9]  # level
        assert losses[name][59] == pytest.approx(losses["input"][59], abs=0.02)
    folds = {name: results["test_score"] for name, results in example.cv_results.items()}
    assert min(folds, key=lambda name: folds[name].mean()) == "none"
    assert example.epochs["none"].count(60) >= 2
    for name in ("before", "after"):
        assert max(example.epochs[name]) + 5 < min(example.epochs["none"])
        assert 2 * np.mean(example.epochs[name]) < np.mean(example.epochs["none"])


def test_placement_on_circles(run):
    """Seven networks agree with Keras in training, test, training-mode accuracy and final loss.

    The limit is three standard errors of the difference between two means over 20 seeds. Seeds are
    fixed, so the test does not flicker; a wrong statistics rule, a missing bias or another momentum
    moves at least one of the four by far more, as the last lines but one of this paragraph show.
    """
    example = run()
    results, comparison = example.results, example.comparison
    assert list(comparison) == list(example.keras)
    assert len(comparison) == 7
    for differences in comparison.values():
        assert list(differences) == ["train", "test", "training mode", "loss"]
    far = {name: row for name, row in comparison.items() if max(map(abs, row.values())) > 3}
    assert not far, f"differences in standard errors: {far}"
    assert all(len(runs["test"]) == 20 for runs in results.values())
    other = example.compare_with_keras("before", results["after"])
    assert abs(other["training mode"]) > 10
    assert abs(other["loss"]) > 10

    # The best possible rule: the closed form agrees with a large sample.
    radii = np.hypot(*example.X_many.T)
    assert example.factor < example.radius < 1
    assert np.mean((radii < example.radius) == example.y_many) == pytest.approx(
        example.best, abs=0.002
    )
    assert round(example.best_train, 3) == 0.828
    assert round(example.best_test, 3) == 0.85

    # Speed, and the end
    median, test = example.median, {name: runs["test"].mean() for name, runs in results.items()}
    assert median["after"] == median["after, no gamma, beta"] == 4
    assert median["none"] == 25
    assert min(median["before"], median["input"]) > 25
    assert median["input and after"] <= 4
    assert example.best_test - 0.005 < test["none"] < example.best_test
    assert test["after"] == pytest.approx(test["none"], abs=0.002)
    assert test["after, no gamma, beta"] == pytest.approx(test["after"], abs=0.002)
    assert max(test["before"], test["input"], test["input and after"]) < test["none"] - 0.015
    late = [name for name in example.variants if example.keras[name][-1] > median[name] + 6]
    assert late == ["after", "input and after", "after, no gamma, beta"]

    # bn_momentum is a matter of prediction only: in training the same bits.
    after, forgetful = results["after"], results["after, no momentum"]
    np.testing.assert_array_equal(after["training curve"], forgetful["training curve"])
    np.testing.assert_array_equal(after["loss"], forgetful["loss"])
    assert forgetful["test"].std() > 2 * after["test"].std()

    # The noise of the batches
    gaps = {name: test[name] - runs["training mode"].mean() for name, runs in results.items()}
    assert gaps["none"] == pytest.approx(example.best_test - example.best_train, abs=0.005)
    assert min(gaps["before"], gaps["input"]) > 0.09 > 0.07 > gaps["input and after"]
    assert 0.06 > gaps["after"] > 0.04
    assert round(example.miss, 2) == 0.14
    assert round(example.best_on_batches, 2) == 0.73
    assert results["before"]["training mode"].mean() == pytest.approx(0.73, abs=0.01)

    # The grid search: rows are none, after, before, input, input and after.
    close, scores = example.close, example.scores
    np.testing.assert_array_equal(close.any(axis=1), [True, True, False, False, True])
    np.testing.assert_array_equal(close[:, 0], [False, True, False, False, True])
    assert np.ptp(scores.max(axis=1)[[0, 1, 4]]) < 0.01
    assert scores[0, 3] == scores[:, 3].max()


def test_momentum_and_population_statistics(run):
    example = run()
    every, last, short = "all training rows", "0.99", "0.9"
    at_zero = "0.99 from 0 and 1"
    errors = {name: np.median(values, axis=0) for name, values in example.errors.items()}
    curves = {name: np.median(values, axis=0) for name, values in example.accuracies.items()}
    assert min(errors[last][-1], errors[at_zero][-1]) > 10 > 2 > errors[short].max()
    assert errors[last][0] == errors[short][0] < 0.2 < 2 < errors[at_zero][0]  # the first step
    final = example.final
    assert final[every] == pytest.approx(0.97, abs=0.02)
    assert final[last] == pytest.approx(0.64, abs=0.04)
    assert final[short] == pytest.approx(final[every], abs=0.01)
    assert final[last] + 0.1 < final[at_zero] < final[short] - 0.05
    assert curves[at_zero][:60].max() < 0.35 < 0.65 < curves[last][20]
    assert curves[last].max() < 0.72

    # By hand, with the moving averages, is what predict does after partial_fit.
    X, y = example.X_test, example.y_test
    clf = example.clf
    assert example.recalibrated > example.lagging + 0.2
    norm = clf.batch_norms_[0]
    by_hand = example.evaluate(clf, norm.population_mean, norm.population_var, X, y)
    assert by_hand == example.recalibrated
    assert example.evaluate(clf, norm.moving_mean, norm.moving_var, X, y) == example.lagging

    wine, digits, both = example.sweeps.values()  # momenta are 0, 0.5, 0.9, 0.99, 0.999
    for sweep in (wine, digits, both):
        assert (sweep[1:, :, 1] == sweep[0, :, 1]).all()  # training does not use the averages
    exact = [sweep[0, :, 1].mean() for sweep in (wine, digits, both)]
    wine, digits, both = (sweep[..., 0].mean(axis=1) for sweep in (wine, digits, both))
    assert wine[:3].min() > exact[0] - 0.01
    assert wine[3:].max() < exact[0] - 0.25
    assert digits[2:4].min() > exact[1] - 0.01
    assert digits[0] < exact[1] - 0.1
    assert both.max() < exact[2] - 0.02
    for name, rows in zip(example.sweeps, (133, 1347, 133), strict=True):
        options = example.tasks[name][1]
        steps = options["max_iter"] * -(-rows // options.get("batch_size", 200))
        assert f"{steps} steps" in name


def test_training_and_inference_mode(run):
    example = run()
    # Columns: as training saw them, weights at rest, moving averages, exact; then test rows.
    assert example.small.shape == example.large.shape == (5, 15, 5)
    said, _, _, exact, tested = example.small.mean(axis=0).T
    assert said[-1] == pytest.approx(0.966, abs=0.006)
    assert exact[-1] == pytest.approx(0.998, abs=0.002)
    assert (said[1:] < tested[1:]).all()

    weights, noise, lag = (values.mean(axis=0) for values in example.gaps(example.small))
    assert weights[0] > 20
    assert noise[1:].min() > 2
    assert (noise[4:] > weights[4:] + 1).all()
    assert lag.max() < 0.5
    weights, noise, lag = (values.mean(axis=0) for values in example.gaps(example.large))
    assert weights[0] > 20
    assert noise.max() < 0.7
    assert noise[5:].max() < 0.1
    assert (lag[1:8] > 0.3).all()
    assert lag[1] > 1
    assert lag[-1] < 0.2

    noise, training_mode, predicted, tested = example.results.mean(axis=1).T  # by batch size
    np.testing.assert_allclose(noise[:-1] * np.sqrt(example.batch_sizes[:-1]), 1, rtol=0.04)
    assert 0.9 < noise[-1] * np.sqrt(128) < 0.99
    gap = 100 * (predicted - training_mode)
    assert (gap[:-1] > gap[1:] - 0.2).all()
    assert gap[0] > 6
    assert gap[1] == pytest.approx(3, abs=0.6)
    assert gap[-1] < 0.6
    assert training_mode[1] < tested[1]
    assert tested[1] > tested.max() - 0.002


def test_higher_learning_rates(run):
    example = run()
    places = list(example.placements)
    assert places == ["none", "input", "before", "after"]
    tenth, third = 6, 7
    np.testing.assert_allclose(example.rates[[4, tenth, third]], [0.01, 0.1, 0.1 * np.sqrt(10)])
    sgd, adam = (
        {
            name: np.nan_to_num(values.mean(axis=1))
            for name, values in example.scores[solver].items()
        }
        for solver in ("sgd", "adam")
    )
    assert all(values.shape == (11, 4) for values in example.scores["sgd"].values())
    assert sgd["before"][third] > 0.85 > 0.8 > sgd["after"][third] > 0.65
    assert max(sgd["none"][third], sgd["input"][third]) < 0.25
    for small in range(3):
        assert min(sgd["before"][small], sgd["after"][small]) > sgd["none"][small] + 0.1
    assert adam["after"].min() > 0.87  # no failure at any rate
    assert adam["after"][third:].max() < adam["after"].max() - 0.06
    assert max(adam[name][third] for name in ("none", "input")) < 0.15
    for name in ("before", "after"):
        accuracy, rate = example.best["sgd", name]
        assert 0.009 < accuracy - example.best["sgd", "none"][0] < 0.02
        assert rate < example.best["sgd", "none"][1]
        assert example.ranges["sgd", name][0] < example.ranges["sgd", "none"][0]
        assert example.ranges["sgd", name][1] >= example.ranges["sgd", "none"][1]
        assert example.ranges["adam", name][1] > example.ranges["adam", "none"][1]
    assert example.ranges["sgd", "input"][1] < example.ranges["sgd", "none"][1]

    failed = [
        len([clf for clf in fits.flat if isinstance(clf, Exception)])
        for fits in example.networks["sgd"]
    ]
    assert failed[0] == failed[2] == 0 < failed[1] < 8 < failed[3]
    assert all(isinstance(error, ValueError) for error in example.failed)
    assert "Training diverged in hidden layer" in str(example.failed[-1])
    assert "Training diverged" in example.printed
    guessing = {name: np.sum(values < 0.2) for name, values in example.scores["sgd"].items()}
    for name, errors in zip(places[:-1], failed, strict=False):
        assert guessing[name] > 2 * errors
    assert guessing["after"] == 0

    early = {
        name: np.nan_to_num(values.mean(axis=1)).max() for name, values in example.early.items()
    }
    plain = sgd["none"].max()
    assert early["none"] < 0.8 < early["input"] < plain - 0.03
    assert early["before"] > plain - 0.01 > early["after"] > plain - 0.03
    early = {name: values[0].mean() for name, values in example.early.items()}
    assert early.pop("after") == pytest.approx(0.75, abs=0.03)
    assert max(early.values()) < 0.2

    changes = example.changes
    assert (
        max(changes["before"], changes["after"])
        < 0.01
        < 0.1
        < min(changes["none"], changes["input"])
    )


def test_saturating_activations(run):
    example = run()
    scores = {name: values.mean(axis=1) for name, values in example.by_factor.items()}
    assert list(example.factors) == [0.01, 0.1, 1, 10, 100, 1000]
    for name in ("input", "before"):
        assert np.ptp(scores[name]) < 0.02
        assert scores[name].min() > 0.95
    assert scores["none"][0] < 0.75
    assert scores["after"][:4].min() > 0.95
    for name in ("none", "after"):
        assert scores["before"][4] - scores[name][4] > 0.02
        assert scores["before"][5] - scores[name][5] > 0.05

    saturated = example.saturated
    assert saturated["none", 1000] > 0.99 > 0.02 > saturated["none", 1]
    assert saturated["before", 1] == pytest.approx(saturated["before", 1000], abs=0.01)
    assert saturated["before", 1] < 0.03

    scores = {case: values.mean(axis=1) for case, values in example.by_depth.items()}
    assert example.depths == [1, 2, 4, 8, 12]
    plain = scores["logistic", "none"]
    assert (plain[:3] > plain[1:4] + 0.1).all()
    assert plain[3:].max() < 0.15
    for name in ("before", "after"):
        assert np.ptp(scores["logistic", name]) < 0.03
        assert scores["logistic", name].min() > 0.93
        assert scores["tanh", name][4] < scores["tanh", "none"][4] - 0.015
        gained = scores["tanh", name][:2] - scores["tanh", "none"][:2]
        assert 0.008 < gained.min() <= gained.max() < 0.035
    assert scores["tanh", "before"][4] < scores["tanh", "after"][4] - 0.03
    assert scores["tanh", "none"].min() > 0.91

    # Spread of the activations and size of the gradients, layer by layer.
    start = {case: values.mean(axis=0) for case, values in example.start.items()}
    spread, gradient = start["logistic", "none"]
    np.testing.assert_allclose(spread[:-1] / spread[1:], 7, rtol=0.1)
    np.testing.assert_allclose(gradient[1:] / gradient[:-1], 7, rtol=0.3)
    for case in (*[("logistic", name) for name in ("before", "after")], ("tanh", "none")):
        assert start[case].min() > 5e-5
        assert start[case].max(axis=1) == pytest.approx(start[case].min(axis=1), rel=2)
    assert start["logistic", "after"][1].max() < start["logistic", "before"][1].min() / 5


def test_batch_size_and_virtual_batches(run):
    example = run()
    np.testing.assert_allclose(np.abs(example.normalized[2]), 1, rtol=1e-4)
    for size in (32, 64, 128):
        low, high = np.quantile(example.normalized[size], [0.05, 0.95])
        assert 0.6 < low < 1 < high < 1.4
    assert np.quantile(example.normalized[16], 0.05) < 0.6

    none, before = (
        {size: np.mean(example.scores[place, size]) for size in example.batch_sizes}
        for place in (None, "before")
    )
    assert none[2] - before[2] == pytest.approx(0.09, abs=0.015)
    assert before[4] == pytest.approx(none[4], abs=0.005)
    for size in (16, 32, 64, 300):
        assert 0.004 < before[size] - none[size] < 0.014
    assert example.seconds.keys() == example.scores.keys()

    gains = dict(zip(example.virtual_sizes, example.gains, strict=False))
    assert all(len(gain) == 10 for gain in gains.values())
    for size in (8, 16, 32):
        assert np.mean(gains[size]) == pytest.approx(0.5, abs=0.2)
    assert 0.1 < np.mean(gains[64]) < 0.4
    assert np.mean(gains[4]) == pytest.approx(0, abs=0.3)
    assert np.mean(gains[2]) < -6


def test_dropout_with_batch_norm(run):
    example = run()
    for rate, (first, second) in example.ratios.items():
        assert np.median(first) == pytest.approx(1.03, abs=0.02)
        lost = {0.0: 0.0, 0.2: 0.17, 0.4: 0.29, 0.6: 0.43}[rate]
        assert np.median(second) == pytest.approx(1 - lost, abs=0.02)

    scores = {place: np.mean(values) for place, values in example.scores.items()}
    losses = {place: np.mean(values) for place, values in example.losses.items()}
    for kind in ("wrong", "right"):
        for rate in example.RATES:
            moving, anew = ((how, kind, "before", rate) for how in ("moving", "population"))
            assert scores[moving] == pytest.approx(scores[anew], abs=0.0025)
    assert round(losses["moving", "wrong", "before", 0.6], 2) == 0.64
    assert round(losses["population", "wrong", "before", 0.6], 2) == 0.46

    def best(kind, place):
        return [scores["population", kind, place, rate] for rate in example.RATES]

    wrong, plain = best("wrong", "before"), best("wrong", None)
    assert wrong[0] == min(wrong + plain) < plain[0] - 0.05
    assert wrong[2] == pytest.approx(plain[2], abs=0.005)
    assert wrong[2] == max(wrong + plain)
    assert (
        losses["population", "wrong", "before", 0.4] < losses["moving", "wrong", None, 0.4] - 0.08
    )
    right = best("right", "before")
    assert right[0] == max(right) > max(best("right", None)) + 0.005


def test_scaler_or_input_norm(run):
    example = run()
    scores = {key: np.mean(values) for key, values in example.scores.items()}
    assert scores["breast cancer", None, True] - scores["breast cancer", None, False] == (
        pytest.approx(0.06, abs=0.01)
    )
    assert scores["wine", None, True] - scores["wine", None, False] == pytest.approx(0.13, abs=0.01)
    assert scores["diabetes", None, False] < 0
    for name in ("wine", "breast cancer"):
        lost = scores[name, None, True] - scores[name, None, False]
        assert scores[name, "before", False] - scores[name, None, False] > lost / 2
        assert scores[name, "before", False] < scores[name, None, True] - 0.015
    assert scores["diabetes", "before", False] == pytest.approx(
        scores["diabetes", None, True], abs=0.01
    )
    for name in example.data:
        good = [
            score
            for (data, place, scaler), score in scores.items()
            if data == name and (scaler or place in ("input", ("input", "before")))
        ]
        assert len(good) == 6
        assert np.ptp(good) < 0.015
    assert example.difference < 1e-12

    inside, in_front = (
        [np.mean(example.noise[place, size]) for size in example.batch_sizes]
        for place in ("input", None)
    )
    lost = dict(zip(example.batch_sizes, np.subtract(in_front, inside), strict=True))
    assert lost[2] == pytest.approx(0.05, abs=0.007)
    assert lost[4] == pytest.approx(0.02, abs=0.005)
    assert lost[8] > 0.005 > max(lost[16], lost[32], lost[64])


def test_diabetes_regression(run):
    example = run()
    assert 1 < example.one.best_iter_ == example.one.n_iter_ - example.one.n_iter_no_change - 1
    r2 = {name: np.mean(values) for name, values in example.r2.items()}
    ridge = r2.pop("ridge regression")
    assert max(r2.values()) < ridge
    assert r2["boosted trees"] < ridge - 0.02
    network = r2["network, no batch norm"]
    assert network == pytest.approx(ridge, abs=0.02)
    assert r2['network, "input"'] == pytest.approx(network, abs=0.01)
    for place in ("before", "after"):
        assert r2[f'network, "input" and "{place}"'] < network
        assert np.median(example.chosen["input", "squared_error"]) == 1
        assert np.median(example.chosen[("input", place), "squared_error"]) == 10
    assert example.correlation > 0.95
    errors = {key: np.mean(values) for key, values in example.errors.items()}
    for loss in ("squared_error", "poisson"):
        assert errors[loss, 0.05] > errors[loss, 0] + 20
    for loss in ("absolute_error", "huber"):
        assert errors[loss, 0.05] < errors[loss, 0] + 1.5


def test_digits_softmax(run):
    example = run()
    (plain, normed) = example.networks.values()
    first, last = (
        [np.mean([measure(fit) for fit in fits]) for fits in (plain, normed)]
        for measure in (
            lambda fit: fit.validation_scores_[0],
            lambda fit: fit.score(example.X_test, example.y_test),
        )
    )
    assert first[1] - first[0] == pytest.approx(0.09, abs=0.01)
    assert last[1] >= 0.975
    assert 450 * (last[1] - last[0]) == pytest.approx(3, abs=1)
    assert np.mean([fit.loss_ for fit in plain]) < np.mean([fit.loss_ for fit in normed])
    for fit in normed:
        assert fit.n_outputs_ == 10
        assert fit.out_activation_ == "softmax"
    wrong = sum(np.sum(fit.predict(example.X_test) != example.y_test) for fit in normed)
    assert example.mistakes.sum() == wrong
    assert not np.diag(example.mistakes).any()
    assert len(example.hardest) == 10
    assert example.right[example.hardest].max() <= np.delete(example.right, example.hardest).min()


@pytest.fixture
def alone(monkeypatch):
    """A function that hides packages, as if they were not installed."""
    find_spec = importlib.util.find_spec

    def hide(*hidden):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, package=None: None if name in hidden else find_spec(name, package),
        )

    return hide


def test_normalizers(run, alone):
    pytest.importorskip("PIL")
    alone("keras", "torch")
    example = run()
    assert example.printed.count("is left out") == 2
    errors = example.stream_errors
    assert {name for name, _ in errors} == {"skbn", "StandardScaler"}
    moving, of_all = errors["skbn", "momentum=0.9"], errors["skbn", "momentum=None"]
    np.testing.assert_allclose(of_all, errors["StandardScaler", "all rows"], rtol=1e-6)
    assert moving[0] == pytest.approx(of_all[0])  # the first batch counts in full
    assert moving[0] < 0.25
    assert of_all[149] < 0.02 < moving[149] < 0.06
    assert 0.2 < moving[349] < 0.25 < 1.9 < of_all[349]
    assert moving[499] < 0.06 < 0.7 < of_all[499]

    np.testing.assert_allclose(example.balanced, example.balanced_without, rtol=0, atol=2e-6)
    axes = (0, 1, 2)
    np.testing.assert_allclose(example.balanced.mean(axes, dtype=np.float64), 0.45, atol=1e-6)
    np.testing.assert_allclose(example.balanced.std(axes, dtype=np.float64), 0.3, atol=1e-6)
    np.testing.assert_allclose(example.statistics["skbn"], example.exact, rtol=1e-14)

    assert max(example.far_errors["skbn"]) < 1e-6
    rounds_its_mean = parse_version(sklearn.__version__) >= parse_version("1.8")
    assert (example.far_errors["StandardScaler"][-1] > 1e-2) == rounds_its_mean


def test_drifting_stream(run):
    example = run()
    before, drifting, after = (
        {name: found[:, phase].mean() for name, found in example.accuracy.items()}
        for phase in example.phases.values()
    )
    assert min(before.values()) > 0.95
    for fixed in ("no batch norm, fixed", "batch norm on the input, fixed"):
        assert after[fixed] == pytest.approx(0.51, abs=0.03)
    assert before["recalibrated"] - drifting["recalibrated"] < 0.015
    assert before["recalibrated"] - after["recalibrated"] < 0.015
    moving = "behind a moving average"
    assert drifting[moving] < before[moving] - 0.03
    assert after[moving] > before[moving] - 0.015
    assert after["behind an average of all"] < 0.75
    assert after["batch norm on the input, partial_fit"] > before["recalibrated"] - 0.01
    assert after["no batch norm, partial_fit"] < before["no batch norm, partial_fit"] - 0.04

    mean = example.means[-20:, example.feature].mean()
    fixed, recalibrated, trained = example.known.values()
    assert np.ptp(fixed) == 0
    for found in (recalibrated, trained):
        assert np.mean(found[-20:]) == pytest.approx(mean, abs=0.1)
    climb = example.means[40:60, example.feature].mean()
    assert np.mean(trained[40:60]) < np.mean(recalibrated[40:60]) < climb

    fixed, *others = (found.mean() for found in example.sorted_accuracy.values())
    assert fixed > 0.95
    assert max(others) < fixed - 0.33


def test_grid_search(run):
    example = run()
    assert example.scores.shape == (100, 5)
    np.testing.assert_array_equal(example.scores_many, example.scores)
    assert example.means[example.best] == example.search.best_score_
    table = example.table
    first = table[:, 0]
    assert first[2] > np.delete(first, 2).max() + 3  # "after"
    assert np.ptp(np.delete(first, 2)) < 2
    assert (np.ptp(table[:, 1:4], axis=0) < 2).all()
    lost = table.max(axis=1) - table[:, 4]
    assert max(lost[1], lost[4]) < 2  # "before", with "input" and without
    assert min(lost[0], lost[2], lost[3]) > 4
    top = example.scores[example.top]
    assert np.ptp(top, axis=1).mean() > 2 * np.ptp(top.mean(axis=1))
    assert abs(example.correlation) < 0.3
    assert example.kept[example.best] < example.kept.max()
    assert example.cell.min() > np.quantile(example.kept, 0.75)


@pytest.mark.parametrize("missing", [None, "onnxruntime"])
def test_export(run, alone, missing):
    alone(missing)
    example = run()
    assert ("ONNX is left out" in example.printed) == (not example.has_onnx)
    if missing:
        assert not example.has_onnx
    assert all(example.same.values())
    ours = {"skbn", "scikit-learn", "NumPy, folded"}
    assert max(example.differences[name].max() for name in ours) < 1e-13
    if example.has_onnx:
        assert example.differences["ONNX, float32"].max() < 1e-6
        ours.add("ONNX, float32")
    assert set(example.ways) == set(example.sizes) == set(example.times) == ours
    assert max(example.sizes, key=example.sizes.get) == "skbn"
    assert example.sizes["NumPy, folded"] < example.sizes["skbn"] / 3
