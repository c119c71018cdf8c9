"""The version, in a module of its own so that what stores models can stamp it."""
# SPDX-License-Identifier: BSD-3-Clause

__version__ = "0.1.0.dev0"
