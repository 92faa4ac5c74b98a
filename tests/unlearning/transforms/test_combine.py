"""Combinations of both gradients, and accumulating them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle_transforms import adaptive_weights, dual_multipliers, flat
from quick_compile import jit, run
from transform_cases import assert_same, quadratic, tree

from lt_mia_jax.unlearning.transforms import (
    adaptive_combine,
    ascend,
    combine_forget_retain,
    dual_combine,
    monitored,
)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(0.1)])
def test_ascent_on_a_loss_is_descent_on_its_negative(optimizer):
    targets = jnp.array([0, 2, 1])

    def nll(params):
        logits = jnp.tanh(params["x"]) @ params["w"]
        return -jax.nn.log_softmax(logits)[jnp.arange(3), targets].mean()

    rng = np.random.default_rng(0)
    start = {
        "x": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "w": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32),
    }
    one = optax.chain(ascend(), optimizer)

    @jit
    def two_steps(a, b, state, other):
        u, state = one.update(jax.grad(nll)(a), state, a)
        v, other = optimizer.update(jax.grad(lambda p: -nll(p))(b), other, b)
        return u, v, state, other, nll(optax.apply_updates(a, u))

    a, b, state, other = start, start, one.init(start), optimizer.init(start)
    losses = [float(nll(a))]
    for _ in range(5):
        u, v, state, other, loss = two_steps(a, b, state, other)
        assert_same(u, v)
        a, b = optax.apply_updates(a, u), optax.apply_updates(b, v)
        losses.append(float(loss))
    assert (np.diff(losses) > 0).all()


def test_a_combination_is_the_weighted_sum():
    g, r = tree(0), tree(1)
    tx = combine_forget_retain(lambda step: 2.0 * step, 3.0)
    state = tx.init(g)
    for step in range(3):
        u, state = tx.update(g, state, retain_grads=r)
        np.testing.assert_allclose(flat(u), 2 * step * flat(g) + 3 * flat(r), atol=1e-5)
    numbers = monitored(state)
    lengths = np.linalg.norm(flat(g)), np.linalg.norm(flat(r))
    np.testing.assert_allclose(numbers["combine_forget_norm"], lengths[0], rtol=1e-5)
    np.testing.assert_allclose(
        numbers["combine_cosine"], flat(g) @ flat(r) / np.prod(lengths), rtol=1e-4
    )


def test_a_clip_in_front_of_a_combination_does_not_reach_the_retain_side():
    g, r = tree(0), tree(1)
    clip = optax.clip_by_global_norm(0.1)
    chained = optax.chain(clip, combine_forget_retain())
    inside = combine_forget_retain(forget_transform=clip, retain_transform=clip)
    short = {
        name: 0.1 * flat(x) / np.linalg.norm(flat(x))
        for name, x in (("g", g), ("r", r))
    }
    u, _ = chained.update(g, chained.init(g), g, retain_grads=r)
    np.testing.assert_allclose(flat(u), short["g"] + flat(r), atol=1e-6)
    u, _ = inside.update(g, inside.init(g), g, retain_grads=r)
    np.testing.assert_allclose(flat(u), short["g"] + short["r"], atol=1e-6)


def test_both_sides_get_all_extra_arguments():
    def update(updates, state, params=None, *, forget_value, retain_grads, **extra):
        factor = forget_value * retain_grads["b"]["c"][0]
        return jax.tree.map(lambda x: factor * x, updates), state

    own = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    g, r = tree(0), tree(1)
    tx = combine_forget_retain(forget_transform=own, retain_transform=own)
    u, _ = run(tx, g, tx.init(g), retain_grads=r, forget_value=jnp.float32(3.0))
    factor = 3.0 * float(r["b"]["c"][0])
    np.testing.assert_allclose(flat(u), factor * (flat(g) + flat(r)), rtol=1e-5)


def test_adam_sees_only_the_ratio_of_the_weights():
    g, r = tree(0), tree(1)

    def step(*weights):
        tx = optax.chain(combine_forget_retain(*weights), optax.scale_by_adam())
        return flat(tx.update(g, tx.init(g), g, retain_grads=r)[0])

    np.testing.assert_allclose(step(1.0, 1.0), step(7.0, 7.0), atol=1e-5)
    assert np.abs(step(1.0, 1.0) - step(7.0, 1.0)).max() > 0.5


def test_the_multiplier_follows_its_recursion():
    setting = dict(tolerance=0.5, step_size=2.0, initial=1.0, warmup=2)
    values = [0.9, 0.8, 0.7, 0.6, 0.1, 0.0, 0.0, 0.2, 0.9]
    tx = dual_combine(**setting, forget_weight=0.5)
    g, r = tree(0), tree(1)
    state, update = tx.init(g), jit(tx.update)
    for value, expected in zip(
        values, dual_multipliers(values, **setting), strict=True
    ):
        u, state = update(g, state, retain_grads=r, retain_value=value)
        np.testing.assert_allclose(
            flat(u), 0.5 * flat(g) + expected * flat(r), atol=1e-5
        )
        found = float(monitored(state)["dual_combine_multiplier"])
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert min(dual_multipliers(values, **setting)) == 0
    assert dual_multipliers(values, **setting)[:3] == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="must not be negative"):
        dual_combine(tolerance=0.5, step_size=1.0, initial=-1.0, warmup=0)


def test_the_adaptive_weight_follows_the_published_rule():
    values = [1.0, 1.2, 0.8, 1.1, 1.3, 1.5, 1.7, 1.9, 5.0, 0.2, 1.6]
    tx = adaptive_combine(steps_per_epoch=3)
    g, r = tree(0), tree(1)
    state, update, found = tx.init(g), jit(tx.update), []
    for value in values:
        u, state = update(g, state, retain_grads=r, retain_value=value)
        weight = float(monitored(state)["adaptive_combine_weight"])
        np.testing.assert_allclose(flat(u), flat(g) + weight * flat(r), atol=1e-5)
        found.append(weight)
    np.testing.assert_allclose(
        found, adaptive_weights(values, steps_per_epoch=3), atol=1e-6
    )
    assert len(set(found)) > 3
    # The mean of the batch losses, whatever the batch size.
    np.testing.assert_allclose(monitored(state)["adaptive_combine_baseline"], 1.0)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        adaptive_combine(steps_per_epoch=0)


DUAL = dict(tolerance=0.5, step_size=1.0, initial=1.0, warmup=0)


def test_multi_steps_drops_extra_arguments_and_that_is_noticed():
    params = tree(0)
    multi = optax.MultiSteps(dual_combine(**DUAL), 2)
    inside = optax.chain(multi.gradient_transformation(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"needs retain_grads.*MultiSteps"):
        inside.update(
            tree(1), inside.init(params), params, retain_grads=tree(2), retain_value=1.0
        )


def test_accumulating_both_sides_by_hand_is_the_large_batch():
    """Two micro-batches, one update: what the whole batch gives, and one dual step."""
    rng = np.random.default_rng(0)
    forget, retain = jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32)
    params = {"x": jnp.asarray(rng.normal(size=3), jnp.float32)}
    tx = optax.chain(dual_combine(**DUAL), optax.adam(0.1))
    value_and_grad = jax.value_and_grad(quadratic)
    whole = jit(value_and_grad)

    @jit
    def accumulated(params, state):
        def micro(total, rows):
            f, r = (value_and_grad(params, x) for x in rows)
            return jax.tree.map(jnp.add, total, (f, r)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        split = (forget.reshape(2, 4, 3), retain.reshape(2, 4, 3))
        total, _ = jax.lax.scan(micro, (zero, zero), split)
        (_, gf), (lr, gr) = jax.tree.map(lambda x: x / 2, total)
        return tx.update(gf, state, params, retain_grads=gr, retain_value=lr)

    _, gf = whole(params, forget)
    lr, gr = whole(params, retain)
    expected, _ = run(tx, gf, tx.init(params), params, retain_grads=gr, retain_value=lr)
    u, state = accumulated(params, tx.init(params))
    assert_same(u, expected, rtol=1e-5)
    moved = 1.0 + (float(lr) - 0.5)
    np.testing.assert_allclose(state[0].multiplier, moved, rtol=1e-5)
    assert int(state[0].steps) == 1
    # MultiSteps itself forwards the last micro-batch's retain side only.
    multi = optax.MultiSteps(tx, 2)
    state, update = multi.init(params), jit(multi.update)
    for part in (slice(0, 4), slice(4, 8)):
        _, gf = whole(params, forget[part])
        lr, gr = whole(params, retain[part])
        _, state = update(gf, state, params, retain_grads=gr, retain_value=lr)
    wrong = 1.0 + (float(lr) - 0.5)
    np.testing.assert_allclose(state.inner_opt_state[0].multiplier, wrong, rtol=1e-5)
    assert abs(wrong - moved) > 1e-2
