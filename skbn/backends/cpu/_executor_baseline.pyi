# SPDX-License-Identifier: BSD-3-Clause
# executor.pyx, whichever instruction level it was compiled for.
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from skbn._network import Network
from skbn.backends.records import LossKind

def seconds_of_batch(n_rows: int, n_params: int, row_size: int) -> float: ...
def train_in_turn(
    executors: Sequence[CPUExecutor],
    X: Any,
    targets: npt.NDArray[Any],
    weights: Sequence[npt.NDArray[np.float64] | None],
    rows: Sequence[npt.NDArray[np.intp]],
    optimizers: Sequence[Any],
    sums: Sequence[npt.NDArray[np.float64]],
) -> None: ...

class CPUExecutor:
    n_workers: int
    def __init__(
        self,
        network: Network,
        *,
        loss_kind: LossKind | None = None,
        alpha: float = 0.0,
        batch_size: int = 1,
        dropout_key: tuple[int, int] = (0, 0),
        threads: int | None = None,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def new_sums(self) -> npt.NDArray[np.float64]: ...
    def train(
        self,
        X: Any,
        targets: npt.NDArray[Any],
        weights: npt.NDArray[np.float64] | None,
        rows: npt.NDArray[np.intp],
        start: int,
        optimizer: npt.NDArray[np.void],
        memory: npt.NDArray[Any],
        sums: npt.NDArray[np.float64],
    ) -> int: ...
    def loss_and_gradient(
        self,
        X: Any,
        targets: npt.NDArray[Any],
        weights: npt.NDArray[np.float64] | None,
        rows: npt.NDArray[np.intp],
        grads: npt.NDArray[Any],
        step: int = 0,
        *,
        update_statistics: bool = False,
        sums: npt.NDArray[np.float64] | None = None,
    ) -> float: ...
    def predict(self, X: Any) -> npt.NDArray[Any]: ...
    def evaluate(
        self,
        X: Any,
        targets: npt.NDArray[Any],
        weights: npt.NDArray[np.float64] | None,
        rows: npt.NDArray[np.intp],
    ) -> npt.NDArray[np.float64]: ...
    def update_population_statistics(
        self,
        X: Any,
        weights: npt.NDArray[np.float64] | None,
        rows: npt.NDArray[np.intp],
    ) -> None: ...
