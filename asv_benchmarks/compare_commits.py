"""Run the asv suite, or a part of it, over several commits in turn, and compare.

    python asv_benchmarks/compare_commits.py HEAD~1 HEAD --bench 2-50-1
    python asv_benchmarks/compare_commits.py main~5 main~2 main --rounds 3 --bench time_fit

asv itself builds commits only into environments that it fills from a package index. This builds
each into a folder of its own with what is installed here (a compiler, Cython, NumPy and SciPy
included; nothing is downloaded), and lets asv run the suite of this working tree with one after the
other: A B A B ..., its samples added up, so that what else happens on the machine happens to all.
At the end ``asv compare`` prints each commit beside the first, with the ratio for every benchmark.
Results are stored with those of ``asv run``; ``asv publish`` shows them.
"""
# SPDX-License-Identifier: BSD-3-Clause

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILDS = HERE / "env"


def git(*command):
    result = subprocess.run(["git", "-C", HERE, *command], check=True, stdout=subprocess.PIPE)
    return result.stdout.decode().strip()


def build(commit):
    """Install a commit into a folder of its own, unless it is there."""
    target = BUILDS / commit
    if not target.exists():
        print(f"building {commit[:8]} ...", flush=True)
        with tempfile.TemporaryDirectory() as sources:
            archive = subprocess.Popen(
                ["git", "-C", HERE.parent, "archive", commit], stdout=subprocess.PIPE
            )
            subprocess.run(["tar", "-x", "-C", sources], check=True, stdin=archive.stdout)
            if archive.wait():
                raise RuntimeError(f"git archive {commit} failed")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
            staging = Path(sources, "built")
            subprocess.run([*pip, "--no-build-isolation", "--target", staging, sources], check=True)
            BUILDS.mkdir(exist_ok=True)
            staging.rename(target)
    return target


def asv(*command, **environ):
    return subprocess.run(
        [sys.executable, "-m", "asv", *command], cwd=HERE, env=os.environ | environ
    ).returncode


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

    commits = [git("rev-parse", "--verify", f"{name}^{{commit}}") for name in args.commits]
    builds = {commit: build(commit) for commit in commits}
    selected = [word for expression in args.bench for word in ("--bench", expression)]
    asv("machine", "--yes")
    failed = False
    for number in range(args.rounds):
        for commit, path in builds.items():
            print(f"round {number + 1} of {args.rounds}, {commit[:8]}", flush=True)
            samples = "--append-samples" if number else "--record-samples"
            run = ["run", "--set-commit-hash", commit, samples, *selected]
            failed |= bool(asv(*run, ASV_PYTHONPATH=str(path)))
    for commit in commits[1:]:
        asv("compare", "--factor", args.factor, commits[0], commit)
    sys.exit(failed)


if __name__ == "__main__":
    main()
