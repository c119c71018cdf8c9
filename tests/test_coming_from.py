"""What the pages for users of Keras and torch show of both libraries: the numbers agree.

Their ``python`` blocks are run by test_docs.py, without the other library; here all blocks are.
"""
# SPDX-License-Identifier: BSD-3-Clause

import re
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[1] / "docs" / "coming_from"
BLOCK = re.compile(r"^```(?:py|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

if not PAGES.is_dir():
    pytest.skip("the pages are not part of this installation", allow_module_level=True)


@pytest.fixture
def default_dtype():
    """What the page sets of torch does not stay set."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("library", ["keras", "torch"])
def test_same_numbers(library, monkeypatch, default_dtype):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("jax" if library == "keras" else library)
    pytest.importorskip(library)
    page = PAGES / f"{library}.md"
    names = {}
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, page, "exec"), names)
    assert "copy_weights" in names  # what comes behind it is asserted on the page
