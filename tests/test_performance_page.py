"""docs/benchmarks.md and docs/user_guide/gpu.md show what docs/results keeps, for every target."""
# SPDX-License-Identifier: BSD-3-Clause

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "asv_benchmarks"

if not (ROOT / "docs" / "results").is_dir() or not SCRIPTS.is_dir():
    pytest.skip(
        "the page and its scripts are not part of this installation", allow_module_level=True
    )

sys.path.insert(0, str(SCRIPTS))  # they import each other
names = ("measure_targets", "measure_gpu", "render_page", "results")
measure_targets, measure_gpu, render_page, figures = map(importlib.import_module, names)
sys.path.remove(str(SCRIPTS))

RESULTS = render_page.load()


def test_the_page_is_what_rendering_gives():
    text = render_page.PAGE.read_text(encoding="utf-8")
    assert render_page.render(text, RESULTS) == text


@pytest.mark.parametrize("name", render_page.figures(RESULTS))
def test_the_figures_are_drawn_from_the_same_rows(name):
    rows, _ = render_page.figures(RESULTS)[name]
    content = (render_page.RESULTS / name).read_bytes()
    assert render_page.digest(rows).encode() in content
    assert len(content) < 100_000
    assert f"](results/{name})" in render_page.PAGE.read_text(encoding="utf-8")


def test_every_target_is_measured():
    for name, ids in measure_targets.SCRIPTS.items():
        assert {row["id"] for row in RESULTS[name]["rows"]} == set(ids)
    assert {row["id"] for row in render_page.targets(RESULTS)} == {f"C{i}" for i in range(1, 19)}


def test_verdicts_follow_from_the_samples():
    for row in render_page.targets(RESULTS):
        if "missing" not in row:
            assert row["met"].partition(",")[0] == figures.verdict(row)


def test_a_changed_result_shows():
    changed = {name: {**content} for name, content in RESULTS.items()}
    rows = [dict(row) for row in changed["rivals"]["rows"]]
    rows[0]["ratio"] = dict(rows[0]["ratio"], median=2 * rows[0]["ratio"]["median"])
    changed["rivals"]["rows"] = rows
    text = render_page.PAGE.read_text(encoding="utf-8")
    assert render_page.render(text, changed) != text


@pytest.mark.parametrize("text", ["", "<!-- overview -->\n<!-- end of overview -->\n" * 2])
def test_a_page_without_its_marks_is_an_error(text):
    with pytest.raises(ValueError, match="places for 'overview'"):
        render_page.render(text, RESULTS)


def test_the_page_of_the_gpu_is_what_rendering_gives():
    text = render_page.GPU_PAGE.read_text(encoding="utf-8")
    assert render_page.render_gpu(text, render_page.load_gpu()) == text


def test_labels_in_figures_are_short_and_tell_rows_apart():
    rows, _ = render_page.figures(RESULTS)["targets.png"]
    labels = [f"{render_page.short(row['what'])} {row['id']}" for row in rows if row["met"] != "-"]
    labels = [label for label in labels if label.split()[-1] not in ("C16", "C17")]  # amounts
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 36


def test_every_target_of_the_gpu_has_a_row_and_what_is_not_measured_is_said_once():
    said, _, header, _, *lines = render_page.on_a_card({"rows": []}).splitlines()
    assert render_page.NOT_MEASURED in said
    assert "reached" not in header
    assert len(lines) == len(measure_gpu.TARGETS)
    assert {line.split()[1] for line in lines} == {f"G{i}" for i in range(1, 10)}


def test_what_a_card_has_shown_stands_in_its_row():
    targets = {target.id: target for target in measure_gpu.TARGETS}
    keys = ("id", "what", "unit", "must", "aim", "floor")
    clocks = {"clocks.sm": "345 MHz", "clocks.mem": "1593 MHz"}
    start = {
        id: {key: getattr(target, key) for key in keys} | {"machine": 0, "clocks": clocks}
        for id, target in targets.items()
    }
    seconds, worst = figures.summary([0.007, 0.009, 0.011]), figures.summary([1e-7, 3e-6])
    rows = [
        start["G4"] | {"ours": seconds, "ratio": figures.summary([1.7])},
        start["G7"] | {"ours": seconds, "clocks": clocks | {"clocks.sm": "1980 MHz"}},
        start["G9"] | {"ours": worst},
    ]
    rows = [found | {"met": figures.verdict(found)} for found in rows]
    rows.append(start["G3"] | {"failed": "RuntimeError: no", "met": "failed"})
    about = dict.fromkeys(("driver", "cuda", "processor", "cores", "python", "packages"), "-")
    results = {"machines": [about | {"card": "a card"}], "rows": rows}
    lines = {
        line.split("|")[2].strip(): line for line in render_page.on_a_card(results).splitlines()
    }
    for id, shown in {
        "G4": "1.7 x | aim | 9 [7 .. 11]",
        "G7": "9 ms | must | 9 [7 .. 11]",
        "G9": "3e-06 difference | must | -",
        "G3": "- | failed | -",
        "G8": f"{render_page.NOT_MEASURED} | - | -",
    }.items():
        assert shown in " | ".join(map(str.strip, lines[targets[id].what].split("|")))
    found = render_page.cards(results)
    assert found.startswith(
        "- G4, G7, G9, G3: a card, driver -, CUDA -, clocks 345 MHz to 1980 MHz"
    )


def row(id, median, **more):
    return {"id": id, "unit": "x", "must": 2, "aim": 3, "ratio": {"median": median}, **more}


@pytest.mark.parametrize(
    ("median", "unit", "met"),
    [
        (1.9, "x", "no"),
        (2, "x", "must"),
        (3, "x", "aim"),
        (3.1, "copies", "no"),
        (3, "copies", "must"),
        (2, "copies", "aim"),
    ],
)
def test_verdict(median, unit, met):
    must, aim = (2, 3) if unit == "x" else (3, 2)
    assert figures.verdict(row("C1", median, unit=unit, must=must, aim=aim)) == met
    assert figures.verdict(row("C1", median, must=None, aim=None)) == "-"


def test_a_new_run_replaces_its_own_targets_only(tmp_path):
    path = tmp_path / "results.json"

    def save(about, *rows):
        order = ["C1", "C2", "C3", "C9"] if about == "old" else ["C1", "C2", "C3"]
        content = figures.merged(path, about, rows, order)
        path.write_text(json.dumps(content), encoding="utf-8")
        return [(r["id"], r["ratio"]["median"], r["machine"]) for r in content["rows"]], content

    save("old", row("C1", 1), row("C3", 1), row("C3", 2), row("C9", 1))
    found, content = save("new", row("C3", 3), row("C2", 3))
    assert found == [("C1", 1, 0), ("C2", 3, 1), ("C3", 3, 1)]
    assert content["machines"] == ["old", "new"]
    found, content = save("new", row("C1", 4))
    assert found == [("C1", 4, 0), ("C2", 3, 0), ("C3", 3, 0)]
    assert content["machines"] == ["new"]
