"""RegLoRA against loops over matrices in float64, and its gradient by autodiff."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle_transforms import flat
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.training.transforms.contract import monitored
from lt_mia_jax.transfer.adapt import reglora
from lt_mia_jax.transfer.adapt.reglora import (
    add_reglora,
    reglora_mask,
    reglora_penalty,
    union,
)


def adapters(seed):
    """A stack of three layers, and a matrix alone."""
    rng = np.random.default_rng(seed)
    shapes = {
        "periods/up/kernel": ((3, 6, 2), (3, 2, 5)),
        "head/kernel": ((6, 2), (2, 8)),
    }
    return {
        name: tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in pair)
        for name, pair in shapes.items()
    }


def matrices(pairs):
    """Each product by name and layer, float64."""
    found = {}
    for name, (a, b) in pairs.items():
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        layers = zip(a, b, strict=True) if a.ndim == 3 else [(a, b)]
        for layer, (x, y) in enumerate(layers):
            found[name, layer] = x @ y
    return found


def layer_of(mask, name, layer):
    chosen = np.asarray(mask[name])
    return chosen[layer] if chosen.ndim == 3 else chosen


def penalty(pairs, sets):
    """The mean over matrices of the mean magnitude in sets of index pairs."""
    total = 0.0
    for key, product in matrices(pairs).items():
        inside = [abs(product[i, j]) for i, j in sets[key]]
        total += np.mean(inside) if inside else 0.0
    return total / len(matrices(pairs))


def as_sets(mask, pairs):
    return {
        key: set(zip(*np.nonzero(layer_of(mask, *key)), strict=True))
        for key in matrices(pairs)
    }


def test_the_largest_entries_of_each_matrix_are_marked():
    pairs = adapters(0)
    mask = reglora_mask(pairs, 0.2)
    for (name, layer), product in matrices(pairs).items():
        size = np.abs(product)
        kept = round(0.2 * size.size)
        expected = size >= np.sort(size, axis=None)[-kept]
        assert expected.sum() == kept
        np.testing.assert_array_equal(layer_of(mask, name, layer), expected)
    # Adapters that changed nothing protect nothing.
    still = {n: (a, jnp.zeros_like(b)) for n, (a, b) in pairs.items()}
    assert not flat(reglora_mask(still, 0.2)).any()
    assert not flat(reglora_mask(pairs, 0.0)).any()
    with pytest.raises(InputError, match=r"frac = 1.2, expected 0 to 1"):
        reglora_mask(pairs, 1.2)


def test_an_entry_of_two_tasks_counts_once():
    """Joined lists of indices, as released, would count it twice."""
    pairs = adapters(0)
    first, second = reglora_mask(adapters(1), 0.2), reglora_mask(adapters(2), 0.3)
    both = union(first, second)
    sets = {k: s | as_sets(second, pairs)[k] for k, s in as_sets(first, pairs).items()}
    assert as_sets(both, pairs) == sets
    np.testing.assert_allclose(
        reglora_penalty(pairs, both), penalty(pairs, sets), rtol=1e-5
    )
    lists = {
        k: [*s, *as_sets(second, pairs)[k]] for k, s in as_sets(first, pairs).items()
    }
    assert abs(penalty(pairs, lists) - penalty(pairs, sets)) > 1e-3
    twice = union(both, both)
    np.testing.assert_array_equal(flat(twice), flat(both))
    alone = union({"head/kernel": first["head/kernel"]}, second)
    np.testing.assert_array_equal(
        alone["periods/up/kernel"], second["periods/up/kernel"]
    )


def test_the_gradient_is_that_of_the_penalty():
    pairs, mask, g = adapters(0), reglora_mask(adapters(1), 0.2), adapters(2)
    # An empty set in one layer, and a matrix without a mask.
    mask["periods/up/kernel"] = mask["periods/up/kernel"].at[1].set(False)
    sets = as_sets(mask, pairs)
    for chosen in (mask, {"head/kernel": mask["head/kernel"]}):
        tx = add_reglora(chosen, 25.0)
        u, state = jit(tx.update)(g, tx.init(pairs), pairs)
        slope = jax.grad(lambda p, m=chosen: 25.0 * reglora_penalty(p, m))(pairs)
        np.testing.assert_allclose(flat(u), flat(g) + flat(slope), rtol=1e-4, atol=1e-5)
        here = {key: s if key[0] in chosen else set() for key, s in sets.items()}
        found = monitored(state)["reglora_penalty"]
        np.testing.assert_allclose(found, penalty(pairs, here), rtol=1e-5)


def test_a_strong_penalty_moves_the_product_elsewhere():
    pairs, mask = adapters(0), reglora_mask(adapters(1), 0.1)
    target = adapters(3)
    wanted = {n: jnp.matmul(*pair) for n, pair in target.items()}

    def loss(p):
        return sum(jnp.mean((jnp.matmul(*p[n]) - wanted[n]) ** 2) for n in p)

    def trained(lam):
        tx = optax.chain(add_reglora(mask, lam), optax.adam(0.02))

        def step(_, carry):
            u, state = tx.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
            return optax.apply_updates(carry[0], u), state

        return jit(lambda c: jax.lax.fori_loop(0, 300, step, c))(
            (pairs, tx.init(pairs))
        )[0]

    free, held = trained(0.0), trained(50.0)
    assert reglora_penalty(held, mask) < 0.1 * reglora_penalty(free, mask)


def test_masks_of_a_model_fit_its_adapters_and_no_others():
    model = LanguageModel(gpt2_like(16, width=8, layers=2, heads=2, context=8))
    params = jax.tree.map(lambda x: jnp.ones(x.shape), model.shapes())
    config = LoraConfig(rank=2)
    pairs = lora.init(jax.random.key(1), params, config)
    pairs = jax.tree.map(lambda x: x + 0.1, pairs)
    tx = add_reglora(reglora_mask(pairs))
    tx.init(pairs)
    other = lora.init(
        jax.random.key(1), params, LoraConfig(targets=("*/feed_forward/*kernel",))
    )
    with pytest.raises(InputError, match="fits no adapter"):
        tx.init(other)
    with pytest.raises(InputError, match=r"the mask \[2, 2\] of head/kernel fits"):
        add_reglora({"head/kernel": jnp.ones((2, 2), bool)}).init(adapters(0))


def test_examples():
    found = doctest.testmod(reglora)
    assert found.attempted > 5
    assert not found.failed
