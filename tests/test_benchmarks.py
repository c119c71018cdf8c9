"""The asv suite can be forked from one process, and the GPU's script runs without a card.

.ci/run runs the benchmarks themselves.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shim import compiler

import skbn

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "asv_benchmarks" / "benchmarks"

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


def measure_gpu(*arguments):
    """Run the script on a simulated card; returns what it printed."""
    name, reason = compiler()
    if not name:
        pytest.skip(reason)
    script = SUITE.parent / "measure_gpu.py"
    environment = os.environ | {"PYTHONPATH": str(Path(skbn.__file__).parents[1])}
    process = subprocess.run(
        [sys.executable, script, "--simulate", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_targets_of_the_gpu_are_measured_on_whatever_card_there_is(tmp_path):
    output = measure_gpu("--json", str(tmp_path / "gpu.json"))
    rows = [line.split() for line in output.strip().splitlines()[2:]]
    assert {row[0] for row in rows} == {f"G{i}" for i in range(1, 10)}
    for id, *_, last in rows:
        assert last == ("must" if id in ("G8", "G9") else "ran")
    assert not list(tmp_path.iterdir())  # no times of a card that is not there


def test_sanitizing_launches_every_kernel():
    assert measure_gpu("--sanitize") == "every kernel was launched\n"
