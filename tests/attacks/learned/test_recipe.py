import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_mia_jax.attacks.learned.optimizer import make_optimizer, optimizer_config
from lt_mia_jax.attacks.learned.recipe import TrainConfig
from lt_mia_jax.errors import InputError
from lt_mia_jax.training.optimizer import learning_rate


def rate_of(config, steps_per_epoch):
    return learning_rate(*optimizer_config(config, steps_per_epoch), first=0)


def test_default_schedule_at_chosen_steps():
    # 60 combinations of 18,000 rows: 66 steps an epoch, W = 660, S = 5,280.
    rate = rate_of(TrainConfig(), 66)
    top = 9.88e-4
    expected = {
        0: 0.0,
        1: top / 660,
        659: top * 659 / 660,
        660: top,
        2970: top * 0.5,
        3000: top * 0.5 * (1 + math.cos(math.pi * 2340 / 4620)),
        5279: max(1e-6, top * 0.5 * (1 + math.cos(math.pi * 4619 / 4620))),
        5280: 1e-6,
    }
    for step, value in expected.items():
        np.testing.assert_allclose(float(rate(step)), value, rtol=1e-4, atol=1e-12)


def test_linear_and_constant_schedules():
    linear = rate_of(TrainConfig(schedule="linear", epochs=4, warmup_epochs=1.0), 10)
    found = [float(linear(step)) for step in (0, 5, 10, 25, 40)]
    np.testing.assert_allclose(found, [0, 4.94e-4, 9.88e-4, 4.94e-4, 1e-6], rtol=1e-5)
    constant = rate_of(TrainConfig(schedule="none"), 10)
    assert {float(constant(s)) for s in (0, 3, 799)} == {float(np.float32(9.88e-4))}


def test_update_is_clipped_adamw_by_hand():
    config = TrainConfig(schedule="none", learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, 1)
    params = jnp.array([1.0, -2.0])
    state = optimizer.init(params)
    p, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, g in enumerate([np.array([3.0, 4.0]), np.array([0.1, -0.2])], start=1):
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        g = g / max(1.0, np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = p - 0.1 * (step + 0.5 * p)
    np.testing.assert_allclose(params, p, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"warmup_epochs": 80.0},
        {"label_smoothing": 1.0},
        {"learning_rate": 0.0},
        {"slices": 0},
        {"pairwise_weight": 0.1, "slices": 2},
    ],
)
def test_impossible_recipes_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        TrainConfig(**changes)


def test_short_runs_need_a_short_warm_up():
    with pytest.raises(InputError, match="warmup_epochs"):
        TrainConfig(epochs=5)
    assert TrainConfig(epochs=5, warmup_epochs=0.5).epochs == 5
