"""docs/does_it_help.md shows what docs/results keeps of the study, and the study can be run."""
# SPDX-License-Identifier: BSD-3-Clause

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import skbn

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "asv_benchmarks"

if not (ROOT / "docs" / "results").is_dir() or not SCRIPTS.is_dir():
    pytest.skip(
        "the page and its scripts are not part of this installation", allow_module_level=True
    )

sys.path.insert(0, str(SCRIPTS))  # they import each other
study, page, render_page = map(
    importlib.import_module, ("does_it_help", "render_study", "render_page")
)
sys.path.remove(str(SCRIPTS))

RESULTS = json.loads(study.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_what_rendering_gives():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(RESULTS)


@pytest.mark.parametrize("name", page.figures(RESULTS))
def test_the_figures_are_drawn_from_the_same_rows(name):
    rows, _ = page.figures(RESULTS)[name]
    content = (study.RESULTS.parent / name).read_bytes()
    assert render_page.digest(rows).encode() in content
    assert len(content) < 100_000
    assert f"](results/{name})" in page.PAGE.read_text(encoding="utf-8")


def test_a_changed_score_shows():
    scores = [dict(row) for row in RESULTS["scores"]]
    scores[0]["scores"] = [score - 0.1 for score in scores[0]["scores"]]
    assert page.render(RESULTS | {"scores": scores}) != page.render(RESULTS)


def test_everything_is_measured():
    found = [(row["data"], row["regime"], row["name"], row["setting"]) for row in RESULTS["scores"]]
    wanted = [
        (data.name, regime, name, *(setting or [None])[:1])
        for data, regime, name, *setting in study.jobs(study.DATA, study.N_REPEATS)
    ]
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    n_folds = {study.N_SPLITS, study.N_SPLITS * study.N_REPEATS}
    assert {len(row["scores"]) for row in RESULTS["scores"]} == n_folds
    assert {(row["data"], row["name"]) for row in RESULTS["times"]} == {
        (data.name, name) for data in study.DATA for name in study.CONTENDERS
    }


def test_without_batch_norm_the_scores_are_those_of_scikit_learn():
    rows = [row for row in RESULTS["scores"] if row["name"] == study.SKLEARN]
    assert len(rows) == len(study.DATA) * len(study.REGIMES)
    assert max(row["largest_difference"] for row in rows) < 1e-10


def test_a_small_run(tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, SCRIPTS / "does_it_help.py", "--quick", "--json", path]
    environment = os.environ | {"PYTHONPATH": str(Path(skbn.__file__).parents[1])}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    results = json.loads(path.read_text(encoding="utf-8"))
    kept = {
        (row["data"], row["regime"], row["name"]): row["scores"][: study.N_SPLITS]
        for row in RESULTS["scores"]
        if row["setting"] is None
    }
    for row in results["scores"]:
        if row["name"] == study.SKLEARN:
            assert row["largest_difference"] < 1e-6
        if row["setting"] is None:  # nobody's scores have changed much since
            before = kept[row["data"], row["regime"], row["name"]]
            assert np.mean(row["scores"]) == pytest.approx(np.mean(before), abs=0.05)
    assert {row["name"] for row in results["times"]} == set(study.CONTENDERS)


def test_an_output_layer_behind_batch_norm_begins_as_noise_where_it_is_drawn():
    """Larger than standardized targets, as the page says; without batch norm it is smaller."""
    data = next(data for data in study.DATA if data.name == "Friedman 1")
    _, X, X_test, y, _ = next(study.folds(data, study.STANDARDIZED))
    untrained = {"learning_rate_init": 1e-300, "max_iter": 1, "weight_init": "glorot_uniform"}
    spread = {}
    for name in ("none", "after"):
        model = study.estimator(name, True, 0, **untrained)
        study.fit(model, X, y)
        spread[name] = model.predict(X_test).std()
    assert spread["none"] < 0.5 < 1 < spread["after"]


# ------------------------------------------------------------------------------------- statistics


def test_corrected_interval(seed):
    """A t interval whose variance is that of the mean of n + n^2 / (k - 1) times fewer."""
    differences = np.random.RandomState(seed).normal(size=10)
    mean, low, high = page.corrected_interval(differences)
    plain = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    wider = np.sqrt(1 + len(differences) / (study.N_SPLITS - 1))
    assert mean == pytest.approx(differences.mean())
    assert high - mean == pytest.approx(wider * (plain.high - mean))
    assert mean - low == pytest.approx(high - mean)


def made_up(scores):
    """A study of given scores, of contenders by data set; all folds are alike."""
    rows = [
        {"data": data, "regime": regime, "name": name, "setting": None, "scores": [score] * 10}
        for name, by_data in scores.items()
        for data, score in zip(page.ALL, by_data, strict=False)
        for regime in study.REGIMES
    ]
    return page.Study({"scores": rows, "times": []})


def test_ratios_and_tallies():
    found = made_up({"none": [0.8, 0.6, -1.0], "after": [0.9, 0.9, -5.0]})
    sets = page.ALL[:3]
    assert found.ratio(sets[:1], page.REGIMES, "after") == pytest.approx([0.5] * 3)
    ratio, low, high = found.ratio(sets, page.REGIMES, "after")
    assert ratio == pytest.approx((0.5 * 0.25 * 1) ** (1 / 3))  # worse than guessing is guessing
    assert low == pytest.approx(0.25)
    assert high == pytest.approx(1)
    assert found.tally(sets, "raw", "after", "none") == (2, 0, 1)


def test_ranks():
    scores = {name: [0.9 - 0.1 * i] * 12 for i, name in enumerate(page.RANKED)}
    means, critical, p = made_up(scores).ranks(page.ALL[:12], "raw")
    np.testing.assert_allclose(means, np.arange(1, len(page.RANKED) + 1))
    assert p < 1e-6
    # Demsar (2006), table 5: q is 3.031 for eight contenders.
    assert critical == pytest.approx(3.031 * np.sqrt(8 * 9 / (6 * 12)), rel=1e-3)
