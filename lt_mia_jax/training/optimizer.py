"""AdamW and plain gradient descent with a schedule, from a config."""

from collections.abc import Callable
from typing import assert_never

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.training.config import Constant, Cosine, Linear, OptimizerConfig


def learning_rate(
    config: OptimizerConfig,
    total_steps: int,
    highest: jax.typing.ArrayLike | None = None,
    first: int = 1,
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """The rate of update `step` (0, 1, ...), float32.

    `highest` stands for `config.learning_rate`; an array makes the rate an argument of
    the compiled program, which then serves any rate.

    With `W` warm-up steps out of `S`, update `s < W` uses the factor `(s + first) / W`:
    1 wastes no update on a rate of 0. Later ones use progress `(s - W) / (S - W)` along
    the schedule.
    """
    highest = config.learning_rate if highest is None else highest
    warmup = round(config.warmup_fraction * total_steps)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, total_steps - warmup), 0.0, 1.0)
        match config.schedule:
            case Constant():
                factor = jnp.ones_like(step)
            case Linear(floor=floor):
                factor = jnp.maximum(floor, 1.0 - progress)
            case Cosine(floor=floor):
                factor = jnp.maximum(floor, 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))
            case _:
                assert_never(config.schedule)
        rising = jnp.minimum(1.0, (step + first) / max(1, warmup))
        factor = jnp.where(step < warmup, rising, factor)
        return jnp.asarray(highest, jnp.float32) * factor

    return rate


def make_optimizer(
    config: OptimizerConfig,
    total_steps: int,
    highest: jax.typing.ArrayLike | None = None,
    first: int = 1,
) -> optax.GradientTransformation:
    """AdamW as `torch.optim.AdamW` computes it, after optional clipping.

    The update is `-rate * (m_hat / (sqrt(v_hat) + eps) + weight_decay * params)`;
    `highest` and `first` are those of `learning_rate`.

    Source: Decoupled Weight Decay Regularization, arXiv 1711.05101, algorithm 2.
    """
    adamw = optax.adamw(
        learning_rate(config, total_steps, highest, first),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return _clipped(config, adamw)


def make_sgd(
    config: OptimizerConfig,
    total_steps: int,
    highest: jax.typing.ArrayLike | None = None,
) -> optax.GradientTransformation:
    """Plain gradient descent, `-rate * gradient`, after optional clipping.

    Rate, schedule and clipping of the config count; its decays do not.
    """
    return _clipped(config, optax.sgd(learning_rate(config, total_steps, highest)))


def _clipped(
    config: OptimizerConfig, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
