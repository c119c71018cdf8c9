# SPDX-License-Identifier: BSD-3-Clause
from skbn.backends.reference_arrays import *  # noqa
