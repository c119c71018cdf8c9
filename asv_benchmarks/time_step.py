"""Time one training step of the small benchmark network at every instruction level.

    python asv_benchmarks/time_step.py

Microseconds a mini-batch of 32 rows (the best of many epochs over 500 rows, one BLAS thread), for
the networks 2-50-1 and 2-50-50-1 with and without batch norm. This is the inner loop alone:
compare_rivals.py times whole fits.
"""
# SPDX-License-Identifier: BSD-3-Clause

import time

import numpy as np
from sklearn.datasets import make_circles

from skbn._layers import multilayer_perceptron
from skbn._losses import log_loss
from skbn._network import Network
from skbn._random import initialize_weights
from skbn._training import Optimizer
from skbn.backends.cpu import LEVELS, executor_class

N_ROWS, BATCH_SIZE, N_EPOCHS = 500, 32, 400
N_STEPS = -(-N_ROWS // BATCH_SIZE)


def untrained(widths, placements, solver, dtype, learning_rate=0.001, seed=0):
    """A network of these widths with its first weights, and its optimizer."""
    n_features, *hidden, n_outputs = widths
    layers = multilayer_perceptron(
        *(n_features, hidden, n_outputs),
        activation="relu",
        placements=placements,
        bn_options={},
        dropout=0.0,
    )
    network = Network(layers, dtype)
    initialize_weights(network, "auto", "relu", np.random.RandomState(seed))
    optimizer = Optimizer(
        network,
        solver=solver,
        learning_rate_init=learning_rate,
        schedule="constant",
        power_t=0.5,
        momentum=0.9,
        nesterovs_momentum=False,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
    )
    return network, optimizer


def microseconds_a_step(level, dtype, hidden, placements, solver):
    """Train for many epochs; the best epoch's time, a step."""
    network, optimizer = untrained((2, *hidden, 1), placements, solver, dtype)
    X, y = make_circles(N_ROWS, noise=0.1, random_state=1)
    X, y, rows = X.astype(dtype), y.astype(dtype), np.arange(N_ROWS, dtype=np.intp)
    seconds, sums = [], np.zeros(3)
    executor = executor_class(level)(network, loss_kind=log_loss(2).kind, batch_size=BATCH_SIZE)
    with executor:
        for _ in range(N_EPOCHS):
            start, position = time.perf_counter(), 0
            while position < N_ROWS:
                position = executor.train(
                    X, y, None, rows, position, optimizer.record, optimizer.memory, sums
                )
            seconds.append(time.perf_counter() - start)
    return 1e6 * min(seconds) / N_STEPS


def main():
    print("| network | batch norm | solver | dtype |", *(f"{level} |" for level in LEVELS))
    print("| --- " * (4 + len(LEVELS)) + "|")
    for hidden in ((50,), (50, 50)):
        for placements in ((), ("after",)):
            for solver in ("sgd", "adam"):
                for dtype in (np.float32, np.float64):
                    times = [
                        microseconds_a_step(level, dtype, hidden, placements, solver)
                        for level in LEVELS
                    ]
                    name = "-".join(map(str, (2, *hidden, 1)))
                    norm = placements[0] if placements else "none"
                    cells = (f"{t:.2f} |" for t in times)
                    print(f"| {name} | {norm} | {solver} | {dtype.__name__} |", *cells)


if __name__ == "__main__":
    main()
