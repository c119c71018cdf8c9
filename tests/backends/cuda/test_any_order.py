"""The same bits in whatever order a card runs blocks and threads."""
# SPDX-License-Identifier: BSD-3-Clause

import cases
import numpy as np
import pytest
from simulated_card import SimulatedCard, check, compiler

if not compiler()[0]:
    pytest.skip(compiler()[1], allow_module_level=True)

# Layers of every kind, statistics in parts, sums over tiles, weights, clipping.
CHOSEN = ("all options", "virtual, two layers", "many tiles", "many labels", "weighted", "alpha")
WAYS = {"epochs": {}, "steps": {"shared_memory": 4096}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CHOSEN)
def test_no_bit_depends_on_the_order(name, way):
    case, seen = cases.NETWORKS[name], set()
    for seed in range(4):
        card = SimulatedCard(seed, **WAYS[way])
        # A name of its own: what is observed is remembered by name.
        executor = f"{way}, seed {seed}"
        cases.EXECUTORS[executor] = lambda *a, card=card, **kw: cases.on(card, *a, **kw)
        try:
            found = [
                cases.observe_gradient(executor, case, np.float32),
                cases.observe_inference(executor, case, np.float32),
                cases.observe_training(executor, case, np.float32, "adam"),
            ]
        finally:
            del cases.EXECUTORS[executor]
        check(card)
        seen.add(b"".join(np.asarray(v).tobytes() for part in found for v in part.values()))
    assert len(seen) == 1
