"""``show_versions`` tells what is there, and what is missing without failing."""
# SPDX-License-Identifier: BSD-3-Clause

import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import scipy
import sklearn
from threadpoolctl import ThreadpoolController, threadpool_info

import skbn
from skbn.backends.cpu import LEVELS, processor, threads

card = import_module("skbn.backends.cuda.card")


@pytest.fixture
def shown(capsys):
    """A function that returns what is printed: for each title the facts by name."""

    def show():
        skbn.show_versions()
        sections = {}
        for paragraph in capsys.readouterr().out.strip().split("\n\n"):
            title, *facts = paragraph.split("\n")
            sections[title.rstrip(":")] = dict(line.strip().split(": ", 1) for line in facts)
        return sections

    return show


def test_versions(shown):
    sections = shown()
    assert list(sections) == ["System", "Packages", "Computation", "Libraries with threads"]
    assert sys.version.split()[0] in sections["System"]["python"]
    packages = sections["Packages"]
    for module in (skbn, np, scipy, sklearn):
        assert packages[module.__name__] == module.__version__


def test_what_computes(shown, no_card):
    facts = shown()["Computation"]
    assert facts["kernels"] == LEVELS[-1]
    assert facts["threads"] == str(threads.n_threads())
    assert facts["CuPy"] == "not installed"
    assert "card" not in facts


@pytest.mark.skipif(not processor.has_openmp(), reason="built without OpenMP")
def test_of_several_openmp_libraries_ours_is_named(shown, no_card):
    path = shown()["Computation"]["OpenMP"]
    libraries = ThreadpoolController().select(user_api="openmp")
    paths = [library["filepath"] for library in libraries.info()]
    assert path in paths
    unlimited = threads.n_threads()
    with libraries.select(filepath=path).limit(limits=1):
        assert shown()["Computation"]["threads"] == "1"
    with libraries.select(filepath=[p for p in paths if p != path]).limit(limits=1):
        assert shown()["Computation"]["threads"] == str(unlimited)


def test_libraries_with_threads(shown, no_card):
    facts = shown()["Libraries with threads"]
    assert len(facts) == len(threadpool_info())
    for library, fact in zip(threadpool_info(), facts.values(), strict=True):
        assert f"filepath={library['filepath']}" in fact


def test_without_openmp(shown, no_card, monkeypatch):
    monkeypatch.setattr("skbn.backends.cpu.has_openmp", lambda: False)
    assert shown()["Computation"]["OpenMP"] == "no: built for one thread"


def cupy(get_device):
    runtime = SimpleNamespace(
        getDevice=get_device,
        CUDARuntimeError=RuntimeError,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 12090,
    )
    return SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=runtime))


def test_a_card(shown, monkeypatch):
    monkeypatch.setattr(card, "_cupy", lambda: cupy(lambda: 0))
    monkeypatch.setattr(card, "_card", lambda number: SimpleNamespace(name=f"card {number}"))
    facts = shown()["Computation"]
    assert facts["CuPy"] == "14.2.0"
    assert facts["card"] == "card 0 (CUDA driver 13000, runtime 12090)"


def test_cupy_without_a_card(shown, monkeypatch):
    def no_device():
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setattr(card, "_cupy", lambda: cupy(no_device))
    facts = shown()["Computation"]
    assert facts["CuPy"] == "14.2.0"
    assert facts["card"] == "none: cudaErrorNoDevice: no CUDA-capable device is detected"


def test_cupy_that_cannot_be_imported(shown, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise ImportError("libcuda.so.1: cannot open shared object file")

    card._cupy.cache_clear()
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    facts = shown()["Computation"]
    assert facts["CuPy"] == "not usable: libcuda.so.1: cannot open shared object file"


def test_it_is_loaded_when_it_is_asked_for():
    code = (
        "import sys, skbn\n"
        "assert 'skbn._show_versions' not in sys.modules\n"
        "assert 'show_versions' in dir(skbn)\n"
        "skbn.show_versions\n"
        "assert 'skbn._show_versions' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
