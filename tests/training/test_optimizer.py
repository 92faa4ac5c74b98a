import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_mia_jax.configs import from_dict, to_dict
from lt_mia_jax.errors import InputError
from lt_mia_jax.training import (
    Constant,
    Cosine,
    Linear,
    OptimizerConfig,
    learning_rate,
    make_optimizer,
)

STEPS = 12
CONFIGS = {
    "paper": OptimizerConfig(),
    "large_decay": OptimizerConfig(learning_rate=0.1, weight_decay=0.5),
    "clipped": OptimizerConfig(learning_rate=0.01, clip_norm=1.0, b2=0.95),
    "cosine": OptimizerConfig(
        learning_rate=0.05, schedule=Cosine(floor=0.1), warmup_fraction=0.25
    ),
    "linear": OptimizerConfig(learning_rate=0.05, schedule=Linear()),
}


def gradients(step):
    rng = np.random.default_rng(step)
    return {"w": rng.normal(size=(3, 4)), "b": 3 * rng.normal(size=4)}


def start():
    rng = np.random.default_rng(99)
    return {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)}


def rate_oracle(config, step, total):
    warmup = round(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    match config.schedule:
        case Linear(floor=floor):
            return config.learning_rate * max(floor, 1 - progress)
        case Cosine(floor=floor):
            factor = (1 + math.cos(math.pi * progress)) / 2
            return config.learning_rate * max(floor, factor)
    return config.learning_rate


def adamw_oracle(config, total):
    """Algorithm 2 of arXiv 1711.05101 in float64, one array at a time."""
    params = start()
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for step in range(total):
        grads = gradients(step)
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        if config.clip_norm is not None and norm > config.clip_norm:
            grads = {k: g * config.clip_norm / norm for k, g in grads.items()}
        rate = rate_oracle(config, step, total)
        for k, g in grads.items():
            params[k] = params[k] - rate * config.weight_decay * params[k]
            m[k] = config.b1 * m[k] + (1 - config.b1) * g
            v[k] = config.b2 * v[k] + (1 - config.b2) * g * g
            m_hat = m[k] / (1 - config.b1 ** (step + 1))
            v_hat = v[k] / (1 - config.b2 ** (step + 1))
            params[k] = params[k] - rate * m_hat / (np.sqrt(v_hat) + config.eps)
    return params


def run(config, total):
    optimizer = make_optimizer(config, total)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start())
    state = optimizer.init(params)
    for step in range(total):
        grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(step))
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def tolerance(config):
    # Optax forms 1 - b2**t in float32: at t = 1 that is off by up to 6e-5 of itself,
    # and the update of size `rate` by half as much.
    return {"rtol": 2e-6, "atol": 1e-6 + 6e-5 * config.learning_rate}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_adamw_equals_its_definition(config):
    expected = adamw_oracle(config, STEPS)
    for name, found in run(config, STEPS).items():
        np.testing.assert_allclose(found, expected[name], **tolerance(config))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["paper", "large_decay", "clipped"])
def test_adamw_equals_torch(name):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    config = CONFIGS[name]
    params = {k: torch.tensor(v, dtype=torch.float32) for k, v in start().items()}
    optimizer = torch.optim.AdamW(
        list(params.values()),
        lr=config.learning_rate,
        betas=(config.b1, config.b2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    for step in range(STEPS):
        for key, gradient in gradients(step).items():
            params[key].grad = torch.tensor(gradient, dtype=torch.float32)
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), config.clip_norm)
        optimizer.step()
    for key, found in run(config, STEPS).items():
        np.testing.assert_allclose(found, params[key], **tolerance(config))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_learning_rate_equals_its_definition(config):
    rate = learning_rate(config, 40)
    expected = [rate_oracle(config, step, 40) for step in range(40)]
    np.testing.assert_allclose([rate(s) for s in range(40)], expected, rtol=1e-6)
    assert min(expected) >= 0
    assert expected[0] > 0


def test_weight_decay_reaches_every_parameter():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, 0)
    params = {"scale": jnp.ones(3), "kernel": jnp.ones((2, 2))}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, np.full(update.shape, -0.05), rtol=1e-6)


def test_config_survives_json():
    config = CONFIGS["cosine"]
    assert from_dict(OptimizerConfig, to_dict(config)) == config
    assert to_dict(config)["schedule"] == {"type": "Cosine", "floor": 0.1}


def test_all_bad_values_are_named():
    with pytest.raises(InputError) as error:
        OptimizerConfig(learning_rate=0.0, b2=1.0, clip_norm=-1.0)
    for word in ("learning_rate = 0,", "b2 = 1,", "clip_norm = -1,"):
        assert word in str(error.value)


def test_which_configs_need_the_length_of_the_run():
    constant = OptimizerConfig(schedule=Constant())
    assert not constant.needs_total_steps
    assert dataclasses.replace(constant, warmup_fraction=0.1).needs_total_steps
    assert dataclasses.replace(constant, schedule=Linear()).needs_total_steps
