"""The example of docs/unlearning.md runs as it stands, and does what is said of it."""

import re
from pathlib import Path

import jax
import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "unlearning.md"


def test_example_forgets_and_keeps():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(blocks) == 3
    space = {}
    exec(blocks[0], space)
    before = space["params"]
    exec(blocks[1], space)
    exec(blocks[2], {})

    def loss(params, batch):
        from lt_mia_jax.unlearning.objectives.likelihood import nll

        return float(nll(params, batch, apply_fn=space["model"].apply)[0])

    forget, retain = space["forget"], space["retain"]
    assert loss(space["params"], forget) > loss(before, forget) + 0.01
    assert loss(space["params"], retain) < loss(before, retain) + 0.001
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(space["params"]))
