"""Masks and frozen leaves: what must not move keeps every bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_zoo import LanguageModel, configs
from oracle_transforms import flat
from quick_compile import jit, run
from transform_cases import adamw, assert_same, some, tree

from lt_mia_jax.errors import InputError
from lt_mia_jax.unlearning.transforms import (
    combine_forget_retain,
    ema_teacher,
    ewc_pull,
    fisher_masked,
    freeze,
    layer_mask,
    saliency_masked,
)


def bits(tree):
    return [np.asarray(x).view(np.uint32) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("kind", ["saliency", "fisher"])
def test_masked_parameters_keep_every_bit(kind):
    params = tree(0)
    params["a"] = params["a"].at[0].set(-0.0)
    mask = some(tree(5))
    mask["a"] = mask["a"].at[0].set(False)
    inner = adamw()
    if kind == "saliency":
        tx = saliency_masked(inner, mask)
    else:
        fisher = jax.tree.map(lambda m: m.astype(jnp.float32), mask)
        share = 1 - np.mean(flat(mask))
        tx = fisher_masked(inner, quantile=share, fisher=fisher)
    # Momentum of earlier, unmasked steps.
    prior = inner.init(params)
    for seed in range(3):
        _, prior = inner.update(tree(10 + seed), prior, params)
    state = tx.init(params)._replace(inner=prior)
    assert_same(state.mask, mask)

    @jit
    def step(params, state, g):
        u, state = tx.update(g, state, params)
        return optax.apply_updates(params, u), state

    moved = params
    for seed in range(50):
        moved, state = step(moved, state, tree(20 + seed))
    for old, new, m in zip(
        bits(params), bits(moved), jax.tree.leaves(mask), strict=True
    ):
        np.testing.assert_array_equal(old[~np.asarray(m)], new[~np.asarray(m)])
        assert (old[np.asarray(m)] != new[np.asarray(m)]).all()
    # Masking the gradient alone is not enough.
    u, _ = inner.update(
        jax.tree.map(lambda m, g: jnp.where(m, g, 0.0), mask, tree(20)), prior, params
    )
    assert np.abs(flat(u)[~flat(mask).astype(bool)]).max() > 1e-3


def test_a_fisher_quantile_moves_the_chosen_share():
    params, g = tree(0), tree(1)
    n, size = flat(g).size, np.abs(flat(g))
    for quantile in (0.25, 0.9):
        still = n - round((1 - quantile) * n)
        limit = np.sort(size)[still]
        tx = fisher_masked(optax.sgd(1.0), quantile=quantile)
        u, _ = tx.update(g, tx.init(params), params)
        np.testing.assert_array_equal(flat(u), np.where(size >= limit, -flat(g), 0))
        spare = fisher_masked(
            optax.sgd(1.0),
            quantile=quantile,
            fisher=jax.tree.map(jnp.square, g),
            move="smallest",
        )
        u, _ = spare.update(g, spare.init(params), params)
        limit = np.sort(size)[n - round(quantile * n)]
        np.testing.assert_array_equal(flat(u), np.where(size < limit, -flat(g), 0))
    with pytest.raises(ValueError, match="quantile"):
        fisher_masked(optax.sgd(1.0), quantile=1.0)
    with pytest.raises(ValueError, match="not booleans: \\['a'\\]"):
        saliency_masked(optax.sgd(1.0), {"a": jnp.ones(3)})


def test_frozen_leaves_stand_still_and_have_no_moments():
    params = tree(0)
    params["a"] = params["a"].at[0].set(-0.0)
    tx = freeze(optax.chain(combine_forget_retain(), adamw()), ["b/d"])
    state = tx.init(params)
    trained = params["b"]["d"]
    sizes = [x.size for x in jax.tree.leaves(state) if x.ndim]
    assert sizes == [trained.size] * 2
    # Inside, both gradients are cut alike: the same as training that leaf alone.
    alone = optax.chain(combine_forget_retain(), adamw())
    other = alone.init(trained)
    update, update_alone = jit(tx.update), jit(alone.update)
    for seed in range(3):
        g, r = tree(1 + seed), tree(10 + seed)
        u, state = update(g, state, params, retain_grads=r)
        v, other = update_alone(g["b"]["d"], other, trained, retain_grads=r["b"]["d"])
        assert_same(u["b"]["d"], v)
    moved = optax.apply_updates(params, u)
    np.testing.assert_array_equal(bits(moved["a"]), bits(params["a"]))
    np.testing.assert_array_equal(bits(moved["b"]["c"]), bits(params["b"]["c"]))


def test_other_ways_to_freeze_are_refused_or_work():
    params, r = tree(0), tree(1)
    labels = {"a": "hold", "b": {"c": "hold", "d": "train"}}
    parts = {
        "train": optax.chain(combine_forget_retain(), adamw()),
        "hold": optax.set_to_zero(),
    }
    plain = optax.partition(parts, labels)
    with pytest.raises(ValueError, match="another tree than the gradients"):
        plain.update(tree(2), plain.init(params), params, retain_grads=r)
    cut = optax.partition(parts, labels, mask_compatible_extra_args=True)
    u, _ = cut.update(tree(2), cut.init(params), params, retain_grads=r)
    tx = freeze(parts["train"], lambda path: path == "b/d")
    v, _ = tx.update(tree(2), tx.init(params), params, retain_grads=r)
    assert_same(u, v)
    with pytest.raises(InputError, match="match no parameter"):
        freeze(adamw(), ["c/*"]).init(params)
    with pytest.raises(InputError, match="no parameter is trainable"):
        freeze(adamw(), lambda path: False).init(params)


def test_arrays_for_all_parameters_may_be_given_inside_a_freeze():
    params, mask = tree(0), some(tree(1))
    inner = optax.chain(ewc_pull(1.0, tree(2)), adamw(), ema_teacher(0.9, mask))
    tx = freeze(saliency_masked(inner, mask), ["b/*"])
    u, state = run(tx, tree(3), tx.init(params), params)
    alone = saliency_masked(
        optax.chain(ewc_pull(1.0, tree(2)["b"]), adamw(), ema_teacher(0.9, mask["b"])),
        mask["b"],
    )
    v, _ = run(alone, tree(3)["b"], alone.init(params["b"]), params["b"])
    assert_same(u["b"], v)
    assert not flat(u["a"]).any()
    sizes = {x.size for x in jax.tree.leaves(state)}
    assert params["a"].size not in sizes
    with pytest.raises(ValueError, match="does not fit"):
        saliency_masked(inner, jax.tree.map(lambda m: m[:1, None], mask)).init(params)


def test_layers_are_chosen_along_the_leading_axis():
    params = {
        "embedding": {"tokens": jnp.zeros((7, 4))},
        "periods": {
            "slot_0": {
                "up": {"kernel": jnp.zeros((3, 4, 8))},
                "mix": jnp.zeros((3, 4)),
            },
            "slot_1": {"up": {"kernel": jnp.zeros((3, 4, 8))}},
        },
        "tail_0": {"up": {"kernel": jnp.zeros((4, 8))}},
    }
    mask = layer_mask(params, ["*/up/kernel"], (1, 2, 6))
    ups = mask["periods"]
    assert ups["slot_0"]["up"]["kernel"].shape == (3, 1, 1)
    found = {
        period * 2 + slot
        for slot in (0, 1)
        for period in range(3)
        if ups[f"slot_{slot}"]["up"]["kernel"][period, 0, 0]
    }
    assert found == {1, 2}
    assert mask["tail_0"]["up"]["kernel"].all()
    assert not mask["embedding"]["tokens"].any()
    assert not ups["slot_0"]["mix"].any()
    tx = saliency_masked(optax.sgd(1.0), mask)
    g = jax.tree.map(jnp.ones_like, params)
    u, _ = tx.update(g, tx.init(params), params)
    moving = flat(u["periods"]["slot_0"]["up"]["kernel"]).reshape(3, -1)
    assert (moving != 0).all(axis=1).tolist() == [False, True, False]
    assert (moving != 0).any(axis=1).tolist() == [False, True, False]
    with pytest.raises(InputError, match="belong to no layer"):
        layer_mask(params, ["*"], (0,))
    with pytest.raises(InputError, match=r"layers \[7\] do not exist; the model has 7"):
        layer_mask(params, ["*/up/kernel"], (6, 7))
    with pytest.raises(InputError, match="match no parameter"):
        layer_mask(params, ["*/down/kernel"], (0,))


@pytest.mark.parametrize("name", ["llama", "griffin-preset"])
def test_layers_of_a_model(name):
    shapes = LanguageModel(configs()[name]).shapes()
    mask = layer_mask(shapes, ["*/feed_forward/*kernel"], (1,))
    shares = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(m.mean())
        for path, m in jax.tree_util.tree_leaves_with_path(mask)
    }
    moving = {path: share for path, share in shares.items() if share}
    assert len(moving) == 3
    stacked = name == "llama"
    first = "periods/slot_0" if stacked else "tail_1"
    assert all(path.startswith(f"{first}/feed_forward/") for path in moving)
    assert set(moving.values()) == {0.5 if stacked else 1.0}
