"""Compare the stubs of the compiled modules that are installed here with the modules themselves."""
# SPDX-License-Identifier: BSD-3-Clause

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages

from mypy.stubtest import parse_options, test_stubs

import skbn

HERE = Path(__file__).parent
modules = [module.name for module in walk_packages(skbn.__path__, "skbn.")]
compiled = [name for name in modules if find_spec(name).origin.endswith(tuple(EXTENSION_SUFFIXES))]
options = [
    *("--allowlist", str(HERE / "stubs.txt")),
    *("--mypy-config-file", str(HERE.parent / "pyproject.toml")),
    *("--concise", "--ignore-disjoint-bases"),
]
sys.exit(test_stubs(parse_options([*compiled, *options])))
