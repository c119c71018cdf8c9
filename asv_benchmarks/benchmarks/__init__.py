"""The asv suite: how skbn's own speed, memory and scores move from commit to commit.

asv imports all modules in one process and runs each benchmark in a fork of it, where skbn would
keep to one thread (and torch and JAX may hang). So modules here import skbn and its rivals late.

SKBN_BENCH_PATH names a folder that skbn is imported from, in place of what is installed; asv takes
PYTHONPATH away, and some releases ASV_PYTHONPATH as well.
"""
# SPDX-License-Identifier: BSD-3-Clause

import os
import sys
from pathlib import Path

if "SKBN_BENCH_PATH" in os.environ:
    sys.path.insert(0, os.environ["SKBN_BENCH_PATH"])
# What the suite shares with the scripts lies beside it; asv puts only this package on the path.
sys.path.append(str(Path(__file__).parents[1]))
