"""What is lost of hostile columns: skbn beside others, as compare_accuracy.py asks them."""
# SPDX-License-Identifier: BSD-3-Clause

import math
import warnings
from contextlib import suppress

import numpy as np
from compare_accuracy import (
    SIDES,
    constant,
    exact,
    offset,
    one_differs,
    ramp,
    spread,
)

from .common import ALL_DTYPES, WITH_RIVALS, Benchmark

COLUMNS = {
    "mean / std 1e2": offset(1e2),
    "mean / std 1e4": offset(1e4),
    "mean / std 1e7": offset(1e7),
    "constant 0.1": constant(0.1),
    "constant 1e20": constant(1e20),
    "spread 1e-12": spread(1e-12),
    "one row in a million differs": one_differs,
    "values up to 1e18": ramp(1e18),
}
EPSILON = 1e-30  # torch takes no 0


def largest(errors, scale):
    """Return the largest of some errors; no digit right is 1, as is NaN."""
    return min(float(np.nan_to_num(np.abs(errors) / scale, nan=1.0).max()), 1.0)


class HostileColumnBenchmark(Benchmark):
    """Relative error of variance and output against long double in two passes."""

    unit = "relative error"
    param_names = ("side", "column", "dtype")
    params = (
        [side.name for side in SIDES if WITH_RIVALS or side.name in ("skbn", "scikit-learn")],
        tuple(COLUMNS),
        ALL_DTYPES,
    )

    def setup_cache(self):
        """Return the errors of variance and output for all parameters."""
        sides, errors = {}, {}
        for side in SIDES:
            if side.name in self.params[0]:
                with suppress(ModuleNotFoundError):
                    sides[side.name] = side()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # overflows, which the figures show
            for column, make in COLUMNS.items():
                for dtype in ALL_DTYPES:
                    x = make(np.dtype(dtype).type)
                    for name, side in sides.items():
                        epsilon = EPSILON if side.has_epsilon else 0.0
                        var, y, _ = exact(x, epsilon)
                        found_var, found_y = side.normalize(x, epsilon)
                        errors[name, column, dtype] = (
                            largest(found_var - var, var or 1.0),
                            largest(found_y[:, 0] - y, np.maximum(1, np.abs(y))),
                        )
        return errors

    def track_variance(self, errors, *params):
        return errors.get(params, (math.nan, math.nan))[0]  # NaN is asv's "n/a"

    def track_output(self, errors, *params):
        return errors.get(params, (math.nan, math.nan))[1]
