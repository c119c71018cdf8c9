"""The asv suite: how skbn's own speed, memory and scores move from commit to commit."""
# SPDX-License-Identifier: BSD-3-Clause
