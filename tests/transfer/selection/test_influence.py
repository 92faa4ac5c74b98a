"""Influence maps: a loop over cells, order, linearity, size."""

import doctest
import math

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.transfer.selection import influence
from lt_mia_jax.transfer.selection.influence import influence_map

SHAPE = (4, 5)


def team(agents, seed=0):
    rng = np.random.default_rng(seed)
    position = jnp.asarray(rng.random((agents, 2)) * SHAPE, jnp.float32)
    return position, jnp.asarray(rng.normal(size=agents), jnp.float32)


def test_the_map_equals_a_loop_over_cells_and_agents():
    positions, weights = team(6)
    expected = np.zeros(SHAPE)
    for (r, c), _ in np.ndenumerate(expected):
        for (a, b), w in zip(positions, weights, strict=True):
            expected[r, c] += w * math.exp(-math.dist((r, c), (a, b)))
    np.testing.assert_allclose(influence_map(positions, weights, SHAPE), expected, 1e-4)


def test_order_of_agents_and_scale_of_weights():
    positions, weights = team(7)
    plain = influence_map(positions, weights, SHAPE)
    order = np.random.default_rng(1).permutation(7)
    turned = influence_map(positions[order], weights[order], SHAPE)
    np.testing.assert_allclose(turned, plain, atol=1e-5)
    other = team(7, seed=5)[1]
    both = influence_map(positions, 2 * weights - other, SHAPE)
    alone = influence_map(positions, other, SHAPE)
    np.testing.assert_allclose(both, 2 * plain - alone, atol=1e-5)


def test_teams_of_any_size_have_maps_of_one_shape():
    for agents in (0, 1, 3, 20):
        assert influence_map(*team(agents), SHAPE).shape == SHAPE
    np.testing.assert_array_equal(influence_map(*team(0), SHAPE), np.zeros(SHAPE))


def test_the_decay_is_a_choice():
    positions, weights = team(3)
    near = influence_map(
        positions, weights, SHAPE, lambda d: (d < 100).astype(jnp.float32)
    )
    np.testing.assert_allclose(near, np.full(SHAPE, weights.sum()), rtol=1e-5)


def test_examples_run():
    assert doctest.testmod(influence).failed == 0
