"""Measure the targets of the benchmarks page and keep every sample in docs/results.

    python asv_benchmarks/measure_targets.py                 # all, on an idle machine
    python asv_benchmarks/measure_targets.py C7 C8           # these; what is kept of others stays
    python asv_benchmarks/render_page.py                     # then: tables and figures of the page

Every target is measured in a process of its own, so that no pool of threads of one meets those of
another. One that fails is named at the end and leaves what was kept of it as it was.
"""
# SPDX-License-Identifier: BSD-3-Clause

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "results"
SCRIPTS = {
    "rivals": ["C1", "C2", "C3", "C4", "C5", "C6", "C9", "C14", "C15", "C16", "C18"],
    "threads": ["C7", "C8", "C12", "C13"],
    "memory": ["C17"],
    "arrays": ["C10", "C11", "C12", "maps", "layouts", "scaler", "moments"],
}


def main():
    known = sorted({id for ids in SCRIPTS.values() for id in ids})
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"all of {' '.join(known)} if none")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side (default 7)")
    args = parser.parse_args()
    if unknown := set(args.ids) - set(known):
        parser.error(f"unknown target: {', '.join(sorted(unknown))}")
    RESULTS.mkdir(exist_ok=True)
    start, failed = time.perf_counter(), []
    for name, ids in SCRIPTS.items():
        for id in ids:
            if args.ids and id not in args.ids:
                continue
            command = [sys.executable, HERE / f"compare_{name}.py", id]
            command += ["--json", RESULTS / f"{name}.json", "--repeats", str(args.repeats)]
            if subprocess.run(command).returncode:
                failed.append(f"{id} of {name}")
            print(f"after {time.perf_counter() - start:.0f} s\n", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
