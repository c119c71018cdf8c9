"""What a report of a bug needs: versions, libraries and what computes."""
# SPDX-License-Identifier: BSD-3-Clause

from threadpoolctl import threadpool_info

from skbn._sklearn_compat import get_deps_info, get_sys_info
from skbn._version import __version__
from skbn.backends import description


def show_versions() -> None:
    """Print versions and settings, for a report of a bug.

    Python and the system, packages, what skbn computes with (the instruction level of its kernels,
    its OpenMP library, how many threads it would use, CuPy and its card), then the libraries with
    threads that are loaded.

    See Also
    --------
    sklearn.show_versions : The same without skbn.

    Examples
    --------
    >>> import skbn
    >>> skbn.show_versions()  # doctest: +ELLIPSIS
    System:
    ...
    Packages:
    ...
    Computation:
    ...
    Libraries with threads:
    ...
    """
    libraries = enumerate(threadpool_info(), start=1)
    sections = {
        "System": get_sys_info(),
        "Packages": {"skbn": __version__, **get_deps_info()},
        "Computation": description(),
        "Libraries with threads": {
            f"{library['user_api']} {number}": _one_line(library) for number, library in libraries
        },
    }
    paragraphs = (
        "\n".join([f"{title}:", *(f"{name:>13}: {fact}" for name, fact in facts.items())])
        for title, facts in sections.items()
    )
    print(*paragraphs, sep="\n\n")


def _one_line(library):
    """Return what threadpoolctl knows of a library, but for what it is for."""
    return ", ".join(
        f"{name}={value}" for name, value in library.items() if name != "user_api" and value
    )
