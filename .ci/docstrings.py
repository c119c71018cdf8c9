"""Check the docstrings of the public names with numpydoc, by the rules in pyproject.toml.

Public is what ``skbn.__all__`` lists, what the ``__all__`` of a module listed there lists, and
the public methods and properties that our own classes define; scikit-learn answers for the rest.
Every class and function has an example, and a class shows its methods in its own.
"""
# SPDX-License-Identifier: BSD-3-Clause

import sys
import tomllib
from pathlib import Path
from types import ModuleType

from numpydoc.validate import ERROR_MSGS, validate

import skbn

CONFIG = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text("utf-8"))
LISTED = set(CONFIG["tool"]["numpydoc_validation"]["checks"])
CHECKS = set(ERROR_MSGS) - LISTED if "all" in LISTED else LISTED


def public_names(module):
    """Yield every public name with the rules that hold for it."""
    for name in module.__all__:
        if name.startswith("__"):
            continue
        value = getattr(module, name)
        path = f"{module.__name__}.{name}"
        if isinstance(value, ModuleType):
            yield from public_names(value)
            continue
        yield path, CHECKS | {"EX01"}
        if isinstance(value, type):
            ours = [c for c in value.__mro__ if c.__module__.partition(".")[0] == "skbn"]
            members = sorted({m for c in ours for m in vars(c) if not m.startswith("_")})
            for member in members:
                if isinstance(getattr(value, member), property) or callable(getattr(value, member)):
                    yield f"{path}.{member}", CHECKS - {"EX01"}


names = list(public_names(skbn))
problems = [
    f"{name}: {code} {message}"
    for name, checks in names
    for code, message in validate(name)["errors"]
    if code in checks
]
print(*problems, sep="\n", end="\n" if problems else "")
print(f"{len(names)} docstrings, {len(problems)} problems")
sys.exit(bool(problems))
