"""Small parameter trees."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {"a": (8, 4), "b": {"c": (4,), "d": (4, 8, 4)}}


def tree(seed, *front, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(
            scale * rng.normal(size=(*front, *shape)), jnp.float32
        ),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )
