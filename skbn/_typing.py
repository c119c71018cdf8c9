"""What type checkers read of the public interface; nothing here is imported when skbn runs."""
# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt


class OnCard(Protocol):
    """An array on a card, CuPy's or another library's."""

    def __dlpack_device__(self) -> tuple[Any, Any]: ...


class SparseMatrix(Protocol):
    """A sparse matrix or array of scipy's, which has no types of its own."""

    def tocsr(self) -> Any: ...

    def tocsc(self) -> Any: ...


Array: TypeAlias = npt.NDArray[Any]  # on a card where the input is
ArrayLike: TypeAlias = npt.ArrayLike | OnCard
MatrixLike: TypeAlias = ArrayLike | SparseMatrix

# Strings are `str`: a loop over placements or activations has no literals.
ClassWeight: TypeAlias = Mapping[Any, float] | Sequence[Mapping[Any, float]] | str | None
RandomState: TypeAlias = int | np.random.RandomState | None
Scoring: TypeAlias = str | Callable[..., float] | None
