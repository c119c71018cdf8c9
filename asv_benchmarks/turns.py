"""Time several sides in turn in one process: what the compare_*.py scripts share.

The sides take turns (ours, rival, ours, rival, ...) after a warm-up, so that whatever else happens
on the machine happens to all. A turn repeats its work until that has lasted about MIN_TURN seconds
and counts the mean, so that a call of a few microseconds is not judged by one clock reading. Times
are median [minimum .. maximum] over the turns; a ratio is taken turn by turn, median (quartiles).
Only ratios travel from machine to machine.
"""
# SPDX-License-Identifier: BSD-3-Clause

import argparse
import gc
import importlib.metadata
import json
import math
import operator
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

MIN_TURN = 0.1  # seconds


def timed(work):
    """Make a turn out of ``work(seed) -> result``: its mean seconds and its last result."""

    def turn(seed, number):
        gc.collect()  # so that neither side pays for what the other left behind
        start = time.perf_counter()
        for _ in range(number):
            result = work(seed)
        return (time.perf_counter() - start) / number, result

    return turn


@dataclass
class Side:
    """The variant that one side enters with, and what was seen while it was chosen."""

    turn: Callable
    number: int
    notes: list[str]


def enter(variants, aside=()):
    """Warm every variant up, and take the fastest that is not an aside."""
    n_trials = 3 if len(variants) > 1 else 1
    seen, notes = {}, []
    for name, turn in variants.items():
        first = turn(0, 1)[0]
        seen[name] = later = min(turn(0, 1)[0] for _ in range(n_trials))
        notes.append(f"{name} {milliseconds(later)} ms (the first time {milliseconds(first)})")
    fastest = min(seen.keys() - set(aside), key=seen.get)
    return Side(variants[fastest], math.ceil(MIN_TURN / seen[fastest]), notes)


def turns(sides, repeats):
    """Let the sides take turns; yields whose turn it was, its mean seconds and its result."""
    for seed in range(repeats):
        for who, side in sides.items():
            yield who, *side.turn(seed, side.number)


def summary(samples):
    """Quantiles of some samples, and the samples themselves."""
    names = ("min", "q1", "median", "q3", "max")
    quantiles = np.quantile(samples, np.linspace(0, 1, 5)).tolist()
    return dict(zip(names, quantiles, strict=True), samples=[float(s) for s in samples])


def met(value, must, aim):
    """Which of two bounds a figure meets; an aim below the must says that less is better."""
    reaches = operator.le if aim < must else operator.ge
    return "aim" if reaches(value, aim) else "must" if reaches(value, must) else "no"


def milliseconds(seconds):
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def spread(row, who):
    """Median, minimum and maximum of a side's times, for the printed table."""
    if who not in row:
        return "-"
    low, middle, high = (milliseconds(row[who][key]) for key in ("min", "median", "max"))
    return f"{middle} [{low} .. {high}]"


def quartiles(ratio):
    """Median and quartiles of a ratio, for the printed table."""
    low, middle, high = (f"{ratio[key]:.3g}" for key in ("q1", "median", "q3"))
    return f"{middle} ({low} .. {high})"


def table(lines, markdown):
    """Lay out lines of cells, the header first."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    start, between, end = ("| ", " | ", " |") if markdown else ("", "  ", "")
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join(f"{start}{between.join(line)}{end}".rstrip() for line in padded)


def machine(packages):
    """What the figures were taken on."""
    found = []
    for distribution in packages:
        try:
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{distribution} not installed")
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE))
        name = f"{fields.get('model name', name)} (family {fields.get('cpu family', '?')})"
    blas = {
        f"{lib['internal_api']} {lib['version']} ({lib.get('architecture', '?')})"
        for lib in threadpool_info()
        if lib["user_api"] == "blas"
    }
    from skbn.backends import get_executor

    return {
        "executor": get_executor("cpu").__module__,
        "processor": name,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": ", ".join(found),
        "blas": ", ".join(sorted(blas)),
        "load average at start": round(os.getloadavg()[0], 2)
        if hasattr(os, "getloadavg")
        else "unknown",
    }


def arguments(description, ids):
    """Parse the command line that every script has; ``ids`` are the names of its rows."""
    known = list(dict.fromkeys(ids))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"all of {' '.join(known)} if none")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side (default 7)")
    parser.add_argument("--markdown", action="store_true", help="a table for GitHub")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--torch-compile", action="store_true", help="note torch.compile's time")
    args = parser.parse_args()
    if unknown := set(args.ids) - set(known):
        parser.error(f"unknown target: {', '.join(sorted(unknown))}")
    args.ids = args.ids or known
    return args


def report(args, about, rows, lines):
    """Print the table, the machine and how each side's variants did; write the samples."""
    bullet = "- " if args.markdown else ""
    print(table(lines, args.markdown), end="\n\n")
    print(*(f"{bullet}{key}: {value}" for key, value in about.items()), sep="\n", end="\n\n")
    for row in rows:
        for who in ("ours", "rival"):
            if who in row:
                about_side = f"{row['id']}, {row['what']}, {who}"
                print(f"{bullet}{about_side}: {'; '.join(row[who]['notes'])}")
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n")
