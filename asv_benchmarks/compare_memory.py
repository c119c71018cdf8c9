"""Measure what a fit needs in memory above X, beside what torch and scikit-learn need.

    python asv_benchmarks/compare_memory.py [C17] [--markdown] [--json FILE]

What a row means
----------------
The network of compare_threads.py trains for one epoch on half a gigabyte of float32. Every side
does so in a process of its own, which Linux asks for its peak: X is made and read once, so that all
of it is resident, a memory map too; a fit of one batch loads the libraries, freed memory goes back
to the system, the peak is forgotten; then comes the fit that counts. Reported is the highest
resident memory since, less that before. No clock is read, so the machine may be busy.

The bound asks that X is not copied: a tenth of X at most. The aim is half as much again as the
floor: an index and a label a row; a batch of rows, of every layer's outputs and of their gradients;
four vectors of parameters (weights, gradient, Adam's two moments).
"""
# SPDX-License-Identifier: BSD-3-Clause

import ctypes
import functools
import gc
import importlib
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import contenders
import numpy as np
from contenders import BIG
from results import arguments, load_average, machine, report, summary, verdict
from scipy import sparse

PACKAGES = ("skbn", "numpy", "scipy", "scikit-learn", "torch")
SHAPE = (160_000, 784)  # 502 MB
N_CLASSES = 10
PROBLEM = replace(BIG, epochs=1)


# -------------------------------------------------------------- X, in the ways it may lie in memory


def filled(X):
    rng = np.random.default_rng(0)
    for block in np.array_split(X, 100):  # no temporary array of X's size
        block[...] = rng.standard_normal(block.shape, dtype=np.float32)
    return X


def in_order(order, folder):
    return filled(np.empty(SHAPE, np.float32, order))


def memory_map(folder):
    path = Path(folder, "X.npy")
    filled(np.lib.format.open_memmap(path, "w+", np.float32, SHAPE))
    return np.load(path, mmap_mode="r")


def csr(folder):
    """Every other column of a row; values and indices together take as much as the dense X."""
    n_rows, n_columns = SHAPE
    indices = np.empty((n_rows, n_columns // 2), np.int32)
    indices[...] = np.arange(0, n_columns, 2) + np.arange(n_rows)[:, np.newaxis] % 2
    values = filled(np.empty(indices.shape, np.float32))
    indptr = np.arange(n_rows + 1, dtype=np.int32) * indices.shape[1]
    return sparse.csr_array((values.ravel(), indices.ravel(), indptr), shape=SHAPE)


LAYOUTS = {
    "C order": functools.partial(in_order, "C"),
    "Fortran order": functools.partial(in_order, "F"),
    "CSR": csr,
    "memory map": memory_map,
}

CONTENDERS = {
    "skbn": contenders.skbn_net,
    "scikit-learn": contenders.sklearn_net,
    "torch, DataLoader": functools.partial(contenders.torch_net, by_loader=True),
    "torch, one gather an epoch": contenders.torch_net,
}


# --------------------------------------------------------------------- the peak, in its own process


def resident(which):
    """Resident memory in bytes: "RSS" now, "HWM" at its highest."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"^Vm{which}:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024


def peak_above(layout, contender):
    """Fit, and return the highest resident memory less that before, in bytes."""
    y = np.arange(SHAPE[0]) % N_CLASSES

    def fit(X):
        problem = replace(PROBLEM, data=lambda: (X, y[: X.shape[0]]))
        turn = next(iter(CONTENDERS[contender](problem).values()))
        turn(0, 1)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        X = LAYOUTS[layout](folder)
        (X.data if sparse.issparse(X) else X).sum()
        fit(X[: PROBLEM.batch_size])
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
        before = resident("RSS")
        fit(X)
        return resident("HWM") - before


@functools.cache
def measured(layout, contender):
    """The same in a new process, in which large blocks go back to the system once freed."""
    code = f"import compare_memory; print(compare_memory.peak_above({layout!r}, {contender!r}))"
    output = subprocess.check_output(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        # A pool of BLAS threads would stand still whenever another process is busy.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16), "OPENBLAS_NUM_THREADS": "1"},
        text=True,
    )
    return int(output.split()[-1])


# ---------------------------------------------------------------------------------------- the rows


def floor():
    """What nobody can do without, in bytes of float32 and 64-bit integers."""
    n_rows, n_columns = SHAPE
    widths = [n_columns, *PROBLEM.hidden, N_CLASSES]
    n_parameters = sum(n_in * n_out + n_out for n_in, n_out in pairwise(widths))
    n_parameters += 2 * sum(PROBLEM.hidden)  # gamma and beta
    batch = PROBLEM.batch_size * (n_columns + 2 * sum(widths[1:]))
    return 16 * n_rows + 4 * batch + 4 * 4 * n_parameters


ROWS = [  # layout, beside what, and whether ours is judged: once a layout
    *((layout, "scikit-learn", True) for layout in LAYOUTS),
    ("C order", "torch, DataLoader", False),
    ("C order", "torch, one gather an epoch", False),
]


def measure(layout, rival, judged):
    """One row as a dictionary."""
    size, least = 4 * math.prod(SHAPE), floor()
    row = {
        "id": "C17",
        "what": f"X of {size / 1e6:.0f} MB, {layout}: {rival}",
        "unit": "MB",
        "must": round(size / 10e6) if judged else None,
        "aim": round(1.5 * least / 1e6) if judged else None,
        "floor": f"{least / 1e6:.0f}",
        "load": load_average(),
    }
    for who, contender in [("ours", "skbn"), ("rival", rival)]:
        try:
            importlib.import_module(contender.partition(",")[0].replace("scikit-learn", "sklearn"))
        except ModuleNotFoundError as error:
            row["missing"] = error.name
        else:
            row[who] = summary([measured(layout, contender)]) | {"notes": []}
    return row | {"met": verdict(row)}


def main():
    args = arguments(__doc__.partition("\n")[0], ["C17"])
    rows = []
    for layout, rival, judged in ROWS:
        print(f"{layout}: {rival} ...", file=sys.stderr, flush=True)
        rows.append(measure(layout, rival, judged))
    report(args, machine(PACKAGES), rows, "")


if __name__ == "__main__":
    main()
