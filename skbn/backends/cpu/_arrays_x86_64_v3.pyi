# SPDX-License-Identifier: BSD-3-Clause
from skbn.backends.cpu._arrays_baseline import *
