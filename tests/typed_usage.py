"""What type checkers see of the public interface: read by ``mypy --strict``, never run."""
# SPDX-License-Identifier: BSD-3-Clause

from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import skbn
from skbn import (
    BatchNormTransformer,
    MLPClassifierBN,
    MLPRegressorBN,
    TrainingCurveDisplay,
    fit_many,
    functional,
)

Array = npt.NDArray[Any]


def classify(X: Array, y: list[str]) -> None:
    for placement in (None, "before", ("input", "after")):
        clf = MLPClassifierBN((20, 10), batch_norm=placement, n_iter_no_change=np.inf)
    assert_type(clf.fit(X, y, X_val=X, y_val=y), MLPClassifierBN)
    assert_type(clf.partial_fit(X, y, classes=["a", "b"]), MLPClassifierBN)
    assert_type(clf.predict(X), Array)
    assert_type(clf.predict_proba(X.tolist()), Array)
    assert_type(clf.predict_log_proba(X), Array)
    assert_type(clf.transform_hidden(X), Array)
    assert_type(clf.score(X, y), float)
    assert_type(clf.classes_, Array)
    assert_type(clf.loss_curve_, list[float])
    assert_type(clf.validation_scores_, list[float] | None)
    assert_type(clf.batch_norms_[0].gamma, npt.NDArray[Any])
    assert_type(clf.recalibrate(X).fold(), tuple[list[Array], list[Array]])
    clf.fit(X)  # type: ignore[call-arg]
    clf.fit(X, object())  # type: ignore[arg-type]
    MLPClassifierBN(batch_size=0.5)  # type: ignore[arg-type]
    MLPClassifierBN(bn_momentun=0.9)  # type: ignore[call-arg]


def regress(X: Array, y: Array) -> None:
    reg = MLPRegressorBN("huber", random_state=np.random.RandomState(0))
    assert_type(reg.fit(X, y).predict(X), Array)
    assert_type(reg.partial_fit(X, y), MLPRegressorBN)
    assert_type(reg.score(X, y, y), float)
    assert_type(fit_many([reg], X, y), list[MLPRegressorBN])
    assert_type(fit_many([reg], X, y, return_exceptions=True), list[MLPRegressorBN | Exception])


def normalize(x: Array) -> None:
    norm = BatchNormTransformer(momentum=0.9, gamma=2.0)
    assert_type(norm.fit(x).partial_fit(x).mean_, Array)
    y, saved = functional.batch_norm(x, activation="relu")
    assert_type(saved, functional.BatchNormSaved)
    assert_type(functional.batch_norm_backward(y, saved), tuple[Array, Array, Array])
    assert_type(functional.batch_norm_inference(x, saved.mean, saved.var), Array)
    assert_type(functional.moments(x, axis=(0, 1)), tuple[Array, Array])


def draw(clf: MLPClassifierBN) -> None:
    display = TrainingCurveDisplay.from_estimators({"after": clf}, kind="both", mark_best=True)
    assert_type(display.plot(), TrainingCurveDisplay)


def describe() -> None:
    skbn.show_versions()
    assert_type(skbn.__version__, str)
    skbn.show_version()  # type: ignore[attr-defined]
    warning = skbn.exceptions.InconsistentVersionWarning(
        estimator_name="MLPClassifierBN", current_skbn_version="1", original_skbn_version="2"
    )
    assert_type(str(warning), str)
