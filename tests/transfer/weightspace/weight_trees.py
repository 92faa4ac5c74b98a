"""Small trees with every role, whose values are exact in float32."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {
    "embedding": {"tokens": (4, 6)},
    "final_norm": {"scale": (4,)},
    "head": {"kernel": (4, 6)},
    "periods": {
        "slot_0": {
            "mixer": {"query": {"kernel": (4, 2, 3)}, "log_decay": (4, 6)},
            "mixer_norm": {"scale": (4, 6)},
        }
    },
    "tail_0": {"feed_forward": {"up": {"kernel": (4, 6)}}},
}
"""Few distinct shapes, since each is compiled; four devices divide them."""


def grid(seed, shapes=SHAPES, *, levels=4, step=0.25):
    """Multiples of `step`, few enough that magnitudes are tied and sums cancel."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(
            step * rng.integers(-levels, levels + 1, size=shape), jnp.float32
        ),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def plus(tree, other):
    return jax.tree.map(lambda a, b: a + b, tree, other)
