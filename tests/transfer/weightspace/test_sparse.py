"""Sparse fine-tuning: exact counts, frozen bits, deltas that add in any order."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import jit
from transfer_models import moved, params_like, same_bits, tiny_model

from lt_mia_jax.training.transforms.mask import saliency_masked
from lt_mia_jax.transfer.weightspace.sparse import (
    compose,
    lt_mask,
    sparse_delta,
    trainable,
)
from lt_mia_jax.trees import flatten


def most_moved(theta1, theta0, k):
    """Places of the k largest distances, ties by position, from one long list."""
    places = [
        (-abs(float(a) - float(b)), order, path, index)
        for order, (path, leaf) in enumerate(flatten(theta0).items())
        if "norm" not in path
        and "mix_" not in path
        and path.split("/")[-1] not in ("bonus", "decay")
        for index, (a, b) in enumerate(
            zip(np.ravel(flatten(theta1)[path]), np.ravel(leaf), strict=True)
        )
    ]
    chosen = sorted(places)[:k]
    return {(path, index) for _, _, path, index in chosen}


def places(mask):
    return {
        (path, int(index))
        for path, leaf in flatten(mask).items()
        for index in np.flatnonzero(np.asarray(leaf))
    }


@pytest.mark.parametrize("k", [0, 100])
def test_exactly_so_many_entries_are_those_that_moved_most(k):
    theta0 = jax.tree.map(jnp.zeros_like, params_like(tiny_model("rwkv"), 0))
    # In steps of 1/64, so that many distances are equal.
    theta1 = jax.tree.map(
        lambda x: jnp.round(64 * x) / 64, params_like(tiny_model("rwkv"), 1, 0.05)
    )
    found = jit(partial(lt_mask, k=k))(theta1, theta0)
    assert places(found) == most_moved(theta1, theta0, k)


def test_rounds_add_up_to_one_mask():
    theta0 = params_like(tiny_model("llama"), 0)
    theta1 = moved(theta0, 1)
    first = lt_mask(theta1, theta0, 60)
    both = lt_mask(theta1, theta0, 40, taken=first)
    assert places(both) == most_moved(theta1, theta0, 100)
    other = moved(theta0, 2)
    further = lt_mask(other, theta0, 40, taken=first)
    assert len(places(further)) == 100
    assert places(first) < places(further)
    still = lt_mask(theta0, theta0, 5, taken=first)
    assert len(places(still)) == 65
    # What an earlier round chose elsewhere stays.
    head = lt_mask(theta1, theta0, 7, lambda path: path.startswith("head"), taken=first)
    assert places(first) <= places(head)
    assert len(places(head)) == 67


def test_only_what_is_included_and_no_more_than_there_is():
    theta0 = params_like(tiny_model("llama"), 0)
    theta1 = moved(theta0, 1)
    assert not trainable("periods/slot_0/mixer_norm/scale")
    size = theta0["head"]["kernel"].size
    found = lt_mask(theta1, theta0, size, lambda path: path.startswith("head"))
    assert bool(found["head"]["kernel"].all())
    assert len(places(found)) == size
    with pytest.raises(ValueError, match=f"but {size} entries"):
        lt_mask(theta1, theta0, size + 1, lambda path: path.startswith("head"))


def test_training_under_the_mask_moves_nothing_else():
    theta0 = params_like(tiny_model("llama"), 0)
    mask = lt_mask(moved(theta0, 1), theta0, 50)
    tx = saliency_masked(optax.adamw(0.1, weight_decay=0.5), mask)

    def train(params):
        state = tx.init(params)
        for seed in (2, 3):
            gradient = moved(jax.tree.map(jnp.zeros_like, params), seed, 1.0)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    theta2 = jit(train)(theta0)
    for path, leaf in flatten(theta2).items():
        kept = ~np.asarray(flatten(mask)[path])
        before = np.asarray(flatten(theta0)[path])
        assert np.asarray(leaf)[kept].tobytes() == before[kept].tobytes()
    delta = sparse_delta(theta2, theta0, mask)
    assert {p for p in places(jax.tree.map(lambda x: x != 0, delta))} == places(mask)
    for a, b in zip(
        jax.tree.leaves(compose(theta0, [delta])), jax.tree.leaves(theta2), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_deltas_compose_in_any_order_to_the_same_bits():
    theta0 = params_like(tiny_model("gpt2"), 0)["periods"]
    deltas = [moved(jax.tree.map(jnp.zeros_like, theta0), s, 10.0**s) for s in range(3)]
    results = [compose(theta0, order) for order in itertools.permutations(deltas)]
    for found in results[1:]:
        assert same_bits(found, results[0])
    for path, leaf in flatten(results[0]).items():
        parts = [np.asarray(flatten(t)[path], np.float64) for t in (theta0, *deltas)]
        np.testing.assert_allclose(leaf, sum(parts), rtol=1e-4, atol=1e-4)


def test_disjoint_masks_do_not_interact():
    theta0 = params_like(tiny_model("gpt2"), 0)["embedding"]
    one, two = moved(theta0, 1), moved(theta0, 2)
    mask = jax.tree.map(lambda x: x > 0, theta0)
    other = jax.tree.map(jnp.logical_not, mask)
    found = compose(
        theta0, [sparse_delta(one, theta0, mask), sparse_delta(two, theta0, other)]
    )
    for path, leaf in flatten(found).items():
        a, b, m = (np.asarray(flatten(t)[path]) for t in (one, two, mask))
        np.testing.assert_allclose(leaf, np.where(m, a, b), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_delta_changes_no_bit(dtype):
    theta0 = {"a": jnp.array([-0.0, 0.1, jnp.inf], dtype)}
    nothing = {"a": jnp.zeros(3)}
    assert same_bits(compose(theta0, []), theta0)
    assert same_bits(compose(theta0, [nothing, nothing]), theta0)
