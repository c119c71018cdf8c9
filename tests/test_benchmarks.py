"""The asv suite can be forked from one process; .ci/run runs the benchmarks themselves."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parents[1] / "asv_benchmarks" / "benchmarks"

if not SUITE.is_dir():
    pytest.skip("the suite is not part of this installation", allow_module_level=True)


def test_importing_the_suite_loads_nothing_that_a_fork_would_break():
    # skbn keeps to one thread in a forked child of a process that has imported it, so benchmarks
    # on two threads would silently run on one; torch and JAX may hang.
    modules = [f"benchmarks.{path.stem}" for path in SUITE.glob("*.py") if path.stem[0] != "_"]
    assert modules
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=SUITE.parent, text=True)
    assert not {"jax", "keras", "skbn", "torch"} & set(loaded.split())
