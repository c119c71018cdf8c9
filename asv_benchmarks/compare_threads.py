"""Time fits of a network of matrix products: against bare products, torch, threads, a busy core.

    python asv_benchmarks/compare_threads.py [C7 C8 ...] [--repeats N] [--markdown] [--json FILE]

What a row means
----------------
As in compare_rivals.py: whole fits, in turns. The network is 784-512-512-10 on 2048 rows in batches
of 256, 20 epochs of Adam; everything that a fit does counts, the statistics of the population too,
which the notes of C7 tell apart.

- C7, unit "x products": ours over the matrix products of the same steps and nothing else, by the
  faster of NumPy and SciPy's BLAS; less is better. On one thread both are bound to one core.
- C8: torch eager, each side on one thread or on all cores, whichever is faster for it.
- C12: ours on one thread over ours on all cores.
- C13, unit "x idle": ours on all cores while another process computes without rest, over the same
  without; less is better. The other process starts and ends with the turn and may move between the
  cores, as the system likes; in the row "bound" it may not. The same of torch is noted beside, for
  one epoch, because it can take very long.
"""
# SPDX-License-Identifier: BSD-3-Clause

import os
from dataclasses import replace

from compare_arrays import numbers, product, skbn_steps
from compare_rivals import Target, main
from contenders import BIG, SMALL_SGD, products, skbn_net, torch_net
from turns import ALL, BEST, beside_a_busy_process, timed


def disturbed(contender, core):
    return lambda problem: beside_a_busy_process(contender(problem), core)


def batch_norm(problem):
    """Forward and backward of batch norm and ReLU, a row of C10."""
    step = skbn_steps(*numbers(ARRAY), axis=-1, reuse=True)
    return {"call": timed(lambda seed: step())}


def fused_torch_net(problem):
    return {"fused": torch_net(problem)["fused"]}


def fit_and_steps(problem):
    """A whole fit, and aside one that leaves the population's statistics out."""
    (bare,) = skbn_net(problem, bn_statistics="moving").values()
    return skbn_net(problem) | {"without the population pass": bare}


NETWORK = "784-512-512-10"
ARRAY = (4096, 256)
PRODUCTS = {
    "ours": fit_and_steps,
    "rival": products,
    "must": 1.15,
    "aim": 1.06,
    "unit": "x products",
    "floor": "1",
}
# One of n + 1 equal processes on n cores is another's.
NOTED = {"must": None, "aim": None, "unit": "x idle", "floor": f"{1 + 1 / ALL[0]:.3g}"}
SLOWED = NOTED | {"must": 2.2, "aim": 1.6}
AN_EPOCH = replace(BIG, epochs=1)
LAST_CORE = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

TARGETS = [
    Target("C7", f"{NETWORK}, one thread: the bare matrix products", BIG, **PRODUCTS),
    Target(
        "C7",
        f"{NETWORK}, all cores: the bare matrix products",
        BIG,
        our_threads=ALL,
        rival_threads=ALL,
        one_core=False,
        **PRODUCTS,
    ),
    Target(
        "C8",
        f"{NETWORK}: torch eager, each at its best number of threads",
        BIG,
        torch_net,
        1.05,
        1.1,
        our_threads=BEST,
        rival_threads=BEST,
        one_core=False,
        floor_of=products,
    ),
    *(
        Target(
            "C12",
            f"{name}, all cores: one thread",
            problem,
            skbn_net,
            must,
            aim,
            floor=floor,
            our_threads=ALL,
            one_core=False,
        )
        for name, problem, must, aim, floor in [
            (NETWORK, BIG, 1.7, 1.9, f"{ALL[0]}"),
            ("2-50-1, SGD", SMALL_SGD, 0.97, 1, "1"),  # never slower, but for the clock's noise
        ]
    ),
    *(
        Target(
            "C13",
            f"{what}, beside a busy process{where}: without it",
            problem,
            contender,
            ours=disturbed(contender, core),
            our_threads=ALL,
            rival_threads=ALL,
            one_core=False,
            compare_accuracy=problem is not None,
            **bounds,
        )
        for what, problem, contender, where, core, bounds in [
            (NETWORK, BIG, skbn_net, "", None, SLOWED),
            (f"batch norm of {product(ARRAY)}", None, batch_norm, "", None, SLOWED),
            (NETWORK, BIG, skbn_net, " bound to a core", LAST_CORE, NOTED),
            (f"torch, an epoch of {NETWORK}", AN_EPOCH, fused_torch_net, "", None, NOTED),
        ]
    ),
]


if __name__ == "__main__":
    main(__doc__.partition("\n")[0], TARGETS)
