"""The asv suite: how skbn's own speed, memory and scores move from commit to commit.

asv imports all modules in one process and runs each benchmark in a fork of it, where skbn would
keep to one thread (and torch and JAX may hang). So modules here import skbn and its rivals late.
"""
# SPDX-License-Identifier: BSD-3-Clause

import sys
from pathlib import Path

# What the suite shares with the scripts lies beside it; asv puts only this package on the path.
sys.path.append(str(Path(__file__).parents[1]))
