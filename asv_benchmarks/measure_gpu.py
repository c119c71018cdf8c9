"""Measure the targets of the GPU page on this machine's card, in one run of a few minutes.

    python asv_benchmarks/measure_gpu.py                 # all, into docs/results/gpu.json
    python asv_benchmarks/measure_gpu.py G3 G4           # these; what is kept of others stays
    python asv_benchmarks/measure_gpu.py --simulate      # does the script work? No card, no figures
    python asv_benchmarks/render_page.py                 # then: the table of docs/user_guide/gpu.md

    compute-sanitizer --tool memcheck python asv_benchmarks/measure_gpu.py --sanitize
    compute-sanitizer --tool racecheck python asv_benchmarks/measure_gpu.py --sanitize

It needs skbn (built in place will do, with PYTHONPATH=.), CuPy, and for the rivals torch for CUDA.
Sides take turns as in turns.py, and everything is float32 without TF32. A target is judged for its
values first, on inputs drawn anew in every run: against the CPU's executor, or NumPy in float64.
What is wrong is not timed. What fails is printed and kept as failed, the other targets go on, and
the exit code is 1.

Data lie on the card before the clock starts, on both sides, and the clock stops when the card is
done. Arrays of 2 GB are taken in turn from several copies, so no cache helps (40 GB on the card
will do); the bandwidth they are held against is that of copying in the same run. "On the card
alone" is the time between two events while the queue was full: a kernel keeps the card busy until
everything is queued. Compiling is over when the sides are warm.

``--sanitize`` launches every kernel once in each type of numbers, small, with memory of its own for
each array, and says which it has missed; it looks at no values.
"""
# SPDX-License-Identifier: BSD-3-Clause

import functools
import gc
import importlib.metadata
import itertools
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from compare_arrays import EPSILON, exact_step, product, relative_error
from compare_rivals import accuracy
from contenders import (
    LEARNING_RATE,
    Problem,
    circles,
    like_images,
    skbn_net,
    torch_net,
    torch_on_card,
)
from results import (
    WORST,
    arguments,
    load_average,
    machine,
    reached,
    report,
    summary,
    table,
    verdict,
)
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches
from time_step import untrained
from turns import compare, timed

from skbn import BatchNormTransformer, MLPClassifierBN, fit_many, functional
from skbn._losses import log_loss
from skbn._training import Optimizers
from skbn.backends import get_executor, get_models
from skbn.backends.cuda import card as cards
from skbn.backends.cuda import sources
from skbn.backends.cuda.arrays import AT_ONCE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "gpu.json"
STEP, EPOCH = 2e-6, 1e-3  # how far from the CPU's numbers, in float32
AT_A_TIME = 32  # calls in a full queue, which takes about a thousand launches
SECONDS_OF_WAITING, CYCLES_PER_SECOND = 0.02, 2e9  # about; doubled where that is too short


# ------------------------------------------------------------------------------------------ sizes


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    small: Problem  # fits into one block
    large: Problem  # does not
    images: Problem
    n_steps: int  # in a long epoch
    n_models: int
    tall: tuple[int, int]
    cached: tuple[int, int]


def cached(make, *arguments):
    return functools.cache(functools.partial(make, *arguments))


def narrow(n_rows):
    """Ten classes in 40 dimensions."""
    X, y = like_images(n_rows)
    return np.ascontiguousarray(X[:, :40]), y


LIKE_IMAGES = {"hidden": (512, 512), "solver": "adam", "batch_size": 256}
FULL = Sizes(
    small=Problem(cached(circles, 500)),
    large=Problem(cached(like_images, 2048), epochs=100, **LIKE_IMAGES),
    images=Problem(cached(like_images, 60_000), epochs=10, **LIKE_IMAGES),
    n_steps=4096,
    n_models=1000,
    tall=(1_000_000, 512),
    cached=(32_768, 128),
)
NARROW = {"hidden": (70,), "solver": "adam", "batch_size": 96, "epochs": 1}
TINY = Sizes(
    small=Problem(cached(circles, 70), hidden=(5,), epochs=2),
    large=Problem(cached(narrow, 200), **NARROW),
    images=Problem(cached(narrow, 100), **NARROW),
    n_steps=3,
    n_models=3,
    tall=(300, 12),
    cached=(100, 8),
)


@functools.lru_cache(maxsize=1)  # the arrays of one shape at a time
def drawn(shape, seed):
    """Return x, dy, gamma and beta."""
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal(shape, np.float32) for _ in range(2))
    return *arrays, *(rng.normal(centre, 0.2, shape[1]) for centre in (1, 0))


class Lab:
    """A card, sizes, and what is drawn from a seed.

    Parameters
    ----------
    card : Card
        A real one, or the simulated one of the tests.
    sizes : Sizes
        Those of the targets, or tiny ones.
    seed : int
        Of all inputs.
    """

    def __init__(self, card, sizes, seed):
        self.card, self.sizes, self.seed = card, sizes, seed
        self.is_real = isinstance(card, cards.Card)

    def torch(self):
        """Return torch on the same card."""
        if not self.is_real:
            raise ModuleNotFoundError("no rivals beside a simulated card", name="a card")
        return torch_on_card()

    def timed(self, work):
        return timed(work, self.card.synchronize)

    def on_card(self, problem):
        """Return a problem whose rows lie on the card."""
        X, y = problem.data()
        X = self.card.upload(X)
        return replace(problem, data=lambda: (X, y))

    def arrays(self, shape, n_sets=1):
        """Return gamma and beta, and sets of x and dy on the card; each set has its own memory."""
        x, dy, *given = map(self.card.upload, drawn(shape, self.seed))
        others = [(x + np.float32(k), dy + np.float32(k)) for k in range(1, n_sets)]
        return given, [(x, dy), *others]

    def tidy(self):
        """Give back what CuPy and torch keep of the card's memory."""
        gc.collect()
        if self.is_real:
            import cupy

            cupy.get_default_memory_pool().free_all_blocks()
            if "torch" in sys.modules:
                sys.modules["torch"].cuda.empty_cache()


def in_turn(sets, work):
    """A function of a seed that works on the next set every time."""
    following = itertools.cycle(sets)
    return lambda seed: work(*next(following))


def share(turn, n):
    """A turn whose work consists of n equal parts, as the time of one."""

    def shared(seed, number):
        seconds, result = turn(seed, number)
        return seconds / n, result

    return shared


def card_alone(lab, work):
    """A turn of what the card itself takes, however long queueing does."""
    if not lab.is_real:
        return lab.timed(work)
    import cupy

    code = """extern "C" __global__ void spin(long long cycles) {
        for (long long start = clock64(); clock64() - start < cycles;) {}
    }"""
    spin = cupy.RawKernel(code, "spin")

    def turn(seed, number):
        number, seconds = min(number, AT_A_TIME), SECONDS_OF_WAITING
        gc.collect()
        for _ in range(6):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            lab.card.synchronize()
            spin((1,), (1,), (int(seconds * CYCLES_PER_SECOND),))
            start.record()
            for _ in range(number):
                result = work(seed)
            is_full = not start.done
            end.record()
            end.synchronize()
            if is_full:
                return cupy.cuda.get_elapsed_time(start, end) / 1e3 / number, result
            seconds *= 2
        raise RuntimeError("the card was done before everything was queued")

    return turn


# ----------------------------------------------------------------------------------------- values


def refuse(error, bound, what):
    """Raise if an error is not within its bound."""
    if not error <= bound:
        raise ArithmeticError(f"{what} is wrong: {error:.3g}, not within {bound:g}; not timed")


def check_norm(size, lab):
    """Compare batch norm and its gradients with NumPy in float64, over some of the columns."""
    shape = getattr(lab.sizes, size)
    (gamma, beta), [(x, dy)] = lab.arrays(shape)
    y, dx, *sums = norm_step(x, dy, gamma, beta)
    some = slice(None, None, max(1, shape[1] // 3))
    x, dy, y, dx = (lab.card.read(array[:, some].copy()) for array in (x, dy, y, dx))
    gamma, beta, *sums = (lab.card.read(v)[some].copy() for v in (gamma, beta, *sums))
    exact = exact_step(x, dy, gamma, beta, axis=-1)
    refuse(relative_error([y, dx, *sums], exact, axis=-1), STEP, f"batch norm of {product(shape)}")


def difference(lab, problem, epochs, seed):
    """The largest |a - b| / (1 + |b|) over parameters and statistics: the card's a, the CPU's b.

    One step of SGD if ``epochs`` is 0: where a gradient is nothing but rounding, Adam makes a whole
    step of it. Epochs are the problem's own.
    """
    X, y = problem.data()
    X = X + np.random.default_rng(seed).normal(0, 0.1, X.shape).astype(np.float32)
    found = []
    for device in ("cuda", "cpu"):
        order = np.random.default_rng(seed).permutation(len(X))
        solver = problem.solver if epochs else "sgd"
        executor, network, step = trainer(device, replace(problem, solver=solver), X, y, seed)
        with executor:
            for _ in range(max(1, epochs)):
                step(order if epochs else order[: problem.batch_size])
        found.append(np.concatenate([network.params, network.state]))
    on_card, on_cpu = found
    return float(np.max(np.abs(on_card - on_cpu) / (1 + np.abs(on_cpu))))


def check_training(size, lab):
    """Compare a step and an epoch with the CPU's executor."""
    problem = getattr(lab.sizes, size)
    refuse(difference(lab, problem, 0, lab.seed), STEP, "a step of training")
    refuse(difference(lab, problem, 1, lab.seed), EPOCH, "an epoch of training")


def differences(size, epochs, repeats, lab):
    """Differences from the CPU's executor, over seeds."""
    problem = getattr(lab.sizes, size)
    return [difference(lab, problem, epochs, lab.seed + k) for k in range(repeats)]


def unlike(repeats, make, lab):
    """How many numbers of each repetition differ from the first in any bit."""
    first, *others = (make(lab) for _ in range(repeats))
    return [int(np.count_nonzero(first.view(np.int32) != other.view(np.int32))) for other in others]


def fitted_numbers(size, lab):
    (fit,) = skbn_net(getattr(lab.sizes, size), device="cuda", bn_statistics="population").values()
    model = fit(lab.seed, 1)[1].__self__
    norms = [n for r in model.batch_norms_ for n in (r.gamma, r.beta, r.population_mean)]
    vectors = (*model.coefs_, *model.intercepts_, *norms)
    return np.concatenate([vector.ravel().astype(np.float32) for vector in vectors])


def array_numbers(lab):
    (gamma, beta), [(x, dy)] = lab.arrays(lab.sizes.cached)
    results = map(lab.card.read, norm_step(x, dy, gamma, beta))
    return np.concatenate([array.ravel().astype(np.float32) for array in results])


# --------------------------------------------------------------------------------------- training


def widths_of(problem, X, y):
    n_classes = int(y.max()) + 1
    return X.shape[1], *problem.hidden, 1 if n_classes == 2 else n_classes


def trainer(device, problem, X, y, seed):
    """An executor, the network it trains, and a function that trains on rows in an order."""
    network, optimizer = untrained(
        *(widths_of(problem, X, y), ("after",), problem.solver, np.float32),
        *(LEARNING_RATE[problem.solver], seed),
    )
    kind, y = log_loss(int(y.max()) + 1).kind, y.astype(np.float32)
    executor = get_executor(device)(network, loss_kind=kind, batch_size=problem.batch_size)

    def step(order):
        position, sums = 0, executor.new_sums()
        while position < len(order):
            position = executor.train(
                *(X, y, None, order, position, optimizer.record, optimizer.memory, sums)
            )

    return executor, network, step


def steps(size, lab):
    """Steps of a long epoch, in the executor alone."""
    problem, n_steps = getattr(lab.sizes, size), lab.sizes.n_steps
    X, y = problem.data()
    _, _, step = trainer("cuda", problem, lab.card.upload(X), y, lab.seed)
    order = np.random.default_rng(lab.seed).permutation(len(X))
    order = np.resize(order, n_steps * problem.batch_size)
    return {"steps": share(lab.timed(lambda seed: step(order)), n_steps)}


def torch_steps(size, epochs, in_graph, lab):
    """Steps of torch, by the optimizer's faster implementation."""
    lab.torch()
    problem = replace(getattr(lab.sizes, size), epochs=epochs)
    n_steps = epochs * -(-len(problem.data()[0]) // problem.batch_size)
    variants = torch_net(problem, device="cuda", in_graph=in_graph)
    return {name: share(turn, n_steps) for name, turn in variants.items()}


def fits(size, lab):
    return skbn_net(lab.on_card(getattr(lab.sizes, size)))


def torch_fits(size, lab):
    lab.torch()
    return torch_net(getattr(lab.sizes, size), device="cuda")


def epochs(contender, lab):
    """Whole fits, as the time of one of their epochs."""
    n_epochs = lab.sizes.images.epochs
    return {name: share(turn, n_epochs) for name, turn in contender("images", lab).items()}


def models(device, n_threads, epochs_in_one, lab):
    """An epoch of many models."""
    problem, kind = lab.sizes.small, log_loss(2).kind
    X, y = problem.data()
    order = np.random.default_rng(lab.seed).permutation(len(X))
    order = np.tile(order, epochs_in_one)
    rows = lab.card.upload(X) if device == "cuda" else X
    y, widths = y.astype(np.float32), widths_of(problem, X, y)
    several, n, stack = get_models(device), lab.sizes.n_models, ExitStack()
    made = [untrained(widths, ("after",), "sgd", np.float32, 0.01, seed) for seed in range(n)]
    parts = []
    for part in gen_batches(n, min(n, several.n_together)):
        networks, optimizers = zip(*made[part], strict=True)
        size = len(networks)
        together = several(
            list(networks),
            loss_kinds=[kind] * size,
            alphas=[0.0] * size,
            batch_sizes=[problem.batch_size] * size,
            dropout_keys=[(0, 0)] * size,
        )
        optimizers = stack.enter_context(Optimizers(optimizers))
        given = [None] * size, [order] * size, optimizers, np.ones(size, bool)
        parts.append((stack.enter_context(together), given))
    pool = stack.enter_context(ThreadPoolExecutor(n_threads))

    def train(part):
        together, given = part
        together.train(rows, y, *given, together.new_sums())

    def epoch(seed):
        if n_threads == 1:
            for part in parts:
                train(part)
        else:
            list(pool.map(train, parts))

    return {f"{n_threads} thread{'s' * (n_threads > 1)} of the host": lab.timed(epoch)}


def searches(device, lab):
    """Whole calls of ``fit_many``."""
    X, y = lab.sizes.small.data()
    rates = np.geomspace(1e-3, 1e-1, lab.sizes.n_models)

    def search(seed):
        estimators = [
            MLPClassifierBN(
                lab.sizes.small.hidden,
                solver="sgd",
                batch_size=lab.sizes.small.batch_size,
                learning_rate_init=rate,
                max_iter=20,
                tol=0.0,
                n_iter_no_change=np.inf,
                random_state=seed,
                device=device,
            )
            for rate in rates
        ]
        fit_many(estimators, X, y, n_jobs=2)

    return {"fit_many": timed(search)}


# ----------------------------------------------------------------------------------------- arrays


def norm(x, gamma, beta, out=None):
    return functional.batch_norm(x, gamma, beta, epsilon=EPSILON, activation="relu", out=out)


def norm_step(x, dy, gamma, beta):
    y, saved = norm(x, gamma, beta)
    return y, *functional.batch_norm_backward(dy, saved)


def forward_into(lab):
    """Forward of several arrays in turn, into arrays that are there."""
    (gamma, beta), sets = lab.arrays(lab.sizes.tall, 3)
    sets = [(x, lab.card.empty(x.shape, x.dtype)) for x, _ in sets]
    return {"call": lab.timed(in_turn(sets, lambda x, y: norm(x, gamma, beta, y)[0]))}


def copying(lab):
    """Copy as many bytes as are in three of x: read half of them, write the other half."""
    _, [arrays] = lab.arrays(lab.sizes.tall)
    n_rows, n_columns = lab.sizes.tall
    sets = []
    for x in arrays:
        longer, target = (lab.card.empty((3 * n_rows // 2, n_columns), x.dtype) for _ in range(2))
        longer[:n_rows], longer[n_rows:] = x, x[: n_rows // 2]
        sets.append((longer, target))
    variants = {}
    try:
        torch = lab.torch()
    except ModuleNotFoundError:
        pass
    else:
        tensors = [tuple(map(torch.from_dlpack, pair)) for pair in sets]
        variants["torch"] = lab.timed(in_turn(tensors, lambda x, y: y.copy_(x)))

    def copy(x, y):
        y[...] = x

    return {"CuPy": lab.timed(in_turn(sets, copy))} | variants


def forward(lab):
    (gamma, beta), sets = lab.arrays(lab.sizes.tall, 3)
    sets = [(x,) for x, _ in sets]
    return {"call": lab.timed(in_turn(sets, lambda x: norm(x, gamma, beta)[0]))}


def backward(lab):
    (gamma, beta), sets = lab.arrays(lab.sizes.tall, 2)
    ready = [(dy, norm(x, gamma, beta)[1]) for x, dy in sets]
    return {"call": lab.timed(in_turn(ready, functional.batch_norm_backward))}


def both(clock, lab):
    (gamma, beta), [(x, dy)] = lab.arrays(lab.sizes.cached)
    return {"call": clock(lab, lambda seed: norm_step(x, dy, gamma, beta))}


def torch_sets(torch, lab, shape, n_sets):
    """Sets of what is differentiated for, x, gamma and beta, and of dy."""
    given, sets = lab.arrays(shape, n_sets)
    vectors = [torch.from_dlpack(vector).float().requires_grad_() for vector in given]
    tensors = [map(torch.from_dlpack, pair) for pair in sets]
    return [([x.requires_grad_(), *vectors], dy) for x, dy in tensors]


def torch_variants(torch, make_turn):
    """Turns of torch's batch norm and ReLU: the ReLU in place or not, by cuDNN or not."""
    functions = torch.nn.functional

    def way(relu, x, gamma, beta):
        return relu(functions.batch_norm(x, None, None, gamma, beta, training=True, eps=EPSILON))

    def turn(relu, with_cudnn, seed, number):
        with torch.backends.cudnn.flags(enabled=with_cudnn, allow_tf32=False):
            return make_turn(functools.partial(way, relu))(seed, number)

    return {
        f"{name}, {library}": functools.partial(turn, relu, library == "cuDNN")
        for name, relu in [("ReLU", functions.relu), ("ReLU in place", functions.relu_)]
        for library in ("cuDNN", "torch's own")
    }


def torch_forward(lab):
    torch = lab.torch()
    sets = [(wanted,) for wanted, _ in torch_sets(torch, lab, lab.sizes.tall, 3)]

    def make_turn(way):
        return lab.timed(in_turn(sets, lambda wanted: way(*wanted).detach()))

    return torch_variants(torch, make_turn)


def torch_backward(lab):
    torch = lab.torch()
    sets = torch_sets(torch, lab, lab.sizes.tall, 2)

    def make_turn(way):
        ready = [(way(*wanted), wanted, dy) for wanted, dy in sets]
        return lab.timed(
            in_turn(ready, lambda y, x, dy: torch.autograd.grad(y, x, dy, retain_graph=True))
        )

    return torch_variants(torch, make_turn)


def torch_both(clock, lab):
    torch = lab.torch()
    [(wanted, dy)] = torch_sets(torch, lab, lab.sizes.cached, 1)

    def make_turn(way):
        def step(seed):
            y = way(*wanted)
            return y, *torch.autograd.grad(y, wanted, dy)

        return clock(lab, step)

    return torch_variants(torch, make_turn)


# ---------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Target:
    """One row; without a bound it only reports. Without a rival, ``ours`` returns samples."""

    id: str
    what: str
    ours: Callable
    rival: Callable | None = None
    check: Callable | None = None
    must: float | None = None
    aim: float | None = None
    unit: str = "x"
    floor: str | None = None  # what nobody could beat, where that is known
    problem: str | None = None  # whose accuracy counts, of whole fits


some = functools.partial
ENGINES = [("small", "2-50-1, batch 32", "SGD"), ("large", "784-512-512-10, batch 256", "Adam")]
SMALL, LARGE = (f"{network}, {solver}" for _, network, solver in ENGINES)
TALL, CACHED = product(FULL.tall), product(FULL.cached)

TARGETS = [
    Target(
        "G1",
        f"{SMALL}, a step of an epoch of {FULL.n_steps}: torch eager",
        some(steps, "small"),
        some(torch_steps, "small", 20, False),
        some(check_training, "small"),
        must=120,
        aim=250,
    ),
    Target(
        "G1",
        f"{SMALL}, whole fits of 100 epochs of 500 rows: torch eager",
        some(fits, "small"),
        some(torch_fits, "small"),
        some(check_training, "small"),
        problem="small",
    ),
    *(
        Target(
            "G2",
            f"{FULL.n_models} times {SMALL}, an epoch of {n_rows} rows: two threads of the CPU",
            some(models, "cuda", 1, epochs_in_one),
            some(models, "cpu", 2, epochs_in_one),
            some(check_training, "small"),
            must=40,
            aim=80,
        )
        for n_rows, epochs_in_one in [(500, 1), (16_000, 32)]
    ),
    Target(
        "G2",
        f"{FULL.n_models} times {SMALL}, fit_many of 20 epochs of 500 rows: two threads of the CPU",
        some(searches, "cuda"),
        some(searches, None),
        some(check_training, "small"),
    ),
    Target(
        "G3",
        f"{TALL}, forward: copying as many bytes as three of x",
        forward_into,
        copying,
        some(check_norm, "tall"),
        must=0.88,
        aim=0.95,
        floor="1",
    ),
    Target(
        "G4",
        f"{TALL}, forward: torch eager",
        forward,
        torch_forward,
        some(check_norm, "tall"),
        must=1.6,
        aim=1.8,
        floor="5/3",
    ),
    Target(
        "G4",
        f"{TALL}, backward: torch eager",
        backward,
        torch_backward,
        some(check_norm, "tall"),
        must=1.5,
        aim=1.7,
        floor="8/5",
    ),
    *(
        Target(
            "G5",
            f"{CACHED}, forward and backward, {name}: torch eager",
            some(both, clock),
            some(torch_both, clock),
            some(check_norm, "cached"),
            must=2.2,
            aim=3,
            floor="13/5",
        )
        for name, clock in [("as called", Lab.timed), ("on the card alone", card_alone)]
    ),
    *(
        Target(
            "G6",
            f"{LARGE}, a step of an epoch of {FULL.n_steps}: torch {name}",
            some(steps, "large"),
            some(torch_steps, "large", 100, in_graph),
            some(check_training, "large"),
            must=must,
            aim=aim,
        )
        for name, in_graph, must, aim in [("eager", False, 15, 25), ("in a graph", True, 2, 3)]
    ),
    Target(
        "G7",
        f"{LARGE}, an epoch of 60000 rows, of whole fits of 10; beside it torch eager",
        some(epochs, fits),
        some(epochs, torch_fits),
        some(check_training, "large"),
        must=12,
        aim=8,
        unit="ms",
    ),
    *(
        Target("G8", f"{what}, repeated 5 times", some(unlike, 6, make), must=0, unit=WORST[1])
        for what, make in [
            (f"{SMALL}, a fit", some(fitted_numbers, "small")),
            (f"{LARGE}, a fit", some(fitted_numbers, "large")),
            (f"{CACHED}, forward and backward", array_numbers),
        ]
    ),
    *(
        Target(
            "G9",
            f"{network}, {what}: the CPU's executor",
            some(differences, size, n_epochs, repeats),
            must=must,
            unit=WORST[0],
        )
        for size, network, solver in ENGINES
        for what, n_epochs, repeats, must in [
            ("one step of SGD", 0, 5, STEP),
            (f"one epoch of {solver}", 1, 3, EPOCH),
        ]
    ),
]


def measure(lab, target, repeats):
    """Check, then time one target; its row as a dictionary."""
    start = {key: getattr(target, key) for key in ("id", "what", "unit", "must", "aim", "floor")}
    start |= {"load": load_average(), "seed": lab.seed}
    try:
        if target.check:
            target.check(lab)
        lab.tidy()
        if target.unit in WORST:
            row = start | {"ours": summary(target.ours(lab)) | {"notes": []}}
        else:
            sides = {"ours": some(target.ours, lab), "rival": some(target.rival, lab)}
            row = start | compare(target, sides, repeats, scores(lab, target))
        row["met"] = verdict(row)
    except Exception as error:
        traceback.print_exc()
        row = start | {"failed": f"{type(error).__name__}: {error}", "met": "failed"}
    lab.tidy()
    return row


def scores(lab, target):
    if target.problem is None:
        return {}
    X, y = getattr(lab.sizes, target.problem).data()
    return {"accuracy": lambda predict_proba: accuracy(predict_proba, X, y)}


# --------------------------------------------------------------------------------------- sanitize


def exercise(card):
    """Launch every kernel at small sizes, in both types of numbers; return those that were not."""
    launched, get = set(), card.kernel

    def kernel(file, name, dtype):
        launched.add((file, name, np.dtype(dtype).name))
        return get(file, name, dtype)

    with patch.object(card, "kernel", kernel):
        for dtype in (np.float32, np.float64):
            exercise_arrays(card, dtype)
            exercise_networks(card, dtype)
    known = {
        (file, name, dtype)
        for file in sources.files()
        for name in sources.kernel_names(file)
        for dtype in ("float32", "float64")
    }
    return sorted(known - launched)


def exercise_arrays(card, dtype):
    rng = np.random.default_rng(0)
    # Columns side by side and not, rows that go at once and in chunks.
    few, many = AT_ONCE // 10, AT_ONCE + 1
    for shape, axis in [((few, 12), -1), ((many, 12), -1), ((few, 3, 5), 1), ((many, 3, 5), 1)]:
        weights = rng.uniform(0, 2, shape[0])
        x = card.upload(rng.normal(size=shape).astype(dtype))
        for given in ({}, {"sample_weight": weights}):
            y, saved = functional.batch_norm(x, axis=axis, activation="relu", **given)
            functional.batch_norm_backward(y, saved)
        functional.batch_norm_inference(x, saved.mean, saved.var, axis=axis)
        BatchNormTransformer(axis=axis).fit(x).transform(x)


def exercise_networks(card, dtype):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2200, 3)).astype(dtype)
    y = rng.integers(0, 3, len(X))
    weights = rng.uniform(0.5, 2, len(X))
    options = {"max_iter": 2, "random_state": 0, "device": "cuda", "max_grad_norm": 1.0}
    several = {"batch_norm": ("input", "before", "after"), "dropout": 0.2, "activation": "gelu"}
    for some_rows, fit in [
        (slice(40), {"batch_size": 16}),  # in one block
        (slice(40), {"batch_size": 16, "bn_virtual_batch_size": 5}),
        (slice(None), {"batch_size": 200, "hidden_layer_sizes": (200,)}),  # in graphs
        (slice(None), {"batch_size": 2200}),  # statistics in parts
    ]:
        fit = {"hidden_layer_sizes": (5,)} | several | options | fit
        model = MLPClassifierBN(**fit)
        model.fit(X[some_rows], y[some_rows], weights[some_rows])
        model.recalibrate(card.upload(X)).predict(card.upload(X[some_rows]))
    sparse = csr_array(np.where(X[:100] < 0, 0, X[:100]))
    MLPClassifierBN((5,), batch_norm="before", **options).fit(sparse, y[:100])
    fit_many([MLPClassifierBN((4,), batch_size=16, **options) for _ in range(3)], X[:40], y[:40])


# ------------------------------------------------------------------------------------------- main


def simulated():
    """The card of the tests."""
    sys.path[:0] = [str(ROOT / "tests" / "backends" / "cuda")]
    from simulated_card import SimulatedCard

    return SimulatedCard()


CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")


def ask_driver(*fields):
    """What nvidia-smi says of the first card."""
    query = f"--query-gpu={','.join(fields)}"
    try:
        found = subprocess.check_output(["nvidia-smi", query, "--format=csv,noheader"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return ["unknown"] * len(fields)
    return [field.strip() for field in found.splitlines()[0].split(",")]


def about(card):
    """What the figures are taken on."""
    import cupy

    names = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
    installed = [name for name in names if has_distribution(name)]
    runtime = cupy.cuda.runtime.runtimeGetVersion()
    (driver,) = ask_driver("driver_version")
    return machine(("skbn", "numpy", "scikit-learn", *installed, "torch")) | {
        "card": card.name,
        "driver": driver,
        "cuda": f"{runtime // 1000}.{runtime % 1000 // 10}",
    }


def has_distribution(name):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main():
    args = arguments(
        __doc__.partition("\n")[0],
        [target.id for target in TARGETS],
        simulate="tiny sizes on the simulated card of the tests: nothing is written",
        sanitize="launch every kernel once, for compute-sanitizer; no values, no times",
    )
    sizes = TINY if args.simulate else FULL
    card = simulated() if args.simulate else cards.current()
    with patch.object(cards, "current", lambda: card), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter ends every fit here
        if args.sanitize:
            sys.exit(sanitize(card))
        seed = 0 if args.simulate else np.random.SeedSequence().entropy % 2**31
        sys.exit(run(args, Lab(card, sizes, seed)))


def sanitize(card):
    """Run ``exercise`` with memory of its own for each array; return an error, or None."""
    if isinstance(card, cards.Card):
        import cupy

        cupy.cuda.set_allocator(None)  # so that memcheck sees where each array ends
    if missed := exercise(card):
        return f"not launched: {missed}"
    card.synchronize()
    print("every kernel was launched")
    return None


def run(args, lab):
    """Measure, write, print; return an error, or None."""
    start, rows = time.perf_counter(), []
    args.repeats = args.repeats if lab.is_real else 1
    for target in TARGETS:
        if target.id not in args.ids:
            continue
        print(f"{target.id}: {target.what} ...", file=sys.stderr, flush=True)
        rows.append(measure(lab, target, args.repeats))
        if lab.is_real:
            rows[-1]["clocks"] = dict(zip(CLOCKS, ask_driver(*CLOCKS), strict=True))
        print(f"after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if lab.is_real:
        args.json = args.json or RESULTS
        report(args, about(lab.card), rows, "accuracy")
    shown = [[row["id"], row["what"], outcome(lab, row)] for row in rows]
    print()
    print(table([["id", "what: against what", "reached"], *shown], args.markdown))
    wrong = [
        row for row in rows if "failed" in row or (row["unit"] in WORST and row["met"] == "no")
    ]
    return (
        "\n".join(f"{row['id']}, {row['what']}: {row.get('failed', 'no')}" for row in wrong) or None
    )


def outcome(lab, row):
    """What is said of a row in the end; of the simulated card no times."""
    if "failed" in row:
        return row["failed"]
    is_time = row["unit"] not in WORST
    return "ran" if is_time and not lab.is_real else f"{reached(row)}, {row['met']}"


if __name__ == "__main__":
    main()
