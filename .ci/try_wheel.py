"""Fit and predict with the installed package, from wherever this is called."""
# SPDX-License-Identifier: BSD-3-Clause

import importlib.metadata
import sys
import warnings
from pathlib import Path

from sklearn.datasets import make_circles
from sklearn.exceptions import ConvergenceWarning

import skbn
from skbn import MLPClassifierBN
from skbn.backends.cuda import sources

assert Path(skbn.__file__).is_relative_to(sys.prefix), skbn.__file__
files = {Path(file).name for file in importlib.metadata.files("skbn")}
assert not {name for name in files if name.endswith((".c", ".pyx"))}, files
assert {"LICENSE", "py.typed", *(f"{name}.cu" for name in sources.files())} <= files, files
compiled = {name.partition(".")[0] for name in files if name.endswith((".so", ".pyd"))}
assert {f"{name}.pyi" for name in compiled} <= files, files
assert all(map(sources.kernel_names, sources.files()))  # with the headers that they include

warnings.simplefilter("error")
warnings.simplefilter("ignore", ConvergenceWarning)
X, y = make_circles(1000, noise=0.1, factor=0.5, random_state=1)
model = MLPClassifierBN((50,), max_iter=100, tol=0.0, random_state=0).fit(X[:500], y[:500])
accuracy = (model.predict(X[500:]) == y[500:]).mean()
print(f"skbn {skbn.__version__} from {skbn.__file__}: accuracy {accuracy:.3f}")
assert accuracy > 0.95
