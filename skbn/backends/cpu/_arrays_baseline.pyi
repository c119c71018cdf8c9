# SPDX-License-Identifier: BSD-3-Clause
# arrays.pyx, whichever instruction level it was compiled for.
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

def columns_last(x: npt.NDArray[Any], axes: Sequence[int]) -> npt.NDArray[Any]: ...
def moments(
    x: npt.NDArray[Any],
    axes: Sequence[int],
    weights: npt.NDArray[np.float64] | None = None,
    ignore_nan: bool = False,
) -> npt.NDArray[np.float64]: ...
def batch_norm_forward(
    y: npt.NDArray[Any],
    x: npt.NDArray[Any],
    axes: Sequence[int],
    gamma: npt.NDArray[np.float64] | None,
    beta: npt.NDArray[np.float64] | None,
    epsilon: float,
    activation: int,
    weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]: ...
def batch_norm_forward_eval(
    y: npt.NDArray[Any],
    x: npt.NDArray[Any],
    axes: Sequence[int],
    gamma: npt.NDArray[np.float64] | None,
    beta: npt.NDArray[np.float64] | None,
    mean: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    var: npt.NDArray[np.float64],
    epsilon: float,
    activation: int,
) -> None: ...
def batch_norm_backward(
    dx: npt.NDArray[Any],
    dy: npt.NDArray[Any],
    x: npt.NDArray[Any],
    axes: Sequence[int],
    gamma: npt.NDArray[np.float64] | None,
    beta: npt.NDArray[np.float64] | None,
    statistics: npt.NDArray[np.float64],
    activation: int,
    weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]: ...

class Call:
    def __init__(
        self,
        x: npt.NDArray[Any],
        axes: tuple[int, ...],
        weights: npt.NDArray[np.float64] | None,
        dy: npt.NDArray[Any] | None = None,
        y: npt.NDArray[Any] | None = None,
        activation: int = 0,
        ignore_nan: bool = False,
    ) -> None: ...
