"""Run the asv suite, or a part of it, over several commits in turn, and compare.

    python asv_benchmarks/compare_commits.py HEAD~1 HEAD --bench 2-50-1
    python asv_benchmarks/compare_commits.py main~5 main~2 main --rounds 3 --bench time_fit

asv itself builds commits only into environments that it fills from a package index. This builds
each into a folder of its own with what is installed here (setuptools, Cython, NumPy, SciPy and a
compiler; nothing is downloaded), and lets asv run the suite of this working tree with one after the
other: A B A B ..., its samples added up, so that what else happens on the machine happens to all.
At the end ``asv compare`` prints each commit beside the first, with the ratio for every benchmark.
Results are stored with those of ``asv run``; ``asv publish`` shows them.
"""
# SPDX-License-Identifier: BSD-3-Clause

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILDS = HERE / "env"


def full_hash(name):
    command = ["git", "rev-parse", "--verify", f"{name}^{{commit}}"]
    return subprocess.check_output(command, cwd=HERE, text=True).strip()


def build(commit):
    """Install a commit into a folder of its own, unless it is there."""
    target = BUILDS / commit
    if not target.exists():
        print(f"building {commit[:8]} ...", flush=True)
        BUILDS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS) as work:
            archive, sources, built = (Path(work, name) for name in ("it.tar", "sources", "built"))
            subprocess.run(["git", "archive", "-o", archive, commit], cwd=HERE.parent, check=True)
            shutil.unpack_archive(archive, sources)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
            subprocess.run([*pip, "--no-build-isolation", "--target", built, sources], check=True)
            built.rename(target)  # only once it is whole
    return target


def asv(*command, **environ):
    command = [sys.executable, "-m", "asv", *command]
    return subprocess.run(command, cwd=HERE, env=os.environ | environ).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "commits", nargs="+", metavar="COMMIT", help="the first is what others are compared to"
    )
    parser.add_argument(
        "--bench", action="append", default=[], metavar="REGEX", help="as of asv run"
    )
    parser.add_argument("--rounds", type=int, default=2, help="times every commit runs (default 2)")
    parser.add_argument("--factor", default="1.1", help="changes to mark (default 1.1)")
    args = parser.parse_args()

    commits = [full_hash(name) for name in args.commits]
    builds = {commit: build(commit) for commit in commits}
    selected = [word for expression in args.bench for word in ("--bench", expression)]
    environment = ["--environment", f"existing:{sys.executable}"]
    asv("machine", "--yes")
    failed = False
    for number in range(args.rounds):
        for commit, path in builds.items():
            print(f"round {number + 1} of {args.rounds}, {commit[:8]}", flush=True)
            samples = "--append-samples" if number else "--record-samples"
            run = ["run", *environment, "--set-commit-hash", commit, samples, *selected]
            failed |= bool(asv(*run, ASV_PYTHONPATH=str(path)))
    for commit in commits[1:]:
        asv("compare", *environment, "--factor", args.factor, commits[0], commit)
    sys.exit(failed)


if __name__ == "__main__":
    main()
