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
    ewc_pull,
    project_against,
    project_realised_update,
    saliency_masked,
    sharpness_aware,
)

# Retaining cares for the first three of six numbers, forgetting for all of them.
RETAIN_AT, FORGET_AT = jnp.array([1.0, -1.0, 0.5]), jnp.arange(6.0) / 5


def retain_loss(x):
    return 0.5 * jnp.sum((x[:3] - RETAIN_AT) ** 2)


def forget_loss(x):
    return 0.5 * jnp.sum((x - FORGET_AT) ** 2)


def unlearn(tx, steps=80):
    """Forget and retain loss at the end, and the largest retain loss on the way."""
    start = jnp.concatenate([RETAIN_AT + 0.3, FORGET_AT[3:] + 0.1])

    @jit
    def step(x, state):
        gf = -jax.grad(forget_loss)(x)
        lr, gr = jax.value_and_grad(retain_loss)(x)
        u, state = tx.update(
            gf,
            state,
            x,
            retain_grads=gr,
            retain_value=lr,
            grad_fn=lambda x: -jax.grad(forget_loss)(x),
        )
        return optax.apply_updates(x, u), state, lr

    x, state, worst = start, tx.init(start), 0.0
    for _ in range(steps):
        x, state, lr = step(x, state)
        worst = max(worst, float(lr))
    rise = float(forget_loss(x) - forget_loss(start))
    return rise, float(retain_loss(x)), worst


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
        (project_realised_update(optax.adam(0.03)), 1.2),
        (
            project_realised_update(
                optax.adamw(0.03, weight_decay=0.1), form="equality"
            ),
            1.5,
        ),
        (project_realised_update(sharpness_aware(optax.sgd(0.03), 0.1)), 1.2),
        (saliency_masked(optax.sgd(0.03), jnp.arange(6) >= 3), 1.0001),
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


def test_what_the_realised_projection_leaves_is_of_second_order():
    """Half the rate and twice the steps: the same way, half the rise."""
    worst = [
        unlearn(project_realised_update(optax.sgd(rate)), round(0.8 / rate))[2]
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
