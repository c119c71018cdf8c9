"""What the compare_*.py scripts make of their rows: verdicts, tables, files.

A row is a dictionary: ``id``, ``what``, ``unit``, ``must``, ``aim`` and ``floor`` of the target,
quantiles and samples of ``ours`` and of the ``rival``, their ``ratio`` turn by turn, and which
bound is ``met``. In the unit "x" the ratio is rival / ours and more is better; in the others less
is: ours / rival, or an amount of our own. A row that could not be measured has ``failed`` instead.
"""
# SPDX-License-Identifier: BSD-3-Clause

import argparse
import importlib.metadata
import json
import operator
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

FASTER = "x"
AMOUNTS = {"ms": 1e3, "MB": 1e-6}  # units of what is judged without a rival, from seconds or bytes
WORST = ("difference", "other numbers")  # units of what is judged by the largest sample


# ---------------------------------------------------------------------------------------- figures


def summary(samples):
    """Quantiles of some samples, and the samples themselves."""
    names = ("min", "q1", "median", "q3", "max")
    quantiles = np.quantile(samples, np.linspace(0, 1, 5)).tolist()
    return dict(zip(names, quantiles, strict=True), samples=[float(s) for s in samples])


def figure(row):
    """The number that is judged, or None where the rival is missing or the measurement failed."""
    if row["unit"] in WORST:
        return row["ours"]["max"] if "ours" in row else None
    if row["unit"] in AMOUNTS:
        return row["ours"]["median"] * AMOUNTS[row["unit"]] if "ours" in row else None
    return row["ratio"]["median"] if "ratio" in row else None


def verdict(row):
    """Which of the two bounds is met: "aim", "must" or "no"; "-" if there is none."""
    if "failed" in row:
        return "failed"
    value, must, aim = figure(row), row["must"], row["aim"]
    if value is None:
        return f"{row['missing']} not installed"
    if must is None and aim is None:
        return "-"
    reaches = operator.ge if row["unit"] == FASTER else operator.le
    if aim is not None and reaches(value, aim):
        return "aim"
    return "must" if must is not None and reaches(value, must) else "no"


# ----------------------------------------------------------------------------------------- tables


def three_digits(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def reached(row):
    """The number that is judged, with its unit."""
    value = figure(row)
    return "-" if value is None else f"{three_digits(value)} {row['unit']}"


def amount(row, key):
    """One of the row's bounds with its unit."""
    return "-" if row[key] is None else f"{row[key]:g} {row['unit']}"


def spread(row, who):
    """Median, minimum and maximum of a side's times (or bytes)."""
    if who not in row:
        return "-"
    scale = 1 if row["unit"] in WORST else AMOUNTS["MB" if row["unit"] == "MB" else "ms"]
    low, middle, high = (three_digits(row[who][key] * scale) for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} [{low} .. {high}]"


def quartiles(row):
    """Median and quartiles of the ratio."""
    if "ratio" not in row or row["unit"] in AMOUNTS:
        return "-"
    low, middle, high = (three_digits(row["ratio"][key]) for key in ("q1", "median", "q3"))
    return f"{middle} ({low} .. {high})"


def scores(row):
    """Accuracies of both sides, or their errors."""
    found = []
    for who in ("ours", "rival"):
        if "accuracy" in row.get(who, ()):
            found.append(f"{row[who]['accuracy']:.3f}")
        elif "error" in row.get(who, ()):
            found.append(f"{row[who]['error']:.0e}")
    return " / ".join(found) or "-"


def lines(rows, scored):
    """Cells of the printed table, the header first."""
    header = ["id", "what", "ours, ms", "rival, ms", "ratio", "must", "aim", "met?", scored]
    if rows and all(row["unit"] == "MB" for row in rows):
        header[2:4] = ["ours, MB", "rival, MB"]
    yield header
    for row in rows:
        yield [
            row["id"],
            row["what"],
            spread(row, "ours"),
            spread(row, "rival"),
            quartiles(row),
            amount(row, "must"),
            amount(row, "aim"),
            row["met"],
            scores(row),
        ]


def table(lines, markdown):
    """Lay out lines of cells, the header first."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    start, between, end = ("| ", " | ", " |") if markdown else ("", "  ", "")
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join(f"{start}{between.join(line)}{end}".rstrip() for line in padded)


# ------------------------------------------------------------------------------------------ files


def machine(packages):
    """What the figures were taken on."""
    found = []
    for distribution in packages:
        try:
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            in_place = getattr(sys.modules.get(distribution), "__version__", "not installed")
            found.append(f"{distribution} {in_place}")
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
        "system": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "python": platform.python_version(),
        "packages": ", ".join(found),
        "blas": ", ".join(sorted(blas)),
    }


def load_average():
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def merged(path, about, rows, order):
    """The file's content with these rows in the place of those with their ids.

    A row whose rival is not installed here replaces nothing.
    """
    rows = [row for row in rows if "missing" not in row]
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machines = old.get("machines", [])
    if about not in machines:
        machines.append(about)
    new = [{**row, "machine": machines.index(about)} for row in rows]
    replaced = {row["id"] for row in rows}
    kept = [row for row in old.get("rows", []) if row["id"] not in replaced and row["id"] in order]
    every = sorted(kept + new, key=lambda row: order.index(row["id"]))
    used = sorted({row["machine"] for row in every})
    for row in every:
        row["machine"] = used.index(row["machine"])
    return {"machines": [machines[i] for i in used], "rows": every}


def arguments(description, ids, **flags):
    """Parse the command line that every script has; ``ids`` are the names of its rows.

    ``flags`` are a script's own, each with its help.
    """
    known = list(dict.fromkeys(ids))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"all of {' '.join(known)} if none")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side (default 7)")
    parser.add_argument("--markdown", action="store_true", help="a table for GitHub")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write every sample there; what it says of other targets stays",
    )
    parser.add_argument("--torch-compile", action="store_true", help="note torch.compile's time")
    for name, meaning in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    args = parser.parse_args()
    if unknown := set(args.ids) - set(known):
        parser.error(f"unknown target: {', '.join(sorted(unknown))}")
    args.order, args.ids = known, args.ids or known
    return args


def report(args, about, rows, scored):
    """Print the table, the machine and how each side's variants did; write the samples."""
    bullet = "- " if args.markdown else ""
    print(table(lines(rows, scored), args.markdown), end="\n\n")
    print(*(f"{bullet}{key}: {value}" for key, value in about.items()), sep="\n", end="\n\n")
    for row in rows:
        for who in ("ours", "rival"):
            if who in row:
                about_side = f"{row['id']}, {row['what']}, {who}"
                print(f"{bullet}{about_side}: {'; '.join(row[who]['notes'])}")
    if args.json:
        text = json.dumps(merged(args.json, about, rows, args.order), indent=1, allow_nan=False)
        args.json.write_text(text + "\n", encoding="utf-8")
