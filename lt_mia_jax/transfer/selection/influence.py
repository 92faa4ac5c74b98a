"""A map of fixed size that stands for a team of any size.

Source: "Multi-agent transfer learning" with scenario-independent representations. Kept:
the map alone. Not kept: StarCraft, policies, curricula; the decay is ours.
"""

from collections.abc import Callable

import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float


def influence_map(
    positions: Float[Array, "N 2"],
    weights: Float[Array, "N"],
    shape: tuple[int, int],
    decay: Callable[[Array], Array] = lambda distance: jnp.exp(-distance),
) -> Float[Array, "height width"]:
    """`sum_a weight_a * decay(|cell - position_a|)` at every cell of a grid.

    Cell (r, c) is at the point (r, c). The result does not depend on the order of the
    agents, is linear in their weights, and has the same shape for any number of them.

    Example:
      >>> found = influence_map(jnp.array([[0.0, 1.0]]), jnp.array([2.0]), (1, 2))
      >>> [round(float(x), 3) for x in found[0]]
      [0.736, 2.0]
    """
    rows, columns = (jnp.arange(n, dtype=jnp.float32) for n in shape)
    down = rows[:, None, None] - positions[None, None, :, 0]
    across = columns[None, :, None] - positions[None, None, :, 1]
    return decay(jnp.hypot(down, across)) @ weights
