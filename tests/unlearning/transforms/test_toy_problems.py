"""Transformations on problems whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle_transforms import AdamW, flat
from quick_compile import jit
from transform_cases import adamw, tree

from lt_mia_jax.unlearning.transforms import (
    adaptive_combine,
    alternate,
    ascend,
    combine_forget_retain,
    dual_combine,
    ema_teacher,
    ewc_pull,
    fisher_masked,
    freeze,
    project_against,
    project_realized_update,
    retain_subspace_projection,
    saliency_masked,
    sharpness_aware,
    stochastic_restore,
    trust_region,
)

# Retaining cares for three of six numbers, forgetting for all of them.
RETAIN_AT, FORGET_AT = jnp.array([1.0, -1.0, 0.5]), jnp.arange(6.0) / 5
START = {"own": FORGET_AT[3:] + 0.1, "shared": RETAIN_AT + 0.3}
MASK = {"own": jnp.ones(3, bool), "shared": jnp.zeros(3, bool)}


def retain_loss(x):
    return 0.5 * jnp.sum((x["shared"] - RETAIN_AT) ** 2)


def forget_loss(x):
    both = jnp.concatenate([x["shared"], x["own"]])
    return 0.5 * jnp.sum((both - FORGET_AT) ** 2)


def ascent(x):
    return jax.tree.map(jnp.negative, jax.grad(forget_loss)(x))


def walk(tx, steps=80):
    """Parameters and state at the end, and the largest retain loss on the way."""

    @jit
    def step(x, state):
        lr, gr = jax.value_and_grad(retain_loss)(x)
        extras = {"retain_grads": gr, "retain_value": lr, "grad_fn": ascent}
        u, state = tx.update(ascent(x), state, x, **extras)
        return optax.apply_updates(x, u), state, lr

    x, state, worst = START, tx.init(START), 0.0
    for _ in range(steps):
        x, state, lr = step(x, state)
        worst = max(worst, float(lr))
    return x, state, worst


def unlearn(tx, steps=80):
    """Rise of the forget loss, the retain loss at the end, and the largest one."""
    x, _, worst = walk(tx, steps)
    return float(forget_loss(x) - forget_loss(START)), float(retain_loss(x)), worst


START_RETAIN = 0.5 * 3 * 0.3**2


def test_ascent_alone_raises_both_losses():
    rise, after, _ = unlearn(optax.chain(ascend(-1.0), optax.sgd(0.03)))
    assert rise > 1
    assert after > 5 * START_RETAIN


@pytest.mark.parametrize(
    ("tx", "allowed"),
    [
        (optax.chain(combine_forget_retain(0.3, 1.0), optax.sgd(0.05)), 3.0),
        (
            optax.chain(
                dual_combine(tolerance=0.2, step_size=2.0, initial=0.0, warmup=0),
                optax.sgd(0.03),
            ),
            2.0,
        ),
        (
            optax.chain(
                adaptive_combine(steps_per_epoch=5, forget_weight=0.5), optax.sgd(0.03)
            ),
            4.0,
        ),
        (optax.chain(project_against(), optax.sgd(0.03)), 4.0),
        (
            optax.chain(
                project_against(when="conflict"),
                combine_forget_retain(),
                optax.sgd(0.03),
            ),
            1.01,
        ),
        (project_realized_update(optax.adam(0.03)), 1.2),
        (
            project_realized_update(
                optax.adamw(0.03, weight_decay=0.1), form="equality"
            ),
            1.5,
        ),
        (project_realized_update(sharpness_aware(optax.sgd(0.03), 0.1)), 1.2),
        (saliency_masked(optax.sgd(0.03), MASK), 1.0001),
        (freeze(optax.sgd(0.03), ["own"]), 1.0001),
        (
            fisher_masked(
                optax.sgd(0.03),
                quantile=0.5,
                # Of the retain loss: it does not see the others.
                fisher=jax.tree.map(lambda mask: 1.0 - mask, MASK),
                move="smallest",
            ),
            1.0001,
        ),
        (optax.chain(retain_subspace_projection(size=3), optax.sgd(0.03)), 1.5),
        (optax.chain(optax.sgd(0.03), trust_region(0.2, around="start")), 2.0),
        (optax.chain(optax.sgd(0.03), stochastic_restore(0.5)), 2.0),
        (optax.chain(ewc_pull(8.0), optax.sgd(0.03)), 2.0),
        (
            optax.chain(
                alternate(combine_forget_retain(0, 4), combine_forget_retain(1, 0), 2),
                optax.sgd(0.03),
            ),
            1.1,
        ),
    ],
    ids=lambda x: None if callable(getattr(x, "init", None)) else str(x),
)
def test_forgetting_rises_while_the_retain_loss_stays(tx, allowed):
    rise, after, _ = unlearn(tx)
    assert rise > 0.02
    assert after < allowed * START_RETAIN


def test_a_bounded_run_ends_on_the_ball():
    x, _, _ = walk(optax.chain(optax.sgd(0.03), trust_region(0.2, around="start")))
    distance = np.linalg.norm(flat(x) - flat(START))
    assert distance == pytest.approx(0.2, rel=1e-5)


def test_a_teacher_is_the_running_mean_of_the_way():
    ascending = optax.chain(combine_forget_retain(0.3, 1.0), optax.sgd(0.05))
    x, state, _ = walk(optax.chain(ascending, ema_teacher(0.9)))
    mean = flat(START)
    for steps in range(1, 81):
        mean = 0.9 * mean + 0.1 * flat(walk(ascending, steps)[0])
    np.testing.assert_allclose(flat(state[-1].teacher), mean, rtol=1e-5)
    losses = [float(forget_loss(y)) for y in (START, state[-1].teacher, x)]
    assert losses == sorted(losses)


def test_what_the_realized_projection_leaves_is_of_second_order():
    """Half the rate and twice the steps: the same way, half the rise."""
    worst = [
        unlearn(project_realized_update(optax.sgd(rate)), round(0.8 / rate))[2]
        for rate in (0.02, 0.01)
    ]
    rises = [x - START_RETAIN for x in worst]
    assert rises[0] < 0.1 * START_RETAIN
    assert 0.4 < rises[1] / rises[0] < 0.6


def test_adamw_is_the_published_one():
    """The optimizer beside which all of this is defined."""
    params, oracle = tree(0), AdamW(flat(tree(0)).size, 0.1, decay=0.1)
    tx = adamw()
    state = tx.init(params)
    for seed in range(3):
        u, state = tx.update(tree(1 + seed), state, params)
        expected = oracle.step(flat(tree(1 + seed)), flat(params))
        np.testing.assert_allclose(flat(u), expected, rtol=1e-4, atol=1e-6)
