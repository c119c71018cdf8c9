"""Time several sides in turn in one process: what the compare_*.py scripts share.

The sides take turns (ours, rival, ours, rival, ...) after a warm-up, so that whatever else happens
on the machine happens to all. A turn repeats its work until that has lasted about MIN_TURN seconds
and counts the mean, so that a call of a few microseconds is not judged by one clock reading. Times
are median [minimum .. maximum] over the turns; a ratio is taken turn by turn, median (quartiles).
A row that takes long ends after three turns. Only ratios travel from machine to machine.
"""
# SPDX-License-Identifier: BSD-3-Clause

import functools
import gc
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from joblib import cpu_count
from results import FASTER, summary
from threadpoolctl import threadpool_limits

MIN_TURN = 0.1  # seconds
LONG = 60  # seconds after which three turns of each side must do
ONE = (1,)  # thread
ALL = (cpu_count(),)
BEST = tuple(sorted({*ONE, *ALL}))  # each is tried


# ------------------------------------------------------------------------------- turns, and rows


def timed(work, wait=None):
    """Make a turn out of ``work(seed) -> result``: its mean seconds and its last result.

    Where work is only queued, ``wait`` returns when all of it is done.
    """

    def turn(seed, number):
        gc.collect()  # so that neither side pays for what the other left behind
        if wait:
            wait()
        start = time.perf_counter()
        for _ in range(number):
            result = work(seed)
        if wait:
            wait()
        return (time.perf_counter() - start) / number, result

    return turn


@dataclass
class Side:
    """The variant that one side enters with, and what was seen while it was chosen."""

    turn: Callable
    number: int
    notes: list[str]


def milliseconds(seconds):
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def enter(variants, aside=()):
    """Warm every variant up, and take the fastest that is not an aside."""
    seen, notes = {}, []
    for name, turn in variants.items():
        first = turn(0, 1)[0]
        n_trials = 3 if len(variants) > 1 and first < 1 else 1
        seen[name] = later = min(turn(0, 1)[0] for _ in range(n_trials))
        notes.append(f"{name} {milliseconds(later)} ms (the first time {milliseconds(first)})")
    fastest = min((name for name in seen if not name.startswith(tuple(aside))), key=seen.get)
    return Side(variants[fastest], math.ceil(MIN_TURN / seen[fastest]), notes)


def turns(sides, repeats):
    """Let the sides take turns; yields whose turn it was, its mean seconds and its result."""
    start = time.perf_counter()
    for seed in range(repeats):
        if seed >= 3 and time.perf_counter() - start > LONG:
            return
        for who, side in sides.items():
            yield who, *side.turn(seed, side.number)


def compare(target, contenders, repeats, scores, aside=()):
    """Time one target; its row as a dictionary.

    `contenders` maps "ours", "rival" and perhaps "floor" to functions that return variants,
    `scores` the names of what is asked of each turn's result to functions; their medians are kept.
    """
    row = {key: getattr(target, key) for key in ("id", "what", "unit", "must", "aim", "floor")}
    sides = {}
    for who, variants in contenders.items():
        try:
            sides[who] = enter(variants(), aside)
        except ModuleNotFoundError as error:
            row["missing"] = error.name
    seconds, found = defaultdict(list), defaultdict(list)
    for who, mean_seconds, result in turns(sides, repeats):
        seconds[who].append(mean_seconds)
        for name, score in scores.items() if scores and result else ():
            found[who, name].append(score(result))
    for who in ("ours", "rival"):
        if who in sides:
            row[who] = summary(seconds[who]) | {"notes": sides[who].notes}
    for (who, name), values in found.items():
        if who in row:
            row[who][name] = float(np.median(values))
    if "rival" in sides:
        both = seconds["rival"], seconds["ours"]
        row["ratio"] = summary(np.divide(*(both if row["unit"] == FASTER else reversed(both))))
    if sides.keys() >= {"rival", "floor"}:  # how much faster than the rival anyone could be
        row["floor"] = f"{np.median(np.divide(seconds['rival'], seconds['floor'])):.3g}"
    return row


# --------------------------------------------------------------------------- threads and processes


@contextmanager
def limited_to(n_threads, user_api=None):
    """Limit what is loaded, BLAS, OpenMP and torch, to a number of threads.

    Where nobody uses BLAS, say "openmp": OpenBLAS answers a new limit with a thread that spins for
    a while, on a core that others are timed on.
    """
    with threadpool_limits(n_threads, user_api=user_api):
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(n_threads)
        yield


def on_threads(variants, counts, user_api=None):
    """The same variants on each number of threads; limits are set outside what is timed."""

    def limited(turn, n_threads, seed, number):
        with limited_to(n_threads, user_api):
            return turn(seed, number)

    return {
        f"{name}, {n} thread{'s' * (n > 1)}": functools.partial(limited, turn, n)
        for n in counts
        for name, turn in variants.items()
    }


@contextmanager
def one_core():
    """Bind the process to one core, where the system can."""
    can_bind = hasattr(os, "sched_setaffinity")
    cores = os.sched_getaffinity(0) if can_bind else set()
    try:
        if can_bind:
            os.sched_setaffinity(0, {max(cores)})  # core 0 is where interrupts tend to land
        yield
    finally:
        if can_bind:
            os.sched_setaffinity(0, cores)


BUSY = """
import os, sys, threading
def end_with_parent():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end_with_parent, daemon=True).start()
print(flush=True)
while True: pass
"""


@contextmanager
def a_busy_process(core=None):
    """Another process that never rests; free to move between cores, or bound to one."""
    command = [sys.executable, "-I", "-S", "-c", BUSY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        try:
            process.stdout.readline()  # it is up
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            yield
        finally:
            process.kill()


def beside_a_busy_process(variants, core=None):
    """The same variants while another process computes, started anew for every turn."""

    def disturbed(turn, seed, number):
        with a_busy_process(core):
            return turn(seed, number)

    return {name: functools.partial(disturbed, turn) for name, turn in variants.items()}
