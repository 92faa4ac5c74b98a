from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import configs, random_ids, random_params
from quick_compile import jit

from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.config import LoraConfig
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.transfer.adapt import pool as pools
from lt_mia_jax.trees import flatten

S, E = 5, 16
CONFIG = LoraConfig(rank=2)


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@cache
def world(family="gpt2"):
    config = configs()[family]
    model, params = LanguageModel(config), random_params(config)
    fresh = jit(lambda k: pools.pool_init(k, params, CONFIG, slots=S))(
        jax.random.key(0)
    )
    leaves, tree = jax.tree.flatten(fresh)
    random = [0.3 * numbers(*x.shape, seed=i) for i, x in enumerate(leaves)]
    return model, params, fresh, jax.tree.unflatten(tree, random)


def cosine(a, b):
    a, b = np.float64(a), np.float64(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("usage", [None, [0.0, 2.0, 0.0, 7.0, 1.0]])
def test_selection_equals_its_definition(usage):
    keys, query = numbers(S, E), numbers(40, E, seed=1)
    given = None if usage is None else jnp.array(usage)
    index, found = jit(pools.select)(keys, query, given)
    for row in range(40):
        cosines = np.array([cosine(query[row], key) for key in keys])
        score = cosines
        if usage is not None:
            score = (cosines + 1) / 2 * (1 / (np.array(usage) + 1e-6))
        assert index[row] == np.argmax(score)
        np.testing.assert_allclose(found[row], cosines[index[row]], rtol=1e-4)
    assert len(set(np.asarray(index).tolist())) == (S if usage is None else 2)


def test_the_one_hot_gather_is_indexing():
    _, _, _, pool = world()
    index = jnp.array([3, 0, 0, 4, S])
    found = jit(pools.pool_lora)(pool, index)
    assert sorted(found) == sorted(pool.adapters)
    for name, pair in pool.adapters.items():
        for own, leaf in zip(found[name], pair, strict=True):
            assert (own[:4] == np.asarray(leaf)[np.asarray(index[:4])]).all()
            assert (own[4] == 0).all()


@pytest.mark.parametrize("family", ["gpt2", "griffin-preset"])
def test_each_text_has_its_own_adapter(family):
    model, params, _, pool = world(family)
    ids, index = random_ids(shape=(3, 6)), jnp.array([4, 1, S])
    routed = pools.Routed(model, scale=1.5)
    found = jit(routed.apply)({"base": params, "pool": pool}, ids, index)
    merged = jit(lambda p, a: model.apply(lora.merge(p, a, 1.5), ids))
    for row, slot in enumerate((4, 1)):
        own = jax.tree.map(lambda leaf, slot=slot: leaf[slot], pool.adapters)
        expected = merged(params, own)[row]
        np.testing.assert_allclose(found[row], expected, rtol=1e-3, atol=1e-4)
        assert np.abs(found[row] - found[2]).max() > 0.1


def test_the_reserved_slot_and_a_new_pool_are_the_base_bit_for_bit():
    model, params, fresh, pool = world()
    ids = random_ids()
    apply = jax.jit(pools.Routed(model).apply)
    base = jax.jit(model.apply)(params, ids)
    reserved = apply({"base": params, "pool": pool}, ids, jnp.array([S, S]))
    assert (reserved == base).all()
    new = apply({"base": params, "pool": fresh}, ids, jnp.array([0, 3]))
    assert (new == base).all()


def test_the_gradient_reaches_the_picked_slots_only():
    model, params, _, pool = world()
    ids, index = random_ids(), jnp.array([1, 3])

    def loss(pool):
        logits = pools.Routed(model).apply({"base": params, "pool": pool}, ids, index)
        return jnp.square(logits).mean() + pools.pull_loss(
            pool.keys, numbers(2, E, seed=7), index
        )

    gradient = jit(jax.grad(loss))(pool)
    for leaf in jax.tree.leaves(gradient):
        moved = np.abs(np.asarray(leaf)).reshape(S, -1).max(axis=1) > 0
        assert moved.tolist() == [False, True, False, True, False]


def test_the_pull_is_minus_the_mean_cosine():
    keys, query, index = numbers(S, E), numbers(3, E, seed=1), jnp.array([2, 2, 0])
    expected = -np.mean([cosine(query[b], keys[k]) for b, k in enumerate(index)])
    np.testing.assert_allclose(pools.pull_loss(keys, query, index), expected, rtol=1e-5)


def test_usage_counts_texts_without_the_reserved_slot():
    usage = np.array([1.0, 0.0, 2.0])
    for b in (index := [2, 0, 2, 3, 3]):
        if b < 3:
            usage[b] += 1
    found = pools.update_usage(jnp.array([1.0, 0.0, 2.0]), jnp.array(index))
    np.testing.assert_array_equal(found, usage)


def test_queries_are_means_over_the_prompt():
    _, params, _, _ = world()
    ids = random_ids(shape=(2, 5))
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], bool)
    table = np.float64(params["embedding"]["tokens"])
    expected = [table[ids[0, :2]].mean(axis=0), table[ids[1, :4]].mean(axis=0)]
    found = pools.text_query(params, ids, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_routing_takes_the_nearest_key_or_the_base():
    _, _, _, pool = world()
    reserved = numbers(E, seed=9)
    near = jnp.stack([pool.keys[2], reserved, 3 * pool.keys[4]]) + 0.01
    found = pools.route(pool, near, reserved)
    assert found.tolist() == [2, S, 4]


def test_a_new_pool():
    _, params, fresh, _ = world()
    assert fresh.keys.shape == (S, E)
    assert -1 <= float(fresh.keys.min()) < -0.8
    assert 0.8 < float(fresh.keys.max()) < 1
    kernels = {n: x for n, x in flatten(params).items() if n.endswith("kernel")}
    assert sorted(fresh.adapters) == sorted(kernels)
    for name, (a, b) in fresh.adapters.items():
        *stacked, inputs, outputs = kernels[name].shape
        assert a.shape == (S, *stacked, inputs, 2)
        assert b.shape == (S, *stacked, 2, outputs)
        assert (b == 0).all()
        assert np.abs(a[0] - a[1]).max() > 0
