"""Schedule and optimizer of a training recipe."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array
from lt_mia_jax.attacks.learned.recipe import TrainConfig


def learning_rate(
    config: TrainConfig, steps_per_epoch: int
) -> Callable[[jax.typing.ArrayLike], Array]:
    """The rate of update `s` = 0, 1, ...; update 0 has rate 0 when warming up.

    With `W` warm-up updates of `S` in all: `s / W` below W, then
    `max(1e-6 / rate, (1 + cos(pi (s - W) / (S - W))) / 2)`, or a straight line to 0
    with the same floor.

    Source: specification of LT-MIA's attack training (arXiv 2604.03199).
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    floor = min(1.0, 1e-6 / config.learning_rate)

    def rate(step: jax.typing.ArrayLike) -> Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, total - warmup), 0.0, 1.0)
        match config.schedule:
            case "none":
                return jnp.full_like(step, config.learning_rate)
            case "cosine":
                factor = jnp.maximum(floor, 0.5 * (1 + jnp.cos(math.pi * progress)))
            case "linear":
                factor = jnp.maximum(floor, 1 - progress)
        rising = step / max(1, warmup)
        return config.learning_rate * jnp.where(step < warmup, rising, factor)

    return rate


def make_optimizer(
    config: TrainConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """AdamW with decay on all parameters, after clipping the gradient's global norm."""
    adamw = optax.adamw(
        learning_rate(config, steps_per_epoch), weight_decay=config.weight_decay
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
