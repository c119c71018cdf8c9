"""What holds for the package as a whole: what importing it leaves alone, and who may know whom.

The import rules are those of docs/design.md, read from the sources rather than from what happens
to be imported: ``ast`` for Python; for Cython, where there is no parser to borrow, the import
lines after docstrings and comments are gone.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ast
import importlib.metadata
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import skbn

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "skbn"
PYTHON = sorted(PACKAGE.rglob("*.py"))
CYTHON = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
SOURCES = PYTHON + CYTHON
FOLDERS = (PACKAGE, ROOT / "tests")
STUBS = sorted(PACKAGE.rglob("*.pyi"))
C = [
    p for folder in FOLDERS for p in sorted(folder.rglob("*")) if p.suffix in {".h", ".cu", ".cuh"}
]


def relative(path):
    return path.relative_to(ROOT).as_posix()


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in SOURCES}


def python_imports(path):
    """Yield (module, names) of every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), tuple(a.name for a in node.names)


FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+c?import[ \t]+(\([^)]*\)|[^\n]*)", re.MULTILINE)
IMPORT = re.compile(r"^[ \t]*c?import[ \t]+([^\n]*)", re.MULTILINE)
COMMENT = re.compile(r"#[^\n]*")
DOCSTRING = re.compile(r'"""(?:.|\n)*?"""')


def cython_imports(path):
    code = COMMENT.sub("", DOCSTRING.sub("", path.read_text(encoding="utf-8")))
    code = code.replace("\\\n", " ")
    for module, names in FROM.findall(code):
        names = names.strip("() \t").split(",")
        yield module, tuple(name.split()[0] for name in names if name.strip())
    for modules in IMPORT.findall(code):
        for module in modules.split(","):
            yield module.split()[0], ()


def imports(path):
    """The modules that a source names in import and cimport statements, absolute.

    ``from a import b`` counts as ``a.b`` where ``a.b`` is a module of ours, else as ``a``; for
    other packages, whose modules are not known here, it counts as both.
    """
    found = set()
    for module, names in (python_imports if path.suffix == ".py" else cython_imports)(path):
        level = len(module) - len(module.lstrip("."))
        if level:
            package = module_name(path).split(".")
            if path.stem != "__init__":
                package = package[:-1]
            package = package[: len(package) - level + 1]
            module = ".".join([*package, module[level:]]).rstrip(".")
        members = {f"{module}.{name}" for name in names}
        if module.split(".")[0] != "skbn":
            found |= {module} | members
        elif names:
            found |= {m if m in MODULES else module for m in members}
        else:
            found.add(module)
    return found


def test_the_import_reader_reads(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "MODULES", {"skbn.a", "skbn.b", "skbn.c.d"})
    (tmp_path / "skbn" / "c").mkdir(parents=True)
    python = tmp_path / "skbn" / "a.py"
    python.write_text("import os.path\nfrom skbn import b\ndef f():\n    from .c.d import g\n")
    assert imports(python) == {"os.path", "skbn.b", "skbn.c.d"}
    cython = tmp_path / "skbn" / "c" / "d.pyx"
    cython.write_text(
        '"""\nimport nothing\n"""\n# cimport nothing\n'
        "cimport openmp\nimport numpy as np, os\nfrom skbn.b cimport (\n    g,\n    h as i,\n)\n"
        "from ..a cimport j\nfrom libc.math cimport exp, log  # two\n"
    )
    assert imports(cython) == {
        *("openmp", "numpy", "os", "skbn.b", "skbn.a"),
        *("libc.math", "libc.math.exp", "libc.math.log"),
    }


# The first name that a module starts with, dot for dot, decides which part of the house it is in.
PARTS = {
    "skbn.backends.memory": "shared",
    "skbn.backends.models": "shared",
    "skbn.backends.records": "shared",
    "skbn.backends.reference": "reference",
    "skbn.backends.reference_arrays": "reference",
    "skbn.backends.cpu": "cpu",
    "skbn.backends.cuda": "cuda",
    "skbn.backends": "switch",
    "skbn._folding": "network",
    "skbn._layers": "network",
    "skbn._losses": "network",
    "skbn._network": "network",
    "skbn._random": "network",
    "skbn._shuffle": "network",
    "skbn._training": "training",
    "skbn._sklearn_compat": "scikit-learn's private names",
    "skbn._typing": "types",
    "skbn._devices": "users' arrays",
    "skbn._operands": "functional",
    "skbn.functional": "functional",
    "skbn.": "estimators",
    "skbn": "public names",
}

# Shared is what Python, Cython and CUDA must agree on: the records' numbers, the alignment, and how
# many networks train side by side.
# Estimators and training reach a backend through the switch, skbn.backends.get_executor, alone.
MAY_KNOW = {
    "shared": set(),
    "reference": {"shared"},
    "cpu": {"shared"},
    "cuda": {"shared"},
    "switch": {"shared", "reference", "cpu", "cuda"},
    "network": {"shared"},
    "training": {"shared", "switch", "network", "scikit-learn's private names"},
    "users' arrays": {"switch", "scikit-learn's private names"},
    "functional": {"shared", "switch", "users' arrays", "types"},
    "estimators": {
        *("shared", "switch", "network", "training", "users' arrays", "functional"),
        *("scikit-learn's private names", "types"),
    },
    "scikit-learn's private names": set(),
    "types": set(),
    "public names": {"estimators", "functional"},
}


def part_of(module):
    for name, part in PARTS.items():
        if module == name or module.startswith(name.rstrip(".") + "."):
            return part
    raise AssertionError(module)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_who_may_know_whom(path):
    own = part_of(module_name(path))
    known = {m: part_of(m) for m in imports(path) if m.split(".")[0] == "skbn"}
    forbidden = {m: part for m, part in known.items() if part not in MAY_KNOW[own] | {own}}
    assert not forbidden, f"{relative(path)} belongs to {own!r}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_backends_do_not_know_scikit_learn(path):
    if module_name(path).startswith("skbn.backends"):
        assert not [m for m in imports(path) if m.split(".")[0] == "sklearn"]


@pytest.mark.parametrize(
    ("what", "files"),
    [
        (r"cupyx?|cuda", r"skbn/backends/cuda/card\.py"),
        (r"scipy\.linalg\.cython_\w+", r"skbn/backends/cpu/blas\.pxd"),
        (r"openmp|cython\.parallel", r"skbn/backends/cpu/(arrays|executor|processor)\.pyx"),
        (r"sklearn(\.\w+)*\._\w+", r"skbn/_sklearn_compat\.py"),
        (r"matplotlib", r"skbn/_display\.py"),
        (r"torch|jax|keras|pandas", r"nowhere"),
    ],
)
def test_only_one_place_imports(what, files):
    pattern = re.compile(rf"(?:{what})(?:\.|$)")
    found = {relative(path) for path in SOURCES if any(map(pattern.match, imports(path)))}
    assert not {name for name in found if not re.fullmatch(files, name)}


def test_only_one_place_includes_openmp():
    # C that is written inside Cython escapes the import reader.
    found = {relative(path) for path in SOURCES if re.search(r"omp\.h\b", path.read_text("utf-8"))}
    assert found <= {"skbn/backends/cpu/executor.pyx", "skbn/backends/cpu/processor.pyx"}


def run(code):
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_fitting_leave_the_process_as_it_was():
    # In a process of its own, because this one has long imported everything.
    run(
        """
        import concurrent.futures, os, sys, warnings
        import numpy, scipy.linalg, sklearn.datasets, sklearn.neural_network, threadpoolctl

        def threads():
            return {pool["filepath"]: pool["num_threads"]
                    for pool in threadpoolctl.threadpool_info()}

        def check():
            assert dict(os.environ) == environ
            assert {name: n for name, n in threads().items() if name in pools} == pools
            tiny = numpy.full(3, 1e-310)
            assert (tiny / 2 > 0).all()
            assert numpy.finfo(numpy.float64).smallest_subnormal == 5e-324
            assert numpy.geterr() == errors

        warnings.simplefilter("error")
        environ, pools, errors = dict(os.environ), threads(), numpy.geterr()
        assert "skbn" not in sys.modules
        import skbn
        check()

        X, y = sklearn.datasets.make_circles(200, noise=0.1, random_state=1)
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        skbn.MLPClassifierBN(max_iter=2, random_state=0).fit(X, y).predict(X)
        check()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(check).result()
        """
    )


def test_importing_imports_no_optional_package():
    # Some releases of scikit-learn import pandas themselves where it is installed.
    loaded = run(
        """
        import sys, sklearn.neural_network
        before = set(sys.modules)
        import skbn
        print(*set(sys.modules) - before)
        """
    )
    packages = {name.split(".")[0] for name in loaded.split()}
    assert "skbn" in packages
    assert not packages & {"cuda", "cupy", "jax", "keras", "matplotlib", "pandas", "torch"}
    assert not [name for name in loaded.split() if name.startswith("skbn.backends.cuda.")]
    assert "skbn._typing" not in loaded.split()  # for type checkers alone


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    try:
        installed = importlib.metadata.version("skbn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("skbn is built in place but not installed")
    assert skbn.__version__ == installed


def test_every_package_is_named():
    # They are listed by hand, so a new folder is easily forgotten: it works in an editable
    # install and is missing from the wheel.
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(pyproject["tool"]["setuptools"]["packages"])
    assert listed == {module_name(path) for path in PYTHON if path.stem == "__init__"}
    assert {module_name(path).rpartition(".")[0] for path in CYTHON} <= listed


def test_every_cython_module_is_built():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    names = [relative(path) for path in CYTHON if path.suffix == ".pyx"]
    assert not [name for name in names if f'"{name}"' not in setup]


def test_every_compiled_module_has_a_stub():
    # .ci/stubs.py compares them with the modules.
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    levels = ["baseline", *re.findall(r'^    "(\w+)": \["-march', setup, re.MULTILINE)]
    kernels = re.findall(r'^    "(\w+)": "skbn/.*pyx",$', setup, re.MULTILINE)
    names = [f"skbn/backends/cpu/_{kernel}_{level}" for kernel in kernels for level in levels]
    names += [name.replace(".", "/") for name in re.findall(r'extension\("([\w.]+)"', setup)]
    assert {relative(stub) for stub in STUBS} == {f"{name}.pyi" for name in names}
    assert (PACKAGE / "py.typed").is_file()


def test_late_names_are_known_to_type_checkers():
    # Each of them is written twice: for type checkers, and to be loaded when it is asked for.
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (branch,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name: node.module
        for node in ast.walk(ast.Module(branch.body, []))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed.pop("functional") == "skbn"
    assert typed == skbn._LATE


@pytest.mark.parametrize("name", skbn.__all__)
def test_every_public_name_is_there(name):
    assert getattr(skbn, name) is not None
    assert name in dir(skbn)


def test_no_flag_trades_accuracy_for_speed():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    banned = ["fast-math", "Ofast", "funsafe-math", "fp:fast", "=native", "finite-math-only"]
    assert not [flag for flag in banned if flag in setup]


@pytest.mark.parametrize("path", [*SOURCES, *STUBS, *C], ids=relative)
def test_every_source_names_its_license(path):
    assert "SPDX-License-Identifier: BSD-3-Clause" in path.read_text(encoding="utf-8")[:3000]


@pytest.mark.parametrize("path", C, ids=relative)
def test_lines_of_c_are_clean(path):
    # What the linters hold for Python and Cython.
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert not re.findall(r"^.{129,}$|^.*[ \t]$|\t", text, re.MULTILINE)


def test_sources_that_are_not_compiled_say_so(tmp_path):
    """Whoever has installed skbn and starts Python in the folder of its sources is told."""
    for file in (ROOT / "skbn").rglob("*.py"):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    process = subprocess.run(
        [sys.executable, "-c", "import skbn"], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode
    assert "go to another folder, or compile here" in process.stderr
