# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import numpy.typing as npt

def shuffle(rows: npt.NDArray[np.intp], random_state: np.random.RandomState) -> None: ...
