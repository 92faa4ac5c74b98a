"""Exactly so many of the largest magnitudes, ties in order; differences unmade."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle_transforms import flat
from quick_compile import jit

from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.training import threshold
from lt_mia_jax.training.threshold import (
    difference,
    exactly,
    selection,
    threshold_bits,
)


def first_largest(scores, kept):
    """Flat mask of the largest magnitudes: a stable sort, so ties keep their order."""
    order = np.argsort(-np.abs(np.float64(flat(scores))), kind="stable")
    mask = np.zeros(order.size, bool)
    mask[order[:kept]] = True
    return mask


def levels(seed, count=3):
    """A tree whose magnitudes are few, so that most are tied; zeros of both signs."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        values = rng.integers(-count, count + 1, size=shape) * 0.375
        return jnp.asarray(np.where(values == 0, rng.choice([0.0, -0.0]), values))

    return {"a": leaf((5, 4)), "b": {"c": leaf(7), "d": leaf((2, 3, 4))}}


@pytest.mark.parametrize("seed", range(2))
def test_ties_are_broken_by_position_and_the_count_is_exact(seed):
    tree = levels(seed)
    size = flat(tree).size
    chosen = jit(selection, static_argnums=1)
    masked = jit(exactly)
    for kept in (0, 1, 9, 17, 30, size - 1, size):
        mask = flat(masked(tree, chosen(tree, kept)))
        assert mask.sum() == kept
        np.testing.assert_array_equal(mask, first_largest(tree, kept))


def test_the_host_counts_what_a_compiled_program_counts(monkeypatch):
    monkeypatch.setattr(threshold, "_CHUNK", 8)  # leaves of several parts
    rng = np.random.default_rng(6)
    one = {"a": jnp.asarray(rng.normal(size=(9, 5)), jnp.bfloat16), "b": levels(7)}
    other = {"a": jnp.zeros((9, 5), jnp.bfloat16), "b": levels(8)}
    compiled = jit(selection, static_argnums=1)
    for minus in (None, other):
        for kept in (1, 7, 50, 95, 96):
            found = selection(one, kept, minus)
            jax.tree.map(
                np.testing.assert_array_equal, found, compiled(one, kept, minus)
            )
            seen = one if minus is None else jax.tree.map(difference, one, minus)
            np.testing.assert_array_equal(
                flat(exactly(seen, found)), first_largest(seen, kept)
            )


def test_differences_have_the_threshold_of_the_tree_that_holds_them():
    one, other = levels(3, count=40), levels(4, count=40)
    tau = jax.tree.map(lambda x, y: x - y, one, other)
    for kept in (1, 13, 40):
        assert int(threshold_bits(one, kept, other)) == int(threshold_bits(tau, kept))
        mask = exactly(tau, selection(one, kept, other))
        np.testing.assert_array_equal(flat(mask), first_largest(tau, kept))
    with pytest.raises(ValueError, match="kept = 52, expected 0 to 51"):
        selection(one, 52, other)


def test_the_same_elements_of_sharded_trees():
    mesh = make_mesh(1, 4)
    tree = {"a": levels(5)["b"]["d"].reshape(8, 3), "b": jnp.full((4, 4), 0.375)}
    places = {"a": P("fsdp"), "b": P(None, "fsdp")}
    spread = {
        name: jax.device_put(leaf, NamedSharding(mesh, places[name]))
        for name, leaf in tree.items()
    }
    for kept in (6, 20, 30):
        mask = exactly(spread, selection(spread, kept))
        np.testing.assert_array_equal(flat(mask), first_largest(tree, kept))
