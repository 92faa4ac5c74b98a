"""Multi-agent transfer: a map of one size for teams of any size."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from lt_mia_jax.transfer.selection.influence import influence_map

SHAPE = (16, 16)


def run(seed: int) -> Outcome:
    """Teams of 1 to 20 agents: order, shape, linearity."""
    rng = np.random.default_rng(seed)
    order = linear = 0.0
    shapes = set()
    for agents in range(1, 21):
        team = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((agents, 2), (agents,)))
        shapes.add(jax.eval_shape(lambda p, w: influence_map(p, w, SHAPE), *team).shape)
    for agents in (1, 3, 20):
        places = jnp.asarray(rng.random((agents, 2)) * SHAPE, jnp.float32)
        first, second = jnp.asarray(rng.normal(size=(2, agents)), jnp.float32)
        found = influence_map(places, first, SHAPE)
        turn = rng.permutation(agents)
        turned = influence_map(places[turn], first[turn], SHAPE)
        order = max(order, float(abs(turned - found).max()))
        both = influence_map(places, 2 * first - second, SHAPE)
        apart = 2 * found - influence_map(places, second, SHAPE)
        linear = max(linear, float(abs(both - apart).max()))
    return Outcome(
        {"order error": order, "linearity error": linear, "shapes": len(shapes)},
        passed=shapes == {SHAPE} and order < 1e-4 and linear < 1e-4,
    )


DEMONSTRATION = Demonstration(
    "Multi-agent SIR",
    "The influence map has one shape for 1 to 20 agents; it does not depend on their "
    "order and is linear in their weights, to 1e-4.",
    run,
)
