"""The README and the pages of docs: their Python code runs as it stands, their links hold.

A link in these pages may name, as its title, the tests that show what is claimed; they must exist.
"""
# SPDX-License-Identifier: BSD-3-Clause

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import sklearn

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "asv_benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
]
# Not among the requirements of the tests; sklearn.callback came with scikit-learn 1.9.
EXTRAS = {"onnx", "onnxruntime", "pyarrow", "skl2onnx", "skops", "sklearn.callback"}

if not (ROOT / "docs").is_dir():
    pytest.skip("the pages are not part of this installation", allow_module_level=True)

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
INLINE_LINK = re.compile(r"\]\(\s*([^()\s]+)(?:\s+\"([^\"]*)\")?\s*\)")
LINK_DEFINITION = re.compile(r"^ *\[([^\]^]+)\]: (\S+)(?: \"([^\"]*)\")?$", re.MULTILINE)
LINK_USE = re.compile(r"\]\[([^\]^]+)\]")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def python_blocks(text):
    """Yield the code of each Python block, pushed down to its own lines of the page."""
    for fence in FENCE.finditer(text):
        if fence[2] == "python":
            yield "\n" * (text.count("\n", 0, fence.start()) + 1) + textwrap.dedent(fence[3])


def prose(path):
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def links(text):
    """Yield address and title of every link to a file or a heading of this repository."""
    found = INLINE_LINK.findall(text) + [row[1:] for row in LINK_DEFINITION.findall(text)]
    for address, title in found:
        if not re.match(r"[a-z]+:", address):
            yield address, title


def anchors(path):
    """Return what headings of a page are linked by, as GitHub derives it."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


WITH_CODE = [path for path in PAGES if "```python" in path.read_text(encoding="utf-8")]


@pytest.fixture
def stand_in_for_cupy(request, monkeypatch):
    """A function that puts a simulated card in CuPy's place, as far as pages use it."""

    def put():
        card, cupy = request.getfixturevalue("simulated_card"), ModuleType("cupy")
        cupy.asarray = card.upload
        monkeypatch.setitem(sys.modules, "cupy", cupy)

    return put


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("path", WITH_CODE, ids=relative)
def test_python_code_runs(path, tmp_path, monkeypatch, stand_in_for_cupy):
    text = path.read_text(encoding="utf-8")
    if "\nimport cupy" in "".join(python_blocks(text)):
        stand_in_for_cupy()
    blocks = list(python_blocks(text))
    assert len(blocks) == text.count("```python")
    monkeypatch.chdir(tmp_path)  # pages write files
    names = {}
    with sklearn.config_context():  # and set options
        for block in blocks:
            try:
                exec(compile(block, path, "exec"), names)
            except ModuleNotFoundError as error:
                if error.name not in EXTRAS:
                    raise
                pytest.skip(f"{error.name} is not there for the rest of the page")


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_links_hold(path):
    text = prose(path)
    defined = {name for name, *_ in LINK_DEFINITION.findall(text)}
    assert set(LINK_USE.findall(text)) == defined
    for address, title in links(text):
        file, _, anchor = address.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), address
        assert target.is_relative_to(ROOT), address
        if anchor:
            assert anchor in anchors(target), address
        for test in title.split(", ") if title else []:
            assert f"def {test}(" in target.read_text(encoding="utf-8"), f"{address}: {test}"
