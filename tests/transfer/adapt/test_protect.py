"""Fisher pulls, damping, masks and the masked mean, against flat float64 vectors."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle_transforms import flat
from quick_compile import jit
from transform_cases import DTYPES, SPECS, assert_same, some, tree

from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.training import fisher as information
from lt_mia_jax.training.fisher import diagonal_fisher, dmg, running_fisher
from lt_mia_jax.training.transforms.anchor import ema_teacher
from lt_mia_jax.training.transforms.mask import freeze, mask_updates
from lt_mia_jax.transfer.adapt import protect
from lt_mia_jax.transfer.adapt.protect import (
    fisher_damp,
    fisher_mask,
    fisher_pull,
    masked_ema,
)


def square(seed):
    return jax.tree.map(jnp.square, tree(seed))


def test_the_pull_is_the_gradient_of_the_published_penalty():
    params, anchor, fisher, g = tree(0), tree(1), square(2), tree(3)
    tx = fisher_pull(fisher, anchor, 0.7)
    u, _ = tx.update(g, tx.init(params), params)
    p, a, f = flat(params), flat(anchor), flat(fisher)

    def penalty(x):
        return 0.7 * np.sum(f * (x - a) ** 2)

    for index in (0, 17, 100):
        e = np.eye(p.size)[index] * 1e-4
        slope = (penalty(p + e) - penalty(p - e)) / 2e-4
        np.testing.assert_allclose(flat(u)[index] - flat(g)[index], slope, rtol=1e-3)


def test_damping_divides_by_importance_relative_to_the_mean():
    params, fisher, g = tree(0), square(2), tree(3)
    tx = fisher_damp(fisher, 1.5)
    u, _ = tx.update(g, tx.init(params))
    f = flat(fisher)
    np.testing.assert_allclose(
        flat(u), flat(g) / (1 + 1.5 * f / f.mean()), rtol=1e-5, atol=1e-7
    )
    # The scale of the information does not matter; none of it damps nothing.
    scaled = fisher_damp(jax.tree.map(lambda x: 1e6 * x, fisher), 1.5)
    v, _ = scaled.update(g, scaled.init(params))
    np.testing.assert_allclose(flat(v), flat(u), rtol=1e-5)
    none = fisher_damp(jax.tree.map(jnp.zeros_like, params), 1.5)
    assert_same(none.update(g, none.init(params))[0], g)
    # An axis of size 1 stands for the whole axis.
    wide = {**fisher, "a": jnp.broadcast_to(fisher["a"][:, :1], (8, 4))}
    narrow = {**fisher, "a": fisher["a"][:, :1]}
    w, n = (fisher_damp(x, 1.5) for x in (wide, narrow))
    assert_same(
        w.update(g, w.init(params))[0], n.update(g, n.init(params))[0], rtol=1e-6
    )
    # Under `freeze` the mean is over the weights that are trained.
    held = freeze(fisher_damp(fisher, 1.5), ["b/d"])
    h, _ = held.update(g, held.init(params), params)
    f = flat(fisher["b"]["d"])
    np.testing.assert_allclose(
        flat(h["b"]["d"]), flat(g["b"]["d"]) / (1 + 1.5 * f / f.mean()), rtol=1e-5
    )


def test_damage_predicts_the_loss_of_the_protected_task():
    """Softmax regression at its optimum: the information is the curvature."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.eye(4)[rng.integers(4, size=512)], jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=(4,)), jnp.float32)}
    p_one = 1 / (1 + np.exp(-np.asarray(x @ params["w"])))
    # Soft labels: the model is exactly right, so that the optimum is here.
    weight = np.concatenate([p_one, 1 - p_one])
    texts = (
        jnp.concatenate([x, x]),
        jnp.concatenate([jnp.ones(512), jnp.zeros(512)]),
        jnp.asarray(weight, jnp.float32),
    )

    def nll(params, batch):
        logit = batch[0] @ params["w"]
        return jax.nn.softplus(logit) - batch[1] * logit

    fisher = diagonal_fisher(nll, params, [texts], row_weight=lambda b: b[2])
    # The squared score of a logistic model is p (1 - p) x^2, averaged.
    expected = np.mean((p_one * (1 - p_one))[:, None] * np.asarray(x) ** 2, axis=0)
    np.testing.assert_allclose(fisher["w"], expected, rtol=1e-4)

    def loss(params):
        return jnp.sum(texts[2] * nll(params, texts)) / 512

    step = {"w": jnp.asarray(0.05 * rng.normal(size=4), jnp.float32)}
    rise = loss(optax.apply_updates(params, step)) - loss(params)
    np.testing.assert_allclose(dmg(step, fisher), rise, rtol=0.05)
    # Squaring the mean gradient of a batch, as some releases do, sees nothing here.
    assert flat(jax.grad(loss)(params)).max() ** 2 < 1e-6 * expected.min()


def test_information_of_earlier_tasks_decays():
    trees = [square(seed) for seed in range(4)]
    total = None
    for new in trees:
        total = running_fisher(total, new, 0.9)
    expected = sum(0.9 ** (3 - k) * flat(new) for k, new in enumerate(trees))
    np.testing.assert_allclose(flat(total), expected, rtol=1e-5)


def test_the_mask_protects_the_share_with_most_information():
    fisher = square(2)
    f = np.sort(flat(fisher))
    for q in (0.25, 0.9):
        kept = round((1 - q) * f.size)
        expected = flat(fisher) >= f[f.size - kept]
        np.testing.assert_array_equal(flat(fisher_mask(fisher, q)), expected)
    # Weights that no text touches are not protected, and nothing is at q = 1.
    sparse = jax.tree.map(lambda x: jnp.where(x > 2, x, 0.0), fisher)
    np.testing.assert_array_equal(flat(fisher_mask(sparse, 0.25)), flat(sparse) > 0)
    assert not flat(fisher_mask(fisher, 1.0)).any()


def test_a_full_mask_keeps_every_bit_and_an_empty_one_is_the_plain_mean():
    teacher, student = tree(0, dtypes=DTYPES), tree(1, dtypes=DTYPES)
    teacher["a"] = teacher["a"].at[0].set(-0.0)
    held = masked_ema(teacher, student, jax.tree.map(jnp.isfinite, teacher))
    assert_same(held, teacher)
    assert np.signbit(np.asarray(held["a"][0])).all()
    mask = some(tree(2))
    moved = masked_ema(teacher, student, mask, eta=0.75)
    t, s, m = flat(teacher), flat(student), flat(mask)
    expected = m * t + (1 - m) * (0.75 * t + 0.25 * s)
    np.testing.assert_allclose(flat(moved), expected, rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(flat(moved["a"]), expected[:32], rtol=1e-5, atol=1e-6)
    # `ema_teacher` is the same mean, under the opposite mask.
    tx = ema_teacher(0.75, jax.tree.map(jnp.logical_not, mask))
    start, end = tree(3), tree(4)
    u = jax.tree.map(jnp.subtract, end, start)
    _, state = tx.update(u, tx.init(start), start)
    assert_same(state.teacher, masked_ema(start, end, mask, eta=0.75), rtol=1e-5)


def test_frozen_weights_keep_every_bit_only_behind_weight_decay():
    params, mask = tree(0), some(tree(5))
    params["a"] = params["a"].at[0].set(-0.0)
    mask["a"] = mask["a"].at[0].set(False)

    def moved(tx):
        @jit
        def step(params, state, g):
            u, state = tx.update(g, state, params)
            return optax.apply_updates(params, u), state

        found, state = params, tx.init(params)
        for seed in range(5):
            found, state = step(found, state, tree(10 + seed))
        pairs = zip(*map(jax.tree.leaves, (found, params, mask)), strict=True)
        return [
            (
                np.asarray(x).view(np.uint32)[~np.asarray(m)]
                != np.asarray(y).view(np.uint32)[~np.asarray(m)]
            ).any()
            for x, y, m in pairs
        ]

    assert not any(moved(optax.chain(optax.adamw(0.1), mask_updates(mask))))
    assert all(moved(optax.chain(mask_updates(mask), optax.adamw(0.1))))
    with pytest.raises(ValueError, match="mask_updates: not booleans: \\['a'\\]"):
        mask_updates({"a": jnp.ones(3)})


def test_shards_stay_where_they_are():
    place = jax.tree.map(
        lambda s: NamedSharding(make_mesh(1, 4), s),
        SPECS,
        is_leaf=lambda s: isinstance(s, P),
    )

    @jit
    def everything(fisher, teacher, student):
        mask = fisher_mask(fisher, 0.5)
        return mask, masked_ema(teacher, student, mask), dmg(student, fisher)

    plain = square(0), tree(1), tree(2)
    expected = everything(*plain)
    found = everything(*(jax.device_put(x, place) for x in plain))
    assert_same(found[0], expected[0])
    assert_same(found[1:], expected[1:], rtol=1e-5, atol=1e-7)
    for x, s in zip(jax.tree.leaves(found[1]), jax.tree.leaves(place), strict=True):
        assert x.sharding.is_equivalent_to(s, x.ndim)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: fisher_pull(x, x, -1.0),
        lambda x: fisher_damp(x, -1.0),
        lambda x: fisher_mask(x, 1.5),
        lambda x: masked_ema(x, x, x > 0, 1.5),
        lambda x: running_fisher(x, x, float("nan")),
    ],
)
def test_settings_outside_their_ranges_are_refused(call):
    with pytest.raises(ValueError, match="expected 0"):
        call(jnp.ones(2))


@pytest.mark.parametrize("module", [protect, information])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 1
    assert not found.failed
