"""docs/numerics.md shows what asv_benchmarks/compare_accuracy.py prints, and skbn keeps to it."""
# SPDX-License-Identifier: BSD-3-Clause

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT, PAGE = ROOT / "asv_benchmarks" / "compare_accuracy.py", ROOT / "docs" / "numerics.md"

if not (SCRIPT.exists() and PAGE.exists()):
    pytest.skip(
        "the page and its script are not part of this installation", allow_module_level=True
    )


def load():
    spec = importlib.util.spec_from_file_location("compare_accuracy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


script = load()


def table():
    """Cells of the page's table, the header first."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    start = next(i for i, line in enumerate(lines) if line.startswith("| id"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    return [rows[0], *rows[2:]]


def test_the_table_has_the_rows_of_the_script():
    header, *rows = table()
    assert header == script.HEADER
    assert [row[:3] for row in rows] == [script.name(case) for case in script.CASES]


def within(result):
    """Whether nothing is above what is allowed, and bits are the same."""
    return result == script.SAME or all(ratio <= 1 for ratio in result)


@pytest.mark.parametrize(
    "case", [c for c in script.CASES if c.small], ids=lambda case: " ".join(script.name(case))
)
def test_skbn_stays_within_what_is_allowed(case):
    result = script.check(case, script.Skbn())
    if (case.id, case.dtype) == ("N7", np.float64) and "1e+155" in case.what:
        assert result == "ValueError"  # the variance is beyond float64
    else:
        assert within(result)


def test_so_does_the_page():
    header, *rows = table()
    column = header.index("skbn")
    for row in rows:
        cell = row[column]
        assert cell == "ValueError" or within(
            cell if cell == script.SAME else [float(ratio) for ratio in cell.split(", ")]
        ), row
