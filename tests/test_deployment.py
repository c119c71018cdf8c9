"""Ways out of a fitted estimator: folded weights, scikit-learn's MLP, hidden activations, ONNX."""
# SPDX-License-Identifier: BSD-3-Clause

import pickle
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neural_network import MLPClassifier, MLPRegressor

from skbn import MLPClassifierBN, MLPRegressorBN
from skbn._folding import MIN_ROWS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PAGE = Path(__file__).parents[1] / "docs" / "user_guide" / "deployment.md"

PLACEMENTS = [None, "input", "before", "after", ("input", "before", "after")]
ACTIVATIONS = {
    "identity": lambda z: z,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "silu": lambda z: z * expit(z),
}
PLAIN_ACTIVATIONS = ["identity", "logistic", "relu", "tanh"]
TARGETS = ["binary", "multiclass", "multilabel", "one output", "three outputs", "poisson"]
N_FEATURES = 6

each_placement = pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_target = pytest.mark.parametrize("target", TARGETS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def problem(target="binary", dtype=np.float64, n_samples=120):
    """Rows of the kind that a target asks for."""
    rng = np.random.RandomState(7)
    X = (rng.normal(size=(n_samples, N_FEATURES)) * 2 + 1).astype(dtype)
    signal = X[:, :3] + rng.normal(size=(n_samples, 3))
    y = {
        "binary": np.where(signal[:, 0] > 1, 1, -1),
        "multiclass": signal.argmax(axis=1) * 10 - 3,
        "multilabel": (signal > 1).astype(int),
        "one output": signal[:, 0],
        "three outputs": signal,
        "poisson": rng.poisson(np.exp(signal[:, 0] / 3)),
    }[target]
    return X, y


def fit(target="binary", dtype=np.float64, **params):
    """A fitted estimator and its training rows."""
    X, y = problem(target, dtype)
    defaults = {"hidden_layer_sizes": (7, 5), "max_iter": 12, "learning_rate_init": 0.02}
    kind = MLPRegressorBN if y.dtype.kind == "f" or target == "poisson" else MLPClassifierBN
    if target == "poisson":
        defaults["loss"] = "poisson"
    return kind(**(defaults | {"random_state": 0} | params)).fit(X, y), X, y


def outputs(est, X):
    """All that it predicts."""
    names = ("predict", "predict_proba")
    return {name: getattr(est, name)(X) for name in names if hasattr(est, name)}


def assert_same_outputs(found, expected, atol):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape
        if values.dtype.kind == "f":
            assert_allclose(found[name], values, rtol=atol, atol=atol)
        else:
            assert_array_equal(found[name], values)


def walk(est, X):
    """The output of every layer of a fitted network, from its attributes alone, in float64."""
    norms = {(norm.position, norm.layer): norm for norm in est.batch_norms_}

    def normalize(h, *where):
        if where not in norms:
            return h
        norm = norms[where]
        mean, var = norm.population_mean, norm.population_var
        if mean is None:
            mean, var = norm.moving_mean, norm.moving_var
        return (h - mean) / np.sqrt(var + est.bn_epsilon) * norm.gamma + norm.beta

    h, layers = normalize(X.astype(np.float64), "input", -1), []
    for index, (coef, intercept) in enumerate(zip(est.coefs_, est.intercepts_, strict=True)):
        h = normalize(h @ coef + intercept, "before", index)
        if index < len(est.coefs_) - 1:
            h = normalize(ACTIVATIONS[est.activation](h), "after", index)
        layers.append(h)
    return layers


def forward(activation, coefs, intercepts, X):
    """Raw outputs of a plain network."""
    for coef, intercept in zip(coefs[:-1], intercepts[:-1], strict=True):
        X = ACTIVATIONS[activation](X @ coef + intercept)
    return X @ coefs[-1] + intercepts[-1]


def raw(est, X):
    return walk(est, X)[-1]


# fold


@each_placement
@each_activation
@each_target
@pytest.mark.parametrize("statistics", ["population", "moving"])
def test_fold(placement, activation, target, statistics):
    est, X, _ = fit(target, batch_norm=placement, activation=activation, bn_statistics=statistics)
    coefs, intercepts = est.fold()
    assert [c.shape for c in coefs] == [c.shape for c in est.coefs_]
    assert [b.shape for b in intercepts] == [b.shape for b in est.intercepts_]
    assert_allclose(forward(activation, coefs, intercepts, X), raw(est, X), rtol=0, atol=1e-12)
    if placement is None:
        assert all(map(np.array_equal, coefs, est.coefs_))
    else:
        plain = forward(activation, est.coefs_, est.intercepts_, X)
        assert np.abs(plain - raw(est, X)).max() > 0.01


@each_placement
def test_fold_in_float32_is_folded_in_float64(placement):
    est, X, _ = fit(dtype=np.float32, batch_norm=placement)
    coefs, intercepts = est.fold()
    assert {array.dtype for array in coefs + intercepts} == {np.dtype(np.float64)}
    assert_allclose(forward("relu", coefs, intercepts, X), raw(est, X), rtol=0, atol=1e-12)


def test_fold_gives_copies(unchanged):
    est, X, _ = fit(batch_norm="before")
    with unchanged(est, X):
        coefs, intercepts = est.fold()
        for array in coefs + intercepts:
            assert array.flags.c_contiguous
            array[...] = np.nan


def test_fold_follows_the_statistics():
    est, X, _ = fit(batch_norm=("before", "after"))
    before = forward("relu", *est.fold(), X)
    est.recalibrate(3 * X)
    after = forward("relu", *est.fold(), X)
    assert np.abs(after - before).max() > 0.1
    assert_allclose(after, raw(est, X), rtol=0, atol=1e-12)


def test_fold_without_hidden_layers():
    est, X, _ = fit("multiclass", hidden_layer_sizes=(), batch_norm="input")
    coefs, intercepts = est.fold()
    assert len(coefs) == 1
    assert_allclose(X @ coefs[0] + intercepts[0], raw(est, X), rtol=0, atol=1e-12)


# Predictions for many rows.


def many(X):
    return np.tile(X, (-(-MIN_ROWS // len(X)), 1))


@each_placement
@each_activation
@each_target
@each_dtype
def test_many_rows_are_predicted_as_few(placement, activation, target, dtype):
    est, X, _ = fit(target, dtype, batch_norm=placement, activation=activation)
    tolerance = 1e-13 if dtype is np.float64 else 5e-6
    few, rows = outputs(est, X), many(X)
    assert len(rows) >= MIN_ROWS
    found = outputs(est, rows)
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in few.items()}
    for name, values in found.items():
        if values.dtype.kind == "f":
            assert_allclose(values[: len(X)], few[name], rtol=tolerance, atol=tolerance)
            assert_array_equal(values[: len(X)], values[len(X) : 2 * len(X)])
        else:
            assert (values[: len(X)] == few[name]).mean() > 0.99  # a tie may fall either way


def test_many_rows_see_edits_and_new_statistics():
    """Nothing folded is kept between calls."""
    est, X, _ = fit("one output", batch_norm=("input", "before"))
    rows = many(X)
    seen = [est.predict(rows)]
    est.coefs_[0][...] *= 1.5
    seen.append(est.predict(rows))
    est.batch_norms_[1].gamma[...] *= 1.5
    seen.append(est.predict(rows))
    est.recalibrate(3 * X)
    seen.append(est.predict(rows))
    est.partial_fit(*problem("one output"))
    seen.append(est.predict(rows))
    for before, after in pairwise(seen):
        assert np.abs(after - before).max() > 1e-3
    assert_allclose(seen[-1][: len(X)], raw(est, X)[:, 0], rtol=0, atol=1e-12)


def test_many_sparse_rows():
    est, X, _ = fit("one output", batch_norm=("input", "after"))
    X[np.abs(X) < 1] = 0
    rows = many(X)
    assert_allclose(est.predict(csr_array(rows)), est.predict(rows), rtol=0, atol=1e-13)


def test_many_rows_of_large_means():
    """Features of mean 1e6 and deviation 2 in float32: as right as for a few rows."""
    X, y = problem("one output", np.float32)
    X += np.float32(1e6)
    est = MLPRegressorBN(hidden_layer_sizes=(7,), batch_norm="input", max_iter=5).fit(X, y)
    expected = raw(est, X)[:, 0]
    assert_allclose(est.predict(X), expected, rtol=0, atol=1e-5)
    assert_allclose(est.predict(many(X))[: len(X)], expected, rtol=0, atol=1e-5)


# transform_hidden


@each_placement
@each_activation
@each_dtype
@pytest.mark.parametrize("statistics", ["population", "moving"])
def test_transform_hidden(placement, activation, dtype, statistics):
    est, X, _ = fit(
        dtype=dtype, batch_norm=placement, activation=activation, bn_statistics=statistics
    )
    expected = walk(est, X)[:-1]
    for layer, h in enumerate(expected):
        found = est.transform_hidden(X, layer)
        assert found.dtype == dtype
        assert found.shape == (len(X), est.hidden_layer_sizes[layer])
        tolerance = 1e-13 if dtype is np.float64 else 2e-6
        assert_allclose(found, h, rtol=0, atol=tolerance * np.abs(h).max())
        assert_array_equal(est.transform_hidden(X, layer - 2), found)
    assert_array_equal(est.transform_hidden(X), found)
    last = found @ est.coefs_[-1] + est.intercepts_[-1]
    assert_allclose(last, raw(est, X), rtol=0, atol=1e-4 if dtype is np.float32 else 1e-12)


def test_transform_hidden_takes_what_predict_takes():
    est, X, _ = fit(dropout=0.5)
    expected = est.transform_hidden(X)
    assert_allclose(est.transform_hidden(csr_array(X)), expected, rtol=0, atol=1e-14)
    assert_array_equal(est.transform_hidden(X.tolist()), expected)
    assert_allclose(est.transform_hidden(X[3:4]), expected[3:4], rtol=1e-14)
    assert_allclose(est.transform_hidden(many(X))[: len(X)], expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="X has 2 features"):
        est.transform_hidden(X[:, :2])


@pytest.mark.parametrize("layer", [2, -3, 100])
def test_transform_hidden_of_no_such_layer(layer):
    est, X, _ = fit()
    with pytest.raises(IndexError, match=rf"layer={layer} is out of range for 2 hidden layer"):
        est.transform_hidden(X, layer)


def test_transform_hidden_without_hidden_layers():
    est, X, _ = fit(hidden_layer_sizes=(), batch_norm="input")
    with pytest.raises(ValueError, match="no hidden layer"):
        est.transform_hidden(X)


# to_sklearn

OF_TARGET = dict.fromkeys(TARGETS[:3], MLPClassifier) | dict.fromkeys(TARGETS[3:], MLPRegressor)


@each_placement
@pytest.mark.parametrize("activation", PLAIN_ACTIVATIONS)
@each_target
def test_to_sklearn_predicts_the_same(placement, activation, target):
    est, X, y = fit(target, batch_norm=placement, activation=activation)
    mlp = est.to_sklearn()
    assert type(mlp) is OF_TARGET[target]
    assert_same_outputs(outputs(mlp, X), outputs(est, X), 1e-12)
    assert mlp.score(X, y) == pytest.approx(est.score(X, y), rel=1e-12)


@each_target
def test_to_sklearn_of_float32(target):
    est, X, y = fit(target, np.float32)
    mlp = est.to_sklearn()
    assert {coef.dtype for coef in mlp.coefs_} == {np.dtype(np.float64)}
    assert_same_outputs(outputs(mlp, X), outputs(est, X), 2e-5)
    mlp.partial_fit(X, y)


@each_target
@pytest.mark.parametrize(
    "params",
    [
        {"solver": "adam"},
        {"early_stopping": True},
        {"solver": "sgd", "learning_rate": "adaptive"},
        {"solver": "lbfgs"},
    ],
    ids=str,
)
def test_to_sklearn_has_what_a_fit_of_scikit_learn_leaves(target, params):
    """Every attribute, public or private, that scikit-learn's own fit sets, of the same kind."""
    params = {"learning_rate_init": 0.001} | params
    est, X, y = fit(target, **params)
    mlp = est.to_sklearn()
    theirs = clone(mlp).fit(X, y)
    # Made anew whenever training begins.
    missing = vars(theirs).keys() - vars(mlp).keys()
    assert missing <= {"_optimizer", "_coef_indptr", "_intercept_indptr"}
    for name in vars(theirs).keys() - missing:
        ours, their = getattr(mlp, name), getattr(theirs, name)
        if name not in ("loss_", "best_loss_", "best_validation_score_", "n_iter_"):
            assert type(ours) is type(their), name
        if isinstance(their, np.ndarray):
            assert (ours.shape, ours.dtype) == (their.shape, their.dtype), name
    for name in ("coefs_", "intercepts_", "_best_coefs", "_best_intercepts"):
        assert [a.shape for a in getattr(mlp, name)] == [a.shape for a in getattr(theirs, name)]
    for name in ("classes_", "n_outputs_", "out_activation_", "n_layers_", "n_features_in_"):
        if hasattr(theirs, name):
            assert_array_equal(getattr(mlp, name), getattr(theirs, name))
    for name in ("n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "validation_scores_"):
        if hasattr(theirs, name):
            assert getattr(mlp, name) == getattr(est, name), name


@each_target
def test_to_sklearn_can_be_pickled_and_cloned(target):
    est, X, y = fit(target)
    mlp = est.to_sklearn()
    assert_same_outputs(outputs(pickle.loads(pickle.dumps(mlp)), X), outputs(est, X), 1e-12)
    fresh = clone(mlp)
    assert not hasattr(fresh, "coefs_")
    fresh.fit(X, y)


@each_target
@pytest.mark.parametrize("going_on", ["partial_fit", "warm start", "early stopping", "lbfgs"])
def test_to_sklearn_goes_on_training(target, going_on):
    est, X, y = fit(target, early_stopping=going_on == "early stopping")
    mlp = est.to_sklearn()
    loss, n_epochs = mlp.loss_, len(mlp.loss_curve_)
    if going_on == "partial_fit":
        mlp.partial_fit(X, y)
    else:
        solver = "lbfgs" if going_on == "lbfgs" else "adam"
        mlp.set_params(warm_start=True, max_iter=5, solver=solver).fit(X, y)
    if going_on != "lbfgs":
        assert len(mlp.loss_curve_) > n_epochs
    assert mlp.loss_ < 1.5 * loss  # not from new weights
    assert_same_outputs(outputs(est.to_sklearn(), X), outputs(est, X), 1e-12)


def test_to_sklearn_shares_nothing(unchanged):
    est, X, y = fit(random_state=np.random.RandomState(0), early_stopping=True)
    with unchanged(est, X):
        mlp = est.to_sklearn()
        mlp.set_params(warm_start=True).fit(X, y)
        mlp.classes_[...] = 7
        for array in mlp.coefs_ + mlp.intercepts_:
            array[...] = 0


def test_to_sklearn_keeps_feature_names():
    pd = pytest.importorskip("pandas")
    X, y = problem()
    frame = pd.DataFrame(X, columns=[f"feature {i}" for i in range(N_FEATURES)])
    mlp = MLPClassifierBN((5,), max_iter=2).fit(frame, y).to_sklearn()
    assert_array_equal(mlp.feature_names_in_, frame.columns)
    mlp.predict(frame)


@pytest.mark.parametrize("labels", [["no", "yes"], [False, True], ["a", "b", "c"]], ids=str)
def test_to_sklearn_keeps_labels(labels):
    X, y = problem("multiclass")
    labels = np.array(labels, dtype=object if labels == ["a", "b", "c"] else None)
    y = labels[(y + 3) // 10 % len(labels)]
    est = MLPClassifierBN((5,), max_iter=2, random_state=0).fit(X, y)
    mlp = est.to_sklearn()
    assert mlp.classes_.dtype == est.classes_.dtype
    assert_same_outputs(outputs(mlp, X), outputs(est, X), 1e-12)
    mlp.partial_fit(X, y)


SHARED = {
    "alpha": 0.02,
    "batch_size": 30,
    "learning_rate_init": 0.007,
    "max_iter": 3,
    "shuffle": False,
    "tol": 1e-3,
    "warm_start": True,
    "beta_1": 0.8,
    "beta_2": 0.99,
    "epsilon": 1e-7,
    "n_iter_no_change": np.inf,
    "random_state": 3,
    "activation": "tanh",
    "hidden_layer_sizes": (4, 3),
}


def test_to_sklearn_carries_parameters_over():
    est, _, _ = fit(**SHARED)
    mlp = est.to_sklearn()
    assert {name: getattr(mlp, name) for name in SHARED} == SHARED
    defaults = MLPClassifier().get_params()
    assert not {name for name, value in SHARED.items() if defaults[name] == value}


@pytest.mark.parametrize(
    ("target", "name", "value", "exported"),
    [
        ("binary", "solver", "rmsprop", "adam"),
        ("binary", "learning_rate", "cosine", "constant"),
        ("binary", "learning_rate", "onecycle", "constant"),
        ("one output", "loss", "absolute_error", "squared_error"),
        ("three outputs", "loss", "huber", "squared_error"),
        ("poisson", "loss", "poisson", "poisson"),
        ("one output", "loss", "squared_error", "squared_error"),
    ],
)
def test_to_sklearn_replaces_what_scikit_learn_lacks(target, name, value, exported):
    est, X, y = fit(target, **{name: value})
    mlp = est.to_sklearn()
    assert getattr(mlp, name) == exported
    assert_same_outputs(outputs(mlp, X), outputs(est, X), 1e-12)
    clone(mlp).fit(X, y)  # its own checks accept the parameters


def test_to_sklearn_goes_by_the_fitted_network():
    est, X, _ = fit()
    expected = outputs(est, X)
    est.set_params(activation="tanh", hidden_layer_sizes=(3,), batch_norm=None)
    mlp = est.to_sklearn()
    assert (mlp.activation, mlp.hidden_layer_sizes) == ("relu", (7, 5))
    assert_same_outputs(outputs(mlp, X), expected, 1e-12)


def test_to_sklearn_without_hidden_layers():
    est, X, y = fit("multiclass", hidden_layer_sizes=(), batch_norm="input")
    mlp = est.to_sklearn()
    assert_same_outputs(outputs(mlp, X), outputs(est, X), 1e-12)
    mlp.partial_fit(X, y)


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu"])
def test_to_sklearn_of_an_activation_that_scikit_learn_lacks(activation, unchanged):
    est, X, _ = fit(activation=activation)
    est.set_params(activation="relu")  # changes nothing: the fitted network counts
    words = f"no activation '{activation}', only {', '.join(PLAIN_ACTIVATIONS)}"
    with unchanged(est, X), pytest.raises(ValueError, match=words):
        est.to_sklearn()


def test_to_sklearn_of_one_class(unchanged):
    X, _ = problem()
    est = MLPClassifierBN((5,), max_iter=2).fit(X, np.zeros(len(X)))
    with unchanged(est, X), pytest.raises(ValueError, match="two columns of probabilities"):
        est.to_sklearn()


# All of them.


@pytest.mark.parametrize("call", ["fold", "to_sklearn", "transform_hidden", "predict"])
def test_nothing_is_changed(call):
    est, X, _ = fit(batch_norm=("input", "before", "after"), dropout=0.2)
    rows = many(X)
    rows.setflags(write=False)
    before, keys = pickle.dumps(est), list(vars(est))
    getattr(est, call)(*([rows] if call in ("transform_hidden", "predict") else []))
    assert pickle.dumps(est) == before
    assert list(vars(est)) == keys


@pytest.mark.parametrize("call", ["fold", "to_sklearn", "transform_hidden"])
@pytest.mark.parametrize("kind", [MLPClassifierBN, MLPRegressorBN])
def test_before_fit(kind, call):
    X, _ = problem()
    with pytest.raises(NotFittedError):
        getattr(kind(), call)(*([X] if call == "transform_hidden" else []))


# The page.


@pytest.mark.skipif(not PAGE.exists(), reason="the tests lie elsewhere than the sources")
def test_the_page_runs():
    has_onnx = all(map(find_spec, ("skl2onnx", "onnxruntime")))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert sum("to_onnx(" in block for block in blocks) == 2
    names = {}
    for block in blocks:
        if has_onnx or "to_onnx(" not in block:
            exec(block, names)
    if not has_onnx:
        pytest.skip("skl2onnx and onnxruntime are needed for the blocks about ONNX")
